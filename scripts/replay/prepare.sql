-- From the input to what can be replayed: psql -1 -v work=... -v store=...
--
-- One transaction: it classifies every line, makes the catalogue and the
-- customers in the store, and receives the opening stock.

SET LOCAL jit = off;
SET LOCAL work_mem = '128MB';
SET LOCAL search_path = pg_catalog, pg_temp;

SELECT time_zone, state FROM :"work".run FOR UPDATE \gset
SELECT :"work".refuse('the input has not been loaded, or was prepared already') WHERE :'state' <> 'loaded' \g /dev/null

-- 1. Every line's fields, NULL where they are not what they should be.

CREATE TEMPORARY TABLE parsed ON COMMIT DROP AS
SELECT i.line,
       btrim(i.invoice_no) AS invoice,
       btrim(i.stock_code) AS sku,
       nullif(btrim(i.description), '') AS description,
       CASE WHEN btrim(i.quantity) ~ '^-?[0-9]{1,9}$' THEN i.quantity::integer END AS quantity,
       CASE WHEN btrim(i.unit_price) ~ '^-?[0-9]{1,8}(\.[0-9]*)?$'
             AND btrim(i.unit_price) !~ '\.[0-9]{4}0*[1-9]' THEN i.unit_price::numeric END AS unit_price,
       -- a day that the month does not have is left for the next step
       CASE WHEN btrim(i.invoice_date) ~ '^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[ T]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$'
            THEN replace(btrim(i.invoice_date), 'T', ' ')
            WHEN btrim(i.invoice_date) ~ '^(0?[1-9]|1[0-2])/(0?[1-9]|[12][0-9]|3[01])/[12][0-9]{3} ([01]?[0-9]|2[0-3]):[0-5][0-9]$'
            THEN regexp_replace(btrim(i.invoice_date), '^([0-9]+)/([0-9]+)/([0-9]+) ', '\3-\1-\2 ')
       END AS invoice_date,
       nullif(regexp_replace(btrim(i.customer_id), '\.0$', ''), '') AS customer,
       nullif(btrim(i.country), '') AS country,
       btrim(i.invoice_no) ~ '^[Cc]' AS is_cancellation,
       btrim(i.stock_code) ~ '^[0-9]{5}' AND btrim(i.invoice_no) !~ '^[Aa]' AS is_product
  FROM :"work".input i;

UPDATE parsed SET invoice_date = NULL
 WHERE split_part(split_part(invoice_date, ' ', 1), '-', 3)::integer > 28
   AND split_part(split_part(invoice_date, ' ', 1), '-', 3)::integer >
       extract(day FROM make_date(split_part(invoice_date, '-', 1)::integer, split_part(invoice_date, '-', 2)::integer, 1)
                        + interval '1 month' - interval '1 day');
ANALYZE parsed;

-- 2. The documents in the order of time.  An invoice's first line says who the
--    customer is.

CREATE TEMPORARY TABLE invoices ON COMMIT DROP AS
SELECT row_number() OVER (ORDER BY min(p.invoice_date::timestamp), min(p.line))::integer AS position,
       p.invoice,
       min(p.invoice_date::timestamp) AT TIME ZONE :'time_zone' AS placed_at,
       (array_agg(p.customer ORDER BY p.line))[1] AS customer
  FROM parsed p
 WHERE p.invoice <> '' AND length(p.invoice) <= 20 AND p.invoice_date IS NOT NULL
   AND (p.customer IS NULL OR p.customer ~ '^[A-Za-z0-9_-]{1,50}$')
 GROUP BY p.invoice;
ANALYZE invoices;

SELECT :"work".refuse(format('the store already has %s of the file''s invoices, "%s" for one; choose another store',
                             count(*), min(i.invoice)))
  FROM :"store".orders o
  JOIN invoices i ON i.invoice = o.order_number
HAVING count(*) > 0 \g /dev/null

