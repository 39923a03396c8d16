-- Retention: how long rows stay, and what becomes of them then.
--
-- Partitioned tables under manage_partitions lose whole partitions; that is
-- the partitions' part.  Here rows go, each with everything that hangs on it.

CREATE TABLE techally.retention_rules (
    target          regclass CONSTRAINT retention_rules_pkey PRIMARY KEY,
    time_column     name     NOT NULL,
    ends_column     name,
    keep_for        interval CONSTRAINT chk_retention_rules_keep_for CHECK (keep_for > interval '0'),
    action          text     NOT NULL CONSTRAINT chk_retention_rules_action CHECK (action IN ('archive', 'delete')),
    aggregate_after interval CONSTRAINT chk_retention_rules_aggregate_after CHECK (aggregate_after > interval '0'),
    aggregate_by    name[],
    CONSTRAINT chk_retention_rules_aggregate CHECK (aggregate_after IS NULL OR aggregate_by IS NOT NULL AND action = 'delete')
);
GRANT SELECT ON TABLE techally.retention_rules TO PUBLIC;
COMMENT ON TABLE techally.retention_rules IS 'How long rows of a table stay, where it is not as retention_defaults has it; written by set_retention and reset_retention';
COMMENT ON COLUMN techally.retention_rules.target IS 'The table';
COMMENT ON COLUMN techally.retention_rules.time_column IS 'The column that says how old a row is';
COMMENT ON COLUMN techally.retention_rules.ends_column IS 'A row stays while the time in this column lies ahead; NULL: there is no such column';
COMMENT ON COLUMN techally.retention_rules.keep_for IS 'How long rows stay; NULL: for ever';
COMMENT ON COLUMN techally.retention_rules.action IS 'What becomes of them then: archive or delete';
COMMENT ON COLUMN techally.retention_rules.aggregate_after IS 'After which time rows are counted by day; NULL: never';
COMMENT ON COLUMN techally.retention_rules.aggregate_by IS 'By which columns they are counted; those that the table lacks are left out';
SELECT pg_catalog.pg_extension_config_dump('techally.retention_rules', '');

-- The periods of document 000; where a row goes, of documents 000 and 004.
CREATE VIEW techally.retention_defaults AS
SELECT d.table_name::name COLLATE "C" AS table_name, d.time_column::name AS time_column, d.ends_column::name AS ends_column,
       d.keep_for, d.action, d.aggregate_after, d.aggregate_by::name[] AS aggregate_by
  FROM (VALUES
       ('orders',           'created_at', NULL,         interval '7 years', 'archive', NULL::interval,      NULL::text[]),
       ('user_sessions',    'created_at', 'expires_at', interval '90 days', 'delete',  NULL,                NULL),
       ('sessions',         'created_at', 'expires_at', interval '90 days', 'delete',  NULL,                NULL),
       ('application_logs', 'created_at', NULL,         interval '1 year',  'archive', NULL,                NULL),
       ('logs',             'created_at', NULL,         interval '1 year',  'archive', NULL,                NULL),
       ('audit_logs',       'changed_at', NULL,         interval '1 year',  'archive', NULL,                NULL),
       ('analytics_events', 'created_at', NULL,         interval '2 years', 'delete',  interval '6 months', '{event_type,event_name}')
       ) AS d (table_name, time_column, ends_column, keep_for, action, aggregate_after, aggregate_by);
GRANT SELECT ON techally.retention_defaults TO PUBLIC;
COMMENT ON VIEW techally.retention_defaults IS 'How long rows of a store''s tables stay, by the tables'' names, from the moment there is such a table';
COMMENT ON COLUMN techally.retention_defaults.table_name IS 'The table''s name, in any store';
COMMENT ON COLUMN techally.retention_defaults.time_column IS 'The column that says how old a row is';
COMMENT ON COLUMN techally.retention_defaults.ends_column IS 'A row stays while the time in this column lies ahead';
COMMENT ON COLUMN techally.retention_defaults.keep_for IS 'How long rows stay';
COMMENT ON COLUMN techally.retention_defaults.action IS 'What becomes of them then';
COMMENT ON COLUMN techally.retention_defaults.aggregate_after IS 'After which time rows are counted by day';
COMMENT ON COLUMN techally.retention_defaults.aggregate_by IS 'By which columns they are counted';

-- With each table's OID; NULL where there is no such table yet.
CREATE VIEW techally.retention_plan AS
WITH stores AS (
    SELECT n.oid, n.nspname
      FROM techally.store_registry r
      JOIN pg_catalog.pg_class a ON a.oid = r.anchor
      JOIN pg_catalog.pg_namespace n ON n.oid = a.relnamespace
), rules AS (
    SELECT n.nspname, c.relname, c.oid, r.time_column, r.ends_column, r.keep_for, r.action, r.aggregate_after, r.aggregate_by, 'rule' AS source
      FROM techally.retention_rules r
      JOIN pg_catalog.pg_class c ON c.oid = r.target
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT s.nspname, d.table_name, c.oid, d.time_column, d.ends_column, d.keep_for, d.action, d.aggregate_after, d.aggregate_by, 'default'
      FROM stores s
     CROSS JOIN techally.retention_defaults d
      LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid AND c.relname = d.table_name AND c.relkind IN ('r', 'p')
     WHERE NOT EXISTS (SELECT FROM techally.retention_rules r WHERE r.target = c.oid)
)
SELECT r.oid AS target,
       pg_catalog.format('%I.%I', r.nspname, r.relname) AS relation,
       r.time_column,
       r.ends_column,
       coalesce(m.retention, r.keep_for) AS keep_for,
       CASE WHEN m.parent IS NULL THEN r.action WHEN m.retention IS NOT NULL THEN m.retention_action
            WHEN r.action = 'delete' THEN 'drop' ELSE r.action END AS action,
       r.aggregate_after,
       r.aggregate_by,
       CASE WHEN m.parent IS NULL THEN r.source ELSE 'partitions' END AS source,
       r.oid IS NOT NULL AND coalesce(m.retention, r.keep_for) IS NOT NULL AS in_force
  FROM rules r
  LEFT JOIN techally.managed_partitions m ON m.parent = r.oid
