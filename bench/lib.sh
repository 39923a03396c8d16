# Shared by the scripts of bench/; sourced by bash, not run.
#
# They stand on scripts/lib.sh, which builds and installs into a private copy
# of the server and starts a throw-away cluster there.  Here are the settings
# of that cluster, the shops in it, timed rounds, and how they are recorded.

bench_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
. "$bench_dir/../scripts/lib.sh"

say() { printf '%s\n' "$*" >&2; }

# --- the cluster --------------------------------------------------------------

# No checkpoint and no autovacuum falls into a round: both are done between
# rounds.  These stand in the file of results, too.
bench_settings=(
	"shared_buffers = 1GB"
	"synchronous_commit = off"
	"fsync = on"
	"wal_level = replica"
	"max_wal_size = 64GB"
	"min_wal_size = 2GB"
	"checkpoint_timeout = 1d"
	"autovacuum = off"
	"max_connections = 200"
)

# bench_start [--without-engine]: builds, installs and starts.
bench_start() {
	[ "${1:-}" = --without-engine ] || ta_build || ta_die "techally does not build"
	ta_start "${bench_settings[@]}" || ta_die "the server does not start"
	work=$TA_DIR/tmp
	export PGOPTIONS='-c client_min_messages=warning'
}

# psql that stops at the first error
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

# --- the stores ---------------------------------------------------------------

# The tables of a store in schema $1, without the engine: the same migrations
# that create_store runs, but for those that install functions and guards.
plain_tables() {
	local schema=$1 file
	echo "CREATE SCHEMA $schema;"
	for file in "$ta_top"/sql/store/*.up.sql; do
		case $file in *_api.up.sql) continue ;; esac
		# what calls the engine is a guard, too
		grep -q 'techally\.' "$file" && continue
		echo "SET search_path = $schema, pg_temp;"
		sed -e "s/@store@/$schema/g" -e "s/@store_literal@/'$schema'/g" -e "s/@machine@/'techally'/g" "$file"
	done
	# attach_machine does this for a store
	echo "ALTER TABLE orders ALTER COLUMN status SET DEFAULT 'pending';"
	echo "RESET search_path;"
}

# Makes the schema of a side: plain, floor, or a store of techally.
make_shop() {
	case $1 in
	plain | floor)
		{ plain_tables "$1"; cat "$bench_dir/$1_shop.sql" 2>/dev/null || cat "$bench_dir/$1.sql"; } |
			sql -1 -f - ;;
	*)
		sql -c 'CREATE EXTENSION IF NOT EXISTS techally' -c "SELECT techally.create_store('$1')" >/dev/null ;;
	esac
}

# Users, products and stock, the same on every side: keys are made from numbers.
load_shop() {
	sql -v skus="$skus" -v users="$users" -v store="$1" -f "$bench_dir/load.sql" >/dev/null
}

# --- rounds -------------------------------------------------------------------

# Leaves nothing of the past for a round to pay: dead rows, stale statistics,
# dirty buffers.
quiesce() { sql -c 'VACUUM ANALYZE' -c 'CHECKPOINT'; }

# A client script for a side: @store@ becomes its schema.
script_for() {
	sed "s/@store@/$2/g" "$bench_dir/cases/$1" >"$work/$2.$1"
	echo "$work/$2.$1"
}

# Runs pgbench and prints the transactions per second.  A client that fails
# fails the round: a rate with errors in it is none.
rate() {
	local log=$work/pgbench.log
	pgbench -n -M prepared -c "$clients" -j "$threads" -D clients="$clients" -D skus="$skus" -D users="$users" \
		"$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
	grep -q 'number of failed transactions: 0 ' "$log" || { cat "$log" >&2; return 1; }
	awk '/^tps = / { printf "%.1f\n", $3 }' "$log"
}

# The schema that a side works in.
schema_of() { case $1 in techally) echo shop ;; floor*) echo floor ;; *) echo "$1" ;; esac; }

# The schemas of the sides that are measured.
stores() {
	local side
	for side in $case_sides; do schema_of "$side"; done | sort -u
}

# A comparison of unlike tables would say nothing: fails where the tables of
# the schemas differ in a column, a constraint or an index.
same_tables() {
	local store first=''
	for store in $(stores); do
		sql -v store="$store" -f "$bench_dir/catalog.sql" | sed "s/\\b$store\\./@store@./g" >"$work/catalog.$store"
		[ -n "$first" ] || first=$store
		diff "$work/catalog.$first" "$work/catalog.$store" >&2 || ta_die "the tables of $first and $store differ"
	done
}

# Fails, and prints what is wrong, where a shop's sums do not add up.
sound() {
	local store problems
	for store in $(stores); do
		case $store in
		plain) problems=$(sql -c "SELECT * FROM plain.check_store() LIMIT 10") ;;
		floor) problems='' ;;
		*) problems=$(sql -c "SELECT * FROM techally.check_store('$store') LIMIT 10") ;;
		esac
		[ -z "$problems" ] || { say "$store: $problems"; return 1; }
	done
}