-- 3. What each line is.  Of the cancelled lines step 4 knows more.

CREATE TEMPORARY TABLE classified ON COMMIT DROP AS
SELECT c.*,
       CASE WHEN c.class = 'ordered'
            THEN (row_number() OVER (PARTITION BY c.position, c.class ORDER BY c.line))::integer END AS item,
       CASE WHEN c.class <> 'rejected' THEN round(c.quantity * c.unit_price, 2) END AS amount
  FROM (SELECT r.*,
               CASE WHEN r.reason IS NOT NULL THEN 'rejected'
                    WHEN NOT r.is_product THEN 'charge'
                    WHEN r.is_cancellation THEN 'returned'
                    WHEN r.quantity < 0 THEN 'stock write-off'
                    ELSE 'ordered' END AS class
          FROM (SELECT p.*, i.position,
                       CASE WHEN p.invoice IS NULL OR p.invoice = '' OR length(p.invoice) > 20 THEN 'malformed InvoiceNo'
                            WHEN p.sku IS NULL OR p.sku = '' OR length(p.sku) > 50 THEN 'malformed StockCode'
                            WHEN p.invoice_date IS NULL THEN 'malformed InvoiceDate'
                            WHEN p.quantity IS NULL THEN 'malformed Quantity'
                            WHEN p.unit_price IS NULL THEN 'malformed UnitPrice'
                            WHEN p.customer !~ '^[A-Za-z0-9_-]{1,50}$' THEN 'malformed CustomerID'
                            WHEN p.customer IS DISTINCT FROM i.customer THEN 'not the customer of the invoice''s first line'
                            WHEN p.quantity = 0 THEN 'quantity is zero'
                            WHEN abs(p.quantity * p.unit_price) > 99999999 THEN 'amount out of range'
                            WHEN NOT p.is_product THEN NULL     -- a charge may have any sign
                            WHEN p.unit_price < 0 THEN 'product with a negative price'
                            WHEN p.is_cancellation AND p.quantity > 0 THEN 'cancellation of a negative quantity'
                            WHEN p.is_cancellation AND p.customer IS NULL THEN 'cancellation without a customer'
                            WHEN p.quantity < 0 AND p.unit_price <> 0 AND NOT p.is_cancellation
                            THEN 'negative quantity at a price, outside a cancellation'
                       END AS reason
                  FROM parsed p
                  LEFT JOIN invoices i ON i.invoice = p.invoice) r) c;

-- import_order takes 10,000 lines
UPDATE classified SET class = 'rejected', reason = 'beyond 10,000 lines of an invoice', item = NULL, amount = NULL
 WHERE item > 10000;
ANALYZE classified;

INSERT INTO :"work".rejects (line, reason, unmatched_quantity)
SELECT c.line, c.reason,
       CASE WHEN c.is_cancellation AND c.is_product AND c.customer IS NULL AND c.quantity < 0 THEN -c.quantity END
  FROM classified c
 WHERE c.class = 'rejected';

-- 4. What the cancelled lines give back.

CREATE TEMPORARY TABLE cancelled ON COMMIT DROP AS
SELECT c.line, c.position, c.customer, c.sku, -c.quantity AS quantity
  FROM classified c
 WHERE c.class = 'returned';

CREATE TEMPORARY TABLE purchased (
    line integer PRIMARY KEY, position integer, customer text, sku text, left_over integer
) ON COMMIT DROP;
INSERT INTO purchased
SELECT c.line, c.position, c.customer, c.sku, c.quantity
  FROM classified c
 WHERE c.class = 'ordered' AND (c.customer, c.sku) IN (SELECT r.customer, r.sku FROM cancelled r);
CREATE INDEX ON purchased (customer, sku);
ANALYZE cancelled, purchased;

SELECT :"work".match_returns() \g /dev/null

