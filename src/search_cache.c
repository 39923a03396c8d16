/*-------------------------------------------------------------------------
 *
 * search_cache.c
 *	  What a session remembers of the search tables: postings and rows of
 *	  search_documents that it has read.
 *
 * Postings of a segment are never changed, and rows of search_documents only
 * together with the refreshed_at of their segment.  A query reads the rows of
 * search_segments under its own snapshot; what it finds there says which of the
 * things remembered are still true, so that nothing has to be told to other
 * sessions.  A segment is known by its table, its number and the time it was
 * made; a number that comes again (a TRUNCATE that restarts it) has another
 * time.
 *
 * Invariants:
 * - What a query was given stays until the query is closed, or its memory goes:
 *	 only a search that is opened while no other is open forgets.
 * - Beyond techally.search_cache there is never more than what the queries that
 *	 are open have read.
 *
 * Takes no locks of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "search.h"

#define MAX_PARTS 4096 /* segments that are told apart before all is forgotten */

/* A segment, or (refreshed_at set) a state of its rows of search_documents. */
typedef struct PartKey
{
	Oid	  relid;
	int32 segment;
	int64 created_at;
	int64 refreshed_at;
} PartKey;

typedef struct Part
{
	PartKey key;
	uint64	number;
} Part;

typedef struct ThingKey
{
	uint64 part;
	uint32 hash; /* of the term, or the number of a chunk */
	int16  kind; /* 0: a chunk */
	uint16 salt; /* terms of one hash */
} ThingKey;

typedef struct Thing
{
	ThingKey key;
	uint64	 used; /* number of the search that used it last */
	Size	 size;
	void	*data;
} Thing;

static int			 cache_limit = 16384; /* kB */
static MemoryContext context = NULL;
static HTAB			*parts = NULL;
static HTAB			*things = NULL;
static uint64		 last_part = 0;
static uint64		 searches = 0;
static int			 open_searches = 0;
static Size			 total_size = 0;

/*
 * ta_search_cache_init
 *		Defines techally.search_cache.  Called once, by _PG_init.
 */
