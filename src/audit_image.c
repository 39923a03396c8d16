/*-------------------------------------------------------------------------
 *
 * audit_image.c
 *	  What the log says of a row: its key, its image, what changed in it.
 *
 * Values are compared in binary before anything else is made of them, and then
 * written as jsonb without text or parser in between: a table's format is
 * worked out once a backend and kept until the table changes.  What is written
 * is what to_jsonb makes of the value, byte for byte, so that a log that was
 * dumped and restored has the same bytes; but in one form, whatever the
 * session's TimeZone, DateStyle, IntervalStyle, extra_float_digits,
 * bytea_output, lc_monetary or search_path.  Most types have a writer that
 * asks for no setting; the others go through to_jsonb itself, with the
 * settings pinned for as long as a statement's rows are written.
 *
 * A column is known by its name: partitions, with an order of columns of their
 * own, write the same.  What the trigger's arguments leave out or redact is by
 * name, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "audit_image.h"
#include "compat.h"
#include "spi_util.h"

/* How the values of a column become JSON. */
enum
{
	WRITE_BOOL,
	WRITE_INT2,
	WRITE_INT4,
	WRITE_INT8,
	WRITE_FLOAT4,
	WRITE_FLOAT8,
	WRITE_NUMERIC,
	WRITE_TEXT,
	WRITE_NAME,
	WRITE_UUID,
	WRITE_DATETIME,
	WRITE_BYTEA,
	WRITE_JSON,
	WRITE_JSONB,
	WRITE_OUTPUT, /* the type's output function, as a string */
	WRITE_TO_JSONB
};

typedef struct FormatEntry
{
	Oid			   relid;
	TaAuditFormat *format;
} FormatEntry;

static HTAB *formats = NULL;

/*
 * The cache of formats
 */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	FormatEntry	   *entry;

	hash_seq_init(&status, formats);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->format != NULL &&
			(relid == InvalidOid || entry->relid == relid || entry->format->root == relid))
			entry->format->valid = false;
	}
}

/* A schema or a type was changed: names and writers may be others now. */
static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	relation_changed(arg, InvalidOid);
}

/*
 * ta_audit_image_init
 *		Makes the cache of formats.  Called once, by _PG_init.
 */
void
ta_audit_image_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(FormatEntry);
	ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
	formats = hash_create("techally audit formats", 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, catalog_changed, (Datum) 0);
}

/*
 * ta_audit_function
 *		The trigger function.
 */
Oid
ta_audit_function(void)
{
	return LookupFuncName(list_make2(makeString("techally"), makeString(TA_AUDIT_FUNCTION)), 0, NULL, false);
}

/*
 * ta_audit_trigger_arguments
 *		Whether the table has a trigger of audit_changes, and what it leaves out
 *		and redacts: lists of names, in the current memory context.
 *
 * The arguments are pairs, 'exclude' or 'redact' and a column's name.  Raises
 * 22023 for others.
 */
bool
ta_audit_trigger_arguments(Relation rel, List **excluded, List **redacted)
{
	TriggerDesc *triggers = rel->trigdesc;
	Oid			 function = ta_audit_function();

	*excluded = *redacted = NIL;
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];

		if (trigger->tgfoid != function)
			continue;
		for (int a = 0; a < trigger->tgnargs; a += 2)
		{
			List **list = NULL;

			if (strcmp(trigger->tgargs[a], "exclude") == 0)
				list = excluded;
			else if (strcmp(trigger->tgargs[a], "redact") == 0)
				list = redacted;
			if (list == NULL || a + 1 >= trigger->tgnargs)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("trigger \"%s\" on table \"%s\" has arguments that are none",
								trigger->tgname, RelationGetRelationName(rel)),
						 errhint("Arguments are pairs: 'exclude' or 'redact', and the name of a column.")));
			*list = lappend(*list, pstrdup(trigger->tgargs[a + 1]));
		}
		return true;
	}
	return false;
}

static bool
contains_name(List *names, const char *name)
{
	ListCell *cell;

	foreach(cell, names)
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	return false;
}

