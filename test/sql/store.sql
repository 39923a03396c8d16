-- Stores: making, migrating up and down, renaming, adopting, dropping.
SET client_min_messages = warning;

CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;

-- Everything that the catalogs say about a schema, but numbers of columns,
-- OIDs and the order of things.
CREATE FUNCTION fingerprint(store name) RETURNS TABLE (line text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH namespace AS (
        SELECT n.* FROM pg_namespace n WHERE n.nspname = store
    ), relation AS (
        SELECT c.* FROM pg_class c JOIN namespace n ON n.oid = c.relnamespace
    ), line (kind, name, detail, description, privileges) AS (
        SELECT 'schema', n.nspname::text, n.nspowner::regrole::text, obj_description(n.oid, 'pg_namespace'), n.nspacl::text FROM namespace n
        UNION ALL
        SELECT 'relation', c.relname, concat_ws(' ', c.relkind, c.relpersistence, c.relowner::regrole, c.relrowsecurity,
                   c.relforcerowsecurity, c.relispartition, c.relreplident, c.reloptions, pg_get_viewdef(c.oid)),
               obj_description(c.oid, 'pg_class'), c.relacl::text
          FROM relation c
        UNION ALL
        SELECT 'column', c.relname || '.' || a.attname,
               concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attcollation::regcollation,
                   a.attstorage, a.attcompression, a.attstattarget, pg_get_expr(d.adbin, d.adrelid)),
               col_description(c.oid, a.attnum), a.attacl::text
          FROM relation c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'i'
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        UNION ALL
        SELECT 'index', c.relname, pg_get_indexdef(c.oid), NULL, NULL FROM relation c WHERE c.relkind IN ('i', 'I')
        UNION ALL
        SELECT 'constraint', concat_ws('.', k.conrelid::regclass, k.contypid::regtype, k.conname),
               concat_ws(' ', pg_get_constraintdef(k.oid), k.convalidated), obj_description(k.oid, 'pg_constraint'), NULL
          FROM pg_constraint k JOIN namespace n ON n.oid = k.connamespace
        UNION ALL
        SELECT 'trigger', c.relname || '.' || t.tgname, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled),
               obj_description(t.oid, 'pg_trigger'), NULL
          FROM relation c JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
        UNION ALL
        SELECT 'rule', c.relname || '.' || r.rulename, pg_get_ruledef(r.oid), obj_description(r.oid, 'pg_rewrite'), NULL
          FROM relation c JOIN pg_rewrite r ON r.ev_class = c.oid
        UNION ALL
        SELECT 'policy', c.relname || '.' || p.polname, concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[],
                   pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid)), obj_description(p.oid, 'pg_policy'), NULL
          FROM relation c JOIN pg_policy p ON p.polrelid = c.oid
        UNION ALL
        SELECT 'sequence', c.relname, concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle), NULL, NULL
          FROM relation c JOIN pg_sequence s ON s.seqrelid = c.oid
        UNION ALL
        SELECT 'statistics', e.stxname::text, pg_get_statisticsobjdef(e.oid), obj_description(e.oid, 'pg_statistic_ext'), NULL
          FROM pg_statistic_ext e JOIN namespace n ON n.oid = e.stxnamespace
        UNION ALL
        SELECT 'function', p.oid::regprocedure::text, concat_ws(' ', pg_get_functiondef(p.oid), p.proowner::regrole),
               obj_description(p.oid, 'pg_proc'), p.proacl::text
          FROM pg_proc p JOIN namespace n ON n.oid = p.pronamespace AND p.prokind <> 'a'
        UNION ALL
        SELECT 'type', t.typname::text, concat_ws(' ', t.typtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault, t.typowner::regrole),
               obj_description(t.oid, 'pg_type'), t.typacl::text
          FROM pg_type t JOIN namespace n ON n.oid = t.typnamespace
        UNION ALL
        SELECT 'machine', a.target::regclass || '.' || a.column_name, concat_ws(' ', a.machine, a.history), NULL, NULL
          FROM techally.machine_attachments a JOIN relation c ON c.oid = a.target
        UNION ALL
        SELECT 'registered', r.anchor::text, concat_ws(' ', r.machine), NULL, NULL
          FROM techally.store_registry r JOIN relation c ON c.oid = r.anchor
    )
    SELECT concat_ws(' | ', l.kind, l.name, l.detail, l.description, l.privileges) FROM line l
