/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  Saying how far a long piece of work has come.
 *
 * What a backend is at stands in its entry of pg_stat_activity, as the text of
 * its query: "techally drain: moving 1000/50000 since 2026-01-01T00:00:00Z on
 * shop.events", a line for each piece of work, the outermost first.  The view
 * techally.progress takes that text apart.  So others
 * see it while our transaction is open, in a backend and in a worker alike,
 * without shared memory of our own and so without shared_preload_libraries;
 * who may see it is who may see what a session runs.
 *
 * Invariants:
 * - Pieces of work nest like brackets.  Each remembers the depth of
 *	 transactions that it was begun at, and an abort of that or of a further
 *	 out one ends it; a commit does not, for a procedure commits step by step.
 * - None outlives the client's statement that began it.
 * - When the outermost ends, the query's own text stands there again.
 *
 * Takes no locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "pgtime.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "progress.h"
#include "request_util.h"

#define MAX_DEPTH 4

/* One piece of work. */
typedef struct Progress
{
	char		task[NAMEDATALEN];
	char		phase[NAMEDATALEN];
	char		relation[2 * NAMEDATALEN + 8];
	int64		done;
	int64		total; /* TA_PROGRESS_UNKNOWN: nobody knows */
	TimestampTz started_at;
	int			nest_level; /* of the transaction it was begun in */
	TimestampTz statement;	/* that it was begun in */
} Progress;

static Progress pieces[MAX_DEPTH];
static int		depth = 0; /* may exceed MAX_DEPTH: what is deeper is not shown */

/* Puts the pieces of work, or else the query, into our entry. */
static void
show(void)
{
	char text[1024] = "";

	if (depth == 0)
	{
		pgstat_report_activity(STATE_RUNNING, debug_query_string);
		return;
	}
	for (int i = 0; i < Min(depth, MAX_DEPTH); i++)
	{
		const Progress *piece = &pieces[i];
		pg_time_t		seconds = timestamptz_to_time_t(piece->started_at);
		Size			used = strlen(text);
		char			since[64];
		char			total[32];

		pg_strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", pg_gmtime(&seconds));
		if (piece->total == TA_PROGRESS_UNKNOWN)
			strlcpy(total, "?", sizeof(total));
		else
			snprintf(total, sizeof(total), INT64_FORMAT, piece->total);
		snprintf(text + used, sizeof(text) - used, "%stechally %s: %s " INT64_FORMAT "/%s since %s on %s",
				 i > 0 ? "\n" : "", piece->task, piece->phase, piece->done, total, since, piece->relation);
	}
	pgstat_report_activity(STATE_RUNNING, text);
}

/* Forgets what was begun at this depth of transactions or further in. */
static void
unwind(int nest_level)
{
	while (depth > 0 && pieces[Min(depth, MAX_DEPTH) - 1].nest_level >= nest_level)
		depth--;
}

/* Forgets what an earlier statement left open. */
static void
forget_stale(void)
{
	if (depth > 0 && pieces[0].statement != GetCurrentStatementStartTimestamp())
		depth = 0;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		unwind(1);
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		unwind(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = 0; i < Min(depth, MAX_DEPTH); i++)
			pieces[i].nest_level = Min(pieces[i].nest_level, level - 1);
	}
}

/*
 * ta_progress_init
 *		Called once, by _PG_init.
 */
void
ta_progress_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

/* Cut between characters, so that the text stays valid, and in one line. */
static void
copy_clipped(char *to, const char *from, int size)
{
	int length = pg_mbcliplen(from, strlen(from), size - 1);

	memcpy(to, from, length);
	to[length] = '\0';
	for (char *c = to; *c != '\0'; c++)
	{
		if (*c == '\n')
			*c = ' ';
	}
}

/*
 * ta_progress_begin
 *		A piece of work begins: task is one word ("drain"), relation what it
 *		works on, as people write it, phase a few words without digits, total
 *		the rows that it expects or TA_PROGRESS_UNKNOWN.
 *
 * Copies its arguments.  Each call needs a ta_progress_end; an error does it
 * by itself.  Within a piece of the same task on the same relation, it is a part
 * of that and has its start.
 */
