# One image, three roles: `aptmesh proxy`, `aptmesh dht`, `aptmesh migrate`; and `aptmesh serve`, all in one.
ARG RUST_VERSION=1.95
ARG DEBIAN_SUITE=trixie

# The manifest without what does not bear on dependencies.
FROM rust:${RUST_VERSION}-slim-${DEBIAN_SUITE} AS manifest
COPY Cargo.toml /all.toml
RUN awk '/^\[/ { keep = !/^\[+(package\.metadata|lints|test|bench)/ } keep' /all.toml > /Cargo.toml

FROM rust:${RUST_VERSION}-slim-${DEBIAN_SUITE} AS build
WORKDIR /build
# What is depended on changes seldom: a layer of its own, built around an empty program.
COPY --from=manifest /Cargo.toml ./
COPY Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --locked --release --bin aptmesh
COPY Cargo.toml ./
COPY migrations migrations
COPY src src
# Files come with their own times, which may be older than the empty program. Functions keep their
# names, for back-traces; lines are left to `cargo build`.
RUN touch src/main.rs src/lib.rs \
    && cargo build --locked --release --bin aptmesh \
    && objcopy --strip-debug --compress-debug-sections target/release/aptmesh /aptmesh

FROM debian:${DEBIAN_SUITE}-slim
# Certificates for HTTPS mirrors, and the keys that release files are signed with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates debian-archive-keyring ubuntu-keyring \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*
# A fixed user, so that volumes keep their owner from image to image. A new volume takes its folder's
# owner and mode.
RUN groupadd --gid 9977 aptmesh \
    && useradd --uid 9977 --gid aptmesh --no-create-home --home-dir /var/lib/aptmesh \
        --shell /usr/sbin/nologin aptmesh \
    && install -d -o aptmesh -g aptmesh -m 0755 /var/lib/aptmesh \
    && install -d -o aptmesh -g aptmesh -m 0700 /run/secrets/aptmesh \
    && install -d -m 0755 /etc/aptmesh
COPY --from=build /aptmesh /usr/bin/aptmesh

# What is different in a container: others than the machine itself are to get in. 3142 is where
# auto-apt-proxy looks.
ENV APTMESH_DATA_DIR=/var/lib/aptmesh \
    APTMESH_LISTEN_PROXY=[::]:9977,[::]:3142 \
    APTMESH_LISTEN_ADMIN=[::]:9978
USER 9977:9977
WORKDIR /var/lib/aptmesh
VOLUME /var/lib/aptmesh
# proxy, proxy for auto-apt-proxy, admin, peers, DHT; the sidecar's API (9981) is for its site alone.
EXPOSE 9977 3142 9978 9979 9980
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/bin/aptmesh", "health"]
ENTRYPOINT ["/usr/bin/aptmesh"]
CMD ["serve"]

# Last, since they differ from build to build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG DEBIAN_SUITE
LABEL org.opencontainers.image.title="aptmesh" \
    org.opencontainers.image.description="The APT cache that a whole site shares" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="docker.io/library/debian:${DEBIAN_SUITE}-slim"
