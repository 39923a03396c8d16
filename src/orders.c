/*-------------------------------------------------------------------------
 *
 * orders.c
 *	  Orders: placing, pricing, and what each change of state does to stock.
 *
 * What a transition does to stock hangs on the change of the row, not on the
 * function that made it: ta_post_order_effects is an AFTER UPDATE statement
 * trigger that reads the transition tables, so a bare UPDATE posts the same as
 * transition_order, and an UPDATE of many orders posts for all of them in one
 * fixed lock order.
 *
 * The stock rows are the last thing that an order locks: everything that does
 * not need them is written first.
 *
 * Money is numeric throughout.  Line totals are rounded to cents line by line.
 *
 * Sources: document 001, section 5 (states), documents 000 and 003 (columns).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "array_util.h"
#include "compat.h"
#include "errors.h"
#include "inventory.h"
#include "request_util.h"
#include "row_reader.h"
#include "row_writer.h"
#include "spi_util.h"
#include "state_machine.h"
#include "trigger_util.h"

#define MAX_LINES	  10000
#define STATUS_COLUMN "status"

/* One member of a JSON line, by its place in the caller's list of names. */
#define MAX_MEMBERS 4

/* An order about to be written. */
typedef struct NewOrder
{
	Oid			  nspid;
	Datum		  user_id;
	TaLine		 *lines;
	int			  nlines;
	Datum		 *unit_prices; /* numeric; by line */
	Datum		  subtotal;
	Datum		  charges;
	const char	 *currency;
	const char	 *order_number; /* NULL: draw one */
	Datum		  placed_at;	/* timestamptz; 0: now */
	NullableDatum shipping_address;
	NullableDatum billing_address;
	const char	 *idempotency_key; /* NULL: none */
	Datum		  payload;		   /* jsonb, with a key */
	TimestampTz	  reserved_until;
	Datum		  actor;
	bool		  actor_isnull;

	/* what writing it makes */
	pg_uuid_t id;
	Datum	  row; /* composite, in the caller's context */
} NewOrder;

/* A charge of an imported order. */
typedef struct Charge
{
	const char *code;
	const char *description;
	Datum		amount; /* numeric */
} Charge;

/* A line of a return, and the order item that it turned out to be. */
typedef struct ReturnLine
{
	pg_uuid_t item_id;
	pg_uuid_t product_id;
	TaUuid	  variant_id;
	char	 *sku;
	int32	  line_number;
	int32	  left;		/* units not returned yet */
	int32	  quantity; /* units that come back now */
	Datum	  unit_price;
	Datum	  amount_left; /* of line_total, not returned yet */
	Datum	  amount;
} ReturnLine;

#define INSERT_ORDER                                                                              \
	"INSERT INTO @store@.orders AS o"                                                             \
	"   (id, order_number, user_id, subtotal, charges, total, currency,"                          \
	"    shipping_address, billing_address, idempotency_key, idempotency_payload, created_at)"    \
	" SELECT $1, $2, u.id, $4, $5, $4 + $5, $6, $7, $8, $9, $10, coalesce($11, pg_catalog.now())" \
	"   FROM @store@.users u"                                                                     \
	"  WHERE u.id = $3 AND u.deleted_at IS NULL AND u.status <> 'deleted'"

#define INSERT_ORDER_TYPES                                          \
	{                                                               \
		UUIDOID, TEXTOID, UUIDOID, NUMERICOID, NUMERICOID, TEXTOID, \
			JSONBOID, JSONBOID, TEXTOID, JSONBOID, TIMESTAMPTZOID   \
	}

static const TaStatement insert_order = {
	INSERT_ORDER " RETURNING o", 11, INSERT_ORDER_TYPES};

static const TaStatement insert_order_with_key = {
	INSERT_ORDER
	" ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING o",
	11, INSERT_ORDER_TYPES};

static const TaStatement find_by_key = {
	"SELECT o, o.idempotency_payload = $3 FROM @store@.orders o"
	" WHERE o.user_id = $1 AND o.idempotency_key = $2",
	3,
	{UUIDOID, TEXTOID, JSONBOID}};

static const TaStatement build_payload = {
	"SELECT pg_catalog.jsonb_build_object('lines', $1, 'shipping_address', $2, 'billing_address', $3,"
	" 'currency', $4, 'coupon_code', $5,"
	" 'reserve_for', pg_catalog.date_part('epoch', $6))",
	6,
	{JSONBOID, JSONBOID, JSONBOID, TEXTOID, TEXTOID, INTERVALOID}};

static const TaStatement insert_items = {
	"INSERT INTO @store@.order_items"
	"   (order_id, line_number, product_id, variant_id, sku, name, quantity, unit_price)"
	" SELECT $1, d.n, d.product_id, d.variant_id, d.sku, d.name, d.quantity, d.unit_price"
	"   FROM unnest($2, $3, $4, $5, $6, $7) WITH ORDINALITY"
	"     AS d(product_id, variant_id, sku, name, quantity, unit_price, n)",
	7,
	{UUIDOID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, NUMERICARRAYOID}};

static const TaStatement insert_charges = {
	"INSERT INTO @store@.order_charges (order_id, code, description, amount)"
	" SELECT $1, d.code, d.description, d.amount"
	"   FROM unnest($2, $3, $4) AS d(code, description, amount)",
	4,
	{UUIDOID, TEXTARRAYOID, TEXTARRAYOID, NUMERICARRAYOID}};

/* moves an order from whichever state of $2 it is in to the state beside it in $3 */
static const TaStatement update_status = {
	"UPDATE @store@.orders o SET status = ($3)[pg_catalog.array_position($2, o.status::pg_catalog.text)]"
	" WHERE o.id = $1 AND o.status = ANY ($2) RETURNING o.status::pg_catalog.text",
	3,
	{UUIDOID, TEXTARRAYOID, TEXTARRAYOID}};

static const TaStatement read_status = {
	"SELECT o.status::pg_catalog.text,"
	"       (SELECT h.event FROM @store@.order_status_history h"
	"         WHERE h.order_id = o.id ORDER BY h.sequence DESC LIMIT 1)"
	"  FROM @store@.orders o WHERE o.id = $1",
	1,
	{UUIDOID}};

/* locks the order and makes the lock show to a serializable or repeatable-read rival */
static const TaStatement touch_order = {
	"UPDATE @store@.orders o SET updated_at = pg_catalog.now() WHERE o.id = $1"
	" RETURNING o.status::pg_catalog.text",
	1,
	{UUIDOID}};

static const TaStatement read_items = {
	"SELECT i.id, i.product_id, i.variant_id, i.sku, i.line_number,"
	"       (i.quantity - coalesce(r.quantity, 0))::pg_catalog.int4, i.unit_price,"
	"       i.line_total - coalesce(r.amount, 0)"
	"  FROM @store@.order_items i"
	"  LEFT JOIN LATERAL (SELECT sum(ri.quantity) AS quantity, sum(ri.amount) AS amount"
	"                       FROM @store@.order_return_items ri WHERE ri.order_item_id = i.id) r ON true"
	" WHERE i.order_id = $1 ORDER BY i.line_number",
	1,
	{UUIDOID}};

static const TaStatement insert_return = {
	"WITH header AS ("
	"  INSERT INTO @store@.order_returns (id, order_id, amount, note, actor)"
	"  SELECT $1, $2, sum(a), $6, $7 FROM unnest($5) AS a)"
	" INSERT INTO @store@.order_return_items (return_id, order_item_id, quantity, amount)"
	" SELECT $1, d.item_id, d.quantity, d.amount"
	"   FROM unnest($3, $4, $5) AS d(item_id, quantity, amount)",
	7,
	{UUIDOID, UUIDOID, UUIDARRAYOID, INT4ARRAYOID, NUMERICARRAYOID, TEXTOID, UUIDOID}};