/* Whether to_jsonb of a type gives something else under other settings. */
static bool
depends_on_settings(Oid type)
{
	Oid element;

	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
		return depends_on_settings(element);
	if (get_typtype(type) == TYPTYPE_ENUM)
		return false;
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
		case CHAROID:
		case UUIDOID:
		case JSONOID:
		case JSONBOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
		case OIDOID:
		case TIMEOID:
		case DATEOID:
		case TIMESTAMPOID:
			return false;
		default:
			return true;
	}
}

/* Chooses how a column's values are written. */
static void
choose_writer(TaAuditColumn *column, Form_pg_attribute attribute, MemoryContext context)
{
	Oid	 output;
	bool varlena;

	column->type = getBaseType(attribute->atttypid);
	switch (column->type)
	{
		case BOOLOID:
			column->writer = WRITE_BOOL;
			return;
		case INT2OID:
			column->writer = WRITE_INT2;
			return;
		case INT4OID:
			column->writer = WRITE_INT4;
			return;
		case INT8OID:
			column->writer = WRITE_INT8;
			return;
		case FLOAT4OID:
			column->writer = WRITE_FLOAT4;
			return;
		case FLOAT8OID:
			column->writer = WRITE_FLOAT8;
			return;
		case NUMERICOID:
			column->writer = WRITE_NUMERIC;
			return;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			column->writer = WRITE_TEXT;
			return;
		case NAMEOID:
			column->writer = WRITE_NAME;
			return;
		case UUIDOID:
			column->writer = WRITE_UUID;
			return;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			column->writer = WRITE_DATETIME;
			return;
		case BYTEAOID:
			column->writer = WRITE_BYTEA;
			return;
		case JSONOID:
			column->writer = WRITE_JSON;
			return;
		case JSONBOID:
			column->writer = WRITE_JSONB;
			return;
		default:
			break;
	}
	if (get_typtype(column->type) == TYPTYPE_ENUM)
	{
		column->writer = WRITE_OUTPUT;
		getTypeOutputInfo(column->type, &output, &varlena);
		fmgr_info_cxt(output, &column->output, context);
		return;
	}

	/* to_jsonb finds out from the call's expression what it is given */
	column->writer = WRITE_TO_JSONB;
	{
		MemoryContext old_context = MemoryContextSwitchTo(context);
		Const		 *argument = makeNullConst(column->type, -1, InvalidOid);
		FuncExpr	 *call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
										  InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);

		fmgr_info_cxt(F_TO_JSONB, &column->output, context);
		fmgr_info_set_expr((Node *) call, &column->output);
		MemoryContextSwitchTo(old_context);
	}
}

/* jsonb orders keys by length, then by bytes. */
static int
compare_columns(const void *left, const void *right)
{
	const TaAuditColumn *a = left;
	const TaAuditColumn *b = right;

	if (a->name_length != b->name_length)
		return a->name_length < b->name_length ? -1 : 1;
	return memcmp(a->name, b->name, a->name_length);
}

static void
fill_column(TaAuditColumn *column, Form_pg_attribute attribute, MemoryContext context)
{
	column->attnum = attribute->attnum;
	column->name = pstrdup(NameStr(attribute->attname));
	column->name_length = strlen(column->name);
	column->length = attribute->attlen;
	column->by_value = attribute->attbyval;
	choose_writer(column, attribute, context);
}

/* The primary key's columns, deferrable or not; NULL for none. */
static Bitmapset *
primary_key(Relation rel)
{
	Bitmapset *columns = NULL;
	List	  *indexes = RelationGetIndexList(rel);
	ListCell  *cell;

	foreach(cell, indexes)
	{
		HeapTuple	  tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisprimary && index->indisvalid)
		{
			for (int i = 0; i < index->indnkeyatts; i++)
				columns = bms_add_member(columns, index->indkey.values[i]);
		}
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return columns;
}

/* The topmost ancestor that has a trigger of ours; the table itself for none. */
static Oid
find_root(Relation rel)
{
	Oid		  root = RelationGetRelid(rel);
	List	 *ancestors;
	ListCell *cell;

	if (!rel->rd_rel->relispartition)
		return root;
	ancestors = get_partition_ancestors(RelationGetRelid(rel));
	foreach(cell, ancestors)
	{
		Relation ancestor = table_open(lfirst_oid(cell), AccessShareLock);
		List	*excluded;
		List	*redacted;

		if (ta_audit_trigger_arguments(ancestor, &excluded, &redacted))
			root = lfirst_oid(cell);
		table_close(ancestor, NoLock);
	}
	list_free(ancestors);
	return root;
}

