-- State machines: definitions, what the trigger lets through, history.
SET client_min_messages = warning;
CREATE SCHEMA machines_test;
SET search_path = machines_test, pg_catalog;

CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;

-- what ships
SELECT name, builtin, jsonb_array_length(definition -> 'transitions') AS transitions FROM techally.machines ORDER BY name;
\pset format unaligned
\pset tuples_only on
SELECT techally.machine_diagram('techally');
SELECT techally.machine_diagram('simple', 'mermaid');
SELECT techally.machine_diagram('cloudlab', 'dot');
\pset tuples_only off
\pset format aligned

-- definitions that are none
CREATE FUNCTION why(definition jsonb) RETURNS TABLE (code text, detail text)
LANGUAGE sql AS $$ SELECT r.code, r.detail FROM raised(format('SELECT techally.define_machine(%L, %L)', 'bad', definition)) r $$;
SELECT why.* FROM unnest(ARRAY[
    'null', '1', '"x"', '[]', '{}',
    '{"transitions": []}',
    '{"initial": "a"}',
    '{"initial": null, "transitions": []}',
    '{"initial": 1, "transitions": []}',
    '{"initial": "", "transitions": []}',
    '{"initial": ["a"], "transitions": []}',
    '{"initial": "a", "transitions": {}}',
    '{"initial": "a", "transitions": null}',
    '{"initial": "a", "transitions": "b"}',
    '{"initial": "a", "transitions": [], "extra": 1}',
    '{"initial": "a", "transitions": [1]}',
    '{"initial": "a", "transitions": [["a"]]}',
    '{"initial": "a", "transitions": [{}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "to": "a"}]}',
    '{"initial": "a", "transitions": [{"from": "a", "to": "b"}]}',
    '{"initial": "a", "transitions": [{"event": "", "from": "a", "to": "b"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": 2}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": {"x": 1}}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b", "effect": "explode"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b", "effect": 3}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "a", "effect": "sale"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b", "color": "red"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b"}, {"event": "go", "from": "a", "to": "c"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b"}, {"event": "go", "from": "a", "to": "b"}]}',
    '{"initial": "a", "transitions": [{"event": "go", "from": "a", "to": "b"}, {"event": "go", "from": "c", "to": "d"}, {"event": "go", "from": "d", "to": "c"}]}',
    '{"initial": "z", "transitions": [{"event": "go", "from": "a", "to": "b"}]}',
    '{"initial": "a", "states": ["a", "b"], "transitions": [{"event": "go", "from": "a", "to": "c"}]}',
    '{"initial": "a", "states": ["a", "b"], "transitions": []}',
    '{"initial": "c", "states": ["a", "b"], "transitions": [{"event": "go", "from": "a", "to": "b"}]}',
    '{"initial": "a", "states": ["a", "a"], "transitions": []}',
    '{"initial": "a", "states": "a", "transitions": []}']::jsonb[]) AS d, why(d);
SELECT code, detail FROM why(jsonb_build_object('initial', repeat('x', 64), 'transitions', '[]'::jsonb));
SELECT code, message FROM raised($$SELECT techally.define_machine('bad', '{"initial": ')$$);
SELECT code, message FROM raised($$SELECT techally.define_machine(NULL, '{}')$$);
SELECT code, message FROM raised($$SELECT techally.define_machine('bad', NULL)$$);
SELECT code, detail FROM raised($$SELECT techally.define_machine('', '{"initial": "a", "transitions": []}')$$);
SELECT code, message FROM raised($$INSERT INTO techally.machines VALUES ('bad', '{"initial": "a"}')$$);
SELECT code, message FROM raised($$UPDATE techally.machines SET definition = '{}' WHERE name = 'simple'$$);
SELECT code, message FROM raised($$UPDATE techally.machines SET name = 'easy' WHERE name = 'simple'$$);
SELECT name FROM techally.machines WHERE name IN ('bad', '', 'easy');

-- small ones that are
SELECT techally.define_machine('single', '{"initial": "only", "transitions": []}');
SELECT techally.define_machine('loop', '{"initial": "a", "states": ["b", "a"], "transitions": [
    {"event": "go", "from": "a", "to": "b"}, {"event": "back", "from": "b", "to": "a"}, {"event": "stay", "from": "b", "to": "b"}]}');
