/*-------------------------------------------------------------------------
 *
 * demand.c
 *	  Which stock rows serve a set of lines, and locking them.
 *
 * A SKU's stock in a warehouse is one row (stripe 0) or, where it is much
 * asked for, several.  Which of them serve is planned over what is committed,
 * without a lock; then the rows of the plan are locked, which must still have
 * what the plan takes from them.
 *
 * Rules that keep this exact and free of deadlocks:
 *
 * - Out of the lock order (ascending by id) a row is locked only without
 *   waiting.  Whoever must wait gives such rows back first (he rolls back to a
 *   savepoint) and starts again in the order.
 * - A single row is locked only in the very version that the plan read, so that
 *   there is nothing to give back and no savepoint to make.
 * - In READ COMMITTED, too little is what a snapshot of now says: units that a
 *   transaction in progress has taken are still there in it, and so are those
 *   that have expired.  No lock is needed to say so.  Where it says that there
 *   is enough and rows are locked, we wait for the rows; where it does not, but
 *   somebody is just giving units back, we wait for him, holding nothing.
 * - Rows are added, and units moved between rows, under the lock of stripe 0
 *   alone.  Whoever holds it may trust his list of rows, if it was made after.
 *
 * The update of a row is done under the savepoint that locked it: a row locked
 * by a subtransaction and updated by its parent would need a multixact.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "array_util.h"
#include "compat.h"
#include "demand.h"
#include "errors.h"
#include "row_reader.h"
#include "row_writer.h"
#include "spi_util.h"
#include "stock_writer.h"
#include "stripes.h"

/* Rounds of looking for free rows, and of waiting, before every row is locked. */
#define FREE_ROUNDS	   20
#define WAITING_ROUNDS 5

/* Reservations that one sweep closes at most. */
#define SWEEP_LIMIT 1000

#define FIND_CANDIDATES                                                                         \
	"SELECT d.n::pg_catalog.int4 AS n, s.id, s.quantity_on_hand - s.quantity_reserved AS free," \
	"       w.priority, w.code, s.ctid, s.stripe::pg_catalog.int4 AS stripe, s.warehouse_id"    \
	"  FROM unnest($1, $2, $3) WITH ORDINALITY AS d(product_id, variant_id, warehouse_id, n)"   \
	"  JOIN @store@.inventory_stock s"                                                          \
	"    ON s.product_id = d.product_id AND s.variant_id IS NOT DISTINCT FROM d.variant_id"     \
	"   AND (d.warehouse_id IS NULL OR s.warehouse_id = d.warehouse_id)"                        \
	"  JOIN @store@.warehouses w"                                                               \
	"    ON w.id = s.warehouse_id AND (d.warehouse_id IS NOT NULL OR w.is_active)"

/* used where a table must not be read directly */
static const TaStatement find_candidates = {
	FIND_CANDIDATES " ORDER BY s.id",
	3,
	{UUIDARRAYOID, UUIDARRAYOID, UUIDARRAYOID}};

static const TaStatement lock_row = {
	"SELECT s.ctid, s.quantity_on_hand - s.quantity_reserved"
	"  FROM @store@.inventory_stock s WHERE s.id = $1 FOR NO KEY UPDATE",
	1,
	{UUIDOID}};

static const TaStatement lock_free_row = {
	"SELECT s.ctid, s.quantity_on_hand - s.quantity_reserved"
	"  FROM @store@.inventory_stock s WHERE s.id = $1 FOR NO KEY UPDATE SKIP LOCKED",
	1,
	{UUIDOID}};

/* The rows with all that can be had, expired reservations counted as free, in one snapshot. */
static const TaStatement find_committed = {
	"WITH found AS (" FIND_CANDIDATES "),"
	" expired AS ("
	"  SELECT p.stock_id, sum(p.quantity)::pg_catalog.int4 AS quantity"
	"    FROM @store@.stock_reservations r"
	"    JOIN @store@.stock_reservation_parts p ON p.reservation_id = r.id"
	"   WHERE r.status = 'active' AND r.expires_at <= $4"
	"     AND p.stock_id IN (SELECT f.id FROM found f)"
	"   GROUP BY p.stock_id)"
	" SELECT f.n, f.id, f.free + coalesce(e.quantity, 0), f.priority, f.code, f.ctid, f.stripe, f.warehouse_id"
	"   FROM found f LEFT JOIN expired e ON e.stock_id = f.id ORDER BY f.id",
	4,
	{UUIDARRAYOID, UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZOID}};

/* One of the expired reservations that a sweep left, for somebody has it. */
static const TaStatement find_expired_in_use = {
	"SELECT r.id FROM @store@.stock_reservation_parts p"
	"  JOIN @store@.stock_reservations r ON r.id = p.reservation_id"
	" WHERE p.stock_id = ANY ($1) AND r.status = 'active' AND r.expires_at <= $2"
	" ORDER BY r.id LIMIT 1",
	2,
	{UUIDARRAYOID, TIMESTAMPTZOID}};

static const TaStatement lock_reservation = {
	"SELECT r.id FROM @store@.stock_reservations r WHERE r.id = $1 FOR NO KEY UPDATE",
	1,
	{UUIDOID}};

/*
 * Frees expired parts of rows that the caller has locked, those of the oldest
 * reservations first.  The reservation is marked as well: whoever is waiting
 * for it and judged its time before must see that it has changed.
 */
static const TaStatement sweep_expired = {
	"WITH gone AS ("
	"  UPDATE @store@.stock_reservations r SET closed_at = $2"
	"    FROM (SELECT e.id FROM @store@.stock_reservations e"
	"           WHERE e.status = 'active' AND e.expires_at <= $2"
	"             AND EXISTS (SELECT 1 FROM @store@.stock_reservation_parts p"
	"                          WHERE p.reservation_id = e.id AND p.stock_id = ANY ($1))"
	"           ORDER BY e.expires_at LIMIT $3"
	"             FOR NO KEY UPDATE OF e SKIP LOCKED) AS found"
	"   WHERE r.id = found.id"
	"  RETURNING r.id),"
	" freed AS ("
	"  DELETE FROM @store@.stock_reservation_parts p USING gone"
	"   WHERE p.reservation_id = gone.id AND p.stock_id = ANY ($1)"
	"  RETURNING p.stock_id, p.quantity),"
	" sums AS (SELECT f.stock_id, sum(f.quantity)::pg_catalog.int4 AS quantity FROM freed f GROUP BY f.stock_id)"
	" UPDATE @store@.inventory_stock s SET quantity_reserved = s.quantity_reserved - sums.quantity"
	"   FROM sums WHERE s.id = sums.stock_id"
	" RETURNING s.id, s.quantity_on_hand - s.quantity_reserved, s.ctid",
	3,
	{UUIDARRAYOID, TIMESTAMPTZOID, INT4OID}};

