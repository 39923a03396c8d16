# A bulk DELETE of a soft-delete table of eight columns and three indexes, all of
# it in one statement, against the UPDATE of deleted_at that it stands for.
#
# Sides: plain is that UPDATE on a table without us, with the same columns and
# indexes; techally the DELETE; by_hand the UPDATE on a soft-delete table;
# row_trigger the DELETE of a table whose BEFORE DELETE trigger, in plpgsql,
# updates each row.  Milliseconds of the statement, on a table that was just
# filled.
case_sides='plain techally by_hand row_trigger'
case_unit='ms'
case_target='techally<=1.2'
deleted_rows=100000

case_prepare() {
	sql -c 'CREATE EXTENSION techally' -f - <<-'END'
		CREATE TABLE template (
			id uuid PRIMARY KEY, n integer NOT NULL, name text NOT NULL, price numeric(10,2),
			tags text[], created_at timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz, deletion_id uuid);
		CREATE INDEX ON template (n);
		CREATE INDEX ON template (deleted_at) WHERE deleted_at IS NOT NULL;
		CREATE TABLE t_plain (LIKE template INCLUDING ALL);
		CREATE TABLE t_row_trigger (LIKE template INCLUDING ALL);
		CREATE TABLE t_techally (LIKE template INCLUDING ALL);
		CREATE TABLE t_by_hand (LIKE template INCLUDING ALL);
		DO $$ BEGIN PERFORM techally.enable_soft_delete('t_techally'), techally.enable_soft_delete('t_by_hand'); END $$;
		CREATE FUNCTION set_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		    UPDATE t_row_trigger SET deleted_at = now() WHERE id = OLD.id;
		    RETURN NULL;
		END $$;
		CREATE TRIGGER set_deleted BEFORE DELETE ON t_row_trigger FOR EACH ROW EXECUTE FUNCTION set_deleted();
	END
}

case_before_round() {
	local side
	for side in $case_sides; do
		sql -c "TRUNCATE t_$side" -c "INSERT INTO t_$side (id, n, name, price, tags)
			SELECT md5(n::text)::uuid, n, 'product number ' || n, n % 1000, ARRAY['a', 'b'] FROM generate_series(1, $deleted_rows) n"
	done
}

case_round() {
	local statement
	case $1 in
	plain | by_hand) statement="UPDATE t_$1 SET deleted_at = now(), deletion_id = gen_random_uuid()" ;;
	*) statement="DELETE FROM t_$1" ;;
	esac
	# gen_random_uuid() once, as we do
	statement=${statement/gen_random_uuid()/(SELECT gen_random_uuid())}
	sql -c '\timing on' -c "$statement" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p'
	[ "$(sql -c "SELECT count(*) FROM t_$1 WHERE deleted_at IS NOT NULL")" = "$deleted_rows" ] || ta_die "not all rows are deleted"
}
