//! The Debian package on machines with a real systemd: installed, used by real apt, upgraded, removed.

mod deb;
mod machine;

use crate::engine::{Container, image, standin};
use crate::kit::wait_until;
use deb::{NEXT_VERSION, VERSION};
use machine::{Machine, PATIENCE};

const UNITS: [&str; 3] = ["aptmesh", "aptmesh-proxy", "aptmesh-dht"];

#[test]
fn lintian_has_nothing_to_say() {
    let path = deb::path(VERSION);
    let options = ["--allow-root", "--tag-display-limit=0", "--fail-on=error,warning"];
    let command = [&["lintian"][..], &options, &[&path]].concat();
    println!("{}", deb::in_workshop(deb::folder(), &command));
}

#[test]
fn installed_it_serves_real_apt() {
    let machine = Machine::with_package();
    machine.use_cache();
    machine.sh("apt-get update && apt-get install -y hello && hello");
    let fetched = machine.metric("aptmesh_mirror_received_bytes_total");
    assert!(fetched > 1_000_000, "{fetched} bytes came through the cache");
    machine.sh("apt-get purge -y hello");
    machine.forget();
    machine.sh("apt-get update && apt-get install -y hello");
    let again = machine.metric("aptmesh_mirror_received_bytes_total") - fetched;
    assert!(again * 10 < fetched, "{again} bytes after {fetched} were fetched again");

    // It is enabled, is its own user, and has no rights.
    assert_eq!(machine.sh("systemctl is-enabled aptmesh").trim(), "enabled");
    let pid = machine.main_pid("aptmesh");
    assert_eq!(machine.sh(&format!("stat -c %U /proc/{pid}")).trim(), "aptmesh");
    let rights = machine.sh(&format!("cat /proc/{pid}/status"));
    for right in ["CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(rights.contains(right), "{right} in {rights}");
    }
    assert_eq!(machine.sh("stat -c '%U:%G %a' /var/lib/aptmesh").trim(), "aptmesh:aptmesh 750");
    assert!(!machine.try_sh("runuser -u nobody -- ls /var/lib/aptmesh").ok);
    // Nothing that it tried was forbidden to it.
    let journal = machine.journal("aptmesh");
    assert!(!journal.contains("not permitted") && !journal.contains("could not"), "{journal}");
}

#[test]
fn its_units_are_in_a_sandbox() {
    let machine = Machine::with_package();
    for unit in UNITS {
        let judged = machine.sh(&format!("systemd-analyze security --threshold=20 {unit}.service"));
        println!("{unit}: {}", judged.lines().last().unwrap_or_default());
        let [active, enabled] = ["is-active", "is-enabled"]
            .map(|question| machine.try_sh(&format!("systemctl --quiet {question} {unit}")).ok);
        assert_eq!((active, enabled), (unit == "aptmesh", unit == "aptmesh"), "{unit}");
    }
    let verify = "systemd-analyze verify aptmesh.service aptmesh-proxy.service aptmesh-dht.service";
    let verified = machine.sh(&format!("{verify} 2>&1"));
    assert_eq!(verified, "");
    // An administrator's drop-in has the last word, whatever it is called.
    let folder = "/etc/systemd/system/aptmesh.service.d";
    machine.sh(&format!(
        "mkdir -p {folder}; printf '[Service]\\nPrivateTmp=no\\n' > {folder}/10-own.conf"
    ));
    machine.sh("systemctl daemon-reload");
    assert_eq!(machine.property("aptmesh", "PrivateTmp"), "no");
}

#[test]
fn manuals_and_completions_are_at_hand() {
    let machine = Machine::boot();
    machine.install(VERSION);
    let manual = machine.sh("man --pager=cat 1 aptmesh");
    assert!(manual.contains("aptmesh") && manual.contains("import"), "{manual}");
    let settings = machine.sh("man --pager=cat 5 aptmesh.toml");
    assert!(settings.contains("recheck_after"), "{settings}");
    let completion = "source /usr/share/bash-completion/bash_completion
        (_comp_load aptmesh || _completion_loader aptmesh) >/dev/null
        COMP_WORDS=(aptmesh sta) COMP_CWORD=1
        _comp_load aptmesh 2>/dev/null || _completion_loader aptmesh
        _aptmesh aptmesh sta aptmesh; echo ${COMPREPLY[*]}";
    assert_eq!(machine.must(&["bash", "-c", completion]).trim(), "status");
    machine.sh("test -s /usr/share/zsh/vendor-completions/_aptmesh");
    machine.sh("test -s /usr/share/fish/vendor_completions.d/aptmesh.fish");
    machine.sh(
        "cd /usr/share/doc/aptmesh && test -s README.md -a -s docs/settings.toml -a -s docs/operations.md -a -s dashboards/alerts.yaml",
    );
}

