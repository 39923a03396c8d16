-- Search: what an application shows: filters, sorts, pages, suggestions, and
-- what people send it.
SET client_min_messages = warning;
SELECT techally.create_store('lister');
INSERT INTO lister.brands (id, name, slug) VALUES
    ('b0000000-0000-0000-0000-000000000001', 'Brook', 'brook'), ('b0000000-0000-0000-0000-000000000002', 'Broom & Co', 'broom'),
    ('b0000000-0000-0000-0000-000000000003', 'Bronze', 'bronze');
INSERT INTO lister.categories (id, name, slug, parent_id) VALUES
    ('c0000000-0000-0000-0000-000000000001', 'Seats', 'seats', NULL),
    ('c0000000-0000-0000-0000-000000000002', 'Stools', 'stools', 'c0000000-0000-0000-0000-000000000001'),
    ('c0000000-0000-0000-0000-000000000003', 'Steps', 'steps', 'c0000000-0000-0000-0000-000000000002');
INSERT INTO lister.products (id, sku, name, slug, price, is_published, description, brand_id, category_id, tags, attributes)
SELECT ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, 'CH-' || i, (ARRAY['Oak','Birch','Cherry'])[1 + i % 3] || ' chair ' || i, 'p' || i, i, true,
       'A chair to sit on.', ('b0000000-0000-0000-0000-00000000000' || 1 + i % 3)::uuid, ('c0000000-0000-0000-0000-00000000000' || 1 + i % 3)::uuid,
       ARRAY['tag' || i % 2], jsonb_build_object('legs', 3 + i % 2)
  FROM generate_series(1, 12) i;

CREATE FUNCTION page(query text, filters jsonb DEFAULT '{}', sort text DEFAULT 'relevance', size integer DEFAULT 4) RETURNS text LANGUAGE sql AS
$$ SELECT (x->>'total') || ': ' || coalesce((SELECT string_agg(i->>'name', ', ' ORDER BY o) FROM jsonb_array_elements(x->'items') WITH ORDINALITY j(i, o)), 'nothing')
     FROM lister.search(query, filters, sort, NULL, size) x $$;
-- an error's code and message
CREATE FUNCTION said(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN EXECUTE statement INTO result; RETURN coalesce(left(result, 60), 'null');
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM; END $$;

-- ratings, once the store has reviews
SELECT said($$SELECT lister.search('chair', sort => 'rating')$$), said($$SELECT lister.search('chair', '{"rating_min": 4}')$$);
CREATE TABLE lister.reviews (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), product_id uuid NOT NULL REFERENCES lister.products (id),
    rating integer NOT NULL CHECK (rating BETWEEN 1 AND 5), deleted_at timestamp);
INSERT INTO lister.reviews (product_id, rating, deleted_at) VALUES
    ('00000000-0000-0000-0000-000000000002', 5, NULL), ('00000000-0000-0000-0000-000000000002', 4, NULL),
    ('00000000-0000-0000-0000-000000000005', 5, NULL), ('00000000-0000-0000-0000-000000000007', 4, NULL),
    ('00000000-0000-0000-0000-000000000008', 5, now()), ('00000000-0000-0000-0000-000000000009', 1, NULL);
SELECT page('chair', sort => 'rating'), page('chair', '{"rating_min": 4.5}', 'price_desc'), page('chair', '{"rating_min": 4.51}');
SELECT i->>'name' AS name, i->'rating' AS rating FROM jsonb_array_elements(lister.search('chair', sort => 'rating', page_size => 5)->'items') i;
SELECT page('chair', '{"rating_min": 0}'), said($$SELECT lister.search('chair', '{"rating_min": "4"}')$$);
WITH RECURSIVE pages AS (
    SELECT 1 AS n, lister.search('chair', sort => 'rating', page_size => 5) AS x
    UNION ALL SELECT n + 1, lister.search('chair', sort => 'rating', page_size => 5, after => x->>'next') FROM pages WHERE x->>'next' IS NOT NULL)
SELECT n, string_agg(i->>'sku', ' ' ORDER BY o) FROM pages, jsonb_array_elements(x->'items') WITH ORDINALITY j(i, o) GROUP BY n ORDER BY n;
DROP TABLE lister.reviews;
SELECT said($$SELECT lister.search('chair', sort => 'rating')$$);

