-- What comes back of a line in parts is worth what the line was, to the cent.
SET client_min_messages = warning;
SELECT techally.create_store('returns');
INSERT INTO returns.users (email, password_hash, first_name, last_name) VALUES ('ann@example.org', 'x', 'Ann', 'Smith');
INSERT INTO returns.products (sku, name, slug, price, is_published) VALUES ('A', 'Screw', 'screw', 1, true);
SELECT returns.receive_stock('A', 100);

-- imported lines may cost fractions of a cent
CREATE FUNCTION pg_temp.deliver(price numeric, quantity int) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    id uuid := (returns.import_order((SELECT u.id FROM returns.users u),
        jsonb_build_array(jsonb_build_object('sku', 'A', 'quantity', quantity, 'unit_price', price)), now())).id;
BEGIN
    PERFORM returns.transition_order(id, e)
       FROM unnest('{process_payment,payment_success,start_fulfillment,dispatch,deliver}'::text[]) AS e;
    RETURN id;
END $$;

SELECT pg_temp.deliver(price, quantity) AS id, price, quantity INTO TEMPORARY delivered
  FROM (VALUES (0.005, 10), (0.3333, 3), (0.0149, 7), (2.50, 4)) AS v(price, quantity);

DO $$
DECLARE
    d record;
BEGIN
    FOR d IN SELECT * FROM delivered LOOP
        FOR n IN 1 .. d.quantity LOOP
            PERFORM returns.return_order_lines(d.id, '[{"sku": "A", "quantity": 1}]');
            IF EXISTS (SELECT FROM techally.check_store('returns')) THEN
                RAISE WARNING 'not sound after % of % at %', n, d.quantity, d.price;
            END IF;
        END LOOP;
    END LOOP;
END $$;

SELECT d.price, d.quantity, i.line_total, sum(r.amount) AS returned, min(r.amount) >= 0 AS none_negative, o.status
  FROM delivered d
  JOIN returns.orders o ON o.id = d.id
  JOIN returns.order_items i ON i.order_id = o.id
  JOIN returns.order_return_items r ON r.order_item_id = i.id
 GROUP BY d.price, d.quantity, i.line_total, o.status ORDER BY 1;

-- a line is meant by a whole number
\set VERBOSITY sqlstate
SELECT returns.return_order_lines(pg_temp.deliver(1, 2), '[{"line_number": 1.5, "quantity": 1}]');
SELECT returns.return_order_lines(pg_temp.deliver(1, 2), '[{"line_number": 0.9, "quantity": 1}]');
SELECT returns.return_order_lines(pg_temp.deliver(1, 2), '[{"line_number": 1e10, "quantity": 1}]');
SELECT returns.return_order_lines(pg_temp.deliver(1, 2), '[{"line_number": 1.0, "quantity": 1}]') IS NOT NULL AS returned;
SELECT returns.return_order_lines(pg_temp.deliver(1, 2), '[{"line_number": 2, "quantity": 1}]');
\set VERBOSITY default

SELECT * FROM techally.check_store('returns');
DROP SCHEMA returns CASCADE;
