-- Soft delete beside the other rooms: what the audit log says, partitions that are
-- managed, drained and retired, rows that go into the archive and come back.
\set VERBOSITY terse
SET client_min_messages = warning;
SET TimeZone = 'UTC';
CREATE SCHEMA rooms;
SET search_path = rooms, public;

-- the statement form and the row form of the audit
CREATE TABLE shelf (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
CREATE TABLE book (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), shelf uuid REFERENCES shelf ON DELETE CASCADE, name text);
SELECT techally.enable_soft_delete_together('{shelf,book}');
SELECT techally.enable_audit('shelf');
CREATE TRIGGER audit_book AFTER INSERT OR UPDATE OR DELETE ON book FOR EACH ROW EXECUTE FUNCTION techally.audit_changes();
INSERT INTO shelf (name) VALUES ('one'), ('two'), ('three');
INSERT INTO book (shelf, name) SELECT id, name || ' ' || n FROM shelf, generate_series(1, 2) n;
DELETE FROM shelf WHERE name <> 'three';
SELECT techally.restore_deleted('shelf', id) FROM shelf WHERE name = 'one';
UPDATE shelf SET deleted_at = NULL WHERE name = 'two';
UPDATE shelf SET deleted_at = now(), name = 'drei' WHERE name = 'three';
SELECT techally.soft_delete('book', id) FROM book WHERE name = 'one 1';
SELECT techally.restore_deleted('book', id) FROM book WHERE name = 'one 1';
UPDATE book SET name = 'uno 1' WHERE name = 'one 1';
SELECT table_name, action, count(*) FROM audit_logs GROUP BY 1, 2 ORDER BY 1 DESC, 2;
SET techally.hard_delete = on;
DELETE FROM shelf WHERE name = 'two';
RESET techally.hard_delete;
SELECT techally.purge_deleted('shelf', '0');
SELECT table_name, action, count(*) FROM audit_logs WHERE action = 'DELETE' GROUP BY 1, 2 ORDER BY 1 DESC, 2;
SELECT b.name, string_agg(l.action, ' ' ORDER BY l.id) FROM book b JOIN audit_logs l ON l.resource_id = b.id WHERE b.name = 'uno 1' GROUP BY 1;

-- a store's own tables
DO $$ BEGIN PERFORM techally.create_store('rooms_shop'); END $$;
DO $$ BEGIN PERFORM techally.enable_audit('rooms_shop.users'), techally.enable_audit('rooms_shop.products'), techally.enable_audit('rooms_shop.product_variants'); END $$;
INSERT INTO rooms_shop.users (id, email, password_hash, first_name, last_name) VALUES ('00000000-0000-4000-8000-000000000001', 'ann@example.org', 'x', 'Ann', 'Smith');
INSERT INTO rooms_shop.products (id, sku, name, slug, price) VALUES ('a0000000-0000-4000-8000-000000000000', 'A', 'Anvil', 'anvil', 10.00);
INSERT INTO rooms_shop.product_variants (product_id, sku, name) VALUES ('a0000000-0000-4000-8000-000000000000', 'A-S', 'small');
SELECT rooms_shop.soft_delete_user('00000000-0000-4000-8000-000000000001');
SELECT techally.restore_deleted('rooms_shop.users', '00000000-0000-4000-8000-000000000001');
DELETE FROM rooms_shop.products;
SELECT techally.restore_deleted('rooms_shop.products', id) FROM rooms_shop.products;
SELECT table_name, string_agg(action, ' ' ORDER BY id) FROM rooms_shop.audit_logs GROUP BY 1 ORDER BY 1;

