//! The real apt, in a private tree that does not touch the machine's own.

mod deb;
mod host_archive;
mod local_archive;

pub use host_archive::HostArchive;
pub use local_archive::LocalArchive;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a run of an apt command came to.
#[derive(Clone, Debug)]
pub struct Run {
    pub ok: bool,
    /// Standard output, then standard error.
    pub output: String,
    pub took: Duration,
}

/// An apt that knows no packages, no sources and none of the machine's
/// settings, apart from those about the age of an archive.
pub struct Apt {
    root: TempDir,
}

const LISTS: &str = "var/lib/apt/lists";
const ARCHIVES: &str = "var/cache/apt/archives";

/// Kept as the machine has them: its archive may be an old snapshot.
const KEPT_SETTINGS: [&str; 2] = ["Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// Apt's methods would obey these instead of the test.
const PROXY_VARIABLES: [&str; 8] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

impl Apt {
    /// `proxy` is the value of Acquire::http::Proxy: `http://127.0.0.1:3142`.
    pub fn new(proxy: Option<String>) -> Self {
        let root = TempDir::new().expect("a folder for apt");
        let apt = Self { root };
        for folder in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/trusted.gpg.d",
            "etc/apt/sources.list.d",
            "var/lib/dpkg",
            "log",
        ] {
            fs::create_dir_all(apt.path(folder)).expect("a folder");
        }
        apt.make_state_folders();
        fs::write(apt.path("var/lib/dpkg/status"), "").expect("an empty status file");
        apt.sources("");
        apt.write_conf();
        if let Some(url) = proxy {
            apt.conf("Acquire::http::Proxy", &url);
        }
        apt
    }

    fn write_conf(&self) {
        let root = self.root.path().display().to_string();
        let status = self.path("var/lib/dpkg/status").display().to_string();
        for (key, value) in [
            ("Dir", root.as_str()),
            ("Dir::State", "var/lib/apt"),
            ("Dir::State::status", &status),
            ("Dir::Cache", "var/cache/apt"),
            ("Dir::Etc", "etc/apt"),
            // The machine's keys: its archives are signed with them.
            ("Dir::Etc::trustedparts", "/etc/apt/trusted.gpg.d"),
            ("Dir::Log", "log"),
            ("APT::Sandbox::User", "root"),
            ("Acquire::Languages", "none"),
        ] {
            self.conf(key, value);
        }
        let dump =
            Command::new("apt-config").arg("dump").output().expect("apt-config on this machine");
        let dump = String::from_utf8_lossy(&dump.stdout);
        for line in dump.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            if KEPT_SETTINGS.contains(&key) {
                self.conf(key, value.trim_matches([' ', '"', ';']));
            }
        }
    }

    fn make_state_folders(&self) {
        for folder in [LISTS, ARCHIVES] {
            fs::create_dir_all(self.path(folder).join("partial")).expect("a folder");
        }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    /// The folder that all this is in.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Replaces the content of sources.list.
    pub fn sources(&self, lines: &str) {
        let text = format!("{}\n", lines.trim_end());
        fs::write(self.path("etc/apt/sources.list"), text).expect("a sources.list");
    }

    /// Adds a setting.
    pub fn conf(&self, key: &str, value: &str) {
        let file = self.path("apt.conf");
        let mut text = fs::read_to_string(&file).unwrap_or_default();
        text.push_str(&format!("{key} \"{value}\";\n"));
        fs::write(file, text).expect("an apt.conf");
    }

    /// `apt-get update`; any index that could not be fetched is a failure.
    pub fn update(&self) -> Run {
        self.run("apt-get", &["update", "--error-on=any"])
    }

    /// Downloads these packages alone, without what they depend on.
    pub fn download(&self, packages: &[&str]) -> Run {
        self.run("apt-get", &[&["download"], packages].concat())
    }

    /// Downloads what an installation on an empty machine would need.
    pub fn install_download_only(&self, packages: &[&str]) -> Run {
        let install = ["-y", "--download-only", "--no-install-recommends", "install"];
        self.run("apt-get", &[&install, packages].concat())
    }

    /// Any other apt command of this tree.
    pub fn run(&self, program: &str, args: &[&str]) -> Run {
        let mut command = Command::new(program);
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        let start = Instant::now();
        let result = command
            .args(args)
            .env("APT_CONFIG", self.path("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .current_dir(self.path(ARCHIVES))
            .output()
            .unwrap_or_else(|trouble| panic!("{program} on this machine: {trouble}"));
        let mut output = String::from_utf8_lossy(&result.stdout).into_owned();
        output.push_str(&String::from_utf8_lossy(&result.stderr));
        Run { ok: result.status.success(), output, took: start.elapsed() }
    }

    /// Forgets all indexes and all packages.
    pub fn clean_state(&self) {
        for folder in ["var/lib/apt", "var/cache/apt"] {
            let _ = fs::remove_dir_all(self.path(folder));
        }
        self.make_state_folders();
    }

    /// Forgets the packages, but keeps the indexes.
    pub fn clean_archives(&self) {
        let _ = fs::remove_dir_all(self.path(ARCHIVES));
        self.make_state_folders();
    }

    /// The packages downloaded so far.
    pub fn archives(&self) -> Vec<PathBuf> {
        let mut packages: Vec<PathBuf> = fs::read_dir(self.path(ARCHIVES))
            .expect("the archives folder")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "deb"))
            .collect();
        packages.sort();
        packages
    }

    /// Name and size in bytes of the candidates of these packages.
    pub fn show_sizes(&self, packages: &[&str]) -> Vec<(String, u64)> {
        let shown = self.run("apt-cache", &[&["show", "--no-all-versions"], packages].concat());
        assert!(shown.ok, "apt-cache show: {}", shown.output);
        shown.output.split("\n\n").filter_map(name_and_size).collect()
    }
}

fn name_and_size(paragraph: &str) -> Option<(String, u64)> {
    let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("Package:")?.to_owned(), field("Size:")?.parse().ok()?))
}
