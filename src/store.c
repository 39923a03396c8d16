/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Stores: their registry, and the migrations that make and change them.
 *
 * A store is a schema of ordinary tables, built by the migration files that
 * are installed in SHAREDIR/extension/techally/store.  What has been applied
 * stands in the store's own schema_migrations, which travels with the store
 * in a dump; the registry row (techally.store_registry) points at that table
 * and so follows a renamed schema.
 *
 * Invariants:
 * - Files come from a listing of our own directory.  No argument is ever part
 *	 of a path: a target version only selects from the listing.
 * - A migration and its row in schema_migrations commit together; the whole
 *	 function is one transaction.
 * - Migrations run as the schema's owner, whoever calls, so that everything in
 *	 a store has one owner.  Where that is another role than the caller's (a
 *	 superuser upgrading a tenant's store), they run in a security-restricted
 *	 operation, for what the owner has put into the schema may be in reach of
 *	 the names in them.
 * - The registry is written as its owner, in the narrowest block.
 *
 * Lock order: who makes or drops a store first takes an advisory lock of the
 * transaction on its name; then everybody locks the store's schema_migrations
 * in SHARE ROW EXCLUSIVE mode, and then what the migrations lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <sys/stat.h>

#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parser.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "compat.h"
#include "errors.h"
#include "spi_util.h"
#include "store.h"

#define MIGRATIONS_TABLE "schema_migrations"
#define VERSION_LENGTH	 15			/* YYYYMMDD_HHMMSS */
#define NAME_LOCK_SPACE	 0x74616c79 /* "taly" */

/* What is installed: one migration. */
typedef struct Migration
{
	char *version;
	char *stem; /* file name up to .up.sql */
	bool  has_up;
	bool  has_down;
} Migration;

/* What has been applied to a store: one row of its schema_migrations. */
typedef struct Applied
{
	char	  *version;
	char	  *checksum;
	Migration *file; /* set by verify_applied */
} Applied;

/* The store that a function works on. */
typedef struct Store
{
	const char *name;
	Oid			nspid;
	Oid			owner;
	Oid			anchor;	 /* its schema_migrations */
	const char *machine; /* NULL until it is known */
} Store;

/* Where we are, for the error context. */
typedef struct MigrationPosition
{
	const Store *store;
	const char	*file;
	const char	*text; /* after the tokens were replaced */
	int			 line; /* 0: not at a statement yet */
} MigrationPosition;

static bool allow_drop = false;

static const TaStatement find_machine = {
	"SELECT 1 FROM techally.machines m WHERE m.name = $1", 1, {TEXTOID}};
static const TaStatement find_registered = {
	"SELECT r.machine FROM techally.store_registry r WHERE r.anchor = $1::pg_catalog.regclass",
	1,
	{OIDOID}};
static const TaStatement register_anchor = {
	"INSERT INTO techally.store_registry AS r (anchor, machine, created_at)"
	" VALUES ($1::pg_catalog.regclass, $2, $3)"
	" ON CONFLICT (anchor) DO UPDATE SET machine = excluded.machine",
	3,
	{OIDOID, TEXTOID, TIMESTAMPTZOID}};
static const TaStatement unregister_anchor = {
	"DELETE FROM techally.store_registry r WHERE r.anchor = $1::pg_catalog.regclass",
	1,
	{OIDOID}};
static const TaStatement schema_in_use = {
	"SELECT 1 FROM pg_catalog.pg_depend d"
	" WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass"
	"   AND d.refobjid = $1 AND d.deptype = 'n' LIMIT 1",
	1,
	{OIDOID}};
static const TaStatement select_applied = {
	"SELECT m.version, m.checksum FROM @store@.schema_migrations m"
	" ORDER BY m.version COLLATE \"C\"",
	0};
static const TaStatement insert_applied = {
	"INSERT INTO @store@.schema_migrations (version, description, checksum)"
	" VALUES ($1, $2, $3)",
	3,
	{TEXTOID, TEXTOID, TEXTOID}};
static const TaStatement delete_applied = {
	"DELETE FROM @store@.schema_migrations m WHERE m.version = $1", 1, {TEXTOID}};
static const TaStatement select_version = {
	"SELECT pg_catalog.max(m.version COLLATE \"C\") FROM @store@.schema_migrations m", 0};
static const TaStatement select_created_at = {
	"SELECT coalesce(pg_catalog.min(m.applied_at), pg_catalog.now())"
	"  FROM @store@.schema_migrations m",
	0};
static const TaStatement select_setting_machine = {
	"SELECT s.value #>> '{}' FROM @store@.store_settings s WHERE s.name = 'machine'", 0};
static const TaStatement lock_orders = {
	"LOCK TABLE @store@.orders IN ACCESS EXCLUSIVE MODE", 0};
static const TaStatement find_order = {
	"SELECT 1 FROM @store@.orders LIMIT 1", 0};
