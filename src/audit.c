/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  Auditing tables: the trigger, and installing it.
 *
 * audit_changes() serves as a row trigger, as the source of many a schema has
 * it, and as a statement trigger over transition tables, which enable_audit
 * installs.  In the second form a statement's rows are read from where the
 * server has put them anyhow, the log is opened once, and memory stays the same
 * however many rows there are.
 *
 * What the server makes of it: statement triggers of a partitioned table fire
 * for DML aimed at it, not for DML aimed at a partition, so each partition has
 * its own.  A row that moves between partitions is one UPDATE for the statement
 * triggers and DELETE and INSERT for those of rows.  The apply worker of a
 * subscription fires row triggers only.
 *
 * Invariants:
 * - An UPDATE's rows are paired by position, which the server's transition
 *	 tables keep; where a BEFORE INSERT trigger has dropped rows on their way to
 *	 another partition, by key.
 * - Where nothing that is logged has changed, nothing is written, nor is the log
 *	 opened.
 *
 * Lock order: audit_log.c has it.  enable_audit locks the table in SHARE ROW
 * EXCLUSIVE mode, as CREATE TRIGGER does, before its partitions, those in the
 * order of their OIDs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "audit.h"
#include "audit_image.h"
#include "audit_log.h"
#include "compat.h"
#include "partition.h"
#include "request_util.h"
#include "spi_util.h"
#include "trigger_util.h"

static int truncate_rows = 10000;

/* One statement, or one row, on its way into the log. */
typedef struct Entry
{
	Relation	   rel;
	TaAuditFormat *format;
	TaAuditWriter *writer;		   /* NULL: not opened yet */
	int			   settings_level; /* 0: not pinned */
	MemoryContext  row_context;
	StringInfoData key;
	StringInfoData new_key;
	StringInfoData changes;
} Entry;

/*
 * ta_audit_init
 *		Prepares the room.  Called once, by _PG_init.
 */
void
ta_audit_init(void)
{
	ta_audit_image_init();
	ta_audit_log_init();
	DefineCustomIntVariable("techally.audit_truncate_rows",
							"How many of the rows that TRUNCATE removes go into the audit log.",
							"That it happened, and how many rows there were, always does.",
							&truncate_rows,
							10000, 0, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);
}

static void
begin_entry(Entry *entry, Relation rel)
{
	memset(entry, 0, sizeof(Entry));
	entry->rel = rel;
	entry->format = ta_audit_format(rel);
	entry->row_context = AllocSetContextCreate(CurrentMemoryContext, "techally audit row",
											   ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&entry->key);
	initStringInfo(&entry->new_key);
	initStringInfo(&entry->changes);
	if (entry->format->pinned)
		entry->settings_level = ta_audit_pin_settings();
}

/* The log, opened for the first row that goes into it. */
static TaAuditWriter *
writer_of(Entry *entry)
{
	if (entry->writer == NULL)
		entry->writer = ta_audit_open(entry->format->nspid, entry->format->schema_name, entry->format->table_name);
	return entry->writer;
}

static void
end_entry(Entry *entry)
{
	if (entry->writer != NULL)
		ta_audit_close(entry->writer);
	if (entry->settings_level != 0)
		ta_audit_unpin_settings(entry->settings_level);
	ta_audit_format_release(entry->format);
	MemoryContextDelete(entry->row_context);
}

/* Writes an entry for a row: with its key, and changes as they are in the buffer. */
static void
write_row(Entry *entry, const char *action, TupleTableSlot *row, TupleTableSlot *new_row)
{
	TaAuditFormat *format = entry->format;
	TaAuditWriter *writer = writer_of(entry);
	bool		   has_key = ta_audit_key(format, row, &entry->key);
	bool		   moved = new_row != NULL && ta_audit_key_changed(format, row, new_row);

	if (moved)
		(void) ta_audit_key(format, new_row, &entry->new_key);
	ta_audit_write(writer, action, has_key ? &entry->key : NULL, moved ? &entry->new_key : NULL,
				   format->uuid_key ? DatumGetUUIDP(row->tts_values[format->key[0].attnum - 1]) : NULL,
				   &entry->changes, NULL);
}

