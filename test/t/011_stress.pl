# Everything at once, over few SKUs: reserving, releasing, ordering, paying,
# shipping, cancelling, returning, moving, expiring, spreading and folding.
#
# No client may see an error that is not the honest answer to what it asked, no
# two may deadlock, and afterwards every unit must be accounted for.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $seconds = $ENV{TECHALLY_STRESS_SECONDS} || 15;

my $node = PostgreSQL::Test::Cluster->new('stress');
$node->init;
$node->append_conf('postgresql.conf', "deadlock_timeout = 100ms\nlog_statement = none\n");
$node->start;
$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	SELECT techally.create_store('shop');
	INSERT INTO shop.users (email, password_hash, first_name, last_name)
		SELECT 'user' || n || '@example.org', 'x', 'User', n FROM generate_series(0, 7) AS n;
	INSERT INTO shop.products (sku, name, slug, price, is_published)
		SELECT 'SKU-' || n, 'Product ' || n, 'product-' || n, n, true FROM generate_series(1, 6) AS n;
	INSERT INTO shop.warehouses (code, name) VALUES ('north', 'North');
	SELECT shop.receive_stock('SKU-' || n, 40, w) FROM generate_series(1, 6) AS n, unnest('{main,north}'::text[]) AS w;
	SELECT shop.stripe_stock('SKU-' || n, w, 8) FROM generate_series(1, 3) AS n, unnest('{main,north}'::text[]) AS w;

	-- all of it may fold, as if it had been spread by itself
	CREATE FUNCTION by_itself() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.automatic := true; RETURN NEW; END $$;
	CREATE TRIGGER by_itself BEFORE INSERT OR UPDATE ON shop.stock_stripes FOR EACH ROW EXECUTE FUNCTION by_itself();

	CREATE UNLOGGED TABLE outcomes (operation text, code text);

	CREATE FUNCTION any_sku() RETURNS text LANGUAGE sql VOLATILE AS
		$$ SELECT 'SKU-' || 1 + floor(random() * 6)::int $$;
	CREATE FUNCTION any_warehouse() RETURNS text LANGUAGE sql VOLATILE AS
		$$ SELECT ('{main,north,null}'::text[])[1 + floor(random() * 3)::int] $$;
	-- one of the youngest, so that the clients meet; usually one that the event can move
	CREATE FUNCTION any_order(event text DEFAULT NULL) RETURNS uuid LANGUAGE sql VOLATILE AS
		$$ SELECT id FROM (SELECT id FROM shop.orders
				WHERE random() < 0.2 OR event IS NULL
				   OR status IN (SELECT t.value ->> 'from' FROM techally.machines m, jsonb_array_elements(m.definition -> 'transitions') t
					WHERE m.name = 'techally' AND t.value ->> 'event' = event)
				ORDER BY created_at DESC LIMIT 8) AS o ORDER BY random() LIMIT 1 $$;
	CREATE FUNCTION any_reservation() RETURNS uuid LANGUAGE sql VOLATILE AS
		$$ SELECT id FROM (SELECT id FROM shop.stock_reservations WHERE status = 'active'
			ORDER BY created_at DESC LIMIT 12) AS r ORDER BY random() LIMIT 1 $$;
	CREATE FUNCTION any_lines() RETURNS jsonb LANGUAGE sql VOLATILE AS
		$$ SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('sku', any_sku(), 'quantity', 1 + floor(random() * 5)::int,
				'warehouse', CASE WHEN random() < 0.2 THEN any_warehouse() END)))
			FROM generate_series(1, 1 + floor(random() * 5)::int) $$;
	CREATE FUNCTION soon() RETURNS interval LANGUAGE sql VOLATILE AS
		$$ SELECT (0.005 + random() ^ 3 * 0.5) * interval '1 second' $$;

	-- one thing that a client does
	CREATE FUNCTION act(client int) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		operations CONSTANT text[] := ARRAY[
			'reserve', 'reserve', 'release', 'extend', 'sell', 'expire', 'place', 'place', 'place', 'place',
			'process_payment', 'process_payment', 'process_payment', 'payment_success', 'payment_failed',
			'start_fulfillment', 'dispatch', 'deliver', 'complete', 'cancel', 'return', 'return_lines',
			'hurry', 'hurry', 'bulk', 'transfer', 'receive', 'adjust', 'stripe', 'fold'];
		operation text := operations[1 + floor(random() * cardinality(operations))::int];
		code text := 'done';
		buyer uuid;
	BEGIN
		BEGIN
			CASE operation
			WHEN 'reserve' THEN PERFORM shop.reserve_stock(any_sku(), 1 + floor(random() * 20)::int, any_warehouse(), soon());
			WHEN 'release' THEN PERFORM shop.release_reservation(r) FROM any_reservation() AS r WHERE r IS NOT NULL;
			WHEN 'extend' THEN PERFORM shop.extend_reservation(r, soon()) FROM any_reservation() AS r WHERE r IS NOT NULL;
			WHEN 'sell' THEN PERFORM shop.commit_reservation(r) FROM any_reservation() AS r WHERE r IS NOT NULL;
			WHEN 'expire' THEN PERFORM shop.expire_reservations(1 + floor(random() * 20)::int);
			WHEN 'place' THEN
				SELECT id INTO buyer FROM shop.users WHERE email = 'user' || client || '@example.org';
				PERFORM shop.place_order(buyer, any_lines(), reserve_for => soon());
			WHEN 'return_lines' THEN
				PERFORM shop.return_order_lines(i.order_id, jsonb_build_array(jsonb_build_object('sku', i.sku, 'quantity', 1)))
				   FROM (SELECT i.order_id, i.sku FROM shop.order_items i JOIN shop.orders o ON o.id = i.order_id
				          WHERE o.status IN ('delivered', 'completed', 'returned') ORDER BY random() LIMIT 1) AS i;
			WHEN 'hurry' THEN		-- whatever comes next for an order
				UPDATE shop.orders SET status = CASE status WHEN 'pending' THEN 'processing' WHEN 'processing' THEN 'confirmed'
						WHEN 'confirmed' THEN 'preparing' WHEN 'preparing' THEN 'shipped' WHEN 'shipped' THEN 'delivered'
						WHEN 'delivered' THEN 'returned' ELSE status END
				 WHERE id = (SELECT any_order());		-- once: of several, each client its own order would deadlock
			WHEN 'bulk' THEN		-- the same for several of the client's own, with different effects
				SELECT id INTO buyer FROM shop.users WHERE email = 'user' || client || '@example.org';
				UPDATE shop.orders SET status = CASE status WHEN 'pending' THEN CASE WHEN random() < 0.5 THEN 'cancelled' ELSE 'processing' END
						WHEN 'processing' THEN 'confirmed' WHEN 'confirmed' THEN 'preparing' WHEN 'preparing' THEN 'shipped'
						WHEN 'shipped' THEN 'delivered' WHEN 'delivered' THEN 'returned' ELSE status END
				 WHERE id IN (SELECT id FROM shop.orders WHERE user_id = buyer
				               AND status NOT IN ('cancelled', 'failed', 'completed', 'returned') ORDER BY created_at DESC LIMIT 4);
			WHEN 'transfer' THEN
				IF random() < 0.5 THEN
					PERFORM shop.transfer_stock(any_sku(), 1 + floor(random() * 5)::int, 'main', 'north');
				ELSE
					PERFORM shop.transfer_stock(any_sku(), 1 + floor(random() * 5)::int, 'north', 'main');
				END IF;
			WHEN 'receive' THEN PERFORM shop.receive_stock(any_sku(), 1 + floor(random() * 30)::int, coalesce(any_warehouse(), 'main'));
			WHEN 'adjust' THEN PERFORM shop.adjust_stock(any_sku(), -1, coalesce(any_warehouse(), 'main'), 'damage');
			WHEN 'stripe' THEN PERFORM shop.stripe_stock(any_sku(), coalesce(any_warehouse(), 'main'), 1 + floor(random() * 6)::int);
			WHEN 'fold' THEN PERFORM techally.fold_cooled_stock('shop', '-1 second');
			ELSE PERFORM shop.transition_order(o, operation) FROM any_order(operation) AS o WHERE o IS NOT NULL;
			END CASE;
		EXCEPTION
			-- answers, not failures; 55000: the reservation of an order that is paid, 22023: it is all back already
			WHEN SQLSTATE 'TA001' OR SQLSTATE 'TA002' OR SQLSTATE 'TA003' OR SQLSTATE '55000' OR SQLSTATE '22023' THEN
				code := SQLSTATE;
		END;
		INSERT INTO outcomes VALUES (operation, code);
	END $$;
});

