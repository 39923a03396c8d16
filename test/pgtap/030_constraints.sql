-- What a store's tables refuse, whoever writes them.
BEGIN;
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SET search_path = public, pg_catalog;
DO $$ BEGIN PERFORM techally.create_store('pgtap_shop'); END $$;
SET search_path = pgtap_shop, public, pg_catalog;
SET techally.hard_delete = on;      -- what foreign keys say of a DELETE that means it

INSERT INTO users (id, email, password_hash, first_name, last_name)
    VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.org', 'x', 'Ann', 'Smith');
INSERT INTO products (id, sku, name, slug, price, is_published) VALUES
    ('a0000000-0000-4000-8000-000000000000', 'A', 'Anvil', 'anvil', 10.00, true),
    ('c0000000-0000-4000-8000-000000000000', 'C', 'Coat', 'coat', 80.00, true);
INSERT INTO product_variants (id, product_id, sku, name)
    VALUES ('c1000000-0000-4000-8000-000000000000', 'c0000000-0000-4000-8000-000000000000', 'C-S', 'small');
DO $$ BEGIN
    PERFORM pgtap_shop.receive_stock('A', 10);
    PERFORM pgtap_shop.receive_stock('C-S', 10);
    PERFORM pgtap_shop.reserve_stock('A', 4);
    PERFORM pgtap_shop.place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "A", "quantity": 2}]');
END $$;

SELECT no_plan();

CREATE FUNCTION pg_temp.refuses(relation text, rule text, statement text) RETURNS SETOF text LANGUAGE sql AS
$$ SELECT throws_ok(statement, '23514',
                    format('new row for relation "%s" violates check constraint "%s"', relation, rule), rule || ': ' || statement) $$;
CREATE FUNCTION pg_temp.refuses_double(rule text, statement text) RETURNS SETOF text LANGUAGE sql AS
$$ SELECT throws_ok(statement, '23505',
                    format('duplicate key value violates unique constraint "%s"', rule), rule || ': ' || statement) $$;

-- orders
SELECT pg_temp.refuses('orders', 'chk_orders_total', s) FROM unnest(ARRAY[
    'UPDATE orders SET total = total + 0.01',
    'UPDATE orders SET subtotal = subtotal - 1',
    'UPDATE orders SET tax = 1',
    'UPDATE orders SET shipping = 1',
    'UPDATE orders SET charges = -1',
    'UPDATE orders SET discount = 1']) AS s;
SELECT lives_ok('UPDATE orders SET tax = 3.80, shipping = 5, charges = -1, discount = 2.5, total = subtotal + 5.30',
                'subtotal + tax + shipping + charges - discount = total');
SELECT pg_temp.refuses('orders', 'chk_orders_amounts', s) FROM unnest(ARRAY[
    'UPDATE orders SET tax = -1, total = total - tax - 1',
    'UPDATE orders SET shipping = -1, total = total - shipping - 1',
    'UPDATE orders SET discount = -1, total = total + discount + 1',
    'UPDATE orders SET subtotal = -1, total = total - subtotal - 1']) AS s;
SELECT pg_temp.refuses('orders', 'chk_orders_currency', format('UPDATE orders SET currency = %L', c))
  FROM unnest(ARRAY['', 'EU', 'eur', 'E1R', ' EU']) AS c;
SELECT throws_ok('UPDATE orders SET currency = ''EURO''', '22001', NULL, 'a currency has three letters');
SELECT throws_ok(format('UPDATE orders SET %I = NULL', c), '23502', NULL, 'orders.' || c || ' is not NULL')
  FROM unnest(ARRAY['order_number', 'user_id', 'subtotal', 'tax', 'shipping', 'discount', 'charges', 'total', 'currency', 'created_at']) AS c;
SELECT throws_ok('UPDATE orders SET order_number = repeat(''9'', 21)', '22001', NULL, 'an order number has at most 20 characters');
SELECT cmp_ok(max(length(order_number)), '<=', 20, 'those that are drawn have') FROM orders;
SELECT throws_ok('UPDATE orders SET user_id = gen_random_uuid()', '23503', NULL, 'an order''s user exists');
SELECT throws_ok('DELETE FROM users', '23503', NULL, 'a user with orders stays');
SELECT throws_ok('UPDATE orders SET status = ''lost''', 'TA001', NULL, 'a state that the machine does not know');
SELECT throws_ok('UPDATE orders SET status = ''completed''', 'TA001', NULL, 'a state that does not follow');
SELECT throws_ok('INSERT INTO orders (order_number, user_id, status, total) SELECT ''X-1'', id, ''shipped'', 0 FROM users',
                 'TA001', NULL, 'a state that is not the initial one');
