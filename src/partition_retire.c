/*-------------------------------------------------------------------------
 *
 * partition_retire.c
 *	  What becomes of partitions whose time is up: dropped, detached or
 *	  archived; and back.
 *
 * One call retires one partition, judged by its real upper bound.  Detaching
 * is short and takes the locks that hurt; moving an archive to a tablespace or
 * into a file is long and takes none on the parent, so it is done by the next
 * call, in a transaction of its own (techally.archives says where it stands).
 *
 * Invariants:
 * - A partition is not touched while a row of another table points at one of
 *	 its rows, or where a foreign key would forbid the drop: that is found before
 *	 any lock is taken, and the other partitions go on.
 * - A table is dropped only after its file was written, flushed, read back and
 *	 compared, in the transaction that says so in techally.archives.
 * - A partition that was restored stays until forget_restored.
 *
 * Lock order: that of partition.c; the partition comes after DEFAULT.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "partition.h"
#include "partition_archive.h"
#include "progress.h"
#include "request_util.h"

#define MAX_FAILED 16 /* partitions that one call tries in vain */

/* A row of techally.archives. */
typedef struct Archive
{
	char	 *name;
	Oid		  parent;
	char	 *kind;
	char	 *location;
	char	 *status;
	Oid		  relation;
	char	 *partition; /* bare */
	TaRange	  range;
	TaArchive content;
} Archive;

static const TaStatement archive_columns_pending = {
	"SELECT a.archive, a.parent::oid, a.kind, a.location, a.status, a.relation::oid, a.partition,"
	"       a.from_time, a.to_time, a.rows, a.bytes, a.checksum, a.columns"
	"  FROM techally.archives a"
	" WHERE a.parent = $1::pg_catalog.regclass AND a.status = 'detached' AND a.relation IS NOT NULL"
	" ORDER BY a.archived_at LIMIT 1",
	1,
	{OIDOID}};
static const TaStatement archive_columns_seen = {
	"SELECT a.archive, a.parent::oid, a.kind, a.location, a.status, a.relation::oid, a.partition,"
	"       a.from_time, a.to_time, a.rows, a.bytes, a.checksum, a.columns"
	"  FROM techally.archives a WHERE a.archive = $1",
	1,
	{TEXTOID}};
static const TaStatement archive_columns_named = {
	"SELECT a.archive, a.parent::oid, a.kind, a.location, a.status, a.relation::oid, a.partition,"
	"       a.from_time, a.to_time, a.rows, a.bytes, a.checksum, a.columns"
	"  FROM techally.archives a WHERE a.archive = $1 FOR UPDATE",
	1,
	{TEXTOID}};
static const TaStatement insert_archive = {
	"INSERT INTO techally.archives (archive, parent, parent_name, partition, from_time, to_time, kind, location, status, relation)"
	" SELECT n.name, $1::pg_catalog.regclass, $2, $3, $4, $5, $6, $7, $8, $9::pg_catalog.regclass"
	"   FROM (SELECT $10::pg_catalog.text || CASE i WHEN 1 THEN '' ELSE '#' || i END AS name"
	"           FROM pg_catalog.generate_series(1, 1000000) i) n"
	"  WHERE NOT EXISTS (SELECT FROM techally.archives a WHERE a.archive = n.name)"
	"  LIMIT 1",
	10,
	{OIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, OIDOID, TEXTOID}};
static const TaStatement finish_archive = {
	"UPDATE techally.archives a SET status = 'archived', location = $2, relation = $3::pg_catalog.regclass,"
	" rows = $4, bytes = $5, checksum = $6, columns = $7, archived_at = pg_catalog.now() WHERE a.archive = $1",
	7,
	{TEXTOID, TEXTOID, OIDOID, INT8OID, INT8OID, TEXTOID, TEXTARRAYOID}};
static const TaStatement select_columns = {
	"SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a"
	" WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''",
	1,
	{OIDOID}};

/* A table and what is under it, with their indexes: $1; those of a kind: $2. */
static const TaStatement select_tree = {
	"WITH RECURSIVE t (relid, level) AS ("
	"  SELECT $1, 0 UNION ALL"
	"  SELECT i.inhrelid, t.level + 1 FROM t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid)"
	" SELECT c.oid, c.relkind FROM t JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE c.relkind = ANY ($2) ORDER BY t.level, c.oid",
	2,
	{OIDOID, CHARARRAYOID}};
static const TaStatement select_tree_indexes = {
	"WITH RECURSIVE t (relid, level) AS ("
	"  SELECT $1, 0 UNION ALL"
	"  SELECT i.inhrelid, t.level + 1 FROM t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid)"
	" SELECT c.oid, c.relkind FROM t JOIN pg_catalog.pg_index x ON x.indrelid = t.relid JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid"
	"  WHERE c.relkind = ANY ($2) ORDER BY t.level, c.oid",
	2,
	{OIDOID, CHARARRAYOID}};
