//! Everything that the auditor judges, read from databases, streams and provider.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use anyhow::Context as _;
use contracts::{Service, Subject, choreography::subscriptions};
use serde::Deserialize;
use sqlx::{FromRow, postgres::PgRow};
use uuid::Uuid;

use crate::sources::Sources;

#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) orders: Vec<OrderRow>,
    pub(crate) events: Vec<EventRow>,
    pub(crate) payments: Vec<PaymentRow>,
    pub(crate) balances: Vec<Balance>,
    pub(crate) stock: Vec<StockRow>,
    pub(crate) reservations: Vec<ReservationRow>,
    pub(crate) notifications: Vec<NotificationRow>,
    pub(crate) outboxes: HashMap<Service, Vec<OutboxRow>>,
    pub(crate) set_aside: Vec<(Service, SetAside)>,
    pub(crate) replays: Vec<(Service, Replay)>,
    /// The events in the stream of each publisher.
    pub(crate) streams: HashMap<Service, HashMap<Uuid, Streamed>>,
    /// How many events the services were to handle.
    pub(crate) subscribed: usize,
    /// Those of them that are not in the inbox.
    pub(crate) unhandled: Vec<Unhandled>,
    /// When payment handled the creations and cancellations of orders that were charged and then
    /// cancelled, in seconds, by the clock of its database. By event.
    pub(crate) heard_by_payment: HashMap<Uuid, f64>,
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// Dead letters that an operator has discarded: service and event.
    pub(crate) discarded: Vec<(String, Uuid)>,
}

#[derive(FromRow)]
pub(crate) struct OrderRow {
    pub(crate) order_id: Uuid,
    pub(crate) customer_id: Uuid,
    pub(crate) status: String,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) paid: bool,
    pub(crate) refunded: bool,
    pub(crate) lines: serde_json::Value,
    pub(crate) total_amount: i64,
    pub(crate) total_currency: String,
    pub(crate) version: i32,
    /// In seconds, by the clock of the database.
    pub(crate) deadline: f64,
}

/// An event of the order service's event log, which is its outbox.
#[derive(FromRow)]
pub(crate) struct EventRow {
    pub(crate) event_id: Uuid,
    pub(crate) order_id: Uuid,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
}

#[derive(FromRow)]
pub(crate) struct PaymentRow {
    pub(crate) order_id: Uuid,
    pub(crate) customer_id: Uuid,
    pub(crate) status: String,
    pub(crate) amount: Option<i64>,
    pub(crate) currency: Option<String>,
    /// The provider's name for the charge.
    pub(crate) reference: Option<String>,
}

/// Money of one order in one currency at the provider, in minor units.
#[derive(Deserialize)]
pub(crate) struct Balance {
    pub(crate) order_id: String,
    pub(crate) currency: String,
    pub(crate) captured: i64,
    pub(crate) refunded: i64,
    pub(crate) captures: u32,
}

#[derive(FromRow)]
pub(crate) struct StockRow {
    pub(crate) sku: String,
    pub(crate) initial: i64,
    pub(crate) on_hand: i64,
    pub(crate) reserved: i64,
}

#[derive(FromRow)]
pub(crate) struct ReservationRow {
    pub(crate) order_id: Uuid,
    pub(crate) status: String,
    pub(crate) lines: serde_json::Value,
}

#[derive(FromRow)]
pub(crate) struct NotificationRow {
    pub(crate) order_id: Uuid,
    pub(crate) customer_id: Uuid,
    pub(crate) kind: String,
    /// Whether its mail has not been sent.
    pub(crate) is_mail_due: bool,
    /// Whether its mail could not be sent and is not sent any more.
    pub(crate) is_mail_given_up: bool,
    pub(crate) mail_attempts: i32,
}

#[derive(FromRow)]
pub(crate) struct OutboxRow {
    pub(crate) event_id: Uuid,
    pub(crate) subject: String,
    pub(crate) sent: bool,
    /// Whether the stream must still have the event: it keeps a day, and an event that every
    /// subscriber has handled need not come back to a broker that has lost it.
    pub(crate) is_retained: bool,
}