static const TaStatement select_soft = {
	"SELECT FROM @store@.soft_delete_tables s WHERE s.target::pg_catalog.oid = $1 OR s.target::pg_catalog.oid = $2",
	2,
	{OIDOID, OIDOID}};

/* Whether DELETE becomes setting deleted_at on the table or its root. */
static bool
is_soft_deleted(Oid relid, Oid root)
{
	Datum	values[2] = {ObjectIdGetDatum(relid), ObjectIdGetDatum(root)};
	TaFrame frame;
	bool	result;

	ta_frame_begin(&frame, InvalidOid);
	PushActiveSnapshot(GetLatestSnapshot());
	result = ta_query(get_namespace_oid("techally", false), &select_soft, values, NULL) > 0;
	PopActiveSnapshot();
	ta_frame_end(&frame);
	return result;
}

/* Writes what every image of a whole row begins with. */
static void
prepare_image(TaAuditFormat *format)
{
	uint32 header = format->ncolumns | JB_FOBJECT;
	uint32 total = 0;

	initStringInfo(&format->image_head);
	initStringInfo(&format->image_keys);
	appendBinaryStringInfo(&format->image_head, (char *) &header, sizeof(header));
	for (int i = 0; i < format->ncolumns; i++)
	{
		const TaAuditColumn *column = &format->columns[i];
		JEntry				 entry;

		total += column->name_length;
		entry = JENTRY_ISSTRING | column->name_length;
		if (i % JB_OFFSET_STRIDE == 0)
			entry = JENTRY_ISSTRING | total | JENTRY_HAS_OFF;
		appendBinaryStringInfo(&format->image_head, (char *) &entry, sizeof(entry));
		appendBinaryStringInfo(&format->image_keys, column->name, column->name_length);
	}
}

static TaAuditFormat *
build_format(Relation rel)
{
	MemoryContext  context = AllocSetContextCreate(CacheMemoryContext, "techally audit format",
												   ALLOCSET_SMALL_SIZES);
	MemoryContext  old_context = MemoryContextSwitchTo(context);
	TaAuditFormat *format = palloc0(sizeof(TaAuditFormat));
	TupleDesc	   desc = RelationGetDescr(rel);
	Relation	   root;
	Bitmapset	  *key;
	int			   attnum = -1;
	bool		   audited;

	format->relid = RelationGetRelid(rel);
	format->context = context;
	format->valid = true; /* unless something changes while we look */
	format->desc = CreateTupleDescCopyConstr(desc);
	format->root = find_root(rel);

	root = format->root == format->relid ? rel : table_open(format->root, AccessShareLock);
	format->nspid = RelationGetNamespace(root);
	format->schema_name = get_namespace_name(format->nspid);
	format->table_name = pstrdup(RelationGetRelationName(root));
	format->soft = is_soft_deleted(format->relid, format->root);

	audited = ta_audit_trigger_arguments(rel, &format->excluded, &format->redacted);
	if (!audited && root != rel)
		(void) ta_audit_trigger_arguments(root, &format->excluded, &format->redacted);

	/* the key of a partition is that of its root, by name */
	key = primary_key(root);
	format->key = palloc0(sizeof(TaAuditColumn) * Max(bms_num_members(key), 1));
	while ((attnum = bms_next_member(key, attnum)) > 0)
	{
		char	  *name = NameStr(TupleDescAttr(RelationGetDescr(root), attnum - 1)->attname);
		AttrNumber ours = root == rel ? attnum : get_attnum(format->relid, name);

		fill_column(&format->key[format->nkey++], TupleDescAttr(desc, ours - 1), context);
	}
	qsort(format->key, format->nkey, sizeof(TaAuditColumn), compare_columns);
	format->uuid_key = format->nkey == 1 && format->key[0].type == UUIDOID;
	for (int i = 0; i < format->nkey; i++)
		format->pinned |= format->key[i].writer == WRITE_TO_JSONB && depends_on_settings(format->key[i].type);

	format->columns = palloc0(sizeof(TaAuditColumn) * desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		TaAuditColumn	 *column;

		if (attribute->attisdropped || contains_name(format->excluded, NameStr(attribute->attname)) ||
			(attribute->attgenerated != '\0' && attribute->attgenerated != ATTRIBUTE_GENERATED_STORED))
			continue;
		column = &format->columns[format->ncolumns++];
		fill_column(column, attribute, context);
		column->redacted = contains_name(format->redacted, column->name);
		format->pinned |= !column->redacted && column->writer == WRITE_TO_JSONB &&
						  depends_on_settings(column->type);
		if (format->soft && strcmp(column->name, "deleted_at") == 0)
			format->deleted_at = column->attnum;
	}
	qsort(format->columns, format->ncolumns, sizeof(TaAuditColumn), compare_columns);
	prepare_image(format);

	if (root != rel)
		table_close(root, NoLock);
	MemoryContextSwitchTo(old_context);
	return format;
}

