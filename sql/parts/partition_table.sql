-- A plain table becomes a partitioned one, and the helpers for LIST and HASH.

-- What stands in the way, one reason a row.  Names in full, by the search path.
CREATE FUNCTION techally.partition_obstacles(target regclass, column_name name)
RETURNS TABLE (reason text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
SELECT format('it is a %s', CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'relation of another kind' END)
  FROM pg_class WHERE oid = target AND relkind NOT IN ('r', 'p')
UNION ALL
SELECT CASE relpersistence WHEN 't' THEN 'it is temporary' ELSE 'it is unlogged' END
  FROM pg_class WHERE oid = target AND relpersistence <> 'p'
UNION ALL
SELECT 'it is a partition or takes part in inheritance'
 WHERE EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = target WHERE c.relkind = 'r' AND target IN (i.inhrelid, i.inhparent))
UNION ALL
SELECT format('column "%s" does not exist', column_name)
 WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = column_name AND attnum > 0 AND NOT attisdropped)
UNION ALL
SELECT format('column "%s" is of type %s, not date, timestamp or timestamp with time zone', column_name, format_type(atttypid, atttypmod))
  FROM pg_attribute WHERE attrelid = target AND attname = column_name AND attnum > 0 AND NOT attisdropped
   AND atttypid NOT IN ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype)
UNION ALL
SELECT format('column "%s" is generated', column_name)
  FROM pg_attribute WHERE attrelid = target AND attname = column_name AND attgenerated <> ''
UNION ALL
SELECT format('%s "%s" does not contain column "%s", without which it cannot hold across partitions',
              CASE WHEN x.indisprimary THEN 'primary key' WHEN x.indisexclusion THEN 'exclusion constraint' ELSE 'unique index' END, i.relname, column_name)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
 WHERE x.indrelid = target AND (x.indisunique OR x.indisexclusion)
   AND (x.indisexclusion OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = column_name
                    AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1])))
UNION ALL
SELECT format('index "%s" is not valid', i.relname)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = target AND NOT x.indisvalid
UNION ALL
SELECT format('foreign key "%s" of table %s points at it, and %s', k.conname, k.conrelid::regclass,
              CASE WHEN k.conrelid = target THEN 'that is the table itself' WHEN NOT k.convalidated THEN 'is not validated'
                   WHEN c.relkind = 'p' THEN 'that is partitioned' ELSE 'that is not yours' END)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
 WHERE k.contype = 'f' AND k.confrelid = target AND k.conparentid = 0
   AND (k.conrelid = target OR NOT k.convalidated OR c.relkind = 'p' OR NOT pg_has_role(c.relowner, 'USAGE'))
UNION ALL
SELECT format('constraint "%s" is not validated', conname)
  FROM pg_constraint WHERE conrelid = target AND contype IN ('c', 'f') AND NOT convalidated
UNION ALL
SELECT format('constraint "%s" is not inherited', conname)
  FROM pg_constraint WHERE conrelid = target AND contype = 'c' AND connoinherit
UNION ALL
SELECT format('trigger "%s" is for each row and uses transition tables', tgname)
  FROM pg_trigger WHERE tgrelid = target AND NOT tgisinternal AND tgtype & 1 = 1 AND coalesce(tgoldtable, tgnewtable) IS NOT NULL
UNION ALL
SELECT format('%s reads it%s', pg_describe_object('pg_class'::regclass, r.ev_class, 0),
              CASE WHEN bool_and(c.relkind = 'v' AND c.relpersistence = 'p' AND r.rulename = '_RETURN') THEN ' and is not yours' ELSE '' END)
  FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid JOIN pg_class c ON c.oid = r.ev_class
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND r.ev_class <> target
   AND NOT (c.relkind = 'v' AND c.relpersistence = 'p' AND r.rulename = '_RETURN' AND pg_has_role(c.relowner, 'USAGE'))
 GROUP BY r.ev_class
