/*-------------------------------------------------------------------------
 *
 * soft_delete.c
 *	  Rows that are deleted by saying so in them: deleted_at is set, and
 *	  deletion_id says which deletion it was.
 *
 * A BEFORE DELETE trigger notes the row, which the server has locked FOR UPDATE,
 * and drops the deletion.  When the statement has run (a hook of ExecutorFinish)
 * the rows that it noted are marked by UPDATEs of many rows each, so that a bulk
 * DELETE costs little more than the UPDATE and statement triggers, the audit's
 * among them, see one.  Then the deletion goes on to dependents whose foreign
 * key cascades, level by level, set by set.
 *
 * Invariants:
 * - a living row has no deleted parent by a foreign key that cascades;
 * - no row comes to refer to a deleted one, by whatever foreign key: a constraint
 *   trigger on the referring table sees to it.  It holds the foreign key's own
 *   FOR KEY SHARE; so every row is locked FOR UPDATE, which conflicts with it,
 *   before it is marked or, where somebody has set deleted_at by hand, before its
 *   dependents are looked for;
 * - all rows that go with one statement carry one deletion_id; restoring a row
 *   brings back those that are reached from it and carry its id.
 *
 * A DELETE passes through where the row must really go: its parent by a cascading
 * foreign key is gone; it is moving to another partition, or being moved by our
 * own maintenance; or techally.hard_delete is on.
 *
 * What we write, we write as the owner of the table that is written, past row
 * security, as foreign keys do.  The statements name everything with its schema;
 * the search_path is for the triggers that they fire.  It is the caller's only
 * where he may act as that owner anyway: others could have the owner call what
 * they have put there, and for them it is the schema of the table.
 *
 * Lock order: parents before their dependents.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "partitioning/partdesc.h"
#include "replication/logicalworker.h"
#include "storage/buffile.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/reltrigger.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/varlena.h"

#include "compat.h"
#include "errors.h"
#include "foreign_key.h"
#include "request_util.h"
#include "soft_delete.h"
#include "spi_util.h"
#include "trigger_util.h"

#define DELETED_AT	TA_DELETED_AT
#define DELETION_ID TA_DELETION_ID

/* rows marked by one statement; fewer where each may bring dependents along */
#define MAX_MARKED		   65536
#define MAX_MARKED_PARENTS 1024

/* ---------------------------------------------------------------------
 * Types and state
 * ---------------------------------------------------------------------
 */

/* What became of the rows of a set. */
typedef enum RowFate
{
	ROWS_DELETED,		   /* a DELETE was dropped */
	ROWS_DELETED_BY_HAND,  /* somebody has set deleted_at */
	ROWS_RESTORED_BY_HAND, /* somebody has cleared it */
} RowFate;

/* Rows of one table that a statement has dealt with; on disk beyond MAX_MARKED. */
typedef struct RowSet
{
	Oid				 relid;
	RowFate			 fate;
	ItemPointerData *rows;
	int				 nrows;
	int				 size;
	BufFile			*file;
	int				 nblocks; /* MAX_MARKED rows each, in the file */
	struct RowSet	*next;
} RowSet;

/*
 * A statement that is running: known by its memory context, in which all of
 * this lies, so that an error takes it away.
 */
typedef struct Statement
{
	MemoryContext		  context;
	RowSet				 *sets;
	struct Statement	 *next;
	MemoryContextCallback callback;
} Statement;

/* What a trigger function keeps in its fn_extra: one table in one statement. */
typedef struct DeleteState
{
	AttrNumber deleted_at;
	bool	   is_partition;
	RowSet	  *set; /* NULL: nothing noted yet */
} DeleteState;

typedef struct ChangeState
{
	AttrNumber deleted_at;
	AttrNumber deletion_id;
	bool	   see_deleted;	 /* rows may refer to one that is deleted */
	bool	   see_restored; /* rows go with one, or it goes with another */
} ChangeState;

/* A parent that a table refers to, and how to find its rows. */
typedef struct ParentKey
{
	TaForeignKey key;
	bool		 direct; /* by the index; else by a statement */
	bool		 usable; /* compares for equality */
	AttrNumber	 parent_deleted_at;
	Oid			 left_types[INDEX_MAX_KEYS]; /* of the operators */
	Oid			 right_types[INDEX_MAX_KEYS];
	int			 index_order[INDEX_MAX_KEYS]; /* index column → key column */
} ParentKey;

/* A table that refers to others, as one version of the catalog has it. */
typedef struct Child
{
	Oid			  relid;
	bool		  valid;
	MemoryContext context;
	AttrNumber	  deleted_at; /* InvalidAttrNumber: cannot be deleted softly */
	int			  nkeys;	  /* -1: not built */
	ParentKey	 *keys;
} Child;

typedef enum PlanKind
{
	PLAN_MARK,				/* relid */
	PLAN_STAMP,				/* relid: the id, where deleted_at was set by hand */
	PLAN_LOCK,				/* relid */
	PLAN_UNMARK,			/* relid */
	PLAN_LOCK_DEPENDENTS,	/* constraint */
	PLAN_MARK_DEPENDENTS,	/* constraint */
	PLAN_FIND_DEPENDENTS,	/* constraint: of a table that cannot be marked */
	PLAN_LOCK_COPARENTS,	/* constraint, and the other one */
	PLAN_UNMARK_DEPENDENTS, /* constraint */
	PLAN_FIND_PARENT,		/* constraint */
	PLAN_SHARE_PARENT,		/* constraint, with a lock */
	PLAN_SELECT_ROW,		/* relid: by its uuid, for update */
} PlanKind;

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

/* Acting as a table's owner. */
typedef struct OwnerFrame
{
	Oid user;
	int sec_context;
	int guc_level; /* 0: the search_path is the caller's */
} OwnerFrame;

/* The last row of a partition that a statement is about to change, and may be about to move. */
typedef struct MovingRow
{
	MemoryContext		  statement; /* it lies in there */
	Oid					  relid;
	ItemPointerData		  row;
	struct MovingRow	 *next;
	MemoryContextCallback callback;
} MovingRow;

/* The keys of a row that has left a partition, until it arrives in another. */
typedef struct MovedKey
{
	Oid				 root;
	Oid				 parent;
	bool			 was_deleted;
	CommandId		 cid;
	int				 nvalues;
	char		   **names;
	Datum			*values;
	bool			*nulls;
	bool			*byval;
	int16			*lengths;
	struct MovedKey *next;
} MovedKey;

static bool hard_delete = false;

static Statement *statements = NULL;
static MovingRow *moving_rows = NULL;
static MovedKey	 *moved_keys = NULL; /* in TopTransactionContext */
static Oid		  lost_rows = InvalidOid;

/* the deletion whose rows a statement of ours is just writing */
static const pg_uuid_t *own_deletion = NULL;

static HTAB *children = NULL;
static HTAB *plans = NULL;
static List *retired_plans = NIL; /* in CacheMemoryContext */

static ExecutorFinish_hook_type next_executor_finish = NULL;

static void executor_finish(QueryDesc *query);

/* ---------------------------------------------------------------------
 * Caches
 * ---------------------------------------------------------------------
 */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Child		   *child;
	PlanEntry	   *entry;

	hash_seq_init(&status, children);
	while ((child = hash_seq_search(&status)) != NULL)
	{
		if (!child->valid)
			continue;
		/* one that is being built tells no parents yet */
		child->valid = relid != InvalidOid && child->relid != relid && child->nkeys >= 0;
		for (int i = 0; child->valid && i < child->nkeys; i++)
			child->valid = child->keys[i].key.parent != relid;
	}
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

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (OidIsValid(lost_rows))
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("rows of table \"%s\" were deleted by something else than a statement",
								get_rel_name(lost_rows)),
						 errdetail("Only the end of a statement sets deleted_at.")));
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			lost_rows = InvalidOid;
			moved_keys = NULL;
			foreach(cell, retired_plans)
				SPI_freeplan(lfirst(cell));
			list_free(retired_plans);
			retired_plans = NIL;
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subid,
					 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		lost_rows = InvalidOid;
}

/*
 * ta_soft_delete_init
 *		Makes the caches and the setting, registers what keeps them true and what
 *		ends a statement.  Called once, by _PG_init.
 */
void
ta_soft_delete_init(void)
{
	HASHCTL ctl = {0};

	if (CacheMemoryContext == NULL)
		CreateCacheMemoryContext();
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Child);
	ctl.hcxt = CacheMemoryContext;
	children = hash_create("techally referring tables", 32, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(PlanKey);
	ctl.entrysize = sizeof(PlanEntry);
	plans = hash_create("techally soft delete plans", 32, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, name_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(OPEROID, name_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(COLLOID, name_changed, (Datum) 0);
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);

	next_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;

	DefineCustomBoolVariable("techally.hard_delete",
							 "Lets DELETE really delete rows of soft-delete tables.",
							 "For roles that have the privilege TRUNCATE on the table; others get an error.",
							 &hard_delete,
							 false,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);
}

/* The kept plan of this kind, NULL where it must be made. */
static SPIPlanPtr
find_plan(PlanKind kind, Oid relid, Oid other)
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
 * Prepares a statement and keeps its plan until one of the two tables, or of the
 * others, changes.
 * What it replaces may be running further up the stack: it goes when the
 * transaction ends.
 */
static SPIPlanPtr
make_plan_over(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table, List *others,
			   const char *sql, int nargs, Oid *types)
{
	PlanKey		  key;
	PlanEntry	 *entry;
	bool		  found;
	SPIPlanPtr	  plan = SPI_prepare(sql, nargs, types);
	MemoryContext old_context;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));

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
	return plan;
}

static SPIPlanPtr
make_plan(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table,
		  const char *sql, int nargs, Oid *types)
{
	return make_plan_over(kind, relid, other, table, second_table, NIL, sql, nargs, types);
}

