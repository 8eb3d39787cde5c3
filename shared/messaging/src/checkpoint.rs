//! Checkpoints: places at which the outbox and the broker's stream are known to agree.
//!
//! The newest is where a relay begins, and where it goes back to after a failure. The oldest is
//! what every subscriber has handled: nothing before it is ever published again. Rows are only
//! appended at one end and deleted at the other, a few a minute, so that a snapshot that is held
//! for an hour costs nothing.

use sqlx::PgConnection;
use uuid::Uuid;

/// Everything up to `position` was published at or before `stream_sequence`, and everything after
/// `position` is published after `stream_sequence`.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) id: i64,
    pub(crate) position: i64,
    /// The event at `stream_sequence`; `None` when there is none to compare.
    pub(crate) event_id: Option<Uuid>,
    pub(crate) stream_sequence: i64,
}

/// Up to where events may have been published before; 0 when nothing was published again.
pub(crate) async fn replayed_until(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let until = sqlx::query_scalar!(
        r#"-- replay_last
        SELECT until_position FROM outbox_replay ORDER BY id DESC LIMIT 1"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(until.unwrap_or_default())
}

/// Where the relay has got to.
pub(crate) async fn newest(connection: &mut PgConnection) -> sqlx::Result<Checkpoint> {
    at(connection, i64::MAX).await
}

/// The last checkpoint with an id of at most `id`, or else the oldest one.
pub(crate) async fn at(connection: &mut PgConnection, id: i64) -> sqlx::Result<Checkpoint> {
    let found = sqlx::query_as!(
        Checkpoint,
        r#"-- checkpoint_at
        SELECT id, position, event_id, stream_sequence FROM outbox_checkpoint
        WHERE id <= $1 ORDER BY id DESC LIMIT 1"#,
        id
    )
    .fetch_optional(&mut *connection)
    .await?;
    match found {
        Some(found) => Ok(found),
        None => oldest(connection).await,
    }
}

/// What every subscriber has handled.
pub(crate) async fn oldest(connection: &mut PgConnection) -> sqlx::Result<Checkpoint> {
    sqlx::query_as!(
        Checkpoint,
        r#"-- checkpoint_oldest
        SELECT id, position, event_id, stream_sequence FROM outbox_checkpoint ORDER BY id LIMIT 1"#
    )
    .fetch_one(connection)
    .await
}

pub(crate) async fn append(
    connection: &mut PgConnection,
    position: i64,
    event_id: Option<Uuid>,
    stream_sequence: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- checkpoint_append
        INSERT INTO outbox_checkpoint (position, event_id, stream_sequence) VALUES ($1, $2, $3)"#,
        position,
        event_id,
        stream_sequence
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that every subscriber has handled the stream up to `stream_sequence`: checkpoints before
/// the last one there are deleted.
pub(crate) async fn forget_handled(
    connection: &mut PgConnection,
    stream_sequence: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- checkpoint_forget_handled
        DELETE FROM outbox_checkpoint WHERE id < (
            SELECT id FROM outbox_checkpoint WHERE stream_sequence <= $1 ORDER BY id DESC LIMIT 1)"#,
        stream_sequence
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Goes back to a checkpoint: everything after it, up to `published`, is published again, behind
/// `stream_sequence`. What comes before it is in the stream; not every subscriber may have handled
/// it.
pub(crate) async fn rewind(
    connection: &mut PgConnection,
    begin: &Checkpoint,
    published: i64,
    stream_sequence: i64,
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- checkpoint_rewind
        WITH forgotten AS (DELETE FROM outbox_checkpoint WHERE id >= $5),
             missed AS (
                 UPDATE outbox_replay SET stream_sequence = least(stream_sequence, $3)
                 WHERE reached_position < until_position),
             noted AS (INSERT INTO outbox_replay (after_position, until_position, reason) VALUES ($1, $2, $4))
        INSERT INTO outbox_checkpoint (position, event_id, stream_sequence) VALUES ($1, NULL, $3)"#,
        begin.position,
        published,
        stream_sequence,
        reason,
        begin.id
    )
    .execute(connection)
    .await?;
    Ok(())
}
