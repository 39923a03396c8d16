-- Search: what is found, in what order, and that it is always current.
SET client_min_messages = warning;
SELECT techally.create_store('finder');

INSERT INTO finder.brands (id, name, slug) VALUES
    ('b0000000-0000-0000-0000-000000000001', 'Acme', 'acme'),
    ('b0000000-0000-0000-0000-000000000002', 'Kenko', 'kenko');
INSERT INTO finder.categories (id, name, slug, parent_id) VALUES
    ('c0000000-0000-0000-0000-000000000001', 'Kitchen', 'kitchen', NULL),
    ('c0000000-0000-0000-0000-000000000002', 'Drinkware', 'drinkware', 'c0000000-0000-0000-0000-000000000001');
INSERT INTO finder.products (id, sku, name, slug, price, is_published, description, brand_id, category_id, tags, attributes) VALUES
    ('00000000-0000-0000-0000-000000000001', 'MUG-01', 'Cobalt Mug', 'p1', 12.50, true, 'A blue mug for coffee & <tea>, with usb-c heater, 10x15 cm.',
     'b0000000-0000-0000-0000-000000000001', 'c0000000-0000-0000-0000-000000000002', '{gift,blue}', '{"colour": "blue", "product_type": "mug"}'),
    ('00000000-0000-0000-0000-000000000002', 'MUG-02', 'Red Mug', 'p2', 9.00, true, 'Red mugs for the office.',
     'b0000000-0000-0000-0000-000000000002', 'c0000000-0000-0000-0000-000000000002', '{gift}', '{"colour": "red"}'),
    ('00000000-0000-0000-0000-000000000003', '006R90321', 'Sage Teapot', 'p3', 34.00, true, 'A teapot of 43.2 cm with a red lid.',
     NULL, 'c0000000-0000-0000-0000-000000000001', '{}', '{}'),
    ('00000000-0000-0000-0000-000000000004', 'HS-4', 'Wireless Headset', 'p4', 59.00, true, 'Bluetooth headset, A4 box.',
     'b0000000-0000-0000-0000-000000000001', NULL, '{}', '{}'),
    ('00000000-0000-0000-0000-000000000005', 'HID-5', 'Hidden Mug', 'p5', 1.00, false, 'Not published.', NULL, NULL, '{}', '{}');

CREATE FUNCTION found(query text, most integer DEFAULT 20) RETURNS text LANGUAGE sql AS
$$ SELECT coalesce(string_agg(s.name, ', ' ORDER BY o), 'nothing')
     FROM finder.search_products(query, most) WITH ORDINALITY s(id, name, description, price, rank, o) $$;

-- what is found, in its order
SELECT q, found(q) FROM unnest(ARRAY[
    'mug', 'MUGS', 'red mug', 'cobalt mug', 'office', 'kenko', 'kitchen', 'drinkware mug', 'gift blue']) WITH ORDINALITY u(q, o) ORDER BY o;
-- nothing has all: those that have most, then any
SELECT q, found(q) FROM unnest(ARRAY['red kettle mug', 'sage headset', 'zzzqqq', 'zzzqqq mug']) WITH ORDINALITY u(q, o) ORDER BY o;
-- as they are typed: codes, sizes, SKUs
SELECT q, found(q) FROM unnest(ARRAY[
    '10x15', 'A4', 'usb-c', 'usb c', 'usbc', '43.2 cm', '43.2cm', '006R90321', '006r90321', 'MUG-02', 'mug02', 'hs 4']) WITH ORDINALITY u(q, o) ORDER BY o;
-- written as one or as two
SELECT q, found(q) FROM unnest(ARRAY['head set', 'tea pot', 'redmug']) WITH ORDINALITY u(q, o) ORDER BY o;
-- typos
SELECT q, found(q) FROM unnest(ARRAY['cobolt', 'teapto', 'hedset', 'wirless headst', 'bluetoth', 'mgu']) WITH ORDINALITY u(q, o) ORDER BY o;
-- phrases, exclusions
SELECT q, found(q) FROM unnest(ARRAY['"red mug"', '"mug red"', '"red lid" teapot', 'mug -red', '-red', 'mug -"red"', 'red -mug -teapot']) WITH ORDINALITY u(q, o) ORDER BY o;
-- nothing to go by: what sells best, then by key
SELECT q, found(q) FROM unnest(ARRAY['', '   ', 'the of and', '!!!', NULL]) WITH ORDINALITY u(q, o) ORDER BY o;

