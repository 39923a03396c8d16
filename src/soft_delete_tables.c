/*-------------------------------------------------------------------------
 *
 * soft_delete_tables.c
 *	  Making tables soft-delete tables, and keys unique among the living.
 *
 * What makes one is its triggers; the registry techally.soft_delete_tables lists
 * them for others.  Every table that refers to one gets a constraint trigger as
 * well, deferrable as its foreign key is, that names it as its referenced table:
 * so it goes when that goes, follows when that is renamed, and comes back with a
 * dump.
 *
 * Everything is done with the rights of the caller.  DDL refuses a table that is
 * open, so what is looked at is closed, and stays locked, before DDL is run.
 *
 * Lock order: the table, then those that refer to it, then those that it refers
 * to, then the registry.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "commands/trigger.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"
#include "optimizer/optimizer.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "foreign_key.h"
#include "request_util.h"
#include "soft_delete.h"
#include "soft_delete_plan.h"
#include "spi_util.h"

#define DELETE_TRIGGER "techally_soft_delete"
#define CHANGE_TRIGGER "techally_deleted_at"
#define MOVE_TRIGGER   "techally_row_move"
#define GUARD_PREFIX   "techally_parent"

static void
run_utility(const char *sql)
{
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "unexpected SPI result from: %s", sql);
}

static Oid
registry(void)
{
	Oid nspid = get_namespace_oid("techally", false);
	Oid relid = get_relname_relid("soft_delete_tables", nspid);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" does not exist", "techally.soft_delete_tables"),
				 errhint("Run ALTER EXTENSION techally UPDATE.")));
	return relid;
}

/* Raises 42P01 for no relation, 42809 for one that cannot be, 42501 for another's. */
static void
check_table(Oid relid)
{
	char	  kind = get_rel_relkind(relid);
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool	  is_temp;
	bool	  is_partition;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	is_temp = ((Form_pg_class) GETSTRUCT(tuple))->relpersistence == RELPERSISTENCE_TEMP;
	is_partition = ((Form_pg_class) GETSTRUCT(tuple))->relispartition;
	ReleaseSysCache(tuple);
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(relid))));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(relid));
	if (IsCatalogRelationOid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied: \"%s\" is a system catalog", get_rel_name(relid))));
	if (is_temp)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a temporary table", get_rel_name(relid))));
	if (is_partition)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a partition", get_rel_name(relid)),
				 errhint("Name the table that it is a partition of.")));
}

/* Rows of heirs would really be deleted, or found by no foreign key. */
static void
check_inheritance(Relation rel)
{
	if (rel->rd_rel->relkind == RELKIND_RELATION &&
		(has_superclass(RelationGetRelid(rel)) || has_subclass(RelationGetRelid(rel))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" takes part in inheritance", RelationGetRelationName(rel)),
				 errdetail("Soft delete works on plain and on partitioned tables.")));
}

/* A foreign table's rows have no place that we could find again. */
static void
check_partitions(Relation rel)
{
	ListCell *cell;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return;
	foreach(cell, find_all_inheritors(RelationGetRelid(rel), AccessShareLock, NULL))
	{
		if (get_rel_relkind(lfirst_oid(cell)) == RELKIND_FOREIGN_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("table \"%s\" has the foreign table \"%s\" as a partition",
							RelationGetRelationName(rel), get_rel_name(lfirst_oid(cell))),
					 errdetail("Rows of foreign tables cannot be deleted softly.")));
	}
}

/* 55000 where rows of a table that is no soft-delete table go with rows of this one. */
static void
check_dependents(Relation rel, List *targets)
{
	ListCell *cell;

	foreach(cell, ta_foreign_keys_to_tree(rel))
	{
		TaForeignKey *key = lfirst(cell);
		Relation	  child;

		if (key->on_delete != FKCONSTR_ACTION_CASCADE || list_member_oid(targets, key->child))
			continue;
		child = table_open(key->child, AccessShareLock);
		if (!ta_is_soft_delete_table(child))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" cannot become a soft-delete table before \"%s\" is one",
							RelationGetRelationName(rel), RelationGetRelationName(child)),
					 errdetail("Foreign key \"%s\" of table \"%s\" is ON DELETE CASCADE: its rows go with those of \"%s\".",
							   ta_foreign_key_name(key), ta_sd_qualified_name(key->child), RelationGetRelationName(rel)),
					 errhint("Run techally.enable_soft_delete for \"%s\" first, or give the foreign key another action.",
							 RelationGetRelationName(child)),
					 errtableconstraint(child, ta_foreign_key_name(key))));
		table_close(child, NoLock);
	}
}

