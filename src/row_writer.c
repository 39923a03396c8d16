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
 * Where nothing but the server's own expressions and B-tree indexes are at work
 * and no trigger has anything to do, a row is written "plainly": into the heap and
 * the indexes that it belongs to, with what the executor would set up for it kept
 * from the call before.  An index whose predicate leaves the row out is not even
 * opened.  A row that asks for more, a foreign key to be checked or a constraint
 * to be complained of, makes the writer set up the rest and go the long way.
 *
 * A writer is open for a moment inside one function; the ones opened later are
 * closed first.  After an error nothing needs to be done: with the memory that a
 * writer was opened in goes what it left half done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
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
	Oid		   domain; /* InvalidOid: none */
	ExprState *expression;
} DefaultColumn;

typedef struct FormatKey
{
	Oid				relid;
	Oid				role;
	CmdType			operation;
	const TaColumn *columns; /* also tells which trigger is stood in for */
} FormatKey;

/* An index into which rows are entered plainly. */
typedef struct PlainIndex
{
	Oid		   oid;
	IndexInfo *info;
	ExprState *predicate; /* NULL: holds every row */
} PlainIndex;

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
	DefaultColumn *generated; /* stored; for rows that are written plainly */
	int			   ngenerated;
	ExprState	 **checks;	  /* NULL: none */
	TriggerDesc	  *unvouched; /* the triggers without those that were vouched for */
	Oid			  *others;	  /* relations whose changes concern us, too */
	int			   nothers;
	bool		   own_functions; /* defaults and checks are the server's own functions */

	/* for rows that are written plainly */
	bool			plain;
	PlainIndex	   *indexes;
	int				nindexes;
	AttrNumber	   *unchecked; /* foreign keys: nothing to check where they are NULL */
	int				nunchecked;
	ExprContext	   *econtext;
	TupleTableSlot *row;
	TupleTableSlot *old_row;
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
	bool				  plain;   /* the executor's state is not set up */
	Relation			 *indexes; /* of a plain one: opened as they are needed */
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
		for (int i = 0; i < format->nothers && format->valid; i++)
			format->valid = format->others[i] != relid;
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

/*
 * Whether a function may be more than a calculation: one that is not the
 * server's, or depends on settings such as the search_path.
 */
static bool
is_foreign_function(Oid function, void *context)
{
	switch (function)
	{
		case F_NOW:
		case F_TRANSACTION_TIMESTAMP:
		case F_STATEMENT_TIMESTAMP:
		case F_CLOCK_TIMESTAMP:
		case F_GEN_RANDOM_UUID:
		case F_NEXTVAL:
			return false;
		default:
			return function >= FirstNormalObjectId || func_volatile(function) != PROVOLATILE_IMMUTABLE;
	}
}

/*
 * Whether an expression may run code that is not the server's: such may need a
 * snapshot, or come back to the table.
 */
static bool
has_foreign_code(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, CoerceToDomain) || check_functions_in_node(node, is_foreign_function, context))
		return true;
	return expression_tree_walker(node, has_foreign_code, context);
}

/* Prepares the defaults of the columns that are not written; false for a domain. */
static bool
prepare_defaults(Format *format, Relation rel, EState *estate)
{
	TupleDesc desc = RelationGetDescr(rel);

	format->defaults = palloc0(sizeof(DefaultColumn) * desc->natts);
	format->generated = palloc0(sizeof(DefaultColumn) * desc->natts);
	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, a - 1);
		bool			  written = false;
		Expr			 *expression;

		for (int c = 0; c < format->ncolumns; c++)
			written |= format->columns[c].attnum == a;
		if (attribute->attgenerated)
		{
			expression = (Expr *) build_column_default(rel, a);
			if (has_foreign_code((Node *) expression, NULL))
				format->own_functions = false;
			format->generated[format->ngenerated].attnum = a;
			format->generated[format->ngenerated].expression = ExecPrepareExpr(expression, estate);
			format->ngenerated++;
			continue;
		}
		if (written || attribute->attisdropped)
			continue;
		expression = (Expr *) build_column_default(rel, a);
		if (get_typtype(attribute->atttypid) == TYPTYPE_DOMAIN)
		{
			/* it may refuse NULL; one that has constraints is asked for each time */
			if (expression == NULL)
				return false;
			format->defaults[format->ndefaults].domain = attribute->atttypid;
		}
		if (expression == NULL)
			continue;
		if (has_foreign_code((Node *) expression, NULL))
			format->own_functions = false;
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
		Node *check;

		if (!ta_check_is_enforced(&constraints->check[i]))
			continue;
		check = stringToNode(constraints->check[i].ccbin);
		if (has_foreign_code(check, NULL))
			format->own_functions = false;
		format->checks[i] = ExecPrepareExpr((Expr *) check, estate);
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

