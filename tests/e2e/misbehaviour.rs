//! Mirrors misbehave: what can be mended is mended so that the client notices nothing; what can
//! not be never looks whole to a client and is never stored.

use crate::kit::*;
use std::thread;
use std::time::{Duration, SystemTime};

const LEN: usize = 1_000_000;
const CUT: usize = 300_000;

/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
/// The kit's date of every file.
const DATE: &str = "Tue, 02 Jan 2024 00:00:00 GMT";
const RESUMED: &str = "aptmesh_engine_resumed_total";
const VERIFY_FAILURES: &str = "aptmesh_engine_verify_failures_total";

/// A mirror and a proxy that asks it.
struct Scene {
    mirror: Mirror,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Self {
        let build =
            settings.iter().fold(Proxy::build(), |build, (name, value)| build.env(name, *value));
        Self { mirror: Mirror::start(), proxy: build.start() }
    }

    /// Puts a file on the mirror, and what happens to those who ask for it.
    fn put(&self, path: &str, file: File, faults: impl Into<Vec<Fault>>) {
        self.mirror.put(path, file);
        self.mirror.script(path, faults.into());
    }

    fn get(&self, path: &str) -> Reply {
        get(self.proxy.addr(), &self.proxy.url_for(&self.mirror, path))
    }

    fn requests(&self, path: &str) -> usize {
        self.mirror.requests(path).len()
    }

    /// The mirror is not asked for `path` any more.
    fn assert_hit(&self, path: &str, bytes: &[u8]) {
        self.proxy.wait_landed();
        let before = self.requests(path);
        let reply = self.get(path);
        assert_whole(&reply, bytes);
        assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"), "{path}");
        assert_eq!(reply.header("content-length"), Some(bytes.len().to_string().as_str()));
        assert_eq!(self.requests(path), before, "{path}");
    }

    /// Nothing of what was tried is left, and the mirror, healed, is asked again.
    fn assert_not_stored(&self, path: &str, right: &[u8]) {
        self.proxy.wait_landed();
        assert!(self.proxy.staged().is_empty() && self.proxy.blobs().is_empty());
        self.mirror.heal(path);
        self.mirror.replace(path, File::new(right.to_vec()));
        let before = self.requests(path);
        assert_whole(&self.get(path), right);
        assert_eq!(self.requests(path), before + 1, "{path}");
    }
}

fn assert_whole(reply: &Reply, bytes: &[u8]) {
    let (status, reason, trouble) = (reply.status, &reply.reason, &reply.trouble);
    let len = reply.body.len();
    assert!(reply.complete, "{status} {reason}, {len} bytes, then {trouble:?}");
    assert!(status == 200 && reply.body == bytes, "{status} {reason}, {len} bytes");
}

/// A body that began and did not end.
fn assert_cut_off(reply: &Reply) {
    assert_eq!(reply.status, 200, "{}", reply.reason);
    assert!(!reply.complete, "{} bytes passed for a whole file", reply.body.len());
}

/// A failure of the proxy's own, which tells the user what is wrong.
fn assert_trouble(reply: &Reply, words: &str) {
    assert!((502..=504).contains(&reply.status) && reply.complete, "{reply:?}");
    assert!(reply.reason.contains(words), "{}", reply.reason);
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
}

fn by_hash(bytes: &[u8]) -> String {
    format!("/debian/dists/sid/main/binary-amd64/by-hash/SHA256/{}", sha256_hex(bytes))
}

/// Later than [`DATE`].
fn later() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_704_200_000)
}

#[test]
fn a_cut_body_is_resumed_where_it_broke_off() {
    for (file, mark) in [
        (File::new(noise(1, LEN)), DATE),
        (File::new(noise(1, LEN)).etag("\"v1\""), "\"v1\""),
        (File::new(noise(1, LEN)).chunked(), DATE),
    ] {
        let scene = Scene::new();
        scene.put(TOOL, file, [Fault::Cut { after: CUT }]);
        assert_whole(&scene.get(TOOL), &noise(1, LEN));
        let seen = scene.mirror.requests(TOOL);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].header("range"), Some("bytes=300000-"));
        assert_eq!(seen[1].header("if-range"), Some(mark));
        assert_eq!(scene.mirror.bytes(TOOL), LEN as u64, "no byte was sent twice");
        assert_eq!(scene.proxy.count(RESUMED), 1);
        scene.assert_hit(TOOL, &noise(1, LEN));
    }
}

