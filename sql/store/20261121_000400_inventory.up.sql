-- Stock: where it lies, who has reserved it, and how it got there
-- (document 001, section 6).

CREATE TABLE warehouses (
    id         uuid         DEFAULT gen_random_uuid() CONSTRAINT warehouses_pkey PRIMARY KEY,
    code       varchar(50)  NOT NULL CONSTRAINT uk_warehouses_code UNIQUE,
    name       varchar(255) NOT NULL,
    priority   integer      NOT NULL DEFAULT 100,
    address    jsonb,
    is_active  boolean      NOT NULL DEFAULT true,
    created_at timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT chk_warehouses_code CHECK (code <> '')
);
COMMENT ON TABLE warehouses IS 'Where stock lies';
COMMENT ON COLUMN warehouses.id IS 'Primary key';
COMMENT ON COLUMN warehouses.code IS 'Short name, used by the functions; unique';
COMMENT ON COLUMN warehouses.name IS 'Name';
COMMENT ON COLUMN warehouses.priority IS 'Which serves first where an order names none: the lowest; ties by code';
COMMENT ON COLUMN warehouses.address IS 'Address';
COMMENT ON COLUMN warehouses.is_active IS 'Whether orders that name no warehouse are served from it';
COMMENT ON COLUMN warehouses.created_at IS 'When the row was made';
COMMENT ON COLUMN warehouses.updated_at IS 'When the row was last changed';

INSERT INTO warehouses (code, name) VALUES ('main', 'Main warehouse');