static void
log_image(Entry *entry, const char *action, TupleTableSlot *row)
{
	MemoryContext caller = MemoryContextSwitchTo(entry->row_context);

	ta_audit_image(entry->format, row, &entry->changes);
	MemoryContextSwitchTo(caller);
	(void) writer_of(entry);
	MemoryContextSwitchTo(entry->row_context);
	write_row(entry, action, row, NULL);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(entry->row_context);
}

/* What an update of a table with soft deletion is called. */
static const char *
action_of_update(const TaAuditFormat *format, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	if (format->soft && format->deleted_at > 0)
	{
		bool was_deleted = !old_row->tts_isnull[format->deleted_at - 1];
		bool is_deleted = !new_row->tts_isnull[format->deleted_at - 1];

		if (was_deleted != is_deleted)
			return is_deleted ? TA_ACTION_SOFT_DELETE : TA_ACTION_RESTORE;
	}
	return TA_ACTION_UPDATE;
}

static void
log_update(Entry *entry, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	MemoryContext caller;

	if (ta_audit_same_tuple(old_row, new_row))
		return;
	caller = MemoryContextSwitchTo(entry->row_context);
	if (ta_audit_changes_of(entry->format, old_row, new_row, &entry->changes))
	{
		MemoryContextSwitchTo(caller);
		(void) writer_of(entry);
		MemoryContextSwitchTo(entry->row_context);
		write_row(entry, action_of_update(entry->format, old_row, new_row), old_row, new_row);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(entry->row_context);
}

/*
 * Statements
 */

/* A transition table that is read from its beginning, beside whoever else reads it. */
typedef struct Reader
{
	Tuplestorestate *store;
	int				 pointer;
	TupleTableSlot	*row;
} Reader;

static void
open_reader(Reader *reader, Tuplestorestate *store, Relation rel)
{
	reader->store = store;
	reader->pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(store, reader->pointer);
	tuplestore_rescan(store);
	reader->row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsMinimalTuple);
}

static bool
read_row(Reader *reader)
{
	CHECK_FOR_INTERRUPTS();
	tuplestore_select_read_pointer(reader->store, reader->pointer);
	return tuplestore_gettupleslot(reader->store, true, false, reader->row);
}

static void
rewind_reader(Reader *reader)
{
	tuplestore_select_read_pointer(reader->store, reader->pointer);
	tuplestore_rescan(reader->store);
}

static void
close_reader(Reader *reader)
{
	ExecDropSingleTupleTableSlot(reader->row);
}

static void
log_images(Entry *entry, const char *action, Tuplestorestate *store)
{
	Reader reader;

	if (tuplestore_tuple_count(store) == 0)
		return;
	open_reader(&reader, store, entry->rel);
	while (read_row(&reader))
		log_image(entry, action, reader.row);
	close_reader(&reader);
}

