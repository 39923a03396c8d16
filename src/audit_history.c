/*-------------------------------------------------------------------------
 *
 * audit_history.c
 *	  What the functions that read an audit log need to know of a table: where
 *	  its changes are, its keys and rows in the form in which the log has them.
 *
 * All of it runs as whoever calls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "audit_image.h"
#include "audit_log.h"
#include "compat.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(ta_audit_source);
PG_FUNCTION_INFO_V1(ta_audit_key_of);
PG_FUNCTION_INFO_V1(ta_audit_image_of);
PG_FUNCTION_INFO_V1(ta_audit_omitted);

static Relation
open_target(Oid relid)
{
	char *name = get_rel_name(relid);
	char  relkind = get_rel_relkind(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", relid)));
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE && relkind != RELKIND_FOREIGN_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name)));
	return table_open(relid, AccessShareLock);
}

/*
 * ta_audit_source
 *		audit_source(target regclass, OUT log regclass, OUT table_schema text,
 *					 OUT table_name text, OUT root regclass, OUT primary_key name[])
 *
 * For a log itself the names are NULL.  Raises 55000 where there is no log,
 * 42809 where another table stands in its place.
 */
Datum
ta_audit_source(PG_FUNCTION_ARGS)
{
	Oid		  relid = PG_GETARG_OID(0);
	TupleDesc tupdesc;
	Datum	  values[5] = {0};
	bool	  nulls[5] = {false, false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (ta_is_audit_log(relid))
	{
		values[0] = values[3] = ObjectIdGetDatum(relid);
		nulls[1] = nulls[2] = nulls[4] = true;
	}
	else
	{
		Relation	   rel = open_target(relid);
		TaAuditFormat *format = ta_audit_format(rel);
		Oid			   log = ta_audit_log_of(format->nspid, false);
		Datum		  *names = palloc(sizeof(Datum) * Max(format->nkey, 1));

		if (!OidIsValid(log))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("schema \"%s\" has no audit log", format->schema_name),
					 errhint("techally.enable_audit makes one.")));
		for (int i = 0; i < format->nkey; i++)
			names[i] = DirectFunctionCall1(namein, CStringGetDatum(format->key[i].name));
		values[0] = ObjectIdGetDatum(log);
		values[1] = CStringGetTextDatum(format->schema_name);
		values[2] = CStringGetTextDatum(format->table_name);
		values[3] = ObjectIdGetDatum(format->root);
		values[4] = PointerGetDatum(construct_array(names, format->nkey, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
		ta_audit_format_release(format);
		table_close(rel, NoLock);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}

static int
compare_attnums(const void *left, const void *right)
{
	return ((const TaAuditColumn *) left)->attnum - ((const TaAuditColumn *) right)->attnum;
}

/* Raises where a key has not all columns of the primary key, or others. */
static void
check_key(Relation rel, const TaAuditFormat *format, Jsonb *key)
{
	StringInfoData columns;
	bool		   complete = JB_ROOT_IS_OBJECT(key) && JB_ROOT_COUNT(key) == (uint32) format->nkey;

	if (format->nkey == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(rel)),
				 errdetail("The log cannot tell its rows apart.")));
	initStringInfo(&columns);
	for (int i = 0; i < format->nkey; i++)
	{
		JsonbValue	name;
		JsonbValue *value;

		name.type = jbvString;
		name.val.string.val = (char *) format->key[i].name;
		name.val.string.len = format->key[i].name_length;
		value = JB_ROOT_IS_OBJECT(key) ? findJsonbValueFromContainer(&key->root, JB_FOBJECT, &name) : NULL;
		complete &= value != NULL && value->type != jbvNull;
		appendStringInfo(&columns, "%s%s", i == 0 ? "" : ", ", format->key[i].name);
	}
	if (!complete)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key is not the primary key of table \"%s\"", RelationGetRelationName(rel)),
				 errdetail("It is an object with the columns %s.", columns.data)));
}

/* The key's columns as jsonb_to_record takes them, in the order of the table. */
static char *
key_record(Relation rel, const TaAuditFormat *format, TaAuditColumn *sorted)
{
	StringInfoData buf;

	memcpy(sorted, format->key, sizeof(TaAuditColumn) * format->nkey);
	qsort(sorted, format->nkey, sizeof(TaAuditColumn), compare_attnums);
	initStringInfo(&buf);
	for (int i = 0; i < format->nkey; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(rel), sorted[i].attnum - 1);

		appendStringInfo(&buf, "%s%s %s", i == 0 ? "" : ", ", quote_identifier(sorted[i].name),
						 format_type_with_typemod(attribute->atttypid, attribute->atttypmod));
	}
	return buf.data;
}

static Jsonb *
copy_result(StringInfo buf, MemoryContext context)
{
	Jsonb *result = MemoryContextAlloc(context, buf->len);

	memcpy(result, buf->data, buf->len);
	return result;
}

/*
 * ta_audit_key_of
 *		audit_key(target regclass, key jsonb) → jsonb
 *
 * The key as the log has it: values in the form that their types give them.
 * Raises 22023 where it is not all of the primary key's columns, 55000 for a
 * table without one, and what their input functions raise.
 */
