/*-------------------------------------------------------------------------
 *
 * soft_delete_cascade.c
 *	  Marking rows as deleted, and no more so, with what goes along.
 *
 * A living row has no deleted parent by a foreign key that cascades.  All rows
 * that go with one statement carry one deletion_id; restoring a row brings back
 * those that are reached from it and carry its id.
 *
 * Rows are marked by UPDATEs of many rows each, so that a bulk DELETE costs little
 * more than the UPDATE and statement triggers, the audit's among them, see one.
 * Then the deletion goes on to dependents whose foreign key cascades, level by
 * level, set by set.
 *
 * What is still to be done is a queue, so that a deletion may go as deep as it
 * likes.  Where triggers have changed a row since it was noted, by what was
 * marked before it for one, its latest version is marked.
 *
 * Lock order: parents before their dependents.  A row is locked FOR UPDATE before
 * it is marked or, where somebody has set deleted_at by hand, before its
 * dependents are looked for: that conflicts with the FOR KEY SHARE of whoever
 * comes to refer to it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "foreign_key.h"
#include "soft_delete.h"
#include "soft_delete_cascade.h"
#include "soft_delete_parents.h"
#include "soft_delete_plan.h"
#include "spi_util.h"

/*
 * "t.deleted_at IS NOT NULL", but so that nobody looks for it with the index of
 * the deleted: while its statistics are old it seems to hold next to nothing.
 */
#define IS_DELETED(alias) "pg_catalog.num_nonnulls(" alias "." DELETED_AT ") OPERATOR(pg_catalog.=) 1"

/* Rows whose dependents by one key are to be deleted, or restored. */
typedef struct Step
{
	MemoryContext context; /* of the step itself */
	TaForeignKey  key;
	TaKeyArrays	  arrays;
	struct Step	 *next;
} Step;

typedef struct Cascade
{
	MemoryContext context;
	Datum		  id; /* of a deletion */
	Step		 *first;
	Step		 *last;
} Cascade;

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

/* ---------------------------------------------------------------------
 * What is still to be done
 * ---------------------------------------------------------------------
 */

/* What must be returned of rows of a table to go on by these keys. */
static int
more_for(Relation rel, List *keys)
{
	ListCell *cell;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return 0;
	foreach(cell, keys)
	{
		if (((TaForeignKey *) lfirst(cell))->parent != RelationGetRelid(rel))
			return TA_RETURN_TABLE;
	}
	return 0;
}

/* The partitions of a table, on whose foreign keys a plan over it depends. */
static List *
partitions_of(Relation rel)
{
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return NIL;
	return find_all_inheritors(RelationGetRelid(rel), NoLock, NULL);
}

static void
cascade_begin(Cascade *cascade, Datum id)
{
	cascade->context = CurrentMemoryContext;
	cascade->id = id;
	cascade->first = cascade->last = NULL;
}

/* Queues what the last statement has returned of nrows rows, key after key. */
static void
queue_dependents(Cascade *cascade, List *keys, int more, uint64 nrows)
{
	SPITupleTable *table = SPI_tuptable;
	int			   column = 1 + ((more & TA_RETURN_ID) != 0) + ((more & TA_RETURN_TABLE) != 0);
	ListCell	  *cell;

	if (keys == NIL)
		return;
	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);
		MemoryContext context;
		MemoryContext old_context;
		Step		 *step;

		if (nrows == 0)
			break;
		context = AllocSetContextCreate(cascade->context, "techally cascade", ALLOCSET_SMALL_SIZES);
		old_context = MemoryContextSwitchTo(context);
		step = palloc0(sizeof(Step));
		step->context = context;
		step->key = *key;
		ta_sd_take_keys(key, table, nrows, more, column, &step->arrays);
		MemoryContextSwitchTo(old_context);
		column += key->nkeys;
		if (step->arrays.nrows == 0)
			MemoryContextDelete(context);
		else if (cascade->first == NULL)
			cascade->first = cascade->last = step;
		else
			cascade->last = cascade->last->next = step;
	}
	SPI_freetuptable(table);
}

