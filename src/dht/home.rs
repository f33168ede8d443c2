//! What a node keeps over restarts, in a folder of its own below the data folder: its identity, what it
//! announces, and where it last knew others.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use libp2p::identity::{Keypair, ed25519};

use crate::content::swarm_key::DhtKey;

/// Nodes with one data folder: each replica of a site may have its own.
const NODES_MAX: usize = 64;
/// Bytes of what is remembered of other nodes' places.
const PLACES_MAX: u64 = 64 * 1024;
/// Bytes of a journal: twice what is ever announced.
const JOURNAL_MAX: u64 = 16 * 1024 * 1024;
/// A mark and a key.
const ENTRY: usize = 1 + DhtKey::SIZE;
const ADDED: u8 = b'+';
const REMOVED: u8 = b'-';
/// Entries of the journal that are no use any more, before it is written anew.
const WASTE_MAX: usize = 20_000;

/// The folder, held so that no other process takes it for its own.
pub(super) struct Home {
    folder: PathBuf,
    journal: Option<File>,
    entries: usize,
    _lock: File,
}

impl Home {
    /// Takes the first folder below `data` that no other process holds.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        for number in 0..NODES_MAX {
            let folder = data.join("dht").join(number.to_string());
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let lock = File::create(folder.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { folder, journal: None, entries: 0, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{NODES_MAX} nodes have their folders there")))
    }

    /// Who this node is; made up at the first start.
    pub(super) fn identity(&self) -> io::Result<Keypair> {
        let path = self.folder.join("identity");
        let secret = match fs::read(&path) {
            Ok(secret) => secret,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = super::fresh_secret().to_vec();
                write_whole(&path, &secret)?;
                secret
            }
            Err(error) => return Err(error),
        };
        let wrong = |_| io::Error::other(format!("{} holds no identity", path.display()));
        let secret = ed25519::SecretKey::try_from_bytes(secret).map_err(wrong)?;
        Ok(ed25519::Keypair::from(secret).into())
    }

    /// What was announced when the process ended, if it was in the same swarm.
    pub(super) fn announced(&mut self, swarm: &str) -> io::Result<BTreeSet<DhtKey>> {
        let path = self.folder.join("announced");
        let head = format!("aptmesh announced 1 {swarm}\n");
        let mut keys = BTreeSet::new();
        if let Some(entries) = read_bounded(&path, JOURNAL_MAX)?.strip_prefix(head.as_bytes()) {
            // What a crash cut short is left out.
            for entry in entries.as_chunks::<ENTRY>().0 {
                let [mark, key @ ..] = entry;
                match (mark, DhtKey::from_bytes(key)) {
                    (&ADDED, Some(key)) => drop(keys.insert(key)),
                    (&REMOVED, Some(key)) => drop(keys.remove(&key)),
                    _ => {}
                }
            }
        }
        self.write_journal(swarm, keys.iter())?;
        Ok(keys)
    }

    /// Notes that keys are announced from now on, or are not any more.
    pub(super) fn note(&mut self, keys: &[DhtKey], announced: bool) -> io::Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let mut bytes = Vec::with_capacity(keys.len() * ENTRY);
        for key in keys {
            bytes.push(if announced { ADDED } else { REMOVED });
            bytes.extend_from_slice(key.as_bytes());
        }
        self.entries += keys.len();
        journal.write_all(&bytes)
    }

    /// Whether the journal is much longer than what there is to tell.
    pub(super) fn is_wasteful(&self, keys: usize) -> bool {
        self.entries > 2 * keys + WASTE_MAX
    }

    /// Writes the journal anew.
    pub(super) fn write_journal<'a>(
        &mut self,
        swarm: &str,
        keys: impl Iterator<Item = &'a DhtKey>,
    ) -> io::Result<()> {
        let mut bytes = format!("aptmesh announced 1 {swarm}\n").into_bytes();
        self.entries = 0;
        for key in keys {
            bytes.push(ADDED);
            bytes.extend_from_slice(key.as_bytes());
            self.entries += 1;
        }
        let path = self.folder.join("announced");
        write_whole(&path, &bytes)?;
        self.journal = Some(OpenOptions::new().append(true).open(&path)?);
        Ok(())
    }

    /// Where others were when the process ended.
    pub(super) fn places(&self) -> io::Result<Vec<SocketAddr>> {
        let text = read_bounded(&self.folder.join("nodes"), PLACES_MAX)?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    pub(super) fn save_places(&self, places: &[SocketAddr]) -> io::Result<()> {
        let lines: Vec<String> = places.iter().map(ToString::to_string).collect();
        write_whole(&self.folder.join("nodes"), lines.join("\n").as_bytes())
    }
}

/// Nothing, if it is not there.
fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => drop(file.take(max).read_to_end(&mut bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(bytes)
}

/// All of it or nothing, whatever dies.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> DhtKey {
        DhtKey::from_bytes(&[number; 20]).unwrap()
    }

    #[test]
    fn a_node_stays_who_it_is_and_two_are_not_the_same() {
        let data = tempfile::tempdir().unwrap();
        let first = Home::open(data.path()).unwrap();
        let identity = first.identity().unwrap().public();
        let second = Home::open(data.path()).unwrap();
        assert_ne!(second.identity().unwrap().public(), identity);
        drop(first);
        assert_eq!(Home::open(data.path()).unwrap().identity().unwrap().public(), identity);
    }

    #[test]
    fn what_is_announced_survives_a_crash_but_not_another_swarm() {
        let data = tempfile::tempdir().unwrap();
        let mut home = Home::open(data.path()).unwrap();
        assert!(home.announced("swarm").unwrap().is_empty());
        home.note(&[key(1), key(2), key(3)], true).unwrap();
        home.note(&[key(2)], false).unwrap();
        // An entry that was cut short.
        home.journal.as_mut().unwrap().write_all(&[ADDED, 9, 9]).unwrap();
        drop(home);
        let mut home = Home::open(data.path()).unwrap();
        assert_eq!(home.announced("swarm").unwrap(), BTreeSet::from([key(1), key(3)]));
        home.note(&[key(4)], true).unwrap();
        assert_eq!(home.announced("swarm").unwrap().len(), 3);
        assert!(home.announced("other").unwrap().is_empty());
    }

    #[test]
    fn places_are_remembered() {
        let data = tempfile::tempdir().unwrap();
        let home = Home::open(data.path()).unwrap();
        assert_eq!(home.places().unwrap(), []);
        let places = ["192.0.2.1:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap()];
        home.save_places(&places).unwrap();
        assert_eq!(home.places().unwrap(), places);
    }
}
