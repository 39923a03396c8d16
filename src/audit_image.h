/*-------------------------------------------------------------------------
 *
 * audit_image.h
 *	  What the log says of a row: its key, its image, what changed in it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_AUDIT_IMAGE_H
#define TECHALLY_AUDIT_IMAGE_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/rel.h"

#define TA_AUDIT_FUNCTION "audit_changes"
#define TA_AUDIT_REDACTED "[redacted]"

/* A column as it goes into the log. */
typedef struct TaAuditColumn
{
	AttrNumber	attnum;
	const char *name;
	int			name_length;
	int			writer; /* how its values become JSON */
	Oid			type;	/* under domains */
	int16		length;
	bool		by_value;
	bool		redacted;
	FmgrInfo	output;
} TaAuditColumn;

/* How rows of one table go into the log; kept between calls. */
typedef struct TaAuditFormat
{
	Oid			   relid;
	bool		   valid;  /* cleared by invalidation */
	int			   in_use; /* by calls further up the stack */
	MemoryContext  context;
	Oid			   root;  /* the topmost ancestor that is audited, or the table */
	Oid			   nspid; /* of the root: its log lies there */
	char		  *schema_name;
	char		  *table_name;
	TaAuditColumn *columns; /* in the order of keys in jsonb */
	int			   ncolumns;
	StringInfoData image_head; /* header and entries of the keys of a whole row */
	StringInfoData image_keys;
	TaAuditColumn *key;		 /* the root's primary key, in the same order */
	int			   nkey;	 /* 0: none */
	bool		   uuid_key; /* one column, of type uuid */
	bool		   pinned;	 /* some values depend on settings */
	bool		   soft;	 /* the rows can be deleted softly */
	AttrNumber	   deleted_at;
	List		  *excluded; /* names, as the trigger has them */
	List		  *redacted;
	TupleDesc	   desc;
} TaAuditFormat;

extern void ta_audit_image_init(void);

extern TaAuditFormat *ta_audit_format(Relation rel);
extern void			  ta_audit_format_release(TaAuditFormat *format);
extern bool			  ta_audit_trigger_arguments(Relation rel, List **excluded, List **redacted);
extern Oid			  ta_audit_function(void);

extern int	ta_audit_pin_settings(void);
extern void ta_audit_unpin_settings(int level);

extern bool ta_audit_key(const TaAuditFormat *format, TupleTableSlot *row, StringInfo buf);
extern bool ta_audit_key_changed(const TaAuditFormat *format, TupleTableSlot *old_row, TupleTableSlot *new_row);
extern void ta_audit_image(const TaAuditFormat *format, TupleTableSlot *row, StringInfo buf);
extern bool ta_audit_same_tuple(TupleTableSlot *old_row, TupleTableSlot *new_row);
extern bool ta_audit_changes_of(const TaAuditFormat *format, TupleTableSlot *old_row,
								TupleTableSlot *new_row, StringInfo buf);

#endif /* TECHALLY_AUDIT_IMAGE_H */
