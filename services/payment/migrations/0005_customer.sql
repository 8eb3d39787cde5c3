-- The payments of a customer, for the erasure of that customer. The version before this one ignores it.
CREATE INDEX payments_of_customer ON payments (customer_id, order_id);
