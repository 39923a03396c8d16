-- What becomes of partitions whose time is up.

-- Names as text, for an archive outlives its table; the columns that name a
-- table by itself are emptied when that goes.
CREATE TABLE techally.archives (
    archive     text COLLATE "C" CONSTRAINT archives_pkey PRIMARY KEY,
    parent      regclass,
    parent_name text        NOT NULL,
    partition   text        NOT NULL,
    from_time   timestamptz NOT NULL,
    to_time     timestamptz NOT NULL,
    kind        text        NOT NULL,
    location    text        NOT NULL,
    status      text        NOT NULL,
    relation    regclass,
    rows        bigint,
    bytes       bigint,
    checksum    text,
    columns     text[],
    archived_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    restored_at timestamptz,
    restored_as regclass,
    CONSTRAINT chk_archives_kind CHECK (kind IN ('schema', 'tablespace', 'file')),
    CONSTRAINT chk_archives_status CHECK (status IN ('detached', 'archived', 'restored'))
);
CREATE INDEX idx_archives_parent ON techally.archives (parent);
CREATE INDEX idx_archives_restored_as ON techally.archives (restored_as) WHERE restored_as IS NOT NULL;
GRANT SELECT ON TABLE techally.archives TO PUBLIC;
COMMENT ON TABLE techally.archives IS 'Partitions that were archived; written by retire_partition and restore_archived';
COMMENT ON COLUMN techally.archives.archive IS 'Its name: the partition''s, with a number after the first of that name';
COMMENT ON COLUMN techally.archives.parent IS 'The table it was a part of; NULL: that has gone';
COMMENT ON COLUMN techally.archives.parent_name IS 'How that was called then';
COMMENT ON COLUMN techally.archives.partition IS 'How the partition was called, without its schema';
COMMENT ON COLUMN techally.archives.from_time IS 'Its lower bound';
COMMENT ON COLUMN techally.archives.to_time IS 'Its upper bound';
COMMENT ON COLUMN techally.archives.kind IS 'Where it is: in a schema, a tablespace or a file';
COMMENT ON COLUMN techally.archives.location IS 'Which';
COMMENT ON COLUMN techally.archives.status IS 'detached (not where it belongs yet), archived or restored';
COMMENT ON COLUMN techally.archives.relation IS 'The table, where it is one';
COMMENT ON COLUMN techally.archives.rows IS 'Its rows, where they were counted';
COMMENT ON COLUMN techally.archives.bytes IS 'The size of its file before compression';
COMMENT ON COLUMN techally.archives.checksum IS 'SHA-256 of its file before compression, in hexadecimal';
COMMENT ON COLUMN techally.archives.columns IS 'The columns of its file, in their order';
COMMENT ON COLUMN techally.archives.archived_at IS 'Since when it is where it is';
COMMENT ON COLUMN techally.archives.restored_at IS 'When it became a partition again';
COMMENT ON COLUMN techally.archives.restored_as IS 'Which partition that is; retention leaves it alone';

SELECT pg_catalog.pg_extension_config_dump('techally.archives', '');

CREATE FUNCTION techally.archive_partitions_to(parent regclass, kind text, destination name DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_archive_partitions_to';
REVOKE ALL ON FUNCTION techally.archive_partitions_to(regclass, text, name) FROM PUBLIC;
COMMENT ON FUNCTION techally.archive_partitions_to(regclass, text, name) IS
'Says where a managed table''s archives go: ''schema'' or ''tablespace'' with its name, or ''file''';

CREATE FUNCTION techally.retire_partition(parent regclass, at timestamptz DEFAULT now())
RETURNS text
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_retire_partition';
REVOKE ALL ON FUNCTION techally.retire_partition(regclass, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.retire_partition(regclass, timestamptz) IS
'Drops, detaches or archives one partition of a managed table whose time is up at a moment; returns what was done, call until NULL';

CREATE FUNCTION techally.restore_archived(archive text)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_restore_archived';
REVOKE ALL ON FUNCTION techally.restore_archived(text) FROM PUBLIC;
COMMENT ON FUNCTION techally.restore_archived(text) IS
'Makes an archived partition a partition of its table again, and keeps it there; returns its rows';

CREATE FUNCTION techally.forget_restored(archive text)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_forget_restored';
REVOKE ALL ON FUNCTION techally.forget_restored(text) FROM PUBLIC;
COMMENT ON FUNCTION techally.forget_restored(text) IS
'Lets retention have a restored partition again';

CREATE FUNCTION techally.partition_ranges(parent regclass, OUT partition regclass, OUT from_time timestamptz, OUT to_time timestamptz)
RETURNS SETOF record
LANGUAGE C STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_partition_ranges';
COMMENT ON FUNCTION techally.partition_ranges(regclass) IS
'The partitions of a table by their real bounds, without DEFAULT';

-- One bounded thing a call, so that whoever loops can commit after each.  What
-- fails is written down and left for a while; the rest goes on.
CREATE FUNCTION techally.maintain_partitions(parent regclass, at timestamptz DEFAULT now())
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    this_task text;
    did       text;
    failure   text;
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock(1952542836, (parent::pg_catalog.oid::pg_catalog.int8::pg_catalog.bit(32))::pg_catalog.int4) THEN
        RETURN NULL;        -- somebody else is at it
    END IF;
    FOREACH this_task IN ARRAY ARRAY['premake', 'drain', 'retire'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM techally.partition_runs r
                               WHERE r.parent OPERATOR(pg_catalog.=) maintain_partitions.parent
                                 AND r.task OPERATOR(pg_catalog.=) this_task
                                 AND r.retry_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp());
        failure := NULL;
        BEGIN
            did := CASE this_task
                   WHEN 'premake' THEN
                       (SELECT n OPERATOR(pg_catalog.||) ' partitions made' FROM techally.premake_partitions(parent, at) n WHERE n OPERATOR(pg_catalog.>) 0)
                   WHEN 'drain' THEN
                       (SELECT n OPERATOR(pg_catalog.||) ' rows drained' FROM techally.drain_default(parent) n WHERE n OPERATOR(pg_catalog.>) 0)
                   ELSE techally.retire_partition(parent, at) END;
        EXCEPTION WHEN OTHERS THEN
            failure := SQLERRM;
            did := NULL;
        END;
        PERFORM techally.note_partition_run(parent, this_task, failure);
        EXIT WHEN did IS NOT NULL;
    END LOOP;
    RETURN did;
END
$function$;
REVOKE ALL ON FUNCTION techally.maintain_partitions(regclass, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.maintain_partitions(regclass, timestamptz) IS
'Does one thing for a managed table (makes partitions, drains a range, retires a partition) and says what; call until NULL';

CREATE FUNCTION techally.note_partition_run(parent regclass, task text, failure text)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_note_partition_run';
REVOKE ALL ON FUNCTION techally.note_partition_run(regclass, text, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.note_partition_run(regclass, text, text) IS
'Writes down how a task of a managed table ended; a failure is not tried again for a while';
