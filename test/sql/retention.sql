-- Retention: policies as data, orders as one whole, sessions, logs, analytics.
SET client_min_messages = warning;
\set SHOW_CONTEXT never
CREATE ROLE regress_keeper NOLOGIN;
SELECT techally.create_store('old');
INSERT INTO old.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
INSERT INTO old.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true), ('POT', 'Pot', 'pot', 30, true);
SELECT old.receive_stock('MUG', 100), old.receive_stock('POT', 100);
-- an order at every station; the first three are eight years old
CREATE FUNCTION sell(number text, events text[], years int) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    id uuid;
    event text;
BEGIN
    SELECT (o).id INTO id FROM old.import_order((SELECT u.id FROM old.users u), '[{"sku": "MUG", "quantity": 2}, {"sku": "POT", "quantity": 1}]',
        now() - make_interval(years => years), number, charges => '[{"code": "POST", "description": "postage", "amount": 5}]') o;
    FOREACH event IN ARRAY events LOOP
        PERFORM old.transition_order(id, event);
    END LOOP;
    RETURN id;
END $$;
CREATE TEMP TABLE made AS
SELECT n.number, sell(n.number, n.events, n.years) AS id
  FROM (VALUES ('A', '{process_payment,payment_success,start_fulfillment,dispatch,deliver,complete}'::text[], 8),
               ('B', '{cancel}', 8),
               ('C', '{process_payment,payment_success,start_fulfillment,dispatch,deliver}', 8),
               ('D', '{process_payment}', 8),
               ('E', '{process_payment,payment_success,start_fulfillment,dispatch,deliver,complete}', 6),
               ('F', '{}', 0)) AS n (number, events, years);
SELECT old.return_order_lines(id, '[{"sku": "POT", "quantity": 1}]') IS NOT NULL AS returned FROM made WHERE number = 'C';

-- the policies
SELECT * FROM techally.retention_policies WHERE relation LIKE 'old.%' ORDER BY relation;

-- tables that were added later go along; what only refers to an order stays
CREATE TABLE old.gift_notes (id int PRIMARY KEY, order_id uuid NOT NULL REFERENCES old.orders (id), note text);
CREATE TABLE old.gift_pictures (id int PRIMARY KEY, note_id int REFERENCES old.gift_notes (id), picture bytea);
CREATE TABLE old.reviews (id int PRIMARY KEY, order_id uuid REFERENCES old.orders (id) ON DELETE SET NULL, stars int);
INSERT INTO old.gift_notes SELECT row_number() OVER (ORDER BY number), id, 'for ' || number FROM made;
INSERT INTO old.gift_pictures SELECT id * 10, id, '\xcafe' FROM old.gift_notes;
INSERT INTO old.reviews SELECT row_number() OVER (ORDER BY number), id, 5 FROM made;

