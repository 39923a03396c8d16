# Policies, settings of maintenance, archives and counts are there after a dump
# and its restore, as they were: what was changed stays changed, defaults are
# neither doubled nor do they come back where they were set aside.

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

$node->safe_psql('postgres', "CREATE DATABASE $_") for ('source', 'target', 'again');
$node->safe_psql('source', q{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	SELECT techally.create_store('Other "Store');
	INSERT INTO shop.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
	INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
	SELECT shop.receive_stock('MUG', 10);
	SELECT shop.transition_order(o.id, 'cancel') FROM shop.import_order((SELECT id FROM shop.users), '[{"sku": "MUG", "quantity": 2}]', now() - interval '8 years', 'OLD1') o;
	SELECT shop.transition_order(o.id, 'cancel') FROM shop.import_order((SELECT id FROM shop.users), '[{"sku": "MUG", "quantity": 1}]', now() - interval '8 years', 'OLD2') o;
	CREATE TABLE shop.user_sessions (id int PRIMARY KEY, created_at timestamptz);
	CREATE TABLE shop.analytics_events (id int, event_type text, created_at timestamptz);
	CREATE TABLE shop.application_logs (id int, created_at timestamptz);
	CREATE TABLE public."Odd visits" (id int, "seen At" date);
	INSERT INTO shop.analytics_events SELECT g, 'view', now() - interval '300 days' FROM generate_series(1, 5) g;
});
$node->safe_psql('source', q{CALL techally.run_maintenance('{archive}')});
$node->safe_psql('source', q{
	SELECT techally.restore_rows('shop.orders', jsonb_build_object('id', (SELECT id FROM shop_archive.orders WHERE order_number = 'OLD2')));
	SELECT techally.set_retention('shop.orders', NULL);                                  -- for ever
	UPDATE techally.retention_policies SET keep_for = '30 days', action = 'archive' WHERE relation = 'shop.user_sessions';
	SELECT techally.set_retention('"Odd visits"', '1 year', 'delete', 'seen At', aggregate_after => '1 month', aggregate_by => '{id}');
	SELECT techally.set_retention('shop.application_logs', '5 years');
	SELECT techally.reset_retention('shop.application_logs');
	INSERT INTO techally.maintenance_settings VALUES ('archive', '2 days', NULL, NULL), ('views', NULL, '1 minute', false);
});

my %same = (
	policies => q{SELECT * FROM techally.retention_policies ORDER BY relation},
	rules    => q{SELECT * FROM techally.retention_rules ORDER BY target::text},
	tasks    => q{SELECT task, run_every, time_limit, enabled FROM techally.maintenance_tasks ORDER BY task},
	archive  => q{SELECT order_number, archive_batch, archived_at FROM shop_archive.orders},
	manifest => q{SELECT * FROM shop_archive.archive_batches ORDER BY relation},
	held     => q{SELECT * FROM shop_archive.restored_rows},
	counts   => q{SELECT * FROM shop_archive.analytics_events_daily});
my %before = map { $_ => $node->safe_psql('source', $same{$_}) } keys %same;
like($before{policies}, qr/^shop\.orders\|created_at\|\|\|archive\|\|\|rule\|f$/m, 'orders stay for ever');

sub restored
{
	my ($from, $to) = @_;
	my $dump = PostgreSQL::Test::Utils::slurp_file($node->basedir . "/$from.sql");
	my ($out, $err) = ('', '');
	ok(IPC::Run::run([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $to, '-f', $node->basedir . "/$from.sql" ], '>', \$out, '2>', \$err), "$from restored to $to") or diag($err);
	is($node->safe_psql($to, $same{$_}), $before{$_}, "$to: $_") for sort keys %same;
	return;
}
IPC::Run::run([ 'pg_dump', '-f', $node->basedir . '/source.sql', 'source' ]) or die;
restored('source', 'target');
IPC::Run::run([ 'pg_dump', '-f', $node->basedir . '/target.sql', 'target' ]) or die;
restored('target', 'again');

# what was brought back stays, the rest can be brought back, and counts go on
is($node->safe_psql('again', q{SELECT techally.reset_retention('shop.orders'); SELECT count(*) FROM techally.archive_old_data() WHERE rows > 0 AND relation = 'shop.orders'}), "\n0", 'what was brought back stays');
is($node->safe_psql('again', q{SELECT rows FROM techally.restore_rows('shop.orders', jsonb_build_object('id', (SELECT id FROM shop_archive.orders))) WHERE relation = 'shop.orders'}),
	'1', 'an archive that was dumped can be brought back');
is($node->safe_psql('again', q{SELECT * FROM techally.check_store('shop')}), '', 'the store is sound');
$node->safe_psql('again', q{INSERT INTO shop.analytics_events VALUES (9, 'view', now() - interval '300 days')});
$node->safe_psql('again', q{CALL techally.run_maintenance('{archive}')});
is($node->safe_psql('again', q{SELECT sum(rows) FROM shop_archive.analytics_events_daily}), '6', 'and counts go on');
is($node->safe_psql('again', q{SELECT count(*) FROM techally.retention_policies GROUP BY relation HAVING count(*) > 1}), '', 'no policy is there twice');
$node->stop;
done_testing();