static const TaStatement set_status = {
	"UPDATE @store@.orders SET status = $2 WHERE id = $1",
	2,
	{UUIDOID, TEXTOID}};

/* what an order wants that is neither sold nor reserved */
static const TaStatement unreserved_items = {
	"SELECT i.product_id, i.variant_id, i.sku, sum(i.quantity)"
	"  FROM @store@.order_items i WHERE i.order_id = $1"
	" GROUP BY i.product_id, i.variant_id, i.sku",
	1,
	{UUIDOID}};

/* ---------------------------------------------------------------------
 * JSON input
 * ---------------------------------------------------------------------
 */

/* The elements of a JSON array of objects, checked to be that. */
static JsonbContainer **
array_of_objects(Jsonb *jsonb, const char *argument, int *count)
{
	JsonbContainer	 **objects;
	JsonbIterator	  *iterator;
	JsonbIteratorToken token;
	JsonbValue		   value;
	int				   n = 0;

	if (!JB_ROOT_IS_ARRAY(jsonb) || JB_ROOT_IS_SCALAR(jsonb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be a JSON array of objects", argument)));
	if (JB_ROOT_COUNT(jsonb) > MAX_LINES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" has %u elements, the limit is %d", argument,
						(unsigned) JB_ROOT_COUNT(jsonb), MAX_LINES)));

	objects = palloc(sizeof(JsonbContainer *) * Max(JB_ROOT_COUNT(jsonb), 1));
	iterator = JsonbIteratorInit(&jsonb->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (value.type != jbvBinary || !JsonContainerIsObject(value.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s[%d] must be an object", argument, n)));
		objects[n++] = value.val.binary.data;
	}
	*count = n;
	return objects;
}

/* Fetches the named members of an object; any other member is refused. */
static void
fetch_members(JsonbContainer *object, const char *argument, int n,
			  const char *const *names, int nnames, JsonbValue **members)
{
	int found = 0;

	for (int i = 0; i < nnames; i++)
	{
		members[i] = getKeyJsonValueFromContainer(object, names[i], strlen(names[i]), NULL);
		if (members[i] != NULL)
			found++;
	}

	if (found < (int) JsonContainerSize(object))
	{
		JsonbIterator	  *iterator = JsonbIteratorInit(object);
		JsonbIteratorToken token;
		JsonbValue		   value;

		while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		{
			bool known = token != WJB_KEY;

			for (int i = 0; i < nnames && !known; i++)
				known = value.val.string.len == (int) strlen(names[i]) &&
						strncmp(value.val.string.val, names[i], value.val.string.len) == 0;
			if (!known)
			{
				StringInfoData known_names;

				initStringInfo(&known_names);
				for (int i = 0; i < nnames; i++)
					appendStringInfo(&known_names, "%s%s", i == 0 ? "" : ", ", names[i]);
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("%s[%d] has an unknown member \"%.*s\"", argument, n,
								value.val.string.len, value.val.string.val),
						 errhint("Members are: %s.", known_names.data)));
			}
		}
	}

	/* a JSON null is a member that is not there */
	for (int i = 0; i < nnames; i++)
		if (members[i] != NULL && members[i]->type == jbvNull)
			members[i] = NULL;
}

static void
pg_attribute_noreturn()
	raise_missing(const char *argument, int n, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s[%d] has no \"%s\"", argument, n, name)));
}

static void
pg_attribute_noreturn()
	raise_malformed(const char *argument, int n, const char *name, const char *expected)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
			 errmsg("%s[%d].%s must be %s", argument, n, name, expected)));
}

static char *
string_member(JsonbValue *value, const char *argument, int n, const char *name)
{
	if (value->type != jbvString)
		raise_malformed(argument, n, name, "a string");
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static Datum
numeric_member(JsonbValue *value, const char *argument, int n, const char *name)
{
	if (value->type != jbvNumeric)
		raise_malformed(argument, n, name, "a number");
	return NumericGetDatum(value->val.numeric);
}

static Datum
numeric_of_int(int32 value)
{
	return DirectFunctionCall1(int4_numeric, Int32GetDatum(value));
}

static int
compare_numerics(Datum a, Datum b)
{
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp, a, b));
}

static int32
quantity_member(JsonbValue *value, const char *argument, int n)
{
	Datum number;

	if (value == NULL)
		raise_missing(argument, n, "quantity");
	number = numeric_member(value, argument, n, "quantity");
	if (compare_numerics(number, DirectFunctionCall2(numeric_trunc, number, Int32GetDatum(0))) != 0)
		raise_malformed(argument, n, "quantity", "a whole number");
	if (compare_numerics(number, numeric_of_int(PG_INT32_MAX)) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s[%d].quantity is out of range", argument, n)));
	if (compare_numerics(number, numeric_of_int(0)) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s[%d].quantity must be greater than zero", argument, n)));
	return DatumGetInt32(DirectFunctionCall1(numeric_int4, number));
}

/*
 * Reads the lines of an order.  Their prices go to *unit_prices where that is
 * not NULL (0 where the line has none); elsewhere a price is an unknown member.
 */
static TaLine *
parse_order_lines(Jsonb *jsonb, int *count, Datum **unit_prices)
{
	static const char *const names[] = {"sku", "quantity", "warehouse", "unit_price"};
	int						 nnames = unit_prices != NULL ? 4 : 3;
	JsonbContainer		   **objects = array_of_objects(jsonb, "lines", count);
	TaLine					*lines = palloc0(sizeof(TaLine) * Max(*count, 1));

	if (unit_prices != NULL)
		*unit_prices = palloc0(sizeof(Datum) * Max(*count, 1));

	for (int i = 0; i < *count; i++)
	{
		JsonbValue *members[MAX_MEMBERS];

		fetch_members(objects[i], "lines", i, names, nnames, members);
		if (members[0] == NULL)
			raise_missing("lines", i, "sku");
		lines[i].sku = string_member(members[0], "lines", i, "sku");
		lines[i].quantity = quantity_member(members[1], "lines", i);
		if (members[2] != NULL)
			lines[i].warehouse = string_member(members[2], "lines", i, "warehouse");
		if (nnames == 4 && members[3] != NULL)
		{
			Datum price = numeric_member(members[3], "lines", i, "unit_price");

			if (compare_numerics(price, numeric_of_int(0)) < 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("lines[%d].unit_price must not be negative", i)));
			(*unit_prices)[i] = DirectFunctionCall2(numeric_round, price, Int32GetDatum(4));
		}
	}
	return lines;
}

static Charge *
parse_charges(Jsonb *jsonb, int *count)
{
	static const char *const names[] = {"code", "description", "amount"};
	JsonbContainer		   **objects = array_of_objects(jsonb, "charges", count);
	Charge					*charges = palloc0(sizeof(Charge) * Max(*count, 1));

	for (int i = 0; i < *count; i++)
	{
		JsonbValue *members[MAX_MEMBERS];

		fetch_members(objects[i], "charges", i, names, lengthof(names), members);
		if (members[0] == NULL)
			raise_missing("charges", i, "code");
		charges[i].code = string_member(members[0], "charges", i, "code");
		if (charges[i].code[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("charges[%d].code must not be empty", i)));
		if (members[1] != NULL)
			charges[i].description = string_member(members[1], "charges", i, "description");
		if (members[2] == NULL)
			raise_missing("charges", i, "amount");
		charges[i].amount = DirectFunctionCall2(numeric_round,
												numeric_member(members[2], "charges", i, "amount"),
												Int32GetDatum(2));
	}
	return charges;
}

/* An ISO 4217 code, in capitals. */
static char *
parse_currency(text *value)
{
	char *currency = text_to_cstring(value);
	bool  valid = strlen(currency) == 3;

	for (int i = 0; i < 3 && valid; i++)
	{
		if (currency[i] >= 'a' && currency[i] <= 'z')
			currency[i] -= 'a' - 'A';
		valid = currency[i] >= 'A' && currency[i] <= 'Z';
	}
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid currency: \"%s\"", text_to_cstring(value)),
				 errhint("A currency is the three letters of ISO 4217.")));
	return currency;
}

