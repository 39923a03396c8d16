# Soft delete and logical replication, between two databases of one server: what a
# publisher's soft deletion is to a subscriber, what a plain publisher's DELETE is to
# a subscriber with soft delete, and what becomes of either with ENABLE ALWAYS.

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
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off\nwal_retrieve_retry_interval = '100ms'\n");
$node->start;
my $connection = $node->connstr . ' dbname=pub';

my $author = '00000000-0000-0000-0000-000000000001';
my $tables = q{
	CREATE EXTENSION techally;
	CREATE TABLE authors (id uuid PRIMARY KEY, name text);
	CREATE TABLE books (id integer PRIMARY KEY, author uuid REFERENCES authors ON DELETE CASCADE);
	CREATE TABLE plain (id integer PRIMARY KEY, v text, deleted_at timestamptz, deletion_id uuid);
	CREATE TABLE marked (id integer PRIMARY KEY, v text, deleted_at timestamptz, deletion_id uuid);
	CREATE TABLE of_marked (id integer PRIMARY KEY, marked integer REFERENCES marked ON DELETE CASCADE, deleted_at timestamptz, deletion_id uuid);
	SELECT techally.enable_soft_delete_together('{authors,books}');
};
for my $database (qw(pub sub))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, $tables);
}
$node->safe_psql('sub', q{
	SELECT techally.enable_soft_delete('plain'), techally.enable_soft_delete_together('{marked,of_marked}');
	ALTER TABLE marked ENABLE ALWAYS TRIGGER techally_soft_delete;
	ALTER TABLE of_marked ENABLE ALWAYS TRIGGER techally_soft_delete;
});
$node->safe_psql('pub', 'CREATE PUBLICATION p FOR TABLE authors, books, plain, marked, of_marked');
# both databases are of one server: the slot must be there before the subscription waits for it
$node->safe_psql('pub', q{SELECT pg_create_logical_replication_slot('s', 'pgoutput')});
$node->safe_psql('sub', "CREATE SUBSCRIPTION s CONNECTION '$connection' PUBLICATION p WITH (create_slot = false, slot_name = 's', copy_data = false)");

# What the subscriber has once it has caught up.
sub arrived
{
	my ($sql, $expected, $name) = @_;
	$node->wait_for_catchup('s');
	is($node->safe_psql('sub', $sql), $expected, $name);
	return;
}

# a soft deletion arrives as what it is, with its id, and can be taken back on either side
$node->safe_psql('pub', qq{INSERT INTO authors VALUES ('$author', 'Ada'); INSERT INTO books VALUES (1, '$author'), (2, '$author')});
$node->safe_psql('pub', 'DELETE FROM books WHERE id = 2');
$node->safe_psql('pub', 'DELETE FROM authors');
my $state = q{SELECT (SELECT count(deleted_at) FROM authors), (SELECT string_agg(id::text, ' ' ORDER BY id) FROM books WHERE deleted_at IS NOT NULL), (SELECT count(DISTINCT deletion_id) FROM (SELECT deletion_id FROM authors UNION ALL SELECT deletion_id FROM books) x)};
arrived($state, '1|1 2|2', 'a soft deletion arrives, dependents and ids');
$node->safe_psql('pub', qq{SELECT techally.restore_deleted('authors', '$author')});
arrived($state, '0|2|1', 'its restoration, too');
$node->safe_psql('pub', 'DELETE FROM authors');
arrived($state, '1|1 2|2', 'deleted again');
is($node->safe_psql('sub', qq{SELECT techally.restore_deleted('authors', '$author')}), 't', 'the subscriber can restore by itself');
is($node->safe_psql('sub', $state), '0|2|1', 'with what went along');
is($node->safe_psql('pub', $state), '1|1 2|2', 'which the publisher does not hear of');
my ($rc, $out, $err) = $node->psql('pub', "INSERT INTO books VALUES (3, '$author')");
like($err, qr/refers to a deleted row/, 'there nobody comes to refer to it');

# a row that is really deleted at the publisher is really deleted at the subscriber
$node->safe_psql('pub', q{SET techally.hard_delete = on; DELETE FROM authors});
arrived('SELECT (SELECT count(*) FROM authors), (SELECT count(*) FROM books)', '0|0', 'what is purged goes');

# a DELETE that arrives where triggers do not fire
$node->safe_psql('pub', q{INSERT INTO plain VALUES (1, 'a'), (2, 'b'); DELETE FROM plain WHERE id = 1});
arrived('SELECT string_agg(id::text, \' \' ORDER BY id), count(deleted_at) FROM plain', '2|0', 'a DELETE that arrives really deletes');

# and where they do: with ENABLE ALWAYS rows are marked one by one, with what goes along
$node->safe_psql('pub', q{INSERT INTO marked SELECT n, 'x' FROM generate_series(1, 5) n; INSERT INTO of_marked SELECT n, n FROM generate_series(1, 5) n});
$node->wait_for_catchup('s');
$node->safe_psql('sub', 'INSERT INTO of_marked VALUES (10, 1)');
$node->safe_psql('pub', 'DELETE FROM of_marked WHERE id <> 5; DELETE FROM marked WHERE id <= 3');
arrived(q{SELECT (SELECT count(deleted_at) FROM marked), (SELECT count(*) FROM marked), (SELECT string_agg(id::text, ' ' ORDER BY id) FROM of_marked WHERE deleted_at IS NOT NULL), (SELECT count(*) FROM of_marked)},
	'3|5|1 2 3 4 10|6', 'ENABLE ALWAYS: rows are marked, and those of the subscriber go along');
$node->safe_psql('sub', q{UPDATE marked SET deleted_at = NULL WHERE id = 1});
is($node->safe_psql('sub', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM of_marked WHERE deleted_at IS NULL}), '5 10', 'what went along comes back');
is($node->safe_psql('sub', q{SELECT count(*) FROM techally.soft_delete_health() WHERE status <> 'OK'}), '0', 'triggers that fire always are in order');
$node->safe_psql('pub', 'DELETE FROM marked');
arrived(q{SELECT (SELECT string_agg(id::text, ' ' ORDER BY id) FROM marked WHERE deleted_at IS NULL), (SELECT string_agg(id::text, ' ' ORDER BY id) FROM of_marked WHERE deleted_at IS NULL)},
	'1|10', 'what the publisher has no more, it deletes no more');
$node->safe_psql('sub', 'DELETE FROM marked');
is($node->safe_psql('sub', q{SELECT techally.purge_deleted('marked', '0')}), '5', 'the subscriber purges for itself');
is($node->safe_psql('sub', 'SELECT (SELECT count(*) FROM marked), (SELECT count(*) FROM of_marked)'), '0|0', 'all of it');
$node->safe_psql('pub', q{INSERT INTO marked VALUES (1, 'again')});
arrived('SELECT id, v FROM marked', '1|again', 'a key that was purged can come again');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/ERROR:  (?!insert or update on table "books" refers)/, 'and nothing has failed on the way');

$node->safe_psql('sub', 'DROP SUBSCRIPTION s');
$node->stop;
done_testing();
