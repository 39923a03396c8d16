-- Orders: placing, pricing, moving along the machine, returning.
SET client_min_messages = warning;
\set SHOW_CONTEXT never
SELECT techally.create_store('ord');

CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    message := regexp_replace(message, '[0-9a-f]{8}-[0-9a-f-]{27}', '<key>');
    RETURN NEXT;
END $$;

INSERT INTO ord.users (id, email, password_hash, first_name, last_name)
VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.com', 'x', 'Ann', 'Lee'),
       ('00000000-0000-4000-8000-000000000002', 'bob@example.com', 'x', 'Bob', 'Ray'),
       ('00000000-0000-4000-8000-000000000003', 'cy@example.com', 'x', 'Cy', 'Gone');
UPDATE ord.users SET deleted_at = now() WHERE first_name = 'Cy';
\set ann '''00000000-0000-4000-8000-000000000001'''
\set bob '''00000000-0000-4000-8000-000000000002'''
INSERT INTO ord.warehouses (code, name, priority) VALUES ('north', 'North', 200);
INSERT INTO ord.products (sku, name, slug, price, is_published)
VALUES ('MUG', 'Mug', 'mug', 8.50, true), ('PEN', 'Pen', 'pen', 0.333 * 3, true), ('FREE', 'Sample', 'sample', 0, true),
       ('SHIRT', 'Shirt', 'shirt', 20, true), ('DRAFT', 'Draft', 'draft', 1, false);
INSERT INTO ord.product_variants (product_id, sku, name, price)
SELECT id, v.sku, v.name, v.price FROM ord.products,
       (VALUES ('SHIRT-S', 'small', NULL), ('SHIRT-L', 'large', 22.00)) v(sku, name, price) WHERE products.sku = 'SHIRT';
SELECT ord.receive_stock(s, 20) FROM unnest(ARRAY['MUG', 'PEN', 'FREE', 'SHIRT-S', 'SHIRT-L']) s;
SELECT ord.receive_stock('MUG', 5, 'north');

-- an order: the same SKU on several lines stays several lines, the demand is summed
SELECT status, subtotal, tax, shipping, discount, charges, total, currency,
       order_number ~ '^\d{8}-\d{7}$' AS readable, completed_at
  FROM ord.place_order(:ann, '[{"sku": "MUG", "quantity": 2}, {"sku": "SHIRT-L", "quantity": 1},
                               {"sku": "MUG", "quantity": 3, "warehouse": "north"}, {"sku": "SHIRT-S", "quantity": 1}]',
                       '{"city": "York"}', currency => 'gbp');
SELECT line_number, sku, name, quantity, unit_price, line_total FROM ord.order_items ORDER BY line_number;
SELECT p.name, w.code, rp.quantity FROM ord.stock_reservation_parts rp JOIN ord.inventory_stock s ON s.id = rp.stock_id
  JOIN ord.products p ON p.id = s.product_id JOIN ord.warehouses w ON w.id = s.warehouse_id ORDER BY 1, 2, 3;
SELECT sequence, from_status, to_status, event FROM ord.order_status_history ORDER BY sequence;
SELECT shipping_address, billing_address FROM ord.orders;

-- prices are snapshots
UPDATE ord.products SET price = 9.99, name = 'Big mug' WHERE sku = 'MUG';
SELECT sku, name, unit_price FROM ord.order_items WHERE sku = 'MUG';

-- the whole way
CREATE TABLE way (name text PRIMARY KEY, id uuid);
INSERT INTO way SELECT 'first', id FROM ord.orders;
SELECT ord.transition_order(id, 'process_payment', 'card', :bob) FROM way;
SELECT ord.transition_order(id, 'process_payment') AS again FROM way;
SELECT ord.transition_order(id, e) FROM way, unnest(ARRAY['payment_success', 'start_fulfillment']) e;
SELECT status, expires_at FROM ord.stock_reservations;
SELECT ord.transition_order(id, 'dispatch', actor => :bob) FROM way;
SELECT count(*), count(*) FILTER (WHERE actor = :bob) AS by_bob FROM ord.stock_movements WHERE movement_type = 'sale';
SELECT ord.transition_order(id, 'deliver') FROM way;
SELECT ord.transition_order(id, 'complete') FROM way;
SELECT sequence, from_status, to_status, event, note, actor IS NOT NULL AS by FROM ord.order_status_history ORDER BY sequence;
SELECT completed_at IS NOT NULL AS completed FROM ord.orders;
SELECT p.sku, w.code, m.movement_type, m.quantity FROM ord.stock_movements m JOIN ord.inventory_stock s ON s.id = m.stock_id
  JOIN ord.products p ON p.id = s.product_id JOIN ord.warehouses w ON w.id = s.warehouse_id
 WHERE m.order_id IS NOT NULL ORDER BY 1, 2, 4;
