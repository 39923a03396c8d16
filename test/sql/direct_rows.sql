-- Rows that are read and written without statements: whatever the tables'
-- owner has added to them works as it would with statements.
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET client_min_messages = warning;

SELECT techally.create_store('direct');
INSERT INTO direct.users (id, email, password_hash, first_name, last_name)
VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.com', 'x', 'Ann', 'Smith');
INSERT INTO direct.products (sku, name, slug, price, is_published)
SELECT 'P' || i, 'Product ' || i, 'p' || i, i, true FROM generate_series(1, 20) i;
SELECT sum(direct.receive_stock('P' || i, 1000)) FROM generate_series(1, 20) i;

-- an order of so many lines, of so many units each: its total, or what went wrong
CREATE FUNCTION direct.buy(lines int, units int DEFAULT 1) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (direct.place_order('00000000-0000-4000-8000-000000000001',
        (SELECT jsonb_agg(jsonb_build_object('sku', 'P' || i, 'quantity', units)) FROM generate_series(1, lines) i))).total;
EXCEPTION WHEN OTHERS THEN
    RETURN sqlstate;
END $$;

-- the same, both ways
CREATE FUNCTION direct.both(lines int, units int DEFAULT 1, OUT directly text, OUT by_statement text)
LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL techally.direct_rows = on;
    directly := direct.buy(lines, units);
    SET LOCAL techally.direct_rows = off;
    by_statement := direct.buy(lines, units);
    SET LOCAL techally.direct_rows = on;
END $$;

SELECT * FROM direct.both(20);

-- a trigger whose function keeps something between its calls: a row after the
-- other must find it still there
CREATE FUNCTION direct.keep() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$ BEGIN PERFORM repeat('x', 10000); RETURN NEW; END $$;
CREATE TRIGGER keep BEFORE INSERT ON direct.order_items FOR EACH ROW EXECUTE FUNCTION direct.keep();
CREATE TRIGGER keep BEFORE INSERT ON direct.stock_reservation_parts FOR EACH ROW EXECUTE FUNCTION direct.keep();
CREATE TRIGGER keep BEFORE UPDATE ON direct.inventory_stock FOR EACH ROW EXECUTE FUNCTION direct.keep();
SELECT * FROM direct.both(20);
DROP TRIGGER keep ON direct.order_items;
DROP TRIGGER keep ON direct.stock_reservation_parts;
DROP TRIGGER keep ON direct.inventory_stock;

