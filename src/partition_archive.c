/*-------------------------------------------------------------------------
 *
 * partition_archive.c
 *	  A table as a compressed file, and back.
 *
 * The file is what COPY writes in its text format, in UTF-8 and compressed
 * with gzip, so that it can be read without us.  Beside it lies a manifest in
 * JSON; both are in the directory that techally.archive_directory names, which
 * only a superuser sets, under names that are made here.
 *
 * Invariants:
 * - A file is complete or not there: it is written under another name, flushed,
 *	 renamed, and the directory flushed, the manifest last.
 * - The checksum is SHA-256 of the text before compression; whoever reads the
 *	 file back compares it.
 *
 * Takes no lock but on the table that is read or written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>
#ifdef TA_HAVE_ZLIB
#include <zlib.h>
#endif

#include "access/table.h"
#include "access/xact.h"
#include "commands/copy.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partition.h"
#include "partition_archive.h"
#include "progress.h"

#define CHUNK	   (64 * 1024)
#define FETCH_ROWS 1000
#define MAX_NAME   180 /* of a file, without what makes it the only one */

static char *archive_directory = NULL;

/*
 * ta_archive_init
 *		Defines the directory's setting.  Called once, by _PG_init.
 */
void
ta_archive_init(void)
{
	DefineCustomStringVariable("techally.archive_directory",
							   "The directory that partitions are archived to as files.",
							   "It must exist and belong to the server's user; empty: no files are written.",
							   &archive_directory,
							   "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
}

#ifdef TA_HAVE_ZLIB

/* A compressed file that is being written or read, and what went through it. */
typedef struct Stream
{
	FILE			  *file;
	char			  *path;
	z_stream		   z;
	bool			   ended;
	pg_cryptohash_ctx *hash;
	int64			   bytes;
	int64			   rows;
	unsigned char	   buffer[CHUNK];
} Stream;

/* inflate allocates when it first needs its window, in the middle of a COPY: not in the row's context. */
static void *
zlib_alloc(void *opaque, unsigned int items, unsigned int size)
{
	return MemoryContextAlloc(opaque, (Size) items * size);
}

static void
zlib_free(void *opaque, void *address)
{
	pfree(address);
}

static Stream *
open_stream(const char *path, bool writing)
{
	Stream *stream = palloc0(sizeof(Stream));

	stream->path = pstrdup(path);
	stream->file = AllocateFile(path, writing ? PG_BINARY_W : PG_BINARY_R);
	if (stream->file == NULL)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	stream->z.opaque = CurrentMemoryContext;
	stream->z.zalloc = zlib_alloc;
	stream->z.zfree = zlib_free;

	/* 15 + 16: the largest window, and gzip's header */
	if ((writing ? deflateInit2(&stream->z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY)
				 : inflateInit2(&stream->z, 15 + 16)) != Z_OK)
		elog(ERROR, "could not initialize zlib");
	stream->hash = pg_cryptohash_create(PG_SHA256);
	if (stream->hash == NULL || pg_cryptohash_init(stream->hash) < 0)
		elog(ERROR, "could not initialize SHA-256");
	return stream;
}

static void
deflate_some(Stream *stream, const char *data, Size length, int flush)
{
	int status;

	stream->z.next_in = (unsigned char *) data;
	stream->z.avail_in = (unsigned int) length;
	do
	{
		size_t got;

		stream->z.next_out = stream->buffer;
		stream->z.avail_out = CHUNK;
		status = deflate(&stream->z, flush);
		if (status == Z_STREAM_ERROR)
			elog(ERROR, "zlib failed: %d", status);
		got = CHUNK - stream->z.avail_out;
		if (got > 0 && fwrite(stream->buffer, 1, got, stream->file) != got)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", stream->path)));
	} while (stream->z.avail_out == 0 || (flush == Z_FINISH && status != Z_STREAM_END));
}

static void
write_text(Stream *stream, const char *data, Size length)
{
	if (pg_cryptohash_update(stream->hash, (const uint8 *) data, length) < 0)
		elog(ERROR, "could not update SHA-256");
	stream->bytes += length;
	deflate_some(stream, data, length, Z_NO_FLUSH);
}

/* At least one byte unless the file has ended; never more than length. */
static int
read_text(Stream *stream, char *data, int length)
{
	int got;

	stream->z.next_out = (unsigned char *) data;
	stream->z.avail_out = length;
	while (!stream->ended && stream->z.avail_out == (unsigned int) length)
	{
		int status;

		if (stream->z.avail_in == 0)
		{
			stream->z.next_in = stream->buffer;
			stream->z.avail_in = (unsigned int) fread(stream->buffer, 1, CHUNK, stream->file);
			if (ferror(stream->file))
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not read file \"%s\": %m", stream->path)));
		}
		status = inflate(&stream->z, Z_NO_FLUSH);
		if (status == Z_STREAM_END)
			stream->ended = true;
		else if (status != Z_OK)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("archive \"%s\" is damaged", stream->path),
					 errdetail("It ends too early, or is not in gzip's format.")));
	}
	got = length - (int) stream->z.avail_out;
	if (pg_cryptohash_update(stream->hash, (const uint8 *) data, got) < 0)
		elog(ERROR, "could not update SHA-256");
	stream->bytes += got;
	for (int i = 0; i < got; i++)
		stream->rows += data[i] == '\n';
	CHECK_FOR_INTERRUPTS();
	return got;
}