SELECT * FROM techally.check_store('ord');

-- illegal moves, by event and by hand, say what is allowed
SELECT r.* FROM way, raised(format('SELECT ord.transition_order(%L, ''cancel'')', id)) r;
SELECT r.* FROM raised($$UPDATE ord.orders SET status = 'pending'$$) r;
SELECT r.* FROM raised($$UPDATE ord.orders SET status = 'lost'$$) r;
SELECT r.code, r.message FROM raised($$UPDATE ord.orders SET status = NULL$$) r;
SELECT r.* FROM way, raised(format('SELECT ord.transition_order(%L, ''explode'')', id)) r;
SELECT r.* FROM unnest(ARRAY[
    $$SELECT ord.transition_order(gen_random_uuid(), 'cancel')$$,
    $$SELECT ord.transition_order(NULL, 'cancel')$$,
    $$SELECT ord.transition_order(gen_random_uuid(), NULL)$$]) s, raised(s) r;
SELECT r.* FROM raised($$INSERT INTO ord.orders (order_number, user_id, status, total)
    VALUES ('X', '00000000-0000-4000-8000-000000000001', 'shipped', 0)$$) r;

-- bad input changes nothing
CREATE TABLE before AS SELECT (SELECT count(*) FROM ord.orders) orders, (SELECT sum(quantity_reserved) FROM ord.inventory_stock) reserved,
       (SELECT count(*) FROM ord.order_status_history) history;
SELECT r.* FROM unnest(ARRAY[
    '[{"sku": "MUG", "quantity": 0}]', '[{"sku": "MUG", "quantity": -1}]', '[{"sku": "MUG", "quantity": 1.5}]',
    '[{"sku": "MUG", "quantity": 2147483648}]', '[{"sku": "MUG", "quantity": 1e40}]', '[{"sku": "MUG"}]',
    '[{"sku": "MUG", "quantity": null}]', '[{"sku": "MUG", "quantity": "2"}]', '[{"sku": "MUG", "quantity": true}]',
    '[{"sku": 5, "quantity": 1}]', '[{"quantity": 1}]', '[{"sku": "MUG", "quantity": 1, "warehouse": 3}]',
    '[{"sku": "MUG", "quantity": 1, "warehouse": "nowhere"}]', '[{"sku": "MUG", "quantity": 1, "colour": "red"}]',
    '[{"sku": "MUG", "quantity": 1, "unit_price": 1}]',
    '[]', '{}', '"MUG"', '1', 'null', '[1]', '[[]]', '[null]', '[{}]',
    '[{"sku": "NOPE", "quantity": 1}, {"sku": "MUG", "quantity": 1}, {"sku": "DRAFT", "quantity": 1}, {"sku": "SHIRT", "quantity": 1}, {"sku": "NOPE", "quantity": 1}]',
    '[{"sku": "MUG", "quantity": 30}, {"sku": "PEN", "quantity": 1}, {"sku": "SHIRT-S", "quantity": 15}, {"sku": "SHIRT-S", "quantity": 6}]',
    '[{"sku": "MUG", "quantity": 3, "warehouse": "north"}]',
    '[{"sku": "MUG", "quantity": 3, "warehouse": "north"}, {"sku": "MUG", "quantity": 18}]',
    '[{"sku": "MUG", "quantity": 2147483647}, {"sku": "MUG", "quantity": 2147483647}]',
    '[{"sku": "mug", "quantity": 1}]', '[{"sku": "\" ; DROP", "quantity": 1}]'
    ]) l, raised(format('SELECT ord.place_order(%L, %L)', '00000000-0000-4000-8000-000000000001', l)) r;
SELECT r.* FROM raised(format('SELECT ord.place_order(%L, %L)', '00000000-0000-4000-8000-000000000001',
    (SELECT jsonb_agg('{"sku": "MUG", "quantity": 1}'::jsonb) FROM generate_series(1, 10001)))) r;
