/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  Partitions that make themselves: the registry of managed tables, and the
 *	  making of partitions.
 *
 * What is missing is worked out from the bounds that the catalogs have, never
 * from names (partition_range.c); what is made of it is DDL, run as the
 * parent's owner.
 *
 * Invariants:
 * - A managed table has a DEFAULT partition, so that no row is without one.
 * - A new partition never overlaps another: ranges are worked out again after
 *	 the parent is locked, and the server checks once more.
 * - Nobody waits for us longer than techally.maintenance_lock_timeout while we
 *	 wait for a lock: the attempt is then rolled back, which lets everybody
 *	 through, and made again after a pause.
 *
 * Lock order: an advisory lock of the transaction on the parent, our turn; the
 * parent; its DEFAULT partition; the tables that foreign keys join to it, by
 * their OIDs; what the DDL itself locks, which is new.
 *
 * Our turn is taken before anything is looked at and kept between attempts:
 * otherwise two who want the parent exclusively would keep it from each other
 * with the locks of their looking.  What is looked at before the first attempt
 * leaves no lock behind, so nobody waits for us while we pause.
 *
 * To attach, the server asks for SHARE UPDATE EXCLUSIVE on the parent and
 * ACCESS EXCLUSIVE on DEFAULT.  An INSERT that has looked up its partition and
 * waits for the lock on DEFAULT then fails ("violates partition constraint")
 * if its row belongs into the new one.  So we lock the parent against writers
 * first, in SHARE ROW EXCLUSIVE mode: they wait there, before they look.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partition.h"
#include "request_util.h"
#include "spi_util.h"

#define PARENT_LOCK_SPACE 0x74617074 /* "tapt" */
#define MAX_PREMAKE		  1000
#define MAX_RANGES		  10000 /* that one call makes */
#define PROOF_CONSTRAINT  "techally_proof"

int ta_maintenance_lock_timeout = 500;
int ta_maintenance_hold_limit = 2000;
int ta_maintenance_retries = 3;

static const TaStatement select_managed = {
	"SELECT m.step, m.premake, m.retention, m.retention_action, m.archive_kind, m.archive_name::text"
	"  FROM techally.managed_partitions m WHERE m.parent = $1::pg_catalog.regclass",
	1,
	{OIDOID}};
static const TaStatement upsert_managed = {
	"INSERT INTO techally.managed_partitions AS m (parent, step, premake, retention, retention_action)"
	" VALUES ($1::pg_catalog.regclass, $2, $3, $4, $5)"
	" ON CONFLICT (parent) DO UPDATE SET step = excluded.step, premake = excluded.premake,"
	" retention = excluded.retention, retention_action = excluded.retention_action",
	5,
	{OIDOID, INTERVALOID, INT4OID, INTERVALOID, TEXTOID}};
static const TaStatement delete_managed = {
	"DELETE FROM techally.managed_partitions m WHERE m.parent = $1::pg_catalog.regclass",
	1,
	{OIDOID}};

static const TaStatement select_rate = {
	"SELECT p.rate FROM techally.partition_runs p"
	" WHERE p.parent = $1::pg_catalog.regclass AND p.task = 'drain'",
	1,
	{OIDOID}};
static const TaStatement upsert_rate = {
	"INSERT INTO techally.partition_runs AS p (parent, task, last_run, rate)"
	" VALUES ($1::pg_catalog.regclass, 'drain', pg_catalog.clock_timestamp(), $2)"
	" ON CONFLICT (parent, task) DO UPDATE SET last_run = excluded.last_run, rate = excluded.rate,"
	" last_error = NULL, failures = 0, retry_at = NULL",
	2,
	{OIDOID, FLOAT8OID}};

static const TaStatement upsert_run = {
	"INSERT INTO techally.partition_runs AS p (parent, task, last_run, last_error, failures, retry_at)"
	" VALUES ($1::pg_catalog.regclass, $2, pg_catalog.clock_timestamp(), $3, CASE WHEN $3 IS NULL THEN 0 ELSE 1 END,"
	"         CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() + interval '10 seconds' END)"
	" ON CONFLICT (parent, task) DO UPDATE SET last_run = excluded.last_run, last_error = excluded.last_error,"
	" failures = CASE WHEN $3 IS NULL THEN 0 ELSE p.failures + 1 END,"
	" retry_at = CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp()"
	"            + least(interval '10 seconds' * pg_catalog.power(2, least(p.failures, 12)), interval '1 hour') END",
	3,
	{OIDOID, TEXTOID, TEXTOID}};

/*
 * ta_partition_init
 *		Defines the settings of maintenance.  Called once, by _PG_init.
 */
void
ta_partition_init(void)
{
	DefineCustomIntVariable("techally.maintenance_lock_timeout",
							"How long maintenance waits for the locks of one attempt.",
							"While it waits, others may queue behind it.",
							&ta_maintenance_lock_timeout,
							500, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("techally.maintenance_hold_limit",
							"How long maintenance may hold a lock that others wait for.",
							"Rows are moved out of a DEFAULT partition in ranges that keep to it.",
							&ta_maintenance_hold_limit,
							2000, 10, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("techally.maintenance_retries",
							"How often maintenance tries again after a lock timeout or a deadlock.",
							NULL,
							&ta_maintenance_retries,
							3, 0, 100,
							PGC_USERSET, 0,
							NULL, NULL, NULL);
}

/*
 * Partitioned tables, as the catalogs have them
 */

/*
 * ta_key_value
 *		A key's value as a moment; a date that no timestamp can be is one of the
 *		ends of time.
 */
Timestamp
ta_key_value(Oid key_type, Datum value)
{
	if (key_type == DATEOID)
	{
		DateADT date = DatumGetDateADT(value);

		if (DATE_IS_NOBEGIN(date))
			return DT_NOBEGIN;
		if (DATE_IS_NOEND(date) || date >= TIMESTAMP_END_JULIAN - POSTGRES_EPOCH_JDATE)
			return DT_NOEND;
		return date * USECS_PER_DAY;
	}
	return DatumGetTimestamp(value);
}

static Timestamp
bound_of(Oid key_type, Datum datum, PartitionRangeDatumKind kind)
{
	if (kind == PARTITION_RANGE_DATUM_MINVALUE)
		return DT_NOBEGIN;
	if (kind == PARTITION_RANGE_DATUM_MAXVALUE)
		return DT_NOEND;
	return ta_key_value(key_type, datum);
}

static Oid
engine_namespace(void)
{
	return get_namespace_oid("techally", false);
}

/* A table's name, quoted, with its schema. */
char *
ta_qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/* What the key is in SQL: a column, or an expression of columns. */
static char *
key_text(Relation rel, PartitionKey key)
{
	if (key->partattrs[0] != 0)
		return pstrdup(quote_identifier(get_attname(RelationGetRelid(rel), key->partattrs[0], false)));
	return psprintf("(%s)",
					deparse_expression(linitial(key->partexprs),
									   deparse_context_for(RelationGetRelationName(rel),
														   RelationGetRelid(rel)),
									   false, false));
}

/* Raises where the table is not one that a grid of time can be laid over. */
static void
check_key(Relation rel, PartitionKey key)
{
	Oid opclass;

	if (key->strategy != PARTITION_STRATEGY_RANGE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" is not partitioned by RANGE", RelationGetRelationName(rel)),
				 errhint("For partitioning by LIST or HASH there are techally.create_list_partition and techally.create_hash_partitions.")));
	if (key->partnatts != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the partition key of table \"%s\" has %d columns", RelationGetRelationName(rel), key->partnatts),
				 errdetail("Only a single column or expression can be managed.")));
	if (key->parttypid[0] != DATEOID && key->parttypid[0] != TIMESTAMPOID && key->parttypid[0] != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the partition key of table \"%s\" is of type %s", RelationGetRelationName(rel), format_type_be(key->parttypid[0])),
				 errdetail("Only date, timestamp and timestamp with time zone can be managed.")));
	opclass = GetDefaultOpClass(key->parttypid[0], BTREE_AM_OID);
	if (!OidIsValid(opclass) || get_opclass_family(opclass) != key->partopfamily[0])
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the partition key of table \"%s\" has an order of its own", RelationGetRelationName(rel)),
				 errdetail("Only the default operator class can be managed.")));
}

