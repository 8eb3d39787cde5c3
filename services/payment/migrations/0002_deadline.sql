-- When the order is cancelled unless it is confirmed. A charge that was not asked for by then is never asked for: the
-- cancellation is on its way, and would only have to refund it. Null for orders of the version before this one.
ALTER TABLE payments ADD COLUMN deadline timestamptz;

-- Refunds are leased before charges: what is owed to customers does not wait behind a backlog.
CREATE INDEX payments_refunds_due ON payments (due_at) WHERE status = 'refunding';