/* The keys of a transition table, as a set of hashes. */
static HTAB *
collect_keys(Entry *entry, Reader *reader)
{
	HASHCTL ctl = {0};
	HTAB   *keys;

	ctl.keysize = ctl.entrysize = sizeof(uint64);
	ctl.hcxt = CurrentMemoryContext;
	keys = hash_create("techally audit keys", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	while (read_row(reader))
	{
		MemoryContext caller = MemoryContextSwitchTo(entry->row_context);
		uint64		  hash;

		(void) ta_audit_key(entry->format, reader->row, &entry->key);
		MemoryContextSwitchTo(caller);
		hash = hash_bytes_extended((unsigned char *) entry->key.data, entry->key.len, 0);
		(void) hash_search(keys, &hash, HASH_ENTER, NULL);
		MemoryContextReset(entry->row_context);
	}
	rewind_reader(reader);
	return keys;
}

static bool
has_key(Entry *entry, HTAB *keys, TupleTableSlot *row)
{
	MemoryContext caller = MemoryContextSwitchTo(entry->row_context);
	uint64		  hash;
	bool		  found;

	(void) ta_audit_key(entry->format, row, &entry->key);
	MemoryContextSwitchTo(caller);
	hash = hash_bytes_extended((unsigned char *) entry->key.data, entry->key.len, 0);
	(void) hash_search(keys, &hash, HASH_FIND, &found);
	MemoryContextReset(entry->row_context);
	return found;
}

/*
 * The two tables of an update differ in length: rows were dropped on their way
 * to another partition.  Both are in the same order, so those whose keys are in
 * both tables pair up in it; a row whose key is only in the old one has gone,
 * and one that is only in the new one has come.
 */
static void
log_update_by_key(Entry *entry, Reader *old_rows, Reader *new_rows)
{
	HTAB *old_keys;
	HTAB *new_keys;
	bool  more_old;
	bool  more_new;

	if (entry->format->nkey == 0)
	{
		while (read_row(old_rows))
			log_image(entry, TA_ACTION_DELETE, old_rows->row);
		while (read_row(new_rows))
			log_image(entry, TA_ACTION_INSERT, new_rows->row);
		return;
	}

	old_keys = collect_keys(entry, old_rows);
	new_keys = collect_keys(entry, new_rows);
	more_old = read_row(old_rows);
	more_new = read_row(new_rows);
	while (more_old || more_new)
	{
		if (more_old && !has_key(entry, new_keys, old_rows->row))
		{
			log_image(entry, TA_ACTION_DELETE, old_rows->row);
			more_old = read_row(old_rows);
		}
		else if (more_new && (!more_old || !has_key(entry, old_keys, new_rows->row)))
		{
			log_image(entry, TA_ACTION_INSERT, new_rows->row);
			more_new = read_row(new_rows);
		}
		else if (more_new)
		{
			log_update(entry, old_rows->row, new_rows->row);
			more_old = read_row(old_rows);
			more_new = read_row(new_rows);
		}
		else
		{
			log_image(entry, TA_ACTION_DELETE, old_rows->row);
			more_old = read_row(old_rows);
		}
	}
	hash_destroy(old_keys);
	hash_destroy(new_keys);
}

static void
log_updates(Entry *entry, Tuplestorestate *old_store, Tuplestorestate *new_store)
{
	Reader old_rows;
	Reader new_rows;

	if (tuplestore_tuple_count(old_store) == 0 && tuplestore_tuple_count(new_store) == 0)
		return;
	open_reader(&old_rows, old_store, entry->rel);
	open_reader(&new_rows, new_store, entry->rel);
	if (tuplestore_tuple_count(old_store) == tuplestore_tuple_count(new_store))
	{
		while (read_row(&old_rows) && read_row(&new_rows))
			log_update(entry, old_rows.row, new_rows.row);
	}
	else
		log_update_by_key(entry, &old_rows, &new_rows);
	close_reader(&old_rows);
	close_reader(&new_rows);
}

/*
 * TRUNCATE
 */

/* Whether a table logs what TRUNCATE removes from it by a trigger of its own. */
static bool
logs_truncate(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;
	Oid			 function = ta_audit_function();

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgfoid == function && TRIGGER_FOR_TRUNCATE(triggers->triggers[i].tgtype) &&
			triggers->triggers[i].tgenabled != TRIGGER_DISABLED)
			return true;
	return false;
}

/* Logs the rows of one table that has rows of its own; returns how many there are. */
static int64
log_truncated(Entry *entry, int64 *logged)
{
	Snapshot		snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc	scan = table_beginscan(entry->rel, snapshot, 0, NULL);
	TupleTableSlot *row = table_slot_create(entry->rel, NULL);
	int64			rows = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		if (rows++ < truncate_rows)
		{
			log_image(entry, TA_ACTION_TRUNCATE, row);
			(*logged)++;
		}
	}
	ExecDropSingleTupleTableSlot(row);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return rows;
}

