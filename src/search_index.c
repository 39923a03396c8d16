/*-------------------------------------------------------------------------
 *
 * search_index.c
 *	  Keeping the search tables: what triggers write when products change, and
 *	  what maintenance makes of it.
 *
 * A changed product is one row of search_recent, keyed by the product: its
 * terms, or none where it is no longer to be found.  It hides whatever the
 * segments say of the product.  A statement that inserts many products writes a
 * segment at once.  techally.fold_search turns recent rows into a segment, takes
 * the products they replace out of the older ones, and merges segments.
 *
 * Invariants:
 * - A product that can be found is in search_recent, or live in exactly one
 *	 segment; a row of search_recent goes before the segments.
 * - Documents of a segment are numbered in the order of their keys.
 * - Segments and their postings are never changed once they are written, but
 *	 for the live bits, prices and popularity of search_documents, which only
 *	 the fold writes.
 *
 * Lock order: the product's row (whoever changes a product has it; for what
 * hangs on a product it is taken first, several in the order of their keys),
 * then its row of search_recent.  The fold takes an advisory lock that only
 * folds take, and then rows of search_recent, whose version tells it whether
 * they are still those that it folded; a product that was changed meanwhile, or
 * whose row somebody holds, keeps its row, so that the fold waits for nobody.  No lock is held by readers but those of their tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "array_util.h"
#include "compat.h"
#include "errors.h"
#include "request_util.h"
#include "row_writer.h"
#include "search.h"
#include "spi_util.h"
#include "trigger_util.h"

#define MANY_PRODUCTS	 256 /* inserted at once: they become a segment */
#define BATCH			 1000
#define FOLD_LOCK_SPACE	 INT64CONST(0x7461736561726368) /* "tasearch" */
#define SEGMENT_POSTINGS (6 * 1024 * 1024)				/* in memory at a time, at least */
#define MERGE_FANOUT	 4

PG_FUNCTION_INFO_V1(ta_search_products_inserted);
PG_FUNCTION_INFO_V1(ta_search_product_changed);
PG_FUNCTION_INFO_V1(ta_search_price_changed);
PG_FUNCTION_INFO_V1(ta_search_variants_changed);
PG_FUNCTION_INFO_V1(ta_search_group_changed);
PG_FUNCTION_INFO_V1(ta_search_truncated);
PG_FUNCTION_INFO_V1(ta_search_segment_made);
PG_FUNCTION_INFO_V1(ta_fold_search);
PG_FUNCTION_INFO_V1(ta_rebuild_search);

#define DOCUMENTS_OF(source) \
	"SELECT " TA_DOCUMENT_COLUMNS " FROM " source " p LEFT JOIN @store@.brands b ON b.id = p.brand_id AND b.deleted_at IS NULL"

static const TaStatement select_inserted = {
	DOCUMENTS_OF("inserted") " WHERE " TA_VISIBLE, 0};
static const TaStatement select_products = {
	DOCUMENTS_OF("@store@.products") " WHERE p.id = ANY ($1) AND " TA_VISIBLE, 1, {UUIDARRAYOID}};
static const TaStatement select_all = {
	DOCUMENTS_OF("@store@.products") " WHERE " TA_VISIBLE, 0};
static const TaStatement lock_products = {
	"SELECT 1 FROM @store@.products p WHERE p.id = ANY ($1) ORDER BY p.id FOR NO KEY UPDATE", 1, {UUIDARRAYOID}};
static const TaStatement upsert_recent = {
	"INSERT INTO @store@.search_recent AS r (product_id, price, created, popularity, terms)"
	" VALUES ($1, $2, $3, $4, $5)"
	" ON CONFLICT (product_id) DO UPDATE SET version = DEFAULT, price = excluded.price,"
	" created = excluded.created, terms = excluded.terms",
	5,
	{UUIDOID, INT8OID, INT4OID, INT4OID, BYTEAOID}};
static const TaStatement upsert_price = {
	"INSERT INTO @store@.search_prices AS r (product_id, price) VALUES ($1, $2)"
	" ON CONFLICT (product_id) DO UPDATE SET version = DEFAULT, price = excluded.price",
	2,
	{UUIDOID, INT8OID}};
static const TaStatement insert_segment = {
	"INSERT INTO @store@.search_segments (documents, popular) VALUES ($1, $2) RETURNING segment", 2, {INT4OID, BYTEAOID}};
static const TaStatement insert_posting = {
	"INSERT INTO @store@.search_postings (term, segment, last, total, max_impact, data)"
	" VALUES ($1, $2, $3, $4, $5, $6)",
	6,
	{TEXTOID, INT4OID, INT4OID, INT4OID, INT2OID, BYTEAOID}};
static const TaStatement insert_chunk = {
	"INSERT INTO @store@.search_documents (segment, chunk, first_id, live, data) VALUES ($1, $2, $3, $4, $5)",
	5,
	{INT4OID, INT4OID, UUIDOID, INT8OID, BYTEAOID}};
static const TaStatement update_chunk = {
	"UPDATE @store@.search_documents d SET live = $3, data = $4 WHERE d.segment = $1 AND d.chunk = $2",
	4,
	{INT4OID, INT4OID, INT8OID, BYTEAOID}};
static const TaStatement touch_segment = {
	"UPDATE @store@.search_segments s SET refreshed_at = pg_catalog.clock_timestamp(), popular = $2 WHERE s.segment = $1",
	2,
	{INT4OID, BYTEAOID}};
static const TaStatement refresh_popularity = {
	"WITH RECURSIVE sold AS ("
	" SELECT p.brand_id, p.category_id, u.sold FROM (SELECT pg_catalog.unnest($1) AS id, pg_catalog.unnest($2) AS sold) u"
	"   JOIN @store@.products p ON p.id = u.id),"
	" above AS ("
	" SELECT c.id AS category, c.id, c.parent_id FROM @store@.categories c"
	" UNION SELECT a.category, c.id, c.parent_id FROM above a JOIN @store@.categories c ON c.id = a.parent_id),"
	" groups AS ("
	" SELECT s.brand_id AS id, pg_catalog.sum(s.sold)::pg_catalog.int8 AS sold FROM sold s WHERE s.brand_id IS NOT NULL GROUP BY 1"
	" UNION ALL"
	" SELECT a.id, pg_catalog.sum(s.sold)::pg_catalog.int8 FROM"
	"   (SELECT d.category_id, pg_catalog.sum(d.sold) AS sold FROM sold d WHERE d.category_id IS NOT NULL GROUP BY 1) s"
	"   JOIN above a ON a.category = s.category_id GROUP BY 1),"
	" gone AS (DELETE FROM @store@.search_popularity o WHERE NOT EXISTS (SELECT FROM groups g WHERE g.id = o.id))"
	" INSERT INTO @store@.search_popularity AS o (id, sold) SELECT g.id, g.sold FROM groups g"
	" ON CONFLICT (id) DO UPDATE SET sold = excluded.sold WHERE o.sold <> excluded.sold",
	2,
	{UUIDARRAYOID, INT8ARRAYOID}};
static const TaStatement delete_recent = {
	"DELETE FROM @store@.search_recent r"
	" USING (SELECT k.product_id FROM (SELECT pg_catalog.unnest($1) AS id, pg_catalog.unnest($2) AS version) u"
	"   JOIN @store@.search_recent k ON k.product_id = u.id AND k.version = u.version"
	"   FOR UPDATE OF k SKIP LOCKED) l"
	" WHERE r.product_id = l.product_id",
	2,
	{UUIDARRAYOID, INT8ARRAYOID}};
