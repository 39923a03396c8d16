/*-------------------------------------------------------------------------
 *
 * maintenance.c
 *	  Keeping house: the tasks that come round again and again.
 *
 * A task is a row of techally.maintenance_tasks and two functions: one lists
 * the items there are to work on (stores, tables, views) with their owners,
 * the other takes an item one step further.  A pass goes through tasks, items
 * and steps, and each step is a transaction of its own.  The background worker
 * and the procedure run_maintenance() make the same pass; they differ in how
 * they commit, and in that the worker only does what is due.
 *
 * Invariants:
 * - A step works as the owner of its item.  Where that is not who we are, it is
 *	 a security-restricted operation, with every constraint immediate: nothing
 *	 of the owner's runs later, when we are somebody else again.  (The server's
 *	 own REFRESH makes such an operation itself, and needs a temporary table;
 *	 the partitions' functions take the owner's place themselves.)
 * - An item is left out unless the caller has its owner's rights.
 * - An error in a step undoes that step and ends the work on its item, nothing
 *	 else.  A step has what is left of its task's time; code that catches the
 *	 cancel then ends the process, and with it the pass.
 * - Who is at a task stands in its row of techally.maintenance_results,
 *	 committed before the first step: a second pass leaves the task alone, and
 *	 a task that takes the server down with it is found out by the next pass
 *	 and waits, longer each time.
 * - Only passes of who has the rights of the extension's owner are recorded,
 *	 for only they see to every item.
 *
 * Lock order: the task's row in techally.maintenance_results is locked only in
 * transactions that lock nothing else.  A step's locks are those of its room,
 * each waited for no longer than techally.maintenance_lock_timeout.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "maintenance.h"
#include "progress.h"
#include "request_util.h"
#include "spi_util.h"

#define FIRST_RETRY_MS	  (60 * 1000)
#define LONGEST_WAIT_MS	  ((int64) 3600 * 1000)
#define LEFT_TO_OTHERS_MS (10 * 1000) /* until we look again at what another pass is at */
#define LAST_RESORT_MS	  (5 * 1000)  /* a step that does not heed its cancel for so long ends its process */
#define RESULT_LENGTH	  500		  /* bytes of an error's message that are kept */

/* Who a task's steps run as. */
typedef enum RunsAs
{
	RUNS_AS_CALLER,	   /* what they call takes the owner's place itself */
	RUNS_AS_OWNER,	   /* of the item */
	RUNS_AS_RESTRICTED /* the owner, in a security-restricted operation */
} RunsAs;

/* A task, as techally.maintenance_tasks has it. */
typedef struct Task
{
	char	   *name;
	RunsAs		runs_as;
	int64		every_ms;
	int64		limit_ms;
	int			failures; /* in a row */
	TimestampTz next_run;
	bool		done; /* in this pass, or left to another one */
} Task;

/* Something that a task works on. */
typedef struct WorkItem
{
	char *name;
	Oid	  owner;
} WorkItem;

/* How one task went. */
typedef struct Outcome
{
	TimestampTz started_at;
	int64		done;
	int			nitems;
	int			nfailed;
	char	   *first_failure; /* NULL: none */
	bool		unfinished;	   /* time was up between two steps */
} Outcome;

/* A pass: who makes it, and what it goes through. */
typedef struct Pass
{
	MemoryContext		   context;		 /* lives as long as the pass */
	MemoryContext		   step_context; /* reset after each transaction */
	bool				   in_worker;
	bool				   recorded;
	bool				   only_due;
	volatile sig_atomic_t *give_way; /* the worker's: stop as soon as you can */
	Task				  *tasks;
	int					   ntasks;
} Pass;

static TimeoutId			 step_timeout = MAX_TIMEOUTS; /* not registered yet */
static TimeoutId			 last_resort = MAX_TIMEOUTS;
static volatile sig_atomic_t step_timed_out = false;

static const TaStatement select_tasks = {
	"SELECT t.task, t.runs_as,"
	" (EXTRACT(epoch FROM t.run_every) * 1000)::pg_catalog.int8,"
	" (EXTRACT(epoch FROM t.time_limit) * 1000)::pg_catalog.int8,"
	" coalesce(r.failures, 0),"
	" CASE WHEN r.failures = 0 THEN least(r.next_run, r.last_run + t.run_every) ELSE r.next_run END"
	" FROM techally.maintenance_tasks t LEFT JOIN techally.maintenance_results r ON r.task = t.task"
	" WHERE t.enabled OR t.task = ANY ($1) ORDER BY t.\"position\"",
	1,
	{TEXTARRAYOID}};
