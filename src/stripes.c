/*-------------------------------------------------------------------------
 *
 * stripes.c
 *	  Stock spread over several rows, so that many can have some at once.
 *
 * Stripe 0 is the row that every stock has.  stock_stripes says of those that
 * are spread, by stripe 0, over how many rows and since when; nothing that
 * reserves reads it.  The rows beyond that number, and all but stripe 0 of a
 * stock that was folded, stay: the ledger refers to them, and reservations keep
 * their parts until they end.  They have no units then but those that come back
 * to them, which serve like any others.
 *
 * Invariants: rows are made, units moved between them and stock_stripes is
 * written under the lock of stripe 0 alone; what is moved has a movement of type
 * "transfer" in each row's ledger, so that every row's sums hold.
 *
 * Lock order: stripe_stock locks all rows of the stock in ascending order of id.
 * What spreads or folds by itself holds stripe 0 and waits for no other.
 *
 * What a backend knows of stripes and of waiting is a hint: it decides where to
 * look first, and when to spread, never whether there are units.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "array_util.h"
#include "compat.h"
#include "request_util.h"
#include "spi_util.h"
#include "stock_writer.h"
#include "stripes.h"

#define MAX_STRIPES 1000

/* Stock is not spread where a row would get fewer units than this, or there would be fewer rows. */
#define MIN_UNITS	4
#define MIN_STRIPES 4

/* So many waits for a row within a second make it a hot one: of this backend, of all. */
#define HOT_WAITS		 3
#define HOT_WAITS_OF_ALL 8

/* Hints are forgotten where there are more. */
#define MAX_HINTS 4096

/* Stock that was not asked for by more than one in so many stripes has cooled ... */
#define COOL_SHARE 4

/* ... after this time, and this often a backend looks, in milliseconds. */
#define COOL_AFTER	  INT64CONST(300000)
#define COOL_INTERVAL 60000

#define SHARED_SLOTS 1024

typedef struct HintKey
{
	Oid		  nspid;
	pg_uuid_t sku; /* the variant, or else the product */
} HintKey;

typedef struct Hint
{
	HintKey		key;
	int			nstripes;
	TimestampTz waits_since;
	int			waits;
} Hint;

static HTAB *hints = NULL;

static bool auto_stripe = true;
static int	hot_stripes = 64;

/*
 * Waits by SKU, counted by all backends where the library is preloaded:
 * the second in the high half and the number in the low.  SKUs that share a slot
 * may be spread a little early, which harms nobody.
 */
static pg_atomic_uint64 *shared_waits = NULL;

/* A row of a stock that is spread, folded or evened out. */
typedef struct StripeRow
{
	int		  stripe;
	pg_uuid_t id;
	int32	  available; /* not of a row that is to be made */
	bool	  exists;
	int32	  change;
} StripeRow;

/* Which stock: a SKU in a warehouse. */
typedef struct Stock
{
	pg_uuid_t product_id;
	TaUuid	  variant_id;
	pg_uuid_t warehouse_id;
	pg_uuid_t id; /* of stripe 0 */
} Stock;

#define OF_STOCK                                                  \
	" s.product_id = $1 AND s.variant_id IS NOT DISTINCT FROM $2" \
	" AND s.warehouse_id = $3"

#define ROW_COLUMNS " s.stripe::pg_catalog.int4, s.id, s.quantity_on_hand - s.quantity_reserved"