static const TaStatement count_columns = {
	"SELECT pg_catalog.count(*)::pg_catalog.int4"
	"  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
	" WHERE c.relnamespace = $1 AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped",
	1,
	{OIDOID}};

/* The bookkeeping table is no migration's: it is there before the first. */
static const char *const make_migrations_table[] = {
	"CREATE TABLE schema_migrations ("
	" version text CONSTRAINT schema_migrations_pkey PRIMARY KEY,"
	" description text NOT NULL,"
	" checksum text NOT NULL,"
	" applied_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,"
	" CONSTRAINT chk_schema_migrations_version CHECK (version ~ '^[0-9]{8}_[0-9]{6}$'),"
	" CONSTRAINT chk_schema_migrations_checksum CHECK (checksum ~ '^[0-9a-f]{64}$'))",
	"COMMENT ON TABLE schema_migrations IS 'The migrations that made this store; kept by techally.create_store and techally.upgrade_store'",
	"COMMENT ON COLUMN schema_migrations.version IS 'Version: date and time in the file''s name'",
	"COMMENT ON COLUMN schema_migrations.description IS 'Rest of the file''s name'",
	"COMMENT ON COLUMN schema_migrations.checksum IS 'SHA-256 of the up file as it was applied, in hexadecimal'",
	"COMMENT ON COLUMN schema_migrations.applied_at IS 'When it was applied'",
};

/*
 * ta_store_init
 *		Defines the stores' settings.  Called once, by _PG_init.
 */
void
ta_store_init(void)
{
	DefineCustomBoolVariable("techally.allow_drop",
							 "Lets a store that has orders be dropped.",
							 "Also lets techally.upgrade_store take it down to a version that cannot hold them.",
							 &allow_drop,
							 false,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);
}

/*
 * The installed files
 */

/*
 * Takes a file name apart.  False where it is no migration's:
 * YYYYMMDD_HHMMSS_description.up.sql or .down.sql, in lower case.
 */