-- sold-out products sink; a reservation counts
SELECT found('mug');
SELECT finder.receive_stock('MUG-02', 1);
SELECT found('mug');
SELECT finder.reserve_stock('MUG-02', 1) IS NOT NULL AS reserved;
SELECT found('mug');
SELECT finder.receive_stock('MUG-01', 5);
SELECT found('mug'), found('red mug');

-- synonyms, at once
SELECT found('beaker');
INSERT INTO finder.search_synonyms (term, synonym) VALUES ('beaker', 'mug');
SELECT found('beaker'), found('red beaker');
INSERT INTO finder.search_synonyms (term, synonym, one_way) VALUES ('crimson', 'red', true);
SELECT found('crimson lid');
DELETE FROM finder.search_synonyms;
SELECT found('beaker');

-- always current: insert, update, delete, publish, variants, names of brands and categories
INSERT INTO finder.products (id, sku, name, slug, price, is_published)
VALUES ('00000000-0000-0000-0000-000000000006', 'KET-6', 'Copper Kettle', 'p6', 70, true);
SELECT found('kettle');
UPDATE finder.products SET name = 'Copper Cauldron' WHERE sku = 'KET-6';
SELECT found('kettle'), found('cauldron');
UPDATE finder.products SET is_published = false WHERE sku = 'KET-6';
SELECT found('cauldron');
UPDATE finder.products SET is_published = true WHERE sku = 'KET-6';
SELECT found('cauldron');
UPDATE finder.products SET deleted_at = now() WHERE sku = 'KET-6';
SELECT found('cauldron');
UPDATE finder.products SET deleted_at = NULL WHERE sku = 'KET-6';
INSERT INTO finder.product_variants (product_id, sku, name) VALUES ('00000000-0000-0000-0000-000000000006', 'KET-6-XL', 'Gigantic');
SELECT found('gigantic'), found('ket-6-xl');
UPDATE finder.product_variants SET name = 'Enormous' WHERE sku = 'KET-6-XL';
SELECT found('gigantic'), found('enormous');
DELETE FROM finder.product_variants WHERE sku = 'KET-6-XL';
SELECT found('enormous');
UPDATE finder.brands SET name = 'Zenith' WHERE slug = 'kenko';
SELECT found('kenko'), found('zenith');
UPDATE finder.categories SET name = 'Galley' WHERE slug = 'kitchen';
SELECT found('kitchen'), found('galley');
BEGIN;
UPDATE finder.products SET name = 'Vanishing' WHERE sku = 'KET-6';
SELECT found('vanishing');
ROLLBACK;
SELECT found('vanishing'), found('cauldron');
BEGIN;
SAVEPOINT s;
DELETE FROM finder.products WHERE sku = 'KET-6';
SELECT found('cauldron');
ROLLBACK TO s;
SELECT found('cauldron');
COMMIT;

-- a price alone does not write the document
SELECT version AS before FROM finder.search_recent WHERE product_id = '00000000-0000-0000-0000-000000000006' \gset
UPDATE finder.products SET price = 71 WHERE sku = 'KET-6';
SELECT version = :before AS untouched FROM finder.search_recent WHERE product_id = '00000000-0000-0000-0000-000000000006';

-- the fold changes nothing that is found, and leaves nothing recent
CREATE TEMP TABLE queries AS SELECT q, found(q) AS before FROM unnest(ARRAY['mug', 'red mug', 'red kettle mug', 'cauldron', '', 'usb-c', '-red', 'galley', 'head set']) q;
SELECT techally.fold_search('finder') > 0 AS folded;
SELECT (SELECT count(*) FROM finder.search_recent) AS recent, (SELECT count(*) FROM finder.search_prices) AS prices;
SELECT * FROM queries WHERE before IS DISTINCT FROM found(q);
UPDATE finder.products SET name = 'Scarlet Mug' WHERE sku = 'MUG-02';
SELECT found('scarlet'), found('mug');
SELECT techally.fold_search('finder', true) AS folded;
SELECT found('scarlet'), found('mug'), (SELECT count(*) FROM finder.search_segments) AS segments;
DELETE FROM finder.products WHERE sku = 'KET-6';
SELECT found('cauldron');
SELECT techally.rebuild_search('finder');
SELECT found('scarlet'), found('mug'), (SELECT count(*) FROM finder.search_segments) AS segments;

