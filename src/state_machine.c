/*-------------------------------------------------------------------------
 *
 * state_machine.c
 *	  State machines: data that says which states a column may take and how it
 *	  gets from one to another, and the trigger that holds the rows to it.
 *
 * A machine is a row of techally.machines.  attach_machine ties one to a column
 * (techally.machine_attachments) and installs row triggers.  They fire AFTER
 * the change, so that no later BEFORE trigger can slip a state past them, look
 * up the change in a matrix and write a row of history.
 *
 * The matrix is compiled once a backend for each table and column, and thrown
 * away by relcache invalidation: of the registry tables (every statement that
 * writes one sends it), of the table and of its history.  What replaces it is
 * read with the latest snapshot, never the transaction's: a REPEATABLE READ
 * transaction would keep its old definition for those that follow it in the
 * same backend.
 *
 * A compiled version that was replaced or invalidated is freed only when the
 * transaction ends.  So what a function of this file has looked up stays where
 * it is, whatever the triggers of a nested statement do to the cache.
 *
 * Lock order: the machine's row, then the tables, then their rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "array_util.h"
#include "compat.h"
#include "errors.h"
#include "request_util.h"
#include "row_reader.h"
#include "row_writer.h"
#include "spi_util.h"
#include "state_machine.h"
#include "trigger_util.h"

/* A definition is refused beyond these; the matrix is states squared. */
#define MAX_STATES		1000
#define MAX_TRANSITIONS 30000
#define MAX_NAME_BYTES	(NAMEDATALEN - 1)

static const char *const effect_names[] = {"reserve", "release", "sale", "restock"};

#define NEFFECTS  ((int) lengthof(effect_names))
#define NO_EFFECT (-1)

typedef struct MachineTransition
{
	char *event;
	int	  from;
	int	  to;
	int	  effect; /* index into effect_names, or NO_EFFECT */
} MachineTransition;

/* A definition, parsed and indexed; lives in one memory context. */
typedef struct Machine
{
	char			  *name;
	int				   nstates;
	char			 **states; /* in the order of the definition */
	int				  *sorted; /* states by name */
	int				   initial;
	bool			   states_given; /* the definition lists its states */
	int				   ntransitions;
	MachineTransition *transitions; /* in the order of the definition */
	int16			  *matrix;		/* [from * nstates + to]: the first transition
								 * between the two, or -1 */
} Machine;

/*
 * The columns of a history, for those who write and read it without statements.
 * There is one for each shape and name of the key: they are never freed, for
 * their address is what the writer's and the reader's caches know them by.
 */
typedef struct HistoryShape
{
	NameData key;
	uint32	 flags;
} HistoryShape;

typedef struct HistoryColumns
{
	HistoryShape shape;
	TaColumn	 columns[9];
	int			 ncolumns;
	TaColumn	 sequence[2]; /* the key, then the sequence */
	bool		 has_sequence;
} HistoryColumns;

/* Where a change of state is written down, and the statements that do it. */
typedef struct History
{
	Oid					  relid;
	Oid					  owner;
	char				 *qualified;
	int					  nkeys;
	AttrNumber			  target_key[INDEX_MAX_KEYS];	/* columns of the attached table */
	char				 *history_key[INDEX_MAX_KEYS];	/* columns of the history */
	Oid					  key_operator[INDEX_MAX_KEYS]; /* target's = history's */
	Oid					  key_type[INDEX_MAX_KEYS];
	bool				  may_precede; /* history may exist before the row does */
	Oid					  from_type;   /* an enum's type, or text */
	Oid					  to_type;
	bool				  has_sequence;
	bool				  has_event;
	bool				  has_actor;
	bool				  has_note;
	bool				  has_request_id;
	bool				  has_created_at;
	SPIPlanPtr			  first_plan; /* the row is new */
	SPIPlanPtr			  next_plan;
	const HistoryColumns *direct; /* NULL: statements only */
} History;

/* A table's column under its machine, as one version of the registry has it. */
typedef struct Attachment
{
	MemoryContext	   context; /* holds this and all it points at */
	bool			   valid;	/* cleared by invalidation */
	Oid				   relid;
	Oid				   root;		  /* the attached table: relid or an ancestor */
	Oid				   history_relid; /* InvalidOid: none is kept */
	AttrNumber		   attnum;		  /* in relid */
	bool			   is_enum;
	Machine			  *machine;
	History			  *history; /* NULL until the first row is written */
	struct Attachment *next_retired;
} Attachment;

typedef struct AttachmentKey
{
	Oid		 relid;
	NameData column;
} AttachmentKey;

typedef struct AttachmentEntry
{
	AttachmentKey key;
	Attachment	 *attachment; /* NULL: none loaded */
} AttachmentEntry;

/* A state as it stands in a row; data is NULL for NULL, and not terminated. */
typedef struct State
{
	const char *data;
	int			length;
} State;

/* A row that an UPDATE is moving to another partition. */
typedef struct MovedRow
{
	Oid				 root;
	AttrNumber		 root_attnum;
	CommandId		 cid;
	char			*state;
	struct MovedRow *next;
} MovedRow;

typedef struct PushedContext
{
	TaTransitionContext *context;
	SubTransactionId	 subid;
} PushedContext;

static HTAB		  *history_shapes = NULL;
static HTAB		  *attachments = NULL;
static Attachment *retired = NULL;
static bool		   sweep_needed = false;
static uint64	   invalidations = 0;
static Oid		   machines_relid = InvalidOid;
static Oid		   attachments_relid = InvalidOid;

/*
 * The pushed contexts lie in C frames that an error may have left, so what the
 * unwinding must know of them is kept here.
 */
static PushedContext *pushed = NULL;
static int			  npushed = 0;
static int			  pushed_size = 0;

static MovedRow *moved_rows = NULL; /* in TopTransactionContext */

#define invalid_machine(name, ...)                                \
	ereport(ERROR,                                                \
			(errcode(TA_ERRCODE_INVALID_MACHINE),                 \
			 errmsg("state machine \"%s\" is not valid", (name)), \
			 errdetail(__VA_ARGS__)))

/* ---------------------------------------------------------------------
 * Definitions
 * ---------------------------------------------------------------------
 */

static int
compare_states(const void *a, const void *b, void *machine)
{
	char **states = ((Machine *) machine)->states;

	return strcmp(states[*(const int *) a], states[*(const int *) b]);
}

/* The index of a state, or -1. */
static int
find_state(const Machine *machine, const char *data, int length)
{
	int low = 0;
	int high = machine->nstates - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		const char *state = machine->states[machine->sorted[middle]];
		int			order = strncmp(data, state, length);

		if (order == 0 && state[length] != '\0')
			order = -1;
		if (order == 0)
			return machine->sorted[middle];
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return -1;
}

static int
find_state_name(const Machine *machine, const char *state)
{
	return find_state(machine, state, strlen(state));
}

/* The index of a state that is added where it is new; before they are sorted. */
static int
intern_state(Machine *machine, const char *state)
{
	for (int i = 0; i < machine->nstates; i++)
	{
		if (strcmp(machine->states[i], state) == 0)
			return i;
	}
	if (machine->nstates == MAX_STATES)
		invalid_machine(machine->name, "A machine has at most %d states.", MAX_STATES);
	machine->states[machine->nstates] = pstrdup(state);
	return machine->nstates++;
}

/* A name out of a definition: a string that is neither empty nor overlong. */
static char *
name_value(const char *machine, JsonbValue *value, const char *what)
{
	if (value->type != jbvString)
		invalid_machine(machine, "%s must be a string.", what);
	if (value->val.string.len == 0)
		invalid_machine(machine, "%s is empty.", what);
	if (value->val.string.len > MAX_NAME_BYTES)
		invalid_machine(machine, "%s is longer than %d bytes.", what, MAX_NAME_BYTES);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static JsonbContainer *
array_value(const char *machine, JsonbValue *value, const char *what)
{
	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		invalid_machine(machine, "\"%s\" must be an array.", what);
	return value->val.binary.data;
}

static void
parse_transition(Machine *machine, JsonbValue *value, int position)
{
	MachineTransition *transition = &machine->transitions[machine->ntransitions];
	JsonbIterator	  *it;
	JsonbIteratorToken token;
	JsonbValue		   v;
	char			  *key = NULL;
	char			  *from = NULL;
	char			  *to = NULL;

	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		invalid_machine(machine->name, "transitions[%d] must be an object.", position);

	transition->event = NULL;
	transition->effect = NO_EFFECT;
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char *what;

		if (token == WJB_KEY)
			key = pnstrdup(v.val.string.val, v.val.string.len);
		if (token != WJB_VALUE)
			continue;

		what = psprintf("\"%s\" of transitions[%d]", key, position);
		if (strcmp(key, "event") == 0)
			transition->event = name_value(machine->name, &v, what);
		else if (strcmp(key, "from") == 0)
			from = name_value(machine->name, &v, what);
		else if (strcmp(key, "to") == 0)
			to = name_value(machine->name, &v, what);
		else if (strcmp(key, "effect") == 0)
		{
			char *effect;

			if (v.type == jbvNull)
				continue;
			effect = name_value(machine->name, &v, what);
			for (int i = 0; i < NEFFECTS; i++)
			{
				if (strcmp(effect, effect_names[i]) == 0)
					transition->effect = i;
			}
			if (transition->effect == NO_EFFECT)
				invalid_machine(machine->name,
								"%s is \"%s\"; it can be reserve, release, sale or restock.", what, effect);
		}
		else
			invalid_machine(machine->name, "Unknown member %s.", what);
	}
	if (transition->event == NULL || from == NULL || to == NULL)
		invalid_machine(machine->name, "transitions[%d] lacks \"%s\".", position,
						transition->event == NULL ? "event" : from == NULL ? "from"
																		   : "to");

	if (machine->states_given)
	{
		for (int i = 0; i < 2; i++)
		{
			const char *state = i == 0 ? from : to;
			bool		known = false;

			for (int s = 0; s < machine->nstates; s++)
				known = known || strcmp(machine->states[s], state) == 0;
			if (!known)
				invalid_machine(machine->name, "Unknown state \"%s\" in transitions[%d].", state, position);
		}
	}
	transition->from = intern_state(machine, from);
	transition->to = intern_state(machine, to);
	if (transition->from == transition->to && transition->effect != NO_EFFECT)
		invalid_machine(machine->name,
						"transitions[%d] changes no state, so it can have no effect.", position);
	machine->ntransitions++;
}