/* Takes step after step, each in memory of its own, until none is left. */
static void
run_cascade(Cascade *cascade, void (*take)(Cascade *, const TaForeignKey *, const TaKeyArrays *))
{
	MemoryContext old_context = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(cascade->context, "techally cascade step", ALLOCSET_DEFAULT_SIZES);

	while (cascade->first != NULL)
	{
		Step *step = cascade->first;

		CHECK_FOR_INTERRUPTS();
		cascade->first = step->next;
		MemoryContextSwitchTo(work);
		take(cascade, &step->key, &step->arrays);
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(work);
		MemoryContextDelete(step->context);
	}
	MemoryContextDelete(work);
}

/* ---------------------------------------------------------------------
 * Deleting
 * ---------------------------------------------------------------------
 */

/*
 * ta_sd_new_deletion_id
 *		An id that no other deletion has.
 */
Datum
ta_sd_new_deletion_id(void)
{
	return DirectFunctionCall1(gen_random_uuid, (Datum) 0);
}

/*
 * Deletes the living rows that refer to these keys, and queues what goes along
 * with them.  Raises 55000, naming the table, where there are such rows in one
 * that cannot be deleted from softly.
 */
static void
delete_dependents(Cascade *cascade, const TaForeignKey *key, const TaKeyArrays *arrays)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	bool		   softly = ta_is_soft_delete_table(child);
	bool		   has_id = ta_sd_column_number(child, DELETION_ID) != InvalidAttrNumber;
	List		  *keys = softly ? ta_foreign_keys_to_tree(child) : NIL;
	int			   more;
	Datum		   values[INDEX_MAX_KEYS + 2];
	Oid			   types[INDEX_MAX_KEYS + 2];
	TaOwnerFrame   frame;
	SPIPlanPtr	   plan;
	StringInfoData sql;
	uint64		   n;

	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[key->nkeys + 1] = cascade->id;
	initStringInfo(&sql);
	ta_sd_owner_begin(&frame, key->child);

	if (!softly)
	{
		plan = ta_sd_find_plan(PLAN_FIND_DEPENDENTS, key->constraint, InvalidOid);
		if (plan == NULL)
		{
			appendStringInfo(&sql, "SELECT 1 FROM %s c, ", ta_sd_qualified_name(key->child));
			ta_sd_append_keys_from(&sql, key, false, types);
			appendStringInfoString(&sql, " WHERE ");
			ta_sd_append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " LIMIT 1");
			plan = ta_sd_make_plan(PLAN_FIND_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
								   sql.data, key->nkeys, types);
		}
		if (ta_sd_run_plan_on_latest(plan, values, NULL) > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("rows of table \"%s\" cannot be deleted softly while rows of table \"%s\" go with them",
							get_rel_name(key->parent), RelationGetRelationName(child)),
					 errdetail("Foreign key \"%s\" is ON DELETE CASCADE, and \"%s\" is no soft-delete table.",
							   ta_foreign_key_name(key), RelationGetRelationName(child)),
					 errhint("Run techally.enable_soft_delete for \"%s\", or give the foreign key another action.",
							 RelationGetRelationName(child)),
					 errtableconstraint(child, ta_foreign_key_name(key))));
		ta_sd_owner_end(&frame);
		table_close(child, NoLock);
		return;
	}

	/* others may be about to refer to these rows */
	if (keys != NIL)
	{
		plan = ta_sd_find_plan(PLAN_LOCK_DEPENDENTS, key->constraint, InvalidOid);
		if (plan == NULL)
		{
			appendStringInfo(&sql, "SELECT 1 FROM %s c, ", ta_sd_qualified_name(key->child));
			ta_sd_append_keys_from(&sql, key, false, types);
			appendStringInfoString(&sql, " WHERE ");
			ta_sd_append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " AND c." DELETED_AT " IS NULL FOR UPDATE OF c");
			plan = ta_sd_make_plan(PLAN_LOCK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
								   sql.data, key->nkeys, types);
		}
		n = ta_sd_run_plan_on_latest(plan, values, NULL);
		SPI_freetuptable(SPI_tuptable);
		if (n == 0)
		{
			ta_sd_owner_end(&frame);
			table_close(child, NoLock);
			return;
		}
	}

	keys = ta_sd_cascading(keys);
	more = more_for(child, keys);
	plan = ta_sd_find_plan(PLAN_MARK_DEPENDENTS, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		resetStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE %s c SET " DELETED_AT " = $%d", ta_sd_qualified_name(key->child), key->nkeys + 1);
		types[key->nkeys] = TIMESTAMPTZOID;
		types[key->nkeys + 1] = UUIDOID;
		if (has_id)
			appendStringInfo(&sql, ", " DELETION_ID " = $%d", key->nkeys + 2);
		appendStringInfoString(&sql, " FROM ");
		ta_sd_append_keys_from(&sql, key, false, types);
		appendStringInfoString(&sql, " WHERE ");
		ta_sd_append_join(&sql, key, NULL, "c");
		appendStringInfoString(&sql, " AND c." DELETED_AT " IS NULL");
		ta_sd_append_returning(&sql, "RETURNING", "c", more, keys);
		plan = ta_sd_make_plan_over(PLAN_MARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
									partitions_of(child), sql.data, key->nkeys + 2, types);
	}
	n = ta_sd_run_own_plan(plan, values, NULL, DatumGetUUIDP(cascade->id), 1, ta_sd_run_plan_on_latest);
	ta_sd_owner_end(&frame);
	queue_dependents(cascade, keys, more, n);
	table_close(child, NoLock);
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
raise_already_modified(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
			 errmsg("tuple to be deleted was already modified by an operation triggered by the current command"),
			 errhint("Consider using an AFTER trigger instead of a BEFORE trigger to propagate changes to other rows.")));
}

