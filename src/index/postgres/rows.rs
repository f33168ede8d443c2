//! Values out of rows and into parameters.

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::content::digest::{Expected, Sha256};
use crate::index::postgres::calls::Purpose;
use crate::index::postgres::trouble::Trouble;
use crate::index::{Expectation, IndexError};

pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, Trouble> {
    Ok(row.try_get(at)?)
}

pub(super) fn digest(row: &Row, at: usize) -> Result<Sha256, Trouble> {
    let bytes: &[u8] = column(row, at)?;
    Sha256::from_bytes(bytes).ok_or(Trouble::Corrupt("a digest that is not 32 bytes"))
}

pub(super) fn unsigned(row: &Row, at: usize) -> Result<u64, Trouble> {
    let number: i64 = column(row, at)?;
    u64::try_from(number).map_err(|_| Trouble::Corrupt("a negative number of bytes or uses"))
}

/// From two columns: size and digest.
pub(super) fn expectation(row: &Row, first: usize) -> Result<Expectation, Trouble> {
    let size: Option<i64> = column(row, first)?;
    let digest: &[u8] = column(row, first + 1)?;
    let digest =
        Expected::from_bytes(digest).ok_or(Trouble::Corrupt("a digest of no known length"))?;
    Ok(Expectation { size: size.and_then(|size| u64::try_from(size).ok()), digest })
}

/// SQL has no unsigned numbers.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// As an array's elements; in their order, so that all lock rows in one order.
pub(super) fn sorted(digests: &[Sha256]) -> Vec<&[u8]> {
    let mut bytes: Vec<&[u8]> = digests.iter().map(|digest| &digest.as_bytes()[..]).collect();
    bytes.sort_unstable();
    bytes.dedup();
    bytes
}

/// The error of a call whose rows could not be read.
pub(super) fn corrupt(purpose: Purpose) -> impl Fn(Trouble) -> IndexError {
    move |trouble| IndexError { operation: purpose.operation(), source: trouble.into() }
}
