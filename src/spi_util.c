/*-------------------------------------------------------------------------
 *
 * spi_util.c
 *	  Running SQL over a store's tables.
 *
 * Plans are prepared once for each store and statement and kept for the life
 * of the backend.  They are always generic: the statements are written so
 * that one plan serves every argument, and planning again would cost more
 * than the execution.  They go by index (see plan_by_index).  A plan names its store's schema in its text, so a
 * schema that is renamed makes its plans stale: a syscache callback marks
 * them and the next use prepares them again.
 *
 * Nothing here depends on the caller's search_path: every frame runs with
 * "pg_catalog, pg_temp", and the tables are named with their schema.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "jit/jit.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "errors.h"
#include "spi_util.h"

#define PINNED_SEARCH_PATH "pg_catalog, pg_temp"
#define STORE_TOKEN		   "@store@"

typedef struct PlanKey
{
	Oid				   nspid;
	const TaStatement *statement;
} PlanKey;

typedef struct PlanEntry
{
	PlanKey	   key;
	uint32	   nsphash; /* hash of the namespace in its syscache */
	bool	   valid;	/* set last, cleared by the callback */
	NameData   nspname; /* the name that is in the plan's text */
	SPIPlanPtr plan;
} PlanEntry;

static HTAB *plan_cache = NULL;

/* What names of stores and of their tables stand for, as far as was asked lately. */
typedef struct KnownStore
{
	bool	 valid;
	NameData name;
	Oid		 nspid;
} KnownStore;

typedef struct KnownTable
{
	Oid			nspid;
	const char *name; /* by its address */
	Oid			relid;
} KnownTable;

#define KNOWN_TABLES 64

static KnownStore known_store = {false};
static KnownTable known_tables[KNOWN_TABLES];

/* A namespace changed: it may have been renamed. */
static void
namespace_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS status;
	PlanEntry	   *entry;

	hash_seq_init(&status, plan_cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (hashvalue == 0 || entry->nsphash == hashvalue)
			entry->valid = false;
	}
}

/* A relation came, went or changed its name, or a schema did: names are looked up again. */
static void
forget_names(Datum arg, int cacheid, uint32 hashvalue)
{
	known_store.valid = false;
	memset(known_tables, 0, sizeof(known_tables));
}

/*
 * ta_spi_init
 *		Makes the plan cache.  Called once, by _PG_init.
 */
void
ta_spi_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(PlanKey);
	ctl.entrysize = sizeof(PlanEntry);
	ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
	plan_cache = hash_create("techally plans", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, forget_names, (Datum) 0);
	CacheRegisterSyscacheCallback(RELNAMENSP, forget_names, (Datum) 0);
}

/*
 * ta_store_namespace
 *		The schema of a store.
 *
 * A schema is a store when it holds a store's migration table.  Raises TA009
 * where it is none.  Takes no lock: what reads the tables takes theirs.
 */
Oid
ta_store_namespace(Name store)
{
	Oid nspid;

	if (known_store.valid && strcmp(NameStr(known_store.name), NameStr(*store)) == 0)
		return known_store.nspid;

	nspid = get_namespace_oid(NameStr(*store), true);
	if (!OidIsValid(nspid) ||
		!OidIsValid(get_relname_relid("schema_migrations", nspid)))
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("store \"%s\" does not exist", NameStr(*store)),
				 errhint("The view techally.stores lists the stores. If the schema was renamed, run techally.adopt_store with its new name.")));
	known_store.name = *store;
	known_store.nspid = nspid;
	known_store.valid = true;
	return nspid;
}

/*
 * ta_store_table
 *		A table of a store, InvalidOid where there is none of that name.
 *
 * name is a literal: its address stands for it.  Takes no lock.
 */
Oid
ta_store_table(Oid nspid, const char *name)
{
	KnownTable *known = &known_tables[(nspid ^ ((uintptr_t) name >> 3)) % KNOWN_TABLES];

	if (known->name != name || known->nspid != nspid)
	{
		Oid relid = get_relname_relid(name, nspid);

		if (!OidIsValid(relid))
			return InvalidOid;
		known->nspid = nspid;
		known->name = name;
		known->relid = relid;
	}
	return known->relid;
}

/*
 * ta_namespace_owner
 *		The role that owns a schema.
 */
Oid
ta_namespace_owner(Oid nspid)
{
	HeapTuple tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(nspid));
	Oid		  owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", nspid);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * ta_relation_owner
 *		The role that owns a table, for acting as it in the narrowest block.
 */
