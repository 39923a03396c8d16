/*-------------------------------------------------------------------------
 *
 * search_rank.c
 *	  The best products for a query, exactly.
 *
 * The order: more words of the query first; then what is in stock; then the
 * higher score; then the smaller key.  A product matches when it has all words
 * that anything stands for; where fewer do than are enough for the store
 * (TaSearch), every product that has one of them matches.
 *
 * For the best by relevance: a term's greatest impact is known for every range
 * of TA_RANGE documents.  Their weighted sum is the best that a document of the
 * range can be, its words those that the range has at all.  Ranges are visited
 * from the best down, over all segments, until none can hold a document that
 * goes before the worst of the best so far.
 *
 * Which documents of a range have which words is told by bits, 512 of them a
 * list: those with all words are their conjunction, and counting them in parallel
 * tells how many words each has.  A range is visited once for every number of
 * words that its documents have, as long as that would do.
 *
 * In every other order, and for whoever wants all that match, all ranges of all
 * segments are visited, and nothing is scored.
 *
 * A product is looked up only when its score would do.  Documents of a segment
 * ascend by key, so that of many equal scores the first suffice.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"

#include "compat.h"
#include "search.h"
#include "spi_util.h"

#define COUNT_PLANES 5										 /* bits of a number of words */
#define WORDS		 ((UINT32CONST(1) << TA_FILTER_BIT) - 1) /* of a mask */

/* A list of the query, and what it says of the range at hand. */
typedef struct Cursor
{
	TaList			  *list;
	const TaPostings **postings; /* of each segment */
	int32			   loaded;	 /* range that the rest is about */
	const uint64	  *bits;	 /* documents of the range that have it; NULL: none */
	int				   base;	 /* its postings before the range */
	const uint16	  *before;	 /* from there to each word of bits */
	uint64			   own_bits[TA_RANGE_WORDS];
	uint16			   own_before[TA_RANGE_WORDS];
} Cursor;

/* A bit of the mask, and the lists that stand for it. */
typedef struct Part
{
	uint32 bit;
	int64  df;
	int	   ncursors;
	int	   cursors[TA_MAX_LISTS];
} Part;

/* What lost against the worst of the best by its key alone; so do those after it. */
typedef struct LostTie
{
	int	  coverage;
	bool  stock;
	int32 score;
	int32 doc;
} LostTie;

typedef struct Ranking
{
	TaSearch	*search;
	TaQuery		*query;
	uint32		 required; /* bits that a product must have */
	int			 coverage; /* words that it must have at least */
	bool		 full;	   /* which is all that are known */
	int			 limit;
	const TaHit *after;
	TaVisitor	 visitor; /* wants them all */
	void		*visitor_arg;
	bool		 with_stock;
	bool		 enough;
	TaHit		*hits; /* a heap, the worst on top */
	int			 nhits;
	int			 size;
	LostTie		*ties; /* of each segment */
	int			 ncursors;
	Cursor		*cursors;
	int			 nparts; /* words that are known, filters; the rarest first */
	Part		*parts;
	Part		 excluded;
	int			 most;	  /* words that a product may have */
	int			 nplanes; /* bits of their number */
	int			*order;	  /* of cursors, the weightiest first */
	int32		*rest;	  /* the most that those from there on can give */
} Ranking;

/*
 * ta_compare_hits
 *		Negative where a goes before b.
 */
int
ta_compare_hits(const TaHit *a, const TaHit *b)
{
	if (a->coverage != b->coverage)
		return b->coverage - a->coverage;
	if (a->stock != b->stock)
		return a->stock ? -1 : 1;
	if (a->key != b->key)
		return a->key > b->key ? -1 : 1;
	if (a->score != b->score)
		return a->score > b->score ? -1 : 1;
	return memcmp(&a->id, &b->id, UUID_LEN);
}

static int
compare_hits(const void *a, const void *b)
{
	return ta_compare_hits(a, b);
}

/*
 * ta_rank
 *		A score as it is shown: BM25 as it is usually written.
 */
float4
ta_rank(int32 score)
{
	return (float4) (score * (TA_K1 + 1) / (double) (TA_WEIGHT_SCALE * TA_IMPACT_MAX));
}

static void
sift_down(TaHit *heap, int count, int at)
{
	for (;;)
	{
		int	  worst = at;
		TaHit swapped;

		for (int child = at * 2 + 1; child <= at * 2 + 2 && child < count; child++)
		{
			if (ta_compare_hits(&heap[worst], &heap[child]) < 0)
				worst = child;
		}
		if (worst == at)
			return;
		swapped = heap[at];
		heap[at] = heap[worst];
		heap[worst] = swapped;
		at = worst;
	}
}

static void
keep_hit(Ranking *ranking, const TaHit *hit)
{
	TaHit *heap = ranking->hits;
	int	   at;

	if (ranking->nhits == ranking->limit)
	{
		heap[0] = *hit;
		sift_down(heap, ranking->nhits, 0);
		return;
	}
	if (ranking->nhits == ranking->size)
	{
		ranking->size = Min(ranking->size * 2, ranking->limit);
		heap = ranking->hits = repalloc_huge(heap, sizeof(TaHit) * ranking->size);
	}
	at = ranking->nhits++;
	heap[at] = *hit;
	while (at > 0 && ta_compare_hits(&heap[(at - 1) / 2], &heap[at]) < 0)
	{
		TaHit swapped = heap[at];

		heap[at] = heap[(at - 1) / 2];
		heap[(at - 1) / 2] = swapped;
		at = (at - 1) / 2;
	}
}

/* Whether so many words and such a score can still be among the best, from a document on. */
static inline bool
may_enter(const Ranking *ranking, int coverage, int32 score, int s, int32 doc)
{
	const TaHit	  *worst;
	const LostTie *tie;

	if (ranking->nhits < ranking->limit || ranking->query->sort != TA_SORT_RELEVANCE)
		return true;
	worst = &ranking->hits[0];
	if (coverage != worst->coverage)
		return coverage > worst->coverage;
	if (!worst->stock && ranking->search->has_stock)
		return true; /* it may be in stock */
	if (score != worst->score)
		return score > worst->score;
	if (worst->segment == s)
		return doc < worst->doc;
	tie = &ranking->ties[s];
	return !(tie->coverage == coverage && tie->score == score && tie->stock == worst->stock && doc >= tie->doc);
}

