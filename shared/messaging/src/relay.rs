//! The relay: publishes the outbox, at least once.
//!
//! - The outbox is a log. The relay reads it from where it has got to ([`Tail`]) and writes nothing
//!   to its rows. It notes a [`Checkpoint`](crate::checkpoint::Checkpoint) about once a second, and
//!   begins there after any failure: events since then are published again, and the broker
//!   (`Nats-Msg-Id`) or the consumer's inbox drops the repetition.
//! - One process of a service relays at a time: the one whose session holds an advisory lock. The
//!   others stand by, and tell it of their commits. PostgreSQL releases the lock when the session
//!   ends, so that another process goes on at once. Two that relay at the same time, because one of
//!   them does not know yet that its session has ended, only publish twice.
//! - Over each new connection, and regularly, the stream is compared with the outbox (`reconcile`):
//!   what the broker has lost is published again, and what the stream has dropped before a
//!   subscriber had handled it (`replay`).
//! - A row that can never be published is set aside, and does not hold up the others.
//! - While the broker or the database is unavailable, rows stay where they are and the relay backs
//!   off.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::Subscriber;
use futures::{FutureExt as _, StreamExt as _};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::{
    Participant, backoff,
    backoff::Outage,
    checkpoint, database,
    outbox::Recorded,
    publish::{self, Published, Sent},
    reconcile,
    replay::{self, Replay},
    tail::Tail,
    topology,
};

/// Rows per read, and publishes in flight. Beyond this the broker's throughput no longer grows.
const BATCH: i64 = 512;
/// Poll interval, in case a wake-up is lost: a process may die between its commit and the wake-up.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long shutdown waits for the outbox to drain. Events that are left are published after the
/// next start, or by another replica.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a relay that is busy notes where it has got to.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the stream is compared with the outbox while the connection is undisturbed: an
/// operator may have deleted the stream.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);
/// PostgreSQL ends the session of a process that is stopped or cut off after this time; another
/// process then relays. A relay that runs polls far more often.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// The advisory lock of the process that relays: any number, the same for all versions. Databases
/// have their locks apart.
const LOCK: i64 = 0x5a6a_0b0c;
/// The relay's name in readiness.
const PART: &str = "relay";