SELECT techally.define_machine('odd names', '{"initial": "not yet: \"new\"", "transitions": [
    {"event": "say \"hi\"; twice", "from": "not yet: \"new\"", "to": "end"},
    {"event": "a\\b", "from": "end", "to": "ünïcode"}]}');
\pset format unaligned
\pset tuples_only on
SELECT techally.machine_diagram('odd names');
SELECT techally.machine_diagram('odd names', 'dot');
SELECT techally.machine_diagram('single');
\pset tuples_only off
\pset format aligned
SELECT code, message FROM raised($$SELECT techally.machine_diagram('nothing')$$);
SELECT code, message FROM raised($$SELECT techally.machine_diagram('simple', 'png')$$);
SELECT code, message FROM raised($$SELECT techally.machine_diagram(NULL)$$);
SELECT code, message FROM raised($$SELECT techally.machine_diagram('simple', NULL)$$);

-- a preset that changes is one no longer, and a row of its name takes its place
BEGIN;
UPDATE techally.machines SET definition = jsonb_set(definition, '{transitions,0,event}', '"begin"') WHERE name = 'simple';
SELECT builtin FROM techally.machines WHERE name = 'simple';
ROLLBACK;
BEGIN;
SELECT techally.define_machine(name, definition) FROM techally.machines WHERE name = 'simple';
SELECT builtin FROM techally.machines WHERE name = 'simple';
COPY techally.machines FROM stdin;
simple	{"initial": "x", "transitions": []}	f
mine	{"initial": "x", "transitions": []}	t
\.
SELECT name, definition, builtin FROM techally.machines WHERE name IN ('mine', 'simple') ORDER BY name;
ROLLBACK;
SELECT techally.define_machine('door', '{"initial": "closed", "transitions": [
    {"event": "open", "from": "closed", "to": "open"},
    {"event": "push", "from": "closed", "to": "open"},
    {"event": "close", "from": "open", "to": "closed"},
    {"event": "lock", "from": "closed", "to": "locked"},
    {"event": "unlock", "from": "locked", "to": "closed"},
    {"event": "brick up", "from": "locked", "to": "wall"}]}');

-- attaching: what is refused
CREATE TABLE doors (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), state text, width integer);
CREATE TABLE door_history (
    door uuid NOT NULL REFERENCES doors, sequence integer NOT NULL, from_status text, to_status text NOT NULL,
    event text, actor uuid, note text, request_id text, created_at timestamptz NOT NULL, PRIMARY KEY (door, sequence));
CREATE VIEW doors_view AS SELECT * FROM doors;
CREATE TEMP TABLE temporary_doors (state text);
SELECT r.code, r.message, r.detail FROM unnest(ARRAY[
    $$SELECT techally.attach_machine(NULL, 'state', 'door')$$,
    $$SELECT techally.attach_machine('doors', NULL, 'door')$$,
    $$SELECT techally.attach_machine('doors', 'state', NULL)$$,
    $$SELECT techally.attach_machine('gates', 'state', 'door')$$,
    $$SELECT techally.attach_machine(1, 'state', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'status', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'ctid', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'width', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'id', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'state', 'gate')$$,
    $$SELECT techally.attach_machine('doors_view', 'state', 'door')$$,
    $$SELECT techally.attach_machine('temporary_doors', 'state', 'door')$$,
    $$SELECT techally.attach_machine('pg_catalog.pg_class', 'relname', 'door')$$,
    $$SELECT techally.attach_machine('doors', 'state', 'door', 'doors')$$,
    $$SELECT techally.attach_machine('doors', 'state', 'door', 'doors_view')$$,
    $$SELECT techally.detach_machine('doors')$$,
    $$SELECT techally.detach_machine('doors', 'state')$$,
    $$SELECT techally.detach_machine(NULL)$$]) AS s, raised(s) AS r;

