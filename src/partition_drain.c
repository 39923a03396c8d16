/*-------------------------------------------------------------------------
 *
 * partition_drain.c
 *	  Moving rows out of a DEFAULT partition into partitions of their own.
 *
 * One call moves the rows of one range: it makes the range's partition, deletes
 * the rows from DEFAULT and puts them there, all in one transaction.  Rows are moved below the executor, so no trigger fires and no
 * foreign key acts: to the outside nothing has changed.
 *
 * Invariants:
 * - A statement whose snapshot is taken after the move sees each row once.  For
 *	 that the parent is locked in ACCESS EXCLUSIVE mode, and not only DEFAULT: a
 *	 statement that has got the parent has looked at its list of partitions.
 *	 One that waited for DEFAULT only would go on with the list from before the
 *	 move and a snapshot from after it, and miss every row that was moved; an
 *	 INSERT would put its row into DEFAULT and fail there.  (Both measured.)
 * - Nobody waits for us longer than techally.maintenance_lock_timeout, while we
 *	 wait for the locks, plus techally.maintenance_hold_limit, while we have
 *	 them: ranges are chosen so small that the move takes a part of that, by
 *	 what the last one took, and a timer rolls back a move that takes longer,
 *	 which is made again with a smaller range.
 * - A transaction in REPEATABLE READ or above whose snapshot is older than the
 *	 move does not see the rows in the new partition, and sees them in DEFAULT
 *	 only where its query reads that.  Nothing outside the server can help it.
 *
 * Lock order: that of partition.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/tupconvert.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partition.h"
#include "progress.h"
#include "request_util.h"

#define BATCH_ROWS	 1000
#define BATCH_BYTES	 (1024 * 1024)
#define GUESSED_RATE 100000.0 /* rows a second, before the first drain */
#define MOVE_SHARE	 0.5	  /* of the hold limit that a range is chosen for */
#define MAX_SMALLER	 8		  /* times that a range is made smaller after a slow move */
#define MAX_EMPTY	 16		  /* ranges whose rows were gone when we had the locks */
#define MAX_FAILED	 16		  /* ranges passed over because their rows fit into no partition */

/* The move of one range. */
typedef struct Drain
{
	Oid			  relid;
	Oid			  owner;
	const TaStep *table_step;
	Timestamp	  after;  /* only rows from there on; DT_NOBEGIN: all */
	uint64		  budget; /* rows at most, if the grid has it */
	TaStep		  step;	  /* of the range, perhaps finer than the table's */
	Timestamp	  cell_end;
	TaRange		  range;
	TaParent	 *parent; /* as it is since the locks were got */
	instr_time	  held_since;
	bool		  held;
	uint64		  moved;
	uint64		  expected;
	double		  rate;	 /* of this move, rows a second */
	bool		  stale; /* somebody else made partitions meanwhile */
	Oid			  partition;
} Drain;

static double
seconds_since(const instr_time *start)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, *start);
	return INSTR_TIME_GET_DOUBLE(now);
}

/* The key of a row, by its column or its expression. */
typedef struct KeyReader
{
	AttrNumber	 attnum; /* 0: an expression */
	ExprState	*expression;
	EState		*estate;
	ExprContext *econtext;
	Oid			 type;
} KeyReader;

static void
open_key(KeyReader *reader, Relation parent, Relation partition)
{
	PartitionKey key = RelationGetPartitionKey(parent);

	memset(reader, 0, sizeof(*reader));
	reader->type = key->parttypid[0];
	reader->estate = CreateExecutorState();
	reader->econtext = GetPerTupleExprContext(reader->estate);
	if (key->partattrs[0] != 0)
		reader->attnum = get_attnum(RelationGetRelid(partition),
									get_attname(RelationGetRelid(parent), key->partattrs[0], false));
	else
	{
		List *mapped = map_partition_varattnos(copyObject(key->partexprs), 1, partition, parent);

		reader->expression = ExecPrepareExpr(linitial(mapped), reader->estate);
	}
}