-- managed partitions: rows in DEFAULT, deleted and living, drained into partitions
CREATE TABLE person (id integer PRIMARY KEY);
CREATE TABLE visit (id integer, at timestamptz NOT NULL, person integer REFERENCES person ON DELETE CASCADE, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE remark (id integer PRIMARY KEY, visit integer, at timestamptz, FOREIGN KEY (visit, at) REFERENCES visit (id, at) ON DELETE CASCADE);
CREATE TABLE visit_rest PARTITION OF visit DEFAULT;
SELECT techally.enable_soft_delete_together('{remark,visit,person}');
SELECT techally.enable_audit('visit');
INSERT INTO person VALUES (1), (2), (3);
INSERT INTO visit SELECT n, '2020-01-15'::timestamptz + make_interval(months => n % 4), 1 + n % 2 FROM generate_series(1, 40) n;
INSERT INTO visit SELECT n, '2020-02-15', 3 FROM generate_series(41, 44) n;
INSERT INTO remark SELECT id, id, at FROM visit WHERE id > 40;
DELETE FROM person WHERE id = 1;
DELETE FROM visit WHERE id IN (1, 41);
CREATE TABLE before AS SELECT id, at, person, deleted_at, deletion_id FROM visit;
SELECT count(*), count(deleted_at), count(DISTINCT deletion_id) FROM before;
SELECT techally.manage_partitions('visit', '1 month', 0);
-- (rows that others refer to wait in DEFAULT)
DO $$ BEGIN FOR i IN 1..9 LOOP PERFORM techally.drain_default('visit'); END LOOP; END $$;
DELETE FROM remark;
SET techally.hard_delete = on;
DELETE FROM remark;
RESET techally.hard_delete;
DO $$ BEGIN FOR i IN 1..9 LOOP PERFORM techally.drain_default('visit'); END LOOP; END $$;
SELECT count(*) FROM visit_rest;
SELECT count(*) AS moved_as_they_were FROM before b JOIN visit v USING (id, at) WHERE (b.person, b.deleted_at, b.deletion_id) IS NOT DISTINCT FROM (v.person, v.deleted_at, v.deletion_id);
SELECT action, count(*) FROM audit_logs WHERE table_name = 'visit' GROUP BY 1 ORDER BY 1;
SELECT count(DISTINCT tableoid) FROM visit;
SELECT * FROM techally.soft_delete_health();
-- there DELETE deletes softly, what went comes back, rows move
DELETE FROM visit WHERE id = 2;
UPDATE visit SET at = at + interval '1 month' WHERE id IN (2, 3);
SELECT id, to_char(at, 'MM') AS month, deleted_at IS NOT NULL AS deleted FROM visit WHERE id IN (2, 3) ORDER BY 1;
UPDATE person SET deleted_at = NULL WHERE id = 1;
SELECT id FROM visit WHERE deleted_at IS NOT NULL ORDER BY id;
-- partitions that are made now have it all, and a row can be drained under a deleted parent
INSERT INTO visit VALUES (100, '2031-05-05', 2);
DELETE FROM person WHERE id = 2;
INSERT INTO visit VALUES (101, '2031-05-06', 1);
DO $$ BEGIN FOR i IN 1..9 LOOP PERFORM techally.drain_default('visit'); END LOOP; END $$;
SELECT id, tableoid::regclass <> 'visit_rest'::regclass AS drained, deleted_at IS NOT NULL AS deleted FROM visit WHERE id > 99 ORDER BY 1;
DELETE FROM visit WHERE id = 101;
SELECT deleted_at IS NOT NULL FROM visit WHERE id = 101;

-- the archive takes deleted and living rows as they are, and gives them back
CREATE TABLE paper (id integer PRIMARY KEY, created_at timestamptz, body text);
CREATE TABLE leaf (id integer PRIMARY KEY, paper integer REFERENCES paper ON DELETE CASCADE);
SELECT techally.enable_soft_delete_together('{leaf,paper}');
INSERT INTO paper VALUES (1, '2001-01-01', 'old'), (2, '2001-01-01', 'old and deleted'), (3, now(), 'new'), (4, now(), 'new and deleted');
INSERT INTO leaf SELECT n, n FROM generate_series(1, 4) n;
DELETE FROM paper WHERE id IN (2, 4);
DO $$ BEGIN PERFORM techally.set_retention('paper', '1 year', 'archive', 'created_at'); END $$;
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation LIKE 'rooms.%' ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM paper ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM leaf ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM rooms_archive.paper ORDER BY 1;
SELECT relation, rows FROM techally.restore_rows('rooms.paper', '[{"id": 1}, {"id": 2}]') ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM paper ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM leaf ORDER BY 1;
UPDATE paper SET deleted_at = NULL;
SELECT count(*), count(deleted_at) FROM leaf;
-- and by a policy that deletes, they are gone
DO $$ BEGIN PERFORM techally.set_retention('paper', '1 year', 'delete', 'created_at'); END $$;
UPDATE paper SET created_at = '2001-01-01';
DELETE FROM paper WHERE id = 3;
SELECT relation, rows, action FROM techally.archive_old_data() WHERE relation LIKE 'rooms.%' ORDER BY 1;
SELECT (SELECT count(*) FROM paper) AS papers, (SELECT count(*) FROM leaf) AS leaves;

DROP SCHEMA rooms, rooms_archive, rooms_shop CASCADE;
