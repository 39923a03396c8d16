-- A small shop that is the same every time: its catalogue is drawn from lists,
-- and what looks random is a hash of the article's number.

CREATE EXTENSION techally;
SELECT techally.create_store('shop');

CREATE SCHEMA demo;
COMMENT ON SCHEMA demo IS 'The generator of the demonstration';

-- A number from 0 to below the limit that depends on the arguments alone.
CREATE FUNCTION demo.pick(what text, n bigint, below integer) RETURNS integer
LANGUAGE sql IMMUTABLE
AS $$ SELECT abs(hashtextextended(what, n) % below)::integer $$;

INSERT INTO shop.warehouses (code, name, priority) VALUES ('north', 'Northern warehouse', 200);

INSERT INTO shop.categories (name, slug)
VALUES ('Kitchen', 'kitchen'), ('Living', 'living'), ('Desk', 'desk'), ('Garden', 'garden'), ('Wardrobe', 'wardrobe');

-- 18 kinds of articles in 18 finishes.  Those to wear come in sizes: their
-- variants are what is sold, and each has a stock of its own.
WITH kind (kind, category, price, sized) AS (VALUES
    ('Teapot', 'kitchen', 34.00, false), ('Mug', 'kitchen', 12.50, false), ('Cutting Board', 'kitchen', 27.00, false),
    ('Bread Bin', 'kitchen', 49.00, false), ('Candle Holder', 'living', 18.00, false), ('Cushion', 'living', 29.00, false),
    ('Table Lamp', 'living', 79.00, false), ('Picture Frame', 'living', 22.00, false), ('Wall Clock', 'living', 45.00, false),
    ('Notebook', 'desk', 9.50, false), ('Pen Tray', 'desk', 16.00, false), ('Desk Organiser', 'desk', 38.00, false),
    ('Watering Can', 'garden', 31.00, false), ('Plant Pot', 'garden', 14.00, false), ('Bird Feeder', 'garden', 24.00, false),
    ('Apron', 'wardrobe', 33.00, true), ('Scarf', 'wardrobe', 42.00, false), ('Slippers', 'wardrobe', 36.00, true)
), finish (finish, n) AS (
    SELECT * FROM unnest(ARRAY['Oak', 'Walnut', 'Slate', 'Ivory', 'Forest Green', 'Cobalt', 'Terracotta', 'Charcoal',
                               'Sage', 'Mustard', 'Rose', 'Copper', 'Linen', 'Midnight', 'Clay', 'Pearl', 'Moss', 'Amber'])
             WITH ORDINALITY
)
INSERT INTO shop.products (sku, name, slug, category_id, price, is_published, attributes)
SELECT upper(left(replace(kind, ' ', ''), 4)) || '-' || upper(left(replace(finish, ' ', ''), 3)) || '-' || to_char(n, 'FM00'),
       finish || ' ' || kind,
       lower(replace(finish || ' ' || kind, ' ', '-')),
       (SELECT id FROM shop.categories WHERE slug = category),
       price + demo.pick('price', n * 100 + length(kind), 12) * 0.5,
       true,
       jsonb_build_object('finish', finish, 'kind', kind, 'sized', sized)
  FROM kind, finish;

INSERT INTO shop.product_variants (product_id, sku, name, attributes, sort_order)
SELECT p.id, p.sku || '-' || size, p.name || ', size ' || size, jsonb_build_object('size', size), n
  FROM shop.products p, unnest(ARRAY['S', 'M', 'L']) WITH ORDINALITY AS s (size, n)
 WHERE (p.attributes ->> 'sized')::boolean;

-- What can be bought, numbered by its SKU.
CREATE TABLE demo.articles AS
SELECT row_number() OVER (ORDER BY s.sku)::integer AS n, s.sku
  FROM shop.skus s
 WHERE s.variant_id IS NOT NULL
    OR NOT EXISTS (SELECT FROM shop.product_variants v WHERE v.product_id = s.product_id);
ALTER TABLE demo.articles ADD PRIMARY KEY (n);

-- Every twentieth article is scarce.
SELECT sum(shop.receive_stock(sku, CASE WHEN n % 20 = 0 THEN 12 ELSE 40 + demo.pick('main', n, 60) END))
  FROM demo.articles;
SELECT sum(shop.receive_stock(sku, 20 + demo.pick('north', n, 30), 'north'))
  FROM demo.articles WHERE n % 2 = 0;

CREATE TABLE demo.customers AS
WITH person AS (
    SELECT n,
           (ARRAY['Ada', 'Ben', 'Chiara', 'Dmitri', 'Elif', 'Femi', 'Greta', 'Hugo', 'Ines', 'Jonas',
                  'Keiko', 'Liam', 'Maya', 'Noor', 'Oskar', 'Priya', 'Quentin', 'Rosa', 'Sven', 'Tala'])[1 + n % 20] AS first_name,
           (ARRAY['Abbott', 'Bauer', 'Costa', 'Dumont', 'Eriksen', 'Ferrari', 'Gupta', 'Haddad', 'Ito', 'Jansen'])[1 + n / 20 % 10] AS last_name
      FROM generate_series(0, 199) AS n
), account AS (
    INSERT INTO shop.users (email, password_hash, first_name, last_name)
    SELECT lower(first_name || '.' || last_name) || '@example.com', 'no login', first_name, last_name
      FROM person
    RETURNING id, email
)
SELECT row_number() OVER (ORDER BY email)::integer AS n, id FROM account;
ALTER TABLE demo.customers ADD PRIMARY KEY (n);

-- One customer with a basket of one to five lines.  Sold out is an answer that
-- a shop must be ready for, so it is not an error here.
CREATE FUNCTION demo.checkout(customer integer, basket bigint, OUT placed integer, OUT order_id text)
LANGUAGE plpgsql
AS $$
DECLARE
    articles CONSTANT integer := (SELECT count(*) FROM demo.articles);
    lines jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('sku', a.sku, 'quantity', 1 + demo.pick('quantity', basket + i, 3)))
      INTO lines
      FROM generate_series(1, 1 + demo.pick('lines', basket, 5)) AS i
      JOIN demo.articles a ON a.n = 1 + demo.pick('article', basket + i, articles);

    SELECT 1, o.id::text INTO placed, order_id
      FROM shop.place_order((SELECT c.id FROM demo.customers c WHERE c.n = customer), lines) AS o;
EXCEPTION WHEN SQLSTATE 'TA002' THEN
    placed := 0;
    order_id := '';
END
$$;

ANALYZE;

-- the last line of the output: what there is
SELECT format('%s products with %s variants, %s articles to sell, %s units in two warehouses, %s customers',
              (SELECT count(*) FROM shop.products), (SELECT count(*) FROM shop.product_variants),
              (SELECT count(*) FROM demo.articles), (SELECT sum(quantity_on_hand) FROM shop.inventory),
              (SELECT count(*) FROM demo.customers));
