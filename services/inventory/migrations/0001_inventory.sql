-- The inventory service's own tables.

CREATE TABLE products (
    sku            text   PRIMARY KEY,
    name           text   NOT NULL,
    category       text   NOT NULL,
    -- Of one unit, in minor units.
    price_amount   bigint NOT NULL,
    price_currency text   NOT NULL,

    CONSTRAINT products_price_positive CHECK (price_amount > 0)
);

-- Apart from products: what changes with every order is kept away from what is read with every order.
CREATE TABLE stock (
    sku      text   PRIMARY KEY REFERENCES products,
    -- Everything that ever came in.
    initial  bigint NOT NULL,
    on_hand  bigint NOT NULL,
    reserved bigint NOT NULL DEFAULT 0,

    CONSTRAINT stock_never_negative CHECK (on_hand >= 0 AND reserved >= 0),
    CONSTRAINT stock_nothing_appears_or_disappears CHECK (initial = on_hand + reserved)
) WITH (fillfactor = 50);

CREATE TABLE reservations (
    order_id   uuid        PRIMARY KEY,
    -- 'released' without lines is a tombstone, which a cancellation leaves that comes before the payment.
    status     text        NOT NULL,
    -- [{"sku": "SKU-0001", "quantity": 2}]
    lines      jsonb       NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT reservations_status_known CHECK (status IN ('reserved', 'rejected', 'released'))
) WITH (fillfactor = 80);
