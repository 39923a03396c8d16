-- Uniqueness among the living: what live_unique makes of the keys that it finds,
-- the forms of ON CONFLICT, and restoring a row whose name was taken.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA uniq;
SET search_path = uniq, public;
CREATE FUNCTION raised(statement text, OUT code text, OUT message text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := '00000';
EXCEPTION WHEN OTHERS THEN
    code := SQLSTATE; message := SQLERRM;
END $$;
CREATE VIEW keys AS
SELECT i.indexrelid::regclass AS name, substring(pg_get_indexdef(i.indexrelid) FROM ' USING .*') AS definition, obj_description(i.indexrelid) AS comment
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
 WHERE c.relnamespace = 'uniq'::regnamespace AND i.indisunique AND NOT i.indisprimary AND NOT c.relispartition;

-- what is as it was: collation, operator class, order, INCLUDE, storage, name, comment
CREATE TABLE people (id integer PRIMARY KEY, email text COLLATE "C", "Name" text, code text, n integer, note text);
ALTER TABLE people ADD CONSTRAINT people_email UNIQUE (email) INCLUDE (note) WITH (fillfactor = 70);
CREATE UNIQUE INDEX "people Name" ON people ("Name" text_pattern_ops DESC NULLS LAST, n);
CREATE UNIQUE INDEX people_name_c ON people ("Name" COLLATE "POSIX", n);
COMMENT ON CONSTRAINT people_email ON people IS 'one person, one address';
COMMENT ON INDEX "people Name" IS 'it''s by name';
SELECT techally.enable_soft_delete('people');
SELECT techally.live_unique('people', '{email}');
SELECT techally.live_unique('people', '{n,Name}');
SELECT techally.live_unique('people', '{code}');
SELECT * FROM keys ORDER BY name::text;
SELECT conname FROM pg_constraint WHERE conrelid = 'people'::regclass AND contype <> 'n' ORDER BY 1;
-- again: nothing new; one that comes later goes where there is the same, and stays another where it is
CREATE UNIQUE INDEX people_code_again ON people (code);
CREATE UNIQUE INDEX people_code_posix ON people (code COLLATE "POSIX");
SELECT techally.live_unique('people', '{code}'), techally.live_unique('people', '{email}'), techally.live_unique('people', '{Name,n}');
SELECT * FROM keys ORDER BY name::text;
-- what it cannot be
ALTER TABLE people ADD CONSTRAINT people_n UNIQUE (n) DEFERRABLE;
\set VERBOSITY default
SELECT techally.live_unique('people', '{n}');
\set VERBOSITY terse
ALTER TABLE people ALTER COLUMN note SET NOT NULL;
CREATE UNIQUE INDEX people_note ON people (note);
ALTER TABLE people REPLICA IDENTITY USING INDEX people_note;
SELECT (raised('SELECT techally.live_unique(''people'', ''{note}'')')).*;
ALTER TABLE people REPLICA IDENTITY DEFAULT;
DROP INDEX people_note;
ALTER TABLE people ALTER COLUMN note DROP NOT NULL, DROP CONSTRAINT people_n;

-- the forms of ON CONFLICT
INSERT INTO people (id, email) VALUES (1, 'ann'), (2, 'bob');
DELETE FROM people WHERE id = 1;
INSERT INTO people (id, email) VALUES (3, 'ann');
INSERT INTO people (id, email) VALUES (4, 'ann') ON CONFLICT DO NOTHING;
INSERT INTO people (id, email) VALUES (4, 'ann') ON CONFLICT (email) WHERE deleted_at IS NULL DO NOTHING;
INSERT INTO people (id, email) VALUES (4, 'ann') ON CONFLICT (email) WHERE deleted_at IS NULL DO UPDATE SET note = 'again' RETURNING id, note;
INSERT INTO people (id, email) VALUES (4, 'ann') ON CONFLICT (email COLLATE "C") WHERE deleted_at IS NULL DO UPDATE SET note = 'once more' RETURNING id, note;
SELECT s, (raised(format('INSERT INTO people (id, email) VALUES (4, ''ann'') ON CONFLICT %s', s))).code
  FROM unnest(ARRAY['(email) DO NOTHING', 'ON CONSTRAINT people_email DO NOTHING', '(email) WHERE deleted_at IS NOT NULL DO NOTHING']) s;
-- and MERGE, where there is one
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE $merge$
            MERGE INTO people p USING (VALUES ('ann'), ('cyd')) v (email) ON p.email = v.email AND p.deleted_at IS NULL
             WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, email) VALUES (5, v.email) $merge$;
    ELSE
        DELETE FROM people WHERE email = 'ann' AND deleted_at IS NULL;
        INSERT INTO people (id, email) VALUES (5, 'cyd');
    END IF;