/*
 * Logs a TRUNCATE.  The server fires the triggers of every table that loses its
 * rows: a partition that has ours logs its own, and the partitioned table those
 * of the others.
 */
static void
log_truncate(Relation rel)
{
	Entry		   entry;
	StringInfoData facts;
	Jsonb		  *metadata;
	int64		   rows = 0;
	int64		   logged = 0;

	begin_entry(&entry, rel);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		List	 *partitions = find_all_inheritors(RelationGetRelid(rel), AccessShareLock, NULL);
		ListCell *cell;

		foreach(cell, partitions)
		{
			Relation partition = table_open(lfirst_oid(cell), NoLock);

			if (partition->rd_rel->relkind == RELKIND_RELATION && !logs_truncate(partition))
			{
				Entry of_partition;

				begin_entry(&of_partition, partition);
				rows += log_truncated(&of_partition, &logged);
				end_entry(&of_partition);
			}
			table_close(partition, NoLock);
		}
	}
	else
		rows = log_truncated(&entry, &logged);

	initStringInfo(&facts);
	appendStringInfo(&facts, "{\"rows\": " INT64_FORMAT ", \"logged\": " INT64_FORMAT, rows, logged);
	if (entry.format->root != RelationGetRelid(rel))
	{
		appendStringInfoString(&facts, ", \"partition\": ");
		escape_json(&facts, RelationGetRelationName(rel));
	}
	appendStringInfoChar(&facts, '}');
	metadata = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(facts.data)));
	resetStringInfo(&facts);
	appendBinaryStringInfo(&facts, (char *) metadata, VARSIZE(metadata));
	ta_audit_write(writer_of(&entry), TA_ACTION_TRUNCATE, NULL, NULL, NULL, NULL, &facts);
	end_entry(&entry);
}

/*
 * The trigger
 */

PG_FUNCTION_INFO_V1(ta_audit_changes);

static void
require_transition_table(Tuplestorestate *store, const char *clause, Trigger *trigger)
{
	if (store == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" needs a transition table when it is fired for each statement",
						TA_AUDIT_FUNCTION),
				 errdetail("Trigger \"%s\" was created without REFERENCING %s AS ....", trigger->tgname, clause),
				 errhint("techally.enable_audit creates the triggers that are best.")));
}

/*
 * ta_audit_changes
 *		audit_changes() → trigger
 *
 * AFTER INSERT, UPDATE or DELETE, for each row or for each statement with
 * transition tables; BEFORE TRUNCATE.  Arguments: pairs of 'exclude' or
 * 'redact' and a column's name.  Raises 39P01 where the trigger was created
 * otherwise, 22P02 for settings of the application that are no uuid, no address
 * or no JSON, 42809 where a table stands in the log's place.
 */
Datum
ta_audit_changes(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, TA_AUDIT_FUNCTION,
											TA_TRIGGER_INSERT | TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE |
												TA_TRIGGER_TRUNCATE);
	Relation	 rel = trigdata->tg_relation;
	TriggerEvent event = trigdata->tg_event;
	Entry		 entry;

	if (TRIGGER_FIRED_BY_TRUNCATE(event))
	{
		(void) ta_trigger_data(fcinfo, TA_AUDIT_FUNCTION, TA_TRIGGER_BEFORE | TA_TRIGGER_STATEMENT | TA_TRIGGER_TRUNCATE);
		log_truncate(rel);
		return PointerGetDatum(NULL);
	}
	(void) ta_trigger_data(fcinfo, TA_AUDIT_FUNCTION,
						   TA_TRIGGER_AFTER | TA_TRIGGER_INSERT | TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);

	/* rows that maintenance moves are the rows that they were */
	if (ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_FOR_STATEMENT(event))
	{
		if (!TRIGGER_FIRED_BY_INSERT(event))
			require_transition_table(trigdata->tg_oldtable, "OLD TABLE", trigdata->tg_trigger);
		if (!TRIGGER_FIRED_BY_DELETE(event))
			require_transition_table(trigdata->tg_newtable, "NEW TABLE", trigdata->tg_trigger);
		if (tuplestore_tuple_count(TRIGGER_FIRED_BY_INSERT(event) ? trigdata->tg_newtable : trigdata->tg_oldtable) == 0)
			return PointerGetDatum(NULL);
		begin_entry(&entry, rel);
		if (TRIGGER_FIRED_BY_UPDATE(event))
			log_updates(&entry, trigdata->tg_oldtable, trigdata->tg_newtable);
		else if (TRIGGER_FIRED_BY_INSERT(event))
			log_images(&entry, TA_ACTION_INSERT, trigdata->tg_newtable);
		else
			log_images(&entry, TA_ACTION_DELETE, trigdata->tg_oldtable);
		end_entry(&entry);
		return PointerGetDatum(NULL);
	}

	begin_entry(&entry, rel);
	if (TRIGGER_FIRED_BY_UPDATE(event))
		log_update(&entry, trigdata->tg_trigslot, trigdata->tg_newslot);
	else
		log_image(&entry, TRIGGER_FIRED_BY_INSERT(event) ? TA_ACTION_INSERT : TA_ACTION_DELETE,
				  trigdata->tg_trigslot);
	end_entry(&entry);
	return PointerGetDatum(NULL);
}

