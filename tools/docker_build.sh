#!/bin/sh
# Builds an image: docker_build.sh IMAGE FOLDER [OPTION...]
# A client without buildx has the engine's own, older builder do it.
set -eu
image=$1
folder=$2
shift 2
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
docker build --tag "$image" "$@" "$folder" >"$log" 2>&1 || { tail -n 50 "$log" >&2; exit 1; }
