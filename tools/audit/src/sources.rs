//! Connections to everything that the auditor reads.

use std::collections::HashMap;

use anyhow::Context as _;
use async_nats::{
    ConnectOptions, HeaderMap,
    jetstream::{self, Message},
};
use contracts::Service;
use devstack::{
    Endpoints,
    jetstream::{Part, for_each_message},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::facts::Balance;

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
        let nats = devstack::jetstream::connect(ConnectOptions::new(), &endpoints.nats).await?;
        Ok(Self {
            databases,
            jetstream: jetstream::new(nats),
            http: client::http_client()?,
            provider: endpoints.provider.clone(),
        })
    }

    pub(crate) fn database(&mut self, service: Service) -> anyhow::Result<&mut PgConnection> {
        let database = self.databases.get_mut(&service);
        database.with_context(|| format!("{service} has no database"))
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

    /// How often each event id is in a stream.
    pub(crate) async fn event_ids(&self, stream: &str) -> anyhow::Result<HashMap<Uuid, usize>> {
        let mut ids = HashMap::new();
        let mut take = |message: Message| {
            let headers = message.headers.as_ref();
            let id = headers.and_then(|headers| headers.get(contracts::header::ID));
            if let Some(id) = id.and_then(|id| id.as_str().parse::<Uuid>().ok()) {
                *ids.entry(id).or_default() += 1;
            }
            Ok(())
        };
        // Without payloads: a stream may hold millions of messages.
        for_each_message(&self.jetstream, stream, Part::Headers, &mut take).await?;
        Ok(ids)
    }

    pub(crate) async fn dead_letters(&self) -> anyhow::Result<Vec<String>> {
        let mut dead_letters = Vec::new();
        let mut take = |message: Message| {
            let headers = message.headers.as_ref().map(describe).unwrap_or_default();
            dead_letters.push(format!("{}{headers}", message.subject));
            Ok(())
        };
        for_each_message(&self.jetstream, "DEAD_LETTER", Part::Headers, &mut take).await?;
        Ok(dead_letters)
    }
}

fn describe(headers: &HeaderMap) -> String {
    let mut text = String::new();
    for (name, values) in headers.iter() {
        let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
        text.push_str(&format!(", {name}: {}", values.join(" ")));
    }
    text
}
