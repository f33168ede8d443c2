//! Finding the keys that archives sign with: the system's, and what the operator names.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::archive::signature::{KEYRING_BYTES_MAX, Keyring, KeyringError};

/// Where Debian's and Ubuntu's packages and administrators put the keys that apt trusts; the last is
/// what `apt-key` wrote.
const SYSTEM: [&str; 4] =
    ["/usr/share/keyrings", "/etc/apt/keyrings", "/etc/apt/trusted.gpg.d", "/etc/apt/trusted.gpg"];
/// Keys that archives do not sign with any more.
const REMOVED: &str = "removed-keys";
/// Endings of keyring files, as apt knows them (`SignedBy` in sources.list(5)).
const ENDINGS: [&str; 3] = ["gpg", "asc", "pgp"];

/// All keys of the system's keyrings and of those named, files or folders.
///
/// Of the system's, what can not be read is passed over; what was named and can not be read is the
/// error.
pub(super) fn read(named: &[PathBuf]) -> Result<Keyring, (PathBuf, String)> {
    read_at(&SYSTEM.map(PathBuf::from), named)
}

fn read_at(system: &[PathBuf], named: &[PathBuf]) -> Result<Keyring, (PathBuf, String)> {
    let mut keyring = Keyring::default();
    let present = system.iter().filter(|path| path.exists());
    let files = present.flat_map(|path| files_at(path).unwrap_or_default());
    for file in files.filter(|file| !file.to_string_lossy().contains(REMOVED)) {
        if let Err(error) = add(&mut keyring, &file) {
            tracing::debug!(?file, error, "passing over a keyring");
        }
    }
    add_named(&mut keyring, named)?;
    Ok(keyring)
}

/// Adds the keys in files and folders that the operator named.
pub(super) fn add_named(keyring: &mut Keyring, named: &[PathBuf]) -> Result<(), (PathBuf, String)> {
    for path in named {
        let fault = |why: String| (path.clone(), why);
        for file in files_at(path).map_err(|error| fault(error.to_string()))? {
            add(keyring, &file).map_err(fault)?;
        }
    }
    Ok(())
}

fn add(keyring: &mut Keyring, file: &Path) -> Result<(), String> {
    let bytes = read_bounded(file)?;
    keyring.add(&bytes).map(drop).map_err(|error| error.to_string())
}

/// No more is read than a keyring may have, even of a file that does not tell its size.
fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let limit = KEYRING_BYTES_MAX as u64;
    let file = File::open(file).map_err(|error| error.to_string())?;
    if file.metadata().is_ok_and(|about| about.len() > limit) {
        return Err(KeyringError::TooLarge.to_string());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn files_at(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_dir() { files_in(path) } else { Ok(vec![path.to_owned()]) }
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that gpg made.
    fn keys(name: &str) -> Vec<u8> {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/signature");
        fs::read(seeds.join(name)).unwrap()
    }

    #[test]
    fn folders_and_single_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["keyrings", "named"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("keyrings/one.gpg"), keys("sub.gpg")).unwrap();
        fs::write(at("keyrings/x-removed-keys.gpg"), keys("keyring.gpg")).unwrap();
        fs::write(at("keyrings/damaged.asc"), "no key").unwrap();
        fs::write(at("keyrings/README"), "no key").unwrap();
        fs::write(at("trusted.gpg"), keys("nist.gpg")).unwrap();
        fs::write(at("named/two.gpg"), keys("gone.gpg")).unwrap();
        let system = ["keyrings", "missing", "missing.gpg", "trusted.gpg"].map(at);
        assert_eq!(read_at(&system[..1], &[]).unwrap().len(), 1);
        assert_eq!(read_at(&system, &[]).unwrap().len(), 2);
        assert_eq!(read_at(&system, &[at("named"), at("keyrings/one.gpg")]).unwrap().len(), 3);
        for bad in ["missing.gpg", "keyrings/damaged.asc", "keyrings"] {
            let fault = read_at(&[], &[at(bad)]).unwrap_err();
            assert_eq!(fault.0, at(bad));
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("large.gpg");
        File::create(&large).unwrap().set_len(1 << 40).unwrap();
        for endless in [large, PathBuf::from("/dev/zero")] {
            let (path, why) = read_at(&[], std::slice::from_ref(&endless)).unwrap_err();
            assert_eq!((path, why), (endless, KeyringError::TooLarge.to_string()));
        }
    }
}