static uint64
run_plan(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int rc = SPI_execute_plan(plan, values, nulls, false, 0);

	if (rc < 0)
		elog(ERROR, "unexpected SPI result: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/*
 * The same as a statement that sets or clears deleted_at of rows of this
 * deletion, which nobody has done by hand.
 */
static uint64
run_own_plan(SPIPlanPtr plan, Datum *values, const pg_uuid_t *id, uint64 (*run)(SPIPlanPtr, Datum *, const char *))
{
	const pg_uuid_t *outer = own_deletion;
	uint64			 n = 0;

	own_deletion = id;
	PG_TRY();
	{
		n = run(plan, values, NULL);
	}
	PG_FINALLY();
	{
		own_deletion = outer;
	}
	PG_END_TRY();
	return n;
}

/*
 * Runs a plan for rows that the transaction's snapshot may not show: those that
 * were committed since are found, and to change one is a serialization failure,
 * as when a foreign key cascades.
 */
static uint64
run_plan_on_latest(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int rc;

	if (!IsolationUsesXactSnapshot())
		return run_plan(plan, values, nulls);
	CommandCounterIncrement();
	rc = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(), GetTransactionSnapshot(),
							  false, true, 0);
	if (rc < 0)
		elog(ERROR, "unexpected SPI result: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/* ---------------------------------------------------------------------
 * Tables, columns, owners
 * ---------------------------------------------------------------------
 */

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

static const char *
column_name(Oid relid, AttrNumber attnum)
{
	return quote_identifier(get_attname(relid, attnum, false));
}

/* A column by name, InvalidAttrNumber for none. */
static AttrNumber
column_number(Relation rel, const char *name)
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

static bool
is_soft_delete_relid(Oid relid)
{
	Relation rel = table_open(relid, AccessShareLock);
	bool	 result = ta_is_soft_delete_table(rel);

	table_close(rel, NoLock);
	return result;
}

/* A table and, for a partition, what it is a partition of. */
static Oid
root_of(Oid relid)
{
	List *ancestors;

	if (!get_rel_relispartition(relid))
		return relid;
	ancestors = get_partition_ancestors(relid);
	return ancestors == NIL ? relid : llast_oid(ancestors);
}

/*
 * From here on we are the table's owner, and row security does not apply; see
 * the head of this file for the search_path.
 */
static void
owner_begin(OwnerFrame *frame, Oid relid)
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

static void
owner_end(const OwnerFrame *frame)
{
	SetUserIdAndSecContext(frame->user, frame->sec_context);
	if (frame->guc_level != 0)
		AtEOXact_GUC(true, frame->guc_level);
}

static void
connect_spi(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
finish_spi(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* "(col, col)=(value, value)" of a row, for messages. */
static char *
describe_values(Oid relid, int n, const AttrNumber *columns, TupleTableSlot *slot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '(');
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", get_attname(relid, columns[i], false));
	appendStringInfoString(&buf, ")=(");
	for (int i = 0; i < n; i++)
	{
		bool  isnull;
		Datum value = slot_getattr(slot, columns[i], &isnull);
		Oid	  output;
		bool  is_varlena;

		if (i > 0)
			appendStringInfoString(&buf, ", ");
		if (isnull)
		{
			appendStringInfoString(&buf, "null");
			continue;
		}
		getTypeOutputInfo(TupleDescAttr(slot->tts_tupleDescriptor, columns[i] - 1)->atttypid,
						  &output, &is_varlena);
		appendStringInfoString(&buf, OidOutputFunctionCall(output, value));
	}
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* ---------------------------------------------------------------------
 * Finding the row that a key refers to
 * ---------------------------------------------------------------------
 */

/* How to find the parent's rows: by its index where that is an ordinary one. */
static void
describe_parent(ParentKey *parent)
{
	const TaForeignKey *key = &parent->key;
	Relation			rel = table_open(key->parent, AccessShareLock);
	Relation			index;

	parent->parent_deleted_at = column_number(rel, DELETED_AT);
	for (int i = 0; i < key->nkeys; i++)
		op_input_types(key->operators[i], &parent->left_types[i], &parent->right_types[i]);

	if (OidIsValid(key->index))
	{
		index = index_open(key->index, AccessShareLock);
		/* a key WITHOUT OVERLAPS compares by more than equality */
		parent->usable = index->rd_rel->relam == BTREE_AM_OID || index->rd_rel->relkind == RELKIND_PARTITIONED_INDEX;
		parent->direct = rel->rd_rel->relkind == RELKIND_RELATION && index->rd_index->indisvalid &&
						 index->rd_rel->relam == BTREE_AM_OID &&
						 index->rd_index->indnkeyatts == key->nkeys;
		for (int c = 0; parent->direct && c < key->nkeys; c++)
		{
			int i;

			for (i = 0; i < key->nkeys; i++)
				if (key->parent_columns[i] == index->rd_index->indkey.values[c])
					break;
			parent->direct = i < key->nkeys &&
							 get_op_opfamily_strategy(key->operators[i], index->rd_opfamily[c]) == BTEqualStrategyNumber;
			parent->index_order[c] = i;
		}
		index_close(index, AccessShareLock);
	}
	table_close(rel, AccessShareLock);
}

/*
 * The foreign keys of a table that is open.  The entry stays where it is while
 * no other is asked for, whatever becomes of its validity.
 */
static Child *
child_of(Relation rel)
{
	Oid			  relid = RelationGetRelid(rel);
	bool		  found;
	Child		 *child = hash_search(children, &relid, HASH_ENTER, &found);
	MemoryContext context;
	MemoryContext old_context;
	List		 *keys;
	ListCell	 *cell;
	ParentKey	 *described;
	int			  n = 0;

	if (!found)
	{
		child->valid = false;
		child->context = NULL;
		child->nkeys = 0;
	}
	if (child->valid && child->nkeys >= 0)
		return child;

	/* what invalidates it meanwhile must find it valid; an error leaves it unbuilt */
	child->valid = true;
	child->nkeys = -1;
	context = AllocSetContextCreate(CurrentMemoryContext, "techally referring table", ALLOCSET_SMALL_SIZES);
	old_context = MemoryContextSwitchTo(context);
	keys = ta_foreign_keys_of(rel);
	described = palloc0(sizeof(ParentKey) * Max(list_length(keys), 1));
	foreach(cell, keys)
	{
		described[n].key = *(TaForeignKey *) lfirst(cell);
		describe_parent(&described[n++]);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextSetParent(context, CacheMemoryContext);

	/* building may have made room in the table of entries */
	child = hash_search(children, &relid, HASH_ENTER, &found);
	if (child->context != NULL)
		MemoryContextDelete(child->context);
	child->context = context;
	child->keys = described;
	child->nkeys = n;
	child->deleted_at = ta_is_soft_delete_table(rel) ? column_number(rel, DELETED_AT) : InvalidAttrNumber;
	return child;
}

/* Looks for the row by the parent's index; false where there is none. */
static bool
find_parent_by_index(const ParentKey *parent, Datum *values, bool share, bool *deleted)
{
	const TaForeignKey *key = &parent->key;
	Relation			rel = table_open(key->parent, share ? RowShareLock : AccessShareLock);
	Relation			index = index_open(key->index, AccessShareLock);
	TupleTableSlot	   *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	ScanKeyData			scankeys[INDEX_MAX_KEYS];
	Snapshot			snapshot;
	IndexScanDesc		scan;
	bool				found;

	for (int c = 0; c < key->nkeys; c++)
	{
		int i = parent->index_order[c];

		ScanKeyEntryInitialize(&scankeys[c], 0, c + 1, BTEqualStrategyNumber,
							   parent->right_types[i] == index->rd_opcintype[c] ? InvalidOid : parent->right_types[i],
							   index->rd_indcollation[c], get_opcode(key->operators[i]), values[i]);
	}

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = ta_index_beginscan(rel, index, snapshot, key->nkeys);
	index_rescan(scan, scankeys, key->nkeys, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	if (found && share)
	{
		TupleTableSlot *locked = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
		ItemPointerData tid = slot->tts_tid;
		TM_FailureData	failure;
		bool			isnull = true;

		/* the foreign key's own check has it already, as a rule */
		found = table_tuple_lock(rel, &tid, snapshot, locked, GetCurrentCommandId(false),
								 LockTupleKeyShare, LockWaitBlock,
								 TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS | TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
								 &failure) == TM_Ok;
		if (found && parent->parent_deleted_at != InvalidAttrNumber)
			(void) slot_getattr(locked, parent->parent_deleted_at, &isnull);
		*deleted = !isnull;
		ExecDropSingleTupleTableSlot(locked);
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(rel, NoLock);
	return found;
}

/* The same by a statement, as the parent's owner. */
static bool
find_parent_by_statement(const ParentKey *parent, Oid child, Datum *values, bool share, bool *deleted)
{
	const TaForeignKey *key = &parent->key;
	PlanKind			kind = share ? PLAN_SHARE_PARENT : PLAN_FIND_PARENT;
	OwnerFrame			frame;
	SPIPlanPtr			plan;
	bool				found;
	int					rc;

	connect_spi();
	owner_begin(&frame, key->parent);
	plan = find_plan(kind, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		StringInfoData sql;
		Oid			   types[INDEX_MAX_KEYS];

		initStringInfo(&sql);
		appendStringInfo(&sql, "SELECT %s FROM %s p WHERE ",
						 parent->parent_deleted_at == InvalidAttrNumber ? "false" : "p." DELETED_AT " IS NOT NULL",
						 qualified_name(key->parent));
		for (int i = 0; i < key->nkeys; i++)
		{
			Oid type = get_atttype(key->parent, key->parent_columns[i]);

			types[i] = getBaseType(get_atttype(child, key->child_columns[i]));
			if (i > 0)
				appendStringInfoString(&sql, " AND ");
			generate_operator_clause(&sql, psprintf("p.%s", column_name(key->parent, key->parent_columns[i])), type,
									 key->operators[i], psprintf("$%d", i + 1), types[i]);
		}
		if (share)
			appendStringInfoString(&sql, " FOR KEY SHARE OF p");
		plan = make_plan(kind, key->constraint, InvalidOid, key->parent, key->child, sql.data, key->nkeys, types);
	}
	CommandCounterIncrement();
	rc = SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(), InvalidSnapshot, false, false, 1);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "unexpected SPI result: %s", SPI_result_code_string(rc));
	found = SPI_processed > 0;
	if (found)
	{
		bool isnull;

		*deleted = DatumGetBool(ta_spi_value(0, 1, &isnull));
	}
	owner_end(&frame);
	finish_spi();
	return found;
}

/*
 * Looks for the row that these columns refer to, in its latest version, and with
 * share locks it FOR KEY SHARE.  False where there is none, or where a column is
 * NULL.  *deleted is set with share only.
 */
static bool
find_parent(const ParentKey *parent, Oid child, TupleTableSlot *slot, bool share, bool *is_key, bool *deleted)
{
	Datum values[INDEX_MAX_KEYS];

	*deleted = false;
	*is_key = parent->usable;
	for (int i = 0; *is_key && i < parent->key.nkeys; i++)
	{
		bool isnull;

		values[i] = slot_getattr(slot, parent->key.child_columns[i], &isnull);
		*is_key = !isnull;
	}
	if (!*is_key)
		return false;
	return parent->direct ? find_parent_by_index(parent, values, share, deleted)
						  : find_parent_by_statement(parent, child, values, share, deleted);
}

/* ---------------------------------------------------------------------
 * The rows that a statement has dealt with
 * ---------------------------------------------------------------------
 */

static void
statement_gone(void *arg)
{
	Statement  *statement = arg;
	Statement **link;

	for (link = &statements; *link != NULL; link = &(*link)->next)
	{
		if (*link == statement)
		{
			*link = statement->next;
			break;
		}
	}
	for (RowSet *set = statement->sets; set != NULL; set = set->next)
	{
		if ((set->nrows > 0 || set->nblocks > 0) && IsTransactionState())
			lost_rows = set->relid;
	}
}

/* The set for rows of a table with the same fate, in the statement that runs in context. */
static RowSet *
set_of(MemoryContext context, Oid relid, RowFate fate)
{
	Statement *statement;
	RowSet	  *set;

	for (statement = statements; statement != NULL; statement = statement->next)
	{
		if (statement->context == context)
			break;
	}
	if (statement == NULL)
	{
		statement = MemoryContextAllocZero(context, sizeof(Statement));
		statement->context = context;
		statement->callback.func = statement_gone;
		statement->callback.arg = statement;
		MemoryContextRegisterResetCallback(context, &statement->callback);
		statement->next = statements;
		statements = statement;
	}
	for (set = statement->sets; set != NULL; set = set->next)
	{
		if (set->relid == relid && set->fate == fate)
			return set;
	}
	set = MemoryContextAllocZero(context, sizeof(RowSet));
	set->relid = relid;
	set->fate = fate;
	set->next = statement->sets;
	statement->sets = set;
	return set;
}

static void
note_row(RowSet *set, MemoryContext context, ItemPointer row)
{
	if (set->nrows == set->size)
	{
		if (set->size == MAX_MARKED)
		{
			MemoryContext old_context = MemoryContextSwitchTo(context);

			if (set->file == NULL)
				set->file = BufFileCreateTemp(false);
			BufFileWrite(set->file, set->rows, sizeof(ItemPointerData) * set->nrows);
			MemoryContextSwitchTo(old_context);
			set->nblocks++;
			set->nrows = 0;
		}
		else
		{
			set->size = set->size == 0 ? 16 : set->size * 4;
			if (set->rows == NULL)
				set->rows = MemoryContextAlloc(context, sizeof(ItemPointerData) * set->size);
			else
				set->rows = repalloc(set->rows, sizeof(ItemPointerData) * set->size);
		}
	}
	set->rows[set->nrows++] = *row;
}

/* ---------------------------------------------------------------------
 * Statements over rows and their dependents
 * ---------------------------------------------------------------------
 */

/* Keys of rows that dependents may refer to: an array for each column of a key. */
typedef struct KeyArrays
{
	Datum values[INDEX_MAX_KEYS];
	int	  nrows;
} KeyArrays;

static int
compare_rows(const void *a, const void *b)
{
	return ItemPointerCompare((ItemPointer) a, (ItemPointer) b);
}

/* Sorts row addresses and drops duplicates; returns how many are left. */
static int
unique_rows(ItemPointerData *rows, int nrows)
{
	int n = 0;

	qsort(rows, nrows, sizeof(ItemPointerData), compare_rows);
	for (int i = 0; i < nrows; i++)
	{
		if (n == 0 || !ItemPointerEquals(&rows[n - 1], &rows[i]))
			rows[n++] = rows[i];
	}
	return n;
}

/* A tid[], whose elements follow each other without a gap. */
static Datum
row_array(const ItemPointerData *rows, int nrows)
{
	Size	   size = ARR_OVERHEAD_NONULLS(1) + sizeof(ItemPointerData) * nrows;
	ArrayType *array = palloc0(size);

	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->dataoffset = 0;
	array->elemtype = TIDOID;
	ARR_DIMS(array)
	[0] = nrows;
	ARR_LBOUND(array)
	[0] = 1;
	memcpy((char *) array + ARR_OVERHEAD_NONULLS(1), rows, sizeof(ItemPointerData) * nrows);
	return PointerGetDatum(array);
}

/* Those of the foreign keys to a table that cascade. */
static List *
cascading(List *keys)
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

/* " RETURNING t.a, t.b, …": the columns that these foreign keys refer to, key after key. */
static void
append_returning(StringInfo sql, const char *alias, List *keys)
{
	ListCell   *cell;
	const char *separator = " RETURNING ";

	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);

		for (int i = 0; i < key->nkeys; i++)
		{
			appendStringInfo(sql, "%s%s.%s", separator, alias,
							 column_name(key->parent, key->parent_columns[i]));
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

/* Makes arrays of the columns from first_column on that the last statement has returned. */
static void
take_keys(const TaForeignKey *key, SPITupleTable *table, uint64 nrows, int first_column, KeyArrays *arrays)
{
	Datum *values = palloc(sizeof(Datum) * Max(nrows, 1));
	bool  *nulls = palloc(sizeof(bool) * Max(nrows, 1));
	int	   dims[1] = {(int) nrows};
	int	   lower_bounds[1] = {1};

	for (int i = 0; i < key->nkeys; i++)
	{
		Oid	  type = key_type(key, i);
		int16 typlen;
		bool  typbyval;
		char  typalign;

		get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
		for (uint64 r = 0; r < nrows; r++)
			values[r] = SPI_getbinval(table->vals[r], table->tupdesc, first_column + i, &nulls[r]);
		arrays->values[i] = PointerGetDatum(construct_md_array(values, nulls, 1, dims, lower_bounds, type,
															   typlen, typbyval, typalign));
	}
	arrays->nrows = (int) nrows;
	pfree(values);
	pfree(nulls);
}

/* "ROWS FROM (unnest($1), …) AS k(k1, …)" and fills in the types of the arrays. */
static void
append_keys_from(StringInfo sql, const TaForeignKey *key, int first_parameter, Oid *types)
{
	appendStringInfoString(sql, "ROWS FROM (");
	for (int i = 0; i < key->nkeys; i++)
	{
		types[i] = get_array_type(key_type(key, i));
		if (!OidIsValid(types[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("could not find array type for data type %s", format_type_be(key_type(key, i)))));
		appendStringInfo(sql, "%spg_catalog.unnest($%d)", i > 0 ? ", " : "", first_parameter + i);
	}
	appendStringInfoString(sql, ") AS k(");
	for (int i = 0; i < key->nkeys; i++)
		appendStringInfo(sql, "%sk%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoString(sql, ")");
}

/* "parent.a = child.b AND …" of a foreign key; parent NULL: the keys k1, … stand for it. */
static void
append_join(StringInfo sql, const TaForeignKey *key, const char *parent, const char *child)
{
	for (int i = 0; i < key->nkeys; i++)
	{
		Oid	  parent_type = get_atttype(key->parent, key->parent_columns[i]);
		char *left;

		if (parent != NULL)
			left = psprintf("%s.%s", parent, column_name(key->parent, key->parent_columns[i]));
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
								 psprintf("%s.%s", child, column_name(key->child, key->child_columns[i])),
								 get_atttype(key->child, key->child_columns[i]));
	}
}

/* ---------------------------------------------------------------------
 * Deleting
 * ---------------------------------------------------------------------
 */

static void delete_dependents(const TaForeignKey *key, const KeyArrays *arrays, Datum id);

static Datum
new_deletion_id(void)
{
	return DirectFunctionCall1(gen_random_uuid, (Datum) 0);
}

/* Goes on to the dependents by each of the keys, whose columns were returned. */
static void
delete_all_dependents(List *keys, uint64 nrows, Datum id)
{
	SPITupleTable *table = SPI_tuptable;
	int			   column = 1;
	ListCell	  *cell;

	if (nrows == 0 || keys == NIL)
		return;
	check_stack_depth();
	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);
		KeyArrays	  arrays;

		take_keys(key, table, nrows, column, &arrays);
		column += key->nkeys;
		delete_dependents(key, &arrays, id);
	}
	SPI_freetuptable(table);
}

/*
 * Deletes the living rows that refer to these keys, and theirs in turn.  Raises
 * 55000, naming the table, where there are such rows in one that cannot be
 * deleted from softly.
 */
static void
delete_dependents(const TaForeignKey *key, const KeyArrays *arrays, Datum id)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	bool		   softly = ta_is_soft_delete_table(child);
	bool		   has_id = column_number(child, DELETION_ID) != InvalidAttrNumber;
	List		  *keys = softly ? ta_foreign_keys_to(child) : NIL;
	Datum		   values[INDEX_MAX_KEYS + 2];
	Oid			   types[INDEX_MAX_KEYS + 2];
	OwnerFrame	   frame;
	SPIPlanPtr	   plan;
	StringInfoData sql;
	uint64		   n;

	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[key->nkeys + 1] = id;
	initStringInfo(&sql);
	owner_begin(&frame, key->child);

	if (!softly)
	{
		plan = find_plan(PLAN_FIND_DEPENDENTS, key->constraint, InvalidOid);
		if (plan == NULL)
		{
			appendStringInfo(&sql, "SELECT 1 FROM %s c, ", qualified_name(key->child));
			append_keys_from(&sql, key, 1, types);
			appendStringInfoString(&sql, " WHERE ");
			append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " LIMIT 1");
			plan = make_plan(PLAN_FIND_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
							 sql.data, key->nkeys, types);
		}
		if (run_plan_on_latest(plan, values, NULL) > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("rows of table \"%s\" cannot be deleted softly while rows of table \"%s\" go with them",
							get_rel_name(key->parent), RelationGetRelationName(child)),
					 errdetail("Foreign key \"%s\" is ON DELETE CASCADE, and \"%s\" is no soft-delete table.",
							   ta_foreign_key_name(key), RelationGetRelationName(child)),
					 errhint("Run techally.enable_soft_delete for \"%s\", or give the foreign key another action.",
							 RelationGetRelationName(child)),
					 errtableconstraint(child, ta_foreign_key_name(key))));
		owner_end(&frame);
		table_close(child, NoLock);
		return;
	}

	/* others may be about to refer to these rows */
	if (keys != NIL)
	{
		plan = find_plan(PLAN_LOCK_DEPENDENTS, key->constraint, InvalidOid);
		if (plan == NULL)
		{
			appendStringInfo(&sql, "SELECT 1 FROM %s c, ", qualified_name(key->child));
			append_keys_from(&sql, key, 1, types);
			appendStringInfoString(&sql, " WHERE ");
			append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " AND c." DELETED_AT " IS NULL FOR UPDATE OF c");
			plan = make_plan(PLAN_LOCK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
							 sql.data, key->nkeys, types);
		}
		n = run_plan_on_latest(plan, values, NULL);
		SPI_freetuptable(SPI_tuptable);
		if (n == 0)
		{
			owner_end(&frame);
			table_close(child, NoLock);
			return;
		}
	}

	keys = cascading(keys);
	plan = find_plan(PLAN_MARK_DEPENDENTS, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		resetStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE %s c SET " DELETED_AT " = $%d", qualified_name(key->child), key->nkeys + 1);
		types[key->nkeys] = TIMESTAMPTZOID;
		types[key->nkeys + 1] = UUIDOID;
		if (has_id)
			appendStringInfo(&sql, ", " DELETION_ID " = $%d", key->nkeys + 2);
		appendStringInfoString(&sql, " FROM ");
		append_keys_from(&sql, key, 1, types);
		appendStringInfoString(&sql, " WHERE ");
		append_join(&sql, key, NULL, "c");
		appendStringInfoString(&sql, " AND c." DELETED_AT " IS NULL");
		append_returning(&sql, "c", keys);
		plan = make_plan(PLAN_MARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
						 sql.data, key->nkeys + 2, types);
	}
	n = run_own_plan(plan, values, DatumGetUUIDP(id), run_plan_on_latest);
	owner_end(&frame);
	delete_all_dependents(keys, n, id);
	table_close(child, NoLock);
}

/*
 * Some rows were not there to be marked.  One that a trigger has dropped stays
 * as it is; one that a trigger of the DELETE has changed meanwhile is an error,
 * as it is with PostgreSQL's own DELETE.
 */
static void
check_unmarked(Relation rel, AttrNumber deleted_at, const ItemPointerData *rows, int nrows)
{
	Snapshot		snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	TableScanDesc	scan = table_beginscan_tid(rel, snapshot);

	for (int i = 0; i < nrows; i++)
	{
		ItemPointerData latest = rows[i];
		bool			isnull;

		CHECK_FOR_INTERRUPTS();
		table_tuple_get_latest_tid(scan, &latest);
		if (ItemPointerEquals(&latest, (ItemPointer) &rows[i]) ||
			!table_tuple_fetch_row_version(rel, &latest, snapshot, slot))
			continue;
		(void) slot_getattr(slot, deleted_at, &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("tuple to be deleted was already modified by an operation triggered by the current command"),
					 errhint("Consider using an AFTER trigger instead of a BEFORE trigger to propagate changes to other rows.")));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
}

/* The latest versions of rows that triggers may have changed since. */
static void
latest_rows(Relation rel, ItemPointerData *rows, int nrows)
{
	Snapshot	  snapshot;
	TableScanDesc scan;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan_tid(rel, snapshot);
	for (int i = 0; i < nrows; i++)
	{
		CHECK_FOR_INTERRUPTS();
		table_tuple_get_latest_tid(scan, &rows[i]);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
}

static void
raise_no_column(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of relation \"%s\" does not exist", DELETED_AT, RelationGetRelationName(rel)),
			 errhint("Run techally.enable_soft_delete again, or techally.disable_soft_delete.")));
}

