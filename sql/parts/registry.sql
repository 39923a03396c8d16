-- The registry of stores.  It names each by the table that every store has, so
-- that a renamed schema takes its row along.

CREATE TABLE techally.store_registry (
    anchor     regclass    CONSTRAINT store_registry_pkey PRIMARY KEY,
    machine    text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
REVOKE ALL ON TABLE techally.store_registry FROM PUBLIC;
COMMENT ON TABLE techally.store_registry IS 'The stores of this database; written by create_store, adopt_store and drop_store';
COMMENT ON COLUMN techally.store_registry.anchor IS 'The store''s schema_migrations';
COMMENT ON COLUMN techally.store_registry.machine IS 'The state machine of its orders';
COMMENT ON COLUMN techally.store_registry.created_at IS 'When the store was made';

SELECT pg_catalog.pg_extension_config_dump('techally.store_registry', '');
