//! Statements about files that lie elsewhere than on the volume, as its processes see them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::content::digest::Sha256;
use crate::index::postgres::calls::{Calls, Parameter, Purpose};
use crate::index::postgres::rows::{column, corrupt, digest, limit_of, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{BOUNDS, HashedFile, Identity, IndexError};

const COLUMNS: &str = "path, size, modified, changed, inode, digest";

pub(super) async fn get(calls: &Calls, path: &Path) -> Result<Option<HashedFile>, IndexError> {
    let purpose = Purpose::read("look up a file");
    Ok(page(calls, purpose, "AND path = $1", &[(&bytes(path), Type::BYTEA)]).await?.pop())
}

pub(super) async fn with(
    calls: &Calls,
    digest: &Sha256,
    limit: usize,
) -> Result<Vec<HashedFile>, IndexError> {
    page(
        calls,
        Purpose::read("look up files"),
        "AND digest = $1 LIMIT $2",
        &[(&digest.as_bytes().as_slice(), Type::BYTEA), (&limit_of(limit), Type::INT8)],
    )
    .await
}

pub(super) async fn below(
    calls: &Calls,
    folder: &Path,
    after: Option<&Path>,
    limit: usize,
) -> Result<Vec<HashedFile>, IndexError> {
    let [first, end] = BOUNDS.map(|end| [bytes(folder), end.as_bytes()].concat());
    let after = after.map_or(first.as_slice(), bytes);
    page(
        calls,
        Purpose::read("page through files"),
        "AND path > $1 AND path < $2 ORDER BY path LIMIT $3",
        &[(&after, Type::BYTEA), (&end, Type::BYTEA), (&limit_of(limit), Type::INT8)],
    )
    .await
}

pub(super) async fn record(calls: &Calls, files: &[HashedFile]) -> Result<(), IndexError> {
    // Of two states of one file, the last counts.
    let files: BTreeMap<&[u8], &HashedFile> =
        files.iter().map(|file| (bytes(&file.path), file)).collect();
    let numbers = |of: fn(&Identity) -> i64| -> Vec<i64> {
        files.values().map(|file| of(&file.identity)).collect()
    };
    let paths: Vec<&[u8]> = files.keys().copied().collect();
    let digests: Vec<&[u8]> = files.values().map(|file| &file.digest.as_bytes()[..]).collect();
    calls
        .rows(
            Purpose::write("record files"),
            &format!(
                "INSERT INTO files (volume, path, size, modified, changed, inode, digest)
                 SELECT id, told.* FROM volumes, unnest($1, $2, $3, $4, $5, $6) AS told
                 WHERE id = {}
                 ON CONFLICT (volume, path) DO UPDATE SET
                     size = excluded.size, modified = excluded.modified,
                     changed = excluded.changed, inode = excluded.inode, digest = excluded.digest",
                calls.volume()
            ),
            &[
                (&paths, Type::BYTEA_ARRAY),
                (&numbers(|identity| signed(identity.size)), Type::INT8_ARRAY),
                (&numbers(|identity| identity.modified), Type::INT8_ARRAY),
                (&numbers(|identity| identity.changed), Type::INT8_ARRAY),
                (&numbers(|identity| signed(identity.inode)), Type::INT8_ARRAY),
                (&digests, Type::BYTEA_ARRAY),
            ],
        )
        .await
        .map(drop)
}

pub(super) async fn forget(calls: &Calls, paths: &[PathBuf]) -> Result<(), IndexError> {
    let mut paths: Vec<&[u8]> = paths.iter().map(|path| bytes(path)).collect();
    paths.sort_unstable();
    let own = calls.volume();
    calls
        .rows(
            Purpose::write("forget files"),
            &format!(
                "WITH locked AS MATERIALIZED (
                     SELECT path FROM files WHERE path = ANY($1) AND volume = {own}
                     ORDER BY path FOR UPDATE)
                 DELETE FROM files USING locked
                 WHERE files.path = locked.path AND volume = {own}"
            ),
            &[(&paths, Type::BYTEA_ARRAY)],
        )
        .await
        .map(drop)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

async fn page(
    calls: &Calls,
    purpose: Purpose,
    rest: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<HashedFile>, IndexError> {
    let sql = format!("SELECT {COLUMNS} FROM files WHERE volume = {} {rest}", calls.volume());
    let rows = calls.rows(purpose, &sql, parameters).await?;
    rows.iter().map(file_from).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

fn file_from(row: &Row) -> Result<HashedFile, Trouble> {
    let path: &[u8] = column(row, 0)?;
    Ok(HashedFile {
        path: OsStr::from_bytes(path).into(),
        identity: Identity {
            size: unsigned(row, 1)?,
            modified: column(row, 2)?,
            changed: column(row, 3)?,
            inode: unsigned(row, 4)?,
        },
        digest: digest(row, 5)?,
    })
}
