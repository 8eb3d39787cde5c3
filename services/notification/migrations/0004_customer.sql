-- The notifications of a customer, for the erasure of that customer. The version before this one ignores it.
-- It blocks writes while it is built. For a table of many million rows, build it before the rollout: the same statement
-- with CREATE INDEX CONCURRENTLY. This one then finds it.
CREATE INDEX IF NOT EXISTS notifications_of_customer ON notifications (customer_id, notification_id);