/// An event that cannot be published.
#[derive(FromRow)]
pub(crate) struct SetAside {
    pub(crate) event_id: Uuid,
    pub(crate) subject: String,
    pub(crate) reason: String,
}

/// Events that were published again, because the broker had lost them.
#[derive(FromRow)]
pub(crate) struct Replay {
    pub(crate) after_position: i64,
    pub(crate) until_position: i64,
    pub(crate) reason: String,
    pub(crate) at: String,
}

/// An event in a stream.
pub(crate) struct Streamed {
    pub(crate) copies: usize,
    /// Whether it was in the stream before the databases were read: its outbox must have it.
    pub(crate) precedes_snapshots: bool,
}

/// An event that was published, and is not in the inbox of a service that subscribes to it.
pub(crate) struct Unhandled {
    pub(crate) subscriber: Service,
    pub(crate) subject: Subject,
    pub(crate) event_id: Uuid,
}

pub(crate) struct DeadLetter {
    /// The service that gave up.
    pub(crate) service: Option<String>,
    pub(crate) event_id: Option<Uuid>,
    /// Subject and headers.
    pub(crate) description: String,
}

const ORDERS: &str = "SELECT order_id, customer_id, status, cancel_reason, paid, refunded, lines,
        total_amount, total_currency, version, extract(epoch FROM deadline)::float8 AS deadline
    FROM orders";
const OUTBOX: &str = "WITH settled AS (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1),
        published AS (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1)
    SELECT event_id, subject, position <= (SELECT position FROM published) AS sent,
        recorded_at > now() - interval '23 hours'
            AND position > (SELECT position FROM settled) AS is_retained
    FROM outbox";
const SET_ASIDE: &str = "SELECT event_id, subject, reason FROM outbox_set_aside";
const REPLAYS: &str = "SELECT after_position, until_position, reason, at::text AS at
    FROM outbox_replay ORDER BY id";
const EVENTS: &str = "SELECT event_id, order_id, subject, payload FROM outbox ORDER BY position";
const PAYMENTS: &str =
    "SELECT order_id, customer_id, status, amount, currency, reference FROM payments";
const STOCK: &str = "SELECT sku, initial, on_hand, reserved FROM stock";
const RESERVATIONS: &str = "SELECT order_id, status, lines FROM reservations";
/// The mails of a customer who was erased are given up on purpose.
const NOTIFICATIONS: &str =
    "SELECT order_id, customer_id, kind, mail_due_at IS NOT NULL AS is_mail_due, mail_attempts,
        mail_given_up_at IS NOT NULL AND customer_id <> order_id AS is_mail_given_up
    FROM notifications";
const NOT_IN_INBOX: &str = "SELECT event_id FROM unnest($1::uuid[]) AS e (event_id)
    WHERE NOT EXISTS (SELECT FROM inbox WHERE inbox.event_id = e.event_id)";
const HEARD: &str = "SELECT event_id, extract(epoch FROM received_at)::float8
    FROM inbox WHERE event_id = ANY($1)";

/// Inboxes remember events for eight days, by the age of the event.
const REMEMBERED_SECONDS: u64 = 7 * 24 * 3600;
/// Ids per query, so that a query has a bounded size however many events there are.
const STEP: usize = 10_000;