/*
 * Installing
 */

static const TaStatement upsert_audited = {
	"INSERT INTO @store@.audited_tables AS a"
	" (target, form, excluded, redacted, excluded_columns, redacted_columns, table_name)"
	" SELECT c.oid::pg_catalog.regclass, $2, $3, $4, $5, $6, c.relname FROM pg_catalog.pg_class c WHERE c.oid = $1"
	" ON CONFLICT (target) DO UPDATE SET form = excluded.form, excluded = excluded.excluded,"
	" redacted = excluded.redacted, excluded_columns = excluded.excluded_columns,"
	" redacted_columns = excluded.redacted_columns",
	6,
	{OIDOID, TEXTOID, NAMEARRAYOID, NAMEARRAYOID, INT2ARRAYOID, INT2ARRAYOID}};
static const TaStatement delete_audited = {
	"WITH d AS (DELETE FROM @store@.audited_tables a WHERE a.target::pg_catalog.oid = $1 RETURNING a.target, a.table_name)"
	" SELECT techally.audit_name_ended(d.target, d.table_name) FROM d",
	1,
	{OIDOID}};

typedef enum AuditForm
{
	FORM_STATEMENT,
	FORM_REPLICA /* row triggers that fire in a subscription's apply worker */
} AuditForm;

static const char *const audit_triggers[] = {
	"techally_audit_insert", "techally_audit_update", "techally_audit_delete",
	"techally_audit_truncate", "techally_audit_replica"};

static Oid
registry_namespace(void)
{
	return get_namespace_oid("techally", false);
}

static Oid
registry_owner(void)
{
	return ta_relation_owner(get_relname_relid("audited_tables", registry_namespace()));
}

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

/* Raises where the relation is none that can be audited, or not the caller's. */
static void
check_target(Oid relid)
{
	char *name = get_rel_name(relid);
	char  relkind = get_rel_relkind(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", relid)));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(relkind), name);
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name)));
	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary tables cannot be audited")));
	if (ta_is_audit_log(relid) || strcmp(name, TA_AUDIT_SEALS) == 0 ||
		(get_rel_relispartition(relid) && ta_is_audit_log(llast_oid(get_partition_ancestors(relid)))))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is an audit log itself", name)));
}

/* The names of an array, each checked to be a column; their numbers in *attnums. */
static List *
column_names(FunctionCallInfo fcinfo, int argno, const char *argument, Oid relid, ArrayType **attnums)
{
	Datum *elements;
	bool  *nulls;
	int	   n;
	Datum *numbers;
	List  *names = NIL;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &elements, &nulls, &n);
	numbers = palloc(sizeof(Datum) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		AttrNumber attnum;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("elements of \"%s\" must not be null", argument)));
		attnum = get_attnum(relid, NameStr(*DatumGetName(elements[i])));
		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							NameStr(*DatumGetName(elements[i])), get_rel_name(relid))));
		names = lappend(names, pstrdup(NameStr(*DatumGetName(elements[i]))));
		numbers[i] = Int16GetDatum(attnum);
	}
	*attnums = construct_array(numbers, n, INT2OID, sizeof(int16), true, TYPALIGN_SHORT);
	return names;
}

