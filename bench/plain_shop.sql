-- The same shop written in plpgsql, the plain way: what techally is measured
-- against.
--
-- The tables are the store's own, made from sql/store/ in the schema plain, so
-- columns, constraints, foreign keys and indexes are the same ones.  What is
-- different is who does the work: here functions go row by row, take the stock
-- rows with SELECT ... FOR UPDATE in one fixed order, and check the transition
-- in a table.
--
-- It is meant to be fair, which is to say fast:
-- * every statement is static, so plpgsql keeps its plan (bench/show_plans
--   prints them and fails on a plan that reads a whole table);
-- * JSON is unpacked once and never joined, since a JSON row source is
--   estimated at 100 rows and would make the planner read all products;
-- * names are qualified, so no function needs a SET clause, which costs time
--   at every call; nothing is SECURITY DEFINER;
-- * there is no trigger on a table that an order writes: updated_at and the
--   history are written by the functions themselves;
-- * a line locks one stock row, not every row of its SKU;
-- * an order is inserted with its sums, never updated for them.
--
-- Lock order: the order, then stock rows by product, variant, warehouse
-- priority.  All functions keep it.

-- catalogue: SKUs are unique across products and variants

CREATE FUNCTION plain.register_product_sku() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO plain.skus (sku, product_id) VALUES (NEW.sku, NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER register_sku AFTER INSERT ON plain.products
    FOR EACH ROW EXECUTE FUNCTION plain.register_product_sku();

CREATE FUNCTION plain.register_variant_sku() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO plain.skus (sku, product_id, variant_id) VALUES (NEW.sku, NEW.product_id, NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER register_sku AFTER INSERT ON plain.product_variants
    FOR EACH ROW EXECUTE FUNCTION plain.register_variant_sku();

-- the state machine: a table

CREATE TABLE plain.transitions (
    event      text NOT NULL,
    from_state text NOT NULL,
    to_state   text NOT NULL,
    effect     text,
    PRIMARY KEY (event, from_state)
);
INSERT INTO plain.transitions (event, from_state, to_state, effect) VALUES
    ('process_payment',   'pending',    'processing', 'reserve'),
    ('payment_success',   'processing', 'confirmed',  NULL),
    ('payment_failed',    'processing', 'failed',     'release'),
    ('start_fulfillment', 'confirmed',  'preparing',  NULL),
    ('dispatch',          'preparing',  'shipped',    'sale'),
    ('deliver',           'shipped',    'delivered',  NULL),
    ('complete',          'delivered',  'completed',  NULL),
    ('cancel',            'pending',    'cancelled',  'release'),
    ('cancel',            'confirmed',  'cancelled',  'release'),
    ('return',            'delivered',  'returned',   'restock');

-- stock

CREATE FUNCTION plain.post_stock(
    p_sku text, p_delta integer, p_warehouse text, p_movement text, p_note text
) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_product   uuid;
    v_variant   uuid;
    v_warehouse uuid;
    v_stock     plain.inventory_stock;
BEGIN
    SELECT s.product_id, s.variant_id INTO v_product, v_variant
      FROM plain.skus s WHERE s.sku = p_sku;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown SKU "%"', p_sku USING ERRCODE = 'TA006';
    END IF;
    SELECT w.id INTO v_warehouse FROM plain.warehouses w WHERE w.code = p_warehouse;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'warehouse "%" does not exist', p_warehouse USING ERRCODE = 'TA007';
    END IF;

    SELECT * INTO v_stock
      FROM plain.inventory_stock s
     WHERE s.product_id = v_product
       AND s.variant_id IS NOT DISTINCT FROM v_variant
       AND s.warehouse_id = v_warehouse
       FOR UPDATE;
    IF NOT FOUND THEN
        IF p_delta < 0 THEN
            RAISE EXCEPTION 'insufficient stock of "%"', p_sku USING ERRCODE = 'TA002';
        END IF;
        INSERT INTO plain.inventory_stock (product_id, variant_id, warehouse_id)
        VALUES (v_product, v_variant, v_warehouse)
        ON CONFLICT DO NOTHING;
        SELECT * INTO STRICT v_stock
          FROM plain.inventory_stock s
         WHERE s.product_id = v_product
           AND s.variant_id IS NOT DISTINCT FROM v_variant
           AND s.warehouse_id = v_warehouse
           FOR UPDATE;
    END IF;
    IF v_stock.quantity_on_hand + p_delta < v_stock.quantity_reserved THEN
        RAISE EXCEPTION 'insufficient stock of "%"', p_sku USING ERRCODE = 'TA002';
    END IF;

    UPDATE plain.inventory_stock SET quantity_on_hand = quantity_on_hand + p_delta WHERE id = v_stock.id;
    INSERT INTO plain.stock_movements (stock_id, movement_type, quantity, note, request_id)
    VALUES (v_stock.id, p_movement, p_delta, p_note, nullif(current_setting('app.request_id', true), ''));
    RETURN v_stock.quantity_on_hand + p_delta;
END $$;

CREATE FUNCTION plain.receive_stock(
    p_sku text, p_quantity integer, p_warehouse text DEFAULT 'main',
    p_movement text DEFAULT 'purchase', p_note text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
    IF p_quantity IS NULL OR p_quantity <= 0 THEN
        RAISE EXCEPTION 'quantity must be positive' USING ERRCODE = '22023';
    END IF;
    RETURN plain.post_stock(p_sku, p_quantity, p_warehouse, p_movement, p_note);
END $$;

CREATE FUNCTION plain.adjust_stock(
    p_sku text, p_delta integer, p_warehouse text DEFAULT 'main',
    p_movement text DEFAULT 'adjustment', p_note text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
    IF p_delta IS NULL OR p_delta = 0 THEN
        RAISE EXCEPTION 'quantity must not be zero' USING ERRCODE = '22023';
    END IF;
    RETURN plain.post_stock(p_sku, p_delta, p_warehouse, p_movement, p_note);
END $$;

-- orders

CREATE TYPE plain.order_line AS (
    line_number integer,
    product_id  uuid,
    variant_id  uuid,
    sku         text,
    name        text,
    quantity    integer,
    unit_price  numeric,
    warehouse   text
);

-- The arguments from p_placed_at on are import_order's.
CREATE FUNCTION plain.place_order(
    p_user uuid, p_lines jsonb, p_shipping_address jsonb DEFAULT NULL, p_billing_address jsonb DEFAULT NULL,
    p_currency text DEFAULT 'USD', p_coupon_code text DEFAULT NULL, p_key text DEFAULT NULL,
    p_reserve_for interval DEFAULT '15 minutes', p_actor uuid DEFAULT NULL,
    p_placed_at timestamptz DEFAULT now(), p_order_number text DEFAULT NULL, p_charges jsonb DEFAULT NULL,
    p_own_prices boolean DEFAULT false
) RETURNS plain.orders
LANGUAGE plpgsql AS $$
DECLARE
    v_line        record;
    v_item        plain.order_line;
    v_items       plain.order_line[] := '{}';
    v_payload     jsonb;
    v_subtotal    numeric := 0;
    v_charges     numeric := 0;
    v_units       bigint := 0;
    v_order       plain.orders;
    v_reservation uuid;
    v_stock       uuid;
    v_more        record;
    v_take        integer;
    v_left        integer;
    v_product     uuid;
    v_again       boolean;
BEGIN
    PERFORM 1 FROM plain.users u WHERE u.id = p_user AND u.deleted_at IS NULL AND u.status <> 'deleted';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'user "%" does not exist', p_user USING ERRCODE = 'TA007';
    END IF;

    IF p_key IS NOT NULL THEN
        v_payload := jsonb_build_object('lines', p_lines, 'shipping_address', p_shipping_address,
                                        'billing_address', p_billing_address, 'currency', p_currency,
                                        'coupon_code', p_coupon_code, 'reserve_for', p_reserve_for);
        SELECT * INTO v_order FROM plain.orders o WHERE o.user_id = p_user AND o.idempotency_key = p_key;
        IF FOUND THEN
            IF v_order.idempotency_payload IS DISTINCT FROM v_payload THEN
                RAISE EXCEPTION 'idempotency key "%" was used for another order', p_key USING ERRCODE = 'TA004';
            END IF;
            RETURN v_order;
        END IF;
    END IF;

    -- what is ordered, and what it costs
    FOR v_line IN
        SELECT l.line_number, l.sku, l.quantity, l.warehouse, l.unit_price
          FROM ROWS FROM (jsonb_to_recordset(p_lines)
                          AS (sku text, quantity integer, warehouse text, unit_price numeric))
               WITH ORDINALITY AS l (sku, quantity, warehouse, unit_price, line_number)
    LOOP
        IF v_line.quantity IS NULL OR v_line.quantity <= 0 THEN
            RAISE EXCEPTION 'quantity must be positive' USING ERRCODE = '22023';
        END IF;
        SELECT v_line.line_number, p.id, v.id, s.sku,
               CASE WHEN v.id IS NULL THEN p.name ELSE left(p.name || ', ' || v.name, 255) END,
               v_line.quantity, coalesce(v.price, p.price), v_line.warehouse
          INTO v_item
          FROM plain.skus s
          JOIN plain.products p ON p.id = s.product_id
          LEFT JOIN plain.product_variants v ON v.id = s.variant_id
         WHERE s.sku = v_line.sku
           AND p.is_published AND p.is_active AND p.deleted_at IS NULL
           AND CASE WHEN v.id IS NULL
                    THEN NOT EXISTS (SELECT FROM plain.product_variants o WHERE o.product_id = p.id)
                    ELSE v.is_active AND v.deleted_at IS NULL
               END;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'unknown SKU "%"', v_line.sku USING ERRCODE = 'TA006';
        END IF;
        IF v_line.warehouse IS NOT NULL THEN
            PERFORM 1 FROM plain.warehouses w WHERE w.code = v_line.warehouse;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'warehouse "%" does not exist', v_line.warehouse USING ERRCODE = 'TA007';
            END IF;
        END IF;
        IF p_own_prices AND v_line.unit_price IS NOT NULL THEN
            v_item.unit_price := v_line.unit_price;
        END IF;
        v_items := v_items || v_item;
        v_units := v_units + v_item.quantity;
        v_subtotal := v_subtotal + round(v_item.unit_price * v_item.quantity, 2);
    END LOOP;

    IF p_charges IS NOT NULL THEN
        SELECT coalesce(sum(c.amount), 0) INTO v_charges
          FROM jsonb_to_recordset(p_charges) AS c (amount numeric);
    END IF;
    IF v_units = 0 AND (p_charges IS NULL OR jsonb_array_length(p_charges) = 0) THEN
        RAISE EXCEPTION 'an order needs lines' USING ERRCODE = '22023';
    END IF;

    INSERT INTO plain.orders (order_number, user_id, status, subtotal, charges, total, currency,
                              shipping_address, billing_address, idempotency_key, idempotency_payload, created_at)
    VALUES (coalesce(p_order_number,
                     to_char(p_placed_at, 'YYYYMMDD-') || lpad(nextval('plain.order_number_seq')::text, 8, '0')),
            p_user, 'pending', v_subtotal, v_charges, v_subtotal + v_charges, p_currency,
            p_shipping_address, p_billing_address, p_key, v_payload, p_placed_at)
    RETURNING * INTO v_order;

    IF p_charges IS NOT NULL THEN
        FOR v_line IN
            SELECT c.code, c.description, c.amount
              FROM jsonb_to_recordset(p_charges) AS c (code text, description text, amount numeric)
        LOOP
            INSERT INTO plain.order_charges (order_id, code, description, amount)
            VALUES (v_order.id, v_line.code, v_line.description, v_line.amount);
        END LOOP;
    END IF;

    IF v_units > 0 THEN
        INSERT INTO plain.stock_reservations (order_id, quantity, expires_at)
        VALUES (v_order.id, v_units, clock_timestamp() + p_reserve_for)
        RETURNING id INTO v_reservation;
    END IF;

    FOR v_item IN
        SELECT * FROM unnest(v_items) i ORDER BY i.product_id, i.variant_id, i.line_number
    LOOP
        INSERT INTO plain.order_items (order_id, line_number, product_id, variant_id, sku, name, quantity, unit_price)
        VALUES (v_order.id, v_item.line_number, v_item.product_id, v_item.variant_id,
                v_item.sku, v_item.name, v_item.quantity, v_item.unit_price);

        -- lines come by product: only then can a stock row come twice
        v_again := v_item.product_id = v_product;
        v_product := v_item.product_id;

        -- the first warehouse that serves the whole line
        SELECT s.id INTO v_stock
          FROM plain.inventory_stock s
          JOIN plain.warehouses w ON w.id = s.warehouse_id
         WHERE s.product_id = v_item.product_id
           AND s.variant_id IS NOT DISTINCT FROM v_item.variant_id
           AND s.quantity_on_hand - s.quantity_reserved >= v_item.quantity
           AND CASE WHEN v_item.warehouse IS NULL THEN w.is_active ELSE w.code = v_item.warehouse END
         ORDER BY w.priority, w.code, s.stripe
         LIMIT 1
           FOR UPDATE OF s;
        IF FOUND THEN
            UPDATE plain.inventory_stock
               SET quantity_reserved = quantity_reserved + v_item.quantity
             WHERE id = v_stock;
            IF v_again THEN
                INSERT INTO plain.stock_reservation_parts AS p (reservation_id, stock_id, quantity)
                VALUES (v_reservation, v_stock, v_item.quantity)
                ON CONFLICT (reservation_id, stock_id) DO UPDATE SET quantity = p.quantity + EXCLUDED.quantity;
            ELSE
                INSERT INTO plain.stock_reservation_parts (reservation_id, stock_id, quantity)
                VALUES (v_reservation, v_stock, v_item.quantity);
            END IF;
            CONTINUE;
        END IF;

        -- none does: from several
        v_left := v_item.quantity;
        FOR v_more IN
            SELECT s.id, s.quantity_on_hand - s.quantity_reserved AS free
              FROM plain.inventory_stock s
              JOIN plain.warehouses w ON w.id = s.warehouse_id
             WHERE s.product_id = v_item.product_id
               AND s.variant_id IS NOT DISTINCT FROM v_item.variant_id
               AND CASE WHEN v_item.warehouse IS NULL THEN w.is_active ELSE w.code = v_item.warehouse END
             ORDER BY w.priority, w.code, s.stripe
               FOR UPDATE OF s
        LOOP
            v_take := least(v_more.free, v_left);
            CONTINUE WHEN v_take <= 0;
            UPDATE plain.inventory_stock SET quantity_reserved = quantity_reserved + v_take WHERE id = v_more.id;
            INSERT INTO plain.stock_reservation_parts AS p (reservation_id, stock_id, quantity)
            VALUES (v_reservation, v_more.id, v_take)
            ON CONFLICT (reservation_id, stock_id) DO UPDATE SET quantity = p.quantity + EXCLUDED.quantity;
            v_left := v_left - v_take;
            EXIT WHEN v_left = 0;
        END LOOP;
        IF v_left > 0 THEN
            RAISE EXCEPTION 'insufficient stock of "%"', v_item.sku USING ERRCODE = 'TA002';
        END IF;
    END LOOP;

    INSERT INTO plain.order_status_history (order_id, sequence, to_status, actor, request_id)
    VALUES (v_order.id, 1, 'pending', p_actor, nullif(current_setting('app.request_id', true), ''));

    RETURN v_order;
END $$;

CREATE FUNCTION plain.import_order(
    p_user uuid, p_lines jsonb, p_placed_at timestamptz, p_order_number text DEFAULT NULL,
    p_currency text DEFAULT 'USD', p_charges jsonb DEFAULT '[]', p_actor uuid DEFAULT NULL
) RETURNS plain.orders
LANGUAGE plpgsql AS $$
BEGIN
    RETURN plain.place_order(p_user, p_lines, NULL, NULL, p_currency, NULL, NULL, interval '1 hour', p_actor,
                             p_placed_at, p_order_number, nullif(p_charges, '[]'), true);
END $$;

-- Puts units of an order back where they were taken from.
CREATE FUNCTION plain.restock(
    p_order uuid, p_product uuid, p_variant uuid, p_quantity integer, p_note text, p_actor uuid
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_row  record;
    v_left integer := p_quantity;
    v_put  integer;
BEGIN
    FOR v_row IN
        SELECT s.id,
               (SELECT -sum(m.quantity) FROM plain.stock_movements m
                 WHERE m.order_id = p_order AND m.stock_id = s.id) AS sold
          FROM plain.inventory_stock s
          JOIN plain.warehouses w ON w.id = s.warehouse_id
         WHERE s.product_id = p_product AND s.variant_id IS NOT DISTINCT FROM p_variant
         ORDER BY w.priority, w.code, s.stripe
           FOR UPDATE OF s
    LOOP
        v_put := least(v_row.sold, v_left);
        CONTINUE WHEN v_put IS NULL OR v_put <= 0;
        UPDATE plain.inventory_stock SET quantity_on_hand = quantity_on_hand + v_put WHERE id = v_row.id;
        INSERT INTO plain.stock_movements (stock_id, movement_type, quantity, order_id, note, actor, request_id)
        VALUES (v_row.id, 'return', v_put, p_order, p_note, p_actor, nullif(current_setting('app.request_id', true), ''));
        v_left := v_left - v_put;
        EXIT WHEN v_left = 0;
    END LOOP;
    IF v_left > 0 THEN
        RAISE EXCEPTION 'more is returned than was sold' USING ERRCODE = '22023';
    END IF;
END $$;

CREATE TYPE plain.return_line AS (
    order_item_id uuid,
    product_id    uuid,
    variant_id    uuid,
    quantity      integer,
    amount        numeric
);

-- Writes a return: its header, its items, and the units back in stock.
CREATE FUNCTION plain.write_return(
    p_order uuid, p_lines plain.return_line[], p_note text, p_actor uuid
) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_back   plain.return_line;
    v_amount numeric := 0;
    v_return uuid;
BEGIN
    FOREACH v_back IN ARRAY p_lines LOOP
        v_amount := v_amount + v_back.amount;
    END LOOP;
    INSERT INTO plain.order_returns (order_id, amount, note, actor)
    VALUES (p_order, v_amount, p_note, p_actor)
    RETURNING id INTO v_return;
    FOR v_back IN
        SELECT * FROM unnest(p_lines) b ORDER BY b.product_id, b.variant_id
    LOOP
        INSERT INTO plain.order_return_items (return_id, order_item_id, quantity, amount)
        VALUES (v_return, v_back.order_item_id, v_back.quantity, v_back.amount);
        PERFORM plain.restock(p_order, v_back.product_id, v_back.variant_id, v_back.quantity, p_note, p_actor);
    END LOOP;
    RETURN v_return;
END $$;

CREATE FUNCTION plain.transition_order(
    p_order uuid, p_event text, p_note text DEFAULT NULL, p_actor uuid DEFAULT NULL
) RETURNS plain.order_status
LANGUAGE plpgsql AS $$
DECLARE
    v_status      text;
    v_to          text;
    v_effect      text;
    v_reservation uuid;
    v_part        record;
    v_item        record;
    v_back        plain.return_line;
    v_backs       plain.return_line[] := '{}';
BEGIN
    SELECT o.status INTO v_status FROM plain.orders o WHERE o.id = p_order FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'order "%" does not exist', p_order USING ERRCODE = 'TA007';
    END IF;
    SELECT t.to_state, t.effect INTO v_to, v_effect
      FROM plain.transitions t WHERE t.event = p_event AND t.from_state = v_status;
    IF NOT FOUND THEN
        PERFORM 1 FROM plain.transitions t WHERE t.event = p_event AND t.to_state = v_status;
        IF FOUND THEN
            RETURN v_status;
        END IF;
        RAISE EXCEPTION 'event "%" is not allowed in state "%"', p_event, v_status USING ERRCODE = 'TA001';
    END IF;

    UPDATE plain.orders
       SET status = v_to,
           updated_at = now(),
           completed_at = CASE WHEN v_to = 'completed' THEN now() ELSE completed_at END
     WHERE id = p_order;
    INSERT INTO plain.order_status_history (order_id, sequence, from_status, to_status, event, actor, note, request_id)
    VALUES (p_order,
            (SELECT max(h.sequence) + 1 FROM plain.order_status_history h WHERE h.order_id = p_order),
            v_status, v_to, p_event, p_actor, p_note, nullif(current_setting('app.request_id', true), ''));

    IF v_effect IS NULL THEN
        RETURN v_to;
    END IF;

    IF v_effect = 'restock' THEN
        FOR v_item IN
            SELECT i.id, i.product_id, i.variant_id, i.quantity - r.quantity AS quantity,
                   i.line_total - r.amount AS amount
              FROM plain.order_items i
              CROSS JOIN LATERAL (SELECT coalesce(sum(x.quantity), 0) AS quantity,
                                         coalesce(sum(x.amount), 0) AS amount
                                    FROM plain.order_return_items x WHERE x.order_item_id = i.id) r
             WHERE i.order_id = p_order
               AND i.quantity > r.quantity
        LOOP
            v_back := (v_item.id, v_item.product_id, v_item.variant_id, v_item.quantity, v_item.amount);
            v_backs := v_backs || v_back;
        END LOOP;
        IF v_backs <> '{}' THEN
            PERFORM plain.write_return(p_order, v_backs, p_note, p_actor);
        END IF;
        RETURN v_to;
    END IF;

    SELECT r.id INTO v_reservation
      FROM plain.stock_reservations r
     WHERE r.order_id = p_order AND r.status = 'active'
       FOR UPDATE;
    IF NOT FOUND THEN
        -- nothing is reserved for an order of charges alone
        PERFORM 1 FROM plain.order_items i WHERE i.order_id = p_order LIMIT 1;
        IF FOUND AND v_effect <> 'release' THEN
            RAISE EXCEPTION 'the reservation of order "%" is not active', p_order USING ERRCODE = 'TA003';
        END IF;
        RETURN v_to;
    END IF;

    IF v_effect = 'reserve' THEN
        UPDATE plain.stock_reservations SET expires_at = 'infinity' WHERE id = v_reservation;
        RETURN v_to;
    END IF;

    FOR v_part IN
        SELECT s.id, p.quantity
          FROM plain.stock_reservation_parts p
          JOIN plain.inventory_stock s ON s.id = p.stock_id
          JOIN plain.warehouses w ON w.id = s.warehouse_id
         WHERE p.reservation_id = v_reservation
         ORDER BY s.product_id, s.variant_id, w.priority, w.code, s.stripe
           FOR UPDATE OF s
    LOOP
        IF v_effect = 'sale' THEN
            UPDATE plain.inventory_stock
               SET quantity_on_hand = quantity_on_hand - v_part.quantity,
                   quantity_reserved = quantity_reserved - v_part.quantity
             WHERE id = v_part.id;
            INSERT INTO plain.stock_movements (stock_id, movement_type, quantity, order_id, note, actor, request_id)
            VALUES (v_part.id, 'sale', -v_part.quantity, p_order, p_note, p_actor,
                    nullif(current_setting('app.request_id', true), ''));
        ELSE
            UPDATE plain.inventory_stock
               SET quantity_reserved = quantity_reserved - v_part.quantity
             WHERE id = v_part.id;
        END IF;
    END LOOP;
    UPDATE plain.stock_reservations
       SET status = CASE v_effect WHEN 'sale' THEN 'committed' ELSE 'released' END,
           closed_at = clock_timestamp()
     WHERE id = v_reservation;
    RETURN v_to;
END $$;

-- lines: [{"order_item_id": ..., "quantity": ...}, ...]; a "sku" or a
-- "line_number" may stand for the item.
CREATE FUNCTION plain.return_order_lines(
    p_order uuid, p_lines jsonb, p_note text DEFAULT NULL, p_actor uuid DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_status text;
    v_line   record;
    v_item   record;
    v_back   plain.return_line;
    v_backs  plain.return_line[] := '{}';
    v_left   integer;
    v_take   integer;
    v_return uuid;
BEGIN
    SELECT o.status INTO v_status FROM plain.orders o WHERE o.id = p_order FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'order "%" does not exist', p_order USING ERRCODE = 'TA007';
    END IF;
    IF v_status NOT IN ('delivered', 'completed', 'returned') THEN
        RAISE EXCEPTION 'nothing can be returned in state "%"', v_status USING ERRCODE = 'TA001';
    END IF;

    -- which lines, and what they were bought for
    FOR v_line IN
        SELECT l.order_item_id, l.sku, l.line_number, sum(l.quantity)::integer AS quantity,
               bool_and(l.quantity > 0) AS valid
          FROM jsonb_to_recordset(p_lines)
               AS l (order_item_id uuid, sku text, line_number integer, quantity integer)
         GROUP BY l.order_item_id, l.sku, l.line_number
    LOOP
        IF v_line.valid IS NOT TRUE THEN
            RAISE EXCEPTION 'quantity must be positive' USING ERRCODE = '22023';
        END IF;
        v_left := v_line.quantity;
        FOR v_item IN
            SELECT i.id, i.product_id, i.variant_id, i.quantity, i.unit_price,
                   r.quantity AS returned, r.amount AS refunded
              FROM plain.order_items i
              CROSS JOIN LATERAL (SELECT coalesce(sum(x.quantity), 0) AS quantity,
                                         coalesce(sum(x.amount), 0) AS amount
                                    FROM plain.order_return_items x WHERE x.order_item_id = i.id) r
             WHERE i.order_id = p_order
               AND (v_line.order_item_id IS NULL OR i.id = v_line.order_item_id)
               AND (v_line.sku IS NULL OR i.sku = v_line.sku)
               AND (v_line.line_number IS NULL OR i.line_number = v_line.line_number)
             ORDER BY i.line_number
        LOOP
            v_take := least(v_item.quantity - v_item.returned, v_left);
            CONTINUE WHEN v_take <= 0;
            v_back := (v_item.id, v_item.product_id, v_item.variant_id, v_take,
                       round(v_item.unit_price * (v_item.returned + v_take), 2) - v_item.refunded);
            v_backs := v_backs || v_back;
            v_left := v_left - v_take;
            EXIT WHEN v_left = 0;
        END LOOP;
        IF v_left > 0 THEN
            RAISE EXCEPTION 'more is returned than was bought' USING ERRCODE = '22023';
        END IF;
    END LOOP;

    v_return := plain.write_return(p_order, v_backs, p_note, p_actor);

    IF v_status = 'delivered' THEN
        PERFORM 1
           FROM plain.order_items i
          WHERE i.order_id = p_order
            AND i.quantity > (SELECT coalesce(sum(r.quantity), 0)
                                FROM plain.order_return_items r WHERE r.order_item_id = i.id)
          LIMIT 1;
        IF NOT FOUND THEN
            UPDATE plain.orders SET status = 'returned', updated_at = now() WHERE id = p_order;
            INSERT INTO plain.order_status_history
                (order_id, sequence, from_status, to_status, event, actor, note, request_id)
            VALUES (p_order,
                    (SELECT max(h.sequence) + 1 FROM plain.order_status_history h WHERE h.order_id = p_order),
                    v_status, 'returned', 'return', p_actor, p_note,
                    nullif(current_setting('app.request_id', true), ''));
        END IF;
    END IF;
    RETURN v_return;
END $$;

-- What must hold whatever was done: no row.
CREATE FUNCTION plain.check_store() RETURNS TABLE (rule text, subject text, detail text)
LANGUAGE sql STABLE AS $$
    SELECT 'on hand is the sum of the movements', s.id::text,
           format('%s on hand, %s moved', s.quantity_on_hand, coalesce(m.moved, 0))
      FROM plain.inventory_stock s
      LEFT JOIN (SELECT stock_id, sum(quantity) AS moved FROM plain.stock_movements GROUP BY stock_id) m
        ON m.stock_id = s.id
     WHERE s.quantity_on_hand <> coalesce(m.moved, 0)
    UNION ALL
    SELECT 'reserved is the sum of the active parts', s.id::text,
           format('%s reserved, %s in parts', s.quantity_reserved, coalesce(a.parts, 0))
      FROM plain.inventory_stock s
      LEFT JOIN (SELECT p.stock_id, sum(p.quantity) AS parts
                   FROM plain.stock_reservation_parts p
                   JOIN plain.stock_reservations r ON r.id = p.reservation_id
                  WHERE r.status = 'active'
                  GROUP BY p.stock_id) a ON a.stock_id = s.id
     WHERE s.quantity_reserved <> coalesce(a.parts, 0)
    UNION ALL
    SELECT 'a reservation is the sum of its parts', r.id::text,
           format('%s reserved, %s in parts', r.quantity, coalesce(p.parts, 0))
      FROM plain.stock_reservations r
      LEFT JOIN (SELECT reservation_id, sum(quantity) AS parts
                   FROM plain.stock_reservation_parts GROUP BY reservation_id) p ON p.reservation_id = r.id
     WHERE r.quantity <> coalesce(p.parts, 0)
    UNION ALL
    SELECT 'the subtotal is the sum of the lines', o.id::text,
           format('subtotal %s, lines %s', o.subtotal, coalesce(i.lines, 0))
      FROM plain.orders o
      LEFT JOIN (SELECT order_id, sum(line_total) AS lines FROM plain.order_items GROUP BY order_id) i
        ON i.order_id = o.id
     WHERE o.subtotal <> coalesce(i.lines, 0)
    UNION ALL
    SELECT 'the history ends in the state of the order', o.id::text,
           format('order %s, history %s', o.status, h.to_status)
      FROM plain.orders o
      LEFT JOIN (SELECT DISTINCT ON (order_id) order_id, to_status
                   FROM plain.order_status_history ORDER BY order_id, sequence DESC) h ON h.order_id = o.id
     WHERE o.status IS DISTINCT FROM h.to_status
    UNION ALL
    SELECT 'what was sold and not returned is what the movements say', o.id::text,
           format('items %s, movements %s', i.units, coalesce(m.units, 0))
      FROM plain.orders o
      JOIN (SELECT x.order_id,
                   sum(x.quantity - (SELECT coalesce(sum(r.quantity), 0)
                                       FROM plain.order_return_items r WHERE r.order_item_id = x.id)) AS units
              FROM plain.order_items x GROUP BY x.order_id) i ON i.order_id = o.id
      LEFT JOIN (SELECT order_id, -sum(quantity) AS units FROM plain.stock_movements GROUP BY order_id) m
        ON m.order_id = o.id
     WHERE o.status IN ('shipped', 'delivered', 'completed') AND i.units <> coalesce(m.units, 0)
$$;