/* Ends the stream; returns the checksum in hexadecimal. */
static char *
close_stream(Stream *stream, bool writing)
{
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	char *hex = palloc(2 * sizeof(digest) + 1);

	if (writing)
	{
		deflate_some(stream, NULL, 0, Z_FINISH);
		deflateEnd(&stream->z);
	}
	else
		inflateEnd(&stream->z);
	if (FreeFile(stream->file) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", stream->path)));
	if (pg_cryptohash_final(stream->hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not finish SHA-256");
	pg_cryptohash_free(stream->hash);
	for (Size i = 0; i < sizeof(digest); i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
	return hex;
}

#endif /* TA_HAVE_ZLIB */

/* Raises where no files can be written or read. */
static void
check_directory(void)
{
#ifndef TA_HAVE_ZLIB
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("archiving to files is not supported by this build"),
			 errdetail("It was built without zlib.")));
#endif
	if (archive_directory == NULL || archive_directory[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no directory is set for archives"),
				 errhint("A superuser sets techally.archive_directory to a directory that the server can write to.")));
}

#ifdef TA_HAVE_ZLIB

static void
pin_formats(void)
{
	ta_set_local("datestyle", "ISO, YMD");
	ta_set_local("intervalstyle", "postgres");
	ta_set_local("extra_float_digits", "3");
	ta_set_local("timezone", "UTC");
	ta_set_local("bytea_output", "hex");
	ta_set_local("array_nulls", "on");
	ta_set_local("lc_monetary", "C");
	ta_set_local("xmloption", "content");
}

/* The columns to write, in SQL: all that are not generated. */
static char *
column_list(Oid relid)
{
	Relation	   rel = table_open(relid, AccessShareLock);
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (!att->attisdropped && att->attgenerated == '\0')
			appendStringInfo(&list, "%s%s", list.len > 0 ? ", " : "", quote_identifier(NameStr(att->attname)));
	}
	table_close(rel, NoLock);
	return list.data;
}

static char *
archive_path(const char *file, const char *ending)
{
	if (strchr(file, '/') != NULL)
		elog(ERROR, "archive file name \"%s\" is not sound", file);
	return psprintf("%s/%s%s", archive_directory, file, ending);
}

#endif

/*
 * ta_archive_file_name
 *		A new name in the archives' directory, without an ending: the table's,
 *		with what is no plain character replaced, and the time.
 */
char *
ta_archive_file_name(const char *qualified)
{
	StringInfoData name;
	int64		   now = GetCurrentTimestamp();

	check_directory();
	initStringInfo(&name);
	for (const char *c = qualified; *c != '\0' && name.len < MAX_NAME; c++)
		appendStringInfoChar(&name, strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.", *c) != NULL ? *c : '-');
	appendStringInfo(&name, ".%u." INT64_FORMAT, MyDatabaseId, now);
	return name.data;
}

#ifdef TA_HAVE_ZLIB

/* Writes a table's rows into a compressed file. */
static void
write_data(Oid relid, const char *path, int64 total, TaArchive *result)
{
	char		  *columns = column_list(relid);
	Stream		  *stream;
	Portal		   portal;
	StringInfoData line;
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "techally archive", ALLOCSET_DEFAULT_SIZES);

	memset(result, 0, sizeof(*result));
	stream = open_stream(path, true);
	initStringInfo(&line);

	/* not in the caller's snapshot, which may be older than our lock */
	portal = SPI_cursor_parse_open(NULL, psprintf("SELECT %s FROM %s", columns, ta_qualified_name(relid)),
								   &(SPIParseOpenOptions){.read_only = false});
	for (;;)
	{
		MemoryContext old;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(context);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			for (int column = 1; column <= SPI_tuptable->tupdesc->natts; column++)
			{
				char *value = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, column);

				if (column > 1)
					appendStringInfoChar(&line, '\t');
				if (value == NULL)
				{
					appendStringInfoString(&line, "\\N");
					continue;
				}
				value = pg_server_to_any(value, strlen(value), PG_UTF8);
				for (const char *c = value; *c != '\0'; c++)
				{
					if (*c == '\\' || *c == '\n' || *c == '\r' || *c == '\t')
					{
						appendStringInfoChar(&line, '\\');
						appendStringInfoChar(&line, *c == '\n' ? 'n' : *c == '\r' ? 'r'
																   : *c == '\t'	  ? 't'
																				  : '\\');
					}
					else
						appendStringInfoChar(&line, *c);
				}
			}
			appendStringInfoChar(&line, '\n');
			stream->rows++;
			if (line.len >= CHUNK)
			{
				write_text(stream, line.data, line.len);
				resetStringInfo(&line);
			}
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
		ta_progress_update("writing", stream->rows, total);
	}
	SPI_cursor_close(portal);
	write_text(stream, line.data, line.len);
	result->checksum = close_stream(stream, true);
	result->rows = stream->rows;
	result->bytes = stream->bytes;
	MemoryContextDelete(context);
	if (result->rows != total)
		elog(ERROR, "wrote " INT64_FORMAT " rows of " INT64_FORMAT, result->rows, total);
}

