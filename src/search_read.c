/*-------------------------------------------------------------------------
 *
 * search_read.c
 *	  Reading a store's search tables, by index and under one snapshot.
 *
 * A query looks up a few terms and a few products, often in less time than a
 * plan takes to start, so the rows are read the way an index scan node reads
 * them.  Everything is read under the caller's active snapshot: what a query
 * finds is what its statement can see.
 *
 * Takes AccessShareLock on the tables and indexes it reads.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "row_writer.h"
#include "search.h"
#include "spi_util.h"

#define ASK_ONE_BY_ONE 3000 /* sold-out products before the stock is read whole */

/* Columns, as the store's migration made them. */
enum
{
	POSTING_TERM = 1,
	POSTING_SEGMENT,
	POSTING_LAST,
	POSTING_TOTAL,
	POSTING_MAX,
	POSTING_DATA
};
enum
{
	CHUNK_SEGMENT = 1,
	CHUNK_CHUNK,
	CHUNK_FIRST_ID,
	CHUNK_LIVE,
	CHUNK_DATA
};
enum
{
	RECENT_PRODUCT = 1,
	RECENT_VERSION,
	RECENT_PRICE,
	RECENT_CREATED,
	RECENT_POPULARITY,
	RECENT_TERMS
};
enum
{
	SEGMENT_SEGMENT = 1,
	SEGMENT_DOCUMENTS,
	SEGMENT_CREATED_AT,
	SEGMENT_REFRESHED_AT,
	SEGMENT_POPULAR
};
enum
{
	SETTING_NAME = 1,
	SETTING_VALUE
};

/*
 * ta_search_table
 *		One of a store's tables; raises TA009 where it has none of this name.
 */
Oid
ta_search_table(Oid nspid, const char *name)
{
	Oid relid = get_relname_relid(name, nspid);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("store \"%s\" has no table \"%s\"", get_namespace_name(nspid), name),
				 errhint("Run techally.upgrade_store to bring the store up to date.")));
	return relid;
}

static Relation
open_table(Oid nspid, const char *name, bool check)
{
	Oid relid = ta_search_table(nspid, name);

	if (check && pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, name);
	return table_open(relid, AccessShareLock);
}

/* A B-tree that begins with a column and leaves out no row. */
static Relation
open_index(Relation rel, AttrNumber attnum)
{
	List	 *indexes = RelationGetIndexList(rel);
	ListCell *cell;

	foreach(cell, indexes)
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisvalid && index->rd_rel->relam == BTREE_AM_OID &&
			index->rd_index->indkey.values[0] == attnum && RelationGetIndexPredicate(index) == NIL)
		{
			list_free(indexes);
			return index;
		}
		index_close(index, AccessShareLock);
	}
	elog(ERROR, "table \"%s\" has lost its index", RelationGetRelationName(rel));
}

/* The index is opened with the first reader, and closed by ta_search_close. */
static void
use_table(TaIndexReader *reader, Oid nspid, const char *name, AttrNumber attnum)
{
	if (reader->rel != NULL)
		return;
	reader->rel = open_table(nspid, name, false);
	reader->index = open_index(reader->rel, attnum);
}

static void
reader_open(TaIndexReader *reader, Snapshot snapshot, int nkeys)
{
	reader->slot = MakeSingleTupleTableSlot(RelationGetDescr(reader->rel), table_slot_callbacks(reader->rel));
	reader->scan = ta_index_beginscan(reader->rel, reader->index, snapshot, nkeys);
}

static void
reader_close(TaIndexReader *reader)
{
	if (reader->scan == NULL)
		return;
	index_endscan(reader->scan);
	ExecDropSingleTupleTableSlot(reader->slot);
	reader->scan = NULL;
}

static int
compare_segments(const void *a, const void *b)
{
	return ((const TaSegment *) a)->segment - ((const TaSegment *) b)->segment;
}

static int
compare_recents(const void *a, const void *b)
{
	return memcmp(&((const TaRecent *) a)->id, &((const TaRecent *) b)->id, UUID_LEN);
}