CREATE TABLE inventory_stock (
    id                uuid        DEFAULT gen_random_uuid() CONSTRAINT inventory_stock_pkey PRIMARY KEY,
    product_id        uuid        NOT NULL CONSTRAINT fk_inventory_stock_product REFERENCES products (id),
    variant_id        uuid        CONSTRAINT fk_inventory_stock_variant REFERENCES product_variants (id),
    warehouse_id      uuid        NOT NULL CONSTRAINT fk_inventory_stock_warehouse REFERENCES warehouses (id),
    stripe            smallint    NOT NULL DEFAULT 0,
    quantity_on_hand  integer     NOT NULL DEFAULT 0,
    quantity_reserved integer     NOT NULL DEFAULT 0,
    reorder_point     integer,
    reorder_quantity  integer,
    CONSTRAINT chk_inventory_stock_quantities CHECK (quantity_reserved >= 0 AND quantity_on_hand >= quantity_reserved),
    CONSTRAINT chk_inventory_stock_stripe CHECK (stripe >= 0)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX uk_inventory_stock_product ON inventory_stock (product_id, warehouse_id, stripe) WHERE variant_id IS NULL;
CREATE UNIQUE INDEX uk_inventory_stock_variant ON inventory_stock (variant_id, warehouse_id, stripe) WHERE variant_id IS NOT NULL;
CREATE INDEX idx_inventory_stock_product ON inventory_stock (product_id);
CREATE INDEX idx_inventory_stock_warehouse ON inventory_stock (warehouse_id);

COMMENT ON TABLE inventory_stock IS 'Stock of a product or variant in a warehouse, spread over one or more stripes; written by the stock functions alone';
COMMENT ON COLUMN inventory_stock.id IS 'Primary key; rows are locked in its order';
COMMENT ON COLUMN inventory_stock.product_id IS 'The product';
COMMENT ON COLUMN inventory_stock.variant_id IS 'The variant; NULL for a product without variants';
COMMENT ON COLUMN inventory_stock.warehouse_id IS 'The warehouse';
COMMENT ON COLUMN inventory_stock.stripe IS 'Which share of the stock this row holds; 0 where it is not spread';
COMMENT ON COLUMN inventory_stock.quantity_on_hand IS 'Units that are there: the sum of the row''s stock_movements';
COMMENT ON COLUMN inventory_stock.quantity_reserved IS 'Units promised: the sum of the row''s parts of active reservations';
COMMENT ON COLUMN inventory_stock.reorder_point IS 'Units at which to order more';
COMMENT ON COLUMN inventory_stock.reorder_quantity IS 'Units to order then';

CREATE VIEW inventory AS
SELECT (array_agg(s.id ORDER BY s.stripe))[1] AS id,
       s.product_id,
       s.variant_id,
       s.warehouse_id,
       sum(s.quantity_on_hand) AS quantity_on_hand,
       sum(s.quantity_reserved) AS quantity_reserved,
       sum(s.quantity_on_hand - s.quantity_reserved) AS quantity_available,
       max(s.reorder_point) AS reorder_point,
       max(s.reorder_quantity) AS reorder_quantity
  FROM inventory_stock s
 GROUP BY s.product_id, s.variant_id, s.warehouse_id;

COMMENT ON VIEW inventory IS 'Stock of a product or variant in a warehouse, one row whatever its stripes; read only';
COMMENT ON COLUMN inventory.id IS 'The first stripe''s key';
COMMENT ON COLUMN inventory.product_id IS 'The product';
COMMENT ON COLUMN inventory.variant_id IS 'The variant; NULL for a product without variants';
COMMENT ON COLUMN inventory.warehouse_id IS 'The warehouse';
COMMENT ON COLUMN inventory.quantity_on_hand IS 'Units that are there';
COMMENT ON COLUMN inventory.quantity_reserved IS 'Units promised, expired promises that nobody has swept yet included';
COMMENT ON COLUMN inventory.quantity_available IS 'On hand less reserved; the function available also counts what has expired';
COMMENT ON COLUMN inventory.reorder_point IS 'Units at which to order more';
COMMENT ON COLUMN inventory.reorder_quantity IS 'Units to order then';

CREATE TABLE stock_reservations (
    id         uuid        DEFAULT gen_random_uuid() CONSTRAINT stock_reservations_pkey PRIMARY KEY,
    order_id   uuid        CONSTRAINT fk_stock_reservations_order REFERENCES orders (id),
    reference  text,
    quantity   bigint      NOT NULL,
    status     varchar(20) NOT NULL DEFAULT 'active',
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at  timestamptz,
    CONSTRAINT chk_stock_reservations_quantity CHECK (quantity > 0),
    CONSTRAINT chk_stock_reservations_status CHECK (status IN ('active', 'committed', 'released', 'expired'))
) WITH (fillfactor = 85);
CREATE INDEX idx_stock_reservations_order ON stock_reservations (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX idx_stock_reservations_reference ON stock_reservations (reference) WHERE reference IS NOT NULL;
CREATE INDEX idx_stock_reservations_expires_at ON stock_reservations (expires_at) WHERE status = 'active';

COMMENT ON TABLE stock_reservations IS 'Promises of stock, for an order or for something of the application''s own';
COMMENT ON COLUMN stock_reservations.id IS 'Primary key';
COMMENT ON COLUMN stock_reservations.order_id IS 'The order it is for; NULL where reserve_stock made it';
COMMENT ON COLUMN stock_reservations.reference IS 'What the caller of reserve_stock calls it';
COMMENT ON COLUMN stock_reservations.quantity IS 'Units, over all parts';
COMMENT ON COLUMN stock_reservations.status IS 'active, committed (sold), released or expired';
COMMENT ON COLUMN stock_reservations.expires_at IS 'When the promise ends; infinity once the order is being paid';
COMMENT ON COLUMN stock_reservations.created_at IS 'When it was made';
COMMENT ON COLUMN stock_reservations.closed_at IS 'When it ceased to be active, or, still active, first lost expired units to somebody else';

CREATE TABLE stock_reservation_parts (
    reservation_id uuid    NOT NULL CONSTRAINT fk_stock_reservation_parts_reservation REFERENCES stock_reservations (id) ON DELETE CASCADE,
    stock_id       uuid    NOT NULL CONSTRAINT fk_stock_reservation_parts_stock REFERENCES inventory_stock (id),
    quantity       integer NOT NULL,
    CONSTRAINT stock_reservation_parts_pkey PRIMARY KEY (reservation_id, stock_id),
    CONSTRAINT chk_stock_reservation_parts_quantity CHECK (quantity > 0)
);
CREATE INDEX idx_stock_reservation_parts_stock ON stock_reservation_parts (stock_id);

COMMENT ON TABLE stock_reservation_parts IS 'From which stock rows a reservation takes its units';
COMMENT ON COLUMN stock_reservation_parts.reservation_id IS 'The reservation';
COMMENT ON COLUMN stock_reservation_parts.stock_id IS 'The stock row';
COMMENT ON COLUMN stock_reservation_parts.quantity IS 'Units';

CREATE TABLE stock_movements (
    id             bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT stock_movements_pkey PRIMARY KEY,
    stock_id       uuid        NOT NULL CONSTRAINT fk_stock_movements_stock REFERENCES inventory_stock (id),
    movement_type  varchar(20) NOT NULL,
    quantity       integer     NOT NULL,
    order_id       uuid        CONSTRAINT fk_stock_movements_order REFERENCES orders (id),
    reservation_id uuid        CONSTRAINT fk_stock_movements_reservation REFERENCES stock_reservations (id),
    note           text,
    actor          uuid,
    request_id     text,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT chk_stock_movements_type CHECK (movement_type IN ('purchase', 'sale', 'return', 'adjustment', 'transfer', 'damage')),
    CONSTRAINT chk_stock_movements_quantity CHECK (
        CASE movement_type
            WHEN 'purchase' THEN quantity > 0
            WHEN 'return' THEN quantity > 0
            WHEN 'sale' THEN quantity < 0
            WHEN 'damage' THEN quantity < 0
            ELSE quantity <> 0
        END)
);
CREATE INDEX idx_stock_movements_stock ON stock_movements (stock_id);
CREATE INDEX idx_stock_movements_order ON stock_movements (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX idx_stock_movements_reservation ON stock_movements (reservation_id) WHERE reservation_id IS NOT NULL;

COMMENT ON TABLE stock_movements IS 'The ledger of stock: every unit that came or went';
COMMENT ON COLUMN stock_movements.id IS 'Primary key';
COMMENT ON COLUMN stock_movements.stock_id IS 'The stock row';
COMMENT ON COLUMN stock_movements.movement_type IS 'purchase, sale, return, adjustment, transfer or damage';
COMMENT ON COLUMN stock_movements.quantity IS 'Units, positive in, negative out';
COMMENT ON COLUMN stock_movements.order_id IS 'The order it belongs to; NULL for none';
COMMENT ON COLUMN stock_movements.reservation_id IS 'The reservation that was sold by commit_reservation; NULL for none';
COMMENT ON COLUMN stock_movements.note IS 'Remark';
COMMENT ON COLUMN stock_movements.actor IS 'Who did it; NULL: nobody said';
COMMENT ON COLUMN stock_movements.request_id IS 'The application''s request (app.request_id)';
COMMENT ON COLUMN stock_movements.created_at IS 'When';
COMMENT ON SEQUENCE stock_movements_id_seq IS 'Keys of stock_movements';