/*
 * What the stock is read by: a SKU, or a SKU, a warehouse and a stripe.  The
 * columns have the same places in all three lists.
 */
enum
{
	STOCK_KEY,
	STOCK_WAREHOUSE,
	STOCK_STRIPE,
	STOCK_ID,
	STOCK_VARIANT, /* not where the variant is the key */
	STOCK_ON_HAND,
	STOCK_RESERVED,
	STOCK_COLUMNS
};

static const TaColumn product_columns[] = {
	{"product_id", UUIDOID}, {"warehouse_id", UUIDOID}, {"stripe", INT2OID}, {"id", UUIDOID}, {"variant_id", UUIDOID}, {"quantity_on_hand", INT4OID}, {"quantity_reserved", INT4OID}};
static const TaColumn product_stripe_columns[] = {
	{"product_id", UUIDOID}, {"warehouse_id", UUIDOID}, {"stripe", INT2OID}, {"id", UUIDOID}, {"variant_id", UUIDOID}, {"quantity_on_hand", INT4OID}, {"quantity_reserved", INT4OID}};
static const TaColumn variant_stripe_columns[] = {
	{"variant_id", UUIDOID}, {"warehouse_id", UUIDOID}, {"stripe", INT2OID}, {"id", UUIDOID}, {"product_id", UUIDOID}, {"quantity_on_hand", INT4OID}, {"quantity_reserved", INT4OID}};
static const TaReaderKey by_product = {1, NULL};
static const TaReaderKey stripe_of_product = {3, "variant_id"};
static const TaReaderKey stripe_of_variant = {3, NULL};

static const TaColumn warehouse_columns[] = {
	{"id", UUIDOID}, {"code", TEXTOID}, {"priority", INT4OID}, {"is_active", BOOLOID}};

/* ---------------------------------------------------------------------
 * Finding rows
 * ---------------------------------------------------------------------
 */

static int
compare_nullable_uuids(const TaUuid *a, const TaUuid *b)
{
	if (a->isnull || b->isnull)
		return (int) a->isnull - (int) b->isnull;
	return ta_compare_uuids(&a->value, &b->value);
}

static int
compare_lines(const void *a, const void *b)
{
	const TaLine *x = *(TaLine *const *) a;
	const TaLine *y = *(TaLine *const *) b;
	int			  result = ta_compare_uuids(&x->product_id, &y->product_id);

	if (result == 0)
		result = compare_nullable_uuids(&x->variant_id, &y->variant_id);
	if (result == 0)
		result = compare_nullable_uuids(&x->warehouse_id, &y->warehouse_id);
	return result;
}

/* By group, then in the order in which the rows serve it. */
static int
compare_candidates(const void *a, const void *b)
{
	const TaCandidate *x = a;
	const TaCandidate *y = b;
	int				   result = (x->group > y->group) - (x->group < y->group);

	if (result == 0)
		result = (x->row->priority > y->row->priority) - (x->row->priority < y->row->priority);
	if (result == 0)
		result = strcmp(x->row->warehouse, y->row->warehouse);
	if (result == 0)
		result = (x->row->rank > y->row->rank) - (x->row->rank < y->row->rank);
	if (result == 0)
		result = ta_compare_uuids(&x->row->id, &y->row->id);
	return result;
}

/* Puts lines that want the same thing from the same place into one group. */
static void
group_lines(TaDemand *demand)
{
	TaLine **sorted = palloc(sizeof(TaLine *) * demand->nlines);

	for (int i = 0; i < demand->nlines; i++)
		sorted[i] = &demand->lines[i];
	qsort(sorted, demand->nlines, sizeof(TaLine *), compare_lines);

	demand->groups = palloc0(sizeof(TaDemandGroup) * demand->nlines);
	demand->group_of = palloc(sizeof(int) * demand->nlines);
	demand->ngroups = 0;
	for (int i = 0; i < demand->nlines; i++)
	{
		if (i == 0 || compare_lines(&sorted[i - 1], &sorted[i]) != 0)
		{
			TaDemandGroup *group = &demand->groups[demand->ngroups++];

			group->product_id = sorted[i]->product_id;
			group->variant_id = sorted[i]->variant_id;
			group->warehouse_id = sorted[i]->warehouse_id;
		}
		demand->group_of[sorted[i] - demand->lines] = demand->ngroups - 1;
	}
}

/* A warehouse as far as serving from it goes. */
typedef struct Warehouse
{
	pg_uuid_t id;
	char	 *code;
	int32	  priority;
	bool	  is_active;
} Warehouse;

/* A stock row that was found, once for each group that it may serve. */
typedef struct Found
{
	pg_uuid_t		id;
	ItemPointerData tid;
	int				group;
	int				stripe;
	int32			available;
	pg_uuid_t		warehouse_id;
	char		   *warehouse;
	int32			priority;
} Found;

/* How rows were found, and are locked. */
typedef struct Finder
{
	Oid			 nspid;
	bool		 direct; /* by index, else by statements */
	TaRowReader *warehouses;
	TaRowReader *by_product;
	TaRowReader *stripe_of_product;
	TaRowReader *stripe_of_variant;
	List		*known_warehouses;
	List		*active_warehouses; /* in the order in which they serve; read when needed */
	bool		 knows_active;
	Found		*found;
	int			 nfound;
	int			 size;
} Finder;

static int
compare_found(const void *a, const void *b)
{
	const Found *x = a;
	const Found *y = b;
	int			 result = ta_compare_uuids(&x->id, &y->id);

	return result != 0 ? result : (x->group > y->group) - (x->group < y->group);
}

static Warehouse *
make_warehouse(const Datum *values)
{
	Warehouse *warehouse = palloc(sizeof(Warehouse));

	warehouse->id = *DatumGetUUIDP(values[0]);
	warehouse->code = TextDatumGetCString(values[1]);
	warehouse->priority = DatumGetInt32(values[2]);
	warehouse->is_active = DatumGetBool(values[3]);
	return warehouse;
}

/* Reads a warehouse, once for all rows that lie in it. */
static const Warehouse *
find_warehouse(TaRowReader *reader, List **known, const pg_uuid_t *id)
{
	ListCell  *cell;
	Warehouse *warehouse;
	Datum	   values[4];
	bool	   nulls[4];

	foreach(cell, *known)
	{
		warehouse = lfirst(cell);
		if (ta_compare_uuids(&warehouse->id, id) == 0)
			return warehouse;
	}
	ta_reader_find(reader, UUIDPGetDatum(id));
	if (!ta_reader_next(reader, values, nulls, NULL))
		return NULL;
	warehouse = make_warehouse(values);
	*known = lappend(*known, warehouse);
	return warehouse;
}

