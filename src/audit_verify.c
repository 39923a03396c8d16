/*-------------------------------------------------------------------------
 *
 * audit_verify.c
 *	  Verifying an audit log, sealing it, and erasing what it knows of somebody.
 *
 * The rows of a transaction are a chain of hashes (audit_hash.c).  A row that
 * was changed, or that somebody has put in, does not have the hash that it
 * should have; where one is missing from the middle, the next one has not.  What
 * is missing from a chain's end, or as a whole, shows once it is sealed: a seal
 * has the number of the rows in a range of ids, for a month, and a hash over
 * theirs, and is chained to the seal before.  Whoever can write to the tables
 * as a superuser can rewrite all of that, which is why the seals can be taken
 * elsewhere.
 *
 * A range of ids is sealed once nobody can add to it: ids come from a sequence
 * after the transaction has its own number, so that all ids up to its present
 * value belong to transactions below the next number, and are settled when
 * these have ended.  No transaction waits for that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "audit_hash.h"
#include "audit_image.h"
#include "audit_log.h"
#include "compat.h"
#include "partition.h"
#include "request_util.h"
#include "spi_util.h"
#include "trigger_util.h"

#define FETCH_ROWS 1000

PG_FUNCTION_INFO_V1(ta_verify_audit_rows);
PG_FUNCTION_INFO_V1(ta_audit_horizon);
PG_FUNCTION_INFO_V1(ta_seal_audit_range);
PG_FUNCTION_INFO_V1(ta_audit_partition_retired);
PG_FUNCTION_INFO_V1(ta_commit_audit_changes);
PG_FUNCTION_INFO_V1(ta_commit_audit_context);
PG_FUNCTION_INFO_V1(ta_erase_audit_rows);

/*
 * Verifying rows
 */

/* What verification remembers of the transaction that it is in. */
typedef struct ChainCheck
{
	int64 transaction;
	bool  started;
	uint8 previous[TA_ROW_HASH_SIZE]; /* of the row before */
	uint8 verified[TA_ROW_HASH_SIZE]; /* of the last row that was as it should be */
} ChainCheck;

static const uint8 no_hash[TA_ROW_HASH_SIZE];

/* A bytea of the size of a hash; NULL for any other. */
static const uint8 *
hash_of(Datum value, bool isnull, Size size)
{
	struct varlena *bytes;

	if (isnull)
		return NULL;
	bytes = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	return VARSIZE_ANY_EXHDR(bytes) == size ? (const uint8 *) VARDATA_ANY(bytes) : NULL;
}

