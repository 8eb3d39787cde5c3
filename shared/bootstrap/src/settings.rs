//! Groups of settings that several services have, for `#[command(flatten)]`. A missing or wrong
//! setting stops the process at start: the error names the setting and what is expected.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, ValueEnum, error::ErrorKind};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgConnectOptions;

/// The settings of a service.
pub trait Settings: Parser {
    /// The settings that every process has.
    fn common(&self) -> Common;

    /// Checks what clap does not check: secrets, which clap would print, and combinations.
    ///
    /// # Errors
    /// Names the setting and what is expected.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Parses and validates the command line and the environment, or prints what is wrong and exits
/// with code 2.
pub(crate) fn parse<S: Settings>() -> S {
    let settings = S::parse();
    if let Err(error) = settings.validate() {
        S::command().error(ErrorKind::ValueValidation, error).exit();
    }
    settings
}

/// The settings that every process has.
#[derive(Clone, Debug)]
pub struct Common {
    /// Where the service's own API listens.
    pub listen: SocketAddr,
    /// Where health and metrics listen.
    pub admin_listen: SocketAddr,
    /// How long the process goes on serving after readiness has turned off.
    pub shutdown_lag: Duration,
    /// Whether this is production.
    pub environment: Environment,
    /// Directory of the process's certificate; without it there is no TLS between processes.
    pub tls_dir: Option<PathBuf>,
}

impl Common {
    /// On any free port: for a task that serves nothing and runs beside the service.
    #[must_use]
    pub fn on_free_ports(self) -> Self {
        Self {
            listen: local(0),
            admin_listen: local(0),
            ..self
        }
    }
}

/// The settings that every process has, with its default ports.
#[derive(Args, Clone, Debug)]
pub struct ProcessSettings<const PORT: u16, const ADMIN_PORT: u16> {
    /// Where the service's API listens
    #[arg(long, env = "LISTEN", default_value_t = local(PORT))]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value_t = local(ADMIN_PORT))]
    pub admin_listen: SocketAddr,
    /// Seconds between readiness turning off at shutdown and listeners closing, so that load
    /// balancers notice
    #[arg(long, env = "SHUTDOWN_LAG_SECONDS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=60))]
    pub shutdown_lag_seconds: u64,
    /// development, or production, which refuses the published secrets of development
    #[arg(long, env = "ENVIRONMENT", default_value = "development", value_parser = environment)]
    pub environment: Environment,
    /// Directory with the certificate of this process (tls.crt), its key (tls.key) and the
    /// authority of all certificates (ca.crt). gRPC and NATS then use mutual TLS, and services
    /// check who calls. Files that change are read again
    #[arg(long, env = "TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
}

impl<const PORT: u16, const ADMIN_PORT: u16> ProcessSettings<PORT, ADMIN_PORT> {
    /// Without the ports in the type.
    pub fn common(&self) -> Common {
        Common {
            listen: self.listen,
            admin_listen: self.admin_listen,
            shutdown_lag: Duration::from_secs(self.shutdown_lag_seconds),
            environment: self.environment,
            tls_dir: self.tls_dir.clone(),
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Where the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// On a developer's machine or in a test.
    Development,
    /// Where secrets must be secret.
    Production,
}

fn environment(text: &str) -> Result<Environment, String> {
    match text {
        "" | "development" => Ok(Environment::Development),
        "production" => Ok(Environment::Production),
        _ => Err("expected development or production".to_owned()),
    }
}

/// The secrets of the development setup. They are published with the source code.
const DEVELOPMENT_SECRETS: [&str; 2] = ["sagacity", "sk_test_sagacity"];

impl Environment {
    /// Rejects a secret of the development setup in production.
    ///
    /// # Errors
    /// Describes the problem without showing the secret.
    pub fn reject_development_secret(self, secret: &str) -> Result<(), String> {
        match self {
            Self::Production if DEVELOPMENT_SECRETS.contains(&secret) => Err(
                "this is the published secret of development; production needs one of its own"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

/// The order service keeps four: for the consumers of two streams and of redriven events, and for
/// the intake of orders. A request that reads and a periodic task then share no connection.
const SMALLEST_POOL: i64 = 6;

/// The service's own database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL address, for example postgres://order:secret@127.0.0.1:5432/order
    #[arg(
        id = "database-url",
        long,
        env = "DATABASE_URL",
        value_name = "DATABASE_URL",
        hide_env_values = true
    )]
    pub url: SecretString,
    /// Connections in the pool. The tasks of a service keep up to four of them; requests share the
    /// others
    #[arg(id = "database-pool-size", long, env = "DATABASE_POOL_SIZE", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(SMALLEST_POOL..=100))]
    pub pool_size: u32,
    /// Whether the service applies the migrations of its database when it starts, or waits until
    /// they are applied by its task `migrate`
    #[arg(long, env = "MIGRATIONS", value_enum, default_value_t = Migrations::Apply)]
    pub migrations: Migrations,
    /// Role of the service, when the owner of its tables is another one: the task `migrate` grants
    /// it its rights. Without it the service runs as the owner
    #[arg(
        id = "database-role",
        long,
        env = "DATABASE_ROLE",
        value_name = "DATABASE_ROLE"
    )]
    pub role: Option<String>,
}

/// Who applies migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Migrations {
    /// The service, when it starts.
    Apply,
    /// Something else, before: the service checks that they are applied.
    Check,
}

impl DatabaseSettings {
    /// Checks address and password.
    ///
    /// # Errors
    /// Names the setting and what is expected.
    pub fn validate(&self, environment: Environment) -> Result<(), String> {
        self.connect_options()?;
        let url = self.url.expose_secret();
        let credentials = url
            .split("://")
            .nth(1)
            .and_then(|rest| rest.rsplit_once('@'));
        let password = credentials.and_then(|(credentials, _)| credentials.split_once(':'));
        let password = password.map_or("", |(_, password)| password);
        environment
            .reject_development_secret(password)
            .map_err(|error| format!("DATABASE_URL: {error}"))
    }

