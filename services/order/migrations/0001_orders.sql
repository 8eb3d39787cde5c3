-- The order service's own tables. Its outbox (see the migrations of the crate `messaging`) is the event log of its
-- orders: orders are event-sourced, and the table below can be rebuilt from the log at any time.

-- A projection: what the events of each order add up to. Written in the transaction that appends the events.
CREATE TABLE orders (
    order_id       uuid        PRIMARY KEY,
    customer_id    uuid        NOT NULL,
    status         text        NOT NULL,
    -- Set exactly when cancelled.
    cancel_reason  text,
    -- The payment was captured, as far as this service has heard.
    paid           boolean     NOT NULL,
    -- The captured amount was given back, as far as this service has heard.
    refunded       boolean     NOT NULL,
    -- [{"sku": "SKU-0001", "quantity": 2, "unit_price": {"amount": 1999, "currency": "EUR"}}]; immutable.
    lines          jsonb       NOT NULL,
    -- Sum over all lines in minor units; immutable.
    total_amount   bigint      NOT NULL,
    total_currency text        NOT NULL,
    payment_method text        NOT NULL,
    -- Cancelled by the sweep unless confirmed before; immutable.
    deadline       timestamptz NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    -- Number of events in the order's log.
    version        integer     NOT NULL,

    CONSTRAINT orders_status_known CHECK (status IN ('pending', 'paid', 'confirmed', 'cancelled')),
    CONSTRAINT orders_cancel_reason_known CHECK (
        cancel_reason IN ('payment_failed', 'out_of_stock', 'timed_out', 'customer_request')),
    CONSTRAINT orders_reason_when_cancelled CHECK ((status = 'cancelled') = (cancel_reason IS NOT NULL)),
    CONSTRAINT orders_total_not_negative CHECK (total_amount >= 0)
) WITH (fillfactor = 80);

-- A customer's orders, newest first (UUIDv7 sorts by time).
CREATE INDEX orders_of_customer ON orders (customer_id, order_id DESC);
-- The sweep's work list; as small as the number of orders in flight.
CREATE INDEX orders_overdue ON orders (deadline) WHERE status IN ('pending', 'paid');

-- Which request made which order. Written in the order's own transaction, so that a repeated request finds either
-- both or neither. Rows are forgotten after the published retention (72 hours).
CREATE TABLE idempotency_keys (
    -- Keys belong to the customer who sent them.
    customer_id uuid        NOT NULL,
    key         text        NOT NULL,
    -- SHA-256 of what was asked for; another fingerprint under the same key is refused.
    fingerprint bytea       NOT NULL,
    order_id    uuid        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT idempotency_keys_once PRIMARY KEY (customer_id, key)
);

CREATE INDEX idempotency_keys_created ON idempotency_keys USING brin (created_at);
