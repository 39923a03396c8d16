-- The audit's functions, and the objects that a log consists of.
BEGIN;
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SET search_path = public, pg_catalog;
CREATE SCHEMA pgtap_audit;
CREATE TABLE pgtap_audit.t (id uuid PRIMARY KEY, v integer);
DO $$ BEGIN PERFORM techally.enable_audit('pgtap_audit.t'); END $$;

SELECT plan(32);

SELECT has_function('techally', f.name, f.arguments, f.name)
  FROM (VALUES ('enable_audit', '{regclass,name[],name[]}'::text[]),
               ('enable_replica_audit', '{regclass,name[],name[]}'),
               ('disable_audit', '{regclass}'),
               ('row_history', '{regclass,jsonb}'),
               ('row_as_of', '{regclass,jsonb,timestamp with time zone}'),
               ('undo_change', '{regclass,bigint}'),
               ('verify_audit', '{regclass,timestamp with time zone,timestamp with time zone}'),
               ('erase_audit', '{regclass,jsonb}'),
               ('seal_audit_logs', '{}'),
               ('health_check', '{}')) f(name, arguments);
SELECT function_returns('techally', 'audit_changes', '{}'::text[], 'trigger');

SELECT is_partitioned('pgtap_audit', 'audit_logs', 'the log is partitioned');
SELECT has_table('pgtap_audit', 'audit_seals', 'it has seals');
SELECT columns_are('pgtap_audit', 'audit_log', '{id,table_name,operation,user_id,changed_data,timestamp}'::name[], 'the view');
SELECT col_type_is('pgtap_audit', 'audit_logs', c.name, c.type, c.name)
  FROM (VALUES ('id', 'bigint'), ('changed_at', 'timestamp with time zone'), ('action', 'text'), ('table_schema', 'text'),
               ('table_name', 'text'), ('row_key', 'jsonb'), ('resource_id', 'uuid'), ('user_id', 'uuid'),
               ('client_ip', 'inet'), ('metadata', 'jsonb'), ('changes', 'jsonb')) c(name, type);
SELECT triggers_are('pgtap_audit', 'audit_logs', '{techally_guard_insert,techally_guard_rows,techally_guard_truncate}'::name[], 'the guard');
SELECT triggers_are('pgtap_audit', 't',
                    '{techally_audit_insert,techally_audit_update,techally_audit_delete,techally_audit_truncate}'::name[], 'the triggers');
SELECT indexes_are('pgtap_audit', 'audit_logs', '{idx_audit_logs_row,idx_audit_logs_new_key,idx_audit_logs_time}'::name[], 'the indexes');

SELECT is_empty($$SELECT a.attname FROM pg_attribute a
                   WHERE a.attrelid IN ('pgtap_audit.audit_logs'::regclass, 'pgtap_audit.audit_seals'::regclass)
                     AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL$$, 'every column is described');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
                   WHERE p.pronamespace = 'techally'::regnamespace AND p.proname ~ 'audit|row_history|row_as_of|undo_change|health'
                     AND obj_description(p.oid, 'pg_proc') IS NULL$$, 'every function is described');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
                   WHERE p.pronamespace = 'techally'::regnamespace AND p.prosecdef
                     AND p.proname ~ 'audit|health' AND has_function_privilege('public', p.oid, 'EXECUTE')$$,
                'no definer function is everybody''s');
SELECT is_empty($$SELECT a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
                   WHERE c.oid = 'pgtap_audit.audit_logs'::regclass AND a.grantee <> c.relowner$$, 'nobody has rights on the log');
SELECT * FROM finish();
ROLLBACK;
