-- Stock: receiving, adjusting, transferring, reserving, releasing, expiring.
SET client_min_messages = warning;
\set SHOW_CONTEXT never
SELECT techally.create_store('inv');

-- what a statement raises, without OIDs, keys or line numbers
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

INSERT INTO inv.warehouses (code, name, priority) VALUES ('north', 'North', 200), ('closed', 'Closed', 1);
UPDATE inv.warehouses SET is_active = false WHERE code = 'closed';
INSERT INTO inv.products (sku, name, slug, price, is_published)
VALUES ('MUG', 'Mug', 'mug', 8.50, true), ('mug', 'Small mug', 'small-mug', 4.25, true),
       ('SHIRT', 'Shirt', 'shirt', 20, true), ('DRAFT', 'Draft', 'draft', 1, false),
       ('GONE', 'Gone', 'gone', 1, true), ('OFF', 'Off', 'off', 1, true);
UPDATE inv.products SET deleted_at = now() WHERE sku = 'GONE';
UPDATE inv.products SET is_active = false WHERE sku = 'OFF';
INSERT INTO inv.product_variants (product_id, sku, name, price)
SELECT id, v.sku, v.name, v.price FROM inv.products,
       (VALUES ('SHIRT-S', 'small', NULL), ('SHIRT-L', 'large', 22.00)) v(sku, name, price)
 WHERE products.sku = 'SHIRT';

-- receiving makes the row, and adds to it; upper and lower case are two SKUs
SELECT inv.receive_stock('MUG', 10), inv.receive_stock('MUG', 5), inv.receive_stock('mug', 3),
       inv.receive_stock('SHIRT-S', 4), inv.receive_stock('MUG', 2, 'north', 'return', 'found'),
       inv.receive_stock('DRAFT', 1);
SELECT p.sku, v.sku AS variant, w.code, i.quantity_on_hand, i.quantity_reserved, i.quantity_available
  FROM inv.inventory i JOIN inv.products p ON p.id = i.product_id
  LEFT JOIN inv.product_variants v ON v.id = i.variant_id
  JOIN inv.warehouses w ON w.id = i.warehouse_id ORDER BY p.sku COLLATE "C", w.code;
SELECT inv.available('MUG'), inv.available('MUG', 'main'), inv.available('MUG', 'closed'), inv.available('SHIRT-L');

-- what receiving refuses
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.receive_stock('NOPE', 1)$$,
    $$SELECT inv.receive_stock('GONE', 1)$$,
    $$SELECT inv.receive_stock('SHIRT', 1)$$,
    $$SELECT inv.receive_stock('MUG', 1, 'nowhere')$$,
    $$SELECT inv.receive_stock('MUG', 0)$$,
    $$SELECT inv.receive_stock('MUG', -1)$$,
    $$SELECT inv.receive_stock('MUG', 1, 'main', 'sale')$$,
    $$SELECT inv.receive_stock('MUG', 1, 'main', 'transfer')$$,
    $$SELECT inv.receive_stock('MUG', 1, 'main', 'theft')$$,
    $$SELECT inv.receive_stock(NULL, 1)$$,
    $$SELECT inv.receive_stock('MUG', NULL)$$,
    $$SELECT inv.receive_stock('MUG', 1, NULL)$$,
    $$SELECT inv.receive_stock('MUG', 2147483647)$$,
    $$SELECT techally.receive_stock('nostore', 'MUG', 1)$$,
    $$SELECT techally.receive_stock(NULL, 'MUG', 1)$$]) s, raised(s) r;

-- adjusting
SELECT inv.adjust_stock('MUG', -3, 'main', 'damage', 'dropped'), inv.adjust_stock('MUG', 1), inv.adjust_stock('DRAFT', -1);
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.adjust_stock('MUG', -14)$$,
    $$SELECT inv.adjust_stock('SHIRT-L', -1)$$,
    $$SELECT inv.adjust_stock('MUG', 0)$$,
    $$SELECT inv.adjust_stock('MUG', -2147483648)$$,
    $$SELECT inv.adjust_stock('MUG', 1, 'main', 'damage')$$,
    $$SELECT inv.adjust_stock('MUG', -1, 'main', 'purchase')$$]) s, raised(s) r;

-- transferring
SELECT inv.transfer_stock('MUG', 3, 'main', 'north', 'shelf full');
SELECT inv.transfer_stock('MUG', 1, 'north', 'closed');
SELECT inv.available('MUG', 'main') AS main, inv.available('MUG', 'north') AS north,
       inv.available('MUG', 'closed') AS closed, inv.available('MUG') AS anywhere;
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.transfer_stock('MUG', 11, 'main', 'north')$$,
    $$SELECT inv.transfer_stock('MUG', 1, 'main', 'main')$$,
    $$SELECT inv.transfer_stock('MUG', 1, 'main', 'nowhere')$$,
    $$SELECT inv.transfer_stock('MUG', -1, 'main', 'north')$$,
    $$SELECT inv.transfer_stock('MUG', 1, 'main', NULL)$$]) s, raised(s) r;
