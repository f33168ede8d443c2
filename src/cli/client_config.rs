//! `aptmesh client-config`: points a client's apt at the cache.

use anyhow::ensure;
use url::Url;

use crate::config::Config;

pub(super) fn print(config: &Config, url: Option<String>) -> anyhow::Result<()> {
    let url = url.unwrap_or_else(|| default_url(config));
    let parsed = Url::parse(&url)?;
    let host = parsed.host_str().unwrap_or_default();
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte));
    ensure!(
        parsed.scheme() == "http" && plain,
        "the URL of a cache is http://HOST:PORT, not {url}"
    );
    let port = parsed.port_or_known_default().unwrap_or(80);
    super::print_out(&render(host, port))
}

fn default_url(config: &Config) -> String {
    let address = config.listen.proxy.first();
    address.map(|address| format!("http://{address}")).unwrap_or_default()
}

/// The helper uses what every Debian system has: bash and coreutils are essential packages. It asks
/// for an answer, since a stopped process still has its connections accepted by the kernel.
fn render(host: &str, port: u16) -> String {
    let connect_host = host.trim_matches(['[', ']']);
    format!(
        r#"#!/bin/sh
# Points this machine's apt at the aptmesh cache at http://{host}:{port}. Run it as root:
#   aptmesh client-config --url http://{host}:{port} | sudo sh
# To undo: rm /etc/apt/apt.conf.d/30aptmesh /usr/local/lib/aptmesh/apt-proxy-detect
# DESTDIR puts the files below another folder.
set -eu

mkdir -p "${{DESTDIR:-}}/usr/local/lib/aptmesh" "${{DESTDIR:-}}/etc/apt/apt.conf.d"

cat > "${{DESTDIR:-}}/usr/local/lib/aptmesh/apt-proxy-detect" <<'HELPER'
#!/bin/bash
# apt runs this for each host it is about to ask (Acquire::http::Proxy-Auto-Detect): the cache if it
# answers, else the mirrors themselves.
answers() {{
    exec 3<>"/dev/tcp/{connect_host}/{port}" || return 1
    printf 'GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n' >&3
    IFS= read -r status <&3 && [[ $status == HTTP/1.1* ]]
}}
export -f answers
if timeout 2 bash -c answers 2>/dev/null; then
    echo 'http://{host}:{port}'
else
    echo DIRECT
fi
HELPER
chmod 755 "${{DESTDIR:-}}/usr/local/lib/aptmesh/apt-proxy-detect"

cat > "${{DESTDIR:-}}/etc/apt/apt.conf.d/30aptmesh" <<SNIPPET
// aptmesh: asked first, passed by whenever it does not answer.
Acquire::http::Proxy-Auto-Detect "${{DESTDIR:-}}/usr/local/lib/aptmesh/apt-proxy-detect";
SNIPPET
"#
    )
}
