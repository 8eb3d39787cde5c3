//! What the world does to the shop.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use audit::Expectations;
use client::Customer;
use contracts::header;
use devstack::SERVICES;
use e2e::{
    Pair, Shop,
    adversary::{self, Message, double, publish, reverse},
    wait_for,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::{process::Command, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::close;

type Result = anyhow::Result<BTreeSet<Pair>>;

/// Orders of all kinds.
pub(crate) async fn place_all_kinds(shop: &Shop, rounds: usize) -> anyhow::Result<Vec<String>> {
    let mut placed = Vec::new();
    for round in 0..rounds {
        let method = if round % 4 == 3 {
            "tok_chargeDeclined"
        } else {
            "tok_visa"
        };
        let sku = if round % 5 == 2 {
            "SKU-0999"
        } else {
            "SKU-0001"
        };
        let id = shop.customer.place(&[(sku, 2)], method).await?;
        if round % 3 == 1 {
            ensure!(shop.customer.cancel(&id).await?.status().is_success() || round % 4 == 3);
        }
        placed.push(id);
    }
    Ok(placed)
}

pub(crate) async fn every_event_twice() -> Result {
    let shop = Shop::open_new("twice").await?;
    shop.leave_stock("SKU-0999", 3).await?;
    let doubling = double(&shop.endpoints().nats).await?;
    place_all_kinds(&shop, 24).await?;
    let expectations = Expectations {
        copies: 2,
        ..Expectations::default()
    };
    // The last copies may still be on their way: nobody waits for those of events that nobody
    // listens to.
    wait_for("the last copies", async || {
        Ok(audit::audit(shop.endpoints(), expectations)
            .await?
            .holds()
            .then_some(()))
    })
    .await?;
    let pairs = shop.close(expectations).await?;
    ensure!(
        !doubling.is_finished(),
        "the adversary gave up: {:?}",
        doubling.await
    );
    doubling.abort();
    Ok(pairs)
}

/// Stream after stream is turned upside down before its consumers see it: payment hears of
/// cancellations before orders, order of reservations before payments.
pub(crate) async fn every_event_in_a_wrong_order() -> Result {
    let mut shop = Shop::open_new("wrong_order").await?;
    shop.leave_stock("SKU-0999", 3).await?;
    let jetstream = shop.jetstream().await?;
    for service in ["payment", "inventory", "notification"] {
        shop.site.stop_service(service).await?;
    }
    // Prices are remembered by the order service for a while; it has none yet.
    shop.site.start_service("inventory").await?;
    shop.site.wait_until_ready("inventory").await?;
    shop.customer
        .place(&[("SKU-0001", 1), ("SKU-0999", 1)], "tok_visa")
        .await?;
    shop.site.stop_service("inventory").await?;
    let placed = place_all_kinds(&shop, 24).await?.len();
    let said = async || anyhow::Ok(adversary::read(&jetstream, "ORDER").await?.len());
    wait_for("all orders are in the stream", async || {
        Ok((said().await? > placed).then_some(()))
    })
    .await?;
    // Nothing more comes: whoever could cause it is not there.
    shop.site.stop_service("order").await?;
    ensure!(reverse(&jetstream, "ORDER").await? > placed);
    shop.site.start_service("payment").await?;
    idle(
        &shop,
        "payment",
        "SELECT count(*) FROM inbox",
        placed as i64 + 1,
    )
    .await?;
    shop.site.stop_service("payment").await?;
    ensure!(reverse(&jetstream, "PAYMENT").await? > 0);
    shop.site.start_service("inventory").await?;
    idle(&shop, "inventory", "SELECT count(*) FROM inbox", 1).await?;
    shop.site.stop_service("inventory").await?;
    reverse(&jetstream, "INVENTORY").await?;
    for service in ["inventory", "payment", "notification", "order"] {
        shop.site.start_service(service).await?;
        shop.site.wait_until_ready(service).await?;
    }
    close(shop).await
}

/// Waits until a service has handled at least so many events, has nothing left to do and has said
/// everything.
async fn idle(
    shop: &Shop,
    service: &str,
    count: &'static str,
    at_least: i64,
) -> anyhow::Result<()> {
    let mut database = shop.database(service).await?;
    let (mut last, mut same) = (-1, 0);
    wait_for(&format!("{service} is idle"), async || {
        let handled: i64 = sqlx::query_scalar(count).fetch_one(&mut database).await?;
        let unsent: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
            .fetch_one(&mut database)
            .await?;
        let due = match service {
            "payment" => "SELECT count(*) FROM payments WHERE status IN ('pending', 'refunding')",
            _ => "SELECT 0::bigint",
        };
        let due: i64 = sqlx::query_scalar(due).fetch_one(&mut database).await?;
        same = if handled == last { same + 1 } else { 0 };
        last = handled;
        Ok((handled >= at_least && unsent == 0 && due == 0 && same > 20).then_some(()))
    })
    .await
}

pub(crate) async fn rubbish_becomes_dead_letters() -> Result {
    let shop = Shop::open_new("rubbish").await?;
    let jetstream = shop.jetstream().await?;
    shop.order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    let real = adversary::read(&jetstream, "ORDER")
        .await?
        .into_iter()
        .next()
        .context("an event")?;
    let with = |name: &str, value: &str| {
        let mut headers = real.headers.clone().unwrap_or_default();
        headers.insert(header::ID, uuid::Uuid::now_v7().to_string());
        headers.insert(name, value);
        Some(headers)
    };
    let id = uuid::Uuid::now_v7().to_string();
    for rubbish in [
        Message {
            payload: b"\xff\xff".to_vec(),
            headers: with(header::ID, &id),
            ..real.clone()
        },
        Message {
            headers: None,
            ..real.clone()
        },
        Message {
            headers: with(header::CORRELATION_ID, "no uuid"),
            ..real.clone()
        },
        Message {
            subject: "order.created.v2".to_owned(),
            headers: with(header::TYPE, "order.created.v2"),
            ..real.clone()
        },
        Message {
            payload: vec![0; 512 * 1024],
            headers: with(header::ID, &id),
            ..real.clone()
        },
        Message {
            headers: with(header::CAUSATION_ID, &"x".repeat(64_000)),
            ..real.clone()
        },
        Message {
            payload: b"\xff".to_vec(),
            headers: with("Nats-Expected-Stream", "ORDER"),
            ..real.clone()
        },
        Message {
            subject: format!("order.created.{}", "v".repeat(3_900)),
            ..real.clone()
        },
    ] {
        publish(&jetstream, rubbish).await?;
    }
    let reasons = [
        "payload",
        "is missing",
        "ce-correlationid",
        "order.created.v2",
        "oversized",
        "ce-causationid",
        "payload",
        "order.created.vvv",
    ];
    let letters = wait_for("a dead letter for each", async || {
        let letters = adversary::read(&jetstream, "DEAD_LETTER").await?;
        Ok((letters.len() >= reasons.len()).then_some(letters))
    })
    .await?;
    for (letter, reason) in letters.iter().zip(reasons) {
        let headers = format!("{:?}", letter.headers);
        ensure!(
            letter.subject.starts_with("dlq.payment.order.created.v"),
            "{}",
            letter.subject
        );
        ensure!(headers.contains(reason), "expected {reason:?} in {headers}");
    }
    // The consumer goes on.
    shop.order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    // The rubbish is in the stream of order without ever having been in its outbox, which the audit
    // must notice.
    let expectations = Expectations {
        dead_letters: reasons.len(),
        ..Expectations::default()
    };
    let report = audit::audit(shop.endpoints(), expectations).await?;
    ensure!(!report.holds(), "the audit has not seen the strangers");
    shop.site.abandon().await?;
    Ok(BTreeSet::new())
}

/// Orders flow until told to stop; returns how many were placed.
pub(crate) fn flow(
    customer: &Customer,
    stop: &CancellationToken,
) -> JoinSet<anyhow::Result<usize>> {
    let mut flows = JoinSet::new();
    for worker in 0..4 {
        let (customer, stop) = (customer.clone(), stop.clone());
        flows.spawn(async move {
            let mut placed = 0;
            while !stop.is_cancelled() {
                let method = if (placed + worker) % 7 == 0 {
                    "tok_chargeDeclined"
                } else {
                    "tok_visa"
                };
                let id = customer
                    .place(&[("SKU-0001", 1), ("SKU-0500", 2)], method)
                    .await?;
                if (placed + worker) % 5 == 0 {
                    // Its service may just have been killed; the order then simply goes on.
                    let _answer = customer.cancel(&id).await;
                }
                placed += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(placed)
        });
    }
    flows
}

pub(crate) async fn stop(
    mut flows: JoinSet<anyhow::Result<usize>>,
    stop: &CancellationToken,
) -> anyhow::Result<usize> {
    stop.cancel();
    let mut placed = 0;
    while let Some(flow) = flows.join_next().await {
        placed += flow??;
    }
    Ok(placed)
}

pub(crate) async fn each_service_killed() -> Result {
    let mut shop = Shop::open("killed", &[]).await?;
    let end = CancellationToken::new();
    let flows = flow(&shop.customer, &end);
    for service in SERVICES {
        tokio::time::sleep(Duration::from_millis(300)).await;
        shop.site.kill(service).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        shop.site.start_service(service).await?;
        shop.site.wait_until_ready(service).await?;
    }
    let placed = stop(flows, &end).await?;
    ensure!(placed > 20, "only {placed} orders flowed");
    close(shop).await
}

pub(crate) async fn broker_restarted() -> Result {
    let mut shop = Shop::open("broker", &[]).await?;
    let end = CancellationToken::new();
    let flows = flow(&shop.customer, &end);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        shop.site.restart_broker().await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let placed = stop(flows, &end).await?;
    ensure!(placed > 20, "only {placed} orders flowed");
    close(shop).await
}

/// The provider fails half of the time, and is away for a while: every order ends all the same,
/// charged once.
pub(crate) async fn provider_out_of_order() -> Result {
    let mut shop = Shop::open("provider", &[]).await?;
    shop.fault("*", json!({ "error_rate": 0.5, "latency_ms": 20 }))
        .await?;
    let end = CancellationToken::new();
    let flows = flow(&shop.customer, &end);
    tokio::time::sleep(Duration::from_secs(1)).await;
    shop.site.kill("psp-sandbox").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    shop.site.start_service("psp-sandbox").await?;
    shop.site.wait_until_ready("psp-sandbox").await?;
    stop(flows, &end).await?;
    close(shop).await
}

/// A service's role enters its own database and no other.
pub(crate) async fn databases_are_closed_to_each_other() -> Result {
    let shop = Shop::open("closed", &[]).await?;
    let databases = &shop.endpoints().databases;
    for (service, url) in databases {
        shop.database(service).await?;
        let (server, _) = url
            .rsplit_once('/')
            .context("an address ends with a database")?;
        for (other, elsewhere) in databases.iter().filter(|(other, _)| *other != service) {
            let (_, name) = elsewhere
                .rsplit_once('/')
                .context("an address ends with a database")?;
            let entered = PgConnection::connect(&format!("{server}/{name}")).await;
            let refused = entered
                .err()
                .with_context(|| format!("{service} can enter the database of {other}"))?;
            let code = refused.as_database_error().and_then(|error| error.code());
            ensure!(
                code.as_deref() == Some("42501"),
                "{service} at {other}: {refused}"
            );
        }
    }
    close(shop).await
}

/// The event log is the truth: a row that was tampered with is found, and mended from the log.
pub(crate) async fn order_log_can_be_rebuilt() -> Result {
    let shop = Shop::open("rebuild", &[]).await?;
    for method in ["tok_visa", "tok_chargeDeclined"] {
        let id = shop.customer.place(&[("SKU-0001", 1)], method).await?;
        shop.until(&id, "the end", |order| {
            order["status"] != "pending" && order["status"] != "paid"
        })
        .await?;
    }
    let mut database = shop.database("order").await?;
    let rebuild = async |arguments: &[&str]| {
        let order = devstack::test::programs().await?.join("order");
        let mut command = Command::new(order);
        command
            .args([
                "--database-url",
                &shop.endpoints().databases["order"],
                "rebuild",
            ])
            .args(arguments);
        anyhow::Ok(
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .await?,
        )
    };
    ensure!(rebuild(&[]).await?.success(), "log and table agree");
    let tamper =
        "UPDATE orders SET status = 'confirmed', cancel_reason = NULL WHERE status = 'cancelled'";
    sqlx::query(tamper).execute(&mut database).await?;
    ensure!(!rebuild(&[]).await?.success(), "the difference is found");
    ensure!(
        rebuild(&["--write"]).await?.success() && rebuild(&[]).await?.success(),
        "and mended"
    );
    close(shop).await
}
