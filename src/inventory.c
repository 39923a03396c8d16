/*-------------------------------------------------------------------------
 *
 * inventory.c
 *	  Stock: receiving, reserving, selling and restocking units.
 *
 * This is the only code that locks or writes inventory_stock,
 * stock_reservations, stock_reservation_parts and stock_movements.
 *
 * Invariants, for every stock row, at every commit:
 *
 *		sum of its stock_movements              = quantity_on_hand
 *		sum of its parts of active reservations = quantity_reserved
 *		0 <= quantity_reserved <= quantity_on_hand
 *
 * Lock order, for everything that waits:
 *
 *		1. the order's row (whoever changes an order holds it)
 *		2. reservations
 *		3. stock rows, ascending by id, all that the statement needs in one
 *		   SELECT ... ORDER BY id FOR NO KEY UPDATE
 *
 * A reservation's parts have no lock of their own: they change only under the
 * lock of their stock row.  What needs a reservation while it already holds
 * stock rows (the sweep of expired parts before an order is refused) never
 * waits for it: FOR NO KEY UPDATE SKIP LOCKED.  FOR NO KEY UPDATE throughout,
 * so that foreign-key checks pass.
 *
 * A reservation is active while its status says so, swept or not.  Whether it
 * still binds is judged when it is read: expires_at > clock_timestamp().
 *
 * Sources: document 001, section 6 (movement types); PostgreSQL
 * documentation, chapter 13.3 (explicit locking).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "demand.h"
#include "errors.h"
#include "inventory.h"
#include "request_util.h"
#include "row_reader.h"
#include "row_writer.h"
#include "spi_util.h"
#include "stock_writer.h"
#include "stripes.h"

/* of order_items.name, in characters */
#define MAX_NAME_LENGTH 255

/* A part of a reservation that is made. */
typedef struct NewPart
{
	pg_uuid_t stock_id;
	int32	  quantity;
} NewPart;

/* A part of a reservation whose stock row is locked. */
typedef struct Part
{
	pg_uuid_t		reservation_id;
	TaUuid			order_id;
	pg_uuid_t		stock_id;
	ItemPointerData tid; /* of the stock row */
	int32			quantity;
} Part;

static const TaStatement resolve_skus = {
	"SELECT d.n::pg_catalog.int4, k.product_id, k.variant_id,"
	"       CASE WHEN k.variant_id IS NULL THEN p.name"
	"            ELSE pg_catalog.left(p.name || ', ' || v.name, 255) END,"
	"       coalesce(v.price, p.price), w.id,"
	"       CASE WHEN k.sku IS NULL THEN 'unknown'"
	"            WHEN p.deleted_at IS NOT NULL OR v.deleted_at IS NOT NULL THEN 'deleted'"
	"            WHEN k.variant_id IS NULL AND EXISTS"
	"                 (SELECT 1 FROM @store@.product_variants c"
	"                   WHERE c.product_id = k.product_id AND c.deleted_at IS NULL) THEN 'has variants'"
	"            WHEN NOT p.is_active OR NOT v.is_active THEN 'inactive'"
	"            WHEN NOT p.is_published THEN 'not published' END"
	"  FROM unnest($1, $2) WITH ORDINALITY AS d(sku, warehouse, n)"
	"  LEFT JOIN @store@.skus k ON k.sku = d.sku"
	"  LEFT JOIN @store@.products p ON p.id = k.product_id"
	"  LEFT JOIN @store@.product_variants v ON v.id = k.variant_id"
	"  LEFT JOIN @store@.warehouses w ON w.code = d.warehouse",
	2,
	{TEXTARRAYOID, TEXTARRAYOID}};

static const TaStatement lock_orders_reservations = {
	"SELECT r.id FROM @store@.stock_reservations r"
	" WHERE r.order_id = ANY ($1) AND r.status = 'active'"
	" ORDER BY r.id FOR NO KEY UPDATE",
	1,
	{UUIDARRAYOID}};

static const TaStatement lock_orders_stock = {
	"SELECT s.id FROM @store@.inventory_stock s"
	" WHERE s.product_id IN (SELECT i.product_id FROM @store@.order_items i WHERE i.order_id = ANY ($1))"
	" ORDER BY s.id FOR NO KEY UPDATE",
	1,
	{UUIDARRAYOID}};

static const TaStatement lock_stock = {
	"SELECT s.id, s.ctid FROM @store@.inventory_stock s WHERE s.id = ANY ($1) ORDER BY s.id FOR NO KEY UPDATE",
	1,
	{UUIDARRAYOID}};

/* used where ta_writer_open declines */
static const TaStatement insert_reservation = {
	"INSERT INTO @store@.stock_reservations (id, order_id, reference, quantity, expires_at)"
	" VALUES ($1, $2, $3, $4, $5)",
	5,
	{UUIDOID, UUIDOID, TEXTOID, INT8OID, TIMESTAMPTZOID}};

static const TaStatement insert_parts = {
	"INSERT INTO @store@.stock_reservation_parts (reservation_id, stock_id, quantity)"
	" SELECT $1, d.stock_id, d.quantity FROM unnest($2, $3) AS d(stock_id, quantity)",
	3,
	{UUIDOID, UUIDARRAYOID, INT4ARRAYOID}};

/* what ta_reader_open and ta_writer_open are asked for; the first is the key */
static const TaColumn sku_columns[] = {
	{"sku", TEXTOID}, {"product_id", UUIDOID}, {"variant_id", UUIDOID}};
static const TaColumn product_columns[] = {
	{"id", UUIDOID}, {"name", TEXTOID}, {"price", NUMERICOID}, {"deleted_at", TIMESTAMPTZOID}, {"is_active", BOOLOID}, {"is_published", BOOLOID}};
static const TaColumn variant_columns[] = {
	{"id", UUIDOID}, {"name", TEXTOID}, {"price", NUMERICOID}, {"deleted_at", TIMESTAMPTZOID}, {"is_active", BOOLOID}};
static const TaColumn product_variant_columns[] = {
	{"product_id", UUIDOID}, {"deleted_at", TIMESTAMPTZOID}};
static const TaColumn warehouse_code_columns[] = {
	{"code", TEXTOID}, {"id", UUIDOID}};
static const TaColumn stock_id_columns[] = {
	{"id", UUIDOID}};
static const TaColumn reservation_order_columns[] = {
	{"id", UUIDOID}, {"order_id", UUIDOID}};
static const TaColumn order_reservation_columns[] = {
	{"order_id", UUIDOID}, {"id", UUIDOID}, {"status", TEXTOID}, {"expires_at", TIMESTAMPTZOID}, {"closed_at", TIMESTAMPTZOID}};
static const TaColumn closing_columns[] = {
	{"status", TEXTOID}, {"expires_at", TIMESTAMPTZOID}, {"closed_at", TIMESTAMPTZOID}};
static const TaColumn reservation_part_columns[] = {
	{"reservation_id", UUIDOID}, {"stock_id", UUIDOID}, {"quantity", INT4OID}};
static const TaColumn reservation_columns[] = {
	{"id", UUIDOID}, {"order_id", UUIDOID}, {"reference", TEXTOID}, {"quantity", INT8OID}, {"expires_at", TIMESTAMPTZOID}};
static const TaColumn part_columns[] = {
	{"reservation_id", UUIDOID}, {"stock_id", UUIDOID}, {"quantity", INT4OID}};

static const TaStatement hold_reservations = {
	"UPDATE @store@.stock_reservations SET expires_at = 'infinity'"
	" WHERE order_id = ANY ($1) AND status = 'active' AND closed_at IS NULL AND expires_at > $2"
	" RETURNING order_id",
	2,
	{UUIDARRAYOID, TIMESTAMPTZOID}};

static const TaStatement sell_reservations = {
	"UPDATE @store@.stock_reservations SET status = 'committed', closed_at = $2"
	" WHERE order_id = ANY ($1) AND status = 'active' AND closed_at IS NULL AND expires_at > $2"
	" RETURNING id, order_id",
	2,
	{UUIDARRAYOID, TIMESTAMPTZOID}};