static int
compare_warehouses(const ListCell *a, const ListCell *b)
{
	const Warehouse *x = lfirst(a);
	const Warehouse *y = lfirst(b);

	if (x->priority != y->priority)
		return x->priority < y->priority ? -1 : 1;
	return strcmp(x->code, y->code);
}

/* The active warehouses, in the order in which they serve. */
static List *
active_warehouses(Finder *finder)
{
	Datum values[4];
	bool  nulls[4];

	if (finder->knows_active)
		return finder->active_warehouses;
	ta_reader_find_all(finder->warehouses);
	while (ta_reader_next(finder->warehouses, values, nulls, NULL))
		if (DatumGetBool(values[3]))
			finder->active_warehouses = lappend(finder->active_warehouses, make_warehouse(values));
	list_sort(finder->active_warehouses, compare_warehouses);
	finder->known_warehouses = list_copy(finder->active_warehouses);
	finder->knows_active = true;
	return finder->active_warehouses;
}

static void
finder_close(Finder *finder)
{
	TaRowReader *readers[] = {finder->warehouses, finder->by_product,
							  finder->stripe_of_product, finder->stripe_of_variant};

	for (int i = 0; i < (int) lengthof(readers); i++)
		if (readers[i] != NULL)
			ta_reader_close(readers[i]);
	finder->warehouses = finder->by_product = NULL;
	finder->stripe_of_product = finder->stripe_of_variant = NULL;
}

static Found *
next_found(Finder *finder)
{
	if (finder->nfound == finder->size)
	{
		finder->size = Max(finder->size * 2, 16);
		finder->found = finder->found == NULL
							? palloc(sizeof(Found) * finder->size)
							: repalloc_huge(finder->found, sizeof(Found) * finder->size);
	}
	return &finder->found[finder->nfound++];
}

/*
 * Takes over the rows that a reader finds for a group.  Returns somebody who has
 * not committed what was found, from a reader that sees such.
 */
static TransactionId
collect(Finder *finder, TaRowReader *reader, const TaDemandGroup *group, int g)
{
	Datum			values[STOCK_COLUMNS];
	bool			nulls[STOCK_COLUMNS];
	ItemPointerData tid;
	TransactionId	writer = InvalidTransactionId;

	while (ta_reader_next(reader, values, nulls, &tid))
	{
		const Warehouse *warehouse;
		Found			*found;

		if (reader != finder->stripe_of_variant &&
			(nulls[STOCK_VARIANT] != group->variant_id.isnull ||
			 (!nulls[STOCK_VARIANT] &&
			  ta_compare_uuids(DatumGetUUIDP(values[STOCK_VARIANT]), &group->variant_id.value) != 0)))
			continue;
		if (!group->warehouse_id.isnull &&
			ta_compare_uuids(DatumGetUUIDP(values[STOCK_WAREHOUSE]), &group->warehouse_id.value) != 0)
			continue;
		warehouse = find_warehouse(finder->warehouses, &finder->known_warehouses,
								   DatumGetUUIDP(values[STOCK_WAREHOUSE]));
		if (warehouse == NULL || (group->warehouse_id.isnull && !warehouse->is_active))
			continue;
		found = next_found(finder);
		found->id = *DatumGetUUIDP(values[STOCK_ID]);
		found->tid = tid;
		found->group = g;
		found->stripe = DatumGetInt16(values[STOCK_STRIPE]);
		found->available = DatumGetInt32(values[STOCK_ON_HAND]) - DatumGetInt32(values[STOCK_RESERVED]);
		found->warehouse_id = warehouse->id;
		found->warehouse = warehouse->code;
		found->priority = warehouse->priority;
		if (TransactionIdIsValid(ta_reader_writer(reader)))
			writer = ta_reader_writer(reader);
	}
	return writer;
}

/* Finds one stripe of a group's stock in a warehouse; returns what it has, -1 where it is not there. */
static int32
find_stripe(Finder *finder, TaRowReader *reader, const TaDemandGroup *group, int g,
			const Warehouse *warehouse, int stripe)
{
	Datum keys[3];
	int	  before = finder->nfound;

	keys[0] = UUIDPGetDatum(group->variant_id.isnull ? &group->product_id : &group->variant_id.value);
	keys[1] = UUIDPGetDatum(&warehouse->id);
	keys[2] = Int16GetDatum(stripe);
	ta_reader_find_by(reader, keys);
	collect(finder, reader, group, g);
	return finder->nfound == before ? -1 : finder->found[before].available;
}

/*
 * Finds the stock that a group is likely to be served from: of the first
 * warehouse that has any row of it, this backend's own stripe or, where that has
 * too little, stripe 0, too.  Every stock has a stripe 0.
 */
static void
find_likely(Finder *finder, TaRowReader *reader, TaDemand *demand, int g)
{
	TaDemandGroup *group = &demand->groups[g];
	List		  *warehouses = NIL;
	ListCell	  *cell;
	int64		   quantity = 0;
	int			   own;

	for (int i = 0; i < demand->nlines; i++)
		if (demand->group_of[i] == g)
			quantity += demand->lines[i].quantity;
	if (group->warehouse_id.isnull)
		warehouses = active_warehouses(finder);
	else
	{
		const Warehouse *named = find_warehouse(finder->warehouses, &finder->known_warehouses,
												&group->warehouse_id.value);

		if (named != NULL)
			warehouses = list_make1((void *) named);
	}

	group->nstripes = ta_stripes_known(finder->nspid, group);
	own = ta_stripes_own(group->nstripes);
	foreach(cell, warehouses)
	{
		const Warehouse *warehouse = lfirst(cell);
		int32			 units = own == 0 ? -1 : find_stripe(finder, reader, group, g, warehouse, own);

		CHECK_FOR_INTERRUPTS();
		if (units < quantity)
			units = Max(units, find_stripe(finder, reader, group, g, warehouse, 0));
		if (units >= 0)
			break;
	}
}

/*
 * Finds rows by index: all that may serve (whole), or the likely ones.  False
 * where a table does not allow it.
 */
static bool
find_directly(Finder *finder, TaDemand *demand, bool whole)
{
	Oid relid = ta_store_table(finder->nspid, "inventory_stock");

	finder->warehouses = ta_reader_open(ta_store_table(finder->nspid, "warehouses"), false,
										warehouse_columns, lengthof(warehouse_columns));
	if (finder->warehouses == NULL)
		return false;

	for (int g = 0; g < demand->ngroups; g++)
	{
		TaDemandGroup	  *group = &demand->groups[g];
		TaRowReader		 **reader;
		const TaReaderKey *key;
		const TaColumn	  *columns;

		CHECK_FOR_INTERRUPTS();
		if (whole)
		{
			reader = &finder->by_product;
			key = &by_product;
			columns = product_columns;
		}
		else if (group->variant_id.isnull)
		{
			reader = &finder->stripe_of_product;
			key = &stripe_of_product;
			columns = product_stripe_columns;
		}
		else
		{
			reader = &finder->stripe_of_variant;
			key = &stripe_of_variant;
			columns = variant_stripe_columns;
		}
		if (*reader == NULL)
			*reader = ta_reader_open_beside(finder->warehouses, key, relid, true, columns, STOCK_COLUMNS);
		if (*reader == NULL)
			return false;

		if (whole)
		{
			ta_reader_find(*reader, UUIDPGetDatum(&group->product_id));
			collect(finder, *reader, group, g);
		}
		else
			find_likely(finder, *reader, demand, g);
	}
	return true;
}

