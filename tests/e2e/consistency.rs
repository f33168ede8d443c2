//! A mirror moves on between two requests of one client; what the client gets is of one piece.

use crate::kit::*;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const RELEASE: &str = "/debian/dists/demo/Release";
const NO_STORE: [(&str, &str); 1] = [("Cache-Control", "no-store")];

/// The archive's `number`th state: one version of one package.
fn generation(number: u64) -> LocalArchive {
    LocalArchive::new("demo").package("tool", &format!("1.{number}"), 100).later(number)
}

/// A proxy that confirms metadata with the mirror each time.
fn proxy() -> Proxy {
    Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start()
}

fn packages() -> String {
    format!("/debian/{}", generation(0).index_path())
}

fn by_hash(archive: &LocalArchive) -> String {
    format!("/debian/{}", archive.by_hash_path())
}

/// Publishes an archive, whose older by-hash names stay.
fn publish(mirror: &Mirror, archive: &LocalArchive) {
    archive.publish(mirror, "/debian");
}

/// The same, once no download is under way that could still bring what was there before.
fn move_on(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive) {
    proxy.wait_landed();
    publish(mirror, archive);
}

/// A mirror that has such an archive.
fn mirror_of(archive: &LocalArchive) -> Mirror {
    let mirror = Mirror::start();
    publish(&mirror, archive);
    mirror
}

fn assert_given(connection: &mut Connection, target: &str, expected: &str, of: &str) {
    let reply = connection.get(target);
    assert_eq!((reply.status, reply.complete), (200, true), "{of}: {}", reply.reason);
    assert_eq!(String::from_utf8_lossy(&reply.body), expected, "{of}");
}

#[test]
fn a_name_means_what_the_release_file_says_that_the_client_was_given() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let target = |path: &str| proxy.url_for(&mirror, path);
    for (number, name) in (0..10).zip(["Release", "InRelease"].iter().cycle()) {
        let (given, next) = (generation(2 * number), generation(2 * number + 1));
        given.publish_with_inrelease(&mirror, "/debian");
        let mut client = Connection::open(proxy.addr());
        let release = client.get(&target(&format!("/debian/dists/demo/{name}")));
        let text = String::from_utf8_lossy(&release.body).into_owned();
        assert!(text.contains(&given.release()), "{name}: {}", release.reason);

        next.publish_with_inrelease(&mirror, "/debian");
        assert_given(&mut client, &target(&packages()), &given.index(), name);
        assert_eq!(mirror.bodies(&by_hash(&given)), 1, "had under its by-hash name");
        proxy.wait_landed();
    }
}

#[test]
fn what_is_stored_is_not_fetched_again_for_a_client_that_is_behind() {
    let given = generation(0);
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let mut client = Connection::open(proxy.addr());
    client.get(&release);
    assert_given(&mut client, &index, &given.index(), "at first");
    move_on(&proxy, &mirror, &generation(1));
    mirror.remove(&by_hash(&given));
    mirror.clear_log();
    assert_given(&mut client, &index, &given.index(), "later");
    assert_eq!(mirror.bodies(&packages()) + mirror.bodies(&by_hash(&given)), 0);
}

#[test]
fn a_client_that_comes_back_over_another_connection_is_known_by_its_address() {
    let given = generation(0);
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let connect = || Connection::open_from("127.0.0.7", proxy.addr());
    connect().get(&proxy.url_for(&mirror, RELEASE));
    publish(&mirror, &generation(1));
    assert_given(&mut connect(), &proxy.url_for(&mirror, &packages()), &given.index(), "later");
}

/// Each of these clients is given another generation; then each asks for the same name, again and
/// again, in turns.
fn clients_in_turns(proxy: &Proxy, clients: &mut [Connection]) {
    let mirror = Mirror::start();
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let given: Vec<LocalArchive> = (0..).map(generation).take(clients.len()).collect();
    for (client, archive) in clients.iter_mut().zip(&given) {
        move_on(proxy, &mirror, archive);
        assert_given(client, &release, &archive.release(), "Release");
    }
    move_on(proxy, &mirror, &generation(9));
    for turn in 0..3 {
        for (client, archive) in clients.iter_mut().zip(&given) {
            assert_given(client, &index, &archive.index(), &format!("turn {turn}"));
        }
        proxy.wait_landed();
    }
}

