-- Rules that hold for the catalogs of the engine and of a store: indexed
-- foreign keys, nothing of the extension in a store's columns, privileges,
-- pinned search paths, comments.
BEGIN;
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SET search_path = public, pg_catalog;
DO $$ BEGIN PERFORM techally.create_store('pgtap_shop'); END $$;

SELECT no_plan();

-- An index serves a foreign key when its leading columns are the key's, in any
-- order, and it leaves out no row that has the key.
PREPARE unindexed AS
SELECT k.conrelid::regclass || '.' || k.conname
  FROM pg_constraint k
 WHERE k.contype = 'f' AND k.connamespace = 'pgtap_shop'::regnamespace
   AND NOT EXISTS (
        SELECT FROM pg_index i
         WHERE i.indrelid = k.conrelid AND i.indisvalid
           AND (SELECT array_agg(a ORDER BY a) FROM unnest((i.indkey::int2[])[0:cardinality(k.conkey) - 1]) AS a)
             = (SELECT array_agg(a ORDER BY a) FROM unnest(k.conkey) AS a)
           AND (i.indpred IS NULL
                OR pg_get_expr(i.indpred, i.indrelid) IN
                   (SELECT format('(%I IS NOT NULL)', a.attname) FROM pg_attribute a
                     WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey))));
SELECT is_empty('unindexed', 'every foreign key has an index');

PREPARE invalid AS
SELECT k.conrelid::regclass || '.' || k.conname FROM pg_constraint k
 WHERE k.connamespace = 'pgtap_shop'::regnamespace AND NOT k.convalidated;
SELECT is_empty('invalid', 'every constraint is valid');

-- With one, DROP EXTENSION ... CASCADE would drop the column.
PREPARE entangled AS
SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
  FROM pg_depend x          -- what belongs to the extension
  JOIN pg_depend d ON d.refclassid = x.classid AND d.refobjid = x.objid
 WHERE x.refclassid = 'pg_extension'::regclass
   AND x.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'techally')
   AND x.deptype = 'e' AND x.classid IN ('pg_type'::regclass, 'pg_proc'::regclass, 'pg_class'::regclass,
                                         'pg_operator'::regclass, 'pg_opclass'::regclass)
   AND (d.classid = 'pg_class'::regclass
            AND d.objid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_attrdef'::regclass
            AND d.objid IN (SELECT f.oid FROM pg_attrdef f JOIN pg_class c ON c.oid = f.adrelid
                             WHERE c.relnamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_constraint'::regclass
            AND d.objid IN (SELECT oid FROM pg_constraint WHERE connamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_type'::regclass
            AND d.objid IN (SELECT oid FROM pg_type WHERE typnamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_rewrite'::regclass
            AND d.objid IN (SELECT r.oid FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
                             WHERE c.relnamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_proc'::regclass
            AND d.objid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'pgtap_shop'::regnamespace));
SELECT is_empty('entangled', 'nothing but triggers of a store depends on the extension''s types and functions');

PREPARE members AS
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d
 WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'techally')
   AND (d.classid = 'pg_class'::regclass
            AND d.objid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_proc'::regclass
            AND d.objid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'pgtap_shop'::regnamespace)
        OR d.classid = 'pg_namespace'::regclass AND d.objid = 'pgtap_shop'::regnamespace);
SELECT is_empty('members', 'a store is no member of the extension');

-- the contract's functions, each with its arguments and result
SELECT has_function('pgtap_shop', f.name, f.args::text[], format('pgtap_shop.%s(%s)', f.name, array_to_string(f.args::text[], ', ')))
  FROM (VALUES
    ('place_order', '{uuid,jsonb,jsonb,jsonb,text,text,text,interval,uuid}'),
    ('import_order', '{uuid,jsonb,timestamp with time zone,text,text,jsonb,uuid}'),
    ('transition_order', '{uuid,text,text,uuid}'),
    ('return_order_lines', '{uuid,jsonb,text,uuid}'),
    ('receive_stock', '{text,integer,text,text,text}'),
    ('adjust_stock', '{text,integer,text,text,text}'),
    ('transfer_stock', '{text,integer,text,text,text}'),
    ('available', '{text,text}'),
    ('reserve_stock', '{text,integer,text,interval,text}'),
    ('extend_reservation', '{uuid,interval}'),
    ('release_reservation', '{uuid}'),
    ('commit_reservation', '{uuid,text}'),
    ('expire_reservations', '{integer}'),
    ('stripe_stock', '{text,text,integer}')) AS f(name, args);
SELECT volatility_is('pgtap_shop', 'available', '{text,text}'::name[], 'stable', 'available is stable');
SELECT volatility_is('techally', 'check_store', '{name}'::name[], 'stable', 'check_store is stable');
SELECT function_returns('pgtap_shop'::name, 'place_order'::name, 'pgtap_shop.orders'::text, 'place_order returns pgtap_shop.orders');
SELECT function_returns('pgtap_shop'::name, 'import_order'::name, 'pgtap_shop.orders'::text, 'import_order returns pgtap_shop.orders');
SELECT function_returns('pgtap_shop'::name, 'transition_order'::name, 'pgtap_shop.order_status'::text, 'transition_order returns pgtap_shop.order_status');
SELECT function_returns('pgtap_shop'::name, 'stripe_stock'::name, 'void'::text, 'stripe_stock returns nothing');

-- PUBLIC cannot call a store's functions, read its tables or make things in it
PREPARE public_functions AS
SELECT p.oid::regprocedure::text
  FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
 WHERE p.pronamespace = 'pgtap_shop'::regnamespace AND a.grantee = 0;
SELECT is_empty('public_functions', 'PUBLIC may not execute a store''s functions');

PREPARE public_tables AS
SELECT c.relname::text
  FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
 WHERE c.relnamespace = 'pgtap_shop'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND a.grantee = 0;
SELECT is_empty('public_tables', 'PUBLIC has no right on a store''s tables');

SELECT ok(NOT EXISTS (SELECT FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                       WHERE n.nspname = 'pgtap_shop' AND a.grantee = 0), 'PUBLIC has no right on a store''s schema');
SELECT ok(NOT EXISTS (SELECT FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                       WHERE n.nspname = 'techally' AND a.grantee = 0 AND a.privilege_type = 'CREATE'),
          'PUBLIC may not create in the engine''s schema');

PREPARE public_registry AS
SELECT c.relname || ' ' || a.privilege_type
  FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
 WHERE c.relnamespace = 'techally'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.grantee = 0
   AND a.privilege_type <> 'SELECT'
   AND c.relname <> 'retention_policies';   -- a view whose trigger asks who owns the table
SELECT is_empty('public_registry', 'PUBLIC may not write the registry');

PREPARE public_administration AS
SELECT p.oid::regprocedure::text
  FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
 WHERE p.pronamespace = 'techally'::regnamespace AND a.grantee = 0
   AND p.proname IN ('create_store', 'upgrade_store', 'drop_store', 'adopt_store',
                     'define_machine', 'attach_machine', 'detach_machine');
SELECT is_empty('public_administration', 'PUBLIC may not administer');

-- SECURITY DEFINER only with a pinned search path, and never for PUBLIC
PREPARE unpinned AS
SELECT p.oid::regprocedure::text FROM pg_proc p
 WHERE p.pronamespace IN ('techally'::regnamespace, 'pgtap_shop'::regnamespace) AND p.prosecdef
   AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);