/*
 * Deletes rows that the caller has locked FOR UPDATE, and their dependents.
 * Returns how many were marked.  The array is sorted in place.
 */
static uint64
delete_rows(Relation rel, ItemPointerData *rows, int nrows, Datum id)
{
	Oid		   relid = RelationGetRelid(rel);
	AttrNumber deleted_at = column_number(rel, DELETED_AT);
	List	  *keys = cascading(ta_foreign_keys_to(rel));
	int		   step = keys == NIL ? MAX_MARKED : MAX_MARKED_PARENTS;
	uint64	   marked = 0;

	if (deleted_at == InvalidAttrNumber)
		raise_no_column(rel);
	nrows = unique_rows(rows, nrows);
	for (int first = 0; first < nrows; first += step)
	{
		int		   n = Min(step, nrows - first);
		Datum	   values[3];
		OwnerFrame frame;
		SPIPlanPtr plan;
		uint64	   done;

		connect_spi();
		owner_begin(&frame, relid);
		plan = find_plan(PLAN_MARK, relid, InvalidOid);
		if (plan == NULL)
		{
			StringInfoData sql;
			Oid			   types[3] = {TIDARRAYOID, TIMESTAMPTZOID, UUIDOID};

			initStringInfo(&sql);
			appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETED_AT " = $2%s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
							 qualified_name(relid),
							 column_number(rel, DELETION_ID) != InvalidAttrNumber ? ", " DELETION_ID " = $3" : "");
			append_returning(&sql, "t", keys);
			plan = make_plan(PLAN_MARK, relid, InvalidOid, relid, InvalidOid, sql.data, 3, types);
		}
		values[0] = row_array(rows + first, n);
		values[1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
		values[2] = id;
		done = run_own_plan(plan, values, DatumGetUUIDP(id), run_plan);
		if (done < (uint64) n)
			check_unmarked(rel, deleted_at, rows + first, n);
		owner_end(&frame);
		delete_all_dependents(keys, done, id);
		finish_spi();
		marked += done;
	}
	return marked;
}