static const TaStatement release_reservations = {
	"UPDATE @store@.stock_reservations"
	"   SET status = CASE WHEN expires_at > $2 THEN 'released' ELSE 'expired' END, closed_at = $2"
	" WHERE order_id = ANY ($1) AND status = 'active'"
	" RETURNING id",
	2,
	{UUIDARRAYOID, TIMESTAMPTZOID}};

static const TaStatement expire_order_reservations = {
	"UPDATE @store@.stock_reservations SET status = 'expired', closed_at = $2"
	" WHERE order_id = ANY ($1) AND status = 'active' AND expires_at <= $2"
	" RETURNING id",
	2,
	{UUIDARRAYOID, TIMESTAMPTZOID}};

/*
 * The sweeper waits for nothing.  If it waited for a stock row with reservations
 * in its hands, whoever wanted their units of another row would be told that
 * there are none.
 */
static const TaStatement lock_expired_stock = {
	"SELECT s.id FROM @store@.inventory_stock s"
	" WHERE s.id IN (SELECT p.stock_id"
	"                  FROM (SELECT e.id FROM @store@.stock_reservations e"
	"                         WHERE e.status = 'active' AND e.expires_at <= $1"
	"                         ORDER BY e.expires_at LIMIT $2) AS oldest"
	"                  JOIN @store@.stock_reservation_parts p ON p.reservation_id = oldest.id)"
	" ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED",
	2,
	{TIMESTAMPTZOID, INT4OID}};

static const TaStatement expire_oldest = {
	"UPDATE @store@.stock_reservations r SET status = 'expired', closed_at = $1"
	"  FROM (SELECT e.id FROM @store@.stock_reservations e"
	"         WHERE e.status = 'active' AND e.expires_at <= $1"
	"           AND NOT EXISTS (SELECT 1 FROM @store@.stock_reservation_parts p"
	"                            WHERE p.reservation_id = e.id AND p.stock_id <> ALL ($3))"
	"         ORDER BY e.expires_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED) AS gone"
	" WHERE r.id = gone.id"
	" RETURNING r.id",
	3,
	{TIMESTAMPTZOID, INT4OID, UUIDARRAYOID}};

static const TaStatement lock_parts = {
	"SELECT p.reservation_id, r.order_id, s.id, p.quantity, s.ctid"
	"  FROM @store@.stock_reservations r"
	"  JOIN @store@.stock_reservation_parts p ON p.reservation_id = r.id"
	"  JOIN @store@.inventory_stock s ON s.id = p.stock_id"
	" WHERE r.id = ANY ($1)"
	" ORDER BY s.id"
	"   FOR NO KEY UPDATE OF s",
	1,
	{UUIDARRAYOID}};

static const TaStatement sold_units = {
	"SELECT s.id, s.product_id, s.variant_id, (-sum(m.quantity))::pg_catalog.int4"
	"  FROM @store@.stock_movements m JOIN @store@.inventory_stock s ON s.id = m.stock_id"
	"  JOIN @store@.warehouses w ON w.id = s.warehouse_id"
	" WHERE m.order_id = $1 AND m.movement_type IN ('sale', 'return')"
	" GROUP BY s.id, w.priority, w.code HAVING sum(m.quantity) < 0"
	" ORDER BY w.priority, w.code, s.stripe",
	1,
	{UUIDOID}};

static const TaStatement receive_product = {
	"INSERT INTO @store@.inventory_stock AS s (product_id, variant_id, warehouse_id, quantity_on_hand)"
	" VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (product_id, warehouse_id, stripe) WHERE variant_id IS NULL"
	" DO UPDATE SET quantity_on_hand = s.quantity_on_hand + EXCLUDED.quantity_on_hand"
	" RETURNING s.id",
	4,
	{UUIDOID, UUIDOID, UUIDOID, INT4OID}};

static const TaStatement receive_variant = {
	"INSERT INTO @store@.inventory_stock AS s (product_id, variant_id, warehouse_id, quantity_on_hand)"
	" VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (variant_id, warehouse_id, stripe) WHERE variant_id IS NOT NULL"
	" DO UPDATE SET quantity_on_hand = s.quantity_on_hand + EXCLUDED.quantity_on_hand"
	" RETURNING s.id",
	4,
	{UUIDOID, UUIDOID, UUIDOID, INT4OID}};

