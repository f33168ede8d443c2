//! Several aptmesh processes that are one cache: on one database and one volume.

use super::proxy::Build;
use super::{Balancer, Postgres, Proxy, aptmesh, wait_until};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Fleets of this process so far: each has addresses of its own, so that a port is still free when its
/// replica comes back to it.
static FLEETS: AtomicU8 = AtomicU8::new(0);

/// How the replicas of a fleet are to be started.
#[derive(Default)]
pub struct FleetBuild {
    volume: Option<PathBuf>,
    env: Vec<(String, OsString)>,
}

/// Replicas, to be used like a list of them. They end before the database does, and the volume goes.
pub struct Fleet {
    replicas: Vec<Proxy>,
    build: FleetBuild,
    address: [u8; 3],
    pub server: Postgres,
    pub url: String,
    volume: PathBuf,
    _own_volume: Option<TempDir>,
}

impl FleetBuild {
    /// Shares this folder instead of one that goes with the fleet.
    pub fn volume(mut self, folder: &Path) -> Self {
        self.volume = Some(folder.to_owned());
        self
    }

    /// A setting of all replicas.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts that many replicas and waits until they are ready.
    pub fn start(self, replicas: u8) -> Fleet {
        let server = Postgres::start();
        let url = migrated(&server);
        let own = self.volume.is_none().then(|| TempDir::new().expect("a folder for the volume"));
        let volume = self.volume.clone().or(own.as_ref().map(|own| own.path().to_owned()));
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let number = FLEETS.fetch_add(1, Ordering::Relaxed);
        let mut fleet = Fleet {
            replicas: Vec::new(),
            build: self,
            // Other test programs run at the same time.
            address: [127, 64 | (high & 63), low ^ number.rotate_left(4)],
            server,
            url,
            volume: volume.expect("one of the two"),
            _own_volume: own,
        };
        for _ in 0..replicas {
            fleet.grow();
        }
        fleet
    }
}

/// A new database that is ready for use; its URL.
pub fn migrated(server: &Postgres) -> String {
    let url = server.database();
    let migrated = aptmesh().arg("migrate").env("APTMESH_INDEX_URL", &url).output();
    let migrated = migrated.expect("the aptmesh binary");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    url
}

impl Fleet {
    pub fn of(replicas: u8) -> Self {
        Self::build().start(replicas)
    }

    pub fn build() -> FleetBuild {
        FleetBuild::default()
    }

    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// One replica more.
    pub fn grow(&mut self) {
        let [a, b, c] = self.address;
        let number = u8::try_from(self.replicas.len() + 1).expect("a small fleet");
        let replica = self.replica().at(IpAddr::V4(Ipv4Addr::new(a, b, c, number))).start();
        self.replicas.push(replica);
    }

    /// How each replica is started.
    pub fn replica(&self) -> Build {
        let build = Proxy::build().data(&self.volume).env("APTMESH_INDEX_URL", &self.url);
        self.build.env.iter().fold(build, |build, (name, value)| build.env(name, value.clone()))
    }

    /// Waits until no replica has a download under way.
    pub fn wait_landed(&self) {
        for replica in &self.replicas {
            replica.wait_landed();
        }
    }

    /// Each replica in turn is stopped by SIGTERM and started again in its place; then `balancer` is
    /// given the time to notice.
    pub fn restart_one_by_one(&mut self, balancer: &Balancer) {
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            replica.restart_in_place();
            wait_until(PATIENCE, "a replica in service again", || balancer.has_up(number));
        }
    }
}

impl Deref for Fleet {
    type Target = Vec<Proxy>;

    fn deref(&self) -> &Vec<Proxy> {
        &self.replicas
    }
}

impl DerefMut for Fleet {
    fn deref_mut(&mut self) -> &mut Vec<Proxy> {
        &mut self.replicas
    }
}
