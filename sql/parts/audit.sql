-- Auditing tables.

-- What is audited, so that what is missing can be found.  The triggers' own
-- arguments say what is left out; the numbers of the columns tell a renamed one.
CREATE TABLE techally.audited_tables (
    target           regclass    CONSTRAINT audited_tables_pkey PRIMARY KEY,
    form             text        NOT NULL,
    excluded         name[]      NOT NULL,
    redacted         name[]      NOT NULL,
    excluded_columns smallint[]  NOT NULL,
    redacted_columns smallint[]  NOT NULL,
    table_name       name        NOT NULL,
    enabled_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT chk_audited_tables_form CHECK (form IN ('statement', 'replica', 'row'))
);
GRANT SELECT ON TABLE techally.audited_tables TO PUBLIC;
COMMENT ON TABLE techally.audited_tables IS 'Tables that are audited; written by enable_audit and disable_audit';
COMMENT ON COLUMN techally.audited_tables.target IS 'The table; a partitioned one stands for its partitions';
COMMENT ON COLUMN techally.audited_tables.form IS 'statement; replica: what the apply worker of a subscription writes; row: a trigger that somebody has created';
COMMENT ON COLUMN techally.audited_tables.excluded IS 'Columns that never appear in the log';
COMMENT ON COLUMN techally.audited_tables.redacted IS 'Columns that appear there without their values';
COMMENT ON COLUMN techally.audited_tables.excluded_columns IS 'Their numbers, when the audit was enabled';
COMMENT ON COLUMN techally.audited_tables.redacted_columns IS 'Their numbers, when the audit was enabled';
COMMENT ON COLUMN techally.audited_tables.table_name IS 'By which name the log has it at present';
COMMENT ON COLUMN techally.audited_tables.enabled_at IS 'Since when';

SELECT pg_catalog.pg_extension_config_dump('techally.audited_tables', '');

-- A log names its tables by name: these are the names that tables had before.
CREATE TABLE techally.audited_names (
    target     regclass    NOT NULL,
    table_name name        NOT NULL,
    from_time  timestamptz NOT NULL,
    to_time    timestamptz NOT NULL,
    CONSTRAINT audited_names_pkey PRIMARY KEY (target, to_time)
);
GRANT SELECT ON TABLE techally.audited_names TO PUBLIC;
COMMENT ON TABLE techally.audited_names IS 'Names by which audit logs have had tables; written where an audited table is renamed';
COMMENT ON COLUMN techally.audited_names.target IS 'The table';
COMMENT ON COLUMN techally.audited_names.table_name IS 'What it was called';
COMMENT ON COLUMN techally.audited_names.from_time IS 'Since when';
COMMENT ON COLUMN techally.audited_names.to_time IS 'Until when, this moment not included';

SELECT pg_catalog.pg_extension_config_dump('techally.audited_names', '');

CREATE FUNCTION techally.audit_changes()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_audit_changes';
COMMENT ON FUNCTION techally.audit_changes() IS
'Writes what a statement or a row changed to the audit log of its schema; arguments: ''exclude'' or ''redact'' and a column''s name, in pairs';

CREATE FUNCTION techally.guard_audit_log()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_guard_audit_log';
COMMENT ON FUNCTION techally.guard_audit_log() IS
'Refuses to have an audit log written to by anybody else';

CREATE FUNCTION techally.enable_audit(target regclass, exclude name[] DEFAULT '{}', redact name[] DEFAULT '{}')
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_enable_audit';
COMMENT ON FUNCTION techally.enable_audit(regclass, name[], name[]) IS
'Has every change of a table of the caller''s written to the audit log of its schema';

CREATE FUNCTION techally.enable_replica_audit(target regclass, exclude name[] DEFAULT '{}', redact name[] DEFAULT '{}')
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_enable_replica_audit';
COMMENT ON FUNCTION techally.enable_replica_audit(regclass, name[], name[]) IS
'The same on a subscriber, for the changes that its apply worker makes';

CREATE FUNCTION techally.disable_audit(target regclass)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_disable_audit';
COMMENT ON FUNCTION techally.disable_audit(regclass) IS
'Ends the audit of a table of the caller''s; the log stays';