/*
 * ta_audit_format
 *		How rows of a table go into the log.  Release it after use.
 *
 * The table is open.  Raises 22023 where its trigger's arguments are none.
 */
TaAuditFormat *
ta_audit_format(Relation rel)
{
	Oid			 relid = RelationGetRelid(rel);
	FormatEntry *entry;
	bool		 found;

	entry = hash_search(formats, &relid, HASH_FIND, NULL);
	if (entry == NULL || entry->format == NULL || !entry->format->valid)
	{
		TaAuditFormat *format = build_format(rel);

		entry = hash_search(formats, &relid, HASH_ENTER, &found);
		if (found && entry->format != NULL && entry->format->in_use == 0)
			MemoryContextDelete(entry->format->context);
		entry->format = format;
	}
	entry->format->in_use++;
	return entry->format;
}

/*
 * ta_audit_format_release
 *		Gives a format back.  After an error nobody does: then its memory stays
 *		where it is when the table changes, which is little and rare.
 */
void
ta_audit_format_release(TaAuditFormat *format)
{
	FormatEntry *entry = hash_search(formats, &format->relid, HASH_FIND, NULL);

	format->in_use--;
	if (format->in_use == 0 && (entry == NULL || entry->format != format))
		MemoryContextDelete(format->context);
}

/*
 * Settings
 */

/*
 * ta_audit_pin_settings
 *		Sets what the text of values depends on; returns the level for
 *		ta_audit_unpin_settings.  An error unwinds it by itself.
 */
int
ta_audit_pin_settings(void)
{
	static const char *const settings[][2] = {
		{"TimeZone", "UTC"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"search_path", "pg_catalog, pg_temp"},
	};
	int level = NewGUCNestLevel();

	for (int i = 0; i < (int) lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

void
ta_audit_unpin_settings(int level)
{
	AtEOXact_GUC(true, level);
}

/*
 * Writing jsonb
 *
 * An object is its header, the entries of its keys and then of its values, and
 * their bytes in the same order; numbers and containers begin at a multiple of
 * four, and the bytes skipped for that count as theirs.  Every 32nd entry has
 * an offset instead of a length.  All of it is as PostgreSQL's own functions
 * write it.
 */

/* Skips to a multiple of four; returns how many bytes that took. */
static int
pad(StringInfo buf)
{
	int padding = INTALIGN(buf->len) - buf->len;

	enlargeStringInfo(buf, 4);
	for (int i = 0; i < padding; i++)
		buf->data[buf->len++] = '\0';
	return padding;
}

static void
set_entry(StringInfo buf, int entries, int i, JEntry entry, uint32 *total)
{
	*total += entry & JENTRY_OFFLENMASK;
	if (*total > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row is too large for the audit log"),
				 errdetail("The values of a row may come to %d bytes in jsonb.", JENTRY_OFFLENMASK),
				 errhint("Exclude the large columns from the audit.")));
	if (i % JB_OFFSET_STRIDE == 0)
		entry = (entry & JENTRY_TYPEMASK) | *total | JENTRY_HAS_OFF;
	memcpy(buf->data + entries + i * sizeof(JEntry), &entry, sizeof(JEntry));
}

static JEntry
append_string(StringInfo buf, const char *string, Size length)
{
	if (length > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value is too large for the audit log"),
				 errdetail("A value may be %d bytes in jsonb.", JENTRY_OFFLENMASK),
				 errhint("Exclude the column from the audit.")));
	appendBinaryStringInfo(buf, string, length);
	return JENTRY_ISSTRING | length;
}

