//! Groups of settings that several services have, for `#[command(flatten)]`. A missing or wrong
//! setting stops the process at start: clap names it and says what is expected.

use std::{fmt, net::SocketAddr, str::FromStr};

use clap::{Args, Parser};
use sqlx::postgres::PgConnectOptions;

/// Settings of a service: they at least say where it listens.
pub trait Settings: Parser {
    /// Where it listens.
    fn addresses(&self) -> Addresses;
}

/// The service's own database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL address, for example postgres://order:secret@127.0.0.1:5432/order; where
    /// ENVIRONMENT is production, the password must not be that of development
    #[arg(
        id = "database-url",
        long,
        env = "DATABASE_URL",
        value_name = "DATABASE_URL",
        hide_env_values = true
    )]
    pub url: DatabaseUrl,
    /// Connections in the pool; few are faster than many: twice the cores is plenty
    #[arg(id = "database-pool-size", long, env = "DATABASE_POOL_SIZE", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(2..=100))]
    pub pool_size: u32,
}

/// The broker.
#[derive(Args, Clone, Debug)]
pub struct BrokerSettings {
    /// NATS address; the server must be 2.12 or later with JetStream
    #[arg(id = "nats-url", long, env = "NATS_URL", default_value = "nats://127.0.0.1:4222", value_parser = nats_url)]
    pub url: String,
}

/// Where a process listens. The default differs from service to service, so each gives its own.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The service's own API.
    pub listen: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
}

/// A database address whose password does not show in logs.
#[derive(Clone)]
pub struct DatabaseUrl(pub PgConnectOptions);

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("expected postgres://user:password@host:port/database".to_owned());
        }
        let expected =
            |error| format!("expected postgres://user:password@host:port/database: {error}");
        let options = text.parse().map_err(expected)?;
        let credentials = text
            .split("://")
            .nth(1)
            .and_then(|rest| rest.rsplit_once('@'))
            .map_or("", |(user, _)| user);
        not_of_development(
            credentials
                .split_once(':')
                .map_or("", |(_, password)| password),
        )?;
        Ok(Self(options))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.0.get_host(),
            self.0.get_port(),
            self.0.get_database().unwrap_or_default()
        )
    }
}

/// What development starts with, and everybody knows.
const DEVELOPMENT_SECRETS: [&str; 2] = ["sagacity", "sk_test_sagacity"];

/// Refuses a secret that everybody knows where `ENVIRONMENT` is `production`. For `value_parser`.
///
/// # Errors
/// Says so, without showing the secret.
pub fn not_of_development(secret: &str) -> Result<(), String> {
    refuse(secret, std::env::var("ENVIRONMENT").ok().as_deref())
}

fn refuse(secret: &str, environment: Option<&str>) -> Result<(), String> {
    match environment {
        None | Some("" | "development") => Ok(()),
        Some("production") if DEVELOPMENT_SECRETS.contains(&secret) => {
            Err("the secret is that of development: production needs one of its own".to_owned())
        }
        Some("production") => Ok(()),
        Some(other) => Err(format!(
            "ENVIRONMENT is {other:?}: expected development or production"
        )),
    }
}

fn nats_url(text: &str) -> Result<String, String> {
    match text.split_once("://") {
        Some(("nats" | "tls", host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("expected nats://host:port or tls://host:port".to_owned()),
    }
}

/// Checks the address of another service: `http://host:port`. For `value_parser`.
///
/// # Errors
/// Says what is expected.
pub fn service_url(text: &str) -> Result<String, String> {
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")) => {
            Ok(text.to_owned())
        }
        _ => Err("expected http://host:port".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_addresses_say_what_is_expected() {
        assert_eq!(
            nats_url("localhost:4222").unwrap_err(),
            "expected nats://host:port or tls://host:port"
        );
        assert_eq!(
            service_url("order:50051").unwrap_err(),
            "expected http://host:port"
        );
        assert!(
            "mysql://x"
                .parse::<DatabaseUrl>()
                .is_err_and(|error| error.starts_with("expected postgres://"))
        );
    }

    #[test]
    fn production_refuses_what_everybody_knows() {
        for environment in [None, Some(""), Some("development")] {
            assert_eq!(refuse("sagacity", environment), Ok(()));
        }
        assert_eq!(refuse("another", Some("production")), Ok(()));
        assert!(
            refuse("sagacity", Some("production"))
                .unwrap_err()
                .contains("production needs one of its own")
        );
        assert!(
            refuse("another", Some("prod"))
                .unwrap_err()
                .contains("expected development or production")
        );
    }

    #[test]
    fn a_database_password_does_not_show() {
        let url: DatabaseUrl = "postgres://order:secret@db:5432/order".parse().unwrap();
        assert_eq!(format!("{url:?}"), "db:5432/order");
    }
}
