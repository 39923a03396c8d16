/*-------------------------------------------------------------------------
 *
 * soft_delete.h
 *	  Rows that are deleted by saying so in them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SOFT_DELETE_H
#define TECHALLY_SOFT_DELETE_H

#include "postgres.h"

#include "utils/rel.h"
#include "utils/reltrigger.h"

#define TA_DELETED_AT  "deleted_at"
#define TA_DELETION_ID "deletion_id"

/* the trigger functions, by name */
#define TA_DELETE_FUNCTION "soft_delete_row"
#define TA_CHANGE_FUNCTION "deleted_at_changed"
#define TA_MOVE_FUNCTION   "note_row_move"
#define TA_GUARD_FUNCTION  "refuse_deleted_parent"

extern void ta_soft_delete_init(void);

extern bool ta_is_soft_delete_table(Relation rel);
extern bool ta_trigger_calls(const Trigger *trigger, const char *function);

#endif /* TECHALLY_SOFT_DELETE_H */
