//! `sagacity erase`: erases the personal data of a customer in all services and at the broker.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    ConnectOptions,
    jetstream::{self, Message},
};
use clap::Args;
use contracts::{CustomerId, Service, dead_letter::REDRIVE};
use dead_letters::DeadLetters;
use devstack::{
    Endpoints,
    jetstream::{Part, connect, context, for_each_message},
};
use serde_json::{Value, json};

/// The services with personal data. In the order of the saga: each knows what the next one has yet
/// to hear of.
const SERVICES: [&str; 3] = ["order", "payment", "notification"];

#[derive(Args, Clone, Debug)]
pub(crate) struct Erase {
    /// Id of the customer
    customer: CustomerId,
    /// Check whether it could be done, print what would be erased, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Who does it, for the audit
    #[arg(long, env = "USER", default_value = "unknown")]
    by: String,
    /// Admin listener of a service of a system that `up` did not start, for example
    /// order=http://localhost:9081; needed for order, payment and notification
    #[arg(long, value_name = "SERVICE=URL", value_parser = admin)]
    admin: Vec<(String, String)>,
    /// API key with the scope operations, where the system has API keys; better in the environment,
    /// since others see the command line
    #[arg(long, env = "SAGACITY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Broker of a system that `up` did not start, with the user of operators
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
}

fn admin(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=');
    let known = parts.filter(|(service, _)| SERVICES.contains(service));
    let (service, url) =
        known.ok_or_else(|| format!("expected one of {} and =URL", SERVICES.join(", ")))?;
    Ok((service.to_owned(), url.trim_end_matches('/').to_owned()))
}

impl Erase {
    /// Returns false when the customer cannot be erased yet; then nothing is erased, but for what
    /// an earlier run has erased.
    pub(crate) async fn run(
        &self,
        endpoints: impl FnOnce() -> anyhow::Result<Endpoints>,
    ) -> anyhow::Result<bool> {
        let (mut admin, mut nats) = (BTreeMap::new(), self.nats_url.clone());
        // All or none: the parts of two systems must not be mixed.
        let given = self.admin.len() + usize::from(nats.is_some());
        ensure!(
            given == 0 || given == SERVICES.len() + 1,
            "give --admin for {} and --nats-url, or none of them",
            SERVICES.join(", ")
        );
        if given == 0 {
            let endpoints = endpoints()?;
            admin = endpoints.admin;
            nats = nats.or(Some(endpoints.nats));
        }
        admin.extend(self.admin.iter().cloned());
        let nats = nats.context("the broker has no known address")?;
        let client = connect(ConnectOptions::new().name("sagacity erase"), &nats).await?;
        let jetstream = context(client);

        // First all checks: a customer who cannot be erased everywhere is erased nowhere.
        let mut may_erase = self.check_others(&jetstream).await?;
        for service in SERVICES {
            let url = admin.get(service);
            let url = url.with_context(|| {
                format!("the admin listener of {service} has no known address: give --admin")
            })?;
            may_erase &= self.ask(service, url, true).await?;
        }
        if !may_erase {
            println!("nothing is erased; repeat the command later");
            return Ok(false);
        }
        let redriven = self.redriven(&jetstream).await?;
        if self.dry_run {
            println!("broker: would delete {} redriven events", redriven.len());
            return Ok(true);
        }
        for service in SERVICES {
            let erased = self.ask(service, &admin[service], false).await;
            let repeat = || format!("{service}: repeat the command, which goes on there");
            if !erased.with_context(repeat)? {
                println!("{}", repeat());
                return Ok(false);
            }
        }
        // Their service has handled them, or it would not have erased the customer.
        let stream = jetstream.get_stream(REDRIVE).await;
        let stream = stream.with_context(|| format!("open the stream {REDRIVE}"))?;
        for sequence in &redriven {
            let deleted = stream.delete_message(*sequence).await;
            deleted.context("delete a redriven event: repeat the command")?;
        }
        println!("broker: deleted {} redriven events", redriven.len());
        Ok(true)
    }

    /// Asks a service to erase the customer, or whether it could, and prints the answer.
    async fn ask(&self, service: &str, url: &str, dry_run: bool) -> anyhow::Result<bool> {
        let url = format!("{url}/customers/{}/erase", self.customer);
        let body = json!({ "by": self.by, "dry_run": dry_run });
        let mut request = client::http_client()?.post(url).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await;
        let response = response.with_context(|| format!("ask {service}"))?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let report: Value = serde_json::from_str(&text)
            .with_context(|| format!("{service} answers {status}: {text}"))?;
        match status {
            // The check before the erasure is not worth a line.
            200 if dry_run && !self.dry_run => Ok(true),
            200 => {
                let would = if dry_run { "would erase" } else { "erased" };
                let erased = report["erased"].as_object().into_iter().flatten();
                let rows: Vec<_> = erased
                    .map(|(table, rows)| format!("{rows} {table}"))
                    .collect();
                println!("{service}: {would} {}", rows.join(", "));
                if service == SERVICES[0] {
                    let hash = report["customer_sha256"].as_str().unwrap_or_default();
                    println!("the audit has the customer as SHA-256 {hash}");
                }
                Ok(true)
            }
            409 => {
                for obstacle in report["obstacles"].as_array().into_iter().flatten() {
                    println!("{service}: {}", obstacle.as_str().unwrap_or_default());
                }
                Ok(false)
            }
            _ => bail!("{service} answers {status}: {text}"),
        }
    }

    /// Whether the broker has nothing about the customer that a service without other personal data
    /// has yet to handle. The others look for that themselves.
    async fn check_others(&self, jetstream: &jetstream::Context) -> anyhow::Result<bool> {
        let others = Service::ALL.into_iter();
        let others = others.filter(|service| !SERVICES.contains(&service.name()));
        let mut is_clear = true;
        for service in others {
            let own = DeadLetters::new(jetstream.clone(), Some(service));
            for letter in own.containing(&self.customer.to_string()).await? {
                let sequence = letter.sequence;
                println!(
                    "{service}: dead letter {sequence} is about the customer: redrive or discard it"
                );
                is_clear = false;
            }
            if own.redriven(service).await? > 0 {
                println!("{service}: events that were redriven are not handled yet: wait");
                is_clear = false;
            }
        }
        Ok(is_clear)
    }

    /// The redriven events about the customer: the stream keeps them also when they are handled.
    async fn redriven(&self, jetstream: &jetstream::Context) -> anyhow::Result<Vec<u64>> {
        let id = self.customer.to_string();
        let mut found = Vec::new();
        let mut take = |message: Message| {
            let mut parts = message.payload.windows(id.len());
            if parts.any(|part| part == id.as_bytes()) {
                let info = message.info().map_err(anyhow::Error::from_boxed)?;
                found.push(info.stream_sequence);
            }
            Ok(())
        };
        for_each_message(jetstream, REDRIVE, Part::Whole, &mut take).await?;
        Ok(found)
    }
}
