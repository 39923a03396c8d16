/*-------------------------------------------------------------------------
 *
 * soft_delete.c
 *	  Rows that are deleted by saying so in them: deleted_at is set, and
 *	  deletion_id says which deletion it was.
 *
 * A BEFORE DELETE trigger notes the row, which the server has locked FOR UPDATE,
 * and drops the deletion.  When the statement has run (a hook of ExecutorFinish)
 * the rows that it noted are marked, see soft_delete_cascade.c.  An AFTER UPDATE
 * trigger does the same for rows whose deleted_at somebody has written by hand.
 *
 * A DELETE passes through where the row must really go: its parent by a cascading
 * foreign key is gone; it is moving to another partition, or being moved by our
 * own maintenance; or techally.hard_delete is on.
 *
 * Invariants: what a statement has noted lies in its memory, so that an error
 * takes it away; a transaction does not commit while rows are noted that no
 * statement's end has dealt with.
 *
 * Lock order: that of soft_delete_cascade.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "replication/logicalworker.h"
#include "storage/buffile.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/uuid.h"

#include "compat.h"
#include "foreign_key.h"
#include "soft_delete.h"
#include "soft_delete_cascade.h"
#include "soft_delete_parents.h"
#include "soft_delete_plan.h"
#include "trigger_util.h"

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
	pg_uuid_t		*ids; /* of those restored by hand: the deletion that each was of, nil for none */
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

/* The last row of a partition that a statement is about to change, and may be about to move. */
typedef struct MovingRow
{
	MemoryContext		  statement; /* it lies in there */
	Oid					  relid;
	ItemPointerData		  row;
	struct MovingRow	 *next;
	MemoryContextCallback callback;
} MovingRow;

static bool hard_delete = false;

static Statement *statements = NULL;
static MovingRow *moving_rows = NULL;
/* rows were noted, and the statement that noted them never ended */
static Oid				lost_rows = InvalidOid;
static SubTransactionId lost_in = InvalidSubTransactionId;

static ExecutorFinish_hook_type next_executor_finish = NULL;

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
		if ((set->nrows > 0 || set->nblocks > 0) && IsTransactionState() && !OidIsValid(lost_rows))
		{
			lost_rows = set->relid;
			lost_in = GetCurrentSubTransactionId();
		}
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
note_row(RowSet *set, MemoryContext context, ItemPointer row, const pg_uuid_t *id)
{
	if (set->nrows == set->size)
	{
		if (set->size == MAX_MARKED)
		{
			MemoryContext old_context = MemoryContextSwitchTo(context);

			if (set->file == NULL)
				set->file = BufFileCreateTemp(false);
			BufFileWrite(set->file, set->rows, sizeof(ItemPointerData) * set->nrows);
			if (set->ids != NULL)
				BufFileWrite(set->file, set->ids, sizeof(pg_uuid_t) * set->nrows);
			MemoryContextSwitchTo(old_context);
			set->nblocks++;
			set->nrows = 0;
		}
		else
		{
			int size = set->size == 0 ? 16 : set->size * 4;

			if (set->rows == NULL)
				set->rows = MemoryContextAlloc(context, sizeof(ItemPointerData) * size);
			else
				set->rows = repalloc(set->rows, sizeof(ItemPointerData) * size);
			if (set->fate == ROWS_RESTORED_BY_HAND)
			{
				if (set->ids == NULL)
					set->ids = MemoryContextAlloc(context, sizeof(pg_uuid_t) * size);
				else
					set->ids = repalloc(set->ids, sizeof(pg_uuid_t) * size);
			}
			set->size = size;
		}
	}
	if (set->ids != NULL)
		set->ids[set->nrows] = *id;
	set->rows[set->nrows++] = *row;
}

/* ---------------------------------------------------------------------
 * The end of a statement
 * ---------------------------------------------------------------------
 */

static void
process_rows(RowSet *set, ItemPointerData *rows, int nrows, Datum id, CommandId since)
{
	Relation rel = table_open(set->relid, RowExclusiveLock);

	switch (set->fate)
	{
		case ROWS_DELETED:
			(void) ta_sd_delete_rows(rel, rows, nrows, id, since);
			break;
		case ROWS_DELETED_BY_HAND:
			ta_sd_delete_rows_by_hand(rel, rows, nrows, id);
			break;
		case ROWS_RESTORED_BY_HAND:
			ta_sd_restore_rows_by_hand(rel, rows, set->ids, nrows);
			break;
	}
	table_close(rel, NoLock);
}

static void
read_block(BufFile *file, void *block, Size size)
{
	if (BufFileRead(file, block, size) != size)
		elog(ERROR, "could not read from temporary file");
}

/* Does what is left to be done for a set; it is empty afterwards. */
static void
process_set(RowSet *set, Datum id, CommandId since)
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
		process_rows(set, set->rows, nrows, id, since);
	for (int block = 0; block < nblocks; block++)
	{
		MemoryContextReset(context);
		if (block == 0 && BufFileSeek(file, 0, 0, SEEK_SET) != 0)
			elog(ERROR, "could not rewind temporary file");
		read_block(file, set->rows, sizeof(ItemPointerData) * MAX_MARKED);
		if (set->ids != NULL)
			read_block(file, set->ids, sizeof(pg_uuid_t) * MAX_MARKED);
		process_rows(set, set->rows, MAX_MARKED, id, since);
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
	CommandId  since = FirstCommandId;

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
		{
			id = ta_sd_new_deletion_id();
			CommandCounterIncrement();
			since = GetCurrentCommandId(false);
		}
		process_set(set, id, since);
	}
}

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
			 errmsg("permission denied to really delete rows of table \"%s\"", get_rel_name(ta_sd_root_of(relid))),
			 errdetail("Setting \"%s\" is on, and the role lacks the privilege TRUNCATE.", "techally.hard_delete")));
}

