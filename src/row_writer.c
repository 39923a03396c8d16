/*-------------------------------------------------------------------------
 *
 * row_writer.c
 *	  Writing rows through the executor's own insertion path, without a plan.
 *
 * A statement of a few rows costs less in writing them than in starting and
 * ending its plan, and PostgreSQL parses every CHECK constraint again for each
 * execution.  Where a table allows it, its rows are written here the way COPY
 * and the logical replication worker write theirs: defaults, type modifiers,
 * NOT NULL and CHECK constraints, generated columns, indexes, row triggers and
 * foreign keys all apply.  The expressions of a table are prepared once a
 * backend and role (functions in them must be the role's to execute), and again
 * when the table or a function changes.
 *
 * What this path does not do is refused by ta_writer_open, which then returns
 * NULL: the caller has an SQL statement that does the same.  That is so for
 * tables with row security (for the role that writes), rules, statement
 * triggers or transition tables, on update triggers of the columns that are
 * written and BEFORE triggers that are not ours, and generated columns, partitions and inheritance, columns
 * of another type than expected, roles without the privilege, so that PostgreSQL
 * itself says what is missing, and a trigger that comes back to the table that
 * it was fired by: a prepared expression must not be entered twice.
 *
 * One statement trigger of ours may be stood in for: who opens the writer with
 * its name does its work himself, where it would fire.
 *
 * A writer is open for a moment inside one function; the ones opened later are
 * closed first.  After an error nothing needs to be done: with the memory that a
 * writer was opened in goes what it left half done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "row_writer.h"

/* A column that is written, as one version of the table has it. */
typedef struct WrittenColumn
{
	AttrNumber attnum;
	int32	   typmod;
	Oid		   domain;	/* InvalidOid: none */
	bool	   coerced; /* has a type modifier to apply */
	FmgrInfo   coercion;
} WrittenColumn;

/* A column that is not written and has a default. */
typedef struct DefaultColumn
{
	AttrNumber attnum;
	ExprState *expression;
} DefaultColumn;

typedef struct FormatKey
{
	Oid				relid;
	Oid				role;
	CmdType			operation;
	const TaColumn *columns; /* also tells which trigger is stood in for */
} FormatKey;

/* What is known of a table and a list of columns: kept between calls. */
typedef struct Format
{
	FormatKey	   key;
	bool		   valid;	  /* cleared by invalidation, also while we look */
	bool		   usable;	  /* set last */
	bool		   stands_in; /* the trigger that the caller stands in for is there */
	bool		   in_use;	  /* a writer is open: all stays as it is */
	MemoryContext  context;
	TupleDesc	   desc;
	WrittenColumn *columns;
	int			   ncolumns;
	DefaultColumn *defaults;
	int			   ndefaults;
	ExprState	 **checks;	  /* NULL: none */
	TriggerDesc	  *unvouched; /* the triggers without those that were vouched for */
} Format;

struct TaRowWriter
{
	Format				 *format;
	Relation			  rel;
	EState				 *estate;
	ResultRelInfo		 *target;
	TupleTableSlot		 *row;
	TupleTableSlot		 *old_row; /* for an update */
	EPQState			  epq;
	bool				  closed;
	MemoryContextCallback callback;
};

static HTAB *formats = NULL;
static bool	 direct_rows = true;

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	Format		   *format;

	hash_seq_init(&status, formats);
	while ((format = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || format->key.relid == relid)
			format->valid = false;
	}
}

/* A function changed: expressions may hold its body. */
static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	relation_changed(arg, InvalidOid);
}

/*
 * ta_row_writer_init
 *		Makes the cache and its setting.  Called once, by _PG_init.
 */
void
ta_row_writer_init(void)
{
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(FormatKey);
	ctl.entrysize = sizeof(Format);
	ctl.hcxt = CacheMemoryContext ? CacheMemoryContext : TopMemoryContext;
	formats = hash_create("techally row formats", 32, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);

	DefineCustomBoolVariable("techally.direct_rows",
							 "Reads and writes rows without SQL statements where a table allows it.",
							 "For tests: both ways do the same.",
							 &direct_rows,
							 true,
							 PGC_USERSET,
							 GUC_NOT_IN_SAMPLE,
							 NULL, NULL, NULL);
}

