//! Sends the mails that are due. Several replicas share the work.
//!
//! A mail is sent at least once: one that the server took just before this process died is sent
//! again, with the same `Message-ID`, by which mail servers and programs know it.

use std::time::Duration;

use anyhow::Context as _;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
};
use messaging::outbox;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    store::{self, Kind, Mail},
};

/// Most mails at a time: as many as the client has connections.
const AT_ONCE: i64 = 10;
/// How often to look for mails that are due.
const POLL: Duration = Duration::from_millis(500);
/// How long sending one may take; shorter than shutdown waits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than that.
const LEASE: Duration = Duration::from_secs(30);
const SLOWEST_RETRY: Duration = Duration::from_secs(3600);

/// Carries mails to the server.
#[derive(Clone)]
pub(crate) struct Postman {
    pool: PgPool,
    server: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    domain: String,
}

impl Postman {
    /// The one whom the settings ask for, if any.
    pub(crate) fn hire(config: &Config, pool: PgPool) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.smtp_url else {
            return Ok(None);
        };
        // Once per process; whoever was first is fine.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(&url.0)
            .context("SMTP_URL")?
            .build();
        let (from, domain) = (
            config.mail_from.clone(),
            config.mail_customer_domain.clone(),
        );
        Ok(Some(Self {
            pool,
            server,
            from,
            domain,
        }))
    }

    /// Works until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            let sent = match self.round().await {
                Ok(sent) => sent,
                Err(error) => {
                    tracing::warn!(%error, "mails wait; the database does not answer");
                    0
                }
            };
            if sent < AT_ONCE as usize {
                tokio::select! { () = tokio::time::sleep(POLL) => {} () = shutdown.cancelled() => {} }
            }
        }
        Ok(())
    }

    /// Sends what is due; returns how many mails that were.
    async fn round(&self) -> sqlx::Result<usize> {
        let mails = store::lease(&self.pool, AT_ONCE, outbox::now() + LEASE).await?;
        let mut sending = JoinSet::new();
        for mail in mails {
            let postman = self.clone();
            sending.spawn(async move {
                let sent = postman.send(&mail).await;
                (mail, sent)
            });
        }
        let mut settled = Vec::new();
        while let Some(sent) = sending.join_next().await {
            let Ok((mail, sent)) = sent else { continue };
            let due = sent.err().map(|error| {
                let error = format!("{error:#}");
                tracing::warn!(order.id = %mail.order_id, attempts = mail.attempts + 1, error, "a mail waits");
                outbox::now() + retry_after(mail.attempts)
            });
            settled.push((mail.notification_id, due));
        }
        if !settled.is_empty() {
            store::settle(&self.pool, &settled).await?;
        }
        Ok(settled.len())
    }

    async fn send(&self, mail: &Mail) -> anyhow::Result<()> {
        let (order, domain) = (mail.order_id, &self.domain);
        let (subject, text) = match mail.kind {
            Kind::OrderConfirmed => (
                "confirmed",
                "Thank you: your order is confirmed and on its way to you.",
            ),
            Kind::OrderCancelled => ("cancelled", "Your order was cancelled. You pay nothing."),
            Kind::PaymentRefunded => (
                "refunded",
                "What you had paid for your order was given back to you.",
            ),
        };
        let message = Message::builder()
            .message_id(Some(format!("<{}@{domain}>", mail.notification_id)))
            .from(self.from.clone())
            .to(format!("{}@{domain}", mail.customer_id)
                .parse()
                .context("MAIL_CUSTOMER_DOMAIN")?)
            .subject(format!("Your order {order}: {subject}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("{text}\n\nOrder {order}\n"))
            .context("write the mail")?;
        let sent = tokio::time::timeout(TIMEOUT, self.server.send(message)).await;
        sent.context("the mail server does not answer")?
            .context("send the mail")?;
        tracing::info!(order.id = %order, customer.id = %mail.customer_id, kind = ?mail.kind, "mailed the customer");
        Ok(())
    }
}

/// One second, then twice as long each time, up to an hour.
fn retry_after(attempts: i32) -> Duration {
    Duration::from_secs(1 << attempts.clamp(0, 12)).min(SLOWEST_RETRY)
}