/* ---------------------------------------------------------------------
 * Placing
 * ---------------------------------------------------------------------
 */

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static Oid
orders_relation(Oid nspid)
{
	Oid relid = ta_store_table(nspid, "orders");

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("store \"%s\" has no table \"orders\"", get_namespace_name(nspid))));
	return relid;
}

/* Draws an order number: the day (UTC), then the store's own count. */
static char *
draw_order_number(Oid nspid)
{
	Oid			 sequence = ta_store_table(nspid, "order_number_seq");
	struct pg_tm tm;
	fsec_t		 fsec;
	int64		 number;

	if (!OidIsValid(sequence))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("store \"%s\" has no sequence \"order_number_seq\"", get_namespace_name(nspid))));
	number = nextval_internal(sequence, true);
	if (timestamp2tm(GetCurrentTransactionStartTimestamp(), NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	return psprintf("%04d%02d%02d-%07lld", tm.tm_year, tm.tm_mon, tm.tm_mday, (long long) number);
}

/* Prices the lines: their unit prices and what they come to. */
static void
price_lines(NewOrder *order)
{
	Datum subtotal = numeric_of_int(0);

	if (order->unit_prices == NULL)
		order->unit_prices = palloc0(sizeof(Datum) * Max(order->nlines, 1));
	for (int i = 0; i < order->nlines; i++)
	{
		Datum line_total;

		if (order->unit_prices[i] == (Datum) 0)
			order->unit_prices[i] = order->lines[i].price;
		line_total = DirectFunctionCall2(numeric_mul, order->unit_prices[i],
										 numeric_of_int(order->lines[i].quantity));
		line_total = DirectFunctionCall2(numeric_round, line_total, Int32GetDatum(2));
		subtotal = DirectFunctionCall2(numeric_add, subtotal, line_total);
	}
	order->subtotal = subtotal;
}

/* Looks for the order that the same user placed with the same key. */
static bool
find_first_order(NewOrder *order, MemoryContext result_context)
{
	Datum		  values[3];
	bool		  isnull;
	MemoryContext old_context;

	values[0] = order->user_id;
	values[1] = CStringGetTextDatum(order->idempotency_key);
	values[2] = order->payload;
	if (ta_execute(order->nspid, &find_by_key, SPI_OK_SELECT, values, NULL) == 0)
		return false;

	if (!DatumGetBool(ta_spi_value(0, 2, &isnull)) || isnull)
		ereport(ERROR,
				(errcode(TA_ERRCODE_IDEMPOTENCY_CONFLICT),
				 errmsg("idempotency key \"%s\" was used for another order", order->idempotency_key),
				 errdetail("The first order was placed with different arguments."),
				 errhint("Use a new key for a new order; repeat a call with exactly the same arguments.")));
	old_context = MemoryContextSwitchTo(result_context);
	order->row = datumCopy(ta_spi_value(0, 1, &isnull), false, -1);
	MemoryContextSwitchTo(old_context);
	return true;
}

static Datum
datum_or_null(NullableDatum value, char *null)
{
	*null = value.isnull ? 'n' : ' ';
	return value.value;
}

static const TaColumn user_columns[] = {
	{"id", UUIDOID}, {"deleted_at", TIMESTAMPTZOID}, {"status", TEXTOID}};
static const TaColumn new_order_columns[] = {
	{"id", UUIDOID}, {"order_number", TEXTOID}, {"user_id", UUIDOID}, {"subtotal", NUMERICOID}, {"charges", NUMERICOID}, {"total", NUMERICOID}, {"currency", TEXTOID}, {"shipping_address", JSONBOID}, {"billing_address", JSONBOID}, {"created_at", TIMESTAMPTZOID}};

/* Whether a user can order: there, not deleted.  False in *known where a statement must say. */
static bool
find_user(Oid nspid, Datum user_id, bool *known)
{
	TaRowReader *reader = ta_reader_open(ta_store_table(nspid, "users"), false, user_columns, lengthof(user_columns));
	Datum		 values[3];
	bool		 nulls[3];
	bool		 found;

	*known = reader != NULL;
	if (reader == NULL)
		return false;
	ta_reader_find(reader, user_id);
	found = ta_reader_next(reader, values, nulls, NULL) && nulls[1] && !nulls[2] &&
			strcmp(TextDatumGetCString(values[2]), "deleted") != 0;
	ta_reader_close(reader);
	return found;
}

/*
 * Writes the order's own row without a statement, the same as insert_order;
 * values and nulls are that one's.  False where a table does not allow it; else
 * *row is the row, 0 where none was written.
 */
static bool
write_order_directly(NewOrder *order, const Datum *values, const char *nulls,
					 MemoryContext result_context, Datum *row)
{
	static const int argument[] = {0, 1, 2, 3, 4, 4, 5, 6, 7, 10};
	Datum			 columns[lengthof(argument)];
	bool			 column_nulls[lengthof(argument)];
	bool			 known;
	TaRowWriter		*writer;
	MemoryContext	 old_context;

	*row = (Datum) 0;
	if (!find_user(order->nspid, order->user_id, &known))
		return known;
	writer = ta_writer_open(ta_store_table(order->nspid, "orders"), CMD_INSERT,
							new_order_columns, lengthof(new_order_columns));
	if (writer == NULL)
		return false;
	for (int c = 0; c < (int) lengthof(argument); c++)
	{
		columns[c] = values[argument[c]];
		column_nulls[c] = nulls[argument[c]] == 'n';
	}
	columns[5] = DirectFunctionCall2(numeric_add, order->subtotal, order->charges);
	if (column_nulls[9])
	{
		columns[9] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
		column_nulls[9] = false;
	}
	ta_writer_insert(writer, columns, column_nulls);
	old_context = MemoryContextSwitchTo(result_context);
	*row = ta_writer_row(writer);
	MemoryContextSwitchTo(old_context);
	ta_writer_close(writer);
	return true;
}

/*
 * Writes the order's own row.  False where another call with the same key came
 * first; order->row is then the first order.
 */
static bool
write_order(NewOrder *order, MemoryContext result_context)
{
	Datum				values[11];
	char				nulls[12] = "           ";
	bool				isnull;
	MemoryContext		old_context;
	TaTransitionContext context = {0};
	bool				written;

	order->id = ta_new_uuid();
	values[0] = UUIDPGetDatum(&order->id);
	values[1] = CStringGetTextDatum(order->order_number ? order->order_number : draw_order_number(order->nspid));
	values[2] = order->user_id;
	values[3] = order->subtotal;
	values[4] = order->charges;
	values[5] = CStringGetTextDatum(order->currency);
	values[6] = datum_or_null(order->shipping_address, &nulls[6]);
	values[7] = datum_or_null(order->billing_address, &nulls[7]);
	if (order->idempotency_key != NULL)
	{
		values[8] = CStringGetTextDatum(order->idempotency_key);
		values[9] = order->payload;
	}
	else
		nulls[8] = nulls[9] = 'n';
	values[10] = order->placed_at;
	if (order->placed_at == (Datum) 0)
		nulls[10] = 'n';

	context.relid = orders_relation(order->nspid);
	context.actor = order->actor;
	context.actor_isnull = order->actor_isnull;
	ta_transition_push(&context);
	if (order->idempotency_key == NULL &&
		write_order_directly(order, values, nulls, result_context, &order->row))
		written = order->row != (Datum) 0;
	else
	{
		written = ta_execute(order->nspid,
							 order->idempotency_key ? &insert_order_with_key : &insert_order,
							 SPI_OK_INSERT_RETURNING, values, nulls) > 0;
		if (written)
		{
			old_context = MemoryContextSwitchTo(result_context);
			order->row = datumCopy(ta_spi_value(0, 1, &isnull), false, -1);
			MemoryContextSwitchTo(old_context);
		}
	}
	ta_transition_pop(&context);

	if (!written)
	{
		if (order->idempotency_key != NULL && find_first_order(order, result_context))
			return false;
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("user \"%s\" does not exist", uuid_text(DatumGetUUIDP(order->user_id)))));
	}
	return true;
}