-- a reservation that has expired holds nothing back, before anybody sweeps it
SELECT lister.receive_stock('CH-3', 2);
SELECT lister.reserve_stock('CH-3', 2, NULL, '1 hour') IS NOT NULL AS reserved;
SELECT page('chair', '{"in_stock": true}');
UPDATE lister.stock_reservations SET expires_at = clock_timestamp() - interval '1 second';
SELECT page('chair', '{"in_stock": true}'), (SELECT quantity_reserved FROM lister.inventory_stock) AS reserved, lister.available('CH-3') AS available;
SELECT page('chair', size => 1), lister.search('chair', page_size => 0, facets => '{in_stock}')->'facets'->'in_stock' AS in_stock;
SELECT (SELECT name FROM lister.search_products('chair', 1)) = (SELECT p.name FROM techally.search_brute_force('lister', '{chair}', 1) b JOIN lister.products p USING (id)) AS brute_force_too;
SELECT techally.expire_reservations('lister', 100);
SELECT page('chair', '{"in_stock": true}');

-- what sells best is suggested first
SELECT * FROM lister.suggest('bro');
SELECT * FROM lister.suggest('ch', 3);
INSERT INTO lister.users (id, email, password_hash, first_name, last_name) VALUES ('d0000000-0000-0000-0000-000000000001', 'a@example.com', 'x', 'A', 'B');
SELECT lister.receive_stock('CH-' || i, 100) AS received FROM (VALUES (4), (7), (8)) v(i);
SELECT count(*) AS placed FROM lister.place_order('d0000000-0000-0000-0000-000000000001', '[{"sku": "CH-7", "quantity": 9}, {"sku": "CH-4", "quantity": 4}, {"sku": "CH-8", "quantity": 5}]');
SELECT techally.fold_search('lister') > 0 AS folded;
SELECT * FROM lister.suggest('bro');
SELECT * FROM lister.suggest('ch', 3);
SELECT * FROM lister.suggest('birch', 3);
SELECT page(''), page('', sort => 'best_selling'), page('-oak', size => 2);
UPDATE lister.products SET description = 'Changed since the fold.' WHERE sku = 'CH-7';
SELECT * FROM lister.suggest('chair', 2);
UPDATE lister.products SET is_published = false WHERE sku = 'CH-7';
SELECT * FROM lister.suggest('chair', 2);
UPDATE lister.products SET is_published = true WHERE sku = 'CH-7';

-- filters and cursors that are none
SELECT f, said(format('SELECT lister.search(%L, %L)->>%L', 'chair', f, 'total')) FROM unnest(ARRAY[
    'null', '"x"', '7', 'true', '[]', '{"a": 1}', '{"category": null}', '{"category": 7}', '{"category": true}', '{"category": [["steps"]]}', '{"category": {}}', '{"category": []}',
    '{"brand": ["broom", 7, null]}', '{"brand": "x'' OR 1=1 --"}', '{"price_min": null}', '{"price_min": "1"}', '{"price_min": -5}', '{"price_max": -5}', '{"price_min": 1e300}', '{"price_max": -1e300}', '{"price_min": 5, "price_max": 4}',
    '{"in_stock": "true"}', '{"in_stock": 1}', '{"in_stock": false}', '{"tags": {}}', '{"tags": ["tag1", "tag0"]}', '{"tags": ["tag1", "tag1"]}', '{"tags": []}', '{"attributes": []}', '{"attributes": {}}', '{"attributes": {"legs": 3}}', '{"attributes": {"legs": "3"}}', '{"attributes": {"legs": [3, 4]}}', '{"attributes": {"legs": {}}}', '{"attributes": {"legs=3": ""}}', '{"attributes": {"": ""}}',
    '{"": 1}', '{"price_min\u0001": 1}']) WITH ORDINALITY u(f, o) ORDER BY o;
SELECT said(format('SELECT lister.search(%L, %L)', 'chair', jsonb_build_object('tags', (SELECT jsonb_agg(i) FROM generate_series(1, 101) i))));
SELECT said(format('SELECT lister.search(%L, %L)', 'chair', jsonb_build_object('tags', (SELECT jsonb_agg('t' || i) FROM generate_series(1, 100) i))));
SELECT said(format('SELECT lister.search(%L, %L)', 'chair', jsonb_build_object('brand', (SELECT jsonb_agg('t' || i) FROM generate_series(1, 100) i)))) LIKE '{%' AS none_of_a_hundred;
SELECT left(c, 10) AS c, said(format('SELECT lister.search(%L, after => %L, page_size => 2)', 'chair', c)) FROM unnest(ARRAY[
    '', ' ', '01', repeat('0', 73), repeat('0', 74), repeat('f', 74), repeat('f', 100000), 'xyz', E'\u2603', repeat(E'\u2603', 37)]) WITH ORDINALITY u(c, o) ORDER BY o;
