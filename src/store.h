/*-------------------------------------------------------------------------
 *
 * store.h
 *	  What the library needs of the stores.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_STORE_H
#define TECHALLY_STORE_H

extern void ta_store_init(void);

#endif /* TECHALLY_STORE_H */
