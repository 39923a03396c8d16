/*-------------------------------------------------------------------------
 *
 * array_util.c
 *	  Keys, and array values for the parameters of set-based statements.
 *
 * Those for arrays return a palloc'd one-dimensional array; a NULL pointer
 * among texts, or isnull among uuids, is a NULL element.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "array_util.h"

/* between the epochs of PostgreSQL and Unix, in microseconds */
#define EPOCH_DIFFERENCE ((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/*
 * ta_new_uuid
 *		A new key: the time in milliseconds, then 74 random bits (RFC 9562,
 *		version 7).
 *
 * Keys that ascend are entered at one end of an index: a page after the other is
 * filled, where random ones would touch, and log, as many pages as there are keys.
 * The random bytes are fetched for many at a time: asking costs more than they do.
 * Raises XX000 where the system has none.
 */
pg_uuid_t
ta_new_uuid(void)
{
	static unsigned char bytes[64 * UUID_LEN];
	static size_t		 left = 0;
	pg_uuid_t			 result;
	uint64				 now = (GetCurrentTimestamp() + EPOCH_DIFFERENCE) / 1000;

	if (left == 0)
	{
		if (!pg_strong_random(bytes, sizeof(bytes)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = sizeof(bytes);
	}
	left -= UUID_LEN;
	memcpy(result.data, bytes + left, UUID_LEN);
	memset(bytes + left, 0, UUID_LEN);
	for (int i = 0; i < 6; i++)
		result.data[i] = (unsigned char) (now >> (8 * (5 - i)));
	result.data[6] = (result.data[6] & 0x0f) | 0x70;
	result.data[8] = (result.data[8] & 0x3f) | 0x80;
	return result;
}

static Datum
make_array(Datum *datums, bool *nulls, int count, Oid type)
{
	int	  dims[1] = {count};
	int	  lower_bounds[1] = {1};
	int16 typlen;
	bool  typbyval;
	char  typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_md_array(datums, nulls, 1, dims, lower_bounds,
											  type, typlen, typbyval, typalign));
}

Datum
ta_uuid_array(const pg_uuid_t *values, int count)
{
	Datum *datums = palloc(sizeof(Datum) * Max(count, 1));

	for (int i = 0; i < count; i++)
		datums[i] = UUIDPGetDatum(&values[i]);
	return make_array(datums, NULL, count, UUIDOID);
}

Datum
ta_nullable_uuid_array(const TaUuid *values, int count)
{
	Datum *datums = palloc(sizeof(Datum) * Max(count, 1));
	bool  *nulls = palloc(sizeof(bool) * Max(count, 1));

	for (int i = 0; i < count; i++)
	{
		datums[i] = UUIDPGetDatum(&values[i].value);
		nulls[i] = values[i].isnull;
	}
	return make_array(datums, nulls, count, UUIDOID);
}

Datum
ta_int4_array(const int32 *values, int count)
{
	Datum *datums = palloc(sizeof(Datum) * Max(count, 1));

	for (int i = 0; i < count; i++)
		datums[i] = Int32GetDatum(values[i]);
	return make_array(datums, NULL, count, INT4OID);
}

Datum
ta_text_array(const char *const *values, int count)
{
	Datum *datums = palloc(sizeof(Datum) * Max(count, 1));
	bool  *nulls = palloc(sizeof(bool) * Max(count, 1));

	for (int i = 0; i < count; i++)
	{
		nulls[i] = values[i] == NULL;
		datums[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(values[i]);
	}
	return make_array(datums, nulls, count, TEXTOID);
}

Datum
ta_datum_array(Datum *values, int count, Oid type)
{
	return make_array(values, NULL, count, type);
}

static int
compare_by_id(const void *id, const void *element)
{
	return ta_compare_uuids(id, element);
}

/*
 * ta_find_by_id
 *		The element of an ascending array that begins with this key; NULL where
 *		there is none.
 */
void *
ta_find_by_id(const pg_uuid_t *id, const void *elements, int count, size_t size)
{
	const void *found = bsearch(id, elements, count, size, compare_by_id);

	return unconstify(void *, found);
}
