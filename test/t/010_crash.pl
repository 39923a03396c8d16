# What a client was told is committed is there after a crash, and the store is
# sound.
#
# Clients place orders and walk them along the state machine, and psql notes
# each result that the server has acknowledged, while the server is stopped
# with "immediate", or backends are terminated at random.  Afterwards every
# order that was acknowledged must be there, with its lines and its
# reservation, and in no earlier state than was acknowledged.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $clients = 4;
my $crashes = 4;
my $terminations = 25;

my @events = qw(process_payment payment_success start_fulfillment dispatch deliver complete);

my $node = PostgreSQL::Test::Cluster->new('crash');
$node->init;
$node->append_conf('postgresql.conf', "synchronous_commit = on\nlog_statement = none\n");
$node->start;
$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (email, password_hash, first_name, last_name)
		VALUES ('ann@example.org', 'x', 'Ann', 'Smith');
	INSERT INTO shop.products (sku, name, slug, price, is_published)
		SELECT 'SKU-' || n, 'Product ' || n, 'product-' || n, n, true FROM generate_series(1, 20) AS n;
	SELECT shop.receive_stock('SKU-' || n, 1000000) FROM generate_series(1, 20) AS n;
	CREATE TABLE acknowledged (key text, order_number text, status text);
});
my $user = $node->safe_psql('postgres', 'SELECT id FROM shop.users');

# Order n of a client: its lines and how far it goes are a matter of n.  The
# key is the client's own name for it, also after a crash.
sub place
{
	my ($key, $n) = @_;
	my $lines = join ', ', map { sprintf '{"sku": "SKU-%d", "quantity": %d}', 1 + $_ % 20, 1 + $_ % 4 } ($n, $n * 7 + 3, $n * 3 + 1);
	return "SELECT '$key', order_number, status FROM shop.place_order('$user', '[$lines]', idempotency_key => '$key');\n";
}

sub script
{
	my ($name) = @_;
	my $sql = '';
	for my $n (1 .. 3000)
	{
		my $key = "$name-$n";
		my @walk = $n % 8 == 7 ? ('cancel') : @events[ 0 .. $n % 8 - 1 ];
		$sql .= place($key, $n);
		$sql .= "SELECT '$key', o.order_number, shop.transition_order(o.id, '$_') FROM shop.orders o WHERE o.idempotency_key = '$key';\n"
		  foreach @walk;
	}
	return $sql;
}

my $started = 0;
my @running;

# psql prints a result when its transaction has ended, not before
sub start_client
{
	my $name = 'c' . ++$started;
	my $path = "$PostgreSQL::Test::Utils::tmp_check/$name";
	my %client = (name => $name, log => "$path.log", error => '');

	append_to_file("$path.sql", script($name));
	append_to_file($client{log}, '');
	$client{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', "$path.sql", '-o', $client{log},
			'-d', $node->connstr('postgres') . " application_name=client" ],
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

sub lines_in { return scalar(() = slurp_file($_[0]) =~ /\n/g); }

# What clients that have ended were told goes into a table of its own.
sub collect
{
	my $rows = 0;
	foreach my $client (@_)
	{
		my $log = slurp_file($client->{log});
		$log =~ s/[^\n]+\z//;		# cut off by the end of the client
		$rows += () = $log =~ /\n/g;
		append_to_file("$client->{log}.whole", $log);
		$node->safe_psql('postgres', "COPY acknowledged FROM '$client->{log}.whole' (DELIMITER '|')");
	}
	return $rows;
}

sub check_all
{
	my ($what) = @_;

	is($node->safe_psql('postgres', q{SELECT rule, subject, detail FROM techally.check_store('shop')}),
		'', "$what: the store is sound");
	is( $node->safe_psql(
			'postgres', q{SELECT a.* FROM acknowledged a
			LEFT JOIN shop.orders o ON o.idempotency_key = a.key AND o.order_number = a.order_number
			WHERE o.id IS NULL}),
		'', "$what: every acknowledged order is there");
	is( $node->safe_psql(
			'postgres', q{SELECT a.* FROM acknowledged a
			JOIN shop.orders o ON o.idempotency_key = a.key
			WHERE NOT EXISTS (SELECT FROM shop.order_status_history h
				WHERE h.order_id = o.id AND h.to_status = a.status)}),
		'', "$what: every acknowledged transition is there");
	is( $node->safe_psql(
			'postgres', q{SELECT o.order_number, i.lines, i.units, r.units
			FROM shop.orders o
			LEFT JOIN (SELECT order_id, count(*) AS lines, sum(quantity) AS units
				FROM shop.order_items GROUP BY 1) i ON i.order_id = o.id
			LEFT JOIN (SELECT r.order_id, sum(p.quantity) AS units FROM shop.stock_reservations r
				JOIN shop.stock_reservation_parts p ON p.reservation_id = r.id GROUP BY 1) r ON r.order_id = o.id
			WHERE i.lines IS DISTINCT FROM 3 OR r.units IS DISTINCT FROM i.units}),
		'', "$what: every order has its lines and their reservation");

	# a client can be uncertain of the one statement that it was waiting for
	my $unknown = $node->safe_psql('postgres',
		q{SELECT count(*) FROM shop.orders o WHERE NOT EXISTS (SELECT FROM acknowledged a WHERE a.key = o.idempotency_key)});
	cmp_ok($unknown, '<=', $started, "$what: at most one order a client was not acknowledged");
	return;
}

# the server goes down in the middle, several times over
for my $round (1 .. $crashes)
{
	start_client() for 1 .. $clients;
	my $target = 20 + int(rand(150));
	my $patience = 6000;
	usleep(10_000) while $patience-- > 0 && grep { lines_in($_->{log}) < $target && alive($_) } @running;

	$node->stop('immediate');
	$_->{run}->finish foreach @running;
	$node->start;

	cmp_ok(collect(@running), '>=', $clients, "crash $round: the clients were told something");
	check_all("crash $round");

	# whoever was left in doubt asks again
	foreach my $client (@running)
	{
		my $n = 1 + (grep { /^\S+\|pending$/ } split /\n/, slurp_file($client->{log}));
		my $key = "$client->{name}-$n";
		my $again = $node->safe_psql('postgres', place($key, $n) . place($key, $n));
		my @answers = split /\n/, $again;
		is($answers[0], $answers[1], "crash $round: the key of a lost call still stands for one order");
	}
	@running = ();
}

# single backends are lost
start_client() for 1 .. $clients;
for my $n (1 .. $terminations)
{
	usleep(20_000 + rand(80_000));
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE application_name = 'client' AND state = 'active' ORDER BY random() LIMIT 1});
	foreach my $client (@running)
	{
		next if $client->{ended} || alive($client);
		$client->{run}->finish;
		$client->{ended} = 1;
		start_client();
	}
}
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'client'});
foreach my $client (@running)
{
	$client->{run}->finish unless $client->{ended};
}
is(join('', grep { /(ERROR|PANIC):/ } map { split /^/, $_->{error} } @running), '', 'the clients saw no other error');
cmp_ok($started, '>', $clients * ($crashes + 1), 'backends were lost');
cmp_ok(collect(@running), '>=', $clients, 'terminated backends: the clients were told something');
check_all('terminated backends');

$node->stop;
done_testing();