/* A document's key was too great. */
static void
lose_tie(Ranking *ranking, const TaHit *hit)
{
	const TaHit *worst = &ranking->hits[0];
	LostTie		*tie;

	if (hit->segment < 0 || hit->coverage != worst->coverage || hit->stock != worst->stock || hit->score != worst->score)
		return;
	tie = &ranking->ties[hit->segment];
	if (tie->coverage == hit->coverage && tie->score == hit->score && tie->stock == hit->stock)
		tie->doc = Min(tie->doc, hit->doc);
	else
	{
		tie->coverage = hit->coverage;
		tie->score = hit->score;
		tie->stock = hit->stock;
		tie->doc = hit->doc;
	}
}

typedef struct Words
{
	int	   count;
	int	   size;
	char **terms;
	int	  *lengths;
} Words;

static void
collect_word(const TaToken *token, void *arg)
{
	Words *words = (Words *) arg;

	if (token->joined || token->term_length == 0)
		return;
	if (words->count == words->size)
	{
		words->size = words->size == 0 ? 64 : words->size * 2;
		words->terms = words->terms == NULL ? palloc(sizeof(char *) * words->size) : repalloc(words->terms, sizeof(char *) * words->size);
		words->lengths = words->lengths == NULL ? palloc(sizeof(int) * words->size) : repalloc(words->lengths, sizeof(int) * words->size);
	}
	words->terms[words->count] = pnstrdup(token->term, token->term_length);
	words->lengths[words->count++] = token->term_length;
}

static bool
has_phrase(const Words *words, const TaPhrase *phrase)
{
	for (int from = 0; from + phrase->count <= words->count; from++)
	{
		int i;

		for (i = 0; i < phrase->count; i++)
		{
			if (words->lengths[from + i] != phrase->lengths[i] ||
				memcmp(words->terms[from + i], phrase->terms[i], phrase->lengths[i]) != 0)
				break;
		}
		if (i == phrase->count)
			return true;
	}
	return false;
}

static const TaStatement select_texts = {
	"SELECT p.name, p.short_description, p.description, b.name, pg_catalog.array_to_string(p.tags, ' | '), p.language, c.name"
	"  FROM @store@.products p LEFT JOIN @store@.brands b ON b.id = p.brand_id"
	"  LEFT JOIN @store@.categories c ON c.id = p.category_id WHERE p.id = $1",
	1,
	{UUIDOID}};

/* Whether every quoted phrase stands in one of the product's texts. */
static bool
check_phrases(Ranking *ranking, const pg_uuid_t *id)
{
	static const int columns[] = {1, 2, 3, 4, 5, 7};
	TaQuery			*query = ranking->query;
	Datum			 values[1] = {UUIDPGetDatum(id)};
	TaFrame			 frame;
	bool			 result = true;

	if (query->nphrases == 0)
		return true;
	ta_frame_begin(&frame, ta_relation_owner(ta_search_table(ranking->search->nspid, "search_recent")));
	if (ta_query(ranking->search->nspid, &select_texts, values, NULL) == 0)
		result = false;
	for (int p = 0; result && p < query->nphrases; p++)
	{
		bool  found = false;
		char *language = ta_spi_text(0, 6);
		Oid	  config = language != NULL ? ta_search_config(language) : ranking->search->config;

		for (size_t c = 0; !found && c < lengthof(columns); c++)
		{
			char *text = ta_spi_text(0, columns[c]);
			Words words = {0};

			if (text == NULL)
				continue;
			ta_tokenize(config, text, strlen(text), collect_word, &words);
			found = has_phrase(&words, &query->phrases[p]);
		}
		result = found;
	}
	ta_frame_end(&frame);
	return result;
}

/* What the search tables keep of a product beside its terms. */
typedef struct Kept
{
	const pg_uuid_t *id;
	int				 segment; /* index into search->segments; -1: recent */
	int32			 doc;
	int64			 price;
	int32			 created;
	float4			 popularity;
} Kept;

/* Considers a product whose words and score are known. */
static void
consider(Ranking *ranking, int coverage, int32 score, Kept *kept)
{
	TaSearch *search = ranking->search;
	TaQuery	 *query = ranking->query;
	TaHit	  hit;

	if (query->prices)
	{
		kept->price = ta_price(search, kept->id, kept->price);
		if (kept->price < query->price_min || kept->price > query->price_max)
			return;
	}
	if (query->rating_min > 0 && ta_rating(search, kept->id) < query->rating_min)
		return;
	hit.coverage = coverage;
	hit.score = score;
	hit.id = *kept->id;
	hit.segment = kept->segment;
	hit.doc = kept->doc;
	hit.key = 0;
	switch (query->sort)
	{
		case TA_SORT_PRICE:
			hit.key = -kept->price;
			break;
		case TA_SORT_PRICE_DESC:
			hit.key = kept->price;
			break;
		case TA_SORT_NEWEST:
			hit.key = kept->created;
			break;
		case TA_SORT_BEST_SELLING:
			hit.key = (int64) Max(0, Min(kept->popularity, 1e15));
			break;
		case TA_SORT_RATING:
			hit.key = ta_rating(search, kept->id);
			break;
		case TA_SORT_RELEVANCE:
			break;
	}
	if (query->sort != TA_SORT_RELEVANCE)
		hit.coverage = hit.score = 0;

	if (ranking->visitor != NULL)
	{
		if (!check_phrases(ranking, kept->id))
			return;
		hit.stock = (ranking->with_stock || query->in_stock) && ta_in_stock(search, kept->id);
		if (query->in_stock && !hit.stock)
			return;
		if (!ranking->visitor(&hit, kept->segment, kept->doc, kept->price, ranking->visitor_arg))
			ranking->enough = true;
		return;
	}

	/* the best that it can be */
	hit.stock = search->has_stock;
	if (ranking->nhits == ranking->limit && ta_compare_hits(&hit, &ranking->hits[0]) >= 0)
	{
		lose_tie(ranking, &hit);
		return;
	}
	if (!check_phrases(ranking, kept->id))
		return;
	hit.stock = ta_in_stock(search, kept->id);
	if (query->in_stock && !hit.stock)
		return;
	if (ranking->after != NULL && ta_compare_hits(&hit, ranking->after) <= 0)
		return;
	if (ranking->nhits == ranking->limit && ta_compare_hits(&hit, &ranking->hits[0]) >= 0)
		return;
	keep_hit(ranking, &hit);
}