static const TaColumn item_columns[] = {
	{"id", UUIDOID}, {"order_id", UUIDOID}, {"line_number", INT4OID}, {"product_id", UUIDOID}, {"variant_id", UUIDOID}, {"sku", TEXTOID}, {"name", TEXTOID}, {"quantity", INT4OID}, {"unit_price", NUMERICOID}};

/* Writes the lines without a statement; false where their table does not allow it. */
static bool
write_items_directly(NewOrder *order)
{
	/* the reservation that follows locks stock of each line's product and variant */
	static const TaVouched vouched[] = {
		{"order_id", "orders", NULL},
		{"product_id", "products", "inventory_stock"},
		{"variant_id", "product_variants", "inventory_stock"}};
	TaRowWriter *writer = ta_writer_open_vouched(vouched, lengthof(vouched),
												 ta_store_table(order->nspid, "order_items"),
												 item_columns, lengthof(item_columns));

	if (writer == NULL)
		return false;
	for (int i = 0; i < order->nlines; i++)
	{
		TaLine	 *line = &order->lines[i];
		pg_uuid_t id = ta_new_uuid();
		Datum	  values[9];
		bool	  nulls[9] = {false};

		values[0] = UUIDPGetDatum(&id);
		values[1] = UUIDPGetDatum(&order->id);
		values[2] = Int32GetDatum(i + 1);
		values[3] = UUIDPGetDatum(&line->product_id);
		values[4] = UUIDPGetDatum(&line->variant_id.value);
		nulls[4] = line->variant_id.isnull;
		values[5] = CStringGetTextDatum(line->sku);
		values[6] = CStringGetTextDatum(line->name);
		values[7] = Int32GetDatum(line->quantity);
		values[8] = order->unit_prices[i];
		ta_writer_insert(writer, values, nulls);
	}
	ta_writer_close(writer);
	return true;
}

static void
write_items(NewOrder *order)
{
	int			 n = order->nlines;
	pg_uuid_t	*products = palloc(sizeof(pg_uuid_t) * n);
	TaUuid		*variants = palloc(sizeof(TaUuid) * n);
	const char **skus = palloc(sizeof(char *) * n);
	const char **names = palloc(sizeof(char *) * n);
	int32		*quantities = palloc(sizeof(int32) * n);
	Datum		 values[7];

	for (int i = 0; i < n; i++)
	{
		products[i] = order->lines[i].product_id;
		variants[i] = order->lines[i].variant_id;
		skus[i] = order->lines[i].sku;
		names[i] = order->lines[i].name;
		quantities[i] = order->lines[i].quantity;
	}
	values[0] = UUIDPGetDatum(&order->id);
	values[1] = ta_uuid_array(products, n);
	values[2] = ta_nullable_uuid_array(variants, n);
	values[3] = ta_text_array(skus, n);
	values[4] = ta_text_array(names, n);
	values[5] = ta_int4_array(quantities, n);
	values[6] = ta_datum_array(order->unit_prices, n, NUMERICOID);
	ta_execute(order->nspid, &insert_items, SPI_OK_INSERT, values, NULL);
}

static void
write_charges(NewOrder *order, const Charge *charges, int n)
{
	const char **codes = palloc(sizeof(char *) * n);
	const char **descriptions = palloc(sizeof(char *) * n);
	Datum		*amounts = palloc(sizeof(Datum) * n);
	Datum		 values[4];

	for (int i = 0; i < n; i++)
	{
		codes[i] = charges[i].code;
		descriptions[i] = charges[i].description;
		amounts[i] = charges[i].amount;
	}
	values[0] = UUIDPGetDatum(&order->id);
	values[1] = ta_text_array(codes, n);
	values[2] = ta_text_array(descriptions, n);
	values[3] = ta_datum_array(amounts, n, NUMERICOID);
	ta_execute(order->nspid, &insert_charges, SPI_OK_INSERT, values, NULL);
}

/* Prices and writes an order, its lines, charges and reservation. */
static void
write_whole_order(NewOrder *order, const Charge *charges, int ncharges, MemoryContext result_context)
{
	Datum total = numeric_of_int(0);

	for (int i = 0; i < ncharges; i++)
		total = DirectFunctionCall2(numeric_add, total, charges[i].amount);
	order->charges = total;

	if (order->nlines > 0)
		ta_resolve_lines(order->nspid, order->lines, order->nlines, TA_FOR_SALE);
	price_lines(order);
	if (!write_order(order, result_context))
		return;
	if (ncharges > 0)
		write_charges(order, charges, ncharges);
	if (order->nlines > 0)
	{
		if (!write_items_directly(order))
			write_items(order);
		ta_inventory_reserve(order->nspid, order->lines, order->nlines, &order->id, NULL,
							 order->reserved_until, TA_ERRCODE_INSUFFICIENT_STOCK);
	}
}

static NullableDatum
nullable_argument(FunctionCallInfo fcinfo, int argno)
{
	NullableDatum result = {.value = (Datum) 0, .isnull = PG_ARGISNULL(argno)};

	if (!result.isnull)
		result.value = PG_GETARG_DATUM(argno);
	return result;
}

/*
 * place_order(store name, user_id uuid, lines jsonb, shipping_address jsonb, billing_address jsonb,
 *			   currency text, coupon_code text, idempotency_key text, reserve_for interval, actor uuid) → orders
 *		Places an order and reserves its stock for reserve_for.
 *
 * Returns the order's row.  Raises TA002, TA004, TA006, TA007 (user, warehouse,
 * coupon), 22023, 22P02, 22003 and 22004; then nothing is changed.  Locks the
 * stock rows that may serve it, last of all, until the transaction ends.
 */
PG_FUNCTION_INFO_V1(ta_place_order);
Datum
ta_place_order(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "user_id", "lines"};
	MemoryContext			 result_context = CurrentMemoryContext;
	TaFrame					 frame;
	NewOrder				 order = {0};

	ta_require_arguments(fcinfo, names, lengthof(names));
	ta_require_argument(fcinfo, 5, "currency");
	ta_require_argument(fcinfo, 8, "reserve_for");

	order.nspid = ta_store_namespace(PG_GETARG_NAME(0));
	order.user_id = PG_GETARG_DATUM(1);
	order.lines = parse_order_lines(PG_GETARG_JSONB_P(2), &order.nlines, NULL);
	if (order.nlines == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an order needs at least one line")));
	order.shipping_address = nullable_argument(fcinfo, 3);
	order.billing_address = nullable_argument(fcinfo, 4);
	order.currency = parse_currency(PG_GETARG_TEXT_PP(5));
	if (!PG_ARGISNULL(6))
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("coupon \"%s\" does not exist", text_to_cstring(PG_GETARG_TEXT_PP(6)))));
	order.reserved_until = ta_reservation_end(PG_GETARG_INTERVAL_P(8));
	order.actor_isnull = PG_ARGISNULL(9);
	order.actor = order.actor_isnull ? (Datum) 0 : PG_GETARG_DATUM(9);

	ta_frame_begin(&frame, InvalidOid);
	if (!PG_ARGISNULL(7))
	{
		Datum values[6];
		char  nulls[7] = "      ";
		bool  isnull;

		order.idempotency_key = text_to_cstring(PG_GETARG_TEXT_PP(7));
		if (order.idempotency_key[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("idempotency_key must not be empty")));
		values[0] = PG_GETARG_DATUM(2);
		values[1] = datum_or_null(order.shipping_address, &nulls[1]);
		values[2] = datum_or_null(order.billing_address, &nulls[2]);
		values[3] = CStringGetTextDatum(order.currency);
		nulls[4] = 'n';
		values[5] = PG_GETARG_DATUM(8);
		ta_execute(order.nspid, &build_payload, SPI_OK_SELECT, values, nulls);
		order.payload = datumCopy(ta_spi_value(0, 1, &isnull), false, -1);
	}
	if (order.idempotency_key == NULL || !find_first_order(&order, result_context))
		write_whole_order(&order, NULL, 0, result_context);
	ta_frame_end(&frame);
	PG_RETURN_DATUM(order.row);
}

