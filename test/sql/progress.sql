-- Long work says how far it has come.  The tests' own statement is what runs,
-- so they look from within it.
SET client_min_messages = warning;
CREATE FUNCTION shown() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT string_agg(format('%s | %s | %s | %s | %s | %s | %s', p.task, p.relation, p.phase, p.done, p.total,
                             p.started_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute', p.waiting_for), E'\n')
      FROM techally.progress p $$;
-- pg_stat_activity shows one state throughout a transaction unless told otherwise
CREATE FUNCTION look(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_stat_clear_snapshot();
    RAISE INFO '%: %', what, shown();
END $$;

DO $$
BEGIN
    PERFORM look('nothing');
    PERFORM techally.report_progress('drain', 'shop.events', 'moving');
    PERFORM look('begun');
    PERFORM techally.report_progress('drain', 'shop.events', 'moving', 5, 100);
    PERFORM look('moved');
    PERFORM techally.report_progress('archive', 'shop."odd on 3/4 since"', 'checking', 1, 2);
    PERFORM look('within');
    PERFORM techally.end_progress();
    PERFORM look('outside again');
    COMMIT;
    PERFORM look('committed');
    BEGIN
        PERFORM techally.report_progress('archive', 'shop.orders', 'copying');
        PERFORM look('in a subtransaction');
        RAISE EXCEPTION 'failed';
    EXCEPTION WHEN raise_exception THEN
        PERFORM techally.report_progress('drain', 'shop.events', 'moving', 6, 100);
        PERFORM look('it failed');
    END;
    PERFORM techally.end_progress();
    PERFORM techally.end_progress();
    PERFORM look('ended');
    PERFORM techally.report_progress('drain', 'shop.events', 'never ended');
END $$;
DO $$
BEGIN
    PERFORM look('the next statement');
    PERFORM techally.report_progress('archive', 'shop.orders', 'copying');
    PERFORM techally.end_progress();
    PERFORM look('ended');
END $$;
SELECT techally.report_progress(NULL, 'x', 'y');
SELECT techally.report_progress('x', NULL, 'y');
SELECT techally.report_progress('x', 'y', NULL);

-- what looks like it in a client's statement and is not ours to believe
SELECT shown() AS nothing, 'techally drain: moving 1/2 since 2026-01-01T00:00:00Z on x' AS text;
DROP FUNCTION look(text), shown();
