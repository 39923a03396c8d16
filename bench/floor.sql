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
