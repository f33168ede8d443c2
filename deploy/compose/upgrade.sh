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

compose "$@" run --rm --no-deps -T migrate
old=$(compose "$@" ps -q proxy)
count=$(echo "$old" | wc -w)
for replica in $old; do
    compose "$@" up -d --no-deps --no-recreate --scale proxy=$((count + 1)) proxy
    for other in $(compose "$@" ps -q proxy); do
        wait_for "$other"
    done
    docker stop --time "$GRACE" "$replica" >/dev/null
    docker rm "$replica" >/dev/null
done
# Each by itself: compose starts all anew that depends on what it makes anew.
for service in secrets migrate dht; do
    compose "$@" up -d --no-deps "$service"
done
