/*-------------------------------------------------------------------------
 *
 * soft_delete_parents.c
 *	  The rows that a row refers to: whether they are there, and live.
 *
 * No row comes to refer to a deleted one, by whatever foreign key: the guard, a
 * constraint trigger on the referring table, sees to it.  It holds the foreign
 * key's own FOR KEY SHARE, which conflicts with the FOR UPDATE that every row is
 * locked with before it is marked.
 *
 * What tables refer to is cached until one of them changes.  Rows are looked for
 * in their latest version, by the index that the foreign key stands on where that
 * can be done, else by a statement as the owner of the table.
 *
 * Lock order: the row that refers is the caller's; parents in the order of the
 * foreign keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/cmdtag.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "foreign_key.h"
#include "soft_delete.h"
#include "soft_delete_parents.h"
#include "soft_delete_plan.h"
#include "spi_util.h"
#include "trigger_util.h"

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

static HTAB		*children = NULL;
static MovedKey *moved_keys = NULL; /* in TopTransactionContext */

/* ---------------------------------------------------------------------
 * Finding the row that a key refers to
 * ---------------------------------------------------------------------
 */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Child		   *child;

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
}

static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		moved_keys = NULL;
}

/*
 * ta_sd_parents_init
 *		Makes the cache of tables that refer to others and registers what keeps it
 *		true.  Called once.
 */
void
ta_sd_parents_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Child);
	ctl.hcxt = CacheMemoryContext;
	children = hash_create("techally referring tables", 32, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	RegisterXactCallback(transaction_ended, NULL);
}

/* How to find the parent's rows: by its index where that is an ordinary one. */
static void
describe_parent(ParentKey *parent)
{
	const TaForeignKey *key = &parent->key;
	Relation			rel = table_open(key->parent, AccessShareLock);
	Relation			index;

	parent->parent_deleted_at = ta_sd_column_number(rel, DELETED_AT);
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
	child->deleted_at = ta_is_soft_delete_table(rel) ? ta_sd_column_number(rel, DELETED_AT) : InvalidAttrNumber;
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
	TaOwnerFrame		frame;
	SPIPlanPtr			plan;
	bool				found;
	int					rc;

	ta_sd_connect_spi();
	ta_sd_owner_begin(&frame, key->parent);
	plan = ta_sd_find_plan(kind, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		StringInfoData sql;
		Oid			   types[INDEX_MAX_KEYS];

		initStringInfo(&sql);
		appendStringInfo(&sql, "SELECT %s FROM %s p WHERE ",
						 parent->parent_deleted_at == InvalidAttrNumber ? "false" : "p." DELETED_AT " IS NOT NULL",
						 ta_sd_qualified_name(key->parent));
		for (int i = 0; i < key->nkeys; i++)
		{
			Oid type = get_atttype(key->parent, key->parent_columns[i]);

			types[i] = getBaseType(get_atttype(child, key->child_columns[i]));
			if (i > 0)
				appendStringInfoString(&sql, " AND ");
			generate_operator_clause(&sql, psprintf("p.%s", ta_sd_column_name(key->parent, key->parent_columns[i])), type,
									 key->operators[i], psprintf("$%d", i + 1), types[i]);
		}
		if (share)
			appendStringInfoString(&sql, " FOR KEY SHARE OF p");
		plan = ta_sd_make_plan(kind, key->constraint, InvalidOid, key->parent, key->child, sql.data, key->nkeys, types);
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
	ta_sd_owner_end(&frame);
	ta_sd_finish_spi();
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
 * What is asked of parents
 * ---------------------------------------------------------------------
 */

/*
 * ta_sd_is_orphaned
 *		Whether a parent by a foreign key that cascades is gone.
 */
bool
ta_sd_is_orphaned(Relation rel, TupleTableSlot *slot)
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

/* Locks the parents by keys that cascade FOR KEY SHARE, and checks that they live. */
static void
hold_parents(Relation rel, TupleTableSlot *slot, bool check)
{
	Child *child = child_of(rel);

	for (int i = 0; i < child->nkeys; i++)
	{
		ParentKey parent = child->keys[i];
		bool	  is_key;
		bool	  deleted;

		if (parent.key.on_delete != FKCONSTR_ACTION_CASCADE || parent.parent_deleted_at == InvalidAttrNumber ||
			!ta_sd_is_soft_delete_relid(parent.key.parent))
			continue;
		if (find_parent(&parent, RelationGetRelid(rel), slot, true, &is_key, &deleted) && deleted && check)
			raise_deleted_parent(rel, &parent, slot, true);
		child = child_of(rel);
	}
}

/*
 * ta_sd_lock_parents
 *		Locks the parents of a row that is going to be restored, so that nobody
 *		deletes or purges them meanwhile; before the row itself is locked.
 */
void
ta_sd_lock_parents(Relation rel, TupleTableSlot *slot)
{
	hold_parents(rel, slot, false);
}

/*
 * ta_sd_check_parents_live
 *		No living row under a deleted one: the parents that cascade must live, and
 *		stay so.  Raises 23503.
 */
void
ta_sd_check_parents_live(Relation rel, TupleTableSlot *slot)
{
	hold_parents(rel, slot, true);
}

/* ---------------------------------------------------------------------
 * The guard
 * ---------------------------------------------------------------------
 */

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
	Oid			  root = ta_sd_root_of(RelationGetRelid(rel));
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
	root = ta_sd_root_of(RelationGetRelid(rel));
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
 * Whether this is a COPY into a table that its transaction has emptied: what
 * pg_restore does with several jobs, where it may make the triggers of a
 * partitioned table before its partitions have their rows.
 */
static bool
is_reloading(Relation rel)
{
	return ta_is_truncated(rel) && ActivePortal != NULL && ActivePortal->commandTag == CMDTAG_COPY;
}

/*
 * refuse_deleted_parent() → trigger
 *		Constraint trigger FROM a soft-delete table, AFTER INSERT or UPDATE of a row
 *		that refers to it (and AFTER DELETE, which says that a row moves): raises
 *		23503 where the row that it comes to refer to is deleted.
 *
 * Locks that row FOR KEY SHARE, as the foreign key does.  A row that is deleted
 * itself may be inserted under a deleted one, and so may one that is restored
 * from a dump.
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
		if (is_reloading(rel))
			return PointerGetDatum(NULL);
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
