-- One session: the functions are called until their plans are generic, then
-- once more with auto_explain.
LOAD 'auto_explain';
CREATE TEMP TABLE calls (n int, o uuid);
INSERT INTO calls
SELECT n, (SELECT id FROM :store.place_order(md5('user' || n)::uuid,
             (SELECT jsonb_agg(jsonb_build_object('sku', 'S' || 10000 + n * 10 + l, 'quantity', l))
                FROM generate_series(1, 5) l)))
  FROM generate_series(1, 10) n;
SELECT :store.transition_order(o, e)
  FROM calls, unnest('{process_payment,payment_success,start_fulfillment,dispatch,deliver,complete}'::text[]) WITH ORDINALITY e (e, i)
 WHERE n < 10 ORDER BY n, i;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_level = notice;
SET client_min_messages = notice;
SET auto_explain.log_timing = off;
\warn '--- place_order'
SELECT id FROM :store.place_order(md5('user1')::uuid,
    '[{"sku": "S10001", "quantity": 1}, {"sku": "S10002", "quantity": 2}, {"sku": "S10003", "quantity": 3},
      {"sku": "S10004", "quantity": 4}, {"sku": "S10005", "quantity": 5}]');
\warn '--- transition_order: process_payment'
SELECT :store.transition_order(o, 'process_payment') FROM calls WHERE n = 10;
\warn '--- transition_order: payment_success'
SELECT :store.transition_order(o, 'payment_success') FROM calls WHERE n = 10;
\warn '--- transition_order: start_fulfillment'
SELECT :store.transition_order(o, 'start_fulfillment') FROM calls WHERE n = 10;
\warn '--- transition_order: dispatch'
SELECT :store.transition_order(o, 'dispatch') FROM calls WHERE n = 10;
\warn '--- transition_order: deliver'
SELECT :store.transition_order(o, 'deliver') FROM calls WHERE n = 10;
\warn '--- transition_order: complete'
SELECT :store.transition_order(o, 'complete') FROM calls WHERE n = 10;