static void
consider_document(Ranking *ranking, int s, int32 doc, int coverage, int32 score)
{
	Kept		   kept;
	TaSearch	  *search = ranking->search;
	const TaChunk *chunk = &search->chunk;
	int			   i = doc % TA_CHUNK_SIZE;

	if (chunk->segment != search->segments[s].segment || chunk->chunk != doc / TA_CHUNK_SIZE)
		chunk = ta_chunk(search, s, doc / TA_CHUNK_SIZE);
	if (chunk == NULL || i >= chunk->count || (chunk->live & (UINT64CONST(1) << i)) == 0)
		return;
	if (search->nrecents > 0 && ta_find_recent(search, &chunk->ids[i]) >= 0)
		return;
	kept.id = &chunk->ids[i];
	kept.segment = s;
	kept.doc = doc;
	kept.price = chunk->prices[i];
	kept.created = chunk->created[i];
	kept.popularity = chunk->popularity[i];
	consider(ranking, coverage, score, &kept);
}

static void
consider_recent(Ranking *ranking, int r, int coverage, int32 score)
{
	TaRecent *recent = &ranking->search->recents[r];
	Kept	  kept = {&recent->id, -1, r, recent->price, recent->created, recent->popularity};

	consider(ranking, coverage, score, &kept);
}

/*
 * Ranges
 */

/* Reads which documents of a range have a list's term. */
static const uint64 *
load_cursor(Cursor *cursor, int s, int32 start)
{
	const TaPostings *postings;
	int				  last = -1;

	if (cursor->loaded == start)
		return cursor->bits;
	cursor->loaded = start;
	cursor->bits = NULL;
	postings = cursor->postings[s];
	if (postings->total == 0 || (postings->ranges != NULL && postings->ranges[start / TA_RANGE] == 0))
		return NULL;
	if (postings->bits != NULL)
	{
		cursor->base = postings->ranks[start / TA_RANGE];
		cursor->before = postings->before + start / 64;
		return cursor->bits = postings->bits + start / 64;
	}
	cursor->base = ta_first_posting(postings, start);
	for (int i = cursor->base; i < postings->total && postings->docs[i] < start + TA_RANGE; i++)
	{
		int at = postings->docs[i] - start;

		if (last < 0)
			memset(cursor->own_bits, 0, sizeof(cursor->own_bits));
		if (at >> 6 != last)
			cursor->own_before[last = at >> 6] = i - cursor->base;
		cursor->own_bits[at >> 6] |= UINT64CONST(1) << (at & 63);
	}
	cursor->before = cursor->own_before;
	return cursor->bits = last < 0 ? NULL : cursor->own_bits;
}

static const uint64 no_bits[TA_RANGE_WORDS] = {0};

/* Which documents of a range have one of the lists of a part; room is for the result. */
static const uint64 *
bits_of(Ranking *ranking, const Part *part, int s, int32 start, uint64 *room)
{
	const uint64 *result = NULL;

	for (int i = 0; i < part->ncursors; i++)
	{
		const uint64 *bits = load_cursor(&ranking->cursors[part->cursors[i]], s, start);

		if (bits == NULL)
			continue;
		if (result == NULL)
		{
			result = bits;
			continue;
		}
		for (int w = 0; w < TA_RANGE_WORDS; w++)
			room[w] = result[w] | bits[w];
		result = room;
	}
	return result != NULL ? result : no_bits;
}

static inline bool
any_bit(const uint64 *bits)
{
	uint64 all = 0;

	for (int w = 0; w < TA_RANGE_WORDS; w++)
		all |= bits[w];
	return all != 0;
}

/* The documents of a range that satisfy what is required, and no exclusion. */
static bool
match_range(Ranking *ranking, int s, int32 start, uint64 *matching)
{
	uint64		  room[TA_RANGE_WORDS];
	const uint64 *bits;

	memset(matching, 0xFF, sizeof(uint64) * TA_RANGE_WORDS);
	for (int p = 0; p < ranking->nparts; p++)
	{
		uint64 all = 0;

		if ((ranking->parts[p].bit & ranking->required) == 0)
			continue;
		bits = bits_of(ranking, &ranking->parts[p], s, start, room);
		for (int w = 0; w < TA_RANGE_WORDS; w++)
			all |= matching[w] &= bits[w];
		if (all == 0)
			return false;
	}
	if ((ranking->required & WORDS) == 0 && ranking->coverage > 0)
	{
		uint64 any[TA_RANGE_WORDS] = {0};

		for (int p = 0; p < ranking->nparts; p++)
		{
			if ((ranking->parts[p].bit & WORDS) == 0)
				continue;
			bits = bits_of(ranking, &ranking->parts[p], s, start, room);
			for (int w = 0; w < TA_RANGE_WORDS; w++)
				any[w] |= bits[w];
		}
		for (int w = 0; w < TA_RANGE_WORDS; w++)
			matching[w] &= any[w];
	}
	if (ranking->excluded.ncursors > 0)
	{
		bits = bits_of(ranking, &ranking->excluded, s, start, room);
		for (int w = 0; w < TA_RANGE_WORDS; w++)
			matching[w] &= ~bits[w];
	}
	return any_bit(matching);
}