UNION ALL
SELECT m.parent, pg_catalog.format('%I.%I', n.nspname, c.relname), NULL, NULL, m.retention, m.retention_action, NULL, NULL, 'partitions', m.retention IS NOT NULL
  FROM techally.managed_partitions m
  JOIN pg_catalog.pg_class c ON c.oid = m.parent
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT EXISTS (SELECT FROM rules r WHERE r.oid = m.parent);
GRANT SELECT ON techally.retention_plan TO PUBLIC;
COMMENT ON VIEW techally.retention_plan IS 'What retention_policies shows, with the tables'' OIDs';
COMMENT ON COLUMN techally.retention_plan.target IS 'The table''s OID; NULL: it does not exist yet';
COMMENT ON COLUMN techally.retention_plan.relation IS 'The table; it may not exist yet';
COMMENT ON COLUMN techally.retention_plan.time_column IS 'The column that says how old a row is';
COMMENT ON COLUMN techally.retention_plan.ends_column IS 'A row stays while the time in this column lies ahead';
COMMENT ON COLUMN techally.retention_plan.keep_for IS 'How long rows stay; NULL: for ever';
COMMENT ON COLUMN techally.retention_plan.action IS 'What becomes of them then: archive or delete; of partitions: drop, detach or archive';
COMMENT ON COLUMN techally.retention_plan.aggregate_after IS 'After which time rows are counted by day';
COMMENT ON COLUMN techally.retention_plan.aggregate_by IS 'By which columns they are counted';
COMMENT ON COLUMN techally.retention_plan.source IS 'default, rule (set_retention), or partitions: whole partitions go (manage_partitions, or where that names no retention what set_retention or the defaults say)';
COMMENT ON COLUMN techally.retention_plan.in_force IS 'Whether there is such a table, and its rows go some day';

CREATE VIEW techally.retention_policies AS
SELECT p.relation, p.time_column, p.ends_column, p.keep_for, p.action, p.aggregate_after, p.aggregate_by, p.source, p.in_force
  FROM techally.retention_plan p;
GRANT SELECT ON techally.retention_policies TO PUBLIC;
COMMENT ON VIEW techally.retention_policies IS 'How long rows stay and what becomes of them; changed by UPDATE, or set_retention and manage_partitions';
COMMENT ON COLUMN techally.retention_policies.relation IS 'The table; it may not exist yet';
COMMENT ON COLUMN techally.retention_policies.time_column IS 'The column that says how old a row is';
COMMENT ON COLUMN techally.retention_policies.ends_column IS 'A row stays while the time in this column lies ahead';
COMMENT ON COLUMN techally.retention_policies.keep_for IS 'How long rows stay; NULL: for ever';
COMMENT ON COLUMN techally.retention_policies.action IS 'What becomes of them then: archive or delete; of partitions: drop, detach or archive';
COMMENT ON COLUMN techally.retention_policies.aggregate_after IS 'After which time rows are counted by day';
COMMENT ON COLUMN techally.retention_policies.aggregate_by IS 'By which columns they are counted';
COMMENT ON COLUMN techally.retention_policies.source IS 'default, rule (set_retention), or partitions: whole partitions go (manage_partitions, or where that names no retention what set_retention or the defaults say)';
COMMENT ON COLUMN techally.retention_policies.in_force IS 'Whether there is such a table, and its rows go some day';

CREATE FUNCTION techally.set_retention(
    target regclass,
    keep_for interval,
    action text DEFAULT 'archive',
    time_column name DEFAULT 'created_at',
    ends_column name DEFAULT NULL,
    aggregate_after interval DEFAULT NULL,
    aggregate_by name[] DEFAULT NULL
) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_set_retention';
COMMENT ON FUNCTION techally.set_retention(regclass, interval, text, name, name, interval, name[]) IS
'Sets how long rows of a table stay and what becomes of them; keep_for NULL: they stay for ever';

CREATE FUNCTION techally.reset_retention(target regclass)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_reset_retention';
COMMENT ON FUNCTION techally.reset_retention(regclass) IS
'Takes back what set_retention said of a table';

CREATE FUNCTION techally.change_retention_policy()
RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF to_regclass(OLD.relation) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_table', MESSAGE = format('relation "%s" does not exist', OLD.relation),
            HINT = 'Its policy can be changed once it is there.';
    END IF;
    IF TG_OP = 'DELETE' THEN
        PERFORM techally.reset_retention(OLD.relation::regclass);
        RETURN OLD;
    END IF;
    IF OLD.source = 'partitions' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('the partitions of %s are managed', OLD.relation), HINT = 'Use techally.manage_partitions.';
    END IF;
    IF NEW.relation IS DISTINCT FROM OLD.relation OR NEW.source IS DISTINCT FROM OLD.source OR NEW.in_force IS DISTINCT FROM OLD.in_force THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'columns relation, source and in_force of a retention policy cannot be changed';
    END IF;
    PERFORM techally.set_retention(OLD.relation::regclass, NEW.keep_for, NEW.action, NEW.time_column, NEW.ends_column,
                                   NEW.aggregate_after, NEW.aggregate_by);
    RETURN NEW;
END
$function$;
COMMENT ON FUNCTION techally.change_retention_policy() IS
'Trigger of the view retention_policies: an UPDATE sets a policy, a DELETE takes back what was set';
CREATE TRIGGER techally_change INSTEAD OF UPDATE OR DELETE ON techally.retention_policies
    FOR EACH ROW EXECUTE FUNCTION techally.change_retention_policy();
GRANT UPDATE, DELETE ON techally.retention_policies TO PUBLIC;

-- One whole.  A row hangs on another where a foreign key says so and its
-- deletion would not just empty the reference (SET NULL, SET DEFAULT).

CREATE TYPE techally.row_set AS (relation oid, rows tid[]);
COMMENT ON TYPE techally.row_set IS 'Rows of one table or leaf partition, by where they lie';

CREATE FUNCTION techally.retention_edges(target oid)
RETURNS TABLE (child oid, parent oid, condition text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
WITH RECURSIVE whole (relation) AS (
    SELECT target
     UNION
    SELECT k.conrelid FROM whole w
      JOIN pg_constraint k ON k.confrelid = w.relation AND k.contype = 'f' AND k.conparentid = 0 AND k.confdeltype NOT IN ('n', 'd')
)
SELECT k.conrelid, k.confrelid,
       (SELECT string_agg(format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, n.nspname, o.oprname, ca.attname), ' AND ' ORDER BY u.i)
          FROM unnest(k.confkey, k.conkey, k.conpfeqop) WITH ORDINALITY AS u (pkey, ckey, op, i)
          JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.pkey
          JOIN pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.ckey
          JOIN pg_operator o ON o.oid = u.op
          JOIN pg_namespace n ON n.oid = o.oprnamespace)
  FROM whole w
  JOIN pg_constraint k ON k.confrelid = w.relation AND k.contype = 'f' AND k.conparentid = 0 AND k.confdeltype NOT IN ('n', 'd')
  JOIN pg_class r ON r.oid = k.conrelid
 ORDER BY r.relname, k.conrelid, k.conname
$function$;
COMMENT ON FUNCTION techally.retention_edges(oid) IS 'The foreign keys by which rows hang on a table''s rows, directly or through others';

