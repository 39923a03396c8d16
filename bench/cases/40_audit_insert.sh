# A bulk INSERT of 200,000 rows, audited.
. "$bench_dir/audit.sh"
case_sides=$audit_sides
case_unit='ms'
case_target='techally<=2.2'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round empty; }
case_round() { audit_timed "$1" "$(audit_insert "$1")"; }
case_check() { audit_check; }