/* Two targets for one event, or the same transition twice. */
static void
check_deterministic(const Machine *machine)
{
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const MachineTransition *a = &machine->transitions[i];

		for (int j = 0; j < i; j++)
		{
			const MachineTransition *b = &machine->transitions[j];

			if (a->from != b->from || strcmp(a->event, b->event) != 0)
				continue;
			if (a->to == b->to)
				invalid_machine(machine->name, "Event \"%s\" from state \"%s\" to \"%s\" is defined twice.",
								a->event, machine->states[a->from], machine->states[a->to]);
			invalid_machine(machine->name, "Event \"%s\" has two targets from state \"%s\": \"%s\" and \"%s\".",
							a->event, machine->states[a->from],
							machine->states[b->to], machine->states[a->to]);
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/* Marks all that can be reached from the states that are marked already. */
static void
mark_reachable(const Machine *machine, bool *reached)
{
	bool grew;

	do
	{
		grew = false;
		for (int i = 0; i < machine->ntransitions; i++)
		{
			const MachineTransition *transition = &machine->transitions[i];

			if (reached[transition->from] && !reached[transition->to])
				reached[transition->to] = grew = true;
		}
		CHECK_FOR_INTERRUPTS();
	} while (grew);
}

static void
check_reachable(const Machine *machine)
{
	bool		  *reached = palloc0(machine->nstates * sizeof(bool));
	StringInfoData lost;

	initStringInfo(&lost);
	reached[machine->initial] = true;
	mark_reachable(machine, reached);
	for (int i = 0; i < machine->nstates; i++)
	{
		if (!reached[i])
			appendStringInfo(&lost, "%s\"%s\"", lost.len > 0 ? ", " : "", machine->states[i]);
	}
	if (lost.len > 0)
		invalid_machine(machine->name, "Unreachable from the initial state \"%s\": %s.",
						machine->states[machine->initial], lost.data);
}

/*
 * Compiles a definition in the current memory context.  Raises TA008 for
 * whatever is wrong with it.
 */
static Machine *
compile_machine(const char *name, Jsonb *definition)
{
	Machine			  *machine = palloc0(sizeof(Machine));
	JsonbContainer	  *transitions = NULL;
	JsonbContainer	  *states = NULL;
	char			  *initial = NULL;
	JsonbIterator	  *it;
	JsonbIteratorToken token;
	JsonbValue		   v;
	char			  *key = NULL;
	int				   ntransitions;

	machine->name = pstrdup(name);
	if (!JB_ROOT_IS_OBJECT(definition))
		invalid_machine(name, "The definition must be an object with \"initial\" and \"transitions\".");

	it = JsonbIteratorInit(&definition->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		/* the whole is an object: skipping nested values, these are its members */
		if (token == WJB_KEY)
			key = pnstrdup(v.val.string.val, v.val.string.len);
		if (token != WJB_VALUE)
			continue;

		if (strcmp(key, "initial") == 0)
			initial = name_value(name, &v, "\"initial\"");
		else if (strcmp(key, "transitions") == 0)
			transitions = array_value(name, &v, key);
		else if (strcmp(key, "states") == 0)
			states = array_value(name, &v, key);
		else
			invalid_machine(name, "Unknown member \"%s\".", key);
	}
	if (initial == NULL)
		invalid_machine(name, "No initial state: the definition lacks \"initial\".");
	if (transitions == NULL)
		invalid_machine(name, "The definition lacks \"transitions\".");

	machine->states = palloc(MAX_STATES * sizeof(char *));
	if (states != NULL)
	{
		machine->states_given = true;
		for (int i = 0; i < (int) JsonContainerSize(states); i++)
		{
			int	  before = machine->nstates;
			char *state = name_value(name, getIthJsonbValueFromContainer(states, i),
									 psprintf("states[%d]", i));

			intern_state(machine, state);
			if (machine->nstates == before)
				invalid_machine(name, "State \"%s\" is listed twice.", state);
		}
	}

	/* where they are listed, this must not add to them */
	machine->initial = intern_state(machine, initial);
	if (states != NULL && machine->nstates > (int) JsonContainerSize(states))
		invalid_machine(name, "Unknown state \"%s\" in \"initial\".", initial);

	ntransitions = JsonContainerSize(transitions);
	if (ntransitions > MAX_TRANSITIONS)
		invalid_machine(name, "A machine has at most %d transitions.", MAX_TRANSITIONS);
	machine->transitions = palloc(Max(ntransitions, 1) * sizeof(MachineTransition));
	for (int i = 0; i < ntransitions; i++)
		parse_transition(machine, getIthJsonbValueFromContainer(transitions, i), i);

	check_deterministic(machine);
	check_reachable(machine);

	machine->states = repalloc(machine->states, machine->nstates * sizeof(char *));
	machine->sorted = palloc(machine->nstates * sizeof(int));
	for (int i = 0; i < machine->nstates; i++)
		machine->sorted[i] = i;
	qsort_arg(machine->sorted, machine->nstates, sizeof(int), compare_states, machine);

	machine->matrix = palloc(sizeof(int16) * machine->nstates * machine->nstates);
	for (int i = 0; i < machine->nstates * machine->nstates; i++)
		machine->matrix[i] = -1;
	for (int i = machine->ntransitions - 1; i >= 0; i--)
	{
		const MachineTransition *transition = &machine->transitions[i];

		machine->matrix[transition->from * machine->nstates + transition->to] = i;
	}
	return machine;
}

/* ---------------------------------------------------------------------
 * The registry
 *
 * Read by plain scans rather than SPI: whoever changes a row need have no
 * rights on it.
 * ---------------------------------------------------------------------
 */

static void
raise_mismatch(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the library techally does not fit the extension in this database"),
			 errhint("Run ALTER EXTENSION techally UPDATE.")));
}

/* A table of ours, or one of its indexes. */
static Oid
registry_relation(const char *name)
{
	Oid nspid = get_namespace_oid("techally", true);
	Oid relid = OidIsValid(nspid) ? get_relname_relid(name, nspid) : InvalidOid;

	if (!OidIsValid(relid))
		raise_mismatch();
	return relid;
}

static AttrNumber
registry_column(Relation rel, const char *name, Oid type)
{
	AttrNumber attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum == InvalidAttrNumber ||
		TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid != type)
		raise_mismatch();
	return attnum;
}

/* A scan of a registry table, and what ends it. */
typedef struct RegistryScan
{
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
} RegistryScan;

static void
begin_registry_scan(RegistryScan *scan, const char *index, int nkeys, ScanKey keys)
{
	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->scan = systable_beginscan(scan->rel,
									index ? registry_relation(index) : InvalidOid,
									index != NULL, scan->snapshot, nkeys, keys);
}

static void
end_registry_scan(RegistryScan *scan)
{
	systable_endscan(scan->scan);
	UnregisterSnapshot(scan->snapshot);
	table_close(scan->rel, AccessShareLock);
}

/* The definition of a machine, palloc'd; NULL where there is none. */
static Jsonb *
read_definition(const char *name)
{
	RegistryScan scan;
	ScanKeyData	 key;
	HeapTuple	 tuple;
	AttrNumber	 definition;
	Jsonb		*result = NULL;

	scan.rel = table_open(registry_relation("machines"), AccessShareLock);
	machines_relid = RelationGetRelid(scan.rel);
	definition = registry_column(scan.rel, "definition", JSONBOID);

	/* the column has collation "C", which is what a ScanKey assumes */
	ScanKeyInit(&key, registry_column(scan.rel, "name", TEXTOID), BTEqualStrategyNumber,
				F_TEXTEQ, CStringGetTextDatum(name));
	begin_registry_scan(&scan, "machines_pkey", 1, &key);
	if (HeapTupleIsValid(tuple = systable_getnext(scan.scan)))
	{
		bool  isnull;
		Datum value = heap_getattr(tuple, definition, RelationGetDescr(scan.rel), &isnull);

		if (!isnull)
			result = DatumGetJsonbPCopy(value);
	}
	end_registry_scan(&scan);
	return result;
}

/* A row of machine_attachments. */
typedef struct RegistryRow
{
	Oid	  target;
	char *column;
	char *machine;
	Oid	  history;
} RegistryRow;

/*
 * The attachments of a table, or where it is InvalidOid those of a machine, in
 * the order of their columns and tables: a List of palloc'd RegistryRow.
 */
static List *
read_attachments(Oid target, const char *machine)
{
	RegistryScan scan;
	ScanKeyData	 key;
	HeapTuple	 tuple;
	AttrNumber	 columns[4];
	List		*result = NIL;

	scan.rel = table_open(registry_relation("machine_attachments"), AccessShareLock);
	attachments_relid = RelationGetRelid(scan.rel);
	columns[0] = registry_column(scan.rel, "target", REGCLASSOID);
	columns[1] = registry_column(scan.rel, "column_name", NAMEOID);
	columns[2] = registry_column(scan.rel, "machine", TEXTOID);
	columns[3] = registry_column(scan.rel, "history", REGCLASSOID);

	if (OidIsValid(target))
		ScanKeyInit(&key, columns[0], BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(target));
	else
		ScanKeyInit(&key, columns[2], BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(machine));
	begin_registry_scan(&scan, OidIsValid(target) ? "machine_attachments_pkey" : NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan.scan)))
	{
		RegistryRow *row = palloc(sizeof(RegistryRow));
		Datum		 values[4];
		bool		 nulls[4];

		for (int i = 0; i < 4; i++)
			values[i] = heap_getattr(tuple, columns[i], RelationGetDescr(scan.rel), &nulls[i]);
		row->target = DatumGetObjectId(values[0]);
		row->column = pstrdup(NameStr(*DatumGetName(values[1])));
		row->machine = TextDatumGetCString(values[2]);
		row->history = nulls[3] ? InvalidOid : DatumGetObjectId(values[3]);
		result = lappend(result, row);
	}
	end_registry_scan(&scan);
	return result;
}

/* The attachment of one column of exactly this table, or NULL. */
static RegistryRow *
read_attachment(Oid target, const char *column)
{
	ListCell *cell;

	foreach(cell, read_attachments(target, NULL))
	{
		RegistryRow *row = lfirst(cell);

		if (strcmp(row->column, column) == 0)
			return row;
	}
	return NULL;
}

/* The attachment that rules a column: the table's own, or else an ancestor's. */
static RegistryRow *
ruling_attachment(Oid relid, const char *column)
{
	RegistryRow *row = read_attachment(relid, column);
	ListCell	*cell;

	if (row != NULL || !get_rel_relispartition(relid))
		return row;
	foreach(cell, get_partition_ancestors(relid))
	{
		if ((row = read_attachment(lfirst_oid(cell), column)) != NULL)
			return row;
	}
	return NULL;
}

/* ---------------------------------------------------------------------
 * The cache of compiled attachments
 * ---------------------------------------------------------------------
 */

/* A type that holds states: text, varchar, a domain over them, or an enum. */
static bool
is_state_type(Oid type, bool *is_enum)
{
	Oid base = getBaseType(type);

	*is_enum = type_is_enum(base);
	return *is_enum || base == TEXTOID || base == VARCHAROID;
}

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

static void
retire(Attachment *attachment)
{
	attachment->valid = false;
	attachment->next_retired = retired;
	retired = attachment;
	sweep_needed = true;
}

static void
free_attachment(Attachment *attachment)
{
	if (attachment->history != NULL)
	{
		if (attachment->history->first_plan != NULL)
			SPI_freeplan(attachment->history->first_plan);
		if (attachment->history->next_plan != NULL)
			SPI_freeplan(attachment->history->next_plan);
	}
	MemoryContextDelete(attachment->context);
}

/* The transaction has ended: nobody holds a pointer into the cache any more. */
static void
sweep(void)
{
	HASH_SEQ_STATUS	 status;
	AttachmentEntry *entry;

	sweep_needed = false;
	while (retired != NULL)
	{
		Attachment *attachment = retired;

		retired = attachment->next_retired;
		free_attachment(attachment);
	}
	hash_seq_init(&status, attachments);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->attachment != NULL && entry->attachment->valid)
			continue;
		if (entry->attachment != NULL)
			free_attachment(entry->attachment);
		hash_search(attachments, &entry->key, HASH_REMOVE, NULL);
	}
}

static void
relation_changed(Datum arg, Oid relid)
{
	bool			 all = !OidIsValid(relid) || relid == machines_relid || relid == attachments_relid;
	HASH_SEQ_STATUS	 status;
	AttachmentEntry *entry;

	invalidations++;
	if (hash_get_num_entries(attachments) == 0)
		return;
	hash_seq_init(&status, attachments);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		Attachment *attachment = entry->attachment;

		if (attachment != NULL &&
			(all || attachment->relid == relid || attachment->root == relid ||
			 attachment->history_relid == relid))
			attachment->valid = false;
		sweep_needed = sweep_needed || attachment == NULL || !attachment->valid;
	}
}

/* A schema may have been renamed, and the plans name the history's. */
static void
namespace_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	relation_changed(arg, InvalidOid);
}

