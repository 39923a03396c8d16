# A million open reservations, 100,000 of them expired and swept a thousand at a
# time, while eight clients go on reserving the same SKUs: the longest that one
# of them waits, in batches of the sweeper.
. "$bench_dir/hot_sku.sh"
case_sides='batch reservation'
case_unit='ms at most'
case_target='reservation<=1'

case_prepare() {
	make_shop shop
	skus=100
	load_shop shop
	hot_commit fast
	sql >/dev/null <<-'SQL'
		SET session_replication_role = replica;
		CREATE TABLE open_reservations AS
		SELECT gen_random_uuid() AS id, md5('stock main' || n % 100 + 1)::uuid AS stock_id, n FROM generate_series(1, 1000000) n;
		INSERT INTO shop.stock_reservations (id, quantity, expires_at)
		SELECT id, 1, now() + interval '1 year' FROM open_reservations;
		INSERT INTO shop.stock_reservation_parts (reservation_id, stock_id, quantity)
		SELECT id, stock_id, 1 FROM open_reservations;
		UPDATE shop.inventory_stock s SET quantity_reserved = r.n
		  FROM (SELECT stock_id, count(*) AS n FROM open_reservations GROUP BY 1) r WHERE r.stock_id = s.id;
		VACUUM ANALYZE;
	SQL
}

# 100,000 expire at once
case_before_round() {
	sql -c "UPDATE shop.stock_reservations r SET expires_at = now() - interval '1 minute'
	          FROM open_reservations o WHERE o.id = r.id AND o.n % 10 = $1 - 1"
	rm -f "$work"/expiry.*
}

sweep() {
	local swept=1000 total=0
	(cd "$work" && exec pgbench -n -M prepared -c 8 -j 1 -T 600 -l --log-prefix=expiry.log -f "$(skus=100 script_for many_expiry.pgbench shop)") >/dev/null 2>&1 &
	local pid=$!
	sleep 1
	: >"$work/expiry.batches"
	while [ "$total" -lt 100000 ]; do
		swept=$(sql -c '\timing on' -c 'SELECT shop.expire_reservations(1000)' | tee -a "$work/expiry.batches" | head -1)
		total=$((total + swept))
	done
	kill "$pid"; wait "$pid" 2>/dev/null || true
}

case_round() {
	[ "$1" != batch ] || sweep || return 1
	case $1 in
	batch) awk '/^Time/ && $2 > max { max = $2 } END { print max }' "$work/expiry.batches" ;;
	reservation) awk '$3 > max { max = $3 } END { print max / 1000 }' "$work"/expiry.log* ;;
	esac
}

case_check() {
	local problems
	problems=$(sql -c "SELECT * FROM techally.check_store('shop') LIMIT 10")
	[ -z "$problems" ] || { say "$problems"; return 1; }
}
