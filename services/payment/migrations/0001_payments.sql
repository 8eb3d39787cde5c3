-- The payment service's own table. It is also the work list of the worker that talks to the provider.

CREATE TABLE payments (
    order_id              uuid        PRIMARY KEY,
    -- Also the idempotency key of the charge at the provider.
    payment_id            uuid        NOT NULL,
    customer_id           uuid        NOT NULL,
    status                text        NOT NULL,

    -- What is to be charged; all null in a tombstone, which a cancellation leaves that comes before the order.
    amount                bigint,
    currency              text,
    method                text,
    -- [{"sku": "SKU-0001", "quantity": 2, "unit_price": {"amount": 1999, "currency": "EUR"}}]
    lines                 jsonb,

    -- What the outcome of the charge follows from: the order's creation.
    charge_correlation_id uuid,
    charge_causation_id   uuid,
    charge_traceparent    text,
    -- What the refund follows from: the order's cancellation. Null until it is heard of.
    cancel_correlation_id uuid,
    cancel_causation_id   uuid,
    cancel_traceparent    text,

    -- How often the provider was asked for what is to be done now. Counted before the call, so that 0 means that the
    -- provider cannot know of it.
    attempts              integer     NOT NULL DEFAULT 0,
    -- Not to be asked before; while a worker asks, the end of its lease.
    due_at                timestamptz NOT NULL DEFAULT now(),
    -- The provider's name for the charge, once captured.
    reference             text,
    -- Why the charge was declined.
    failure_code          text,
    updated_at            timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT payments_status_known CHECK (
        status IN ('pending', 'completed', 'failed', 'voided', 'refunding', 'refunded')),
    CONSTRAINT payments_charge_whole CHECK (
        num_nulls(amount, currency, method, lines, charge_correlation_id, charge_causation_id) IN (0, 6)),
    CONSTRAINT payments_tombstone_is_voided CHECK (amount IS NOT NULL OR status = 'voided'),
    CONSTRAINT payments_amount_positive CHECK (amount > 0),
    CONSTRAINT payments_captured_has_reference CHECK (
        (status IN ('completed', 'refunding', 'refunded')) = (reference IS NOT NULL)),
    CONSTRAINT payments_refund_has_cause CHECK (
        status NOT IN ('refunding', 'refunded') OR cancel_causation_id IS NOT NULL)
) WITH (fillfactor = 80);

-- The worker's work list; as small as the number of payments in flight.
CREATE INDEX payments_due ON payments (due_at) WHERE status IN ('pending', 'refunding');