/* Finds all rows by a statement; until is for find_committed alone. */
static void
find_by_statement(Finder *finder, TaDemand *demand, const TaStatement *statement, TimestampTz until)
{
	pg_uuid_t *products = palloc(sizeof(pg_uuid_t) * demand->ngroups);
	TaUuid	  *variants = palloc(sizeof(TaUuid) * demand->ngroups);
	TaUuid	  *warehouses = palloc(sizeof(TaUuid) * demand->ngroups);
	Datum	   values[4];

	for (int g = 0; g < demand->ngroups; g++)
	{
		products[g] = demand->groups[g].product_id;
		variants[g] = demand->groups[g].variant_id;
		warehouses[g] = demand->groups[g].warehouse_id;
	}
	values[0] = ta_uuid_array(products, demand->ngroups);
	values[1] = ta_nullable_uuid_array(variants, demand->ngroups);
	values[2] = ta_nullable_uuid_array(warehouses, demand->ngroups);
	values[3] = TimestampTzGetDatum(until);

	ta_execute(finder->nspid, statement, SPI_OK_SELECT, values, NULL);
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		Found *found = next_found(finder);

		found->group = ta_spi_int4(r, 1) - 1;
		found->id = ta_spi_uuid(r, 2);
		found->available = ta_spi_int4(r, 3);
		found->priority = ta_spi_int4(r, 4);
		found->warehouse = ta_spi_text(r, 5);
		found->tid = ta_spi_tid(r, 6);
		found->stripe = ta_spi_int4(r, 7);
		found->warehouse_id = ta_spi_uuid(r, 8);
	}
}

/* Makes the demand's rows and candidates of what was found. */
static void
list_rows(TaDemand *demand, Finder *finder, bool whole)
{
	qsort(finder->found, finder->nfound, sizeof(Found), compare_found);

	demand->whole = whole;
	demand->striped = false;
	demand->rows = palloc0(sizeof(TaStockRow) * Max(finder->nfound, 1));
	demand->candidates = palloc0(sizeof(TaCandidate) * Max(finder->nfound, 1));
	demand->nrows = 0;
	demand->ncandidates = 0;
	for (int g = 0; g < demand->ngroups; g++)
	{
		demand->groups[g].first_candidate = 0;
		demand->groups[g].ncandidates = 0;
		if (whole)
			demand->groups[g].nstripes = 1;
	}
	for (int f = 0; f < finder->nfound; f++)
	{
		Found		  *found = &finder->found[f];
		TaDemandGroup *group = &demand->groups[found->group];
		TaStockRow	  *row;

		if (demand->nrows == 0 || ta_compare_uuids(&demand->rows[demand->nrows - 1].id, &found->id) != 0)
		{
			row = &demand->rows[demand->nrows++];
			row->id = found->id;
			row->tid = found->tid;
			row->group = found->group;
			row->warehouse_id = found->warehouse_id;
			row->warehouse = found->warehouse;
			row->priority = found->priority;
			row->stripe = found->stripe;
			row->available = found->available;
		}
		else
		{
			/* for another group, or another version of it */
			row = &demand->rows[demand->nrows - 1];
			row->available = Max(row->available, found->available);
		}
		demand->striped |= found->stripe > 0;
		if (whole && found->available > 0)
			group->nstripes = Max(group->nstripes, found->stripe + 1);
		if (f > 0 && compare_found(&finder->found[f - 1], found) == 0)
			continue;
		demand->candidates[demand->ncandidates].group = found->group;
		demand->candidates[demand->ncandidates].row = row;
		demand->ncandidates++;
	}
	for (int r = 0; r < demand->nrows; r++)
	{
		TaStockRow *row = &demand->rows[r];
		int			n = Max(demand->groups[row->group].nstripes, row->stripe + 1);

		row->rank = n == 1 ? 0 : (row->stripe + n - ta_stripes_own(n)) % n;
	}
	qsort(demand->candidates, demand->ncandidates, sizeof(TaCandidate), compare_candidates);
	for (int c = demand->ncandidates - 1; c >= 0; c--)
	{
		TaDemandGroup *group = &demand->groups[demand->candidates[c].group];

		group->first_candidate = c;
		group->ncandidates++;
	}
}

/*
 * Finds the rows that may serve the demand and reads what they hold, in one
 * snapshot where the list is to be whole.  The finder stays open to lock them.
 */
static void
find_rows(Oid nspid, TaDemand *demand, bool whole, Finder *finder)
{
	memset(finder, 0, sizeof(Finder));
	finder->nspid = nspid;
	finder->direct = find_directly(finder, demand, whole);
	if (!finder->direct)
	{
		finder_close(finder);
		finder->nfound = 0;
		whole = true;
		find_by_statement(finder, demand, &find_candidates, 0);
	}
	list_rows(demand, finder, whole);
	if (whole)
		for (int g = 0; g < demand->ngroups; g++)
			ta_stripes_seen(nspid, &demand->groups[g], demand->groups[g].nstripes);
}

/* ---------------------------------------------------------------------
 * Locking rows
 * ---------------------------------------------------------------------
 */

static TaRowReader *
stock_reader(Finder *finder)
{
	if (finder->by_product != NULL)
		return finder->by_product;
	return finder->stripe_of_product != NULL ? finder->stripe_of_product : finder->stripe_of_variant;
}

/* What a row has, once it is locked. */
static void
hold_row(TaStockRow *row, int32 available)
{
	row->available = available;
	row->held = true;
	row->busy = false;
}

/* Locks a row without waiting; newest as for ta_reader_try_lock. */
static TaLockResult
try_row(Finder *finder, TaStockRow *row, bool newest)
{
	TaLockResult result;

	if (finder->direct)
	{
		Datum values[STOCK_COLUMNS];
		bool  nulls[STOCK_COLUMNS];

		result = ta_reader_try_lock(stock_reader(finder), &row->tid, newest, values, nulls);
		if (result == TA_LOCKED)
			hold_row(row, DatumGetInt32(values[STOCK_ON_HAND]) - DatumGetInt32(values[STOCK_RESERVED]));
	}
	else
	{
		Datum id = UUIDPGetDatum(&row->id);

		Assert(newest);
		result = TA_BUSY;
		if (ta_execute(finder->nspid, &lock_free_row, SPI_OK_SELECT, &id, NULL) > 0)
		{
			row->tid = ta_spi_tid(0, 1);
			hold_row(row, ta_spi_int4(0, 2));
			result = TA_LOCKED;
		}
	}
	row->busy = result == TA_BUSY || result == TA_CHANGED;
	return result;
}