#[test]
fn connections_of_one_address_have_each_their_own_generation() {
    let proxy = proxy();
    let mut clients = [0; 3].map(|_| Connection::open(proxy.addr()));
    clients_in_turns(&proxy, &mut clients);
}

#[test]
fn clients_have_each_their_own_generation() {
    let proxy = proxy();
    let mut clients = ["127.0.0.2", "127.0.0.3"].map(|ip| Connection::open_from(ip, proxy.addr()));
    clients_in_turns(&proxy, &mut clients);
}

#[test]
fn a_client_that_is_given_a_new_release_file_moves_on_with_it() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let mut client = Connection::open(proxy.addr());
    for archive in (0..5).map(generation) {
        move_on(&proxy, &mirror, &archive);
        for (path, expected) in [(RELEASE, archive.release()), (&packages(), archive.index())] {
            assert_given(&mut client, &proxy.url_for(&mirror, path), &expected, path);
        }
    }
}

#[test]
fn to_look_at_a_release_file_is_not_to_be_given_it() {
    let given = generation(0);
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let mut client = Connection::open(proxy.addr());
    client.get(&release);
    move_on(&proxy, &mirror, &generation(1));
    assert_eq!(client.request("HEAD", &release, &[]).status, 200);
    // Somebody else is given the new one.
    Connection::open_from("127.0.0.2", proxy.addr()).get(&release);
    assert_eq!(client.request("HEAD", &release, &[]).status, 200);
    assert_given(&mut client, &index, &given.index(), "after the look");
}

#[test]
fn a_release_file_that_was_only_handed_on_says_nothing() {
    let (given, next) = (generation(0), generation(1));
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let mut client = Connection::open(proxy.addr());
    client.get(&release);
    move_on(&proxy, &mirror, &next);
    assert_given(&mut client, &index, &given.index(), "as given");
    let relayed = client.request("GET", &release, &NO_STORE);
    assert_eq!(relayed.body, next.release().as_bytes());
    assert_given(&mut client, &index, &next.index(), "as the mirror has it");
}