SELECT r.* FROM unnest(ARRAY[
    $$gen_random_uuid(), '[{"sku": "MUG", "quantity": 1}]'$$,
    $$'00000000-0000-4000-8000-000000000003', '[{"sku": "MUG", "quantity": 1}]'$$,
    $$NULL, '[{"sku": "MUG", "quantity": 1}]'$$,
    $$'00000000-0000-4000-8000-000000000001', NULL$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', currency => 'EURO'$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', currency => 'E1R'$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', currency => ''$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', currency => NULL$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', coupon_code => 'SPRING'$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', reserve_for => '0'$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', reserve_for => NULL$$,
    $$'00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]', idempotency_key => ''$$
    ]) a, raised('SELECT ord.place_order(' || a || ')') r;
SELECT r.* FROM raised($$SELECT techally.place_order('nostore', '00000000-0000-4000-8000-000000000001', '[]')$$) r;
SELECT before = ((SELECT count(*) FROM ord.orders), (SELECT sum(quantity_reserved) FROM ord.inventory_stock),
       (SELECT count(*) FROM ord.order_status_history)) AS nothing_changed FROM before;

-- 10,000 lines work
SELECT ord.receive_stock('PEN', 10000, 'north') > 0 AS received;
SELECT subtotal, total FROM ord.place_order(:ann,
    (SELECT jsonb_agg('{"sku": "PEN", "quantity": 1}'::jsonb) FROM generate_series(1, 10000)));
SELECT count(*) FROM ord.order_items WHERE sku = 'PEN';
SELECT ord.transition_order(id, 'cancel') FROM ord.orders WHERE subtotal > 9000;
SELECT ord.available('PEN');

-- idempotency
INSERT INTO way SELECT 'keyed', (ord.place_order(:ann, '[{"sku": "MUG", "quantity": 1}]', idempotency_key => 'k1')).id;
SELECT (ord.place_order(:ann, '[{"quantity": 1.0, "sku": "MUG"}]', idempotency_key => 'k1', actor => :bob)).id = id AS same
  FROM way WHERE name = 'keyed';
SELECT (ord.place_order(:bob, '[{"sku": "MUG", "quantity": 1}]', idempotency_key => 'k1')).id <> id AS of_somebody_else
  FROM way WHERE name = 'keyed';
SELECT r.* FROM unnest(ARRAY[
    $$'[{"sku": "MUG", "quantity": 2}]', idempotency_key => 'k1'$$,
    $$'[{"sku": "MUG", "quantity": 1}]', idempotency_key => 'k1', currency => 'EUR'$$,
    $$'[{"sku": "MUG", "quantity": 1}]', idempotency_key => 'k1', reserve_for => '1 hour'$$]) a,
    raised('SELECT ord.place_order(''00000000-0000-4000-8000-000000000001'', ' || a || ')') r;
-- a retry returns the first order whatever became of its stock
SELECT ord.transition_order(id, 'cancel') FROM way WHERE name = 'keyed';
UPDATE ord.products SET is_published = false WHERE sku = 'MUG';
SELECT (o).id = id AS same, (o).status
  FROM way, LATERAL (SELECT ord.place_order(:ann, '[{"sku": "MUG", "quantity": 1}]', idempotency_key => 'k1') AS o) p
 WHERE name = 'keyed';
UPDATE ord.products SET is_published = true WHERE sku = 'MUG';

-- expiry: unpaid orders lose their stock, and may have it back while there is some
INSERT INTO way SELECT 'late', (ord.place_order(:bob, '[{"sku": "SHIRT-S", "quantity": 19}]')).id;
INSERT INTO way SELECT 'never', (ord.place_order(:bob, '[{"sku": "FREE", "quantity": 20}]')).id;
UPDATE ord.stock_reservations SET expires_at = clock_timestamp() - interval '1 second'
 WHERE order_id IN (SELECT id FROM way WHERE name IN ('late', 'never'));
INSERT INTO way SELECT 'quick', (ord.place_order(:ann, '[{"sku": "FREE", "quantity": 1}]')).id;
SELECT ord.transition_order(id, 'process_payment') FROM way WHERE name = 'late';
SELECT r.* FROM way, raised(format('SELECT ord.transition_order(%L, ''process_payment'')', id)) r WHERE name = 'never';
SELECT r.* FROM way, raised(format('UPDATE ord.orders SET status = ''processing'' WHERE id = %L', id)) r WHERE name = 'never';
SELECT name, o.status, r.status AS reservation, r.expires_at = 'infinity' AS held
  FROM way JOIN ord.orders o USING (id) LEFT JOIN ord.stock_reservations r ON r.order_id = o.id
 WHERE name IN ('late', 'never', 'quick') ORDER BY 1, 3;