/*
 * ta_describe_parent
 *		A table that is partitioned by RANGE on a time, with its partitions'
 *		bounds.
 *
 * Opens it in lockmode, which is kept until the end of the transaction;
 * NoLock where the caller has one.  Partitions that are being detached
 * concurrently count, for their ranges are not free yet.  Raises 42809 where
 * it is no such table, 0A000 where its key is one that has no grid.  Allocated
 * in the current context.
 */
TaParent *
ta_describe_parent(Oid relid, LOCKMODE lockmode)
{
	Relation	  rel = table_open(relid, lockmode);
	TaParent	 *parent;
	PartitionKey  key;
	PartitionDesc desc;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" is not partitioned", RelationGetRelationName(rel)),
				 errhint("A plain table becomes a partitioned one with CALL techally.partition_table(...).")));
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" is temporary", RelationGetRelationName(rel))));
	key = RelationGetPartitionKey(rel);
	check_key(rel, key);

	parent = palloc0(sizeof(TaParent));
	parent->relid = relid;
	parent->nspid = RelationGetNamespace(rel);
	parent->owner = rel->rd_rel->relowner;
	parent->name = pstrdup(RelationGetRelationName(rel));
	parent->qualified = ta_qualified_name(relid);
	parent->key_type = key->parttypid[0];
	parent->key = key_text(rel, key);

	desc = RelationGetPartitionDesc(rel, false);
	if (desc->nparts > 0)
	{
		PartitionBoundInfo bounds = desc->boundinfo;

		parent->ranges = palloc(sizeof(TaRange) * desc->nparts);
		if (bounds->default_index >= 0)
			parent->default_oid = desc->oids[bounds->default_index];

		/* indexes[i] is the partition that ends at bound i; it begins at the one before */
		for (int i = 1; i < bounds->ndatums; i++)
		{
			TaRange *range = &parent->ranges[parent->nranges];

			if (bounds->indexes[i] < 0)
				continue;
			range->from = bound_of(parent->key_type, bounds->datums[i - 1][0], bounds->kind[i - 1][0]);
			range->to = bound_of(parent->key_type, bounds->datums[i][0], bounds->kind[i][0]);
			range->partition = desc->oids[bounds->indexes[i]];
			parent->nranges++;
		}
	}
	table_close(rel, NoLock);
	return parent;
}

/*
 * ta_look_at_parent
 *		The same, with no lock left behind: what it says may be old by now.
 *
 * As the owner, for the key's expression may be anybody's, and in names that
 * hold under any search_path.
 */
TaParent *
ta_look_at_parent(Oid relid)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;
	TaMaintenance frame;
	TaParent	 *parent;

	ta_maintenance_begin(&frame, ta_relation_owner(relid));
	old = MemoryContextSwitchTo(caller);
	parent = ta_describe_parent(relid, AccessShareLock);
	UnlockRelationOid(relid, AccessShareLock);
	MemoryContextSwitchTo(old);
	ta_maintenance_end(&frame);
	return parent;
}

/*
 * ta_free_range
 *		The part of a moment's cell that is free around it; false where there is
 *		none.
 */
bool
ta_free_range(const TaParent *parent, const TaStep *step, Timestamp at, TaRange *range)
{
	Timestamp from;
	Timestamp to;
	TaRange	 *pieces;
	int		  n;
	bool	  found = false;

	if (!ta_step_floor(step, at, &from) || !ta_step_next(step, from, &to))
		return false;
	pieces = palloc(sizeof(TaRange) * (parent->nranges + 1));
	n = ta_missing_ranges(parent->ranges, parent->nranges, step, from, to, parent->nranges + 1, pieces);
	for (int i = 0; i < n && !found; i++)
	{
		if (pieces[i].from <= at && at < pieces[i].to)
		{
			*range = pieces[i];
			found = true;
		}
	}
	pfree(pieces);
	return found;
}

/*
 * Surroundings of DDL
 */

/*
 * ta_maintenance_begin
 *		Opens SPI to work on somebody's table: as its owner, names pinned.
 *
 * Where that is another role than ours, what the owner has put into reach (an
 * expression of an index, say) runs in a security-restricted operation.  On
 * error the abort of the (sub)transaction restores everything.
 */
void
ta_maintenance_begin(TaMaintenance *frame, Oid owner)
{
	ta_frame_begin(&frame->frame, owner);
	if (frame->frame.switched_user)
	{
		Oid userid;
		int sec_context;

		GetUserIdAndSecContext(&userid, &sec_context);
		SetUserIdAndSecContext(userid, sec_context | SECURITY_RESTRICTED_OPERATION);
	}
	frame->guc_level = NewGUCNestLevel();
	ta_set_local("standard_conforming_strings", "on");
	ta_set_local("row_security", "off");
	if (client_min_messages < WARNING)
		ta_set_local("client_min_messages", "warning");
}

void
ta_maintenance_end(TaMaintenance *frame)
{
	AtEOXact_GUC(true, frame->guc_level);
	ta_frame_end(&frame->frame);
}

void
ta_set_local(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * ta_run
 *		Runs one statement over a name or two that format put in; returns the
 *		number of rows.
 */
uint64
ta_run(const char *format, ...)
{
	StringInfoData buf;
	int			   rc;

	initStringInfo(&buf);
	for (;;)
	{
		va_list args;
		int		needed;

		va_start(args, format);
		needed = appendStringInfoVA(&buf, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&buf, needed);
	}
	rc = SPI_execute(buf.data, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI reports %s for: %s", SPI_result_code_string(rc), buf.data);
	pfree(buf.data);
	return SPI_processed;
}

/* The end of the time that an attempt may wait for locks. */
TimestampTz
ta_lock_deadline(void)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ta_maintenance_lock_timeout);
}

/*
 * ta_lock_table
 *		Locks a table until the end of the transaction, waiting no longer than
 *		until deadline.
 *
 * Raises 55P03 after that, 42P01 where the table has gone meanwhile.  Within
 * ta_maintenance_begin and _end; leaves lock_timeout at what remains, so that
 * the DDL that follows keeps to it, too.
 */
void
ta_lock_table(Oid relid, LOCKMODE mode, TimestampTz deadline)
{
	long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	ta_set_local("lock_timeout", psprintf("%ld", Max(left, 1)));
	LockRelationOid(relid, mode);
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u has been dropped", relid)));
}

/*
 * ta_take_turn
 *		Keeps other maintenance of the same parent away until the end of the
 *		transaction.
 *
 * Waits as long as somebody else may need for all of his attempts, for nobody
 * minds that lock; raises 55P03 after that.
 */