/*
 * Somebody has set deleted_at.  The row is locked so that nobody can come to
 * refer to it, and its dependents follow.
 */
static void
delete_rows_by_hand(Relation rel, ItemPointerData *rows, int nrows, Datum id)
{
	Oid	  relid = RelationGetRelid(rel);
	List *keys = cascading(ta_foreign_keys_to(rel));

	nrows = unique_rows(rows, nrows);
	for (int first = 0; first < nrows; first += MAX_MARKED_PARENTS)
	{
		int		   n = Min(MAX_MARKED_PARENTS, nrows - first);
		Datum	   values[2];
		OwnerFrame frame;
		SPIPlanPtr plan;
		uint64	   done;

		connect_spi();
		owner_begin(&frame, relid);
		values[0] = row_array(rows + first, n);
		values[1] = id;
		plan = find_plan(PLAN_LOCK, relid, InvalidOid);
		if (plan == NULL)
		{
			Oid types[1] = {TIDARRAYOID};

			plan = make_plan(PLAN_LOCK, relid, InvalidOid, relid, InvalidOid,
							 psprintf("SELECT 1 FROM ONLY %s t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1) FOR UPDATE",
									  qualified_name(relid)),
							 1, types);
		}
		if (run_plan(plan, values, NULL) < (uint64) n)
		{
			latest_rows(rel, rows + first, n);
			values[0] = row_array(rows + first, n);
			(void) run_plan(plan, values, NULL);
		}
		done = 0;
		if (keys != NIL)
		{
			plan = find_plan(PLAN_STAMP, relid, InvalidOid);
			if (plan == NULL)
			{
				StringInfoData sql;
				Oid			   types[2] = {TIDARRAYOID, UUIDOID};

				initStringInfo(&sql);
				appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETION_ID " = $2"
									   " WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1) AND t." DELETED_AT " IS NOT NULL",
								 qualified_name(relid));
				append_returning(&sql, "t", keys);
				plan = make_plan(PLAN_STAMP, relid, InvalidOid, relid, InvalidOid, sql.data, 2, types);
			}
			done = run_plan(plan, values, NULL);
		}
		owner_end(&frame);
		delete_all_dependents(keys, done, id);
		finish_spi();
	}
}

/* ---------------------------------------------------------------------
 * Restoring
 * ---------------------------------------------------------------------
 */

static void
raise_deleted_parent(Relation child, const ParentKey *parent, TupleTableSlot *slot, bool restoring)
{
	const char *parent_name = get_rel_name(parent->key.parent);
	bool		may_see = pg_class_aclcheck(RelationGetRelid(child), GetUserId(), ACL_SELECT) == ACLCHECK_OK &&
				   check_enable_rls(RelationGetRelid(child), InvalidOid, true) != RLS_ENABLED;

	ereport(ERROR,
			(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
			 restoring ? errmsg("row of table \"%s\" cannot be restored while the row of \"%s\" that it belongs to is deleted",
								RelationGetRelationName(child), parent_name)
					   : errmsg("insert or update on table \"%s\" refers to a deleted row of table \"%s\"",
								RelationGetRelationName(child), parent_name),
			 may_see ? errdetail("Key %s is deleted in table \"%s\".",
								 describe_values(RelationGetRelid(child), parent->key.nkeys,
												 parent->key.child_columns, slot),
								 parent_name)
					 : errdetail("The key is deleted in table \"%s\".", parent_name),
			 errtableconstraint(child, ta_foreign_key_name(&parent->key))));
}

/* No living row under a deleted one: the parents that cascade must live, and stay so. */
static void
check_parents_live(Relation rel, TupleTableSlot *slot)
{
	Child *child = child_of(rel);

	for (int i = 0; i < child->nkeys; i++)
	{
		ParentKey parent = child->keys[i];
		bool	  is_key;
		bool	  deleted;

		if (parent.key.on_delete != FKCONSTR_ACTION_CASCADE || parent.parent_deleted_at == InvalidAttrNumber ||
			!is_soft_delete_relid(parent.key.parent))
			continue;
		if (find_parent(&parent, RelationGetRelid(rel), slot, true, &is_key, &deleted) && deleted)
			raise_deleted_parent(rel, &parent, slot, true);
		child = child_of(rel);
	}
}

static void restore_dependents(const TaForeignKey *key, const KeyArrays *arrays, Datum id);

static void
restore_all_dependents(List *keys, uint64 nrows, Datum id)
{
	SPITupleTable *table = SPI_tuptable;
	int			   column = 1;
	ListCell	  *cell;

	if (nrows == 0 || keys == NIL)
		return;
	check_stack_depth();
	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);
		KeyArrays	  arrays;

		take_keys(key, table, nrows, column, &arrays);
		column += key->nkeys;
		restore_dependents(key, &arrays, id);
	}
	SPI_freetuptable(table);
}

/*
 * Restores the rows that refer to these keys and went with the deletion id, but
 * for those that have another parent that is still deleted: they come back with
 * that one if it went with the same deletion.
 */
static void
restore_dependents(const TaForeignKey *key, const KeyArrays *arrays, Datum id)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	Datum		   values[INDEX_MAX_KEYS + 1];
	Oid			   types[INDEX_MAX_KEYS + 1];
	List		  *coparents = NIL;
	List		  *keys;
	ListCell	  *cell;
	OwnerFrame	   frame;
	SPIPlanPtr	   plan;
	StringInfoData sql;
	uint64		   n;

	if (!ta_is_soft_delete_table(child) || column_number(child, DELETION_ID) == InvalidAttrNumber)
	{
		table_close(child, NoLock);
		return;
	}
	foreach(cell, ta_foreign_keys_of(child))
	{
		TaForeignKey *other = lfirst(cell);

		if (other->constraint != key->constraint && other->on_delete == FKCONSTR_ACTION_CASCADE &&
			is_soft_delete_relid(other->parent))
			coparents = lappend(coparents, other);
	}
	keys = cascading(ta_foreign_keys_to(child));
	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = id;
	types[key->nkeys] = UUIDOID;
	initStringInfo(&sql);
	owner_begin(&frame, key->child);

	/* whoever is deleting another parent must be done */
	foreach(cell, coparents)
	{
		TaForeignKey *other = lfirst(cell);

		plan = find_plan(PLAN_LOCK_COPARENTS, key->constraint, other->constraint);
		if (plan == NULL)
		{
			resetStringInfo(&sql);
			appendStringInfo(&sql, "SELECT 1 FROM %s c, %s q, ", qualified_name(key->child), qualified_name(other->parent));
			append_keys_from(&sql, key, 1, types);
			appendStringInfoString(&sql, " WHERE ");
			append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " AND ");
			append_join(&sql, other, "q", "c");
			appendStringInfo(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) $%d"
								   " AND c." DELETED_AT " IS NOT NULL FOR KEY SHARE OF q",
							 key->nkeys + 1);
			plan = make_plan(PLAN_LOCK_COPARENTS, key->constraint, other->constraint, key->child, other->parent,
							 sql.data, key->nkeys + 1, types);
		}
		(void) run_plan_on_latest(plan, values, NULL);
		SPI_freetuptable(SPI_tuptable);
	}

	plan = find_plan(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		List *others = NIL;

		resetStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE %s c SET " DELETED_AT " = NULL, " DELETION_ID " = NULL FROM ", qualified_name(key->child));
		append_keys_from(&sql, key, 1, types);
		appendStringInfoString(&sql, " WHERE ");
		append_join(&sql, key, NULL, "c");
		appendStringInfo(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) $%d AND c." DELETED_AT " IS NOT NULL",
						 key->nkeys + 1);
		foreach(cell, coparents)
		{
			TaForeignKey *other = lfirst(cell);

			others = lappend_oid(others, other->parent);
			appendStringInfo(&sql, " AND NOT EXISTS (SELECT FROM %s q WHERE ", qualified_name(other->parent));
			append_join(&sql, other, "q", "c");
			appendStringInfoString(&sql, " AND q." DELETED_AT " IS NOT NULL)");
		}
		append_returning(&sql, "c", keys);
		plan = make_plan_over(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent, others,
							  sql.data, key->nkeys + 1, types);
	}
	n = run_own_plan(plan, values, DatumGetUUIDP(id), run_plan_on_latest);
	owner_end(&frame);
	restore_all_dependents(keys, n, id);
	table_close(child, NoLock);
}