/*
 * import_order(store name, user_id uuid, lines jsonb, placed_at timestamptz, order_number text,
 *				currency text, charges jsonb, actor uuid) → orders
 *		Places an order that was taken elsewhere.
 *
 * Same path as place_order, but lines may carry their price and the order its
 * time, number and charges; lines may be empty when charges are not.
 */
PG_FUNCTION_INFO_V1(ta_import_order);
Datum
ta_import_order(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "user_id", "lines", "placed_at"};
	MemoryContext			 result_context = CurrentMemoryContext;
	TaFrame					 frame;
	NewOrder				 order = {0};
	Charge					*charges;
	int						 ncharges;
	Interval				 hour = {.time = USECS_PER_HOUR};

	ta_require_arguments(fcinfo, names, lengthof(names));
	ta_require_argument(fcinfo, 5, "currency");
	ta_require_argument(fcinfo, 6, "charges");

	order.nspid = ta_store_namespace(PG_GETARG_NAME(0));
	order.user_id = PG_GETARG_DATUM(1);
	order.lines = parse_order_lines(PG_GETARG_JSONB_P(2), &order.nlines, &order.unit_prices);
	order.placed_at = PG_GETARG_DATUM(3);
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(3)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("placed_at must be finite")));
	if (!PG_ARGISNULL(4))
	{
		order.order_number = text_to_cstring(PG_GETARG_TEXT_PP(4));
		if (order.order_number[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("order_number must not be empty")));
	}
	order.currency = parse_currency(PG_GETARG_TEXT_PP(5));
	charges = parse_charges(PG_GETARG_JSONB_P(6), &ncharges);
	if (order.nlines == 0 && ncharges == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an order needs at least one line or charge")));
	order.shipping_address.isnull = order.billing_address.isnull = true;
	order.reserved_until = ta_reservation_end(&hour);
	order.actor_isnull = PG_ARGISNULL(7);
	order.actor = order.actor_isnull ? (Datum) 0 : PG_GETARG_DATUM(7);

	ta_frame_begin(&frame, InvalidOid);
	write_whole_order(&order, charges, ncharges, result_context);
	ta_frame_end(&frame);
	PG_RETURN_DATUM(order.row);
}

/* ---------------------------------------------------------------------
 * Moving along the state machine
 * ---------------------------------------------------------------------
 */

static void post_effect(Oid nspid, const char *effect, const pg_uuid_t *orders, int norders);

static const TaColumn order_columns[] = {
	{"id", UUIDOID}, {"status", TEXTOID}};
static const TaColumn status_columns[] = {
	{STATUS_COLUMN, TEXTOID}};

/*
 * Moves an order from whichever state of from[] it is in to the state beside it
 * in to[], without a statement: locks its row, writes it, and posts the effect
 * in the trigger's stead.  Returns false where the table does not allow it;
 * *status is set to the new state, or to NULL where no state fits or there is
 * no such order.
 */
static bool
move_directly(Oid nspid, Oid relid, Datum order_id, const char **from, const char **to, int n,
			  const char **status)
{
	TaRowReader	   *reader;
	TaRowWriter	   *writer;
	Datum			values[2];
	bool			nulls[2];
	ItemPointerData tid;
	char		   *old_status = NULL;
	bool			stands_in;
	TaTransition	transition;

	*status = NULL;

	/* the trigger posts as the table's owner; whoever else calls needs it */
	if (ta_relation_owner(relid) != GetUserId())
		return false;
	reader = ta_reader_open(relid, true, order_columns, lengthof(order_columns));
	if (reader == NULL)
		return false;
	writer = ta_writer_open_for("post_order_effects", relid, status_columns, lengthof(status_columns));
	if (writer == NULL)
	{
		ta_reader_close(reader);
		return false;
	}

	ta_reader_find(reader, order_id);
	if (ta_reader_next(reader, values, nulls, &tid) &&
		ta_reader_lock(reader, &tid, values, nulls) && !nulls[1])
	{
		old_status = TextDatumGetCString(values[1]);
		for (int i = 0; i < n && *status == NULL; i++)
			if (strcmp(from[i], old_status) == 0)
				*status = to[i];
	}
	ta_reader_close(reader);

	if (*status != NULL)
	{
		ta_writer_load(writer, &tid, values, nulls);
		values[0] = CStringGetTextDatum(*status);
		nulls[0] = false;
		ta_writer_store(writer, values, nulls);
	}
	stands_in = ta_writer_stands_in(writer);
	ta_writer_close(writer);

	if (*status != NULL && stands_in &&
		ta_machine_transition(relid, STATUS_COLUMN, old_status, *status, &transition) &&
		transition.effect != NULL)
		post_effect(nspid, transition.effect, DatumGetUUIDP(order_id), 1);
	return true;
}

/*
 * transition_order(store name, order_id uuid, event text, note text, actor uuid) → text
 *		Moves an order by an event; returns the state it is in.
 *
 * Where the event has brought the order where it is already, nothing happens.
 * One UPDATE; the row's triggers check, record and post it.  Raises TA001,
 * TA003 (process_payment when the stock is gone) and TA007.  Locks the order,
 * then what the effect needs.
 */
PG_FUNCTION_INFO_V1(ta_transition_order);
Datum
ta_transition_order(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "order_id", "event"};
	TaFrame					 frame;
	TaTransitionContext		 context = {0};
	Oid						 nspid;
	List					*transitions;
	ListCell				*cell;
	const char			   **from;
	const char			   **to;
	int						 n = 0;
	Datum					 values[3];
	const char				*status = NULL;
	text					*result;
	MemoryContext			 result_context = CurrentMemoryContext;
	MemoryContext			 old_context;

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	context.relid = orders_relation(nspid);
	context.event = text_to_cstring(PG_GETARG_TEXT_PP(2));
	context.note = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	context.actor_isnull = PG_ARGISNULL(4);
	context.actor = context.actor_isnull ? (Datum) 0 : PG_GETARG_DATUM(4);

	ta_frame_begin(&frame, InvalidOid);
	transitions = ta_machine_event(context.relid, STATUS_COLUMN, context.event);

	if (transitions != NIL)
	{
		from = palloc(sizeof(char *) * list_length(transitions));
		to = palloc(sizeof(char *) * list_length(transitions));
		foreach(cell, transitions)
		{
			TaTransition *transition = lfirst(cell);

			/* an event that leads back to where it starts has done so already */
			if (strcmp(transition->from, transition->to) == 0)
				continue;
			from[n] = transition->from;
			to[n] = transition->to;
			n++;
		}
		ta_transition_push(&context);
		if (!move_directly(nspid, context.relid, PG_GETARG_DATUM(1), from, to, n, &status))
		{
			values[0] = PG_GETARG_DATUM(1);
			values[1] = ta_text_array(from, n);
			values[2] = ta_text_array(to, n);
			if (ta_execute(nspid, &update_status, SPI_OK_UPDATE_RETURNING, values, NULL) > 0)
				status = ta_spi_text(0, 1);
		}
		ta_transition_pop(&context);
	}

	if (status == NULL)
	{
		char *last_event;
		bool  there = false;

		values[0] = PG_GETARG_DATUM(1);
		if (ta_execute(nspid, &read_status, SPI_OK_SELECT, values, NULL) == 0)
			ereport(ERROR,
					(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
					 errmsg("order \"%s\" does not exist", uuid_text(PG_GETARG_UUID_P(1)))));
		status = ta_spi_text(0, 1);
		last_event = ta_spi_text(0, 2);
		foreach(cell, transitions)
		{
			TaTransition *transition = lfirst(cell);

			if (strcmp(transition->to, status) == 0 &&
				(last_event == NULL || strcmp(last_event, context.event) == 0))
				there = true;
		}
		if (!there)
			ta_machine_raise_illegal(context.relid, STATUS_COLUMN, status, context.event, NULL);
	}

	old_context = MemoryContextSwitchTo(result_context);
	result = cstring_to_text(status);
	MemoryContextSwitchTo(old_context);
	ta_frame_end(&frame);
	PG_RETURN_TEXT_P(result);
}

