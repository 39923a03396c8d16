/*-------------------------------------------------------------------------
 *
 * audit_hash.c
 *	  The hashes over the rows of an audit log.
 *
 * All are SHA-256, of which row_hash keeps the first 16 bytes.  A text or a jsonb counts as its length (4 bytes, the
 * highest first; -1 for NULL) and its bytes, a number as 8 bytes, the highest
 * first; a jsonb's bytes are those of its binary form, which its value alone
 * determines.  So nothing depends on a setting, and nothing on where a row lies.
 *
 *	changes	  = H(changes_salt, changes)
 *	context	  = H(context_salt, request_id, client_ip, user_agent, metadata)
 *	statement = H("techally audit 1", action, table_schema, table_name,
 *				  user_id, db_user, context)
 *	row_hash  = H(row_hash of the row before in the transaction, or zeros;
 *				  statement, id, changed_at, transaction_id, row_key, new_key,
 *				  resource_id, changes)
 *
 * The values are in there only by salted commitments: erased together with
 * their salt they cannot be guessed from it, and the commitment that is kept in
 * their place lets the row be verified as before.  For a row_hash to fit another
 * row somebody must find a second preimage of 128 bits: the salt is drawn here,
 * after the values were given, so that no pair of rows can be prepared through
 * the server.  (Who writes rows and salts himself needs 2^64 trials for a pair.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "port/pg_bswap.h"
#include "utils/uuid.h"

#include "compat.h"
#include "audit_hash.h"

/*
 * The server's own interface looks SHA-256 up anew for each hash, which with
 * OpenSSL 3 takes longer than to hash what we have.  The server is linked with
 * that library, so its functions are there.
 */
#if defined(USE_OPENSSL) && defined(__has_include)
#if __has_include(<openssl/evp.h>)
#include <openssl/evp.h>
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
#define DIRECT_OPENSSL
#endif
#endif
#endif

#define FORMAT_LABEL "techally audit 1"

/* What is hashed is gathered in pieces of this size. */
#define GATHERED_SIZE 512

static void
check(bool fine)
{
	if (!fine)
		elog(ERROR, "could not compute SHA-256");
}

#ifdef DIRECT_OPENSSL
static EVP_MD	  *algorithm = NULL;
static EVP_MD_CTX *state = NULL; /* of the one hash that is being computed */
#endif

/*
 * ta_hasher_open
 *		Prepares for hashing.  Close it in the same resource owner; an error does
 *		that by itself.
 */
