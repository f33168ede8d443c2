//! What other sites and this site's node may answer, and what is taken of it.

mod kit;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aptmesh::content::digest::Sha256;
use aptmesh::content::swarm_key::SwarmKey;
use aptmesh::swarm::discovery::{Discovery as _, Holder};
use aptmesh::swarm::peers::{Peers, Refused};
use aptmesh::swarm::sidecar::Sidecar;
use aptmesh::telemetry::metrics::Metrics;
use kit::door::Door;
use prometheus::IntCounter;
use tokio_util::task::TaskTracker;

/// A site that says that, whatever it is asked, and then nothing for a while.
struct Site {
    door: Door,
    /// Heads of requests.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn says(answer: impl Into<String>) -> Self {
        let (answer, asked) = (answer.into(), Arc::<Mutex<Vec<String>>>::default());
        let seen = Arc::clone(&asked);
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let door = Door::open(here, move |stream| serve(&stream, &answer, &seen));
        Self { door, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.door.addr())
    }

    fn holder(&self) -> Holder {
        holder(&[&self.url()])
    }
}

fn serve(mut stream: &TcpStream, answer: &str, seen: &Mutex<Vec<String>>) {
    let mut head = String::new();
    let mut lines = BufReader::new(stream);
    while lines.read_line(&mut head).is_ok_and(|count| count > 2) {}
    seen.lock().unwrap().push(head);
    let (answer, is_over) = match answer.strip_suffix("(closes)") {
        Some(answer) => (answer, true),
        None => (answer, false),
    };
    if stream.write_all(answer.as_bytes()).is_ok() && !is_over {
        std::thread::sleep(Duration::from_secs(10));
    }
}

fn holder(urls: &[&str]) -> Holder {
    let urls: Vec<Arc<str>> = urls.iter().map(|url| (*url).into()).collect();
    Holder { node: "node".into(), urls: urls.into() }
}

fn peers() -> Peers {
    // Others may have done so in the same process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let received = IntCounter::new("received", "Bytes.").unwrap();
    let loopback = ["127.0.0.0/8".parse().unwrap()];
    Peers::new(&SwarmKey::new([1; 32]), &loopback, received, &Metrics::default()).unwrap()
}

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(what)
}

/// All bytes of a range, and the size of the whole.
async fn fetch(
    peers: &Peers,
    holder: &Holder,
    range: Range<u64>,
) -> Result<(String, Option<u64>), Refused> {
    let mut body = peers.fetch(holder, &Sha256::of(b"blob"), range).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await.map_err(Refused::Failed)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok((String::from_utf8(bytes).unwrap(), body.whole()))
}

#[test]
fn what_was_asked_for_is_taken_and_nothing_else() {
    const END: u64 = u64::MAX;
    let partial = |range: &str, rest: &str| {
        format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}\r\n{rest}")
    };
    let cases = [
        ("a part", partial("2-4/9", "Content-Length: 3\r\n\r\ncde"), 2..5, Some(("cde", Some(9)))),
        (
            "the rest",
            partial("6-8/9", "Content-Length: 3\r\n\r\nghi"),
            6..END,
            Some(("ghi", Some(9))),
        ),
        ("less", partial("6-8/9", "Content-Length: 3\r\n\r\nghi"), 6..20, Some(("ghi", Some(9)))),
        (
            "of an unknown whole",
            partial("2-4/*", "Content-Length: 3\r\n\r\ncde"),
            2..5,
            Some(("cde", None)),
        ),
        (
            "all",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            0..3,
            Some(("abc", Some(3))),
        ),
        ("more", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd".to_owned(), 0..3, None),
        (
            "the whole instead of a part",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcdefghi".to_owned(),
            2..5,
            None,
        ),
        ("another part", partial("3-5/9", "Content-Length: 3\r\n\r\ndef"), 2..5, None),
        ("a longer part", partial("2-5/9", "Content-Length: 4\r\n\r\ncdef"), 2..5, None),
        (
            "no range",
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\ncde".to_owned(),
            2..5,
            None,
        ),
        (
            "more than it says",
            partial("2-4/9", "Transfer-Encoding: chunked\r\n\r\n4\r\ncdef\r\n0\r\n\r\n"),
            2..5,
            None,
        ),
        (
            "without end",
            partial("2-4/9", "Transfer-Encoding: chunked\r\n\r\n3\r\ncde\r\n3\r\nfgh\r\n"),
            2..5,
            None,
        ),
        (
            "less than it says",
            partial("2-4/9", "Transfer-Encoding: chunked\r\n\r\n2\r\ncd\r\n0\r\n\r\n"),
            2..5,
            None,
        ),
        ("cut", partial("2-4/9", "Content-Length: 3\r\n\r\ncd(closes)"), 2..5, None),
        ("silence", partial("2-4/9", "Content-Length: 3\r\n\r\ncd"), 2..5, None),
        ("no answer", String::new(), 2..5, None),
        (
            "a way elsewhere",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
            2..5,
            None,
        ),
        ("no token", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned(), 2..5, None),
    ];
    run(async {
        let peers = peers();
        for (name, answer, range, wanted) in cases {
            let site = Site::says(answer);
            let fetched = fetch(&peers, &site.holder(), range).await;
            let wanted = wanted.map(|(bytes, whole)| (bytes.to_owned(), whole));
            match fetched {
                Err(Refused::Failed(_)) => assert_eq!(wanted, None, "{name}"),
                fetched => assert_eq!(fetched.ok(), wanted, "{name}"),
            }
        }
    });
}