#[test]
fn a_body_that_is_cut_again_and_again_comes_whole() {
    let scene = Scene::new();
    let bytes = noise(2, LEN);
    scene.put(TOOL, File::new(bytes.clone()), vec![Fault::Cut { after: 120_000 }; 8]);
    assert_whole(&scene.get(TOOL), &bytes);
    assert_eq!(scene.proxy.count(RESUMED), 8);
    scene.assert_hit(TOOL, &bytes);
}

#[test]
fn a_mirror_that_restarts_is_waited_for() {
    let scene = Scene::new();
    let bytes = noise(21, 2 * LEN);
    scene.put(TOOL, File::new(bytes.clone()).rate(LEN as u64), []);
    let mut client = Connection::open(scene.proxy.addr());
    client.send("GET", &scene.proxy.url_for(&scene.mirror, TOOL), &[]);
    assert_eq!(client.read_head().status, 200);
    assert!(client.read_body_some(CUT) == bytes[..CUT]);
    scene.mirror.stop();
    thread::sleep(Duration::from_millis(500));
    scene.mirror.restart();
    assert!(client.read_body_some(2 * LEN) == bytes[CUT..]);
    assert!(scene.proxy.count(RESUMED) > 0);
    scene.assert_hit(TOOL, &bytes);
}

#[test]
fn a_mirror_that_can_not_resume_is_asked_for_all_again() {
    let bytes = noise(3, LEN);
    let scene = Scene::new();
    for (path, file) in [
        ("/debian/pool/a_1.tar.xz", File::new(bytes.clone()).no_validators()),
        ("/debian/pool/b_1.tar.xz", File::new(bytes.clone()).ignore_range()),
        ("/debian/pool/c_1.tar.xz", File::new(bytes.clone()).no_validators().chunked()),
    ] {
        scene.put(path, file, [Fault::Cut { after: CUT }, Fault::Cut { after: 2 * CUT }]);
        assert_whole(&scene.get(path), &bytes);
        assert_eq!(scene.mirror.requests(path).len(), 3, "{path}");
        scene.assert_hit(path, &bytes);
    }
    assert_eq!(scene.mirror.requests("/debian/pool/a_1.tar.xz")[1].header("range"), None);
    scene.proxy.check_blobs();
}

/// Begins like the old version, as far as that was sent.
fn joined(old: &[u8], new: &[u8]) -> Vec<u8> {
    [&old[..CUT], &new[CUT..]].concat()
}

#[test]
fn two_versions_of_a_file_are_never_mixed() {
    let (old, new) = (noise(4, LEN), noise(5, LEN));
    let dated = |bytes: &[u8]| File::new(bytes.to_vec());
    let versions = [
        (dated(&old), dated(&new).last_modified(later())),
        (dated(&old), dated(&new[..LEN - 1]).last_modified(later())),
        (dated(&old).etag("\"v1\""), dated(&new).etag("\"v2\"")),
        (dated(&old).no_validators(), dated(&new).no_validators()),
        (dated(&old).chunked(), dated(&new).chunked().last_modified(later())),
        (dated(&old), dated(&new).last_modified(later()).ignore_if_range()),
        (dated(&old).etag("\"v1\""), dated(&new).etag("\"v2\"").ignore_if_range()),
        (dated(&old), dated(&joined(&old, &new)).last_modified(later()).ignore_range()),
    ];
    thread::scope(|scope| {
        for (first, second) in versions {
            scope.spawn(|| assert_not_mixed(first, second, &old));
        }
    });
}

