//! The settings there are: name, default and what each is for. `aptmesh config` and
//! `docs/settings.toml` come from this list.

use std::path::PathBuf;

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// `section.key`, as in the file; in the environment `APTMESH_SECTION_KEY`.
    pub name: &'static str,
    /// The flag for it, if it is an everyday one.
    pub flag: Option<&'static str>,
    /// What it is when nobody sets it.
    pub default: Default,
    /// Whether its value must not be shown; then `…_FILE` names a file that holds it.
    pub secret: bool,
    /// Whether SIGHUP changes it in a running process.
    pub live: bool,
    /// What it does, and why one would change it.
    pub doc: &'static str,
}

/// What a setting is when nobody sets it.
#[derive(Debug, PartialEq, Eq)]
pub enum Default {
    /// This text; an empty one is "none".
    Text(&'static str),
    /// The folder for the data of the user who runs it.
    DataDir,
}

impl Default {
    pub(super) fn text(&self, environment: impl Fn(&str) -> Option<String>) -> String {
        match self {
            Self::Text(text) => (*text).to_owned(),
            Self::DataDir => data_dir(environment).display().to_string(),
        }
    }

    /// What it is, for people; code between backquotes.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Text("") => "empty".to_owned(),
            // A line may break after a comma.
            Self::Text(text) => format!("`{}`", text.replace(',', ", ")),
            Self::DataDir => {
                "`/var/lib/aptmesh` for root, else `~/.local/share/aptmesh`".to_owned()
            }
        }
    }
}

/// `/var/lib/aptmesh` for root, else below the XDG data folder.
fn data_dir(environment: impl Fn(&str) -> Option<String>) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/aptmesh");
    }
    let absolute = |text: String| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
    let data = environment("XDG_DATA_HOME")
        .and_then(absolute)
        .or_else(|| environment("HOME").and_then(absolute).map(|home| home.join(".local/share")));
    data.unwrap_or_else(std::env::temp_dir).join("aptmesh")
}

const fn key(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, flag: None, default: Default::Text(default), secret: false, live: false, doc }
}

