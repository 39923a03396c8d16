/*-------------------------------------------------------------------------
 *
 * compat.c
 *	  Functions that stand in for those of later versions of PostgreSQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_namespace.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
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

/*
 * What the rooms want of shared memory.  From 15 on it may be asked for only in
 * a hook of its own.
 */
#define MAX_SHARED_PARTS 8

static struct
{
	Size size;
	void (*startup)(void);
} shared_parts[MAX_SHARED_PARTS];

static int					   nshared_parts = 0;
static shmem_startup_hook_type previous_startup = NULL;

static void
start_shared_parts(void)
{
	if (previous_startup)
		previous_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (int i = 0; i < nshared_parts; i++)
		shared_parts[i].startup();
	LWLockRelease(AddinShmemInitLock);
}

#if PG_VERSION_NUM >= 150000
static shmem_request_hook_type previous_request = NULL;

static void
request_shared_parts(void)
{
	if (previous_request)
		previous_request();
	for (int i = 0; i < nshared_parts; i++)
		RequestAddinShmemSpace(shared_parts[i].size);
}
#endif

/*
 * ta_request_shared_memory
 *		Asks for shared memory where the library is being preloaded; else does
 *		nothing, and startup is not called.
 *
 * startup calls ShmemInitStruct; it runs under AddinShmemInitLock, in the
 * postmaster and, where the server forks no copies of itself, in each backend.
 */
void
ta_request_shared_memory(Size size, void (*startup)(void))
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	if (nshared_parts == MAX_SHARED_PARTS)
		elog(ERROR, "too many parts of shared memory");
	if (nshared_parts == 0)
	{
		previous_startup = shmem_startup_hook;
		shmem_startup_hook = start_shared_parts;
#if PG_VERSION_NUM >= 150000
		previous_request = shmem_request_hook;
		shmem_request_hook = request_shared_parts;
#endif
	}
	shared_parts[nshared_parts].size = size;
	shared_parts[nshared_parts].startup = startup;
	nshared_parts++;
#if PG_VERSION_NUM < 150000
	RequestAddinShmemSpace(size);
#endif
}

#if PG_VERSION_NUM < 150000

/*
 * ta_fill_materialized_result
 *		Makes the tuplestore of a function that returns a set, as
 *		InitMaterializedSRF of later versions does.
 */
void
ta_fill_materialized_result(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext  caller;
	TupleDesc	   tupdesc;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) || !(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	caller = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->setDesc = tupdesc;
	MemoryContextSwitchTo(caller);
}

#endif