SELECT lives_ok('INSERT INTO orders (order_number, user_id, total) SELECT ''X-1'', id, 0 FROM users', 'the initial state is the default');
SELECT is(status::text, 'pending', 'the initial state') FROM orders WHERE order_number = 'X-1';
SELECT pg_temp.refuses_double('uk_orders_order_number', 'UPDATE orders SET order_number = ''X-1''');
SELECT lives_ok('UPDATE orders SET idempotency_key = NULL', 'any number of orders without a key');
SELECT pg_temp.refuses_double('uk_orders_idempotency', 'UPDATE orders SET idempotency_key = ''k''');

-- their lines
SELECT pg_temp.refuses('order_items', 'chk_order_items_quantity', 'UPDATE order_items SET quantity = ' || q)
  FROM unnest(ARRAY[0, -1]) AS q;
SELECT pg_temp.refuses('order_items', 'chk_order_items_unit_price', 'UPDATE order_items SET unit_price = -0.01');
SELECT throws_ok('UPDATE order_items SET line_total = 1', '428C9', NULL, 'a line''s total is derived');
SELECT lives_ok('UPDATE order_items SET unit_price = 0.3333, quantity = 4', 'a price of less than a cent');
SELECT is(line_total, 1.33, 'a line''s total is rounded to cents') FROM order_items;
SELECT pg_temp.refuses_double('uk_order_items_line',
    'INSERT INTO order_items (order_id, line_number, product_id, sku, name, quantity, unit_price)
     SELECT order_id, line_number, product_id, sku, name, quantity, unit_price FROM order_items');
SELECT throws_ok('UPDATE order_items SET product_id = gen_random_uuid()', '23503', NULL, 'a line''s product exists');
-- restrict_violation, from PostgreSQL 18 on
SELECT throws_ok('DELETE FROM products WHERE sku = ''A''',
    CASE WHEN current_setting('server_version_num')::int >= 180000 THEN '23001' ELSE '23503' END::bpchar, NULL, 'a product that was ordered stays');
SELECT pg_temp.refuses('order_charges', 'chk_order_charges_code', 'INSERT INTO order_charges (order_id, code, amount) SELECT id, '''', 1 FROM orders');
SELECT lives_ok('INSERT INTO order_returns (id, order_id, amount) SELECT ''d0000000-0000-4000-8000-000000000000'', order_id, 0 FROM order_items', 'a return');
SELECT pg_temp.refuses('order_return_items', 'chk_order_return_items_quantity',
    'INSERT INTO order_return_items (return_id, order_item_id, quantity, amount)
     SELECT ''d0000000-0000-4000-8000-000000000000'', id, 0, 0 FROM order_items');
SELECT pg_temp.refuses_double('order_status_history_pkey', 'INSERT INTO order_status_history (order_id, sequence, to_status) SELECT order_id, sequence, ''x'' FROM order_status_history');

-- stock
SELECT pg_temp.refuses('inventory_stock', 'chk_inventory_stock_quantities', s) FROM unnest(ARRAY[
    'UPDATE inventory_stock SET quantity_on_hand = -1',
    'UPDATE inventory_stock SET quantity_reserved = -1',
    'UPDATE inventory_stock SET quantity_on_hand = quantity_reserved - 1',
    'UPDATE inventory_stock SET quantity_reserved = quantity_on_hand + 1']) AS s;
SELECT pg_temp.refuses('inventory_stock', 'chk_inventory_stock_stripe', 'UPDATE inventory_stock SET stripe = -1');
SELECT pg_temp.refuses_double('uk_inventory_stock_product',
    'INSERT INTO inventory_stock (product_id, warehouse_id) SELECT product_id, warehouse_id FROM inventory_stock WHERE variant_id IS NULL');
SELECT pg_temp.refuses_double('uk_inventory_stock_variant',
    'INSERT INTO inventory_stock (product_id, variant_id, warehouse_id) SELECT product_id, variant_id, warehouse_id FROM inventory_stock WHERE variant_id IS NOT NULL');
SELECT throws_ok(s, NULL, NULL, s) FROM unnest(ARRAY[
    'INSERT INTO inventory (product_id) SELECT id FROM products', 'UPDATE inventory SET quantity_on_hand = 1', 'DELETE FROM inventory']) AS s;
SELECT pg_temp.refuses('stock_reservations', 'chk_stock_reservations_quantity', 'UPDATE stock_reservations SET quantity = 0');
SELECT pg_temp.refuses('stock_reservations', 'chk_stock_reservations_status', 'UPDATE stock_reservations SET status = ''lost''');
SELECT pg_temp.refuses('stock_reservation_parts', 'chk_stock_reservation_parts_quantity', 'UPDATE stock_reservation_parts SET quantity = 0');
SELECT pg_temp.refuses('stock_movements', 'chk_stock_movements_quantity',
    format('INSERT INTO stock_movements (stock_id, movement_type, quantity) SELECT id, %L, %s FROM inventory_stock', t, q))
  FROM (VALUES ('purchase', -1), ('return', -1), ('sale', 1), ('damage', 1), ('adjustment', 0), ('transfer', 0), ('purchase', 0)) AS m(t, q);
SELECT pg_temp.refuses('stock_movements', 'chk_stock_movements_type',
    'INSERT INTO stock_movements (stock_id, movement_type, quantity) SELECT id, ''theft'', -1 FROM inventory_stock');
SELECT throws_ok('INSERT INTO stock_movements (stock_id, movement_type, quantity) VALUES (gen_random_uuid(), ''purchase'', 1)',
                 '23503', NULL, 'a movement''s stock row exists');
SELECT lives_ok('INSERT INTO stock_stripes (stock_id, stripes) SELECT id, 2 FROM inventory_stock LIMIT 1', 'stock that is spread');
SELECT pg_temp.refuses('stock_stripes', 'chk_stock_stripes_stripes', 'UPDATE stock_stripes SET stripes = 1');
SELECT pg_temp.refuses_double('stock_stripes_pkey', 'INSERT INTO stock_stripes (stock_id, stripes) SELECT stock_id, 2 FROM stock_stripes');
SELECT throws_ok('INSERT INTO stock_stripes (stock_id, stripes) VALUES (gen_random_uuid(), 2)',
                 '23503', NULL, 'a spread stock''s first row exists');
SELECT pg_temp.refuses('warehouses', 'chk_warehouses_code', 'INSERT INTO warehouses (code, name) VALUES ('''', ''x'')');
SELECT pg_temp.refuses_double('uk_warehouses_code', 'INSERT INTO warehouses (code, name) VALUES (''main'', ''x'')');

-- the catalogue
SELECT pg_temp.refuses('products', 'chk_products_price', 'UPDATE products SET price = -0.01');
SELECT lives_ok('UPDATE products SET price = 0 WHERE sku = ''A''', 'a free sample is a product');
SELECT pg_temp.refuses('products', 'chk_products_cost', 'UPDATE products SET cost = -1');
SELECT pg_temp.refuses('products', 'chk_products_compare_at_price', 'UPDATE products SET compare_at_price = price');
SELECT pg_temp.refuses('product_variants', 'chk_product_variants_price', 'UPDATE product_variants SET price = -1');
SELECT pg_temp.refuses('categories', 'chk_categories_no_self_parent',
    'INSERT INTO categories (id, name, slug, parent_id) VALUES (''e0000000-0000-4000-8000-000000000000'', ''x'', ''x'', ''e0000000-0000-4000-8000-000000000000'')');
SELECT pg_temp.refuses_double('uk_products_sku', 'INSERT INTO products (sku, name, slug, price) VALUES (''A'', ''x'', ''x'', 1)');
SELECT pg_temp.refuses_double('uk_products_slug', 'INSERT INTO products (sku, name, slug, price) VALUES (''X'', ''x'', ''anvil'', 1)');
SELECT throws_ok(s, '23505', NULL, 'SKUs are unique across products and variants: ' || s) FROM unnest(ARRAY[
    'INSERT INTO products (sku, name, slug, price) VALUES (''C-S'', ''x'', ''x'', 1)',
    'INSERT INTO product_variants (product_id, sku, name) SELECT id, ''A'', ''x'' FROM products WHERE sku = ''C''',
    'UPDATE products SET sku = ''C-S'' WHERE sku = ''A''',
    'UPDATE product_variants SET sku = ''A''']) AS s;

-- people
SELECT pg_temp.refuses('users', 'chk_users_email_format', format('UPDATE users SET email = %L', e))
  FROM unnest(ARRAY['', 'ann', 'ann@', '@example.org', 'ann@example', 'ann smith@example.org']) AS e;
SELECT pg_temp.refuses_double('uk_users_email', 'INSERT INTO users (email, password_hash, first_name, last_name) VALUES (''ann@example.org'', ''x'', ''x'', ''x'')');
SELECT pg_temp.refuses('users', 'chk_users_status', 'UPDATE users SET status = ''asleep''');

SELECT * FROM finish();
ROLLBACK;