void
ta_progress_begin(const char *task, const char *relation, const char *phase, int64 total)
{
	forget_stale();
	depth++;
	if (depth <= MAX_DEPTH)
	{
		Progress *piece = &pieces[depth - 1];

		copy_clipped(piece->task, task, sizeof(piece->task));
		copy_clipped(piece->relation, relation, sizeof(piece->relation));
		copy_clipped(piece->phase, phase, sizeof(piece->phase));
		piece->done = 0;
		piece->total = total;
		piece->started_at = GetCurrentTimestamp();
		if (depth > 1 && strcmp(piece->task, piece[-1].task) == 0 && strcmp(piece->relation, piece[-1].relation) == 0)
			piece->started_at = piece[-1].started_at;
		piece->nest_level = GetCurrentTransactionNestLevel();
		piece->statement = GetCurrentStatementStartTimestamp();
	}
	show();
}

/*
 * ta_progress_since
 *		The innermost piece of work goes on with what was begun at this time.
 */
void
ta_progress_since(TimestampTz since)
{
	forget_stale();
	if (depth == 0)
		return;
	if (depth <= MAX_DEPTH)
		pieces[depth - 1].started_at = since;
	show();
}

/*
 * ta_progress_update
 *		The innermost piece of work has come so far; phase NULL: the same one.
 *
 * Costs about a microsecond: call it every few thousand rows.
 */
void
ta_progress_update(const char *phase, int64 done, int64 total)
{
	forget_stale();
	if (depth == 0)
		return;
	if (depth <= MAX_DEPTH)
	{
		Progress *piece = &pieces[depth - 1];

		if (phase != NULL)
			copy_clipped(piece->phase, phase, sizeof(piece->phase));
		piece->done = done;
		piece->total = total;
	}
	show();
}

/*
 * ta_progress_end
 *		The innermost piece of work has ended.
 */
void
ta_progress_end(void)
{
	forget_stale();
	if (depth == 0)
		return;
	depth--;
	show();
}

PG_FUNCTION_INFO_V1(ta_report_progress);
PG_FUNCTION_INFO_V1(ta_end_progress);

/*
 * report_progress(task text, relation text, phase text, done bigint, total bigint) returns void
 *		For work that is written in SQL: begins a piece of work where the
 *		innermost one is of another task or relation, else updates it.
 *
 * Raises 22004 where task, relation or phase is NULL.
 */
Datum
ta_report_progress(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"task", "relation", "phase"};
	char					*task;
	char					*relation;
	char					*phase;
	int64					 done = PG_ARGISNULL(3) ? 0 : PG_GETARG_INT64(3);
	int64					 total = PG_ARGISNULL(4) ? TA_PROGRESS_UNKNOWN : PG_GETARG_INT64(4);
	bool					 continues = false;

	for (int i = 0; i < (int) lengthof(names); i++)
		ta_require_argument(fcinfo, i, names[i]);
	task = text_to_cstring(PG_GETARG_TEXT_PP(0));
	relation = text_to_cstring(PG_GETARG_TEXT_PP(1));
	phase = text_to_cstring(PG_GETARG_TEXT_PP(2));

	forget_stale();
	if (depth > 0 && depth <= MAX_DEPTH)
	{
		Progress wanted;

		copy_clipped(wanted.task, task, sizeof(wanted.task));
		copy_clipped(wanted.relation, relation, sizeof(wanted.relation));
		continues = strcmp(wanted.task, pieces[depth - 1].task) == 0 &&
					strcmp(wanted.relation, pieces[depth - 1].relation) == 0;
	}
	if (!continues)
		ta_progress_begin(task, relation, phase, total);
	ta_progress_update(phase, done, total);
	PG_RETURN_VOID();
}

/*
 * end_progress() returns void
 *		Ends what report_progress began.
 */
Datum
ta_end_progress(PG_FUNCTION_ARGS)
{
	ta_progress_end();
	PG_RETURN_VOID();
}
