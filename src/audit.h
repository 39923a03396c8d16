/*-------------------------------------------------------------------------
 *
 * audit.h
 *	  The audit, for the library's init.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_AUDIT_H
#define TECHALLY_AUDIT_H

extern void ta_audit_init(void);

#endif /* TECHALLY_AUDIT_H */
