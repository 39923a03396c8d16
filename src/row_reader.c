/*-------------------------------------------------------------------------
 *
 * row_reader.c
 *	  Finding and locking rows by an index, without a plan.
 *
 * The counterpart of row_writer.c for the few rows that an order looks up: an
 * index scan under the transaction's snapshot, as an Index Scan node makes it,
 * and a row lock, as a LockRows node takes it.  The key is one to three columns;
 * any B-tree index that begins with the first and leaves out no row that is
 * wanted will do.
 *
 * Where the key is unique, a backend remembers where it found a row.  If under the
 * snapshot of a later reader the version that lies there is visible and has the
 * key, it is the row, and no index is asked.  The place is a hint: anything else
 * that is found there, or nothing, means to look it up.
 *
 * ta_reader_open returns NULL where the table does not allow it (row security
 * for the role that reads, no such index, a column of another type, a missing
 * privilege); the caller then has an SQL statement that does the same.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "nodes/primnodes.h"
#include "parser/parse_coerce.h"
#include "storage/bufmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "row_reader.h"

#define MAX_COLUMNS 12

typedef struct LookupKey
{
	Oid				relid;
	const TaColumn *columns;
} LookupKey;

/* How a table is read by its first column of a list: kept between calls. */
typedef struct Lookup
{
	LookupKey  key;
	bool	   valid;  /* cleared by invalidation, also while we look */
	bool	   usable; /* set last */
	Oid		   index;
	bool	   unique;				/* for a key there is one row at most */
	AttrNumber places[TA_MAX_KEYS]; /* which columns of the index are the keys */
	AttrNumber attnums[MAX_COLUMNS];
} Lookup;

/* Where a row was found. */
typedef struct Place
{
	Oid				relid;
	uint32			hash; /* of the key */
	ItemPointerData tid;
} Place;

#define PLACES 512

struct TaRowReader
{
	Relation		rel;
	Oid				index_oid;
	Relation		index; /* opened when it is needed */
	int				nkeys;
	Oid				key_types[TA_MAX_KEYS];
	AttrNumber		places[TA_MAX_KEYS];
	AttrNumber		attnums[MAX_COLUMNS];
	int				ncolumns;
	bool			hinted;	 /* places may be remembered */
	uint32			hash;	 /* of the key that is looked for */
	bool			at_hand; /* the slot holds the only row of the key */
	bool			over;
	Snapshot		snapshot; /* registered, but for a dirty one */
	SnapshotData	dirty;
	IndexScanDesc	scan;
	TableScanDesc	whole; /* of all rows */
	TupleTableSlot *slot;
	TupleTableSlot *locked;
};

static HTAB *lookups = NULL;
static Place places[PLACES];

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Lookup		   *lookup;

	hash_seq_init(&status, lookups);
	while ((lookup = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || lookup->key.relid == relid)
			lookup->valid = false;
	}
}

/*
 * ta_row_reader_init
 *		Makes the cache.  Called once, by _PG_init.
 */
void
ta_row_reader_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(LookupKey);
	ctl.entrysize = sizeof(Lookup);
	ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
	lookups = hash_create("techally row lookups", 32, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
}

/* The function by which a key of this type is compared; 0: none of ours. */
static RegProcedure
equality_of(Oid type)
{
	switch (type)
	{
		case UUIDOID:
			return F_UUID_EQ;
		case TEXTOID:
			return F_TEXTEQ;
		case INT2OID:
			return F_INT2EQ;
		default:
			return InvalidOid;
	}
}

/*
 * Whether an index holds every row that is wanted: it is whole, or leaves out
 * only those where the key is NULL, or those where null_attnum is not.
 */
static bool
is_complete(Relation index, AttrNumber attnum, AttrNumber null_attnum)
{
	List	 *predicate = RelationGetIndexPredicate(index);
	NullTest *test;

	if (predicate == NIL)
		return true;
	if (list_length(predicate) != 1 || !IsA(linitial(predicate), NullTest))
		return false;
	test = linitial_node(NullTest, predicate);
	if (!IsA(test->arg, Var))
		return false;
	return ((Var *) test->arg)->varattno ==
		   (test->nulltesttype == IS_NOT_NULL ? attnum : null_attnum);
}