static const TaStatement mark_restored = {
	"UPDATE techally.archives a SET status = 'restored', relation = NULL, restored_at = pg_catalog.now(),"
	" restored_as = $2::pg_catalog.regclass WHERE a.archive = $1",
	2,
	{TEXTOID, OIDOID}};
static const TaStatement forget_restored = {
	"UPDATE techally.archives a SET restored_as = NULL WHERE a.archive = $1", 1, {TEXTOID}};
static const TaStatement set_destination = {
	"UPDATE techally.managed_partitions m SET archive_kind = $2, archive_name = $3 WHERE m.parent = $1::pg_catalog.regclass",
	3,
	{OIDOID, TEXTOID, NAMEOID}};
static const TaStatement select_held = {
	"SELECT 1 FROM techally.archives a WHERE a.restored_as = $1::pg_catalog.regclass", 1, {OIDOID}};

/*
 * Foreign keys that point at a partition ($1): the name, the table, whether they
 * would forbid to drop it, and a query for rows that point at its rows, with the
 * key's own operators; NULL where $2, the partition's owner, may not read them.
 */
static const TaStatement select_foreign_keys = {
	"SELECT coalesce((SELECT u.conname FROM pg_catalog.pg_constraint u WHERE u.oid = c.conparentid), c.conname)::text,"
	"       c.conrelid::pg_catalog.regclass::text, c.conparentid = 0 AND c.confrelid = $1,"
	"       CASE WHEN pg_catalog.has_table_privilege($2, c.conrelid, 'SELECT') AND pg_catalog.has_schema_privilege($2, t.relnamespace, 'USAGE') THEN"
	"       pg_catalog.format('SELECT FROM %s r JOIN %s p ON %s LIMIT 1', c.conrelid::pg_catalog.regclass,"
	"         c.confrelid::pg_catalog.regclass,"
	"         (SELECT pg_catalog.string_agg(pg_catalog.format('p.%I OPERATOR(%I.%s) r.%I', pa.attname, n.nspname, o.oprname, ra.attname), ' AND ')"
	"            FROM ROWS FROM (pg_catalog.unnest(c.conkey), pg_catalog.unnest(c.confkey), pg_catalog.unnest(c.conpfeqop)) k (r, p, o)"
	"            JOIN pg_catalog.pg_attribute ra ON ra.attrelid = c.conrelid AND ra.attnum = k.r"
	"            JOIN pg_catalog.pg_attribute pa ON pa.attrelid = c.confrelid AND pa.attnum = k.p"
	"            JOIN pg_catalog.pg_operator o ON o.oid = k.o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace)) END"
	"  FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class t ON t.oid = c.conrelid WHERE c.contype = 'f' AND c.confrelid = $1"
	" ORDER BY 2, 1",
	2,
	{OIDOID, OIDOID}};

static Oid
engine_namespace(void)
{
	return get_namespace_oid("techally", false);
}

static char *
copy_text(uint64 row, int column, MemoryContext context)
{
	char *text = ta_spi_text(row, column);

	return text != NULL ? MemoryContextStrdup(context, text) : NULL;
}

/* An archive, by a statement of the two above; NULL where there is none. */
static Archive *
find_archive(const TaStatement *statement, Datum argument)
{
	MemoryContext caller = CurrentMemoryContext;
	TaFrame		  frame;
	Archive		 *archive = NULL;
	Datum		  columns;
	bool		  isnull;

	ta_frame_begin(&frame, ta_partition_registry_owner());
	if (ta_execute(engine_namespace(), statement, SPI_OK_SELECT, &argument, NULL) > 0)
	{
		archive = MemoryContextAllocZero(caller, sizeof(Archive));
		archive->name = copy_text(0, 1, caller);
		archive->parent = DatumGetObjectId(ta_spi_value(0, 2, &isnull));
		if (isnull)
			archive->parent = InvalidOid;
		archive->kind = copy_text(0, 3, caller);
		archive->location = copy_text(0, 4, caller);
		archive->status = copy_text(0, 5, caller);
		archive->relation = DatumGetObjectId(ta_spi_value(0, 6, &isnull));
		if (isnull)
			archive->relation = InvalidOid;
		archive->partition = copy_text(0, 7, caller);
		archive->range.from = DatumGetTimestampTz(ta_spi_value(0, 8, &isnull));
		archive->range.to = DatumGetTimestampTz(ta_spi_value(0, 9, &isnull));
		archive->content.rows = DatumGetInt64(ta_spi_value(0, 10, &isnull));
		archive->content.bytes = DatumGetInt64(ta_spi_value(0, 11, &isnull));
		archive->content.checksum = copy_text(0, 12, caller);
		columns = ta_spi_value(0, 13, &isnull);
		if (!isnull)
		{
			MemoryContext old = MemoryContextSwitchTo(caller);
			Datum		 *names;
			int			  n;

			deconstruct_array(DatumGetArrayTypeP(columns), TEXTOID, -1, false, TYPALIGN_INT, &names, NULL, &n);
			for (int i = 0; i < n; i++)
				archive->content.columns = lappend(archive->content.columns, TextDatumGetCString(names[i]));
			MemoryContextSwitchTo(old);
		}
	}
	ta_frame_end(&frame);
	return archive;
}