$$;

CREATE TABLE catalog (step text, version text, line text);
CREATE PROCEDURE remember(step text, store name) LANGUAGE sql AS $$
    INSERT INTO catalog SELECT step, (SELECT s.version FROM techally.stores s WHERE s.store = remember.store), f.line FROM fingerprint(store) f
$$;
-- what the catalogs of one version, at different steps, do not have in common
CREATE FUNCTION differences() RETURNS TABLE (version text, step text, line text) LANGUAGE sql AS $$
    SELECT c.version, min(c.step), c.line FROM catalog c
     GROUP BY c.version, c.line
    HAVING count(*) <> (SELECT count(DISTINCT o.step) FROM catalog o WHERE o.version = c.version)
     ORDER BY 1, 2, 3
$$;

-- a store
SELECT techally.create_store('regress_shop');
SELECT store, machine, version = (SELECT max(version) FROM regress_shop.schema_migrations) AS newest,
       created_at = now() AS old, created_at <= clock_timestamp() AS made FROM techally.stores WHERE store = 'regress_shop';
SELECT version, description, checksum ~ '^[0-9a-f]{64}$' AS has_checksum FROM regress_shop.schema_migrations ORDER BY version;
SELECT name, value FROM regress_shop.store_settings;
SELECT code FROM regress_shop.warehouses;
SELECT * FROM techally.check_store('regress_shop');
SELECT s.store, c.* FROM techally.stores s, techally.check_store(s.store) c;
-- it belongs to nobody but its owner
SELECT count(*) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'techally'
 WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass AND d.objid IN (SELECT oid FROM pg_class WHERE relnamespace = 'regress_shop'::regnamespace);
-- with no type of the extension in it
SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
 WHERE c.relnamespace = 'regress_shop'::regnamespace AND t.typnamespace = 'techally'::regnamespace;

-- every migration down and up again, one by one; the catalog is the same at each version
CREATE TABLE versions AS SELECT version, row_number() OVER (ORDER BY version) AS position FROM regress_shop.schema_migrations;
CALL remember('0 made', 'regress_shop');
DO $$
DECLARE
    newest int := (SELECT max(position) FROM versions);
    target text[] := ARRAY(SELECT version FROM versions ORDER BY position);
BEGIN
    -- down to the first, one by one
    FOR i IN REVERSE newest - 1 .. 1 LOOP
        PERFORM techally.upgrade_store('regress_shop', target[i]);
        CALL remember('1 down', 'regress_shop');
    END LOOP;
    -- up to the last, each one up, down and up
    FOR i IN 2 .. newest LOOP
        PERFORM techally.upgrade_store('regress_shop', target[i]);
        CALL remember('2 up', 'regress_shop');
        PERFORM techally.upgrade_store('regress_shop', target[i - 1]);
        CALL remember('3 down again ' || i, 'regress_shop');
        PERFORM techally.upgrade_store('regress_shop', target[i]);
        CALL remember('4 up again', 'regress_shop');
    END LOOP;
    -- all of it at once, down and up
    PERFORM techally.upgrade_store('regress_shop', target[1]);
    CALL remember('5 all down', 'regress_shop');
    PERFORM techally.upgrade_store('regress_shop');
    CALL remember('6 all up', 'regress_shop');
END $$;
SELECT * FROM differences();
-- the comparison would have seen something
SELECT position, count(DISTINCT step) AS steps, count(DISTINCT line) > 50 AS something,
       EXISTS (SELECT line FROM catalog c WHERE c.version = v.version
               EXCEPT SELECT line FROM catalog c JOIN versions p USING (version) WHERE p.position = v.position - 1) AS differs
  FROM versions v JOIN catalog USING (version) GROUP BY position, v.version ORDER BY position;
