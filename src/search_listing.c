/*-------------------------------------------------------------------------
 *
 * search_listing.c
 *	  A page of search results as an application shows it: items with their
 *	  texts marked, the total, facets, and a cursor for the next page.
 *
 * The cursor holds the key of the last item and the weights of the query's
 * terms, so that all pages are ranked by the statistics of the first.
 *
 * Facets are counted from postings: the matches of a segment are a set of bits,
 * and each value's products are those of its property's list that are in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "array_util.h"
#include "compat.h"
#include "request_util.h"
#include "search.h"
#include "spi_util.h"

#define EXACT_TOTAL	 10000
#define PAGE_MAX	 1000
#define FACET_VALUES 50
#define FACETS_MAX	 16
#define SNIPPET_MAX	 240 /* bytes of a description that are shown */
#define CURSOR_BYTES (1 + 1 + 1 + 1 + 4 + 4 + 8 + UUID_LEN + 4 + 1 + 4 * TA_MAX_LISTS)

PG_FUNCTION_INFO_V1(ta_search);

static const TaStatement select_items = {
	"SELECT p.id, p.sku, p.name, p.price::text, coalesce(nullif(p.description, ''), p.short_description), p.slug"
	"  FROM @store@.products p WHERE p.id = ANY ($1)",
	1,
	{UUIDARRAYOID}};
static const TaStatement select_subtree = {
	"WITH RECURSIVE below AS ("
	" SELECT c.id, 0 AS depth FROM @store@.categories c WHERE (c.id::text = $1 OR c.slug = $1) AND c.deleted_at IS NULL"
	" UNION"
	" SELECT c.id, b.depth + 1 FROM @store@.categories c JOIN below b ON c.parent_id = b.id WHERE b.depth < 32 AND c.deleted_at IS NULL)"
	" SELECT DISTINCT b.id::text FROM below b LIMIT 40",
	1,
	{TEXTOID}};
static const TaStatement select_brand = {
	"SELECT b.id::text FROM @store@.brands b WHERE (b.id::text = $1 OR b.slug = $1 OR b.name = $1) AND b.deleted_at IS NULL LIMIT 8",
	1,
	{TEXTOID}};
static const TaStatement select_brand_names = {
	"SELECT b.id::text, b.name FROM @store@.brands b WHERE b.id::text = ANY ($1)", 1, {TEXTARRAYOID}};
static const TaStatement select_category_names = {
	"SELECT c.id::text, c.name FROM @store@.categories c WHERE c.id::text = ANY ($1)", 1, {TEXTARRAYOID}};

/*
 * Filters
 */

static void
bad_filter(const char *name, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("filter \"%s\" must be %s", name, what),
			 errhint("Filters are category, brand, price_min, price_max, rating_min, tags, attributes and in_stock.")));
}

/* The strings of a filter: one, or an array of them. */
static List *
filter_strings(const char *name, JsonbValue *value)
{
	List *result = NIL;

	if (value->type == jbvString)
		return list_make1(pnstrdup(value->val.string.val, value->val.string.len));
	if (value->type == jbvNumeric)
		return list_make1(DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric))));
	if (value->type == jbvBool)
		return list_make1(pstrdup(value->val.boolean ? "true" : "false"));
	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data))
	{
		uint32 count = JsonContainerSize(value->val.binary.data);

		if (count > 100)
			bad_filter(name, "of at most 100 values");
		for (uint32 i = 0; i < count; i++)
		{
			JsonbValue *element = getIthJsonbValueFromContainer(value->val.binary.data, i);

			if (element->type != jbvString && element->type != jbvNumeric && element->type != jbvBool)
				bad_filter(name, "a string or an array of strings");
			result = list_concat(result, filter_strings(name, element));
		}
		return result;
	}
	bad_filter(name, "a string or an array of strings");
	return NIL; /* not reached */
}

