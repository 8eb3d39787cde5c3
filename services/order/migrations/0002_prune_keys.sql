-- Keys are forgotten in the order of their orders' ids, which are UUIDv7 and sort by time: a step reads as many rows as
-- it deletes, however large the table is. (The BRIN index on created_at stops serving once VACUUM has given old pages
-- to new rows. The version before this one still uses it; the next one drops it.)
CREATE INDEX idempotency_keys_order ON idempotency_keys (order_id);
