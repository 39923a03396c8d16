# 64 clients sell exactly 100,000 units, one at a time, and go on until there
# are no more: how fast, and how fast the last 1,000 of them.
. "$bench_dir/hot_sku.sh"
case_sides='average last_percent'
case_unit='units/s'
case_target='last_percent>=0.2'

case_prepare() {
	make_shop shop
	skus=100
	load_shop shop
	hot_commit slow
}

sell_out() {
	local log=$work/sell_out.log status=0
	sql -v n="$1" >/dev/null <<-'SQL'
		INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('SALE' || :n, 'Sale', 'sale-' || :n, 1, true);
		SELECT shop.receive_stock('SALE' || :n, 100000);
	SQL
	echo "SELECT shop.reserve_stock('SALE$1', 1, reference => 'sale $1');" >"$work/sell_out.pgbench"
	# every client ends with the error that there is nothing left, and with no other
	pgbench -n -M prepared -c 64 -j "$cores" -t 100001 -f "$work/sell_out.pgbench" >"$log" 2>&1 || status=$?
	if grep 'ERROR' "$log" | grep -qv 'insufficient stock' || [ "$(grep -c 'insufficient stock' "$log")" != 64 ]; then
		cat "$log" >&2
		return 1
	fi
	[ "$(sql -c "SELECT count(*) FROM shop.stock_reservations WHERE reference = 'sale $1'")" = 100000 ] || return 1
	sql -F ' ' -v reference="sale $1" <<-'SQL'
		SELECT round(100000 / extract(epoch FROM max(at) - min(at)), 1),
		       round(1000 / extract(epoch FROM max(at) - min(at) FILTER (WHERE n > 99000)), 1)
		  FROM (SELECT created_at AS at, row_number() OVER (ORDER BY created_at) AS n
		          FROM shop.stock_reservations WHERE reference = :'reference') s;
	SQL
}

# one sale is both sides of a round
case_round() {
	if [ "$1" = average ] || [ ! -s "$work/sell_out.$2" ]; then
		sell_out "$2" >"$work/sell_out.$2" || return 1
	fi
	case $1 in
	average) cut -d' ' -f1 "$work/sell_out.$2" ;;
	last_percent) cut -d' ' -f2 "$work/sell_out.$2" ;;
	esac
}

case_check() {
	local problems
	problems=$(sql -c "SELECT * FROM techally.check_store('shop') LIMIT 10")
	[ -z "$problems" ] || { say "$problems"; return 1; }
}
