-- The notification service's own table: what each customer was told, shown to him with his order.

CREATE TABLE notifications (
    notification_id uuid        PRIMARY KEY,
    order_id        uuid        NOT NULL,
    customer_id     uuid        NOT NULL,
    kind            text        NOT NULL,
    created_at      timestamptz NOT NULL,

    CONSTRAINT notifications_kind_known CHECK (kind IN ('order_confirmed', 'order_cancelled', 'payment_refunded')),
    -- Whatever is delivered twice, the customer is told once.
    CONSTRAINT notifications_once UNIQUE (order_id, kind)
);
