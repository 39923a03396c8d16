/*-------------------------------------------------------------------------
 *
 * foreign_key.c
 *	  What the catalog says of a table's foreign keys, in both directions.
 *
 * Those that refer to a table are found by the triggers that they have put on
 * it, so that nobody scans pg_constraint (but for a partitioned table of 14).  A
 * foreign key of, or to, a partitioned table has entries for the partitions, too;
 * what is returned describes the one that was declared, but for the columns of a
 * partition that refers.
 *
 * Nothing is locked here but partitions.  The caller holds a lock on the table that he asks
 * about, which keeps its foreign keys as they are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "nodes/parsenodes.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/syscache.h"

#include "compat.h"
#include "foreign_key.h"

static TaForeignKey *
describe(HeapTuple tuple)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);
	TaForeignKey	  *key = palloc0(sizeof(TaForeignKey));

	key->constraint = form->oid;
	key->on_delete = form->confdeltype;
	key->deferrable = form->condeferrable;
	key->deferred = form->condeferred;
	key->child = form->conrelid;
	key->parent = form->confrelid;
	key->index = form->conindid;
	ta_deconstruct_foreign_key(tuple, &key->nkeys, key->child_columns, key->parent_columns,
							   key->operators);
	return key;
}

static HeapTuple
constraint_tuple(Oid constraint)
{
	HeapTuple tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", constraint);
	return tuple;
}

/* The foreign key that was declared, where this is its entry for a partition. */
static TaForeignKey *
declared(Oid constraint)
{
	TaForeignKey *key = NULL;

	while (key == NULL)
	{
		HeapTuple tuple = constraint_tuple(constraint);
		Oid		  above = ((Form_pg_constraint) GETSTRUCT(tuple))->conparentid;

		if (OidIsValid(above))
			constraint = above;
		else
			key = describe(tuple);
		ReleaseSysCache(tuple);
	}
	return key;
}

static bool
is_delete_action(Oid function)
{
	return function == F_RI_FKEY_CASCADE_DEL || function == F_RI_FKEY_RESTRICT_DEL ||
		   function == F_RI_FKEY_SETNULL_DEL || function == F_RI_FKEY_SETDEFAULT_DEL ||
		   function == F_RI_FKEY_NOACTION_DEL;
}

static void
add_once(List **keys, TaForeignKey *key)
{
	ListCell *cell;

	foreach(cell, *keys)
	{
		if (((TaForeignKey *) lfirst(cell))->constraint == key->constraint)
		{
			pfree(key);
			return;
		}
	}
	*keys = lappend(*keys, key);
}

/* The foreign keys to a relation or to one of these above it, from the catalog. */
static List *
catalogued_keys_to(List *relations)
{
	List	   *keys = NIL;
	ScanKeyData search;
	Relation	constraints = table_open(ConstraintRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&search, Anum_pg_constraint_contype, BTEqualStrategyNumber, F_CHAREQ, CharGetDatum(CONSTRAINT_FOREIGN));
	scan = systable_beginscan(constraints, InvalidOid, false, NULL, 1, &search);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

		if (list_member_oid(relations, form->confrelid))
			add_once(&keys, declared(form->oid));
	}
	systable_endscan(scan);
	table_close(constraints, AccessShareLock);
	return keys;
}

/*
 * ta_foreign_keys_to
 *		The foreign keys that refer to rows of a table, a list of TaForeignKey.
 *
 * For a partition those that refer to what it is a partition of are among them.
 * Allocated in the current memory context.
 */
List *
ta_foreign_keys_to(Relation parent)
{
	TriggerDesc *triggers = parent->trigdesc;
	List		*keys = NIL;

	if (parent->rd_rel->relkind == RELKIND_PARTITIONED_TABLE && !TA_PARTITIONED_HAS_KEY_TRIGGERS)
	{
		List *relations = NIL;

		if (parent->rd_rel->relispartition)
			relations = get_partition_ancestors(RelationGetRelid(parent));
		return catalogued_keys_to(lcons_oid(RelationGetRelid(parent), relations));
	}
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];

		if (is_delete_action(trigger->tgfoid) && OidIsValid(trigger->tgconstraint))
			add_once(&keys, declared(trigger->tgconstraint));
	}
	return keys;
}

/*
 * ta_foreign_keys_to_tree
 *		The same with those that refer to a single partition of the table; key->parent
 *		says which.
 *
 * Locks the partitions ACCESS SHARE, as a query of the table does.
 */
List *
ta_foreign_keys_to_tree(Relation parent)
{
	List	 *keys = ta_foreign_keys_to(parent);
	ListCell *partition;

	if (parent->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return keys;
	foreach(partition, find_all_inheritors(RelationGetRelid(parent), AccessShareLock, NULL))
	{
		Relation  rel;
		ListCell *cell;

		if (lfirst_oid(partition) == RelationGetRelid(parent))
			continue;
		rel = table_open(lfirst_oid(partition), NoLock);
		foreach(cell, ta_foreign_keys_to(rel))
			add_once(&keys, lfirst(cell));
		table_close(rel, NoLock);
	}
	return keys;
}

/*
 * ta_foreign_keys_of
 *		The foreign keys by which rows of a table refer to others, a list of
 *		TaForeignKey.  A partition's columns are its own.
 *
 * Allocated in the current memory context.
 */
List *
ta_foreign_keys_of(Relation child)
{
	List	 *keys = NIL;
	ListCell *cell;

	foreach(cell, RelationGetFKeyList(child))
	{
		ForeignKeyCacheInfo *info = lfirst(cell);
		HeapTuple			 tuple = constraint_tuple(info->conoid);
		Oid					 above = ((Form_pg_constraint) GETSTRUCT(tuple))->conparentid;
		TaForeignKey		*key = describe(tuple);

		ReleaseSysCache(tuple);
		/* an entry that stands for one partition of what is referred to */
		if (OidIsValid(above))
		{
			tuple = constraint_tuple(above);
			if (((Form_pg_constraint) GETSTRUCT(tuple))->conrelid == key->child)
			{
				pfree(key);
				key = NULL;
			}
			ReleaseSysCache(tuple);
		}
		if (key != NULL)
			keys = lappend(keys, key);
	}
	return keys;
}

/*
 * ta_foreign_key_name
 *		Its name, for messages.
 */
char *
ta_foreign_key_name(const TaForeignKey *key)
{
	return get_constraint_name(key->constraint);
}
