/*-------------------------------------------------------------------------
 *
 * spi_util.h
 *	  Running SQL over a store's tables: plans prepared once a backend and
 *	  store, expected result codes, a pinned search_path, acting as an owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_SPI_UTIL_H
#define TECHALLY_SPI_UTIL_H

#include "postgres.h"

#include "executor/spi.h"
#include "storage/itemptr.h"

#include "array_util.h"

#define TA_MAX_ARGS 24

/*
 * A statement over a store's tables.  "@store@" in the text stands for the
 * store's schema, quoted.  Its address is its identity: declare it static.
 */
typedef struct TaStatement
{
	const char *sql;
	int			nargs;
	Oid			argtypes[TA_MAX_ARGS];
} TaStatement;

/*
 * What a function of ours changes of its surroundings while it works; begin
 * and end nest like brackets, and an error unwinds both by itself.
 */
typedef struct TaFrame
{
	int	 guc_level; /* 0: the search_path was pinned already */
	bool switched_user;
	Oid	 saved_user;
	int	 saved_sec_context;
} TaFrame;

extern void ta_spi_init(void);

extern Oid ta_store_namespace(Name store);
extern Oid ta_store_table(Oid nspid, const char *name);
extern Oid ta_namespace_owner(Oid nspid);
extern Oid ta_relation_owner(Oid relid);

extern void ta_frame_begin(TaFrame *frame, Oid act_as);
extern void ta_frame_end(TaFrame *frame);

extern bool ta_in_savepoint(bool (*work)(void *arg), void *arg);

extern uint64 ta_execute(Oid nspid, const TaStatement *statement, int expected,
						 Datum *values, const char *nulls);
extern uint64 ta_query(Oid nspid, const TaStatement *statement,
					   Datum *values, const char *nulls);

extern Portal ta_open_cursor(Oid nspid, const TaStatement *statement,
							 Datum *values, const char *nulls, bool read_only);

extern Datum ta_spi_value(uint64 row, int column, bool *isnull);
extern char *ta_spi_text(uint64 row, int column);

extern pg_uuid_t	   ta_spi_uuid(uint64 row, int column);
extern TaUuid		   ta_spi_nullable_uuid(uint64 row, int column);
extern int32		   ta_spi_int4(uint64 row, int column);
extern ItemPointerData ta_spi_tid(uint64 row, int column);

#endif /* TECHALLY_SPI_UTIL_H */