/* False where the key is NULL. */
static bool
read_key(KeyReader *reader, TupleTableSlot *slot, Timestamp *key)
{
	bool  isnull;
	Datum value;

	if (reader->attnum != 0)
		value = slot_getattr(slot, reader->attnum, &isnull);
	else
	{
		ResetExprContext(reader->econtext);
		reader->econtext->ecxt_scantuple = slot;
		value = ExecEvalExprSwitchContext(reader->expression, reader->econtext, &isnull);
	}
	if (isnull)
		return false;
	*key = ta_key_value(reader->type, value);
	return true;
}

static void
close_key(KeyReader *reader)
{
	FreeExecutorState(reader->estate);
}

/* Rows on their way. */
typedef struct Batch
{
	Relation			from;
	Relation			to; /* NULL: they have been copied, only delete them */
	TupleConversionMap *map;
	Snapshot			snapshot;
	CommandId			cid;
	BulkInsertState		bulk;
	TupleTableSlot	  **slots;
	ItemPointerData		tids[BATCH_ROWS];
	int					n;
	Size				bytes;
} Batch;

static void
flush_batch(Batch *batch, Drain *drain)
{
	if (batch->n == 0)
		return;

	/* in this order: a subscriber, to whom both are one table, has the key once */
	for (int i = 0; i < batch->n; i++)
		simple_table_tuple_delete(batch->from, &batch->tids[i], batch->snapshot);
	if (batch->to != NULL)
	{
		table_multi_insert(batch->to, batch->slots, batch->n, batch->cid,
						   TABLE_INSERT_SKIP_FSM, batch->bulk);
		for (int i = 0; i < batch->n; i++)
			ExecClearTuple(batch->slots[i]);
	}
	drain->moved += batch->n;
	batch->n = 0;
	batch->bytes = 0;
	CHECK_FOR_INTERRUPTS();
	ta_progress_update("moving", drain->moved, drain->expected);
}

/* What of a row is stored out of line, and will be written anew. */
static Size
external_bytes(TupleTableSlot *slot)
{
	Size bytes = 0;

	slot_getallattrs(slot);
	for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, i);

		if (!att->attisdropped && att->attlen == -1 && !slot->tts_isnull[i] &&
			VARATT_IS_EXTERNAL(DatumGetPointer(slot->tts_values[i])))
			bytes += toast_datum_size(slot->tts_values[i]);
	}
	return bytes;
}

static void
add_to_batch(Batch *batch, TupleTableSlot *slot)
{
	batch->tids[batch->n] = slot->tts_tid;
	if (batch->to != NULL)
	{
		TupleTableSlot **copy = &batch->slots[batch->n];

		if (*copy == NULL)
			*copy = table_slot_create(batch->to, NULL);
		if (batch->map != NULL)
		{
			(void) execute_attr_map_slot(batch->map->attrMap, slot, *copy);
			ExecMaterializeSlot(*copy);
		}
		else
			ExecCopySlot(*copy, slot);
		if (TTS_IS_BUFFERTUPLE(*copy) || TTS_IS_HEAPTUPLE(*copy))
		{
			HeapTuple tuple = ((HeapTupleTableSlot *) *copy)->tuple;

			batch->bytes += tuple != NULL ? tuple->t_len : 0;
			if (tuple != NULL && HeapTupleHasExternal(tuple))
				batch->bytes += external_bytes(*copy);
		}
	}
	batch->n++;
}

/* The columns of DEFAULT, in SQL, but for those that are generated. */
static char *
plain_columns(Relation rel)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (!att->attisdropped && att->attgenerated == '\0')
			appendStringInfo(&list, "%s%s", list.len > 0 ? ", " : "", quote_identifier(NameStr(att->attname)));
	}
	return list.data;
}

/* A scan of DEFAULT: by an index on the key where that reads less. */
typedef struct RangeScan
{
	TableScanDesc heap;
	IndexScanDesc index_scan;
	Relation	  index;
} RangeScan;

