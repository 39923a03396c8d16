# A bulk UPDATE of two columns of 200,000 rows, audited.
. "$bench_dir/audit.sh"
case_sides=$audit_sides
case_unit='ms'
case_target='techally<=2.5'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round full; }
case_round() { audit_timed "$1" "UPDATE $(audit_schema "$1").people SET balance = balance + 1, updated_at = clock_timestamp()"; }
case_check() { audit_check; }
