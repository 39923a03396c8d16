/*-------------------------------------------------------------------------
 *
 * demand.h
 *	  Which stock rows serve a set of lines; for the files of the room
 *	  "inventory" alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_DEMAND_H
#define TECHALLY_DEMAND_H

#include "postgres.h"

#include "storage/itemptr.h"

#include "inventory.h"

/* What is done with the units that serve a demand. */
typedef enum TaUse
{
	TA_USE_RESERVE, /* they are promised */
	TA_USE_REMOVE	/* they go; the caller writes the ledger */
} TaUse;

/* Lines that share a group are served from the same stock rows. */
typedef struct TaDemandGroup
{
	pg_uuid_t product_id;
	TaUuid	  variant_id;
	TaUuid	  warehouse_id;
	int		  nstripes; /* as far as is known */
	int		  first_candidate;
	int		  ncandidates;
} TaDemandGroup;

/* A stock row as it was found or, where it is held, as it is. */
typedef struct TaStockRow
{
	pg_uuid_t		id;
	ItemPointerData tid; /* of the version that was found or locked */
	int				group;
	pg_uuid_t		warehouse_id;
	char		   *warehouse;
	int32			priority;
	int				stripe;
	int				rank; /* of the stripe, from this backend's own on */
	int32			available;
	int32			taken;
	bool			held;	/* locked by us */
	bool			busy;	/* somebody else had it a moment ago */
	bool			waited; /* and we waited for him */
} TaStockRow;

/* A stock row that may serve a group. */
typedef struct TaCandidate
{
	int			group;
	TaStockRow *row;
} TaCandidate;

/* What a set of lines wants and where it may come from. */
typedef struct TaDemand
{
	TaLine		  *lines;
	int			   nlines;
	int			  *group_of; /* by line */
	TaDemandGroup *groups;
	int			   ngroups;
	TaStockRow	  *rows; /* ascending by id */
	int			   nrows;
	TaCandidate	  *candidates; /* by group, then in the order of serving */
	int			   ncandidates;
	bool		   whole;	/* all rows are there, not only the likely ones */
	bool		   striped; /* a warehouse has several of one SKU */
} TaDemand;

extern void ta_secure_demand(Oid nspid, TaDemand *demand, TaLine *lines, int nlines,
							 TaUse use, bool every_row, int shortage_code);

#endif /* TECHALLY_DEMAND_H */