/* Loads and compiles; returns NULL where the column is under no machine. */
static Attachment *
load_attachment(Oid relid, const char *column)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "techally machine",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	RegistryRow	 *row = ruling_attachment(relid, column);
	Attachment	 *attachment;
	Jsonb		 *definition;
	Oid			  type;

	if (row == NULL)
	{
		MemoryContextSwitchTo(old_context);
		MemoryContextDelete(context);
		return NULL;
	}

	definition = read_definition(row->machine);
	if (definition == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("state machine \"%s\" of column \"%s\" of table \"%s\" does not exist",
						row->machine, column, get_rel_name(relid)),
				 errhint("Define it with techally.define_machine.")));

	attachment = palloc0(sizeof(Attachment));
	attachment->context = context;
	attachment->relid = relid;
	attachment->root = row->target;
	attachment->history_relid = row->history;
	attachment->attnum = get_attnum(relid, column);
	if (attachment->attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\", which is under a state machine, does not exist any more",
						column, get_rel_name(relid)),
				 errhint("Run techally.detach_machine for this column, and techally.attach_machine for the one that took its place.")));
	type = get_atttype(relid, attachment->attnum);
	if (!is_state_type(type, &attachment->is_enum))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\", which is under a state machine, has type %s",
						column, get_rel_name(relid), format_type_be(type)),
				 errhint("Run techally.detach_machine for this column.")));
	attachment->machine = compile_machine(row->machine, definition);

	MemoryContextSwitchTo(old_context);
	MemoryContextSetParent(context, CacheMemoryContext);
	return attachment;
}

/*
 * The compiled attachment of a column, NULL where there is none.  What it
 * returns lives until the transaction ends.
 */
static Attachment *
find_attachment(Oid relid, const char *column)
{
	AttachmentKey	 key;
	AttachmentEntry *entry;
	Attachment		*attachment;
	uint64			 before;
	bool			 found;

	memset(&key, 0, sizeof(key));
	key.relid = relid;
	namestrcpy(&key.column, column);
	entry = hash_search(attachments, &key, HASH_FIND, NULL);
	if (entry != NULL && entry->attachment != NULL && entry->attachment->valid)
		return entry->attachment;

	before = invalidations;
	attachment = load_attachment(relid, column);

	/*
	 * Where anything was invalidated while we read, what we read serves this
	 * call and is read again by the next.
	 */
	if (attachment != NULL)
		attachment->valid = (invalidations == before);
	sweep_needed = sweep_needed || invalidations != before;

	entry = hash_search(attachments, &key, HASH_ENTER, &found);
	if (found && entry->attachment != NULL)
		retire(entry->attachment);
	entry->attachment = attachment;
	if (attachment == NULL)
		hash_search(attachments, &key, HASH_REMOVE, NULL);
	return attachment;
}

/* As find_attachment, but raises 55000 where there is none. */
static Attachment *
require_attachment(Oid relid, const char *column)
{
	Attachment *attachment = find_attachment(relid, column);

	if (attachment == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no state machine is registered for column \"%s\" of table \"%s\"",
						column, get_rel_name(relid)),
				 errhint("Run techally.adopt_store if the table belongs to a store, techally.attach_machine otherwise.")));
	return attachment;
}

/* ---------------------------------------------------------------------
 * Contexts of transitions
 * ---------------------------------------------------------------------
 */

/*
 * ta_transition_push
 *		Says what is to be recorded with the changes that follow, until
 *		ta_transition_pop.
 *
 * The context and what it points at belong to the caller.  An error that
 * unwinds the subtransaction of the push pops it.
 */
void
ta_transition_push(TaTransitionContext *context)
{
	if (npushed == pushed_size)
	{
		int size = Max(8, pushed_size * 2);

		if (pushed == NULL)
			pushed = MemoryContextAlloc(TopMemoryContext, size * sizeof(PushedContext));
		else
			pushed = repalloc(pushed, size * sizeof(PushedContext));
		pushed_size = size;
	}
	context->outer = npushed > 0 ? pushed[npushed - 1].context : NULL;
	pushed[npushed].context = context;
	pushed[npushed].subid = GetCurrentSubTransactionId();
	npushed++;
}

/*
 * ta_transition_pop
 *		Ends what the last ta_transition_push began.
 */
void
ta_transition_pop(TaTransitionContext *context)
{
	if (npushed == 0 || pushed[npushed - 1].context != context)
		elog(ERROR, "transition contexts do not nest");
	npushed--;
}

/*
 * ta_transition_current
 *		The innermost context for this table, NULL where there is none.
 */
const TaTransitionContext *
ta_transition_current(Oid relid)
{
	for (int i = npushed - 1; i >= 0; i--)
	{
		if (pushed[i].context->relid == relid)
			return pushed[i].context;
	}
	return NULL;
}

static const TaTransitionContext *
current_context(const Attachment *attachment)
{
	const TaTransitionContext *context;

	if (npushed == 0)
		return NULL;
	context = ta_transition_current(attachment->relid);
	if (context == NULL && attachment->root != attachment->relid)
		context = ta_transition_current(attachment->root);
	return context;
}

static void
transaction_ended(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			npushed = 0;
			moved_rows = NULL;
			if (sweep_needed)
				sweep();
			break;
		default:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId subid,
					 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (npushed > 0 && pushed[npushed - 1].subid >= subid)
			npushed--;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = npushed - 1; i >= 0 && pushed[i].subid >= subid; i--)
			pushed[i].subid = parent;
	}
}

/*
 * ta_state_machine_init
 *		Makes the cache and registers what keeps it true.  Called once, by
 *		_PG_init.
 */
void
ta_state_machine_init(void)
{
	HASHCTL ctl = {0};

	if (CacheMemoryContext == NULL)
		CreateCacheMemoryContext();
	ctl.keysize = sizeof(AttachmentKey);
	ctl.entrysize = sizeof(AttachmentEntry);
	ctl.hcxt = CacheMemoryContext;
	attachments = hash_create("techally machines", 16, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_changed, (Datum) 0);
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}

/* ---------------------------------------------------------------------
 * Questions, for other rooms
 *
 * relid is the attached table or one of its partitions.  What is returned is
 * palloc'd in the caller's context.  All but ta_machine_attached raise 55000
 * where the column is under no machine.
 * ---------------------------------------------------------------------
 */

static void
copy_transition(const Machine *machine, int index, TaTransition *transition)
{
	const MachineTransition *source = &machine->transitions[index];

	transition->event = pstrdup(source->event);
	transition->from = pstrdup(machine->states[source->from]);
	transition->to = pstrdup(machine->states[source->to]);
	transition->effect = source->effect == NO_EFFECT ? NULL : effect_names[source->effect];
}

static List *
append_transition(List *list, const Machine *machine, int index)
{
	TaTransition *transition = palloc(sizeof(TaTransition));

	copy_transition(machine, index, transition);
	return lappend(list, transition);
}

/*
 * The transition that joins two states, or -1: the context's where it names an
 * event, else the first defined.  *by_context says whether the context is
 * about this change.
 */
static int
joining_transition(const Attachment *attachment, int from, int to, bool *by_context)
{
	const Machine			  *machine = attachment->machine;
	const TaTransitionContext *context = current_context(attachment);
	int						   first;

	*by_context = false;
	if (from < 0 || to < 0)
		return -1;
	first = machine->matrix[from * machine->nstates + to];
	if (first < 0 || context == NULL)
		return first;
	if (context->event == NULL)
	{
		*by_context = true;
		return first;
	}
	for (int i = first; i < machine->ntransitions; i++)
	{
		const MachineTransition *transition = &machine->transitions[i];

		if (transition->from == from && transition->to == to &&
			strcmp(transition->event, context->event) == 0)
		{
			*by_context = true;
			return i;
		}
	}
	return first;
}

/*
 * ta_machine_attached
 *		Is this column under a machine?
 */
bool
ta_machine_attached(Oid relid, const char *column)
{
	return find_attachment(relid, column) != NULL;
}

/*
 * ta_machine_initial
 *		The state in which rows begin.
 */
const char *
ta_machine_initial(Oid relid, const char *column)
{
	const Machine *machine = require_attachment(relid, column)->machine;

	return pstrdup(machine->states[machine->initial]);
}

/*
 * ta_machine_has_state
 *		Does the machine know this state?
 */
bool
ta_machine_has_state(Oid relid, const char *column, const char *state)
{
	return find_state_name(require_attachment(relid, column)->machine, state) >= 0;
}

/*
 * ta_machine_event
 *		The transitions of an event, a List of TaTransition in the order of the
 *		definition; NIL where the machine has no such event.
 */
List *
ta_machine_event(Oid relid, const char *column, const char *event)
{
	const Machine *machine = require_attachment(relid, column)->machine;
	List		  *result = NIL;

	for (int i = 0; i < machine->ntransitions; i++)
	{
		if (strcmp(machine->transitions[i].event, event) == 0)
			result = append_transition(result, machine, i);
	}
	return result;
}

/*
 * ta_machine_leaving
 *		The transitions out of a state, a List of TaTransition in the order of
 *		the definition.
 */
List *
ta_machine_leaving(Oid relid, const char *column, const char *from)
{
	const Machine *machine = require_attachment(relid, column)->machine;
	int			   state = find_state_name(machine, from);
	List		  *result = NIL;

	for (int i = 0; i < machine->ntransitions; i++)
	{
		if (machine->transitions[i].from == state)
			result = append_transition(result, machine, i);
	}
	return result;
}

/*
 * ta_machine_transition
 *		Fills in the transition that a row takes from one state to another: that
 *		of the pushed context's event where it joins the two, else the first
 *		defined.  Returns false where the machine does not lead there.
 */
bool
ta_machine_transition(Oid relid, const char *column, const char *from, const char *to,
					  TaTransition *transition)
{
	const Attachment *attachment = require_attachment(relid, column);
	bool			  by_context;
	int				  index = joining_transition(attachment,
												 find_state_name(attachment->machine, from),
												 find_state_name(attachment->machine, to),
												 &by_context);

	if (index < 0)
		return false;
	copy_transition(attachment->machine, index, transition);
	return true;
}

/*
 * ta_machine_after_effect
 *		Is this a state from which a transition with this effect leads, or one
 *		that can be reached from such a state?
 */
bool
ta_machine_after_effect(Oid relid, const char *column, const char *effect, const char *state)
{
	const Machine *machine = require_attachment(relid, column)->machine;
	int			   wanted = find_state_name(machine, state);
	bool		  *reached;
	bool		   result;

	if (wanted < 0)
		return false;
	reached = palloc0(machine->nstates * sizeof(bool));
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const MachineTransition *transition = &machine->transitions[i];

		if (transition->effect != NO_EFFECT && strcmp(effect_names[transition->effect], effect) == 0)
			reached[transition->from] = true;
	}
	mark_reachable(machine, reached);
	result = reached[wanted];
	pfree(reached);
	return result;
}

/* What is allowed from a state, as the DETAIL of TA001. */
static char *
allowed_detail(const Machine *machine, const char *from, const char *to)
{
	StringInfoData detail;
	int			   state = from == NULL ? -1 : find_state_name(machine, from);
	bool		   any = false;

	initStringInfo(&detail);
	if (to != NULL && find_state_name(machine, to) < 0)
		appendStringInfo(&detail, "Machine \"%s\" has no state \"%s\". ", machine->name, to);
	if (from == NULL)
	{
		appendStringInfo(&detail, "A row begins in state \"%s\".", machine->states[machine->initial]);
		return detail.data;
	}
	if (state < 0)
	{
		appendStringInfo(&detail, "Machine \"%s\" has no state \"%s\".", machine->name, from);
		return detail.data;
	}
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const MachineTransition *transition = &machine->transitions[i];

		if (transition->from != state)
			continue;
		if (!any)
			appendStringInfo(&detail, "Allowed from \"%s\": ", from);
		appendStringInfo(&detail, "%s\"%s\" to \"%s\"", any ? ", " : "",
						 transition->event, machine->states[transition->to]);
		any = true;
	}
	if (any)
		appendStringInfoChar(&detail, '.');
	else
		appendStringInfo(&detail, "No transition leaves state \"%s\".", from);
	return detail.data;
}

static void raise_illegal(const Attachment *attachment, const char *column, const char *from,
						  const char *event, const char *to) pg_attribute_noreturn();

