/*-------------------------------------------------------------------------
 *
 * retention.c
 *	  Retention: setting policies, and acting as the owner of what goes.
 *
 * The rules are data and what is done by them is SQL (sql/parts/retention.sql);
 * here is what SQL cannot do: to write the registry for somebody who owns the
 * table in question, and to work on a table as its owner.
 *
 * Invariants:
 * - Rows go and come back with the rights of their table's owner, in a
 *	 security-restricted operation where that is not the caller.  FORCE row
 *	 security does not hide rows from that, or they would be lost.
 * - They are moved, not deleted (trigger_util.h): soft delete and the audit log
 *	 stand aside for the tables of the whole; but for the audit log itself, from
 *	 which only whole months go.
 *
 * Lock order: the rows of the table itself, then what hangs on them, further
 * and further out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "progress.h"
#include "request_util.h"
#include "spi_util.h"
#include "trigger_util.h"

static const TaStatement upsert_rule = {
	"INSERT INTO techally.retention_rules AS r"
	" (target, keep_for, action, time_column, ends_column, aggregate_after, aggregate_by)"
	" VALUES ($1::pg_catalog.regclass, $2, $3, $4, $5, $6, $7)"
	" ON CONFLICT (target) DO UPDATE SET keep_for = excluded.keep_for, action = excluded.action,"
	" time_column = excluded.time_column, ends_column = excluded.ends_column,"
	" aggregate_after = excluded.aggregate_after, aggregate_by = excluded.aggregate_by",
	7,
	{OIDOID, INTERVALOID, TEXTOID, NAMEOID, NAMEOID, INTERVALOID, NAMEARRAYOID}};
static const TaStatement delete_rule = {
	"DELETE FROM techally.retention_rules r WHERE r.target = $1::pg_catalog.regclass", 1, {OIDOID}};
static const TaStatement select_whole = {
	"SELECT w.relation FROM (SELECT $1 UNION SELECT e.child FROM techally.retention_edges($1) e WHERE e.follows) w (relation)"
	" WHERE NOT techally.is_audit_log(w.relation)",
	1,
	{OIDOID}};
static const TaStatement do_page = {
	"SELECT techally.retention_page($1, $2, $3, $4, $5)",
	5,
	{OIDOID, TIMESTAMPTZOID, TEXTOID, INT4OID, BOOLOID}};

static const TaStatement do_restore = {
	"SELECT techally.restore_whole($1, $2, $3, $4)",
	4,
	{OIDOID, JSONBOID, UUIDOID, INTERVALOID}};
static const TaStatement do_count = {
	"SELECT techally.retention_count($1, $2, $3, $4)",
	4,
	{OIDOID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID}};

PG_FUNCTION_INFO_V1(ta_set_retention);
PG_FUNCTION_INFO_V1(ta_reset_retention);
PG_FUNCTION_INFO_V1(ta_retention_step);
PG_FUNCTION_INFO_V1(ta_restore_step);
PG_FUNCTION_INFO_V1(ta_retention_retiring);

static Oid
engine_namespace(void)
{
	return get_namespace_oid("techally", false);
}

static Oid
rules_owner(void)
{
	return ta_relation_owner(get_relname_relid("retention_rules", engine_namespace()));
}

/* Refuses what is no table, and who does not own it. */
static void
check_target(Oid relid)
{
	char  relkind = get_rel_relkind(relid);
	char *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name)));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
}

/* Refuses a column that is not there. */
static void
check_column(Oid relid, const char *column)
{
	if (get_attnum(relid, column) <= InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", column, get_rel_name(relid))));
}

/* Refuses a column that holds no time. */
static void
check_time_column(Oid relid, const char *column)
{
	Oid type;

	check_column(relid, column);
	type = get_atttype(relid, get_attnum(relid, column));
	if (type != DATEOID && type != TIMESTAMPOID && type != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of relation \"%s\" holds no time", column, get_rel_name(relid)),
				 errhint("It must be a date, timestamp or timestamptz.")));
}

/*
 * set_retention(target regclass, keep_for interval, action text, time_column name,
 *				 ends_column name, aggregate_after interval, aggregate_by name[]) returns void
 *		Sets how long rows of a table stay; keep_for NULL: for ever.
 *
 * Raises 42501 where the caller does not own the table, 42809 where it is none,
 * 42703 for an unknown column, 42804 for one that holds no time, 23514 for what
 * makes no sense, 22004 for NULL.
 */