SELECT * FROM techally.check_store('ord');
-- the stock of an order that is being paid is not released by hand
SELECT r.code, regexp_replace(r.message, '\d{8}-\d{7}', '<number>') FROM ord.stock_reservations s
  JOIN way ON way.id = s.order_id AND name = 'late',
  raised(format('SELECT ord.release_reservation(%L)', s.id)) r WHERE s.status = 'active';
SELECT r.code FROM ord.stock_reservations s JOIN way ON way.id = s.order_id AND name = 'quick',
  raised(format('SELECT ord.commit_reservation(%L)', s.id)) r;
SELECT ord.release_reservation(s.id) FROM ord.stock_reservations s JOIN way ON way.id = s.order_id AND name = 'quick';
SELECT ord.transition_order(id, 'payment_failed') FROM way WHERE name = 'late';
SELECT ord.available('SHIRT-S');

-- a bare UPDATE of many orders is checked, recorded and posted alike
INSERT INTO way SELECT 'bulk' || i, (ord.place_order(:bob, '[{"sku": "PEN", "quantity": 2}, {"sku": "MUG", "quantity": 1}]')).id FROM generate_series(1, 3) i;
UPDATE ord.orders SET status = 'processing' WHERE id IN (SELECT id FROM way WHERE name LIKE 'bulk%');
UPDATE ord.orders SET status = 'confirmed' WHERE id IN (SELECT id FROM way WHERE name LIKE 'bulk%');
UPDATE ord.orders SET status = CASE name WHEN 'bulk1' THEN 'cancelled' ELSE 'preparing' END FROM way WHERE way.id = orders.id AND name LIKE 'bulk%';
UPDATE ord.orders SET status = 'shipped' WHERE status = 'preparing';
SELECT name, o.status, sum(m.quantity) AS moved FROM way JOIN ord.orders o USING (id)
  LEFT JOIN ord.stock_movements m ON m.order_id = o.id WHERE name LIKE 'bulk%' GROUP BY 1, 2 ORDER BY 1;
SELECT sequence, event FROM ord.order_status_history JOIN way ON id = order_id WHERE name = 'bulk2' ORDER BY 1;
-- an order without a reservation, put in by hand, gets one when it is needed
INSERT INTO ord.orders (id, order_number, user_id, subtotal, total) VALUES ('00000000-0000-4000-8000-00000000000a', 'HAND', :ann, 8, 8);
INSERT INTO ord.order_items (order_id, line_number, product_id, sku, name, quantity, unit_price)
SELECT '00000000-0000-4000-8000-00000000000a', 1, id, sku, name, 8, 1 FROM ord.products WHERE sku = 'PEN';
UPDATE ord.orders SET status = 'processing' WHERE order_number = 'HAND';
SELECT quantity, status, expires_at FROM ord.stock_reservations WHERE order_id = '00000000-0000-4000-8000-00000000000a';
SELECT * FROM techally.check_store('ord');

-- returns
SELECT ord.transition_order(id, 'deliver') FROM way WHERE name IN ('bulk2', 'bulk3') ORDER BY name;
SELECT ord.available('PEN') AS pen, ord.available('MUG') AS mug;
SELECT ord.return_order_lines(w.id, jsonb_build_array(jsonb_build_object('order_item_id', i.id, 'quantity', 1)), 'broken') IS NOT NULL AS returned
  FROM way w JOIN ord.order_items i ON i.order_id = w.id AND i.sku = 'PEN' WHERE w.name = 'bulk2';
SELECT status FROM ord.orders JOIN way USING (id) WHERE name = 'bulk2';
SELECT r.* FROM way, unnest(ARRAY[
    '[{"sku": "PEN", "quantity": 2}]', '[{"sku": "PEN", "quantity": 1}, {"line_number": 1, "quantity": 1}]',
    '[{"sku": "SHIRT-S", "quantity": 1}]', '[{"line_number": 9, "quantity": 1}]', '[]', '{}', 'null', '[{"quantity": 1}]',
    '[{"sku": "PEN", "line_number": 1, "quantity": 1}]', '[{"sku": "PEN", "quantity": 0}]', '[{"sku": "PEN"}]',
    '[{"order_item_id": "pen", "quantity": 1}]', '[{"order_item_id": 1, "quantity": 1}]', '[{"sku": "PEN", "quantity": 1, "why": "x"}]']) l,
    raised(format('SELECT ord.return_order_lines(%L, %L)', id, l)) r WHERE name = 'bulk2';
