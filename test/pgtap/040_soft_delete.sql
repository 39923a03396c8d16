-- Soft delete as it is installed: the functions, the registry, and a store's tables.
BEGIN;
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SET search_path = public, pg_catalog;
DO $$ BEGIN PERFORM techally.create_store('pgtap_shop'); END $$;
SET search_path = pgtap_shop, public, pg_catalog;
SELECT no_plan();

SELECT has_function('techally', 'enable_soft_delete', ARRAY['regclass']);
SELECT function_returns('techally', 'enable_soft_delete', ARRAY['regclass'], 'void');
SELECT function_returns('techally', 'disable_soft_delete', ARRAY['regclass'], 'void');
SELECT function_returns('techally', 'live_unique', ARRAY['regclass', 'name[]'], 'void');
SELECT function_returns('techally', 'soft_delete', ARRAY['text', 'uuid'], 'boolean');
SELECT function_returns('techally', 'soft_delete', ARRAY['regclass', 'uuid'], 'boolean');
SELECT function_returns('techally', 'restore_deleted', ARRAY['text', 'uuid'], 'boolean');
SELECT function_returns('techally', 'purge_deleted', ARRAY['regclass', 'interval', 'integer'], 'bigint');
SELECT function_returns('pgtap_shop', 'soft_delete_user', ARRAY['uuid'], 'boolean');
SELECT is(pg_get_function_arguments('techally.soft_delete(text, uuid)'::regprocedure), 'table_name text, record_id uuid', 'the arguments of soft_delete by name');
SELECT is(pg_get_function_arguments('techally.soft_delete(regclass, uuid)'::regprocedure), 'target regclass, record_id uuid', 'the arguments of soft_delete');
SELECT is(pg_get_function_arguments('techally.restore_deleted(text, uuid)'::regprocedure), 'table_name text, record_id uuid', 'the arguments of restore_deleted');
SELECT is(pg_get_function_arguments('techally.purge_deleted(regclass, interval, integer)'::regprocedure),
          'target regclass, older_than interval, max_rows integer DEFAULT 10000', 'the arguments of purge_deleted');
SELECT is(pg_get_function_arguments('soft_delete_user(uuid)'::regprocedure), 'user_uuid uuid', 'the arguments of soft_delete_user');
SELECT isnt_definer('techally', p.proname, string_to_array(oidvectortypes(p.proargtypes), ', ')::name[], p.proname || ' acts with the rights of the caller')
  FROM pg_proc p WHERE p.pronamespace = 'techally'::regnamespace AND p.proname ~ 'soft_delete|live_unique|restore_deleted|purge_deleted';
SELECT is_definer('pgtap_shop', 'soft_delete_user', ARRAY['uuid']);
SELECT is((SELECT setting || ' ' || context FROM pg_settings WHERE name = 'techally.hard_delete'), 'off user', 'techally.hard_delete is off');

SELECT has_table('techally', 'soft_delete_tables', 'the registry');
SELECT col_is_pk('techally', 'soft_delete_tables', 'target', 'by table');
SELECT col_type_is('techally', 'soft_delete_tables', 'target', 'regclass', 'as a regclass');
SELECT bag_eq($$SELECT target::text FROM techally.soft_delete_tables WHERE target::text NOT LIKE '%.%'$$,
              ARRAY['users', 'categories', 'brands', 'products', 'product_variants'], 'a store''s soft-delete tables');
SELECT is_empty($$SELECT attrelid::regclass FROM pg_attribute WHERE attname = 'deleted_at' AND attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgtap_shop'::regnamespace AND relkind IN ('r', 'p'))
              EXCEPT SELECT target FROM techally.soft_delete_tables$$, 'are all that have deleted_at');
SELECT is_empty($$SELECT message FROM techally.soft_delete_health() WHERE status <> 'OK' AND message LIKE '%pgtap_shop%'$$, 'nothing is missing');

