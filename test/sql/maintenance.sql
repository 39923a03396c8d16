-- Keeping house: the tasks, what they record, who may, and what fails.
SET client_min_messages = warning;
\set SHOW_CONTEXT never
CREATE ROLE regress_tenant NOLOGIN;
GRANT CREATE ON DATABASE :DBNAME TO regress_tenant;
SELECT techally.create_store('keep');
GRANT EXECUTE ON FUNCTION techally.create_store(name, text), techally.attach_machine(regclass, name, text, regclass) TO regress_tenant;
SET ROLE regress_tenant;
SELECT techally.create_store('tenant');
RESET ROLE;
CREATE FUNCTION sold(store text, places int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO %1$I.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
        INSERT INTO %1$I.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
        SELECT %1$I.receive_stock('MUG', 100) $q$, store);
    FOR i IN 1 .. places LOOP
        EXECUTE format('SELECT %1$I.place_order((SELECT id FROM %1$I.users), ''[{"sku": "MUG", "quantity": 2}]'')', store);
    END LOOP;
END $$;
SELECT sold('keep', 4), sold('tenant', 2);
CREATE VIEW results AS
SELECT t.task, t.database = current_database() AS here, t.last_run IS NOT NULL AS ran, t.last_duration >= '0' AS timed, t.last_result, t.next_run > now() AS later
  FROM techally.worker_tasks t;

-- the tasks and their intervals
SELECT task, "interval", last_result, next_run <= now() AS due FROM techally.worker_tasks ORDER BY task;

-- a pass with nothing to do
CALL techally.run_maintenance();
SELECT r.task, r.here, r.ran, r.timed, r.last_result, r.later FROM results r JOIN techally.maintenance_tasks t USING (task) ORDER BY t."position";

-- reservations: what has expired is collected in every store
UPDATE keep.stock_reservations SET expires_at = clock_timestamp() - interval '1 hour';
UPDATE tenant.stock_reservations SET expires_at = clock_timestamp() - interval '8 days';
CALL techally.run_maintenance('{reservations}');
SELECT last_result FROM results WHERE task = 'reservations';
SELECT status, count(*) FROM keep.stock_reservations GROUP BY 1 ORDER BY 1;

-- unpaid orders: cancelled through the machine, where the time is over
CALL techally.run_maintenance('{unpaid_orders}');
SELECT last_result FROM results WHERE task = 'unpaid_orders';
SELECT status, count(*) FROM keep.orders GROUP BY 1 ORDER BY 1;
SELECT status, count(*) FROM tenant.orders GROUP BY 1 ORDER BY 1;
SELECT DISTINCT event, note, actor FROM tenant.order_status_history WHERE to_status = 'cancelled';
-- the store's own patience
INSERT INTO keep.store_settings VALUES ('cancel_unpaid_after', '"never"');
SELECT * FROM techally.cancel_unpaid_orders('keep');
UPDATE keep.store_settings SET value = '"soon"' WHERE name = 'cancel_unpaid_after';
SELECT techally.cancel_unpaid_orders('keep');
UPDATE keep.store_settings SET value = '"30 minutes"' WHERE name = 'cancel_unpaid_after';
-- paid, extended: left alone
SELECT keep.transition_order(id, 'process_payment') FROM keep.orders ORDER BY order_number LIMIT 1;
SELECT count(keep.reserve_stock('MUG', 1)) FROM keep.products;
UPDATE keep.stock_reservations SET expires_at = clock_timestamp() + interval '1 hour'
 WHERE order_id = (SELECT id FROM keep.orders ORDER BY order_number OFFSET 1 LIMIT 1);
SELECT cancelled FROM techally.cancel_unpaid_orders('keep', 1);
SELECT cancelled FROM techally.cancel_unpaid_orders('keep', 10);
SELECT order_number = min(order_number) OVER () AS first, status FROM keep.orders ORDER BY order_number;
SELECT techally.cancel_unpaid_orders('nosuch');
SELECT techally.cancel_unpaid_orders(NULL);
SELECT techally.cancel_unpaid_orders('keep', 0);
SELECT * FROM techally.check_store('keep');
SELECT * FROM techally.check_store('tenant');

-- a trigger of somebody's own keeps an order: the others go on
CREATE FUNCTION keep.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
SELECT count(keep.place_order((SELECT id FROM keep.users), '[{"sku": "MUG", "quantity": 1}]')) FROM generate_series(1, 3);
UPDATE keep.stock_reservations SET expires_at = clock_timestamp() - interval '9 days' WHERE status = 'active' AND order_id IS NOT NULL AND expires_at < 'infinity';
UPDATE keep.orders SET notes = 'mine' WHERE id = (SELECT id FROM keep.orders WHERE status = 'pending' ORDER BY order_number DESC LIMIT 1);
CREATE TRIGGER refuse BEFORE UPDATE OF status ON keep.orders FOR EACH ROW WHEN (OLD.notes = 'mine') EXECUTE FUNCTION keep.refuse();
DO $$
BEGIN
    -- the key is not for the expected output
    SET LOCAL client_min_messages = error;
    RAISE INFO 'cancelled: %', (SELECT cancelled FROM techally.cancel_unpaid_orders('keep'));
