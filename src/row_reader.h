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

/*
 * By which columns a table is read: the first of a list.  With several, an index
 * serves that begins with the first and has the others somewhere behind it, in
 * their order; and so does one that leaves out the rows where null_column is not
 * NULL, for the caller wants none of those.
 */
#define TA_MAX_KEYS 3

typedef struct TaReaderKey
{
	int			nkeys;
	const char *null_column; /* NULL: the index must be complete */
} TaReaderKey;

/* What became of an attempt to lock a row without waiting. */
typedef enum TaLockResult
{
	TA_LOCKED,
	TA_BUSY,	/* somebody else has it */
	TA_CHANGED, /* there is a newer version, which was not locked */
	TA_GONE		/* it was deleted */
} TaLockResult;

extern void ta_row_reader_init(void);

extern TaRowReader	*ta_reader_open(Oid relid, bool for_update,
									const TaColumn *columns, int ncolumns);
extern TaRowReader	*ta_reader_open_by(const TaReaderKey *key, Oid relid, bool for_update,
									   const TaColumn *columns, int ncolumns);
extern void			 ta_reader_find(TaRowReader *reader, Datum key);
extern void			 ta_reader_find_by(TaRowReader *reader, const Datum *keys);
extern void			 ta_reader_find_all(TaRowReader *reader);
extern bool			 ta_reader_next(TaRowReader *reader, Datum *values, bool *nulls, ItemPointer tid);
extern bool			 ta_reader_lock(TaRowReader *reader, ItemPointer tid, Datum *values, bool *nulls);
extern TaLockResult	 ta_reader_try_lock(TaRowReader *reader, ItemPointer tid, bool newest,
										Datum *values, bool *nulls);
extern TaRowReader	*ta_reader_open_beside(TaRowReader *sibling, const TaReaderKey *key, Oid relid,
										   bool for_update, const TaColumn *columns, int ncolumns);
extern TaRowReader	*ta_reader_open_dirty(Oid relid, const TaColumn *columns, int ncolumns);
extern TransactionId ta_reader_writer(TaRowReader *reader);
extern void			 ta_reader_close(TaRowReader *reader);

#endif /* TECHALLY_ROW_READER_H */
