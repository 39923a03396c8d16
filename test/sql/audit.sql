-- Auditing tables: what goes into the log, what does not, and by which ways.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE ROLE regress_audit_owner;
CREATE ROLE regress_audit_app;
CREATE SCHEMA regress_audit AUTHORIZATION regress_audit_owner;
SET ROLE regress_audit_owner;
SET search_path = regress_audit;
SET check_function_bodies = off;

CREATE FUNCTION entries(VARIADIC tables text[] DEFAULT NULL)
RETURNS TABLE (action text, table_name text, row_key jsonb, new_key jsonb, changes jsonb, metadata jsonb)
LANGUAGE sql AS $$
    SELECT l.action, l.table_name, l.row_key, l.new_key, l.changes, l.metadata
      FROM regress_audit.audit_logs l WHERE tables IS NULL OR l.table_name = ANY (tables) ORDER BY l.id
$$;

-- as the source documents install it: the log comes with the first change
CREATE TABLE users (id uuid PRIMARY KEY, email text, note text);
CREATE TRIGGER audit_trigger AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION techally.audit_changes();
SELECT to_regclass('regress_audit.audit_logs');
SET app.current_user_id = '00000000-0000-0000-0000-00000000000a';
SET app.request_id = 'request 1';
SET app.client_ip = '192.0.2.7';
SET app.user_agent = 'test';
SET app.audit_metadata = '{"ticket": 7}';
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000001', 'ada@example.com', NULL);
UPDATE users SET email = 'ada@example.org';
UPDATE users SET email = email;
DELETE FROM users;
SELECT action, table_schema, table_name, row_key, resource_id, user_id, db_user = session_user AS db_user,
       request_id, client_ip, user_agent, metadata, changes
  FROM audit_logs ORDER BY id;
SELECT table_name, operation, user_id, changed_data, timestamp IS NOT NULL AS "timestamp" FROM audit_log ORDER BY id;
SELECT count(DISTINCT transaction_id), bool_and(transaction_id < pg_current_xact_id()::text::bigint) AS before
  FROM audit_logs;
SET app.client_ip = 'nowhere';
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000002', NULL, NULL);
SET app.client_ip = '';
SET app.current_user_id = 'nobody';
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000002', NULL, NULL);
SET app.current_user_id = '';
SET app.request_id = '';
SET app.user_agent = '';
SET app.audit_metadata = '';
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000002', NULL, NULL);
SELECT action, user_id, request_id, client_ip, user_agent, metadata, changes FROM audit_logs ORDER BY id DESC LIMIT 1;

-- the log: partitioned by month, two B-trees of which one is mostly empty, BRIN for time
SELECT partition_strategy, step, premake
  FROM (SELECT 'range' FROM pg_partitioned_table WHERE partrelid = 'audit_logs'::regclass AND partstrat = 'r') p(partition_strategy),
       techally.managed_partitions m WHERE m.parent = 'audit_logs'::regclass;
SELECT c.relname, a.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
 WHERE i.indrelid = 'audit_logs'::regclass ORDER BY 1;
SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'audit_logs'::regclass;

-- every kind of column, in a form that no setting changes
CREATE TYPE mood AS ENUM ('fine', 'poor');
CREATE DOMAIN price AS numeric(10, 2) CHECK (VALUE >= 0);
CREATE TYPE point3 AS (x float8, at timestamptz);
CREATE TYPE place AS (name text, corners point3[]);
CREATE TABLE kinds (
    dropped   integer,
    i2 smallint, i4 integer, i8 bigint, f4 real, f8 float8, n numeric, p price, b boolean,
    t text, v varchar(20), c char(5), nm name, u uuid, d date, ts timestamp, tz timestamptz, tm time, iv interval,
    j json, jb jsonb, by bytea, m mood, pl place, ta text[], tza timestamptz[], ia integer[][], r tstzrange, ip inet,
    bits bit varying(8), mo money, x oid,
    key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    twice integer GENERATED ALWAYS AS (i4 * 2) STORED);
