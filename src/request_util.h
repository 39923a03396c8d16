/*-------------------------------------------------------------------------
 *
 * request_util.h
 *	  Who asks, as the application said it in its settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_REQUEST_UTIL_H
#define TECHALLY_REQUEST_UTIL_H

#include "postgres.h"

#include "fmgr.h"

extern void		   ta_require_argument(FunctionCallInfo fcinfo, int argno, const char *name);
extern void		   ta_require_arguments(FunctionCallInfo fcinfo, const char *const *names, int count);
extern const char *ta_request_setting(const char *name);
extern Datum	   ta_request_actor(Datum explicit_actor, bool explicit_isnull, bool *isnull);

#endif /* TECHALLY_REQUEST_UTIL_H */
