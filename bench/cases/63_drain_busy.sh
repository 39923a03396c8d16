# Draining a million rows of DEFAULT while eight clients insert and read: the
# longest transaction of any of them, against what they are promised to wait at
# most (techally.maintenance_lock_timeout and maintenance_hold_limit).
#
# Two of the clients count: the rows that were there must be there, each once,
# in the snapshot of every one of their statements, or the client divides by
# zero.  Six insert, into the ranges that move and into others.
case_sides='promised longest'
case_unit=ms
case_target='longest<=1'

case_prepare() {
	sql -c 'CREATE EXTENSION techally'
	cat >"$work/insert.pgbench" <<-'SQL'
		\set at random(0, 25000000)
		INSERT INTO busy VALUES (1000000 + random() * 1000000000, '2023-01-01 UTC'::timestamptz + :at * interval '1 second', 'another');
	SQL
	cat >"$work/count.pgbench" <<-'SQL'
		SELECT 1 / (count(*) = 1000000 AND sum(id) = 499999500000)::int FROM busy WHERE id < 1000000;
	SQL
}

case_before_round() {
	sql <<-'SQL' >/dev/null
		DROP TABLE IF EXISTS busy;
		CREATE TABLE busy (id bigint NOT NULL, at timestamptz NOT NULL, body text) PARTITION BY RANGE (at);
		CREATE INDEX ON busy (at);
		SELECT techally.manage_partitions('busy', '1 month');
		INSERT INTO busy SELECT g, '2023-01-01 UTC'::timestamptz + g * interval '25 seconds', 'event number ' || g FROM generate_series(0, 999999) g;
	SQL
}

case_round() {
	local moved=1 total=0 log=$work/busy clients_of status=0
	if [ "$1" = promised ]; then
		sql -c "LOAD 'techally'" -c "SELECT sum(setting::int) FROM pg_settings WHERE name IN ('techally.maintenance_lock_timeout', 'techally.maintenance_hold_limit')"
		return
	fi
	rm -f "$log".*
	pgbench -n -c 6 -j 2 -T 60 -R 600 -l --log-prefix="$log.insert" -f "$work/insert.pgbench" >"$work/busy.out1" 2>&1 &
	clients_of=$!
	pgbench -n -c 2 -j 1 -T 60 -l --log-prefix="$log.count" -f "$work/count.pgbench" >"$work/busy.out2" 2>&1 &
	clients_of="$clients_of $!"
	while [ "$moved" != 0 ]; do
		moved=$(sql -c "SELECT techally.try_drain_default('busy')") || { status=1; break; }
		[ "$moved" -lt 0 ] || total=$((total + moved))
	done
	kill -INT $clients_of 2>/dev/null
	wait $clients_of
	if grep -h ERROR "$work/busy.out1" "$work/busy.out2" >&2; then status=1; fi
	[ "$total" -ge 1000000 ] && [ $status = 0 ] || { say "moved $total"; return 1; }
	# the latency, without the time that -R let the client wait for its turn
	cat "$log".* | awk '{ wait = $3 - $7; if (wait > max) max = wait } END { printf "%.1f\n", max / 1000 }'
}

case_check() {
	[ "$(sql -c "SELECT count(*) FROM busy WHERE id < 1000000")" = 1000000 ]
}