/* A btree on the key that has every row; InvalidOid where there is none. */
static Oid
index_on_key(Relation rel, AttrNumber attnum)
{
	List	 *indexes = RelationGetIndexList(rel);
	ListCell *lc;
	Oid		  result = InvalidOid;

	foreach(lc, indexes)
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_rel->relam == BTREE_AM_OID && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == attnum &&
			RelationGetIndexPredicate(index) == NIL &&
			index->rd_opcintype[0] == TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid)
			result = RelationGetRelid(index);
		index_close(index, NoLock);
		if (OidIsValid(result))
			break;
	}
	list_free(indexes);
	return result;
}

static Datum
key_datum(Oid type, Timestamp moment)
{
	return type == DATEOID ? DateADTGetDatum((DateADT) (moment / USECS_PER_DAY)) : TimestampGetDatum(moment);
}

static void
open_scan(RangeScan *scan, Drain *drain, const KeyReader *reader, Relation rel, Snapshot snapshot)
{
	Oid			indexid = InvalidOid;
	ScanKeyData keys[2];

	memset(scan, 0, sizeof(*scan));
	if (reader->attnum != 0 && drain->expected / 16 < RelationGetNumberOfBlocks(rel))
		indexid = index_on_key(rel, reader->attnum);
	if (!OidIsValid(indexid))
	{
		scan->heap = table_beginscan(rel, snapshot, 0, NULL);
		return;
	}
	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber,
				reader->type == DATEOID ? F_DATE_GE : F_TIMESTAMP_GE,
				key_datum(reader->type, drain->range.from));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber,
				reader->type == DATEOID ? F_DATE_LT : F_TIMESTAMP_LT,
				key_datum(reader->type, drain->range.to));
	scan->index = index_open(indexid, NoLock);
	scan->index_scan = ta_index_beginscan(rel, scan->index, snapshot, 2);
	index_rescan(scan->index_scan, keys, 2, NULL, 0);
}

static bool
next_row(RangeScan *scan, TupleTableSlot *slot)
{
	if (scan->heap != NULL)
		return table_scan_getnextslot(scan->heap, ForwardScanDirection, slot);
	return index_getnext_slot(scan->index_scan, ForwardScanDirection, slot);
}

static void
close_scan(RangeScan *scan)
{
	if (scan->heap != NULL)
		table_endscan(scan->heap);
	else
	{
		index_endscan(scan->index_scan);
		index_close(scan->index, NoLock);
	}
}

/* A table, $1, or one that it is a part of, in a publication. */
static const TaStatement select_published = {
	"SELECT 1 FROM pg_catalog.pg_partition_ancestors($1) a"
	"  JOIN pg_catalog.pg_class c ON c.oid = a.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	"  JOIN pg_catalog.pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname LIMIT 1",
	1,
	{OIDOID}};

/*
 * Rows that go by a statement are written before their table belongs to its
 * parent, and so to no publication of that: subscribers would see the deletes.
 */
static void
check_not_published(Relation default_rel)
{
	Datum values[1] = {ObjectIdGetDatum(RelationGetRelid(default_rel))};

	if (XLogLogicalInfoActive() &&
		ta_execute(get_namespace_oid("techally", false), &select_published, SPI_OK_SELECT, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("rows of published table \"%s\" cannot be moved into a partition that is itself partitioned", RelationGetRelationName(default_rel)),
				 errhint("Make the partition by hand, or take the table out of the publication meanwhile.")));
}

/*
 * Puts the range's rows of DEFAULT into the new table and deletes them.
 *
 * DEFAULT is locked, and so is everything that could change it; what is visible
 * to a snapshot of now is all there is.  A new partition that is partitioned
 * itself gets its rows by a statement, which finds their places.
 */
