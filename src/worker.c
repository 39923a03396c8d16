/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker: a launcher, and a worker a database for as long as
 *	  there is something due in it.
 *
 * With techally in shared_preload_libraries a launcher sleeps until the next
 * task of any database in techally.databases is due, and starts a worker for
 * that database.  The worker connects, does what is due (maintenance.c), leaves
 * word when the next task is, and goes away.
 *
 * That it does not stay is what lets others have the database to themselves:
 * DROP DATABASE, ALTER DATABASE RENAME and CREATE DATABASE ... TEMPLATE refuse
 * while anybody is connected.  While a worker is at work, the launcher looks
 * whether somebody waits for the lock that those commands take on the
 * database, and if so tells the worker to stop; the commands wait for up to
 * five seconds (CountOtherDBBackends), we look every quarter of one.
 *
 * Invariants:
 * - The launcher is connected to no database and has no transaction open while
 *	 it sleeps.  Nothing runs on a standby: BgWorkerStart_RecoveryFinished.
 * - A slot in shared memory belongs to one database of the launcher's list; the
 *	 launcher alone hands it out, the slot's worker writes next_run into it.
 * - A worker that ends without a word is taken for a failure and started again
 *	 later, each time twice as late.
 * - No worker outlives its launcher by more than the step that it is at: nobody
 *	 would look after it.
 *
 * Locks: the shared state has a spinlock, held for a few instructions.  The
 * launcher takes a database's lock only if it is free, and gives it up at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "maintenance.h"
#include "worker.h"

#define MAX_DATABASES	128
#define WATCH_MS		250				 /* how often a running worker is looked after */
#define SHORTEST_MS		500				 /* between two rounds of a database */
#define KILL_AFTER_MS	1000			 /* a worker that was told to stop and does not */
#define RETRY_MS		(2 * 1000)		 /* after giving way, and where there was no process to be had */
#define FIRST_BACKOFF	(10 * 1000)		 /* after a worker failed */
#define LONGEST_BACKOFF (3600 * 1000)	 /* likewise, at most */
#define ABSENT_MS		(10 * 60 * 1000) /* between looks for a missing extension or database, at most */

/* What a worker and the launcher say to each other. */
typedef struct WorkerSlot
{
	Oid			dboid;	  /* InvalidOid: free */
	bool		reported; /* the worker came to its end */
	TimestampTz next_run; /* when it said that it is wanted again */
	pid_t		pid;	  /* 0: none is running */
} WorkerSlot;

typedef struct WorkerShared
{
	slock_t	   mutex;
	pid_t	   launcher_pid; /* 0: none is running */
	Latch	  *launcher_latch;
	bool	   look_again; /* something happened in a database that no slot has */
	WorkerSlot slots[MAX_DATABASES];
} WorkerShared;

/* A database of techally.databases, as the launcher sees it. */
typedef struct Database
{
	char				   *name;
	Oid						oid; /* InvalidOid: not looked up, or not there */
	int						slot;
	BackgroundWorkerHandle *handle; /* NULL: none is running */
	TimestampTz				next_start;
	int						failures;
	const char			   *complaint;	  /* the last trouble that was spoken of, NULL: none */
	TimestampTz				told_to_stop; /* 0: not */
} Database;

static char *databases = NULL;
static int	 max_workers = 2;

static WorkerShared *shared = NULL;
static bool			 wake_at_commit = false;

static volatile sig_atomic_t give_way = false;

PGDLLEXPORT void ta_launcher_main(Datum arg);
PGDLLEXPORT void ta_worker_main(Datum arg);

/*
 * Settings and shared memory
 */

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char *raw = pstrdup(*newval);
	List *names;

	if (!SplitGUCList(raw, ',', &names))
	{
		GUC_check_errdetail("List syntax is invalid.");
		return false;
	}
	if (list_length(names) > MAX_DATABASES)
	{
		GUC_check_errdetail("There may be at most %d databases.", MAX_DATABASES);
		return false;
	}
	list_free(names);
	return true;
}

static void
startup_shared(void)
{
	bool found;

	shared = ShmemInitStruct("techally worker", sizeof(WorkerShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(WorkerShared));
		SpinLockInit(&shared->mutex);
	}
}