/* Whether units are of this product and variant. */
static bool
is_of(const TaStockUnits *units, const pg_uuid_t *product_id, const TaUuid *variant_id)
{
	return memcmp(&units->product_id, product_id, UUID_LEN) == 0 &&
		   units->variant_id.isnull == variant_id->isnull &&
		   (variant_id->isnull ||
			memcmp(&units->variant_id.value, &variant_id->value, UUID_LEN) == 0);
}

/* Makes lines of what an order wants and has not got; 0 where it has everything. */
static TaLine *
unserved_lines(Oid nspid, const pg_uuid_t *order_id, int *count)
{
	int			  nsold;
	TaStockUnits *sold = ta_inventory_sold(nspid, order_id, &nsold);
	Datum		  values[1];
	TaLine		 *lines;
	int			  n = 0;

	values[0] = UUIDPGetDatum(order_id);
	ta_execute(nspid, &unreserved_items, SPI_OK_SELECT, values, NULL);
	lines = palloc0(sizeof(TaLine) * Max(SPI_processed, 1));
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		bool	isnull;
		int64	wanted;
		Datum	value;
		TaLine *line = &lines[n];

		line->product_id = *DatumGetUUIDP(ta_spi_value(r, 1, &isnull));
		value = ta_spi_value(r, 2, &line->variant_id.isnull);
		if (!line->variant_id.isnull)
			line->variant_id.value = *DatumGetUUIDP(value);
		line->sku = ta_spi_text(r, 3);
		line->warehouse_id.isnull = true;
		wanted = DatumGetInt64(ta_spi_value(r, 4, &isnull));

		for (int i = 0; i < nsold && wanted > 0; i++)
		{
			int64 units;

			if (!is_of(&sold[i], &line->product_id, &line->variant_id))
				continue;
			units = Min(wanted, sold[i].quantity);
			sold[i].quantity -= units;
			wanted -= units;
		}
		if (wanted <= 0)
			continue;
		if (wanted > PG_INT32_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("quantity of SKU \"%s\" is out of range", line->sku)));
		line->quantity = (int32) wanted;
		n++;
	}
	*count = n;
	return lines;
}

/*
 * Reserves again, without end, what an order has lost to expiry (or never had,
 * where its row was inserted by hand); TA003 where the stock is gone.  The
 * caller holds the stock rows of the order's products.
 */
static void
reserve_again(Oid nspid, const pg_uuid_t *order_id)
{
	int		nlines;
	TaLine *lines;

	ta_inventory_expire_orders(nspid, order_id, 1);
	lines = unserved_lines(nspid, order_id, &nlines);
	if (nlines > 0)
		ta_inventory_reserve(nspid, lines, nlines, order_id, NULL, DT_NOEND,
							 TA_ERRCODE_RESERVATION_NOT_ACTIVE);
}

/* The orders that are not marked; they ascend as before. */
static pg_uuid_t *
unmarked(const pg_uuid_t *orders, int norders, const bool *marked, int *count)
{
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t) * Max(norders, 1));
	int		   n = 0;

	for (int i = 0; i < norders; i++)
		if (!marked[i])
			result[n++] = orders[i];
	*count = n;
	return result;
}

/* Effect "reserve": from now on the units are held until sold or released. */
static void
hold_orders(Oid nspid, const pg_uuid_t *orders, int norders)
{
	bool	  *held = ta_inventory_hold(nspid, orders, norders);
	int		   nlost;
	pg_uuid_t *lost = unmarked(orders, norders, held, &nlost);

	if (nlost == 0)
		return;
	ta_inventory_lock_orders(nspid, lost, nlost);
	for (int i = 0; i < nlost; i++)
		reserve_again(nspid, &lost[i]);
}

/* Effect "sale": reserved units leave the house. */
static void
sell_orders(Oid nspid, const pg_uuid_t *orders, int norders)
{
	const TaTransitionContext *context = ta_transition_current(orders_relation(nspid));
	Datum					   actor = context ? context->actor : (Datum) 0;
	bool					   actor_isnull = context ? context->actor_isnull : true;
	bool					  *sold = ta_inventory_sell(nspid, orders, norders, actor, actor_isnull);
	int						   nlost;
	pg_uuid_t				  *lost = unmarked(orders, norders, sold, &nlost);

	if (nlost == 0)
		return;
	ta_inventory_lock_orders(nspid, lost, nlost);
	for (int i = 0; i < nlost; i++)
		reserve_again(nspid, &lost[i]);
	(void) ta_inventory_sell(nspid, lost, nlost, actor, actor_isnull);
}

/* ---------------------------------------------------------------------
 * Returns
 * ---------------------------------------------------------------------
 */

/* The items of an order with what of each has not come back. */
static ReturnLine *
read_order_items(Oid nspid, const pg_uuid_t *order_id, int *count)
{
	Datum		values[1];
	ReturnLine *items;

	values[0] = UUIDPGetDatum(order_id);
	*count = (int) ta_execute(nspid, &read_items, SPI_OK_SELECT, values, NULL);
	items = palloc0(sizeof(ReturnLine) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		bool  isnull;
		Datum value;

		items[i].item_id = *DatumGetUUIDP(ta_spi_value(i, 1, &isnull));
		items[i].product_id = *DatumGetUUIDP(ta_spi_value(i, 2, &isnull));
		value = ta_spi_value(i, 3, &items[i].variant_id.isnull);
		if (!items[i].variant_id.isnull)
			items[i].variant_id.value = *DatumGetUUIDP(value);
		items[i].sku = ta_spi_text(i, 4);
		items[i].line_number = DatumGetInt32(ta_spi_value(i, 5, &isnull));
		items[i].left = DatumGetInt32(ta_spi_value(i, 6, &isnull));
		items[i].unit_price = datumCopy(ta_spi_value(i, 7, &isnull), false, -1);
		items[i].amount_left = datumCopy(ta_spi_value(i, 8, &isnull), false, -1);
	}
	return items;
}

/*
 * Writes a return of the items' quantities and puts them back where they were
 * sold from.  Returns its key; false where nothing comes back.
 */
