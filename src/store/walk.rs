//! Walking over the volume, folder by folder: what lies there, whoever put it there.

use std::fs;
use std::io;

use crate::content::digest::Sha256;
use crate::store::{Store, StoreError};

/// Folders of blobs: one for each first byte of a digest.
pub const FOLDERS: std::ops::RangeInclusive<u8> = 0..=u8::MAX;

/// A file among the blobs, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lying {
    /// What its name says that it is.
    pub digest: Sha256,
    /// Bytes.
    pub size: u64,
}

impl Store {
    /// What lies in the folder of digests that begin with `first`, by digest. What is not named as
    /// blobs are is passed over. Blocks.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn folder(&self, first: u8) -> Result<Vec<Lying>, StoreError> {
        let name = format!("{first:02x}");
        let mut found = Vec::new();
        let failed = |source| StoreError::new("list a folder of blobs", source);
        let entries = match fs::read_dir(self.blobs.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let metadata = match entry.metadata() {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed)?,
            };
            let digest = entry.file_name().to_str().and_then(digest_of);
            match digest.filter(|digest| digest.as_bytes().first() == Some(&first)) {
                Some(digest) if metadata.is_file() => {
                    found.push(Lying { digest, size: metadata.len() });
                }
                _ => tracing::debug!(path = ?entry.path(), "passing over what is no blob"),
            }
        }
        found.sort_by_key(|lying| *lying.digest.as_bytes());
        Ok(found)
    }
}

/// Blobs are named in lower case.
fn digest_of(name: &str) -> Option<Sha256> {
    Sha256::from_hex(name).filter(|digest| digest.to_string() == name)
}
