#!/bin/sh
# Makes a site's secrets, each in a file of its own, where they are not there yet. They are in no
# container's environment. Runs as user 9977, in the volumes that hold them.
set -eu
umask 077
cd /run/secrets/aptmesh
# Who is another user gets at the file that is handed to its group, by its name.
chmod 0711 .

# Durable before anybody uses it: a database keeps its password.
put() {
    cat >"$1.new"
    sync "$1.new"
    mv "$1.new" "$1"
}

random() {
    od -An -N 24 -t x1 /dev/urandom | tr -d ' \n'
}

hand() {
    chgrp "$2" "$1"
    chmod 0440 "$1"
}

[ -s postgres.password ] || random | put postgres.password
hand postgres.password 999
# In a volume of its own, which no other container has.
grafana=/var/lib/aptmesh/password
[ -s $grafana ] || random | put $grafana
hand $grafana 472
[ -s index.url ] \
    || printf 'postgres://aptmesh:%s@postgres/aptmesh\n' "$(cat postgres.password)" | put index.url

# Another site's key, where one is given, takes the place of this site's own.
given=
if [ -d /run/given/swarm.key ]; then
    # The engine makes a folder where nothing is.
    echo "SITE_SWARM_KEY_FILE names no file" >&2
    exit 1
fi
for file in /run/given/swarm.key /run/first/swarm.key; do
    if [ -f "$file" ]; then given=$file; fi
done
if [ -n "$given" ]; then
    if [ ! -r "$given" ]; then
        echo "the swarm key's file can not be read by user 9977: chown 9977 it" >&2
        exit 1
    fi
    if [ ! -s "$given" ]; then
        echo "SITE_SWARM_KEY_FILE names an empty file" >&2
        exit 1
    fi
    put swarm.key <"$given"
elif [ ! -s swarm.key ]; then
    aptmesh key | put swarm.key
fi