#[test]
fn what_can_not_be_had_any_more_is_not_answered_with_something_else() {
    for archives in [[0, 1].map(generation), [0, 1].map(|n| generation(n).without_by_hash())] {
        let [given, next] = archives;
        let (mirror, proxy) = (mirror_of(&given), proxy());
        let (release, index) =
            (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
        let mut client = Connection::open(proxy.addr());
        client.get(&release);
        move_on(&proxy, &mirror, &next);
        mirror.remove(&by_hash(&given));
        let reply = client.get(&index);
        let is_honest = reply.status == 503 || (reply.status == 200 && !reply.complete);
        assert!(is_honest, "{} {}, {} bytes", reply.status, reply.reason, reply.body.len());
        assert_ne!(reply.body, next.index().as_bytes());
        // Then apt begins anew.
        let mut client = Connection::open(proxy.addr());
        assert_given(&mut client, &release, &next.release(), "begun anew");
        assert_given(&mut client, &index, &next.index(), "begun anew");
        proxy.wait_landed();
        proxy.check_blobs();
    }
}

#[test]
fn what_the_release_file_does_not_name_is_the_mirrors() {
    let (mirror, proxy) = (mirror_of(&generation(0)), proxy());
    let path = "/debian/dists/demo/main/Contents-all";
    let unnamed = proxy.url_for(&mirror, path);
    let mut client = Connection::open(proxy.addr());
    client.get(&proxy.url_for(&mirror, RELEASE));
    assert_eq!(client.get(&unnamed).status, 404, "the mirror's own no");
    for text in ["first", "second and longer"] {
        proxy.wait_landed();
        mirror.put(path, File::new(text.as_bytes()).no_validators());
        assert_given(&mut client, &unnamed, text, "unnamed");
    }
}

#[test]
fn a_release_file_inside_of_a_suite_is_only_one_of_its_files() {
    let given = generation(0);
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let nested = packages().replace("Packages", "Release");
    mirror.put(&nested, File::new("Archive: demo\nComponent: main\n".as_bytes()));
    let mut client = Connection::open(proxy.addr());
    client.get(&proxy.url_for(&mirror, RELEASE));
    assert_eq!(client.get(&proxy.url_for(&mirror, &nested)).status, 200);
    publish(&mirror, &generation(1));
    let index = proxy.url_for(&mirror, &packages());
    assert_given(&mut client, &index, &given.index(), "after the nested one");
}

#[test]
fn an_answer_bears_the_marks_of_its_own_generation() {
    let (first, second) = (generation(0), generation(1));
    let (mirror, proxy) = (mirror_of(&first), proxy());
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let mut client = Connection::open(proxy.addr());
    client.get(&release);
    move_on(&proxy, &mirror, &second);
    let mut ahead = Connection::open_from("127.0.0.2", proxy.addr());
    assert_given(&mut ahead, &release, &second.release(), "ahead");
    let newer = ahead.get(&index).header("last-modified").unwrap_or("none").to_owned();
    proxy.wait_landed();

    let behind = client.get(&index);
    assert_eq!(behind.body, first.index().as_bytes());
    let older = behind.header("last-modified").unwrap_or("another").to_owned();
    assert_ne!(older, newer);
    let rest = [("Range", "bytes=10-"), ("If-Range", newer.as_str())];
    let reply = client.request("GET", &index, &rest);
    assert_eq!((reply.status, &*reply.body), (200, first.index().as_bytes()), "another's rest");

    client.get(&release);
    let reply = client.request("GET", &index, &[("If-Modified-Since", &older)]);
    assert_eq!((reply.status, &*reply.body), (200, second.index().as_bytes()), "it changed");
}

#[test]
fn what_is_begun_before_its_turn_is_of_the_given_generation_too() {
    let given = generation(0);
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let deb = format!("/debian/{}", given.deb_path("tool"));
    let mut client = Connection::open(proxy.addr());
    client.get(&proxy.url_for(&mirror, RELEASE));
    publish(&mirror, &generation(1));
    mirror.put(&deb, File::new(given.deb("tool")).rate(10_000));
    // In one burst: the second is begun while the first is on its way.
    let burst: String = [deb, packages()]
        .iter()
        .map(|path| {
            let target = proxy.url_for(&mirror, path);
            format!("GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n")
        })
        .collect();
    client.send_raw(burst.as_bytes());
    assert_eq!(client.read_reply("GET").body, given.deb("tool"));
    assert_eq!(client.read_reply("GET").body, given.index().as_bytes());
    proxy.wait_landed();
    assert_eq!(mirror.requests(&packages()).len(), 0, "nobody wanted what the mirror has now");
}

#[test]
fn the_head_of_a_name_is_that_of_the_given_generation() {
    let (given, next) = (generation(0), generation(1).package("more", "1.0", 100));
    let (mirror, proxy) = (mirror_of(&given), proxy());
    let mut client = Connection::open(proxy.addr());
    client.get(&proxy.url_for(&mirror, RELEASE));
    move_on(&proxy, &mirror, &next);
    let head = client.request("HEAD", &proxy.url_for(&mirror, &packages()), &[]);
    let length = given.index().len().to_string();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
}

/// A mirror without by-hash names, and a cache over which its first state was fetched by name.
fn used_without_by_hash() -> (Mirror, Proxy, LocalArchive) {
    let first = generation(0).without_by_hash();
    let (mirror, proxy) = (mirror_of(&first), proxy());
    assert_serves(&mirror, &proxy, &first, "at first");
    proxy.wait_landed();
    (mirror, proxy, first)
}

/// What a client that begins anew is given.
fn assert_serves(mirror: &Mirror, proxy: &Proxy, archive: &LocalArchive, when: &str) {
    proxy.wait_landed();
    let mut client = Connection::open(proxy.addr());
    assert_given(&mut client, &proxy.url_for(mirror, RELEASE), &archive.release(), when);
    assert_given(&mut client, &proxy.url_for(mirror, &packages()), &archive.index(), when);
}

/// What a new client is given becomes this, whole.
fn wait_for(mirror: &Mirror, proxy: &Proxy, archive: &LocalArchive) {
    wait_until(Duration::from_secs(30), "the new release file", || {
        get(proxy.addr(), &proxy.url_for(mirror, RELEASE)).body == archive.release().as_bytes()
    });
    assert_serves(mirror, proxy, archive, "adopted");
}

/// The half of an archive that is release files, or the other one.
fn publish_half(mirror: &Mirror, archive: &LocalArchive, releases: bool) {
    for (path, file) in archive.files() {
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.contains("Release") == releases {
            mirror.put(&format!("/debian/{path}"), file);
        }
    }
}

#[test]
fn without_by_hash_names_a_release_file_counts_when_its_files_are_there() {
    for release_comes_first in [true, false] {
        let (mirror, proxy, first) = used_without_by_hash();
        let second = generation(1).without_by_hash();
        publish_half(&mirror, &second, release_comes_first);
        for round in 0..3 {
            let when = format!("half-way, release file first: {release_comes_first}, {round}");
            assert_serves(&mirror, &proxy, &first, &when);
        }
        proxy.wait_landed();
        publish_half(&mirror, &second, !release_comes_first);
        wait_for(&mirror, &proxy, &second);
    }
}

#[test]
fn files_that_nobody_uses_do_not_hold_a_release_file_up() {
    let (mirror, proxy, _) = used_without_by_hash();
    let second = generation(1).without_by_hash();
    move_on(&proxy, &mirror, &second);
    let unused = format!(" {} 12345 main/i18n/Translation-de\n", "0".repeat(64));
    let release = format!("{}{unused}", second.release());
    mirror.put(RELEASE, File::new(release.as_bytes()).no_validators());
    let mut client = Connection::open(proxy.addr());
    wait_until(Duration::from_secs(30), "the new release file", || {
        client.get(&proxy.url_for(&mirror, RELEASE)).body == release.as_bytes()
    });
    assert_given(&mut client, &proxy.url_for(&mirror, &packages()), &second.index(), "adopted");
}

#[test]
fn files_that_the_mirror_does_not_have_do_not_hold_a_release_file_up() {
    let (mirror, proxy, first) = used_without_by_hash();
    // As Debian does: a plain file is named, and only its compressed forms are there.
    let missing = "/debian/dists/demo/main/i18n/Translation-de";
    let named = format!(" {} 12345 main/i18n/Translation-de\n", "0".repeat(64));
    let release = |archive: &LocalArchive| format!("{}{named}", archive.release());
    let put = |archive: &LocalArchive| {
        move_on(&proxy, &mirror, archive);
        mirror.put(RELEASE, File::new(release(archive).as_bytes()).no_validators());
    };
    let given = |client: &mut Connection| client.get(&proxy.url_for(&mirror, RELEASE)).body;
    put(&first);
    let mut client = Connection::open(proxy.addr());
    assert_eq!(given(&mut client), release(&first).as_bytes());
    assert_eq!(client.get(&proxy.url_for(&mirror, missing)).status, 404, "the mirror's own no");

    let second = generation(1).without_by_hash();
    put(&second);
    wait_until(Duration::from_secs(30), "the new release file", || {
        given(&mut client) == release(&second).as_bytes()
    });
    assert_given(&mut client, &proxy.url_for(&mirror, &packages()), &second.index(), "adopted");
}

/// The archive's release file, good for so long.
fn good_for(archive: &LocalArchive, time: Duration) -> String {
    let until = httpdate::fmt_http_date(SystemTime::now() + time).replace("GMT", "UTC");
    archive.release().replace("\nSHA256:", &format!("\nValid-Until: {until}\nSHA256:"))
}

#[test]
fn a_state_that_has_expired_is_none_to_go_on_with() {
    let [first, second] = [0, 1].map(|number| generation(number).without_by_hash());
    let (mirror, proxy) = (mirror_of(&first), proxy());
    let (release, index) = (proxy.url_for(&mirror, RELEASE), proxy.url_for(&mirror, &packages()));
    let put = |text: &str| mirror.put(RELEASE, File::new(text.as_bytes()).no_validators());
    let expires = Instant::now() + Duration::from_secs(10);
    let old = good_for(&first, Duration::from_secs(10));
    put(&old);
    let mut client = Connection::open(proxy.addr());
    assert_given(&mut client, &release, &old, "at first");
    assert_given(&mut client, &index, &first.index(), "at first");

    move_on(&proxy, &mirror, &second);
    let new = good_for(&second, Duration::from_hours(1));
    put(&new);
    mirror.script(&packages(), vec![Fault::Status(503); 1000]);
    // Its date has no parts of a second.
    thread::sleep(expires.saturating_duration_since(Instant::now()) + Duration::from_secs(2));
    assert_given(&mut client, &release, &new, "when it has expired");
    let reply = client.get(&index);
    assert_eq!(reply.status, 503, "not what belongs to the old one");
    mirror.heal(&packages());
    assert_given(&mut client, &index, &second.index(), "when it can be had");
}

#[test]
fn a_release_file_is_followed_behind_the_backs_of_clients_that_have_left() {
    let (mirror, proxy, first) = used_without_by_hash();
    let second = generation(1).without_by_hash();
    move_on(&proxy, &mirror, &second);
    // Longer than clients wait, and than a download goes on that nobody wants.
    let bytes_per_second = second.index().len() as u64 / 12;
    mirror.script(&packages(), vec![Fault::Trickle { bytes_per_second }]);
    let release = proxy.url_for(&mirror, RELEASE);
    let reply = get(proxy.addr(), &release);
    assert_eq!(reply.body, first.release().as_bytes(), "meanwhile: {}", reply.reason);
    assert!(mirror.requests(&packages()).iter().any(|seen| seen.open), "it is on its way");
    wait_until(Duration::from_mins(1), "the end of it, whom nobody waits for", || {
        thread::sleep(Duration::from_millis(100));
        proxy.count("aptmesh_engine_flights") == 0
    });
    mirror.stop();
    assert_serves(&mirror, &proxy, &second, "of what is stored");
}

/// How the archive is signed.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    InRelease,
    /// `Release` and `Release.gpg`.
    Halves,
}

