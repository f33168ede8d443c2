//! The proxy surface: what apt clients talk to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use ipnet::IpNet;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::archive::groups::Groups;
use crate::archive::kind::Kind;
use crate::archive::target::{Target, TargetError};
use crate::engine::outcome::ServedAs;
use crate::engine::plan::Freshness;
use crate::engine::{Ask, Client, Engine, Hint, Sharing};
use crate::mirror::basic_authorization;
use crate::web::connection::Visit;
use crate::web::{page, reply, tunnel};

/// What the proxy surface needs to answer.
pub struct Proxy {
    engine: Arc<Engine>,
    clients: ArcSwap<Vec<IpNet>>,
    tunnels: tunnel::Tunnels,
    groups: Groups,
    /// This process in `Via`: a request that names it has come round in a circle.
    pseudonym: String,
}

/// What a request's target and method make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Resource,
    Front,
    Tunnel,
    Unknown,
}

/// Header fields of a client that are handed on when its question is.
const HANDED_ON: [HeaderName; 8] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::RANGE,
    header::USER_AGENT,
    header::VIA,
];

impl Proxy {
    /// The surface, for clients in `clients`.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        clients: Vec<IpNet>,
        groups: Groups,
        pseudonym: String,
    ) -> Self {
        let clients = ArcSwap::from_pointee(clients);
        Self { engine, clients, tunnels: tunnel::Tunnels::default(), groups, pseudonym }
    }

    /// Changes who may be a client, for connections from now on.
    pub fn set_clients(&self, clients: Vec<IpNet>) {
        self.clients.store(Arc::new(clients));
    }

    /// Whether `address`, in its canonical form, may be a client.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        self.clients.load().iter().any(|net| net.contains(&address))
    }

    /// All that it answers.
    #[must_use]
    pub fn routes(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let proxy = Arc::clone(self);
        let proxy = warp::any().map(move || Arc::clone(&proxy));
        let resource = proxy.clone().and(form(Form::Resource)).then(answer);
        let front = proxy.clone().and(form(Form::Front)).then(front_page);
        let tunnel = proxy.and(form(Form::Tunnel)).then(open_tunnel);
        let unknown = form(Form::Unknown).then(not_allowed);
        resource.or(front).unify().or(tunnel).unify().or(unknown).unify().boxed()
    }

    /// Begins what a request will need before its turn.
    pub(super) fn prepare(self: &Arc<Self>, request: &Request<()>, client: Client) -> Option<Hint> {
        let target = read_target(request.uri()).ok()?;
        let headers = request.headers();
        if self.is_circular(headers) {
            return None;
        }
        self.engine.prepare(self.ask(target, headers, false, client))
    }

    fn ask(&self, target: Target, headers: &HeaderMap, head_only: bool, client: Client) -> Ask {
        let mut handed_on = HeaderMap::new();
        for name in &HANDED_ON {
            for value in headers.get_all(name) {
                handed_on.append(name.clone(), value.clone());
            }
        }
        if let (false, Some(credentials)) =
            (handed_on.contains_key(header::AUTHORIZATION), basic_authorization(&target))
        {
            handed_on.insert(header::AUTHORIZATION, credentials);
        }
        let (freshness, no_store) = cache_control(headers);
        let has_credentials = handed_on.contains_key(header::AUTHORIZATION);
        let target = self.groups.settle(target, has_credentials);
        let sharing = match no_store {
            _ if has_credentials || target.has_query => Sharing::Private,
            true => Sharing::NotStored,
            false => Sharing::Shared,
        };
        let target = Arc::new(target);
        Ask {
            kind: Kind::of(&target.path),
            sharing,
            sources: vec![Arc::clone(&target)],
            target,
            freshness,
            head_only,
            headers: handed_on,
            client: Some(client),
            pace: None,
            begun_early: false,
        }
    }

    fn is_circular(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::VIA)
            .iter()
            .any(|via| via.to_str().is_ok_and(|via| via.contains(&self.pseudonym)))
    }
}

fn form(wanted: Form) -> impl Filter<Extract = (Visit,), Error = Rejection> + Clone {
    warp::ext::get::<Visit>().and_then(move |visit: Visit| {
        let matches = form_of(&visit.method, &visit.uri) == wanted;
        std::future::ready(if matches { Ok(visit) } else { Err(warp::reject::not_found()) })
    })
}

fn form_of(method: &Method, uri: &Uri) -> Form {
    match *method {
        Method::CONNECT => Form::Tunnel,
        Method::GET | Method::HEAD if uri.scheme().is_none() && uri.path() == "/" => Form::Front,
        Method::GET | Method::HEAD => Form::Resource,
        _ => Form::Unknown,
    }
}

fn read_target(uri: &Uri) -> Result<Target, TargetError> {
    if uri.scheme().is_some() {
        Target::from_absolute(&uri.to_string())
    } else {
        Target::from_prefix(uri.path_and_query().map_or("/", |target| target.as_str()))
    }
}

/// RFC 9111 §5.2.1, and the older `Pragma: no-cache` (§5.4).
fn cache_control(headers: &HeaderMap) -> (Freshness, bool) {
    let mut freshness = Freshness::Any;
    let mut no_store = false;
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .chain(headers.get_all(header::PRAGMA))
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    for directive in directives {
        match directive.trim().to_ascii_lowercase().as_str() {
            "no-cache" => freshness = Freshness::Now,
            "max-age=0" if freshness == Freshness::Any => freshness = Freshness::Recent,
            "no-store" => no_store = true,
            _ => {}
        }
    }
    (freshness, no_store)
}

async fn answer(proxy: Arc<Proxy>, visit: Visit) -> Response {
    if proxy.is_circular(&visit.headers) {
        let reason = "this request has been here before: two caches ask each other";
        return reply::refusal(StatusCode::LOOP_DETECTED, reason);
    }
    let target = match read_target(&visit.uri) {
        Ok(target) => target,
        Err(error) => return reply::bad_target(&error),
    };
    let head_only = visit.method == Method::HEAD;
    let asked = proxy.ask(target, &visit.headers, head_only, visit.client);
    let ask = Ask { begun_early: visit.begun_early, ..asked };
    let served = proxy.engine.serve(&ask).await;
    let served_as = ServedAs::of(ask.kind, &served);
    match served {
        Ok(served) => reply::served(&visit.headers, head_only, Some(ask.kind), served).await,
        Err(failure) => reply::credited(reply::failed(&failure), served_as.into()),
    }
}

async fn front_page(proxy: Arc<Proxy>, visit: Visit) -> Response {
    page::front(&proxy.engine, &visit.headers).await
}

async fn open_tunnel(proxy: Arc<Proxy>, visit: Visit) -> Response {
    proxy.tunnels.open(&proxy.engine, &visit).await
}

async fn not_allowed(visit: Visit) -> Response {
    let reason = format!("{} is not for a cache: GET, HEAD and CONNECT are", visit.method);
    let mut answer = reply::refusal(StatusCode::METHOD_NOT_ALLOWED, &reason);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, CONNECT"));
    answer
}

/// The peer of a connection may not use the proxy.
pub(super) fn forbidden_client(client: SocketAddr) -> Response {
    let reason = format!("{} is not in clients.allow", client.ip());
    reply::refusal(StatusCode::FORBIDDEN, &reason)
}