/// The mirror has `second` when `first` breaks off.
fn assert_not_mixed(first: File, second: File, old: &[u8]) {
    let scene = Scene::new();
    let fallen_silent = Fault::Stall { after: CUT, for_: Duration::from_secs(2) };
    scene.put(TOOL, first, [fallen_silent]);
    let mut client = Connection::open(scene.proxy.addr());
    client.send("GET", &scene.proxy.url_for(&scene.mirror, TOOL), &[]);
    assert_eq!(client.read_head().status, 200);
    let begun = client.read_body_some(CUT);
    assert!(begun.len() == CUT && old.starts_with(&begun));
    scene.mirror.replace(TOOL, second);
    assert!(client.read_body_some(LEN).is_empty(), "bytes of another version followed");
    assert!(scene.requests(TOOL) > 1);
    scene.assert_not_stored(TOOL, &noise(5, LEN));
    scene.proxy.check_blobs();
}

#[test]
fn what_stays_truncated_is_neither_whole_nor_stored() {
    let bytes = noise(6, LEN);
    let plain = || File::new(bytes.clone());
    for file in [plain(), plain().chunked(), plain().no_validators(), plain().http10()] {
        let scene = Scene::new();
        let mut faults = vec![Fault::Cut { after: CUT }];
        faults.extend(vec![Fault::Cut { after: 0 }; 100]);
        scene.put(TOOL, file, faults);
        let reply = scene.get(TOOL);
        assert_cut_off(&reply);
        assert!(reply.body == bytes[..CUT], "what came was to be handed on");
        assert!((2..20).contains(&scene.requests(TOOL)), "{}", scene.requests(TOOL));
        scene.assert_not_stored(TOOL, &bytes);
    }
}

#[test]
fn a_length_that_is_too_long_is_not_believed() {
    let scene = Scene::new();
    let bytes = noise(7, LEN);
    scene.put(TOOL, File::new(bytes.clone()), [Fault::WrongLength { declared: LEN + 1000 }]);
    assert_cut_off(&scene.get(TOOL));
    scene.assert_not_stored(TOOL, &bytes);
}

#[test]
fn a_chunked_body_is_stored_and_gets_a_length() {
    let scene = Scene::new();
    let bytes = noise(8, LEN);
    scene.put(TOOL, File::new(bytes.clone()).chunked(), []);
    let first = scene.get(TOOL);
    assert_whole(&first, &bytes);
    assert_eq!(first.header("transfer-encoding"), Some("chunked"));
    scene.assert_hit(TOOL, &bytes);
}

#[test]
fn a_body_that_ends_with_its_connection_is_stored_only_if_its_digest_proves_it() {
    let bytes = noise(9, LEN);
    for file in [File::new(bytes.clone()).unsized_(), File::new(bytes.clone()).unsized_().http10()]
    {
        let scene = Scene::new();
        scene.put(TOOL, file.clone(), []);
        for asked in 1..=2 {
            let reply = scene.get(TOOL);
            assert_whole(&reply, &bytes);
            assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss"));
            assert_eq!(scene.requests(TOOL), asked);
        }
        assert!(scene.proxy.blobs().is_empty());

        let proved = by_hash(&bytes);
        scene.put(&proved, file, []);
        assert_whole(&scene.get(&proved), &bytes);
        scene.assert_hit(&proved, &bytes);
    }
}

#[test]
fn wrong_bytes_under_a_digest_never_come_whole() {
    let (right, wrong) = (noise(10, LEN), noise(11, LEN));
    let path = by_hash(&right);
    for (file, faults) in [
        (File::new(wrong.clone()), vec![]),
        (File::new(wrong.clone()).chunked(), vec![]),
        (File::new(b"small".to_vec()), vec![]),
        (File::new(right.clone()).unsized_(), vec![Fault::Cut { after: CUT }; 10]),
        (File::new(right.clone()), vec![Fault::WrongLength { declared: CUT }; 10]),
    ] {
        let scene = Scene::new();
        scene.put(&path, file, faults);
        let reply = scene.get(&path);
        // A small body is known to be wrong before its answer begins.
        assert!(reply.status != 200 || !reply.complete, "wrong bytes passed for right ones");
        assert!(scene.proxy.count(VERIFY_FAILURES) > 0);
        scene.assert_not_stored(&path, &right);
    }
}