void
ta_take_turn(Oid relid)
{
	Datum  space = Int32GetDatum(PARENT_LOCK_SPACE);
	Datum  key = Int32GetDatum((int32) relid);
	double patience = ((double) ta_maintenance_retries + 1) *
					  ((double) ta_maintenance_lock_timeout + ta_maintenance_hold_limit);
	int guc_level;

	if (DatumGetBool(DirectFunctionCall2(pg_try_advisory_xact_lock_int4, space, key)))
		return;
	guc_level = NewGUCNestLevel();
	ta_set_local("lock_timeout", psprintf("%.0f", Min(patience, (double) INT_MAX)));
	DirectFunctionCall2(pg_advisory_xact_lock_int4, space, key);
	AtEOXact_GUC(true, guc_level);
}

/* Tables that foreign keys join to a parent, in either direction. */
static const TaStatement select_joined = {
	"SELECT DISTINCT j.relid"
	"  FROM pg_catalog.pg_constraint c,"
	"       LATERAL (SELECT CASE WHEN c.conrelid = $1 THEN c.confrelid ELSE c.conrelid END AS relid) j"
	" WHERE c.contype = 'f' AND $1 IN (c.conrelid, c.confrelid) AND j.relid <> $1 ORDER BY 1",
	1,
	{OIDOID}};

/*
 * ta_lock_joined
 *		Locks the tables that foreign keys join to a parent, which attaching and
 *		detaching locks as well: before the work begins, and not in its middle.
 *
 * Within ta_maintenance_begin and _end.
 */
void
ta_lock_joined(Oid relid, LOCKMODE mode, TimestampTz deadline)
{
	Datum  values[1] = {ObjectIdGetDatum(relid)};
	uint64 n = ta_execute(engine_namespace(), &select_joined, SPI_OK_SELECT, values, NULL);
	Oid	  *joined = palloc(sizeof(Oid) * (n + 1));

	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		joined[i] = DatumGetObjectId(ta_spi_value(i, 1, &isnull));
	}
	for (uint64 i = 0; i < n; i++)
		ta_lock_table(joined[i], mode, deadline);
	pfree(joined);
}

/*
 * The hold: how long we have locks that others wait for
 */

static TimeoutId			 hold_timeout = MAX_TIMEOUTS; /* not registered yet */
static volatile sig_atomic_t hold_is_over = false;

/* In a signal handler: the statement is cancelled as if its user had. */
static void
cancel_hold(void)
{
	hold_is_over = true;
	InterruptPending = true;
	QueryCancelPending = true;
}

/*
 * ta_begin_hold
 *		From now on others may wait for us: within an attempt (ta_try), once its
 *		locks are got.  Raises 54000 after techally.maintenance_hold_limit.
 */
void
ta_begin_hold(void)
{
	if (hold_timeout == MAX_TIMEOUTS)
		hold_timeout = RegisterTimeout(USER_TIMEOUT, cancel_hold);
	enable_timeout_after(hold_timeout, ta_maintenance_hold_limit);
}

/* The attempt is over; false where it was because of the hold. */
static bool
end_hold(const ErrorData *error)
{
	bool cancelled;

	if (hold_timeout != MAX_TIMEOUTS)
		disable_timeout(hold_timeout, false);
	if (!hold_is_over)
		return true;
	cancelled = error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED;
	if (!cancelled)
		QueryCancelPending = false; /* it came too late to cancel anything */
	hold_is_over = false;
	return !cancelled;
}