SELECT p.sku, w.code, m.movement_type, m.quantity, m.note
  FROM inv.stock_movements m JOIN inv.inventory_stock s ON s.id = m.stock_id
  JOIN inv.products p ON p.id = s.product_id JOIN inv.warehouses w ON w.id = s.warehouse_id ORDER BY m.id;

-- reserving: whole from the first warehouse that can, split only when none can
CREATE TABLE kept (name text PRIMARY KEY, id uuid);
CREATE VIEW parts AS
SELECT k.name, r.status, r.quantity, w.code, p.quantity AS part
  FROM kept k JOIN inv.stock_reservations r ON r.id = k.id
  LEFT JOIN inv.stock_reservation_parts p ON p.reservation_id = r.id
  LEFT JOIN inv.inventory_stock s ON s.id = p.stock_id
  LEFT JOIN inv.warehouses w ON w.id = s.warehouse_id;
INSERT INTO kept VALUES ('first', inv.reserve_stock('MUG', 8));
INSERT INTO kept VALUES ('whole', inv.reserve_stock('MUG', 3));
INSERT INTO kept VALUES ('split', inv.reserve_stock('MUG', 3));
SELECT * FROM parts ORDER BY name, code;
SELECT inv.available('MUG'), inv.available('MUG', 'closed');
-- a closed warehouse serves only who names it
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.reserve_stock('MUG', 1)$$,
    $$SELECT inv.reserve_stock('MUG', 2, 'closed')$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 5)$$,
    $$SELECT inv.reserve_stock('SHIRT', 1)$$,
    $$SELECT inv.reserve_stock('DRAFT', 1)$$,
    $$SELECT inv.reserve_stock('OFF', 1)$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 0)$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 1, NULL, '0 minutes')$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 1, NULL, '-1 day')$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 1, NULL, NULL)$$,
    $$SELECT inv.reserve_stock('SHIRT-S', 1, 'nowhere')$$]) s, raised(s) r;
INSERT INTO kept VALUES ('closed', inv.reserve_stock('MUG', 1, 'closed', '1 day', 'counter 3'));
SELECT reference, expires_at - created_at > '23 hours' AS lasts FROM inv.stock_reservations WHERE reference IS NOT NULL;

-- reserved units cannot be adjusted or moved away
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.adjust_stock('MUG', -1)$$,
    $$SELECT inv.transfer_stock('MUG', 1, 'main', 'north')$$]) s, raised(s) r;
SELECT * FROM techally.check_store('inv');

-- releasing, committing, extending
SELECT inv.release_reservation(id), inv.release_reservation(id) AS again FROM kept WHERE name = 'split';
SELECT inv.commit_reservation(id, 'sold over the counter') FROM kept WHERE name = 'whole';
SELECT inv.extend_reservation(id, '1 hour') > now() + '50 minutes' AS extended,
       inv.extend_reservation(id, '1 second') > now() + '50 minutes' AS never_shortened FROM kept WHERE name = 'first';
SELECT * FROM parts ORDER BY name, code;
SELECT r.* FROM kept, raised(format('SELECT inv.commit_reservation(%L)', id)) r WHERE name IN ('split', 'whole') ORDER BY name;
SELECT r.* FROM kept, raised(format('SELECT inv.extend_reservation(%L, ''1 hour'')', id)) r WHERE name IN ('split', 'whole') ORDER BY name;
SELECT inv.release_reservation(id) FROM kept WHERE name = 'whole';
SELECT r.* FROM unnest(ARRAY[
    $$SELECT inv.release_reservation(gen_random_uuid())$$,
    $$SELECT inv.commit_reservation(gen_random_uuid())$$,
    $$SELECT inv.extend_reservation(gen_random_uuid(), '1 hour')$$,
    $$SELECT inv.release_reservation(NULL)$$,
    $$SELECT inv.extend_reservation(gen_random_uuid(), NULL)$$,
    $$SELECT inv.expire_reservations(0)$$,
    $$SELECT inv.expire_reservations(NULL)$$,
    $$SELECT inv.available('NOPE')$$,
    $$SELECT inv.available('MUG', 'nowhere')$$]) s, raised(s) r;
SELECT * FROM techally.check_store('inv');

-- expiry is judged when it is read: not swept, yet free
UPDATE inv.stock_reservations SET expires_at = clock_timestamp() - interval '1 second' WHERE id = (SELECT id FROM kept WHERE name = 'first');
SELECT quantity_available FROM inv.inventory i JOIN inv.warehouses w ON w.id = i.warehouse_id AND w.code = 'main'
  JOIN inv.products p ON p.id = i.product_id AND p.sku = 'MUG';