static void
raise_illegal(const Attachment *attachment, const char *column, const char *from,
			  const char *event, const char *to)
{
	char *message;

	if (event != NULL && from != NULL)
		message = psprintf("event \"%s\" is not allowed in state \"%s\"", event, from);
	else if (from == NULL)
		message = to == NULL ? psprintf("column \"%s\" needs a state", column)
							 : psprintf("no row can begin in state \"%s\"", to);
	else if (to == NULL)
		message = psprintf("transition from \"%s\" to no state is not allowed", from);
	else
		message = psprintf("transition from \"%s\" to \"%s\" is not allowed", from, to);

	ereport(ERROR,
			(errcode(TA_ERRCODE_ILLEGAL_TRANSITION),
			 errmsg_internal("%s", message),
			 errdetail_internal("%s", allowed_detail(attachment->machine, from, to)),
			 err_generic_string(PG_DIAG_SCHEMA_NAME, get_namespace_name(get_rel_namespace(attachment->relid))),
			 err_generic_string(PG_DIAG_TABLE_NAME, get_rel_name(attachment->relid)),
			 err_generic_string(PG_DIAG_COLUMN_NAME, column)));
}

/*
 * ta_machine_raise_illegal
 *		Raises TA001 for an event (event) or a bare change (to); from is NULL for
 *		a new row.  DETAIL lists what is allowed.
 */
void
ta_machine_raise_illegal(Oid relid, const char *column, const char *from,
						 const char *event, const char *to)
{
	raise_illegal(require_attachment(relid, column), column, from, event, to);
}

/* ---------------------------------------------------------------------
 * History
 * ---------------------------------------------------------------------
 */

#define invalid_history(relid, ...)                                                         \
	ereport(ERROR,                                                                          \
			(errcode(ERRCODE_INVALID_TABLE_DEFINITION),                                     \
			 errmsg("table \"%s\" cannot hold the history of states", get_rel_name(relid)), \
			 errdetail(__VA_ARGS__),                                                        \
			 errhint("It needs a foreign key to the table, from_status and to_status; sequence, event, actor, note, request_id and created_at are filled in where it has them. Mend it, or run techally.attach_machine with another one.")))

/* The foreign key by which the history names the rows of the target. */
static ForeignKeyCacheInfo *
history_foreign_key(Relation history, Relation target)
{
	Bitmapset			*primary_key = RelationGetIndexAttrBitmap(target, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	ForeignKeyCacheInfo *to_primary = NULL;
	ForeignKeyCacheInfo *any = NULL;
	int					 nprimary = 0;
	int					 nany = 0;
	ListCell			*cell;

	foreach(cell, RelationGetFKeyList(history))
	{
		ForeignKeyCacheInfo *fk = lfirst(cell);
		Bitmapset			*columns = NULL;

		if (fk->confrelid != RelationGetRelid(target))
			continue;
		for (int i = 0; i < fk->nkeys; i++)
			columns = bms_add_member(columns, fk->confkey[i] - FirstLowInvalidHeapAttributeNumber);
		any = fk;
		nany++;
		if (bms_equal(columns, primary_key))
		{
			to_primary = fk;
			nprimary++;
		}
	}
	if (nprimary == 1)
		return to_primary;
	if (nany == 0)
		invalid_history(RelationGetRelid(history), "It has no foreign key to table \"%s\".",
						RelationGetRelationName(target));
	if (nany > 1)
		invalid_history(RelationGetRelid(history), "It has several foreign keys to table \"%s\".",
						RelationGetRelationName(target));
	return any;
}

static bool
constraint_is_deferrable(Oid constraint)
{
	HeapTuple tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	bool	  result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", constraint);
	result = ((Form_pg_constraint) GETSTRUCT(tuple))->condeferrable;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Looks at a history table and says how to write it, in the current memory
 * context.  relid is the attached table root or a partition of it.  Raises
 * 42P16 where the table cannot hold a history.
 */
static History *
describe_history(Oid history_relid, Oid root, Oid relid)
{
	History				*history = palloc0(sizeof(History));
	Relation			 rel = try_relation_open(history_relid, AccessShareLock);
	Relation			 target;
	ForeignKeyCacheInfo *fk;
	TupleDesc			 desc;
	Bitmapset			*key_columns = NULL;
	bool				 has_from = false;
	bool				 has_to = false;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the history table of table \"%s\" does not exist any more", get_rel_name(root)),
				 errhint("Run techally.attach_machine again, with another one or without.")));
	target = relation_open(root, AccessShareLock);
	desc = RelationGetDescr(rel);
	if (rel->rd_rel->relkind != RELKIND_RELATION && rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		invalid_history(history_relid, "It is not a table.");
	if (history_relid == root)
		invalid_history(history_relid, "It is the table itself.");
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		invalid_history(history_relid, "It is a temporary table.");

	fk = history_foreign_key(rel, target);
	history->relid = history_relid;
	history->owner = rel->rd_rel->relowner;
	history->qualified = qualified_name(history_relid);
	history->nkeys = fk->nkeys;
	history->may_precede = constraint_is_deferrable(fk->conoid);
	for (int i = 0; i < fk->nkeys; i++)
	{
		const char *name = get_attname(root, fk->confkey[i], false);

		history->target_key[i] = root == relid ? fk->confkey[i] : get_attnum(relid, name);
		history->key_type[i] = get_atttype(root, fk->confkey[i]);
		history->history_key[i] = pstrdup(get_attname(history_relid, fk->conkey[i], false));
		history->key_operator[i] = fk->conpfeqop[i];
		key_columns = bms_add_member(key_columns, fk->conkey[i]);
	}

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		const char		 *name = NameStr(attribute->attname);
		Oid				  base;
		bool			  is_enum;
		bool			  is_state;
		bool			  is_text;
		bool			  fits;
		bool			  may_be_null = true;

		if (attribute->attisdropped || bms_is_member(i + 1, key_columns))
			continue;
		base = getBaseType(attribute->atttypid);
		is_state = is_state_type(attribute->atttypid, &is_enum);
		is_text = is_state && !is_enum;
		if (strcmp(name, "from_status") == 0)
		{
			has_from = true;
			fits = is_state;
			history->from_type = is_enum ? attribute->atttypid : TEXTOID;
		}
		else if (strcmp(name, "to_status") == 0)
		{
			has_to = true;
			fits = is_state;
			may_be_null = false;
			history->to_type = is_enum ? attribute->atttypid : TEXTOID;
		}
		else if (strcmp(name, "sequence") == 0)
		{
			history->has_sequence = true;
			fits = base == INT4OID || base == INT8OID || base == INT2OID;
			may_be_null = false;
		}
		else if (strcmp(name, "event") == 0)
		{
			history->has_event = true;
			fits = is_text;
		}
		else if (strcmp(name, "actor") == 0)
		{
			history->has_actor = true;
			fits = is_text || base == UUIDOID;
		}
		else if (strcmp(name, "note") == 0)
		{
			history->has_note = true;
			fits = is_text;
		}
		else if (strcmp(name, "request_id") == 0)
		{
			history->has_request_id = true;
			fits = is_text;
		}
		else if (strcmp(name, "created_at") == 0)
		{
			history->has_created_at = true;
			fits = base == TIMESTAMPTZOID || base == TIMESTAMPOID;
			may_be_null = false;
		}
		else
		{
			if (attribute->attnotnull && !attribute->atthasdef && attribute->attidentity == '\0' &&
				get_typdefault(attribute->atttypid) == NULL)
				invalid_history(history_relid,
								"Nothing would fill in its column \"%s\", which is NOT NULL and has no default.", name);
			continue;
		}
		if (!fits)
			invalid_history(history_relid, "Its column \"%s\" has type %s.", name,
							format_type_be(attribute->atttypid));
		if (attribute->attgenerated != '\0' || attribute->attidentity == ATTRIBUTE_IDENTITY_ALWAYS)
			invalid_history(history_relid, "Its column \"%s\" is generated.", name);
		if (may_be_null && attribute->attnotnull)
			invalid_history(history_relid, "Its column \"%s\" is NOT NULL, but not every change has a value for it.", name);
	}
	if (!has_from || !has_to)
		invalid_history(history_relid, "It has no column \"%s\".", has_from ? "to_status" : "from_status");

	relation_close(target, AccessShareLock);
	relation_close(rel, AccessShareLock);
	return history;
}

/* $position = key, by the operator of the foreign key. */
static void
append_key_condition(StringInfo sql, const History *history, int i)
{
	HeapTuple		 tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(history->key_operator[i]));
	Form_pg_operator operator;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", history->key_operator[i]);
	operator=(Form_pg_operator) GETSTRUCT(tuple);
	appendStringInfo(sql, "%s$%d OPERATOR(%s.%s) h.%s", i > 0 ? " AND " : "", i + 1,
					 quote_identifier(get_namespace_name(operator->oprnamespace)),
					 NameStr(operator->oprname), quote_identifier(history->history_key[i]));
	ReleaseSysCache(tuple);
}

#define HISTORY_ARGS (INDEX_MAX_KEYS + 6)

/* A history of more rows than this for one key is asked for its last by a statement. */
#define MAX_ROWS_READ 64

/*
 * The columns of a history as the row writer wants them, NULL where it is not
 * of the usual form: one uuid as key, states as text.
 */
