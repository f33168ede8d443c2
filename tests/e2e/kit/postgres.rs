//! Real PostgreSQL servers, and the real pgbouncer before them.

use super::Ca;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(60);
/// Both refuse to run as root; this user exists everywhere.
const NOBODY: u32 = 65_534;
/// What a URL must not carry as it is.
pub const PASSWORD: &str = "open sesame@%";
const PASSWORD_IN_URL: &str = "open%20sesame%40%25";

/// A server with a data folder of its own. It is killed when it is dropped.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    has_tls: bool,
    everywhere: AtomicBool,
    server: Mutex<Option<Child>>,
    databases: AtomicUsize,
    connections: AtomicUsize,
}

impl Postgres {
    pub fn start() -> Self {
        Self::start_with(|_| false)
    }

    /// Its certificate is by `ca`, for 127.0.0.1 and localhost only.
    pub fn start_with_tls(ca: &Ca) -> Self {
        Self::start_with(|folder| {
            write_certificate(folder, ca);
            true
        })
    }

    fn start_with(prepare: impl FnOnce(&Path) -> bool) -> Self {
        let folder = own_folder();
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).expect("a file");
        give_away(&password);
        let made = as_nobody(&program("initdb"))
            .args(["--no-sync", "--username=postgres", "--auth=scram-sha-256"])
            .args(["--encoding=UTF8", "--locale=C", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .output()
            .expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let has_tls = prepare(folder.path());
        let server = Mutex::new(None);
        let databases = AtomicUsize::new(0);
        let everywhere = AtomicBool::new(false);
        let connections = AtomicUsize::new(200);
        let port = free_port();
        let server = Self { folder, port, has_tls, everywhere, server, databases, connections };
        server.resume();
        server
    }

    /// One that follows this one until it is promoted.
    pub fn standby(&self) -> Self {
        let folder = own_folder();
        let copied = as_nobody(&program("pg_basebackup"))
            .args([
                "--no-sync",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--write-recovery-conf",
            ])
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .arg("--dbname")
            .arg(url(self.port, "postgres"))
            .output()
            .expect("pg_basebackup");
        let errors = String::from_utf8_lossy(&copied.stderr);
        assert!(copied.status.success(), "pg_basebackup: {errors}");
        let standby = Self {
            folder,
            port: free_port(),
            has_tls: false,
            everywhere: AtomicBool::new(false),
            server: Mutex::new(None),
            databases: AtomicUsize::new(0),
            connections: AtomicUsize::new(200),
        };
        standby.resume();
        standby
    }

    /// Ends its following: it takes writes from now on.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote(true)");
    }

