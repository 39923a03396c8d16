/*-------------------------------------------------------------------------
 *
 * search.h
 *	  What the files of the search room share; the room's design is told in
 *	  docs/search.md.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SEARCH_H
#define TECHALLY_SEARCH_H

#include "postgres.h"

#include "access/genam.h"
#include "access/htup.h"
#include "access/relscan.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/palloc.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define UINT32CONST(x) ((uint32) x##U)

#define TA_WORD_MAX		 64	 /* bytes of a term that tell it from others */
#define TA_TERM_MAX		 256 /* bytes of any term */
#define TA_BLOCK_SIZE	 256 /* postings in a row of search_postings */
#define TA_CHUNK_SIZE	 60	 /* products in a row of search_documents */
#define TA_RANGE		 512 /* documents for which the greatest impact of a term is known */
#define TA_RANGE_WORDS	 (TA_RANGE / 64)
#define TA_MAX_WORDS	 16 /* words of a query that count */
#define TA_MAX_LISTS	 64 /* terms that those words can stand for */
#define TA_IMPACT_MAX	 255
#define TA_EXACT		 '='  /* before words that stand as they are written */
#define TA_WEIGHT_SCALE	 64	  /* of a term's weight, which is a whole number */
#define TA_ENOUGH		 10	  /* full matches below which others are shown, too, */
#define TA_ENOUGH_OF	 2000 /* at most; one more for so many products of the store */
#define TA_K1			 2.0
#define TA_HEAD			 1.5  /* what the word of a name counts that says what the thing is */
#define TA_LENGTH_BEFORE 40.0 /* recorded length that goes with the lengths of the fields */

/* What ta_draft expects of a product p and its brand b. */
#define TA_DOCUMENT_COLUMNS                                                                           \
	"p.id, p.name, p.sku, p.short_description, p.description, p.tags, p.attributes,"                  \
	" (p.price * 100)::pg_catalog.int8, p.created_at, p.category_id, p.brand_id, b.name, p.language," \
	" (SELECT pg_catalog.string_agg(v.sku || ' ' || v.name, ' ' ORDER BY v.sku)"                      \
	"    FROM @store@.product_variants v"                                                             \
	"   WHERE v.product_id = p.id AND v.is_active AND v.deleted_at IS NULL)"
#define TA_VISIBLE "p.is_active AND p.is_published AND p.deleted_at IS NULL"

/* One word of a text. */
typedef struct TaToken
{
	const char *term; /* what is indexed */
	int			term_length;
	const char *surface; /* as it stood there, in lower case */
	int			surface_length;
	int			start; /* byte where it begins in the text, and ends */
	int			end;
	int			position;
	bool		joined; /* the whole of a word with a hyphen or the like in it */
} TaToken;

typedef void (*TaTokenSink)(const TaToken *token, void *arg);

/* What a document says of one term. */
typedef struct TaTerm
{
	const char *text;
	int			length;
	uint32		hash;
	uint8		impact;
} TaTerm;

/* A product as search knows it. */
typedef struct TaDocument
{
	pg_uuid_t id;
	int64	  price;   /* in hundredths */
	int32	  created; /* seconds since 2000 */
	float4	  popularity;
	int		  nterms;
	TaTerm	 *terms;
	int		  head; /* of terms: what the name says the product is; -1: nothing */
} TaDocument;

/* A part of the index: a set of documents, numbered in the order of their keys. */
typedef struct TaSegment
{
	int32			  segment;
	int32			  documents;
	int				  npopular;		 /* once ta_read_popular was called */
	struct TaPopular *popular;		 /* the best first */
	uint64			  postings_part; /* where a session remembers its postings */
	uint64			  documents_part;
} TaSegment;

/* A product whose entry is newer than the segments; no terms: it is not found. */
typedef struct TaRecent
{
	pg_uuid_t	id;
	int64		version;
	int64		price;
	int32		created;
	float4		popularity;
	bool		removed;
	int			nterms;
	const char *packed;
} TaRecent;

/* An index read by its leading columns. */
typedef struct TaIndexReader
{
	Relation		rel;
	Relation		index;
	IndexScanDesc	scan;
	TupleTableSlot *slot;
	union
	{
		int32 align;
		char  data[VARHDRSZ + TA_TERM_MAX];
	} key; /* the scan points here as long as it goes on */
} TaIndexReader;

/* A row of search_postings. */
typedef struct TaBlock
{
	int32 segment;
	int32 last;
	int32 total; /* of the term in the segment */
	int	  count;
	int	  max; /* greatest impact in it */
	int32 docs[TA_BLOCK_SIZE];
	uint8 impacts[TA_BLOCK_SIZE];
} TaBlock;

