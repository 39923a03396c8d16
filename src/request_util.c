/*-------------------------------------------------------------------------
 *
 * request_util.c
 *	  Who asks, as the application said it in its settings.
 *
 * app.current_user_id, app.request_id, app.client_ip and app.user_agent are
 * set by the application, usually with SET LOCAL.  Absent and empty mean the
 * same, nobody: empty is what a pooled connection shows after another
 * client's SET LOCAL has ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/uuid.h"

#include "request_util.h"

/*
 * ta_require_argument
 *		Raises 22004 where an argument that the function needs is NULL.
 */
void
ta_require_argument(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

/*
 * ta_require_arguments
 *		The same for the first count arguments.
 */
void
ta_require_arguments(FunctionCallInfo fcinfo, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		ta_require_argument(fcinfo, i, names[i]);
}

/*
 * ta_request_setting
 *		The value of one of the application's settings, NULL where it is absent
 *		or empty.  Belongs to the GUC machinery: copy it to keep it.
 */
const char *
ta_request_setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return (value == NULL || value[0] == '\0') ? NULL : value;
}

/*
 * ta_request_actor
 *		Who does it: the explicit argument wins, else app.current_user_id.
 *
 * Returns a uuid, or sets *isnull for nobody.  A setting that is no uuid
 * raises 22P02 rather than passing as nobody.
 */
Datum
ta_request_actor(Datum explicit_actor, bool explicit_isnull, bool *isnull)
{
	const char *value;

	*isnull = false;
	if (!explicit_isnull)
		return explicit_actor;

	value = ta_request_setting("app.current_user_id");
	if (value == NULL)
	{
		*isnull = true;
		return (Datum) 0;
	}
	return DirectFunctionCall1(uuid_in, CStringGetDatum(value));
}
