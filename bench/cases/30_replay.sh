# The beginning of the Online Retail file, as scripts/replay-online-retail plays
# it into a store: every invoice as an order that is walked to completed, with
# returns, charges and write-offs.  One session, invoice after invoice.
#
# What is timed is the replay of the documents.  The catalogue, the customers
# and the opening stock lie in the shop before.  Every round of a side begins
# with a new shop, whose tables are small at first: without enable_seqscan = off
# a session plans to read them whole, and keeps that for a while as they grow.
case_sides='plain techally'
case_unit='lines/s'
case_target='techally>=2'

case_available() {
	case_skip="there is no file $retail; --retail names one"
	[ -r "$retail" ] || return 1
	case_skip="xz is needed to read $retail"
	case $retail in *.xz) command -v xz >/dev/null ;; esac
}

# The scripts of the replay, for one shop.
replay_sql() {
	local store=$1
	shift
	sql -v work="replay_$store" -v store="$store" "$@"
}

case_prepare() {
	sql -c 'CREATE TABLE retail (line integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, invoice_no text,
		stock_code text, description text, quantity text, invoice_date text, unit_price text, customer_id text,
		country text)'
	case $retail in *.xz) xz -dc -- "$retail" ;; *) cat -- "$retail" ;; esac |
		sql -c 'COPY retail (invoice_no, stock_code, description, quantity, invoice_date, unit_price, customer_id,
			country) FROM STDIN (FORMAT csv, HEADER)'
	sql -c "DELETE FROM retail WHERE line > $lines"
}

case_before_round() {
	local store
	for store in $(stores); do
		if [ "$1" != 1 ]; then
			sql -c "DROP SCHEMA replay_$store CASCADE"
			case $store in
			plain) sql -c 'DROP SCHEMA plain CASCADE' ;;
			*) sql -c 'SET techally.allow_drop = on' -c "SELECT techally.drop_store('$store')" >/dev/null ;;
			esac
		fi
		make_shop "$store"
		replay_sql "$store" -1 -f "$ta_top/scripts/replay/schema.sql"
		replay_sql "$store" -1 -f - <<-'SQL'
			INSERT INTO :"work".run (store, file, fingerprint) VALUES (:'store', 'benchmark', '');
			INSERT INTO :"work".input (invoice_no, stock_code, description, quantity, invoice_date, unit_price,
									   customer_id, country)
			SELECT invoice_no, stock_code, description, quantity, invoice_date, unit_price, customer_id, country
			  FROM public.retail ORDER BY line;
			ANALYZE :"work".input;
			UPDATE :"work".run SET state = 'loaded';
		SQL
		replay_sql "$store" -1 -f "$ta_top/scripts/replay/prepare.sql"
	done
	same_tables
}

case_round() {
	replay_sql "$(schema_of "$1")" -f - <<-'SQL'
		SET jit = off;
		SET enable_seqscan = off;
		SELECT clock_timestamp() AS begun \gset
		CALL :"work".replay();
		SELECT round(count(*) / extract(epoch FROM clock_timestamp() - :'begun'), 1) FROM :"work".input;
	SQL
}

# Every line is accounted for, on all sides alike.
case_check() {
	local store problems first=''
	for store in $(stores); do
		replay_sql "$store" -1 -f "$ta_top/scripts/replay/reconcile.sql" || return 1
		problems=$(sql -c "SELECT * FROM replay_$store.problems LIMIT 10") || return 1
		[ -z "$problems" ] || { say "$store: $problems"; return 1; }
		sql -c "SELECT * FROM replay_$store.reconciliation ORDER BY place" >"$work/account.$store" || return 1
		[ -n "$first" ] || first=$store
		diff "$work/account.$first" "$work/account.$store" >&2 || return 1
	done
	sound
}
