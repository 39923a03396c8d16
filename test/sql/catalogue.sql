-- The guards of a store's catalogue: times of change, SKUs, the view inventory.
SET client_min_messages = warning;
SET techally.hard_delete = on;      -- DELETE means it, here
SELECT techally.create_store('cat');

CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;
CREATE VIEW registered AS
SELECT k.sku, p.name AS product, v.name AS variant
  FROM cat.skus k JOIN cat.products p ON p.id = k.product_id LEFT JOIN cat.product_variants v ON v.id = k.variant_id;

-- what api.md promises to be enough
INSERT INTO cat.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8.5, true) RETURNING is_active, price;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('SHIRT', 'Shirt', 'shirt', 20), ('FREE', 'Sample', 'sample', 0);
INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, 'SHIRT-' || s, s FROM cat.products, unnest(ARRAY['S', 'L']) s WHERE sku = 'SHIRT';
SELECT * FROM registered ORDER BY sku;

-- a SKU is unique across both tables, and upper and lower case differ
SELECT s, r.* FROM unnest(ARRAY[
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('MUG', 'Other', 'other', 1)$$,
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('SHIRT-S', 'Other', 'other', 1)$$,
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('NEW', 'New', 'new', 1), ('SHIRT-S', 'Other', 'other', 1), ('SHIRT-L', 'Another', 'another', 1)$$,
    $$INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, 'MUG', 'x' FROM cat.products WHERE sku = 'SHIRT'$$,
    $$INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, sku, 'itself' FROM cat.products WHERE sku = 'MUG'$$,
    $$INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, 'SHIRT-S', 'x' FROM cat.products WHERE sku = 'MUG'$$,
    $$UPDATE cat.products SET sku = 'SHIRT-S' WHERE sku = 'MUG'$$,
    $$UPDATE cat.product_variants SET sku = 'MUG' WHERE sku = 'SHIRT-S'$$,
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES (NULL, 'Other', 'other', 1)$$]) s,
    LATERAL (SELECT code, message, CASE code WHEN '23505' THEN detail END AS detail FROM raised(s)) r;
SELECT * FROM registered ORDER BY sku;
DO $$
DECLARE
    t text; c text;
BEGIN
    INSERT INTO cat.products (sku, name, slug, price) VALUES ('SHIRT-S', 'Other', 'other', 1);
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS t = TABLE_NAME, c = CONSTRAINT_NAME;
    RAISE WARNING '% %', t, c;
END $$;
SELECT r.code, r.message, r.detail FROM cat.products p, raised(format(
    $$INSERT INTO cat.product_variants (product_id, sku, name) SELECT %L::uuid, sku, sku FROM cat.products
      UNION ALL SELECT %1$L::uuid, 'N' || n, 'n' FROM generate_series(1, 3) n$$, id)) r WHERE sku = 'MUG';
INSERT INTO cat.products (sku, name, slug, price) VALUES ('mug', 'Lower mug', 'lower-mug', 1), (' mug', 'Blank mug', 'blank-mug', 1);
SELECT * FROM registered WHERE sku ILIKE '%mug' ORDER BY sku COLLATE "C";
DELETE FROM cat.products WHERE sku IN ('mug', ' mug');
-- of more clashes than one can read, some are shown
INSERT INTO cat.products (sku, name, slug, price) SELECT format('P%s', to_char(n, 'FM000')), n, 'p' || n, 1 FROM generate_series(1, 20) n;
SELECT r.code, r.message, r.detail FROM raised($$INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, sku, 'x' FROM cat.products$$) r;
DELETE FROM cat.products WHERE sku LIKE 'P0%';
SELECT count(*) FROM cat.skus WHERE sku LIKE 'P0%';

-- following changes: of the SKU, of the product, of everything else
UPDATE cat.products SET sku = 'CUP', name = 'Cup' WHERE sku = 'MUG';
UPDATE cat.product_variants SET sku = 'SHIRT-M' WHERE sku = 'SHIRT-S';
UPDATE cat.product_variants SET product_id = (SELECT id FROM cat.products WHERE sku = 'FREE') WHERE sku = 'SHIRT-L';
UPDATE cat.products SET price = price + 1;
SELECT * FROM registered ORDER BY sku;
DELETE FROM cat.product_variants WHERE sku = 'SHIRT-L';
INSERT INTO cat.products (sku, name, slug, price) VALUES ('MUG', 'Mug', 'mug-2', 8), ('SHIRT-L', 'Large', 'large', 1);
DELETE FROM cat.products WHERE sku = 'SHIRT';
SELECT * FROM registered ORDER BY sku;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('SHIRT-M', 'Free again', 'free-again', 1);
-- nothing, one row of many ways
INSERT INTO cat.products (sku, name, slug, price) SELECT 'X', 'x', 'x', 1 WHERE false;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('CUP', 'Upsert', 'upsert', 1), ('POT', 'Pot', 'pot', 2)
    ON CONFLICT (sku) DO UPDATE SET price = excluded.price;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('POT', 'Other', 'other', 1) ON CONFLICT DO NOTHING;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('POT', 'Pan', 'pan', 3) ON CONFLICT (sku) DO UPDATE SET sku = 'PAN';
