/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  Every SQLSTATE that techally raises of its own.
 *
 * Class TA.  A condition stands here only where a caller branches on it;
 * for everything else PostgreSQL's own codes are used.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_ERRORS_H
#define TECHALLY_ERRORS_H

#include "utils/elog.h"

#define TA_ERRCODE_ILLEGAL_TRANSITION	  MAKE_SQLSTATE('T', 'A', '0', '0', '1')
#define TA_ERRCODE_INSUFFICIENT_STOCK	  MAKE_SQLSTATE('T', 'A', '0', '0', '2')
#define TA_ERRCODE_RESERVATION_NOT_ACTIVE MAKE_SQLSTATE('T', 'A', '0', '0', '3')
#define TA_ERRCODE_IDEMPOTENCY_CONFLICT	  MAKE_SQLSTATE('T', 'A', '0', '0', '4')
#define TA_ERRCODE_VERSION_CONFLICT		  MAKE_SQLSTATE('T', 'A', '0', '0', '5')
#define TA_ERRCODE_UNKNOWN_SKU			  MAKE_SQLSTATE('T', 'A', '0', '0', '6')
#define TA_ERRCODE_RECORD_NOT_FOUND		  MAKE_SQLSTATE('T', 'A', '0', '0', '7')
#define TA_ERRCODE_INVALID_MACHINE		  MAKE_SQLSTATE('T', 'A', '0', '0', '8')
#define TA_ERRCODE_STORE_ERROR			  MAKE_SQLSTATE('T', 'A', '0', '0', '9')

#endif /* TECHALLY_ERRORS_H */