/* Waits a while before the next attempt, with no lock that anybody minds. */
static void
pause_before_retry(int attempt)
{
	long ms = Min((long) ta_maintenance_lock_timeout << Min(attempt, 3), 10000L);

	ms = ms / 2 + (GetCurrentTimestamp() ^ MyProcPid) % (ms / 2 + 1);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * ta_try
 *		Does something in a subtransaction; returns the error that rolled it
 *		back, or NULL.
 */
ErrorData *
ta_try(void (*attempt)(void *arg), void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		attempt(arg);
		(void) end_hold(NULL);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (!end_hold(error))
		{
			error->sqlerrcode = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
			error->message = pstrdup("canceled, for others would have had to wait longer than techally.maintenance_hold_limit");
			error->detail = NULL;
			error->hint = pstrdup("Raise techally.maintenance_hold_limit, or see to it that there are indexes on the partition key and on the columns of foreign keys.");
		}
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	return error;
}

/* Whether it may go better next time: a lock, or a name that somebody else took. */
static bool
may_pass(const ErrorData *error)
{
	switch (error->sqlerrcode)
	{
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_DUPLICATE_TABLE:
			return true;
		case ERRCODE_UNIQUE_VIOLATION:
			return error->schema_name != NULL && strcmp(error->schema_name, "pg_catalog") == 0;
		default:
			return false;
	}
}

/*
 * ta_retry
 *		Does something that may meet a lock, each time in a subtransaction: a
 *		lock timeout or a deadlock rolls it back, and with it every lock that
 *		others would queue behind, before it is tried again after a pause.
 *
 * Returns the last error after techally.maintenance_retries more attempts, any
 * other error at once, and NULL where there was none.
 */
ErrorData *
ta_retry(void (*attempt)(void *arg), void *arg)
{
	for (int n = 0;; n++)
	{
		ErrorData *error = ta_try(attempt, arg);

		if (error == NULL || !may_pass(error) || n >= ta_maintenance_retries)
			return error;
		FreeErrorData(error);
		pause_before_retry(n);
	}
}

/*
 * Making a partition
 */

/* What a new partition has from the parent and from its nearest sibling. */
static const char *const like_clause =
	"INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION";

static const TaStatement select_options = {
	"SELECT pg_catalog.string_agg(pg_catalog.format('%s%I = %L', o.prefix,"
	"         pg_catalog.split_part(o.option, '=', 1),"
	"         pg_catalog.substr(o.option, pg_catalog.strpos(o.option, '=') + 1)), ', ')"
	"  FROM (SELECT '' AS prefix, pg_catalog.unnest(c.reloptions) AS option"
	"          FROM pg_catalog.pg_class c WHERE c.oid = $1"
	"        UNION ALL"
	"        SELECT 'toast.', pg_catalog.unnest(t.reloptions)"
	"          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid"
	"         WHERE c.oid = $1) o",
	1,
	{OIDOID}};

/* Statements that finish a partition: $1 parent, $2 sibling, $3 partition. */
static const TaStatement select_finish = {
	"SELECT pg_catalog.format('GRANT %s ON TABLE %s TO %s%s', a.privilege_type, $3::pg_catalog.regclass,"
	"         CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,"
	"         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
	"  FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a"
	" WHERE c.oid = $1 AND NOT c.relrowsecurity AND a.grantee <> c.relowner"
	" UNION ALL "
	"SELECT pg_catalog.format('GRANT %s (%I) ON TABLE %s TO %s%s', a.privilege_type, t.attname, $3::pg_catalog.regclass,"
	"         CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,"
	"         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
	"  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid, pg_catalog.aclexplode(t.attacl) a"
	" WHERE c.oid = $1 AND NOT c.relrowsecurity AND a.grantee <> c.relowner"
	" UNION ALL "
	"SELECT pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY %s', $3::pg_catalog.regclass,"
	"         CASE s.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)"
	"  FROM pg_catalog.pg_class s WHERE s.oid = $2 AND s.relkind = 'r' AND s.relreplident IN ('f', 'n')"
	" UNION ALL "
	"SELECT pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', $3::pg_catalog.regclass, n.relname)"
	"  FROM pg_catalog.pg_index si"
	"  JOIN pg_catalog.pg_inherits hs ON hs.inhrelid = si.indexrelid"
	"  JOIN pg_catalog.pg_inherits hn ON hn.inhparent = hs.inhparent"
	"  JOIN pg_catalog.pg_index ni ON ni.indexrelid = hn.inhrelid AND ni.indrelid = $3"
	"  JOIN pg_catalog.pg_class n ON n.oid = ni.indexrelid"
	" WHERE si.indrelid = $2 AND si.indisreplident",
	3,
	{OIDOID, OIDOID, OIDOID}};

static const TaStatement select_children = {
	"SELECT c.oid, c.relname::text, pg_catalog.pg_get_expr(c.relpartbound, c.oid), pg_catalog.pg_get_partkeydef(c.oid)"
	"  FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid"
	" WHERE i.inhparent = $1 ORDER BY c.relname",
	1,
	{OIDOID}};

/* ta_free_name: a name nobody has in the schema: base and label, cut to fit, numbered if need be. */
char *
ta_free_name(Oid nspid, const char *base, const char *label)
{
	for (int n = 1;; n++)
	{
		char *suffix = n == 1 ? psprintf("_%s", label) : psprintf("_%s_n%d", label, n);
		int	  room = NAMEDATALEN - 1 - (int) strlen(suffix);
		char *name;

		if (room < 1)
			ereport(ERROR,
					(errcode(ERRCODE_NAME_TOO_LONG),
					 errmsg("label \"%s\" is too long", label)));
		name = psprintf("%.*s%s", pg_mbcliplen(base, strlen(base), room), base, suffix);
		if (!OidIsValid(get_relname_relid(name, nspid)) &&
			!SearchSysCacheExists2(TYPENAMENSP, CStringGetDatum(name), ObjectIdGetDatum(nspid)))
			return name;
	}
}

/* The partition to take after: the last one that begins before the range. */
static Oid
nearest_sibling(const TaParent *parent, const TaRange *range)
{
	Oid sibling = parent->nranges > 0 ? parent->ranges[0].partition : InvalidOid;

	/* a table that was converted is the only pattern there is */
	if (!OidIsValid(sibling) && range != NULL)
		return parent->default_oid;
	for (int i = 0; i < parent->nranges && (range == NULL || parent->ranges[i].from < range->from); i++)
		sibling = parent->ranges[i].partition;
	return sibling;
}

/*
 * Partitions a new partition as its sibling is, if it is.  A child is called
 * after its cousin: what follows the sibling's name there follows ours here.
 */
static void
copy_children(Oid sibling, Oid partition)
{
	Datum		   values[1] = {ObjectIdGetDatum(sibling)};
	Oid			   nspid = get_rel_namespace(partition);
	const char	  *old_name = get_rel_name(sibling);
	const char	  *new_name = get_rel_name(partition);
	uint64		   n = ta_execute(engine_namespace(), &select_children, SPI_OK_SELECT, values, NULL);
	SPITupleTable *children = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
	{
		bool  isnull;
		Oid	  child = DatumGetObjectId(SPI_getbinval(children->vals[i], children->tupdesc, 1, &isnull));
		char *name = SPI_getvalue(children->vals[i], children->tupdesc, 2);
		char *bound = SPI_getvalue(children->vals[i], children->tupdesc, 3);
		char *key = SPI_getvalue(children->vals[i], children->tupdesc, 4);
		char *label = psprintf("%d", (int) i + 1);
		char *created;

		if (strncmp(name, old_name, strlen(old_name)) == 0 && name[strlen(old_name)] == '_')
			label = name + strlen(old_name) + 1;
		created = ta_free_name(nspid, new_name, label);
		ta_run("CREATE TABLE %s PARTITION OF %s %s%s%s",
			   quote_qualified_identifier(get_namespace_name(nspid), created),
			   ta_qualified_name(partition), bound,
			   key != NULL ? " PARTITION BY " : "", key != NULL ? key : "");
		if (key != NULL)
			copy_children(child, get_relname_relid(created, nspid));
	}
	SPI_freetuptable(children);
}

/* Runs the statements that a query gives as its only column. */
static void
run_each(const TaStatement *query, Datum *values)
{
	uint64		   n = ta_execute(engine_namespace(), query, SPI_OK_SELECT, values, NULL);
	SPITupleTable *statements = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
		ta_run("%s", SPI_getvalue(statements->vals[i], statements->tupdesc, 1));
	SPI_freetuptable(statements);
}

static Oid
relation_am(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid		  am;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	am = ((Form_pg_class) GETSTRUCT(tuple))->relam;
	ReleaseSysCache(tuple);
	return am;
}

/* An empty table like the parent, not attached yet; sibling may be none. */
static Oid
create_table_like(const TaParent *parent, const char *name, Oid sibling, bool indexes)
{
	StringInfoData sql;
	char		  *qualified = quote_qualified_identifier(get_namespace_name(parent->nspid), name);
	Oid			   tablespace = get_rel_tablespace(parent->relid);
	bool		   partitioned = OidIsValid(sibling) && get_rel_relkind(sibling) == RELKIND_PARTITIONED_TABLE;
	Oid			   partition;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TABLE %s (LIKE %s %s%s)", qualified, parent->qualified, like_clause,
					 indexes ? " INCLUDING INDEXES" : "");
	if (partitioned)
		appendStringInfo(&sql, " PARTITION BY %s",
						 TextDatumGetCString(DirectFunctionCall1(pg_get_partkeydef, ObjectIdGetDatum(sibling))));
	else if (OidIsValid(sibling) && get_rel_relkind(sibling) == RELKIND_RELATION)
	{
		Datum values[1] = {ObjectIdGetDatum(sibling)};
		char *options;

		(void) ta_execute(engine_namespace(), &select_options, SPI_OK_SELECT, values, NULL);
		options = ta_spi_text(0, 1);
		appendStringInfo(&sql, " USING %s", quote_identifier(get_am_name(relation_am(sibling))));
		if (options != NULL)
			appendStringInfo(&sql, " WITH (%s)", options);
	}
	if (OidIsValid(tablespace))
		appendStringInfo(&sql, " TABLESPACE %s", quote_identifier(get_tablespace_name(tablespace)));
	ta_run("%s", sql.data);
	CommandCounterIncrement();

	partition = get_relname_relid(name, parent->nspid);
	if (!OidIsValid(partition))
		elog(ERROR, "table %s was not created", qualified);
	if (partitioned)
		copy_children(sibling, partition);
	return partition;
}

/* Where rows of the range are, in SQL. */
char *
ta_range_condition(const TaParent *parent, const TaRange *range)
{
	return psprintf("%s >= %s AND %s < %s",
					parent->key, ta_bound_literal(parent->key_type, range->from),
					parent->key, ta_bound_literal(parent->key_type, range->to));
}

/*
 * Tells the server what we know: that no row of a table is in the range.  To
 * attach a partition it would read all of DEFAULT again to see the same.  The
 * table is locked in ACCESS EXCLUSIVE mode, and the constraint goes before the
 * transaction ends.  Where the rows are about to be moved it is not true yet.
 */
