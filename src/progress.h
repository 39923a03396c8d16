/*-------------------------------------------------------------------------
 *
 * progress.h
 *	  Saying how far a long piece of work has come.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_PROGRESS_H
#define TECHALLY_PROGRESS_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* where the total is not known */
#define TA_PROGRESS_UNKNOWN ((int64) -1)

extern void ta_progress_init(void);

extern void ta_progress_begin(const char *task, const char *relation, const char *phase, int64 total);
extern void ta_progress_since(TimestampTz since);
extern void ta_progress_update(const char *phase, int64 done, int64 total);
extern void ta_progress_end(void);

#endif /* TECHALLY_PROGRESS_H */
