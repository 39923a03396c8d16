/*-------------------------------------------------------------------------
 *
 * search_query.c
 *	  What a shopper typed, taken apart: words, phrases, exclusions, and the
 *	  terms that each word can stand for.
 *
 * Words go through the same rules as products (search_text.c).  A word stands
 * for its own term; two words that the store also writes as one ("head set")
 * for that, too; so do synonyms.  A word that the store does not know is taken
 * apart if both parts are known ("43.2cm"), or corrected to the known word
 * nearest to it.  Nothing that can be typed is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "array_util.h"
#include "compat.h"
#include "search.h"
#include "spi_util.h"

#define QUERY_MAX 4096 /* bytes that are read */

typedef struct Parser
{
	TaSearch *search;
	TaQuery	 *query;
	bool	  excluded;
	TaPhrase *phrase;
	int		  offset; /* of the piece in the query */
	bool	  stop_words;
	int		  first_of_chunk; /* word bits of the chunk, for its joined form */
	/* surface of each word, and whether the next one followed it directly */
	char *surfaces[TA_MAX_WORDS];
	bool  codes[TA_MAX_WORDS];
	int	  positions[TA_MAX_WORDS];
} Parser;

/*
 * ta_weight
 *		What a unit of impact counts for a term: its inverse document frequency.
 */
int32
ta_weight(TaSearch *search, int64 df, int factor)
{
	double n = (double) Max(search->ndocuments, df);
	double idf = log(1 + (n - df + 0.5) / (df + 0.5));

	return Max(1, (int32) rint(idf * TA_WEIGHT_SCALE * factor / 64));
}

/* Lets a term stand for words; one that stands for them already is left. */
static bool
add_list(TaSearch *search, TaQuery *query, const char *term, int length, uint32 mask, int factor, int64 df)
{
	TaList *list;

	for (int i = 0; i < query->nlists; i++)
	{
		list = &query->lists[i];
		if (list->length == length && memcmp(list->term, term, length) == 0 &&
			(list->mask & mask) == mask)
			return true;
	}
	if (query->nlists == TA_MAX_LISTS || df == 0)
		return false;
	list = &query->lists[query->nlists++];
	list->term = pnstrdup(term, length);
	list->length = length;
	list->hash = ta_term_hash(term, length);
	list->mask = mask;
	list->factor = factor;
	list->df = df;
	list->weight = factor == 0 ? 0 : ta_weight(search, df, factor);
	query->known |= mask & ((UINT32CONST(1) << TA_FILTER_BIT) - 1);
	return true;
}

/*
 * ta_add_filter
 *		Lets a property be one of those that satisfy a filter.
 */
void
ta_add_filter(TaSearch *search, TaQuery *query, int filter, const char *term, int length)
{
	uint32 bit = UINT32CONST(1) << (TA_FILTER_BIT + filter);

	query->filters |= bit;
	(void) add_list(search, query, term, length, bit, 0, ta_document_frequency(search, term, length));
}

static bool
has_digit(const char *word, int length)
{
	for (int i = 0; i < length; i++)
	{
		if (word[i] >= '0' && word[i] <= '9')
			return true;
	}
	return false;
}

