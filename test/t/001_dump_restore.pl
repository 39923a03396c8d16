# A store in use outlives its database: dumped and restored whole, as a schema
# alone, as data alone, and without the extension for a while.
#
# Whatever a DBA has added to it is there afterwards, nothing differs from what
# was dumped, the store is sound, and the next order goes its way.

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

my @walk = qw(process_payment payment_success start_fulfillment dispatch deliver complete);

# Runs a program of the server's and says what it said where it fails.
sub run_ok
{
	my ($name, @command) = @_;
	my ($out, $err) = ('', '');
	my $done = IPC::Run::run(\@command, '>', \$out, '2>', \$err);
	ok($done, $name) or diag($err);
	return $err;
}

# A dump as text, without what differs from one call to the next, and without
# the casts that PostgreSQL moves when it reads a check on a varchar again.
sub dump_text
{
	my ($database, @options) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'pg_dump', @options, $database ], '>', \$out, '2>', \$err) or die "pg_dump: $err";
	$out =~ s/\('(\w+)'::character varying\)::text/'$1'::character varying/g;
	$out =~ s/\((ARRAY\[[^]]*\])\)::text\[\]/$1/g;
	return join("\n", grep { !/^\\(un)?restrict / } split(/\n/, $out));
}

# Like is(), but shows the first lines that differ and not both dumps.
sub same_dump
{
	my ($got, $expected, $name) = @_;
	ok($got eq $expected, $name) and return;
	my @got = split(/\n/, $got);
	my @expected = split(/\n/, $expected);
	my $i = 0;
	$i++ while $i < @got && $i < @expected && $got[$i] eq $expected[$i];
	diag("line $i\n     got: " . ($got[$i] // '-') . "\nexpected: " . ($expected[$i] // '-'));
	return;
}

sub create_database
{
	my ($database, @sql) = @_;
	$node->safe_psql('postgres', qq{CREATE DATABASE "$database"});
	$node->safe_psql($database, $_) for @sql;
	return;
}

# The store is sound, takes an order and refuses what it must.
sub works
{
	my ($database, $store, @events) = @_;
	my $label = "$database, $store";
	my $literal = $store =~ s/'/''/gr;
	is($node->safe_psql($database, "SELECT * FROM techally.check_store('$literal')"), '', "$label: sound");
	my $order = $node->safe_psql($database,
		qq{SELECT id FROM "$store".place_order((SELECT id FROM "$store".users ORDER BY email LIMIT 1), '[{"sku": "MUG", "quantity": 2}]')});
	my ($rc, $out, $err) = $node->psql($database, qq{UPDATE "$store".orders SET status = 'no such state' WHERE id = '$order'}, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	like($err, qr/TA001/, "$label: the machine holds");
	$node->safe_psql($database, qq{SELECT "$store".transition_order('$order', '$_')}) for @events;
	is( $node->safe_psql($database,
			qq{SELECT count(*), sum(quantity) FROM "$store".stock_movements WHERE order_id = '$order'}),
		'1|-2',
		"$label: one more order leaves the house");
	is($node->safe_psql($database, qq{SELECT count(*) FROM "$store".order_status_history WHERE order_id = '$order'}),
		1 + @events, "$label: its history is written");
	($rc, $out, $err) = $node->psql($database,
		qq{INSERT INTO "$store".product_variants (product_id, sku, name) SELECT id, sku, 'x' FROM "$store".products WHERE sku = 'MUG'},
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	like($err, qr/23505/, "$label: SKUs are unique");
	is($node->safe_psql($database, "SELECT * FROM techally.check_store('$literal')"), '', "$label: sound afterwards");
	return;
}

#
# A database in use
#
my $gift = q{{"initial": "chosen", "transitions": [
	{"event": "wrap", "from": "chosen", "to": "wrapped", "effect": "reserve"},
	{"event": "give", "from": "wrapped", "to": "given", "effect": "sale"},
	{"event": "keep", "from": "chosen", "to": "kept", "effect": "release"}]}};
my @gift_walk = qw(wrap give);
my $gift_store = q{Gifts 'n' $ more};
my $gift_literal = $gift_store =~ s/'/''/gr;

create_database('source', 'CREATE EXTENSION techally', "SELECT techally.create_store('shop')",
	"SELECT techally.define_machine('gift', '$gift')",
	"SELECT techally.create_store('$gift_literal', 'gift')",
	# one that ships, defined anew
	q{SELECT techally.define_machine('cloudlab', replace(definition::text, '"pay"', '"pay_up"')::jsonb) FROM techally.machines WHERE name = 'cloudlab'});

for my $store ('shop', $gift_store)
{
	$node->safe_psql(
		'source', qq{
		SET search_path = "$store";
		INSERT INTO users (email, password_hash, first_name, last_name)
			VALUES ('ann\@example.com', 'x', 'Ann', 'Lee'), ('bob\@example.com', 'x', 'Bob', 'Ray');
		INSERT INTO warehouses (code, name, priority) VALUES ('north', 'North', 200);
		INSERT INTO products (sku, name, slug, price, is_published)
			VALUES ('MUG', 'Mug', 'mug', 8.50, true), ('PEN', 'Pen', 'pen', 0.99, true), ('SHIRT', 'Shirt', 'shirt', 20, true);
		INSERT INTO product_variants (product_id, sku, name)
			SELECT id, 'SHIRT-' || s, s FROM products, unnest(ARRAY['S', 'L']) s WHERE sku = 'SHIRT';
		SELECT receive_stock(s, 1000) FROM unnest(ARRAY['MUG', 'PEN', 'SHIRT-S', 'SHIRT-L']) s;
		SELECT receive_stock('MUG', 5, 'north');
		SELECT adjust_stock('PEN', -3, movement => 'damage');
		SELECT transfer_stock('MUG', 2, 'north', 'main');
		SELECT reserve_stock('PEN', 4, reference => 'basket', ttl => '1 day');
		SELECT reserve_stock('PEN', 5, reference => 'forgotten', ttl => '1 millisecond');
		SELECT place_order((SELECT id FROM users ORDER BY email LIMIT 1), '[{"sku": "MUG", "quantity": 1}, {"sku": "SHIRT-S", "quantity": 2}]',
			idempotency_key => 'order ' || n) FROM generate_series(0, 6) n;
		SELECT place_order((SELECT id FROM users ORDER BY email LIMIT 1), '[{"sku": "MUG", "quantity": 3}]',
			idempotency_key => 'expired', reserve_for => '1 millisecond');
	});
}
# orders in every state that lies on the way, some lines sent back
for my $n (0 .. 6)
{
	$node->safe_psql('source', "SELECT shop.transition_order(id, '$_') FROM shop.orders WHERE idempotency_key = 'order $n'")
	  for @walk[ 0 .. $n - 1 ];
}
$node->safe_psql('source', q{
	SELECT shop.return_order_lines(id, '[{"sku": "SHIRT-S", "quantity": 1}]', 'too small') FROM shop.orders WHERE idempotency_key = 'order 5';
	SELECT shop.return_order_lines(id, '[{"line_number": 1, "quantity": 1}]') FROM shop.orders WHERE idempotency_key = 'order 6';
	SELECT shop.transition_order(id, 'cancel') FROM shop.orders WHERE idempotency_key = 'order 0';
});
$node->poll_query_until('source', q{SELECT count(*) = 2 FROM shop.stock_reservations WHERE status = 'active' AND expires_at < clock_timestamp()})
  or die 'reservations did not expire';
cmp_ok($node->safe_psql('source', 'SELECT count(DISTINCT status) FROM shop.orders'), '>=', 6, 'orders in several states');

# what the DBA has added
$node->safe_psql(
	'source', q{
	CREATE ROLE reporting;
	ALTER TABLE shop.products ADD COLUMN colour text DEFAULT 'red';
	ALTER TABLE shop.products DROP COLUMN barcode;
	UPDATE shop.products SET colour = 'blue' WHERE sku = 'MUG';
	CREATE INDEX own_products_colour ON shop.products (colour) WHERE deleted_at IS NULL;
	ALTER TABLE shop.users ADD CONSTRAINT own_users_name CHECK (first_name <> '');
	ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own_orders ON shop.orders FOR SELECT TO reporting USING (total < 100);
	GRANT USAGE ON SCHEMA shop TO reporting;
	GRANT SELECT ON shop.orders TO reporting;
	GRANT EXECUTE ON FUNCTION shop.available, techally.create_store TO reporting;
	CREATE VIEW shop.own_turnover AS SELECT status, sum(total) FROM shop.orders GROUP BY status;
	COMMENT ON COLUMN shop.products.colour IS 'Ours';
	CREATE TABLE shop.own_notes (order_id uuid REFERENCES shop.orders (id), note text);
	INSERT INTO shop.own_notes SELECT id, 'ours' FROM shop.orders;
});
my $user_objects = q{
	SELECT (SELECT count(*) FROM shop.products WHERE colour = 'blue'), to_regclass('shop.own_products_colour') IS NOT NULL,
	       (SELECT count(*) FROM pg_constraint WHERE conname = 'own_users_name'), (SELECT count(*) FROM pg_policies WHERE policyname = 'own_orders'),
	       has_function_privilege('reporting', 'shop.available(text, text)', 'EXECUTE'),
	       (SELECT count(*) FROM shop.own_notes)};
my $registry = q{
	SELECT string_agg(concat_ws(' ', s.store, s.machine, s.version, s.created_at), ', ' ORDER BY s.store),
	       (SELECT string_agg(concat_ws(' ', a.target, a.column_name, a.machine, a.history), ', ' ORDER BY a.target::text) FROM techally.machine_attachments a),
	       (SELECT string_agg(m.name || m.builtin || m.definition, ', ' ORDER BY m.name) FROM techally.machines m)
	  FROM techally.stores s};

my $whole = dump_text('source');
my $registered = $node->safe_psql('source', $registry);
my $added = $node->safe_psql('source', $user_objects);
is($added, '1|t|1|1|t|8', 'what the DBA has added is there');
like($registered, qr/gift/, 'the registry has both stores');

#
# The whole database
#
run_ok('dump as text', 'pg_dump', '-f', "$dir/whole.sql", 'source');
create_database('plain');
is(run_ok('restore of the text', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-f', "$dir/whole.sql", 'plain'), '', 'without a word');

run_ok('dump in custom format', 'pg_dump', '-Fc', '-f', "$dir/whole.dump", 'source');
create_database('parallel');
run_ok('parallel restore', 'pg_restore', '--exit-on-error', '-j', '3', '-d', 'parallel', "$dir/whole.dump");

create_database('inserts');
run_ok('dump as inserts', 'pg_dump', '--inserts', '-f', "$dir/inserts.sql", 'source');
run_ok('restore of the inserts', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-1', '-f', "$dir/inserts.sql", 'inserts');

for my $database ('plain', 'parallel', 'inserts')
{
	same_dump(dump_text($database), $whole, "$database: its dump is that of the source");
	is($node->safe_psql($database, $registry), $registered, "$database: the registry is complete");
	is($node->safe_psql($database, $user_objects), $added, "$database: what the DBA has added is there");
	works($database, 'shop', @walk);
	is($node->safe_psql($database, q{SELECT has_function_privilege('reporting', 'techally.create_store(name, text)', 'EXECUTE')}), 't', "$database: and the rights that were given");
	works($database, $gift_store, @gift_walk) if $database eq 'plain';
	is($node->safe_psql($database, "SELECT shop.expire_reservations()"), '2', "$database: what had expired can be swept");
	$node->safe_psql($database, "SELECT techally.upgrade_store('shop'), techally.adopt_store('shop')");
	is($node->safe_psql($database, q{SELECT * FROM techally.check_store('shop')}), '', "$database: adopted and sound");
}

# over what is there already
run_ok('restore over an old state', 'pg_restore', '--exit-on-error', '--clean', '--if-exists', '-d', 'parallel', "$dir/whole.dump");
same_dump(dump_text('parallel'), $whole, 'its dump is that of the source');
works('parallel', 'shop', @walk);

#
# The schema of a store alone
#
create_database('alone', 'CREATE EXTENSION techally');
run_ok('dump of a schema', 'pg_dump', '-n', 'shop', '-f', "$dir/shop.sql", 'source');
run_ok('restore of a schema', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-f', "$dir/shop.sql", 'alone');
is($node->safe_psql('alone', 'SELECT * FROM techally.stores'), '', 'it is not registered');
isnt($node->safe_psql('alone', q{SELECT * FROM techally.check_store('shop')}), '', 'and check_store says so');
isnt($node->psql('alone', q{UPDATE shop.orders SET status = 'cancelled' WHERE status = 'processing'}), 0, 'no state changes unguarded');
$node->safe_psql('alone', q{SELECT techally.adopt_store('shop')});
# but for what search derives, which is made anew: nothing kept it up before
my @compared = ('-n', 'shop', '--exclude-table-data=shop.search_*');
same_dump(dump_text('alone', @compared), dump_text('source', @compared), 'adopted, it is the same');
is( $node->safe_psql('alone', 'SELECT store, machine, version, created_at FROM techally.stores'),
	$node->safe_psql('source', q{SELECT store, machine, version, created_at FROM techally.stores WHERE store = 'shop'}),
	'adopted, it is registered as it was');
works('alone', 'shop', @walk);

# with a machine of its own, which has to be there first
run_ok('dump of the other schema', 'pg_dump', '-n', qq{"$gift_store"}, '-f', "$dir/gifts.sql", 'source');
run_ok('restore of the other schema', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-f', "$dir/gifts.sql", 'alone');
my ($rc, $out, $err) = $node->psql('alone', "SELECT techally.adopt_store('$gift_literal')", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/TA007.*state machine "gift" does not exist/, 'its machine is missing');
$node->safe_psql('alone', "SELECT techally.define_machine('gift', '$gift'); SELECT techally.adopt_store('$gift_literal')");
works('alone', $gift_store, @gift_walk);

# into a database without the extension, which comes afterwards: the tables and
# the data are there, the guards are not
create_database('later');
run_ok('dump of a schema in custom format', 'pg_dump', '-Fc', '-n', 'shop', '-f', "$dir/shop.dump", 'source');
IPC::Run::run([ 'pg_restore', '-d', 'later', "$dir/shop.dump" ], '2>', \$err);
$node->safe_psql('later', q{CREATE EXTENSION techally; SELECT techally.adopt_store('shop')});
same_dump(dump_text('later', @compared), dump_text('source', @compared), 'adopted, it is the same');
works('later', 'shop', @walk);

#
# Its data alone, into a store that is there: as a superuser, without triggers
#
create_database('data', 'CREATE EXTENSION techally', q{SELECT techally.create_store('shop')}, q{
	ALTER TABLE shop.products ADD COLUMN colour text DEFAULT 'red', DROP COLUMN barcode;
	CREATE TABLE shop.own_notes (order_id uuid REFERENCES shop.orders (id), note text)},
	q{DO $$ BEGIN EXECUTE (SELECT 'TRUNCATE ' || string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'p')); END $$});
run_ok('dump of the data', 'pg_dump', '--data-only', '--disable-triggers', '-n', 'shop', '-f', "$dir/data.sql", 'source');
run_ok('restore of the data', 'psql', '-X', '-q', '-o', "$dir/psql.log", '-v', 'ON_ERROR_STOP=1', '-f', "$dir/data.sql", 'data');
works('data', 'shop', @walk);

#
# The extension goes, and comes back
#
($rc, $out, $err) = $node->psql('source', 'DROP EXTENSION techally', extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
like($err, qr/2BP01/, 'the extension is not dropped while there are stores');
my $data = dump_text('source', '--data-only', '-n', 'shop', '-n', qq{"$gift_store"});
$node->safe_psql('source', 'SET client_min_messages = warning; DROP EXTENSION techally CASCADE');
same_dump(dump_text('source', '--data-only', '-n', 'shop', '-n', qq{"$gift_store"}), $data, 'by force it is, and leaves the data as they were');
my $columns = q{SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped};
is($node->safe_psql('source', $columns), $node->safe_psql('plain', $columns), 'and every column');
$node->safe_psql('source', "CREATE EXTENSION techally; SELECT techally.define_machine('gift', '$gift')");
$node->safe_psql('source', "SELECT techally.adopt_store('shop'), techally.adopt_store('$gift_literal')");
is($node->safe_psql('source', $user_objects), $added, 'what the DBA has added is there');
works('source', 'shop', @walk);
works('source', $gift_store, @gift_walk);

$node->stop;
done_testing();
