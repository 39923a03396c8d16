/*-------------------------------------------------------------------------
 *
 * audit_log.c
 *	  The audit log of a schema: finding, making, and writing it.
 *
 * The log is an ordinary table audit_logs in the schema of the tables that it
 * is about, partitioned by month, owned by the schema's owner.  It is made when
 * it is first needed.  Rows go in the way COPY puts them: gathered, written a
 * page at a time into the partition of the moment, then entered into its
 * indexes.  That takes no executor where the partition is as it was made, with
 * our columns and indexes and nothing else.  A partition that asks for more
 * (triggers, defaults, partitions of its own) gets its rows by INSERT;
 * techally.direct_rows = off makes all of them go that way.
 *
 * Invariants:
 * - Nobody writes to a log but ta_audit_write: its triggers refuse INSERT, and
 *	 UPDATE, DELETE and TRUNCATE even where triggers are off for replication,
 *	 but within the bracket of ta_pass_through_begin for this one log.
 * - A row's id is taken while the row that it is about is locked, and so is the
 *	 time: the entries of one row are in the order of what happened to it.
 * - The rows of a transaction are a chain of hashes (audit_hash.c).  ROLLBACK TO
 *	 takes it back to where it was.
 *
 * Lock order: the tables that the log is about are locked before; then the
 * partition, in ROW EXCLUSIVE mode, and before it the log itself where it is not
 * known which partition it is.  Who makes a log takes an advisory lock of the
 * transaction on its schema first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/brin_internal.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/index.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inet.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "audit_log.h"
#include "compat.h"
#include "partition.h"
#include "request_util.h"
#include "row_writer.h"
#include "spi_util.h"
#include "trigger_util.h"

#define LOG_LOCK_SPACE 0x74616c67 /* "talg" */
#define LOG_PREMAKE	   3		  /* months ahead */
#define BATCH_ROWS	   256
#define BATCH_BYTES	   (128 * 1024)
#define INDEX_ENTRIES  (1024 * 1024) /* that wait to be sorted */
#define GUARD_FUNCTION "guard_audit_log"

typedef struct LogColumn
{
	const char *name;
	Oid			type;
} LogColumn;

static const LogColumn log_columns[LOG_COLUMNS] = {
	[LOG_ID] = {"id", INT8OID},
	[LOG_CHANGED_AT] = {"changed_at", TIMESTAMPTZOID},
	[LOG_TRANSACTION_ID] = {"transaction_id", INT8OID},
	[LOG_ACTION] = {"action", TEXTOID},
	[LOG_TABLE_SCHEMA] = {"table_schema", TEXTOID},
	[LOG_TABLE_NAME] = {"table_name", TEXTOID},
	[LOG_ROW_KEY] = {"row_key", JSONBOID},
	[LOG_NEW_KEY] = {"new_key", JSONBOID},
	[LOG_RESOURCE_ID] = {"resource_id", UUIDOID},
	[LOG_USER_ID] = {"user_id", UUIDOID},
	[LOG_DB_USER] = {"db_user", TEXTOID},
	[LOG_REQUEST_ID] = {"request_id", TEXTOID},
	[LOG_CLIENT_IP] = {"client_ip", INETOID},
	[LOG_USER_AGENT] = {"user_agent", TEXTOID},
	[LOG_METADATA] = {"metadata", JSONBOID},
	[LOG_CHANGES] = {"changes", JSONBOID},
	[LOG_CHANGES_SALT] = {"changes_salt", BYTEAOID},
	[LOG_CHANGES_DIGEST] = {"changes_digest", BYTEAOID},
	[LOG_CONTEXT_SALT] = {"context_salt", BYTEAOID},
	[LOG_CONTEXT_DIGEST] = {"context_digest", BYTEAOID},
	[LOG_ROW_HASH] = {"row_hash", BYTEAOID},
};

/* What buffer_row and flush do, as a statement: the columns as above. */
static const TaStatement insert_entry = {
	"INSERT INTO @store@.audit_logs (id, changed_at, transaction_id, changes, row_key, action, table_schema,"
	" table_name, db_user, changes_salt, row_hash, resource_id, user_id, client_ip, context_salt, request_id,"
	" user_agent, metadata, new_key, changes_digest, context_digest)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)",
	LOG_COLUMNS,
	{INT8OID, TIMESTAMPTZOID, INT8OID, JSONBOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID,
	 UUIDOID, UUIDOID, INETOID, BYTEAOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, BYTEAOID, BYTEAOID}};

/* The indexes that a log has; what they are over is known without their expressions. */
typedef enum LogIndex
{
	INDEX_ROW_KEY,
	INDEX_NEW_KEY,
	INDEX_TIME,
	LOG_INDEXES
} LogIndex;

/* A log, and the partition that was written last: kept between calls. */
typedef struct LogFormat
{
	Oid			nspid; /* of the schema */
	Oid			relid;
	bool		valid; /* cleared by invalidation */
	Oid			owner;
	Oid			sequence;
	Oid			leaf; /* InvalidOid: none looked up */
	TimestampTz leaf_from;
	TimestampTz leaf_to;
	bool		leaf_direct; /* its rows can be written without statements */
	bool		leaf_known;	 /* it is as it was made: columns, and indexes */
	Oid			leaf_indexes[LOG_INDEXES];
	AttrNumber	leaf_attnums[LOG_COLUMNS];
} LogFormat;

/* An entry for an index on one bigint, which waits to be sorted. */
typedef struct IndexEntry
{
	int64			hash;
	ItemPointerData row;
} IndexEntry;

typedef struct Deferred
{
	bool		sorted; /* the index takes its entries at the end, in order */
	IndexEntry *entries;
	int			n;
	int			size;
} Deferred;

/* A row of a partition that is as it was made, on its way there. */
typedef struct Pending
{
	HeapTuple tuple;
	int64	  id;
	bool	  has_hash[INDEX_TIME];
	int64	  hash[INDEX_TIME]; /* as the B-trees have it */
} Pending;

#define ST_SORT			 sort_index_entries
#define ST_ELEMENT_TYPE	 IndexEntry
#define ST_COMPARE(a, b) ((a)->hash < (b)->hash ? -1 : (a)->hash > (b)->hash ? 1 \
																			 : ItemPointerCompare((ItemPointer) & (a)->row, (ItemPointer) & (b)->row))
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

struct TaAuditWriter
{
	Oid			  relid;
	Oid			  nspid;
	Oid			  owner;
	Oid			  sequence;
	MemoryContext context;
	Datum		  values[LOG_COLUMNS]; /* those of the statement, and of the row at hand */
	bool		  nulls[LOG_COLUMNS];
	TaAuditHasher hasher;
	const char	 *action;
	uint8		  statement_digest[TA_HASH_SIZE];
	uint8		  previous[TA_ROW_HASH_SIZE];
	bool		  wrote;
	char		  salt[VARHDRSZ + TA_SALT_SIZE];
	char		  hash[VARHDRSZ + TA_ROW_HASH_SIZE];
	char		  context_salt[VARHDRSZ + TA_SALT_SIZE];

	/* written without statements */
	bool			 direct;
	Relation		 leaf;
	AttrNumber		 attnums[LOG_COLUMNS];
	EState			*estate;
	ResultRelInfo	*target;
	TupleTableSlot **slots;
	int				 nslots;
	int				 nbuffered;
	Size			 bytes;
	MemoryContext	 batch;
	Deferred		*deferred; /* for each index of the partition; NULL: none can be */