static void
parse_token(const TaToken *token, void *arg)
{
	Parser	*parser = (Parser *) arg;
	TaQuery *query = parser->query;
	int		 word;
	int64	 df;
	char	 exact[TA_TERM_MAX];
	int		 exact_length;
	int64	 exact_df;

	if (parser->excluded)
	{
		if (token->term_length > 0 && !token->joined)
			(void) add_list(parser->search, query, token->term, token->term_length, TA_EXCLUDED_BIT, 0,
							ta_document_frequency(parser->search, token->term, token->term_length));
		return;
	}
	if (token->joined)
	{
		uint32 mask = 0;

		/* its parts are the words since */
		for (int w = 0; w < query->nwords; w++)
		{
			if (query->word_starts[w] >= parser->offset + token->start && query->word_ends[w] <= parser->offset + token->end)
				mask |= UINT32CONST(1) << w;
		}
		if (mask != 0 && pg_popcount32(mask) > 1)
			(void) add_list(parser->search, query, token->term, token->term_length, mask, 64,
							ta_document_frequency(parser->search, token->term, token->term_length));
		return;
	}
	if (token->term_length == 0)
	{
		parser->stop_words = true;
		return;
	}
	if (parser->phrase != NULL && parser->phrase->count < TA_MAX_WORDS)
	{
		parser->phrase->terms[parser->phrase->count] = pnstrdup(token->term, token->term_length);
		parser->phrase->lengths[parser->phrase->count++] = token->term_length;
	}

	/* a word that is there twice counts once */
	for (int w = 0; w < query->nwords; w++)
	{
		if (strlen(query->words[w]) == (size_t) token->term_length &&
			memcmp(query->words[w], token->term, token->term_length) == 0)
			return;
	}
	if (query->nwords == TA_MAX_WORDS)
		return;
	word = query->nwords++;
	query->words[word] = pnstrdup(token->term, token->term_length);
	query->word_starts[word] = parser->offset + token->start;
	query->word_ends[word] = parser->offset + token->end;
	parser->surfaces[word] = pnstrdup(token->surface, token->surface_length);
	parser->codes[word] = has_digit(token->surface, token->surface_length);
	parser->positions[word] = token->position + parser->offset * 4;
	df = ta_document_frequency(parser->search, token->term, token->term_length);
	if (!add_list(parser->search, query, token->term, token->term_length, UINT32CONST(1) << word, 64, df))
		return;

	/* other words of its stem count by half where the store has it as it is typed */
	exact_length = ta_exact_form(token, exact);
	exact_df = exact_length > 0 ? ta_document_frequency(parser->search, exact, exact_length) : 0;
	if (exact_df > 0)
	{
		TaList *stem = &query->lists[query->nlists - 1];
		int32	weight = stem->weight;

		if (add_list(parser->search, query, exact, exact_length, stem->mask, 32, exact_df))
		{
			stem->factor = 32;
			stem->weight = Max(1, weight / 2);
			query->lists[query->nlists - 1].weight = Max(1, weight - stem->weight);
		}
	}
}

/* The length of a quotation mark at a place, 0: there is none. */
static int
quote_at(const char *at, int left)
{
	if (*at == '"')
		return 1;
	if (left >= 3 && GetDatabaseEncoding() == PG_UTF8 &&
		(memcmp(at, "\xE2\x80\x9C", 3) == 0 || memcmp(at, "\xE2\x80\x9D", 3) == 0 ||
		 memcmp(at, "\xE2\x80\x9E", 3) == 0))
		return 3;
	return 0;
}

static void
parse_piece(Parser *parser, const char *text, int start, int end, bool excluded, bool phrase)
{
	TaQuery *query = parser->query;

	if (end <= start)
		return;
	parser->excluded = excluded;
	parser->offset = start;
	parser->phrase = NULL;
	if (phrase && !excluded && query->nphrases < (int) lengthof(query->phrases))
	{
		parser->phrase = &query->phrases[query->nphrases];
		parser->phrase->count = 0;
	}
	ta_tokenize(parser->search->config, text + start, end - start, parse_token, parser);
	if (parser->phrase != NULL && parser->phrase->count > 1)
		query->nphrases++;
	parser->phrase = NULL;
	parser->excluded = false;
}

/* Cuts the query into phrases, exclusions and the rest. */
static void
parse_pieces(Parser *parser, const char *text, int length)
{
	int	 from = 0;
	bool after_space = true;

	for (int at = 0; at < length;)
	{
		int quote = quote_at(text + at, length - at);

		if (quote > 0)
		{
			int	 close = at + quote;
			int	 closing = 0;
			bool minus = at > 0 && text[at - 1] == '-' && (at == 1 || (unsigned char) text[at - 2] <= ' ');

			while (close < length && (closing = quote_at(text + close, length - close)) == 0)
				close += pg_mblen(text + close);
			parse_piece(parser, text, from, at, false, false);
			if (close < length)
			{
				parse_piece(parser, text, at + quote, close, minus, true);
				at = close + closing;
			}
			else
				at += quote; /* it is never closed: it says nothing */
			from = at;
			after_space = false;
			continue;
		}
		if (text[at] == '-' && after_space && at + 1 < length && (unsigned char) text[at + 1] > ' ' &&
			text[at + 1] != '-' && quote_at(text + at + 1, length - at - 1) == 0)
		{
			int end = at + 1;

			while (end < length && (unsigned char) text[end] > ' ')
				end++;
			parse_piece(parser, text, from, at, false, false);
			parse_piece(parser, text, at + 1, end, true, false);
			from = at = end;
			continue;
		}
		after_space = (unsigned char) text[at] <= ' ';
		at += pg_mblen(text + at);
	}
	parse_piece(parser, text, from, length, false, false);
}

