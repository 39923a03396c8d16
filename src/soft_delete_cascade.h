/*-------------------------------------------------------------------------
 *
 * soft_delete_cascade.h
 *	  Marking rows as deleted, and no more so, with what goes along.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SOFT_DELETE_CASCADE_H
#define TECHALLY_SOFT_DELETE_CASCADE_H

#include "postgres.h"

#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/uuid.h"

/* rows marked by one statement; fewer where each may bring dependents along */
#define MAX_MARKED		   65536
#define MAX_MARKED_PARENTS 1024

extern Datum  ta_sd_new_deletion_id(void);
extern uint64 ta_sd_delete_rows(Relation rel, ItemPointerData *rows, int nrows, Datum id, CommandId since);
extern void	  ta_sd_delete_rows_by_hand(Relation rel, ItemPointerData *rows, int nrows, Datum id);
extern bool	  ta_sd_restore_row(Relation rel, ItemPointer row);
extern void	  ta_sd_restore_rows_by_hand(Relation rel, ItemPointerData *rows, const pg_uuid_t *ids, int nrows);

#endif /* TECHALLY_SOFT_DELETE_CASCADE_H */