#[test]
fn servers_of_old_are_understood() {
    let scene = Scene::new();
    for (number, manner) in [File::http10 as fn(File) -> File, File::close_each].iter().enumerate()
    {
        let before = scene.mirror.connections();
        for file in 0..3 {
            let path = format!("/debian/pool/old-{number}-{file}_1.tar.xz");
            let bytes = noise(100 + file, 50_000);
            scene.put(&path, manner(File::new(bytes.clone())), []);
            assert_whole(&scene.get(&path), &bytes);
            scene.assert_hit(&path, &bytes);
        }
        assert_eq!(scene.mirror.connections() - before, 3, "each answer closes its connection");
    }
}

#[test]
fn redirects_are_followed_inside() {
    let scene = Scene::new();
    let elsewhere = Mirror::start_at("127.0.0.2");
    let bytes = noise(12, 50_000);
    elsewhere.put("/far/file", File::new(bytes.clone()));
    scene.put("/debian/pool/near", File::new(bytes.clone()), []);
    let far = format!("http://{}/far/file", elsewhere.host());
    for (status, location) in [
        (301, far.as_str()),
        (302, "/debian/pool/near"),
        (303, &far),
        (307, "near"),
        (308, "../pool/near"),
    ] {
        let path = format!("/debian/pool/moved-{status}_1.tar.xz");
        scene.put(&path, File::new(&b""[..]), [Fault::RedirectAs(status, location.to_owned())]);
        let reply = scene.get(&path);
        assert_whole(&reply, &bytes);
        assert_eq!(reply.header("location"), None);
        scene.assert_hit(&path, &bytes);
    }
    assert_eq!(elsewhere.bodies("/far/file"), 2);
    assert_eq!(scene.mirror.bodies("/debian/pool/near"), 3);
}

#[test]
fn a_circle_of_redirects_ends() {
    let scene = Scene::new();
    scene.put(TOOL, File::new(&b""[..]), vec![Fault::Redirect(TOOL.to_owned()); 200]);
    assert_trouble(&scene.get(TOOL), "redirect");
    assert!(scene.requests(TOOL) < 50, "{} requests", scene.requests(TOOL));
    scene.assert_not_stored(TOOL, &noise(13, 1000));
}

#[test]
fn a_redirect_to_a_forbidden_address_is_not_followed() {
    let scene = Scene::with(&[("APTMESH_MIRROR_ALLOW_PRIVATE", "127.0.0.1")]);
    let inside = Mirror::start_at("127.0.0.2");
    inside.put("/secret", File::new(&b"secret"[..]));
    for target in
        [&format!("http://{}/secret", inside.host()), "http://[::1]:1/", "http://10.0.0.1/x"]
    {
        scene.put(TOOL, File::new(&b""[..]), vec![Fault::Redirect(target.to_owned()); 10]);
        let reply = scene.get(TOOL);
        assert!(reply.status == 403 && reply.complete, "{target}: {reply:?}");
        assert!(reply.reason.contains("allow_private"), "{}", reply.reason);
        scene.mirror.heal(TOOL);
        scene.proxy.wait_landed();
    }
    assert_eq!(inside.connections(), 0);
    assert_eq!(scene.requests(TOOL), 3, "asking again would not help");
}

#[test]
fn an_encoding_that_was_not_asked_for_is_refused() {
    let scene = Scene::new();
    let bytes = noise(14, LEN);
    scene.put(TOOL, File::new(bytes.clone()).content_encoding("gzip"), []);
    assert_trouble(&scene.get(TOOL), "gzip");
    assert_eq!(scene.mirror.requests(TOOL)[0].header("accept-encoding"), Some("identity"));
    scene.assert_not_stored(TOOL, &bytes);
}