BEGIN;
COMMENT ON COLUMN regress_shop.users.email IS 'other';
CALL remember('7 changed', 'regress_shop');
SELECT split_part(line, ' | ', 2) AS seen FROM differences();
ROLLBACK;
-- adopting what lacks nothing changes nothing, nor does upgrading to where we are
SELECT techally.adopt_store('regress_shop'), techally.upgrade_store('regress_shop'),
       techally.upgrade_store('regress_shop', (SELECT max(version) FROM versions));
CALL remember('8 adopted', 'regress_shop');
SELECT * FROM differences();
SELECT * FROM techally.check_store('regress_shop');

-- the same for a name that needs every kind of quoting, and is as long as names can be
SELECT rpad(E'We''ird "$function$" \\ $$ @machine@ @store@ %s ', 63, 'x') AS odd \gset
SELECT octet_length(:'odd');
SELECT techally.create_store(:'odd');
CALL remember('0 odd', :'odd');
SELECT techally.upgrade_store(:'odd', (SELECT min(version) FROM versions));
SELECT techally.upgrade_store(:'odd');
SELECT techally.adopt_store(:'odd');
SELECT line FROM fingerprint(:'odd') EXCEPT SELECT line FROM catalog WHERE step = '0 odd';
SELECT line FROM catalog WHERE step = '0 odd' EXCEPT SELECT line FROM fingerprint(:'odd');
INSERT INTO :"odd".users (id, email, password_hash, first_name, last_name)
VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.com', 'x', 'Ann', 'Lee');
INSERT INTO :"odd".products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
SELECT :"odd".receive_stock('MUG', 10);
SELECT status, total FROM :"odd".place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 2}]');
SELECT :"odd".available('MUG');
SELECT store = :'odd' AS listed FROM techally.stores ORDER BY 1;
SELECT * FROM techally.check_store(:'odd');

-- a store with orders is neither dropped nor taken to where it cannot hold them
SELECT r.code, replace(r.message, :'odd', '<odd>') AS message, r.detail
  FROM unnest(ARRAY[format('SELECT techally.drop_store(%L)', :'odd'),
                    format('SELECT techally.upgrade_store(%L, %L)', :'odd', (SELECT min(version) FROM versions))]) s, raised(s) r;
SELECT count(*) AS orders FROM :"odd".orders;
-- functions and guards hold no data, they may go and come
SELECT techally.upgrade_store(:'odd', (SELECT version FROM versions ORDER BY 1 DESC OFFSET 1 LIMIT 1));
SELECT techally.upgrade_store(:'odd');
SELECT * FROM techally.check_store(:'odd');
SELECT (:"odd".place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 1}]')).status;
SET techally.allow_drop = on;
SELECT techally.upgrade_store(:'odd', (SELECT min(version) FROM versions));
SELECT techally.upgrade_store(:'odd');
SELECT count(*) AS orders FROM :"odd".orders;
SELECT techally.drop_store(:'odd');
RESET techally.allow_drop;
SELECT store FROM techally.stores ORDER BY 1;
SELECT count(*) FROM pg_namespace WHERE nspname = :'odd';
SELECT count(*) FROM techally.machine_attachments;

-- bad names, bad versions, NULL
SELECT s, r.* FROM unnest(ARRAY[
    $$create_store(NULL)$$, $$create_store('x', NULL)$$, $$upgrade_store(NULL)$$, $$drop_store(NULL)$$,
    $$adopt_store(NULL)$$, $$check_store(NULL)$$,
    $$create_store('')$$, $$create_store('pg_shop')$$, $$create_store('techally')$$, $$create_store('information_schema')$$, $$create_store('$user')$$,
    $$create_store('x', 'no such machine')$$, $$create_store('x', '')$$,
    $$create_store('regress_shop')$$,
    $$upgrade_store('no such store')$$, $$drop_store('no such store')$$, $$adopt_store('no such store')$$, $$check_store('no such store')$$,
    $$upgrade_store('public')$$, $$adopt_store('techally')$$, $$drop_store('pg_catalog')$$,
    $$upgrade_store('regress_shop', '')$$, $$upgrade_store('regress_shop', '20261121_000100_settings_and_users')$$,
    $$upgrade_store('regress_shop', '../../../../etc/passwd')$$, $$upgrade_store('regress_shop', '99991231_235959')$$]) s,
    raised('SELECT techally.' || s) r;
