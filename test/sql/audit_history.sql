-- Reading the log, undoing, verifying, sealing, erasing.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE ROLE regress_history_owner;
CREATE ROLE regress_history_reader;
CREATE SCHEMA regress_history AUTHORIZATION regress_history_owner;
SET ROLE regress_history_owner;
SET search_path = regress_history;
CREATE TABLE items (id integer, part text, name text, price numeric, note text, secret text, PRIMARY KEY (id, part));
SELECT techally.enable_audit('items', '{note}', '{secret}');
CREATE TABLE marks (n integer PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
INSERT INTO marks VALUES (0);
INSERT INTO items VALUES (1, 'a', 'one', 1.0, 'n', 's'), (2, 'b', 'two', 2, 'n', 's');
INSERT INTO marks VALUES (1);
UPDATE items SET name = 'uno' WHERE id = 1;
INSERT INTO marks VALUES (2);
UPDATE items SET part = 'aa', price = 5 WHERE id = 1;
INSERT INTO marks VALUES (3);
UPDATE items SET price = 7 WHERE id = 1;
DELETE FROM items WHERE id = 2;
INSERT INTO marks VALUES (4);
INSERT INTO items VALUES (1, 'a', 'other', 0, NULL, NULL), (2, 'b', 'again', 0, NULL, NULL);
INSERT INTO marks VALUES (5);
SELECT audit_id, action, changes, row_after FROM techally.row_history('items', '{"id": 1, "part": "a"}');
SELECT audit_id, action, changes, row_after FROM techally.row_history('items', '{"part": "aa", "id": "1"}');
SELECT audit_id, action, row_after FROM techally.row_history('items', '{"id": 2, "part": "b"}');
SELECT n, techally.row_as_of('items', '{"id": 1, "part": "a"}', at) AS a FROM marks ORDER BY n;
SELECT n, techally.row_as_of('items', '{"id": 1, "part": "aa"}', at) AS aa FROM marks ORDER BY n;
SELECT n, techally.row_as_of('items', '{"id": 2, "part": "b"}', at) ->> 'name' AS b FROM marks ORDER BY n;
SELECT techally.row_as_of('items', '{"id": 3, "part": "b"}', now());
-- keys
SELECT techally.row_as_of('items', '{"id": 1}', now());
SELECT techally.row_as_of('items', '{"id": 1, "part": null}', now());
SELECT techally.row_as_of('items', '{"id": "x", "part": "a"}', now());
SELECT techally.row_as_of('items', '[1]', now());
SELECT techally.row_history('pg_class', '{"oid": 1}');
SELECT count(*) FROM techally.row_history(NULL, '{}');

-- a row from before the audit: known from when that was enabled
CREATE TABLE older (id integer PRIMARY KEY, v integer);
INSERT INTO older VALUES (1, 1), (2, 2);
INSERT INTO marks VALUES (10);
SELECT techally.enable_audit('older');
INSERT INTO marks VALUES (11);
UPDATE older SET v = 10 WHERE id = 1;
INSERT INTO marks VALUES (12);
SELECT n, techally.row_as_of('older', '{"id": 1}', at) AS changed, techally.row_as_of('older', '{"id": 2}', at) AS untouched
  FROM marks WHERE n >= 10 ORDER BY n;

-- where the live row is gone without a word: forwards from the image
BEGIN;
ALTER TABLE items DISABLE TRIGGER techally_audit_delete;
DELETE FROM items WHERE id = 1;
SELECT n, techally.row_as_of('items', '{"id": 1, "part": "a"}', at) ->> 'name' AS name FROM marks WHERE n < 10 ORDER BY n;
ROLLBACK;

-- undo
SELECT techally.undo_change('items', 3);
SELECT techally.undo_change('items', 999);
SELECT techally.undo_change('older', 3);
\set VERBOSITY sqlstate
SELECT techally.undo_change('items', 3);
SELECT techally.undo_change('items', 999);
\set VERBOSITY terse
SELECT techally.undo_change('items', 5);
SELECT techally.undo_change('items', 6);
DELETE FROM items WHERE part = 'a';
SELECT techally.undo_change('items', 4);
SELECT id, part, name, price, note, secret FROM items ORDER BY 1, 2;
SELECT techally.undo_change('items', 8);
SELECT id, part, name FROM items ORDER BY 1, 2;
CREATE TABLE things (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz, iv interval, f float8, n numeric,
                     tags text[], j jsonb, by bytea, note text DEFAULT 'default', twice float8 GENERATED ALWAYS AS (f * 2) STORED);
SELECT techally.enable_audit('things', '{note}');
INSERT INTO things (at, iv, f, n, tags, j, by, note)
VALUES ('2026-01-02 03:04:05.678901+01', '-1 day 02:03', 0.1, 'NaN', '{a,NULL}', '{"a": [1]}', '\x0001', 'mine');
CREATE TABLE before AS SELECT * FROM things;
SET TimeZone = 'Asia/Tokyo';
SET IntervalStyle = 'sql_standard';
SET DateStyle = 'German';
DELETE FROM things;
SELECT techally.undo_change('things', (SELECT max(id) FROM audit_logs));
SELECT t.at = b.at AND t.iv = b.iv AND t.f = b.f AND t.n = b.n AND t.tags = b.tags AND t.j = b.j AND t.by = b.by
       AND t.id = b.id AND t.twice = b.twice AS same, t.note FROM things t, before b;
UPDATE things SET at = NULL, iv = '1 year', f = 'Infinity', n = 1, tags = NULL, j = 'null', by = NULL;
SELECT techally.undo_change('things', (SELECT max(id) FROM audit_logs));
SELECT t.at = b.at AND t.iv = b.iv AND t.f = b.f AND t.n = b.n AND t.tags = b.tags AND t.j = b.j AND t.by = b.by AS same
  FROM things t, before b;
RESET TimeZone;
RESET IntervalStyle;
RESET DateStyle;
SELECT techally.undo_change('things', (SELECT max(id) FROM audit_logs));
SELECT iv FROM things;
-- a trigger that keeps the row
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep BEFORE UPDATE ON older FOR EACH ROW EXECUTE FUNCTION keep();
SELECT techally.undo_change('older', (SELECT id FROM audit_logs WHERE table_name = 'older'));
DROP TRIGGER keep ON older;

-- the caller's rights
RESET ROLE;
GRANT USAGE ON SCHEMA regress_history TO regress_history_reader;
SET ROLE regress_history_reader;
SELECT techally.row_history('older', '{"id": 1}');
RESET ROLE;
GRANT SELECT ON regress_history.audit_logs, regress_history.older TO regress_history_reader;
SET ROLE regress_history_reader;
SELECT action FROM techally.row_history('regress_history.older', '{"id": 1}');
SELECT techally.undo_change('regress_history.older', (SELECT max(id) FROM regress_history.audit_logs WHERE table_name = 'older'));
RESET ROLE;

-- a renamed schema takes its history along
ALTER SCHEMA regress_history RENAME TO regress_history_new;
SELECT action, changes FROM techally.row_history('regress_history_new.older', '{"id": 1}');
SELECT * FROM techally.verify_audit('regress_history_new.older');
ALTER SCHEMA regress_history_new RENAME TO regress_history;

-- verify: nothing is wrong, in whatever settings
SET search_path = regress_history;
SET TimeZone = 'Asia/Tokyo';
SET bytea_output = 'escape';
SELECT * FROM techally.verify_audit('items');
SELECT * FROM techally.verify_audit('audit_logs');
RESET TimeZone;
RESET bytea_output;
SELECT * FROM techally.verify_audit('items', (SELECT changed_at FROM audit_logs WHERE id = 2), now());
-- a transaction that reaches out of the span of time
BEGIN;
INSERT INTO older VALUES (20, 0);
INSERT INTO marks VALUES (20);
UPDATE older SET v = 1 WHERE id = 20;
COMMIT;
SELECT * FROM techally.verify_audit('older', (SELECT at FROM marks WHERE n = 20));
-- sealed, once nobody is at work any more who may add to it; that may be autovacuum
CREATE PROCEDURE seal_all() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..1000 LOOP
        PERFORM techally.seal_audit_logs();
        COMMIT;
        EXIT WHEN (SELECT max(to_id) FROM audit_seals) = (SELECT last_value FROM audit_logs_id_seq);
        PERFORM pg_sleep(0.05);
    END LOOP;
END $$;
CALL seal_all();
SELECT techally.seal_audit_logs();
SELECT number, after_id, to_id = (SELECT max(id) FROM audit_logs) AS all, rows = (SELECT count(*) FROM audit_logs) AS rows,
       previous IS NULL AS first FROM audit_seals;
INSERT INTO older VALUES (21, 0);
CALL seal_all();
-- the chain can be checked elsewhere
SELECT number, seal = sha256(convert_to(concat_ws('|', 'techally seal 1', period, number, after_id, to_id, rows, encode(rows_hash, 'hex'),
              coalesce(encode(previous, 'hex'), ''), (extract(epoch FROM sealed_at) * 1000000)::bigint), 'UTF8')) AS sound,
       previous IS NOT DISTINCT FROM lag(seal) OVER (ORDER BY number) AS chained,
       rows_hash = (SELECT sha256(string_agg(l.row_hash, '' ORDER BY l.id)) FROM audit_logs l WHERE l.id > after_id AND l.id <= to_id) AS rows
  FROM audit_seals ORDER BY number;
SELECT * FROM techally.verify_audit('items');
-- every way to tamper, by who can switch the guard off
CREATE FUNCTION tampered(VARIADIC statements text[]) RETURNS TABLE (number bigint, problem text) LANGUAGE plpgsql AS $$
DECLARE
    statement text;
    found text[];
BEGIN
    BEGIN
        SET LOCAL session_replication_role = replica;
        ALTER TABLE regress_history.audit_logs DISABLE TRIGGER USER;
        ALTER TABLE regress_history.audit_seals DISABLE TRIGGER USER;
        FOREACH statement IN ARRAY statements LOOP
            EXECUTE statement;
        END LOOP;
        SELECT array_agg(format('%s|%s', v.audit_id, v.problem)) INTO found FROM techally.verify_audit('regress_history.audit_logs') v;
        RAISE EXCEPTION SQLSTATE 'XX999';
    EXCEPTION WHEN SQLSTATE 'XX999' THEN
        NULL;
    END;
    RETURN QUERY SELECT nullif(split_part(f, '|', 1), '')::bigint, regexp_replace(split_part(f, '|', 2), 'of \d{4}-\d\d', 'of the month') FROM unnest(found) f;
END $$;
SELECT * FROM tampered($$UPDATE audit_logs SET changes = jsonb_set(changes, '{name}', '"forged"') WHERE id = 1$$);
SELECT * FROM tampered($$UPDATE audit_logs SET user_id = '00000000-0000-0000-0000-000000000001' WHERE id = 3$$);
SELECT * FROM tampered($$UPDATE audit_logs SET changed_at = changed_at + interval '1 microsecond' WHERE id = 3$$);
SELECT * FROM tampered($$UPDATE audit_logs SET row_key = '{"id": 1, "part": "z"}' WHERE id = 3$$);
SELECT * FROM tampered($$UPDATE audit_logs SET user_agent = 'forged' WHERE id = 3$$);
SELECT * FROM tampered($$UPDATE audit_logs SET changes = NULL, changes_salt = NULL WHERE id = 3$$);
SELECT * FROM tampered($$UPDATE audit_logs SET changes = NULL, changes_digest = techally.commit_audit_changes(changes_salt, changes), changes_salt = NULL WHERE id = 3$$);
SELECT * FROM tampered($$DELETE FROM audit_logs WHERE id = 1$$);
SELECT * FROM tampered($$DELETE FROM audit_logs WHERE id = 3$$);
SELECT * FROM tampered($$INSERT INTO audit_logs SELECT l.* FROM audit_logs l WHERE id = 2$$);
SELECT problem FROM tampered($$INSERT INTO audit_logs SELECT (jsonb_populate_record(l, '{"id": 5000, "transaction_id": 1}')).* FROM audit_logs l WHERE id = 2$$);
SELECT * FROM tampered($$UPDATE audit_seals SET rows = rows + 1 WHERE number = 2$$);
SELECT * FROM tampered($$DELETE FROM audit_seals WHERE number = 1$$);
-- a row that knows all the rules, put into the past
SELECT problem FROM tampered($$INSERT INTO audit_logs SELECT (jsonb_populate_record(l, '{"changed_at": "2001-01-01"}')).* FROM audit_logs l WHERE id = 1$$);
SELECT * FROM techally.verify_audit('audit_logs');

-- erasure
SET ROLE regress_history_reader;
SELECT techally.erase_audit('regress_history.older', '{"id": 1}');
RESET ROLE;
SET ROLE regress_history_owner;
SELECT techally.erase_audit('items', '{"id": 2, "part": "b"}');
SELECT action, changes, row_after FROM techally.row_history('items', '{"id": 2, "part": "b"}');
SELECT n, techally.row_as_of('items', '{"id": 2, "part": "b"}', at) FROM marks WHERE n IN (1, 4, 5) ORDER BY n;
SELECT action, row_key, metadata FROM audit_logs ORDER BY id DESC LIMIT 1;
SELECT techally.undo_change('items', 2);
SELECT techally.erase_audit('items', '{"id": 2, "part": "b"}');
SET app.current_user_id = '00000000-0000-0000-0000-00000000000a';
SET app.user_agent = 'a browser';
SET app.client_ip = '192.0.2.1';
UPDATE older SET v = 0;
SELECT count(*) FROM audit_logs WHERE user_agent IS NOT NULL;
SET app.current_user_id = '';
SET app.user_agent = '';
SET app.client_ip = '';
SELECT techally.erase_audit_actor('audit_logs', '00000000-0000-0000-0000-00000000000a');
SELECT count(*) FROM audit_logs WHERE user_agent IS NOT NULL OR client_ip IS NOT NULL;
SELECT count(*) FROM audit_logs WHERE user_id IS NOT NULL;
RESET ROLE;
SELECT * FROM techally.verify_audit('audit_logs');
CALL seal_all();
SELECT * FROM techally.verify_audit('audit_logs');

-- a table keeps its history when it is renamed, and another that gets the name begins its own
CREATE TABLE named (id integer PRIMARY KEY, v integer);
SELECT techally.enable_audit('named');
INSERT INTO named VALUES (1, 0);
ALTER TABLE named RENAME TO renamed;
UPDATE renamed SET v = 1;
CREATE TABLE named (id integer PRIMARY KEY, v integer);
SELECT techally.enable_audit('named');
INSERT INTO named VALUES (1, 7);
SELECT action, changes, row_after FROM techally.row_history('renamed', '{"id": 1}');
SELECT action, changes, row_after FROM techally.row_history('named', '{"id": 1}');
SELECT techally.row_as_of('renamed', '{"id": 1}', changed_at) FROM audit_logs WHERE table_name = 'named' ORDER BY id LIMIT 1;
SELECT techally.row_as_of('named', '{"id": 1}', changed_at) IS NULL AS none FROM audit_logs WHERE table_name = 'named' ORDER BY id LIMIT 1;
SELECT techally.undo_change('named', (SELECT min(id) FROM audit_logs WHERE table_name = 'named'));
SELECT techally.undo_change('renamed', (SELECT min(id) FROM audit_logs WHERE table_name = 'renamed'));
BEGIN;
ALTER TABLE named RENAME TO other;
ALTER TABLE renamed RENAME TO named;
COMMIT;
UPDATE named SET v = 2;
SELECT action, row_after FROM techally.row_history('named', '{"id": 1}');
SELECT action, row_after FROM techally.row_history('other', '{"id": 1}');
SELECT techally.erase_audit('named', '{"id": 1}');
SELECT action, changes IS NULL AS erased FROM techally.row_history('named', '{"id": 1}');
SELECT action, changes IS NULL AS erased FROM techally.row_history('other', '{"id": 1}');
SELECT * FROM techally.verify_audit('named');
SELECT * FROM techally.verify_audit('audit_logs');
-- also when its audit has ended before
SELECT techally.disable_audit('other');
ALTER TABLE other RENAME TO another;
SELECT action, row_after FROM techally.row_history('another', '{"id": 1}');
DROP TABLE another, named;
SELECT count(*) FROM techally.audited_names;

-- random histories: the row as of every moment is the row that was there
SET ROLE regress_history_owner;
CREATE TABLE random (id integer PRIMARY KEY, a integer, b text, c numeric, d jsonb);
SELECT techally.enable_audit('random');
CREATE TABLE seen (at timestamptz, id integer, row jsonb);
SELECT setseed(0.5);
DO $$
DECLARE
    what float8;
BEGIN
    FOR i IN 1..50 LOOP
        what := random();
        IF what < 0.3 THEN
            INSERT INTO random VALUES (ceil(random() * 6), i, repeat('x', (random() * 5)::integer), random()::numeric, NULL)
                ON CONFLICT (id) DO UPDATE SET a = EXCLUDED.a, d = to_jsonb(EXCLUDED);
        ELSIF what < 0.5 THEN
            UPDATE random SET a = i, b = NULL WHERE id = ceil(random() * 6);
        ELSIF what < 0.6 THEN
            UPDATE random SET c = c + 1, d = jsonb_build_object('i', i) WHERE id > ceil(random() * 6);
        ELSIF what < 0.75 THEN
            BEGIN
                UPDATE random SET id = ceil(random() * 6), a = -i WHERE id = (SELECT max(id) FROM random);
            EXCEPTION WHEN unique_violation THEN NULL;
            END;
        ELSIF what < 0.9 THEN
            DELETE FROM random WHERE id = ceil(random() * 6);
        ELSIF what < 0.92 THEN
            TRUNCATE random;
        ELSE
            BEGIN
                UPDATE random SET b = 'rolled back';
                RAISE EXCEPTION 'x';
            EXCEPTION WHEN raise_exception THEN NULL;
            END;
        END IF;
        INSERT INTO seen SELECT clock_timestamp(), k, (SELECT to_jsonb(t) FROM random t WHERE t.id = k) FROM generate_series(1, 6) k;
        PERFORM pg_sleep(0.00001);
    END LOOP;
END $$;
SELECT count(*) AS moments, count(row) > 50 AS rows,
       count(*) FILTER (WHERE row IS DISTINCT FROM techally.row_as_of('random', jsonb_build_object('id', id), at)) AS wrong
  FROM (SELECT * FROM seen ORDER BY at, id) s;
SELECT * FROM techally.verify_audit('random');

-- maintenance does it all; a month that is retired is not missed, one that somebody drops is
RESET ROLE;
INSERT INTO older VALUES (30, 0);
SELECT count(s.done) > 1 AS maintained FROM techally.audit_items() i, techally.audit_step(i.item, NULL) s;
DO $$ BEGIN
    FOR i IN 1..1000 LOOP
        EXIT WHEN (SELECT max(to_id) FROM audit_seals) = (SELECT max(id) FROM audit_logs);
        PERFORM pg_sleep(0.05), techally.audit_step('regress_history.audit_logs', NULL);
        COMMIT;
    END LOOP;
END $$;
SELECT max(to_id) = (SELECT max(id) FROM audit_logs) AS sealed FROM audit_seals;
BEGIN;
DO $$ BEGIN EXECUTE format('DROP TABLE %s', (SELECT tableoid::regclass FROM regress_history.audit_logs LIMIT 1)); END $$;
SELECT count(*) > 0 AS missed FROM techally.verify_audit('audit_logs') WHERE problem ~ 'rows are missing';
ROLLBACK;
SELECT techally.manage_partitions('audit_logs', '1 month', 3, '1 year', 'detach');
SELECT split_part(techally.retire_partition('audit_logs', now() + interval '14 months'), ' ', 1);
SELECT count(*) FROM audit_logs;
SELECT * FROM techally.verify_audit('audit_logs');
-- the months come ahead of time, and time is an argument
SELECT techally.premake_partitions('audit_logs', date_trunc('month', now(), 'UTC') + interval '5 months' - interval '1 microsecond'),
       techally.premake_partitions('audit_logs', date_trunc('month', now(), 'UTC') + interval '5 months');
SELECT bool_and(EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgname = 'techally_guard_truncate' AND t.tgenabled = 'A')
                AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgname = 'techally_guard_rows' AND t.tgenabled = 'A')) AS guarded
  FROM pg_inherits i WHERE i.inhparent = 'audit_logs'::regclass;
-- without the month's partition the rows go to DEFAULT, and are moved to it later
INSERT INTO older VALUES (31, 0);
SELECT DISTINCT tableoid::regclass FROM audit_logs;
SELECT count(s.done) > 1 AS maintained FROM techally.audit_items() i, techally.audit_step(i.item, NULL) s;
SELECT techally.drain_default('audit_logs');
SELECT count(*) AS left_in_default FROM audit_logs_default;
SELECT * FROM techally.verify_audit('audit_logs');

SET client_min_messages = error;
DROP SCHEMA regress_history CASCADE;
DROP ROLE regress_history_owner;
DROP ROLE regress_history_reader;