/*
 * Locks a row, waiting for whoever has it; false where it is gone.  A row that
 * was waited for is remembered as one that is asked for much.
 */
static bool
lock_row_in_order(Finder *finder, TaDemand *demand, TaStockRow *row)
{
	if (row->held || try_row(finder, row, true) == TA_LOCKED)
		return true;

	ta_stripes_contended(finder->nspid, &demand->groups[row->group], row);
	if (finder->direct)
	{
		Datum values[STOCK_COLUMNS];
		bool  nulls[STOCK_COLUMNS];

		if (!ta_reader_lock(stock_reader(finder), &row->tid, values, nulls))
			return false;
		hold_row(row, DatumGetInt32(values[STOCK_ON_HAND]) - DatumGetInt32(values[STOCK_RESERVED]));
	}
	else
	{
		Datum id = UUIDPGetDatum(&row->id);

		if (ta_execute(finder->nspid, &lock_row, SPI_OK_SELECT, &id, NULL) == 0)
			return false;
		row->tid = ta_spi_tid(0, 1);
		hold_row(row, ta_spi_int4(0, 2));
	}
	row->waited = true;
	return true;
}

/* Locks rows in the lock order: those that the plan takes from, or every one. */
static void
lock_rows_in_order(Finder *finder, TaDemand *demand, bool every_row)
{
	for (int r = 0; r < demand->nrows; r++)
	{
		TaStockRow *row = &demand->rows[r];

		CHECK_FOR_INTERRUPTS();
		if ((every_row || row->taken > 0) && !lock_row_in_order(finder, demand, row))
			row->available = 0;
	}
}

/* ---------------------------------------------------------------------
 * Serving
 * ---------------------------------------------------------------------
 */

/*
 * Plans to take quantity units from candidates first..last-1, which have them:
 * from one row if one has it all, for each more is a lock more, and from one
 * that we hold or nobody has rather than wait.
 */
static void
take(TaDemand *demand, int first, int last, int32 quantity)
{
	TaStockRow *whole = NULL;
	int64		free_units = 0;

	for (int c = first; c < last; c++)
	{
		TaStockRow *row = demand->candidates[c].row;
		int32		units = row->available - row->taken;

		if (!row->busy)
			free_units += units;
		if (units < quantity)
			continue;
		if (whole == NULL || (row->held && !whole->held) || (!row->busy && whole->busy))
			whole = row;
	}
	if (whole != NULL && (!whole->busy || free_units < quantity))
	{
		whole->taken += quantity;
		return;
	}

	/* the largest first: the fewest rows */
	while (quantity > 0)
	{
		TaStockRow *largest = NULL;
		int32		units;

		for (int c = first; c < last; c++)
		{
			TaStockRow *row = demand->candidates[c].row;

			if (row->available - row->taken <= 0)
				continue;
			if (largest == NULL || (largest->busy && !row->busy) ||
				(largest->busy == row->busy &&
				 row->available - row->taken > largest->available - largest->taken))
				largest = row;
		}
		if (largest == NULL)
			elog(ERROR, "units of a plan are missing");
		units = Min(largest->available - largest->taken, quantity);
		largest->taken += units;
		quantity -= units;
	}
}

/*
 * Serves one line: from the first warehouse that has it all, else from several
 * in their order.  Where only some rows are known nobody can say what a
 * warehouse has not, so then from the very first or not at all.
 */
static bool
serve_line(TaDemand *demand, int i)
{
	TaDemandGroup *group = &demand->groups[demand->group_of[i]];
	int			   end = group->first_candidate + group->ncandidates;
	int			   first = group->first_candidate;
	int32		   quantity = demand->lines[i].quantity;
	int64		   everywhere = 0;

	while (first < end)
	{
		int	  last = first;
		int64 units = 0;

		while (last < end && strcmp(demand->candidates[last].row->warehouse,
									demand->candidates[first].row->warehouse) == 0)
		{
			units += demand->candidates[last].row->available - demand->candidates[last].row->taken;
			last++;
		}
		if (units >= quantity)
		{
			take(demand, first, last, quantity);
			return true;
		}
		if (!demand->whole)
			return false;
		everywhere += units;
		first = last;
	}

	if (everywhere < quantity)
		return false;
	first = group->first_candidate;
	while (quantity > 0)
	{
		int	  last = first;
		int64 units = 0;
		int32 taken;

		while (last < end && strcmp(demand->candidates[last].row->warehouse,
									demand->candidates[first].row->warehouse) == 0)
		{
			units += demand->candidates[last].row->available - demand->candidates[last].row->taken;
			last++;
		}
		taken = (int32) Min(units, quantity);
		take(demand, first, last, taken);
		quantity -= taken;
		first = last;
	}
	return true;
}

/*
 * Serves all lines; false if some fall short.  Lines that name a warehouse have
 * no choice, so they are served before those that have one.
 */
static bool
serve_demand(TaDemand *demand)
{
	bool served = true;

	for (int r = 0; r < demand->nrows; r++)
		demand->rows[r].taken = 0;
	for (int i = 0; i < demand->nlines; i++)
		if (!demand->lines[i].warehouse_id.isnull)
			served = serve_line(demand, i) && served;
	for (int i = 0; i < demand->nlines; i++)
		if (demand->lines[i].warehouse_id.isnull)
			served = serve_line(demand, i) && served;
	return served;
}

/* Frees expired parts of the demand's rows, which are held; false if there were none. */
static bool
sweep_demand(Oid nspid, TaDemand *demand)
{
	pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * Max(demand->nrows, 1));
	Datum	   values[3];
	uint64	   freed;

	for (int r = 0; r < demand->nrows; r++)
		ids[r] = demand->rows[r].id;
	values[0] = ta_uuid_array(ids, demand->nrows);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = Int32GetDatum(SWEEP_LIMIT);

	freed = ta_execute(nspid, &sweep_expired, SPI_OK_UPDATE_RETURNING, values, NULL);
	for (uint64 i = 0; i < freed; i++)
	{
		pg_uuid_t	id = ta_spi_uuid(i, 1);
		TaStockRow *row = ta_find_by_id(&id, demand->rows, demand->nrows, sizeof(TaStockRow));

		if (row == NULL)
			elog(ERROR, "a row came back that was not asked for");
		row->available = ta_spi_int4(i, 2);
		row->tid = ta_spi_tid(i, 3);
	}
	return freed > 0;
}