SELECT store FROM techally.stores ORDER BY 1;

-- a schema of somebody else's tables
CREATE SCHEMA regress_full
    CREATE TABLE mine (id int);
CREATE SCHEMA regress_other
    CREATE TABLE schema_migrations (version text PRIMARY KEY, inserted_at timestamp);
SELECT s, r.* FROM unnest(ARRAY[$$create_store('regress_full')$$, $$create_store('regress_other')$$, $$adopt_store('regress_other')$$,
    $$upgrade_store('regress_other')$$, $$drop_store('regress_other')$$]) s, raised('SELECT techally.' || s) r;
DROP SCHEMA regress_full, regress_other CASCADE;
-- an empty schema serves
CREATE SCHEMA regress_empty;
SELECT techally.create_store('regress_empty', 'simple');
SELECT machine FROM techally.stores WHERE store = 'regress_empty';
SELECT column_default FROM information_schema.columns WHERE table_schema = 'regress_empty' AND table_name = 'orders' AND column_name = 'status';

-- what is installed differs from what was applied
BEGIN;
UPDATE regress_shop.schema_migrations SET checksum = repeat('0', 64) WHERE version = (SELECT max(version) FROM versions);
SELECT s, r.* FROM unnest(ARRAY['upgrade', 'adopt', 'drop']) s, raised(format('SELECT techally.%s_store(''regress_shop'')', s)) r;
ROLLBACK;
BEGIN;
INSERT INTO regress_shop.schema_migrations (version, description, checksum) VALUES ('20991231_235959', 'of the future', repeat('0', 64));
SELECT s, r.* FROM unnest(ARRAY['upgrade', 'adopt', 'drop']) s, raised(format('SELECT techally.%s_store(''regress_shop'')', s)) r;
ROLLBACK;
-- a migration that an earlier release did not have, below the newest, is made up for
BEGIN;
DELETE FROM regress_shop.schema_migrations WHERE version = (SELECT max(version) FROM versions);
SELECT techally.upgrade_store('regress_shop');
SELECT count(*) = (SELECT count(*) FROM versions) AS whole FROM regress_shop.schema_migrations;
ROLLBACK;
-- an error in a migration says where
BEGIN;
SELECT techally.upgrade_store('regress_shop', (SELECT min(version) FROM versions));
CREATE TABLE regress_shop.brands ();
\set VERBOSITY default
SELECT techally.upgrade_store('regress_shop');
ROLLBACK;
-- somebody's view stands in the way of going down, and stays
CREATE VIEW regress_shop.cheap AS SELECT * FROM regress_shop.products WHERE price < 1;
SELECT code, message FROM raised('SELECT techally.drop_store(''regress_shop'')');
DROP VIEW regress_shop.cheap;
CREATE TABLE regress_shop.own (id int);
SELECT code, message FROM raised('SELECT techally.drop_store(''regress_shop'')');
DROP TABLE regress_shop.own;

-- all or nothing
BEGIN;
SELECT techally.create_store('regress_undone');
SELECT techally.upgrade_store('regress_undone', (SELECT min(version) FROM versions));
SELECT techally.drop_store('regress_empty');
ROLLBACK;
SELECT store FROM techally.stores ORDER BY 1;
SELECT count(*) FROM pg_namespace WHERE nspname = 'regress_undone';
BEGIN;
SAVEPOINT before;
SELECT techally.create_store('regress_undone');
INSERT INTO regress_undone.products (sku, name, slug, price) VALUES ('A', 'a', 'a', 1);
ROLLBACK TO before;
SELECT techally.create_store('regress_undone');
INSERT INTO regress_undone.products (sku, name, slug, price) VALUES ('A', 'a', 'a', 1);
SELECT sku FROM regress_undone.skus;
COMMIT;
SELECT techally.drop_store('regress_undone');
-- a transaction with an old snapshot sees what it makes
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM techally.stores;
SELECT techally.create_store('regress_undone');
SELECT techally.upgrade_store('regress_undone', (SELECT min(version) FROM versions));
SELECT techally.upgrade_store('regress_undone');
SELECT techally.adopt_store('regress_undone');
SELECT techally.drop_store('regress_undone');
COMMIT;
BEGIN READ ONLY;
SELECT r.code, r.message FROM unnest(ARRAY['create', 'upgrade', 'adopt', 'drop']) s, raised(format('SELECT techally.%s_store(''regress_empty'')', s)) r;
ROLLBACK;

