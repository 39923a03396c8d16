-- Partitions that make themselves: steps, bounds, names, taking over what is
-- there, rights.  What manage_partitions makes ahead depends on the day and is
-- counted, not listed; the years before 2025 are ours.
SET client_min_messages = warning;
SET timezone = 'America/New_York';
SET datestyle = 'SQL, DMY';
CREATE SCHEMA prt;
SET search_path = prt;

CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    RETURN NEXT;
END $$;
-- bounds in UTC, whatever the session's zone is
CREATE FUNCTION bounds(parent regclass, like_name text DEFAULT '%') RETURNS TABLE (partition name, bound text)
LANGUAGE sql SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = parent AND c.relname LIKE like_name
       AND (c.relname ~ '_(default|[01]\d\d\d|200\d|201\d|202[0-4])' OR like_name <> '%')
     ORDER BY (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'BC')) IS NULL, pg_get_expr(c.relpartbound, c.oid) COLLATE "C"
$$;

-- every step, and what its partitions are called
CREATE TABLE steps (id int, at timestamptz) PARTITION BY RANGE (at);
DO $$
DECLARE
    s record;
BEGIN
    FOR s IN SELECT * FROM (VALUES ('year', interval '1 year', 2001), ('half', '6 months', 2002), ('quarter', '3 months', 2003),
                                   ('month', '1 month', 2004), ('week', '7 days', 2005), ('day', '1 day', 2006), ('hours', '6 hours', 2007),
                                   ('hour', '1 hour', 2008)) v(name, step, year)
    LOOP
        PERFORM techally.manage_partitions('prt.steps', s.step, 0);
        PERFORM techally.create_partitions('prt.steps', make_timestamptz(s.year, 3, 14, 15, 9, 26, 'UTC'), make_timestamptz(s.year, 3, 14, 15, 9, 27, 'UTC'));
    END LOOP;
END $$;
SELECT * FROM bounds('steps');
-- weeks are ISO's, also where they reach into another year
SELECT techally.manage_partitions('steps', '1 week', 0);
SELECT techally.create_partitions('steps', '2020-12-31 UTC', '2021-01-12 UTC');
SELECT * FROM bounds('steps', 'steps_202__w%');

