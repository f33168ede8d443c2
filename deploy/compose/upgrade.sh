#!/bin/sh
# Brings replicas and node of a running site to the image, the settings and the swarm key that `.env` has
# now, so that no client notices: the schema first, which suits the replicas of the last version too; then
# one replica after the other, each when its successor is ready; then the node of the swarm, whose absence
# costs no request. A successor that does not get ready goes again, and what was there serves on.
# Gateway, PostgreSQL, Prometheus, Grafana, ports and the number of replicas are for `docker compose up -d`.
#   deploy/compose/upgrade.sh [OPTION-OF-COMPOSE...]
set -eu
cd "$(dirname "$0")/../.."
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
else
    compose() { docker-compose "$@"; }
fi
# Seconds: longer than a replica needs to start, or to end.
PATIENCE=120
GRACE=40
# One that ended this often by itself goes on doing so.
RESTARTS=5

# What docker tells of a container; nothing where it has no such thing.
tell() {
    docker inspect --format "$1" "$2" 2>/dev/null || true
}

is_in() {
    case " $2 " in *" $1 "*) true ;; *) false ;; esac
}

# Stopped ones too, all in one line.
replicas() {
    echo $(compose "$@" ps --all --quiet proxy)
}

# Waits until a container is healthy.
wait_for() {
    left=$PATIENCE
    until [ "$(tell '{{.State.Health.Status}}' "$1")" = healthy ]; do
        left=$((left - 1))
        restarts=$(tell '{{.RestartCount}}' "$1")
        if [ "$left" = 0 ] || [ "${restarts:-$RESTARTS}" -ge "$RESTARTS" ]; then
            docker logs --tail 20 "$1" >&2
            return 1
        fi
        sleep 1
    done
}

# Starts one more replica than there are now, and waits for it alone: old ones may be sick. Leaves nothing
# behind when that fails.
start_another() {
    before=$(replicas "$@")
    started=true
    compose "$@" up -d --no-recreate --scale proxy=$((count + 1)) proxy || started=false
    for replica in $(replicas "$@"); do
        is_in "$replica" "$before" && continue
        if "$started" && wait_for "$replica"; then continue; fi
        docker rm --force "$replica" >/dev/null
        started=false
    done
    "$started"
}

old=$(replicas "$@")
count=$(echo "$old" | wc -w)
if [ "$count" = 0 ]; then
    echo "there is no replica: docker compose up -d" >&2
    exit 1
fi
# What has ended is made anew by the next `up`, which hands on the key and brings the schema up to date. To
# remove comes before to make all along: what compose replaces, it replaces all that depends on it with.
compose "$@" rm --force secrets migrate
for last in $old; do
    if ! start_another "$@"; then
        echo "no new replica got ready; what was there is left as it is" >&2
        exit 1
    fi
    docker stop --time "$GRACE" "$last" >/dev/null
    docker rm "$last" >/dev/null
done
compose "$@" rm --force --stop dht
compose "$@" up -d --no-recreate --scale proxy="$count"
