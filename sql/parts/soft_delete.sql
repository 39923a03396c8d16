-- Soft delete: which tables, the triggers, and the functions around them.

CREATE TABLE techally.soft_delete_tables (
    target     regclass    CONSTRAINT soft_delete_tables_pkey PRIMARY KEY,
    enabled_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
GRANT SELECT ON TABLE techally.soft_delete_tables TO PUBLIC;
COMMENT ON TABLE techally.soft_delete_tables IS 'Tables whose rows are deleted by setting deleted_at; written by enable_soft_delete and disable_soft_delete';
COMMENT ON COLUMN techally.soft_delete_tables.target IS 'The table; a partitioned one stands for its partitions';
COMMENT ON COLUMN techally.soft_delete_tables.enabled_at IS 'When it became one';

SELECT pg_catalog.pg_extension_config_dump('techally.soft_delete_tables', '');

-- Trigger functions act on the rows that fire them, so EXECUTE may stay with
-- PUBLIC: whoever owns a table must be able to restore its triggers.

CREATE FUNCTION techally.soft_delete_row()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_soft_delete_row';
COMMENT ON FUNCTION techally.soft_delete_row() IS
'Trigger, BEFORE DELETE of a row: has the end of the statement set deleted_at instead';

CREATE FUNCTION techally.deleted_at_changed()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_deleted_at_changed';
COMMENT ON FUNCTION techally.deleted_at_changed() IS
'Trigger, AFTER UPDATE OF deleted_at of a row: dependents follow one that was deleted or restored by hand';

CREATE FUNCTION techally.is_own_deletion(before uuid, after uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_is_own_deletion';
COMMENT ON FUNCTION techally.is_own_deletion(uuid, uuid) IS
'Whether techally itself is just now deleting or restoring rows of this deletion; the condition of deleted_at_changed';

CREATE FUNCTION techally.note_row_move()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_note_row_move';
COMMENT ON FUNCTION techally.note_row_move() IS
'Trigger, BEFORE UPDATE of a row of a partition: lets it move to another';

CREATE FUNCTION techally.refuse_deleted_parent()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_refuse_deleted_parent';
COMMENT ON FUNCTION techally.refuse_deleted_parent() IS
'Constraint trigger FROM a soft-delete table, AFTER INSERT or UPDATE of a row that refers to it: refuses one that refers to a deleted row';

-- All that follows acts with the rights of the caller, who must own the table or
-- have the privileges that are asked for: PUBLIC may call it.

CREATE FUNCTION techally.enable_soft_delete(target regclass)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_enable_soft_delete';
COMMENT ON FUNCTION techally.enable_soft_delete(regclass) IS
'Makes a table a soft-delete table: DELETE sets deleted_at; puts back what is missing where it is one';

CREATE FUNCTION techally.enable_soft_delete_together(targets regclass[])
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_enable_soft_delete_together';
COMMENT ON FUNCTION techally.enable_soft_delete_together(regclass[]) IS
'The same for several tables at once, whose foreign keys may form a circle';

CREATE FUNCTION techally.disable_soft_delete(target regclass)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_disable_soft_delete';
COMMENT ON FUNCTION techally.disable_soft_delete(regclass) IS
'Makes a soft-delete table an ordinary one again; its columns and deleted rows stay';

CREATE FUNCTION techally.live_unique(target regclass, columns name[])
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_live_unique';
COMMENT ON FUNCTION techally.live_unique(regclass, name[]) IS
'Makes columns of a soft-delete table unique among its living rows; replaces a unique key over the same columns';

CREATE FUNCTION techally.soft_delete(table_name text, record_id uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_soft_delete_by_name';
COMMENT ON FUNCTION techally.soft_delete(text, uuid) IS
'Deletes a row softly, and what goes with it; true: deleted now, false: it was already';

CREATE FUNCTION techally.soft_delete(target regclass, record_id uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_soft_delete';
COMMENT ON FUNCTION techally.soft_delete(regclass, uuid) IS
'Deletes a row softly, and what goes with it; true: deleted now, false: it was already';

CREATE FUNCTION techally.restore_deleted(table_name text, record_id uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_restore_deleted_by_name';
COMMENT ON FUNCTION techally.restore_deleted(text, uuid) IS
'Brings a deleted row back, and what went with it; true: restored now, false: it was not deleted';

CREATE FUNCTION techally.restore_deleted(target regclass, record_id uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_restore_deleted';
COMMENT ON FUNCTION techally.restore_deleted(regclass, uuid) IS
'Brings a deleted row back, and what went with it; true: restored now, false: it was not deleted';

CREATE FUNCTION techally.purge_deleted(target regclass, older_than interval, max_rows integer DEFAULT 10000)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_purge_deleted';
COMMENT ON FUNCTION techally.purge_deleted(regclass, interval, integer) IS
'Really removes rows that were deleted so long ago, at most so many; returns how many went, call it until 0';

CREATE FUNCTION techally.soft_delete_user(store name, user_uuid uuid)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_soft_delete_user';
COMMENT ON FUNCTION techally.soft_delete_user(name, uuid) IS
'Deletes a user of a store softly; called by the store''s soft_delete_user';

-- What enable_soft_delete would put right, and what it would refuse by now.
CREATE FUNCTION techally.soft_delete_health()
RETURNS TABLE (check_name text, status text, message text)
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    WITH ours AS (
        SELECT p.oid, p.proname
          FROM pg_catalog.pg_proc p
         WHERE p.pronamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'techally')
    ), tables AS (
        SELECT s.target, c.relkind
          FROM techally.soft_delete_tables s
          JOIN pg_catalog.pg_class c ON c.oid = s.target
    ), members AS (
        SELECT t.target, t.relkind, t.target::oid AS relid FROM tables t
        UNION ALL
        SELECT t.target, t.relkind, p.relid::oid FROM tables t, pg_catalog.pg_partition_tree(t.target) p
         WHERE t.relkind = 'p' AND p.relid <> t.target
    ), keys AS (
        SELECT f.conname, f.conrelid, f.confrelid, f.confdeltype, f.conkey, m.target
          FROM pg_catalog.pg_constraint f
          JOIN members m ON m.relid = f.confrelid
         WHERE f.contype = 'f' AND f.conparentid = 0
    ), meddlers AS (
        SELECT m.relid, g.tgname
          FROM (SELECT relid FROM members
                UNION SELECT k.conrelid FROM keys k
                UNION SELECT p.relid FROM keys k, pg_catalog.pg_partition_tree(k.conrelid) p) m
          JOIN pg_catalog.pg_trigger g ON g.tgrelid = m.relid
         WHERE (NOT g.tgisinternal OR g.tgparentid <> 0) AND g.tgtype & 19 = 19 AND g.tgtype & 64 = 0 AND g.tgfoid NOT IN (SELECT oid FROM ours)
    ), problems AS (
        SELECT 'CRITICAL' AS status, 'run techally.enable_soft_delete' AS advice,
               format('soft-delete table %s: trigger %s is %s, so that %s', m.relid::regclass, e.name,
                      CASE WHEN g.oid IS NULL THEN 'missing' ELSE 'disabled' END, e.consequence) AS message
          FROM members m
          CROSS JOIN (VALUES ('techally_soft_delete', 'soft_delete_row', 'DELETE really deletes', false),
                             ('techally_deleted_at', 'deleted_at_changed', 'dependents do not follow a row that is deleted by hand', false),
                             ('techally_row_move', 'note_row_move', 'rows do not move between partitions', true)) e (name, function, consequence, for_partitioned)
          LEFT JOIN pg_catalog.pg_trigger g ON g.tgrelid = m.relid AND g.tgfoid = (SELECT o.oid FROM ours o WHERE o.proname = e.function)
         WHERE (m.relkind = 'p' OR NOT e.for_partitioned) AND (g.oid IS NULL OR g.tgenabled = 'D')
        UNION ALL
        SELECT 'CRITICAL', 'run techally.enable_soft_delete',
               format('soft-delete table %s has no column "deleted_at", so that DELETE fails', t.target)
          FROM tables t
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.target AND a.attname = 'deleted_at' AND NOT a.attisdropped)
        UNION ALL
        SELECT 'CRITICAL', 'take it out of the inheritance',
               format('table %s inherits from soft-delete table %s, so that a DELETE there fails where it comes to its rows', i.inhrelid::regclass, t.target)
          FROM tables t
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.target
         WHERE t.relkind = 'r'
        UNION ALL
        SELECT 'WARNING', 'run techally.enable_soft_delete',
               format('table %s: foreign key "%s" refers to soft-delete table %s unguarded: its rows can come to refer to deleted ones',
                      k.conrelid::regclass, k.conname, k.confrelid::regclass)
          FROM keys k
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g
                            WHERE g.tgrelid = k.conrelid AND g.tgconstrrelid = k.confrelid AND g.tgenabled <> 'D'
                              AND g.tgfoid = (SELECT o.oid FROM ours o WHERE o.proname = 'refuse_deleted_parent')
                              AND (g.tgattr = '' OR k.conkey <@ g.tgattr::smallint[]))
        UNION ALL
        SELECT 'WARNING', 'run techally.enable_soft_delete',
               format('table %s: foreign key "%s" to soft-delete table %s is ON DELETE CASCADE, and the table is none itself: rows that it refers to cannot be deleted',
                      k.conrelid::regclass, k.conname, k.confrelid::regclass)
          FROM keys k
         WHERE k.confdeltype = 'c' AND NOT EXISTS (SELECT FROM members o WHERE o.relid = k.conrelid)
        UNION ALL
        SELECT 'WARNING', format('run techally.enable_soft_delete for %s', t.target),
               format('table %s: trigger "%s" may change columns that an UPDATE does not name, and trigger "%s" of soft delete would not notice',
                      d.relid::regclass, min(d.tgname), min(g.tgname))
          FROM meddlers d
          JOIN pg_catalog.pg_trigger g ON g.tgrelid = d.relid AND g.tgattr <> ''
           AND g.tgfoid IN (SELECT o.oid FROM ours o WHERE o.proname IN ('deleted_at_changed', 'refuse_deleted_parent'))
          JOIN members t ON t.relid = CASE WHEN g.tgconstrrelid = 0 THEN g.tgrelid ELSE g.tgconstrrelid END
         GROUP BY d.relid, t.target
    )
    SELECT 'soft delete', p.status, p.message || '; ' || p.advice FROM problems p
    UNION ALL
    SELECT 'soft delete', 'OK', format('%s soft-delete tables', (SELECT count(*) FROM techally.soft_delete_tables))
     WHERE NOT EXISTS (SELECT FROM problems)
$function$;
REVOKE ALL ON FUNCTION techally.soft_delete_health() FROM PUBLIC;
COMMENT ON FUNCTION techally.soft_delete_health() IS
'Whether the triggers of all soft-delete tables, and of those that refer to them, are in place';
