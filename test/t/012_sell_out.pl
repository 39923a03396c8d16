# A sale that many clients want to be at: backends are terminated at random, the
# server goes down in the middle, and in the end exactly what there was is sold.
#
# psql notes each reservation that the server has acknowledged.  Afterwards it
# must be there; nobody may have been told that there was too little before the
# last unit was sold; and nothing may have deadlocked, though orders of two SKUs
# that everybody wants come in both directions.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $units = 40000;
my $rest = 3000;		# left to be sold after the crash
my $clients = 8;
my $terminations = 12;

my $node = PostgreSQL::Test::Cluster->new('sell_out');
$node->init;
$node->append_conf(
	'postgresql.conf', q{
	shared_preload_libraries = 'techally'
	track_commit_timestamp = on
	synchronous_commit = on
	commit_delay = 1000
	commit_siblings = 0
	log_statement = none
	log_line_prefix = '%m|%a|'
	log_timezone = 'UTC'
	log_min_messages = error});
$node->start;
$node->safe_psql(
	'postgres', qq{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (email, password_hash, first_name, last_name)
		VALUES ('ann\@example.org', 'x', 'Ann', 'Smith');
	INSERT INTO shop.products (sku, name, slug, price, is_published)
		SELECT sku, sku, lower(sku), 1, true FROM unnest(ARRAY['SALE', 'SIDE']) sku;
	-- another warehouse, which has none, comes first in the lock order
	INSERT INTO shop.warehouses (code, name, priority) VALUES ('north', 'North', 900);
	INSERT INTO shop.inventory_stock (id, product_id, warehouse_id)
		SELECT CASE w.code WHEN 'north' THEN '10000000-0000-4000-8000-000000000000'
			ELSE 'f0000000-0000-4000-8000-000000000000' END::uuid, p.id, w.id
		  FROM shop.products p, shop.warehouses w WHERE p.sku = 'SALE';
	SELECT shop.receive_stock('SALE', $units), shop.receive_stock('SIDE', $units);
	CREATE TABLE acknowledged (key text);
});
my $user = $node->safe_psql('postgres', 'SELECT id FROM shop.users');

# Every third client orders both SKUs, the others reserve the one; each until
# there is no more.
my $started = 0;
my @running;

sub statement
{
	my ($client, $key) = @_;
	return "SELECT '$key' FROM shop.reserve_stock('SALE', 1, reference => '$key');\n" if $client % 3;
	my @lines = map { qq({"sku": "$_", "quantity": 1}) } $client % 2 ? qw(SALE SIDE) : qw(SIDE SALE);
	return "SELECT '$key' FROM shop.place_order('$user', '[$lines[0], $lines[1]]', idempotency_key => '$key');\n";
}

sub start_client
{
	my $number = ++$started;
	my $path = "$PostgreSQL::Test::Utils::tmp_check/seller$number";
	my %client = (log => "$path.log", error => '');

	append_to_file("$path.sql", join '', map { statement($number, "c$number-$_") } 1 .. $units + 1);
	append_to_file($client{log}, '');
	$client{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-f', "$path.sql", '-o', $client{log},
			'-d', $node->connstr('postgres') . " application_name=seller" ],
		'<', \'', '2>', \$client{error});
	push @running, \%client;
	return;
}

sub alive
{
	my ($client) = @_;
	my $run = $client->{run};

	$run->pump_nb if $run->pumpable;
	return $run->pumpable;
}

my $acknowledged = 0;

sub collect
{
	foreach my $client (@running)
	{
		my $log = slurp_file($client->{log});
		$log =~ s/[^\n]+\z//;		# cut off by the end of the client
		$acknowledged += () = $log =~ /\n/g;
		append_to_file("$client->{log}.whole", $log);
		$node->safe_psql('postgres', "COPY acknowledged FROM '$client->{log}.whole'");
	}
	return;
}