	/* likewise, into a partition that is as it was made: no executor */
	bool	   known;
	Oid		   index_oids[LOG_INDEXES];
	Relation   indexes[LOG_INDEXES]; /* opened when they are needed */
	IndexInfo *index_info;
	int64	   key_seed; /* of the hashes of keys: the table's name */
	Pending	   first;	 /* most statements write one row */
	Pending	  *pending;	 /* the first of them, or BATCH_ROWS */
	Deferred   key_entries[INDEX_TIME];
	IndexEntry few_entries[INDEX_TIME][2];
};

/* Where the chain of the present transaction stands, for each log. */
typedef struct Chain
{
	Oid			  log;
	int			  level; /* of the subtransaction that wrote last */
	uint8		  hash[TA_ROW_HASH_SIZE];
	struct Chain *next; /* the innermost level first */
} Chain;

static HTAB	 *logs = NULL;
static Chain *chains = NULL; /* in TopTransactionContext */

/*
 * Invalidation, and the ends of transactions
 */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	LogFormat	   *log;

	hash_seq_init(&status, logs);
	while ((log = hash_seq_search(&status)) != NULL)
		if (relid == InvalidOid || relid == log->relid || relid == log->leaf || relid == log->sequence)
			log->valid = false;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PREPARE:
			chains = NULL;
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		Chain **link = &chains;

		while (*link != NULL)
		{
			if ((*link)->level >= level)
				*link = (*link)->next;
			else
				link = &(*link)->next;
		}
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (Chain *chain = chains; chain != NULL; chain = chain->next)
			if (chain->level >= level)
				chain->level = level - 1;
	}
}

/*
 * ta_audit_log_init
 *		Makes the cache of logs.  Called once, by _PG_init.
 */
void
ta_audit_log_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(LogFormat);
	ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
	logs = hash_create("techally audit logs", 8, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

/* The innermost state of a log's chain; NULL where nothing was written yet. */
static Chain *
find_chain(Oid log)
{
	for (Chain *chain = chains; chain != NULL; chain = chain->next)
		if (chain->log == log)
			return chain;
	return NULL;
}

static void
save_chain(Oid log, const uint8 *hash)
{
	int	   level = GetCurrentTransactionNestLevel();
	Chain *chain = find_chain(log);

	if (chain == NULL || chain->level < level)
	{
		chain = MemoryContextAlloc(TopTransactionContext, sizeof(Chain));
		chain->log = log;
		chain->level = level;
		chain->next = chains;
		chains = chain;
	}
	memcpy(chain->hash, hash, TA_ROW_HASH_SIZE);
}

/*
 * The guard
 */

PG_FUNCTION_INFO_V1(ta_guard_audit_log);

/*
 * ta_guard_audit_log
 *		guard_audit_log() → trigger
 *
 * BEFORE every event on a log and its seals: raises 42501.
 */
Datum
ta_guard_audit_log(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, GUARD_FUNCTION,
											TA_TRIGGER_BEFORE | TA_TRIGGER_INSERT | TA_TRIGGER_UPDATE |
												TA_TRIGGER_DELETE | TA_TRIGGER_TRUNCATE);
	Relation	 rel = trigdata->tg_relation;
	Oid			 root = RelationGetRelid(rel);
	const char	*verb;

	if (ta_passes_through(RelationGetRelid(rel)))
		return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newtuple
																		   : trigdata->tg_trigtuple);
	if (rel->rd_rel->relispartition)
		root = llast_oid(get_partition_ancestors(root));
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		verb = "insert into";
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		verb = "update";
	else if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		verb = "delete from";
	else
		verb = "truncate";
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot %s audit log \"%s\"", verb, get_rel_name(root)),
			 errdetail("Only audited changes are written to it, and nothing is taken away."),
			 errhint("techally.erase_audit removes what is known of a row; old partitions are retired by techally.manage_partitions.")));
}

/*
 * Finding and making a log
 */

static bool
has_our_columns(Relation rel)
{
	for (int c = 0; c < LOG_COLUMNS; c++)
	{
		AttrNumber attnum = get_attnum(RelationGetRelid(rel), log_columns[c].name);

		if (attnum <= 0 ||
			TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid != log_columns[c].type)
			return false;
	}
	return true;
}

static Oid
owned_sequence(Oid relid)
{
	List *sequences = getOwnedSequences(relid);

	return sequences == NIL ? InvalidOid : linitial_oid(sequences);
}

static bool
is_log(Relation rel)
{
	PartitionKey key;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE || !has_our_columns(rel))
		return false;
	key = RelationGetPartitionKey(rel);
	return key->strategy == PARTITION_STRATEGY_RANGE && key->partnatts == 1 &&
		   key->partattrs[0] == get_attnum(RelationGetRelid(rel), log_columns[LOG_CHANGED_AT].name) &&
		   OidIsValid(owned_sequence(RelationGetRelid(rel)));
}

/*
 * ta_is_audit_log
 *		Whether a table is an audit log, by its name and form.
 */
bool
ta_is_audit_log(Oid relid)
{
	char	*name = get_rel_name(relid);
	Relation rel;
	bool	 result;

	if (name == NULL || strcmp(name, TA_AUDIT_LOG) != 0 || get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		return false;
	rel = table_open(relid, AccessShareLock);
	result = is_log(rel);
	table_close(rel, NoLock);
	return result;
}

/*
 * ta_audit_log_columns
 *		The columns of a log for a SELECT list, in the order of TaAuditLogColumn,
 *		each with a prefix.
 */
char *
ta_audit_log_columns(const char *prefix)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int c = 0; c < LOG_COLUMNS; c++)
		appendStringInfo(&buf, "%s%s%s", c == 0 ? "" : ", ", prefix, log_columns[c].name);
	return buf.data;
}

/*
 * ta_audit_log_sequence
 *		The sequence that a log's ids come from.
 */
Oid
ta_audit_log_sequence(Oid log)
{
	return owned_sequence(log);
}

static void
run(const char *sql, int expected)
{
	int result = SPI_execute(sql, false, 0);

	if (result != expected)
		elog(ERROR, "SPI reports %s for: %s", SPI_result_code_string(result), sql);
}