/* A numeric in memory, which is given away. */
static JEntry
append_numeric(StringInfo buf, Numeric number)
{
	int padding = pad(buf);

	appendBinaryStringInfo(buf, (char *) number, VARSIZE(number));
	padding += VARSIZE(number);
	pfree(number);
	return JENTRY_ISNUMERIC | padding;
}

/* The shortest text that gives the same number again; NaN and infinities as strings. */
static JEntry
append_float(StringInfo buf, const char *text)
{
	if (strcmp(text, "NaN") == 0 || strstr(text, "nfinity") != NULL)
		return append_string(buf, text, strlen(text));
	return append_numeric(buf, DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(text),
																   ObjectIdGetDatum(InvalidOid),
																   Int32GetDatum(-1))));
}

/* A numeric of a row, with whatever header it has there. */
static JEntry
append_numeric_datum(StringInfo buf, Datum value)
{
	struct varlena *number = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	int				start = buf->len;
	int				padding = pad(buf);
	Size			length = VARSIZE_ANY_EXHDR(number);
	Numeric			copy;

	enlargeStringInfo(buf, VARHDRSZ + length);
	copy = (Numeric) (buf->data + buf->len);
	memcpy(VARDATA(copy), VARDATA_ANY(number), length);
	SET_VARSIZE(copy, VARHDRSZ + length);
	if (numeric_is_nan(copy) || numeric_is_inf(copy))
	{
		char *text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(copy)));

		buf->len = start;
		return append_string(buf, text, strlen(text));
	}
	buf->len += VARHDRSZ + length;
	buf->data[buf->len] = '\0';
	if ((Pointer) number != DatumGetPointer(value))
		pfree(number);
	return JENTRY_ISNUMERIC | (padding + VARHDRSZ + length);
}

static const char hex_digits[] = "0123456789abcdef";

static JEntry
append_uuid(StringInfo buf, const pg_uuid_t *uuid)
{
	char *out;

	enlargeStringInfo(buf, 36);
	out = buf->data + buf->len;
	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex_digits[uuid->data[i] >> 4];
		*out++ = hex_digits[uuid->data[i] & 15];
	}
	buf->len += 36;
	buf->data[buf->len] = '\0';
	return JENTRY_ISSTRING | 36;
}

static JEntry
append_bytea(StringInfo buf, Datum value)
{
	struct varlena *bytes = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	Size			length = VARSIZE_ANY_EXHDR(bytes);
	const uint8	   *in = (const uint8 *) VARDATA_ANY(bytes);
	char		   *out;

	if (length > (JENTRY_OFFLENMASK - 2) / 2)
		(void) append_string(buf, NULL, (Size) JENTRY_OFFLENMASK + 1); /* raises */
	enlargeStringInfo(buf, 2 + 2 * length);
	out = buf->data + buf->len;
	*out++ = '\\';
	*out++ = 'x';
	for (Size i = 0; i < length; i++)
	{
		*out++ = hex_digits[in[i] >> 4];
		*out++ = hex_digits[in[i] & 15];
	}
	*out = '\0';
	buf->len += 2 + 2 * length;
	if ((Pointer) bytes != DatumGetPointer(value))
		pfree(bytes);
	return JENTRY_ISSTRING | (2 + 2 * length);
}

/* Another jsonb as a value: a container is taken over as it is. */
static JEntry
append_jsonb(StringInfo buf, Jsonb *jsonb)
{
	Size length = VARSIZE(jsonb) - VARHDRSZ;
	int	 padding;

	if (JB_ROOT_IS_SCALAR(jsonb))
	{
		JEntry entry = jsonb->root.children[0] & JENTRY_TYPEMASK;

		length -= offsetof(JsonbContainer, children) + sizeof(JEntry);
		padding = entry == JENTRY_ISNUMERIC ? pad(buf) : 0;
		appendBinaryStringInfo(buf, (char *) &jsonb->root.children[1], length);
		return entry | (padding + length);
	}
	padding = pad(buf);
	appendBinaryStringInfo(buf, (char *) &jsonb->root, length);
	return JENTRY_ISCONTAINER | (padding + length);
}

