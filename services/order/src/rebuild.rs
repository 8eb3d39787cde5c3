//! Folding the event log: the `orders` table is a projection that can be rebuilt and compared at
//! any time.

use anyhow::Context as _;
use contracts::OrderId;
use futures::TryStreamExt;
use messaging::outbox;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    domain::{Order, evolve},
    log, store,
};

/// What a rebuild found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Orders in the log.
    pub orders: usize,
    /// Orders whose row is not what their log adds up to.
    pub different: Vec<OrderId>,
}

/// Orders compared or written per transaction.
const STEP: usize = 500;

/// Folds the log of every order and compares it with its row; with `write`, mends rows that differ.
/// Safe while the service runs: rows are locked while they are compared.
pub async fn rebuild(pool: &PgPool, write: bool) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut after = Uuid::nil();
    loop {
        let mut tx = pool.begin().await?;
        let ids = next_orders(&mut tx, after)
            .await
            .context("list orders in the log")?;
        let Some(last) = ids.last() else {
            return Ok(report);
        };
        after = last.0;
        report.orders += ids.len();
        let rows = store::lock(&mut tx, &ids).await.context("lock orders")?;
        let folded = fold(&mut tx, &ids).await?;
        let different: Vec<&Order> = folded
            .iter()
            .filter(|order| !rows.contains(order))
            .collect();
        report
            .different
            .extend(different.iter().map(|order| order.id));
        if write && !different.is_empty() {
            mend(&mut tx, &rows, &different)
                .await
                .context("mend orders")?;
        }
        tx.commit().await?;
    }
}

/// An order as it was accepted: what the first answer said.
pub(crate) async fn as_accepted(pool: &PgPool, id: OrderId) -> anyhow::Result<Order> {
    let history = outbox::history(pool, id)
        .await
        .context("read the order's log")?;
    let first = history
        .first()
        .with_context(|| format!("order {id} has no log"))?;
    let event = log::read(&first.subject, &first.payload)?;
    evolve(None, &event, first.recorded_at)
        .with_context(|| format!("the log of order {id} begins without a creation"))
}

async fn next_orders(tx: &mut PgConnection, after: Uuid) -> sqlx::Result<Vec<OrderId>> {
    let ids = sqlx::query_scalar!(
        r#"-- log_orders
        SELECT DISTINCT order_id FROM outbox WHERE order_id > $1 ORDER BY order_id LIMIT $2"#,
        after,
        STEP as i64
    )
    .fetch_all(tx)
    .await?;
    Ok(ids.into_iter().map(OrderId).collect())
}

struct Logged {
    order_id: Uuid,
    subject: String,
    payload: Vec<u8>,
    recorded_at: OffsetDateTime,
}

async fn fold(tx: &mut PgConnection, ids: &[OrderId]) -> anyhow::Result<Vec<Order>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let mut events = sqlx::query_as!(
        Logged,
        r#"-- log_read
        SELECT order_id, subject, payload, recorded_at FROM outbox
        WHERE order_id = ANY($1) ORDER BY order_id, position"#,
        &ids
    )
    .fetch(tx);
    let mut orders: Vec<Order> = Vec::with_capacity(ids.len());
    while let Some(row) = events.try_next().await.context("read the log")? {
        let event = log::read(&row.subject, &row.payload)
            .with_context(|| format!("log of order {}", row.order_id))?;
        let so_far = orders.pop_if(|order| order.id.0 == row.order_id);
        orders.extend(evolve(so_far, &event, row.recorded_at));
    }
    Ok(orders)
}

async fn mend(tx: &mut PgConnection, rows: &[Order], different: &[&Order]) -> sqlx::Result<()> {
    let lost: Vec<&Order> = different
        .iter()
        .copied()
        .filter(|order| rows.iter().all(|row| row.id != order.id))
        .collect();
    store::insert(tx, &lost).await?;
    store::update(tx, different).await
}