/* Looks for the hash of the row before, outside the span that is verified. */
static bool
find_before(const char *log, int64 transaction, int64 id, uint8 *hash)
{
	const uint8 *found;
	bool		 isnull;

	if (SPI_execute(psprintf("SELECT l.row_hash FROM %s l WHERE l.transaction_id = " INT64_FORMAT
							 " AND l.id < " INT64_FORMAT " ORDER BY l.id DESC LIMIT 1",
							 log, transaction, id),
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute failed");
	if (SPI_processed == 0)
		return false;
	found = hash_of(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull), false, TA_ROW_HASH_SIZE);
	if (found == NULL)
		return false;
	memcpy(hash, found, TA_ROW_HASH_SIZE);
	return true;
}

/* What is wrong with a row; NULL for nothing. */
static const char *
check_row(TaAuditHasher *hasher, ChainCheck *chain, const char *log, bool span,
		  const Datum *values, const bool *nulls)
{
	uint8		 statement[TA_HASH_SIZE];
	uint8		 digest[TA_HASH_SIZE];
	uint8		 computed[TA_ROW_HASH_SIZE];
	uint8		 outside[TA_HASH_SIZE];
	const uint8 *context = NULL;
	const uint8 *changes = NULL;
	const uint8 *stored = hash_of(values[LOG_ROW_HASH], nulls[LOG_ROW_HASH], TA_ROW_HASH_SIZE);
	uint8		 before[TA_ROW_HASH_SIZE];
	const uint8 *candidates[3];
	int			 ncandidates = 0;

	if (chain->started && chain->transaction == DatumGetInt64(values[LOG_TRANSACTION_ID]))
	{
		memcpy(before, chain->previous, TA_ROW_HASH_SIZE);
		candidates[ncandidates++] = before;
		candidates[ncandidates++] = chain->verified;
	}
	candidates[ncandidates++] = no_hash;
	if (!chain->started || chain->transaction != DatumGetInt64(values[LOG_TRANSACTION_ID]))
		memset(chain->verified, 0, TA_ROW_HASH_SIZE);
	chain->started = true;
	chain->transaction = DatumGetInt64(values[LOG_TRANSACTION_ID]);
	if (stored == NULL)
		return "row_hash is no hash";
	memcpy(chain->previous, stored, TA_ROW_HASH_SIZE);

	/* what was erased has left its commitment */
	if (!nulls[LOG_CONTEXT_SALT])
	{
		ta_audit_context_digest(hasher, values, nulls, digest);
		memcpy(outside, digest, TA_HASH_SIZE);
		context = outside;
	}
	else if (!nulls[LOG_CONTEXT_DIGEST])
		context = hash_of(values[LOG_CONTEXT_DIGEST], false, TA_HASH_SIZE);
	if (context == NULL && ta_audit_has_context(nulls))
		return "request_id, client_ip, user_agent or metadata stand where there were none";
	if (nulls[LOG_CONTEXT_SALT] && ta_audit_has_context(nulls))
		return "request_id, client_ip, user_agent or metadata stand where they were erased";
	ta_audit_statement_digest(hasher, values, nulls, context, statement);

	if (!nulls[LOG_CHANGES] && !nulls[LOG_CHANGES_SALT])
	{
		ta_audit_changes_digest(hasher, values, digest);
		changes = digest;
	}
	else if (!nulls[LOG_CHANGES])
		return "changes stand where there were none, or where they were erased";
	else if (!nulls[LOG_CHANGES_DIGEST])
		changes = hash_of(values[LOG_CHANGES_DIGEST], false, TA_HASH_SIZE);

	for (int i = 0; i < ncandidates; i++)
	{
		ta_audit_row_hash(hasher, values, nulls, candidates[i], statement, changes, computed);
		if (memcmp(computed, stored, TA_ROW_HASH_SIZE) == 0)
		{
			memcpy(chain->verified, stored, TA_ROW_HASH_SIZE);
			return NULL;
		}
	}
	if (span && find_before(log, chain->transaction, DatumGetInt64(values[LOG_ID]), outside))
	{
		ta_audit_row_hash(hasher, values, nulls, outside, statement, changes, computed);
		if (memcmp(computed, stored, TA_ROW_HASH_SIZE) == 0)
		{
			memcpy(chain->verified, stored, TA_ROW_HASH_SIZE);
			return NULL;
		}
	}
	return "row_hash does not match: the row was changed or put in, or the one before it in its transaction is missing";
}

/*
 * ta_verify_audit_rows
 *		verify_audit_rows(log regclass, table_name text,
 *						  from_time timestamptz, to_time timestamptz)
 *		→ TABLE (audit_id bigint, problem text)
 *
 * Every row of the log that was changed at or after from_time and before
 * to_time is checked; those of other tables than the given one are not
 * reported.  NULL stands for all.  Reads with the caller's rights.
 */
Datum
ta_verify_audit_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			   relid = PG_GETARG_OID(0);
	char		  *table_name = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool		   span = !PG_ARGISNULL(2);
	StringInfoData sql;
	Oid			   types[2] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		   arguments[2] = {span ? PG_GETARG_DATUM(2) : (Datum) 0,
						   PG_ARGISNULL(3) ? (Datum) 0 : PG_GETARG_DATUM(3)};
	char		  argument_nulls[3] = {span ? ' ' : 'n', PG_ARGISNULL(3) ? 'n' : ' ', '\0'};
	char		 *log;
	TaFrame		  frame;
	TaAuditHasher hasher;
	ChainCheck	  chain = {0};
	Portal		  portal;
	MemoryContext row_context;

	if (!ta_is_audit_log(relid))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an audit log", get_rel_name(relid))));
	ta_materialized_result(fcinfo);

	ta_frame_begin(&frame, InvalidOid);
	log = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "SELECT %s FROM %s l"
					 " WHERE ($1 IS NULL OR l.changed_at >= $1) AND ($2 IS NULL OR l.changed_at < $2)"
					 " ORDER BY l.transaction_id, l.id",
					 ta_audit_log_columns("l."), log);
	portal = SPI_cursor_open_with_args(NULL, sql.data, 2, types, arguments, argument_nulls, true, 0);
	row_context = AllocSetContextCreate(CurrentMemoryContext, "techally verification", ALLOCSET_DEFAULT_SIZES);
	ta_hasher_open(&hasher);
	for (;;)
	{
		SPITupleTable *rows;
		uint64		   n;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		rows = SPI_tuptable;
		n = SPI_processed;
		if (n == 0)
			break;
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext caller = MemoryContextSwitchTo(row_context);
			Datum		  values[LOG_COLUMNS];
			bool		  nulls[LOG_COLUMNS];
			const char	 *problem;

			CHECK_FOR_INTERRUPTS();
			heap_deform_tuple(rows->vals[i], rows->tupdesc, values, nulls);
			problem = check_row(&hasher, &chain, log, span, values, nulls);
			if (problem != NULL &&
				(table_name == NULL || strcmp(table_name, TextDatumGetCString(values[LOG_TABLE_NAME])) == 0))
			{
				Datum result[2] = {values[LOG_ID], CStringGetTextDatum(problem)};
				bool  result_nulls[2] = {false, false};

				tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, result, result_nulls);
			}
			MemoryContextSwitchTo(caller);
			MemoryContextReset(row_context);
		}
		SPI_freetuptable(rows);
	}
	ta_hasher_close(&hasher);
	SPI_cursor_close(portal);
	ta_frame_end(&frame);
	return (Datum) 0;
}