/*
 * json holds what jsonb refuses: escapes of characters that text cannot have,
 * and numbers beyond all measure.  Only a text that looks like one is tried in
 * a subtransaction; what fails there is kept as a string.
 */
static bool
json_may_fail(const char *text)
{
	for (const char *p = text; *p != '\0'; p++)
	{
		if (p[0] == '\\' && p[1] == 'u')
			return true;
		if ((p[0] == 'e' || p[0] == 'E') && (isdigit((unsigned char) p[1]) || p[1] == '+' || p[1] == '-') &&
			strspn(p + 2, "0123456789") >= 3)
			return true;
	}
	return strlen(text) > 100000;
}

static Jsonb *
parse_json(char *text)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Jsonb *volatile jsonb = NULL;

	if (!json_may_fail(text))
		return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			ReThrowError(error);
		FreeErrorData(error);
		jsonb = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	return jsonb;
}

static JEntry
append_json(StringInfo buf, Datum value)
{
	char  *string = TextDatumGetCString(value);
	Jsonb *jsonb = parse_json(string);
	JEntry entry;

	if (jsonb != NULL)
	{
		entry = append_jsonb(buf, jsonb);
		pfree(jsonb);
	}
	else
		entry = append_string(buf, string, strlen(string));
	pfree(string);
	return entry;
}

/* Appends one value and returns its entry: its type and length. */
static JEntry
append_value(StringInfo buf, const TaAuditColumn *column, Datum value, bool isnull)
{
	char text[Max(MAXDATELEN, DOUBLE_SHORTEST_DECIMAL_LEN) + 1];
	int	 utc = 0;

	if (column->redacted)
		return append_string(buf, TA_AUDIT_REDACTED, strlen(TA_AUDIT_REDACTED));
	if (isnull)
		return JENTRY_ISNULL;

	switch (column->writer)
	{
		case WRITE_BOOL:
			return DatumGetBool(value) ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
		case WRITE_INT2:
			return append_numeric(buf, int64_to_numeric(DatumGetInt16(value)));
		case WRITE_INT4:
			return append_numeric(buf, int64_to_numeric(DatumGetInt32(value)));
		case WRITE_INT8:
			return append_numeric(buf, int64_to_numeric(DatumGetInt64(value)));
		case WRITE_FLOAT4:
			(void) float_to_shortest_decimal_buf(DatumGetFloat4(value), text);
			return append_float(buf, text);
		case WRITE_FLOAT8:
			(void) double_to_shortest_decimal_buf(DatumGetFloat8(value), text);
			return append_float(buf, text);
		case WRITE_NUMERIC:
			return append_numeric_datum(buf, value);
		case WRITE_TEXT:
		{
			struct varlena *string = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
			JEntry			entry = append_string(buf, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string));

			if ((Pointer) string != DatumGetPointer(value))
				pfree(string);
			return entry;
		}
		case WRITE_NAME:
			return append_string(buf, NameStr(*DatumGetName(value)), strlen(NameStr(*DatumGetName(value))));
		case WRITE_UUID:
			return append_uuid(buf, DatumGetUUIDP(value));
		case WRITE_DATETIME:
			(void) JsonEncodeDateTime(text, value, column->type, &utc);
			return append_string(buf, text, strlen(text));
		case WRITE_BYTEA:
			return append_bytea(buf, value);
		case WRITE_JSON:
			return append_json(buf, value);
		case WRITE_JSONB:
		{
			Jsonb *jsonb = DatumGetJsonbP(value);
			JEntry entry = append_jsonb(buf, jsonb);

			if ((Pointer) jsonb != DatumGetPointer(value))
				pfree(jsonb);
			return entry;
		}
		case WRITE_OUTPUT:
		{
			char  *string = OutputFunctionCall((FmgrInfo *) &column->output, value);
			JEntry entry = append_string(buf, string, strlen(string));

			pfree(string);
			return entry;
		}
		default:
			return append_jsonb(buf, DatumGetJsonbP(FunctionCall1((FmgrInfo *) &column->output, value)));
	}
}