static const TaStatement make_stock_row = {
	"INSERT INTO @store@.inventory_stock (product_id, variant_id, warehouse_id)"
	" VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

static const TaStatement on_hand_in_warehouse = {
	"SELECT sum(s.quantity_on_hand)::pg_catalog.int4 FROM @store@.inventory_stock s"
	" WHERE s.product_id = $1 AND s.variant_id IS NOT DISTINCT FROM $2 AND s.warehouse_id = $3",
	3,
	{UUIDOID, UUIDOID, UUIDOID}};

static const TaStatement available_units = {
	"WITH stock AS ("
	"  SELECT s.id, s.quantity_on_hand - s.quantity_reserved AS free, s.quantity_reserved AS reserved"
	"    FROM @store@.inventory_stock s JOIN @store@.warehouses w ON w.id = s.warehouse_id"
	"   WHERE s.product_id = $1 AND s.variant_id IS NOT DISTINCT FROM $2"
	"     AND CASE WHEN $3 IS NULL THEN w.is_active ELSE s.warehouse_id = $3 END)"
	" SELECT (coalesce((SELECT sum(stock.free) FROM stock), 0)"
	"       + CASE WHEN (SELECT sum(stock.reserved) FROM stock) > 0 THEN"
	"         coalesce((SELECT sum(p.quantity) FROM @store@.stock_reservations r"
	"                     JOIN @store@.stock_reservation_parts p ON p.reservation_id = r.id"
	"                     JOIN stock ON stock.id = p.stock_id"
	"                    WHERE r.status = 'active' AND r.expires_at <= $4), 0) ELSE 0 END)::pg_catalog.int8",
	4,
	{UUIDOID, UUIDOID, UUIDOID, TIMESTAMPTZOID}};

static const TaStatement lock_reservation = {
	"SELECT r.order_id, r.status, r.expires_at, o.order_number"
	"  FROM @store@.stock_reservations r LEFT JOIN @store@.orders o ON o.id = r.order_id"
	" WHERE r.id = $1 FOR NO KEY UPDATE OF r",
	1,
	{UUIDOID}};

static const TaStatement close_reservation = {
	"UPDATE @store@.stock_reservations SET status = $2, closed_at = pg_catalog.clock_timestamp() WHERE id = $1",
	2,
	{UUIDOID, TEXTOID}};

static const TaStatement set_expiry = {
	"UPDATE @store@.stock_reservations SET expires_at = GREATEST(expires_at, $2)"
	" WHERE id = $1 RETURNING expires_at",
	2,
	{UUIDOID, TIMESTAMPTZOID}};

/* ---------------------------------------------------------------------
 * SKUs
 * ---------------------------------------------------------------------
 */

/* Whether a SKU in this condition cannot serve the purpose. */
static bool
unfit(const char *condition, TaPurpose purpose)
{
	if (condition == NULL)
		return false;
	if (strcmp(condition, "unknown") == 0)
		return true;
	if (purpose == TA_FOR_STOCKTAKING)
		return false;
	if (strcmp(condition, "deleted") == 0 || strcmp(condition, "has variants") == 0)
		return true;
	return purpose == TA_FOR_SALE;
}

/* The tables that a SKU is resolved with: opened when they are needed. */
typedef enum SkuTable
{
	SKUS,
	PRODUCTS,
	VARIANTS,
	VARIANTS_OF,
	WAREHOUSES_BY_CODE,
	NSKU_TABLES
} SkuTable;

typedef struct SkuReaders
{
	Oid			 nspid;
	TaRowReader *readers[NSKU_TABLES];
	bool		 refused; /* a table does not allow it */
} SkuReaders;

static void
close_readers(TaRowReader **readers, int count)
{
	for (int i = count - 1; i >= 0; i--)
		if (readers[i] != NULL)
			ta_reader_close(readers[i]);
}

static TaRowReader *
open_reader(Oid nspid, const char *table, bool for_update, const TaColumn *columns, int ncolumns)
{
	return ta_reader_open(ta_store_table(nspid, table), for_update, columns, ncolumns);
}

/*
 * Finds the first row of a key in one of the tables, all under one snapshot.
 * False: there is none, or the table cannot be read so.
 */
static bool
find_sku_row(SkuReaders *readers, SkuTable table, Datum key, Datum *values, bool *nulls)
{
	static const struct
	{
		const char	   *name;
		const TaColumn *columns;
		int				ncolumns;
	} tables[] = {
		[SKUS] = {"skus", sku_columns, lengthof(sku_columns)},
		[PRODUCTS] = {"products", product_columns, lengthof(product_columns)},
		[VARIANTS] = {"product_variants", variant_columns, lengthof(variant_columns)},
		[VARIANTS_OF] = {"product_variants", product_variant_columns, lengthof(product_variant_columns)},
		[WAREHOUSES_BY_CODE] = {"warehouses", warehouse_code_columns, lengthof(warehouse_code_columns)}};
	TaRowReader **reader = &readers->readers[table];

	if (*reader == NULL && !readers->refused)
	{
		Oid relid = ta_store_table(readers->nspid, tables[table].name);

		*reader = readers->readers[SKUS] == NULL
					  ? ta_reader_open(relid, false, tables[table].columns, tables[table].ncolumns)
					  : ta_reader_open_beside(readers->readers[SKUS], NULL, relid, false,
											  tables[table].columns, tables[table].ncolumns);
		readers->refused = *reader == NULL;
	}
	if (readers->refused)
		return false;
	ta_reader_find(*reader, key);
	return ta_reader_next(*reader, values, nulls, NULL);
}

/* Whether a product has variants that are not deleted. */
static bool
has_variants(SkuReaders *readers, Datum product_id)
{
	Datum values[2];
	bool  nulls[2];
	bool  found = find_sku_row(readers, VARIANTS_OF, product_id, values, nulls);

	while (found && !nulls[1])
		found = ta_reader_next(readers->readers[VARIANTS_OF], values, nulls, NULL);
	return found;
}

/*
 * Resolves one line; returns what keeps its SKU from being sold, NULL for
 * nothing.  The same rules as in the statement resolve_skus.
 */
static const char *
resolve_line(SkuReaders *readers, TaLine *line)
{
	Datum		values[6];
	bool		nulls[6];
	bool		product_deleted;
	bool		active;
	bool		published;
	const char *condition = NULL;

	if (!find_sku_row(readers, SKUS, CStringGetTextDatum(line->sku), values, nulls))
		return "unknown";
	line->product_id = *DatumGetUUIDP(values[1]);
	line->variant_id.isnull = nulls[2];
	if (!nulls[2])
		line->variant_id.value = *DatumGetUUIDP(values[2]);

	if (!find_sku_row(readers, PRODUCTS, UUIDPGetDatum(&line->product_id), values, nulls))
		return "unknown";
	line->name = TextDatumGetCString(values[1]);
	line->price = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[2]));
	product_deleted = !nulls[3];
	active = DatumGetBool(values[4]);
	published = DatumGetBool(values[5]);

	if (line->variant_id.isnull)
	{
		if (product_deleted)
			condition = "deleted";
		else if (has_variants(readers, UUIDPGetDatum(&line->product_id)))
			condition = "has variants";
	}
	else
	{
		char *name;

		if (!find_sku_row(readers, VARIANTS, UUIDPGetDatum(&line->variant_id.value), values, nulls))
			return "unknown";
		name = psprintf("%s, %s", line->name, TextDatumGetCString(values[1]));
		line->name = pnstrdup(name, pg_mbcharcliplen(name, strlen(name), MAX_NAME_LENGTH));
		if (!nulls[2])
			line->price = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[2]));
		if (product_deleted || !nulls[3])
			condition = "deleted";
		active = active && DatumGetBool(values[4]);
	}
	if (condition != NULL)
		return condition;
	if (!active)
		return "inactive";
	return published ? NULL : "not published";
}

/* Resolves all lines by index; false where a table does not allow it. */
static bool
resolve_directly(Oid nspid, TaLine *lines, int nlines, const char **conditions)
{
	SkuReaders readers = {.nspid = nspid};

	for (int i = 0; i < nlines && !readers.refused; i++)
	{
		TaLine *line = &lines[i];
		Datum	values[2];
		bool	nulls[2];

		CHECK_FOR_INTERRUPTS();
		conditions[i] = resolve_line(&readers, line);
		line->warehouse_id.isnull =
			line->warehouse == NULL ||
			!find_sku_row(&readers, WAREHOUSES_BY_CODE, CStringGetTextDatum(line->warehouse), values, nulls);
		if (!line->warehouse_id.isnull)
			line->warehouse_id.value = *DatumGetUUIDP(values[1]);
	}
	close_readers(readers.readers, NSKU_TABLES);
	return !readers.refused;
}

/* Resolves all lines by one statement. */
static void
resolve_by_statement(Oid nspid, TaLine *lines, int nlines, const char **conditions)
{
	const char **skus = palloc(sizeof(char *) * nlines);
	const char **warehouses = palloc(sizeof(char *) * nlines);
	Datum		 values[2];

	for (int i = 0; i < nlines; i++)
	{
		skus[i] = lines[i].sku;
		warehouses[i] = lines[i].warehouse;
	}
	values[0] = ta_text_array(skus, nlines);
	values[1] = ta_text_array(warehouses, nlines);

	ta_execute(nspid, &resolve_skus, SPI_OK_SELECT, values, NULL);
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		int		n = ta_spi_int4(r, 1) - 1;
		TaLine *line = &lines[n];
		bool	isnull;
		Datum	price;

		conditions[n] = ta_spi_text(r, 7);
		line->warehouse_id = ta_spi_nullable_uuid(r, 6);
		if (conditions[n] != NULL && strcmp(conditions[n], "unknown") == 0)
			continue;
		line->product_id = ta_spi_uuid(r, 2);
		line->variant_id = ta_spi_nullable_uuid(r, 3);
		line->name = ta_spi_text(r, 4);
		price = ta_spi_value(r, 5, &isnull);
		line->price = PointerGetDatum(PG_DETOAST_DATUM_COPY(price));
	}
}

/*
 * ta_resolve_lines
 *		Finds the product, variant, name, price and warehouse of each line.
 *
 * Inside a frame.  Raises TA006 listing every SKU that cannot serve the
 * purpose, each with why, and TA007 for a warehouse that does not exist.  Takes
 * no row locks: a price or a flag that changes meanwhile is as good as one that
 * changed just after.
 */
void
ta_resolve_lines(Oid nspid, TaLine *lines, int nlines, TaPurpose purpose)
{
	const char **conditions = palloc0(sizeof(char *) * nlines);
	int			 nunfit = 0;

	if (!resolve_directly(nspid, lines, nlines, conditions))
		resolve_by_statement(nspid, lines, nlines, conditions);

	for (int i = 0; i < nlines; i++)
	{
		if (unfit(conditions[i], purpose))
			nunfit++;
		if (lines[i].warehouse != NULL && lines[i].warehouse_id.isnull)
			ereport(ERROR,
					(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
					 errmsg("warehouse \"%s\" does not exist", lines[i].warehouse)));
	}

	if (nunfit > 0)
	{
		StringInfoData detail;
		const char	  *separator = "";

		initStringInfo(&detail);
		for (int i = 0; i < nlines; i++)
		{
			bool repeated = false;

			if (!unfit(conditions[i], purpose))
				continue;
			for (int j = 0; j < i && !repeated && nlines <= 1000; j++)
				repeated = strcmp(lines[j].sku, lines[i].sku) == 0;
			if (repeated)
				continue;
			appendStringInfo(&detail, "%s\"%s\" (%s)", separator, lines[i].sku, conditions[i]);
			separator = ", ";
		}
		ereport(ERROR,
				(errcode(TA_ERRCODE_UNKNOWN_SKU),
				 purpose == TA_FOR_SALE ? errmsg("SKU is not for sale") : purpose == TA_FOR_RECEIVING ? errmsg("SKU cannot have stock")
																									  : errmsg("SKU does not exist"),
				 errdetail("%s.", detail.data),
				 purpose == TA_FOR_SALE ? errhint("A product is for sale when it is active, published, not deleted and has no variants; otherwise sell one of its variants.") : 0));
	}
}

