-- A plain table becomes a partitioned one; LIST and HASH.
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE SCHEMA cnv;
SET search_path = cnv;
CREATE FUNCTION raised(statement text) RETURNS TABLE (code text, message text, detail text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN QUERY SELECT 'none', NULL::text, NULL::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN NEXT;
END $$;

-- with everything that is carried over
CREATE ROLE regress_cnv_owner;
CREATE ROLE regress_cnv_reader;
GRANT USAGE, CREATE ON SCHEMA cnv TO regress_cnv_owner;
CREATE TABLE kinds (kind text PRIMARY KEY);
INSERT INTO kinds VALUES ('a');
GRANT REFERENCES, SELECT ON kinds TO regress_cnv_owner;
CREATE TABLE ev (gone int, id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5), number serial, at timestamptz NOT NULL DEFAULT '2024-01-01',
                 kind text REFERENCES kinds ON DELETE RESTRICT, amount int CONSTRAINT positive CHECK (amount > 0), twice int GENERATED ALWAYS AS (amount * 2) STORED,
                 note text, PRIMARY KEY (id, at), CONSTRAINT uq UNIQUE (number, at) DEFERRABLE) WITH (fillfactor = 80);
ALTER TABLE ev DROP COLUMN gone;
CREATE INDEX ev_note ON ev (lower(note)) WHERE note IS NOT NULL;
COMMENT ON TABLE ev IS 'What happened';
COMMENT ON COLUMN ev.amount IS 'How much';
CREATE TABLE fired (what text);
GRANT ALL ON fired TO PUBLIC;
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO cnv.fired VALUES (TG_NAME || ' ' || TG_OP || ' ' || TG_TABLE_NAME); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER each_row AFTER INSERT OR DELETE ON ev FOR EACH ROW EXECUTE FUNCTION fire();
CREATE TRIGGER whole AFTER INSERT ON ev FOR EACH STATEMENT EXECUTE FUNCTION fire();
CREATE TRIGGER asleep BEFORE INSERT ON ev FOR EACH ROW EXECUTE FUNCTION fire();
ALTER TABLE ev DISABLE TRIGGER asleep;
ALTER TABLE ev OWNER TO regress_cnv_owner;
GRANT SELECT, UPDATE (note) ON ev TO regress_cnv_reader;
SET client_min_messages = error;	-- wal_level is too low, and says so in each version's own words
CREATE PUBLICATION regress_cnv FOR TABLE ev WITH (publish_via_partition_root);
CREATE PUBLICATION regress_cnv_names FOR TABLE ev;
SET client_min_messages = warning;
INSERT INTO ev (at, kind, amount, note) SELECT '2023-11-15'::timestamptz + g * interval '1 day', 'a', g + 1, 'note ' || g FROM generate_series(0, 60) g;
INSERT INTO ev (at, amount) VALUES ('infinity', 1);
TRUNCATE fired;
CREATE TABLE before AS SELECT * FROM ev;

SELECT * FROM techally.partition_obstacles('ev', 'at');
DROP PUBLICATION regress_cnv_names;
CALL techally.partition_table('ev', 'at', '1 month');
SELECT tableoid::regclass AS partition, count(*) FROM ev GROUP BY tableoid ORDER BY tableoid::regclass::text;
SELECT count(*) AS lost_or_changed FROM (TABLE before EXCEPT TABLE ev) d;
SELECT * FROM fired;
INSERT INTO ev (kind, amount) VALUES ('a', 7) RETURNING id, number, at, twice, tableoid::regclass;
SELECT * FROM fired ORDER BY 1;
SELECT relname, relowner::regrole, relkind, obj_description(oid) AS remark, col_description(oid, (SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attname = 'amount')) AS column_remark,
       (SELECT array_agg(a.grantee::regrole || ' ' || a.privilege_type ORDER BY 1) FROM aclexplode(relacl) a WHERE a.grantee <> relowner) AS grants, reloptions
  FROM pg_class c WHERE oid IN ('ev'::regclass, 'ev_2023_11'::regclass, 'ev_default'::regclass) ORDER BY 1;
