-- A settled charge needs its method and its request no more: what was refunded, voided or declined is never charged
-- again, and a refund names the charge. They are forgotten in the statement that settles the charge: method becomes
-- 'forgotten', because the version before this one wants a text there, and request becomes null.
COMMENT ON COLUMN payments.method IS 'the provider''s name of the payment method; ''forgotten'' once the charge is settled';
COMMENT ON COLUMN payments.request IS 'the encoded body of the charge''s request; null once the charge is settled';

-- What the version before this one has settled: the service forgets it in steps. Empty after that; the next version
-- drops this index.
-- It blocks writes while it is built. For a table of many million rows, build it before the rollout: the same statement
-- with CREATE INDEX CONCURRENTLY. This one then finds it.
CREATE INDEX IF NOT EXISTS payments_to_forget ON payments (order_id)
    WHERE status <> 'pending' AND (method <> 'forgotten' OR request IS NOT NULL);
