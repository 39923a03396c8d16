-- Partitions that make themselves.

CREATE TABLE techally.managed_partitions (
    parent           regclass CONSTRAINT managed_partitions_pkey PRIMARY KEY,
    step             interval NOT NULL,
    premake          integer  NOT NULL,
    retention        interval,
    retention_action text     NOT NULL,
    archive_kind     text     NOT NULL DEFAULT 'schema',
    archive_name     name     NOT NULL DEFAULT 'archive',
    CONSTRAINT chk_managed_partitions_action CHECK (retention_action IN ('drop', 'detach', 'archive')),
    CONSTRAINT chk_managed_partitions_archive CHECK (archive_kind IN ('schema', 'tablespace', 'file'))
);
GRANT SELECT ON TABLE techally.managed_partitions TO PUBLIC;
COMMENT ON TABLE techally.managed_partitions IS 'Tables whose partitions are managed; written by manage_partitions and unmanage_partitions';
COMMENT ON COLUMN techally.managed_partitions.parent IS 'The partitioned table';
COMMENT ON COLUMN techally.managed_partitions.step IS 'How wide a partition is';
COMMENT ON COLUMN techally.managed_partitions.premake IS 'How many partitions there should be ahead of the present one';
COMMENT ON COLUMN techally.managed_partitions.retention IS 'How long a partition stays after its end; NULL: for ever';
COMMENT ON COLUMN techally.managed_partitions.retention_action IS 'What becomes of it then: drop, detach or archive';
COMMENT ON COLUMN techally.managed_partitions.archive_kind IS 'Where an archive goes: into a schema, a tablespace or a file';
COMMENT ON COLUMN techally.managed_partitions.archive_name IS 'Which schema or tablespace; means nothing for files';

SELECT pg_catalog.pg_extension_config_dump('techally.managed_partitions', '');

-- What maintenance last did; worth nothing in a dump.
CREATE TABLE techally.partition_runs (
    parent     regclass    NOT NULL,
    task       text        NOT NULL,
    last_run   timestamptz NOT NULL,
    last_error text,
    failures   integer     NOT NULL DEFAULT 0,
    retry_at   timestamptz,
    rate       float8,
    CONSTRAINT partition_runs_pkey PRIMARY KEY (parent, task)
);
GRANT SELECT ON TABLE techally.partition_runs TO PUBLIC;
COMMENT ON TABLE techally.partition_runs IS 'What maintenance of partitions last did; written by maintain_partitions and drain_default';
COMMENT ON COLUMN techally.partition_runs.parent IS 'The partitioned table';
COMMENT ON COLUMN techally.partition_runs.task IS 'premake, drain or retire';
COMMENT ON COLUMN techally.partition_runs.last_run IS 'When it was last tried';
COMMENT ON COLUMN techally.partition_runs.last_error IS 'Why it failed then; NULL: it did not';
COMMENT ON COLUMN techally.partition_runs.failures IS 'How often it has failed since it last did not';
COMMENT ON COLUMN techally.partition_runs.retry_at IS 'After a failure, when it is tried again';
COMMENT ON COLUMN techally.partition_runs.rate IS 'Rows a second that the last drain moved';

CREATE FUNCTION techally.manage_partitions(parent regclass, step interval, premake integer DEFAULT 3,
                                           retention interval DEFAULT NULL, retention_action text DEFAULT 'detach')
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_manage_partitions';
REVOKE ALL ON FUNCTION techally.manage_partitions(regclass, interval, integer, interval, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.manage_partitions(regclass, interval, integer, interval, text) IS
'Has the partitions of a table made ahead, its DEFAULT partition drained and old partitions retired';

CREATE FUNCTION techally.unmanage_partitions(parent regclass)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_unmanage_partitions';
REVOKE ALL ON FUNCTION techally.unmanage_partitions(regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.unmanage_partitions(regclass) IS
'Leaves the partitions of a table alone from now on; they stay as they are';

CREATE FUNCTION techally.create_partitions(parent regclass, from_time timestamptz, to_time timestamptz)
RETURNS integer
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_create_partitions';
REVOKE ALL ON FUNCTION techally.create_partitions(regclass, timestamptz, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.create_partitions(regclass, timestamptz, timestamptz) IS
'Makes the partitions that a managed table lacks in a range of time; returns how many';

CREATE FUNCTION techally.premake_partitions(parent regclass, at timestamptz DEFAULT now())
RETURNS integer
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_premake_partitions';
REVOKE ALL ON FUNCTION techally.premake_partitions(regclass, timestamptz) FROM PUBLIC;
COMMENT ON FUNCTION techally.premake_partitions(regclass, timestamptz) IS
'Makes the partitions that a managed table should have ahead of a moment; returns how many';

CREATE FUNCTION techally.drain_default(parent regclass)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_drain_default';
REVOKE ALL ON FUNCTION techally.drain_default(regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.drain_default(regclass) IS
'Moves the rows of one missing range out of a managed table''s DEFAULT partition into their own; returns how many, call until 0';

-- For the view only, which must be able to call it as whoever reads it.
CREATE FUNCTION techally.partition_facts(parent regclass, at timestamptz,
                                         OUT partitions integer, OUT newest_bound timestamptz,
                                         OUT rows_in_default bigint, OUT premade_ahead integer)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_partition_facts';
COMMENT ON FUNCTION techally.partition_facts(regclass, timestamptz) IS
'What is known of a managed table''s partitions; of no other table';

CREATE VIEW techally.partition_status WITH (security_barrier) AS
SELECT m.parent, f.partitions, f.newest_bound, f.rows_in_default, f.premade_ahead,
       r.last_run, r.last_error
  FROM techally.managed_partitions m
 CROSS JOIN LATERAL techally.partition_facts(m.parent, CURRENT_TIMESTAMP) f
  LEFT JOIN LATERAL (SELECT max(p.last_run) AS last_run,
                            string_agg(p.task || ': ' || p.last_error, '; ' ORDER BY p.task) AS last_error
                       FROM techally.partition_runs p WHERE p.parent = m.parent) r ON true;
GRANT SELECT ON techally.partition_status TO PUBLIC;
COMMENT ON VIEW techally.partition_status IS 'The managed tables, and how their partitions stand';
COMMENT ON COLUMN techally.partition_status.parent IS 'The partitioned table';
COMMENT ON COLUMN techally.partition_status.partitions IS 'How many partitions it has, with DEFAULT';
COMMENT ON COLUMN techally.partition_status.newest_bound IS 'Where the last of them ends; infinity: nowhere';
COMMENT ON COLUMN techally.partition_status.rows_in_default IS 'Rows in the DEFAULT partition; not counted beyond a million';
COMMENT ON COLUMN techally.partition_status.premade_ahead IS 'Steps after the present one that have their partitions';
COMMENT ON COLUMN techally.partition_status.last_run IS 'When maintenance last looked at it';
COMMENT ON COLUMN techally.partition_status.last_error IS 'What failed then; NULL: nothing';