static bool
parse_file_name(const char *name, char **stem, bool *is_up)
{
	const char *dot = strchr(name, '.');

	if (dot == NULL || dot - name < VERSION_LENGTH + 2)
		return false;
	if (strcmp(dot, ".up.sql") == 0)
		*is_up = true;
	else if (strcmp(dot, ".down.sql") == 0)
		*is_up = false;
	else
		return false;

	for (const char *at = name; at < dot; at++)
	{
		int offset = at - name;

		if (offset == 8 || offset == VERSION_LENGTH)
		{
			if (*at != '_')
				return false;
		}
		else if (offset < VERSION_LENGTH)
		{
			if (*at < '0' || *at > '9')
				return false;
		}
		else if (!((*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9') || *at == '_'))
			return false;
	}

	*stem = pnstrdup(name, dot - name);
	return true;
}

static char *
migrations_directory(void)
{
	char sharepath[MAXPGPATH];

	get_share_path(my_exec_path, sharepath);
	return psprintf("%s/extension/techally/store", sharepath);
}

static int
compare_migrations(const ListCell *a, const ListCell *b)
{
	return strcmp(((Migration *) lfirst(a))->stem, ((Migration *) lfirst(b))->stem);
}

/* The migrations that are installed, by version; each has an up file. */
static List *
installed_migrations(void)
{
	List		  *found = NIL;
	List		  *result = NIL;
	char		  *directory = migrations_directory();
	DIR			  *dir = AllocateDir(directory);
	struct dirent *de;
	ListCell	  *lc;
	Migration	  *previous = NULL;

	while ((de = ReadDir(dir, directory)) != NULL)
	{
		Migration *migration = NULL;
		char	  *stem;
		bool	   is_up;

		if (!parse_file_name(de->d_name, &stem, &is_up))
			continue;

		foreach(lc, found)
		{
			if (strcmp(((Migration *) lfirst(lc))->stem, stem) == 0)
				migration = (Migration *) lfirst(lc);
		}
		if (migration == NULL)
		{
			migration = palloc0(sizeof(Migration));
			migration->stem = stem;
			migration->version = pnstrdup(stem, VERSION_LENGTH);
			found = lappend(found, migration);
		}
		if (is_up)
			migration->has_up = true;
		else
			migration->has_down = true;
	}
	FreeDir(dir);

	list_sort(found, compare_migrations);
	foreach(lc, found)
	{
		Migration *migration = (Migration *) lfirst(lc);

		if (!migration->has_up)
			continue;
		if (previous != NULL && strcmp(previous->version, migration->version) == 0)
			ereport(ERROR,
					(errcode(TA_ERRCODE_STORE_ERROR),
					 errmsg("migrations \"%s\" and \"%s\" have the same version",
							previous->stem, migration->stem),
					 errhint("Install techally again: \"%s\" holds files of more than one release.",
							 directory)));
		result = lappend(result, migration);
		previous = migration;
	}
	return result;
}

static Migration *
find_migration(List *installed, const char *version)
{
	ListCell *lc;

	foreach(lc, installed)
	{
		Migration *migration = (Migration *) lfirst(lc);

		if (strcmp(migration->version, version) == 0)
			return migration;
	}
	return NULL;
}

/* Functions and guards, which adopt_store may run again. */
static bool
is_api(const Migration *migration)
{
	size_t length = strlen(migration->stem);

	return length >= 4 && strcmp(migration->stem + length - 4, "_api") == 0;
}

/* The whole of an installed file, by the name that the listing gave. */
static bytea *
read_migration_file(const char *file)
{
	char	   *path = psprintf("%s/%s", migrations_directory(), file);
	FILE	   *handle = AllocateFile(path, PG_BINARY_R);
	struct stat st;
	bytea	   *result;
	size_t		length;

	if (handle == NULL || fstat(fileno(handle), &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	if (st.st_size > (off_t) (MaxAllocSize / 4))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("file \"%s\" is too large", path)));

	length = (size_t) st.st_size;
	result = palloc(VARHDRSZ + length);
	SET_VARSIZE(result, VARHDRSZ + length);
	if (fread(VARDATA(result), 1, length, handle) != length)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	FreeFile(handle);
	return result;
}

/*
 * SHA-256 of a migration's up file, in hexadecimal.
 *
 * The down file is left out: it has left nothing in the store yet, and one
 * that turns out to be wrong must be correctable after the fact.
 */
static char *
file_checksum(const Migration *migration)
{
	bytea *content = read_migration_file(psprintf("%s.up.sql", migration->stem));
	bytea *digest = DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
														PointerGetDatum(content)));
	size_t length = VARSIZE_ANY_EXHDR(digest);
	char  *result = palloc(length * 2 + 1);

	result[hex_encode(VARDATA_ANY(digest), length, result)] = '\0';
	pfree(content);
	return result;
}

/*
 * Running one file
 */

/*
 * A literal that holds anywhere in a migration, also inside a dollar-quoted
 * body, which a name with a dollar sign in it could otherwise end.
 */
static char *
literal_token(const char *value)
{
	StringInfoData buf;

	if (strpbrk(value, "$\\") == NULL)
		return quote_literal_cstr(value);

	initStringInfo(&buf);
	appendStringInfoString(&buf, "E'");
	for (; *value; value++)
	{
		if (*value == '$')
			appendStringInfoString(&buf, "\\x24");
		else
		{
			if (*value == '\'' || *value == '\\')
				appendStringInfoChar(&buf, *value);
			appendStringInfoChar(&buf, *value);
		}
	}
	appendStringInfoChar(&buf, '\'');
	return buf.data;
}

/* The same for an identifier. */
static char *
identifier_token(const char *value)
{
	StringInfoData buf;

	if (strchr(value, '$') == NULL)
		return pstrdup(quote_identifier(value));

	initStringInfo(&buf);
	appendStringInfoString(&buf, "U&\"");
	for (; *value; value++)
	{
		if (*value == '$')
			appendStringInfoString(&buf, "\\0024");
		else
		{
			if (*value == '"' || *value == '\\')
				appendStringInfoChar(&buf, *value);
			appendStringInfoChar(&buf, *value);
		}
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

/* A migration's text for this store, its tokens replaced in one pass. */
static char *
expand_tokens(const Store *store, const char *text)
{
	const struct
	{
		const char *token;
		char	   *value;
	} tokens[] = {
		{"@store@", identifier_token(store->name)},
		{"@store_literal@", literal_token(store->name)},
		{"@machine@", literal_token(store->machine)},
	};
	StringInfoData buf;

	initStringInfo(&buf);
	while (*text)
	{
		bool replaced = false;

		for (size_t i = 0; *text == '@' && i < lengthof(tokens); i++)
		{
			size_t length = strlen(tokens[i].token);

			if (strncmp(text, tokens[i].token, length) == 0)
			{
				appendStringInfoString(&buf, tokens[i].value);
				text += length;
				replaced = true;
				break;
			}
		}
		if (!replaced)
			appendStringInfoChar(&buf, *text++);
	}
	return buf.data;
}

/* Says in which file an error happened, and on which line. */
static void
migration_error_callback(void *arg)
{
	MigrationPosition *position = (MigrationPosition *) arg;
	int				   at = geterrposition();

	/* a syntax error's position counts in the file, not in the caller's query */
	if (position->line == 0 && at > 0)
	{
		errposition(0);
		internalerrposition(at);
		internalerrquery(position->text);
	}

	if (position->line > 0)
		errcontext("line %d of migration \"%s\" of store \"%s\"",
				   position->line, position->file, position->store->name);
	else
		errcontext("migration \"%s\" of store \"%s\"",
				   position->file, position->store->name);
}

/* Where a statement begins, past the blanks and comments that lead up to it. */
static int
skip_to_statement(const char *text, int at)
{
	for (;;)
	{
		while (text[at] != '\0' && isspace((unsigned char) text[at]))
			at++;
		if (text[at] != '-' || text[at + 1] != '-')
			return at;
		while (text[at] != '\0' && text[at] != '\n')
			at++;
	}
}

/*
 * Runs one file's statements.  Needs an open migration frame.
 *
 * Each statement goes to SPI by itself, so that it sees what those before it
 * made, and so that an error shows the statement and not the whole file.
 */
static void
run_file(const Store *store, const char *file)
{
	MigrationPosition	 position = {0};
	ErrorContextCallback callback;
	MemoryContext		 context;
	MemoryContext		 old_context;
	bytea				*content;
	char				*text;
	List				*statements;
	ListCell			*lc;
	int					 line = 1;
	int					 counted = 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "techally migration",
									ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);

	content = read_migration_file(file);
	text = pg_any_to_server(VARDATA(content), VARSIZE(content) - VARHDRSZ, PG_UTF8);
	if (text == VARDATA(content)) /* not converted, and not terminated */
		text = pnstrdup(text, VARSIZE(content) - VARHDRSZ);
	text = expand_tokens(store, text);

	position.store = store;
	position.file = file;
	position.text = text;
	callback.callback = migration_error_callback;
	callback.arg = &position;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	statements = raw_parser(text, RAW_PARSE_DEFAULT);
	foreach(lc, statements)
	{
		RawStmt *statement = lfirst_node(RawStmt, lc);
		int		 start = skip_to_statement(text, statement->stmt_location);
		int		 end = statement->stmt_location + statement->stmt_len;
		int		 rc;

		if (statement->stmt_len == 0) /* the last, without a semicolon */
			end = strlen(text);
		for (; counted < start; counted++)
		{
			if (text[counted] == '\n')
				line++;
		}
		position.line = line;

		CHECK_FOR_INTERRUPTS();
		rc = SPI_execute(pnstrdup(text + start, end - start), false, 0);
		if (rc < 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("statement is not allowed in a migration"),
					 errdetail("SPI reports %s.", SPI_result_code_string(rc))));
		SPI_freetuptable(SPI_tuptable);
	}

	error_context_stack = callback.previous;
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}

/* What a migration frame changes of its surroundings; see ta_frame_begin. */
typedef struct MigrationFrame
{
	TaFrame frame;
	int		guc_level;
} MigrationFrame;

static void
set_local(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Opens SPI as the store's owner with the search_path "<store>, pg_temp", so
 * that migrations name their tables bare, and with the settings that could
 * change what their text means pinned.
 */
static void
migration_frame_begin(MigrationFrame *frame, const Store *store)
{
	ta_frame_begin(&frame->frame, store->owner);
	if (frame->frame.switched_user)
	{
		Oid userid;
		int sec_context;

		GetUserIdAndSecContext(&userid, &sec_context);
		SetUserIdAndSecContext(userid, sec_context | SECURITY_RESTRICTED_OPERATION);
	}

	frame->guc_level = NewGUCNestLevel();
	set_local("search_path", psprintf("%s, pg_temp", quote_identifier(store->name)));
	set_local("standard_conforming_strings", "on");
	set_local("check_function_bodies", "on");
	set_local("row_security", "off");
	if (client_min_messages < WARNING)
		set_local("client_min_messages", "warning");
}

static void
migration_frame_end(MigrationFrame *frame)
{
	AtEOXact_GUC(true, frame->guc_level);
	ta_frame_end(&frame->frame);
}

/*
 * The registry
 */

static Oid
engine_namespace(void)
{
	return get_namespace_oid("techally", false);
}

/* The role that the registry is read and written as: its owner. */
static Oid
registry_owner(void)
{
	return ta_relation_owner(get_relname_relid("store_registry", engine_namespace()));
}

/* Raises TA007 where no such machine is defined. */
static void
check_machine(const char *machine)
{
	TaFrame frame;
	Datum	values[1] = {CStringGetTextDatum(machine)};

	ta_frame_begin(&frame, registry_owner());
	if (ta_query(engine_namespace(), &find_machine, values, NULL) == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("state machine \"%s\" does not exist", machine),
				 errhint("Define it first with techally.define_machine.")));
	ta_frame_end(&frame);
}

/* The machine that a store is registered with; raises TA009 where it is not. */
static char *
registered_machine(const Store *store)
{
	TaFrame		  frame;
	MemoryContext caller = CurrentMemoryContext;
	Datum		  values[1] = {ObjectIdGetDatum(store->anchor)};
	char		 *result;

	ta_frame_begin(&frame, registry_owner());
	PushActiveSnapshot(GetLatestSnapshot());
	if (ta_query(engine_namespace(), &find_registered, values, NULL) == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("store \"%s\" is not registered", store->name),
				 errhint("Run techally.adopt_store first: it registers the store and puts its guards back.")));
	result = MemoryContextStrdup(caller, ta_spi_text(0, 1));
	PopActiveSnapshot();
	ta_frame_end(&frame);
	return result;
}