-- histories that cannot be one
CREATE FUNCTION history_of(columns text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE bad_history (%s)', columns);
    RETURN QUERY SELECT * FROM raised($r$SELECT techally.attach_machine('doors', 'state', 'door', 'bad_history')$r$);
    DROP TABLE bad_history;
END $$;
SELECT h.code, h.detail FROM unnest(ARRAY[
    'from_status text, to_status text',
    'door uuid REFERENCES doors, other uuid REFERENCES doors, from_status text, to_status text',
    'door uuid REFERENCES doors, from_status text',
    'door uuid REFERENCES doors, to_status text',
    'door uuid REFERENCES doors, from_status integer, to_status text',
    'door uuid REFERENCES doors, from_status text NOT NULL, to_status text',
    'door uuid REFERENCES doors, from_status text, to_status text, event text NOT NULL',
    'door uuid REFERENCES doors, from_status text, to_status text, actor integer',
    'door uuid REFERENCES doors, from_status text, to_status text, sequence text',
    'door uuid REFERENCES doors, from_status text, to_status text, created_at date',
    'door uuid REFERENCES doors, from_status text, to_status text, sequence integer GENERATED ALWAYS AS IDENTITY',
    'door uuid REFERENCES doors, from_status text, to_status text, colour text NOT NULL']) AS c, history_of(c) AS h;
SELECT count(*) FROM techally.machine_attachments WHERE target = 'doors'::regclass;

-- rows that are in no state of the machine
INSERT INTO doors (state) VALUES ('ajar'), ('open'), (NULL);
SELECT * FROM raised($$SELECT techally.attach_machine('doors', 'state', 'door')$$);
DELETE FROM doors;

-- attached, twice over
SELECT techally.attach_machine('doors', 'state', 'door', 'door_history');
SELECT techally.attach_machine('doors', 'state', 'door', 'door_history');
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'doors'::regclass AND NOT tgisinternal ORDER BY tgname;
SELECT target, column_name, machine, history FROM techally.machine_attachments WHERE target = 'doors'::regclass;

INSERT INTO doors (id, width) VALUES ('00000000-0000-4000-8000-000000000001', 80);
SELECT * FROM raised($$INSERT INTO doors (state) VALUES ('open')$$);
SELECT * FROM raised($$INSERT INTO doors (state) VALUES ('ajar')$$);
SELECT * FROM raised($$INSERT INTO doors (state) VALUES (NULL)$$);
SELECT * FROM raised($$INSERT INTO doors (state) VALUES ('')$$);
SELECT * FROM raised($$UPDATE doors SET state = 'wall'$$);
SELECT * FROM raised($$UPDATE doors SET state = 'Open'$$);
SELECT * FROM raised($$UPDATE doors SET state = 'ope'$$);
SELECT * FROM raised($$UPDATE doors SET state = 'opened'$$);
SELECT * FROM raised($$UPDATE doors SET state = NULL$$);
SELECT * FROM techally.allowed_events('doors', '00000000-0000-4000-8000-000000000001');
UPDATE doors SET state = state, width = 90;
SET app.current_user_id = '00000000-0000-4000-8000-00000000000a';
SET app.request_id = 'r-1';
UPDATE doors SET state = 'open';
RESET app.current_user_id;
SET app.request_id = '';
UPDATE doors SET state = 'closed';
UPDATE doors SET state = 'locked';
UPDATE doors SET state = 'wall';
SELECT * FROM raised($$UPDATE doors SET state = 'closed'$$);
SELECT * FROM techally.allowed_events('doors', '00000000-0000-4000-8000-000000000001', 'state');
SELECT sequence, from_status, to_status, event, actor, note, request_id, created_at IS NOT NULL AS dated
  FROM door_history ORDER BY door, sequence;
SET app.current_user_id = 'nobody';
SELECT * FROM raised($$INSERT INTO doors DEFAULT VALUES$$);
RESET app.current_user_id;

-- the table's own search_path does not matter, nor does one that is in the way
CREATE SCHEMA machines_decoy;
CREATE TABLE machines_decoy.door_history (LIKE door_history);
SET search_path = machines_decoy, pg_temp, machines_test;
INSERT INTO machines_test.doors (id) VALUES ('00000000-0000-4000-8000-000000000002');
SET search_path = machines_test, pg_catalog;
SELECT (SELECT count(*) FROM machines_decoy.door_history), (SELECT count(*) FROM door_history);

-- a BEFORE trigger that slips a state in comes too early
CREATE FUNCTION slip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.state := 'wall'; RETURN NEW; END $$;
CREATE TRIGGER zzz BEFORE INSERT OR UPDATE ON doors FOR EACH ROW EXECUTE FUNCTION slip();
SELECT code, message FROM raised($$INSERT INTO doors DEFAULT VALUES$$);
SELECT code, message FROM raised($$UPDATE doors SET width = 1 WHERE state = 'closed'$$);
DROP TRIGGER zzz ON doors;

-- the trigger function insists on its protocol
CREATE TRIGGER bad BEFORE INSERT ON machines_decoy.door_history FOR EACH ROW EXECUTE FUNCTION techally.enforce_machine('event');
SELECT code, message FROM raised($$INSERT INTO machines_decoy.door_history SELECT * FROM door_history$$);
DROP TRIGGER bad ON machines_decoy.door_history;
CREATE TRIGGER bad AFTER INSERT ON machines_decoy.door_history FOR EACH ROW EXECUTE FUNCTION techally.enforce_machine();
SELECT code, message FROM raised($$INSERT INTO machines_decoy.door_history SELECT * FROM door_history$$);
DROP TRIGGER bad ON machines_decoy.door_history;
CREATE TRIGGER bad AFTER INSERT ON machines_decoy.door_history FOR EACH ROW EXECUTE FUNCTION techally.enforce_machine('event');
SELECT code, message FROM raised($$INSERT INTO machines_decoy.door_history SELECT * FROM door_history$$);
DROP SCHEMA machines_decoy CASCADE;

-- COPY and bulk updates
COPY doors (id, state) FROM stdin;
00000000-0000-4000-8000-000000000003	closed
00000000-0000-4000-8000-000000000004	closed
\.
COPY doors (id, state) FROM stdin;
00000000-0000-4000-8000-000000000005	closed
00000000-0000-4000-8000-000000000006	locked
\.
INSERT INTO doors (width) SELECT 100 FROM generate_series(1, 2000);
UPDATE doors SET state = 'open' WHERE width = 100;
UPDATE doors SET state = 'closed' WHERE width = 100;
SELECT code, message FROM raised($$UPDATE doors SET state = CASE WHEN random() < 2 AND width = 100 THEN 'locked' ELSE 'wall' END WHERE width = 100 OR state = 'closed'$$);
SELECT sequence, to_status, event, count(*) FROM door_history JOIN doors ON doors.id = door WHERE width = 100 GROUP BY 1, 2, 3 ORDER BY 1;
DELETE FROM door_history USING doors WHERE doors.id = door AND width = 100;
DELETE FROM doors WHERE width = 100;

-- a redefinition
SELECT * FROM raised($$SELECT techally.define_machine('door', '{"initial": "closed", "transitions": [{"event": "open", "from": "closed", "to": "open"}]}')$$);
BEGIN;
SELECT techally.define_machine('door', '{"initial": "closed", "transitions": [
    {"event": "demolish", "from": "wall", "to": "gone"}, {"event": "brick up", "from": "closed", "to": "wall"}]}');