/* A relation whose changes make the format invalid. */
static void
depend_on(Format *format, Oid relid)
{
	format->others = format->others == NULL
						 ? palloc(sizeof(Oid))
						 : repalloc(format->others, sizeof(Oid) * (format->nothers + 1));
	format->others[format->nothers++] = relid;
}

/* Whether a foreign key refuses to have what it refers to taken away. */
static bool
is_restrictive(Oid constraint)
{
	HeapTuple		   tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	Form_pg_constraint form;
	bool			   result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_constraint) GETSTRUCT(tuple);
	result = form->convalidated &&
			 (form->confdeltype == FKCONSTR_ACTION_NOACTION || form->confdeltype == FKCONSTR_ACTION_RESTRICT) &&
			 (form->confupdtype == FKCONSTR_ACTION_NOACTION || form->confupdtype == FKCONSTR_ACTION_RESTRICT);
	ReleaseSysCache(tuple);
	return result;
}

/* Whether the triggers by which a table keeps what a foreign key refers to are at work: two of them. */
static bool
is_enforced(Relation referenced, Oid constraint)
{
	TriggerDesc *triggers = referenced->trigdesc;
	int			 enabled = 0;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgconstraint == constraint &&
			RI_FKey_trigger_type(triggers->triggers[i].tgfoid) == RI_TRIGGER_PK &&
			(triggers->triggers[i].tgenabled == TRIGGER_FIRES_ON_ORIGIN ||
			 triggers->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS))
			enabled++;
	return enabled == 2;
}

/* Opens a table beside another, whose changes concern the format, too; NULL: there is none. */
static Relation
open_beside(Format *format, Relation rel, const char *name)
{
	Oid relid = get_relname_relid(name, RelationGetNamespace(rel));

	if (!OidIsValid(relid))
		return NULL;
	depend_on(format, relid);
	return table_open(relid, AccessShareLock);
}

/*
 * Whether rows that were vouched for are still as they were written or locked,
 * and cannot be taken away from those that they were locked through.
 */
static bool
vouched_rows_stand(Format *format, Relation rel, const TaVouched *vouched)
{
	Relation table = open_beside(format, rel, vouched->table);
	bool	 stand;

	if (table == NULL)
		return false;
	stand = triggers_leave_alone(table);
	if (stand && vouched->through != NULL)
	{
		Relation through = open_beside(format, rel, vouched->through);

		stand = false;
		if (through != NULL)
		{
			Oid constraint = vouched_constraint(through, vouched);

			stand = OidIsValid(constraint) && triggers_leave_alone(through) &&
					is_restrictive(constraint) && is_enforced(table, constraint);
			table_close(through, AccessShareLock);
		}
	}
	table_close(table, AccessShareLock);
	return stand;
}

/* Whether that is so of all that were vouched for. */
static bool
all_vouched_rows_stand(Format *format, Relation rel, const TaVouched *vouched, int nvouched)
{
	for (int v = 0; v < nvouched; v++)
		if (!vouched_rows_stand(format, rel, &vouched[v]))
			return false;
	return true;
}

/* Whether a column of a table is one that is written. */
static bool
is_written(const Format *format, AttrNumber attnum)
{
	for (int c = 0; c < format->ncolumns; c++)
		if (format->columns[c].attnum == attnum)
			return true;
	return false;
}

/* The foreign key that a trigger checks, where it has one column; else NULL. */
static ForeignKeyCacheInfo *
key_of_trigger(Relation rel, const Trigger *trigger)
{
	ListCell *cell;

	foreach(cell, RelationGetFKeyList(rel))
	{
		ForeignKeyCacheInfo *key = lfirst(cell);

		if (key->conoid == trigger->tgconstraint)
			return key->nkeys == 1 ? key : NULL;
	}
	return NULL;
}

/*
 * Whether all that triggers would do for a row is to check foreign keys, and
 * nothing of that is to be done: for an insert, where the columns that are listed
 * are NULL; for an update because no key changes.
 */