/* A row of search_documents. */
typedef struct TaChunk
{
	int32	  segment; /* 0: none is loaded */
	int32	  chunk;
	int		  count;
	uint64	  live;
	pg_uuid_t ids[TA_CHUNK_SIZE];
	int64	  prices[TA_CHUNK_SIZE];
	int32	  created[TA_CHUNK_SIZE];
	float4	  popularity[TA_CHUNK_SIZE];
} TaChunk;

/*
 * The postings of a term in a segment, all of them, as a session keeps them;
 * memory is search_cache.c's.  Of a term that many documents have, a bit for
 * each document and the number of postings before each range; of others, the
 * documents.
 */
typedef struct TaPostings
{
	int			total;
	int32	   *docs;	/* NULL where there are bits */
	uint64	   *bits;	/* up to a whole range */
	uint32	   *ranks;	/* postings before each range; NULL where they are few */
	uint16	   *before; /* postings of the range before each word of bits */
	uint8	   *impacts;
	uint8	   *ranges; /* greatest impact in each range; NULL where documents are few */
	const char *term;
} TaPostings;

/* A product of a segment that sells well, as search_segments keeps it. */
typedef struct TaPopular
{
	int32  doc;
	float4 sold;
} TaPopular;
#define TA_POPULAR_MAX 1024 /* of a segment */

/* The search tables of a store, open for one call. */
typedef struct TaSearch
{
	Oid				nspid;
	Snapshot		snapshot;
	Oid				config;
	double			average; /* recorded length of a document */
	int				enough;	 /* with fewer full matches others are shown, too */
	int				nsegments;
	TaSegment	   *segments; /* in order */
	int				nrecents;
	TaRecent	   *recents; /* by key */
	int64			ndocuments;
	Relation		products;
	TaIndexReader	product_rows;
	TaIndexReader	postings; /* its reader is only for ta_list_open to copy from */
	TaIndexReader	chunks;
	TaIndexReader	stock;
	bool			has_stock;
	TaChunk			chunk;
	struct HTAB	   *in_stock; /* of all products, once asking one by one was too much */
	int				asked;
	bool			expired_asked; /* whether there are expired reservations */
	bool			expired;
	TimestampTz		now;
	bool			popular_read;
	bool			prices_read;
	int				nprices;
	struct TaPrice *prices;	 /* by key */
	struct HTAB	   *ratings; /* average of each product, once ta_read_ratings was called */

	MemoryContextCallback gone;
	bool				  counted; /* as one of those that are open */
} TaSearch;

/* A price that is newer than the segments. */
typedef struct TaPrice
{
	pg_uuid_t id;
	int64	  price;
} TaPrice;

/* search_text.c */
extern void	 ta_search_text_init(void);
extern Oid	 ta_search_config(const char *name);
extern char *ta_search_config_name(Oid config);
extern int	 ta_exact_form(const TaToken *token, char *exact);
extern void	 ta_tokenize(Oid config, const char *text, int length, TaTokenSink sink, void *arg);

/* search_read.c */
extern TaSearch		  *ta_search_open(Oid nspid);
extern void			   ta_search_settings(Oid nspid, Oid *config, double *length, int *enough);
extern void			   ta_search_close(TaSearch *search);
extern Oid			   ta_search_table(Oid nspid, const char *name);
extern TupleTableSlot *ta_product_row(TaSearch *search, const pg_uuid_t *id);
extern bool			   ta_products_are_plain(TaSearch *search);
extern Relation		   ta_search_documents(TaSearch *search);
extern void			   ta_list_open(TaSearch *search, TaIndexReader *reader, int nkeys);
extern void			   ta_list_close(TaIndexReader *reader);
extern bool			   ta_list_seek(TaIndexReader *reader, const char *term, int length, int32 segment,
									int32 doc, TaBlock *block);
extern bool			   ta_list_next(TaIndexReader *reader, TaBlock *block);
extern void			   ta_list_decode(TaIndexReader *reader, TaBlock *block);
extern bool			   ta_load_chunk(TaSearch *search, int32 segment, int32 chunk);
extern void			   ta_read_chunk(TupleTableSlot *slot, TaChunk *chunk);
extern int			   ta_find_recent(TaSearch *search, const pg_uuid_t *id);
extern int			   ta_recent_impact(const TaRecent *recent, const char *term, int length, uint32 hash);
extern const char	  *ta_recent_term(const TaRecent *recent, int i, int *length);
extern int64		   ta_document_frequency(TaSearch *search, const char *term, int length);
extern int64		   ta_price(TaSearch *search, const pg_uuid_t *id, int64 price);
extern bool			   ta_read_ratings(TaSearch *search);
extern int32		   ta_rating(TaSearch *search, const pg_uuid_t *id);
extern void			   ta_read_popular(TaSearch *search);
extern bool			   ta_in_stock(TaSearch *search, const pg_uuid_t *id);
extern bool			   ta_next_term(TaIndexReader *reader, const char *from, int length, bool inclusive,
									char *term, int *term_length);