/* The header of a row that was fetched from a table. */
static HeapTupleHeader
header_of(TupleTableSlot *slot)
{
	return ExecFetchSlotHeapTuple(slot, false, NULL)->t_data;
}

/*
 * Some rows were not there to be marked.  Those that triggers have changed
 * meanwhile, and that live, are left in the array, in their latest versions;
 * returns how many.  One that a trigger keeps from being marked stays as it is,
 * and one that was really deleted is gone.  27000 for one that was changed before
 * the command since, or moved to another partition.
 */
static int
changed_rows(Relation rel, AttrNumber deleted_at, CommandId since, ItemPointerData *rows, int nrows)
{
	TupleTableSlot	*slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	ItemPointerData *latest = palloc(sizeof(ItemPointerData) * nrows);
	Snapshot		 snapshot;
	int				 n = 0;

	memcpy(latest, rows, sizeof(ItemPointerData) * nrows);
	latest_rows(rel, latest, nrows);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < nrows; i++)
	{
		bool isnull;

		CHECK_FOR_INTERRUPTS();
		if (!table_tuple_fetch_row_version(rel, &latest[i], snapshot, slot))
		{
			if (table_tuple_fetch_row_version(rel, &rows[i], SnapshotAny, slot) &&
				HeapTupleHeaderIndicatesMovedPartitions(header_of(slot)))
				raise_already_modified();
			continue;
		}
		if (ItemPointerEquals(&latest[i], &rows[i]))
			continue;
		(void) slot_getattr(slot, deleted_at, &isnull);
		if (!isnull)
			continue;
		if (table_tuple_fetch_row_version(rel, &rows[i], SnapshotAny, slot) &&
			HeapTupleHeaderGetCmax(header_of(slot)) < since)
			raise_already_modified();
		rows[n++] = latest[i];
	}
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	pfree(latest);
	return unique_rows(rows, n);
}

/*
 * ta_sd_delete_rows
 *		Deletes rows that the caller has locked FOR UPDATE, and their dependents.
 *		Returns how many were marked.  The array is used up.
 *
 * A row that was changed before the command since, though it was locked already,
 * was changed by a trigger of the DELETE.  Raises 27000 then, as PostgreSQL's own
 * DELETE does.
 */
