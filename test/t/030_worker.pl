# The background worker: it starts, keeps to its tasks' intervals, follows a
# reload, outlives a crash and rests on a standby.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time usleep);

BEGIN
{
	eval { require PostgreSQL::Test::Cluster; require PostgreSQL::Test::Utils; }
	  or plan skip_all => 'needs the Perl modules of PostgreSQL 15 or later';
}

my $node = PostgreSQL::Test::Cluster->new('primary');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', q{
fsync = off
shared_preload_libraries = 'techally'
techally.databases = 'shopdb, "Odd, Name", nosuch'
restart_after_crash = on
log_min_messages = info
});
$node->start;

my $results = q{SELECT string_agg(task || ': ' || coalesce(last_result, 'never'), ', ' ORDER BY task) FROM techally.worker_tasks};

sub query { return $node->safe_psql($_[1] // 'shopdb', $_[0]); }

# polls until a query gives 't'
sub soon { return $node->poll_query_until($_[2] // 'shopdb', $_[0]) ? pass($_[1]) : fail($_[1]); }

sub ran_since { return qq{SELECT coalesce(last_run, '-infinity') > '$_[1]' FROM techally.worker_tasks WHERE task = '$_[0]'}; }

sub launchers { return q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'techally launcher'}; }

# a database of its list need not be there, nor the extension in it
is(query(launchers(), 'postgres'), '1', 'the launcher runs');
query('CREATE DATABASE shopdb', 'postgres');
query('CREATE DATABASE "Odd, Name"', 'postgres');
$node->reload;
query('CREATE EXTENSION techally');
query('CREATE EXTENSION techally', 'Odd, Name');
soon(q{SELECT bool_and(last_result = 'ok') FROM techally.worker_tasks}, 'once there is an extension, every task runs');
soon(q{SELECT bool_and(last_result = 'ok') FROM techally.worker_tasks}, 'in a database with an odd name, too', 'Odd, Name');
is(query('SELECT preloaded, launcher IS NOT NULL, listed FROM techally.worker_state()'), 't|t|t', 'it can be asked about');
is(query(q{SELECT status FROM techally.worker_health() WHERE check_name = 'worker'}), 'OK', 'and is healthy');
soon(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'techally worker'}, 'with nothing due nobody is connected');

# tasks at their intervals, and at once where those change
query(q{
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (email, password_hash, first_name, last_name) VALUES ('ann@example.com', 'x', 'Ann', 'Lee');
	INSERT INTO shop.products (sku, name, slug, price, is_published) VALUES ('MUG', 'Mug', 'mug', 8, true);
	SELECT shop.receive_stock('MUG', 10);
	SELECT shop.place_order((SELECT id FROM shop.users), '[{"sku": "MUG", "quantity": 1}]', reserve_for => '1 millisecond');
	INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('reservations', '1 second');
});
soon(q{SELECT status = 'expired' FROM shop.stock_reservations}, 'a reservation expires');
my $now = query('SELECT clock_timestamp()');
soon(ran_since('reservations', $now), 'and the task comes round');
ok(query(qq{SELECT last_run < '$now' FROM techally.worker_tasks WHERE task = 'views'}) eq 't', 'while another one waits for its hour');

# what it is at can be seen
query(q{CREATE FUNCTION public.slow() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN 1; END $$;
	CREATE MATERIALIZED VIEW shop.sleeper AS SELECT public.slow() AS a WITH NO DATA;
	INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('views', '1 second')});
soon(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'techally worker' AND query LIKE 'techally views: running % on shop.sleeper'}, 'it says what it is at');
soon(q{SELECT count(*) = 1 FROM techally.progress WHERE task = 'views' AND relation = 'shop.sleeper'}, 'and the view progress shows it');
is(query(q{SELECT last_result LIKE 'running since %' FROM techally.worker_tasks WHERE task = 'views'}), 't', 'as do the tasks');

# a second pass leaves the task alone
query(q{CALL techally.run_maintenance('{views}')});
is(query(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'techally views: %'}), '1', 'a second pass leaves it to the first');