/* Puts the guard's triggers on a table; rows are guarded by those of the log. */
static void
guard(const char *qualified, bool rows)
{
	if (rows)
	{
		run(psprintf("CREATE TRIGGER techally_guard_insert BEFORE INSERT ON %s"
					 " FOR EACH ROW EXECUTE FUNCTION techally." GUARD_FUNCTION "()",
					 qualified),
			SPI_OK_UTILITY);
		run(psprintf("CREATE TRIGGER techally_guard_rows BEFORE UPDATE OR DELETE ON %s"
					 " FOR EACH ROW EXECUTE FUNCTION techally." GUARD_FUNCTION "()",
					 qualified),
			SPI_OK_UTILITY);
		run(psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER techally_guard_rows", qualified), SPI_OK_UTILITY);
	}
	run(psprintf("CREATE TRIGGER techally_guard_truncate BEFORE TRUNCATE ON %s"
				 " FOR EACH STATEMENT EXECUTE FUNCTION techally." GUARD_FUNCTION "()",
				 qualified),
		SPI_OK_UTILITY);
	run(psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER techally_guard_truncate", qualified), SPI_OK_UTILITY);
}

/*
 * ta_audit_guard_partition
 *		Guards a new partition of a log against TRUNCATE.
 *
 * The other triggers are cloned with the partition, and fire always as the
 * log's do.  A partition that came otherwise (restored, attached by hand) may
 * have its own.
 */
void
ta_audit_guard_partition(Oid log, Oid partition)
{
	TaMaintenance frame;
	char		 *qualified;
	Relation	  rel;
	bool		  guarded = false;
	bool		  always = true;

	if (get_rel_relkind(partition) != RELKIND_RELATION)
		return;
	rel = table_open(partition, AccessShareLock);
	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
	{
		const Trigger *trigger = &rel->trigdesc->triggers[i];

		guarded |= strcmp(trigger->tgname, "techally_guard_truncate") == 0;
		if (strcmp(trigger->tgname, "techally_guard_rows") == 0)
			always = trigger->tgenabled == TRIGGER_FIRES_ALWAYS;
	}
	table_close(rel, NoLock);
	if (guarded && always)
		return;

	qualified = quote_qualified_identifier(get_namespace_name(get_rel_namespace(partition)),
										   get_rel_name(partition));
	ta_maintenance_begin(&frame, ta_relation_owner(partition));
	if (!guarded)
		guard(qualified, false);
	if (!always)
		run(psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER techally_guard_rows", qualified), SPI_OK_UTILITY);
	ta_maintenance_end(&frame);
}

/* Has the log's months made, as those of any other table. */
static void
manage_months(Oid log)
{
	LOCAL_FCINFO(fcinfo, 5);
	Interval *month = palloc0(sizeof(Interval));

	month->month = 1;
	InitFunctionCallInfoData(*fcinfo, NULL, 5, InvalidOid, NULL, NULL);
	memset(fcinfo->args, 0, sizeof(NullableDatum) * 5);
	fcinfo->args[0].value = ObjectIdGetDatum(log);
	fcinfo->args[1].value = IntervalPGetDatum(month);
	fcinfo->args[2].value = Int32GetDatum(LOG_PREMAKE);
	fcinfo->args[3].isnull = true;
	fcinfo->args[4].value = CStringGetTextDatum("detach");
	(void) ta_manage_partitions(fcinfo);
}

/* Only the owner writes, whatever default privileges say. */
static void
revoke_writes(Oid relid, const char *qualified)
{
	uint64		   n;
	SPITupleTable *grantees;

	run(psprintf("SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'"
				 "       ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END"
				 "  FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a"
				 " WHERE c.oid = %u AND a.grantee <> c.relowner AND a.privilege_type <> 'SELECT'",
				 relid),
		SPI_OK_SELECT);
	n = SPI_processed;
	grantees = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
		run(psprintf("REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON TABLE %s FROM %s",
					 qualified, SPI_getvalue(grantees->vals[i], grantees->tupdesc, 1)),
			SPI_OK_UTILITY);
}

static const char *const column_comments[][2] = {
	{"id", "In the order of what happened to a row; gaps are allowed"},
	{"changed_at", "When the change was made, by the server''s clock"},
	{"transaction_id", "The transaction, as pg_current_xact_id() has it"},
	{"action", "INSERT, UPDATE, DELETE, TRUNCATE, SOFT_DELETE, RESTORE or ERASE"},
	{"table_schema", "The schema of the table, as it was called then"},
	{"table_name", "The table; for a partition the partitioned table"},
	{"row_key", "The primary key; for a changed key the old one"},
	{"new_key", "The new primary key, where the change changed it"},
	{"resource_id", "The primary key where it is one uuid"},
	{"user_id", "The application''s user (app.current_user_id)"},
	{"db_user", "The session''s role"},
	{"request_id", "The application''s request (app.request_id)"},
	{"client_ip", "The client (app.client_ip, or else the connection''s)"},
	{"user_agent", "The client''s program (app.user_agent)"},
	{"metadata", "What else the application says (app.audit_metadata), and the counts of a TRUNCATE"},
	{"changes", "The row for INSERT and DELETE, {\"column\": {\"old\": …, \"new\": …}} for UPDATE; NULL once erased"},
	{"changes_salt", "Salt of the commitment to changes; goes with them"},
	{"changes_digest", "The commitment, kept in place of what was erased"},
	{"context_salt", "Salt of the commitment to request_id, client_ip, user_agent and metadata"},
	{"context_digest", "The commitment, kept in place of what was erased"},
	{"row_hash", "Hash of the row and of the one before it in its transaction"},
};

/* Makes the log of a schema; within ta_maintenance_begin as the schema's owner. */
static Oid
make_log(Oid nspid, const char *schema)
{
	const char *log = quote_qualified_identifier(schema, TA_AUDIT_LOG);
	const char *seals = quote_qualified_identifier(schema, TA_AUDIT_SEALS);
	const char *sequence = quote_qualified_identifier(schema, TA_AUDIT_LOG "_id_seq");
	const char *view = quote_qualified_identifier(schema, TA_AUDIT_VIEW);
	Oid			relid;

	run(psprintf("CREATE TABLE %s ("
				 " id bigint NOT NULL,"
				 " changed_at timestamptz NOT NULL,"
				 " transaction_id bigint NOT NULL,"
				 " changes jsonb,"
				 " row_key jsonb,"
				 " action text NOT NULL,"
				 " table_schema text NOT NULL,"
				 " table_name text NOT NULL,"
				 " db_user text,"
				 " changes_salt bytea,"
				 " row_hash bytea NOT NULL,"
				 " resource_id uuid,"
				 " user_id uuid,"
				 " client_ip inet,"
				 " context_salt bytea,"
				 " request_id text,"
				 " user_agent text,"
				 " metadata jsonb,"
				 " new_key jsonb,"
				 " changes_digest bytea,"
				 " context_digest bytea"
				 ") PARTITION BY RANGE (changed_at)",
				 log),
		SPI_OK_UTILITY);
	relid = get_relname_relid(TA_AUDIT_LOG, nspid);
	run(psprintf("COMMENT ON TABLE %s IS 'What was changed in the audited tables of this schema; written by techally.audit_changes'", log),
		SPI_OK_UTILITY);
	for (int c = 0; c < (int) lengthof(column_comments); c++)
		run(psprintf("COMMENT ON COLUMN %s.%s IS '%s'", log, column_comments[c][0], column_comments[c][1]),
			SPI_OK_UTILITY);
	run(psprintf("CREATE SEQUENCE %s OWNED BY %s.id", sequence, log), SPI_OK_UTILITY);

	/* the history of a row; where a key came from; a span of time, or an id */
	run(psprintf("CREATE INDEX idx_audit_logs_row ON %s"
				 " (pg_catalog.jsonb_hash_extended(row_key, pg_catalog.hashtextextended(table_name, 0)))"
				 " WHERE row_key IS NOT NULL",
				 log),
		SPI_OK_UTILITY);
	run(psprintf("CREATE INDEX idx_audit_logs_new_key ON %s"
				 " (pg_catalog.jsonb_hash_extended(new_key, pg_catalog.hashtextextended(table_name, 0)))"
				 " WHERE new_key IS NOT NULL",
				 log),
		SPI_OK_UTILITY);
	run(psprintf("CREATE INDEX idx_audit_logs_time ON %s USING brin (changed_at, id) WITH (pages_per_range = 32)", log),
		SPI_OK_UTILITY);
	guard(log, true);
	revoke_writes(relid, log);

	run(psprintf("CREATE TABLE %s ("
				 " period text NOT NULL,"
				 " number bigint NOT NULL,"
				 " after_id bigint NOT NULL,"
				 " to_id bigint NOT NULL,"
				 " rows bigint NOT NULL,"
				 " rows_hash bytea NOT NULL,"
				 " previous bytea,"
				 " sealed_at timestamptz NOT NULL,"
				 " seal bytea NOT NULL,"
				 " retired_at timestamptz,"
				 " PRIMARY KEY (period, number))",
				 seals),
		SPI_OK_UTILITY);
	run(psprintf("COMMENT ON TABLE %s IS 'Seals over the rows of audit_logs, a chain for each month; written by techally.seal_audit_logs'", seals),
		SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.period IS 'The month, in UTC'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.number IS 'Counts the seals of a month'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.after_id IS 'Covers the rows with a higher id'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.to_id IS 'Up to and with this id'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.rows IS 'How many rows there were'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.rows_hash IS 'SHA-256 over their row_hash, in the order of id'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.previous IS 'The seal before it in the month'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.sealed_at IS 'When it was made'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.seal IS 'SHA-256 over the seal before and this row''s columns'", seals), SPI_OK_UTILITY);
	run(psprintf("COMMENT ON COLUMN %s.retired_at IS 'When the month''s rows were retired; NULL: they are there'", seals), SPI_OK_UTILITY);
	guard(seals, true);
	revoke_writes(get_relname_relid(TA_AUDIT_SEALS, nspid), seals);

	/* the name may be somebody's already, and it is only a convenience */
	if (OidIsValid(get_relname_relid(TA_AUDIT_VIEW, nspid)))
		ereport(NOTICE,
				(errmsg("view %s was not created: there is a relation of that name", view)));
	else
	{
		run(psprintf("CREATE VIEW %s%s AS SELECT id, table_name, action AS operation, user_id,"
					 " changes AS changed_data, changed_at AS \"timestamp\" FROM %s",
					 view, ta_security_invoker_view(), log),
			SPI_OK_UTILITY);
		run(psprintf("COMMENT ON VIEW %s IS 'audit_logs by other names'", view), SPI_OK_UTILITY);
		revoke_writes(get_relname_relid(TA_AUDIT_VIEW, nspid), view);
	}
	CommandCounterIncrement();
	manage_months(relid);
	return relid;
}

/*
 * ta_audit_log_of
 *		The audit log of a schema.
 *
 * Where there is none, makes it, as the schema's owner, or returns InvalidOid.
 * Raises 42809 for a table of that name that is no log of ours.
 */
Oid
ta_audit_log_of(Oid nspid, bool create)
{
	LogFormat	 *known = hash_search(logs, &nspid, HASH_FIND, NULL);
	Oid			  relid;
	TaMaintenance frame;
	char		 *schema;

	if (known != NULL && known->valid)
		return known->relid;
	relid = get_relname_relid(TA_AUDIT_LOG, nspid);
	schema = get_namespace_name(nspid);
	if (OidIsValid(relid))
	{
		if (!ta_is_audit_log(relid))
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("table %s is not an audit log of techally",
							quote_qualified_identifier(schema, TA_AUDIT_LOG)),
					 errhint("Rename it: the changes of the audited tables of this schema are written to a table of that name.")));
		return relid;
	}
	if (!create)
		return InvalidOid;
	if (isTempOrTempToastNamespace(nspid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary tables cannot be audited")));

	DirectFunctionCall2(pg_advisory_xact_lock_int4, Int32GetDatum(LOG_LOCK_SPACE), Int32GetDatum((int32) nspid));
	AcceptInvalidationMessages();
	relid = get_relname_relid(TA_AUDIT_LOG, nspid);
	if (OidIsValid(relid))
		return ta_audit_log_of(nspid, false);

	ta_maintenance_begin(&frame, ta_namespace_owner(nspid));
	relid = make_log(nspid, schema);
	ta_maintenance_end(&frame);
	return relid;
}

/*
 * Writing
 */

/* Whether rows can be put into a partition as COPY does; maps its columns. */
static bool
allows_direct_rows(Relation leaf, AttrNumber *attnums)
{
	TupleDesc	 desc = RelationGetDescr(leaf);
	TriggerDesc *triggers = leaf->trigdesc;

	if (leaf->rd_rel->relkind != RELKIND_RELATION || leaf->rd_rules != NULL || leaf->rd_rel->relforcerowsecurity)
		return false;
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (TRIGGER_FOR_INSERT(triggers->triggers[i].tgtype) &&
			strcmp(triggers->triggers[i].tgname, "techally_guard_insert") != 0)
			return false;
	for (int c = 0; c < LOG_COLUMNS; c++)
	{
		attnums[c] = get_attnum(RelationGetRelid(leaf), log_columns[c].name);
		if (attnums[c] <= 0)
			return false;
	}

	/* a column of somebody else's may be NULL, and want no more than that */
	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, a - 1);
		bool			  ours = false;

		for (int c = 0; c < LOG_COLUMNS; c++)
			ours |= attnums[c] == a;
		if (!ours && !attribute->attisdropped &&
			(attribute->atthasdef || attribute->attnotnull || attribute->attgenerated != '\0' ||
			 get_typtype(attribute->atttypid) == TYPTYPE_DOMAIN))
			return false;
	}
	return true;
}

static bool
is_column(Node *node, TaAuditLogColumn column)
{
	return IsA(node, Var) && ((Var *) node)->varattno == (AttrNumber) column + 1;
}

static bool
is_call(Node *node, Oid function)
{
	return IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == function &&
		   list_length(((FuncExpr *) node)->args) == 2;
}

/* Whether an index is that over the hash of a key, of rows that have one. */
static bool
is_key_index(Relation index, TaAuditLogColumn column)
{
	List	 *expressions = RelationGetIndexExpressions(index);
	List	 *predicate = RelationGetIndexPredicate(index);
	FuncExpr *hash;
	FuncExpr *seed;
	Const	 *start;

	if (index->rd_rel->relam != BTREE_AM_OID || index->rd_index->indnatts != 1 ||
		index->rd_opfamily[0] != INTEGER_BTREE_FAM_OID || index->rd_opcintype[0] != INT8OID ||
		list_length(expressions) != 1 || list_length(predicate) != 1 ||
		!is_call(linitial(expressions), F_JSONB_HASH_EXTENDED) || !IsA(linitial(predicate), NullTest))
		return false;
	hash = linitial(expressions);
	if (!is_column(linitial(hash->args), column) || !is_call(lsecond(hash->args), F_HASHTEXTEXTENDED))
		return false;
	seed = lsecond(hash->args);
	start = lsecond(seed->args);
	return is_column(linitial(seed->args), LOG_TABLE_NAME) && seed->inputcollid == DEFAULT_COLLATION_OID &&
		   IsA(start, Const) && !start->constisnull && DatumGetInt64(start->constvalue) == 0 &&
		   ((NullTest *) linitial(predicate))->nulltesttype == IS_NOT_NULL &&
		   is_column((Node *) ((NullTest *) linitial(predicate))->arg, column);
}

/* Whether an index is that over spans of time and id. */
static bool
is_time_index(Relation index)
{
	return index->rd_rel->relam == BRIN_AM_OID && index->rd_index->indnatts == 2 &&
		   index->rd_index->indkey.values[0] == LOG_CHANGED_AT + 1 && index->rd_index->indkey.values[1] == LOG_ID + 1 &&
		   index_getprocid(index, 1, BRIN_PROCNUM_OPCINFO) == F_BRIN_MINMAX_OPCINFO &&
		   index_getprocid(index, 2, BRIN_PROCNUM_OPCINFO) == F_BRIN_MINMAX_OPCINFO &&
		   RelationGetIndexPredicate(index) == NIL;
}

/*
 * Whether a partition is as it was made: then its rows are formed and entered
 * into its indexes without the executor, which would prepare their expressions
 * anew for every statement.
 */
static bool
is_known_leaf(LogFormat *log, Relation leaf)
{
	List	 *indexes;
	ListCell *cell;
	bool	  known = true;

	memset(log->leaf_indexes, 0, sizeof(log->leaf_indexes));
	if (leaf->rd_tableam != GetHeapamTableAmRoutine())
		return false;
	if (RelationGetDescr(leaf)->constr != NULL && RelationGetDescr(leaf)->constr->num_check > 0)
		return false;
	for (int c = 0; c < LOG_COLUMNS; c++)
		if (log->leaf_attnums[c] != c + 1)
			return false;

	indexes = RelationGetIndexList(leaf);
	foreach(cell, indexes)
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);
		int		 kind = LOG_INDEXES;

		if (index->rd_index->indisready && !index->rd_index->indisunique && !index->rd_index->indisexclusion)
		{
			if (is_key_index(index, LOG_ROW_KEY))
				kind = INDEX_ROW_KEY;
			else if (is_key_index(index, LOG_NEW_KEY))
				kind = INDEX_NEW_KEY;
			else if (is_time_index(index))
				kind = INDEX_TIME;
		}
		if (kind == LOG_INDEXES || OidIsValid(log->leaf_indexes[kind]))
			known = false;
		else
			log->leaf_indexes[kind] = RelationGetRelid(index);
		index_close(index, NoLock);
	}
	list_free(indexes);
	return known;
}