static void
register_store(const Store *store, Datum created_at)
{
	TaFrame frame;
	Datum	values[3] = {
		  ObjectIdGetDatum(store->anchor),
		  CStringGetTextDatum(store->machine),
		  created_at};

	ta_frame_begin(&frame, registry_owner());
	ta_execute(engine_namespace(), &register_anchor, SPI_OK_INSERT, values, NULL);
	ta_frame_end(&frame);
}

/*
 * The store
 */

/*
 * Finds a store, checks that the caller owns its schema, and locks it against
 * anybody else who would migrate it.  Raises TA009 and 42501.
 */
static void
open_store(Store *store, Name name)
{
	Oid nspid = ta_store_namespace(name);

	memset(store, 0, sizeof(*store));
	store->name = pstrdup(NameStr(*name));

	if (!object_ownercheck(NamespaceRelationId, nspid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SCHEMA, store->name);

	/* after the lock things are as they stay: look again, under it */
	store->anchor = RangeVarGetRelid(makeRangeVar(pstrdup(store->name),
												  pstrdup(MIGRATIONS_TABLE), -1),
									 ShareRowExclusiveLock, true);
	store->nspid = ta_store_namespace(name);
	if (!object_ownercheck(NamespaceRelationId, store->nspid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SCHEMA, store->name);
	store->owner = ta_namespace_owner(store->nspid);

	/* other tools have tables of this name, too */
	if (get_rel_relkind(store->anchor) != RELKIND_RELATION ||
		get_attnum(store->anchor, "version") == InvalidAttrNumber ||
		get_attnum(store->anchor, "checksum") == InvalidAttrNumber ||
		get_attnum(store->anchor, "applied_at") == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("schema \"%s\" is not a store", store->name),
				 errdetail("Its table \"%s\" was not made by techally.", MIGRATIONS_TABLE)));
}

/*
 * What has been applied, by version, as it is now: like the catalogs, it is
 * read under a fresh snapshot even where the transaction's is older.
 */
static List *
applied_migrations(const Store *store)
{
	MigrationFrame frame;
	MemoryContext  caller = CurrentMemoryContext;
	List		  *result = NIL;
	uint64		   rows;

	migration_frame_begin(&frame, store);
	PushActiveSnapshot(GetLatestSnapshot());
	rows = ta_query(store->nspid, &select_applied, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		Applied		 *applied = palloc0(sizeof(Applied));

		applied->version = ta_spi_text(row, 1);
		applied->checksum = ta_spi_text(row, 2);
		if (applied->version == NULL || applied->checksum == NULL)
			elog(ERROR, "row of \"%s\" without version or checksum", MIGRATIONS_TABLE);
		result = lappend(result, applied);
		MemoryContextSwitchTo(spi);
	}
	PopActiveSnapshot();
	migration_frame_end(&frame);
	return result;
}

/* Matches what is applied with what is installed; raises TA009 on a difference. */
static void
verify_applied(const Store *store, List *applied, List *installed)
{
	ListCell *lc;

	foreach(lc, applied)
	{
		Applied *migration = (Applied *) lfirst(lc);

		migration->file = find_migration(installed, migration->version);
		if (migration->file == NULL)
			ereport(ERROR,
					(errcode(TA_ERRCODE_STORE_ERROR),
					 errmsg("migration \"%s\" of store \"%s\" is not installed",
							migration->version, store->name),
					 errhint("The store was made by another release of techally: install that one, or a later one.")));
		if (strcmp(migration->checksum, file_checksum(migration->file)) != 0)
			ereport(ERROR,
					(errcode(TA_ERRCODE_STORE_ERROR),
					 errmsg("migration file \"%s.up.sql\" has changed since it was applied to store \"%s\"",
							migration->file->stem, store->name),
					 errdetail("Its checksum was %s.", migration->checksum),
					 errhint("Put the file back as it was; a change to a store is a migration of its own.")));
	}
}

/* Applies one migration and records it. */
static void
migrate_up(const Store *store, const Migration *migration)
{
	MigrationFrame frame;
	Datum		   values[3];

	migration_frame_begin(&frame, store);
	run_file(store, psprintf("%s.up.sql", migration->stem));
	values[0] = CStringGetTextDatum(migration->version);
	values[1] = CStringGetTextDatum(migration->stem + VERSION_LENGTH + 1);
	values[2] = CStringGetTextDatum(file_checksum(migration));
	ta_execute(store->nspid, &insert_applied, SPI_OK_INSERT, values, NULL);
	migration_frame_end(&frame);
}

/* Takes one migration back and its record away. */
static void
migrate_down(const Store *store, const Applied *migration)
{
	MigrationFrame frame;
	Datum		   values[1];

	if (!migration->file->has_down)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("migration file \"%s.down.sql\" is not installed",
						migration->file->stem),
				 errdetail("Without it the migration cannot be taken back.")));

	migration_frame_begin(&frame, store);
	run_file(store, psprintf("%s.down.sql", migration->file->stem));
	values[0] = CStringGetTextDatum(migration->version);
	ta_execute(store->nspid, &delete_applied, SPI_OK_DELETE, values, NULL);
	migration_frame_end(&frame);
}