#[test]
fn a_trickle_is_waited_for() {
    let scene = Scene::with(&[("APTMESH_MIRROR_TIMEOUT", "2s")]);
    let bytes = noise(15, 20_000);
    scene.put(TOOL, File::new(bytes.clone()), [Fault::Trickle { bytes_per_second: 4000 }]);
    let reply = scene.get(TOOL);
    assert_whole(&reply, &bytes);
    assert!(reply.total > Duration::from_secs(3), "too fast to show anything: {:?}", reply.total);
    assert_eq!(scene.requests(TOOL), 1);
}

#[test]
fn silence_in_mid_body_ends_and_the_rest_is_asked_for() {
    let scene = Scene::with(&[("APTMESH_MIRROR_TIMEOUT", "1s")]);
    let bytes = noise(16, LEN);
    let silence = Duration::from_secs(50);
    scene.put(TOOL, File::new(bytes.clone()), [Fault::Stall { after: CUT, for_: silence }]);
    let reply = scene.get(TOOL);
    assert_whole(&reply, &bytes);
    assert!(reply.total < silence / 2, "{:?}", reply.total);
    assert_eq!(scene.mirror.requests(TOOL)[1].header("range"), Some("bytes=300000-"));
    scene.assert_hit(TOOL, &bytes);
}

#[test]
fn silence_before_the_head_is_asked_again() {
    let scene = Scene::with(&[("APTMESH_MIRROR_TIMEOUT", "1s")]);
    let bytes = noise(17, LEN);
    let silence = Duration::from_secs(50);
    scene.put(TOOL, File::new(bytes.clone()), [Fault::StallHead(silence)]);
    let reply = scene.get(TOOL);
    assert_whole(&reply, &bytes);
    assert!(reply.total < silence / 2, "{:?}", reply.total);
    assert_eq!(scene.requests(TOOL), 2);

    let mute = "/debian/pool/mute_1.tar.xz";
    scene.put(mute, File::new(bytes.clone()), vec![Fault::StallHead(silence); 20]);
    let reply = scene.get(mute);
    assert_eq!(reply.status, 504, "{}", reply.reason);
    assert_trouble(&reply, "127.0.0.1");
    assert!(reply.total < silence / 2, "{:?}", reply.total);
}

#[test]
fn a_mirror_in_trouble_is_asked_again() {
    let scene = Scene::new();
    let bytes = noise(18, LEN);
    for fault in [Fault::Status(503), Fault::Status(500), Fault::Refuse] {
        let path = format!("/debian/pool/{}_1.tar.xz", scene.mirror.log().len());
        scene.put(&path, File::new(bytes.clone()), [fault.clone()]);
        assert_whole(&scene.get(&path), &bytes);
        assert_eq!(scene.requests(&path), 2, "{fault:?}");
    }
}

#[test]
fn a_mirror_that_stays_in_trouble_is_not_asked_for_ever() {
    let scene = Scene::new();
    let bytes = noise(19, LEN);
    scene.put(TOOL, File::new(bytes.clone()), vec![Fault::Status(503); 100]);
    let reply = scene.get(TOOL);
    assert!(reply.status == 503 && reply.complete, "{reply:?}");
    assert!(reply.header("retry-after").is_some(), "apt should come back: {reply:?}");
    assert!((2..20).contains(&scene.requests(TOOL)), "{}", scene.requests(TOOL));
    scene.assert_not_stored(TOOL, &bytes);

    let shut = "/debian/pool/shut_1.tar.xz";
    scene.put(shut, File::new(bytes.clone()), vec![Fault::Refuse; 100]);
    assert_trouble(&scene.get(shut), "127.0.0.1");
    scene.proxy.wait_landed();
    scene.mirror.stop();
    assert_trouble(&scene.get(shut), "unreachable");
    scene.proxy.wait_landed();
    scene.mirror.restart();
    scene.mirror.heal(shut);
    assert_whole(&scene.get(shut), &bytes);
}

#[test]
fn a_clear_no_stays_what_it_is() {
    let scene = Scene::new();
    for status in [404, 403, 410] {
        let path = format!("/debian/pool/not-{status}_1.tar.xz");
        scene.put(&path, File::new(noise(20, 1000)), [Fault::Status(status)]);
        let reply = scene.get(&path);
        assert!(reply.status == status && reply.complete, "{reply:?}");
        assert_eq!(scene.requests(&path), 1, "asking again would not help");
        scene.proxy.wait_landed();
        assert_whole(&scene.get(&path), &noise(20, 1000));
    }
}

