-- Does the plain shop do what it should?  Fails at the first thing that is
-- wrong.  The shop is loaded with 100 SKUs.
CREATE FUNCTION pg_temp.fails(p_statement text, p_code text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_code text := 'none';
BEGIN
    BEGIN
        EXECUTE p_statement;
    EXCEPTION WHEN OTHERS THEN
        v_code := SQLSTATE;
    END;
    IF v_code <> p_code THEN
        RAISE EXCEPTION 'error % expected, % raised: %', p_code, v_code, p_statement;
    END IF;
END $$;
CREATE FUNCTION pg_temp.is(p_what text, p_is anyelement, p_should anyelement) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_is IS DISTINCT FROM p_should THEN
        RAISE EXCEPTION '%: % instead of %', p_what, p_is, p_should;
    END IF;
END $$;
CREATE FUNCTION pg_temp.sound() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_problem record;
BEGIN
    FOR v_problem IN SELECT * FROM plain.check_store() LOOP
        RAISE EXCEPTION 'not sound: %', v_problem;
    END LOOP;
END $$;

-- a product with little stock in two warehouses, and one with variants
INSERT INTO plain.products (id, sku, name, slug, price, is_published) VALUES
    (md5('scarce')::uuid, 'SCARCE', 'Scarce', 'scarce', 10, true),
    (md5('shirt')::uuid, 'SHIRT', 'Shirt', 'shirt', 20, true),
    (md5('hidden')::uuid, 'HIDDEN', 'Hidden', 'hidden', 20, false);
INSERT INTO plain.product_variants (product_id, sku, name, price) VALUES
    (md5('shirt')::uuid, 'SHIRT-M', 'Shirt, medium', NULL),
    (md5('shirt')::uuid, 'SHIRT-L', 'Shirt, large', 22);
SELECT pg_temp.is('received', plain.receive_stock('SCARCE', 5), 5);
SELECT pg_temp.is('received', plain.receive_stock('SCARCE', 7, 'north'), 7);
SELECT pg_temp.is('received', plain.receive_stock('SHIRT-L', 3), 3);
SELECT pg_temp.is('adjusted', plain.adjust_stock('SHIRT-L', -1, 'main', 'damage'), 2);
SELECT pg_temp.fails($$SELECT plain.adjust_stock('SHIRT-L', -3)$$, 'TA002');
SELECT pg_temp.sound();

-- an order walks to its end
CREATE TEMP TABLE o AS
SELECT * FROM plain.place_order(md5('user1')::uuid,
    '[{"sku": "S10001", "quantity": 2}, {"sku": "S10002", "quantity": 1}, {"sku": "S10001", "quantity": 3},
      {"sku": "SHIRT-L", "quantity": 2}, {"sku": "SHIRT-M", "quantity": 0}]'::jsonb - 4);
SELECT pg_temp.is('total', total, 5 * 1.99 + 2.99 + 44) FROM o;
SELECT pg_temp.is('lines', (SELECT count(*) FROM plain.order_items i WHERE i.order_id = o.id), 4::bigint) FROM o;
SELECT pg_temp.is('parts', (SELECT count(*) FROM plain.stock_reservation_parts), 3::bigint);
SELECT pg_temp.sound();
SELECT pg_temp.fails(format('SELECT plain.transition_order(%L, %L)', id, 'dispatch'), 'TA001') FROM o;
SELECT pg_temp.is(event, plain.transition_order(o.id, event)::text, state)
  FROM o, (VALUES ('process_payment', 'processing'), ('process_payment', 'processing'),
                  ('payment_success', 'confirmed'), ('start_fulfillment', 'preparing'), ('dispatch', 'shipped'),
                  ('deliver', 'delivered'), ('complete', 'completed')) e (event, state);
SELECT pg_temp.sound();
SELECT pg_temp.is('history',
    (SELECT string_agg(sequence || ' ' || to_status, ', ' ORDER BY sequence) FROM plain.order_status_history),
    '1 pending, 2 processing, 3 confirmed, 4 preparing, 5 shipped, 6 delivered, 7 completed');
SELECT pg_temp.is('large shirts left', quantity_on_hand, 0) FROM plain.inventory_stock WHERE product_id = md5('shirt')::uuid;
SELECT plain.return_order_lines(id, '[{"sku": "S10001", "quantity": 4}]') FROM o;
SELECT pg_temp.is('refunded', (SELECT sum(amount) FROM plain.order_return_items), 7.96);
SELECT pg_temp.fails(format('SELECT plain.return_order_lines(%L, %L)', id, '[{"sku": "S10001", "quantity": 2}]'), '22023')
  FROM o;
SELECT pg_temp.sound();

-- the first warehouse that serves the whole line, several where none does
DO $$
DECLARE
    v_order plain.orders;
BEGIN
    v_order := plain.place_order(md5('user2')::uuid, '[{"sku": "SCARCE", "quantity": 6}]');
    PERFORM pg_temp.is('from the north', (SELECT s.quantity_reserved FROM plain.inventory_stock s
        JOIN plain.warehouses w ON w.id = s.warehouse_id
        WHERE s.product_id = md5('scarce')::uuid AND w.code = 'north'), 6);
    PERFORM plain.transition_order(v_order.id, 'cancel');
    PERFORM pg_temp.sound();
    v_order := plain.place_order(md5('user2')::uuid, '[{"sku": "SCARCE", "quantity": 10}]');
    PERFORM pg_temp.is('from both', (SELECT count(*) FROM plain.stock_reservation_parts p
        JOIN plain.stock_reservations r ON r.id = p.reservation_id WHERE r.order_id = v_order.id), 2::bigint);
    PERFORM pg_temp.sound();
    PERFORM pg_temp.fails($f$SELECT plain.place_order(md5('user2')::uuid, '[{"sku": "SCARCE", "quantity": 3}]')$f$, 'TA002');
    PERFORM pg_temp.fails($f$SELECT plain.place_order(md5('user2')::uuid,
        '[{"sku": "SCARCE", "quantity": 1, "warehouse": "main"}]')$f$, 'TA002');
    PERFORM plain.transition_order(v_order.id, e)
       FROM unnest('{process_payment,payment_success,start_fulfillment,dispatch,deliver}'::text[]) e;
    PERFORM plain.return_order_lines(v_order.id, '[{"sku": "SCARCE", "quantity": 4}]');
    PERFORM pg_temp.is('still delivered', (SELECT status::text FROM plain.orders WHERE id = v_order.id), 'delivered');
    PERFORM plain.transition_order(v_order.id, 'return');
    PERFORM pg_temp.is('all back', (SELECT sum(quantity_on_hand) FROM plain.inventory_stock
        WHERE product_id = md5('scarce')::uuid), 12::bigint);
    PERFORM pg_temp.sound();
END $$;

-- idempotency, imports, bad input
SELECT pg_temp.is('the same order',
    (plain.place_order(md5('user3')::uuid, '[{"sku": "S10003", "quantity": 1}]', NULL, NULL, 'USD', NULL, 'key')).id,
    (plain.place_order(md5('user3')::uuid, '[{"sku": "S10003", "quantity": 1}]', NULL, NULL, 'USD', NULL, 'key')).id);
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[{"sku": "S10003", "quantity": 2}]',
    NULL, NULL, 'USD', NULL, 'key')$$, 'TA004');
