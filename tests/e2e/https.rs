//! HTTPS: mirrors that are asked over TLS, tunnels for clients that speak it themselves, and web
//! pages where a file should be.

use crate::kit::{
    Apt, Ca, Fault, File, LocalArchive, Mirror, Proxy, Reply, get, noise, request, uninterrupted,
    wait_until,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;
use tempfile::NamedTempFile;

const PACKAGE: &str = "/debian/pool/main/h/hello/hello_2.10.orig.tar.xz";
const DEB: &str = "/debian/pool/main/h/hello/hello_2.10-1_all.deb";
const IN_RELEASE: &str = "/debian/dists/sid/InRelease";
const PACKAGES_FILE: &str = "/debian/dists/sid/main/binary-all/Packages.gz";

/// A mirror that speaks TLS, and the certificate that it can be trusted by.
struct Secure {
    mirror: Mirror,
    ca: Ca,
    ca_file: NamedTempFile,
}

impl Secure {
    fn start() -> Self {
        let ca = Ca::new();
        let mut ca_file = NamedTempFile::new().unwrap();
        ca_file.write_all(ca.pem().as_bytes()).unwrap();
        Self { mirror: Mirror::start_tls(&ca), ca, ca_file }
    }

    /// A proxy that trusts it.
    fn proxy(&self) -> Proxy {
        Proxy::build().env("APTMESH_MIRROR_CA_FILE", self.ca_file.path()).start()
    }

    /// What a client that trusts it says through an open tunnel.
    fn session(&self, tunnel: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        StreamOwned::new(ClientConnection::new(config.into(), name).unwrap(), tunnel)
    }
}

/// A proxy that opens tunnels to the port of `addr`.
fn tunnelling_to(addr: SocketAddr) -> Proxy {
    Proxy::build().env("APTMESH_MIRROR_CONNECT_PORTS", addr.port().to_string()).start()
}

/// Asks for a tunnel; the stream is what follows the head of the answer.
fn connect(proxy: &Proxy, authority: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let ask = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let read = uninterrupted(|| stream.read(&mut byte)).unwrap();
        assert_eq!(read, 1, "{:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    (String::from_utf8(head).unwrap(), stream)
}

fn open(proxy: &Proxy, addr: SocketAddr) -> TcpStream {
    let (head, stream) = connect(proxy, &addr.to_string());
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    // An answer with a length would be read as a body.
    assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    stream
}

/// The reason phrase of a tunnel that was not opened.
fn refused(proxy: &Proxy, authority: &str, status: u16) -> String {
    let (head, _) = connect(proxy, authority);
    let line = head.lines().next().unwrap_or_default();
    let reason = line.strip_prefix(&format!("HTTP/1.1 {status} "));
    reason.unwrap_or_else(|| panic!("{authority}: {head}")).to_owned()
}

fn read_some(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn https_mirrors_are_asked_however_the_client_writes_it() {
    let secure = Secure::start();
    let (mirror, proxy) = (&secure.mirror, secure.proxy());
    mirror.put(PACKAGE, File::new(noise(1, 300_000)));
    let host = mirror.host();
    for target in [
        format!("/https/{host}{PACKAGE}"),
        format!("/HTTPS///{host}{PACKAGE}"),
        format!("/HTTPS/{host}{PACKAGE}"),
        format!("http://HTTPS///{host}{PACKAGE}"),
        format!("https://{host}{PACKAGE}"),
    ] {
        let reply = get(proxy.addr(), &target);
        assert!(reply.complete && reply.status == 200, "{target}: {}", reply.reason);
        assert!(reply.body == noise(1, 300_000), "{target}");
        proxy.wait_landed();
    }
    assert_eq!(mirror.bodies(PACKAGE), 1, "they are one file");
    // The same path in the clear is another file.
    let plain = get(proxy.addr(), &proxy.url_for(mirror, PACKAGE));
    assert!(plain.complete && plain.status == 503, "{plain:?}");
}

#[test]
fn a_mirror_with_an_unknown_certificate_is_not_asked() {
    let (secure, other) = (Secure::start(), Secure::start());
    secure.mirror.put(PACKAGE, File::new(noise(2, 1_000)));
    for proxy in [Proxy::start(), other.proxy()] {
        let target = format!("/https/{}{PACKAGE}", secure.mirror.host());
        let reply = get(proxy.addr(), &target);
        assert!(reply.complete && reply.status == 503, "{reply:?}");
        assert!(reply.reason.contains("certificate"), "{}", reply.reason);
        assert!(reply.header("retry-after").is_some());
    }
    assert!(secure.mirror.log().is_empty());
}

/// What a proxy says of a system without certificate authorities.
const WITHOUT_AUTHORITIES: &str = "no certificate authorities";

#[test]
fn without_certificate_authorities_all_but_https_works() {
    let (secure, plain) = (Secure::start(), Mirror::start());
    for mirror in [&secure.mirror, &plain] {
        mirror.put(PACKAGE, File::new(noise(2, 1_000)));
    }
    let proxy = Proxy::build().authorities(Path::new("/nowhere")).start();
    for _ in 0..4 {
        let reply = get(proxy.addr(), &format!("/https/{}{PACKAGE}", secure.mirror.host()));
        assert!(reply.complete && reply.status == 503, "{reply:?}");
        assert!(reply.reason.contains(WITHOUT_AUTHORITIES), "{}", reply.reason);
        assert!(reply.header("retry-after").is_some());
    }
    assert!(secure.mirror.log().is_empty());
    let reply = get(proxy.addr(), &proxy.url_for(&plain, PACKAGE));
    assert!(reply.complete && reply.body == noise(2, 1_000), "{}", reply.reason);
    let log = proxy.log();
    let warned = |line: &&str| line.contains("WARN") && line.contains("certificate authorities");
    assert_eq!(log.lines().filter(warned).count(), 1);

    // What the operator vouches for needs nobody else.
    let proxy = Proxy::build()
        .authorities(Path::new("/nowhere"))
        .env("APTMESH_MIRROR_CA_FILE", secure.ca_file.path())
        .start();
    let reply = get(proxy.addr(), &format!("/https/{}{PACKAGE}", secure.mirror.host()));
    assert!(reply.complete && reply.body == noise(2, 1_000), "{}", reply.reason);
}

#[test]
fn certificate_authorities_that_are_installed_later_are_used() {
    let secure = Secure::start();
    secure.mirror.put(PACKAGE, File::new(noise(2, 1_000)));
    let (folder, target) =
        (tempfile::tempdir().unwrap(), format!("/https/{}{PACKAGE}", secure.mirror.host()));
    let bundle = folder.path().join("ca-certificates.crt");
    let proxy = Proxy::build().authorities(&bundle).start();
    let reply = get(proxy.addr(), &target);
    assert!(reply.reason.contains(WITHOUT_AUTHORITIES), "{}", reply.reason);
    std::fs::copy(secure.ca_file.path(), &bundle).unwrap();
    wait_until(Duration::from_secs(60), "https to be used", || {
        get(proxy.addr(), &target).status == 200
    });
    assert_eq!(secure.mirror.bodies(PACKAGE), 1);
}

#[test]
fn a_redirect_may_lead_to_https_but_not_back() {
    let (secure, plain) = (Secure::start(), Mirror::start());
    let proxy = secure.proxy();
    let other = "/debian/pool/main/o/other_1.orig.tar.xz";
    plain.put(PACKAGE, File::new(noise(3, 1_000)));
    plain.put(other, File::new(noise(3, 1_000)));
    secure.mirror.put(PACKAGE, File::new(noise(4, 1_000)));
    secure.mirror.put(other, File::new(noise(4, 1_000)));
    let up = format!("https://{}{PACKAGE}", secure.mirror.host());
    plain.script(PACKAGE, vec![Fault::Redirect(up)]);
    for _ in 0..2 {
        let reply = get(proxy.addr(), &proxy.url_for(&plain, PACKAGE));
        assert!(reply.body == noise(4, 1_000), "{}", reply.reason);
        proxy.wait_landed();
    }
    assert_eq!((plain.requests(PACKAGE).len(), secure.mirror.bodies(PACKAGE)), (1, 1));

    let down = format!("http://{}{other}", plain.host());
    secure.mirror.script(other, vec![Fault::Redirect(down); 10]);
    let reply = get(proxy.addr(), &format!("/https/{}{other}", secure.mirror.host()));
    assert!(reply.complete && reply.status == 503, "{reply:?}");
    assert!(reply.reason.contains("https to http"), "{}", reply.reason);
    assert!(plain.requests(other).is_empty());
}

#[test]
fn a_tunnel_carries_tls_and_stores_nothing() {
    let secure = Secure::start();
    let mirror = &secure.mirror;
    let proxy = tunnelling_to(mirror.addr());
    let bytes = noise(5, 3_000_000);
    mirror.put(PACKAGE, File::new(bytes.as_slice()));
    let mut session = secure.session(open(&proxy, mirror.addr()));
    let ask = format!("GET {PACKAGE} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    session.write_all(ask.as_bytes()).unwrap();
    let mut answer = Vec::new();
    session.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(&bytes));
    assert_eq!(mirror.bodies(PACKAGE), 1);
    assert!(proxy.blobs().is_empty());
}

#[test]
fn a_tunnel_carries_both_ways_until_a_side_closes() {
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = far.local_addr().unwrap();
    let proxy = tunnelling_to(addr);

    // The client says that it is done, and still hears the last word.
    let mut near = open(&proxy, addr);
    let (mut end, _) = far.accept().unwrap();
    let writer = thread::spawn({
        let mut near = near.try_clone().unwrap();
        move || near.write_all(&noise(6, 2_000_000)).unwrap()
    });
    end.write_all(&noise(7, 100)).unwrap();
    assert_eq!(read_some(&mut near, 100), noise(7, 100));
    assert!(read_some(&mut end, 2_000_000) == noise(6, 2_000_000));
    writer.join().unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end.read(&mut [0]).unwrap(), 0, "the end was not passed on");
    end.write_all(b"the last word").unwrap();
    drop(end);
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"the last word");

    // The mirror closes.
    let mut near = open(&proxy, addr);
    let (end, _) = far.accept().unwrap();
    drop(end);
    assert_eq!(near.read(&mut [0]).unwrap(), 0);

    // The client is gone.
    let near = open(&proxy, addr);
    let (mut end, _) = far.accept().unwrap();
    end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(near);
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[test]
fn bytes_that_follow_the_request_at_once_are_carried_too() {
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = far.local_addr().unwrap().to_string();
    let proxy = tunnelling_to(far.local_addr().unwrap());
    let mut near = TcpStream::connect(proxy.addr()).unwrap();
    let ask = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nhasty");
    near.write_all(ask.as_bytes()).unwrap();
    let (mut end, _) = far.accept().unwrap();
    end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(read_some(&mut end, 5), b"hasty");
}

#[test]
fn tunnels_are_bounded_in_number() {
    const TUNNELS_MAX: usize = 256;
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = far.local_addr().unwrap();
    let proxy = tunnelling_to(addr);
    let mut tunnels: Vec<_> =
        (0..TUNNELS_MAX).map(|_| (open(&proxy, addr), far.accept().unwrap())).collect();
    assert!(refused(&proxy, &addr.to_string(), 503).contains("tunnels"));
    tunnels.pop();
    wait_until(Duration::from_secs(20), "a free place", || {
        connect(&proxy, &addr.to_string()).0.starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn tunnels_lead_only_where_the_settings_let_them() {
    let mirror = Mirror::start();
    let (host, port) = (mirror.host(), mirror.addr().port().to_string());
    let with_port = || Proxy::build().env("APTMESH_MIRROR_CONNECT_PORTS", &port);

    let usual = Proxy::start();
    assert!(refused(&usual, &host, 403).contains("mirror.connect_ports"));
    assert!(refused(&usual, "127.0.0.1:22", 403).contains("mirror.connect_ports"));
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), "[mirror]\nconnect_ports = []\n").unwrap();
    let none = Proxy::build().arg("--config").arg(settings.path()).start();
    assert!(refused(&none, "127.0.0.1:443", 403).contains("mirror.connect_ports"));

    let listed = with_port().env("APTMESH_MIRROR_ALLOW", "deb.example.org").start();
    assert!(refused(&listed, &host, 403).contains("mirror.allow"));

    let public = with_port().env("APTMESH_MIRROR_ALLOW_PRIVATE", "").start();
    for name in ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0"] {
        let reason = refused(&public, &format!("{name}:{port}"), 403);
        assert!(reason.contains("mirror.allow_private"), "{name}: {reason}");
    }
    assert_eq!(mirror.connections(), 0);

    let parent = with_port().env("APTMESH_MIRROR_PROXY", "http://127.0.0.1:9").start();
    assert!(refused(&parent, &host, 403).contains("mirror.proxy"));
    assert_eq!(mirror.connections(), 0);

    for authority in ["127.0.0.1", "127.0.0.1:0"] {
        refused(&usual, authority, 400);
    }
    let open = with_port().start();
    mirror.stop();
    let reason = refused(&open, &host, 503);
    assert!(reason.contains("127.0.0.1"), "{reason}");
}

#[test]
fn real_apt_uses_an_https_source_through_a_tunnel() {
    let secure = Secure::start();
    let mirror = &secure.mirror;
    let proxy = tunnelling_to(mirror.addr());
    let archive = LocalArchive::new("demo").package("hello-mesh", "1.0", 300_000);
    archive.publish(mirror, "/debian");
    let apt = Apt::new(Some(format!("http://{}", proxy.addr())));
    apt.conf("Acquire::https::CaInfo", &secure.ca_file.path().display().to_string());
    apt.conf("Acquire::Retries", "0");
    apt.sources(&archive.source_line(&format!("https://{}/debian", mirror.host())));
    let update = apt.update();
    assert!(update.ok, "{}\n{}", update.output, proxy.log());
    let install = apt.install_download_only(&["hello-mesh"]);
    assert!(install.ok, "{}", install.output);
    assert_eq!(apt.archives().len(), 1);
    let deb = format!("/debian/{}", archive.deb_path("hello-mesh"));
    assert_eq!(mirror.bodies(&deb), 1);
    assert!(proxy.blobs().is_empty());

    // Without the tunnels there is no way around the proxy, and apt says why.
    apt.clean_state();
    let closed = Proxy::start();
    apt.conf("Acquire::http::Proxy", &format!("http://{}", closed.addr()));
    let update = apt.update();
    assert!(!update.ok && update.output.contains("mirror.connect_ports"), "{}", update.output);
}

#[test]
fn real_apt_shares_an_https_mirror_in_prefix_form() {
    let secure = Secure::start();
    let (mirror, proxy) = (&secure.mirror, secure.proxy());
    let archive = LocalArchive::new("demo").package("hello-mesh", "1.0", 300_000);
    archive.publish(mirror, "/debian");
    for form in ["https/", "HTTPS///"] {
        let apt = Apt::new(None);
        let url = format!("http://{}/{form}{}/debian", proxy.addr(), mirror.host());
        apt.sources(&archive.source_line(&url));
        let update = apt.update();
        assert!(update.ok, "{}", update.output);
        let install = apt.install_download_only(&["hello-mesh"]);
        assert!(install.ok && apt.archives().len() == 1, "{}", install.output);
        proxy.wait_landed();
    }
    assert_eq!(mirror.bodies(&format!("/debian/{}", archive.deb_path("hello-mesh"))), 1);
    assert_eq!(mirror.bodies(&format!("/debian/{}", archive.by_hash_path())), 1);
}

/// Files that begin as they must.
fn right_files() -> [(&'static str, Vec<u8>); 3] {
    let after = |magic: &str| [magic.as_bytes(), &noise(8, 50_000)].concat();
    [
        (IN_RELEASE, after("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n")),
        (DEB, after("!<arch>\ndebian-binary   ")),
        (PACKAGES_FILE, noise(9, 50_000)),
    ]
}

fn ask(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let fields = [("Cache-Control", "max-age=0")];
    let reply = request(proxy.addr(), "GET", &proxy.url_for(mirror, path), &fields);
    proxy.wait_landed();
    reply
}

#[test]
fn a_web_page_is_never_taken_for_a_file() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let page = "\n<!DOCTYPE html><title>Log in</title>".repeat(100);
    for (path, bytes) in right_files() {
        let typed = File::new(bytes.as_slice()).content_type("text/html; charset=utf-8");
        let untyped = File::new(page.as_bytes());
        for (number, wrong) in [untyped, typed].into_iter().enumerate() {
            let path = format!("/{number}{path}");
            mirror.put(&path, wrong);
            let reply = ask(&proxy, &mirror, &path);
            assert!(reply.complete && reply.status == 503, "{path}: {reply:?}");
            assert!(reply.reason.contains("web page"), "{path}: {}", reply.reason);
            assert!(!String::from_utf8_lossy(&reply.body).contains("Log in"), "{path}");
        }
        // The portal is gone, once somebody has logged in.
        mirror.put(path, File::new(bytes.as_slice()));
        mirror.script(path, vec![Fault::Html]);
        let reply = ask(&proxy, &mirror, path);
        assert!(reply.status == 503 && reply.header("retry-after").is_some(), "{reply:?}");
        assert!(proxy.blobs().is_empty(), "{path}");
        let reply = ask(&proxy, &mirror, path);
        assert!(reply.complete && reply.body == bytes, "{path}: {}", reply.reason);
        fs_forget(&proxy);
    }
}

/// So that the next file begins with an empty volume.
fn fs_forget(proxy: &Proxy) {
    wait_until(Duration::from_secs(20), "a blob", || proxy.blobs().len() == 1);
    std::fs::remove_file(&proxy.blobs()[0]).unwrap();
}

#[test]
fn a_web_page_does_not_replace_what_is_stored() {
    let mirror = Mirror::start();
    let proxy = Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start();
    for (path, bytes) in right_files() {
        mirror.put(path, File::new(bytes.as_slice()));
        assert!(ask(&proxy, &mirror, path).body == bytes, "{path}");
        mirror.replace(path, File::new("<html>Log in</html>".as_bytes()).etag("\"portal\""));
        for _ in 0..2 {
            let reply = ask(&proxy, &mirror, path);
            assert!(reply.status == 200 && reply.body == bytes, "{path}: {}", reply.reason);
        }
    }
    assert_eq!(proxy.blobs().len(), 3);
}

#[test]
fn an_idle_tunnel_does_not_hold_a_stop_up() {
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = far.local_addr().unwrap();
    let proxy = tunnelling_to(addr);
    let mut near = open(&proxy, addr);
    let (mut end, _) = far.accept().unwrap();
    end.write_all(b"hello").unwrap();
    assert_eq!(read_some(&mut near, 5), b"hello");

    proxy.signal("TERM");
    // Less than a stop takes that waits for what is under way.
    assert_eq!(proxy.wait_exit(Duration::from_secs(20)).code(), Some(0), "{}", proxy.log());
    assert!(!proxy.log().contains("stopped with"), "{}", proxy.log());
    drop((near, end));
}
