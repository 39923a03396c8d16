/*-------------------------------------------------------------------------
 *
 * search_document.c
 *	  From a product to what search knows of it: its terms, each with an
 *	  impact.
 *
 * The impact is the part of BM25F that a document determines: the occurrences
 * of the term, weighted by field and by what they are in the name, held against
 * the field's length, and saturated, as a whole number from 1 to 255.  The field
 * in which the term counts most counts whole, the others by half, for they often
 * repeat each other.  The impact depends on nothing but the product and the
 * length that is recorded for the store, so that it need not be written again
 * when other products come or go.
 *
 * A word whose ending the language takes off ("gaming", "controller") is there
 * twice: as its stem, and as it is written behind "=" (ta_exact_form).
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

/*
 * A field: what an occurrence counts, how much the field's length matters (b of
 * BM25F), the length at which it does not, and the least that it is divided by.
 * So a word of a description never counts more than one of a name of up to
 * seven words, however short the description is.
 */
typedef struct Field
{
	double weight;
	double b;
	double length;
	double least;
} Field;

static const Field name_field = {4, 0.5, 12, 0};
static const Field brand_field = {3, 0, 1, 0};
static const Field sku_field = {3, 0, 1, 0};
static const Field variants_field = {3, 0.75, 24, 1};
static const Field category_field = {2, 0, 1, 0};
static const Field above_field = {0.5, 0, 1, 0};
static const Field tags_field = {2, 0.75, 12, 1};
static const Field description_field = {2, 0.75, 25, 0.4};
static const Field kind_field = {1.5, 0, 1, 0};
static const Field attributes_field = {0.5, 0.75, 60, 0.25};

#define OTHER_FIELDS 0.5 /* what a field adds where the term counts more in another */
#define ATTRIBUTE	 0.5 /* one that an attribute says, too */
#define BEHIND		 0.5 /* one behind the first stop word: "case for a camera" */

#define MAX_NAME_WORDS 256
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
	bool		is_property;
	bool		in_brand;
	bool		in_attribute;
	float		here; /* occurrences in the field at hand */
	double		best; /* the field in which it counts most */
	double		sum;  /* all fields */
} Draft;

/* A word of the name: what it counts is known once all fields were read. */
typedef struct NameWord
{
	int	 draft;	 /* -1: a stop word */
	int	 exact;	 /* draft of its exact form, -1: none */
	bool joined; /* the whole of words that stand there, too */
	bool has_digit;
	bool is_number;
	bool is_letter; /* a single one */
	bool broken;	/* punctuation before it ends what the name began with */
} NameWord;

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
	int	  *slots;	  /* index into drafts plus one */
	int	   first_new; /* drafts before it stay as they are */

	/* the field that is being read */
	int	 length; /* words */
	int *touched;
	int	 ntouched;

	/* the name */
	const char *name; /* the text, while it is being read */
	int			name_at;
	int			nname;
	NameWord	name_words[MAX_NAME_WORDS];
	int			head; /* draft, -1: none */

	/* what was asked last of a configuration */
	Oid	 head_config;
	bool head_first;
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
	{
		drafts->drafts = palloc(sizeof(Draft) * drafts->nslots / 2);
		drafts->touched = palloc(sizeof(int) * drafts->nslots / 2);
	}
	else
	{
		drafts->drafts = repalloc(drafts->drafts, sizeof(Draft) * drafts->nslots / 2);
		drafts->touched = repalloc(drafts->touched, sizeof(int) * drafts->nslots / 2);
	}
	for (int i = 0; i < drafts->ndrafts; i++)
	{
		uint32 at = drafts->drafts[i].hash & (drafts->nslots - 1);

		while (drafts->slots[at] != 0)
			at = (at + 1) & (drafts->nslots - 1);
		drafts->slots[at] = i + 1;
	}
}

/* The draft of a term, -1 where there are too many. */
static int
find_draft(TaDrafts *drafts, const char *term, int length)
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
			return drafts->slots[at] - 1;
		at = (at + 1) & (drafts->nslots - 1);
	}
	if (drafts->ndrafts >= MAX_TERMS)
		return -1;
	copy = palloc(length);
	memcpy(copy, term, length);
	draft = &drafts->drafts[drafts->ndrafts++];
	memset(draft, 0, sizeof(*draft));
	draft->text = copy;
	draft->length = length;
	draft->hash = hash;
	drafts->slots[at] = drafts->ndrafts;
	return drafts->ndrafts - 1;
}