static const TaStatement delete_prices = {
	"DELETE FROM @store@.search_prices r"
	" USING (SELECT k.product_id FROM (SELECT pg_catalog.unnest($1) AS id, pg_catalog.unnest($2) AS version) u"
	"   JOIN @store@.search_prices k ON k.product_id = u.id AND k.version = u.version"
	"   FOR UPDATE OF k SKIP LOCKED) l"
	" WHERE r.product_id = l.product_id",
	2,
	{UUIDARRAYOID, INT8ARRAYOID}};
static const TaStatement select_prices = {
	"SELECT r.product_id, r.version, r.price FROM @store@.search_prices r ORDER BY r.product_id", 0};
static const TaStatement select_sales = {
	"SELECT i.product_id, pg_catalog.sum(i.quantity)::pg_catalog.float4 FROM @store@.order_items i"
	" WHERE i.product_id IS NOT NULL GROUP BY i.product_id",
	0};
static const TaStatement delete_postings_of = {
	"DELETE FROM @store@.search_postings p WHERE p.segment = ANY ($1)", 1, {INT4ARRAYOID}};
static const TaStatement delete_documents_of = {
	"DELETE FROM @store@.search_documents p WHERE p.segment = ANY ($1)", 1, {INT4ARRAYOID}};
static const TaStatement delete_segments_of = {
	"DELETE FROM @store@.search_segments p WHERE p.segment = ANY ($1)", 1, {INT4ARRAYOID}};
static const TaStatement delete_strays = {
	"WITH documents AS (DELETE FROM @store@.search_documents d"
	" WHERE NOT EXISTS (SELECT FROM @store@.search_segments s WHERE s.segment = d.segment))"
	" DELETE FROM @store@.search_postings p"
	" WHERE NOT EXISTS (SELECT FROM @store@.search_segments s WHERE s.segment = p.segment)",
	0};
static const TaStatement select_by_brand = {
	"SELECT p.id FROM @store@.products p WHERE p.brand_id = $1 AND " TA_VISIBLE, 1, {UUIDOID}};
static const TaStatement select_by_category = {
	"WITH RECURSIVE below AS ("
	" SELECT c.id, 0 AS depth FROM @store@.categories c WHERE c.id = $1"
	" UNION"
	" SELECT c.id, b.depth + 1 FROM @store@.categories c JOIN below b ON c.parent_id = b.id WHERE b.depth < 32)"
	" SELECT DISTINCT p.id FROM below b JOIN @store@.products p ON p.category_id = b.id WHERE " TA_VISIBLE,
	1,
	{UUIDOID}};
static const TaColumn posting_columns[] = {
	{"term", TEXTOID}, {"segment", INT4OID}, {"last", INT4OID}, {"total", INT4OID}, {"max_impact", INT2OID}, {"data", BYTEAOID}};
static const TaColumn chunk_columns[] = {
	{"segment", INT4OID}, {"chunk", INT4OID}, {"first_id", UUIDOID}, {"live", INT8OID}, {"data", BYTEAOID}};

/*
 * Rows of a segment
 */

/* Writes rows without statements where the table allows it. */
typedef struct RowSink
{
	Oid				   nspid;
	const TaStatement *statement;
	TaRowWriter		  *writer;
} RowSink;

static void
sink_open(RowSink *sink, Oid nspid, const char *table, const TaStatement *statement,
		  const TaColumn *columns, int ncolumns)
{
	sink->nspid = nspid;
	sink->statement = statement;
	sink->writer = ta_direct_rows() ? ta_writer_open(ta_search_table(nspid, table), CMD_INSERT, columns, ncolumns) : NULL;
}

static void
sink_put(RowSink *sink, Datum *values)
{
	static const bool nulls[8] = {0};

	if (sink->writer != NULL)
		ta_writer_insert(sink->writer, values, nulls);
	else
		ta_execute(sink->nspid, sink->statement, SPI_OK_INSERT, values, NULL);
}

static void
sink_close(RowSink *sink)
{
	if (sink->writer != NULL)
		ta_writer_close(sink->writer);
}

/* Writes the postings of a term in a segment; documents ascend. */
static void
put_postings(RowSink *sink, const char *term, int length, int32 segment,
			 const uint32 *docs, const uint8 *impacts, int total)
{
	text *term_value = cstring_to_text_with_len(term, length);
	char  buffer[VARHDRSZ + 6 + TA_BLOCK_SIZE * 5];

	for (int from = 0; from < total; from += TA_BLOCK_SIZE)
	{
		int			   n = Min(TA_BLOCK_SIZE, total - from);
		uint32		   widest = 0;
		int			   width;
		int			   max = 0;
		unsigned char *at = (unsigned char *) buffer + VARHDRSZ;
		uint32		   first = docs[from];
		Datum		   values[6];

		for (int i = 1; i < n; i++)
			widest = Max(widest, docs[from + i] - docs[from + i - 1]);
		width = widest < 256 ? 1 : (widest < 65536 ? 2 : 4);
		*at++ = width;
		*at++ = n - 1;
		for (int b = 0; b < 4; b++)
			*at++ = (first >> (8 * b)) & 0xFF;
		for (int i = 1; i < n; i++)
		{
			uint32 difference = docs[from + i] - docs[from + i - 1];

			for (int b = 0; b < width; b++)
				*at++ = (difference >> (8 * b)) & 0xFF;
		}
		for (int i = 0; i < n; i++)
			max = Max(max, impacts[from + i]);
		memcpy(at, impacts + from, n);
		at += n;
		SET_VARSIZE(buffer, (char *) at - buffer);

		values[0] = PointerGetDatum(term_value);
		values[1] = Int32GetDatum(segment);
		values[2] = Int32GetDatum(docs[from + n - 1]);
		values[3] = Int32GetDatum(total);
		values[4] = Int16GetDatum(max);
		values[5] = PointerGetDatum(buffer);
		sink_put(sink, values);
	}
	pfree(term_value);
}

/* What search_documents keeps of a product. */
typedef struct DocRow
{
	pg_uuid_t id;
	int64	  price;
	int32	  created;
	float4	  popularity;
} DocRow;

static bytea *
pack_chunk(const DocRow *rows, int n, char *buffer)
{
	char *at = buffer + VARHDRSZ;

	for (int i = 0; i < n; i++, at += UUID_LEN)
		memcpy(at, &rows[i].id, UUID_LEN);
	for (int i = 0; i < n; i++, at += 8)
		memcpy(at, &rows[i].price, 8);
	for (int i = 0; i < n; i++, at += 4)
		memcpy(at, &rows[i].created, 4);
	for (int i = 0; i < n; i++, at += 4)
		memcpy(at, &rows[i].popularity, 4);
	SET_VARSIZE(buffer, at - buffer);
	return (bytea *) buffer;
}

static void
put_documents(Oid nspid, int32 segment, const DocRow *rows, int count)
{
	RowSink sink;
	char	buffer[VARHDRSZ + TA_CHUNK_SIZE * 32];

	sink_open(&sink, nspid, "search_documents", &insert_chunk, chunk_columns, lengthof(chunk_columns));
	for (int from = 0, chunk = 0; from < count; from += TA_CHUNK_SIZE, chunk++)
	{
		int	  n = Min(TA_CHUNK_SIZE, count - from);
		Datum values[5];

		values[0] = Int32GetDatum(segment);
		values[1] = Int32GetDatum(chunk);
		values[2] = UUIDPGetDatum(&rows[from].id);
		values[3] = Int64GetDatum((int64) ((UINT64CONST(1) << n) - 1));
		values[4] = PointerGetDatum(pack_chunk(rows + from, n, buffer));
		sink_put(&sink, values);
		CHECK_FOR_INTERRUPTS();
	}
	sink_close(&sink);
}

static int
compare_popular(const void *a, const void *b)
{
	const TaPopular *x = (const TaPopular *) a;
	const TaPopular *y = (const TaPopular *) b;

	if (x->sold != y->sold)
		return x->sold > y->sold ? -1 : 1;
	return x->doc < y->doc ? -1 : (x->doc > y->doc ? 1 : 0);
}