/* Finds the partition of a moment; log->leaf is InvalidOid where there is none. */
static void
find_leaf(LogFormat *log, Relation parent, TimestampTz at)
{
	PartitionKey	   key = RelationGetPartitionKey(parent);
	PartitionDesc	   desc = RelationGetPartitionDesc(parent, true);
	PartitionBoundInfo bounds = desc->boundinfo;
	Datum			   value = TimestampTzGetDatum(at);
	bool			   equal;
	int				   offset;
	int				   index = -1;
	Relation		   leaf;

	log->leaf = InvalidOid;
	if (desc->nparts == 0)
		return;
	offset = partition_range_datum_bsearch(key->partsupfunc, key->partcollation, bounds, 1, &value, &equal);
	index = bounds->indexes[offset + 1];
	log->leaf_from = log->leaf_to = at;
	if (index >= 0)
	{
		/* only a partition of its own has bounds that we keep */
		if (bounds->kind[offset][0] == PARTITION_RANGE_DATUM_VALUE)
			log->leaf_from = DatumGetTimestampTz(bounds->datums[offset][0]);
		if (bounds->kind[offset + 1][0] == PARTITION_RANGE_DATUM_VALUE)
			log->leaf_to = DatumGetTimestampTz(bounds->datums[offset + 1][0]);
	}
	else
		index = bounds->default_index;
	if (index < 0)
		return;
	log->leaf = desc->oids[index];
	leaf = table_open(log->leaf, RowExclusiveLock);
	log->leaf_direct = allows_direct_rows(leaf, log->leaf_attnums);
	log->leaf_known = log->leaf_direct && is_known_leaf(log, leaf);
	table_close(leaf, NoLock);
}