/* deleted_at must be able to say when, and not decide where a row lies. */
static void
check_columns(Relation rel, bool *has_deleted_at, bool *has_deletion_id)
{
	TupleDesc	 desc = RelationGetDescr(rel);
	PartitionKey key = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ? RelationGetPartitionKey(rel) : NULL;

	*has_deleted_at = *has_deletion_id = false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		const char		 *name = NameStr(attribute->attname);
		Oid				  type;

		if (attribute->attisdropped)
			continue;
		type = getBaseType(attribute->atttypid);
		if (strcmp(name, TA_DELETED_AT) == 0)
		{
			*has_deleted_at = true;
			if (type != TIMESTAMPTZOID && type != TIMESTAMPOID)
				ereport(ERROR,
						(errcode(ERRCODE_DATATYPE_MISMATCH),
						 errmsg("column \"%s\" of table \"%s\" cannot hold a time of deletion", name, RelationGetRelationName(rel)),
						 errdetail("Its type is %s; it must be %s.", format_type_be(attribute->atttypid),
								   "timestamp with time zone")));
			if (key != NULL)
			{
				Bitmapset *used = NULL;

				pull_varattnos((Node *) key->partexprs, 1, &used);
				for (int k = 0; k < key->partnatts; k++)
					used = bms_add_member(used, key->partattrs[k] - FirstLowInvalidHeapAttributeNumber);
				if (bms_is_member(attribute->attnum - FirstLowInvalidHeapAttributeNumber, used))
					ereport(ERROR,
							(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							 errmsg("table \"%s\" is partitioned by column \"%s\"", RelationGetRelationName(rel), name),
							 errdetail("A row that is deleted must stay in its partition.")));
			}
		}
		else if (strcmp(name, TA_DELETION_ID) == 0)
		{
			*has_deletion_id = true;
			if (type != UUIDOID)
				ereport(ERROR,
						(errcode(ERRCODE_DATATYPE_MISMATCH),
						 errmsg("column \"%s\" of table \"%s\" cannot hold the id of a deletion", name, RelationGetRelationName(rel)),
						 errdetail("Its type is %s; it must be %s.", format_type_be(attribute->atttypid), "uuid")));
		}
		else
			continue;
		if (attribute->attnotnull || attribute->attgenerated != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("column \"%s\" of table \"%s\" is %s", name, RelationGetRelationName(rel),
							attribute->attnotnull ? "NOT NULL" : "generated"),
					 errdetail("It is NULL while a row lives.")));
	}
}

/* Whether an index finds the deleted rows by age. */
static bool
has_deleted_index(Relation rel)
{
	AttrNumber deleted_at = get_attnum(RelationGetRelid(rel), TA_DELETED_AT);
	ListCell  *cell;
	bool	   found = false;

	foreach(cell, RelationGetIndexList(rel))
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);
		List	*predicate = RelationGetIndexPredicate(index);

		if (index->rd_index->indkey.values[0] == deleted_at && index->rd_index->indisvalid)
		{
			if (predicate == NIL)
				found = true;
			else if (list_length(predicate) == 1 && IsA(linitial(predicate), NullTest))
			{
				NullTest *test = linitial_node(NullTest, predicate);

				found |= test->nulltesttype == IS_NOT_NULL && IsA(test->arg, Var) &&
						 ((Var *) test->arg)->varattno == deleted_at;
			}
		}
		index_close(index, AccessShareLock);
	}
	return found;
}

/* ---------------------------------------------------------------------
 * Guards of those who refer
 * ---------------------------------------------------------------------
 */