/* The best of those that were sold, as search_segments keeps them; sorts them. */
static bytea *
pack_popular(TaPopular *popular, int64 count)
{
	Size   size;
	bytea *result;

	if (count == 0)
		return NULL;
	qsort(popular, count, sizeof(TaPopular), compare_popular);
	size = sizeof(TaPopular) * Min(count, TA_POPULAR_MAX);
	result = palloc(VARHDRSZ + size);
	SET_VARSIZE(result, VARHDRSZ + size);
	memcpy(VARDATA(result), popular, size);
	return result;
}

static bool makes_segment = false; /* it is we who insert into search_segments */

static void
put_segment(Oid nspid, Datum *values, const char *nulls)
{
	makes_segment = true;
	PG_TRY();
	{
		ta_execute(nspid, &insert_segment, SPI_OK_INSERT_RETURNING, values, nulls);
	}
	PG_FINALLY();
	{
		makes_segment = false;
	}
	PG_END_TRY();
}

static int32
new_segment(Oid nspid, const DocRow *rows, int documents)
{
	TaPopular *popular = NULL;
	int64	   count = 0;
	int64	   size = 0;
	Datum	   values[2] = {Int32GetDatum(documents)};
	bool	   isnull;

	for (int i = 0; i < documents; i++)
	{
		if (!(rows[i].popularity > 0))
			continue;
		if (count == size)
		{
			size = size == 0 ? 256 : size * 2;
			popular = popular == NULL ? palloc(sizeof(TaPopular) * size) : repalloc_huge(popular, sizeof(TaPopular) * size);
		}
		popular[count].doc = i;
		popular[count++].sold = rows[i].popularity;
	}
	values[1] = PointerGetDatum(pack_popular(popular, count));
	put_segment(nspid, values, count == 0 ? " n" : NULL);
	return DatumGetInt32(ta_spi_value(0, 1, &isnull));
}

/*
 * Making a segment in memory
 */

typedef struct BuiltTerm
{
	const char *text;
	int			length;
	uint32		hash;
	uint32		count;
	uint32		at;
} BuiltTerm;

typedef struct BuiltDoc
{
	DocRow row;
	uint64 from; /* its postings */
	uint32 count;
} BuiltDoc;

typedef struct Builder
{
	Oid			  nspid;
	MemoryContext context; /* of what is in memory; reset when it is written */
	BuiltTerm	 *terms;
	uint32		  nterms;
	uint32		  terms_size;
	uint32		 *slots;
	uint32		  nslots;
	BuiltDoc	 *docs;
	uint32		  ndocs;
	uint32		  docs_size;
	uint32		 *posting_terms;
	uint8		 *posting_impacts;
	uint64		  npostings;
	uint64		  postings_size;
	uint64		  postings_max;
} Builder;

static void
builder_reset(Builder *builder)
{
	MemoryContextReset(builder->context);
	builder->terms_size = builder->docs_size = 4096;
	builder->postings_size = 65536;
	builder->nslots = 16384;
	builder->nterms = builder->ndocs = 0;
	builder->npostings = 0;
	builder->terms = MemoryContextAlloc(builder->context, sizeof(BuiltTerm) * builder->terms_size);
	builder->docs = MemoryContextAlloc(builder->context, sizeof(BuiltDoc) * builder->docs_size);
	builder->slots = MemoryContextAllocZero(builder->context, sizeof(uint32) * builder->nslots);
	builder->posting_terms = MemoryContextAlloc(builder->context, sizeof(uint32) * builder->postings_size);
	builder->posting_impacts = MemoryContextAlloc(builder->context, builder->postings_size);
}

static void
builder_open(Builder *builder, Oid nspid)
{
	memset(builder, 0, sizeof(*builder));
	builder->nspid = nspid;
	builder->context = AllocSetContextCreate(CurrentMemoryContext, "techally search segment",
											 ALLOCSET_DEFAULT_SIZES);
	/* a posting takes 5 bytes here and 5 more when they are sorted */
	builder->postings_max = Max((uint64) SEGMENT_POSTINGS, (uint64) maintenance_work_mem * 1024 / 10);
	builder_reset(builder);
}

