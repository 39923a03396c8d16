# Orders of five lines walked through the six events from placed to completed.
#
# Every client walks its own orders.  A transition is a statement and a
# transaction of its own; the walk is one pgbench transaction, so that the key
# of the order is looked up once, together with the first event.  The rate is
# that of transitions.
case_sides='plain techally floor'
case_unit='transitions/s'
case_target='techally>=2'

case_prepare() {
	local store
	for store in $(stores); do
		make_shop "$store"
		load_shop "$store"
		sql -c "CREATE TABLE pool_$store (n bigserial PRIMARY KEY, id uuid NOT NULL)"
	done
	same_tables
}

case_before_round() {
	local store
	for store in $(stores); do
		sql -c "TRUNCATE pool_$store RESTART IDENTITY"
		rate -t $((walks / clients)) -f "$(script_for pool.pgbench $store)" >/dev/null
	done
}

case_round() {
	rate -t $((walks / clients)) -D n=0 -f "$(script_for walk.pgbench "$(schema_of "$1")")" |
		awk '{ printf "%.1f\n", $1 * 6 }'
}

case_check() { sound; }
