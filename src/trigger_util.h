/*-------------------------------------------------------------------------
 *
 * trigger_util.h
 *	  What trigger functions share: the protocol checks that each begins with,
 *	  and which tables' rows are being moved rather than deleted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_TRIGGER_UTIL_H
#define TECHALLY_TRIGGER_UTIL_H

#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"

/* what a trigger function asks of its trigger */
#define TA_TRIGGER_ROW		 0x01
#define TA_TRIGGER_STATEMENT 0x02
#define TA_TRIGGER_BEFORE	 0x04
#define TA_TRIGGER_AFTER	 0x08
#define TA_TRIGGER_INSTEAD	 0x10
#define TA_TRIGGER_INSERT	 0x20
#define TA_TRIGGER_UPDATE	 0x40
#define TA_TRIGGER_DELETE	 0x80
#define TA_TRIGGER_TRUNCATE	 0x100

extern void ta_trigger_util_init(void);

extern void ta_pass_through_begin(Oid relid);
extern void ta_pass_through_end(void);
extern bool ta_passes_through(Oid relid);

extern TriggerData *ta_trigger_data(FunctionCallInfo fcinfo, const char *function_name, int flags);

#endif /* TECHALLY_TRIGGER_UTIL_H */