SELECT conname, contype, condeferrable, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'ev'::regclass AND contype <> 'n' ORDER BY 1;
SELECT i.relname, x.indisvalid FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE indrelid IN ('ev'::regclass, 'ev_default'::regclass) ORDER BY 1;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN ('ev'::regclass, 'ev_default'::regclass) ORDER BY tgrelid::regclass::text, tgname;
SELECT has_column_privilege('regress_cnv_reader', 'ev', 'note', 'UPDATE') AS may_update, pg_get_serial_sequence('ev', 'number') AS owned,
       EXISTS (SELECT FROM pg_publication_tables WHERE pubname = 'regress_cnv' AND tablename = 'ev') AS published;
SELECT code IN ('23503', '23001') AS refused FROM raised($$DELETE FROM cnv.kinds$$);     -- 18 tells RESTRICT from the rest
-- again: there is nothing left to do
CALL techally.partition_table('ev', 'at', '1 month');
SELECT step, premake FROM techally.managed_partitions WHERE parent = 'ev'::regclass;

-- row security, views, functions that name the table by its OID, foreign keys
-- that point in, the audit, comments: all of it goes along
CREATE ROLE regress_cnv_ann;
CREATE ROLE regress_cnv_ben;
GRANT USAGE ON SCHEMA cnv TO regress_cnv_ann, regress_cnv_ben;
CREATE TABLE tied (id int, at timestamptz, who text, body text, PRIMARY KEY (id, at));
COMMENT ON CONSTRAINT tied_pkey ON tied IS 'The key';
CREATE INDEX tied_who ON tied (who);
COMMENT ON INDEX tied_who IS 'Who';
CREATE POLICY own ON tied FOR ALL TO regress_cnv_ann, regress_cnv_ben USING (who = current_user) WITH CHECK (who = current_user AND NOT EXISTS (SELECT FROM cnv.kinds WHERE kind = tied.body));
CREATE POLICY short ON tied AS RESTRICTIVE FOR INSERT WITH CHECK (length(body) < 10);
COMMENT ON POLICY own ON tied IS 'Everybody their own';
ALTER TABLE tied ENABLE ROW LEVEL SECURITY;
ALTER TABLE tied FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON tied TO regress_cnv_ann, regress_cnv_ben;
GRANT SELECT ON kinds TO regress_cnv_ann;
CREATE VIEW seen WITH (security_barrier) AS SELECT t.id, t.at, t.who AS person FROM tied t GROUP BY t.id, t.at;
CREATE VIEW seen_again AS SELECT count(*) FROM seen;
COMMENT ON VIEW seen IS 'A view';
GRANT SELECT ON seen TO regress_cnv_ann;
CREATE FUNCTION how_many() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM tied; END;
CREATE TABLE remarks (id int, tied_id int, tied_at timestamptz, CONSTRAINT remarks_tied FOREIGN KEY (tied_id, tied_at) REFERENCES tied ON DELETE CASCADE DEFERRABLE);
INSERT INTO tied SELECT g, '2024-01-01'::timestamptz + g * interval '1 day', CASE g % 2 WHEN 0 THEN 'regress_cnv_ann' ELSE 'regress_cnv_ben' END, 'b' FROM generate_series(1, 60) g;
INSERT INTO remarks SELECT id, id, at FROM tied;
SELECT techally.enable_audit('tied', redact => '{body}');
UPDATE tied SET body = 'c' WHERE id = 3;
SELECT * FROM techally.partition_obstacles('tied', 'at');
CALL techally.partition_table('tied', 'at', '1 month');
SELECT tableoid::regclass AS partition, count(*) FROM tied GROUP BY tableoid ORDER BY tableoid::regclass::text;
SELECT seen.*, seen_again.count, how_many() FROM seen, seen_again WHERE id = 3;
SELECT relname, reloptions, obj_description(oid) AS remark, relacl IS NOT NULL AS granted FROM pg_class WHERE oid = 'seen'::regclass;
SELECT obj_description('tied_who'::regclass), (SELECT obj_description(oid) FROM pg_constraint WHERE conrelid = 'tied'::regclass AND conname = 'tied_pkey') AS key,
       (SELECT obj_description(oid, 'pg_policy') FROM pg_policy WHERE polrelid = 'tied'::regclass AND polname = 'own') AS policy;