/* A name for a guard that no other trigger of the table has. */
static char *
guard_name(Relation child, Oid parent)
{
	for (int attempt = 0;; attempt++)
	{
		char		*label = attempt == 0 ? NULL : psprintf("%d", attempt);
		char		*name = makeObjectName(GUARD_PREFIX, get_rel_name(parent), label);
		TriggerDesc *triggers = child->trigdesc;
		bool		 taken = false;

		for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
			taken |= strcmp(triggers->triggers[i].tgname, name) == 0;
		if (!taken)
			return name;
	}
}

/*
 * Whether a BEFORE trigger that is not ours may change columns that the UPDATE
 * does not name: then triggers for certain columns would not notice.
 */
static bool
triggers_may_change(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;
	Oid			 ours = get_namespace_oid("techally", false);
	bool		 result = false;
	ListCell	*cell;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];

		if (TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
			TRIGGER_FOR_UPDATE(trigger->tgtype) && get_func_namespace(trigger->tgfoid) != ours)
			return true;
	}
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	foreach(cell, find_inheritance_children(RelationGetRelid(rel), AccessShareLock))
	{
		Relation partition = table_open(lfirst_oid(cell), NoLock);

		result |= triggers_may_change(partition);
		table_close(partition, NoLock);
	}
	return result;
}

/*
 * Puts a guard on a table that refers to a soft-delete table, or replaces one
 * that does not cover the columns of all its foreign keys any more.
 */
static void
install_guard(Oid childid, Oid parent)
{
	Relation	   child = table_open(childid, ShareRowExclusiveLock);
	List		  *keys = ta_foreign_keys_of(child);
	TriggerDesc	  *triggers = child->trigdesc;
	Bitmapset	  *columns = NULL;
	bool		   deferrable = false;
	bool		   deferred = false;
	char		  *name = NULL;
	bool		   done = false;
	bool		   stale;
	bool		   partitioned;
	bool		   of_columns = !triggers_may_change(child);
	ListCell	  *cell;
	StringInfoData sql;
	int			   column = -1;

	foreach(cell, keys)
	{
		TaForeignKey *key = lfirst(cell);

		if (key->parent != parent)
			continue;
		for (int i = 0; i < key->nkeys; i++)
			columns = bms_add_member(columns, key->child_columns[i]);
		deferrable |= key->deferrable;
		deferred |= key->deferred;
	}
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger	  *trigger = &triggers->triggers[i];
		Bitmapset *covered = NULL;

		if (trigger->tgconstrrelid != parent || !ta_trigger_calls(trigger, TA_GUARD_FUNCTION))
			continue;
		for (int c = 0; c < trigger->tgnattr; c++)
			covered = bms_add_member(covered, trigger->tgattr[c]);
		if (columns != NULL && bms_equal(covered, of_columns ? columns : NULL) && trigger->tgdeferrable == deferrable &&
			trigger->tginitdeferred == deferred && trigger->tgenabled != TRIGGER_DISABLED)
			done = true;
		else if (!trigger->tgisclone)
			name = pstrdup(trigger->tgname);
	}
	stale = name != NULL;
	if (!stale)
		name = guard_name(child, parent);
	partitioned = child->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	table_close(child, NoLock);

	if (stale)
		run_utility(psprintf("DROP TRIGGER %s ON %s", quote_identifier(name), ta_sd_qualified_name(childid)));
	if ((!done || stale) && columns != NULL)
	{
		initStringInfo(&sql);
		appendStringInfo(&sql, "CREATE CONSTRAINT TRIGGER %s AFTER INSERT", quote_identifier(name));
		/* a row that moves to another partition is deleted from its own */
		if (partitioned)
			appendStringInfoString(&sql, " OR DELETE");
		appendStringInfoString(&sql, " OR UPDATE");
		while (of_columns && (column = bms_next_member(columns, column)) >= 0)
			appendStringInfo(&sql, "%s%s", column == bms_next_member(columns, -1) ? " OF " : ", ",
							 quote_identifier(get_attname(childid, column, false)));
		appendStringInfo(&sql, " ON %s FROM %s%s%s FOR EACH ROW EXECUTE FUNCTION techally." TA_GUARD_FUNCTION "()",
						 ta_sd_qualified_name(childid), ta_sd_qualified_name(parent), deferrable ? " DEFERRABLE" : "",
						 deferred ? " INITIALLY DEFERRED" : "");
		run_utility(sql.data);
	}
}