    /// The role that is granted its rights, if it is not the owner.
    pub(crate) fn role(&self) -> Option<&str> {
        self.role.as_deref().filter(|role| !role.is_empty())
    }

    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions, String> {
        let url = self.url.expose_secret();
        let expected = "DATABASE_URL: expected postgres://user:password@host:port/database";
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(expected.to_owned());
        }
        // The parser's own error could repeat the address, and the password with it.
        url.parse().map_err(|_| expected.to_owned())
    }
}

/// The broker.
#[derive(Args, Clone, Debug)]
pub struct BrokerSettings {
    /// NATS address, or those of the servers of a cluster, separated by commas; 2.12 or later with
    /// JetStream
    #[arg(id = "nats-url", long, env = "NATS_URL", default_value = "nats://127.0.0.1:4222", value_parser = nats_url)]
    pub url: String,
    /// Password of the service's user at NATS, which is named like the service; without one NATS
    /// must not ask for any
    #[arg(long, env = "NATS_PASSWORD", hide_env_values = true)]
    pub nats_password: Option<SecretString>,
    /// Bytes of the stream of each publisher, the same for all services; the broker's store must
    /// hold three of them and 784 MiB
    #[arg(long, env = "STREAM_MAX_BYTES", default_value_t = 2_147_483_648,
          value_parser = clap::value_parser!(i64).range(65_536..))]
    pub stream_max_bytes: i64,
    /// Servers of a NATS cluster that keep a copy of each stream, the same for all services: 1, 3
    /// or 5. A stream that has more keeps them
    #[arg(long, env = "STREAM_REPLICAS", default_value_t = 1, value_parser = stream_replicas)]
    pub stream_replicas: usize,
}

impl BrokerSettings {
    /// Checks the password.
    ///
    /// # Errors
    /// Names the setting and what is expected.
    pub fn validate(&self, environment: Environment) -> Result<(), String> {
        // The client would ignore it, and the log would show it. clap would print it, too.
        if self.url.contains('@') {
            return Err(
                "NATS_URL: the address has a user: the password belongs into NATS_PASSWORD"
                    .to_owned(),
            );
        }
        let checked = match (self.password(), environment) {
            (None, Environment::Production) => Err("production needs one".to_owned()),
            (password, _) => environment.reject_development_secret(password.unwrap_or_default()),
        };
        checked.map_err(|error| format!("NATS_PASSWORD: {error}"))
    }

    /// The password, if there is one.
    pub fn password(&self) -> Option<&str> {
        let password = self
            .nats_password
            .as_ref()
            .map(|password| password.expose_secret());
        password.filter(|password| !password.is_empty())
    }
}

fn stream_replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(replicas @ (1 | 3 | 5)) => Ok(replicas),
        _ => Err("expected 1, 3 or 5".to_owned()),
    }
}

fn nats_url(text: &str) -> Result<String, String> {
    let is_address = |address: &str| {
        let parts = address.split_once("://");
        parts.is_some_and(|(scheme, host)| matches!(scheme, "nats" | "tls") && !host.is_empty())
    };
    match text.split(',').all(is_address) {
        true => Ok(text.to_owned()),
        false => Err("expected nats://host:port or tls://host:port".to_owned()),
    }
}

/// Checks the addresses of another service: `http://host:port` or `https://host:port`, or those of
/// its replicas, separated by commas. For `value_parser`.
///
/// # Errors
/// States what is expected.
pub fn service_urls(text: &str) -> Result<String, String> {
    let urls = text.split(',').map(service_url);
    urls.collect::<Result<Vec<_>, _>>()?;
    Ok(text.to_owned())
}

/// Checks one address: `http://host:port` or `https://host:port`. For `value_parser`.
///
/// # Errors
/// States what is expected.
pub fn service_url(text: &str) -> Result<String, String> {
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")) => {
            Ok(text.to_owned())
        }
        _ => Err("expected http://host:port or https://host:port".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(url: &str) -> DatabaseSettings {
        DatabaseSettings {
            url: url.to_owned().into(),
            pool_size: 2,
            migrations: Migrations::Apply,
            role: None,
        }
    }

    #[test]
    fn a_wrong_address_is_rejected_with_what_is_expected() {
        let error = nats_url("localhost:4222").unwrap_err();
        assert_eq!(error, "expected nats://host:port or tls://host:port");
        let error = service_url("order:50051").unwrap_err();
        assert_eq!(error, "expected http://host:port or https://host:port");
        for wrong in [
            "mysql://x",
            "postgres//order:secret@x/y",
            "postgres://[:secret",
        ] {
            let error = database(wrong).validate(Environment::Development);
            let error = error.unwrap_err();
            assert!(
                error.starts_with("DATABASE_URL: expected postgres://"),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn production_rejects_the_secrets_of_development() {
        let of_development = database("postgres://order:sagacity@db:5432/order");
        assert_eq!(of_development.validate(Environment::Development), Ok(()));
        let error = of_development
            .validate(Environment::Production)
            .unwrap_err();
        assert!(error.contains("production needs one of its own"), "{error}");
        let own = database("postgres://order:another@db:5432/order");
        assert_eq!(own.validate(Environment::Production), Ok(()));
        assert_eq!(environment(""), Ok(Environment::Development));
        assert!(environment("prod").is_err());
    }

    #[test]
    fn a_database_password_is_hidden() {
        let shown = format!("{:?}", database("postgres://order:secret@db:5432/order"));
        assert!(!shown.contains("secret@"), "{shown}");
    }
}
