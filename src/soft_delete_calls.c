/*-------------------------------------------------------------------------
 *
 * soft_delete_calls.c
 *	  Deleting and restoring one row, by the name of its table and its uuid.
 *
 * Everything is done with the rights of the caller: the table must be one that he
 * may UPDATE, the row one that his row security lets him see and lock.  Only the
 * marking itself is the owner's, see soft_delete_plan.c.
 *
 * Lock order: the row's parents where it is to be restored, FOR KEY SHARE; the
 * row, FOR UPDATE; then what goes along.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/uuid.h"
#include "utils/varlena.h"

#include "compat.h"
#include "errors.h"
#include "request_util.h"
#include "soft_delete.h"
#include "soft_delete_cascade.h"
#include "soft_delete_parents.h"
#include "soft_delete_plan.h"
#include "spi_util.h"

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
		attnum = ta_sd_column_number(rel, "id");
	if (attnum == InvalidAttrNumber || getBaseType(get_atttype(RelationGetRelid(rel), attnum)) != UUIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" has no key of type %s", RelationGetRelationName(rel), "uuid"),
				 errhint("Use DELETE, or an UPDATE of column \"%s\".", DELETED_AT)));
	return attnum;
}

/* Looks for a row by its uuid, as the caller; false where there is none. */
static bool
find_row(Relation rel, PlanKind kind, Datum record_id, Oid *leaf, ItemPointer row, bool *deleted)
{
	Oid		   relid = RelationGetRelid(rel);
	SPIPlanPtr plan = ta_sd_find_plan(kind, relid, InvalidOid);
	bool	   isnull;
	uint64	   n;

	if (plan == NULL)
	{
		Oid types[1] = {UUIDOID};

		plan = ta_sd_make_plan(kind, relid, InvalidOid, relid, InvalidOid,
							   psprintf("SELECT t.tableoid, t.ctid, t." DELETED_AT " IS NOT NULL FROM %s t"
										" WHERE t.%s OPERATOR(pg_catalog.=) $1%s",
										ta_sd_qualified_name(relid), ta_sd_column_name(relid, uuid_key(rel)),
										kind == PLAN_SELECT_ROW ? " FOR UPDATE" : ""),
							   1, types);
	}
	n = ta_sd_run_plan(plan, &record_id, NULL);
	/* to a snapshot a row may be there that is gone, and one of the same key that came since */
	if (n > 1 && kind == PLAN_FIND_ROW)
		return false;
	if (n > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("table \"%s\" has several rows %s", RelationGetRelationName(rel),
						DatumGetCString(DirectFunctionCall1(uuid_out, record_id)))));
	if (n == 0)
		return false;
	*leaf = DatumGetObjectId(ta_spi_value(0, 1, &isnull));
	*row = *(ItemPointer) DatumGetPointer(ta_spi_value(0, 2, &isnull));
	*deleted = DatumGetBool(ta_spi_value(0, 3, &isnull));
	return true;
}

/* A row is going to be restored: its parents are locked before it is. */
static void
lock_parents_of(Oid leaf, ItemPointer row)
{
	Relation		rel = table_open(leaf, RowExclusiveLock);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));

	if (table_tuple_fetch_row_version(rel, row, SnapshotAny, slot))
		ta_sd_lock_parents(rel, slot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

/*
 * Locks a row FOR UPDATE, as the caller: with its privileges, and if its row
 * security lets it; and before it, where it is to be restored, its parents.
 * Raises TA007 where there is none.  Returns the table that the row lies in,
 * open, and whether it is deleted.
 */
static Relation
lock_row(Oid relid, Datum record_id, bool to_restore, ItemPointer row, bool *deleted)
{
	Relation rel;
	Oid		 leaf = relid;

	check_target(relid);
	rel = table_open(relid, RowExclusiveLock);
	ta_sd_connect_spi();
	if (to_restore && find_row(rel, PLAN_FIND_ROW, record_id, &leaf, row, deleted) && *deleted)
		lock_parents_of(leaf, row);
	if (!find_row(rel, PLAN_SELECT_ROW, record_id, &leaf, row, deleted))
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("table \"%s\" has no row %s", RelationGetRelationName(rel),
						DatumGetCString(DirectFunctionCall1(uuid_out, record_id)))));
	ta_sd_finish_spi();
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
	Relation		rel = lock_row(relid, record_id, false, &row, &deleted);
	bool			result = !deleted && ta_sd_delete_rows(rel, &row, 1, ta_sd_new_deletion_id(), GetCurrentCommandId(false)) > 0;

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
 * caller may see it.  Returns where there is nothing to add to the error, and takes
 * from it what he may not see.
 */
static void
raise_taken(ErrorData *error, Relation rel, ItemPointer row)
{
	Oid				nspid = error->schema_name ? get_namespace_oid(error->schema_name, true) : InvalidOid;
	Oid				indexid = OidIsValid(nspid) && error->constraint_name ? get_relname_relid(error->constraint_name, nspid) : InvalidOid;
	Oid				relid;
	Relation		table;
	Relation		index;
	AttrNumber		deletion_id = ta_sd_column_number(rel, DELETION_ID);
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
	{
		/* what the owner may see, in whose name it was done */
		error->detail = NULL;
		return;
	}
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
		appendStringInfo(&sql, "t.%s AS p%d, ", ta_sd_column_name(relid, key_columns[i]), i + 1);
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
	appendStringInfo(&sql, " FROM ONLY %s t WHERE %s) l JOIN (SELECT ", ta_sd_qualified_name(relid),
					 TextDatumGetCString(DirectFunctionCall2(pg_get_expr,
															 CStringGetTextDatum(nodeToString(make_ands_explicit(RelationGetIndexPredicate(index)))),
															 ObjectIdGetDatum(relid))));
	for (int i = 0; i < nindex; i++)
		appendStringInfo(&sql, "%s%s AS x%d", i > 0 ? ", " : "",
						 TextDatumGetCString(DirectFunctionCall3(pg_get_indexdef_ext, ObjectIdGetDatum(indexid),
																 Int32GetDatum(i + 1), BoolGetDatum(false))),
						 i + 1);
	appendStringInfo(&sql, " FROM ONLY %s t WHERE t." DELETED_AT " IS NOT NULL AND (", ta_sd_qualified_name(relid));
	if (relid == RelationGetRelid(rel))
		appendStringInfoString(&sql, "t.ctid OPERATOR(pg_catalog.=) $1");
	else
		appendStringInfoString(&sql, "$1 IS NULL");
	if (ta_sd_column_number(table, DELETION_ID) != InvalidAttrNumber)
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

	ta_sd_connect_spi();
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
	ta_sd_finish_spi();
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(table, NoLock);
}

static bool
restore_deleted(Oid relid, Datum record_id)
{
	ItemPointerData row;
	bool			deleted;
	Relation		rel = lock_row(relid, record_id, true, &row, &deleted);
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
			result = ta_sd_restore_row(rel, &row);
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