/* What is known of the log of a schema, fresh; makes the log where there is none. */
static LogFormat *
log_format(Oid nspid, TimestampTz now)
{
	LogFormat *log = hash_search(logs, &nspid, HASH_FIND, NULL);
	Relation   parent;
	Oid		   relid;
	bool	   found;

	if (log != NULL && log->valid && OidIsValid(log->leaf) && now >= log->leaf_from && now < log->leaf_to)
		return log;
	relid = ta_audit_log_of(nspid, true);
	parent = table_open(relid, RowExclusiveLock);
	log = hash_search(logs, &nspid, HASH_ENTER, &found);
	if (!found || !log->valid)
	{
		log->relid = relid;
		log->leaf = log->sequence = InvalidOid;
		log->valid = true; /* unless something changes while we look */
		log->owner = parent->rd_rel->relowner;
		log->sequence = owned_sequence(relid);
	}
	find_leaf(log, parent, now);
	table_close(parent, NoLock);
	return log;
}

/*
 * Which indexes take their entries later.  Entries at random cost a search with
 * cold caches each; gathered and sorted they come to a leaf together, which is
 * a third of that.  NULL where the executor's function must do it all: an index
 * that is unique, or excludes, may refuse a row.
 */
static Deferred *
plan_indexes(ResultRelInfo *target)
{
	Deferred *deferred = palloc0(sizeof(Deferred) * Max(target->ri_NumIndices, 1));

	for (int i = 0; i < target->ri_NumIndices; i++)
	{
		IndexInfo *info = target->ri_IndexRelationInfo[i];
		Relation   index = target->ri_IndexRelationDescs[i];

		if (info->ii_Unique || info->ii_ExclusionOps != NULL)
			return NULL;
		deferred[i].sorted = index->rd_rel->relam == BTREE_AM_OID && info->ii_NumIndexAttrs == 1 &&
							 TupleDescAttr(RelationGetDescr(index), 0)->atttypid == INT8OID &&
							 (index->rd_indoption[0] & INDOPTION_DESC) == 0;
	}
	return deferred;
}

static void
insert_sorted(TaAuditWriter *writer, int i)
{
	Deferred *deferred = &writer->deferred[i];

	if (deferred->n > 1)
		sort_index_entries(deferred->entries, deferred->n);
	for (int n = 0; n < deferred->n; n++)
	{
		Datum value = Int64GetDatum(deferred->entries[n].hash);
		bool  isnull = false;

		(void) index_insert(writer->target->ri_IndexRelationDescs[i], &value, &isnull,
							&deferred->entries[n].row, writer->leaf, UNIQUE_CHECK_NO, false,
							writer->target->ri_IndexRelationInfo[i]);
	}
	deferred->n = 0;
}

/* Enters a row, which is in the table, into the indexes, or puts that off. */
static void
enter_row(TaAuditWriter *writer, TupleTableSlot *row)
{
	ExprContext *econtext = GetPerTupleExprContext(writer->estate);

	if (writer->deferred == NULL)
	{
		ta_insert_index_tuples(writer->target, row, writer->estate);
		return;
	}
	econtext->ecxt_scantuple = row;
	for (int i = 0; i < writer->target->ri_NumIndices; i++)
	{
		IndexInfo *info = writer->target->ri_IndexRelationInfo[i];
		Deferred  *deferred = &writer->deferred[i];
		Datum	   values[INDEX_MAX_KEYS];
		bool	   nulls[INDEX_MAX_KEYS];

		if (!info->ii_ReadyForInserts)
			continue;
		if (info->ii_Predicate != NIL)
		{
			if (info->ii_PredicateState == NULL)
				info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, writer->estate);
			if (!ExecQual(info->ii_PredicateState, econtext))
				continue;
		}
		FormIndexDatum(info, row, writer->estate, values, nulls);
		if (!deferred->sorted || nulls[0])
		{
			(void) index_insert(writer->target->ri_IndexRelationDescs[i], values, nulls, &row->tts_tid,
								writer->leaf, UNIQUE_CHECK_NO, false, info);
			continue;
		}
		if (deferred->n == deferred->size)
		{
			deferred->size = deferred->size == 0 ? 8 : Min(deferred->size * 2, INDEX_ENTRIES);
			if (deferred->entries == NULL)
				deferred->entries = MemoryContextAlloc(writer->context, sizeof(IndexEntry) * deferred->size);
			else
				deferred->entries = repalloc(deferred->entries, sizeof(IndexEntry) * deferred->size);
		}
		deferred->entries[deferred->n].hash = DatumGetInt64(values[0]);
		deferred->entries[deferred->n].row = row->tts_tid;
		if (++deferred->n == INDEX_ENTRIES)
			insert_sorted(writer, i);
	}
}

