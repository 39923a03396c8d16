-- Soft delete: DELETE sets deleted_at, what goes along, what comes back, who may.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA lib;
SET search_path = lib, public;

-- the outcome of a statement, as its SQLSTATE and message
CREATE FUNCTION raised(statement text, OUT code text, OUT message text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := '00000';
EXCEPTION WHEN OTHERS THEN
    code := SQLSTATE; message := SQLERRM;
END $$;

CREATE TABLE authors (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text NOT NULL UNIQUE);
CREATE TABLE books (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), author_id uuid NOT NULL REFERENCES authors ON DELETE CASCADE,
                    title text, updated_at timestamptz, deleted_at timestamptz);
CREATE TABLE pages (id integer PRIMARY KEY, book_id uuid REFERENCES books ON DELETE CASCADE);
CREATE TABLE loans (id integer PRIMARY KEY, book_id uuid REFERENCES books ON DELETE RESTRICT, reader integer);
CREATE TABLE notes (id integer PRIMARY KEY, book_id uuid REFERENCES books ON DELETE SET NULL);

-- a parent becomes one after what goes with it
SELECT techally.enable_soft_delete('authors');
SELECT (raised('SELECT techally.enable_soft_delete(''lib.books'')')).*;
SELECT techally.enable_soft_delete('pages');
SELECT techally.enable_soft_delete('books');
SELECT techally.enable_soft_delete('authors');
SELECT techally.enable_soft_delete('authors');      -- again: nothing new
SELECT target, enabled_at IS NOT NULL FROM techally.soft_delete_tables ORDER BY target::text;
\d books
SELECT conrelid::regclass, conname, contype, confdeltype FROM pg_constraint
 WHERE connamespace = 'lib'::regnamespace AND contype IN ('p', 'u', 'f') ORDER BY conname;
SELECT tgrelid::regclass, tgname, tgconstrrelid::regclass FROM pg_trigger
 WHERE tgrelid::regclass::text IN ('authors', 'books', 'pages', 'loans', 'notes') AND NOT tgisinternal ORDER BY tgrelid::regclass::text, 2;

INSERT INTO authors (name) SELECT unnest(ARRAY['Ada', 'Bob', 'Cyd']);
INSERT INTO books (author_id, title) SELECT id, name || ' ' || n FROM authors, generate_series(1, 3) n;
INSERT INTO pages SELECT row_number() OVER (ORDER BY title, n), id FROM books, generate_series(1, 2) n;
INSERT INTO loans SELECT 1, id FROM books WHERE title = 'Ada 1';
INSERT INTO notes SELECT 1, id FROM books WHERE title = 'Ada 1';
CREATE VIEW state AS
SELECT a.name, a.deleted_at IS NOT NULL AS deleted,
       (SELECT string_agg(right(b.title, 1), '' ORDER BY b.title) FILTER (WHERE b.deleted_at IS NULL) FROM books b WHERE b.author_id = a.id) AS books,
       (SELECT count(*) FROM pages p JOIN books b ON b.id = p.book_id WHERE b.author_id = a.id AND p.deleted_at IS NULL) AS pages
  FROM authors a;
SELECT * FROM state ORDER BY name;

-- an intercepted DELETE reports 0 rows, and RETURNING is empty; the time is the transaction's
BEGIN;
DELETE FROM books WHERE title = 'Ada 2' RETURNING title;
SELECT count(*) FROM books WHERE title = 'Ada 2' AND deleted_at = now() AND deletion_id IS NOT NULL;
COMMIT;
WITH d AS (DELETE FROM books WHERE title = 'Bob 2' RETURNING 1) SELECT count(*) FROM d;
DELETE FROM books WHERE title = 'Ada 2';            -- it is deleted already
SELECT count(DISTINCT deletion_id), count(DISTINCT deleted_at) FROM books WHERE deleted_at IS NOT NULL;