static int
compare_line_skus(const void *a, const void *b)
{
	return strcmp((*(TaLine *const *) a)->sku, (*(TaLine *const *) b)->sku);
}

/*
 * Raises the error for a demand that cannot be served, listing every SKU that
 * falls short: what all its lines want together, and what there is for them.
 */
static void
pg_attribute_noreturn()
	raise_shortage(TaDemand *demand, int sqlstate)
{
	TaLine		 **sorted = palloc(sizeof(TaLine *) * demand->nlines);
	StringInfoData detail;
	const char	  *separator = "";

	for (int i = 0; i < demand->nlines; i++)
		sorted[i] = &demand->lines[i];
	qsort(sorted, demand->nlines, sizeof(TaLine *), compare_line_skus);

	initStringInfo(&detail);
	appendStringInfoChar(&detail, '[');
	for (int first = 0, last; first < demand->nlines; first = last)
	{
		int64 requested = 0;
		int64 available = 0;
		bool  falls_short = false;
		bool  anywhere = false;

		for (last = first; last < demand->nlines &&
						   strcmp(sorted[first]->sku, sorted[last]->sku) == 0;
			 last++)
		{
			requested += sorted[last]->quantity;
			anywhere |= sorted[last]->warehouse_id.isnull;
		}

		/* the groups of one SKU are adjacent among its lines */
		for (int i = first; i < last; i++)
		{
			int			   g = demand->group_of[sorted[i] - demand->lines];
			TaDemandGroup *group = &demand->groups[g];
			int64		   wanted = 0;
			int64		   there = 0;
			bool		   counted = false;

			for (int j = first; j < last; j++)
			{
				if (demand->group_of[sorted[j] - demand->lines] == g)
				{
					counted |= j < i;
					wanted += sorted[j]->quantity;
				}
			}
			if (counted || wanted == 0)
				continue;
			for (int c = group->first_candidate; c < group->first_candidate + group->ncandidates; c++)
				there += demand->candidates[c].row->available;
			falls_short |= wanted > there;

			/* a line that may come from anywhere sees every row there is */
			if (!anywhere || group->warehouse_id.isnull)
				available += there;
		}
		if (!falls_short && requested <= available)
			continue;

		appendStringInfo(&detail, "%s{\"sku\": ", separator);
		escape_json(&detail, sorted[first]->sku);
		appendStringInfo(&detail, ", \"requested\": " INT64_FORMAT ", \"available\": " INT64_FORMAT "}",
						 requested, available);
		separator = ", ";
	}
	appendStringInfoChar(&detail, ']');

	if (sqlstate == TA_ERRCODE_RESERVATION_NOT_ACTIVE)
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg("reservation has ended and its stock is gone"),
				 errdetail_internal("%s", detail.data),
				 errhint("Cancel the order, or try again when there is stock.")));
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("insufficient stock"),
			 errdetail_internal("%s", detail.data),
			 errhint("Ask for at most what is available.")));
}

/* ---------------------------------------------------------------------
 * Securing
 * ---------------------------------------------------------------------
 */

/* What came of an attempt. */
typedef enum Outcome
{
	SERVED,
	BLOCKED, /* there is enough, but somebody has it in his hands */
	UNCLEAR	 /* only who holds every row can say */
} Outcome;

/* What to do next with a list of rows. */
typedef enum Step
{
	STEP_DONE,
	STEP_AGAIN,		/* look again */
	STEP_WHOLE,		/* look again, at all rows */
	STEP_SAVEPOINT, /* look again, in a savepoint */
	STEP_BLOCKED,
	STEP_SHORT
} Step;

/*
 * Whether a row that serves is all that its warehouse has, and rows of its SKU
 * had to be waited for.  The first of them in the lock order is where the
 * queue forms, whichever serves.
 */
static bool
is_queue(const TaDemand *demand, const TaStockRow *row)
{
	bool waited = false;

	if (row->stripe != 0)
		return false;
	for (int r = 0; r < demand->nrows; r++)
	{
		const TaStockRow *other = &demand->rows[r];

		if (other->group != row->group)
			continue;
		waited |= other->waited;
		if (other->stripe > 0 && other->available > 0 &&
			ta_compare_uuids(&other->warehouse_id, &row->warehouse_id) == 0)
			return false;
	}
	return waited;
}

/* Takes the units from the rows, which are held. */
static void
use_units(Oid nspid, TaDemand *demand, TaUse use)
{
	TaStockChange *changes = palloc0(sizeof(TaStockChange) * Max(demand->nrows, 1));
	int			   n = 0;

	for (int r = 0; r < demand->nrows; r++)
	{
		TaStockRow *row = &demand->rows[r];

		if (row->taken == 0)
			continue;
		Assert(row->held);
		changes[n].id = row->id;
		changes[n].tid = row->tid;
		if (use == TA_USE_RESERVE)
			changes[n].reserved = row->taken;
		else
			changes[n].on_hand = -row->taken;
		n++;
	}
	ta_change_stock(nspid, changes, n);
	pfree(changes);

	for (int r = 0; r < demand->nrows; r++)
		if (demand->rows[r].taken > 0 && is_queue(demand, &demand->rows[r]))
			ta_stripes_spread_if_hot(nspid, &demand->groups[demand->rows[r].group], &demand->rows[r]);
}

/* The same demand, of which another list of rows can be made. */
static TaDemand
same_demand(const TaDemand *demand)
{
	TaDemand copy = *demand;

	copy.groups = palloc(sizeof(TaDemandGroup) * demand->ngroups);
	memcpy(copy.groups, demand->groups, sizeof(TaDemandGroup) * demand->ngroups);
	return copy;
}

/*
 * Waits for a transaction that is about to add units, if with what such
 * transactions add there would be enough.  False: there is nobody to wait for.
 */
