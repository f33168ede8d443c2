//! Which volume it is: a random number, written on it when it is first used. Processes that read the same
//! number share the volume.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::content::digest::Sha256;
use crate::store::Config;

/// The file that holds it, as hex digits.
const FILE: &str = "volume";

/// The volume's identity. One that can not be written, and never was, has one that its machine gives it:
/// it lasts until that is started anew. Blocks.
#[must_use]
pub fn identity(config: &Config) -> u128 {
    let path = config.dir.join(FILE);
    match read(&path).or_else(|_| make(&config.dir, &path)) {
        Ok(identity) => identity,
        Err(error) => {
            tracing::warn!(?path, %error, "the volume can not be marked: until it is, it may be taken for a new one");
            of_machine(&config.dir).unwrap_or_else(random)
        }
    }
}

fn read(path: &Path) -> io::Result<u128> {
    let text = fs::read_to_string(path)?;
    u128::from_str_radix(text.trim(), 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Whoever comes first is heard: a link never takes the place of another.
fn make(folder: &Path, path: &Path) -> io::Result<u128> {
    fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".{FILE}-{:032x}", random()));
    let written = File::create_new(&draft).and_then(|mut file| {
        writeln!(file, "{:032x}", random())?;
        file.sync_all()
    });
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    // What can not be removed is a small file more.
    drop(fs::remove_file(&draft));
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => {
            File::open(folder)?.sync_all()?;
            read(path)
        }
    }
}

fn of_machine(folder: &Path) -> Option<u128> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let metadata = fs::metadata(folder).ok()?;
    let place = format!("{boot} {} {}", metadata.dev(), metadata.ino());
    let digest = Sha256::of(place.as_bytes());
    digest.as_bytes().first_chunk().copied().map(u128::from_be_bytes)
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::error!("this system has no random numbers");
    }
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(folder: &Path) -> Config {
        Config { dir: folder.join("data") }
    }

    #[test]
    fn a_volume_keeps_its_identity() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = identity(&volume(one.path()));
        assert_eq!(identity(&volume(one.path())), first);
        assert_ne!(identity(&volume(other.path())), first);
        let left: Vec<_> = fs::read_dir(one.path().join("data")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing else is left there");
    }

    #[test]
    fn many_that_come_at_once_agree() {
        let folder = tempfile::tempdir().unwrap();
        let config = volume(folder.path());
        let identities: Vec<u128> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16).map(|_| scope.spawn(|| identity(&config))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(identities.iter().all(|identity| *identity == identities[0]));
    }

    #[test]
    fn a_volume_that_can_not_be_marked_is_one_all_the_same() {
        // A file, where a folder should be: nothing can be written there, not even by root.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("data"), "").unwrap();
        let config = volume(folder.path());
        assert_eq!(identity(&config), identity(&config));
    }
}