/* Counts an occurrence in the field at hand. */
static void
count_draft(TaDrafts *drafts, int d, double occurrences)
{
	Draft *draft;

	if (d < drafts->first_new)
		return;
	draft = &drafts->drafts[d];
	if (draft->here == 0)
		drafts->touched[drafts->ntouched++] = d;
	draft->here += occurrences;
}

static void
begin_field(TaDrafts *drafts)
{
	drafts->length = 0;
	drafts->ntouched = 0;
}

/* What the terms of the field at hand count. */
static void
end_field(TaDrafts *drafts, const Field *field)
{
	double length = field->length * drafts->average / TA_LENGTH_BEFORE;
	double norm = 1 - field->b + field->b * drafts->length / length;

	norm = Max(norm, field->least);
	for (int i = 0; i < drafts->ntouched; i++)
	{
		Draft *draft = &drafts->drafts[drafts->touched[i]];
		double counts = field->weight * draft->here / norm;

		draft->best = Max(draft->best, counts);
		draft->sum += counts;
		draft->here = 0;
	}
	drafts->ntouched = 0;
}

static int
exact_draft(TaDrafts *drafts, const TaToken *token)
{
	char exact[TA_TERM_MAX];
	int	 length = ta_exact_form(token, exact);

	return length > 0 ? find_draft(drafts, exact, length) : -1;
}

static void
add_token(const TaToken *token, void *arg)
{
	TaDrafts *drafts = (TaDrafts *) arg;

	if (token->term_length == 0)
		return;
	count_draft(drafts, find_draft(drafts, token->term, token->term_length), 1);
	count_draft(drafts, exact_draft(drafts, token), 1);
	if (!token->joined)
		drafts->length++;
}

static void
add_text(TaDrafts *drafts, Oid config, const char *text, int length, TaTokenSink sink)
{
	if (length > TEXT_MAX)
		length = pg_mbcliplen(text, length, TEXT_MAX);
	ta_tokenize(config, text, length, sink, drafts);
	CHECK_FOR_INTERRUPTS();
}

static void
add_column(TaDrafts *drafts, Oid config, HeapTuple row, TupleDesc desc, int column, const Field *field)
{
	bool  isnull;
	Datum value = heap_getattr(row, column, desc, &isnull);
	text *string;

	if (isnull)
		return;
	string = DatumGetTextPP(value);
	begin_field(drafts);
	add_text(drafts, config, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string), add_token);
	end_field(drafts, field);
}

/*
 * The name
 *
 * "Kensington Gel Mouse Pad, black" is a pad, "Targus Optical mouse USB 1000 DPI"
 * a mouse.  In most languages the word that says what a thing is comes last, and
 * what it is like before it; what it is for, made of or comes with follows after
 * a stop word, a comma or a bracket, and so do numbers with their units.  So the
 * head of a name is its last word before any of these that is neither the brand
 * nor said by an attribute.  Where adjectives follow the noun it is the first.
 */

/* Whether the text between two words ends what the name began with. */
static bool
breaks_name(const char *from, const char *to)
{
	for (const char *at = from; at < to; at++)
	{
		if (strchr("(),;:|", *at) != NULL && *at != '\0')
			return true;
		if (*at == '-' && at > from && at[-1] == ' ' && at + 1 < to && at[1] == ' ')
			return true;
		if (to - at >= 3 && (memcmp(at, "\xE2\x80\x93", 3) == 0 || memcmp(at, "\xE2\x80\x94", 3) == 0))
			return true;
	}
	return false;
}

static void
add_name_token(const TaToken *token, void *arg)
{
	TaDrafts *drafts = (TaDrafts *) arg;
	NameWord *word;
	int		  letters = 0;

	if (drafts->nname == MAX_NAME_WORDS || (token->joined && token->term_length == 0))
		return;
	word = &drafts->name_words[drafts->nname++];
	memset(word, 0, sizeof(*word));
	word->draft = token->term_length == 0 ? -1 : find_draft(drafts, token->term, token->term_length);
	word->exact = exact_draft(drafts, token);
	word->joined = token->joined;
	if (token->joined)
		return;
	word->is_number = token->surface[0] >= '0' && token->surface[0] <= '9';
	for (int i = 0; i < token->surface_length; i++)
	{
		char c = token->surface[i];

		if (c >= '0' && c <= '9')
			word->has_digit = true;
		else if (c != '.')
			word->is_number = false;
		letters += ((unsigned char) c & 0xC0) != 0x80;
	}
	word->is_letter = letters == 1;
	word->broken = breaks_name(drafts->name + drafts->name_at, drafts->name + token->start);
	drafts->name_at = token->end;
	if (token->term_length > 0)
		drafts->length++;
}