static const TaStatement read_synonyms = {
	"SELECT s.term, s.synonym, s.one_way FROM @store@.search_synonyms s"
	" WHERE pg_catalog.lower(s.term) = ANY ($1) OR (NOT s.one_way AND pg_catalog.lower(s.synonym) = ANY ($1))"
	" ORDER BY s.term, s.synonym",
	1,
	{TEXTARRAYOID}};

typedef struct SynonymWords
{
	int	  count;
	char *terms[4];
	int	  lengths[4];
} SynonymWords;

static void
collect_synonym(const TaToken *token, void *arg)
{
	SynonymWords *words = (SynonymWords *) arg;

	if (token->joined || token->term_length == 0)
		return;
	if (words->count < (int) lengthof(words->terms))
	{
		words->terms[words->count] = pnstrdup(token->term, token->term_length);
		words->lengths[words->count] = token->term_length;
	}
	words->count++;
}

/*
 * Synonyms.  A one-way entry replaces: what it says stands for the word in
 * place of the word itself.  One of several words stands for the word where
 * the store writes them as one; else its rarest word does.
 */
static void
add_synonyms(Parser *parser)
{
	TaSearch	 *search = parser->search;
	TaQuery		 *query = parser->query;
	Oid			  relid = get_relname_relid("search_synonyms", search->nspid);
	Relation	  rel;
	bool		  empty;
	char		 *asked[TA_MAX_WORDS * 2];
	int			  nasked = 0;
	uint32		  masks[TA_MAX_WORDS * 2];
	TaFrame		  frame;
	Datum		  values[1];
	uint64		  rows;
	MemoryContext caller = CurrentMemoryContext;

	if (!OidIsValid(relid) || query->nwords == 0)
		return;
	rel = table_open(relid, AccessShareLock);
	empty = RelationGetNumberOfBlocks(rel) == 0;
	table_close(rel, NoLock);
	if (empty)
		return;

	for (int w = 0; w < query->nwords; w++)
	{
		asked[nasked] = parser->surfaces[w];
		masks[nasked++] = UINT32CONST(1) << w;
		if (w + 1 < query->nwords)
		{
			asked[nasked] = psprintf("%s %s", parser->surfaces[w], parser->surfaces[w + 1]);
			masks[nasked++] = UINT32CONST(3) << w;
		}
	}
	values[0] = ta_text_array((const char *const *) asked, nasked);
	ta_frame_begin(&frame, ta_relation_owner(relid));
	rows = ta_query(search->nspid, &read_synonyms, values, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		char *sides[2] = {ta_spi_text(i, 1), ta_spi_text(i, 2)};
		bool  isnull;
		bool  one_way = DatumGetBool(ta_spi_value(i, 3, &isnull));

		for (int side = 0; side < (one_way ? 1 : 2); side++)
		{
			char *said = str_tolower(sides[side], strlen(sides[side]), DEFAULT_COLLATION_OID);

			for (int a = 0; a < nasked; a++)
			{
				SynonymWords  words = {0};
				MemoryContext spi_context;
				int			  best = -1;
				int64		  best_df = 0;

				if (strcmp(asked[a], said) != 0)
					continue;
				spi_context = MemoryContextSwitchTo(caller);
				ta_tokenize(search->config, sides[1 - side], strlen(sides[1 - side]), collect_synonym, &words);
				for (int t = 0; t < Min(words.count, (int) lengthof(words.terms)); t++)
				{
					int64 df = ta_document_frequency(search, words.terms[t], words.lengths[t]);

					if (df > 0 && (best < 0 || df < best_df))
					{
						best = t;
						best_df = df;
					}
				}
				if (best >= 0)
				{
					if (one_way)
					{
						/* the word itself no longer counts */
						for (int l = 0; l < query->nlists; l++)
						{
							if ((query->lists[l].mask & TA_EXCLUDED_BIT) == 0 && (query->lists[l].mask & ~masks[a]) == 0)
							{
								query->lists[l] = query->lists[--query->nlists];
								l--;
							}
						}
					}
					(void) add_list(search, query, words.terms[best], words.lengths[best], masks[a], one_way ? 64 : 56, best_df);
				}
				MemoryContextSwitchTo(spi_context);
			}
		}
	}
	ta_frame_end(&frame);
}