static const TaStatement find_rows = {
	"SELECT" ROW_COLUMNS " FROM @store@.inventory_stock s WHERE" OF_STOCK " ORDER BY s.id",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

static const TaStatement lock_rows = {
	"SELECT" ROW_COLUMNS " FROM @store@.inventory_stock s WHERE" OF_STOCK " ORDER BY s.id FOR NO KEY UPDATE",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

static const TaStatement lock_free_rows = {
	"SELECT" ROW_COLUMNS " FROM @store@.inventory_stock s WHERE" OF_STOCK
	" ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

static const TaStatement make_base_row = {
	"INSERT INTO @store@.inventory_stock (product_id, variant_id, warehouse_id)"
	" VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

/*
 * Under the lock of stripe 0 the rows are missing.  A snapshot that stands still may
 * not see them though they are there: then the conflict ends in 40001.
 */
static const TaStatement make_rows = {
	"INSERT INTO @store@.inventory_stock (product_id, variant_id, warehouse_id, stripe, quantity_on_hand)"
	" SELECT $1, $2, $3, d.stripe, d.quantity FROM unnest($4, $5) AS d(stripe, quantity)"
	" ON CONFLICT DO NOTHING RETURNING stripe::pg_catalog.int4, id",
	5,
	{UUIDOID, UUIDOID, UUIDOID, INT4ARRAYOID, INT4ARRAYOID}};

static const TaStatement change_rows = {
	"UPDATE @store@.inventory_stock s SET quantity_on_hand = s.quantity_on_hand + d.quantity"
	"  FROM unnest($1, $2) AS d(id, quantity) WHERE s.id = d.id",
	2,
	{UUIDARRAYOID, INT4ARRAYOID}};

static const TaStatement note_stripes = {
	"INSERT INTO @store@.stock_stripes AS t (stock_id, stripes, automatic) VALUES ($1, $2, $3)"
	" ON CONFLICT (stock_id) DO UPDATE"
	" SET stripes = EXCLUDED.stripes, automatic = EXCLUDED.automatic,"
	"     since = EXCLUDED.since, sampled_at = EXCLUDED.sampled_at, sample = NULL",
	3,
	{UUIDOID, INT4OID, BOOLOID}};

static const TaStatement read_stripes = {
	"SELECT t.stripes::pg_catalog.int4 FROM @store@.stock_stripes t WHERE t.stock_id = $1",
	1,
	{UUIDOID}};

static const TaStatement forget_stripes = {
	"DELETE FROM @store@.stock_stripes t WHERE t.stock_id = $1",
	1,
	{UUIDOID}};

/* The versions of a stock's rows: one that is the same as before was not touched. */
#define SAMPLE                                                                                \
	"SELECT pg_catalog.array_agg(s.xmin::pg_catalog.text::pg_catalog.int8 ORDER BY s.stripe)" \
	"  FROM @store@.inventory_stock b JOIN @store@.inventory_stock s"                         \
	"    ON s.product_id = b.product_id AND s.variant_id IS NOT DISTINCT FROM b.variant_id"   \
	"   AND s.warehouse_id = b.warehouse_id AND s.stripe < t.stripes"                         \
	" WHERE b.id = t.stock_id"

static const TaStatement find_cooled = {
	"SELECT b.product_id, b.variant_id, b.warehouse_id, b.id"
	"  FROM @store@.stock_stripes t JOIN @store@.inventory_stock b ON b.id = t.stock_id"
	" WHERE t.automatic AND t.sampled_at <= $1 AND t.sample IS NOT NULL"
	"   AND (SELECT count(*) FROM unnest(t.sample, (" SAMPLE ")) AS v(before, now)"
	"         WHERE v.before IS DISTINCT FROM v.now) <= t.stripes / $2",
	2,
	{TIMESTAMPTZOID, INT4OID}};

/* Writes down the versions of now, for find_cooled to compare with later ones. */
static const TaStatement sample_stripes = {
	"UPDATE @store@.stock_stripes t SET sampled_at = pg_catalog.clock_timestamp(), sample = (" SAMPLE ")"
	" WHERE t.stock_id IN (SELECT d.stock_id FROM @store@.stock_stripes d"
	"                       WHERE d.automatic AND d.sampled_at <= $1 FOR NO KEY UPDATE SKIP LOCKED)",
	1,
	{TIMESTAMPTZOID}};

/* ---------------------------------------------------------------------
 * Hints
 * ---------------------------------------------------------------------
 */

static void
set_hint_key(HintKey *key, Oid nspid, const TaDemandGroup *group)
{
	memset(key, 0, sizeof(HintKey));
	key->nspid = nspid;
	key->sku = group->variant_id.isnull ? group->product_id : group->variant_id.value;
}

static Hint *
find_hint(Oid nspid, const TaDemandGroup *group, bool make)
{
	HintKey key;
	Hint   *hint;
	bool	found;

	if (hints == NULL && !make)
		return NULL;
	if (hints != NULL && make && hash_get_num_entries(hints) >= MAX_HINTS)
	{
		hash_destroy(hints);
		hints = NULL;
	}
	if (hints == NULL)
	{
		HASHCTL ctl = {0};

		ctl.keysize = sizeof(HintKey);
		ctl.entrysize = sizeof(Hint);
		ctl.hcxt = CacheMemoryContext;
		hints = hash_create("techally stripe hints", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	set_hint_key(&key, nspid, group);
	hint = hash_search(hints, &key, make ? HASH_ENTER : HASH_FIND, &found);
	if (make && !found)
	{
		hint->nstripes = 1;
		hint->waits_since = 0;
		hint->waits = 0;
	}
	return hint;
}

/*
 * ta_stripes_known
 *		Over how many rows a SKU's stock was spread when this backend last saw
 *		all of them; 1 where it never did.
 */
int
ta_stripes_known(Oid nspid, const TaDemandGroup *group)
{
	Hint *hint = find_hint(nspid, group, false);

	return hint == NULL ? 1 : hint->nstripes;
}

/*
 * ta_stripes_seen
 *		Remembers over how many rows a SKU's stock is spread.
 */
void
ta_stripes_seen(Oid nspid, const TaDemandGroup *group, int nstripes)
{
	Hint *hint = find_hint(nspid, group, nstripes > 1);

	if (hint != NULL)
		hint->nstripes = nstripes;
}

/*
 * ta_stripes_own
 *		The stripe at which this backend begins: neighbours begin at others.
 */
int
ta_stripes_own(int nstripes)
{
	return nstripes <= 1 ? 0 : TA_BACKEND_NUMBER % nstripes;
}

/* ---------------------------------------------------------------------
 * Contention
 * ---------------------------------------------------------------------
 */

static pg_atomic_uint64 *
shared_slot(const TaDemandGroup *group)
{
	const pg_uuid_t *sku = group->variant_id.isnull ? &group->product_id : &group->variant_id.value;
	uint32			 hash;

	if (shared_waits == NULL)
		return NULL;
	memcpy(&hash, sku->data, sizeof(hash));
	return &shared_waits[(hash ^ MyDatabaseId) % SHARED_SLOTS];
}

/*
 * ta_stripes_contended
 *		Counts that a row was wanted which somebody else had.
 */
void
ta_stripes_contended(Oid nspid, const TaDemandGroup *group, const TaStockRow *row)
{
	TimestampTz		  now;
	Hint			 *hint;
	pg_atomic_uint64 *slot;

	if (!auto_stripe || row->stripe != 0)
		return;
	now = GetCurrentTimestamp();
	hint = find_hint(nspid, group, true);
	if (now - hint->waits_since > USECS_PER_SEC)
	{
		hint->waits_since = now;
		hint->waits = 0;
	}
	hint->waits++;

	slot = shared_slot(group);
	if (slot != NULL)
	{
		uint64 second = (uint64) (now / USECS_PER_SEC) << 32;
		uint64 old = pg_atomic_read_u64(slot);

		while (!pg_atomic_compare_exchange_u64(slot, &old,
											   (old >> 32) == (second >> 32) ? old + 1 : second + 1))
			;
	}
}

/* Whether a SKU is waited for so much that its stock should be spread. */
static bool
is_hot(Oid nspid, const TaDemandGroup *group)
{
	Hint			 *hint = find_hint(nspid, group, false);
	pg_atomic_uint64 *slot = shared_slot(group);

	if (hint != NULL && hint->waits >= HOT_WAITS)
		return true;
	return slot != NULL && (pg_atomic_read_u64(slot) & PG_UINT32_MAX) >= HOT_WAITS_OF_ALL;
}

/* ---------------------------------------------------------------------
 * Spreading and folding
 * ---------------------------------------------------------------------
 */

static bool
may(Oid relid, AclMode mode)
{
	return OidIsValid(relid) && pg_class_aclcheck(relid, GetUserId(), mode) == ACLCHECK_OK;
}

/* Whether the store has stripes, and the caller may make them. */
static bool
can_spread(Oid nspid)
{
	Oid stripes = get_relname_relid("stock_stripes", nspid);
	Oid stock = get_relname_relid("inventory_stock", nspid);
	Oid movements = get_relname_relid("stock_movements", nspid);

	return may(stripes, ACL_SELECT) && may(stripes, ACL_INSERT) && may(stripes, ACL_UPDATE) &&
		   may(stripes, ACL_DELETE) && may(stock, ACL_SELECT) && may(stock, ACL_INSERT) &&
		   may(stock, ACL_UPDATE) && may(movements, ACL_INSERT);
}

static void
stock_values(const Stock *stock, Datum *values, char *nulls)
{
	values[0] = UUIDPGetDatum(&stock->product_id);
	values[1] = UUIDPGetDatum(&stock->variant_id.value);
	values[2] = UUIDPGetDatum(&stock->warehouse_id);
	memset(nulls, ' ', 3);
	if (stock->variant_id.isnull)
		nulls[1] = 'n';
}

/* Runs one of the statements that return a stock's rows. */
static StripeRow *
stripe_rows(Oid nspid, const TaStatement *statement, const Stock *stock, int *count)
{
	Datum	   values[3];
	char	   nulls[4] = "   ";
	StripeRow *rows;

	stock_values(stock, values, nulls);
	*count = (int) ta_execute(nspid, statement, SPI_OK_SELECT, values, nulls);
	rows = palloc0(sizeof(StripeRow) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		rows[i].stripe = ta_spi_int4(i, 1);
		rows[i].id = ta_spi_uuid(i, 2);
		rows[i].available = ta_spi_int4(i, 3);
		rows[i].exists = true;
	}
	return rows;
}

static int
compare_stripes(const void *a, const void *b)
{
	return ((const StripeRow *) a)->stripe - ((const StripeRow *) b)->stripe;
}

static StripeRow *
row_of_stripe(StripeRow *rows, int count, int stripe)
{
	StripeRow key = {.stripe = stripe};

	return bsearch(&key, rows, count, sizeof(StripeRow), compare_stripes);
}

/* A policy or a trigger keeps rows from us: half a move must not be made. */
static void
pg_attribute_noreturn()
	raise_rows_withheld(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("stock rows cannot be read or written"),
			 errhint("Look for row security and triggers on the table inventory_stock.")));
}

/*
 * Spreads the units of a stock that are not reserved evenly over stripes 0 to
 * n - 1, making those that are missing.  held are the rows that the caller has
 * locked, stripe 0 among them; the others in all are left as they are.
 */
static void
spread(Oid nspid, const Stock *stock, int n, StripeRow *held, int nheld, StripeRow *all, int nall)
{
	StripeRow  *rows = palloc0(sizeof(StripeRow) * (n + nheld));
	int32	   *stripes = palloc(sizeof(int32) * n);
	int32	   *made_units = palloc(sizeof(int32) * n);
	pg_uuid_t  *ids = palloc(sizeof(pg_uuid_t) * (n + nheld));
	int32	   *changes = palloc(sizeof(int32) * (n + nheld));
	TaMovement *movements = palloc0(sizeof(TaMovement) * (n + nheld));
	TaPosting	posting = {.movement_type = "transfer", .actor_isnull = true};
	int			nrows = 0;
	int			nsharing = 0;
	int			nmade = 0;
	int			nchanged = 0;
	int			nmovements = 0;
	int64		units = 0;
	int64		left;
	int			share_of = 0;
	Datum		values[5];
	char		nulls[6] = "     ";

	qsort(all, nall, sizeof(StripeRow), compare_stripes);
	for (int i = 0; i < nheld; i++)
	{
		rows[nrows++] = held[i];
		units += held[i].available;
		if (held[i].stripe < n)
			nsharing++;
	}
	for (int stripe = 1; stripe < n; stripe++)
	{
		if (row_of_stripe(all, nall, stripe) != NULL)
			continue;
		rows[nrows++].stripe = stripe;
		nsharing++;
	}
	qsort(rows, nrows, sizeof(StripeRow), compare_stripes);

	if (nsharing == 0)
		raise_rows_withheld();

	/* the same for everybody, and one more for the first */
	left = units % nsharing;
	for (int i = 0; i < nrows; i++)
	{
		int32 share = 0;

		if (rows[i].stripe < n)
			share = (int32) (units / nsharing) + (share_of++ < left ? 1 : 0);
		rows[i].change = share - rows[i].available;
		if (!rows[i].exists)
		{
			stripes[nmade] = rows[i].stripe;
			made_units[nmade] = share;
			nmade++;
		}
		else if (rows[i].change != 0)
		{
			ids[nchanged] = rows[i].id;
			changes[nchanged] = rows[i].change;
			nchanged++;
		}
	}

	if (nmade > 0)
	{
		stock_values(stock, values, nulls);
		values[3] = ta_int4_array(stripes, nmade);
		values[4] = ta_int4_array(made_units, nmade);
		if (ta_execute(nspid, &make_rows, SPI_OK_INSERT_RETURNING, values, nulls) != (uint64) nmade)
			raise_rows_withheld();
		for (uint64 r = 0; r < SPI_processed; r++)
		{
			StripeRow *row = row_of_stripe(rows, nrows, ta_spi_int4(r, 1));

			if (row != NULL)
				row->id = ta_spi_uuid(r, 2);
		}
	}
	if (nchanged > 0)
	{
		values[0] = ta_uuid_array(ids, nchanged);
		values[1] = ta_int4_array(changes, nchanged);
		if (ta_execute(nspid, &change_rows, SPI_OK_UPDATE, values, NULL) != (uint64) nchanged)
			raise_rows_withheld();
	}
	posting.note = n > 1 ? "spread over stripes" : "stripes folded";
	for (int i = 0; i < nrows; i++)
	{
		if (rows[i].change == 0)
			continue;
		movements[nmovements].stock_id = rows[i].id;
		movements[nmovements].quantity = rows[i].change;
		movements[nmovements].order_id.isnull = movements[nmovements].reservation_id.isnull = true;
		nmovements++;
	}
	ta_write_movements(nspid, movements, nmovements, &posting);
}

/* Writes down over how many rows a stock is spread from now on. */
static void
note(Oid nspid, const Stock *stock, int n, bool automatic)
{
	Datum values[3];

	values[0] = UUIDPGetDatum(&stock->id);
	values[1] = Int32GetDatum(n);
	values[2] = BoolGetDatum(automatic);
	if (n > 1)
		ta_execute(nspid, &note_stripes, SPI_OK_INSERT, values, NULL);
	else
		ta_execute(nspid, &forget_stripes, SPI_OK_DELETE, values, NULL);
}

/* Spreads or folds with stripe 0 held and without waiting for the others. */
static void
spread_free(Oid nspid, const Stock *stock, int n)
{
	int		   nheld;
	int		   nall;
	StripeRow *held = stripe_rows(nspid, &lock_free_rows, stock, &nheld);
	StripeRow *all = stripe_rows(nspid, &find_rows, stock, &nall);

	spread(nspid, stock, n, held, nheld, all, nall);
	note(nspid, stock, n, true);
}

/*
 * ta_stripes_spread_if_hot
 *		Spreads the stock of a row, stripe 0, that is asked for by so many that
 *		they wait for each other.
 *
 * Inside a frame; the caller holds the row, and has waited for one of its SKU.  Does nothing
 * where techally.auto_stripe is off, the stock is small or spread already, or
 * the isolation level is above READ COMMITTED, where rows that others have made
 * cannot be seen.
 */
void
ta_stripes_spread_if_hot(Oid nspid, const TaDemandGroup *group, const TaStockRow *row)
{
	Stock stock;
	int	  n = Min(hot_stripes, (row->available - row->taken) / MIN_UNITS);

	if (!auto_stripe || n < MIN_STRIPES || IsolationUsesXactSnapshot() ||
		!is_hot(nspid, group) || !can_spread(nspid))
		return;
	stock.product_id = group->product_id;
	stock.variant_id = group->variant_id;
	stock.warehouse_id = row->warehouse_id;
	stock.id = row->id;
	spread_free(nspid, &stock, n);
	ta_stripes_seen(nspid, group, n);
}

/*
 * ta_stripes_even_out
 *		Spreads units that came to stripe 0, which the caller holds, over the
 *		stripes that nobody else has, where the stock is spread.
 *
 * Inside a frame.
 */
void
ta_stripes_even_out(Oid nspid, const TaLine *line, const pg_uuid_t *stock_id)
{
	Stock stock = {.product_id = line->product_id, .variant_id = line->variant_id, .warehouse_id = line->warehouse_id.value, .id = *stock_id};
	Datum id = UUIDPGetDatum(stock_id);
	int	  n;
	int	  nheld;
	int	  nall;

	if (!can_spread(nspid) || ta_execute(nspid, &read_stripes, SPI_OK_SELECT, &id, NULL) == 0)
		return;
	n = ta_spi_int4(0, 1);
	if (line->quantity >= n)
	{
		StripeRow *held = stripe_rows(nspid, &lock_free_rows, &stock, &nheld);
		StripeRow *all = stripe_rows(nspid, &find_rows, &stock, &nall);

		spread(nspid, &stock, n, held, nheld, all, nall);
	}
}

/* Folds what has cooled since it was looked at last; returns how many. */
static int
fold_cooled(Oid nspid, TimestampTz before)
{
	Datum  values[2];
	Stock *stocks;
	int	   count;
	int	   nfolded = 0;

	values[0] = TimestampTzGetDatum(before);
	values[1] = Int32GetDatum(COOL_SHARE);
	count = (int) ta_execute(nspid, &find_cooled, SPI_OK_SELECT, values, NULL);
	stocks = palloc(sizeof(Stock) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		stocks[i].product_id = ta_spi_uuid(i, 1);
		stocks[i].variant_id = ta_spi_nullable_uuid(i, 2);
		stocks[i].warehouse_id = ta_spi_uuid(i, 3);
		stocks[i].id = ta_spi_uuid(i, 4);
	}
	for (int i = 0; i < count; i++)
	{
		int		   nheld;
		StripeRow *held = stripe_rows(nspid, &lock_free_rows, &stocks[i], &nheld);
		bool	   holds_base = false;

		for (int r = 0; r < nheld; r++)
			holds_base |= held[r].stripe == 0;
		if (!holds_base)
			continue; /* it is in use after all */
		spread_free(nspid, &stocks[i], 1);
		nfolded++;
	}
	ta_execute(nspid, &sample_stripes, SPI_OK_UPDATE, values, NULL);
	return nfolded;
}

/* When this backend looked after a store's stripes last. */
typedef struct Visit
{
	Oid			nspid;
	TimestampTz at;
} Visit;

/*
 * ta_stripes_fold_cooled
 *		Folds what was spread by itself and is no longer asked for; at most once a
 *		minute in a backend and store, and without waiting for a row.
 *
 * Inside a frame.
 */
void
ta_stripes_fold_cooled(Oid nspid)
{
	static HTAB *visits = NULL;
	TimestampTz	 now = GetCurrentTimestamp();
	Visit		*visit;
	bool		 found;

	if (IsolationUsesXactSnapshot())
		return;
	if (visits == NULL)
	{
		HASHCTL ctl = {0};

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(Visit);
		ctl.hcxt = CacheMemoryContext;
		visits = hash_create("techally stripe visits", 16, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	visit = hash_search(visits, &nspid, HASH_ENTER, &found);
	if (!found)
		visit->at = 0;
	if (!TimestampDifferenceExceeds(visit->at, now, COOL_INTERVAL) || !can_spread(nspid))
		return;
	visit->at = now;
	(void) fold_cooled(nspid, now - COOL_AFTER * 1000);
}

/*
 * fold_cooled_stock(store name, idle interval) → integer
 *		Folds what was spread by itself and has hardly been touched for this
 *		long; returns how many.
 *
 * Two calls at least so long apart see that a stock has cooled.  Waits for no
 * row: what is locked is in use.
 */
PG_FUNCTION_INFO_V1(ta_fold_cooled_stock);
Datum
ta_fold_cooled_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "idle"};
	TaFrame					 frame;
	Oid						 nspid;
	TimestampTz				 before;
	int						 count = 0;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	before = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval,
													 TimestampTzGetDatum(GetCurrentTimestamp()),
													 PG_GETARG_DATUM(1)));

	ta_frame_begin(&frame, InvalidOid);
	if (OidIsValid(get_relname_relid("stock_stripes", nspid)))
		count = fold_cooled(nspid, before);
	ta_frame_end(&frame);
	PG_RETURN_INT32(count);
}

/* A stock all of whose rows are locked. */
typedef struct LockedStock
{
	Oid		   nspid;
	Stock	   stock;
	StripeRow *held;
	StripeRow *all;
	int		   nheld;
	int		   nall;
} LockedStock;

/*
 * Locks all rows of a stock.  Rows that were made while we waited for stripe 0
 * are in no list yet: false, try again.  With stripe 0 in our hands no more are
 * made.
 */
static bool
lock_all_rows(void *arg)
{
	LockedStock *work = arg;

	work->held = stripe_rows(work->nspid, &lock_rows, &work->stock, &work->nheld);
	work->all = stripe_rows(work->nspid, &find_rows, &work->stock, &work->nall);
	return work->nheld == work->nall;
}

/*
 * stripe_stock(store name, sku text, warehouse text, stripes integer) → void
 *		Spreads the units of a SKU in a warehouse that are not reserved evenly over
 *		so many rows; 1 folds them back.
 *
 * Waits for all rows of the stock, ascending by id, and holds them until the
 * transaction ends.  22023 for a number out of range, TA006 for an unknown SKU,
 * TA007 for an unknown warehouse.
 */
PG_FUNCTION_INFO_V1(ta_stripe_stock);
Datum
ta_stripe_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku", "warehouse", "stripes"};
	TaFrame					 frame;
	TaLine					 line = {0};
	Oid						 nspid;
	int32					 n;
	LockedStock				 work = {0};
	Datum					 values[3];
	char					 nulls[4] = "   ";

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	line.sku = text_to_cstring(PG_GETARG_TEXT_PP(1));
	line.warehouse = text_to_cstring(PG_GETARG_TEXT_PP(2));
	line.variant_id.isnull = line.warehouse_id.isnull = true;
	n = PG_GETARG_INT32(3);
	if (n < 1 || n > MAX_STRIPES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stripes must be between 1 and %d", MAX_STRIPES)));

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, &line, 1, TA_FOR_STOCKTAKING);
	work.stock.product_id = line.product_id;
	work.stock.variant_id = line.variant_id;
	work.stock.warehouse_id = line.warehouse_id.value;

	stock_values(&work.stock, values, nulls);
	ta_execute(nspid, &make_base_row, SPI_OK_INSERT, values, nulls);

	work.nspid = nspid;
	while (!ta_in_savepoint(lock_all_rows, &work))
		CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < work.nheld; i++)
		if (work.held[i].stripe == 0)
			work.stock.id = work.held[i].id;
	spread(nspid, &work.stock, n, work.held, work.nheld, work.all, work.nall);
	note(nspid, &work.stock, n, false);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------
 * Starting
 * ---------------------------------------------------------------------
 */

static void
start_shared_memory(void)
{
	bool found;

	shared_waits = ShmemInitStruct("techally stock contention",
								   sizeof(pg_atomic_uint64) * SHARED_SLOTS, &found);
	if (!found)
		for (int i = 0; i < SHARED_SLOTS; i++)
			pg_atomic_init_u64(&shared_waits[i], 0);
}

/*
 * ta_stripes_init
 *		Defines the settings and, in shared_preload_libraries, asks for shared
 *		memory.  Called once, by _PG_init.
 */
void
ta_stripes_init(void)
{
	DefineCustomBoolVariable("techally.auto_stripe",
							 "Spreads the stock of a SKU over several rows when its buyers wait for each other.",
							 NULL,
							 &auto_stripe,
							 true,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("techally.hot_stripes",
							"The number of rows over which techally.auto_stripe spreads stock.",
							NULL,
							&hot_stripes,
							64,
							MIN_STRIPES, MAX_STRIPES,
							PGC_USERSET,
							0,
							NULL, NULL, NULL);

	ta_request_shared_memory(sizeof(pg_atomic_uint64) * SHARED_SLOTS, start_shared_memory);
}
