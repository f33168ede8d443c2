#!/bin/sh
# Makes the Debian package of a program that was built: deb.sh PROGRAM FOLDER [OPTION of `cargo deb`...]
# It depends on what the system has that this runs on. Prints the package's path; without arguments, only
# fetches what it needs.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cargo_deb=$("$top/tools/cargo_tool.sh" cargo-deb 3.8.0)
[ $# != 0 ] || exit 0
"$top/tools/need.sh" dpkg-shlibdeps=dpkg-dev strip=binutils

program=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/release"
cp "$program" "$stage/release/aptmesh"
"$stage/release/aptmesh" manual "$stage/release/manual"
gzip -9n "$stage"/release/manual/man*/*
cd "$top"
CARGO_TARGET_DIR=$stage "$cargo_deb" --no-build --strip --locked --output "$folder" "$@"