INSERT INTO :"work".lines (line, position, sku, description, quantity, unit_price, amount, class, item)
SELECT c.line, c.position, c.sku, c.description, c.quantity, c.unit_price, c.amount,
       CASE WHEN r.line IS NULL THEN c.class ELSE 'rejected' END, c.item
  FROM classified c
  LEFT JOIN :"work".rejects r ON r.line = c.line AND r.whole
 ORDER BY c.line;
CREATE INDEX lines_position_idx ON :"work".lines (position);
ANALYZE :"work".lines, :"work".matches, :"work".rejects;

-- 5. The catalogue.  A product is called what it is called most often where it
--    is sold; where it is written off the description is a remark ("damaged"),
--    and where it is given away it may be one ("check").  It costs what it costs
--    most often.

CREATE TEMPORARY TABLE catalogue ON COMMIT DROP AS
WITH sold AS (
    SELECT c.sku, c.class = 'stock write-off' AS is_write_off, c.description, c.unit_price,
           count(*) AS times, min(c.invoice_date::timestamp) AS first_seen
      FROM classified c
     WHERE c.is_product AND c.sku IS NOT NULL AND c.position IS NOT NULL AND c.amount IS NOT NULL
     GROUP BY c.sku, c.class = 'stock write-off', c.description, c.unit_price
), names AS (
    SELECT DISTINCT ON (s.sku) s.sku, s.description
      FROM sold s
     WHERE s.description IS NOT NULL AND NOT s.is_write_off
     GROUP BY s.sku, s.description
     ORDER BY s.sku, bool_or(s.unit_price > 0) DESC, sum(s.times) DESC, s.description COLLATE "C"
), prices AS (
    SELECT DISTINCT ON (s.sku) s.sku, s.unit_price
      FROM sold s
     WHERE s.unit_price > 0
     GROUP BY s.sku, s.unit_price
     ORDER BY s.sku, sum(s.times) DESC, s.unit_price
)
SELECT s.sku, left(coalesce(n.description, s.sku), 255) AS name,
       coalesce(p.unit_price, 0) AS price, min(s.first_seen) AT TIME ZONE :'time_zone' AS first_seen
  FROM sold s
  LEFT JOIN names n ON n.sku = s.sku
  LEFT JOIN prices p ON p.sku = s.sku
 GROUP BY s.sku, n.description, p.unit_price;

SELECT :"work".refuse(format('the store already has %s of the file''s SKUs, "%s" for one; choose another store',
                             count(*), min(k.sku)))
  FROM :"store".skus k
  JOIN catalogue c ON c.sku = k.sku
HAVING count(*) > 0 \g /dev/null

-- SKUs that differ only in letter case are different products; a slug has none,
-- so all but the first of them carry a piece of a checksum.
INSERT INTO :"store".products (sku, name, slug, price, is_published, published_at, created_at)
SELECT c.sku, c.name,
       concat_ws('-',
                 nullif(btrim(left(regexp_replace(lower(c.name), '[^a-z0-9]+', '-', 'g'), 180), '-'), ''),
                 regexp_replace(lower(c.sku), '[^a-z0-9]+', '-', 'g'),
                 CASE WHEN row_number() OVER (PARTITION BY regexp_replace(lower(c.sku), '[^a-z0-9]+', '-', 'g')
                                              ORDER BY c.sku COLLATE "C") > 1
                      THEN left(md5(c.sku), 8) END),
       c.price, true, c.first_seen, c.first_seen
  FROM catalogue c
 ORDER BY c.sku COLLATE "C";

-- 6. The customers, who cannot log in, and a guest for the lines without one.

CREATE TEMPORARY TABLE customers ON COMMIT DROP AS
WITH countries AS (
    SELECT DISTINCT ON (c.customer) c.customer, c.country
      FROM classified c
     WHERE c.position IS NOT NULL AND c.country IS NOT NULL AND c.customer IS NOT NULL
     GROUP BY c.customer, c.country
     ORDER BY c.customer, count(*) DESC, c.country COLLATE "C"
)
SELECT i.customer, c.country, min(i.placed_at) AS first_seen, gen_random_uuid() AS user_id
  FROM invoices i
  LEFT JOIN countries c ON c.customer = i.customer
 GROUP BY i.customer, c.country;

