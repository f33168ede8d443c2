#!/bin/sh
# makes prom/prometheus:*
# Debian trixie's, an older version than the image's, with its user and places.
set -eu
image=$1
here=$(cd "$(dirname "$0")" && pwd)
"$here/../standins.sh" debian:trixie-slim
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/Dockerfile" <<'DOCKERFILE'
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* /etc/prometheus/* \
    && install -d -o nobody -g nogroup /prometheus
USER 65534:65534
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
"$here/../docker_build.sh" "$image" "$folder"