/* Languages in which adjectives follow their noun. */
static bool
head_comes_first(TaDrafts *drafts, Oid config)
{
	static const char *const languages[] = {"arabic", "catalan", "french", "indonesian", "irish",
											"italian", "portuguese", "romanian", "spanish"};

	if (drafts->head_config != config)
	{
		char *name = ta_search_config_name(config);

		drafts->head_config = config;
		drafts->head_first = false;
		for (size_t i = 0; i < lengthof(languages); i++)
			drafts->head_first |= name != NULL && strcmp(name, languages[i]) == 0;
	}
	return drafts->head_first;
}

static void
add_name(TaDrafts *drafts, Oid config, HeapTuple row, TupleDesc desc)
{
	bool  isnull;
	Datum value = heap_getattr(row, DOC_NAME, desc, &isnull);
	text *string;

	drafts->nname = drafts->length = 0;
	if (isnull)
		return;
	string = DatumGetTextPP(value);
	drafts->name = VARDATA_ANY(string);
	drafts->name_at = 0;
	add_text(drafts, config, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string), add_name_token);
	drafts->name = NULL;
}

/* What the words of the name count, once brand and attributes are known. */
static void
end_name(TaDrafts *drafts, Oid config, int length)
{
	bool head_first = head_comes_first(drafts, config);
	bool started = false; /* past the brand and codes */
	bool over = false;	  /* what the name began with is */
	int	 behind = drafts->nname;
	int	 head = -1;

	for (int w = 0; w < drafts->nname; w++)
	{
		NameWord *word = &drafts->name_words[w];
		Draft	 *draft = word->draft >= 0 ? &drafts->drafts[word->draft] : NULL;

		if (word->joined)
			continue;
		over = over || (started && (word->broken || (draft != NULL && word->is_number)));
		if (draft == NULL)
		{
			if (!started)
				continue;
			behind = w;
			break;
		}
		if (word->has_digit || draft->in_brand)
			continue;
		started = true;
		if (!over && !draft->in_attribute && !word->is_letter && (head < 0 || !head_first))
			head = w;
	}

	begin_field(drafts);
	for (int w = 0; w < drafts->nname; w++)
	{
		NameWord *word = &drafts->name_words[w];
		Draft	 *draft;
		double	  counts = 1;

		if (word->draft < 0)
			continue;
		draft = &drafts->drafts[word->draft];
		if (w == head)
		{
			counts = TA_HEAD;
			if (drafts->first_new == 0)
				drafts->head = word->draft;
		}
		else if (draft->in_attribute && !draft->in_brand && !word->joined)
			counts = ATTRIBUTE;
		if (w > behind && !word->joined)
			counts *= BEHIND;
		count_draft(drafts, word->draft, counts);
		count_draft(drafts, word->exact, counts);
	}
	drafts->length = length;
	end_field(drafts, &name_field);
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
	int	  d = find_draft(drafts, term, length);

	if (d >= 0)
		drafts->drafts[d].is_property = true;
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

/* The words of attributes that say what a thing is, or of the others with all properties. */
static void
add_attributes(TaDrafts *drafts, Oid config, Jsonb *attributes, bool kinds)
{
	JsonbIterator	  *it;
	JsonbValue		   value;
	JsonbIteratorToken token;
	int				   depth = 0;
	const char		  *name = NULL;
	int				   name_length = 0;

	if (!JB_ROOT_IS_OBJECT(attributes))
		return;
	begin_field(drafts);
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
					if (names_a_kind(name, name_length) == kinds)
						add_text(drafts, config, value.val.string.val, value.val.string.len, add_token);
					if (depth <= 2 && !kinds)
						add_property(drafts, 'a', name, name_length, value.val.string.val, value.val.string.len);
				}
				else if (kinds)
					break;
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
	if (!kinds)
	{
		for (int i = 0; i < drafts->ntouched; i++)
			drafts->drafts[drafts->touched[i]].in_attribute = true;
	}
	end_field(drafts, kinds ? &kind_field : &attributes_field);
}