static void
write_registry(const TaStatement *statement, int expected, Datum *values, const char *nulls)
{
	TaFrame frame;

	ta_frame_begin(&frame, ta_partition_registry_owner());
	ta_execute(engine_namespace(), statement, expected, values, nulls);
	ta_frame_end(&frame);
}

/* Whether somebody has had the partition restored. */
static bool
is_held(Oid partition)
{
	TaFrame frame;
	Datum	values[1] = {ObjectIdGetDatum(partition)};
	bool	held;

	ta_frame_begin(&frame, ta_partition_registry_owner());
	held = ta_execute(engine_namespace(), &select_held, SPI_OK_SELECT, values, NULL) > 0;
	ta_frame_end(&frame);
	return held;
}

/* Whether a partition may go, and why not. */
typedef struct Obstacle
{
	Oid			  partition;
	bool		  drop;
	MemoryContext context; /* of what is returned */
	char		 *reason;  /* NULL: it may */
} Obstacle;

/* In a savepoint, and back: looking leaves no lock behind. */
static bool
find_obstacle(void *arg)
{
	Obstacle	  *obstacle = arg;
	Oid			   owner = ta_relation_owner(obstacle->partition);
	TaMaintenance  frame;
	Datum		   values[2] = {ObjectIdGetDatum(obstacle->partition), ObjectIdGetDatum(owner)};
	uint64		   n;
	SPITupleTable *keys;

	ta_maintenance_begin(&frame, owner);
	n = ta_execute(engine_namespace(), &select_foreign_keys, SPI_OK_SELECT, values, NULL);
	keys = SPI_tuptable;
	for (uint64 i = 0; i < n && obstacle->reason == NULL; i++)
	{
		bool		isnull;
		bool		direct = DatumGetBool(SPI_getbinval(keys->vals[i], keys->tupdesc, 3, &isnull));
		char	   *query = SPI_getvalue(keys->vals[i], keys->tupdesc, 4);
		const char *where = NULL;

		if (obstacle->drop && direct)
			where = "it";
		else if (query == NULL)
			where = "it, and its owner may not read that table";
		else if (ta_run("%s", query) > 0)
			where = "rows in it";
		if (where != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(obstacle->context);

			obstacle->reason = psprintf("Foreign key \"%s\" of table %s points at %s.",
										SPI_getvalue(keys->vals[i], keys->tupdesc, 1),
										SPI_getvalue(keys->vals[i], keys->tupdesc, 2), where);
			MemoryContextSwitchTo(old);
		}
	}
	ta_maintenance_end(&frame);
	return false;
}

/*
 * What forbids that a partition goes: a foreign key that points at its rows, or
 * one that points at the partition itself where it is to be dropped.  NULL
 * where nothing does.  Looks as the partition's owner, as DETACH will: the other
 * table, with the expressions of its indexes, may be anybody's.
 */
static char *
what_points_in(Oid partition, bool drop)
{
	Obstacle obstacle = {partition, drop, CurrentMemoryContext, NULL};

	(void) ta_in_savepoint(find_obstacle, &obstacle);
	return obstacle.reason;
}

/* The members of a tree of partitions, by one of the statements above and their kinds. */
static List *
tree_members(const TaStatement *statement, Oid relid, const char *kinds)
{
	Datum  values[2] = {ObjectIdGetDatum(relid)};
	Datum  wanted[8];
	int	   nwanted = 0;
	uint64 n;
	List  *members = NIL;

	for (const char *kind = kinds; *kind != '\0'; kind++)
		wanted[nwanted++] = CharGetDatum(*kind);
	values[1] = PointerGetDatum(construct_array(wanted, nwanted, CHAROID, 1, true, TYPALIGN_CHAR));
	n = ta_execute(engine_namespace(), statement, SPI_OK_SELECT, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		members = lappend_oid(members, DatumGetObjectId(ta_spi_value(i, 1, &isnull)));
	}
	return members;
}