/* Which column of an index holds attnum, from 1; 0 where none does. */
static AttrNumber
index_column(Relation index, AttrNumber attnum)
{
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		if (index->rd_index->indkey.values[i] == attnum)
			return i + 1;
	return 0;
}

/*
 * Finds an index that has the first columns of the lookup, as many as there are
 * keys, in their order and the very first at its front.  One that is unique in just these is best.
 */
static void
find_index(Lookup *lookup, Relation rel, int nkeys, AttrNumber null_attnum)
{
	List	 *indexes = RelationGetIndexList(rel);
	ListCell *cell;

	lookup->index = InvalidOid;
	lookup->unique = false;
	foreach(cell, indexes)
	{
		Relation   index = index_open(lfirst_oid(cell), AccessShareLock);
		AttrNumber columns[TA_MAX_KEYS];
		bool	   fits = index->rd_index->indisvalid && index->rd_rel->relam == BTREE_AM_OID &&
					!index->rd_index->indcheckxmin &&
					is_complete(index, lookup->attnums[0], null_attnum);

		for (int k = 0; k < nkeys; k++)
		{
			columns[k] = index_column(index, lookup->attnums[k]);
			fits = fits && (k == 0 ? columns[k] == 1 : columns[k] > columns[k - 1]);
		}
		if (fits)
		{
			lookup->index = RelationGetRelid(index);
			lookup->unique = index->rd_index->indisunique && index->rd_index->indimmediate &&
							 IndexRelationGetNumberOfKeyAttributes(index) == nkeys;
			memcpy(lookup->places, columns, sizeof(AttrNumber) * nkeys);
		}
		index_close(index, AccessShareLock);
		if (lookup->unique)
			break;
	}
	list_free(indexes);
}

static void
build_lookup(Lookup *lookup, Relation rel, const TaReaderKey *key,
			 const TaColumn *columns, int ncolumns)
{
	TupleDesc desc = RelationGetDescr(rel);
	bool	  usable = false;

	Assert(ncolumns <= MAX_COLUMNS);
	lookup->usable = false;
	lookup->valid = true;
	if (rel->rd_rel->relkind == RELKIND_RELATION && !rel->rd_rel->relhassubclass)
	{
		usable = true;
		for (int c = 0; c < ncolumns; c++)
		{
			Oid type;

			lookup->attnums[c] = get_attnum(RelationGetRelid(rel), columns[c].name);
			if (lookup->attnums[c] <= 0)
			{
				usable = false;
				break;
			}
			type = getBaseType(TupleDescAttr(desc, lookup->attnums[c] - 1)->atttypid);
			if (!IsBinaryCoercible(type, columns[c].type))
				usable = false;
		}
		if (usable)
		{
			AttrNumber null_attnum = InvalidAttrNumber;

			if (key->null_column != NULL)
				null_attnum = get_attnum(RelationGetRelid(rel), key->null_column);
			find_index(lookup, rel, key->nkeys, null_attnum);
			usable = OidIsValid(lookup->index);
		}
	}
	lookup->usable = usable;
}

