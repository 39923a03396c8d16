# The replay of real invoices: every kind of dirt in a file of our own, an
# interruption, refusals, and the beginning of the real data where it is at hand.
use strict;
use warnings;

use FindBin;
use IPC::Run qw(start finish run);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my $script = "$top/scripts/replay-online-retail";
my $real = "$top/../shared/data/online-retail/online_retail_2010_2011.csv.xz";
my $dir = PostgreSQL::Test::Utils::tempdir();

my $node = PostgreSQL::Test::Cluster->new('replay');
$node->init;
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

sub replay
{
	my ($out, $err);
	run([ 'bash', $script, '--database', 'postgres', @_ ], '<', '/dev/null', '>', \$out, '2>', \$err);
	return ($? >> 8, $out, $err);
}

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Each line with what should become of it.
my @lines = (
	[ '536365,85123A," WHITE HEART ",6,2010-12-01 08:26:00,2.55,17850,United Kingdom', 'ordered' ],
	# another product: letter case counts
	[ '536365,85123a,white heart,2,2010-12-01 08:26:00,2.95,17850,United Kingdom', 'ordered' ],
	# a duplicate of the first line is another line
	[ '536365,85123A," WHITE HEART ",6,2010-12-01 08:26:00,2.55,17850,United Kingdom', 'ordered' ],
	[ '536365,POST,POSTAGE,1,2010-12-01 08:26:00,18.00,17850,United Kingdom', 'charge' ],
	[ '536366,22423,"REGENCY ""CAKESTAND"", 3 TIER",10,2010-12-01 08:28:00,12.75,17850,United Kingdom', 'ordered' ],
	[ '536366,22423,"REGENCY ""CAKESTAND"", 3 TIER",4,2010-12-01 08:29:00,10.95,17850,United Kingdom', 'ordered' ],
	# given away to nobody we know
	[ '536367,71053,,3,2010-12-01 08:30:00,0.0,,United Kingdom', 'ordered' ],
	# 4 of the newer line at 10.95 and 2 of the older at 12.75, credited at 12.75
	[ 'C536379,22423,"REGENCY ""CAKESTAND"", 3 TIER",-6,2010-12-01 09:41:00,12.75,17850,United Kingdom', 'returned' ],
	[ 'C536379,D,Discount,-1,2010-12-01 09:41:00,27.50,17850,United Kingdom', 'charge' ],
	[ 'C536383,85123A,WHITE HEART,-20,2010-12-01 09:49:00,2.55,17850,United Kingdom', 'returned' ],
	[ 'C536384,71053,LANTERN,-1,2010-12-01 09:50:00,3.39,14527,United Kingdom', 'no earlier purchase' ],
	[ 'C536385,71053,LANTERN,-1,2010-12-01 09:51:00,3.39,,United Kingdom', 'cancellation without a customer' ],
	[ '536390,71053,damaged,-5,2010-12-01 10:00:00,0.0,,United Kingdom', 'stock write-off' ],
	[ '536389,71053,check,-2,2010-12-01 10:00:00,0.0,,United Kingdom', 'stock write-off' ],
	[ 'A536391,B,Adjust bad debt,1,2010-12-01 10:01:00,-11062.06,,United Kingdom', 'charge' ],
	[ '536392,BANK CHARGES,,3,2010-12-01 10:02:00,0.005,14527,United Kingdom', 'charge' ],
	[ '536393,22423,CAKESTAND,3,2010-12-01 10:03:00,0.125,14527,France', 'ordered' ],
	[ 'C536394,22423,CAKESTAND,-1,2010-12-01 10:04:00,0.125,14527,France', 'returned' ],
	[ '536395,22423,CAKESTAND,x,2010-12-01 10:05:00,1.00,14527,France', 'malformed Quantity' ],
	[ '536395,22423,CAKESTAND,1,2010-02-30 10:05:00,1.00,14527,France', 'malformed InvoiceDate' ],
	[ '536395,22423,CAKESTAND,1,2010-12-01 10:05:00,"1,00",14527,France', 'malformed UnitPrice' ],
	[ '536395,22423,CAKESTAND,1,2010-12-01 10:05:00,1.00,1\'4,France', 'malformed CustomerID' ],
	[ '536395,,CAKESTAND,1,2010-12-01 10:05:00,1.00,14527,France', 'malformed StockCode' ],
	[ ',22423,CAKESTAND,1,2010-12-01 10:05:00,1.00,14527,France', 'malformed InvoiceNo' ],
	[ '536395,22423,CAKESTAND,0,2010-12-01 10:05:00,1.00,14527,France', 'quantity is zero' ],
	[ '536395,22423,CAKESTAND,1,2010-12-01 10:05:00,-1.00,14527,France', 'product with a negative price' ],
	[ '536395,22423,CAKESTAND,-1,2010-12-01 10:05:00,1.00,14527,France', 'negative quantity at a price, outside a cancellation' ],
	[ '536395,22423,CAKESTAND,999999999,2010-12-01 10:05:00,1.00,14527,France', 'amount out of range' ],
	[ 'C536396,22423,CAKESTAND,1,2010-12-01 10:06:00,1.00,14527,France', 'cancellation of a negative quantity' ],
	[ '536397,22423,CAKESTAND,1,2010-12-01 10:07:00,12.75,14527,France', 'ordered' ],
	[ '536397,22423,CAKESTAND,1,2010-12-01 10:07:00,12.75,17850,France', "not the customer of the invoice's first line" ],
	[ '536397,gift_0001_20,Gift Voucher £20.00,1,2010-12-01 10:07:00,17.02,14527,France', 'charge' ],
	# later in the file, earlier in time
	[ '536300,22423,CAKESTAND,1,2010-11-30 10:07:00,12.75,14527,France', 'ordered' ],
	[ '536398,DCGS0055,,-1,2010-12-01 10:08:00,0.0,,United Kingdom', 'charge' ],
	[ '536399,m,Manual,2,2010-12-01 10:08:00,1.25,14527,France', 'charge' ],);

