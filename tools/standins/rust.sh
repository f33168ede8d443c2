#!/bin/sh
# makes rust:*-slim-*
# This machine's toolchain, with what it has fetched of the registry, on the Debian suite.
set -eu
image=$1
suite=${image##*-}
here=$(cd "$(dirname "$0")" && pwd)
"$here/../standins.sh" "debian:$suite-slim"

want=${image#rust:}
want=${want%%-*}
have=$(rustc --version | cut -d' ' -f2)
case $have in
"$want" | "$want".*) ;;
*) echo "$image: this machine's Rust is $have" >&2; exit 1 ;;
esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
toolchain=$(rustc --print sysroot)
mkdir -p "$folder/toolchain" "$folder/cargo/registry"
# Without the documentation, which is the larger part.
(cd "$toolchain" && tar -c --exclude=share --exclude=lib/rustlib/src bin lib) | tar -C "$folder/toolchain" -x
for part in index cache; do
    fetched=${CARGO_HOME:-$HOME/.cargo}/registry/$part
    if [ -d "$fetched" ]; then cp -r "$fetched" "$folder/cargo/registry/"; fi
done
cp /etc/ssl/certs/ca-certificates.crt "$folder/ca-certificates.crt"
cat >"$folder/Dockerfile" <<DOCKERFILE
FROM debian:$suite-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local/rustup/toolchain
COPY cargo /usr/local/cargo
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV CARGO_HOME=/usr/local/cargo \
    RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:/usr/local/rustup/toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
DOCKERFILE
"$here/../docker_build.sh" "$image" "$folder"
