//! Everything the auditor looks at, read from where it is kept.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use async_nats::jetstream::{self, consumer::pull};
use contracts::choreography::Service;
use devstack::Endpoints;
use futures::TryStreamExt as _;
use serde::Deserialize;
use sqlx::{FromRow, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

/// Connections to everything.
pub(crate) struct Sources {
    pub(crate) databases: BTreeMap<Service, PgPool>,
    pub(crate) jetstream: jetstream::Context,
    http: reqwest::Client,
    provider: String,
}

/// Everything at one time.
pub(crate) struct Facts {
    pub(crate) orders: Vec<Order>,
    pub(crate) events: Vec<Recorded>,
    pub(crate) payments: HashMap<Uuid, Payment>,
    pub(crate) balances: HashMap<String, Vec<Balance>>,
    pub(crate) stock: Vec<Stock>,
    pub(crate) reservations: HashMap<Uuid, Reservation>,
    pub(crate) notifications: Vec<(Uuid, String)>,
    pub(crate) outboxes: Vec<(Service, Vec<Outgoing>)>,
    /// By service: how often each event id is in its stream.
    pub(crate) streams: HashMap<Service, HashMap<Uuid, usize>>,
    pub(crate) dead_letters: Vec<String>,
}

#[derive(FromRow)]
pub(crate) struct Order {
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

/// An event of the order service's log.
#[derive(FromRow)]
pub(crate) struct Recorded {
    pub(crate) order_id: Uuid,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
}

#[derive(FromRow)]
pub(crate) struct Payment {
    pub(crate) order_id: Uuid,
    pub(crate) status: String,
    pub(crate) amount: Option<i64>,
    pub(crate) currency: Option<String>,
}

/// Money of an order at the provider.
#[derive(Deserialize)]
pub(crate) struct Balance {
    pub(crate) order_id: String,
    pub(crate) currency: String,
    pub(crate) captured: i64,
    pub(crate) refunded: i64,
    pub(crate) captures: u32,
}

#[derive(FromRow)]
pub(crate) struct Stock {
    pub(crate) sku: String,
    pub(crate) initial: i64,
    pub(crate) on_hand: i64,
    pub(crate) reserved: i64,
}

#[derive(FromRow)]
pub(crate) struct Reservation {
    pub(crate) order_id: Uuid,
    pub(crate) status: String,
    pub(crate) lines: serde_json::Value,
}

#[derive(FromRow)]
pub(crate) struct Outgoing {
    pub(crate) event_id: Uuid,
    pub(crate) subject: String,
    pub(crate) sent: bool,
    /// Whether the stream must still have it.
    pub(crate) kept: bool,
}

impl Sources {
    pub(crate) async fn open(endpoints: &Endpoints) -> anyhow::Result<Self> {
        let mut databases = BTreeMap::new();
        for service in Service::ALL {
            let url = endpoints
                .databases
                .get(service.name())
                .with_context(|| format!("no database of {service}"))?;
            let pool = PgPoolOptions::new().max_connections(2).connect(url).await;
            databases.insert(
                service,
                pool.with_context(|| format!("connect to the database of {service}"))?,
            );
        }
        let nats = async_nats::connect(&endpoints.nats)
            .await
            .context("connect to NATS")?;
        Ok(Self {
            databases,
            jetstream: jetstream::new(nats),
            http: client::http_client()?,
            provider: endpoints.provider.clone(),
        })
    }

    pub(crate) fn database(&self, service: Service) -> anyhow::Result<&PgPool> {
        self.databases
            .get(&service)
            .context("every service has a database")
    }

    pub(crate) async fn read(&self) -> anyhow::Result<Facts> {
        let (order, payment) = (
            self.database(Service::Order)?,
            self.database(Service::Payment)?,
        );
        let (inventory, notification) = (
            self.database(Service::Inventory)?,
            self.database(Service::Notification)?,
        );
        let payments: Vec<Payment> =
            sqlx::query_as("SELECT order_id, status, amount, currency FROM payments")
                .fetch_all(payment)
                .await?;
        let reservations: Vec<Reservation> =
            sqlx::query_as("SELECT order_id, status, lines FROM reservations")
                .fetch_all(inventory)
                .await?;
        let mut outboxes = Vec::new();
        let mut streams = HashMap::new();
        for service in Service::ALL {
            let outbox = sqlx::query_as(
                "SELECT event_id, subject, sent_at IS NOT NULL AS sent, recorded_at > now() - interval '6 days' AS kept
                 FROM outbox",
            );
            outboxes.push((service, outbox.fetch_all(self.database(service)?).await?));
            if let Some(stream) = service.stream() {
                streams.insert(
                    service,
                    self.stream(stream)
                        .await
                        .with_context(|| format!("read stream {stream}"))?,
                );
            }
        }
        Ok(Facts {
            orders: sqlx::query_as("SELECT * FROM orders")
                .fetch_all(order)
                .await?,
            events: sqlx::query_as(
                "SELECT order_id, subject, payload FROM outbox ORDER BY position",
            )
            .fetch_all(order)
            .await?,
            payments: payments
                .into_iter()
                .map(|payment| (payment.order_id, payment))
                .collect(),
            balances: self.balances().await?,
            stock: sqlx::query_as("SELECT sku, initial, on_hand, reserved FROM stock")
                .fetch_all(inventory)
                .await?,
            reservations: reservations
                .into_iter()
                .map(|reservation| (reservation.order_id, reservation))
                .collect(),
            notifications: sqlx::query_as("SELECT order_id, kind FROM notifications")
                .fetch_all(notification)
                .await?,
            outboxes,
            streams,
            dead_letters: self.dead_letters().await?,
        })
    }

    async fn balances(&self) -> anyhow::Result<HashMap<String, Vec<Balance>>> {
        let url = format!("{}/sandbox/ledger", self.provider);
        let ledger = self
            .http
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .text()
            .await?;
        let mut balances: HashMap<String, Vec<Balance>> = HashMap::new();
        for line in ledger.lines() {
            let balance: Balance =
                serde_json::from_str(line).context("read the provider's ledger")?;
            balances
                .entry(balance.order_id.clone())
                .or_default()
                .push(balance);
        }
        Ok(balances)
    }

    async fn stream(&self, name: &str) -> anyhow::Result<HashMap<Uuid, usize>> {
        let mut ids = HashMap::new();
        self.each(name, |message| {
            let id = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(contracts::header::ID));
            if let Some(id) = id.and_then(|id| id.as_str().parse::<Uuid>().ok()) {
                *ids.entry(id).or_default() += 1;
            }
        })
        .await?;
        Ok(ids)
    }

    async fn dead_letters(&self) -> anyhow::Result<Vec<String>> {
        let mut letters = Vec::new();
        self.each("DEAD_LETTER", |message| {
            let headers = message
                .headers
                .as_ref()
                .map(|headers| format!("{headers:?}"))
                .unwrap_or_default();
            letters.push(format!("{}: {headers}", message.subject));
        })
        .await?;
        Ok(letters)
    }

    async fn each(
        &self,
        name: &str,
        mut take: impl FnMut(&jetstream::Message),
    ) -> anyhow::Result<()> {
        let mut stream = self.jetstream.get_stream(name).await?;
        let messages = stream.info().await?.state.messages;
        let config = pull::OrderedConfig {
            headers_only: true,
            ..pull::OrderedConfig::default()
        };
        let mut all = stream.create_consumer(config).await?.messages().await?;
        for _ in 0..messages {
            take(&all.try_next().await?.context("the stream ended early")?);
        }
        Ok(())
    }
}
