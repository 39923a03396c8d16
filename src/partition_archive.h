/*-------------------------------------------------------------------------
 *
 * partition_archive.h
 *	  A table as a compressed file, and back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_PARTITION_ARCHIVE_H
#define TECHALLY_PARTITION_ARCHIVE_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* What a file holds. */
typedef struct TaArchive
{
	int64 rows;
	int64 bytes;	/* of text, before compression */
	char *checksum; /* SHA-256 of the text, in hexadecimal */
	List *columns;	/* their names, as strings */
} TaArchive;

extern void	 ta_archive_init(void);
extern char *ta_archive_file_name(const char *qualified);
extern void	 ta_write_archive(Oid relid, const char *file, const char *manifest, int64 total, TaArchive *result);
extern void	 ta_read_archive(Oid relid, const char *file, const TaArchive *expected);

#endif /* TECHALLY_PARTITION_ARCHIVE_H */
