# Search: 240 queries from head to tail over a million products, the top 20,
# against a stored tsvector with GIN and ts_rank.  The rate is 1000 / p99, the
# 99th percentile of the mix in milliseconds; what else is promised stands in
# the lines "# search:" of the results.
#
# Words come from ../shared/data/chorus-icecat/products.ndjson.xz where that is,
# otherwise from bench/search_source.sql.
case_sides='gin techally'
case_unit='1/p99'
case_target='techally>=15'

search_words=${TA_SEARCH_WORDS:-}
for search_file in "$ta_top/../shared/data/chorus-icecat/products.ndjson.xz"; do
	[ -n "$search_words" ] || [ ! -e "$search_file" ] || search_words=$search_file
done
search_products=1000000
[ "$quick" = no ] || search_products=50000

search_note() { record "# search: $*"; say "search: $*"; }

case_prepare() {
	sql -c "CREATE TABLE search_lines (doc jsonb)"
	if [ -n "$search_words" ]; then
		xz -dc "$search_words" | sql -c "COPY search_lines FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')"
	fi
	sql -f "$bench_dir/search_source.sql" -v count="$search_products" -f "$bench_dir/search_products.sql"
	make_shop shop
	sql -c "INSERT INTO shop.brands (name, slug) SELECT DISTINCT brand, md5(brand) FROM search_made" \
		-c "INSERT INTO shop.categories (name, slug) SELECT DISTINCT kind, md5(kind) FROM search_made"
	local load="INSERT INTO shop.products (id, sku, name, slug, description, price, is_published, brand_id, category_id)
		SELECT m.id, m.sku, m.name, m.sku, m.description, m.price, true, b.id, c.id
		  FROM search_made m JOIN shop.brands b ON b.name = m.brand JOIN shop.categories c ON c.name = m.kind"
	search_note "load of $search_products products with the index in place: $(sql_seconds "$load") s"
	search_note "merging its segments: $(sql_seconds "SELECT techally.fold_search('shop', true)") s"
	# the same table, with a stored tsvector and GIN in place of our triggers
	sql -c "CREATE SCHEMA gin" -c "CREATE TABLE gin.products (LIKE shop.products INCLUDING ALL)" \
		-c "ALTER TABLE gin.products ADD COLUMN tsv tsvector GENERATED ALWAYS AS (to_tsvector('english', name || ' ' || coalesce(description, ''))) STORED" \
		-c "CREATE INDEX products_tsv ON gin.products USING gin (tsv)"
	search_note "load of the same with tsvector and GIN: $(sql_seconds "INSERT INTO gin.products (id, sku, name, slug, description, price, is_published, brand_id, category_id)
		SELECT id, sku, name, slug, description, price, is_published, brand_id, category_id FROM shop.products") s"
	quiesce
	sql -f "$bench_dir/search_queries.sql"
	search_note "queries: $(sql -c "SELECT count(*) FROM search_queries")"
	local ours theirs
	ours=$(sql -c "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE c.relnamespace = 'shop'::regnamespace AND c.relname IN ('search_segments', 'search_postings', 'search_documents', 'search_recent', 'search_prices')")
	theirs=$(sql -c "SELECT pg_relation_size('gin.products_tsv') + (SELECT sum(pg_column_size(tsv)) FROM gin.products)")
	search_note "size: $((ours / 1048576)) MB of $((theirs / 1048576)) MB, $(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")x (at most 1.5)"
}

sql_seconds() {
	sql -c '\timing on' -c "$1" | awk '/^Time: / { printf "%.1f", $2 / 1000 }'
}

case_round() {
	sql -c "DROP TABLE IF EXISTS times_$1" -c "SELECT count(*) FROM time_queries('$1')" -c "CREATE TABLE times_$1 AS SELECT * FROM time_queries('$1')" >/dev/null
	sql -c "SELECT round((1000 / percentile_disc(0.99) WITHIN GROUP (ORDER BY ms))::numeric, 2) FROM times_$1"
}

case_check() {
	local facts
	sql -c "CREATE TABLE both_times AS SELECT q.*, g.ms AS gin, t.ms AS techally FROM search_queries q JOIN times_gin g USING (id) JOIN times_techally t USING (id)"
	facts=$(sql -c "SELECT format('p99 %s ms to %s ms, median %s to %s', round(percentile_disc(0.99) WITHIN GROUP (ORDER BY gin)::numeric, 2), round(percentile_disc(0.99) WITHIN GROUP (ORDER BY techally)::numeric, 2), round(percentile_disc(0.5) WITHIN GROUP (ORDER BY gin)::numeric, 2), round(percentile_disc(0.5) WITHIN GROUP (ORDER BY techally)::numeric, 2)) FROM both_times")
	search_note "$facts"
	search_note "ten most frequent terms: $(sql -c "SELECT format('at least %sx (20)', round(min(gin / techally)::numeric, 1)) FROM both_times WHERE head")"
	search_note "single queries: $(sql -c "SELECT format('%s of %s slower than 1.5x, the worst %sx (%s: %s to %s ms)', (SELECT count(*) FROM both_times WHERE techally > gin * 1.5), (SELECT count(*) FROM both_times), round((techally / gin)::numeric, 2), query, round(gin::numeric, 2), round(techally::numeric, 2)) FROM both_times ORDER BY techally / gin DESC LIMIT 1")"
	search_note "two filters, three facets: $(sql -c "SELECT format('p99 %s ms', round(percentile_disc(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 1)) FROM time_queries('filtered')"); of wide filters $(sql -c "SELECT format('p99 %s ms', round(percentile_disc(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 1)) FROM time_queries('wide')")"
	search_updates
	search_note "differences from brute force: $(sql -c "WITH fast AS (SELECT q.id AS query, s.place, s.product FROM search_queries q, shop.search_products(q.query) WITH ORDINALITY s(product, name, description, price, rank, place)),
		slow AS (SELECT * FROM techally.search_brute_force('shop', (SELECT array_agg(query ORDER BY id) FROM search_queries)))
		SELECT count(*) FROM fast f FULL JOIN slow s ON s.query = f.query AND s.place = f.place WHERE s.id IS DISTINCT FROM f.product")"
}

# A new name for a product, one a statement.
search_updates() {
	local side schema ms=''
	for side in gin shop gin shop; do
		ms="$ms $side $(sql -c "DO \$\$ BEGIN FOR i IN 1..300 LOOP UPDATE $side.products SET name = name || ' x' WHERE sku = 'S' || lpad((i * 97)::text, 8, '0'); COMMIT; END LOOP; END \$\$" \
			-c '\timing on' -c "DO \$\$ BEGIN FOR i IN 1..1000 LOOP UPDATE $side.products SET name = name || ' y' WHERE sku = 'S' || lpad((i * 43)::text, 8, '0'); COMMIT; END LOOP; END \$\$" | awk '/^Time: / { printf "%.3f", $2 / 1000 }') ms;"
	done
	search_note "update of a name:$ms"
}
