-- Stock spread over several rows: what the functions answer is the same.
SET client_min_messages = warning;
SELECT techally.create_store('stripes');
SET search_path = pg_temp, public;

CREATE FUNCTION pg_temp.raised(statement text, OUT code text, OUT message text, OUT detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := 'none';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
END $$;

INSERT INTO stripes.users (id, email, password_hash, first_name, last_name)
VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.org', 'x', 'Ann', 'Smith');
INSERT INTO stripes.products (sku, name, slug, price, is_published) VALUES
    ('HOT', 'Hot item', 'hot', 10, true), ('COLD', 'Cold item', 'cold', 5, true), ('TEE', 'Tee', 'tee', 7, true);
INSERT INTO stripes.product_variants (product_id, sku, name)
SELECT id, 'TEE-' || size, size FROM stripes.products, unnest(ARRAY['S', 'L']) size WHERE sku = 'TEE';
INSERT INTO stripes.warehouses (code, name, priority) VALUES ('east', 'East', 200);

-- what it looks like inside
CREATE VIEW pg_temp.inside AS
SELECT k.sku, w.code AS warehouse, count(*) AS rows,
       sum(s.quantity_on_hand) AS on_hand, sum(s.quantity_reserved) AS reserved,
       min(s.quantity_on_hand - s.quantity_reserved) AS least, max(s.quantity_on_hand - s.quantity_reserved) AS most
  FROM stripes.inventory_stock s
  JOIN stripes.skus k ON k.product_id = s.product_id AND k.variant_id IS NOT DISTINCT FROM s.variant_id
  JOIN stripes.warehouses w ON w.id = s.warehouse_id
 GROUP BY 1, 2 ORDER BY 1, 2;

-- spreading: evenly, the first get one more
SELECT stripes.receive_stock('HOT', 103), stripes.receive_stock('HOT', 50, 'east'), stripes.receive_stock('TEE-L', 9);
SELECT stripes.stripe_stock('HOT', 'main', 10), stripes.stripe_stock('TEE-L', 'main', 4);
SELECT * FROM pg_temp.inside;
SELECT sku, warehouse, stripes, automatic, since > now() - interval '1 minute' AS recent
  FROM techally.hot_stock WHERE store = 'stripes';
SELECT quantity_on_hand, quantity_available FROM stripes.inventory ORDER BY 1;
SELECT stripes.available('HOT'), stripes.available('HOT', 'main'), stripes.available('TEE-L');
SELECT rule, detail FROM techally.check_store('stripes');

-- one stripe, several stripes, both warehouses: the rules for them are as ever
CREATE TEMP TABLE kept (name text, id uuid);
INSERT INTO kept VALUES ('one', stripes.reserve_stock('HOT', 1)), ('many', stripes.reserve_stock('HOT', 60));
INSERT INTO kept VALUES ('all', stripes.reserve_stock('HOT', 80));
CREATE VIEW pg_temp.served AS
SELECT k.name, w.code, count(*) > 1 AS several, sum(p.quantity) AS units
  FROM kept k JOIN stripes.stock_reservation_parts p ON p.reservation_id = k.id
  JOIN stripes.inventory_stock s ON s.id = p.stock_id JOIN stripes.warehouses w ON w.id = s.warehouse_id
 GROUP BY 1, 2 ORDER BY 1, 2;
SELECT * FROM pg_temp.served;
SELECT stripes.available('HOT'), stripes.available('HOT', 'main');
SELECT r.code, r.message, r.detail FROM unnest(ARRAY[
    $$SELECT stripes.reserve_stock('HOT', 13)$$,
    $$SELECT stripes.reserve_stock('HOT', 1, 'main')$$,
    $$SELECT stripes.adjust_stock('HOT', -1)$$,
    $$SELECT stripes.transfer_stock('HOT', 1, 'main', 'east')$$]) s, pg_temp.raised(s) r;
SELECT stripes.release_reservation(id) FROM kept WHERE name = 'all';
SELECT stripes.commit_reservation(id) FROM kept WHERE name = 'many';
SELECT stripes.available('HOT'), stripes.available('HOT', 'main');
SELECT rule, detail FROM techally.check_store('stripes');

-- adjusting and transferring more than one stripe has
SELECT stripes.adjust_stock('HOT', -30), stripes.available('HOT', 'main');
SELECT stripes.transfer_stock('HOT', 11, 'main', 'east'), stripes.available('HOT', 'main'), stripes.available('HOT', 'east');
SELECT stripes.transfer_stock('HOT', 61, 'east', 'main'), stripes.available('HOT', 'main'), stripes.available('HOT', 'east');
-- what is received goes to all of them
SELECT stripes.receive_stock('HOT', 37), stripes.adjust_stock('HOT', 10);
SELECT sku, warehouse, rows, on_hand, reserved, most - least <= 2 AS even FROM pg_temp.inside;
SELECT rule, detail FROM techally.check_store('stripes');

-- orders: several lines, several of one SKU, their walk and their return
SELECT stripes.receive_stock('COLD', 20);
SELECT status, total FROM stripes.place_order('00000000-0000-4000-8000-000000000001',
    '[{"sku": "HOT", "quantity": 30}, {"sku": "COLD", "quantity": 2}, {"sku": "HOT", "quantity": 40, "warehouse": "main"}, {"sku": "TEE-L", "quantity": 7}]',
    idempotency_key => 'o1');
SELECT stripes.available('HOT'), stripes.available('TEE-L');
SELECT pg_temp.raised($$SELECT stripes.place_order('00000000-0000-4000-8000-000000000001',
    '[{"sku": "HOT", "quantity": 200}, {"sku": "TEE-L", "quantity": 3}, {"sku": "COLD", "quantity": 1}]')$$);
SELECT stripes.transition_order(o.id, e.event) FROM stripes.orders o,
    unnest(ARRAY['process_payment', 'payment_success', 'start_fulfillment', 'dispatch', 'deliver']) WITH ORDINALITY e(event, n) ORDER BY n;
SELECT stripes.return_order_lines(id, '[{"sku": "TEE-L", "quantity": 5}]') IS NOT NULL AS returned FROM stripes.orders;
SELECT stripes.transition_order(id, 'return') FROM stripes.orders;
SELECT stripes.available('HOT'), stripes.available('TEE-L'), stripes.available('COLD');
SELECT rule, detail FROM techally.check_store('stripes');

-- expired units are free before anybody has swept them, and when somebody has
INSERT INTO kept VALUES ('brief', stripes.reserve_stock('TEE-L', 9));
UPDATE stripes.stock_reservations SET expires_at = clock_timestamp() WHERE id = (SELECT id FROM kept WHERE name = 'brief');
SELECT stripes.available('TEE-L');
INSERT INTO kept VALUES ('next', stripes.reserve_stock('TEE-L', 8));
SELECT stripes.available('TEE-L'), stripes.expire_reservations(), stripes.available('TEE-L');
SELECT rule, detail FROM techally.check_store('stripes');

-- fewer, more, none: what is reserved stays where it is and comes back there
SELECT stripes.stripe_stock('HOT', 'main', 3);
SELECT stripes.stripe_stock('HOT', 'main', 20);
SELECT stripes.stripe_stock('HOT', 'main', 1), stripes.stripe_stock('TEE-L', 'main', 1);
SELECT * FROM techally.hot_stock WHERE store = 'stripes';
SELECT sku, warehouse, rows, on_hand, reserved FROM pg_temp.inside;
SELECT stripe, quantity_on_hand > quantity_reserved AS free FROM stripes.inventory_stock
 WHERE quantity_on_hand > quantity_reserved AND stripe > 0;
SELECT stripes.release_reservation(id) FROM kept WHERE name = 'next';
INSERT INTO kept VALUES ('folded', stripes.reserve_stock('TEE-L', 9));
SELECT name, code, units FROM pg_temp.served WHERE name = 'folded';
SELECT rule, detail FROM techally.check_store('stripes');
-- a SKU without stock can be spread, too
SELECT stripes.stripe_stock('TEE-S', 'main', 4), stripes.receive_stock('TEE-S', 8);
SELECT * FROM pg_temp.inside WHERE sku = 'TEE-S';

-- errors
SELECT r.code, r.message FROM unnest(ARRAY[
    $$SELECT stripes.stripe_stock('HOT', 'main', 0)$$,
    $$SELECT stripes.stripe_stock('HOT', 'main', 1001)$$,
    $$SELECT stripes.stripe_stock('HOT', 'nowhere', 2)$$,
    $$SELECT stripes.stripe_stock('nope', 'main', 2)$$,
    $$SELECT stripes.stripe_stock('HOT', NULL, 2)$$,
    $$SELECT stripes.stripe_stock('HOT', 'main', NULL)$$,
    $$SELECT techally.stripe_stock('nowhere', 'HOT', 'main', 2)$$,
    $$SELECT techally.fold_cooled_stock('stripes', NULL)$$]) s, pg_temp.raised(s) r;

-- cooling: what was spread by itself and is left alone folds, the rest stays
SELECT stripes.stripe_stock('HOT', 'main', 8), stripes.stripe_stock('COLD', 'main', 8);
UPDATE stripes.stock_stripes SET automatic = true WHERE stock_id IN
    (SELECT s.id FROM stripes.inventory_stock s JOIN stripes.products p ON p.id = s.product_id WHERE p.sku IN ('HOT', 'COLD'));
SELECT techally.fold_cooled_stock('stripes', '0');      -- looked at for the first time
UPDATE stripes.inventory_stock s SET reorder_point = 1 FROM stripes.products p WHERE p.id = s.product_id AND p.sku = 'HOT';
SELECT techally.fold_cooled_stock('stripes', '0');      -- one was in use
SELECT sku, stripes, automatic FROM techally.hot_stock WHERE store = 'stripes';
SELECT techally.fold_cooled_stock('stripes', '1 hour'), techally.fold_cooled_stock('stripes', '0');
SELECT sku, stripes, automatic FROM techally.hot_stock WHERE store = 'stripes';
SELECT rule, detail FROM techally.check_store('stripes');

-- where a trigger keeps rows back nothing moves: half of it would make units, or lose them
CREATE FUNCTION pg_temp.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER keep BEFORE UPDATE ON stripes.inventory_stock FOR EACH ROW WHEN (OLD.stripe = 2) EXECUTE FUNCTION pg_temp.keep();
CREATE TRIGGER keep_new BEFORE INSERT ON stripes.inventory_stock FOR EACH ROW WHEN (NEW.stripe IN (0, 30)) EXECUTE FUNCTION pg_temp.keep();
SELECT r.code, r.message FROM unnest(ARRAY[
    $$SELECT stripes.stripe_stock('COLD', 'main', 7)$$,
    $$SELECT stripes.stripe_stock('HOT', 'main', 40)$$,
    $$SELECT stripes.stripe_stock('COLD', 'east', 1)$$]) s, pg_temp.raised(s) r;
DROP TRIGGER keep ON stripes.inventory_stock;
DROP TRIGGER keep_new ON stripes.inventory_stock;
SELECT rule, detail FROM techally.check_store('stripes');

-- who may: nobody by default; the view shows what its reader may read
CREATE ROLE regress_stripes;
GRANT USAGE ON SCHEMA stripes TO regress_stripes;
SET ROLE regress_stripes;
SELECT count(*) FROM techally.hot_stock WHERE store = 'stripes';
SELECT stripes.stripe_stock('HOT', 'main', 2);
RESET ROLE;
GRANT SELECT ON stripes.stock_stripes, stripes.inventory_stock, stripes.skus, stripes.warehouses TO regress_stripes;
GRANT EXECUTE ON FUNCTION stripes.stripe_stock, stripes.reserve_stock TO regress_stripes;
SET ROLE regress_stripes;
SELECT stripes.stripe_stock('HOT', 'main', 2);
SELECT sku, stripes FROM techally.hot_stock WHERE store = 'stripes';
SELECT stripes.reserve_stock('HOT', 1) IS NOT NULL AS reserved;
RESET ROLE;

-- a store that knows nothing of stripes
SET techally.allow_drop = on;
SELECT techally.upgrade_store('stripes', '20261121_000500');
SELECT count(*) FROM techally.hot_stock WHERE store = 'stripes';
SELECT stripes.available('HOT') > 0 AS there, stripes.reserve_stock('HOT', 100) IS NOT NULL AS reserved, stripes.receive_stock('COLD', 5);
SELECT techally.fold_cooled_stock('stripes');
SELECT rule, detail FROM techally.check_store('stripes');
SELECT techally.upgrade_store('stripes');

DROP OWNED BY regress_stripes;
DROP ROLE regress_stripes;
DROP VIEW pg_temp.inside, pg_temp.served;
SELECT techally.drop_store('stripes');