static bool
write_return(Oid nspid, const pg_uuid_t *order_id, ReturnLine *items, int nitems,
			 const char *note, Datum actor, bool actor_isnull, pg_uuid_t *return_id)
{
	TaPosting	  posting = {.movement_type = "return", .note = note, .actor = actor, .actor_isnull = actor_isnull};
	int			  nsold;
	TaStockUnits *sold = ta_inventory_sold(nspid, order_id, &nsold);
	int32		 *back = palloc0(sizeof(int32) * Max(nsold, 1));
	pg_uuid_t	 *ids = palloc(sizeof(pg_uuid_t) * Max(nitems, 1));
	int32		 *quantities = palloc(sizeof(int32) * Max(nitems, 1));
	Datum		 *amounts = palloc(sizeof(Datum) * Max(nitems, 1));
	int			  n = 0;
	Datum		  values[7];
	char		  nulls[8] = "       ";
	bool		  isnull;

	for (int i = 0; i < nitems; i++)
	{
		ReturnLine *item = &items[i];
		int32		wanted = item->quantity;

		if (wanted == 0)
			continue;
		for (int s = 0; s < nsold && wanted > 0; s++)
		{
			int32 units;

			if (!is_of(&sold[s], &item->product_id, &item->variant_id))
				continue;
			units = Min(wanted, sold[s].quantity - back[s]);
			back[s] += units;
			wanted -= units;
		}
		if (wanted > 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cannot return more of SKU \"%s\" than was sold", item->sku)));

		/*
		 * The units that stay keep their price, rounded once: however a line
		 * is split into returns, their amounts add up to its total and none
		 * is negative.
		 */
		item->amount =
			DirectFunctionCall2(numeric_sub, item->amount_left,
								DirectFunctionCall2(numeric_round,
													DirectFunctionCall2(numeric_mul, item->unit_price,
																		numeric_of_int(item->left - item->quantity)),
													Int32GetDatum(2)));
		ids[n] = item->item_id;
		quantities[n] = item->quantity;
		amounts[n] = item->amount;
		n++;
	}
	if (n == 0)
		return false;

	*return_id = ta_new_uuid();
	values[0] = UUIDPGetDatum(return_id);
	values[1] = UUIDPGetDatum(order_id);
	values[2] = ta_uuid_array(ids, n);
	values[3] = ta_int4_array(quantities, n);
	values[4] = ta_datum_array(amounts, n, NUMERICOID);
	if (note != NULL)
		values[5] = CStringGetTextDatum(note);
	else
		nulls[5] = 'n';
	values[6] = ta_request_actor(actor, actor_isnull, &isnull);
	nulls[6] = isnull ? 'n' : ' ';
	ta_execute(nspid, &insert_return, SPI_OK_INSERT, values, nulls);

	for (int s = 0; s < nsold; s++)
		sold[s].quantity = back[s];
	ta_inventory_restock(nspid, order_id, sold, nsold, &posting);
	return true;
}

/* Effect "restock": whatever has not come back yet comes back. */
static void
restock_order(Oid nspid, const pg_uuid_t *order_id)
{
	const TaTransitionContext *context = ta_transition_current(orders_relation(nspid));
	int						   nitems;
	ReturnLine				  *items = read_order_items(nspid, order_id, &nitems);
	pg_uuid_t				   return_id;

	for (int i = 0; i < nitems; i++)
		items[i].quantity = items[i].left;
	(void) write_return(nspid, order_id, items, nitems,
						context ? context->note : NULL,
						context ? context->actor : (Datum) 0,
						context ? context->actor_isnull : true, &return_id);
}

/* The order's items that a line of a return means: the units are spread over them. */
static void
take_return_line(ReturnLine *items, int nitems, JsonbContainer *object, int n)
{
	static const char *const names[] = {"order_item_id", "sku", "line_number", "quantity"};
	JsonbValue				*members[MAX_MEMBERS];
	pg_uuid_t				 item_id = {0};
	char					*sku = NULL;
	int32					 line_number = 0;
	int32					 quantity;
	bool					 found = false;

	fetch_members(object, "lines", n, names, lengthof(names), members);
	if ((members[0] != NULL) + (members[1] != NULL) + (members[2] != NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lines[%d] needs one of \"order_item_id\", \"sku\" and \"line_number\"", n)));
	if (members[0] != NULL)
		item_id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in,
													 CStringGetDatum(string_member(members[0], "lines", n, "order_item_id"))));
	if (members[1] != NULL)
		sku = string_member(members[1], "lines", n, "sku");
	if (members[2] != NULL)
	{
		Datum number = numeric_member(members[2], "lines", n, "line_number");

		if (compare_numerics(number, DirectFunctionCall2(numeric_trunc, number, Int32GetDatum(0))) != 0)
			raise_malformed("lines", n, "line_number", "a whole number");
		line_number = DatumGetInt32(DirectFunctionCall1(numeric_int4, number));
	}
	quantity = quantity_member(members[3], "lines", n);

	for (int i = 0; i < nitems; i++)
	{
		int32 units;

		if (members[0] != NULL && memcmp(&items[i].item_id, &item_id, UUID_LEN) != 0)
			continue;
		if (sku != NULL && strcmp(items[i].sku, sku) != 0)
			continue;
		if (members[2] != NULL && items[i].line_number != line_number)
			continue;
		found = true;
		units = Min(quantity, items[i].left - items[i].quantity);
		items[i].quantity += units;
		quantity -= units;
		if (quantity == 0)
			break;
	}
	if (!found)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("lines[%d] is no line of the order", n)));
	if (quantity > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lines[%d] returns %d more than was bought and not yet returned", n, quantity)));
}

/*
 * return_order_lines(store name, order_id uuid, lines jsonb, note text, actor uuid) → uuid
 *		Takes back some lines of an order and restocks them.
 *
 * lines: [{"order_item_id": "…", "quantity": 2}, …]; "sku" or "line_number" may
 * stand for the item.  Returns the key of the order_returns row.  The order
 * must have come as far as a state from which its machine restocks, or beyond
 * (TA001).  Never more than was bought and not yet returned (22023).  Locks the
 * order, then the stock rows.
 */
PG_FUNCTION_INFO_V1(ta_return_order_lines);
Datum
ta_return_order_lines(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "order_id", "lines"};
	TaFrame					 frame;
	TaTransitionContext		 context = {0};
	Oid						 nspid;
	pg_uuid_t				*order_id;
	JsonbContainer		   **objects;
	int						 nobjects;
	ReturnLine				*items;
	int						 nitems;
	bool					 all_back = true;
	char					*status;
	Datum					 values[2];
	pg_uuid_t				*result = palloc(sizeof(pg_uuid_t));

	ta_require_arguments(fcinfo, names, lengthof(names));
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	order_id = PG_GETARG_UUID_P(1);
	objects = array_of_objects(PG_GETARG_JSONB_P(2), "lines", &nobjects);
	if (nobjects == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a return needs at least one line")));
	context.relid = orders_relation(nspid);
	context.note = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	context.actor_isnull = PG_ARGISNULL(4);
	context.actor = context.actor_isnull ? (Datum) 0 : PG_GETARG_DATUM(4);

	ta_frame_begin(&frame, InvalidOid);
	values[0] = UUIDPGetDatum(order_id);
	if (ta_execute(nspid, &touch_order, SPI_OK_UPDATE_RETURNING, values, NULL) == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("order \"%s\" does not exist", uuid_text(order_id))));
	status = ta_spi_text(0, 1);
	if (!ta_machine_after_effect(context.relid, STATUS_COLUMN, "restock", status))
		ta_machine_raise_illegal(context.relid, STATUS_COLUMN, status, "return", NULL);

	items = read_order_items(nspid, order_id, &nitems);
	for (int i = 0; i < nobjects; i++)
		take_return_line(items, nitems, objects[i], i);
	if (!write_return(nspid, order_id, items, nitems, context.note,
					  context.actor, context.actor_isnull, result))
		elog(ERROR, "return without items");

	for (int i = 0; i < nitems; i++)
		all_back = all_back && items[i].quantity == items[i].left;
	if (all_back)
	{
		ListCell *cell;

		foreach(cell, ta_machine_leaving(context.relid, STATUS_COLUMN, status))
		{
			TaTransition *transition = lfirst(cell);

			if (transition->effect == NULL || strcmp(transition->effect, "restock") != 0)
				continue;
			context.event = transition->event;
			values[1] = CStringGetTextDatum(transition->to);
			ta_transition_push(&context);
			ta_execute(nspid, &set_status, SPI_OK_UPDATE, values, NULL);
			ta_transition_pop(&context);
			break;
		}
	}
	ta_frame_end(&frame);
	PG_RETURN_UUID_P(result);
}

/* Posts one effect for some orders, which ascend. */
static void
post_effect(Oid nspid, const char *effect, const pg_uuid_t *orders, int norders)
{
	if (strcmp(effect, "release") == 0)
		ta_inventory_release(nspid, orders, norders);
	else if (strcmp(effect, "reserve") == 0)
		hold_orders(nspid, orders, norders);
	else if (strcmp(effect, "sale") == 0)
		sell_orders(nspid, orders, norders);
	else if (strcmp(effect, "restock") == 0)
	{
		for (int i = 0; i < norders; i++)
			restock_order(nspid, &orders[i]);
	}
}