-- RESTRICT and SET NULL do not stand in the way, CASCADE goes on; all of it under one id
DELETE FROM authors WHERE name IN ('Ada', 'Bob');
SELECT * FROM state ORDER BY name;
SELECT count(DISTINCT deletion_id) FROM (SELECT deletion_id FROM authors UNION SELECT deletion_id FROM books WHERE title NOT LIKE '% 2' UNION
                                         SELECT p.deletion_id FROM pages p JOIN books b ON b.id = p.book_id WHERE b.title NOT LIKE '% 2') d;
SELECT count(book_id) FROM notes;

-- exactly its rows come back: not what was deleted before, nor what went in the same statement
SELECT techally.restore_deleted('lib.authors', id) FROM authors WHERE name = 'Ada';
SELECT techally.restore_deleted('lib.authors', id) FROM authors WHERE name = 'Ada';
SELECT * FROM state ORDER BY name;
SELECT count(*) FROM (SELECT deletion_id FROM authors WHERE deleted_at IS NULL UNION ALL SELECT deletion_id FROM books WHERE deleted_at IS NULL) l
 WHERE deletion_id IS NOT NULL;
SELECT (raised(format('SELECT techally.restore_deleted(''books'', %L)', id))).* FROM books WHERE title = 'Bob 1';
SELECT techally.restore_deleted('books', id) FROM books WHERE title = 'Ada 2';
SELECT techally.restore_deleted('authors'::regclass, id) FROM authors WHERE name = 'Bob';
SELECT * FROM state ORDER BY name;

-- the same in one transaction, deletion after deletion
BEGIN;
DELETE FROM books WHERE title = 'Cyd 1';
DELETE FROM authors WHERE name = 'Cyd';
SELECT techally.restore_deleted('authors', id) FROM authors WHERE name = 'Cyd';
SELECT * FROM state WHERE name = 'Cyd';
ROLLBACK;

-- nobody comes to refer to a deleted row
DELETE FROM books WHERE title = 'Ada 1';
SELECT (raised(format('INSERT INTO loans VALUES (2, %L)', id))).* FROM books WHERE title = 'Ada 1';
INSERT INTO loans SELECT 2, id FROM books WHERE title = 'Ada 2';
SELECT (raised(format('UPDATE loans SET book_id = %L WHERE id = 2', id))).* FROM books WHERE title = 'Ada 1';
SELECT (raised(format('UPDATE notes SET book_id = %L', id))).code FROM books WHERE title = 'Ada 1';     -- it did before
SELECT (raised(format('INSERT INTO pages VALUES (100, %L)', id))).code FROM books WHERE title = 'Ada 1';
INSERT INTO pages (id, book_id, deleted_at) SELECT 101, id, now() FROM books WHERE title = 'Ada 1';     -- deleted itself
UPDATE loans SET reader = 7, book_id = book_id WHERE id = 1;                                            -- nothing new
INSERT INTO loans VALUES (3, NULL);
COPY loans (id, book_id) FROM stdin;
5	00000000-0000-0000-0000-000000000000
\.

-- soft_delete by name, and by regclass
SELECT techally.soft_delete('lib.books', id), techally.soft_delete('books', id), techally.soft_delete('books'::regclass, id) FROM books WHERE title = 'Cyd 3';
CREATE TABLE "Odd Name" ("Id" uuid PRIMARY KEY, v text);
SELECT techally.enable_soft_delete('"Odd Name"');
INSERT INTO "Odd Name" SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid FROM generate_series(1, 4) n;
SELECT techally.soft_delete('"Odd Name"', '00000000-0000-0000-0000-000000000001'),
       techally.soft_delete('lib."Odd Name"', '00000000-0000-0000-0000-000000000002'),
       techally.soft_delete('Odd Name', '00000000-0000-0000-0000-000000000003'),
       techally.restore_deleted('Odd Name', '00000000-0000-0000-0000-000000000003');