UNION ALL
SELECT format('%s has it in its body and is not yours', pg_describe_object(d.classid, d.objid, 0))
  FROM pg_depend d JOIN pg_proc f ON f.oid = d.objid
 WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND NOT pg_has_role(f.proowner, 'USAGE')
 GROUP BY d.classid, d.objid
UNION ALL
SELECT format('%s depends on it', pg_describe_object(d.classid, d.objid, 0))
  FROM pg_depend d
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = target
   AND CASE d.classid WHEN 'pg_policy'::regclass THEN (SELECT polrelid <> target FROM pg_policy WHERE oid = d.objid)
                      WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid <> target AND NOT tgisinternal FROM pg_trigger WHERE oid = d.objid)
                      WHEN 'pg_constraint'::regclass THEN (SELECT target NOT IN (conrelid, confrelid) FROM pg_constraint WHERE oid = d.objid)
                      WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid <> target FROM pg_attrdef WHERE oid = d.objid)
                      WHEN 'pg_class'::regclass THEN (SELECT relkind NOT IN ('i', 'S', 't', 'r', 'p', 'f') FROM pg_class WHERE oid = d.objid)
                      ELSE d.classid NOT IN ('pg_rewrite'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_statistic_ext'::regclass, 'pg_publication_rel'::regclass) END
 GROUP BY d.classid, d.objid
UNION ALL
SELECT format('rule "%s" is defined on it', rulename) FROM pg_rewrite WHERE ev_class = target
UNION ALL
SELECT format('%s uses its row type', pg_describe_object(d.classid, d.objid, d.objsubid))
  FROM pg_class c JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (c.reltype, (SELECT t.typarray FROM pg_type t WHERE t.oid = c.reltype))
 WHERE c.oid = target AND d.deptype = 'n'
UNION ALL
SELECT format('publication "%s" has it with a filter or a list of columns', p.pubname)
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
 WHERE r.prrelid = target AND coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL
UNION ALL
SELECT format('publication "%s" publishes partitions under their own names, which its subscribers do not know: set publish_via_partition_root', p.pubname)
  FROM pg_publication p
 WHERE NOT p.pubviaroot AND EXISTS (SELECT FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
                                      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = p.pubname AND c.oid = target)
UNION ALL
SELECT format('its column "%s" is under a state machine: detach it first, attach it afterwards', a.column_name)
  FROM techally.machine_attachments a WHERE a.target = partition_obstacles.target
UNION ALL
SELECT 'it is under soft delete: disable it first, enable it afterwards'
  FROM techally.soft_delete_tables s WHERE s.target = partition_obstacles.target
$function$;
REVOKE ALL ON FUNCTION techally.partition_obstacles(regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION techally.partition_obstacles(regclass, name) IS
'Why a table cannot be converted by partition_table as it stands: a reason a row, none where it can';

-- The switch: the table becomes the DEFAULT partition of a new one that takes
-- its name.  That needs no look at its rows: without other partitions DEFAULT
-- takes everything.  One transaction, one ACCESS EXCLUSIVE lock, a few
-- milliseconds; NULL where the lock cannot be had.
CREATE FUNCTION techally.switch_to_partitioned(target regclass, column_name name, step interval)
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = 0 SET client_min_messages = warning
AS $function$
DECLARE
    this       record;
    obstacles  text;
    old_name   text;
    parent     text;
    old        text;
    before     text[] := '{}';      -- on the table, while it has its name
    after      text[] := '{}';      -- on the new one
    finally    text[] := '{}';      -- when the old table is its partition
    patience   interval;
    deadline   timestamptz;
    s          text;
    r          record;
BEGIN
    SELECT c.relname, n.nspname, c.relowner, t.spcname, obj_description(c.oid, 'pg_class') AS remark, c.relrowsecurity, c.relforcerowsecurity
      INTO this
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
     WHERE c.oid = target;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_table', MESSAGE = format('table with OID %s does not exist', target::oid);
    END IF;
    IF NOT pg_has_role(this.relowner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('must be owner of table %s', this.relname);
    END IF;
    parent := format('%I.%I', this.nspname, this.relname);

    -- a function in C, before a setting of the library is asked for
    old_name := techally.free_table_name(this.nspname, this.relname, 'default');
    old := format('%I.%I', this.nspname, old_name);

    -- all locks within the one timeout: the first is the table's own
    SELECT setting::bigint * interval '1 millisecond' INTO patience FROM pg_settings WHERE name = 'techally.maintenance_lock_timeout';
    deadline := clock_timestamp() + patience;
    PERFORM set_config('lock_timeout', current_setting('techally.maintenance_lock_timeout'), true);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', parent);
    SELECT string_agg(o.reason, '; ') INTO obstacles FROM techally.partition_obstacles(target, column_name) o;
    IF obstacles IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('table "%s" cannot be converted as it stands', this.relname),
            DETAIL = upper(left(obstacles, 1)) || substr(obstacles, 2) || '.',
            HINT = 'techally.partition_obstacles lists the reasons.';
    END IF;

    -- the audit goes on under the lock that nobody writes past, into the same log
    FOR r IN SELECT a.form, a.excluded, a.redacted FROM techally.audited_tables a WHERE a.target = switch_to_partitioned.target AND a.form <> 'row' LOOP
        PERFORM techally.disable_audit(target);
        finally := finally || format('SELECT techally.%I(%L::regclass, %L::name[], %L::name[])',
                                     CASE r.form WHEN 'replica' THEN 'enable_replica_audit' ELSE 'enable_audit' END, parent, r.excluded, r.redacted);
    END LOOP;

    -- what the new table gets, in the words of the catalogs, which name it by
    -- the name that it will have
    FOR r IN SELECT conname, pg_get_constraintdef(oid) AS def, contype, obj_description(oid, 'pg_constraint') AS remark FROM pg_constraint
              WHERE conrelid = target AND contype IN ('p', 'u', 'f') ORDER BY contype = 'f', conname LOOP
        IF r.contype <> 'f' THEN
            before := before || format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', old, r.conname, techally.free_table_name(this.nspname, r.conname, 'default'));
        END IF;
        after := after || format('ALTER TABLE %s ADD CONSTRAINT %I %s', parent, r.conname, r.def)
                       || format('COMMENT ON CONSTRAINT %I ON %s IS %L', r.conname, parent, r.remark);
    END LOOP;
    FOR r IN SELECT i.relname, pg_get_indexdef(x.indexrelid) AS def, obj_description(i.oid, 'pg_class') AS remark FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
              WHERE x.indrelid = target AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.conrelid = target AND k.contype IN ('p', 'u', 'x'))
              ORDER BY i.relname LOOP
        before := before || format('ALTER INDEX %I.%I RENAME TO %I', this.nspname, r.relname, techally.free_table_name(this.nspname, r.relname, 'default'));
        after := after || r.def || format('COMMENT ON INDEX %I.%I IS %L', this.nspname, r.relname, r.remark);
    END LOOP;
    FOR r IN SELECT t.tgname, pg_get_triggerdef(t.oid) AS def, t.tgenabled, obj_description(t.oid, 'pg_trigger') AS remark FROM pg_trigger t
              WHERE t.tgrelid = target AND NOT t.tgisinternal ORDER BY t.tgname LOOP
        before := before || format('DROP TRIGGER %I ON %s', r.tgname, old);
        finally := finally || r.def || format('COMMENT ON TRIGGER %I ON %s IS %L', r.tgname, parent, r.remark);
        IF r.tgenabled <> 'O' THEN
            finally := finally || format('ALTER TABLE %s %s TRIGGER %I', parent,
                CASE r.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, r.tgname);
        END IF;
    END LOOP;
    -- an audit trigger of one's own is watched where it is now
    IF EXISTS (SELECT FROM techally.audited_tables a WHERE a.target = switch_to_partitioned.target AND a.form = 'row') THEN
        before := before || format('SELECT techally.disable_audit(%L::regclass)', old);
    END IF;
    FOR r IN SELECT a.attname, a.attidentity, q.*, s.last_value IS NOT NULL AS is_called, s.last_value AS position
               FROM pg_attribute a
               JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND d.refobjsubid = a.attnum AND d.deptype = 'i' AND d.classid = 'pg_class'::regclass
               JOIN pg_sequence q ON q.seqrelid = d.objid
               JOIN pg_class sc ON sc.oid = q.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace
               JOIN pg_sequences s ON s.schemaname = sn.nspname AND s.sequencename = sc.relname
              WHERE a.attrelid = target AND a.attidentity <> '' LOOP
        before := before || format('ALTER TABLE %s ALTER COLUMN %I DROP IDENTITY', old, r.attname);
        after := after || format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', parent, r.attname)
                       || format('ALTER TABLE %s ALTER COLUMN %I ADD GENERATED %s AS IDENTITY (INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s %s CYCLE)',
            parent, r.attname, CASE r.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
            r.seqincrement, r.seqmin, r.seqmax, r.seqstart, r.seqcache, CASE WHEN r.seqcycle THEN '' ELSE 'NO' END);
        IF r.is_called THEN
            after := after || format('SELECT pg_catalog.setval(pg_catalog.pg_get_serial_sequence(%L, %L), %s)', parent, r.attname, r.position);
        END IF;
    END LOOP;
    FOR r IN SELECT sn.nspname, sc.relname, a.attname
               FROM pg_depend d JOIN pg_class sc ON sc.oid = d.objid AND sc.relkind = 'S' JOIN pg_namespace sn ON sn.oid = sc.relnamespace
               JOIN pg_attribute a ON a.attrelid = target AND a.attnum = d.refobjsubid
              WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND d.deptype = 'a' LOOP
        after := after || format('ALTER SEQUENCE %I.%I OWNED BY %s.%I', r.nspname, r.relname, parent, r.attname);
    END LOOP;
    FOR r IN SELECT a.*, NULL::name AS attname FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = target AND a.grantee <> c.relowner
             UNION ALL
             SELECT a.*, t.attname FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a WHERE c.oid = target AND a.grantee <> c.relowner LOOP
        after := after || format('GRANT %s%s ON TABLE %s TO %s%s', r.privilege_type, CASE WHEN r.attname IS NOT NULL THEN format(' (%I)', r.attname) ELSE '' END, parent,
            CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END, CASE WHEN r.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    FOR r IN SELECT p.pubname FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid WHERE pr.prrelid = target LOOP
        after := after || format('ALTER PUBLICATION %I ADD TABLE %s', r.pubname, parent);
    END LOOP;
    -- row security: the new table's counts from now on; the old one keeps its
    -- own for who names it, but does not force it on maintenance
    FOR r IN SELECT p.*, pg_get_expr(p.polqual, p.polrelid) AS reads, pg_get_expr(p.polwithcheck, p.polrelid) AS writes, obj_description(p.oid, 'pg_policy') AS remark,
                    (SELECT string_agg(CASE g WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g)) END, ', ') FROM unnest(p.polroles) g) AS roles
               FROM pg_policy p WHERE p.polrelid = target LOOP
        after := after || format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', r.polname, parent,
                                 CASE WHEN r.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                                 CASE r.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, r.roles,
                                 ' USING (' || r.reads || ')', ' WITH CHECK (' || r.writes || ')')
                       || format('COMMENT ON POLICY %I ON %s IS %L', r.polname, parent, r.remark);
    END LOOP;
    IF this.relrowsecurity THEN
        after := after || format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', parent);
    END IF;
    IF this.relforcerowsecurity THEN
        before := before || format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', old);
        after := after || format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', parent);
    END IF;
    -- those who know the table by its OID are told again what it is called
    FOR r IN SELECT DISTINCT c.oid, format('%I.%I', n.nspname, c.relname) AS view, ' WITH (' || array_to_string(c.reloptions, ', ') || ')' AS options, pg_get_viewdef(c.oid) AS def
               FROM pg_depend d JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
               JOIN pg_class c ON c.oid = w.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND w.rulename = '_RETURN' ORDER BY c.oid LOOP
        finally := finally || format('CREATE OR REPLACE VIEW %s%s AS %s', r.view, r.options, r.def);
    END LOOP;
    FOR r IN SELECT DISTINCT d.objid, pg_get_functiondef(d.objid) AS def FROM pg_depend d
              WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = target ORDER BY d.objid LOOP
        finally := finally || r.def;
    END LOOP;
    -- a foreign key that points in holds from now on; what was there is looked
    -- at when the lock is gone
    FOR r IN SELECT format('%I.%I', n.nspname, c.relname) AS referrer, k.conname, pg_get_constraintdef(k.oid) AS def, obj_description(k.oid, 'pg_constraint') AS remark
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE k.contype = 'f' AND k.confrelid = target AND k.conparentid = 0 ORDER BY c.oid, k.conname LOOP
        before := before || format('ALTER TABLE %s DROP CONSTRAINT %I', r.referrer, r.conname);
        finally := finally || format('ALTER TABLE %s ADD CONSTRAINT %I %s NOT VALID', r.referrer, r.conname, r.def)
                           || format('COMMENT ON CONSTRAINT %I ON %s IS %L', r.conname, r.referrer, r.remark);
    END LOOP;

    EXECUTE format('ALTER TABLE %s RENAME TO %I', parent, old_name);
    before := before
          || format('SELECT techally.run_as_owner(%L, %L)', old,
                    format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY EXCLUDING STATISTICS) PARTITION BY RANGE (%I)%s',
                           parent, old, column_name, CASE WHEN this.spcname IS NOT NULL THEN format(' TABLESPACE %I', this.spcname) ELSE '' END));
    after := ARRAY[]::text[]
          || format('COMMENT ON TABLE %s IS %L', parent, this.remark)
          || after
          || format('SELECT techally.run_as_owner(%L, %L)', parent, format('ALTER TABLE %s ATTACH PARTITION %s DEFAULT', parent, old));
    FOREACH s IN ARRAY before || after || finally LOOP
        PERFORM set_config('lock_timeout', greatest(1, ceil(extract(epoch FROM deadline - clock_timestamp()) * 1000))::bigint::text, true);
        EXECUTE s;
    END LOOP;
    PERFORM techally.manage_partitions(parent::regclass, step);
    RETURN parent::regclass;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END