END $$;
SELECT id, email, deleted_at IS NOT NULL AS deleted FROM people ORDER BY 1;

-- restoring where the name was taken says by which row; by hand PostgreSQL's own error does
CREATE TABLE users (id uuid PRIMARY KEY, email text UNIQUE, boss uuid);
SELECT techally.enable_soft_delete('users');
SELECT techally.live_unique('users', '{email}');
CREATE TABLE badges (id uuid PRIMARY KEY, holder uuid REFERENCES users ON DELETE CASCADE, number integer UNIQUE);
SELECT techally.enable_soft_delete('badges');
SELECT techally.live_unique('badges', '{number}');
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000001', 'ann@example.org'), ('00000000-0000-0000-0000-000000000002', 'bob@example.org');
INSERT INTO badges VALUES ('00000000-0000-0000-0000-00000000000a', '00000000-0000-0000-0000-000000000001', 7);
DELETE FROM users WHERE email = 'ann@example.org';
INSERT INTO users VALUES ('00000000-0000-0000-0000-000000000003', 'ann@example.org');
DO $$
DECLARE d text; h text; c text; t text;
BEGIN
    PERFORM techally.restore_deleted('users', '00000000-0000-0000-0000-000000000001');
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT, c = CONSTRAINT_NAME, t = TABLE_NAME;
    RAISE WARNING '% | % | % | % | %', SQLERRM, d, h, c, t;
END $$;
-- one that goes along may be what is taken
UPDATE users SET email = 'other@example.org' WHERE id = '00000000-0000-0000-0000-000000000003';
INSERT INTO badges VALUES ('00000000-0000-0000-0000-00000000000b', '00000000-0000-0000-0000-000000000002', 7);
DO $$
DECLARE d text; c text;
BEGIN
    PERFORM techally.restore_deleted('users', '00000000-0000-0000-0000-000000000001');
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL, c = CONSTRAINT_NAME;
    RAISE WARNING '% | % | %', SQLERRM, d, c;
END $$;
SELECT (raised('UPDATE users SET deleted_at = NULL WHERE id = ''00000000-0000-0000-0000-000000000001''')).*;
SELECT count(deleted_at) FROM users;
-- not for those who may not see it
CREATE ROLE regress_restorer;
GRANT USAGE ON SCHEMA uniq TO regress_restorer;
GRANT SELECT, UPDATE ON users TO regress_restorer;
SET ROLE regress_restorer;
DO $$
DECLARE d text;
BEGIN
    PERFORM techally.restore_deleted('uniq.users', '00000000-0000-0000-0000-000000000001');
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL;
    RAISE WARNING '% | %', SQLERRM, d;
END $$;
RESET ROLE;
DELETE FROM badges WHERE number = 7;
SELECT techally.restore_deleted('users', '00000000-0000-0000-0000-000000000001');
SELECT id, number FROM badges WHERE deleted_at IS NULL;

-- of a partitioned table, by an index of all partitions, under its name and with its parts
CREATE TABLE visits (id integer, day integer, badge integer, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM (0) TO (10);
ALTER TABLE visits ADD CONSTRAINT visits_badge UNIQUE (badge, day);
SELECT techally.enable_soft_delete('visits');
SELECT techally.live_unique('visits', '{day,badge}');
CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM (10) TO (20);
INSERT INTO visits VALUES (1, 1, 1), (2, 12, 1);
DELETE FROM visits;
INSERT INTO visits VALUES (3, 1, 1), (4, 12, 1);
SELECT (raised('INSERT INTO visits VALUES (5, 12, 1)')).code, (raised('UPDATE visits SET deleted_at = NULL WHERE id = 1')).code;
SELECT * FROM keys WHERE name::text LIKE 'visits%';
DROP SCHEMA uniq CASCADE;
DROP ROLE regress_restorer;