Datum
ta_set_retention(PG_FUNCTION_ARGS)
{
	TaFrame frame;
	Oid		relid;
	Datum	values[7];
	char	nulls[8] = "       ";

	ta_require_argument(fcinfo, 0, "target");
	ta_require_argument(fcinfo, 2, "action");
	ta_require_argument(fcinfo, 3, "time_column");
	relid = PG_GETARG_OID(0);
	check_target(relid);
	check_time_column(relid, NameStr(*PG_GETARG_NAME(3)));
	if (!PG_ARGISNULL(4))
		check_time_column(relid, NameStr(*PG_GETARG_NAME(4)));

	for (int i = 0; i < 7; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	ta_frame_begin(&frame, rules_owner());
	ta_execute(engine_namespace(), &upsert_rule, SPI_OK_INSERT, values, nulls);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * reset_retention(target regclass) returns void
 *		Takes back what set_retention said.  Raises as set_retention.
 */
Datum
ta_reset_retention(PG_FUNCTION_ARGS)
{
	TaFrame frame;
	Datum	values[1];

	ta_require_argument(fcinfo, 0, "target");
	check_target(PG_GETARG_OID(0));
	values[0] = PG_GETARG_DATUM(0);
	ta_frame_begin(&frame, rules_owner());
	ta_execute(engine_namespace(), &delete_rule, SPI_OK_DELETE, values, NULL);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * Settings that what we do must not depend on: the text of a row, of which
 * checksums are made, is to be the same whoever reads it.
 */
static void
pin_settings(void)
{
	static const char *const settings[][2] = {
		{"row_security", "off"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Runs a statement over a table as its owner, whose row security does not
 * stand in his own way; $1 is the table.  Returns its one value, which is
 * passed by reference, in the caller's memory.  task NULL: it writes nothing.
 */
static Datum
run_as_owner(Oid relid, const TaStatement *statement, Datum *values, const char *nulls, const char *task)
{
	TaFrame		  frame;
	MemoryContext caller = CurrentMemoryContext;
	Oid			  owner = ta_relation_owner(relid);
	Oid			  userid;
	int			  sec_context;
	Oid			 *whole;
	int			  nwhole;
	int			  guc_level;
	bool		  isnull;
	Datum		  result;

	/* nothing of the owner's may run later, when we are ourselves again */
	ta_frame_begin(&frame, InvalidOid);
	if (owner != GetUserId() && task != NULL &&
		SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "SET CONSTRAINTS failed");
	ta_frame_end(&frame);

	ta_frame_begin(&frame, owner);
	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(userid, sec_context | SECURITY_NOFORCE_RLS | (frame.switched_user ? SECURITY_RESTRICTED_OPERATION : 0));
	guc_level = NewGUCNestLevel();
	pin_settings();
	if (task != NULL)
		ta_progress_begin(task, quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid)),
						  "beginning", TA_PROGRESS_UNKNOWN);

	nwhole = (int) ta_execute(engine_namespace(), &select_whole, SPI_OK_SELECT, values, NULL);
	whole = MemoryContextAlloc(caller, sizeof(Oid) * Max(nwhole, 1));
	for (int i = 0; i < nwhole; i++)
		whole[i] = DatumGetObjectId(ta_spi_value(i, 1, &isnull));
	for (int i = 0; i < nwhole; i++)
		ta_pass_through_begin(whole[i]);
	ta_execute(engine_namespace(), statement, SPI_OK_SELECT, values, nulls);
	result = ta_spi_value(0, 1, &isnull);
	for (int i = 0; i < nwhole; i++)
		ta_pass_through_end();

	MemoryContextSwitchTo(caller);
	if (TupleDescAttr(SPI_tuptable->tupdesc, 0)->attbyval == false)
		result = datumCopy(result, false, -1);
	if (task != NULL)
		ta_progress_end();
	AtEOXact_GUC(true, guc_level);
	SetUserIdAndSecContext(userid, sec_context);
	ta_frame_end(&frame);
	return result;
}

/*
 * retention_step(target regclass, at timestamptz, cursor text, page integer, dry_run boolean) returns jsonb
 *		One step of retention for a table, as its owner; at is what counts as
 *		now, page how many rows of the table itself to look at.
 *
 * Locks the rows that go and the tables' usual ROW EXCLUSIVE; what is locked by
 * somebody else among the table's own rows is left for later.  Raises 42501 for
 * who does not own the table, and what the tables' triggers raise.
 */
Datum
ta_retention_step(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "at"};
	Oid						 relid;
	Datum					 values[5];
	char					 nulls[6] = "     ";

	for (int i = 0; i < (int) lengthof(names); i++)
		ta_require_argument(fcinfo, i, names[i]);
	ta_require_argument(fcinfo, 3, "page");
	ta_require_argument(fcinfo, 4, "dry_run");
	relid = PG_GETARG_OID(0);
	check_target(relid);
	if (PG_GETARG_INT32(3) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page must be greater than zero")));
	if (!PG_GETARG_BOOL(4))
		PreventCommandIfReadOnly("archive_old_data()");
	for (int i = 0; i < 5; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	PG_RETURN_DATUM(run_as_owner(relid, &do_page, values, nulls, PG_GETARG_BOOL(4) ? NULL : "archive"));
}

/*
 * restore_step(target regclass, keys jsonb, batch uuid, keep_for interval) returns jsonb
 *		Brings rows back from the archive, as the table's owner, in one statement
 *		with everything that was archived with them.
 *
 * Locks the manifest's rows, so that one of two who want the same finds nothing.
 * Raises 42501 for who does not own the table, TA007 for what is not in the
 * archive, XX001 where that is not what it was, and what the constraints and
 * triggers of the tables raise (23505, 23503): then nothing has happened.
 */
Datum
ta_restore_step(PG_FUNCTION_ARGS)
{
	Datum values[4];
	char  nulls[5] = "    ";

	ta_require_argument(fcinfo, 0, "target");
	check_target(PG_GETARG_OID(0));
	PreventCommandIfReadOnly("restore_rows()");
	for (int i = 0; i < 4; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	PG_RETURN_DATUM(run_as_owner(PG_GETARG_OID(0), &do_restore, values, nulls, "restore"));
}

/*
 * retention_retiring(target regclass, partition regclass, from_time timestamptz, to_time timestamptz) returns bigint
 *		Counts by day, and for good, what a partition holds that is about to go;
 *		for tables whose policy says so.  Returns how many rows.
 *
 * Locks the partition in SHARE mode.  Raises 42501 for who does not own the
 * table, 22004 for NULL.
 */
Datum
ta_retention_retiring(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "partition", "from_time", "to_time"};
	Datum					 values[4];

	ta_require_arguments(fcinfo, names, lengthof(names));
	check_target(PG_GETARG_OID(0));
	for (int i = 0; i < 4; i++)
		values[i] = PG_GETARG_DATUM(i);
	PG_RETURN_DATUM(run_as_owner(PG_GETARG_OID(0), &do_count, values, NULL, "retire"));
}