CREATE FUNCTION state() RETURNS TABLE (t text, n bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'old'::regnamespace AND c.relkind = 'r'
                AND c.relname ~ '^(order|stock_[mr]|gift|review)' ORDER BY c.relname COLLATE "C" LOOP
        EXECUTE format('SELECT count(*) FROM old.%I', t) INTO n;
        RETURN NEXT;
    END LOOP;
END $$;
CREATE TEMP TABLE before AS SELECT * FROM state();
CREATE TEMP TABLE stock AS SELECT * FROM old.inventory_stock;

-- a dry run says what would go and changes nothing
SELECT relation, cutoff - (now() - interval '7 years') BETWEEN interval '-2 hours' AND interval '2 hours' AS seven_years, rows, bytes > 0 AS bytes, action FROM techally.archive_old_data(true);
SELECT * FROM state() EXCEPT SELECT * FROM before;
SELECT to_regnamespace('old_archive');

-- an order that still holds stock stays; everything else of its age goes whole
SELECT relation, rows, action FROM techally.archive_old_data();
SELECT m.number, EXISTS (SELECT FROM old.orders o WHERE o.id = m.id) AS here, EXISTS (SELECT FROM old_archive.orders o WHERE o.id = m.id) AS archived
  FROM made m ORDER BY 1;
SELECT b.t, b.n AS before, s.n AS now FROM before b JOIN state() s USING (t) ORDER BY 1;
SELECT r.id, m.number, r.order_id IS NOT NULL AS refers FROM old.reviews r JOIN made m ON m.number = chr(64 + r.id) ORDER BY 1;
SELECT n.note, p.picture FROM old_archive.gift_notes n JOIN old_archive.gift_pictures p ON p.note_id = n.id ORDER BY 1;
SELECT i.name, i.quantity, i.line_total FROM old_archive.order_items i JOIN made m ON m.id = i.order_id WHERE m.number = 'A' ORDER BY i.line_number;
SELECT h.sequence, h.from_status, h.to_status FROM old_archive.order_status_history h JOIN made m ON m.id = h.order_id WHERE m.number = 'C' ORDER BY 1;
-- the ledger keeps its sums, and so does everything else
SELECT * FROM techally.check_store('old');
SELECT s.* FROM old.inventory_stock s EXCEPT SELECT * FROM stock;
SELECT movement_type, quantity, note FROM old.stock_movements WHERE note LIKE 'carried%' ORDER BY quantity;
-- the manifest
SELECT relation, rows, count(*) OVER (PARTITION BY batch) AS of_batch, checksum ~ '^-?\d+:-?\d+$' AS checksum FROM old_archive.archive_batches ORDER BY relation;
-- nothing of the store's ties the archive to it
SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a WHERE a.attrelid = 'old_archive.orders'::regclass AND a.attname = 'status';
-- again: nothing but what is held back
SELECT relation, rows, action FROM techally.archive_old_data();

-- policies can be changed
SELECT techally.set_retention('old.orders', '5 years');
SELECT relation, rows, action FROM techally.archive_old_data(true) WHERE relation = 'old.orders';
UPDATE techally.retention_policies SET keep_for = NULL WHERE relation = 'old.orders';
SELECT * FROM techally.retention_policies WHERE relation = 'old.orders';
SELECT count(*) FROM techally.archive_old_data(true);
UPDATE techally.retention_policies SET keep_for = '5 years', action = 'delete' WHERE relation = 'old.orders';
-- a column that came later, and one that is gone, are no obstacle
ALTER TABLE old.orders ADD COLUMN gift boolean DEFAULT true;
ALTER TABLE old.gift_notes DROP COLUMN note;
SELECT relation, rows, action FROM techally.archive_old_data() WHERE action = 'delete';
SELECT * FROM techally.check_store('old');
DELETE FROM techally.retention_policies WHERE relation = 'old.orders';
SELECT keep_for, source FROM techally.retention_policies WHERE relation = 'old.orders';
SELECT sell('G', '{cancel}', 9) IS NOT NULL;
SELECT relation, rows, action FROM techally.archive_old_data() WHERE action = 'archive';
SELECT order_number, gift FROM old_archive.orders ORDER BY 1;

-- orders that refer to each other: the older one waits for the younger
ALTER TABLE old.orders ADD COLUMN replaces uuid REFERENCES old.orders (id);
SELECT sell('H', '{cancel}', 9) AS h \gset
SELECT sell('I', '{cancel}', 1) AS i \gset
UPDATE old.orders SET replaces = :'h' WHERE id = :'i';
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation = 'old.orders';
UPDATE old.orders SET created_at = now() - interval '9 years' WHERE id = :'i';
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation = 'old.orders';

-- what hangs on two orders goes with both or not at all
CREATE TABLE old.bundles (id int PRIMARY KEY, one uuid REFERENCES old.orders (id), two uuid REFERENCES old.orders (id));
SELECT sell('K', '{cancel}', 9) AS k \gset
SELECT sell('L', '{cancel}', 1) AS l \gset
SELECT sell('M', '{cancel}', 9) AS m \gset
INSERT INTO old.bundles VALUES (1, :'k', :'l');
SELECT relation, rows, action FROM techally.archive_old_data() WHERE action <> 'archive' OR relation IN ('old.orders', 'old.bundles');
UPDATE old.orders SET created_at = now() - interval '9 years' WHERE id = :'l';
SELECT relation, rows, action FROM techally.archive_old_data() WHERE action <> 'archive' OR relation IN ('old.orders', 'old.bundles');
SELECT * FROM techally.check_store('old');

-- a trigger that keeps rows: nothing is lost, nothing is left in the archive
SELECT sell('N', '{cancel}', 9) IS NOT NULL;
CREATE FUNCTION old.keep_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER keep_it BEFORE DELETE ON old.order_charges FOR EACH ROW EXECUTE FUNCTION old.keep_it();
SELECT relation, rows, action FROM techally.archive_old_data();
SELECT count(*) FROM old_archive.orders WHERE order_number = 'N';
DROP TRIGGER keep_it ON old.order_charges;
-- an archive that does not hold what it was given
CREATE FUNCTION old.garble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.total := NEW.total + 1; RETURN NEW; END $$;
CREATE TRIGGER garble BEFORE INSERT ON old_archive.orders FOR EACH ROW EXECUTE FUNCTION old.garble();
SELECT relation, rows, action FROM techally.archive_old_data();
SELECT count(*) FROM old.orders WHERE order_number = 'N';
DROP TRIGGER garble ON old_archive.orders;
-- somebody else's table in the archive's place
ALTER TABLE old_archive.order_items OWNER TO regress_keeper;
SELECT relation, rows, action FROM techally.archive_old_data();
ALTER TABLE old_archive.order_items OWNER TO CURRENT_USER;
ALTER SCHEMA old_archive OWNER TO regress_keeper;
SELECT relation, rows, action FROM techally.archive_old_data();
ALTER SCHEMA old_archive OWNER TO CURRENT_USER;
CALL techally.run_maintenance('{archive}');
SELECT last_result FROM techally.worker_tasks WHERE task = 'archive';
SELECT count(*) FROM old_archive.orders WHERE order_number = 'N';

-- sessions: ninety days, and not while they are open; the table is made later
CREATE TABLE old.user_sessions (id int PRIMARY KEY, created_at timestamptz NOT NULL, expires_at timestamptz);
SELECT in_force FROM techally.retention_policies WHERE relation = 'old.user_sessions';
INSERT INTO old.user_sessions VALUES (1, now() - interval '100 days', now() - interval '70 days'), (2, now() - interval '100 days', now() + interval '1 day'),
    (3, now() - interval '100 days', NULL), (4, now() - interval '89 days', now() - interval '80 days');
-- what is over goes, though a DELETE by hand would only mark it
SELECT techally.enable_soft_delete('old.user_sessions');
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation = 'old.user_sessions';
SELECT id FROM old.user_sessions ORDER BY 1;

-- logs of a year, in a table that is partitioned and not managed, timed without a zone
CREATE TABLE old.application_logs (id int, created_at timestamp NOT NULL, line text) PARTITION BY RANGE (created_at);
CREATE TABLE old.application_logs_a PARTITION OF old.application_logs FOR VALUES FROM (MINVALUE) TO (now() AT TIME ZONE 'UTC' - interval '400 days');
CREATE TABLE old.application_logs_b (line text, id int, junk int, created_at timestamp NOT NULL);
ALTER TABLE old.application_logs_b DROP COLUMN junk;
ALTER TABLE old.application_logs ATTACH PARTITION old.application_logs_b FOR VALUES FROM (now() AT TIME ZONE 'UTC' - interval '400 days') TO (MAXVALUE);
INSERT INTO old.application_logs SELECT g, now() AT TIME ZONE 'UTC' - g * interval '1 day', 'line ' || g FROM generate_series(1, 800) g;
SELECT techally.set_retention('old.application_logs', '365 days');
SELECT relation, rows, action FROM techally.archive_old_data(true) WHERE relation = 'old.application_logs';
CALL techally.run_maintenance('{archive}');
SELECT count(*), min(id), max(id) FROM old.application_logs;
SELECT count(*), min(id), max(id), bool_and(line = 'line ' || id) AS lines FROM old_archive.application_logs;

-- analytics: counted by day after half a year, gone after two
CREATE TABLE old.analytics_events (id int, event_type text, user_id uuid, created_at timestamptz);
INSERT INTO old.analytics_events SELECT g, (ARRAY['view', 'click'])[1 + g % 2], gen_random_uuid(), now() - (g / 40) * interval '10 days' FROM generate_series(0, 3999) g;
CREATE TEMP TABLE raw AS SELECT (created_at AT TIME ZONE 'UTC')::date AS day, jsonb_build_object('event_type', event_type) AS dimensions, count(*) AS rows
  FROM old.analytics_events GROUP BY 1, 2;
SELECT relation, action, rows > 0 AS rows FROM techally.archive_old_data(true) WHERE relation = 'old.analytics_events';
CALL techally.run_maintenance('{archive}');
SELECT min(created_at) >= date_trunc('day', now() AT TIME ZONE 'UTC' - interval '2 years') AT TIME ZONE 'UTC' AS young FROM old.analytics_events;
SELECT count(*) FROM (SELECT day, dimensions, rows FROM old_archive.analytics_events_daily EXCEPT SELECT * FROM raw) x;
SELECT (SELECT sum(rows) FROM old_archive.analytics_events_daily) = (SELECT sum(rows) FROM raw WHERE day < (now() AT TIME ZONE 'UTC' - interval '6 months')::date) AS complete,
       (SELECT sum(rows) FROM old_archive.analytics_events_daily WHERE is_final) + (SELECT count(*) FROM old.analytics_events) = 4000 AS none_lost;
-- events that come late for a day that is gone are added to it
INSERT INTO old.analytics_events VALUES (-1, 'view', NULL, now() - interval '900 days');
CALL techally.run_maintenance('{archive}');
SELECT count(*) FROM old.analytics_events WHERE id = -1;
SELECT d.rows - r.rows AS more FROM old_archive.analytics_events_daily d JOIN raw r USING (day, dimensions) WHERE d.rows <> r.rows;
-- and for a day that is counted and still there: counted again, it alone
CREATE TABLE counts AS SELECT day, dimensions, rows, xmin AS x FROM old_archive.analytics_events_daily;
INSERT INTO old.analytics_events SELECT -2, 'late', NULL, now() - interval '400 days' FROM generate_series(1, 3);
INSERT INTO old.analytics_events VALUES (-3, repeat('long', 3000), NULL, now() - interval '300 days');
INSERT INTO old.analytics_events VALUES (-4, 'first', NULL, '-infinity');
CALL techally.run_maintenance('{archive}');
SELECT last_result FROM techally.worker_tasks WHERE task = 'archive';
SELECT left(d.dimensions ->> 'event_type', 20) AS event_type, d.rows, d.is_final
  FROM old_archive.analytics_events_daily d WHERE NOT EXISTS (SELECT FROM counts c WHERE (c.day, c.dimensions, c.rows) = (d.day, d.dimensions, d.rows)) ORDER BY d.day;
SELECT count(DISTINCT d.day) AS days_counted_anew FROM old_archive.analytics_events_daily d WHERE NOT EXISTS (SELECT FROM counts c WHERE c.x = d.xmin AND (c.day, c.dimensions) = (d.day, d.dimensions));
-- some of them go by hand, and a second look finds nothing to do
DELETE FROM old.analytics_events WHERE id = -2;
CALL techally.run_maintenance('{archive}');
SELECT count(*) FROM old_archive.analytics_events_daily WHERE dimensions ->> 'event_type' = 'late';
CALL techally.run_maintenance('{archive}');
SELECT last_result FROM techally.worker_tasks WHERE task = 'archive';
DELETE FROM old.analytics_events WHERE id = -4;
DROP TABLE counts;
SELECT techally.set_retention('old.analytics_events', '1 year', 'archive', aggregate_after => '1 month', aggregate_by => '{event_type}');

-- any table, not only a store's
CREATE TABLE plain (id int, day date);
INSERT INTO plain SELECT g, (now() AT TIME ZONE 'UTC')::date - g FROM generate_series(1, 10) g;
SELECT techally.set_retention('plain', '5 days', 'delete', 'day');
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation = 'public.plain';
SELECT techally.set_retention('plain', '5 days', 'delete', 'id');
SELECT techally.set_retention('plain', '5 days', 'delete', 'nosuch');
SELECT techally.set_retention('plain', '5 days', 'burn', 'day');
SELECT techally.set_retention('plain', '-5 days', 'delete', 'day');
SELECT techally.set_retention(NULL, '5 days');
SELECT techally.set_retention('plain', '5 days', NULL, 'day');
SELECT techally.set_retention('techally.stores', '5 days', 'delete', 'created_at');
SELECT techally.archive_old_data(NULL);
UPDATE techally.retention_policies SET keep_for = '1 day' WHERE relation = 'old.sessions';
UPDATE techally.retention_policies SET relation = 'x' WHERE relation = 'public.plain';
CREATE TABLE parted (id int, at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('parted', '1 month', 1, '1 year', 'drop');
SELECT keep_for, action, source, in_force FROM techally.retention_policies WHERE relation = 'public.parted';
UPDATE techally.retention_policies SET keep_for = '1 day' WHERE relation = 'public.parted';
DROP TABLE parted;
-- the audit log is a managed table: its months go after a year
CREATE TABLE old.audited (id int PRIMARY KEY);
SELECT techally.enable_audit('old.audited');
SELECT keep_for, action, source, in_force FROM techally.retention_policies WHERE relation = 'old.audit_logs';
SELECT count(*) FROM techally.create_partitions('old.audit_logs', now() - interval '16 months', now() - interval '15 months');
CALL techally.run_maintenance('{retire}');
SELECT regexp_replace(last_result, '\d+', 'n') AS retired FROM techally.worker_tasks WHERE task = 'retire';
SELECT retention, retention_action FROM techally.managed_partitions WHERE parent = 'old.audit_logs'::regclass;
SELECT count(*) FROM techally.partition_ranges('old.audit_logs') WHERE to_time < now() - interval '13 months';
-- unless somebody says that it stays
SELECT techally.manage_partitions('old.audit_logs', '1 month');
SELECT techally.set_retention('old.audit_logs', NULL, time_column => 'changed_at');
SELECT keep_for, source, in_force FROM techally.retention_policies WHERE relation = 'old.audit_logs';
SELECT techally.reset_retention('old.audit_logs');
SELECT techally.disable_audit('old.audited');
-- analytics in managed partitions are counted, too
DROP TABLE old.analytics_events;
CREATE TABLE old.analytics_events (id int, event_type text, created_at timestamptz NOT NULL) PARTITION BY RANGE (created_at);
SELECT techally.manage_partitions('old.analytics_events', '1 month');
DELETE FROM old_archive.analytics_events_daily;
INSERT INTO old.analytics_events SELECT 1, 'view', now() - interval '8 months' FROM generate_series(1, 7);
CALL techally.run_maintenance('{archive}');
SELECT dimensions, rows, is_final FROM old_archive.analytics_events_daily;
SELECT keep_for, action, source, in_force FROM techally.retention_policies WHERE relation = 'old.analytics_events';
-- late ones, too, until their partition goes: in that transaction they are counted for good
INSERT INTO old.analytics_events SELECT 2, 'late', now() - interval '8 months' FROM generate_series(1, 2);
CALL techally.run_maintenance('{archive}');
SELECT dimensions, rows, is_final FROM old_archive.analytics_events_daily ORDER BY 1::text;
SELECT techally.create_partitions('old.analytics_events', now() - interval '30 months', now() - interval '29 months') > 0 AS made;
INSERT INTO old.analytics_events SELECT 3, 'old', now() - interval '30 months' FROM generate_series(1, 4);
INSERT INTO old_archive.analytics_events_daily SELECT (now() AT TIME ZONE 'UTC' - interval '30 months')::date, '{"event_type": "old"}', 3, false;
CALL techally.run_maintenance('{retire}');
SELECT dimensions, rows, is_final FROM old_archive.analytics_events_daily WHERE dimensions ->> 'event_type' = 'old';
SELECT count(*) FROM old.analytics_events WHERE id = 3;
-- and later still
INSERT INTO old.analytics_events SELECT 3, 'old', now() - interval '30 months' FROM generate_series(1, 5);
CALL techally.run_maintenance('{drain, archive, retire}');
SELECT dimensions, rows, is_final FROM old_archive.analytics_events_daily WHERE dimensions ->> 'event_type' = 'old';
SELECT count(*) FROM old.analytics_events WHERE id = 3;
-- one that stays, for something points at it, is not counted for good
SELECT techally.create_partitions('old.analytics_events', now() - interval '31 months', now() - interval '30 months') > 0 AS made;
DELETE FROM old.analytics_events;
ALTER TABLE old.analytics_events ADD PRIMARY KEY (id, created_at);
CREATE TABLE old.pointers (id int, at timestamptz, FOREIGN KEY (id, at) REFERENCES old.analytics_events (id, created_at));
INSERT INTO old.analytics_events VALUES (5, 'kept', now() - interval '31 months'), (6, 'gone', now() - interval '30 months');
INSERT INTO old.pointers SELECT id, created_at FROM old.analytics_events WHERE id = 5;
SET client_min_messages = error;
CALL techally.run_maintenance('{retire}');
SET client_min_messages = warning;
SELECT dimensions, rows, is_final FROM old_archive.analytics_events_daily WHERE dimensions ->> 'event_type' IN ('gone', 'kept');
SELECT id FROM old.analytics_events WHERE id IN (5, 6);
DROP TABLE old.pointers;
SET ROLE regress_keeper;
SELECT techally.set_retention('plain', '5 days', 'delete', 'day');
SELECT techally.reset_retention('plain');
SELECT techally.archive_old_data();
SELECT techally.retention_step('plain', now(), NULL, 1, false);
UPDATE techally.retention_policies SET keep_for = '1 day' WHERE relation = 'public.plain';
RESET ROLE;
DROP TABLE plain;
SELECT count(*) FROM techally.retention_rules;

SET client_min_messages = error;
DROP SCHEMA old, old_archive CASCADE;
DROP FUNCTION state, sell;
TRUNCATE techally.maintenance_results;
DROP ROLE regress_keeper;
