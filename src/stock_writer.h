/*-------------------------------------------------------------------------
 *
 * stock_writer.h
 *	  Writing the quantities of stock rows and the ledger; for the files of the
 *	  room "inventory" alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_STOCK_WRITER_H
#define TECHALLY_STOCK_WRITER_H

#include "postgres.h"

#include "storage/itemptr.h"

#include "inventory.h"

/* By how much the quantities of a locked stock row change. */
typedef struct TaStockChange
{
	pg_uuid_t		id;
	ItemPointerData tid;
	int32			on_hand;
	int32			reserved;
} TaStockChange;

/* A row of the ledger. */
typedef struct TaMovement
{
	pg_uuid_t stock_id;
	int32	  quantity;
	TaUuid	  order_id;
	TaUuid	  reservation_id;
} TaMovement;

extern void ta_change_stock(Oid nspid, TaStockChange *changes, int count);
extern void ta_write_movements(Oid nspid, const TaMovement *movements, int count,
							   const TaPosting *posting);

#endif /* TECHALLY_STOCK_WRITER_H */
