/*-------------------------------------------------------------------------
 *
 * foreign_key.h
 *	  What the catalog says of a table's foreign keys, in both directions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_FOREIGN_KEY_H
#define TECHALLY_FOREIGN_KEY_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

typedef struct TaForeignKey
{
	Oid		   constraint;
	char	   on_delete; /* FKCONSTR_ACTION_... */
	bool	   deferrable;
	bool	   deferred;
	Oid		   child;
	Oid		   parent;
	Oid		   index; /* the parent's, that the key stands on */
	int		   nkeys;
	AttrNumber child_columns[INDEX_MAX_KEYS];
	AttrNumber parent_columns[INDEX_MAX_KEYS];
	Oid		   operators[INDEX_MAX_KEYS]; /* parent = child */
} TaForeignKey;

extern List *ta_foreign_keys_to(Relation parent);
extern List *ta_foreign_keys_to_tree(Relation parent);
extern List *ta_foreign_keys_of(Relation child);
extern char *ta_foreign_key_name(const TaForeignKey *key);

#endif /* TECHALLY_FOREIGN_KEY_H */