/// Says how long it is, and in a way that makes this mean nothing (RFC 9112 §6.3).
fn doubly_framed(file: File, coding: &str) -> File {
    let length = LEN.to_string();
    file.unsized_().header("Content-Length", &length).header("Transfer-Encoding", coding)
}

#[test]
fn a_length_beside_a_transfer_coding_proves_nothing() {
    let scene = Scene::new();
    let bytes = noise(22, LEN);
    let file = doubly_framed(File::new(bytes.clone()), "identity");
    scene.put(TOOL, file, vec![Fault::Cut { after: CUT }; 2]);
    for asked in 1..=2 {
        let reply = scene.get(TOOL);
        assert!(reply.body == bytes[..CUT] || reply.status >= 500, "{}", reply.body.len());
        assert_ne!(reply.header("content-length"), Some("1000000"), "it was believed");
        scene.proxy.wait_landed();
        assert_eq!(scene.requests(TOOL), asked);
    }
    scene.assert_not_stored(TOOL, &bytes);
}

#[test]
fn a_transfer_coding_that_was_not_asked_for_is_refused() {
    for coding in ["gzip", "gzip, chunked"] {
        let scene = Scene::new();
        let bytes = noise(23, LEN);
        scene.put(TOOL, doubly_framed(File::new(bytes.clone()), coding), []);
        assert_trouble(&scene.get(TOOL), "gzip");
        scene.assert_not_stored(TOOL, &bytes);
    }
}

#[test]
fn a_resumed_body_that_ends_with_its_connection_must_have_its_whole_length() {
    let bytes = noise(24, LEN);
    let file = || File::new(bytes.clone()).etag("\"v1\"");
    let fallen_silent = Fault::Stall { after: CUT, for_: Duration::from_secs(1) };
    for (rest, sent) in
        [(file().unsized_(), 10_000), (file().unsized_().ignore_range(), CUT + 10_000)]
    {
        let scene = Scene::new();
        let mut faults = vec![fallen_silent.clone(), Fault::Cut { after: sent }];
        faults.extend(vec![Fault::Cut { after: 0 }; 20]);
        scene.put(TOOL, file().chunked(), faults);
        let mut client = Connection::open(scene.proxy.addr());
        client.send("GET", &scene.proxy.url_for(&scene.mirror, TOOL), &[]);
        assert_eq!(client.read_head().header("content-length"), None);
        assert!(client.read_body_some(CUT) == bytes[..CUT]);
        scene.mirror.replace(TOOL, rest);
        assert!(client.read_body_some(LEN).len() <= 10_000);
        // The last chunk of a whole body would be followed by the next answer.
        client.send("GET", "/", &[]);
        assert_eq!(client.read_head().status, 0, "what is truncated was ended cleanly");
        assert!(scene.requests(TOOL) > 1);
        scene.assert_not_stored(TOOL, &bytes);
    }
}

#[test]
fn wrong_bytes_under_a_digest_are_not_handed_on_either() {
    let (right, wrong) = (noise(25, LEN), noise(26, LEN));
    let path = by_hash(&right);
    let scene = Scene::new();
    let target = scene.proxy.url_for(&scene.mirror, &path);
    for private in [("Cache-Control", "no-store"), ("Authorization", "Basic Zm9vOmJhcg==")] {
        let ask = || request(scene.proxy.addr(), "GET", &target, &[private]);
        for file in [
            File::new(wrong.clone()),
            File::new(wrong.clone()).chunked(),
            File::new(wrong.clone()).unsized_(),
            File::new(b"small".to_vec()),
            File::new(b"".to_vec()).chunked(),
            File::new(right[..CUT].to_vec()),
        ] {
            scene.put(&path, file, []);
            let reply = ask();
            let len = reply.body.len();
            assert!(reply.status != 200 || !reply.complete, "{len} wrong bytes, {private:?}");
        }
        for file in [File::new(right.clone()), File::new(right.clone()).chunked()] {
            scene.put(&path, file, []);
            assert_whole(&ask(), &right);
        }
    }
    assert!(scene.proxy.blobs().is_empty());
}

