-- The tables of a store: which there are, with which columns, and that each is
-- described.  Later versions may add, never take away.
BEGIN;
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SET search_path = public, pg_catalog;
DO $$ BEGIN PERFORM techally.create_store('pgtap_shop'); END $$;

-- what api.md and the source documents promise: name and type of each column
CREATE TEMPORARY TABLE promised AS
SELECT t.name AS relation, c.n, split_part(c.words, ' ', 1) AS name,
       split_part(c.words, ' ', 2) AS type
  FROM (VALUES
    ('brands',
     'id uuid, name varchar(100), slug varchar(100), description text,
      logo_url varchar(500), website_url varchar(500), metadata jsonb, is_active boolean,
      created_at timestamptz, updated_at timestamptz, deleted_at timestamptz'),
    ('categories',
     'id uuid, name varchar(100), slug varchar(100), description text, parent_id uuid,
      image_url varchar(500), metadata jsonb, sort_order integer, is_active boolean,
      created_at timestamptz, updated_at timestamptz, deleted_at timestamptz'),
    ('inventory',
     'id uuid, product_id uuid, variant_id uuid, warehouse_id uuid, quantity_on_hand bigint,
      quantity_reserved bigint, quantity_available bigint, reorder_point integer,
      reorder_quantity integer'),
    ('inventory_stock',
     'id uuid, product_id uuid, variant_id uuid, warehouse_id uuid, stripe smallint,
      quantity_on_hand integer, quantity_reserved integer, reorder_point integer,
      reorder_quantity integer'),
    ('order_charges',
     'id uuid, order_id uuid, code varchar(50), description text, amount numeric(14,2)'),
    ('order_items',
     'id uuid, order_id uuid, line_number integer, product_id uuid, variant_id uuid,
      sku varchar(100), name varchar(255), quantity integer, unit_price numeric(14,4),
      line_total numeric(14,2)'),
    ('order_return_items',
     'return_id uuid, order_item_id uuid, quantity integer, amount numeric(14,2)'),
    ('order_returns',
     'id uuid, order_id uuid, amount numeric(14,2), note text, actor uuid,
      created_at timestamptz'),
    ('order_status_history',
     'order_id uuid, sequence integer, from_status text, to_status text, event text,
      actor uuid, note text, request_id text, created_at timestamptz'),
    ('orders',
     'id uuid, order_number varchar(20), user_id uuid, status order_status,
      subtotal numeric(14,2), tax numeric(14,2), shipping numeric(14,2),
      discount numeric(14,2), charges numeric(14,2), total numeric(14,2),
      currency varchar(3), shipping_address jsonb, billing_address jsonb, notes text,
      idempotency_key text, idempotency_payload jsonb, created_at timestamptz,
      updated_at timestamptz, completed_at timestamptz'),
    ('product_variants',
     'id uuid, product_id uuid, sku varchar(100), name varchar(255), price numeric(10,2),
      cost numeric(10,2), barcode varchar(100), weight numeric(10,3), attributes jsonb,
      images jsonb, sort_order integer, is_active boolean, created_at timestamptz,
      updated_at timestamptz, deleted_at timestamptz'),
    ('products',
     'id uuid, sku varchar(100), name varchar(255), slug varchar(255), description text,
      short_description varchar(500), category_id uuid, brand_id uuid, price numeric(10,2),
      compare_at_price numeric(10,2), cost numeric(10,2), barcode varchar(100),
      low_stock_threshold integer, weight numeric(10,3), dimensions jsonb, images jsonb,
      tags text[], attributes jsonb, metadata jsonb, is_active boolean, is_featured boolean,
      is_published boolean, published_at timestamptz, created_by uuid, updated_by uuid,
      created_at timestamptz, updated_at timestamptz, deleted_at timestamptz, language text'),
    ('schema_migrations',
     'version text, description text, checksum text, applied_at timestamptz'),
    ('search_documents',
     'segment integer, chunk integer, first_id uuid, live bigint, data bytea'),
    ('search_popularity',
     'id uuid, sold bigint'),
    ('search_postings',
     'term text, segment integer, last integer, total integer, max_impact smallint, data bytea'),
    ('search_prices',
     'product_id uuid, version bigint, price bigint'),
    ('search_recent',
     'product_id uuid, version bigint, price bigint, created integer, popularity integer, terms bytea'),
    ('search_segments',
     'segment integer, documents integer, created_at timestamptz, refreshed_at timestamptz, popular bytea'),
    ('search_synonyms',
     'term text, synonym text, one_way boolean'),
    ('skus',
     'sku varchar(100), product_id uuid, variant_id uuid'),
    ('stock_movements',
     'id bigint, stock_id uuid, movement_type varchar(20), quantity integer, order_id uuid,
      reservation_id uuid, note text, actor uuid, request_id text, created_at timestamptz'),
    ('stock_reservation_parts',
     'reservation_id uuid, stock_id uuid, quantity integer'),
    ('stock_reservations',
     'id uuid, order_id uuid, reference text, quantity bigint, status varchar(20),
      expires_at timestamptz, created_at timestamptz, closed_at timestamptz'),
    ('stock_stripes',
     'stock_id uuid, stripes smallint, automatic boolean, since timestamptz,
      sampled_at timestamptz, sample bigint[]'),
    ('store_settings',
     'name text, value jsonb'),
    ('users',
     'id uuid, email varchar(255), username varchar(50), email_verified boolean,
      email_verification_token varchar(255), password_hash varchar(255),
      password_reset_token varchar(255), password_reset_expires timestamptz,
      first_name varchar(100), last_name varchar(100), phone_number varchar(20),
      date_of_birth date, gender varchar(20), avatar_url text, status varchar(50),
      is_active boolean, last_login_at timestamptz, login_count integer,
      failed_login_attempts integer, locked_until timestamptz, mfa_enabled boolean,
      mfa_secret varchar(255), metadata jsonb, created_at timestamptz,
      updated_at timestamptz, deleted_at timestamptz'),
    ('warehouses',
     'id uuid, code varchar(50), name varchar(255), priority integer, address jsonb,
      is_active boolean, created_at timestamptz, updated_at timestamptz')
  ) AS t(name, columns)
 CROSS JOIN regexp_split_to_table(t.columns, ',\s+') WITH ORDINALITY AS c(words, n);

CREATE TEMPORARY VIEW actual AS
SELECT c.relname AS relation, c.relkind, a.attnum, a.attname AS name, a.attnotnull AS not_null,
       CASE WHEN y.typnamespace = 'pgtap_shop'::regnamespace THEN y.typname
            ELSE replace(replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
                         'character varying', 'varchar') END AS type,
       col_description(c.oid, a.attnum) AS comment
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type y ON y.oid = a.atttypid
 WHERE c.relnamespace = 'pgtap_shop'::regnamespace AND c.relkind IN ('r', 'p', 'v');

SELECT no_plan();

SELECT CASE relation WHEN 'inventory' THEN has_view('pgtap_shop', relation, 'view ' || relation)
                     ELSE has_table('pgtap_shop', relation, 'table ' || relation) END
  FROM (SELECT DISTINCT relation FROM promised ORDER BY 1) AS r;

SELECT is(a.type, p.type, p.relation || '.' || p.name)
  FROM promised p LEFT JOIN actual a USING (relation, name)
 ORDER BY p.relation, p.n;

-- api.md, "What an insert needs": everything else has a default or may be NULL
PREPARE needed AS
SELECT c.relname || '.' || a.attname
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.oid IN ('pgtap_shop.users'::regclass, 'pgtap_shop.products'::regclass,
                 'pgtap_shop.product_variants'::regclass, 'pgtap_shop.warehouses'::regclass)
   AND a.attnum > 0 AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '';
SELECT set_eq('needed', ARRAY[
    'users.email', 'users.password_hash', 'users.first_name', 'users.last_name',
    'products.sku', 'products.name', 'products.slug', 'products.price',
    'product_variants.product_id', 'product_variants.sku', 'product_variants.name',
    'warehouses.code', 'warehouses.name'], 'what an insert needs');

PREPARE keyless AS
SELECT c.relname::text FROM pg_class c
 WHERE c.relnamespace = 'pgtap_shop'::regnamespace AND c.relkind IN ('r', 'p')
   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);
SELECT is_empty('keyless', 'every table has a primary key');

PREPARE zoneless AS SELECT relation || '.' || name FROM actual WHERE type LIKE 'timestamp without%';
SELECT is_empty('zoneless', 'every timestamp has a time zone');

PREPARE floating AS SELECT relation || '.' || name FROM actual WHERE type IN ('real', 'double precision', 'money');
SELECT is_empty('floating', 'no amount is a float');

PREPARE undescribed_columns AS SELECT relation || '.' || name FROM actual WHERE coalesce(comment, '') = '';
SELECT is_empty('undescribed_columns', 'every column has a comment');

PREPARE undescribed_objects AS
SELECT c.relkind::text || ' ' || c.relname FROM pg_class c
 WHERE c.relnamespace = 'pgtap_shop'::regnamespace AND c.relkind NOT IN ('i', 'I', 'c')
   AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'i'))
   AND obj_description(c.oid, 'pg_class') IS NULL
UNION ALL
SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
 WHERE p.pronamespace = 'pgtap_shop'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
UNION ALL
SELECT 'type ' || t.typname FROM pg_type t
 WHERE t.typnamespace = 'pgtap_shop'::regnamespace AND t.typtype IN ('d', 'e')
   AND obj_description(t.oid, 'pg_type') IS NULL;
SELECT is_empty('undescribed_objects', 'every table, view, sequence, function and domain has a comment');

SELECT * FROM finish();
ROLLBACK;