UPDATE doors SET state = 'gone' WHERE state = 'wall';
SELECT code, message FROM raised($$UPDATE doors SET state = 'open' WHERE state = 'closed'$$);
ROLLBACK;
BEGIN;
UPDATE doors SET state = 'open' WHERE id = '00000000-0000-4000-8000-000000000003';
SAVEPOINT before;
SELECT techally.define_machine('door', jsonb_set(definition, '{transitions,2,to}', '"locked"')) FROM techally.machines WHERE name = 'door';
SELECT code, message FROM raised($$UPDATE doors SET state = 'closed' WHERE state = 'open'$$);
UPDATE doors SET state = 'locked' WHERE state = 'open';
ROLLBACK TO before;
SELECT code, message FROM raised($$UPDATE doors SET state = 'locked' WHERE state = 'open'$$);
UPDATE doors SET state = 'closed' WHERE state = 'open';
COMMIT;
-- rows begin elsewhere: the default follows, unless it was somebody's own
BEGIN;
SELECT techally.define_machine('door', jsonb_set(definition, '{initial}', '"open"')) FROM techally.machines WHERE name = 'door';
SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'doors'::regclass AND adnum = 2;
INSERT INTO doors (width) VALUES (7) RETURNING state;
ROLLBACK;

-- names with quotes in them, and two columns under machines
CREATE TABLE "Odd ""table""" ("the key" uuid PRIMARY KEY, "the 'state'" varchar(20), other text);
CREATE TABLE "Odd history" ("the row" uuid REFERENCES "Odd ""table""", from_status varchar(20), to_status varchar(20), sequence bigint,
                            actor text, extra integer DEFAULT 3, "order" integer);