/// Relays until `shutdown`, then flushes.
pub(crate) async fn run(participant: Participant, stream: &str, shutdown: CancellationToken) {
    let Participant {
        service,
        broker,
        progress,
        ..
    } = &participant;
    let mut delays = backoff::outage();
    let flush_is_over = async {
        shutdown.cancelled().await;
        tokio::time::sleep(FLUSH_TIMEOUT).await;
    };
    let mut flush_is_over = std::pin::pin!(flush_is_over);
    loop {
        let relayed = tokio::select! {
            relayed = relay(&participant, stream, &shutdown, &mut delays) => relayed,
            () = broker.cut_off(&shutdown) => Err(anyhow::anyhow!("there is no connection to NATS")),
            () = &mut flush_is_over => Err(anyhow::anyhow!("it did not end in time")),
        };
        let Err(error) = relayed else { return };
        let error = format!("{error:#}");
        if shutdown.is_cancelled() {
            tracing::warn!(%service, error,
                "the outbox could not be flushed; its events are published after the next start");
            return;
        }
        let delay = delays.next_delay();
        tracing::warn!(%service, error,
            "events could not be published; they stay in the outbox, the relay retries in {delay:?}");
        progress.obstruct(PART, error);
        tokio::select! {
            () = broker.pause(delay) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Waits for the lock, then relays until `shutdown` or a failure.
async fn relay(
    participant: &Participant,
    stream: &str,
    shutdown: &CancellationToken,
    delays: &mut Outage,
) -> anyhow::Result<()> {
    let timeout = SESSION_TIMEOUT.as_millis().to_string();
    let options = (*participant.pool.connect_options()).clone();
    let options = options.options([("idle_session_timeout", timeout)]);
    let connect = async { Ok(PgConnection::connect_with(&options).await?) };
    let session = database::in_time(connect).await;
    let mut session = session.context("connect to the database")?;
    let hint = format!("relay.wake.{}", participant.service);
    if !stand_by(participant, &mut session, &hint, shutdown).await? {
        return Ok(());
    }
    let hints = participant.broker.client.subscribe(hint).await;
    let mut relay = Relay::new(participant, stream, session).await?;
    relay
        .run(hints.context("subscribe to hints")?, shutdown, delays)
        .await?;
    // Another process takes over without waiting for PostgreSQL to miss this one.
    Ok(relay.session.close().await?)
}

/// Waits until this process may relay. Until then it tells the one that relays of its commits.
/// False when shutdown came first, and the other process does the rest.
async fn stand_by(
    participant: &Participant,
    session: &mut PgConnection,
    hint: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let Participant {
        broker,
        wake,
        metrics,
        progress,
        ..
    } = participant;
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    loop {
        let is_last = shutdown.is_cancelled();
        if try_lock(session)
            .await
            .context("ask for the relay's lock")?
        {
            return Ok(true);
        }
        // What it saw when it relayed last is for the other process to tell.
        metrics.outbox_oldest(None);
        progress.touch(PART);
        if is_last {
            return Ok(false);
        }
        loop {
            tokio::select! {
                _ = ticks.tick() => break,
                () = shutdown.cancelled() => break,
                () = wake.woken() => broker.hint(hint).await,
            }
        }
    }
}

async fn try_lock(session: &mut PgConnection) -> anyhow::Result<bool> {
    let lock = sqlx::query_scalar!(
        r#"-- relay_lock
        SELECT pg_try_advisory_lock($1) AS "locked!""#,
        LOCK
    );
    database::in_time(async { Ok(lock.fetch_one(session).await?) }).await
}

/// A process that relays.
struct Relay<'a> {
    participant: &'a Participant,
    stream: &'a str,
    /// Holds the lock. Whatever is noted goes through it: a relay that has lost the lock notes
    /// nothing.
    session: PgConnection,
    tail: Tail,
    /// The last place in the stream that is known.
    last: Place,
    noted: Noted,
    /// Up to where events may have been published before.
    replayed_until: i64,
    /// What subscribers may have missed.
    replay: Option<Replay>,
    /// When stream and outbox were last compared, and over which connection.
    reconciled: Option<(Instant, u64)>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    event_id: Option<uuid::Uuid>,
    sequence: i64,
}

/// The last checkpoint.
struct Noted {
    position: i64,
    at: Instant,
}

impl Noted {
    fn at(position: i64) -> Self {
        Self {
            position,
            at: Instant::now(),
        }
    }
}

impl<'a> Relay<'a> {
    async fn new(
        participant: &'a Participant,
        stream: &'a str,
        session: PgConnection,
    ) -> anyhow::Result<Self> {
        let mut relay = Self {
            participant,
            stream,
            session,
            tail: Tail::after(0),
            last: Place::default(),
            noted: Noted::at(0),
            replayed_until: 0,
            replay: None,
            reconciled: None,
        };
        relay.go_back().await?;
        Ok(relay)
    }

    /// Begins at the newest checkpoint: what was published since then may be lost.
    async fn go_back(&mut self) -> anyhow::Result<()> {
        let session = &mut self.session;
        let read = async {
            let newest = checkpoint::newest(session).await?;
            Ok((newest, checkpoint::replayed_until(session).await?))
        };
        let read = database::in_time(read).await;
        let (checkpoint, replayed_until) = read.context("read the relay's checkpoint")?;
        self.tail = Tail::after(checkpoint.position);
        self.noted = Noted::at(checkpoint.position);
        self.last = Place {
            event_id: checkpoint.event_id,
            sequence: checkpoint.stream_sequence,
        };
        self.replayed_until = replayed_until;
        // The place in the stream of what it published last may be lost.
        self.replay = None;
        Ok(())
    }

    async fn run(
        &mut self,
        mut hints: Subscriber,
        shutdown: &CancellationToken,
        delays: &mut Outage,
    ) -> anyhow::Result<()> {
        loop {
            let is_last = shutdown.is_cancelled();
            self.drain().await?;
            *delays = backoff::outage();
            if is_last {
                return self.note().await;
            }
            tokio::select! {
                () = self.participant.wake.woken() => {}
                Some(_) = hints.next() => while hints.next().now_or_never().flatten().is_some() {},
                () = tokio::time::sleep(self.poll_interval()) => {
                    if self.noted.at.elapsed() >= POLL_INTERVAL {
                        self.note().await?;
                    }
                }
                () = shutdown.cancelled() => {}
            }
        }
    }

    fn poll_interval(&self) -> Duration {
        let pause = self.replay.as_ref().map(Replay::pause);
        pause.map_or(POLL_INTERVAL, |pause| pause.min(POLL_INTERVAL))
    }

    /// Publishes until a read is not full. An event that is appended later wakes the relay again.
    async fn drain(&mut self) -> anyhow::Result<()> {
        loop {
            let reconciled = self.reconcile_if_due().await;
            let read = async { Ok(self.tail.read(&mut self.session, BATCH).await?) };
            let rows = database::in_time(read).await.context("read the outbox")?;
            let Participant {
                broker,
                metrics,
                progress,
                ..
            } = self.participant;
            metrics.outbox_oldest(rows.first().map(|oldest| oldest.recorded_at));
            // After the read: the age of the outbox is told also while the broker does not answer.
            reconciled?;
            // Also when there is nothing to publish: readiness then tells of the outage. And the
            // client would keep what is published now and send it, stale, after the outage.
            ensure!(broker.is_connected(), "there is no connection to NATS");
            let read = rows.len();
            if read == 0 {
                progress.touch(PART);
                return self.advance_replay().await;
            }
            let service = self.participant.service;
            let published = publish::publish(broker, service, rows, self.replayed_until).await;
            self.conclude(published).await?;
            progress.touch(PART);
            self.advance_replay().await?;
            if read < BATCH as usize {
                metrics.outbox_oldest(None);
                return Ok(());
            }
        }
    }

    /// Compares stream and outbox over a new connection, and regularly. Not while the broker is
    /// away: the outbox is read all the same, for the metrics.
    async fn reconcile_if_due(&mut self) -> anyhow::Result<()> {
        let broker = &self.participant.broker;
        let connections = broker.connections();
        let is_due = self.reconciled.is_none_or(|(at, connection)| {
            connection != connections || at.elapsed() > RECONCILE_INTERVAL
        });
        if !is_due || !broker.is_connected() {
            return Ok(());
        }
        // Only its own: that another one is away stops no publication.
        topology::reconcile_stream(broker, self.stream).await?;
        let head = self.tail.head();
        let compare = reconcile::reconcile(self.participant, &mut self.session, self.stream, head);
        let is_behind = database::in_time(compare).await?;
        let is_new = self
            .reconciled
            .is_some_and(|(_, connection)| connection != connections);
        if is_behind || is_new {
            self.go_back().await?;
        }
        self.reconciled = Some((Instant::now(), connections));
        let missed = replay::missed(&mut self.session);
        match database::in_time(async { Ok(missed.await?) }).await? {
            None => self.replay = None,
            Some(missed) => match &mut self.replay {
                Some(replay) => replay.update(missed),
                None => self.replay = Some(Replay::new(missed)),
            },
        }
        Ok(())
    }

    async fn advance_replay(&mut self) -> anyhow::Result<()> {
        let Some(replay) = &mut self.replay else {
            return Ok(());
        };
        let complete_up_to = self.tail.complete_up_to();
        let Self {
            participant,
            session,
            stream,
            ..
        } = self;
        if replay
            .advance(participant, session, stream, complete_up_to)
            .await?
        {
            self.replay = None;
        }
        Ok(())
    }

    async fn conclude(&mut self, published: Published) -> anyhow::Result<()> {
        let Published {
            sent,
            refused,
            failure,
        } = published;
        self.participant.metrics.published(sent.len());
        self.set_aside(&refused).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let is_used = |sent: &&Sent| !sent.is_duplicate && sent.sequence <= self.last.sequence;
        ensure!(
            sent.iter().find(is_used).is_none(),
            "the stream gives out sequences again: the broker has lost events"
        );
        if let Some(newest) = sent.iter().max_by_key(|sent| sent.sequence)
            && newest.sequence > self.last.sequence
        {
            self.last = Place {
                event_id: Some(newest.event_id.0),
                sequence: newest.sequence,
            };
        }
        if self.noted.at.elapsed() >= CHECKPOINT_INTERVAL {
            self.note().await?;
        }
        Ok(())
    }

    /// Notes where the relay has got to, if it has moved.
    async fn note(&mut self) -> anyhow::Result<()> {
        let position = self.tail.complete_up_to();
        if position != self.noted.position {
            let Place { event_id, sequence } = self.last;
            let append = checkpoint::append(&mut self.session, position, event_id, sequence);
            database::in_time(async { Ok(append.await?) })
                .await
                .context("note a checkpoint")?;
        }
        self.noted = Noted::at(position);
        Ok(())
    }

    async fn set_aside(&mut self, rows: &[(Recorded, String)]) -> anyhow::Result<()> {
        self.participant.metrics.set_aside(rows.len());
        for (row, reason) in rows {
            tracing::error!(service = %self.participant.service, outbox.position = row.position,
                event.id = %row.event_id, reason,
                "an event cannot be published; it is set aside for an operator");
            let insert = sqlx::query!(
                r#"-- outbox_set_aside
                INSERT INTO outbox_set_aside (position, event_id, subject, reason) VALUES ($1, $2, $3, $4)
                ON CONFLICT DO NOTHING"#,
                row.position,
                row.event_id.0,
                row.subject,
                reason
            );
            database::in_time(async { Ok(insert.execute(&mut self.session).await?) })
                .await
                .context("set an event aside")?;
        }
        Ok(())
    }
}