SELECT r.code, r.message FROM raised($$SELECT ord.return_order_lines(gen_random_uuid(), '[{"sku": "PEN", "quantity": 1}]')$$) r;
SELECT r.* FROM way, raised(format('SELECT ord.return_order_lines(%L, ''[{"sku": "SHIRT-S", "quantity": 1}]'')', id)) r WHERE name = 'late';
-- the event restocks the remainder
SELECT ord.transition_order(id, 'return', 'all of it', :ann) FROM way WHERE name = 'bulk2';
-- the last unit turns delivered into returned
SELECT ord.return_order_lines(id, '[{"sku": "PEN", "quantity": 2}]') IS NOT NULL FROM way WHERE name = 'bulk3';
SELECT ord.return_order_lines(id, '[{"line_number": 2, "quantity": 1}]', 'the rest') IS NOT NULL FROM way WHERE name = 'bulk3';
SELECT r.code, r.message FROM way, raised(format('SELECT ord.return_order_lines(%L, ''[{"sku": "PEN", "quantity": 1}]'')', id)) r WHERE name = 'bulk3';
-- completed orders take returns, and stay completed
SELECT ord.return_order_lines(id, '[{"sku": "MUG", "quantity": 4}]') IS NOT NULL FROM way WHERE name = 'first';
SELECT way.name, o.status, t.amount, t.note, i.sku, ri.quantity, ri.amount FROM way JOIN ord.orders o USING (id)
  JOIN ord.order_returns t ON t.order_id = o.id JOIN ord.order_return_items ri ON ri.return_id = t.id
  JOIN ord.order_items i ON i.id = ri.order_item_id ORDER BY way.name, t.created_at, i.line_number;
SELECT name, event, note FROM way JOIN ord.order_status_history h ON h.order_id = id WHERE to_status = 'returned' ORDER BY name;
SELECT ord.available('PEN') AS pen, ord.available('MUG', 'main') AS mug, ord.available('MUG', 'north') AS mug_north;
SELECT * FROM techally.check_store('ord');

-- importing
SELECT order_number, subtotal, charges, total, currency, created_at AT TIME ZONE 'UTC' AS placed
  FROM ord.import_order(:ann, '[{"sku": "PEN", "quantity": 3, "unit_price": 0.3333}, {"sku": "MUG", "quantity": 1}]',
       '2011-01-04 10:00+00', '536365', 'GBP', '[{"code": "POST", "description": "POSTAGE", "amount": 18.00}, {"code": "D", "amount": -1.005}]');
SELECT unit_price, line_total FROM ord.order_items JOIN ord.orders o ON o.id = order_id WHERE order_number = '536365' ORDER BY line_number;
SELECT code, description, amount FROM ord.order_charges ORDER BY code;
SELECT subtotal, charges, total FROM ord.import_order(:ann, '[]', '2011-01-04 10:00+00', charges => '[{"code": "POST", "amount": 5}]');
INSERT INTO way SELECT 'charges', id FROM ord.orders WHERE total = 5;
SELECT ord.transition_order(id, e) FROM way, unnest(ARRAY['process_payment', 'payment_success', 'start_fulfillment', 'dispatch', 'deliver', 'complete']) e WHERE name = 'charges';
SELECT expires_at > now() AS from_now FROM ord.stock_reservations r JOIN ord.orders o ON o.id = r.order_id WHERE order_number = '536365';
SELECT r.* FROM unnest(ARRAY[
    $$'[]', now()$$, $$'[{"sku": "PEN", "quantity": 1, "unit_price": -1}]', now()$$,
    $$'[{"sku": "PEN", "quantity": 1, "unit_price": "1"}]', now()$$, $$'[]', now(), charges => '[{"amount": 1}]'$$,
    $$'[]', now(), charges => '[{"code": "", "amount": 1}]'$$, $$'[]', now(), charges => '[{"code": "A"}]'$$,
    $$'[]', now(), charges => '{}'$$, $$'[]', now(), charges => NULL$$, $$'[{"sku": "PEN", "quantity": 1}]', NULL$$,
    $$'[{"sku": "PEN", "quantity": 1}]', 'infinity'$$,
    $$'[{"sku": "PEN", "quantity": 1}]', now(), ''$$,
    $$'[{"sku": "PEN", "quantity": 1}]', now(), '536365'$$,
    $$'[{"sku": "PEN", "quantity": 1}]', now(), '123456789012345678901'$$]) a,
    raised('SELECT ord.import_order(''00000000-0000-4000-8000-000000000001'', ' || a || ')') r;
