/*-------------------------------------------------------------------------
 *
 * trigger_util.c
 *	  The trigger protocol checks that every trigger function begins with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "trigger_util.h"

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
