/*-------------------------------------------------------------------------
 *
 * trigger_util.c
 *	  What trigger functions share: the protocol checks that each begins with,
 *	  and which tables' rows are being moved rather than deleted.
 *
 * Maintenance that takes rows out of a table to put them elsewhere (out of a
 * DEFAULT partition, into an archive) must really delete them, and what it
 * inserts is not new.  It says so in a bracket around its statements; triggers
 * that would make something else of a DELETE ask.  An error unwinds the bracket
 * with the (sub)transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/partition.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "trigger_util.h"

typedef struct PassThrough
{
	Oid				 relid;
	SubTransactionId subid;
} PassThrough;

static PassThrough *passing = NULL;
static int			npassing = 0;
static int			passing_size = 0;

static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		npassing = 0;
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subid,
					 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (npassing > 0 && passing[npassing - 1].subid >= subid)
			npassing--;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = npassing - 1; i >= 0 && passing[i].subid >= subid; i--)
			passing[i].subid = parent;
	}
}

/*
 * ta_trigger_util_init
 *		Registers what unwinds the brackets.  Called once, by _PG_init.
 */
void
ta_trigger_util_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

/*
 * ta_pass_through_begin
 *		From here on, rows of this table and of its partitions are moved: a DELETE
 *		really takes them away, an INSERT brings them back as they were.
 */
void
ta_pass_through_begin(Oid relid)
{
	if (npassing == passing_size)
	{
		passing_size = Max(8, passing_size * 2);
		if (passing == NULL)
			passing = MemoryContextAlloc(TopMemoryContext, sizeof(PassThrough) * passing_size);
		else
			passing = repalloc(passing, sizeof(PassThrough) * passing_size);
	}
	passing[npassing].relid = relid;
	passing[npassing].subid = GetCurrentSubTransactionId();
	npassing++;
}

/*
 * ta_pass_through_end
 *		Ends what the last ta_pass_through_begin began.
 */
void
ta_pass_through_end(void)
{
	Assert(npassing > 0);
	npassing--;
}

/*
 * ta_passes_through
 *		Whether rows of this table are being moved.
 */
bool
ta_passes_through(Oid relid)
{
	List *ancestors = NIL;

	if (npassing == 0)
		return false;
	if (get_rel_relispartition(relid))
		ancestors = get_partition_ancestors(relid);
	for (int i = 0; i < npassing; i++)
	{
		if (passing[i].relid == relid || list_member_oid(ancestors, passing[i].relid))
			return true;
	}
	return false;
}

static void
raise_protocol(const char *function_name, const char *requirement)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("function \"%s\" %s", function_name, requirement)));
}

/*
 * ta_trigger_data
 *		Returns the trigger data of this call, having checked that it is one.
 *
 * flags says what the function is written for: TA_TRIGGER_ROW or _STATEMENT,
 * one of _BEFORE, _AFTER, _INSTEAD, and every event it accepts.  Raises 39P01
 * where the trigger was created otherwise.
 */
TriggerData *
ta_trigger_data(FunctionCallInfo fcinfo, const char *function_name, int flags)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		raise_protocol(function_name, "was not called by trigger manager");

	if ((flags & TA_TRIGGER_ROW) && !TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		raise_protocol(function_name, "must be fired for each row");
	if ((flags & TA_TRIGGER_STATEMENT) && !TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event))
		raise_protocol(function_name, "must be fired for each statement");

	if ((flags & TA_TRIGGER_BEFORE) && !TRIGGER_FIRED_BEFORE(trigdata->tg_event))
		raise_protocol(function_name, "must be fired before the event");
	if ((flags & TA_TRIGGER_AFTER) && !TRIGGER_FIRED_AFTER(trigdata->tg_event))
		raise_protocol(function_name, "must be fired after the event");
	if ((flags & TA_TRIGGER_INSTEAD) && !TRIGGER_FIRED_INSTEAD(trigdata->tg_event))
		raise_protocol(function_name, "must be fired instead of the event");

	if (!(((flags & TA_TRIGGER_INSERT) && TRIGGER_FIRED_BY_INSERT(trigdata->tg_event)) ||
		  ((flags & TA_TRIGGER_UPDATE) && TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event)) ||
		  ((flags & TA_TRIGGER_DELETE) && TRIGGER_FIRED_BY_DELETE(trigdata->tg_event)) ||
		  ((flags & TA_TRIGGER_TRUNCATE) && TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))))
		raise_protocol(function_name, "was fired by an event that it is not written for");

	return trigdata;
}
