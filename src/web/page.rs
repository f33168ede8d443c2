//! What a browser sees at the proxy's root: how it is doing and how to use it. Clients see it: it has key
//! numbers, and nothing of what operators see.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use crate::engine::Engine;
use crate::web::body::Source;
use crate::web::reply::with_payload;
use crate::web::status::collect;
use crate::web::status::html::{self, Html};
use crate::web::status::report::{ByWay, Trouble, Volume};
use crate::web::status::sections::{state, tile};
use crate::web::status::words;

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
    html::protect(fields);
    fields.insert(header::VARY, HeaderValue::from_static("Accept"));
    // Tools that look for a cache ask often: they do not read it.
    let stored = if is_browser { collect::stored(engine).await } else { None };
    let volume = Volume {
        blobs: stored.map(|stored| stored.blobs),
        bytes: stored.map(|stored| stored.bytes),
        ..Volume::default()
    };
    let page = render(engine, &volume, host);
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(page.len()));
    with_payload(answer, Source::Bytes(page.into()))
}

fn render(engine: &Engine, volume: &Volume, host: &str) -> String {
    let (session, all_time) = engine.traffic();
    let (ever, since) = match all_time {
        Some(ever) => (ByWay::from(ever), "since ever"),
        None => (ByWay::from(session), "since the start"),
    };
    let quota = engine.room().limits().quota;
    let quota = quota.map(|quota| format!(" of {}", words::bytes(quota))).unwrap_or_default();
    let files = volume.files();
    let under_way = words::count(engine.flights() as u64);
    let mut page = Html::default();
    page.raw("<header class=\"top\"><h1>aptmesh</h1><span class=\"quiet\">an APT cache, ");
    page.raw(env!("CARGO_PKG_VERSION")).raw("</span></header>\n").add(&state(&troubles(engine)));
    page.raw("<div class=\"card tiles\">\n");
    page.add(&tile("Spared the mirrors", &words::bytes(ever.spared()), since));
    let hit = words::share(ever.from_store, ever.all());
    page.add(&tile("Hit ratio", &hit, &format!("of bytes, {since}")));
    page.add(&tile("Stored", &volume.size(), &format!("{files}{quota}")));
    page.add(&tile("Downloads", &under_way, "under way"));
    page.raw("</div>\n<section>\n<h2>To use it</h2>\n<p>Either put this into <code>");
    page.raw("/etc/apt/apt.conf.d/30aptmesh</code>:</p>\n<pre>Acquire::http::Proxy \"http://");
    page.text(host).raw("\";</pre>\n<p>or write it before the mirror in <code>sources.list");
    page.raw("</code>:</p>\n<pre>deb http://").text(host);
    page.raw("/ftp.debian.org/debian stable main</pre>\n</section>\n");
    page.raw("<p class=\"quiet\">Operators see more at <code>/status</code> on the admin address ");
    page.raw("(<code>listen.admin</code>, port 9978 unless set otherwise).</p>\n");
    html::page("aptmesh", false, &page)
}

/// What is wrong with volume and index: where these are is not for clients.
fn troubles(engine: &Engine) -> Vec<Trouble> {
    let tell = |what: String, means: &str| Trouble { what, means: means.to_owned() };
    let store = engine.store_trouble().map(|_| {
        tell("Not storing".to_owned(), "apt gets everything, but new files are not kept.")
    });
    let index = engine.index_trouble().map(|why| {
        tell(format!("Without its index: {why}"), "apt gets everything, some of it again.")
    });
    store.into_iter().chain(index).collect()
}
