/*-------------------------------------------------------------------------
 *
 * catalogue.c
 *	  The small guards of a store's tables: times of change, SKUs that are
 *	  unique across products and variants, a view that is not written to.
 *
 * Every SKU of either table stands in the store's table skus, whose primary
 * key makes it unique; triggers keep that table.  They write it as its owner,
 * so that whoever may insert a product needs no privilege on it.  They do so
 * only for tables of that same owner: otherwise anybody who may create a table
 * in the schema could write skus through a trigger of their own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "spi_util.h"
#include "trigger_util.h"

#define SKU_TABLE		  "skus"
#define MAX_CLASHES_SHOWN 10

/*
 * A statement of its own for each table: a plan keeps the columns of the
 * transition table that it was made for.
 */
static const TaStatement insert_product_skus = {
	"INSERT INTO @store@.skus (sku, product_id)"
	" SELECT i.sku, i.id FROM inserted i ON CONFLICT (sku) DO NOTHING",
	0};
static const TaStatement insert_variant_skus = {
	"INSERT INTO @store@.skus (sku, product_id, variant_id)"
	" SELECT i.sku, i.product_id, i.id FROM inserted i ON CONFLICT (sku) DO NOTHING",
	0};
static const TaStatement clashing_product_skus = {
	"SELECT i.sku FROM inserted i JOIN @store@.skus s ON s.sku = i.sku"
	" WHERE s.product_id <> i.id OR s.variant_id IS NOT NULL ORDER BY 1",
	0};
static const TaStatement clashing_variant_skus = {
	"SELECT i.sku FROM inserted i JOIN @store@.skus s ON s.sku = i.sku"
	" WHERE s.variant_id IS DISTINCT FROM i.id ORDER BY 1",
	0};
static const TaStatement delete_sku = {
	"DELETE FROM @store@.skus s WHERE s.sku = $1", 1, {TEXTOID}};
static const TaStatement delete_product_skus = {
	"DELETE FROM @store@.skus s WHERE s.product_id = $1 AND s.variant_id IS NULL", 1, {UUIDOID}};
static const TaStatement delete_variant_skus = {
	"DELETE FROM @store@.skus s WHERE s.variant_id = $1", 1, {UUIDOID}};
static const TaStatement delete_all_product_skus = {
	"DELETE FROM @store@.skus s WHERE s.variant_id IS NULL", 0};
static const TaStatement delete_all_variant_skus = {
	"DELETE FROM @store@.skus s WHERE s.variant_id IS NOT NULL", 0};
static const TaStatement insert_sku = {
	"INSERT INTO @store@.skus (sku, product_id, variant_id)"
	" VALUES ($1, $2, $3) ON CONFLICT (sku) DO NOTHING",
	3,
	{TEXTOID, UUIDOID, UUIDOID}};

PG_FUNCTION_INFO_V1(ta_set_updated_at);
PG_FUNCTION_INFO_V1(ta_register_product_skus);
PG_FUNCTION_INFO_V1(ta_register_variant_skus);
PG_FUNCTION_INFO_V1(ta_update_sku);
PG_FUNCTION_INFO_V1(ta_unregister_skus);
PG_FUNCTION_INFO_V1(ta_refuse_inventory_write);

/* A column by its name: numbers differ once somebody has dropped one. */
static int
column_number(Relation rel, const char *name)
{
	int attnum = SPI_fnumber(RelationGetDescr(rel), name);

	if (attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(rel))));
	return attnum;
}

/*
 * set_updated_at() returns trigger
 *		BEFORE UPDATE, each row: puts the transaction's time into updated_at.
 *
 * Works on any table that has this column as a timestamptz; raises 42703 or
 * 42804 on others.
 */
Datum
ta_set_updated_at(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "set_updated_at",
											TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_UPDATE);
	Relation	 rel = trigdata->tg_relation;
	int			 attnum = column_number(rel, "updated_at");
	Datum		 value = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	bool		 isnull = false;

	if (TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of relation \"%s\" must be of type %s",
						"updated_at", RelationGetRelationName(rel),
						"timestamp with time zone")));

	return PointerGetDatum(heap_modify_tuple_by_cols(trigdata->tg_newtuple,
													 RelationGetDescr(rel),
													 1, &attnum, &value, &isnull));
}