/*
 * Into a partition that is as it was made
 */

/*
 * How rows are formed whose values from the n-th on are all NULL: without them,
 * which saves these rows the bitmap of NULLs.  A backend keeps it.
 */
static TupleDesc
descriptor_of(int n)
{
	static TupleDesc descriptors[LOG_COLUMNS + 1];

	if (descriptors[n] == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(CacheMemoryContext);
		TupleDesc	  desc = CreateTemplateTupleDesc(n);

		for (int c = 0; c < n; c++)
			TupleDescInitEntry(desc, c + 1, log_columns[c].name, log_columns[c].type, -1, 0);
		descriptors[n] = desc;
		MemoryContextSwitchTo(caller);
	}
	return descriptors[n];
}

/*
 * An index of the partition.  The lock on the partition is all it takes: what
 * would drop or rebuild an index waits for that.
 */
static Relation
open_index(TaAuditWriter *writer, LogIndex kind)
{
	if (writer->indexes[kind] == NULL && OidIsValid(writer->index_oids[kind]))
	{
		writer->indexes[kind] = RelationIdGetRelation(writer->index_oids[kind]);
		if (writer->indexes[kind] == NULL)
			elog(ERROR, "could not open index with OID %u", writer->index_oids[kind]);
	}
	if (writer->index_info == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(writer->context);

		/* what the B-tree and BRIN look at in it: where to keep things */
		writer->index_info = makeNode(IndexInfo);
		writer->index_info->ii_Context = writer->context;
		MemoryContextSwitchTo(caller);
	}
	return writer->indexes[kind];
}

static void
insert_key_entries(TaAuditWriter *writer, LogIndex kind)
{
	Deferred *entries = &writer->key_entries[kind];
	Relation  index = open_index(writer, kind);

	if (entries->n > 1)
		sort_index_entries(entries->entries, entries->n);
	for (int n = 0; index != NULL && n < entries->n; n++)
	{
		Datum value = Int64GetDatum(entries->entries[n].hash);
		bool  isnull = false;

		(void) index_insert(index, &value, &isnull, &entries->entries[n].row, writer->leaf, UNIQUE_CHECK_NO,
							false, writer->index_info);
	}
	entries->n = 0;
}

static void
defer_key_entry(TaAuditWriter *writer, LogIndex kind, int64 hash, ItemPointer row)
{
	Deferred *entries = &writer->key_entries[kind];

	if (entries->entries == NULL)
	{
		entries->entries = writer->few_entries[kind];
		entries->size = lengthof(writer->few_entries[kind]);
	}
	else if (entries->n == entries->size)
	{
		IndexEntry *old_entries = entries->entries;

		entries->size = Min(entries->size * 4, INDEX_ENTRIES);
		if (old_entries == writer->few_entries[kind])
		{
			entries->entries = MemoryContextAlloc(writer->context, sizeof(IndexEntry) * entries->size);
			memcpy(entries->entries, old_entries, sizeof(writer->few_entries[kind]));
		}
		else
			entries->entries = repalloc(old_entries, sizeof(IndexEntry) * entries->size);
	}
	entries->entries[entries->n].hash = hash;
	entries->entries[entries->n].row = *row;
	if (++entries->n == INDEX_ENTRIES)
		insert_key_entries(writer, kind);
}

/* Enters a row's time and id into the index over spans of them. */
static void
insert_time(TaAuditWriter *writer, const Pending *row)
{
	Relation index = open_index(writer, INDEX_TIME);
	Datum	 values[2] = {writer->values[LOG_CHANGED_AT], Int64GetDatum(row->id)};
	bool	 isnull[2] = {false, false};

	if (index != NULL)
		(void) index_insert(index, values, isnull, &row->tuple->t_self, writer->leaf, UNIQUE_CHECK_NO,
							false, writer->index_info);
}

/* Writes what was gathered, and enters it into the indexes, or puts that off. */
static void
flush_known(TaAuditWriter *writer)
{
	int n = writer->nbuffered;

	if (n == 1)
		heap_insert(writer->leaf, writer->pending[0].tuple, GetCurrentCommandId(true), 0, NULL);
	else if (n > 1)
	{
		for (int i = 0; i < n; i++)
		{
			if (i == writer->nslots)
			{
				MemoryContext caller = MemoryContextSwitchTo(writer->context);

				writer->slots[writer->nslots++] = MakeSingleTupleTableSlot(RelationGetDescr(writer->leaf), &TTSOpsHeapTuple);
				MemoryContextSwitchTo(caller);
			}
			ExecStoreHeapTuple(writer->pending[i].tuple, writer->slots[i], true);
		}
		table_multi_insert(writer->leaf, writer->slots, n, GetCurrentCommandId(true), 0, NULL);
	}
	for (int i = 0; i < n; i++)
	{
		Pending	   *row = &writer->pending[i];
		BlockNumber block;

		if (n > 1)
			row->tuple->t_self = writer->slots[i]->tts_tid;
		block = ItemPointerGetBlockNumber(&row->tuple->t_self);
		for (int kind = 0; kind < INDEX_TIME; kind++)
			if (row->has_hash[kind])
				defer_key_entry(writer, kind, row->hash[kind], &row->tuple->t_self);

		/* ids go up and the time is the same: a page's first and last row say it all */
		if (i == 0 || i == n - 1 || block != ItemPointerGetBlockNumber(&writer->pending[i - 1].tuple->t_self) ||
			block != ItemPointerGetBlockNumber(&writer->slots[i + 1]->tts_tid))
			insert_time(writer, row);
	}
	if (n > 1)
	{
		for (int i = 0; i < n; i++)
			ExecClearTuple(writer->slots[i]);
		MemoryContextReset(writer->batch);
	}
	writer->nbuffered = 0;
	writer->bytes = 0;
}

