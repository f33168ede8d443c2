//! Statements about files that lie elsewhere than on the volume.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::content::digest::Sha256;
use crate::index::sqlite::{digest_from, signed, unsigned};
use crate::index::{BOUNDS, HashedFile, Identity};

const COLUMNS: &str = "path, size, modified, changed, inode, digest";

pub(super) fn get(connection: &Connection, path: &Path) -> rusqlite::Result<Option<HashedFile>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM files WHERE path = ?1"))?
        .query_row([bytes(path)], file_from)
        .optional()
}

pub(super) fn with(
    connection: &Connection,
    digest: &Sha256,
    limit: usize,
) -> rusqlite::Result<Vec<HashedFile>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM files WHERE digest = ?1 LIMIT ?2"))?
        .query_map(params![digest.as_bytes(), i64::try_from(limit).unwrap_or(i64::MAX)], file_from)?
        .collect()
}

pub(super) fn below(
    connection: &Connection,
    folder: &Path,
    after: Option<&Path>,
    limit: usize,
) -> rusqlite::Result<Vec<HashedFile>> {
    let [first, end] = BOUNDS.map(|end| [bytes(folder), end.as_bytes()].concat());
    let after = after.map_or(first.as_slice(), bytes);
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM files WHERE path > ?1 AND path < ?2 ORDER BY path LIMIT ?3"
        ))?
        .query_map(params![after, end, i64::try_from(limit).unwrap_or(i64::MAX)], file_from)?
        .collect()
}

/// One transaction for all.
pub(super) fn record(connection: &mut Connection, files: &[HashedFile]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut record = transaction.prepare_cached(
            "INSERT INTO files (path, size, modified, changed, inode, digest)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (path) DO UPDATE SET
                 size = excluded.size, modified = excluded.modified, changed = excluded.changed,
                 inode = excluded.inode, digest = excluded.digest",
        )?;
        for file in files {
            let Identity { size, modified, changed, inode } = file.identity;
            let (path, digest) = (bytes(&file.path), file.digest.as_bytes());
            record.execute(params![
                path,
                signed(size),
                modified,
                changed,
                signed(inode),
                digest
            ])?;
        }
    }
    transaction.commit()
}

pub(super) fn forget(connection: &mut Connection, paths: &[PathBuf]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut forget = transaction.prepare_cached("DELETE FROM files WHERE path = ?1")?;
        for path in paths {
            forget.execute([bytes(path)])?;
        }
    }
    transaction.commit()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn file_from(row: &Row<'_>) -> rusqlite::Result<HashedFile> {
    let path: Vec<u8> = row.get(0)?;
    Ok(HashedFile {
        path: OsString::from_vec(path).into(),
        identity: Identity {
            size: unsigned(row, 1)?,
            modified: row.get(2)?,
            changed: row.get(3)?,
            inode: unsigned(row, 4)?,
        },
        digest: digest_from(row, 5)?,
    })
}