typedef struct OneTerm
{
	int	 count;
	char term[TA_WORD_MAX];
	int	 length;
} OneTerm;

static void
take_term(const TaToken *token, void *arg)
{
	OneTerm *one = (OneTerm *) arg;

	if (token->joined)
		return;
	one->count++;
	one->length = Min(token->term_length, TA_WORD_MAX);
	memcpy(one->term, token->term, one->length);
}

/* The term of a single word; false where it is none, or several. */
static bool
term_of(TaSearch *search, const char *word, int length, OneTerm *one)
{
	one->count = 0;
	ta_tokenize(search->config, word, length, take_term, one);
	return one->count == 1 && one->length > 0;
}

/* Two words that the store writes as one. */
static void
add_joined_words(Parser *parser)
{
	TaQuery *query = parser->query;

	for (int w = 0; w + 1 < query->nwords; w++)
	{
		char   *joined;
		OneTerm one;

		if (parser->positions[w + 1] != parser->positions[w] + 1)
			continue;
		joined = psprintf("%s%s", parser->surfaces[w], parser->surfaces[w + 1]);
		if (strlen(joined) > 32 || !term_of(parser->search, joined, strlen(joined), &one))
			continue;
		(void) add_list(parser->search, query, one.term, one.length, UINT32CONST(3) << w, 64,
						ta_document_frequency(parser->search, one.term, one.length));
	}
}

/* A word that the store writes as two: both must be there. */
static bool
split_word(Parser *parser, int word)
{
	TaSearch   *search = parser->search;
	TaQuery	   *query = parser->query;
	const char *surface = parser->surfaces[word];
	int			length = strlen(surface);
	int			best = -1;
	int64		best_df = 0;
	OneTerm		one;

	if (length < 3 || length > 32 || query->nwords == TA_MAX_WORDS)
		return false;
	for (int at = 1; at < length; at++)
	{
		OneTerm other;
		int64	df;
		bool	boundary = (surface[at - 1] >= '0' && surface[at - 1] <= '9') != (surface[at] >= '0' && surface[at] <= '9');

		if ((unsigned char) surface[at] >= 0x80 && (surface[at] & 0xC0) == 0x80)
			continue;
		/* between letters and digits anywhere, between letters in long words */
		if (parser->codes[word] ? !boundary : (length < 6 || at < 3 || length - at < 3))
			continue;
		if (!term_of(search, surface, at, &one) || !term_of(search, surface + at, length - at, &other))
			continue;
		df = Min(ta_document_frequency(search, one.term, one.length),
				 ta_document_frequency(search, other.term, other.length));
		if (df > best_df)
		{
			best = at;
			best_df = df;
		}
	}
	if (best < 0)
		return false;

	for (int part = 0; part < 2; part++)
	{
		int w = part == 0 ? word : query->nwords++;

		(void) term_of(search, part == 0 ? surface : surface + best, part == 0 ? best : length - best, &one);
		query->words[w] = pnstrdup(one.term, one.length);
		query->word_starts[w] = query->word_starts[word];
		query->word_ends[w] = query->word_ends[word];
		parser->surfaces[w] = pnstrdup(part == 0 ? surface : surface + best, part == 0 ? best : length - best);
		parser->codes[w] = true; /* no typo */
		parser->positions[w] = -2;
		(void) add_list(search, query, one.term, one.length, UINT32CONST(1) << w, 64,
						ta_document_frequency(search, one.term, one.length));
	}
	return true;
}

/*
 * Typos
 */

#define TYPO_MAX 32 /* characters of a word that can be corrected */

#define ENDING_MAX 3 /* characters that a language may take off a word's end */

typedef struct Correction
{
	const char		   *word; /* as it was typed, in lower case */
	int					length;
	const unsigned int *wanted; /* its characters */
	int					nwanted;
	int					ends[TYPO_MAX + 1]; /* bytes of so many of them */
	int					stem;				/* characters of its term, where it begins with that; 0 */
	int					max;
	char				best[TA_TERM_MAX];
	int					best_length;
	int					best_distance;
	bool				best_begins; /* with the same letter */
	int64				best_df;
	/* rows of the table of distances, one a character of the term at hand */
	int			 rows[TYPO_MAX + 4][TYPO_MAX + 1];
	unsigned int chars[TYPO_MAX + 4];
	int			 nrows; /* of chars whose row is filled */
} Correction;

