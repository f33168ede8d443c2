#!/bin/sh
# makes postgres:*-*
# The server of the Debian suite, which has to be of the version asked for, and as much of the official
# image's entrypoint as is used here: POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD or _PASSWORD_FILE, PGDATA.
set -eu
image=$1
version=${image#postgres:}
version=${version%%-*}
suite=${image##*-}
here=$(cd "$(dirname "$0")" && pwd)
"$here/../standins.sh" "debian:$suite-slim"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/docker-entrypoint.sh" <<'ENTRYPOINT'
#!/bin/sh
set -eu
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 0700 "$PGDATA"
    install -d -o postgres -g postgres -m 3777 /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    umask 077
    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
        POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    fi
    printf '%s\n' "${POSTGRES_PASSWORD:?}" >/tmp/password
    initdb --username="$user" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    if [ "${POSTGRES_DB:-$user}" != postgres ]; then
        # Nobody else is let in yet.
        pg_ctl --wait -o "-c listen_addresses=''" start
        createdb --username="$user" --maintenance-db=postgres "${POSTGRES_DB:-$user}"
        pg_ctl --wait --mode=fast stop
    fi
fi
unset POSTGRES_PASSWORD
exec "$@"
ENTRYPOINT
chmod 755 "$folder/docker-entrypoint.sh"
cat >"$folder/Dockerfile" <<DOCKERFILE
FROM debian:$suite-slim
RUN groupadd --system --gid 999 postgres \\
    && useradd --system --uid 999 --gid postgres --home-dir /var/lib/postgresql postgres \\
    && mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \\
    && apt-get update && apt-get install -y --no-install-recommends postgresql-$version \\
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \\
    && install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data \\
    && install -d -o postgres -g postgres -m 3777 /var/run/postgresql
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/$version/bin \\
    LANG=C.UTF-8 PG_MAJOR=$version PGDATA=/var/lib/postgresql/data
COPY docker-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
DOCKERFILE
"$here/../docker_build.sh" "$image" "$folder"