/*
 * Puts a table, with what is under it, into a schema.  Names that somebody has
 * there already, of the tables or their indexes, get the old schema's behind
 * them: two tables of one name may have the same archive.
 */
static void
move_to_schema(Oid relid, Oid nspid)
{
	char	 *target = get_namespace_name(nspid);
	List	 *tables = tree_members(&select_tree, relid, "rpf");
	List	 *indexes = tree_members(&select_tree_indexes, relid, "iI");
	ListCell *lc;

	if (target == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("schema with OID %u does not exist", nspid)));
	foreach(lc, list_concat_copy(tables, indexes))
	{
		Oid	  member = lfirst_oid(lc);
		Oid	  from = get_rel_namespace(member);
		char *name = get_rel_name(member);

		if (from == nspid || !OidIsValid(get_relname_relid(name, nspid)))
			continue;
		ta_run("ALTER %s %s RENAME TO %s", list_member_oid(indexes, member) ? "INDEX" : "TABLE",
			   ta_qualified_name(member),
			   quote_identifier(ta_free_name(nspid, name, get_namespace_name(from))));
	}
	foreach(lc, tables)
	{
		if (get_rel_namespace(lfirst_oid(lc)) != nspid)
			ta_run("ALTER TABLE %s SET SCHEMA %s", ta_qualified_name(lfirst_oid(lc)), quote_identifier(target));
	}
}

/* Puts a table, with what is under it and their indexes, into a tablespace. */
static void
move_to_tablespace(Oid relid, const char *tablespace)
{
	List	 *tables = tree_members(&select_tree, relid, "rp");
	List	 *indexes = tree_members(&select_tree_indexes, relid, "iI");
	ListCell *lc;

	foreach(lc, tables)
		ta_run("ALTER TABLE %s SET TABLESPACE %s", ta_qualified_name(lfirst_oid(lc)), quote_identifier(tablespace));
	foreach(lc, indexes)
		ta_run("ALTER INDEX %s SET TABLESPACE %s", ta_qualified_name(lfirst_oid(lc)), quote_identifier(tablespace));
}

/* A partition that is to go. */
typedef struct Retirement
{
	Oid				 relid;
	Oid				 owner;
	const TaManaged *managed;
	TaRange			 range;
	char			*name;		/* bare */
	char			*qualified; /* as it was */
	bool			 gone;		/* somebody else was faster */
} Retirement;

/* Detaches a partition and does what is quick. */
static void
attempt_to_retire(void *arg)
{
	Retirement	 *retirement = arg;
	const char	 *action = retirement->managed->action;
	TaMaintenance frame;
	TimestampTz	  deadline = ta_lock_deadline();
	TaParent	 *parent;
	char		 *partition;

	ta_progress_update("waiting for locks", 0, TA_PROGRESS_UNKNOWN);
	ta_maintenance_begin(&frame, retirement->owner);
	ta_set_local("lock_timeout", psprintf("%d", ta_maintenance_lock_timeout));
	ta_lock_table(retirement->relid, AccessExclusiveLock, deadline);
	parent = ta_describe_parent(retirement->relid, NoLock);
	retirement->gone = true;
	for (int i = 0; i < parent->nranges; i++)
	{
		if (parent->ranges[i].partition == retirement->range.partition)
			retirement->gone = false;
	}
	if (!retirement->gone)
	{
		if (OidIsValid(parent->default_oid))
			ta_lock_table(parent->default_oid, AccessExclusiveLock, deadline);
		ta_lock_table(retirement->range.partition, AccessExclusiveLock, deadline);
		ta_lock_joined(retirement->relid, ShareRowExclusiveLock, deadline);
		ta_begin_hold();
		partition = ta_qualified_name(retirement->range.partition);
		ta_run("ALTER TABLE %s DETACH PARTITION %s", parent->qualified, partition);
		if (strcmp(action, "drop") == 0)
			ta_run("DROP %s %s", get_rel_relkind(retirement->range.partition) == RELKIND_FOREIGN_TABLE ? "FOREIGN TABLE" : "TABLE",
				   partition);
		else if (strcmp(action, "archive") == 0 && strcmp(retirement->managed->archive_kind, "schema") == 0)
			move_to_schema(retirement->range.partition, get_namespace_oid(retirement->managed->archive_name, false));
	}
	ta_maintenance_end(&frame);
}

/* The archives' schema is made when it is first needed, by the owner, if he may. */
static void
ensure_archive_schema(const char *name, Oid owner)
{
	TaMaintenance frame;

	if (OidIsValid(get_namespace_oid(name, true)))
		return;
	ta_maintenance_begin(&frame, owner);
	ta_run("CREATE SCHEMA %s", quote_identifier(name));
	ta_maintenance_end(&frame);
}

