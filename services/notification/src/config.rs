//! Settings of the notification service; `notification --help` documents them.

use std::net::SocketAddr;

use bootstrap::settings::{Addresses, BrokerSettings, DatabaseSettings, Settings};
use clap::Parser;
use lettre::message::Mailbox;

/// The notification service of Sagacity: tells customers what became of their orders.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where gRPC listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50054")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9084")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Mail server, for example smtp://mail:1025 or smtps://user:password@mail.example.com; no
    /// mail is sent without
    #[arg(long, env = "SMTP_URL", value_name = "SMTP_URL", hide_env_values = true, value_parser = smtp_url)]
    pub smtp_url: Option<SmtpUrl>,
    /// Who mails come from
    #[arg(
        long,
        env = "MAIL_FROM",
        default_value = "Sagacity <shop@sagacity.example>"
    )]
    pub mail_from: Mailbox,
    /// Domain of the customers' addresses, until accounts know better: a mail goes to their id at
    /// this domain
    #[arg(
        long,
        env = "MAIL_CUSTOMER_DOMAIN",
        default_value = "customers.sagacity.example"
    )]
    pub mail_customer_domain: String,
}

/// An address with a password that does not show in logs.
#[derive(Clone)]
pub struct SmtpUrl(pub String);

impl std::fmt::Debug for SmtpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.rsplit('@').next().unwrap_or_default())
    }
}

fn smtp_url(text: &str) -> Result<SmtpUrl, String> {
    match text.split_once("://") {
        Some(("smtp" | "smtps", host)) if !host.is_empty() => Ok(SmtpUrl(text.to_owned())),
        _ => Err("expected smtp://host:port or smtps://user:password@host".to_owned()),
    }
}

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        Addresses {
            listen: self.listen,
            admin: self.admin_listen,
        }
    }
}
