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

-- Of an audit log only whole months go, so that its seals can tell a rule from
-- somebody who takes rows away.
CREATE FUNCTION techally.is_audit_log(target oid)
RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = target AND t.tgfoid = 'techally.guard_audit_log()'::regprocedure)
$function$;
COMMENT ON FUNCTION techally.is_audit_log(oid) IS 'Whether a table is an audit log of ours, or its seals';

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
       r.oid IS NOT NULL AND coalesce(m.retention, r.keep_for) IS NOT NULL
           AND (m.parent IS NOT NULL OR NOT techally.is_audit_log(r.oid)) AS in_force
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
    -- a default may name a column that this table does without
    IF NEW.ends_column IS NOT DISTINCT FROM OLD.ends_column
       AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = OLD.relation::regclass AND a.attname = NEW.ends_column AND NOT a.attisdropped) THEN
        NEW.ends_column := NULL;
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

CREATE TYPE techally.retention_edge AS (child oid, parent oid, condition text, follows boolean, archived text);
COMMENT ON TYPE techally.retention_edge IS 'A foreign key by which rows of one table hold on to rows of another, as a condition on tables and on their archives';

-- Up along the foreign keys: of those that cannot be NULL, or of all.
CREATE FUNCTION techally.tables_needed(target oid, always boolean)
RETURNS oid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN ARRAY(WITH RECURSIVE up (relation) AS (
            SELECT target
             UNION
            SELECT k.confrelid FROM up u
              JOIN pg_constraint k ON k.conrelid = u.relation AND k.contype = 'f' AND k.conparentid = 0
             WHERE NOT always
                OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND NOT a.attnotnull))
        SELECT u.relation FROM up u WHERE u.relation <> target);
END
$function$;
COMMENT ON FUNCTION techally.tables_needed(oid, boolean) IS 'The tables that a table refers to, directly or through others; always: by columns that cannot be NULL';

-- A table hangs on the one that it refers to, unless that one, in turn, needs
-- it: orders need users, so a user who refers to an order (his first one) does
-- not hang on it, but keeps it.  Of two tables that refer to each other the one
-- that must refer hangs on the one that may; where both may, both stay.
--
-- Nor does a table hang on this one whose owner could not act as this one's:
-- its triggers would run with rights that he does not have.  It keeps.
CREATE FUNCTION techally.retention_edges(target oid)
RETURNS SETOF techally.retention_edge
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    whole  oid[] := ARRAY[target];
    i      integer := 1;
    needs  oid[];
    always oid[];
    owner  oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = target);
    key    record;
    edge   techally.retention_edge;
BEGIN
    WHILE i <= cardinality(whole) LOOP
        needs := techally.tables_needed(whole[i], false);
        always := techally.tables_needed(whole[i], true);
        FOR key IN
            SELECT k.conrelid, k.confrelid, k.conkey, k.confkey, k.conpfeqop, k.confdeltype, pg_has_role(r.relowner, owner, 'USAGE') AS trusted
              FROM pg_constraint k JOIN pg_class r ON r.oid = k.conrelid
             WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confdeltype NOT IN ('n', 'd')
               AND k.confrelid = ANY (whole[i] || ARRAY(SELECT techally.retention_leaves(whole[i])))
             ORDER BY r.relname, k.conrelid, k.conname
        LOOP
            edge.child := key.conrelid;
            edge.parent := key.confrelid;
            SELECT string_agg(format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, n.nspname, o.oprname, ca.attname), ' AND ' ORDER BY u.i),
                   string_agg(format(CASE WHEN pa.atttypid = ca.atttypid THEN 'p.%I = c.%I' ELSE 'p.%I::text = c.%I::text' END, pa.attname, ca.attname), ' AND ' ORDER BY u.i)
              INTO edge.condition, edge.archived
              FROM unnest(key.confkey, key.conkey, key.conpfeqop) WITH ORDINALITY AS u (pkey, ckey, op, i)
              JOIN pg_attribute pa ON pa.attrelid = key.confrelid AND pa.attnum = u.pkey
              JOIN pg_attribute ca ON ca.attrelid = key.conrelid AND ca.attnum = u.ckey
              JOIN pg_operator o ON o.oid = u.op
              JOIN pg_namespace n ON n.oid = o.oprnamespace;
            IF NOT key.trusted AND EXISTS (SELECT FROM unnest(key.confkey, key.conkey) AS u (pkey, ckey)
                                             JOIN pg_attribute pa ON pa.attrelid = key.confrelid AND pa.attnum = u.pkey
                                             JOIN pg_attribute ca ON ca.attrelid = key.conrelid AND ca.attnum = u.ckey
                                            WHERE pa.atttypid <> ca.atttypid) THEN
                -- comparing them might run a cast of his
                RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                    MESSAGE = format('table %s refers to %s by columns of another type, and belongs to another role', key.conrelid::regclass, key.confrelid::regclass);
            END IF;
            edge.follows := key.conrelid <> target AND key.trusted
                AND (key.conrelid = whole[i]
                     OR key.conrelid <> ALL (always)
                        AND (key.confdeltype = 'c' OR key.conrelid <> ALL (needs)
                             OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = key.conrelid AND a.attnum = ANY (key.conkey) AND NOT a.attnotnull)));
            IF edge.follows AND key.conrelid <> ALL (whole) THEN
                whole := whole || key.conrelid;
            END IF;
            RETURN NEXT edge;
        END LOOP;
        i := i + 1;
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.retention_edges(oid) IS
'The foreign keys that point at a table''s rows or at what hangs on them; follows: the row that refers hangs on the other, else it keeps it';

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