static int64
count_rows(Oid relid)
{
	bool isnull;

	(void) ta_run("SELECT pg_catalog.count(*) FROM %s", ta_qualified_name(relid));
	return DatumGetInt64(ta_spi_value(0, 1, &isnull));
}

/* Does for a detached partition what takes long; returns what was done. */
static char *
finish_detached(const Archive *archive)
{
	TaMaintenance frame;
	MemoryContext caller = CurrentMemoryContext;
	Oid			  owner = ta_relation_owner(archive->relation);
	TaArchive	  content = {0};
	char		 *qualified = ta_qualified_name(archive->relation);
	const char	 *location = archive->location;
	bool		  file = strcmp(archive->kind, "file") == 0;
	Datum		  values[7] = {0};
	char		  nulls[8] = "       ";

	/* what is written is what we see, and what is dropped is what there is */
	if (file && IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("a partition cannot be archived to a file in a transaction whose snapshot may be older"),
				 errhint("Use READ COMMITTED.")));
	ta_progress_begin("archive", qualified, "counting", TA_PROGRESS_UNKNOWN);
	ta_maintenance_begin(&frame, owner);
	ta_set_local("lock_timeout", psprintf("%d", ta_maintenance_lock_timeout));
	ta_lock_table(archive->relation, file ? ExclusiveLock : AccessExclusiveLock, ta_lock_deadline());
	content.rows = count_rows(archive->relation);
	if (file)
	{
		bool		  isnull;
		char		 *manifest;
		Datum		  columns[1] = {ObjectIdGetDatum(archive->relation)};
		MemoryContext old;

		(void) ta_run("SELECT pg_catalog.rtrim(pg_catalog.jsonb_build_object("
					  "'format', 1, 'archive', %s, 'parent', p.oid::pg_catalog.regclass, 'partition', %s,"
					  "'from', pg_catalog.to_char(%s::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
					  "'to', pg_catalog.to_char(%s::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
					  "'server', pg_catalog.current_setting('server_version'), 'written_at', pg_catalog.clock_timestamp(),"
					  "'columns', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('name', a.attname,"
					  " 'type', pg_catalog.format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)"
					  " FROM pg_catalog.pg_attribute a WHERE a.attrelid = %u AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''))::text, '}')"
					  " FROM pg_catalog.pg_class p WHERE p.oid = %u",
					  quote_literal_cstr(archive->name), quote_literal_cstr(archive->partition),
					  quote_literal_cstr(DatumGetCString(DirectFunctionCall1(timestamptz_out, TimestampTzGetDatum(archive->range.from)))),
					  quote_literal_cstr(DatumGetCString(DirectFunctionCall1(timestamptz_out, TimestampTzGetDatum(archive->range.to)))),
					  archive->relation, archive->parent);
		(void) ta_spi_value(0, 1, &isnull);
		manifest = copy_text(0, 1, caller);
		(void) ta_execute(engine_namespace(), &select_columns, SPI_OK_SELECT, columns, NULL);
		columns[0] = ta_spi_value(0, 1, &isnull);
		old = MemoryContextSwitchTo(caller);
		values[6] = datumCopy(columns[0], false, -1);
		location = ta_archive_file_name(qualified);
		MemoryContextSwitchTo(old);
		ta_write_archive(archive->relation, location, manifest, content.rows, &content);
		content.checksum = MemoryContextStrdup(caller, content.checksum);
		ta_run("DROP %s %s", get_rel_relkind(archive->relation) == RELKIND_FOREIGN_TABLE ? "FOREIGN TABLE" : "TABLE", qualified);
	}
	else
	{
		ta_progress_update("moving", 0, content.rows);
		move_to_tablespace(archive->relation, location);
		content.bytes = 0;
	}
	ta_maintenance_end(&frame);

	values[0] = CStringGetTextDatum(archive->name);
	values[1] = CStringGetTextDatum(location);
	values[2] = ObjectIdGetDatum(archive->relation);
	values[3] = Int64GetDatum(content.rows);
	values[4] = Int64GetDatum(content.bytes);
	if (file)
	{
		nulls[2] = 'n';
		values[5] = CStringGetTextDatum(content.checksum);
	}
	else
		nulls[4] = nulls[5] = nulls[6] = 'n';
	write_registry(&finish_archive, SPI_OK_UPDATE, values, nulls);
	ta_progress_end();
	return psprintf("archived %s", qualified);
}