static TaRowReader *
open_reader(const TaReaderKey *by, TaRowReader *sibling, Oid relid, bool for_update, bool dirty,
			const TaColumn *columns, int ncolumns)
{
	LookupKey	 key;
	Lookup		*lookup;
	bool		 found;
	Relation	 rel;
	TaRowReader *reader;

	if (!ta_direct_rows() || !OidIsValid(relid))
		return NULL;
	if (for_update)
		PreventCommandIfReadOnly("SELECT FOR NO KEY UPDATE");
	rel = table_open(relid, for_update ? RowShareLock : AccessShareLock);

	memset(&key, 0, sizeof(key));
	key.relid = relid;
	key.columns = columns;
	lookup = hash_search(lookups, &key, HASH_ENTER, &found);
	if (!found)
		lookup->valid = false;
	if (!lookup->valid)
		build_lookup(lookup, rel, by, columns, ncolumns);
	if (!lookup->usable ||
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		(for_update && pg_class_aclcheck(relid, GetUserId(), ACL_UPDATE) != ACLCHECK_OK) ||
		(rel->rd_rel->relrowsecurity && check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED))
	{
		table_close(rel, NoLock);
		return NULL;
	}

	reader = palloc0(sizeof(TaRowReader));
	reader->rel = rel;
	reader->ncolumns = ncolumns;
	memcpy(reader->attnums, lookup->attnums, sizeof(reader->attnums));
	reader->nkeys = by->nkeys;
	for (int k = 0; k < by->nkeys; k++)
	{
		reader->key_types[k] = columns[k].type;
		reader->places[k] = lookup->places[k];
	}
	reader->index_oid = lookup->index;
	reader->hinted = lookup->unique && by->nkeys == 1 && !for_update && !dirty;
	if (sibling == NULL)
		CommandCounterIncrement(); /* see what the command that called us has written */
	if (dirty)
	{
		InitDirtySnapshot(reader->dirty);
		reader->snapshot = &reader->dirty;
	}
	else if (sibling != NULL)
		reader->snapshot = RegisterSnapshot(sibling->snapshot);
	else
		reader->snapshot = RegisterSnapshot(GetTransactionSnapshot());
	reader->slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), table_slot_callbacks(rel));
	return reader;
}

/*
 * ta_reader_open
 *		Opens a table to find rows by the first of the columns.
 *
 * columns is a static array: its address is part of the cache's key.  Locks the
 * table as a SELECT would, or one with FOR UPDATE.  The snapshot is the
 * transaction's: in READ COMMITTED, a new one.
 */
TaRowReader *
ta_reader_open(Oid relid, bool for_update, const TaColumn *columns, int ncolumns)
{
	static const TaReaderKey first = {1, NULL};

	return ta_reader_open_by(&first, relid, for_update, columns, ncolumns);
}

/*
 * ta_reader_open_by
 *		The same with a key as described; it goes with the list of columns.
 */
TaRowReader *
ta_reader_open_by(const TaReaderKey *by, Oid relid, bool for_update,
				  const TaColumn *columns, int ncolumns)
{
	return open_reader(by, NULL, relid, for_update, false, columns, ncolumns);
}

/*
 * ta_reader_open_beside
 *		The same under the snapshot of another reader: what the two find fits
 *		together.
 */
TaRowReader *
ta_reader_open_beside(TaRowReader *sibling, const TaReaderKey *by, Oid relid, bool for_update,
					  const TaColumn *columns, int ncolumns)
{
	static const TaReaderKey first = {1, NULL};

	return open_reader(by != NULL ? by : &first, sibling, relid, for_update, false, columns, ncolumns);
}

/*
 * ta_reader_open_dirty
 *		The same to see, besides what is committed, what is not: a row that is
 *		being changed comes in both versions.
 *
 * For guessing what is to come, and not for locking.
 */
TaRowReader *
ta_reader_open_dirty(Oid relid, const TaColumn *columns, int ncolumns)
{
	static const TaReaderKey first = {1, NULL};

	return open_reader(&first, NULL, relid, false, true, columns, ncolumns);
}

/*
 * ta_reader_writer
 *		Whose the row that was found last is, where he has not committed;
 *		InvalidTransactionId where he has.
 */
TransactionId
ta_reader_writer(TaRowReader *reader)
{
	return reader->dirty.xmin;
}

/* Whether a column holds the key, in the very same bytes. */
static bool
is_key(Oid type, Datum column, Datum key)
{
	if (type == UUIDOID)
		return memcmp(DatumGetUUIDP(column), DatumGetUUIDP(key), UUID_LEN) == 0;
	Assert(type == TEXTOID);
	{
		text *a = DatumGetTextPP(column);
		text *b = DatumGetTextPP(key);

		return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
			   memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
	}
}