/* ---------------------------------------------------------------------
 * Writing
 * ---------------------------------------------------------------------
 */

static void
write_header(Oid nspid, const pg_uuid_t *id, const pg_uuid_t *order_id, const char *reference,
			 int64 quantity, TimestampTz expires_at)
{
	static const TaVouched vouched[] = {{"order_id", "orders", NULL}};
	TaRowWriter			  *writer;
	Datum				   values[5] = {0};
	bool				   nulls[5] = {false, order_id == NULL, reference == NULL, false, false};

	values[0] = UUIDPGetDatum(id);
	if (order_id != NULL)
		values[1] = UUIDPGetDatum(order_id);
	if (reference != NULL)
		values[2] = CStringGetTextDatum(reference);
	values[3] = Int64GetDatum(quantity);
	values[4] = TimestampTzGetDatum(expires_at);

	writer = ta_writer_open_vouched(vouched, lengthof(vouched), ta_store_table(nspid, "stock_reservations"),
									reservation_columns, lengthof(reservation_columns));
	if (writer != NULL)
	{
		ta_writer_insert(writer, values, nulls);
		ta_writer_close(writer);
	}
	else
	{
		char spi_nulls[6] = "     ";

		for (int i = 0; i < 5; i++)
			spi_nulls[i] = nulls[i] ? 'n' : ' ';
		ta_execute(nspid, &insert_reservation, SPI_OK_INSERT, values, spi_nulls);
	}
}

static void
write_parts(Oid nspid, const pg_uuid_t *reservation, const NewPart *parts, int count)
{
	static const TaVouched vouched[] = {
		{"reservation_id", "stock_reservations", NULL}, {"stock_id", "inventory_stock", NULL}};
	TaRowWriter *writer = ta_writer_open_vouched(vouched, lengthof(vouched),
												 ta_store_table(nspid, "stock_reservation_parts"),
												 part_columns, lengthof(part_columns));

	if (writer != NULL)
	{
		for (int i = 0; i < count; i++)
		{
			Datum values[3];
			bool  nulls[3] = {false, false, false};

			values[0] = UUIDPGetDatum(reservation);
			values[1] = UUIDPGetDatum(&parts[i].stock_id);
			values[2] = Int32GetDatum(parts[i].quantity);
			ta_writer_insert(writer, values, nulls);
		}
		ta_writer_close(writer);
	}
	else
	{
		pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
		int32	  *quantities = palloc(sizeof(int32) * Max(count, 1));
		Datum	   values[3];

		for (int i = 0; i < count; i++)
		{
			ids[i] = parts[i].stock_id;
			quantities[i] = parts[i].quantity;
		}
		values[0] = UUIDPGetDatum(reservation);
		values[1] = ta_uuid_array(ids, count);
		values[2] = ta_int4_array(quantities, count);
		ta_execute(nspid, &insert_parts, SPI_OK_INSERT, values, NULL);
	}
}

/* ---------------------------------------------------------------------
 * Reserving
 * ---------------------------------------------------------------------
 */

/*
 * ta_inventory_reserve
 *		Reserves all lines, or raises shortage_code (TA002 or TA003) and nothing
 *		is changed.  Returns the reservation's key.
 *
 * Inside a frame; the lines are resolved.  order_id and reference may be NULL.
 * Locks the stock rows that may serve the lines until the transaction ends.
 */
pg_uuid_t
ta_inventory_reserve(Oid nspid, TaLine *lines, int nlines,
					 const pg_uuid_t *order_id, const char *reference,
					 TimestampTz expires_at, int shortage_code)
{
	TaDemand  demand;
	NewPart	 *parts;
	int64	  total = 0;
	int		  nparts = 0;
	pg_uuid_t reservation;

	/* the stock first: what writing the others fires might change it, too */
	ta_secure_demand(nspid, &demand, lines, nlines, TA_USE_RESERVE, false, shortage_code);

	parts = palloc(sizeof(NewPart) * Max(demand.nrows, 1));
	for (int r = 0; r < demand.nrows; r++)
	{
		if (demand.rows[r].taken == 0)
			continue;
		parts[nparts].stock_id = demand.rows[r].id;
		parts[nparts].quantity = demand.rows[r].taken;
		total += demand.rows[r].taken;
		nparts++;
	}
	reservation = ta_new_uuid();
	write_header(nspid, &reservation, order_id, reference, total, expires_at);
	write_parts(nspid, &reservation, parts, nparts);
	return reservation;
}

/* ---------------------------------------------------------------------
 * What becomes of a reservation
 * ---------------------------------------------------------------------
 */

/*
 * Locks the stock rows under some reservations, whose own rows the caller has
 * locked, and returns the parts in the order of their stock rows.
 */
static Part *
lock_parts_by_statement(Oid nspid, const pg_uuid_t *reservations, int nreservations, int *nparts)
{
	Datum values[1];
	Part *parts;

	values[0] = ta_uuid_array(reservations, nreservations);
	ta_execute(nspid, &lock_parts, SPI_OK_SELECT, values, NULL);

	*nparts = (int) SPI_processed;
	parts = palloc(sizeof(Part) * Max(*nparts, 1));
	for (int i = 0; i < *nparts; i++)
	{
		parts[i].reservation_id = ta_spi_uuid(i, 1);
		parts[i].order_id = ta_spi_nullable_uuid(i, 2);
		parts[i].stock_id = ta_spi_uuid(i, 3);
		parts[i].quantity = ta_spi_int4(i, 4);
		parts[i].tid = ta_spi_tid(i, 5);
	}
	return parts;
}

static int
compare_parts(const void *a, const void *b)
{
	return ta_compare_uuids(&((const Part *) a)->stock_id, &((const Part *) b)->stock_id);
}

/* The same by index; NULL where a table does not allow it. */
static Part *
lock_parts_directly(Oid nspid, const pg_uuid_t *reservations, int nreservations, int *nparts)
{
	TaRowReader *readers[3];
	Part		*parts = NULL;
	int			 size = 8;
	int			 n = 0;
	Datum		 values[3];
	bool		 nulls[3];

	readers[0] = open_reader(nspid, "stock_reservations", false,
							 reservation_order_columns, lengthof(reservation_order_columns));
	readers[1] = open_reader(nspid, "stock_reservation_parts", false,
							 reservation_part_columns, lengthof(reservation_part_columns));
	readers[2] = open_reader(nspid, "inventory_stock", true, stock_id_columns, lengthof(stock_id_columns));
	if (readers[0] == NULL || readers[1] == NULL || readers[2] == NULL)
	{
		close_readers(readers, lengthof(readers));
		return NULL;
	}

	parts = palloc(sizeof(Part) * size);
	for (int r = 0; r < nreservations; r++)
	{
		TaUuid order_id = {.isnull = true};

		CHECK_FOR_INTERRUPTS();
		ta_reader_find(readers[0], UUIDPGetDatum(&reservations[r]));
		if (ta_reader_next(readers[0], values, nulls, NULL) && !nulls[1])
		{
			order_id.isnull = false;
			order_id.value = *DatumGetUUIDP(values[1]);
		}
		ta_reader_find(readers[1], UUIDPGetDatum(&reservations[r]));
		while (ta_reader_next(readers[1], values, nulls, NULL))
		{
			if (n == size)
			{
				size *= 2;
				parts = repalloc_huge(parts, sizeof(Part) * size);
			}
			parts[n].reservation_id = reservations[r];
			parts[n].order_id = order_id;
			parts[n].stock_id = *DatumGetUUIDP(values[1]);
			parts[n].quantity = DatumGetInt32(values[2]);
			n++;
		}
	}
	qsort(parts, n, sizeof(Part), compare_parts);

	for (int i = 0; i < n; i++)
	{
		if (i > 0 && ta_compare_uuids(&parts[i - 1].stock_id, &parts[i].stock_id) == 0)
		{
			parts[i].tid = parts[i - 1].tid;
			continue;
		}
		CHECK_FOR_INTERRUPTS();
		ta_reader_find(readers[2], UUIDPGetDatum(&parts[i].stock_id));
		if (!ta_reader_next(readers[2], values, nulls, &parts[i].tid) ||
			!ta_reader_lock(readers[2], &parts[i].tid, values, nulls))
			elog(ERROR, "stock row of a reservation is missing");
	}
	close_readers(readers, lengthof(readers));
	*nparts = n;
	return parts;
}

