/*-------------------------------------------------------------------------
 *
 * search_text.c
 *	  Taking text apart into the terms that search finds it by.
 *
 * The same rules serve products and queries.  A word is a run of letters and
 * digits; what letters become in a language is asked of PostgreSQL's text
 * search configuration, word by word, and remembered.  Words with a digit in
 * them (codes, sizes, numbers) stay as they are, and words joined by a hyphen
 * or the like ("usb-c", "TN-2110") are known whole ("usbc", "tn2110") beside
 * their parts.  Nothing here depends on the locale but how letters are put into
 * lower case, and no input is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_ts_config.h"
#include "mb/pg_wchar.h"
#include "nodes/value.h"
#include "tsearch/ts_utils.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "search.h"

#define MAX_REMEMBERED 20000
#define JOINED_MAX	   32

typedef enum CharKind
{
	SPACE,	   /* ends a chunk */
	SEPARATOR, /* ends a word */
	LETTER,
	DIGIT,
	ALONE /* a word by itself: ideographs, pictures */
} CharKind;

typedef struct KnownWordKey
{
	Oid	 config;
	char word[TA_WORD_MAX];
} KnownWordKey;

typedef struct KnownWord
{
	KnownWordKey key;
	uint8		 length; /* 0: a stop word */
	char		 lexeme[TA_WORD_MAX];
} KnownWord;

static HTAB *words = NULL;
static bool	 words_stale = false;

static void
dictionary_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	words_stale = true;
}

/*
 * ta_search_text_init
 *		Watches the dictionaries.  Called once, by _PG_init.
 */
void
ta_search_text_init(void)
{
	CacheRegisterSyscacheCallback(TSCONFIGOID, dictionary_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TSCONFIGMAP, dictionary_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TSDICTOID, dictionary_changed, (Datum) 0);
}

/*
 * ta_search_config
 *		The text search configuration of a name, that of the server called
 *		"simple" where there is none: a wrong name must not stop a sale.
 */