SELECT techally.attach_machine('"Odd ""table"""', 'the ''state''', 'odd names', '"Odd history"');
SELECT techally.attach_machine('"Odd ""table"""', 'other', 'loop');
INSERT INTO "Odd ""table""" VALUES ('00000000-0000-4000-8000-000000000001');
UPDATE "Odd ""table""" SET "the 'state'" = 'end', other = 'b';
UPDATE "Odd ""table""" SET other = 'a';
TABLE "Odd history";
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('"Odd ""table"""', '00000000-0000-4000-8000-000000000001')$$);
SELECT * FROM techally.allowed_events('"Odd ""table"""', '00000000-0000-4000-8000-000000000001', 'the ''state''');
SELECT * FROM techally.allowed_events('"Odd ""table"""', '00000000-0000-4000-8000-000000000001', 'other');
SELECT techally.detach_machine('"Odd ""table"""', 'other');
UPDATE "Odd ""table""" SET other = 'anything';
SELECT code FROM raised($$UPDATE "Odd ""table""" SET "the 'state'" = 'anything'$$);
SELECT techally.detach_machine('"Odd ""table"""');
UPDATE "Odd ""table""" SET "the 'state'" = 'anything';
SELECT tgname FROM pg_trigger WHERE tgrelid = '"Odd ""table"""'::regclass AND NOT tgisinternal;
SELECT count(*) FROM "Odd history";

-- columns whose long names begin alike
CREATE TABLE long (id integer);
ALTER TABLE long ADD COLUMN c23456789012345678901234567890123456789012345678901234567890aaa text DEFAULT 'a',
                 ADD COLUMN c23456789012345678901234567890123456789012345678901234567890bbb text;
SELECT techally.attach_machine('long', 'c23456789012345678901234567890123456789012345678901234567890aaa', 'loop');
SELECT techally.attach_machine('long', 'c23456789012345678901234567890123456789012345678901234567890bbb', 'single');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'long'::regclass ORDER BY tgname;
INSERT INTO long (id) VALUES (1);
SELECT code FROM raised($$UPDATE long SET c23456789012345678901234567890123456789012345678901234567890bbb = 'b'$$);

-- an enum, with a composite key and a history of enums
CREATE TYPE light AS ENUM ('red', 'green', 'yellow');
SELECT techally.define_machine('light', '{"initial": "red", "transitions": [{"event": "go", "from": "red", "to": "green"},
    {"event": "slow", "from": "green", "to": "yellow"}, {"event": "stop", "from": "yellow", "to": "red"}]}');
CREATE TABLE lights (street varchar(20), number integer, colour light NOT NULL DEFAULT 'red', PRIMARY KEY (number, street));
CREATE TABLE light_history (street varchar(20), number bigint, sequence smallint, from_status light, to_status light,
    event varchar(20), created_at timestamp, FOREIGN KEY (street, number) REFERENCES lights (street, number) ON UPDATE CASCADE);
SELECT * FROM raised($$SELECT techally.attach_machine('lights', 'colour', 'door')$$);
SELECT techally.attach_machine('lights', 'colour', 'light', 'light_history');
INSERT INTO lights VALUES ('High', 1), ('High', 2);
SELECT * FROM raised($$INSERT INTO lights VALUES ('High', 3, 'green')$$);
UPDATE lights SET colour = 'green';
UPDATE lights SET colour = 'yellow', street = 'Low' WHERE number = 2;
SELECT * FROM raised($$UPDATE lights SET colour = 'red' WHERE number = 1$$);
SELECT street, number, sequence, from_status, to_status, event, created_at IS NOT NULL AS dated FROM light_history ORDER BY 1, 2, 3;
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('lights', '00000000-0000-4000-8000-000000000001')$$);
SELECT * FROM raised($$SELECT techally.define_machine('light', '{"initial": "red", "transitions": [{"event": "break", "from": "red", "to": "dark"}]}')$$);
-- ON CONFLICT is an UPDATE
INSERT INTO lights VALUES ('High', 1) ON CONFLICT (street, number) DO UPDATE SET colour = 'yellow';
SELECT code FROM raised($$INSERT INTO lights VALUES ('High', 1) ON CONFLICT (street, number) DO UPDATE SET colour = 'green'$$);

-- domains
CREATE DOMAIN step AS varchar(10) CHECK (value <> 'b');
CREATE TABLE walks (id integer, at step);
SELECT * FROM raised($$SELECT techally.attach_machine('walks', 'at', 'loop')$$);
SELECT * FROM raised($$SELECT techally.attach_machine('walks', 'at', 'cloudlab')$$);
SELECT techally.attach_machine('walks', 'at', 'single');
INSERT INTO walks VALUES (1) RETURNING at;
SELECT code, detail FROM raised($$SELECT techally.attach_machine('walks', 'at', 'techally')$$);
DELETE FROM walks;
-- under another machine: the default that was the first one's follows
SELECT techally.attach_machine('walks', 'at', 'techally');
INSERT INTO walks VALUES (1) RETURNING at;