ALTER TABLE kinds DROP COLUMN dropped;
SELECT techally.enable_audit('kinds');
SET TimeZone = 'America/New_York';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET extra_float_digits = -10;
SET bytea_output = 'escape';
INSERT INTO kinds (i2, i4, i8, f4, f8, n, p, b, t, v, c, nm, u, d, ts, tz, tm, iv, j, jb, by, m, pl, ta, tza, ia, r, ip, bits, mo, x)
VALUES (-1, 2, 9007199254740993, 1.1, 0.1, 12345678901234567890.120, 3.5, true, E'a "quoted"\tété', 'v', 'c', 'nm',
        '00000000-0000-0000-0000-000000000001', '2026-01-02', '2026-01-02 03:04:05.678', '2026-01-02 03:04:05+00', '03:04:05',
        '1 year 2 days 3 hours', '{"b": [1, {"c": null}], "a": "\u00e9"}', '{"z": 1, "aa": [true, "x"]}', '\x00ff', 'poor',
        ROW('here', ARRAY[ROW(0.1, '2026-01-02 00:00+00')::point3]), '{a,NULL,"c d"}', '{2026-01-02 00:00+00}', '{{1,2},{3,4}}',
        '[2026-01-01 00:00+00,2026-02-01 00:00+00)', '192.0.2.0/24', B'101', 1.50, 42),
       (NULL, NULL, NULL, 'NaN', '-Infinity', 'NaN', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'infinity', '-infinity', 'infinity',
        NULL, NULL, '"\ud800 cannot be"', '5', NULL, NULL, NULL, '{}', NULL, NULL, 'empty', NULL, NULL, NULL, NULL);
SELECT changes - 'tz' - 'mo' AS changes, changes -> 'tz' AS tz FROM audit_logs WHERE table_name = 'kinds' ORDER BY id;
-- the same as to_jsonb gives under the defaults
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, MDY';
SET IntervalStyle = 'postgres';
RESET extra_float_digits;
RESET bytea_output;
SET lc_monetary = 'C';
SET search_path = pg_catalog;
UPDATE regress_audit.kinds SET j = NULL WHERE key = 2;   -- to_jsonb refuses it
SELECT k.key, e.key, e.value, techally.audit_image('regress_audit.kinds', jsonb_build_object('key', k.key)) -> e.key AS logged
  FROM regress_audit.kinds k, to_jsonb(k) whole, jsonb_each(whole) e
 WHERE e.value IS DISTINCT FROM techally.audit_image('regress_audit.kinds', jsonb_build_object('key', k.key)) -> e.key;
-- bytes as the server's own functions write them: a dump and its restore change nothing
SELECT count(*) AS other_bytes FROM regress_audit.audit_logs
 WHERE techally.commit_audit_changes('', changes) <> techally.commit_audit_changes('', changes::text::jsonb);
SET search_path = regress_audit;

-- only what changed; numbers that are equal but not the same have changed
UPDATE kinds SET i4 = 3, n = n WHERE key = 1;
UPDATE kinds SET n = 12345678901234567890.12 WHERE key = 1;
UPDATE kinds SET pl.corners = ARRAY[ROW(0.2, NULL)::point3], jb = NULL WHERE key = 1;
UPDATE kinds SET t = t, jb = jb, tza = tza;
SELECT action, changes FROM entries('kinds') WHERE action = 'UPDATE';

