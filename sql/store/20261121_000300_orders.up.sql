-- Orders: lines, charges, returns and the history of their states
-- (documents 000, 001 and 003).

CREATE DOMAIN order_status AS text;
COMMENT ON DOMAIN order_status IS 'State of an order; which ones there are says the store''s state machine';

CREATE SEQUENCE order_number_seq MAXVALUE 99999999999;
COMMENT ON SEQUENCE order_number_seq IS 'Second half of the order numbers';

CREATE TABLE orders (
    id                  uuid          DEFAULT gen_random_uuid() CONSTRAINT orders_pkey PRIMARY KEY,
    order_number        varchar(20)   NOT NULL CONSTRAINT uk_orders_order_number UNIQUE,
    user_id             uuid          NOT NULL CONSTRAINT fk_orders_user REFERENCES users (id),
    status              order_status  NOT NULL,
    subtotal            numeric(14,2) NOT NULL DEFAULT 0,
    tax                 numeric(14,2) NOT NULL DEFAULT 0,
    shipping            numeric(14,2) NOT NULL DEFAULT 0,
    discount            numeric(14,2) NOT NULL DEFAULT 0,
    charges             numeric(14,2) NOT NULL DEFAULT 0,
    total               numeric(14,2) NOT NULL,
    currency            varchar(3)    NOT NULL DEFAULT 'USD',
    shipping_address    jsonb,
    billing_address     jsonb,
    notes               text,
    idempotency_key     text,
    idempotency_payload jsonb,
    created_at          timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at          timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at        timestamptz,
    CONSTRAINT chk_orders_total CHECK (subtotal + tax + shipping + charges - discount = total),
    CONSTRAINT chk_orders_amounts CHECK (subtotal >= 0 AND tax >= 0 AND shipping >= 0 AND discount >= 0),
    CONSTRAINT chk_orders_currency CHECK (currency ~ '^[A-Z]{3}$')
) WITH (fillfactor = 85);
CREATE INDEX idx_orders_user_status ON orders (user_id, status);
CREATE INDEX idx_orders_user_created ON orders (user_id, created_at DESC);
CREATE INDEX idx_orders_status ON orders (status);
CREATE INDEX idx_orders_created_at ON orders (created_at DESC);
CREATE UNIQUE INDEX uk_orders_idempotency ON orders (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

COMMENT ON TABLE orders IS 'Orders; their state moves only along the state machine';
COMMENT ON COLUMN orders.id IS 'Primary key';
COMMENT ON COLUMN orders.order_number IS 'Number that people read, unique; gaps are allowed';
COMMENT ON COLUMN orders.user_id IS 'Who ordered';
COMMENT ON COLUMN orders.status IS 'State; enforced by the state machine, recorded in order_status_history';
COMMENT ON COLUMN orders.subtotal IS 'Sum of the lines';
COMMENT ON COLUMN orders.tax IS 'Tax that comes on top';
COMMENT ON COLUMN orders.shipping IS 'Shipping';
COMMENT ON COLUMN orders.discount IS 'What is taken off';
COMMENT ON COLUMN orders.charges IS 'Sum of order_charges: postage, fees; may be negative';
COMMENT ON COLUMN orders.total IS 'subtotal + tax + shipping + charges - discount';
COMMENT ON COLUMN orders.currency IS 'ISO 4217 code of every amount in the order';
COMMENT ON COLUMN orders.shipping_address IS 'Where it goes, as it was when ordered';
COMMENT ON COLUMN orders.billing_address IS 'Who pays, as it was when ordered';
COMMENT ON COLUMN orders.notes IS 'Remarks';
COMMENT ON COLUMN orders.idempotency_key IS 'The caller''s key: a second order of the same user with it returns the first';
COMMENT ON COLUMN orders.idempotency_payload IS 'What the order was placed with; a different one under the same key is refused';
COMMENT ON COLUMN orders.created_at IS 'When it was placed';
COMMENT ON COLUMN orders.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN orders.completed_at IS 'When it reached the state completed, or delivered where the machine has no such state';

CREATE TABLE order_items (
    id          uuid          DEFAULT gen_random_uuid() CONSTRAINT order_items_pkey PRIMARY KEY,
    order_id    uuid          NOT NULL CONSTRAINT fk_order_items_order REFERENCES orders (id) ON DELETE CASCADE,
    line_number integer       NOT NULL,
    product_id  uuid          NOT NULL CONSTRAINT fk_order_items_product REFERENCES products (id) ON DELETE RESTRICT ON UPDATE CASCADE,
    variant_id  uuid          CONSTRAINT fk_order_items_variant REFERENCES product_variants (id) ON DELETE RESTRICT ON UPDATE CASCADE,
    sku         varchar(100)  NOT NULL,
    name        varchar(255)  NOT NULL,
    quantity    integer       NOT NULL,
    unit_price  numeric(14,4) NOT NULL,
    line_total  numeric(14,2) GENERATED ALWAYS AS (round(unit_price * quantity, 2)) STORED,
    CONSTRAINT uk_order_items_line UNIQUE (order_id, line_number),
    CONSTRAINT chk_order_items_quantity CHECK (quantity > 0),
    CONSTRAINT chk_order_items_unit_price CHECK (unit_price >= 0)
);
CREATE INDEX idx_order_items_product ON order_items (product_id);
CREATE INDEX idx_order_items_variant ON order_items (variant_id) WHERE variant_id IS NOT NULL;

COMMENT ON TABLE order_items IS 'Lines of an order, as they were ordered';
COMMENT ON COLUMN order_items.id IS 'Primary key';
COMMENT ON COLUMN order_items.order_id IS 'The order';
COMMENT ON COLUMN order_items.line_number IS 'Position in the order, from 1';
COMMENT ON COLUMN order_items.product_id IS 'The product';
COMMENT ON COLUMN order_items.variant_id IS 'The variant; NULL for a product without variants';
COMMENT ON COLUMN order_items.sku IS 'Its SKU when it was ordered';
COMMENT ON COLUMN order_items.name IS 'Its name when it was ordered';
COMMENT ON COLUMN order_items.quantity IS 'Units';
COMMENT ON COLUMN order_items.unit_price IS 'Price of one unit when it was ordered';
COMMENT ON COLUMN order_items.line_total IS 'Derived: unit_price times quantity, rounded to cents';

CREATE TABLE order_charges (
    id          uuid          DEFAULT gen_random_uuid() CONSTRAINT order_charges_pkey PRIMARY KEY,
    order_id    uuid          NOT NULL CONSTRAINT fk_order_charges_order REFERENCES orders (id) ON DELETE CASCADE,
    code        varchar(50)   NOT NULL,
    description text,
    amount      numeric(14,2) NOT NULL,
    CONSTRAINT chk_order_charges_code CHECK (code <> '')
);
CREATE INDEX idx_order_charges_order ON order_charges (order_id);

COMMENT ON TABLE order_charges IS 'What an order costs beside its lines: postage, fees, corrections';
COMMENT ON COLUMN order_charges.id IS 'Primary key';
COMMENT ON COLUMN order_charges.order_id IS 'The order';
COMMENT ON COLUMN order_charges.code IS 'What it is: POST, for instance';
COMMENT ON COLUMN order_charges.description IS 'What it is, in words';
COMMENT ON COLUMN order_charges.amount IS 'Amount in the order''s currency; may be negative';

CREATE TABLE order_returns (
    id         uuid          DEFAULT gen_random_uuid() CONSTRAINT order_returns_pkey PRIMARY KEY,
    order_id   uuid          NOT NULL CONSTRAINT fk_order_returns_order REFERENCES orders (id) ON DELETE CASCADE,
    amount     numeric(14,2) NOT NULL,
    note       text,
    actor      uuid,
    created_at timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_order_returns_order ON order_returns (order_id);

COMMENT ON TABLE order_returns IS 'Goods that came back, one row a return';
COMMENT ON COLUMN order_returns.id IS 'Primary key';
COMMENT ON COLUMN order_returns.order_id IS 'The order they were bought with';
COMMENT ON COLUMN order_returns.amount IS 'Sum of its items: what they were bought for';
COMMENT ON COLUMN order_returns.note IS 'Remark';
COMMENT ON COLUMN order_returns.actor IS 'Who took them back';
COMMENT ON COLUMN order_returns.created_at IS 'When they came back';

CREATE TABLE order_return_items (
    return_id     uuid          NOT NULL CONSTRAINT fk_order_return_items_return REFERENCES order_returns (id) ON DELETE CASCADE,
    order_item_id uuid          NOT NULL CONSTRAINT fk_order_return_items_item REFERENCES order_items (id) ON DELETE CASCADE,
    quantity      integer       NOT NULL,
    amount        numeric(14,2) NOT NULL,
    CONSTRAINT order_return_items_pkey PRIMARY KEY (return_id, order_item_id),
    CONSTRAINT chk_order_return_items_quantity CHECK (quantity > 0)
);
CREATE INDEX idx_order_return_items_item ON order_return_items (order_item_id);

COMMENT ON TABLE order_return_items IS 'Which lines a return brought back';
COMMENT ON COLUMN order_return_items.return_id IS 'The return';
COMMENT ON COLUMN order_return_items.order_item_id IS 'The line';
COMMENT ON COLUMN order_return_items.quantity IS 'Units that came back';
COMMENT ON COLUMN order_return_items.amount IS 'What they were bought for';

CREATE TABLE order_status_history (
    order_id    uuid        NOT NULL CONSTRAINT fk_order_status_history_order REFERENCES orders (id),
    sequence    integer     NOT NULL,
    from_status text,
    to_status   text        NOT NULL,
    event       text,
    actor       uuid,
    note        text,
    request_id  text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT order_status_history_pkey PRIMARY KEY (order_id, sequence)
);
COMMENT ON TABLE order_status_history IS 'Every state an order has been in; written by the state machine alone';
COMMENT ON COLUMN order_status_history.order_id IS 'The order';
COMMENT ON COLUMN order_status_history.sequence IS 'Position in the order''s history, from 1';
COMMENT ON COLUMN order_status_history.from_status IS 'The state before; NULL for the first';
COMMENT ON COLUMN order_status_history.to_status IS 'The state since';
COMMENT ON COLUMN order_status_history.event IS 'The event that led there; NULL for the first';
COMMENT ON COLUMN order_status_history.actor IS 'Who did it; NULL: nobody said';
COMMENT ON COLUMN order_status_history.note IS 'Remark';
COMMENT ON COLUMN order_status_history.request_id IS 'The application''s request (app.request_id)';
COMMENT ON COLUMN order_status_history.created_at IS 'When';