/* What changed is worth a look once it is committed. */
static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_at_commit && shared != NULL)
	{
		Latch *launcher;
		bool   known = false;

		SpinLockAcquire(&shared->mutex);
		for (int i = 0; i < MAX_DATABASES; i++)
		{
			if (shared->slots[i].dboid == MyDatabaseId)
			{
				shared->slots[i].next_run = DT_NOBEGIN;
				known = true;
			}
		}
		if (!known)
			shared->look_again = true;
		launcher = shared->launcher_latch;
		SpinLockRelease(&shared->mutex);
		if (launcher != NULL)
			SetLatch(launcher);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_at_commit = false; /* whoever commits what is prepared does not know */
}

/*
 * ta_worker_init
 *		Defines the settings and, where the library is preloaded, registers the
 *		launcher.  Called once, by _PG_init.
 */
void
ta_worker_init(void)
{
	BackgroundWorker worker = {0};

	DefineCustomStringVariable("techally.databases",
							   "The databases that the background worker keeps house in.",
							   "A list of names. Needs techally in shared_preload_libraries.",
							   &databases, "",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   check_databases, NULL, NULL);
	DefineCustomIntVariable("techally.max_workers",
							"How many databases the background worker sees to at the same time.",
							NULL,
							&max_workers, 2, 1, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	RegisterXactCallback(transaction_ended, NULL);

	if (!process_shared_preload_libraries_in_progress)
		return;

	ta_request_shared_memory(sizeof(WorkerShared), startup_shared);

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "techally", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "ta_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "techally launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "techally launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

/*
 * The launcher
 */

static MemoryContext launcher_context;
static Database		*list = NULL;
static int			 nlist = 0;

/* Whoever comes next does not know our workers: they are to stop. */
static void
launcher_gone(int code, Datum arg)
{
	pid_t pid;

	for (int i = 0; i < nlist; i++)
	{
		if (list[i].handle != NULL && GetBackgroundWorkerPid(list[i].handle, &pid) == BGWH_STARTED)
			kill(pid, SIGINT);
	}
	SpinLockAcquire(&shared->mutex);
	shared->launcher_pid = 0;
	shared->launcher_latch = NULL;
	SpinLockRelease(&shared->mutex);
}

static int
take_slot(void)
{
	for (int slot = 0; slot < MAX_DATABASES; slot++)
	{
		int user;

		for (user = 0; user < nlist; user++)
		{
			if (list[user].slot == slot)
				break;
		}
		if (user == nlist)
			return slot;
	}
	return -1; /* cannot be: the list is no longer than that */
}

/*
 * The list follows the setting.  Everything in it is looked at again at once;
 * a running worker of a database that went out of the list stays in it until
 * it has ended.
 */
static void
read_databases(void)
{
	List	 *names;
	ListCell *lc;
	char	 *raw = MemoryContextStrdup(launcher_context, databases ? databases : "");
	Database *old = list;
	int		  nold = nlist;
	int		  nnew = 0;
	Database *new;

	if (!SplitGUCList(raw, ',', &names))
		names = NIL;
	new = MemoryContextAllocZero(launcher_context, sizeof(Database) * (list_length(names) + nold + 1));
	foreach(lc, names)
	{
		char *name = (char *) lfirst(lc);
		bool  seen = false;

		truncate_identifier(name, strlen(name), false); /* as CREATE DATABASE does */

		for (int i = 0; i < nnew; i++)
			seen = seen || strcmp(new[i].name, name) == 0;
		if (seen)
			continue;
		for (int i = 0; i < nold; i++)
		{
			if (old[i].name != NULL && strcmp(old[i].name, name) == 0)
			{
				new[nnew] = old[i];
				old[i].name = NULL;
				seen = true;
			}
		}
		if (!seen)
		{
			new[nnew].name = MemoryContextStrdup(launcher_context, name);
			new[nnew].slot = -1;
		}
		new[nnew].next_start = DT_NOBEGIN;
		new[nnew].failures = 0;
		new[nnew].complaint = NULL;
		nnew++;
	}
	for (int i = 0; i < nold; i++)
	{
		if (old[i].name == NULL)
			continue;
		if (old[i].handle != NULL && nnew < MAX_DATABASES)
		{
			new[nnew] = old[i];
			new[nnew].next_start = DT_NOEND;
			nnew++;
		}
		else
		{
			SpinLockAcquire(&shared->mutex);
			if (old[i].slot >= 0)
				shared->slots[old[i].slot].dboid = InvalidOid;
			SpinLockRelease(&shared->mutex);
			pfree(old[i].name);
		}
	}
	list = new;
	nlist = nnew;
	for (int i = 0; i < nlist; i++)
	{
		if (list[i].slot < 0)
			list[i].slot = take_slot();
	}
	if (old != NULL)
		pfree(old);
	list_free(names);
	pfree(raw);
}

static void
put_off(Database *database, int64 ms)
{
	database->next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/* Twice as late each time. */
static void
back_off(Database *database, int64 longest)
{
	put_off(database, Min((int64) FIRST_BACKOFF << Min(database->failures, 20), longest));
	database->failures++;
}

/*
 * Whether somebody wants the database to himself.  In a transaction; lets go
 * of the lock at once.
 */
static bool
database_is_wanted(Oid dboid)
{
	LOCKTAG tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, dboid, 0);
	if (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, RowExclusiveLock, false);
	return false;
}

/*
 * What stands in the way of a connection; NULL: nothing.  Reads the whole of
 * pg_database: without a database of our own there may be no index to read it
 * by, and no cache.
 */
static const char *
look_up(Database *database)
{
	Relation	  rel = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	  tuple;
	const char	 *trouble = "there is no such database";

	database->oid = InvalidOid;
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database row = (Form_pg_database) GETSTRUCT(tuple);

		if (strcmp(NameStr(row->datname), database->name) != 0)
			continue;
		database->oid = row->oid;
		if (!row->datallowconn)
			trouble = "it does not allow connections";
		else if (row->datconnlimit < -1)
			trouble = "it is invalid: a DROP DATABASE did not come to its end";
		else
			trouble = NULL;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return trouble;
}

/* Says once what stands in the way; trouble is a literal. */
static void
complain(Database *database, const char *trouble)
{
	if (database->complaint != trouble)
		ereport(LOG,
				(errmsg("techally cannot keep house in database \"%s\": %s", database->name, trouble),
				 errdetail("It is tried again from time to time; this is said once.")));
	database->complaint = trouble;
}

/* Starts a worker for a database whose time has come. */
static void
start_worker(Database *database)
{
	BackgroundWorker worker = {0};
	const char		*trouble;
	bool			 wanted;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	trouble = look_up(database);
	wanted = trouble == NULL && database_is_wanted(database->oid);
	CommitTransactionCommand();

	if (trouble != NULL)
	{
		complain(database, trouble);
		back_off(database, ABSENT_MS);
		return;
	}
	if (wanted)
	{
		put_off(database, RETRY_MS);
		return;
	}

	SpinLockAcquire(&shared->mutex);
	shared->slots[database->slot].dboid = database->oid;
	shared->slots[database->slot].reported = false;
	shared->slots[database->slot].next_run = DT_NOEND;
	shared->slots[database->slot].pid = 0;
	SpinLockRelease(&shared->mutex);

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(database->slot);
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "techally", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "ta_worker_main", sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "techally worker for %s", database->name);
	strlcpy(worker.bgw_type, "techally worker", sizeof(worker.bgw_type));
	database->told_to_stop = 0;
	if (!RegisterDynamicBackgroundWorker(&worker, &database->handle))
	{
		database->handle = NULL;
		complain(database, "max_worker_processes leaves no room for a worker");
		put_off(database, RETRY_MS);
	}
}

/* A worker has ended: when is the next one wanted? */
static void
worker_ended(Database *database)
{
	WorkerSlot said;

	SpinLockAcquire(&shared->mutex);
	said = shared->slots[database->slot];
	shared->slots[database->slot].pid = 0;
	SpinLockRelease(&shared->mutex);

	pfree(database->handle);
	database->handle = NULL;
	if (database->next_start == DT_NOEND)
		return; /* went out of the list */
	if (said.reported)
	{
		database->failures = 0;
		database->complaint = NULL;
		database->next_start = said.next_run == DT_NOBEGIN ? said.next_run : Max(said.next_run, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SHORTEST_MS));
	}
	else if (database->told_to_stop != 0)
		put_off(database, RETRY_MS);
	else
		back_off(database, LONGEST_BACKOFF);
}

