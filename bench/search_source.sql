-- The words that products of the search benchmark are made of: a table
-- search_source (n, name, description, brand, kind, price).  From the lines in
-- search_lines, where they were loaded from products of the Chorus project, or
-- else made up here.  Deterministic.

CREATE TABLE search_source AS
SELECT (row_number() OVER (ORDER BY l.doc->>'id'))::integer - 1 AS n,
       left(coalesce(l.doc->>'title', l.doc->>'name'), 255) AS name,
       regexp_replace(coalesce(l.doc->>'short_description', ''), '<[^>]*>', ' ', 'g') AS description,
       left(coalesce(l.doc->>'supplier', 'None'), 100) AS brand,
       left(coalesce(l.doc->'attributes'->>'t_product_type', l.doc->'attributes'->>'t_type', 'Other'), 60) AS kind,
       coalesce((l.doc->>'price')::numeric, 995) / 100 AS price
  FROM search_lines l
 WHERE coalesce(l.doc->>'title', l.doc->>'name', '') <> '';

-- no such file: 6,000 products of our own, their words from head to tail
INSERT INTO search_source
SELECT i,
       format('%s %s %s %s %s %s-%s', b.word, a.word, k.word, c.word, e.word, upper(substr(md5(i::text), 1, 2)), 1000 + i % 4000),
       format('%s %s with %s %s, %s and %s for %s %s. %s %s cm, %s.', a.word, k.word, e.word, f.word, c.word, g.word, h.word, f.word,
              10 + i % 90, 5 + i % 40, (SELECT string_agg(substr(md5((i * 13 + w * w)::text), 1, 4 + w % 4), ' ') FROM generate_series(1, 6) w)),
       b.word, k.word, 1 + (i * 37 % 50000) / 100.0
  FROM generate_series(0, 5999) i,
       LATERAL (SELECT (ARRAY['Acme','Borealis','Cobalt','Delphi','Everest','Fjord','Garnet','Helix','Indigo','Juniper','Kestrel','Lumen'])[1 + i % 12] AS word) b,
       LATERAL (SELECT (ARRAY['black','white','wireless','portable','slim','compact','professional','digital','rugged','silent'])[1 + (i / 7) * (i % 3 + 1) % 10] AS word) a,
       LATERAL (SELECT (ARRAY['laptop','notebook','monitor','printer','keyboard','mouse','cable','adapter','speaker','camera','headset','charger','battery','router','phone case','tablet','dvd player','toner cartridge','memory card','desk lamp'])[1 + (i * i + i) % 20] AS word) k,
       LATERAL (SELECT (ARRAY['usb','hdmi','bluetooth','ethernet','dvd','laser','led','optical'])[1 + (i / 3) % 8] AS word) c,
       LATERAL (SELECT (ARRAY['silver','blue','red','green','grey','pink','gold'])[1 + (i / 5) % 7] AS word) e,
       LATERAL (SELECT (ARRAY['cover','stand','cord','sleeve','bundle','kit'])[1 + (i / 11) % 6] AS word) f,
       LATERAL (SELECT (ARRAY['memory','storage','display','sound','power','network'])[1 + (i / 13) % 6] AS word) g,
       LATERAL (SELECT (ARRAY['home','office','travel','school','studio','outdoor'])[1 + (i / 17) % 6] AS word) h
 WHERE NOT EXISTS (SELECT FROM search_source);

CREATE UNIQUE INDEX ON search_source (n);
ANALYZE search_source;
