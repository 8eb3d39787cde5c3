-- The outbox becomes an append-only log: the relay reads it from where it has got to, and writes nothing to its rows.
-- Outbox and inbox are partitioned by time, so that old rows are dropped with their table instead of deleted.
--
-- The version before this one still works: names and columns stay. It publishes rows whose sent_at is null, so that this
-- version fills sent_at in when it appends. After a roll-back the version before does not publish everything again.

-- In the order in which a transaction of a service comes to them, so that neither waits for the other.
LOCK TABLE inbox, outbox IN ACCESS EXCLUSIVE MODE;

-- An identity column cannot belong to a partitioned table in all supported versions of PostgreSQL; a sequence can.
ALTER TABLE outbox ALTER COLUMN position DROP IDENTITY;
CREATE SEQUENCE outbox_position;
SELECT setval('outbox_position', coalesce((SELECT max(position) FROM outbox), 0) + 1, false);
ALTER TABLE outbox ALTER COLUMN position SET DEFAULT nextval('outbox_position');

-- BRIN does not survive pruning, and nothing reads these indexes.
DROP INDEX outbox_recorded;
DROP INDEX inbox_received;

-- The rows so far stay where they are, in the default partition. Partitions of a day are made by the service, ahead of
-- time (see src/partitions.rs); what belongs to none of them, such as an event with a wrong clock, is in the default.
-- The event log of the order service, which is kept without end, is all in the default.
ALTER TABLE outbox RENAME TO outbox_default;
CREATE TABLE outbox (LIKE outbox_default INCLUDING DEFAULTS INCLUDING COMMENTS) PARTITION BY RANGE (recorded_at);
ALTER TABLE outbox ATTACH PARTITION outbox_default DEFAULT;

-- By event_id, a UUIDv7: the primary key that makes a second delivery visible stays a key of each partition, and an event
-- has only one partition that it can be in.
ALTER TABLE inbox RENAME TO inbox_default;
CREATE TABLE inbox (LIKE inbox_default INCLUDING DEFAULTS INCLUDING COMMENTS) PARTITION BY RANGE (event_id);
ALTER TABLE inbox ATTACH PARTITION inbox_default DEFAULT;
ALTER TABLE inbox ADD PRIMARY KEY (event_id);

-- Places at which the log and the broker's stream are known to agree, oldest first. Only the relay writes here.
-- Newest row: everything up to `position` has been published. Oldest row: everything up to `position` has been handled
-- by every subscriber, and need not be published again, whatever the broker forgets.
CREATE TABLE outbox_checkpoint (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    position        bigint      NOT NULL,
    -- The last event that was published until then; null when there is none to compare.
    event_id        uuid,
    -- Its place in the stream. Everything after `position` has been, or will be, published after it.
    stream_sequence bigint      NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Where the relay of the version before this one had got to.
INSERT INTO outbox_checkpoint (position, event_id, stream_sequence)
SELECT coalesce(
           (SELECT min(position) - 1 FROM outbox WHERE sent_at IS NULL AND set_aside_at IS NULL),
           (SELECT max(position) FROM outbox),
           0),
       newest.event_id, coalesce(newest.stream_sequence, 0)
FROM (SELECT) AS one
LEFT JOIN (SELECT event_id, stream_sequence FROM outbox WHERE stream_sequence IS NOT NULL
           ORDER BY stream_sequence DESC LIMIT 1) AS newest ON true;

-- What was published again because the broker had lost it: everything after one position, up to another.
CREATE TABLE outbox_replay (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    after_position bigint      NOT NULL,
    until_position bigint      NOT NULL,
    reason         text        NOT NULL,
    at             timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Events that the broker's client refuses whatever the weather (an invalid subject, too many bytes). They wait for an
-- operator and do not hold up the others.
CREATE TABLE outbox_set_aside (
    position bigint      PRIMARY KEY,
    event_id uuid        NOT NULL,
    subject  text        NOT NULL,
    reason   text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO outbox_set_aside (position, event_id, subject, reason, at)
SELECT position, event_id, subject, coalesce(set_aside_reason, ''), set_aside_at
FROM outbox WHERE set_aside_at IS NOT NULL;