/* The owner to write skus as, having checked that the trigger's table is its own. */
static Oid
sku_owner(Relation rel)
{
	Oid relid = get_relname_relid(SKU_TABLE, RelationGetNamespace(rel));
	Oid owner;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist",
						get_namespace_name(RelationGetNamespace(rel)), SKU_TABLE)));
	owner = ta_relation_owner(relid);
	if (rel->rd_rel->relowner != owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" must have the owner of table \"%s\"",
						RelationGetRelationName(rel), SKU_TABLE)));
	return owner;
}

/* 23505, as if the index had found it, but saying what it means. */
static void
raise_sku_clash(Relation rel, const char *skus, bool many)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 many ? errmsg("SKUs are already in use") : errmsg("SKU \"%s\" is already in use", skus),
			 many ? errdetail("They are: %s.", skus) : 0,
			 errhint("A SKU is unique across products and variants."),
			 err_generic_string(PG_DIAG_SCHEMA_NAME,
								get_namespace_name(RelationGetNamespace(rel))),
			 err_generic_string(PG_DIAG_TABLE_NAME, SKU_TABLE),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, "skus_pkey")));
}

/* Registers the SKUs of the rows that a statement has inserted. */
static Datum
register_skus(FunctionCallInfo fcinfo, const char *function_name, const char *table_name,
			  const TaStatement *insert, const TaStatement *clashing)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, function_name,
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT);
	Relation	 rel = trigdata->tg_relation;
	Oid			 nspid = RelationGetNamespace(rel);
	TaFrame		 frame;
	int64		 expected;

	if (strcmp(RelationGetRelationName(rel), table_name) != 0 ||
		trigdata->tg_newtable == NULL ||
		strcmp(trigdata->tg_trigger->tgnewtable, "inserted") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by table \"%s\" with a transition table \"%s\"",
						function_name, table_name, "inserted")));

	expected = tuplestore_tuple_count(trigdata->tg_newtable);
	if (expected == 0)
		return PointerGetDatum(NULL);

	ta_frame_begin(&frame, sku_owner(rel));
	if (SPI_register_trigger_data(trigdata) < 0)
		elog(ERROR, "SPI_register_trigger_data failed");

	if (ta_execute(nspid, insert, SPI_OK_INSERT, NULL, NULL) != (uint64) expected)
	{
		StringInfoData skus;
		uint64		   count = ta_execute(nspid, clashing, SPI_OK_SELECT, NULL, NULL);

		initStringInfo(&skus);
		for (uint64 row = 0; row < count && row < MAX_CLASHES_SHOWN; row++)
			appendStringInfo(&skus, "%s%s", row > 0 ? ", " : "", ta_spi_text(row, 1));
		if (count > MAX_CLASHES_SHOWN)
			appendStringInfoString(&skus, " and others");
		raise_sku_clash(rel, skus.data, count != 1);
	}
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * register_product_skus() returns trigger
 *		AFTER INSERT on products, each statement, REFERENCING NEW TABLE AS
 *		inserted: registers their SKUs.  Raises 23505 where one is taken.
 */
Datum
ta_register_product_skus(PG_FUNCTION_ARGS)
{
	return register_skus(fcinfo, "register_product_skus", "products",
						 &insert_product_skus, &clashing_product_skus);
}

/*
 * register_variant_skus() returns trigger
 *		The same on product_variants.
 */
Datum
ta_register_variant_skus(PG_FUNCTION_ARGS)
{
	return register_skus(fcinfo, "register_variant_skus", "product_variants",
						 &insert_variant_skus, &clashing_variant_skus);
}

/*
 * update_sku() returns trigger
 *		AFTER UPDATE on products or product_variants, each row: the registered
 *		SKU follows the row's.  Raises 23505 where the new one is taken.
 */
