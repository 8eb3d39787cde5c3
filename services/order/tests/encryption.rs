//! Encrypted connections to PostgreSQL, NATS and a collector, each with a server whose certificate
//! a private authority has signed. The order service stands for all services: they share the
//! chassis.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use devstack::{
    Durability, Logs, NatsServer, Postgres, Reaper, TemporaryDirectory, free_port,
    test::{Program, eventually},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use sqlx::{Connection as _, PgConnection};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const ORDER: &str = env!("CARGO_BIN_EXE_order");

/// A private authority and the certificate of a server `localhost`, as files in `directory`.
struct Certificates {
    authority: String,
    certificate: String,
    key: String,
}

impl Certificates {
    fn make(directory: &Path) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = server.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        Self {
            authority: write("authority.pem", authority_certificate.pem()),
            certificate: write("certificate.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }
}

/// A PostgreSQL server that takes encrypted connections only.
async fn postgres(
    directory: &Path,
    certificates: &Certificates,
    logs: &Logs,
    reaper: &Reaper,
) -> Postgres {
    let port = free_port().unwrap();
    let place = directory.join("postgres");
    let server = Postgres::start(&place, port, Durability::Ephemeral, logs, reaper);
    let server = server.await.unwrap();
    // The server refuses a key that others may read.
    let data = place.join("data");
    for (file, name) in [
        (&certificates.certificate, "server.crt"),
        (&certificates.key, "server.key"),
    ] {
        let owner = data.metadata().unwrap();
        let path = data.join(name);
        std::fs::copy(file, &path).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let mut administrator = PgConnection::connect(&server.admin_url()).await.unwrap();
    let hba = "hostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust\n";
    std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
    for statement in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        let statement = sqlx::query(statement).execute(&mut administrator);
        statement.await.unwrap();
    }
    administrator.close().await.unwrap();
    server
}

/// Counts encrypted connections to a collector.
async fn collector(certificates: &Certificates) -> (String, tokio::sync::watch::Receiver<u32>) {
    let read = |path: &str| std::fs::read(path).unwrap();
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(&read(&certificates.certificate))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(&certificates.key)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, connections) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            if acceptor.accept(stream).await.is_ok() {
                seen.send_modify(|seen| *seen += 1);
            }
        }
    });
    (format!("https://localhost:{port}"), connections)
}

/// What the processes of this test have logged.
fn log() -> String {
    let log = format!("test-logs/{}-order/order.log", std::process::id());
    let log = devstack::tools::target_directory().join(log);
    std::fs::read_to_string(log).unwrap_or_default()
}

#[tokio::test]
async fn connections_are_encrypted_and_a_certificate_of_another_authority_is_refused() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/encryption"));
    let certificates = Certificates::make(directory.path());
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let other = Certificates::make(&other);

    let server = postgres(directory.path(), &certificates, &logs, &reaper).await;
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n",
        certificates.certificate, certificates.key
    );
    let (place, port) = (directory.path().join("nats"), free_port().unwrap());
    let broker = NatsServer::start_with(&place, port, &tls, &logs, &reaper);
    let broker = broker.await.unwrap();
    let (collector, connections) = collector(&certificates).await;
    let database = |authority: &str| {
        let url = server.url("postgres", "postgres");
        let url = url.replace("127.0.0.1", "localhost");
        format!("{url}?sslmode=verify-full&sslrootcert={authority}")
    };
    let broker_url = broker.url().replace("nats://127.0.0.1", "tls://localhost");
    let spawn = |database: &str, authorities: &str| {
        let settings = [
            ("DATABASE_URL", database),
            ("NATS_URL", &broker_url),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector),
            ("SSL_CERT_FILE", authorities),
        ];
        Program::spawn(ORDER, &settings).unwrap()
    };

    let trusted = &certificates.authority;
    let mut program = spawn(&database(trusted), trusted);
    program.wait_until_ready().await.unwrap();
    eventually("telemetry is exported", async || *connections.borrow() > 0).await;
    program.terminate().unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(0));

    for (what, database, authorities) in [
        // The driver also trusts the authorities in SSL_CERT_FILE.
        ("database", database(&other.authority), &other.authority),
        ("broker", database(trusted), &other.authority),
    ] {
        let before = log().len();
        let mut program = spawn(&database, authorities);
        eventually(what, async || {
            log()[before..].contains("invalid peer certificate")
        })
        .await;
        program.terminate().unwrap();
        program.wait().await.unwrap();
    }
    let plain = server.url("postgres", "postgres") + "?sslmode=disable";
    assert!(PgConnection::connect(&plain).await.is_err());
    broker.stop().await.unwrap();
    server.stop().await.unwrap();
}
