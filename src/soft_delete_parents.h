/*-------------------------------------------------------------------------
 *
 * soft_delete_parents.h
 *	  The rows that a row refers to: whether they are there, and live.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SOFT_DELETE_PARENTS_H
#define TECHALLY_SOFT_DELETE_PARENTS_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/rel.h"

extern void ta_sd_parents_init(void);

extern bool ta_sd_is_orphaned(Relation rel, TupleTableSlot *slot);
extern void ta_sd_lock_parents(Relation rel, TupleTableSlot *slot);
extern void ta_sd_check_parents_live(Relation rel, TupleTableSlot *slot);

#endif /* TECHALLY_SOFT_DELETE_PARENTS_H */