static const HistoryColumns *
direct_columns(const History *history)
{
	const struct
	{
		bool		there;
		const char *name;
		Oid			type;
	} optional[] = {
		{history->has_sequence, "sequence", INT4OID},
		{history->has_event, "event", TEXTOID},
		{history->has_actor, "actor", UUIDOID},
		{history->has_note, "note", TEXTOID},
		{history->has_request_id, "request_id", TEXTOID},
		{history->has_created_at, "created_at", TIMESTAMPTZOID},
	};
	HistoryShape	shape;
	HistoryColumns *result;
	bool			found;

	if (history->nkeys != 1 || history->key_type[0] != UUIDOID ||
		history->from_type != TEXTOID || history->to_type != TEXTOID)
		return NULL;

	memset(&shape, 0, sizeof(shape));
	namestrcpy(&shape.key, history->history_key[0]);
	for (int i = 0; i < (int) lengthof(optional); i++)
		if (optional[i].there)
			shape.flags |= 1 << i;

	if (history_shapes == NULL)
	{
		HASHCTL ctl = {0};

		ctl.keysize = sizeof(HistoryShape);
		ctl.entrysize = sizeof(HistoryColumns);
		ctl.hcxt = CacheMemoryContext;
		history_shapes = hash_create("techally histories", 8, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	result = hash_search(history_shapes, &shape, HASH_ENTER, &found);
	if (!found)
	{
		int n = 0;

		result->columns[n].name = NameStr(result->shape.key);
		result->columns[n++].type = UUIDOID;
		result->columns[n].name = "from_status";
		result->columns[n++].type = TEXTOID;
		result->columns[n].name = "to_status";
		result->columns[n++].type = TEXTOID;
		for (int i = 0; i < (int) lengthof(optional); i++)
		{
			if (!optional[i].there)
				continue;
			result->columns[n].name = optional[i].name;
			result->columns[n++].type = optional[i].type;
		}
		result->ncolumns = n;
		result->has_sequence = history->has_sequence;
		result->sequence[0] = result->columns[0];
		result->sequence[1].name = "sequence";
		result->sequence[1].type = INT4OID;
	}
	return result;
}

/* The last sequence number of a key; false where a statement must find it. */
static bool
read_last_sequence(const History *history, Datum key, int32 *last)
{
	TaRowReader *reader = ta_reader_open(history->relid, false, history->direct->sequence, 2);
	int			 rows = 0;
	Datum		 values[2];
	bool		 nulls[2];

	*last = 0;
	if (reader == NULL)
		return false;
	ta_reader_find(reader, key);
	while (rows <= MAX_ROWS_READ && ta_reader_next(reader, values, nulls, NULL))
	{
		rows++;
		if (!nulls[1])
			*last = Max(*last, DatumGetInt32(values[1]));
	}
	ta_reader_close(reader);
	return rows <= MAX_ROWS_READ && *last < PG_INT32_MAX;
}

/*
 * Writes a row of history without a statement; values are those of the INSERT.
 * False where the history does not allow it.
 */
static bool
write_history_directly(const History *history, const Datum *values, const char *nulls, bool is_first)
{
	const HistoryColumns *direct = history->direct;
	TaRowWriter			 *writer;
	Datum				  row[9];
	bool				  row_nulls[9] = {false};
	int32				  last = 0;
	int					  n = 0;
	int					  from = 3;

	if (direct == NULL || nulls[0] == 'n')
		return false;
	if (direct->has_sequence && !is_first && !read_last_sequence(history, values[0], &last))
		return false;
	writer = ta_writer_open(history->relid, CMD_INSERT, direct->columns, direct->ncolumns);
	if (writer == NULL)
		return false;

	for (; n < 3; n++)
	{
		row[n] = values[n];
		row_nulls[n] = nulls[n] == 'n';
	}
	if (direct->has_sequence)
		row[n++] = Int32GetDatum(last + 1);
	while (n < direct->ncolumns - (history->has_created_at ? 1 : 0))
	{
		row[n] = values[from];
		row_nulls[n] = nulls[from] == 'n';
		n++;
		from++;
	}
	if (history->has_created_at)
		row[n] = TimestampTzGetDatum(GetCurrentTimestamp());
	ta_writer_insert(writer, row, row_nulls);
	ta_writer_close(writer);
	return true;
}

/* Prepares and keeps the INSERT; the order of its arguments is write_history's. */
static SPIPlanPtr
prepare_history(const History *history, bool is_first)
{
	StringInfoData columns;
	StringInfoData values;
	Oid			   types[HISTORY_ARGS];
	int			   n = 0;
	SPIPlanPtr	   plan;

	initStringInfo(&columns);
	initStringInfo(&values);
	for (int i = 0; i < history->nkeys; i++)
	{
		types[n++] = history->key_type[i];
		appendStringInfo(&columns, "%s, ", quote_identifier(history->history_key[i]));
		appendStringInfo(&values, "$%d, ", n);
	}
	types[n++] = history->from_type;
	types[n++] = history->to_type;
	appendStringInfoString(&columns, "from_status, to_status");
	appendStringInfo(&values, "$%d, $%d", n - 1, n);
	if (history->has_sequence)
	{
		appendStringInfoString(&columns, ", sequence");
		if (is_first)
			appendStringInfoString(&values, ", 1");
		else
		{
			appendStringInfo(&values, ", (SELECT coalesce(max(h.sequence), 0) + 1 FROM %s h WHERE ",
							 history->qualified);
			for (int i = 0; i < history->nkeys; i++)
				append_key_condition(&values, history, i);
			appendStringInfoChar(&values, ')');
		}
	}
	if (history->has_event)
	{
		types[n++] = TEXTOID;
		appendStringInfoString(&columns, ", event");
		appendStringInfo(&values, ", $%d", n);
	}
	if (history->has_actor)
	{
		types[n++] = UUIDOID;
		appendStringInfoString(&columns, ", actor");
		appendStringInfo(&values, ", $%d", n);
	}
	if (history->has_note)
	{
		types[n++] = TEXTOID;
		appendStringInfoString(&columns, ", note");
		appendStringInfo(&values, ", $%d", n);
	}
	if (history->has_request_id)
	{
		types[n++] = TEXTOID;
		appendStringInfoString(&columns, ", request_id");
		appendStringInfo(&values, ", $%d", n);
	}
	if (history->has_created_at)
	{
		appendStringInfoString(&columns, ", created_at");
		appendStringInfoString(&values, ", clock_timestamp()");
	}

	plan = SPI_prepare_cursor(psprintf("INSERT INTO %s (%s) VALUES (%s)",
									   history->qualified, columns.data, values.data),
							  n, types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	return plan;
}

static Datum
state_datum(Oid type, const char *data, int length)
{
	Oid input;
	Oid param;

	if (type == TEXTOID)
		return PointerGetDatum(cstring_to_text_with_len(data, length));
	getTypeInputInfo(type, &input, &param);
	return OidInputFunctionCall(input, pnstrdup(data, length), param, -1);
}

/*
 * Writes a row of history for a row that has gone from one state (NULL: it is
 * new) to another by a transition (-1: none).  The row is locked by the change
 * that brought us here, which is what makes max + 1 safe.
 */
static void
write_history(Attachment *attachment, TupleTableSlot *slot, State from, State to,
			  int transition, bool by_context)
{
	const TaTransitionContext *context = by_context ? current_context(attachment) : NULL;
	History					  *history = attachment->history;
	Datum					   values[HISTORY_ARGS];
	char					   nulls[HISTORY_ARGS];
	SPIPlanPtr				  *plan;
	TaFrame					   frame;
	int						   n = 0;
	int						   rc;

	if (history == NULL)
	{
		MemoryContext old_context = MemoryContextSwitchTo(attachment->context);

		history = describe_history(attachment->history_relid, attachment->root, attachment->relid);
		history->direct = direct_columns(history);
		MemoryContextSwitchTo(old_context);
		attachment->history = history;
	}

	memset(nulls, ' ', sizeof(nulls));
	for (int i = 0; i < history->nkeys; i++)
	{
		bool isnull;

		values[n] = slot_getattr(slot, history->target_key[i], &isnull);
		if (isnull)
			nulls[n] = 'n';
		n++;
	}
	if (from.data != NULL)
		values[n] = state_datum(history->from_type, from.data, from.length);
	else
		nulls[n] = 'n';
	n++;
	values[n++] = state_datum(history->to_type, to.data, to.length);
	if (history->has_event)
	{
		if (transition >= 0)
			values[n] = CStringGetTextDatum(attachment->machine->transitions[transition].event);
		else
			nulls[n] = 'n';
		n++;
	}
	if (history->has_actor)
	{
		bool isnull;

		values[n] = ta_request_actor(context ? context->actor : (Datum) 0,
									 context ? context->actor_isnull : true, &isnull);
		if (isnull)
			nulls[n] = 'n';
		n++;
	}
	if (history->has_note)
	{
		if (context != NULL && context->note != NULL)
			values[n] = CStringGetTextDatum(context->note);
		else
			nulls[n] = 'n';
		n++;
	}
	if (history->has_request_id)
	{
		const char *request_id = ta_request_setting("app.request_id");

		if (request_id != NULL)
			values[n] = CStringGetTextDatum(request_id);
		else
			nulls[n] = 'n';
		n++;
	}

	plan = from.data == NULL && !history->may_precede ? &history->first_plan : &history->next_plan;
	ta_frame_begin(&frame, history->owner);
	if (!write_history_directly(history, values, nulls, plan == &history->first_plan))
	{
		if (*plan == NULL)
			*plan = prepare_history(history, plan == &history->first_plan);
		rc = SPI_execute_plan(*plan, values, nulls, false, 0);
		if (rc != SPI_OK_INSERT)
			elog(ERROR, "unexpected SPI result %s", SPI_result_code_string(rc));
	}
	ta_frame_end(&frame);
}

/* ---------------------------------------------------------------------
 * The trigger
 * ---------------------------------------------------------------------
 */

static State
slot_state(const Attachment *attachment, TupleTableSlot *slot)
{
	State state = {NULL, 0};
	bool  isnull;
	Datum value = slot_getattr(slot, attachment->attnum, &isnull);

	if (isnull)
		return state;
	if (attachment->is_enum)
	{
		state.data = DatumGetCString(DirectFunctionCall1(enum_out, value));
		state.length = strlen(state.data);
	}
	else
	{
		text *t = DatumGetTextPP(value);

		state.data = VARDATA_ANY(t);
		state.length = VARSIZE_ANY_EXHDR(t);
	}
	return state;
}

static bool
same_state(State a, State b)
{
	if (a.data == NULL || b.data == NULL)
		return a.data == b.data;
	return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

/*
 * An UPDATE that moves a row to another partition fires as a DELETE there and
 * an INSERT here.  The deleted tuple says that it moved; its state is kept for
 * the INSERT, which is the next one of the same command on the same table.
 */
static void
remember_moved_row(const Attachment *attachment, HeapTuple tuple, State state)
{
	AttrNumber	  root_attnum;
	CommandId	  cid;
	MovedRow	 *moved;
	MemoryContext old_context;

	cid = HeapTupleHeaderGetCmax(tuple->t_data);
	root_attnum = get_attnum(attachment->root,
							 get_attname(attachment->relid, attachment->attnum, false));
	for (moved = moved_rows; moved != NULL; moved = moved->next)
	{
		if (moved->root == attachment->root && moved->root_attnum == root_attnum && moved->cid == cid)
			break;
	}
	old_context = MemoryContextSwitchTo(TopTransactionContext);
	if (moved == NULL)
	{
		moved = palloc0(sizeof(MovedRow));
		moved->root = attachment->root;
		moved->root_attnum = root_attnum;
		moved->cid = cid;
		moved->next = moved_rows;
		moved_rows = moved;
	}
	else if (moved->state != NULL)
		pfree(moved->state);
	moved->state = NULL;
	if (state.data != NULL)
		moved->state = pnstrdup(state.data, state.length);
	MemoryContextSwitchTo(old_context);
}

/* Is this INSERT the other half of a move?  Then its state before. */
static bool
recall_moved_row(const Attachment *attachment, HeapTuple tuple, State *state)
{
	MovedRow **link;
	AttrNumber root_attnum;

	if (moved_rows == NULL || attachment->root == attachment->relid)
		return false;
	root_attnum = get_attnum(attachment->root,
							 get_attname(attachment->relid, attachment->attnum, false));
	for (link = &moved_rows; *link != NULL; link = &(*link)->next)
	{
		MovedRow *moved = *link;

		if (moved->root != attachment->root || moved->root_attnum != root_attnum ||
			moved->cid != HeapTupleHeaderGetCmin(tuple->t_data))
			continue;
		state->data = moved->state ? pstrdup(moved->state) : NULL;
		state->length = moved->state ? strlen(moved->state) : 0;
		*link = moved->next;
		if (moved->state != NULL)
			pfree(moved->state);
		pfree(moved);
		return true;
	}
	return false;
}

static char *
state_name(State state)
{
	return state.data == NULL ? NULL : pnstrdup(state.data, state.length);
}

/*
 * enforce_machine(column) → trigger
 *		AFTER INSERT, UPDATE or DELETE of a row: holds the column to its machine
 *		and writes the history.
 *
 * Raises TA001; 55000 where the registry does not know the column (a table
 * that was restored without it), so that a guard that lost its machine lets
 * nothing through.  What it allocates goes with the trigger's per-row context.
 */
PG_FUNCTION_INFO_V1(ta_enforce_machine);
Datum
ta_enforce_machine(PG_FUNCTION_ARGS)
{
	TriggerData	   *trigdata = ta_trigger_data(fcinfo, "enforce_machine",
											   TA_TRIGGER_ROW | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT |
												   TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);
	Attachment	   *attachment;
	const char	   *column;
	State			from = {NULL, 0};
	State			to;
	TupleTableSlot *slot;
	bool			is_new = false;
	int				transition = -1;
	bool			by_context;

	if (trigdata->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" needs the name of a column as its argument", "enforce_machine")));
	column = trigdata->tg_trigger->tgargs[0];

	/* whatever state a row is in, it may be deleted; a move is no deletion */
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) &&
		!HeapTupleHeaderIndicatesMovedPartitions(trigdata->tg_trigtuple->t_data))
		return PointerGetDatum(NULL);

	/* a table that this transaction has locked already brings no news */
	AcceptInvalidationMessages();
	attachment = require_attachment(RelationGetRelid(trigdata->tg_relation), column);

	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
	{
		remember_moved_row(attachment, trigdata->tg_trigtuple,
						   slot_state(attachment, trigdata->tg_trigslot));
		return PointerGetDatum(NULL);
	}

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
	{
		slot = trigdata->tg_trigslot;
		is_new = !recall_moved_row(attachment, trigdata->tg_trigtuple, &from);
	}
	else
	{
		slot = trigdata->tg_newslot;
		from = slot_state(attachment, trigdata->tg_trigslot);
	}
	to = slot_state(attachment, slot);

	/* what comes back from an archive is in any state, and has its history */
	if (is_new && to.data != NULL && ta_passes_through(RelationGetRelid(trigdata->tg_relation)) &&
		find_state(attachment->machine, to.data, to.length) >= 0)
		return PointerGetDatum(NULL);

	if (is_new)
	{
		const Machine			  *machine = attachment->machine;
		const TaTransitionContext *context = current_context(attachment);

		if (to.data == NULL || find_state(machine, to.data, to.length) != machine->initial)
			raise_illegal(attachment, column, NULL, NULL, state_name(to));
		by_context = context != NULL && context->event == NULL;
	}
	else
	{
		if (same_state(from, to))
			return PointerGetDatum(NULL);
		if (from.data != NULL && to.data != NULL)
			transition = joining_transition(attachment,
											find_state(attachment->machine, from.data, from.length),
											find_state(attachment->machine, to.data, to.length),
											&by_context);
		if (transition < 0)
			raise_illegal(attachment, column, state_name(from), NULL, state_name(to));
	}

	if (OidIsValid(attachment->history_relid))
		write_history(attachment, slot, from, to, transition, by_context);
	return PointerGetDatum(NULL);
}