$function$;
REVOKE ALL ON FUNCTION techally.switch_to_partitioned(regclass, name, interval) FROM PUBLIC;
COMMENT ON FUNCTION techally.switch_to_partitioned(regclass, name, interval) IS
'The first step of partition_table: makes a table the DEFAULT partition of a new one of its name; NULL where its lock cannot be had';

CREATE FUNCTION techally.free_table_name(schema_name name, base text, label text)
RETURNS text
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_free_table_name';
COMMENT ON FUNCTION techally.free_table_name(name, text, text) IS
'A name that nothing in a schema has: base and label, cut to fit, with a number if need be';

-- A foreign key that pointed at the table when it was converted holds for what
-- has been written since; this looks at one that has to be looked at for what
-- was there.  Writers go on meanwhile.
CREATE FUNCTION techally.validate_reference(parent regclass)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    r record;
BEGIN
    SELECT k.conname, k.conrelid::regclass AS referrer INTO r
      FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = parent AND k.conparentid = 0 AND NOT k.convalidated
     ORDER BY k.conrelid, k.conname LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', current_setting('techally.maintenance_lock_timeout'), true);
    EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', r.referrer, r.conname);
    RETURN r.conname;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN '';
END
$function$;
REVOKE ALL ON FUNCTION techally.validate_reference(regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.validate_reference(regclass) IS
'Validates one foreign key that points at a converted table; its name, empty where its lock cannot be had, NULL where none is left';

-- Drains a range; -1 where the locks cannot be had.
CREATE FUNCTION techally.try_drain_default(parent regclass)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN techally.drain_default(parent);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN -1;
END
$function$;
REVOKE ALL ON FUNCTION techally.try_drain_default(regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.try_drain_default(regclass) IS
'drain_default for a loop that commits: -1 instead of an error where the locks cannot be had';

CREATE PROCEDURE techally.partition_table(target regclass, column_name name, step interval)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    parent     pg_catalog.regclass;
    table_name pg_catalog.text;
    moved      pg_catalog.int8;
    done       pg_catalog.int8 := 0;
    total      pg_catalog.int8;
    validated  pg_catalog.text;
    attempts   pg_catalog.int4 := 0;
BEGIN
    IF target IS NULL OR column_name IS NULL OR step IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'arguments "target", "column_name" and "step" must not be null';
    END IF;

    table_name := target::pg_catalog.text;
    SELECT CASE WHEN c.reltuples OPERATOR(pg_catalog.>=) 0 THEN c.reltuples::pg_catalog.int8 END INTO total
      FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) target;
    PERFORM techally.report_progress('conversion', table_name, 'waiting for its lock', 0, total);

    -- a call before this one may have got so far
    IF EXISTS (SELECT FROM techally.managed_partitions m
                 JOIN pg_catalog.pg_partitioned_table p ON p.partrelid OPERATOR(pg_catalog.=) m.parent
                 JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) p.partrelid AND a.attnum OPERATOR(pg_catalog.=) p.partattrs[0]
                WHERE m.parent OPERATOR(pg_catalog.=) target AND a.attname OPERATOR(pg_catalog.=) column_name) THEN
        parent := target;
    ELSE
        LOOP
            parent := techally.switch_to_partitioned(target, column_name, step);
            EXIT WHEN parent IS NOT NULL;
            attempts := attempts OPERATOR(pg_catalog.+) 1;
            IF attempts OPERATOR(pg_catalog.>=) 100 THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = pg_catalog.format('table %s could not be locked', target),
                    HINT = 'Nothing has been changed. Call it again when there are fewer long transactions.';
            END IF;
            COMMIT;
            PERFORM pg_catalog.pg_sleep(0.2 OPERATOR(pg_catalog.*) (1 OPERATOR(pg_catalog.+) pg_catalog.random()));
        END LOOP;
    END IF;
    COMMIT;

    attempts := 0;
    PERFORM techally.report_progress('conversion', table_name, 'validating foreign keys that point in', 0, total);
    LOOP
        validated := techally.validate_reference(parent);
        COMMIT;
        EXIT WHEN validated IS NULL;
        IF validated OPERATOR(pg_catalog.=) '' THEN
            attempts := attempts OPERATOR(pg_catalog.+) 1;
            IF attempts OPERATOR(pg_catalog.>=) 20 THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = pg_catalog.format('a foreign key that points at %s could not be validated', parent),
                    HINT = 'The table is partitioned, and its rows are in its DEFAULT partition. Call it again.';
            END IF;
        END IF;
    END LOOP;

    attempts := 0;
    LOOP
        PERFORM techally.report_progress('conversion', table_name, 'moving rows into their partitions', done, total);
        moved := techally.try_drain_default(parent);
        COMMIT;
        EXIT WHEN moved OPERATOR(pg_catalog.=) 0;
        IF moved OPERATOR(pg_catalog.>) 0 THEN
            attempts := 0;
            done := done OPERATOR(pg_catalog.+) moved;
        ELSE
            attempts := attempts OPERATOR(pg_catalog.+) 1;
            IF attempts OPERATOR(pg_catalog.>=) 20 THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = pg_catalog.format('table %s could not be locked', parent),
                    HINT = 'The table is partitioned, and some of its rows are in its DEFAULT partition still. Call it again, or leave them to maintenance.';
            END IF;
        END IF;
    END LOOP;
    PERFORM techally.premake_partitions(parent);
    PERFORM techally.end_progress();