/* Lets other rooms see to it that rows have gone by rule. */
static void
announce_retirement(Oid parent, const TaRange *range)
{
	Oid types[3] = {REGCLASSOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Oid hook = LookupFuncName(list_make2(makeString("techally"), makeString("audit_partition_retired")),
							  3, types, true);

	if (OidIsValid(hook))
		OidFunctionCall3(hook, ObjectIdGetDatum(parent), TimestampTzGetDatum(range->from),
						 TimestampTzGetDatum(range->to));
}

/* Whether it is no use to try the next partition, either. */
static bool
ends_retirement(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		   error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		   error->sqlerrcode == ERRCODE_QUERY_CANCELED;
}

/*
 * ta_retire_one
 *		Retires one partition of a managed table whose upper bound is no later
 *		than retention before a moment, or goes on with one that is detached
 *		already.  Returns what was done, NULL where there is nothing to do.
 *
 * One that cannot go is passed over for the next, and its error raised only
 * where there is no other: 23503 for one that foreign keys point at, 55P03 where
 * the locks cannot be had, 54000 where it would take longer than
 * techally.maintenance_hold_limit, what the DDL raises (2BP01 for a view on a
 * partition that is to be dropped), and for files what ta_write_archive raises.
 * Nothing has happened then.
 */
char *
ta_retire_one(Oid relid, const TaManaged *managed, Timestamp at)
{
	TaParent  *parent;
	Archive	  *pending;
	Timestamp  cutoff;
	Retirement retirement = {0};
	bool	   archive = strcmp(managed->action, "archive") == 0;
	bool	   in_schema = archive && strcmp(managed->archive_kind, "schema") == 0;
	bool	   done = false;
	int		   failed = 0;
	char	  *blocked_name = NULL;
	char	  *blocked_why = NULL;
	ErrorData *failure = NULL;

	ta_take_turn(relid);
	pending = find_archive(&archive_columns_pending, ObjectIdGetDatum(relid));
	if (pending != NULL && get_rel_name(pending->relation) != NULL)
		return finish_detached(pending);
	if (!managed->has_retention || TIMESTAMP_NOT_FINITE(at))
		return NULL;
	cutoff = DatumGetTimestamp(DirectFunctionCall2(timestamp_mi_interval, TimestampGetDatum(at),
												   IntervalPGetDatum(unconstify(Interval *, &managed->retention))));
	parent = ta_look_at_parent(relid);
	retirement.relid = relid;
	retirement.owner = parent->owner;
	retirement.managed = managed;
	for (int i = 0; i < parent->nranges && !done && failed < MAX_FAILED; i++)
	{
		TaRange	  *range = &parent->ranges[i];
		char	  *why;
		ErrorData *error;

		CHECK_FOR_INTERRUPTS();
		if (TIMESTAMP_IS_NOEND(range->to) || range->to > cutoff)
			break;
		if (get_rel_name(range->partition) == NULL || is_held(range->partition))
			continue;
		retirement.range = *range;
		retirement.name = get_rel_name(range->partition);
		retirement.qualified = ta_qualified_name(range->partition);
		why = what_points_in(range->partition, strcmp(managed->action, "drop") == 0 ||
												   (archive && strcmp(managed->archive_kind, "file") == 0));
		if (why != NULL)
		{
			if (blocked_why == NULL)
			{
				blocked_name = retirement.name;
				blocked_why = why;
			}
			continue;
		}
		if (in_schema)
			ensure_archive_schema(managed->archive_name, parent->owner);
		ta_progress_begin("retire", retirement.qualified, "waiting for locks", TA_PROGRESS_UNKNOWN);
		error = ta_retry(attempt_to_retire, &retirement);
		ta_progress_end();
		if (error != NULL && ends_retirement(error))
			ReThrowError(error);
		done = error == NULL;
		if (error != NULL && failed++ == 0)
			failure = error;
	}
	if (!done)
	{
		if (failure != NULL)
			ReThrowError(failure);
		if (blocked_why != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("partition \"%s\" cannot be retired", blocked_name),
					 errdetail("%s", blocked_why)));
		return NULL;
	}

	if (retirement.gone)
		return psprintf("left %s", retirement.qualified);
	announce_retirement(relid, &retirement.range);
	if (archive)
	{
		Datum values[10] = {
			ObjectIdGetDatum(relid), CStringGetTextDatum(parent->qualified),
			CStringGetTextDatum(retirement.name),
			TimestampTzGetDatum(retirement.range.from), TimestampTzGetDatum(retirement.range.to),
			CStringGetTextDatum(managed->archive_kind), CStringGetTextDatum(managed->archive_name),
			CStringGetTextDatum(in_schema ? "archived" : "detached"),
			ObjectIdGetDatum(retirement.range.partition), CStringGetTextDatum(retirement.qualified)};

		write_registry(&insert_archive, SPI_OK_INSERT, values, NULL);
		return psprintf("%s %s", in_schema ? "archived" : "detached", retirement.qualified);
	}
	return psprintf("%s %s", strcmp(managed->action, "drop") == 0 ? "dropped" : "detached", retirement.qualified);
}

