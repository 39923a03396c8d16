/*-------------------------------------------------------------------------
 *
 * search_document.c
 *	  From a product to what search knows of it: its terms, each with an
 *	  impact.
 *
 * The impact is the part of BM25 that a document determines: the occurrences
 * of the term, weighted by field, saturated and held against the document's
 * length, as a whole number from 1 to 255.  It depends on nothing but the
 * product and the length that is recorded for the store, so that it need not be
 * written again when other products come or go.
 *
 * Terms with a colon stand for properties and have no impact to speak of:
 * "b:" a brand, "c:" a category, "t:" a tag, "a:" an attribute with its value.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "search.h"
#include "spi_util.h"

/* Weights of the fields, in halves. */
#define WEIGHT_NAME		   8
#define WEIGHT_BRAND	   6
#define WEIGHT_SKU		   6
#define WEIGHT_CATEGORY	   4
#define WEIGHT_ABOVE	   1
#define WEIGHT_TAG		   4
#define WEIGHT_DESCRIPTION 2
#define WEIGHT_KIND		   3
#define WEIGHT_ATTRIBUTE   1
#define WEIGHT_MAX		   4000 /* of one term in one product */

#define MAX_TERMS	   5000 /* of one product */
#define PROPERTY_MAX   200	/* bytes of a property that tell it from others */
#define MAX_CATEGORIES 32
#define TEXT_MAX	   (1024 * 1024) /* bytes of a field that are read */

/* The columns of TA_DOCUMENT_COLUMNS. */
enum
{
	DOC_ID = 1,
	DOC_NAME,
	DOC_SKU,
	DOC_SHORT,
	DOC_DESCRIPTION,
	DOC_TAGS,
	DOC_ATTRIBUTES,
	DOC_PRICE,
	DOC_CREATED,
	DOC_CATEGORY,
	DOC_BRAND,
	DOC_BRAND_NAME,
	DOC_LANGUAGE,
	DOC_VARIANTS
};

typedef struct Category
{
	pg_uuid_t id;
	char	 *name;	 /* NULL: it is gone */
	char	 *above; /* names of those above it */
} Category;

typedef struct Draft
{
	const char *text;
	int			length;
	uint32		hash;
	int32		weight; /* 0: a property */
} Draft;

struct TaDrafts
{
	Oid			  nspid;
	Oid			  config;
	double		  average;
	HTAB		 *categories;
	MemoryContext context; /* of the document that is being made */
	MemoryContext kept;

	/* the document that is being made */
	int	   ndrafts;
	int	   nslots; /* a power of two */
	Draft *drafts;
	int	  *slots; /* index into drafts plus one */
	int	   weight;
	int	   length;
	bool   only_new; /* terms that are there already stay as they are */
};

static const TaStatement read_category = {
	"WITH RECURSIVE path AS ("
	" SELECT c.id, c.parent_id, c.name::text, 0 AS depth FROM @store@.categories c WHERE c.id = $1 AND c.deleted_at IS NULL"
	" UNION ALL"
	" SELECT c.id, c.parent_id, c.name::text, p.depth + 1 FROM @store@.categories c JOIN path p ON c.id = p.parent_id"
	"  WHERE p.depth < 32 AND c.deleted_at IS NULL)"
	" SELECT (SELECT p.name FROM path p WHERE p.depth = 0),"
	" (SELECT pg_catalog.string_agg(p.name, ' ' ORDER BY p.depth) FROM path p WHERE p.depth > 0)",
	1,
	{UUIDOID}};

/*
 * ta_term_hash
 *		A number for a term, the same on every machine of a byte order.
 */
uint32
ta_term_hash(const char *term, int length)
{
	return hash_bytes((const unsigned char *) term, length);
}

/*
 * ta_drafts_open
 *		Prepares for making documents of a store's products.
 */