/// By which names the package index is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Names {
    /// apt asks by hash, and older generations can be had.
    ByHash,
    /// The same mirror, but this apt asks by name.
    Plain,
    /// The mirror has no others.
    OnlyPlain,
}

/// A signed archive that moves on by itself.
struct Course {
    form: Form,
    names: Names,
    signer: Signer,
    keyring: PathBuf,
}

impl Course {
    fn new(form: Form, names: Names) -> Arc<Self> {
        let signer = Signer::new("ed25519");
        let keyring = signer.keyring();
        Arc::new(Self { form, names, signer, keyring })
    }

    fn state(&self, number: u64) -> LocalArchive {
        let archive = generation(number);
        let archive = match self.names {
            Names::OnlyPlain => archive.without_by_hash(),
            Names::ByHash | Names::Plain => archive,
        };
        match self.form {
            Form::InRelease => archive.signed_inline(&self.signer),
            Form::Halves => archive.signed_detached(&self.signer),
        }
    }

    /// A mirror that publishes the next state before it answers a request for metadata, unless it
    /// did so less than a `pause` ago. It counts what it published.
    fn mirror(self: &Arc<Self>, pause: Duration) -> (Mirror, Arc<AtomicU64>) {
        let (mirror, count) = (mirror_of(&self.state(0)), Arc::new(AtomicU64::new(0)));
        let (course, counted) = (Arc::clone(self), Arc::clone(&count));
        let mut moved = Instant::now();
        mirror.before_each(move |path| {
            if !path.contains("/dists/") || moved.elapsed() < pause {
                return Vec::new();
            }
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            let files = course.state(number).files();
            moved = Instant::now();
            files.into_iter().map(|(path, file)| (format!("/debian/{path}"), file)).collect()
        });
        (mirror, count)
    }

