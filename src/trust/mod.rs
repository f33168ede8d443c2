//! Whose certificates are believed: those of the system's authorities, and of the operator's. One place
//! for all HTTP clients; none of them needs any authority for what is not TLS.

mod verifier;

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, OtherError, RootCertStore};
use thiserror::Error;

use self::verifier::Verifier;

/// How often it is looked whether the system has authorities by now: somebody installs them, and should
/// not have to wait for long; each look costs a few system calls in a task's way.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The machine's, so there is one for the process.
static SYSTEM: LazyLock<System> = LazyLock::new(System::look);
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Nobody is there who could vouch for a server.
#[derive(Clone, Copy, Debug, Error)]
#[error("its certificate can not be checked: no certificate authorities here (ca-certificates)")]
struct NoAuthorities;

/// TLS as an HTTP client speaks it, with servers that the system's authorities or `besides` vouch for.
///
/// # Errors
/// When one of `besides` is no certificate of an authority.
pub fn client(besides: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in besides {
        roots.add(certificate)?;
    }
    // Looked at now, so that what is missing is said at the start.
    LazyLock::force(&SYSTEM);
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(by(roots))))
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

/// The certificates in a PEM file.
///
/// # Errors
/// When it can not be read, or has none.
pub fn certificates_in(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unread = match CertificateDer::pem_file_iter(path) {
        Ok(certificates) => certificates.collect::<Result<Vec<_>, _>>(),
        Err(error) => Err(error),
    };
    let certificates = match unread {
        Err(pem::Error::Io(error)) => {
            Err(error).with_context(|| format!("could not read {}", path.display()))
        }
        read => read.with_context(|| format!("{} is no PEM file of certificates", path.display())),
    }?;
    anyhow::ensure!(!certificates.is_empty(), "{} has no certificate", path.display());
    Ok(certificates)
}

/// Why a server was not believed, if `cause` is that nobody could vouch for any. Those between do not tell it
/// as their cause, and wrap it in words of their own.
#[must_use]
pub fn nobody_to_ask(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(rustls::Error::Other(OtherError(why))) = cause.downcast_ref() {
        return why.is::<NoAuthorities>().then(|| why.to_string());
    }
    nobody_to_ask(cause.downcast_ref::<io::Error>()?.get_ref()?)
}

/// The verifier by these authorities; `None` when there are none.
fn by(roots: RootCertStore) -> Option<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&PROVIDER)).build().ok()
}

/// The system's authorities. They are read once, and while there are none, now and then again.
struct System(Mutex<Looked>);

struct Looked {
    found: Option<Arc<WebPkiServerVerifier>>,
    at: Instant,
}

impl System {
    fn look() -> Self {
        let found = of_system();
        if found.is_none() {
            tracing::warn!(
                "this system has no certificate authorities (ca-certificates): https can not be checked, but \
                 for mirrors that mirror.ca_file vouches for, and is not used"
            );
        }
        Self(Mutex::new(Looked { found, at: Instant::now() }))
    }

    fn verifier(&self) -> Option<Arc<WebPkiServerVerifier>> {
        let mut looked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.found.is_none() && looked.at.elapsed() >= LOOK_AGAIN_AFTER {
            *looked = Looked { found: of_system(), at: Instant::now() };
            if looked.found.is_some() {
                tracing::info!("this system has certificate authorities now: https is used");
            }
        }
        looked.found.clone()
    }
}

fn of_system() -> Option<Arc<WebPkiServerVerifier>> {
    let read = rustls_native_certs::load_native_certs();
    for error in &read.errors {
        tracing::debug!(%error, "a certificate authority of the system's could not be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read.certs);
    by(roots)
}