#endif

/*
 * ta_write_archive
 *		Writes a table's rows into a new file of that name and a manifest beside
 *		it, and reads the file back to be sure of it.
 *
 * manifest is JSON without its last brace; what is counted here goes in after
 * it.  Within ta_maintenance_begin and _end as the table's owner.  Raises 0A000
 * without zlib, 55000 without a directory, 58xxx where the file system fails.
 */
void
ta_write_archive(Oid relid, const char *file, const char *manifest, int64 total, TaArchive *result)
{
#ifdef TA_HAVE_ZLIB
	char   *data_path;
	char   *manifest_path;
	char   *temporary;
	Stream *stream;
	FILE   *out;
	char   *text;
	char   *check;
	char   *buffer;

	check_directory();
	data_path = archive_path(file, ".copy.gz");
	manifest_path = archive_path(file, ".json");
	temporary = psprintf("%s.tmp", data_path);
	pin_formats();

	/* nothing but a crash leaves a part of a file */
	PG_TRY();
	{
		write_data(relid, temporary, total, result);
	}
	PG_CATCH();
	{
		(void) unlink(temporary);
		PG_RE_THROW();
	}
	PG_END_TRY();
	durable_rename(temporary, data_path, ERROR);

	/* what is on disk is what we meant to write */
	ta_progress_update("verifying", 0, total);
	stream = open_stream(data_path, false);
	buffer = palloc(CHUNK);
	while (read_text(stream, buffer, CHUNK) > 0)
		;
	check = close_stream(stream, false);
	if (strcmp(check, result->checksum) != 0 || stream->rows != result->rows)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" does not hold what was written to it", data_path)));

	text = psprintf("%s, \"file\": \"%s.copy.gz\", \"encoding\": \"UTF8\", \"rows\": " INT64_FORMAT ", \"bytes\": " INT64_FORMAT ", \"sha256\": \"%s\"}\n",
					manifest, file, result->rows, result->bytes, result->checksum);
	temporary = psprintf("%s.tmp", manifest_path);
	out = AllocateFile(temporary, PG_BINARY_W);
	if (out == NULL || fwrite(text, 1, strlen(text), out) != strlen(text) || FreeFile(out) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", temporary)));
	durable_rename(temporary, manifest_path, ERROR);
#else
	check_directory();
#endif
}

#ifdef TA_HAVE_ZLIB

/* COPY's source has no argument for us. */
static Stream *copy_source = NULL;

static int
read_for_copy(void *out, int minread, int maxread)
{
	int total = 0;

	while (total < minread || total == 0)
	{
		int got = read_text(copy_source, (char *) out + total, maxread - total);

		if (got == 0)
			break;
		total += got;
	}
	return total;
}

#endif

/*
 * ta_read_archive
 *		Reads a file of that name into a table, columns by their names; its rows
 *		are as many and have the checksum that they should.
 *
 * Within ta_maintenance_begin and _end as the table's owner.  Raises XX001
 * where the file is not what it was, 55000 where the table lacks a column.
 */
void
ta_read_archive(Oid relid, const char *file, const TaArchive *expected)
{
#ifdef TA_HAVE_ZLIB
	Relation			rel;
	ParseState		   *pstate;
	CopyFromState		copy;
	ParseNamespaceItem *nsitem;
	Stream			   *stream;
	char			   *checksum;
	uint64				rows;
	List			   *columns = NIL;
	ListCell		   *lc;

	check_directory();
	pin_formats();
	stream = open_stream(archive_path(file, ".copy.gz"), false);
	rel = table_open(relid, RowExclusiveLock);
	foreach(lc, expected->columns)
	{
		AttrNumber attnum = get_attnum(relid, lfirst(lc));

		if (attnum == InvalidAttrNumber || TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("archive \"%s\" has a column \"%s\", which its table has not any more", file, (char *) lfirst(lc)),
					 errhint("Add the column while the archive is restored.")));
		columns = lappend(columns, makeString(pstrdup(lfirst(lc))));
	}
	pstate = make_parsestate(NULL);
	nsitem = addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL, false, false);
	addNSItemToQuery(pstate, nsitem, true, true, true);
	copy_source = stream;
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_for_copy, columns,
						 list_make1(makeDefElem("encoding", (Node *) makeString("UTF8"), -1)));
	rows = CopyFrom(copy);
	EndCopyFrom(copy);
	copy_source = NULL;
	free_parsestate(pstate);
	table_close(rel, NoLock);
	checksum = close_stream(stream, false);
	CommandCounterIncrement();

	if (strcmp(checksum, expected->checksum) != 0 || (int64) rows != expected->rows)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("archive \"%s\" is damaged", file),
				 errdetail("It has " UINT64_FORMAT " rows with checksum %s, and should have " INT64_FORMAT " with %s.",
						   rows, checksum, expected->rows, expected->checksum)));
#else
	check_directory();
#endif
}
