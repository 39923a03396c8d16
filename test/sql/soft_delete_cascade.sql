-- Soft delete, how far it reaches: deep chains, several batches, triggers between
-- them, rows restored by hand, keys to one partition, heirs, columns that a BEFORE
-- trigger changes.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA reach;
SET search_path = reach, public;
CREATE FUNCTION raised(statement text, OUT code text, OUT message text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := '00000';
EXCEPTION WHEN OTHERS THEN
    code := SQLSTATE; message := SQLERRM;
END $$;

-- a chain as deep as it likes, there and back again, and really gone
CREATE TABLE chain (id integer PRIMARY KEY, above integer REFERENCES chain ON DELETE CASCADE);
CREATE INDEX ON chain (above);
SELECT techally.enable_soft_delete('chain');
INSERT INTO chain SELECT n, nullif(n - 1, 0) FROM generate_series(1, 900) n;
SET max_stack_depth = '100kB';
DELETE FROM chain WHERE id = 1;
SELECT count(*), count(deleted_at), count(DISTINCT deletion_id) FROM chain;
UPDATE chain SET deleted_at = NULL WHERE id = 1;
SELECT count(*), count(deleted_at), count(deletion_id) FROM chain;
UPDATE chain SET deleted_at = now() WHERE id = 401;
SELECT count(*), count(deleted_at), count(DISTINCT deletion_id) FROM chain;
SELECT techally.purge_deleted('chain', '0', 1) > 0, techally.purge_deleted('chain', '0') >= 0;
SELECT count(*), count(deleted_at) FROM chain;
RESET max_stack_depth;
DROP TABLE chain;

-- statement triggers of the DELETE find the rows living, and its transition table empty
CREATE TABLE watched (id integer PRIMARY KEY);
SELECT techally.enable_soft_delete('watched');
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE WARNING '% %: % living, % in the transition table', TG_OP, TG_WHEN, (SELECT count(*) FROM reach.watched WHERE deleted_at IS NULL), (SELECT count(*) FROM gone);
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER DELETE ON watched REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION watch();
INSERT INTO watched VALUES (1), (2);
DELETE FROM watched;
SELECT count(deleted_at) FROM watched;
DROP TABLE watched;

-- more rows than are marked at once, and triggers that change those of other batches
CREATE TABLE parent (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent ON DELETE CASCADE);
CREATE INDEX ON child (parent);
SELECT techally.enable_soft_delete_together('{parent,child}');
INSERT INTO parent SELECT n FROM generate_series(1, 2500) n;
INSERT INTO child SELECT n, n FROM generate_series(1, 2500) n;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN UPDATE reach.parent SET n = n + 1; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER touch AFTER UPDATE ON parent FOR EACH STATEMENT EXECUTE FUNCTION touch();
DELETE FROM parent;
SELECT count(*), count(deleted_at), count(DISTINCT deletion_id), min(n) = max(n) AS alike, min(n) > 0 AS touched FROM parent;
SELECT count(*), count(deleted_at), count(DISTINCT deletion_id) FROM child;
UPDATE parent SET deleted_at = NULL;
SELECT count(deleted_at), count(deletion_id) FROM parent;
SELECT count(deleted_at), count(deletion_id) FROM child;
UPDATE parent SET deleted_at = now();
SELECT count(deleted_at), count(DISTINCT deletion_id) FROM parent;
SELECT count(deleted_at), count(DISTINCT deletion_id) FROM child;
UPDATE parent SET deleted_at = NULL, deletion_id = NULL;
SELECT count(deleted_at), count(deletion_id) FROM child;
DROP TRIGGER touch ON parent;
-- one that a trigger keeps stays, whatever else changes
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN NEW.id = 7 THEN NULL ELSE NEW END;
END $$;
CREATE TRIGGER keep BEFORE UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION keep();
DELETE FROM parent WHERE id < 10;
SELECT id FROM parent WHERE id < 10 AND deleted_at IS NULL;
SELECT id FROM child WHERE id < 10 AND deleted_at IS NULL;
UPDATE parent SET deleted_at = NULL WHERE id < 10;
DROP TRIGGER keep ON parent;
-- two that change each other's rows and keep them come to an end
CREATE FUNCTION quarrel() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() > 1 THEN RETURN NEW; END IF;
    UPDATE reach.parent SET n = n + 1 WHERE id <> NEW.id AND id <= 2;
    RETURN NULL;
END $$;
CREATE TRIGGER quarrel BEFORE UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION quarrel();
SELECT (raised('DELETE FROM parent WHERE id <= 2')).code;
DROP TRIGGER quarrel ON parent;
-- moved to another partition by a trigger of another row: not there to be deleted
CREATE TABLE spots (id integer, place integer, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
CREATE TABLE spots_1 PARTITION OF spots FOR VALUES IN (1);
CREATE TABLE spots_2 PARTITION OF spots FOR VALUES IN (2);
CREATE TABLE marks (id integer PRIMARY KEY, spot integer, place integer, FOREIGN KEY (spot, place) REFERENCES spots ON DELETE CASCADE ON UPDATE CASCADE);
SELECT techally.enable_soft_delete_together('{spots,marks}');
INSERT INTO spots SELECT n, 1 FROM generate_series(1, 2000) n;
CREATE FUNCTION shove() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE reach.spots SET place = 2 WHERE id = 2000 AND place = 1; RETURN NULL; END $$;
CREATE TRIGGER shove AFTER UPDATE ON spots_1 FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION shove();
SELECT (raised('DELETE FROM spots')).*;
DROP TRIGGER shove ON spots_1;
DROP TABLE marks, spots;

-- what was deleted one by one comes back at once, each with its own
DO $$ BEGIN FOR i IN 1..50 LOOP DELETE FROM parent WHERE id = i; END LOOP; END $$;
DELETE FROM child WHERE id = 60;
DELETE FROM parent WHERE id = 60;
SELECT count(DISTINCT deletion_id) FROM child;
UPDATE parent SET deleted_at = NULL, deletion_id = CASE WHEN id % 2 = 0 THEN deletion_id END;
SELECT count(deleted_at), count(deletion_id) FROM parent;
SELECT id, deletion_id IS NOT NULL AS named FROM child WHERE deleted_at IS NOT NULL;
UPDATE child SET deleted_at = NULL;
-- more of them than fit in memory
CREATE TABLE many (id integer PRIMARY KEY, parent integer REFERENCES parent ON DELETE CASCADE);
SELECT techally.enable_soft_delete('many');
INSERT INTO many SELECT n, 1 + n % 2 FROM generate_series(1, 70000) n;
DELETE FROM many WHERE id % 2 = 0;
DELETE FROM many;
UPDATE many SET deleted_at = NULL;
SELECT count(deleted_at), count(deletion_id) FROM many;
DELETE FROM many WHERE id = 1;
DELETE FROM parent WHERE id = 2;
SELECT count(deleted_at), count(DISTINCT deletion_id) FROM many;
SELECT (raised('UPDATE many SET deleted_at = NULL')).*;
UPDATE parent SET deleted_at = NULL WHERE id = 2;
SELECT count(deleted_at) FROM many;
DROP TABLE many;

-- foreign keys to a single partition, and to a partition of a partition
CREATE TABLE days (id integer, day integer, parent integer REFERENCES parent ON DELETE CASCADE, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (day);
CREATE TABLE days_2a (day integer NOT NULL, dropped integer, id integer NOT NULL, parent integer);
ALTER TABLE days_2a DROP COLUMN dropped;
ALTER TABLE days_2 ATTACH PARTITION days_2a FOR VALUES FROM (10) TO (20);
CREATE TABLE notes (id integer PRIMARY KEY, on_id integer, on_day integer, FOREIGN KEY (on_id, on_day) REFERENCES days_1 (id, day) ON DELETE CASCADE);
CREATE TABLE loans (id integer PRIMARY KEY, of_id integer, of_day integer, FOREIGN KEY (of_id, of_day) REFERENCES days_2 (id, day));
CREATE TABLE pages (id integer PRIMARY KEY, of_id integer, of_day integer, FOREIGN KEY (of_id, of_day) REFERENCES days_2a (id, day) ON DELETE CASCADE);
SELECT (raised('SELECT techally.enable_soft_delete(''days'')')).*;
SELECT techally.enable_soft_delete_together('{notes,pages,days}');
SELECT * FROM techally.soft_delete_health();
INSERT INTO days VALUES (1, 1, 1), (2, 12, 1), (3, 3, 2), (4, 14, 2);
INSERT INTO notes VALUES (1, 1, 1), (3, 3, 3);
INSERT INTO loans VALUES (2, 2, 12), (4, 4, 14);
INSERT INTO pages VALUES (2, 2, 12), (4, 4, 14);
CREATE VIEW gone AS SELECT (SELECT string_agg(id::text, ' ' ORDER BY id) FROM days WHERE deleted_at IS NOT NULL) AS days,
                           (SELECT string_agg(id::text, ' ' ORDER BY id) FROM notes WHERE deleted_at IS NOT NULL) AS notes,
                           (SELECT string_agg(id::text, ' ' ORDER BY id) FROM pages WHERE deleted_at IS NOT NULL) AS pages;
DELETE FROM parent WHERE id = 1;
SELECT * FROM gone;
SELECT (raised('INSERT INTO notes VALUES (5, 1, 1)')).*, (raised('INSERT INTO loans VALUES (5, 2, 12)')).*, (raised('INSERT INTO pages VALUES (5, 2, 12)')).*;
UPDATE parent SET deleted_at = NULL WHERE id = 1;
SELECT * FROM gone;
DELETE FROM days WHERE id IN (3, 4);
SELECT * FROM gone;
UPDATE days SET deleted_at = NULL WHERE id IN (3, 4);
SELECT * FROM gone;
DELETE FROM days_2a WHERE id = 2;
SELECT * FROM gone;
-- purging: a living row that refers to one partition keeps its row there
ALTER TABLE pages DISABLE TRIGGER techally_deleted_at;
UPDATE pages SET deleted_at = NULL WHERE id = 2;
ALTER TABLE pages ENABLE TRIGGER techally_deleted_at;
DELETE FROM loans;
SELECT techally.purge_deleted('days', '0');
UPDATE pages SET deleted_at = now() WHERE id = 2;
SELECT techally.purge_deleted('days', '0');
SELECT id FROM pages;
-- one that comes later
CREATE TABLE stamps (id integer PRIMARY KEY, on_id integer, on_day integer, FOREIGN KEY (on_id, on_day) REFERENCES days_1 (id, day) ON DELETE CASCADE);
SELECT * FROM techally.soft_delete_health() ORDER BY message;
INSERT INTO stamps VALUES (1, 1, 1);
SELECT (raised('DELETE FROM parent WHERE id = 1')).*;
SELECT techally.enable_soft_delete('stamps');
DELETE FROM parent WHERE id = 1;
SELECT count(deleted_at) FROM stamps;
SELECT (raised('SELECT techally.disable_soft_delete(''stamps'')')).code;
-- disabling takes all guards
ALTER TABLE days DROP CONSTRAINT days_parent_fkey;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'techally_parent_days%';
SELECT techally.disable_soft_delete('days');
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'techally_parent_days%';
DROP VIEW gone;
DROP TABLE notes, loans, pages, stamps, days;

-- heirs have none of our triggers: nothing of theirs is really deleted in passing
CREATE TABLE base (id integer PRIMARY KEY);
SELECT techally.enable_soft_delete('base');
CREATE TABLE heir () INHERITS (base);
INSERT INTO base VALUES (1), (2);
INSERT INTO heir VALUES (3), (4), (5);
SELECT * FROM techally.soft_delete_health();
SELECT s, (raised(s)).* FROM unnest(ARRAY['DELETE FROM base', 'DELETE FROM base WHERE id = 3', 'WITH d AS (DELETE FROM base RETURNING 1) SELECT FROM d',
    'DELETE FROM ONLY base WHERE id = 1', 'DELETE FROM heir WHERE id = 5', 'UPDATE base SET id = id']) s;
SELECT tableoid::regclass, id, deleted_at IS NOT NULL AS deleted FROM base ORDER BY 2;
CREATE ROLE regress_remover;
GRANT USAGE ON SCHEMA reach TO regress_remover;
GRANT SELECT, DELETE ON base TO regress_remover;
SET ROLE regress_remover;
SET techally.hard_delete = on;
SELECT (raised('DELETE FROM reach.base WHERE id = 3')).*;
RESET ROLE;
DELETE FROM base WHERE id = 3;
RESET techally.hard_delete;
SELECT tableoid::regclass, id FROM base ORDER BY 2;
DROP TABLE base CASCADE;

-- columns that the UPDATE does not name, but a BEFORE trigger changes
CREATE TABLE keepers (id integer PRIMARY KEY, parent integer REFERENCES parent ON DELETE CASCADE, other integer, dead boolean);
CREATE TABLE kept (id integer PRIMARY KEY, keeper integer REFERENCES keepers ON DELETE CASCADE);
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.dead THEN NEW.deleted_at := now(); ELSE NEW.deleted_at := NULL; END IF;
    NEW.parent := coalesce(NEW.other, NEW.parent);
    RETURN NEW;
END $$;
SELECT techally.enable_soft_delete_together('{keepers,kept}');
INSERT INTO keepers VALUES (1, 11), (2, 12);
INSERT INTO kept VALUES (1, 1), (2, 2);
CREATE TRIGGER meddle BEFORE UPDATE ON keepers FOR EACH ROW EXECUTE FUNCTION meddle();
SELECT * FROM techally.soft_delete_health() ORDER BY message;
SELECT techally.enable_soft_delete('keepers');
SELECT * FROM techally.soft_delete_health();
UPDATE keepers SET dead = true WHERE id = 1;
SELECT count(deleted_at) FROM kept;
UPDATE keepers SET dead = false WHERE id = 1;
SELECT count(deleted_at) FROM kept;
DELETE FROM parent WHERE id = 13;
SELECT (raised('UPDATE keepers SET other = 13 WHERE id = 1')).*;
UPDATE keepers SET other = 12 WHERE id = 1;
DROP TRIGGER meddle ON keepers;
SELECT techally.enable_soft_delete('keepers');
SELECT tgname, tgattr <> '' AS of_columns FROM pg_trigger WHERE tgrelid = 'keepers'::regclass AND NOT tgisinternal AND tgtype & 16 > 0 ORDER BY 1;
-- the same in one partition
CREATE TABLE shelves (id integer, parent integer REFERENCES parent, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE shelves_1 PARTITION OF shelves FOR VALUES FROM (0) TO (10);
SELECT techally.enable_soft_delete('parent');
INSERT INTO shelves VALUES (1, 14);
CREATE FUNCTION refer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.parent := 13; RETURN NEW; END $$;
CREATE TRIGGER refer BEFORE UPDATE ON shelves_1 FOR EACH ROW EXECUTE FUNCTION refer();
SELECT * FROM techally.soft_delete_health();
SELECT techally.enable_soft_delete('parent');
SELECT * FROM techally.soft_delete_health();
SELECT (raised('UPDATE shelves SET id = 2')).*;

-- a table that changes under it
ALTER TABLE parent RENAME COLUMN deleted_at TO removed_at;
SELECT (raised('DELETE FROM parent WHERE id = 100')).*, (raised('SELECT techally.soft_delete(''parent'', gen_random_uuid())')).*;
SELECT message FROM techally.soft_delete_health() ORDER BY message;
SELECT (raised('SELECT techally.enable_soft_delete(''parent'')')).*;
DELETE FROM parent WHERE id = 100;
SELECT deleted_at IS NOT NULL AS deleted, removed_at IS NULL AS other FROM parent WHERE id = 100;
SELECT (raised('ALTER TABLE parent DROP COLUMN deletion_id')).code;
ALTER TABLE parent DROP COLUMN deletion_id CASCADE;
SELECT message FROM techally.soft_delete_health() ORDER BY message;
SELECT techally.enable_soft_delete('parent');
SELECT * FROM techally.soft_delete_health();
CREATE SCHEMA elsewhere;
ALTER TABLE child SET SCHEMA elsewhere;
ALTER TABLE elsewhere.child RENAME COLUMN parent TO belongs_to;
DELETE FROM parent WHERE id = 200;
SELECT count(deleted_at) FROM elsewhere.child WHERE belongs_to = 200;
UPDATE parent SET deleted_at = NULL WHERE id = 200;
SELECT count(deleted_at) FROM elsewhere.child WHERE belongs_to = 200;
ALTER TABLE parent ALTER COLUMN id TYPE bigint;
DELETE FROM parent WHERE id = 201;
SELECT count(deleted_at) FROM elsewhere.child WHERE belongs_to = 201;
ALTER TABLE elsewhere.child DROP CONSTRAINT child_parent_fkey;
DELETE FROM parent WHERE id = 202;
SELECT count(deleted_at) FROM elsewhere.child WHERE belongs_to = 202;
INSERT INTO elsewhere.child VALUES (10000, 202);
SELECT * FROM techally.soft_delete_health();
DROP SCHEMA reach, elsewhere CASCADE;
SELECT count(*) FROM techally.soft_delete_tables t WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.target);
DROP ROLE regress_remover;