/// Without a mirror, there are only the files that lay on the machine before.
#[test]
fn what_lies_on_the_machine_is_imported_or_served_in_place() {
    let machine = Machine::with_package();
    // Where an administrator might have them: the sandbox lets them be read.
    machine.sh("apt-get update; install -d /srv/debs /home/mirror");
    machine.sh("cd /srv/debs; apt-get download hello; cd /home/mirror; apt-get download ed");
    machine.set("store", r#"folders = ["/home/mirror"]"#);
    machine.restart("aptmesh");
    machine.use_cache();
    machine.sh("apt-get update");
    let told = machine.sh("sudo -u aptmesh aptmesh import /srv/debs");
    assert!(told.contains("1 files"), "{told}");
    assert_eq!(machine.sh("find /var/lib/aptmesh ! -user aptmesh").trim(), "");

    machine.set("mirror", "offline = true");
    machine.sh("systemctl reload aptmesh");
    wait_until(PATIENCE, "the settings to be read again", || {
        !machine.try_sh("apt-get install -y --download-only jq").ok
    });
    machine.sh("apt-get install -y hello");
    wait_until(PATIENCE, "the folder to be read", || machine.try_sh("apt-get install -y ed").ok);
}

#[test]
fn it_is_kept_running_unless_its_settings_are_wrong() {
    let machine = Machine::with_package();
    let is_back = |old: &str| machine.is_active("aptmesh") && machine.main_pid("aptmesh") != old;
    let first = machine.main_pid("aptmesh");
    machine.sh(&format!("kill -KILL {first}"));
    wait_until(PATIENCE, "it to be started again", || is_back(&first));

    // Hung, not ended: nobody but the watchdog notices. Sooner than as installed.
    machine.sh(
        "systemctl edit --drop-in=test --stdin aptmesh <<'UNIT'\n[Service]\nWatchdogSec=2s\nUNIT\n",
    );
    machine.restart("aptmesh");
    let second = machine.main_pid("aptmesh");
    machine.sh(&format!("kill -STOP {second}"));
    wait_until(PATIENCE, "the watchdog to bite", || is_back(&second));

    machine.sh("sed -i 's/^dir = /dirr = /' /etc/aptmesh/aptmesh.toml");
    assert!(!machine.try_sh("systemctl restart aptmesh").ok, "it starts with an unknown setting");
    assert_eq!(machine.property("aptmesh", "ActiveState"), "failed");
    assert_eq!(machine.property("aptmesh", "ExecMainStatus"), "78");
    assert!(machine.journal("aptmesh").contains("data.dirr"), "the journal names it");
}

#[test]
fn an_upgrade_keeps_settings_and_what_is_stored() {
    let machine = Machine::with_package();
    machine.use_cache();
    machine.sh("apt-get update && apt-get install -y hello && apt-get purge -y hello");
    machine.set("mirror", "offline = true");
    let settings = machine.sh("cat /etc/aptmesh/aptmesh.toml /etc/default/aptmesh");
    let old = machine.main_pid("aptmesh");

    machine.sh(&format!("dpkg --install {}", deb::path(NEXT_VERSION)));
    assert_eq!(machine.sh("dpkg-query -W -f '${Version}' aptmesh"), NEXT_VERSION);
    assert!(machine.is_active("aptmesh") && machine.main_pid("aptmesh") != old, "it was restarted");
    assert_eq!(machine.sh("cat /etc/aptmesh/aptmesh.toml /etc/default/aptmesh"), settings);
    // Nobody else can be asked now.
    machine.forget();
    machine.sh("apt-get update && apt-get install -y hello");

    // What the administrator stopped stays so.
    machine.sh("systemctl disable --now aptmesh");
    machine.sh(&format!("dpkg --install {}", deb::path(VERSION)));
    assert!(!machine.is_active("aptmesh"));
    assert_eq!(machine.try_sh("systemctl is-enabled aptmesh").output.trim(), "disabled");
}

#[test]
fn it_can_be_removed_purged_and_installed_again() {
    let machine = Machine::with_package();
    machine.sh("aptmesh key | install -m 0640 -g aptmesh /dev/stdin /etc/aptmesh/swarm.key");
    let user = machine.sh("id aptmesh");
    machine.sh("apt-get remove -y aptmesh");
    assert!(!machine.is_active("aptmesh"));
    assert!(!machine.try_sh("pidof aptmesh").ok, "it runs on");
    machine.sh(
        "test -f /etc/aptmesh/aptmesh.toml -a -f /etc/default/aptmesh -a -f /etc/aptmesh/swarm.key",
    );
    machine.sh("test -f /var/lib/aptmesh/index.sqlite");

    machine.install(VERSION);
    assert!(machine.is_active("aptmesh"));
    machine.sh("grep -q '^allow_private' /etc/aptmesh/aptmesh.toml");
    machine.sh("touch /etc/default/aptmesh-dht");

    machine.sh("apt-get purge -y aptmesh");
    let left = machine.sh(
        "find / -xdev -path /proc -prune -o -name '*aptmesh*' -print | grep -v '^/packages' || true",
    );
    assert_eq!(left.trim(), "", "nothing is left");
    assert_eq!(machine.sh("id aptmesh"), user, "its number is nobody else's");

    machine.install(NEXT_VERSION);
    assert!(machine.is_active("aptmesh"));
    machine.sh("aptmesh health");
}

/// Such as one that containers use too, or that was filled by another user.
#[test]
fn a_volume_is_taken_over_and_outlives_the_package() {
    let machine = Machine::boot();
    for owner in ["9977", "5000"] {
        machine.sh("mkdir -p /var/lib/aptmesh; mount -t tmpfs tmpfs /var/lib/aptmesh");
        machine.sh("install -d /var/lib/aptmesh/blobs/ab; touch /var/lib/aptmesh/blobs/ab/left");
        machine.sh(&format!("chown -R {owner}:{owner} /var/lib/aptmesh"));
        machine.install(VERSION);
        assert_eq!(machine.sh("id -u aptmesh; id -g aptmesh"), "9977\n9977\n", "as in the image");
        assert!(machine.is_active("aptmesh"));
        assert_eq!(machine.sh("find /var/lib/aptmesh ! -user aptmesh"), "");
        let told = machine.sh("apt-get purge -y aptmesh 2>&1");
        assert!(told.contains("left as it is"), "{told}");
        machine.sh("test -f /var/lib/aptmesh/blobs/ab/left; umount /var/lib/aptmesh");
    }
    // One that is mounted within the folder does not stop a purge.
    machine.install(VERSION);
    machine.sh("mkdir -p /var/lib/aptmesh/more; mount -t tmpfs tmpfs /var/lib/aptmesh/more");
    machine.sh("touch /var/lib/aptmesh/more/left");
    let told = machine.sh("apt-get purge -y aptmesh 2>&1");
    assert!(told.contains("left as they are"), "{told}");
    machine.sh("test -f /var/lib/aptmesh/more/left; test ! -e /var/lib/aptmesh/index.sqlite");
}

#[test]
fn a_policy_that_nothing_starts_is_respected() {
    let machine = Machine::boot();
    machine.sh(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d",
    );
    machine.install(VERSION);
    assert!(!machine.is_active("aptmesh"), "it was started");
    machine.sh("systemctl is-enabled aptmesh && systemctl start aptmesh && aptmesh health");
}

#[test]
fn it_installs_where_no_systemd_runs() {
    let packages = format!("{}:{}:ro", deb::folder().display(), deb::FOLDER);
    let options = ["--init", "--volume", &packages, "--env", "DEBIAN_FRONTEND=noninteractive"];
    image();
    let bare =
        Container::start("bare", &options, &standin("debian:trixie-slim"), &["sleep", "infinity"]);
    let sh = |line: &str| bare.must(&["sh", "-ec", line]);
    sh(&format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        deb::path(VERSION)
    ));
    assert_eq!(sh("stat -c '%U:%G %a' /var/lib/aptmesh").trim(), "aptmesh:aptmesh 750");
    assert!(!bare.exec(&["sh", "-c", "command -v systemctl"]).ok, "systemd is not drawn in");
    let authorities = ["test", "-e", "/etc/ssl/certs/ca-certificates.crt"];
    assert!(!bare.exec(&authorities).ok, "it serves without ca-certificates, too");
    let started = bare.exec_with(&["--detach"], &["runuser", "-u", "aptmesh", "--", "aptmesh"]);
    assert!(started.ok, "{}", started.output);
    wait_until(PATIENCE, "it to serve", || bare.exec(&["aptmesh", "health"]).ok);
    sh(&format!("dpkg --install {} && dpkg --purge aptmesh", deb::path(NEXT_VERSION)));
    assert!(!bare.exec(&["test", "-e", "/var/lib/aptmesh"]).ok, "purged");
}