/* Sees to a worker that runs: has it ended, is it in somebody's way? */
static void
watch_worker(Database *database)
{
	pid_t		pid;
	TimestampTz now;
	bool		wanted;

	switch (GetBackgroundWorkerPid(database->handle, &pid))
	{
		case BGWH_STOPPED:
			worker_ended(database);
			return;
		case BGWH_STARTED:
			break;
		default:
			return;
	}

	if (database->next_start == DT_NOEND)
		wanted = true; /* went out of the list */
	else
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		wanted = database_is_wanted(database->oid);
		CommitTransactionCommand();
	}
	if (!wanted)
		return;

	now = GetCurrentTimestamp();
	if (database->told_to_stop == 0)
	{
		database->told_to_stop = now;
		kill(pid, SIGINT);
	}
	else if (TimestampDifferenceExceeds(database->told_to_stop, now, KILL_AFTER_MS))
		TerminateBackgroundWorker(database->handle);
}

/* Somebody changed something that is worth a look. */
static void
take_calls(void)
{
	bool look_again;

	SpinLockAcquire(&shared->mutex);
	look_again = shared->look_again;
	shared->look_again = false;
	SpinLockRelease(&shared->mutex);

	for (int i = 0; i < nlist; i++)
	{
		if (list[i].handle != NULL || list[i].slot < 0)
			continue;
		SpinLockAcquire(&shared->mutex);
		if (shared->slots[list[i].slot].dboid == list[i].oid && OidIsValid(list[i].oid) &&
			shared->slots[list[i].slot].next_run == DT_NOBEGIN)
			list[i].next_start = DT_NOBEGIN;
		SpinLockRelease(&shared->mutex);

		/* perhaps one that was missing, or made anew under its name */
		if (look_again)
			list[i].next_start = DT_NOBEGIN;
	}
}

