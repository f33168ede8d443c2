# The same targets at home and in CI. `make test` is all that a fresh machine needs.

CARGO ?= cargo
UNTRACED = $(or $(CARGO_TARGET_DIR),target)/untraced
# Tests may panic, and say what they mean as briefly as they can.
LINTS_NOT_FOR_TESTS = -A clippy::pedantic -A clippy::restriction -A unfulfilled_lint_expectations

.PHONY: help test e2e chart helm-readme dashboards pictures deb check format lint docs bench needs

help:
	@echo "make test    all tests; installs what they need from Debian's packages"
	@echo "make check   format, lint, docs, test: what CI runs"
	@echo "make e2e     the image, a site in containers, pods, the package: on a real Docker engine"
	@echo "make chart   the Helm chart, without an engine"
	@echo "make deb     a Debian package for systems as this one, in target/debian"
	@echo "make bench   speed, side by side with nginx and apt-cacher-ng"

# A C compiler builds SQLite and the TLS primitives; real apt is what the product is tested with.
# PostgreSQL's programs are not in the path; pgbouncer and haproxy are in root's.
needs:
	@tools/need.sh cc=gcc apt-get=apt dpkg-deb=dpkg bash unshare=util-linux ip=iproute2 mount ps=procps gpg=gnupg script=bsdutils \
		"/usr/lib/postgresql/*/bin/initdb=postgresql" /usr/sbin/pgbouncer=pgbouncer \
		/usr/sbin/haproxy=haproxy bindfs groff=groff-base promtool=prometheus \
		chromium

# Many tests wait for the clock of apt or of the cache: more of them at a time than there are cores.
test: export RUST_TEST_THREADS ?= 4
test: needs
	tools/again.sh $(CARGO) test --locked --no-fail-fast

# What pages and dashboards look like with real data, into docs/pictures: some minutes of it.
pictures: needs
	APTMESH_WRITE_PICTURES=1 $(CARGO) test --locked --test e2e -- the_pictures_of observability::

# One engine, two cores: several at a time only wait for each other.
e2e: export RUST_TEST_THREADS ?= 2
e2e: needs
	tools/engine.sh tools/again.sh $(CARGO) test --locked --test containers

# The chart rendered and held against Kubernetes' schemas; its containers run in e2e.
chart: needs
	$(CARGO) test --locked --test containers chart::

helm-readme:
	APTMESH_WRITE_README=1 $(CARGO) test --locked --test containers chart::documents::the_readme

# Grafana's JSON, of what is in dashboards/source.
dashboards: needs
	APTMESH_WRITE_DASHBOARDS=1 $(CARGO) test --locked --test dashboards they_are_what

deb: needs
	$(CARGO) build --locked --release --bin aptmesh
	@tools/deb.sh "$${CARGO_TARGET_DIR:-target}/release/aptmesh" target/debian

check: format lint docs test

format:
	$(CARGO) fmt --all --check

lint: needs
	$(CARGO) clippy --locked --lib --bins -- -D warnings
	$(CARGO) clippy --locked --tests --benches -- -D warnings $(LINTS_NOT_FOR_TESTS)

docs: needs
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	APTMESH_DATA_DIR=/var/lib/aptmesh $(CARGO) run --locked --quiet -- config | diff -u docs/settings.toml - \
		|| { echo "docs/settings.toml is out of date: make docs/settings.toml" >&2; exit 1; }

docs/settings.toml: src/config/keys.rs
	APTMESH_DATA_DIR=/var/lib/aptmesh $(CARGO) run --locked --quiet -- config > $@.new
	mv $@.new $@

docs/metrics.md: needs
	APTMESH_WRITE_METRICS=1 $(CARGO) test --locked --test e2e metrics::the_handbook

# Spans are of the level TRACE, which the compiler leaves out of a second binary: what they cost when they are off.
bench: export APTMESH_BENCH_UNTRACED = $(abspath $(UNTRACED))/release/aptmesh
bench: needs
	@tools/need.sh nginx=nginx-light wrk apt-cacher-ng xz=xz-utils
	$(CARGO) build --locked --release --bin aptmesh --features tracing/release_max_level_debug --target-dir $(UNTRACED)
	$(CARGO) bench --locked --bench side_by_side
