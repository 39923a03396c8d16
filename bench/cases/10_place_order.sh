# place_order of five lines, drawn at random from all SKUs.
case_sides='plain techally floor_stock floor_rows'
case_unit='orders/s'
case_target='techally>=1.5'

case_prepare() {
	local store side
	for store in $(stores); do
		make_shop "$store"
		load_shop "$store"
	done
	same_tables
	# so that no round starts with empty tables
	case_seconds=2
	for side in $case_sides; do case_round "$side" 0 >/dev/null; done
	case_seconds=$seconds
}

case_round() {
	case $1 in
	floor_stock) rate -T "$case_seconds" -f "$(script_for floor.pgbench floor)" -D update=1 ;;
	floor_rows) rate -T "$case_seconds" -f "$(script_for floor.pgbench floor)" -D update=0 ;;
	*) rate -T "$case_seconds" -f "$(script_for place_order.pgbench "$(schema_of "$1")")" ;;
	esac
}

case_check() { sound; }