/* ---------------------------------------------------------------------
 * Defining
 * ---------------------------------------------------------------------
 */

static void
refuse_null(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

static void
expect(int rc, int expected, const char *sql)
{
	if (rc != expected)
		elog(ERROR, "unexpected SPI result %s from: %s", SPI_result_code_string(rc), sql);
}

static void
run_utility(const char *sql)
{
	expect(SPI_execute(sql, false, 0), SPI_OK_UTILITY, sql);
}

/* Can every state of the machine be stored in the column?  Raises what its input does. */
static void
check_states_fit(const Machine *machine, Oid relid, const char *column)
{
	Oid	  type;
	int32 typmod;
	Oid	  collation;
	Oid	  input;
	Oid	  param;

	get_atttypetypmodcoll(relid, get_attnum(relid, column), &type, &typmod, &collation);
	getTypeInputInfo(type, &input, &param);
	for (int i = 0; i < machine->nstates; i++)
		(void) OidInputFunctionCall(input, machine->states[i], param, typmod);
}

/*
 * Looks for rows whose state is one of (is_among) or none of (!is_among) these,
 * with the latest snapshot, acting as the table's owner.  The caller holds a
 * lock against writers.  Returns a list of them for a DETAIL, or NULL.
 */
static char *
rows_in_states(Oid relid, const char *column, const char *const *states, int nstates, bool is_among)
{
	StringInfoData sql;
	StringInfoData found;
	TaFrame		   frame;
	Oid			   types[1] = {TEXTARRAYOID};
	Datum		   values[1];
	SPIPlanPtr	   plan;
	int			   guc_level;
	MemoryContext  result_context = CurrentMemoryContext;
	char		  *quoted = psprintf("(t.%s)::pg_catalog.text COLLATE \"C\"", quote_identifier(column));
	char		  *result = NULL;

	values[0] = ta_text_array(states, nstates);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT DISTINCT %s FROM %s t WHERE ", quoted, qualified_name(relid));
	if (is_among)
		appendStringInfo(&sql, "%s = ANY ($1)", quoted);
	else
		appendStringInfo(&sql, "t.%s IS NULL OR %s <> ALL ($1)", quote_identifier(column), quoted);
	appendStringInfoString(&sql, " ORDER BY 1 LIMIT 6");

	/* rows that a policy would hide must raise an error, not pass unseen */
	guc_level = NewGUCNestLevel();
	(void) set_config_option("row_security", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	ta_frame_begin(&frame, ta_relation_owner(relid));
	plan = SPI_prepare(sql.data, 1, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	expect(SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(), InvalidSnapshot, true, false, 0),
		   SPI_OK_SELECT, sql.data);
	if (SPI_processed > 0)
	{
		initStringInfo(&found);
		for (uint64 r = 0; r < SPI_processed; r++)
		{
			char *state = ta_spi_text(r, 1);

			if (r > 0)
				appendStringInfoString(&found, ", ");
			if (r == 5)
				appendStringInfoString(&found, "...");
			else if (state == NULL)
				appendStringInfoString(&found, "NULL");
			else
				appendStringInfo(&found, "\"%s\"", state);
		}
		result = MemoryContextStrdup(result_context, found.data);
	}
	ta_frame_end(&frame);
	AtEOXact_GUC(true, guc_level);
	return result;
}

/*
 * Where rows begin elsewhere than before, a default that was the old initial
 * state becomes the new one.  Acts as the table's owner.
 */
static void
move_default(Oid relid, const char *column, const char *old_initial, const char *new_initial)
{
	static const char *const sql =
		"SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d"
		" JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum"
		" WHERE d.adrelid = $1 AND a.attname = $2";
	Oid		types[2] = {OIDOID, NAMEOID};
	Datum	values[2] = {ObjectIdGetDatum(relid),
						 DirectFunctionCall1(namein, CStringGetDatum(column))};
	char   *literal = quote_literal_cstr(old_initial);
	char   *expression;
	TaFrame frame;

	LockRelationOid(relid, AccessExclusiveLock);
	ta_frame_begin(&frame, ta_relation_owner(relid));
	expect(SPI_execute_with_args(sql, 2, types, values, NULL, false, 0), SPI_OK_SELECT, sql);
	expression = SPI_processed == 0 ? NULL : ta_spi_text(0, 1);
	if (expression != NULL && strncmp(expression, literal, strlen(literal)) == 0 &&
		(expression[strlen(literal)] == '\0' || strncmp(expression + strlen(literal), "::", 2) == 0))
		run_utility(psprintf("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s", qualified_name(relid),
							 quote_identifier(column), quote_literal_cstr(new_initial)));
	ta_frame_end(&frame);
}

/*
 * A new definition for a machine that is in use: the states that it adds must
 * fit the columns under it, and no row may be left in a state that it drops.
 */
static void
check_redefinition(const Machine *old, const Machine *new)
{
	const char **vanished = palloc(old->nstates * sizeof(char *));
	int			 nvanished = 0;
	ListCell	*cell;

	for (int i = 0; i < old->nstates; i++)
	{
		if (find_state_name(new, old->states[i]) < 0)
			vanished[nvanished++] = old->states[i];
	}
	foreach(cell, read_attachments(InvalidOid, new->name))
	{
		RegistryRow *row = lfirst(cell);
		char		*found;

		if (get_rel_name(row->target) == NULL || get_attnum(row->target, row->column) <= 0)
			continue; /* dropped or renamed: nothing gets past the trigger */
		check_states_fit(new, row->target, row->column);
		if (strcmp(old->states[old->initial], new->states[new->initial]) != 0)
			move_default(row->target, row->column, old->states[old->initial], new->states[new->initial]);
		if (nvanished == 0)
			continue;
		LockRelationOid(row->target, ShareRowExclusiveLock);
		if (get_rel_name(row->target) == NULL)
			continue;
		found = rows_in_states(row->target, row->column, vanished, nvanished, true);
		if (found != NULL)
			invalid_machine(new->name, "Table %s holds rows in states that the new definition lacks: %s.",
							qualified_name(row->target), found);
	}
}

/*
 * A preset that was changed is dumped, and meets the preset of the same name
 * when it is restored.  It takes its place.
 */
static bool
replace_preset(const char *name, Datum definition)
{
	static const char *const sql =
		"UPDATE techally.machines SET definition = $2 WHERE name = $1 AND builtin";
	Oid		types[2] = {TEXTOID, JSONBOID};
	Datum	values[2] = {CStringGetTextDatum(name), definition};
	TaFrame frame;
	bool	replaced;

	ta_frame_begin(&frame, InvalidOid);
	expect(SPI_execute_with_args(sql, 2, types, values, NULL, false, 0), SPI_OK_UPDATE, sql);
	replaced = SPI_processed > 0;
	ta_frame_end(&frame);
	return replaced;
}

/*
 * A machine that is in use stays.  No foreign key does this: a parallel restore
 * may load the attachments before the machines.
 */
static void
refuse_machine_in_use(const char *name)
{
	List		*rows = read_attachments(InvalidOid, name);
	RegistryRow *row;

	if (rows == NIL)
		return;
	row = linitial(rows);
	ereport(ERROR,
			(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
			 errmsg("state machine \"%s\" is in use", name),
			 get_rel_name(row->target) == NULL ? 0 : errdetail("Column \"%s\" of table %s is under it.", row->column, qualified_name(row->target)),
			 errhint("Run techally.detach_machine for the tables that techally.machine_attachments lists.")));
}

/*
 * validate_machine() → trigger
 *		BEFORE INSERT, UPDATE or DELETE of a row of techally.machines: refuses
 *		what is no machine, however it was written, and to delete one in use.
 *
 * A preset whose definition changes stops being one, so that the change is
 * dumped; a row that arrives under a preset's name replaces the preset.
 * Raises TA008 and 23503.  Where a state goes away, or another one becomes initial, locks
 * the tables under the machine against writers.
 */
PG_FUNCTION_INFO_V1(ta_validate_machine);
Datum
ta_validate_machine(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "validate_machine",
											TA_TRIGGER_ROW | TA_TRIGGER_BEFORE | TA_TRIGGER_INSERT |
												TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE);
	TupleDesc	 desc = RelationGetDescr(trigdata->tg_relation);
	bool		 is_update = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event);
	HeapTuple	 tuple = is_update ? trigdata->tg_newtuple : trigdata->tg_trigtuple;
	int			 name_column = registry_column(trigdata->tg_relation, "name", TEXTOID);
	int			 definition_column = registry_column(trigdata->tg_relation, "definition", JSONBOID);
	int			 builtin_column = registry_column(trigdata->tg_relation, "builtin", BOOLOID);
	bool		 nulls[3];
	Datum		 name_datum = heap_getattr(tuple, name_column, desc, &nulls[0]);
	Datum		 definition = heap_getattr(tuple, definition_column, desc, &nulls[1]);
	Datum		 builtin = heap_getattr(tuple, builtin_column, desc, &nulls[2]);
	bool		 may_be_builtin = false;
	char		*name;
	Machine		*machine;

	if (nulls[0] || nulls[1] || nulls[2])
		return PointerGetDatum(tuple); /* NOT NULL refuses it */
	name = TextDatumGetCString(name_datum);
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
	{
		refuse_machine_in_use(name);
		return PointerGetDatum(tuple);
	}
	if (name[0] == '\0' || strlen(name) > MAX_NAME_BYTES)
		invalid_machine(name, "Its name must have 1 to %d bytes.", MAX_NAME_BYTES);
	machine = compile_machine(name, DatumGetJsonbP(definition));

	if (is_update)
	{
		bool	  isnull;
		HeapTuple old = trigdata->tg_trigtuple;
		char	 *old_name = TextDatumGetCString(heap_getattr(old, name_column, desc, &isnull));
		Jsonb	 *old_definition = DatumGetJsonbP(heap_getattr(old, definition_column, desc, &isnull));
		bool	  changed;

		if (strcmp(name, old_name) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("state machine \"%s\" cannot be renamed", old_name),
					 errhint("Define another one, and attach it where this one is attached.")));
		changed = compareJsonbContainers(&old_definition->root, &DatumGetJsonbP(definition)->root) != 0;

		if (changed)
			check_redefinition(compile_machine(name, old_definition), machine);
		may_be_builtin = !changed && DatumGetBool(heap_getattr(old, builtin_column, desc, &isnull));
	}
	else if (!DatumGetBool(builtin) && replace_preset(name, definition))
		return PointerGetDatum(NULL);

	/* what only this database has must be dumped */
	if (DatumGetBool(builtin) && !may_be_builtin && !creating_extension)
	{
		Datum no = BoolGetDatum(false);
		bool  no_isnull = false;

		tuple = heap_modify_tuple_by_cols(tuple, desc, 1, &builtin_column, &no, &no_isnull);
	}
	return PointerGetDatum(tuple);
}