my $header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\r\n";
my $small = "$dir/small.csv";
append_to_file($small, "\xEF\xBB\xBF" . $header . join('', map { "$_->[0]\r\n" } @lines));

# Interrupted by kill -9 while it waits for a lock in the middle of the file.
# The store is one that exists.
sql("CREATE EXTENSION techally; SELECT techally.create_store('shop');");
my $holder = start(
	[ 'psql', '-X', '-d', 'postgres', '-c', 'BEGIN; LOCK TABLE shop.order_returns; SELECT pg_sleep(600)' ],
	'<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE relation = 'shop.order_returns'::regclass AND granted")
  or die "no lock";
my $victim = start([ 'bash', $script, '--database', 'postgres', '--batch', '1', $small ],
	'<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE relation = 'shop.order_returns'::regclass AND NOT granted")
  or die "the replay did not reach its first return";
$victim->kill_kill(grace => 0);
my $done = sql('SELECT done FROM online_retail.run');
ok($done > 0, "interrupted after $done documents");
is(sql('SELECT count(*) FROM shop.orders'), $done, 'an order for each of them');
is(sql('SELECT count(*) FROM online_retail.returns'), '0', 'nothing of the one it was at');

# What it left behind in the server may still want to go on.  Whoever does,
# nothing is done twice.
sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)'"
	  . ' AND pid <> pg_backend_pid()');
$holder->finish;
my ($status, $stdout, $stderr) = replay($small);
is($status, 0, 'goes on to the end') or diag($stdout, $stderr);
like($stdout, qr/Everything adds up/, 'and says that everything adds up');
like($stdout, qr/^ total +\| 35 /m, 'with every line');