SELECT * FROM techally.check_store('ord');

-- a caller's savepoint: nothing of a failed order survives, nor its context
BEGIN;
SAVEPOINT s;
SELECT ord.transition_order(id, 'process_payment', 'lost note') FROM way WHERE name = 'never';
ROLLBACK TO s;
UPDATE ord.orders SET status = 'cancelled' WHERE id = (SELECT id FROM way WHERE name = 'never');
SELECT event, note FROM ord.order_status_history JOIN way ON id = order_id WHERE name = 'never' ORDER BY sequence;
COMMIT;

-- roles: EXECUTE is enough, and needed
CREATE ROLE regress_techally_app;
GRANT USAGE ON SCHEMA ord TO regress_techally_app;
SET ROLE regress_techally_app;
SELECT ord.place_order(:ann, '[{"sku": "MUG", "quantity": 1}]');
SELECT techally.place_order('ord', :ann, '[{"sku": "MUG", "quantity": 1}]');
UPDATE ord.orders SET status = 'processing';
RESET ROLE;
GRANT EXECUTE ON FUNCTION ord.place_order(uuid, jsonb, jsonb, jsonb, text, text, text, interval, uuid) TO regress_techally_app;
SET ROLE regress_techally_app;
SELECT (ord.place_order(:ann, '[{"sku": "MUG", "quantity": 1}]')).total;
RESET ROLE;
-- who may change an order need not be able to write stock or history
GRANT SELECT, UPDATE ON ord.orders TO regress_techally_app;
SET ROLE regress_techally_app;
UPDATE ord.orders SET status = 'processing' WHERE order_number = '536365';
UPDATE ord.orders SET status = 'confirmed' WHERE order_number = '536365';
UPDATE ord.orders SET status = 'preparing' WHERE order_number = '536365';
UPDATE ord.orders SET status = 'shipped' WHERE order_number = '536365';
RESET ROLE;
SELECT status FROM ord.orders WHERE order_number = '536365';
SELECT * FROM techally.check_store('ord');

-- the other machines
SELECT techally.create_store('ord simple', 'simple');
SELECT techally.create_store('ord"cloud', 'cloudlab');
INSERT INTO "ord simple".users (id, email, password_hash, first_name, last_name) VALUES (:ann, 'a@example.com', 'x', 'A', 'B');
INSERT INTO "ord simple".products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 1, true);
SELECT "ord simple".receive_stock('MUG', 5);
SELECT status FROM "ord simple".place_order(:ann, '[{"sku": "MUG", "quantity": 2}]');
SELECT "ord simple".transition_order(id, e) FROM "ord simple".orders, unnest(ARRAY['process', 'ship', 'deliver']) e;
SELECT completed_at IS NOT NULL AS completed FROM "ord simple".orders;
SELECT "ord simple".return_order_lines(id, '[{"sku": "MUG", "quantity": 2}]') IS NOT NULL FROM "ord simple".orders;
SELECT status, "ord simple".available('MUG') FROM "ord simple".orders;
INSERT INTO "ord""cloud".users (id, email, password_hash, first_name, last_name) VALUES (:ann, 'a@example.com', 'x', 'A', 'B');
INSERT INTO "ord""cloud".products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 1, true);
SELECT "ord""cloud".receive_stock('MUG', 5);
SELECT status FROM "ord""cloud".place_order(:ann, '[{"sku": "MUG", "quantity": 2}]');
SELECT "ord""cloud".transition_order(id, e) FROM "ord""cloud".orders, unnest(ARRAY['submit', 'pay', 'refund']) e;
SELECT r.code, r.message FROM "ord""cloud".orders, raised(format('SELECT "ord""cloud".return_order_lines(%L, ''[{"sku": "MUG", "quantity": 2}]'')', id)) r;
SELECT status, "ord""cloud".available('MUG') FROM "ord""cloud".orders;
SELECT * FROM techally.check_store('ord simple');
SELECT * FROM techally.check_store('ord"cloud');

-- a store whose machine was taken away says so
BEGIN;
SELECT techally.detach_machine('ord.orders');
SELECT rule, subject, detail FROM techally.check_store('ord');
ROLLBACK;

SET techally.allow_drop = on;
SELECT techally.drop_store('ord simple'), techally.drop_store('ord"cloud'), techally.drop_store('ord');
RESET techally.allow_drop;
DROP TABLE way, before;
DROP FUNCTION raised(text);
DROP OWNED BY regress_techally_app;
DROP ROLE regress_techally_app;