static bool
triggers_are_idle(Format *format, Relation rel, const TriggerDesc *triggers)
{
	bool insert = format->key.operation == CMD_INSERT;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger		*trigger = &triggers->triggers[i];
		ForeignKeyCacheInfo *key;

		if (!(insert ? TRIGGER_FOR_INSERT(trigger->tgtype) : TRIGGER_FOR_UPDATE(trigger->tgtype)))
			continue;
		if (!insert && trigger->tgnattr > 0)
			continue; /* for columns that are not written: triggers_allow has seen to that */
		if (!trigger->tgisinternal)
			return false;
		switch (RI_FKey_trigger_type(trigger->tgfoid))
		{
			case RI_TRIGGER_PK:
				break; /* no key of an index changes */
			case RI_TRIGGER_FK:
				key = key_of_trigger(rel, trigger);
				if (key == NULL)
					return false;
				if (insert)
					format->unchecked[format->nunchecked++] = key->conkey[0];
				else if (is_written(format, key->conkey[0]))
					return false;
				break;
			default:
				return false;
		}
	}
	return true;
}

/* Whether rows can be entered plainly into all indexes, and nothing of an index is written over. */
static bool
prepare_indexes(Format *format, Relation rel, EState *estate)
{
	List	 *oids = RelationGetIndexList(rel);
	ListCell *cell;
	bool	  plain = true;

	format->indexes = palloc0(sizeof(PlainIndex) * Max(list_length(oids), 1));
	foreach(cell, oids)
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);
		PlainIndex *entry = &format->indexes[format->nindexes++];

		depend_on(format, RelationGetRelid(index));
		entry->oid = RelationGetRelid(index);
		entry->info = BuildIndexInfo(index);
		if (index->rd_rel->relam != BTREE_AM_OID || !index->rd_index->indisready ||
			!index->rd_index->indimmediate || entry->info->ii_Expressions != NIL ||
			entry->info->ii_ExclusionOps != NULL ||
			has_foreign_code((Node *) entry->info->ii_Predicate, NULL))
			plain = false;
		else if (entry->info->ii_Predicate != NIL)
			entry->predicate = ExecPrepareQual(entry->info->ii_Predicate, estate);
		for (int i = 0; i < entry->info->ii_NumIndexAttrs; i++)
			if (format->key.operation == CMD_UPDATE &&
				is_written(format, entry->info->ii_IndexAttrNumbers[i]))
				plain = false;
		if (format->key.operation == CMD_UPDATE && entry->info->ii_Predicate != NIL)
		{
			Bitmapset *attributes = NULL;

			pull_varattnos((Node *) entry->info->ii_Predicate, 1, &attributes);
			for (int c = 0; c < format->ncolumns; c++)
				if (bms_is_member(format->columns[c].attnum - FirstLowInvalidHeapAttributeNumber, attributes))
					plain = false;
		}
		index_close(index, NoLock);
	}
	list_free(oids);
	return plain;
}

/* Prepares what writing rows plainly needs; false where the table asks for more. */
static bool
prepare_plain(Format *format, Relation rel, const char *statement_trigger, EState *estate)
{
	TupleDesc		   desc = format->desc;
	const TriggerDesc *triggers = format->unvouched != NULL ? format->unvouched : rel->trigdesc;

	format->unchecked = palloc(sizeof(AttrNumber) * (triggers == NULL ? 1 : Max(triggers->numtriggers, 1)));
	if (!format->own_functions || statement_trigger != NULL ||
		!triggers_are_idle(format, rel, triggers) || !prepare_indexes(format, rel, estate))
		return false;
	for (int c = 0; c < format->ncolumns; c++)
		if (OidIsValid(format->columns[c].domain) ||
			(format->columns[c].coerced && is_foreign_function(format->columns[c].coercion.fn_oid, NULL)))
			return false;
	format->econtext = CreateStandaloneExprContext();
	format->row = MakeSingleTupleTableSlot(desc, table_slot_callbacks(rel));
	format->old_row = format->key.operation == CMD_UPDATE
						  ? MakeSingleTupleTableSlot(desc, table_slot_callbacks(rel))
						  : NULL;
	return true;
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
	format->generated = NULL;
	format->ngenerated = 0;
	format->checks = NULL;
	format->others = NULL;
	format->nothers = 0;
	format->own_functions = true;
	format->plain = false;
	format->indexes = NULL;
	format->nindexes = 0;
	format->unchecked = NULL;
	format->nunchecked = 0;
	format->econtext = NULL;
	format->row = format->old_row = NULL;
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
	format->unvouched = NULL;
	if (usable && nvouched > 0 && all_vouched_rows_stand(format, rel, vouched, nvouched))
		format->unvouched = unvouched_triggers(rel, vouched, nvouched);
	format->plain = usable && prepare_plain(format, rel, statement_trigger, estate);
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
		format->others = NULL;
		format->nothers = 0;
	}
	if (format->in_use)
		return NULL;
	if (!format->valid)
	{
		format->others = NULL;
		format->nothers = 0;
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
	for (int d = 0; d < format->ndefaults; d++)
		if (OidIsValid(format->defaults[d].domain) &&
			DomainHasConstraints(format->defaults[d].domain))
			return false;
	return true;
}

