# Soft delete outlives its database: dumped and restored, tables of one's own and a
# store's, rows deleted and living. What was deleted comes back afterwards, and
# what was refused is refused.

use strict;
use warnings;

use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\n");
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
my $dir = $node->basedir;

sub run_ok
{
	my ($name, @command) = @_;
	my ($out, $err) = ('', '');
	my $done = IPC::Run::run(\@command, '>', \$out, '2>', \$err);
	ok($done, $name) or diag($err);
	return $err;
}

sub code_of
{
	my ($database, $sql) = @_;
	my ($rc, $out, $err) = $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $err =~ /(\w{5})\s*\z/ ? $1 : '00000';
}

my $author = '00000000-0000-0000-0000-000000000001';
my $user = '00000000-0000-0000-0000-000000000002';
$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql(
	'source', qq{
	CREATE EXTENSION techally;
	CREATE SCHEMA "My lib";
	SET search_path = "My lib";
	CREATE TABLE authors (id uuid PRIMARY KEY, name text UNIQUE);
	CREATE TABLE "The books" (id integer, author uuid REFERENCES authors ON DELETE CASCADE, year integer, PRIMARY KEY (id, year)) PARTITION BY RANGE (year);
	CREATE TABLE old_books PARTITION OF "The books" FOR VALUES FROM (1900) TO (2000);
	CREATE TABLE new_books PARTITION OF "The books" FOR VALUES FROM (2000) TO (2100);
	CREATE TABLE fans (id integer PRIMARY KEY, author uuid REFERENCES authors DEFERRABLE INITIALLY DEFERRED);
	SELECT techally.enable_soft_delete('"The books"');
	SELECT techally.enable_soft_delete('authors');
	SELECT techally.live_unique('authors', '{name}');
	INSERT INTO authors VALUES ('$author', 'Ada');
	INSERT INTO "The books" VALUES (1, '$author', 1950), (2, '$author', 2010), (3, '$author', 2020);
	INSERT INTO fans VALUES (1, '$author');
	DELETE FROM "The books" WHERE id = 3;
	DELETE FROM authors;
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (id, email, password_hash, first_name, last_name) VALUES ('$user', 'ann\@example.com', 'x', 'Ann', 'Lee');
	INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8.50, true);
	SELECT shop.receive_stock('MUG', 3);
	SELECT shop.place_order('$user', '[{"sku": "MUG", "quantity": 1}]');
	SELECT shop.soft_delete_user('$user');
	DELETE FROM shop.products;
	-- and one that is gone again
	CREATE TABLE gone (id integer);
	SELECT techally.enable_soft_delete('gone');
	DROP TABLE gone;
});

my $registry = q{SELECT string_agg(concat_ws(' ', target, enabled_at), ', ' ORDER BY target::text) FROM techally.soft_delete_tables};
my $health = q{SELECT string_agg(status || ' ' || message, ', ') FROM techally.soft_delete_health()};
my $registered = $node->safe_psql('source', $registry);
like($registered, qr/"My lib"\."The books".*shop\.users/, 'both have soft-delete tables');
is($node->safe_psql('source', $health), 'OK 7 soft-delete tables', 'nothing is missing');

run_ok('dump', 'pg_dump', '-Fc', '-f', "$dir/all.dump", 'source');
run_ok('dump as text', 'pg_dump', '-f', "$dir/all.sql", 'source');