CREATE FUNCTION techally.audit_partition_created(parent regclass, partition regclass)
RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_audit_partition_created';
REVOKE ALL ON FUNCTION techally.audit_partition_created(regclass, regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_partition_created(regclass, regclass) IS
'Puts on a new partition the triggers that the server does not clone';

-- Reading the log.  These run as their caller, who needs SELECT on the log and,
-- for rows that are there, on the table.

CREATE FUNCTION techally.audit_source(target regclass, OUT log regclass, OUT table_schema text, OUT table_name text,
                                      OUT root regclass, OUT primary_key name[])
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ta_audit_source';
COMMENT ON FUNCTION techally.audit_source(regclass) IS
'Where a table''s changes are logged, and under which name; raises where there is no log';

-- Another table may have had the name before, and have another now; a table that
-- has become a partition brings its names along.
CREATE FUNCTION techally.audit_names(target regclass)
RETURNS TABLE (table_name text, from_time timestamptz, to_time timestamptz)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    WITH source AS (
        SELECT s.root, s.table_name, c.relnamespace FROM techally.audit_source(target) s JOIN pg_class c ON c.oid = s.root
    )
    SELECT n.table_name::text, n.from_time, n.to_time
      FROM source s JOIN techally.audited_names n
        ON n.target = s.root OR n.target IN (SELECT p.relid FROM pg_partition_tree(s.root) p)
    UNION ALL
    SELECT s.table_name,
           COALESCE((SELECT max(n.to_time) FROM techally.audited_names n LEFT JOIN pg_class c ON c.oid = n.target
                      WHERE n.target = s.root OR n.target IN (SELECT p.relid FROM pg_partition_tree(s.root) p)
                         OR (n.table_name = s.table_name AND c.relnamespace = s.relnamespace)), '-infinity'),
           'infinity'
      FROM source s
$function$;
COMMENT ON FUNCTION techally.audit_names(regclass) IS
'The names by which a log has a table, each with its time';

CREATE FUNCTION techally.audit_key(target regclass, key jsonb)
RETURNS jsonb
LANGUAGE C STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_audit_key_of';
COMMENT ON FUNCTION techally.audit_key(regclass, jsonb) IS
'A primary key in the form in which the log has it; raises where it is not all of its columns';

CREATE FUNCTION techally.audit_image(target regclass, key jsonb)
RETURNS jsonb
LANGUAGE C STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_audit_image_of';
COMMENT ON FUNCTION techally.audit_image(regclass, jsonb) IS
'The row that has a key at present, in the form in which the log has rows; NULL for none';

-- An entry on the walk through a row's history.
CREATE TYPE techally.audit_moment AS (
    audit_id bigint, changed_at timestamptz, transaction_id bigint, action text, user_id uuid, changes jsonb,
    row_key jsonb, new_key jsonb, row_before jsonb, known_before boolean, row_after jsonb, known_after boolean);
COMMENT ON TYPE techally.audit_moment IS 'An entry of an audit log, with the row before and after it; for audit_states';

-- The old or the new values of an UPDATE's changes.
CREATE FUNCTION techally.audit_side(changes jsonb, side text)
RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (SELECT COALESCE(jsonb_object_agg(e.key, e.value -> side), '{}') FROM jsonb_each(changes) e);
COMMENT ON FUNCTION techally.audit_side(jsonb, text) IS
'The old or the new values of what the log has about an UPDATE';

-- The entries of a key, oldest first, with the row before and after each.  Where
-- it cannot be said what the row was, known_before or known_after is false.
--
-- From the live row backwards each entry's old values give the row before it;
-- where that comes to nothing (no live row, something erased), forwards from the
-- last image.  A row that has changed its key takes its other keys along: all of
-- them are walked at once, and what one statement did to them as one step.
CREATE FUNCTION techally.audit_states(target regclass, key jsonb)
RETURNS TABLE (audit_id bigint, changed_at timestamptz, action text, user_id uuid, changes jsonb,
               row_key jsonb, new_key jsonb,
               row_before jsonb, known_before boolean, row_after jsonb, known_after boolean)
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    source  record;
    entry   record;
    canon   jsonb := techally.audit_key(target, key);
    family  jsonb[] := ARRAY[canon];
    other   jsonb;
    done    integer := 0;
    n       integer := 0;
    entries techally.audit_moment[] := '{}';
    step    techally.audit_moment;
    live    jsonb := '{}';   -- by key, what is known of the row at the moment of the walk: {"row": …}
    first   integer;
    last    integer;
    seen    jsonb;
    names   text[];
    froms   timestamptz[];
    tos     timestamptz[];
BEGIN
    SELECT s.* INTO source FROM techally.audit_source(target) s;
    SELECT array_agg(n.table_name), array_agg(n.from_time), array_agg(n.to_time) INTO names, froms, tos
      FROM techally.audit_names(target) n;

    -- the keys that rows have come from and gone to
    WHILE done < cardinality(family) LOOP
        done := done + 1;
        FOR other IN EXECUTE format(
            'SELECT l.new_key FROM unnest($2, $3, $4) n(table_name, from_time, to_time), %1$s l
              WHERE jsonb_hash_extended(l.row_key, hashtextextended(l.table_name, 0)) = jsonb_hash_extended($1, hashtextextended(n.table_name, 0))
                AND l.row_key = $1 AND l.new_key IS NOT NULL
                AND l.table_name = n.table_name AND l.changed_at >= n.from_time AND l.changed_at < n.to_time
             UNION
             SELECT l.row_key FROM unnest($2, $3, $4) n(table_name, from_time, to_time), %1$s l
              WHERE jsonb_hash_extended(l.new_key, hashtextextended(l.table_name, 0)) = jsonb_hash_extended($1, hashtextextended(n.table_name, 0))
                AND l.new_key = $1
                AND l.table_name = n.table_name AND l.changed_at >= n.from_time AND l.changed_at < n.to_time', source.log)
            USING family[done], names, froms, tos
        LOOP
            IF other <> ALL (family) THEN
                family := family || other;
            END IF;
        END LOOP;
    END LOOP;
    FOR entry IN EXECUTE format(
        'SELECT l.id, l.changed_at, l.transaction_id, l.action, l.user_id, l.changes, l.row_key, l.new_key
           FROM unnest($1) f, unnest($2, $3, $4) n(table_name, from_time, to_time), %s l
          WHERE jsonb_hash_extended(l.row_key, hashtextextended(l.table_name, 0)) = jsonb_hash_extended(f, hashtextextended(n.table_name, 0))
            AND l.row_key = f AND l.action <> ''ERASE''
            AND l.table_name = n.table_name AND l.changed_at >= n.from_time AND l.changed_at < n.to_time
          ORDER BY l.id', source.log)
        USING family, names, froms, tos
    LOOP
        n := n + 1;
        entries[n] := ROW(entry.id, entry.changed_at, entry.transaction_id, entry.action, entry.user_id, entry.changes,
                          entry.row_key, entry.new_key, NULL, false, NULL, false);
    END LOOP;

    FOREACH other IN ARRAY family LOOP
        live := live || jsonb_build_object(other::text, jsonb_build_object('row', techally.audit_image(target, other)));
    END LOOP;
    last := n;
    WHILE last > 0 LOOP
        first := last;
        WHILE first > 1 AND (entries[first - 1]).transaction_id = (entries[last]).transaction_id
              AND (entries[first - 1]).changed_at = (entries[last]).changed_at LOOP
            first := first - 1;
        END LOOP;
        -- what the rows were before and after the statement
        FOR i IN first..last LOOP
            step := entries[i];
            IF step.action IN ('DELETE', 'TRUNCATE') THEN
                step.known_after := true;
                step.row_before := step.changes;
                step.known_before := step.changes IS NOT NULL;
            ELSIF step.action = 'INSERT' THEN
                step.row_after := step.changes;
                step.known_after := step.changes IS NOT NULL;
                step.known_before := true;
            ELSE
                seen := live -> COALESCE(step.new_key, step.row_key)::text;
                IF jsonb_typeof(seen -> 'row') = 'object' THEN
                    step.row_after := seen -> 'row';
                    step.known_after := true;
                    IF step.changes IS NOT NULL THEN
                        step.row_before := step.row_after || techally.audit_side(step.changes, 'old');
                        step.known_before := true;
                    END IF;
                END IF;
            END IF;
            entries[i] := step;
        END LOOP;
        FOR i IN first..last LOOP
            IF (entries[i]).action = 'INSERT' OR (entries[i]).new_key IS NOT NULL THEN
                live := live || jsonb_build_object(COALESCE((entries[i]).new_key, (entries[i]).row_key)::text, '{"row": null}'::jsonb);
            END IF;
        END LOOP;
        FOR i IN first..last LOOP
            step := entries[i];
            IF step.action <> 'INSERT' THEN
                live := live || jsonb_build_object(step.row_key::text,
                    CASE WHEN step.known_before THEN jsonb_build_object('row', step.row_before) ELSE '{}' END);
            END IF;
        END LOOP;
        last := first - 1;
    END LOOP;

    -- forwards, where the way back was cut off
    live := '{}';
    FOR i IN 1..n LOOP
        step := entries[i];
        IF NOT step.known_before THEN
            seen := live -> step.row_key::text;
            IF jsonb_typeof(seen -> 'row') = 'object' THEN
                step.row_before := seen -> 'row';
                step.known_before := true;
            END IF;
        END IF;
        IF NOT step.known_after AND step.row_before IS NOT NULL AND step.changes IS NOT NULL THEN
            step.row_after := step.row_before || techally.audit_side(step.changes, 'new');
            step.known_after := true;
        END IF;
        IF step.new_key IS NOT NULL OR step.action IN ('DELETE', 'TRUNCATE') THEN
            live := live - step.row_key::text;
        END IF;
        IF step.known_after AND step.action NOT IN ('DELETE', 'TRUNCATE') THEN
            live := live || jsonb_build_object(COALESCE(step.new_key, step.row_key)::text, jsonb_build_object('row', step.row_after));
        ELSE
            live := live - COALESCE(step.new_key, step.row_key)::text;
        END IF;

        IF step.row_key = canon OR step.new_key = canon THEN
            audit_id := step.audit_id; changed_at := step.changed_at; action := step.action; user_id := step.user_id;
            changes := step.changes; row_key := step.row_key; new_key := step.new_key;
            -- of this key: before it came and after it went there was none
            IF step.row_key = canon THEN
                row_before := step.row_before; known_before := step.known_before;
            ELSE
                row_before := NULL; known_before := true;
            END IF;
            IF step.new_key IS NULL OR step.new_key = canon THEN
                row_after := step.row_after; known_after := step.known_after;
            ELSE
                row_after := NULL; known_after := true;
            END IF;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.audit_states(regclass, jsonb) IS
'The log''s entries about a row, oldest first, with the row before and after each';

CREATE FUNCTION techally.row_history(target regclass, key jsonb)
RETURNS TABLE (audit_id bigint, changed_at timestamptz, action text, user_id uuid, changes jsonb, row_after jsonb)
LANGUAGE sql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT s.audit_id, s.changed_at, s.action, s.user_id, s.changes, s.row_after
      FROM techally.audit_states(target, key) s
     ORDER BY s.audit_id
$function$;
COMMENT ON FUNCTION techally.row_history(regclass, jsonb) IS
'What happened to a row, oldest first, and what it was after each change; key has all columns of the primary key';

CREATE FUNCTION techally.row_as_of(target regclass, key jsonb, at timestamptz)
RETURNS jsonb
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    state   record;
    first   record;
    since   timestamptz;
BEGIN
    SELECT s.* INTO state FROM techally.audit_states(target, key) s
     WHERE s.changed_at <= at ORDER BY s.audit_id DESC LIMIT 1;
    IF FOUND THEN
        RETURN state.row_after;
    END IF;

    -- before its first entry a row was what that says, if the audit was on
    SELECT a.enabled_at INTO since FROM techally.audited_tables a, techally.audit_source(row_as_of.target) s
     WHERE a.target IN (s.root, row_as_of.target) ORDER BY a.enabled_at LIMIT 1;
    SELECT s.* INTO first FROM techally.audit_states(target, key) s ORDER BY s.audit_id LIMIT 1;
    IF FOUND THEN
        RETURN CASE WHEN at >= since THEN first.row_before END;
    END IF;
    RETURN CASE WHEN at >= COALESCE(since, CURRENT_TIMESTAMP) THEN techally.audit_image(target, key) END;
END
$function$;
COMMENT ON FUNCTION techally.row_as_of(regclass, jsonb, timestamptz) IS
'The row that had a key at a moment; NULL where there was none, or before the log knows of it';

CREATE FUNCTION techally.undo_change(target regclass, audit_id bigint)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET IntervalStyle = 'postgres'
SET lc_monetary = 'C'
AS $function$
DECLARE
    source     record;
    entry      record;
    state      record;
    target_key jsonb;
    live       jsonb;
    columns    text;
    key_record text;
    row_record text;
    key_match  text;
    redacted   text;
    excluded   text;
    changed    bigint;
BEGIN
    SELECT s.* INTO source FROM techally.audit_source(target) s;
    EXECUTE format('SELECT l.* FROM %s l WHERE l.id = $1 AND EXISTS (SELECT FROM techally.audit_names($2) n
                        WHERE n.table_name = l.table_name AND l.changed_at >= n.from_time AND l.changed_at < n.to_time)', source.log)
       INTO entry USING undo_change.audit_id, target;
    IF entry.id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TA007',
            MESSAGE = format('audit entry %s of table %s does not exist', undo_change.audit_id, target);
    END IF;
    IF entry.row_key IS NULL OR entry.action = 'ERASE' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('audit entry %s cannot be undone', entry.id),
            DETAIL = 'It is about no single row with a primary key.';
    END IF;
    IF entry.changes IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('audit entry %s cannot be undone', entry.id),
            DETAIL = 'Its values have been erased.';
    END IF;

    -- nobody changes the row while it is compared
    target_key := COALESCE(entry.new_key, entry.row_key);
    SELECT string_agg(format('t.%1$I = k.%1$I', a.attname), ' AND '),
           string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ')
      INTO key_match, key_record
      FROM pg_attribute a WHERE a.attrelid = source.root AND a.attname = ANY (source.primary_key);
    EXECUTE format('SELECT FROM %s t, jsonb_to_record($1) AS k(%s) WHERE %s FOR UPDATE OF t',
                   source.root, key_record, key_match) USING target_key;
    live := techally.audit_image(target, target_key);
    SELECT s.* INTO state FROM techally.audit_states(target, target_key) s WHERE s.audit_id = entry.id;
    IF NOT state.known_after OR live IS DISTINCT FROM state.row_after THEN
        RAISE EXCEPTION USING ERRCODE = 'TA005',
            MESSAGE = format('row %s of table %s has moved on', target_key, target),
            DETAIL = format('It is not what audit entry %s left.', entry.id),
            HINT = 'Undo the later changes first; techally.row_history lists them.';
    END IF;

    IF entry.action = 'INSERT' THEN
        EXECUTE format('DELETE FROM %s t USING jsonb_to_record($1) AS k(%s) WHERE %s',
                       source.root, key_record, key_match) USING target_key;
        RETURN;
    END IF;

    SELECT string_agg(quote_ident(d.column_name), ', ') INTO redacted
      FROM techally.audit_omitted(target) d
     WHERE d.redacted AND entry.changes ? d.column_name::text;
    IF redacted IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('audit entry %s cannot be undone', entry.id),
            DETAIL = format('The log does not have the values of %s.', redacted);
    END IF;

    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
           string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
      INTO columns, row_record
      FROM pg_attribute a
     WHERE a.attrelid = source.root AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
       AND entry.changes ? a.attname::text;
    IF columns IS NULL THEN
        RETURN;
    END IF;
    IF entry.action IN ('DELETE', 'TRUNCATE') THEN
        EXECUTE format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM jsonb_to_record($1) AS r(%3$s)',
                       source.root, columns, row_record) USING entry.changes;
        GET DIAGNOSTICS changed = ROW_COUNT;
        SELECT string_agg(quote_ident(d.column_name), ', ') INTO excluded
          FROM techally.audit_omitted(target) d WHERE NOT d.redacted;
        IF excluded IS NOT NULL THEN
            RAISE NOTICE USING MESSAGE = format('the row has defaults in %s', excluded),
                DETAIL = 'The log does not have the values of excluded columns.';
        END IF;
    ELSE
        EXECUTE format('UPDATE %1$s t SET (%2$s) = (SELECT %2$s FROM jsonb_to_record($2) AS r(%3$s))'
                       ' FROM jsonb_to_record($1) AS k(%4$s) WHERE %5$s',
                       source.root, columns, row_record, key_record, key_match)
          USING target_key, techally.audit_side(entry.changes, 'old');
        GET DIAGNOSTICS changed = ROW_COUNT;
    END IF;
    IF changed <> 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'TA005',
            MESSAGE = format('audit entry %s of table %s was not undone', entry.id, target),
            DETAIL = 'A trigger or a policy has kept the row as it is.';
    END IF;
END
$function$;
COMMENT ON FUNCTION techally.undo_change(regclass, bigint) IS
'Makes undone what an entry of the log says, if the row is still as it left it; TA005 if not';

-- What an audited table's triggers leave out.
CREATE FUNCTION techally.audit_omitted(target regclass)
RETURNS TABLE (column_name name, redacted boolean)
LANGUAGE C STABLE STRICT PARALLEL SAFE ROWS 5
AS 'MODULE_PATHNAME', 'ta_audit_omitted';
COMMENT ON FUNCTION techally.audit_omitted(regclass) IS
'The columns that the audit of a table leaves out, or has without their values';

-- Trusting the log.

CREATE FUNCTION techally.verify_audit_rows(log regclass, table_name text,
                                           from_time timestamptz, to_time timestamptz)
RETURNS TABLE (audit_id bigint, problem text)
LANGUAGE C STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_verify_audit_rows';
COMMENT ON FUNCTION techally.verify_audit_rows(regclass, text, timestamptz, timestamptz) IS
'Checks the hashes of a log''s rows';

-- The text that a seal is the SHA-256 of; it can be made anywhere.
CREATE FUNCTION techally.audit_seal(period text, number bigint, after_id bigint, to_id bigint, rows bigint,
                                    rows_hash bytea, previous bytea, sealed_at timestamptz)
RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256(convert_to(concat_ws('|', 'techally seal 1', period, number::text, after_id::text, to_id::text, rows::text,
                                   encode(rows_hash, 'hex'), COALESCE(encode(previous, 'hex'), ''),
                                   (extract(epoch FROM sealed_at) * 1000000)::bigint::text), 'UTF8'));
COMMENT ON FUNCTION techally.audit_seal(text, bigint, bigint, bigint, bigint, bytea, bytea, timestamptz) IS
'SHA-256 of what a seal says, joined by |: techally seal 1, period, number, after_id, to_id, rows, rows_hash and previous in hex, microseconds since 1970';

CREATE FUNCTION techally.audit_horizon(OUT next_transaction bigint, OUT settled bigint)
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_audit_horizon';
REVOKE ALL ON FUNCTION techally.audit_horizon() FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_horizon() IS
'The next transaction''s number, and that below which all others have ended';

CREATE FUNCTION techally.seal_audit_range(log regclass, after_id bigint, to_id bigint)
RETURNS bigint
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_seal_audit_range';
REVOKE ALL ON FUNCTION techally.seal_audit_range(regclass, bigint, bigint) FROM PUBLIC;
COMMENT ON FUNCTION techally.seal_audit_range(regclass, bigint, bigint) IS
'Seals the rows of a log with ids in a range';

CREATE FUNCTION techally.audit_partition_retired(parent regclass, from_time timestamptz, to_time timestamptz)
RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_audit_partition_retired';
REVOKE ALL ON FUNCTION techally.audit_partition_retired(regclass, timestamptz, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_partition_retired(regclass, timestamptz, timestamptz) IS
'Notes in a log''s seals that the rows of a span of time have been retired';

-- Up to where ids had been given out when somebody was still at work below;
-- worth nothing in another cluster, so not in a dump.
CREATE TABLE techally.audit_marks (
    log              regclass CONSTRAINT audit_marks_pkey PRIMARY KEY,
    to_id            bigint   NOT NULL,
    next_transaction bigint   NOT NULL
);
REVOKE ALL ON TABLE techally.audit_marks FROM PUBLIC;
COMMENT ON TABLE techally.audit_marks IS 'What seal_audit_logs seals once the transactions of that time have ended';
COMMENT ON COLUMN techally.audit_marks.log IS 'The log';
COMMENT ON COLUMN techally.audit_marks.to_id IS 'The last id that had been given out';
COMMENT ON COLUMN techally.audit_marks.next_transaction IS 'The next transaction''s number at that time';

CREATE FUNCTION techally.audit_logs()
RETURNS SETOF regclass
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT t.tgrelid::regclass FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
     WHERE t.tgfoid = 'techally.guard_audit_log()'::regprocedure
       AND t.tgname = 'techally_guard_rows' AND c.relkind = 'p' AND c.relname = 'audit_logs'
     ORDER BY c.relnamespace::regnamespace::text
$function$;
COMMENT ON FUNCTION techally.audit_logs() IS 'The audit logs of this database';

CREATE FUNCTION techally.seal_audit_log(log regclass)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    seals_of   text := format('%I.audit_seals', (SELECT c.relnamespace::regnamespace::text FROM pg_class c WHERE c.oid = log));
    ids        text;
    sealed_to  bigint;
    given_out  bigint;
    settled_to bigint := 0;
    mark       techally.audit_marks;
    horizon    record;
    step       bigint;
    seals      bigint := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1952541811, log::oid::bigint::integer) THEN
        RETURN 0;       -- somebody is at it
    END IF;
    ids := pg_get_serial_sequence(log::text, 'id');
    EXECUTE format('SELECT COALESCE(max(to_id), 0) FROM %s', seals_of) INTO sealed_to;

    -- the ids first, then the transactions: who has taken one of these ids has
    -- a number below
    EXECUTE format('SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM %s', ids) INTO given_out;
    SELECT h.* INTO horizon FROM techally.audit_horizon() h;
    SELECT m.* INTO mark FROM techally.audit_marks m WHERE m.log = seal_audit_log.log;
    IF horizon.settled >= horizon.next_transaction THEN
        settled_to := given_out;
    ELSIF mark.next_transaction <= horizon.settled THEN
        settled_to := mark.to_id;
    END IF;
    IF settled_to = given_out THEN
        DELETE FROM techally.audit_marks m WHERE m.log = seal_audit_log.log;
    ELSIF mark.log IS NULL OR settled_to > 0 OR mark.next_transaction > horizon.next_transaction THEN
        INSERT INTO techally.audit_marks AS m (log, to_id, next_transaction)
        VALUES (seal_audit_log.log, given_out, horizon.next_transaction)
        ON CONFLICT ON CONSTRAINT audit_marks_pkey DO UPDATE
           SET to_id = excluded.to_id, next_transaction = excluded.next_transaction;
    END IF;

    WHILE sealed_to < settled_to LOOP
        step := least(settled_to, sealed_to + 1000000);
        seals := seals + techally.seal_audit_range(log, sealed_to, step);
        sealed_to := step;
    END LOOP;
    RETURN seals;
END
$function$;
REVOKE ALL ON FUNCTION techally.seal_audit_log(regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.seal_audit_log(regclass) IS
'Seals what of a log is settled; returns how many seals that made';

CREATE FUNCTION techally.seal_audit_logs()
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT COALESCE(sum(techally.seal_audit_log(l)), 0)::bigint FROM techally.audit_logs() l
$function$;
REVOKE ALL ON FUNCTION techally.seal_audit_logs() FROM PUBLIC;
COMMENT ON FUNCTION techally.seal_audit_logs() IS
'Seals every audit log, for maintenance; returns how many seals that made';

-- A month's seals once its rows have been retired: what they cover is not there,
-- and is not expected.
CREATE FUNCTION techally.verify_audit_seals(log regclass)
RETURNS TABLE (audit_id bigint, problem text)
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    seals_of text := format('%I.audit_seals', (SELECT c.relnamespace::regnamespace::text FROM pg_class c WHERE c.oid = log));
BEGIN
    RETURN QUERY EXECUTE format($query$
        WITH seals AS (
            SELECT s.*, lag(s.seal) OVER w AS seal_before, lag(s.number) OVER w AS number_before
              FROM %2$s s
            WINDOW w AS (PARTITION BY s.period ORDER BY s.number)
        ), found AS (
            SELECT s.period, s.number, count(l.id) AS rows,
                   sha256(COALESCE(string_agg(l.row_hash, '' ORDER BY l.id), '')) AS rows_hash
              FROM %2$s s
              LEFT JOIN %1$s l ON l.id > s.after_id AND l.id <= s.to_id
                              AND l.changed_at >= (s.period || '-01')::timestamp AT TIME ZONE 'UTC'
                              AND l.changed_at < ((s.period || '-01')::timestamp + interval '1 month') AT TIME ZONE 'UTC'
             GROUP BY s.period, s.number
        )
        SELECT NULL::bigint, format('seal %%s of %%s: ', s.number, s.period) ||
               CASE WHEN s.number <> COALESCE(s.number_before, 0) + 1 OR s.previous IS DISTINCT FROM s.seal_before
                    THEN 'the seal before it is missing or another'
                    WHEN s.seal <> techally.audit_seal(s.period, s.number, s.after_id, s.to_id, s.rows, s.rows_hash, s.previous, s.sealed_at)
                    THEN 'the seal itself was changed'
                    WHEN f.rows < s.rows THEN format('%%s of %%s rows are missing', s.rows - f.rows, s.rows)
                    WHEN f.rows > s.rows THEN format('%%s rows were put in', f.rows - s.rows)
                    ELSE 'rows were changed' END
          FROM seals s JOIN found f USING (period, number)
         WHERE s.number <> COALESCE(s.number_before, 0) + 1 OR s.previous IS DISTINCT FROM s.seal_before
            OR s.seal <> techally.audit_seal(s.period, s.number, s.after_id, s.to_id, s.rows, s.rows_hash, s.previous, s.sealed_at)
            OR ((s.retired_at IS NULL OR f.rows > 0) AND (f.rows <> s.rows OR f.rows_hash <> s.rows_hash))
        UNION ALL
        SELECT l.id, 'the row was put in after its time was sealed'
          FROM %1$s l
         WHERE l.id <= (SELECT max(s.to_id) FROM %2$s s)
           AND NOT EXISTS (SELECT FROM seals s WHERE s.period = to_char(l.changed_at AT TIME ZONE 'UTC', 'YYYY-MM')
                              AND s.number <> COALESCE(s.number_before, 0) + 1)
           AND NOT EXISTS (SELECT FROM %2$s s WHERE s.period = to_char(l.changed_at AT TIME ZONE 'UTC', 'YYYY-MM')
                              AND l.id > s.after_id AND l.id <= s.to_id)
        $query$, log, seals_of);
END
$function$;
COMMENT ON FUNCTION techally.verify_audit_seals(regclass) IS
'Compares a log with its seals, and these with each other';

CREATE FUNCTION techally.verify_audit(target regclass, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL)
RETURNS TABLE (audit_id bigint, problem text)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC'
AS $function$
DECLARE
    source record;
    names  text[];
BEGIN
    SELECT s.* INTO source FROM techally.audit_source(target) s;
    -- once for each name that the table has had; none for a log itself
    names := ARRAY(SELECT DISTINCT n.table_name FROM techally.audit_names(target) n WHERE n.table_name IS NOT NULL);
    RETURN QUERY SELECT v.audit_id, v.problem
      FROM unnest(CASE WHEN source.table_name IS NULL THEN '{NULL}' ELSE names END) n(table_name),
           techally.verify_audit_rows(source.log, n.table_name, from_time, to_time) v;
    RETURN QUERY EXECUTE format($query$
        SELECT l.id, 'values are gone, and no erasure is logged'
          FROM %s l
         WHERE (l.changes_digest IS NOT NULL OR l.context_digest IS NOT NULL)
           AND ($2 IS NULL OR l.table_name = ANY ($1))
           AND ($3 IS NULL OR l.changed_at >= $3) AND ($4 IS NULL OR l.changed_at < $4)
           AND NOT EXISTS (SELECT FROM %1$s e
                            WHERE e.action = 'ERASE' AND e.id > l.id
                              AND (l.changes_digest IS NULL OR (e.table_name = l.table_name AND e.row_key IN (l.row_key, l.new_key)))
                              AND (l.context_digest IS NULL OR l.changes_digest IS NOT NULL OR e.resource_id = l.user_id))
        $query$, source.log) USING names, source.table_name, from_time, to_time;
    RETURN QUERY SELECT v.audit_id, v.problem FROM techally.verify_audit_seals(source.log) v;
END
$function$;
COMMENT ON FUNCTION techally.verify_audit(regclass, timestamptz, timestamptz) IS
'What is wrong with the log of a table, in a span of time, and with the seals of the log; no row: nothing. A log itself stands for all its tables';

-- Erasing.

CREATE FUNCTION techally.commit_audit_changes(salt bytea, changes jsonb)
RETURNS bytea
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ta_commit_audit_changes';
COMMENT ON FUNCTION techally.commit_audit_changes(bytea, jsonb) IS
'The commitment that an entry''s hash has in place of its changes';

CREATE FUNCTION techally.commit_audit_context(salt bytea, request_id text, client_ip inet, user_agent text, metadata jsonb)
RETURNS bytea
LANGUAGE C IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ta_commit_audit_context';
COMMENT ON FUNCTION techally.commit_audit_context(bytea, text, inet, text, jsonb) IS
'The commitment that an entry''s hash has in place of who asked';

CREATE FUNCTION techally.erase_audit_rows(log regclass, row_key jsonb, table_schema text, table_name text, actor uuid,
                                         from_time timestamptz, to_time timestamptz)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_erase_audit_rows';
COMMENT ON FUNCTION techally.erase_audit_rows(regclass, jsonb, text, text, uuid, timestamptz, timestamptz) IS
'For erase_audit and erase_audit_actor';

CREATE FUNCTION techally.erase_audit(target regclass, key jsonb)
RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT sum(techally.erase_audit_rows(s.log, techally.audit_key(target, key), s.table_schema, n.table_name, NULL,
                                         n.from_time, n.to_time))::bigint
      FROM techally.audit_source(target) s, techally.audit_names(target) n
$function$;
COMMENT ON FUNCTION techally.erase_audit(regclass, jsonb) IS
'Takes the values of a row out of its whole history; that it was changed stays and can be verified. For the log''s owner';

CREATE FUNCTION techally.erase_audit_actor(log regclass, actor uuid)
RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT techally.erase_audit_rows(log, NULL, NULL, NULL, actor, NULL, NULL)
$function$;
COMMENT ON FUNCTION techally.erase_audit_actor(regclass, uuid) IS
'Takes request_id, client_ip, user_agent and metadata out of the entries of what a user did. For the log''s owner';

-- Looking after it.

-- Partitions that others have made lack the triggers; a column that was renamed
-- is left out under its new name.
CREATE FUNCTION techally.maintain_audit()
RETURNS integer
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    audited  record;
    repaired integer := 0;
BEGIN
    FOR audited IN
        SELECT a.target, m.parent, m.partition
          FROM techally.audited_tables a, techally.audit_unguarded(a.target) m
         WHERE a.form = 'statement'
    LOOP
        PERFORM techally.audit_partition_created(audited.parent, audited.partition);
        repaired := repaired + 1;
    END LOOP;
    FOR audited IN
        SELECT l AS parent, i.inhrelid::regclass AS partition
          FROM techally.audit_logs() l JOIN pg_inherits i ON i.inhparent = l
         WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgname = 'techally_guard_truncate')
    LOOP
        PERFORM techally.audit_partition_created(audited.parent, audited.partition);
        repaired := repaired + 1;
    END LOOP;
    FOR audited IN SELECT r.target, r.excluded, r.redacted FROM techally.audit_renamed() r WHERE r.form <> 'row' LOOP
        PERFORM techally.enable_audit(audited.target, audited.excluded, audited.redacted);
        repaired := repaired + 1;
    END LOOP;
    RETURN repaired;
END
$function$;
REVOKE ALL ON FUNCTION techally.maintain_audit() FROM PUBLIC;
COMMENT ON FUNCTION techally.maintain_audit() IS
'Puts triggers on partitions that others have made, and follows renamed columns; for maintenance';

-- The task audit of maintenance: what lacks triggers, then each log's seals.
CREATE FUNCTION techally.audit_items()
RETURNS TABLE (item text, owner oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT 'triggers', e.extowner FROM pg_extension e WHERE e.extname = 'techally'
    UNION ALL
    SELECT l::text, c.relowner FROM techally.audit_logs() l JOIN pg_class c ON c.oid = l
$function$;
REVOKE ALL ON FUNCTION techally.audit_items() FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_items() IS 'Items of the task audit: the triggers, and each log';

CREATE FUNCTION techally.audit_step(item text, cursor text, OUT done bigint, OUT next text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF item = 'triggers' THEN
        done := techally.maintain_audit();
    ELSE
        done := techally.seal_audit_log(item::regclass);
    END IF;
END
$function$;
REVOKE ALL ON FUNCTION techally.audit_step(text, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_step(text, text) IS
'Step of the task audit: puts triggers where they are missing, or seals a log';

CREATE FUNCTION techally.audit_unguarded(target regclass, OUT parent regclass, OUT partition regclass)
RETURNS SETOF record
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT p.parentrelid, p.relid
      FROM pg_partition_tree(target) p
     WHERE p.relid <> target
       AND (SELECT count(DISTINCT t.tgtype & 60) FROM pg_trigger t
             WHERE t.tgrelid = p.relid AND t.tgfoid = 'techally.audit_changes()'::regprocedure
               AND t.tgtype & 1 = 0) < 4
     ORDER BY p.level, p.relid::text
$function$;
COMMENT ON FUNCTION techally.audit_unguarded(regclass) IS
'Partitions of an audited table that lack its statement triggers';

CREATE FUNCTION techally.audit_renamed()
RETURNS TABLE (target regclass, form text, excluded name[], redacted name[])
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT a.target, a.form,
           ARRAY(SELECT COALESCE(t.attname, u.attname)
                   FROM unnest(a.excluded, a.excluded_columns) e(name, number)
                   LEFT JOIN pg_attribute t ON t.attrelid = a.target AND t.attname = e.name AND NOT t.attisdropped
                   LEFT JOIN pg_attribute u ON u.attrelid = a.target AND u.attnum = e.number AND NOT u.attisdropped
                  WHERE COALESCE(t.attname, u.attname) IS NOT NULL),
           ARRAY(SELECT COALESCE(t.attname, u.attname)
                   FROM unnest(a.redacted, a.redacted_columns) e(name, number)
                   LEFT JOIN pg_attribute t ON t.attrelid = a.target AND t.attname = e.name AND NOT t.attisdropped
                   LEFT JOIN pg_attribute u ON u.attrelid = a.target AND u.attnum = e.number AND NOT u.attisdropped
                  WHERE COALESCE(t.attname, u.attname) IS NOT NULL)
      FROM techally.audited_tables a
     WHERE EXISTS (SELECT FROM unnest(a.excluded || a.redacted) n(name)
                    WHERE NOT EXISTS (SELECT FROM pg_attribute t
                                       WHERE t.attrelid = a.target AND t.attname = n.name AND NOT t.attisdropped))
$function$;
COMMENT ON FUNCTION techally.audit_renamed() IS
'Audited tables of which a column was renamed or dropped that is excluded or redacted, and what these are now';

CREATE FUNCTION techally.audit_health()
RETURNS TABLE (check_name text, status text, message text)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    audited record;
    number  bigint;
BEGIN
    FOR audited IN SELECT a.* FROM techally.audited_tables a ORDER BY a.target::text LOOP
        check_name := 'audit';
        IF (SELECT count(DISTINCT t.tgtype & 60) FROM pg_trigger t
             WHERE t.tgrelid = audited.target AND t.tgfoid = 'techally.audit_changes()'::regprocedure
               AND t.tgenabled = ANY (CASE audited.form WHEN 'replica' THEN '{R,A}'::"char"[] ELSE '{O,A}'::"char"[] END)
             ) < (CASE audited.form WHEN 'replica' THEN 2 WHEN 'row' THEN 1 ELSE 4 END)
           OR (audited.form = 'row' AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = audited.target AND t.tgenabled = 'D'
                                                   AND t.tgfoid = 'techally.audit_changes()'::regprocedure)) THEN
            status := 'CRITICAL';
            message := format(CASE audited.form
                WHEN 'row' THEN 'triggers of audit_changes on table %s are missing or disabled; techally.disable_audit if that is meant'
                ELSE 'audit triggers of table %s are missing or disabled; run techally.enable_audit again' END, audited.target);
            RETURN NEXT;
        END IF;
        SELECT count(*) INTO number FROM techally.audit_unguarded(audited.target) WHERE audited.form = 'statement';
        IF number > 0 THEN
            status := 'WARNING';
            message := format('%s partitions of table %s have no audit triggers yet; the next maintenance creates them', number, audited.target);
            RETURN NEXT;
        END IF;
    END LOOP;
    FOR audited IN SELECT r.* FROM techally.audit_renamed() r LOOP
        status := 'CRITICAL';
        message := format(CASE audited.form
            WHEN 'row' THEN 'a column of table %s that its audit trigger leaves out was renamed or dropped; create the trigger anew'
            ELSE 'a column of table %s that the audit leaves out was renamed or dropped; the next maintenance follows it' END, audited.target);
        RETURN NEXT;
    END LOOP;
    FOR audited IN
        SELECT c.oid::regclass AS relid FROM techally.audit_logs() l, pg_partition_tree(l) p JOIN pg_class c ON c.oid = p.relid
         WHERE (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgfoid = 'techally.guard_audit_log()'::regprocedure
                   AND t.tgenabled <> 'D') < 3
         ORDER BY 1
    LOOP
        status := 'WARNING';
        message := format('audit log %s is not guarded against being changed', audited.relid);
        RETURN NEXT;
    END LOOP;
    IF status IS NULL THEN
        check_name := 'audit'; status := 'OK';
        message := format('%s tables are audited', (SELECT count(*) FROM techally.audited_tables));
        RETURN NEXT;
    END IF;
END
$function$;
REVOKE ALL ON FUNCTION techally.audit_health() FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_health() IS 'For health_check: audited tables without their triggers, logs without their guard';

CREATE FUNCTION techally.forget_audited()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    DELETE FROM techally.audited_tables a
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND a.target::oid = d.objid;
    DELETE FROM techally.audited_names a
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND a.target::oid = d.objid;
    DELETE FROM techally.audit_marks m
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND m.log::oid = d.objid;
END
$function$;
REVOKE ALL ON FUNCTION techally.forget_audited() FROM PUBLIC;
COMMENT ON FUNCTION techally.forget_audited() IS 'Takes dropped tables out of the registry of the audit';

CREATE EVENT TRIGGER techally_forget_audited ON sql_drop
    EXECUTE FUNCTION techally.forget_audited();
ALTER EVENT TRIGGER techally_forget_audited ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER techally_forget_audited IS 'Takes dropped tables out of the registry of the audit';

-- The end of a name's time: what it was called before, from when that was its name.
CREATE FUNCTION techally.audit_name_ended(target regclass, table_name name)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
    INSERT INTO techally.audited_names AS n (target, table_name, from_time, to_time)
    SELECT audit_name_ended.target, audit_name_ended.table_name,
           COALESCE((SELECT max(o.to_time) FROM techally.audited_names o LEFT JOIN pg_class c ON c.oid = o.target
                      WHERE o.target = t.oid OR (o.table_name = audit_name_ended.table_name AND c.relnamespace = t.relnamespace)), '-infinity'),
           clock_timestamp()
      FROM pg_class t WHERE t.oid = audit_name_ended.target
        ON CONFLICT ON CONSTRAINT audited_names_pkey DO NOTHING
$function$;
REVOKE ALL ON FUNCTION techally.audit_name_ended(regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION techally.audit_name_ended(regclass, name) IS
'Notes by which name an audit log has had a table until now';

-- An audited table that is renamed keeps its history; a table with a trigger of
-- one's own is watched like the others.
CREATE FUNCTION techally.note_audited()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    audited record;
BEGIN
    IF tg_tag = 'CREATE TRIGGER' THEN
        FOR audited IN
            SELECT DISTINCT t.tgrelid::regclass AS target, c.relname
              FROM pg_event_trigger_ddl_commands() d
              JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
              JOIN pg_class c ON c.oid = t.tgrelid
             WHERE t.tgfoid = 'techally.audit_changes()'::regprocedure AND t.tgname NOT LIKE 'techally\_audit\_%'
               AND t.tgparentid = 0 AND c.relpersistence <> 't'
        LOOP
            INSERT INTO techally.audited_tables AS a
                   (target, form, excluded, redacted, excluded_columns, redacted_columns, table_name)
            SELECT audited.target, 'row', o.excluded, o.redacted,
                   ARRAY(SELECT a.attnum FROM unnest(o.excluded) e JOIN pg_attribute a ON a.attrelid = audited.target AND a.attname = e),
                   ARRAY(SELECT a.attnum FROM unnest(o.redacted) e JOIN pg_attribute a ON a.attrelid = audited.target AND a.attname = e),
                   audited.relname
              FROM (SELECT COALESCE(array_agg(m.column_name) FILTER (WHERE NOT m.redacted), '{}') AS excluded,
                           COALESCE(array_agg(m.column_name) FILTER (WHERE m.redacted), '{}') AS redacted
                      FROM techally.audit_omitted(audited.target) m) o
                ON CONFLICT (target) DO NOTHING;
        END LOOP;
        RETURN;
    END IF;
    FOR audited IN
        SELECT a.target, a.table_name, c.relname FROM techally.audited_tables a JOIN pg_class c ON c.oid = a.target
         WHERE c.relname <> a.table_name
    LOOP
        PERFORM techally.audit_name_ended(audited.target, audited.table_name);
        UPDATE techally.audited_tables a SET table_name = audited.relname WHERE a.target = audited.target;
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION techally.note_audited() FROM PUBLIC;
COMMENT ON FUNCTION techally.note_audited() IS
'Notes the new name of an audited table, and tables with audit triggers of one''s own';

CREATE EVENT TRIGGER techally_note_audited ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'CREATE TRIGGER')
    EXECUTE FUNCTION techally.note_audited();
ALTER EVENT TRIGGER techally_note_audited ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER techally_note_audited IS 'Notes the new name of an audited table, and tables with audit triggers of one''s own';