SELECT s, (raised(format('SELECT techally.soft_delete(%L, ''00000000-0000-0000-0000-000000000001'')', s))).*
  FROM unnest(ARRAY['books; DROP TABLE lib.books; --', 'lib.books WHERE true; --', '"books', 'lib.nothing', 'nowhere.books', 'a.b.c.d', '', '.', 'state']) s;
SELECT s, (raised(format('SELECT techally.%s', s))).code FROM unnest(ARRAY['soft_delete(''books'', ''no uuid'')', 'soft_delete(''books'', NULL)',
       'soft_delete(NULL::text, gen_random_uuid())', 'soft_delete(0::regclass, gen_random_uuid())', 'soft_delete(''books'', ''00000000-0000-0000-0000-000000000000'')',
       'restore_deleted(''books'', ''00000000-0000-0000-0000-000000000000'')', 'soft_delete(''loans'', gen_random_uuid())']) s;
SELECT count(*) FROM books;

-- set and cleared by hand, dependents follow
UPDATE authors SET deleted_at = now() WHERE name IN ('Bob', 'Cyd');
SELECT * FROM state ORDER BY name;
UPDATE authors SET deleted_at = NULL WHERE name IN ('Bob', 'Cyd');
SELECT * FROM state ORDER BY name;
UPDATE authors SET deleted_at = now() WHERE name = 'Bob';
SELECT (raised('UPDATE books SET deleted_at = NULL WHERE title = ''Bob 1''')).*;
SELECT techally.restore_deleted('authors', id) FROM authors WHERE name = 'Bob';
SELECT * FROM state ORDER BY name;

