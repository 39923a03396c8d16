/*-------------------------------------------------------------------------
 *
 * array_util.h
 *	  Keys, and array values for the parameters of set-based statements.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_ARRAY_UTIL_H
#define TECHALLY_ARRAY_UTIL_H

#include "postgres.h"

#include "utils/uuid.h"

/* A uuid that may be NULL, by value. */
typedef struct TaUuid
{
	bool	  isnull;
	pg_uuid_t value;
} TaUuid;

/* Which of two keys comes first, as the server orders them. */
static inline int
ta_compare_uuids(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a->data, b->data, UUID_LEN);
}

extern pg_uuid_t ta_new_uuid(void);

extern Datum ta_uuid_array(const pg_uuid_t *values, int count);
extern Datum ta_nullable_uuid_array(const TaUuid *values, int count);
extern Datum ta_int4_array(const int32 *values, int count);
extern Datum ta_text_array(const char *const *values, int count);
extern Datum ta_datum_array(Datum *values, int count, Oid type);
extern void *ta_find_by_id(const pg_uuid_t *id, const void *elements, int count, size_t size);

#endif /* TECHALLY_ARRAY_UTIL_H */
