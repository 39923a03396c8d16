# Managed tables across a dump and its restore; archives in files and
# tablespaces; a drain behind a long transaction gives up; a conversion that a
# crash interrupts goes on.

use strict;
use warnings;

use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

plan skip_all => 'archives in files need zlib' if PostgreSQL::Test::Utils->can('check_pg_config') && !PostgreSQL::Test::Utils::check_pg_config('#define HAVE_LIBZ 1');

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\ntimezone = 'UTC'\n");
my $archives = $node->basedir . '/attic';
my $cold = $node->basedir . '/cold_space';
mkdir $archives or die;
mkdir $cold or die;
$node->append_conf('postgresql.conf', "techally.archive_directory = '$archives'\n");
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

sub sql { return $node->safe_psql('one', join(';', @_)); }

# The error code and message of a statement that fails.
sub failure
{
	my ($statement) = @_;
	my ($rc, $out, $err) = $node->psql('one', "\\set VERBOSITY verbose\n$statement");
	return $err =~ /ERROR:\s+(\w{5}): ([^\n]*)/ ? "$1 $2" : "none: $err";
}

$node->safe_psql('postgres', 'CREATE DATABASE one');
sql(
	"CREATE EXTENSION techally",
	"CREATE TABLE ev (id int, at timestamptz NOT NULL, v text, n numeric, twice numeric GENERATED ALWAYS AS (n * 2) STORED, b bytea, a text[], PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
	"SELECT techally.manage_partitions('ev', '1 month', 1, '3 months', 'archive')",
	"SELECT techally.archive_partitions_to('ev', 'file')",
	"SELECT techally.create_partitions('ev', '2023-01-01', '2023-07-01')",
	"INSERT INTO ev (id, at, v, n, b, a) SELECT g, '2023-01-01'::timestamptz + g * interval '1 hour',"
	  . " CASE g % 4 WHEN 0 THEN NULL WHEN 1 THEN E'a\\tb\\\\c\\nd\\r\\\\N' WHEN 2 THEN '' ELSE 'é' || g END, g / 7.0, decode(md5(g::text), 'hex'), ARRAY['x,y', NULL] FROM generate_series(1, 4000) g",
	"CREATE TABLE was AS SELECT * FROM ev");

# into a file
is(sql("SELECT techally.retire_partition('ev', '2023-05-01')"), 'detached public.ev_2023_01', 'detached first');
is(sql("SELECT techally.retire_partition('ev', '2023-05-01')"), 'archived public.ev_2023_01', 'then written');
my ($data) = glob("$archives/public.ev_2023_01.*.copy.gz");
my ($manifest) = glob("$archives/public.ev_2023_01.*.json");
ok(-s $data && -s $manifest, 'the file and its manifest are there');
is(sql("SELECT to_regclass('ev_2023_01') IS NULL"), 't', 'the table has gone');
is(sql("SELECT count(*) FROM ev"), 4000 - 743, 'with its rows');
is( `gzip -dc '$data' | sha256sum | cut -d' ' -f1`,
	sql("SELECT checksum FROM techally.archives") . "\n",
	'the checksum is that of the text');
like(PostgreSQL::Test::Utils::slurp_file($manifest), qr/"rows": 743,.*"sha256": "[0-9a-f]{64}"/, 'the manifest says what is in it');

# dump and restore: still managed, and the archive can be brought back there
$node->safe_psql('postgres', 'CREATE DATABASE two');
my $dump = $node->basedir . '/dumped';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'one' ], 'dumped');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'two', $dump ], 'restored');
is( $node->safe_psql('two', "SELECT parent, step, premake, retention, retention_action, archive_kind FROM techally.managed_partitions"),
	sql("SELECT parent, step, premake, retention, retention_action, archive_kind FROM techally.managed_partitions"),
	'still managed');
