-- Keeping house.  A task is a row of maintenance_tasks and two functions:
--
--   TASK_items() → TABLE (item text, owner oid)      what there is to work on
--   TASK_step(item, cursor) → (done bigint, next text[, failure text])
--
-- A step is a transaction and runs as the item's owner; it is called again
-- with what it returned as next, first with NULL, until that is NULL.  A
-- failure that it returns is committed with what it wrote about it.

CREATE TABLE techally.maintenance_settings (
    task       text     CONSTRAINT maintenance_settings_pkey PRIMARY KEY,
    run_every  interval CONSTRAINT chk_maintenance_settings_run_every CHECK (run_every >= interval '1 second'),
    time_limit interval CONSTRAINT chk_maintenance_settings_time_limit CHECK (time_limit >= interval '1 millisecond'),
    enabled    boolean
);
REVOKE ALL ON TABLE techally.maintenance_settings FROM PUBLIC;
COMMENT ON TABLE techally.maintenance_settings IS 'What is to be otherwise than maintenance_tasks has it; a row a task, NULL leaves it as it is';
COMMENT ON COLUMN techally.maintenance_settings.task IS 'The task';
COMMENT ON COLUMN techally.maintenance_settings.run_every IS 'How often the worker runs it';
COMMENT ON COLUMN techally.maintenance_settings.time_limit IS 'How long it may take; then it is cancelled';
COMMENT ON COLUMN techally.maintenance_settings.enabled IS 'Whether it runs, unless somebody names it';
SELECT pg_catalog.pg_extension_config_dump('techally.maintenance_settings', '');

