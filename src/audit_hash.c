/*-------------------------------------------------------------------------
 *
 * audit_hash.c
 *	  The hashes over the rows of an audit log.
 *
 * All are SHA-256.  A text or a jsonb counts as its length (4 bytes, the
 * highest first; -1 for NULL) and its bytes, a number as 8 bytes, the highest
 * first; a jsonb's bytes are those of its binary form, which its value alone
 * determines.  So nothing depends on a setting, and nothing on where a row lies.
 *
 *	changes	  = H(changes_salt, changes)
 *	context	  = H(context_salt, request_id, client_ip, user_agent, metadata)
 *	statement = H("techally audit 1", changed_at, transaction_id, action,
 *				  table_schema, table_name, user_id, db_user, context)
 *	row_hash  = H(row_hash of the row before in the transaction, or zeros;
 *				  statement, id, row_key, new_key, resource_id, changes)
 *
 * The values are in there only by salted commitments: erased together with
 * their salt they cannot be guessed from it, and the commitment that is kept in
 * their place lets the row be verified as before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "port/pg_bswap.h"
#include "utils/uuid.h"

#include "compat.h"
#include "audit_hash.h"

#define FORMAT_LABEL "techally audit 1"

static void
check(int result)
{
	if (result < 0)
		elog(ERROR, "could not compute SHA-256");
}

/*
 * ta_hasher_open
 *		Prepares for hashing.  Close it in the same resource owner; an error does
 *		that by itself.
 */