static int
next_filter(TaQuery *query)
{
	int filter = pg_popcount32(query->filters);

	if (filter >= TA_MAX_FILTERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many filters"), errdetail("There can be %d.", TA_MAX_FILTERS)));
	query->filters |= UINT32CONST(1) << (TA_FILTER_BIT + filter);
	return filter;
}

static void
add_filter_property(TaSearch *search, TaQuery *query, int filter, char kind, const char *name, const char *value)
{
	int	  length;
	char *term = ta_property(kind, name, name == NULL ? 0 : strlen(name), value, strlen(value), &length);

	if (query->nlists >= TA_MAX_LISTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many values in filters")));
	ta_add_filter(search, query, filter, term, length);
}

/* Properties that a statement finds by what the caller said: any of them. */
static void
add_looked_up(TaSearch *search, TaQuery *query, char kind, const TaStatement *statement, List *values)
{
	int			  filter = next_filter(query);
	ListCell	 *lc;
	MemoryContext caller = CurrentMemoryContext;

	foreach(lc, values)
	{
		Datum	args[1] = {CStringGetTextDatum((char *) lfirst(lc))};
		TaFrame frame;
		uint64	rows;
		char  **found;

		ta_frame_begin(&frame, InvalidOid);
		rows = ta_query(search->nspid, statement, args, NULL);
		found = MemoryContextAlloc(caller, sizeof(char *) * Max(rows, 1));
		for (uint64 i = 0; i < rows; i++)
			found[i] = MemoryContextStrdup(caller, ta_spi_text(i, 1));
		ta_frame_end(&frame);
		for (uint64 i = 0; i < rows; i++)
			add_filter_property(search, query, filter, kind, NULL, found[i]);
	}
}

static int64
filter_price(const char *name, JsonbValue *value, bool up)
{
	Datum hundredths;
	Datum rounded;

	if (value->type != jbvNumeric || numeric_is_nan(value->val.numeric) || numeric_is_inf(value->val.numeric))
		bad_filter(name, "a number");
	hundredths = DirectFunctionCall2(numeric_mul, NumericGetDatum(value->val.numeric),
									 DirectFunctionCall1(int4_numeric, Int32GetDatum(100)));
	rounded = DirectFunctionCall1(up ? numeric_ceil : numeric_floor, hundredths);
	if (DatumGetBool(DirectFunctionCall2(numeric_gt, rounded, DirectFunctionCall1(int8_numeric, Int64GetDatum(PG_INT64_MAX / 4)))))
		return PG_INT64_MAX / 4;
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, rounded, DirectFunctionCall1(int8_numeric, Int64GetDatum(PG_INT64_MIN / 4)))))
		return PG_INT64_MIN / 4;
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, rounded));
}

/* Reads the ratings, where the store has any. */
static void
require_ratings(TaSearch *search, const char *what)
{
	if (!ta_read_ratings(search))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("store \"%s\" has no reviews to %s", get_namespace_name(search->nspid), what),
				 errhint("A table reviews in the store's schema, with columns product_id and rating, is read where it is there.")));
}

static void
apply_filters(TaSearch *search, TaQuery *query, Jsonb *filters)
{
	JsonbIterator	  *it;
	JsonbValue		   key;
	JsonbIteratorToken token;

	if (!JB_ROOT_IS_OBJECT(filters))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("filters must be a JSON object")));
	it = JsonbIteratorInit(&filters->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		JsonbValue value;
		char	  *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(key.val.string.val, key.val.string.len);
		(void) JsonbIteratorNext(&it, &value, true);
		if (value.type == jbvNull)
			continue;
		if (strcmp(name, "category") == 0)
			add_looked_up(search, query, 'c', &select_subtree, filter_strings(name, &value));
		else if (strcmp(name, "brand") == 0)
			add_looked_up(search, query, 'b', &select_brand, filter_strings(name, &value));
		else if (strcmp(name, "tags") == 0)
		{
			ListCell *lc;

			/* all of them */
			foreach(lc, filter_strings(name, &value))
				add_filter_property(search, query, next_filter(query), 't', NULL, (char *) lfirst(lc));
		}
		else if (strcmp(name, "attributes") == 0)
		{
			JsonbIterator *inner;
			JsonbValue	   attribute;

			if (value.type != jbvBinary || !JsonContainerIsObject(value.val.binary.data))
				bad_filter(name, "an object");
			inner = JsonbIteratorInit(value.val.binary.data);
			while ((token = JsonbIteratorNext(&inner, &attribute, true)) != WJB_DONE)
			{
				JsonbValue said;
				char	  *attribute_name;
				int		   filter;
				ListCell  *lc;

				if (token != WJB_KEY)
					continue;
				attribute_name = pnstrdup(attribute.val.string.val, attribute.val.string.len);
				(void) JsonbIteratorNext(&inner, &said, true);
				filter = next_filter(query);
				foreach(lc, filter_strings(name, &said))
					add_filter_property(search, query, filter, 'a', attribute_name, (char *) lfirst(lc));
			}
		}
		else if (strcmp(name, "price_min") == 0)
		{
			query->price_min = filter_price(name, &value, true);
			query->prices = true;
		}
		else if (strcmp(name, "price_max") == 0)
		{
			query->price_max = filter_price(name, &value, false);
			query->prices = true;
		}
		else if (strcmp(name, "rating_min") == 0)
		{
			require_ratings(search, "filter by");
			query->rating_min = (int32) Max(0, Min(filter_price(name, &value, true), 100000)) * 10000;
		}
		else if (strcmp(name, "in_stock") == 0)
		{
			if (value.type != jbvBool)
				bad_filter(name, "true or false");
			query->in_stock = value.val.boolean;
		}
		else
			bad_filter(name, "one that there is");
	}

	/* a filter that nothing satisfies */
	for (uint32 bits = query->filters; bits != 0; bits &= bits - 1)
	{
		bool found = false;

		for (int l = 0; l < query->nlists && !found; l++)
			found = (query->lists[l].mask & (bits & -bits)) != 0;
		if (!found)
			query->empty_filter = true;
	}
}

