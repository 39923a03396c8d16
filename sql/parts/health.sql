-- The state of everything, in one call.
--
-- A room that has something to say has a function techally.<room>_health() with
-- the columns of health_check.

CREATE FUNCTION techally.database_health()
RETURNS TABLE (check_name text, status text, message text)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    number bigint;
BEGIN
    check_name := 'connectivity'; status := 'OK'; message := 'the database answers';
    RETURN NEXT;

    SELECT count(*) INTO number FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.state <> 'idle' AND a.backend_type = 'client backend'
       AND a.xact_start < clock_timestamp() - interval '5 minutes';
    check_name := 'long_transactions'; status := CASE WHEN number > 0 THEN 'WARNING' ELSE 'OK' END;
    message := format('%s transactions are older than 5 minutes', number);
    RETURN NEXT;

    SELECT count(*) INTO number FROM pg_prepared_xacts p
     WHERE p.database = current_database() AND p.prepared < clock_timestamp() - interval '1 hour';
    check_name := 'prepared_transactions'; status := CASE WHEN number > 0 THEN 'WARNING' ELSE 'OK' END;
    message := format('%s prepared transactions are older than an hour', number);
    RETURN NEXT;

    SELECT count(*) INTO number FROM pg_locks l WHERE NOT l.granted AND l.waitstart < clock_timestamp() - interval '5 seconds';
    check_name := 'locks'; status := CASE WHEN number > 0 THEN 'WARNING' ELSE 'OK' END;
    message := format('%s sessions have waited for a lock for more than 5 seconds', number);
    RETURN NEXT;

    SELECT age(d.datfrozenxid) INTO number FROM pg_database d WHERE d.datname = current_database();
    check_name := 'transaction_ids';
    status := CASE WHEN number > 1500000000 THEN 'CRITICAL' WHEN number > 500000000 THEN 'WARNING' ELSE 'OK' END;
    message := format('the oldest row is %s transactions old', number);
    RETURN NEXT;
END
$function$;
REVOKE ALL ON FUNCTION techally.database_health() FROM PUBLIC;
COMMENT ON FUNCTION techally.database_health() IS 'For health_check: what any database has';

CREATE FUNCTION techally.health_check()
RETURNS TABLE (check_name text, status text, message text)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    room text;
BEGIN
    FOR room IN
        SELECT p.proname FROM pg_proc p
         WHERE p.pronamespace = (SELECT e.extnamespace FROM pg_extension e WHERE e.extname = 'techally')
           AND p.proname LIKE '%\_health' AND p.pronargs = 0
         ORDER BY p.proname <> 'audit_health', p.proname <> 'database_health', p.proname
    LOOP
        BEGIN
            RETURN QUERY EXECUTE format('SELECT h.check_name, h.status, h.message FROM techally.%I() h', room);
        EXCEPTION WHEN OTHERS THEN
            check_name := left(room, -7); status := 'CRITICAL'; message := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION techally.health_check() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION techally.health_check() TO pg_monitor;
COMMENT ON FUNCTION techally.health_check() IS
'What is well and what is not: OK, WARNING or CRITICAL; what must not be missed comes first';