/*
 * ta_launcher_main
 *		The launcher's life; ends with the server.
 */
void
ta_launcher_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, SIG_IGN); /* there is nothing to cancel */
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	launcher_context = AllocSetContextCreate(TopMemoryContext, "techally launcher", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(launcher_context);

	before_shmem_exit(launcher_gone, (Datum) 0);
	SpinLockAcquire(&shared->mutex);
	shared->launcher_pid = MyProcPid;
	shared->launcher_latch = MyLatch;
	SpinLockRelease(&shared->mutex);
	read_databases();

	for (;;)
	{
		TimestampTz now;
		TimestampTz wake = DT_NOEND;
		int			running = 0;
		long		timeout;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			read_databases();
		}
		take_calls();

		for (int i = 0; i < nlist; i++)
		{
			if (list[i].handle != NULL)
				watch_worker(&list[i]);
			if (list[i].handle != NULL)
				running++;
		}
		now = GetCurrentTimestamp();
		for (int i = 0; i < nlist; i++)
		{
			if (list[i].handle == NULL && list[i].next_start <= now && running < max_workers)
			{
				start_worker(&list[i]);
				if (list[i].handle != NULL)
					running++;
			}
			if (list[i].handle == NULL && (list[i].next_start > now || running < max_workers))
				wake = Min(wake, list[i].next_start);
		}
		MemoryContextSwitchTo(launcher_context);
		pgstat_report_activity(STATE_IDLE, NULL);

		if (wake == DT_NOEND)
			timeout = -1;
		else
			timeout = (long) Min(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake), 24 * 3600 * 1000L);
		if (running > 0)
			timeout = timeout < 0 ? WATCH_MS : Min(timeout, WATCH_MS);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout >= 0 ? WL_TIMEOUT : 0),
						 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/*
 * The worker
 */

