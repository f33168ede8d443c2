//! What a browser sees at the proxy's root: how it is doing and how to use it.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use crate::engine::Engine;
use crate::index::{Volume, budget};
use crate::web::body::Source;
use crate::web::reply::with_payload;

/// The page. Tools that look for a cache (auto-apt-proxy) know one by the status 406 here, so only
/// a browser, which asks for HTML, gets 200.
pub(super) async fn front(engine: &Engine, headers: &HeaderMap) -> warp::reply::Response {
    let is_browser = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    let host =
        headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("CACHE:9977");
    let mut answer = Response::new(());
    *answer.status_mut() = if is_browser { StatusCode::OK } else { StatusCode::NOT_ACCEPTABLE };
    let fields = answer.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    fields.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    fields.insert(header::VARY, HeaderValue::from_static("Accept"));
    // Tools that look for a cache ask often: they do not read it.
    let stored = if is_browser {
        budget::waited_for(engine.room().volume()).await
    } else {
        Volume::default()
    };
    let page = render(engine, stored, &escape(host));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(page.len()));
    with_payload(answer, Source::Bytes(page.into()))
}

fn render(engine: &Engine, stored: Volume, host: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let storing = engine.store_trouble().map(|why| format!("Trouble: {}.", escape(&why)));
    let index = engine.index_trouble().map(|why| format!("Without its index: {why}."));
    let state = match (storing, index) {
        (None, None) => "All is well.".to_owned(),
        (storing, index) => storing.into_iter().chain(index).collect::<Vec<_>>().join(" "),
    };
    let quota = engine.room().limits().quota;
    let quota = quota.map(|quota| format!(" of {}", quota / 1_000_000)).unwrap_or_default();
    let stored = format!("{} files, {}{quota} MB", stored.blobs, stored.bytes / 1_000_000);
    let flights = engine.flights();
    format!(
        "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>aptmesh</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; }}
</style>
<h1>aptmesh {version}</h1>
<p>An APT cache. {state}</p>
<p>Stored: {stored}. Downloads under way: {flights}.</p>
<p>To use it, either put this into <code>/etc/apt/apt.conf.d/30aptmesh</code>:</p>
<pre>Acquire::http::Proxy \"http://{host}\";</pre>
<p>or write it before the mirror in <code>sources.list</code>:</p>
<pre>deb http://{host}/ftp.debian.org/debian stable main</pre>
"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