/// The settings are the lines that /etc/default/aptmesh shows, and the commands those that it tells.
#[test]
fn a_fleet_runs_on_postgresql_with_a_node_of_the_swarm() {
    let machine = Machine::with_package();
    machine.sh("systemctl start postgresql; cd /; runuser -u postgres -- createuser aptmesh");
    machine.sh("cd /; runuser -u postgres -- createdb --owner aptmesh aptmesh");
    machine.sh("aptmesh key | sudo install -m 0640 -g aptmesh /dev/stdin /etc/aptmesh/swarm.key");
    machine.sh(
        "echo postgres://aptmesh@%2Frun%2Fpostgresql/aptmesh | install -m 0640 -g aptmesh /dev/stdin /etc/aptmesh/index.url",
    );
    machine.sh("sed -i 's/^#APTMESH_/APTMESH_/' /etc/default/aptmesh");
    // What is set for both does not make the node listen where the proxy does.
    machine.sh("echo APTMESH_LISTEN_ADMIN=127.0.0.1:9978 >> /etc/default/aptmesh");
    // The one ends before the other begins.
    machine.sh("systemctl start aptmesh-proxy");
    assert!(!machine.is_active("aptmesh"));
    machine.sh("systemctl disable aptmesh; systemctl enable --now aptmesh-proxy aptmesh-dht");
    assert_eq!(machine.property("aptmesh-proxy", "NRestarts"), "0");
    let [proxy, dht] = ["aptmesh-proxy", "aptmesh-dht"].map(|unit| machine.main_pid(unit));
    machine.sh("aptmesh health; APTMESH_LISTEN_ADMIN=127.0.0.1:9982 aptmesh health");
    assert!(machine.journal("aptmesh-proxy").contains("migrated"), "the tables were made first");

    machine.use_cache();
    machine.sh("apt-get update; install -d /srv/debs; cd /srv/debs; apt-get download hello");
    let told = machine
        .sh("sudo -u aptmesh sh -c 'set -a; . /etc/default/aptmesh; aptmesh import /srv/debs'");
    assert!(told.contains("known:    1 files"), "{told}");

    machine.sh(&format!("dpkg --install {}", deb::path(NEXT_VERSION)));
    for (unit, old) in [("aptmesh-proxy", proxy), ("aptmesh-dht", dht)] {
        assert!(machine.is_active(unit) && machine.main_pid(unit) != old, "{unit} was restarted");
    }
    assert!(!machine.is_active("aptmesh"));
    machine.sh("cd /tmp; apt-get download hello");

    // Without the database, the fleet goes on.
    machine.sh("systemctl stop postgresql; systemctl restart aptmesh-proxy; aptmesh health --live");
    machine.sh("systemctl stop aptmesh-proxy aptmesh-dht");
    for unit in ["aptmesh-proxy", "aptmesh-dht"] {
        assert_eq!(machine.property(unit, "Result"), "success", "{}", machine.journal(unit));
    }
}
