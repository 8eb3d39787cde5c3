//! Erases a customer: the order keeps what was sold, and its own id replaces the
//! customer's, in its row and in its event log. Its SQL is here.
//!
//! An order is erased when nothing can bring the customer back: it has ended, every subscriber has
//! handled its events, and the stream does not have them any more.

use anyhow::Context as _;
use chassis::{Erase, Step};
use contracts::{CustomerId, OrderId};
use messaging::erasure;
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug)]
pub struct Orders;

impl Erase for Orders {
    async fn step(
        tx: &mut PgConnection,
        customer: CustomerId,
        after: Uuid,
    ) -> anyhow::Result<Step> {
        let found = lock(tx, customer, after).await.context("lock orders")?;
        let last = found.last().map(|order| order.order_id);
        let all = found.len();
        let ended: Vec<OrderId> = found
            .iter()
            .filter(|order| order.has_ended)
            .map(|order| OrderId(order.order_id))
            .collect();
        let (ended, events) = erasure::erase_handled(tx, ended).await?;
        let orders = erase_orders(tx, &ended).await.context("erase orders")?;
        let keys = forget_keys(tx, &ended).await;
        let keys = keys.context("delete idempotency keys")?;
        Ok(Step {
            last,
            waiting: all - ended.len(),
            erased: vec![
                ("orders", orders),
                ("outbox", events),
                ("idempotency_keys", keys),
            ],
        })
    }
}

struct Found {
    order_id: Uuid,
    has_ended: bool,
}

/// Locks the next orders of a customer.
async fn lock(
    tx: &mut PgConnection,
    customer: CustomerId,
    after: Uuid,
) -> sqlx::Result<Vec<Found>> {
    sqlx::query_as!(
        Found,
        r#"-- orders_erase_lock
        SELECT order_id, (status = 'confirmed' OR status = 'cancelled' AND (refunded OR NOT paid))
               AND updated_at < now() - make_interval(secs => $3) AS "has_ended!"
        FROM orders WHERE customer_id = $1 AND order_id > $2 ORDER BY order_id LIMIT $4 FOR UPDATE"#,
        customer.0,
        after,
        Step::AGE,
        Step::ROWS
    )
    .fetch_all(tx)
    .await
}

async fn erase_orders(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<u64> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let erased = sqlx::query!(
        r#"-- orders_erase
        UPDATE orders SET customer_id = order_id, payment_method = 'forgotten' WHERE order_id = ANY($1)"#,
        &orders
    );
    Ok(erased.execute(tx).await?.rows_affected())
}

async fn forget_keys(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<u64> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let deleted = sqlx::query!(
        r#"-- idempotency_erase
        DELETE FROM idempotency_keys WHERE order_id = ANY($1)"#,
        &orders
    );
    Ok(deleted.execute(tx).await?.rows_affected())
}