-- a collation that calls different states equal
CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE blind (id integer, state text COLLATE blind DEFAULT 'closed');
SELECT techally.attach_machine('blind', 'state', 'door');
INSERT INTO blind VALUES (1);
SELECT * FROM raised($$UPDATE blind SET state = 'CLOSED'$$);

-- partitions: rows that move, with and without a change of state
CREATE TABLE parts (id integer, place text, state text, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
CREATE TABLE parts_dropped_column (dropped integer, state text, place text NOT NULL, id integer NOT NULL);
ALTER TABLE parts_dropped_column DROP COLUMN dropped;
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_bc PARTITION OF parts FOR VALUES IN ('b', 'c') PARTITION BY LIST (place);
CREATE TABLE parts_b PARTITION OF parts_bc FOR VALUES IN ('b');
ALTER TABLE parts_bc ATTACH PARTITION parts_dropped_column FOR VALUES IN ('c');
CREATE TABLE parts_history (id integer, place text, from_status text, to_status text, event text, sequence integer,
    FOREIGN KEY (id, place) REFERENCES parts ON UPDATE CASCADE);
SELECT techally.attach_machine('parts', 'state', 'door', 'parts_history');
SELECT code, message FROM raised($$SELECT techally.attach_machine('parts_bc', 'state', 'door')$$);
SELECT code, message FROM raised($$SELECT techally.detach_machine('parts_bc')$$);
INSERT INTO parts SELECT i, p FROM generate_series(1, 2) i, unnest(ARRAY['a', 'b', 'c']) p;
SELECT code, message FROM raised($$INSERT INTO parts VALUES (9, 'a', 'locked')$$);
SELECT code, message FROM raised($$INSERT INTO parts_b VALUES (9, 'b', 'locked')$$);
UPDATE parts SET state = 'open' WHERE id = 1;
UPDATE parts_dropped_column SET state = 'locked' WHERE id = 2;
SELECT code, message, detail FROM raised($$UPDATE parts_dropped_column SET state = 'open' WHERE id = 2$$);
-- open rows and closed ones change places; they stay what they are
UPDATE parts SET place = CASE place WHEN 'a' THEN 'b' WHEN 'b' THEN 'c' ELSE 'a' END, id = id + 10;
SELECT tableoid::regclass, * FROM parts ORDER BY 2, 3;
SELECT id, place, sequence, from_status, to_status, event FROM parts_history ORDER BY 1, 2, 3;
SELECT code, message, detail FROM raised($$UPDATE parts SET place = 'b', state = 'wall' WHERE id = 11 AND place = 'a'$$);
SELECT code, message FROM raised($$UPDATE parts SET place = 'b', state = 'wall', id = 20 WHERE id = 11 AND place = 'a'$$);
ALTER TABLE parts_history DROP CONSTRAINT parts_history_id_place_fkey;
SELECT code, message, detail FROM raised($$UPDATE parts SET state = 'closed' WHERE state = 'open'$$);
SELECT techally.attach_machine('parts', 'state', 'door');
UPDATE parts SET place = 'b', state = 'closed', id = id + 10 WHERE id = 11 AND place = 'a';
SELECT * FROM parts WHERE id = 21;
-- to delete a row and insert it elsewhere is no move
SELECT code, message FROM raised($$WITH gone AS (DELETE FROM parts_a RETURNING *) INSERT INTO parts_b SELECT id + 100, 'b', state FROM gone$$);
DELETE FROM parts WHERE id = 12;
SELECT techally.detach_machine('parts');
SELECT count(*) FROM pg_trigger WHERE tgfoid = 'techally.enforce_machine'::regproc AND tgrelid IN (SELECT relid FROM pg_partition_tree('parts'));

-- a trigger on the way that changes other rows under the same machine
CREATE TABLE pairs (id integer PRIMARY KEY, twin integer, state text);
CREATE TABLE pairs_history (id integer REFERENCES pairs, sequence integer, from_status text, to_status text, event text);
SELECT techally.attach_machine('pairs', 'state', 'door', 'pairs_history');
CREATE FUNCTION move_twin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE machines_test.pairs SET state = NEW.to_status WHERE twin = NEW.id AND state = NEW.from_status;
    PERFORM techally.define_machine('door', definition) FROM techally.machines WHERE name = 'door';
    RETURN NULL;
END $$;
CREATE TRIGGER move_twin AFTER INSERT ON pairs_history FOR EACH ROW WHEN (NEW.from_status IS NOT NULL) EXECUTE FUNCTION move_twin();
INSERT INTO pairs VALUES (1, NULL), (2, 1), (3, 2);
UPDATE pairs SET state = 'open' WHERE id = 1;
TABLE pairs_history ORDER BY id, sequence;

-- what is renamed, and what is dropped
ALTER TABLE door_history RENAME TO chronicle;
UPDATE doors SET state = 'open' WHERE id = '00000000-0000-4000-8000-000000000004';
ALTER SCHEMA machines_test RENAME TO machines_other;
SET search_path = machines_other, pg_catalog;
UPDATE doors SET state = 'closed' WHERE id = '00000000-0000-4000-8000-000000000004';
ALTER SCHEMA machines_other RENAME TO machines_test;
SET search_path = machines_test, pg_catalog;
ALTER TABLE chronicle RENAME note TO remark;
ALTER TABLE doors RENAME TO gates;
UPDATE gates SET state = 'open' WHERE id = '00000000-0000-4000-8000-000000000004';
ALTER TABLE gates RENAME TO doors;
SELECT sequence, from_status, to_status, event FROM chronicle WHERE door = '00000000-0000-4000-8000-000000000004' ORDER BY 1;
ALTER TABLE chronicle RENAME to_status TO status_after;
SELECT * FROM raised($$UPDATE doors SET state = 'closed' WHERE state = 'open'$$);
ALTER TABLE chronicle RENAME status_after TO to_status;
SELECT code, message, detail FROM raised($$DROP TABLE chronicle$$);
ALTER TABLE doors RENAME state TO position;
SELECT * FROM raised($$UPDATE doors SET position = 'closed' WHERE position = 'open'$$);
SELECT * FROM raised($$INSERT INTO doors DEFAULT VALUES$$);
SELECT techally.detach_machine('doors', 'state');
SELECT techally.attach_machine('doors', 'position', 'door', 'chronicle');
UPDATE doors SET position = 'closed' WHERE position = 'open';
SELECT code FROM raised($$ALTER TABLE doors DROP COLUMN position$$);
DELETE FROM techally.machine_attachments WHERE target = 'doors'::regclass;
SELECT * FROM raised($$UPDATE doors SET position = 'open' WHERE position = 'closed'$$);
SELECT * FROM raised($$SELECT * FROM techally.allowed_events('doors', '00000000-0000-4000-8000-000000000001')$$);
DELETE FROM doors WHERE id = '00000000-0000-4000-8000-000000000009';
SELECT techally.attach_machine('doors', 'position', 'door', 'chronicle');
SELECT code, message FROM raised($$DELETE FROM techally.machines WHERE name = 'door'$$);
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('doors', '00000000-0000-4000-8000-0000000000ff')$$);
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events(NULL, '00000000-0000-4000-8000-0000000000ff')$$);
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('doors', NULL)$$);
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('doors', '00000000-0000-4000-8000-000000000001', 'width')$$);
ALTER TABLE doors DROP COLUMN position CASCADE;
SELECT count(*) FROM techally.machine_attachments WHERE target = 'doors'::regclass;
SELECT techally.detach_machine('doors');
INSERT INTO doors DEFAULT VALUES;
DROP TABLE pairs, pairs_history;