static inline Datum
value_of(TupleTableSlot *row, const TaAuditColumn *column, bool *isnull)
{
	*isnull = row->tts_isnull[column->attnum - 1];
	return row->tts_values[column->attnum - 1];
}

/* Begins a jsonb value in an empty buffer. */
static void
begin_value(StringInfo buf)
{
	resetStringInfo(buf);
	enlargeStringInfo(buf, VARHDRSZ);
	buf->len = VARHDRSZ;
}

/* Begins an object of n pairs; returns where its entries are. */
static int
begin_object(StringInfo buf, int n)
{
	uint32 header = n | JB_FOBJECT;
	int	   entries;

	appendBinaryStringInfo(buf, (char *) &header, sizeof(header));
	entries = buf->len;
	enlargeStringInfo(buf, 2 * n * sizeof(JEntry));
	buf->len += 2 * n * sizeof(JEntry);
	return entries;
}

/*
 * ta_audit_key
 *		The row's primary key as a jsonb object, into buf; false for a table
 *		without one.
 */
bool
ta_audit_key(const TaAuditFormat *format, TupleTableSlot *row, StringInfo buf)
{
	uint32 total = 0;
	int	   entries;

	if (format->nkey == 0)
		return false;
	slot_getallattrs(row);
	begin_value(buf);
	entries = begin_object(buf, format->nkey);
	for (int i = 0; i < format->nkey; i++)
		set_entry(buf, entries, i, append_string(buf, format->key[i].name, format->key[i].name_length), &total);
	for (int i = 0; i < format->nkey; i++)
	{
		bool  isnull;
		Datum value = value_of(row, &format->key[i], &isnull);

		set_entry(buf, entries, format->nkey + i, append_value(buf, &format->key[i], value, isnull), &total);
	}
	SET_VARSIZE(buf->data, buf->len);
	return true;
}

/*
 * ta_audit_image
 *		The whole row as a jsonb object, into buf: what to_jsonb gives, without
 *		what is excluded and with what is redacted replaced.
 */
void
ta_audit_image(const TaAuditFormat *format, TupleTableSlot *row, StringInfo buf)
{
	uint32 total = format->image_keys.len;
	int	   entries;

	slot_getallattrs(row);
	begin_value(buf);
	entries = buf->len + sizeof(uint32);
	appendBinaryStringInfo(buf, format->image_head.data, format->image_head.len);
	enlargeStringInfo(buf, format->ncolumns * sizeof(JEntry));
	buf->len += format->ncolumns * sizeof(JEntry);
	appendBinaryStringInfo(buf, format->image_keys.data, format->image_keys.len);
	for (int i = 0; i < format->ncolumns; i++)
	{
		bool   isnull;
		Datum  value = value_of(row, &format->columns[i], &isnull);
		JEntry entry = append_value(buf, &format->columns[i], value, isnull);

		set_entry(buf, entries, format->ncolumns + i, entry, &total);
	}
	SET_VARSIZE(buf->data, buf->len);
}

/*
 * Comparing
 */

/*
 * ta_audit_same_tuple
 *		Whether two rows of a transition table are the same bytes.  Rows that
 *		are not may still have the same values.
 */
bool
ta_audit_same_tuple(TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	MinimalTuple a;
	MinimalTuple b;
	bool		 free_a;
	bool		 free_b;

	if (!TTS_IS_MINIMALTUPLE(old_row) || !TTS_IS_MINIMALTUPLE(new_row))
		return false;
	a = ExecFetchSlotMinimalTuple(old_row, &free_a);
	b = ExecFetchSlotMinimalTuple(new_row, &free_b);
	Assert(!free_a && !free_b);
	return a->t_len == b->t_len && a->t_hoff == b->t_hoff &&
		   ((a->t_infomask2 ^ b->t_infomask2) & HEAP_NATTS_MASK) == 0 &&
		   ((a->t_infomask ^ b->t_infomask) & HEAP_HASNULL) == 0 &&
		   memcmp(a->t_bits, b->t_bits, a->t_len - offsetof(MinimalTupleData, t_bits)) == 0;
}

