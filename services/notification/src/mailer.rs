//! Sends the mails that are due. Several replicas share the work.
//!
//! A mail is sent at least once: one that the server accepted just before this process died is sent
//! again, with the same `Message-ID`, so that mail servers and programs recognize it.

use std::time::Duration;

use anyhow::Context as _;
use bootstrap::shutdown;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
};
use messaging::backoff;
use secrecy::ExposeSecret as _;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    kind::Kind,
    store::{self, Mail},
};

/// Mails per round: as many as the client has connections.
const BATCH: i64 = 10;
/// How often to look for mails that are due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long sending one mail may take.
const TIMEOUT: Duration = shutdown::STEP;
/// Longer than a round takes, so that no other replica sends its mails, too.
const LEASE: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const SLOWEST_RETRY: Duration = Duration::from_secs(3600);

#[derive(Clone)]
pub struct Mailer {
    pool: PgPool,
    server: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    /// Domain of the customers' addresses.
    domain: String,
}

impl Mailer {
    /// `None` without `SMTP_URL`.
    pub fn from_config(config: &Config, pool: PgPool) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.smtp_url else {
            return Ok(None);
        };
        let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret());
        Ok(Some(Self {
            pool,
            server: server.context("SMTP_URL")?.build(),
            from: config.mail_from.clone(),
            domain: config.mail_customer_domain.clone(),
        }))
    }

    /// Works until `stopping`; a round that has started is finished.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        while !stopping.is_cancelled() {
            let is_full = match self.round().await {
                Ok(mails) => mails == BATCH as usize,
                Err(error) => {
                    tracing::warn!(%error,
                        "mails cannot be leased or recorded; the mailer retries in {POLL_INTERVAL:?}");
                    false
                }
            };
            if !is_full {
                tokio::select! {
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                    () = stopping.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    /// Sends mails that are due, at the same time; returns how many there were.
    async fn round(&self) -> sqlx::Result<usize> {
        let mut sending = JoinSet::new();
        for mail in store::lease(&self.pool, BATCH, LEASE).await? {
            let mailer = self.clone();
            sending.spawn(async move {
                let sent = mailer.send(&mail).await;
                (mail, sent)
            });
        }
        let mut deliveries = Vec::new();
        while let Some(joined) = sending.join_next().await {
            // A task that panicked is a bug that the panic hook has reported; its lease expires.
            let Ok((mail, sent)) = joined else { continue };
            deliveries.push((mail.notification_id, retry_delay(&mail, sent.err())));
        }
        if !deliveries.is_empty() {
            store::record_delivery(&self.pool, &deliveries).await?;
        }
        Ok(deliveries.len())
    }

    async fn send(&self, mail: &Mail) -> anyhow::Result<()> {
        let message = self.message(mail).context("compose the mail")?;
        let sent = tokio::time::timeout(TIMEOUT, self.server.send(message)).await;
        sent.context("the mail server does not respond")?
            .context("send the mail")?;
        tracing::info!(order.id = %mail.order_id, customer.id = %mail.customer_id, kind = ?mail.kind,
            "mailed the customer");
        Ok(())
    }

    fn message(&self, mail: &Mail) -> anyhow::Result<Message> {
        let (order, domain) = (mail.order_id, &self.domain);
        let (subject, text) = match mail.kind {
            Kind::OrderConfirmed => (
                "confirmed",
                "Thank you: your order is confirmed and on its way to you.",
            ),
            Kind::OrderCancelled => ("cancelled", "Your order was cancelled. You pay nothing."),
            Kind::PaymentRefunded => ("refunded", "Your payment for this order was refunded."),
        };
        let address = format!("{}@{domain}", mail.customer_id);
        let message = Message::builder()
            .message_id(Some(format!("<{}@{domain}>", mail.notification_id)))
            .from(self.from.clone())
            .to(address.parse().context("MAIL_CUSTOMER_DOMAIN")?)
            .subject(format!("Your order {order}: {subject}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("{text}\n\nOrder {order}\n"))?;
        Ok(message)
    }
}

/// When to send a mail again; `None` when it was sent.
fn retry_delay(mail: &Mail, error: Option<anyhow::Error>) -> Option<Duration> {
    let error = error?;
    let attempts = u32::try_from(mail.attempts).unwrap_or_default();
    let delay = backoff::delay_after(attempts, FIRST_RETRY, SLOWEST_RETRY);
    tracing::warn!(order.id = %mail.order_id, attempts, error = format!("{error:#}"),
        "a mail could not be sent; the next attempt is in {delay:?}");
    Some(delay)
}
