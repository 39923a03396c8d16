# One-row updates by several clients, audited.
. "$bench_dir/audit.sh"
case_sides=$audit_sides
case_unit='updates/s'
case_target='techally>=0.75'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round full; }
case_round() {
	sed -e "s/@schema@/$(audit_schema "$1")/g" "$bench_dir/cases/audit_single.pgbench" >"$work/$1.audit"
	rate -T "$seconds" -D rows="$audit_rows" -f "$work/$1.audit"
}
case_check() { audit_check; }