is($node->safe_psql('two', "SELECT techally.premake_partitions('ev', '2023-07-31 23:59:59')"), 2, 'premakes at a month\'s end');
is($node->safe_psql('two', "SELECT techally.restore_archived('public.ev_2023_01')"), 743, 'brings the archive back');
is($node->safe_psql('two', "SELECT count(*) FROM (TABLE was EXCEPT TABLE ev) d"), 0, 'row by row');

# a damaged file is refused, and nothing is changed
my $good = PostgreSQL::Test::Utils::slurp_file($data);
PostgreSQL::Test::Utils::system_log('sh', '-c', "gzip -dc '$data' | sed 's/é3/é4/' | gzip > '$data.x' && mv '$data.x' '$data'");
like(failure("SELECT techally.restore_archived('public.ev_2023_01')"), qr/^XX001 archive .* is damaged/, 'another text is noticed');
truncate $data, 1000;
like(failure("SELECT techally.restore_archived('public.ev_2023_01')"), qr/^XX001 archive .* is damaged/, 'a short file is noticed');
is(sql("SELECT status FROM techally.archives"), 'archived', 'it is an archive still');
is(sql("SELECT to_regclass('ev_2023_01') IS NULL"), 't', 'and nothing else');
unlink $data;
like(failure("SELECT techally.restore_archived('public.ev_2023_01')"), qr/^58P01 could not open file/, 'a missing file is said');
open(my $fh, '>:raw', $data) or die;
print $fh $good;
close $fh;
is(sql("SELECT techally.restore_archived('public.ev_2023_01')"), 743, 'restored from the good one');
is(sql("SELECT count(*) FROM (TABLE was EXCEPT TABLE ev) d"), 0, 'row by row');
is(sql("SELECT coalesce(techally.retire_partition('ev', '2023-05-01'), 'nothing')"), 'nothing', 'and stays');

# into a table whose columns have changed: by their names, and never into others
sql("CREATE TABLE turned (id int, a text, b text, at timestamptz) PARTITION BY RANGE (at)",
	"SELECT techally.manage_partitions('turned', '1 month', 0, '1 month', 'archive')",
	"SELECT techally.archive_partitions_to('turned', 'file')",
	"SELECT techally.create_partitions('turned', '2023-01-01', '2023-02-01')",
	"INSERT INTO turned VALUES (1, 'a', 'b', '2023-01-05')");
sql("SELECT techally.retire_partition('turned', '2023-05-01')") for 1 .. 2;
sql("ALTER TABLE turned DROP COLUMN a", "ALTER TABLE turned ADD COLUMN c text DEFAULT 'c', ADD COLUMN a text");
is(sql("SELECT techally.restore_archived('public.turned_2023_01')"), 1, 'restored after columns have moved');
is(sql("SELECT id, a, b, c FROM turned"), '1|a|b|c', 'each where it belongs');
sql("SELECT techally.forget_restored('public.turned_2023_01')");
sql("SELECT techally.retire_partition('turned', '2023-05-01')") for 1 .. 2;
sql("ALTER TABLE turned DROP COLUMN b", "ALTER TABLE turned ADD COLUMN d text");
like(failure("SELECT techally.restore_archived('public.turned_2023_01#2')"), qr/^55000 archive .* has a column "b"/, 'a column that has gone is said');
is(sql("SELECT count(*) FROM turned"), 0, 'and nothing is restored');
like(failure("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT techally.retire_partition('ev', '2023-06-01'); SELECT techally.retire_partition('ev', '2023-06-01')"),
	qr/^25000 /, 'no file is written in an old snapshot');

# what is written while the archive waits for its lock is archived, too
sql("ALTER TABLE turned ADD COLUMN b text", "SELECT techally.restore_archived('public.turned_2023_01#2')", "SELECT techally.forget_restored('public.turned_2023_01#2')",
	"SELECT techally.retire_partition('turned', '2023-05-01')");