/*
 * Restores a row that the caller has locked, or that somebody has restored by
 * hand, and what went with it: with the deletion that the row names, or with this
 * one, where its id was cleared by hand, too.  False where a trigger has dropped
 * the change.
 */
static bool
restore_row(Relation rel, ItemPointer row, bool by_hand, const pg_uuid_t *cleared)
{
	Oid				relid = RelationGetRelid(rel);
	AttrNumber		deletion_id = column_number(rel, DELETION_ID);
	List		   *keys = cascading(ta_foreign_keys_to(rel));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	Snapshot		snapshot;
	pg_uuid_t		id;
	bool			isnull = true;
	bool			found;
	Datum			values[1];
	OwnerFrame		frame;
	SPIPlanPtr		plan;
	uint64			done;

	/* whoever restored it by hand, a trigger may have changed it since */
	if (by_hand)
		latest_rows(rel, row, 1);
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = table_tuple_fetch_row_version(rel, row, snapshot, slot);
	UnregisterSnapshot(snapshot);
	if (!found && !by_hand)
		elog(ERROR, "locked row of \"%s\" has vanished", RelationGetRelationName(rel));
	if (found && by_hand)
	{
		(void) slot_getattr(slot, column_number(rel, DELETED_AT), &isnull);
		found = isnull;
		isnull = true;
	}
	if (!found)
	{
		ExecDropSingleTupleTableSlot(slot);
		return false;
	}
	if (cleared != NULL)
	{
		id = *cleared;
		isnull = false;
	}
	else if (deletion_id != InvalidAttrNumber)
	{
		Datum value = slot_getattr(slot, deletion_id, &isnull);

		if (!isnull)
			id = *DatumGetUUIDP(value);
	}

	connect_spi();
	owner_begin(&frame, relid);
	plan = find_plan(PLAN_UNMARK, relid, InvalidOid);
	if (plan == NULL)
	{
		StringInfoData sql;
		Oid			   types[1] = {TIDARRAYOID};

		initStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETED_AT " = NULL%s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
						 qualified_name(relid), deletion_id != InvalidAttrNumber ? ", " DELETION_ID " = NULL" : "");
		append_returning(&sql, "t", keys);
		plan = make_plan(PLAN_UNMARK, relid, InvalidOid, relid, InvalidOid, sql.data, 1, types);
	}
	values[0] = row_array(row, 1);
	done = run_own_plan(plan, values, isnull ? NULL : &id, run_plan);
	owner_end(&frame);
	if (!isnull)
		restore_all_dependents(keys, done, UUIDPGetDatum(&id));
	finish_spi();

	/* now, for in a circle they may have come back just so */
	check_parents_live(rel, slot);
	ExecDropSingleTupleTableSlot(slot);
	return done > 0;
}

/* ---------------------------------------------------------------------
 * The end of a statement
 * ---------------------------------------------------------------------
 */

static void
process_rows(RowSet *set, ItemPointerData *rows, int nrows, Datum id)
{
	Relation rel = table_open(set->relid, RowExclusiveLock);

	switch (set->fate)
	{
		case ROWS_DELETED:
			(void) delete_rows(rel, rows, nrows, id);
			break;
		case ROWS_DELETED_BY_HAND:
			delete_rows_by_hand(rel, rows, nrows, id);
			break;
		case ROWS_RESTORED_BY_HAND:
			for (int i = 0; i < nrows; i++)
				(void) restore_row(rel, &rows[i], true, NULL);
			break;
	}
	table_close(rel, NoLock);
}

/* Does what is left to be done for a set; it is empty afterwards. */
static void
process_set(RowSet *set, Datum id)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "techally soft delete", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BufFile		 *file = set->file;
	int			  nblocks = set->nblocks;
	int			  nrows = set->nrows;

	set->file = NULL;
	set->nblocks = 0;
	set->nrows = 0;
	if (nrows > 0)
		process_rows(set, set->rows, nrows, id);
	for (int block = 0; block < nblocks; block++)
	{
		Size size = sizeof(ItemPointerData) * MAX_MARKED;

		MemoryContextReset(context);
		if (block == 0 && BufFileSeek(file, 0, 0, SEEK_SET) != 0)
			elog(ERROR, "could not rewind temporary file");
		if (BufFileRead(file, set->rows, size) != size)
			elog(ERROR, "could not read from temporary file");
		process_rows(set, set->rows, MAX_MARKED, id);
	}
	MemoryContextSwitchTo(old_context);
	if (file != NULL)
		BufFileClose(file);
	MemoryContextDelete(context);
}

static void
statement_finished(MemoryContext context)
{
	Statement *statement;
	Datum	   id = (Datum) 0;

	for (statement = statements; statement != NULL; statement = statement->next)
	{
		if (statement->context == context)
			break;
	}
	if (statement == NULL)
		return;
	for (RowSet *set = statement->sets; set != NULL; set = set->next)
	{
		if (set->nrows == 0 && set->nblocks == 0)
			continue;
		if (id == (Datum) 0)
			id = new_deletion_id();
		process_set(set, id);
	}
}

/* Hook: a statement has run, its AFTER triggers too. */
static void
executor_finish(QueryDesc *query)
{
	if (next_executor_finish)
		next_executor_finish(query);
	else
		standard_ExecutorFinish(query);
	if (statements != NULL)
		statement_finished(query->estate->es_query_cxt);
}

/* ---------------------------------------------------------------------
 * Triggers
 * ---------------------------------------------------------------------
 */

/* 42501 for a role that may not really delete. */
static void
check_hard_delete(Oid relid)
{
	List	 *ancestors = get_rel_relispartition(relid) ? get_partition_ancestors(relid) : NIL;
	ListCell *cell;

	if (pg_class_aclcheck(relid, GetUserId(), ACL_TRUNCATE) == ACLCHECK_OK)
		return;
	foreach(cell, ancestors)
	{
		if (pg_class_aclcheck(lfirst_oid(cell), GetUserId(), ACL_TRUNCATE) == ACLCHECK_OK)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to really delete rows of table \"%s\"", get_rel_name(root_of(relid))),
			 errdetail("Setting \"%s\" is on, and the role lacks the privilege TRUNCATE.", "techally.hard_delete")));
}

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/* Whether a parent by a foreign key that cascades is gone. */
static bool
is_orphaned(Relation rel, TupleTableSlot *slot)
{
	Child *child = child_of(rel);

	for (int i = 0; i < child->nkeys; i++)
	{
		bool is_key;
		bool deleted;

		if (child->keys[i].key.on_delete == FKCONSTR_ACTION_CASCADE &&
			!find_parent(&child->keys[i], RelationGetRelid(rel), slot, false, &is_key, &deleted) && is_key)
			return true;
	}
	return false;
}

/* Whether the statement that runs in this context has just begun to move this row. */
static bool
is_moving(MemoryContext statement, Oid relid, ItemPointer row)
{
	for (MovingRow *moving = moving_rows; moving != NULL; moving = moving->next)
	{
		if (moving->statement == statement && moving->relid == relid &&
			ItemPointerIsValid(&moving->row) && ItemPointerEquals(&moving->row, row))
		{
			ItemPointerSetInvalid(&moving->row);
			return true;
		}
	}
	return false;
}

/*
 * soft_delete_row() → trigger
 *		BEFORE DELETE of a row: drops the deletion and has the end of the statement
 *		set deleted_at, unless the row must really go (see the head of this file).
 *
 * A row that is deleted already stays as it is.  Raises 42703 where the table
 * has no deleted_at any more, 0A000 for a foreign table, 42501 where techally.hard_delete is on for a role
 * that lacks the privilege TRUNCATE on the table.
 */
PG_FUNCTION_INFO_V1(ta_soft_delete_row);
Datum
ta_soft_delete_row(PG_FUNCTION_ARGS)
{
	TriggerData	 *trigdata = ta_trigger_data(fcinfo, TA_DELETE_FUNCTION,
											 TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_DELETE);
	Relation	  rel = trigdata->tg_relation;
	HeapTuple	  tuple = trigdata->tg_trigtuple;
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	DeleteState	 *state = fcinfo->flinfo->fn_extra;
	bool		  isnull;

	if (state == NULL)
	{
		if (rel->rd_rel->relkind != RELKIND_RELATION)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("rows of foreign table \"%s\" cannot be deleted softly", RelationGetRelationName(rel))));
		state = MemoryContextAllocZero(context, sizeof(DeleteState));
		state->deleted_at = column_number(rel, DELETED_AT);
		state->is_partition = rel->rd_rel->relispartition;
		fcinfo->flinfo->fn_extra = state;
	}
	if (ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(tuple);
	if (state->is_partition && is_moving(context, RelationGetRelid(rel), &tuple->t_self))
		return PointerGetDatum(tuple);
	if (hard_delete)
	{
		check_hard_delete(RelationGetRelid(rel));
		return PointerGetDatum(tuple);
	}
	/* a foreign key's action is a statement inside a trigger */
	if (trigger_depth() > 1 && is_orphaned(rel, trigdata->tg_trigslot))
		return PointerGetDatum(tuple);
	if (state->deleted_at == InvalidAttrNumber)
		raise_no_column(rel);
	(void) slot_getattr(trigdata->tg_trigslot, state->deleted_at, &isnull);
	if (!isnull)
		return PointerGetDatum(NULL);

	if (IsLogicalWorker())
	{
		/* it has no statements */
		ItemPointerData row = tuple->t_self;

		CommandCounterIncrement();
		(void) delete_rows(rel, &row, 1, new_deletion_id());
		return PointerGetDatum(NULL);
	}
	if (state->set == NULL)
		state->set = set_of(context, RelationGetRelid(rel), ROWS_DELETED);
	note_row(state->set, context, &tuple->t_self);
	return PointerGetDatum(NULL);
}

static void
moving_row_gone(void *arg)
{
	MovingRow **link;

	for (link = &moving_rows; *link != arg; link = &(*link)->next)
		;
	*link = (*link)->next;
}

/*
 * note_row_move() → trigger
 *		BEFORE UPDATE of a row of a partition: should its deletion follow in the
 *		same statement, then because it moves to another partition.
 */
PG_FUNCTION_INFO_V1(ta_note_row_move);
Datum
ta_note_row_move(PG_FUNCTION_ARGS)
{
	TriggerData	 *trigdata = ta_trigger_data(fcinfo, TA_MOVE_FUNCTION,
											 TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_UPDATE);
	MemoryContext context = fcinfo->flinfo->fn_mcxt;

	MovingRow *moving = fcinfo->flinfo->fn_extra;

	if (moving == NULL)
	{
		moving = MemoryContextAllocZero(context, sizeof(MovingRow));
		moving->statement = context;
		moving->relid = RelationGetRelid(trigdata->tg_relation);
		moving->callback.func = moving_row_gone;
		moving->callback.arg = moving;
		MemoryContextRegisterResetCallback(context, &moving->callback);
		moving->next = moving_rows;
		moving_rows = moving;
		fcinfo->flinfo->fn_extra = moving;
	}
	moving->row = trigdata->tg_trigtuple->t_self;
	return PointerGetDatum(trigdata->tg_newtuple);
}