END
$procedure$;
REVOKE ALL ON PROCEDURE techally.partition_table(regclass, name, interval) FROM PUBLIC;
COMMENT ON PROCEDURE techally.partition_table(regclass, name, interval) IS
'Makes a plain table a managed partitioned one while it is in use, committing step by step; call it again to go on where it was interrupted';

CREATE FUNCTION techally.create_list_partition(parent regclass, label text, VARIADIC list_values text[])
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    this  record;
    named text;
BEGIN
    SELECT c.relname, n.nspname, p.partstrat, p.partnatts INTO this
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
     WHERE c.oid = parent;
    IF this.partstrat IS DISTINCT FROM 'l' THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('table "%s" is not partitioned by LIST', coalesce(this.relname, parent::text::name));
    END IF;
    named := format('%I.%I', this.nspname, techally.free_table_name(this.nspname, this.relname, label));
    IF cardinality(list_values) = 0 THEN
        PERFORM techally.run_as_owner(parent, format('CREATE TABLE %s PARTITION OF %s DEFAULT', named, parent));
    ELSE
        PERFORM techally.run_as_owner(parent, format('CREATE TABLE %s PARTITION OF %s FOR VALUES IN (%s)', named, parent,
                                                     (SELECT string_agg(quote_nullable(v), ', ') FROM unnest(list_values) v)));
    END IF;
    PERFORM techally.finish_partition(parent, named::regclass);
    RETURN named;
