/*-------------------------------------------------------------------------
 *
 * stripes.h
 *	  Stock spread over several rows; for the files of the room "inventory"
 *	  alone, but for ta_stripes_init.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_STRIPES_H
#define TECHALLY_STRIPES_H

#include "postgres.h"

#include "demand.h"

extern void ta_stripes_init(void);

extern int	ta_stripes_known(Oid nspid, const TaDemandGroup *group);
extern void ta_stripes_seen(Oid nspid, const TaDemandGroup *group, int nstripes);
extern int	ta_stripes_own(int nstripes);
extern void ta_stripes_contended(Oid nspid, const TaDemandGroup *group, const TaStockRow *row);
extern void ta_stripes_spread_if_hot(Oid nspid, const TaDemandGroup *group, const TaStockRow *row);
extern void ta_stripes_even_out(Oid nspid, const TaLine *line, const pg_uuid_t *stock_id);
extern void ta_stripes_fold_cooled(Oid nspid);

#endif /* TECHALLY_STRIPES_H */