COPY cat.products (sku, name, slug, price) FROM stdin;
COPIED	Copied	copied	1
\.
WITH added AS (
    INSERT INTO cat.products (sku, name, slug, price) VALUES ('BOTH', 'Both', 'both', 1) RETURNING id
) INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, 'BOTH-1', 'one' FROM added;
SELECT * FROM registered ORDER BY sku;
SELECT * FROM techally.check_store('cat');
-- TRUNCATE reaches the register, too; what is lost there adopt_store fills in
TRUNCATE cat.product_variants CASCADE;
SELECT count(*) FROM registered WHERE variant IS NOT NULL;
SELECT * FROM techally.check_store('cat');
DELETE FROM cat.skus;
SELECT rule, count(*) FROM techally.check_store('cat') GROUP BY rule;
SELECT techally.adopt_store('cat');
SELECT * FROM techally.check_store('cat');

-- tables that have grown and lost columns
ALTER TABLE cat.products DROP COLUMN barcode, ADD COLUMN colour text DEFAULT 'red';
INSERT INTO cat.products (sku, name, slug, price) VALUES ('GROWN', 'Grown', 'grown', 1);
UPDATE cat.products SET sku = 'GROWN-UP' WHERE sku = 'GROWN';
ALTER TABLE cat.product_variants DROP COLUMN price;
INSERT INTO cat.product_variants (product_id, sku, name) SELECT id, 'GROWN-V', 'v' FROM cat.products WHERE sku = 'GROWN-UP';
SELECT * FROM registered WHERE sku LIKE 'GROWN%' ORDER BY sku;
ALTER TABLE cat.product_variants ADD COLUMN price numeric(10,2);

-- updated_at
BEGIN;
UPDATE cat.products SET updated_at = 'epoch' WHERE sku = 'CUP';
SELECT updated_at = now() AS kept FROM cat.products WHERE sku = 'CUP';
INSERT INTO cat.users (email, password_hash, first_name, last_name, updated_at) VALUES ('a@example.com', 'x', 'A', 'B', 'epoch');
SELECT updated_at = 'epoch' AS given FROM cat.users;
UPDATE cat.users SET first_name = 'C';
SELECT updated_at = now() AS kept FROM cat.users;
ROLLBACK;
-- on any table that has the column
CREATE TABLE stamped (gone int, id int, updated_at timestamptz);
ALTER TABLE stamped DROP COLUMN gone;
CREATE TABLE unstamped (id int);
CREATE TABLE mistyped (id int, updated_at timestamp);
CREATE TRIGGER stamp BEFORE UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE TRIGGER stamp BEFORE UPDATE ON unstamped FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE TRIGGER stamp BEFORE UPDATE ON mistyped FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
INSERT INTO stamped VALUES (1);
INSERT INTO unstamped VALUES (1);
INSERT INTO mistyped VALUES (1);
UPDATE stamped SET id = 2;
SELECT id, updated_at IS NOT NULL AS stamped FROM stamped;
SELECT s, r.* FROM unnest(ARRAY['UPDATE unstamped SET id = 2', 'UPDATE mistyped SET id = 2']) s, raised(s) r;

-- the trigger protocol
CREATE TRIGGER wrong AFTER UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
SELECT code, message FROM raised('UPDATE stamped SET id = 3');
DROP TRIGGER wrong ON stamped;
CREATE TRIGGER wrong BEFORE UPDATE ON stamped EXECUTE FUNCTION techally.set_updated_at();
SELECT code, message FROM raised('UPDATE stamped SET id = 3');
DROP TRIGGER wrong ON stamped;
CREATE TRIGGER wrong AFTER INSERT ON stamped EXECUTE FUNCTION techally.register_product_skus();
SELECT code, message FROM raised('INSERT INTO stamped VALUES (4)');
DROP TRIGGER wrong ON stamped;
CREATE TRIGGER wrong AFTER INSERT ON stamped REFERENCING NEW TABLE AS inserted EXECUTE FUNCTION techally.register_variant_skus();
SELECT code, message FROM raised('INSERT INTO stamped VALUES (4)');
DROP TRIGGER wrong ON stamped;
CREATE TRIGGER wrong AFTER UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION techally.update_sku();
ALTER TABLE stamped ADD COLUMN sku text;
SELECT code, message FROM raised('UPDATE stamped SET id = 5');
DROP TRIGGER wrong ON stamped;
SELECT s, r.code, r.message FROM unnest(ARRAY['set_updated_at', 'register_product_skus', 'register_variant_skus', 'update_sku', 'unregister_skus', 'refuse_inventory_write']) s,
    raised(format('SELECT techally.%s()', s)) r;