void
ta_hasher_open(TaAuditHasher *hasher)
{
	hasher->ctx = pg_cryptohash_create(PG_SHA256);
	if (hasher->ctx == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

void
ta_hasher_close(TaAuditHasher *hasher)
{
	pg_cryptohash_free(hasher->ctx);
	hasher->ctx = NULL;
}

void
ta_hash_start(TaAuditHasher *hasher)
{
	check(pg_cryptohash_init(hasher->ctx));
}

void
ta_hash_add(TaAuditHasher *hasher, const void *data, size_t length)
{
	check(pg_cryptohash_update(hasher->ctx, data, length));
}

void
ta_hash_finish(TaAuditHasher *hasher, uint8 *hash)
{
	check(pg_cryptohash_final(hasher->ctx, hash, TA_HASH_SIZE));
}

/*
 * What is hashed is gathered first: a call for every few bytes would cost more
 * than the hash.  Long values are passed on as they are.
 */
typedef struct Gathered
{
	TaAuditHasher *hasher;
	int			   length;
	uint8		   bytes[512];
} Gathered;

static void
gather(Gathered *gathered, const void *data, size_t length)
{
	if (gathered->length + length > sizeof(gathered->bytes))
	{
		if (gathered->length > 0)
			ta_hash_add(gathered->hasher, gathered->bytes, gathered->length);
		gathered->length = 0;
	}
	if (length > sizeof(gathered->bytes))
		ta_hash_add(gathered->hasher, data, length);
	else
	{
		memcpy(gathered->bytes + gathered->length, data, length);
		gathered->length += length;
	}
}

static void
gather_int64(Gathered *gathered, int64 value)
{
	uint64 bytes = pg_hton64((uint64) value);

	gather(gathered, &bytes, sizeof(bytes));
}

static void
gather_varlena(Gathered *gathered, Datum value, bool isnull)
{
	uint32 length = pg_hton32((uint32) -1);

	if (isnull)
		gather(gathered, &length, sizeof(length));
	else
	{
		struct varlena *bytes = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));

		length = pg_hton32((uint32) VARSIZE_ANY_EXHDR(bytes));
		gather(gathered, &length, sizeof(length));
		gather(gathered, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
		if ((Pointer) bytes != DatumGetPointer(value))
			pfree(bytes);
	}
}

static void
gather_uuid(Gathered *gathered, Datum value, bool isnull)
{
	gather(gathered, isnull ? "\0" : "\1", 1);
	if (!isnull)
		gather(gathered, DatumGetUUIDP(value)->data, UUID_LEN);
}

/* A commitment, or NULL for none. */
static void
gather_digest(Gathered *gathered, const uint8 *digest)
{
	gather(gathered, digest == NULL ? "\0" : "\1", 1);
	if (digest != NULL)
		gather(gathered, digest, TA_HASH_SIZE);
}

static void
begin_gathering(Gathered *gathered, TaAuditHasher *hasher)
{
	gathered->hasher = hasher;
	gathered->length = 0;
	ta_hash_start(hasher);
}

static void
end_gathering(Gathered *gathered, uint8 *digest)
{
	if (gathered->length > 0)
		ta_hash_add(gathered->hasher, gathered->bytes, gathered->length);
	ta_hash_finish(gathered->hasher, digest);
}

/*
 * ta_audit_has_context
 *		Whether a row has any of the values that the context commits to.
 */
bool
ta_audit_has_context(const bool *nulls)
{
	return !(nulls[LOG_REQUEST_ID] && nulls[LOG_CLIENT_IP] && nulls[LOG_USER_AGENT] && nulls[LOG_METADATA]);
}

/*
 * ta_audit_changes_digest
 *		The commitment to a row's changes, neither they nor their salt being NULL.
 */
void
ta_audit_changes_digest(TaAuditHasher *hasher, const Datum *values, uint8 *digest)
{
	Gathered gathered;

	begin_gathering(&gathered, hasher);
	gather_varlena(&gathered, values[LOG_CHANGES_SALT], false);
	gather_varlena(&gathered, values[LOG_CHANGES], false);
	end_gathering(&gathered, digest);
}

/*
 * ta_audit_context_digest
 *		The commitment to who asked, its salt not being NULL.
 */
void
ta_audit_context_digest(TaAuditHasher *hasher, const Datum *values, const bool *nulls, uint8 *digest)
{
	Gathered gathered;

	begin_gathering(&gathered, hasher);
	gather_varlena(&gathered, values[LOG_CONTEXT_SALT], false);
	gather_varlena(&gathered, values[LOG_REQUEST_ID], nulls[LOG_REQUEST_ID]);
	gather_varlena(&gathered, values[LOG_CLIENT_IP], nulls[LOG_CLIENT_IP]);
	gather_varlena(&gathered, values[LOG_USER_AGENT], nulls[LOG_USER_AGENT]);
	gather_varlena(&gathered, values[LOG_METADATA], nulls[LOG_METADATA]);
	end_gathering(&gathered, digest);
}

/*
 * ta_audit_statement_digest
 *		The hash of what the rows of one statement have in common.
 */
void
ta_audit_statement_digest(TaAuditHasher *hasher, const Datum *values, const bool *nulls,
						  const uint8 *context, uint8 *digest)
{
	Gathered gathered;

	begin_gathering(&gathered, hasher);
	gather(&gathered, FORMAT_LABEL, strlen(FORMAT_LABEL));
	gather_int64(&gathered, DatumGetInt64(values[LOG_CHANGED_AT]));
	gather_int64(&gathered, DatumGetInt64(values[LOG_TRANSACTION_ID]));
	gather_varlena(&gathered, values[LOG_ACTION], false);
	gather_varlena(&gathered, values[LOG_TABLE_SCHEMA], false);
	gather_varlena(&gathered, values[LOG_TABLE_NAME], false);
	gather_uuid(&gathered, values[LOG_USER_ID], nulls[LOG_USER_ID]);
	gather_varlena(&gathered, values[LOG_DB_USER], nulls[LOG_DB_USER]);
	gather_digest(&gathered, context);
	end_gathering(&gathered, digest);
}

/*
 * ta_audit_row_hash
 *		A row's hash, from those that it is made of; changes may be NULL.
 */
void
ta_audit_row_hash(TaAuditHasher *hasher, const Datum *values, const bool *nulls,
				  const uint8 *previous, const uint8 *statement, const uint8 *changes, uint8 *hash)
{
	Gathered gathered;

	begin_gathering(&gathered, hasher);
	gather(&gathered, previous, TA_HASH_SIZE);
	gather(&gathered, statement, TA_HASH_SIZE);
	gather_int64(&gathered, DatumGetInt64(values[LOG_ID]));
	gather_varlena(&gathered, values[LOG_ROW_KEY], nulls[LOG_ROW_KEY]);
	gather_varlena(&gathered, values[LOG_NEW_KEY], nulls[LOG_NEW_KEY]);
	gather_uuid(&gathered, values[LOG_RESOURCE_ID], nulls[LOG_RESOURCE_ID]);
	gather_digest(&gathered, changes);
	end_gathering(&gathered, hash);
}
