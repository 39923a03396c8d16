/*-------------------------------------------------------------------------
 *
 * search.c
 *	  The functions of search: what SQL calls.
 *
 * All of them read; none takes a lock but AccessShareLock on the store's
 * tables.  They see what the calling statement sees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "array_util.h"
#include "compat.h"
#include "errors.h"
#include "request_util.h"
#include "search.h"
#include "spi_util.h"

#define DEFAULT_LIMIT 20
#define SUGGEST_TERMS 64 /* words that a prefix is looked for in */

PG_FUNCTION_INFO_V1(ta_search_products);
PG_FUNCTION_INFO_V1(ta_search_brute_force);
PG_FUNCTION_INFO_V1(ta_explain_search);
PG_FUNCTION_INFO_V1(ta_suggest);

static const TaStatement select_hits = {
	"SELECT p.id, p.name, p.description, p.price FROM @store@.products p WHERE p.id = ANY ($1)", 1, {UUIDARRAYOID}};

/* Where the rows of a function that returns a set go. */
typedef struct ResultRows
{
	Tuplestorestate *store;
	TupleDesc		 desc;
} ResultRows;

static void
result_open(ResultRows *result, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext  caller;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) || (rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	caller = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &result->desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	result->desc = BlessTupleDesc(result->desc);
	result->store = tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = result->store;
	rsinfo->setDesc = result->desc;
	MemoryContextSwitchTo(caller);
}

static text *
query_argument(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ? cstring_to_text("") : PG_GETARG_TEXT_PP(argno);
}