-- wide values: unchanged ones are not even looked at
CREATE TABLE wide (id integer PRIMARY KEY, body text, small integer);
ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
SELECT techally.enable_audit('wide');
INSERT INTO wide SELECT i, repeat(chr(96 + i), 100000), 0 FROM generate_series(1, 2) i;
UPDATE wide SET small = 1;
UPDATE wide SET body = overlay(body PLACING 'X' FROM 50000) WHERE id = 1;
UPDATE wide SET body = body || '' WHERE id = 2;
SELECT action, row_key, length(changes ->> 'body') AS image, changes - 'body' AS rest,
       length(changes #>> '{body,old}') AS old, substr(changes #>> '{body,new}', 49999, 3) AS new
  FROM entries('wide');

-- more columns than a jsonb has entries before an offset
DO $$ BEGIN
    EXECUTE (SELECT 'CREATE TABLE many (id integer PRIMARY KEY, ' || string_agg(format('c%s numeric', i), ', ') || ')' FROM generate_series(1, 80) i);
    PERFORM techally.enable_audit('many');
    EXECUTE 'INSERT INTO many SELECT 1, ' || (SELECT string_agg(i || '.5', ', ') FROM generate_series(1, 80) i);
    EXECUTE (SELECT 'UPDATE many SET ' || string_agg(format('c%s = c%1$s + 1', i), ', ') FROM generate_series(1, 80) i);
END $$;
SELECT l.action, (SELECT count(*) FROM jsonb_object_keys(l.changes)) AS columns,
       techally.commit_audit_changes('', changes) = techally.commit_audit_changes('', changes::text::jsonb) AS same_bytes,
       l.changes -> 'c77' AS c77, CASE l.action WHEN 'UPDATE' THEN techally.audit_side(l.changes, 'new') || l.row_key = to_jsonb(m) END AS same
  FROM entries('many') l, many m;

-- what is left out
CREATE TABLE secrets (id integer PRIMARY KEY, "pass word" text, phone text, name text);
SELECT techally.enable_audit('secrets', '{pass word}', '{phone}');
INSERT INTO secrets VALUES (1, 'hidden', '555', 'Ada'), (2, NULL, NULL, NULL);
UPDATE secrets SET "pass word" = 'other';
UPDATE secrets SET phone = '556' WHERE id = 1;
UPDATE secrets SET phone = '557', "pass word" = 'third', name = 'Eve' WHERE id = 1;
SELECT action, row_key, changes FROM entries('secrets');
SELECT count(*) AS leaked FROM audit_logs WHERE changes::text ~ 'hidden|other|third|55[567]';
SELECT * FROM techally.audit_omitted('secrets');
-- a renamed column stays left out from the next maintenance on, and until then health_check says so
RESET ROLE;
ALTER TABLE secrets RENAME phone TO telephone;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit';
SELECT techally.maintain_audit();
SELECT * FROM techally.audit_omitted('secrets');
SELECT status FROM techally.health_check() WHERE check_name = 'audit' AND status <> 'OK';
SET ROLE regress_audit_owner;
SELECT techally.enable_audit('secrets', '{no such column}');
SELECT techally.enable_audit('secrets', '{id}');
SELECT techally.enable_audit('secrets', redact => '{id}');

-- keys: composite, none, changed
CREATE TABLE pairs (b text, a integer, v integer, PRIMARY KEY (a, b));
CREATE TABLE keyless (v integer);
SELECT techally.enable_audit(t) FROM unnest('{pairs,keyless}'::regclass[]) t;
INSERT INTO pairs VALUES ('x', 1, 0);
UPDATE pairs SET a = 2, v = 1;
INSERT INTO keyless VALUES (1), (1);
UPDATE keyless SET v = 2;
DELETE FROM keyless;
SELECT * FROM entries('pairs', 'keyless');

-- all the ways in
CREATE TABLE parents (id integer PRIMARY KEY);
CREATE TABLE children (id integer PRIMARY KEY, parent integer REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE);
SELECT techally.enable_audit(t) FROM unnest('{parents,children}'::regclass[]) t;
COPY parents FROM stdin;
1
2
\.
INSERT INTO children VALUES (10, 1), (20, 2), (30, 2);
INSERT INTO parents VALUES (2), (3) ON CONFLICT (id) DO NOTHING;
INSERT INTO children VALUES (10, 3), (40, 3) ON CONFLICT (id) DO UPDATE SET parent = EXCLUDED.parent;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE $merge$
            MERGE INTO children c USING (VALUES (10, 1), (20, 0), (50, 3)) v (id, parent) ON v.id = c.id
             WHEN MATCHED AND v.parent = 0 THEN DELETE
             WHEN MATCHED THEN UPDATE SET parent = v.parent
             WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.parent) $merge$;
    ELSE
        DELETE FROM children WHERE id = 20;
        UPDATE children SET parent = 1 WHERE id = 10;
        INSERT INTO children VALUES (50, 3);
    END IF;