static void
read_segments(TaSearch *search)
{
	Relation		rel = open_table(search->nspid, "search_segments", false);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc	scan = table_beginscan(rel, search->snapshot, 0, NULL);
	int				size = 8;
	bool			isnull;

	search->segments = palloc0(sizeof(TaSegment) * size);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		TaSegment  *segment;
		TimestampTz created_at;
		TimestampTz refreshed_at;

		if (search->nsegments == size)
		{
			size *= 2;
			search->segments = repalloc(search->segments, sizeof(TaSegment) * size);
		}
		segment = &search->segments[search->nsegments++];
		memset(segment, 0, sizeof(TaSegment));
		segment->segment = DatumGetInt32(slot_getattr(slot, SEGMENT_SEGMENT, &isnull));
		segment->documents = DatumGetInt32(slot_getattr(slot, SEGMENT_DOCUMENTS, &isnull));
		search->ndocuments += segment->documents;
		created_at = DatumGetTimestampTz(slot_getattr(slot, SEGMENT_CREATED_AT, &isnull));
		refreshed_at = DatumGetTimestampTz(slot_getattr(slot, SEGMENT_REFRESHED_AT, &isnull));
		segment->postings_part = ta_cache_part(RelationGetRelid(rel), segment->segment, created_at, 0);
		segment->documents_part = ta_cache_part(RelationGetRelid(rel), segment->segment, created_at, refreshed_at);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	qsort(search->segments, search->nsegments, sizeof(TaSegment), compare_segments);
}

/*
 * ta_read_popular
 *		Reads which products of each segment sell best.
 */
void
ta_read_popular(TaSearch *search)
{
	Relation		rel;
	TupleTableSlot *slot;
	TableScanDesc	scan;

	if (search->popular_read)
		return;
	search->popular_read = true;
	rel = open_table(search->nspid, "search_segments", false);
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, search->snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool  isnull;
		int32 segment = DatumGetInt32(slot_getattr(slot, SEGMENT_SEGMENT, &isnull));
		Datum value = slot_getattr(slot, SEGMENT_POPULAR, &isnull);

		for (int s = 0; s < search->nsegments && !isnull; s++)
		{
			bytea *data;

			if (search->segments[s].segment != segment)
				continue;
			data = DatumGetByteaPP(value);
			search->segments[s].npopular = VARSIZE_ANY_EXHDR(data) / sizeof(TaPopular);
			search->segments[s].popular = palloc(Max(VARSIZE_ANY_EXHDR(data), 1));
			memcpy(search->segments[s].popular, VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

static void
read_recents(TaSearch *search)
{
	Relation		rel = open_table(search->nspid, "search_recent", false);
	TupleTableSlot *slot;
	TableScanDesc	scan;
	int				size = 64;
	bool			isnull;

	if (RelationGetNumberOfBlocks(rel) == 0)
	{
		table_close(rel, NoLock);
		return;
	}
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, search->snapshot, 0, NULL);
	search->recents = palloc(sizeof(TaRecent) * size);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		TaRecent *recent;
		Datum	  value;

		if (search->nrecents == size)
		{
			size *= 2;
			search->recents = repalloc_huge(search->recents, sizeof(TaRecent) * size);
		}
		recent = &search->recents[search->nrecents++];
		memset(recent, 0, sizeof(*recent));
		slot_getallattrs(slot);
		recent->id = *DatumGetUUIDP(slot_getattr(slot, RECENT_PRODUCT, &isnull));
		recent->version = DatumGetInt64(slot_getattr(slot, RECENT_VERSION, &isnull));
		recent->price = DatumGetInt64(slot_getattr(slot, RECENT_PRICE, &isnull));
		recent->created = DatumGetInt32(slot_getattr(slot, RECENT_CREATED, &isnull));
		recent->popularity = (float4) DatumGetInt32(slot_getattr(slot, RECENT_POPULARITY, &isnull));
		value = slot_getattr(slot, RECENT_TERMS, &isnull);
		recent->removed = isnull;
		if (!isnull)
		{
			bytea *data = DatumGetByteaPP(value);
			int	   length = VARSIZE_ANY_EXHDR(data);
			char  *packed = palloc(Max(length, (int) sizeof(uint32)));

			memcpy(packed, VARDATA_ANY(data), length);
			recent->packed = packed;
			recent->nterms = length >= (int) sizeof(uint32) ? *(uint32 *) packed : 0;
			search->ndocuments++;
		}
		CHECK_FOR_INTERRUPTS();
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	qsort(search->recents, search->nrecents, sizeof(TaRecent), compare_recents);
}

/*
 * ta_search_settings
 *		A store's text search configuration, the recorded length of its
 *		documents, and how many full matches are enough (0: not set).
 */
void
ta_search_settings(Oid nspid, Oid *config, double *length, int *enough)
{
	Relation		rel = open_table(nspid, "store_settings", false);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	char		   *name = NULL;

	*length = TA_LENGTH_BEFORE;
	*enough = 0;
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool	   isnull;
		Datum	   key = slot_getattr(slot, SETTING_NAME, &isnull);
		Datum	   value = slot_getattr(slot, SETTING_VALUE, &isnull);
		text	  *key_text = DatumGetTextPP(key);
		int		   key_length = VARSIZE_ANY_EXHDR(key_text);
		JsonbValue scalar;

		if (isnull || key_length < 13 || memcmp(VARDATA_ANY(key_text), "search_", 7) != 0)
			continue;
		if (!JsonbExtractScalar(&DatumGetJsonbP(value)->root, &scalar))
			continue;
		if (key_length == 20 && memcmp(VARDATA_ANY(key_text), "search_configuration", 20) == 0 &&
			scalar.type == jbvString)
			name = pnstrdup(scalar.val.string.val, scalar.val.string.len);
		if (key_length == 13 && memcmp(VARDATA_ANY(key_text), "search_length", 13) == 0 &&
			scalar.type == jbvNumeric)
			*length = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(scalar.val.numeric)));
		if (key_length == 13 && memcmp(VARDATA_ANY(key_text), "search_enough", 13) == 0 &&
			scalar.type == jbvNumeric)
		{
			double number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(scalar.val.numeric)));

			*enough = number >= 1 ? (int) Min(number, 1000) : 0;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	*config = ta_search_config(name != NULL ? name : "english");
	if (!(*length >= 1))
		*length = TA_LENGTH_BEFORE;
}