/* Takes back what is newer than target, the newest first; NULL: everything. */
static void
migrate_down_to(const Store *store, List *applied, const char *target)
{
	for (int i = list_length(applied) - 1; i >= 0; i--)
	{
		Applied *migration = (Applied *) list_nth(applied, i);

		if (target == NULL || strcmp(migration->version, target) > 0)
			migrate_down(store, migration);
	}
}

/* Applies what is missing up to target, the oldest first; NULL: everything. */
static void
migrate_up_to(const Store *store, List *applied, List *installed, const char *target)
{
	ListCell *lc;

	foreach(lc, installed)
	{
		Migration *migration = (Migration *) lfirst(lc);
		ListCell  *done;
		bool	   is_applied = false;

		if (target != NULL && strcmp(migration->version, target) > 0)
			break;
		foreach(done, applied)
		{
			if (((Applied *) lfirst(done))->file == migration)
				is_applied = true;
		}
		if (!is_applied)
			migrate_up(store, migration);
	}
}

/*
 * Arguments
 */

static void
refuse_null(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

/*
 * Refuses the names that cannot be a store's.  "$user" is one of them because
 * it means something else in a search_path, even when quoted.
 */
static void
check_store_name(const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a store must not be empty")));
	if (IsReservedName(name) ||
		strcmp(name, "information_schema") == 0 ||
		strcmp(name, "techally") == 0 ||
		strcmp(name, "$user") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("\"%s\" cannot be the name of a store", name),
				 errdetail("The name is reserved.")));
}

