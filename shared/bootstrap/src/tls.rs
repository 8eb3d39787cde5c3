//! Mutual TLS between the processes of the system.
//!
//! Each process has a directory with its certificate (`tls.crt`), the key of it (`tls.key`) and the
//! authority that signs the certificates of all (`ca.crt`): the layout of a Kubernetes secret of
//! cert-manager. A certificate names its process as a DNS name, for example `order`. That name
//! is checked and not the address, which says nothing about who is behind it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

/// How long a peer may take to show its certificate. Callers do not wait longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the files are read. Certificates are renewed hours before they expire.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// HTTP/2, as gRPC needs it.
const ALPN: &[u8] = b"h2";

/// The identity of this process, and whom it trusts; cheap to clone. Files that change are read
/// again, and count for connections from then on.
#[derive(Clone, Debug)]
pub struct Tls {
    directory: Arc<Path>,
    current: Arc<RwLock<Current>>,
}

#[derive(Clone, Debug)]
struct Current {
    files: Files,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What is in the directory.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Tls {
    /// # Errors
    /// Names the file that is missing or wrong.
    pub fn load(directory: PathBuf) -> anyhow::Result<Self> {
        let current = Files::read(&directory)?.parse()?;
        Ok(Self {
            directory: directory.into(),
            current: Arc::new(RwLock::new(current)),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the files again when they change, until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let mut failed = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFRESH_INTERVAL) => {}
                () = stopping.cancelled() => return Ok(()),
            }
            let refreshed = self.refresh();
            match &refreshed {
                Ok(true) => {
                    tracing::info!("the TLS certificate has changed; new connections use it")
                }
                // Once: this is looked at all the time.
                Err(error) if !failed => tracing::warn!(
                    error = format!("{error:#}"),
                    "the files of the TLS certificate cannot be used; the last one stays in use \
                     until they can"
                ),
                _ => {}
            }
            failed = refreshed.is_err();
        }
    }

    /// Whether the files have changed.
    fn refresh(&self) -> anyhow::Result<bool> {
        let files = Files::read(&self.directory)?;
        if files == self.current.read().files {
            return Ok(false);
        }
        let current = files.parse()?;
        *self.current.write() = current;
        Ok(true)
    }

    /// Accepts a peer whose certificate the authority has signed.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> std::io::Result<server::TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current.read().server));
        let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        accepted.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Connects to a process that has the certificate of `name`. Has no time limit.
    pub(crate) async fn connect(
        &self,
        name: &'static str,
        stream: TcpStream,
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.current.read().client));
        connector.connect(name, stream).await
    }
}

/// Whether a certificate is that of the process `name`.
pub(crate) fn belongs_to(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else {
        return false;
    };
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
}

impl Files {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| format!("TLS_DIR: read {}", path.display()))
        };
        Ok(Self {
            certificate: read("tls.crt")?,
            key: read("tls.key")?,
            authority: read("ca.crt")?,
        })
    }

    fn parse(self) -> anyhow::Result<Current> {
        let certificates = |pem: &[u8]| {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            parsed.context("expected certificates as PEM")
        };
        let chain = certificates(&self.certificate).context("TLS_DIR: tls.crt")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .context("TLS_DIR: tls.key: expected a private key as PEM")?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.authority).context("TLS_DIR: ca.crt")? {
            roots.add(root).context("TLS_DIR: ca.crt")?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots))
            .build()
            .context("TLS_DIR: ca.crt")?;
        let mut server = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .context("TLS_DIR: tls.crt and tls.key")?;
        let mut client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .context("TLS_DIR: tls.crt and tls.key")?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Current {
            files: self,
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

#[cfg(test)]
mod tests;