-- each byte of a cursor changed: another page or an error, never a crash
SELECT count(*) FILTER (WHERE s LIKE '22023%' OR s LIKE '{%') AS sound, count(*)
  FROM (SELECT lister.search('chair', page_size => 2)->>'next' AS c) x, generate_series(1, length(x.c)) at, unnest('{0,7,f}'::text[]) digit,
       LATERAL said(format('SELECT lister.search(%L, after => %L, page_size => 2)', 'chair', overlay(x.c PLACING digit FROM at FOR 1))) s;
SELECT said(format('SELECT lister.search(%L, %L, after => %L)', 'chair', '{"tags": "tag1"}', lister.search('chair', page_size => 2)->>'next')) AS other_filters,
       said(format('SELECT lister.search(%L, sort => %L, after => %L)', 'chair', 'price', lister.search('chair', page_size => 2)->>'next')) AS other_sort;
SELECT n, said(format('SELECT jsonb_array_length(lister.search(%L, page_size => %s)->%L)', 'chair', n, 'items')) FROM unnest('{0,1,1000,1001,-1,2147483647,-2147483648}'::integer[]) WITH ORDINALITY u(n, o) ORDER BY o;
SELECT said($$SELECT lister.search('chair', facets => array_fill('brand'::text, ARRAY[17]))$$),
       said($$SELECT lister.search('chair', facets => '{NULL,brand,brand}', page_size => 0)->'facets'->'brand'->0->>'count'$$),
       said($$SELECT lister.search('chair', facets => '{attributes.}', page_size => 0)->>'facets'$$),
       said($$SELECT lister.search('chair', facets => '{attributes.legs}', page_size => 0)->>'facets'$$);

-- categories in a circle
UPDATE lister.categories SET parent_id = 'c0000000-0000-0000-0000-000000000003' WHERE slug = 'seats';
SELECT page('chair', '{"category": "stools"}', size => 1), page('steps chair 9', size => 2);
SELECT techally.fold_search('lister') > 0 AS folded;
SELECT * FROM lister.suggest('st', 2);
UPDATE lister.categories SET parent_id = NULL WHERE slug = 'seats';

-- what is shown is escaped, also where it is marked
INSERT INTO lister.products (id, sku, name, slug, price, is_published, description)
VALUES ('00000000-0000-0000-0000-000000000099', 'XSS-1', '<script>alert("chair")</script> & ''x''', 'x', 1, true,
        repeat('<b onclick=''x''>&amp;" ', 30) || 'settee<img src=x>' || repeat(' "<i>"', 50));
SELECT i->>'highlighted_name' AS name, i->>'snippet' AS snippet FROM jsonb_array_elements(lister.search('script settee')->'items') i;
SELECT bool_or(regexp_replace(coalesce(i->>'snippet', '') || (i->>'highlighted_name'), '</?mark>|&(lt|gt|amp|quot|#39);', '', 'g') ~ '[<>&"'']') AS something_unescaped
  FROM unnest('{script,settee,amp,b,onclick,x,img src,"<b>",&lt;}'::text[]) q, LATERAL jsonb_array_elements(lister.search(q)->'items') i;

-- the name, or half of a character, is never cut apart
UPDATE lister.products SET description = repeat('ш☕é🔥', 300) WHERE sku = 'XSS-1';
SELECT lister.search('script')->'items'->0->>'snippet' ~ '^[ш☕é🔥… ]+$' AS whole;
SELECT o, said(format('SELECT count(*) FROM lister.search_products(%L)', q)) FROM unnest(ARRAY[
    repeat(E'e\u0301', 100000), repeat(E'\u202E', 5000) || 'chair', E'cha\u00ADir', repeat('☕', 10000), E'\u0001\u0002chair', repeat('"chair" ', 1000), repeat('-chair ', 1000), repeat('chair" -"oak', 500)]) WITH ORDINALITY u(q, o) ORDER BY o;

-- phrases across fields are none; exclusions alone, and of everything
SELECT page('"oak chair"', size => 1), page('"chair brook"', size => 1), page('"chair 3" -oak', size => 1), page('"chair 3" -birch'), page('-chair'), page('-chair -oak -script', size => 2);

