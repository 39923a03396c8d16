# A filled audit log outlives a dump and its restore, byte for byte as far as
# its hashes go, and goes on in the new cluster; a subscriber logs what its
# apply worker writes; a month ends beneath sessions that are writing.

use strict;
use warnings;

use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', "fsync = off\nTimeZone = 'Asia/Tokyo'\n");
$node->start;
my $dir = $node->basedir;

sub query { my ($server, $database, $sql) = @_; return $server->safe_psql($database, $sql); }

# a transaction of somebody else, such as autovacuum, may hold a seal back
sub seal_all
{
	my ($server, $database) = @_;
	return $server->poll_query_until($database, q{SELECT techally.seal_audit_logs() = 0 AND
		(SELECT max(to_id) FROM shop.audit_seals) = (SELECT last_value FROM shop.audit_logs_id_seq)});
}

query($node, 'postgres', 'CREATE DATABASE one');
query($node, 'one', q{
	CREATE EXTENSION techally;
	CREATE SCHEMA shop;
	CREATE TYPE shop.mood AS ENUM ('fine', 'poor');
	CREATE TYPE shop.place AS (name text, at timestamptz);
	CREATE TABLE shop.people (id uuid PRIMARY KEY, name text, n numeric, f float8, j json, jb jsonb, tags text[], at timestamptz,
		iv interval, by bytea, m shop.mood, p shop.place, secret text);
	SELECT techally.enable_audit('shop.people', redact => '{secret}');
	SET app.user_agent = 'test';
	SET app.audit_metadata = '{"b": 1.50, "a": [1e3, "\u00e9"]}';
	INSERT INTO shop.people SELECT md5(i::text)::uuid, repeat('é', i % 50), (i / 7.0), i / 3.0::float8,
		json_build_object('i', i, 'x', 1.10), jsonb_build_object('long key', i, 'k', jsonb_build_array(1.0, 'x', null, i::numeric / 100)),
		ARRAY['a', NULL, 'b'], timestamptz '2026-01-01' + i * interval '1 hour', i * interval '1 day 2 hours',
		decode(repeat('ab', i), 'hex'), 'poor'::shop.mood, ROW('here', timestamptz '2026-01-01')::shop.place, 's' FROM generate_series(1, 300) i;
	INSERT INTO shop.people (id, n, f) VALUES (md5('x')::uuid, 'NaN', '-Infinity');
	UPDATE shop.people SET n = n + 1.10, jb = NULL WHERE f < 30;
	DELETE FROM shop.people WHERE f > 90;
	UPDATE shop.people SET id = md5('moved')::uuid WHERE id = md5('1')::uuid;});
seal_all($node, 'one');
query($node, 'one', q{INSERT INTO shop.people (id) VALUES (md5('unsealed')::uuid)});
query($node, 'one', q{SELECT techally.erase_audit('shop.people', jsonb_build_object('id', md5('2')::uuid))});

my $facts = q{SELECT (SELECT count(*) FROM shop.audit_logs), (SELECT sha256(string_agg(row_hash, '' ORDER BY id)) FROM shop.audit_logs),
	(SELECT string_agg(s::text, ' ' ORDER BY period, number) FROM shop.audit_seals s),
	(SELECT row_after FROM techally.row_history('shop.people', jsonb_build_object('id', md5('moved')::uuid)) ORDER BY audit_id DESC LIMIT 1)};
my $before = query($node, 'one', $facts);
is(query($node, 'one', q{SELECT * FROM techally.verify_audit('shop.people')}), '', 'nothing is wrong before the dump');

my $other = PostgreSQL::Test::Cluster->new('other');
$other->init;
$other->append_conf('postgresql.conf', "fsync = off\nwal_level = logical\nTimeZone = 'UTC'\nbytea_output = 'escape'\n");
$other->start;
for my $format (qw(custom plain))
{
	query($other, 'postgres', "CREATE DATABASE $format");
	my $file = "$dir/$format.dump";
	ok(IPC::Run::run([ 'pg_dump', '-d', $node->connstr('one'), '-F', $format, '-f', $file ]), "dumped, $format");
	my @restore = $format eq 'plain'
	  ? ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $other->connstr($format), '-f', $file, '-o', "$dir/out")
	  : ('pg_restore', '-e', '-d', $other->connstr($format), $file);
	ok(IPC::Run::run(\@restore), "restored, $format");
	is(query($other, $format, "SET TimeZone = 'Asia/Tokyo'; SET bytea_output = 'hex'; $facts"), $before, "the log is the same, $format");
	is(query($other, $format, q{SELECT * FROM techally.verify_audit('shop.people')}), '', "nothing is wrong, $format");
	query($other, $format, q{INSERT INTO shop.people (id) VALUES (md5('here')::uuid)});
	seal_all($other, $format);
	is(query($other, $format, q{SELECT max(to_id) = (SELECT max(id) FROM shop.audit_logs) FROM shop.audit_seals}), 't', "it goes on and is sealed, $format");
	is(query($other, $format, q{SELECT * FROM techally.verify_audit('shop.audit_logs')}), '', "and holds, $format");
	query($other, $format, q{SET session_replication_role = replica; ALTER TABLE shop.audit_logs DISABLE TRIGGER USER;
		UPDATE shop.audit_logs SET changes = jsonb_set(changes, '{name}', '"forged"') WHERE id = 7});
	like(query($other, $format, q{SELECT * FROM techally.verify_audit('shop.people')}), qr/^7\|row_hash does not match/, "what is forged shows, $format");
}
my ($rc, $out, $err) = $other->psql('plain', 'DELETE FROM shop.audit_seals');
like($err, qr/cannot delete from audit log/, 'the guard has come along');

