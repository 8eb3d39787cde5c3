//! Everything that the auditor judges, read from databases, streams and provider.

use std::collections::HashMap;

use anyhow::Context as _;
use contracts::Service;
use serde::Deserialize;
use sqlx::{FromRow, postgres::PgRow};
use uuid::Uuid;

use crate::sources::Sources;

pub(crate) struct Facts {
    pub(crate) orders: Vec<OrderRow>,
    pub(crate) events: Vec<EventRow>,
    pub(crate) payments: Vec<PaymentRow>,
    pub(crate) balances: Vec<Balance>,
    pub(crate) stock: Vec<StockRow>,
    pub(crate) reservations: Vec<ReservationRow>,
    /// Order and kind.
    pub(crate) notifications: Vec<(Uuid, String)>,
    pub(crate) outboxes: HashMap<Service, Vec<OutboxRow>>,
    /// How often each event id is in the stream of a service.
    pub(crate) streams: HashMap<Service, HashMap<Uuid, usize>>,
    /// Subject and headers.
    pub(crate) dead_letters: Vec<String>,
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
}

/// An event of the order service's event log, which is its outbox.
#[derive(FromRow)]
pub(crate) struct EventRow {
    pub(crate) order_id: Uuid,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
}

#[derive(FromRow)]
pub(crate) struct PaymentRow {
    pub(crate) order_id: Uuid,
    pub(crate) status: String,
    pub(crate) amount: Option<i64>,
    pub(crate) currency: Option<String>,
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
pub(crate) struct OutboxRow {
    pub(crate) event_id: Uuid,
    pub(crate) subject: String,
    pub(crate) sent: bool,
    /// Whether the stream must still have the event: it keeps a day, and an event that every
    /// subscriber has handled need not come back to a broker that has lost it.
    pub(crate) is_retained: bool,
}

const OUTBOX: &str = "WITH settled AS (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1),
        published AS (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1)
    SELECT event_id, subject, position <= (SELECT position FROM published) AS sent,
        recorded_at > now() - interval '23 hours'
            AND position > (SELECT position FROM settled) AS is_retained
    FROM outbox";
const EVENTS: &str = "SELECT order_id, subject, payload FROM outbox ORDER BY position";
const PAYMENTS: &str = "SELECT order_id, status, amount, currency FROM payments";
const STOCK: &str = "SELECT sku, initial, on_hand, reserved FROM stock";
const RESERVATIONS: &str = "SELECT order_id, status, lines FROM reservations";
const NOTIFICATIONS: &str = "SELECT order_id, kind FROM notifications";

impl Facts {
    pub(crate) async fn read(sources: &mut Sources) -> anyhow::Result<Self> {
        use Service::{Inventory, Notification, Order, Payment};
        let mut outboxes = HashMap::new();
        let mut streams = HashMap::new();
        for service in Service::ALL {
            outboxes.insert(service, rows(sources, service, OUTBOX).await?);
            if let Some(stream) = service.stream() {
                streams.insert(service, sources.event_ids(stream).await?);
            }
        }
        Ok(Self {
            orders: rows(sources, Order, "SELECT * FROM orders").await?,
            events: rows(sources, Order, EVENTS).await?,
            payments: rows(sources, Payment, PAYMENTS).await?,
            balances: sources.balances().await?,
            stock: rows(sources, Inventory, STOCK).await?,
            reservations: rows(sources, Inventory, RESERVATIONS).await?,
            notifications: rows(sources, Notification, NOTIFICATIONS).await?,
            outboxes,
            streams,
            dead_letters: sources.dead_letters().await?,
        })
    }
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
