//! What it costs a hit that it is seen: aptmesh with its access log and without, and then with traces, of which none
//! are sampled, some, and all; beside the same without the code of traces (`APTMESH_BENCH_UNTRACED`: `make bench` builds it)
//! and beside the binary of another version that `APTMESH_BENCH_BESIDE` names.

use crate::hits::{contender, measure, without_access_log};
use crate::kit::otlp::{Otlp, Way};
use crate::kit::{Proxy, proxy};
use crate::rivals::{Server, open_to_workers};
use crate::table::Table;
use crate::{SIZES, write_files};

pub fn run() {
    let files = tempfile::tempdir().unwrap();
    open_to_workers(files.path());
    write_files(files.path());
    let origin = Server::origin(files.path());
    let receiver = Otlp::start(Way::Http);
    let sampled = |ratio: &str| -> proxy::Build {
        let build = without_access_log(Proxy::build()).variables(receiver.variables());
        build
            .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
            .env("OTEL_TRACES_SAMPLER_ARG", ratio)
    };
    let mut proxies = vec![
        ("off", without_access_log(Proxy::build()).start()),
        // How much two processes of one kind differ.
        ("off, once more", without_access_log(Proxy::build()).start()),
        ("off, access log", Proxy::start()),
        ("on, none sampled", sampled("0").start()),
        ("on, 1 % sampled", sampled("0.01").start()),
        ("on, all sampled", sampled("1").start()),
    ];
    let others = [
        ("left out by the compiler", "APTMESH_BENCH_UNTRACED"),
        ("off, the other version", "APTMESH_BENCH_BESIDE"),
    ];
    for (name, variable) in others {
        if let Some(binary) = std::env::var_os(variable) {
            let binary = instead(&binary.to_string_lossy());
            proxies.push((name, without_access_log(Proxy::build()).prefix(binary).start()));
        }
    }
    let through = format!("/{}", origin.address);
    let contenders: Vec<_> = proxies
        .iter()
        .map(|(name, proxy)| contender(name, proxy.addr(), &through, vec![proxy.pid()]))
        .collect();

    let head = ["size", "traces", "requests/s", "of off", "CPU s/10k"];
    let mut table = Table::new("Traces: hits as above", &head);
    for (name, size) in SIZES.into_iter().take(2) {
        let measured = measure(&contenders, size);
        let off = measured[0].requests_per_second;
        for ((traces, _), measured) in proxies.iter().zip(&measured) {
            table.row(&[
                name.to_owned(),
                (*traces).to_owned(),
                format!("{:.0}", measured.requests_per_second),
                format!("{:.3}", measured.requests_per_second / off),
                format!("{:.3}", measured.cpu_per_10k_requests),
            ]);
        }
    }
    table.print();
}

/// What runs that binary instead of this version's.
fn instead(binary: &str) -> Vec<String> {
    let exec = format!("shift; exec '{binary}' \"$@\"");
    ["sh", "-c", &exec, "sh"].map(str::to_owned).to_vec()
}
