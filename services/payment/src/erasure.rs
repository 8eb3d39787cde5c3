//! Erases a customer: the payment keeps what was paid, and the id of its order replaces
//! the customer's, in its row and in what it has published. Its SQL is here.
//!
//! A payment is erased when nothing can bring the customer back: nothing is asked of the provider
//! any more, every subscriber has handled its events, and the streams do not have them any more.
//! The order service is erased first: it knows what this one has yet to hear of.

use anyhow::Context as _;
use chassis::{Erase, Step};
use contracts::{CustomerId, OrderId};
use messaging::erasure;
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug)]
pub struct Payments;

impl Erase for Payments {
    async fn step(
        tx: &mut PgConnection,
        customer: CustomerId,
        after: Uuid,
    ) -> anyhow::Result<Step> {
        let found = lock(tx, customer, after).await.context("lock payments")?;
        let last = found.last().map(|payment| payment.order_id);
        let all = found.len();
        let ended: Vec<OrderId> = found
            .iter()
            .filter(|payment| payment.has_ended)
            .map(|payment| OrderId(payment.order_id))
            .collect();
        let (ended, events) = erasure::erase_handled(tx, ended).await?;
        let payments = erase_payments(tx, &ended).await;
        let payments = payments.context("erase payments")?;
        Ok(Step {
            last,
            waiting: all - ended.len(),
            erased: vec![("payments", payments), ("outbox", events)],
        })
    }
}

struct Found {
    order_id: Uuid,
    has_ended: bool,
}

/// Locks the next payments of a customer.
async fn lock(
    tx: &mut PgConnection,
    customer: CustomerId,
    after: Uuid,
) -> sqlx::Result<Vec<Found>> {
    sqlx::query_as!(
        Found,
        r#"-- payments_erase_lock
        SELECT order_id, status NOT IN ('pending', 'refunding')
               AND updated_at < now() - make_interval(secs => $3) AS "has_ended!"
        FROM payments WHERE customer_id = $1 AND order_id > $2 ORDER BY order_id LIMIT $4 FOR UPDATE"#,
        customer.0,
        after,
        Step::AGE,
        Step::ROWS
    )
    .fetch_all(tx)
    .await
}

/// Also the payment methods that the version before this one has left.
async fn erase_payments(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<u64> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let erased = sqlx::query!(
        r#"-- payments_erase
        UPDATE payments SET customer_id = order_id, request = NULL,
            method = CASE WHEN method IS NOT NULL THEN 'forgotten' END
        WHERE order_id = ANY($1)"#,
        &orders
    );
    Ok(erased.execute(tx).await?.rows_affected())
}
