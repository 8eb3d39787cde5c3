//! Connections to everything that the auditor reads.

use std::collections::HashMap;

use anyhow::Context as _;
use async_nats::{
    HeaderMap,
    jetstream::{self, Message},
};
use contracts::{Service, dead_letter};
use devstack::{
    Endpoints,
    jetstream::{Part, for_each_message},
};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::facts::{Balance, DeadLetter, Streamed};

pub(crate) struct Sources {
    databases: HashMap<Service, PgConnection>,
    pub(crate) jetstream: jetstream::Context,
    http: reqwest::Client,
    provider: String,
}

impl Sources {
    pub(crate) async fn connect(endpoints: &Endpoints) -> anyhow::Result<Self> {
        let mut databases = HashMap::new();
        for service in Service::ALL {
            let url = endpoints.databases.get(service.name());
            let url =
                url.with_context(|| format!("the database of {service} has no known address"))?;
            let database = PgConnection::connect(url).await;
            let database =
                database.with_context(|| format!("connect to the database of {service}"))?;
            databases.insert(service, database);
        }
        Ok(Self {
            databases,
            jetstream: devstack::jetstream::open(&endpoints.nats).await?,
            http: client::http_client()?,
            provider: endpoints.provider.clone(),
        })
    }

    pub(crate) fn database(&mut self, service: Service) -> anyhow::Result<&mut PgConnection> {
        let database = self.databases.get_mut(&service);
        database.with_context(|| format!("{service} has no database"))
    }

    /// Opens one snapshot per database. All that is read of a database from now on is its state at
    /// this moment, in whatever order it is read.
    pub(crate) async fn open_snapshots(&mut self) -> anyhow::Result<()> {
        for (service, database) in &mut self.databases {
            // PostgreSQL takes the snapshot at the first query of the transaction.
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT 1";
            let opened = database.execute(begin).await;
            opened.with_context(|| format!("open a snapshot of the database of {service}"))?;
        }
        Ok(())
    }

    /// The provider's ledger: one JSON object per line.
    pub(crate) async fn balances(&self) -> anyhow::Result<Vec<Balance>> {
        let url = format!("{}/sandbox/ledger", self.provider);
        let response = self.http.get(url).send().await?.error_for_status()?;
        let ledger = response.text().await?;
        ledger
            .lines()
            .map(|line| serde_json::from_str(line).context("read the provider's ledger"))
            .collect()
    }

    /// The last sequence of each publisher's stream.
    pub(crate) async fn last_sequences(&self) -> anyhow::Result<HashMap<Service, u64>> {
        let mut last = HashMap::new();
        for service in Service::ALL {
            if let Some(stream) = service.stream() {
                let stream = self.jetstream.get_stream(stream).await?;
                last.insert(service, stream.cached_info().state.last_sequence);
            }
        }
        Ok(last)
    }

    /// The events in a stream, by id. `last` is the last sequence before the snapshots.
    pub(crate) async fn stream(
        &self,
        stream: &str,
        last: u64,
    ) -> anyhow::Result<HashMap<Uuid, Streamed>> {
        let mut events: HashMap<Uuid, Streamed> = HashMap::new();
        let mut take = |message: Message| {
            let sequence = message.info().map_err(anyhow::Error::from_boxed)?;
            let precedes_snapshots = sequence.stream_sequence <= last;
            if let Some(id) = event_id(&message) {
                let event = events.entry(id).or_insert_with(|| Streamed {
                    copies: 0,
                    precedes_snapshots,
                });
                event.copies += 1;
            }
            Ok(())
        };
        // Without payloads: a stream may hold millions of messages.
        for_each_message(&self.jetstream, stream, Part::Headers, &mut take).await?;
        Ok(events)
    }

    pub(crate) async fn dead_letters(&self) -> anyhow::Result<Vec<DeadLetter>> {
        let mut dead_letters = Vec::new();
        let mut take = |message: Message| {
            let headers = message.headers.as_ref();
            let service = headers.and_then(|headers| headers.get(dead_letter::header::SERVICE));
            let description = headers.map(describe).unwrap_or_default();
            dead_letters.push(DeadLetter {
                service: service.map(|service| service.to_string()),
                event_id: event_id(&message),
                description: format!("{}{description}", message.subject),
            });
            Ok(())
        };
        let stream = dead_letter::STREAM;
        for_each_message(&self.jetstream, stream, Part::Headers, &mut take).await?;
        Ok(dead_letters)
    }

    /// The dead letters that an operator has discarded: service and event.
    pub(crate) async fn discarded(&self) -> anyhow::Result<Vec<(String, Uuid)>> {
        let mut discarded = Vec::new();
        let mut take = |message: Message| {
            let act: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            let text = |name: &str| act["dead_letter"][name].as_str();
            // Lines of the version before this one have no outcome.
            let is_done = act["outcome"]
                .as_str()
                .is_none_or(|outcome| outcome == "done");
            if is_done
                && act["act"] == "discard"
                && let Some(service) = text("service")
                && let Some(id) = text("event_id").and_then(|id| id.parse().ok())
            {
                discarded.push((service.to_owned(), id));
            }
            Ok(())
        };
        let stream = dead_letter::AUDIT;
        for_each_message(&self.jetstream, stream, Part::Whole, &mut take).await?;
        Ok(discarded)
    }
}

fn event_id(message: &Message) -> Option<Uuid> {
    let id = message.headers.as_ref()?.get(contracts::header::ID)?;
    id.as_str().parse().ok()
}

fn describe(headers: &HeaderMap) -> String {
    let mut text = String::new();
    for (name, values) in headers.iter() {
        let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
        text.push_str(&format!(", {name}: {}", values.join(" ")));
    }
    text
}
