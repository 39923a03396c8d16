/*-------------------------------------------------------------------------
 *
 * compat.c
 *	  Functions that stand in for those of later versions of PostgreSQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_namespace.h"
#include "utils/acl.h"

#include "compat.h"

#if PG_VERSION_NUM < 160000

/*
 * ta_object_ownercheck
 *		Whether a role owns a schema or a relation, as object_ownercheck of 16
 *		says it of any object.
 */
bool
ta_object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	if (classid == NamespaceRelationId)
		return pg_namespace_ownercheck(objectid, roleid);
	return pg_class_ownercheck(objectid, roleid);
}

#endif