END $$;
UPDATE parents SET id = 22 WHERE id = 2;
DELETE FROM parents WHERE id = 22;
WITH moved AS (DELETE FROM children WHERE id = 10 RETURNING *)
INSERT INTO children SELECT id + 1, parent FROM moved;
SELECT action, table_name, row_key, new_key, changes FROM entries('parents', 'children');

-- TRUNCATE, with the rows up to a limit
RESET ROLE;
SET techally.audit_truncate_rows = 1;
SET ROLE regress_audit_owner;
SET techally.audit_truncate_rows = 5;
TRUNCATE parents, children;
SELECT action, table_name, row_key, changes, metadata FROM entries('parents', 'children') WHERE action = 'TRUNCATE';
RESET ROLE;
RESET techally.audit_truncate_rows;
SET ROLE regress_audit_owner;

-- a soft delete and its reverse are called so
CREATE TABLE soft (id uuid PRIMARY KEY, v integer);
SELECT techally.enable_audit('soft');
INSERT INTO soft VALUES ('00000000-0000-0000-0000-000000000001', 1);
SELECT techally.enable_soft_delete('soft');
DELETE FROM soft;
SELECT techally.restore_deleted('regress_audit.soft', '00000000-0000-0000-0000-000000000001');
UPDATE soft SET v = 2;
SELECT action, changes -> 'v' AS v, changes ? 'deleted_at' AS deleted_at FROM entries('soft');

-- rolled back changes are not there, nor do they break the chain
BEGIN;
INSERT INTO pairs VALUES ('y', 1, 0);
SAVEPOINT a;
UPDATE pairs SET v = 5;
SAVEPOINT b;
UPDATE pairs SET v = 6;
RELEASE b;
ROLLBACK TO a;
UPDATE pairs SET v = 7 WHERE b = 'y';
SAVEPOINT c;
UPDATE pairs SET v = 8 WHERE b = 'y';
RELEASE c;
UPDATE pairs SET v = 9 WHERE b = 'y';
COMMIT;
SELECT action, changes FROM entries('pairs') OFFSET 2;
SELECT * FROM techally.verify_audit('audit_logs');

