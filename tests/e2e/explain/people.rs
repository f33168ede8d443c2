//! As people see it: in a browser, and in a terminal.

use super::*;
use crate::status::{GROUND, WIDTH};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

#[test]
fn people_look_it_up_in_a_browser() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, 100)));
    let proxy = Proxy::start();
    fetch(&proxy, &mirror, TOOL);
    let status = get(proxy.admin(), "/status");
    let status = String::from_utf8(status.body).unwrap();
    assert!(status.contains("action=\"/explain\""), "the way to it");
    let url = url_of(&mirror, TOOL);
    let page = get(proxy.admin(), &format!("/explain?url={}", encoded(&url)));
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap().to_owned();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let body = String::from_utf8(page.body).unwrap();
    assert!(body.contains(&url) && body.contains("It would be served from here"), "{body}");
    assert!(body.contains(&sha256_hex(&noise(1, 100))), "{body}");
    let odd = get(
        proxy.admin(),
        &format!("/explain?url={}", encoded("/m.org/<script>alert(1)</script>")),
    );
    assert!(!String::from_utf8(odd.body).unwrap().contains("<script>alert"), "text stays text");
    let told = command(&proxy, &[&url]);
    assert!(told.status.success());
    let told = String::from_utf8(told.stdout).unwrap();
    for words in [url.as_str(), "It would be served from here", "Kind:", "package", "SHA-256:"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let json = command(&proxy, &["--json", &url]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["plan"], "serve");
}

#[test]
fn people_ask_on_the_status_page_with_a_phone_and_in_the_dark() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(TOOL, File::new(noise(1, 100)));
    fetch(&proxy, &mirror, TOOL);
    let mut chromium = Chromium::start();
    let mut grounds = Vec::new();
    for dark in [false, true] {
        chromium.open(&format!("http://{}/status", proxy.admin()), 360, 1200, dark);
        let url = url_of(&mirror, TOOL);
        chromium.evaluate(&format!(
            "document.querySelector('.look-up input').value = '{url}';
             document.querySelector('.look-up button').click()"
        ));
        wait_until(PATIENCE, "the answer", || {
            let text = chromium.text();
            text.contains(&url) && text.contains("It would be served from here")
        });
        assert_eq!(chromium.evaluate("location.pathname"), "/explain");
        assert!(chromium.text().contains(&sha256_hex(&noise(1, 100))), "{}", chromium.text());
        assert_eq!(chromium.evaluate(WIDTH), 360, "something is cut off");
        grounds.push(chromium.evaluate(GROUND));
    }
    assert_ne!(grounds[0], grounds[1]);
    assert!(chromium.complaints().is_empty(), "{:?}", chromium.complaints());
}

/// Something at an admin address that gives one answer.
fn door_that_says(status: &str, body: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let _ = client.read(&mut [0; 4096]).unwrap();
        client.write_all(answer.as_bytes()).unwrap();
    });
    addr
}

#[test]
fn nothing_that_is_told_does_anything_to_a_terminal() {
    let url = "http://m.org/x";
    let is_plain = |text: &[u8]| {
        let text = std::str::from_utf8(text).unwrap();
        !text.chars().any(|letter| letter.is_control() && letter != '\n' || letter == '\u{202e}')
    };
    let refused = command_at(door_that_says("400 x", r#"{"error":"a\u001b[2J\u009b31m"}"#), &[url]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!refused.stderr.is_empty() && is_plain(&refused.stderr), "{refused:?}");
    let hostile = "{\"url\":\"http://m.org/\u{9b}31m\u{202e}\u{7f}\"}";
    for args in [vec![url], vec!["--json", url]] {
        let told = command_at(door_that_says("200 OK", hostile), &args);
        assert!(told.status.success(), "what another version leaves out is no trouble: {told:?}");
        assert!(!told.stdout.is_empty() && is_plain(&told.stdout), "{told:?}");
        if args.len() == 2 {
            let json: Value = serde_json::from_slice(&told.stdout).unwrap();
            assert_eq!(json["url"], "http://m.org/\u{9b}31m\u{202e}\u{7f}", "the same JSON");
        }
    }
}
