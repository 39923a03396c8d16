# Draining a million rows of DEFAULT, alone, against a plain INSERT … SELECT of
# the same rows into partitions that exist.  Seconds of both.
case_sides='insert_select drain'
case_unit=seconds
case_target='drain<=2'

drain_rows=1000000

case_prepare() {
	sql <<-SQL >/dev/null
		CREATE EXTENSION techally;
		CREATE TABLE source AS
		SELECT g::bigint AS id, '2023-01-01 UTC'::timestamptz + g * interval '25 seconds' AS at, 'event number ' || g AS body
		  FROM generate_series(0, $drain_rows - 1) g;
	SQL
}

case_before_round() {
	sql <<-'SQL' >/dev/null
		DROP TABLE IF EXISTS ready, waiting;
		CREATE TABLE ready (id bigint NOT NULL, at timestamptz NOT NULL, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
		CREATE INDEX ON ready (at);
		CREATE TABLE waiting (LIKE ready INCLUDING ALL) PARTITION BY RANGE (at);
		SELECT techally.manage_partitions('ready', '1 month');
		SELECT techally.create_partitions('ready', '2023-01-01 UTC', '2024-01-01 UTC');
		SELECT techally.manage_partitions('waiting', '1 month');
		INSERT INTO waiting SELECT * FROM source;
	SQL
}

timed() {
	local start=$EPOCHREALTIME
	"$@" >/dev/null
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", b - a }'
}

drain_all() {
	local moved=1 script
	script=$(for moved in {1..60}; do echo "SELECT techally.drain_default('waiting');"; done)
	sql <<<"$script" | awk '{ n += $1 } END { exit n == '$drain_rows' ? 0 : 1 }'
}

case_round() {
	case $1 in
	insert_select) timed sql -c 'INSERT INTO ready SELECT * FROM source' ;;
	drain) timed drain_all ;;
	esac
}

case_check() {
	[ "$(sql -c 'SELECT count(*) FROM (TABLE source EXCEPT TABLE waiting) d')" = 0 ] &&
		[ "$(sql -c "SELECT count(*) FROM waiting_default")" = 0 ]
}