static Part *
lock_parts_of(Oid nspid, const pg_uuid_t *reservations, int nreservations, int *nparts)
{
	Part *parts = lock_parts_directly(nspid, reservations, nreservations, nparts);

	return parts != NULL ? parts : lock_parts_by_statement(nspid, reservations, nreservations, nparts);
}

/*
 * Sums parts by stock row, in whose order they come: by how much the rows
 * change when the units are no longer reserved and, where sold, gone.
 */
static TaStockChange *
sum_parts(const Part *parts, int nparts, bool sold, int *count)
{
	TaStockChange *changes = palloc0(sizeof(TaStockChange) * Max(nparts, 1));
	int			   n = 0;

	for (int i = 0; i < nparts; i++)
	{
		if (n == 0 || ta_compare_uuids(&changes[n - 1].id, &parts[i].stock_id) != 0)
		{
			changes[n].id = parts[i].stock_id;
			changes[n].tid = parts[i].tid;
			n++;
		}
		changes[n - 1].reserved -= parts[i].quantity;
		if (sold)
			changes[n - 1].on_hand -= parts[i].quantity;
	}
	*count = n;
	return changes;
}

/* Gives the units of closed reservations back. */
static void
free_parts(Oid nspid, const pg_uuid_t *reservations, int nreservations)
{
	int			   nparts;
	Part		  *parts;
	TaStockChange *changes;
	int			   nchanges;

	if (nreservations == 0)
		return;
	parts = lock_parts_of(nspid, reservations, nreservations, &nparts);
	changes = sum_parts(parts, nparts, false, &nchanges); /* none: swept already */
	ta_change_stock(nspid, changes, nchanges);
}

/* Turns the units of closed reservations into sales. */
static void
sell_parts(Oid nspid, const pg_uuid_t *reservations, int nreservations, const TaPosting *posting)
{
	int			   nparts;
	Part		  *parts;
	TaStockChange *changes;
	int			   nchanges;
	TaMovement	  *movements;

	if (nreservations == 0)
		return;
	parts = lock_parts_of(nspid, reservations, nreservations, &nparts);
	changes = sum_parts(parts, nparts, true, &nchanges);
	ta_change_stock(nspid, changes, nchanges);

	/* an order's sale is found through the order, others through their reservation */
	movements = palloc0(sizeof(TaMovement) * Max(nparts, 1));
	for (int i = 0; i < nparts; i++)
	{
		movements[i].stock_id = parts[i].stock_id;
		movements[i].quantity = -parts[i].quantity;
		movements[i].order_id = parts[i].order_id;
		movements[i].reservation_id.isnull = !parts[i].order_id.isnull;
		movements[i].reservation_id.value = parts[i].reservation_id;
	}
	ta_write_movements(nspid, movements, nparts, posting);
}

/* Marks which of the orders stand in a column of the current result. */
static bool *
mark_orders(const pg_uuid_t *orders, int norders, int column)
{
	bool *marked = palloc0(sizeof(bool) * norders);

	if (norders == 1)
	{
		marked[0] = SPI_processed > 0;
		return marked;
	}
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		pg_uuid_t		 id = ta_spi_uuid(r, column);
		const pg_uuid_t *found = ta_find_by_id(&id, orders, norders, sizeof(pg_uuid_t));

		if (found == NULL)
			elog(ERROR, "a row came back that was not asked for");
		marked[found - orders] = true;
	}
	return marked;
}

/*
 * Holds (sold = false) or sells the reservations of one order that still bind,
 * by index.  False where a table does not allow it; else *ids are theirs.  The
 * same as the statements hold_reservations and sell_reservations.
 */
static bool
bind_directly(Oid nspid, const pg_uuid_t *order_id, bool sold, pg_uuid_t **ids, int *count)
{
	TaRowReader		*reader = open_reader(nspid, "stock_reservations", true,
										  order_reservation_columns, lengthof(order_reservation_columns));
	TaRowWriter		*writer;
	TimestampTz		 now = GetCurrentTimestamp();
	ItemPointerData *tids;
	ItemPointerData	 tid;
	int				 size = 4;
	int				 nfound = 0;
	int				 nbound = 0;
	Datum			 values[5];
	bool			 nulls[5];

	if (reader == NULL)
		return false;
	writer = ta_writer_open(ta_store_table(nspid, "stock_reservations"), CMD_UPDATE,
							closing_columns, lengthof(closing_columns));
	if (writer == NULL)
	{
		ta_reader_close(reader);
		return false;
	}

	tids = palloc(sizeof(ItemPointerData) * size);
	ta_reader_find(reader, UUIDPGetDatum(order_id));
	while (ta_reader_next(reader, values, nulls, &tid))
	{
		if (strcmp(TextDatumGetCString(values[2]), "active") != 0 ||
			DatumGetTimestampTz(values[3]) <= now)
			continue;
		if (nfound == size)
		{
			size *= 2;
			tids = repalloc(tids, sizeof(ItemPointerData) * size);
		}
		tids[nfound++] = tid;
	}

	*ids = palloc(sizeof(pg_uuid_t) * Max(nfound, 1));
	for (int i = 0; i < nfound; i++)
	{
		/* it may have changed while we waited for its lock */
		if (!ta_reader_lock(reader, &tids[i], values, nulls) ||
			strcmp(TextDatumGetCString(values[2]), "active") != 0 ||
			DatumGetTimestampTz(values[3]) <= now || !nulls[4])
			continue;
		(*ids)[nbound++] = *DatumGetUUIDP(values[1]);

		ta_writer_load(writer, &tids[i], values, nulls);
		if (sold)
		{
			values[0] = CStringGetTextDatum("committed");
			values[2] = TimestampTzGetDatum(now);
			nulls[2] = false;
		}
		else
			values[1] = TimestampTzGetDatum(DT_NOEND);
		ta_writer_store(writer, values, nulls);
	}
	ta_reader_close(reader);
	ta_writer_close(writer);
	*count = nbound;
	return true;
}

