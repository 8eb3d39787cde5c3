//! Sends the mails that are due. Several replicas share the work.
//!
//! A mail is sent at least once: one that the server accepted just before this process died, or
//! that could not be recorded as sent before the end of its lease, is sent again, with the same
//! `Message-ID`, so that mail servers and programs recognize it. One that cannot be sent is given
//! up: at once when it is refused for good, otherwise after [`LAST_ATTEMPT`].

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use backon::Retryable as _;
use bootstrap::shutdown;
use lettre::{
    Message,
    message::{Mailbox, header::ContentType},
};
use messaging::{Lookback, backoff, in_time};
use opentelemetry::{KeyValue, global, metrics::Counter};
use secrecy::ExposeSecret as _;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    kind::Kind,
    smtp::SmtpServer,
    store::{self, Mail, Outcome},
};

/// Mails that are sent at the same time.
const CONCURRENCY: usize = 10;
/// How often to look for mails that are due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long sending one mail may take.
const TIMEOUT: Duration = shutdown::STEP;
/// Longer than a mail takes, so that no other replica sends it, too.
pub const LEASE: Duration = Duration::from_secs(30);
/// The wait before an outcome that could not be recorded is recorded again.
const FIRST_RECORDING_RETRY: Duration = Duration::from_millis(100);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const SLOWEST_RETRY: Duration = Duration::from_secs(3600);
/// A mail that could not be sent by then is given up. With the delays above that is after about
/// three days: the first ten attempts take an hour, the others are one to two hours apart.
const LAST_ATTEMPT: u32 = 57;
/// What is kept of a reason, in characters.
const MAX_REASON: usize = 500;

#[derive(Clone)]
pub struct Mailer {
    pool: PgPool,
    server: SmtpServer,
    from: Mailbox,
    /// Domain of the customers' addresses.
    domain: String,
    mails: Counter<u64>,
}

/// Why a mail was not sent.
enum Failure {
    /// Another attempt would end the same way.
    Permanent(anyhow::Error),
    Temporary(anyhow::Error),
}