/* Counts the words of each document of a range; bits of the counts, the lowest first. */
static void
count_words(Ranking *ranking, int s, int32 start, uint64 planes[][TA_RANGE_WORDS])
{
	memset(planes, 0, sizeof(uint64) * TA_RANGE_WORDS * ranking->nplanes);
	for (int p = 0; p < ranking->nparts; p++)
	{
		uint64		  room[TA_RANGE_WORDS];
		uint64		  carry[TA_RANGE_WORDS];
		const uint64 *bits;

		if ((ranking->parts[p].bit & WORDS) == 0)
			continue;
		bits = bits_of(ranking, &ranking->parts[p], s, start, room);
		if (bits == no_bits)
			continue;
		memcpy(carry, bits, sizeof(carry));
		for (int i = 0; i < ranking->nplanes; i++)
		{
			uint64 all = 0;

			for (int w = 0; w < TA_RANGE_WORDS; w++)
			{
				uint64 sum = planes[i][w] ^ carry[w];

				all |= carry[w] &= planes[i][w];
				planes[i][w] = sum;
			}
			if (all == 0)
				break;
		}
	}
}

/*
 * Leaves of the documents that match those with the greatest number of words
 * that is not above most; returns that number, 0: there are none.
 */
static int
most_words(Ranking *ranking, uint64 planes[][TA_RANGE_WORDS], int most, uint64 *matching)
{
	uint64 best[TA_RANGE_WORDS];

	for (int words = most; words > 0; words--)
	{
		memcpy(best, matching, sizeof(best));
		for (int i = 0; i < ranking->nplanes; i++)
		{
			uint64 flip = (words >> i) & 1 ? 0 : ~UINT64CONST(0);

			for (int w = 0; w < TA_RANGE_WORDS; w++)
				best[w] &= planes[i][w] ^ flip;
		}
		if (any_bit(best))
		{
			memcpy(matching, best, sizeof(best));
			return words;
		}
	}
	return 0;
}

/* Scores documents of a range and considers those that may be among the best. */
static void
score_range(Ranking *ranking, int s, int32 start, const uint64 *matching, int coverage)
{
	for (int c = 0; c < ranking->ncursors; c++)
	{
		if (ranking->cursors[c].list->weight != 0)
			(void) load_cursor(&ranking->cursors[c], s, start);
	}
	for (int w = 0; w < TA_RANGE_WORDS; w++)
	{
		for (uint64 left = matching[w]; left != 0; left &= left - 1)
		{
			uint64 bit = left & -left;
			int32  doc = start + w * 64 + pg_rightmost_one_pos64(left);
			int32  score = 0;

			for (int c = 0; c < ranking->ncursors; c++)
			{
				const Cursor *cursor = &ranking->cursors[c];

				if (cursor->bits != NULL && (cursor->bits[w] & bit) != 0 && cursor->list->weight != 0)
					score += cursor->list->weight *
							 cursor->postings[s]->impacts[cursor->base + cursor->before[w] + pg_popcount64(cursor->bits[w] & (bit - 1))];
			}
			if (may_enter(ranking, coverage, score, s, doc))
				consider_document(ranking, s, doc, coverage, score);
		}
	}
}

/*
 * Few documents
 */

/* Whether a document has one of a part's lists. */
static bool
has_part(const Ranking *ranking, const Part *part, int s, int32 doc)
{
	for (int i = 0; i < part->ncursors; i++)
	{
		if (ta_posting_of(ranking->cursors[part->cursors[i]].postings[s], doc) >= 0)
			return true;
	}
	return false;
}

/*
 * Scores a document, the list that counts most first, and considers it; gives
 * up where the rest cannot make it one of the best.  known: the cursor whose
 * posting for it is known to be known_at, or -1.
 */
static void
score_document(Ranking *ranking, int s, int32 doc, int coverage, int known, int known_at)
{
	int32 score = 0;

	for (int i = 0; i < ranking->ncursors; i++)
	{
		const Cursor *cursor = &ranking->cursors[ranking->order[i]];
		int			  at;

		if (cursor->list->weight == 0)
			break;
		if (!may_enter(ranking, coverage, score + ranking->rest[i], s, doc))
			return;
		at = ranking->order[i] == known ? known_at : ta_posting_of(cursor->postings[s], doc);
		if (at >= 0)
			score += cursor->list->weight * cursor->postings[s]->impacts[at];
	}
	if (may_enter(ranking, coverage, score, s, doc))
		consider_document(ranking, s, doc, coverage, score);
}

/*
 * Those with exactly so many words, by the documents of the rarest: whoever has
 * that many has one of these.  False: they are too many to go through.
 */
static bool
rank_few(Ranking *ranking, int coverage)
{
	TaSearch *search = ranking->search;
	int		  words = pg_popcount32(ranking->query->known);
	int		  needed = words - coverage + 1;
	int64	  cost = 0;
	int		  ndrivers = 0;
	int		  drivers[TA_MAX_LISTS];
	Part	 *filter = NULL;

	for (int p = 0; p < ranking->nparts; p++)
	{
		Part *part = &ranking->parts[p];

		if ((part->bit & WORDS) == 0)
		{
			if (filter == NULL)
				filter = part;
			continue;
		}
		if (needed-- <= 0)
			continue;
		cost += part->df;
		for (int i = 0; i < part->ncursors && ndrivers < TA_MAX_LISTS; i++)
			drivers[ndrivers++] = part->cursors[i];
	}
	if (filter != NULL && filter->df < cost)
	{
		cost = filter->df;
		ndrivers = filter->ncursors;
		memcpy(drivers, filter->cursors, sizeof(int) * ndrivers);
	}
	if (cost > search->ndocuments / 256 + 1000)
		return false;

	for (int s = 0; s < search->nsegments; s++)
	{
		for (int d = 0; d < ndrivers; d++)
		{
			const TaPostings *postings = ranking->cursors[drivers[d]].postings[s];

			uint32 mask = ranking->cursors[drivers[d]].list->mask;
			int32  doc = -1;

			for (int at = 0; at < postings->total; at++)
			{
				int	 found = 0;
				int	 left = words;
				bool fits = true;

				CHECK_FOR_INTERRUPTS();
				doc = postings->docs != NULL ? postings->docs[at] : ta_next_posting(postings, doc + 1);
				for (int p = 0; p < ranking->nparts && fits; p++)
				{
					Part *part = &ranking->parts[p];
					bool  has = (part->bit & mask) != 0 || has_part(ranking, part, s, doc);

					if ((part->bit & WORDS) == 0)
						fits = has;
					else
					{
						found += has;
						left--;
						fits = found <= coverage && found + left >= coverage;
					}
				}
				if (!fits)
					continue;
				for (int before = 0; before < d && fits; before++)
					fits = ta_posting_of(ranking->cursors[drivers[before]].postings[s], doc) < 0;
				if (fits && !has_part(ranking, &ranking->excluded, s, doc))
					score_document(ranking, s, doc, coverage, drivers[d], at);
			}
		}
	}
	return true;
}

