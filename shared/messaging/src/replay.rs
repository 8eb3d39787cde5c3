//! Publishes again what a stream has dropped, by age or size, before every subscriber had handled
//! it.
//!
//! - It runs beside the publication of new events, which do not wait for it.
//! - It is made of parts that are a fraction of the stream. The next part is published when the
//!   subscribers have handled the last one, so that a replay does not push itself out of the
//!   stream.
//! - It does not wait for a subscriber that is away. When that one is there again, the replay
//!   begins again for it; inboxes drop what the others had applied.
//! - It has ended when every subscriber has handled every part. Until then the oldest checkpoint
//!   stays where it is, and the outbox keeps the events.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::jetstream::stream::{Info, Stream};
use contracts::Service;
use sqlx::PgConnection;

use crate::{
    Participant, database,
    outbox::{Recorded, Row},
    publish::{self, Published},
    reconcile::{self, Subscriber},
};

/// Most events of one part.
const PART: i64 = 512;
/// Parts that fit in a stream.
const PARTS_OF_A_STREAM: i64 = 4;
/// Bytes of an event, while the stream has none to measure.
const EVENT_BYTES: i64 = 1024;
/// How often the subscribers are looked at while they are to handle a part.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often they are looked at while one of them is away and the others have handled all parts.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a subscriber has no request for events open before it counts as away. Longer than a
/// request lasts.
const AWAY_AFTER: Duration = Duration::from_secs(6);

/// What subscribers may have missed: a row that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed {
    id: i64,
    /// Everything up to here has been handled by every subscriber.
    reached: i64,
    until: i64,
    /// Everything after `until` is published after this place in the stream.
    pub(crate) stream_sequence: i64,
}

/// The replay that has not ended, if there is one.
pub(crate) async fn missed(connection: &mut PgConnection) -> sqlx::Result<Option<Missed>> {
    sqlx::query_as!(
        Missed,
        r#"-- replay_missed
        SELECT id, reached_position AS "reached!", until_position AS until, stream_sequence AS "stream_sequence!"
        FROM outbox_replay WHERE reached_position < until_position ORDER BY id DESC LIMIT 1"#
    )
    .fetch_optional(connection)
    .await
}