SELECT polname, polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid) AS reads, pg_get_expr(polwithcheck, polrelid) ~ 'EXISTS' AS looks FROM pg_policy WHERE polrelid = 'tied'::regclass ORDER BY 1;
SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid IN ('tied'::regclass, 'tied_default'::regclass, 'tied_2024_01'::regclass) ORDER BY 1;
SELECT has_table_privilege('regress_cnv_ann', 'tied_2024_01', 'SELECT') AS way_round;
SET ROLE regress_cnv_ann;
SELECT count(*) FROM tied;
SELECT count(*) FROM tied WHERE at < '2024-02-01';
SELECT * FROM raised($$INSERT INTO cnv.tied VALUES (100, '2024-05-05', 'regress_cnv_ben', 'b')$$);
SELECT * FROM raised($$INSERT INTO cnv.tied VALUES (100, '2024-05-05', 'regress_cnv_ann', 'far too long')$$);
SELECT * FROM raised($$INSERT INTO cnv.tied VALUES (100, '2024-05-05', 'regress_cnv_ann', 'a')$$);
SELECT * FROM raised($$INSERT INTO cnv.tied VALUES (100, '2024-05-05', 'regress_cnv_ann', 'b')$$);
RESET ROLE;
SELECT conname, convalidated, condeferrable, confdeltype FROM pg_constraint WHERE conrelid = 'remarks'::regclass AND conparentid = 0;
SELECT * FROM raised($$INSERT INTO cnv.remarks VALUES (0, 0, '2024-01-05')$$);
DELETE FROM tied WHERE id = 3;
SELECT count(*) FROM remarks;
SELECT action, count(*) FROM techally.row_history('tied', '{"id": 3, "at": "2024-01-04T00:00:00+00:00"}') GROUP BY 1 ORDER BY 1;
SELECT form, excluded, redacted FROM techally.audited_tables WHERE target = 'tied'::regclass;
SELECT count(*) AS unguarded FROM techally.audit_unguarded('tied');
SELECT * FROM techally.verify_audit('tied');
-- a key that does not hold any more is noticed when it is validated, and later
-- writes are checked all the same
CREATE TABLE loose (id int, at timestamptz, PRIMARY KEY (id, at));
CREATE TABLE broken (id int, at timestamptz, CONSTRAINT broken_key FOREIGN KEY (id, at) REFERENCES loose);
SET session_replication_role = replica;
INSERT INTO broken VALUES (1, '2024-01-05');
RESET session_replication_role;
CALL techally.partition_table('loose', 'at', '1 month');
SELECT convalidated FROM pg_constraint WHERE conrelid = 'broken'::regclass AND conparentid = 0;
DELETE FROM broken;
CALL techally.partition_table('loose', 'at', '1 month');
SELECT convalidated FROM pg_constraint WHERE conrelid = 'broken'::regclass AND conparentid = 0;
-- not for somebody else to replace
CREATE TABLE foreign_to (id int, at timestamptz, PRIMARY KEY (id, at));
CREATE VIEW of_mine AS SELECT * FROM foreign_to;
CREATE TABLE mine (id int, at timestamptz, FOREIGN KEY (id, at) REFERENCES foreign_to);
CREATE FUNCTION count_it() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM foreign_to; END;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM foreign_to;
CREATE TABLE elsewhere (id int);
CREATE POLICY looks ON elsewhere USING (EXISTS (SELECT FROM foreign_to f WHERE f.id = elsewhere.id));
CREATE RULE copies AS ON DELETE TO elsewhere DO ALSO DELETE FROM foreign_to;
CREATE TABLE itself (id int, at timestamptz, up int, PRIMARY KEY (id, at), CONSTRAINT up FOREIGN KEY (up, at) REFERENCES itself);
ALTER TABLE foreign_to OWNER TO regress_cnv_owner;
GRANT EXECUTE ON FUNCTION techally.partition_obstacles(regclass, name) TO regress_cnv_owner;
SET ROLE regress_cnv_owner;
SELECT * FROM techally.partition_obstacles('foreign_to', 'at') ORDER BY reason COLLATE "C";
RESET ROLE;
SELECT * FROM techally.partition_obstacles('foreign_to', 'at') ORDER BY reason COLLATE "C";
SELECT * FROM techally.partition_obstacles('itself', 'at');