static const TaStatement upsert_view = {
	"INSERT INTO techally.maintained_views AS v (target, refresh) VALUES ($1::pg_catalog.regclass, $2)"
	" ON CONFLICT (target) DO UPDATE SET refresh = excluded.refresh",
	2,
	{OIDOID, BOOLOID}};
static const TaStatement ensure_result = {
	"INSERT INTO techally.maintenance_results (task) VALUES ($1) ON CONFLICT DO NOTHING", 1, {TEXTOID}};
static const TaStatement lock_result = {
	"SELECT r.started_by IS NOT NULL,"
	" EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(r.started_by) a"
	"          WHERE a.backend_start <= r.started_at AND r.started_by <> pg_catalog.pg_backend_pid())"
	" FROM techally.maintenance_results r WHERE r.task = $1 FOR UPDATE SKIP LOCKED",
	1,
	{TEXTOID}};
static const TaStatement claim_result = {
	"UPDATE techally.maintenance_results r"
	" SET started_at = pg_catalog.clock_timestamp(), started_by = pg_catalog.pg_backend_pid() WHERE r.task = $1",
	1,
	{TEXTOID}};
static const TaStatement write_result = {
	"UPDATE techally.maintenance_results r"
	" SET started_at = NULL, started_by = NULL, last_run = $2, last_duration = pg_catalog.clock_timestamp() - $2,"
	" last_result = $3, failures = $4, next_run = $5 WHERE r.task = $1",
	5,
	{TEXTOID, TIMESTAMPTZOID, TEXTOID, INT4OID, TIMESTAMPTZOID}};