static int32
limit_argument(FunctionCallInfo fcinfo, int argno, int32 otherwise)
{
	int32 limit = PG_ARGISNULL(argno) ? otherwise : PG_GETARG_INT32(argno);

	if (limit < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the limit must not be negative")));
	return limit;
}

/*
 * search_products(store name, search_query text, limit_count integer)
 * returns TABLE (id uuid, name varchar, description text, price numeric, rank real)
 *		The products for a query, best first.  Raises 22023 for a negative
 *		limit, TA009, 42501.
 */
Datum
ta_search_products(PG_FUNCTION_ARGS)
{
	Oid			   nspid;
	text		  *query_text;
	TaSearch	  *search;
	TaQuery		  *query;
	TaHit		  *hits;
	int			   count;
	ResultRows	   result;
	TaFrame		   frame;
	Datum		   values[1];
	pg_uuid_t	  *ids;
	uint64		   rows;
	SPITupleTable *table;
	int32		   limit = limit_argument(fcinfo, 2, DEFAULT_LIMIT);

	ta_require_argument(fcinfo, 0, "store");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	query_text = query_argument(fcinfo, 1);
	result_open(&result, fcinfo);

	search = ta_search_open(nspid);
	query = ta_parse_query(search, VARDATA_ANY(query_text), VARSIZE_ANY_EXHDR(query_text), true);
	hits = ta_top(search, query, limit, NULL, &count);
	if (count > 0 && ta_products_are_plain(search))
	{
		static const char *const columns[] = {"name", "description", "price"};
		AttrNumber				 numbers[lengthof(columns)];

		for (size_t c = 0; c < lengthof(columns); c++)
			numbers[c] = get_attnum(RelationGetRelid(search->products), columns[c]);
		for (int i = 0; i < count; i++)
		{
			TupleTableSlot *slot = ta_product_row(search, &hits[i].id);
			Datum			row[5];
			bool			nulls[5] = {0};

			if (slot == NULL)
				continue;
			row[0] = UUIDPGetDatum(&hits[i].id);
			for (size_t c = 0; c < lengthof(columns); c++)
				row[c + 1] = slot_getattr(slot, numbers[c], &nulls[c + 1]);
			row[4] = Float4GetDatum(ta_rank(hits[i].score));
			tuplestore_putvalues(result.store, result.desc, row, nulls);
			CHECK_FOR_INTERRUPTS();
		}
	}
	else if (count > 0)
	{
		ids = palloc_extended(sizeof(pg_uuid_t) * count, MCXT_ALLOC_HUGE);
		for (int i = 0; i < count; i++)
			ids[i] = hits[i].id;
		values[0] = ta_uuid_array(ids, count);
		ta_frame_begin(&frame, InvalidOid);
		rows = ta_query(nspid, &select_hits, values, NULL);
		table = SPI_tuptable;
		for (int i = 0; i < count; i++)
		{
			for (uint64 r = 0; r < rows; r++)
			{
				/* they mostly come in the order of the array */
				uint64 at = (i + r) % rows;
				bool   isnull;
				Datum  row[5];
				bool   nulls[5] = {0};

				row[0] = SPI_getbinval(table->vals[at], table->tupdesc, 1, &isnull);
				if (memcmp(DatumGetUUIDP(row[0]), &hits[i].id, UUID_LEN) != 0)
					continue;
				for (int c = 1; c < 4; c++)
					row[c] = SPI_getbinval(table->vals[at], table->tupdesc, c + 1, &nulls[c]);
				row[4] = Float4GetDatum(ta_rank(hits[i].score));
				tuplestore_putvalues(result.store, result.desc, row, nulls);
				break;
			}
		}
		ta_frame_end(&frame);
	}
	ta_search_close(search);
	return (Datum) 0;
}

/*
 * Brute force
 */

static const TaStatement select_every = {
	"SELECT " TA_DOCUMENT_COLUMNS
	" FROM @store@.products p LEFT JOIN @store@.brands b ON b.id = p.brand_id AND b.deleted_at IS NULL WHERE " TA_VISIBLE,
	0};

typedef struct Found
{
	TaHit *hits;
	int	   count;
	int	   size;
} Found;

static int
compare_found(const void *a, const void *b)
{
	return ta_compare_hits(a, b);
}

/*
 * search_brute_force(store name, queries text[], limit_count integer)
 * returns TABLE (query integer, place integer, id uuid, rank real)
 *		What search_products must return, found without any index: every product
 *		is read, taken apart and scored.  For tests.
 */
Datum
ta_search_brute_force(PG_FUNCTION_ARGS)
{
	Oid		   nspid;
	TaSearch  *search;
	Datum	  *texts;
	bool	  *nulls;
	int		   ntexts;
	TaQuery	 **queries;
	Found	  *full;
	Found	  *any;
	TaDrafts  *drafts;
	Portal	   portal;
	TaFrame	   frame;
	ResultRows result;
	int32	   limit = limit_argument(fcinfo, 2, DEFAULT_LIMIT);
	uint32	   words = (UINT32CONST(1) << TA_FILTER_BIT) - 1;

	ta_require_argument(fcinfo, 0, "store");
	ta_require_argument(fcinfo, 1, "queries");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &ntexts);
	result_open(&result, fcinfo);

	search = ta_search_open(nspid);
	queries = palloc(sizeof(TaQuery *) * Max(ntexts, 1));
	full = palloc0(sizeof(Found) * Max(ntexts, 1));
	any = palloc0(sizeof(Found) * Max(ntexts, 1));
	for (int q = 0; q < ntexts; q++)
	{
		text *query_text = nulls[q] ? cstring_to_text("") : DatumGetTextPP(texts[q]);

		queries[q] = ta_parse_query(search, VARDATA_ANY(query_text), VARSIZE_ANY_EXHDR(query_text), true);
	}

	drafts = ta_drafts_open(nspid, search->config, search->average);
	ta_frame_begin(&frame, InvalidOid);
	portal = ta_open_cursor(nspid, &select_every, NULL, NULL, true);
	for (;;)
	{
		SPITupleTable *batch;
		uint64		   rows;

		SPI_cursor_fetch(portal, true, 1000);
		batch = SPI_tuptable;
		rows = SPI_processed;
		for (uint64 i = 0; i < rows; i++)
		{
			TaDocument document;
			int		   in_stock = -1;

			CHECK_FOR_INTERRUPTS();
			ta_draft(drafts, batch->vals[i], batch->tupdesc, &document);
			for (int q = 0; q < ntexts; q++)
			{
				TaQuery *query = queries[q];
				TaHit	 hit = {0};
				uint32	 mask = 0;
				int32	 score = 0;
				Found	*found;

				for (int l = 0; l < query->nlists; l++)
				{
					TaList *list = &query->lists[l];
					int		low = 0;
					int		high = document.nterms;

					while (low < high)
					{
						int middle = (low + high) / 2;

						if (document.terms[middle].hash < list->hash)
							low = middle + 1;
						else
							high = middle;
					}
					for (; low < document.nterms && document.terms[low].hash == list->hash; low++)
					{
						if (document.terms[low].length == list->length &&
							memcmp(document.terms[low].text, list->term, list->length) == 0)
						{
							mask |= list->mask;
							score += list->weight * document.terms[low].impact;
						}
					}
				}
				if (query->nwords > 0 && ((mask & words) == 0 || (mask & TA_EXCLUDED_BIT) != 0))
					continue;
				if (query->nwords == 0 && (query->nlists > 0 && (mask & TA_EXCLUDED_BIT) != 0))
					continue;
				if (in_stock < 0)
					in_stock = ta_in_stock(search, &document.id) ? 1 : 0;
				hit.coverage = 0;
				for (uint32 bits = mask & words; bits != 0; bits &= bits - 1)
					hit.coverage++;
				hit.stock = in_stock == 1;
				hit.score = score;
				hit.id = document.id;
				found = (mask & query->known) == query->known ? &full[q] : &any[q];
				if (found->count == found->size)
				{
					MemoryContext caller = MemoryContextSwitchTo(GetMemoryChunkContext(full));

					found->size = found->size == 0 ? 64 : found->size * 2;
					found->hits = found->hits == NULL ? palloc(sizeof(TaHit) * found->size)
													  : repalloc_huge(found->hits, sizeof(TaHit) * found->size);
					MemoryContextSwitchTo(caller);
				}
				found->hits[found->count++] = hit;
			}
		}
		SPI_freetuptable(batch);
		if (rows == 0)
			break;
	}
	SPI_cursor_close(portal);
	ta_frame_end(&frame);

	for (int q = 0; q < ntexts; q++)
	{
		Found *found = &full[q];

		/* few have all words: those with some are shown behind them */
		if (full[q].count < search->enough)
		{
			found = &any[q];
			if (found->count + full[q].count > found->size)
			{
				found->size = found->count + full[q].count;
				found->hits = found->hits == NULL ? palloc(sizeof(TaHit) * found->size)
												  : repalloc_huge(found->hits, sizeof(TaHit) * found->size);
			}
			if (full[q].count > 0)
				memcpy(found->hits + found->count, full[q].hits, sizeof(TaHit) * full[q].count);
			found->count += full[q].count;
		}
		qsort(found->hits, found->count, sizeof(TaHit), compare_found);
		for (int i = 0; i < Min(found->count, limit); i++)
		{
			Datum values[4];
			bool  row_nulls[4] = {0};

			values[0] = Int32GetDatum(q + 1);
			values[1] = Int32GetDatum(i + 1);
			values[2] = UUIDPGetDatum(&found->hits[i].id);
			values[3] = Float4GetDatum(ta_rank(found->hits[i].score));
			tuplestore_putvalues(result.store, result.desc, values, row_nulls);
		}
	}
	ta_search_close(search);
	return (Datum) 0;
}

