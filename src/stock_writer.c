/*-------------------------------------------------------------------------
 *
 * stock_writer.c
 *	  Writing the quantities of stock rows and the ledger.
 *
 * Whoever changes quantity_on_hand here writes the movements that explain it in
 * the same transaction: the sum of a row's movements is what it has on hand.
 * Locks nothing; the callers hold the rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "array_util.h"
#include "request_util.h"
#include "row_writer.h"
#include "spi_util.h"
#include "stock_writer.h"

static const TaStatement update_stock = {
	"UPDATE @store@.inventory_stock s"
	"   SET quantity_on_hand = s.quantity_on_hand + d.on_hand,"
	"       quantity_reserved = s.quantity_reserved + d.reserved"
	"  FROM unnest($1, $2, $3) AS d(id, on_hand, reserved) WHERE s.id = d.id",
	3,
	{UUIDARRAYOID, INT4ARRAYOID, INT4ARRAYOID}};

static const TaStatement insert_movements = {
	"INSERT INTO @store@.stock_movements"
	"   (stock_id, quantity, order_id, reservation_id, movement_type, note, actor, request_id)"
	" SELECT m.stock_id, m.quantity, m.order_id, m.reservation_id, $5, $6, $7, $8"
	"   FROM unnest($1, $2, $3, $4) AS m(stock_id, quantity, order_id, reservation_id)",
	8,
	{UUIDARRAYOID, INT4ARRAYOID, UUIDARRAYOID, UUIDARRAYOID, TEXTOID, TEXTOID, UUIDOID, TEXTOID}};

static const TaColumn stock_columns[] = {
	{"quantity_on_hand", INT4OID}, {"quantity_reserved", INT4OID}};
static const TaColumn movement_columns[] = {
	{"stock_id", UUIDOID}, {"quantity", INT4OID}, {"order_id", UUIDOID}, {"reservation_id", UUIDOID}, {"movement_type", TEXTOID}, {"note", TEXTOID}, {"actor", UUIDOID}, {"request_id", TEXTOID}};

/*
 * ta_change_stock
 *		Changes the quantities of stock rows that the caller has locked.
 *
 * Inside a frame; tid is the version that is locked.  Raises 22003 where a
 * quantity does not fit, 23514 where it must not be.
 */
void
ta_change_stock(Oid nspid, TaStockChange *changes, int count)
{
	TaRowWriter *writer;

	if (count == 0)
		return;
	writer = ta_writer_open(ta_store_table(nspid, "inventory_stock"), CMD_UPDATE,
							stock_columns, lengthof(stock_columns));
	if (writer != NULL)
	{
		for (int i = 0; i < count; i++)
		{
			Datum values[2];
			bool  nulls[2];

			ta_writer_load(writer, &changes[i].tid, values, nulls);
			values[0] = DirectFunctionCall2(int4pl, values[0], Int32GetDatum(changes[i].on_hand));
			values[1] = DirectFunctionCall2(int4pl, values[1], Int32GetDatum(changes[i].reserved));
			ta_writer_store(writer, values, nulls);
		}
		ta_writer_close(writer);
	}
	else
	{
		pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * count);
		int32	  *on_hand = palloc(sizeof(int32) * count);
		int32	  *reserved = palloc(sizeof(int32) * count);
		Datum	   values[3];

		for (int i = 0; i < count; i++)
		{
			ids[i] = changes[i].id;
			on_hand[i] = changes[i].on_hand;
			reserved[i] = changes[i].reserved;
		}
		values[0] = ta_uuid_array(ids, count);
		values[1] = ta_int4_array(on_hand, count);
		values[2] = ta_int4_array(reserved, count);
		if (ta_execute(nspid, &update_stock, SPI_OK_UPDATE, values, NULL) != (uint64) count)
			elog(ERROR, "stock rows vanished while they were locked");
	}
}

/*
 * ta_write_movements
 *		Writes the ledger.
 *
 * Inside a frame; the caller holds the stock rows.
 */
void
ta_write_movements(Oid nspid, const TaMovement *movements, int count, const TaPosting *posting)
{
	const char	*request_id = ta_request_setting("app.request_id");
	TaRowWriter *writer;
	Datum		 values[8] = {0};
	bool		 nulls[8] = {false};

	if (count == 0)
		return;
	values[4] = CStringGetTextDatum(posting->movement_type);
	nulls[5] = posting->note == NULL;
	if (!nulls[5])
		values[5] = CStringGetTextDatum(posting->note);
	values[6] = ta_request_actor(posting->actor, posting->actor_isnull, &nulls[6]);
	nulls[7] = request_id == NULL;
	if (!nulls[7])
		values[7] = CStringGetTextDatum(request_id);

	writer = ta_writer_open(ta_store_table(nspid, "stock_movements"), CMD_INSERT,
							movement_columns, lengthof(movement_columns));
	if (writer != NULL)
	{
		for (int i = 0; i < count; i++)
		{
			values[0] = UUIDPGetDatum(&movements[i].stock_id);
			values[1] = Int32GetDatum(movements[i].quantity);
			values[2] = UUIDPGetDatum(&movements[i].order_id.value);
			nulls[2] = movements[i].order_id.isnull;
			values[3] = UUIDPGetDatum(&movements[i].reservation_id.value);
			nulls[3] = movements[i].reservation_id.isnull;
			ta_writer_insert(writer, values, nulls);
		}
		ta_writer_close(writer);
	}
	else
	{
		pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * count);
		int32	  *quantities = palloc(sizeof(int32) * count);
		TaUuid	  *orders = palloc(sizeof(TaUuid) * count);
		TaUuid	  *reservations = palloc(sizeof(TaUuid) * count);
		char	   spi_nulls[9] = "        ";

		for (int i = 0; i < count; i++)
		{
			ids[i] = movements[i].stock_id;
			quantities[i] = movements[i].quantity;
			orders[i] = movements[i].order_id;
			reservations[i] = movements[i].reservation_id;
		}
		values[0] = ta_uuid_array(ids, count);
		values[1] = ta_int4_array(quantities, count);
		values[2] = ta_nullable_uuid_array(orders, count);
		values[3] = ta_nullable_uuid_array(reservations, count);
		for (int i = 4; i < 8; i++)
			spi_nulls[i] = nulls[i] ? 'n' : ' ';
		ta_execute(nspid, &insert_movements, SPI_OK_INSERT, values, spi_nulls);
	}
}