# a stop is at once
my $begun = time;
$node->stop('fast');
cmp_ok(time - $begun, '<', 5, 'it stops with the server');
$node->start;
query(q{DROP MATERIALIZED VIEW shop.sleeper});
query(q{UPDATE techally.maintenance_results SET next_run = now() WHERE task = 'views'; SELECT techally.wake_worker()});
soon(q{SELECT last_result = 'ok' FROM techally.worker_tasks WHERE task = 'views'}, 'and comes back with it');

# a step that takes the server down with it: once, and not over and over
query(q{CREATE FUNCTION public.deadly() RETURNS int LANGUAGE plpgsql AS $$
	BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid()); PERFORM pg_sleep(10); RETURN 1; END $$;
	CREATE MATERIALIZED VIEW shop.killer AS SELECT public.deadly() AS a WITH NO DATA;
	UPDATE techally.maintenance_results SET next_run = now() WHERE task = 'views'; SELECT techally.wake_worker()});
my $log = $node->logfile;
my $patience = 300;
usleep(100_000) while $patience-- > 0 && PostgreSQL::Test::Utils::slurp_file($log) !~ /terminated by signal 9/;
soon('SELECT true', 'the server comes back');
soon(q{SELECT last_result LIKE 'interrupted: %' AND next_run > now() + interval '20 seconds' FROM techally.worker_tasks WHERE task = 'views'}, 'the task that took it down waits');
$now = query('SELECT clock_timestamp()');
soon(ran_since('reservations', $now), 'the others go on');
is(scalar(() = PostgreSQL::Test::Utils::slurp_file($log) =~ /terminated by signal 9/g), 1, 'it happened once');
like(query(q{SELECT message FROM techally.worker_health() WHERE status = 'WARNING'}), qr/task "views" failed/, 'the health check tells');
query('DROP MATERIALIZED VIEW shop.killer');

# on a standby it rests, until that is promoted
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay');
is($standby->safe_psql('postgres', launchers()), '0', 'on a standby there is no launcher');
is($standby->safe_psql('shopdb', 'SELECT count(*) > 0 FROM techally.worker_tasks'), 't', 'what the primary did can be read');
like($standby->safe_psql('shopdb', q{SELECT message FROM techally.worker_health() WHERE check_name = 'worker'}), qr/standby/, 'the health check knows');
my ($rc, $out, $err) = $standby->psql('shopdb', 'CALL techally.run_maintenance()', extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
like($err, qr/25006/, 'run_maintenance() is refused');
$standby->promote;
$now = $standby->safe_psql('shopdb', 'SELECT clock_timestamp()');
ok($standby->poll_query_until('shopdb', ran_since('reservations', $now)), 'promoted, it keeps house');
$standby->stop;

# the extension dropped, in the middle
query('DROP EXTENSION techally CASCADE');
my $offset = -s $log;
$node->reload;      # which has it look at once
usleep(700_000);
unlike(substr(PostgreSQL::Test::Utils::slurp_file($log), $offset), qr/ERROR|FATAL|WARNING/, 'without the extension there is nothing to do and nothing to say');
query('CREATE EXTENSION techally');
soon(q{SELECT bool_and(last_result = 'ok') FROM techally.worker_tasks}, 'made again, it is found at once');

# out of the list, a worker ends
query(q{CREATE FUNCTION public.slow() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN 1; END $$;
	CREATE MATERIALIZED VIEW public.sleeper AS SELECT public.slow() AS a WITH NO DATA;
	SELECT techally.maintain_view('public.sleeper');
	INSERT INTO techally.maintenance_settings (task, run_every) VALUES ('views', '1 second')}, 'Odd, Name');
soon(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'techally views: %'}, 'at work', 'postgres');
query(q{ALTER SYSTEM SET techally.databases = ''}, 'postgres');
$node->reload;
soon(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'techally worker'}, 'a worker whose database leaves the list ends', 'postgres');

my $said = () = PostgreSQL::Test::Utils::slurp_file($log) =~ /cannot keep house in database "nosuch"/g;
cmp_ok($said, '<=', 8, 'a database that is not there is spoken of once a start or reload');
cmp_ok($said, '>=', 1, 'but it is');
$node->stop;
done_testing();