/*
 * Back
 */

/* A table that is to be a partition again. */
typedef struct Restoration
{
	Oid		relid;
	Oid		owner;
	Oid		partition;
	TaRange range;
} Restoration;

static void
attempt_to_attach(void *arg)
{
	Restoration	 *restoration = arg;
	TaMaintenance frame;
	TimestampTz	  deadline = ta_lock_deadline();
	TaParent	 *parent;

	ta_maintenance_begin(&frame, restoration->owner);
	ta_set_local("lock_timeout", psprintf("%d", ta_maintenance_lock_timeout));
	ta_lock_table(restoration->relid, ShareRowExclusiveLock, deadline);
	parent = ta_describe_parent(restoration->relid, NoLock);
	if (OidIsValid(parent->default_oid))
		ta_lock_table(parent->default_oid, AccessExclusiveLock, deadline);
	ta_lock_joined(restoration->relid, ShareRowExclusiveLock, deadline);
	ta_begin_hold();
	if (ta_default_has_rows(parent, &restoration->range))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the default partition of \"%s\" has rows in the range of the archive", parent->name),
				 errhint("techally.drain_default moves them into partitions of their own, or delete them.")));
	ta_attach_partition(parent, &restoration->range, restoration->partition, !IsolationUsesXactSnapshot());
	ta_maintenance_end(&frame);
}

PG_FUNCTION_INFO_V1(ta_restore_archived);
PG_FUNCTION_INFO_V1(ta_forget_restored);
PG_FUNCTION_INFO_V1(ta_archive_partitions_to);

/* An archive of a table that the caller owns; our turn comes before its row. */
static Archive *
require_archive(Datum name)
{
	Archive *archive = find_archive(&archive_columns_seen, name);

	if (archive != NULL && OidIsValid(archive->parent) && get_rel_name(archive->parent) != NULL)
	{
		ta_require_owner(archive->parent);
		ta_take_turn(archive->parent);
		archive = find_archive(&archive_columns_named, name);
	}
	if (archive == NULL)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("archive \"%s\" does not exist", TextDatumGetCString(name)),
				 errhint("The table techally.archives lists the archives.")));
	if (!OidIsValid(archive->parent) || get_rel_name(archive->parent) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table that archive \"%s\" was a part of does not exist any more", archive->name)));
	ta_require_owner(archive->parent);
	return archive;
}

/*
 * ta_forget_restored
 *		forget_restored(archive text) → void
 *
 * Lets retention have a restored partition again.  Raises TA007 and 42501.
 */
Datum
ta_forget_restored(PG_FUNCTION_ARGS)
{
	Datum values[1];

	ta_require_argument(fcinfo, 0, "archive");
	(void) require_archive(PG_GETARG_DATUM(0));
	values[0] = PG_GETARG_DATUM(0);
	write_registry(&forget_restored, SPI_OK_UPDATE, values, NULL);
	PG_RETURN_VOID();
}

/*
 * ta_archive_partitions_to
 *		archive_partitions_to(parent regclass, kind text, destination name) → void
 *
 * Says where a managed table's archives go.  Raises 42501, 55000 where the
 * table is not managed, 22023 for a kind that is none.  Whether the place is
 * there, and the owner may use it, shows when something goes there.
 */
Datum
ta_archive_partitions_to(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"parent", "kind"};
	Datum					 values[3];
	char					*kind;
	Oid						 relid;

	ta_require_arguments(fcinfo, names, lengthof(names));
	relid = PG_GETARG_OID(0);
	ta_require_owner(relid);
	(void) ta_require_managed(relid);
	kind = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(kind, "schema") != 0 && strcmp(kind, "tablespace") != 0 && strcmp(kind, "file") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind of archive \"%s\"", kind),
				 errhint("It is \"schema\", \"tablespace\" or \"file\".")));
	if (strcmp(kind, "file") != 0)
		ta_require_argument(fcinfo, 2, "destination");
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_ARGISNULL(2) ? DirectFunctionCall1(namein, CStringGetDatum("")) : PG_GETARG_DATUM(2);
	write_registry(&set_destination, SPI_OK_UPDATE, values, NULL);
	PG_RETURN_VOID();
}