/* Runs statements of ours in the frame that is open. */
static void
run_statements(const char *const *statements, int count)
{
	for (int i = 0; i < count; i++)
	{
		int rc = SPI_execute(statements[i], false, 0);

		if (rc < 0)
			elog(ERROR, "unexpected SPI result %s from: %s",
				 SPI_result_code_string(rc), statements[i]);
	}
}

/*
 * Until the transaction ends, lets nobody else make or drop a store of this
 * name: before it is made there is no table to lock.
 */
static void
lock_name(const char *name)
{
	DirectFunctionCall2(pg_advisory_xact_lock_int4,
						Int32GetDatum(NAME_LOCK_SPACE),
						Int32GetDatum((int32) hash_bytes((const unsigned char *) name, strlen(name))));
	AcceptInvalidationMessages();
}

/* Creates the store's schema, or takes an empty one that the caller owns. */
static void
make_schema(Store *store)
{
	TaFrame frame;

	ta_frame_begin(&frame, InvalidOid);
	store->nspid = get_namespace_oid(store->name, true);
	if (OidIsValid(store->nspid))
	{
		Datum values[1] = {ObjectIdGetDatum(store->nspid)};

		if (OidIsValid(get_relname_relid(MIGRATIONS_TABLE, store->nspid)))
			ereport(ERROR,
					(errcode(TA_ERRCODE_STORE_ERROR),
					 errmsg("store \"%s\" already exists", store->name),
					 errhint("techally.upgrade_store brings it up to date; techally.adopt_store registers it where the view techally.stores does not show it.")));
		if (!object_ownercheck(NamespaceRelationId, store->nspid, GetUserId()))
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SCHEMA, store->name);
		PushActiveSnapshot(GetLatestSnapshot());
		if (ta_query(engine_namespace(), &schema_in_use, values, NULL) > 0)
			ereport(ERROR,
					(errcode(TA_ERRCODE_STORE_ERROR),
					 errmsg("schema \"%s\" exists and is not empty", store->name),
					 errhint("A store needs a schema of its own.")));
		PopActiveSnapshot();
	}
	else
	{
		const char *create[] = {psprintf("CREATE SCHEMA %s", quote_identifier(store->name))};

		run_statements(create, 1);
		store->nspid = get_namespace_oid(store->name, false);
	}
	ta_frame_end(&frame);
	store->owner = ta_namespace_owner(store->nspid);
}

PG_FUNCTION_INFO_V1(ta_create_store);
PG_FUNCTION_INFO_V1(ta_upgrade_store);
PG_FUNCTION_INFO_V1(ta_drop_store);
PG_FUNCTION_INFO_V1(ta_adopt_store);
PG_FUNCTION_INFO_V1(ta_store_version);

