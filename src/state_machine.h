/*-------------------------------------------------------------------------
 *
 * state_machine.h
 *	  What the orders need of the state machine.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TECHALLY_STATE_MACHINE_H
#define TECHALLY_STATE_MACHINE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "compat.h"

/* One transition, copied out of the compiled machine. */
typedef struct TaTransition
{
	const char *event;
	const char *from;
	const char *to;
	const char *effect; /* NULL: none */
} TaTransition;

/*
 * What the statement that is about to change a state wants recorded with it.
 * While it is pushed, a row of relid that takes the event's transition is
 * recorded under this event (and not the first defined between the two
 * states), with this note and actor.
 */
typedef struct TaTransitionContext
{
	Oid							relid;
	const char				   *event;		  /* NULL: the first defined */
	const char				   *note;		  /* NULL: none */
	Datum						actor;		  /* uuid */
	bool						actor_isnull; /* true: app.current_user_id */
	struct TaTransitionContext *outer;		  /* managed by push and pop */
} TaTransitionContext;

extern void ta_state_machine_init(void);

extern void						  ta_transition_push(TaTransitionContext *context);
extern void						  ta_transition_pop(TaTransitionContext *context);
extern const TaTransitionContext *ta_transition_current(Oid relid);

extern bool		   ta_machine_attached(Oid relid, const char *column);
extern const char *ta_machine_initial(Oid relid, const char *column);
extern bool		   ta_machine_has_state(Oid relid, const char *column, const char *state);
extern List		  *ta_machine_event(Oid relid, const char *column, const char *event);
extern bool		   ta_machine_transition(Oid relid, const char *column,
										 const char *from, const char *to,
										 TaTransition *transition);
extern bool		   ta_machine_after_effect(Oid relid, const char *column, const char *effect,
										   const char *state);
extern List		  *ta_machine_leaving(Oid relid, const char *column, const char *from);
extern void		   ta_machine_raise_illegal(Oid relid, const char *column, const char *from,
											const char *event, const char *to) pg_attribute_noreturn();

#endif /* TECHALLY_STATE_MACHINE_H */