/* Forms a row and keeps it until there are enough of them. */
static void
buffer_known(TaAuditWriter *writer)
{
	static const TaAuditLogColumn keys[INDEX_TIME] = {LOG_ROW_KEY, LOG_NEW_KEY};
	MemoryContext				  caller;
	Pending						 *row;
	int							  n = LOG_COLUMNS;

	if (writer->nbuffered == 1 && writer->pending == &writer->first)
	{
		caller = MemoryContextSwitchTo(writer->context);
		writer->slots = palloc(sizeof(TupleTableSlot *) * BATCH_ROWS);
		writer->pending = palloc(sizeof(Pending) * BATCH_ROWS);
		writer->pending[0] = writer->first;
		writer->batch = AllocSetContextCreate(writer->context, "techally audit batch", ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(caller);
	}
	row = &writer->pending[writer->nbuffered++];
	row->id = DatumGetInt64(writer->values[LOG_ID]);
	for (int kind = 0; kind < INDEX_TIME; kind++)
	{
		row->has_hash[kind] = !writer->nulls[keys[kind]];
		if (row->has_hash[kind])
			row->hash[kind] = DatumGetInt64(DirectFunctionCall2(jsonb_hash_extended, writer->values[keys[kind]],
																Int64GetDatum(writer->key_seed)));
	}
	while (writer->nulls[n - 1])
		n--;
	caller = MemoryContextSwitchTo(writer->batch != NULL ? writer->batch : writer->context);
	row->tuple = heap_form_tuple(descriptor_of(n), writer->values, writer->nulls);
	MemoryContextSwitchTo(caller);
	writer->bytes += row->tuple->t_len;
	if (writer->nbuffered == BATCH_ROWS || writer->bytes >= BATCH_BYTES)
		flush_known(writer);
}

static void
close_known(TaAuditWriter *writer)
{
	flush_known(writer);
	for (int kind = 0; kind < INDEX_TIME; kind++)
		if (writer->key_entries[kind].n > 0)
			insert_key_entries(writer, kind);
	for (int kind = 0; kind < LOG_INDEXES; kind++)
		if (writer->indexes[kind] != NULL)
		{
			ta_index_insert_cleanup(writer->indexes[kind], writer->index_info);
			RelationClose(writer->indexes[kind]);
		}
}

/*
 * Into one with indexes, checks or columns of somebody else's
 */

static void
open_direct(TaAuditWriter *writer, LogFormat *log)
{
	memcpy(writer->attnums, log->leaf_attnums, sizeof(writer->attnums));
	writer->estate = CreateExecutorState();
	writer->target = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->target, writer->leaf, 0, NULL, 0);
	writer->estate->es_opened_result_relations = list_make1(writer->target);
	ExecOpenIndices(writer->target, false);
	writer->slots = palloc(sizeof(TupleTableSlot *) * BATCH_ROWS);
	writer->deferred = plan_indexes(writer->target);
	writer->batch = AllocSetContextCreate(writer->context, "techally audit batch", ALLOCSET_DEFAULT_SIZES);
}

/* Salts come from the system a few hundred at a time. */
static void
random_salt(char *salt)
{
	static uint8 pool[TA_SALT_SIZE * 256];
	static int	 used = sizeof(pool);

	if (used == sizeof(pool))
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
		used = 0;
	}
	SET_VARSIZE(salt, VARHDRSZ + TA_SALT_SIZE);
	memcpy(VARDATA(salt), pool + used, TA_SALT_SIZE);
	memset(pool + used, 0, TA_SALT_SIZE);
	used += TA_SALT_SIZE;
}

static void
set_value(TaAuditWriter *writer, TaAuditLogColumn column, Datum value)
{
	writer->values[column] = value;
	writer->nulls[column] = false;
}

static void
set_setting(TaAuditWriter *writer, TaAuditLogColumn column, const char *setting)
{
	const char *value = ta_request_setting(setting);

	if (value != NULL)
		set_value(writer, column, CStringGetTextDatum(value));
}

/* Who asks, and what all rows of the statement have in common. */
static void
fill_statement(TaAuditWriter *writer, const char *schema_name, const char *table_name)
{
	const char *value;
	bool		isnull;
	Datum		actor = ta_request_actor((Datum) 0, true, &isnull);

	for (int c = 0; c < LOG_COLUMNS; c++)
		writer->nulls[c] = true;
	set_value(writer, LOG_TRANSACTION_ID, Int64GetDatum((int64) U64FromFullTransactionId(GetTopFullTransactionId())));
	set_value(writer, LOG_TABLE_SCHEMA, CStringGetTextDatum(schema_name));
	set_value(writer, LOG_TABLE_NAME, CStringGetTextDatum(table_name));
	set_value(writer, LOG_DB_USER, CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)));
	if (!isnull)
		set_value(writer, LOG_USER_ID, actor);
	set_setting(writer, LOG_REQUEST_ID, "app.request_id");
	set_setting(writer, LOG_USER_AGENT, "app.user_agent");
	value = ta_request_setting("app.client_ip");
	if (value != NULL)
		set_value(writer, LOG_CLIENT_IP, DirectFunctionCall1(inet_in, CStringGetDatum(value)));
	else if (MyProcPort != NULL)
	{
		LOCAL_FCINFO(fcinfo, 0);
		Datum address;

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
		address = inet_client_addr(fcinfo);
		if (!fcinfo->isnull)
			set_value(writer, LOG_CLIENT_IP, address);
	}
	value = ta_request_setting("app.audit_metadata");
	if (value != NULL)
		set_value(writer, LOG_METADATA, DirectFunctionCall1(jsonb_in, CStringGetDatum(value)));
}

/*
 * ta_audit_open
 *		Opens the log of a schema for what one statement did to one table.
 *
 * Call it once rows are locked: it takes the time.  Makes the log where there
 * is none.  Allocated in the current memory context; close it.
 */
