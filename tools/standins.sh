#!/bin/sh
# Makes sure that base images are there: standins.sh IMAGE...
# They are pulled; where that can not be, each is made from Debian's packages, under its proper name
# and with as much of the real one's ways as is used here. The scripts in standins/ make them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

make_standin() {
    for script in "$here"/standins/*.sh; do
        # The first line after the interpreter names the images that a script can make.
        pattern=$(sed -n '2s/^# makes //p' "$script")
        # shellcheck disable=SC2254  # it is a pattern
        case $1 in
        $pattern) "$script" "$1"; return ;;
        esac
    done
    echo "$1 can not be pulled, and there is no stand-in for it" >&2
    return 1
}

for image; do
    if docker image inspect "$image" >/dev/null 2>&1; then
        continue
    fi
    if timeout 300 docker pull --quiet "$image" >/dev/null 2>&1; then
        echo "$image: pulled"
        continue
    fi
    echo "$image: can not be pulled, made from Debian's packages"
    make_standin "$image"
done