/*
 * ta_search_open
 *		Opens the search tables of a store for a query, under the active
 *		snapshot.  Raises 42501 where the caller may not read products, TA009
 *		where the store has no search tables.  Memory: the current context.
 */
TaSearch *
ta_search_open(Oid nspid)
{
	TaSearch *search = palloc0(sizeof(TaSearch));
	Relation  rel;

	search->nspid = nspid;
	search->products = open_table(nspid, "products", true);
	search->snapshot = RegisterSnapshot(GetActiveSnapshot());
	ta_cache_begin(search);
	ta_search_settings(nspid, &search->config, &search->average, &search->enough);
	read_segments(search);
	read_recents(search);
	if (search->enough == 0)
		search->enough = (int) Min(TA_ENOUGH, 1 + search->ndocuments / TA_ENOUGH_OF);

	rel = open_table(nspid, "inventory_stock", false);
	search->has_stock = RelationGetNumberOfBlocks(rel) > 0;
	search->stock.rel = rel;
	if (search->has_stock)
	{
		search->stock.index = open_index(rel, get_attnum(RelationGetRelid(rel), "product_id"));
		reader_open(&search->stock, search->snapshot, 1);
	}
	return search;
}

static void
unuse_table(TaIndexReader *reader)
{
	reader_close(reader);
	if (reader->index != NULL)
		index_close(reader->index, NoLock);
	if (reader->rel != NULL)
		table_close(reader->rel, NoLock);
	reader->index = NULL;
	reader->rel = NULL;
}

/*
 * ta_search_close
 *		Ends what ta_search_open began.
 */
void
ta_search_close(TaSearch *search)
{
	unuse_table(&search->chunks);
	unuse_table(&search->postings);
	unuse_table(&search->stock);
	search->product_rows.rel = NULL;
	unuse_table(&search->product_rows);
	table_close(search->products, NoLock);
	UnregisterSnapshot(search->snapshot);
	ta_cache_end(search);
}