TaDrafts *
ta_drafts_open(Oid nspid, Oid config, double average)
{
	TaDrafts *drafts = palloc0(sizeof(TaDrafts));
	HASHCTL	  ctl = {0};

	drafts->nspid = nspid;
	drafts->config = config;
	drafts->average = average;
	drafts->kept = CurrentMemoryContext;
	drafts->context = AllocSetContextCreate(CurrentMemoryContext, "techally search document",
											ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = UUID_LEN;
	ctl.entrysize = sizeof(Category);
	ctl.hcxt = CurrentMemoryContext;
	drafts->categories = hash_create("categories of a store", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return drafts;
}

static void
resize_slots(TaDrafts *drafts)
{
	drafts->nslots = drafts->nslots == 0 ? 128 : drafts->nslots * 2;
	drafts->slots = palloc0(sizeof(int) * drafts->nslots);
	if (drafts->drafts == NULL)
		drafts->drafts = palloc(sizeof(Draft) * drafts->nslots);
	else
		drafts->drafts = repalloc(drafts->drafts, sizeof(Draft) * drafts->nslots);
	for (int i = 0; i < drafts->ndrafts; i++)
	{
		uint32 at = drafts->drafts[i].hash & (drafts->nslots - 1);

		while (drafts->slots[at] != 0)
			at = (at + 1) & (drafts->nslots - 1);
		drafts->slots[at] = i + 1;
	}
}

static void
add_term(TaDrafts *drafts, const char *term, int length, int weight)
{
	uint32 hash = ta_term_hash(term, length);
	uint32 at;
	Draft *draft;
	char  *copy;

	if (drafts->ndrafts * 2 >= drafts->nslots)
		resize_slots(drafts);
	at = hash & (drafts->nslots - 1);
	while (drafts->slots[at] != 0)
	{
		draft = &drafts->drafts[drafts->slots[at] - 1];
		if (draft->hash == hash && draft->length == length && memcmp(draft->text, term, length) == 0)
		{
			if (!drafts->only_new)
				draft->weight = Min(draft->weight + weight, WEIGHT_MAX);
			return;
		}
		at = (at + 1) & (drafts->nslots - 1);
	}
	if (drafts->ndrafts >= MAX_TERMS)
		return;
	copy = palloc(length);
	memcpy(copy, term, length);
	draft = &drafts->drafts[drafts->ndrafts++];
	draft->text = copy;
	draft->length = length;
	draft->hash = hash;
	draft->weight = weight;
	drafts->slots[at] = drafts->ndrafts;
}

static void
add_token(const TaToken *token, void *arg)
{
	TaDrafts *drafts = (TaDrafts *) arg;

	if (token->term_length == 0)
		return;
	add_term(drafts, token->term, token->term_length, drafts->weight);
	if (!token->joined && !drafts->only_new)
		drafts->length++;
}

static void
add_text(TaDrafts *drafts, Oid config, const char *text, int length, int weight)
{
	drafts->weight = weight;
	if (length > TEXT_MAX)
		length = pg_mbcliplen(text, length, TEXT_MAX);
	ta_tokenize(config, text, length, add_token, drafts);
	CHECK_FOR_INTERRUPTS();
}

static void
add_column(TaDrafts *drafts, Oid config, HeapTuple row, TupleDesc desc, int column, int weight)
{
	bool  isnull;
	Datum value = heap_getattr(row, column, desc, &isnull);
	text *string;

	if (isnull)
		return;
	string = DatumGetTextPP(value);
	add_text(drafts, config, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string), weight);
}

/*
 * ta_property
 *		The term that stands for a property: kind is 'b', 'c', 't' or 'a'.  The
 *		result is palloc'd, its length at most PROPERTY_MAX.
 */
char *
ta_property(char kind, const char *name, int name_length, const char *value, int value_length, int *length)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, kind);
	appendStringInfoChar(&buf, ':');
	if (name != NULL)
	{
		appendBinaryStringInfo(&buf, name, name_length);
		appendStringInfoChar(&buf, '=');
	}
	appendBinaryStringInfo(&buf, value, value_length);
	*length = buf.len <= PROPERTY_MAX ? buf.len : pg_mbcliplen(buf.data, buf.len, PROPERTY_MAX);
	return buf.data;
}

static void
add_property(TaDrafts *drafts, char kind, const char *name, int name_length,
			 const char *value, int value_length)
{
	int	  length;
	char *term = ta_property(kind, name, name_length, value, value_length, &length);

	add_term(drafts, term, length, 0);
	pfree(term);
}

