-- The closing account: psql -1 -v work=... -v store=... [-v check_store=techally.check_store]
--
-- Looks up in the store what every line became, writes what is wrong into
-- problems and the sums into reconciliation.  Touches nothing else.

SET LOCAL jit = off;
SET LOCAL work_mem = '128MB';
SET LOCAL search_path = pg_catalog, pg_temp;
\if :{?check_store}
\else
\set check_store ''
\endif

SELECT FROM :"work".run FOR UPDATE \g /dev/null
DELETE FROM :"work".problems;
DELETE FROM :"work".reconciliation;

-- every line of the input has one class, and rejects says why
INSERT INTO :"work".problems
SELECT 'accounted for', 'line ' || coalesce(i.line, l.line),
       CASE WHEN l.line IS NULL THEN 'has no class' ELSE 'is not in the input' END
  FROM :"work".input i
  FULL JOIN :"work".lines l ON l.line = i.line
 WHERE i.line IS NULL OR l.line IS NULL
UNION ALL
SELECT 'rejected with a reason', 'line ' || coalesce(l.line, r.line),
       CASE WHEN l.line IS NULL THEN 'has a reason but was not rejected' ELSE 'was rejected without a reason' END
  FROM (SELECT * FROM :"work".lines WHERE class = 'rejected') l
  FULL JOIN (SELECT * FROM :"work".rejects WHERE whole) r ON r.line = l.line
 WHERE l.line IS NULL OR r.line IS NULL
UNION ALL
SELECT 'all replayed', 'document ' || d.position, format('invoice %s has not been replayed', d.invoice)
  FROM :"work".documents d, :"work".run r
 WHERE d.position > r.done;

-- the documents' orders
CREATE TEMPORARY TABLE our_orders ON COMMIT DROP AS
SELECT d.position, d.invoice, d.user_id, d.placed_at, o.id, o.user_id AS order_user, o.status, o.created_at,
       o.currency, o.discount + o.tax + o.shipping AS extras,
       d.lines <> '[]' OR d.charges <> '[]' AS expected
  FROM :"work".documents d
  LEFT JOIN :"store".orders o ON o.order_number = d.invoice;
CREATE INDEX ON our_orders (id);
ANALYZE our_orders;

INSERT INTO :"work".problems
SELECT 'order', 'invoice ' || o.invoice,
       CASE WHEN o.id IS NULL THEN 'has no order'
            WHEN o.status <> 'completed' THEN format('its order is %s', o.status)
            ELSE 'its order has another user, time, currency, or amounts of its own' END
  FROM our_orders o
 WHERE (o.id IS NULL AND o.expected)
    OR o.status <> 'completed' OR o.order_user <> o.user_id OR o.created_at <> o.placed_at OR o.currency <> 'GBP'
    OR o.extras <> 0;

CREATE TEMPORARY TABLE our_items ON COMMIT DROP AS
SELECT l.line, l.position, l.item, i.id, i.sku, i.quantity, i.unit_price, i.line_total
  FROM our_orders o
  JOIN :"store".order_items i ON i.order_id = o.id
  FULL JOIN (SELECT * FROM :"work".lines WHERE class = 'ordered') l ON l.position = o.position AND l.item = i.line_number;
ANALYZE our_items;

INSERT INTO :"work".problems
SELECT 'ordered line', coalesce('line ' || i.line, 'order item ' || i.id),
       CASE WHEN i.id IS NULL THEN 'is on no order'
            WHEN l.line IS NULL THEN 'stands for no line'
            ELSE format('%s, %s units at %s, became %s, %s units at %s', l.sku, l.quantity, l.unit_price,
                        i.sku, i.quantity, i.unit_price) END
  FROM our_items i
  LEFT JOIN :"work".lines l ON l.line = i.line
 WHERE i.id IS NULL OR l.line IS NULL
    OR (l.sku, l.quantity, l.unit_price, l.amount) IS DISTINCT FROM (i.sku::text, i.quantity, i.unit_price, i.line_total);

-- charges, and what was refunded above the amount credited
CREATE TEMPORARY TABLE our_charges ON COMMIT DROP AS
SELECT o.position, c.code, c.amount
  FROM our_orders o
  JOIN :"store".order_charges c ON c.order_id = o.id;