/*
 * deleted_at_changed() → trigger
 *		AFTER UPDATE OF deleted_at of a row, where it was set or cleared without us:
 *		the end of the statement sees to the row's dependents.
 */
PG_FUNCTION_INFO_V1(ta_deleted_at_changed);
Datum
ta_deleted_at_changed(PG_FUNCTION_ARGS)
{
	TriggerData	 *trigdata = ta_trigger_data(fcinfo, TA_CHANGE_FUNCTION,
											 TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE);
	Relation	  rel = trigdata->tg_relation;
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	ChangeState	 *state = fcinfo->flinfo->fn_extra;
	bool		  was_null;
	bool		  isnull;

	if (state == NULL)
	{
		List	 *keys = ta_foreign_keys_to(rel);
		ListCell *cell;

		state = MemoryContextAllocZero(context, sizeof(ChangeState));
		state->deleted_at = column_number(rel, DELETED_AT);
		if (state->deleted_at == InvalidAttrNumber)
			raise_no_column(rel);
		state->deletion_id = column_number(rel, DELETION_ID);
		state->see_deleted = keys != NIL;
		state->see_restored = cascading(keys) != NIL;
		foreach(cell, ta_foreign_keys_of(rel))
			state->see_restored |= ((TaForeignKey *) lfirst(cell))->on_delete == FKCONSTR_ACTION_CASCADE;
		fcinfo->flinfo->fn_extra = state;
	}
	(void) slot_getattr(trigdata->tg_trigslot, state->deleted_at, &was_null);
	(void) slot_getattr(trigdata->tg_newslot, state->deleted_at, &isnull);
	if (was_null == isnull || !(isnull ? state->see_restored : state->see_deleted) ||
		ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(NULL);

	/* where the id is gone, nothing but this tells it */
	if (isnull && state->deletion_id != InvalidAttrNumber)
	{
		Datum id = slot_getattr(trigdata->tg_trigslot, state->deletion_id, &was_null);

		(void) slot_getattr(trigdata->tg_newslot, state->deletion_id, &isnull);
		if (!was_null && isnull)
		{
			ItemPointerData row = trigdata->tg_newtuple->t_self;

			(void) restore_row(rel, &row, true, DatumGetUUIDP(id));
			return PointerGetDatum(NULL);
		}
		isnull = true;
	}
	note_row(set_of(context, RelationGetRelid(rel), isnull ? ROWS_RESTORED_BY_HAND : ROWS_DELETED_BY_HAND),
			 context, &trigdata->tg_newtuple->t_self);
	return PointerGetDatum(NULL);
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
	for (int i = 0; i < 2; i++)
	{
		if (own_deletion != NULL && !PG_ARGISNULL(i) &&
			memcmp(PG_GETARG_UUID_P(i), own_deletion, sizeof(pg_uuid_t)) == 0)
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}

/* Whether all columns of a key are the same in both, bit by bit. */
static bool
same_key(const TaForeignKey *key, TupleDesc desc, TupleTableSlot *a, TupleTableSlot *b)
{
	for (int i = 0; i < key->nkeys; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, key->child_columns[i] - 1);
		bool			  a_null;
		bool			  b_null;
		Datum			  a_value = slot_getattr(a, key->child_columns[i], &a_null);
		Datum			  b_value = slot_getattr(b, key->child_columns[i], &b_null);

		if (a_null != b_null ||
			(!a_null && !datum_image_eq(a_value, b_value, attribute->attbyval, attribute->attlen)))
			return false;
	}
	return true;
}

/* A row leaves its partition for another: keep what it refers to. */
static void
remember_moved_keys(Relation rel, Child *child, Oid parent, HeapTuple tuple, TupleTableSlot *slot)
{
	Oid			  root = root_of(RelationGetRelid(rel));
	CommandId	  cid = HeapTupleHeaderGetCmax(tuple->t_data);
	MemoryContext old_context = MemoryContextSwitchTo(TopTransactionContext);
	MovedKey	 *moved = palloc0(sizeof(MovedKey));
	int			  size = child->nkeys * INDEX_MAX_KEYS;
	bool		  isnull = true;

	moved->root = root;
	moved->parent = parent;
	if (child->deleted_at != InvalidAttrNumber)
		(void) slot_getattr(slot, child->deleted_at, &isnull);
	moved->was_deleted = !isnull;
	moved->cid = cid;
	moved->names = palloc0(sizeof(char *) * size);
	moved->values = palloc0(sizeof(Datum) * size);
	moved->nulls = palloc0(sizeof(bool) * size);
	moved->byval = palloc0(sizeof(bool) * size);
	moved->lengths = palloc0(sizeof(int16) * size);
	for (int k = 0; k < child->nkeys; k++)
	{
		const TaForeignKey *key = &child->keys[k].key;

		for (int i = 0; key->parent == parent && i < key->nkeys; i++)
		{
			Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(rel), key->child_columns[i] - 1);
			int				  n = moved->nvalues++;
			Datum			  value = slot_getattr(slot, key->child_columns[i], &moved->nulls[n]);

			moved->names[n] = pstrdup(NameStr(attribute->attname));
			moved->byval[n] = attribute->attbyval;
			moved->lengths[n] = attribute->attlen;
			if (!moved->nulls[n])
				moved->values[n] = datumCopy(value, attribute->attbyval, attribute->attlen);
		}
	}
	moved->next = moved_keys;
	moved_keys = moved;
	MemoryContextSwitchTo(old_context);
}

static void
free_moved_key(MovedKey *moved)
{
	for (int i = 0; i < moved->nvalues; i++)
	{
		pfree(moved->names[i]);
		if (!moved->nulls[i] && !moved->byval[i])
			pfree(DatumGetPointer(moved->values[i]));
	}
	pfree(moved->names);
	pfree(moved->values);
	pfree(moved->nulls);
	pfree(moved->byval);
	pfree(moved->lengths);
	pfree(moved);
}

/*
 * The row that a moved row was, where this INSERT is the other half of a move:
 * it is the next one of the same command on the same table.
 */
static MovedKey *
recall_moved_keys(Relation rel, Oid parent, HeapTuple tuple)
{
	Oid		   root;
	MovedKey **link;

	if (moved_keys == NULL || !rel->rd_rel->relispartition)
		return NULL;
	root = root_of(RelationGetRelid(rel));
	for (link = &moved_keys; *link != NULL; link = &(*link)->next)
	{
		MovedKey *moved = *link;

		if (moved->root == root && moved->parent == parent &&
			moved->cid == HeapTupleHeaderGetCmin(tuple->t_data))
		{
			*link = moved->next;
			return moved;
		}
	}
	return NULL;
}

static bool
same_as_moved(const MovedKey *moved, const TaForeignKey *key, TupleDesc desc, TupleTableSlot *slot)
{
	for (int i = 0; i < key->nkeys; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, key->child_columns[i] - 1);
		bool			  isnull;
		Datum			  value = slot_getattr(slot, key->child_columns[i], &isnull);
		int				  n;

		for (n = 0; n < moved->nvalues; n++)
			if (strcmp(moved->names[n], NameStr(attribute->attname)) == 0)
				break;
		if (n == moved->nvalues || isnull != moved->nulls[n] ||
			(!isnull && !datum_image_eq(value, moved->values[n], attribute->attbyval, attribute->attlen)))
			return false;
	}
	return true;
}

/*
 * refuse_deleted_parent() → trigger
 *		Constraint trigger FROM a soft-delete table, AFTER INSERT or UPDATE of a row
 *		that refers to it (and AFTER DELETE, which says that a row moves): raises
 *		23503 where the row that it comes to refer to is deleted.
 *
 * Locks that row FOR KEY SHARE, as the foreign key does.  A row that is deleted
 * itself may be inserted under a deleted one.
 */
PG_FUNCTION_INFO_V1(ta_refuse_deleted_parent);
Datum
ta_refuse_deleted_parent(PG_FUNCTION_ARGS)
{
	TriggerData	   *trigdata = ta_trigger_data(fcinfo, TA_GUARD_FUNCTION,
											   TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT |
												   TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);
	Relation		rel = trigdata->tg_relation;
	Oid				parent = trigdata->tg_trigger->tgconstrrelid;
	bool			is_insert = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);
	bool			is_update = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event);
	TupleTableSlot *slot = is_update ? trigdata->tg_newslot : trigdata->tg_trigslot;
	MovedKey	   *moved = NULL;
	Child		   *child;
	bool			isnull;

	if (!OidIsValid(parent))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by a constraint trigger that names a referenced table",
						TA_GUARD_FUNCTION)));
	if (ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(NULL);

	/* a deferred check of a row that has changed since: the change has its own */
	if ((is_insert || is_update) && !table_tuple_satisfies_snapshot(rel, slot, SnapshotSelf))
		return PointerGetDatum(NULL);

	child = child_of(rel);
	if (!is_insert && !is_update)
	{
		if (HeapTupleHeaderIndicatesMovedPartitions(trigdata->tg_trigtuple->t_data))
			remember_moved_keys(rel, child, parent, trigdata->tg_trigtuple, slot);
		return PointerGetDatum(NULL);
	}
	if (is_insert)
	{
		moved = recall_moved_keys(rel, parent, trigdata->tg_trigtuple);
		if (child->deleted_at != InvalidAttrNumber)
		{
			(void) slot_getattr(slot, child->deleted_at, &isnull);
			if (!isnull)
			{
				if (moved != NULL)
					free_moved_key(moved);
				return PointerGetDatum(NULL);
			}
		}
	}

	for (int i = 0; i < child->nkeys; i++)
	{
		const ParentKey *key = &child->keys[i];
		bool			 is_key;
		bool			 deleted;

		if (key->key.parent != parent ||
			(is_update && same_key(&key->key, RelationGetDescr(rel), trigdata->tg_trigslot, slot)) ||
			(moved != NULL && same_as_moved(moved, &key->key, RelationGetDescr(rel), slot) &&
			 !(moved->was_deleted && key->key.on_delete == FKCONSTR_ACTION_CASCADE)))
			continue;
		if (!find_parent(key, RelationGetRelid(rel), slot, true, &is_key, &deleted) || !deleted)
			continue;
		/* where the key that it had is gone, it follows its parent's (ON UPDATE CASCADE) */
		if (is_update && !find_parent(key, RelationGetRelid(rel), trigdata->tg_trigslot, false, &is_key, &deleted) && is_key)
			continue;
		raise_deleted_parent(rel, key, slot, false);
	}
	if (moved != NULL)
		free_moved_key(moved);
	return PointerGetDatum(NULL);
}

/* ---------------------------------------------------------------------
 * Functions over one row
 * ---------------------------------------------------------------------
 */

/*
 * The relation of a name as it stands in SQL, or of a bare name that would have
 * to be quoted there.  Raises 42P01 for whatever names none.
 */
static Oid
relation_by_name(text *argument)
{
	char *name = text_to_cstring(argument);
	List *parts;
	Oid	  relid = InvalidOid;

	if (SplitIdentifierString(pstrdup(name), '.', &parts))
	{
		if (list_length(parts) == 1)
			relid = RangeVarGetRelid(makeRangeVar(NULL, linitial(parts), -1), NoLock, true);
		else if (list_length(parts) == 2)
			relid = RangeVarGetRelid(makeRangeVar(linitial(parts), lsecond(parts), -1), NoLock, true);
	}
	if (!OidIsValid(relid) && strlen(name) < NAMEDATALEN)
		relid = RelnameGetRelid(name);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" does not exist", name)));
	return relid;
}

