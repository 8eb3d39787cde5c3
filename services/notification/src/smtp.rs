//! A mail server, and how a mail is handed to it: on a connection of its own.
//!
//! The client library can keep connections. It would also keep one on which a reply did not come in
//! time, and take each later reply for that to the command after it: a mail that the server refused
//! would count as sent.

use std::{error::Error as _, time::Duration};

use anyhow::{Context as _, bail};
use lettre::{
    Message,
    transport::smtp::{
        Error,
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, TlsParameters},
        extension::ClientId,
        response::Category,
    },
};
use percent_encoding::percent_decode_str;
use url::Url;

/// How long the server may take to say goodbye; the mail is accepted before.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Enhanced status codes that say nothing about the mail (RFC 3463): the mail system is full, takes
/// no mails, has no network, cannot look addresses up or is congested (some servers use the last
/// one for a quota), or has a policy about this client.
const NOT_ABOUT_THE_MAIL: [&str; 6] = ["5.3.1", "5.3.2", "5.4.2", "5.4.3", "5.4.5", "5.7."];

/// Cheap to clone.
#[derive(Clone)]
pub struct SmtpServer {
    host: String,
    port: u16,
    /// How this client introduces itself.
    name: ClientId,
    encryption: Encryption,
    credentials: Option<Credentials>,
}

#[derive(Clone)]
enum Encryption {
    None,
    /// STARTTLS, if the server offers it.
    Opportunistic(TlsParameters),
    /// STARTTLS.
    Required(TlsParameters),
    /// From the first byte on.
    Implicit(TlsParameters),
}

impl SmtpServer {
    /// The server at `smtp://host`, `smtp://host?tls=required`, `smtp://host?tls=opportunistic` or
    /// `smtps://host`, with `user:password@` if it asks for them. The path is the name of this
    /// client in EHLO.
    ///
    /// # Errors
    /// When it is another URL.
    pub fn from_url(url: &str) -> anyhow::Result<Self> {
        let url = Url::parse(url)?;
        let host = url.host_str().context("the host is missing")?.to_owned();
        let tls = url.query_pairs().find(|(name, _)| name == "tls");
        let parameters = || TlsParameters::new(host.clone());
        let (port, encryption) = match (url.scheme(), tls.as_ref().map(|(_, value)| &**value)) {
            ("smtp", None) => (25, Encryption::None),
            ("smtp", Some("opportunistic")) => (587, Encryption::Opportunistic(parameters()?)),
            ("smtp", Some("required")) => (587, Encryption::Required(parameters()?)),
            ("smtps", _) => (465, Encryption::Implicit(parameters()?)),
            _ => bail!("expected smtp or smtps, and tls=required or tls=opportunistic with smtp"),
        };
        let decode = |text| percent_decode_str(text).decode_utf8().map(String::from);
        let credentials = match url.password() {
            Some(password) => Some(Credentials::new(decode(url.username())?, decode(password)?)),
            None => None,
        };
        let name = match url.path().trim_matches('/') {
            "" => ClientId::default(),
            name => ClientId::Domain(name.to_owned()),
        };
        Ok(Self {
            host,
            name,
            port: url.port().unwrap_or(port),
            encryption,
            credentials,
        })
    }

    /// Returns when the server has accepted the mail. A caller that cannot wait any longer drops
    /// the future, and with it the connection.
    pub async fn send(&self, message: &Message) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let mail = message.formatted();
        connection.send(message.envelope(), &mail).await?;
        say_goodbye(connection);
        Ok(())
    }

    /// Whether the server refuses this very mail for good: 55z. A permanent code with another
    /// second digit is about the session, a wrong password for example (RFC 5321, section 4.2.1),
    /// and so are 554 instead of a greeting (RFC 5321, section 3.1) and [`NOT_ABOUT_THE_MAIL`].
    pub async fn has_refused_for_good(&self, error: &Error) -> bool {
        let code = error.status().filter(|_| error.is_permanent());
        let text = error.source().map(ToString::to_string).unwrap_or_default();
        let is_about_the_mail = !NOT_ABOUT_THE_MAIL
            .iter()
            .any(|class| text.starts_with(class));
        if code.is_none_or(|code| code.category != Category::MailSystem) || !is_about_the_mail {
            return false;
        }
        match self.connect().await {
            Ok(connection) => {
                say_goodbye(connection);
                true
            }
            Err(_) => false,
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let name = &self.name;
        let implicit = match &self.encryption {
            Encryption::Implicit(parameters) => Some(parameters.clone()),
            _ => None,
        };
        let address = (&*self.host, self.port);
        let connection = AsyncSmtpConnection::connect_tokio1(address, None, name, implicit, None);
        let mut connection = connection.await?;
        match &self.encryption {
            Encryption::Opportunistic(_) if !connection.can_starttls() => {}
            Encryption::Opportunistic(parameters) | Encryption::Required(parameters) => {
                connection.starttls(parameters.clone(), name).await?;
            }
            Encryption::None | Encryption::Implicit(_) => {}
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

/// Ends a connection in the background. Whether the server replies does not matter.
fn say_goodbye(mut connection: AsyncSmtpConnection) {
    tokio::spawn(async move { tokio::time::timeout(GOODBYE_TIMEOUT, connection.quit()).await });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_says_how_to_connect() {
        let server = |url| SmtpServer::from_url(url).unwrap();
        let plain = server("smtp://mail:1025");
        assert_eq!((&*plain.host, plain.port), ("mail", 1025));
        assert!(plain.credentials.is_none());
        assert!(matches!(plain.encryption, Encryption::None));
        let implicit = server("smtps://user%40shop:p%2Fw@mail.example.com");
        assert_eq!(implicit.port, 465);
        assert!(matches!(implicit.encryption, Encryption::Implicit(_)));
        let expected = Credentials::new("user@shop".to_owned(), "p/w".to_owned());
        assert_eq!(implicit.credentials, Some(expected));
        let required = server("smtp://mail/shop.example.com?tls=required");
        assert_eq!(
            required.name,
            ClientId::Domain("shop.example.com".to_owned())
        );
        assert!(matches!(required.encryption, Encryption::Required(_)));
        for wrong in [
            "http://mail",
            "smtp://mail?tls=maybe",
            "smtp:mail",
            "smtps://",
        ] {
            assert!(SmtpServer::from_url(wrong).is_err(), "{wrong}");
        }
    }
}