-- partitions: DML aimed at the table or at a partition, a row that moves, other orders of columns
CREATE TABLE events (id integer, at date, v integer, gone text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
ALTER TABLE events DROP COLUMN gone;
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE events_2 (v integer, extra text, at date NOT NULL, id integer NOT NULL);
ALTER TABLE events_2 DROP COLUMN extra;
ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
SELECT techally.enable_audit('events');
INSERT INTO events VALUES (1, '2026-01-10', 0), (2, '2026-02-10', 0);
INSERT INTO events_2 (id, at, v) VALUES (3, '2026-02-11', 0);
UPDATE events SET v = 1;
UPDATE events_2 SET v = 2 WHERE id = 3;
UPDATE events SET at = '2026-02-20' WHERE id = 1;
DELETE FROM events_2 WHERE id = 3;
SELECT * FROM entries('events', 'events_1', 'events_2');
-- a moved row that a trigger drops: what became of each row is told by its key
CREATE FUNCTION drop_even() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN NEW.id % 2 = 0 THEN NULL ELSE NEW END;
END $$;
CREATE TRIGGER drop_even BEFORE INSERT ON events_1 FOR EACH ROW EXECUTE FUNCTION drop_even();
UPDATE events SET at = at - 31, v = id * 10;
SELECT * FROM entries('events') OFFSET 8;
SELECT * FROM events;
-- partitions made by others: seen to by maintenance, reported until then
CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
RESET ROLE;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit';
SELECT techally.maintain_audit();
SELECT status FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'events';
SET ROLE regress_audit_owner;
INSERT INTO events_3 VALUES (4, '2026-03-10', 0);
TRUNCATE events;
SELECT * FROM entries('events') OFFSET 10;
-- those that manage_partitions makes have them at once
CREATE TABLE managed (id integer, at timestamptz) PARTITION BY RANGE (at);
SELECT techally.enable_audit('managed');
RESET ROLE;
SELECT techally.manage_partitions('managed', '1 month', 0);
SELECT techally.create_partitions('managed', '2024-01-01', '2024-02-01');
INSERT INTO managed_2024_01 VALUES (1, '2024-01-15');
SELECT action, table_name, changes ->> 'id' AS id FROM entries('managed');
SET ROLE regress_audit_owner;

-- how a trigger may be created
CREATE TRIGGER bad BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION techally.audit_changes();
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000003', NULL, NULL);
DROP TRIGGER bad ON users;
CREATE TRIGGER bad AFTER INSERT ON users FOR EACH STATEMENT EXECUTE FUNCTION techally.audit_changes();
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000003', NULL, NULL);
DROP TRIGGER bad ON users;
CREATE TRIGGER bad AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION techally.audit_changes('only', 'id');
DROP TRIGGER audit_trigger ON users;
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000003', NULL, NULL);
DROP TRIGGER bad ON users;
SELECT techally.audit_changes();
CREATE TRIGGER audit_trigger AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION techally.audit_changes('exclude', 'note', 'redact', 'email');
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000003', 'b', 'c');
SELECT changes FROM audit_logs ORDER BY id DESC LIMIT 1;

-- who may: the owner of the table; writing the log: nobody
RESET ROLE;
GRANT USAGE ON SCHEMA regress_audit TO regress_audit_app;
GRANT ALL ON ALL TABLES IN SCHEMA regress_audit TO regress_audit_app;
SET ROLE regress_audit_app;
SELECT techally.enable_audit('pairs');
SELECT techally.disable_audit('pairs');
INSERT INTO pairs VALUES ('app', 1, 1);
SELECT action, row_key FROM entries('pairs') ORDER BY 2 DESC LIMIT 1;
INSERT INTO audit_logs SELECT * FROM audit_logs LIMIT 1;
UPDATE audit_logs SET action = 'x';
DELETE FROM audit_logs;
TRUNCATE audit_logs;
DO $$ BEGIN
    EXECUTE format('DELETE FROM %s', (SELECT tableoid::regclass FROM regress_audit.audit_logs LIMIT 1));
EXCEPTION WHEN insufficient_privilege THEN RAISE WARNING 'refused'; END $$;
SELECT techally.erase_audit('pairs', '{"a": 1, "b": "app"}');
SELECT techally.seal_audit_logs();
RESET ROLE;
-- not even where triggers are off
SET session_replication_role = replica;
UPDATE audit_logs SET action = 'x';
DELETE FROM audit_logs;
TRUNCATE audit_seals;
RESET session_replication_role;
DO $$ BEGIN
    EXECUTE format('TRUNCATE %s', (SELECT tableoid::regclass FROM regress_audit.audit_logs LIMIT 1));
EXCEPTION WHEN insufficient_privilege THEN RAISE WARNING 'refused'; END $$;
INSERT INTO audit_seals (period, number, after_id, to_id, rows, rows_hash, sealed_at, seal) VALUES ('2026-01', 1, 0, 0, 0, '', now(), '');

-- what cannot be audited
CREATE TEMP TABLE temporary (id integer);
SELECT techally.enable_audit('temporary');
SELECT techally.enable_audit('audit_logs');
SELECT techally.enable_audit('audit_seals');
SELECT techally.enable_audit('audit_log');
SELECT techally.enable_audit(NULL);
CREATE SCHEMA regress_audit_taken;
CREATE TABLE regress_audit_taken.audit_logs (id integer);
CREATE TABLE regress_audit_taken.t (id integer PRIMARY KEY);
SELECT techally.enable_audit('regress_audit_taken.t');
DROP SCHEMA regress_audit_taken CASCADE;

-- disabled and missing triggers show
ALTER TABLE pairs DISABLE TRIGGER techally_audit_update;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit';
ALTER TABLE pairs ENABLE TRIGGER techally_audit_update;
SELECT techally.disable_audit('pairs');
SELECT techally.disable_audit('pairs');
UPDATE pairs SET v = 100;
SELECT count(*) FROM entries('pairs') WHERE changes #>> '{v,new}' = '100';
-- also those that somebody has created
CREATE TABLE by_hand (id integer PRIMARY KEY, v integer);
CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON by_hand
FOR EACH ROW EXECUTE FUNCTION techally.audit_changes('redact', 'v');
SELECT form, excluded, redacted, redacted_columns FROM techally.audited_tables WHERE target = 'by_hand'::regclass;
ALTER TABLE by_hand DISABLE TRIGGER mine;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'by_hand';
ALTER TABLE by_hand ENABLE TRIGGER mine;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'by_hand';
ALTER TABLE by_hand RENAME v TO w;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'by_hand';
SELECT count(*) FROM techally.maintain_audit();
SELECT form FROM techally.audited_tables WHERE target = 'by_hand'::regclass;
ALTER TABLE by_hand RENAME w TO v;
DROP TRIGGER mine ON by_hand;
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'by_hand';
SELECT techally.disable_audit('by_hand');
SELECT status, message FROM techally.health_check() WHERE check_name = 'audit' AND message ~ 'by_hand';
DROP TABLE keyless;
SELECT count(*) FROM techally.audited_tables WHERE target::oid NOT IN (SELECT oid FROM pg_class);

-- rows go in without the executor where the log is as it was made, else with it,
-- else by INSERT: the same rows each way, and in all indexes
CREATE TABLE ways (id integer PRIMARY KEY, wide text, v integer);
SELECT techally.enable_audit('ways');
CREATE PROCEDURE write_some(first integer) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ways VALUES (first, 'one', 0);
    INSERT INTO ways SELECT first + i, CASE WHEN i % 100 = 0 THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n) END, i
      FROM generate_series(1, 600) i;
    UPDATE ways SET id = -id WHERE id IN (first + 1, first + 2);
    UPDATE ways SET v = v + 1 WHERE id BETWEEN first + 10 AND first + 30;
    UPDATE ways SET v = v + 1 WHERE id = first + 40;
    DELETE FROM ways WHERE id >= first + 100;