-- what cannot be converted, with every reason
CREATE TABLE bad (id int PRIMARY KEY, at timestamptz, n int, CHECK (n > 0) NO INHERIT, EXCLUDE (at WITH =)) ;
ALTER TABLE bad ADD CONSTRAINT later CHECK (n < 10) NOT VALID;
CREATE TABLE points (bad int REFERENCES bad);
CREATE VIEW reads AS SELECT * FROM bad;
CREATE FUNCTION takes(bad) RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER TABLE bad ENABLE ROW LEVEL SECURITY;
CREATE TRIGGER transition AFTER INSERT ON bad REFERENCING NEW TABLE AS new FOR EACH ROW EXECUTE FUNCTION fire();
SELECT * FROM techally.partition_obstacles('bad', 'at') ORDER BY reason COLLATE "C";
SELECT * FROM techally.partition_obstacles('bad', 'n') WHERE reason LIKE 'column%';
SELECT * FROM techally.partition_obstacles('bad', 'none') WHERE reason LIKE 'column%';
SELECT * FROM raised($$SELECT techally.switch_to_partitioned('cnv.bad', 'at', '1 month')$$);
CREATE UNLOGGED TABLE light (at date);
SELECT * FROM techally.partition_obstacles('light', 'at');
SELECT * FROM techally.partition_obstacles('reads', 'at') WHERE reason LIKE 'it is%';
SELECT * FROM techally.partition_obstacles('ev_2023_11', 'at') WHERE reason LIKE 'it is%';
CREATE TABLE good (at date);
SELECT * FROM raised($$SELECT techally.switch_to_partitioned('cnv.good', 'at', '5 minutes')$$);
SELECT relkind FROM pg_class WHERE oid = 'good'::regclass;
CALL techally.partition_table(NULL, 'at', '1 month');
GRANT EXECUTE ON FUNCTION techally.switch_to_partitioned(regclass, name, interval) TO regress_cnv_reader;
GRANT USAGE ON SCHEMA cnv TO regress_cnv_reader;
SET ROLE regress_cnv_reader;
SELECT * FROM raised($$SELECT techally.switch_to_partitioned('cnv.good', 'at', '1 month')$$);
RESET ROLE;

-- by LIST and by HASH, as the source documents have them
CREATE TABLE products (id int, category text) PARTITION BY LIST (category);
SELECT techally.create_list_partition('products', 'electronics', 'electronics', 'computers', 'phones');
SELECT techally.create_list_partition('products', 'none', NULL);
SELECT techally.create_list_partition('products', 'default', VARIADIC '{}');
CREATE TABLE users (id int) PARTITION BY HASH (id);
SELECT techally.create_hash_partitions('users', 4);
SELECT techally.create_hash_partitions('users', 4);
CREATE TABLE users_by (id int) PARTITION BY HASH (id);
SELECT techally.create_hash_partitions('users_by', 2, 'shard');
SELECT c.relname, pg_get_expr(relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent IN ('products'::regclass, 'users'::regclass, 'users_by'::regclass) ORDER BY 1;
SELECT * FROM raised($$SELECT techally.create_list_partition('cnv.users', 'x', 'y')$$);
SELECT * FROM raised($$SELECT techally.create_hash_partitions('cnv.products', 4)$$);
SELECT * FROM raised($$SELECT techally.create_hash_partitions('cnv.users', 0)$$);
SELECT * FROM raised($$SELECT techally.create_list_partition('cnv.products', 'again', 'phones')$$);

DROP PUBLICATION regress_cnv;
DROP SCHEMA cnv CASCADE;
DROP OWNED BY regress_cnv_owner, regress_cnv_reader, regress_cnv_ann, regress_cnv_ben;
DROP ROLE regress_cnv_owner, regress_cnv_reader, regress_cnv_ann, regress_cnv_ben;