SELECT pg_temp.is('import', total, 17.5) FROM plain.import_order(md5('user3')::uuid,
    '[{"sku": "S10003", "quantity": 5, "unit_price": 2.5}]', '2011-01-01', '536365', 'GBP',
    '[{"code": "POST", "description": "Postage", "amount": 5.00}]');
SELECT pg_temp.is('charges alone', total, -5.0) FROM plain.import_order(md5('user3')::uuid,
    '[]', '2011-01-01', '536366', 'GBP', '[{"code": "D", "amount": -5.00}]');
SELECT pg_temp.is('charges alone', plain.transition_order(id, 'process_payment')::text, 'processing')
  FROM plain.orders WHERE order_number = '536366';
SELECT pg_temp.fails($$SELECT plain.place_order(md5('nobody')::uuid, '[{"sku": "S10003", "quantity": 1}]')$$, 'TA007');
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[{"sku": "NONE", "quantity": 1}]')$$, 'TA006');
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[{"sku": "HIDDEN", "quantity": 1}]')$$, 'TA006');
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[{"sku": "SHIRT", "quantity": 1}]')$$, 'TA006');
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[{"sku": "S10003", "quantity": 0}]')$$, '22023');
SELECT pg_temp.fails($$SELECT plain.place_order(md5('user3')::uuid, '[]')$$, '22023');
SELECT pg_temp.sound();
