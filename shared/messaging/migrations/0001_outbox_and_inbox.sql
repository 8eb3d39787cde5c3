-- What every service that takes part in the saga has in its own database: an outbox and an inbox.
-- These migrations belong to the crate `messaging` and keep their history in a table of their own
-- (_messaging_migrations), so that they never collide with the service's migrations.

-- Everything the service has said or is about to say. A row is written in the transaction that changes the state it
-- speaks of, so that either both happen or neither; only the relay publishes it. All columns but sent_at and
-- stream_sequence are immutable. The order service never prunes its outbox: it is the event log of its orders.
CREATE TABLE outbox (
    -- Order of writing; not gap-free and not the order of commits, so nothing may skip ahead by it.
    position        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- ce-id, and the broker's de-duplication key.
    event_id        uuid        NOT NULL,
    -- ce-type and NATS subject, for example order.created.v1.
    subject         text        NOT NULL,
    -- ce-subject.
    order_id        uuid        NOT NULL,
    -- The protobuf message.
    payload         bytea       NOT NULL,
    -- The customer's request that all this began with.
    correlation_id  uuid        NOT NULL,
    -- The event or command that caused this event.
    causation_id    uuid        NOT NULL,
    -- W3C trace context of whoever wrote the row.
    traceparent     text,
    -- ce-time, by the clock of the process that wrote the row; only ever compared with itself.
    recorded_at     timestamptz NOT NULL,
    -- Null until the broker has acknowledged the event.
    sent_at         timestamptz,
    -- Where the broker's stream put it; lets the tail of the stream be checked against the outbox.
    stream_sequence bigint
);

-- The relay's work list; as small as the backlog.
CREATE INDEX outbox_unsent ON outbox (position) WHERE sent_at IS NULL;
-- The story of one order.
CREATE INDEX outbox_order ON outbox (order_id);
-- Pruning by age; BRIN costs next to nothing on an append-only table.
CREATE INDEX outbox_recorded ON outbox USING brin (recorded_at);

-- Hot at one end: vacuum by number of rows rather than by share of the table.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);

-- The events this service has handled. A row is written in the handler's transaction, so that a second delivery of
-- the same event finds it and does nothing. Kept for longer than the streams keep events.
CREATE TABLE inbox (
    event_id    uuid        PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX inbox_received ON inbox USING brin (received_at);
