-- Soft delete of partitioned tables: partitions named themselves, rows that move,
-- references in both directions.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA parts;
SET search_path = parts, public;
CREATE FUNCTION raised(statement text, OUT code text, OUT message text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    code := '00000';
EXCEPTION WHEN OTHERS THEN
    code := SQLSTATE; message := SQLERRM;
END $$;

CREATE TABLE people (id integer PRIMARY KEY);
CREATE TABLE events (id uuid DEFAULT gen_random_uuid(), day integer, person integer REFERENCES people, what text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE events_mid (what text, extra integer, person integer, day integer NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid());
ALTER TABLE events_mid DROP COLUMN extra;
CREATE TABLE events_high PARTITION OF events FOR VALUES FROM (20) TO (30) PARTITION BY RANGE (day);
CREATE TABLE events_high_a PARTITION OF events_high FOR VALUES FROM (20) TO (28);
CREATE TABLE events_high_rest PARTITION OF events_high DEFAULT;
CREATE TABLE remarks (id integer PRIMARY KEY, event uuid, day integer, FOREIGN KEY (event, day) REFERENCES events (id, day) ON DELETE CASCADE ON UPDATE CASCADE);
SELECT techally.enable_soft_delete('people');
SELECT techally.enable_soft_delete('remarks');
SELECT techally.enable_soft_delete('events');
ALTER TABLE events ATTACH PARTITION events_mid FOR VALUES FROM (10) TO (20);    -- lacks our columns
ALTER TABLE events_mid ADD COLUMN deletion_id uuid, ADD COLUMN deleted_at timestamptz;
ALTER TABLE events ATTACH PARTITION events_mid FOR VALUES FROM (10) TO (20);
SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgname LIKE 'techally%' AND tgrelid::regclass::text ~ '^[a-z_]*$' ORDER BY tgrelid::regclass::text, 2;

INSERT INTO people VALUES (1), (2);
INSERT INTO events (day, person, what) SELECT n, 1 + n % 2, CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END FROM generate_series(0, 29) n;
INSERT INTO remarks SELECT row_number() OVER (ORDER BY day), id, day FROM events;

-- by the table's name and by a partition's
DELETE FROM events WHERE day IN (1, 11, 21);
DELETE FROM events_mid WHERE day IN (12, 13);
DELETE FROM events_high WHERE day = 22;
SELECT day, tableoid::regclass FROM events WHERE deleted_at IS NOT NULL ORDER BY 1;
SELECT string_agg(day::text, ' ' ORDER BY day) FROM remarks WHERE deleted_at IS NOT NULL;
SELECT count(DISTINCT deletion_id) FROM events WHERE day IN (1, 11, 21);
SELECT techally.restore_deleted('events', id) FROM events WHERE day = 22;
SELECT techally.restore_deleted('events_mid', id), (raised(format('SELECT techally.soft_delete(''parts.events_low'', %L)', id))).code FROM events WHERE day = 11;
SELECT techally.restore_deleted('events', id) FROM events WHERE day = 11;
SELECT string_agg(day::text, ' ' ORDER BY day) FROM remarks WHERE deleted_at IS NOT NULL;
-- and nobody comes to refer to one
SELECT (raised(format('INSERT INTO remarks VALUES (100, %L, %s)', id, day))).* FROM events WHERE day = 12;
UPDATE events SET deleted_at = now() WHERE day IN (5, 15);
UPDATE events_mid SET deleted_at = NULL WHERE day = 15;
SELECT string_agg(day::text, ' ' ORDER BY day) FROM remarks WHERE deleted_at IS NOT NULL;

-- a row that moves to another partition moves, deleted or not, also where what it refers to is deleted
DELETE FROM people WHERE id = 1;
SELECT (raised('INSERT INTO events (day, person) VALUES (3, 1)')).*;
CREATE TABLE before AS SELECT id, day, deleted_at IS NOT NULL AS deleted FROM events;
UPDATE events SET day = day - 10 WHERE day BETWEEN 10 AND 19;
UPDATE events_high SET day = 29 WHERE day = 27;
UPDATE events_high SET day = 27 WHERE day = 29 AND person = 2;
SELECT tableoid::regclass, count(*), count(deleted_at) FROM events GROUP BY 1 ORDER BY tableoid::regclass::text;
SELECT count(*) FROM before b JOIN events e ON e.id = b.id AND b.deleted = (e.deleted_at IS NOT NULL);
SELECT count(*) FROM remarks r JOIN events e ON e.id = r.event AND e.day = r.day;
-- moved to refer to a deleted one
SELECT (raised('UPDATE events SET day = 12, person = 1 WHERE day = 23 AND person = 2')).*;
SELECT (raised('UPDATE events SET day = 12 WHERE day = 24')).*;
-- a trigger that keeps the row from moving, and a DELETE afterwards
CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER zz_stay BEFORE UPDATE ON events_high_a FOR EACH ROW EXECUTE FUNCTION stay();
UPDATE events SET day = 0 WHERE day = 26;
DROP TRIGGER zz_stay ON events_high_a;
DELETE FROM events WHERE day = 26;
SELECT deleted_at IS NOT NULL FROM events WHERE day = 26;
-- by a BEFORE trigger that changes the key
CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.day := 19; RETURN NEW; END $$;
CREATE TRIGGER aa_shift BEFORE UPDATE ON events_high_rest FOR EACH ROW EXECUTE FUNCTION shift();
UPDATE events SET what = what WHERE day = 28;
DROP TRIGGER aa_shift ON events_high_rest;
SELECT tableoid::regclass FROM events WHERE day = 19;
-- moves and deletions in one statement
WITH moved AS (UPDATE events SET day = 10 WHERE day = 20) DELETE FROM events WHERE day = 25;
SELECT day, tableoid::regclass, deleted_at IS NOT NULL AS deleted FROM events WHERE day IN (10, 20, 25, 28) ORDER BY 1;

-- really gone
SET techally.hard_delete = on;
DELETE FROM events WHERE day = 10;
RESET techally.hard_delete;
SELECT count(*) FROM remarks WHERE day = 10;
SELECT techally.purge_deleted('events', '0') > 0;
SELECT count(deleted_at), count(*) FROM events;
SELECT count(*) FROM remarks r WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = r.event);

-- partitions that come and go
CREATE TABLE events_later PARTITION OF events FOR VALUES FROM (30) TO (40);
INSERT INTO events (day, person) VALUES (31, 2);
DELETE FROM events WHERE day = 31;
SELECT deleted_at IS NOT NULL FROM events_later;
ALTER TABLE events DETACH PARTITION events_later;
DELETE FROM events_later;
SELECT count(*) FROM events_later;
SELECT * FROM techally.soft_delete_health();
SELECT techally.live_unique('events', '{person,what,day,id}');
SELECT (raised('SELECT techally.live_unique(''events'', ''{person}'')')).code;
SELECT techally.disable_soft_delete('events');
DELETE FROM events;
SELECT count(*) FROM events;
SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'events%' AND tgname LIKE 'techally%' AND tgname NOT LIKE '%parent%';
-- a partition that is loaded again, as pg_restore does it with several jobs
CREATE TABLE homes (id integer PRIMARY KEY);
CREATE TABLE cats (id integer, home integer REFERENCES homes) PARTITION BY RANGE (id);
CREATE TABLE cats_1 PARTITION OF cats FOR VALUES FROM (0) TO (10);
SELECT techally.enable_soft_delete('homes');
INSERT INTO homes VALUES (1), (2);
DELETE FROM homes WHERE id = 1;
BEGIN;
TRUNCATE ONLY cats_1;
COPY cats_1 (id, home) FROM stdin;
1	1
2	2
\.
SELECT (raised('INSERT INTO cats_1 VALUES (3, 1)')).code;
COMMIT;
SELECT * FROM cats ORDER BY 1;
COPY cats_1 (id, home) FROM stdin;
3	1
\.
BEGIN;
CREATE TABLE cats_2 PARTITION OF cats FOR VALUES FROM (10) TO (20);
COPY cats_2 (id, home) FROM stdin;
11	1
\.
ROLLBACK;
DROP SCHEMA parts CASCADE;