-- Logged, so that it outlives a crash (which may be a task's fault) and can be
-- read on a standby.  It is about this server, so it is not dumped.
CREATE TABLE techally.maintenance_results (
    task          text    CONSTRAINT maintenance_results_pkey PRIMARY KEY,
    started_at    timestamptz,
    started_by    integer,
    last_run      timestamptz,
    last_duration interval,
    last_result   text,
    failures      integer NOT NULL DEFAULT 0,
    next_run      timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200);
REVOKE ALL ON TABLE techally.maintenance_results FROM PUBLIC;
COMMENT ON TABLE techally.maintenance_results IS 'How each task of maintenance went last';
COMMENT ON COLUMN techally.maintenance_results.task IS 'The task';
COMMENT ON COLUMN techally.maintenance_results.started_at IS 'Since when it runs; NULL: it does not';
COMMENT ON COLUMN techally.maintenance_results.started_by IS 'The server process that runs it';
COMMENT ON COLUMN techally.maintenance_results.last_run IS 'When the last run began';
COMMENT ON COLUMN techally.maintenance_results.last_duration IS 'How long it took';
COMMENT ON COLUMN techally.maintenance_results.last_result IS 'How it ended';
COMMENT ON COLUMN techally.maintenance_results.failures IS 'Runs in a row that failed';
COMMENT ON COLUMN techally.maintenance_results.next_run IS 'When it is due';

CREATE VIEW techally.maintenance_tasks AS
SELECT d.task,
       d."position",
       coalesce(s.run_every, d.run_every) AS run_every,
       coalesce(s.time_limit, d.time_limit) AS time_limit,
       coalesce(s.enabled, true) AS enabled,
       d.runs_as,
       d.description
  FROM (VALUES
       ('premake',       10, interval '10 minutes', interval '2 minutes',  'caller',     'makes partitions ahead of time'),
       ('drain',         20, interval '5 minutes',  interval '10 minutes', 'caller',     'moves rows out of DEFAULT partitions'),
       ('reservations',  30, interval '1 minute',   interval '1 minute',   'restricted', 'collects reservations that have expired'),
       ('stripes',       35, interval '5 minutes',  interval '1 minute',   'restricted', 'folds stock that was spread over several rows and has cooled'),
       ('search',        37, interval '5 minutes',  interval '15 minutes', 'restricted', 'takes recent changes of products into search'),
       ('unpaid_orders', 40, interval '10 minutes', interval '5 minutes',  'restricted', 'cancels orders that were not paid'),
       ('archive',       50, interval '1 day',      interval '1 hour',     'caller',     'archives or deletes rows whose time is over'),
       ('retire',        60, interval '1 hour',     interval '30 minutes', 'caller',     'drops, detaches or archives partitions whose time is over'),
       ('views',         70, interval '1 hour',     interval '30 minutes', 'owner',      'refreshes materialized views concurrently'),
       ('audit',         75, interval '5 minutes',  interval '30 minutes', 'caller',     'puts audit triggers on new partitions and seals the audit logs')
       ) AS d (task, "position", run_every, time_limit, runs_as, description)
  LEFT JOIN techally.maintenance_settings s ON s.task = d.task;
COMMENT ON VIEW techally.maintenance_tasks IS 'The tasks of maintenance, in the order in which they run';
COMMENT ON COLUMN techally.maintenance_tasks.task IS 'Its name';
COMMENT ON COLUMN techally.maintenance_tasks."position" IS 'Its place in a pass';
COMMENT ON COLUMN techally.maintenance_tasks.run_every IS 'How often the worker runs it';
COMMENT ON COLUMN techally.maintenance_tasks.time_limit IS 'How long it may take';
COMMENT ON COLUMN techally.maintenance_tasks.enabled IS 'Whether it runs';
COMMENT ON COLUMN techally.maintenance_tasks.runs_as IS 'Who its steps run as: caller, owner (of the item), or restricted: the owner in a security-restricted operation';
COMMENT ON COLUMN techally.maintenance_tasks.description IS 'What it does';

CREATE VIEW techally.worker_tasks AS
SELECT t.task,
       pg_catalog.current_database() AS database,
       t.run_every AS "interval",
       r.last_run,
       r.last_duration,
       CASE WHEN r.started_at IS NULL THEN r.last_result
            ELSE pg_catalog.format('running since %s, by process %s', r.started_at, r.started_by) END AS last_result,
       CASE WHEN t.enabled THEN coalesce(r.next_run, pg_catalog.now()) END AS next_run
  FROM techally.maintenance_tasks t
  LEFT JOIN techally.maintenance_results r ON r.task = t.task;
GRANT SELECT ON techally.worker_tasks TO pg_monitor;
COMMENT ON VIEW techally.worker_tasks IS 'The tasks of maintenance and how they went last';
COMMENT ON COLUMN techally.worker_tasks.task IS 'Its name';
COMMENT ON COLUMN techally.worker_tasks.database IS 'This database';
COMMENT ON COLUMN techally.worker_tasks."interval" IS 'How often it runs';
COMMENT ON COLUMN techally.worker_tasks.last_run IS 'When the last run began';
COMMENT ON COLUMN techally.worker_tasks.last_duration IS 'How long it took';
COMMENT ON COLUMN techally.worker_tasks.last_result IS 'How it ended';
COMMENT ON COLUMN techally.worker_tasks.next_run IS 'When it is due; NULL: it is switched off';

CREATE PROCEDURE techally.run_maintenance(tasks text[] DEFAULT NULL, only_due boolean DEFAULT false)
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_run_maintenance';
REVOKE ALL ON PROCEDURE techally.run_maintenance(text[], boolean) FROM PUBLIC;
COMMENT ON PROCEDURE techally.run_maintenance(text[], boolean) IS
'Does what the background worker does, committing step by step: all tasks, or those that are named, or those of them that are due';

-- The worker.

CREATE FUNCTION techally.wake_worker()
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_wake_worker';
REVOKE ALL ON FUNCTION techally.wake_worker() FROM PUBLIC;
COMMENT ON FUNCTION techally.wake_worker() IS
'Has the background worker look at this database once the transaction commits';

CREATE FUNCTION techally.worker_settings_changed()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_worker_settings_changed';
COMMENT ON FUNCTION techally.worker_settings_changed() IS
'Trigger of maintenance_settings: has the background worker look at them';
CREATE TRIGGER techally_wake AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON techally.maintenance_settings
    FOR EACH STATEMENT EXECUTE FUNCTION techally.worker_settings_changed();

CREATE FUNCTION techally.worker_state(OUT preloaded boolean, OUT launcher integer, OUT listed boolean, OUT worker integer)
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ta_worker_state';
COMMENT ON FUNCTION techally.worker_state() IS
'Whether the library is preloaded, the launcher''s pid, whether this database is in techally.databases, the pid of the worker that is at work here';

-- Partitions.

CREATE FUNCTION techally.partition_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relowner
  FROM techally.managed_partitions m
  JOIN pg_catalog.pg_class c ON c.oid = m.parent
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1
$function$;
REVOKE ALL ON FUNCTION techally.partition_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.partition_items() IS 'Items of the tasks that work on managed tables';

CREATE FUNCTION techally.premake_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.partition_items() i';
REVOKE ALL ON FUNCTION techally.premake_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.premake_items() IS 'Items of the task premake: managed tables';

CREATE FUNCTION techally.premake_step(item text, cursor text, OUT done bigint, OUT next text, OUT failure text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    BEGIN
        done := techally.premake_partitions(item::regclass, clock_timestamp());
    EXCEPTION WHEN OTHERS THEN
        failure := format('%s (%s)', SQLERRM, SQLSTATE);
    END;
    PERFORM techally.note_partition_run(item::regclass, 'premake', failure);
END
$function$;
COMMENT ON FUNCTION techally.premake_step(text, text) IS 'Step of the task premake: makes a table''s partitions ahead of time';

CREATE FUNCTION techally.drain_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.partition_items() i';
REVOKE ALL ON FUNCTION techally.drain_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.drain_items() IS 'Items of the task drain: managed tables';

CREATE FUNCTION techally.drain_step(item text, cursor text, OUT done bigint, OUT next text, OUT failure text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    BEGIN
        done := techally.drain_default(item::regclass);
        next := CASE WHEN done > 0 THEN 'more' END;
    EXCEPTION WHEN OTHERS THEN
        failure := format('%s (%s)', SQLERRM, SQLSTATE);
    END;
    PERFORM techally.note_partition_run(item::regclass, 'drain', failure);
END
$function$;
COMMENT ON FUNCTION techally.drain_step(text, text) IS 'Step of the task drain: moves one range out of DEFAULT';

-- The tasks of the stores.

CREATE FUNCTION techally.store_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT n.nspname::pg_catalog.text, c.relowner
  FROM techally.store_registry r
  JOIN pg_catalog.pg_class c ON c.oid = r.anchor
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1
$function$;
REVOKE ALL ON FUNCTION techally.store_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.store_items() IS 'Items of the tasks that work on stores';

CREATE FUNCTION techally.reservations_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.store_items() i';
REVOKE ALL ON FUNCTION techally.reservations_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.reservations_items() IS 'Items of the task reservations: stores';

CREATE FUNCTION techally.reservations_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    done := techally.expire_reservations(item::name, 1000);
    next := CASE WHEN done = 1000 THEN 'more' END;
END
$function$;
COMMENT ON FUNCTION techally.reservations_step(text, text) IS 'Step of the task reservations: collects a thousand that have expired';

CREATE FUNCTION techally.stripes_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.store_items() i';
REVOKE ALL ON FUNCTION techally.stripes_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.stripes_items() IS 'Items of the task stripes: stores';

CREATE FUNCTION techally.stripes_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    done := techally.fold_cooled_stock(item::name);
END
$function$;
COMMENT ON FUNCTION techally.stripes_step(text, text) IS 'Step of the task stripes: folds what has cooled';

CREATE FUNCTION techally.search_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.store_items() i';
REVOKE ALL ON FUNCTION techally.search_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.search_items() IS 'Items of the task search: stores';

CREATE FUNCTION techally.search_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    changed boolean;
BEGIN
    done := 0;
    EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %1$I.search_recent) OR EXISTS (SELECT FROM %1$I.search_prices)', item) INTO changed;
    IF changed THEN
        done := techally.fold_search(item::name);
    END IF;
END
$function$;
COMMENT ON FUNCTION techally.search_step(text, text) IS 'Step of the task search: folds what has changed';

CREATE FUNCTION techally.unpaid_orders_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS 'SELECT i.item, i.owner FROM techally.store_items() i';
REVOKE ALL ON FUNCTION techally.unpaid_orders_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.unpaid_orders_items() IS 'Items of the task unpaid_orders: stores';

-- An order is unpaid while it is in its machine's first state.  Its
-- reservation has expired: nothing is held for it, and it could be paid only if
-- there is stock left.  Lock order: orders by key, then their reservations by
-- key, then what the transition locks.
CREATE FUNCTION techally.cancel_unpaid_orders(store name, max_orders integer DEFAULT 100, after uuid DEFAULT NULL, OUT cancelled bigint, OUT last_order uuid)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    setting  text;
    patience interval;
    initial  text;
    orders   uuid[];
    unpaid   uuid[];
    id       uuid;
BEGIN
    IF store IS NULL OR max_orders IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'arguments "store" and "max_orders" must not be null';
    END IF;
    IF max_orders <= 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'max_orders must be greater than zero';
    END IF;
    IF to_regclass(format('%I.schema_migrations', store)) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TA009',
            MESSAGE = format('store "%s" does not exist', store),
            HINT = 'The view techally.stores lists the stores.';
    END IF;
    cancelled := 0;

    EXECUTE format('SELECT coalesce(s.value #>> ''{}'', ''never'') FROM %I.store_settings s WHERE s.name = ''cancel_unpaid_after''', store)
       INTO setting;
    setting := coalesce(setting, '7 days');
    IF setting = 'never' THEN
        RETURN;
    END IF;
    BEGIN
        patience := setting::interval;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('setting cancel_unpaid_after of store "%s" is no interval: "%s"', store, setting),
            HINT = 'Set it to an interval such as "7 days", or to "never".';
    END;

    SELECT m.definition ->> 'initial' INTO initial
      FROM techally.machine_attachments a
      JOIN techally.machines m ON m.name = a.machine
     WHERE a.target = to_regclass(format('%I.orders', store)) AND a.column_name = 'status'
       AND m.definition -> 'transitions' @> jsonb_build_array(jsonb_build_object('event', 'cancel', 'from', m.definition -> 'initial'));
    IF initial IS NULL THEN
        RETURN;        -- no machine, or one in which a new order cannot be cancelled
    END IF;

    -- whoever is at an order, paying it perhaps, is not waited for
    EXECUTE format($query$
        SELECT array_agg(c.id ORDER BY c.id), max(c.id::text)::uuid FROM (
            SELECT o.id FROM %1$I.orders o
             WHERE o.status = $1 AND o.id > $4
               AND (SELECT max(r.expires_at) FROM %1$I.stock_reservations r WHERE r.order_id = o.id) < clock_timestamp() - $2
             ORDER BY o.id LIMIT $3 FOR UPDATE SKIP LOCKED) c $query$, store)
       INTO orders, last_order
      USING initial, patience, max_orders, coalesce(after, '00000000-0000-0000-0000-000000000000'::uuid);
    IF orders IS NULL THEN
        RETURN;
    END IF;
    -- the reservation may have been extended while we came to the order
    EXECUTE format($query$
        SELECT array_agg(e.order_id ORDER BY e.order_id) FROM (
            SELECT l.order_id FROM (
                SELECT r.order_id, r.expires_at FROM %1$I.stock_reservations r
                 WHERE r.order_id = ANY ($1) ORDER BY r.id FOR NO KEY UPDATE) l
             GROUP BY l.order_id HAVING max(l.expires_at) < clock_timestamp() - $2) e $query$, store)
       INTO unpaid USING orders, patience;

    FOREACH id IN ARRAY coalesce(unpaid, '{}') LOOP
        BEGIN
            PERFORM techally.transition_order(store, id, 'cancel', format('not paid within %s of the end of its reservation', patience));
            cancelled := cancelled + 1;
        EXCEPTION WHEN OTHERS THEN
            -- somebody's own trigger, perhaps; the others go on
            RAISE WARNING USING MESSAGE = format('unpaid order %s of store "%s" cannot be cancelled', id, store), DETAIL = SQLERRM;
        END;
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.cancel_unpaid_orders(name, integer, uuid) IS
'Cancels orders whose reservation expired longer ago than the store''s setting cancel_unpaid_after (7 days), in the order of their keys; returns how many, and the last that was looked at';

CREATE FUNCTION techally.unpaid_orders_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    SELECT c.cancelled, c.last_order INTO done, next FROM techally.cancel_unpaid_orders(item::name, 100, cursor::uuid) c;
END
$function$;
COMMENT ON FUNCTION techally.unpaid_orders_step(text, text) IS 'Step of the task unpaid_orders: cancels up to a hundred';

-- Materialized views: those of the stores, and those that maintain_view names.

CREATE TABLE techally.maintained_views (
    target  regclass CONSTRAINT maintained_views_pkey PRIMARY KEY,
    refresh boolean  NOT NULL
);
GRANT SELECT ON TABLE techally.maintained_views TO PUBLIC;
COMMENT ON TABLE techally.maintained_views IS 'Materialized views that maintenance refreshes, or does not though they are a store''s';
COMMENT ON COLUMN techally.maintained_views.target IS 'The view';
COMMENT ON COLUMN techally.maintained_views.refresh IS 'Whether it is refreshed';
SELECT pg_catalog.pg_extension_config_dump('techally.maintained_views', '');

CREATE FUNCTION techally.maintain_view(target regclass, refresh boolean DEFAULT true)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_maintain_view';
COMMENT ON FUNCTION techally.maintain_view(regclass, boolean) IS
'Has maintenance refresh a materialized view, or not';

CREATE FUNCTION techally.views_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relowner
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN techally.maintained_views v ON v.target = c.oid
 WHERE c.relkind = 'm'
   AND coalesce(v.refresh, c.relnamespace IN (SELECT a.relnamespace FROM techally.store_registry r
                                                JOIN pg_catalog.pg_class a ON a.oid = r.anchor))
 ORDER BY 1
$function$;
REVOKE ALL ON FUNCTION techally.views_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.views_items() IS 'Items of the task views: materialized views';

-- CONCURRENTLY wants a unique index over whole rows, and something to compare
-- with; a view that was never filled is readable by nobody and can be locked.
-- Without an index readers wait for the refresh: only where somebody asked for
-- this very view.
CREATE FUNCTION techally.views_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    relation  regclass := to_regclass(item);
    populated boolean;
    indexed   boolean;
BEGIN
    SELECT c.relispopulated INTO populated FROM pg_class c WHERE c.oid = relation;
    IF populated IS NULL THEN
        done := 0;      -- dropped in the meantime
        RETURN;
    END IF;
    indexed := EXISTS (SELECT FROM pg_index i
                        WHERE i.indrelid = relation AND i.indisunique AND i.indisvalid
                          AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate);
    IF populated AND NOT indexed AND NOT EXISTS (SELECT FROM techally.maintained_views v WHERE v.target = relation AND v.refresh) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('materialized view %s has no unique index over columns', relation),
            HINT = 'Without one it cannot be refreshed while it is read. Make one, or say with techally.maintain_view that readers may wait, or that it is left alone.';
    END IF;
    EXECUTE format('REFRESH MATERIALIZED VIEW %s %s', CASE WHEN populated AND indexed THEN 'CONCURRENTLY' ELSE '' END, relation);
    done := 1;
END
$function$;
COMMENT ON FUNCTION techally.views_step(text, text) IS 'Step of the task views: refreshes one';

-- Health.

CREATE FUNCTION techally.worker_health()
RETURNS TABLE (check_name text, status text, message text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    state   record;
    newest  timestamptz;
    sound   boolean := true;
BEGIN
    SELECT * INTO state FROM techally.worker_state();
    SELECT max(r.last_run) INTO newest FROM techally.maintenance_results r;
    check_name := 'worker';
    IF pg_is_in_recovery() THEN
        status := 'OK';
        message := 'on a standby maintenance rests';
    ELSIF state.preloaded AND state.listed AND state.launcher IS NULL THEN
        status := 'CRITICAL';
        message := 'the launcher does not run';
    ELSIF state.preloaded AND state.listed
          AND coalesce(newest, '-infinity') < now() - interval '10 minutes' - (SELECT min(t.run_every) FROM techally.maintenance_tasks t WHERE t.enabled) THEN
        status := 'WARNING';
        message := CASE WHEN newest IS NULL THEN 'the launcher runs, and no task has run yet' ELSE format('the launcher runs, and no task has since %s', newest) END
                   || '; the server''s log says why';
    ELSIF state.preloaded AND state.listed THEN
        status := 'OK';
        message := 'the background worker keeps house';
    ELSIF newest IS NULL OR newest < now() - interval '1 day' THEN
        status := 'WARNING';
        message := CASE WHEN state.preloaded THEN format('database "%s" is not in techally.databases', current_database())
                        ELSE 'techally is not in shared_preload_libraries' END
                   || coalesce(format(', and run_maintenance() was last called at %s', newest), ', and run_maintenance() was never called');
    ELSE
        status := 'OK';
        message := format('run_maintenance() was last called at %s', newest);
    END IF;
    RETURN NEXT;

    check_name := 'maintenance';
    FOR status, message IN
        SELECT CASE WHEN r.failures >= 5 THEN 'CRITICAL' ELSE 'WARNING' END,
               format('task "%s" failed %s times in a row: %s', t.task, r.failures, r.last_result)
          FROM techally.maintenance_tasks t
          JOIN techally.maintenance_results r ON r.task = t.task
         WHERE t.enabled AND r.failures > 0
         ORDER BY t."position"
    LOOP
        sound := false;
        RETURN NEXT;
    END LOOP;
    FOR status, message IN
        SELECT 'WARNING', format('task "%s" was due at %s', t.task, r.next_run)
          FROM techally.maintenance_tasks t
          JOIN techally.maintenance_results r ON r.task = t.task
         WHERE t.enabled AND r.failures = 0 AND r.started_at IS NULL AND NOT pg_is_in_recovery()
           AND r.next_run < clock_timestamp() - greatest(interval '10 minutes', t.run_every)
         ORDER BY t."position"
    LOOP
        sound := false;
        RETURN NEXT;
    END LOOP;
    IF sound THEN
        status := 'OK';
        message := 'no task fails';
        RETURN NEXT;
    END IF;
END
$function$;
REVOKE ALL ON FUNCTION techally.worker_health() FROM PUBLIC;
COMMENT ON FUNCTION techally.worker_health() IS
'Whether somebody keeps house and every task goes well';

-- the worker may have been waiting for this extension
SELECT techally.wake_worker();