/*
 * 0A000 where a DELETE of a soft-delete table has gone on to tables that inherit
 * from it, which fire no trigger of ours.
 */
static void
check_heirs(PlannedStmt *statement, Plan *plan)
{
	ModifyTable *modify = (ModifyTable *) plan;
	Oid			 target = InvalidOid;
	ListCell	*cell;

	if (plan == NULL || !IsA(plan, ModifyTable) || list_length(modify->resultRelations) < 2 ||
		(modify->operation != CMD_DELETE && !ta_is_merge(modify->operation)))
		return;
	if (modify->rootRelation > 0)
		target = rt_fetch(modify->rootRelation, statement->rtable)->relid;
	else
		target = rt_fetch(modify->nominalRelation, statement->rtable)->relid;
	if (get_rel_relkind(target) != RELKIND_RELATION || !ta_sd_is_soft_delete_relid(target))
		return;
	if (hard_delete)
	{
		check_hard_delete(target);
		return;
	}
	foreach(cell, modify->resultRelations)
	{
		Oid relid = rt_fetch(lfirst_int(cell), statement->rtable)->relid;

		if (relid != target)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("rows of table \"%s\" cannot be deleted softly", get_rel_name(relid)),
					 errdetail("It inherits from soft-delete table \"%s\".", get_rel_name(target)),
					 errhint("Use DELETE FROM ONLY, or set \"%s\".", "techally.hard_delete")));
	}
}

/* Hook: a statement has run, its AFTER triggers too. */
static void
executor_finish(QueryDesc *query)
{
	if (query->operation != CMD_SELECT || query->plannedstmt->hasModifyingCTE)
	{
		ListCell *cell;

		check_heirs(query->plannedstmt, query->plannedstmt->planTree);
		if (query->plannedstmt->hasModifyingCTE)
			foreach(cell, query->plannedstmt->subplans)
				check_heirs(query->plannedstmt, lfirst(cell));
	}
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

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
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
		state->deleted_at = ta_sd_column_number(rel, DELETED_AT);
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
	if (trigger_depth() > 1 && ta_sd_is_orphaned(rel, trigdata->tg_trigslot))
		return PointerGetDatum(tuple);
	if (state->deleted_at == InvalidAttrNumber)
		ta_sd_raise_no_column(rel);
	(void) slot_getattr(trigdata->tg_trigslot, state->deleted_at, &isnull);
	if (!isnull)
		return PointerGetDatum(NULL);

	if (IsLogicalWorker())
	{
		/* it has no statements */
		ItemPointerData row = tuple->t_self;

		CommandCounterIncrement();
		(void) ta_sd_delete_rows(rel, &row, 1, ta_sd_new_deletion_id(), GetCurrentCommandId(false));
		return PointerGetDatum(NULL);
	}
	if (state->set == NULL)
		state->set = set_of(context, RelationGetRelid(rel), ROWS_DELETED);
	note_row(state->set, context, &tuple->t_self, NULL);
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
		state->deleted_at = ta_sd_column_number(rel, DELETED_AT);
		if (state->deleted_at == InvalidAttrNumber)
			ta_sd_raise_no_column(rel);
		state->deletion_id = ta_sd_column_number(rel, DELETION_ID);
		state->see_deleted = keys != NIL;
		state->see_restored = ta_sd_cascading(keys) != NIL;
		foreach(cell, ta_foreign_keys_of(rel))
			state->see_restored |= ((TaForeignKey *) lfirst(cell))->on_delete == FKCONSTR_ACTION_CASCADE;
		fcinfo->flinfo->fn_extra = state;
	}
	(void) slot_getattr(trigdata->tg_trigslot, state->deleted_at, &was_null);
	(void) slot_getattr(trigdata->tg_newslot, state->deleted_at, &isnull);
	if (was_null == isnull || !(isnull ? state->see_restored : state->see_deleted) ||
		ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(NULL);

	if (!isnull)
		note_row(set_of(context, RelationGetRelid(rel), ROWS_DELETED_BY_HAND), context,
				 &trigdata->tg_newtuple->t_self, NULL);
	else
	{
		/* the old version still says which deletion it was of */
		pg_uuid_t id = {{0}};

		if (state->deletion_id != InvalidAttrNumber)
		{
			Datum value = slot_getattr(trigdata->tg_trigslot, state->deletion_id, &isnull);

			if (!isnull)
				id = *DatumGetUUIDP(value);
		}
		note_row(set_of(context, RelationGetRelid(rel), ROWS_RESTORED_BY_HAND), context,
				 &trigdata->tg_newtuple->t_self, &id);
	}
	return PointerGetDatum(NULL);
}

/* ---------------------------------------------------------------------
 * Transactions, and the start
 * ---------------------------------------------------------------------
 */

static void
transaction_ended(XactEvent event, void *arg)
{
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
			lost_in = InvalidSubTransactionId;
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subid,
					 SubTransactionId parent, void *arg)
{
	if (lost_in < subid)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		lost_rows = InvalidOid;
		lost_in = InvalidSubTransactionId;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		lost_in = parent;
}

/*
 * ta_soft_delete_init
 *		Makes the caches and the setting, registers what keeps them true and what
 *		ends a statement.  Called once, by _PG_init.
 */
void
ta_soft_delete_init(void)
{
	if (CacheMemoryContext == NULL)
		CreateCacheMemoryContext();
	ta_sd_plan_init();
	ta_sd_parents_init();
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