uint64
ta_sd_delete_rows(Relation rel, ItemPointerData *rows, int nrows, Datum id, CommandId since)
{
	Oid		   relid = RelationGetRelid(rel);
	AttrNumber deleted_at = ta_sd_column_number(rel, DELETED_AT);
	List	  *keys = ta_sd_cascading(ta_foreign_keys_to(rel));
	int		   step = keys == NIL ? MAX_MARKED : MAX_MARKED_PARENTS;
	uint64	   marked = 0;

	if (deleted_at == InvalidAttrNumber)
		ta_sd_raise_no_column(rel);
	nrows = unique_rows(rows, nrows);
	for (int first = 0; first < nrows; first += step)
	{
		int		n = Min(step, nrows - first);
		uint64	done = 1;
		Cascade cascade;

		ta_sd_connect_spi();
		cascade_begin(&cascade, id);
		while (n > 0)
		{
			Datum		 values[3];
			TaOwnerFrame frame;
			SPIPlanPtr	 plan;
			uint64		 done_before = done;

			ta_sd_owner_begin(&frame, relid);
			plan = ta_sd_find_plan(PLAN_MARK, relid, InvalidOid);
			if (plan == NULL)
			{
				StringInfoData sql;
				Oid			   types[3] = {TIDARRAYOID, TIMESTAMPTZOID, UUIDOID};

				initStringInfo(&sql);
				appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETED_AT " = $2%s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
								 ta_sd_qualified_name(relid),
								 ta_sd_column_number(rel, DELETION_ID) != InvalidAttrNumber ? ", " DELETION_ID " = $3" : "");
				ta_sd_append_returning(&sql, "RETURNING", "t", 0, keys);
				plan = ta_sd_make_plan_by_row(PLAN_MARK, relid, sql.data, 3, types);
			}
			values[0] = ta_sd_row_array(rows + first, n);
			values[1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
			values[2] = id;
			done = ta_sd_run_own_plan(plan, values, NULL, DatumGetUUIDP(id), 1, ta_sd_run_plan);
			ta_sd_owner_end(&frame);
			queue_dependents(&cascade, keys, 0, done);
			marked += done;
			n = done < (uint64) n ? changed_rows(rel, deleted_at, since, rows + first, n) : 0;
			/* triggers that change each other's rows come to no end */
			if (n > 0 && done == 0 && done_before == 0)
				raise_already_modified();
		}
		run_cascade(&cascade, delete_dependents);
		ta_sd_finish_spi();
	}
	return marked;
}

/*
 * ta_sd_delete_rows_by_hand
 *		Somebody has set deleted_at.  The row is locked so that nobody can come to
 *		refer to it, and its dependents follow.
 */
