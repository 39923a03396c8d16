-- Retention, what goes as one whole: several levels, composite and circular
-- keys, rows far apart; and back from the archive.
SET client_min_messages = warning;
\set SHOW_CONTEXT never
\set VERBOSITY terse
CREATE ROLE regress_whole NOLOGIN;
GRANT CREATE ON DATABASE :DBNAME TO regress_whole;
CREATE SCHEMA w;
CREATE TABLE w.buyers (id int PRIMARY KEY, name text);
CREATE TABLE w.deals (
    id int, region int, at timestamptz NOT NULL, buyer int NOT NULL REFERENCES w.buyers, note varchar(5), cents int,
    twice int GENERATED ALWAYS AS (cents * 2) STORED, replaces int, replaces_region int, shipment int,
    PRIMARY KEY (region, id), FOREIGN KEY (replaces, replaces_region) REFERENCES w.deals (id, region) MATCH FULL DEFERRABLE INITIALLY DEFERRED, UNIQUE (id, region));
CREATE INDEX ON w.deals (at);
-- two that refer to each other: deals need buyers, so a buyer keeps his first deal
ALTER TABLE w.buyers ADD first_deal int, ADD first_region int, ADD FOREIGN KEY (first_deal, first_region) REFERENCES w.deals (id, region);
-- and here shipments need deals, so they go with them
CREATE TABLE w.shipments (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, deal int NOT NULL, region int NOT NULL, FOREIGN KEY (deal, region) REFERENCES w.deals (id, region));
ALTER TABLE w.deals ADD FOREIGN KEY (shipment) REFERENCES w.shipments;
CREATE TABLE w.lines (deal int, region int, n int, what text, PRIMARY KEY (deal, region, n), FOREIGN KEY (region, deal) REFERENCES w.deals (region, id) ON DELETE CASCADE);
CREATE TABLE w.notes (id int PRIMARY KEY, deal int, region int, n int, answers int REFERENCES w.notes ON DELETE RESTRICT,
    FOREIGN KEY (deal, region, n) REFERENCES w.lines ON DELETE RESTRICT);