/*
 * create_store(store name, machine text) returns void
 *		Makes a store with every migration that is installed.
 *
 * Raises TA009 where it exists or its schema holds something, TA007 for an
 * unknown machine, 42939 for a reserved name, 22004 for NULL, and PostgreSQL's
 * own 42501 where the caller may not create a schema.  A second creator of the
 * same name waits for the first one's transaction to end.
 */
Datum
ta_create_store(PG_FUNCTION_ARGS)
{
	Store		   store = {0};
	MigrationFrame frame;

	PreventCommandIfReadOnly("create_store()");
	refuse_null(fcinfo, 0, "store");
	refuse_null(fcinfo, 1, "machine");
	store.name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	store.machine = text_to_cstring(PG_GETARG_TEXT_PP(1));
	check_store_name(store.name);
	check_machine(store.machine);

	lock_name(store.name);
	make_schema(&store);

	migration_frame_begin(&frame, &store);
	run_statements(make_migrations_table, lengthof(make_migrations_table));
	store.anchor = get_relname_relid(MIGRATIONS_TABLE, store.nspid);
	migration_frame_end(&frame);

	/* first the registry: what migrations call may ask for the store there */
	register_store(&store, TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
	migrate_up_to(&store, NIL, installed_migrations(), NULL);
	PG_RETURN_VOID();
}

/*
 * Whether there are orders that must not be lost: not where the caller has
 * allowed it.  Locks them first, so that none can come after the look.
 */
static bool
has_guarded_orders(const Store *store)
{
	MigrationFrame frame;
	bool		   result;

	if (allow_drop || !OidIsValid(get_relname_relid("orders", store->nspid)))
		return false;

	migration_frame_begin(&frame, store);
	ta_execute(store->nspid, &lock_orders, SPI_OK_UTILITY, NULL, NULL);
	PushActiveSnapshot(GetLatestSnapshot());
	result = ta_query(store->nspid, &find_order, NULL, NULL) > 0;
	PopActiveSnapshot();
	migration_frame_end(&frame);
	return result;
}

/* How many columns the store's tables have, as things are now. */
static int
column_count(const Store *store)
{
	TaFrame frame;
	Datum	values[1] = {ObjectIdGetDatum(store->nspid)};
	bool	isnull;
	int		result;

	ta_frame_begin(&frame, InvalidOid);
	PushActiveSnapshot(GetLatestSnapshot());
	(void) ta_query(engine_namespace(), &count_columns, values, NULL);
	result = DatumGetInt32(ta_spi_value(0, 1, &isnull));
	PopActiveSnapshot();
	ta_frame_end(&frame);
	return result;
}

/*
 * upgrade_store(store name, target text) returns void
 *		Brings a store to a version, up or down; NULL: the newest.
 *
 * Raises TA009 for an unknown store or version, for a file that has changed or
 * is missing, 42501 where the caller does not own the schema, 22004 for a NULL
 * store, 55006 where the way down would take columns away while there are
 * orders and techally.allow_drop is off, and what a migration raises.
 */
Datum
ta_upgrade_store(PG_FUNCTION_ARGS)
{
	Store store;
	List *installed;
	List *applied;
	char *target = NULL;

	PreventCommandIfReadOnly("upgrade_store()");
	refuse_null(fcinfo, 0, "store");
	if (!PG_ARGISNULL(1))
		target = text_to_cstring(PG_GETARG_TEXT_PP(1));

	open_store(&store, PG_GETARG_NAME(0));
	store.machine = registered_machine(&store);
	installed = installed_migrations();
	if (target != NULL && find_migration(installed, target) == NULL)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("there is no migration of version \"%s\"", target),
				 errhint("A version is the date and time in a migration's file name, as in \"20261121_000100\".")));

	applied = applied_migrations(&store);
	verify_applied(&store, applied, installed);
	if (target != NULL && applied != NIL &&
		strcmp(((Applied *) llast(applied))->version, target) > 0)
	{
		int guarded_columns = has_guarded_orders(&store) ? column_count(&store) : 0;

		migrate_down_to(&store, applied, target);
		if (guarded_columns > 0 && column_count(&store) < guarded_columns)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("store \"%s\" has orders", store.name),
					 errdetail("Version \"%s\" lacks tables or columns that they need.", target),
					 errhint("To lose what is in them, SET techally.allow_drop = on first.")));
	}
	migrate_up_to(&store, applied, installed, target);
	PG_RETURN_VOID();
}

/*
 * drop_store(store name) returns void
 *		Takes every migration back and drops the schema.
 *
 * Raises 55006 while orders exist, unless techally.allow_drop is on, 2BP01
 * where somebody else's object is in the schema or depends on it, and what
 * upgrade_store raises.
 */
