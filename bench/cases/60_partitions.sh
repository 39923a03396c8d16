# Routed inserts: a managed table against one whose partitions were made by
# hand, with the same bounds.  Alternating rounds; the ratio should be one.
case_sides='by_hand managed'
case_unit='inserts/s'
case_target='managed>=0.93 managed<=1.07'

partitioned() {
	echo "CREATE TABLE $1 (id bigint NOT NULL, at timestamptz NOT NULL, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
	echo "CREATE INDEX ON $1 (at);"
}

case_prepare() {
	{
		echo 'CREATE EXTENSION techally;'
		partitioned managed
		echo "SELECT techally.manage_partitions('managed', '1 month', 12);"
		partitioned by_hand
		cat <<-'SQL'
			SELECT format('CREATE TABLE by_hand_%s PARTITION OF by_hand FOR VALUES FROM (%L) TO (%L)', row_number() OVER (), from_time, to_time)
			  FROM techally.partition_ranges('managed') \gexec
			CREATE TABLE by_hand_rest PARTITION OF by_hand DEFAULT;
		SQL
	} | sql >/dev/null
}

case_before_round() {
	sql -c 'TRUNCATE managed, by_hand'
}

# Many rows a statement, so that routing is what is measured and not pgbench.
case_round() {
	local rows=400000 ms
	ms=$(sql -c '\timing on' -c "INSERT INTO $1 SELECT g, date_trunc('month', now()) + (g * 7919 % 360) * interval '1 day', 'some text for a row' FROM generate_series(1, $rows) g" |
		sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p')
	awk -v rows=$rows -v ms="$ms" 'BEGIN { printf "%.1f\n", rows * 1000 / ms }'
}