my $script = $node->basedir . '/act.sql';
append_to_file($script, "SELECT act(:client_id);\n");
my @pgbench = ('pgbench', '-n', '-c', $clients, '-j', 2, '-T', $seconds, '-f', $script, '-h', $node->host, '-p', $node->port, 'postgres');
my ($out, $err) = ('', '');
my $ok = IPC::Run::run(\@pgbench, '>', \$out, '2>', \$err);
$err = join "\n", grep { !/^pgbench \(/ } split /\n/, $err;
ok($ok, 'pgbench ran to the end');
unlike($out, qr{^number of failed transactions: [1-9]}m, 'no transaction failed');
is($err, '', 'no client saw an error but the expected ones');

is(join("", slurp_file($node->logfile) =~ /^.*deadlock detected.*\n(?:.*\n){0,12}/mg), "", 'no deadlock in the log');
is($node->safe_psql('postgres', 'SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()'), '0', 'no deadlock counted');
is($node->safe_psql('postgres', q{SELECT rule, subject, detail FROM techally.check_store('shop')}), '', 'the store is sound');

# what the books say, in our own words
is( $node->safe_psql(
		'postgres', q{SELECT count(*) FROM shop.inventory_stock s
		WHERE quantity_on_hand <> (SELECT coalesce(sum(quantity), 0) FROM shop.stock_movements m WHERE m.stock_id = s.id)
		   OR quantity_reserved <> (SELECT coalesce(sum(p.quantity), 0) FROM shop.stock_reservation_parts p
				JOIN shop.stock_reservations r ON r.id = p.reservation_id AND r.status = 'active' WHERE p.stock_id = s.id)}),
	'0', 'every unit is accounted for');

# a test that does nothing finds nothing
my $outcomes = $node->safe_psql('postgres', q{SELECT operation, code, count(*) FROM outcomes GROUP BY 1, 2 ORDER BY 1, 2});
note $outcomes;
is( $node->safe_psql(
		'postgres', q{SELECT string_agg(operation, ' ' ORDER BY operation)
		FROM (SELECT operation FROM outcomes GROUP BY 1 HAVING count(*) FILTER (WHERE code = 'done') = 0) AS o}),
	'', 'everything has succeeded sometimes');
is( $node->safe_psql('postgres', q{SELECT string_agg(c, ' ') FROM unnest('{TA001,TA002,TA003}'::text[]) AS c
		WHERE c NOT IN (SELECT code FROM outcomes)}),
	'', 'and every answer was given');

# what still lies reserved expires, and then all of it is free
$node->safe_psql('postgres', q{UPDATE shop.orders SET status = 'cancelled' WHERE status = 'pending'});
is( $node->safe_psql(
		'postgres', q{
		UPDATE shop.stock_reservations SET expires_at = clock_timestamp() WHERE status = 'active' AND expires_at < 'infinity';
		SELECT shop.expire_reservations(100000) * 0;
		SELECT sum(s.quantity_reserved) - coalesce((SELECT sum(quantity) FROM shop.stock_reservations WHERE status = 'active'), 0)
		  FROM shop.inventory_stock s}),
	"0\n0", 'nothing stays reserved but what paid orders hold');
is($node->safe_psql('postgres', q{SELECT rule, subject, detail FROM techally.check_store('shop')}), '', 'and the store is sound');

$node->stop;
done_testing();