static uint32
builder_term(Builder *builder, const TaTerm *term)
{
	uint32	   at = term->hash & (builder->nslots - 1);
	BuiltTerm *built;
	char	  *copy;

	while (builder->slots[at] != 0)
	{
		built = &builder->terms[builder->slots[at] - 1];
		if (built->hash == term->hash && built->length == term->length &&
			memcmp(built->text, term->text, term->length) == 0)
			return builder->slots[at] - 1;
		at = (at + 1) & (builder->nslots - 1);
	}

	if (builder->nterms == builder->terms_size)
	{
		builder->terms_size *= 2;
		builder->terms = repalloc_huge(builder->terms, sizeof(BuiltTerm) * builder->terms_size);
	}
	copy = MemoryContextAlloc(builder->context, term->length);
	memcpy(copy, term->text, term->length);
	built = &builder->terms[builder->nterms++];
	built->text = copy;
	built->length = term->length;
	built->hash = term->hash;
	built->count = 0;
	builder->slots[at] = builder->nterms;

	if (builder->nterms * 2 > builder->nslots)
	{
		pfree(builder->slots);
		builder->nslots *= 2;
		builder->slots = MemoryContextAllocExtended(builder->context, sizeof(uint32) * builder->nslots,
													MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		for (uint32 i = 0; i < builder->nterms; i++)
		{
			at = builder->terms[i].hash & (builder->nslots - 1);
			while (builder->slots[at] != 0)
				at = (at + 1) & (builder->nslots - 1);
			builder->slots[at] = i + 1;
		}
	}
	return builder->nterms - 1;
}

static int
compare_docs(const void *a, const void *b)
{
	return memcmp(&((const BuiltDoc *) a)->row.id, &((const BuiltDoc *) b)->row.id, UUID_LEN);
}

static const BuiltTerm *sorted_terms; /* for compare_built_terms alone */

static int
compare_built_terms(const void *a, const void *b)
{
	const BuiltTerm *x = &sorted_terms[*(const uint32 *) a];
	const BuiltTerm *y = &sorted_terms[*(const uint32 *) b];
	int				 order = memcmp(x->text, y->text, Min(x->length, y->length));

	return order != 0 ? order : x->length - y->length;
}

/* Writes what is in memory as a segment. */
static void
builder_flush(Builder *builder)
{
	MemoryContext caller = MemoryContextSwitchTo(builder->context);
	uint32		 *order;
	uint32		 *docs;
	uint8		 *impacts;
	uint64		  at = 0;
	DocRow		 *rows;
	int32		  segment;
	RowSink		  sink;

	if (builder->ndocs == 0)
	{
		MemoryContextSwitchTo(caller);
		return;
	}

	qsort(builder->docs, builder->ndocs, sizeof(BuiltDoc), compare_docs);

	/* distribute the postings to their terms, document by document */
	for (uint32 t = 0; t < builder->nterms; t++)
	{
		builder->terms[t].at = at;
		at += builder->terms[t].count;
		builder->terms[t].count = 0;
	}
	docs = MemoryContextAllocHuge(builder->context, sizeof(uint32) * Max(at, 1));
	impacts = MemoryContextAllocHuge(builder->context, Max(at, 1));
	rows = MemoryContextAllocHuge(builder->context, sizeof(DocRow) * builder->ndocs);
	for (uint32 d = 0; d < builder->ndocs; d++)
	{
		BuiltDoc *doc = &builder->docs[d];

		rows[d] = doc->row;
		for (uint64 p = doc->from; p < doc->from + doc->count; p++)
		{
			BuiltTerm *term = &builder->terms[builder->posting_terms[p]];
			uint32	   to = term->at + term->count++;

			docs[to] = d;
			impacts[to] = builder->posting_impacts[p];
		}
	}

	order = MemoryContextAllocHuge(builder->context, sizeof(uint32) * Max(builder->nterms, 1));
	for (uint32 t = 0; t < builder->nterms; t++)
		order[t] = t;
	sorted_terms = builder->terms;
	qsort(order, builder->nterms, sizeof(uint32), compare_built_terms);

	MemoryContextSwitchTo(caller);
	segment = new_segment(builder->nspid, rows, builder->ndocs);
	put_documents(builder->nspid, segment, rows, builder->ndocs);
	sink_open(&sink, builder->nspid, "search_postings", &insert_posting, posting_columns, lengthof(posting_columns));
	for (uint32 t = 0; t < builder->nterms; t++)
	{
		BuiltTerm *term = &builder->terms[order[t]];

		put_postings(&sink, term->text, term->length, segment, docs + term->at, impacts + term->at, term->count);
		CHECK_FOR_INTERRUPTS();
	}
	sink_close(&sink);
	builder_reset(builder);
}

static void
builder_add(Builder *builder, const TaDocument *document)
{
	BuiltDoc *doc;

	if (builder->npostings + document->nterms > builder->postings_max)
		builder_flush(builder);
	if (builder->ndocs == builder->docs_size)
	{
		builder->docs_size *= 2;
		builder->docs = repalloc_huge(builder->docs, sizeof(BuiltDoc) * builder->docs_size);
	}
	while (builder->npostings + document->nterms > builder->postings_size)
	{
		builder->postings_size *= 2;
		builder->posting_terms = repalloc_huge(builder->posting_terms, sizeof(uint32) * builder->postings_size);
		builder->posting_impacts = repalloc_huge(builder->posting_impacts, builder->postings_size);
	}

	doc = &builder->docs[builder->ndocs++];
	doc->row.id = document->id;
	doc->row.price = document->price;
	doc->row.created = document->created;
	doc->row.popularity = document->popularity;
	doc->from = builder->npostings;
	doc->count = document->nterms;
	for (int i = 0; i < document->nterms; i++)
	{
		uint32 term = builder_term(builder, &document->terms[i]);

		builder->terms[term].count++;
		builder->posting_terms[builder->npostings] = term;
		builder->posting_impacts[builder->npostings++] = document->terms[i].impact;
	}
}

/* Makes segments of what a statement selects. */
static uint64
build_segments(Oid nspid, const TaStatement *statement)
{
	Oid		  config;
	double	  average;
	int		  enough;
	TaDrafts *drafts;
	Builder	  builder;
	Portal	  portal;
	uint64	  count = 0;

	ta_search_settings(nspid, &config, &average, &enough);
	drafts = ta_drafts_open(nspid, config, average);
	builder_open(&builder, nspid);
	portal = ta_open_cursor(nspid, statement, NULL, NULL, false);
	for (;;)
	{
		SPITupleTable *batch;
		uint64		   rows;

		SPI_cursor_fetch(portal, true, BATCH);
		batch = SPI_tuptable;
		rows = SPI_processed;
		for (uint64 i = 0; i < rows; i++)
		{
			TaDocument document;

			CHECK_FOR_INTERRUPTS();
			ta_draft(drafts, batch->vals[i], batch->tupdesc, &document);
			builder_add(&builder, &document);
			count++;
		}
		SPI_freetuptable(batch);
		if (rows == 0)
			break;
	}
	SPI_cursor_close(portal);
	builder_flush(&builder);
	MemoryContextDelete(builder.context);
	return count;
}

/*
 * Recent products
 */

static bytea *
pack_terms(const TaDocument *document)
{
	int	   n = document->nterms;
	Size   length = VARHDRSZ + 4 + (Size) n * 6;
	char  *result;
	char  *at;
	uint32 count = n;

	for (int i = 0; i < n; i++)
		length += document->terms[i].length;
	result = palloc(length);
	SET_VARSIZE(result, length);
	at = VARDATA(result);
	memcpy(at, &count, 4);
	at += 4;
	for (int i = 0; i < n; i++, at += 4)
		memcpy(at, &document->terms[i].hash, 4);
	for (int i = 0; i < n; i++)
		*at++ = document->terms[i].impact;
	for (int i = 0; i < n; i++)
		*at++ = document->terms[i].length;
	for (int i = 0; i < n; i++)
	{
		memcpy(at, document->terms[i].text, document->terms[i].length);
		at += document->terms[i].length;
	}
	return (bytea *) result;
}

static void
put_recent(Oid nspid, const TaDocument *document, bool removed)
{
	Datum values[5];

	values[0] = UUIDPGetDatum(&document->id);
	values[1] = Int64GetDatum(document->price);
	values[2] = Int32GetDatum(document->created);
	values[3] = Int32GetDatum((int32) document->popularity);
	values[4] = removed ? (Datum) 0 : PointerGetDatum(pack_terms(document));
	ta_execute(nspid, &upsert_recent, SPI_OK_INSERT, values, removed ? "    n" : NULL);
	if (!removed)
		pfree(DatumGetPointer(values[4]));
}

static int
compare_uuids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/*
 * Writes the entries of some products anew.  lock: nobody holds their rows yet.
 * Sorts ids.
 */
static void
refresh_products(Oid nspid, pg_uuid_t *ids, int count, bool lock)
{
	Oid		  config;
	double	  average;
	int		  enough;
	TaDrafts *drafts;
	int		  unique = 0;

	if (count == 0)
		return;
	qsort(ids, count, sizeof(pg_uuid_t), compare_uuids);
	for (int i = 0; i < count; i++)
	{
		if (unique == 0 || memcmp(&ids[unique - 1], &ids[i], UUID_LEN) != 0)
			ids[unique++] = ids[i];
	}
	count = unique;

	ta_search_settings(nspid, &config, &average, &enough);
	drafts = ta_drafts_open(nspid, config, average);
	for (int from = 0; from < count; from += BATCH)
	{
		int			   n = Min(BATCH, count - from);
		Datum		   values[1] = {ta_uuid_array(ids + from, n)};
		SPITupleTable *batch;
		uint64		   rows;
		bool		  *found = palloc0(sizeof(bool) * n);

		if (lock)
			ta_execute(nspid, &lock_products, SPI_OK_SELECT, values, NULL);
		rows = ta_execute(nspid, &select_products, SPI_OK_SELECT, values, NULL);
		batch = SPI_tuptable;
		for (uint64 i = 0; i < rows; i++)
		{
			TaDocument document;
			pg_uuid_t *at;

			ta_draft(drafts, batch->vals[i], batch->tupdesc, &document);
			at = bsearch(&document.id, ids + from, n, sizeof(pg_uuid_t), compare_uuids);
			if (at != NULL)
				found[at - (ids + from)] = true;
			put_recent(nspid, &document, false);
		}
		SPI_freetuptable(batch);
		for (int i = 0; i < n; i++)
		{
			TaDocument document = {0};

			if (found[i])
				continue;
			document.id = ids[from + i];
			put_recent(nspid, &document, true);
		}
		pfree(found);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Triggers
 */

/* The role to write as: the tables' owner, which must own the trigger's table, too. */
static Oid
search_owner(Relation rel)
{
	Oid owner = ta_relation_owner(ta_search_table(RelationGetNamespace(rel), "search_recent"));

	if (rel->rd_rel->relowner != owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" must have the owner of table \"%s\"",
						RelationGetRelationName(rel), "search_recent")));
	return owner;
}

/* The keys in a column of a transition table. */
static int
collect_keys(Tuplestorestate *store, Relation rel, const char *column, pg_uuid_t **keys, int count)
{
	TupleTableSlot *slot;
	int				attnum = SPI_fnumber(RelationGetDescr(rel), column);
	int64			rows;

	if (store == NULL)
		return count;
	rows = tuplestore_tuple_count(store);
	if (rows + count > (int64) (MaxAllocSize / sizeof(pg_uuid_t)))
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many rows in one statement")));
	*keys = *keys == NULL ? palloc(sizeof(pg_uuid_t) * Max(rows, 1)) : repalloc(*keys, sizeof(pg_uuid_t) * (rows + count + 1));
	slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsMinimalTuple);
	tuplestore_rescan(store);
	while (tuplestore_gettupleslot(store, true, false, slot))
	{
		bool  isnull;
		Datum value = slot_getattr(slot, attnum, &isnull);

		if (!isnull)
			(*keys)[count++] = *DatumGetUUIDP(value);
	}
	ExecDropSingleTupleTableSlot(slot);
	return count;
}