/*
 * explain_search(store name, query text, product_id uuid)
 * returns TABLE (term text, field text, weight real, contribution real)
 *		Why a product ranks where it does: a row for each term, its inverse
 *		document frequency and what it adds to the rank; then rows for what
 *		else decides.  No row: the product is not found at all.
 */
static const TaStatement select_one = {
	"SELECT " TA_DOCUMENT_COLUMNS
	" FROM @store@.products p LEFT JOIN @store@.brands b ON b.id = p.brand_id AND b.deleted_at IS NULL"
	" WHERE p.id = $1 AND " TA_VISIBLE,
	1,
	{UUIDOID}};

typedef struct FieldSearch
{
	const char *term;
	int			length;
	bool		found;
} FieldSearch;

static void
find_in_field(const TaToken *token, void *arg)
{
	FieldSearch *field = (FieldSearch *) arg;

	if (token->term_length == field->length && memcmp(token->term, field->term, field->length) == 0)
		field->found = true;
	else if (field->term[0] == TA_EXACT)
	{
		char exact[TA_TERM_MAX];

		if (ta_exact_form(token, exact) == field->length && memcmp(exact, field->term, field->length) == 0)
			field->found = true;
	}
}

Datum
ta_explain_search(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "query", "product_id"};
	static const char *const fields_sql[] = {"name", "brand", "sku", "variants", "category", "tags", "description", "attributes"};
	static const TaStatement fields = {
		"SELECT p.name, b.name, p.sku,"
		" (SELECT pg_catalog.string_agg(v.sku || ' ' || v.name, ' ') FROM @store@.product_variants v"
		"   WHERE v.product_id = p.id AND v.is_active AND v.deleted_at IS NULL),"
		" (WITH RECURSIVE path AS (SELECT c.id, c.parent_id, c.name::text FROM @store@.categories c WHERE c.id = p.category_id"
		"   UNION SELECT c.id, c.parent_id, c.name::text FROM @store@.categories c JOIN path ON c.id = path.parent_id)"
		"   SELECT pg_catalog.string_agg(path.name, ' ') FROM path),"
		" pg_catalog.array_to_string(p.tags, ' '), pg_catalog.concat_ws(' ', p.short_description, p.description),"
		" (SELECT pg_catalog.string_agg(a.value, ' ') FROM pg_catalog.jsonb_each_text(CASE pg_catalog.jsonb_typeof(p.attributes) WHEN 'object' THEN p.attributes ELSE '{}' END) a),"
		" p.language"
		" FROM @store@.products p LEFT JOIN @store@.brands b ON b.id = p.brand_id WHERE p.id = $1",
		1,
		{UUIDOID}};
	Oid			   nspid;
	TaSearch	  *search;
	TaQuery		  *query;
	TaFrame		   frame;
	ResultRows	   result;
	Datum		   values[1];
	text		  *query_text;
	SPITupleTable *table;
	TaDrafts	  *drafts;
	TaDocument	   document;
	TaHit		   hit = {0};
	uint32		   mask = 0;
	int			  *impacts;
	Oid			   config;
	char		  *language;

	ta_require_arguments(fcinfo, names, 1);
	ta_require_argument(fcinfo, 2, names[2]);
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	query_text = query_argument(fcinfo, 1);
	result_open(&result, fcinfo);

	search = ta_search_open(nspid);
	query = ta_parse_query(search, VARDATA_ANY(query_text), VARSIZE_ANY_EXHDR(query_text), true);
	drafts = ta_drafts_open(nspid, search->config, search->average);
	values[0] = PG_GETARG_DATUM(2);
	impacts = palloc0(sizeof(int) * Max(query->nlists, 1));

	ta_frame_begin(&frame, InvalidOid);
	if (ta_query(nspid, &select_one, values, NULL) > 0)
	{
		table = SPI_tuptable;
		ta_draft(drafts, table->vals[0], table->tupdesc, &document);
		for (int l = 0; l < query->nlists; l++)
		{
			for (int t = 0; t < document.nterms; t++)
			{
				if (document.terms[t].length == query->lists[l].length &&
					memcmp(document.terms[t].text, query->lists[l].term, query->lists[l].length) == 0)
				{
					impacts[l] = document.terms[t].impact;
					mask |= query->lists[l].mask;
					hit.score += query->lists[l].weight * impacts[l];
				}
			}
		}

		ta_query(nspid, &fields, values, NULL);
		table = SPI_tuptable;
		language = SPI_getvalue(table->vals[0], table->tupdesc, 9);
		config = language != NULL ? ta_search_config(language) : search->config;
		for (int l = 0; l < query->nlists; l++)
		{
			StringInfoData where;
			Datum		   row[4];
			bool		   nulls[4] = {0};

			if (impacts[l] == 0)
				continue;
			initStringInfo(&where);
			for (size_t f = 0; f < lengthof(fields_sql); f++)
			{
				char	   *value = SPI_getvalue(table->vals[0], table->tupdesc, f + 1);
				FieldSearch field = {query->lists[l].term, query->lists[l].length, false};

				if (value == NULL)
					continue;
				ta_tokenize(config, value, strlen(value), find_in_field, &field);
				if (field.found)
					appendStringInfo(&where, "%s%s", where.len > 0 ? ", " : "", fields_sql[f]);
			}
			row[0] = CStringGetTextDatum(query->lists[l].term[0] == TA_EXACT ? psprintf("%s (as it is written)", query->lists[l].term + 1)
																			 : query->lists[l].term);
			row[1] = CStringGetTextDatum((query->lists[l].mask & TA_EXCLUDED_BIT) ? "excluded" : where.data);
			row[2] = Float4GetDatum((float4) query->lists[l].weight / TA_WEIGHT_SCALE);
			row[3] = Float4GetDatum(ta_rank(query->lists[l].weight * impacts[l]));
			tuplestore_putvalues(result.store, result.desc, row, nulls);
		}
		if (query->nwords > 0 && mask != 0)
		{
			Datum row[4];
			bool  nulls[4] = {false, false, false, true};
			int	  coverage = 0;

			for (uint32 bits = mask & ((UINT32CONST(1) << TA_FILTER_BIT) - 1); bits != 0; bits &= bits - 1)
				coverage++;
			row[0] = CStringGetTextDatum("(words of the query that it has)");
			row[1] = CStringGetTextDatum(psprintf("%d of %d", coverage, query->nwords));
			row[2] = Float4GetDatum((float4) coverage);
			row[3] = (Datum) 0;
			tuplestore_putvalues(result.store, result.desc, row, nulls);
			for (int l = 0; document.head >= 0 && l < query->nlists; l++)
			{
				const TaTerm *head = &document.terms[document.head];

				if (head->length != query->lists[l].length || memcmp(head->text, query->lists[l].term, head->length) != 0)
					continue;
				row[0] = CStringGetTextDatum("(what the name says it is)");
				row[1] = CStringGetTextDatum(query->lists[l].term);
				row[2] = Float4GetDatum(TA_HEAD);
				tuplestore_putvalues(result.store, result.desc, row, nulls);
			}
			row[0] = CStringGetTextDatum("(in stock)");
			row[1] = CStringGetTextDatum(ta_in_stock(search, DatumGetUUIDP(values[0])) ? "yes" : "no: it sinks");
			row[2] = Float4GetDatum(ta_in_stock(search, DatumGetUUIDP(values[0])) ? 1 : 0);
			tuplestore_putvalues(result.store, result.desc, row, nulls);
		}
	}
	ta_frame_end(&frame);
	ta_search_close(search);
	return (Datum) 0;
}