#[test]
fn an_empty_body_under_a_digest_is_not_handed_on_either() {
    let scene = Scene::new();
    for (right, is_empty) in [(noise(30, LEN), false), (Vec::new(), true)] {
        let path = by_hash(&right);
        scene.put(&path, File::new(b"".to_vec()), []);
        let target = scene.proxy.url_for(&scene.mirror, &path);
        let reply = request(scene.proxy.addr(), "GET", &target, &[("Cache-Control", "no-store")]);
        assert_eq!(reply.status == 200 && reply.complete, is_empty, "{reply:?}");
    }
}

#[test]
fn slow_mirrors_do_not_keep_stored_files_from_their_clients() {
    const CLIENTS: usize = 40;
    const REQUESTS: usize = 14;
    let mut scene = Scene::new();
    let bytes = noise(27, LEN);
    scene.put(TOOL, File::new(bytes.clone()), []);
    assert_whole(&scene.get(TOOL), &bytes);
    scene.proxy.wait_landed();
    // So that it is on the disk, and not in memory.
    scene.proxy.restart();

    let slow = File::new(noise(28, LEN));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Connection::open(scene.proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        for request in 0..REQUESTS {
            let path = format!("/debian/pool/slow-{number}-{request}_1.tar.xz");
            let stall = Fault::Stall { after: 1000, for_: Duration::from_mins(5) };
            scene.put(&path, slow.clone(), vec![stall; 50]);
            client.send("GET", &scene.proxy.url_for(&scene.mirror, &path), &[]);
        }
    }
    wait_until(Duration::from_secs(30), "hundreds of slow flights", || {
        let begun = scene.mirror.log().iter().filter(|seen| seen.body_bytes == 1000).count();
        begun == CLIENTS * REQUESTS
    });
    assert!(scene.proxy.count("aptmesh_engine_flights") >= 512, "too few to show anything");
    let reply = scene.get(TOOL);
    assert_whole(&reply, &bytes);
    assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
    // A mirror that is quick is not in their way either, and its name is looked up.
    let quick = "/debian/pool/quick_1.tar.xz";
    scene.put(quick, File::new(bytes.clone()), []);
    let by_name = format!("/localhost:{}{quick}", scene.mirror.addr().port());
    assert_whole(&get(scene.proxy.addr(), &by_name), &bytes);
    drop(clients);
}

#[test]
fn silence_after_the_head_again_and_again_is_told_before_apt_gives_up() {
    let scene = Scene::new();
    let bytes = noise(29, LEN);
    let silence = Fault::Stall { after: 0, for_: Duration::from_mins(5) };
    scene.put(TOOL, File::new(bytes.clone()), vec![silence; 50]);
    // The kit's client, as apt, gives up after 30 s of silence.
    assert_trouble(&scene.get(TOOL), "127.0.0.1");
    scene.assert_not_stored(TOOL, &bytes);
}

#[test]
fn silence_after_a_late_head_again_and_again_is_told_before_apt_gives_up() {
    let scene = Scene::new();
    let bytes = noise(31, LEN);
    let silence = Fault::Stall { after: 0, for_: Duration::from_mins(5) };
    let late = File::new(bytes.clone()).head_delay(Duration::from_secs(4));
    scene.put(TOOL, late, vec![silence; 50]);
    let reply = scene.get(TOOL);
    assert!(matches!(reply.status, 503 | 504), "{reply:?}");
    assert_trouble(&reply, "127.0.0.1");
    // Its own limit: the bound is the effect.
    assert!(reply.total < Duration::from_secs(30), "{:?}", reply.total);
    assert!(scene.requests(TOOL) >= 2, "it was asked once only");
    scene.assert_not_stored(TOOL, &bytes);
}
