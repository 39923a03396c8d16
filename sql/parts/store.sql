-- Making, migrating, adopting and dropping stores.

CREATE FUNCTION techally.create_store(store name, machine text DEFAULT 'techally')
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_create_store';
REVOKE ALL ON FUNCTION techally.create_store(name, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.create_store(name, text) IS
'Makes a store: a schema with the shop''s tables, functions and guards';

CREATE FUNCTION techally.upgrade_store(store name, target text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_upgrade_store';
REVOKE ALL ON FUNCTION techally.upgrade_store(name, text) FROM PUBLIC;
COMMENT ON FUNCTION techally.upgrade_store(name, text) IS
'Brings a store to a version, up or down; without one to the newest';

CREATE FUNCTION techally.drop_store(store name)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_drop_store';
REVOKE ALL ON FUNCTION techally.drop_store(name) FROM PUBLIC;
COMMENT ON FUNCTION techally.drop_store(name) IS
'Drops a store; refuses while it has orders, unless techally.allow_drop is on';

CREATE FUNCTION techally.adopt_store(store name)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_adopt_store';
REVOKE ALL ON FUNCTION techally.adopt_store(name) FROM PUBLIC;
COMMENT ON FUNCTION techally.adopt_store(name) IS
'Registers a restored, renamed or orphaned store again and puts its functions and guards back';

-- For the view only, which must be able to call it as whoever reads it.
CREATE FUNCTION techally.store_version(anchor regclass)
RETURNS text
LANGUAGE C STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_store_version';
COMMENT ON FUNCTION techally.store_version(regclass) IS
'The newest migration of a registered store; NULL for any other table';

-- A barrier, so that FROM techally.stores s, techally.check_store(s.store) asks
-- for the stores only, and not for every schema that there is.
CREATE VIEW techally.stores WITH (security_barrier) AS
SELECT n.nspname AS store,
       r.machine,
       techally.store_version(r.anchor) AS version,
       r.created_at
  FROM techally.store_registry r
  JOIN pg_catalog.pg_class c ON c.oid = r.anchor
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
GRANT SELECT ON techally.stores TO PUBLIC;
COMMENT ON VIEW techally.stores IS 'The stores of this database';
COMMENT ON COLUMN techally.stores.store IS 'Its schema';
COMMENT ON COLUMN techally.stores.machine IS 'The state machine of its orders';
COMMENT ON COLUMN techally.stores.version IS 'The newest migration that is applied';
COMMENT ON COLUMN techally.stores.created_at IS 'When it was made';

-- The registry names tables by OID inside; a row that outlived its table would
-- point at nothing, or in time at another table.  In plpgsql, so that a DROP
-- works also where our library is missing.
CREATE FUNCTION techally.forget_dropped()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    attachment techally.machine_attachments;
BEGIN
    DELETE FROM techally.store_registry r
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND r.anchor = d.objid;

    DELETE FROM techally.machine_attachments a
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND a.target = d.objid
       AND (d.objsubid = 0 OR d.address_names[3] = a.column_name);

    DELETE FROM techally.soft_delete_tables s
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND s.target = d.objid
       AND (d.objsubid = 0 OR d.address_names[3] = 'deleted_at');

    DELETE FROM techally.managed_partitions m
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND m.parent = d.objid;

    DELETE FROM techally.partition_runs p
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND p.parent = d.objid;

    UPDATE techally.archives a
       SET parent = NULL
      FROM pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND a.parent = d.objid;

    UPDATE techally.archives a
       SET relation = NULL
      FROM pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND a.relation = d.objid;

    UPDATE techally.archives a
       SET restored_as = NULL
      FROM pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND a.restored_as = d.objid;

    DELETE FROM techally.retention_rules r
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND r.target = d.objid;

    DELETE FROM techally.maintained_views v
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND v.target = d.objid;

    -- a history that nobody writes any more must not come about in silence; it
    -- may go where the machine's triggers have gone before (pg_restore --clean)
    SELECT a.* INTO attachment
      FROM techally.machine_attachments a
      JOIN pg_catalog.pg_event_trigger_dropped_objects() d ON d.objid = a.history
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND EXISTS (SELECT FROM pg_catalog.pg_trigger t
                    WHERE t.tgrelid = a.target
                      AND t.tgfoid = 'techally.enforce_machine()'::pg_catalog.regprocedure)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = pg_catalog.format('the history of table %s cannot be dropped', attachment.target),
            DETAIL = pg_catalog.format('The state machine of its column "%s" writes there.', attachment.column_name),
            HINT = 'Run techally.attach_machine with another history or none, or techally.detach_machine, first.';
    END IF;

    UPDATE techally.machine_attachments a
       SET history = NULL
      FROM pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.objsubid = 0
       AND a.history = d.objid;
END
$function$;
REVOKE ALL ON FUNCTION techally.forget_dropped() FROM PUBLIC;
COMMENT ON FUNCTION techally.forget_dropped() IS
'Takes dropped tables out of the registries; refuses to drop a history that is in use';

CREATE EVENT TRIGGER techally_forget_dropped ON sql_drop
    EXECUTE FUNCTION techally.forget_dropped();
ALTER EVENT TRIGGER techally_forget_dropped ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER techally_forget_dropped IS 'Takes dropped tables out of techally''s registries';