static void
move_rows(Oid partition, void *arg)
{
	Drain		   *drain = arg;
	TaParent	   *parent = drain->parent;
	Relation		parent_rel = table_open(parent->relid, NoLock);
	bool			by_statement = get_rel_relkind(partition) == RELKIND_PARTITIONED_TABLE;
	Batch			batch = {0};
	Snapshot		snapshot = RegisterSnapshot(GetLatestSnapshot());
	uint64			copied = 0;
	KeyReader		reader;
	RangeScan		scan;
	uint64			seen = 0;
	TupleTableSlot *slot;
	MemoryContext	row_context;
	MemoryContext	old_context;

	batch.from = table_open(parent->default_oid, NoLock);
	CheckCmdReplicaIdentity(batch.from, CMD_DELETE);
	if (by_statement)
	{
		char	  *columns = plain_columns(batch.from);
		SPIPlanPtr plan;

		check_not_published(batch.from);
		plan = SPI_prepare(psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM ONLY %s WHERE %s",
									ta_qualified_name(partition), columns, columns,
									ta_qualified_name(parent->default_oid),
									ta_range_condition(parent, &drain->range)),
						   0, NULL);

		/* in the snapshot that the rows are deleted in, which need not be the transaction's */
		if (plan == NULL ||
			SPI_execute_snapshot(plan, NULL, NULL, snapshot, InvalidSnapshot, false, true, 0) != SPI_OK_INSERT)
			elog(ERROR, "could not copy rows into \"%s\"", get_rel_name(partition));
		copied = SPI_processed;
		SPI_freeplan(plan);
	}
	else
	{
		batch.to = table_open(partition, NoLock);
		batch.map = convert_tuples_by_name(RelationGetDescr(batch.from), RelationGetDescr(batch.to));
		batch.slots = palloc0(sizeof(TupleTableSlot *) * BATCH_ROWS);
		batch.bulk = GetBulkInsertState();
	}
	batch.cid = GetCurrentCommandId(true);
	batch.snapshot = snapshot;
	open_key(&reader, parent_rel, batch.from);

	row_context = AllocSetContextCreate(CurrentMemoryContext, "techally drain", ALLOCSET_DEFAULT_SIZES);
	slot = table_slot_create(batch.from, NULL);
	open_scan(&scan, drain, &reader, batch.from, batch.snapshot);
	while (next_row(&scan, slot))
	{
		Timestamp key;

		if (++seen % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
		if (!read_key(&reader, slot, &key) || key < drain->range.from || key >= drain->range.to)
			continue;
		add_to_batch(&batch, slot);
		if (batch.n == BATCH_ROWS || batch.bytes >= BATCH_BYTES)
		{
			old_context = MemoryContextSwitchTo(row_context);
			flush_batch(&batch, drain);
			MemoryContextSwitchTo(old_context);
			MemoryContextReset(row_context);
		}
	}
	flush_batch(&batch, drain);
	if (by_statement && copied != drain->moved)
		elog(ERROR, "copied " UINT64_FORMAT " rows and deleted " UINT64_FORMAT, copied, drain->moved);
	close_scan(&scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(row_context);

	close_key(&reader);
	UnregisterSnapshot(batch.snapshot);
	if (batch.to != NULL)
	{
		FreeBulkInsertState(batch.bulk);
		table_finish_bulk_insert(batch.to, TABLE_INSERT_SKIP_FSM);
		for (int i = 0; i < BATCH_ROWS && batch.slots[i] != NULL; i++)
			ExecDropSingleTupleTableSlot(batch.slots[i]);
		table_close(batch.to, NoLock);
	}
	table_close(batch.from, NoLock);
	table_close(parent_rel, NoLock);
	CommandCounterIncrement();
	ta_progress_update("attaching", drain->moved, drain->expected);
}

/* One attempt to move a range; see the file's head for the locks. */
static void
attempt_to_drain(void *arg)
{
	Drain		 *drain = arg;
	TaMaintenance frame;
	TimestampTz	  deadline = ta_lock_deadline();
	TaRange		  still;

	drain->moved = 0;
	drain->stale = drain->held = false;
	drain->partition = InvalidOid;
	ta_progress_update("waiting for locks", 0, drain->expected);
	ta_maintenance_begin(&frame, drain->owner);
	ta_set_local("lock_timeout", psprintf("%d", ta_maintenance_lock_timeout));
	ta_lock_table(drain->relid, AccessExclusiveLock, deadline);
	drain->parent = ta_describe_parent(drain->relid, NoLock);
	if (OidIsValid(drain->parent->default_oid))
		ta_lock_table(drain->parent->default_oid, AccessExclusiveLock, deadline);
	ta_lock_joined(drain->relid, ShareRowExclusiveLock, deadline);
	INSTR_TIME_SET_CURRENT(drain->held_since);
	drain->held = true;
	ta_begin_hold();

	drain->stale = !OidIsValid(drain->parent->default_oid) ||
				   !ta_free_range(drain->parent, drain->table_step, drain->range.from, &still) ||
				   still.from != drain->range.from || still.to < drain->range.to;
	if (!drain->stale)
		(void) ta_create_partition(drain->parent, &drain->step, &drain->range, move_rows, drain, &drain->partition);
	ta_maintenance_end(&frame);
	drain->rate = drain->moved / Max(seconds_since(&drain->held_since), 0.000001);
}

/* The first row of DEFAULT, at or after a moment, that a partition can be made for. */
static bool
first_key(const TaParent *parent, Timestamp after, Timestamp *key)
{
	bool  isnull;
	Datum value;

	/* the grid ends a little before the type does */
	(void) ta_run("SELECT pg_catalog.min(%s) FROM ONLY %s WHERE %s >= %s AND %s < '294276-01-01'",
				  parent->key, ta_qualified_name(parent->default_oid), parent->key,
				  TIMESTAMP_IS_NOBEGIN(after) ? "'4712-01-01 BC'" : ta_bound_literal(parent->key_type, after),
				  parent->key);
	value = ta_spi_value(0, 1, &isnull);
	if (!isnull)
		*key = ta_key_value(parent->key_type, value);
	return !isnull;
}

static uint64
count_rows(const TaParent *parent, const TaRange *range)
{
	bool isnull;

	(void) ta_run("SELECT pg_catalog.count(*) FROM ONLY %s WHERE %s",
				  ta_qualified_name(parent->default_oid), ta_range_condition(parent, range));
	return (uint64) DatumGetInt64(ta_spi_value(0, 1, &isnull));
}

/* The key of the row that stands at a place in the range, counted from 0. */
static bool
key_at(const TaParent *parent, const TaRange *range, uint64 place, Timestamp *key)
{
	bool isnull;

	if (ta_run("SELECT %s FROM ONLY %s WHERE %s ORDER BY 1 OFFSET " UINT64_FORMAT " LIMIT 1",
			   parent->key, ta_qualified_name(parent->default_oid),
			   ta_range_condition(parent, range), place) == 0)
		return false;
	*key = ta_key_value(parent->key_type, ta_spi_value(0, 1, &isnull));
	return true;
}

/*
 * Cuts a range so that it has at most budget rows and the first among them, at
 * the coarsest grid that has a point for that; else it becomes the finest cell.
 */
static void
cut_range(const TaParent *parent, Drain *drain, TaStep *step, Timestamp first, uint64 budget)
{
	Timestamp key;
	Timestamp cut;
	TaStep	  finer;

	if (drain->expected <= budget || !key_at(parent, &drain->range, budget, &key) ||
		!ta_step_floor(step, key, &cut))
		return;
	while (ta_step_finer(step, &finer) &&
		   !(parent->key_type == DATEOID && finer.months == 0 && finer.usecs < USECS_PER_DAY))
	{
		*step = finer;
		if (ta_step_floor(step, key, &cut) && cut > first)
		{
			drain->range.to = cut;
			drain->expected = budget;
			return;
		}
	}

	/* all of it in the finest cell */
	if (ta_step_next(step, cut, &cut) && cut < drain->range.to)
		drain->range.to = cut;
	drain->expected = count_rows(parent, &drain->range);
}

/*
 * Chooses what to move: the free part of the first row's cell, or a part of
 * it if it has more rows than the budget.  True where there is such a row.
 */
static bool
choose_range(Drain *drain)
{
	TaMaintenance frame;
	TaParent	 *parent;
	Relation	  rel;
	BlockNumber	  blocks;
	Timestamp	  key;
	bool		  found = false;

	drain->step = *drain->table_step;
	ta_maintenance_begin(&frame, drain->owner);
	parent = ta_describe_parent(drain->relid, AccessShareLock);
	if (OidIsValid(parent->default_oid))
	{
		rel = table_open(parent->default_oid, AccessShareLock);
		if (rel->rd_rel->relkind != RELKIND_RELATION)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("the default partition \"%s\" is no plain table", RelationGetRelationName(rel))));
		blocks = RelationGetNumberOfBlocks(rel);
		table_close(rel, NoLock);
		found = blocks > 0 && first_key(parent, drain->after, &key);
	}
	if (found)
	{
		if (!ta_free_range(parent, &drain->step, key, &drain->range))
			elog(ERROR, "a row of DEFAULT has a partition of its own");
		drain->cell_end = drain->range.to;
		drain->expected = count_rows(parent, &drain->range);
		cut_range(parent, drain, &drain->step, key, Max(drain->budget, 1));
	}
	ta_maintenance_end(&frame);
	return found;
}