/* All guards that this table needs: on those who refer to it or to a partition of it, and on itself. */
static void
install_guards(Oid relid)
{
	Relation  rel = table_open(relid, ShareRowExclusiveLock);
	List	 *children = NIL;
	List	 *parents = NIL;
	ListCell *cell;
	ListCell *other;

	foreach(cell, ta_foreign_keys_to_tree(rel))
	{
		TaForeignKey *key = lfirst(cell);

		children = lappend_oid(children, key->child);
		parents = lappend_oid(parents, key->parent);
	}
	foreach(cell, ta_foreign_keys_of(rel))
	{
		TaForeignKey *key = lfirst(cell);

		if (ta_sd_is_soft_delete_relid(key->parent))
		{
			children = lappend_oid(children, relid);
			parents = lappend_oid(parents, key->parent);
		}
	}
	table_close(rel, NoLock);
	forboth(cell, children, other, parents)
		install_guard(lfirst_oid(cell), lfirst_oid(other));
}

/* ---------------------------------------------------------------------
 * Enabling and disabling
 * ---------------------------------------------------------------------
 */

static void
enable_one(Oid relid, List *targets)
{
	static const char *const insert =
		"INSERT INTO techally.soft_delete_tables (target) VALUES ($1::pg_catalog.regclass)"
		" ON CONFLICT (target) DO NOTHING";
	Oid		 types[1] = {OIDOID};
	Datum	 values[1] = {ObjectIdGetDatum(relid)};
	Relation rel;
	char	*table;
	bool	 has_deleted_at;
	bool	 has_deletion_id;
	bool	 has_index;
	bool	 partitioned;
	bool	 of_columns;
	TaFrame	 frame;

	check_table(relid);
	rel = table_open(relid, ShareRowExclusiveLock);
	check_inheritance(rel);
	check_partitions(rel);
	check_columns(rel, &has_deleted_at, &has_deletion_id);
	check_dependents(rel, targets);
	partitioned = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	of_columns = !triggers_may_change(rel);
	has_index = has_deleted_at && has_deleted_index(rel);
	table_close(rel, NoLock);
	table = ta_sd_qualified_name(relid);

	ta_frame_begin(&frame, InvalidOid);
	if (!has_deleted_at)
	{
		run_utility(psprintf("ALTER TABLE %s ADD COLUMN " TA_DELETED_AT " timestamptz", table));
		run_utility(psprintf("COMMENT ON COLUMN %s." TA_DELETED_AT " IS 'When the row was deleted; NULL while it lives'", table));
	}
	if (!has_deletion_id)
	{
		run_utility(psprintf("ALTER TABLE %s ADD COLUMN " TA_DELETION_ID " uuid", table));
		run_utility(psprintf("COMMENT ON COLUMN %s." TA_DELETION_ID " IS 'Which deletion it was: rows that went together come back together'", table));
	}
	if (!has_index)
		run_utility(psprintf("CREATE INDEX ON %s (" TA_DELETED_AT ") WHERE " TA_DELETED_AT " IS NOT NULL", table));
	run_utility(psprintf("CREATE OR REPLACE TRIGGER " DELETE_TRIGGER " BEFORE DELETE ON %s"
						 " FOR EACH ROW EXECUTE FUNCTION techally." TA_DELETE_FUNCTION "()",
						 table));
	run_utility(psprintf("CREATE OR REPLACE TRIGGER " CHANGE_TRIGGER " AFTER UPDATE%s ON %s"
						 " FOR EACH ROW WHEN ((OLD." TA_DELETED_AT " IS NULL) <> (NEW." TA_DELETED_AT " IS NULL)"
						 " AND NOT techally.is_own_deletion(OLD." TA_DELETION_ID ", NEW." TA_DELETION_ID "))"
						 " EXECUTE FUNCTION techally." TA_CHANGE_FUNCTION "()",
						 of_columns ? " OF " TA_DELETED_AT : "", table));
	if (partitioned)
		run_utility(psprintf("CREATE OR REPLACE TRIGGER " MOVE_TRIGGER " BEFORE UPDATE ON %s"
							 " FOR EACH ROW EXECUTE FUNCTION techally." TA_MOVE_FUNCTION "()",
							 table));
	install_guards(relid);
	ta_frame_end(&frame);

	ta_frame_begin(&frame, ta_relation_owner(registry()));
	if (SPI_execute_with_args(insert, 1, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write the registry of soft-delete tables");
	ta_frame_end(&frame);
}

/*
 * enable_soft_delete(target regclass) → void
 *		Makes a table a soft-delete table: adds deleted_at, deletion_id and a partial
 *		index where they are missing, and its triggers and those of the tables that
 *		refer to it.  Changes no constraint.  Where it is one, puts back what is
 *		missing.
 *
 * Raises 55000, naming the table, where rows of one that is none go with its rows;
 * 42809 and 42804 for what cannot be one, 0A000 for inheritance, foreign partitions
 * and where deleted_at is part of the partition key, 42501 for tables of others.
 * Locks the table and those that refer to it SHARE ROW EXCLUSIVE, the table ACCESS
 * EXCLUSIVE where columns are missing.
 */
PG_FUNCTION_INFO_V1(ta_enable_soft_delete);
Datum
ta_enable_soft_delete(PG_FUNCTION_ARGS)
{
	ta_require_argument(fcinfo, 0, "target");
	enable_one(PG_GETARG_OID(0), list_make1_oid(PG_GETARG_OID(0)));
	PG_RETURN_VOID();
}

/*
 * enable_soft_delete_together(targets regclass[]) → void
 *		The same for several tables at once, whose foreign keys may form a circle.
 */
PG_FUNCTION_INFO_V1(ta_enable_soft_delete_together);
Datum
ta_enable_soft_delete_together(PG_FUNCTION_ARGS)
{
	Datum	 *datums;
	bool	 *nulls;
	int		  n;
	List	 *targets = NIL;
	ListCell *cell;

	ta_require_argument(fcinfo, 0, "targets");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT, &datums, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not hold a null", "targets")));
		targets = list_append_unique_oid(targets, DatumGetObjectId(datums[i]));
	}
	foreach(cell, targets)
		enable_one(lfirst_oid(cell), targets);
	PG_RETURN_VOID();
}

/* The tables that hold guards because of this one. */
static List *
guards_from(Oid parent, List **names)
{
	static const char *const sql =
		"SELECT t.tgrelid, t.tgname FROM pg_catalog.pg_trigger t"
		"  JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid"
		"  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
		" WHERE t.tgparentid = 0 AND t.tgconstrrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree($1) p UNION ALL SELECT $1)"
		"   AND p.proname = '" TA_GUARD_FUNCTION "' AND n.nspname = 'techally'"
		" ORDER BY 1";
	Oid	   types[1] = {OIDOID};
	Datum  values[1] = {ObjectIdGetDatum(parent)};
	List  *relids = NIL;
	uint64 n;

	if (SPI_execute_with_args(sql, 1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not find the guards of a soft-delete table");
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		relids = lappend_oid(relids, DatumGetObjectId(ta_spi_value(i, 1, &isnull)));
		*names = lappend(*names, ta_spi_text(i, 2));
	}
	return relids;
}

/*
 * disable_soft_delete(target regclass) → void
 *		Makes it an ordinary table again: DELETE deletes.  Its columns, its index and
 *		the rows that are deleted stay as they are.
 *
 * Raises 55000, naming the table, where its rows go with those of a soft-delete
 * table; 42704 where it is none.
 */
PG_FUNCTION_INFO_V1(ta_disable_soft_delete);
Datum
ta_disable_soft_delete(PG_FUNCTION_ARGS)
{
	static const char *const forget = "DELETE FROM techally.soft_delete_tables s WHERE s.target = $1";
	Oid						 types[1] = {OIDOID};
	Datum					 values[1];
	Oid						 relid;
	Relation				 rel;
	TriggerDesc				*triggers;
	List					*guards;
	List					*names = NIL;
	List					*own = NIL;
	ListCell				*cell;
	ListCell				*name;
	TaFrame					 frame;
	bool					 was_one;

	ta_require_argument(fcinfo, 0, "target");
	relid = PG_GETARG_OID(0);
	check_table(relid);
	rel = table_open(relid, ShareRowExclusiveLock);
	foreach(cell, ta_foreign_keys_of(rel))
	{
		TaForeignKey *key = lfirst(cell);
		Relation	  parent;

		if (key->on_delete != FKCONSTR_ACTION_CASCADE || key->parent == relid)
			continue;
		parent = table_open(key->parent, AccessShareLock);
		if (ta_is_soft_delete_table(parent))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" must stay a soft-delete table while \"%s\" is one",
							RelationGetRelationName(rel), RelationGetRelationName(parent)),
					 errdetail("Foreign key \"%s\" is ON DELETE CASCADE: its rows go with those of \"%s\".",
							   ta_foreign_key_name(key), RelationGetRelationName(parent)),
					 errtableconstraint(rel, ta_foreign_key_name(key))));
		table_close(parent, NoLock);
	}
	triggers = rel->trigdesc;
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];

		if (ta_trigger_calls(trigger, TA_DELETE_FUNCTION) || ta_trigger_calls(trigger, TA_CHANGE_FUNCTION) ||
			ta_trigger_calls(trigger, TA_MOVE_FUNCTION))
			own = lappend(own, pstrdup(trigger->tgname));
	}
	was_one = own != NIL;
	table_close(rel, NoLock);

	ta_frame_begin(&frame, InvalidOid);
	guards = guards_from(relid, &names);
	foreach(cell, own)
		run_utility(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(cell)), ta_sd_qualified_name(relid)));
	forboth(cell, guards, name, names)
		run_utility(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(name)), ta_sd_qualified_name(lfirst_oid(cell))));
	ta_frame_end(&frame);

	values[0] = ObjectIdGetDatum(relid);
	ta_frame_begin(&frame, ta_relation_owner(registry()));
	if (SPI_execute_with_args(forget, 1, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not write the registry of soft-delete tables");
	was_one |= SPI_processed > 0;
	ta_frame_end(&frame);
	if (!was_one)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("\"%s\" is no soft-delete table", get_rel_name(relid))));
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------
 * Unique among the living
 * ---------------------------------------------------------------------
 */