/*
 * suggest(store name, prefix text, limit_count integer)
 * returns TABLE (suggestion text, kind text)
 *		What a shopper may be about to type: brands and categories whose names
 *		begin so, then products with a word that does; what sells best first.
 */
static const TaStatement select_groups = {
	"SELECT g.name, g.kind FROM ("
	" SELECT b.id, b.name::text AS name, 'brand' AS kind, 1 AS place FROM @store@.brands b"
	"  WHERE pg_catalog.lower(b.name) COLLATE \"C\" >= $1 AND pg_catalog.lower(b.name) COLLATE \"C\" < $2"
	"    AND b.is_active AND b.deleted_at IS NULL"
	" UNION ALL"
	" SELECT c.id, c.name::text, 'category', 2 FROM @store@.categories c"
	"  WHERE pg_catalog.lower(c.name) COLLATE \"C\" >= $1 AND pg_catalog.lower(c.name) COLLATE \"C\" < $2"
	"    AND c.is_active AND c.deleted_at IS NULL) g"
	" LEFT JOIN @store@.search_popularity s ON s.id = g.id"
	" ORDER BY s.sold DESC NULLS LAST, pg_catalog.length(g.name), g.place, g.name LIMIT $3",
	3,
	{TEXTOID, TEXTOID, INT4OID}};
