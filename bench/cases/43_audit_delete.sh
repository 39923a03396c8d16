# A bulk DELETE of 200,000 rows, audited; against their INSERT without audit, and
# beside it that with audit.
. "$bench_dir/audit.sh"
case_sides="insert insert_audited $audit_sides"
case_unit='ms'
case_target='techally<=0.8'
case_prepare() { audit_prepare; }
case_before_round() { audit_before_round full; }
case_round() {
	case $1 in
	insert)
		sql -c "TRUNCATE none_shop.people"
		audit_timed none "$(audit_insert none)"
		;;
	insert_audited)
		sql -c "TRUNCATE shop.people" -c "TRUNCATE shop.audit_logs"
		audit_timed techally "$(audit_insert techally)"
		sql -c "TRUNCATE shop.audit_logs"
		;;
	*) audit_timed "$1" "DELETE FROM $(audit_schema "$1").people" ;;
	esac
}
case_check() { audit_check; }