/* ---------------------------------------------------------------------
 * Triggers
 * ---------------------------------------------------------------------
 */

/* Orders whose change of state has an effect, by effect. */
typedef struct EffectList
{
	const char *effect;
	pg_uuid_t  *orders;
	int			count;
	int			size;
} EffectList;

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

static void
remember_effect(EffectList *lists, int nlists, const char *effect, const pg_uuid_t *order_id)
{
	for (int i = 0; i < nlists; i++)
	{
		EffectList *list = &lists[i];

		if (strcmp(list->effect, effect) != 0)
			continue;
		if (list->count == list->size)
		{
			list->size = list->size == 0 ? 4 : list->size * 2;
			list->orders = list->orders == NULL ? palloc(sizeof(pg_uuid_t) * list->size) : repalloc_huge(list->orders, sizeof(pg_uuid_t) * list->size);
		}
		list->orders[list->count++] = *order_id;
	}
}

/* An attribute of a row by name; it exists. */
static Datum
slot_value(TupleTableSlot *slot, int attnum, bool *isnull)
{
	return slot_getattr(slot, attnum, isnull);
}

/*
 * Reads the transition tables, which hold the old and the new rows of one
 * UPDATE in the same order, and sorts the orders by the effect of their change.
 */
static void
collect_effects(TriggerData *trigdata, EffectList *lists, int nlists)
{
	Relation		rel = trigdata->tg_relation;
	TupleDesc		desc = RelationGetDescr(rel);
	int				id = SPI_fnumber(desc, "id");
	int				status = SPI_fnumber(desc, STATUS_COLUMN);
	TupleTableSlot *before = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	TupleTableSlot *after = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	MemoryContext	row_context = AllocSetContextCreate(CurrentMemoryContext, "techally row",
														ALLOCSET_SMALL_SIZES);

	if (id <= 0 || status <= 0)
		elog(ERROR, "table \"%s\" has no id or status", RelationGetRelationName(rel));

	tuplestore_rescan(trigdata->tg_oldtable);
	tuplestore_rescan(trigdata->tg_newtable);
	while (tuplestore_gettupleslot(trigdata->tg_oldtable, true, false, before))
	{
		bool		  isnull;
		bool		  had_no_status;
		bool		  has_no_status;
		Datum		  from;
		Datum		  to;
		MemoryContext old_context;
		TaTransition  transition;

		if (!tuplestore_gettupleslot(trigdata->tg_newtable, true, false, after))
			elog(ERROR, "transition tables differ in length");
		from = slot_value(before, status, &had_no_status);
		to = slot_value(after, status, &has_no_status);
		if (had_no_status || has_no_status)
			continue; /* the state machine refuses it */

		/* both are text: equal bytes are equal states */
		if (datum_image_eq(from, to, false, -1))
			continue;
		if (memcmp(DatumGetUUIDP(slot_value(before, id, &isnull)),
				   DatumGetUUIDP(slot_value(after, id, &isnull)), UUID_LEN) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("an order's id cannot change")));

		old_context = MemoryContextSwitchTo(row_context);
		if (ta_machine_transition(RelationGetRelid(rel), STATUS_COLUMN,
								  TextDatumGetCString(from), TextDatumGetCString(to), &transition) &&
			transition.effect != NULL)
		{
			pg_uuid_t order_id = *DatumGetUUIDP(slot_value(after, id, &isnull));

			MemoryContextSwitchTo(old_context);
			remember_effect(lists, nlists, transition.effect, &order_id);
		}
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(row_context);
		CHECK_FOR_INTERRUPTS();
	}
	ExecDropSingleTupleTableSlot(before);
	ExecDropSingleTupleTableSlot(after);
}

/*
 * post_order_effects() → trigger
 *		AFTER UPDATE, for each statement, on a store's orders: posts to stock
 *		what the changes of state mean.
 *
 * The machine's own row trigger has checked the changes by now.  Acts as the
 * table's owner: who may change an order need not be able to write stock.
 */
PG_FUNCTION_INFO_V1(ta_post_order_effects);
Datum
ta_post_order_effects(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "post_order_effects",
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE);
	Relation	 rel = trigdata->tg_relation;
	Oid			 nspid = RelationGetNamespace(rel);
	enum
	{
		RELEASE,
		RESTOCK,
		RESERVE,
		SALE,
		NEFFECTS
	};
	EffectList lists[NEFFECTS] = {{"release"}, {"restock"}, {"reserve"}, {"sale"}};
	int		   neffects = 0;
	int		   norders = 0;
	TaFrame	   frame;

	if (trigdata->tg_oldtable == NULL || trigdata->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" needs both transition tables", trigdata->tg_trigger->tgname)));

	collect_effects(trigdata, lists, NEFFECTS);
	for (int i = 0; i < NEFFECTS; i++)
	{
		if (lists[i].count == 0)
			continue;
		neffects++;
		norders += lists[i].count;
		qsort(lists[i].orders, lists[i].count, sizeof(pg_uuid_t), compare_ids);
	}
	if (neffects == 0)
		return PointerGetDatum(NULL);

	ta_frame_begin(&frame, rel->rd_rel->relowner);

	/*
	 * Each effect locks its own rows in the lock order.  Where they come in
	 * several steps, all rows are locked first, in one.
	 */
	if (neffects > 1 || lists[RESTOCK].count > 1 || lists[SALE].count > 1)
	{
		pg_uuid_t *orders = palloc_extended(sizeof(pg_uuid_t) * norders, MCXT_ALLOC_HUGE);
		int		   n = 0;

		for (int i = 0; i < NEFFECTS; i++)
			for (int j = 0; j < lists[i].count; j++)
				orders[n++] = lists[i].orders[j];
		ta_inventory_lock_orders(nspid, orders, norders);
	}

	for (int i = 0; i < NEFFECTS; i++)
		if (lists[i].count > 0)
			post_effect(nspid, lists[i].effect, lists[i].orders, lists[i].count);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * stamp_order() → trigger
 *		BEFORE UPDATE, for each row, on a store's orders: sets updated_at, and
 *		completed_at where the order becomes completed (or delivered, where the
 *		machine knows no such state).
 */
PG_FUNCTION_INFO_V1(ta_stamp_order);
Datum
ta_stamp_order(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "stamp_order",
											TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_UPDATE);
	Relation	 rel = trigdata->tg_relation;
	TupleDesc	 desc = RelationGetDescr(rel);
	int			 columns[2];
	Datum		 values[2];
	bool		 nulls[2] = {false, false};
	int			 n = 0;
	int			 status = SPI_fnumber(desc, STATUS_COLUMN);
	int			 completed_at = SPI_fnumber(desc, "completed_at");
	int			 updated_at = SPI_fnumber(desc, "updated_at");

	values[0] = values[1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	if (updated_at > 0)
		columns[n++] = updated_at;
	if (status > 0 && completed_at > 0)
	{
		bool  had_none;
		bool  has_none;
		Datum from = heap_getattr(trigdata->tg_trigtuple, status, desc, &had_none);
		Datum to = heap_getattr(trigdata->tg_newtuple, status, desc, &has_none);

		if (!had_none && !has_none && !datum_image_eq(from, to, false, -1))
		{
			const char *state = TextDatumGetCString(to);

			if (strcmp(state, "completed") == 0 ||
				(strcmp(state, "delivered") == 0 &&
				 !ta_machine_has_state(RelationGetRelid(rel), STATUS_COLUMN, "completed")))
				columns[n++] = completed_at;
		}
	}
	return PointerGetDatum(heap_modify_tuple_by_cols(trigdata->tg_newtuple, desc, n,
													 columns, values, nulls));
}