/* Raises what an UPDATE of deleted_at by the caller would raise. */
static void
check_target(Oid relid)
{
	char	   kind = get_rel_relkind(relid);
	AttrNumber deleted_at;

	if (kind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(relid))));
	deleted_at = get_attnum(relid, DELETED_AT);
	if (pg_class_aclcheck(relid, GetUserId(), ACL_UPDATE) != ACLCHECK_OK &&
		(deleted_at <= 0 || pg_attribute_aclcheck(relid, deleted_at, GetUserId(), ACL_UPDATE) != ACLCHECK_OK))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(relid));
	if (deleted_at <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", DELETED_AT, get_rel_name(relid)),
				 errhint("techally.enable_soft_delete adds it.")));
}

/* The column that a uuid is looked for in: the primary key, or else id. */
static AttrNumber
uuid_key(Relation rel)
{
	AttrNumber attnum = InvalidAttrNumber;
	Oid		   primary;

	(void) RelationGetIndexList(rel);
	primary = rel->rd_pkindex;
	if (OidIsValid(primary))
	{
		Relation index = index_open(primary, AccessShareLock);

		if (index->rd_index->indnkeyatts == 1)
			attnum = index->rd_index->indkey.values[0];
		index_close(index, AccessShareLock);
	}
	if (attnum == InvalidAttrNumber || getBaseType(get_atttype(RelationGetRelid(rel), attnum)) != UUIDOID)
		attnum = column_number(rel, "id");
	if (attnum == InvalidAttrNumber || getBaseType(get_atttype(RelationGetRelid(rel), attnum)) != UUIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" has no key of type %s", RelationGetRelationName(rel), "uuid"),
				 errhint("Use DELETE, or an UPDATE of column \"%s\".", DELETED_AT)));
	return attnum;
}

/*
 * Locks a row FOR UPDATE, as the caller: with its privileges, and if its row
 * security lets it.  Raises TA007 where there is none.  Returns the table that
 * the row lies in, open, and whether it is deleted.
 */
static Relation
lock_row(Oid relid, Datum record_id, ItemPointer row, bool *deleted)
{
	Relation   rel;
	SPIPlanPtr plan;
	Oid		   leaf;
	bool	   isnull;
	uint64	   n;

	check_target(relid);
	rel = table_open(relid, RowExclusiveLock);
	connect_spi();
	plan = find_plan(PLAN_SELECT_ROW, relid, InvalidOid);
	if (plan == NULL)
	{
		Oid types[1] = {UUIDOID};

		plan = make_plan(PLAN_SELECT_ROW, relid, InvalidOid, relid, InvalidOid,
						 psprintf("SELECT t.tableoid, t.ctid, t." DELETED_AT " IS NOT NULL FROM %s t"
								  " WHERE t.%s OPERATOR(pg_catalog.=) $1 FOR UPDATE",
								  qualified_name(relid), column_name(relid, uuid_key(rel))),
						 1, types);
	}
	n = run_plan(plan, &record_id, NULL);
	if (n == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("table \"%s\" has no row %s", RelationGetRelationName(rel),
						DatumGetCString(DirectFunctionCall1(uuid_out, record_id)))));
	if (n > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("table \"%s\" has several rows %s", RelationGetRelationName(rel),
						DatumGetCString(DirectFunctionCall1(uuid_out, record_id)))));
	leaf = DatumGetObjectId(ta_spi_value(0, 1, &isnull));
	*row = *(ItemPointer) DatumGetPointer(ta_spi_value(0, 2, &isnull));
	*deleted = DatumGetBool(ta_spi_value(0, 3, &isnull));
	finish_spi();
	if (leaf != relid)
	{
		table_close(rel, NoLock);
		rel = table_open(leaf, RowExclusiveLock);
	}
	return rel;
}

static bool
soft_delete(Oid relid, Datum record_id)
{
	ItemPointerData row;
	bool			deleted;
	Relation		rel = lock_row(relid, record_id, &row, &deleted);
	bool			result = !deleted && delete_rows(rel, &row, 1, new_deletion_id()) > 0;

	table_close(rel, NoLock);
	return result;
}

/*
 * soft_delete(table_name text, record_id uuid) → boolean
 *		Deletes a row softly.  true: deleted now; false: it was already.
 *
 * The name is one as in SQL, qualified or found on the search_path, or a bare
 * one that SQL would want quoted.  Locks the row FOR UPDATE and its dependents.
 * Raises 42P01 for a name that is none, 42501 without the privilege UPDATE,
 * TA007 for a row that is not there or that row security hides.
 */
PG_FUNCTION_INFO_V1(ta_soft_delete_by_name);
Datum
ta_soft_delete_by_name(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"table_name", "record_id"};

	ta_require_arguments(fcinfo, names, 2);
	PG_RETURN_BOOL(soft_delete(relation_by_name(PG_GETARG_TEXT_PP(0)), PG_GETARG_DATUM(1)));
}

/*
 * soft_delete(target regclass, record_id uuid) → boolean
 *		The same of a table that is known already.
 */
PG_FUNCTION_INFO_V1(ta_soft_delete);
Datum
ta_soft_delete(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "record_id"};

	ta_require_arguments(fcinfo, names, 2);
	PG_RETURN_BOOL(soft_delete(PG_GETARG_OID(0), PG_GETARG_DATUM(1)));
}

/*
 * soft_delete_user(store name, user_uuid uuid) → boolean
 *		The same of a store's users.  Raises TA009 where there is no such store.
 */
PG_FUNCTION_INFO_V1(ta_soft_delete_user);
Datum
ta_soft_delete_user(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "user_uuid"};
	Oid						 relid;

	ta_require_arguments(fcinfo, names, 2);
	relid = get_relname_relid("users", ta_store_namespace(PG_GETARG_NAME(0)));
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", NameStr(*PG_GETARG_NAME(0)), "users")));
	PG_RETURN_BOOL(soft_delete(relid, PG_GETARG_DATUM(1)));
}

/*
 * A restored row's key in a unique index was taken: says by which row, where the
 * caller may see it.  Returns where there is nothing to add to the error.
 */
static void
raise_taken(const ErrorData *error, Relation rel, ItemPointer row)
{
	Oid				nspid = error->schema_name ? get_namespace_oid(error->schema_name, true) : InvalidOid;
	Oid				indexid = OidIsValid(nspid) && error->constraint_name ? get_relname_relid(error->constraint_name, nspid) : InvalidOid;
	Oid				relid;
	Relation		table;
	Relation		index;
	AttrNumber		deletion_id = column_number(rel, DELETION_ID);
	StringInfoData	sql;
	StringInfoData	join;
	StringInfoData	names;
	StringInfoData	values;
	StringInfoData	owner;
	AttrNumber		key_columns[INDEX_MAX_KEYS];
	int				nkey = 0;
	int				nindex;
	Oid				types[2] = {TIDOID, UUIDOID};
	Datum			arguments[2];
	char			nulls[3] = "  ";
	SPIPlanPtr		plan;
	TupleTableSlot *slot;

	if (!OidIsValid(indexid) || get_rel_relkind(indexid) != RELKIND_INDEX)
		return;
	relid = IndexGetRelation(indexid, false);
	if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED)
		return;
	table = table_open(relid, AccessShareLock);
	index = index_open(indexid, AccessShareLock);
	nindex = index->rd_index->indnkeyatts;
	if (RelationGetIndexPredicate(index) == NIL)
	{
		index_close(index, NoLock);
		table_close(table, NoLock);
		return;
	}
	(void) RelationGetIndexList(table);
	if (OidIsValid(table->rd_pkindex))
	{
		Relation primary = index_open(table->rd_pkindex, AccessShareLock);

		nkey = primary->rd_index->indnkeyatts;
		for (int i = 0; i < nkey; i++)
			key_columns[i] = primary->rd_index->indkey.values[i];
		index_close(primary, NoLock);
	}

	initStringInfo(&sql);
	initStringInfo(&join);
	initStringInfo(&names);
	initStringInfo(&values);
	initStringInfo(&owner);
	appendStringInfoString(&sql, "SELECT l.* FROM (SELECT ");
	for (int i = 0; i < nkey; i++)
		appendStringInfo(&sql, "t.%s AS p%d, ", column_name(relid, key_columns[i]), i + 1);
	if (nkey == 0)
		appendStringInfoString(&sql, "t.ctid AS p1, ");
	for (int i = 0; i < nindex; i++)
	{
		char	 *expression = TextDatumGetCString(DirectFunctionCall3(pg_get_indexdef_ext, ObjectIdGetDatum(indexid),
																	   Int32GetDatum(i + 1), BoolGetDatum(false)));
		Oid		  operator= get_opfamily_member(index->rd_opfamily[i], index->rd_opcintype[i],
												index->rd_opcintype[i], BTEqualStrategyNumber);
		HeapTuple tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for operator %u", operator);
		appendStringInfo(&join, "%sl.x%d OPERATOR(%s.%s) d.x%d", i > 0 ? " AND " : "", i + 1,
						 quote_identifier(get_namespace_name(((Form_pg_operator) GETSTRUCT(tuple))->oprnamespace)),
						 NameStr(((Form_pg_operator) GETSTRUCT(tuple))->oprname), i + 1);
		ReleaseSysCache(tuple);
		appendStringInfo(&sql, "%s%s AS x%d", i > 0 ? ", " : "", expression, i + 1);
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", expression);
	}
	appendStringInfo(&sql, " FROM ONLY %s t WHERE %s) l JOIN (SELECT ", qualified_name(relid),
					 TextDatumGetCString(DirectFunctionCall2(pg_get_expr,
															 CStringGetTextDatum(nodeToString(make_ands_explicit(RelationGetIndexPredicate(index)))),
															 ObjectIdGetDatum(relid))));
	for (int i = 0; i < nindex; i++)
		appendStringInfo(&sql, "%s%s AS x%d", i > 0 ? ", " : "",
						 TextDatumGetCString(DirectFunctionCall3(pg_get_indexdef_ext, ObjectIdGetDatum(indexid),
																 Int32GetDatum(i + 1), BoolGetDatum(false))),
						 i + 1);
	appendStringInfo(&sql, " FROM ONLY %s t WHERE t." DELETED_AT " IS NOT NULL AND (", qualified_name(relid));
	if (relid == RelationGetRelid(rel))
		appendStringInfoString(&sql, "t.ctid OPERATOR(pg_catalog.=) $1");
	else
		appendStringInfoString(&sql, "$1 IS NULL");
	if (column_number(table, DELETION_ID) != InvalidAttrNumber)
		appendStringInfoString(&sql, " OR t." DELETION_ID " OPERATOR(pg_catalog.=) $2");
	else
		appendStringInfoString(&sql, " OR $2 IS NULL AND false");
	appendStringInfo(&sql, ")) d ON %s LIMIT 1", join.data);

	/* which deletion it was */
	slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	arguments[0] = PointerGetDatum(row);
	nulls[1] = 'n';
	if (deletion_id != InvalidAttrNumber && table_tuple_fetch_row_version(rel, row, SnapshotAny, slot))
	{
		bool isnull;

		arguments[1] = slot_getattr(slot, deletion_id, &isnull);
		nulls[1] = isnull ? 'n' : ' ';
	}

	connect_spi();
	plan = SPI_prepare(sql.data, 2, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_execute_snapshot(plan, arguments, nulls, GetLatestSnapshot(), InvalidSnapshot, true, false, 1) == SPI_OK_SELECT &&
		SPI_processed == 1)
	{
		int first = Max(nkey, 1);

		for (int i = 0; i < first; i++)
		{
			char *value = ta_spi_text(0, i + 1);

			appendStringInfo(&owner, "%s%s", i > 0 ? ", " : "", value ? value : "null");
		}
		for (int i = 0; i < nindex; i++)
		{
			char *value = ta_spi_text(0, first + i + 1);

			appendStringInfo(&values, "%s%s", i > 0 ? ", " : "", value ? value : "null");
		}
		resetStringInfo(&sql);
		for (int i = 0; i < nkey; i++)
			appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", get_attname(relid, key_columns[i], false));
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("row of table \"%s\" cannot be restored, its key was taken meanwhile", error->table_name),
				 errdetail("Key (%s)=(%s) belongs to the row (%s)=(%s).", names.data, values.data,
						   nkey > 0 ? sql.data : "ctid", owner.data),
				 errhint("Change or delete one of the two rows first."),
				 err_generic_string(PG_DIAG_SCHEMA_NAME, error->schema_name),
				 err_generic_string(PG_DIAG_TABLE_NAME, error->table_name),
				 err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->constraint_name)));
	}
	finish_spi();
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(table, NoLock);
}

