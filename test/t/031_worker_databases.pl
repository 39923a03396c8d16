# The background worker among databases that come and go: it stands in nobody's
# way, finds what is made anew, does not obey settings that are not for it, ends
# what does not end, and sleeps when there is nothing to do.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time usleep);

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $long = 'database_' . 'x' x 70;      # CREATE DATABASE cuts it
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', qq{
fsync = off
shared_preload_libraries = 'techally'
techally.databases = 'shopdb, shopdb, "Odd ""Name", closed, $long, "", template0, UPPER'
techally.max_workers = 4
});
$node->start;
my $log = $node->logfile;

sub query { return $node->safe_psql($_[1] // 'shopdb', $_[0]); }

# polls until a query gives 't'
sub soon { return $node->poll_query_until($_[2] // 'shopdb', $_[0]) ? pass($_[1]) : fail($_[1]); }

sub workers { return qq{SELECT count(*) $_[0] FROM pg_stat_activity WHERE backend_type = 'techally worker'}; }

sub logged { return PostgreSQL::Test::Utils::slurp_file($log); }

my $all_ran = q{SELECT bool_and(last_result = 'ok') FROM techally.worker_tasks};

# a view that takes a minute, and what it does when it is told to stop
sub sleeper
{
	my ($database, $body) = @_;
	query(qq{CREATE FUNCTION public.slow() RETURNS int LANGUAGE plpgsql AS \$\$ BEGIN $body RETURN 1; END \$\$;
		CREATE MATERIALIZED VIEW public.sleeper AS SELECT public.slow() AS a WITH NO DATA;
		SELECT techally.maintain_view('public.sleeper');
		INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('views', '1 second')
			ON CONFLICT (task) DO UPDATE SET run_every = excluded.run_every}, $database);
	return;
}
my $stubborn = 'LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;';

sub at_work { return soon(qq{SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = '$_[0]' AND query LIKE 'techally views: running % on public.sleeper'}, "$_[0]: at work", 'postgres'); }

# names as they come; a database that is made after a failed look is found at once
query('CREATE DATABASE closed ALLOW_CONNECTIONS false', 'postgres');
for my $name ('shopdb', 'Odd "Name', $long, 'UPPER')
{
	query('CREATE DATABASE "' . $name =~ s/"/""/gr . '"', 'postgres');
	query('CREATE EXTENSION techally', substr($name, 0, 63));
}
soon($all_ran, "found at once: $_", substr($_, 0, 63)) for ('shopdb', 'Odd "Name', $long, 'UPPER');
is(query(workers("> 1") . q{ AND datname = 'shopdb'}), 'f', 'a name that is there twice counts once');
like(logged(), qr/cannot keep house in database "closed": it does not allow connections/, 'what cannot be done is said');
like(logged(), qr/cannot keep house in database "template0"/, 'of every database');

# an endless step, while we look at other things
query(q{INSERT INTO techally.maintenance_settings (task, time_limit) VALUES ('views', '100 milliseconds')}, 'UPPER');
sleeper('UPPER', $stubborn);

# dropped and made again, by the same name: it is another one
query('DROP DATABASE shopdb', 'postgres');
query('CREATE DATABASE shopdb', 'postgres');
query('CREATE EXTENSION techally');
soon($all_ran, 'dropped and made again');

# settings that a database's owner makes are not for the worker
query($_, 'postgres')
  for ('CREATE ROLE nobody_in_particular IN ROLE pg_monitor', 'ALTER DATABASE shopdb SET role = nobody_in_particular',
	'ALTER DATABASE shopdb SET search_path = nosuch',
	q{ALTER DATABASE shopdb SET default_transaction_isolation = 'serializable'}, q{ALTER DATABASE shopdb SET DateStyle = 'German'},
	'ALTER DATABASE shopdb SET transform_null_equals = on');
query(q{SET ROLE NONE; UPDATE techally.maintenance_results SET last_run = '-infinity', next_run = '-infinity'; SELECT techally.wake_worker()});
soon(q{SELECT bool_and(last_result = 'ok' AND last_run > now() - interval '1 hour') FROM techally.worker_tasks}, 'its own settings hold');
query("ALTER DATABASE shopdb RESET ALL", 'postgres');

# CREATE DATABASE with this one as template, ALTER DATABASE, DROP DATABASE
sleeper('shopdb', 'PERFORM pg_sleep(60);');
at_work('shopdb');
my $begun = time;
query('CREATE DATABASE copy TEMPLATE shopdb', 'postgres');
cmp_ok(time - $begun, '<', 4.5, 'a database that is worked in can be copied');
at_work('shopdb');
$begun = time;
query('ALTER DATABASE shopdb RENAME TO renamed', 'postgres');
cmp_ok(time - $begun, '<', 4.5, 'or renamed');
query('ALTER DATABASE renamed RENAME TO shopdb', 'postgres');
$node->reload;
at_work('shopdb');

# the launcher goes, and its worker with it; both come back
my $launcher = query(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'techally launcher'}, 'postgres');
my $worker = query(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'techally worker' AND datname = 'shopdb'}, 'postgres');
query("SELECT pg_terminate_backend($launcher)", 'postgres');
soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $worker", 'no worker outlives its launcher', 'postgres');
soon(qq{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'techally launcher' AND pid <> $launcher}, 'another launcher comes', 'postgres');
at_work('shopdb');
# somebody cancels what it does
query(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'techally worker' AND datname = 'shopdb'}, 'postgres');
soon(q{SELECT last_result = 'interrupted' FROM techally.worker_tasks WHERE task = 'views'}, 'it can be canceled');
query('DROP MATERIALIZED VIEW public.sleeper; DROP FUNCTION public.slow()');

# a step that catches its cancel ends its process, and waits like any that fails
soon(workers('= 0') . q{ AND datname = 'UPPER'}, 'a step that does not heed its time ends with its process', 'postgres');
query('SELECT techally.wake_worker()', 'UPPER');
soon(q{SELECT last_result LIKE 'interrupted: the server process %' AND next_run > now() + interval '20 seconds' FROM techally.worker_tasks WHERE task = 'views'},
	'and its task waits', 'UPPER');
# dropped while it is at work
query(q{DELETE FROM techally.maintenance_settings; UPDATE techally.maintenance_results SET next_run = '-infinity', failures = 0; SELECT techally.wake_worker()}, 'UPPER');
at_work('UPPER');
$begun = time;
query('DROP DATABASE "UPPER"', 'postgres');
cmp_ok(time - $begun, '<', 4.8, 'a database that is worked in, by something that will not be canceled, can be dropped');

# with nothing due it sleeps, and says nothing
query(q{DELETE FROM techally.maintenance_settings; INSERT INTO techally.maintenance_settings (task, run_every) SELECT task, '1 day' FROM techally.maintenance_tasks}, $_)
  for ('shopdb', 'Odd "Name', substr($long, 0, 63));
soon($all_ran, 'a last round', $_) for ('shopdb', 'Odd "Name', substr($long, 0, 63));
soon(workers('= 0'), 'nobody is connected');
SKIP:
{
	$launcher = query(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'techally launcher'}, 'postgres');
	my $switches = sub { return (PostgreSQL::Test::Utils::slurp_file("/proc/$launcher/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m)[0]; };
	skip 'there is no /proc', 2 unless -e "/proc/$launcher/status";
	usleep(300_000);
	my $offset = -s $log;
	my $before = $switches->();
	usleep(1_200_000);
	cmp_ok($switches->() - $before, '<=', 2, 'the launcher sleeps while nothing is due');
	is(substr(logged(), $offset) =~ s/.*statement:.*\n//gr, '', 'and nothing is logged');
}
$node->stop;
unlike(logged(), qr/PANIC|terminated by signal|TRAP/, 'nobody crashed');
done_testing();
