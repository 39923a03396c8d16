/*-------------------------------------------------------------------------
 *
 * row_writer.h
 *	  Writing rows through the executor's own insertion path, without a plan.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_ROW_WRITER_H
#define TECHALLY_ROW_WRITER_H

#include "postgres.h"

#include "nodes/nodes.h"
#include "storage/itemptr.h"

/* A column that the caller writes, and the type of what it writes there. */
typedef struct TaColumn
{
	const char *name;
	Oid			type;
} TaColumn;

/*
 * A foreign key of the written table to the key "id" of a table beside it, and
 * the caller's word that the rows it names are there: he has written or locked
 * them in this very transaction.  Or, with "through", that before the transaction
 * ends he has locked a row of that table which names them in a column of the same
 * name: while it stands they cannot be deleted, for its own foreign key says so.
 */
typedef struct TaVouched
{
	const char *column;
	const char *table;
	const char *through; /* NULL: the row itself */
} TaVouched;

typedef struct TaRowWriter TaRowWriter;

extern void ta_row_writer_init(void);
extern bool ta_direct_rows(void);

extern TaRowWriter *ta_writer_open(Oid relid, CmdType operation,
								   const TaColumn *columns, int ncolumns);
extern TaRowWriter *ta_writer_open_for(const char *statement_trigger, Oid relid,
									   const TaColumn *columns, int ncolumns);
extern TaRowWriter *ta_writer_open_vouched(const TaVouched *vouched, int nvouched, Oid relid,
										   const TaColumn *columns, int ncolumns);
extern bool			ta_writer_stands_in(const TaRowWriter *writer);
extern void			ta_writer_insert(TaRowWriter *writer, const Datum *values, const bool *nulls);
extern Datum		ta_writer_row(TaRowWriter *writer);
extern void			ta_writer_load(TaRowWriter *writer, ItemPointer tid, Datum *values, bool *nulls);
extern void			ta_writer_store(TaRowWriter *writer, const Datum *values, const bool *nulls);
extern void			ta_writer_close(TaRowWriter *writer);

#endif /* TECHALLY_ROW_WRITER_H */
