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
