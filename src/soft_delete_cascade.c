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
 * Lock order: parents before their dependents.  A row is locked FOR UPDATE before
 * it is marked or, where somebody has set deleted_at by hand, before its
 * dependents are looked for: that conflicts with the FOR KEY SHARE of whoever
 * comes to refer to it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
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
 * Deleting
 * ---------------------------------------------------------------------
 */

static void delete_dependents(const TaForeignKey *key, const TaKeyArrays *arrays, Datum id);

/*
 * ta_sd_new_deletion_id
 *		An id that no other deletion has.
 */
Datum
ta_sd_new_deletion_id(void)
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
		TaKeyArrays	  arrays;

		ta_sd_take_keys(key, table, nrows, column, &arrays);
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
delete_dependents(const TaForeignKey *key, const TaKeyArrays *arrays, Datum id)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	bool		   softly = ta_is_soft_delete_table(child);
	bool		   has_id = ta_sd_column_number(child, DELETION_ID) != InvalidAttrNumber;
	List		  *keys = softly ? ta_foreign_keys_to(child) : NIL;
	Datum		   values[INDEX_MAX_KEYS + 2];
	Oid			   types[INDEX_MAX_KEYS + 2];
	TaOwnerFrame   frame;
	SPIPlanPtr	   plan;
	StringInfoData sql;
	uint64		   n;

	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[key->nkeys + 1] = id;
	initStringInfo(&sql);
	ta_sd_owner_begin(&frame, key->child);

	if (!softly)
	{
		plan = ta_sd_find_plan(PLAN_FIND_DEPENDENTS, key->constraint, InvalidOid);
		if (plan == NULL)
		{
			appendStringInfo(&sql, "SELECT 1 FROM %s c, ", ta_sd_qualified_name(key->child));
			ta_sd_append_keys_from(&sql, key, 1, types);
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
			ta_sd_append_keys_from(&sql, key, 1, types);
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
		ta_sd_append_keys_from(&sql, key, 1, types);
		appendStringInfoString(&sql, " WHERE ");
		ta_sd_append_join(&sql, key, NULL, "c");
		appendStringInfoString(&sql, " AND c." DELETED_AT " IS NULL");
		ta_sd_append_returning(&sql, "c", keys);
		plan = ta_sd_make_plan(PLAN_MARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent,
							   sql.data, key->nkeys + 2, types);
	}
	n = ta_sd_run_own_plan(plan, values, DatumGetUUIDP(id), ta_sd_run_plan_on_latest);
	ta_sd_owner_end(&frame);
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

/*
 * ta_sd_delete_rows
 *		Deletes rows that the caller has locked FOR UPDATE, and their dependents.
 *		Returns how many were marked.  The array is sorted in place.
 */
uint64
ta_sd_delete_rows(Relation rel, ItemPointerData *rows, int nrows, Datum id)
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
		int			 n = Min(step, nrows - first);
		Datum		 values[3];
		TaOwnerFrame frame;
		SPIPlanPtr	 plan;
		uint64		 done;

		ta_sd_connect_spi();
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
			ta_sd_append_returning(&sql, "t", keys);
			plan = ta_sd_make_plan(PLAN_MARK, relid, InvalidOid, relid, InvalidOid, sql.data, 3, types);
		}
		values[0] = ta_sd_row_array(rows + first, n);
		values[1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
		values[2] = id;
		done = ta_sd_run_own_plan(plan, values, DatumGetUUIDP(id), ta_sd_run_plan);
		if (done < (uint64) n)
			check_unmarked(rel, deleted_at, rows + first, n);
		ta_sd_owner_end(&frame);
		delete_all_dependents(keys, done, id);
		ta_sd_finish_spi();
		marked += done;
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
		uint64		 done;

		ta_sd_connect_spi();
		ta_sd_owner_begin(&frame, relid);
		values[0] = ta_sd_row_array(rows + first, n);
		values[1] = id;
		plan = ta_sd_find_plan(PLAN_LOCK, relid, InvalidOid);
		if (plan == NULL)
		{
			Oid types[1] = {TIDARRAYOID};

			plan = ta_sd_make_plan(PLAN_LOCK, relid, InvalidOid, relid, InvalidOid,
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
		done = 0;
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
				ta_sd_append_returning(&sql, "t", keys);
				plan = ta_sd_make_plan(PLAN_STAMP, relid, InvalidOid, relid, InvalidOid, sql.data, 2, types);
			}
			done = ta_sd_run_plan(plan, values, NULL);
		}
		ta_sd_owner_end(&frame);
		delete_all_dependents(keys, done, id);
		ta_sd_finish_spi();
	}
}

/* ---------------------------------------------------------------------
 * Restoring
 * ---------------------------------------------------------------------
 */