INSERT INTO :"work".problems
SELECT 'charges', 'invoice ' || o.invoice,
       format('%s of %s in %s became %s in %s', coalesce(l.code, c.code), l.amount, coalesce(l.lines, 0),
              c.amount, coalesce(c.lines, 0))
  FROM (SELECT position, sku AS code, count(*) AS lines, sum(amount) AS amount
          FROM :"work".lines WHERE class = 'charge' GROUP BY position, sku) l
  FULL JOIN (SELECT position, code::text, count(*) AS lines, sum(amount) AS amount
          FROM our_charges WHERE code <> 'RETURN-DIFFERENCE' GROUP BY position, code) c
       ON c.position = l.position AND c.code = l.code
  JOIN our_orders o ON o.position = coalesce(l.position, c.position)
 WHERE (l.lines, l.amount) IS DISTINCT FROM (c.lines, c.amount);

-- returns: unit by unit, and the money of each cancellation
CREATE TEMPORARY TABLE our_returns ON COMMIT DROP AS
SELECT r.position, i.order_item_id, i.quantity, i.amount
  FROM :"work".returns r
  JOIN :"store".order_return_items i ON i.return_id = r.return_id;

CREATE TEMPORARY TABLE given_back ON COMMIT DROP AS
SELECT c.line, c.position, c.unit_price, m.quantity, p.id AS order_item_id
  FROM :"work".matches m
  JOIN :"work".lines c ON c.line = m.return_line
  LEFT JOIN our_items p ON p.line = m.purchase_line;

INSERT INTO :"work".problems
SELECT 'returned line', format('document %s, order item %s', coalesce(m.position, r.position),
                               coalesce(m.order_item_id, r.order_item_id)),
       format('%s units of the input, %s units of the store', m.quantity, r.quantity)
  FROM (SELECT position, order_item_id, sum(quantity) AS quantity FROM given_back GROUP BY 1, 2) m
  FULL JOIN (SELECT position, order_item_id, sum(quantity) AS quantity FROM our_returns GROUP BY 1, 2) r
       ON r.position = m.position AND r.order_item_id = m.order_item_id
 WHERE m.quantity IS DISTINCT FROM r.quantity
UNION ALL
SELECT 'returned line', 'line ' || l.line, format('%s units, %s returned, %s in the rejects', -l.quantity,
                                                  coalesce(m.quantity, 0), coalesce(j.unmatched_quantity, 0))
  FROM :"work".lines l
  LEFT JOIN (SELECT line, sum(quantity) AS quantity FROM given_back GROUP BY line) m ON m.line = l.line
  LEFT JOIN :"work".rejects j ON j.line = l.line
 WHERE (l.class = 'returned' OR m.line IS NOT NULL)
   AND -l.quantity <> coalesce(m.quantity, 0) + coalesce(j.unmatched_quantity, 0)
UNION ALL
SELECT 'credited amount', 'document ' || d.position,
       format('credited %s, refunded %s, difference charged %s', m.amount, r.amount, c.amount)
  FROM (SELECT position FROM :"work".documents WHERE returns) d
  LEFT JOIN (SELECT position, sum(amount) AS amount
               FROM (SELECT position, round(sum(quantity) * unit_price, 2) AS amount
                       FROM given_back GROUP BY position, line, unit_price) g
              GROUP BY position) m ON m.position = d.position
  LEFT JOIN (SELECT position, sum(amount) AS amount FROM our_returns GROUP BY position) r ON r.position = d.position
  LEFT JOIN (SELECT position, sum(amount) AS amount FROM our_charges
              WHERE code = 'RETURN-DIFFERENCE' GROUP BY position) c ON c.position = d.position
 WHERE coalesce(m.amount, 0) <> coalesce(r.amount, 0) - coalesce(c.amount, 0);

-- write-offs and the opening stock, by the notes on their movements
CREATE TEMPORARY TABLE our_write_offs ON COMMIT DROP AS
SELECT substring(m.note FROM '^online-retail \S+ line ([0-9]+):')::integer AS line, p.sku, m.quantity
  FROM :"store".stock_movements m
  JOIN :"store".inventory_stock s ON s.id = m.stock_id
  JOIN :"store".products p ON p.id = s.product_id
 WHERE m.note ~ '^online-retail \S+ line [0-9]+:' AND m.order_id IS NULL;