/*
 * The cursor
 */

static void
put_int32(unsigned char **at, int32 value)
{
	memcpy(*at, &value, 4);
	*at += 4;
}

static int32
get_int32(const unsigned char **at)
{
	int32 value;

	memcpy(&value, *at, 4);
	*at += 4;
	return value;
}

/* What a cursor belongs to. */
static int32
query_fingerprint(const text *query, Jsonb *filters, TaSort sort)
{
	uint32 hash = hash_bytes((const unsigned char *) VARDATA_ANY(query), VARSIZE_ANY_EXHDR(query));

	hash = hash_combine(hash, hash_bytes((const unsigned char *) &filters->root, VARSIZE(filters) - VARHDRSZ));
	return (int32) hash_combine(hash, (uint32) sort);
}

static char *
make_cursor(const TaQuery *query, const TaHit *last, int32 fingerprint)
{
	unsigned char  bytes[CURSOR_BYTES];
	unsigned char *at = bytes;
	char		  *result;
	int64		   key = last->key;

	*at++ = 1;
	*at++ = query->stage;
	*at++ = last->coverage;
	*at++ = last->stock;
	put_int32(&at, fingerprint);
	put_int32(&at, last->score);
	memcpy(at, &key, 8);
	at += 8;
	memcpy(at, &last->id, UUID_LEN);
	at += UUID_LEN;
	*at++ = query->nlists;
	for (int l = 0; l < query->nlists; l++)
		put_int32(&at, query->lists[l].weight);
	result = palloc((at - bytes) * 2 + 1);
	result[hex_encode((char *) bytes, at - bytes, result)] = '\0';
	return result;
}

static void
read_cursor(const text *cursor, TaQuery *query, TaHit *after, int32 fingerprint)
{
	const char			*hex = VARDATA_ANY(cursor);
	int					 length = VARSIZE_ANY_EXHDR(cursor);
	unsigned char		 bytes[CURSOR_BYTES];
	const unsigned char *at = bytes;
	bool				 sound = length % 2 == 0 && length / 2 >= 37 && length / 2 <= CURSOR_BYTES;
	int					 nlists;

	for (int i = 0; sound && i < length; i++)
	{
		int digit = hex[i] >= '0' && hex[i] <= '9' ? hex[i] - '0' : (hex[i] >= 'a' && hex[i] <= 'f' ? hex[i] - 'a' + 10 : -1);

		if (digit < 0)
			sound = false;
		else
			bytes[i / 2] = i % 2 == 0 ? digit << 4 : bytes[i / 2] | digit;
	}
	if (sound)
	{
		sound = *at++ == 1;
		query->stage = *at++ == TA_STAGE_ANY ? TA_STAGE_ANY : TA_STAGE_FULL;
		after->coverage = *at++;
		after->stock = *at++ != 0;
		sound = sound && get_int32(&at) == fingerprint;
		after->score = get_int32(&at);
		memcpy(&after->key, at, 8);
		at += 8;
		memcpy(&after->id, at, UUID_LEN);
		at += UUID_LEN;
		nlists = *at++;
		sound = sound && length / 2 == 37 + nlists * 4;
		/* the statistics that the first page was ranked by */
		for (int l = 0; sound && l < Min(nlists, query->nlists); l++)
		{
			int32 weight = get_int32(&at);

			query->lists[l].weight = Max(0, Min(weight, 65536));
		}
	}
	if (!sound)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("this cursor does not belong to this search"),
				 errhint("Pass the \"next\" of the page before, with the same query, filters and sort.")));
}