-- letter case counts in a CustomerID, too, but not in an e-mail address
INSERT INTO :"store".users (id, email, password_hash, first_name, last_name, metadata, created_at)
SELECT c.user_id,
       CASE WHEN c.customer IS NULL THEN 'guest'
            WHEN c.customer = lower(c.customer) THEN 'customer-' || c.customer
            ELSE 'customer-' || lower(c.customer) || '-' || left(md5(c.customer), 8) END || '@online-retail.invalid',
       '!', CASE WHEN c.customer IS NULL THEN 'Guest' ELSE 'Customer' END, coalesce(c.customer, 'Account'),
       jsonb_strip_nulls(jsonb_build_object('source', 'online-retail', 'customer_id', c.customer, 'country', c.country)),
       c.first_seen
  FROM customers c
 ORDER BY c.first_seen, c.customer COLLATE "C";

-- 7. The documents as they will be replayed.

INSERT INTO :"work".documents (position, invoice, customer, user_id, placed_at, lines, charges, returns, write_offs)
SELECT i.position, i.invoice, i.customer, u.user_id, i.placed_at,
       coalesce(l.lines, '[]'), coalesce(l.charges, '[]'), coalesce(l.returns, false), coalesce(l.write_offs, false)
  FROM invoices i
  JOIN customers u ON u.customer IS NOT DISTINCT FROM i.customer
  LEFT JOIN (
      SELECT l.position,
             jsonb_agg(jsonb_build_object('sku', l.sku, 'quantity', l.quantity, 'unit_price', l.unit_price)
                       ORDER BY l.line) FILTER (WHERE l.class = 'ordered') AS lines,
             jsonb_agg(jsonb_build_object(
                           'code', l.sku, 'amount', l.amount,
                           'description', coalesce(l.description, l.sku)
                                          || CASE WHEN l.quantity = 1 THEN ''
                                                  ELSE format(' (%s at %s)', l.quantity, l.unit_price) END)
                       ORDER BY l.line) FILTER (WHERE l.class = 'charge') AS charges,
             bool_or(l.class = 'returned') AS returns,
             bool_or(l.class = 'stock write-off') AS write_offs
        FROM :"work".lines l
       WHERE l.class <> 'rejected'
       GROUP BY l.position) l ON l.position = i.position;

-- 8. Opening stock: for each product what is just enough, that is how far its
--    balance would sink below zero.

CREATE TEMPORARY TABLE opening ON COMMIT DROP AS
SELECT b.sku, -min(b.balance) AS quantity
  FROM (SELECT e.sku, sum(sum(e.quantity)) OVER (PARTITION BY e.sku ORDER BY e.position) AS balance
          FROM (SELECT l.sku, l.position,
                       CASE WHEN l.class = 'ordered' THEN -l.quantity ELSE l.quantity END AS quantity
                  FROM :"work".lines l
                 WHERE l.class IN ('ordered', 'stock write-off')
                UNION ALL
                SELECT c.sku, c.position, m.quantity
                  FROM :"work".matches m
                  JOIN :"work".lines c ON c.line = m.return_line) e
         GROUP BY e.sku, e.position) b
 GROUP BY b.sku
HAVING min(b.balance) < 0;

SELECT count(:"store".receive_stock(o.sku, o.quantity::integer, 'main', 'purchase', 'online-retail opening stock'))
  FROM (SELECT * FROM opening ORDER BY sku COLLATE "C") o \g /dev/null

ANALYZE :"work".documents, :"store".users, :"store".products, :"store".inventory_stock, :"store".stock_movements;
UPDATE :"work".run SET state = 'prepared', done = 0;