/*
 * ta_product_row
 *		The row of a product, until the next one is asked for; NULL where it is
 *		not there.
 */
TupleTableSlot *
ta_product_row(TaSearch *search, const pg_uuid_t *id)
{
	TaIndexReader *reader = &search->product_rows;
	ScanKeyData	   key;

	if (reader->scan == NULL)
	{
		reader->rel = search->products;
		reader->index = open_index(reader->rel, get_attnum(RelationGetRelid(reader->rel), "id"));
		reader_open(reader, search->snapshot, 1);
	}
	ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid, InvalidOid, F_UUID_EQ, UUIDPGetDatum(id));
	index_rescan(reader->scan, &key, 1, NULL, 0);
	return index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot) ? reader->slot : NULL;
}

/*
 * ta_products_are_plain
 *		Whether rows of products may be read without a statement: nothing hides
 *		rows from the caller, and they lie in one table.
 */
bool
ta_products_are_plain(TaSearch *search)
{
	return ta_direct_rows() && search->products->rd_rel->relkind == RELKIND_RELATION &&
		   !search->products->rd_rel->relhassubclass &&
		   check_enable_rls(RelationGetRelid(search->products), InvalidOid, true) == RLS_NONE;
}

/*
 * ta_search_documents
 *		The table search_documents, open as long as the search is.
 */
Relation
ta_search_documents(TaSearch *search)
{
	use_table(&search->chunks, search->nspid, "search_documents", CHUNK_SEGMENT);
	return search->chunks.rel;
}

/*
 * ta_list_open
 *		A reader of postings, one for each list that is read at a time: of three
 *		keys for ta_list_seek, of one for ta_next_term, of none for all.
 */
void
ta_list_open(TaSearch *search, TaIndexReader *reader, int nkeys)
{
	use_table(&search->postings, search->nspid, "search_postings", POSTING_TERM);
	reader->rel = search->postings.rel;
	reader->index = search->postings.index;
	reader_open(reader, search->snapshot, nkeys);
}

void
ta_list_close(TaIndexReader *reader)
{
	reader_close(reader);
}

/* The term of a scan's key. */
static text *
set_key(TaIndexReader *reader, const char *term, int length)
{
	text *value = (text *) reader->key.data;

	if (length > TA_TERM_MAX)
		elog(ERROR, "search term is too long");
	SET_VARSIZE(value, VARHDRSZ + length);
	memcpy(VARDATA(value), term, length);
	return value;
}

static void
read_block_head(TupleTableSlot *slot, TaBlock *block)
{
	bool isnull;

	block->segment = DatumGetInt32(slot_getattr(slot, POSTING_SEGMENT, &isnull));
	block->last = DatumGetInt32(slot_getattr(slot, POSTING_LAST, &isnull));
	block->total = DatumGetInt32(slot_getattr(slot, POSTING_TOTAL, &isnull));
	block->max = DatumGetInt16(slot_getattr(slot, POSTING_MAX, &isnull));
	block->count = 0;
}

/*
 * ta_list_seek
 *		Goes to the first block of a term in a segment that ends at doc or
 *		after it.  Reads its head; ta_list_decode reads the rest.
 */
bool
ta_list_seek(TaIndexReader *reader, const char *term, int length, int32 segment, int32 doc,
			 TaBlock *block)
{
	ScanKeyData keys[3];
	text	   *value = set_key(reader, term, length);

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   reader->index->rd_indcollation[0], F_TEXTEQ, PointerGetDatum(value));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, InvalidOid,
						   F_INT4EQ, Int32GetDatum(segment));
	ScanKeyEntryInitialize(&keys[2], 0, 3, BTGreaterEqualStrategyNumber, InvalidOid, InvalidOid,
						   F_INT4GE, Int32GetDatum(doc));
	index_rescan(reader->scan, keys, 3, NULL, 0);
	if (!index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot))
		return false;
	read_block_head(reader->slot, block);
	return true;
}

/*
 * ta_list_next
 *		The block after it.
 */
