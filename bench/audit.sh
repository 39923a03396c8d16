# Shared by the benchmarks of the audit; sourced by their files in bench/cases.
#
# The same table of 15 columns, as many shops have it, in a schema a side:
#   none               no audit
#   techally           techally.enable_audit: history index, hashes and all
#   plpgsql_row        the usual trigger: old and new row by to_jsonb, one index
#   plpgsql_statement  the same over transition tables
# A statement on 200,000 rows is timed by the server's clock, from its begin to
# the end of its triggers.

audit_rows=200000
[ "$quick" = no ] || audit_rows=5000
audit_sides='none techally plpgsql_row plpgsql_statement'

# The schema of a side; what is audited by techally lies in one of a usual name,
# for its log has that name in every row.
audit_schema() { case $1 in techally) echo shop ;; *) echo "${1}_shop" ;; esac; }

audit_prepare() {
	local side
	sql -c "CREATE EXTENSION IF NOT EXISTS techally" -c "
		CREATE FUNCTION ms(statement text) RETURNS numeric LANGUAGE plpgsql AS \$\$
		DECLARE
			began timestamptz := clock_timestamp();
		BEGIN
			EXECUTE statement;
			RETURN round(extract(epoch FROM clock_timestamp() - began) * 1000, 1);
		END \$\$"
	for side in $audit_sides; do
		sql -v side="$side" -v schema="$(audit_schema "$side")" -f "$bench_dir/audit.sql" >/dev/null
	done
	sql -c "SELECT techally.enable_audit('shop.people')"
	# a round begins with an empty log: nobody else may do that
	sql -c "DO \$\$
		DECLARE t regclass;
		BEGIN
			FOR t IN SELECT relid FROM pg_partition_tree('shop.audit_logs') LOOP
				EXECUTE format('DROP TRIGGER techally_guard_truncate ON %s', t);
			END LOOP;
		END \$\$" >/dev/null
}

# Empty logs, and tables that are empty, too, or full.
audit_before_round() {
	local side
	for side in $audit_sides; do
		sql -c "BEGIN" -c "SET LOCAL session_replication_role = replica" -c "TRUNCATE $(audit_schema "$side").people" \
			-c "$([ "$1" = empty ] || audit_insert "$side")" -c "COMMIT" \
			-c "TRUNCATE $(audit_schema "$side").audit_logs"
		[ "$1" = empty ] || sql -c "VACUUM ANALYZE $(audit_schema "$side").people"
	done
}

audit_insert() {
	echo "INSERT INTO $(audit_schema "$1").people (id, email, first_name, last_name, phone, status, city, country, logins, points,
		balance, active, preferences, created_at, updated_at)
	SELECT md5(i::text)::uuid, 'person' || i || '@example.com', 'First' || i % 1000, 'Lastname' || i % 5000,
		'+49 30 ' || i, 'active', 'City ' || i % 100, 'DE', i % 50, i * 1000, (i % 100000) / 100.0, i % 2 = 0,
		jsonb_build_object('theme', 'dark', 'size', i % 10), now() - i * interval '1 minute', now()
	FROM generate_series(1, $audit_rows) i"
}

# timed SIDE STATEMENT: milliseconds
audit_timed() {
	sql -v statement="$2" <<<"SELECT ms(:'statement')"
}

# What was logged is what was done, and holds.
audit_check() {
	local problems
	problems=$(sql -c "SELECT * FROM techally.verify_audit('shop.people') LIMIT 5")
	[ -z "$problems" ] || { say "$problems"; return 1; }
}
