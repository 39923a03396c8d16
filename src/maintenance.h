/*-------------------------------------------------------------------------
 *
 * maintenance.h
 *	  A pass of maintenance, for whoever drives it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_MAINTENANCE_H
#define TECHALLY_MAINTENANCE_H

#include "postgres.h"

#include <signal.h>

#include "datatype/timestamp.h"

extern TimestampTz ta_maintenance_round(volatile sig_atomic_t *give_way);

#endif /* TECHALLY_MAINTENANCE_H */
