//! A certificate authority for development and tests, and the certificates that it signs. The
//! directories have the layout of a secret of cert-manager: `tls.crt`, `tls.key` and `ca.crt`.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::MEMBERS;

/// Longer ones are refused by some clients.
const VALIDITY: Duration = Duration::days(397);
/// Longer than anybody keeps a directory.
const VALIDITY_OF_AUTHORITY: Duration = Duration::days(3650);
/// Clocks of other machines may be late.
const BACKDATED: Duration = Duration::hours(1);
/// The directory of the authority itself.
const AUTHORITY: &str = "ca";
/// The tools of operators.
pub(crate) const OPERATOR: &str = "operator";
/// Their clients check the address of the server.
const SERVERS: [&str; 2] = ["postgres", "nats"];

/// A directory with one directory for each process.
#[derive(Clone, Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Issues a certificate to each process, each server and the tools. An authority that is in
    /// the directory already signs them, so that processes that trust it need no restart. Keys get
    /// the permissions `mode`.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn issue(directory: &Path, mode: u32) -> anyhow::Result<Self> {
        let certificates = Self(directory.to_owned());
        let (authority, issuer) = certificates.authority()?;
        let members = MEMBERS.iter().filter(|member| !member.stand_in);
        let names = members.map(|member| member.name);
        for name in names.chain(SERVERS).chain([OPERATOR]) {
            let mut hosts = vec![name.to_owned()];
            if SERVERS.contains(&name) {
                hosts.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
            }
            let key = KeyPair::generate()?;
            let mut leaf = params(name, hosts)?;
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            leaf.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let leaf = leaf.signed_by(&key, &issuer)?;
            let of = certificates.of(name);
            write(&of.join("ca.crt"), &authority, 0o644)?;
            write(&of.join("tls.key"), &key.serialize_pem(), mode)?;
            write(&of.join("tls.crt"), &leaf.pem(), 0o644)?;
        }
        Ok(certificates)
    }

    /// Those of an earlier run.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The directory of one process.
    pub fn of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The configuration of nats-server that asks its clients for a certificate of the authority.
    pub(crate) fn for_nats_server(&self) -> String {
        let of = self.of("nats");
        let of = of.display();
        format!(
            "tls {{\n    cert_file: \"{of}/tls.crt\"\n    key_file: \"{of}/tls.key\"\n    \
             ca_file: \"{of}/ca.crt\"\n    verify: true\n}}\n"
        )
    }

    /// The certificate of the authority as PEM, and what signs with it.
    fn authority(&self) -> anyhow::Result<(String, Issuer<'static, KeyPair>)> {
        let of = self.of(AUTHORITY);
        let (certificate, key) = (of.join("tls.crt"), of.join("tls.key"));
        if certificate.is_file() && key.is_file() {
            let read = |path: &Path| {
                std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
            };
            let pem = read(&certificate)?;
            let key = KeyPair::from_pem(&read(&key)?).context("the key of the authority")?;
            let issuer = Issuer::from_ca_cert_pem(&pem, key).context("the authority")?;
            return Ok((pem, issuer));
        }
        let signing_key = KeyPair::generate()?;
        let mut params = params("Sagacity development authority", Vec::new())?;
        params.not_after = params.not_before + VALIDITY_OF_AUTHORITY;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&signing_key)?.pem();
        write(&key, &signing_key.serialize_pem(), 0o600)?;
        write(&certificate, &pem, 0o644)?;
        Ok((pem, Issuer::new(params, signing_key)))
    }
}

/// `url` of a database for the process `name`; with certificates each side shows one.
pub(crate) fn postgres_url(certificates: Option<&Certificates>, name: &str, url: String) -> String {
    let Some(certificates) = certificates else {
        return url;
    };
    let of = certificates.of(name);
    let of = of.display();
    format!(
        "{url}?sslmode=verify-full&sslrootcert={of}/ca.crt\
         &sslcert={of}/tls.crt&sslkey={of}/tls.key"
    )
}

fn params(name: &str, hosts: Vec<String>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - BACKDATED;
    params.not_after = params.not_before + VALIDITY;
    Ok(params)
}

/// Replaces a file in one step: a process that reads it again sees a whole one.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let incomplete = path.with_extension("new");
    let write = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let _left_over = std::fs::remove_file(&incomplete);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&incomplete)?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&incomplete, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
