#!/bin/sh
# Makes sure that commands are there: need.sh COMMAND[=PACKAGE] ...
# A command may be a pattern of its path.
# Missing ones come from Debian's packages if the user is root; else they are named.
set -eu

missing=
for need in "$@"; do
    # shellcheck disable=SC2086  # it may be a pattern
    set -- ${need%%=*}
    command -v "$1" >/dev/null 2>&1 || missing="$missing ${need#*=}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$missing (Debian packages; install them as root)" >&2
    exit 1
fi

# Servers among them are only run by hand: none is to start by being installed.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086  # a list of package names
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