static int
to_chars(const char *word, int length, unsigned int *chars, int max)
{
	int n = 0;

	for (int at = 0; at < length;)
	{
		int			 width = Min(pg_mblen(word + at), length - at);
		unsigned int c = 0;

		if (n == max)
			return -1;
		for (int i = 0; i < width; i++)
			c = (c << 8) | (unsigned char) word[at + i];
		chars[n++] = c;
		at += width;
	}
	return n;
}

/*
 * Fills the table of distances to a term: insertions, deletions, replacements and
 * swaps of neighbours; its last row has those to every beginning of the word that
 * was typed.  Rows that the last term's beginning shares are kept.  Returns
 * the number of characters after which no term can be near enough, -1: none.
 */
static int
measure(Correction *c, const unsigned int *chars, int n)
{
	int same = 0;

	while (same < c->nrows && same < n && c->chars[same] == chars[same])
		same++;
	c->nrows = same;
	for (int i = same; i < n; i++)
	{
		int *row = c->rows[i + 1];
		int *above = c->rows[i];
		int	 least;

		c->chars[i] = chars[i];
		row[0] = least = i + 1;
		for (int j = 1; j <= c->nwanted; j++)
		{
			int cost = chars[i] == c->wanted[j - 1] ? 0 : 1;
			int d = Min(Min(above[j] + 1, row[j - 1] + 1), above[j - 1] + cost);

			if (i > 0 && j > 1 && chars[i] == c->wanted[j - 2] && chars[i - 1] == c->wanted[j - 1])
				d = Min(d, c->rows[i - 1][j - 2] + 1);
			row[j] = d;
			least = Min(least, d);
		}
		c->nrows = i + 1;
		/* a swap may still mend what this row and the one above hold */
		if (least > c->max && (i == 0 || least > c->max + 1))
			return i + 1;
	}
	return -1;
}

/*
 * Considers a term of n characters that was measured.  Terms are stems, and what
 * was typed wrong has another one than the word that was meant: so the term may
 * also be near to the word without an ending, where the language would take that
 * ending off the term, too ("cche": "cach" with an e).  Of equal distances the
 * one with the same first letter, then the more frequent.
 */
static void
offer(TaSearch *search, Correction *c, const char *term, int length, int n)
{
	const int *row = c->rows[n];
	int		   limit = c->best_length > 0 ? Min(c->max, c->best_distance) : c->max;
	int		   distance = row[c->nwanted];
	bool	   begins = n > 0 && c->chars[0] == c->wanted[0];
	int64	   df;

	if (c->stem > 0)
		distance = Min(distance, row[c->stem]);
	for (int cut = 1; cut <= ENDING_MAX && c->nwanted - cut >= 3; cut++)
	{
		int		at = c->ends[c->nwanted - cut];
		char	with[TA_TERM_MAX * 2];
		OneTerm one;

		if (row[c->nwanted - cut] >= distance || row[c->nwanted - cut] > limit)
			continue;
		memcpy(with, term, length);
		memcpy(with + length, c->word + at, c->length - at);
		if (term_of(search, with, length + c->length - at, &one) && one.length == length && memcmp(one.term, term, length) == 0)
			distance = row[c->nwanted - cut];
	}
	if (distance > limit)
		return;
	if (c->best_length > 0 && distance == c->best_distance && c->best_begins && !begins)
		return;
	df = ta_document_frequency(search, term, length);
	if (df == 0)
		return;
	if (c->best_length == 0 || distance < c->best_distance || begins != c->best_begins || df > c->best_df)
	{
		memcpy(c->best, term, length);
		c->best_length = length;
		c->best_distance = distance;
		c->best_begins = begins;
		c->best_df = df;
	}
}

/*
 * Finds the known term that is nearest to a word, whose own term is not known;
 * walks the index of terms.
 */
