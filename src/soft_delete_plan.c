/*-------------------------------------------------------------------------
 *
 * soft_delete_plan.c
 *	  The statements of soft delete: kept plans, as whom they run, and what they
 *	  are put together from.
 *
 * A plan is kept until one of the tables that it names changes.
 *
 * What we write, we write as the owner of the table that is written, past row
 * security, as foreign keys do.  The statements name everything with its schema;
 * the search_path is for the triggers that they fire.  It is the caller's only
 * where he may act as that owner anyway: others could have the owner call what
 * they have put there, and for them it is the schema of the table.
 *
 * Nothing is locked here but by the statements, which their callers order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/uuid.h"

#include "compat.h"
#include "foreign_key.h"
#include "soft_delete.h"
#include "soft_delete_plan.h"
#include "spi_util.h"

typedef struct PlanKey
{
	PlanKind kind;
	Oid		 relid; /* or a constraint */
	Oid		 other;
} PlanKey;

typedef struct PlanEntry
{
	PlanKey	   key;
	Oid		   tables[2]; /* whose change makes it stale */
	List	  *others;	  /* and more of them, in CacheMemoryContext */
	bool	   valid;
	SPIPlanPtr plan;
} PlanEntry;

static HTAB *plans = NULL;
static List *retired_plans = NIL; /* in CacheMemoryContext */

/* the deletions whose rows a statement of ours is just writing, in order */
static const pg_uuid_t *own_deletions = NULL;
static int				nown_deletions = 0;

/* ---------------------------------------------------------------------
 * Plans
 * ---------------------------------------------------------------------
 */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	PlanEntry	   *entry;

	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || entry->tables[0] == relid || entry->tables[1] == relid ||
			list_member_oid(entry->others, relid))
			entry->valid = false;
	}
}

/* A schema, an operator or a collation changed: it may have been renamed. */
static void
name_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS status;
	PlanEntry	   *entry;

	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
		entry->valid = false;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	ListCell *cell;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	foreach(cell, retired_plans)
		SPI_freeplan(lfirst(cell));
	list_free(retired_plans);
	retired_plans = NIL;
}

/*
 * ta_sd_plan_init
 *		Makes the cache of plans and registers what keeps it true.  Called once.
 */