static void
add_proof(const TaParent *parent, const TaRange *range)
{
	Relation	rel = table_open(parent->default_oid, NoLock);
	char	   *expression = psprintf("NOT (%s IS NOT NULL AND %s)", parent->key, ta_range_condition(parent, range));
	RawStmt	   *raw = linitial_node(RawStmt, raw_parser(psprintf("SELECT %s", expression), RAW_PARSE_DEFAULT));
	SelectStmt *select = castNode(SelectStmt, raw->stmt);
	Constraint *check = makeNode(Constraint);

	check->contype = CONSTR_CHECK;
	check->conname = pstrdup(PROOF_CONSTRAINT);
	check->raw_expr = linitial_node(ResTarget, select->targetList)->val;
	check->location = -1;
	ta_mark_check_valid(check);
	(void) AddRelationNewConstraints(rel, NIL, list_make1(check), false, true, true, NULL);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

static void
drop_proof(const TaParent *parent)
{
	ta_run("ALTER TABLE %s DROP CONSTRAINT %s", ta_qualified_name(parent->default_oid), PROOF_CONSTRAINT);
}

/* Lets other rooms see to a new partition: statement triggers are not cloned. */
void
ta_announce_partition(Oid parent, Oid partition)
{
	Oid types[2] = {REGCLASSOID, REGCLASSOID};
	Oid hook = LookupFuncName(list_make2(makeString("techally"), makeString("audit_partition_created")),
							  2, types, true);

	if (OidIsValid(hook))
		OidFunctionCall2(hook, ObjectIdGetDatum(parent), ObjectIdGetDatum(partition));
}

/*
 * ta_prepare_partition
 *		Makes the table of a range, or of DEFAULT (range NULL), without attaching
 *		it; only rows of the range go in until it is attached.  Its indexes are
 *		made then, or at once.
 *
 * Within ta_maintenance_begin and _end as the parent's owner.
 */
Oid
ta_prepare_partition(const TaParent *parent, const TaRange *range, const char *name, bool indexes)
{
	Oid sibling = nearest_sibling(parent, range);
	Oid partition;

	/* DEFAULT is for rows that should not be there: no need to partition it, too */
	if (range == NULL && OidIsValid(sibling) && get_rel_relkind(sibling) != RELKIND_RELATION)
		sibling = InvalidOid;
	partition = create_table_like(parent, name, sibling, indexes);
	if (range != NULL)
		ta_prove_range(parent, range, partition);
	return partition;
}

/*
 * ta_prove_range
 *		Sees to it that a table has rows of the range only, so that attaching it
 *		need not look at them while others wait.  Raises 23514 where it has others.
 */
void
ta_prove_range(const TaParent *parent, const TaRange *range, Oid partition)
{
	if (get_rel_relkind(partition) != RELKIND_FOREIGN_TABLE)
		ta_run("ALTER TABLE %s ADD CONSTRAINT %s CHECK (%s IS NOT NULL AND %s)",
			   ta_qualified_name(partition), PROOF_CONSTRAINT, parent->key, ta_range_condition(parent, range));
}

/* Foreign keys of a parent, $1, that a table, $2, lacks. */
static const TaStatement select_foreign_keys = {
	"SELECT pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', $2::pg_catalog.regclass, c.conname,"
	"         pg_catalog.pg_get_constraintdef(c.oid))"
	"  FROM pg_catalog.pg_constraint c"
	" WHERE c.conrelid = $1 AND c.contype = 'f' AND c.confrelid <> $1 AND c.convalidated"
	"   AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o WHERE o.conrelid = $2 AND o.contype = 'f' AND o.conname = c.conname)"
	" ORDER BY c.conname",
	2,
	{OIDOID, OIDOID}};

/*
 * ta_add_foreign_keys
 *		Gives a table that is to be attached the parent's foreign keys, which
 *		looks at its rows before others wait.
 */
void
ta_add_foreign_keys(const TaParent *parent, Oid partition)
{
	Datum values[2] = {ObjectIdGetDatum(parent->relid), ObjectIdGetDatum(partition)};

	run_each(&select_foreign_keys, values);
}

/*
 * ta_attach_partition
 *		Attaches a table that ta_prepare_partition made.
 *
 * The caller has locked parent and DEFAULT and described the parent since.
 * absent says that DEFAULT has no row of the range any more; the server would
 * read all of it to see that.
 */
void
ta_attach_partition(const TaParent *parent, const TaRange *range, Oid partition, bool absent)
{
	bool proof = absent && OidIsValid(parent->default_oid) &&
				 get_rel_relkind(parent->default_oid) == RELKIND_RELATION;
	Datum values[3];

	if (proof)
		add_proof(parent, range);
	if (range == NULL)
		ta_run("ALTER TABLE %s ATTACH PARTITION %s DEFAULT", parent->qualified, ta_qualified_name(partition));
	else
	{
		ta_run("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)",
			   parent->qualified, ta_qualified_name(partition),
			   ta_bound_literal(parent->key_type, range->from),
			   ta_bound_literal(parent->key_type, range->to));
		ta_run("ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s", ta_qualified_name(partition), PROOF_CONSTRAINT);
	}
	if (proof)
		drop_proof(parent);

	values[0] = ObjectIdGetDatum(parent->relid);
	values[1] = ObjectIdGetDatum(nearest_sibling(parent, range));
	values[2] = ObjectIdGetDatum(partition);
	run_each(&select_finish, values);
}

/* Builds the indexes of a table that was filled below them. */
static void
rebuild_indexes(Oid relid)
{
	Relation  rel = table_open(relid, NoLock);
	List	 *indexes = RelationGetIndexList(rel);
	ListCell *lc;

	table_close(rel, NoLock);
	foreach(lc, indexes)
		ta_run("REINDEX INDEX %s", ta_qualified_name(lfirst_oid(lc)));
	list_free(indexes);
}

/* ta_default_has_rows: whether DEFAULT has rows of a range. */
bool
ta_default_has_rows(const TaParent *parent, const TaRange *range)
{
	return OidIsValid(parent->default_oid) &&
		   ta_run("SELECT FROM %s WHERE %s LIMIT 1", ta_qualified_name(parent->default_oid),
				  ta_range_condition(parent, range)) > 0;
}

/*
 * ta_create_partition
 *		Makes the partition of one range, or of DEFAULT (range NULL), and
 *		attaches it.
 *
 * Within ta_maintenance_begin and _end as the parent's owner; the caller has
 * locked parent and DEFAULT and described the parent since.  fill, if given,
 * takes the range's rows out of DEFAULT and puts them into the new table, whose
 * indexes are built afterwards; without it the function looks whether DEFAULT has
 * such rows and returns false then, having made nothing.  Raises what the DDL
 * raises.
 *
 * The table is attached while it is empty: its foreign keys need not be checked
 * again, and to logical decoding its rows are the parent's.  (To a publication
 * of the parent rows that are written before would not belong, and subscribers
 * would see nothing but the deletes.)  One that is partitioned itself gets its
 * rows by a statement, which would fire the triggers that attaching clones: it
 * is attached afterwards.
 */
bool
ta_create_partition(const TaParent *parent, const TaStep *step, const TaRange *range,
					void (*fill)(Oid partition, void *arg), void *arg, Oid *created)
{
	char *name;
	bool  attach_first;

	if (range != NULL && fill == NULL && ta_default_has_rows(parent, range))
		return false;
	name = ta_free_name(parent->nspid, parent->name,
						range == NULL ? "default" : ta_range_label(step, range->from));
	*created = ta_prepare_partition(parent, range, name, false);
	attach_first = get_rel_relkind(*created) == RELKIND_RELATION;
	if (fill != NULL && !attach_first)
		fill(*created, arg);

	/* an older snapshot may not have seen all rows: let the server look */
	ta_attach_partition(parent, range, *created,
						range != NULL && (fill != NULL || !IsolationUsesXactSnapshot()));
	if (fill != NULL && attach_first)
	{
		fill(*created, arg);
		rebuild_indexes(*created);
	}
	return true;
}

/*
 * The registry
 */

Oid
ta_partition_registry_owner(void)
{
	return ta_relation_owner(get_relname_relid("managed_partitions", engine_namespace()));
}

/* The settings of a managed table; NULL where it is none. */
TaManaged *
ta_find_managed(Oid relid)
{
	MemoryContext caller = CurrentMemoryContext;
	TaFrame		  frame;
	Datum		  values[1] = {ObjectIdGetDatum(relid)};
	TaManaged	 *managed = NULL;

	ta_frame_begin(&frame, ta_partition_registry_owner());
	PushActiveSnapshot(GetLatestSnapshot());
	if (ta_query(engine_namespace(), &select_managed, values, NULL) > 0)
	{
		bool  isnull;
		Datum value;

		managed = MemoryContextAllocZero(caller, sizeof(TaManaged));
		managed->step_interval = *DatumGetIntervalP(ta_spi_value(0, 1, &isnull));
		if (!ta_step_from_interval(&managed->step_interval, &managed->step))
			elog(ERROR, "step of a managed table is not sound");
		managed->premake = DatumGetInt32(ta_spi_value(0, 2, &isnull));
		value = ta_spi_value(0, 3, &isnull);
		managed->has_retention = !isnull;
		if (!isnull)
			managed->retention = *DatumGetIntervalP(value);
		managed->action = MemoryContextStrdup(caller, ta_spi_text(0, 4));
		managed->archive_kind = MemoryContextStrdup(caller, ta_spi_text(0, 5));
		managed->archive_name = MemoryContextStrdup(caller, ta_spi_text(0, 6));
	}
	PopActiveSnapshot();
	ta_frame_end(&frame);
	return managed;
}

/*
 * What maintenance last did
 */

/* ta_drain_rate: rows a second that the table's last drain moved; 0: none yet. */
double
ta_drain_rate(Oid relid)
{
	TaFrame frame;
	Datum	values[1] = {ObjectIdGetDatum(relid)};
	double	rate = 0;

	ta_frame_begin(&frame, ta_partition_registry_owner());
	if (ta_execute(engine_namespace(), &select_rate, SPI_OK_SELECT, values, NULL) > 0)
	{
		bool  isnull;
		Datum value = ta_spi_value(0, 1, &isnull);

		if (!isnull)
			rate = DatumGetFloat8(value);
	}
	ta_frame_end(&frame);
	return rate;
}

/* ta_record_drain: remembers how fast it went. */
void
ta_record_drain(Oid relid, double rate)
{
	TaFrame frame;
	Datum	values[2] = {ObjectIdGetDatum(relid), Float8GetDatum(rate)};

	ta_frame_begin(&frame, ta_partition_registry_owner());
	ta_execute(engine_namespace(), &upsert_rate, SPI_OK_INSERT, values, NULL);
	ta_frame_end(&frame);
}

TaManaged *
ta_require_managed(Oid relid)
{
	TaManaged *managed = ta_find_managed(relid);

	if (managed == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the partitions of table \"%s\" are not managed", get_rel_name(relid)),
				 errhint("Run techally.manage_partitions first.")));
	return managed;
}