/*
 * Seals
 */

/*
 * ta_audit_horizon
 *		audit_horizon(OUT next_transaction bigint, OUT settled bigint)
 *
 * The number that the next transaction will have, and the one below which all
 * have ended, this one not counting: what it writes is sealed by itself.
 */
Datum
ta_audit_horizon(PG_FUNCTION_ARGS)
{
	TupleDesc	  tupdesc;
	Datum		  values[2];
	bool		  nulls[2] = {false, false};
	uint64		  next = U64FromFullTransactionId(ReadNextFullTransactionId());
	Snapshot	  snapshot;
	TransactionId horizon;
	uint64		  settled;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	snapshot = GetLatestSnapshot();
	horizon = snapshot->xmax;
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		if (TransactionIdPrecedes(snapshot->xip[i], horizon))
			horizon = snapshot->xip[i];
	settled = (next & ~UINT64CONST(0xFFFFFFFF)) | horizon;
	if (settled > next)
		settled -= UINT64CONST(1) << 32;
	while (settled < next && TransactionIdIsCurrentTransactionId((TransactionId) settled))
		settled++;
	values[0] = Int64GetDatum((int64) next);
	values[1] = Int64GetDatum((int64) settled);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}

static const TaStatement insert_seals = {
	"INSERT INTO @store@.audit_seals (period, number, after_id, to_id, rows, rows_hash, previous, sealed_at, seal)"
	" SELECT s.period, s.number, $1, $2, s.rows, s.rows_hash, s.previous, s.sealed_at,"
	"        techally.audit_seal(s.period, s.number, $1, $2, s.rows, s.rows_hash, s.previous, s.sealed_at)"
	"   FROM (SELECT p.period, COALESCE(q.number, 0) + 1 AS number, p.rows, p.rows_hash, q.seal AS previous,"
	"                pg_catalog.clock_timestamp() AS sealed_at"
	"           FROM (SELECT pg_catalog.to_char(l.changed_at AT TIME ZONE 'UTC', 'YYYY-MM') AS period,"
	"                        pg_catalog.count(*) AS rows,"
	"                        pg_catalog.sha256(pg_catalog.string_agg(l.row_hash, '' ORDER BY l.id)) AS rows_hash"
	"                   FROM @store@.audit_logs l WHERE l.id > $1 AND l.id <= $2 GROUP BY 1) p"
	"           LEFT JOIN LATERAL (SELECT a.number, a.seal FROM @store@.audit_seals a"
	"                               WHERE a.period = p.period ORDER BY a.number DESC LIMIT 1) q ON true"
	"         OFFSET 0) s",
	2,
	{INT8OID, INT8OID}};