/*
 * ta_direct_rows
 *		Whether rows may be read and written without statements.
 */
bool
ta_direct_rows(void)
{
	return direct_rows;
}

/* Whether a trigger function is one of ours. */
static bool
is_ours(Oid function)
{
	char *schema = get_namespace_name(get_func_namespace(function));

	return schema != NULL && strcmp(schema, "techally") == 0;
}

/*
 * Whether the table's triggers are such as the executor's row functions fire.
 * Sets *stands_in where the one is there that the caller does the work of.
 */
static bool
triggers_allow(const Format *format, Relation rel, const char *statement_trigger, bool *stands_in)
{
	CmdType		 operation = format->key.operation;
	TriggerDesc *triggers = rel->trigdesc;

	*stands_in = false;
	if (triggers == NULL)
		return true;
	if (operation == CMD_INSERT)
		return !(triggers->trig_insert_before_statement ||
				 triggers->trig_insert_after_statement ||
				 triggers->trig_insert_instead_row ||
				 triggers->trig_insert_new_table);

	for (int i = 0; i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];

		if (!TRIGGER_FOR_UPDATE(trigger->tgtype))
			continue;
		if (trigger->tgnattr > 0)
		{
			/* it is told no columns, so it would not fire where it should */
			for (int a = 0; a < trigger->tgnattr; a++)
				for (int c = 0; c < format->ncolumns; c++)
					if (format->columns[c].attnum == trigger->tgattr[a])
						return false;
			continue;
		}
		if (TRIGGER_FOR_ROW(trigger->tgtype))
		{
			/* one that drops the row would do so unnoticed */
			if (TRIGGER_FOR_BEFORE(trigger->tgtype) && !is_ours(trigger->tgfoid))
				return false;
			if (trigger->tgoldtable != NULL || trigger->tgnewtable != NULL)
				return false;
		}
		else if (statement_trigger != NULL && is_ours(trigger->tgfoid) &&
				 strcmp(get_func_name(trigger->tgfoid), statement_trigger) == 0)
			*stands_in = trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN ||
						 trigger->tgenabled == TRIGGER_FIRES_ALWAYS;
		else
			return false;
	}
	return true;
}

/*
 * Whether the executor's row functions see to the table's generated columns.
 * Told of no plan, those of early 14 and 15 take it that an update changes none
 * of them; and the columns of 18 that are computed when they are read would
 * have to be put into the CHECK constraints.
 */
static bool
generated_columns_allow(Relation rel, CmdType operation)
{
	TupleDesc desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		char generated = TupleDescAttr(desc, i)->attgenerated;

		if (generated != '\0' &&
			(operation == CMD_UPDATE || generated != ATTRIBUTE_GENERATED_STORED))
			return false;
	}
	return true;
}

/* Finds the columns; false where one is missing or of an unexpected type. */
static bool
map_columns(Format *format, Relation rel, const TaColumn *columns)
{
	TupleDesc desc = RelationGetDescr(rel);

	for (int c = 0; c < format->ncolumns; c++)
	{
		WrittenColumn	 *column = &format->columns[c];
		Form_pg_attribute attribute;
		Oid				  base_type;
		Oid				  function;

		column->attnum = get_attnum(RelationGetRelid(rel), columns[c].name);
		if (column->attnum <= 0)
			return false;
		attribute = TupleDescAttr(desc, column->attnum - 1);
		column->typmod = attribute->atttypmod;
		base_type = getBaseTypeAndTypmod(attribute->atttypid, &column->typmod);
		if (attribute->attgenerated || !IsBinaryCoercible(columns[c].type, base_type))
			return false;
		if (base_type != attribute->atttypid)
			column->domain = attribute->atttypid;
		if (column->typmod >= 0)
		{
			if (find_typmod_coercion_function(base_type, &function) != COERCION_PATH_FUNC)
				return false;
			column->coerced = true;
			fmgr_info_cxt(function, &column->coercion, format->context);
		}
	}
	return true;
}