/* Sets up what the executor needs to write rows. */
static void
set_up_executor(TaRowWriter *writer)
{
	Format *format = writer->format;

	/* as a statement would: what was written before is seen by functions, too */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	writer->estate = CreateExecutorState();
	writer->estate->es_snapshot = GetActiveSnapshot();
	writer->estate->es_output_cid = GetCurrentCommandId(true);

	writer->target = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->target, writer->rel, 0, NULL, 0);
	writer->target->TA_RI_CHECKS = format->checks;
	if (format->unvouched != NULL)
		writer->target->ri_TrigDesc = format->unvouched;
	writer->estate->es_opened_result_relations = list_make1(writer->target);
	ExecOpenIndices(writer->target, false);
	if (format->key.operation == CMD_UPDATE)
		ta_eval_plan_qual_init(&writer->epq, writer->estate);
	AfterTriggerBeginQuery();
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
	writer->plain = format->plain;
	if (writer->plain)
	{
		writer->row = format->row;
		writer->old_row = format->old_row;
		writer->indexes = palloc0(sizeof(Relation) * Max(format->nindexes, 1));
	}
	else
	{
		writer->row = MakeSingleTupleTableSlot(format->desc, table_slot_callbacks(rel));
		if (operation == CMD_UPDATE)
			writer->old_row = MakeSingleTupleTableSlot(format->desc, table_slot_callbacks(rel));
		set_up_executor(writer);
	}
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

/* Computes the generated columns of the row. */
static void
generate_columns(TaRowWriter *writer)
{
	Format		   *format = writer->format;
	TupleTableSlot *row = writer->row;

	for (int g = 0; g < format->ngenerated; g++)
	{
		int i = format->generated[g].attnum - 1;

		row->tts_values[i] = ExecEvalExpr(format->generated[g].expression, format->econtext,
										  &row->tts_isnull[i]);
	}
}

/*
 * Whether the row meets all constraints and asks for no foreign key to be
 * checked.  Which it does not meet is for the executor to say.
 */
static bool
is_plain_row(TaRowWriter *writer)
{
	Format		   *format = writer->format;
	TupleConstr	   *constraints = format->desc->constr;
	TupleTableSlot *row = writer->row;

	for (int i = 0; i < format->nunchecked; i++)
		if (!row->tts_isnull[format->unchecked[i] - 1])
			return false;
	if (constraints == NULL)
		return true;
	if (constraints->has_not_null)
		for (int i = 0; i < format->desc->natts; i++)
			if (row->tts_isnull[i] && TupleDescAttr(format->desc, i)->attnotnull)
				return false;
	for (int i = 0; format->checks != NULL && i < constraints->num_check; i++)
		if (format->checks[i] != NULL && !ExecCheck(format->checks[i], format->econtext))
			return false;
	return true;
}

