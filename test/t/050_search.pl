# Search on a standby, after a dump and its restore, after a crash in a bulk
# load, and beside concurrent changes and folds: always what reading every
# product finds.

use strict;
use warnings;

use IPC::Run;
use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $node = PostgreSQL::Test::Cluster->new('search');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', "fsync = off\n");
$node->start;
$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	CREATE FUNCTION public.load(first integer, last integer) RETURNS void LANGUAGE sql AS $$
	INSERT INTO shop.products (id, sku, name, slug, price, is_published, description)
	SELECT md5(i::text)::uuid, 'P-' || i, (ARRAY['red','green','blue','grey'])[1 + i % 4] || ' ' || (ARRAY['chair','table','lamp'])[1 + i % 3] || ' ' || i % 50,
	       'p' || i, i % 90, i % 10 > 0, CASE WHEN i % 7 = 0 THEN 'a blue lamp with red shade' ELSE 'plain' END
	  FROM generate_series(first, last) i $$;
	CREATE FUNCTION public.queries() RETURNS text[] LANGUAGE sql AS $$
	SELECT ARRAY['red', 'blue lamp', 'chair', 'lamp 7', 'green table 13', 'plain', 'red -lamp', 'shade', 'zebra', 'grey zebra', ''] $$;
	SELECT load(1, 3000);
	UPDATE shop.products SET name = 'zebra ' || name WHERE sku LIKE 'P-1_7';
});

# one statement, one snapshot
my $differences = q{
	WITH fast AS (SELECT q.o AS query, s.o AS place, s.id FROM unnest(public.queries()) WITH ORDINALITY q(q, o),
	                     shop.search_products(q.q, 30) WITH ORDINALITY s(id, name, description, price, rank, o)),
	     slow AS (SELECT * FROM techally.search_brute_force('shop', public.queries(), 30))
	SELECT count(*) FILTER (WHERE f.id IS DISTINCT FROM s.id), count(*) > 100
	  FROM fast f FULL JOIN slow s ON s.query = f.query AND s.place = f.place};
my $answers = q{SELECT md5(string_agg(q.q || s.name || s.rank, ',' ORDER BY q.o, s.o)) FROM unnest(public.queries()) WITH ORDINALITY q(q, o),
	shop.search_products(q.q, 30) WITH ORDINALITY s(id, name, description, price, rank, o)};
is($node->safe_psql('postgres', $differences), '0|t', 'as if every product were read');

# a standby
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('search_standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', q{UPDATE shop.products SET name = 'amber lamp' WHERE sku = 'P-5'});
$node->safe_psql('postgres', q{SELECT techally.fold_search('shop')});
$node->safe_psql('postgres', q{UPDATE shop.products SET name = 'ochre lamp' WHERE sku = 'P-8'});
$node->wait_for_catchup($standby, 'replay');
is($standby->safe_psql('postgres', $answers), $node->safe_psql('postgres', $answers), 'a standby answers the same');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM shop.search_products('ochre amber')}), '2', 'and is current');
my ($rc, $out, $err) = $standby->psql('postgres', q{SELECT techally.fold_search('shop')});
isnt($rc, 0, 'it cannot fold');
$standby->stop;

# a dump and its restore
my $dump = $node->basedir . '/search.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), $dump ], 'restore');
is($node->safe_psql('restored', $answers), $node->safe_psql('postgres', $answers), 'the restored store answers the same');
$node->safe_psql('restored', q{UPDATE shop.products SET name = 'violet lamp' WHERE sku = 'P-11'});
is($node->safe_psql('restored', q{SELECT count(*) FROM shop.search_products('violet')}), '1', 'and goes on');
is($node->safe_psql('restored', $differences), '0|t', 'as if every product were read');

# data alone, into a new store: once while the triggers work, once without them
my $data = $node->basedir . '/data.sql';
$node->command_ok([ 'pg_dump', '-a', '-n', 'shop', '-f', $data, '-d', $node->connstr('postgres') ], 'dump of data');
foreach my $mode ('origin', 'replica')
{
	$node->safe_psql('postgres', "CREATE DATABASE data_$mode");
	$node->safe_psql("data_$mode", q{CREATE EXTENSION techally; SELECT techally.create_store('shop');});
	$node->safe_psql("data_$mode", q{TRUNCATE shop.warehouses, shop.store_settings CASCADE});
	$node->command_checks_all([ 'psql', '-Xq', '-c', "SET session_replication_role = $mode", '-f', $data, '-d', $node->connstr("data_$mode") ],
		0, [qr/.*/], [qr/.*/], "data are loaded, $mode");
	is($node->safe_psql("data_$mode", q{SELECT count(*), count(DISTINCT id) FROM shop.search_products('', 9999)}),
		$node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT id) FROM shop.search_products('', 9999)}), "every product once, $mode");
	$node->safe_psql("data_$mode", q{SELECT techally.fold_search('shop', true)});
	is($node->safe_psql("data_$mode", q{SELECT count(*), count(DISTINCT id) FROM shop.search_products('', 9999)}),
		$node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT id) FROM shop.search_products('', 9999)}), "after a fold, too, $mode");
}

# a crash in a bulk load: its products are not there, and are not found
my $before = $node->safe_psql('postgres', $answers);
my ($said, $heard) = ("BEGIN; SELECT public.load(4000, 9000);\n\\echo loaded\n", '');
my $load = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ],
	'<', \$said, '>', \$heard, '2>', '/dev/null', IPC::Run::timeout(120));
$load->pump until $heard =~ /loaded/;
$node->stop('immediate');
$load->kill_kill;
$node->start;
is($node->safe_psql('postgres', $answers), $before, 'nothing of a load that crashed is found');
$node->safe_psql('postgres', 'SELECT public.load(4000, 6000)');
is($node->safe_psql('postgres', $differences), '0|t', 'the load again: as if every product were read');

# changes, folds and searches at once
my $script = $node->basedir . '/change.sql';
PostgreSQL::Test::Utils::append_to_file($script, q{
\set n random(1, 3000)
\set w random(1, 50)
UPDATE shop.products SET name = 'zebra chair ' || :w, is_published = random() > 0.1 WHERE sku = 'P-' || :n;
UPDATE shop.products SET price = :w WHERE sku = 'P-' || :w;
});
my $fold = $node->basedir . '/fold.sql';
PostgreSQL::Test::Utils::append_to_file($fold, "SELECT techally.fold_search('shop');\n");
my $check = $node->basedir . '/check.sql';
(my $one = $differences) =~ s/\s+/ /g;
PostgreSQL::Test::Utils::append_to_file($check, "SELECT 1 / (CASE WHEN d.n = 0 THEN 1 ELSE 0 END) FROM ($one) d(n, many);\n");
$node->command_ok(
	[ 'pgbench', '-n', '-c', '4', '-j', '2', '-T', '4', '-d', $node->connstr('postgres'), '-f', "$script\@60", '-f', "$fold\@1", '-f', "$check\@2" ],
	'changes, folds and searches at once');
is($node->safe_psql('postgres', $differences), '0|t', 'as if every product were read');
is($node->safe_psql('postgres', q{SELECT count(*) FROM techally.check_store('shop')}), '0', 'the store is sound');
$node->stop;
done_testing();