# a subscriber
query($other, 'postgres', 'CREATE DATABASE subscriber');
query($other, 'subscriber', q{
	CREATE EXTENSION techally;
	CREATE SCHEMA shop;
	CREATE TABLE shop.items (id integer PRIMARY KEY, v integer);
	SELECT techally.enable_replica_audit('shop.items')});
query($node, 'one', q{
	CREATE TABLE shop.items (id integer PRIMARY KEY, v integer);
	CREATE PUBLICATION items FOR TABLE shop.items});
query($other, 'subscriber', sprintf("CREATE SUBSCRIPTION items CONNECTION 'host=%s port=%s dbname=one' PUBLICATION items", $node->host, $node->port));
$other->wait_for_subscription_sync($node, 'items') if $other->can('wait_for_subscription_sync');
$other->poll_query_until('subscriber', q{SELECT count(1) = 0 FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')});
query($node, 'one', $_) for ('INSERT INTO shop.items VALUES (1, 0), (2, 0)', 'UPDATE shop.items SET v = 1 WHERE id = 1', 'DELETE FROM shop.items WHERE id = 2');
$node->wait_for_catchup('items');
is(query($other, 'subscriber', q{SELECT string_agg(action || ' ' || (row_key ->> 'id'), ', ' ORDER BY id) FROM shop.audit_logs}),
	'INSERT 1, INSERT 2, UPDATE 1, DELETE 2', 'the apply worker is audited');
is(query($other, 'subscriber', q{SELECT * FROM techally.verify_audit('shop.items')}), '', 'with sound hashes');
query($other, 'subscriber', 'INSERT INTO shop.items VALUES (9, 9)');
is(query($other, 'subscriber', q{SELECT count(*) FROM shop.audit_logs}), '4', 'and nobody else is');
query($other, 'subscriber', 'DROP SUBSCRIPTION items');

# a month's end: the partition that sessions have been writing to is none any
# more, there is no other yet, then there is, and DEFAULT is drained into it
query($node, 'one', q{
	CREATE SCHEMA busy;
	CREATE TABLE busy.beats (id integer PRIMARY KEY, n bigint NOT NULL);
	SELECT techally.enable_audit('busy.beats');
	INSERT INTO busy.beats SELECT i, 0 FROM generate_series(1, 3) i});
my $script = "$dir/beat.sql";
open my $out_file, '>', $script or die $!;
print $out_file "UPDATE busy.beats SET n = n + 1 WHERE id = :client_id + 1;\n";
close $out_file;
my ($in, $bench_out, $bench_err) = ('', '', '');
my $bench = IPC::Run::start([ 'pgbench', '-n', '-M', 'prepared', '-c', '3', '-T', '600', '-f', $script, '-h', $node->host, '-p', $node->port, 'one' ],
	\$in, \$bench_out, \$bench_err);
my $beats = q{SELECT count(*) = 3 FROM busy.beats WHERE n > %s};
$node->poll_query_until('one', sprintf($beats, 20));
my $month = query($node, 'one', q{SELECT tableoid::regclass FROM busy.audit_logs LIMIT 1});
query($node, 'one', "BEGIN; ALTER TABLE busy.audit_logs DETACH PARTITION $month; ALTER TABLE $month RENAME TO the_month_before; COMMIT");
my $now = query($node, 'one', 'SELECT max(n) FROM busy.beats');
$node->poll_query_until('one', sprintf($beats, $now));
is(query($node, 'one', q{SELECT bool_and(tableoid = 'busy.audit_logs_default'::regclass) FROM busy.audit_logs}), 't',
	'without a partition for the month the rows go to DEFAULT');
query($node, 'one', q{SELECT techally.drain_default('busy.audit_logs')});
$now = query($node, 'one', 'SELECT max(n) FROM busy.beats');
$node->poll_query_until('one', sprintf($beats, $now));
is($bench_err, '', 'nobody was disturbed by that');
$bench->signal('TERM');
eval { $bench->finish };
$node->poll_query_until('one', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});
query($node, 'one', q{SELECT techally.drain_default('busy.audit_logs')});
is(query($node, 'one', q{SELECT count(*) FROM busy.audit_logs_default}), '0', 'they are drained into the month');
is(query($node, 'one', q{SELECT (SELECT count(*) FROM busy.the_month_before) + (SELECT count(*) FROM busy.audit_logs) = (SELECT sum(n) + 3 FROM busy.beats)}),
	't', 'every change is in the log once');
is(query($node, 'one', q{SELECT * FROM techally.verify_audit('busy.beats')}), '', 'and all that is there holds');
# time is an argument: the month after next begins
query($node, 'one', q{SELECT techally.premake_partitions('busy.audit_logs', date_trunc('month', now(), 'UTC') + interval '2 months')});
is(query($node, 'one', q{SELECT count(*) FROM pg_inherits i WHERE i.inhparent = 'busy.audit_logs'::regclass AND
		(SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgname LIKE 'techally_guard_%' AND t.tgenabled <> 'D') < 3}),
	'0', 'all months are guarded');
$node->stop;
$other->stop;
done_testing();