/*
 * machine_registry_changed() → trigger
 *		AFTER every statement that writes a registry table: every backend throws
 *		away what it has compiled, when the transaction commits; this one, now.
 */
PG_FUNCTION_INFO_V1(ta_machine_registry_changed);
Datum
ta_machine_registry_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = ta_trigger_data(fcinfo, "machine_registry_changed",
											TA_TRIGGER_STATEMENT | TA_TRIGGER_AFTER | TA_TRIGGER_INSERT |
												TA_TRIGGER_UPDATE | TA_TRIGGER_DELETE | TA_TRIGGER_TRUNCATE);

	CacheInvalidateRelcache(trigdata->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * define_machine(name text, definition jsonb) → void
 *		Defines a machine, or defines it anew.
 *
 * Raises TA008, DETAIL says why.  Acts as the registry's owner.
 */
PG_FUNCTION_INFO_V1(ta_define_machine);
Datum
ta_define_machine(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"INSERT INTO techally.machines AS m (name, definition) VALUES ($1, $2)"
		" ON CONFLICT (name) DO UPDATE SET definition = excluded.definition";
	Oid		types[2] = {TEXTOID, JSONBOID};
	Datum	values[2];
	TaFrame frame;

	refuse_null(fcinfo, 0, "name");
	refuse_null(fcinfo, 1, "definition");
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	ta_frame_begin(&frame, ta_relation_owner(registry_relation("machines")));
	expect(SPI_execute_with_args(sql, 2, types, values, NULL, false, 0), SPI_OK_INSERT, sql);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------
 * Attaching
 * ---------------------------------------------------------------------
 */

/* Raises 42P01 for no relation, 42809 for one that is no table, 42501 for another's. */
static void
check_table(Oid relid)
{
	char	  kind = get_rel_relkind(relid);
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool	  is_temp;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	is_temp = ((Form_pg_class) GETSTRUCT(tuple))->relpersistence == RELPERSISTENCE_TEMP;
	ReleaseSysCache(tuple);
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(relid))));
	if (!object_ownercheck(RelationRelationId, relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(relid));
	if (IsCatalogRelationOid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied: \"%s\" is a system catalog", get_rel_name(relid))));
	if (is_temp)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a temporary table", get_rel_name(relid))));
}

/* One of our triggers on a table. */
typedef struct OurTrigger
{
	char *name;
	char *column;
	int16 type;
} OurTrigger;

/* The triggers on a table that call enforce_machine, other than a partition's clones. */
static List *
our_triggers(Oid relid)
{
	Relation	 rel = relation_open(relid, AccessShareLock);
	TriggerDesc *triggers = rel->trigdesc;
	List		*result = NIL;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger *trigger = &triggers->triggers[i];
		char	*name;
		Oid		 nspid;

		if (trigger->tgisinternal || trigger->tgisclone || trigger->tgnargs != 1)
			continue;
		name = get_func_name(trigger->tgfoid);
		nspid = get_func_namespace(trigger->tgfoid);
		if (name == NULL || strcmp(name, "enforce_machine") != 0 ||
			nspid != get_namespace_oid("techally", true))
			continue;
		{
			OurTrigger *ours = palloc(sizeof(OurTrigger));

			ours->name = pstrdup(trigger->tgname);
			ours->column = pstrdup(trigger->tgargs[0]);
			ours->type = trigger->tgtype;
			result = lappend(result, ours);
		}
	}
	relation_close(rel, AccessShareLock);
	return result;
}

/* A trigger's name: the one that it has, or one that is free. */
static char *
trigger_name(Oid relid, List *ours, const char *column, int16 event, const char *label)
{
	ListCell *cell;
	char	 *stem = psprintf("techally_machine_%s", label);

	foreach(cell, ours)
	{
		OurTrigger *trigger = lfirst(cell);

		if (strcmp(trigger->column, column) == 0 && (trigger->type & event))
			return trigger->name;
	}
	for (int i = 0;; i++)
	{
		char *name = makeObjectName(stem, column, i == 0 ? NULL : psprintf("%d", i));

		if (!OidIsValid(get_trigger_oid(relid, name, true)))
			return name;
	}
}

/* Creates the triggers, or puts back what they were. */
static void
install_triggers(Oid relid, const char *column)
{
	List	   *ours = our_triggers(relid);
	char	   *table = qualified_name(relid);
	const char *quoted = quote_identifier(column);
	char	   *argument = quote_literal_cstr(column);
	Oid			type;
	int32		typmod;
	Oid			collation;
	const char *exact = "";

	/* a collation may call states equal that the machine tells apart */
	get_atttypetypmodcoll(relid, get_attnum(relid, column), &type, &typmod, &collation);
	if (OidIsValid(collation) && !get_collation_isdeterministic(collation))
		exact = " COLLATE \"C\"";

	run_utility(psprintf("CREATE OR REPLACE TRIGGER %s AFTER INSERT ON %s"
						 " FOR EACH ROW EXECUTE FUNCTION techally.enforce_machine(%s)",
						 quote_identifier(trigger_name(relid, ours, column, TRIGGER_TYPE_INSERT, "insert")),
						 table, argument));
	run_utility(psprintf("CREATE OR REPLACE TRIGGER %s AFTER UPDATE ON %s"
						 " FOR EACH ROW WHEN (OLD.%s%s IS DISTINCT FROM NEW.%s%s)"
						 " EXECUTE FUNCTION techally.enforce_machine(%s)",
						 quote_identifier(trigger_name(relid, ours, column, TRIGGER_TYPE_UPDATE, "update")),
						 table, quoted, exact, quoted, exact, argument));

	/* a row that moves to another partition is deleted from its own */
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		run_utility(psprintf("CREATE OR REPLACE TRIGGER %s AFTER DELETE ON %s"
							 " FOR EACH ROW EXECUTE FUNCTION techally.enforce_machine(%s)",
							 quote_identifier(trigger_name(relid, ours, column, TRIGGER_TYPE_DELETE, "delete")),
							 table, argument));
}

/* Refuses a column that is under a machine already, through another table of its tree. */
static void
check_partition_tree(Oid relid, const char *column)
{
	List	 *others = NIL;
	ListCell *cell;

	if (get_rel_relispartition(relid))
		others = get_partition_ancestors(relid);
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		others = list_concat(others, find_all_inheritors(relid, NoLock, NULL));
	foreach(cell, others)
	{
		if (lfirst_oid(cell) != relid && read_attachment(lfirst_oid(cell), column) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("column \"%s\" of table \"%s\" is under a state machine already",
							column, get_rel_name(lfirst_oid(cell))),
					 errdetail("Table \"%s\" belongs to the same partitioned table.", get_rel_name(relid)),
					 errhint("Run techally.detach_machine for it first.")));
	}
}

/* Reads a machine and holds it against redefinition until the transaction ends. */
static Machine *
lock_machine(const char *name)
{
	static const char *const sql = "SELECT m.definition FROM techally.machines m WHERE m.name = $1 FOR SHARE";
	Oid						 types[1] = {TEXTOID};
	Datum					 values[1] = {CStringGetTextDatum(name)};
	MemoryContext			 caller = CurrentMemoryContext;
	MemoryContext			 old_context;
	TaFrame					 frame;
	Machine					*machine;
	bool					 isnull;

	ta_frame_begin(&frame, ta_relation_owner(registry_relation("machines")));
	expect(SPI_execute_with_args(sql, 1, types, values, NULL, false, 0), SPI_OK_SELECT, sql);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("state machine \"%s\" does not exist", name),
				 errhint("Define it first with techally.define_machine.")));
	old_context = MemoryContextSwitchTo(caller);
	machine = compile_machine(name, DatumGetJsonbPCopy(ta_spi_value(0, 1, &isnull)));
	MemoryContextSwitchTo(old_context);
	ta_frame_end(&frame);
	return machine;
}

/*
 * attach_machine(target regclass, column_name name, machine text, history regclass) → void
 *		Puts a column under a machine, or under another one.
 *
 * The caller must own the table and its history (42501).  Raises 42703 and
 * 42804 for a column that is missing or cannot hold the states, 23514 where
 * rows are in other states, 42P16 for a history of the wrong shape, TA007 for
 * no such machine.  Locks the machine's row, then the table against writers.
 */
PG_FUNCTION_INFO_V1(ta_attach_machine);
Datum
ta_attach_machine(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"INSERT INTO techally.machine_attachments AS a (target, column_name, machine, history)"
		" VALUES ($1::pg_catalog.regclass, $2, $3, $4::pg_catalog.regclass)"
		" ON CONFLICT (target, column_name) DO UPDATE SET machine = excluded.machine, history = excluded.history";
	Oid			 types[4] = {OIDOID, NAMEOID, TEXTOID, OIDOID};
	Datum		 values[4];
	char		 nulls[5] = "    ";
	Oid			 relid;
	Oid			 history = InvalidOid;
	const char	*column;
	AttrNumber	 attnum;
	Machine		*machine;
	Relation	 rel;
	bool		 is_enum;
	bool		 has_default;
	Oid			 type;
	char		*found;
	RegistryRow *before;
	TaFrame		 frame;

	refuse_null(fcinfo, 0, "target");
	refuse_null(fcinfo, 1, "column_name");
	refuse_null(fcinfo, 2, "machine");
	relid = PG_GETARG_OID(0);
	column = NameStr(*PG_GETARG_NAME(1));
	if (!PG_ARGISNULL(3))
		history = PG_GETARG_OID(3);

	check_table(relid);
	if (OidIsValid(history))
		check_table(history);
	machine = lock_machine(text_to_cstring(PG_GETARG_TEXT_PP(2)));

	rel = relation_open(relid, ShareRowExclusiveLock);
	if (OidIsValid(history))
		LockRelationOid(history, AccessShareLock);
	check_table(relid); /* again, now that nobody can change it */

	attnum = get_attnum(relid, column);
	if (attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column, get_rel_name(relid))));
	type = get_atttype(relid, attnum);
	if (!is_state_type(type, &is_enum))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" cannot hold a state", column, get_rel_name(relid)),
				 errdetail("Its type is %s; it must be text, varchar, a domain over one of them, or an enum.",
						   format_type_be(type))));
	if (TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("column \"%s\" of table \"%s\" is generated", column, get_rel_name(relid))));
	check_states_fit(machine, relid, column);
	check_partition_tree(relid, column);
	if (OidIsValid(history))
	{
		check_table(history);
		(void) describe_history(history, relid, relid);
	}
	found = rows_in_states(relid, column, (const char *const *) machine->states, machine->nstates, false);
	if (found != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("table \"%s\" holds rows in states that machine \"%s\" does not know",
						get_rel_name(relid), machine->name),
				 errdetail("Column \"%s\" holds: %s.", column, found)));
	has_default = build_column_default(rel, attnum) != NULL;
	relation_close(rel, NoLock);

	before = read_attachment(relid, column);
	if (before != NULL && strcmp(before->machine, machine->name) != 0)
	{
		Machine *old = lock_machine(before->machine);

		if (strcmp(old->states[old->initial], machine->states[machine->initial]) != 0)
			move_default(relid, column, old->states[old->initial], machine->states[machine->initial]);
	}

	values[0] = ObjectIdGetDatum(relid);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = ObjectIdGetDatum(history);
	if (!OidIsValid(history))
		nulls[3] = 'n';
	ta_frame_begin(&frame, ta_relation_owner(registry_relation("machine_attachments")));
	expect(SPI_execute_with_args(sql, 4, types, values, nulls, false, 0), SPI_OK_INSERT, sql);
	ta_frame_end(&frame);

	ta_frame_begin(&frame, InvalidOid);
	if (!has_default)
		run_utility(psprintf("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s", qualified_name(relid),
							 quote_identifier(column), quote_literal_cstr(machine->states[machine->initial])));
	install_triggers(relid, column);
	ta_frame_end(&frame);
	PG_RETURN_VOID();
}