void
ta_search_cache_init(void)
{
	DefineCustomIntVariable("techally.search_cache",
							"Memory in which a session keeps what it read of search.",
							"What a single search reads may exceed it until the search is over.",
							&cache_limit, 16384, 0, 1024 * 1024, PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
}

static void
forget_all(void)
{
	if (context != NULL)
		MemoryContextDelete(context);
	context = NULL;
	parts = things = NULL;
	total_size = 0;
}

static int
compare_used(const void *a, const void *b)
{
	uint64 x = (*(Thing *const *) a)->used;
	uint64 y = (*(Thing *const *) b)->used;

	return x < y ? -1 : (x > y ? 1 : 0);
}

/* Forgets what was not used for longest, a quarter more than it must. */
static void
forget_some(void)
{
	Size			limit = (Size) cache_limit * 1024;
	long			count;
	long			n = 0;
	Thing		  **order;
	HASH_SEQ_STATUS status;
	Thing		   *thing;

	if (things == NULL || total_size <= limit)
		return;
	if (limit == 0)
	{
		forget_all();
		return;
	}
	count = hash_get_num_entries(things);
	order = palloc_extended(sizeof(Thing *) * count, MCXT_ALLOC_HUGE);
	hash_seq_init(&status, things);
	while ((thing = hash_seq_search(&status)) != NULL)
		order[n++] = thing;
	qsort(order, n, sizeof(Thing *), compare_used);
	for (long i = 0; i < n && total_size > limit / 4 * 3; i++)
	{
		total_size -= order[i]->size;
		pfree(order[i]->data);
		hash_search(things, &order[i]->key, HASH_REMOVE, NULL);
	}
	pfree(order);
}

static void
search_is_gone(void *arg)
{
	TaSearch *search = (TaSearch *) arg;

	if (search->counted)
		open_searches--;
	search->counted = false;
}

/*
 * ta_cache_begin
 *		A search begins: what it is given stays until ta_cache_end, or until the
 *		memory context that is current now goes.
 */
void
ta_cache_begin(TaSearch *search)
{
	if (open_searches == 0)
	{
		forget_some();
		if (parts != NULL && hash_get_num_entries(parts) > MAX_PARTS)
			forget_all();
	}
	searches++;
	if (context == NULL)
	{
		HASHCTL		  ctl = {0};
		MemoryContext made = AllocSetContextCreate(TopMemoryContext, "techally search cache", ALLOCSET_DEFAULT_SIZES);

		ctl.hcxt = made;
		ctl.keysize = sizeof(PartKey);
		ctl.entrysize = sizeof(Part);
		parts = hash_create("techally search segments", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		ctl.keysize = sizeof(ThingKey);
		ctl.entrysize = sizeof(Thing);
		things = hash_create("techally search things", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		context = made;
	}
	search->gone.func = search_is_gone;
	search->gone.arg = search;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &search->gone);
	search->counted = true;
	open_searches++;
}

void
ta_cache_end(TaSearch *search)
{
	search_is_gone(search);
}

/*
 * ta_cache_part
 *		The number under which a segment is remembered; with refreshed_at, that
 *		of its rows of search_documents as they were then.
 */
uint64
ta_cache_part(Oid relid, int32 segment, int64 created_at, int64 refreshed_at)
{
	PartKey key;
	Part   *part;
	bool	found;

	memset(&key, 0, sizeof(key));
	key.relid = relid;
	key.segment = segment;
	key.created_at = created_at;
	key.refreshed_at = refreshed_at;
	part = hash_search(parts, &key, HASH_ENTER, &found);
	if (!found)
		part->number = ++last_part;
	return part->number;
}

static void *
remembered(const ThingKey *key)
{
	Thing *thing = hash_search(things, key, HASH_FIND, NULL);

	if (thing == NULL)
		return NULL;
	thing->used = searches;
	return thing->data;
}

/* Room for a thing that is not remembered yet; whoever asks fills it at once. */
static void *
remember(const ThingKey *key, Size size)
{
	void  *data = MemoryContextAllocHuge(context, size);
	Thing *thing;

	thing = hash_search(things, key, HASH_ENTER, NULL);
	thing->used = searches;
	thing->size = size + sizeof(Thing) + 32;
	thing->data = data;
	total_size += thing->size;
	return data;
}

/*
 * ta_chunk
 *		A row of search_documents; NULL where it is not there.
 */
const TaChunk *
ta_chunk(TaSearch *search, int s, int32 number)
{
	ThingKey key = {search->segments[s].documents_part, (uint32) number, 0, 0};
	TaChunk *chunk = remembered(&key);

	if (chunk != NULL)
		return chunk;
	if (!ta_load_chunk(search, search->segments[s].segment, number))
		return NULL;
	chunk = remember(&key, sizeof(TaChunk));
	memcpy(chunk, &search->chunk, sizeof(TaChunk));
	return chunk;
}

/* The key of a term's postings, or where one would go. */
static TaPostings *
find_postings(ThingKey *key, uint64 part, const char *term, int length, uint32 hash)
{
	key->part = part;
	key->hash = hash;
	key->kind = (int16) (length + 1);
	for (key->salt = 0;; key->salt++)
	{
		TaPostings *postings = remembered(key);

		if (postings == NULL || memcmp(postings->term, term, length) == 0)
			return postings;
	}
}

/* Postings while they are read. */
typedef struct Reading
{
	int	   total;
	int	   count;
	int32 *docs;
	uint8 *impacts;
} Reading;

static void
read_block(Reading *reading, const TaSegment *segment, const TaBlock *block)
{
	if (reading->docs == NULL)
	{
		if (block->total < 1 || block->total > segment->documents)
			elog(ERROR, "damaged search postings");
		reading->total = block->total;
		reading->docs = palloc_extended(sizeof(int32) * block->total, MCXT_ALLOC_HUGE);
		reading->impacts = palloc_extended(block->total, MCXT_ALLOC_HUGE);
	}
	if (block->count > reading->total - reading->count || block->docs[block->count - 1] >= segment->documents ||
		block->docs[0] < 0 || (reading->count > 0 && reading->docs[reading->count - 1] >= block->docs[0]))
		elog(ERROR, "damaged search postings");
	memcpy(reading->docs + reading->count, block->docs, sizeof(int32) * block->count);
	memcpy(reading->impacts + reading->count, block->impacts, block->count);
	reading->count += block->count;
}

/* Puts postings together in one piece of memory. */
static TaPostings *
keep_postings(const ThingKey *key, const TaSegment *segment, const char *term, int length, const Reading *reading)
{
	int			total = reading->total;
	bool		dense = total >= TA_RANGE && total >= segment->documents / 128;
	Size		nranges = (Size) Max(segment->documents, 0) / TA_RANGE + 1;
	Size		docs_at = MAXALIGN(sizeof(TaPostings));
	Size		bits_at = docs_at + (dense ? 0 : MAXALIGN(sizeof(int32) * total));
	Size		ranks_at = bits_at + (dense ? (Size) nranges * TA_RANGE / 8 : 0);
	bool		ranked = total > 0 && (dense || (Size) total >= nranges / 4);
	Size		before_at = ranks_at + (ranked ? MAXALIGN(sizeof(uint32) * (nranges + 1)) : 0);
	Size		ranges_at = before_at + (dense ? sizeof(uint16) * TA_RANGE_WORDS * nranges : 0);
	Size		impacts_at = ranges_at + (total >= TA_BLOCK_SIZE ? nranges : 0);
	Size		term_at = impacts_at + total;
	char	   *memory = remember(key, term_at + length);
	TaPostings *postings = (TaPostings *) memory;

	postings->total = total;
	postings->docs = dense ? NULL : (int32 *) (memory + docs_at);
	postings->bits = dense ? (uint64 *) (memory + bits_at) : NULL;
	postings->ranks = ranked ? (uint32 *) (memory + ranks_at) : NULL;
	postings->before = dense ? (uint16 *) (memory + before_at) : NULL;
	postings->ranges = total >= TA_BLOCK_SIZE ? (uint8 *) (memory + ranges_at) : NULL;
	postings->impacts = (uint8 *) (memory + impacts_at);
	postings->term = memory + term_at;
	memcpy(memory + term_at, term, length);
	if (total == 0)
		return postings;

	memcpy(postings->impacts, reading->impacts, total);
	if (ranked)
	{
		Size range = 0;

		for (int i = 0; i < total; i++)
		{
			while (range * TA_RANGE <= (Size) reading->docs[i])
				postings->ranks[range++] = i;
		}
		while (range <= nranges)
			postings->ranks[range++] = total;
	}
	if (!dense)
		memcpy(postings->docs, reading->docs, sizeof(int32) * total);
	else
	{
		memset(postings->bits, 0, nranges * TA_RANGE / 8);
		for (int i = 0; i < total; i++)
			postings->bits[reading->docs[i] >> 6] |= UINT64CONST(1) << (reading->docs[i] & 63);
		for (Size r = 0, i = 0; r < nranges; r++)
		{
			int before = 0;

			for (int w = 0; w < TA_RANGE_WORDS; w++, i++)
			{
				postings->before[i] = before;
				before += pg_popcount64(postings->bits[i]);
			}
		}
	}
	if (postings->ranges != NULL)
	{
		memset(postings->ranges, 0, nranges);
		for (int i = 0; i < total; i++)
		{
			uint8 *range = &postings->ranges[reading->docs[i] / TA_RANGE];

			*range = Max(*range, reading->impacts[i]);
		}
	}
	return postings;
}

/*
 * ta_postings
 *		The postings of a term in a segment, from memory or read.
 */
const TaPostings *
ta_postings(TaSearch *search, int s, const char *term, int length, uint32 hash)
{
	const TaSegment *segment = &search->segments[s];
	ThingKey		 key;
	TaPostings		*postings = find_postings(&key, segment->postings_part, term, length, hash);
	TaIndexReader	 reader;
	Reading			 reading = {0};
	MemoryContext	 caller;
	MemoryContext	 here;
	TaBlock			 block;

	if (postings != NULL)
		return postings;

	here = AllocSetContextCreate(CurrentMemoryContext, "techally search postings", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(here);
	ta_list_open(search, &reader, 3);
	for (bool found = ta_list_seek(&reader, term, length, segment->segment, 0, &block); found;
		 found = ta_list_next(&reader, &block))
	{
		ta_list_decode(&reader, &block);
		read_block(&reading, segment, &block);
		CHECK_FOR_INTERRUPTS();
	}
	ta_list_close(&reader);
	if (reading.count != reading.total)
		elog(ERROR, "damaged search postings");
	postings = keep_postings(&key, segment, term, length, &reading);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(here);
	return postings;
}

/*
 * ta_first_posting
 *		The number of the first of a term's postings whose document is not less
 *		than doc; where the term has its documents listed.
 */
int
ta_first_posting(const TaPostings *postings, int32 doc)
{
	int low = 0;
	int high = postings->total;

	if (postings->ranks != NULL)
	{
		low = postings->ranks[doc / TA_RANGE];
		high = postings->ranks[doc / TA_RANGE + 1];
	}
	while (low < high)
	{
		int middle = (low + high) / 2;

		if (postings->docs[middle] < doc)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * ta_posting_of
 *		The number of a document's posting, -1: it does not have the term.
 */
int
ta_posting_of(const TaPostings *postings, int32 doc)
{
	int i;

	if (postings->bits != NULL)
	{
		uint64 word = postings->bits[doc >> 6];
		uint64 bit = UINT64CONST(1) << (doc & 63);

		if ((word & bit) == 0)
			return -1;
		return postings->ranks[doc / TA_RANGE] + postings->before[doc >> 6] + pg_popcount64(word & (bit - 1));
	}
	i = ta_first_posting(postings, doc);
	return i < postings->total && postings->docs[i] == doc ? i : -1;
}

/*
 * ta_next_posting
 *		The first document that has a term and is not before doc, -1: none.
 */
int32
ta_next_posting(const TaPostings *postings, int32 doc)
{
	int i;

	if (postings->bits == NULL)
	{
		i = postings->total > 0 && doc <= postings->docs[postings->total - 1] ? ta_first_posting(postings, doc) : postings->total;
		return i < postings->total ? postings->docs[i] : -1;
	}
	for (;; doc = (doc | 63) + 1)
	{
		uint64 word;

		if (postings->ranks[doc / TA_RANGE] >= (uint32) postings->total && doc % TA_RANGE == 0)
			return -1;
		word = postings->bits[doc >> 6] & (~UINT64CONST(0) << (doc & 63));
		if (word != 0)
			return (doc & ~63) + pg_rightmost_one_pos64(word);
	}
}