static void restore_dependents(const TaForeignKey *key, const TaKeyArrays *arrays, Datum id);

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
		TaKeyArrays	  arrays;

		ta_sd_take_keys(key, table, nrows, column, &arrays);
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
restore_dependents(const TaForeignKey *key, const TaKeyArrays *arrays, Datum id)
{
	Relation	   child = table_open(key->child, RowExclusiveLock);
	Datum		   values[INDEX_MAX_KEYS + 1];
	Oid			   types[INDEX_MAX_KEYS + 1];
	List		  *coparents = NIL;
	List		  *keys;
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
	keys = ta_sd_cascading(ta_foreign_keys_to(child));
	memcpy(values, arrays->values, sizeof(Datum) * key->nkeys);
	values[key->nkeys] = id;
	types[key->nkeys] = UUIDOID;
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
			ta_sd_append_keys_from(&sql, key, 1, types);
			appendStringInfoString(&sql, " WHERE ");
			ta_sd_append_join(&sql, key, NULL, "c");
			appendStringInfoString(&sql, " AND ");
			ta_sd_append_join(&sql, other, "q", "c");
			appendStringInfo(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) $%d"
								   " AND c." DELETED_AT " IS NOT NULL FOR KEY SHARE OF q",
							 key->nkeys + 1);
			plan = ta_sd_make_plan(PLAN_LOCK_COPARENTS, key->constraint, other->constraint, key->child, other->parent,
								   sql.data, key->nkeys + 1, types);
		}
		(void) ta_sd_run_plan_on_latest(plan, values, NULL);
		SPI_freetuptable(SPI_tuptable);
	}

	plan = ta_sd_find_plan(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid);
	if (plan == NULL)
	{
		List *others = NIL;

		resetStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE %s c SET " DELETED_AT " = NULL, " DELETION_ID " = NULL FROM ", ta_sd_qualified_name(key->child));
		ta_sd_append_keys_from(&sql, key, 1, types);
		appendStringInfoString(&sql, " WHERE ");
		ta_sd_append_join(&sql, key, NULL, "c");
		appendStringInfo(&sql, " AND c." DELETION_ID " OPERATOR(pg_catalog.=) $%d AND c." DELETED_AT " IS NOT NULL",
						 key->nkeys + 1);
		foreach(cell, coparents)
		{
			TaForeignKey *other = lfirst(cell);

			others = lappend_oid(others, other->parent);
			appendStringInfo(&sql, " AND NOT EXISTS (SELECT FROM %s q WHERE ", ta_sd_qualified_name(other->parent));
			ta_sd_append_join(&sql, other, "q", "c");
			appendStringInfoString(&sql, " AND q." DELETED_AT " IS NOT NULL)");
		}
		ta_sd_append_returning(&sql, "c", keys);
		plan = ta_sd_make_plan_over(PLAN_UNMARK_DEPENDENTS, key->constraint, InvalidOid, key->child, key->parent, others,
									sql.data, key->nkeys + 1, types);
	}
	n = ta_sd_run_own_plan(plan, values, DatumGetUUIDP(id), ta_sd_run_plan_on_latest);
	ta_sd_owner_end(&frame);
	restore_all_dependents(keys, n, id);
	table_close(child, NoLock);
}

/*
 * ta_sd_restore_row
 *		Restores a row that the caller has locked, or that somebody has restored by
 *		hand, and what went with it: with the deletion that the row names, or with
 *		this one, where its id was cleared by hand, too.  False where a trigger has
 *		dropped the change.
 */
bool
ta_sd_restore_row(Relation rel, ItemPointer row, bool by_hand, const pg_uuid_t *cleared)
{
	Oid				relid = RelationGetRelid(rel);
	AttrNumber		deletion_id = ta_sd_column_number(rel, DELETION_ID);
	List		   *keys = ta_sd_cascading(ta_foreign_keys_to(rel));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	Snapshot		snapshot;
	pg_uuid_t		id;
	bool			isnull = true;
	bool			found;
	Datum			values[1];
	TaOwnerFrame	frame;
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
		(void) slot_getattr(slot, ta_sd_column_number(rel, DELETED_AT), &isnull);
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

	ta_sd_connect_spi();
	ta_sd_owner_begin(&frame, relid);
	plan = ta_sd_find_plan(PLAN_UNMARK, relid, InvalidOid);
	if (plan == NULL)
	{
		StringInfoData sql;
		Oid			   types[1] = {TIDARRAYOID};

		initStringInfo(&sql);
		appendStringInfo(&sql, "UPDATE ONLY %s t SET " DELETED_AT " = NULL%s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
						 ta_sd_qualified_name(relid), deletion_id != InvalidAttrNumber ? ", " DELETION_ID " = NULL" : "");
		ta_sd_append_returning(&sql, "t", keys);
		plan = ta_sd_make_plan(PLAN_UNMARK, relid, InvalidOid, relid, InvalidOid, sql.data, 1, types);
	}
	values[0] = ta_sd_row_array(row, 1);
	done = ta_sd_run_own_plan(plan, values, isnull ? NULL : &id, ta_sd_run_plan);
	ta_sd_owner_end(&frame);
	if (!isnull)
		restore_all_dependents(keys, done, UUIDPGetDatum(&id));
	ta_sd_finish_spi();

	/* now, for in a circle they may have come back just so */
	ta_sd_check_parents_live(rel, slot);
	ExecDropSingleTupleTableSlot(slot);
	return done > 0;
}
