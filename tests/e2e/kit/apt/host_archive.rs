//! The real archives that the machine's own apt is configured with.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

/// One source of the machine: a suite and component of an http archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `http://HOST/path`
    pub uri: String,
    pub suite: String,
    pub component: String,
    /// The key file, where the source names one.
    pub signed_by: Option<String>,
}

/// Found instead of written down: a test names no mirror, it uses the one
/// that is known to work for this machine.
#[derive(Clone, Debug)]
pub struct HostArchive {
    pub entries: Vec<Entry>,
}

const FORMAT: &str = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(SOURCESENTRY)";

impl HostArchive {
    /// Panics where the machine has no apt or no http archive.
    pub fn read() -> Self {
        let listed = Command::new("apt-get")
            .args(["indextargets", "--format", FORMAT, "Created-By: Packages"])
            .env("LC_ALL", "C")
            .output()
            .expect("this test needs apt-get on the machine");
        let text = String::from_utf8_lossy(&listed.stdout);
        let mut entries: Vec<Entry> = Vec::new();
        for entry in text.lines().filter_map(parse) {
            // The same source is listed once for each architecture.
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        assert!(
            !entries.is_empty(),
            "this test needs an archive with an http:// address in the apt sources \
             of the machine; apt-get indextargets says: {text}{}",
            String::from_utf8_lossy(&listed.stderr)
        );
        Self { entries }
    }

    /// Sources that go straight to the archive.
    pub fn lines_direct(&self) -> String {
        self.lines(str::to_owned)
    }

    /// Sources that name the cache, and the archive in its path.
    pub fn lines_prefix(&self, cache: SocketAddr) -> String {
        self.lines(|uri| format!("http://{cache}/{}", uri.trim_start_matches("http://")))
    }

    fn lines(&self, address: impl Fn(&str) -> String) -> String {
        let line = |entry: &Entry| {
            let options = match &entry.signed_by {
                Some(keys) => format!("[signed-by={keys}] "),
                None => String::new(),
            };
            let uri = address(&entry.uri);
            format!("deb {options}{uri} {} {}\n", entry.suite, entry.component)
        };
        self.entries.iter().map(line).collect()
    }

    /// The hosts of the archives, each of them once.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = self
            .entries
            .iter()
            .filter_map(|entry| entry.uri.split('/').nth(2).map(str::to_owned))
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

/// One line of the listing; `None` for what is not an http archive. A
/// variable without a value may be empty or stand there as it is.
fn parse(line: &str) -> Option<Entry> {
    let mut fields = line
        .split('|')
        .map(|field| (!field.is_empty() && !field.starts_with("$(")).then_some(field));
    let mut next = || fields.next().flatten().map(str::to_owned);
    let (uri, suite, component, keys, source) = (next(), next(), next(), next(), next());
    Some(Entry {
        uri: uri.filter(|uri| uri.starts_with("http://"))?,
        suite: suite?,
        component: component?,
        signed_by: keys.or_else(|| keys_of_source(&source?)),
    })
}

/// The key file of a source, looked up where the source is written (`FILE:N`):
/// not every apt tells it in its listing.
fn keys_of_source(source: &str) -> Option<String> {
    let (file, number) = source.rsplit_once(':')?;
    let index = number.parse::<usize>().ok()?.checked_sub(1)?;
    let text = fs::read_to_string(file).ok()?;
    let keys = if file.ends_with(".sources") {
        // N counts the paragraphs of the file.
        let mut paragraphs = text.split("\n\n").filter(|p| p.contains("URIs:"));
        let mut lines = paragraphs.nth(index)?.lines();
        lines.find_map(|line| line.strip_prefix("Signed-By:"))?
    } else {
        // N counts the lines of the file.
        let (options, _) = text.lines().nth(index)?.split_once('[')?.1.split_once(']')?;
        let mut options = options.split_whitespace();
        options.find_map(|option| option.strip_prefix("signed-by="))?
    };
    // A key written out in the source itself has no path to refer to.
    Some(keys.trim().to_owned()).filter(|keys| keys.starts_with('/'))
}