    fn apt(&self, base: &str) -> Apt {
        let apt = Apt::new(None);
        apt.conf("Acquire::Retries", "0");
        if self.names == Names::Plain {
            apt.conf("Acquire::By-Hash", "no");
        }
        apt.sources(&generation(0).signed_source_line(base, &self.keyring));
        apt
    }
}

/// One `apt-get update` and what comes after it.
fn update_and_download(apt: &Apt) -> Run {
    let update = apt.update();
    if !update.ok {
        return update;
    }
    apt.clean_archives();
    let download = apt.download(&["tool"]);
    assert!(!download.ok || apt.archives().len() == 1, "{}", download.output);
    download
}

/// What apt says of two states of an archive mixed.
fn is_mixed(run: &Run) -> bool {
    let complaints = ["Hash Sum mismatch", "unexpected size", "BADSIG", "signatures were invalid"];
    complaints.iter().any(|complaint| run.output.contains(complaint))
}

const CLIENTS: usize = 3;
const RUNS_EACH: usize = 10;
/// Longer than the cache takes from one request to the next one that belongs to it, shorter than
/// what lies between the requests of apt, which checks a signature there.
const PAUSE: Duration = Duration::from_millis(30);

fn runs_of_one_client(course: &Course, base: &str, client: usize) {
    let apt = course.apt(base);
    for number in 0..RUNS_EACH {
        // Some updates begin with what the one before left, some with nothing.
        if number % 3 == 0 {
            apt.clean_state();
        }
        let run = update_and_download(&apt);
        assert!(run.ok && !is_mixed(&run), "client {client}, run {number}: {}", run.output);
    }
}