END $$;
CREATE FUNCTION written(OUT entries bigint, OUT by_key bigint, OUT by_new_key bigint, OUT by_time bigint, OUT wide bigint)
LANGUAGE plpgsql SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    ANALYZE audit_logs;
    PERFORM brin_summarize_new_values(i.indexrelid)
       FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam AND a.amname = 'brin'
      WHERE i.indrelid = (SELECT l.tableoid FROM audit_logs l LIMIT 1);
    SELECT count(*), count(*) FILTER (WHERE length(changes ->> 'wide') = 9600) INTO entries, wide FROM audit_logs WHERE table_name = 'ways';
    SELECT sum(f.n) INTO by_key
      FROM (SELECT DISTINCT row_key FROM audit_logs WHERE table_name = 'ways') k, LATERAL (
            SELECT count(*) AS n FROM audit_logs l
             WHERE jsonb_hash_extended(l.row_key, hashtextextended(l.table_name, 0)) = jsonb_hash_extended(k.row_key, hashtextextended('ways', 0))
               AND l.row_key = k.row_key AND l.table_name = 'ways') f;
    SELECT sum(f.n) INTO by_new_key
      FROM (SELECT DISTINCT new_key FROM audit_logs WHERE table_name = 'ways' AND new_key IS NOT NULL) k, LATERAL (
            SELECT count(*) AS n FROM audit_logs l
             WHERE jsonb_hash_extended(l.new_key, hashtextextended(l.table_name, 0)) = jsonb_hash_extended(k.new_key, hashtextextended('ways', 0))
               AND l.new_key = k.new_key AND l.table_name = 'ways') f;
    SELECT count(*) INTO by_time FROM audit_logs WHERE table_name = 'ways' AND changed_at > (SELECT changed_at FROM audit_logs WHERE table_name = 'ways' ORDER BY id LIMIT 1) - interval '1 second'
       AND id >= (SELECT min(id) FROM audit_logs WHERE table_name = 'ways');