DROP TABLE stamped, unstamped, mistyped;

-- the view is read only
SELECT cat.receive_stock('CUP', 5);
SELECT p.sku, i.quantity_on_hand, i.quantity_reserved, i.quantity_available FROM cat.inventory i JOIN cat.products p ON p.id = i.product_id;
SELECT s, r.* FROM unnest(ARRAY['UPDATE cat.inventory SET quantity_on_hand = 6', 'DELETE FROM cat.inventory',
    'INSERT INTO cat.inventory (quantity_on_hand) VALUES (1)', 'TRUNCATE cat.inventory']) s, raised(s) r;

-- constraints of the tables
INSERT INTO cat.categories (name, slug) VALUES ('All', 'all');
SELECT s, r.code, r.message FROM unnest(ARRAY[
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('BAD', 'Bad', 'bad', -0.01)$$,
    $$INSERT INTO cat.products (sku, name, slug, price, compare_at_price) VALUES ('BAD', 'Bad', 'bad', 2, 2)$$,
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('BAD', 'Bad', 'mug', 1)$$,
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('BAD', 'Bad', 'bad', NULL)$$,
    $$INSERT INTO cat.users (email, password_hash, first_name, last_name) VALUES ('nobody', 'x', 'A', 'B')$$,
    $$INSERT INTO cat.warehouses (code, name) VALUES ('', 'Nowhere')$$,
    $$UPDATE cat.categories SET parent_id = id$$,
    $$INSERT INTO cat.warehouses (code, name) VALUES ('main', 'Again')$$]) s, raised(s) r;

-- who may write products needs no privilege on the registered SKUs
CREATE ROLE regress_techally_clerk;
GRANT USAGE ON SCHEMA cat TO regress_techally_clerk;
GRANT SELECT, INSERT, UPDATE, DELETE ON cat.products TO regress_techally_clerk;
SET ROLE regress_techally_clerk;
INSERT INTO cat.products (sku, name, slug, price) VALUES ('CLERK', 'Clerk', 'clerk', 1);
UPDATE cat.products SET sku = 'CLERKS' WHERE sku = 'CLERK';
SELECT s, r.code, r.message FROM unnest(ARRAY['TABLE cat.skus', 'DELETE FROM cat.skus', 'DELETE FROM cat.product_variants',
    $$INSERT INTO cat.products (sku, name, slug, price) VALUES ('CUP', 'Other', 'other', 1)$$]) s, raised(s) r;
RESET ROLE;
SELECT * FROM registered WHERE sku LIKE 'CLERK%';
-- nor does a table of somebody else's, by the right name, write them
DELETE FROM cat.products WHERE sku = 'CLERKS';
BEGIN;
ALTER TABLE cat.products OWNER TO regress_techally_clerk;
SELECT r.code, r.message FROM unnest(ARRAY[$$INSERT INTO cat.products (sku, name, slug, price) VALUES ('THEIRS', 'Theirs', 'theirs', 1)$$,
    $$UPDATE cat.products SET sku = 'THEIRS' WHERE sku = 'CUP'$$]) s, raised(s) r;
ROLLBACK;
CREATE SCHEMA regress_clerk AUTHORIZATION regress_techally_clerk;
SET ROLE regress_techally_clerk;
CREATE TABLE regress_clerk.products (id uuid, sku text);
CREATE TRIGGER own AFTER INSERT ON regress_clerk.products REFERENCING NEW TABLE AS inserted EXECUTE FUNCTION techally.register_product_skus();
SELECT code, message FROM raised($$INSERT INTO regress_clerk.products VALUES (NULL, 'X')$$);
RESET ROLE;
DROP SCHEMA regress_clerk CASCADE;
DROP OWNED BY regress_techally_clerk;
DROP ROLE regress_techally_clerk;

-- a bulk load registers its SKUs in one go
INSERT INTO cat.products (sku, name, slug, price) SELECT 'BULK' || n, 'Bulk', 'bulk' || n, 1 FROM generate_series(1, 5000) n;
SELECT count(*) FROM cat.skus WHERE sku LIKE 'BULK%';
SELECT * FROM techally.check_store('cat');

DROP VIEW registered;
DROP FUNCTION raised(text);
SELECT techally.drop_store('cat');