/* Runs a statement over the active reservations of some orders; ids in column 1. */
static pg_uuid_t *
close_orders(Oid nspid, const TaStatement *statement, const pg_uuid_t *orders, int norders, int *count)
{
	Datum	   values[2];
	pg_uuid_t *ids;

	values[0] = ta_uuid_array(orders, norders);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	*count = (int) ta_execute(nspid, statement, SPI_OK_UPDATE_RETURNING, values, NULL);

	ids = palloc(sizeof(pg_uuid_t) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
		ids[i] = ta_spi_uuid(i, 1);
	return ids;
}

/*
 * ta_inventory_hold
 *		Lets the reservations of some orders last until they are sold or released.
 *
 * orders ascend.  Returns for each whether it had a reservation that still
 * bound; the others' units must be reserved again.
 */
bool *
ta_inventory_hold(Oid nspid, const pg_uuid_t *orders, int norders)
{
	Datum	   values[2];
	pg_uuid_t *ids;
	int		   count;

	if (norders == 1 && bind_directly(nspid, orders, false, &ids, &count))
	{
		bool *held = palloc(sizeof(bool));

		*held = count > 0;
		return held;
	}
	values[0] = ta_uuid_array(orders, norders);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	ta_execute(nspid, &hold_reservations, SPI_OK_UPDATE_RETURNING, values, NULL);
	return mark_orders(orders, norders, 1);
}

/*
 * ta_inventory_lock_orders
 *		Locks the orders' active reservations, then every stock row that their
 *		products have.
 *
 * For what is about to touch stock in several steps: afterwards no step waits.
 */
void
ta_inventory_lock_orders(Oid nspid, const pg_uuid_t *orders, int norders)
{
	Datum values[1];

	values[0] = ta_uuid_array(orders, norders);
	ta_execute(nspid, &lock_orders_reservations, SPI_OK_SELECT, values, NULL);
	ta_execute(nspid, &lock_orders_stock, SPI_OK_SELECT, values, NULL);
}

/*
 * ta_inventory_expire_orders
 *		Collects the expired reservations of some orders.
 */
void
ta_inventory_expire_orders(Oid nspid, const pg_uuid_t *orders, int norders)
{
	int		   count;
	pg_uuid_t *ids = close_orders(nspid, &expire_order_reservations, orders, norders, &count);

	free_parts(nspid, ids, count);
}

/*
 * ta_inventory_release
 *		Gives back what is reserved for some orders; those without are left alone.
 */
void
ta_inventory_release(Oid nspid, const pg_uuid_t *orders, int norders)
{
	int		   count;
	pg_uuid_t *ids = close_orders(nspid, &release_reservations, orders, norders, &count);

	free_parts(nspid, ids, count);
}

/*
 * ta_inventory_sell
 *		Turns what is reserved for some orders into sales.
 *
 * orders ascend; actor is who did it, null for app.current_user_id.  Returns for each whether it had a reservation that still
 * bound; the others are left alone.
 */
bool *
ta_inventory_sell(Oid nspid, const pg_uuid_t *orders, int norders,
				  Datum actor, bool actor_isnull)
{
	TaPosting  posting = {.movement_type = "sale", .actor = actor, .actor_isnull = actor_isnull};
	int		   count;
	pg_uuid_t *ids;
	bool	  *marked;

	if (norders == 1 && bind_directly(nspid, orders, true, &ids, &count))
	{
		marked = palloc(sizeof(bool));
		*marked = count > 0;
	}
	else
	{
		ids = close_orders(nspid, &sell_reservations, orders, norders, &count);
		marked = mark_orders(orders, norders, 2);
	}
	sell_parts(nspid, ids, count, &posting);
	return marked;
}

/*
 * ta_inventory_sold
 *		What of an order has been sold and not come back, by stock row: in the
 *		order in which the warehouses serve.
 *
 * The caller holds the order's row.  Returns a palloc'd array.
 */
TaStockUnits *
ta_inventory_sold(Oid nspid, const pg_uuid_t *order_id, int *count)
{
	Datum		  values[1];
	TaStockUnits *units;

	values[0] = UUIDPGetDatum(order_id);
	*count = (int) ta_execute(nspid, &sold_units, SPI_OK_SELECT, values, NULL);
	units = palloc(sizeof(TaStockUnits) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		units[i].stock_id = ta_spi_uuid(i, 1);
		units[i].product_id = ta_spi_uuid(i, 2);
		units[i].variant_id = ta_spi_nullable_uuid(i, 3);
		units[i].quantity = ta_spi_int4(i, 4);
	}
	return units;
}

static int
compare_changes(const void *a, const void *b)
{
	return ta_compare_uuids(&((const TaStockChange *) a)->id, &((const TaStockChange *) b)->id);
}

/*
 * ta_inventory_restock
 *		Puts units of an order back where they came from.
 *
 * units come from ta_inventory_sold, with the quantities that come back (0 to
 * leave a row alone).  Locks their stock rows.
 */
void
ta_inventory_restock(Oid nspid, const pg_uuid_t *order_id,
					 TaStockUnits *units, int count, const TaPosting *posting)
{
	pg_uuid_t	  *ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
	TaStockChange *changes = palloc0(sizeof(TaStockChange) * Max(count, 1));
	TaMovement	  *movements = palloc0(sizeof(TaMovement) * Max(count, 1));
	int			   n = 0;
	Datum		   values[1];

	for (int i = 0; i < count; i++)
	{
		if (units[i].quantity == 0)
			continue;
		ids[n] = units[i].stock_id;
		changes[n].id = units[i].stock_id;
		changes[n].on_hand = units[i].quantity;
		movements[n].stock_id = units[i].stock_id;
		movements[n].quantity = units[i].quantity;
		movements[n].order_id.value = *order_id;
		movements[n].reservation_id.isnull = true;
		n++;
	}
	if (n == 0)
		return;

	/* the locked rows come in the lock order, and so must the changes */
	qsort(changes, n, sizeof(TaStockChange), compare_changes);
	values[0] = ta_uuid_array(ids, n);
	if (ta_execute(nspid, &lock_stock, SPI_OK_SELECT, values, NULL) != (uint64) n)
		elog(ERROR, "stock rows of an order are missing");
	for (int i = 0; i < n; i++)
		changes[i].tid = ta_spi_tid(i, 2);
	ta_change_stock(nspid, changes, n);
	ta_write_movements(nspid, movements, n, posting);
}

/* ---------------------------------------------------------------------
 * SQL functions
 * ---------------------------------------------------------------------
 */

/* A line of one SKU from the arguments of a stock function. */
static TaLine
one_line(FunctionCallInfo fcinfo, int sku, int quantity, int warehouse)
{
	TaLine line = {0};

	line.sku = text_to_cstring(PG_GETARG_TEXT_PP(sku));
	if (quantity >= 0)
		line.quantity = PG_GETARG_INT32(quantity);
	if (warehouse >= 0 && !PG_ARGISNULL(warehouse))
		line.warehouse = text_to_cstring(PG_GETARG_TEXT_PP(warehouse));
	line.variant_id.isnull = true;
	line.warehouse_id.isnull = true;
	return line;
}

static void
require_positive(int32 quantity)
{
	if (quantity <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("quantity must be greater than zero")));
}

/* Checks that a movement of this sign may be posted by hand. */
static void
check_movement(const char *movement, int32 quantity)
{
	static const struct
	{
		const char *type;
		int			sign; /* 0: either */
	} types[] = {
		{"purchase", 1}, {"return", 1}, {"sale", -1}, {"damage", -1}, {"adjustment", 0}};

	for (int i = 0; i < (int) lengthof(types); i++)
	{
		if (strcmp(movement, types[i].type) != 0)
			continue;
		if (types[i].sign != 0 && (types[i].sign > 0) != (quantity > 0))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 types[i].sign > 0 ? errmsg("a movement of type \"%s\" adds stock", movement) : errmsg("a movement of type \"%s\" takes stock away", movement)));
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 strcmp(movement, "transfer") == 0 ? errmsg("a transfer needs two warehouses") : errmsg("unknown type of stock movement: \"%s\"", movement),
			 strcmp(movement, "transfer") == 0 ? errhint("Use transfer_stock.") : errhint("Types are purchase, return, adjustment, sale and damage.")));
}

static char *
optional_text(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(argno));
}

static Datum
uuid_or_null(const TaUuid *value, char *null)
{
	*null = value->isnull ? 'n' : ' ';
	return value->isnull ? (Datum) 0 : UUIDPGetDatum(&value->value);
}