-- somebody without rights, and somebody who owns the tables
CREATE ROLE regress_machine_user;
CREATE ROLE regress_machine_owner;
GRANT USAGE ON SCHEMA machines_test TO regress_machine_user, regress_machine_owner;
CREATE TABLE gates (id uuid PRIMARY KEY, state text);
CREATE TABLE gate_history (gate uuid REFERENCES gates, from_status text, to_status text);
ALTER TABLE gates OWNER TO regress_machine_owner;
GRANT EXECUTE ON FUNCTION techally.define_machine(text, jsonb), techally.attach_machine(regclass, name, text, regclass),
                          techally.detach_machine(regclass, name) TO regress_machine_owner;
SET ROLE regress_machine_user;
SELECT r.code, r.message FROM unnest(ARRAY[
    $$SELECT techally.define_machine('mine', '{"initial": "a", "transitions": []}')$$,
    $$SELECT techally.attach_machine('gates', 'state', 'door')$$,
    $$SELECT techally.detach_machine('gates', 'state')$$,
    $$INSERT INTO techally.machines VALUES ('mine', '{"initial": "a", "transitions": []}')$$,
    $$DELETE FROM techally.machine_attachments$$]) AS s, raised(s) AS r;
SELECT count(*) FROM techally.machines WHERE name = 'door';
SELECT length(techally.machine_diagram('door')) > 0 AS drawn;
SET ROLE regress_machine_owner;
SELECT * FROM raised($$SELECT techally.attach_machine('gates', 'state', 'door', 'gate_history')$$);
SELECT * FROM raised($$SELECT techally.attach_machine('long', 'state', 'door')$$);
SELECT * FROM raised($$SELECT techally.detach_machine('long')$$);
RESET ROLE;
ALTER TABLE gate_history OWNER TO regress_machine_owner;
SET ROLE regress_machine_owner;
SELECT techally.define_machine('gate', definition) FROM techally.machines WHERE name = 'door';
SELECT techally.attach_machine('gates', 'state', 'gate', 'gate_history');
GRANT INSERT, UPDATE ON gates TO regress_machine_user;
SET ROLE regress_machine_user;
INSERT INTO gates (id) VALUES ('00000000-0000-4000-8000-000000000001');
UPDATE gates SET state = 'open';
SELECT code, message FROM raised($$SELECT * FROM gate_history$$);
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('gates', '00000000-0000-4000-8000-000000000001')$$);
SET ROLE regress_machine_owner;
GRANT SELECT ON gates TO regress_machine_user;
ALTER TABLE gates ENABLE ROW LEVEL SECURITY;
SET ROLE regress_machine_user;
SELECT code, message FROM raised($$SELECT * FROM techally.allowed_events('gates', '00000000-0000-4000-8000-000000000001')$$);
SET ROLE regress_machine_owner;
CREATE POLICY everybody ON gates USING (true);
SET ROLE regress_machine_user;
SELECT * FROM techally.allowed_events('gates', '00000000-0000-4000-8000-000000000001');
RESET ROLE;
SELECT from_status, to_status FROM gate_history;

