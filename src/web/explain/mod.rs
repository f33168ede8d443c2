//! `explain`: what the cache knows of a resource, and what it would do now. As a page for people at `/explain`,
//! as JSON at `/explain.json`; `aptmesh explain` reads that.

pub mod report;
mod would;

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde::Deserialize;
use warp::filters::BoxedFilter;
use warp::{Filter as _, Reply as _};

use crate::archive::target::{Target, TargetError};
use crate::engine::Engine;
use crate::web::explain::report::Report;
use crate::web::status::html::{self, Html};

/// Who explains.
pub(in crate::web) struct Explainer {
    engine: Arc<Engine>,
    /// Ports at which clients reach this cache.
    ports: Vec<u16>,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    url: String,
}

impl Explainer {
    pub(in crate::web) fn new(engine: Arc<Engine>, ports: Vec<u16>) -> Arc<Self> {
        Arc::new(Self { engine, ports })
    }

    /// What it answers: `/explain`, `/explain.json`.
    pub(in crate::web) fn routes(self: Arc<Self>) -> BoxedFilter<(warp::reply::Response,)> {
        let explainer = warp::any().map(move || Arc::clone(&self));
        let page = warp::path!("explain").and(warp::query()).and(explainer.clone()).then(page);
        let json = warp::path!("explain.json").and(warp::query()).and(explainer).then(json);
        page.or(json).unify().boxed()
    }

    async fn report(&self, asked: &Asked) -> Result<Report, &'static str> {
        let target = target_of(&asked.url, &self.ports)?;
        Ok(self.engine.explain(target).await.into())
    }
}

/// What a person means who writes this: a URL, or what a client would write to the cache.
fn target_of(text: &str, ports: &[u16]) -> Result<Target, &'static str> {
    // A form's plus is a space; no URL has one.
    let text = text.trim().replace(' ', "+");
    if text.is_empty() {
        return Err("say what: /explain?url=http://HOST/PATH");
    }
    let target = match (through_cache(&text, ports), text.contains("://")) {
        (Some(path), _) => Target::from_prefix(path),
        (None, true) => Target::from_absolute(&text),
        (None, false) => Target::from_prefix(&text),
    };
    target.map_err(|error| match error {
        TargetError::TooLong => "that is too long for a URL",
        // What was written may hold a password.
        TargetError::Host(_) => {
            "that names no mirror: write http://HOST/PATH, or /HOST/PATH as clients do"
        }
        TargetError::Scheme(_) => "only http and https are fetched",
        TargetError::Path(_) => "that is no path of an archive",
    })
}

/// What follows `http://CACHE:PORT`, if it is a mirror's name and a path.
fn through_cache<'a>(text: &'a str, ports: &[u16]) -> Option<&'a str> {
    let (authority, path) = text.strip_prefix("http://")?.split_once('/')?;
    let (_, port) = authority.rsplit_once(':')?;
    let is_ours = port.parse().is_ok_and(|port| ports.contains(&port));
    // One that is an archive's own name of this cache, as `HTTPS` is, is a path to it.
    (is_ours && path.trim_start_matches('/').contains('/')).then_some(path)
}

async fn json(asked: Asked, explainer: Arc<Explainer>) -> warp::reply::Response {
    let mut answer = match explainer.report(&asked).await {
        Ok(report) => warp::reply::json(&report).into_response(),
        Err(why) => {
            let why = warp::reply::json(&serde_json::json!({ "error": why }));
            warp::reply::with_status(why, StatusCode::BAD_REQUEST).into_response()
        }
    };
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

async fn page(asked: Asked, explainer: Arc<Explainer>) -> warp::reply::Response {
    let (mut content, mut status) = (Html::default(), StatusCode::OK);
    content.raw("<header class=\"top\"><h1>aptmesh</h1><span class=\"quiet\">");
    content.raw(
        "what it knows of a file, <a href=\"/status\">back to its status</a></span></header>\n",
    );
    content.add(&form());
    if !asked.url.is_empty() {
        match explainer.report(&asked).await {
            Ok(report) => {
                content.raw("<section>\n<h2>").text(&report.url).raw("</h2>\n<p>");
                content.text(&report.would).raw("</p>\n").add(&facts(&report)).raw("</section>\n");
            }
            Err(why) => {
                status = StatusCode::BAD_REQUEST;
                content.raw("<p class=\"card trouble\">").text(why).raw("</p>\n");
            }
        }
    }
    let mut answer = Response::new(html::page("aptmesh explain", false, &content).into());
    *answer.status_mut() = status;
    html::protect(answer.headers_mut());
    answer
}

fn facts(report: &Report) -> Html {
    let facts = report.facts();
    let facts: Vec<_> = facts.into_iter().map(|(name, fact)| (name, Html::of(fact))).collect();
    html::list(&facts)
}

/// Where a person writes what puzzles them.
pub(in crate::web) fn form() -> Html {
    let mut html = Html::default();
    html.raw("<section>\n<h2>What of this file?</h2>\n");
    html.raw("<form class=\"look-up\" action=\"/explain\"><input name=\"url\" aria-label=\"URL\" ");
    html.raw("placeholder=\"http://ftp.debian.org/debian/dists/stable/InRelease\" required ");
    html.raw(
        "autocomplete=\"off\" spellcheck=\"false\"><button>Explain</button></form>\n</section>\n",
    );
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_write_is_understood() {
        let expected = "http://m.org/debian/pool/g/g++_1_all.deb";
        for text in [
            "http://m.org/debian/pool/g/g++_1_all.deb",
            " http://m.org/debian/pool/g/g%2b%2b_1_all.deb\n",
            "http://m.org/debian/pool/g/g  _1_all.deb",
            "http://M.org:80/debian/pool/g/g++_1_all.deb",
            "/m.org/debian/pool/g/g++_1_all.deb",
            "m.org/debian/pool/g/g++_1_all.deb",
            "http://cache:9977/m.org/debian/pool/g/g++_1_all.deb",
            "http://[::1]:9977/m.org/debian/pool/g/g++_1_all.deb",
        ] {
            assert_eq!(target_of(text, &[9977]).unwrap().key, expected, "{text}");
        }
        for text in [
            "https://m.org/x",
            "/https/m.org/x",
            "http://HTTPS///m.org/x",
            "http://cache:9977/https/m.org/x",
            "http://cache:9977/HTTPS///m.org/x",
        ] {
            assert_eq!(target_of(text, &[9977]).unwrap().key, "https://m.org/x", "{text}");
        }
        assert_eq!(
            target_of("http://m.org:9978/a/b", &[9977]).unwrap().key,
            "http://m.org:9978/a/b"
        );
    }

    #[test]
    fn nonsense_is_refused_without_being_repeated() {
        for text in
            ["", "  ", "ftp://m.org/x", "http://", "x", "/", "http://jane:hunter2@/x", "://", "a b"]
        {
            let why = target_of(text, &[9977]).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
        assert!(target_of(&format!("http://m.org/{}", "x".repeat(5000)), &[]).is_err());
    }
}