# Where the tables are, everything works as before.
sub works
{
	my ($database) = @_;
	is($node->safe_psql($database, $registry), $registered, "$database: the same tables");
	is($node->safe_psql($database, $health), 'OK 7 soft-delete tables', "$database: nothing is missing");
	is(code_of($database, qq{INSERT INTO "My lib"."The books" VALUES (4, '$author', 1960)}), '23503', "$database: nobody comes to refer to a deleted row");
	is(code_of($database, qq{INSERT INTO "My lib".fans VALUES (2, '$author')}), '23503', "$database: deferred or not");
	is(code_of($database, qq{INSERT INTO shop.orders (order_number, user_id, total) VALUES ('X', '$user', 0)}), '23503', "$database: in a store");
	is($node->safe_psql($database, qq{SELECT techally.restore_deleted('"My lib".authors', '$author')}), 't', "$database: what was deleted comes back");
	is($node->safe_psql($database, q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM "My lib"."The books" WHERE deleted_at IS NULL}), '1 2', "$database: with what went along");
	is($node->safe_psql($database, q{UPDATE "My lib"."The books" SET year = 2030 WHERE id = 1; SELECT tableoid::regclass FROM "My lib"."The books" WHERE id = 1}),
		'"My lib".new_books', "$database: rows move");
	is($node->safe_psql($database, q{DELETE FROM "My lib".new_books WHERE id = 1; SELECT deleted_at IS NOT NULL FROM "My lib"."The books" WHERE id = 1}), 't', "$database: DELETE deletes softly");
	is(code_of($database, q{INSERT INTO "My lib".authors VALUES (gen_random_uuid(), 'Ada')}), '23505', "$database: unique among the living");
	is($node->safe_psql($database, qq{SELECT techally.restore_deleted('shop.users', '$user'), (SELECT techally.restore_deleted('shop.products', id) FROM shop.products)}), 't|t', "$database: a store's, too");
	is($node->safe_psql($database, q{SELECT count(*) FROM techally.check_store('shop')}), '0', "$database: the store is sound");
	return;
}

$node->safe_psql('postgres', 'CREATE DATABASE custom');
# several jobs may make a partitioned table's triggers before its partitions have
# their rows, some of which refer to deleted ones
run_ok('parallel restore', 'pg_restore', '--exit-on-error', '-j', '4', '-d', 'custom', "$dir/all.dump");
works('custom');

$node->safe_psql('postgres', 'CREATE DATABASE text');
is(run_ok('restore of the text', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-f', "$dir/all.sql", 'text'), '', 'without a word');

# data alone, where the tables are: the guards would refuse the order of a deleted user
$node->safe_psql('text', q{TRUNCATE "My lib".authors, "My lib"."The books", "My lib".fans});
run_ok('data of a schema', 'pg_restore', '--exit-on-error', '--data-only', '--disable-triggers', '-n', 'My lib', '-d', 'text', "$dir/all.dump");
works('text');

# a store alone, in another database: adopt_store enables its tables again
run_ok('dump of a store', 'pg_dump', '-Fc', '-n', 'shop', '-f', "$dir/shop.dump", 'source');
$node->safe_psql('postgres', 'CREATE DATABASE alone');
$node->safe_psql('alone', 'CREATE EXTENSION techally');
run_ok('restore of a store', 'pg_restore', '--exit-on-error', '-d', 'alone', "$dir/shop.dump");
$node->safe_psql('alone', q{SELECT techally.adopt_store('shop')});
is($node->safe_psql('alone', $health), 'OK 5 soft-delete tables', 'alone: its tables are registered');
is($node->safe_psql('alone', qq{SELECT techally.restore_deleted('shop.users', '$user')}), 't', 'alone: what was deleted comes back');

# without the extension for a while
$node->safe_psql('custom', 'SET client_min_messages = warning; DROP EXTENSION techally CASCADE; CREATE EXTENSION techally');
is($node->safe_psql('custom', q{SELECT count(deleted_at) FROM "My lib"."The books"}), '2', 'deleted rows stay without it');
$node->safe_psql('custom', q{SELECT techally.adopt_store('shop'); SELECT techally.enable_soft_delete('"My lib"."The books"'), techally.enable_soft_delete('"My lib".authors')});
is($node->safe_psql('custom', $health), 'OK 7 soft-delete tables', 'and all is there again');

$node->stop;
done_testing();