static bool
wait_for_units(Oid nspid, TaDemand *demand)
{
	TaDemand	  hoped = same_demand(demand);
	Finder		  finder;
	TaRowReader	 *reader;
	TransactionId writer = InvalidTransactionId;

	/* every row, committed or not, with the most that it has in any version */
	memset(&finder, 0, sizeof(Finder));
	finder.nspid = nspid;
	reader = ta_reader_open_dirty(ta_store_table(nspid, "inventory_stock"),
								  product_columns, STOCK_COLUMNS);
	finder.warehouses = ta_reader_open(ta_store_table(nspid, "warehouses"), false,
									   warehouse_columns, lengthof(warehouse_columns));
	if (reader != NULL && finder.warehouses != NULL)
	{
		for (int g = 0; g < demand->ngroups; g++)
		{
			TransactionId adds;

			ta_reader_find(reader, UUIDPGetDatum(&demand->groups[g].product_id));
			adds = collect(&finder, reader, &demand->groups[g], g);
			if (TransactionIdIsValid(adds))
				writer = adds;
		}
	}
	if (reader != NULL)
		ta_reader_close(reader);
	finder_close(&finder);
	if (!TransactionIdIsValid(writer))
		return false;

	/* what has expired is known from before */
	for (int r = 0; r < demand->nrows; r++)
	{
		Found *found = next_found(&finder);

		memset(found, 0, sizeof(Found));
		found->id = demand->rows[r].id;
		found->group = demand->rows[r].group;
		found->stripe = demand->rows[r].stripe;
		found->available = demand->rows[r].available;
		found->warehouse_id = demand->rows[r].warehouse_id;
		found->warehouse = demand->rows[r].warehouse;
		found->priority = demand->rows[r].priority;
	}
	list_rows(&hoped, &finder, true);
	if (!serve_demand(&hoped))
		return false;
	XactLockTableWait(writer, NULL, NULL, XLTW_None);
	return true;
}

/*
 * Raises the shortage where there is one.  Judged by one snapshot of now, in
 * which nothing that is in progress has happened.  Returns whether to look
 * again at once, having waited; else only who holds every row can say more.
 * The caller holds no rows.
 */
static bool
judge(Oid nspid, TaDemand *demand, int shortage_code)
{
	TaDemand committed = same_demand(demand);
	Finder	 finder;

	memset(&finder, 0, sizeof(Finder));
	finder.nspid = nspid;
	find_by_statement(&finder, &committed, &find_committed, GetCurrentTimestamp());
	list_rows(&committed, &finder, true);
	if (serve_demand(&committed))
		return false;
	if (!ta_direct_rows())
		return false;
	if (!wait_for_units(nspid, &committed))
		raise_shortage(&committed, shortage_code);
	return true;
}

/*
 * Locks every row of a demand that has no stripes, in the lock order, and serves
 * it.  In a savepoint: while we waited the stock may have been spread, and then
 * the rows are to be given back before a new one is waited for.
 */
static Step
secure_unstriped(Oid nspid, TaDemand *demand, TaUse use, Finder *finder)
{
	lock_rows_in_order(finder, demand, true);
	finder_close(finder);
	if (!serve_demand(demand))
		return STEP_AGAIN;
	use_units(nspid, demand, use);
	return STEP_DONE;
}

/* Locks the rows of the plan that are not held yet, without waiting. */
static void
try_planned_rows(Finder *finder, TaDemand *demand)
{
	for (int r = 0; r < demand->nrows; r++)
	{
		TaStockRow *row = &demand->rows[r];

		CHECK_FOR_INTERRUPTS();
		if (row->taken > 0 && !row->held && try_row(finder, row, true) == TA_GONE)
			row->available = 0;
	}
}

/* Of the rows that the plan takes from: how many, are any busy, are any not held. */
static int
count_planned(TaDemand *demand, bool *any_busy, bool *any_loose)
{
	int n = 0;

	*any_busy = *any_loose = false;
	for (int r = 0; r < demand->nrows; r++)
	{
		TaStockRow *row = &demand->rows[r];

		if (row->taken == 0)
			continue;
		n++;
		*any_busy |= row->busy;
		*any_loose |= !row->held;
	}
	return n;
}

static TaStockRow *
only_planned(TaDemand *demand)
{
	for (int r = 0; r < demand->nrows; r++)
		if (demand->rows[r].taken > 0)
			return &demand->rows[r];
	return NULL;
}

/*
 * Serves a demand from one list of rows, from those that nobody else has.
 * guarded: in a savepoint, so that rows may be locked of which several are
 * needed.
 */
static Step
serve_from_free(Oid nspid, TaDemand *demand, TaUse use, Finder *finder, bool guarded)
{
	bool fresh = true;

	for (;;)
	{
		bool		any_busy;
		bool		any_loose;
		int			n;
		TaStockRow *row;

		if (!serve_demand(demand))
		{
			if (!demand->whole)
				return STEP_WHOLE;
			if (!fresh)
				return STEP_AGAIN;
			finder_close(finder);
			return STEP_SHORT;
		}
		n = count_planned(demand, &any_busy, &any_loose);
		if (any_busy)
			return demand->whole ? STEP_BLOCKED : STEP_WHOLE;

		if (guarded)
		{
			if (!any_loose)
			{
				finder_close(finder);
				use_units(nspid, demand, use);
				return STEP_DONE;
			}
			try_planned_rows(finder, demand);
			fresh = false;
			continue;
		}

		if (n > 1 || !finder->direct)
			return STEP_SAVEPOINT;
		row = only_planned(demand);
		if (row == NULL) /* nothing was asked for */
			return STEP_DONE;
		switch (try_row(finder, row, false))
		{
			case TA_LOCKED:
				finder_close(finder);
				use_units(nspid, demand, use);
				return STEP_DONE;
			case TA_BUSY:
				fresh = false;
				continue;
			case TA_CHANGED:
				/* in a snapshot that stands still it stays changed: as good as busy */
				if (!IsolationUsesXactSnapshot())
					return STEP_AGAIN;
				fresh = false;
				continue;
			case TA_GONE:
				return STEP_AGAIN;
		}
	}
}

/* An attempt to serve a demand, and what came of it. */
typedef struct Attempt
{
	Oid		  nspid;
	TaDemand *demand;
	TaUse	  use;
	bool	  whole;   /* look at all rows */
	bool	  guarded; /* in a savepoint */
	Step	  step;
	int		  shortage_code;
	TaUuid	  in_use; /* an expired reservation to wait for */
} Attempt;

/* Serves a demand from rows that nobody else has; keeps what it did if that is all. */
static bool
try_free(void *arg)
{
	Attempt *attempt = arg;
	Finder	 finder;

	find_rows(attempt->nspid, attempt->demand, attempt->whole, &finder);
	if (attempt->demand->whole && !attempt->demand->striped && serve_demand(attempt->demand))
		attempt->step = !attempt->guarded
							? STEP_SAVEPOINT
							: secure_unstriped(attempt->nspid, attempt->demand, attempt->use, &finder);
	else
		attempt->step = serve_from_free(attempt->nspid, attempt->demand, attempt->use, &finder,
										attempt->guarded);
	finder_close(&finder);
	return attempt->step == STEP_DONE;
}