/* The timer's handler: as a cancel would, and remembered as ours. */
static void
step_time_is_up(void)
{
	step_timed_out = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/* Code that catches its own cancel, in a loop perhaps, is not to hold us for ever. */
static void
step_does_not_stop(void)
{
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

static Oid
engine_namespace(void)
{
	return get_namespace_oid("techally", false);
}

static Oid
results_owner(void)
{
	return ta_relation_owner(get_relname_relid("maintenance_results", engine_namespace()));
}

/* The commit of what is open is to be on disk here, and waits for no standby. */
static void
commit_locally(void)
{
	(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* Commits what is open and begins anew. */
static void
next_transaction(const Pass *pass)
{
	if (pass->in_worker)
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
	}
	else
	{
		SPI_commit();
		SPI_start_transaction();	  /* 14 before 14.3 leaves that to us */
		EnsurePortalSnapshotExists(); /* or 14.0 loses it in a failed subtransaction */
	}
	MemoryContextReset(pass->step_context);
	MemoryContextSwitchTo(pass->step_context);
}

static TimestampTz
later_by(TimestampTz from, int64 ms)
{
	return TimestampTzPlusMilliseconds(from, ms);
}

/* How long a task that failed so often in a row waits. */
static int64
wait_after_failures(int failures, int64 every_ms)
{
	int64 longest = Max(every_ms, LONGEST_WAIT_MS);

	return Min((int64) FIRST_RETRY_MS << Min(Max(failures - 1, 0), 20), longest);
}

/*
 * The tasks, in their order: those that are enabled, or those that are named.
 * Raises 22023 for a name that is none.
 */
static void
load_tasks(Pass *pass, ArrayType *named)
{
	TaFrame frame;
	Datum	values[1] = {PointerGetDatum(named)};
	int		count;

	ta_frame_begin(&frame, results_owner());
	count = (int) ta_execute(engine_namespace(), &select_tasks, SPI_OK_SELECT, values, named == NULL ? "n" : NULL);
	pass->tasks = MemoryContextAllocZero(pass->context, sizeof(Task) * Max(count, 1));
	pass->ntasks = 0;
	for (int i = 0; i < count; i++)
	{
		Task *task = &pass->tasks[pass->ntasks++];
		char *runs_as = ta_spi_text(i, 2);
		bool  isnull;

		task->name = MemoryContextStrdup(pass->context, ta_spi_text(i, 1));
		task->runs_as = strcmp(runs_as, "caller") == 0 ? RUNS_AS_CALLER : strcmp(runs_as, "owner") == 0 ? RUNS_AS_OWNER
																										: RUNS_AS_RESTRICTED;
		task->every_ms = DatumGetInt64(ta_spi_value(i, 3, &isnull));
		task->limit_ms = DatumGetInt64(ta_spi_value(i, 4, &isnull));
		task->failures = DatumGetInt32(ta_spi_value(i, 5, &isnull));
		task->next_run = DatumGetTimestampTz(ta_spi_value(i, 6, &isnull));
		if (isnull)
			task->next_run = DT_NOBEGIN;
	}
	ta_frame_end(&frame);

	if (named != NULL)
	{
		Datum *names;
		bool  *nulls;
		int	   nnames;

		deconstruct_array(named, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls, &nnames);
		for (int i = 0; i < pass->ntasks; i++)
			pass->tasks[i].done = true;
		for (int n = 0; n < nnames; n++)
		{
			char *name = nulls[n] ? NULL : TextDatumGetCString(names[n]);
			int	  i;

			for (i = 0; i < pass->ntasks && name != NULL; i++)
			{
				if (strcmp(pass->tasks[i].name, name) == 0)
					break;
			}
			if (name == NULL || i == pass->ntasks)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("there is no maintenance task \"%s\"", name ? name : "NULL"),
						 errhint("The view techally.worker_tasks lists them.")));
			pass->tasks[i].done = false;
		}
	}
}

static void
record(const Task *task, TimestampTz started_at, const char *result, int failures, TimestampTz next_run)
{
	TaFrame frame;
	Datum	values[5];

	ta_frame_begin(&frame, results_owner());
	values[0] = CStringGetTextDatum(task->name);
	values[1] = TimestampTzGetDatum(started_at);
	values[2] = CStringGetTextDatum(result);
	values[3] = Int32GetDatum(failures);
	values[4] = TimestampTzGetDatum(next_run);
	ta_execute(engine_namespace(), &write_result, SPI_OK_UPDATE, values, NULL);
	ta_frame_end(&frame);
}

/*
 * Takes a task for this pass, in a transaction of its own: false where another
 * pass is at it, or where its last run never came to an end and it has to wait
 * for that.
 */
static bool
claim(Pass *pass, Task *task)
{
	TaFrame frame;
	Datum	values[1];
	bool	free = false;
	bool	died = false;
	bool	isnull;

	if (!pass->recorded)
		return true;

	values[0] = CStringGetTextDatum(task->name);
	ta_frame_begin(&frame, results_owner());
	ta_execute(engine_namespace(), &ensure_result, SPI_OK_INSERT, values, NULL);
	if (ta_execute(engine_namespace(), &lock_result, SPI_OK_SELECT, values, NULL) == 1)
	{
		bool started = DatumGetBool(ta_spi_value(0, 1, &isnull));
		bool alive = DatumGetBool(ta_spi_value(0, 2, &isnull));

		free = !alive;
		died = started && !alive;
	}
	if (died && pass->only_due)
		free = false;
	if (free)
		ta_execute(engine_namespace(), &claim_result, SPI_OK_UPDATE, values, NULL);
	ta_frame_end(&frame);

	if (died && pass->only_due)
	{
		TimestampTz now = GetCurrentTimestamp();

		task->failures++;
		task->next_run = later_by(now, wait_after_failures(task->failures, task->every_ms));
		record(task, now, "interrupted: the server process that ran it ended before it did",
			   task->failures, task->next_run);
	}

	commit_locally(); /* where it is found after a crash */
	next_transaction(pass);
	return free;
}

/* What a task has to work on, as far as it is ours to. */
static WorkItem *
list_items(Pass *pass, const Task *task, MemoryContext context, int *count)
{
	TaFrame	  frame;
	WorkItem *items;
	Oid		  caller = GetUserId();
	uint64	  n;

	*count = 0;
	ta_frame_begin(&frame, results_owner());
	if (SPI_execute(psprintf("SELECT i.item, i.owner FROM techally.%s() i",
							 quote_identifier(psprintf("%s_items", task->name))),
					false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not list the items of task %s", task->name);
	n = SPI_processed;
	items = MemoryContextAlloc(context, sizeof(WorkItem) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;
		Oid	 owner = DatumGetObjectId(ta_spi_value(i, 2, &isnull));

		if (isnull || !has_privs_of_role(caller, owner))
			continue;
		items[*count].name = MemoryContextStrdup(context, ta_spi_text(i, 1));
		items[*count].owner = owner;
		(*count)++;
	}
	ta_frame_end(&frame);
	return items;
}

/*
 * Takes an item one step further; cursor NULL afterwards: it is finished.
 * *failure is what the step says went wrong, where it has written that down
 * itself.
 */
static int64
do_step(const Pass *pass, const Task *task, const WorkItem *item, char **cursor, char **failure)
{
	Oid			argtypes[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(item->name)};
	char		nulls[3] = "  ";
	Oid			saved_user;
	int			saved_sec_context;
	int			guc_level;
	int64		done;
	bool		isnull;
	char	   *next;
	char	   *said;
	const char *lock_timeout = GetConfigOption("techally.maintenance_lock_timeout", true, false);

	GetUserIdAndSecContext(&saved_user, &saved_sec_context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("row_security", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("lock_timeout", lock_timeout ? lock_timeout : "2s", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (task->runs_as != RUNS_AS_CALLER && item->owner != saved_user)
	{
		if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "SET CONSTRAINTS failed");
		SetUserIdAndSecContext(item->owner, saved_sec_context | SECURITY_LOCAL_USERID_CHANGE | (task->runs_as == RUNS_AS_RESTRICTED ? SECURITY_RESTRICTED_OPERATION : 0));
	}

	if (*cursor == NULL)
		nulls[1] = 'n';
	else
		values[1] = CStringGetTextDatum(*cursor);
	if (SPI_execute_with_args(psprintf("SELECT s.done, s.next, pg_catalog.to_jsonb(s) ->> 'failure' FROM techally.%s($1, $2) s",
									   quote_identifier(psprintf("%s_step", task->name))),
							  2, argtypes, values, nulls, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a step of task %s returned nothing", task->name);
	done = DatumGetInt64(ta_spi_value(0, 1, &isnull));
	if (isnull)
		done = 0;
	next = ta_spi_text(0, 2);
	*cursor = next == NULL ? NULL : MemoryContextStrdup(pass->context, next);
	said = ta_spi_text(0, 3);
	*failure = said == NULL ? NULL : MemoryContextStrdup(pass->context, said);

	SetUserIdAndSecContext(saved_user, saved_sec_context);
	AtEOXact_GUC(true, guc_level);
	SPI_finish();
	return done;
}

/* Keeps what an error said, shortened. */
static char *
error_text(const Pass *pass, const ErrorData *error)
{
	MemoryContext caller = MemoryContextSwitchTo(pass->context);
	const char	 *message = error->message ? error->message : "unknown error";
	char		 *text;

	text = psprintf("%s (%s)", pnstrdup(message, pg_mbcliplen(message, strlen(message), RESULT_LENGTH)),
					unpack_sql_state(error->sqlerrcode));
	MemoryContextSwitchTo(caller);
	return text;
}

/*
 * Does one step within a time.  Returns what went wrong, NULL for nothing; an
 * error that means us and not the step (a cancel) is handed back in *cancelled
 * for the caller to raise again.
 */
static char *
try_step(const Pass *pass, const Task *task, const WorkItem *item, char **cursor,
		 int64 time_ms, TimestampTz since, int64 *done, ErrorData **cancelled)
{
	ResourceOwner owner = CurrentResourceOwner;
	const int	  allowed = (int) Min(Max(time_ms, 1), INT_MAX - LAST_RESORT_MS);
	char *volatile failure = NULL;
	char *said = NULL;

	if (step_timeout == MAX_TIMEOUTS)
		step_timeout = RegisterTimeout(USER_TIMEOUT, step_time_is_up);
	if (last_resort == MAX_TIMEOUTS)
		last_resort = RegisterTimeout(USER_TIMEOUT, step_does_not_stop);
	step_timed_out = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(pass->step_context);
	PG_TRY();
	{
		enable_timeout_after(step_timeout, allowed);
		enable_timeout_after(last_resort, allowed + LAST_RESORT_MS);
		ta_progress_begin(task->name, item->name, "running", TA_PROGRESS_UNKNOWN);
		ta_progress_since(since);
		*done += do_step(pass, task, item, cursor, &said);
		failure = said;
		ta_progress_end();
		disable_timeout(step_timeout, false);
		disable_timeout(last_resort, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		disable_timeout(step_timeout, false);
		disable_timeout(last_resort, false);
		MemoryContextSwitchTo(pass->context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		*cursor = NULL;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && step_timed_out)
			failure = MemoryContextStrdup(pass->context, "timed out");
		else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			*cancelled = error;
		else
			failure = error_text(pass, error);
	}
	PG_END_TRY();
	if (step_timed_out)
		QueryCancelPending = false; /* it may have rung when the step was over */
	MemoryContextSwitchTo(pass->step_context);
	CurrentResourceOwner = owner;
	return failure;
}

static bool
told_to_stop(const Pass *pass)
{
	if (pass->give_way == NULL || !*pass->give_way)
		return false;
	QueryCancelPending = false; /* we are stopping, and in good order */
	return true;
}

static void run_due_before(Pass *pass, const Task *than);

/* What is said of a task that has been through its items. */
static char *
describe(const Outcome *outcome)
{
	StringInfoData text;

	initStringInfo(&text);
	if (outcome->nfailed > 0)
		appendStringInfo(&text, "failed for %d of %d: %s", outcome->nfailed, outcome->nitems, outcome->first_failure);
	else
		appendStringInfoString(&text, "ok");
	if (outcome->done > 0)
		appendStringInfo(&text, "%s " INT64_FORMAT " done", outcome->nfailed > 0 ? ";" : ":", outcome->done);
	if (outcome->unfinished)
		appendStringInfoString(&text, ", more to do");
	return text.data;
}

/* Runs one task to its end. */
static void
run_task(Pass *pass, Task *task)
{
	Outcome		outcome = {0};
	ErrorData  *cancelled = NULL;
	WorkItem   *items = NULL;
	int			start;
	TimestampTz deadline;
	TimestampTz now;
	char	   *text;
	int			failures;

	task->done = true;
	if (!claim(pass, task))
	{
		task->next_run = Max(task->next_run, later_by(GetCurrentTimestamp(), LEFT_TO_OTHERS_MS));
		return;
	}
	outcome.started_at = GetCurrentTimestamp();
	deadline = later_by(outcome.started_at, task->limit_ms);

	items = list_items(pass, task, pass->context, &outcome.nitems);
	next_transaction(pass);

	/* from another one each time, so that none is always the last */
	start = outcome.nitems > 1 ? (int) (outcome.started_at % outcome.nitems) : 0;
	for (int i = 0; i < outcome.nitems && cancelled == NULL; i++)
	{
		const WorkItem *item = &items[(start + i) % outcome.nitems];
		char		   *cursor = NULL;
		TimestampTz		since = GetCurrentTimestamp();

		do
		{
			char *failure;
			int64 left;

			run_due_before(pass, task);
			if (told_to_stop(pass))
			{
				outcome.unfinished = true;
				break;
			}
			CHECK_FOR_INTERRUPTS();
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
			if (left <= 0)
			{
				outcome.unfinished = true;
				break;
			}

			failure = try_step(pass, task, item, &cursor, left, since, &outcome.done, &cancelled);
			if (failure != NULL)
			{
				outcome.nfailed++;
				if (outcome.first_failure == NULL)
					outcome.first_failure = MemoryContextStrdup(pass->context, psprintf("%s: %s", item->name, failure));
				ereport(WARNING,
						(errmsg("maintenance task \"%s\" failed for %s", task->name, item->name),
						 errdetail_internal("%s", failure)));
			}
			next_transaction(pass);
		} while (cursor != NULL && cancelled == NULL);
		if (outcome.unfinished)
			break;
	}

	now = GetCurrentTimestamp();
	failures = outcome.nfailed > 0 ? task->failures + 1 : 0;
	if (cancelled != NULL || told_to_stop(pass))
	{
		/* nobody's fault: it is due as it was */
		failures = task->failures;
		task->next_run = now;
		text = "interrupted";
	}
	else
	{
		task->next_run = later_by(now, outcome.nfailed > 0 ? wait_after_failures(failures, task->every_ms) : task->every_ms);
		text = describe(&outcome);
	}
	task->failures = failures;
	if (pass->recorded)
	{
		record(task, outcome.started_at, text, failures, task->next_run);
		commit_locally();
		next_transaction(pass);
	}
	if (cancelled != NULL && !told_to_stop(pass))
		ReThrowError(cancelled);
}

/*
 * Between two steps of a task, the worker sees to what is due and comes round
 * more often.
 */
static void
run_due_before(Pass *pass, const Task *than)
{
	TimestampTz now;

	if (!pass->in_worker)
		return;
	now = GetCurrentTimestamp();
	for (int i = 0; i < pass->ntasks; i++)
	{
		Task *task = &pass->tasks[i];

		if (task != than && task->every_ms < than->every_ms && task->next_run <= now && !told_to_stop(pass))
			run_task(pass, task);
	}
}

static void
pass_begin(Pass *pass, MemoryContext parent)
{
	pass->context = AllocSetContextCreate(parent, "techally maintenance", ALLOCSET_DEFAULT_SIZES);
	pass->step_context = AllocSetContextCreate(pass->context, "techally maintenance step", ALLOCSET_DEFAULT_SIZES);
	pass->recorded = has_privs_of_role(GetUserId(), results_owner());
	MemoryContextSwitchTo(pass->step_context);
}

/*
 * ta_maintenance_round
 *		The worker's pass: everything that is due.  Returns when the next task
 *		is, DT_NOEND for never.
 *
 * Called in a transaction with a snapshot, and leaves another such open.  Ends early once
 * *give_way is true.  Raises only what is not an item's fault.
 */
TimestampTz
ta_maintenance_round(volatile sig_atomic_t *give_way)
{
	Pass		pass = {0};
	TimestampTz next = DT_NOEND;

	pass.in_worker = pass.only_due = true;
	pass.give_way = give_way;
	pass_begin(&pass, TopMemoryContext);
	load_tasks(&pass, NULL);

	for (int i = 0; i < pass.ntasks; i++)
	{
		Task *task = &pass.tasks[i];

		if (!told_to_stop(&pass) && !task->done && task->next_run <= GetCurrentTimestamp())
			run_task(&pass, task);
	}
	for (int i = 0; i < pass.ntasks; i++)
		next = Min(next, pass.tasks[i].next_run);
	MemoryContextSwitchTo(TopTransactionContext);
	MemoryContextDelete(pass.context);
	return next;
}

PG_FUNCTION_INFO_V1(ta_run_maintenance);

/*
 * run_maintenance(tasks text[], only_due boolean)
 *		A pass over the tasks that are named, NULL for all that are enabled;
 *		only_due: over those of them whose time has come.
 *
 * A procedure that commits step by step.  What fails is a WARNING and stands
 * in techally.worker_tasks; the others go on.  Raises 25001 inside a
 * transaction block, 22023 for an unknown task, 25006 on a standby.
 */
Datum
ta_run_maintenance(PG_FUNCTION_ARGS)
{
	ArrayType  *named = PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P_COPY(0);
	bool		only_due = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	Pass		pass = {0};
	TimestampTz now = GetCurrentTimestamp();

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("run_maintenance() cannot run inside a transaction block"),
				 errdetail("It commits step by step.")));
	PreventCommandIfReadOnly("run_maintenance()");

	pass.only_due = only_due;
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	pass_begin(&pass, PortalContext);
	load_tasks(&pass, named);
	for (int i = 0; i < pass.ntasks; i++)
	{
		Task *task = &pass.tasks[i];

		if (!task->done && (!only_due || task->next_run <= now))
			run_task(&pass, task);
	}
	MemoryContextSwitchTo(PortalContext);
	MemoryContextDelete(pass.context);
	SPI_finish();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(ta_maintain_view);

/*
 * maintain_view(target regclass, refresh boolean) returns void
 *		Has maintenance refresh a materialized view, or not.
 *
 * Raises 42809 where it is none, 42501 where the caller does not own it, 22004
 * for NULL.
 */
Datum
ta_maintain_view(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"target", "refresh"};
	TaFrame					 frame;
	Oid						 relid;
	Datum					 values[2];

	ta_require_arguments(fcinfo, names, lengthof(names));
	relid = PG_GETARG_OID(0);
	if (get_rel_relkind(relid) != RELKIND_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a materialized view", get_rel_name(relid) ? get_rel_name(relid) : "?")));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_MATVIEW, get_rel_name(relid));
	values[0] = ObjectIdGetDatum(relid);
	values[1] = PG_GETARG_DATUM(1);
	ta_frame_begin(&frame, results_owner());
	ta_execute(engine_namespace(), &upsert_view, SPI_OK_INSERT, values, NULL);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}