/* Prepares the defaults of the columns that are not written; false for a domain. */
static bool
prepare_defaults(Format *format, Relation rel, EState *estate)
{
	TupleDesc desc = RelationGetDescr(rel);

	format->defaults = palloc0(sizeof(DefaultColumn) * desc->natts);
	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, a - 1);
		bool			  written = false;
		Expr			 *expression;

		for (int c = 0; c < format->ncolumns; c++)
			written |= format->columns[c].attnum == a;
		if (written || attribute->attisdropped || attribute->attgenerated)
			continue;
		/* a domain may refuse NULL, or have a default of its own */
		if (get_typtype(attribute->atttypid) == TYPTYPE_DOMAIN)
			return false;
		expression = (Expr *) build_column_default(rel, a);
		if (expression == NULL)
			continue;
		format->defaults[format->ndefaults].attnum = a;
		format->defaults[format->ndefaults].expression = ExecPrepareExpr(expression, estate);
		format->ndefaults++;
	}
	return true;
}

/* Prepares the CHECK constraints, as ExecConstraints would for every statement. */
static void
prepare_checks(Format *format, Relation rel, EState *estate)
{
	TupleConstr *constraints = RelationGetDescr(rel)->constr;

	if (constraints == NULL || constraints->num_check == 0)
		return;
	format->checks = palloc0(sizeof(ExprState *) * constraints->num_check);
	for (int i = 0; i < constraints->num_check; i++)
	{
		if (!ta_check_is_enforced(&constraints->check[i]))
			continue;
		format->checks[i] = ExecPrepareExpr(stringToNode(constraints->check[i].ccbin), estate);
	}
}

/*
 * Whether all triggers of a table are the server's own or ours: then what was
 * written to it stays as it is.
 */
static bool
triggers_leave_alone(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (!TA_TRIGGER_IS_INTERNAL(&triggers->triggers[i]) && !is_ours(triggers->triggers[i].tgfoid))
			return false;
	return true;
}

/* The constraint of a foreign key that was vouched for; InvalidOid: not there. */
static Oid
vouched_constraint(Relation rel, const TaVouched *vouched)
{
	AttrNumber attnum = get_attnum(RelationGetRelid(rel), vouched->column);
	Oid		   referenced = get_relname_relid(vouched->table, RelationGetNamespace(rel));
	ListCell  *cell;

	if (attnum <= 0 || !OidIsValid(referenced))
		return InvalidOid;
	foreach(cell, RelationGetFKeyList(rel))
	{
		ForeignKeyCacheInfo *key = lfirst(cell);

		if (key->nkeys == 1 && key->conkey[0] == attnum && key->confrelid == referenced &&
			key->confkey[0] == get_attnum(referenced, "id"))
			return key->conoid;
	}
	return InvalidOid;
}

/* The triggers of a table that remain where foreign keys were vouched for. */
static TriggerDesc *
unvouched_triggers(Relation rel, const TaVouched *vouched, int nvouched)
{
	TriggerDesc *triggers;
	int			 n = 0;

	if (nvouched == 0 || rel->trigdesc == NULL || !triggers_leave_alone(rel))
		return NULL;
	triggers = CopyTriggerDesc(rel->trigdesc);
	triggers->trig_insert_after_row = false;
	for (int i = 0; i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];
		bool	 checked = false;

		for (int v = 0; v < nvouched && trigger->tgisinternal; v++)
			checked |= OidIsValid(trigger->tgconstraint) &&
					   trigger->tgconstraint == vouched_constraint(rel, &vouched[v]);
		if (checked)
			continue;
		if (TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW, TRIGGER_TYPE_AFTER, TRIGGER_TYPE_INSERT))
			triggers->trig_insert_after_row = true;
		triggers->triggers[n++] = *trigger;
	}
	triggers->numtriggers = n;
	return triggers;
}