/* A column of the primary key is in every entry: it can be neither. */
static void
check_key_columns(Oid relid, List *names)
{
	Relation   rel = table_open(relid, AccessShareLock);
	Bitmapset *key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	ListCell  *cell;

	foreach(cell, names)
	{
		AttrNumber attnum = get_attnum(relid, lfirst(cell));

		if (bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, key))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("column \"%s\" belongs to the primary key of table \"%s\"",
							(char *) lfirst(cell), get_rel_name(relid)),
					 errdetail("The log says by it which row was changed.")));
	}
	table_close(rel, NoLock);
}

static char *
trigger_arguments(List *excluded, List *redacted)
{
	StringInfoData buf;
	ListCell	  *cell;

	initStringInfo(&buf);
	foreach(cell, excluded)
		appendStringInfo(&buf, "%s'exclude', %s", buf.len > 0 ? ", " : "", quote_literal_cstr(lfirst(cell)));
	foreach(cell, redacted)
		appendStringInfo(&buf, "%s'redact', %s", buf.len > 0 ? ", " : "", quote_literal_cstr(lfirst(cell)));
	return buf.data;
}

/* Drops the triggers that we have installed; others of audit_changes stay. */
static void
drop_triggers(Oid relid)
{
	for (int i = 0; i < (int) lengthof(audit_triggers); i++)
		(void) ta_run("DROP TRIGGER IF EXISTS %s ON %s", audit_triggers[i], qualified_name(relid));
}

/* Creates the triggers of one table; within ta_maintenance_begin as its owner. */
static void
create_triggers(Oid relid, AuditForm form, const char *arguments)
{
	const char *table = qualified_name(relid);

	drop_triggers(relid);
	if (form == FORM_REPLICA)
	{
		ta_run("CREATE TRIGGER techally_audit_replica AFTER INSERT OR UPDATE OR DELETE ON %s"
			   " FOR EACH ROW EXECUTE FUNCTION techally." TA_AUDIT_FUNCTION "(%s)",
			   table, arguments);
		ta_run("ALTER TABLE %s ENABLE REPLICA TRIGGER techally_audit_replica", table);
	}
	else
	{
		ta_run("CREATE TRIGGER techally_audit_insert AFTER INSERT ON %s"
			   " REFERENCING NEW TABLE AS techally_new"
			   " FOR EACH STATEMENT EXECUTE FUNCTION techally." TA_AUDIT_FUNCTION "(%s)",
			   table, arguments);
		ta_run("CREATE TRIGGER techally_audit_update AFTER UPDATE ON %s"
			   " REFERENCING OLD TABLE AS techally_old NEW TABLE AS techally_new"
			   " FOR EACH STATEMENT EXECUTE FUNCTION techally." TA_AUDIT_FUNCTION "(%s)",
			   table, arguments);
		ta_run("CREATE TRIGGER techally_audit_delete AFTER DELETE ON %s"
			   " REFERENCING OLD TABLE AS techally_old"
			   " FOR EACH STATEMENT EXECUTE FUNCTION techally." TA_AUDIT_FUNCTION "(%s)",
			   table, arguments);
	}
	ta_run("CREATE TRIGGER techally_audit_truncate BEFORE TRUNCATE ON %s"
		   " FOR EACH STATEMENT EXECUTE FUNCTION techally." TA_AUDIT_FUNCTION "(%s)",
		   table, arguments);
	if (form == FORM_REPLICA)
		ta_run("ALTER TABLE %s ENABLE REPLICA TRIGGER techally_audit_truncate", table);
}

