/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  Ranges of time on a grid of steps (pure), and partitioned tables as the
 *	  catalogs describe them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_PARTITION_H
#define TECHALLY_PARTITION_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "spi_util.h"
#include "storage/lockdefs.h"

/*
 * The width of a partition: months, or else microseconds.  Its grid begins at
 * the beginning of a year or a day in UTC, that of weeks on a Monday.
 */
typedef struct TaStep
{
	int	  months;
	int64 usecs;
} TaStep;

/*
 * A half-open range [from, to) of time in UTC, in microseconds as a timestamp
 * has them; DT_NOBEGIN and DT_NOEND where it has no end.
 */
typedef struct TaRange
{
	Timestamp from;
	Timestamp to;
	Oid		  partition; /* InvalidOid: none yet */
} TaRange;

/* A table that is partitioned by RANGE on a time, as it is at the moment. */
typedef struct TaParent
{
	Oid		 relid;
	Oid		 nspid;
	Oid		 owner;
	char	*name;		/* bare */
	char	*qualified; /* quoted, with its schema */
	Oid		 key_type;	/* date, timestamp or timestamptz */
	char	*key;		/* the key's SQL, valid in every partition */
	TaRange *ranges;	/* disjoint, ascending; without DEFAULT */
	int		 nranges;
	Oid		 default_oid; /* InvalidOid: there is none */
} TaParent;

/* A row of techally.managed_partitions. */
typedef struct TaManaged
{
	Interval step_interval;
	TaStep	 step;
	int		 premake;
	bool	 has_retention;
	Interval retention;
	char	*action;
	char	*archive_kind;
	char	*archive_name;
} TaManaged;

/* Surroundings of work on somebody's table, see ta_maintenance_begin. */
typedef struct TaMaintenance
{
	TaFrame frame;
	int		guc_level;
} TaMaintenance;

extern int ta_maintenance_lock_timeout;
extern int ta_maintenance_hold_limit;
extern int ta_maintenance_retries;

extern bool	 ta_step_from_interval(const Interval *interval, TaStep *step);
extern bool	 ta_step_finer(const TaStep *step, TaStep *finer);
extern bool	 ta_step_floor(const TaStep *step, Timestamp at, Timestamp *floor);
extern bool	 ta_step_next(const TaStep *step, Timestamp cell, Timestamp *next);
extern int	 ta_missing_ranges(const TaRange *covered, int ncovered, const TaStep *step,
							   Timestamp from, Timestamp to, int limit, TaRange *missing);
extern char *ta_range_label(const TaStep *step, Timestamp from);
extern char *ta_bound_literal(Oid key_type, Timestamp bound);

extern TaParent	 *ta_describe_parent(Oid relid, LOCKMODE lockmode);
extern TaParent	 *ta_look_at_parent(Oid relid);
extern bool		  ta_free_range(const TaParent *parent, const TaStep *step, Timestamp at, TaRange *range);
extern Timestamp  ta_key_value(Oid key_type, Datum value);
extern char		 *ta_range_condition(const TaParent *parent, const TaRange *range);
extern char		 *ta_qualified_name(Oid relid);
extern bool		  ta_create_partition(const TaParent *parent, const TaStep *step, const TaRange *range,
									  void (*fill)(Oid partition, void *arg), void *arg, Oid *created);
extern Oid		  ta_prepare_partition(const TaParent *parent, const TaRange *range, const char *name, bool indexes);
extern void		  ta_prove_range(const TaParent *parent, const TaRange *range, Oid partition);
extern void		  ta_add_foreign_keys(const TaParent *parent, Oid partition);
extern void		  ta_attach_partition(const TaParent *parent, const TaRange *range, Oid partition, bool absent);
extern bool		  ta_default_has_rows(const TaParent *parent, const TaRange *range);
extern char		 *ta_free_name(Oid nspid, const char *base, const char *label);
extern TaManaged *ta_find_managed(Oid relid);
extern TaManaged *ta_require_managed(Oid relid);
extern void		  ta_require_owner(Oid relid);
extern Oid		  ta_partition_registry_owner(void);
extern char		 *ta_retire_one(Oid relid, const TaManaged *managed, Timestamp at);
extern void		  ta_announce_partition(Oid parent, Oid partition);
extern uint64	  ta_drain_one_range(Oid relid, const TaStep *table_step);
extern double	  ta_drain_rate(Oid relid);
extern void		  ta_record_drain(Oid relid, double rate);

extern void		   ta_maintenance_begin(TaMaintenance *frame, Oid owner);
extern void		   ta_maintenance_end(TaMaintenance *frame);
extern void		   ta_set_local(const char *name, const char *value);
extern uint64	   ta_run(const char *format, ...) pg_attribute_printf(1, 2);
extern TimestampTz ta_lock_deadline(void);
extern void		   ta_lock_table(Oid relid, LOCKMODE mode, TimestampTz deadline);
extern void		   ta_take_turn(Oid relid);
extern void		   ta_lock_joined(Oid relid, LOCKMODE mode, TimestampTz deadline);
extern void		   ta_begin_hold(void);
extern ErrorData  *ta_try(void (*attempt)(void *arg), void *arg);
extern ErrorData  *ta_retry(void (*attempt)(void *arg), void *arg);

extern void ta_partition_init(void);

extern Datum ta_manage_partitions(PG_FUNCTION_ARGS);

#endif /* TECHALLY_PARTITION_H */
