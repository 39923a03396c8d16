# pg_upgrade takes stores along: the registry names its tables by OIDs that
# stay as they are.

use strict;
use warnings;

use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $old = PostgreSQL::Test::Cluster->new('old');
plan skip_all => 'this server came without pg_upgrade'
  unless -x $old->config_data('--bindir') . '/pg_upgrade';
$old->init;
$old->append_conf('postgresql.conf', "fsync = off\n");
$old->start;
$old->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	SELECT techally.define_machine('short', '{"initial": "new", "transitions": [{"event": "send", "from": "new", "to": "gone", "effect": "sale"}]}');
	SELECT techally.create_store('shop', 'short');
	INSERT INTO shop.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
	INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
	SELECT shop.receive_stock('MUG', 10);
	ALTER TABLE shop.products ADD COLUMN colour text DEFAULT 'red', DROP COLUMN barcode;
});
my $place = q{SELECT (shop.place_order((SELECT id FROM shop.users), '[{"sku": "MUG", "quantity": 1}]')).status};
$old->safe_psql('postgres', $place);
my $query = q{SELECT s.*, o.order_number, o.created_at, a.* FROM techally.stores s, shop.orders o, techally.machine_attachments a};
my $before = $old->safe_psql('postgres', $query);
$old->stop;

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
my $bindir = $old->config_data('--bindir');
chdir $new->basedir or die "chdir: $!";
my ($out, $err) = ('', '');
ok( IPC::Run::run(
		[ 'pg_upgrade', ($old->pg_version >= 15 ? '--no-sync' : ()), '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
			'-s', $new->host, '-p', $old->port, '-P', $new->port ], '>', \$out, '2>', \$err),
	'pg_upgrade') or diag($out, $err);

$new->start;
is($new->safe_psql('postgres', $query), $before, 'the registry, the orders and the attachments are there');
is($new->safe_psql('postgres', q{SELECT * FROM techally.check_store('shop')}), '', 'the store is sound');
is($new->safe_psql('postgres', $place), 'new', 'and takes the next order');
is($new->safe_psql('postgres', q{SELECT DISTINCT shop.transition_order(id, 'send') FROM shop.orders}), 'gone', 'which goes its way');
is($new->safe_psql('postgres', q{SELECT * FROM techally.check_store('shop')}), '', 'the store is sound afterwards');
$new->safe_psql('postgres', q{SELECT techally.upgrade_store('shop'), techally.adopt_store('shop')});

$new->stop;
done_testing();
