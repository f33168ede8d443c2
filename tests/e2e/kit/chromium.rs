//! Debian's Chromium without a screen: what a page looks like, says and complains of.
//!
//! It is spoken to in the DevTools protocol over a pair of pipes, of JSON messages that end in a NUL.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// For anything that it is asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// It asks nobody but who is named.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];
/// The protocol's descriptors are 3, to it, and 4, from it.
const PIPED: &str = "exec 3<&0 4>&1 </dev/null >/dev/null; exec chromium \"$@\"";

/// A browser with one page, on a profile of its own. It is killed when it is dropped.
pub struct Chromium {
    browser: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    /// Of the page; empty before there is one.
    session: String,
    asked: u64,
    complaints: Vec<String>,
    profile: TempDir,
}

/// A picture of a page, as [`Chromium::open`] and [`Chromium::screenshot`] make it.
pub fn screenshot(address: &str, width: u32, height: u32, dark: bool, path: &Path) {
    let mut chromium = Chromium::start();
    chromium.open(address, width, height, dark);
    chromium.screenshot(path);
}

impl Chromium {
    pub fn start() -> Self {
        let profile = TempDir::new().expect("a folder");
        let mut browser = Command::new("sh")
            .args(["-c", PIPED, "sh"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            // Its crash reports and caches go there, too.
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(profile.path().join("log")).expect("a log"))
            .spawn()
            .expect("a shell");
        let to = browser.stdin.take().expect("a pipe");
        let from = messages(browser.stdout.take().expect("a pipe"));
        let (session, complaints) = (String::new(), Vec::new());
        let mut chromium = Self { browser, to, from, session, asked: 0, complaints, profile };
        let page = chromium.call("Target.createTarget", json!({ "url": "about:blank" }));
        let wanted = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = chromium.call("Target.attachToTarget", wanted);
        chromium.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Log", "Runtime"] {
            chromium.call(&format!("{domain}.enable"), json!({}));
        }
        chromium
    }

    /// Shows a page, in a window of this size and with a preference for light or dark, and waits until it is loaded.
    pub fn open(&mut self, address: &str, width: u32, height: u32, dark: bool) {
        self.resize(width, height);
        self.prefer(dark);
        let gone_to = self.call("Page.navigate", json!({ "url": address }));
        assert!(gone_to["errorText"].is_null(), "{address}: {}", gone_to["errorText"]);
        super::wait_until(PATIENCE, address, || {
            self.evaluate("document.readyState") == "complete"
                && self.evaluate("location.href") != "about:blank"
        });
    }

    /// Pages run none of theirs from now on.
    pub fn disable_scripts(&mut self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    }

    /// Of the window, in pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub fn prefer(&mut self, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// The value of an expression of JavaScript, evaluated by the page's side of the protocol, whatever the page's own
    /// policy says of scripts.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let wanted =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", wanted);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// What a person reads: nothing while a page is loaded.
    pub fn text(&mut self) -> String {
        let text = "document.body ? document.body.innerText : ''";
        self.evaluate(text).as_str().expect("text").to_owned()
    }

    /// As it is now, scripts' doing included.
    pub fn html(&mut self) -> String {
        self.evaluate("document.documentElement.outerHTML").as_str().expect("HTML").to_owned()
    }

    /// What the console has: broken policies, missing parts, errors of scripts.
    pub fn complaints(&mut self) -> &[String] {
        // Whatever happened before this has been told before its answer.
        self.evaluate("0");
        &self.complaints
    }

    /// A PNG of the window.
    pub fn screenshot(&mut self, path: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let bytes = base64(shot["data"].as_str().expect("a picture"));
        fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut message = json!({ "id": self.asked, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let sent = self.to.write_all(format!("{message}\0").as_bytes());
        sent.unwrap_or_else(|error| panic!("{method}: {error}\n{}", self.log()));
        loop {
            let told = self.from.recv_timeout(PATIENCE);
            let told = told.unwrap_or_else(|error| panic!("{method}: {error}\n{}", self.log()));
            if told["id"] == self.asked {
                assert!(told["error"].is_null(), "{method}: {}", told["error"]);
                return told["result"].clone();
            }
            self.complaints.extend(complaint(&told));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.profile.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        drop(self.browser.kill());
        drop(self.browser.wait());
    }
}

/// What it says, until it ends.
fn messages(from: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { break };
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    receiver
}

fn complaint(told: &Value) -> Option<String> {
    let told = match told["method"].as_str()? {
        "Log.entryAdded" => &told["params"]["entry"]["text"],
        "Runtime.exceptionThrown" => &told["params"]["exceptionDetails"],
        _ => return None,
    };
    Some(told.as_str().map_or_else(|| told.to_string(), str::to_owned))
}

/// RFC 4648 §4.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64"),
    };
    let letters: Vec<u8> = text.trim_end_matches('=').bytes().map(value).collect();
    letters
        .chunks(4)
        .flat_map(|four| {
            let bits =
                (0..4).fold(0, |bits, at| bits << 6 | u32::from(*four.get(at).unwrap_or(&0)));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}