/* The columns that are named, in that order. */
static int
named_columns(Relation rel, ArrayType *array, AttrNumber *columns)
{
	Datum *datums;
	bool  *nulls;
	int	   n;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &datums, &nulls, &n);
	if (n == 0 || n > INDEX_MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must name from 1 to %d columns", "columns", INDEX_MAX_KEYS)));
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not hold a null", "columns")));
		columns[i] = get_attnum(RelationGetRelid(rel), NameStr(*DatumGetName(datums[i])));
		if (columns[i] <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							NameStr(*DatumGetName(datums[i])), RelationGetRelationName(rel))));
		for (int j = 0; j < i; j++)
			if (columns[j] == columns[i])
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("column \"%s\" specified more than once", NameStr(*DatumGetName(datums[i])))));
	}
	return n;
}

/* Whether an index is unique over just these columns, as they are. */
static bool
is_over(Relation index, int n, const AttrNumber *columns)
{
	if (!index->rd_index->indisunique || index->rd_index->indnkeyatts != n)
		return false;
	for (int i = 0; i < n; i++)
	{
		bool found = false;

		for (int k = 0; k < n; k++)
			found |= index->rd_index->indkey.values[k] == columns[i];
		if (!found)
			return false;
	}
	return true;
}

static bool
is_among_living(Relation index, AttrNumber deleted_at)
{
	List	 *predicate = RelationGetIndexPredicate(index);
	NullTest *test;

	if (list_length(predicate) != 1 || !IsA(linitial(predicate), NullTest))
		return false;
	test = linitial_node(NullTest, predicate);
	return test->nulltesttype == IS_NULL && IsA(test->arg, Var) &&
		   ((Var *) test->arg)->varattno == deleted_at;
}

