-- Retention: what goes, what stays, and why.  Files and tablespaces are in
-- test/t/030_partitions.pl.
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE SCHEMA ret;
SET search_path = ret;
CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;
-- by the real bounds, never by the name: 2023_05 is what it is called only
CREATE TABLE ev (id int, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE VIEW old AS SELECT partition, from_time, to_time FROM techally.partition_ranges('ret.ev') WHERE to_time < '2025-01-01';
CREATE TABLE ev_2099_01 PARTITION OF ev FOR VALUES FROM (MINVALUE) TO ('2023-01-01');
CREATE TABLE ev_2023_05 PARTITION OF ev FOR VALUES FROM ('2024-05-01') TO ('2024-06-01');
SELECT techally.manage_partitions('ev', '1 month', 0, '3 months', 'detach');
SELECT techally.create_partitions('ev', '2023-01-01', '2023-09-01');
SELECT * FROM old;
SELECT techally.retire_partition('ev', '2023-03-31 23:59:59');
SELECT techally.retire_partition('ev', '2023-03-31 23:59:59');
SELECT relkind FROM pg_class WHERE oid = 'ev_2099_01'::regclass AND NOT relispartition;
-- a month's end: three months before it are three months before it
SELECT techally.retire_partition('ev', '2023-05-01');
SELECT techally.retire_partition('ev', '2023-05-01');
SELECT techally.retire_partition('ev', 'infinity');
SELECT techally.manage_partitions('ev', '1 month', 0, NULL, 'drop');
SELECT techally.retire_partition('ev', '2024-05-01');

-- a foreign key that points in is found beforehand; the others go on
SELECT techally.manage_partitions('ev', '1 month', 0, '1 month', 'drop');
CREATE TABLE notes (id int, event int, event_at timestamptz, FOREIGN KEY (event, event_at) REFERENCES ev);
CREATE TABLE direct (event int, event_at timestamptz, CONSTRAINT points_at_one FOREIGN KEY (event, event_at) REFERENCES ev_2023_05);
INSERT INTO ev VALUES (1, '2023-02-03'), (2, '2023-03-03'), (3, '2023-04-03');
INSERT INTO notes VALUES (1, 1, '2023-02-03');
SELECT techally.retire_partition('ev', '2023-05-15');
SELECT * FROM raised($$SELECT techally.retire_partition('ret.ev', '2023-05-15')$$);
SELECT * FROM old;
DELETE FROM notes;
SELECT techally.retire_partition('ev', '2023-05-15');
SELECT techally.retire_partition('ev', '2023-05-15');
SELECT * FROM raised($$SELECT techally.retire_partition('ret.ev', '2024-12-15')$$) WHERE code <> 'none';
SELECT techally.retire_partition('ev', '2024-12-15'), techally.retire_partition('ev', '2024-12-15'), techally.retire_partition('ev', '2024-12-15');
SELECT * FROM raised($$SELECT techally.retire_partition('ret.ev', '2024-12-15')$$);
SELECT * FROM raised($$SELECT techally.retire_partition('ret.ev', '2024-12-15')$$);
DROP TABLE direct;
SELECT techally.retire_partition('ev', '2024-12-15');
SELECT * FROM old;

-- archives in a schema, and back; what was restored stays
CREATE TABLE log (id int, at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('log', '1 month', 0, '1 month', 'archive');
SELECT techally.archive_partitions_to('log', 'schema', 'ret_archive');
SELECT techally.create_partitions('log', '2023-01-01', '2023-03-15');
INSERT INTO log SELECT g, '2023-01-01'::timestamptz + g * interval '1 day' FROM generate_series(0, 70) g;
SELECT techally.retire_partition('log', '2023-03-01');
SELECT techally.retire_partition('log', '2023-03-01');
SELECT archive, parent, partition, from_time, to_time, kind, location, status, relation, restored_as FROM techally.archives WHERE parent = 'log'::regclass;
SELECT count(*) FROM log;
SELECT * FROM raised($$INSERT INTO ret.log VALUES (1, '2023-01-05')$$);
SELECT * FROM raised($$SELECT techally.restore_archived('ret.log_2023_01')$$);
DELETE FROM log WHERE at < '2023-01-31';
SELECT techally.restore_archived('ret.log_2023_01');
SELECT count(*) FROM log;
SELECT status, relation, restored_as FROM techally.archives WHERE parent = 'log'::regclass;
SELECT techally.retire_partition('log', '2023-03-01');
SELECT * FROM raised($$SELECT techally.restore_archived('ret.log_2023_01')$$);
SELECT techally.forget_restored('ret.log_2023_01');
SELECT techally.retire_partition('log', '2023-03-01');
SELECT archive, status, relation FROM techally.archives WHERE parent = 'log'::regclass ORDER BY 1;
DROP TABLE ret_archive.log_2023_01;
SELECT * FROM raised($$SELECT techally.restore_archived('ret.log_2023_01#2')$$);
SELECT * FROM raised($$SELECT techally.restore_archived('ret.nothing')$$);
SELECT k, r.* FROM unnest(ARRAY['''attic''', '''schema''', 'NULL']) k, raised(format($$SELECT techally.archive_partitions_to('ret.log', %s)$$, k)) r;
SELECT techally.archive_partitions_to('log', 'file');
SELECT techally.retire_partition('log', '2023-04-01');
SELECT * FROM raised($$SELECT techally.retire_partition('ret.log', '2023-04-01')$$);
-- detached, and not where it belongs yet: it can come back all the same
SELECT techally.restore_archived('ret.log_2023_02');
SELECT tableoid::regclass, count(*) FROM log GROUP BY tableoid ORDER BY tableoid::regclass::text;

-- one thing a call; what fails is written down, and the rest goes on
CREATE TABLE busy (id int, at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('busy', '1 month', 1, '1 month', 'drop');
SELECT techally.create_partitions('busy', '2023-01-01', '2023-02-01');
CREATE VIEW in_the_way AS SELECT * FROM busy_2023_01;
INSERT INTO busy SELECT g, '2024-03-01'::timestamptz + g * interval '1 day' FROM generate_series(0, 40) g;
SELECT techally.maintain_partitions('busy', '2023-12-01');
SELECT techally.maintain_partitions('busy', '2023-12-01');
SELECT techally.maintain_partitions('busy', '2023-12-01');
SELECT techally.maintain_partitions('busy', '2023-12-01');
SELECT partition FROM techally.partition_ranges('busy') WHERE to_time < '2025-01-01';
SELECT rows_in_default, last_error FROM techally.partition_status WHERE parent = 'busy'::regclass;
SELECT failures, retry_at > last_run AS later FROM techally.partition_runs WHERE parent = 'busy'::regclass AND task = 'retire';
DROP VIEW in_the_way;
UPDATE techally.partition_runs SET retry_at = now() - interval '1 day' WHERE parent = 'busy'::regclass;
SELECT techally.maintain_partitions('busy', '2023-12-01');
SELECT last_error FROM techally.partition_status WHERE parent = 'busy'::regclass;

-- who may
CREATE ROLE regress_retire_nobody;
GRANT EXECUTE ON FUNCTION techally.retire_partition(regclass, timestamptz), techally.restore_archived(text), techally.forget_restored(text),
    techally.archive_partitions_to(regclass, text, name), techally.maintain_partitions(regclass, timestamptz), techally.note_partition_run(regclass, text, text) TO regress_retire_nobody;
GRANT USAGE ON SCHEMA ret TO regress_retire_nobody;
SET ROLE regress_retire_nobody;
SELECT c, r.code, r.message FROM unnest(ARRAY['retire_partition(''ret.busy'')', 'restore_archived(''ret.log_2023_01'')', 'forget_restored(''ret.log_2023_01'')',
    'archive_partitions_to(''ret.busy'', ''file'')', 'maintain_partitions(''ret.busy'')', 'note_partition_run(''ret.busy'', ''drain'', NULL)']) c, raised('SELECT techally.' || c) r;
RESET ROLE;

DROP SCHEMA ret_archive CASCADE;
DROP SCHEMA ret CASCADE;
SELECT DISTINCT parent, relation, restored_as FROM techally.archives WHERE parent_name = 'ret.log' AND (parent, relation, restored_as) IS DISTINCT FROM (NULL, NULL, NULL);
DROP OWNED BY regress_retire_nobody;
DROP ROLE regress_retire_nobody;
