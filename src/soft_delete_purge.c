/*-------------------------------------------------------------------------
 *
 * soft_delete_purge.c
 *	  Really removing rows that were deleted long ago, in batches.
 *
 * No living row is removed: a row that one depends on, at whatever distance, is
 * left where it is.
 *
 * Lock order: the rows of a batch, FOR UPDATE, passing over those that somebody
 * has locked; then what goes with them, as foreign keys do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "foreign_key.h"
#include "request_util.h"
#include "soft_delete.h"
#include "soft_delete_plan.h"
#include "spi_util.h"
#include "trigger_util.h"

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

	foreach(cell, ta_foreign_keys_to_tree(rel))
	{
		TaForeignKey *key = lfirst(cell);
		char		 *child_alias = psprintf("x%d", depth);
		Relation	  child;
		ListCell	 *partition;

		if (key->on_delete == FKCONSTR_ACTION_SETNULL || key->on_delete == FKCONSTR_ACTION_SETDEFAULT)
			continue;
		appendStringInfo(sql, " OR EXISTS (SELECT FROM %s %s WHERE ", ta_sd_qualified_name(key->child), child_alias);
		ta_sd_append_join(sql, key, alias, child_alias);
		/* a key that refers to one partition */
		if (key->parent != RelationGetRelid(rel))
		{
			appendStringInfo(sql, " AND %s.tableoid OPERATOR(pg_catalog.=) ANY (ARRAY[0", alias);
			foreach(partition, find_all_inheritors(key->parent, AccessShareLock, NULL))
				appendStringInfo(sql, ", %u", lfirst_oid(partition));
			appendStringInfoString(sql, "]::pg_catalog.oid[])");
		}
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
	Datum	   values[1] = {ta_sd_row_array(rows, nrows)};
	Oid		   types[1] = {TIDARRAYOID};
	SPIPlanPtr plan = ta_sd_find_plan(PLAN_REMOVE, relid, InvalidOid);
	uint64	   n;

	if (plan == NULL)
		plan = ta_sd_make_plan_by_row(PLAN_REMOVE, relid,
									  psprintf("DELETE FROM ONLY %s t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ($1)",
											   ta_sd_qualified_name(relid)),
									  1, types);
	ta_pass_through_begin(relid);
	n = ta_sd_run_plan(plan, values, NULL);
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
	TaOwnerFrame			 frame;
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

	ta_sd_connect_spi();
	ta_sd_owner_begin(&frame, relid);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT t.tableoid, t.ctid FROM %s t WHERE t." DELETED_AT " OPERATOR(pg_catalog.<) $1"
						   " AND NOT (false",
					 ta_sd_qualified_name(relid));
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
										   ta_sd_qualified_name(relid)),
								  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not count deleted rows");
		kept = DatumGetInt64(ta_spi_value(0, 1, &isnull));
		if (kept > 0)
			ereport(NOTICE,
					(errmsg_plural("%lld deleted row of table \"%s\" stays", "%lld deleted rows of table \"%s\" stay",
								   kept, (long long) kept, RelationGetRelationName(rel)),
					 errdetail("Other rows refer to them, or other transactions have locked them.")));
	}
	ta_sd_owner_end(&frame);
	ta_sd_finish_spi();
	relation_close(rel, NoLock);
	PG_RETURN_INT64(removed);
}