static void
add_tags(TaDrafts *drafts, Oid config, ArrayType *tags)
{
	Datum *values;
	bool  *nulls;
	int	   count;

	begin_field(drafts);
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		text *tag;

		if (nulls[i])
			continue;
		tag = DatumGetTextPP(values[i]);
		add_text(drafts, config, VARDATA_ANY(tag), VARSIZE_ANY_EXHDR(tag), add_token);
		add_property(drafts, 't', NULL, 0, VARDATA_ANY(tag), VARSIZE_ANY_EXHDR(tag));
	}
	end_field(drafts, &tags_field);
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

/* The impact of what a term counts. */
static int
impact_of(const Draft *draft)
{
	double x = draft->best + OTHER_FIELDS * (draft->sum - draft->best);
	int	   impact = (int) ceil(x / (x + TA_K1) * TA_IMPACT_MAX);

	return Max(1, Min(impact, TA_IMPACT_MAX));
}

static void
add_words(TaDrafts *drafts, Oid config, const char *words, const Field *field)
{
	if (words == NULL)
		return;
	begin_field(drafts);
	add_text(drafts, config, words, strlen(words), add_token);
	end_field(drafts, field);
}

/* All fields of a product. */
static void
add_fields(TaDrafts *drafts, Oid config, HeapTuple row, TupleDesc desc)
{
	bool  isnull;
	Datum value;
	int	  name_length;

	add_name(drafts, config, row, desc);
	name_length = drafts->length;

	value = heap_getattr(row, DOC_BRAND_NAME, desc, &isnull);
	if (!isnull)
	{
		text *brand = DatumGetTextPP(value);

		begin_field(drafts);
		add_text(drafts, config, VARDATA_ANY(brand), VARSIZE_ANY_EXHDR(brand), add_token);
		for (int i = 0; i < drafts->ntouched; i++)
			drafts->drafts[drafts->touched[i]].in_brand = true;
		end_field(drafts, &brand_field);
	}
	add_column(drafts, config, row, desc, DOC_SKU, &sku_field);
	add_column(drafts, config, row, desc, DOC_VARIANTS, &variants_field);
	add_column(drafts, config, row, desc, DOC_SHORT, &description_field);
	add_column(drafts, config, row, desc, DOC_DESCRIPTION, &description_field);

	value = heap_getattr(row, DOC_CATEGORY, desc, &isnull);
	if (!isnull)
	{
		Category *category = find_category(drafts, DatumGetUUIDP(value));

		add_uuid_property(drafts, 'c', DatumGetUUIDP(value));
		add_words(drafts, config, category->name, &category_field);
		add_words(drafts, config, category->above, &above_field);
	}
	value = heap_getattr(row, DOC_BRAND, desc, &isnull);
	if (!isnull)
		add_uuid_property(drafts, 'b', DatumGetUUIDP(value));
	value = heap_getattr(row, DOC_TAGS, desc, &isnull);
	if (!isnull)
		add_tags(drafts, config, DatumGetArrayTypeP(value));
	value = heap_getattr(row, DOC_ATTRIBUTES, desc, &isnull);
	if (!isnull)
	{
		add_attributes(drafts, config, DatumGetJsonbP(value), true);
		add_attributes(drafts, config, DatumGetJsonbP(value), false);
	}
	end_name(drafts, config, name_length);
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
	drafts->ndrafts = drafts->nslots = drafts->first_new = 0;
	drafts->head = -1;
	drafts->drafts = NULL;
	drafts->slots = drafts->touched = NULL;
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
		drafts->first_new = drafts->ndrafts;
		add_fields(drafts, drafts->config, row, desc);
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
		term->impact = draft->is_property ? 1 : impact_of(draft);
	}
	qsort(document->terms, document->nterms, sizeof(TaTerm), compare_terms);
	document->head = -1;
	for (int i = 0; drafts->head >= 0 && i < document->nterms; i++)
	{
		if (document->terms[i].text == drafts->drafts[drafts->head].text)
			document->head = i;
	}
	MemoryContextSwitchTo(caller);
}