TaAuditWriter *
ta_audit_open(Oid nspid, const char *schema_name, const char *table_name)
{
	TaAuditWriter *writer;
	MemoryContext  context;
	MemoryContext  caller = CurrentMemoryContext;
	LogFormat	  *log;
	Chain		  *chain;
	Relation	   leaf = NULL;
	TimestampTz	   now;
	bool		   direct;

	PreventCommandIfReadOnly("INSERT");
	now = GetCurrentTimestamp();
	for (;;)
	{
		log = log_format(nspid, now);
		direct = ta_direct_rows() && OidIsValid(log->leaf) && log->leaf_direct;
		if (!direct)
			break;

		/* what is known was known before it was locked */
		leaf = try_relation_open(log->leaf, RowExclusiveLock);
		if (leaf != NULL && log->valid)
			break;
		if (leaf != NULL)
			relation_close(leaf, NoLock);
		log->valid = false;
	}

	context = AllocSetContextCreate(caller, "techally audit log", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	writer = palloc0(sizeof(TaAuditWriter));
	writer->context = context;
	writer->relid = log->relid;
	writer->nspid = nspid;
	writer->leaf = leaf;
	writer->owner = log->owner;
	writer->sequence = log->sequence;
	fill_statement(writer, schema_name, table_name);
	set_value(writer, LOG_CHANGED_AT, TimestampTzGetDatum(now));

	writer->direct = direct;
	writer->known = direct && log->leaf_known;
	if (writer->known)
	{
		writer->pending = &writer->first;
		memcpy(writer->index_oids, log->leaf_indexes, sizeof(writer->index_oids));
		writer->key_seed = DatumGetInt64(DirectFunctionCall2Coll(hashtextextended, DEFAULT_COLLATION_OID,
																 writer->values[LOG_TABLE_NAME], Int64GetDatum(0)));
	}
	else if (writer->direct)
		open_direct(writer, log);

	chain = find_chain(log->relid);
	if (chain != NULL)
		memcpy(writer->previous, chain->hash, TA_ROW_HASH_SIZE);
	ta_hasher_open(&writer->hasher);
	MemoryContextSwitchTo(caller);
	return writer;
}

/*
 * Writes what was gathered, a page at a time, and enters it into the indexes;
 * finally, also what these have been waiting with.
 */
static void
flush(TaAuditWriter *writer, bool finally)
{
	MemoryContext caller = MemoryContextSwitchTo(writer->batch);
	Oid			  saved_user;
	int			  saved_context;

	GetUserIdAndSecContext(&saved_user, &saved_context);
	SetUserIdAndSecContext(writer->owner, saved_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	if (writer->nbuffered > 0)
		table_multi_insert(writer->leaf, writer->slots, writer->nbuffered, GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < writer->nbuffered; i++)
	{
		if (writer->target->ri_NumIndices > 0)
		{
			ResetPerTupleExprContext(writer->estate);
			enter_row(writer, writer->slots[i]);
		}
		ExecClearTuple(writer->slots[i]);
	}
	for (int i = 0; finally && writer->deferred != NULL && i < writer->target->ri_NumIndices; i++)
		insert_sorted(writer, i);
	SetUserIdAndSecContext(saved_user, saved_context);
	writer->nbuffered = 0;
	writer->bytes = 0;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(writer->batch);
}

static void
buffer_row(TaAuditWriter *writer)
{
	TupleTableSlot *slot;
	HeapTuple		tuple;
	bool			should_free;

	if (writer->nbuffered == writer->nslots)
	{
		MemoryContext caller = MemoryContextSwitchTo(writer->context);

		writer->slots[writer->nslots++] = table_slot_create(writer->leaf, NULL);
		MemoryContextSwitchTo(caller);
	}
	slot = writer->slots[writer->nbuffered];
	if (writer->leaf->rd_att->natts != LOG_COLUMNS)
		memset(slot->tts_isnull, true, writer->leaf->rd_att->natts);
	for (int c = 0; c < LOG_COLUMNS; c++)
	{
		slot->tts_values[writer->attnums[c] - 1] = writer->values[c];
		slot->tts_isnull[writer->attnums[c] - 1] = writer->nulls[c];
	}
	ExecStoreVirtualTuple(slot);
	if (RelationGetDescr(writer->leaf)->constr != NULL && RelationGetDescr(writer->leaf)->constr->num_check > 0)
		ExecConstraints(writer->target, slot, writer->estate);

	/* the row is formed here, so that the values need not live longer */
	tuple = ExecFetchSlotHeapTuple(slot, true, &should_free);
	slot->tts_tableOid = RelationGetRelid(writer->leaf);
	writer->bytes += tuple->t_len;
	if (should_free)
		heap_freetuple(tuple);
	writer->nbuffered++;
	if (writer->nbuffered == BATCH_ROWS || writer->bytes >= BATCH_BYTES)
		flush(writer, false);
}

static void
insert_by_statement(TaAuditWriter *writer)
{
	TaFrame frame;
	char	nulls[LOG_COLUMNS + 1];

	for (int c = 0; c < LOG_COLUMNS; c++)
		nulls[c] = writer->nulls[c] ? 'n' : ' ';
	nulls[LOG_COLUMNS] = '\0';
	ta_frame_begin(&frame, writer->owner);
	ta_pass_through_begin(writer->relid);
	ta_execute(writer->nspid, &insert_entry, SPI_OK_INSERT, writer->values, nulls);
	ta_pass_through_end();
	ta_frame_end(&frame);
}

/*
 * ta_audit_write
 *		Writes one entry.  NULL stands for what it does not have; metadata wins
 *		over that of the request.
 */
void
ta_audit_write(TaAuditWriter *writer, const char *action, StringInfo row_key, StringInfo new_key,
			   const pg_uuid_t *resource_id, StringInfo changes, StringInfo metadata)
{
	uint8 digest[TA_HASH_SIZE];
	Datum request_metadata = writer->values[LOG_METADATA];
	bool  request_metadata_isnull = writer->nulls[LOG_METADATA];

	if (writer->action != action || metadata != NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(writer->context);

		/* a metadata of its own makes a statement of its own */
		if (metadata != NULL)
			set_value(writer, LOG_METADATA, PointerGetDatum(metadata->data));
		if (!writer->nulls[LOG_ACTION])
			pfree(DatumGetPointer(writer->values[LOG_ACTION]));
		set_value(writer, LOG_ACTION, CStringGetTextDatum(action));
		writer->action = metadata != NULL ? NULL : action;
		writer->nulls[LOG_CONTEXT_SALT] = true;
		if (ta_audit_has_context(writer->nulls))
		{
			random_salt(writer->context_salt);
			set_value(writer, LOG_CONTEXT_SALT, PointerGetDatum(writer->context_salt));
			ta_audit_context_digest(&writer->hasher, writer->values, writer->nulls, digest);
		}
		ta_audit_statement_digest(&writer->hasher, writer->values, writer->nulls,
								  writer->nulls[LOG_CONTEXT_SALT] ? NULL : digest, writer->statement_digest);
		MemoryContextSwitchTo(caller);
	}

	set_value(writer, LOG_ID, Int64GetDatum(nextval_internal(writer->sequence, false)));
	writer->values[LOG_ROW_KEY] = row_key == NULL ? (Datum) 0 : PointerGetDatum(row_key->data);
	writer->nulls[LOG_ROW_KEY] = row_key == NULL;
	writer->values[LOG_NEW_KEY] = new_key == NULL ? (Datum) 0 : PointerGetDatum(new_key->data);
	writer->nulls[LOG_NEW_KEY] = new_key == NULL;
	writer->values[LOG_RESOURCE_ID] = UUIDPGetDatum((pg_uuid_t *) resource_id);
	writer->nulls[LOG_RESOURCE_ID] = resource_id == NULL;
	writer->values[LOG_CHANGES] = changes == NULL ? (Datum) 0 : PointerGetDatum(changes->data);
	writer->nulls[LOG_CHANGES] = writer->nulls[LOG_CHANGES_SALT] = changes == NULL;
	if (changes != NULL)
	{
		random_salt(writer->salt);
		writer->values[LOG_CHANGES_SALT] = PointerGetDatum(writer->salt);
		ta_audit_changes_digest(&writer->hasher, writer->values, digest);
	}
	ta_audit_row_hash(&writer->hasher, writer->values, writer->nulls, writer->previous,
					  writer->statement_digest, changes == NULL ? NULL : digest, writer->previous);
	SET_VARSIZE(writer->hash, VARHDRSZ + TA_ROW_HASH_SIZE);
	memcpy(VARDATA(writer->hash), writer->previous, TA_ROW_HASH_SIZE);
	set_value(writer, LOG_ROW_HASH, PointerGetDatum(writer->hash));

	if (writer->known)
		buffer_known(writer);
	else if (writer->direct)
		buffer_row(writer);
	else
		insert_by_statement(writer);
	writer->wrote = true;
	if (metadata != NULL)
	{
		writer->values[LOG_METADATA] = request_metadata;
		writer->nulls[LOG_METADATA] = request_metadata_isnull;
	}
}

/*
 * ta_audit_close
 *		Writes what is left, and makes all of it visible to what follows.
 */
void
ta_audit_close(TaAuditWriter *writer)
{
	if (writer->known)
		close_known(writer);
	else if (writer->direct)
		flush(writer, true);
	for (int i = 0; i < writer->nslots; i++)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	if (writer->estate != NULL)
	{
		ExecCloseResultRelations(writer->estate);
		FreeExecutorState(writer->estate);
	}
	if (writer->leaf != NULL)
		relation_close(writer->leaf, NoLock);
	ta_hasher_close(&writer->hasher);
	if (writer->wrote)
	{
		save_chain(writer->relid, writer->previous);
		CommandCounterIncrement();
	}
	MemoryContextDelete(writer->context);
}