/*
 * Texts
 */

static void
append_escaped(StringInfo buf, const char *text, int length)
{
	for (int i = 0; i < length; i++)
	{
		switch (text[i])
		{
			case '<':
				appendStringInfoString(buf, "&lt;");
				break;
			case '>':
				appendStringInfoString(buf, "&gt;");
				break;
			case '&':
				appendStringInfoString(buf, "&amp;");
				break;
			case '"':
				appendStringInfoString(buf, "&quot;");
				break;
			case '\'':
				appendStringInfoString(buf, "&#39;");
				break;
			default:
				appendStringInfoChar(buf, text[i]);
		}
	}
}

typedef struct Marks
{
	const TaQuery *query;
	int			   count;
	int			   size;
	int			  *starts;
	int			  *ends;
} Marks;

static void
mark_token(const TaToken *token, void *arg)
{
	Marks *marks = (Marks *) arg;

	for (int l = 0; l < marks->query->nlists; l++)
	{
		const TaList *list = &marks->query->lists[l];

		if ((list->mask & ((UINT32CONST(1) << TA_FILTER_BIT) - 1)) == 0 || list->length != token->term_length ||
			memcmp(list->term, token->term, token->term_length) != 0)
			continue;
		/* a whole word comes after its parts: it takes their place */
		while (marks->count > 0 && marks->starts[marks->count - 1] >= token->start)
			marks->count--;
		if (marks->count == marks->size)
		{
			marks->size = marks->size == 0 ? 16 : marks->size * 2;
			marks->starts = marks->starts == NULL ? palloc(sizeof(int) * marks->size) : repalloc(marks->starts, sizeof(int) * marks->size);
			marks->ends = marks->ends == NULL ? palloc(sizeof(int) * marks->size) : repalloc(marks->ends, sizeof(int) * marks->size);
		}
		marks->starts[marks->count] = token->start;
		marks->ends[marks->count++] = token->end;
		return;
	}
}

/* A text with the words of the query in <mark>, the rest escaped. */
static char *
highlight(TaSearch *search, const TaQuery *query, const char *text, int most)
{
	Marks		   marks = {query, 0, 0, NULL, NULL};
	StringInfoData buf;
	int			   length = strlen(text);
	int			   from = 0;
	int			   to;
	int			   at;

	if (length > 65536)
		length = pg_mbcliplen(text, length, 65536);
	ta_tokenize(search->config, text, length, mark_token, &marks);
	if (length > most && marks.count > 0 && marks.starts[0] > most / 3)
	{
		/* begin a little before the first of them, at a word */
		from = pg_mbcliplen(text, length, marks.starts[0] - most / 3);
		while (from > 0 && text[from] != ' ' && from < marks.starts[0])
			from++;
		if (from > marks.starts[0])
			from = marks.starts[0];
	}
	to = from + pg_mbcliplen(text + from, length - from, most);
	if (to < length)
	{
		int word = to;

		while (word > from && text[word] != ' ')
			word--;
		if (word > from + most / 2)
			to = word;
	}

	initStringInfo(&buf);
	if (from > 0)
		appendStringInfoString(&buf, "… ");
	at = from;
	for (int m = 0; m < marks.count; m++)
	{
		if (marks.starts[m] < at || marks.ends[m] > to)
			continue;
		append_escaped(&buf, text + at, marks.starts[m] - at);
		appendStringInfoString(&buf, "<mark>");
		append_escaped(&buf, text + marks.starts[m], marks.ends[m] - marks.starts[m]);
		appendStringInfoString(&buf, "</mark>");
		at = marks.ends[m];
	}
	append_escaped(&buf, text + at, to - at);
	if (to < length)
		appendStringInfoString(&buf, " …");
	return buf.data;
}

/*
 * Facets
 */

static const int64 price_bounds[] = {1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000};

typedef struct Matches
{
	TaSearch *search;
	bool	  all; /* not only up to the limit of an exact total */
	int64	  total;
	double	  seen; /* share of the store that was looked at when it was enough */
	uint64	**bits; /* of each segment */
	bool	 *recents;
	bool	  stock_facet;
	int64	  in_stock;
	int64	  prices[lengthof(price_bounds) + 1];
	int64	  documents_before; /* of segments, to tell the share */
} Matches;