CREATE TABLE w.pairs (one int, one_region int, two int, two_region int, FOREIGN KEY (one, one_region) REFERENCES w.deals (id, region), FOREIGN KEY (two, two_region) REFERENCES w.deals (id, region));
CREATE TABLE w.marks (deal int, region int, FOREIGN KEY (deal, region) REFERENCES w.deals (id, region) ON DELETE SET NULL);
CREATE TABLE w.places (id int PRIMARY KEY, at timestamptz NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE w.places_a PARTITION OF w.places FOR VALUES FROM (0) TO (10);
CREATE TABLE w.places_b PARTITION OF w.places FOR VALUES FROM (10) TO (20);
INSERT INTO w.buyers SELECT g, 'buyer ' || g FROM generate_series(1, 3) g;
INSERT INTO w.deals (id, region, at, buyer, note, cents) SELECT g, 1, now() - interval '9 years' + g * interval '1 month', 1 + g % 3, 'n' || g, g FROM generate_series(1, 12) g;
INSERT INTO w.deals (id, region, at, buyer) VALUES (20, 1, now(), 1), (21, 1, now(), 2), (1, 2, now(), 3);
INSERT INTO w.shipments (deal, region) SELECT id, region FROM w.deals ORDER BY region, id;
UPDATE w.deals d SET shipment = s.id FROM w.shipments s WHERE (s.deal, s.region) = (d.id, d.region);
INSERT INTO w.lines SELECT d.id, d.region, g, 'line' FROM w.deals d, generate_series(1, 2) g;
INSERT INTO w.notes SELECT id, id, region, 1, NULL FROM w.deals WHERE region = 1;
INSERT INTO w.notes SELECT 100 + id, NULL, NULL, NULL, id FROM w.deals WHERE region = 1;
INSERT INTO w.notes SELECT 200 + id, NULL, NULL, NULL, 100 + id FROM w.deals WHERE region = 1;
INSERT INTO w.marks SELECT id, region FROM w.deals;
SELECT techally.set_retention('w.deals', '7 years', time_column => 'at');

SELECT child::regclass, parent::regclass, follows FROM techally.retention_edges('w.deals'::regclass) ORDER BY child::regclass::text, parent::regclass::text, condition;

-- far apart, and only together: a pair of the first and the last, replacements in a circle
INSERT INTO w.pairs VALUES (1, 1, 12, 1);
UPDATE w.deals SET replaces = 1 + id % 3 + 2, replaces_region = 1 WHERE id IN (3, 4, 5);
-- one whose pair is young, one that a buyer keeps, one that a young one replaces
INSERT INTO w.pairs VALUES (6, 1, 20, 1);
UPDATE w.buyers SET first_deal = 7, first_region = 1 WHERE id = 2;
UPDATE w.deals SET replaces = 8, replaces_region = 1 WHERE id = 21;
CREATE VIEW w.rows_of AS
    SELECT 'deals' AS t, count(*) AS n FROM w.deals UNION ALL SELECT 'lines', count(*) FROM w.lines UNION ALL SELECT 'notes', count(*) FROM w.notes UNION ALL
    SELECT 'pairs', count(*) FROM w.pairs UNION ALL SELECT 'shipments', count(*) FROM w.shipments UNION ALL SELECT 'buyers', count(*) FROM w.buyers UNION ALL
    SELECT 'marks', count(*) FROM w.marks WHERE deal IS NOT NULL;
CREATE FUNCTION w.pages(target regclass, page int, dry_run boolean) RETURNS TABLE (relation text, action text, rows numeric) LANGUAGE plpgsql AS $$
DECLARE
    answer jsonb := '{}';
    lines  jsonb := '[]';
BEGIN
    LOOP
        answer := techally.retention_step(target, now(), answer ->> 'next', page, dry_run);
        lines := lines || (answer -> 'report');
        EXIT WHEN answer -> 'next' IS NULL;
    END LOOP;
    RETURN QUERY SELECT l ->> 'relation', l ->> 'action', sum((l ->> 'rows')::numeric) FROM jsonb_array_elements(lines) l GROUP BY 1, 2 HAVING sum((l ->> 'rows')::numeric) > 0 ORDER BY 1, 2;
END $$;
CREATE TABLE w.before AS SELECT to_jsonb(d) AS deal, (SELECT jsonb_agg(to_jsonb(l) ORDER BY l.n) FROM w.lines l WHERE (l.deal, l.region) = (d.id, d.region)) AS lines FROM w.deals d;
-- whatever the page, the dry run says what then goes
SELECT * FROM w.pages('w.deals', 1, true) EXCEPT SELECT * FROM w.pages('w.deals', 100, true);
CREATE TABLE w.said AS SELECT * FROM w.pages('w.deals', 2, true);
SELECT * FROM w.said;
SELECT * FROM w.pages('w.deals', 2, false) EXCEPT SELECT * FROM w.said;
SELECT * FROM w.rows_of ORDER BY t;
SELECT id, region FROM w.deals ORDER BY region, id;
SELECT count(*) AS batches, count(DISTINCT batch) < 9 AS together FROM (SELECT DISTINCT batch FROM w_archive.archive_batches) b;
-- nothing keeps them any more
DELETE FROM w.pairs;
UPDATE w.buyers SET first_deal = NULL, first_region = NULL;
UPDATE w.deals SET replaces = NULL, replaces_region = NULL WHERE id = 21;
-- and in the meantime a column has become wider, one has another type, one is new
ALTER TABLE w.deals ALTER note TYPE text, ALTER cents TYPE text USING cents || ' ct', DROP twice, ADD later int DEFAULT 7;
UPDATE w.deals SET note = 'longer than five' WHERE id = 6;
SELECT * FROM w.pages('w.deals', 2, false) WHERE relation = 'w.deals';
SELECT * FROM w.rows_of ORDER BY t;
SELECT id, note, cents, later FROM w_archive.deals ORDER BY id;

-- back: with what was archived along, and with what that cannot be without
SELECT * FROM techally.restore_rows('w.deals', '{"region": 1, "id": 12}') ORDER BY 1;
SELECT id, note, cents, later FROM w.deals WHERE at < now() - interval '7 years' ORDER BY id;
SELECT * FROM w.pairs;
SELECT * FROM techally.restore_rows('w.deals', '[{"region": 1, "id": 3}, {"id": 6, "region": 1}]', keep_for => NULL) ORDER BY 1;
SELECT x.id, (b.deal - '{note,cents,twice}'::text[]) = (to_jsonb(x) - '{note,cents,later}'::text[])
       AND b.lines = (SELECT jsonb_agg(to_jsonb(l) ORDER BY l.n) FROM w.lines l WHERE (l.deal, l.region) = (x.id, x.region)) AS same
  FROM w.deals x JOIN w.before b ON (b.deal ->> 'id', b.deal ->> 'region') = (x.id::text, x.region::text) WHERE x.at < now() - interval '7 years' ORDER BY 1;
SELECT b.relation, sum(b.rows) AS noted, (SELECT count(*) FROM w_archive.deals) AS there FROM w_archive.archive_batches b WHERE b.relation = 'w.deals' GROUP BY 1;
-- they stay as long as was asked
SELECT archive, key, keep_until = 'infinity' AS for_ever FROM w_archive.restored_rows ORDER BY key;
SELECT * FROM w.pages('w.deals', 2, true);
UPDATE w_archive.restored_rows SET keep_until = now() WHERE key ->> 'id' IN ('1', '12', '6');
SELECT * FROM w.pages('w.deals', 2, false) WHERE relation = 'w.deals';
DELETE FROM w_archive.restored_rows;
SELECT * FROM w.pages('w.deals', 2, false) WHERE relation = 'w.deals';

-- refused, and nothing has happened
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 99}');
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 20}');
SELECT techally.restore_rows('w.deals', '{"id": 12}');
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 12, "at": 1}');
SELECT techally.restore_rows('w.deals', '[12]');
SELECT techally.restore_rows('w.deals', '[]');
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": "x"}');
SELECT techally.restore_rows('w.deals', batch => '00000000-0000-0000-0000-000000000000');
SELECT techally.restore_rows('w.deals');
SELECT techally.restore_rows(NULL, '{}');
SELECT techally.restore_rows('w.marks', '{"id": 1}');
-- the key has been given to another one
INSERT INTO w.deals (id, region, at, buyer) VALUES (2, 1, now(), 1);
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
DELETE FROM w.deals WHERE id = 2;
-- a buyer who has gone
UPDATE w.deals SET buyer = 1;
DELETE FROM w.buyers WHERE id = 3;
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
INSERT INTO w.buyers VALUES (3, 'buyer 3');
-- a trigger that changes what comes, or keeps it out
CREATE FUNCTION w.change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.what := 'changed'; RETURN NEW; END $$;
CREATE TRIGGER change BEFORE INSERT ON w.lines FOR EACH ROW EXECUTE FUNCTION w.change();
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
CREATE OR REPLACE FUNCTION w.change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
DROP TRIGGER change ON w.lines;
-- an archive that somebody has been at, in whatever way
BEGIN;
UPDATE w_archive.lines SET what = 'forged' WHERE deal = 2 AND n = 1;
DO $$ BEGIN PERFORM techally.restore_rows('w.deals', '{"region": 1, "id": 2}'); EXCEPTION WHEN data_corrupted THEN RAISE WARNING '%', SQLERRM; END $$;
ROLLBACK;
BEGIN;
DELETE FROM w_archive.notes WHERE id = 202;
DO $$ BEGIN PERFORM techally.restore_rows('w.deals', '{"region": 1, "id": 2}'); EXCEPTION WHEN data_corrupted THEN RAISE WARNING '%', SQLERRM; END $$;
ROLLBACK;
BEGIN;
DROP TABLE w_archive.notes;
DO $$ BEGIN PERFORM techally.restore_rows('w.deals', '{"region": 1, "id": 2}'); EXCEPTION WHEN data_corrupted THEN RAISE WARNING '%', SQLERRM; END $$;
ROLLBACK;
-- a table that is not there any more
ALTER TABLE w.notes RENAME TO remarks;
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
ALTER TABLE w.remarks RENAME TO notes;
-- who does not own it
SET ROLE regress_whole;
SELECT techally.restore_rows('w.deals', '{"region": 1, "id": 2}');
SELECT techally.restore_step('w.deals', '{"region": 1, "id": 2}', NULL, NULL);
SELECT techally.retention_retiring('w.deals', 'w.deals', now(), now());
RESET ROLE;
SELECT count(*) FROM w.deals WHERE at < now() - interval '7 years';
-- and then it works
SELECT * FROM techally.restore_rows('w.deals', '{"region": 1, "id": 2}') ORDER BY 1;
SELECT count(*) FROM w.notes WHERE id IN (2, 102, 202);

