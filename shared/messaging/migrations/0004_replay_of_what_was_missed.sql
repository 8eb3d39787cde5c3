-- A stream that is smaller than what a subscriber has missed cannot take all of it at once: the relay publishes it again
-- in parts, and notes how far every subscriber has handled it. Both columns are null for a replay that the relay makes
-- by going back. Both only add: the version before this one ignores them.
ALTER TABLE outbox_replay
    -- Everything up to here has been published again and handled; the replay has ended when it is until_position.
    ADD COLUMN reached_position bigint,
    -- Everything after until_position is published after this place in the stream.
    ADD COLUMN stream_sequence bigint;
