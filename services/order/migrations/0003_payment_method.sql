-- Only the event that creates an order needs its payment method, so that this version does not write the column. The
-- version before it wants a text there, and reports such rows when it compares them with the log (`order rebuild`). The
-- next version drops the column, and what older rows have in it.
ALTER TABLE orders ALTER COLUMN payment_method SET DEFAULT 'forgotten';
COMMENT ON COLUMN orders.payment_method IS 'not used any more: order.created.v1 has it';