# each line
my $expected = join "\n", map { "$_|$lines[$_ - 1][1]" } 1 .. @lines;
is( sql("SELECT l.line, CASE WHEN l.class = 'rejected' THEN r.reason ELSE l.class END
		   FROM online_retail.lines l LEFT JOIN online_retail.rejects r USING (line) ORDER BY l.line"),
	$expected,
	'what became of each line');
is( sql('SELECT line, unmatched_quantity, whole FROM online_retail.rejects
		  WHERE unmatched_quantity IS NOT NULL ORDER BY line'),
	"10|8|f\n11|1|t\n12|1|t",
	'units that no purchase covers');
is( sql('SELECT p.line, m.quantity FROM online_retail.matches m
		   JOIN online_retail.lines p ON p.line = m.purchase_line WHERE m.return_line = 8 ORDER BY p.line DESC'),
	"6|4\n5|2",
	'the newest purchase is given back first');

# the store
is(sql('SELECT count(*), count(DISTINCT order_number), min(status), max(status) FROM shop.orders'),
	'11|11|completed|completed', 'every invoice is one order, completed');
is( sql("SELECT order_number, subtotal, charges, total, currency, o.created_at AT TIME ZONE 'Europe/London', email
		   FROM shop.orders o JOIN shop.users u ON u.id = o.user_id WHERE order_number IN ('536300', '536365', '536367')
		  ORDER BY 1"),
	"536300|12.75|0.00|12.75|GBP|2010-11-30 10:07:00|customer-14527\@online-retail.invalid\n"
	  . "536365|36.50|18.00|54.50|GBP|2010-12-01 08:26:00|customer-17850\@online-retail.invalid\n"
	  . "536367|0.00|0.00|0.00|GBP|2010-12-01 08:30:00|guest\@online-retail.invalid",
	'orders as they were invoiced');
is( sql("SELECT o.order_number, c.code, c.amount FROM shop.order_charges c JOIN shop.orders o ON o.id = c.order_id
		  ORDER BY o.order_number, c.code"),
	"536365|POST|18.00\n536392|BANK CHARGES|0.02\n536397|gift_0001_20|17.02\n536398|DCGS0055|0.00\n"
	  . "536399|m|2.50\nA536391|B|-11062.06\nC536379|D|-27.50\nC536379|RETURN-DIFFERENCE|-7.20",
	'charges');
is( sql("SELECT o.order_number, r.amount, r.note FROM shop.order_returns r JOIN shop.orders o ON o.id = r.order_id
		  ORDER BY 1"),
	"536365|30.60|C536383\n536366|69.30|C536379\n536393|0.13|C536394",
	'returns at the price that was paid');
is( sql("SELECT m.movement_type, m.quantity FROM shop.stock_movements m WHERE m.note LIKE '% line %' ORDER BY 1"),
	"adjustment|-2\ndamage|-5",
	'write-offs');
is( sql("SELECT p.sku, p.name, p.price, i.quantity_on_hand FROM shop.products p
		   JOIN shop.inventory i ON i.product_id = p.id ORDER BY p.sku COLLATE \"C\""),
	"22423|CAKESTAND|12.75|3\n71053|LANTERN|3.39|0\n85123A|WHITE HEART|2.55|12\n85123a|white heart|2.95|0",
	'catalogue and stock');
is(sql('SELECT count(DISTINCT slug) FROM shop.products'), '4', 'slugs tell SKUs apart that differ in case');

# again
my $before = sql('SELECT (SELECT count(*) FROM shop.orders), (SELECT count(*) FROM shop.stock_movements)');
($status, $stdout, $stderr) = replay($small);
is($status, 0, 'a replay that is complete can be called again');
is(sql('SELECT (SELECT count(*) FROM shop.orders), (SELECT count(*) FROM shop.stock_movements)'),
	$before, 'and changes nothing');

# refusals
my $other = "$dir/other.csv";
append_to_file($other, $header . "$lines[0][0]\r\n");
($status, $stdout, $stderr) = replay($other);
isnt($status, 0, 'another file is refused');
like($stderr, qr/holds a replay of another file, small\.csv/, 'with the reason');
($status, $stdout, $stderr) = replay($small, '--restart');
isnt($status, 0, 'no restart where the store is not the replay\'s');
like($stderr, qr/did not make the store/, 'with the reason');
($status, $stdout, $stderr) = replay($other, '--work-schema', 'second');
isnt($status, 0, 'a store that has the products is refused');
like($stderr, qr/already has 1 of the file's invoices, "536365"/, 'with the reason');
append_to_file("$dir/bad.csv", "Invoice,StockCode\n1,2\n");
($status, $stdout, $stderr) = replay("$dir/bad.csv", '--work-schema', 'third');
isnt($status, 0, 'a file of another form is refused');
like($stderr, qr/does not begin with the header/, 'with the reason');
is(sql("SELECT to_regnamespace('third') IS NULL"), 't', 'and nothing is made');
($status, $stdout, $stderr) = replay("$dir/missing.csv");
isnt($status, 0, 'a missing file is refused');
like($stderr, qr/cannot read/, 'with the reason');

# a restart, and names that need quotes
my @odd = ('--store', 'My "Shop"', '--work-schema', "it's my \"work\"");
($status) = replay($small, @odd, '--limit', '10');
is($status, 0, 'a store with a name that needs quotes');
is(sql(q{SELECT count(*) FROM "it's my ""work""".lines}), '10', 'the first lines only');
($status) = replay($small, @odd, '--restart');
is($status, 0, 'begins again');
is(sql(q{SELECT count(*) FROM "My ""Shop""".orders}), '11', 'in a new store');

# a replay that does not add up says so
sql(q{UPDATE "My ""Shop""".order_charges SET amount = amount + 1 WHERE code = 'POST'});
($status, $stdout) = replay($small, @odd);
is($status, 3, 'a cent that is missing is a failure');
like($stdout, qr/problem: charges: invoice 536365/, 'and says where');

SKIP:
{
	skip 'the real data is not at hand', 3 unless -e $real;
	($status, $stdout, $stderr) = replay($real, '--store', 'real', '--work-schema', 'real_work', '--limit', '5000');
	is($status, 0, 'the first 5,000 real lines') or diag($stdout, $stderr);
	like($stdout, qr/^ total +\| 5,000 /m, 'are all accounted for');
	is(sql('SELECT class, count(*) FROM real_work.lines GROUP BY class ORDER BY class'),
		"charge|10\nordered|4919\nrejected|64\nreturned|5\nstock write-off|2", 'as they should');
}

$node->stop;
done_testing();