-- the changes to and from daylight saving time are none
CREATE TABLE hours (at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('hours', '1 hour', 0);
SELECT techally.create_partitions('hours', '2024-03-10 01:30 America/New_York', '2024-03-10 04:30 America/New_York');
SELECT techally.create_partitions('hours', '2024-11-03 00:30 America/New_York', '2024-11-03 02:30 America/New_York');
SELECT * FROM bounds('hours', 'hours_2024%');
INSERT INTO hours SELECT '2024-11-03 04:00 UTC'::timestamptz + g * interval '20 minutes' FROM generate_series(0, 8) g;
SELECT tableoid::regclass AS partition, count(*) FROM hours GROUP BY tableoid ORDER BY tableoid::regclass::text;
CREATE TABLE days (at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('days', '1 day', 0);
SET timezone = 'Europe/Berlin';
SELECT techally.create_partitions('days', '2024-03-31 00:00', '2024-04-01 00:00');
SELECT techally.create_partitions('days', '2024-10-27 12:00', '2024-10-28 12:00');
SELECT * FROM bounds('days', 'days_2024%');
RESET timezone;

-- leap years; a time without a zone, and a date, are their face value
CREATE TABLE dates (at date) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('dates', '1 day', 0);
SELECT techally.create_partitions('dates', '2024-02-28 UTC', '2024-03-02 UTC'), techally.create_partitions('dates', '2023-02-28 UTC', '2023-03-02 UTC'),
       techally.create_partitions('dates', '1900-02-28 UTC', '1900-03-02 UTC');
SELECT * FROM bounds('dates');
SELECT * FROM raised($$SELECT techally.manage_partitions('prt.dates', '1 hour')$$);
CREATE TABLE plain_times (at timestamp) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('plain_times', '1 month', 0);
SELECT techally.create_partitions('plain_times', '2024-02-29 23:59 UTC', '2024-03-01 00:01 UTC');
SELECT * FROM bounds('plain_times');

-- the year 9999, those before Christ, and the ends of time
SELECT techally.manage_partitions('plain_times', '1 year', 0);
SELECT techally.create_partitions('plain_times', '9999-12-31 UTC', '10000-01-02 UTC'), techally.create_partitions('plain_times', '0002-06-01 BC UTC', '0001-06-01 AD UTC');
SELECT * FROM bounds('plain_times', 'plain_times_0%') UNION ALL SELECT * FROM bounds('plain_times', 'plain_times_9999') UNION ALL SELECT * FROM bounds('plain_times', 'plain_times_10000');
INSERT INTO plain_times VALUES ('9999-12-31 23:59:59'), ('infinity'), ('-infinity'), (NULL), ('0001-12-31 BC'), ('294276-12-31');
SELECT tableoid::regclass AS partition, count(*) FROM plain_times GROUP BY tableoid ORDER BY tableoid::regclass::text;
SELECT techally.premake_partitions('plain_times', 'infinity'), techally.premake_partitions('plain_times', '-infinity');
SELECT * FROM raised($$SELECT techally.create_partitions('prt.plain_times', '2024-01-01', 'infinity')$$);
SELECT * FROM raised($$SELECT techally.create_partitions('prt.plain_times', '2024-02-01', '2024-01-01')$$);
SELECT * FROM raised($$SELECT techally.create_partitions('prt.hours', '0001-01-01', '2024-01-01')$$);

-- takes over what is there, whatever its bounds
CREATE TABLE odd (at date) PARTITION BY RANGE (at);
CREATE TABLE odd_a PARTITION OF odd FOR VALUES FROM (MINVALUE) TO ('2023-12-10');
CREATE TABLE odd_b PARTITION OF odd FOR VALUES FROM ('2024-02-05') TO ('2024-02-10');
CREATE TABLE odd_c PARTITION OF odd FOR VALUES FROM ('2024-02-20') TO ('2024-02-21');
CREATE TABLE odd_d PARTITION OF odd FOR VALUES FROM ('2024-04-15') TO (MAXVALUE);
SELECT techally.manage_partitions('odd', '1 month');
SELECT techally.create_partitions('odd', '2020-01-01', '2030-01-01');
SELECT * FROM bounds('odd', 'odd_%');
SELECT techally.create_partitions('odd', '2020-01-01', '2030-01-01');

-- names: taken ones, long ones, ones that need quotes
CREATE TABLE "Ev ""ents" (at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE "Ev ""ents_2024_01" ();
CREATE TYPE "Ev ""ents_2024_02" AS (x int);
SELECT techally.manage_partitions('"Ev ""ents"', '1 month', 0);
SELECT techally.create_partitions('"Ev ""ents"', '2024-01-15 UTC', '2024-02-15 UTC');
SELECT * FROM bounds('"Ev ""ents"');
SELECT format('CREATE TABLE %I (at timestamptz) PARTITION BY RANGE (at)', repeat('é', 31)) AS long_table \gexec
SELECT techally.manage_partitions(repeat('é', 31)::regclass, '1 hour', 0);
SELECT techally.create_partitions(repeat('é', 31)::regclass, '2024-01-15 12:00 UTC', '2024-01-15 14:00 UTC');
SELECT *, octet_length(partition) FROM bounds(repeat('é', 31)::regclass);

-- expressions
CREATE TABLE expressions (id int, at timestamptz NOT NULL) PARTITION BY RANGE (((at AT TIME ZONE 'UTC')::date));
SELECT techally.manage_partitions('expressions', '1 month', 0);
SELECT techally.create_partitions('expressions', '2024-01-15', '2024-02-15');
INSERT INTO expressions VALUES (1, '2024-01-31 20:00'), (2, '2024-03-31 20:00');
SELECT techally.create_partitions('expressions', '2024-03-15 UTC', '2024-05-01 UTC');
SELECT * FROM bounds('expressions');

-- what a new partition has from its parent and its siblings
CREATE ROLE regress_part_owner;
CREATE ROLE regress_part_reader;
CREATE ROLE regress_part_nobody;
GRANT CREATE, USAGE ON SCHEMA prt TO regress_part_owner;
GRANT USAGE ON SCHEMA prt TO regress_part_reader, regress_part_nobody;
CREATE TABLE rich (id int, at timestamptz NOT NULL DEFAULT now(), amount numeric CHECK (amount > 0), twice numeric GENERATED ALWAYS AS (amount * 2) STORED,
                   note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
ALTER TABLE rich ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE INDEX ON rich (note);
ALTER TABLE rich OWNER TO regress_part_owner;
GRANT SELECT ON rich TO regress_part_reader;
GRANT UPDATE (note) ON rich TO regress_part_reader WITH GRANT OPTION;
CREATE TABLE rich_first PARTITION OF rich FOR VALUES FROM ('1999-01-01 UTC') TO ('2000-01-01 UTC') WITH (fillfactor = 70, autovacuum_enabled = off, toast.autovacuum_enabled = off);
ALTER TABLE rich_first REPLICA IDENTITY USING INDEX rich_first_pkey;
ALTER TABLE rich_first OWNER TO regress_part_owner;
SELECT techally.manage_partitions('rich', '1 month', 0);
SELECT techally.create_partitions('rich', '2024-01-01 UTC', '2024-01-02 UTC');
SELECT c.relname, c.relowner::regrole, c.reloptions, t.reloptions AS toast_options, c.relreplident,
       (SELECT array_agg(a.grantee::regrole || ' ' || a.privilege_type ORDER BY a.privilege_type) FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner) AS grants,
       (SELECT array_agg(relname ORDER BY relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid) AS indexes,
       (SELECT array_agg(a.attname::text || a.attstorage::text || coalesce(a.attacl::text, '') ORDER BY attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND attname IN ('note', 'twice')) AS columns
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid IN ('rich_2024_01'::regclass, 'rich_default'::regclass) ORDER BY 1;
-- grants would be a way round row security
CREATE TABLE secure (id int, at timestamptz) PARTITION BY RANGE (at);
ALTER TABLE secure ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON secure TO regress_part_reader;
SELECT techally.manage_partitions('secure', '1 month', 0);
SELECT relname, relacl FROM pg_class WHERE oid = 'secure_default'::regclass;

-- a partition that is itself partitioned is the pattern for the next
CREATE TABLE sub (at timestamptz, region text, id int) PARTITION BY RANGE (at);
CREATE TABLE sub_1999 PARTITION OF sub FOR VALUES FROM ('1999-01-01 UTC') TO ('2000-01-01 UTC') PARTITION BY LIST (region);
CREATE TABLE sub_1999_eu PARTITION OF sub_1999 FOR VALUES IN ('de', 'fr') PARTITION BY HASH (id);
CREATE TABLE sub_1999_eu_0 PARTITION OF sub_1999_eu FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE sub_1999_eu_1 PARTITION OF sub_1999_eu FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE elsewhere PARTITION OF sub_1999 DEFAULT;
SELECT techally.manage_partitions('sub', '1 year', 0);
SELECT techally.create_partitions('sub', '2023-06-01', '2024-06-01');
INSERT INTO sub VALUES ('2024-05-05', 'fr', 1), ('2024-05-05', 'us', 1), ('2020-05-05', 'us', 1);
SELECT tableoid::regclass AS partition, region FROM sub ORDER BY tableoid::regclass::text, 2;
SELECT relid, level, isleaf FROM pg_partition_tree('sub') WHERE relid::text LIKE '%2024%' ORDER BY relid::text;

-- what cannot be managed
CREATE TABLE no_parent (at timestamptz);
CREATE TABLE by_list (at timestamptz) PARTITION BY LIST (at);
CREATE TABLE by_number (id int) PARTITION BY RANGE (id);
CREATE TABLE by_two (at timestamptz, id int) PARTITION BY RANGE (at, id);
CREATE TEMP TABLE fleeting (at timestamptz) PARTITION BY RANGE (at);
SELECT t, r.* FROM unnest(ARRAY['prt.no_parent', 'prt.by_list', 'prt.by_number', 'prt.by_two', 'pg_temp.fleeting']) t,
    raised(format('SELECT techally.manage_partitions(%L, ''1 month'')', t)) r;
SELECT s, r.* FROM unnest(ARRAY['0', '-1 month', '5 months', '18 months', '2 days', '14 days', '5 hours', '30 minutes', '1 month 1 day', '90 minutes', '1 century']) s,
    raised(format('SELECT techally.manage_partitions(''prt.days'', %L)', s)) r;
SELECT s, r.* FROM unnest(ARRAY['premake => -1', 'premake => 1001', 'premake => NULL', 'retention => ''0''', 'retention => ''-1 day''', 'retention_action => ''burn''', 'retention_action => NULL']) s,
    raised(format('SELECT techally.manage_partitions(''prt.days'', ''1 day'', %s)', s)) r;
SELECT * FROM raised($$SELECT techally.create_partitions('prt.no_parent', '2024-01-01', '2024-02-01')$$);
SELECT * FROM raised($$SELECT techally.manage_partitions(0, '1 day')$$);

-- an owner may, nobody else
GRANT USAGE ON SCHEMA techally TO regress_part_owner, regress_part_nobody;
GRANT EXECUTE ON FUNCTION techally.manage_partitions(regclass, interval, integer, interval, text), techally.create_partitions(regclass, timestamptz, timestamptz),
    techally.premake_partitions(regclass, timestamptz), techally.unmanage_partitions(regclass) TO regress_part_owner, regress_part_nobody;
SET ROLE regress_part_nobody;
SELECT c, r.* FROM unnest(ARRAY['manage_partitions(''prt.rich'', ''1 day'')', 'create_partitions(''prt.rich'', ''2024-01-01'', ''2024-06-01'')',
    'premake_partitions(''prt.rich'')', 'unmanage_partitions(''prt.rich'')']) c, raised('SELECT techally.' || c) r;
SET ROLE regress_part_owner;
SELECT techally.create_partitions('rich', '2024-03-01 UTC', '2024-03-02 UTC');
SELECT techally.manage_partitions('rich', '1 day', 7, '1 year', 'drop');
SELECT * FROM techally.managed_partitions WHERE parent = 'rich'::regclass;
SELECT techally.unmanage_partitions('rich');
SELECT * FROM raised($$SELECT techally.unmanage_partitions('prt.rich')$$);
RESET ROLE;

-- what is ahead, by the time that is given
CREATE TABLE ahead (at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('ahead', '1 month', 3);
SELECT parent, partitions, rows_in_default, premade_ahead FROM techally.partition_status WHERE parent = 'ahead'::regclass;
SELECT techally.premake_partitions('ahead', '2023-12-31 23:59:59.999999 UTC');
SELECT techally.premake_partitions('ahead', '2024-01-01 UTC');
SELECT techally.premake_partitions('ahead', '2024-01-01 UTC');
SELECT * FROM bounds('ahead');

-- gone with the table
DROP TABLE ahead;
DROP SCHEMA prt CASCADE;
SELECT count(*) FROM techally.managed_partitions WHERE parent::text LIKE 'prt.%' OR parent::text ~ '^\d+$';
DROP OWNED BY regress_part_owner, regress_part_reader, regress_part_nobody;
DROP ROLE regress_part_owner, regress_part_reader, regress_part_nobody;