void
ta_sd_delete_rows_by_hand(Relation rel, ItemPointerData *rows, int nrows, Datum id)
{
	Oid	  relid = RelationGetRelid(rel);
	List *keys = ta_sd_cascading(ta_foreign_keys_to(rel));

	nrows = unique_rows(rows, nrows);
	for (int first = 0; first < nrows; first += MAX_MARKED_PARENTS)
	{
		int			 n = Min(MAX_MARKED_PARENTS, nrows - first);
		Datum		 values[2];
		TaOwnerFrame frame;
		SPIPlanPtr	 plan;
		Cascade		 cascade;

		ta_sd_connect_spi();
		cascade_begin(&cascade, id);
		ta_sd_owner_begin(&frame, relid);
		values[0] = ta_sd_row_array(rows + first, n);
		values[1] = id;
		plan = ta_sd_find_plan(PLAN_LOCK, relid, InvalidOid);
		if (plan == NULL)
		{
			Oid types[1] = {TIDARRAYOID};

			plan = ta_sd_make_plan_by_row(PLAN_LOCK, relid,
										  psprintf("SELECT 1 FROM ONLY %s t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1) FOR UPDATE",
												   ta_sd_qualified_name(relid)),
										  1, types);
		}
		if (ta_sd_run_plan(plan, values, NULL) < (uint64) n)
		{
			latest_rows(rel, rows + first, n);
			values[0] = ta_sd_row_array(rows + first, n);
			(void) ta_sd_run_plan(plan, values, NULL);
		}
		if (keys != NIL)
		{
			plan = ta_sd_find_plan(PLAN_STAMP, relid, InvalidOid);
			if (plan == NULL)
			{
				StringInfoData sql;
				Oid			   types[2] = {TIDARRAYOID, UUIDOID};

				initStringInfo(&sql);
				appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETION_ID " = $2"
									   " WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1) AND t." DELETED_AT " IS NOT NULL",
								 ta_sd_qualified_name(relid));
				ta_sd_append_returning(&sql, "RETURNING", "t", 0, keys);
				plan = ta_sd_make_plan_by_row(PLAN_STAMP, relid, sql.data, 2, types);
			}
			queue_dependents(&cascade, keys, 0, ta_sd_run_plan(plan, values, NULL));
		}
		ta_sd_owner_end(&frame);
		run_cascade(&cascade, delete_dependents);
		ta_sd_finish_spi();
	}
}

/* ---------------------------------------------------------------------
 * Restoring
 * ---------------------------------------------------------------------
 */

/*
 * Restores the rows that refer to these keys and went with the deletion that
 * each was of, and queues what went along; but for those that have another
 * parent that is still deleted: they come back with that one if it went with
 * the same deletion.
 */
static void
restore_dependents(Cascade *cascade, const TaForeignKey *key, const TaKeyArrays *arrays)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	Datum		   values[INDEX_MAX_KEYS + 1];
	Oid			   types[INDEX_MAX_KEYS + 1];
	List		  *coparents = NIL;
	List		  *keys;
	int			   more;
	ListCell	  *cell;
	TaOwnerFrame   frame;
	SPIPlanPtr	   plan;
	StringInfoData sql;
	uint64		   n;

	if (!ta_is_soft_delete_table(child) || ta_sd_column_number(child, DELETION_ID) == InvalidAttrNumber)
	{
		table_close(child, NoLock);
		return;
	}
	foreach(cell, ta_foreign_keys_of(child))
	{
		TaForeignKey *other = lfirst(cell);

		if (other->constraint != key->constraint && other->on_delete == FKCONSTR_ACTION_CASCADE &&
			ta_sd_is_soft_delete_relid(other->parent))
			coparents = lappend(coparents, other);
	}
	keys = ta_sd_cascading(ta_foreign_keys_to_tree(child));
	more = TA_RETURN_ID | more_for(child, keys);
	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = arrays->ids;
	initStringInfo(&sql);
	ta_sd_owner_begin(&frame, key->child);

	/* whoever is deleting another parent must be done */
	foreach(cell, coparents)
	{
		TaForeignKey *other = lfirst(cell);

		plan = ta_sd_find_plan(PLAN_LOCK_COPARENTS, key->constraint, other->constraint);
		if (plan == NULL)
		{
			resetStringInfo(&sql);
			appendStringInfo(&sql, "SELECT 1 FROM %s c, %s q, ", ta_sd_qualified_name(key->child), ta_sd_qualified_name(other->parent));
			ta_sd_append_keys_from(&sql, key, true, types);
			appendStringInfoString(&sql, " WHERE ");
			ta_sd_append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " AND ");
			ta_sd_append_join(&sql, other, "q", "c");
			appendStringInfoString(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) k.id AND " IS_DELETED("c") " FOR KEY SHARE OF q");
			plan = ta_sd_make_plan(PLAN_LOCK_COPARENTS, key->constraint, other->constraint, key->child, other->parent,
								   sql.data, key->nkeys + 1, types);
		}
		(void) ta_sd_run_plan_on_latest(plan, values, NULL);
		SPI_freetuptable(SPI_tuptable);
	}

	plan = ta_sd_find_plan(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		List *others = partitions_of(child);

		resetStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE %s c SET " DELETED_AT " = NULL, " DELETION_ID " = NULL FROM ", ta_sd_qualified_name(key->child));
		ta_sd_append_keys_from(&sql, key, true, types);
		appendStringInfoString(&sql, " WHERE ");
		ta_sd_append_join(&sql, key, NULL, "c");
		appendStringInfoString(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) k.id AND " IS_DELETED("c"));
		foreach(cell, coparents)
		{
			TaForeignKey *other = lfirst(cell);

			others = lappend_oid(others, other->parent);
			appendStringInfo(&sql, " AND NOT EXISTS (SELECT FROM %s q WHERE ", ta_sd_qualified_name(other->parent));
			ta_sd_append_join(&sql, other, "q", "c");
			appendStringInfoString(&sql, " AND " IS_DELETED("q") ")");
		}
		ta_sd_append_returning(&sql, "RETURNING", "c", more, keys);
		plan = ta_sd_make_plan_over(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent, others,
									sql.data, key->nkeys + 1, types);
	}
	n = ta_sd_run_own_plan(plan, values, NULL, arrays->deletions, arrays->ndeletions, ta_sd_run_plan_on_latest);
	ta_sd_owner_end(&frame);
	queue_dependents(cascade, keys, more, n);
	table_close(child, NoLock);
}