/* Raises 42P01 or 42501 where the table is not there or not the caller's. */
void
ta_require_owner(Oid relid)
{
	char *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", relid)));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)), name);
}

/*
 * Making what is missing
 */

/* A range of a parent in which partitions are to be made. */
typedef struct MakeRequest
{
	Oid			  relid;
	Oid			  owner;
	const TaStep *step;
	bool		  make_default; /* instead of a range */
	Timestamp	  from;
	Timestamp	  to;
	int			  limit; /* partitions at most */
	int			  made;
	int			  blocked;	  /* ranges that have rows in DEFAULT */
	Oid			 *partitions; /* the new ones, in the caller's context */
} MakeRequest;

static void
attempt_to_make(void *arg)
{
	MakeRequest	 *request = arg;
	MemoryContext caller = CurrentMemoryContext;
	TaMaintenance frame;
	TimestampTz	  deadline = ta_lock_deadline();
	TaParent	 *parent;
	TaRange		 *missing;
	int			  nmissing;

	request->made = request->blocked = 0;
	ta_maintenance_begin(&frame, request->owner);
	ta_set_local("lock_timeout", psprintf("%d", ta_maintenance_lock_timeout));
	ta_lock_table(request->relid, ShareRowExclusiveLock, deadline);
	parent = ta_describe_parent(request->relid, NoLock);
	if (OidIsValid(parent->default_oid))
		ta_lock_table(parent->default_oid, AccessExclusiveLock, deadline);
	ta_lock_joined(request->relid, ShareRowExclusiveLock, deadline);

	if (request->make_default)
	{
		request->partitions = MemoryContextAlloc(caller, sizeof(Oid));
		if (!OidIsValid(parent->default_oid) &&
			ta_create_partition(parent, request->step, NULL, NULL, NULL, &request->partitions[0]))
			request->made++;
	}
	else
	{
		missing = palloc(sizeof(TaRange) * (request->limit + 1));
		nmissing = ta_missing_ranges(parent->ranges, parent->nranges, request->step,
									 request->from, request->to, request->limit + 1, missing);
		nmissing = Min(nmissing, request->limit);
		request->partitions = MemoryContextAlloc(caller, sizeof(Oid) * Max(nmissing, 1));
		for (int i = 0; i < nmissing; i++)
		{
			if (ta_create_partition(parent, request->step, &missing[i], NULL, NULL,
									&request->partitions[request->made]))
				request->made++;
			else
				request->blocked++;
		}
	}
	ta_maintenance_end(&frame);
}

/* Makes the missing partitions of a range; returns how many. */
static int
make_missing(MakeRequest *request)
{
	ErrorData *error;

	ta_take_turn(request->relid);
	error = ta_retry(attempt_to_make, request);
	if (error != NULL)
		ReThrowError(error);
	for (int i = 0; i < request->made; i++)
		ta_announce_partition(request->relid, request->partitions[i]);
	return request->made;
}

/* The range that should be there ahead of a moment: its own cell and premake more. */
static bool
premake_range(const TaManaged *managed, Timestamp at, Timestamp *from, Timestamp *to)
{
	if (!ta_step_floor(&managed->step, at, from))
		return false;
	*to = *from;
	for (int i = 0; i <= managed->premake; i++)
	{
		if (!ta_step_next(&managed->step, *to, to))
			return i > 0;
	}
	return true;
}

/* Makes at most limit of the partitions that should be there ahead of a moment. */
static int
premake(Oid relid, const TaManaged *managed, Timestamp at, int limit, int *blocked)
{
	TaParent   *parent = ta_look_at_parent(relid);
	MakeRequest request = {0};
	TaRange		first[1];
	request.relid = relid;
	request.owner = parent->owner;
	request.step = &managed->step;
	request.limit = limit;
	if (!premake_range(managed, at, &request.from, &request.to))
		return 0;

	/* the usual case, and without a lock that anybody could mind */
	if (ta_missing_ranges(parent->ranges, parent->nranges, &managed->step,
						  request.from, request.to, 1, first) == 0)
		return 0;
	(void) make_missing(&request);
	*blocked = request.blocked;
	return request.made;
}

/* A moment as the keys count them: in UTC, or as its face value there. */
static Timestamp
moment_argument(FunctionCallInfo fcinfo, int argno)
{
	return (Timestamp) PG_GETARG_TIMESTAMPTZ(argno);
}

static void
check_step(const TaParent *parent, const Interval *interval, TaStep *step)
{
	if (!ta_step_from_interval(interval, step))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step %s has no grid",
						DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(interval)))),
				 errhint("Steps are 1, 2, 3, 4, 6, 8, 12 or 24 hours, a day, a week, 1, 2, 3, 4 or 6 months, and a year.")));
	if (parent->key_type == DATEOID && step->months == 0 && step->usecs < USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partitions of a date are at least a day wide")));
}

