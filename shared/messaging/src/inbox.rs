//! The inbox: ids of events that this service has handled, written in the transaction of their
//! effects.
//!
//! Guarantee: the effects of an event are committed at most once, however often it is delivered and
//! to however many replicas.

use std::collections::HashSet;

use contracts::EventId;
use sqlx::PgConnection;

/// Claims events for the caller's transaction and returns those that were not claimed before. Waits
/// for another transaction that is claiming the same event. Ids are claimed in sorted order, so
/// that batches of several replicas cannot deadlock.
pub async fn claim(tx: &mut PgConnection, events: &[EventId]) -> sqlx::Result<HashSet<EventId>> {
    if events.is_empty() {
        return Ok(HashSet::new());
    }
    let mut ids: Vec<_> = events.iter().map(|event| event.0).collect();
    ids.sort_unstable();
    let fresh = sqlx::query_scalar!(
        r#"-- inbox_claim
        INSERT INTO inbox (event_id) SELECT event_id FROM unnest($1::uuid[]) AS e (event_id)
        ON CONFLICT DO NOTHING RETURNING event_id"#,
        &ids
    )
    .fetch_all(tx)
    .await?;
    Ok(fresh.into_iter().map(EventId).collect())
}

/// Releases claims of the caller's transaction, for events that were not applied after all.
pub async fn release(tx: &mut PgConnection, events: &[EventId]) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = events.iter().map(|event| event.0).collect();
    sqlx::query!(
        "-- inbox_release\nDELETE FROM inbox WHERE event_id = ANY($1)",
        &ids
    )
    .execute(tx)
    .await?;
    Ok(())
}
