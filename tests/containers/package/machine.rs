//! A machine with Debian and systemd.

use super::deb;
use crate::engine::Container;
use crate::kit::{HostArchive, Run, wait_until};
use std::ops::Deref;
use std::time::Duration;

/// For whatever takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Machine(Container);

impl Deref for Machine {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.try_sh("journalctl --no-pager --lines 100").output);
        }
    }
}

impl Machine {
    /// One that runs, with the packages at hand and systemd ready.
    pub fn boot() -> Self {
        let packages = format!("{}:{}:ro", deb::folder().display(), deb::FOLDER);
        // What systemd asks of a container manager; to make the units' sandboxes it has to mount.
        let options = [
            "--cgroupns=private",
            "--cap-add=SYS_ADMIN",
            "--security-opt=apparmor=unconfined",
            "--tmpfs=/run",
            "--tmpfs=/run/lock",
            "--tmpfs=/tmp:exec",
            "--volume",
            &packages,
        ];
        let machine = Self(Container::start("machine", &options, deb::machine(), &[]));
        wait_until(PATIENCE, "systemd to be ready", || {
            machine.try_sh("systemctl is-system-running").output.trim() == "running"
        });
        machine
    }

    /// The same with the package installed, and this machine's archive allowed.
    pub fn with_package() -> Self {
        let machine = Self::boot();
        machine.install(deb::VERSION);
        machine.configure();
        machine.restart("aptmesh");
        machine
    }

    /// Runs a line of shell as root, which has to succeed. What it said.
    pub fn sh(&self, line: &str) -> String {
        self.must(&["sh", "-ec", line])
    }

    pub fn try_sh(&self, line: &str) -> Run {
        self.exec(&["sh", "-ec", line])
    }

    pub fn install(&self, version: &str) -> String {
        self.sh(&format!("apt-get install -y --no-install-recommends {}", deb::path(version)))
    }

    /// As an administrator with an internal mirror would, on a disk that is filled by others.
    fn configure(&self) {
        let hosts = HostArchive::read().hosts().join(",");
        self.sh(&format!(
            "sed -i 's/^#allow_private = .*/allow_private = \"{hosts}\"/' /etc/aptmesh/aptmesh.toml"
        ));
        self.set("store", r#"min_free = "64MiB""#);
    }

    /// Adds a line to a section of the settings.
    pub fn set(&self, section: &str, line: &str) {
        self.sh(&format!(r"sed -i '/^\[{section}\]/a {line}' /etc/aptmesh/aptmesh.toml"));
    }

    /// Has this machine's apt ask the cache on it, for all that it knew before too.
    pub fn use_cache(&self) {
        let setting = r#"Acquire::http::Proxy "http://127.0.0.1:9977";"#;
        self.sh(&format!("echo '{setting}' > /etc/apt/apt.conf.d/30aptmesh"));
        self.forget();
    }

    /// Drops apt's lists and packages: what it needs, it has to ask for again.
    pub fn forget(&self) {
        self.sh("rm -rf /var/lib/apt/lists/*; apt-get clean");
    }

    /// A property that systemd knows of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --property {name} --value {unit}")).trim().to_owned()
    }

    pub fn is_active(&self, unit: &str) -> bool {
        self.property(unit, "ActiveState") == "active"
    }

    pub fn restart(&self, unit: &str) {
        self.sh(&format!("systemctl restart {unit}"));
    }

    pub fn main_pid(&self, unit: &str) -> String {
        self.property(unit, "MainPID")
    }

    /// What a unit has logged since it was started last.
    pub fn journal(&self, unit: &str) -> String {
        let invocation = self.property(unit, "InvocationID");
        self.sh(&format!("journalctl --no-pager _SYSTEMD_INVOCATION_ID={invocation}"))
    }

    /// A metric of the cache on this machine, summed up over its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.sh("curl -sf http://127.0.0.1:9978/metrics");
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(of_name).filter_map(value).sum::<f64>() as u64
    }
}