/* Whether the rows that were vouched for are still as they were written or locked. */
static bool
vouched_rows_stand(Relation rel, const TaVouched *vouched, int nvouched)
{
	bool stand = true;

	for (int v = 0; v < nvouched && stand; v++)
	{
		Oid		 referenced = get_relname_relid(vouched[v].table, RelationGetNamespace(rel));
		Relation table;

		if (!OidIsValid(referenced))
			return false;
		table = table_open(referenced, AccessShareLock);
		stand = triggers_leave_alone(table);
		table_close(table, AccessShareLock);
	}
	return stand;
}

/* Fills a format from the table, which is open. */
static void
build_format(Format *format, Relation rel, const char *statement_trigger,
			 const TaVouched *vouched, int nvouched,
			 const TaColumn *columns, int ncolumns)
{
	MemoryContext old_context;
	EState		 *estate;
	bool		  usable;

	format->usable = false;
	format->valid = true;
	format->context = AllocSetContextCreate(CacheMemoryContext, "techally row format",
											ALLOCSET_SMALL_SIZES);
	old_context = MemoryContextSwitchTo(format->context);
	format->columns = palloc0(sizeof(WrittenColumn) * ncolumns);
	format->ncolumns = ncolumns;
	format->ndefaults = 0;
	format->defaults = NULL;
	format->checks = NULL;
	format->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));

	/* its context is the format's, so that the expressions live as long */
	estate = CreateExecutorState();
	MemoryContextSetParent(estate->es_query_cxt, format->context);

	usable = rel->rd_rel->relkind == RELKIND_RELATION &&
			 !rel->rd_rel->relispartition && !rel->rd_rel->relhassubclass && rel->rd_rules == NULL &&
			 generated_columns_allow(rel, format->key.operation) &&
			 map_columns(format, rel, columns) &&
			 triggers_allow(format, rel, statement_trigger, &format->stands_in) &&
			 (format->key.operation != CMD_INSERT || prepare_defaults(format, rel, estate));
	if (usable)
		prepare_checks(format, rel, estate);
	format->unvouched = usable ? unvouched_triggers(rel, vouched, nvouched) : NULL;
	MemoryContextSwitchTo(old_context);
	format->usable = usable;
}

/* The format for a table that is open, NULL where it cannot be used. */
static Format *
format_of(Relation rel, CmdType operation, const char *statement_trigger,
		  const TaVouched *vouched, int nvouched, const TaColumn *columns, int ncolumns)
{
	FormatKey key;
	Format	 *format;
	bool	  found;

	memset(&key, 0, sizeof(key));
	key.relid = RelationGetRelid(rel);
	key.role = GetUserId();
	key.operation = operation;
	key.columns = columns;

	format = hash_search(formats, &key, HASH_ENTER, &found);
	if (!found)
	{
		format->valid = false;
		format->in_use = false;
		format->context = NULL;
	}
	if (format->in_use)
		return NULL;
	if (!format->valid)
	{
		if (format->context != NULL)
			MemoryContextDelete(format->context);
		format->context = NULL;
		build_format(format, rel, statement_trigger, vouched, nvouched, columns, ncolumns);
	}
	return format->usable ? format : NULL;
}

/*
 * The memory of a writer goes.  Where an error left it open, an expression may
 * have been in the middle of its work: it is not entered again.
 */
static void
writer_gone(void *arg)
{
	TaRowWriter *writer = arg;

	if (writer->closed)
		return;
	writer->format->in_use = false;
	writer->format->valid = false;
}

/* A constraint may come to a domain without the table hearing of it. */
static bool
domains_allow(const Format *format)
{
	for (int c = 0; c < format->ncolumns; c++)
		if (OidIsValid(format->columns[c].domain) &&
			DomainHasConstraints(format->columns[c].domain))
			return false;
	return true;
}

