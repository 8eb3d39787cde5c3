//! API keys of machines, made and revoked by the command line.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use contracts::{CustomerId, Service};
use devstack::{Reaper, TemporaryDirectory};
use e2e::{Harness, wait_for};
use tokio::{process::Command, time::Instant};

use crate::{Outcome, close};

/// How soon a revoked key is refused: the file is read every two seconds, here on a machine that
/// may be very slow.
const SOON: Duration = Duration::from_secs(60);

/// A file of keys.
struct Keys {
    directory: TemporaryDirectory,
}

impl Keys {
    fn new() -> anyhow::Result<Self> {
        let directory = TemporaryDirectory::new(&Reaper::new()?)?;
        Ok(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.json")
    }

    /// Runs `sagacity api-key` and returns what it prints.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let programs = devstack::test::programs().await?;
        let mut command = Command::new(programs.join("sagacity"));
        command.arg("api-key").args(arguments);
        command.arg("--file").arg(self.path());
        let output = command.output().await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "api-key {arguments:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A new key of a customer.
    async fn create(&self, customer: CustomerId, scopes: &[&str]) -> anyhow::Result<String> {
        let customer = customer.to_string();
        let mut arguments = vec!["create", "--customer", &customer];
        for scope in scopes {
            arguments.extend(["--scope", scope]);
        }
        let printed = self.run(&arguments).await?;
        let key = printed.trim_end();
        ensure!(!key.contains(char::is_whitespace), "more than the key");
        Ok(key.to_owned())
    }

    async fn revoke(&self, key: &str) -> anyhow::Result<()> {
        let id = key.split('_').nth(1).context("a key has an id")?;
        let listed = self.run(&["list"]).await?;
        ensure!(listed.contains(id) && !listed.contains(key), "{listed}");
        self.run(&["revoke", id]).await.map(drop)
    }
}

pub async fn an_api_key_orders_until_it_is_revoked(harness: &Harness) -> Outcome {
    let (keys, customer) = (Keys::new()?, CustomerId::new());
    let key = keys.create(customer, &["orders:read", "orders:write"]);
    let key = key.await?;
    let only_read = keys.create(customer, &["orders:read"]).await?;
    let path = keys.path().display().to_string();
    let settings = [("gateway", "API_KEYS_FILE", &*path)];
    let shop = harness.open("api_key", &settings).await?;
    let machine = shop.customer.with_token(customer, &key);
    let id = machine.place(&[("SKU-0001", 1)], "tok_visa").await?;
    let person = shop.customer.another(customer);
    wait_for("the customer sees the confirmed order", async || {
        let order = person.order(&id).await?;
        Ok((order["status"] == "confirmed").then_some(()))
    })
    .await?;
    let others = shop.customer.place(&[("SKU-0001", 1)], "tok_visa").await?;
    let path = format!("/api/v1/orders/{others}");
    let response = machine.send(machine.request("GET", &path)).await?;
    ensure!(response.status() == 404, "another's order: {response:?}");
    let reader = shop.customer.with_token(customer, &only_read);
    ensure!(reader.order(&id).await?["id"] == *id);
    let response = reader.cancel(&id).await?;
    ensure!(response.status() == 403, "without the scope: {response:?}");

    keys.revoke(&key).await?;
    let revoked = Instant::now();
    wait_for("the key is refused", async || {
        let response = machine.request("GET", "/api/v1/orders").send().await?;
        Ok((response.status() == 401).then_some(()))
    })
    .await?;
    let took = revoked.elapsed();
    ensure!(took < SOON, "the key was accepted for {took:?}");
    // Every operation that the document protects.
    let document = person.get("/openapi.json").await?;
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let operations = item.as_object().into_iter().flatten();
        for (method, _) in operations.filter(|(_, operation)| operation["security"].is_array()) {
            let path = path.replace("{id}", &id);
            let request = machine.request(&method.to_uppercase(), &path);
            let response = request.send().await?;
            ensure!(response.status() == 401, "{method} {path}: {response:?}");
            tried += 1;
        }
    }
    ensure!(tried >= 6, "only {tried} operations are protected");
    ensure!(reader.order(&id).await?["status"] == "confirmed");
    close(shop).await
}

pub async fn operators_need_a_key_for_operations(harness: &Harness) -> Outcome {
    let keys = Keys::new()?;
    let operator = keys.create(CustomerId::new(), &["operations"]).await?;
    let scopes = ["orders:read", "orders:write"];
    let customer = keys.create(CustomerId::new(), &scopes).await?;
    let path = keys.path().display().to_string();
    let of = |service: Service| (service.name(), "API_KEYS_FILE", &*path);
    let settings = Service::ALL.map(of);
    let shop = harness.open("operators", &settings).await?;
    let client = client::http_client()?;
    let token = shop.customer.token();
    for service in Service::ALL {
        let admin = &shop.endpoints().admin[service.name()];
        let url = format!("{admin}/dead-letters");
        for (who, credentials, status) in [
            ("nobody", None, 401),
            ("a customer's token", Some(token), 401),
            ("a customer's key", Some(&*customer), 403),
            ("an operator's key", Some(&operator), 200),
        ] {
            let mut request = client.get(&url);
            if let Some(credentials) = credentials {
                request = request.bearer_auth(credentials);
            }
            let response = request.send().await?;
            ensure!(
                response.status() == status,
                "{service}, {who}: {response:?}"
            );
        }
        let discard = client.post(format!("{url}/discard"));
        let discard = discard.json(&serde_json::json!({ "all": true, "by": "nobody" }));
        let response = discard.send().await?;
        ensure!(response.status() == 401, "{service}: {response:?}");
        for path in ["livez", "readyz", "metrics"] {
            shop.until_served(service.name(), path).await?;
        }
    }
    close(shop).await
}
