//! A scriptable HTTP/1.1 origin: correct by default, wrong on demand, and it
//! remembers everything that it was asked.

mod answer;
mod asked;
mod fault;
mod file;
mod seen;
mod send;
mod wire;

pub use fault::Fault;
pub use file::File;
pub use seen::Seen;

use super::ca::Ca;
use super::door::Door;
use answer::Answer;
use asked::{Asked, path_of};
use rustls::ServerConfig;
use seen::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::Wire;

/// A mirror on a loopback address, with a thread for each connection.
pub struct Mirror {
    addr: SocketAddr,
    shelf: Arc<Shelf>,
    door: Mutex<Option<Door>>,
}

/// What a request, named by its path, changes: files that are put.
type Hook = Box<dyn FnMut(&str) -> Vec<(String, File)> + Send>;

/// What the connections share. Paths are kept decoded and without query.
#[derive(Default)]
struct Shelf {
    tls: Option<Arc<ServerConfig>>,
    files: Mutex<HashMap<String, File>>,
    scripts: Mutex<HashMap<String, VecDeque<Fault>>>,
    log: Mutex<Vec<Arc<Entry>>>,
    hook: Mutex<Option<Hook>>,
    line: send::Line,
    hangs_up: AtomicBool,
    connections: AtomicUsize,
}

impl Mirror {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// On another loopback address, to be another host to the proxy.
    pub fn start_at(ip: &str) -> Self {
        Self::open(ip, None)
    }

    /// Speaks TLS as 127.0.0.1 and localhost.
    pub fn start_tls(ca: &Ca) -> Self {
        Self::open("127.0.0.1", Some(ca.server_config(&[])))
    }

