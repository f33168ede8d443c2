//! The outer form of a Debian package file (deb(5)): an `ar` archive, which tells its own end, so that
//! a file that was cut short can be told from a whole one.

use thiserror::Error;

/// What a package file begins with: the magic of `ar`, and its first member's name.
pub const BEGINNING: &[u8] = b"!<arch>\ndebian-binary";

/// Bytes of a member's header.
pub const HEADER: usize = 60;
/// deb(5) asks for three members; signing tools add one or two.
const MEMBERS: std::ops::RangeInclusive<usize> = 3..=64;

/// Why a file is no whole package.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DebError {
    /// It is none at all.
    #[error("no Debian package")]
    Foreign,
    /// Its end is missing, or there is more than it tells.
    #[error("cut short, or otherwise damaged")]
    Damaged,
}

/// Checks the outer form of a file of `size` bytes, of which `read` gives [`HEADER`] bytes from an
/// offset on, or `None` where there are not as many.
///
/// # Errors
/// When it is no whole package.
pub fn check(size: u64, mut read: impl FnMut(u64) -> Option<[u8; HEADER]>) -> Result<(), DebError> {
    let beginning = read(0).ok_or(DebError::Foreign)?;
    if !beginning.starts_with(BEGINNING) {
        return Err(DebError::Foreign);
    }
    let mut offset = 8;
    for number in 1..=*MEMBERS.end() {
        let header = read(offset).ok_or(DebError::Damaged)?;
        let content = member_size(&header).ok_or(DebError::Damaged)?;
        let end = offset.saturating_add(HEADER as u64).saturating_add(content);
        // Members begin at even offsets; the last one may do without what comes before the next.
        offset = end.saturating_add(end % 2);
        if MEMBERS.contains(&number) && (size == end || size == offset) {
            return Ok(());
        }
    }
    Err(DebError::Damaged)
}

/// The decimal number in columns 48 to 57.
fn member_size(header: &[u8; HEADER]) -> Option<u64> {
    let digits = std::str::from_utf8(header.get(48..58)?).ok()?.trim_end();
    let is_header = header.ends_with(b"`\n") && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{name:<48}{:<10}`\n", content.len()).into_bytes();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
        bytes
    }

    fn check_bytes(bytes: &[u8]) -> Result<(), DebError> {
        check(bytes.len() as u64, |offset| {
            let from = usize::try_from(offset).ok()?;
            bytes.get(from..from.checked_add(HEADER)?)?.try_into().ok()
        })
    }

    #[test]
    fn whole_packages_are_told_from_cut_ones() {
        let magic = b"!<arch>\n".to_vec();
        let parts = [
            magic,
            member("debian-binary", b"2.0\n"),
            member("control.tar", b"c"),
            member("data", b"ddd"),
        ];
        let whole = parts.concat();
        assert_eq!(check_bytes(&whole), Ok(()));
        assert_eq!(check_bytes(&whole[..whole.len() - 1]), Ok(()), "without the last filling");
        for length in 0..whole.len() - 1 {
            assert!(check_bytes(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(check_bytes(&[&whole[..], b"more"].concat()), Err(DebError::Damaged));
        assert_eq!(check_bytes(b"<html>"), Err(DebError::Foreign));
        let mut endless = whole.clone();
        endless[8 + 48..8 + 58].copy_from_slice(b"9999999999");
        assert_eq!(check_bytes(&endless), Err(DebError::Damaged));
        endless[8 + 48..8 + 58].copy_from_slice(b"-1        ");
        assert_eq!(check_bytes(&endless), Err(DebError::Damaged));
    }
}
