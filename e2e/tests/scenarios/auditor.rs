//! The auditor itself: it finds what is broken, and nothing else.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use audit::{Expectations, Report};
use e2e::{Harness, Shop, chaos::publish, read_stream};

use crate::Outcome;

/// What breaks a rule, and which.
struct Tampering {
    rule: &'static str,
    service: &'static str,
    statement: &'static str,
}

const fn tampering(
    rule: &'static str,
    service: &'static str,
    statement: &'static str,
) -> Tampering {
    Tampering {
        rule,
        service,
        statement,
    }
}

/// Each breaks one rule more.
const TAMPERINGS: &[Tampering] = &[
    tampering(
        "mails",
        "notification",
        "UPDATE notifications SET mail_due_at = now() WHERE kind = 'order_confirmed'",
    ),
    tampering(
        "delivery",
        "inventory",
        "DELETE FROM inbox WHERE event_id = (SELECT min(event_id::text)::uuid FROM inbox)",
    ),
    tampering(
        "charges",
        "payment",
        "UPDATE inbox SET received_at = received_at + interval '1 hour'",
    ),
    tampering(
        "orphans",
        "notification",
        "UPDATE notifications SET customer_id = gen_random_uuid() WHERE kind = 'payment_refunded'",
    ),
    tampering(
        "stock",
        "inventory",
        "UPDATE reservations SET status = 'released' WHERE status = 'reserved'",
    ),
    tampering(
        "customer",
        "notification",
        "DELETE FROM notifications WHERE kind = 'order_confirmed'",
    ),
    tampering(
        "refunds",
        "notification",
        "DELETE FROM notifications WHERE kind = 'payment_refunded'",
    ),
    tampering(
        "log",
        "order",
        "UPDATE orders SET lines = jsonb_set(lines, '{0,unit_price,amount}', '1')",
    ),
];

/// A copy of an event is a note, and each kind of damage breaks its rule.
pub async fn the_auditor_finds_what_is_broken(harness: &Harness) -> Outcome {
    let shop = harness.open_new("auditor").await?;
    let lines = [("SKU-0001", 1)];
    shop.order_until(&lines, "tok_visa", "confirmed").await?;
    let cancelled = shop.order_until(&lines, "tok_visa", "confirmed").await?;
    let id = cancelled["id"].as_str().context("an order has an id")?;
    shop.customer.cancel(id).await?.error_for_status()?;
    shop.until(id, "the refund", |order| order["refund"] == "done")
        .await?;

    let jetstream = shop.jetstream().await?;
    let event = read_stream(&jetstream, "ORDER").await?.into_iter().next();
    publish(&jetstream, event.context("an event")?.into()).await?;
    let report = look(&shop, Expectations::default().timeout).await?;
    ensure!(report.holds(), "{}", report.table());
    ensure!(
        report.table().contains("note: 1 events of order"),
        "{}",
        report.table()
    );

    let mut broken = BTreeSet::new();
    for tampering in TAMPERINGS {
        let mut database = shop.database(tampering.service).await?;
        let changed = sqlx::query(tampering.statement)
            .execute(&mut database)
            .await?;
        ensure!(changed.rows_affected() > 0, "{}", tampering.statement);
        let report = look(&shop, Duration::ZERO).await?;
        let is_broken = |name: &str| {
            let mut rules = report.invariants.iter();
            rules.any(|rule| rule.name == name && !rule.breaches.is_empty())
        };
        ensure!(
            is_broken(tampering.rule),
            "{}: {}",
            tampering.rule,
            report.table()
        );
        for later in TAMPERINGS {
            let is_expected = broken.contains(later.rule) || later.rule == tampering.rule;
            ensure!(is_expected || !is_broken(later.rule), "{}", report.table());
        }
        broken.insert(tampering.rule);
    }
    shop.deployment.abandon().await?;
    Ok(BTreeSet::new())
}

async fn look(shop: &Shop, timeout: Duration) -> anyhow::Result<Report> {
    let expectations = Expectations {
        timeout,
        ..Expectations::default()
    };
    audit::audit(shop.endpoints(), expectations).await
}
