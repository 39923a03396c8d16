/*-------------------------------------------------------------------------
 *
 * soft_delete_plan.h
 *	  The statements of soft delete: kept plans, as whom they run, and what they
 *	  are put together from.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SOFT_DELETE_PLAN_H
#define TECHALLY_SOFT_DELETE_PLAN_H

#include "postgres.h"

#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "foreign_key.h"
#include "soft_delete.h"

#define DELETED_AT	TA_DELETED_AT
#define DELETION_ID TA_DELETION_ID

typedef enum PlanKind
{
	PLAN_MARK,				/* relid */
	PLAN_STAMP,				/* relid: the id, where deleted_at was set by hand */
	PLAN_LOCK,				/* relid */
	PLAN_UNMARK,			/* relid */
	PLAN_CLEAR,				/* relid: the id, where deleted_at was cleared by hand */
	PLAN_FIND_RESTORED,		/* relid: rows whose deleted_at was cleared by hand */
	PLAN_LOCK_DEPENDENTS,	/* constraint */
	PLAN_MARK_DEPENDENTS,	/* constraint */
	PLAN_FIND_DEPENDENTS,	/* constraint: of a table that cannot be marked */
	PLAN_LOCK_COPARENTS,	/* constraint, and the other one */
	PLAN_UNMARK_DEPENDENTS, /* constraint */
	PLAN_FIND_PARENT,		/* constraint */
	PLAN_SHARE_PARENT,		/* constraint, with a lock */
	PLAN_REMOVE,			/* relid */
	PLAN_FIND_ROW,			/* relid: by its uuid */
	PLAN_SELECT_ROW,		/* relid: the same, for update */
} PlanKind;

/* Acting as a table's owner. */
typedef struct TaOwnerFrame
{
	Oid user;
	int sec_context;
	int guc_level; /* 0: the search_path is the caller's */
} TaOwnerFrame;

/* What statements return of the rows that they write, before the columns of keys. */
#define TA_RETURN_ID	1 /* "k.id", the deletion that the row was of */
#define TA_RETURN_TABLE 2 /* the partition that it lies in */

/* Keys of rows that dependents may refer to: an array for each column of a key. */
typedef struct TaKeyArrays
{
	Datum	   values[INDEX_MAX_KEYS];
	Datum	   ids;		  /* with TA_RETURN_ID: a uuid[], the deletion of each row */
	pg_uuid_t *deletions; /* and which ones there are, in order */
	int		   ndeletions;
	int		   nrows;
} TaKeyArrays;

extern void ta_sd_plan_init(void);

extern SPIPlanPtr ta_sd_find_plan(PlanKind kind, Oid relid, Oid other);
extern SPIPlanPtr ta_sd_make_plan(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table,
								  const char *sql, int nargs, Oid *types);
extern SPIPlanPtr ta_sd_make_plan_over(PlanKind kind, Oid relid, Oid other, Oid table, Oid second_table,
									   List *others, const char *sql, int nargs, Oid *types);
extern SPIPlanPtr ta_sd_make_plan_by_row(PlanKind kind, Oid relid, const char *sql, int nargs, Oid *types);
extern uint64	  ta_sd_run_plan(SPIPlanPtr plan, Datum *values, const char *nulls);
extern uint64	  ta_sd_run_plan_on_latest(SPIPlanPtr plan, Datum *values, const char *nulls);
extern uint64	  ta_sd_run_own_plan(SPIPlanPtr plan, Datum *values, const char *nulls,
									 const pg_uuid_t *ids, int nids,
									 uint64 (*run)(SPIPlanPtr, Datum *, const char *));
extern void		  ta_sd_connect_spi(void);
extern void		  ta_sd_finish_spi(void);

extern void ta_sd_owner_begin(TaOwnerFrame *frame, Oid relid);
extern void ta_sd_owner_end(const TaOwnerFrame *frame);

extern char		  *ta_sd_qualified_name(Oid relid);
extern const char *ta_sd_column_name(Oid relid, AttrNumber attnum);
extern AttrNumber  ta_sd_column_number(Relation rel, const char *name);
extern bool		   ta_sd_is_soft_delete_relid(Oid relid);
extern Oid		   ta_sd_root_of(Oid relid);
extern void		   ta_sd_raise_no_column(Relation rel) pg_attribute_noreturn();

extern int	 ta_sd_unique_ids(pg_uuid_t *ids, int nids);
extern Datum ta_sd_row_array(const ItemPointerData *rows, int nrows);
extern Datum ta_sd_id_array(const pg_uuid_t *ids, int nids);
extern List *ta_sd_cascading(List *keys);
extern void	 ta_sd_append_returning(StringInfo sql, const char *word, const char *alias, int more, List *keys);
extern void	 ta_sd_take_keys(const TaForeignKey *key, SPITupleTable *table, uint64 nrows, int more,
							 int first_column, TaKeyArrays *arrays);
extern void	 ta_sd_append_keys_from(StringInfo sql, const TaForeignKey *key, bool with_id, Oid *types);
extern void	 ta_sd_append_join(StringInfo sql, const TaForeignKey *key, const char *parent, const char *child);

#endif /* TECHALLY_SOFT_DELETE_PLAN_H */