static const TaStatement select_names = {
	"SELECT p.id, p.name FROM @store@.products p WHERE p.id = ANY ($1)", 1, {UUIDARRAYOID}};

typedef struct LastWord
{
	char last[TA_TERM_MAX];
	int	 length;
	int	 start;
	int	 end;
	int	 count;
} LastWord;

static void
take_last(const TaToken *token, void *arg)
{
	LastWord *last = (LastWord *) arg;

	if (token->joined)
		return;
	last->length = token->surface_length;
	memcpy(last->last, token->surface, token->surface_length);
	last->start = token->start;
	last->end = token->end;
	last->count++;
}

typedef struct PrefixTerm
{
	char *term;
	int	  length;
	int64 df;
} PrefixTerm;

static int
compare_prefix_terms(const void *a, const void *b)
{
	const PrefixTerm *x = (const PrefixTerm *) a;
	const PrefixTerm *y = (const PrefixTerm *) b;

	if (x->df != y->df)
		return x->df > y->df ? -1 : 1;
	if (x->length != y->length)
		return x->length - y->length;
	return memcmp(x->term, y->term, x->length);
}

Datum
ta_suggest(PG_FUNCTION_ARGS)
{
	Oid			  nspid;
	text		 *prefix;
	int32		  limit = limit_argument(fcinfo, 2, 10);
	ResultRows	  result;
	TaSearch	 *search;
	TaFrame		  frame;
	LastWord	  last = {0};
	char		 *whole;
	int			  whole_length;
	int			  put = 0;
	int			  count;
	TaQuery		 *query;
	TaHit		 *hits;
	PrefixTerm	 *terms;
	int			  nterms = 0;
	uint64		  rows;
	MemoryContext caller = CurrentMemoryContext;

	ta_require_argument(fcinfo, 0, "store");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	prefix = query_argument(fcinfo, 1);
	result_open(&result, fcinfo);
	if (limit == 0)
		return (Datum) 0;
	limit = Min(limit, 1000);

	search = ta_search_open(nspid);
	whole_length = pg_mbcliplen(VARDATA_ANY(prefix), VARSIZE_ANY_EXHDR(prefix), 256);
	whole = str_tolower(VARDATA_ANY(prefix), whole_length, DEFAULT_COLLATION_OID);
	while (*whole == ' ')
		whole++;
	whole_length = strlen(whole);
	ta_tokenize(search->config, whole, whole_length, take_last, &last);

	/* brands and categories by the whole of what was typed */
	if (whole_length > 0)
	{
		Datum values[3];

		values[0] = CStringGetTextDatum(whole);
		values[1] = CStringGetTextDatum(psprintf("%s%s", whole, GetDatabaseEncoding() == PG_UTF8 ? "\xF4\x8F\xBF\xBF" : "\x7F"));
		values[2] = Int32GetDatum(limit > 3 ? Max(limit / 2, 2) : limit);
		ta_frame_begin(&frame, InvalidOid);
		rows = ta_query(nspid, &select_groups, values, NULL);
		for (uint64 i = 0; i < rows; i++)
		{
			Datum row[2];
			bool  nulls[2] = {0};
			bool  isnull;

			row[0] = ta_spi_value(i, 1, &isnull);
			row[1] = ta_spi_value(i, 2, &isnull);
			tuplestore_putvalues(result.store, result.desc, row, nulls);
			put++;
		}
		ta_frame_end(&frame);
	}

	/* then products: the words before the last, and one that begins as it does */
	query = ta_parse_query(search, whole, last.count > 0 && last.end == whole_length ? last.start : whole_length, false);
	if (last.count > 0 && last.end == whole_length && query->nwords < TA_MAX_WORDS)
	{
		TaIndexReader reader;
		char		  from[TA_TERM_MAX];
		char		  term[TA_TERM_MAX];
		int			  from_length = last.length;
		int			  term_length;
		bool		  inclusive = true;
		int			  word = query->nwords;

		terms = palloc(sizeof(PrefixTerm) * (SUGGEST_TERMS + 1));
		memcpy(from, last.last, last.length);
		ta_list_open(search, &reader, 1);
		while (nterms < SUGGEST_TERMS && ta_next_term(&reader, from, from_length, inclusive, term, &term_length) &&
			   term_length >= last.length && memcmp(term, last.last, last.length) == 0)
		{
			memcpy(from, term, term_length);
			from_length = term_length;
			inclusive = false;
			if (memchr(term, ':', term_length) != NULL)
			{
				from_length = (char *) memchr(term, ':', term_length) - term + 1;
				from[from_length - 1] = ':' + 1;
				inclusive = true;
				continue;
			}
			terms[nterms].term = pnstrdup(term, term_length);
			terms[nterms].length = term_length;
			terms[nterms].df = ta_document_frequency(search, term, term_length);
			nterms++;
			CHECK_FOR_INTERRUPTS();
		}
		ta_list_close(&reader);
		for (int r = 0; r < search->nrecents && nterms < SUGGEST_TERMS; r++)
		{
			TaRecent *recent = &search->recents[r];

			for (int t = 0; !recent->removed && t < recent->nterms && nterms < SUGGEST_TERMS; t++)
			{
				int			length;
				const char *at = ta_recent_term(recent, t, &length);
				bool		known = false;

				if (length < last.length || memcmp(at, last.last, last.length) != 0 || memchr(at, ':', length) != NULL)
					continue;
				for (int k = 0; k < nterms && !known; k++)
					known = terms[k].length == length && memcmp(terms[k].term, at, length) == 0;
				if (known)
					continue;
				terms[nterms].term = pnstrdup(at, length);
				terms[nterms].length = length;
				terms[nterms++].df = ta_document_frequency(search, at, length);
			}
		}
		/* the stem of a whole word may be shorter than the word */
		{
			TaQuery *whole_word = ta_parse_query(search, last.last, last.length, false);

			for (int l = 0; l < whole_word->nlists && nterms <= SUGGEST_TERMS; l++)
			{
				terms[nterms].term = whole_word->lists[l].term;
				terms[nterms].length = whole_word->lists[l].length;
				terms[nterms++].df = whole_word->lists[l].df;
			}
		}
		qsort(terms, nterms, sizeof(PrefixTerm), compare_prefix_terms);
		query->nwords++;
		query->words[word] = pnstrdup(last.last, last.length);
		for (int t = 0; t < Min(nterms, 16); t++)
		{
			TaList *list;

			if (query->nlists == TA_MAX_LISTS || terms[t].df == 0)
				continue;
			list = &query->lists[query->nlists++];
			memset(list, 0, sizeof(*list));
			list->term = terms[t].term;
			list->length = terms[t].length;
			list->hash = ta_term_hash(terms[t].term, terms[t].length);
			list->mask = UINT32CONST(1) << word;
			list->df = terms[t].df;
			list->weight = ta_weight(search, terms[t].df, 64);
			query->known |= list->mask;
		}
		if ((query->known & (UINT32CONST(1) << word)) == 0)
			query->empty_filter = true; /* nothing begins like this */
	}

	if (put < limit && whole_length > 0)
	{
		query->stage = TA_STAGE_FULL;
		hits = ta_top_popular(search, query, limit - put, &count);
		if (count > 0)
		{
			pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * count);
			Datum	   values[1];

			for (int i = 0; i < count; i++)
				ids[i] = hits[i].id;
			values[0] = ta_uuid_array(ids, count);
			ta_frame_begin(&frame, InvalidOid);
			rows = ta_query(nspid, &select_names, values, NULL);
			for (int i = 0; i < count; i++)
			{
				for (uint64 r = 0; r < rows; r++)
				{
					bool  isnull;
					Datum row[2];
					bool  nulls[2] = {0};

					if (memcmp(DatumGetUUIDP(ta_spi_value(r, 1, &isnull)), &hits[i].id, UUID_LEN) != 0)
						continue;
					row[0] = ta_spi_value(r, 2, &isnull);
					row[1] = CStringGetTextDatum("product");
					tuplestore_putvalues(result.store, result.desc, row, nulls);
				}
			}
			ta_frame_end(&frame);
		}
	}
	MemoryContextSwitchTo(caller);
	ta_search_close(search);
	return (Datum) 0;
}
