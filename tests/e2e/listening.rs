//! Where it listens, on machines with both versions of IP, or with one.

use crate::kit::node::{on_a_network_of_its_own, swarm_key};
use crate::kit::{Proxy, aptmesh, get};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

const EVERYWHERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn over_ipv4(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, address.port()).into()
}

fn over_ipv6(address: SocketAddr) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, address.port()).into()
}

/// Sets what the kernel says of IPv6 on the network of this thread.
fn set(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv6/{name}"), value).expect("to be root");
}

/// A library that makes a kernel one without IPv6 for whoever has it loaded first.
fn no_ipv6(folder: &TempDir) -> PathBuf {
    const CODE: &str = "#include <dlfcn.h>\n#include <errno.h>\n#include <sys/socket.h>\n\
        int socket(int domain, int type, int protocol) {\n\
        if (domain == AF_INET6) { errno = EAFNOSUPPORT; return -1; }\n\
        int (*real)(int, int, int) = dlsym(RTLD_NEXT, \"socket\");\n\
        return real(domain, type, protocol); }\n";
    let (code, library) = (folder.path().join("no_ipv6.c"), folder.path().join("no_ipv6.so"));
    fs::write(&code, CODE).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]).arg(&library).arg(&code);
    assert!(compiler.status().expect("a C compiler").success());
    library
}

#[test]
fn everywhere_means_both_versions_whatever_the_host_prefers() {
    on_a_network_of_its_own(|| {
        for only_its_own in ["0", "1"] {
            set("bindv6only", only_its_own);
            let proxy = Proxy::build().at(EVERYWHERE).start();
            assert_eq!(get(over_ipv4(proxy.addr()), "/").status, 406, "{only_its_own}");
            assert_eq!(get(over_ipv6(proxy.addr()), "/").status, 406, "{only_its_own}");
        }
    });
}

#[test]
fn both_versions_may_be_named() {
    on_a_network_of_its_own(|| {
        let both = ["--listen", "0.0.0.0:9977", "--listen", "[::]:9977"];
        let build = both.into_iter().fold(Proxy::build(), |build, arg| build.arg(arg));
        let _proxy = build.start();
        for address in ["127.0.0.1:9977", "[::1]:9977"] {
            assert_eq!(get(address.parse().unwrap(), "/").status, 406, "{address}");
        }
    });
}

#[test]
fn a_site_starts_with_its_defaults_where_nothing_has_an_ipv6_address() {
    on_a_network_of_its_own(|| {
        set("conf/all/disable_ipv6", "1");
        let site = Proxy::build().at(EVERYWHERE).env("APTMESH_SWARM_KEY", swarm_key()).start();
        assert_eq!(get(over_ipv4(site.addr()), "/").status, 406);
        for port in [9979, 9980] {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("its other ports");
        }
        let admin = site.admin().to_string();
        let health = aptmesh().args(["health", "--admin-listen", &admin]).output().unwrap();
        assert!(health.status.success(), "{health:?}");
    });
}

#[test]
fn a_site_starts_with_its_defaults_where_the_kernel_has_no_ipv6() {
    on_a_network_of_its_own(|| {
        let folder = TempDir::new().unwrap();
        let site = Proxy::build()
            .at(EVERYWHERE)
            .env("LD_PRELOAD", no_ipv6(&folder))
            .env("APTMESH_SWARM_KEY", swarm_key())
            .start();
        assert_eq!(site.addr().ip(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(get(over_ipv4(site.addr()), "/").status, 406);
        assert!(site.log().contains("there is no IPv6 here: listening on 0.0.0.0:9979"));
        for port in [9979, 9980] {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("its other ports");
        }
    });
}
