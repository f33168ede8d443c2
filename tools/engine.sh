#!/bin/sh
# Runs a command with a Docker engine: engine.sh COMMAND...
# The one that is there, or one that is started for the command and stopped after it. Engine and
# compose come from Debian's packages if they are missing.
set -eu
here=$(dirname "$0")

"$here/need.sh" docker=docker.io
docker compose version >/dev/null 2>&1 || "$here/need.sh" docker-compose
if docker info >/dev/null 2>&1; then
    exec "$@"
fi

"$here/need.sh" dockerd=docker.io
log=$(mktemp)
setsid dockerd >"$log" 2>&1 </dev/null &
engine=$!
stop() {
    kill "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
    rm -f "$log"
}
trap stop EXIT
trap 'exit 130' INT TERM
tries=60
until docker info >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ] || ! kill -0 "$engine" 2>/dev/null; then
        tail -n 20 "$log" >&2
        echo "the Docker engine did not start" >&2
        exit 1
    fi
    sleep 1
done
"$@"
