/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  With compat.c, the only place that asks for PG_VERSION_NUM.
 *
 * PostgreSQL 14 to 18 are supported; the rooms are written against 15.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_COMPAT_H
#define TECHALLY_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/tupdesc.h"
#include "utils/guc.h"
#include "utils/regproc.h"

#if PG_VERSION_NUM < 140000
#error "techally needs PostgreSQL 14 or later"
#endif

/* the macros of variable-length values moved out of postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* renamed in 15; does the same job */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

#if PG_VERSION_NUM < 160000
#include "utils/acl.h"
#define object_ownercheck(classid, objectid, roleid) \
	ta_object_ownercheck((classid), (objectid), (roleid))
extern bool ta_object_ownercheck(Oid classid, Oid objectid, Oid roleid);
#endif

/*
 * 14 calls a row trigger that was cloned from the parent of a partition
 * internal, and has no triggers of foreign keys on a partitioned table itself.
 */
#if PG_VERSION_NUM < 150000
#define TA_TRIGGER_IS_INTERNAL(trigger) ((trigger)->tgisinternal && !(trigger)->tgisclone)
#define TA_PARTITIONED_HAS_KEY_TRIGGERS false
#else
#define TA_TRIGGER_IS_INTERNAL(trigger) ((trigger)->tgisinternal)
#define TA_PARTITIONED_HAS_KEY_TRIGGERS true
#endif

#include "executor/executor.h"
#include "funcapi.h"
#include "nodes/parsenodes.h"

#include "access/tableam.h"

/* whether an update asks for new entries in indexes: the B-trees among them, all or none */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes TaUpdatedIndexes;
#else
typedef bool TaUpdatedIndexes;
#endif

/* the prepared CHECK constraints of a ResultRelInfo */
#if PG_VERSION_NUM >= 180000
#define TA_RI_CHECKS ri_CheckConstraintExprs
#else
#define TA_RI_CHECKS ri_ConstraintExprs
#endif

/* 18 knows constraints that are not enforced */
static inline bool
ta_check_is_enforced(const ConstrCheck *check)
{
#if PG_VERSION_NUM >= 180000
	return check->ccenforced;
#else
	return true;
#endif
}

/* a CHECK constraint that every row is known to satisfy */
static inline void
ta_mark_check_valid(Constraint *check)
{
	check->initially_valid = true;
	check->skip_validation = false;
#if PG_VERSION_NUM >= 180000
	check->is_enforced = true;
#endif
}

static inline void
ta_eval_plan_qual_init(EPQState *epq, EState *estate)
{
#if PG_VERSION_NUM >= 160000
	EvalPlanQualInit(epq, estate, NULL, NIL, -1, NIL);
#else
	EvalPlanQualInit(epq, estate, NULL, NIL, -1);
#endif
}

#include "catalog/pg_constraint.h"

/* the columns of a foreign key, and the operators that compare them */
static inline void
ta_deconstruct_foreign_key(HeapTuple tuple, int *nkeys, AttrNumber *child_columns,
						   AttrNumber *parent_columns, Oid *operators)
{
	Oid parent_operators[INDEX_MAX_KEYS];
	Oid child_operators[INDEX_MAX_KEYS];
#if PG_VERSION_NUM >= 150000
	int		   nset;
	AttrNumber set[INDEX_MAX_KEYS];

	DeconstructFkConstraintRow(tuple, nkeys, child_columns, parent_columns, operators,
							   parent_operators, child_operators, &nset, set);
#else
	DeconstructFkConstraintRow(tuple, nkeys, child_columns, parent_columns, operators,
							   parent_operators, child_operators);
#endif
}

/* 15 knows MERGE */
static inline bool
ta_is_merge(CmdType operation)
{
#if PG_VERSION_NUM >= 150000
	return operation == CMD_MERGE;
#else
	return false;
#endif
}

#include "utils/rel.h"

/* whether a table that was there before was emptied in this transaction */
static inline bool
ta_is_truncated(Relation rel)
{
#if PG_VERSION_NUM >= 160000
	return rel->rd_createSubid == InvalidSubTransactionId && rel->rd_newRelfilelocatorSubid != InvalidSubTransactionId;
#else
	return rel->rd_createSubid == InvalidSubTransactionId && rel->rd_newRelfilenodeSubid != InvalidSubTransactionId;
#endif
}

/* 15 knows unique indexes for which NULLs are equal */
static inline bool
ta_index_nulls_equal(Relation index)
{
#if PG_VERSION_NUM >= 150000
	return index->rd_index->indnullsnotdistinct;
#else
	return false;
#endif
}

/* an index scan of this many keys */
static inline IndexScanDesc
ta_index_beginscan(Relation rel, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(rel, index, snapshot, nkeys, 0);
#endif
}

/* 17 lets an index keep things from one insertion to the next */
static inline void
ta_index_insert_cleanup(Relation index, IndexInfo *info)
{
#if PG_VERSION_NUM >= 170000
	index_insert_cleanup(index, info);
#endif
}

/* a small number that no other backend has at the same time */
#if PG_VERSION_NUM >= 170000
#include "storage/proc.h"
#define TA_BACKEND_NUMBER MyProcNumber
#else
#include "storage/backendid.h"
#define TA_BACKEND_NUMBER MyBackendId
#endif

extern void ta_request_shared_memory(Size size, void (*startup)(void));

/* enters a new row into all the indexes of its table */
static inline void
ta_insert_index_tuples(ResultRelInfo *target, TupleTableSlot *row, EState *estate)
{
#if PG_VERSION_NUM >= 160000
	list_free(ExecInsertIndexTuples(target, row, estate, false, false, NULL, NIL, false));
#else
	list_free(ExecInsertIndexTuples(target, row, estate, false, false, NULL, NIL));
#endif
}

#if PG_VERSION_NUM < 150000
extern void ta_fill_materialized_result(FunctionCallInfo fcinfo);
#endif

/* the result of a function that returns a set, to be filled */
static inline void
ta_materialized_result(FunctionCallInfo fcinfo)
{
#if PG_VERSION_NUM >= 160000
	InitMaterializedSRF(fcinfo, 0);
#elif PG_VERSION_NUM >= 150000
	SetSingleFuncCall(fcinfo, 0);
#else
	ta_fill_materialized_result(fcinfo);
#endif
}

/* how a view is told to ask for its reader's rights; 14 cannot */
static inline const char *
ta_security_invoker_view(void)
{
#if PG_VERSION_NUM >= 150000
	return " WITH (security_invoker = true)";
#else
	return "";
#endif
}

/* the parts of a name like schema.object */
static inline List *
ta_qualified_names(const char *string)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(string, NULL);
#else
	return stringToQualifiedNameList(string);
#endif
}

/* gave way in 18 to a keyword that stands in front */
#if PG_VERSION_NUM >= 180000
#define pg_attribute_noreturn() __attribute__((noreturn))
#endif

#endif /* TECHALLY_COMPAT_H */