-- audited and softly deleted rows among what hangs on them: moved, not deleted
SELECT techally.enable_audit('w.notes');
CREATE TABLE w.extras (id int PRIMARY KEY, deal int, region int, FOREIGN KEY (deal, region) REFERENCES w.deals (id, region));
SELECT techally.enable_soft_delete('w.extras');
INSERT INTO w.extras VALUES (1, 2, 1), (2, 2, 1);
DELETE FROM w.extras WHERE id = 2;
DELETE FROM w_archive.restored_rows;
SELECT * FROM w.pages('w.deals', 100, false) WHERE relation IN ('w.deals', 'w.extras', 'w.notes');
SELECT count(*) FROM w.extras;
SELECT id, deleted_at IS NOT NULL AS deleted FROM w_archive.extras ORDER BY id;
SELECT * FROM techally.restore_rows('w.deals', '{"region": 1, "id": 2}') WHERE relation IN ('w.deals', 'w.extras', 'w.notes') ORDER BY 1;
SELECT id, deleted_at IS NOT NULL AS deleted FROM w.extras ORDER BY id;
SELECT action, count(*) FROM w.audit_logs GROUP BY 1;
-- a row in the archive's place that cannot go there: nothing goes
ALTER TABLE w_archive.extras ADD CONSTRAINT never CHECK (id <> 2);
DELETE FROM w_archive.restored_rows;
SELECT * FROM w.pages('w.deals', 100, false);
SELECT count(*) FROM w.deals WHERE id = 2;
ALTER TABLE w_archive.extras DROP CONSTRAINT never;