static bool
take_match(const TaHit *hit, int segment, int32 doc, int64 price, void *arg)
{
	Matches *matches = (Matches *) arg;
	size_t	 bucket = 0;

	matches->total++;
	if (!matches->all)
	{
		if (matches->total <= EXACT_TOTAL)
			return true;
		if (segment >= 0)
		{
			double before = 0;

			for (int s = 0; s < segment; s++)
				before += matches->search->segments[s].documents;
			matches->seen = (before + doc + 1) / Max(1, (double) matches->search->ndocuments - matches->search->nrecents);
		}
		return false;
	}
	if (segment < 0)
		matches->recents[doc] = true;
	else
		matches->bits[segment][doc >> 6] |= UINT64CONST(1) << (doc & 63);
	if (hit->stock)
		matches->in_stock++;
	while (bucket < lengthof(price_bounds) && price >= price_bounds[bucket])
		bucket++;
	matches->prices[bucket]++;
	return true;
}

typedef struct FacetValue
{
	char *value;
	char *label;
	int64 count;
} FacetValue;

static int
compare_values(const void *a, const void *b)
{
	const FacetValue *x = (const FacetValue *) a;
	const FacetValue *y = (const FacetValue *) b;

	if (x->count != y->count)
		return x->count > y->count ? -1 : 1;
	return strcmp(x->value, y->value);
}

/* How many of the matches have a property. */
static int64
count_property(Matches *matches, TaIndexReader *reader, TaBlock *block, const char *term, int length)
{
	TaSearch *search = matches->search;
	int64	  count = 0;
	uint32	  hash = ta_term_hash(term, length);

	for (int s = 0; s < search->nsegments; s++)
	{
		uint64 *bits = matches->bits[s];
		bool	found = ta_list_seek(reader, term, length, search->segments[s].segment, 0, block);

		for (; found; found = ta_list_next(reader, block))
		{
			ta_list_decode(reader, block);
			for (int i = 0; i < block->count; i++)
				count += (bits[block->docs[i] >> 6] >> (block->docs[i] & 63)) & 1;
		}
	}
	for (int r = 0; r < search->nrecents; r++)
	{
		if (matches->recents[r] && ta_recent_impact(&search->recents[r], term, length, hash) >= 0)
			count++;
	}
	return count;
}

/* The values of a property that begin with a prefix like "b:", by count. */
static int
count_values(Matches *matches, const char *prefix, int prefix_length, FacetValue **result)
{
	TaSearch	 *search = matches->search;
	TaIndexReader walk;
	TaIndexReader reader;
	TaBlock		 *block = palloc(sizeof(TaBlock));
	char		  from[TA_TERM_MAX];
	char		  term[TA_TERM_MAX];
	int			  from_length = prefix_length;
	int			  term_length;
	bool		  inclusive = true;
	FacetValue	 *values = palloc(sizeof(FacetValue) * 64);
	int			  count = 0;
	int			  size = 64;

	memcpy(from, prefix, prefix_length);
	ta_list_open(search, &walk, 1);
	ta_list_open(search, &reader, 3);
	while (ta_next_term(&walk, from, from_length, inclusive, term, &term_length) &&
		   term_length >= prefix_length && memcmp(term, prefix, prefix_length) == 0)
	{
		int64 hits = count_property(matches, &reader, block, term, term_length);

		memcpy(from, term, term_length);
		from_length = term_length;
		inclusive = false;
		CHECK_FOR_INTERRUPTS();
		if (hits == 0)
			continue;
		if (count == size)
		{
			size *= 2;
			values = repalloc_huge(values, sizeof(FacetValue) * size);
		}
		values[count].value = pnstrdup(term + prefix_length, term_length - prefix_length);
		values[count].label = NULL;
		values[count++].count = hits;
	}

	/* values that only recent products have */
	for (int r = 0; r < search->nrecents; r++)
	{
		TaRecent *recent = &search->recents[r];

		if (!matches->recents[r])
			continue;
		for (int t = 0; t < recent->nterms; t++)
		{
			int			length;
			const char *at = ta_recent_term(recent, t, &length);
			bool		known = false;
			char	   *value;

			if (length < prefix_length || memcmp(at, prefix, prefix_length) != 0)
				continue;
			value = pnstrdup(at + prefix_length, length - prefix_length);
			for (int v = 0; v < count && !known; v++)
				known = strcmp(values[v].value, value) == 0;
			if (known)
				continue;
			if (count == size)
			{
				size *= 2;
				values = repalloc_huge(values, sizeof(FacetValue) * size);
			}
			values[count].value = value;
			values[count].label = NULL;
			values[count++].count = count_property(matches, &reader, block, at, length);
		}
	}
	ta_list_close(&reader);
	ta_list_close(&walk);
	qsort(values, count, sizeof(FacetValue), compare_values);
	*result = values;
	return Min(count, FACET_VALUES);
}

