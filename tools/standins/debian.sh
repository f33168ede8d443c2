#!/bin/sh
# makes debian:*-slim
# The base system without documentation, with the package sources of this machine.
set -eu
image=$1
suite=${image#debian:}
suite=${suite%-slim}
"$(dirname "$0")/../need.sh" debootstrap
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Where this machine's apt gets Debian from, in its own words. What the archive calls itself is known
# after an update.
mirror_of_machine() {
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' \
        | awk '$2 == "Debian" { print $1; exit }'
}
mirror=$(mirror_of_machine)
if [ -z "$mirror" ]; then
    apt-get update -qq
    mirror=$(mirror_of_machine)
fi
[ -n "$mirror" ] || { echo "apt knows no Debian archive" >&2; exit 1; }

chmod 755 "$folder"
debootstrap --variant=minbase "$suite" "$folder/root" "$mirror" >"$folder/log" 2>&1 \
    || { tail -n 20 "$folder/log" >&2; exit 1; }
root=$folder/root
printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main\nSigned-By: %s\n' \
    "$mirror" "$suite" "$suite" /usr/share/keyrings/debian-archive-keyring.gpg \
    >"$root/etc/apt/sources.list.d/debian.sources"
rm -f "$root/etc/apt/sources.list"
# As the slim images do: no documentation, now or later, but for the licences.
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<SLIM
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -type l -delete
rm -rf "$root/usr/share/info"/* "$root/usr/share/locale"/* "$root/usr/share/man"/* \
    "$root/var/lib/apt/lists"/* "$root/var/cache"/apt/*.bin "$root/var/cache/apt/archives"/*.deb \
    "$root/var/log"/* "$root/var/cache/debconf"/*-old "$root/dev"/*
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
tar -C "$root" --numeric-owner -c . \
    | docker import --change 'CMD ["bash"]' --message "stand-in" - "$image" >/dev/null