Oid
ta_search_config(const char *name)
{
	Oid config = InvalidOid;

	if (name != NULL && name[0] != '\0' && strlen(name) < NAMEDATALEN * 2)
	{
		const char *at;
		bool		plain = true;

		for (at = name; *at; at++)
			plain = plain && ((*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9') ||
							  *at == '_' || *at == '.');
		if (plain && name[0] != '.' && at[-1] != '.' && strstr(name, "..") == NULL)
		{
			List *names = ta_qualified_names(name);

			if (list_length(names) == 1)
				names = lcons(makeString(pstrdup("pg_catalog")), names);
			if (list_length(names) == 2)
				config = get_ts_config_oid(names, true);
		}
	}
	if (!OidIsValid(config))
		config = GetSysCacheOid2(TSCONFIGNAMENSP, Anum_pg_ts_config_oid,
								 CStringGetDatum("simple"),
								 ObjectIdGetDatum(PG_CATALOG_NAMESPACE));
	return config;
}

/*
 * ta_search_config_name
 *		The name of a text search configuration of the server's own, NULL for
 *		any other.
 */
char *
ta_search_config_name(Oid config)
{
	HeapTuple tuple = SearchSysCache1(TSCONFIGOID, ObjectIdGetDatum(config));
	char	 *name = NULL;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	if (((Form_pg_ts_config) GETSTRUCT(tuple))->cfgnamespace == PG_CATALOG_NAMESPACE)
		name = pstrdup(NameStr(((Form_pg_ts_config) GETSTRUCT(tuple))->cfgname));
	ReleaseSysCache(tuple);
	return name;
}

/*
 * ta_exact_form
 *		The term that stands for a word as it is written, where the language
 *		takes three letters or more off its end: "=gaming" beside "game".  Returns
 *		its length; 0: its usual term says enough.  Singular and plural are one.
 *		exact has room for TA_TERM_MAX bytes.
 */
int
ta_exact_form(const TaToken *token, char *exact)
{
	int length = token->surface_length;
	int same = 0;

	if (token->joined || token->term_length == 0)
		return 0;
	while (same < length && same < token->term_length && token->surface[same] == token->term[same])
		same++;
	if (length - same < 3)
		return 0;
	if (length >= 4 && token->surface[length - 1] == 's' && token->surface[length - 2] != 's')
		length--;
	if (length > TA_WORD_MAX)
		return 0;
	exact[0] = TA_EXACT;
	memcpy(exact + 1, token->surface, length);
	return length + 1;
}

/* What a configuration makes of a word in lower case; length 0: nothing. */
static const KnownWord *
lexeme_of(Oid config, const char *word, int length)
{
	KnownWordKey key;
	KnownWord	*entry;
	bool		 found;
	ParsedText	 parsed;

	if (words != NULL && (words_stale || hash_get_num_entries(words) >= MAX_REMEMBERED))
	{
		hash_destroy(words);
		words = NULL;
	}
	if (words == NULL)
	{
		HASHCTL ctl = {0};

		words_stale = false;
		ctl.keysize = sizeof(KnownWordKey);
		ctl.entrysize = sizeof(KnownWord);
		ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
		words = hash_create("techally words", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	memset(&key, 0, sizeof(key));
	key.config = config;
	memcpy(key.word, word, length);
	entry = hash_search(words, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;

	memset(&parsed, 0, sizeof(parsed));
	parsed.lenwords = 4;
	parsed.words = palloc(sizeof(ParsedWord) * parsed.lenwords);
	parsetext(config, &parsed, unconstify(char *, word), length);

	entry = hash_search(words, &key, HASH_ENTER, &found);
	if (parsed.curwords == 0)
		entry->length = 0;
	else if (parsed.curwords == 1 && parsed.words[0].len <= TA_WORD_MAX && parsed.words[0].len > 0)
	{
		entry->length = parsed.words[0].len;
		memcpy(entry->lexeme, parsed.words[0].word, entry->length);
	}
	else
	{
		entry->length = length;
		memcpy(entry->lexeme, word, length);
	}
	for (int i = 0; i < parsed.curwords; i++)
		pfree(parsed.words[i].word);
	pfree(parsed.words);
	return entry;
}

/* The code point of a character of UTF-8 that is known to be whole. */
static uint32
code_point(const char *at, int length)
{
	const unsigned char *c = (const unsigned char *) at;

	switch (length)
	{
		case 2:
			return ((c[0] & 0x1F) << 6) | (c[1] & 0x3F);
		case 3:
			return ((c[0] & 0x0F) << 12) | ((c[1] & 0x3F) << 6) | (c[2] & 0x3F);
		case 4:
			return ((c[0] & 0x07) << 18) | ((c[1] & 0x3F) << 12) | ((c[2] & 0x3F) << 6) | (c[3] & 0x3F);
		default:
			return c[0];
	}
}

static CharKind
kind_of(const char *at, int length, bool utf8)
{
	uint32 c;

	if (length == 1 && (unsigned char) *at < 0x80)
	{
		if ((*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z'))
			return LETTER;
		if (*at >= '0' && *at <= '9')
			return DIGIT;
		return (unsigned char) *at <= ' ' ? SPACE : SEPARATOR;
	}
	if (!utf8)
		return LETTER;

	c = code_point(at, length);
	if (c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
		c == 0x202F || c == 0x205F || c == 0x3000)
		return SPACE;
	if (c < 0xC0)
		return (c == 0xAA || c == 0xB5 || c == 0xBA) ? LETTER : SEPARATOR;
	if (c == 0xD7 || c == 0xF7 || (c >= 0x200B && c <= 0x206F) || (c >= 0x20A0 && c <= 0x20CF) ||
		(c >= 0x2100 && c <= 0x214F) || (c >= 0x2190 && c <= 0x25FF) || (c >= 0x3001 && c <= 0x303F) ||
		(c >= 0xFE00 && c <= 0xFE0F) || (c >= 0xFF00 && c <= 0xFF0F) || c == 0xFEFF || c == 0xFFFD ||
		(c >= 0x1F3FB && c <= 0x1F3FF))
		return SEPARATOR;
	if ((c >= 0x3040 && c <= 0x30FF) || (c >= 0x3400 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
		(c >= 0x2600 && c <= 0x27BF) || c >= 0x1F000)
		return ALONE;
	return LETTER;
}

/* Characters that may join words into a code. */
static bool
is_joiner(char c)
{
	return c == '-' || c == '/' || c == '.' || c == '_';
}

typedef struct Tokenizer
{
	Oid			config;
	TaTokenSink sink;
	void	   *arg;
	int			position;

	/* the chunk that the last words belong to */
	char joined[JOINED_MAX];
	int	 joined_length; /* -1: it is too long */
	int	 joined_start;
	int	 joined_position;
	int	 parts;
	bool joined_digit;
	bool hyphens; /* nothing but hyphens joins them */
} Tokenizer;

/* Passes on a word of the text, from start to end. */
static void
put_word(Tokenizer *tok, const char *text, int start, int end, bool digit, bool ascii)
{
	char	word[TA_WORD_MAX * 4];
	int		length = Min(end - start, TA_WORD_MAX);
	TaToken token;

	if (length < end - start)
		length = pg_mbcliplen(text + start, end - start, TA_WORD_MAX);
	if (length <= 0)
		return;
	if (ascii)
	{
		for (int i = 0; i < length; i++)
		{
			char c = text[start + i];

			word[i] = c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : (c == ',' ? '.' : c);
		}
	}
	else
	{
		char *lower = str_tolower(text + start, length, DEFAULT_COLLATION_OID);
		int	  lower_length = strlen(lower);

		length = lower_length <= TA_WORD_MAX ? lower_length : pg_mbcliplen(lower, lower_length, TA_WORD_MAX);
		memcpy(word, lower, length);
		pfree(lower);
	}

	token.position = tok->position++;
	token.start = start;
	token.end = end;
	token.surface = word;
	token.surface_length = length;
	token.joined = false;

	if (tok->parts == 0)
	{
		tok->joined_length = 0;
		tok->joined_start = start;
		tok->joined_position = token.position;
		tok->joined_digit = false;
		tok->hyphens = true;
	}
	tok->parts++;
	tok->joined_digit = tok->joined_digit || digit;
	if (tok->joined_length >= 0 && tok->joined_length + length <= JOINED_MAX)
	{
		memcpy(tok->joined + tok->joined_length, word, length);
		tok->joined_length += length;
	}
	else
		tok->joined_length = -1;

	if (digit)
	{
		token.term = word;
		token.term_length = length;
	}
	else
	{
		const KnownWord *entry = lexeme_of(tok->config, word, length);

		token.term = entry->lexeme;
		token.term_length = entry->length;
	}
	tok->sink(&token, tok->arg);
}

/* A chunk is over: pass on the whole of it where it is a code. */
static void
end_chunk(Tokenizer *tok, int end)
{
	if (tok->parts > 1 && tok->joined_length > 0 && (tok->joined_digit || tok->hyphens))
	{
		TaToken token;

		token.position = tok->joined_position;
		token.start = tok->joined_start;
		token.end = end;
		token.surface = token.term = tok->joined;
		token.surface_length = token.term_length = tok->joined_length;
		token.joined = true;
		if (!tok->joined_digit)
		{
			const KnownWord *entry = lexeme_of(tok->config, tok->joined, tok->joined_length);

			if (entry->length > 0)
			{
				token.term = entry->lexeme;
				token.term_length = entry->length;
			}
		}
		tok->sink(&token, tok->arg);
	}
	tok->parts = 0;
}

/*
 * ta_tokenize
 *		Calls sink for every word of a text.  A stop word comes with a term of
 *		length 0.  The token and what it points to hold during the call only.
 */
void
ta_tokenize(Oid config, const char *text, int length, TaTokenSink sink, void *arg)
{
	Tokenizer tok = {0};
	bool	  utf8 = GetDatabaseEncoding() == PG_UTF8;
	int		  start = -1; /* of the word that we are in */
	int		  word_end = 0;
	bool	  digit = false;
	bool	  ascii = true;
	int		  at = 0;

	tok.config = config;
	tok.sink = sink;
	tok.arg = arg;

	while (at <= length)
	{
		int		 width = at < length ? Min(pg_mblen(text + at), length - at) : 0;
		CharKind kind = at < length ? kind_of(text + at, width, utf8) : SPACE;

		/* 43.2, 10,5: a point between digits belongs to the number */
		if (kind == SEPARATOR && start >= 0 && (text[at] == '.' || text[at] == ',') && at + 1 < length &&
			text[at - 1] >= '0' && text[at - 1] <= '9' && text[at + 1] >= '0' && text[at + 1] <= '9')
			kind = DIGIT;

		if (kind == LETTER || kind == DIGIT)
		{
			if (start < 0)
			{
				start = at;
				digit = false;
				ascii = true;
			}
			digit = digit || kind == DIGIT;
			ascii = ascii && width == 1 && (unsigned char) text[at] < 0x80;
			at += width;
			continue;
		}

		if (start >= 0)
		{
			put_word(&tok, text, start, at, digit, ascii);
			start = -1;
			word_end = at;

			/* men's: the s is no word */
			if (at + 1 < length && text[at] == '\'' && (text[at + 1] == 's' || text[at + 1] == 'S') &&
				(at + 2 >= length ||
				 kind_of(text + at + 2, Min(pg_mblen(text + at + 2), length - at - 2), utf8) <= SEPARATOR))
			{
				at += 2;
				continue;
			}
		}
		if (kind == ALONE)
		{
			end_chunk(&tok, word_end);
			put_word(&tok, text, at, at + width, true, false);
			tok.parts = 0;
		}
		else if (kind == SPACE || !is_joiner(text[at]) || at != word_end)
			end_chunk(&tok, word_end);
		else if (text[at] != '-')
			tok.hyphens = false;
		if (at == length)
			break;
		at += width;
	}
}