static TaRowWriter *
open_writer(const char *statement_trigger, const TaVouched *vouched, int nvouched,
			Oid relid, CmdType operation, const TaColumn *columns, int ncolumns)
{
	Relation	 rel;
	Format		*format;
	TaRowWriter *writer;

	if (!direct_rows || !OidIsValid(relid))
		return NULL;
	PreventCommandIfReadOnly(operation == CMD_INSERT ? "INSERT" : "UPDATE");
	rel = table_open(relid, RowExclusiveLock);
	format = format_of(rel, operation, statement_trigger, vouched, nvouched, columns, ncolumns);
	if (format == NULL || !domains_allow(format) ||
		(statement_trigger != NULL && SessionReplicationRole != SESSION_REPLICATION_ROLE_ORIGIN) ||
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		pg_class_aclcheck(relid, GetUserId(),
						  operation == CMD_INSERT ? ACL_INSERT : ACL_UPDATE) != ACLCHECK_OK ||
		(rel->rd_rel->relrowsecurity && check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED))
	{
		table_close(rel, NoLock);
		return NULL;
	}

	writer = palloc0(sizeof(TaRowWriter));
	writer->format = format;
	writer->callback.func = writer_gone;
	writer->callback.arg = writer;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &writer->callback);
	format->in_use = true;
	writer->rel = rel;

	/* as a statement would: what was written before is seen by functions, too */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	writer->estate = CreateExecutorState();
	writer->estate->es_snapshot = GetActiveSnapshot();
	writer->estate->es_output_cid = GetCurrentCommandId(true);

	writer->target = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->target, rel, 0, NULL, 0);
	writer->target->TA_RI_CHECKS = format->checks;
	if (format->unvouched != NULL && vouched_rows_stand(rel, vouched, nvouched))
		writer->target->ri_TrigDesc = format->unvouched;
	writer->estate->es_opened_result_relations = list_make1(writer->target);
	ExecOpenIndices(writer->target, false);

	writer->row = MakeSingleTupleTableSlot(format->desc, table_slot_callbacks(rel));
	if (operation == CMD_UPDATE)
	{
		writer->old_row = MakeSingleTupleTableSlot(format->desc, table_slot_callbacks(rel));
		ta_eval_plan_qual_init(&writer->epq, writer->estate);
	}
	AfterTriggerBeginQuery();
	return writer;
}

/*
 * ta_writer_open
 *		Opens a table for rows to be inserted (CMD_INSERT) or changed (CMD_UPDATE).
 *
 * columns is a static array: its address is part of the cache's key.  Locks the
 * table as the statement would.  Returns NULL where the table does not allow
 * it; then an SQL statement must do the work.
 */
TaRowWriter *
ta_writer_open(Oid relid, CmdType operation, const TaColumn *columns, int ncolumns)
{
	return open_writer(NULL, NULL, 0, relid, operation, columns, ncolumns);
}

/*
 * ta_writer_open_for
 *		The same for changing rows of a table whose statement trigger, a function
 *		of ours, the caller stands in for.  columns serves for nothing else.
 */
TaRowWriter *
ta_writer_open_for(const char *statement_trigger, Oid relid,
				   const TaColumn *columns, int ncolumns)
{
	return open_writer(statement_trigger, NULL, 0, relid, CMD_UPDATE, columns, ncolumns);
}

/*
 * ta_writer_open_vouched
 *		The same for inserting rows whose foreign keys, or some of them, name rows
 *		that the caller has written or locked in this transaction: they are not
 *		looked up again, unless a trigger of somebody else's might have taken
 *		those rows away.
 */
TaRowWriter *
ta_writer_open_vouched(const TaVouched *vouched, int nvouched, Oid relid,
					   const TaColumn *columns, int ncolumns)
{
	return open_writer(NULL, vouched, nvouched, relid, CMD_INSERT, columns, ncolumns);
}

/*
 * ta_writer_stands_in
 *		Whether the trigger would fire, so that its work is the caller's.
 */
bool
ta_writer_stands_in(const TaRowWriter *writer)
{
	return writer->format->stands_in;
}

/* Puts the caller's values into the row, their type modifiers applied. */
static void
set_columns(TaRowWriter *writer, const Datum *values, const bool *nulls)
{
	Format		   *format = writer->format;
	TupleTableSlot *row = writer->row;

	for (int c = 0; c < format->ncolumns; c++)
	{
		WrittenColumn *column = &format->columns[c];
		int			   i = column->attnum - 1;

		row->tts_isnull[i] = nulls[c];
		if (nulls[c])
			row->tts_values[i] = (Datum) 0;
		else if (column->coerced)
			row->tts_values[i] = FunctionCall3(&column->coercion, values[c],
											   Int32GetDatum(column->typmod),
											   BoolGetDatum(false));
		else
			row->tts_values[i] = values[c];
	}
}