    fn open(ip: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let ip: IpAddr = ip.parse().expect("an IP address");
        let shelf = Arc::new(Shelf { tls, ..Shelf::default() });
        let door = open_door((ip, 0).into(), &shelf);
        Self { addr: door.addr(), shelf, door: Mutex::new(Some(door)) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as it is written in a URL.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Serves `file` at `path`; answers under way keep the old content.
    pub fn put(&self, path: &str, file: File) {
        self.shelf.put(path, file);
    }

    /// Another word for `put`, where a test replaces what was there.
    pub fn replace(&self, path: &str, file: File) {
        self.put(path, file);
    }

    /// All that it sends shares a line of this speed from now on.
    pub fn limit(&self, bytes_per_second: u64) {
        self.shelf.line.limit(bytes_per_second);
    }

    /// 404 from here on.
    pub fn remove(&self, path: &str) {
        self.shelf.files.lock().unwrap().remove(&path_of(path));
    }

    /// Calls `hook` with the path of each request before it is answered, and puts what it returns,
    /// in that order. One request at a time.
    pub fn before_each(&self, hook: impl FnMut(&str) -> Vec<(String, File)> + Send + 'static) {
        *self.shelf.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// What happens to the next requests of `path`, one fault each; added to
    /// what is still to come.
    pub fn script(&self, path: &str, faults: Vec<Fault>) {
        let mut scripts = self.shelf.scripts.lock().unwrap();
        scripts.entry(path_of(path)).or_default().extend(faults);
    }

    /// Forgets what was still to happen to requests of `path`.
    pub fn heal(&self, path: &str) {
        self.shelf.scripts.lock().unwrap().remove(&path_of(path));
    }

    /// Every request so far, in order of arrival.
    pub fn log(&self) -> Vec<Seen> {
        let log = self.shelf.log.lock().unwrap();
        log.iter().map(|entry| entry.seen()).collect()
    }

    /// The requests for one path, with whatever query or escapes.
    pub fn requests(&self, path: &str) -> Vec<Seen> {
        let path = path_of(path);
        let log = self.shelf.log.lock().unwrap();
        log.iter().filter(|entry| entry.path == path).map(|entry| entry.seen()).collect()
    }

    /// How often the content of `path` was sent, in whole or in part.
    pub fn bodies(&self, path: &str) -> usize {
        self.requests(path)
            .iter()
            .filter(|seen| seen.body_begun && matches!(seen.status, 200 | 206))
            .count()
    }

    /// Body bytes sent for `path`, of all its answers.
    pub fn bytes(&self, path: &str) -> u64 {
        self.requests(path).iter().map(|seen| seen.body_bytes).sum()
    }

    pub fn clear_log(&self) {
        self.shelf.log.lock().unwrap().clear();
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shelf.connections.load(Ordering::SeqCst)
    }

    /// From here on, or not any more: hangs up on whoever comes, and logs nothing.
    pub fn hang_up(&self, on: bool) {
        self.shelf.hangs_up.store(on, Ordering::SeqCst);
    }

    /// Cuts all connections and refuses new ones.
    pub fn stop(&self) {
        self.door.lock().unwrap().take();
    }

    /// Listens again where it did before; does nothing while it is running.
    pub fn restart(&self) {
        let mut door = self.door.lock().unwrap();
        if door.is_none() {
            *door = Some(open_door(self.addr, &self.shelf));
        }
    }
}

fn open_door(addr: SocketAddr, shelf: &Arc<Shelf>) -> Door {
    let shelf = shelf.clone();
    Door::open(addr, move |stream| {
        shelf.connections.fetch_add(1, Ordering::SeqCst);
        shelf.serve(stream);
    })
}

impl Shelf {
    fn put(&self, path: &str, file: File) {
        self.files.lock().unwrap().insert(path_of(path), file);
    }

    fn call_hook(&self, path: &str) {
        // Held to the end: what two requests change must not be mixed up.
        let mut hook = self.hook.lock().unwrap();
        for (path, file) in hook.as_mut().map(|hook| hook(path)).unwrap_or_default() {
            self.put(&path, file);
        }
    }

    /// Answers the requests of one connection in order.
    fn serve(&self, stream: TcpStream) {
        let mut wire = BufReader::new(Wire::new(stream, self.tls.as_ref()));
        while let Ok(Some(asked)) = Asked::read(&mut wire) {
            if self.hangs_up.load(Ordering::SeqCst) {
                break;
            }
            let entry = Arc::new(Entry::new(&asked));
            self.log.lock().unwrap().push(entry.clone());
            self.call_hook(&entry.path);
            let on = match self.answer(&asked, &entry.path) {
                None => false,
                Some(answer) => {
                    let close = asked.wants_close();
                    send::send(wire.get_mut(), &answer, &entry, &self.line, close).unwrap_or(false)
                }
            };
            entry.close();
            if !on {
                break;
            }
        }
        wire.get_mut().close();
    }

    /// The answer to a request, or `None` to hang up.
    fn answer(&self, asked: &Asked, path: &str) -> Option<Answer> {
        let file = self.files.lock().unwrap().get(path).cloned();
        let correct = match file {
            None => Answer::status(404),
            Some(_) if !matches!(asked.method.as_str(), "GET" | "HEAD") => Answer::status(405),
            Some(file) => Answer::for_file(&file, asked),
        };
        with_fault(correct, self.next_fault(path))
    }

    fn next_fault(&self, path: &str) -> Fault {
        let mut scripts = self.scripts.lock().unwrap();
        scripts.get_mut(path).and_then(VecDeque::pop_front).unwrap_or(Fault::None)
    }
}

fn redirect(status: u16, location: &str) -> Answer {
    let mut answer = Answer::status(status);
    answer.set("Location", location);
    answer
}

fn with_fault(mut answer: Answer, fault: Fault) -> Option<Answer> {
    match fault {
        Fault::None => {}
        Fault::Status(status) => return Some(Answer::status(status)),
        Fault::Cut { after } => answer.cut = Some((after, Duration::ZERO)),
        Fault::Stall { after, for_ } => answer.cut = Some((after, for_)),
        Fault::StallHead(silence) => answer.head_delay += silence,
        Fault::Trickle { bytes_per_second } => answer.rate = Some(bytes_per_second),
        Fault::Redirect(location) => return Some(redirect(302, &location)),
        Fault::RedirectAs(status, location) => return Some(redirect(status, &location)),
        Fault::WrongLength { declared } => answer.declared = Some(declared),
        Fault::Html => {
            let page = "<!DOCTYPE html><title>Welcome</title><p>Please log in.</p>\n";
            return Some(Answer::page(200, "text/html; charset=utf-8", page));
        }
        Fault::Refuse => return None,
    }
    Some(answer)
}
