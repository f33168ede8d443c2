//! A network of this test's own: machines with addresses of their own on one switch, each of which can be
//! cut off. The test itself is on it, too. Takes root, as on a machine for tests.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Networks of this process so far.
static LANS: AtomicU32 = AtomicU32::new(0);

/// Numbers of machines' hidden addresses begin there.
const HIDDEN: u32 = 125;

/// In the switch's namespace: the bridge, and the end of the test's own cable.
const BRIDGE: &str = "bridge";
const OWN: &str = "own";

/// The switch: a bridge in a namespace of its own, where the machine's firewall, such as that of a Docker
/// engine, does not see what passes.
pub struct Lan {
    /// Of the namespace, and of the test's end of its cable.
    name: String,
    /// `10.X.Y`
    prefix: String,
    hosts: AtomicU32,
}

/// A machine on it.
pub struct Host {
    /// Its address.
    pub ip: String,
    /// Of its namespace, and of the switch's end of its cable.
    name: String,
    switch: String,
}

impl Lan {
    pub fn new() -> Self {
        let number = std::process::id().wrapping_mul(7) + LANS.fetch_add(1, Ordering::Relaxed);
        let name = format!("am{:x}", number % 0xffff);
        let prefix = format!("10.{}.{}", 128 + number / 250 % 100, number % 250);
        ip(&["netns", "add", &name]);
        let lan = Self { name, prefix, hosts: AtomicU32::new(0) };
        ip(&["-n", &lan.name, "link", "add", BRIDGE, "type", "bridge"]);
        ip(&["-n", &lan.name, "link", "set", BRIDGE, "up"]);
        ip(&["link", "add", &lan.name, "type", "veth", "peer", "name", OWN, "netns", &lan.name]);
        ip(&["-n", &lan.name, "link", "set", OWN, "master", BRIDGE, "up"]);
        ip(&["address", "add", &format!("{}/24", lan.own_ip()), "dev", &lan.name]);
        ip(&["link", "set", &lan.name, "up"]);
        lan
    }

    /// Has room for so many machines that all talk with each other. The kernel counts all of their
    /// neighbours together, and forgets some when there are too many: 1,024, unless it is told otherwise.
    pub fn make_room(&self, machines: u32) {
        let file = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";
        let most: u32 = fs::read_to_string(file).unwrap().trim().parse().expect("a number");
        let wanted = 4 * machines * machines;
        if most < wanted {
            fs::write(file, wanted.to_string()).expect("root's rights");
            fs::write(file.replace('3', "2"), (wanted / 2).to_string()).expect("root's rights");
        }
    }

    /// Where the test itself is.
    pub fn own_ip(&self) -> String {
        format!("{}.254", self.prefix)
    }

    /// All of it.
    pub fn network(&self) -> String {
        format!("{}.0/24", self.prefix)
    }

    pub fn host(&self) -> Host {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number < 250, "the switch has no more places");
        let name = format!("{}-{number}", self.name);
        ip(&["netns", "add", &name]);
        let ip_of_host = format!("{}.{number}", self.prefix);
        let host = Host { ip: ip_of_host, name, switch: self.name.clone() };
        let Host { ip: address, name, switch } = &host;
        let cable = ["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name];
        ip(&[&["-n", switch][..], &cable].concat());
        ip(&["-n", switch, "link", "set", name, "master", BRIDGE, "up"]);
        ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        host
    }
}

impl Host {
    /// What runs a program there: to be put before it.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Another address of it, at which no other machine finds it: whoever tries hears nothing, as of one
    /// behind a router that translates addresses. What it dials itself it reaches.
    pub fn hide(&self) -> String {
        let (network, number) = self.ip.rsplit_once('.').expect("an address");
        let number: u32 = number.parse().expect("a number");
        assert!(number < HIDDEN, "the switch has no more such places");
        let hidden = format!("{network}.{}", number + HIDDEN);
        ip(&["-n", &self.name, "address", "add", &format!("{hidden}/32"), "dev", "lo"]);
        // It does not tell on the switch that it has that address.
        let silent = "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore";
        ip(&["netns", "exec", &self.name, "sh", "-c", silent]);
        hidden
    }

    /// Nothing passes to it or from it any more.
    pub fn cut(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.name, "down"]);
    }

    pub fn heal(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.name, "up"]);
    }

    /// What it sends to the other one is lost on the way, without a word.
    pub fn lose(&self, other: &Host) {
        // As if that were a machine that nobody has.
        let nobody = ["lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"];
        ip(&[&["-n", &self.name, "neigh", "replace", &other.ip][..], &nobody].concat());
    }

    /// After [`Host::lose`]: it gets there again.
    pub fn find(&self, other: &Host) {
        ip(&["-n", &self.name, "neigh", "delete", &other.ip, "dev", "eth0"]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its end of the cable goes with it.
        run(&["netns", "delete", &self.name]);
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // With the bridge and all cables.
        run(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) {
    let told = run(arguments);
    assert!(told.is_empty(), "ip {}: {told}", arguments.join(" "));
}

/// What it has to complain of.
fn run(arguments: &[&str]) -> String {
    let ran = Command::new("ip").args(arguments).output().expect("the program ip (iproute2)");
    String::from_utf8_lossy(&ran.stderr).into_owned()
}
