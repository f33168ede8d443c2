#!/bin/sh
# makes haproxy:3.0
# Debian trixie's, which is of this version, with the official image's user, place of the settings and
# way to stop.
set -eu
image=$1
here=$(cd "$(dirname "$0")" && pwd)
"$here/../standins.sh" debian:trixie-slim
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/Dockerfile" <<'DOCKERFILE'
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends haproxy=3.0.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupmod --gid 99 haproxy && usermod --uid 99 haproxy && chown haproxy: /var/lib/haproxy \
    && install -d /usr/local/etc/haproxy
STOPSIGNAL SIGUSR1
USER haproxy
WORKDIR /var/lib/haproxy
# As the official entrypoint does: a master that passes signals on, in the foreground.
ENTRYPOINT ["haproxy", "-W", "-db"]
CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
"$here/../docker_build.sh" "$image" "$folder"