/* An attribute that says what a thing is: type, kind, product_type, t_type. */
static bool
names_a_kind(const char *name, int length)
{
	if (length >= 12 && pg_strncasecmp(name + length - 12, "product_type", 12) == 0)
		return true;
	if (length == 6 && name[1] == '_')
	{
		name += 2;
		length -= 2;
	}
	return length == 4 && (pg_strncasecmp(name, "type", 4) == 0 || pg_strncasecmp(name, "kind", 4) == 0);
}

static void
add_attributes(TaDrafts *drafts, Oid config, Jsonb *attributes)
{
	JsonbIterator	  *it;
	JsonbValue		   value;
	JsonbIteratorToken token;
	int				   depth = 0;
	const char		  *name = NULL;
	int				   name_length = 0;

	if (!JB_ROOT_IS_OBJECT(attributes))
		return;
	it = JsonbIteratorInit(&attributes->root);
	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_BEGIN_OBJECT:
			case WJB_BEGIN_ARRAY:
				depth++;
				break;
			case WJB_END_OBJECT:
			case WJB_END_ARRAY:
				depth--;
				break;
			case WJB_KEY:
				if (depth == 1)
				{
					name = value.val.string.val;
					name_length = value.val.string.len;
				}
				break;
			case WJB_VALUE:
			case WJB_ELEM:
				if (value.type == jbvString)
				{
					add_text(drafts, config, value.val.string.val, value.val.string.len,
							 names_a_kind(name, name_length) ? WEIGHT_KIND : WEIGHT_ATTRIBUTE);
					if (depth <= 2)
						add_property(drafts, 'a', name, name_length, value.val.string.val, value.val.string.len);
				}
				else if (value.type == jbvNumeric && depth <= 2)
				{
					char *number = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));

					add_property(drafts, 'a', name, name_length, number, strlen(number));
				}
				else if (value.type == jbvBool && depth <= 2)
					add_property(drafts, 'a', name, name_length, value.val.boolean ? "true" : "false",
								 value.val.boolean ? 4 : 5);
				break;
			default:
				break;
		}
	}
}

static void
add_tags(TaDrafts *drafts, Oid config, ArrayType *tags)
{
	Datum *values;
	bool  *nulls;
	int	   count;

	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		text *tag;

		if (nulls[i])
			continue;
		tag = DatumGetTextPP(values[i]);
		add_text(drafts, config, VARDATA_ANY(tag), VARSIZE_ANY_EXHDR(tag), WEIGHT_TAG);
		add_property(drafts, 't', NULL, 0, VARDATA_ANY(tag), VARSIZE_ANY_EXHDR(tag));
	}
}

/* A category and those above it, asked for once. */
static Category *
find_category(TaDrafts *drafts, const pg_uuid_t *id)
{
	bool	  found;
	Category *category = hash_search(drafts->categories, id, HASH_ENTER, &found);
	Datum	  values[1] = {UUIDPGetDatum(id)};
	char	 *value;

	if (found)
		return category;
	category->name = category->above = NULL;
	ta_execute(drafts->nspid, &read_category, SPI_OK_SELECT, values, NULL);
	if ((value = ta_spi_text(0, 1)) != NULL)
		category->name = MemoryContextStrdup(drafts->kept, value);
	if ((value = ta_spi_text(0, 2)) != NULL)
		category->above = MemoryContextStrdup(drafts->kept, value);
	return category;
}

static void
add_uuid_property(TaDrafts *drafts, char kind, const pg_uuid_t *id)
{
	char *value = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));

	add_property(drafts, kind, NULL, 0, value, strlen(value));
}

static int
compare_terms(const void *a, const void *b)
{
	const TaTerm *x = (const TaTerm *) a;
	const TaTerm *y = (const TaTerm *) b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return 0;
}

/*
 * ta_impact
 *		The impact of weighted occurrences in a document of so many words.
 */
int
ta_impact(int weight, int length, double average)
{
	double x = weight / 2.0;
	double part = x / (x + TA_K1 * (1 - TA_B + TA_B * length / average));
	int	   impact = (int) ceil(part * TA_IMPACT_MAX);

	return Max(1, Min(impact, TA_IMPACT_MAX));
}