/* The table and its partitions, locked as CREATE TRIGGER does. */
static List *
lock_family(Oid relid)
{
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		return find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
	LockRelationOid(relid, ShareRowExclusiveLock);
	return list_make1_oid(relid);
}

/* Row triggers are cloned to partitions by the server, the others are not. */
static bool
wants_triggers(Oid relid, Oid target, AuditForm form)
{
	char relkind = get_rel_relkind(relid);

	if (relid == target)
		return true;
	return form == FORM_STATEMENT && (relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE);
}

static void
install(Oid relid, AuditForm form, List *excluded, List *redacted,
		ArrayType *excluded_columns, ArrayType *redacted_columns)
{
	TaMaintenance frame;
	TaFrame		  registry;
	char		 *arguments = trigger_arguments(excluded, redacted);
	List		 *family = lock_family(relid);
	ListCell	 *cell;
	Datum		  values[6];

	/* the log is there before the first change, so that nobody waits for it */
	(void) ta_audit_log_of(get_rel_namespace(relid), true);

	foreach(cell, family)
	{
		if (!wants_triggers(lfirst_oid(cell), relid, form))
			continue;
		ta_maintenance_begin(&frame, ta_relation_owner(lfirst_oid(cell)));
		create_triggers(lfirst_oid(cell), form, arguments);
		ta_maintenance_end(&frame);
	}

	values[0] = ObjectIdGetDatum(relid);
	values[1] = CStringGetTextDatum(form == FORM_REPLICA ? "replica" : "statement");
	for (int i = 0; i < 2; i++)
	{
		List  *names = i == 0 ? excluded : redacted;
		Datum *elements = palloc(sizeof(Datum) * Max(list_length(names), 1));
		int	   n = 0;

		foreach(cell, names)
			elements[n++] = DirectFunctionCall1(namein, CStringGetDatum(lfirst(cell)));
		values[2 + i] = PointerGetDatum(construct_array(elements, n, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
	}
	values[4] = PointerGetDatum(excluded_columns);
	values[5] = PointerGetDatum(redacted_columns);
	ta_frame_begin(&registry, registry_owner());
	ta_execute(registry_namespace(), &upsert_audited, SPI_OK_INSERT, values, NULL);
	ta_frame_end(&registry);
}

static void
enable(FunctionCallInfo fcinfo, AuditForm form)
{
	static const char *const names[] = {"target", "exclude", "redact"};
	Oid						 relid;
	List					*excluded;
	List					*redacted;
	ArrayType				*excluded_columns;
	ArrayType				*redacted_columns;

	ta_require_arguments(fcinfo, names, lengthof(names));
	relid = PG_GETARG_OID(0);
	check_target(relid);
	excluded = column_names(fcinfo, 1, "exclude", relid, &excluded_columns);
	redacted = column_names(fcinfo, 2, "redact", relid, &redacted_columns);
	check_key_columns(relid, excluded);
	check_key_columns(relid, redacted);
	install(relid, form, excluded, redacted, excluded_columns, redacted_columns);
}

PG_FUNCTION_INFO_V1(ta_enable_audit);
PG_FUNCTION_INFO_V1(ta_enable_replica_audit);
PG_FUNCTION_INFO_V1(ta_disable_audit);
PG_FUNCTION_INFO_V1(ta_audit_partition_created);

/*
 * ta_enable_audit
 *		enable_audit(target regclass, exclude name[], redact name[]) → void
 *
 * Installs the statement triggers on a table and its partitions, and makes the
 * schema's log; again to change what is left out.  Raises 42501 for who does
 * not own the table, 42809 and 0A000 for what cannot be audited, 42703 for a
 * column that is none, 22023 for one of the primary key.  Locks the table and
 * its partitions in SHARE ROW EXCLUSIVE mode: it waits for writers, and they
 * for the end of its transaction.
 */
Datum
ta_enable_audit(PG_FUNCTION_ARGS)
{
	enable(fcinfo, FORM_STATEMENT);
	PG_RETURN_VOID();
}

/*
 * ta_enable_replica_audit
 *		enable_replica_audit(target regclass, exclude name[], redact name[]) → void
 *
 * The same on a subscriber, for what its apply worker writes: row triggers that
 * fire there and nowhere else.
 */
Datum
ta_enable_replica_audit(PG_FUNCTION_ARGS)
{
	enable(fcinfo, FORM_REPLICA);
	PG_RETURN_VOID();
}

/*
 * ta_disable_audit
 *		disable_audit(target regclass) → void
 *
 * Drops the triggers that enable_audit has installed, and row triggers of
 * audit_changes that somebody else has.  The log stays.  Raises as enable_audit
 * does, and 55000 where the table is not audited.
 */
Datum
ta_disable_audit(PG_FUNCTION_ARGS)
{
	TaMaintenance frame;
	TaFrame		  registry;
	List		 *family;
	ListCell	 *cell;
	Oid			  relid;
	Oid			  function = ta_audit_function();
	Datum		  values[1];
	bool		  found = false;

	ta_require_argument(fcinfo, 0, "target");
	relid = PG_GETARG_OID(0);
	check_target(relid);
	family = lock_family(relid);
	foreach(cell, family)
	{
		Oid		  member = lfirst_oid(cell);
		Relation  rel = table_open(member, NoLock);
		List	 *names = NIL;
		ListCell *name;

		for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
			if (rel->trigdesc->triggers[i].tgfoid == function && !rel->trigdesc->triggers[i].tgisclone)
				names = lappend(names, pstrdup(rel->trigdesc->triggers[i].tgname));
		table_close(rel, NoLock);
		if (names == NIL)
			continue;
		found = true;
		ta_maintenance_begin(&frame, ta_relation_owner(member));
		foreach(name, names)
			(void) ta_run("DROP TRIGGER %s ON %s", quote_identifier(lfirst(name)), qualified_name(member));
		ta_maintenance_end(&frame);
	}

	values[0] = ObjectIdGetDatum(relid);
	ta_frame_begin(&registry, registry_owner());
	ta_execute(registry_namespace(), &delete_audited, SPI_OK_SELECT, values, NULL);
	found |= SPI_processed > 0;
	ta_frame_end(&registry);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not audited", get_rel_name(relid))));
	PG_RETURN_VOID();
}

/*
 * ta_audit_partition_created
 *		audit_partition_created(parent regclass, partition regclass) → void
 *
 * Sees to a new partition: audited as its parent is, or guarded where the
 * parent is a log.  Nothing where there is nothing to do.
 */
Datum
ta_audit_partition_created(PG_FUNCTION_ARGS)
{
	Oid			  parent = PG_GETARG_OID(0);
	Oid			  partition = PG_GETARG_OID(1);
	Relation	  rel;
	bool		  audited = false;
	List		 *excluded;
	List		 *redacted;
	Oid			  function;
	List		 *family;
	ListCell	 *cell;
	TaMaintenance frame;

	if (ta_is_audit_log(parent))
	{
		ta_audit_guard_partition(parent, partition);
		PG_RETURN_VOID();
	}
	rel = table_open(parent, AccessShareLock);
	function = ta_audit_function();
	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
		audited |= rel->trigdesc->triggers[i].tgfoid == function &&
				   strcmp(rel->trigdesc->triggers[i].tgname, audit_triggers[0]) == 0;
	(void) ta_audit_trigger_arguments(rel, &excluded, &redacted);
	table_close(rel, NoLock);
	if (!audited)
		PG_RETURN_VOID();

	family = lock_family(partition);
	foreach(cell, family)
	{
		Oid member = lfirst_oid(cell);

		if (!wants_triggers(member, partition, FORM_STATEMENT))
			continue;
		ta_maintenance_begin(&frame, ta_relation_owner(member));
		create_triggers(member, FORM_STATEMENT, trigger_arguments(excluded, redacted));
		ta_maintenance_end(&frame);
	}
	PG_RETURN_VOID();
}
