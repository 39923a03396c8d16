# On a standby a store can be read; promoted, it takes the next order.

use strict;
use warnings;

use Test::More;

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', "fsync = off\nmax_prepared_transactions = 5\n");
$primary->start;
$primary->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
	INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
	SELECT shop.receive_stock('MUG', 10);
});
my $place = q{SELECT (shop.place_order((SELECT id FROM shop.users), '[{"sku": "MUG", "quantity": 1}]')).status};

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# what a session of the standby has compiled follows the primary
$primary->safe_psql('postgres', $place);
$primary->safe_psql('postgres', q{SELECT techally.create_store('other', 'simple')});
$primary->wait_for_catchup($standby, 'replay');

is($standby->safe_psql('postgres', 'SELECT store, machine FROM techally.stores ORDER BY 1'), "other|simple\nshop|techally", 'the stores are listed');
is($standby->safe_psql('postgres', q{SELECT shop.available('MUG')}), '9', 'stock can be asked for');
is($standby->safe_psql('postgres', q{SELECT * FROM techally.check_store('shop')}), '', 'the store can be checked');
like($standby->safe_psql('postgres', q{SELECT techally.machine_diagram('techally')}), qr/pending/, 'a machine can be drawn');
is($standby->safe_psql('postgres', q{SELECT string_agg(e.event, ' ' ORDER BY e.event) FROM shop.orders o, techally.allowed_events('shop.orders', o.id) e}),
	'cancel process_payment', 'and asked what may happen next');

my ($rc, $out, $err);
for my $write ($place, q{SELECT techally.create_store('third')}, q{SELECT techally.upgrade_store('shop')}, q{SELECT techally.adopt_store('shop')},
	q{SELECT techally.drop_store('shop')}, q{SELECT shop.expire_reservations()},
	q{SELECT shop.transition_order(o.id, 'cancel') FROM shop.orders o}, q{SELECT shop.reserve_stock('MUG', 1)})
{
	($rc, $out, $err) = $standby->psql('postgres', $write, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	like($err, qr/25006/, "refused: $write");
}

# a prepared transaction outlives the server that prepared it
$primary->safe_psql('postgres', "BEGIN; $place; PREPARE TRANSACTION 'order'");
$primary->safe_psql('postgres', q{BEGIN; SELECT techally.create_store('prepared'); PREPARE TRANSACTION 'store'});
$primary->wait_for_catchup($standby, 'replay');
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', q{SELECT count(*) FROM shop.orders}), '1', 'prepared is not committed');
($rc, $out, $err) = $standby->psql('postgres', q{SET lock_timeout = 1; SELECT techally.create_store('prepared')}, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
like($err, qr/55P03/, 'a store that is being prepared is not made twice');
$standby->safe_psql('postgres', q{COMMIT PREPARED 'order'});
$standby->safe_psql('postgres', q{ROLLBACK PREPARED 'store'});
is($standby->safe_psql('postgres', q{SELECT count(*) FROM shop.orders}), '2', 'committed now');
is($standby->safe_psql('postgres', $place), 'pending', 'promoted, it takes the next order');
is($standby->safe_psql('postgres', q{SELECT shop.available('MUG')}), '7', 'from the same stock');
$standby->safe_psql('postgres', q{SELECT techally.create_store('prepared')});
is($standby->safe_psql('postgres', qq{SELECT c.* FROM techally.stores s, techally.check_store(s.store) c}), '', 'every store is sound');

$standby->stop;
done_testing();
