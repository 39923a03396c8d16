# place_order of three lines, one of them the SKU that everybody wants; 64
# clients, a commit of a millisecond.
. "$bench_dir/hot_sku.sh"
case_sides='plain techally'
case_unit='orders/s'
case_target='techally>=10'
case_commit=slow

case_round() {
	local clients=64 threads=$cores
	rate -T "$case_seconds" -f "$(script_for hot_order.pgbench "$(schema_of "$1")")"
}
