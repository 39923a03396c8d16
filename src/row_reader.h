/*-------------------------------------------------------------------------
 *
 * row_reader.h
 *	  Finding and locking rows by an index, without a plan.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_ROW_READER_H
#define TECHALLY_ROW_READER_H

#include "postgres.h"

#include "row_writer.h"
#include "storage/itemptr.h"

typedef struct TaRowReader TaRowReader;

extern void ta_row_reader_init(void);

extern TaRowReader *ta_reader_open(Oid relid, bool for_update,
								   const TaColumn *columns, int ncolumns);
extern void			ta_reader_find(TaRowReader *reader, Datum key);
extern bool			ta_reader_next(TaRowReader *reader, Datum *values, bool *nulls, ItemPointer tid);
extern bool			ta_reader_lock(TaRowReader *reader, ItemPointer tid, Datum *values, bool *nulls);
extern void			ta_reader_close(TaRowReader *reader);

#endif /* TECHALLY_ROW_READER_H */