-- the caller's settings do not matter
SET search_path = nowhere;
SET standard_conforming_strings = off;
SET check_function_bodies = off;
SET row_security = off;
SET DateStyle = 'Postgres, DMY';
SET default_table_access_method = heap;
SET bytea_output = escape;
SET default_tablespace = '';
SELECT techally.create_store('regress_undone');
RESET ALL;
SET client_min_messages = warning;
SELECT line FROM catalog WHERE step = '0 made'
EXCEPT SELECT replace(line, 'regress_undone', 'regress_shop') FROM fingerprint('regress_undone');
CREATE TEMP TABLE products (id int);
CREATE TEMP TABLE schema_migrations (version text);
SET search_path = pg_temp, regress_shop, public;
SELECT techally.upgrade_store('regress_undone', (SELECT min(version) FROM versions));
SELECT techally.upgrade_store('regress_undone');
SELECT techally.adopt_store('regress_undone');
RESET search_path;
SELECT techally.drop_store('regress_undone');
DROP TABLE pg_temp.products, pg_temp.schema_migrations;

-- renamed: the registry knows, adopt_store tells the functions
INSERT INTO regress_shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
SELECT regress_shop.receive_stock('MUG', 10);
ALTER SCHEMA regress_shop RENAME TO "regress 'moved'";
SELECT store FROM techally.stores ORDER BY 1;
SELECT code, message FROM raised($$SELECT "regress 'moved'".receive_stock('MUG', 1)$$);
SELECT DISTINCT rule, detail FROM techally.check_store('regress ''moved''');
INSERT INTO "regress 'moved'".products (sku, name, slug, price) VALUES ('CUP', 'Cup', 'cup', 8);
SELECT techally.adopt_store('regress ''moved''');
SELECT "regress 'moved'".receive_stock('MUG', 1);
SELECT * FROM techally.check_store('regress ''moved''');
SELECT techally.upgrade_store('regress ''moved''', (SELECT version FROM versions ORDER BY 1 DESC OFFSET 1 LIMIT 1));
SELECT techally.upgrade_store('regress ''moved''');
ALTER SCHEMA "regress 'moved'" RENAME TO regress_shop;
SELECT techally.adopt_store('regress_shop');
SELECT regress_shop.receive_stock('MUG', 1);
SELECT count(*) FROM fingerprint('regress_shop') WHERE line ~ 'moved';

-- guards that went missing come back, and what was written without them is made good
DROP TRIGGER techally_sku_insert ON regress_shop.products;
DROP TRIGGER techally_stock_effects ON regress_shop.orders;
DROP FUNCTION regress_shop.available(text, text);
INSERT INTO regress_shop.products (sku, name, slug, price) VALUES ('POT', 'Pot', 'pot', 8);
DELETE FROM regress_shop.skus WHERE sku = 'CUP';
INSERT INTO regress_shop.skus (sku, product_id) SELECT 'GONE', id FROM regress_shop.products WHERE sku = 'MUG';
SELECT * FROM techally.check_store('regress_shop') ORDER BY 1, 2;
SELECT techally.adopt_store('regress_shop');
SELECT * FROM techally.check_store('regress_shop');
SELECT sku FROM regress_shop.skus ORDER BY 1;
SELECT regress_shop.available('MUG');
-- unless it cannot be
BEGIN;
ALTER TABLE regress_shop.product_variants DISABLE TRIGGER techally_sku_insert;
INSERT INTO regress_shop.product_variants (product_id, sku, name) SELECT id, 'POT', 'x' FROM regress_shop.products WHERE sku = 'MUG';
SELECT code, message FROM raised('SELECT techally.adopt_store(''regress_shop'')');
ROLLBACK;
-- the machine is the store's own knowledge
BEGIN;
UPDATE regress_shop.store_settings SET value = '"nowhere"' WHERE name = 'machine';
SELECT * FROM raised('SELECT techally.adopt_store(''regress_shop'')');
DELETE FROM regress_shop.store_settings WHERE name = 'machine';
SELECT * FROM raised('SELECT techally.adopt_store(''regress_shop'')');
ROLLBACK;

