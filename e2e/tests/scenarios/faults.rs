//! Faults: of services, the broker, the provider, and of the events themselves.

use std::{collections::BTreeSet, str::FromStr as _};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, consumer::PullConsumer};
use audit::Expectations;
use contracts::{Service, choreography::subscriptions, header};
use devstack::services;
use e2e::{
    Harness, Shop,
    chaos::{Message, duplicate_all, publish, reverse},
    read_stream, wait_for,
};
use futures::future::try_join_all;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::process::Command;
use uuid::Uuid;

use crate::{Outcome, close, load::Load};

/// Places orders that end in every way, all at once.
pub async fn place_all_kinds(shop: &Shop, count: usize) -> anyhow::Result<Vec<String>> {
    let place = async |nth: usize| {
        let is_declined = nth % 4 == 3;
        let method = if is_declined {
            "tok_chargeDeclined"
        } else {
            "tok_visa"
        };
        let is_scarce = nth % 5 == 2;
        let sku = if is_scarce { "SKU-0999" } else { "SKU-0001" };
        let id = shop.customer.place(&[(sku, 2)], method).await?;
        if nth % 3 == 1 {
            let cancelled = shop.customer.cancel(&id).await?;
            ensure!(
                cancelled.status().is_success() || is_declined || is_scarce,
                "{cancelled:?}"
            );
        }
        Ok(id)
    };
    try_join_all((0..count).map(place)).await
}

pub async fn every_event_delivered_twice_is_applied_once(harness: &Harness) -> Outcome {
    let shop = harness.open_new("twice").await?;
    shop.leave_stock("SKU-0999", 3).await?;
    let duplicating = duplicate_all(&shop.endpoints().nats).await?;
    place_all_kinds(&shop, 24).await?;
    let expectations = Expectations {
        copies: 2,
        ..Expectations::default()
    };
    // The auditor does not wait for copies of events that no service subscribes to.
    wait_for("the last copies are in their streams", async || {
        let report = audit::audit(shop.endpoints(), expectations).await?;
        Ok(report.holds().then_some(()))
    })
    .await?;
    let pairs = shop.close(expectations).await?;
    ensure!(!duplicating.is_finished(), "{:?}", duplicating.await);
    duplicating.abort();
    Ok(pairs)
}

/// Each stream is reversed before its consumers read it: payment gets cancellations before orders,
/// order gets reservations before payments.
pub async fn events_in_the_wrong_order_end_the_same_way(harness: &Harness) -> Outcome {
    let mut shop = harness.open_new("wrong_order").await?;
    shop.leave_stock("SKU-0999", 3).await?;
    let jetstream = shop.jetstream().await?;
    for service in ["payment", "inventory", "notification"] {
        shop.deployment.stop_service(service).await?;
    }
    // The order service caches prices for a while, and has none yet.
    shop.deployment.start_service("inventory").await?;
    shop.deployment.wait_until_ready("inventory").await?;
    let lines = [("SKU-0001", 1), ("SKU-0999", 1)];
    shop.customer.place(&lines, "tok_visa").await?;
    shop.deployment.stop_service("inventory").await?;
    let placed = place_all_kinds(&shop, 24).await?.len();
    wait_for("all orders are in the stream", async || {
        let events = read_stream(&jetstream, "ORDER").await?.len();
        Ok((events > placed).then_some(()))
    })
    .await?;
    // Nothing more is published: the services that could cause it are stopped.
    shop.deployment.stop_service("order").await?;
    ensure!(reverse(&jetstream, "ORDER").await? > placed);
    shop.deployment.start_service("payment").await?;
    wait_until_idle(&shop, Service::Payment).await?;
    shop.deployment.stop_service("payment").await?;
    ensure!(reverse(&jetstream, "PAYMENT").await? > 0);
    shop.deployment.start_service("inventory").await?;
    wait_until_idle(&shop, Service::Inventory).await?;
    shop.deployment.stop_service("inventory").await?;
    reverse(&jetstream, "INVENTORY").await?;
    for service in ["inventory", "payment", "notification", "order"] {
        shop.deployment.start_service(service).await?;
        shop.deployment.wait_until_ready(service).await?;
    }
    close(shop).await
}