Datum
ta_drop_store(PG_FUNCTION_ARGS)
{
	Store		   store;
	List		  *applied;
	MigrationFrame frame;
	TaFrame		   registry;
	Datum		   values[1];
	const char	  *drops[2];

	PreventCommandIfReadOnly("drop_store()");
	refuse_null(fcinfo, 0, "store");
	lock_name(NameStr(*PG_GETARG_NAME(0)));
	open_store(&store, PG_GETARG_NAME(0));
	store.machine = registered_machine(&store);
	if (has_guarded_orders(&store))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("store \"%s\" has orders", store.name),
				 errhint("To drop it with them, SET techally.allow_drop = on first.")));

	applied = applied_migrations(&store);
	verify_applied(&store, applied, installed_migrations());
	migrate_down_to(&store, applied, NULL);

	/* the event trigger does this, too, unless somebody switched it off */
	values[0] = ObjectIdGetDatum(store.anchor);
	ta_frame_begin(&registry, registry_owner());
	ta_execute(engine_namespace(), &unregister_anchor, SPI_OK_DELETE, values, NULL);
	ta_frame_end(&registry);

	drops[0] = psprintf("DROP TABLE %s.%s RESTRICT", quote_identifier(store.name), MIGRATIONS_TABLE);
	drops[1] = psprintf("DROP SCHEMA %s RESTRICT", quote_identifier(store.name));
	migration_frame_begin(&frame, &store);
	run_statements(drops, lengthof(drops));
	migration_frame_end(&frame);
	PG_RETURN_VOID();
}

/* What the store itself remembers: its machine, and since when it exists. */
static void
recall_store(Store *store, Datum *created_at)
{
	MigrationFrame frame;
	MemoryContext  caller = CurrentMemoryContext;
	bool		   isnull;
	char		  *machine = NULL;

	migration_frame_begin(&frame, store);
	if (OidIsValid(get_relname_relid("store_settings", store->nspid)) &&
		ta_query(store->nspid, &select_setting_machine, NULL, NULL) == 1)
		machine = ta_spi_text(0, 1);
	if (machine == NULL)
		ereport(ERROR,
				(errcode(TA_ERRCODE_STORE_ERROR),
				 errmsg("store \"%s\" does not say which state machine it uses", store->name),
				 errhint("Insert the row ('machine', '\"techally\"') into its table store_settings.")));
	store->machine = MemoryContextStrdup(caller, machine);

	(void) ta_query(store->nspid, &select_created_at, NULL, NULL);
	*created_at = ta_spi_value(0, 1, &isnull);
	migration_frame_end(&frame);
}

/*
 * adopt_store(store name) returns void
 *		Registers a store that was restored, renamed or orphaned, and runs its
 *		migrations that make functions and guards again.
 *
 * Harmless for a store that lacks nothing.  Raises TA007 where the store's
 * machine is not defined in this database, and what upgrade_store raises.
 */
Datum
ta_adopt_store(PG_FUNCTION_ARGS)
{
	Store		   store;
	MigrationFrame frame;
	List		  *applied;
	ListCell	  *lc;
	Datum		   created_at;

	PreventCommandIfReadOnly("adopt_store()");
	refuse_null(fcinfo, 0, "store");
	open_store(&store, PG_GETARG_NAME(0));
	check_store_name(store.name);
	recall_store(&store, &created_at);
	check_machine(store.machine);

	applied = applied_migrations(&store);
	verify_applied(&store, applied, installed_migrations());
	register_store(&store, created_at);

	migration_frame_begin(&frame, &store);
	foreach(lc, applied)
	{
		Applied *migration = (Applied *) lfirst(lc);

		if (is_api(migration->file))
			run_file(&store, psprintf("%s.up.sql", migration->file->stem));
	}
	migration_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * store_version(anchor regclass) returns text
 *		The newest version that is applied to a registered store; for the view
 *		techally.stores.  NULL for anything else.
 *
 * Reads as the store's owner: who may see the list of stores need not be able
 * to read their tables.
 */
Datum
ta_store_version(PG_FUNCTION_ARGS)
{
	Oid			   anchor = PG_GETARG_OID(0);
	Oid			   nspid = get_rel_namespace(anchor);
	Datum		   values[1] = {ObjectIdGetDatum(anchor)};
	TaFrame		   registry;
	MigrationFrame frame;
	MemoryContext  caller = CurrentMemoryContext;
	Store		   store = {0};
	bool		   is_registered;
	char		  *version;

	if (!OidIsValid(nspid))
		PG_RETURN_NULL();
	ta_frame_begin(&registry, registry_owner());
	is_registered = ta_query(engine_namespace(), &find_registered, values, NULL) > 0;
	ta_frame_end(&registry);
	if (!is_registered)
		PG_RETURN_NULL();

	store.name = get_namespace_name(nspid);
	store.nspid = nspid;
	store.owner = ta_relation_owner(anchor);
	migration_frame_begin(&frame, &store);
	(void) ta_query(nspid, &select_version, NULL, NULL);
	version = ta_spi_text(0, 1);
	if (version != NULL)
		version = MemoryContextStrdup(caller, version);
	migration_frame_end(&frame);

	if (version == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(version));
}
