-- Prints the closing account: psql -v work=...
\pset footer off
\pset null ''
\pset title 'What became of the lines (revenue rounded to the cent, line by line)'
SELECT CASE place WHEN 6 THEN 'total' ELSE class END AS class,
       to_char(lines, 'FM999,999,999,990') AS lines, to_char(lines_in_store, 'FM999,999,999,990') AS "in the store",
       to_char(units, 'FM999,999,999,990') AS units, to_char(units_in_store, 'FM999,999,999,990') AS "in the store",
       to_char(revenue, 'FM999,999,999,990.00') AS revenue, to_char(revenue_in_store, 'FM999,999,999,990.00') AS "in the store"
  FROM (SELECT place, class, lines, lines_in_store, units, units_in_store, revenue, revenue_in_store
          FROM :"work".reconciliation
        UNION ALL
        SELECT 6, 'total', sum(lines), NULL, NULL, NULL, sum(revenue), NULL FROM :"work".reconciliation) r
 ORDER BY place;

\pset title 'Rejected'
SELECT r.reason || CASE WHEN r.whole THEN '' ELSE ' (the line counts as returned)' END AS reason,
       count(*) AS lines, sum(r.unmatched_quantity) AS unmatched_quantity
  FROM :"work".rejects r
 GROUP BY r.reason, r.whole
 ORDER BY r.whole DESC, count(*) DESC, r.reason;

\pset title
\pset tuples_only on
\pset format unaligned
SELECT format('Taken: revenue %s in the input, %s in the store, difference %s.',
              to_char(sum(revenue), 'FM999,999,999,990.00'), to_char(sum(revenue_in_store), 'FM999,999,999,990.00'),
              to_char(sum(revenue - revenue_in_store), 'FM999,999,999,990.00'))
       || CASE WHEN sum(revenue) <> sum(unrounded_revenue)
               THEN format(E'\nPrices with more than two decimals: with all of them it would be %s, %s more.',
                           to_char(sum(unrounded_revenue), 'FM999,999,999,990.0000'),
                           to_char(sum(unrounded_revenue - revenue), 'FM999,999,999,990.0000'))
               ELSE '' END
  FROM :"work".reconciliation WHERE class <> 'rejected';
SELECT format('problem: %s: %s: %s', rule, subject, detail) FROM :"work".problems ORDER BY rule, subject LIMIT 20;
SELECT CASE WHEN count(*) = 0 THEN 'Everything adds up: every line is accounted for once, and the store is sound.'
            ELSE format('%s found wrong; they are in the table %I.problems.', count(*), :'work') END
  FROM :"work".problems;