-- dropping with PostgreSQL's own means cleans the registries
SELECT techally.create_store('regress_gone'), techally.create_store('regress_half');
SELECT count(*) FROM techally.store_registry;
SELECT count(*) FROM techally.machine_attachments;
DROP SCHEMA regress_gone CASCADE;
DROP TABLE regress_half.orders CASCADE;
DROP TABLE regress_half.schema_migrations;
SELECT anchor FROM techally.store_registry ORDER BY anchor::text;
SELECT target, column_name, machine, history FROM techally.machine_attachments ORDER BY target::text;
BEGIN;
SELECT code, message FROM raised('DROP TABLE regress_empty.order_status_history CASCADE');
SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger
 WHERE tgrelid = 'regress_empty.orders'::regclass AND tgfoid = 'techally.enforce_machine'::regproc ORDER BY tgname \gexec
DROP TABLE regress_empty.order_status_history CASCADE;
SELECT target, column_name, machine, history FROM techally.machine_attachments ORDER BY target::text;
ALTER TABLE regress_empty.orders DROP COLUMN status CASCADE;
SELECT target, column_name, machine, history FROM techally.machine_attachments ORDER BY target::text;
ROLLBACK;
SELECT code, message FROM raised('SELECT techally.drop_store(''regress_half'')');
DROP SCHEMA regress_half CASCADE;

-- the extension goes only by force, and leaves the stores where they are
SELECT code, message FROM raised('DROP EXTENSION techally');
DROP EXTENSION techally CASCADE;
SELECT count(*) > 10 AS tables FROM pg_class WHERE relnamespace = 'regress_shop'::regnamespace AND relkind = 'r';
SELECT sku, name, price FROM regress_shop.products ORDER BY sku;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'regress_shop.orders'::regclass AND NOT tgisinternal;
CREATE EXTENSION techally;
SELECT * FROM techally.stores;
SELECT * FROM raised('SELECT techally.upgrade_store(''regress_shop'')');
SELECT * FROM raised('SELECT techally.drop_store(''regress_shop'')');
SELECT rule, count(*) FROM techally.check_store('regress_shop') GROUP BY 1 ORDER BY 1;
SELECT techally.adopt_store('regress_shop'), techally.adopt_store('regress_empty');
SELECT store, machine FROM techally.stores ORDER BY 1;
SELECT line FROM catalog WHERE step = '0 made' EXCEPT SELECT line FROM fingerprint('regress_shop');
SELECT line FROM fingerprint('regress_shop') EXCEPT SELECT line FROM catalog WHERE step = '0 made';
SELECT * FROM techally.check_store('regress_shop');
SELECT * FROM techally.check_store('regress_empty');
SELECT techally.drop_store('regress_empty');

-- roles: the administrative functions are nobody's but who is granted them
CREATE ROLE regress_techally_dba;
CREATE ROLE regress_techally_nobody;
SET ROLE regress_techally_nobody;
SELECT s, r.code, r.message FROM unnest(ARRAY['create_store(''x'')', 'upgrade_store(''regress_shop'')', 'drop_store(''regress_shop'')', 'adopt_store(''regress_shop'')']) s,
    raised('SELECT techally.' || s) r;
SELECT r.code, r.message FROM unnest(ARRAY['TABLE techally.store_registry', 'DELETE FROM techally.store_registry',
    'INSERT INTO techally.store_registry VALUES (''pg_class'', ''techally'')', 'SELECT techally.forget_dropped()']) s, raised(s) r;
