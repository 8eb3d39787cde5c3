//! Idempotency keys (IETF draft-ietf-httpapi-idempotency-key-header): which request created which
//! order. Its SQL is here, next to the rules of a claim.

use std::{collections::HashMap, time::Duration};

use chassis::ticks;
use contracts::{CustomerId, IdempotencyKey, OrderId};
use messaging::in_time;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::domain::OrderRequest;

const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Keys per statement, so that none holds many locks.
const PRUNE_STEP: i64 = 10_000;
/// How far the clock of a replica may be ahead or behind. A larger error delays the deletion of a
/// key, or leaves it to the next process; it never deletes a young one.
const CLOCK_ERROR: Duration = Duration::from_secs(3600);

/// A key belongs to the customer who sent it.
pub type Key = (CustomerId, IdempotencyKey);

/// The order that a key stands for, and the fingerprint of the request that created it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub order_id: OrderId,
    pub fingerprint: Vec<u8>,
}

/// The result of claiming keys.
pub struct Claims {
    /// Orders whose key was new, and the time of the database: deadlines are set and compared by
    /// its clock, because those of replicas differ.
    pub granted: HashMap<OrderId, OffsetDateTime>,
    /// Keys that an earlier request has claimed.
    pub earlier: HashMap<Key, Claim>,
}

/// What was requested, without prices: these may have changed when the request is repeated.
pub fn fingerprint(request: &OrderRequest) -> Vec<u8> {
    let mut hash = Sha256::new();
    let (lines, payment_method) = request.parts();
    for (sku, quantity) in lines {
        hash.update(sku.as_str().as_bytes());
        hash.update([0]);
        hash.update(quantity.get().to_be_bytes());
    }
    hash.update(payment_method.as_str().as_bytes());
    hash.finalize().to_vec()
}

/// Claims keys in the caller's transaction. Waits for another transaction that is claiming the same
/// key.
pub async fn claim(tx: &mut PgConnection, claims: &[(&Key, Claim)]) -> sqlx::Result<Claims> {
    let mut claims: Vec<_> = claims.iter().collect();
    // In key order, so that the batches of two replicas cannot deadlock.
    claims.sort_unstable_by_key(|(key, _)| *key);
    let customers: Vec<_> = claims.iter().map(|(key, _)| key.0.0).collect();
    let keys: Vec<_> = claims.iter().map(|(key, _)| key.1.as_str()).collect();
    let fingerprints: Vec<_> = claims
        .iter()
        .map(|(_, claim)| claim.fingerprint.as_slice())
        .collect();
    let orders: Vec<_> = claims.iter().map(|(_, claim)| claim.order_id.0).collect();
    let granted = sqlx::query!(
        r#"-- idempotency_claim
        INSERT INTO idempotency_keys (customer_id, key, fingerprint, order_id)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[])
        ON CONFLICT ON CONSTRAINT idempotency_keys_once DO NOTHING
        RETURNING order_id, clock_timestamp() AS "at!""#,
        &customers,
        &keys as &[&str],
        &fingerprints as &[&[u8]],
        &orders
    )
    .fetch_all(&mut *tx)
    .await?;
    let granted = granted
        .into_iter()
        .map(|row| (OrderId(row.order_id), row.at));
    let granted: HashMap<OrderId, OffsetDateTime> = granted.collect();
    claims.retain(|(_, claim)| !granted.contains_key(&claim.order_id));
    let refused: Vec<&Key> = claims.iter().map(|(key, _)| *key).collect();
    Ok(Claims {
        granted,
        earlier: earlier(tx, &refused).await?,
    })
}

/// Claims of earlier requests.
pub async fn earlier(tx: &mut PgConnection, keys: &[&Key]) -> sqlx::Result<HashMap<Key, Claim>> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let customers: Vec<_> = keys.iter().map(|(customer, _)| customer.0).collect();
    let texts: Vec<_> = keys.iter().map(|(_, key)| key.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- idempotency_find
        SELECT customer_id, key, fingerprint, order_id FROM idempotency_keys
        WHERE (customer_id, key) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))"#,
        &customers,
        &texts as &[&str]
    )
    .fetch_all(tx)
    .await?;
    let mut claims = HashMap::with_capacity(rows.len());
    for row in rows {
        let key: IdempotencyKey = row
            .key
            .try_into()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let claim = Claim {
            order_id: OrderId(row.order_id),
            fingerprint: row.fingerprint,
        };
        claims.insert((CustomerId(row.customer_id), key), claim);
    }
    Ok(claims)
}

/// Deletes keys after [`IdempotencyKey::RETENTION`], until `stopping`.
pub async fn prune(pool: PgPool, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = ticks(PRUNE_INTERVAL);
    let mut pruned = Uuid::nil();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        let done = tokio::select! {
            done = prune_all(&pool, &mut pruned) => done,
            () = stopping.cancelled() => return Ok(()),
        };
        if let Err(error) = done {
            // After a failover the database may have again what was deleted.
            pruned = Uuid::nil();
            tracing::warn!(
                error = format!("{error:#}"),
                "could not prune idempotency keys; the next attempt is in {PRUNE_INTERVAL:?}"
            );
        }
    }
}

/// Deletes in steps that begin behind `pruned`, the order of the last key that was deleted: a
/// snapshot that is held for long keeps deleted rows, and each step would read all of them again.
///
/// The id of an order has the time of a replica, whose clock may be wrong. It bounds what a step
/// reads; whether a key is old is decided by the database's clock alone.
///
/// The table is not partitioned by time, as outbox and inbox are: a partition key would have to be
/// part of the constraint that makes a key unique, and a key could then be used once a day.
async fn prune_all(pool: &PgPool, pruned: &mut Uuid) -> anyhow::Result<()> {
    loop {
        let delete = sqlx::query_scalar!(
            r#"-- idempotency_prune
            DELETE FROM idempotency_keys WHERE (customer_id, key) IN (
                SELECT customer_id, key FROM idempotency_keys
                WHERE order_id > $1 AND order_id < $2
                    AND created_at < now() - make_interval(secs => $3)
                ORDER BY order_id LIMIT $4)
            RETURNING order_id"#,
            *pruned,
            messaging::oldest_id(IdempotencyKey::RETENTION + CLOCK_ERROR),
            IdempotencyKey::RETENTION.as_secs_f64(),
            PRUNE_STEP
        );
        let deleted = in_time(async { Ok(delete.fetch_all(pool).await?) }).await?;
        *pruned = deleted.iter().copied().max().unwrap_or(*pruned);
        if deleted.len() < PRUNE_STEP as usize {
            return Ok(());
        }
    }
}