static bool
correct_term(TaSearch *search, const char *word, int length, const char *own, char *result, int *result_length)
{
	Correction	 *c = palloc0(sizeof(Correction));
	unsigned int  wanted[TYPO_MAX];
	unsigned int  chars[TYPO_MAX + 4];
	TaIndexReader reader;
	char		  from[TA_TERM_MAX];
	char		  term[TA_TERM_MAX];
	int			  from_length = 1;
	int			  term_length;
	int			  first; /* bytes of the first letter */
	bool		  inclusive = true;

	c->word = word;
	c->length = length;
	c->wanted = wanted;
	c->nwanted = to_chars(word, length, wanted, TYPO_MAX);
	if (c->nwanted < 4)
		return false;
	c->max = c->nwanted >= 8 ? 2 : 1;
	for (int j = 0; j <= c->nwanted; j++)
	{
		c->rows[0][j] = j;
		if (j < c->nwanted)
			c->ends[j + 1] = c->ends[j] + Min(pg_mblen(word + c->ends[j]), length - c->ends[j]);
		if (j >= 3 && c->ends[j] == (int) strlen(own) && memcmp(own, word, c->ends[j]) == 0)
			c->stem = j;
	}

	/* with two mistakes the first letter is right, which keeps the walk short */
	first = Min(pg_mblen(word), length);
	from_length = c->max > 1 ? first : 1;
	memcpy(from, c->max > 1 ? word : "0", from_length);
	ta_list_open(search, &reader, 1);
	while (ta_next_term(&reader, from, from_length, inclusive, term, &term_length))
	{
		int n;
		int dead;

		CHECK_FOR_INTERRUPTS();
		if (c->max > 1 && (term_length < first || memcmp(term, word, first) != 0))
			break;
		n = memchr(term, ':', term_length) != NULL ? -2 : to_chars(term, term_length, chars, TYPO_MAX + 3);
		memcpy(from, term, term_length);
		from_length = term_length;
		inclusive = false;
		if (n == -2)
		{
			/* properties of one kind: go past them all */
			from_length = (char *) memchr(term, ':', term_length) - term + 1;
			from[from_length - 1] = ':' + 1;
			inclusive = true;
			continue;
		}
		if (term[0] == TA_EXACT)
		{
			/* so with words as they are written: their usual terms are there, too */
			from[0] = TA_EXACT + 1;
			from_length = 1;
			inclusive = true;
			continue;
		}
		if (n < 0)
			continue;
		dead = measure(c, chars, n);
		if (dead >= 0)
		{
			/* skip every term that begins like this one up to there */
			int bytes = 0;

			for (int i = 0; i < dead; i++)
				bytes += Min(pg_mblen(term + bytes), term_length - bytes);
			if (bytes < (int) sizeof(from) - 1)
			{
				from[bytes] = (char) 0xF4; /* no character begins with a greater byte */
				from_length = bytes + 1;
				if (GetDatabaseEncoding() != PG_UTF8)
					from[bytes] = (char) 0x7F;
			}
			continue;
		}
		offer(search, c, term, term_length, n);
	}
	ta_list_close(&reader);

	for (int r = 0; r < search->nrecents; r++)
	{
		TaRecent			*recent = &search->recents[r];
		const unsigned char *lengths;
		const char			*at;

		if (recent->removed)
			continue;
		lengths = (const unsigned char *) recent->packed + 4 + recent->nterms * 5;
		at = (const char *) lengths + recent->nterms;
		for (int i = 0; i < recent->nterms; at += lengths[i], i++)
		{
			int n;

			if (abs((int) lengths[i] - length) > c->max * 4 + ENDING_MAX * 4 || at[0] == TA_EXACT || memchr(at, ':', lengths[i]) != NULL)
				continue;
			n = to_chars(at, lengths[i], chars, TYPO_MAX + 3);
			if (n < 0 || measure(c, chars, n) >= 0)
				continue;
			if (c->best_length == lengths[i] && memcmp(c->best, at, lengths[i]) == 0)
				continue;
			offer(search, c, at, lengths[i], n);
		}
	}
	if (c->best_length == 0)
		return false;
	memcpy(result, c->best, c->best_length);
	*result_length = c->best_length;
	return true;
}

typedef struct SurfaceSearch
{
	const char *term;
	int			length;
	char	   *found;
} SurfaceSearch;

static void
find_surface(const TaToken *token, void *arg)
{
	SurfaceSearch *search = (SurfaceSearch *) arg;

	if (search->found == NULL && !token->joined && token->term_length == search->length &&
		memcmp(token->term, search->term, search->length) == 0)
		search->found = pnstrdup(token->surface, token->surface_length);
}

static const TaStatement select_name = {
	"SELECT pg_catalog.concat_ws(' ', p.name, b.name, c.name, pg_catalog.array_to_string(p.tags, ' '), p.short_description, p.description)"
	"  FROM @store@.products p LEFT JOIN @store@.brands b ON b.id = p.brand_id"
	"  LEFT JOIN @store@.categories c ON c.id = p.category_id WHERE p.id = $1",
	1,
	{UUIDOID}};

