//! A certificate authority that lives as long as one test.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::sync::Arc;

/// Signs certificates that nobody trusts who was not given `pem()`.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "throw-away test authority");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// The authority's own certificate, for the trust store of a client.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Certificate and key for `names`, 127.0.0.1 and localhost, as PEM.
    pub fn certificate(&self, names: &[&str]) -> (String, String) {
        let (certificate, key) = self.signed(names);
        (certificate.pem(), key.serialize_pem())
    }

    fn signed(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let mut all = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        all.extend(names.iter().map(|name| (*name).to_owned()));
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(all)
            .expect("valid names")
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        (certificate, key)
    }

    /// What a server needs to answer as `names`, 127.0.0.1 and localhost.
    pub fn server_config(&self, names: &[&str]) -> Arc<ServerConfig> {
        let (certificate, key) = self.signed(names);
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("TLS versions")
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    PrivateKeyDer::Pkcs8(key.serialize_der().into()),
                )
                .expect("a usable certificate");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}