void
ta_sd_plan_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(PlanKey);
	ctl.entrysize = sizeof(PlanEntry);
	ctl.hcxt = CacheMemoryContext;
	plans = hash_create("techally soft delete plans", 32, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, name_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(OPEROID, name_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(COLLOID, name_changed, (Datum) 0);
	RegisterXactCallback(transaction_ended, NULL);
}

/*
 * ta_sd_find_plan
 *		The kept plan of this kind, NULL where it must be made.
 */
SPIPlanPtr
ta_sd_find_plan(PlanKind kind, Oid relid, Oid other)
{
	PlanKey	   key;
	PlanEntry *entry;

	memset(&key, 0, sizeof(key));
	key.kind = kind;
	key.relid = relid;
	key.other = other;
	entry = hash_search(plans, &key, HASH_FIND, NULL);
	return entry != NULL && entry->valid ? entry->plan : NULL;
}

/*
 * Keeps a plan under its key.  What it replaces may be running further up the
 * stack: it goes when the transaction ends.
 */
static void
keep_plan(SPIPlanPtr plan, PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table, List *others)
{
	PlanKey		  key;
	PlanEntry	 *entry;
	bool		  found;
	MemoryContext old_context;

	memset(&key, 0, sizeof(key));
	key.kind = kind;
	key.relid = relid;
	key.other = other;
	entry = hash_search(plans, &key, HASH_FIND, NULL);
	if (entry != NULL)
	{
		old_context = MemoryContextSwitchTo(CacheMemoryContext);
		retired_plans = lappend(retired_plans, entry->plan);
		MemoryContextSwitchTo(old_context);
		list_free(entry->others);
		hash_search(plans, &key, HASH_REMOVE, NULL);
	}
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	entry = hash_search(plans, &key, HASH_ENTER, &found);
	entry->tables[0] = table;
	entry->tables[1] = second_table;
	entry->others = NIL;
	entry->plan = plan;
	entry->valid = true;
	old_context = MemoryContextSwitchTo(CacheMemoryContext);
	entry->others = list_copy(others);
	MemoryContextSwitchTo(old_context);
}

/*
 * ta_sd_make_plan_over
 *		Prepares a statement and keeps its plan until one of the two tables, or of
 *		the others, changes.
 */
SPIPlanPtr
ta_sd_make_plan_over(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table, List *others,
					 const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr plan = SPI_prepare(sql, nargs, types);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	keep_plan(plan, kind, relid, other, table, second_table, others);
	return plan;
}

/*
 * ta_sd_make_plan
 *		The same for a plan that two tables decide about.
 */
SPIPlanPtr
ta_sd_make_plan(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table,
				const char *sql, int nargs, Oid *types)
{
	return ta_sd_make_plan_over(kind, relid, other, table, second_table, NIL, sql, nargs, types);
}

/*
 * ta_sd_make_plan_by_row
 *		The same for a statement over rows of one table that are given by their
 *		addresses: it fetches them and does not look through the table for them,
 *		however small the table is just now, and however many they are.
 */
SPIPlanPtr
ta_sd_make_plan_by_row(PlanKind kind, Oid relid, const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	CachedPlan *cached;
	int			guc_level = NewGUCNestLevel();

	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	keep_plan(plan, kind, relid, InvalidOid, relid, InvalidOid, NIL);
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	cached = SPI_plan_get_cached_plan(plan);
	if (cached != NULL)
		ReleaseCachedPlan(cached, CurrentResourceOwner);
	AtEOXact_GUC(true, guc_level);
	return plan;
}

/*
 * ta_sd_run_plan
 *		Runs a plan; returns how many rows it has processed.
 */
uint64
ta_sd_run_plan(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int rc = SPI_execute_plan(plan, values, nulls, false, 0);

	if (rc < 0)
		elog(ERROR, "unexpected SPI result: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/*
 * ta_sd_run_own_plan
 *		The same as a statement that sets or clears deleted_at of rows of these
 *		deletions, which stand in order: nobody has done that by hand.
 */
uint64
ta_sd_run_own_plan(SPIPlanPtr plan, Datum *values, const char *nulls, const pg_uuid_t *ids, int nids,
				   uint64 (*run)(SPIPlanPtr, Datum *, const char *))
{
	const pg_uuid_t *outer = own_deletions;
	int				 nouter = nown_deletions;
	uint64			 n = 0;

	own_deletions = ids;
	nown_deletions = nids;
	PG_TRY();
	{
		n = run(plan, values, nulls);
	}
	PG_FINALLY();
	{
		own_deletions = outer;
		nown_deletions = nouter;
	}
	PG_END_TRY();
	return n;
}

/*
 * ta_sd_run_plan_on_latest
 *		Runs a plan for rows that the transaction's snapshot may not show: those
 *		that were committed since are found, and to change one is a serialization
 *		failure, as when a foreign key cascades.
 */
uint64
ta_sd_run_plan_on_latest(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int rc;

	if (!IsolationUsesXactSnapshot())
		return ta_sd_run_plan(plan, values, nulls);
	CommandCounterIncrement();
	rc = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(), GetTransactionSnapshot(),
							  false, true, 0);
	if (rc < 0)
		elog(ERROR, "unexpected SPI result: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t));
}

/*
 * is_own_deletion(before uuid, after uuid) → boolean
 *		Whether a statement of ours is just now writing rows of the deletion that
 *		the row names, or has named: for the condition of deleted_at_changed.
 */
PG_FUNCTION_INFO_V1(ta_is_own_deletion);
Datum
ta_is_own_deletion(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < 2 && nown_deletions > 0; i++)
	{
		if (!PG_ARGISNULL(i) &&
			bsearch(PG_GETARG_UUID_P(i), own_deletions, nown_deletions, sizeof(pg_uuid_t), compare_ids) != NULL)
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}

/* ---------------------------------------------------------------------
 * Tables, columns, owners
 * ---------------------------------------------------------------------
 */

/*
 * ta_sd_qualified_name
 *		A table's name, with its schema, quoted.
 */
char *
ta_sd_qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/*
 * ta_sd_column_name
 *		A column's name, quoted.
 */
const char *
ta_sd_column_name(Oid relid, AttrNumber attnum)
{
	return quote_identifier(get_attname(relid, attnum, false));
}

/*
 * ta_sd_column_number
 *		A column by name, InvalidAttrNumber for none.
 */
AttrNumber
ta_sd_column_number(Relation rel, const char *name)
{
	TupleDesc desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (!attribute->attisdropped && strcmp(NameStr(attribute->attname), name) == 0)
			return attribute->attnum;
	}
	return InvalidAttrNumber;
}

/*
 * ta_trigger_calls
 *		Whether a trigger calls this function of ours.
 */
bool
ta_trigger_calls(const Trigger *trigger, const char *function)
{
	char *name = get_func_name(trigger->tgfoid);
	char *schema;

	if (name == NULL || strcmp(name, function) != 0)
		return false;
	schema = get_namespace_name(get_func_namespace(trigger->tgfoid));
	return schema != NULL && strcmp(schema, "techally") == 0;
}

/*
 * ta_is_soft_delete_table
 *		Whether a DELETE of the table's rows sets deleted_at: its trigger says so.
 */
bool
ta_is_soft_delete_table(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (TRIGGER_FOR_DELETE(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
			ta_trigger_calls(trigger, TA_DELETE_FUNCTION))
			return true;
	}
	return false;
}

/*
 * ta_sd_is_soft_delete_relid
 *		The same of a table that is not open.  Locks it ACCESS SHARE.
 */
bool
ta_sd_is_soft_delete_relid(Oid relid)
{
	Relation rel = table_open(relid, AccessShareLock);
	bool	 result = ta_is_soft_delete_table(rel);

	table_close(rel, NoLock);
	return result;
}

/*
 * ta_sd_root_of
 *		A table and, for a partition, what it is a partition of.
 */
Oid
ta_sd_root_of(Oid relid)
{
	List *ancestors;

	if (!get_rel_relispartition(relid))
		return relid;
	ancestors = get_partition_ancestors(relid);
	return ancestors == NIL ? relid : llast_oid(ancestors);
}

/*
 * ta_sd_owner_begin
 *		From here on we are the table's owner, and row security does not apply; see
 *		the head of this file for the search_path.
 */
void
ta_sd_owner_begin(TaOwnerFrame *frame, Oid relid)
{
	Oid owner = ta_relation_owner(relid);

	GetUserIdAndSecContext(&frame->user, &frame->sec_context);
	frame->guc_level = 0;
	if (!has_privs_of_role(frame->user, owner))
	{
		char *schema = get_namespace_name(get_rel_namespace(relid));

		frame->guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path",
								 psprintf("pg_catalog, %s, pg_temp", quote_identifier(schema)),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	SetUserIdAndSecContext(owner, frame->sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
}

/*
 * ta_sd_owner_end
 *		Ends what ta_sd_owner_begin has begun; an error does so by itself.
 */
void
ta_sd_owner_end(const TaOwnerFrame *frame)
{
	SetUserIdAndSecContext(frame->user, frame->sec_context);
	if (frame->guc_level != 0)
		AtEOXact_GUC(true, frame->guc_level);
}

/*
 * ta_sd_connect_spi
 *		SPI_connect, or an error.
 */
void
ta_sd_connect_spi(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/*
 * ta_sd_finish_spi
 *		Ends what ta_sd_connect_spi has begun.
 */
void
ta_sd_finish_spi(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * ta_sd_raise_no_column
 *		Raises 42703: the table has lost its deleted_at.
 */
void
ta_sd_raise_no_column(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of relation \"%s\" does not exist", DELETED_AT, RelationGetRelationName(rel)),
			 errhint("Run techally.enable_soft_delete again, or techally.disable_soft_delete.")));
}

/* ---------------------------------------------------------------------
 * What statements over rows and their dependents are put together from
 * ---------------------------------------------------------------------
 */

/*
 * ta_sd_unique_ids
 *		Puts ids in order and drops duplicates; returns how many are left.
 */
int
ta_sd_unique_ids(pg_uuid_t *ids, int nids)
{
	int n = 0;

	qsort(ids, nids, sizeof(pg_uuid_t), compare_ids);
	for (int i = 0; i < nids; i++)
	{
		if (n == 0 || compare_ids(&ids[n - 1], &ids[i]) != 0)
			ids[n++] = ids[i];
	}
	return n;
}

/* An array of values that follow each other without a gap. */
static Datum
packed_array(Oid type, const void *values, Size size, int n)
{
	Size	   header = ARR_OVERHEAD_NONULLS(1);
	ArrayType *array = palloc0(header + size * n);

	SET_VARSIZE(array, header + size * n);
	array->ndim = 1;
	array->dataoffset = 0;
	array->elemtype = type;
	*ARR_DIMS(array) = n;
	*ARR_LBOUND(array) = 1;
	memcpy((char *) array + header, values, size * n);
	return PointerGetDatum(array);
}

/*
 * ta_sd_row_array
 *		A tid[].
 */
Datum
ta_sd_row_array(const ItemPointerData *rows, int nrows)
{
	return packed_array(TIDOID, rows, sizeof(ItemPointerData), nrows);
}

/*
 * ta_sd_id_array
 *		A uuid[].
 */
Datum
ta_sd_id_array(const pg_uuid_t *ids, int nids)
{
	return packed_array(UUIDOID, ids, sizeof(pg_uuid_t), nids);
}

/*
 * ta_sd_cascading
 *		Those of the foreign keys to a table that cascade.
 */
List *
ta_sd_cascading(List *keys)
{
	List	 *result = NIL;
	ListCell *cell;

	foreach(cell, keys)
	{
		if (((TaForeignKey *) lfirst(cell))->on_delete == FKCONSTR_ACTION_CASCADE)
			result = lappend(result, lfirst(cell));
	}
	return result;
}

/*
 * ta_sd_append_returning
 *		"k.id, t.tableoid, t.a, t.b, …": what more says, then the columns that these
 *		foreign keys refer to, key after key; behind the word RETURNING or SELECT.
 *		Nothing where there is no key.
 */
void
ta_sd_append_returning(StringInfo sql, const char *word, const char *alias, int more, List *keys)
{
	ListCell   *cell;
	const char *separator = "";

	if (keys == NIL)
		return;
	appendStringInfo(sql, " %s ", word);
	if (more & TA_RETURN_ID)
	{
		appendStringInfoString(sql, "k.id");
		separator = ", ";
	}
	if (more & TA_RETURN_TABLE)
	{
		appendStringInfo(sql, "%s%s.tableoid", separator, alias);
		separator = ", ";
	}
	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);

		for (int i = 0; i < key->nkeys; i++)
		{
			appendStringInfo(sql, "%s%s.%s", separator, alias,
							 ta_sd_column_name(key->parent, key->parent_columns[i]));
			separator = ", ";
		}
	}
}

/* The type in which the values of a key's column are passed. */
static Oid
key_type(const TaForeignKey *key, int i)
{
	return getBaseType(get_atttype(key->parent, key->parent_columns[i]));
}

/* Whether rows of a table are rows of this one, or of a partition of it. */
static bool
lies_in(Oid relid, Oid table)
{
	return relid == table || (get_rel_relispartition(relid) && list_member_oid(get_partition_ancestors(relid), table));
}

/*
 * ta_sd_take_keys
 *		Makes arrays of what the last statement has returned for a key: its columns
 *		from first_column on, and what more says.  With TA_RETURN_TABLE only rows of
 *		the partition that the key refers to are taken.
 */
void
ta_sd_take_keys(const TaForeignKey *key, SPITupleTable *table, uint64 nrows, int more,
				int first_column, TaKeyArrays *arrays)
{
	Datum  *values = palloc(sizeof(Datum) * Max(nrows, 1));
	bool   *nulls = palloc(sizeof(bool) * Max(nrows, 1));
	uint64 *taken = palloc(sizeof(uint64) * Max(nrows, 1));
	int		ntaken = 0;
	int		lower_bounds[1] = {1};
	int		table_column = more & TA_RETURN_ID ? 2 : 1;
	Oid		last_table = InvalidOid;
	bool	last_lies_in = true;
	bool	isnull;

	for (uint64 r = 0; r < nrows; r++)
	{
		if (more & TA_RETURN_TABLE)
		{
			Oid relid = DatumGetObjectId(SPI_getbinval(table->vals[r], table->tupdesc, table_column, &isnull));

			if (relid != last_table)
			{
				last_table = relid;
				last_lies_in = lies_in(relid, key->parent);
			}
		}
		if (last_lies_in)
			taken[ntaken++] = r;
	}
	for (int i = 0; i < key->nkeys; i++)
	{
		Oid	  type = key_type(key, i);
		int16 typlen;
		bool  typbyval;
		char  typalign;

		get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
		for (int r = 0; r < ntaken; r++)
			values[r] = SPI_getbinval(table->vals[taken[r]], table->tupdesc, first_column + i, &nulls[r]);
		arrays->values[i] = PointerGetDatum(construct_md_array(values, nulls, 1, &ntaken, lower_bounds, type,
															   typlen, typbyval, typalign));
	}
	arrays->ids = (Datum) 0;
	arrays->deletions = NULL;
	arrays->ndeletions = 0;
	if (more & TA_RETURN_ID)
	{
		arrays->deletions = palloc(sizeof(pg_uuid_t) * Max(ntaken, 1));
		for (int r = 0; r < ntaken; r++)
			arrays->deletions[r] = *DatumGetUUIDP(SPI_getbinval(table->vals[taken[r]], table->tupdesc, 1, &isnull));
		arrays->ids = ta_sd_id_array(arrays->deletions, ntaken);
		arrays->ndeletions = ta_sd_unique_ids(arrays->deletions, ntaken);
	}
	arrays->nrows = ntaken;
	pfree(values);
	pfree(nulls);
	pfree(taken);
}

/*
 * ta_sd_append_keys_from
 *		"ROWS FROM (unnest($1), …) AS k(k1, …)", with_id: and a column id, and fills
 *		in the types of the arrays.
 */
void
ta_sd_append_keys_from(StringInfo sql, const TaForeignKey *key, bool with_id, Oid *types)
{
	int i;

	appendStringInfoString(sql, "ROWS FROM (");
	for (i = 0; i < key->nkeys; i++)
	{
		types[i] = get_array_type(key_type(key, i));
		if (!OidIsValid(types[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("could not find array type for data type %s", format_type_be(key_type(key, i)))));
		appendStringInfo(sql, "%spg_catalog.unnest($%d)", i > 0 ? ", " : "", i + 1);
	}
	if (with_id)
	{
		types[i] = UUIDARRAYOID;
		appendStringInfo(sql, ", pg_catalog.unnest($%d)", i + 1);
	}
	appendStringInfoString(sql, ") AS k(");
	for (i = 0; i < key->nkeys; i++)
		appendStringInfo(sql, "%sk%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoString(sql, with_id ? ", id)" : ")");
}

/*
 * ta_sd_append_join
 *		"parent.a = child.b AND …" of a foreign key; parent NULL: the keys k1, …
 *		stand for it.
 */
void
ta_sd_append_join(StringInfo sql, const TaForeignKey *key, const char *parent, const char *child)
{
	for (int i = 0; i < key->nkeys; i++)
	{
		Oid	  parent_type = get_atttype(key->parent, key->parent_columns[i]);
		char *left;

		if (parent != NULL)
			left = psprintf("%s.%s", parent, ta_sd_column_name(key->parent, key->parent_columns[i]));
		else
		{
			Oid	  type;
			int32 typmod;
			Oid	  collation;

			parent_type = key_type(key, i);
			left = psprintf("k.k%d", i + 1);
			get_atttypetypmodcoll(key->parent, key->parent_columns[i], &type, &typmod, &collation);
			if (OidIsValid(collation) && collation != DEFAULT_COLLATION_OID)
				left = psprintf("(%s COLLATE %s)", left, generate_collation_name(collation));
		}
		if (i > 0)
			appendStringInfoString(sql, " AND ");
		generate_operator_clause(sql, left, parent_type, key->operators[i],
								 psprintf("%s.%s", child, ta_sd_column_name(key->child, key->child_columns[i])),
								 get_atttype(key->child, key->child_columns[i]));
	}
}