typedef struct Choice
{
	Drain *drain;
	bool   found;
} Choice;

/* In a savepoint, and back: looking leaves no lock behind. */
static bool
look(void *arg)
{
	Choice *choice = arg;

	choice->found = choose_range(choice->drain);
	return false;
}

static bool
find_range(Drain *drain)
{
	Choice choice = {drain, false};

	(void) ta_in_savepoint(look, &choice);
	return choice.found;
}

/*
 * ta_drain_one_range
 *		Moves one missing range out of the DEFAULT partition of a managed table;
 *		returns its rows, 0 where DEFAULT has none that could have a partition.
 *
 * Rows whose key is NULL, infinite or at the very ends of its type stay.  A
 * range that is refused (its rows fit into no subpartition, say) is passed over
 * for the next, and its error raised only where there is no other.
 * Raises 55P03 where the locks cannot be had, 54000 where the smallest range
 * takes longer than techally.maintenance_hold_limit, 0A000 where DEFAULT is
 * itself partitioned, 42501 where row security is forced on its owner, 55000
 * where it publishes deletes and has no replica identity.
 */
uint64
ta_drain_one_range(Oid relid, const TaStep *table_step)
{
	double	   rate;
	int		   smaller = 0;
	int		   empty = 0;
	int		   failed = 0;
	Drain	   drain = {0};
	ErrorData *first_failure = NULL;

	ta_take_turn(relid);
	rate = ta_drain_rate(relid);
	if (rate <= 0)
		rate = GUESSED_RATE;
	drain.relid = relid;
	drain.owner = ta_relation_owner(relid);
	drain.table_step = table_step;
	drain.after = DT_NOBEGIN;
	for (;;)
	{
		ErrorData *error;

		drain.budget = (uint64) (rate * MOVE_SHARE * ta_maintenance_hold_limit / 1000);
		ta_progress_begin("drain", ta_qualified_name(relid), "counting", TA_PROGRESS_UNKNOWN);
		if (!find_range(&drain))
		{
			ta_progress_end();
			if (first_failure != NULL)
				ReThrowError(first_failure);
			return 0;
		}
		error = ta_retry(attempt_to_drain, &drain);
		ta_progress_end();
		CHECK_FOR_INTERRUPTS();
		if (error == NULL)
		{
			if (drain.moved > 0 || (!drain.stale && ++empty > MAX_EMPTY))
				break;
		}
		else if (error->sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED && drain.held && ++smaller <= MAX_SMALLER)
		{
			FreeErrorData(error);
			rate = Max(Min(drain.moved / Max(seconds_since(&drain.held_since), 0.000001), rate) / 2, 1);
		}
		else if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION &&
				 ++failed <= MAX_FAILED)
		{
			if (first_failure == NULL)
				first_failure = error;
			drain.after = drain.cell_end;
		}
		else
			ReThrowError(first_failure != NULL ? first_failure : error);
	}
	ta_record_drain(relid, drain.rate);
	ta_announce_partition(relid, drain.partition);
	return drain.moved;
}
