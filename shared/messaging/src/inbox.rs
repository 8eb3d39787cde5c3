//! The inbox: event ids that this service has handled, written in the transaction of their effects.
//!
//! Guarantee: an event's effects are committed at most once, however often it is delivered, to
//! however many replicas.

use std::collections::HashSet;

use contracts::EventId;
use sqlx::PgConnection;

/// Claims events for the caller's transaction and returns those that were not claimed before. Waits
/// for another transaction that is just claiming the same event. Ids are claimed in sorted order,
/// so that batches of several replicas cannot deadlock.
pub async fn claim(tx: &mut PgConnection, events: &[EventId]) -> sqlx::Result<HashSet<EventId>> {
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

/// Gives back claims of the caller's transaction, for events that were not handled after all.
pub async fn release(tx: &mut PgConnection, events: &[EventId]) -> sqlx::Result<()> {
    let ids: Vec<_> = events.iter().map(|event| event.0).collect();
    sqlx::query!(
        "-- inbox_release\nDELETE FROM inbox WHERE event_id = ANY($1)",
        &ids
    )
    .execute(tx)
    .await?;
    Ok(())
}