impl Mailer {
    /// `None` without `SMTP_URL`.
    pub fn from_config(config: &Config, pool: PgPool) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.smtp_url else {
            return Ok(None);
        };
        let meter = global::meter("notification");
        let mails = meter
            .u64_counter("notification.mails")
            .with_description("Attempts to send a mail by outcome: sent, retry, given_up")
            .with_unit("{mail}");
        Ok(Some(Self {
            pool,
            server: SmtpServer::from_url(url.expose_secret()).context("SMTP_URL")?,
            from: config.mail_from.clone(),
            domain: config.mail_customer_domain.clone(),
            mails: mails.build(),
        }))
    }

    /// Works until `stopping`; mails that are being sent are finished.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        if !shutdown::ends_in_time(self.work_until(&stopping), &stopping).await {
            tracing::warn!(
                "mails that are being sent could not be finished; they are sent again when their \
                 leases have expired"
            );
        }
        Ok(())
    }

    /// Each mail is sent and recorded by itself: a slow one takes one of [`CONCURRENCY`] places and
    /// holds up no other.
    async fn work_until(&self, stopping: &CancellationToken) {
        let mut sending = JoinSet::new();
        let mut lookback = Lookback::default();
        while !stopping.is_cancelled() {
            // A task that panicked is a bug that the panic hook has reported; its lease expires.
            while sending.try_join_next().is_some() {}
            let free = CONCURRENCY - sending.len();
            let since = Instant::now();
            match self.lease(free, &mut lookback).await {
                Ok(mails) => {
                    for mail in mails {
                        let mailer = self.clone();
                        sending.spawn(async move { mailer.deliver(&mail, since).await });
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "mails cannot be leased; the mailer retries in {POLL_INTERVAL:?}"
                    );
                    lookback = Lookback::default();
                }
            }
            // While every place is taken, more mails may be due: the next look waits for a place.
            tokio::select! {
                _ = sending.join_next(), if sending.len() == CONCURRENCY => {}
                () = tokio::time::sleep(POLL_INTERVAL), if sending.len() < CONCURRENCY => {}
                () = stopping.cancelled() => {}
            }
        }
        while sending.join_next().await.is_some() {}
    }

    async fn lease(&self, limit: usize, lookback: &mut Lookback) -> anyhow::Result<Vec<Mail>> {
        let reach = lookback.reach();
        let lease = async { Ok(store::lease(&self.pool, limit, LEASE, reach).await?) };
        let mails = in_time(lease).await?;
        if mails.len() < limit {
            lookback.found_all(reach);
        }
        Ok(mails)
    }

    /// Sends a mail and records what came of it. `since`: when the lease was asked for.
    async fn deliver(&self, mail: &Mail, since: Instant) {
        if since.elapsed() > LEASE - TIMEOUT {
            tracing::warn!(order.id = %mail.order_id,
                "the process was paused, and a mail was not sent in time; it is leased again");
            return;
        }
        let sent = tokio::time::timeout(TIMEOUT, self.send(mail)).await;
        let silence = |_| {
            Err(Failure::Temporary(anyhow!(
                "the mail server does not respond"
            )))
        };
        let outcome = outcome(mail, sent.unwrap_or_else(silence));
        let label = match &outcome {
            Outcome::Sent => "sent",
            Outcome::Retry(_) => "retry",
            Outcome::GivenUp(_) => "given_up",
        };
        self.mails.add(1, &[KeyValue::new("outcome", label)]);
        // Until it is recorded, the mail is due again at the end of its lease.
        let record =
            || in_time(async { Ok(store::record_outcome(&self.pool, mail, &outcome).await?) });
        let recorded = record.retry(backoff::exponential(FIRST_RECORDING_RETRY, FIRST_RETRY));
        let recorded = recorded.when(|_| since.elapsed() < LEASE);
        let recorded = recorded.notify(|error, delay| {
            tracing::warn!(order.id = %mail.order_id, error = format!("{error:#}"),
                "the outcome of a mail cannot be recorded; the next attempt is in {delay:?}");
        });
        if let Err(error) = recorded.await {
            tracing::warn!(order.id = %mail.order_id, error = format!("{error:#}"),
                "the outcome of a mail cannot be recorded; it is sent again when its lease has \
                 expired");
        }
    }

    async fn send(&self, mail: &Mail) -> Result<(), Failure> {
        // It would be composed the same way next time.
        let message = self.message(mail).context("compose the mail");
        let message = message.map_err(Failure::Permanent)?;
        let Err(error) = self.server.send(&message).await else {
            return Ok(());
        };
        let is_refused = self.server.has_refused_for_good(&error).await;
        let error = anyhow!(error).context("send the mail");
        Err(match is_refused {
            true => Failure::Permanent(error),
            false => Failure::Temporary(error),
        })
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
            .to(address.parse().context("the customer's address")?)
            .subject(format!("Your order {order}: {subject}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("{text}\n\nOrder {order}\n"))?;
        Ok(message)
    }
}

/// What comes of a mail.
fn outcome(mail: &Mail, sent: Result<(), Failure>) -> Outcome {
    let attempts = u32::try_from(mail.attempts).unwrap_or_default();
    let order = mail.order_id;
    match sent {
        Ok(()) => {
            tracing::info!(order.id = %order, kind = ?mail.kind,
                "mailed the customer");
            Outcome::Sent
        }
        Err(Failure::Temporary(error)) if attempts < LAST_ATTEMPT => {
            let delay = backoff::delay_after(attempts, FIRST_RETRY, SLOWEST_RETRY);
            tracing::warn!(order.id = %order, attempts, error = format!("{error:#}"),
                "a mail could not be sent; the next attempt is in {delay:?}");
            Outcome::Retry(delay)
        }
        Err(Failure::Temporary(error) | Failure::Permanent(error)) => {
            // PostgreSQL stores no NUL, and no log should get a second line.
            let reason = format!("{error:#}");
            let reason = reason.chars().filter(|letter| !letter.is_control());
            let reason: String = reason.take(MAX_REASON).collect();
            tracing::warn!(order.id = %order, kind = ?mail.kind, attempts,
                error = reason,
                "a mail was given up and is not sent again; mail_given_up_reason keeps the reason, \
                 and setting mail_due_at and mail_attempts of the notification sends it again");
            Outcome::GivenUp(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::{CustomerId, NotificationId, OrderId};
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    fn mail(attempts: u32) -> Mail {
        Mail {
            notification_id: NotificationId::new(),
            order_id: OrderId::new(),
            customer_id: CustomerId::new(),
            kind: Kind::OrderConfirmed,
            attempts: attempts.try_into().unwrap(),
        }
    }

    #[tokio::test]
    async fn an_address_that_the_library_rejects_is_given_up_at_once() {
        let mailer = Mailer {
            pool: PgPoolOptions::new()
                .connect_lazy("postgres://nowhere/nothing")
                .unwrap(),
            server: SmtpServer::from_url("smtp://nowhere").unwrap(),
            from: "shop@sagacity.example".parse().unwrap(),
            domain: "two words".to_owned(),
            mails: global::meter("test").u64_counter("mails").build(),
        };
        let mail = mail(1);
        let Outcome::GivenUp(reason) = outcome(&mail, mailer.send(&mail).await) else {
            panic!("the mail is not given up");
        };
        assert!(reason.contains("the customer's address"), "{reason}");
    }

    #[test]
    fn attempts_have_an_end_after_about_three_days() {
        let delays: Vec<Duration> = (1..=LAST_ATTEMPT)
            .map_while(|attempts| {
                let failure = Failure::Temporary(anyhow!("busy"));
                match outcome(&mail(attempts), Err(failure)) {
                    Outcome::Retry(delay) => Some(delay),
                    _ => None,
                }
            })
            .collect();
        assert_eq!(delays.len(), LAST_ATTEMPT as usize - 1);
        let day = Duration::from_secs(24 * 3600);
        let total: Duration = delays.iter().sum();
        assert!(total > day.mul_f64(1.5) && total < 5 * day, "{total:?}");
    }
}