-- triggers see an UPDATE, and the caller's search_path
CREATE TABLE seen (what text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen VALUES (TG_OP || ' ' || TG_LEVEL || coalesce((SELECT ' of ' || count(*) FROM changed), ''));
    RETURN NULL;
END $$;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen VALUES ('stamp'); NEW.updated_at := now();
    RETURN CASE WHEN OLD.title <> 'kept' THEN NEW END;
END $$;
CREATE TRIGGER see AFTER UPDATE ON books REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION see();
CREATE TRIGGER stamp BEFORE UPDATE ON books FOR EACH ROW EXECUTE FUNCTION stamp();
DELETE FROM books WHERE title LIKE 'Cyd _' AND deleted_at IS NULL;
SELECT what, count(*) FROM seen GROUP BY 1 ORDER BY 1;
INSERT INTO books (author_id, title) SELECT id, 'kept' FROM authors WHERE name = 'Ada';
DELETE FROM books WHERE title = 'kept';
SELECT deleted_at IS NULL, techally.soft_delete('books', id) FROM books WHERE title = 'kept';
DROP TRIGGER see ON books;
DROP TRIGGER stamp ON books;
-- one that is changed by a trigger of its own DELETE
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE books SET title = title || '!' WHERE id = OLD.id; RETURN OLD; END $$;
CREATE TRIGGER zz_meddle BEFORE DELETE ON books FOR EACH ROW EXECUTE FUNCTION meddle();
CREATE TRIGGER aa_meddle BEFORE DELETE ON books FOR EACH ROW EXECUTE FUNCTION meddle();
SELECT (raised('DELETE FROM books WHERE title = ''Ada 3''')).code;
DROP TRIGGER aa_meddle ON books;
SELECT (raised('DELETE FROM books WHERE title = ''Ada 3''')).code;     -- the other one does not get to it
DROP TRIGGER zz_meddle ON books;
SELECT techally.restore_deleted('books', id) FROM books WHERE title = 'Ada 3';

-- all forms of DELETE: in a function, a cursor, a join that finds a row twice, EXPLAIN ANALYZE, a rollback
CREATE FUNCTION remove(t text) RETURNS void LANGUAGE sql AS 'DELETE FROM books WHERE title = t';
SELECT remove('Ada 3');
SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Ada 3';
SELECT techally.restore_deleted('books', id) FROM books WHERE title = 'Ada 3';
DO $$
DECLARE c CURSOR FOR SELECT * FROM books WHERE title = 'Ada 3' FOR UPDATE; r record;
BEGIN
    OPEN c; FETCH c INTO r; DELETE FROM books WHERE CURRENT OF c; CLOSE c;
    ASSERT (SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Ada 3');
    BEGIN
        DELETE FROM books WHERE title = 'Ada 2';
        RAISE EXCEPTION 'back';
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
    ASSERT (SELECT deleted_at IS NULL FROM books WHERE title = 'Ada 2');
END $$;
SELECT techally.restore_deleted('books', id) FROM books WHERE title = 'Ada 3';
DELETE FROM books b USING pages p WHERE p.book_id = b.id AND b.title = 'Ada 3';
SELECT count(*) FROM books WHERE title = 'Ada 3' AND deleted_at IS NOT NULL;
SELECT techally.restore_deleted('books', id) FROM books WHERE title = 'Ada 3';
DO $$ DECLARE l text; BEGIN FOR l IN EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) DELETE FROM books WHERE title = 'Ada 3' LOOP END LOOP; END $$;
SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Ada 3';
PREPARE d(text) AS DELETE FROM books WHERE title = $1;
EXECUTE d('Ada 2');
SELECT techally.restore_deleted('books', id) FROM books WHERE title IN ('Ada 2', 'Ada 3');
ALTER TABLE books RENAME TO tomes;
EXECUTE d('Ada 2');
SELECT techally.restore_deleted('tomes', id) FROM tomes WHERE title = 'Ada 2';
SELECT target FROM techally.soft_delete_tables ORDER BY target::text;
ALTER SCHEMA lib RENAME TO lib2;
SET search_path = lib2, public;
EXECUTE d('Ada 2');
SELECT techally.restore_deleted('lib2.tomes', id) FROM tomes WHERE title = 'Ada 2';
SELECT (raised(format('INSERT INTO loans VALUES (9, %L)', id))).code FROM tomes WHERE title = 'Ada 1';
ALTER TABLE tomes RENAME TO books;
ALTER SCHEMA lib2 RENAME TO lib;
SET search_path = lib, public;
DEALLOCATE d;

-- really deleting: for those with TRUNCATE, whoever sets the GUC
CREATE ROLE regress_librarian;
CREATE ROLE regress_reader;
GRANT USAGE ON SCHEMA lib TO regress_librarian, regress_reader;
GRANT SELECT, DELETE ON books, authors TO regress_reader;
GRANT SELECT, DELETE, TRUNCATE ON books TO regress_librarian;
SET ROLE regress_reader;
DELETE FROM books WHERE title = 'Bob 3';                        -- DELETE is enough
SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Bob 3';
SET techally.hard_delete = on;
SELECT (raised('DELETE FROM lib.books WHERE title = ''Bob 1''')).*;
SET ROLE regress_librarian;
DELETE FROM books WHERE title = 'Bob 3' RETURNING title;
RESET ROLE;
-- and the child goes with a parent that is really gone, deleted or not
DELETE FROM authors WHERE name = 'Bob';
RESET techally.hard_delete;
SELECT count(*) FROM books WHERE title LIKE 'Bob%';
SELECT count(*) FROM pages WHERE id BETWEEN 7 AND 12;
-- a DELETE of a trigger's is one as any other
CREATE FUNCTION drop_books() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM books WHERE title = 'Ada 2'; RETURN NULL; END $$;
CREATE TRIGGER drop_books AFTER DELETE ON loans FOR EACH ROW EXECUTE FUNCTION drop_books();
DELETE FROM loans WHERE id = 3;
SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Ada 2';
DROP TRIGGER drop_books ON loans;

-- with the caller's own rights
SET ROLE regress_reader;
SELECT (raised(format('SELECT techally.soft_delete(''lib.books'', %L)', id))).* FROM books WHERE title = 'Cyd 2';
SELECT (raised(format('SELECT techally.restore_deleted(''lib.books'', %L)', id))).* FROM books WHERE title = 'Cyd 2';
SELECT (raised('SELECT techally.soft_delete(''lib.pages'', gen_random_uuid())')).*;
SELECT s, (raised('SELECT techally.' || s)).code FROM unnest(ARRAY['enable_soft_delete(''lib.loans'')', 'disable_soft_delete(''lib.books'')',
    'live_unique(''lib.books'', ''{title}'')', 'purge_deleted(''lib.books'', ''0'')', 'soft_delete_health()']) s;
SELECT (raised('INSERT INTO techally.soft_delete_tables VALUES (''lib.loans'')')).code;
RESET ROLE;
GRANT EXECUTE ON FUNCTION techally.enable_soft_delete(regclass), techally.disable_soft_delete(regclass), techally.live_unique(regclass, name[]),
    techally.purge_deleted(regclass, interval, integer) TO regress_reader;
SET ROLE regress_reader;
SELECT s, (raised('SELECT techally.' || s)).* FROM unnest(ARRAY['enable_soft_delete(''lib.loans'')', 'disable_soft_delete(''lib.books'')',
    'live_unique(''lib.books'', ''{title}'')', 'purge_deleted(''lib.books'', ''0'')']) s;
RESET ROLE;
GRANT UPDATE (deleted_at) ON books TO regress_reader;
ALTER TABLE books ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON books TO regress_reader USING (title LIKE 'Ada%' AND deleted_at IS NULL);
SET ROLE regress_reader;
SELECT techally.soft_delete('lib.books', id) FROM books WHERE title = 'Ada 3';      -- a policy that hides it afterwards is no hindrance
RESET ROLE;
SELECT deleted_at IS NOT NULL FROM books WHERE title = 'Ada 3';
SELECT id AS other FROM books WHERE title = 'Cyd 1' \gset
SELECT techally.restore_deleted('books', :'other') \gset
SET ROLE regress_reader;
SELECT (raised(format('SELECT techally.soft_delete(''lib.books'', %L)', :'other'))).code;
DELETE FROM books;
RESET ROLE;
SELECT title, deleted_at IS NOT NULL AS deleted FROM books ORDER BY 1;
DROP POLICY own ON books;
ALTER TABLE books DISABLE ROW LEVEL SECURITY;
ALTER TABLE books FORCE ROW LEVEL SECURITY;

-- unique among the living
SELECT s, (raised('SELECT techally.live_unique(' || s || ')')).* FROM unnest(ARRAY['''authors'', ''{id}''', '''loans'', ''{id}''', '''authors'', ''{}''',
    '''authors'', ''{nothing}''', '''authors'', ''{name,name}''', '''authors'', NULL', '''authors'', ''{NULL}''']) s;
SELECT techally.live_unique('authors', '{name}');
SELECT techally.live_unique('authors', '{name}');
SELECT indexdef FROM pg_indexes WHERE schemaname = 'lib' AND tablename = 'authors' ORDER BY 1;
DELETE FROM authors WHERE name = 'Ada';
INSERT INTO authors (name) VALUES ('Ada');
INSERT INTO authors (name) VALUES ('Ada') ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING;
INSERT INTO authors (name) VALUES ('Ada') ON CONFLICT DO NOTHING;
SELECT (raised('INSERT INTO authors (name) VALUES (''Ada'') ON CONFLICT (name) DO NOTHING')).code;
UPDATE authors SET id = '11111111-1111-1111-1111-111111111111' WHERE name = 'Ada' AND deleted_at IS NULL;
SELECT id AS gone FROM authors WHERE name = 'Ada' AND deleted_at IS NOT NULL \gset
\set VERBOSITY default
SELECT techally.restore_deleted('authors', :'gone');
\set VERBOSITY terse
DELETE FROM authors WHERE id = '11111111-1111-1111-1111-111111111111';
SELECT techally.restore_deleted('authors', :'gone');
CREATE UNIQUE INDEX ON pages (lower(id::text)) WHERE deleted_at IS NULL;
SELECT (raised('SELECT techally.live_unique(''books'', ''{author_id}'')')).code;
-- what a foreign key uses stays
CREATE TABLE seen_names (name text UNIQUE, code text UNIQUE);
CREATE TABLE signs (name text REFERENCES seen_names (name));
SELECT techally.enable_soft_delete('seen_names');
SELECT (raised('SELECT techally.live_unique(''seen_names'', ''{name}'')')).*;
SELECT techally.live_unique('seen_names', '{code}');
DROP TABLE signs, seen_names;

-- purging: by age, oldest first, in batches; what others refer to stays
SELECT techally.purge_deleted('books', '1 hour');
UPDATE books SET deleted_at = now() - '2 days'::interval * right(title, 1)::integer WHERE deleted_at IS NOT NULL AND title ~ ' \d$';
SELECT title FROM books WHERE deleted_at < now() - '1 day'::interval ORDER BY deleted_at;
SELECT techally.purge_deleted('books', '1 day', 1);
SELECT title FROM books WHERE deleted_at < now() - '1 day'::interval ORDER BY deleted_at;
SELECT techally.purge_deleted('books', '1 day');
SET client_min_messages = notice;
SELECT techally.purge_deleted('books', '1 day');
SET client_min_messages = warning;
SELECT title FROM books WHERE deleted_at IS NOT NULL ORDER BY title;
SELECT s, (raised('SELECT techally.purge_deleted(' || s || ')')).* FROM unnest(ARRAY['''books'', ''1 day'', 0', '''books'', ''-1 day''', '''books'', NULL',
    '''loans'', ''1 day''', '''state'', ''1 day''', '0::regclass, ''1 day''']) s;

-- keys of several columns, in another order, with collations and domains; a tree; a circle
CREATE DOMAIN code AS varchar(10) CHECK (VALUE <> '');
CREATE TABLE rooms (building code COLLATE "C", number integer, UNIQUE (number, building));
CREATE TABLE desks (id integer PRIMARY KEY, room_number bigint, room_building text,
                    FOREIGN KEY (room_building, room_number) REFERENCES rooms (building, number) ON DELETE CASCADE);
SELECT techally.enable_soft_delete('desks');
SELECT techally.enable_soft_delete('rooms');
INSERT INTO rooms VALUES ('A', 1), ('A', 2), ('B', 1);
INSERT INTO desks VALUES (1, 1, 'A'), (2, 1, 'A'), (3, 2, 'A'), (4, 1, 'B'), (5, NULL, 'A');
DELETE FROM rooms WHERE building = 'A' AND number = 1;
SELECT id FROM desks WHERE deleted_at IS NOT NULL ORDER BY id;
SELECT (raised('INSERT INTO desks VALUES (6, 1, ''A'')')).*;
UPDATE rooms SET deleted_at = NULL;
SELECT id FROM desks WHERE deleted_at IS NOT NULL ORDER BY id;
SELECT (raised('SELECT techally.soft_delete(''rooms'', gen_random_uuid())')).*;
CREATE TABLE tree (id integer PRIMARY KEY, parent integer REFERENCES tree ON DELETE CASCADE);
SELECT techally.enable_soft_delete('tree');
INSERT INTO tree SELECT n, CASE WHEN n > 1 THEN n / 2 END FROM generate_series(1, 3000) n;
DELETE FROM tree WHERE id = 3;
SELECT count(*) FILTER (WHERE deleted_at IS NOT NULL), count(DISTINCT deletion_id) FROM tree;
DELETE FROM tree WHERE id = 1;
SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(DISTINCT deletion_id) FROM tree;
UPDATE tree SET deleted_at = NULL WHERE id = 1;
SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(DISTINCT deletion_id) FROM tree;
UPDATE tree SET deleted_at = NULL WHERE id = 3;
SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(deletion_id) FROM tree;
CREATE TABLE hens (id integer PRIMARY KEY, egg integer);
CREATE TABLE eggs (id integer PRIMARY KEY, hen integer REFERENCES hens ON DELETE CASCADE);
ALTER TABLE hens ADD FOREIGN KEY (egg) REFERENCES eggs ON DELETE CASCADE;
SELECT (raised('SELECT techally.enable_soft_delete(''hens'')')).code, (raised('SELECT techally.enable_soft_delete(''eggs'')')).code;
SELECT techally.enable_soft_delete_together('{hens,eggs}');
INSERT INTO hens VALUES (1), (2);
INSERT INTO eggs VALUES (1, 1), (2, 2);
UPDATE hens SET egg = 3 - id;
DELETE FROM hens WHERE id = 1;
SELECT (SELECT count(deleted_at) FROM hens), (SELECT count(deleted_at) FROM eggs);
UPDATE hens SET deleted_at = NULL WHERE id = 1;
SELECT (SELECT count(deleted_at) FROM hens), (SELECT count(deleted_at) FROM eggs);
-- two parents: what went with both comes back with the second
CREATE TABLE one (id integer PRIMARY KEY);
CREATE TABLE two (id integer PRIMARY KEY);
CREATE TABLE shared (id integer PRIMARY KEY, one integer REFERENCES one ON DELETE CASCADE, two integer REFERENCES two ON DELETE CASCADE);
SELECT techally.enable_soft_delete_together('{one,two,shared}');
INSERT INTO one VALUES (1);
INSERT INTO two VALUES (1);
INSERT INTO shared VALUES (1, 1, 1);
WITH a AS (DELETE FROM one) DELETE FROM two;
UPDATE one SET deleted_at = NULL;
SELECT count(deleted_at) FROM shared;
SELECT (raised('UPDATE shared SET deleted_at = NULL')).code;
UPDATE two SET deleted_at = NULL;
SELECT count(deleted_at) FROM shared;

-- a dependent that came later and cannot be deleted softly
CREATE TABLE clutches (id integer PRIMARY KEY, hen integer REFERENCES hens ON DELETE CASCADE);
SELECT * FROM techally.soft_delete_health() ORDER BY message;
DELETE FROM hens WHERE id = 1;
UPDATE hens SET deleted_at = NULL WHERE id = 1;
INSERT INTO clutches VALUES (1, 1);
SELECT (raised('DELETE FROM hens')).*;
SELECT techally.enable_soft_delete('clutches');
SELECT * FROM techally.soft_delete_health();
DELETE FROM hens WHERE id = 1;
SELECT (raised('INSERT INTO clutches VALUES (2, 1)')).code;
-- a deferrable foreign key has a deferrable guard
CREATE TABLE nests (id integer PRIMARY KEY, hen integer REFERENCES hens DEFERRABLE INITIALLY DEFERRED);
SELECT techally.enable_soft_delete('hens');
BEGIN;
INSERT INTO nests VALUES (1, 9), (2, 1);
INSERT INTO hens VALUES (9);
UPDATE nests SET hen = 9;
COMMIT;
BEGIN;
INSERT INTO nests VALUES (3, 1);
COMMIT;
SELECT id, hen FROM nests ORDER BY 1;
ALTER TABLE hens DISABLE TRIGGER techally_soft_delete;
ALTER TABLE nests DISABLE TRIGGER techally_parent_hens;
SELECT * FROM techally.soft_delete_health() ORDER BY message;
SELECT techally.enable_soft_delete('hens');
SELECT * FROM techally.soft_delete_health();

-- disabling
SELECT (raised('SELECT techally.disable_soft_delete(''eggs'')')).*;
SELECT techally.disable_soft_delete('authors');
SELECT (raised('SELECT techally.disable_soft_delete(''authors'')')).*;
SELECT tgname FROM pg_trigger WHERE tgrelid IN ('authors'::regclass, 'books'::regclass) AND NOT tgisinternal ORDER BY 1;
SELECT count(deleted_at) FROM authors;
SELECT techally.enable_soft_delete('authors');
-- what is dropped is forgotten
DROP TABLE one, two, shared;
SELECT count(*) FROM techally.soft_delete_tables WHERE target::text ~ 'one|two|shared|^[0-9]';
ALTER TABLE desks DROP COLUMN deleted_at CASCADE;
SELECT count(*) FROM techally.soft_delete_tables WHERE target = 'desks'::regclass;
SELECT (raised('DELETE FROM desks')).*;
SELECT techally.enable_soft_delete('desks');
DELETE FROM desks;
SELECT count(deleted_at) FROM desks;
-- what cannot be one
CREATE TABLE no_time (deleted_at date);
CREATE TABLE no_id (deletion_id integer);
CREATE TABLE no_null (deleted_at timestamptz NOT NULL);
CREATE TABLE heir () INHERITS (no_id);
CREATE TABLE by_time (id integer, deleted_at timestamptz) PARTITION BY LIST (deleted_at);
CREATE TABLE by_time_alive PARTITION OF by_time FOR VALUES IN (NULL);
CREATE TABLE by_life (id integer, deleted_at timestamptz) PARTITION BY LIST ((deleted_at IS NULL));
CREATE TABLE by_half (id integer, deleted_at timestamptz) PARTITION BY RANGE ((id / 2));
CREATE TEMPORARY TABLE temporary (id integer);
SELECT s, (raised(format('SELECT techally.enable_soft_delete(%L)', s))).* FROM unnest(ARRAY['no_time', 'no_id', 'no_null', 'heir', 'by_time', 'by_time_alive', 'by_life', 'by_half',
    'temporary', 'state', 'pg_class', 'nothing', NULL]) s;
CREATE TABLE local_time (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), deleted_at timestamp(0));
SELECT techally.enable_soft_delete('local_time');
INSERT INTO local_time DEFAULT VALUES;
DELETE FROM local_time;
SELECT deleted_at - localtimestamp BETWEEN '-2 s' AND '2 s', techally.purge_deleted('local_time', '-0 s') >= 0 FROM local_time;