-- many at once become a segment; all is as if every product were read
INSERT INTO finder.products (id, sku, name, slug, price, is_published, description)
SELECT md5(i::text)::uuid, 'BULK-' || i, (ARRAY['red','green','blue','grey'])[1 + i % 4] || ' ' || (ARRAY['chair','table','lamp'])[1 + i % 3] || ' ' || i % 50,
       'bulk' || i, i % 90, i % 10 > 0, CASE WHEN i % 7 = 0 THEN 'a blue lamp with red shade' ELSE 'plain' END
  FROM generate_series(1, 2000) i;
UPDATE finder.products SET name = 'blue blue chair' WHERE sku LIKE 'BULK-1_5';
CREATE FUNCTION differences(queries text[], most integer) RETURNS bigint LANGUAGE sql AS
$$ WITH fast AS (SELECT q.o AS query, s.o AS place, s.id, s.rank FROM unnest(queries) WITH ORDINALITY q(q, o),
                        finder.search_products(q.q, most) WITH ORDINALITY s(id, name, description, price, rank, o)),
        slow AS (SELECT * FROM techally.search_brute_force('finder', queries, most))
   SELECT count(*) FROM fast f FULL JOIN slow s ON s.query = f.query AND s.place = f.place
    WHERE (f.id, f.rank) IS DISTINCT FROM (s.id, s.rank) $$;
SELECT differences(ARRAY['red', 'blue lamp', 'blue', 'chair', 'lamp 7', 'green table 13', 'plain', 'blue sage', 'lamp zzzqq kettle', 'red -lamp', 'mug'], 20);
SELECT differences(ARRAY['red', 'blue lamp', 'plain', 'blue sage'], 5000);
SELECT finder.receive_stock('BULK-' || i, 1) IS NOT NULL AS received FROM generate_series(3, 2000, 97) i WHERE i % 10 > 0 LIMIT 1;
SELECT differences(ARRAY['red', 'blue lamp', 'blue', 'plain', 'blue sage'], 20);
SELECT techally.fold_search('finder', true);
SELECT differences(ARRAY['red', 'blue lamp', 'blue', 'chair', 'lamp 7', 'green table 13', 'plain', 'blue sage', 'lamp zzzqq kettle', 'red -lamp', 'mug'], 20);

-- a page of results
CREATE FUNCTION page(query text, filters jsonb DEFAULT '{}', sort text DEFAULT 'relevance') RETURNS text LANGUAGE sql AS
$$ SELECT (x->>'total') || ': ' || coalesce((SELECT string_agg(i->>'name', ', ' ORDER BY o) FROM jsonb_array_elements(x->'items') WITH ORDINALITY j(i, o)), 'nothing')
     FROM finder.search(query, filters, sort, NULL, 4) x $$;
