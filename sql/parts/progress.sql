-- How far long work has come.  A backend says so in its entry of
-- pg_stat_activity; see src/progress.c.

CREATE FUNCTION techally.report_progress(
    task text,
    relation text,
    phase text,
    done bigint DEFAULT NULL,
    total bigint DEFAULT NULL
) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_report_progress';
COMMENT ON FUNCTION techally.report_progress(text, text, text, bigint, bigint) IS
'Says in this session''s own entry of pg_stat_activity how far a piece of work has come';

CREATE FUNCTION techally.end_progress()
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_end_progress';
COMMENT ON FUNCTION techally.end_progress() IS
'Ends what report_progress began';

-- Takes the text apart with the reader's rights: pg_stat_activity shows it to
-- those who may see what the session runs.
CREATE VIEW techally.progress AS
SELECT said.parts[1] AS task,
       said.parts[6] AS relation,
       said.parts[2] AS phase,
       said.parts[3]::bigint AS done,
       nullif(said.parts[4], '?')::bigint AS total,
       said.parts[5]::timestamptz AS started_at,
       (SELECT pg_catalog.string_agg(pg_catalog.format('%s on %s', l.mode,
                                         CASE WHEN l.locktype IN ('relation', 'tuple', 'page', 'extend')
                                              THEN pg_catalog.concat(nullif(l.locktype, 'relation') || ' ', l.relation::regclass)
                                              ELSE pg_catalog.format('%s', l.locktype) END)
                                     || coalesce(', held by ' || nullif(pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(a.pid), ', '), ''), ''), '; ')
          FROM pg_catalog.pg_locks l
         WHERE l.pid = a.pid AND NOT l.granted) AS waiting_for
  FROM pg_catalog.pg_stat_activity a
 CROSS JOIN LATERAL pg_catalog.string_to_table(a.query, E'\n') line
 CROSS JOIN LATERAL (SELECT pg_catalog.regexp_match(line,
           '^techally (\S+): (\D*?) (\d+)/(\d+|\?) since (\S+) on (.*)$') AS parts) said
 WHERE a.datname = pg_catalog.current_database()
   AND a.state = 'active'
   AND said.parts IS NOT NULL;
GRANT SELECT ON techally.progress TO PUBLIC;
COMMENT ON VIEW techally.progress IS 'Long work that is under way in this database';
COMMENT ON COLUMN techally.progress.task IS 'What is done';
COMMENT ON COLUMN techally.progress.relation IS 'On what';
COMMENT ON COLUMN techally.progress.phase IS 'What it is at';
COMMENT ON COLUMN techally.progress.done IS 'Rows done in this phase';
COMMENT ON COLUMN techally.progress.total IS 'Rows expected; NULL where nobody knows';
COMMENT ON COLUMN techally.progress.started_at IS 'Since when';
COMMENT ON COLUMN techally.progress.waiting_for IS 'The lock that it waits for, and who holds it; NULL: none';
