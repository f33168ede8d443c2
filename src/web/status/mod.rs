//! The status page: how the cache is doing, for people. One report is collected (`collect.rs`) and shown as
//! HTML at `/status` and as JSON at `/status.json`; `aptmesh status` reads that.

pub(in crate::web) mod collect;
pub(in crate::web) mod html;
mod picture;
pub mod report;
pub(in crate::web) mod sections;
pub(in crate::web) mod trouble;
pub mod words;

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use warp::filters::BoxedFilter;
use warp::{Filter as _, Reply as _};

pub(in crate::web) use self::collect::Collector;

/// What it answers: `/`, `/status`, `/status.js`, `/status.json`.
pub(in crate::web) fn routes(collector: Arc<Collector>) -> BoxedFilter<(warp::reply::Response,)> {
    let collector = warp::any().map(move || Arc::clone(&collector));
    let root = warp::path::end().map(to_page);
    let page = warp::path!("status").and(collector.clone()).then(page);
    let script = warp::path!("status.js").map(script);
    let json = warp::path!("status.json").and(collector).then(json);
    root.or(page).unify().or(script).unify().or(json).unify().boxed()
}

fn to_page() -> warp::reply::Response {
    let mut answer = StatusCode::FOUND.into_response();
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/status"));
    answer
}

async fn page(collector: Arc<Collector>) -> warp::reply::Response {
    let report = collector.report().await;
    let page = html::page("aptmesh status", true, &sections::of(&report));
    let mut answer = Response::new(page.into());
    html::protect(answer.headers_mut());
    answer
}

fn script() -> warp::reply::Response {
    let mut answer = html::SCRIPT.into_response();
    html::protect(answer.headers_mut());
    let kind = HeaderValue::from_static("text/javascript; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

async fn json(collector: Arc<Collector>) -> warp::reply::Response {
    let mut answer = warp::reply::json(&collector.report().await).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