SELECT inv.available('MUG', 'main');
SELECT r.* FROM kept, raised(format('SELECT inv.extend_reservation(%L, ''1 hour'')', id)) r WHERE name = 'first';
SELECT r.* FROM kept, raised(format('SELECT inv.commit_reservation(%L)', id)) r WHERE name = 'first';
-- a reservation sweeps what it needs before it is refused, also where that is not enough
SELECT r.* FROM raised($$SELECT inv.reserve_stock('MUG', 11, 'main')$$) r;
INSERT INTO kept VALUES ('after', inv.reserve_stock('MUG', 10, 'main'));
SELECT * FROM parts WHERE name IN ('first', 'after') ORDER BY name, code;
SELECT * FROM techally.check_store('inv');
SELECT inv.release_reservation(id) FROM kept WHERE name = 'first';
SELECT inv.expire_reservations();
UPDATE inv.stock_reservations SET expires_at = clock_timestamp() - interval '1 second' WHERE status = 'active';
SELECT inv.expire_reservations(1), inv.expire_reservations(), inv.expire_reservations();
SELECT * FROM parts ORDER BY name, code;
SELECT inv.available('MUG');
SELECT * FROM techally.check_store('inv');

-- stripes: rows of one SKU and warehouse are one stock
UPDATE inv.inventory_stock SET reorder_point = 5 WHERE quantity_on_hand > 5;
WITH twin AS (INSERT INTO inv.inventory_stock (product_id, warehouse_id, stripe, quantity_on_hand)
              SELECT s.product_id, s.warehouse_id, 1, 7 FROM inv.inventory_stock s
                JOIN inv.products p ON p.id = s.product_id AND p.sku = 'mug' RETURNING id)
INSERT INTO inv.stock_movements (stock_id, movement_type, quantity) SELECT id, 'purchase', 7 FROM twin;
SELECT count(*), sum(quantity_on_hand) FROM inv.inventory i JOIN inv.products p ON p.id = i.product_id AND p.sku = 'mug';
INSERT INTO kept VALUES ('striped', inv.reserve_stock('mug', 9));
SELECT count(*), sum(part) FROM parts WHERE name = 'striped';
SELECT inv.adjust_stock('mug', -1), inv.available('mug');
SELECT * FROM techally.check_store('inv');

-- the view is not for writing
SELECT r.* FROM unnest(ARRAY[
    $$UPDATE inv.inventory SET quantity_on_hand = 100$$,
    $$DELETE FROM inv.inventory$$]) s, raised(s) r;

-- who did it
BEGIN;
SET LOCAL app.current_user_id = '11111111-2222-4333-8444-555555555555';
SET LOCAL app.request_id = 'req-1';
SELECT inv.receive_stock('SHIRT-L', 1);
COMMIT;
SELECT actor, request_id FROM inv.stock_movements ORDER BY id DESC LIMIT 1;
SELECT inv.receive_stock('SHIRT-L', 1);
SELECT actor, request_id FROM inv.stock_movements ORDER BY id DESC LIMIT 1;
SET app.current_user_id = 'somebody';
SELECT r.code, r.message FROM raised($$SELECT inv.receive_stock('SHIRT-L', 1)$$) r;
RESET app.current_user_id;

-- a role of no privileges
CREATE ROLE regress_techally_clerk;
GRANT USAGE ON SCHEMA inv TO regress_techally_clerk;
SET ROLE regress_techally_clerk;
SELECT inv.receive_stock('MUG', 1);
SELECT techally.receive_stock('inv', 'MUG', 1);
RESET ROLE;
GRANT EXECUTE ON FUNCTION inv.receive_stock(text, integer, text, text, text) TO regress_techally_clerk;
SET ROLE regress_techally_clerk;
SELECT inv.receive_stock('MUG', 1);
SELECT * FROM inv.inventory;
RESET ROLE;
-- a search_path of the caller's own changes nothing
CREATE SCHEMA trap;
CREATE FUNCTION trap.unnest(text[], text[], OUT sku text, OUT warehouse text) RETURNS SETOF record LANGUAGE sql AS 'SELECT NULL::text, NULL::text';
SET search_path = trap, inv;
SELECT inv.receive_stock('MUG', 1), receive_stock('MUG', 1);
RESET search_path;
SELECT * FROM techally.check_store('inv');

-- check_store finds what is wrong
BEGIN;
UPDATE inv.inventory_stock SET quantity_on_hand = quantity_on_hand + 1, quantity_reserved = 1
 WHERE product_id = (SELECT id FROM inv.products WHERE sku = 'MUG') AND quantity_on_hand > 10;
ALTER TABLE inv.orders DISABLE TRIGGER techally_stock_effects;
SELECT rule, detail FROM techally.check_store('inv') ORDER BY rule, detail;
ROLLBACK;
SELECT r.* FROM raised($$SELECT * FROM techally.check_store('nostore')$$) r;
SELECT r.* FROM raised($$SELECT * FROM techally.check_store(NULL)$$) r;

DROP SCHEMA trap CASCADE;
DROP VIEW parts;
DROP TABLE kept;
SELECT techally.drop_store('inv');
DROP FUNCTION raised(text);
DROP ROLE regress_techally_clerk;