/* All fields of a product. */
static void
add_fields(TaDrafts *drafts, Oid config, HeapTuple row, TupleDesc desc)
{
	bool  isnull;
	Datum value;

	add_column(drafts, config, row, desc, DOC_NAME, WEIGHT_NAME);
	add_column(drafts, config, row, desc, DOC_BRAND_NAME, WEIGHT_BRAND);
	add_column(drafts, config, row, desc, DOC_SKU, WEIGHT_SKU);
	add_column(drafts, config, row, desc, DOC_VARIANTS, WEIGHT_SKU);
	add_column(drafts, config, row, desc, DOC_SHORT, WEIGHT_DESCRIPTION);
	add_column(drafts, config, row, desc, DOC_DESCRIPTION, WEIGHT_DESCRIPTION);

	value = heap_getattr(row, DOC_CATEGORY, desc, &isnull);
	if (!isnull)
	{
		Category *category = find_category(drafts, DatumGetUUIDP(value));

		add_uuid_property(drafts, 'c', DatumGetUUIDP(value));
		if (category->name != NULL)
			add_text(drafts, config, category->name, strlen(category->name), WEIGHT_CATEGORY);
		if (category->above != NULL)
			add_text(drafts, config, category->above, strlen(category->above), WEIGHT_ABOVE);
	}
	value = heap_getattr(row, DOC_BRAND, desc, &isnull);
	if (!isnull)
		add_uuid_property(drafts, 'b', DatumGetUUIDP(value));
	value = heap_getattr(row, DOC_TAGS, desc, &isnull);
	if (!isnull)
		add_tags(drafts, config, DatumGetArrayTypeP(value));
	value = heap_getattr(row, DOC_ATTRIBUTES, desc, &isnull);
	if (!isnull)
		add_attributes(drafts, config, DatumGetJsonbP(value));
}

/*
 * ta_draft
 *		Makes a document of a row of TA_DOCUMENT_COLUMNS.  It holds until the
 *		next one is made.  Needs an open frame; leaves SPI_tuptable changed.
 */
void
ta_draft(TaDrafts *drafts, HeapTuple row, TupleDesc desc, TaDocument *document)
{
	MemoryContext caller;
	bool		  isnull;
	Datum		  value;
	Oid			  config = drafts->config;

	MemoryContextReset(drafts->context);
	caller = MemoryContextSwitchTo(drafts->context);
	drafts->ndrafts = drafts->nslots = drafts->length = 0;
	drafts->only_new = false;
	drafts->drafts = NULL;
	drafts->slots = NULL;
	resize_slots(drafts);

	value = heap_getattr(row, DOC_LANGUAGE, desc, &isnull);
	if (!isnull)
		config = ta_search_config(TextDatumGetCString(value));

	document->id = *DatumGetUUIDP(heap_getattr(row, DOC_ID, desc, &isnull));
	value = heap_getattr(row, DOC_PRICE, desc, &isnull);
	document->price = isnull ? 0 : DatumGetInt64(value);
	value = heap_getattr(row, DOC_CREATED, desc, &isnull);
	document->created = 0;
	if (!isnull && !TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(value)))
		document->created = (int32) Max(PG_INT32_MIN, Min(PG_INT32_MAX, DatumGetTimestampTz(value) / USECS_PER_SEC));
	document->popularity = 0;

	add_fields(drafts, config, row, desc);
	if (config != drafts->config)
	{
		/* queries are written in the store's language: as it would have the words */
		drafts->only_new = true;
		add_fields(drafts, drafts->config, row, desc);
		drafts->only_new = false;
	}

	document->nterms = drafts->ndrafts;
	document->terms = palloc(sizeof(TaTerm) * Max(1, drafts->ndrafts));
	for (int i = 0; i < drafts->ndrafts; i++)
	{
		Draft  *draft = &drafts->drafts[i];
		TaTerm *term = &document->terms[i];

		term->text = draft->text;
		term->length = draft->length;
		term->hash = draft->hash;
		term->impact = draft->weight == 0 ? 1 : ta_impact(draft->weight, drafts->length, drafts->average);
	}
	qsort(document->terms, document->nterms, sizeof(TaTerm), compare_terms);
	MemoryContextSwitchTo(caller);
}