static pg_uuid_t
row_key(HeapTuple row, Relation rel, const char *column)
{
	bool  isnull;
	Datum value = heap_getattr(row, SPI_fnumber(RelationGetDescr(rel), column), RelationGetDescr(rel), &isnull);

	if (isnull)
		elog(ERROR, "column \"%s\" is null", column);
	return *DatumGetUUIDP(value);
}

/*
 * search_products_inserted() returns trigger
 *		AFTER INSERT on products, each statement, REFERENCING NEW TABLE AS
 *		inserted.
 */
Datum
ta_search_products_inserted(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_products_inserted",
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT);
	Relation	 rel = trigdata->tg_relation;
	Oid			 nspid = RelationGetNamespace(rel);
	TaFrame		 frame;
	int64		 count;

	if (trigdata->tg_newtable == NULL || strcmp(trigdata->tg_trigger->tgnewtable, "inserted") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired with a transition table \"%s\"",
						"search_products_inserted", "inserted")));
	count = tuplestore_tuple_count(trigdata->tg_newtable);
	if (count == 0)
		return PointerGetDatum(NULL);

	ta_frame_begin(&frame, search_owner(rel));
	if (SPI_register_trigger_data(trigdata) < 0)
		elog(ERROR, "SPI_register_trigger_data failed");
	if (count >= MANY_PRODUCTS)
		build_segments(nspid, &select_inserted);
	else
	{
		Oid			   config;
		double		   average;
		int			   enough;
		TaDrafts	  *drafts;
		SPITupleTable *batch;
		uint64		   rows;

		ta_search_settings(nspid, &config, &average, &enough);
		drafts = ta_drafts_open(nspid, config, average);
		rows = ta_execute(nspid, &select_inserted, SPI_OK_SELECT, NULL, NULL);
		batch = SPI_tuptable;
		for (uint64 i = 0; i < rows; i++)
		{
			TaDocument document;

			ta_draft(drafts, batch->vals[i], batch->tupdesc, &document);
			put_recent(nspid, &document, false);
		}
	}
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * search_product_changed() returns trigger
 *		AFTER UPDATE OR DELETE on products, each row: for the columns that
 *		search reads.
 */
Datum
ta_search_product_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_product_changed",
											TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);
	Relation	 rel = trigdata->tg_relation;
	pg_uuid_t	 keys[2];
	int			 count = 0;
	TaFrame		 frame;

	keys[count++] = row_key(trigdata->tg_trigtuple, rel, "id");
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		keys[count++] = row_key(trigdata->tg_newtuple, rel, "id");
	ta_frame_begin(&frame, search_owner(rel));
	refresh_products(RelationGetNamespace(rel), keys, count, false);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * search_price_changed() returns trigger
 *		AFTER UPDATE on products, each row: the price alone.
 */
Datum
ta_search_price_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_price_changed",
											TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE);
	Relation	 rel = trigdata->tg_relation;
	pg_uuid_t	 key = row_key(trigdata->tg_newtuple, rel, "id");
	bool		 isnull;
	Datum		 price = heap_getattr(trigdata->tg_newtuple, SPI_fnumber(RelationGetDescr(rel), "price"),
									  RelationGetDescr(rel), &isnull);
	Datum		 values[2];
	TaFrame		 frame;

	values[0] = UUIDPGetDatum(&key);
	values[1] = DirectFunctionCall1(numeric_int8,
									DirectFunctionCall2(numeric_mul, price,
														DirectFunctionCall1(int4_numeric, Int32GetDatum(100))));
	ta_frame_begin(&frame, search_owner(rel));
	ta_execute(RelationGetNamespace(rel), &upsert_price, SPI_OK_INSERT, values, NULL);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * search_variants_changed() returns trigger
 *		AFTER INSERT, UPDATE or DELETE on product_variants, each statement, with
 *		transition tables.
 */
Datum
ta_search_variants_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_variants_changed",
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT |
												TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);
	Relation	 rel = trigdata->tg_relation;
	pg_uuid_t	*keys = NULL;
	int			 count = 0;
	TaFrame		 frame;

	count = collect_keys(trigdata->tg_newtable, rel, "product_id", &keys, count);
	count = collect_keys(trigdata->tg_oldtable, rel, "product_id", &keys, count);
	if (count == 0)
		return PointerGetDatum(NULL);
	ta_frame_begin(&frame, search_owner(rel));
	refresh_products(RelationGetNamespace(rel), keys, count, true);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * search_group_changed() returns trigger
 *		AFTER UPDATE on brands or categories, each row: of what is found by
 *		their names.
 */
Datum
ta_search_group_changed(PG_FUNCTION_ARGS)
{
	TriggerData	 *trigdata = ta_trigger_data(fcinfo, "search_group_changed",
											 TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_UPDATE);
	Relation	  rel = trigdata->tg_relation;
	Oid			  nspid = RelationGetNamespace(rel);
	pg_uuid_t	  key = row_key(trigdata->tg_newtuple, rel, "id");
	bool		  is_brand = strcmp(RelationGetRelationName(rel), "brands") == 0;
	Datum		  values[1] = {UUIDPGetDatum(&key)};
	MemoryContext caller = CurrentMemoryContext;
	TaFrame		  frame;
	uint64		  rows;
	pg_uuid_t	 *keys;

	ta_frame_begin(&frame, search_owner(rel));
	rows = ta_execute(nspid, is_brand ? &select_by_brand : &select_by_category, SPI_OK_SELECT, values, NULL);
	keys = MemoryContextAllocHuge(caller, sizeof(pg_uuid_t) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		bool isnull;

		keys[i] = *DatumGetUUIDP(ta_spi_value(i, 1, &isnull));
	}
	refresh_products(nspid, keys, (int) rows, true);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/* Whether something in this session has a table open, which cannot be truncated then. */
static bool
is_in_use(Oid relid)
{
	Relation rel = table_open(relid, AccessShareLock);
	bool	 result = rel->rd_refcnt > 1;

	table_close(rel, AccessShareLock);
	return result;
}

/*
 * search_truncated() returns trigger
 *		AFTER TRUNCATE on products, each statement: nothing is left to be found.
 *
 * Where the same TRUNCATE names one of the tables, or a cursor is open on one,
 * their rows are deleted instead.
 */
Datum
ta_search_truncated(PG_FUNCTION_ARGS)
{
	static const char *const tables[] = {
		"search_segments", "search_postings", "search_documents", "search_recent", "search_prices", "search_popularity"};
	static const TaStatement truncate = {
		"TRUNCATE @store@.search_segments, @store@.search_postings, @store@.search_documents,"
		" @store@.search_recent, @store@.search_prices, @store@.search_popularity",
		0};
	static const TaStatement empty = {
		"WITH segments AS (DELETE FROM @store@.search_segments),"
		" postings AS (DELETE FROM @store@.search_postings),"
		" documents AS (DELETE FROM @store@.search_documents),"
		" recent AS (DELETE FROM @store@.search_recent),"
		" popularity AS (DELETE FROM @store@.search_popularity)"
		" DELETE FROM @store@.search_prices",
		0};
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_truncated",
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_TRUNCATE);
	Oid			 nspid = RelationGetNamespace(trigdata->tg_relation);
	bool		 in_use = false;
	TaFrame		 frame;

	for (size_t i = 0; i < lengthof(tables); i++)
	{
		Oid relid = get_relname_relid(tables[i], nspid);

		in_use |= OidIsValid(relid) && is_in_use(relid);
	}
	ta_frame_begin(&frame, search_owner(trigdata->tg_relation));
	if (in_use)
		ta_execute(nspid, &empty, SPI_OK_DELETE, NULL, NULL);
	else
		ta_execute(nspid, &truncate, SPI_OK_UTILITY, NULL, NULL);
	ta_frame_end(&frame);
	return PointerGetDatum(NULL);
}