Datum
ta_audit_key_of(PG_FUNCTION_ARGS)
{
	MemoryContext	caller = CurrentMemoryContext;
	Oid				relid = PG_GETARG_OID(0);
	Jsonb		   *key = PG_GETARG_JSONB_P(1);
	Relation		rel = open_target(relid);
	TaAuditFormat  *format = ta_audit_format(rel);
	TaAuditColumn  *sorted = palloc(sizeof(TaAuditColumn) * Max(format->nkey, 1));
	TupleTableSlot *row;
	TaFrame			frame;
	int				level;
	Oid				types[1] = {JSONBOID};
	Datum			arguments[1] = {JsonbPGetDatum(key)};
	StringInfoData	buf;
	Jsonb		   *result;
	char		   *record;

	check_key(rel, format, key);
	ta_frame_begin(&frame, InvalidOid);
	level = ta_audit_pin_settings();
	record = key_record(rel, format, sorted);
	if (SPI_execute_with_args(psprintf("SELECT k.* FROM pg_catalog.jsonb_to_record($1) AS k(%s)", record),
							  1, types, arguments, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed");

	row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsVirtual);
	ExecClearTuple(row);
	memset(row->tts_isnull, true, RelationGetDescr(rel)->natts);
	for (int i = 0; i < format->nkey; i++)
		row->tts_values[sorted[i].attnum - 1] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1,
															  &row->tts_isnull[sorted[i].attnum - 1]);
	ExecStoreVirtualTuple(row);
	initStringInfo(&buf);
	(void) ta_audit_key(format, row, &buf);
	result = copy_result(&buf, caller);
	ExecDropSingleTupleTableSlot(row);
	ta_audit_unpin_settings(level);
	ta_frame_end(&frame);
	ta_audit_format_release(format);
	table_close(rel, NoLock);
	PG_RETURN_JSONB_P(result);
}

/*
 * ta_audit_image_of
 *		audit_image(target regclass, key jsonb) → jsonb
 *
 * The live row that has the key, as the log would have it, NULL for none; of a
 * partition, the row of the partitioned table.  Raises as audit_key does, and
 * 42501 where the caller may not read the table.
 */
Datum
ta_audit_image_of(PG_FUNCTION_ARGS)
{
	MemoryContext  caller = CurrentMemoryContext;
	Oid			   relid = PG_GETARG_OID(0);
	Jsonb		  *key = PG_GETARG_JSONB_P(1);
	Relation	   rel = open_target(relid);
	TaAuditFormat *format = ta_audit_format(rel);
	TaAuditColumn *sorted;
	TaFrame		   frame;
	int			   level;
	Oid			   types[1] = {JSONBOID};
	Datum		   arguments[1] = {JsonbPGetDatum(key)};
	StringInfoData match;
	Jsonb		  *result = NULL;
	char		  *record;
	const char	  *name;

	if (format->root != relid)
	{
		Oid root = format->root;

		ta_audit_format_release(format);
		table_close(rel, NoLock);
		rel = open_target(root);
		format = ta_audit_format(rel);
	}
	check_key(rel, format, key);
	sorted = palloc(sizeof(TaAuditColumn) * format->nkey);
	ta_frame_begin(&frame, InvalidOid);
	level = ta_audit_pin_settings();
	record = key_record(rel, format, sorted);
	initStringInfo(&match);
	for (int i = 0; i < format->nkey; i++)
	{
		name = quote_identifier(sorted[i].name);
		appendStringInfo(&match, "%st.%s = k.%s", i == 0 ? "" : " AND ", name, name);
	}

	/* the cast tells the row from a column of the same name as the alias */
	name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel));
	if (SPI_execute_with_args(psprintf("SELECT t.*::%s FROM %s t, pg_catalog.jsonb_to_record($1) AS k(%s) WHERE %s",
									   name, name, record, match.data),
							  1, types, arguments, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed");
	if (SPI_processed > 0)
	{
		bool			isnull;
		HeapTupleHeader header = DatumGetHeapTupleHeader(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		HeapTupleData	tuple = {0};
		TupleTableSlot *row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);
		StringInfoData	buf;

		tuple.t_len = HeapTupleHeaderGetDatumLength(header);
		tuple.t_data = header;
		ExecStoreHeapTuple(&tuple, row, false);
		initStringInfo(&buf);
		ta_audit_image(format, row, &buf);
		result = copy_result(&buf, caller);
		ExecDropSingleTupleTableSlot(row);
	}
	ta_audit_unpin_settings(level);
	ta_frame_end(&frame);
	ta_audit_format_release(format);
	table_close(rel, NoLock);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(result);
}

/*
 * ta_audit_omitted
 *		audit_omitted(target regclass) → TABLE (column_name name, redacted boolean)
 */
Datum
ta_audit_omitted(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Relation	   rel = open_target(PG_GETARG_OID(0));
	TaAuditFormat *format = ta_audit_format(rel);

	ta_materialized_result(fcinfo);
	for (int redacted = 0; redacted <= 1; redacted++)
	{
		ListCell *cell;

		foreach(cell, redacted ? format->redacted : format->excluded)
		{
			Datum values[2] = {DirectFunctionCall1(namein, CStringGetDatum(lfirst(cell))), BoolGetDatum(redacted)};
			bool  nulls[2] = {false, false};

			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	ta_audit_format_release(format);
	table_close(rel, NoLock);
	return (Datum) 0;
}