/* What a warehouse has of a SKU. */
static int32
units_on_hand(Oid nspid, const TaLine *line)
{
	Datum values[3];
	char  nulls[4] = "   ";

	values[0] = UUIDPGetDatum(&line->product_id);
	values[1] = uuid_or_null(&line->variant_id, &nulls[1]);
	values[2] = UUIDPGetDatum(&line->warehouse_id.value);
	ta_execute(nspid, &on_hand_in_warehouse, SPI_OK_SELECT, values, nulls);
	return ta_spi_int4(0, 1);
}

/* Adds units, making the stock row where there is none, and posts them. */
static int32
add_units(Oid nspid, TaLine *line, const TaPosting *posting)
{
	Datum	   values[4];
	char	   nulls[5] = "    ";
	pg_uuid_t  stock_id;
	TaMovement movement;

	values[0] = UUIDPGetDatum(&line->product_id);
	values[1] = uuid_or_null(&line->variant_id, &nulls[1]);
	values[2] = UUIDPGetDatum(&line->warehouse_id.value);
	values[3] = Int32GetDatum(line->quantity);
	ta_execute(nspid, line->variant_id.isnull ? &receive_product : &receive_variant,
			   SPI_OK_INSERT_RETURNING, values, nulls);
	stock_id = ta_spi_uuid(0, 1);

	movement.stock_id = stock_id;
	movement.quantity = line->quantity;
	movement.order_id.isnull = movement.reservation_id.isnull = true;
	ta_write_movements(nspid, &movement, 1, posting);
	ta_stripes_even_out(nspid, line, &stock_id);
	return units_on_hand(nspid, line);
}

/* Writes the ledger of units that were removed. */
static void
post_removed(Oid nspid, TaDemand *demand, const TaPosting *posting)
{
	TaMovement *movements = palloc0(sizeof(TaMovement) * Max(demand->nrows, 1));
	int			n = 0;

	for (int r = 0; r < demand->nrows; r++)
	{
		if (demand->rows[r].taken == 0)
			continue;
		movements[n].stock_id = demand->rows[r].id;
		movements[n].quantity = -demand->rows[r].taken;
		movements[n].order_id.isnull = movements[n].reservation_id.isnull = true;
		n++;
	}
	ta_write_movements(nspid, movements, n, posting);
}

/*
 * receive_stock(store name, sku text, quantity integer, warehouse text, movement text, note text)
 *		Adds units; returns the units on hand in that warehouse.
 */
PG_FUNCTION_INFO_V1(ta_receive_stock);
Datum
ta_receive_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku", "quantity", "warehouse", "movement"};
	TaPosting				 posting = {.actor_isnull = true};
	TaFrame					 frame;
	TaLine					 line;
	Oid						 nspid;
	int32					 on_hand;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	line = one_line(fcinfo, 1, 2, 3);
	require_positive(line.quantity);
	posting.movement_type = optional_text(fcinfo, 4);
	posting.note = optional_text(fcinfo, 5);
	check_movement(posting.movement_type, line.quantity);

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, &line, 1, TA_FOR_RECEIVING);
	on_hand = add_units(nspid, &line, &posting);
	ta_frame_end(&frame);
	PG_RETURN_INT32(on_hand);
}

/*
 * adjust_stock(store name, sku text, quantity_delta integer, warehouse text, movement text, note text)
 *		Adds or removes units; returns the units on hand in that warehouse.
 *
 * Units that are reserved cannot be removed: TA002.
 */
PG_FUNCTION_INFO_V1(ta_adjust_stock);
Datum
ta_adjust_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku", "quantity_delta", "warehouse", "movement"};
	TaPosting				 posting = {.actor_isnull = true};
	TaFrame					 frame;
	TaLine					 line;
	Oid						 nspid;
	int32					 on_hand;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	line = one_line(fcinfo, 1, 2, 3);
	if (line.quantity == 0 || line.quantity == PG_INT32_MIN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 line.quantity == 0 ? errmsg("quantity must not be zero") : errmsg("quantity is out of range")));
	posting.movement_type = optional_text(fcinfo, 4);
	posting.note = optional_text(fcinfo, 5);
	check_movement(posting.movement_type, line.quantity);

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, &line, 1, TA_FOR_STOCKTAKING);
	if (line.quantity > 0)
		on_hand = add_units(nspid, &line, &posting);
	else
	{
		TaDemand demand;

		line.quantity = -line.quantity;
		ta_secure_demand(nspid, &demand, &line, 1, TA_USE_REMOVE, false,
						 TA_ERRCODE_INSUFFICIENT_STOCK);
		post_removed(nspid, &demand, &posting);
		on_hand = units_on_hand(nspid, &line);
	}
	ta_frame_end(&frame);
	PG_RETURN_INT32(on_hand);
}

/*
 * transfer_stock(store name, sku text, quantity integer, from_warehouse text, to_warehouse text, note text)
 *		Moves units between warehouses.
 *
 * Locks the rows of both in the lock order.  Reserved units stay: TA002.
 */
PG_FUNCTION_INFO_V1(ta_transfer_stock);
Datum
ta_transfer_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku", "quantity", "from_warehouse", "to_warehouse"};
	TaPosting				 posting = {.movement_type = "transfer", .actor_isnull = true};
	TaFrame					 frame;
	TaLine					 lines[2];
	TaDemand				 demand;
	Oid						 nspid;
	Datum					 values[4];
	char					 nulls[5] = "    ";

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	lines[0] = one_line(fcinfo, 1, 2, 3);
	lines[1] = one_line(fcinfo, 1, 2, 4);
	require_positive(lines[0].quantity);
	if (strcmp(lines[0].warehouse, lines[1].warehouse) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot transfer stock from warehouse \"%s\" to itself", lines[0].warehouse)));
	posting.note = optional_text(fcinfo, 5);

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, lines, 2, TA_FOR_STOCKTAKING);

	values[0] = UUIDPGetDatum(&lines[1].product_id);
	values[1] = uuid_or_null(&lines[1].variant_id, &nulls[1]);
	values[2] = UUIDPGetDatum(&lines[1].warehouse_id.value);
	ta_execute(nspid, &make_stock_row, SPI_OK_INSERT, values, nulls);

	/* the target's rows are locked with the source's, by a line that wants nothing */
	lines[1].quantity = 0;
	ta_secure_demand(nspid, &demand, lines, 2, TA_USE_REMOVE, true,
					 TA_ERRCODE_INSUFFICIENT_STOCK);
	post_removed(nspid, &demand, &posting);
	lines[1].quantity = lines[0].quantity;
	add_units(nspid, &lines[1], &posting);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * available(store name, sku text, warehouse text) → bigint
 *		Units that can be reserved now, in one warehouse or in all active ones.
 *
 * STABLE: reads the caller's snapshot and locks nothing.
 */
PG_FUNCTION_INFO_V1(ta_available);
Datum
ta_available(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku"};
	TaFrame					 frame;
	TaLine					 line;
	Oid						 nspid;
	Datum					 values[4];
	char					 nulls[5] = "    ";
	bool					 isnull;
	int64					 units;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	line = one_line(fcinfo, 1, -1, 2);

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, &line, 1, TA_FOR_STOCKTAKING);
	values[0] = UUIDPGetDatum(&line.product_id);
	values[1] = uuid_or_null(&line.variant_id, &nulls[1]);
	values[2] = uuid_or_null(&line.warehouse_id, &nulls[2]);
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	ta_query(nspid, &available_units, values, nulls);
	units = DatumGetInt64(ta_spi_value(0, 1, &isnull));
	ta_frame_end(&frame);
	PG_RETURN_INT64(units);
}

/* When a reservation made now for this long ends; 22023 where that is not later. */
TimestampTz
ta_reservation_end(Interval *ttl)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
															  TimestampTzGetDatum(now),
															  IntervalPGetDatum(ttl)));

	if (end <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a reservation must last longer than zero")));
	return end;
}

