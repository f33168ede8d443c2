//! Machines of a site: Debian with nothing on it, whose apt knows the cache.

use crate::engine::{Container, standin};
use crate::kit::Run;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

const APT_SETTINGS: &str = "/etc/apt/apt.conf.d/30site";

/// A machine in the network of the host, as those in an office are.
pub struct Machine {
    container: Container,
}

impl Machine {
    /// Its apt asks the cache at `url` for everything.
    pub fn with_cache(url: &str) -> Self {
        let image = standin("debian:trixie-slim");
        let options = ["--network", "host", "--init"];
        let container = Container::start("machine", &options, &image, &["sleep", "infinity"]);
        let machine = Self { container };
        machine.set_apt("Acquire::http::Proxy", url);
        machine.set_apt("APT::Install-Recommends", "false");
        machine
    }

    /// The same, whose apt tries nothing twice.
    pub fn impatient(url: &str) -> Self {
        let machine = Self::with_cache(url);
        machine.set_apt("Acquire::Retries", "0");
        machine
    }

    pub fn set_apt(&self, key: &str, value: &str) {
        let line = format!("{key} \"{value}\";");
        self.container.must(&["sh", "-c", "echo \"$0\" >> $1", &line, APT_SETTINGS]);
    }

    pub fn run(&self, command: &[&str]) -> Run {
        self.container.exec(command)
    }

    pub fn must(&self, command: &[&str]) -> String {
        self.container.must(command)
    }

    pub fn update(&self) {
        self.must(&["apt-get", "update", "--error-on=any"]);
    }

    pub fn install(&self, packages: &[&str]) {
        self.must(&[&["apt-get", "install", "--yes"], packages].concat());
    }

    /// Fetches packages, and what they need, without installing them.
    pub fn download(&self, packages: &[&str]) -> Run {
        let command = ["apt-get", "install", "--yes", "--download-only"];
        self.run(&[&command, packages].concat())
    }

    /// Bytes of packages that lie here, or are on their way.
    pub fn downloaded(&self) -> u64 {
        let script = "cat /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb 2>/dev/null | wc -c";
        self.run(&["sh", "-c", script]).output.trim().parse().unwrap_or_default()
    }

    /// Rounds, which it counts, until all is over. What apt said in those that failed.
    fn work(&self, packages: &str, is_over: &AtomicBool, done: &AtomicUsize) -> Vec<String> {
        let mut failures = Vec::new();
        while !is_over.load(SeqCst) {
            failures.extend(self.round(packages).err());
            done.fetch_add(1, SeqCst);
        }
        failures
    }

    /// Lists confirmed, packages fetched, all of them. What apt said when it failed.
    fn round(&self, packages: &str) -> Result<(), String> {
        let script = "apt-get clean && apt-get update --error-on=any \
             && apt-get install --yes --download-only $0";
        let run = self.run(&["sh", "-c", script, packages]);
        if run.ok { Ok(()) } else { Err(run.output) }
    }
}

/// What machines do all the time while something happens to their site.
pub struct Load<'a> {
    pub machines: &'a [Machine],
    pub packages: &'a str,
}

impl Load<'_> {
    /// Runs `event`, which may wait for rounds that begin and end during it. Returns what apt said in those
    /// that failed.
    pub fn during(&self, event: impl FnOnce(&Rounds)) -> Vec<String> {
        let rounds = Rounds {
            is_over: AtomicBool::new(false),
            done: self.machines.iter().map(|_| AtomicUsize::new(0)).collect(),
        };
        thread::scope(|scope| {
            let working: Vec<_> = self
                .machines
                .iter()
                .zip(&rounds.done)
                .map(|(machine, done)| {
                    let is_over = &rounds.is_over;
                    scope.spawn(move || machine.work(self.packages, is_over, done))
                })
                .collect();
            let happened =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| event(&rounds)));
            rounds.is_over.store(true, SeqCst);
            let failures = working.into_iter().flat_map(|work| work.join().expect("a machine"));
            let failures = failures.collect();
            happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            failures
        })
    }
}

/// How far machines are.
pub struct Rounds {
    is_over: AtomicBool,
    done: Vec<AtomicUsize>,
}

impl Rounds {
    /// Waits until each machine has begun and ended a round since now.
    pub fn wait_for_whole(&self) {
        let now: Vec<_> = self.done.iter().map(|done| done.load(SeqCst)).collect();
        crate::kit::wait_until(Duration::from_secs(180), "a round of each machine", || {
            self.done.iter().zip(&now).all(|(done, before)| done.load(SeqCst) >= before + 2)
        });
    }
}