static void
name_values(TaSearch *search, const TaStatement *statement, FacetValue *values, int count)
{
	const char	**ids = palloc(sizeof(char *) * Max(count, 1));
	Datum		  args[1];
	TaFrame		  frame;
	uint64		  rows;
	MemoryContext caller = CurrentMemoryContext;

	for (int i = 0; i < count; i++)
		ids[i] = values[i].value;
	args[0] = ta_text_array(ids, count);
	ta_frame_begin(&frame, InvalidOid);
	rows = ta_query(search->nspid, statement, args, NULL);
	for (uint64 r = 0; r < rows; r++)
	{
		for (int i = 0; i < count; i++)
		{
			if (strcmp(values[i].value, ta_spi_text(r, 1)) == 0)
				values[i].label = MemoryContextStrdup(caller, ta_spi_text(r, 2));
		}
	}
	ta_frame_end(&frame);
}

static void
put_values(StringInfo json, FacetValue *values, int count)
{
	appendStringInfoChar(json, '[');
	for (int i = 0; i < count; i++)
	{
		appendStringInfoString(json, i > 0 ? ", {\"value\": " : "{\"value\": ");
		escape_json(json, values[i].value);
		if (values[i].label != NULL)
		{
			appendStringInfoString(json, ", \"label\": ");
			escape_json(json, values[i].label);
		}
		appendStringInfo(json, ", \"count\": " INT64_FORMAT "}", values[i].count);
	}
	appendStringInfoChar(json, ']');
}

static void
put_facet(StringInfo json, Matches *matches, const char *facet)
{
	TaSearch   *search = matches->search;
	FacetValue *values;
	int			count;

	escape_json(json, facet);
	appendStringInfoString(json, ": ");
	if (strcmp(facet, "brand") == 0)
	{
		count = count_values(matches, "b:", 2, &values);
		name_values(search, &select_brand_names, values, count);
		put_values(json, values, count);
	}
	else if (strcmp(facet, "category") == 0)
	{
		count = count_values(matches, "c:", 2, &values);
		name_values(search, &select_category_names, values, count);
		put_values(json, values, count);
	}
	else if (strcmp(facet, "tags") == 0)
	{
		count = count_values(matches, "t:", 2, &values);
		put_values(json, values, count);
	}
	else if (strncmp(facet, "attributes.", 11) == 0 && strlen(facet) < 150)
	{
		char *prefix = psprintf("a:%s=", facet + 11);

		count = count_values(matches, prefix, strlen(prefix), &values);
		put_values(json, values, count);
	}
	else if (strcmp(facet, "price") == 0)
	{
		bool first = true;

		appendStringInfoChar(json, '[');
		for (size_t i = 0; i <= lengthof(price_bounds); i++)
		{
			if (matches->prices[i] == 0)
				continue;
			appendStringInfo(json, "%s{\"from\": " INT64_FORMAT, first ? "" : ", ", i == 0 ? 0 : price_bounds[i - 1] / 100);
			if (i < lengthof(price_bounds))
				appendStringInfo(json, ", \"below\": " INT64_FORMAT, price_bounds[i] / 100);
			appendStringInfo(json, ", \"count\": " INT64_FORMAT "}", matches->prices[i]);
			first = false;
		}
		appendStringInfoChar(json, ']');
	}
	else if (strcmp(facet, "in_stock") == 0)
		appendStringInfo(json, "[{\"value\": true, \"count\": " INT64_FORMAT "}, {\"value\": false, \"count\": " INT64_FORMAT "}]",
						 matches->in_stock, matches->total - matches->in_stock);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no facet \"%s\"", facet),
				 errhint("Facets are category, brand, price, tags, in_stock, and attributes.NAME.")));
}

