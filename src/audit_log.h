/*-------------------------------------------------------------------------
 *
 * audit_log.h
 *	  The audit log of a schema: finding, making, and writing it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_AUDIT_LOG_H
#define TECHALLY_AUDIT_LOG_H

#include "postgres.h"

#include "audit_hash.h"
#include "audit_image.h"
#include "datatype/timestamp.h"
#include "utils/uuid.h"

#define TA_AUDIT_LOG   "audit_logs"
#define TA_AUDIT_VIEW  "audit_log"
#define TA_AUDIT_SEALS "audit_seals"

#define TA_ACTION_INSERT	  "INSERT"
#define TA_ACTION_UPDATE	  "UPDATE"
#define TA_ACTION_DELETE	  "DELETE"
#define TA_ACTION_TRUNCATE	  "TRUNCATE"
#define TA_ACTION_SOFT_DELETE "SOFT_DELETE"
#define TA_ACTION_RESTORE	  "RESTORE"
#define TA_ACTION_ERASE		  "ERASE"

typedef struct TaAuditWriter TaAuditWriter;

extern void ta_audit_log_init(void);

extern Oid	 ta_audit_log_of(Oid nspid, bool create);
extern bool	 ta_is_audit_log(Oid relid);
extern void	 ta_audit_guard_partition(Oid log, Oid partition);
extern Oid	 ta_audit_log_sequence(Oid log);
extern char *ta_audit_log_columns(const char *prefix);

extern TaAuditWriter *ta_audit_open(Oid nspid, const char *schema_name, const char *table_name);
extern void			  ta_audit_write(TaAuditWriter *writer, const char *action,
									 StringInfo row_key, StringInfo new_key, const pg_uuid_t *resource_id,
									 StringInfo changes, StringInfo metadata);
extern void			  ta_audit_close(TaAuditWriter *writer);

#endif /* TECHALLY_AUDIT_LOG_H */