END $$;
CALL write_some(1);
SELECT * FROM written();
CREATE INDEX ON audit_logs (db_user);
CALL write_some(1001);
SELECT * FROM written();
DROP INDEX audit_logs_db_user_idx;
CALL write_some(1601);
SELECT * FROM written();
-- a check, a unique index: the executor sees to both
ALTER TABLE audit_logs ADD CONSTRAINT chk_audit_logs_user CHECK (table_name <> 'ways' OR user_id IS NULL);
SET app.current_user_id = '00000000-0000-0000-0000-000000000001';
DO $$ BEGIN UPDATE ways SET v = -1 WHERE id = 1; EXCEPTION WHEN check_violation THEN RAISE WARNING 'checked'; END $$;
SET app.current_user_id = '';
ALTER TABLE audit_logs DROP CONSTRAINT chk_audit_logs_user;
CREATE UNIQUE INDEX audit_logs_unique ON audit_logs (changed_at) WHERE user_id IS NOT NULL;
SET app.current_user_id = '00000000-0000-0000-0000-000000000001';
DO $$ BEGIN UPDATE ways SET v = -1 WHERE id IN (1, 11); EXCEPTION WHEN unique_violation THEN RAISE WARNING 'unique'; END $$;
SET app.current_user_id = '';
DROP INDEX audit_logs_unique;
DROP INDEX idx_audit_logs_new_key;
UPDATE ways SET id = 5000 WHERE id = 1;
SELECT row_key, new_key FROM audit_logs ORDER BY id DESC LIMIT 1;
SELECT * FROM techally.verify_audit('ways');

-- a log that asks for more than rows: it gets them by INSERT, and a column of somebody's has its default
ALTER TABLE audit_logs ADD COLUMN source text DEFAULT 'here';
INSERT INTO parents VALUES (99);
SELECT action, row_key, source FROM audit_logs ORDER BY id DESC LIMIT 1;
CALL write_some(2201);
SELECT * FROM techally.verify_audit('audit_logs');
ALTER TABLE audit_logs DROP COLUMN source;
CALL write_some(2801);
SELECT entries, by_key, wide FROM written();
SELECT * FROM techally.verify_audit('ways');
-- and a column of somebody's that may be NULL stays so
ALTER TABLE audit_logs ADD COLUMN note text;
UPDATE ways SET v = 0 WHERE id = 5000;
SELECT row_key, note IS NULL AS null FROM audit_logs ORDER BY id DESC LIMIT 1;

SET client_min_messages = error;
DROP SCHEMA regress_audit CASCADE;
SELECT count(*) FROM techally.audited_tables;
DROP ROLE regress_audit_app;
DROP ROLE regress_audit_owner;