/// Waits until a service has handled every event in its streams, has nothing left to do and has
/// published everything. Only correct while nothing new arrives, and in this order: events lead to
/// work, work leads to rows of the outbox.
async fn wait_until_idle(shop: &Shop, service: Service) -> anyhow::Result<()> {
    let jetstream = shop.jetstream().await?;
    let mut database = shop.database(service.name()).await?;
    let work = match service {
        Service::Payment => {
            "SELECT count(*) FROM payments WHERE status IN ('pending', 'refunding')"
        }
        _ => "SELECT 0::bigint",
    };
    let unpublished = "SELECT count(*) FROM outbox
        WHERE position > (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1)";
    wait_for(&format!("{service} is idle"), async || {
        if unhandled_events(&jetstream, service).await? > 0 {
            return Ok(None);
        }
        for query in [work, unpublished] {
            let query = sqlx::query_scalar::<_, i64>(query);
            if query.fetch_one(&mut database).await? > 0 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// The events that a service has not acknowledged yet.
async fn unhandled_events(jetstream: &jetstream::Context, service: Service) -> anyhow::Result<u64> {
    let mut unhandled = 0;
    for owner in Service::ALL {
        let Some(name) = owner.stream() else { continue };
        if subscriptions(service, owner).is_empty() {
            continue;
        }
        let stream = jetstream.get_stream(name).await?;
        let consumer = stream.get_consumer(service.name()).await;
        let mut consumer: PullConsumer = consumer.map_err(anyhow::Error::from_boxed)?;
        let info = consumer.info().await?;
        unhandled += info.num_pending + info.num_ack_pending as u64;
    }
    Ok(unhandled)
}

/// Malformed variants of a real event, each with a part of the reason that its dead letter has.
fn malformed(real: &Message) -> [(Message, &'static str); 7] {
    let with = |name: &str, value: &str| {
        let mut headers = real.headers.clone().unwrap_or_default();
        headers.insert(header::ID, Uuid::now_v7().to_string());
        headers.insert(name, value);
        Message {
            headers: Some(headers),
            ..real.clone()
        }
    };
    let with_payload = |payload: &[u8]| Message {
        payload: payload.to_vec(),
        ..with(header::ID, &Uuid::now_v7().to_string())
    };
    let with_subject = |subject: String, event: Message| Message { subject, ..event };
    let without_headers = Message {
        headers: None,
        ..real.clone()
    };
    // The broker obeys this header, and would reject a dead letter that kept it.
    let for_a_stream = Message {
        payload: b"\xff".to_vec(),
        ..with("Nats-Expected-Stream", "ORDER")
    };
    let long_subject = format!("order.created.{}", "v".repeat(3_900));
    let long_header = with(header::CAUSATION_ID, &"x".repeat(64_000));
    [
        (with_payload(b"\xff\xff"), "payload"),
        (without_headers, "is missing"),
        (with(header::CORRELATION_ID, "no uuid"), "ce-correlationid"),
        (with_payload(&[0; 512 * 1024]), "oversized"),
        (long_header, "ce-causationid"),
        (for_a_stream, "payload"),
        (
            with_subject(long_subject, real.clone()),
            "order.created.vvv",
        ),
    ]
}

pub async fn malformed_events_become_dead_letters(harness: &Harness) -> Outcome {
    let shop = harness.open_new("malformed").await?;
    let jetstream = shop.jetstream().await?;
    shop.order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    let real = read_stream(&jetstream, "ORDER").await?.into_iter().next();
    let events = malformed(&real.context("an event")?.into());
    for (event, _) in &events {
        publish(&jetstream, event.clone()).await?;
    }
    let dead_letters = wait_for("a dead letter for each", async || {
        let dead_letters = read_stream(&jetstream, "DEAD_LETTER").await?;
        Ok((dead_letters.len() >= events.len()).then_some(dead_letters))
    })
    .await?;
    for dead_letter in &dead_letters {
        let subject = &dead_letter.subject;
        ensure!(
            subject.starts_with("dlq.payment.order.created.v"),
            "{subject}"
        );
    }
    for (_, reason) in &events {
        let mut letters = dead_letters.iter();
        let is_there = letters.any(|letter| format!("{:?}", letter.headers).contains(reason));
        ensure!(is_there, "no dead letter has the reason {reason:?}");
    }
    // The consumer continues.
    shop.order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    // The malformed events are in the stream of order without ever having been in its outbox. The
    // auditor must notice.
    let expectations = Expectations {
        dead_letters: events.len(),
        ..Expectations::default()
    };
    let report = audit::audit(shop.endpoints(), expectations).await?;
    ensure!(
        !report.holds(),
        "the auditor has not found the malformed events"
    );
    shop.deployment.abandon().await?;
    Ok(BTreeSet::new())
}

pub async fn a_killed_service_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open("killed", &[]).await?;
    let mut load = Load::start(&shop.customer);
    for service in services() {
        load.advance(4).await?;
        shop.deployment.kill(service).await?;
        // The outage lasts until requests or orders have met it. No order can be placed without
        // gateway and order, nor for long without inventory, whose prices are cached.
        match service {
            "gateway" | "inventory" => wait_until_unavailable(&shop, "/api/v1/products").await?,
            "order" => wait_until_unavailable(&shop, "/api/v1/orders").await?,
            _ => load.advance(4).await?,
        }
        shop.deployment.start_service(service).await?;
        shop.deployment.wait_until_ready(service).await?;
    }
    load.advance(4).await?;
    let account = load.stop().await?;
    ensure!(!account.failures.is_empty(), "no request met an outage");
    close(shop).await
}

async fn wait_until_unavailable(shop: &Shop, path: &str) -> anyhow::Result<()> {
    wait_for(&format!("{path} is unavailable"), async || {
        let response = shop.customer.request("GET", path).send().await;
        let is_served = response.is_ok_and(|response| response.status().is_success());
        Ok((!is_served).then_some(()))
    })
    .await
}

pub async fn a_killed_broker_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open("broker", &[]).await?;
    let mut load = Load::start(&shop.customer);
    for _ in 0..3 {
        load.advance(8).await?;
        shop.deployment.restart_broker().await?;
    }
    load.advance(8).await?;
    load.stop().await?;
    close(shop).await
}

pub async fn a_broker_without_its_disk_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open("disk", &[]).await?;
    let mut load = Load::start(&shop.customer);
    for _ in 0..2 {
        load.advance(20).await?;
        shop.deployment.restart_broker_without_its_disk().await?;
    }
    load.advance(20).await?;
    load.stop().await?;
    close(shop).await
}

pub async fn a_crashed_database_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open_with_own_database("database").await?;
    let mut load = Load::start(&shop.customer);
    for _ in 0..2 {
        load.advance(20).await?;
        shop.deployment.restart_database().await?;
    }
    load.advance(20).await?;
    load.stop().await?;
    close(shop).await
}

/// The provider answers half of its requests with a 500, some of them after it has charged or
/// refunded, and repeats that answer under the same key; refunds are pending for a while, and some
/// fail. It is also down for a while. Every order ends, charged once.
pub async fn a_provider_that_fails_half_the_time_charges_once(harness: &Harness) -> Outcome {
    let mut shop = harness.open("provider", &[]).await?;
    let fault = json!({
        "error_rate": 0.25,
        "error_after_execution_rate": 0.33,
        "unavailable_rate": 0.1,
        "latency_ms": 20,
        "refund_pending_ms": 500,
        "refund_failure_rate": 0.1,
    });
    shop.fault("*", fault).await?;
    let mut load = Load::start(&shop.customer);
    load.advance(20).await?;
    shop.deployment.kill("psp-sandbox").await?;
    load.advance(20).await?;
    shop.deployment.start_service("psp-sandbox").await?;
    shop.deployment.wait_until_ready("psp-sandbox").await?;
    load.stop().await?;
    // Refunds that failed several times in a row would be waited for.
    shop.no_faults().await?;
    close(shop).await
}

pub async fn a_service_cannot_enter_the_database_of_another(harness: &Harness) -> Outcome {
    let shop = harness.open("closed", &[]).await?;
    let databases = &shop.endpoints().databases;
    for (service, url) in databases {
        shop.database(service).await?;
        let own = PgConnectOptions::from_str(url)?;
        for (other, elsewhere) in databases.iter().filter(|(other, _)| *other != service) {
            let elsewhere = PgConnectOptions::from_str(elsewhere)?;
            let name = elsewhere.get_database().context("a URL has a database")?;
            let entered = PgConnection::connect_with(&own.clone().database(name)).await;
            let refused = entered.err();
            let refused =
                refused.with_context(|| format!("{service} can enter the database of {other}"))?;
            let code = refused.as_database_error().and_then(|error| error.code());
            ensure!(
                code.as_deref() == Some("42501"),
                "{service} at {other}: {refused}"
            );
        }
    }
    close(shop).await
}

/// Its role owns no table, and cannot rewrite the histories of migrations.
pub async fn a_service_cannot_change_its_tables(harness: &Harness) -> Outcome {
    const REFUSED: [&str; 6] = [
        "ALTER TABLE outbox ADD COLUMN note text",
        "CREATE TABLE mine ()",
        "DROP TABLE inbox",
        "TRUNCATE outbox_default",
        "DELETE FROM _sqlx_migrations",
        "UPDATE _messaging_migrations SET checksum = ''",
    ];
    let shop = harness.open("owned", &[]).await?;
    for service in shop.endpoints().databases.keys() {
        let mut database = shop.database(service).await?;
        for statement in REFUSED {
            let refused = sqlx::query(statement).execute(&mut database).await.err();
            let refused = refused.with_context(|| format!("{service} may {statement}"))?;
            let code = refused.as_database_error().and_then(|error| error.code());
            ensure!(
                code.as_deref() == Some("42501"),
                "{service}: {statement}: {refused}"
            );
        }
        let made = "SELECT count(*) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                    WHERE inhparent = 'inbox'::regclass AND relname !~ 'default'
                      AND pg_get_userbyid(relowner) = $1";
        wait_for("partitions are made, and are the owner's", async || {
            let made = sqlx::query_scalar::<_, i64>(made).bind(format!("{service}_owner"));
            let made = made.fetch_one(&mut database).await?;
            Ok((made >= 3).then_some(()))
        })
        .await?;
    }
    close(shop).await
}

/// A row that was changed by hand is found, and repaired from the log.
pub async fn the_orders_table_can_be_rebuilt_from_the_event_log(harness: &Harness) -> Outcome {
    let shop = harness.open("rebuild", &[]).await?;
    for method in ["tok_visa", "tok_chargeDeclined"] {
        let id = shop.customer.place(&[("SKU-0001", 1)], method).await?;
        let has_ended =
            |order: &serde_json::Value| order["status"] != "pending" && order["status"] != "paid";
        shop.until(&id, "the end", has_ended).await?;
    }
    let mut database = shop.database("order").await?;
    let program = devstack::test::programs().await?.join("order");
    let url = &shop.endpoints().databases["order"];
    let rebuild = async |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(["--database-url", url, "--migrations", "check", "rebuild"])
            .args(arguments);
        let output = command.output().await?;
        anyhow::Ok(output.status.success())
    };
    ensure!(rebuild(&[]).await?, "log and table agree");
    let tamper = "UPDATE orders SET status = 'confirmed', cancel_reason = NULL, \
                  total_amount = total_amount + 1 WHERE status = 'cancelled'";
    sqlx::query(tamper).execute(&mut database).await?;
    ensure!(!rebuild(&[]).await?, "the difference is found");
    ensure!(rebuild(&["--write"]).await?, "the row is repaired");
    ensure!(rebuild(&[]).await?, "log and table agree again");
    close(shop).await
}