/*
 * ta_surface
 *		A term as the store writes it, from the first product that has it; the
 *		term itself where there is none.
 */
char *
ta_surface(TaSearch *search, const char *term, int length)
{
	pg_uuid_t	  id;
	bool		  found = false;
	SurfaceSearch surface = {term, length, NULL};
	uint32		  hash = ta_term_hash(term, length);
	MemoryContext caller = CurrentMemoryContext;

	for (int s = 0; !found && s < search->nsegments; s++)
	{
		const TaPostings *postings = ta_postings(search, s, term, length, hash);

		for (int32 doc = ta_next_posting(postings, 0), tries = 0; !found && doc >= 0 && tries < 256;
			 doc = ta_next_posting(postings, doc + 1), tries++)
		{
			const TaChunk *chunk = ta_chunk(search, s, doc / TA_CHUNK_SIZE);
			int			   at = doc % TA_CHUNK_SIZE;

			if (chunk != NULL && at < chunk->count && (chunk->live & (UINT64CONST(1) << at)) != 0)
			{
				id = chunk->ids[at];
				found = true;
			}
		}
	}
	for (int r = 0; !found && r < search->nrecents; r++)
	{
		if (ta_recent_impact(&search->recents[r], term, length, hash) >= 0)
		{
			id = search->recents[r].id;
			found = true;
		}
	}
	if (found)
	{
		TaFrame frame;
		Datum	values[1] = {UUIDPGetDatum(&id)};

		ta_frame_begin(&frame, ta_relation_owner(ta_search_table(search->nspid, "search_recent")));
		if (ta_query(search->nspid, &select_name, values, NULL) > 0)
		{
			char		 *text = ta_spi_text(0, 1);
			MemoryContext spi_context = MemoryContextSwitchTo(caller);

			ta_tokenize(search->config, text, strlen(text), find_surface, &surface);
			MemoryContextSwitchTo(spi_context);
		}
		ta_frame_end(&frame);
	}
	return surface.found != NULL ? surface.found : pnstrdup(term, length);
}

/* The query with some words written as others. */
static char *
rewrite(const char *text, int length, const int *starts, const int *ends, char *const *words, int count)
{
	StringInfoData buf;
	int			   at = 0;

	initStringInfo(&buf);
	for (int w = 0; w < count; w++)
	{
		if (words[w] == NULL || starts[w] < at)
			continue;
		appendBinaryStringInfo(&buf, text + at, starts[w] - at);
		appendStringInfoString(&buf, words[w]);
		at = ends[w];
	}
	appendBinaryStringInfo(&buf, text + at, length - at);
	return buf.data;
}

/*
 * ta_parse_query
 *		Takes a query apart.  correct: words that are not known are corrected.
 *		Only its first words count, TA_MAX_WORDS of them.
 */
TaQuery *
ta_parse_query(TaSearch *search, const char *text, int length, bool correct)
{
	Parser	 parser = {0};
	TaQuery *query = palloc0(sizeof(TaQuery));
	char	*corrected[TA_MAX_WORDS] = {0};
	bool	 any = false;
	int		 nwords;

	if (length > QUERY_MAX)
		length = pg_mbcliplen(text, length, QUERY_MAX);
	query->price_min = PG_INT64_MIN;
	query->price_max = PG_INT64_MAX;
	parser.search = search;
	parser.query = query;
	parse_pieces(&parser, text, length);
	add_joined_words(&parser);
	add_synonyms(&parser);

	nwords = query->nwords;
	for (int w = 0; w < nwords; w++)
	{
		char term[TA_TERM_MAX];
		int	 term_length;

		if (query->known & (UINT32CONST(1) << w))
			continue;
		if (split_word(&parser, w))
			continue;
		if (!correct || parser.codes[w] || query->nphrases > 0)
			continue;
		if (!correct_term(search, parser.surfaces[w], strlen(parser.surfaces[w]), query->words[w], term, &term_length))
			continue;
		(void) add_list(search, query, term, term_length, UINT32CONST(1) << w, 64,
						ta_document_frequency(search, term, term_length));
		corrected[w] = ta_surface(search, term, term_length);
		any = true;
	}
	if (any)
		query->correction = rewrite(text, length, query->word_starts, query->word_ends, corrected, nwords);
	return query;
}
