//! Behind balancers that say for whom their connections are: the real haproxy, and headers by hand.

use crate::kit::{Balancer, Connection, File, Mirror, Proxy, noise, uninterrupted, wait_until};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

const MALFORMED: &str = "aptmesh_web_malformed_headers_total";
const PATIENCE: Duration = Duration::from_secs(30);
/// Who may come in, and who may not.
const CLIENT: &str = "127.0.0.7";
const STRANGER: &str = "127.0.0.8";

/// Behind a balancer at 127.0.0.1, for one client.
fn behind() -> Proxy {
    Proxy::build()
        .env("APTMESH_LISTEN_BALANCERS", "127.0.0.1/32")
        .env("APTMESH_CLIENTS_ALLOW", CLIENT.to_owned() + "/32")
        .env("APTMESH_LOG_LEVEL", "info,aptmesh::web=debug")
        .start()
}

/// The answer to a connection from `from` that begins like this.
fn answered(proxy: &Proxy, from: &str, beginning: &[u8]) -> (u16, String) {
    let mut connection = Connection::open_from(from, proxy.addr());
    connection.send_raw(beginning);
    connection.send("GET", "/", &[]);
    let reply = connection.read_reply("GET");
    (reply.status, String::from_utf8_lossy(&reply.body).into_owned())
}

/// Version 2: this command and family, and what follows.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, body].concat()
}

#[test]
fn the_client_of_a_balancer_is_let_in_or_not() {
    let proxy = behind();
    for how in ["send-proxy", "send-proxy-v2"] {
        let balancer = Balancer::telling(how, proxy.addr());
        let mut client = Connection::open_from(CLIENT, balancer.addr());
        assert_eq!(client.get("/").status, 406, "{how}");
        assert_eq!(client.get("/").status, 406, "{how}: on one connection");
        let refused = Connection::open_from(STRANGER, balancer.addr()).get("/");
        let why = String::from_utf8_lossy(&refused.body).into_owned();
        assert_eq!((refused.status, why.contains(STRANGER)), (403, true), "{how}: {why}");
    }
    // The balancer itself is no client.
    assert_eq!(answered(&proxy, "127.0.0.1", b"").0, 403);
}

#[test]
fn who_is_no_balancer_is_not_believed() {
    let proxy = behind();
    let line = format!("PROXY TCP4 {CLIENT} 127.0.0.1 1 2\r\n");
    let body = [127, 0, 0, 7, 127, 0, 0, 1, 0, 1, 0, 2];
    for header in [line.into_bytes(), binary(0x21, 0x11, &body)] {
        assert_eq!(answered(&proxy, "127.0.0.1", &header).0, 406, "that it is well-formed");
        let (status, _) = answered(&proxy, STRANGER, &header);
        assert!(matches!(status, 0 | 400 | 403), "{status}");
    }
    assert_eq!(answered(&proxy, CLIENT, b"").0, 406, "no header, no balancer");
    assert_eq!(proxy.count(MALFORMED), 0);
}

#[test]
fn a_header_that_names_nobody_leaves_the_balancer() {
    let proxy = behind();
    let anybody = [127, 0, 0, 7, 127, 0, 0, 1, 0, 1, 0, 2];
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        format!("PROXY UNKNOWN {CLIENT} 127.0.0.1 1 2\r\n").into_bytes(),
        binary(0x20, 0, &[]),
        binary(0x20, 0x11, &anybody),
        binary(0x21, 0, &anybody),
    ] {
        let (status, why) = answered(&proxy, "127.0.0.1", &header);
        assert_eq!((status, why.contains("127.0.0.1")), (403, true), "{header:?}: {why}");
    }
}

#[test]
fn a_mapped_address_is_one_of_the_fourth_version() {
    let proxy = behind();
    let line = format!("PROXY TCP6 ::ffff:{CLIENT} ::1 1 2\r\n");
    assert_eq!(answered(&proxy, "127.0.0.1", line.as_bytes()).0, 406);
    let mut body = [0; 36];
    body[10..16].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 7]);
    assert_eq!(answered(&proxy, "127.0.0.1", &binary(0x21, 0x21, &body)).0, 406);
}

#[test]
fn a_header_that_is_none_ends_the_connection() {
    let proxy = behind();
    let wrong = [
        b"PROXY TCP4 somebody 127.0.0.1 1 2\r\n".to_vec(),
        [b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
        binary(0x21, 0x11, &[0; 11]),
        binary(0x22, 0x11, &[0; 12]),
        binary(0x21, 0x11, &[0; 5000]),
    ];
    for (number, header) in wrong.iter().enumerate() {
        assert_eq!(answered(&proxy, "127.0.0.1", header).0, 0, "{number}");
        assert_eq!(proxy.count(MALFORMED), number as u64 + 1, "{number}");
    }
    assert!(proxy.log().contains("a balancer's PROXY header is malformed"));
    assert_eq!(proxy.count("aptmesh_engine_flights"), 0);
}

#[test]
fn a_header_may_come_byte_by_byte_or_with_the_requests_behind_it() {
    let (proxy, mirror) = (behind(), Mirror::start());
    let line = format!("PROXY TCP4 {CLIENT} 127.0.0.1 1 2\r\n");
    let mut slow = Connection::open_from("127.0.0.1", proxy.addr());
    for byte in line.bytes() {
        slow.send_raw(&[byte]);
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(slow.get("/").status, 406);

    // What waits behind is begun early, as without a balancer.
    let paths: Vec<String> =
        (0..4).map(|number| format!("/debian/pool/f/f_{number}.orig.tar.xz")).collect();
    let files: Vec<Vec<u8>> = (0..4).map(|seed| noise(seed, 50_000)).collect();
    for (path, bytes) in paths.iter().zip(&files) {
        mirror.put(path, File::new(bytes.as_slice()).head_delay(Duration::from_secs(5)));
    }
    let mut burst = line.into_bytes();
    for path in &paths {
        let target = proxy.url_for(&mirror, path);
        burst.extend(format!("GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n").bytes());
    }
    let mut quick = Connection::open_from("127.0.0.1", proxy.addr());
    quick.send_raw(&burst);
    wait_until(PATIENCE, "all to be asked for", || mirror.log().len() == paths.len());
    assert!(mirror.log()[0].open, "they were asked for one after the other");
    for bytes in &files {
        assert!(quick.read_reply("GET").body == *bytes);
    }
}

#[test]
fn a_header_that_never_ends_ends_the_connection() {
    let proxy = behind();
    let [silent, mut half] =
        [(); 2].map(|()| TcpStream::connect(proxy.addr()).expect("a connection"));
    half.write_all(b"PROXY TCP4 192.").expect("half a header");
    for (mut stream, what) in [(silent, "nothing"), (half, "half a header")] {
        stream.set_read_timeout(Some(3 * PATIENCE)).expect("a time limit");
        let read = uninterrupted(|| stream.read(&mut [0]));
        assert!(matches!(read, Ok(0)), "{what}: {read:?}");
    }
    // A spare connection is no fault.
    assert_eq!(proxy.count(MALFORMED), 1);
}

#[test]
fn a_silent_balancer_does_not_hold_a_stop_up() {
    let proxy = behind();
    let silent: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(proxy.addr()).expect("a connection")).collect();
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    assert!(!proxy.log().contains("stopped with"), "{}", proxy.log());
    drop(silent);
}