impl Key {
    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn live(self) -> Self {
        Self { live: true, ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// Its name in the environment.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("APTMESH_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }
}

/// All settings.
pub static KEYS: [Key; 48] = [
    key(
        "listen.proxy",
        "127.0.0.1:9977",
        "Addresses for apt clients, a list. Use `[::]:9977` to serve other machines; who of them \
         may come in is `clients.allow`.",
    )
    .flag("--listen"),
    key(
        "listen.admin",
        "127.0.0.1:9978",
        "Address for operators: /livez, /readyz, /metrics, /status, /status.json, /explain, /explain.json. \
         It has no access control of its own.",
    )
    .flag("--admin-listen"),
    key(
        "listen.peer",
        "[::]:9979",
        "Address for other sites of the swarm, unless `swarm.announce` is false, and for other replicas \
         of the site, if `proxy.advertise` is set: they fetch blobs here. Who does not know the swarm's \
         key or the site's secret, which is in the index, gets 403.",
    )
    .flag("--peer-listen"),
    key(
        "listen.dht",
        "0.0.0.0:9980,[::]:9980",
        "Addresses for the nodes of other sites, a list. Who has no `swarm.key` does not get past the \
         first bytes.",
    )
    .flag("--dht-listen"),
    key(
        "listen.sidecar",
        "127.0.0.1:9981",
        "Address for the proxy of a node of the swarm, be it that of `aptmesh dht` or the one that the \
         proxy itself runs with a `swarm.key`. It has no access control of its own: whoever reaches it \
         may announce and look up.",
    ),
    key(
        "listen.balancers",
        "",
        "Networks of balancers before `listen.proxy` and `listen.peer`, a list. A connection of theirs may \
         begin with a PROXY header of version 1 or 2 (haproxy's `send-proxy-v2`); the address in there \
         counts as the client's, for `clients.allow` and all bounds for one peer. Nobody else's header is \
         believed; name only what always sends one, as whoever else comes from there can say who he is.",
    ),
    key(
        "listen.connections",
        "8192",
        "Connections open at a time on each address; further ones wait to be accepted.",
    ),
    key(
        "listen.drain_delay",
        "8s",
        "For how long, after SIGTERM, /readyz says no while newcomers are still served, so that a \
         balancer notices before it finds the door closed. Only where somebody has asked /readyz \
         within the last minute; SIGINT and a second signal go without. Who stops it has to wait for 20 s \
         more than this, and for 30 s at least, before killing it.",
    ),
    Key {
        name: "data.dir",
        flag: Some("--data"),
        default: Default::DataDir,
        secret: false,
        live: false,
        doc: "Folder for the blobs and, unless `index.url` says otherwise, the index.",
    },
    key(
        "index.url",
        "",
        "The index: `sqlite:PATH`, for one process; or `postgres://USER:PASSWORD@HOST/DATABASE`, for \
         any number of them, on one volume or with one each (`proxy.advertise`), after `aptmesh migrate`. As with `libpq`, `sslmode` and \
         `sslrootcert` (a CA file) say how the connection is secured, `connect_timeout` how long it \
         may take to be made; of `HOST:PORT,HOST:PORT`, the one that takes writes is found with \
         `target_session_attrs=read-write`. Empty: `index.sqlite` in the data folder.",
    )
    .flag("--index")
    .secret(),
    key(
        "index.pool",
        "16",
        "Connections to PostgreSQL, at most; background work takes up to half of them. All processes' \
         together must be fewer than the server's `max_connections`, unless a pooler is in between.",
    ),
    key(
        "index.timeout",
        "10s",
        "For how long background work, such as learning lists, waits for a statement in PostgreSQL.",
    ),
    key(
        "index.patience",
        "200ms",
        "For how long a request waits for PostgreSQL in all, before it goes on without. More makes replicas \
         on a slow database fetch less twice, and their clients wait longer when it is away.",
    ),
    key(
        "store.quota",
        "",
        "How much the blobs and the downloads under way may take together, such as `200GiB`. When it is \
         full, what no list names any more goes first, then what is used least. Empty: no bound but \
         `store.min_free`.",
    )
    .live(),
    key(
        "store.min_free",
        "5%",
        "What the volume must have left, in bytes or as a part of it; blobs go for that as for the \
         quota. The default leaves other programs on a shared disk room to work; on a large volume \
         of its own, set a few GiB.",
    )
    .live(),
    key(
        "store.pins",
        "",
        "What is never evicted, a list: packages such as `linux-image-*`, in every version; and suites \
         such as `suite:trixie`, as far as their current lists go.",
    )
    .live(),
    key(
        "store.folders",
        "",
        "Folders with packages that lie there anyway, such as a mirror's tree, a list. They are served \
         in place, once they are hashed, which is done slowly; never copied, changed or evicted.",
    ),
    key(
        "store.scrub_rate",
        "10MiB/s",
        "How fast stored files are read, in the background, to find those that the disk has spoilt; \
         these go, and are fetched anew. 0: they are not.",
    ),
    key(
        "store.scrub_interval",
        "7d",
        "After how long a stored file is read again for that.",
    ),
    key(
        "mirror.allow",
        "",
        "Hosts that may be asked, a list of names and `*.domain` patterns. Empty: any public one.",
    )
    .live(),
    key(
        "mirror.allow_private",
        "",
        "Networks, addresses and hosts excepted from the ban on private and other special-purpose \
         addresses, a list. Name your internal mirrors here.",
    )
    .live(),
    key(
        "mirror.connect_ports",
        "443",
        "Ports that CONNECT tunnels may lead to, a list. Empty: no tunnels.",
    ),
    key(
        "mirror.ca_file",
        "",
        "PEM file of certificate authorities to trust for HTTPS mirrors, besides the system's.",
    ),
    key(
        "mirror.proxy",
        "",
        "HTTP proxy through which mirrors are asked, as a URL; another aptmesh, for one. It resolves \
         the mirrors' names then, so that only their names are checked here, not their addresses.",
    )
    .secret(),
    key(
        "mirror.timeout",
        "15s",
        "For how long a mirror may be silent before it is asked again.",
    ),
    key(
        "mirror.recheck_after",
        "10s",
        "For how long one revalidation of a metadata file answers all clients; 0s: each request is \
         revalidated, though those at the same time share one.",
    )
    .live(),
    key(
        "mirror.offline",
        "false",
        "`true`: nobody is asked. What is stored is served, release files until their `Valid-Until`; \
         for the rest clients get 504 at once.",
    )
    .live(),
    key(
        "archive.verify",
        "auto",
        "What is asked of release files. `auto`: not to be proven wrong, by a bad signature of a \
         known key, by having expired, by being older than one accepted before. `enforce`: to be \
         signed by a known key. `off`: nothing.",
    ),
    key(
        "archive.keyring",
        "",
        "Files, or folders of files, with keys that archives sign with, a list; besides those in \
         /usr/share/keyrings, /etc/apt/keyrings, /etc/apt/trusted.gpg.d and \
         /etc/apt/trusted.gpg.",
    ),
    key(
        "archive.groups",
        "",
        "Archives that several mirrors serve, a list; each is `NAME URL URL …`, your favourite first. \
         A file fetched from one is a hit under the others; a mirror that fails, lags or lies is \
         passed over for the next, in mid-file too. `http://CACHE:9977/NAME/…` stands for any of \
         them. Their hosts need not be in `mirror.allow`; names of internal ones must be in \
         `mirror.allow_private`, addresses need not. With `signed-by=KEY`, once or more, only these keys may sign the archive's release \
         files: a fingerprint, or the path of a keyring file. In a file it may be written \
         `[[archive.groups]]` with `name`, `mirrors` and `signed_by`.",
    ),
    key(
        "prefetch.budget",
        "",
        "Bytes a day, as `2GiB`, for fetching new versions of packages that were used within 30 days, \
         as soon as a list names them. Empty: none.",
    ),
    key(
        "prefetch.rate",
        "",
        "The most bytes a second that prefetching takes, as `1MiB`. Empty: what mirrors give.",
    ),
    key(
        "prefetch.hours",
        "",
        "When to prefetch, in local time, a list of hours as `22-6`. Empty: always.",
    ),
    key(
        "proxy.advertise",
        "",
        "URL under which other replicas reach this one's `listen.peer`, such as \
         `http://aptmesh-0.aptmesh:9979`; for replicas that share an index in PostgreSQL, each with a \
         volume of its own (`data.dir`). They fetch from each other what one of them has, before any \
         mirror is asked. Empty: this one fetches from the others, but none can fetch from it.",
    ),
    key(
        "proxy.sidecar",
        "",
        "URL of the API of the swarm's node that finds blobs for this proxy (`aptmesh dht`, \
         `listen.sidecar`), such as `http://127.0.0.1:9981`; for a node in a process of its own, which \
         announces what is stored if both have one PostgreSQL index. Empty: the proxy runs a node itself, \
         if there is a `swarm.key`.",
    ),
    key(
        "swarm.key",
        "",
        "The secret that makes sites a swarm, as `aptmesh key` prints it: the same on all of them.",
    )
    .secret(),
    key(
        "swarm.open",
        "false",
        "`true`, without a key: the swarm that everybody may join. Others see what is announced.",
    ),
    key(
        "swarm.bootstrap",
        "",
        "Where to look for nodes of the swarm, a list of `HOST:PORT`. All addresses of a name count, and \
         it is resolved again every 30 s. One that is found leads to all the others. \
         Those of one site find each other in its database (`index.url`) anyway.",
    ),
    key(
        "swarm.lan",
        "false",
        "`true`: nodes on the same network are found by multicast (mDNS). Container networks do not \
         carry it.",
    ),
    key(
        "swarm.allow_private",
        "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7",
        "Networks of special addresses where nodes may be, a list. What nodes tell of each other's \
         addresses is not believed for others, such as loopback. Empty: public ones only. Addresses in \
         `swarm.bootstrap` need not be named.",
    ),
    key(
        "swarm.announce",
        "true",
        "`false`: nothing is announced, and nobody is told where to fetch from here. Looking up goes on.",
    ),
    key(
        "swarm.announce_min_size",
        "1MiB",
        "The smallest blob that is announced by itself. In Debian's archive, one file in eight is larger \
         than the default, and these are 94 % of its bytes.",
    ),
    key(
        "swarm.announce_ttl",
        "45m",
        "For how long others remember what was announced, 3 hours at most; it is announced again after a \
         third of that.",
    ),
    key(
        "swarm.advertise",
        "",
        "URLs under which other sites fetch blobs from this one, a list of four at most, such as \
         `http://203.0.113.5:9979`. Where the host is an address, the node is said to be there too. Empty: \
         `listen.peer` under the addresses of the machine.",
    ),
    key(
        "swarm.upload_limit",
        "",
        "The most bytes a second that other sites get from this process, as `5MiB/s`, in turns. Your own \
         clients and replicas are not counted. Empty or 0: as many as they can take.",
    )
    .live(),
    key(
        "clients.allow",
        "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,fc00::/7,fe80::/10",
        "Networks whose machines may use the proxy, a list. Others get 403.",
    )
    .live(),
    key("log.format", "text", "`text` for people, `json` for machines.").flag("--log-format"),
    key(
        "log.level",
        "info",
        "`error`, `warn`, `info`, `debug` or `trace`, or directives such as \
         `info,aptmesh::mirror=debug`; `info,access=off` tells of no request.",
    ),
];