END $$;
SELECT status, notes FROM keep.orders WHERE notes = 'mine';
DROP TRIGGER refuse ON keep.orders;

-- materialized views
CREATE MATERIALIZED VIEW keep.counts AS SELECT status, count(*) AS orders FROM keep.orders GROUP BY 1;
CREATE MATERIALIZED VIEW other_counts AS SELECT count(*) AS n FROM keep.users;
CREATE UNIQUE INDEX ON other_counts (n);
INSERT INTO keep.users (email, password_hash, first_name, last_name) VALUES ('bob@example.com', 'x', 'Bob', 'Lee');
CALL techally.run_maintenance('{views}');
SELECT last_result, later FROM results WHERE task = 'views';
SELECT check_name, status, message FROM techally.worker_health() WHERE check_name = 'maintenance';
-- who names a view lets its readers wait
SELECT techally.maintain_view('keep.counts');
CALL techally.run_maintenance('{views}');
SELECT last_result FROM results WHERE task = 'views';
DELETE FROM techally.maintained_views;
CREATE UNIQUE INDEX ON keep.counts (status);
UPDATE keep.orders SET status = 'cancelled' WHERE notes = 'mine';
SELECT techally.maintain_view('other_counts');
CALL techally.run_maintenance('{views}');
SELECT last_result FROM results WHERE task = 'views';
SELECT n FROM other_counts;
SELECT status, orders FROM keep.counts ORDER BY status;
SELECT techally.maintain_view('keep.counts', false);
CALL techally.run_maintenance('{views}');
SELECT last_result FROM results WHERE task = 'views';
SELECT techally.maintain_view('keep.orders');
SELECT techally.maintain_view(NULL);
SET ROLE regress_tenant;
SELECT techally.maintain_view('other_counts');
RESET ROLE;
DROP MATERIALIZED VIEW other_counts;
SELECT target FROM techally.maintained_views;