bool
ta_list_next(TaIndexReader *reader, TaBlock *block)
{
	if (!index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot))
		return false;
	read_block_head(reader->slot, block);
	return true;
}

/*
 * ta_list_decode
 *		Reads the postings of the block that the reader stands on.
 *
 * The format: a byte for the width of a difference (1, 2 or 4), one for the
 * number of postings less one, the first document's number in four bytes, the
 * differences to those after it, then the impacts.  All little-endian.
 */
void
ta_list_decode(TaIndexReader *reader, TaBlock *block)
{
	bool				 isnull;
	bytea				*data = DatumGetByteaPP(slot_getattr(reader->slot, POSTING_DATA, &isnull));
	const unsigned char *at = (const unsigned char *) VARDATA_ANY(data);
	int					 length = VARSIZE_ANY_EXHDR(data);
	int					 width;
	int					 n;
	uint32				 doc;

	if (length < 7)
		elog(ERROR, "damaged block of search postings");
	width = at[0];
	n = at[1] + 1;
	if ((width != 1 && width != 2 && width != 4) || length != 6 + width * (n - 1) + n)
		elog(ERROR, "damaged block of search postings");
	doc = at[2] | (at[3] << 8) | (at[4] << 16) | ((uint32) at[5] << 24);
	at += 6;
	block->count = n;
	block->docs[0] = doc;
	switch (width)
	{
		case 1:
			for (int i = 1; i < n; i++)
				block->docs[i] = (doc += *at++);
			break;
		case 2:
			for (int i = 1; i < n; i++, at += 2)
				block->docs[i] = (doc += at[0] | (at[1] << 8));
			break;
		default:
			for (int i = 1; i < n; i++, at += 4)
				block->docs[i] = (doc += at[0] | (at[1] << 8) | (at[2] << 16) | ((uint32) at[3] << 24));
			break;
	}
	memcpy(block->impacts, at, n);
}

/*
 * ta_read_chunk
 *		Takes a row of search_documents apart.
 */
void
ta_read_chunk(TupleTableSlot *slot, TaChunk *chunk)
{
	bool		isnull;
	bytea	   *data;
	const char *at;
	int			length;
	int			n;

	chunk->segment = DatumGetInt32(slot_getattr(slot, CHUNK_SEGMENT, &isnull));
	chunk->chunk = DatumGetInt32(slot_getattr(slot, CHUNK_CHUNK, &isnull));
	chunk->live = (uint64) DatumGetInt64(slot_getattr(slot, CHUNK_LIVE, &isnull));
	data = DatumGetByteaPP(slot_getattr(slot, CHUNK_DATA, &isnull));
	at = VARDATA_ANY(data);
	length = VARSIZE_ANY_EXHDR(data);
	n = length / (UUID_LEN + 8 + 4 + 4);
	if (n > TA_CHUNK_SIZE || n * (UUID_LEN + 8 + 4 + 4) != length)
		elog(ERROR, "damaged row of search documents");
	chunk->count = n;
	memcpy(chunk->ids, at, UUID_LEN * n);
	at += UUID_LEN * n;
	memcpy(chunk->prices, at, 8 * n);
	at += 8 * n;
	memcpy(chunk->created, at, 4 * n);
	at += 4 * n;
	memcpy(chunk->popularity, at, 4 * n);
}

/*
 * ta_load_chunk
 *		Sees to it that search->chunk holds a chunk; false where it is not there.
 */
bool
ta_load_chunk(TaSearch *search, int32 segment, int32 chunk)
{
	ScanKeyData keys[2];

	if (search->chunk.segment == segment && search->chunk.chunk == chunk)
		return true;
	if (search->chunks.scan == NULL)
	{
		(void) ta_search_documents(search);
		reader_open(&search->chunks, search->snapshot, 2);
	}
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, InvalidOid,
						   F_INT4EQ, Int32GetDatum(segment));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, InvalidOid,
						   F_INT4EQ, Int32GetDatum(chunk));
	index_rescan(search->chunks.scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(search->chunks.scan, ForwardScanDirection, search->chunks.slot))
		return false;
	ta_read_chunk(search->chunks.slot, &search->chunk);
	return true;
}