#define FEW_MATCHES 8192

/*
 * Those that have all words, where these are all frequent, by the conjunction of
 * their bits.  False: there are too many.
 */
static bool
rank_conjunction(Ranking *ranking)
{
	TaSearch *search = ranking->search;
	int32	 *docs;
	int		 *counts;
	int		  count = 0;

	if (ranking->nparts < 2)
		return false;
	for (int p = 0; p < ranking->nparts; p++)
	{
		for (int i = 0; i < ranking->parts[p].ncursors; i++)
		{
			for (int s = 0; s < search->nsegments; s++)
			{
				const TaPostings *postings = ranking->cursors[ranking->parts[p].cursors[i]].postings[s];

				if (postings->bits == NULL && postings->total > 0)
					return false;
			}
		}
	}
	docs = palloc(sizeof(int32) * (FEW_MATCHES + 64));
	counts = palloc(sizeof(int) * Max(search->nsegments, 1));
	for (int s = 0; s < search->nsegments; s++)
	{
		int			  nwords = search->segments[s].documents / 64 + 1;
		const uint64 *single[TA_MAX_LISTS];
		bool		  empty = false;

		counts[s] = count;
		for (int p = 0; p < ranking->nparts; p++)
		{
			Part *part = &ranking->parts[p];

			single[p] = part->ncursors == 1 ? ranking->cursors[part->cursors[0]].postings[s]->bits : NULL;
			empty |= part->ncursors == 1 && single[p] == NULL;
		}
		for (int w = 0; w < nwords && !empty; w++)
		{
			uint64 matching = ~UINT64CONST(0);

			for (int p = 0; p < ranking->nparts && matching != 0; p++)
			{
				Part  *part = &ranking->parts[p];
				uint64 any = 0;

				if (single[p] != NULL)
				{
					matching &= single[p][w];
					continue;
				}
				for (int i = 0; i < part->ncursors; i++)
				{
					const uint64 *bits = ranking->cursors[part->cursors[i]].postings[s]->bits;

					any |= bits == NULL ? 0 : bits[w];
				}
				matching &= any;
			}
			for (; matching != 0; matching &= matching - 1)
				docs[count++] = w * 64 + pg_rightmost_one_pos64(matching);
			if (count > FEW_MATCHES)
			{
				pfree(docs);
				pfree(counts);
				return false;
			}
		}
		CHECK_FOR_INTERRUPTS();
	}
	for (int s = 0; s < search->nsegments; s++)
	{
		int end = s + 1 < search->nsegments ? counts[s + 1] : count;

		for (int i = counts[s]; i < end; i++)
		{
			if (!has_part(ranking, &ranking->excluded, s, docs[i]))
				score_document(ranking, s, docs[i], ranking->coverage, -1, -1);
		}
	}
	pfree(docs);
	pfree(counts);
	return true;
}

/* Adds what a list can be worth to the bounds of a segment's ranges. */
static void
add_bounds(const Cursor *cursor, int s, int nranges, int32 *bounds, uint32 *masks)
{
	const TaPostings *postings = cursor->postings[s];
	int32			  weight = cursor->list->weight;
	uint32			  mask = cursor->list->mask;

	if (postings->ranges != NULL)
	{
		const uint8 *ranges = postings->ranges;

		for (int r = 0; r < nranges; r++)
		{
			bounds[r] += weight * ranges[r];
			masks[r] |= ranges[r] != 0 ? mask : 0;
		}
		return;
	}
	for (int i = 0; i < postings->total;)
	{
		int	  range = postings->docs[i] / TA_RANGE;
		uint8 max = 0;

		for (; i < postings->total && postings->docs[i] / TA_RANGE == range; i++)
			max = Max(max, postings->impacts[i]);
		bounds[range] += weight * max;
		masks[range] |= mask;
	}
}

/* A range to visit, as a number: the best first, of equal ones the first first. */
#define RANGE_KEY(coverage, bound, at) \
	(((uint64) (coverage) << 56) | ((uint64) (uint32) (bound) << 24) | (0xFFFFFF - (uint32) (at)))
#define KEY_COVERAGE(key) ((int) ((key) >> 56))
#define KEY_BOUND(key)	  ((int32) (((key) >> 24) & 0xFFFFFFFF))
#define KEY_RANGE(key)	  (0xFFFFFF - (int) ((key) &0xFFFFFF))