PG_FUNCTION_INFO_V1(ta_manage_partitions);
PG_FUNCTION_INFO_V1(ta_unmanage_partitions);
PG_FUNCTION_INFO_V1(ta_create_partitions);
PG_FUNCTION_INFO_V1(ta_premake_partitions);
PG_FUNCTION_INFO_V1(ta_drain_default);
PG_FUNCTION_INFO_V1(ta_retire_partition);
PG_FUNCTION_INFO_V1(ta_note_partition_run);
PG_FUNCTION_INFO_V1(ta_free_table_name);
PG_FUNCTION_INFO_V1(ta_finish_partition);
PG_FUNCTION_INFO_V1(ta_run_as_owner);
PG_FUNCTION_INFO_V1(ta_partition_ranges);
PG_FUNCTION_INFO_V1(ta_partition_facts);

/*
 * ta_manage_partitions
 *		manage_partitions(parent regclass, step interval, premake integer,
 *						  retention interval, retention_action text) → void
 *
 * Registers the table, or changes how it is registered; makes its DEFAULT
 * partition and those that should be there ahead.  Takes over what partitions
 * there are.  Raises 42501 for who does not own it, 42809 and 0A000 where it
 * cannot be managed, 22023 for a step, premake, retention or action that is
 * none, 55P03 where the locks cannot be had.
 */
Datum
ta_manage_partitions(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "step", "premake"};
	Oid						 relid;
	TaParent				*parent;
	TaManaged				 managed = {0};
	MakeRequest				 request = {0};
	TaFrame					 frame;
	Datum					 values[5];
	char					 nulls[6] = "     ";
	int						 blocked = 0;

	ta_require_arguments(fcinfo, names, lengthof(names));
	ta_require_argument(fcinfo, 4, "retention_action");
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	parent = ta_look_at_parent(relid);
	managed.step_interval = *PG_GETARG_INTERVAL_P(1);
	check_step(parent, &managed.step_interval, &managed.step);
	managed.premake = PG_GETARG_INT32(2);
	managed.action = text_to_cstring(PG_GETARG_TEXT_PP(4));
	if (managed.premake < 0 || managed.premake > MAX_PREMAKE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("premake must be between 0 and %d", MAX_PREMAKE)));
	if (!PG_ARGISNULL(3))
	{
		Interval zero = {0};

		if (DatumGetInt32(DirectFunctionCall2(interval_cmp, PG_GETARG_DATUM(3), IntervalPGetDatum(&zero))) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("retention must be longer than no time")));
	}
	if (strcmp(managed.action, "drop") != 0 && strcmp(managed.action, "detach") != 0 &&
		strcmp(managed.action, "archive") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown retention action \"%s\"", managed.action),
				 errhint("It is \"drop\", \"detach\" or \"archive\".")));

	request.relid = relid;
	request.owner = parent->owner;
	request.step = &managed.step;
	request.make_default = true;
	if (!OidIsValid(parent->default_oid))
		(void) make_missing(&request);

	values[0] = ObjectIdGetDatum(relid);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = PG_GETARG_DATUM(3);
	values[4] = PG_GETARG_DATUM(4);
	if (PG_ARGISNULL(3))
		nulls[3] = 'n';
	ta_frame_begin(&frame, ta_partition_registry_owner());
	ta_execute(engine_namespace(), &upsert_managed, SPI_OK_INSERT, values, nulls);
	ta_frame_end(&frame);

	(void) premake(relid, &managed, (Timestamp) GetCurrentTransactionStartTimestamp(), MAX_RANGES, &blocked);
	if (blocked > 0)
		ereport(NOTICE,
				(errmsg("%d partitions were not made: their rows are in DEFAULT", blocked),
				 errhint("techally.drain_default moves them, one range a call.")));
	PG_RETURN_VOID();
}

/*
 * ta_unmanage_partitions
 *		unmanage_partitions(parent regclass) → void
 *
 * Takes the table out of the registry; its partitions stay.  Raises 42501, and
 * 55000 where it is not managed.
 */
Datum
ta_unmanage_partitions(PG_FUNCTION_ARGS)
{
	TaFrame frame;
	Datum	values[1];
	Oid		relid;

	ta_require_argument(fcinfo, 0, "parent");
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	(void) ta_require_managed(relid);
	values[0] = ObjectIdGetDatum(relid);
	ta_frame_begin(&frame, ta_partition_registry_owner());
	ta_execute(engine_namespace(), &delete_managed, SPI_OK_DELETE, values, NULL);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * ta_create_partitions
 *		create_partitions(parent regclass, from_time timestamptz,
 *						  to_time timestamptz) → integer
 *
 * Makes the partitions that are missing in [from_time, to_time), widened to
 * the grid, and returns how many.  Ranges that have rows in DEFAULT are left
 * to drain_default, with a notice.  Raises 22023 for bounds that are none,
 * 54000 for more than 10,000, and as manage_partitions does.
 */
Datum
ta_create_partitions(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "from_time", "to_time"};
	TaManaged				*managed;
	TaParent				*parent;
	MakeRequest				 request = {0};
	TaRange					*missing;

	ta_require_arguments(fcinfo, names, lengthof(names));
	request.relid = PG_GETARG_OID(0);
	ta_require_owner(request.relid);
	managed = ta_require_managed(request.relid);
	parent = ta_look_at_parent(request.relid);
	request.owner = parent->owner;
	request.step = &managed->step;
	request.from = moment_argument(fcinfo, 1);
	request.to = moment_argument(fcinfo, 2);
	request.limit = MAX_RANGES;
	if (TIMESTAMP_NOT_FINITE(request.from) || TIMESTAMP_NOT_FINITE(request.to) || request.from > request.to)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("from_time and to_time must be finite and in order")));

	missing = palloc(sizeof(TaRange) * (MAX_RANGES + 1));
	if (ta_missing_ranges(parent->ranges, parent->nranges, &managed->step,
						  request.from, request.to, MAX_RANGES + 1, missing) > MAX_RANGES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d partitions would be made", MAX_RANGES)));
	pfree(missing);

	(void) make_missing(&request);
	if (request.blocked > 0)
		ereport(NOTICE,
				(errmsg("%d partitions were not made: their rows are in DEFAULT", request.blocked),
				 errhint("techally.drain_default moves them, one range a call.")));
	PG_RETURN_INT32(request.made);
}

/*
 * ta_premake_partitions
 *		premake_partitions(parent regclass, at timestamptz) → integer
 *
 * Makes the partitions that should be there ahead of a moment and returns how
 * many; ranges that have rows in DEFAULT are left to drain_default.
 */
Datum
ta_premake_partitions(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "at"};
	Oid						 relid;
	int						 blocked = 0;

	ta_require_arguments(fcinfo, names, lengthof(names));
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	PG_RETURN_INT32(premake(relid, ta_require_managed(relid), moment_argument(fcinfo, 1), MAX_RANGES, &blocked));
}

/*
 * ta_drain_default
 *		drain_default(parent regclass) → bigint
 *
 * Moves one missing range out of DEFAULT; see ta_drain_one_range.
 */
Datum
ta_drain_default(PG_FUNCTION_ARGS)
{
	Oid relid;

	ta_require_argument(fcinfo, 0, "parent");
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	PG_RETURN_INT64((int64) ta_drain_one_range(relid, &ta_require_managed(relid)->step));
}