/* Told by the launcher that somebody wants the database: as a cancel would. */
static void
handle_give_way(SIGNAL_ARGS)
{
	int save_errno = errno;

	give_way = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Leaves word for the launcher. */
static void
report(int slot, TimestampTz next_run)
{
	SpinLockAcquire(&shared->mutex);
	if (shared->slots[slot].pid == MyProcPid)
	{
		/* a call that came while we were at work stands */
		if (shared->slots[slot].next_run != DT_NOBEGIN)
			shared->slots[slot].next_run = next_run;
		shared->slots[slot].reported = true;
	}
	SpinLockRelease(&shared->mutex);
}

/* What ALTER DATABASE or ALTER ROLE say about sessions is not meant for us. */
static void
pin_settings(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"}, /* since 17 */
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"check_function_bodies", "on"},
		{"transform_null_equals", "off"},
		{"array_nulls", "on"},
		{"standard_conforming_strings", "on"},
		{"default_tablespace", ""},
		{"plpgsql.extra_errors", "none"},
		{"row_security", "on"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}

static bool
extension_is_there(void)
{
	return OidIsValid(get_extension_oid("techally", true));
}

/*
 * ta_worker_main
 *		The life of a database's worker: one round of what is due.
 */
void
ta_worker_main(Datum arg)
{
	int					 slot = DatumGetInt32(arg);
	Oid					 dboid;
	volatile TimestampTz next;

	pqsignal(SIGHUP, SIG_IGN);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, handle_give_way);
	SpinLockAcquire(&shared->mutex);
	dboid = shared->slots[slot].dboid;
	shared->slots[slot].pid = MyProcPid;
	SpinLockRelease(&shared->mutex);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	pin_settings();

	next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ABSENT_MS);
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		pgstat_report_activity(STATE_RUNNING, "techally: looking for what is due");
		PushActiveSnapshot(GetTransactionSnapshot());
		if (extension_is_there() && !XactReadOnly)
			next = ta_maintenance_round(&give_way);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		QueryCancelPending = false;

		/* dropped under our hands, or told to stop: nothing to talk about */
		StartTransactionCommand();
		if (!give_way && extension_is_there())
			ReThrowError(error); /* logged on the way out, and tried again later */
		CommitTransactionCommand();
	}
	PG_END_TRY();

	if (!give_way)
		report(slot, next);
	proc_exit(0);
}

/*
 * What can be asked and said in SQL
 */

PG_FUNCTION_INFO_V1(ta_wake_worker);
PG_FUNCTION_INFO_V1(ta_worker_settings_changed);
PG_FUNCTION_INFO_V1(ta_worker_state);

/*
 * wake_worker() returns void
 *		Has the worker look at this database once this transaction commits;
 *		does nothing where there is no worker.
 */
Datum
ta_wake_worker(PG_FUNCTION_ARGS)
{
	wake_at_commit = true;
	PG_RETURN_VOID();
}

/*
 * worker_settings_changed() returns trigger
 *		Statement trigger of techally.maintenance_settings: see wake_worker.
 */
Datum
ta_worker_settings_changed(PG_FUNCTION_ARGS)
{
	wake_at_commit = true;
	PG_RETURN_POINTER(NULL);
}

/*
 * worker_state(OUT preloaded boolean, OUT launcher integer, OUT listed boolean, OUT worker integer)
 *		Whether there is a launcher, whether this database is one of those that
 *		techally.databases lists and it could be looked up, and the pid of the
 *		worker that is at work in it.
 */
Datum
ta_worker_state(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	Datum	  values[4];
	bool	  nulls[4] = {false, true, false, true};
	bool	  listed = false;
	char	 *raw = pstrdup(databases ? databases : "");
	char	 *own = get_database_name(MyDatabaseId);
	List	 *names;
	ListCell *lc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (SplitGUCList(raw, ',', &names))
	{
		foreach(lc, names)
			listed = listed || strcmp((const char *) lfirst(lc), own) == 0;
	}
	values[0] = BoolGetDatum(shared != NULL);
	values[2] = BoolGetDatum(listed);
	if (shared != NULL)
	{
		SpinLockAcquire(&shared->mutex);
		values[1] = Int32GetDatum(shared->launcher_pid);
		nulls[1] = shared->launcher_pid == 0;
		for (int i = 0; i < MAX_DATABASES; i++)
		{
			if (shared->slots[i].dboid == MyDatabaseId && shared->slots[i].pid != 0)
			{
				values[3] = Int32GetDatum(shared->slots[i].pid);
				nulls[3] = false;
			}
		}
		SpinLockRelease(&shared->mutex);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}