-- partitions: made ahead, DEFAULT drained, what is over dropped
CREATE TABLE parted (id int, at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('parted', '1 month', 2, '1 year', 'drop');
INSERT INTO parted VALUES (1, now() - interval '2 years'), (2, now() + interval '10 months'), (3, now());
CALL techally.run_maintenance('{premake, drain, retire}');
SELECT task, last_result FROM results WHERE task IN ('premake', 'drain', 'retire') ORDER BY task;
SELECT id FROM parted ORDER BY id;
SELECT rows_in_default, premade_ahead, last_run IS NOT NULL AS ran, last_error FROM techally.partition_status WHERE parent = 'parted'::regclass;
DROP TABLE parted;

-- the owner's code runs as the owner, and nothing of it later
CREATE TABLE done_by (who name);
GRANT INSERT ON done_by TO PUBLIC;
SET ROLE regress_tenant;
CREATE FUNCTION tenant.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.done_by VALUES (current_user); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER spy AFTER UPDATE ON tenant.stock_reservations DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tenant.spy();
RESET ROLE;
SELECT count(tenant.reserve_stock('MUG', 1));
UPDATE tenant.stock_reservations SET expires_at = clock_timestamp() - interval '1 hour' WHERE status = 'active';
TRUNCATE done_by;
CALL techally.run_maintenance('{reservations}');
SELECT who FROM done_by;
SELECT last_result FROM results WHERE task = 'reservations';
SET ROLE regress_tenant;
DROP TRIGGER spy ON tenant.stock_reservations;
RESET ROLE;

-- a task has its time
CREATE FUNCTION keep.slow() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM pg_sleep(60); RETURN 1; END $$;
CREATE MATERIALIZED VIEW keep.sleeper AS SELECT keep.slow() AS a WITH NO DATA;
INSERT INTO techally.maintenance_settings (task, time_limit) VALUES ('views', '200 milliseconds');
CALL techally.run_maintenance('{views}');
SELECT last_result, later FROM results WHERE task = 'views';
DROP MATERIALIZED VIEW keep.sleeper;
-- somebody else's limit is not a task's failure
CREATE MATERIALIZED VIEW keep.sleeper AS SELECT keep.slow() AS a WITH NO DATA;
UPDATE techally.maintenance_settings SET time_limit = NULL;
SET statement_timeout = '300ms';
CALL techally.run_maintenance('{views}');
RESET statement_timeout;
SELECT last_result FROM results WHERE task = 'views';
DROP MATERIALIZED VIEW keep.sleeper;

-- switched off, other intervals, only what is due
UPDATE techally.maintenance_settings SET enabled = false;
SELECT "interval", next_run FROM techally.worker_tasks WHERE task = 'views';
TRUNCATE techally.maintenance_results;
CALL techally.run_maintenance();
SELECT task, ran FROM results WHERE NOT ran;
CALL techally.run_maintenance('{views}');
SELECT task, ran FROM results WHERE NOT ran;
CREATE TABLE before AS SELECT task, last_run FROM techally.worker_tasks;
INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('reservations', '1 second'), ('drain', '1 month');
UPDATE techally.maintenance_results SET last_run = last_run - interval '1 minute' WHERE task = 'reservations';
CALL techally.run_maintenance(only_due => true);
SELECT t.task FROM techally.worker_tasks t JOIN before b USING (task) WHERE t.last_run > b.last_run;
INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('premake', '0');
DELETE FROM techally.maintenance_settings;
DROP TABLE before;

-- refused
CALL techally.run_maintenance('{reservations, nosuch}');
CALL techally.run_maintenance(ARRAY[NULL]);
BEGIN;
CALL techally.run_maintenance();
ROLLBACK;
DO $$ BEGIN CALL techally.run_maintenance('{reservations}'); END $$;
CREATE FUNCTION in_function() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL techally.run_maintenance(); END $$;
SELECT in_function();
DROP FUNCTION in_function();

-- who does not own everything: his own, and nothing recorded
SET ROLE regress_tenant;
CALL techally.run_maintenance();
SELECT * FROM techally.worker_tasks;
SELECT * FROM techally.maintenance_results;
RESET ROLE;
GRANT EXECUTE ON PROCEDURE techally.run_maintenance(text[], boolean) TO regress_tenant;
SELECT count(tenant.reserve_stock('MUG', 1)), count(keep.reserve_stock('MUG', 1));
UPDATE tenant.stock_reservations SET expires_at = clock_timestamp() - interval '1 hour' WHERE status = 'active';
UPDATE keep.stock_reservations SET expires_at = clock_timestamp() - interval '1 hour' WHERE status = 'active';
TRUNCATE techally.maintenance_results;
SET ROLE regress_tenant;
CALL techally.run_maintenance('{reservations}');
RESET ROLE;
SELECT count(*) FROM techally.maintenance_results;
SELECT 'keep' AS store, count(*) FROM keep.stock_reservations WHERE status = 'active' UNION ALL
SELECT 'tenant', count(*) FROM tenant.stock_reservations WHERE status = 'active' ORDER BY 1;
SELECT f.oid::regprocedure FROM pg_proc f
 WHERE f.pronamespace = 'techally'::regnamespace AND f.proname ~ '(_items|^run_maintenance|^worker_health|^wake_worker|^archive_old_data)$'
   AND has_function_privilege('regress_tenant', f.oid, 'EXECUTE') ORDER BY 1;

-- a task that took the server down with it waits, and longer each time
INSERT INTO techally.maintenance_results (task, started_at, started_by) VALUES ('reservations', now(), 1)
    ON CONFLICT (task) DO UPDATE SET started_at = now(), started_by = 1, next_run = now();
SELECT last_result ~ '^running since .* by process 1$' AS running FROM techally.worker_tasks WHERE task = 'reservations';
CALL techally.run_maintenance('{reservations}', only_due => true);
SELECT last_result, later FROM results WHERE task = 'reservations';
CALL techally.run_maintenance('{reservations}', only_due => true);
SELECT last_result FROM results WHERE task = 'reservations';
-- unless somebody asks for it
UPDATE techally.maintenance_results SET started_at = now(), started_by = 1 WHERE task = 'reservations';
CALL techally.run_maintenance('{reservations}');
SELECT last_result FROM results WHERE task = 'reservations';

-- health
SELECT check_name, status, message ~ 'run_maintenance\(\) was last called at|keeps house|techally.databases' AS said FROM techally.worker_health() WHERE check_name = 'worker';
UPDATE techally.maintenance_results SET failures = 5, last_result = 'failed for 1 of 1: x' WHERE task = 'reservations';
SELECT * FROM techally.worker_health() WHERE check_name = 'maintenance';
UPDATE techally.maintenance_results SET failures = 0, next_run = '2020-01-01 00:00:00+00' WHERE task = 'reservations';
SELECT status, message ~ 'was due' AS due FROM techally.worker_health() WHERE check_name = 'maintenance';

SET client_min_messages = error;
DROP SCHEMA keep, tenant CASCADE;
DROP VIEW results;
DROP TABLE done_by;
DROP FUNCTION sold;
TRUNCATE techally.maintenance_results;
DROP OWNED BY regress_tenant;
DROP ROLE regress_tenant;
