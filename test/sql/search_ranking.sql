-- What goes before what: the thing itself before what is made for it, words as
-- they are written, fields, and when partial matches are shown.
SET client_min_messages = warning;
SELECT techally.create_store('rated');
INSERT INTO rated.brands (id, name, slug) VALUES ('00000000-0000-0000-0000-0000000000b1', 'Acme', 'acme');
CREATE FUNCTION product(sku text, name text, description text DEFAULT '', attributes jsonb DEFAULT '{}', language text DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
    INSERT INTO rated.products (id, sku, name, slug, description, price, is_published, brand_id, attributes, language)
    VALUES (md5($1)::uuid, $1, $2, $1, $3, 10, true, '00000000-0000-0000-0000-0000000000b1', $4, $5)
$$;
CREATE FUNCTION found(query text) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(name, ' < ' ORDER BY place), 'nothing')
      FROM rated.search_products(query) WITH ORDINALITY s(id, name, description, price, rank, place)
$$;

-- the head of a name: before punctuation, numbers and stop words, and neither brand nor attribute
SELECT product('K1', 'Acme Wave keyboard cover'), product('K2', 'Acme Flow keyboard'), product('K3', 'Acme Rest for a keyboard'),
       product('K4', 'Acme Tide keyboard black', '', '{"colour": "black"}'), product('K5', 'Acme keyboard tray, steel');
SELECT found('keyboard');
SELECT term, field, weight FROM rated.explain_search('keyboard', md5('K2')::uuid) WHERE term LIKE '(what%';
SELECT count(*) FROM rated.explain_search('keyboard', md5('K1')::uuid) WHERE term LIKE '(what%';
SELECT name, field FROM (VALUES ('K1', 'cover'), ('K3', 'rest'), ('K4', 'keyboard'), ('K5', 'tray')) v(sku, word)
  JOIN rated.products USING (sku) CROSS JOIN LATERAL rated.explain_search(word, id) WHERE term LIKE '(what%' ORDER BY sku;

-- adjectives behind the noun
SELECT product('F1', 'Acme clavier souple noir', '', '{}', 'french');
SELECT product('F2', 'Acme lampe clavier noir', '', '{}', 'french');
SELECT found('clavier');

-- words as they are written, before others of their stem
SELECT product('G1', 'Acme games chest'), product('G2', 'Acme gaming chest');
SELECT found('gaming chest'), found('game chest'), found('games chest');
SELECT term, field FROM rated.explain_search('gaming', md5('G2')::uuid) WHERE contribution IS NOT NULL;
SELECT term, field FROM rated.explain_search('gaming', md5('G1')::uuid) WHERE contribution IS NOT NULL;
-- they are no words to correct to, and none of the suggestions
SELECT found('=gaming chest'), found('gamng chest');

-- the name before the description, a short one before a long one
SELECT product('D1', 'Acme Aurora', 'A lantern'), product('D2', 'Acme lantern'),
       product('D3', 'Acme Boreal', 'All that you need for a night outside, with a rope, a knife, a stove, a pan, a cup, a blanket, a lantern and a good book');
SELECT found('lantern');
-- a description that repeats the name counts by half
SELECT product('R1', 'Acme parasol', 'parasol'), product('R2', 'Acme parasol', 'shade');
SELECT (SELECT rank FROM rated.search_products('parasol') WHERE id = md5('R1')::uuid)
     > (SELECT rank FROM rated.search_products('parasol') WHERE id = md5('R2')::uuid) AS counts;

-- so many full matches are enough; else those with some words follow
SELECT found('lantern cup');
INSERT INTO rated.store_settings (name, value) VALUES ('search_enough', '2');
SELECT found('lantern cup'), found('keyboard cover'), found('keyboard');
SELECT rated.search('lantern cup')->>'matched';
UPDATE rated.store_settings SET value = '"some"' WHERE name = 'search_enough';
SELECT found('lantern cup');
UPDATE rated.store_settings SET value = '2' WHERE name = 'search_enough';

-- the same from segments as from recent rows, and without an index
CREATE FUNCTION differences(queries text[]) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*)
      FROM (SELECT u.o AS query, s.place, s.id, s.rank FROM unnest(queries) WITH ORDINALITY u(q, o),
                   rated.search_products(u.q) WITH ORDINALITY s(id, name, description, price, rank, place)) f
      FULL JOIN techally.search_brute_force('rated', queries) b ON b.query = f.query AND b.place = f.place
     WHERE f.id IS DISTINCT FROM b.id OR f.rank IS DISTINCT FROM b.rank
$$;
SELECT differences(ARRAY['keyboard', 'keyboard cover', 'lantern cup', 'gaming', 'games chest', 'clavier noir', 'acme', 'lantern keyboard gaming']);
CREATE TABLE before AS SELECT q, found(q) FROM unnest(ARRAY['keyboard', 'lantern cup', 'gaming chest', 'clavier']) q;
SELECT techally.fold_search('rated') > 0 AS folded;
SELECT count(*) FROM before WHERE found IS DISTINCT FROM found(q);
SELECT differences(ARRAY['keyboard', 'keyboard cover', 'lantern cup', 'gaming', 'games chest', 'clavier noir', 'acme', 'lantern keyboard gaming']);
SELECT found('gamng chest');
-- long words, too, beside terms of every length; before the language takes the ending off
SELECT rated.search('kyeboard')->>'correction', rated.search('keybaord')->>'correction', rated.search('chste')->>'correction';
DROP TABLE before;
DROP FUNCTION differences(text[]);
DROP FUNCTION found(text);
DROP FUNCTION product(text, text, text, jsonb, text);
SELECT techally.drop_store('rated');
