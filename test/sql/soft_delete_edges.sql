-- Soft delete, where others interfere: triggers that touch the same rows, hands
-- that write deletion_id, renamed tables, moves, and roles that must not gain by it.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA edge;
SET search_path = edge, public;
CREATE FUNCTION raised(statement text, OUT code text, OUT message text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := '00000';
EXCEPTION WHEN OTHERS THEN
    code := SQLSTATE; message := SQLERRM;
END $$;

CREATE TABLE parent (id integer PRIMARY KEY, touched integer DEFAULT 0);
CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent ON DELETE CASCADE);
SELECT techally.enable_soft_delete_together('{parent,child}');
INSERT INTO parent VALUES (1), (2), (3);
INSERT INTO child SELECT n, n FROM generate_series(1, 3) n;
CREATE VIEW state AS SELECT p.id, p.deleted_at IS NOT NULL AS deleted, c.deleted_at IS NOT NULL AS child_deleted,
                            c.deletion_id = p.deletion_id AS same
  FROM parent p JOIN child c ON c.parent = p.id;

-- a trigger of the UPDATE changes the row once more
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN UPDATE edge.parent SET touched = touched + 1 WHERE id = NEW.id; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER touch AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION touch();
UPDATE parent SET deleted_at = now() WHERE id <= 2;
SELECT * FROM state ORDER BY id;
UPDATE parent SET deleted_at = NULL WHERE id <= 2;
SELECT * FROM state ORDER BY id;
DELETE FROM parent WHERE id = 1;
SELECT * FROM state ORDER BY id;
-- or takes it back
CREATE FUNCTION take_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() = 1 THEN UPDATE edge.parent SET deleted_at = OLD.deleted_at WHERE id = NEW.id; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER take_back AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION take_back();
UPDATE parent SET deleted_at = now() WHERE id = 2;
SELECT * FROM state ORDER BY id;
DROP TRIGGER touch ON parent;
DROP TRIGGER take_back ON parent;

-- deletion_id written by hand
SELECT (raised('UPDATE child SET deleted_at = NULL, deletion_id = NULL WHERE id = 1')).*;
UPDATE parent SET deleted_at = NULL, deletion_id = NULL WHERE id = 1;
SELECT * FROM state ORDER BY id;
UPDATE parent SET deleted_at = now(), deletion_id = gen_random_uuid() WHERE id = 1;
SELECT * FROM state ORDER BY id;
UPDATE parent SET deleted_at = NULL, deletion_id = NULL;
SELECT count(*) FROM state WHERE deleted OR child_deleted;
-- by hand, in a trigger of a statement of our own
CREATE FUNCTION along() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = 1 AND NEW.deleted_at IS NOT NULL THEN
        UPDATE edge.parent SET deleted_at = now(), deletion_id = gen_random_uuid() WHERE id = 2;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER along BEFORE UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION along();
DELETE FROM parent WHERE id = 1;
SELECT * FROM state ORDER BY id;
DROP TRIGGER along ON parent;

-- a kept plan that names a table which is renamed since, or has another's name
CREATE TABLE one (id integer PRIMARY KEY);
CREATE TABLE two (id integer PRIMARY KEY);
CREATE TABLE pair (id integer PRIMARY KEY, one integer REFERENCES one ON DELETE CASCADE, two integer REFERENCES two ON DELETE CASCADE);
SELECT techally.enable_soft_delete_together('{one,two,pair}');
INSERT INTO one VALUES (1);
INSERT INTO two VALUES (1);
INSERT INTO pair VALUES (1, 1, 1);
DELETE FROM one;
UPDATE one SET deleted_at = NULL;
ALTER TABLE two RENAME TO deux;
CREATE TABLE two (id integer PRIMARY KEY, deleted_at timestamptz);
INSERT INTO two VALUES (1, now());
DELETE FROM one;
UPDATE one SET deleted_at = NULL;
SELECT deleted_at IS NULL FROM pair;