-- an audit log goes by whole months and not otherwise, whoever asks
DELETE FROM w.notes WHERE id = 220;
SELECT techally.seal_audit_logs() > 0 AS sealed;
SELECT source, action, in_force FROM techally.retention_policies WHERE relation = 'w.audit_logs';
SELECT techally.set_retention('w.audit_logs', '1 microsecond', 'delete', 'changed_at');
SELECT techally.unmanage_partitions('w.audit_logs');
SELECT source, action, in_force FROM techally.retention_policies WHERE relation = 'w.audit_logs';
SELECT techally.retention_step('w.audit_logs', now() + interval '1 day', NULL, 100, false);
SELECT count(*) FROM techally.archive_old_data() WHERE relation = 'w.audit_logs';
DELETE FROM w.audit_logs;
-- not even where it is made to hang on something
CREATE TABLE w.bait (id bigint PRIMARY KEY, at timestamptz);
INSERT INTO w.bait SELECT id, '2000-01-01' FROM w.audit_logs;
ALTER TABLE w.audit_logs ADD CONSTRAINT hangs FOREIGN KEY (id) REFERENCES w.bait;
SELECT techally.set_retention('w.bait', '1 year', 'delete', 'at');
SELECT techally.retention_step('w.bait', now(), NULL, 100, false);
ALTER TABLE w.audit_logs DROP CONSTRAINT hangs;
SELECT count(*) FROM w.audit_logs;
SELECT * FROM techally.verify_audit('w.notes');
-- the rule takes the month, and that is not held against it
SELECT techally.manage_partitions('w.audit_logs', '1 month', retention => '1 year', retention_action => 'drop');
SELECT techally.retire_partition('w.audit_logs', now() + interval '11 months');
SELECT techally.retire_partition('w.audit_logs', now() + interval '14 months') ~ '^dropped w.audit_logs_' AS dropped;
SELECT count(*) FROM w.audit_logs;
SELECT * FROM techally.verify_audit('w.notes');
-- a person is erased by those who may, from what is there
INSERT INTO w.notes VALUES (300);
SELECT techally.erase_audit('w.notes', '{"id": 300}');
SELECT action, changes FROM w.audit_logs WHERE row_key = '{"id": 300}' ORDER BY id;
DELETE FROM w.audit_logs;
SELECT * FROM techally.verify_audit('w.notes');