INSERT INTO :"work".problems
SELECT 'stock write-off', 'line ' || coalesce(l.line, w.line),
       format('%s, %s units, became %s, %s units', l.sku, l.quantity, w.sku, w.quantity)
  FROM (SELECT * FROM :"work".lines WHERE class = 'stock write-off') l
  FULL JOIN (SELECT line, sku, sum(quantity) AS quantity, count(*) AS movements
               FROM our_write_offs GROUP BY line, sku) w ON w.line = l.line
 WHERE (l.sku, l.quantity::bigint, 1::bigint) IS DISTINCT FROM (w.sku::text, w.quantity, w.movements);

-- the store's own rules
SELECT :'check_store' <> '' AS has_check \gset
\if :has_check
INSERT INTO :"work".problems
SELECT 'check_store: ' || c.rule, c.subject, c.detail FROM :check_store(:'store') c;
\endif

INSERT INTO :"work".reconciliation
WITH shares AS (
    -- of a return that is covered in part, the part counts as returned and the
    -- rest as rejected, but the line only once
    SELECT l.line, l.class, 1 AS lines,
           CASE WHEN r.line IS NULL OR r.whole THEN l.quantity ELSE l.quantity + r.unmatched_quantity END AS units,
           l.unit_price
      FROM :"work".lines l
      LEFT JOIN :"work".rejects r ON r.line = l.line
    UNION ALL
    SELECT l.line, 'rejected', 0, -r.unmatched_quantity, l.unit_price
      FROM :"work".rejects r
      JOIN :"work".lines l ON l.line = r.line
     WHERE NOT r.whole
), stored AS (
    SELECT 'ordered' AS class, count(*) AS lines, sum(quantity) AS units, coalesce(sum(line_total), 0) AS revenue
      FROM our_items WHERE id IS NOT NULL
    UNION ALL
    SELECT 'returned', (SELECT count(DISTINCT g.line) FROM given_back g
                          JOIN our_returns r ON r.position = g.position AND r.order_item_id = g.order_item_id),
           -coalesce(sum(quantity), 0),
           coalesce((SELECT sum(amount) FROM our_charges WHERE code = 'RETURN-DIFFERENCE'), 0) - coalesce(sum(amount), 0)
      FROM our_returns
    UNION ALL
    SELECT 'charge', count(*), NULL, coalesce(sum(amount), 0) FROM our_charges WHERE code <> 'RETURN-DIFFERENCE'
    UNION ALL
    SELECT 'stock write-off', count(*), coalesce(sum(quantity), 0), 0 FROM our_write_offs
)
SELECT k.class, k.place, coalesce(sum(a.lines), 0), min(s.lines),
       CASE WHEN k.class <> 'charge' THEN coalesce(sum(a.units), 0) END, min(s.units),
       coalesce(sum(round(a.units * a.unit_price, 2)), 0), min(s.revenue), coalesce(sum(a.units * a.unit_price), 0)
  FROM (VALUES ('ordered', 1), ('returned', 2), ('charge', 3), ('stock write-off', 4), ('rejected', 5)) k(class, place)
  LEFT JOIN shares a ON a.class = k.class
  LEFT JOIN stored s ON s.class = k.class
 GROUP BY k.class, k.place;

INSERT INTO :"work".problems
SELECT 'reconciliation', class,
       format('lines %s and %s, units %s and %s, revenue %s and %s', lines, lines_in_store, units, units_in_store,
              revenue, revenue_in_store)
  FROM :"work".reconciliation
 WHERE class <> 'rejected'
   AND (lines, units, revenue) IS DISTINCT FROM (lines_in_store, units_in_store::bigint, revenue_in_store)
UNION ALL
SELECT 'reconciliation', 'total', format('%s lines of the input, %s accounted for', i.lines, r.lines)
  FROM (SELECT count(*) AS lines FROM :"work".input) i,
       (SELECT coalesce(sum(lines), 0) AS lines FROM :"work".reconciliation) r
 WHERE i.lines <> r.lines;

UPDATE :"work".run
   SET state = CASE WHEN p.problems = 0 THEN 'complete' ELSE 'prepared' END,
       finished_at = CASE WHEN p.problems = 0 THEN coalesce(finished_at, clock_timestamp()) END
  FROM (SELECT count(*) AS problems FROM :"work".problems) p;