/* Looks for the row where this backend found it before. */
static bool
find_by_place(TaRowReader *reader, Datum key)
{
	Place *place;
	bool   isnull;
	Datum  column;

	if (reader->key_types[0] == UUIDOID)
		reader->hash = hash_bytes((unsigned char *) DatumGetUUIDP(key), UUID_LEN);
	else
	{
		text *value = DatumGetTextPP(key);

		reader->hash = hash_bytes((unsigned char *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	}
	place = &places[(reader->hash ^ RelationGetRelid(reader->rel)) % PLACES];
	if (place->relid != RelationGetRelid(reader->rel) || place->hash != reader->hash ||
		ItemPointerGetBlockNumber(&place->tid) >= RelationGetNumberOfBlocks(reader->rel) ||
		!table_tuple_fetch_row_version(reader->rel, &place->tid, reader->snapshot, reader->slot))
		return false;
	column = slot_getattr(reader->slot, reader->attnums[0], &isnull);
	return !isnull && is_key(reader->key_types[0], column, key);
}

/* Remembers where the row of the key lies that was looked for. */
static void
remember_place(TaRowReader *reader)
{
	Place *place = &places[(reader->hash ^ RelationGetRelid(reader->rel)) % PLACES];

	place->relid = RelationGetRelid(reader->rel);
	place->hash = reader->hash;
	place->tid = reader->slot->tts_tid;
}

/*
 * ta_reader_find
 *		Begins to look for the rows of a key.
 */
void
ta_reader_find(TaRowReader *reader, Datum key)
{
	ta_reader_find_by(reader, &key);
}

/*
 * ta_reader_find_by
 *		The same where the key has several columns.
 */
void
ta_reader_find_by(TaRowReader *reader, const Datum *keys)
{
	ScanKeyData scankeys[TA_MAX_KEYS];

	reader->over = false;
	reader->at_hand = reader->hinted && find_by_place(reader, keys[0]);
	if (reader->at_hand)
		return;

	if (reader->index == NULL)
		reader->index = index_open(reader->index_oid, AccessShareLock);
	for (int k = 0; k < reader->nkeys; k++)
		ScanKeyEntryInitialize(&scankeys[k], 0, reader->places[k], BTEqualStrategyNumber, InvalidOid,
							   reader->index->rd_indcollation[reader->places[k] - 1],
							   equality_of(reader->key_types[k]), keys[k]);
	if (reader->scan == NULL)
		reader->scan = ta_index_beginscan(reader->rel, reader->index, reader->snapshot, reader->nkeys);
	index_rescan(reader->scan, scankeys, reader->nkeys, NULL, 0);
}

/*
 * ta_reader_find_all
 *		Begins to read all rows, for tables of a few.
 */
void
ta_reader_find_all(TaRowReader *reader)
{
	if (reader->whole != NULL)
		table_endscan(reader->whole);
	reader->at_hand = reader->over = false;
	reader->whole = table_beginscan(reader->rel, reader->snapshot, 0, NULL);
}

/* The columns of a slot. */
static void
read_columns(TaRowReader *reader, TupleTableSlot *slot, Datum *values, bool *nulls)
{
	for (int c = 0; c < reader->ncolumns; c++)
		values[c] = slot_getattr(slot, reader->attnums[c], &nulls[c]);
}

/*
 * ta_reader_next
 *		The next row of the key, false when there is none.
 *
 * What is passed by reference points into the row: it holds until the next
 * call.  tid may be NULL.
 */
bool
ta_reader_next(TaRowReader *reader, Datum *values, bool *nulls, ItemPointer tid)
{
	if (reader->over)
		return false;
	if (reader->at_hand)
		reader->over = true;
	else if (reader->whole != NULL)
	{
		if (!table_scan_getnextslot(reader->whole, ForwardScanDirection, reader->slot))
		{
			table_endscan(reader->whole);
			reader->whole = NULL;
			reader->over = true;
			return false;
		}
	}
	else
	{
		if (!index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot))
		{
			reader->over = true;
			return false;
		}
		if (reader->hinted)
			remember_place(reader);
	}
	read_columns(reader, reader->slot, values, nulls);
	if (tid != NULL)
		*tid = reader->slot->tts_tid;
	return true;
}

/*
 * ta_reader_lock
 *		Locks a row that was found, FOR NO KEY UPDATE, waiting for whoever has it.
 *
 * tid becomes that of the version that is locked, in READ COMMITTED the newest,
 * and the columns are read from it.  Returns false where the row was deleted
 * meanwhile; raises 40001 where a stricter isolation level forbids to go on.
 */
bool
ta_reader_lock(TaRowReader *reader, ItemPointer tid, Datum *values, bool *nulls)
{
	TM_FailureData failure;
	TM_Result	   result;
	int			   flags = TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS;

	if (reader->locked == NULL)
		reader->locked = MakeSingleTupleTableSlot(RelationGetDescr(reader->rel),
												  table_slot_callbacks(reader->rel));
	if (!IsolationUsesXactSnapshot())
		flags |= TUPLE_LOCK_FLAG_FIND_LAST_VERSION;

	result = table_tuple_lock(reader->rel, tid, reader->snapshot, reader->locked,
							  GetCurrentCommandId(true), LockTupleNoKeyExclusive,
							  LockWaitBlock, flags, &failure);
	switch (result)
	{
		case TM_Ok:
			*tid = reader->locked->tts_tid;
			read_columns(reader, reader->locked, values, nulls);
			return true;

		case TM_Updated:
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				ereport(ERROR,
						(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						 errmsg("could not serialize access due to concurrent update")));
			return false;

		default:
			elog(ERROR, "unexpected result of a row lock: %d", (int) result);
	}
}

/*
 * ta_reader_try_lock
 *		Locks a row that was found, FOR NO KEY UPDATE, unless somebody has it.
 *
 * Waits for nobody.  With newest, the newest version is locked and its columns
 * read (in READ COMMITTED); without, only the very version that was found, so
 * that what was read of it is still so and a row of no use is not locked.  tid
 * becomes that of the version that is locked.
 */
TaLockResult
ta_reader_try_lock(TaRowReader *reader, ItemPointer tid, bool newest, Datum *values, bool *nulls)
{
	TM_FailureData failure;
	TM_Result	   result;
	int			   flags = 0;

	if (reader->locked == NULL)
		reader->locked = MakeSingleTupleTableSlot(RelationGetDescr(reader->rel),
												  table_slot_callbacks(reader->rel));
	if (newest && !IsolationUsesXactSnapshot())
		flags = TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS | TUPLE_LOCK_FLAG_FIND_LAST_VERSION;

	result = table_tuple_lock(reader->rel, tid, reader->snapshot, reader->locked,
							  GetCurrentCommandId(true), LockTupleNoKeyExclusive,
							  LockWaitSkip, flags, &failure);
	switch (result)
	{
		case TM_Ok:
			*tid = reader->locked->tts_tid;
			read_columns(reader, reader->locked, values, nulls);
			return TA_LOCKED;

		case TM_WouldBlock:
			return TA_BUSY;

		case TM_Updated:
			return TA_CHANGED;

		case TM_Deleted:
			return TA_GONE;

		default:
			elog(ERROR, "unexpected result of a row lock: %d", (int) result);
	}
}

/*
 * ta_reader_close
 *		Ends the scan; the table stays locked until the transaction ends.
 */
void
ta_reader_close(TaRowReader *reader)
{
	if (reader->scan != NULL)
		index_endscan(reader->scan);
	if (reader->whole != NULL)
		table_endscan(reader->whole);
	ExecDropSingleTupleTableSlot(reader->slot);
	if (reader->locked != NULL)
		ExecDropSingleTupleTableSlot(reader->locked);
	if (reader->snapshot != &reader->dirty)
		UnregisterSnapshot(reader->snapshot);
	if (reader->index != NULL)
		index_close(reader->index, NoLock);
	table_close(reader->rel, NoLock);
	pfree(reader);
}