/*
 * search_segment_made() returns trigger
 *		BEFORE INSERT on search_segments, each row: leaves out what search did not
 *		make itself.  Data of a dump that are loaded while the triggers of products
 *		work are in segments already; with those of the dump every product would be
 *		there twice.
 */
Datum
ta_search_segment_made(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "search_segment_made",
											TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_INSERT);

	return makes_segment ? PointerGetDatum(trigdata->tg_trigtuple) : PointerGetDatum(NULL);
}

/*
 * Maintenance
 */

/* A value that stands for products: a sorted array of these. */
typedef struct KeyedValue
{
	pg_uuid_t id;
	int64	  version;
	int64	  price;
	float4	  sold;
} KeyedValue;

static KeyedValue *
find_value(KeyedValue *values, int count, const pg_uuid_t *id)
{
	return count == 0 ? NULL : bsearch(id, values, count, sizeof(KeyedValue), compare_uuids);
}

static KeyedValue *
read_values(Oid nspid, const TaStatement *statement, bool prices, int *count)
{
	uint64		rows = ta_execute(nspid, statement, SPI_OK_SELECT, NULL, NULL);
	KeyedValue *values = palloc_extended(sizeof(KeyedValue) * Max(rows, 1), MCXT_ALLOC_HUGE);
	bool		isnull;

	for (uint64 i = 0; i < rows; i++)
	{
		values[i].id = *DatumGetUUIDP(ta_spi_value(i, 1, &isnull));
		values[i].version = values[i].price = 0;
		values[i].sold = 0;
		if (prices)
		{
			values[i].version = DatumGetInt64(ta_spi_value(i, 2, &isnull));
			values[i].price = DatumGetInt64(ta_spi_value(i, 3, &isnull));
		}
		else
			values[i].sold = DatumGetFloat4(ta_spi_value(i, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(values, rows, sizeof(KeyedValue), compare_uuids);
	*count = (int) rows;
	return values;
}

/* Products of a segment that were sold. */
typedef struct PopularList
{
	TaPopular *docs;
	int64	   count;
	int64	   size;
} PopularList;

static void
add_popular(PopularList *list, int32 doc, float4 sold)
{
	if (list->count == list->size)
	{
		list->size = list->size == 0 ? 256 : list->size * 2;
		list->docs = list->docs == NULL ? palloc(sizeof(TaPopular) * list->size)
										: repalloc_huge(list->docs, sizeof(TaPopular) * list->size);
	}
	list->docs[list->count].doc = doc;
	list->docs[list->count++].sold = sold;
}

/*
 * Brings the rows of search_documents up to date: which products are still
 * theirs, prices, popularity.  recents are those that are newer.
 */
static void
refresh_chunks(TaSearch *search, KeyedValue *prices, int nprices, KeyedValue *sales, int nsales)
{
	TupleTableSlot *slot = table_slot_create(ta_search_documents(search), NULL);
	TableScanDesc	scan = table_beginscan(ta_search_documents(search), search->snapshot, 0, NULL);
	TaChunk		   *chunk = palloc(sizeof(TaChunk));
	bool		   *touched = palloc0(sizeof(bool) * Max(search->nsegments, 1));
	PopularList	   *popular = palloc0(sizeof(PopularList) * Max(search->nsegments, 1));
	int				at = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool   changed = false;
		uint64 live;

		CHECK_FOR_INTERRUPTS();
		ta_read_chunk(slot, chunk);
		live = chunk->live;
		for (at = search->nsegments - 1; at >= 0 && search->segments[at].segment != chunk->segment;)
			at--;
		for (int i = 0; i < chunk->count; i++)
		{
			KeyedValue *value;

			if ((live & (UINT64CONST(1) << i)) == 0)
				continue;
			if (search->nrecents > 0 && ta_find_recent(search, &chunk->ids[i]) >= 0)
			{
				live &= ~(UINT64CONST(1) << i);
				continue;
			}
			value = find_value(prices, nprices, &chunk->ids[i]);
			if (value != NULL && value->price != chunk->prices[i])
			{
				chunk->prices[i] = value->price;
				changed = true;
			}
			value = find_value(sales, nsales, &chunk->ids[i]);
			if (value != NULL && value->sold != chunk->popularity[i])
			{
				chunk->popularity[i] = value->sold;
				changed = true;
			}
			if (chunk->popularity[i] > 0 && at >= 0)
				add_popular(&popular[at], chunk->chunk * TA_CHUNK_SIZE + i, chunk->popularity[i]);
		}
		if (changed || live != chunk->live)
		{
			DocRow rows[TA_CHUNK_SIZE];
			char   buffer[VARHDRSZ + TA_CHUNK_SIZE * 32];
			Datum  values[4];

			for (int i = 0; i < chunk->count; i++)
			{
				rows[i].id = chunk->ids[i];
				rows[i].price = chunk->prices[i];
				rows[i].created = chunk->created[i];
				rows[i].popularity = chunk->popularity[i];
			}
			values[0] = Int32GetDatum(chunk->segment);
			values[1] = Int32GetDatum(chunk->chunk);
			values[2] = Int64GetDatum((int64) live);
			values[3] = PointerGetDatum(pack_chunk(rows, chunk->count, buffer));
			ta_execute(search->nspid, &update_chunk, SPI_OK_UPDATE, values, NULL);
			if (at >= 0)
				touched[at] = true;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);

	for (int s = 0; s < search->nsegments; s++)
	{
		Datum values[2];

		if (!touched[s])
			continue;
		values[0] = Int32GetDatum(search->segments[s].segment);
		values[1] = PointerGetDatum(pack_popular(popular[s].docs, popular[s].count));
		ta_execute(search->nspid, &touch_segment, SPI_OK_UPDATE, values, popular[s].count == 0 ? " n" : NULL);
	}
}

/* Brands and categories by what was sold of their products. */
static void
count_groups(Oid nspid, const KeyedValue *sales, int nsales)
{
	pg_uuid_t *ids = palloc_extended(sizeof(pg_uuid_t) * Max(nsales, 1), MCXT_ALLOC_HUGE);
	Datum	  *sold = palloc_extended(sizeof(Datum) * Max(nsales, 1), MCXT_ALLOC_HUGE);
	Datum	   values[2];

	for (int i = 0; i < nsales; i++)
	{
		ids[i] = sales[i].id;
		sold[i] = Int64GetDatum((int64) sales[i].sold);
	}
	values[0] = ta_uuid_array(ids, nsales);
	values[1] = ta_datum_array(sold, nsales, INT8OID);
	ta_execute(nspid, &refresh_popularity, SPI_OK_INSERT, values, NULL);
	pfree(ids);
	pfree(sold);
}

/* Makes a segment of the recent products, and removes their rows. */
static int
fold_recents(TaSearch *search, KeyedValue *prices, int nprices, KeyedValue *sales, int nsales)
{
	Builder	   builder;
	pg_uuid_t *ids = palloc_extended(sizeof(pg_uuid_t) * Max(search->nrecents, 1), MCXT_ALLOC_HUGE);
	Datum	  *versions = palloc_extended(sizeof(Datum) * Max(search->nrecents, 1), MCXT_ALLOC_HUGE);
	Datum	   values[2];

	builder_open(&builder, search->nspid);
	for (int r = 0; r < search->nrecents; r++)
	{
		TaRecent   *recent = &search->recents[r];
		TaDocument	document;
		KeyedValue *value;

		ids[r] = recent->id;
		versions[r] = Int64GetDatum(recent->version);
		if (recent->removed)
			continue;
		document.id = recent->id;
		document.price = recent->price;
		document.created = recent->created;
		document.popularity = 0;
		value = find_value(sales, nsales, &recent->id);
		if (value != NULL)
			document.popularity = value->sold;
		value = find_value(prices, nprices, &recent->id);
		if (value != NULL)
			document.price = value->price;
		document.nterms = recent->nterms;
		document.terms = palloc(sizeof(TaTerm) * Max(recent->nterms, 1));
		{
			const unsigned char *packed = (const unsigned char *) recent->packed + 4;
			const unsigned char *lengths = packed + recent->nterms * 5;
			const char			*text = (const char *) lengths + recent->nterms;

			for (int i = 0; i < recent->nterms; i++)
			{
				TaTerm *term = &document.terms[i];

				memcpy(&term->hash, packed + i * 4, 4);
				term->impact = packed[recent->nterms * 4 + i];
				term->length = lengths[i];
				term->text = text;
				text += lengths[i];
			}
		}
		builder_add(&builder, &document);
		pfree(document.terms);
	}
	builder_flush(&builder);
	MemoryContextDelete(builder.context);

	for (int from = 0; from < search->nrecents; from += BATCH)
	{
		int n = Min(BATCH, search->nrecents - from);

		values[0] = ta_uuid_array(ids + from, n);
		values[1] = ta_datum_array(versions + from, n, INT8OID);
		ta_execute(search->nspid, &delete_recent, SPI_OK_DELETE, values, NULL);
	}
	return search->nrecents;
}

static void
delete_folded_prices(Oid nspid, KeyedValue *prices, int nprices)
{
	for (int from = 0; from < nprices; from += BATCH)
	{
		int		   n = Min(BATCH, nprices - from);
		pg_uuid_t *ids = palloc(sizeof(pg_uuid_t) * n);
		Datum	  *versions = palloc(sizeof(Datum) * n);
		Datum	   values[2];

		for (int i = 0; i < n; i++)
		{
			ids[i] = prices[from + i].id;
			versions[i] = Int64GetDatum(prices[from + i].version);
		}
		values[0] = ta_uuid_array(ids, n);
		values[1] = ta_datum_array(versions, n, INT8OID);
		ta_execute(nspid, &delete_prices, SPI_OK_DELETE, values, NULL);
	}
}

/* A document of a segment that is merged. */
typedef struct MergedDoc
{
	DocRow row;
	int32  source; /* index among the merged segments */
	int32  doc;
} MergedDoc;

typedef struct MergedPosting
{
	uint32 doc;
	uint8  impact;
} MergedPosting;

static int
compare_merged_docs(const void *a, const void *b)
{
	return memcmp(&((const MergedDoc *) a)->row.id, &((const MergedDoc *) b)->row.id, UUID_LEN);
}

static int
compare_merged_postings(const void *a, const void *b)
{
	uint32 x = ((const MergedPosting *) a)->doc;
	uint32 y = ((const MergedPosting *) b)->doc;

	return x < y ? -1 : (x > y ? 1 : 0);
}

static int
source_of(const int32 *segments, int count, int32 segment)
{
	for (int i = 0; i < count; i++)
	{
		if (segments[i] == segment)
			return i;
	}
	return -1;
}

/* Makes one segment of several, leaving out what is no longer live. */
static void
merge_segments(TaSearch *search, int32 *segments, const int32 *documents, int count)
{
	int32		  **numbers = palloc(sizeof(int32 *) * count);
	uint64			total = 0;
	uint64			ndocs = 0;
	MergedDoc	   *docs;
	DocRow		   *rows;
	TupleTableSlot *slot;
	TableScanDesc	scan;
	TaChunk		   *chunk = palloc(sizeof(TaChunk));
	TaBlock		   *block = palloc(sizeof(TaBlock));
	TaIndexReader	reader;
	MergedPosting  *postings;
	uint32		   *out_docs;
	uint8		   *out_impacts;
	uint64			npostings = 0;
	int32			segment;
	RowSink			sink;
	char			term[TA_TERM_MAX];
	int				term_length = -1;
	Datum			values[1];

	for (int i = 0; i < count; i++)
	{
		total += documents[i];
		numbers[i] = palloc_extended(sizeof(int32) * Max(documents[i], 1), MCXT_ALLOC_HUGE);
		for (int d = 0; d < documents[i]; d++)
			numbers[i][d] = -1;
	}
	docs = palloc_extended(sizeof(MergedDoc) * Max(total, 1), MCXT_ALLOC_HUGE);

	slot = table_slot_create(ta_search_documents(search), NULL);
	scan = table_beginscan(ta_search_documents(search), search->snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		int source;

		ta_read_chunk(slot, chunk);
		source = source_of(segments, count, chunk->segment);
		if (source < 0)
			continue;
		for (int i = 0; i < chunk->count && ndocs < total; i++)
		{
			MergedDoc *doc;

			if ((chunk->live & (UINT64CONST(1) << i)) == 0)
				continue;
			doc = &docs[ndocs++];
			doc->row.id = chunk->ids[i];
			doc->row.price = chunk->prices[i];
			doc->row.created = chunk->created[i];
			doc->row.popularity = chunk->popularity[i];
			doc->source = source;
			doc->doc = chunk->chunk * TA_CHUNK_SIZE + i;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);

	qsort(docs, ndocs, sizeof(MergedDoc), compare_merged_docs);
	rows = palloc_extended(sizeof(DocRow) * Max(ndocs, 1), MCXT_ALLOC_HUGE);
	for (uint64 d = 0; d < ndocs; d++)
	{
		rows[d] = docs[d].row;
		if (docs[d].doc < documents[docs[d].source])
			numbers[docs[d].source][docs[d].doc] = (int32) d;
	}
	pfree(docs);

	segment = new_segment(search->nspid, rows, (int) ndocs);
	put_documents(search->nspid, segment, rows, (int) ndocs);

	postings = palloc_extended(sizeof(MergedPosting) * Max(ndocs, 1), MCXT_ALLOC_HUGE);
	out_docs = palloc_extended(sizeof(uint32) * Max(ndocs, 1), MCXT_ALLOC_HUGE);
	out_impacts = palloc_extended(Max(ndocs, 1), MCXT_ALLOC_HUGE);
	sink_open(&sink, search->nspid, "search_postings", &insert_posting, posting_columns, lengthof(posting_columns));
	ta_list_open(search, &reader, 0);
	index_rescan(reader.scan, NULL, 0, NULL, 0);
	for (;;)
	{
		bool  more = ta_list_next(&reader, block);
		text *found = NULL;
		int	  source;

		CHECK_FOR_INTERRUPTS();
		if (more)
		{
			bool isnull;

			found = DatumGetTextPP(slot_getattr(reader.slot, 1, &isnull));
		}
		/* a term is over */
		if (term_length >= 0 &&
			(!more || (int) VARSIZE_ANY_EXHDR(found) != term_length ||
			 memcmp(VARDATA_ANY(found), term, term_length) != 0))
		{
			if (npostings > 0)
			{
				qsort(postings, npostings, sizeof(MergedPosting), compare_merged_postings);
				for (uint64 i = 0; i < npostings; i++)
				{
					out_docs[i] = postings[i].doc;
					out_impacts[i] = postings[i].impact;
				}
				put_postings(&sink, term, term_length, segment, out_docs, out_impacts, (int) npostings);
				npostings = 0;
			}
			term_length = -1;
		}
		if (!more)
			break;
		source = source_of(segments, count, block->segment);
		if (source < 0)
			continue;
		if (term_length < 0)
		{
			term_length = Min((int) VARSIZE_ANY_EXHDR(found), TA_TERM_MAX);
			memcpy(term, VARDATA_ANY(found), term_length);
		}
		ta_list_decode(&reader, block);
		for (int i = 0; i < block->count; i++)
		{
			int32 number = block->docs[i] < documents[source] ? numbers[source][block->docs[i]] : -1;

			if (number >= 0 && npostings < ndocs)
			{
				postings[npostings].doc = number;
				postings[npostings++].impact = block->impacts[i];
			}
		}
	}
	ta_list_close(&reader);
	sink_close(&sink);

	values[0] = ta_int4_array(segments, count);
	ta_execute(search->nspid, &delete_postings_of, SPI_OK_DELETE, values, NULL);
	ta_execute(search->nspid, &delete_documents_of, SPI_OK_DELETE, values, NULL);
	ta_execute(search->nspid, &delete_segments_of, SPI_OK_DELETE, values, NULL);
}

static int
compare_by_size(const void *a, const void *b)
{
	return ((const TaSegment *) a)->documents - ((const TaSegment *) b)->documents;
}

/*
 * Which segments to merge: the small ones, as long as the next is not much
 * larger than those before it together, so that each document is merged a
 * number of times that grows with the logarithm of the store.
 */
static void
merge_some(TaSearch *search, bool all)
{
	TaSegment *sorted = palloc(sizeof(TaSegment) * Max(search->nsegments, 1));
	int32	  *segments = palloc(sizeof(int32) * Max(search->nsegments, 1));
	int32	  *documents = palloc(sizeof(int32) * Max(search->nsegments, 1));
	int		   count = 0;
	int64	   sum = 0;

	memcpy(sorted, search->segments, sizeof(TaSegment) * search->nsegments);
	qsort(sorted, search->nsegments, sizeof(TaSegment), compare_by_size);
	for (int i = 0; i < search->nsegments; i++)
	{
		if (!all && i >= MERGE_FANOUT && sorted[i].documents > sum)
			break;
		segments[count] = sorted[i].segment;
		documents[count++] = sorted[i].documents;
		sum += sorted[i].documents;
	}
	if (count < (all ? 2 : MERGE_FANOUT))
		return;
	if (sum > PG_INT32_MAX / 2)
		return;
	merge_segments(search, segments, documents, count);
}

static void
merge(Oid nspid, bool all)
{
	TaSearch *search;

	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	search = ta_search_open(nspid);
	merge_some(search, all);
	ta_search_close(search);
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/* Only one at a time folds a store; false: somebody else does. */
static bool
lock_fold(Oid nspid, bool wait)
{
	Datum key = Int64GetDatum(FOLD_LOCK_SPACE ^ (int64) nspid);

	if (wait)
	{
		DirectFunctionCall1(pg_advisory_xact_lock_int8, key);
		return true;
	}
	return DatumGetBool(DirectFunctionCall1(pg_try_advisory_xact_lock_int8, key));
}

static void
check_fold_owner(Oid nspid)
{
	Oid relid = ta_search_table(nspid, "search_recent");

	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, "search_recent");
}

/*
 * fold_search(store name, merge_all boolean) returns bigint
 *		Turns recent products into a segment, brings prices and popularity up to
 *		date, merges segments.  Returns the recent products that were folded; 0
 *		where somebody else folds this store.  Raises TA009, 42501.  Locks: see
 *		the head of this file.
 */
Datum
ta_fold_search(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "merge_all"};
	Oid						 nspid;
	bool					 merge_all;
	TaFrame					 frame;
	TaSearch				*search;
	KeyedValue				*prices;
	KeyedValue				*sales;
	int						 nprices;
	int						 nsales;
	int64					 folded;

	ta_require_arguments(fcinfo, names, 2);
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	merge_all = PG_GETARG_BOOL(1);
	check_fold_owner(nspid);
	if (!lock_fold(nspid, false))
		PG_RETURN_INT64(0);

	ta_frame_begin(&frame, ta_relation_owner(ta_search_table(nspid, "search_recent")));
	/*
	 * Who changes a product that was folded waits until we commit, so that the
	 * recent rows go last.
	 */
	if (!merge_all)
		merge(nspid, false);
	PushActiveSnapshot(GetLatestSnapshot());
	search = ta_search_open(nspid);
	prices = read_values(nspid, &select_prices, true, &nprices);
	sales = read_values(nspid, &select_sales, false, &nsales);
	refresh_chunks(search, prices, nprices, sales, nsales);
	folded = fold_recents(search, prices, nprices, sales, nsales);
	delete_folded_prices(nspid, prices, nprices);
	count_groups(nspid, sales, nsales);
	ta_search_close(search);
	PopActiveSnapshot();
	if (merge_all)
		merge(nspid, true);
	ta_frame_end(&frame);
	PG_RETURN_INT64(folded);
}

/*
 * rebuild_search(store name) returns bigint
 *		Makes all segments anew from the products.  Returns the number of documents.  Raises TA009, 42501.
 *		Waits for a fold that runs; changes of products need not wait for it.
 */
Datum
ta_rebuild_search(PG_FUNCTION_ARGS)
{
	Oid		   nspid;
	TaFrame	   frame;
	TaSearch  *search;
	int32	  *segments;
	pg_uuid_t *ids;
	Datum	  *versions;
	Datum	   values[2];
	int64	   count;

	ta_require_argument(fcinfo, 0, "store");
	nspid = ta_store_namespace(PG_GETARG_NAME(0));
	check_fold_owner(nspid);
	lock_fold(nspid, true);

	ta_frame_begin(&frame, ta_relation_owner(ta_search_table(nspid, "search_recent")));
	PushActiveSnapshot(GetLatestSnapshot());
	search = ta_search_open(nspid);
	segments = palloc(sizeof(int32) * Max(search->nsegments, 1));
	for (int s = 0; s < search->nsegments; s++)
		segments[s] = search->segments[s].segment;
	ids = palloc_extended(sizeof(pg_uuid_t) * Max(search->nrecents, 1), MCXT_ALLOC_HUGE);
	versions = palloc_extended(sizeof(Datum) * Max(search->nrecents, 1), MCXT_ALLOC_HUGE);
	for (int r = 0; r < search->nrecents; r++)
	{
		ids[r] = search->recents[r].id;
		versions[r] = Int64GetDatum(search->recents[r].version);
	}
	/*
	 * The products are read under a snapshot no older than that of the recent
	 * rows: what changed in between keeps its row, which goes before.
	 */
	ta_execute(nspid, &delete_strays, SPI_OK_DELETE, NULL, NULL);
	count = build_segments(nspid, &select_all);
	values[0] = ta_int4_array(segments, search->nsegments);
	ta_execute(nspid, &delete_postings_of, SPI_OK_DELETE, values, NULL);
	ta_execute(nspid, &delete_documents_of, SPI_OK_DELETE, values, NULL);
	ta_execute(nspid, &delete_segments_of, SPI_OK_DELETE, values, NULL);
	for (int from = 0; from < search->nrecents; from += BATCH)
	{
		int n = Min(BATCH, search->nrecents - from);

		values[0] = ta_uuid_array(ids + from, n);
		values[1] = ta_datum_array(versions + from, n, INT8OID);
		ta_execute(nspid, &delete_recent, SPI_OK_DELETE, values, NULL);
	}
	ta_search_close(search);
	PopActiveSnapshot();
	ta_frame_end(&frame);
	PG_RETURN_INT64(count);
}