void
ta_hasher_open(TaAuditHasher *hasher)
{
#ifdef DIRECT_OPENSSL
	if (algorithm == NULL)
		algorithm = EVP_MD_fetch(NULL, "SHA2-256", NULL);
	if (state == NULL)
		state = EVP_MD_CTX_new();
	hasher->ctx = NULL;
	if (algorithm != NULL && state != NULL)
		return;
#endif
	hasher->ctx = pg_cryptohash_create(PG_SHA256);
	if (hasher->ctx == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

void
ta_hasher_close(TaAuditHasher *hasher)
{
	if (hasher->ctx != NULL)
		pg_cryptohash_free(hasher->ctx);
	hasher->ctx = NULL;
}

void
ta_hash_start(TaAuditHasher *hasher)
{
#ifdef DIRECT_OPENSSL
	if (hasher->ctx == NULL)
	{
		check(EVP_DigestInit_ex(state, algorithm, NULL) == 1);
		return;
	}
#endif
	check(pg_cryptohash_init(hasher->ctx) >= 0);
}

void
ta_hash_add(TaAuditHasher *hasher, const void *data, size_t length)
{
#ifdef DIRECT_OPENSSL
	if (hasher->ctx == NULL)
	{
		check(EVP_DigestUpdate(state, data, length) == 1);
		return;
	}
#endif
	check(pg_cryptohash_update(hasher->ctx, data, length) >= 0);
}

void
ta_hash_finish(TaAuditHasher *hasher, uint8 *hash)
{
#ifdef DIRECT_OPENSSL
	if (hasher->ctx == NULL)
	{
		check(EVP_DigestFinal_ex(state, hash, NULL) == 1);
		return;
	}
#endif
	check(pg_cryptohash_final(hasher->ctx, hash, TA_HASH_SIZE) >= 0);
}

/*
 * What is hashed is gathered first: a call for every few bytes would cost more
 * than the hash.  Long values are passed on as they are.
 */
typedef struct Gathered
{
	TaAuditHasher *hasher;
	bool		   in_pieces; /* some were passed on already */
	int			   length;
	uint8		   bytes[GATHERED_SIZE];
} Gathered;

static void
pass_on(Gathered *gathered)
{
	if (!gathered->in_pieces)
		ta_hash_start(gathered->hasher);
	gathered->in_pieces = true;
	if (gathered->length > 0)
		ta_hash_add(gathered->hasher, gathered->bytes, gathered->length);
	gathered->length = 0;
}

static inline void
gather(Gathered *gathered, const void *data, size_t length)
{
	if (gathered->length + length > sizeof(gathered->bytes))
		pass_on(gathered);
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
	gathered->in_pieces = false;
	gathered->length = 0;
}

static void
end_gathering(Gathered *gathered, uint8 *digest)
{
	if (!gathered->in_pieces)
		ta_hash_start(gathered->hasher);
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
	static uint8 last_bytes[GATHERED_SIZE];
	static int	 last_length = -1;
	static uint8 last_digest[TA_HASH_SIZE];
	Gathered	 gathered;

	begin_gathering(&gathered, hasher);
	gather(&gathered, FORMAT_LABEL, strlen(FORMAT_LABEL));
	gather_varlena(&gathered, values[LOG_ACTION], false);
	gather_varlena(&gathered, values[LOG_TABLE_SCHEMA], false);
	gather_varlena(&gathered, values[LOG_TABLE_NAME], false);
	gather_uuid(&gathered, values[LOG_USER_ID], nulls[LOG_USER_ID]);
	gather_varlena(&gathered, values[LOG_DB_USER], nulls[LOG_DB_USER]);
	gather_digest(&gathered, context);

	/* mostly what it was for the statement before */
	if (gathered.in_pieces)
		end_gathering(&gathered, digest);
	else if (gathered.length == last_length && memcmp(gathered.bytes, last_bytes, last_length) == 0)
		memcpy(digest, last_digest, TA_HASH_SIZE);
	else
	{
		end_gathering(&gathered, digest);
		memcpy(last_bytes, gathered.bytes, gathered.length);
		last_length = gathered.length;
		memcpy(last_digest, digest, TA_HASH_SIZE);
	}
}

/*
 * ta_audit_row_hash
 *		A row's hash, TA_ROW_HASH_SIZE bytes, from those that it is made of;
 *		changes may be NULL.
 */
void
ta_audit_row_hash(TaAuditHasher *hasher, const Datum *values, const bool *nulls,
				  const uint8 *previous, const uint8 *statement, const uint8 *changes, uint8 *hash)
{
	Gathered gathered;
	uint8	 whole[TA_HASH_SIZE];

	begin_gathering(&gathered, hasher);
	gather(&gathered, previous, TA_ROW_HASH_SIZE);
	gather(&gathered, statement, TA_HASH_SIZE);
	gather_int64(&gathered, DatumGetInt64(values[LOG_ID]));
	gather_int64(&gathered, DatumGetInt64(values[LOG_CHANGED_AT]));
	gather_int64(&gathered, DatumGetInt64(values[LOG_TRANSACTION_ID]));
	gather_varlena(&gathered, values[LOG_ROW_KEY], nulls[LOG_ROW_KEY]);
	gather_varlena(&gathered, values[LOG_NEW_KEY], nulls[LOG_NEW_KEY]);
	gather_uuid(&gathered, values[LOG_RESOURCE_ID], nulls[LOG_RESOURCE_ID]);
	gather_digest(&gathered, changes);
	end_gathering(&gathered, whole);
	memcpy(hash, whole, TA_ROW_HASH_SIZE);
}