static void
sift_range(uint64 *heap, int count, int at)
{
	uint64 key = heap[at];

	for (;;)
	{
		int child = at * 2 + 1;

		if (child >= count)
			break;
		if (child + 1 < count && heap[child + 1] > heap[child])
			child++;
		if (heap[child] <= key)
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = key;
}

/*
 * Visits a range for documents with at most so many words.  Returns with how
 * many it should be visited again, 0: not at all.
 */
static int
rank_range(Ranking *ranking, int s, int32 start, int most)
{
	uint64 matching[TA_RANGE_WORDS];
	uint64 planes[COUNT_PLANES][TA_RANGE_WORDS];
	int	   found;

	for (int c = 0; c < ranking->ncursors; c++)
		ranking->cursors[c].loaded = -1; /* it may be another segment's */
	if (!match_range(ranking, s, start, matching))
		return 0;
	if (ranking->full)
	{
		score_range(ranking, s, start, matching, ranking->coverage);
		return 0;
	}
	count_words(ranking, s, start, planes);
	found = most_words(ranking, planes, most, matching);
	if (found < most)
		return found;
	score_range(ranking, s, start, matching, found);
	return found - 1;
}

/* The best of all segments by relevance. */
static void
rank_ranges(Ranking *ranking)
{
	TaSearch *search = ranking->search;
	int		 *firsts = palloc(sizeof(int) * (search->nsegments + 1)); /* range that each segment begins with */
	int32	 *bounds;
	uint32	 *masks;
	uint64	 *heap;
	int		  nranges = 0;
	int		  count = 0;

	for (int s = 0; s < search->nsegments; s++)
	{
		firsts[s] = nranges;
		nranges += search->segments[s].documents / TA_RANGE + 1;
	}
	firsts[search->nsegments] = nranges;
	if (nranges > 0xFFFFFF)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many products for a search")));
	bounds = palloc_extended(sizeof(int32) * Max(nranges, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	masks = palloc_extended(sizeof(uint32) * Max(nranges, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	heap = palloc_extended(sizeof(uint64) * Max(nranges, 1), MCXT_ALLOC_HUGE);
	for (int s = 0; s < search->nsegments; s++)
	{
		for (int c = 0; c < ranking->ncursors; c++)
		{
			if ((ranking->cursors[c].list->mask & TA_EXCLUDED_BIT) == 0)
				add_bounds(&ranking->cursors[c], s, firsts[s + 1] - firsts[s], bounds + firsts[s], masks + firsts[s]);
		}
	}
	for (int r = 0; r < nranges; r++)
	{
		int coverage = Min(pg_popcount32(masks[r] & WORDS), ranking->most);

		if ((masks[r] & ranking->required) == ranking->required && masks[r] != 0 && coverage >= ranking->coverage)
			heap[count++] = RANGE_KEY(coverage, bounds[r], r);
	}
	for (int at = count / 2 - 1; at >= 0; at--)
		sift_range(heap, count, at);

	while (count > 0)
	{
		uint64 key = heap[0];
		int	   range = KEY_RANGE(key);
		int	   again = 0;
		int	   s = 0;
		int32  start;

		CHECK_FOR_INTERRUPTS();
		while (firsts[s + 1] <= range)
			s++;
		start = (range - firsts[s]) * TA_RANGE;
		if (may_enter(ranking, KEY_COVERAGE(key), KEY_BOUND(key), s, start))
			again = rank_range(ranking, s, start, KEY_COVERAGE(key));
		else if (KEY_COVERAGE(key) < ranking->hits[0].coverage || KEY_BOUND(key) < ranking->hits[0].score)
			break; /* nor may any after it */
		if (again > 0 && again >= ranking->coverage)
			heap[0] = RANGE_KEY(again, KEY_BOUND(key), range);
		else
			heap[0] = heap[--count];
		sift_range(heap, count, 0);
	}
	pfree(firsts);
	pfree(bounds);
	pfree(masks);
	pfree(heap);
}

/* The best of all segments by relevance. */
static void
rank_best(Ranking *ranking)
{
	/* a level after the other, as long as those that can have so many words are few */
	for (; ranking->most > 0 && ranking->most >= ranking->coverage; ranking->most--)
	{
		if (ranking->nhits == ranking->limit && ranking->hits[0].coverage > ranking->most)
			return;
		if (!rank_few(ranking, ranking->most))
			break;
	}
	if (ranking->query->known != 0 && (ranking->most == 0 || ranking->most < ranking->coverage))
		return;
	if (ranking->full && rank_conjunction(ranking))
		return;
	rank_ranges(ranking);
}

/* All that match in a segment, in the order of their keys, without a score. */
static void
rank_segment(Ranking *ranking, int s)
{
	for (int c = 0; c < ranking->ncursors; c++)
		ranking->cursors[c].loaded = -1;
	for (int32 start = 0; start < ranking->search->segments[s].documents; start += TA_RANGE)
	{
		uint64 matching[TA_RANGE_WORDS];

		CHECK_FOR_INTERRUPTS();
		if (!match_range(ranking, s, start, matching))
			continue;
		for (int w = 0; w < TA_RANGE_WORDS; w++)
		{
			for (uint64 left = matching[w]; left != 0; left &= left - 1)
			{
				consider_document(ranking, s, start + w * 64 + pg_rightmost_one_pos64(left), 0, 0);
				if (ranking->enough)
					return;
			}
		}
	}
}

static void
rank_recents(Ranking *ranking)
{
	TaSearch *search = ranking->search;
	TaQuery	 *query = ranking->query;

	for (int r = 0; r < search->nrecents; r++)
	{
		TaRecent *recent = &search->recents[r];
		uint32	  mask = 0;
		int32	  score = 0;

		if (recent->removed)
			continue;
		for (int l = 0; l < query->nlists; l++)
		{
			TaList *list = &query->lists[l];
			int		impact = ta_recent_impact(recent, list->term, list->length, list->hash);

			if (impact < 0)
				continue;
			mask |= list->mask;
			score += list->weight * impact;
		}
		if ((mask & ranking->required) != ranking->required || (mask & TA_EXCLUDED_BIT) != 0 ||
			(int) pg_popcount32(mask & WORDS) < ranking->coverage || (int) pg_popcount32(mask & WORDS) > ranking->most)
			continue;
		consider_recent(ranking, r, pg_popcount32(mask & WORDS), score);
		if (ranking->enough)
			return;
		CHECK_FOR_INTERRUPTS();
	}
}

static inline int32
popularity_score(float4 popularity)
{
	return (int32) Max(0, Min(popularity, 2e9));
}

/*
 * All products but those with an excluded word, for a query without others: by
 * popularity, the score.  Those that sell best are known beforehand, so that of
 * the rest the first suffice.
 */
static void
rank_all(Ranking *ranking)
{
	TaSearch *search = ranking->search;
	bool	  stops = ranking->visitor == NULL && ranking->query->sort == TA_SORT_RELEVANCE;

	if (stops)
		ta_read_popular(search);
	for (int s = 0; s < search->nsegments && stops; s++)
	{
		TaSegment *segment = &search->segments[s];

		for (int i = 0; i < segment->npopular; i++)
		{
			int32 doc = segment->popular[i].doc;
			int32 score = popularity_score(segment->popular[i].sold);

			if (!may_enter(ranking, 0, score, s, doc))
				break;
			if (doc < segment->documents && !has_part(ranking, &ranking->excluded, s, doc))
				consider_document(ranking, s, doc, 0, score);
		}
	}
	for (int s = 0; s < search->nsegments; s++)
	{
		TaSegment *segment = &search->segments[s];
		int32	   floor = stops && segment->npopular == TA_POPULAR_MAX ? popularity_score(segment->popular[TA_POPULAR_MAX - 1].sold) : 0;
		uint64	  *known = NULL;

		if (stops && segment->npopular > 0)
		{
			known = palloc0(segment->documents / 8 + 16);
			for (int i = 0; i < segment->npopular; i++)
			{
				int32 doc = segment->popular[i].doc;

				if (doc < segment->documents)
					known[doc >> 6] |= UINT64CONST(1) << (doc & 63);
			}
		}
		for (int32 c = 0; c * TA_CHUNK_SIZE < segment->documents; c++)
		{
			if (stops && !may_enter(ranking, 0, floor, s, c * TA_CHUNK_SIZE))
				break;
			if (!ta_load_chunk(search, segment->segment, c))
				break;
			for (int i = 0; i < search->chunk.count; i++)
			{
				int32 doc = c * TA_CHUNK_SIZE + i;
				int32 score = popularity_score(search->chunk.popularity[i]);

				if (doc < segment->documents && (known == NULL || (known[doc >> 6] & (UINT64CONST(1) << (doc & 63))) == 0) &&
					may_enter(ranking, 0, score, s, doc) && !has_part(ranking, &ranking->excluded, s, doc))
					consider_document(ranking, s, doc, 0, score);
				if (ranking->enough)
					return;
			}
			CHECK_FOR_INTERRUPTS();
		}
	}
	for (int r = 0; r < search->nrecents && !ranking->enough; r++)
	{
		TaRecent *recent = &search->recents[r];
		bool	  found = recent->removed;

		for (int l = 0; l < ranking->query->nlists && !found; l++)
			found = ta_recent_impact(recent, ranking->query->lists[l].term, ranking->query->lists[l].length,
									 ranking->query->lists[l].hash) >= 0;
		if (!found)
			consider_recent(ranking, r, 0, popularity_score(recent->popularity));
	}
}

static void
rank(Ranking *ranking)
{
	TaQuery *query = ranking->query;

	for (int s = 0; s < ranking->search->nsegments; s++)
		ranking->ties[s].coverage = -1;
	if (query->nwords == 0 && query->filters == 0)
	{
		rank_all(ranking);
		return;
	}
	rank_recents(ranking);
	if (ranking->visitor == NULL && query->sort == TA_SORT_RELEVANCE)
	{
		rank_best(ranking);
		return;
	}
	for (int s = 0; s < ranking->search->nsegments && !ranking->enough; s++)
		rank_segment(ranking, s);
}

static int
compare_parts(const void *a, const void *b)
{
	const Part *x = (const Part *) a;
	const Part *y = (const Part *) b;

	if (x->df != y->df)
		return x->df < y->df ? -1 : 1;
	return x->bit < y->bit ? -1 : (x->bit > y->bit ? 1 : 0);
}

static void
make_part(Ranking *ranking, Part *part, uint32 bit)
{
	part->bit = bit;
	part->df = 0;
	part->ncursors = 0;
	for (int c = 0; c < ranking->ncursors; c++)
	{
		if ((ranking->cursors[c].list->mask & bit) == 0)
			continue;
		part->cursors[part->ncursors++] = c;
		part->df += ranking->cursors[c].list->df;
	}
}

static void
ranking_open(Ranking *ranking, TaSearch *search, TaQuery *query)
{
	memset(ranking, 0, sizeof(*ranking));
	ranking->search = search;
	ranking->query = query;
	ranking->ties = palloc(sizeof(LostTie) * Max(search->nsegments, 1));
	ranking->ncursors = query->nlists;
	ranking->cursors = palloc(sizeof(Cursor) * Max(query->nlists, 1));
	for (int c = 0; c < query->nlists; c++)
	{
		Cursor *cursor = &ranking->cursors[c];

		cursor->list = &query->lists[c];
		cursor->postings = palloc(sizeof(TaPostings *) * Max(search->nsegments, 1));
		for (int s = 0; s < search->nsegments; s++)
			cursor->postings[s] = ta_postings(search, s, cursor->list->term, cursor->list->length, cursor->list->hash);
	}
	ranking->parts = palloc(sizeof(Part) * Max(pg_popcount32(query->known | query->filters), 1));
	for (uint32 left = query->known | query->filters; left != 0; left &= left - 1)
		make_part(ranking, &ranking->parts[ranking->nparts++], left & -left);
	qsort(ranking->parts, ranking->nparts, sizeof(Part), compare_parts);
	make_part(ranking, &ranking->excluded, TA_EXCLUDED_BIT);
	ranking->order = palloc(sizeof(int) * Max(query->nlists, 1));
	ranking->rest = palloc(sizeof(int32) * Max(query->nlists, 1));
	for (int c = 0; c < query->nlists; c++)
	{
		int at = c;

		for (; at > 0 && query->lists[ranking->order[at - 1]].weight < query->lists[c].weight; at--)
			ranking->order[at] = ranking->order[at - 1];
		ranking->order[at] = c;
	}
	for (int c = query->nlists - 1; c >= 0; c--)
		ranking->rest[c] = query->lists[ranking->order[c]].weight * TA_IMPACT_MAX + (c + 1 < query->nlists ? ranking->rest[c + 1] : 0);
	ranking->most = pg_popcount32(query->known);
	while (ranking->most >> ranking->nplanes != 0)
		ranking->nplanes++;
}

/* What a product must have at a stage. */
static void
require(Ranking *ranking, TaStage stage)
{
	TaQuery *query = ranking->query;

	ranking->required = query->filters | (stage == TA_STAGE_ANY ? 0 : query->known);
	ranking->coverage = stage == TA_STAGE_ANY ? Min(1, query->nwords) : pg_popcount32(query->known);
	ranking->full = stage != TA_STAGE_ANY;
}

/*
 * ta_top
 *		The first products for a query, in their order; after: those behind it.
 *		Settles the query's stage where that is open.
 */
TaHit *
ta_top(TaSearch *search, TaQuery *query, int limit, const TaHit *after, int *count)
{
	Ranking ranking;
	int		wanted = Max(limit, search->enough);
	bool	ranked = false;

	*count = 0;
	if (query->empty_filter || (query->nwords > 0 && query->known == 0))
		return NULL;

	ranking_open(&ranking, search, query);
	ranking.limit = wanted;
	ranking.after = after;
	ranking.size = Min(wanted, 64);
	ranking.hits = palloc(sizeof(TaHit) * ranking.size);

	if (query->stage != TA_STAGE_ANY)
	{
		require(&ranking, TA_STAGE_FULL);
		rank(&ranking);
		ranked = true;
	}
	if (query->stage == TA_STAGE_AUTO)
		query->stage = ranking.nhits < search->enough && pg_popcount32(query->known) > 1 ? TA_STAGE_ANY : TA_STAGE_FULL;
	if (query->stage == TA_STAGE_ANY)
	{
		require(&ranking, TA_STAGE_ANY);
		if (query->sort == TA_SORT_RELEVANCE && ranked)
			ranking.most = pg_popcount32(query->known) - 1; /* those with all words are known by now */
		else
			ranking.nhits = 0;
		rank(&ranking);
	}

	qsort(ranking.hits, ranking.nhits, sizeof(TaHit), compare_hits);
	*count = Min(ranking.nhits, limit);
	return ranking.hits;
}

static int
compare_by_sales(const void *a, const void *b)
{
	const TaHit *x = (const TaHit *) a;
	const TaHit *y = (const TaHit *) b;

	if (x->key != y->key)
		return x->key > y->key ? -1 : 1;
	return memcmp(&x->id, &y->id, UUID_LEN);
}

/*
 * ta_top_popular
 *		Products with all words of a query, those that sell best first; after
 *		those that are known to sell well, the others by relevance.
 */
TaHit *
ta_top_popular(TaSearch *search, TaQuery *query, int limit, int *count)
{
	Ranking ranking;
	TaHit  *hits = palloc(sizeof(TaHit) * (Max(limit, 1) + TA_POPULAR_MAX * (Size) Max(search->nsegments, 1)));
	TaHit  *others;
	int		nhits = 0;
	int		nothers;

	*count = 0;
	if (query->empty_filter || (query->nwords > 0 && query->known == 0))
		return hits;
	ta_read_popular(search);
	ranking_open(&ranking, search, query);
	require(&ranking, TA_STAGE_FULL);
	for (int s = 0; s < search->nsegments; s++)
	{
		TaSegment *segment = &search->segments[s];
		int		   found = 0;

		for (int i = 0; i < segment->npopular && found < limit; i++)
		{
			int32		   doc = segment->popular[i].doc;
			const TaChunk *chunk = doc < segment->documents ? ta_chunk(search, s, doc / TA_CHUNK_SIZE) : NULL;
			int			   at = doc % TA_CHUNK_SIZE;
			int			   recent;
			bool		   fits = true;

			if (chunk == NULL || at >= chunk->count)
				continue;
			recent = search->nrecents > 0 ? ta_find_recent(search, &chunk->ids[at]) : -1;
			if (recent < 0 && (chunk->live & (UINT64CONST(1) << at)) == 0)
				continue;
			if (recent >= 0)
			{
				uint32 mask = 0;

				for (int l = 0; l < query->nlists; l++)
				{
					if (ta_recent_impact(&search->recents[recent], query->lists[l].term, query->lists[l].length, query->lists[l].hash) >= 0)
						mask |= query->lists[l].mask;
				}
				fits = (mask & ranking.required) == ranking.required && (mask & TA_EXCLUDED_BIT) == 0;
			}
			for (int p = 0; recent < 0 && p < ranking.nparts && fits; p++)
				fits = has_part(&ranking, &ranking.parts[p], s, doc);
			if (!fits || (recent < 0 && has_part(&ranking, &ranking.excluded, s, doc)))
				continue;
			memset(&hits[nhits], 0, sizeof(TaHit));
			hits[nhits].key = (int64) segment->popular[i].sold;
			hits[nhits++].id = chunk->ids[at];
			found++;
		}
	}
	qsort(hits, nhits, sizeof(TaHit), compare_by_sales);
	nhits = Min(nhits, limit);
	if (nhits < limit)
	{
		others = ta_top(search, query, limit + nhits, NULL, &nothers);
		for (int i = 0; i < nothers && nhits < limit; i++)
		{
			bool known = false;

			for (int k = 0; k < nhits && !known; k++)
				known = memcmp(&hits[k].id, &others[i].id, UUID_LEN) == 0;
			if (!known)
				hits[nhits++] = others[i];
		}
	}
	*count = nhits;
	return hits;
}

/*
 * ta_visit
 *		Shows a visitor every product that matches, in no order.  The query's
 *		stage must be settled.  with_stock: the visitor wants to know of it.
 */
void
ta_visit(TaSearch *search, TaQuery *query, bool with_stock, TaVisitor visitor, void *arg)
{
	Ranking ranking;

	if (query->empty_filter || (query->nwords > 0 && query->known == 0))
		return;
	ranking_open(&ranking, search, query);
	ranking.limit = PG_INT32_MAX;
	ranking.visitor = visitor;
	ranking.visitor_arg = arg;
	ranking.with_stock = with_stock;
	require(&ranking, query->stage);
	rank(&ranking);
}