-- a function in a CHECK constraint that is replaced
CREATE FUNCTION direct.allowed(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 0';
ALTER TABLE direct.order_items ADD CONSTRAINT allowed CHECK (direct.allowed(quantity));
SELECT * FROM direct.both(1);
CREATE OR REPLACE FUNCTION direct.allowed(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 1';
SELECT * FROM direct.both(1);
SELECT * FROM direct.both(1, 2);

-- one that fails in the middle of its work, and is called again
CREATE OR REPLACE FUNCTION direct.allowed(units int) RETURNS boolean LANGUAGE sql STABLE
AS 'SELECT bool_and(6 / (4 - units) > priority - 1000) FROM direct.warehouses';
BEGIN;
SELECT * FROM direct.both(2, 1);
SELECT * FROM direct.both(2, 4);
SELECT * FROM direct.both(2, 1);
COMMIT;
ALTER TABLE direct.order_items DROP CONSTRAINT allowed;

-- one that reads what the order has written before
CREATE FUNCTION direct.is_placed(uuid) RETURNS boolean LANGUAGE plpgsql STABLE
AS $$ BEGIN RETURN EXISTS (SELECT FROM direct.orders WHERE id = $1); END $$;
ALTER TABLE direct.order_items ADD CONSTRAINT placed CHECK (direct.is_placed(order_id));
SELECT * FROM direct.both(2);
ALTER TABLE direct.order_items DROP CONSTRAINT placed;

-- called by a command that has just written the row
WITH o AS (UPDATE direct.orders SET notes = 'x' WHERE total = 210
           RETURNING techally.transition_order('direct', id, 'cancel') AS status)
SELECT status, count(*) FROM o GROUP BY 1;

-- a trigger that cancels a change of stock must not go unnoticed
CREATE FUNCTION direct.cancel() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER cancel BEFORE UPDATE ON direct.inventory_stock FOR EACH ROW EXECUTE FUNCTION direct.cancel();
SELECT * FROM direct.both(1);
DROP TRIGGER cancel ON direct.inventory_stock;

-- a trigger that comes back to the same table, and one that changes the stock
-- that is being reserved
CREATE FUNCTION direct.again() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN IF NEW.quantity = 7 THEN PERFORM direct.buy(1, 1); END IF; RETURN NEW; END $$;
CREATE TRIGGER again BEFORE INSERT ON direct.order_items FOR EACH ROW EXECUTE FUNCTION direct.again();
SELECT * FROM direct.both(2, 7);
DROP TRIGGER again ON direct.order_items;
CREATE FUNCTION direct.reorder() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN UPDATE direct.inventory_stock SET reorder_point = coalesce(reorder_point, 0) + 1; RETURN NULL; END $$;
CREATE TRIGGER reorder AFTER INSERT ON direct.stock_reservations FOR EACH ROW EXECUTE FUNCTION direct.reorder();
SELECT * FROM direct.both(2);
DROP TRIGGER reorder ON direct.stock_reservations;
SELECT DISTINCT reorder_point FROM direct.inventory_stock;

-- a generated column follows
ALTER TABLE direct.inventory_stock ADD COLUMN free int GENERATED ALWAYS AS (quantity_on_hand - quantity_reserved) STORED;
SELECT * FROM direct.both(2);
SELECT direct.buy(2);
SELECT count(*) FROM direct.inventory_stock WHERE free <> quantity_on_hand - quantity_reserved;

-- columns that came and went, with defaults
ALTER TABLE direct.inventory_stock ADD COLUMN gone text DEFAULT repeat('x', 3000), ADD COLUMN shelf text DEFAULT 'A1';
ALTER TABLE direct.inventory_stock DROP COLUMN gone;
ALTER TABLE direct.order_items ADD COLUMN gone int DEFAULT 1, ADD COLUMN remark text NOT NULL DEFAULT 'none',
    ADD COLUMN n int GENERATED ALWAYS AS IDENTITY;
ALTER TABLE direct.order_items DROP COLUMN gone;
SELECT * FROM direct.both(2);
SELECT DISTINCT shelf FROM direct.inventory_stock;
SELECT DISTINCT remark, count(DISTINCT n) = count(*) AS numbered FROM direct.order_items GROUP BY 1;

-- a row that was found before is looked for at its place: it may have moved, or
-- be another's by now
CREATE FUNCTION direct.reserve(sku text, units int DEFAULT 1, reference text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM direct.reserve_stock(sku, units, reference => reference);
    RETURN 'reserved';
EXCEPTION WHEN OTHERS THEN
    RETURN sqlstate || ' ' || sqlerrm;
END $$;
SELECT direct.reserve('P18'), direct.reserve('P19'), direct.reserve('P20');
UPDATE direct.products SET sku = 'Q18' WHERE sku = 'P18';
UPDATE direct.products SET sku = 'P18' WHERE sku = 'P19';
UPDATE direct.products SET is_active = false WHERE sku = 'P20';
SELECT direct.reserve('P18'), direct.reserve('P19'), direct.reserve('P20'), direct.reserve('Q18');
VACUUM FULL direct.products;
VACUUM FULL direct.skus;
UPDATE direct.products SET is_active = true WHERE sku = 'P20';
SELECT direct.reserve('P18'), direct.reserve('P19'), direct.reserve('P20'), direct.reserve('Q18');
SELECT p.sku, s.quantity_reserved FROM direct.inventory_stock s JOIN direct.products p ON p.id = s.product_id
 WHERE p.sku IN ('P18', 'P20', 'Q18') ORDER BY 1;

-- what a row must meet, and the indexes that it belongs to
ALTER TABLE direct.stock_reservations ADD CONSTRAINT few CHECK (quantity < 7) NOT VALID;
SELECT direct.reserve('P1', 6), direct.reserve('P1', 7);
CREATE UNIQUE INDEX once ON direct.stock_reservations (reference) WHERE quantity > 1;
SELECT direct.reserve('P1', 1, 'a'), direct.reserve('P1', 1, 'a'), direct.reserve('P1', 2, 'a'), direct.reserve('P1', 2, 'a');
CREATE INDEX reserved ON direct.inventory_stock ((quantity_reserved % 10)) WHERE quantity_reserved > 0;
SELECT direct.reserve('P1', 3);
DROP INDEX direct.once;
SELECT direct.reserve('P1', 2, 'a');
CREATE INDEX plainly ON direct.inventory_stock (quantity_reserved);
SELECT direct.reserve('P1', 1);
BEGIN;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SELECT count(*) FROM direct.inventory_stock WHERE quantity_reserved > 0;
SELECT count(*) FROM direct.stock_reservations WHERE expires_at > '2000-01-01' AND status = 'active';
SET LOCAL enable_seqscan = on;
SET LOCAL enable_indexscan = off;
SET LOCAL enable_indexonlyscan = off;
SELECT count(*) FROM direct.inventory_stock WHERE quantity_reserved > 0;
SELECT count(*) FROM direct.stock_reservations WHERE expires_at > '2000-01-01' AND status = 'active';
COMMIT;
CREATE TABLE direct.carts (id text PRIMARY KEY);
INSERT INTO direct.carts VALUES ('a');
ALTER TABLE direct.stock_reservations ADD FOREIGN KEY (reference) REFERENCES direct.carts;
SELECT direct.reserve('P1', 1, 'a'), direct.reserve('P1', 1, 'b');
ALTER TABLE direct.stock_reservation_parts ALTER COLUMN quantity SET DEFAULT 1, ADD COLUMN bin text NOT NULL DEFAULT 'x';
ALTER TABLE direct.stock_reservation_parts ALTER COLUMN bin DROP DEFAULT;
SELECT direct.reserve('P1', 1);
ALTER TABLE direct.stock_reservation_parts DROP COLUMN bin;
SELECT direct.reserve('P1', 1);
ALTER TABLE direct.stock_reservations DROP CONSTRAINT few;

SELECT * FROM techally.check_store('direct');

-- in a transaction that may only read, nothing is locked or written
BEGIN READ ONLY;
SET LOCAL session_replication_role = replica;    -- foreign keys would notice
SELECT direct.reserve_stock('P1', 1);
ROLLBACK;

DROP SCHEMA direct CASCADE;
