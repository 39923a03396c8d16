# One SKU that everybody wants; sourced by the cases hot_sku_*, which set
# case_target and the speed of a commit.
case_sides='naive call stripes techally techally_16 many_skus'
case_unit='reservations/s'

# A commit that takes a millisecond, as on a disk with a real flush or with a
# synchronous standby near by; or as fast as the machine's.
hot_commit() {
	case $1 in
	slow) export PGOPTIONS="$PGOPTIONS -c synchronous_commit=on -c commit_delay=1000 -c commit_siblings=0" ;;
	fast) export PGOPTIONS="$PGOPTIONS -c synchronous_commit=on" ;;
	esac
}

case_prepare() {
	skus=1100
	for store in plain shop; do
		make_shop $store
		load_shop $store
	done
	sql -f "$bench_dir/hot_sku.sql"
	hot_commit "$case_commit"
	case_seconds=2
	for side in $case_sides; do case_round "$side" 0 >/dev/null; done
	case_seconds=$seconds
}

# Nobody tells techally which SKU is hot: every round begins with one row.
case_before_round() {
	sql -c "SELECT shop.stripe_stock('S10001', 'main', 1)" >/dev/null
}

case_round() {
	local clients=64 threads=$cores
	case $1 in
	naive) rate -T "$case_seconds" -f "$(script_for naive_reserve.pgbench plain)" ;;
	call) rate -T "$case_seconds" -f "$(script_for call_reserve.pgbench plain)" ;;
	stripes) rate -T "$case_seconds" -f "$(script_for stripes_reserve.pgbench plain)" ;;
	techally) rate -T "$case_seconds" -f "$(script_for hot_reserve.pgbench shop)" ;;
	techally_16) clients=16 rate -T "$case_seconds" -f "$(script_for hot_reserve.pgbench shop)" ;;
	many_skus) rate -T "$case_seconds" -f "$(script_for many_reserve.pgbench shop)" ;;
	esac
}

case_check() {
	local problems
	problems=$(sql -c "SELECT * FROM techally.check_store('shop') LIMIT 10")
	[ -z "$problems" ] || { say "$problems"; return 1; }
	say "hot: $(sql -F ' ' -c "SELECT sku, warehouse, stripes FROM techally.hot_stock"); HOT updates of stock rows: $(sql -c \
		"SELECT round(100.0 * n_tup_hot_upd / nullif(n_tup_upd, 0), 1) FROM pg_stat_user_tables WHERE schemaname = 'shop' AND relname = 'inventory_stock'") %"
}