/* The plan of a kind over rows and the deletions that they were of, $1 and $2. */
static SPIPlanPtr
plan_of_restored(PlanKind kind, Relation rel, const char *statement, const char *condition, const char *word, List *keys)
{
	Oid			   relid = RelationGetRelid(rel);
	SPIPlanPtr	   plan = ta_sd_find_plan(kind, relid, InvalidOid);
	Oid			   types[2] = {TIDARRAYOID, UUIDARRAYOID};
	StringInfoData sql;

	if (plan != NULL)
		return plan;
	initStringInfo(&sql);
	if (kind == PLAN_FIND_RESTORED)
		ta_sd_append_returning(&sql, word, "t", TA_RETURN_ID, keys);
	appendStringInfo(&sql, statement, ta_sd_qualified_name(relid));
	appendStringInfo(&sql, " ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS k(place, id)"
						   " WHERE t.ctid OPERATOR(pg_catalog.=) k.place%s",
					 condition);
	if (kind != PLAN_FIND_RESTORED)
		ta_sd_append_returning(&sql, word, "t", TA_RETURN_ID, keys);
	return ta_sd_make_plan_by_row(kind, relid, sql.data, 2, types);
}

/*
 * ta_sd_restore_row
 *		Restores a row that the caller has locked, and what went with it.  False
 *		where a trigger has dropped the change.  Raises 23503 where a parent is
 *		deleted.
 */