-- rows that move to another partition while a trigger changes rows of others
CREATE TABLE tallies (id integer PRIMARY KEY, n integer) PARTITION BY RANGE (id);
CREATE TABLE tallies_1 PARTITION OF tallies FOR VALUES FROM (0) TO (10);
CREATE TABLE items (id integer, day integer, parent integer REFERENCES parent ON DELETE CASCADE, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE items_1 PARTITION OF items FOR VALUES FROM (0) TO (10);
CREATE TABLE items_2 PARTITION OF items FOR VALUES FROM (10) TO (20);
SELECT techally.enable_soft_delete_together('{tallies,items}');
INSERT INTO tallies VALUES (1, 0);
INSERT INTO items VALUES (1, 1, 3), (2, 2, 3), (3, 3, 3);
CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE edge.tallies SET n = n + 1; RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER zz_tally BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION tally();
CREATE TRIGGER aa_tally BEFORE DELETE ON items FOR EACH ROW EXECUTE FUNCTION tally();
UPDATE items SET day = day + 10 WHERE id < 3;
SELECT id, day, tableoid::regclass, deleted_at FROM items ORDER BY 1;
SELECT n FROM tallies;
-- a move is no way to live under a deleted row
DELETE FROM parent WHERE id = 3;
SELECT (raised('UPDATE items SET deleted_at = NULL, day = day - 9 WHERE id = 1')).*;
UPDATE items SET day = day - 9 WHERE id = 1;
SELECT id, day, deleted_at IS NOT NULL AS deleted FROM items ORDER BY 1;

-- foreign tables
CREATE FOREIGN DATA WRAPPER techally_nowhere;
CREATE SERVER techally_nowhere FOREIGN DATA WRAPPER techally_nowhere;
CREATE TABLE near (id integer) PARTITION BY RANGE (id);
CREATE FOREIGN TABLE far PARTITION OF near FOR VALUES FROM (0) TO (10) SERVER techally_nowhere;
SELECT (raised('SELECT techally.enable_soft_delete(''near'')')).*, (raised('SELECT techally.enable_soft_delete(''far'')')).message;

-- what the owner does for others, he does not do with their search_path
CREATE ROLE regress_attacker;
CREATE SCHEMA trap AUTHORIZATION regress_attacker;
CREATE TABLE whoever (who name);
CREATE TABLE target (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), at timestamptz);
SELECT techally.enable_soft_delete('target');
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.at := now();
    PERFORM 1 FROM whoever;                     -- found in the schema of the table
    RETURN NEW;
END $$;
CREATE TRIGGER stamp BEFORE UPDATE ON target FOR EACH ROW EXECUTE FUNCTION stamp();
INSERT INTO target (id) VALUES ('00000000-0000-0000-0000-000000000001'), ('00000000-0000-0000-0000-000000000002');
GRANT USAGE ON SCHEMA edge TO regress_attacker;
GRANT SELECT, DELETE, UPDATE (deleted_at), TRUNCATE ON target TO regress_attacker;
SET ROLE regress_attacker;
CREATE TABLE trap.caught (who name);
GRANT USAGE ON SCHEMA trap TO PUBLIC;
GRANT INSERT ON trap.caught TO PUBLIC;
CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN clock_timestamp(); END $$;
SET search_path = trap, pg_catalog;
DELETE FROM edge.target WHERE id = '00000000-0000-0000-0000-000000000001';
SELECT techally.restore_deleted('edge.target'::regclass, '00000000-0000-0000-0000-000000000001');
SELECT techally.soft_delete('edge.target', '00000000-0000-0000-0000-000000000002');
SELECT techally.purge_deleted('edge.target', '0');
SHOW search_path;
SELECT * FROM caught WHERE who <> 'regress_attacker';
RESET ROLE;
SET search_path = edge, public;
SELECT id, deleted_at IS NOT NULL AS deleted, at IS NOT NULL AS stamped FROM target ORDER BY 1;

DROP SERVER techally_nowhere CASCADE;
DROP FOREIGN DATA WRAPPER techally_nowhere;
DROP SCHEMA trap, edge CASCADE;
DROP ROLE regress_attacker;
