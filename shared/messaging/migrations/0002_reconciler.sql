-- What the relay needs to find events that the broker has lost, and to work past a row that cannot be published.
-- Both only add: the version before this one ignores them.

-- A row that the broker's client refuses whatever the weather (its subject is invalid, it is too large). It stays
-- here for an operator and does not hold up the others.
ALTER TABLE outbox ADD COLUMN set_aside_at timestamptz, ADD COLUMN set_aside_reason text;

-- Which event was acknowledged at which place in the stream: the reconciler compares both ends.
CREATE INDEX outbox_sequence ON outbox (stream_sequence) WHERE stream_sequence IS NOT NULL;