-- many rows, more than are kept in memory, some of them met twice
CREATE TABLE many (id integer PRIMARY KEY, v integer);
SELECT techally.enable_soft_delete('many');
INSERT INTO many SELECT n, n % 3 FROM generate_series(1, 200000) n;
DELETE FROM many m USING generate_series(1, 2) twice, generate_series(0, 1) w WHERE m.v = w;
SELECT count(deleted_at), count(DISTINCT deletion_id) FROM many;
SELECT techally.purge_deleted('many', '0', 100000), techally.purge_deleted('many', '0', 100000);
SELECT count(*), count(deleted_at) FROM many;

-- the functions themselves
SELECT s, (raised('SELECT techally.' || s || '()')).code FROM unnest(ARRAY['soft_delete_row', 'deleted_at_changed', 'note_row_move', 'refuse_deleted_parent']) s;
CREATE TRIGGER wrong AFTER INSERT ON many FOR EACH ROW EXECUTE FUNCTION techally.soft_delete_row();
SELECT (raised('INSERT INTO many VALUES (0)')).*;
DROP TRIGGER wrong ON many;
CREATE TRIGGER wrong AFTER INSERT ON many FOR EACH ROW EXECUTE FUNCTION techally.refuse_deleted_parent();
SELECT (raised('INSERT INTO many VALUES (0)')).*;

DROP SCHEMA lib CASCADE;
SELECT count(*) FROM techally.soft_delete_tables WHERE target::text ~ 'lib\.|^[0-9]';
REVOKE ALL ON FUNCTION techally.enable_soft_delete(regclass), techally.disable_soft_delete(regclass), techally.live_unique(regclass, name[]),
    techally.purge_deleted(regclass, interval, integer) FROM regress_reader;
DROP ROLE regress_librarian, regress_reader;