/*
 * detach_machine(target regclass, column_name name) → void
 *		Takes a column, or every column of a table, from its machine.
 *
 * The history and the column's default stay.  Works also where the column, its
 * triggers or its registration are gone.  Raises 42704 where there is nothing
 * to detach.
 */
PG_FUNCTION_INFO_V1(ta_detach_machine);
Datum
ta_detach_machine(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"DELETE FROM techally.machine_attachments a"
		" WHERE a.target = $1 AND (a.column_name = $2 OR $2 IS NULL)";
	Oid			types[2] = {OIDOID, NAMEOID};
	Datum		values[2];
	char		nulls[3] = "  ";
	Oid			relid;
	const char *column = NULL;
	ListCell   *cell;
	TaFrame		frame;
	bool		any;

	refuse_null(fcinfo, 0, "target");
	relid = PG_GETARG_OID(0);
	if (!PG_ARGISNULL(1))
		column = NameStr(*PG_GETARG_NAME(1));
	check_table(relid);
	LockRelationOid(relid, ShareRowExclusiveLock);
	check_table(relid);

	values[0] = ObjectIdGetDatum(relid);
	if (column != NULL)
		values[1] = PG_GETARG_DATUM(1);
	else
		nulls[1] = 'n';
	ta_frame_begin(&frame, ta_relation_owner(registry_relation("machine_attachments")));
	expect(SPI_execute_with_args(sql, 2, types, values, nulls, false, 0), SPI_OK_DELETE, sql);
	any = SPI_processed > 0;
	ta_frame_end(&frame);

	ta_frame_begin(&frame, InvalidOid);
	foreach(cell, our_triggers(relid))
	{
		OurTrigger *trigger = lfirst(cell);

		if (column != NULL && strcmp(trigger->column, column) != 0)
			continue;
		run_utility(psprintf("DROP TRIGGER %s ON %s", quote_identifier(trigger->name),
							 qualified_name(relid)));
		any = true;
	}
	ta_frame_end(&frame);

	if (!any)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 column == NULL ? errmsg("table \"%s\" is under no state machine", get_rel_name(relid)) : errmsg("column \"%s\" of table \"%s\" is under no state machine", column, get_rel_name(relid))));
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------
 * Looking at machines
 * ---------------------------------------------------------------------
 */

/* Can a name stand for itself in a Mermaid diagram? */
static bool
is_plain_identifier(const char *name)
{
	static const char *const reserved[] = {"state", "end", "note", "as", "direction", "class", "classDef",
										   "click", "href", "style", "default"};

	for (int i = 0; i < (int) lengthof(reserved); i++)
	{
		if (pg_strcasecmp(name, reserved[i]) == 0)
			return false;
	}
	for (const char *c = name; *c != '\0'; c++)
	{
		bool is_digit = *c >= '0' && *c <= '9';

		if (!(*c == '_' || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (is_digit && c > name)))
			return false;
	}
	return true;
}

/* Text of a label in Mermaid: what has a meaning there becomes an entity. */
static void
append_mermaid_label(StringInfo buf, const char *label)
{
	for (const char *c = label; *c != '\0'; c++)
	{
		if ((unsigned char) *c < ' ' || strchr("#;:\"<>{}%\\`", *c) != NULL)
			appendStringInfo(buf, "#%d;", (unsigned char) *c);
		else
			appendStringInfoChar(buf, *c);
	}
}

static const char *
mermaid_state(const Machine *machine, int state)
{
	if (is_plain_identifier(machine->states[state]))
		return machine->states[state];
	return psprintf("state_%d", state + 1);
}

/* Quoted for DOT. */
static const char *
dot_string(const char *name)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (const char *c = name; *c != '\0'; c++)
	{
		if (*c == '"' || *c == '\\')
			appendStringInfoChar(&buf, '\\');
		if (*c == '\n')
			appendStringInfoString(&buf, "\\n");
		else
			appendStringInfoChar(&buf, *c);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

static bool
is_final(const Machine *machine, int state)
{
	for (int i = 0; i < machine->ntransitions; i++)
	{
		if (machine->transitions[i].from == state && machine->transitions[i].to != state)
			return false;
	}
	return true;
}

static void
draw_mermaid(StringInfo buf, const Machine *machine)
{
	appendStringInfoString(buf, "stateDiagram-v2\n");
	for (int i = 0; i < machine->nstates; i++)
	{
		const char *id = mermaid_state(machine, i);

		if (id == machine->states[i])
			continue;
		appendStringInfoString(buf, "    state \"");
		append_mermaid_label(buf, machine->states[i]);
		appendStringInfo(buf, "\" as %s\n", id);
	}
	appendStringInfo(buf, "    [*] --> %s\n", mermaid_state(machine, machine->initial));
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const MachineTransition *transition = &machine->transitions[i];

		appendStringInfo(buf, "    %s --> %s: ", mermaid_state(machine, transition->from),
						 mermaid_state(machine, transition->to));
		append_mermaid_label(buf, transition->event);
		appendStringInfoChar(buf, '\n');
	}
	for (int i = 0; i < machine->nstates; i++)
	{
		if (is_final(machine, i))
			appendStringInfo(buf, "    %s --> [*]\n", mermaid_state(machine, i));
	}
}

static void
draw_dot(StringInfo buf, const Machine *machine)
{
	appendStringInfo(buf, "digraph %s {\n", dot_string(machine->name));
	appendStringInfoString(buf, "    rankdir=LR;\n    node [shape=box, style=rounded];\n    \"\" [shape=point];\n");
	for (int i = 0; i < machine->nstates; i++)
	{
		if (is_final(machine, i))
			appendStringInfo(buf, "    %s [peripheries=2];\n", dot_string(machine->states[i]));
	}
	appendStringInfo(buf, "    \"\" -> %s;\n", dot_string(machine->states[machine->initial]));
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const MachineTransition *transition = &machine->transitions[i];

		appendStringInfo(buf, "    %s -> %s [label=%s];\n", dot_string(machine->states[transition->from]),
						 dot_string(machine->states[transition->to]), dot_string(transition->event));
	}
	appendStringInfoString(buf, "}\n");
}

/*
 * machine_diagram(name text, format text) → text
 *		A machine as a state diagram for Mermaid or Graphviz.
 *
 * Raises TA007 for no such machine, 22023 for another format.
 */
PG_FUNCTION_INFO_V1(ta_machine_diagram);
Datum
ta_machine_diagram(PG_FUNCTION_ARGS)
{
	char		  *name;
	char		  *format;
	Jsonb		  *definition;
	Machine		  *machine;
	StringInfoData buf;

	refuse_null(fcinfo, 0, "name");
	refuse_null(fcinfo, 1, "format");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	format = text_to_cstring(PG_GETARG_TEXT_PP(1));
	definition = read_definition(name);
	if (definition == NULL)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("state machine \"%s\" does not exist", name)));
	machine = compile_machine(name, definition);

	initStringInfo(&buf);
	if (strcmp(format, "mermaid") == 0)
		draw_mermaid(&buf, machine);
	else if (strcmp(format, "dot") == 0)
		draw_dot(&buf, machine);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown format \"%s\" of a diagram", format),
				 errhint("It can be \"mermaid\" or \"dot\".")));
	PG_RETURN_TEXT_P(cstring_to_text_with_len(buf.data, buf.len));
}

/* The only column of a table that is under a machine. */
static char *
only_attached_column(Oid relid)
{
	List *rows = read_attachments(relid, NULL);

	if (rows == NIL && get_rel_relispartition(relid))
	{
		ListCell *cell;

		foreach(cell, get_partition_ancestors(relid))
			rows = list_concat(rows, read_attachments(lfirst_oid(cell), NULL));
	}
	if (rows == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is under no state machine", get_rel_name(relid))));
	if (list_length(rows) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("table \"%s\" has several columns under a state machine", get_rel_name(relid)),
				 errhint("Name one of them in column_name.")));
	return ((RegistryRow *) linitial(rows))->column;
}

/* The state of the row with this key, read with the caller's rights. */
static char *
read_state(Oid relid, const char *column, Datum key)
{
	Relation	  rel = relation_open(relid, AccessShareLock);
	Bitmapset	 *primary_key;
	AttrNumber	  key_column;
	Oid			  types[1] = {UUIDOID};
	Datum		  values[1] = {key};
	char		 *sql;
	char		 *state;
	TaFrame		  frame;
	MemoryContext caller = CurrentMemoryContext;

	primary_key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	relation_close(rel, AccessShareLock);
	if (bms_num_members(primary_key) != 1 ||
		get_atttype(relid, key_column = bms_singleton_member(primary_key) + FirstLowInvalidHeapAttributeNumber) != UUIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the primary key of table \"%s\" is not a single column of type uuid", get_rel_name(relid)),
				 errhint("Its state and techally.machines say what is allowed.")));

	sql = psprintf("SELECT t.%s::pg_catalog.text FROM %s t WHERE t.%s = $1", quote_identifier(column),
				   qualified_name(relid), quote_identifier(get_attname(relid, key_column, false)));
	ta_frame_begin(&frame, InvalidOid);
	expect(SPI_execute_with_args(sql, 1, types, values, NULL, true, 1), SPI_OK_SELECT, sql);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(TA_ERRCODE_RECORD_NOT_FOUND),
				 errmsg("no row of table \"%s\" has the key \"%s\"", get_rel_name(relid),
						DatumGetCString(DirectFunctionCall1(uuid_out, key)))));
	state = ta_spi_text(0, 1);
	if (state != NULL)
		state = MemoryContextStrdup(caller, state);
	ta_frame_end(&frame);
	return state;
}

/*
 * allowed_events(target regclass, key uuid, column_name name)
 *		→ TABLE (event text, to_state text)
 *		What may happen next to a row, in the order of the definition.
 *
 * Reads the row as the caller.  Raises TA007 where the caller sees no such row,
 * 42704 where the table is under no machine, 22023 where it is under several
 * and none is named, 42804 where its key is not one uuid.
 */
PG_FUNCTION_INFO_V1(ta_allowed_events);
Datum
ta_allowed_events(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	List			*transitions;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old_context;
		Oid			  relid;
		const char	 *column;
		char		 *state;

		refuse_null(fcinfo, 0, "target");
		refuse_null(fcinfo, 1, "key");
		funcctx = SRF_FIRSTCALL_INIT();
		old_context = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &funcctx->tuple_desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		BlessTupleDesc(funcctx->tuple_desc);

		relid = PG_GETARG_OID(0);
		if (get_rel_name(relid) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("relation with OID %u does not exist", relid)));
		column = PG_ARGISNULL(2) ? only_attached_column(relid) : NameStr(*PG_GETARG_NAME(2));
		if (!ta_machine_attached(relid, column))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("column \"%s\" of table \"%s\" is under no state machine", column, get_rel_name(relid))));
		state = read_state(relid, column, PG_GETARG_DATUM(1));
		transitions = state == NULL ? NIL : ta_machine_leaving(relid, column, state);
		funcctx->user_fctx = transitions;
		MemoryContextSwitchTo(old_context);
	}

	funcctx = SRF_PERCALL_SETUP();
	transitions = funcctx->user_fctx;
	if (funcctx->call_cntr < (uint64) list_length(transitions))
	{
		TaTransition *transition = list_nth(transitions, funcctx->call_cntr);
		Datum		  values[2] = {CStringGetTextDatum(transition->event), CStringGetTextDatum(transition->to)};
		bool		  nulls[2] = {false, false};

		SRF_RETURN_NEXT(funcctx, HeapTupleGetDatum(heap_form_tuple(funcctx->tuple_desc, values, nulls)));
	}
	SRF_RETURN_DONE(funcctx);
}