my ($w_out, $w_err) = ('', '');
my $writer = IPC::Run::start([ 'psql', '-X', '-d', 'one', '-c', "BEGIN; INSERT INTO turned_2023_01 (id, at) VALUES (2, '2023-01-06'); SELECT pg_sleep(1); COMMIT" ], '>', \$w_out, '2>', \$w_err);
$node->poll_query_until('one', "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'turned_2023_01'::regclass AND mode = 'RowExclusiveLock'") or die;
sql("SET techally.maintenance_lock_timeout = '60s'", "SELECT techally.retire_partition('turned', '2023-05-01')");
$writer->finish;
is(sql("SELECT rows FROM techally.archives WHERE archive = 'public.turned_2023_01#3'"), 2, 'both rows are in the file');

# a directory that cannot be written to
$node->safe_psql('one', "SELECT techally.retire_partition('ev', '2023-06-01')");
like(failure("SET techally.archive_directory = '$archives/none'; SELECT techally.retire_partition('ev', '2023-06-01')"),
	qr/^58P01/, 'a directory that is not there is said');
is(sql("SELECT count(*) FROM ev_2023_02"), 672, 'and the table is kept');

# into a tablespace
sql("SELECT techally.restore_archived('public.ev_2023_02')", "SELECT techally.forget_restored('public.ev_2023_02')");
$node->safe_psql('one', "CREATE TABLESPACE cold LOCATION '$cold'");
sql("SELECT techally.archive_partitions_to('ev', 'tablespace', 'cold')");
is(sql("SELECT techally.retire_partition('ev', '2023-06-01')"), 'detached public.ev_2023_02', 'detached first');
is(sql("SELECT techally.retire_partition('ev', '2023-06-01')"), 'archived public.ev_2023_02', 'then moved');
is(sql("SELECT spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE c.oid = 'ev_2023_02'::regclass"), 'cold', 'there it is');

# behind a long transaction a drain gives up, and nobody has waited for long
sql("INSERT INTO ev (id, at) SELECT g, '2020-01-15' FROM generate_series(1, 100) g");
my $long = $node->background_psql('one', on_error_stop => 0) if $node->can('background_psql');
my ($in, $out, $timer) = ('', '', IPC::Run::timeout(60));
my $reader = $node->background_psql('one', \$in, \$out, $timer) if !ref $long;
if (ref $long) { $long->query_safe("BEGIN; SELECT count(*) FROM ev"); }
else
{
	$in .= "BEGIN; SELECT count(*) FROM ev;\n\\echo ready\n";
	$reader->pump until $out =~ /ready/;
}
like(failure("SET techally.maintenance_lock_timeout = '100ms'; SET techally.maintenance_retries = 1; SELECT techally.drain_default('ev')"),
	qr/^55P03/, 'given up');
is(sql("SET lock_timeout = '5s'", "INSERT INTO ev (id, at) VALUES (0, '2020-01-15') RETURNING 1"), 1, 'an insert does not wait');
is(sql("SET techally.maintenance_lock_timeout = '100ms'", "SET techally.maintenance_retries = 0", "SELECT techally.maintain_partitions('ev', '2023-06-01') IS NULL"), 't', 'maintenance goes on');
like(sql("SELECT last_error FROM techally.partition_status"), qr/drain: canceling statement due to lock timeout/, 'and says why');
if (ref $long) { $long->query_safe("COMMIT"); $long->quit; }
else { $in .= "COMMIT;\n\\q\n"; $reader->finish; }
is(sql("SELECT techally.drain_default('ev')"), 101, 'afterwards it works');

# a conversion that a crash interrupts goes on where it was
sql("CREATE TABLE plain AS SELECT g AS id, '2010-01-01'::timestamptz + g * interval '50 minutes' AS at FROM generate_series(1, 100000) g",
	"CREATE TABLE plain_was AS TABLE plain");
