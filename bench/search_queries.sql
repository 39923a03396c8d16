-- The mix of queries: the ten most frequent terms, and 230 of one to five words
-- of products, from head to tail.
CREATE TABLE search_queries AS
SELECT row_number() OVER ()::integer AS id, q.query, q.head
  FROM (SELECT * FROM (
            SELECT word AS query, true AS head
              FROM ts_stat('SELECT tsv FROM gin.products TABLESAMPLE SYSTEM (10) REPEATABLE (1)')
             WHERE length(word) > 2 AND word ~ '^[a-z]+$'
             ORDER BY ndoc DESC LIMIT 10) h
        UNION ALL
        SELECT * FROM (
            SELECT array_to_string(w.words[1 + s.n % 3:1 + s.n % 3 + (s.n / 79) % 5], ' '), false
              FROM search_source s,
                   LATERAL (SELECT array_agg(u.word ORDER BY u.o) AS words
                              FROM unnest(string_to_array(regexp_replace(lower(s.name), '[^a-z0-9 ]', ' ', 'g'), ' ')) WITH ORDINALITY u(word, o)
                             WHERE length(u.word) > 2) w
             WHERE s.n % (SELECT greatest(1, count(*) / 250) FROM search_source) = 7 % (SELECT greatest(1, count(*) / 250) FROM search_source)
               AND cardinality(w.words) > 3
             ORDER BY s.n LIMIT 230) t) q
 WHERE q.query <> '';

-- The best of three, for every query; each is parsed and planned as a client's is.
CREATE FUNCTION time_queries(side text) RETURNS TABLE (id integer, ms float8) LANGUAGE plpgsql AS $$
DECLARE
    q record;
    statement text;
    started timestamptz;
    best float8;
BEGIN
    FOR q IN SELECT * FROM search_queries ORDER BY 1 LOOP
        statement := CASE side
            WHEN 'gin' THEN format('SELECT p.id, p.name, p.description, p.price, ts_rank(p.tsv, t) AS rank FROM gin.products p, plainto_tsquery(''english'', %L) t WHERE p.tsv @@ t ORDER BY rank DESC LIMIT 20', q.query)
            WHEN 'techally' THEN format('SELECT * FROM shop.search_products(%L, 20)', q.query)
            WHEN 'filtered' THEN format('SELECT shop.search(%L, %L, facets => %L)', q.query,
                                        '{"price_min": 10, "price_max": 500, "category": "' || (SELECT slug FROM shop.categories ORDER BY slug OFFSET q.id % 20 LIMIT 1) || '"}', '{brand,category,price}')
            ELSE format('SELECT shop.search(%L, %L, facets => %L)', q.query, '{"price_min": 10, "price_max": 5000}', '{brand,category,price}')
        END;
        best := 'infinity';
        FOR i IN 1..3 LOOP
            started := clock_timestamp();
            EXECUTE statement;
            best := least(best, extract(epoch FROM clock_timestamp() - started) * 1000);
        END LOOP;
        id := q.id;
        ms := best;
        RETURN NEXT;
    END LOOP;
END $$;
