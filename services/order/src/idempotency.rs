//! Idempotency keys (IETF draft-ietf-httpapi-idempotency-key-header): which request made which
//! order. SQL included, because a key means nothing without the statement that claims it.

use std::{collections::HashMap, time::Duration};

use contracts::{CustomerId, OrderId};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::domain::Created;

/// How long a key is remembered; published in the API's documentation.
pub const RETENTION: Duration = Duration::from_secs(72 * 3600);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Who sent which key.
pub(crate) type Key = (CustomerId, String);

/// The order that a key stands for, and the fingerprint of the request that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) order_id: OrderId,
    pub(crate) fingerprint: Vec<u8>,
}

/// What was asked for, without prices: these may have changed when the request is repeated.
pub(crate) fn fingerprint(order: &Created) -> Vec<u8> {
    let mut hash = Sha256::new();
    for line in &order.lines {
        hash.update(line.sku.as_bytes());
        hash.update([0]);
        hash.update(line.quantity.to_be_bytes());
    }
    hash.update(order.payment_method.as_bytes());
    hash.finalize().to_vec()
}

/// Claims keys in the caller's transaction and returns, for every key, the claim that now holds:
/// the caller's, or an earlier one. Waits for another transaction that is just claiming the same
/// key.
pub(crate) async fn claim(
    tx: &mut PgConnection,
    claims: &[(&Key, Claim)],
) -> sqlx::Result<HashMap<Key, Claim>> {
    let mut claims: Vec<_> = claims.iter().collect();
    // In key order, so that the batches of two replicas cannot deadlock.
    claims.sort_unstable_by_key(|(key, _)| *key);
    let customers: Vec<_> = claims.iter().map(|(key, _)| key.0.0).collect();
    let keys: Vec<_> = claims.iter().map(|(key, _)| key.1.as_str()).collect();
    let prints: Vec<_> = claims
        .iter()
        .map(|(_, claim)| claim.fingerprint.as_slice())
        .collect();
    let orders: Vec<_> = claims.iter().map(|(_, claim)| claim.order_id.0).collect();
    let inserted = sqlx::query_scalar!(
        r#"-- idempotency_claim
        INSERT INTO idempotency_keys (customer_id, key, fingerprint, order_id)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[])
        ON CONFLICT ON CONSTRAINT idempotency_keys_once DO NOTHING RETURNING order_id"#,
        &customers,
        &keys as &[&str],
        &prints as &[&[u8]],
        &orders
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut held: HashMap<Key, Claim> = claims
        .iter()
        .map(|(key, claim)| ((*key).clone(), claim.clone()))
        .collect();
    if inserted.len() < claims.len() {
        held.extend(earlier(tx, &customers, &keys).await?);
    }
    Ok(held)
}

async fn earlier(
    tx: &mut PgConnection,
    customers: &[Uuid],
    keys: &[&str],
) -> sqlx::Result<Vec<(Key, Claim)>> {
    let rows = sqlx::query!(
        r#"-- idempotency_find
        SELECT customer_id, key, fingerprint, order_id FROM idempotency_keys
        WHERE (customer_id, key) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))"#,
        customers,
        keys as &[&str]
    )
    .fetch_all(tx)
    .await?;
    let claims = rows.into_iter().map(|row| {
        let claim = Claim {
            order_id: OrderId(row.order_id),
            fingerprint: row.fingerprint,
        };
        ((CustomerId(row.customer_id), row.key), claim)
    });
    Ok(claims.collect())
}

/// Forgets keys after [`RETENTION`], until `shutdown`.
pub(crate) async fn prune(pool: PgPool, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let pruned = sqlx::query!(
            "-- idempotency_prune\nDELETE FROM idempotency_keys WHERE created_at < now() - make_interval(secs => $1)",
            RETENTION.as_secs_f64()
        )
        .execute(&pool)
        .await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "could not prune idempotency keys; trying again in {PRUNE_EVERY:?}");
        }
    }
}