/* Drops a unique constraint or index. */
static void
drop_key(Oid relid, Oid indexid)
{
	Oid constraint = get_index_constraint(indexid);

	if (OidIsValid(constraint))
		run_utility(psprintf("ALTER TABLE %s DROP CONSTRAINT %s", ta_sd_qualified_name(relid),
							 quote_identifier(get_constraint_name(constraint))));
	else
		run_utility(psprintf("DROP INDEX %s", ta_sd_qualified_name(indexid)));
}

/* Whether two indexes over the same columns tell the same values apart. */
static bool
same_equality(Relation a, Relation b)
{
	int n = a->rd_index->indnkeyatts;

	for (int i = 0; i < n; i++)
	{
		int k;

		for (k = 0; k < n; k++)
			if (b->rd_index->indkey.values[k] == a->rd_index->indkey.values[i])
				break;
		if (k == n || a->rd_indcollation[i] != b->rd_indcollation[k] || a->rd_opfamily[i] != b->rd_opfamily[k])
			return false;
	}
	return ta_index_nulls_equal(a) == ta_index_nulls_equal(b);
}

/* Raises 2BP01 where a unique key is needed as it is, 0A000 where it is more than an index can be. */
static void
check_replaceable(Relation rel, Relation index)
{
	ListCell *cell;

	foreach(cell, ta_foreign_keys_to_tree(rel))
	{
		TaForeignKey *key = lfirst(cell);

		if (key->index == RelationGetRelid(index))
			ereport(ERROR,
					(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
					 errmsg("key \"%s\" of table \"%s\" cannot be replaced, a foreign key uses it",
							RelationGetRelationName(index), RelationGetRelationName(rel)),
					 errdetail("Foreign key \"%s\" of table \"%s\" refers to it.",
							   ta_foreign_key_name(key), ta_sd_qualified_name(key->child))));
	}
	if (index->rd_index->indisprimary || index->rd_index->indisreplident)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("key \"%s\" of table \"%s\" cannot be replaced", RelationGetRelationName(index),
						RelationGetRelationName(rel)),
				 errdetail(index->rd_index->indisprimary ? "It is the primary key." : "It is the replica identity.")));
	if (!index->rd_index->indimmediate)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("constraint \"%s\" of table \"%s\" cannot be replaced, it is deferrable",
						RelationGetRelationName(index), RelationGetRelationName(rel)),
				 errdetail("An index is unique at once."),
				 errhint("Drop the constraint first if nothing depends on its being deferred.")));
}