/*
 * ta_writer_insert
 *		Inserts a row: values by the columns given to ta_writer_open, defaults
 *		for the others.  Raises what INSERT raises, foreign keys aside: those
 *		are checked by ta_writer_close.
 */
void
ta_writer_insert(TaRowWriter *writer, const Datum *values, const bool *nulls)
{
	Format		   *format = writer->format;
	TupleTableSlot *row = writer->row;
	MemoryContext	old_context;

	ResetPerTupleExprContext(writer->estate);
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->estate));

	ExecClearTuple(row);
	memset(row->tts_isnull, true, format->desc->natts);
	for (int d = 0; d < format->ndefaults; d++)
	{
		int i = format->defaults[d].attnum - 1;

		row->tts_values[i] = ExecEvalExpr(format->defaults[d].expression,
										  GetPerTupleExprContext(writer->estate),
										  &row->tts_isnull[i]);
	}
	set_columns(writer, values, nulls);
	ExecStoreVirtualTuple(row);

	/* triggers keep what they look up in the context that is current */
	MemoryContextSwitchTo(writer->estate->es_query_cxt);
	ExecSimpleRelationInsert(writer->target, writer->estate, row);
	MemoryContextSwitchTo(old_context);
}

/*
 * ta_writer_load
 *		Reads a row version that the caller has locked, for ta_writer_store.
 *
 * values and nulls receive the columns given to ta_writer_open; what is passed
 * by reference points into the row and holds until the next call.
 */
void
ta_writer_load(TaRowWriter *writer, ItemPointer tid, Datum *values, bool *nulls)
{
	Format *format = writer->format;

	if (!table_tuple_fetch_row_version(writer->rel, tid, SnapshotAny, writer->old_row))
		elog(ERROR, "locked row of \"%s\" has vanished", RelationGetRelationName(writer->rel));
	slot_getallattrs(writer->old_row);
	for (int c = 0; c < format->ncolumns; c++)
	{
		int i = format->columns[c].attnum - 1;

		values[c] = writer->old_row->tts_values[i];
		nulls[c] = writer->old_row->tts_isnull[i];
	}
}

/*
 * ta_writer_store
 *		Writes the row that was loaded last, with new values in its columns.
 */
void
ta_writer_store(TaRowWriter *writer, const Datum *values, const bool *nulls)
{
	int				natts = writer->format->desc->natts;
	TupleTableSlot *row = writer->row;
	MemoryContext	old_context;

	ResetPerTupleExprContext(writer->estate);
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->estate));

	ExecClearTuple(row);
	memcpy(row->tts_values, writer->old_row->tts_values, sizeof(Datum) * natts);
	memcpy(row->tts_isnull, writer->old_row->tts_isnull, sizeof(bool) * natts);
	set_columns(writer, values, nulls);
	ExecStoreVirtualTuple(row);
	MemoryContextSwitchTo(writer->estate->es_query_cxt);
	ExecSimpleRelationUpdate(writer->target, writer->estate, &writer->epq, writer->old_row, row);
	MemoryContextSwitchTo(old_context);
}

/*
 * ta_writer_close
 *		Fires the AFTER triggers, foreign keys among them, and makes the rows
 *		visible to what follows.
 */
void
ta_writer_close(TaRowWriter *writer)
{
	AfterTriggerEndQuery(writer->estate);

	ExecDropSingleTupleTableSlot(writer->row);
	if (writer->old_row != NULL)
	{
		EvalPlanQualEnd(&writer->epq);
		ExecDropSingleTupleTableSlot(writer->old_row);
	}
	ExecResetTupleTable(writer->estate->es_tupleTable, false);
	ExecCloseResultRelations(writer->estate); /* ours and what triggers opened */
	table_close(writer->rel, NoLock);
	FreeExecutorState(writer->estate);
	PopActiveSnapshot();
	writer->format->in_use = false;
	writer->closed = true;
	CommandCounterIncrement();
}
