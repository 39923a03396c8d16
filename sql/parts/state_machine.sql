-- State machines: machines as data, the tables under them, the trigger that
-- enforces them.

CREATE TABLE techally.machines (
    name       text COLLATE "C" CONSTRAINT machines_pkey PRIMARY KEY,
    definition jsonb   NOT NULL,
    builtin    boolean NOT NULL DEFAULT false
);
GRANT SELECT ON TABLE techally.machines TO PUBLIC;
COMMENT ON TABLE techally.machines IS 'State machines; every row that is written is checked as a graph';
COMMENT ON COLUMN techally.machines.name IS 'Its name';
COMMENT ON COLUMN techally.machines.definition IS 'Its initial state and its transitions, see define_machine';
COMMENT ON COLUMN techally.machines.builtin IS 'It came with the extension and nobody has changed it, so it is not dumped';

CREATE TABLE techally.machine_attachments (
    target      regclass NOT NULL,
    column_name name     NOT NULL,
    machine     text COLLATE "C" NOT NULL, -- no foreign key, a parallel restore would break it
    history     regclass,
    CONSTRAINT machine_attachments_pkey PRIMARY KEY (target, column_name)
);
CREATE INDEX idx_machine_attachments_machine ON techally.machine_attachments (machine);
GRANT SELECT ON TABLE techally.machine_attachments TO PUBLIC;
COMMENT ON TABLE techally.machine_attachments IS 'Columns under a state machine; written by attach_machine and detach_machine';
COMMENT ON COLUMN techally.machine_attachments.target IS 'The table; a partitioned one stands for its partitions';
COMMENT ON COLUMN techally.machine_attachments.column_name IS 'The column that holds the state';
COMMENT ON COLUMN techally.machine_attachments.machine IS 'The machine';
COMMENT ON COLUMN techally.machine_attachments.history IS 'Where each change of state is written down; NULL: nowhere';

CREATE FUNCTION techally.validate_machine()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_validate_machine';
REVOKE ALL ON FUNCTION techally.validate_machine() FROM PUBLIC;
COMMENT ON FUNCTION techally.validate_machine() IS
'Trigger of techally.machines: refuses what is no state machine, and to delete one that is in use';

CREATE FUNCTION techally.machine_registry_changed()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_machine_registry_changed';
REVOKE ALL ON FUNCTION techally.machine_registry_changed() FROM PUBLIC;
COMMENT ON FUNCTION techally.machine_registry_changed() IS
'Trigger of the tables of machines: has every session look at them again';

-- Acts on the row that fired it and fails where attach_machine has not been:
-- PUBLIC may create triggers with it, as a restore by a store's owner does.
CREATE FUNCTION techally.enforce_machine()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_enforce_machine';
COMMENT ON FUNCTION techally.enforce_machine() IS
'Trigger, AFTER INSERT, UPDATE or DELETE of a row: holds the column that its argument names to its state machine and writes the history';

CREATE TRIGGER techally_validate BEFORE INSERT OR UPDATE OR DELETE ON techally.machines
    FOR EACH ROW EXECUTE FUNCTION techally.validate_machine();
CREATE TRIGGER techally_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON techally.machines
    FOR EACH STATEMENT EXECUTE FUNCTION techally.machine_registry_changed();
CREATE TRIGGER techally_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON techally.machine_attachments
    FOR EACH STATEMENT EXECUTE FUNCTION techally.machine_registry_changed();

CREATE FUNCTION techally.define_machine(name text, definition jsonb)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_define_machine';
REVOKE ALL ON FUNCTION techally.define_machine(text, jsonb) FROM PUBLIC;
COMMENT ON FUNCTION techally.define_machine(text, jsonb) IS
'Defines a state machine, or defines it anew: {"initial": …, "transitions": [{"event", "from", "to", "effect"}, …]}';