my ($h_out, $h_err, $c_out, $c_err) = ('', '', '', '');
sql("CREATE TABLE held AS SELECT g AS id, '2024-01-01'::timestamptz AS at FROM generate_series(1, 1000) g", "ANALYZE held");
my $holder = IPC::Run::start([ 'psql', '-X', '-d', 'one', '-c', "BEGIN; SELECT count(*) FROM held; SELECT pg_sleep(600)" ], '>', \$h_out, '2>', \$h_err);
$node->poll_query_until('one', "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'held'::regclass") or die;
my $waiting = IPC::Run::start([ 'psql', '-X', '-d', 'one', '-c', "CALL techally.partition_table('held', 'at', '1 month')" ], '>', \$c_out, '2>', \$c_err);
ok($node->poll_query_until('one', "SELECT count(*) = 1 FROM techally.progress WHERE task = 'conversion' AND relation = 'held' AND phase = 'waiting for its lock' AND total = 1000 AND waiting_for LIKE 'AccessExclusiveLock on held, held by %'"),
	'progress shows what a conversion waits for');
sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; SELECT count(*) FROM held%'");
$holder->finish;
$waiting->finish;
is($c_out . $c_err, "CALL\n", 'and it goes on when it can');
is(sql("SELECT count(*) FROM held_2024_01"), 1000, 'to its end');

my ($o, $e) = ('', '');
my $convert = IPC::Run::start([ 'psql', '-X', '-d', 'one', '-c', "CALL techally.partition_table('plain', 'at', '1 month')" ], '>', \$o, '2>', \$e);
$node->poll_query_until('one', "SELECT count(*) > 3 FROM pg_inherits WHERE inhparent = to_regclass('plain')") or die;
$node->stop('immediate');
$convert->finish;
$node->start;
cmp_ok(sql("SELECT count(*) FROM plain_default"), '>', 0, 'it was interrupted');
is(sql("SELECT count(*) FROM (TABLE plain_was EXCEPT TABLE plain) d"), 0, 'every row is there');
is(sql("SELECT count(*) FROM plain"), 100000, 'once');
sql("CALL techally.partition_table('plain', 'at', '1 month')");
is(sql("SELECT count(*) FROM plain_default"), 0, 'it is done');
is(sql("SELECT count(*) FROM (TABLE plain_was EXCEPT TABLE plain) d"), 0, 'every row is there');
is(sql("SELECT count(*) FROM plain"), 100000, 'once');

# A subscriber of the whole table is not told of the rows that only move.
$node->append_conf('postgresql.conf', "wal_level = logical\nmax_wal_senders = 5\n");
$node->restart;
$node->safe_psql('postgres', 'CREATE DATABASE three');
sql("CREATE TABLE told (id int, at timestamptz, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
	"SELECT techally.manage_partitions('told', '1 month', 0)",
	"CREATE PUBLICATION whole FOR TABLE told WITH (publish_via_partition_root)",
	"SELECT pg_create_logical_replication_slot('whole', 'pgoutput')");
$node->safe_psql('three', "CREATE TABLE told (id int, at timestamptz, v text, PRIMARY KEY (id, at))");
$node->safe_psql('three', "CREATE SUBSCRIPTION whole CONNECTION \$\$" . $node->connstr('one') . "\$\$ PUBLICATION whole WITH (create_slot = false, copy_data = false)");
sql("INSERT INTO told SELECT g, '2024-01-10', repeat(md5(g::text), 200) FROM generate_series(1, 300) g");
is(sql("SELECT techally.drain_default('told')"), 300, 'a published table is drained');
sql("INSERT INTO told VALUES (0, '2024-01-11', 'afterwards')");
$node->poll_query_until('three', "SELECT count(*) = 1 FROM told WHERE id = 0") or die;
is($node->safe_psql('three', "SELECT count(*), count(DISTINCT v) FROM told"), '301|301', 'and its subscriber has every row');
$node->safe_psql('three', "DROP SUBSCRIPTION whole");

$node->stop;
done_testing();