-- rows of a partitioned table that refer to each other across partitions
ALTER TABLE w.places ADD near int REFERENCES w.places;
INSERT INTO w.places VALUES (1, '2000-01-01', NULL), (11, '2000-01-02', 1), (2, '2000-01-03', 11), (12, now(), 2), (13, '2000-01-01', NULL);
UPDATE w.places SET near = 2 WHERE id = 1;
SELECT techally.set_retention('w.places', '1 year', 'delete', 'at');
SELECT * FROM w.pages('w.places', 1, true);
SELECT * FROM w.pages('w.places', 1, false);
UPDATE w.places SET near = NULL WHERE id = 12;
SELECT * FROM w.pages('w.places', 1, true);
SELECT * FROM w.pages('w.places', 1, false);
SELECT id FROM w.places ORDER BY id;

-- the owner's own row security hides nothing from him here, forced or not
CREATE SCHEMA r AUTHORIZATION regress_whole;
SET ROLE regress_whole;
CREATE TABLE r.logs (id int PRIMARY KEY, created_at timestamptz);
CREATE TABLE r.log_lines (id int REFERENCES r.logs ON DELETE CASCADE, line text);
CREATE TABLE r.events (id int, created_at timestamptz);
INSERT INTO r.logs SELECT g, now() - interval '2 years' FROM generate_series(1, 4) g;
INSERT INTO r.log_lines SELECT id, 'line' FROM r.logs;
INSERT INTO r.events SELECT g, now() - interval '2 years' FROM generate_series(1, 4) g;
SELECT techally.set_retention('r.logs', '1 year'), techally.set_retention('r.events', '1 year', 'delete', aggregate_after => '1 month', aggregate_by => '{}');
ALTER TABLE r.logs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE r.log_lines ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE r.events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY first ON r.logs USING (id = 1);
CREATE POLICY first ON r.events USING (id = 1);
SELECT count(*) FROM r.logs;
SELECT * FROM w.pages('r.logs', 3, true);
RESET ROLE;
GRANT EXECUTE ON FUNCTION w.pages TO regress_whole;
GRANT USAGE ON SCHEMA w TO regress_whole;
SET ROLE regress_whole;
SELECT * FROM w.pages('r.logs', 3, true);
RESET ROLE;
SELECT * FROM w.pages('r.logs', 3, false);
SELECT * FROM w.pages('r.events', 3, false);
SET ROLE regress_whole;
SELECT count(*) FROM r_archive.log_lines;
SELECT rows FROM r_archive.events_daily;
SELECT * FROM techally.restore_rows('r.logs', '{"id": 2}') ORDER BY 1;
SELECT count(*) FROM r.logs;
-- and such a policy is for him alone: his rights end where they did
CREATE FUNCTION r.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'as %, may read others: %', current_user, has_table_privilege('w.deals', 'SELECT'); RETURN OLD; END $$;
CREATE TRIGGER look BEFORE DELETE ON r.logs FOR EACH ROW EXECUTE FUNCTION r.look();
DELETE FROM r_archive.restored_rows;
RESET ROLE;
SELECT * FROM w.pages('r.logs', 3, false);