END
$function$;
REVOKE ALL ON FUNCTION techally.create_list_partition(regclass, text, text[]) FROM PUBLIC;
COMMENT ON FUNCTION techally.create_list_partition(regclass, text, text[]) IS
'Makes a partition of a table that is partitioned by LIST, called after a label, for some values; without any its DEFAULT';

CREATE FUNCTION techally.create_hash_partitions(parent regclass, modulus integer, label text DEFAULT '')
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    this  record;
    named text;
    made  integer := 0;
BEGIN
    SELECT c.relname, n.nspname, p.partstrat INTO this
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
     WHERE c.oid = parent;
    IF this.partstrat IS DISTINCT FROM 'h' THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('table "%s" is not partitioned by HASH', coalesce(this.relname, parent::text::name));
    END IF;
    IF modulus IS NULL OR modulus < 1 OR modulus > 10000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'modulus must be between 1 and 10000';
    END IF;
    FOR remainder IN 0 .. modulus - 1 LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                               WHERE i.inhparent = parent AND pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES WITH (modulus %s, remainder %s)', modulus, remainder));
        named := format('%I.%I', this.nspname,
                        techally.free_table_name(this.nspname, this.relname, CASE label WHEN '' THEN '' ELSE label || '_' END || remainder));
        PERFORM techally.run_as_owner(parent, format('CREATE TABLE %s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s)', named, parent, modulus, remainder));
        PERFORM techally.finish_partition(parent, named::regclass);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$function$;
REVOKE ALL ON FUNCTION techally.create_hash_partitions(regclass, integer, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.create_hash_partitions(regclass, integer, text) IS
'Makes the partitions that a table that is partitioned by HASH lacks of a modulus; returns how many';

CREATE FUNCTION techally.run_as_owner(target regclass, statement text)
RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_run_as_owner';
REVOKE ALL ON FUNCTION techally.run_as_owner(regclass, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.run_as_owner(regclass, text) IS
'Runs a statement as the owner of a table that the caller owns, too; for the functions that make partitions';

CREATE FUNCTION techally.finish_partition(parent regclass, partition regclass)
RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_finish_partition';
REVOKE ALL ON FUNCTION techally.finish_partition(regclass, regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.finish_partition(regclass, regclass) IS
'Gives a new partition its parent''s owner and grants, and has it audited where the parent is';
