/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background worker's init.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_WORKER_H
#define TECHALLY_WORKER_H

extern void ta_worker_init(void);

#endif /* TECHALLY_WORKER_H */
