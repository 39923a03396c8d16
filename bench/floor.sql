-- The floor of place_order: the rows of an order of five lines and nothing
-- else, in tables made from sql/store/ in the schema floor.
--
-- No JSON, no look-up of a SKU, no choice of a warehouse, no check: the caller
-- knows every key.  What remains is what any implementation has to pay: heap
-- and index inserts, the foreign keys, the commit, and, where the caller asks
-- for it, the update of the five stock rows in one statement.  The caller
-- gives five different products.

CREATE FUNCTION floor.write_order(
    p_user uuid, p_products uuid[], p_stocks uuid[], p_quantity integer, p_update_stock boolean
) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_order       uuid := gen_random_uuid();
    v_reservation uuid := gen_random_uuid();
BEGIN
    INSERT INTO floor.orders (id, order_number, user_id, status, subtotal, total)
    VALUES (v_order, to_char(now(), 'YYYYMMDD-') || lpad(nextval('floor.order_number_seq')::text, 8, '0'),
            p_user, 'pending', 49.95 * p_quantity, 49.95 * p_quantity);
    INSERT INTO floor.order_items (order_id, line_number, product_id, sku, name, quantity, unit_price)
    VALUES (v_order, 1, p_products[1], 'S10001', 'Product 1', p_quantity, 9.99),
           (v_order, 2, p_products[2], 'S10001', 'Product 1', p_quantity, 9.99),
           (v_order, 3, p_products[3], 'S10001', 'Product 1', p_quantity, 9.99),
           (v_order, 4, p_products[4], 'S10001', 'Product 1', p_quantity, 9.99),
           (v_order, 5, p_products[5], 'S10001', 'Product 1', p_quantity, 9.99);
    INSERT INTO floor.stock_reservations (id, order_id, quantity, expires_at)
    VALUES (v_reservation, v_order, 5 * p_quantity, now() + interval '15 minutes');
    IF p_update_stock THEN
        UPDATE floor.inventory_stock
           SET quantity_reserved = quantity_reserved + p_quantity
         WHERE id = ANY (p_stocks);
    END IF;
    INSERT INTO floor.stock_reservation_parts (reservation_id, stock_id, quantity)
    VALUES (v_reservation, p_stocks[1], p_quantity),
           (v_reservation, p_stocks[2], p_quantity),
           (v_reservation, p_stocks[3], p_quantity),
           (v_reservation, p_stocks[4], p_quantity),
           (v_reservation, p_stocks[5], p_quantity);
    INSERT INTO floor.order_status_history (order_id, sequence, to_status)
    VALUES (v_order, 1, 'pending');
    RETURN v_order;
END $$;

-- The floor of transition_order: the same for one step of an order's way.  No
-- look at the machine, none at the state before, no lock, nothing counted.

CREATE FUNCTION floor.place_order(
    p_user uuid, p_lines jsonb, jsonb, jsonb, text, text, text, interval
) RETURNS TABLE (id uuid)
LANGUAGE sql AS $$
    SELECT floor.write_order(p_user, array_agg(s.product_id), array_agg(s.id), 1, true)
      FROM (SELECT DISTINCT ON (s.product_id) s.product_id, s.id
              FROM floor.products p JOIN floor.inventory_stock s ON s.product_id = p.id
             WHERE p.id IN (SELECT md5('product' || 1 + (random() * 8999)::integer)::uuid
                              FROM generate_series(1, 20))
             ORDER BY s.product_id LIMIT 5) s
$$;

CREATE FUNCTION floor.transition_order(p_order uuid, p_event text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v_way  constant text[] := ARRAY['pending', 'processing', 'confirmed', 'preparing', 'shipped', 'delivered', 'completed'];
    v_step constant integer := array_position(ARRAY['process_payment', 'payment_success', 'start_fulfillment',
                                                    'dispatch', 'deliver', 'complete'], p_event);
BEGIN
    UPDATE floor.orders SET status = v_way[v_step + 1], updated_at = now() WHERE id = p_order;
    INSERT INTO floor.order_status_history (order_id, sequence, from_status, to_status, event)
    VALUES (p_order, v_step + 1, v_way[v_step], v_way[v_step + 1], p_event);
    IF v_step = 1 THEN
        UPDATE floor.stock_reservations SET expires_at = 'infinity' WHERE order_id = p_order;
    ELSIF v_step = 4 THEN
        UPDATE floor.stock_reservations SET status = 'committed', closed_at = now() WHERE order_id = p_order;
        UPDATE floor.inventory_stock s
           SET quantity_on_hand = s.quantity_on_hand - p.quantity, quantity_reserved = s.quantity_reserved - p.quantity
          FROM floor.stock_reservations r JOIN floor.stock_reservation_parts p ON p.reservation_id = r.id
         WHERE r.order_id = p_order AND s.id = p.stock_id;
        INSERT INTO floor.stock_movements (stock_id, movement_type, quantity, order_id)
        SELECT p.stock_id, 'sale', -p.quantity, p_order
          FROM floor.stock_reservations r JOIN floor.stock_reservation_parts p ON p.reservation_id = r.id
         WHERE r.order_id = p_order;
    END IF;
    RETURN v_way[v_step + 1];
END $$;