CREATE FUNCTION techally.row_sets_minus(sets techally.row_set[], others techally.row_set[])
RETURNS techally.row_set[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT coalesce(array_agg(ROW(s.relation, r.rows)::techally.row_set ORDER BY s.n) FILTER (WHERE cardinality(r.rows) > 0), '{}')
  FROM unnest(sets) WITH ORDINALITY AS s (relation, rows, n)
 CROSS JOIN LATERAL (SELECT ARRAY(SELECT t FROM unnest(s.rows) t EXCEPT SELECT o FROM unnest(techally.row_sets_of(others, s.relation)) o)) AS r (rows)
$function$;
COMMENT ON FUNCTION techally.row_sets_minus(techally.row_set[], techally.row_set[]) IS 'Sets of rows without others; no empty ones';

-- Locks what it finds, parents first: with its parent locked FOR UPDATE a row
-- gets no new rows that hang on it.
CREATE FUNCTION techally.collect_whole(edges techally.retention_edge[], roots techally.row_set[], locking boolean)
RETURNS techally.row_set[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    sets     techally.row_set[] := roots;
    frontier techally.row_set[] := roots;
    reached  techally.row_set[];
    front    techally.row_set;
    edge     techally.retention_edge;
    leaf     oid;
    found    tid[];
    added    tid[];
BEGIN
    WHILE array_length(frontier, 1) > 0 LOOP
        reached := '{}';
        FOREACH front IN ARRAY frontier LOOP
            CONTINUE WHEN cardinality(front.rows) = 0;
            FOR edge IN SELECT e.* FROM unnest(edges) e WHERE e.follows AND front.relation IN (SELECT techally.retention_leaves(e.parent)) LOOP
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
COMMENT ON FUNCTION techally.collect_whole(techally.retention_edge[], techally.row_set[], boolean) IS 'Rows and everything that hangs on them';

CREATE FUNCTION techally.roots_of(target oid, edges techally.retention_edge[], sets techally.row_set[])
RETURNS techally.row_set[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    seen     techally.row_set[] := sets;
    frontier techally.row_set[] := sets;
    reached  techally.row_set[];
    front    techally.row_set;
    edge     techally.retention_edge;
    leaf     oid;
    found    tid[];
    added    tid[];
BEGIN
    WHILE array_length(frontier, 1) > 0 LOOP
        reached := '{}';
        FOREACH front IN ARRAY frontier LOOP
            CONTINUE WHEN cardinality(front.rows) = 0;
            FOR edge IN SELECT e.* FROM unnest(edges) e WHERE e.follows AND front.relation IN (SELECT techally.retention_leaves(e.child)) LOOP
                FOR leaf IN SELECT l FROM techally.retention_leaves(edge.parent) l ORDER BY l LOOP
                    EXECUTE format('SELECT array_agg(p.ctid) FROM ONLY %s p WHERE EXISTS (SELECT FROM ONLY %s c WHERE c.ctid = ANY ($1) AND %s)',
                                   leaf::regclass, front.relation::regclass, edge.condition)
                       INTO found USING front.rows;
                    CONTINUE WHEN found IS NULL;
                    SELECT a.sets, a.added INTO seen, added FROM techally.row_sets_add(seen, leaf, found) a;
                    IF cardinality(added) > 0 THEN
                        SELECT a.sets INTO reached FROM techally.row_sets_add(reached, leaf, added) a;
                    END IF;
                END LOOP;
            END LOOP;
        END LOOP;
        frontier := reached;
    END LOOP;
    RETURN ARRAY(SELECT s FROM unnest(seen) s WHERE s.relation IN (SELECT techally.retention_leaves(target)));
END
$function$;
COMMENT ON FUNCTION techally.roots_of(oid, techally.retention_edge[], techally.row_set[]) IS 'The rows of the table itself that other rows hang on';

-- What ties rows that are to go to rows that are not: a row that hangs on
-- another whole, too; a row that refers to one that is to go.  tied are the
-- rows that cannot go for it, others those without which they could.
CREATE FUNCTION techally.ties_of(target oid, edges techally.retention_edge[], sets techally.row_set[],
                                 OUT tied techally.row_set[], OUT others techally.row_set[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    edge  record;
    child oid;
    leaf  oid;
    rows  tid[];
    goes  tid[];
    found tid[];
BEGIN
    tied := '{}';
    others := '{}';
    FOR edge IN SELECT e.child, e.parent, e.condition, e.follows, count(*) FILTER (WHERE e.follows) OVER (PARTITION BY e.child) AS ways FROM unnest(edges) e LOOP
        IF edge.follows THEN
            CONTINUE WHEN edge.ways = 1;
            FOR child IN SELECT techally.retention_leaves(edge.child) LOOP
                rows := techally.row_sets_of(sets, child);
                CONTINUE WHEN cardinality(rows) = 0;
                FOR leaf IN SELECT techally.retention_leaves(edge.parent) LOOP
                    goes := techally.row_sets_of(sets, leaf);
                    EXECUTE format('SELECT array_agg(p.ctid) FROM ONLY %s p WHERE NOT p.ctid = ANY ($2) AND EXISTS (SELECT FROM ONLY %s c WHERE c.ctid = ANY ($1) AND %s)',
                                   leaf::regclass, child::regclass, edge.condition) INTO found USING rows, goes;
                    CONTINUE WHEN found IS NULL;
                    SELECT a.sets INTO others FROM techally.row_sets_add(others, leaf, found) a;
                    EXECUTE format('SELECT array_agg(c.ctid) FROM ONLY %s c WHERE c.ctid = ANY ($1) AND EXISTS (SELECT FROM ONLY %s p WHERE p.ctid = ANY ($2) AND %s)',
                                   child::regclass, leaf::regclass, edge.condition) INTO found USING rows, found;
                    SELECT a.sets INTO tied FROM techally.row_sets_add(tied, child, found) a;
                END LOOP;
            END LOOP;
        ELSE
            FOR leaf IN SELECT techally.retention_leaves(edge.parent) LOOP
                goes := techally.row_sets_of(sets, leaf);
                CONTINUE WHEN cardinality(goes) = 0;
                FOR child IN SELECT techally.retention_leaves(edge.child) LOOP
                    rows := techally.row_sets_of(sets, child);
                    EXECUTE format('SELECT array_agg(c.ctid) FROM ONLY %s c WHERE NOT c.ctid = ANY ($1) AND EXISTS (SELECT FROM ONLY %s p WHERE p.ctid = ANY ($2) AND %s)',
                                   child::regclass, leaf::regclass, edge.condition) INTO found USING rows, goes;
                    CONTINUE WHEN found IS NULL;
                    IF edge.child = target THEN
                        SELECT a.sets INTO others FROM techally.row_sets_add(others, child, found) a;
                    END IF;
                    EXECUTE format('SELECT array_agg(p.ctid) FROM ONLY %s p WHERE p.ctid = ANY ($1) AND EXISTS (SELECT FROM ONLY %s c WHERE c.ctid = ANY ($2) AND %s)',
                                   leaf::regclass, child::regclass, edge.condition) INTO found USING goes, found;
                    SELECT a.sets INTO tied FROM techally.row_sets_add(tied, leaf, found) a;
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
        SELECT a.sets INTO tied FROM techally.row_sets_add(tied, leaf, found) a;
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.ties_of(oid, techally.retention_edge[], techally.row_set[]) IS
'Which rows cannot go as they hang on others or others refer to them, and which those others are';

-- Rows that could go only together do, where all of them are old enough and
-- nobody is at them; what cannot go is held back.  old: the condition for a row
-- of the table itself, on t, with $1 as the cutoff.
CREATE FUNCTION techally.find_whole(target oid, INOUT roots techally.row_set[], old text, cutoff timestamptz, locking boolean,
                                    OUT sets techally.row_set[], OUT held techally.row_set[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    edges    techally.retention_edge[] := ARRAY(SELECT e FROM techally.retention_edges(target) e);
    ties     record;
    wanted   techally.row_set[];
    part     techally.row_set;
    found    tid[];
    grown    boolean;
BEGIN
    held := '{}';
    sets := '{}';
    WHILE array_length(roots, 1) > 0 LOOP
        sets := techally.collect_whole(edges, roots, locking);
        ties := techally.ties_of(target, edges, sets);
        EXIT WHEN cardinality(ties.tied) = 0;
        grown := false;
        wanted := techally.row_sets_minus(techally.row_sets_minus(techally.roots_of(target, edges, ties.others), roots), held);
        FOREACH part IN ARRAY wanted LOOP
            EXECUTE format('SELECT array_agg(f.ctid) FROM (SELECT t.ctid FROM ONLY %s t WHERE t.ctid = ANY ($2) AND %s ORDER BY t.ctid %s) f',
                           part.relation::regclass, old, CASE WHEN locking THEN 'FOR UPDATE SKIP LOCKED' ELSE '' END)
               INTO found USING cutoff, part.rows;
            CONTINUE WHEN found IS NULL;
            SELECT a.sets INTO roots FROM techally.row_sets_add(roots, part.relation, found) a;
            grown := true;
        END LOOP;
        CONTINUE WHEN grown;
        wanted := techally.row_sets_minus(roots, techally.row_sets_minus(roots, techally.roots_of(target, edges, ties.tied)));
        IF cardinality(wanted) = 0 THEN
            wanted := roots;        -- cannot be; and must not go round for ever
        END IF;
        FOREACH part IN ARRAY wanted LOOP
            SELECT a.sets INTO held FROM techally.row_sets_add(held, part.relation, part.rows) a;
        END LOOP;
        roots := techally.row_sets_minus(roots, wanted);
        sets := '{}';
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.find_whole(oid, techally.row_set[], text, timestamptz, boolean) IS
'Finds what goes with rows of a table, and which of them must stay';

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

CREATE FUNCTION techally.key_columns(target oid)
RETURNS TABLE (column_name name, archive_type text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT c.column_name, c.archive_type
  FROM pg_index i
 CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN techally.archive_columns(target) c ON c.column_name = a.attname
 WHERE i.indrelid = target AND i.indisprimary
 ORDER BY k.n
$function$;
COMMENT ON FUNCTION techally.key_columns(oid) IS 'The columns of a table''s primary key and the types that they have in its archive';

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

CREATE FUNCTION techally.archive_name(target oid, whole oid)
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT CASE WHEN octet_length(n.name) <= 63 THEN n.name ELSE 'archive_' || md5(n.name) END
  FROM (SELECT CASE WHEN c.relnamespace = w.relnamespace THEN c.relname::text
                    ELSE (SELECT s.nspname FROM pg_namespace s WHERE s.oid = c.relnamespace) || '.' || c.relname END AS name
          FROM pg_class c, pg_class w WHERE c.oid = target AND w.oid = whole) n
$function$;
COMMENT ON FUNCTION techally.archive_name(oid, oid) IS 'What the archive of a table that is part of a whole is called';

-- NULL where there is none.
CREATE FUNCTION techally.archive_of(name text, whole oid)
RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema  text := techally.archive_schema(whole);
    archive oid;
    present oid;
    kind    "char";
BEGIN
    SELECT c.oid, c.relowner, c.relkind INTO archive, present, kind
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = schema AND c.relname = name;
    IF present <> (SELECT c.relowner FROM pg_class c WHERE c.oid = whole) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('table "%s.%s" belongs to another role than what is to be archived there', schema, name);
    ELSIF kind <> 'r' THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('archive "%s.%s" is not a table', schema, name);
    END IF;
    RETURN archive;
END
$function$;
COMMENT ON FUNCTION techally.archive_of(text, oid) IS 'A table of the archive, if it is there and its owner is that of the whole';

CREATE FUNCTION techally.ensure_archive(target oid, whole oid)
RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema  text := techally.archive_schema(whole);
    owner   oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = whole);
    name    text := techally.archive_name(target, whole);
    archive oid;
    key     text;
    part    record;
BEGIN
    PERFORM techally.ensure_archive_schema(schema, owner);
    archive := techally.archive_of(name, whole);
    IF archive IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (%s, archived_at timestamptz NOT NULL, archive_batch uuid NOT NULL)', schema, name,
                       (SELECT string_agg(format('%I %s', a.column_name, a.archive_type), ', ') FROM techally.archive_columns(target) a));
        EXECUTE format('CREATE INDEX ON %I.%I (archive_batch)', schema, name);
        SELECT string_agg(quote_ident(c.column_name), ', ') INTO key FROM techally.key_columns(target) c;
        IF key IS NOT NULL THEN
            EXECUTE format('CREATE INDEX ON %I.%I (%s)', schema, name, key);
        END IF;
        EXECUTE format('COMMENT ON TABLE %I.%I IS %L', schema, name, format('Rows of %s whose time was over', target::regclass));
    ELSE
        -- columns that came later, or have another type now
        FOR part IN
            SELECT a.column_name, a.archive_type, h.attname IS NULL AS missing
              FROM techally.archive_columns(target) a
              LEFT JOIN pg_attribute h ON h.attrelid = archive AND h.attname = a.column_name AND NOT h.attisdropped
             WHERE h.attname IS NULL OR format_type(h.atttypid, h.atttypmod) NOT IN (a.archive_type, 'text')
        LOOP
            IF part.missing THEN
                EXECUTE format('ALTER TABLE %I.%I ADD COLUMN %I %s', schema, name, part.column_name, part.archive_type);
            ELSE
                BEGIN
                    EXECUTE format('ALTER TABLE %1$I.%2$I ALTER COLUMN %3$I TYPE %4$s USING %3$I::%4$s', schema, name, part.column_name, part.archive_type);
                EXCEPTION WHEN data_exception OR cannot_coerce OR undefined_function THEN
                    EXECUTE format('ALTER TABLE %I.%I ALTER COLUMN %I TYPE text', schema, name, part.column_name);
                END;
            END IF;
        END LOOP;
    END IF;
    RETURN format('%I.%I', schema, name);
END
$function$;
COMMENT ON FUNCTION techally.ensure_archive(oid, oid) IS 'Makes the archive of a table that is part of a whole, or brings it up to date; returns its name';

-- Copies, proves the copy, deletes.  The order of deletion does not matter in
-- one statement: its foreign keys are checked at its end.
CREATE FUNCTION techally.move_whole(target oid, sets techally.row_set[], action text, cutoff timestamptz, done bigint, estimate bigint)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    batch    uuid := gen_random_uuid();
    stamp    timestamptz := clock_timestamp();
    report   jsonb := '[]';
    total    record;
    leaf     record;
    label    text := target::regclass::text;
    archive  text;
    columns  text[];
    types    text[];
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
        PERFORM techally.report_progress('archive', label, CASE action WHEN 'archive' THEN 'copying' ELSE 'counting' END, done, estimate);
        SELECT array_agg(a.column_name::text), array_agg(a.archive_type),
               string_agg(quote_ident(a.column_name), ', '),
               string_agg(format('t.%I::%s', a.column_name, a.archive_type), ', ')
          INTO columns, types, names, values FROM techally.archive_columns(total.relation) a;
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
            PERFORM techally.note_archived(target, total.relation, batch, stamp, cutoff, ours.rows, format('%s:%s', ours.a, ours.b), columns, types);
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

    PERFORM techally.report_progress('archive', label, 'deleting', done, estimate);
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
COMMENT ON FUNCTION techally.move_whole(oid, techally.row_set[], text, timestamptz, bigint, bigint) IS
'Archives or deletes rows, having made sure by count and checksum that the archive holds them';

CREATE FUNCTION techally.note_archived(target oid, relation oid, batch uuid, archived_at timestamptz, cutoff timestamptz, rows bigint, checksum text,
                                       columns text[], types text[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema text := techally.archive_schema(target);
BEGIN
    IF techally.archive_of('archive_batches', target) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.archive_batches (batch uuid NOT NULL, relation text NOT NULL, archived_at timestamptz NOT NULL,'
                       ' cutoff timestamptz NOT NULL, rows bigint NOT NULL, checksum text NOT NULL, archive text NOT NULL, columns text[] NOT NULL, types text[] NOT NULL,'
                       ' CONSTRAINT archive_batches_pkey PRIMARY KEY (batch, relation))', schema);
        EXECUTE format('COMMENT ON TABLE %I.archive_batches IS %L', schema, 'What was archived when and into which table here, with the checksums of its rows over these columns as of these types');
    END IF;
    EXECUTE format('INSERT INTO %I.archive_batches VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)', schema)
      USING batch, relation::regclass::text, archived_at, cutoff, rows, checksum, techally.archive_name(relation, target), columns, types;
END
$function$;
COMMENT ON FUNCTION techally.note_archived(oid, oid, uuid, timestamptz, timestamptz, bigint, text, text[], text[]) IS 'Writes the manifest of an archive';

-- Counts by day, in UTC.  While rows are there, a day's count is that of its
-- rows: a day that has gained or lost some is counted again.  Once rows go, they
-- are counted for good, from the very rows that go; those that come late for
-- such a day are added when they go, too.
--
-- what: recount (days whose number of rows differs), delete (rows, and count
-- them for good), keep (count them for good, for somebody else takes them away).
CREATE FUNCTION techally.aggregate_days(target oid, time_column name, aggregate_by name[], from_time timestamptz, to_time timestamptz, what text)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema     text := techally.archive_schema(target);
    owner      oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = target);
    name       text := (SELECT CASE WHEN octet_length(c.relname) <= 57 THEN c.relname || '_daily' ELSE 'daily_' || md5(c.relname) END FROM pg_class c WHERE c.oid = target);
    zoned      boolean;
    day        text;
    dimensions text;
    scope      text;
    days       date[];
    n          bigint;
    bytes      bigint;
BEGIN
    PERFORM techally.ensure_archive_schema(schema, owner);
    IF techally.archive_of(name, target) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (day date, dimensions jsonb, rows bigint NOT NULL, is_final boolean NOT NULL, CONSTRAINT %I PRIMARY KEY (day, dimensions))',
                       schema, name, 'daily_' || md5(name) || '_pkey');
        EXECUTE format('COMMENT ON TABLE %I.%I IS %L', schema, name, format('Rows of %s by day in UTC; is_final: the rows themselves are gone', target::regclass));
    END IF;
    SELECT a.atttypid = 'timestamptz'::regtype, format(CASE WHEN a.atttypid = 'timestamptz'::regtype THEN '(t.%I AT TIME ZONE ''UTC'')::date' ELSE 't.%I::date' END, a.attname)
      INTO zoned, day FROM pg_attribute a WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped;
    scope := format(CASE WHEN zoned THEN 't.%1$I >= $1 AND t.%1$I < $2' ELSE 't.%1$I >= ($1 AT TIME ZONE ''UTC'') AND t.%1$I < ($2 AT TIME ZONE ''UTC'')' END, time_column);
    -- no longer than an index entry may be
    SELECT format('jsonb_build_object(%s)', string_agg(format('%1$L, CASE WHEN octet_length(t.%1$I::text) <= 300 THEN to_jsonb(t.%1$I) ELSE to_jsonb(left(t.%1$I::text, 70) || ''...'') END', a.attname), ', ' ORDER BY a.attnum))
      INTO dimensions FROM pg_attribute a
     WHERE a.attrelid = target AND a.attname = ANY (aggregate_by) AND NOT a.attisdropped;
    dimensions := coalesce(dimensions, 'jsonb_build_object()');

    IF what = 'recount' THEN
        EXECUTE format('SELECT array_agg(coalesce(l.day, s.day)) FROM (SELECT %s AS day, count(*) AS rows FROM %s t WHERE %s GROUP BY 1) l'
                       '  FULL JOIN (SELECT d.day, sum(d.rows) AS rows, bool_or(d.is_final) AS is_final FROM %I.%I d'
                       '              WHERE d.day >= ($1 AT TIME ZONE ''UTC'')::date AND d.day < ($2 AT TIME ZONE ''UTC'')::date GROUP BY 1) s ON s.day = l.day'
                       ' WHERE l.rows IS DISTINCT FROM s.rows AND s.is_final IS NOT TRUE', day, target::regclass, scope, schema, name)
           INTO days USING from_time, to_time;
        IF days IS NULL THEN
            RETURN '{"rows": 0, "bytes": 0}';
        END IF;
        EXECUTE format('DELETE FROM %I.%I d WHERE d.day = ANY ($1)', schema, name) USING days;
        EXECUTE format('WITH counted AS (SELECT %1$s AS day, %2$s AS dimensions, count(*) AS rows, sum(pg_column_size(t.*)) AS bytes FROM %3$s t WHERE %4$s AND %1$s = ANY ($3) GROUP BY 1, 2),'
                       ' written AS (INSERT INTO %5$I.%6$I (day, dimensions, rows, is_final) SELECT c.day, c.dimensions, c.rows, false FROM counted c)'
                       ' SELECT coalesce(sum(c.rows), 0), coalesce(sum(c.bytes), 0) FROM counted c', day, dimensions, target::regclass, scope, schema, name)
           INTO n, bytes USING from_time, to_time, days;
        RETURN jsonb_build_object('rows', n, 'bytes', bytes);
    END IF;

    EXECUTE format('DELETE FROM %I.%I d WHERE d.day >= ($1 AT TIME ZONE ''UTC'')::date AND d.day < (($2 - interval ''1 microsecond'') AT TIME ZONE ''UTC'')::date + 1 AND NOT d.is_final', schema, name)
      USING from_time, to_time;
    EXECUTE format('WITH %s, counted AS (SELECT g.day, g.dimensions, count(*) AS rows FROM gone g GROUP BY 1, 2), written AS ('
                   ' INSERT INTO %I.%I AS d (day, dimensions, rows, is_final) SELECT c.day, c.dimensions, c.rows, true FROM counted c'
                   ' ON CONFLICT (day, dimensions) DO UPDATE SET rows = d.rows + excluded.rows, is_final = true)'
                   ' SELECT count(*), coalesce(sum(g.bytes), 0) FROM gone g',
                   CASE WHEN what = 'delete'
                        THEN format('gone AS (DELETE FROM %s t WHERE %s RETURNING %s AS day, %s AS dimensions, pg_column_size(t.*) AS bytes)', target::regclass, scope, day, dimensions)
                        ELSE format('gone AS MATERIALIZED (SELECT %s AS day, %s AS dimensions, pg_column_size(t.*) AS bytes FROM %s t WHERE %s)', day, dimensions, target::regclass, scope) END,
                   schema, name)
       INTO n, bytes USING from_time, to_time;
    RETURN jsonb_build_object('rows', n, 'bytes', bytes);
END
$function$;
COMMENT ON FUNCTION techally.aggregate_days(oid, name, name[], timestamptz, timestamptz, text) IS
'Counts rows by day into STORE_archive.TABLE_daily, anew or for good';

CREATE FUNCTION techally.oldest_day(target oid, time_column name, since timestamptz, before timestamptz)
RETURNS date
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    zoned  boolean := (SELECT a.atttypid = 'timestamptz'::regtype FROM pg_attribute a
                        WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    result date;
BEGIN
    EXECUTE format('SELECT min(t.%1$I)%2$s FROM %3$s t WHERE t.%1$I > ''-infinity'' AND t.%1$I >= %4$s AND t.%1$I < %5$s', time_column,
                   CASE WHEN zoned THEN ' AT TIME ZONE ''UTC''' ELSE '' END, target::regclass,
                   CASE WHEN zoned THEN '$1' ELSE '($1 AT TIME ZONE ''UTC'')' END,
                   CASE WHEN zoned THEN '$2' ELSE '($2 AT TIME ZONE ''UTC'')' END)
       INTO result USING since, before;
    RETURN result;
END
$function$;
COMMENT ON FUNCTION techally.oldest_day(oid, name, timestamptz, timestamptz) IS 'The oldest day between two moments that a table has rows of, in UTC';

-- One step for a table whose rows are counted: a day that is deleted, or a
-- month in which days are counted that differ from what is written.
CREATE FUNCTION techally.retention_days(target oid, at timestamptz, time_column name, keep_for interval, in_partitions boolean,
                                        aggregate_after interval, aggregate_by name[], cursor jsonb, dry_run boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    label    text := target::regclass::text;
    -- whole days only
    cutoff   timestamptz := coalesce(date_trunc('day', at AT TIME ZONE 'UTC' - keep_for) AT TIME ZONE 'UTC', '-infinity');
    counting timestamptz := date_trunc('day', at AT TIME ZONE 'UTC' - aggregate_after) AT TIME ZONE 'UTC';
    line     jsonb := jsonb_build_object('relation', label, 'cutoff', cutoff, 'rows', 0, 'bytes', 0, 'action', 'delete');
    zoned    boolean := (SELECT a.atttypid = 'timestamptz'::regtype FROM pg_attribute a
                          WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    part     jsonb;
    day      date;
    start    timestamptz;
    stop     timestamptz;
BEGIN
    IF dry_run THEN
        EXECUTE format('SELECT jsonb_build_object(''rows'', count(*), ''bytes'', coalesce(sum(pg_column_size(t.*)), 0)) FROM %s t WHERE t.%I > ''-infinity'' AND t.%2$I < %s',
                       label, time_column, CASE WHEN zoned THEN '$1' ELSE '($1 AT TIME ZONE ''UTC'')' END) INTO part USING cutoff;
        RETURN jsonb_build_object('report', jsonb_build_array(line || part));
    END IF;
    IF NOT in_partitions THEN
        PERFORM techally.report_progress('archive', label, 'deleting', (cursor ->> 'done')::bigint, NULL);
        day := techally.oldest_day(target, time_column, '-infinity', cutoff);
        IF day IS NOT NULL THEN
            part := techally.aggregate_days(target, time_column, aggregate_by, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC', 'delete');
            IF part -> 'rows' = '0' THEN
                RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation',
                    MESSAGE = format('rows of %s were to go and none went', label),
                    HINT = 'A trigger of the table keeps rows from being deleted.';
            END IF;
            RETURN jsonb_build_object('next', jsonb_build_object('done', coalesce((cursor ->> 'done')::bigint, 0) + (part ->> 'rows')::bigint),
                                      'report', jsonb_build_array(line || part));
        END IF;
        line := line || '{"rows": 0}';
    END IF;
    PERFORM techally.report_progress('archive', label, 'counting', (cursor ->> 'done')::bigint, NULL);
    day := techally.oldest_day(target, time_column, greatest(cutoff, (cursor ->> 'since')::timestamptz), counting);
    IF day IS NULL THEN
        RETURN jsonb_build_object('report', CASE WHEN in_partitions THEN '[]' ELSE jsonb_build_array(line) END);
    END IF;
    start := day::timestamp AT TIME ZONE 'UTC';
    stop := least((day + 31)::timestamp AT TIME ZONE 'UTC', counting);
    part := techally.aggregate_days(target, time_column, aggregate_by, start, stop, 'recount');
    RETURN jsonb_build_object('next', jsonb_build_object('since', stop, 'done', coalesce((cursor ->> 'done')::bigint, 0) + (part ->> 'rows')::bigint),
                              'report', CASE WHEN in_partitions THEN '[]' ELSE jsonb_build_array(line) END
                                        || jsonb_build_array(line || jsonb_build_object('cutoff', counting, 'action', 'aggregate') || part));
END
$function$;
COMMENT ON FUNCTION techally.retention_days(oid, timestamptz, name, interval, boolean, interval, name[], jsonb, boolean) IS
'One step of retention for a table whose rows are counted by day';

-- What a partition that is about to go holds is counted for good.
CREATE FUNCTION techally.retention_count(target oid, partition oid, from_time timestamptz, to_time timestamptz)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    rule record;
BEGIN
    SELECT p.* INTO rule FROM techally.retention_plan p WHERE p.target = retention_count.target AND p.aggregate_after IS NOT NULL;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE MODE', partition::regclass);
    RETURN techally.aggregate_days(target, rule.time_column, rule.aggregate_by, from_time, to_time, 'keep') ->> 'rows';
END
$function$;
COMMENT ON FUNCTION techally.retention_count(oid, oid, timestamptz, timestamptz) IS 'Counts what a partition holds for good; see retention_retiring';

CREATE FUNCTION techally.retention_retiring(target regclass, partition regclass, from_time timestamptz, to_time timestamptz)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_retention_retiring';
REVOKE ALL ON FUNCTION techally.retention_retiring(regclass, regclass, timestamptz, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.retention_retiring(regclass, regclass, timestamptz, timestamptz) IS
'Counts the rows of a partition that is about to go, by day and for good, as the table''s owner';

-- Rows that restore_rows brought back stay as long as was asked.
CREATE FUNCTION techally.not_restored(target oid)
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT CASE WHEN techally.archive_of('restored_rows', target) IS NULL THEN ''
            ELSE format('AND NOT EXISTS (SELECT FROM %I.restored_rows h WHERE h.archive = %L AND h.keep_until > clock_timestamp() AND h.key = %s)',
                        techally.archive_schema(target), techally.archive_name(target, target),
                        (SELECT format('jsonb_build_object(%s)', string_agg(format('%L, t.%I::%s', k.column_name, k.column_name, k.archive_type), ', ')) FROM techally.key_columns(target) k)) END
$function$;
COMMENT ON FUNCTION techally.not_restored(oid) IS 'Condition that leaves out what was brought back from the archive';

-- One step for the others: a page of rows with all that hangs on them.
CREATE FUNCTION techally.retention_rows(target oid, at timestamptz, time_column name, ends_column name, keep_for interval, action text,
                                        cursor jsonb, page integer, dry_run boolean)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    cutoff   timestamptz := (at AT TIME ZONE 'UTC' - keep_for) AT TIME ZONE 'UTC';
    kind     text := (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
                       WHERE a.attrelid = target AND a.attname = time_column AND NOT a.attisdropped);
    label    text := target::regclass::text;
    line     jsonb := jsonb_build_object('relation', label, 'cutoff', cutoff, 'rows', 0, 'bytes', 0, 'action', action);
    report   jsonb := jsonb_build_array(line);
    done     bigint := coalesce((cursor ->> 'done')::bigint, 0);
    estimate bigint := (cursor ->> 'estimate')::bigint;
    seen     jsonb := coalesce(cursor -> 'seen', '{}');      -- of a dry run: what goes with rows of an earlier page
    leaf     oid;
    old      text;
    ends     text;
    rows     tid[];
    last_at  text;
    last     tid;
    whole    record;
    part     record;
    held     tid[];
    n        bigint;
    bytes    bigint;
    plan     json;
BEGIN
    SELECT min(l) INTO leaf FROM techally.retention_leaves(target) l WHERE l >= coalesce((cursor ->> 'leaf')::oid, 0::oid);
    IF leaf IS NULL THEN
        RETURN jsonb_build_object('report', report);
    END IF;
    IF leaf IS DISTINCT FROM (cursor ->> 'leaf')::oid THEN
        cursor := cursor - 'at';
    END IF;
    SELECT format(CASE a.atttypid WHEN 'timestamptz'::regtype THEN 'AND (t.%1$I IS NULL OR t.%1$I <= %2$L)'
                                  ELSE 'AND (t.%1$I IS NULL OR t.%1$I <= (%2$L::timestamptz AT TIME ZONE ''UTC''))' END, a.attname, at)
      INTO ends FROM pg_attribute a WHERE a.attrelid = target AND a.attname = ends_column AND NOT a.attisdropped;
    old := format('t.%I < %s %s %s', time_column,
                  CASE kind WHEN 'timestamp with time zone' THEN '$1' WHEN 'date' THEN '($1 AT TIME ZONE ''UTC'')::date' ELSE '($1 AT TIME ZONE ''UTC'')' END,
                  ends, techally.not_restored(target));
    IF estimate IS NULL THEN
        EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s t WHERE %s', label, replace(old, '$1', quote_literal(cutoff) || '::timestamptz')) INTO plan;
        estimate := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
    END IF;
    IF NOT dry_run THEN
        PERFORM techally.report_progress('archive', label, 'finding what goes', done, estimate);
    END IF;
    EXECUTE format($query$
        SELECT array_agg(f.ctid), (array_agg(f.at ORDER BY f.at DESC, f.ctid DESC))[1]::text, (array_agg(f.ctid ORDER BY f.at DESC, f.ctid DESC))[1]
          FROM (SELECT t.ctid, t.%1$I AS at FROM ONLY %2$s t
                 WHERE %3$s %4$s ORDER BY t.%1$I, t.ctid LIMIT $4 %5$s) f $query$,
                   time_column, leaf::regclass, old,
                   CASE WHEN cursor -> 'at' IS NULL THEN '' ELSE format('AND t.%1$I >= $2::%2$s AND (t.%1$I, t.ctid) > ($2::%2$s, $3)', time_column, kind) END,
                   CASE WHEN dry_run THEN '' ELSE 'FOR UPDATE SKIP LOCKED' END)
       INTO rows, last_at, last
      USING cutoff, cursor ->> 'at', (cursor ->> 'ctid')::tid, page;
    IF rows IS NULL THEN
        -- this leaf is done
        SELECT min(l) INTO leaf FROM techally.retention_leaves(target) l WHERE l > leaf;
        RETURN jsonb_build_object('report', report)
               || CASE WHEN leaf IS NULL THEN '{}'
                       ELSE jsonb_build_object('next', jsonb_build_object('leaf', leaf, 'done', done, 'estimate', estimate, 'seen', seen)) END;
    END IF;
    done := done + cardinality(rows);
    estimate := greatest(estimate, done);
    rows := ARRAY(SELECT r FROM unnest(rows) r EXCEPT SELECT (e.value #>> '{}')::tid FROM jsonb_array_elements(seen -> leaf::text) e);

    SELECT w.* INTO whole FROM techally.find_whole(target, CASE WHEN cardinality(rows) > 0 THEN ARRAY[ROW(leaf, rows)::techally.row_set] ELSE '{}' END,
                                                   old, cutoff, NOT dry_run) w;
    held := ARRAY(SELECT r FROM unnest(rows) r INTERSECT SELECT h FROM unnest(techally.row_sets_of(whole.held, leaf)) h);
    IF cardinality(held) > 0 THEN
        EXECUTE format('SELECT sum(pg_column_size(t.*)) FROM ONLY %s t WHERE t.ctid = ANY ($1)', leaf::regclass) INTO bytes USING held;
        report := report || (line || jsonb_build_object('rows', cardinality(held), 'bytes', bytes, 'action', 'hold back'));
    END IF;
    IF dry_run THEN
        FOR part IN SELECT s.relation, s.rows FROM unnest(whole.sets) s WHERE cardinality(s.rows) > 0 LOOP
            EXECUTE format('SELECT count(*), coalesce(sum(pg_column_size(t.*)), 0) FROM ONLY %s t WHERE t.ctid = ANY ($1)', part.relation::regclass)
               INTO n, bytes USING part.rows;
            report := report || (line || jsonb_build_object('relation', techally.retention_top(part.relation)::regclass::text, 'rows', n, 'bytes', bytes));
        END LOOP;
        FOR part IN SELECT s.relation, s.rows FROM unnest(techally.row_sets_minus(whole.roots, ARRAY[ROW(leaf, rows)::techally.row_set])) s LOOP
            seen := seen || jsonb_build_object(part.relation, coalesce(seen -> part.relation::text, '[]') || to_jsonb(part.rows::text[]));
        END LOOP;
    ELSE
        report := report || techally.move_whole(target, whole.sets, action, cutoff, done, estimate);
    END IF;
    RETURN jsonb_build_object('report', report, 'next', jsonb_build_object('leaf', leaf, 'at', last_at, 'ctid', last, 'done', done, 'estimate', estimate, 'seen', seen));
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
        RETURN techally.retention_days(target, at, rule.time_column, rule.keep_for, rule.source = 'partitions', rule.aggregate_after, rule.aggregate_by, cursor::jsonb, dry_run);
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
        IF NOT dry_run THEN
            PERFORM techally.report_progress('archive', policy.name, 'beginning');
        END IF;
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
        IF NOT dry_run THEN
            PERFORM techally.end_progress();
        END IF;
        RETURN QUERY SELECT l.relation, l.cutoff, l.rows, l.bytes, l.action
                       FROM jsonb_to_recordset(coalesce(lines, '[]')) AS l (relation text, cutoff timestamptz, rows bigint, bytes bigint, action text);
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION techally.archive_old_data(boolean) FROM PUBLIC;
COMMENT ON FUNCTION techally.archive_old_data(boolean) IS
'Applies the retention policies to the tables that the caller owns, in one transaction, or says what would go';

-- Back from the archive.

-- What the archive holds of a batch is what was put there.
CREATE FUNCTION techally.verify_batch(target oid, batch uuid)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema text := techally.archive_schema(target);
    noted  record;
    found  record;
BEGIN
    FOR noted IN EXECUTE format('SELECT b.* FROM %I.archive_batches b WHERE b.batch = $1 ORDER BY b.relation FOR UPDATE', schema) USING batch LOOP
        SELECT NULL::bigint AS rows, NULL::numeric AS a, NULL::numeric AS b INTO found;
        IF techally.archive_of(noted.archive, target) IS NOT NULL THEN
            EXECUTE format('SELECT count(*) AS rows, coalesce(sum(hashtextextended(%1$s, 0)::numeric), 0) AS a, coalesce(sum(hashtextextended(%1$s, 1)::numeric), 0) AS b'
                           ' FROM %2$I.%3$I t WHERE t.archive_batch = $1',
                           (SELECT format('ROW(%s)::text', string_agg(format('t.%I::%s', u.c, u.t), ', ' ORDER BY u.n)) FROM unnest(noted.columns, noted.types) WITH ORDINALITY AS u (c, t, n)),
                           schema, noted.archive) INTO found USING batch;
        END IF;
        IF (found.rows, format('%s:%s', found.a, found.b)) IS DISTINCT FROM (noted.rows, noted.checksum) THEN
            RAISE EXCEPTION USING ERRCODE = 'data_corrupted',
                MESSAGE = format('archive "%s.%s" does not hold what was put there', schema, noted.archive),
                DETAIL = format('Batch %s: %s rows went in, %s are there.', batch, noted.rows, coalesce(found.rows, 0)),
                HINT = 'Rows were changed, added or taken away; nothing was brought back.';
        END IF;
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.verify_batch(oid, uuid) IS 'Raises an error unless the archive holds a batch as its manifest has it';

CREATE FUNCTION techally.restore_whole(target oid, keys jsonb, batch uuid, keep_for interval)
RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema   text := techally.archive_schema(target);
    label    text := target::regclass::text;
    archive  oid := techally.archive_of(techally.archive_name(target, target), target);
    edges    techally.retention_edge[] := ARRAY(SELECT e FROM techally.retention_edges(target) e);
    edge     techally.retention_edge;
    child    oid;
    parent   oid;
    sets     techally.row_set[] := '{}';
    roots    tid[];
    found    tid[];
    added    tid[];
    grown    boolean := true;
    batches  uuid[] := '{}';
    this     uuid;
    part     record;
    noted    record;
    live     oid;
    inserts  text[] := '{}';
    results  text[] := '{}';
    proof    text;
    outcome  text[];
    ledger   text;
    report   jsonb := '[]';
    names    text;
    n        bigint;
BEGIN
    IF archive IS NULL OR techally.archive_of('archive_batches', target) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TA007', MESSAGE = format('nothing of %s is in the archive', label);
    END IF;
    SELECT string_agg(quote_ident(k.column_name), ', '), count(*) INTO names, n FROM techally.key_columns(target) k;
    IF n = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = format('table %s has no primary key', label),
            HINT = 'Bring its rows back by INSERT … SELECT.';
    END IF;
    PERFORM techally.report_progress('restore', label, 'finding what comes back');
    IF batch IS NOT NULL THEN
        EXECUTE format('SELECT array_agg(a.ctid) FROM %s a WHERE a.archive_batch = $1', archive::regclass) INTO roots USING batch;
        IF roots IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'TA007', MESSAGE = format('no rows of %s were archived as batch %s', label, batch),
                HINT = format('They are listed in %I.archive_batches.', schema);
        END IF;
    ELSE
        keys := CASE jsonb_typeof(keys) WHEN 'array' THEN keys ELSE jsonb_build_array(keys) END;
        IF keys = '[]' OR EXISTS (SELECT FROM jsonb_array_elements(keys) e
                    WHERE jsonb_typeof(e.value) <> 'object'
                       OR ARRAY(SELECT k FROM jsonb_object_keys(CASE jsonb_typeof(e.value) WHEN 'object' THEN e.value ELSE '{}' END) k ORDER BY k COLLATE "C")
                          IS DISTINCT FROM ARRAY(SELECT k.column_name::text FROM techally.key_columns(target) k ORDER BY k.column_name COLLATE "C")) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('a key of %s has the columns (%s)', label, names);
        END IF;
        FOR part IN EXECUTE format('SELECT k.key, a.ctid AS at FROM jsonb_array_elements($1) AS k (key) LEFT JOIN %s a ON %s', archive::regclass,
                                   (SELECT string_agg(format('a.%I = (k.key ->> %L)::%s', c.column_name, c.column_name, c.archive_type), ' AND ') FROM techally.key_columns(target) c))
              USING keys
        LOOP
            IF part.at IS NULL THEN
                RAISE EXCEPTION USING ERRCODE = 'TA007', MESSAGE = format('row %s of %s is not in the archive', part.key, label);
            END IF;
            roots := roots || part.at;
        END LOOP;
    END IF;
    SELECT a.sets INTO sets FROM techally.row_sets_add(sets, archive, ARRAY(SELECT DISTINCT r FROM unnest(roots) r)) a;

    -- what was archived with them, and what they cannot be without
    WHILE grown LOOP
        grown := false;
        FOREACH edge IN ARRAY edges LOOP
            child := techally.archive_of(techally.archive_name(techally.retention_top(edge.child), target), target);
            parent := techally.archive_of(techally.archive_name(techally.retention_top(edge.parent), target), target);
            CONTINUE WHEN child IS NULL OR parent IS NULL;
            IF edge.follows AND cardinality(techally.row_sets_of(sets, parent)) > 0 THEN
                EXECUTE format('SELECT array_agg(c.ctid) FROM %s c WHERE EXISTS (SELECT FROM %s p WHERE p.ctid = ANY ($1) AND p.archive_batch = c.archive_batch AND %s)',
                               child::regclass, parent::regclass, edge.archived) INTO found USING techally.row_sets_of(sets, parent);
                IF found IS NOT NULL THEN
                    SELECT a.sets, a.added INTO sets, added FROM techally.row_sets_add(sets, child, found) a;
                    grown := grown OR cardinality(added) > 0;
                END IF;
            END IF;
            IF cardinality(techally.row_sets_of(sets, child)) > 0 THEN
                EXECUTE format('SELECT array_agg(p.ctid) FROM %s p WHERE EXISTS (SELECT FROM %s c WHERE c.ctid = ANY ($1) AND %s)',
                               parent::regclass, child::regclass, edge.archived) INTO found USING techally.row_sets_of(sets, child);
                IF found IS NOT NULL THEN
                    SELECT a.sets, a.added INTO sets, added FROM techally.row_sets_add(sets, parent, found) a;
                    grown := grown OR cardinality(added) > 0;
                END IF;
            END IF;
        END LOOP;
    END LOOP;
    roots := techally.row_sets_of(sets, archive);

    FOR part IN SELECT s.relation, s.rows FROM unnest(sets) s LOOP
        FOR this IN EXECUTE format('SELECT DISTINCT a.archive_batch FROM %s a WHERE a.ctid = ANY ($1) ORDER BY 1', part.relation::regclass) USING part.rows LOOP
            CONTINUE WHEN this = ANY (batches);
            batches := batches || this;
        END LOOP;
    END LOOP;
    FOR this IN SELECT b FROM unnest(batches) b ORDER BY b LOOP
        PERFORM techally.verify_batch(target, this);
    END LOOP;
    -- the manifest may have been waited for
    FOR part IN SELECT s.relation, s.rows FROM unnest(sets) s LOOP
        EXECUTE format('SELECT count(*) FROM %s a WHERE a.ctid = ANY ($1)', part.relation::regclass) INTO n USING part.rows;
        IF n <> cardinality(part.rows) THEN
            RAISE EXCEPTION USING ERRCODE = 'TA007', MESSAGE = format('rows of %s are not in the archive any more', label),
                HINT = 'Somebody else brought them back meanwhile.';
        END IF;
    END LOOP;

    -- all in one statement: foreign keys are checked at its end
    PERFORM techally.report_progress('restore', label, 'inserting', 0, (SELECT sum(cardinality(s.rows)) FROM unnest(sets) s)::bigint);
    FOR noted IN EXECUTE format('SELECT DISTINCT b.relation, b.archive FROM %I.archive_batches b WHERE b.batch = ANY ($1) ORDER BY 1, 2', schema) USING batches LOOP
        live := coalesce(to_regclass(format('%I.%I', (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target), noted.archive)),
                         to_regclass(noted.relation));
        IF live IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_table', MESSAGE = format('relation "%s" does not exist', noted.relation),
                DETAIL = 'Some of its rows were archived together with what is to come back.';
        END IF;
        child := techally.archive_of(noted.archive, target);
        found := techally.row_sets_of(sets, child);
        CONTINUE WHEN cardinality(found) = 0;
        SELECT i INTO STRICT n FROM generate_subscripts(sets, 1) i WHERE sets[i].relation = child;
        SELECT format('i%1$s AS (INSERT INTO %2$s AS t (%3$s) OVERRIDING SYSTEM VALUE SELECT %4$s FROM %5$s a WHERE a.ctid = ANY (($1[%1$s]).rows) RETURNING ROW(%6$s)::text AS x)', n, live::regclass,
                      string_agg(quote_ident(c.attname), ', ' ORDER BY c.attnum),
                      string_agg(format('a.%I::%s', c.attname, format_type(c.atttypid, c.atttypmod)), ', ' ORDER BY c.attnum), child::regclass,
                      string_agg(format('t.%I::%s', c.attname, l.archive_type), ', ' ORDER BY c.attnum)),
               format('SELECT count(*) || '':'' || sum(hashtextextended(x, 0)::numeric) || '':'' || sum(hashtextextended(x, 1)::numeric) FROM (SELECT ROW(%s)::text AS x FROM %s a WHERE a.ctid = ANY ($1)) y',
                      string_agg(format('a.%I::%s', c.attname, l.archive_type), ', ' ORDER BY c.attnum), child::regclass)
          INTO names, proof
          FROM techally.archive_columns(live) l
          JOIN pg_attribute c ON c.attrelid = live AND c.attname = l.column_name AND NOT c.attisdropped AND c.attgenerated = ''
         WHERE EXISTS (SELECT FROM pg_attribute h WHERE h.attrelid = child AND h.attname = l.column_name AND NOT h.attisdropped);
        inserts := inserts || names;
        EXECUTE proof INTO proof USING found;
        results := results || format('(SELECT CASE WHEN count(*) || '':'' || sum(hashtextextended(x, 0)::numeric) || '':'' || sum(hashtextextended(x, 1)::numeric) <> %L OR count(*) = 0 THEN %L END FROM i%s)',
                                     proof, live::regclass::text, n);
        report := report || jsonb_build_object('relation', live::regclass::text, 'rows', cardinality(found), 'archive', noted.archive, 'live', live);
    END LOOP;
    EXECUTE format('WITH %s SELECT ARRAY[%s]', array_to_string(inserts, ', '), array_to_string(results, ', ')) INTO outcome USING sets;
    FOREACH names IN ARRAY outcome LOOP
        IF names IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation',
                MESSAGE = format('rows of %s did not come back as they were', names),
                HINT = 'A trigger of the table changes or keeps what is inserted, or somebody else brought them back.';
        END IF;
    END LOOP;

    -- the ledger keeps its sums
    FOR part IN SELECT (r.value ->> 'live')::oid AS live, techally.archive_of(r.value ->> 'archive', target) AS archive FROM jsonb_array_elements(report) r LOOP
        SELECT c.relnamespace::regnamespace INTO ledger FROM pg_class c
         WHERE c.oid = part.live AND c.relname = 'stock_movements' AND EXISTS (SELECT FROM pg_class a WHERE a.relnamespace = c.relnamespace AND a.relname = 'inventory_stock');
        CONTINUE WHEN ledger IS NULL;
        EXECUTE format('INSERT INTO %s.stock_movements (stock_id, movement_type, quantity, note)'
                       ' SELECT a.stock_id, ''adjustment'', -sum(a.quantity), ''orders brought back from the archive'' FROM %s a WHERE a.ctid = ANY ($1)'
                       '  GROUP BY a.stock_id HAVING sum(a.quantity) <> 0 ORDER BY a.stock_id', ledger, part.archive::regclass) USING techally.row_sets_of(sets, part.archive);
    END LOOP;

    IF techally.archive_of('restored_rows', target) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.restored_rows (archive text, key jsonb, restored_at timestamptz NOT NULL, keep_until timestamptz NOT NULL,'
                       ' CONSTRAINT restored_rows_pkey PRIMARY KEY (archive, key))', schema);
        EXECUTE format('COMMENT ON TABLE %I.restored_rows IS %L', schema, 'What was brought back, and until when it is not archived again');
    END IF;
    EXECUTE format('DELETE FROM %I.restored_rows r WHERE r.keep_until <= clock_timestamp()', schema);
    EXECUTE format('INSERT INTO %I.restored_rows SELECT $2, %s, clock_timestamp(), coalesce(clock_timestamp() + $3, ''infinity'') FROM %s a WHERE a.ctid = ANY ($1)'
                   ' ON CONFLICT (archive, key) DO UPDATE SET restored_at = excluded.restored_at, keep_until = excluded.keep_until', schema,
                   (SELECT format('jsonb_build_object(%s)', string_agg(format('%L, a.%I::%s', k.column_name, k.column_name, k.archive_type), ', ')) FROM techally.key_columns(target) k),
                   archive::regclass) USING roots, techally.archive_name(target, target), keep_for;

    -- and the archive has them no more
    FOR part IN SELECT s.relation, s.rows FROM unnest(sets) s LOOP
        EXECUTE format('DELETE FROM %s a WHERE a.ctid = ANY ($1)', part.relation::regclass) USING part.rows;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(part.rows) THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = format('rows of %s moved while they were brought back', part.relation::regclass);
        END IF;
    END LOOP;
    FOR noted IN EXECUTE format('SELECT b.* FROM %I.archive_batches b WHERE b.batch = ANY ($1)', schema) USING batches LOOP
        EXECUTE format('UPDATE %1$I.archive_batches b SET rows = f.rows, checksum = f.a || '':'' || f.b'
                       '  FROM (SELECT count(*) AS rows, coalesce(sum(hashtextextended(%2$s, 0)::numeric), 0) AS a, coalesce(sum(hashtextextended(%2$s, 1)::numeric), 0) AS b'
                       '          FROM %1$I.%3$I t WHERE t.archive_batch = $1) f WHERE b.batch = $1 AND b.relation = $2', schema,
                       (SELECT format('ROW(%s)::text', string_agg(format('t.%I::%s', u.c, u.t), ', ' ORDER BY u.n)) FROM unnest(noted.columns, noted.types) WITH ORDINALITY AS u (c, t, n)),
                       noted.archive) USING noted.batch, noted.relation;
    END LOOP;
    EXECUTE format('DELETE FROM %I.archive_batches b WHERE b.batch = ANY ($1) AND b.rows = 0', schema) USING batches;
    RETURN report;
END
$function$;
COMMENT ON FUNCTION techally.restore_whole(oid, jsonb, uuid, interval) IS
'Brings rows back from the archive, with its owner''s rights: see restore_rows';

CREATE FUNCTION techally.restore_step(target regclass, keys jsonb, batch uuid, keep_for interval)
RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_restore_step';
COMMENT ON FUNCTION techally.restore_step(regclass, jsonb, uuid, interval) IS
'Brings rows back from the archive, for the table''s owner and as its owner: see restore_rows';

CREATE FUNCTION techally.restore_rows(target regclass, keys jsonb DEFAULT NULL, batch uuid DEFAULT NULL, keep_for interval DEFAULT '90 days')
RETURNS TABLE (relation text, rows bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'argument "target" must not be null';
    END IF;
    IF (keys IS NULL) = (batch IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'either keys or a batch must be given';
    END IF;
    RETURN QUERY SELECT r.relation, r.rows
                   FROM jsonb_to_recordset(techally.restore_step(target, keys, batch, keep_for)) AS r (relation text, rows bigint);
END
$function$;
COMMENT ON FUNCTION techally.restore_rows(regclass, jsonb, uuid, interval) IS
'Brings rows of a table back from the archive, by key ({"id": …}, or an array of such) or a whole batch, with everything that was archived with them, and keeps them for a while (NULL: for ever)';

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
-- for its rows.  Where rows are counted, those of a partition are counted for
-- good in the transaction that takes it away.
CREATE FUNCTION techally.retire_step(item text, cursor text, OUT done bigint, OUT next text, OUT failure text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    managed regclass := item::regclass;
    moment  timestamptz := clock_timestamp();
    counted boolean;
    over    record;
BEGIN
    BEGIN
        PERFORM techally.manage_partitions(p.target::regclass, m.step, m.premake, p.keep_for, p.action)
           FROM techally.retention_plan p
           JOIN techally.managed_partitions m ON m.parent = p.target
          WHERE p.target = managed AND m.retention IS NULL AND p.in_force;
        SELECT p.aggregate_after IS NOT NULL AND NOT EXISTS (SELECT FROM techally.archives a WHERE a.parent = p.target AND a.status = 'detached' AND a.relation IS NOT NULL)
          INTO counted FROM techally.retention_plan p WHERE p.target = managed;
        IF counted THEN
            FOR over IN SELECT r.partition, r.from_time, r.to_time
                          FROM techally.partition_ranges(managed) r
                          JOIN techally.managed_partitions m ON m.parent = managed
                         WHERE r.to_time <= (moment AT TIME ZONE 'UTC' - m.retention) AT TIME ZONE 'UTC'
                         ORDER BY r.from_time
            LOOP
                BEGIN
                    PERFORM techally.retention_retiring(managed, over.partition, over.from_time, over.to_time);
                    next := techally.retire_partition(managed, moment);
                    IF EXISTS (SELECT FROM techally.partition_ranges(managed) r WHERE r.partition = over.partition) THEN
                        RAISE EXCEPTION USING ERRCODE = 'TA000', MESSAGE = 'another partition than the one that was counted';
                    END IF;
                    EXIT;
                EXCEPTION WHEN SQLSTATE 'TA000' THEN
                    next := NULL;       -- that one stays, for now or for ever
                END;
            END LOOP;
        ELSE
            next := techally.retire_partition(managed, moment);
        END IF;
        done := CASE WHEN next IS NULL THEN 0 ELSE 1 END;
    EXCEPTION WHEN OTHERS THEN
        failure := format('%s (%s)', SQLERRM, SQLSTATE);
    END;
    PERFORM techally.note_partition_run(managed, 'retire', failure);
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