CREATE FUNCTION techally.retention_leaves(target oid)
RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT t.relid::oid FROM pg_partition_tree(target) t WHERE t.isleaf
UNION
SELECT target WHERE NOT EXISTS (SELECT FROM pg_partition_tree(target))
$function$;
COMMENT ON FUNCTION techally.retention_leaves(oid) IS 'A table''s leaf partitions, or the table';

CREATE FUNCTION techally.retention_top(target oid)
RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT coalesce((SELECT a.relid::oid FROM pg_partition_ancestors(target) WITH ORDINALITY AS a (relid, n) ORDER BY a.n DESC LIMIT 1), target)
$function$;
COMMENT ON FUNCTION techally.retention_top(oid) IS 'The partitioned table that a partition belongs to in the end, or the table';

CREATE FUNCTION techally.row_sets_add(INOUT sets techally.row_set[], relation oid, rows tid[], OUT added tid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    FOR i IN 1 .. coalesce(array_length(sets, 1), 0) LOOP
        IF sets[i].relation = row_sets_add.relation THEN
            added := ARRAY(SELECT r FROM unnest(row_sets_add.rows) r EXCEPT SELECT r FROM unnest(sets[i].rows) r);
            sets[i].rows := sets[i].rows || added;
            RETURN;
        END IF;
    END LOOP;
    added := coalesce(row_sets_add.rows, '{}');
    sets := sets || ROW(row_sets_add.relation, added)::techally.row_set;
END
$function$;
COMMENT ON FUNCTION techally.row_sets_add(techally.row_set[], oid, tid[]) IS 'Adds rows to sets of rows; says which were new';

CREATE FUNCTION techally.row_sets_of(sets techally.row_set[], relation oid)
RETURNS tid[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT coalesce((SELECT s.rows FROM unnest(sets) s WHERE s.relation = $2), '{}')
$function$;
COMMENT ON FUNCTION techally.row_sets_of(techally.row_set[], oid) IS 'The rows of one table in sets of rows';

-- Locks what it finds, parents first: with its parent locked FOR UPDATE a row
-- gets no new rows that hang on it.
CREATE FUNCTION techally.collect_whole(target oid, roots techally.row_set, locking boolean)
RETURNS techally.row_set[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    sets     techally.row_set[] := ARRAY[roots];
    frontier techally.row_set[] := ARRAY[roots];
    reached  techally.row_set[];
    front    techally.row_set;
    edge     record;
    leaf     oid;
    found    tid[];
    added    tid[];
BEGIN
    WHILE array_length(frontier, 1) > 0 LOOP
        reached := '{}';
        FOREACH front IN ARRAY frontier LOOP
            CONTINUE WHEN cardinality(front.rows) = 0;
            FOR edge IN SELECT e.* FROM techally.retention_edges(target) e
                         WHERE e.child <> target AND front.relation IN (SELECT techally.retention_leaves(e.parent))
            LOOP
                FOR leaf IN SELECT l FROM techally.retention_leaves(edge.child) l ORDER BY l LOOP
                    EXECUTE format('SELECT array_agg(f.ctid) FROM (SELECT c.ctid FROM ONLY %s c WHERE EXISTS'
                                   ' (SELECT FROM ONLY %s p WHERE p.ctid = ANY ($1) AND %s) %s) f',
                                   leaf::regclass, front.relation::regclass, edge.condition, CASE WHEN locking THEN 'FOR UPDATE' ELSE '' END)
                       INTO found USING front.rows;
                    CONTINUE WHEN found IS NULL;
                    SELECT a.sets, a.added INTO sets, added FROM techally.row_sets_add(sets, leaf, found) a;
                    IF cardinality(added) > 0 THEN
                        SELECT a.sets INTO reached FROM techally.row_sets_add(reached, leaf, added) a;
                    END IF;
                END LOOP;
            END LOOP;
        END LOOP;
        frontier := reached;
    END LOOP;
    RETURN sets;
END
$function$;
COMMENT ON FUNCTION techally.collect_whole(oid, techally.row_set, boolean) IS 'Rows and everything that hangs on them';

-- What cannot go holds back what it hangs on: a row that also hangs on another
-- whole, a row of the table itself that refers to one that would go, a
-- reservation that still holds stock.
CREATE FUNCTION techally.held_back(target oid, root oid, sets techally.row_set[])
RETURNS tid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    held  tid[] := '{}';
    bad   techally.row_set[] := '{}';
    front techally.row_set;
    found tid[];
    added tid[];
    edge  record;
    child oid;
    leaf  oid;
    i     integer := 1;
BEGIN
    FOR edge IN SELECT e.*, count(*) OVER (PARTITION BY e.child) AS ways FROM techally.retention_edges(target) e LOOP
        IF edge.child = target THEN
            -- an order that refers to another one
            FOR child IN SELECT techally.retention_leaves(target) LOOP
                EXECUTE format('SELECT array_agg(p.ctid) FROM ONLY %s p WHERE p.ctid = ANY ($1) AND EXISTS'
                               ' (SELECT FROM ONLY %s c WHERE %s AND c.ctid <> ALL ($2))',
                               root::regclass, child::regclass, edge.condition)
                   INTO found USING techally.row_sets_of(sets, root), techally.row_sets_of(sets, child);
                held := held || coalesce(found, '{}');
            END LOOP;
        ELSIF edge.ways > 1 THEN
            FOR child IN SELECT techally.retention_leaves(edge.child) LOOP
                CONTINUE WHEN cardinality(techally.row_sets_of(sets, child)) = 0;
                FOR leaf IN SELECT techally.retention_leaves(edge.parent) LOOP
                    EXECUTE format('SELECT array_agg(c.ctid) FROM ONLY %s c WHERE c.ctid = ANY ($1) AND EXISTS'
                                   ' (SELECT FROM ONLY %s p WHERE %s AND p.ctid <> ALL ($2))',
                                   child::regclass, leaf::regclass, edge.condition)
                       INTO found USING techally.row_sets_of(sets, child), techally.row_sets_of(sets, leaf);
                    CONTINUE WHEN found IS NULL;
                    SELECT a.sets INTO bad FROM techally.row_sets_add(bad, child, found) a;
                END LOOP;
            END LOOP;
        END IF;
    END LOOP;

    -- of a store: what still holds stock
    FOR leaf IN SELECT s.relation FROM unnest(sets) s JOIN pg_class c ON c.oid = s.relation
                 WHERE c.relname = 'stock_reservations' AND EXISTS (SELECT FROM pg_class a WHERE a.relnamespace = c.relnamespace AND a.relname = 'schema_migrations')
    LOOP
        EXECUTE format('SELECT array_agg(r.ctid) FROM ONLY %s r WHERE r.ctid = ANY ($1) AND r.status = ''active''', leaf::regclass)
           INTO found USING techally.row_sets_of(sets, leaf);
        CONTINUE WHEN found IS NULL;
        SELECT a.sets INTO bad FROM techally.row_sets_add(bad, leaf, found) a;
    END LOOP;

    -- up along the foreign keys
    WHILE i <= coalesce(array_length(bad, 1), 0) LOOP
        front := bad[i];
        i := i + 1;
        FOR edge IN SELECT e.* FROM techally.retention_edges(target) e
                     WHERE e.child <> target AND front.relation IN (SELECT techally.retention_leaves(e.child))
        LOOP
            FOR leaf IN SELECT techally.retention_leaves(edge.parent) LOOP
                CONTINUE WHEN cardinality(techally.row_sets_of(sets, leaf)) = 0;
                EXECUTE format('SELECT array_agg(p.ctid) FROM ONLY %s p WHERE p.ctid = ANY ($1) AND EXISTS'
                               ' (SELECT FROM ONLY %s c WHERE c.ctid = ANY ($2) AND %s)',
                               leaf::regclass, front.relation::regclass, edge.condition)
                   INTO found USING techally.row_sets_of(sets, leaf), front.rows;
                CONTINUE WHEN found IS NULL;
                IF leaf = root THEN
                    held := held || found;
                ELSE
                    SELECT a.added INTO added FROM techally.row_sets_add(bad, leaf, found) a;
                    IF cardinality(added) > 0 THEN
                        bad := bad || ROW(leaf, added)::techally.row_set;
                    END IF;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT h FROM unnest(held) h);
END
$function$;
COMMENT ON FUNCTION techally.held_back(oid, oid, techally.row_set[]) IS 'Which of the rows must stay, for something that hangs on them must';

-- Archives are ordinary tables of the owner's in the schema STORE_archive: the
-- columns of the table, with the base types of domains and text for types that
-- are not PostgreSQL's own, so that nothing ties the archive to the store.

CREATE FUNCTION techally.archive_columns(target oid)
RETURNS TABLE (column_name name, archive_type text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
WITH RECURSIVE typed AS (
    SELECT a.attnum, a.attname, a.atttypid, a.atttypmod
      FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT d.attnum, d.attname, t.typbasetype, t.typtypmod
      FROM typed d JOIN pg_type t ON t.oid = d.atttypid WHERE t.typtype = 'd'
)
SELECT d.attname,
       CASE WHEN coalesce(e.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace AND coalesce(e.typtype, t.typtype) <> 'd'
            THEN format_type(d.atttypid, d.atttypmod) ELSE 'text' END
  FROM typed d
  JOIN pg_type t ON t.oid = d.atttypid AND t.typtype <> 'd'
  LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
 ORDER BY d.attnum
$function$;
COMMENT ON FUNCTION techally.archive_columns(oid) IS 'A table''s columns and the types that they have in its archive';

CREATE FUNCTION techally.archive_schema(target oid)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target);
BEGIN
    IF octet_length(schema) > 55 THEN
        RAISE EXCEPTION USING ERRCODE = 'name_too_long',
            MESSAGE = format('the name of schema "%s" is too long for its archive to have one', schema);
    END IF;
    RETURN schema || '_archive';
END
$function$;
COMMENT ON FUNCTION techally.archive_schema(oid) IS 'The schema that a table''s rows are archived into';

-- Somebody else's schema or table under that name is none of ours to fill.
CREATE FUNCTION techally.ensure_archive_schema(schema text, owner oid)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    present oid := (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = schema);
BEGIN
    IF present IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', schema);
        EXECUTE format('COMMENT ON SCHEMA %I IS %L', schema, 'Archive: rows whose time was over');
    ELSIF present <> owner THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('schema "%s" belongs to another role than what is to be archived there', schema);
    END IF;
END
$function$;
COMMENT ON FUNCTION techally.ensure_archive_schema(text, oid) IS 'Makes an archive''s schema, or makes sure of it';

CREATE FUNCTION techally.ensure_archive(target oid, whole oid)
RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema  text := techally.archive_schema(whole);
    owner   oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = whole);
    name    text := (SELECT CASE WHEN c.relnamespace = w.relnamespace THEN c.relname::text
                                 ELSE c.relnamespace::regnamespace || '.' || c.relname END
                       FROM pg_class c, pg_class w WHERE c.oid = target AND w.oid = whole);
    archive oid;
    present oid;
    missing text;
BEGIN
    PERFORM techally.ensure_archive_schema(schema, owner);
    SELECT c.oid, c.relowner INTO archive, present
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = schema AND c.relname = name;
    IF archive IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (%s, archived_at timestamptz NOT NULL, archive_batch uuid NOT NULL)', schema, name,
                       (SELECT string_agg(format('%I %s', a.column_name, a.archive_type), ', ') FROM techally.archive_columns(target) a));
        EXECUTE format('CREATE INDEX ON %I.%I (archive_batch)', schema, name);
        EXECUTE format('COMMENT ON TABLE %I.%I IS %L', schema, name, format('Rows of %s whose time was over', target::regclass));
    ELSIF present <> owner THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('table "%s.%s" belongs to another role than what is to be archived there', schema, name);
    ELSE
        -- columns that came later
        SELECT string_agg(format('ADD COLUMN %I %s', a.column_name, a.archive_type), ', ') INTO missing
          FROM techally.archive_columns(target) a
         WHERE NOT EXISTS (SELECT FROM pg_attribute h WHERE h.attrelid = archive AND h.attname = a.column_name AND NOT h.attisdropped);
        IF missing IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I.%I %s', schema, name, missing);
        END IF;
    END IF;
    RETURN format('%I.%I', schema, name);
END
$function$;
COMMENT ON FUNCTION techally.ensure_archive(oid, oid) IS 'Makes the archive of a table that is part of a whole, or brings it up to date; returns its name';

-- Copies, proves the copy, deletes.  The order of deletion does not matter in
-- one statement: its foreign keys are checked at its end.
CREATE FUNCTION techally.move_whole(target oid, sets techally.row_set[], action text, cutoff timestamptz)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    batch    uuid := gen_random_uuid();
    stamp    timestamptz := clock_timestamp();
    report   jsonb := '[]';
    total    record;
    leaf     record;
    archive  text;
    names    text;
    values   text;
    proof    text := 'count(*) AS rows, coalesce(sum(hashtextextended(%1$s, 0)::numeric), 0) AS a, coalesce(sum(hashtextextended(%1$s, 1)::numeric), 0) AS b';
    theirs   record;
    ours     record;
    expected numeric[];
    found    numeric[];
    deleted  bigint[];
    carried  jsonb := '[]';
    ledger   record;
BEGIN
    sets := ARRAY(SELECT s FROM unnest(sets) s WHERE cardinality(s.rows) > 0);
    IF cardinality(sets) = 0 THEN
        RETURN report;
    END IF;

    -- by table: a partitioned one has a set for each of its leaves
    FOR total IN
        SELECT r.relation, array_agg(r.i ORDER BY r.i) AS leaves, sum(r.rows) AS rows
          FROM (SELECT g.i, cardinality(sets[g.i].rows) AS rows,
                       techally.retention_top(sets[g.i].relation) AS relation
                  FROM generate_subscripts(sets, 1) AS g (i)) r
         GROUP BY r.relation ORDER BY min(r.i)
    LOOP
        expected := '{0,0,0,0}';
        SELECT string_agg(quote_ident(a.column_name), ', '),
               string_agg(format('t.%I::%s', a.column_name, a.archive_type), ', ')
          INTO names, values FROM techally.archive_columns(total.relation) a;
        IF action = 'archive' THEN
            archive := techally.ensure_archive(total.relation, target);
        END IF;
        FOR leaf IN SELECT sets[l].relation, sets[l].rows FROM unnest(total.leaves) l LOOP
            EXECUTE format('SELECT %s, coalesce(sum(pg_column_size(t.*)), 0) AS bytes FROM ONLY %s t WHERE t.ctid = ANY ($1)',
                           format(proof, format('ROW(%s)::text', values)), leaf.relation::regclass) INTO theirs USING leaf.rows;
            expected := ARRAY[expected[1] + theirs.rows, expected[2] + theirs.a, expected[3] + theirs.b, expected[4] + theirs.bytes];
            IF action = 'archive' THEN
                EXECUTE format('INSERT INTO %s (%s, archived_at, archive_batch) SELECT %s, $2, $3 FROM ONLY %s t WHERE t.ctid = ANY ($1)',
                               archive, names, values, leaf.relation::regclass) USING leaf.rows, stamp, batch;
            END IF;
        END LOOP;
        IF expected[1] <> total.rows THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = format('rows of %s moved while they were archived', total.relation::regclass);
        END IF;
        IF action = 'archive' THEN
            EXECUTE format('SELECT %s FROM %s t WHERE t.archive_batch = $1', format(proof, format('ROW(%s)::text', values)), archive)
               INTO ours USING batch;
            IF (ours.rows, ours.a, ours.b) IS DISTINCT FROM (expected[1]::bigint, expected[2], expected[3]) THEN
                RAISE EXCEPTION USING ERRCODE = 'data_corrupted',
                    MESSAGE = format('the archive of %s does not hold what it was given', total.relation::regclass),
                    DETAIL = format('%s rows went in, %s are there; nothing was deleted.', expected[1], ours.rows);
            END IF;
            PERFORM techally.note_archived(target, total.relation, batch, stamp, cutoff, ours.rows, format('%s:%s', ours.a, ours.b));
        END IF;
        report := report || jsonb_build_object('relation', total.relation::regclass::text, 'cutoff', cutoff, 'rows', expected[1], 'bytes', expected[4], 'action', action);
    END LOOP;

    -- the ledger keeps its sums: what goes is carried forward in one movement
    FOR ledger IN
        SELECT s.relation, s.rows, c.relnamespace::regnamespace AS schema FROM unnest(sets) s JOIN pg_class c ON c.oid = s.relation
         WHERE c.relname = 'stock_movements' AND EXISTS (SELECT FROM pg_class a WHERE a.relnamespace = c.relnamespace AND a.relname = 'inventory_stock')
    LOOP
        EXECUTE format('SELECT coalesce(jsonb_agg(jsonb_build_object(''stock_id'', m.stock_id, ''quantity'', m.quantity)), ''[]'') FROM'
                       ' (SELECT t.stock_id, sum(t.quantity) AS quantity FROM ONLY %s t WHERE t.ctid = ANY ($1)'
                       '   GROUP BY t.stock_id HAVING sum(t.quantity) <> 0) m', ledger.relation::regclass)
           INTO carried USING ledger.rows;
        EXECUTE format('INSERT INTO %s.stock_movements (stock_id, movement_type, quantity, note)'
                       ' SELECT c.stock_id, ''adjustment'', c.quantity, ''carried forward from archived orders'''
                       '   FROM jsonb_to_recordset($1) AS c (stock_id uuid, quantity integer) ORDER BY c.stock_id', ledger.schema)
          USING carried;
    END LOOP;

    EXECUTE (SELECT format('WITH %s SELECT ARRAY[%s]',
                           string_agg(format('d%s AS (DELETE FROM ONLY %s t WHERE t.ctid = ANY (($1[%1$s]).rows) RETURNING 1)', i, sets[i].relation::regclass), ', ' ORDER BY i),
                           string_agg(format('(SELECT count(*) FROM d%s)', i), ', ' ORDER BY i))
               FROM generate_subscripts(sets, 1) i) INTO deleted USING sets;
    FOR i IN 1 .. cardinality(sets) LOOP
        IF deleted[i] <> cardinality(sets[i].rows) THEN
            RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation',
                MESSAGE = format('%s rows of %s were to go and %s went', cardinality(sets[i].rows), sets[i].relation::regclass, deleted[i]),
                HINT = 'A trigger of the table keeps rows from being deleted.';
        END IF;
    END LOOP;
    RETURN report;
END
$function$;
COMMENT ON FUNCTION techally.move_whole(oid, techally.row_set[], text, timestamptz) IS
'Archives or deletes rows, having made sure by count and checksum that the archive holds them';

CREATE FUNCTION techally.note_archived(target oid, relation oid, batch uuid, archived_at timestamptz, cutoff timestamptz, rows bigint, checksum text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema text := techally.archive_schema(target);
BEGIN
    IF to_regclass(format('%I.archive_batches', schema)) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.archive_batches (batch uuid NOT NULL, relation text NOT NULL, archived_at timestamptz NOT NULL,'
                       ' cutoff timestamptz NOT NULL, rows bigint NOT NULL, checksum text NOT NULL,'
                       ' CONSTRAINT archive_batches_pkey PRIMARY KEY (batch, relation))', schema);
        EXECUTE format('COMMENT ON TABLE %I.archive_batches IS %L', schema, 'What was archived when, with the checksums of its rows');
    END IF;
    IF (SELECT c.relowner FROM pg_class c WHERE c.oid = to_regclass(format('%I.archive_batches', schema)))
       IS DISTINCT FROM (SELECT c.relowner FROM pg_class c WHERE c.oid = target) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('table "%s.archive_batches" belongs to another role than what is to be archived there', schema);
    END IF;
    EXECUTE format('INSERT INTO %I.archive_batches VALUES ($1, $2, $3, $4, $5, $6)', schema)
      USING batch, relation::regclass::text, archived_at, cutoff, rows, checksum;
END
$function$;
COMMENT ON FUNCTION techally.note_archived(oid, oid, uuid, timestamptz, timestamptz, bigint, text) IS 'Writes the manifest of an archive';

-- Counts by day, in UTC.  A day whose rows are deleted is counted from the very
-- rows that go; rows that come late for such a day are added.
CREATE FUNCTION techally.aggregate_days(target oid, time_column name, aggregate_by name[], from_day date, to_day date, deleting boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema     text := techally.archive_schema(target);
    owner      oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = target);
    name       text := (SELECT c.relname || '_daily' FROM pg_class c WHERE c.oid = target);
    timed      text;
    day        text;
    dimensions text;
    scope      text;
    n          bigint;
    bytes      bigint;
BEGIN
    PERFORM techally.ensure_archive_schema(schema, owner);
    IF to_regclass(format('%I.%I', schema, name)) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (day date, dimensions jsonb, rows bigint NOT NULL, is_final boolean NOT NULL, CONSTRAINT %I PRIMARY KEY (day, dimensions))',
                       schema, name, left(name, 58) || '_pkey');
        EXECUTE format('COMMENT ON TABLE %I.%I IS %L', schema, name, format('Rows of %s by day in UTC; is_final: the rows themselves are gone', target::regclass));
    ELSIF (SELECT c.relowner FROM pg_class c WHERE c.oid = to_regclass(format('%I.%I', schema, name))) <> owner THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('table "%s.%s" belongs to another role than what is to be counted there', schema, name);
    END IF;
    SELECT CASE WHEN a.atttypid = 'timestamptz'::regtype THEN format('(t.%I AT TIME ZONE ''UTC'')', a.attname) ELSE format('t.%I::timestamp', a.attname) END
      INTO timed FROM pg_attribute a WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped;
    day := format('%s::date', timed);
    scope := format('t.%I >= $1::timestamp %s AND t.%1$I < $2::timestamp %2$s', time_column,
                    CASE WHEN timed LIKE '%AT TIME ZONE%' THEN 'AT TIME ZONE ''UTC''' ELSE '' END);
    SELECT format('jsonb_build_object(%s)', string_agg(format('%L, t.%I', a.attname, a.attname), ', ' ORDER BY a.attnum))
      INTO dimensions FROM pg_attribute a
     WHERE a.attrelid = target AND a.attname = ANY (aggregate_by) AND NOT a.attisdropped;
    dimensions := coalesce(dimensions, 'jsonb_build_object()');

    EXECUTE format('DELETE FROM %1$I.%2$I d WHERE d.day >= $1 AND d.day < $2'
                   ' AND NOT EXISTS (SELECT FROM %1$I.%2$I f WHERE f.day = d.day AND f.is_final)', schema, name) USING from_day, to_day;
    EXECUTE format('WITH %s, counted AS (SELECT g.day, g.dimensions, count(*) AS rows FROM gone g GROUP BY 1, 2), written AS ('
                   ' INSERT INTO %I.%I AS d (day, dimensions, rows, is_final) SELECT c.day, c.dimensions, c.rows, %L FROM counted c'
                   ' ON CONFLICT (day, dimensions) DO %s)'
                   ' SELECT count(*), coalesce(sum(g.bytes), 0) FROM gone g',
                   CASE WHEN deleting
                        THEN format('gone AS (DELETE FROM %s t WHERE %s RETURNING %s AS day, %s AS dimensions, pg_column_size(t.*) AS bytes)', target::regclass, scope, day, dimensions)
                        ELSE format('gone AS MATERIALIZED (SELECT %s AS day, %s AS dimensions, pg_column_size(t.*) AS bytes FROM %s t WHERE %s)', day, dimensions, target::regclass, scope) END,
                   schema, name, deleting,
                   CASE WHEN deleting THEN 'UPDATE SET rows = d.rows + excluded.rows, is_final = true' ELSE 'NOTHING' END)
       INTO n, bytes USING from_day, to_day;
    RETURN jsonb_build_object('rows', n, 'bytes', bytes);
END
$function$;
COMMENT ON FUNCTION techally.aggregate_days(oid, name, name[], date, date, boolean) IS
'Counts rows by day into STORE_archive.TABLE_daily, deleting them or not';

-- The oldest day of a table's rows before a moment, in UTC.
CREATE FUNCTION techally.oldest_day(target oid, time_column name, before timestamptz)
RETURNS date
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    zoned  boolean := (SELECT a.atttypid = 'timestamptz'::regtype FROM pg_attribute a
                        WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    result date;
BEGIN
    EXECUTE format('SELECT min(t.%I)%s FROM %s t WHERE t.%1$I < %4$s', time_column,
                   CASE WHEN zoned THEN ' AT TIME ZONE ''UTC''' ELSE '' END, target::regclass,
                   CASE WHEN zoned THEN '$1' ELSE '($1 AT TIME ZONE ''UTC'')' END)
       INTO result USING before;
    RETURN result;
END
$function$;
COMMENT ON FUNCTION techally.oldest_day(oid, name, timestamptz) IS 'The oldest day that a table has rows of';

-- One step for a table whose rows are counted: a day that is deleted, or days
-- that are counted.
CREATE FUNCTION techally.retention_days(target oid, at timestamptz, time_column name, keep_for interval,
                                        aggregate_after interval, aggregate_by name[], cursor jsonb, dry_run boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    label    text := target::regclass::text;
    -- whole days only; keep_for NULL: their partitions go, here they are counted
    cutoff   timestamptz := coalesce(date_trunc('day', at AT TIME ZONE 'UTC' - keep_for) AT TIME ZONE 'UTC', '-infinity');
    counting timestamptz := date_trunc('day', at AT TIME ZONE 'UTC' - aggregate_after) AT TIME ZONE 'UTC';
    line     jsonb := jsonb_build_object('relation', label, 'cutoff', cutoff, 'rows', 0, 'bytes', 0, 'action', 'delete');
    zoned    boolean := (SELECT a.atttypid = 'timestamptz'::regtype FROM pg_attribute a
                          WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    daily    text := format('%I.%I', techally.archive_schema(target), (SELECT c.relname || '_daily' FROM pg_class c WHERE c.oid = target));
    part     jsonb;
    day      date;
BEGIN
    IF dry_run THEN
        EXECUTE format('SELECT jsonb_build_object(''rows'', count(*), ''bytes'', coalesce(sum(pg_column_size(t.*)), 0)) FROM %s t WHERE t.%I < %s',
                       label, time_column, CASE WHEN zoned THEN '$1' ELSE '($1 AT TIME ZONE ''UTC'')' END) INTO part USING cutoff;
        RETURN jsonb_build_object('report', jsonb_build_array(line || part));
    END IF;
    day := techally.oldest_day(target, time_column, cutoff);
    IF day IS NOT NULL THEN
        part := techally.aggregate_days(target, time_column, aggregate_by, day, day + 1, true);
        IF part -> 'rows' = '0' THEN
            RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation',
                MESSAGE = format('rows of %s were to go and none went', label),
                HINT = 'A trigger of the table keeps rows from being deleted.';
        END IF;
        RETURN jsonb_build_object('next', '{}', 'report', jsonb_build_array(line || part));
    END IF;
    day := greatest((cursor ->> 'day')::date, techally.oldest_day(target, time_column, counting));
    IF day IS NOT NULL AND to_regclass(daily) IS NOT NULL THEN
        EXECUTE format('SELECT greatest($1, max(d.day) + 1) FROM %s d WHERE NOT d.is_final', daily) INTO day USING day;
    END IF;
    IF day IS NULL OR day >= (counting AT TIME ZONE 'UTC')::date THEN
        RETURN jsonb_build_object('report', jsonb_build_array(line));
    END IF;
    part := techally.aggregate_days(target, time_column, aggregate_by, day, least(day + 31, (counting AT TIME ZONE 'UTC')::date), false);
    RETURN jsonb_build_object('next', jsonb_build_object('day', day + 31), 'report', jsonb_build_array(line || jsonb_build_object('cutoff', counting, 'action', 'aggregate') || part));
END
$function$;
COMMENT ON FUNCTION techally.retention_days(oid, timestamptz, name, interval, interval, name[], jsonb, boolean) IS
'One step of retention for a table whose rows are counted by day';

-- One step for the others: a page of rows with all that hangs on them.
CREATE FUNCTION techally.retention_rows(target oid, at timestamptz, time_column name, ends_column name, keep_for interval, action text,
                                        cursor jsonb, page integer, dry_run boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    cutoff  timestamptz := (at AT TIME ZONE 'UTC' - keep_for) AT TIME ZONE 'UTC';
    kind    text := (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
                      WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    line    jsonb := jsonb_build_object('relation', target::regclass::text, 'cutoff', cutoff, 'rows', 0, 'bytes', 0, 'action', action);
    report  jsonb := jsonb_build_array(line);
    leaf    oid;
    ends    text := '';
    rows    tid[];
    last_at text;
    last    tid;
    sets    techally.row_set[];
    more    tid[];
    held    tid[] := '{}';
    part    record;
    n       bigint;
    bytes   bigint;
    next    jsonb;
BEGIN
    SELECT min(l) INTO leaf FROM techally.retention_leaves(target) l WHERE l >= coalesce((cursor ->> 'leaf')::oid, 0::oid);
    IF leaf IS NULL THEN
        RETURN jsonb_build_object('report', report);
    END IF;
    IF leaf IS DISTINCT FROM (cursor ->> 'leaf')::oid OR cursor ->> 'at' IS NULL THEN
        cursor := NULL;
    END IF;
    IF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = ends_column AND NOT a.attisdropped) THEN
        ends := format('AND (t.%1$I IS NULL OR t.%1$I <= clock_timestamp())', ends_column);
    END IF;
    EXECUTE format($query$
        SELECT array_agg(f.ctid), (array_agg(f.at ORDER BY f.at DESC, f.ctid DESC))[1]::text, (array_agg(f.ctid ORDER BY f.at DESC, f.ctid DESC))[1]
          FROM (SELECT t.ctid, t.%1$I AS at FROM ONLY %2$s t
                 WHERE t.%1$I < %3$s %4$s %5$s ORDER BY t.%1$I, t.ctid LIMIT $4 %6$s) f $query$,
                   time_column, leaf::regclass,
                   CASE kind WHEN 'timestamp with time zone' THEN '$1' WHEN 'date' THEN '($1 AT TIME ZONE ''UTC'')::date' ELSE '($1 AT TIME ZONE ''UTC'')' END,
                   CASE WHEN cursor IS NULL THEN '' ELSE format('AND t.%1$I >= $2::%2$s AND (t.%1$I, t.ctid) > ($2::%2$s, $3)', time_column, kind) END,
                   ends, CASE WHEN dry_run THEN '' ELSE 'FOR UPDATE SKIP LOCKED' END)
       INTO rows, last_at, last
      USING cutoff, cursor ->> 'at', (cursor ->> 'ctid')::tid, page;
    IF rows IS NULL THEN
        -- this leaf is done
        SELECT min(l) INTO leaf FROM techally.retention_leaves(target) l WHERE l > leaf;
        RETURN jsonb_build_object('report', report) || CASE WHEN leaf IS NULL THEN '{}' ELSE jsonb_build_object('next', jsonb_build_object('leaf', leaf)) END;
    END IF;
    next := jsonb_build_object('leaf', leaf, 'at', last_at, 'ctid', last);

    LOOP
        sets := techally.collect_whole(target, ROW(leaf, rows)::techally.row_set, NOT dry_run);
        more := techally.held_back(target, leaf, sets);
        EXIT WHEN cardinality(more) = 0;
        held := held || more;
        rows := ARRAY(SELECT r FROM unnest(rows) r EXCEPT SELECT h FROM unnest(more) h);
        EXIT WHEN cardinality(rows) = 0;
    END LOOP;

    IF cardinality(held) > 0 THEN
        EXECUTE format('SELECT sum(pg_column_size(t.*)) FROM ONLY %s t WHERE t.ctid = ANY ($1)', leaf::regclass) INTO bytes USING held;
        report := report || (line || jsonb_build_object('rows', cardinality(held), 'bytes', bytes, 'action', 'hold back'));
    END IF;
    IF cardinality(rows) > 0 AND dry_run THEN
        FOR part IN SELECT s.relation, s.rows FROM unnest(sets) s WHERE cardinality(s.rows) > 0 LOOP
            EXECUTE format('SELECT count(*), coalesce(sum(pg_column_size(t.*)), 0) FROM ONLY %s t WHERE t.ctid = ANY ($1)', part.relation::regclass)
               INTO n, bytes USING part.rows;
            report := report || (line || jsonb_build_object('relation', techally.retention_top(part.relation)::regclass::text, 'rows', n, 'bytes', bytes));
        END LOOP;
    ELSIF cardinality(rows) > 0 THEN
        report := report || techally.move_whole(target, sets, action, cutoff);
    END IF;
    RETURN jsonb_build_object('report', report, 'next', next);
END
$function$;
COMMENT ON FUNCTION techally.retention_rows(oid, timestamptz, name, name, interval, text, jsonb, integer, boolean) IS
'One step of retention: a page of a table''s rows, with everything that hangs on them';

CREATE FUNCTION techally.retention_page(target oid, at timestamptz, cursor text, page integer, dry_run boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    rule record;
BEGIN
    SELECT p.* INTO rule FROM techally.retention_plan p
     WHERE p.target = retention_page.target AND p.in_force AND (p.source <> 'partitions' OR p.aggregate_after IS NOT NULL);
    IF NOT FOUND OR dry_run AND rule.source = 'partitions' THEN
        RETURN '{"report": []}';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = rule.time_column AND NOT a.attisdropped
                      AND a.atttypid IN ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype)) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_table_definition',
            MESSAGE = format('table %s has no column "%s" with a time', rule.relation, rule.time_column),
            HINT = 'techally.set_retention says which column to go by.';
    END IF;
    IF rule.aggregate_after IS NOT NULL THEN
        RETURN techally.retention_days(target, at, rule.time_column, CASE WHEN rule.source <> 'partitions' THEN rule.keep_for END,
                                       rule.aggregate_after, rule.aggregate_by, cursor::jsonb, dry_run);
    END IF;
    RETURN techally.retention_rows(target, at, rule.time_column, rule.ends_column, rule.keep_for, rule.action, cursor::jsonb, page, dry_run);
END
$function$;
COMMENT ON FUNCTION techally.retention_page(oid, timestamptz, text, integer, boolean) IS
'One step of retention for a table, with its owner''s rights: see retention_step';

CREATE FUNCTION techally.retention_step(target regclass, at timestamptz, cursor text, page integer, dry_run boolean)
RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_retention_step';
COMMENT ON FUNCTION techally.retention_step(regclass, timestamptz, text, integer, boolean) IS
'One step of retention for a table, for its owner and as its owner: what it did ("report") and where to go on ("next"; none: it is done)';

CREATE FUNCTION techally.archive_old_data(dry_run boolean DEFAULT false)
RETURNS TABLE (relation text, cutoff timestamptz, rows bigint, bytes bigint, action text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    policy record;
    answer jsonb;
    cursor text;
    lines  jsonb;
BEGIN
    IF dry_run IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'argument "dry_run" must not be null';
    END IF;
    FOR policy IN SELECT p.relation AS name, c.oid FROM techally.retention_plan p JOIN pg_class c ON c.oid = p.target
                   WHERE p.in_force AND (p.source <> 'partitions' OR p.aggregate_after IS NOT NULL) AND pg_has_role(current_user, c.relowner, 'USAGE') ORDER BY p.relation
    LOOP
        lines := '[]';
        cursor := NULL;
        LOOP
            answer := techally.retention_step(policy.oid, now(), cursor, CASE WHEN dry_run THEN 10000 ELSE 500 END, dry_run);
            -- the same line of each page makes one
            SELECT jsonb_agg(to_jsonb(l) - 'place' ORDER BY l.place) INTO lines FROM (
                SELECT j.relation, j.cutoff, sum(j.rows) AS rows, sum(j.bytes) AS bytes, j.action, min(j.place) AS place
                  FROM (SELECT e.value ->> 'relation' AS relation, e.value ->> 'cutoff' AS cutoff, (e.value ->> 'rows')::numeric AS rows,
                               (e.value ->> 'bytes')::numeric AS bytes, e.value ->> 'action' AS action, e.ordinality AS place
                          FROM jsonb_array_elements(lines || (answer -> 'report')) WITH ORDINALITY e) j
                 GROUP BY j.relation, j.cutoff, j.action) l;
            cursor := answer ->> 'next';
            EXIT WHEN cursor IS NULL;
        END LOOP;
        RETURN QUERY SELECT l.relation, l.cutoff, l.rows, l.bytes, l.action
                       FROM jsonb_to_recordset(coalesce(lines, '[]')) AS l (relation text, cutoff timestamptz, rows bigint, bytes bigint, action text);
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION techally.archive_old_data(boolean) FROM PUBLIC;
COMMENT ON FUNCTION techally.archive_old_data(boolean) IS
'Applies the retention policies to the tables that the caller owns, in one transaction, or says what would go';

-- The tasks.

CREATE FUNCTION techally.retire_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT p.relation, c.relowner
  FROM techally.retention_plan p
  JOIN pg_catalog.pg_class c ON c.oid = p.target
 WHERE p.in_force AND p.source = 'partitions'
 ORDER BY 1
$function$;
REVOKE ALL ON FUNCTION techally.retire_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.retire_items() IS 'Items of the task retire: managed tables with a retention';

-- A managed table without a retention of its own takes the one that there is
-- for its rows.
CREATE FUNCTION techally.retire_step(item text, cursor text, OUT done bigint, OUT next text, OUT failure text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    BEGIN
        PERFORM techally.manage_partitions(p.target::regclass, m.step, m.premake, p.keep_for, p.action)
           FROM techally.retention_plan p
           JOIN techally.managed_partitions m ON m.parent = p.target
          WHERE p.target = item::regclass AND m.retention IS NULL AND p.in_force;
        next := techally.retire_partition(item::regclass, clock_timestamp());
        done := CASE WHEN next IS NULL THEN 0 ELSE 1 END;
    EXCEPTION WHEN OTHERS THEN
        failure := format('%s (%s)', SQLERRM, SQLSTATE);
    END;
    PERFORM techally.note_partition_run(item::regclass, 'retire', failure);
END
$function$;
COMMENT ON FUNCTION techally.retire_step(text, text) IS 'Step of the task retire: one partition';

CREATE FUNCTION techally.archive_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT p.relation, c.relowner
  FROM techally.retention_plan p
  JOIN pg_catalog.pg_class c ON c.oid = p.target
 WHERE p.in_force AND (p.source <> 'partitions' OR p.aggregate_after IS NOT NULL)
 ORDER BY 1
$function$;
REVOKE ALL ON FUNCTION techally.archive_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.archive_items() IS 'Items of the task archive: tables with a policy in force';

CREATE FUNCTION techally.archive_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    answer jsonb := techally.retention_step(item::regclass, clock_timestamp(), cursor, 500, false);
BEGIN
    SELECT coalesce(sum((e.value ->> 'rows')::bigint), 0) INTO done
      FROM jsonb_array_elements(answer -> 'report') e WHERE e.value ->> 'action' <> 'hold back';
    next := answer ->> 'next';
END
$function$;
COMMENT ON FUNCTION techally.archive_step(text, text) IS 'Step of the task archive: a page of rows';