/*
 * The definition of an index from its columns on: with their collations,
 * operator classes and order, what it includes, and how it is stored.
 */
static char *
definition_from_columns(Oid relid, Oid indexid)
{
	char *definition = TextDatumGetCString(DirectFunctionCall1(pg_get_indexdef, ObjectIdGetDatum(indexid)));
	char *prefix = psprintf("CREATE UNIQUE INDEX %s ON %s%s ", quote_identifier(get_rel_name(indexid)),
							get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE ? "ONLY " : "",
							ta_sd_qualified_name(relid));

	if (strncmp(definition, prefix, strlen(prefix)) != 0)
		elog(ERROR, "unexpected definition of an index: %s", definition);
	return definition + strlen(prefix);
}

/*
 * Makes a unique index among the living, as the one that it replaces was, and
 * gives it its name and comment; over columns where there is none.
 */
static void
make_live_index(Oid relid, Oid replaced, char *columns, const char *label)
{
	char *made = ChooseRelationName(get_rel_name(relid), label, "live", get_rel_namespace(relid), false);
	char *tablespace = OidIsValid(replaced) ? get_tablespace_name(get_rel_tablespace(replaced)) : NULL;
	Oid	  constraint;
	char *name;
	char *comment;

	run_utility(psprintf("CREATE UNIQUE INDEX %s ON %s %s%s%s WHERE " TA_DELETED_AT " IS NULL", quote_identifier(made),
						 ta_sd_qualified_name(relid),
						 OidIsValid(replaced) ? definition_from_columns(relid, replaced) : columns,
						 tablespace ? " TABLESPACE " : "", tablespace ? quote_identifier(tablespace) : ""));
	if (!OidIsValid(replaced))
		return;
	name = pstrdup(get_rel_name(replaced));
	constraint = get_index_constraint(replaced);
	comment = OidIsValid(constraint) ? GetComment(constraint, ConstraintRelationId, 0) : NULL;
	if (comment == NULL)
		comment = GetComment(replaced, RelationRelationId, 0);
	drop_key(relid, replaced);
	made = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), made);
	if (comment != NULL)
		run_utility(psprintf("COMMENT ON INDEX %s IS %s", made, quote_literal_cstr(comment)));
	run_utility(psprintf("ALTER INDEX %s RENAME TO %s", made, quote_identifier(name)));
}

