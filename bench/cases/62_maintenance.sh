# A maintenance pass over a thousand managed partitions with nothing to do,
# against the bare query of the catalogs that lists them with their bounds; each
# in a session of its own, which has to read the catalogs for itself.
case_sides='catalog maintain'
case_unit=ms
case_target='maintain<=3'

case_prepare() {
	sql <<-'SQL' >/dev/null
		CREATE EXTENSION techally;
		SELECT format('CREATE TABLE t%s (id bigint, at timestamptz) PARTITION BY RANGE (at)', n) FROM generate_series(1, 10) n \gexec
		SELECT techally.manage_partitions(format('t%s', n)::regclass, '1 day'), techally.create_partitions(format('t%s', n)::regclass, '2024-01-01 UTC', '2024-01-01 UTC'::timestamptz + interval '95 days')
		  FROM generate_series(1, 10) n;
	SQL
	[ "$(sql -c "SELECT count(*) FROM pg_inherits WHERE inhparent IN (SELECT parent FROM techally.managed_partitions)")" = 1000 ]
}

milliseconds() { sql -c '\timing on' -c "$1" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p'; }

case_round() {
	case $1 in
	catalog)
		milliseconds "SELECT i.inhparent::regclass, c.oid::regclass, pg_get_expr(c.relpartbound, c.oid)
			FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN techally.managed_partitions m ON m.parent = i.inhparent" ;;
	maintain)
		milliseconds "SELECT count(techally.maintain_partitions(parent)) FROM techally.managed_partitions" ;;
	esac
}