static void
require_log_owner(Oid log)
{
	if (!ta_is_audit_log(log))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an audit log", get_rel_name(log))));
	if (!object_ownercheck(RelationRelationId, log, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(log));
}

/*
 * ta_seal_audit_range
 *		seal_audit_range(log regclass, after_id bigint, to_id bigint) → bigint
 *
 * Writes the seals over a range of ids, one for each month that has rows in it,
 * and returns how many.  Raises 42809 for what is no log, 42501 for who does
 * not own it.
 */
Datum
ta_seal_audit_range(PG_FUNCTION_ARGS)
{
	Oid			  log = PG_GETARG_OID(0);
	Oid			  nspid = get_rel_namespace(log);
	Datum		  values[2] = {PG_GETARG_DATUM(1), PG_GETARG_DATUM(2)};
	TaMaintenance frame;
	uint64		  seals;

	require_log_owner(log);
	ta_maintenance_begin(&frame, ta_relation_owner(log));
	ta_pass_through_begin(get_relname_relid(TA_AUDIT_SEALS, nspid));
	seals = ta_execute(nspid, &insert_seals, SPI_OK_INSERT, values, NULL);
	ta_pass_through_end();
	ta_maintenance_end(&frame);
	PG_RETURN_INT64((int64) seals);
}

static const TaStatement retire_seals = {
	"UPDATE @store@.audit_seals s SET retired_at = pg_catalog.clock_timestamp()"
	" WHERE s.retired_at IS NULL AND (s.period || '-01')::timestamp AT TIME ZONE 'UTC' >= $1"
	"   AND (s.period || '-01')::timestamp AT TIME ZONE 'UTC' < $2",
	2,
	{TIMESTAMPTZOID, TIMESTAMPTZOID}};

/*
 * ta_audit_partition_retired
 *		audit_partition_retired(parent regclass, from_time timestamptz,
 *								to_time timestamptz) → void
 *
 * Where a partition of a log was retired, notes in the seals that its rows are
 * not expected any more.
 */
Datum
ta_audit_partition_retired(PG_FUNCTION_ARGS)
{
	Oid			  log = PG_GETARG_OID(0);
	Oid			  nspid = get_rel_namespace(log);
	Datum		  values[2] = {PG_GETARG_DATUM(1), PG_GETARG_DATUM(2)};
	TaMaintenance frame;

	if (!ta_is_audit_log(log))
		PG_RETURN_VOID();
	ta_maintenance_begin(&frame, ta_relation_owner(log));
	ta_pass_through_begin(get_relname_relid(TA_AUDIT_SEALS, nspid));
	ta_execute(nspid, &retire_seals, SPI_OK_UPDATE, values, NULL);
	ta_pass_through_end();
	ta_maintenance_end(&frame);
	PG_RETURN_VOID();
}

/*
 * Erasing
 */

/* The commitments, for SQL. */
static Datum
digest_result(const uint8 *digest)
{
	bytea *result = palloc(VARHDRSZ + TA_HASH_SIZE);

	SET_VARSIZE(result, VARHDRSZ + TA_HASH_SIZE);
	memcpy(VARDATA(result), digest, TA_HASH_SIZE);
	return PointerGetDatum(result);
}

/*
 * ta_commit_audit_changes
 *		commit_audit_changes(salt bytea, changes jsonb) → bytea
 */
Datum
ta_commit_audit_changes(PG_FUNCTION_ARGS)
{
	TaAuditHasher hasher;
	Datum		  values[LOG_COLUMNS];
	uint8		  digest[TA_HASH_SIZE];

	values[LOG_CHANGES_SALT] = PG_GETARG_DATUM(0);
	values[LOG_CHANGES] = PG_GETARG_DATUM(1);
	ta_hasher_open(&hasher);
	ta_audit_changes_digest(&hasher, values, digest);
	ta_hasher_close(&hasher);
	return digest_result(digest);
}

/*
 * ta_commit_audit_context
 *		commit_audit_context(salt bytea, request_id text, client_ip inet,
 *							 user_agent text, metadata jsonb) → bytea
 */
Datum
ta_commit_audit_context(PG_FUNCTION_ARGS)
{
	static const TaAuditLogColumn columns[] = {LOG_CONTEXT_SALT, LOG_REQUEST_ID, LOG_CLIENT_IP,
											   LOG_USER_AGENT, LOG_METADATA};
	TaAuditHasher				  hasher;
	Datum						  values[LOG_COLUMNS];
	bool						  nulls[LOG_COLUMNS];
	uint8						  digest[TA_HASH_SIZE];

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	for (int i = 0; i < (int) lengthof(columns); i++)
	{
		nulls[columns[i]] = PG_ARGISNULL(i);
		values[columns[i]] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	ta_hasher_open(&hasher);
	ta_audit_context_digest(&hasher, values, nulls, digest);
	ta_hasher_close(&hasher);
	return digest_result(digest);
}

static const TaStatement erase_changes = {
	"UPDATE @store@.audit_logs l"
	"   SET changes_digest = techally.commit_audit_changes(l.changes_salt, l.changes),"
	"       changes_salt = NULL, changes = NULL"
	" WHERE l.changes IS NOT NULL AND l.table_name = $3 AND l.changed_at >= $4 AND l.changed_at < $5"
	"   AND ((pg_catalog.jsonb_hash_extended(l.row_key, pg_catalog.hashtextextended(l.table_name, 0))"
	"         = pg_catalog.jsonb_hash_extended($1, pg_catalog.hashtextextended($3, 0)) AND l.row_key = $1)"
	"     OR (pg_catalog.jsonb_hash_extended(l.new_key, pg_catalog.hashtextextended(l.table_name, 0))"
	"         = pg_catalog.jsonb_hash_extended($1, pg_catalog.hashtextextended($3, 0)) AND l.new_key = $1))",
	5,
	{JSONBOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}};
static const TaStatement erase_context = {
	"UPDATE @store@.audit_logs l"
	"   SET context_digest = techally.commit_audit_context(l.context_salt, l.request_id, l.client_ip, l.user_agent, l.metadata),"
	"       context_salt = NULL, request_id = NULL, client_ip = NULL, user_agent = NULL, metadata = NULL"
	" WHERE l.context_salt IS NOT NULL AND l.user_id = $1",
	1,
	{UUIDOID}};

/*
 * ta_erase_audit_rows
 *		erase_audit_rows(log regclass, row_key jsonb, table_schema text,
 *						 table_name text, actor uuid,
 *						 from_time timestamptz, to_time timestamptz) → bigint
 *
 * With a row_key, takes the values out of every entry of that row from the time
 * in which the table has had the name; with an
 * actor, who it was that asked, as far as the context has it.  What was
 * committed to stays.  Writes an entry ERASE about it.  Returns the number of
 * entries.  Raises 42809 for what is no log, 42501 for who does not own it.
 */
Datum
ta_erase_audit_rows(PG_FUNCTION_ARGS)
{
	Oid			   log = PG_GETARG_OID(0);
	Oid			   nspid = get_rel_namespace(log);
	TaMaintenance  frame;
	TaAuditWriter *writer;
	uint64		   rows;
	StringInfoData key;
	StringInfoData facts;
	Jsonb		  *jsonb;

	require_log_owner(log);
	ta_maintenance_begin(&frame, ta_relation_owner(log));
	ta_pass_through_begin(log);
	if (!PG_ARGISNULL(1))
	{
		Datum values[5] = {PG_GETARG_DATUM(1), PG_GETARG_DATUM(2), PG_GETARG_DATUM(3),
						   PG_GETARG_DATUM(5), PG_GETARG_DATUM(6)};

		rows = ta_execute(nspid, &erase_changes, SPI_OK_UPDATE, values, NULL);
	}
	else
	{
		Datum values[1] = {PG_GETARG_DATUM(4)};

		rows = ta_execute(nspid, &erase_context, SPI_OK_UPDATE, values, NULL);
	}
	ta_pass_through_end();
	ta_maintenance_end(&frame);

	initStringInfo(&facts);
	appendStringInfo(&facts, "{\"entries\": " UINT64_FORMAT ", \"erased\": \"%s\"}", rows,
					 PG_ARGISNULL(1) ? "context" : "changes");
	jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(facts.data)));
	resetStringInfo(&facts);
	appendBinaryStringInfo(&facts, (char *) jsonb, VARSIZE(jsonb));
	initStringInfo(&key);
	if (!PG_ARGISNULL(1))
	{
		jsonb = PG_GETARG_JSONB_P(1);
		appendBinaryStringInfo(&key, (char *) jsonb, VARSIZE(jsonb));
	}
	writer = ta_audit_open(nspid, PG_ARGISNULL(2) ? get_namespace_name(nspid) : text_to_cstring(PG_GETARG_TEXT_PP(2)),
						   PG_ARGISNULL(3) ? TA_AUDIT_LOG : text_to_cstring(PG_GETARG_TEXT_PP(3)));
	ta_audit_write(writer, TA_ACTION_ERASE, PG_ARGISNULL(1) ? NULL : &key, NULL,
				   PG_ARGISNULL(1) ? PG_GETARG_UUID_P(4) : NULL, NULL, &facts);
	ta_audit_close(writer);
	PG_RETURN_INT64((int64) rows);
}