#[test]
fn a_site_says_why_it_gives_nothing() {
    let refusal = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    let busy = |seconds| Refused::Busy(Duration::from_secs(seconds));
    let cases = [
        (refusal("404 Not Found"), Refused::Absent),
        (refusal("503 Busy"), busy(1)),
        (refusal("503 Busy\r\nRetry-After: 7"), busy(7)),
        (refusal("503 Busy\r\nRetry-After: 86400"), busy(30)),
        (refusal("503 Busy\r\nRetry-After: 1\r\nAptmesh-Have: 42"), Refused::NotYet { have: 42 }),
    ];
    run(async {
        let peers = peers();
        for (answer, wanted) in cases {
            let site = Site::says(answer.clone());
            assert_eq!(fetch(&peers, &site.holder(), 0..9).await, Err(wanted), "{answer}");
        }
    });
}

#[test]
fn a_site_is_asked_where_it_was_reached_and_shown_a_token() {
    let closed = Site::says("");
    let shut = closed.url();
    drop(closed);
    let answer = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/9\r\n\
                  Last-Modified: Tue, 02 Jan 2024 00:00:00 GMT\r\nAptmesh-Have: 5\r\n\
                  Content-Length: 3\r\n\r\ncde(closes)";
    let site = Site::says(answer);
    let both = holder(&[&shut, &format!("{}/", site.url())]);
    run(async {
        let peers = peers();
        let body = peers.fetch(&both, &Sha256::of(b"blob"), 2..5).await.unwrap();
        assert_eq!(body.have(), Some(5));
        assert_eq!(body.validators().last_modified, Some(1_704_153_600));
    });
    let asked = site.asked.lock().unwrap().pop().unwrap().to_lowercase();
    let path = format!("get /blob/sha256/{} http/1.1\r\n", Sha256::of(b"blob"));
    assert!(asked.starts_with(&path), "{asked}");
    assert!(asked.contains("\r\nrange: bytes=2-4\r\n"), "{asked}");
    assert!(asked.contains("\r\nauthorization: aptmesh "), "{asked}");
}

/// An answer of the node's API.
fn found(urls: &[&str]) -> String {
    let peers: Vec<String> = urls
        .iter()
        .map(|url| format!(r#"{{"node":"{url}","urls":["{url}"],"filter":1}}"#))
        .collect();
    let body = format!(r#"{{"node":"me","peers":[{}]}}"#, peers.join(","));
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}(closes)", body.len())
}

fn sidecar(node: &Site) -> (Arc<Sidecar>, TaskTracker) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tasks = TaskTracker::new();
    let api = node.url().parse().unwrap();
    (Sidecar::start(&api, &Metrics::default(), &tasks).unwrap(), tasks)
}

#[test]
fn who_asks_for_the_same_at_a_time_shares_one_look_up() {
    const BUDGET: Duration = Duration::from_secs(5);
    let (nobody, somebody) = (found(&[]), found(&["http://192.0.2.1:9979"]));
    for (answer, holders) in [(nobody, 0), (somebody, 1)] {
        let node = Site::says(answer);
        run(async {
            let (sidecar, _tasks) = sidecar(&node);
            let blob = Sha256::of(b"blob");
            let asked = (0..100).map(|_| sidecar.look_up(&blob, BUDGET));
            let found = futures_util::future::join_all(asked).await;
            assert!(found.iter().all(|found| found.len() == holders), "{found:?}");
            assert_eq!(node.asked.lock().unwrap().len(), 1);
            sidecar.look_up(&Sha256::of(b"another"), BUDGET).await;
            assert_eq!(node.asked.lock().unwrap().len(), 2);
            tokio::time::sleep(Duration::from_millis(5_100)).await;
            sidecar.look_up(&blob, BUDGET).await;
            assert_eq!(node.asked.lock().unwrap().len(), 3, "it may be another by now");
        });
    }
}

#[test]
fn what_a_node_tells_is_bounded() {
    let many: Vec<String> = (0..100).map(|number| format!("http://192.0.2.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = format!("http://{}", "x".repeat(300));
    for (told, holders) in [(&many[..], 32), (&[long.as_str()], 0), (&["http://a", "http://b"], 2)]
    {
        let node = Site::says(found(told));
        run(async {
            let (sidecar, _tasks) = sidecar(&node);
            let found = sidecar.look_up(&Sha256::of(b"blob"), Duration::from_secs(5)).await;
            assert_eq!(found.len(), holders);
        });
    }
}
