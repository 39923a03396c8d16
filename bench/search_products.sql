-- Products of the search benchmark, :count of them: the names and descriptions
-- of search_source, put together anew.  Deterministic, keys too.

CREATE TABLE search_made AS
WITH size AS (SELECT count(*)::integer AS n FROM search_source)
SELECT md5('techally search ' || i)::uuid AS id,
       'S' || lpad(i::text, 8, '0') AS sku,
       left(CASE WHEN i < size.n THEN a.name
                 ELSE array_to_string((string_to_array(a.name, ' '))[1:3 + i % 4] || (string_to_array(b.name, ' '))[2 + i % 3:8], ' ') END, 255) AS name,
       a.description || ' ' || b.description || ' ' || c.name AS description,
       a.brand, b.kind,
       round(a.price * (80 + i % 41) / 100, 2) AS price
  FROM size, generate_series(0, :count - 1) i
  JOIN LATERAL (SELECT s.* FROM search_source s WHERE s.n = i % (SELECT n FROM size)) a ON true
  JOIN LATERAL (SELECT s.* FROM search_source s WHERE s.n = (i::bigint * 48271 + i / (SELECT n FROM size)) % (SELECT n FROM size)) b ON true
  JOIN LATERAL (SELECT s.* FROM search_source s WHERE s.n = (i::bigint * 69621 + 13 * (i / (SELECT n FROM size))) % (SELECT n FROM size)) c ON true;
