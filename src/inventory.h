/*-------------------------------------------------------------------------
 *
 * inventory.h
 *	  What the orders need of the stock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_INVENTORY_H
#define TECHALLY_INVENTORY_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "array_util.h"

/* What somebody wants: a SKU, how many, and from where. */
typedef struct TaLine
{
	const char *sku;
	const char *warehouse; /* code; NULL: any */
	int32		quantity;

	/* what ta_resolve_lines finds out */
	pg_uuid_t product_id;
	TaUuid	  variant_id;
	TaUuid	  warehouse_id; /* null where none was named */
	char	 *name;
	Datum	  price; /* numeric */
} TaLine;

/* What a SKU may be resolved for. */
typedef enum TaPurpose
{
	TA_FOR_SALE,	   /* it must be one that customers can order */
	TA_FOR_RECEIVING,  /* it must be one that can have stock */
	TA_FOR_STOCKTAKING /* it must exist */
} TaPurpose;

/* Units of one stock row. */
typedef struct TaStockUnits
{
	pg_uuid_t stock_id;
	pg_uuid_t product_id;
	TaUuid	  variant_id;
	int32	  quantity;
} TaStockUnits;

/* Who and why, for the ledger. */
typedef struct TaPosting
{
	const char *movement_type;
	const char *note;		  /* NULL: none */
	Datum		actor;		  /* uuid */
	bool		actor_isnull; /* true: app.current_user_id */
} TaPosting;

extern TimestampTz ta_reservation_end(Interval *ttl);
extern void		   ta_resolve_lines(Oid nspid, TaLine *lines, int nlines, TaPurpose purpose);

extern pg_uuid_t	 ta_inventory_reserve(Oid nspid, TaLine *lines, int nlines,
										  const pg_uuid_t *order_id, const char *reference,
										  TimestampTz expires_at, int shortage_code);
extern bool			*ta_inventory_hold(Oid nspid, const pg_uuid_t *orders, int norders);
extern void			 ta_inventory_lock_orders(Oid nspid, const pg_uuid_t *orders, int norders);
extern void			 ta_inventory_expire_orders(Oid nspid, const pg_uuid_t *orders, int norders);
extern void			 ta_inventory_release(Oid nspid, const pg_uuid_t *orders, int norders);
extern bool			*ta_inventory_sell(Oid nspid, const pg_uuid_t *orders, int norders,
									   Datum actor, bool actor_isnull);
extern TaStockUnits *ta_inventory_sold(Oid nspid, const pg_uuid_t *order_id, int *count);
extern void			 ta_inventory_restock(Oid nspid, const pg_uuid_t *order_id,
										  TaStockUnits *units, int count, const TaPosting *posting);

#endif /* TECHALLY_INVENTORY_H */
