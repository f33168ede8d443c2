#!/bin/sh
# Brings a running site to the image and the settings that `.env` has now, so that no client notices: the
# schema first, which suits the replicas of the last version too; then one replica after the other, each
# when its successor is ready; then the node of the swarm, whose absence costs no request.
#   deploy/compose/upgrade.sh [OPTION-OF-COMPOSE...]
set -eu
cd "$(dirname "$0")/../.."
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
else
    compose() { docker-compose "$@"; }
fi
# Longer than a replica needs to start, or to end.
PATIENCE=120
GRACE=40

is_healthy() {
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]
}

wait_for() {
    left=$PATIENCE
    until is_healthy "$1"; do
        left=$((left - 1))
        if [ "$left" = 0 ]; then
            docker logs --tail 20 "$1" >&2
            echo "the new replica is not ready; the old ones are left as they are" >&2
            exit 1
        fi
        sleep 1
    done
}

# What has ended is made anew by the next `up`, and brings the schema up to date. To remove comes before to
# make all along: what compose replaces, it replaces all that depends on it with.
compose "$@" rm --force secrets migrate
old=$(compose "$@" ps -q proxy)
count=$(echo "$old" | wc -w)
for replica in $old; do
    compose "$@" up -d --no-recreate --scale proxy=$((count + 1)) proxy
    for other in $(compose "$@" ps -q proxy); do
        wait_for "$other"
    done
    docker stop --time "$GRACE" "$replica" >/dev/null
    docker rm "$replica" >/dev/null
done
compose "$@" rm --force --stop dht
compose "$@" up -d --no-recreate --scale proxy="$count"