/// Several clients at once, over the cache. All of their runs must be good, but for those before
/// the first good one where `cold_may_fail`.
fn all_is_well_over_the_cache(course: &Arc<Course>, pause: Duration, cold_may_fail: bool) {
    let (mirror, moved) = course.mirror(pause);
    let proxy = Proxy::build()
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_ARCHIVE_KEYRING", course.keyring.display().to_string())
        .start();
    let base = format!("http://{}/{}/debian", proxy.addr(), mirror.host());
    let warm = || {
        let run = update_and_download(&course.apt(&base));
        assert!(!is_mixed(&run), "cold: {}", run.output);
        assert!(run.ok || run.output.contains("503"), "cold: {}", run.output);
        run.ok
    };
    let colds = if cold_may_fail { 5 } else { 1 };
    assert!((0..colds).any(|_| warm()), "the first updates all failed");

    let before = moved.load(Ordering::SeqCst);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (course, base) = (&course, &base);
            scope.spawn(move || runs_of_one_client(course, base, client));
        }
    });
    let moves = moved.load(Ordering::SeqCst) - before;
    assert!(moves >= RUNS_EACH as u64, "the mirror moved on {moves} times only");

    // When it stands still, what it has is what clients get.
    mirror.before_each(|_| Vec::new());
    let last = format!("tool_1.{}_all.deb", moved.load(Ordering::SeqCst));
    wait_until(Duration::from_secs(30), "the last state", || {
        let apt = course.apt(&base);
        let run = update_and_download(&apt);
        assert!(run.ok && !is_mixed(&run), "{}", run.output);
        apt.archives().iter().any(|deb| deb.ends_with(&last))
    });
    proxy.wait_landed();
    proxy.check_blobs();
}

/// Whether a run straight from the mirror, one of so many, was of two states.
fn is_mixed_directly(course: &Arc<Course>, pause: Duration) -> bool {
    let run = |mirror: &Mirror| {
        update_and_download(&course.apt(&format!("http://{}/debian", mirror.host())))
    };
    let (still, _) = course.mirror(Duration::MAX);
    let control = run(&still);
    assert!(control.ok, "a mirror that stands still: {}", control.output);
    let (moving, _) = course.mirror(pause);
    (0..RUNS_EACH).any(|_| is_mixed(&run(&moving)))
}

#[test]
fn apt_by_hash_over_a_moving_inrelease() {
    let course = Course::new(Form::InRelease, Names::ByHash);
    assert!(!is_mixed_directly(&course, PAUSE), "here apt helps itself");
    all_is_well_over_the_cache(&course, PAUSE, false);
}

#[test]
fn apt_by_hash_over_an_inrelease_that_moves_with_every_request() {
    let course = Course::new(Form::InRelease, Names::ByHash);
    all_is_well_over_the_cache(&course, Duration::ZERO, false);
}

#[test]
fn apt_by_name_over_an_inrelease_that_moves_with_every_request() {
    let course = Course::new(Form::InRelease, Names::Plain);
    assert!(is_mixed_directly(&course, Duration::ZERO));
    all_is_well_over_the_cache(&course, Duration::ZERO, false);
}

#[test]
fn apt_without_by_hash_over_a_moving_inrelease() {
    let course = Course::new(Form::InRelease, Names::OnlyPlain);
    assert!(is_mixed_directly(&course, PAUSE));
    all_is_well_over_the_cache(&course, PAUSE, true);
}

#[test]
fn apt_by_hash_over_moving_halves() {
    let course = Course::new(Form::Halves, Names::ByHash);
    // By its hash every index can be had: only the two halves can be apart.
    assert!(is_mixed_directly(&course, Duration::ZERO));
    all_is_well_over_the_cache(&course, PAUSE, false);
}

#[test]
fn apt_by_name_over_moving_halves() {
    let course = Course::new(Form::Halves, Names::Plain);
    assert!(is_mixed_directly(&course, PAUSE));
    all_is_well_over_the_cache(&course, PAUSE, false);
}

#[test]
fn apt_without_by_hash_over_moving_halves() {
    let course = Course::new(Form::Halves, Names::OnlyPlain);
    assert!(is_mixed_directly(&course, PAUSE));
    all_is_well_over_the_cache(&course, PAUSE, true);
}