/* search_cache.c */
extern void				 ta_search_cache_init(void);
extern void				 ta_cache_begin(TaSearch *search);
extern void				 ta_cache_end(TaSearch *search);
extern uint64			 ta_cache_part(Oid relid, int32 segment, int64 created_at, int64 refreshed_at);
extern const TaChunk	*ta_chunk(TaSearch *search, int s, int32 number);
extern int				 ta_first_posting(const TaPostings *postings, int32 doc);
extern int				 ta_posting_of(const TaPostings *postings, int32 doc);
extern int32			 ta_next_posting(const TaPostings *postings, int32 doc);
extern const TaPostings *ta_postings(TaSearch *search, int s, const char *term, int length, uint32 hash);

/* search_document.c */
typedef struct TaDrafts TaDrafts;
extern TaDrafts		   *ta_drafts_open(Oid nspid, Oid config, double average);
extern void				ta_draft(TaDrafts *drafts, HeapTuple row, TupleDesc desc, TaDocument *document);
extern char			   *ta_property(char kind, const char *name, int name_length,
									const char *value, int value_length, int *length);

extern uint32 ta_term_hash(const char *term, int length);


/* A term that a query reads, and what it counts for. */
typedef struct TaList
{
	char  *term;
	int	   length;
	uint32 hash;
	uint32 mask;   /* the words of the query that it stands for, or a filter */
	int	   factor; /* of its weight, in 64ths */
	int64  df;
	int32  weight; /* per unit of impact; 0 for a filter */
} TaList;

typedef struct TaPhrase
{
	int	   count;
	char  *terms[TA_MAX_WORDS];
	int	   lengths[TA_MAX_WORDS];
	uint32 mask;
} TaPhrase;

/* Bits of a mask. */
#define TA_FILTER_BIT	16 /* the first filter's; words have those before */
#define TA_MAX_FILTERS	14
#define TA_EXCLUDED_BIT (UINT32CONST(1) << 31)

/* Another order than that of relevance. */
typedef enum TaSort
{
	TA_SORT_RELEVANCE,
	TA_SORT_PRICE,
	TA_SORT_PRICE_DESC,
	TA_SORT_NEWEST,
	TA_SORT_BEST_SELLING,
	TA_SORT_RATING
} TaSort;

/* Which products match: those with all words, or with any. */
typedef enum TaStage
{
	TA_STAGE_AUTO,
	TA_STAGE_FULL,
	TA_STAGE_ANY
} TaStage;

/* A query, taken apart. */
typedef struct TaQuery
{
	TaStage		stage;
	int			nwords;
	const char *words[TA_MAX_WORDS]; /* as they count, corrected */
	int			word_starts[TA_MAX_WORDS];
	int			word_ends[TA_MAX_WORDS];
	uint32		known; /* words that some term stands for */
	int			nlists;
	TaList		lists[TA_MAX_LISTS];
	int			nphrases;
	TaPhrase	phrases[4];
	uint32		filters;	  /* bits of filters that must hold */
	bool		empty_filter; /* one of them cannot hold */
	int64		price_min;
	int64		price_max;
	bool		in_stock;
	int32		rating_min; /* in millionths; 0: any, or none at all */
	bool		prices;		/* they matter: those of search_prices are read */
	TaSort		sort;
	char	   *correction; /* the query as it was understood, NULL: as it stands */
} TaQuery;

/* A product that was found. */
typedef struct TaHit
{
	int		  coverage; /* words of the query that it has */
	bool	  stock;
	int64	  key; /* of another order than that of relevance, greater first */
	int32	  score;
	pg_uuid_t id;
	int		  segment; /* index into search->segments, -1: recent */
	int32	  doc;
} TaHit;

/*
 * Is told of every product that matches: doc is its number in the segment, or
 * in search->recents where segment is -1.  False: that is enough.
 */
typedef bool (*TaVisitor)(const TaHit *hit, int segment, int32 doc, int64 price, void *arg);

/* search_query.c */
extern TaQuery *ta_parse_query(TaSearch *search, const char *text, int length, bool correct);
extern void		ta_add_filter(TaSearch *search, TaQuery *query, int filter, const char *term, int length);
extern char	   *ta_surface(TaSearch *search, const char *term, int length);
extern int32	ta_weight(TaSearch *search, int64 df, int factor);

/* search_rank.c */
extern TaHit *ta_top(TaSearch *search, TaQuery *query, int limit, const TaHit *after, int *count);
extern TaHit *ta_top_popular(TaSearch *search, TaQuery *query, int limit, int *count);
extern void	  ta_visit(TaSearch *search, TaQuery *query, bool with_stock, TaVisitor visitor, void *arg);
extern int	  ta_compare_hits(const TaHit *a, const TaHit *b);
extern float4 ta_rank(int32 score);

#endif /* TECHALLY_SEARCH_H */