SELECT store, machine FROM techally.stores ORDER BY 1;
RESET ROLE;
GRANT EXECUTE ON FUNCTION techally.create_store(name, text), techally.upgrade_store(name, text), techally.drop_store(name),
    techally.adopt_store(name) TO regress_techally_dba, regress_techally_nobody;
SET ROLE regress_techally_nobody;
SELECT s, r.code, r.message FROM unnest(ARRAY['upgrade_store(''regress_shop'')', 'drop_store(''regress_shop'')', 'adopt_store(''regress_shop'')']) s,
    raised('SELECT techally.' || s) r;
RESET ROLE;
SELECT code, replace(message, current_database(), '<database>') AS message
  FROM raised('SET ROLE regress_techally_dba; SELECT techally.create_store(''regress_theirs'')');
SELECT format('GRANT CREATE ON DATABASE %I TO regress_techally_dba', current_database()) \gexec
GRANT EXECUTE ON FUNCTION techally.attach_machine(regclass, name, text, regclass), techally.detach_machine(regclass, name) TO regress_techally_dba;
SET ROLE regress_techally_dba;
SELECT techally.create_store('regress_theirs');
SELECT techally.upgrade_store('regress_theirs', (SELECT min(version) FROM regress_theirs.schema_migrations));
SELECT techally.upgrade_store('regress_theirs');
SELECT techally.adopt_store('regress_theirs');
INSERT INTO regress_theirs.users (id, email, password_hash, first_name, last_name)
VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.com', 'x', 'Ann', 'Lee');
INSERT INTO regress_theirs.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
SELECT regress_theirs.receive_stock('MUG', 10);
SELECT (regress_theirs.place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "MUG", "quantity": 2}]')).status;
SELECT regress_theirs.transition_order(id, 'process_payment') FROM regress_theirs.orders;
SELECT * FROM techally.check_store('regress_theirs');
RESET ROLE;
SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = 'regress_theirs'::regnamespace;
-- a superuser's upgrade leaves everything with the store's owner
SET techally.allow_drop = on;
SELECT techally.upgrade_store('regress_theirs', (SELECT min(version) FROM regress_theirs.schema_migrations));
SELECT techally.upgrade_store('regress_theirs');
SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = 'regress_theirs'::regnamespace;
SELECT DISTINCT proowner::regrole FROM pg_proc WHERE pronamespace = 'regress_theirs'::regnamespace;
-- and runs none of the owner's code as the superuser
SET ROLE regress_techally_dba;
CREATE TABLE regress_theirs.seen (who text);
CREATE FUNCTION regress_theirs.spy(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN INSERT INTO regress_theirs.seen VALUES (current_user); RETURN $1::text = $2::text; END $$;
CREATE OPERATOR regress_theirs.= (FUNCTION = regress_theirs.spy, LEFTARG = varchar, RIGHTARG = varchar);
INSERT INTO regress_theirs.products (sku, name, slug, price) VALUES ('CUP', 'Cup', 'cup', 8);
RESET ROLE;
SELECT techally.adopt_store('regress_theirs');
SELECT DISTINCT who FROM regress_theirs.seen;
DROP OPERATOR regress_theirs.= (varchar, varchar) CASCADE;
DROP FUNCTION regress_theirs.spy(varchar, varchar);
DROP TABLE regress_theirs.seen;
SELECT techally.adopt_store('regress_theirs');
SELECT techally.drop_store('regress_theirs');
RESET techally.allow_drop;
SELECT format('REVOKE CREATE ON DATABASE %I FROM regress_techally_dba', current_database()) \gexec
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA techally FROM regress_techally_dba, regress_techally_nobody;
DROP ROLE regress_techally_dba, regress_techally_nobody;
SELECT rolname FROM pg_roles WHERE rolname LIKE 'regress\_techally\_%';

-- search_path of ours: pg_catalog first, so no name in a store's schema is taken for the server's
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace IN ('techally'::regnamespace, 'regress_shop'::regnamespace)
   AND p.prosecdef AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);

SELECT techally.drop_store('regress_shop');
SELECT * FROM techally.stores;
DROP TABLE catalog, versions;
DROP PROCEDURE remember(text, name);
DROP FUNCTION raised(text), fingerprint(name), differences();