sub check
{
	my ($what) = @_;

	is($node->safe_psql('postgres', q{SELECT rule, subject, detail FROM techally.check_store('shop')}),
		'', "$what: the store is sound");
	is( $node->safe_psql(
			'postgres', q{SELECT key FROM acknowledged
			EXCEPT SELECT reference FROM shop.stock_reservations EXCEPT SELECT idempotency_key FROM shop.orders}),
		'', "$what: what was acknowledged is there");
	is( $node->safe_psql(
			'postgres', q{SELECT shop.available('SALE') + sum(p.quantity)
			FROM shop.stock_reservation_parts p JOIN shop.inventory_stock s ON s.id = p.stock_id
			JOIN shop.products c ON c.id = s.product_id WHERE c.sku = 'SALE'}),
		$units, "$what: the units add up");
	my $unknown = $node->safe_psql('postgres',
		q{SELECT count(*) FROM (SELECT coalesce(r.reference, o.idempotency_key) AS key
			FROM shop.stock_reservations r LEFT JOIN shop.orders o ON o.id = r.order_id) s
			WHERE key NOT IN (SELECT key FROM acknowledged)});
	cmp_ok($unknown, '<=', $started, "$what: at most one for each client was not acknowledged");
	return;
}

# single backends are lost, then the server, before too much is sold
my $lost = 0;
start_client() for 1 .. $clients;
for my $n (1 .. $terminations)
{
	usleep(5_000 + rand(40_000));
	last if $node->safe_psql('postgres', q{SELECT shop.available('SALE')}) < $units * 2 / 3;
	$lost++ if 't' eq $node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE application_name = 'seller' ORDER BY state = 'active' DESC, random() LIMIT 1});
	foreach my $client (grep { !$_->{ended} } @running)
	{
		next if alive($client);
		$client->{run}->finish;
		$client->{ended} = 1;
		start_client();
	}
}
$node->stop('immediate');
$_->{run}->finish foreach grep { !$_->{ended} } @running;
$node->start;
collect();
cmp_ok($acknowledged, '>', $clients, 'the clients were told something');
cmp_ok($lost, '>', 0, 'backends were lost');
check('after the crash');
is(join('', grep { /ERROR/ } map { split /^/, $_->{error} } @running), '', 'nobody was told that there was too little');

# and on, to the end
my $left = $node->safe_psql('postgres', q{SELECT shop.available('SALE')});
cmp_ok($left, '>', 0, 'there is something left');
if ($left > $rest)
{
	$node->safe_psql('postgres', qq{SELECT shop.adjust_stock('SALE', $rest - $left)});
	$units -= $left - $rest;
}
@running = ();
start_client() for 1 .. $clients;
$_->{run}->finish foreach @running;
collect();
check('sold out');
is($node->safe_psql('postgres', q{SELECT shop.available('SALE')}), '0', 'exactly everything is sold');
is(scalar(grep { $_->{error} =~ /TA002: insufficient stock/ } @running), $clients, 'everybody was told at the end');
is(join('', grep { /ERROR:/ && !/TA002/ } map { split /^/, $_->{error} } @running), '', 'and got no other error');
is($node->safe_psql('postgres', q{SELECT warehouse, stripes > 1, automatic FROM techally.hot_stock WHERE sku = 'SALE'}), 'main|t|t',
	'the stock was spread by itself');

# the log says when the first was told, the server when the last unit was committed
my $log = slurp_file($node->logfile);
my ($told) = $log =~ /^([-0-9]+ [:.0-9]+) UTC\|seller\|ERROR:  insufficient stock/m;
my $sold = $node->safe_psql('postgres', q{SELECT to_char(max(pg_xact_commit_timestamp(p.xmin)) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')
	FROM shop.stock_reservation_parts p JOIN shop.inventory_stock s ON s.id = p.stock_id
	JOIN shop.products c ON c.id = s.product_id WHERE c.sku = 'SALE'});
cmp_ok($told, 'ge', $sold, 'nobody was told before the last unit was sold');
unlike($log, qr/deadlock detected/, 'nothing deadlocked');

$node->stop;
done_testing();