Oid
ta_relation_owner(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid		  owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * ta_frame_begin
 *		Opens SPI with a pinned search_path, as role act_as where that is valid.
 *
 * On error the transaction's own abort restores the settings and the role.
 */
void
ta_frame_begin(TaFrame *frame, Oid act_as)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	frame->guc_level = 0;
	if (strcmp(namespace_search_path, PINNED_SEARCH_PATH) != 0)
	{
		frame->guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path", PINNED_SEARCH_PATH,
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	}

	GetUserIdAndSecContext(&frame->saved_user, &frame->saved_sec_context);
	frame->switched_user = OidIsValid(act_as) && act_as != frame->saved_user;
	if (frame->switched_user)
		SetUserIdAndSecContext(act_as,
							   frame->saved_sec_context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * ta_frame_end
 *		Closes what ta_frame_begin opened; SPI's results are gone afterwards.
 */
void
ta_frame_end(TaFrame *frame)
{
	if (frame->switched_user)
		SetUserIdAndSecContext(frame->saved_user, frame->saved_sec_context);
	if (frame->guc_level != 0)
		AtEOXact_GUC(true, frame->guc_level);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * ta_in_savepoint
 *		Does some work in a subtransaction, and undoes it with all locks that it
 *		took where it returns false.  Returns what work returned.
 *
 * An error undoes it, too, and goes on to the caller: whoever catches it finds
 * the subtransaction that he began himself.
 */
bool
ta_in_savepoint(bool (*work)(void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool kept = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		kept = work(arg);
		if (kept)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
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
		ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return kept;
}

/* The statement's text for one store. */
static char *
expand_store(const char *sql, const char *quoted)
{
	StringInfoData buf;
	const char	  *at;

	initStringInfo(&buf);
	while ((at = strstr(sql, STORE_TOKEN)) != NULL)
	{
		appendBinaryStringInfo(&buf, sql, at - sql);
		appendStringInfoString(&buf, quoted);
		sql = at + strlen(STORE_TOKEN);
	}
	appendStringInfoString(&buf, sql);
	return buf.data;
}

/* The plan of a statement for one store, prepared on first use. */
static SPIPlanPtr
plan_of(Oid nspid, const TaStatement *statement)
{
	PlanKey	   key;
	PlanEntry *entry;
	bool	   found;
	char	  *nspname;
	char	  *sql;
	SPIPlanPtr plan;

	memset(&key, 0, sizeof(key));
	key.nspid = nspid;
	key.statement = statement;

	entry = hash_search(plan_cache, &key, HASH_FIND, NULL);
	if (entry != NULL && entry->valid)
		return entry->plan;

	nspname = get_namespace_name(nspid);
	if (nspname == NULL)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("store does not exist any more")));

	/* changed, but not in its name (a GRANT, say): the plan stands */
	if (entry != NULL && strcmp(nspname, NameStr(entry->nspname)) == 0)
	{
		entry->valid = true;
		return entry->plan;
	}

	sql = expand_store(statement->sql, quote_identifier(nspname));
	plan = SPI_prepare_cursor(sql, statement->nargs, (Oid *) statement->argtypes,
							  CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");

	/*
	 * A plan under the schema's old name is not freed: it may be running
	 * further up the stack, and renaming a store is rare.
	 */
	entry = hash_search(plan_cache, &key, HASH_ENTER, &found);
	entry->plan = plan;
	entry->nsphash = GetSysCacheHashValue1(NAMESPACEOID, ObjectIdGetDatum(nspid));
	namestrcpy(&entry->nspname, nspname);
	entry->valid = true;

	pfree(sql);
	pfree(nspname);
	return plan;
}

/*
 * Plans a statement, where its plan is missing or stale, for what all of ours
 * are: look-ups of a few rows by index.  The generic plan knows nothing of the
 * tables' future: made while they are empty it would read them whole, and made
 * for a few rows it prefers bitmaps, whose start costs more than the rows.
 * Nor are they compiled: a table that has no index for them looks dear enough.
 * The settings hold while our statement is planned and not while it runs, so
 * that what its triggers plan is left alone.
 */
static void
plan_by_index(SPIPlanPtr plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	bool			  saved[] = {enable_seqscan, enable_bitmapscan, enable_hashjoin, enable_mergejoin, enable_material, jit_enabled};

	if (source->is_valid && source->gplan != NULL && source->gplan->is_valid)
		return;

	PG_TRY();
	{
		CachedPlan *cached;

		enable_seqscan = enable_bitmapscan = enable_hashjoin = enable_mergejoin = enable_material = jit_enabled = false;
		cached = SPI_plan_get_cached_plan(plan);
		if (cached != NULL)
			ReleaseCachedPlan(cached, CurrentResourceOwner);
	}
	PG_FINALLY();
	{
		enable_seqscan = saved[0];
		enable_bitmapscan = saved[1];
		enable_hashjoin = saved[2];
		enable_mergejoin = saved[3];
		enable_material = saved[4];
		jit_enabled = saved[5];
	}
	PG_END_TRY();
}

static uint64
run_plan(Oid nspid, const TaStatement *statement, int expected,
		 Datum *values, const char *nulls, bool read_only)
{
	SPIPlanPtr plan = plan_of(nspid, statement);
	int		   rc;

	plan_by_index(plan);
	rc = SPI_execute_plan(plan, values, nulls, read_only, 0);
	if (rc != expected)
		elog(ERROR, "unexpected SPI result %s from: %s",
			 SPI_result_code_string(rc), statement->sql);
	return SPI_processed;
}

/*
 * ta_execute
 *		Runs a statement that may write, under a snapshot of its own where the
 *		isolation level allows it.
 *
 * expected is the SPI_OK_ code that it must end with.  Returns SPI_processed;
 * rows are in SPI_tuptable until the next call.  Raises whatever the statement
 * raises.
 */
uint64
ta_execute(Oid nspid, const TaStatement *statement, int expected,
		   Datum *values, const char *nulls)
{
	return run_plan(nspid, statement, expected, values, nulls, false);
}

/*
 * ta_query
 *		Runs a SELECT under the caller's snapshot: for functions that are STABLE.
 */
uint64
ta_query(Oid nspid, const TaStatement *statement, Datum *values, const char *nulls)
{
	return run_plan(nspid, statement, SPI_OK_SELECT, values, nulls, true);
}

/*
 * ta_open_cursor
 *		Opens a SELECT whose rows are fetched with SPI_cursor_fetch, for results
 *		too large for memory.  Close it with SPI_cursor_close, or leave that to
 *		the end of the frame.
 */
Portal
ta_open_cursor(Oid nspid, const TaStatement *statement, Datum *values, const char *nulls,
			   bool read_only)
{
	SPIPlanPtr plan = plan_of(nspid, statement);
	Portal	   portal;

	plan_by_index(plan);
	portal = SPI_cursor_open(NULL, plan, values, nulls, read_only);
	if (portal == NULL)
		elog(ERROR, "SPI_cursor_open failed: %s", SPI_result_code_string(SPI_result));
	return portal;
}

/*
 * ta_spi_value
 *		One value of the last result, rows counted from 0 and columns from 1.
 *
 * Points into SPI's memory: copy what outlives the frame.
 */
Datum
ta_spi_value(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

/*
 * ta_spi_text
 *		One value of the last result as text, NULL where it is NULL.
 */
char *
ta_spi_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/*
 * ta_spi_uuid
 *		Copies a uuid column of the current result, which is not NULL.
 */
pg_uuid_t
ta_spi_uuid(uint64 row, int column)
{
	bool  isnull;
	Datum value = ta_spi_value(row, column, &isnull);

	Assert(!isnull);
	return *DatumGetUUIDP(value);
}

/*
 * ta_spi_nullable_uuid
 *		The same of a column that may be NULL.
 */
TaUuid
ta_spi_nullable_uuid(uint64 row, int column)
{
	TaUuid result = {.isnull = true};
	Datum  value = ta_spi_value(row, column, &result.isnull);

	if (!result.isnull)
		result.value = *DatumGetUUIDP(value);
	return result;
}

/*
 * ta_spi_int4
 *		An integer column of the current result, which is not NULL.
 */
int32
ta_spi_int4(uint64 row, int column)
{
	bool isnull;

	return DatumGetInt32(ta_spi_value(row, column, &isnull));
}

/*
 * ta_spi_tid
 *		A tid column of the current result, which is not NULL.
 */
ItemPointerData
ta_spi_tid(uint64 row, int column)
{
	bool isnull;

	return *((ItemPointer) DatumGetPointer(ta_spi_value(row, column, &isnull)));
}