/*
 * live_unique(target regclass, columns name[]) → void
 *		Makes columns of a soft-delete table unique among its living rows, by a
 *		partial unique index.  A unique constraint or index over the same columns
 *		gives way to one that is as it was otherwise, and leaves it its name.
 *
 * Raises 2BP01 where that is the primary key, the replica identity, or used by a
 * foreign key; 0A000 where it is deferrable; 55000 for a table that is no
 * soft-delete table; 23505 where living rows are not unique.  Locks the table
 * SHARE, or ACCESS EXCLUSIVE where a key gives way.
 */
PG_FUNCTION_INFO_V1(ta_live_unique);
Datum
ta_live_unique(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "columns"};
	Oid						 relid;
	Relation				 rel;
	AttrNumber				 columns[INDEX_MAX_KEYS];
	AttrNumber				 deleted_at;
	int						 n;
	List					*living = NIL;
	List					*others = NIL;
	List					*obsolete = NIL;
	ListCell				*cell;
	ListCell				*other;
	StringInfoData			 list;
	StringInfoData			 label;
	TaFrame					 frame;

	ta_require_arguments(fcinfo, names, 2);
	relid = PG_GETARG_OID(0);
	check_table(relid);
	rel = table_open(relid, ShareLock);
	deleted_at = get_attnum(relid, TA_DELETED_AT);
	if (!ta_is_soft_delete_table(rel) || deleted_at <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is no soft-delete table", RelationGetRelationName(rel)),
				 errhint("Run techally.enable_soft_delete first.")));
	n = named_columns(rel, PG_GETARG_ARRAYTYPE_P(1), columns);

	foreach(cell, RelationGetIndexList(rel))
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);

		if (is_over(index, n, columns))
		{
			if (is_among_living(index, deleted_at) && index->rd_index->indisvalid)
				living = lappend_oid(living, RelationGetRelid(index));
			else if (RelationGetIndexPredicate(index) == NIL)
			{
				check_replaceable(rel, index);
				others = lappend_oid(others, RelationGetRelid(index));
			}
		}
		index_close(index, NoLock);
	}
	/* those for which there is one among the living already */
	foreach(cell, others)
	{
		Relation index = index_open(lfirst_oid(cell), NoLock);

		foreach(other, living)
		{
			Relation one = index_open(lfirst_oid(other), NoLock);
			bool	 same = same_equality(index, one);

			index_close(one, NoLock);
			if (same)
			{
				obsolete = lappend_oid(obsolete, lfirst_oid(cell));
				break;
			}
		}
		index_close(index, NoLock);
	}
	table_close(rel, NoLock);

	ta_frame_begin(&frame, InvalidOid);
	if (others != NIL)
		run_utility(psprintf("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE", ta_sd_qualified_name(relid)));
	initStringInfo(&list);
	initStringInfo(&label);
	for (int i = 0; i < n; i++)
	{
		char *column = get_attname(relid, columns[i], false);

		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "(", quote_identifier(column));
		appendStringInfo(&label, "%s%s", i > 0 ? "_" : "", column);
	}
	appendStringInfoChar(&list, ')');
	if (others == NIL && living == NIL)
		make_live_index(relid, InvalidOid, list.data, label.data);
	foreach(cell, others)
	{
		if (list_member_oid(obsolete, lfirst_oid(cell)))
			drop_key(relid, lfirst_oid(cell));
		else
			make_live_index(relid, lfirst_oid(cell), NULL, label.data);
	}
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}
