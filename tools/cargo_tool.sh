#!/bin/sh
# Makes sure that a program of the crates' registry is there in a version: cargo_tool.sh CRATE VERSION
# It lies in target/tools/bin; its path is printed.
set -eu
crate=$1
version=$2
tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
case $("$tools/bin/$crate" --version 2>/dev/null) in
*"$version") ;;
*) cargo install --quiet --locked "$crate@$version" --root "$tools" >&2 ;;
esac
echo "$tools/bin/$crate"
