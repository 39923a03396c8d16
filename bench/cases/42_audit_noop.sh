# An UPDATE of 200,000 rows that changes nothing, audited.
. "$bench_dir/audit.sh"
case_sides=$audit_sides
case_unit='ms'
case_target='techally<=1.1'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round full; }
case_round() { audit_timed "$1" "UPDATE $(audit_schema "$1").people SET balance = balance, updated_at = updated_at"; }
case_check() { audit_check; }
