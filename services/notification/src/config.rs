//! Settings of the notification service; `notification --help` documents them.

use bootstrap::settings::{Common, Settings};
use chassis::{ServiceSettings, Task};
use clap::Parser;
use lettre::{Address, message::Mailbox};
use secrecy::{ExposeSecret as _, SecretString};

/// The notification service of Sagacity: notifies customers of the outcomes of their orders
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    pub service: ServiceSettings<50054, 9084>,
    /// Mail server, for example smtp://mail:1025 or smtps://user:password@mail.example.com; without
    /// it no mail is sent
    #[arg(
        long,
        env = "SMTP_URL",
        value_name = "SMTP_URL",
        hide_env_values = true
    )]
    pub smtp_url: Option<SecretString>,
    /// Sender of the mails
    #[arg(
        long,
        env = "MAIL_FROM",
        default_value = "Sagacity <shop@sagacity.example>"
    )]
    pub mail_from: Mailbox,
    /// Domain of the customers' addresses, as long as there are no accounts: a mail goes to the
    /// customer's id at this domain
    #[arg(
        long,
        env = "MAIL_CUSTOMER_DOMAIN",
        default_value = "customers.sagacity.example"
    )]
    pub mail_customer_domain: String,
    /// Run this task instead of the service
    #[command(subcommand)]
    pub task: Option<Task>,
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.service.common(self.task.as_ref())
    }

    fn validate(&self) -> Result<(), String> {
        self.service.validate()?;
        let address = format!("customer@{}", self.mail_customer_domain);
        let address = address.parse::<Address>();
        address.map_err(|error| format!("MAIL_CUSTOMER_DOMAIN: {error}"))?;
        let url = self.smtp_url.as_ref().map(|url| url.expose_secret());
        match url.map(|url| url.split_once("://")) {
            None | Some(Some(("smtp" | "smtps", _))) => Ok(()),
            Some(_) => {
                let expected = "expected smtp://host:port or smtps://user:password@host";
                Err(format!("SMTP_URL: {expected}"))
            }
        }
    }
}