static bool
restore_deleted(Oid relid, Datum record_id)
{
	ItemPointerData row;
	bool			deleted;
	Relation		rel = lock_row(relid, record_id, &row, &deleted);
	MemoryContext	context = CurrentMemoryContext;
	ResourceOwner	owner = CurrentResourceOwner;
	volatile bool	result = false;

	if (deleted)
	{
		/* a key that was taken is looked up after what failed has been undone */
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(context);
		PG_TRY();
		{
			result = restore_row(rel, &row, false, NULL);
			ReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			CurrentResourceOwner = owner;
		}
		PG_CATCH();
		{
			ErrorData *error;

			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();
			RollbackAndReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			CurrentResourceOwner = owner;
			if (error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
				raise_taken(error, rel, &row);
			ReThrowError(error);
		}
		PG_END_TRY();
	}
	table_close(rel, NoLock);
	return result;
}

/*
 * restore_deleted(table_name text, record_id uuid) → boolean
 *		Brings a row back, and with it what was deleted along with it.  true:
 *		restored now; false: it was not deleted.
 *
 * Names, privileges and locks as for soft_delete.  Raises 23505, naming the row,
 * where a unique key was taken meanwhile; 23503 where the row that it belongs to
 * is deleted.
 */
PG_FUNCTION_INFO_V1(ta_restore_deleted_by_name);
Datum
ta_restore_deleted_by_name(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"table_name", "record_id"};

	ta_require_arguments(fcinfo, names, 2);
	PG_RETURN_BOOL(restore_deleted(relation_by_name(PG_GETARG_TEXT_PP(0)), PG_GETARG_DATUM(1)));
}

/*
 * restore_deleted(target regclass, record_id uuid) → boolean
 *		The same of a table that is known already.
 */
PG_FUNCTION_INFO_V1(ta_restore_deleted);
Datum
ta_restore_deleted(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "record_id"};

	ta_require_arguments(fcinfo, names, 2);
	PG_RETURN_BOOL(restore_deleted(PG_GETARG_OID(0), PG_GETARG_DATUM(1)));
}

/* ---------------------------------------------------------------------
 * Purging
 * ---------------------------------------------------------------------
 */

#define MAX_PURGE_DEPTH 8

/*
 * Appends " OR EXISTS (…)" for whatever keeps a row from going: rows whose foreign
 * key forbids it, and, among those that would go with it, living ones and such
 * that are kept themselves.
 */
static void
append_keepers(StringInfo sql, Relation rel, const char *alias, int depth)
{
	ListCell *cell;

	foreach(cell, ta_foreign_keys_to(rel))
	{
		TaForeignKey *key = lfirst(cell);
		char		 *child_alias = psprintf("x%d", depth);
		Relation	  child;

		if (key->on_delete == FKCONSTR_ACTION_SETNULL || key->on_delete == FKCONSTR_ACTION_SETDEFAULT)
			continue;
		appendStringInfo(sql, " OR EXISTS (SELECT FROM %s %s WHERE ", qualified_name(key->child), child_alias);
		append_join(sql, key, alias, child_alias);
		if (key->on_delete == FKCONSTR_ACTION_CASCADE)
		{
			child = table_open(key->child, AccessShareLock);
			if (ta_is_soft_delete_table(child))
			{
				appendStringInfo(sql, " AND (%s." DELETED_AT " IS NULL", child_alias);
				if (depth < MAX_PURGE_DEPTH && key->child != RelationGetRelid(rel))
					append_keepers(sql, child, child_alias, depth + 1);
				appendStringInfoChar(sql, ')');
			}
			table_close(child, NoLock);
		}
		appendStringInfoChar(sql, ')');
	}
}

/* Really deletes rows of one table, in a statement. */
static uint64
really_delete(Oid relid, ItemPointerData *rows, int nrows)
{
	Datum  values[1] = {row_array(rows, nrows)};
	Oid	   types[1] = {TIDARRAYOID};
	uint64 n;

	ta_pass_through_begin(relid);
	if (SPI_execute_with_args(psprintf("DELETE FROM ONLY %s t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
									   qualified_name(relid)),
							  1, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete rows");
	n = SPI_processed;
	ta_pass_through_end();
	return n;
}

/* The same; rows that a foreign key holds after all are left out one by one. */
static uint64
purge_rows(Oid relid, ItemPointerData *rows, int nrows)
{
	MemoryContext	context = CurrentMemoryContext;
	ResourceOwner	owner = CurrentResourceOwner;
	volatile uint64 n = 0;
	volatile bool	held = false;

	CHECK_FOR_INTERRUPTS();
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		n = really_delete(relid, rows, nrows);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode != ERRCODE_FOREIGN_KEY_VIOLATION && error->sqlerrcode != ERRCODE_RESTRICT_VIOLATION)
			ReThrowError(error);
		FreeErrorData(error);
		held = true;
	}
	PG_END_TRY();

	if (held && nrows > 1)
	{
		for (int i = 0; i < nrows; i++)
			n += purge_rows(relid, &rows[i], 1);
	}
	return n;
}

/*
 * purge_deleted(target regclass, older_than interval, max_rows integer) → bigint
 *		Really removes rows that were deleted so long ago, the oldest first, at most
 *		max_rows of them; returns how many went.  To be called until it returns 0.
 *
 * Rows that others hold locked are left for the next call, rows that others still
 * refer to until those are gone; a NOTICE says how many stay.  Acts as the table's
 * owner.  Raises 42501 without the privileges DELETE and TRUNCATE, 22023 for a
 * max_rows that is not positive or an age that is negative, 55000 for a table
 * that is no soft-delete table.
 */
PG_FUNCTION_INFO_V1(ta_purge_deleted);
Datum
ta_purge_deleted(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "older_than", "max_rows"};
	Oid						 relid;
	int32					 max_rows;
	Relation				 rel;
	StringInfoData			 sql;
	Oid						 types[2] = {TIMESTAMPTZOID, INT4OID};
	Datum					 values[2];
	OwnerFrame				 frame;
	SPITupleTable			*table;
	uint64					 nfound;
	uint64					 removed = 0;
	TimestampTz				 now = GetCurrentTimestamp();

	ta_require_arguments(fcinfo, names, 3);
	relid = PG_GETARG_OID(0);
	max_rows = PG_GETARG_INT32(2);
	if (max_rows <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be positive", "max_rows")));
	values[0] = DirectFunctionCall2(timestamptz_mi_interval, TimestampTzGetDatum(now), PG_GETARG_DATUM(1));
	values[1] = Int32GetDatum(max_rows);
	if (DatumGetTimestampTz(values[0]) > now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be negative", "older_than")));
	if (get_rel_relkind(relid) == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (pg_class_aclcheck(relid, GetUserId(), ACL_DELETE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, get_relkind_objtype(get_rel_relkind(relid)), get_rel_name(relid));
	if (pg_class_aclcheck(relid, GetUserId(), ACL_TRUNCATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to really delete rows of table \"%s\"", get_rel_name(relid)),
				 errdetail("The role lacks the privilege TRUNCATE.")));
	rel = relation_open(relid, RowExclusiveLock);
	if (!ta_is_soft_delete_table(rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is no soft-delete table", RelationGetRelationName(rel)),
				 errhint("Run techally.enable_soft_delete first.")));

	connect_spi();
	owner_begin(&frame, relid);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT t.tableoid, t.ctid FROM %s t WHERE t." DELETED_AT " OPERATOR(pg_catalog.<) $1"
						   " AND NOT (false",
					 qualified_name(relid));
	append_keepers(&sql, rel, "t", 1);
	appendStringInfoString(&sql, ") ORDER BY t." DELETED_AT " LIMIT $2 FOR UPDATE OF t SKIP LOCKED");
	if (SPI_execute_with_args(sql.data, 2, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not find deleted rows");
	table = SPI_tuptable;
	nfound = SPI_processed;
	if (nfound > 0)
	{
		Oid				*leaves = palloc(sizeof(Oid) * nfound);
		ItemPointerData *rows = palloc(sizeof(ItemPointerData) * nfound);
		ItemPointerData *part = palloc(sizeof(ItemPointerData) * nfound);
		List			*done = NIL;

		for (uint64 i = 0; i < nfound; i++)
		{
			bool isnull;

			leaves[i] = DatumGetObjectId(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull));
			rows[i] = *(ItemPointer) DatumGetPointer(SPI_getbinval(table->vals[i], table->tupdesc, 2, &isnull));
		}
		SPI_freetuptable(table);
		for (uint64 i = 0; i < nfound; i++)
		{
			int n = 0;

			if (list_member_oid(done, leaves[i]))
				continue;
			for (uint64 j = i; j < nfound; j++)
				if (leaves[j] == leaves[i])
					part[n++] = rows[j];
			done = lappend_oid(done, leaves[i]);
			removed += purge_rows(leaves[i], part, n);
		}
	}
	if (removed == 0)
	{
		bool  isnull;
		int64 kept;

		if (SPI_execute_with_args(psprintf("SELECT pg_catalog.count(*) FROM %s t WHERE t." DELETED_AT " OPERATOR(pg_catalog.<) $1",
										   qualified_name(relid)),
								  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not count deleted rows");
		kept = DatumGetInt64(ta_spi_value(0, 1, &isnull));
		if (kept > 0)
			ereport(NOTICE,
					(errmsg_plural("%lld deleted row of table \"%s\" stays", "%lld deleted rows of table \"%s\" stay",
								   kept, (long long) kept, RelationGetRelationName(rel)),
					 errdetail("Other rows refer to them, or other transactions have locked them.")));
	}
	owner_end(&frame);
	finish_spi();
	relation_close(rel, NoLock);
	PG_RETURN_INT64(removed);
}