CREATE TEMPORARY TABLE target AS SELECT unnest(ARRAY['users', 'categories', 'brands', 'products', 'product_variants'])::name AS name;
SELECT col_type_is('pgtap_shop', name, 'deletion_id', 'uuid', name || ' has a deletion_id') FROM target;
SELECT has_trigger('pgtap_shop', name, 'techally_soft_delete', name || ' has its trigger') FROM target;
SELECT has_trigger('pgtap_shop', name, 'techally_deleted_at', name || ' has its other trigger') FROM target;
SELECT trigger_is('pgtap_shop', name, 'techally_soft_delete', 'techally', 'soft_delete_row', name || ' and its function') FROM target;
SELECT has_index('pgtap_shop', name, ('idx_' || name || '_deleted_at')::name, name || ' has its index') FROM target;
SELECT is_empty($$SELECT conrelid::regclass, conname FROM pg_constraint f WHERE contype = 'f' AND conparentid = 0 AND confrelid::regclass::text IN (SELECT name FROM target)
                     AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = f.conrelid AND t.tgconstrrelid = f.confrelid
                                        AND t.tgfoid = 'techally.refuse_deleted_parent'::regproc)$$, 'whatever refers to them is guarded');
SELECT isnt_empty($$SELECT FROM pg_trigger WHERE tgrelid = 'order_items'::regclass AND tgname = 'techally_parent_products'$$, 'order_items, for one');

-- and what they do
INSERT INTO users (id, email, password_hash, first_name, last_name) VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.org', 'x', 'Ann', 'Smith');
INSERT INTO products (id, sku, name, slug, price, is_published) VALUES ('a0000000-0000-4000-8000-000000000000', 'A', 'Anvil', 'anvil', 10.00, true);
INSERT INTO product_variants (id, product_id, sku, name) VALUES ('a1000000-0000-4000-8000-000000000000', 'a0000000-0000-4000-8000-000000000000', 'A-S', 'small');
DO $$ BEGIN PERFORM receive_stock('A-S', 9); PERFORM place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "A-S", "quantity": 1}]'); END $$;
SELECT is(soft_delete_user('00000000-0000-4000-8000-000000000001'), true, 'a user with orders is deleted');
SELECT is(soft_delete_user('00000000-0000-4000-8000-000000000001'), false, 'once');
SELECT throws_ok('SELECT soft_delete_user(''00000000-0000-4000-8000-000000000002'')', 'TA007');
SELECT throws_ok('SELECT soft_delete_user(NULL)', '22004');
SELECT throws_ok($$SELECT place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "A-S", "quantity": 1}]')$$, 'TA007', NULL, 'and orders no more');
SELECT lives_ok($$SELECT transition_order(id, 'process_payment') FROM orders$$, 'the order goes on');
SELECT is(techally.restore_deleted('users', '00000000-0000-4000-8000-000000000001'), true, 'the user comes back');
SELECT is(techally.soft_delete('pgtap_shop.products', 'a0000000-0000-4000-8000-000000000000'), true, 'a product is deleted');
SELECT is((SELECT count(deleted_at)::int FROM product_variants), 1, 'with its variants');
SELECT throws_ok($$SELECT place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "A-S", "quantity": 1}]')$$, 'TA006', NULL, 'and not sold any more');
SELECT throws_ok($$INSERT INTO products (sku, name, slug, price) VALUES ('A-S', 'x', 'x', 1)$$, '23505', NULL, 'its SKU stays its own');
SELECT is_empty($$SELECT * FROM techally.check_store('pgtap_shop')$$, 'the store is sound');
SELECT is(techally.restore_deleted('products', 'a0000000-0000-4000-8000-000000000000'), true, 'it comes back');
SELECT is((SELECT count(deleted_at)::int FROM product_variants), 0, 'with its variants');
SELECT lives_ok($$SELECT place_order('00000000-0000-4000-8000-000000000001', '[{"sku": "A-S", "quantity": 1}]')$$, 'and is sold again');
SELECT is_empty($$SELECT * FROM techally.check_store('pgtap_shop')$$, 'the store is sound afterwards');
SELECT * FROM finish();
ROLLBACK;