SELECT jsonb_pretty(finder.search('cobolt mug', page_size => 1));
SELECT page('red', '{"category": "drinkware"}'), page('red', '{"category": "kitchen"}'), page('red', '{"category": ["kitchen", "none"]}'), page('red', '{"category": "none"}');
SELECT page('mug', '{"brand": "Acme"}'), page('mug', '{"brand": ["acme", "kenko"]}'), page('', '{"brand": "acme"}');
SELECT page('mug', '{"tags": ["gift", "blue"]}'), page('mug', '{"attributes": {"colour": ["red", "blue"]}}'), page('', '{"attributes": {"colour": "red"}}');
SELECT page('mug', '{"price_min": 9, "price_max": 12.49}'), page('mug', '{"price_min": 12.5}'), page('mug', '{"in_stock": true}');
SELECT page('mug', '{}', 'price'), page('mug', '{}', 'price_desc'), page('mug', '{}', 'newest'), page('mug', '{}', 'best_selling');
UPDATE finder.products SET price = 99 WHERE sku = 'MUG-02';
SELECT page('mug', '{"price_min": 90}'), page('mug', '{}', 'price');
SELECT page('"red lid"'), page('mug -red'), page('sage headset');
-- facets are what counting gives
SELECT jsonb_pretty(finder.search('lamp', page_size => 0, facets => '{price,in_stock,brand}') - 'items');
SELECT jsonb_pretty(finder.search('mug', page_size => 0, facets => '{brand,category,tags,attributes.colour}') #- '{items}');
-- pages: every product once, in the order of one page
WITH RECURSIVE pages AS (
    SELECT 1 AS n, finder.search('blue', page_size => 37) AS x
    UNION ALL
    SELECT n + 1, finder.search('blue', page_size => 37, after => x->>'next') FROM pages WHERE x->>'next' IS NOT NULL),
  items AS (SELECT row_number() OVER (ORDER BY n, o) AS place, i->>'id' AS id FROM pages, jsonb_array_elements(x->'items') WITH ORDINALITY j(i, o))
SELECT count(*) = (SELECT (finder.search('blue')->>'total')::bigint) AS all_of_them, count(*) FILTER (WHERE i.id IS DISTINCT FROM s.id::text) AS different
  FROM items i FULL JOIN (SELECT *, row_number() OVER () AS place FROM finder.search_products('blue', 10000)) s USING (place);
WITH RECURSIVE pages AS (
    SELECT 1 AS n, finder.search('table', sort => 'price', page_size => 50) AS x
    UNION ALL
    SELECT n + 1, finder.search('table', sort => 'price', page_size => 50, after => x->>'next') FROM pages WHERE x->>'next' IS NOT NULL),
  items AS (SELECT row_number() OVER (ORDER BY n, o) AS place, i FROM pages, jsonb_array_elements(x->'items') WITH ORDINALITY j(i, o))
SELECT count(*) = (SELECT (finder.search('table')->>'total')::bigint) AS all_of_them,
       bool_and(coalesce((i->>'price')::numeric >= before OR stock_before AND NOT (i->>'in_stock')::boolean, true)) AS in_order
  FROM (SELECT i, lag((i->>'price')::numeric) OVER (ORDER BY place) AS before, lag((i->>'in_stock')::boolean) OVER (ORDER BY place) AS stock_before FROM items) o;
-- what is refused
SELECT finder.search('mug', '{"colour": 1}');
SELECT finder.search('mug', '[]');
SELECT finder.search('mug', '{"price_min": "x"}');
SELECT finder.search('mug', '{"brand": {}}');
SELECT finder.search('mug', sort => 'rating');
SELECT finder.search('mug', facets => '{nonsense}');
SELECT finder.search('mug', page_size => -1);
SELECT finder.search('mug', after => 'zz');
SELECT finder.search('table', after => finder.search('red', page_size => 1)->>'next');
SELECT finder.search(NULL, NULL, NULL, NULL, NULL, NULL)->>'correction' IS NULL AS nothing_said;

-- suggestions
SELECT * FROM finder.suggest('ac');
SELECT * FROM finder.suggest('cob');
SELECT * FROM finder.suggest('drink', 2);
SELECT * FROM finder.suggest('sage te');
SELECT count(*) FROM finder.suggest('');
SELECT count(*) FROM finder.suggest('zzqqzz');
SELECT count(*) FROM finder.suggest(NULL);
SELECT count(*) FROM finder.suggest(repeat('a', 100000));

-- why
SELECT term, field, weight > 0 AS weighs, contribution > 0 AS adds
  FROM finder.explain_search('scarlet mug', '00000000-0000-0000-0000-000000000002');
SELECT abs((SELECT sum(contribution) FROM finder.explain_search('scarlet mug', '00000000-0000-0000-0000-000000000002'))
         - (SELECT rank FROM finder.search_products('scarlet mug', 1))) < 0.001 AS adds_up;
SELECT count(*) FROM finder.explain_search('mug', '00000000-0000-0000-0000-000000000005');

-- a language of its own, and that of the store
INSERT INTO finder.products (id, sku, name, slug, price, is_published, language)
VALUES ('00000000-0000-0000-0000-000000000007', 'DE-7', 'Das schöne Haus', 'p7', 5, true, 'german'),
       ('00000000-0000-0000-0000-000000000008', 'XX-8', 'running shoes', 'p8', 5, true, 'no_such_language');
SELECT found('haus'), found('SCHÖNE');
SELECT found('running');
UPDATE finder.store_settings SET value = '"simple"' WHERE name = 'search_configuration';
SELECT techally.rebuild_search('finder') > 0 AS rebuilt;
SELECT found('mugs'), found('running');
UPDATE finder.store_settings SET value = '"nonsense; drop"' WHERE name = 'search_configuration';
SELECT found('mug') <> 'nothing' AS still;
UPDATE finder.store_settings SET value = '"english"' WHERE name = 'search_configuration';
SELECT techally.rebuild_search('finder') > 0 AS rebuilt;

-- hostile input is never an error
SELECT count(*) FROM finder.search_products(repeat('mug ', 262144));
SELECT count(*) FROM finder.search_products(repeat('x', 1048576));
SELECT count(*) FROM finder.search_products(repeat('"', 10001));
SELECT count(*) FROM finder.search_products(repeat('-', 10001));
SELECT count(*) FROM finder.search_products(repeat('-a "b ', 5001));
-- not aligned: versions of psql differ in how wide a mark is
\pset format unaligned
SELECT q, found(q, 1) FROM unnest(ARRAY[
    '& | ! ( ) : * <-> ', '"mug', 'mug"', '""', '" "', '-', '--', '- mug', '-"', '-"mug', '\', '\0', '\x00', E'\\u0000', '%00', '%', '_', '$$', ';', '''', '{}', '<b>mug</b>',
    'mug:*', 'mug & !red', 'b:b0000000', 'a:colour=blue', 't:gift', E'mug\tmug\nmug', E'\u200Fmug', 'قهوة', 'mug קפה', '☕', 'mug ☕🔥', '咖啡杯', 'ｍｕｇ', 'mûg', '43.2.1.0', '1e999', '-1e999', '....', '10×15',
    'mug' || repeat(' unknown', 40)]) WITH ORDINALITY u(q, o) ORDER BY o;
\pset format aligned
UPDATE finder.products SET description = repeat('very long text <>&"'' ', 40000) || 'needle' WHERE sku = 'MUG-01';
SELECT found('needle');
UPDATE finder.products SET name = '☕咖啡 قهوة', description = NULL, tags = '{"",NULL,"a:b"}', attributes = '[1, {"a": [true, null, {"b": []}]}]' WHERE sku = 'MUG-01';
SELECT found('☕'), found('قهوة'), found('咖啡');
SELECT * FROM finder.search_products('mug', -1);
SELECT count(*) FROM finder.search_products('mug', 0);
SELECT count(*) > 0 AS some FROM finder.search_products('mug', NULL);
SELECT * FROM techally.search_products('no_such_store', 'mug');

-- who may
CREATE ROLE regress_finder;
SET ROLE regress_finder;
SELECT * FROM finder.search_products('mug');
SELECT * FROM techally.search_products('finder', 'mug');
SELECT techally.fold_search('finder');
SELECT techally.rebuild_search('finder');
RESET ROLE;
GRANT USAGE ON SCHEMA finder TO regress_finder;
GRANT EXECUTE ON FUNCTION finder.search_products(text, integer), finder.suggest(text, integer) TO regress_finder;
SET ROLE regress_finder;
SELECT count(*) > 0 AS found FROM finder.search_products('red');
SELECT count(*) > 0 AS found FROM finder.suggest('re');
RESET ROLE;
DROP OWNED BY regress_finder;
DROP ROLE regress_finder;

-- the whole shop goes
TRUNCATE finder.products CASCADE;
SELECT found('mug'), found('');
SELECT count(*) FROM finder.search_postings;

DROP FUNCTION found, differences, page;
SELECT techally.drop_store('finder');
