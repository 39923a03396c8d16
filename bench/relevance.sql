-- Products of lines into the store, and nDCG@10 over ratings: gain 2^rating - 1,
-- what is unrated counts 0, queries with a positive rating.
INSERT INTO shop.brands (name, slug)
SELECT DISTINCT left(doc->>'supplier', 100), md5(left(doc->>'supplier', 100)) FROM lines WHERE doc->>'supplier' <> '';
INSERT INTO shop.products (sku, name, slug, description, price, is_published, brand_id, attributes)
SELECT doc->>'id', left(coalesce(doc->>'title', doc->>'name', '?'), 255), doc->>'id',
       regexp_replace(coalesce(doc->>'short_description', ''), '<[^>]*>', ' ', 'g'),
       coalesce((doc->>'price')::numeric, 0) / 100, true,
       (SELECT b.id FROM shop.brands b WHERE b.name = left(doc->>'supplier', 100)), coalesce(doc->'attributes', '{}')
  FROM lines;
WITH asked AS (SELECT query FROM ratings GROUP BY query HAVING max(rating) > 0),
     found AS (SELECT a.query, s.place, coalesce(r.rating, 0) AS rating
                 FROM asked a
                 CROSS JOIN LATERAL shop.search_products(a.query, 10) WITH ORDINALITY s(id, name, description, price, rank, place)
                 JOIN shop.products p ON p.id = s.id
                 LEFT JOIN ratings r ON r.query = a.query AND r.docid = p.sku),
     gained AS (SELECT query, sum((2 ^ rating - 1) / (ln(place + 1) / ln(2))) AS gain FROM found GROUP BY query),
     ideal AS (SELECT query, sum((2 ^ rating - 1) / (ln(place + 1) / ln(2))) AS gain
                 FROM (SELECT query, rating, row_number() OVER (PARTITION BY query ORDER BY rating DESC) AS place FROM ratings) r
                WHERE place <= 10 GROUP BY query)
SELECT format('nDCG@10 %s over %s queries, %s without a result',
              round(avg(coalesce(g.gain, 0) / i.gain)::numeric, 4), count(*), count(*) FILTER (WHERE g.gain IS NULL))
  FROM asked LEFT JOIN gained g USING (query) JOIN ideal i USING (query);
