/*-------------------------------------------------------------------------
 *
 * audit_hash.h
 *	  The columns of an audit log, and the hashes over them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_AUDIT_HASH_H
#define TECHALLY_AUDIT_HASH_H

#include "postgres.h"

#include "common/cryptohash.h"

#define TA_HASH_SIZE	 32
#define TA_ROW_HASH_SIZE 16 /* what is kept of a row's hash */
#define TA_SALT_SIZE	 12

/*
 * The columns of audit_logs, as they are stored: those that every row has come
 * first, so that a row ends with its last value and needs no bitmap of NULLs.
 */
typedef enum TaAuditLogColumn
{
	LOG_ID,
	LOG_CHANGED_AT,
	LOG_TRANSACTION_ID,
	LOG_CHANGES,
	LOG_ROW_KEY,
	LOG_ACTION,
	LOG_TABLE_SCHEMA,
	LOG_TABLE_NAME,
	LOG_DB_USER,
	LOG_CHANGES_SALT,
	LOG_ROW_HASH,
	LOG_RESOURCE_ID,
	LOG_USER_ID,
	LOG_CLIENT_IP,
	LOG_CONTEXT_SALT,
	LOG_REQUEST_ID,
	LOG_USER_AGENT,
	LOG_METADATA,
	LOG_NEW_KEY,
	LOG_CHANGES_DIGEST,
	LOG_CONTEXT_DIGEST,
	LOG_COLUMNS
} TaAuditLogColumn;

typedef struct TaAuditHasher
{
	pg_cryptohash_ctx *ctx; /* NULL where OpenSSL is used directly */
} TaAuditHasher;

extern void ta_hasher_open(TaAuditHasher *hasher);
extern void ta_hasher_close(TaAuditHasher *hasher);

extern void ta_hash_start(TaAuditHasher *hasher);
extern void ta_hash_add(TaAuditHasher *hasher, const void *data, size_t length);
extern void ta_hash_finish(TaAuditHasher *hasher, uint8 *hash);

extern bool ta_audit_has_context(const bool *nulls);
extern void ta_audit_changes_digest(TaAuditHasher *hasher, const Datum *values, uint8 *digest);
extern void ta_audit_context_digest(TaAuditHasher *hasher, const Datum *values, const bool *nulls, uint8 *digest);
extern void ta_audit_statement_digest(TaAuditHasher *hasher, const Datum *values, const bool *nulls,
									  const uint8 *context, uint8 *digest);
extern void ta_audit_row_hash(TaAuditHasher *hasher, const Datum *values, const bool *nulls,
							  const uint8 *previous, const uint8 *statement, const uint8 *changes,
							  uint8 *hash);

#endif /* TECHALLY_AUDIT_HASH_H */