-- inside a transaction: what it wrote is found, what it took back is not
BEGIN;
UPDATE lister.products SET name = 'Amber throne' WHERE sku = 'CH-1';
SAVEPOINT s;
UPDATE lister.products SET name = 'Green throne' WHERE sku = 'CH-1';
INSERT INTO lister.products (sku, name, slug, price, is_published) SELECT 'BULK-' || i, 'Green divan ' || i, 'bulk' || i, 1, true FROM generate_series(1, 300) i;
SELECT page('throne'), page('green throne'), page('green divan', size => 0);
ROLLBACK TO s;
SELECT page('throne'), page('green divan', size => 0);
ROLLBACK;
SELECT page('throne'), page('amber');
-- the same numbers of segments, other contents
BEGIN;
INSERT INTO lister.products (sku, name, slug, price, is_published) SELECT 'BULK-' || i, 'Green divan ' || i, 'bulk' || i, 1, true FROM generate_series(1, 300) i;
SELECT page('divan', size => 0);
ROLLBACK;
DO $$ BEGIN PERFORM setval('lister.search_segments_segment_seq', (SELECT max(segment) FROM lister.search_segments)); END $$;
INSERT INTO lister.products (sku, name, slug, price, is_published) SELECT 'BULK-' || i, 'Violet ottoman ' || i, 'bulk' || i, 1, true FROM generate_series(1, 300) i;
SELECT page('divan', size => 0), page('ottoman', size => 0);

-- a price writes no document
SELECT techally.fold_search('lister') IS NOT NULL AS folded;
CREATE TEMPORARY TABLE before AS SELECT 'd' || segment || '.' || chunk AS what, xmin::text AS v FROM lister.search_documents UNION ALL SELECT 'p' || term || segment || '.' || last, xmin::text AS v FROM lister.search_postings;
UPDATE lister.products SET price = price + 1000 WHERE sku LIKE 'CH-%';
SELECT (SELECT count(*) FROM lister.search_recent) AS recent, (SELECT count(*) FROM lister.search_prices) AS prices;
SELECT count(*) AS changed FROM before b FULL JOIN (SELECT 'd' || segment || '.' || chunk AS what, xmin::text AS v FROM lister.search_documents UNION ALL SELECT 'p' || term || segment || '.' || last, xmin::text AS v FROM lister.search_postings) a USING (what)
 WHERE b.v IS DISTINCT FROM a.v;
SELECT page('chair', '{"price_min": 1001}', 'price', 2), page('chair', '{"price_max": 1000}');

-- rows that are hidden from the caller stay hidden: with the caller's rights, and with the owner's where it is forced on him
CREATE ROLE regress_lister;
GRANT USAGE ON SCHEMA lister, techally TO regress_lister;
GRANT SELECT ON ALL TABLES IN SCHEMA lister TO regress_lister;
ALTER TABLE lister.products ENABLE ROW LEVEL SECURITY;
CREATE POLICY cheap ON lister.products FOR SELECT USING (name LIKE 'Oak%');
SET ROLE regress_lister;
SELECT count(*), bool_and(name LIKE 'Oak%') AS all_oak FROM techally.search_products('lister', 'chair');
SELECT jsonb_array_length(x->'items') AS items, x->>'items' ~ 'Birch|Cherry' AS leaks FROM techally.search('lister', 'chair') x;
SELECT count(*) FROM techally.suggest('lister', 'birch');
RESET ROLE;
REVOKE SELECT ON lister.products FROM regress_lister;
SET ROLE regress_lister;
SELECT said($$SELECT count(*) FROM techally.search_products('lister', 'chair')$$), said($$SELECT techally.search('lister', 'chair')$$),
       said($$SELECT count(*) FROM techally.suggest('lister', 'ch')$$), said($$SELECT count(*) FROM techally.explain_search('lister', 'ch', '00000000-0000-0000-0000-000000000001')$$),
       said($$SELECT count(*) FROM lister.search_products('chair')$$), said($$SELECT count(*) FROM techally.search_brute_force('lister', '{chair}')$$);
RESET ROLE;
DROP OWNED BY regress_lister;
DROP ROLE regress_lister;
DROP POLICY cheap ON lister.products;
ALTER TABLE lister.products DISABLE ROW LEVEL SECURITY;

-- a session that may remember nothing, or little, finds the same
SET techally.search_cache = 0;
SELECT page('chair', size => 2), page('cherry chair 7', size => 1);
SET techally.search_cache = '64kB';
SELECT page('chair', size => 2), page('cherry chair 7', size => 1), count(*) FROM generate_series(1, 50) i, LATERAL lister.search_products('chair ' || i) GROUP BY 1, 2;
RESET techally.search_cache;

DROP FUNCTION page, said;
SET techally.allow_drop = on;
SELECT techally.drop_store('lister');