/// Notes that everything after a position may have been missed, up to the last event of the outbox.
/// `stream_sequence` is the stream's last, read before: what is recorded later is published behind
/// it.
pub(crate) async fn begin(
    connection: &mut PgConnection,
    after: i64,
    stream_sequence: i64,
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- replay_begin
        INSERT INTO outbox_replay (after_position, reached_position, until_position, stream_sequence, reason)
        SELECT $1, $1, max(position), $2, $3 FROM outbox HAVING max(position) > $1"#,
        after,
        stream_sequence,
        reason
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The stream has dropped more: the replay goes on up to what is now the last event of the outbox.
pub(crate) async fn extend(
    connection: &mut PgConnection,
    missed: Missed,
    stream_sequence: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- replay_extend
        UPDATE outbox_replay SET stream_sequence = $2,
            until_position = greatest(until_position, (SELECT max(position) FROM outbox))
        WHERE id = $1"#,
        missed.id,
        stream_sequence
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn note_reached(connection: &mut PgConnection, id: i64, position: i64) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- replay_reached
        UPDATE outbox_replay SET reached_position = $2 WHERE id = $1"#,
        id,
        position
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes the end of a replay: every subscriber has handled everything up to its last position.
async fn end(connection: &mut PgConnection, missed: Missed) -> sqlx::Result<()> {
    sqlx::query!(
        r#"-- replay_end
        WITH ended AS (UPDATE outbox_replay SET reached_position = until_position WHERE id = $1),
             oldest AS (SELECT min(id) AS id FROM outbox_checkpoint),
             forgotten AS (
                 DELETE FROM outbox_checkpoint WHERE id > (SELECT id FROM oldest)
                     AND (position < $2 OR stream_sequence < $3))
        UPDATE outbox_checkpoint SET position = $2, event_id = NULL, stream_sequence = $3
        WHERE id = (SELECT id FROM oldest)"#,
        missed.id,
        missed.until,
        missed.stream_sequence
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn read(
    connection: &mut PgConnection,
    after: i64,
    until: i64,
    limit: i64,
) -> sqlx::Result<Vec<Recorded>> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- replay_read
        SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at
        FROM outbox WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3"#,
        after,
        until,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Recorded::from).collect())
}

/// A replay under way.
pub(crate) struct Replay {
    missed: Missed,
    /// Everything up to here has been published again, and handled by the subscribers that are
    /// there.
    position: i64,
    part: Option<Part>,
    /// When each subscriber was last there.
    there: HashMap<Service, Instant>,
    /// Those that the replay has not waited for.
    away: HashSet<Service>,
    next_look: Instant,
}

/// What was published last: up to a position of the outbox, at these places in the stream.
struct Part {
    position: i64,
    first: u64,
    last: u64,
}

impl Replay {
    pub(crate) fn new(missed: Missed) -> Self {
        Self {
            missed,
            position: missed.reached,
            part: None,
            there: HashMap::new(),
            away: HashSet::new(),
            next_look: Instant::now(),
        }
    }

    /// Takes over how far the replay is to go, and what has been dropped.
    pub(crate) fn update(&mut self, missed: Missed) {
        if missed.id == self.missed.id {
            self.missed = missed;
        } else {
            *self = Self::new(missed);
        }
    }

    /// How long there is nothing to do.
    pub(crate) fn pause(&self) -> Duration {
        self.next_look.saturating_duration_since(Instant::now())
    }

    /// Publishes the next part, if subscribers have handled the last one. Returns whether the
    /// replay has ended. `complete_up_to` is how far the outbox has been published the first time:
    /// an event that is committed late is not passed over.
    pub(crate) async fn advance(
        &mut self,
        participant: &Participant,
        connection: &mut PgConnection,
        stream: &str,
        complete_up_to: i64,
    ) -> anyhow::Result<bool> {
        if !self.pause().is_zero() {
            return Ok(false);
        }
        self.next_look = Instant::now() + LOOK_INTERVAL;
        let jetstream = &participant.broker.jetstream;
        let found = jetstream
            .get_stream(stream)
            .await
            .context("look at the stream")?;
        let subscribers = reconcile::subscribers(participant.service, &found).await;
        self.look_at(&subscribers);
        if !self
            .conclude_part(connection, &subscribers, found.clone())
            .await?
        {
            return Ok(false);
        }
        if self.position >= self.missed.until {
            if self.away.is_empty() {
                database::in_time(async { Ok(end(connection, self.missed).await?) }).await?;
                tracing::info!(service = %participant.service, stream, until = self.missed.until,
                    "every subscriber has handled what was published again");
                return Ok(true);
            }
            if !self.away.iter().any(|service| self.is_there(*service)) {
                self.next_look = Instant::now() + AWAY_INTERVAL;
                return Ok(false);
            }
            self.position = self.missed.reached;
            self.away.clear();
        }
        if self.has_room(found.cached_info(), &subscribers) {
            let until = self.missed.until.min(complete_up_to);
            let limit = part_size(found.cached_info());
            self.publish(participant, connection, until, limit).await?;
        }
        Ok(false)
    }

    fn look_at(&mut self, subscribers: &[Subscriber]) {
        for subscriber in subscribers {
            // The first time it gets the benefit of the doubt.
            if subscriber.is_there || !self.there.contains_key(&subscriber.service) {
                self.there.insert(subscriber.service, Instant::now());
            }
        }
    }

    fn is_there(&self, service: Service) -> bool {
        let at = self.there.get(&service);
        at.is_some_and(|at| at.elapsed() < AWAY_AFTER)
    }

    /// Whether no part is waited for any more. One that the stream has dropped before it was
    /// handled is to be published again.
    async fn conclude_part(
        &mut self,
        connection: &mut PgConnection,
        subscribers: &[Subscriber],
        mut stream: Stream,
    ) -> anyhow::Result<bool> {
        let Some(part) = &self.part else {
            return Ok(true);
        };
        let behind = subscribers.iter().filter(|one| one.handled < part.last);
        let behind: Vec<_> = behind.map(|one| one.service).collect();
        if behind.iter().any(|service| self.is_there(*service)) {
            return Ok(false);
        }
        // After the subscribers: the broker also counts as handled what it has dropped.
        let info = stream.info().await.context("look at the stream")?;
        let position = (info.state.first_sequence <= part.first).then_some(part.position);
        self.part = None;
        self.away.extend(behind);
        if let Some(position) = position {
            self.position = position;
            if self.away.is_empty() {
                let note = note_reached(connection, self.missed.id, position);
                database::in_time(async { Ok(note.await?) }).await?;
                self.missed.reached = position;
            }
        }
        Ok(true)
    }

    /// A subscriber that has much to do would lose the oldest of it.
    fn has_room(&self, stream: &Info, subscribers: &[Subscriber]) -> bool {
        let state = &stream.state;
        let half = state.last_sequence.saturating_sub(state.messages / 2);
        let mut awaited = subscribers.iter().filter(|one| self.is_there(one.service));
        awaited.all(|one| one.handled >= half)
    }

    async fn publish(
        &mut self,
        participant: &Participant,
        connection: &mut PgConnection,
        until: i64,
        limit: i64,
    ) -> anyhow::Result<()> {
        let read = read(connection, self.position, until, limit);
        let rows = database::in_time(async { Ok(read.await?) }).await;
        let rows = rows.context("read the outbox")?;
        let Some(position) = rows.last().map(|last| last.position) else {
            self.position = self.position.max(until);
            return Ok(());
        };
        participant.metrics.replayed(rows.len());
        let Participant {
            broker, service, ..
        } = participant;
        // What is refused was set aside the first time.
        let Published { sent, failure, .. } =
            publish::publish(broker, *service, rows, position).await;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let sequences = || {
            sent.iter()
                .filter_map(|sent| u64::try_from(sent.sequence).ok())
        };
        match (sequences().min(), sequences().max()) {
            (Some(first), Some(last)) => {
                self.part = Some(Part {
                    position,
                    first,
                    last,
                });
            }
            _ => self.position = position,
        }
        Ok(())
    }
}

/// How many events are a fraction of the stream.
fn part_size(stream: &Info) -> i64 {
    let (state, max_bytes) = (&stream.state, stream.config.max_bytes);
    if max_bytes <= 0 {
        return PART;
    }
    let bytes = state.bytes.checked_div(state.messages);
    let bytes = bytes.and_then(|bytes| i64::try_from(bytes).ok());
    let bytes = bytes.unwrap_or(EVENT_BYTES).max(1);
    (max_bytes / PARTS_OF_A_STREAM / bytes).clamp(1, PART)
}
