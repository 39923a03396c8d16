# The log of an UPDATE of two columns, with its indexes, against two whole rows.
. "$bench_dir/audit.sh"
case_sides='plpgsql_row techally plpgsql_statement'
case_unit='kB'
case_target='techally<=0.334'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round full; }
case_round() {
	audit_timed "$1" "UPDATE $(audit_schema "$1").people SET balance = balance + 1, updated_at = clock_timestamp()" >/dev/null
	sql -c "SELECT (sum(pg_total_relation_size(relid)) / 1024)::bigint FROM
		(SELECT relid FROM pg_partition_tree('$(audit_schema "$1").audit_logs') UNION SELECT '$(audit_schema "$1").audit_logs') t(relid)"
}
case_check() { audit_check; }