Datum
ta_update_sku(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "update_sku",
											TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE);
	Relation	 rel = trigdata->tg_relation;
	TupleDesc	 tupdesc = RelationGetDescr(rel);
	Oid			 nspid = RelationGetNamespace(rel);
	bool		 is_variant = strcmp(RelationGetRelationName(rel), "product_variants") == 0;
	int			 sku_column = column_number(rel, "sku");
	char		*sku = SPI_getvalue(trigdata->tg_newtuple, tupdesc, sku_column);
	char		*old_sku = SPI_getvalue(trigdata->tg_trigtuple, tupdesc, sku_column);
	Datum		 old_values[1];
	Datum		 values[3] = {0};
	char		 nulls[4] = {' ', ' ', is_variant ? ' ' : 'n', '\0'};
	bool		 isnull;
	TaFrame		 frame;

	if (!is_variant && strcmp(RelationGetRelationName(rel), "products") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by table \"%s\" or \"%s\"",
						"update_sku", "products", "product_variants")));
	if (sku == NULL || old_sku == NULL)
		elog(ERROR, "SKU is null");

	old_values[0] = CStringGetTextDatum(old_sku);
	values[0] = CStringGetTextDatum(sku);
	values[1] = SPI_getbinval(trigdata->tg_newtuple, tupdesc,
							  column_number(rel, is_variant ? "product_id" : "id"), &isnull);
	if (is_variant)
		values[2] = SPI_getbinval(trigdata->tg_newtuple, tupdesc,
								  column_number(rel, "id"), &isnull);

	ta_frame_begin(&frame, sku_owner(rel));
	ta_execute(nspid, &delete_sku, SPI_OK_DELETE, old_values, NULL);
	if (ta_execute(nspid, &insert_sku, SPI_OK_INSERT, values, nulls) != 1)
		raise_sku_clash(rel, sku, false);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * unregister_skus() returns trigger
 *		AFTER DELETE of a row of products or product_variants, or AFTER TRUNCATE of
 *		the table: the SKUs of what is really gone go with it.
 */
Datum
ta_unregister_skus(PG_FUNCTION_ARGS)
{
	TriggerData		  *trigdata = ta_trigger_data(fcinfo, "unregister_skus",
												  TA_TRIGGER_AFTER | TA_TRIGGER_DELETE | TA_TRIGGER_TRUNCATE);
	Relation		   rel = trigdata->tg_relation;
	bool			   is_variant = strcmp(RelationGetRelationName(rel), "product_variants") == 0;
	const TaStatement *statement;
	Datum			   values[1] = {0};
	bool			   isnull;
	TaFrame			   frame;

	if (!is_variant && strcmp(RelationGetRelationName(rel), "products") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired by table \"%s\" or \"%s\"",
						"unregister_skus", "products", "product_variants")));
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
	{
		values[0] = SPI_getbinval(trigdata->tg_trigtuple, RelationGetDescr(rel),
								  column_number(rel, "id"), &isnull);
		statement = is_variant ? &delete_variant_skus : &delete_product_skus;
	}
	else if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		statement = is_variant ? &delete_all_variant_skus : &delete_all_product_skus;
	else
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired for each row", "unregister_skus")));

	ta_frame_begin(&frame, sku_owner(rel));
	ta_execute(RelationGetNamespace(rel), statement, SPI_OK_DELETE, values, NULL);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * refuse_inventory_write() returns trigger
 *		INSTEAD OF any write to a store's view inventory: raises 55000.
 */
Datum
ta_refuse_inventory_write(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "refuse_inventory_write",
											TA_TRIGGER_ROW | TA_TRIGGER_INSTEAD |
												TA_TRIGGER_INSERT | TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("view \"%s\" is read only", RelationGetRelationName(trigdata->tg_relation)),
			 errhint("Stock changes through the store's functions receive_stock, adjust_stock and transfer_stock.")));
	PG_RETURN_NULL(); /* not reached */
}
