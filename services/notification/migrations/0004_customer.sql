-- The notifications of a customer, for the erasure of that customer. The version before this one ignores it.
CREATE INDEX notifications_of_customer ON notifications (customer_id, notification_id);