static TaSort
sort_of(const char *name)
{
	static const struct
	{
		const char *name;
		TaSort		sort;
	} sorts[] = {
		{"relevance", TA_SORT_RELEVANCE},
		{"price", TA_SORT_PRICE},
		{"price_asc", TA_SORT_PRICE},
		{"price_desc", TA_SORT_PRICE_DESC},
		{"newest", TA_SORT_NEWEST},
		{"best_selling", TA_SORT_BEST_SELLING},
		{"best-selling", TA_SORT_BEST_SELLING},
		{"rating", TA_SORT_RATING},
	};

	for (size_t i = 0; i < lengthof(sorts); i++)
	{
		if (strcmp(sorts[i].name, name) == 0)
			return sorts[i].sort;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no sort \"%s\"", name),
			 errhint("Sorts are relevance, price, price_desc, newest, best_selling and rating.")));
	return TA_SORT_RELEVANCE; /* not reached */
}

/*
 * search(store name, query text, filters jsonb, sort text, after text,
 *		  page_size integer, facets text[]) returns jsonb
 *		A page of results.  Raises 22023 for a filter, sort, facet, page size or
 *		cursor that is none; TA009, 42501.
 */
Datum
ta_search(PG_FUNCTION_ARGS)
{
	Oid			   nspid;
	text		  *query_text;
	Jsonb		  *filters;
	TaSort		   sort;
	int32		   page_size = PG_ARGISNULL(5) ? 20 : PG_GETARG_INT32(5);
	TaSearch	  *search;
	TaQuery		  *query;
	TaHit		  *hits;
	TaHit		   after = {0};
	int			   count;
	int32		   fingerprint;
	Datum		  *facets = NULL;
	bool		  *facet_nulls = NULL;
	int			   nfacets = 0;
	Matches		   matches = {0};
	bool		   estimated = false;
	StringInfoData json;

	ta_require_argument(fcinfo, 0, "store");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	query_text = PG_ARGISNULL(1) ? cstring_to_text("") : PG_GETARG_TEXT_PP(1);
	filters = PG_ARGISNULL(2) ? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))) : PG_GETARG_JSONB_P(2);
	sort = PG_ARGISNULL(3) ? TA_SORT_RELEVANCE : sort_of(text_to_cstring(PG_GETARG_TEXT_PP(3)));
	if (page_size < 0 || page_size > PAGE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the page size must be between 0 and %d", PAGE_MAX)));
	if (!PG_ARGISNULL(6))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(6), TEXTOID, -1, false, TYPALIGN_INT, &facets, &facet_nulls, &nfacets);
	if (nfacets > FACETS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there can be at most %d facets", FACETS_MAX)));

	search = ta_search_open(nspid);
	query = ta_parse_query(search, VARDATA_ANY(query_text), VARSIZE_ANY_EXHDR(query_text), true);
	query->sort = sort;
	if (sort == TA_SORT_RATING)
		require_ratings(search, "sort by");
	apply_filters(search, query, filters);
	if (sort == TA_SORT_PRICE || sort == TA_SORT_PRICE_DESC || nfacets > 0)
		query->prices = true;
	fingerprint = query_fingerprint(query_text, filters, sort);
	if (!PG_ARGISNULL(4))
		read_cursor(PG_GETARG_TEXT_PP(4), query, &after, fingerprint);

	hits = ta_top(search, query, page_size + 1, PG_ARGISNULL(4) ? NULL : &after, &count);
	if (query->stage == TA_STAGE_AUTO)
		query->stage = TA_STAGE_FULL;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"items\": [");
	if (count > 0 && page_size > 0)
	{
		int			   shown = Min(count, page_size);
		pg_uuid_t	  *ids = palloc(sizeof(pg_uuid_t) * shown);
		Datum		   args[1];
		TaFrame		   frame;
		uint64		   rows;
		SPITupleTable *table;
		MemoryContext  caller = CurrentMemoryContext;
		MemoryContext  spi_context;
		bool		   first = true;

		for (int i = 0; i < shown; i++)
			ids[i] = hits[i].id;
		args[0] = ta_uuid_array(ids, shown);
		ta_frame_begin(&frame, InvalidOid);
		rows = ta_query(nspid, &select_items, args, NULL);
		table = SPI_tuptable;
		spi_context = MemoryContextSwitchTo(caller);
		for (int i = 0; i < shown; i++)
		{
			for (uint64 r = 0; r < rows; r++)
			{
				bool  isnull;
				char *text;

				if (memcmp(DatumGetUUIDP(SPI_getbinval(table->vals[r], table->tupdesc, 1, &isnull)), &hits[i].id, UUID_LEN) != 0)
					continue;
				appendStringInfoString(&json, first ? "{\"id\": " : ", {\"id\": ");
				first = false;
				escape_json(&json, SPI_getvalue(table->vals[r], table->tupdesc, 1));
				appendStringInfoString(&json, ", \"sku\": ");
				escape_json(&json, SPI_getvalue(table->vals[r], table->tupdesc, 2));
				appendStringInfoString(&json, ", \"slug\": ");
				escape_json(&json, SPI_getvalue(table->vals[r], table->tupdesc, 6));
				appendStringInfoString(&json, ", \"name\": ");
				text = SPI_getvalue(table->vals[r], table->tupdesc, 3);
				escape_json(&json, text);
				appendStringInfo(&json, ", \"price\": %s", SPI_getvalue(table->vals[r], table->tupdesc, 4));
				appendStringInfo(&json, ", \"in_stock\": %s", hits[i].stock ? "true" : "false");
				if (search->ratings != NULL)
				{
					int32 rating = ta_rating(search, &hits[i].id);

					if (rating > 0)
						appendStringInfo(&json, ", \"rating\": %.2f", rating / 1000000.0);
					else
						appendStringInfoString(&json, ", \"rating\": null");
				}
				if (sort == TA_SORT_RELEVANCE)
					appendStringInfo(&json, ", \"rank\": %g", ta_rank(hits[i].score));
				appendStringInfoString(&json, ", \"highlighted_name\": ");
				escape_json(&json, highlight(search, query, text, 1024));
				text = SPI_getvalue(table->vals[r], table->tupdesc, 5);
				appendStringInfoString(&json, ", \"snippet\": ");
				escape_json(&json, text == NULL ? "" : highlight(search, query, text, SNIPPET_MAX));
				appendStringInfoChar(&json, '}');
				break;
			}
		}
		MemoryContextSwitchTo(spi_context);
		ta_frame_end(&frame);
	}

	/* count them */
	matches.search = search;
	matches.all = nfacets > 0;
	matches.recents = palloc0(sizeof(bool) * Max(search->nrecents, 1));
	if (matches.all)
	{
		matches.bits = palloc(sizeof(uint64 *) * Max(search->nsegments, 1));
		for (int s = 0; s < search->nsegments; s++)
			matches.bits[s] = MemoryContextAllocExtended(CurrentMemoryContext,
														 ((Size) search->segments[s].documents / 64 + 1) * 8,
														 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		for (int f = 0; f < nfacets; f++)
			matches.stock_facet = matches.stock_facet || (!facet_nulls[f] && strcmp(TextDatumGetCString(facets[f]), "in_stock") == 0);
	}
	{
		TaSort asked = query->sort;

		/* without an order every product is shown at once */
		query->sort = TA_SORT_NEWEST;
		ta_visit(search, query, matches.stock_facet, take_match, &matches);
		query->sort = asked;
	}
	if (!matches.all && matches.total > EXACT_TOTAL)
	{
		estimated = true;
		if (matches.seen > 0)
			matches.total = (int64) (matches.total / Min(1.0, matches.seen));
	}

	appendStringInfo(&json, "], \"total\": " INT64_FORMAT ", \"total_is_estimate\": %s, \"facets\": {",
					 matches.total, estimated ? "true" : "false");
	for (int f = 0, put = 0; f < nfacets; f++)
	{
		if (facet_nulls[f])
			continue;
		if (put++ > 0)
			appendStringInfoString(&json, ", ");
		put_facet(&json, &matches, TextDatumGetCString(facets[f]));
	}
	appendStringInfoString(&json, "}, \"correction\": ");
	if (query->correction != NULL)
		escape_json(&json, query->correction);
	else
		appendStringInfoString(&json, "null");
	appendStringInfo(&json, ", \"matched\": \"%s\", \"next\": ", query->stage == TA_STAGE_ANY ? "any" : "all");
	if (count > page_size && page_size > 0)
		escape_json(&json, make_cursor(query, &hits[page_size - 1], fingerprint));
	else
		appendStringInfoString(&json, "null");
	appendStringInfoChar(&json, '}');
	ta_search_close(search);
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}