/* Columns that a table has got since a partition was detached: $1 table, $2 partition. */
static const TaStatement select_added_columns = {
	"SELECT pg_catalog.format('ALTER TABLE %s ADD COLUMN %I %s%s%s', $2::pg_catalog.regclass, a.attname,"
	"         pg_catalog.format_type(a.atttypid, a.atttypmod),"
	"         CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.format(' COLLATE %I.%I', n.nspname, l.collname) ELSE '' END,"
	"         CASE WHEN d.oid IS NULL THEN ''"
	"              WHEN a.attgenerated <> '' THEN ' GENERATED ALWAYS AS (' || pg_catalog.pg_get_expr(d.adbin, d.adrelid) || ') STORED'"
	"              ELSE ' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid) END)"
	"  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
	"  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
	"  LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace"
	" WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'"
	"   AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute o WHERE o.attrelid = $2 AND o.attname = a.attname AND NOT o.attisdropped)"
	" UNION ALL "
	"SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', $2::pg_catalog.regclass, a.attname)"
	"  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull"
	"   AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute o WHERE o.attrelid = $2 AND o.attname = a.attname AND NOT o.attisdropped AND o.attnotnull)",
	2,
	{OIDOID, OIDOID}};

/* Columns that the parent has got meanwhile; one that it has lost, the server names when it refuses. */
static void
add_missing_columns(Oid parent, Oid partition)
{
	Datum		   values[2] = {ObjectIdGetDatum(parent), ObjectIdGetDatum(partition)};
	uint64		   n = ta_execute(engine_namespace(), &select_added_columns, SPI_OK_SELECT, values, NULL);
	SPITupleTable *statements = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
		ta_run("%s", SPI_getvalue(statements->vals[i], statements->tupdesc, 1));
	SPI_freetuptable(statements);
}

/*
 * ta_restore_archived
 *		restore_archived(archive text) → bigint
 *
 * Makes an archived partition a partition of its parent again and returns its
 * rows.  It stays until forget_restored.  Columns that the parent has got since
 * are filled with their defaults; those that it has lost are an error (55000 for
 * a file, else 42804).  Raises TA007 where there is no such
 * archive, 42501 for who does not own the parent, 55000 where it is not
 * archived, its parent has gone or DEFAULT has rows in its range, 42P17 where
 * another partition has the range, XX001 where a file is damaged.
 */
Datum
ta_restore_archived(PG_FUNCTION_ARGS)
{
	Archive		 *archive;
	TaParent	 *parent;
	Restoration	  restoration = {0};
	TaMaintenance frame;
	ErrorData	 *error;
	Datum		  values[2];
	int64		  rows;

	ta_require_argument(fcinfo, 0, "archive");
	archive = require_archive(PG_GETARG_DATUM(0));
	if (strcmp(archive->status, "restored") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("archive \"%s\" is restored already", archive->name)));

	parent = ta_look_at_parent(archive->parent);
	restoration.relid = archive->parent;
	restoration.owner = parent->owner;
	restoration.range = archive->range;
	ta_progress_begin("restore", parent->qualified, "reading", archive->content.rows);
	ta_maintenance_begin(&frame, parent->owner);
	if (OidIsValid(archive->relation) && get_rel_name(archive->relation) != NULL)
	{
		restoration.partition = archive->relation;
		move_to_schema(archive->relation, parent->nspid);
		add_missing_columns(parent->relid, archive->relation);
		ta_prove_range(parent, &archive->range, archive->relation);
		rows = count_rows(archive->relation);
	}
	else if (strcmp(archive->kind, "file") == 0 && archive->content.checksum != NULL)
	{
		char *name = archive->partition;

		if (OidIsValid(get_relname_relid(name, parent->nspid)))
			name = ta_free_name(parent->nspid, name, "restored");
		restoration.partition = ta_prepare_partition(parent, &archive->range, name, true);
		ta_read_archive(restoration.partition, archive->location, &archive->content);
		rows = archive->content.rows;
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table of archive \"%s\" does not exist any more", archive->name)));
	if (get_rel_relkind(restoration.partition) != RELKIND_FOREIGN_TABLE)
		ta_add_foreign_keys(parent, restoration.partition);
	ta_maintenance_end(&frame);

	ta_progress_update("attaching", 0, TA_PROGRESS_UNKNOWN);
	error = ta_retry(attempt_to_attach, &restoration);
	ta_progress_end();
	if (error != NULL)
		ReThrowError(error);
	ta_announce_partition(archive->parent, restoration.partition);

	values[0] = CStringGetTextDatum(archive->name);
	values[1] = ObjectIdGetDatum(restoration.partition);
	write_registry(&mark_restored, SPI_OK_UPDATE, values, NULL);
	PG_RETURN_INT64(rows);
}