/*
 * ta_find_recent
 *		Where a product stands among the recent ones, -1: nowhere.
 */
int
ta_find_recent(TaSearch *search, const pg_uuid_t *id)
{
	int low = 0;
	int high = search->nrecents;

	while (low < high)
	{
		int middle = (low + high) / 2;
		int order = memcmp(&search->recents[middle].id, id, UUID_LEN);

		if (order == 0)
			return middle;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return -1;
}

/*
 * ta_recent_term
 *		The i-th term of a recent product.
 */
const char *
ta_recent_term(const TaRecent *recent, int i, int *length)
{
	const unsigned char *lengths = (const unsigned char *) recent->packed + 4 + recent->nterms * 5;
	const char			*text = (const char *) lengths + recent->nterms;

	for (int j = 0; j < i; j++)
		text += lengths[j];
	*length = lengths[i];
	return text;
}

/*
 * ta_recent_impact
 *		The impact of a term in a recent product, -1 where it is not there.
 */
int
ta_recent_impact(const TaRecent *recent, const char *term, int length, uint32 hash)
{
	const uint32 *hashes = (const uint32 *) (recent->packed + 4);
	int			  low = 0;
	int			  high = recent->nterms;

	if (recent->removed)
		return -1;
	while (low < high)
	{
		int middle = (low + high) / 2;

		if (hashes[middle] < hash)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < recent->nterms && hashes[low] == hash; low++)
	{
		int			found_length;
		const char *found = ta_recent_term(recent, low, &found_length);

		if (found_length == length && memcmp(found, term, length) == 0)
			return ((const unsigned char *) recent->packed)[4 + recent->nterms * 4 + low];
	}
	return -1;
}

/*
 * ta_document_frequency
 *		In how many documents a term stands, as it is recorded: those that were
 *		replaced since the last fold are still counted.
 */
int64
ta_document_frequency(TaSearch *search, const char *term, int length)
{
	int64  df = 0;
	uint32 hash = ta_term_hash(term, length);

	for (int s = 0; s < search->nsegments; s++)
		df += ta_postings(search, s, term, length, hash)->total;
	for (int r = 0; r < search->nrecents; r++)
	{
		if (ta_recent_impact(&search->recents[r], term, length, hash) >= 0)
			df++;
	}
	return df;
}

static int
compare_prices(const void *a, const void *b)
{
	return memcmp(&((const TaPrice *) a)->id, &((const TaPrice *) b)->id, UUID_LEN);
}

/* Reads the prices that are newer than the segments. */
static void
read_prices(TaSearch *search)
{
	Relation		rel = open_table(search->nspid, "search_prices", false);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc	scan = table_beginscan(rel, search->snapshot, 0, NULL);
	int				size = 64;
	bool			isnull;

	search->prices_read = true;
	search->prices = palloc(sizeof(TaPrice) * size);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		if (search->nprices == size)
		{
			size *= 2;
			search->prices = repalloc_huge(search->prices, sizeof(TaPrice) * size);
		}
		search->prices[search->nprices].id = *DatumGetUUIDP(slot_getattr(slot, 1, &isnull));
		search->prices[search->nprices++].price = DatumGetInt64(slot_getattr(slot, 3, &isnull));
		CHECK_FOR_INTERRUPTS();
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	qsort(search->prices, search->nprices, sizeof(TaPrice), compare_prices);
}

/*
 * ta_price
 *		The price of a product, where price is what its segment knows.
 */
int64
ta_price(TaSearch *search, const pg_uuid_t *id, int64 price)
{
	TaPrice *found;

	if (!search->prices_read)
		read_prices(search);
	if (search->nprices == 0)
		return price;
	found = bsearch(id, search->prices, search->nprices, sizeof(TaPrice), compare_prices);
	return found != NULL ? found->price : price;
}

/* What a product's reviews make of it. */
typedef struct Rating
{
	pg_uuid_t id;
	int32	  average; /* in millionths */
} Rating;

/*
 * ta_read_ratings
 *		Reads the average rating of every product from the store's table of
 *		reviews, which the application makes: its columns product_id and rating,
 *		and deleted_at where it is there.  False: there is no such table.  Raises
 *		42501 where the caller may not read it.
 */
bool
ta_read_ratings(TaSearch *search)
{
	static const TaStatement all = {
		"SELECT r.product_id, LEAST(pg_catalog.avg(r.rating) * 1000000, 2000000000)::pg_catalog.int4 FROM @store@.reviews r"
		" WHERE r.product_id IS NOT NULL AND r.rating IS NOT NULL GROUP BY r.product_id",
		0};
	static const TaStatement living = {
		"SELECT r.product_id, LEAST(pg_catalog.avg(r.rating) * 1000000, 2000000000)::pg_catalog.int4 FROM @store@.reviews r"
		" WHERE r.deleted_at IS NULL AND r.product_id IS NOT NULL AND r.rating IS NOT NULL GROUP BY r.product_id",
		0};
	Oid		relid = get_relname_relid("reviews", search->nspid);
	HASHCTL ctl = {0};
	Portal	portal;
	TaFrame frame;

	if (search->ratings != NULL)
		return true;
	if (!OidIsValid(relid) || get_attnum(relid, "rating") == InvalidAttrNumber ||
		get_atttype(relid, get_attnum(relid, "product_id")) != UUIDOID)
		return false;

	ctl.keysize = UUID_LEN;
	ctl.entrysize = sizeof(Rating);
	ctl.hcxt = CurrentMemoryContext;
	search->ratings = hash_create("ratings of products", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ta_frame_begin(&frame, InvalidOid);
	portal = ta_open_cursor(search->nspid, get_attnum(relid, "deleted_at") == InvalidAttrNumber ? &all : &living,
							NULL, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, 1000);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool	isnull;
			Rating *rating = hash_search(search->ratings, DatumGetUUIDP(ta_spi_value(i, 1, &isnull)), HASH_ENTER, NULL);

			rating->average = DatumGetInt32(ta_spi_value(i, 2, &isnull));
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	ta_frame_end(&frame);
	return true;
}

/*
 * ta_rating
 *		The average rating of a product in millionths, 0: nobody rated it.
 */
int32
ta_rating(TaSearch *search, const pg_uuid_t *id)
{
	const Rating *rating = hash_search(search->ratings, id, HASH_FIND, NULL);

	return rating == NULL ? 0 : rating->average;
}

/* A product of which there is some. */
typedef struct StockEntry
{
	pg_uuid_t id;
	bool	  free; /* some of it is not reserved */
} StockEntry;

/* Reads which products have stock, all of them. */
static void
read_stock(TaSearch *search)
{
	HASHCTL			ctl = {0};
	Relation		rel = search->stock.rel;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc	scan = table_beginscan(rel, search->snapshot, 0, NULL);
	AttrNumber		product = get_attnum(RelationGetRelid(rel), "product_id");
	AttrNumber		on_hand = get_attnum(RelationGetRelid(rel), "quantity_on_hand");
	AttrNumber		reserved = get_attnum(RelationGetRelid(rel), "quantity_reserved");

	ctl.keysize = UUID_LEN;
	ctl.entrysize = sizeof(StockEntry);
	ctl.hcxt = CurrentMemoryContext;
	search->in_stock = hash_create("products in stock", 65536, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool  isnull;
		int32 there = DatumGetInt32(slot_getattr(slot, on_hand, &isnull));

		CHECK_FOR_INTERRUPTS();
		if (there > 0)
		{
			bool		found;
			StockEntry *entry = hash_search(search->in_stock, DatumGetUUIDP(slot_getattr(slot, product, &isnull)), HASH_ENTER, &found);

			entry->free = (found && entry->free) || there > DatumGetInt32(slot_getattr(slot, reserved, &isnull));
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Whether a product whose units are all reserved has some that are free, for
 * their reservation has expired and nobody has swept it yet.
 */
static bool
has_expired(TaSearch *search, const pg_uuid_t *id)
{
	static const TaStatement any = {
		"SELECT EXISTS (SELECT FROM @store@.stock_reservations r WHERE r.status = 'active' AND r.expires_at <= $1)",
		1,
		{TIMESTAMPTZOID}};
	static const TaStatement of_product = {
		"SELECT EXISTS (SELECT FROM @store@.inventory_stock s"
		" JOIN @store@.stock_reservation_parts p ON p.stock_id = s.id"
		" JOIN @store@.stock_reservations r ON r.id = p.reservation_id"
		" WHERE s.product_id = $1 AND r.status = 'active' AND r.expires_at <= $2)",
		2,
		{UUIDOID, TIMESTAMPTZOID}};
	TaFrame frame;
	Datum	values[2];
	bool	isnull;
	bool	result = false;

	if (search->expired_asked && !search->expired)
		return false;
	ta_frame_begin(&frame, ta_relation_owner(ta_search_table(search->nspid, "search_recent")));
	if (!search->expired_asked)
	{
		search->now = GetCurrentTimestamp();
		values[0] = TimestampTzGetDatum(search->now);
		ta_query(search->nspid, &any, values, NULL);
		search->expired = DatumGetBool(ta_spi_value(0, 1, &isnull));
		search->expired_asked = true;
	}
	if (search->expired)
	{
		values[0] = UUIDPGetDatum(id);
		values[1] = TimestampTzGetDatum(search->now);
		ta_query(search->nspid, &of_product, values, NULL);
		result = DatumGetBool(ta_spi_value(0, 1, &isnull));
	}
	ta_frame_end(&frame);
	return result;
}

/*
 * ta_in_stock
 *		Whether some unit of a product is neither sold nor promised to anybody: a
 *		reservation that has expired promises nothing.
 */
bool
ta_in_stock(TaSearch *search, const pg_uuid_t *id)
{
	TaIndexReader *reader = &search->stock;
	ScanKeyData	   key;
	AttrNumber	   on_hand;
	AttrNumber	   reserved;
	bool		   promised = false;

	if (!search->has_stock)
		return false;
	if (search->in_stock != NULL)
	{
		const StockEntry *entry = hash_search(search->in_stock, id, HASH_FIND, NULL);

		return entry != NULL && (entry->free || has_expired(search, id));
	}

	on_hand = get_attnum(RelationGetRelid(reader->rel), "quantity_on_hand");
	reserved = get_attnum(RelationGetRelid(reader->rel), "quantity_reserved");
	ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid, InvalidOid,
						   F_UUID_EQ, UUIDPGetDatum(id));
	index_rescan(reader->scan, &key, 1, NULL, 0);
	while (index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot))
	{
		bool  isnull;
		int32 there = DatumGetInt32(slot_getattr(reader->slot, on_hand, &isnull));

		if (there > DatumGetInt32(slot_getattr(reader->slot, reserved, &isnull)))
			return true;
		promised |= there > 0;
	}
	if (promised && has_expired(search, id))
		return true;
	if (++search->asked > ASK_ONE_BY_ONE)
		read_stock(search);
	return false;
}

/*
 * ta_next_term
 *		The first term of the segments that is not less than another (or, not
 *		inclusive, greater), in the order of bytes.  term has room for
 *		TA_TERM_MAX bytes.
 */
bool
ta_next_term(TaIndexReader *reader, const char *from, int length, bool inclusive,
			 char *term, int *term_length)
{
	ScanKeyData key;
	text	   *value = set_key(reader, from, length);
	bool		isnull;
	text	   *found;

	ScanKeyEntryInitialize(&key, 0, 1, inclusive ? BTGreaterEqualStrategyNumber : BTGreaterStrategyNumber,
						   InvalidOid, reader->index->rd_indcollation[0],
						   inclusive ? F_TEXT_GE : F_TEXT_GT, PointerGetDatum(value));
	index_rescan(reader->scan, &key, 1, NULL, 0);
	if (!index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot))
		return false;
	found = DatumGetTextPP(slot_getattr(reader->slot, POSTING_TERM, &isnull));
	*term_length = Min((int) VARSIZE_ANY_EXHDR(found), TA_TERM_MAX);
	memcpy(term, VARDATA_ANY(found), *term_length);
	return true;
}