/*
 * reserve_stock(store name, sku text, quantity integer, warehouse text, ttl interval, reference text) → uuid
 *		Promises units for a time.
 *
 * Locks the stock rows that may serve it.  TA002 where there is too little,
 * TA006 where the SKU is not for sale.
 */
PG_FUNCTION_INFO_V1(ta_reserve_stock);
Datum
ta_reserve_stock(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "sku", "quantity"};
	TaFrame					 frame;
	TaLine					 line;
	Oid						 nspid;
	TimestampTz				 end;
	pg_uuid_t				*result = palloc(sizeof(pg_uuid_t));

	ta_require_arguments(fcinfo, names, lengthof(names));
	ta_require_argument(fcinfo, 4, "ttl");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	line = one_line(fcinfo, 1, 2, 3);
	require_positive(line.quantity);
	end = ta_reservation_end(PG_GETARG_INTERVAL_P(4));

	ta_frame_begin(&frame, InvalidOid);
	ta_resolve_lines(nspid, &line, 1, TA_FOR_SALE);
	*result = ta_inventory_reserve(nspid, &line, 1, NULL, optional_text(fcinfo, 5), end,
								   TA_ERRCODE_INSUFFICIENT_STOCK);
	ta_frame_end(&frame);
	PG_RETURN_UUID_P(result);
}

/* What is known of a reservation whose row is locked. */
typedef struct Reservation
{
	bool		active; /* by its status */
	TimestampTz expires_at;
	char	   *status;
	char	   *order_number; /* NULL: not for an order */
} Reservation;

static Reservation
lock_reservation_row(Oid nspid, const pg_uuid_t *id)
{
	Reservation result;
	Datum		values[1];
	bool		isnull;

	values[0] = UUIDPGetDatum(id);
	if (ta_execute(nspid, &lock_reservation, SPI_OK_SELECT, values, NULL) == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("reservation \"%s\" does not exist",
						DatumGetCString(DirectFunctionCall1(uuid_out, values[0])))));
	result.status = ta_spi_text(0, 2);
	result.active = strcmp(result.status, "active") == 0;
	result.expires_at = DatumGetTimestampTz(ta_spi_value(0, 3, &isnull));
	result.order_number = ta_spi_text(0, 4);
	return result;
}

static void
pg_attribute_noreturn()
	raise_not_active(const Reservation *reservation)
{
	ereport(ERROR,
			(errcode(TA_ERRCODE_RESERVATION_NOT_ACTIVE),
			 errmsg("reservation is not active"),
			 errdetail("It is %s.", reservation->active ? "expired" : reservation->status),
			 errhint("Reserve the stock again.")));
}

static void
set_status(Oid nspid, const pg_uuid_t *id, const char *status)
{
	Datum values[2];

	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum(status);
	ta_execute(nspid, &close_reservation, SPI_OK_UPDATE, values, NULL);
}

/*
 * extend_reservation(store name, reservation_id uuid, ttl interval) → timestamptz
 *		Lets a reservation last at least so long from now; returns when it ends.
 *
 * Never shortens it.  Locks the reservation.  TA003 where it has ended, TA007
 * where there is none.
 */
PG_FUNCTION_INFO_V1(ta_extend_reservation);
Datum
ta_extend_reservation(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "reservation_id", "ttl"};
	TaFrame					 frame;
	Oid						 nspid;
	Reservation				 reservation;
	Datum					 values[2];
	TimestampTz				 end;
	bool					 isnull;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	end = ta_reservation_end(PG_GETARG_INTERVAL_P(2));

	ta_frame_begin(&frame, InvalidOid);
	reservation = lock_reservation_row(nspid, PG_GETARG_UUID_P(1));
	if (!reservation.active || reservation.expires_at <= GetCurrentTimestamp())
		raise_not_active(&reservation);
	values[0] = PG_GETARG_DATUM(1);
	values[1] = TimestampTzGetDatum(end);
	ta_execute(nspid, &set_expiry, SPI_OK_UPDATE_RETURNING, values, NULL);
	end = DatumGetTimestampTz(ta_spi_value(0, 1, &isnull));
	ta_frame_end(&frame);
	PG_RETURN_TIMESTAMPTZ(end);
}

/* An order's reservation follows the order's state, once it is being paid. */
static void
refuse_order_reservation(const Reservation *reservation)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("reservation belongs to order \"%s\"", reservation->order_number),
			 errhint("Use transition_order: the order's state decides over its stock.")));
}

/*
 * release_reservation(store name, reservation_id uuid) → boolean
 *		Gives a reservation's units back; true if it was active until now.
 *
 * Locks the reservation, then its stock rows.  TA007 where there is none, 55000
 * where it holds the stock of an order that is being paid or has been.
 */
PG_FUNCTION_INFO_V1(ta_release_reservation);
Datum
ta_release_reservation(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "reservation_id"};
	TaFrame					 frame;
	Oid						 nspid;
	pg_uuid_t				*id;
	Reservation				 reservation;
	bool					 bound = false;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	id = PG_GETARG_UUID_P(1);

	ta_frame_begin(&frame, InvalidOid);
	reservation = lock_reservation_row(nspid, id);
	if (reservation.active)
	{
		if (reservation.order_number != NULL && TIMESTAMP_NOT_FINITE(reservation.expires_at))
			refuse_order_reservation(&reservation);
		bound = reservation.expires_at > GetCurrentTimestamp();
		set_status(nspid, id, bound ? "released" : "expired");
		free_parts(nspid, id, 1);
	}
	ta_frame_end(&frame);
	PG_RETURN_BOOL(bound);
}

/*
 * commit_reservation(store name, reservation_id uuid, note text) → void
 *		Turns a reservation into a sale.
 *
 * Locks the reservation, then its stock rows.  TA003 where it has ended, TA007
 * where there is none, 55000 where it belongs to an order.
 */
PG_FUNCTION_INFO_V1(ta_commit_reservation);
Datum
ta_commit_reservation(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "reservation_id"};
	TaPosting				 posting = {.movement_type = "sale", .actor_isnull = true};
	TaFrame					 frame;
	Oid						 nspid;
	pg_uuid_t				*id;
	Reservation				 reservation;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	id = PG_GETARG_UUID_P(1);
	posting.note = optional_text(fcinfo, 2);

	ta_frame_begin(&frame, InvalidOid);
	reservation = lock_reservation_row(nspid, id);
	if (!reservation.active || reservation.expires_at <= GetCurrentTimestamp())
		raise_not_active(&reservation);
	if (reservation.order_number != NULL)
		refuse_order_reservation(&reservation);
	set_status(nspid, id, "committed");
	sell_parts(nspid, id, 1, &posting);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * expire_reservations(store name, max_rows integer) → integer
 *		Collects at most max_rows reservations that have expired, the oldest
 *		first; returns how many.
 *
 * Waits for nobody: leaves for later what is locked, or has a stock row that is.
 */
PG_FUNCTION_INFO_V1(ta_expire_reservations);
Datum
ta_expire_reservations(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "max_rows"};
	TaFrame					 frame;
	Oid						 nspid;
	Datum					 values[3];
	pg_uuid_t				*ids;
	int						 count;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	if (PG_GETARG_INT32(1) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero")));

	ta_frame_begin(&frame, InvalidOid);
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = PG_GETARG_DATUM(1);
	count = (int) ta_execute(nspid, &lock_expired_stock, SPI_OK_SELECT, values, NULL);
	ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
	for (int i = 0; i < count; i++)
		ids[i] = ta_spi_uuid(i, 1);
	values[2] = ta_uuid_array(ids, count);
	count = (int) ta_execute(nspid, &expire_oldest, SPI_OK_UPDATE_RETURNING, values, NULL);
	ids = palloc(sizeof(pg_uuid_t) * Max(count, 1));
	for (int i = 0; i < count; i++)
		ids[i] = ta_spi_uuid(i, 1);
	free_parts(nspid, ids, count);
	ta_stripes_fold_cooled(nspid);
	ta_frame_end(&frame);
	PG_RETURN_INT32(count);
}