-- rows that a policy hides from their owner do not pass unseen
ALTER TABLE gates FORCE ROW LEVEL SECURITY;
SELECT code, message FROM raised($$SELECT techally.attach_machine('gates', 'state', 'loop', 'gate_history')$$);
ALTER TABLE gates NO FORCE ROW LEVEL SECURITY;

-- what a statement wanted recorded does not outlive its failure
SELECT techally.create_store('machine_shop');
INSERT INTO machine_shop.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
INSERT INTO machine_shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8.50, true);
SELECT machine_shop.receive_stock('MUG', 5);
SELECT (machine_shop.place_order(id, '[{"sku": "MUG", "quantity": 1}]')).status FROM machine_shop.users;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'failed'; END $$;
CREATE TRIGGER fail BEFORE UPDATE ON machine_shop.orders FOR EACH ROW EXECUTE FUNCTION fail();
BEGIN;
SELECT r.code, r.message FROM machine_shop.orders, raised(format('SELECT machine_shop.transition_order(%L, ''cancel'', ''leaks'')', id)) r;
DROP TRIGGER fail ON machine_shop.orders;
UPDATE machine_shop.orders SET status = 'cancelled';
COMMIT;
SELECT sequence, to_status, event, note FROM machine_shop.order_status_history ORDER BY sequence;
SET techally.allow_drop = on;
SELECT techally.drop_store('machine_shop');

-- who may call what
SELECT p.oid::regprocedure, has_function_privilege('regress_machine_user', p.oid, 'EXECUTE') AS everybody
  FROM pg_proc p
 WHERE p.pronamespace = 'techally'::regnamespace AND p.proname ~ 'machine|allowed_events' ORDER BY p.oid::regprocedure::text;

RESET search_path;
DROP SCHEMA machines_test CASCADE;
SELECT count(*) FROM techally.machine_attachments;
DELETE FROM techally.machines WHERE NOT builtin;
REVOKE ALL ON FUNCTION techally.define_machine(text, jsonb), techally.attach_machine(regclass, name, text, regclass),
                       techally.detach_machine(regclass, name) FROM regress_machine_owner;
DROP ROLE regress_machine_user, regress_machine_owner;