bool
ta_sd_restore_row(Relation rel, ItemPointer row)
{
	Oid				relid = RelationGetRelid(rel);
	AttrNumber		deletion_id = ta_sd_column_number(rel, DELETION_ID);
	List		   *keys = ta_sd_cascading(ta_foreign_keys_to(rel));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	Snapshot		snapshot;
	pg_uuid_t		id;
	bool			isnull = true;
	bool			found;
	Datum			values[2];
	TaOwnerFrame	frame;
	SPIPlanPtr		plan;
	uint64			done;
	Cascade			cascade;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = table_tuple_fetch_row_version(rel, row, snapshot, slot);
	UnregisterSnapshot(snapshot);
	if (!found)
		elog(ERROR, "locked row of \"%s\" has vanished", RelationGetRelationName(rel));
	if (deletion_id != InvalidAttrNumber)
	{
		Datum value = slot_getattr(slot, deletion_id, &isnull);

		if (!isnull)
			id = *DatumGetUUIDP(value);
	}

	ta_sd_connect_spi();
	cascade_begin(&cascade, (Datum) 0);
	ta_sd_owner_begin(&frame, relid);
	values[0] = ta_sd_row_array(row, 1);
	if (isnull)
	{
		/* nothing can have gone along */
		Oid types[1] = {TIDARRAYOID};

		keys = NIL;
		plan = SPI_prepare(psprintf("UPDATE ONLY %s t SET " DELETED_AT " = NULL WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
									ta_sd_qualified_name(relid)),
						   1, types);
		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	}
	else
	{
		plan = plan_of_restored(PLAN_UNMARK, rel, "UPDATE ONLY %s t SET " DELETED_AT " = NULL, " DELETION_ID " = NULL FROM",
								"", "RETURNING", keys);
		values[1] = ta_sd_id_array(&id, 1);
	}
	done = ta_sd_run_own_plan(plan, values, NULL, &id, isnull ? 0 : 1, ta_sd_run_plan);
	ta_sd_owner_end(&frame);
	queue_dependents(&cascade, keys, TA_RETURN_ID, done);
	run_cascade(&cascade, restore_dependents);
	ta_sd_finish_spi();

	/* now, for in a circle they may have come back just so */
	ta_sd_check_parents_live(rel, slot);
	ExecDropSingleTupleTableSlot(slot);
	return done > 0;
}

/*
 * ta_sd_restore_rows_by_hand
 *		Somebody has cleared deleted_at.  What went with the deletion that each row
 *		was of comes back with it; a nil id stands for none.  Raises 23503 where a
 *		parent is deleted.
 */
void
ta_sd_restore_rows_by_hand(Relation rel, ItemPointerData *rows, const pg_uuid_t *ids, int nrows)
{
	AttrNumber deleted_at = ta_sd_column_number(rel, DELETED_AT);
	bool	   has_id = ta_sd_column_number(rel, DELETION_ID) != InvalidAttrNumber;
	List	  *keys = ta_sd_cascading(ta_foreign_keys_to(rel));

	for (int first = 0; first < nrows; first += MAX_MARKED_PARENTS)
	{
		int				n = Min(MAX_MARKED_PARENTS, nrows - first);
		Datum			values[2];
		TaOwnerFrame	frame;
		SPIPlanPtr		plan;
		Cascade			cascade;
		TupleTableSlot *slot;

		ta_sd_connect_spi();
		cascade_begin(&cascade, (Datum) 0);
		ta_sd_owner_begin(&frame, RelationGetRelid(rel));
		latest_rows(rel, rows + first, n);
		values[0] = ta_sd_row_array(rows + first, n);
		values[1] = ta_sd_id_array(ids + first, n);
		if (has_id && keys != NIL)
		{
			plan = plan_of_restored(PLAN_FIND_RESTORED, rel, " FROM ONLY %s t,", " AND t." DELETED_AT " IS NULL", "SELECT", keys);
			queue_dependents(&cascade, keys, TA_RETURN_ID, ta_sd_run_plan(plan, values, NULL));
		}
		if (has_id)
		{
			plan = plan_of_restored(PLAN_CLEAR, rel, "UPDATE ONLY %s t SET " DELETION_ID " = NULL FROM",
									" AND t." DELETED_AT " IS NULL AND t." DELETION_ID " IS NOT NULL", "", NIL);
			(void) ta_sd_run_plan(plan, values, NULL);
		}
		ta_sd_owner_end(&frame);
		run_cascade(&cascade, restore_dependents);
		ta_sd_finish_spi();

		/* now, for in a circle they may have come back just so */
		slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
		latest_rows(rel, rows + first, n);
		for (int i = first; i < first + n; i++)
		{
			Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
			bool	 isnull = false;

			CHECK_FOR_INTERRUPTS();
			if (table_tuple_fetch_row_version(rel, &rows[i], snapshot, slot))
				(void) slot_getattr(slot, deleted_at, &isnull);
			UnregisterSnapshot(snapshot);
			if (isnull)
				ta_sd_check_parents_live(rel, slot);
			ExecClearTuple(slot);
		}
		ExecDropSingleTupleTableSlot(slot);
	}
}