    /// Waits until it has all that its primary has written by now.
    pub fn catch_up(&self, primary: &Self) {
        let at = primary.sql("postgres", "SELECT pg_current_wal_lsn()");
        let has = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'::pg_lsn");
        let deadline = Instant::now() + START_TIME;
        while self.sql("postgres", &has) != "t" {
            assert!(Instant::now() < deadline, "the standby does not follow: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again after [`Postgres::stop`], on the same port.
    pub fn resume(&self) {
        let folder = self.folder.path();
        let mut command = as_nobody(&program("postgres"));
        command.arg("-D").arg(folder.join("data"));
        let sockets = format!("unix_socket_directories={}", folder.display());
        let port = format!("port={}", self.port);
        let connections = format!("max_connections={}", self.connections.load(Ordering::Relaxed));
        let everywhere = self.everywhere.load(Ordering::Relaxed);
        let listen = if everywhere { "listen_addresses=*" } else { "listen_addresses=127.0.0.1" };
        for setting in [
            port.as_str(),
            &sockets,
            listen,
            "fsync=off",
            "full_page_writes=off",
            &connections,
            "logging_collector=off",
        ] {
            command.args(["-c", setting]);
        }
        if self.has_tls {
            let file = |name: &str| folder.join(name).display().to_string();
            command.args(["-c", "ssl=on"]);
            command.args(["-c", &format!("ssl_cert_file={}", file("server.crt"))]);
            command.args(["-c", &format!("ssl_key_file={}", file("server.key"))]);
        }
        let log =
            fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        *self.server.lock().unwrap() = Some(command.spawn().expect("a PostgreSQL server"));
        let deadline = Instant::now() + START_TIME;
        while !self.is_ready() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// From its next start on it can be reached as 127.0.0.2, too.
    pub fn listen_everywhere(&self) {
        self.everywhere.store(true, Ordering::Relaxed);
    }

    /// From its next start on it takes so many, of which three are the superuser's.
    pub fn limit_connections(&self, number: usize) {
        self.connections.store(number, Ordering::Relaxed);
    }

    /// It says nothing any more, while all its connections stay, until it goes on.
    pub fn pause(&self) {
        let Some(main) = self.process() else { return };
        signal(main, "STOP");
        // No more of them come now.
        for child in children_of(main) {
            try_signal(child, "STOP");
        }
    }

    /// After [`Postgres::pause`].
    pub fn go_on(&self) {
        let Some(main) = self.process() else { return };
        for child in children_of(main) {
            try_signal(child, "CONT");
        }
        signal(main, "CONT");
    }

    fn process(&self) -> Option<u32> {
        self.server.lock().unwrap().as_ref().map(Child::id)
    }

    /// Takes all the connections that there are left.
    pub fn fill(&self) -> Crowd {
        let deadline = Instant::now() + START_TIME;
        let mut crowd = Crowd(Vec::new());
        loop {
            let mut command = Command::new(program("psql"));
            command.arg("--no-psqlrc").arg("--dbname").arg(url(self.port, "postgres"));
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            crowd.0.push(command.spawn().expect("psql"));
            let one = self.psql("postgres", "SELECT 1").output().expect("psql");
            if String::from_utf8_lossy(&one.stderr).contains("too many clients") {
                return crowd;
            }
            assert!(Instant::now() < deadline, "there is room for all");
        }
    }

    /// A setting that takes effect at once.
    pub fn set(&self, setting: &str) {
        self.sql("postgres", &format!("ALTER SYSTEM SET {setting}"));
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Ends it at once, and all its connections.
    pub fn stop(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            signal(server.id(), "QUIT");
            // It may be paused, and its children with it.
            signal(server.id(), "CONT");
            for child in children_of(server.id()) {
                try_signal(child, "CONT");
            }
            let _ = server.wait();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        let asked = Command::new(program("pg_isready"))
            .args(["--quiet", "--host=127.0.0.1", "--port", &port])
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// A new, empty database; its URL.
    pub fn database(&self) -> String {
        self.copy_of("template1")
    }

    /// A new database like that one, which nobody must be connected to.
    pub fn copy_of(&self, template: &str) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        url(self.port, &name)
    }

    /// All that is in a database, as statements.
    pub fn dump(&self, database: &str) -> String {
        let dumped = Command::new(program("pg_dump"))
            .args(["--no-owner", "--dbname"])
            .arg(url(self.port, database))
            .output()
            .expect("pg_dump");
        let errors = String::from_utf8_lossy(&dumped.stderr);
        assert!(dumped.status.success(), "pg_dump: {errors}");
        String::from_utf8(dumped.stdout).expect("UTF-8")
    }

    /// Puts that into an empty database.
    pub fn restore(&self, database: &str, dump: &str) {
        let file = self.folder.path().join("dump");
        fs::write(&file, dump).expect("a file");
        let restored = Command::new(program("psql"))
            .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname"])
            .arg(url(self.port, database))
            .arg("--file")
            .arg(&file)
            .output()
            .expect("psql");
        let errors = String::from_utf8_lossy(&restored.stderr);
        assert!(restored.status.success(), "psql: {errors}");
    }

    /// Leaves an empty one in its place.
    pub fn lose(&self, database: &str) {
        self.sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)"));
        self.sql("postgres", &format!("CREATE DATABASE {database}"));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement gives, as psql prints it: columns with bars between.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let output = self.psql(database, statement).output().expect("psql");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A session that goes on until it is dropped: for locks.
    pub fn session(&self, database: &str, statements: &str) -> Session<'_> {
        self.slow(database, statements, 600)
    }

    /// A transaction that takes some seconds to commit; not at all, when it is dropped before.
    pub fn slow(&self, database: &str, statements: &str, seconds: u32) -> Session<'_> {
        let held = format!("BEGIN; {statements}; SELECT pg_sleep({seconds}); COMMIT");
        let child = self
            .psql(database, &held)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql");
        let deadline = Instant::now() + START_TIME;
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while self.sql(database, sleeps) == "0" {
            assert!(Instant::now() < deadline, "the session does not get its locks");
            std::thread::sleep(Duration::from_millis(20));
        }
        Session { server: self, database: database.to_owned(), child }
    }

    fn psql(&self, database: &str, statement: &str) -> Command {
        let mut command = Command::new(program("psql"));
        command
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set=ON_ERROR_STOP=1", "--dbname"])
            .arg(url(self.port, database))
            .stdin(Stdio::null());
        // One by one: not all may run in a transaction.
        command.args(["--command", statement]);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- log of PostgreSQL ---\n{}---", self.log());
        }
    }
}

/// A client of the database, which holds what it has until it is dropped.
pub struct Session<'a> {
    server: &'a Postgres,
    database: String,
    child: Child,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // A server that sleeps does not notice that its client is gone.
        let sleepers = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE wait_event = 'PgSleep' AND datname = current_database()";
        self.server.sql(&self.database, sleepers);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections that nobody else has until this is dropped.
pub struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The real pgbouncer in transaction mode: no two transactions of a connection need be in one session.
pub struct PgBouncer {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl PgBouncer {
    pub fn before(server: &Postgres) -> Self {
        Self::start(server, None)
    }

    /// It takes no clients without TLS; its certificate is by `ca`, for 127.0.0.1 and localhost only.
    pub fn with_tls_before(server: &Postgres, ca: &Ca) -> Self {
        Self::start(server, Some(ca))
    }

    fn start(server: &Postgres, ca: Option<&Ca>) -> Self {
        let (folder, port) = (own_folder(), free_port());
        let tls = ca.map(|ca| tls_of(folder.path(), ca)).unwrap_or_default();
        let path = folder.path().display().to_string();
        let quoted = PASSWORD.replace('"', "\"\"");
        fs::write(folder.path().join("users"), format!("\"postgres\" \"{quoted}\"\n")).unwrap();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {path}/users\nlogfile = {path}/log\n\
             pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\n\
             server_idle_timeout = 1\n{tls}",
            server.port()
        );
        fs::write(folder.path().join("settings.ini"), settings).unwrap();
        let child = as_nobody(&program("pgbouncer"))
            .arg("--quiet")
            .arg(folder.path().join("settings.ini"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbouncer");
        let bouncer = Self { folder, port, child };
        let deadline = Instant::now() + START_TIME;
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "pgbouncer does not start: {}", bouncer.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        bouncer
    }

    /// The same database by way of pgbouncer.
    pub fn url_for(&self, url_of_server: &str) -> String {
        url(self.port, url_of_server.rsplit_once('/').expect("a URL with a database").1)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of pgbouncer ---\n{}---", self.log());
        }
    }
}

fn write_certificate(folder: &Path, ca: &Ca) {
    let (certificate, key) = ca.certificate(&[]);
    fs::write(folder.join("server.crt"), certificate).expect("a certificate");
    fs::write(folder.join("server.key"), key).expect("a key");
    let private = Permissions::from_mode(0o600);
    fs::set_permissions(folder.join("server.key"), private).expect("a private key");
    give_away(&folder.join("server.key"));
}

/// What pgbouncer's settings say of it.
fn tls_of(folder: &Path, ca: &Ca) -> String {
    write_certificate(folder, ca);
    let folder = folder.display();
    format!(
        "client_tls_sslmode = require\nclient_tls_cert_file = {folder}/server.crt\n\
         client_tls_key_file = {folder}/server.key\n"
    )
}

/// The name of the database that a URL leads to.
pub fn database_of(url: &str) -> &str {
    let path = url.rsplit_once('/').expect("a URL with a database").1;
    path.split('?').next().unwrap_or(path)
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres:{PASSWORD_IN_URL}@127.0.0.1:{port}/{database}")
}

/// Debian keeps the server's programs beside the path, by version; pgbouncer among those of root.
pub(super) fn program(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    folders.sort();
    folders.push("/usr/sbin".into());
    let found = folders.iter().rev().map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

/// A command as a user without rights; as oneself, where one has none.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn own_folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    give_away(folder.path());
    folder
}

fn give_away(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    }
}

/// Nobody else takes it in the moment before it is used, as a rule.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn signal(process: u32, name: &str) {
    assert!(try_signal(process, name), "could not send SIG{name}");
}

/// `false`: it is gone.
fn try_signal(process: u32, name: &str) -> bool {
    let command = format!("kill -{name} {process} 2>/dev/null");
    let sent = Command::new("sh").arg("-c").arg(command).status();
    sent.expect("a shell").success()
}

/// The processes that this one started.
fn children_of(process: u32) -> Vec<u32> {
    let folder = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = folder.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| -> Vec<u32> {
        list.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    lists.flat_map(numbers).collect()
}
