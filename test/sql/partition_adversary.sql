-- What somebody may have put into the way of maintenance, on purpose or not.
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE SCHEMA adv;
SET search_path = adv;
CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;

-- a function in the key, found by the caller's search_path and by no other
CREATE FUNCTION moment(at timestamptz) RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN at; END';
CREATE TABLE by_function (id int, at timestamptz) PARTITION BY RANGE (moment(at));
SELECT techally.manage_partitions('by_function', '1 month', 0);
INSERT INTO by_function VALUES (1, '2024-01-05'), (2, '2024-02-05');
SELECT techally.drain_default('by_function'), techally.drain_default('by_function'), techally.drain_default('by_function');
SELECT tableoid::regclass AS partition, id FROM by_function ORDER BY id;

-- whose code runs: never as anybody but the table's owner, whoever keeps house
CREATE ROLE regress_adv_owner;
CREATE ROLE regress_adv_other;
GRANT ALL ON SCHEMA adv TO regress_adv_owner, regress_adv_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA techally TO regress_adv_owner;
SET ROLE regress_adv_owner;
CREATE TABLE ran_as (who name PRIMARY KEY);
CREATE FUNCTION note_who() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO adv.ran_as VALUES (current_user) ON CONFLICT DO NOTHING; RETURN 0; END $$;
CREATE FUNCTION spy() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN adv.note_who(); END $$;
CREATE FUNCTION spy(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM adv.note_who(); RETURN $1; END $$;
CREATE TABLE spied (id int, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE spied_old PARTITION OF spied FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
CREATE TABLE spying (id int, at timestamptz, CONSTRAINT spies FOREIGN KEY (id, at) REFERENCES spied, CHECK (spy(id) = id));
CREATE INDEX ON spying ((id + adv.spy()));
CREATE INDEX ON spied ((id + adv.spy()));
CREATE INDEX ON spied (spy(id));
CREATE TABLE by_spy (id int, at timestamp) PARTITION BY RANGE ((at + spy() * interval '1 day'));
RESET ROLE;
SELECT techally.manage_partitions('spied', '1 month', 0, '1 month', 'archive');
SELECT techally.archive_partitions_to('spied', 'schema', 'adv');
SELECT techally.manage_partitions('by_spy', '1 month', 0);
INSERT INTO by_spy VALUES (1, '2020-01-01');
INSERT INTO spied SELECT g, '2019-01-01'::timestamptz + g * interval '1 day' FROM generate_series(0, 40) g;
DELETE FROM ran_as;
SELECT techally.drain_default('spied'), techally.drain_default('spied');
\c -
SET search_path = adv;
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
DELETE FROM ran_as;
SELECT techally.drain_default('by_spy'), techally.premake_partitions('by_spy');
SELECT techally.retire_partition('spied', '2019-02-15');
SELECT techally.retire_partition('spied', '2020-04-15');
SELECT techally.restore_archived('adv.spied_2019_01');
SELECT parent, rows_in_default FROM techally.partition_status WHERE parent IN ('spied'::regclass, 'by_spy'::regclass) ORDER BY parent::text;
-- nor when a table is converted, or a partition made by LIST
SET ROLE regress_adv_owner;
CREATE TABLE spied_plain (id int, at timestamptz, n int GENERATED ALWAYS AS (id + spy()) STORED, CHECK (spy(id) = id));
CREATE INDEX ON spied_plain ((id + spy()));
CREATE INDEX ON spied_plain (spy(id));
CREATE VIEW spied_view AS SELECT id + spy() AS n FROM spied_plain;
INSERT INTO spied_plain VALUES (1, '2020-01-05');
CREATE TABLE spied_list (id int, n int GENERATED ALWAYS AS (id + spy()) STORED) PARTITION BY LIST (id);
CREATE INDEX ON spied_list ((id + spy()));
RESET ROLE;
CALL techally.partition_table('spied_plain', 'at', '1 month');
SELECT techally.create_list_partition('spied_list', 'one', '1');
SELECT relname, relowner::regrole FROM pg_class WHERE oid IN ('spied_plain'::regclass, 'spied_plain_default'::regclass, 'spied_list_one'::regclass) ORDER BY 1;
SELECT DISTINCT who FROM ran_as;
SELECT tableoid::regclass, id FROM spied_plain;
-- rows that point in, in a table that the owner may not read
CREATE TABLE hidden (id int, at timestamptz, CONSTRAINT hidden_key FOREIGN KEY (id, at) REFERENCES spied);
SELECT * FROM raised($$SELECT techally.retire_partition('adv.spied', '2020-03-15')$$);
DROP TABLE hidden;
-- a schema for archives is made only by who may make one
SELECT techally.archive_partitions_to('spied', 'schema', 'regress_adv_trap');
SELECT * FROM raised($$SELECT techally.retire_partition('adv.spied', '2020-03-15')$$);
SELECT techally.forget_restored('adv.spied_2019_01');
SELECT * FROM raised($$SELECT techally.retire_partition('adv.spied', '2020-03-15')$$);

-- two tables of one name have their archives in one schema
CREATE SCHEMA adv_one;
CREATE SCHEMA adv_two;
CREATE SCHEMA adv_attic;
CREATE TABLE adv_one.log (id int PRIMARY KEY, region text, at timestamptz) ;
DROP TABLE adv_one.log;
CREATE TABLE adv_one.log (id int, region text, at timestamptz, PRIMARY KEY (id, at, region)) PARTITION BY RANGE (at);
CREATE TABLE adv_two.log (LIKE adv_one.log INCLUDING ALL) PARTITION BY RANGE (at);
-- with what is under it
CREATE TABLE adv_two.log_2023_01 PARTITION OF adv_two.log FOR VALUES FROM ('2023-01-01') TO ('2023-02-01') PARTITION BY LIST (region);
CREATE TABLE adv_two.log_2023_01_eu PARTITION OF adv_two.log_2023_01 FOR VALUES IN ('eu');
CREATE TABLE adv_two.log_2023_01_rest PARTITION OF adv_two.log_2023_01 DEFAULT;
SELECT techally.manage_partitions(t, '1 month', 0, '1 month', 'archive'), techally.archive_partitions_to(t, 'schema', 'adv_attic')
  FROM unnest('{adv_one.log,adv_two.log}'::regclass[]) t;
SELECT techally.create_partitions('adv_one.log', '2023-01-01', '2023-01-15');
INSERT INTO adv_one.log SELECT g, 'eu', '2023-01-05' FROM generate_series(1, 10) g;
INSERT INTO adv_two.log SELECT g, (ARRAY['eu', 'us'])[g % 2 + 1], '2023-01-05' FROM generate_series(1, 10) g;
SELECT techally.retire_partition('adv_one.log', '2023-03-01'), techally.retire_partition('adv_two.log', '2023-03-01');
SELECT relname, relkind FROM pg_class WHERE relnamespace = 'adv_attic'::regnamespace ORDER BY 1;
SELECT techally.restore_archived(archive) FROM techally.archives WHERE parent_name = 'adv_two.log';
SELECT tableoid::regclass AS partition, count(*) FROM adv_two.log GROUP BY tableoid ORDER BY tableoid::regclass::text;
SELECT relname FROM pg_class WHERE relnamespace = 'adv_attic'::regnamespace ORDER BY 1;
-- back into a table that has changed meanwhile
ALTER TABLE adv_one.log ADD COLUMN added text NOT NULL DEFAULT 'new', ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED;
SELECT techally.restore_archived(archive) FROM techally.archives WHERE parent_name = 'adv_one.log';
SELECT count(*), min(added), max(twice) FROM adv_one.log;
SELECT techally.forget_restored(archive) FROM techally.archives WHERE parent_name = 'adv_one.log';
SELECT techally.retire_partition('adv_one.log', '2023-03-01');
ALTER TABLE adv_one.log DROP COLUMN added;
SELECT * FROM raised($$SELECT techally.restore_archived('adv_one.log_2023_01#2')$$);

-- a partition of another kind
CREATE FOREIGN DATA WRAPPER regress_adv;
CREATE SERVER regress_adv FOREIGN DATA WRAPPER regress_adv;
CREATE TABLE far (id int, at timestamptz) PARTITION BY RANGE (at);
CREATE FOREIGN TABLE far_old PARTITION OF far FOR VALUES FROM ('2020-01-01') TO ('2020-02-01') SERVER regress_adv;
SELECT techally.manage_partitions('far', '1 month', 0, '1 month', 'drop');
SELECT techally.retire_partition('far', '2020-03-15');
SELECT to_regclass('far_old') IS NULL AS gone;

-- one range that fits nowhere, one partition that cannot go: the others go on
CREATE TABLE sub (id int, region text, at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE sub_2020_01 PARTITION OF sub FOR VALUES FROM ('2020-01-01') TO ('2020-02-01') PARTITION BY LIST (region);
CREATE TABLE sub_2020_01_eu PARTITION OF sub_2020_01 FOR VALUES IN ('eu');
SELECT techally.manage_partitions('sub', '1 month', 0, '1 month', 'drop');
INSERT INTO sub VALUES (1, 'mars', '2021-03-05'), (2, 'eu', '2021-04-05'), (3, 'eu', '2021-05-05');
SELECT techally.drain_default('sub'), techally.drain_default('sub');
SELECT code, message FROM raised($$SELECT techally.drain_default('adv.sub')$$);
SELECT tableoid::regclass AS partition, id FROM sub ORDER BY id;
CREATE VIEW in_the_way AS SELECT * FROM sub_2020_01;
SELECT techally.retire_partition('sub', '2021-06-20');
SELECT code FROM raised($$SELECT techally.retire_partition('adv.sub', '2021-06-20')$$);
DROP VIEW in_the_way;
SELECT techally.retire_partition('sub', '2021-06-20');

-- row security that is forced on the owner of DEFAULT: refused, and said
CREATE TABLE forced (id int, at timestamptz) PARTITION BY RANGE (at);
ALTER TABLE forced OWNER TO regress_adv_owner;
SELECT techally.manage_partitions('forced', '1 month', 0);
INSERT INTO forced VALUES (1, '2020-01-05'), (2, '2020-01-06');
ALTER TABLE forced_default ENABLE ROW LEVEL SECURITY;
ALTER TABLE forced_default FORCE ROW LEVEL SECURITY;
SELECT code FROM raised($$SELECT techally.drain_default('adv.forced')$$);
SELECT rows_in_default FROM techally.partition_status WHERE parent = 'forced'::regclass;
ALTER TABLE forced_default NO FORCE ROW LEVEL SECURITY;
-- on the parent it does not matter: every row moves
CREATE POLICY none ON forced USING (false);
ALTER TABLE forced ENABLE ROW LEVEL SECURITY;
ALTER TABLE forced FORCE ROW LEVEL SECURITY;
SELECT techally.drain_default('forced');
SELECT tableoid::regclass AS partition, count(*) FROM forced GROUP BY tableoid;

-- foreign keys of what is drained are known to hold, and hold on
CREATE TABLE kinds (kind int PRIMARY KEY);
INSERT INTO kinds VALUES (1);
CREATE TABLE keyed (id int, at timestamptz, kind int CONSTRAINT of_kind REFERENCES kinds ON DELETE CASCADE) PARTITION BY RANGE (at);
SELECT techally.manage_partitions('keyed', '1 month', 0);
INSERT INTO keyed SELECT g, '2020-01-05', 1 FROM generate_series(1, 5) g;
SELECT techally.drain_default('keyed');
SELECT conname, conparentid <> 0 AS of_the_parent, convalidated FROM pg_constraint WHERE conrelid = 'keyed_2020_01'::regclass AND contype = 'f';
SELECT code FROM raised($$INSERT INTO adv.keyed VALUES (0, '2020-01-05', 2)$$);
DELETE FROM kinds;
SELECT count(*) FROM keyed;

-- names
CREATE TABLE labels (a text) PARTITION BY LIST (a);
SELECT code, left(message, 10) AS message FROM raised($$SELECT techally.create_list_partition('adv.labels', repeat('x', 100), 'a')$$);
SELECT techally.create_list_partition('labels', repeat('é', 20), 'a');
CREATE TABLE "a very ""long"" name; with % and \ and everything, é that is cut" (at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE "a very ""long"" name; with % and \ and everything, é that is cuu" (at timestamptz) PARTITION BY RANGE (at);
SELECT techally.manage_partitions(oid, '1 hour', 0), techally.create_partitions(oid, '2020-01-01', '2020-01-01 02:00')
  FROM pg_class WHERE relname LIKE 'a very%' AND relkind = 'p' ORDER BY relname;
SELECT count(*), count(DISTINCT relname), max(octet_length(relname::text)) FROM pg_class WHERE relname LIKE 'a very%';

DROP SCHEMA adv, adv_one, adv_two, adv_attic CASCADE;
DROP SERVER regress_adv;
DROP FOREIGN DATA WRAPPER regress_adv;
DROP OWNED BY regress_adv_owner, regress_adv_other;
DROP ROLE regress_adv_owner, regress_adv_other;
SELECT count(*) FROM pg_namespace WHERE nspname = 'regress_adv_trap';
