//! What an outbox says about a customer, and its erasure: [`write()`] is the only change of rows
//! that are written.
//!
//! Rows keep their places and ids, so that relay and reconciler do not notice. Only rows that are
//! never published again may be changed: see [`erase_handled`].

use std::collections::HashSet;

use anyhow::{Context as _, ensure};
use contracts::{Event, OrderId, Subject};
use sqlx::PgConnection;
use uuid::Uuid;

/// Erases the customers of those orders whose events every subscriber has handled, from all events
/// about them. Returns these orders, and how many events had a customer.
///
/// # Errors
/// Those of the database, and an event that another version has written: this one would lose what
/// it does not know of it.
pub async fn erase_handled(
    tx: &mut PgConnection,
    mut orders: Vec<OrderId>,
) -> anyhow::Result<(Vec<OrderId>, u64)> {
    let unhandled = unhandled(tx, &orders).await;
    let unhandled = unhandled.context("compare with the outbox")?;
    orders.retain(|order| !unhandled.contains(order));
    let events = erase_customers(tx, &orders).await?;
    Ok((orders, events))
}

/// Those of these orders with an event that some subscriber may not have handled. The relay may
/// publish it, or publish it again.
async fn unhandled(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<HashSet<OrderId>> {
    let found = sqlx::query_scalar!(
        r#"-- outbox_unhandled
        SELECT DISTINCT order_id FROM outbox
        WHERE order_id = ANY($1) AND position > (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1)"#,
        &uuids(orders)
    )
    .fetch_all(tx)
    .await?;
    Ok(found.into_iter().map(OrderId).collect())
}

async fn erase_customers(tx: &mut PgConnection, orders: &[OrderId]) -> anyhow::Result<u64> {
    let rows = sqlx::query!(
        r#"-- outbox_of_orders
        SELECT position, order_id, subject, payload FROM outbox WHERE order_id = ANY($1)
        ORDER BY position FOR UPDATE"#,
        &uuids(orders)
    )
    .fetch_all(&mut *tx)
    .await
    .context("read the outbox")?;
    let mut changes = Vec::new();
    for row in rows {
        let erased = erase(OrderId(row.order_id), &row.subject, &row.payload);
        let erased =
            erased.with_context(|| format!("{} of order {}", row.subject, row.order_id))?;
        if let Some(after) = erased {
            changes.push(Change {
                position: row.position,
                before: row.payload,
                after,
            });
        }
    }
    let written = write(tx, &changes).await;
    written.context("write the outbox")
}

/// The payload without the customer; `None` when it has none.
fn erase(order: OrderId, subject: &str, payload: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    change(subject.parse()?, payload, |event| {
        event.erase_customer(order)
    })
}

/// The payload after a change of its event; `None` when `change` returns false.
///
/// # Errors
/// An event that cannot be read, and one that another version has written: this one would lose what
/// it does not know of it.
pub fn change(
    subject: Subject,
    payload: &[u8],
    change: impl FnOnce(&mut Event) -> bool,
) -> anyhow::Result<Option<Vec<u8>>> {
    let mut event = Event::decode(subject, payload)?;
    ensure!(
        event.encode() == payload,
        "another version has written it: let that one change it"
    );
    Ok(change(&mut event).then(|| event.encode()))
}

/// A new payload for the event at a position.
#[derive(Debug)]
pub struct Change {
    /// Its place in the outbox.
    pub position: i64,
    /// The payload that was read.
    pub before: Vec<u8>,
    /// The payload to write.
    pub after: Vec<u8>,
}

/// Replaces the payloads of events that nobody has changed since they were read; returns how many.
///
/// # Errors
/// Those of the database.
pub async fn write(tx: &mut PgConnection, changes: &[Change]) -> sqlx::Result<u64> {
    if changes.is_empty() {
        return Ok(0);
    }
    let positions: Vec<_> = changes.iter().map(|change| change.position).collect();
    let before: Vec<_> = changes.iter().map(|c| c.before.as_slice()).collect();
    let after: Vec<_> = changes.iter().map(|c| c.after.as_slice()).collect();
    let written = sqlx::query!(
        r#"-- outbox_erase
        UPDATE outbox SET payload = e.after
        FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS e (position, before, after)
        WHERE outbox.position = e.position AND outbox.payload = e.before"#,
        &positions,
        &before as &[&[u8]],
        &after as &[&[u8]]
    );
    Ok(written.execute(tx).await?.rows_affected())
}

fn uuids(orders: &[OrderId]) -> Vec<Uuid> {
    orders.iter().map(|order| order.0).collect()
}

#[cfg(test)]
mod tests {
    use proto::order::v1::OrderConfirmed;

    use super::*;

    #[test]
    fn an_event_of_a_newer_version_is_not_cut_to_what_this_one_knows() {
        let order = OrderId::new();
        let subject = Subject::OrderConfirmed;
        let confirmed = Event::OrderConfirmed(OrderConfirmed {
            order_id: order.to_string(),
            customer_id: "somebody".to_owned(),
            total: None,
        });
        let mut payload = confirmed.encode();
        let erased = erase(order, subject.as_str(), &payload).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&erased).contains("somebody"));
        // Field 15, a number.
        payload.extend([0x78, 1]);
        let error = erase(order, subject.as_str(), &payload).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
    }
}