/* Enters the row into the indexes that it belongs to. */
static void
enter_plainly(TaRowWriter *writer, bool unchanged)
{
	Format *format = writer->format;

	for (int i = 0; i < format->nindexes; i++)
	{
		PlainIndex *index = &format->indexes[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		if (index->predicate != NULL && !ExecQual(index->predicate, format->econtext))
			continue;
		if (writer->indexes[i] == NULL)
			writer->indexes[i] = index_open(index->oid, RowExclusiveLock);
		for (int k = 0; k < index->info->ii_NumIndexAttrs; k++)
			values[k] = slot_getattr(writer->row, index->info->ii_IndexAttrNumbers[k], &nulls[k]);
		index_insert(writer->indexes[i], values, nulls, &writer->row->tts_tid, writer->rel,
					 writer->indexes[i]->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
					 unchanged, index->info);
	}
}

/*
 * From here on rows are written with all that the executor brings.  What the
 * plain way has made of the row so far is in the row.
 */
static void
go_the_long_way(TaRowWriter *writer)
{
	if (!writer->plain)
		return;
	writer->plain = false;
	set_up_executor(writer);
}

/* The context in which the row's expressions are evaluated. */
static ExprContext *
row_context(TaRowWriter *writer)
{
	ExprContext *econtext = writer->plain ? writer->format->econtext
										  : GetPerTupleExprContext(writer->estate);

	econtext->ecxt_scantuple = writer->row;
	return econtext;
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
	ExprContext	   *econtext = row_context(writer);
	MemoryContext	old_context;

	ResetExprContext(econtext);
	old_context = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);

	ExecClearTuple(row);
	memset(row->tts_isnull, true, format->desc->natts);
	for (int d = 0; d < format->ndefaults; d++)
	{
		int i = format->defaults[d].attnum - 1;

		row->tts_values[i] = ExecEvalExpr(format->defaults[d].expression, econtext,
										  &row->tts_isnull[i]);
	}
	set_columns(writer, values, nulls);
	ExecStoreVirtualTuple(row);

	if (writer->plain)
		generate_columns(writer);
	if (writer->plain && is_plain_row(writer))
	{
		simple_table_tuple_insert(writer->rel, row);
		enter_plainly(writer, false);
		MemoryContextSwitchTo(old_context);
		return;
	}
	MemoryContextSwitchTo(old_context);
	go_the_long_way(writer);

	/* triggers keep what they look up in the context that is current */
	MemoryContextSwitchTo(writer->estate->es_query_cxt);
	ExecSimpleRelationInsert(writer->target, writer->estate, row);
	MemoryContextSwitchTo(old_context);
}

/*
 * ta_writer_row
 *		The row that was inserted last, as a value of the table's row type: a copy.
 *		0 where a trigger has dropped it.
 */
Datum
ta_writer_row(TaRowWriter *writer)
{
	if (!ItemPointerIsValid(&writer->row->tts_tid))
		return (Datum) 0;
	return ExecFetchSlotHeapTupleDatum(writer->row);
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
	ExprContext	   *econtext = row_context(writer);
	MemoryContext	old_context;

	ResetExprContext(econtext);
	old_context = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);

	ExecClearTuple(row);
	memcpy(row->tts_values, writer->old_row->tts_values, sizeof(Datum) * natts);
	memcpy(row->tts_isnull, writer->old_row->tts_isnull, sizeof(bool) * natts);
	set_columns(writer, values, nulls);
	ExecStoreVirtualTuple(row);

	if (writer->plain && is_plain_row(writer))
	{
		TaUpdatedIndexes entries;

		CheckCmdReplicaIdentity(writer->rel, CMD_UPDATE);
		simple_table_tuple_update(writer->rel, &writer->old_row->tts_tid, row,
								  GetActiveSnapshot(), &entries);
		if (entries)
			enter_plainly(writer, true);
		MemoryContextSwitchTo(old_context);
		return;
	}
	MemoryContextSwitchTo(old_context);
	go_the_long_way(writer);

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
	Format *format = writer->format;

	if (!writer->plain)
		AfterTriggerEndQuery(writer->estate);

	if (writer->row == format->row)
	{
		/* these are kept */
		ExecClearTuple(writer->row);
		if (writer->old_row != NULL)
			ExecClearTuple(writer->old_row);
	}
	else
	{
		ExecDropSingleTupleTableSlot(writer->row);
		if (writer->old_row != NULL)
			ExecDropSingleTupleTableSlot(writer->old_row);
	}
	for (int i = 0; writer->indexes != NULL && i < format->nindexes; i++)
		if (writer->indexes[i] != NULL)
			index_close(writer->indexes[i], NoLock);
	if (!writer->plain)
	{
		if (format->key.operation == CMD_UPDATE)
			EvalPlanQualEnd(&writer->epq);
		ExecResetTupleTable(writer->estate->es_tupleTable, false);
		ExecCloseResultRelations(writer->estate); /* ours and what triggers opened */
	}
	table_close(writer->rel, NoLock);
	if (!writer->plain)
	{
		FreeExecutorState(writer->estate);
		PopActiveSnapshot();
	}
	format->in_use = false;
	writer->closed = true;
	CommandCounterIncrement();
}