CREATE FUNCTION techally.attach_machine(target regclass, column_name name, machine text, history regclass DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_attach_machine';
REVOKE ALL ON FUNCTION techally.attach_machine(regclass, name, text, regclass) FROM PUBLIC;
COMMENT ON FUNCTION techally.attach_machine(regclass, name, text, regclass) IS
'Puts a column of a table under a state machine, with a history of its changes if one is named';

CREATE FUNCTION techally.detach_machine(target regclass, column_name name DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_detach_machine';
REVOKE ALL ON FUNCTION techally.detach_machine(regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION techally.detach_machine(regclass, name) IS
'Takes a column, or all columns of a table, from their state machine; keeps the history';

CREATE FUNCTION techally.machine_diagram(name text, format text DEFAULT 'mermaid')
RETURNS text
LANGUAGE C STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ta_machine_diagram';
COMMENT ON FUNCTION techally.machine_diagram(text, text) IS
'A state machine as a diagram for Mermaid (''mermaid'') or Graphviz (''dot'')';

CREATE FUNCTION techally.allowed_events(target regclass, key uuid, column_name name DEFAULT NULL)
RETURNS TABLE (event text, to_state text)
LANGUAGE C STABLE PARALLEL UNSAFE ROWS 5
AS 'MODULE_PATHNAME', 'ta_allowed_events';
COMMENT ON FUNCTION techally.allowed_events(regclass, uuid, name) IS
'What may happen next to a row, by its state machine; reads the row with the caller''s rights';

INSERT INTO techally.machines (name, definition, builtin) VALUES
('techally', '{"initial": "pending", "transitions": [
    {"event": "process_payment",   "from": "pending",    "to": "processing", "effect": "reserve"},
    {"event": "payment_success",   "from": "processing", "to": "confirmed"},
    {"event": "start_fulfillment", "from": "confirmed",  "to": "preparing"},
    {"event": "dispatch",          "from": "preparing",  "to": "shipped",    "effect": "sale"},
    {"event": "deliver",           "from": "shipped",    "to": "delivered"},
    {"event": "complete",          "from": "delivered",  "to": "completed"},
    {"event": "payment_failed",    "from": "processing", "to": "failed",     "effect": "release"},
    {"event": "cancel",            "from": "pending",    "to": "cancelled",  "effect": "release"},
    {"event": "cancel",            "from": "confirmed",  "to": "cancelled",  "effect": "release"},
    {"event": "return",            "from": "delivered",  "to": "returned",   "effect": "restock"}]}', true),
('simple', '{"initial": "pending", "transitions": [
    {"event": "process", "from": "pending",    "to": "processing", "effect": "reserve"},
    {"event": "ship",    "from": "processing", "to": "shipped",    "effect": "sale"},
    {"event": "deliver", "from": "shipped",    "to": "delivered"},
    {"event": "refund",  "from": "delivered",  "to": "refunded",   "effect": "restock"},
    {"event": "cancel",  "from": "pending",    "to": "cancelled",  "effect": "release"},
    {"event": "cancel",  "from": "processing", "to": "cancelled",  "effect": "release"}]}', true),
('cloudlab', '{"initial": "draft", "transitions": [
    {"event": "submit",  "from": "draft",           "to": "pending_payment", "effect": "reserve"},
    {"event": "pay",     "from": "pending_payment", "to": "paid"},
    {"event": "process", "from": "paid",            "to": "processing"},
    {"event": "ship",    "from": "processing",      "to": "shipped",         "effect": "sale"},
    {"event": "deliver", "from": "shipped",         "to": "delivered"},
    {"event": "refund",  "from": "delivered",       "to": "refunded",        "effect": "restock"},
    {"event": "cancel",  "from": "draft",           "to": "cancelled",       "effect": "release"},
    {"event": "cancel",  "from": "pending_payment", "to": "cancelled",       "effect": "release"},
    {"event": "refund",  "from": "paid",            "to": "refunded",        "effect": "release"},
    {"event": "refund",  "from": "processing",      "to": "refunded",        "effect": "release"}]}', true);

SELECT pg_catalog.pg_extension_config_dump('techally.machines', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('techally.machine_attachments', '');