/* Serves a demand from rows that nobody else has, if there are such. */
static Outcome
secure_from_free(Attempt *attempt)
{
	TaDemand *demand = attempt->demand;
	bool	  known_striped = false;

	for (int g = 0; g < demand->ngroups; g++)
		known_striped |= ta_stripes_known(attempt->nspid, &demand->groups[g]) > 1;
	attempt->whole = demand->ngroups > 1 && !known_striped;
	attempt->guarded = demand->ngroups > 1;

	for (int round = 0; round < FREE_ROUNDS; round++)
	{
		CHECK_FOR_INTERRUPTS();
		if (attempt->guarded)
			(void) ta_in_savepoint(try_free, attempt);
		else
			(void) try_free(attempt);
		switch (attempt->step)
		{
			case STEP_DONE:
				return SERVED;
			case STEP_AGAIN:
				break;
			case STEP_WHOLE:
				attempt->whole = true;
				break;
			case STEP_SAVEPOINT:
				attempt->guarded = attempt->whole = true;
				break;
			case STEP_BLOCKED:
				return BLOCKED;
			case STEP_SHORT:
				if (IsolationUsesXactSnapshot() ||
					!judge(attempt->nspid, demand, attempt->shortage_code))
					return UNCLEAR;
				round = 0;
				break;
		}
	}
	return BLOCKED;
}

/*
 * Waits, in the lock order, for rows that together have enough.  False where
 * they had no longer when they were free.
 */
static bool
try_in_order(void *arg)
{
	Attempt	 *attempt = arg;
	TaDemand *demand = attempt->demand;
	Finder	  finder;
	bool	  served;

	find_rows(attempt->nspid, demand, true, &finder);
	served = serve_demand(demand);
	if (served)
		lock_rows_in_order(&finder, demand, false);
	finder_close(&finder);
	if (served)
	{
		for (int r = 0; r < demand->nrows; r++)
			if (!demand->rows[r].held)
				demand->rows[r].available = 0;
		served = serve_demand(demand);
		if (served)
			use_units(attempt->nspid, demand, attempt->use);
	}
	return served;
}

/* Whether the rows that are held are all that there are. */
static bool
holds_all_rows(Oid nspid, TaDemand *demand)
{
	TaDemand now = same_demand(demand);
	Finder	 finder;

	find_rows(nspid, &now, true, &finder);
	finder_close(&finder);
	for (int r = 0; r < now.nrows; r++)
	{
		TaStockRow *row = ta_find_by_id(&now.rows[r].id, demand->rows, demand->nrows, sizeof(TaStockRow));

		if (row == NULL || !row->held)
			return false;
	}
	return true;
}

/*
 * Finds an expired reservation of the demand's rows, which are held and swept:
 * one that somebody else has locked.  Null where with the units of all such
 * there would still be too little.
 */
static TaUuid
expired_in_use(Oid nspid, TaDemand *demand)
{
	TaUuid		none = {.isnull = true};
	TaDemand	hoped = same_demand(demand);
	Finder		finder;
	TimestampTz now = GetCurrentTimestamp();
	pg_uuid_t  *ids = palloc(sizeof(pg_uuid_t) * Max(demand->nrows, 1));
	Datum		values[2];

	memset(&finder, 0, sizeof(Finder));
	finder.nspid = nspid;
	find_by_statement(&finder, &hoped, &find_committed, now);
	list_rows(&hoped, &finder, true);
	if (!serve_demand(&hoped))
		return none;

	for (int r = 0; r < demand->nrows; r++)
		ids[r] = demand->rows[r].id;
	values[0] = ta_uuid_array(ids, demand->nrows);
	values[1] = TimestampTzGetDatum(now);
	if (ta_execute(nspid, &find_expired_in_use, SPI_OK_SELECT, values, NULL) == 0)
		return none;
	return ta_spi_nullable_uuid(0, 1);
}

/* Waits for whoever has an expired reservation, and gives it back at once. */
static bool
wait_for_reservation(void *arg)
{
	Attempt *attempt = arg;
	Datum	 id = UUIDPGetDatum(&attempt->in_use.value);

	ta_execute(attempt->nspid, &lock_reservation, SPI_OK_SELECT, &id, NULL);
	return false;
}

/*
 * Locks every row that there is, in the lock order; then what they have is all
 * there can be.  Serves the demand or raises the shortage; false where there
 * are rows that were made meanwhile, or expired units that somebody is taking
 * may yet be had: in_use is then whom to wait for.
 *
 * Who wants a reservation's own stock back (the code is not TA002) may have
 * others in his hands and must not wait for one.
 */
static bool
try_all(void *arg)
{
	Attempt	 *attempt = arg;
	TaDemand *demand = attempt->demand;
	Finder	  finder;
	bool	  served;

	find_rows(attempt->nspid, demand, true, &finder);
	lock_rows_in_order(&finder, demand, true);
	finder_close(&finder);

	served = serve_demand(demand);
	if (!served && !IsolationUsesXactSnapshot() && !holds_all_rows(attempt->nspid, demand))
		return false;
	while (!served && sweep_demand(attempt->nspid, demand))
		served = serve_demand(demand);
	if (!served && !IsolationUsesXactSnapshot() &&
		attempt->shortage_code == TA_ERRCODE_INSUFFICIENT_STOCK)
	{
		attempt->in_use = expired_in_use(attempt->nspid, demand);
		if (!attempt->in_use.isnull)
			return false;
	}
	if (!served)
		raise_shortage(demand, attempt->shortage_code);
	use_units(attempt->nspid, demand, attempt->use);
	return true;
}

/*
 * ta_secure_demand
 *		Finds and locks stock rows that serve resolved lines, and takes the units
 *		from them; or raises shortage_code and nothing is changed.
 *
 * Inside a frame.  Afterwards the rows with taken > 0 are those that served, and
 * are held until the transaction ends; with every_row so are all others that
 * might have, which is what somebody needs who is going to add to them.
 * shortage_code is TA_ERRCODE_INSUFFICIENT_STOCK or
 * TA_ERRCODE_RESERVATION_NOT_ACTIVE; 40001 where a stricter isolation level than
 * READ COMMITTED forbids to go on.
 */
void
ta_secure_demand(Oid nspid, TaDemand *demand, TaLine *lines, int nlines,
				 TaUse use, bool every_row, int shortage_code)
{
	Attempt attempt = {.nspid = nspid, .demand = demand, .use = use, .shortage_code = shortage_code};

	memset(demand, 0, sizeof(TaDemand));
	demand->lines = lines;
	demand->nlines = nlines;
	group_lines(demand);

	if (!every_row)
	{
		Outcome outcome = secure_from_free(&attempt);

		for (int round = 0; outcome == BLOCKED && round < WAITING_ROUNDS; round++)
		{
			if (ta_in_savepoint(try_in_order, &attempt))
				return;
			outcome = secure_from_free(&attempt);
		}
		if (outcome == SERVED)
			return;
	}
	for (;;)
	{
		attempt.in_use.isnull = true;
		if (ta_in_savepoint(try_all, &attempt))
			return;
		CHECK_FOR_INTERRUPTS();
		if (!attempt.in_use.isnull)
			(void) ta_in_savepoint(wait_for_reservation, &attempt);
	}
}