/*
 * ta_free_table_name
 *		free_table_name(schema_name name, base text, label text) → text
 */
Datum
ta_free_table_name(PG_FUNCTION_ARGS)
{
	Oid nspid = get_namespace_oid(NameStr(*PG_GETARG_NAME(0)), false);

	PG_RETURN_TEXT_P(cstring_to_text(ta_free_name(nspid, text_to_cstring(PG_GETARG_TEXT_PP(1)),
												  text_to_cstring(PG_GETARG_TEXT_PP(2)))));
}

/*
 * ta_finish_partition
 *		finish_partition(parent regclass, partition regclass) → void
 *
 * For partitions that were made by SQL: the parent's owner and grants, and
 * what other rooms do with a new partition.  Raises 42501.
 */
Datum
ta_finish_partition(PG_FUNCTION_ARGS)
{
	Oid			  parent = PG_GETARG_OID(0);
	Oid			  partition = PG_GETARG_OID(1);
	Oid			  owner;
	TaMaintenance frame;
	Datum		  values[3] = {ObjectIdGetDatum(parent), ObjectIdGetDatum(InvalidOid), ObjectIdGetDatum(partition)};

	ta_require_owner(parent);
	ta_require_owner(partition);
	owner = ta_relation_owner(parent);
	ta_maintenance_begin(&frame, InvalidOid);
	if (ta_relation_owner(partition) != owner)
		ta_run("ALTER TABLE %s OWNER TO %s", ta_qualified_name(partition),
			   quote_identifier(GetUserNameFromId(owner, false)));
	run_each(&select_finish, values);
	ta_maintenance_end(&frame);
	ta_announce_partition(parent, partition);
	PG_RETURN_VOID();
}

/*
 * ta_run_as_owner
 *		run_as_owner(target regclass, statement text) → void
 *
 * For DDL that is written in SQL: runs a statement as the owner of a table that
 * the caller owns, too, for the expressions in it may be anybody's.  Raises
 * 42501, and what the statement raises.
 */
Datum
ta_run_as_owner(PG_FUNCTION_ARGS)
{
	Oid			  relid = PG_GETARG_OID(0);
	char		 *statement = text_to_cstring(PG_GETARG_TEXT_PP(1));
	TaMaintenance frame;

	ta_require_owner(relid);
	ta_maintenance_begin(&frame, ta_relation_owner(relid));
	(void) ta_run("%s", statement);
	ta_maintenance_end(&frame);
	PG_RETURN_VOID();
}

/*
 * ta_note_partition_run
 *		note_partition_run(parent regclass, task text, failure text) → void
 *
 * Writes down how a task ended.  A failure is left alone for ten seconds, then
 * twice that, and so on up to an hour.
 */
Datum
ta_note_partition_run(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "task"};
	TaFrame					 frame;
	Datum					 values[3];
	char					 nulls[4] = "   ";

	ta_require_arguments(fcinfo, names, lengthof(names));
	ta_require_owner(PG_GETARG_OID(0));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	if (PG_ARGISNULL(2))
		nulls[2] = 'n';
	ta_frame_begin(&frame, ta_partition_registry_owner());
	ta_execute(engine_namespace(), &upsert_run, SPI_OK_INSERT, values, nulls);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * ta_retire_partition
 *		retire_partition(parent regclass, at timestamptz) → text
 *
 * Retires one partition whose time is up; see ta_retire_one.
 */
Datum
ta_retire_partition(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "at"};
	Oid						 relid;
	char					*done;

	ta_require_arguments(fcinfo, names, lengthof(names));
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	done = ta_retire_one(relid, ta_require_managed(relid), moment_argument(fcinfo, 1));
	if (done == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(done));
}

/*
 * ta_partition_ranges
 *		partition_ranges(parent regclass) → setof record of (partition regclass,
 *		from_time timestamptz, to_time timestamptz)
 *
 * The partitions by their real bounds, ascending, without DEFAULT; -infinity
 * and infinity for those without an end.
 */
Datum
ta_partition_ranges(PG_FUNCTION_ARGS)
{
	FuncCallContext *context;
	TaParent		*parent;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;
		TupleDesc	  tupdesc;

		context = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(context->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		context->tuple_desc = BlessTupleDesc(tupdesc);
		context->user_fctx = ta_look_at_parent(PG_GETARG_OID(0));
		MemoryContextSwitchTo(old);
	}
	context = SRF_PERCALL_SETUP();
	parent = context->user_fctx;
	if (context->call_cntr < (uint64) parent->nranges)
	{
		TaRange *range = &parent->ranges[context->call_cntr];
		Datum	 values[3] = {ObjectIdGetDatum(range->partition), TimestampTzGetDatum(range->from), TimestampTzGetDatum(range->to)};
		bool	 nulls[3] = {false, false, false};

		SRF_RETURN_NEXT(context, HeapTupleGetDatum(heap_form_tuple(context->tuple_desc, values, nulls)));
	}
	SRF_RETURN_DONE(context);
}

/*
 * ta_partition_facts
 *		partition_facts(parent regclass, at timestamptz) → record of
 *		(partitions integer, newest_bound timestamptz, rows_in_default bigint,
 *		premade_ahead integer)
 *
 * For the view partition_status: what is known of a managed table; NULLs where
 * it is none.  Reads with the owner's rights, for the view's reader may have
 * none on the tables, and counts at most a million rows in DEFAULT; none where
 * row security is forced on the owner.
 */
Datum
ta_partition_facts(PG_FUNCTION_ARGS)
{
	Oid		   relid = PG_GETARG_OID(0);
	Timestamp  at = moment_argument(fcinfo, 1);
	TaManaged *managed = ta_find_managed(relid);
	TupleDesc  tupdesc;
	TaParent  *parent;
	Datum	   values[4] = {0};
	bool	   nulls[4] = {false, false, false, false};
	int		   ahead = 0;
	Timestamp  cell;
	Timestamp  next;
	TaRange	   missing[1];

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (managed == NULL || get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		PG_RETURN_NULL();
	parent = ta_look_at_parent(relid);

	values[0] = Int32GetDatum(parent->nranges + (OidIsValid(parent->default_oid) ? 1 : 0));
	nulls[1] = parent->nranges == 0;
	if (parent->nranges > 0)
		values[1] = TimestampTzGetDatum(parent->ranges[parent->nranges - 1].to);
	if (OidIsValid(parent->default_oid) && get_rel_relkind(parent->default_oid) != RELKIND_FOREIGN_TABLE &&
		check_enable_rls(parent->default_oid, parent->owner, true) != RLS_ENABLED)
	{
		TaMaintenance frame;
		bool		  isnull;

		ta_maintenance_begin(&frame, parent->owner);
		if (SPI_execute(psprintf("SELECT pg_catalog.count(*) FROM (SELECT FROM %s LIMIT 1000000) d",
								 ta_qualified_name(parent->default_oid)),
						true, 0) != SPI_OK_SELECT)
			elog(ERROR, "SPI_execute failed");
		values[2] = ta_spi_value(0, 1, &isnull);
		ta_maintenance_end(&frame);
	}
	else
		nulls[2] = true;

	if (ta_step_floor(&managed->step, at, &cell))
	{
		while (ahead <= MAX_PREMAKE && ta_step_next(&managed->step, cell, &next) &&
			   ta_missing_ranges(parent->ranges, parent->nranges, &managed->step, cell, next, 1, missing) == 0)
		{
			cell = next;
			ahead++;
		}
	}
	values[3] = Int32GetDatum(Max(ahead - 1, 0));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}