impl Facts {
    /// Reads everything. The order matters for what is still moving: an event that was in its
    /// stream before the snapshots is in the outbox that they show, and what they show as sent is
    /// in the stream when it is read after them.
    pub(crate) async fn read(sources: &mut Sources) -> anyhow::Result<Self> {
        use Service::{Inventory, Notification, Order, Payment};
        let last_sequences = sources.last_sequences().await?;
        sources.open_snapshots().await?;
        let mut outboxes = HashMap::new();
        let mut streams = HashMap::new();
        let (mut set_aside, mut replays) = (Vec::new(), Vec::new());
        for service in Service::ALL {
            outboxes.insert(service, rows(sources, service, OUTBOX).await?);
            let aside = rows(sources, service, SET_ASIDE).await?;
            set_aside.extend(aside.into_iter().map(|row| (service, row)));
            let again = rows(sources, service, REPLAYS).await?;
            replays.extend(again.into_iter().map(|row| (service, row)));
            if let Some(stream) = service.stream() {
                let last = last_sequences.get(&service).copied().unwrap_or_default();
                streams.insert(service, sources.stream(stream, last).await?);
            }
        }
        let mut facts = Self {
            orders: rows(sources, Order, ORDERS).await?,
            events: rows(sources, Order, EVENTS).await?,
            payments: rows(sources, Payment, PAYMENTS).await?,
            balances: sources.balances().await?,
            stock: rows(sources, Inventory, STOCK).await?,
            reservations: rows(sources, Inventory, RESERVATIONS).await?,
            notifications: rows(sources, Notification, NOTIFICATIONS).await?,
            outboxes,
            set_aside,
            replays,
            streams,
            subscribed: 0,
            unhandled: Vec::new(),
            heard_by_payment: HashMap::new(),
            dead_letters: sources.dead_letters().await?,
            discarded: sources.discarded().await?,
        };
        facts.read_inboxes(sources).await?;
        facts.read_what_payment_heard(sources).await?;
        Ok(facts)
    }

    /// Compares what was published with the inboxes of the subscribers. With the outboxes, because
    /// a stream may have lost what a subscriber has not handled.
    async fn read_inboxes(&mut self, sources: &mut Sources) -> anyhow::Result<()> {
        for subscriber in Service::ALL {
            for (owner, outbox) in &self.outboxes {
                let subjects = subscriptions(subscriber, *owner);
                let wanted: HashMap<Uuid, Subject> = outbox
                    .iter()
                    .filter(|row| row.sent && is_remembered(&row.event_id))
                    .filter_map(|row| Some((row.event_id, row.subject.parse().ok()?)))
                    .filter(|(_, subject)| subjects.contains(subject))
                    .collect();
                self.subscribed += wanted.len();
                let ids: Vec<Uuid> = wanted.keys().copied().collect();
                for ids in ids.chunks(STEP) {
                    let missing: Vec<Uuid> = sqlx::query_scalar(NOT_IN_INBOX)
                        .bind(ids)
                        .fetch_all(sources.database(subscriber)?)
                        .await
                        .with_context(|| format!("read the inbox of {subscriber}"))?;
                    let unhandled = missing.into_iter().map(|event_id| Unhandled {
                        subscriber,
                        subject: wanted[&event_id],
                        event_id,
                    });
                    self.unhandled.extend(unhandled);
                }
            }
        }
        Ok(())
    }

    async fn read_what_payment_heard(&mut self, sources: &mut Sources) -> anyhow::Result<()> {
        let charged: HashSet<&str> = self
            .balances
            .iter()
            .map(|balance| balance.order_id.as_str())
            .collect();
        let returned: HashSet<Uuid> = self
            .orders
            .iter()
            .filter(|order| order.status == "cancelled")
            .map(|order| order.order_id)
            .filter(|order| charged.contains(order.to_string().as_str()))
            .collect();
        let events = self.events.iter();
        let ids: Vec<Uuid> = events
            .filter(|event| returned.contains(&event.order_id))
            .map(|event| event.event_id)
            .collect();
        for ids in ids.chunks(STEP) {
            let heard: Vec<(Uuid, f64)> = sqlx::query_as(HEARD)
                .bind(ids)
                .fetch_all(sources.database(Service::Payment)?)
                .await
                .context("read the inbox of payment")?;
            self.heard_by_payment.extend(heard);
        }
        Ok(())
    }
}

/// Whether inboxes must still have an event: its id is a UUIDv7, which contains the time.
fn is_remembered(event: &Uuid) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let oldest = now
        .unwrap_or_default()
        .as_secs()
        .saturating_sub(REMEMBERED_SECONDS);
    let created = event.get_timestamp().map(|created| created.to_unix());
    created.is_none_or(|(seconds, _)| seconds >= oldest)
}

async fn rows<T>(
    sources: &mut Sources,
    service: Service,
    query: &'static str,
) -> anyhow::Result<Vec<T>>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let rows = sqlx::query_as(query).fetch_all(sources.database(service)?);
    rows.await
        .with_context(|| format!("read from the database of {service}"))
}