static bool
same_varlena(struct varlena *a, struct varlena *b)
{
	struct varlena *whole_a;
	struct varlena *whole_b;
	bool			same;

	/* the same bytes, or the same value outside the row */
	if (VARSIZE_ANY(a) == VARSIZE_ANY(b) && memcmp(a, b, VARSIZE_ANY(a)) == 0)
		return true;
	if (toast_raw_datum_size(PointerGetDatum(a)) != toast_raw_datum_size(PointerGetDatum(b)))
		return false;
	whole_a = pg_detoast_datum_packed(a);
	whole_b = pg_detoast_datum_packed(b);
	same = VARSIZE_ANY_EXHDR(whole_a) == VARSIZE_ANY_EXHDR(whole_b) &&
		   memcmp(VARDATA_ANY(whole_a), VARDATA_ANY(whole_b), VARSIZE_ANY_EXHDR(whole_a)) == 0;
	if (whole_a != a)
		pfree(whole_a);
	if (whole_b != b)
		pfree(whole_b);
	return same;
}

/* Whether a column has the same bytes in both rows, which are deformed. */
static bool
same_value(const TaAuditColumn *column, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	bool  old_isnull;
	bool  new_isnull;
	Datum old_value = value_of(old_row, column, &old_isnull);
	Datum new_value = value_of(new_row, column, &new_isnull);

	if (old_isnull || new_isnull)
		return old_isnull && new_isnull;
	if (column->by_value)
		return old_value == new_value;
	if (column->length == -1)
		return same_varlena((struct varlena *) DatumGetPointer(old_value),
							(struct varlena *) DatumGetPointer(new_value));
	if (column->length == -2)
		return strcmp(DatumGetCString(old_value), DatumGetCString(new_value)) == 0;
	return memcmp(DatumGetPointer(old_value), DatumGetPointer(new_value), column->length) == 0;
}

/*
 * ta_audit_key_changed
 *		Whether two versions of a row have different keys.
 */
bool
ta_audit_key_changed(const TaAuditFormat *format, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	for (int i = 0; i < format->nkey; i++)
		if (!same_value(&format->key[i], old_row, new_row))
			return true;
	return false;
}

/*
 * ta_audit_changes_of
 *		What an update changed, as {"column": {"old": …, "new": …}}, into buf;
 *		false where it changed nothing that is logged.
 */
bool
ta_audit_changes_of(const TaAuditFormat *format, TupleTableSlot *old_row,
					TupleTableSlot *new_row, StringInfo buf)
{
	int	   changed[MaxTupleAttributeNumber];
	int	   n = 0;
	int	   entries;
	uint32 total = 0;

	slot_getallattrs(old_row);
	slot_getallattrs(new_row);
	for (int i = 0; i < format->ncolumns; i++)
		if (!same_value(&format->columns[i], old_row, new_row))
			changed[n++] = i;
	if (n == 0)
		return false;

	begin_value(buf);
	entries = begin_object(buf, n);
	for (int i = 0; i < n; i++)
	{
		const TaAuditColumn *column = &format->columns[changed[i]];

		set_entry(buf, entries, i, append_string(buf, column->name, column->name_length), &total);
	}
	for (int i = 0; i < n; i++)
	{
		const TaAuditColumn *column = &format->columns[changed[i]];
		int					 start = buf->len;
		int					 pair;
		uint32				 pair_total = 0;
		bool				 isnull;
		Datum				 value;

		(void) pad(buf);
		pair = begin_object(buf, 2);
		set_entry(buf, pair, 0, append_string(buf, "new", 3), &pair_total);
		set_entry(buf, pair, 1, append_string(buf, "old", 3), &pair_total);
		value = value_of(new_row, column, &isnull);
		set_entry(buf, pair, 2, append_value(buf, column, value, isnull), &pair_total);
		value = value_of(old_row, column, &isnull);
		set_entry(buf, pair, 3, append_value(buf, column, value, isnull), &pair_total);
		set_entry(buf, entries, n + i, JENTRY_ISCONTAINER | (buf->len - start), &total);
	}
	SET_VARSIZE(buf->data, buf->len);
	return true;
}
