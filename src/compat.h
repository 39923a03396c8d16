/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The only place that asks for PG_VERSION_NUM.
 *
 * PostgreSQL 14 to 18 are supported; the rooms are written against 15.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_COMPAT_H
#define TECHALLY_COMPAT_H

#include "postgres.h"

#include "utils/guc.h"

#if PG_VERSION_NUM < 140000
#error "techally needs PostgreSQL 14 or later"
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

#endif							/* TECHALLY_COMPAT_H */
