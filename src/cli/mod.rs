//! Commands.

mod admin;
mod client_config;
mod config;
mod dht;
mod evict;
mod explain;
mod health;
mod import;
mod key;
mod manager;
mod manual;
mod migrate;
mod progress;
mod scrub;
mod serve;
mod status;
mod surfaces;
mod wiring;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::bytes::Bytes;
use crate::config::roles::Role;
use crate::config::{Config, Faults, Flags, Sources};
use crate::telemetry::logs::{self, Format};

/// `EX_CONFIG` of sysexits: the settings are wrong.
const EXIT_SETTINGS: u8 = 78;

/// The APT cache that a whole site shares.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Command {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve apt clients (the default).
    Serve,
    /// Serve apt clients as one of a site's replicas.
    ///
    /// They share an index in PostgreSQL (`index.url`); a node of the swarm, if any, is run by
    /// `aptmesh dht` (`proxy.sidecar`).
    Proxy,
    /// Bring the schema of the index's database up to date.
    ///
    /// Several at once are safe. A PostgreSQL index needs it before its first use, and after an update
    /// that says so.
    Migrate {
        /// Only tell whether it is: exit code 1 if not.
        #[arg(long)]
        check: bool,
    },
    /// Run a node of the swarm's DHT.
    ///
    /// It is the sidecar of a proxy, or by itself a first place for others to look.
    Dht,
    /// Make a key for a swarm, to be set as `swarm.key` on all of its machines.
    Key,
    /// Print the effective settings, with what each is for.
    Config,
    /// Print a script that points a client's apt at this cache.
    ///
    /// Apt falls back to the mirrors whenever the cache is away.
    ClientConfig {
        /// The cache, as clients reach it.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Write manual pages and completions below a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Tell what a running cache knows of a file, and what it would do if somebody asked for it now.
    ///
    /// Nothing is fetched, and nothing counts as used. The file may be named in any way in which clients
    /// name it: by its URL, by the path to it at the cache, or by both in one.
    Explain {
        /// The file.
        #[arg(value_name = "URL")]
        url: String,
        /// Tell it to a program.
        #[arg(long)]
        json: bool,
    },
    /// Tell how a running cache is doing.
    Status {
        /// Tell it again every two seconds, in place on a terminal, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Tell whether the process that runs with these settings is ready.
    ///
    /// It may be a cache or a node. Exit code 1 and a reason if it is not; that takes 3 seconds at most.
    Health {
        /// Only whether it is there: it may be stopping, or not have found its swarm yet.
        #[arg(long)]
        live: bool,
    },
    /// Store what lies elsewhere, beside a running cache or without one.
    ///
    /// Packages, folders such as /var/cache/apt/archives, a mirror's tree, another cache's folder, a
    /// mounted ISO. Another run goes on where one was broken off.
    Import {
        /// Files and folders; symbolic links below them are not followed.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Read all that is stored, now, and drop what the disk has spoilt.
    ///
    /// Beside a running cache or without one. Exit code 1 if there was any.
    Scrub,
    /// Make room on the volume, beside a running cache or without one.
    ///
    /// By itself, a cache does so when it has to.
    Evict {
        /// Only tell what would go, and why.
        #[arg(long)]
        dry_run: bool,
        /// How much room to make, such as 10GiB [default: as much as the bounds ask for].
        #[arg(long, value_name = "SIZE")]
        bytes: Option<Bytes>,
    },
}

/// The everyday settings; all others are in the file and the environment, see `aptmesh config`.
#[derive(Args, Debug)]
struct SettingFlags {
    /// Settings file [default: /etc/aptmesh/aptmesh.toml, if it is there].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address for apt clients; may be repeated.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,
    /// Address for operators.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
    /// Address for other sites of the swarm, and other replicas (`proxy.advertise`).
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    peer_listen: Option<String>,
    /// Address for other sites' nodes; may be repeated.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    dht_listen: Vec<String>,
    /// Folder for blobs and index.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<String>,
    /// The index, `sqlite:PATH` or `postgres://USER@HOST/DATABASE`; a password is safer in the
    /// environment.
    #[arg(long, global = true, value_name = "URL")]
    index: Option<String>,
    /// How log lines look: text or json.
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl SettingFlags {
    fn sources(self) -> Sources {
        let list = |addresses: Vec<String>| (!addresses.is_empty()).then(|| addresses.join(","));
        let flags: Flags = [
            ("listen.proxy", list(self.listen)),
            ("listen.admin", self.admin_listen),
            ("listen.peer", self.peer_listen),
            ("listen.dht", list(self.dht_listen)),
            ("data.dir", self.data),
            ("index.url", self.index),
            ("log.format", self.log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
        Sources::of_process(flags, self.config)
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let command = Command::parse();
    let sources = command.settings.sources();
    let verb = command.verb.unwrap_or(Verb::Serve);
    let config = Config::read(&sources).and_then(|config| {
        verb.role().map_or(Ok(()), |role| config.fits(role))?;
        Ok(config)
    });
    match config {
        Ok(config) => {
            // Who has its log read by programs has this read by them, too.
            let format = if verb.logs() { config.log.format } else { Format::Text };
            report(execute(verb, config, sources), format)
        }
        Err(faults) => report_faults(&faults),
    }
}

impl Verb {
    /// Whether it writes a log to standard error.
    const fn logs(&self) -> bool {
        matches!(self, Self::Serve | Self::Proxy | Self::Dht)
    }

    /// What the settings have to be fit for.
    const fn role(&self) -> Option<Role> {
        match self {
            Self::Proxy => Some(Role::Replica),
            Self::Dht => Some(Role::Node),
            _ => None,
        }
    }
}

fn execute(verb: Verb, config: Config, sources: Sources) -> anyhow::Result<()> {
    match verb {
        Verb::Serve | Verb::Proxy => serve::run(config, sources),
        Verb::Dht => dht::run(config, &sources),
        Verb::Key => key::print(),
        Verb::Config => config::print(&config),
        Verb::Migrate { check } => migrate::run(&config, check),
        Verb::ClientConfig { url } => client_config::print(&config, url),
        Verb::Manual { folder } => manual::write(&folder),
        Verb::Explain { url, json } => explain::print(&config, &url, json),
        Verb::Status { watch: false } => status::print(&config),
        Verb::Status { watch: true } => status::watch(&config),
        Verb::Health { live } => health::check(&config, live),
        Verb::Import { paths } => import::run(&config, paths),
        Verb::Scrub => scrub::run(&config),
        Verb::Evict { dry_run, bytes } => evict::run(&config, dry_run, bytes),
    }
}

#[expect(clippy::print_stderr, reason = "a command's last word")]
fn report(result: anyhow::Result<()>, format: Format) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", logs::last_words(format, &format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command's last word")]
fn report_faults(faults: &Faults) -> ExitCode {
    for fault in &faults.0 {
        eprintln!("aptmesh: {fault}");
    }
    ExitCode::from(EXIT_SETTINGS)
}

/// Writes to standard output; a reader that has left is no fault (`aptmesh config | head`).
fn print_out(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
