//! `order rebuild`: the `orders` table is a projection of the event log, and can be compared with
//! it and repaired from it at any time.

use anyhow::Context as _;
use contracts::OrderId;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{domain::Order, event_log, store};

/// Orders compared or written per transaction.
const STEP: i64 = 500;

/// Compares every order with its log; with `write`, repairs rows that differ. Fails when rows
/// differ and are not repaired. Safe while the service runs: rows are locked while they are
/// compared.
pub async fn run(pool: &PgPool, write: bool) -> anyhow::Result<()> {
    let (mut orders, mut different) = (0, 0);
    let mut after = Uuid::nil();
    loop {
        let mut tx = pool.begin().await?;
        let ids = event_log::orders_after(&mut tx, after, STEP).await;
        let ids = ids.context("list orders in the log")?;
        let Some(last) = ids.last() else { break };
        after = last.0;
        orders += ids.len();
        different += compare(&mut tx, &ids, write).await?;
        tx.commit().await?;
    }
    tracing::info!(
        orders,
        different,
        "compared the orders table with the event log"
    );
    anyhow::ensure!(
        write || different == 0,
        "{different} orders differ from their log: repair them with `order rebuild --write`"
    );
    Ok(())
}

/// Compares some orders; returns how many differ.
async fn compare(
    tx: &mut sqlx::PgConnection,
    ids: &[OrderId],
    write: bool,
) -> anyhow::Result<usize> {
    // A row that cannot be read differs from the log, too.
    let rows = store::lock_readable(tx, ids).await;
    let rows = rows.context("lock orders")?;
    let folded = event_log::fold(tx, ids).await?;
    let mut different: Vec<&Order> = folded.iter().collect();
    different.retain(|order| rows.get(&order.id) != Some(*order));
    for order in &different {
        let next = match write {
            true => "its row is repaired",
            false => "`rebuild --write` repairs its row",
        };
        tracing::warn!(order.id = %order.id, "an order differs from its log; {next}");
    }
    if write {
        for order in &different {
            let repaired = store::restore(tx, order).await;
            repaired.with_context(|| format!("repair order {}", order.id))?;
        }
    }
    Ok(different.len())
}