-- somebody else's table that refers to ours: its rows keep ours, its triggers do
-- not run with our rights, whatever he grants
CREATE TABLE w.rooms (id int PRIMARY KEY, created_at timestamptz);
INSERT INTO w.rooms SELECT g, '2000-01-01' FROM generate_series(1, 3) g;
SELECT techally.set_retention('w.rooms', '1 year', 'delete');
-- how far it is can be seen while it is at it
CREATE FUNCTION w.look() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    p record;
BEGIN
    PERFORM pg_stat_clear_snapshot();
    SELECT * INTO p FROM techally.progress;
    RAISE WARNING '% % on %: % of %', p.task, p.phase, p.relation, p.done, p.total >= p.done;
    RETURN NULL;
END $$;
CREATE TRIGGER look BEFORE DELETE ON w.rooms FOR EACH STATEMENT EXECUTE FUNCTION w.look();
BEGIN;
SELECT * FROM w.pages('w.rooms', 2, false);
ROLLBACK;
DROP TRIGGER look ON w.rooms;
GRANT REFERENCES ON w.rooms TO regress_whole;
SET ROLE regress_whole;
CREATE TABLE r.guests (room int REFERENCES w.rooms ON DELETE CASCADE);
INSERT INTO r.guests VALUES (2);
GRANT ALL ON r.guests TO PUBLIC;
CREATE FUNCTION r.trojan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'ran as owner of the rooms: %', current_user <> 'regress_whole'; RETURN OLD; END $$;
CREATE TRIGGER trojan BEFORE DELETE ON r.guests FOR EACH ROW EXECUTE FUNCTION r.trojan();
RESET ROLE;
SELECT * FROM w.pages('w.rooms', 2, false);
SELECT id FROM w.rooms;
DELETE FROM r.guests;
SELECT * FROM w.pages('w.rooms', 2, false);
-- nor does code of his that he has somebody else's maintenance run
SET ROLE regress_whole;
CREATE TABLE r.visits (id int PRIMARY KEY, created_at timestamptz);
INSERT INTO r.visits SELECT g, '2000-01-01' FROM generate_series(1, 3) g;
SELECT techally.set_retention('r.visits', '1 year');
CREATE FUNCTION r.attack() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    try text;
BEGIN
    FOREACH try IN ARRAY ARRAY['RESET ROLE', 'SET SESSION AUTHORIZATION DEFAULT', 'SET ROLE NONE', 'CREATE TEMP TABLE pg_class (a int)', 'SET CONSTRAINTS ALL DEFERRED',
                               'ALTER ROLE regress_whole SUPERUSER', 'SET LOCAL session_replication_role = replica', 'LISTEN x', 'DECLARE c CURSOR WITH HOLD FOR SELECT r.late()'] LOOP
        BEGIN
            EXECUTE try;
            RAISE WARNING '%: done, as %', try, current_user;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING '%: %', try, SQLSTATE;
        END;
    END LOOP;
    RETURN OLD;
END $$;
CREATE TRIGGER attack BEFORE DELETE ON r.visits FOR EACH STATEMENT EXECUTE FUNCTION r.attack();
CREATE FUNCTION r.late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'late, as %', current_user; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER late AFTER DELETE ON r.visits DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION r.late();
RESET ROLE;
SELECT * FROM w.pages('r.visits', 2, false);
SELECT count(*) FROM r.visits;
SET ROLE regress_whole;
ALTER FUNCTION r.attack() RENAME TO attacked;
DROP TRIGGER attack ON r.visits;
RESET ROLE;
SELECT * FROM w.pages('r.visits', 2, false);
SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_whole';

SET client_min_messages = error;
SELECT techally.disable_audit('w.notes');
DROP TABLE w.audit_logs, w.audit_seals CASCADE;
DROP SCHEMA w, w_archive, r, r_archive CASCADE;
DROP OWNED BY regress_whole;
DROP ROLE regress_whole;