SELECT is_empty('unpinned', 'every definer function has its search_path pinned');

PREPARE public_definers AS
SELECT p.oid::regprocedure::text
  FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
 WHERE p.pronamespace IN ('techally'::regnamespace, 'pgtap_shop'::regnamespace)
   AND p.prosecdef AND a.grantee = 0;
SELECT is_empty('public_definers', 'no definer function is executable by PUBLIC');

PREPARE unpinned_sql AS
SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.pronamespace IN ('techally'::regnamespace, 'pgtap_shop'::regnamespace) AND l.lanname NOT IN ('c', 'internal')
   AND p.prokind <> 'p'                                    -- one that commits can have no setting
   AND coalesce(to_jsonb(p) ->> 'prosqlbody', '') = ''     -- read when it was made
   AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS s WHERE s LIKE 'search_path=%');
SELECT is_empty('unpinned_sql', 'no function in SQL or PL/pgSQL depends on the caller''s search_path');

PREPARE atomic_bodies AS
SELECT p.oid::regprocedure::text FROM pg_proc p
 WHERE p.pronamespace = 'pgtap_shop'::regnamespace AND coalesce(to_jsonb(p) ->> 'prosqlbody', '') <> '';
SELECT is_empty('atomic_bodies', 'a store''s functions have string bodies');

-- the registry survives a dump and pg_upgrade
PREPARE undumped AS
SELECT c.oid::regclass::text FROM pg_class c
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'techally'
 WHERE c.relkind IN ('r', 'p', 'S') AND c.oid <> ALL (coalesce(e.extconfig, '{}'))
   -- how maintenance went on this server, which is nothing to another
   AND c.relname NOT IN ('maintenance_results', 'partition_runs', 'audit_marks');
SELECT is_empty('undumped', 'every table and sequence of the registry is dumped');

PREPARE undumpable AS
SELECT a.attrelid::regclass || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace IN ('techally'::regnamespace, 'pgtap_shop'::regnamespace)
   AND c.relkind IN ('r', 'p') AND a.attnum > 0
   AND a.atttypid IN ('oid'::regtype, 'regproc'::regtype, 'regprocedure'::regtype, 'regoper'::regtype,
                      'regoperator'::regtype, 'regconfig'::regtype, 'regdictionary'::regtype,
                      'regnamespace'::regtype, 'regcollation'::regtype);
SELECT is_empty('undumpable', 'no column holds an OID that a dump or pg_upgrade would not carry over');

SELECT ok(NOT extrelocatable, 'the extension is not relocatable') FROM pg_extension WHERE extname = 'techally';

-- every object of the engine is described
PREPARE undescribed AS
SELECT pg_describe_object(d.classid, d.objid, 0)
  FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
 WHERE e.extname = 'techally' AND d.deptype = 'e'
   AND d.classid NOT IN ('pg_type'::regclass, 'pg_cast'::regclass)
   AND obj_description(d.objid, d.classid::regclass::text) IS NULL;
SELECT is_empty('undescribed', 'every object of the engine has a comment');

PREPARE undescribed_columns AS
SELECT c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'techally'::regnamespace AND c.relkind IN ('r', 'p', 'v')
   AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL;
SELECT is_empty('undescribed_columns', 'every column of the registry has a comment');

SELECT * FROM finish();
ROLLBACK;
