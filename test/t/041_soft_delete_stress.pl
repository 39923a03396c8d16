# Soft delete under many hands: clients delete, restore, attach, move, purge and
# really delete rows of three tables and a partitioned one, at all isolation levels.
# Afterwards no living row has a deleted or missing parent, and what is restored
# brings back what went with it.

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
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off\ndeadlock_timeout = '50ms'\n");
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION techally;
	CREATE TABLE authors (id uuid PRIMARY KEY, name text NOT NULL UNIQUE);
	CREATE TABLE books (id uuid PRIMARY KEY, author uuid NOT NULL REFERENCES authors ON DELETE CASCADE, sequel_to uuid REFERENCES books ON DELETE CASCADE);
	CREATE TABLE pages (id uuid, n integer, book uuid REFERENCES books ON DELETE CASCADE, PRIMARY KEY (id, n)) PARTITION BY LIST (n);
	CREATE TABLE pages_1 PARTITION OF pages FOR VALUES IN (1);
	CREATE TABLE pages_2 PARTITION OF pages FOR VALUES IN (2);
	CREATE TABLE notes (id uuid PRIMARY KEY, page uuid, n integer, FOREIGN KEY (page, n) REFERENCES pages_1 ON DELETE CASCADE);
	CREATE INDEX ON books (author); CREATE INDEX ON books (sequel_to); CREATE INDEX ON pages (book); CREATE INDEX ON notes (page, n);
	SELECT techally.enable_soft_delete_together('{authors,books,pages,notes}');
	SELECT techally.live_unique('authors', '{name}');

	CREATE FUNCTION key_of(what text, n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT md5(what || n)::uuid $$;
	CREATE TABLE outcomes (operation integer, code text);

	-- one thing that somebody does; what PostgreSQL refuses is no failure of the test
	CREATE FUNCTION act(operation integer, a integer, b integer, p integer) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
	    CASE operation
	    WHEN 1 THEN DELETE FROM authors WHERE id = key_of('a', a);
	    WHEN 2 THEN PERFORM techally.soft_delete('books', key_of('b', b));
	    WHEN 3 THEN PERFORM techally.restore_deleted('authors', key_of('a', a));
	    WHEN 4 THEN PERFORM techally.restore_deleted('books', key_of('b', b));
	    WHEN 5 THEN INSERT INTO books VALUES (key_of('b', b), key_of('a', a), CASE WHEN p % 3 = 0 THEN key_of('b', p % 30) END) ON CONFLICT DO NOTHING;
	    WHEN 6 THEN UPDATE books SET author = key_of('a', a) WHERE id = key_of('b', b);
	    WHEN 7 THEN INSERT INTO pages VALUES (key_of('p', p), 1 + p % 2, key_of('b', b)) ON CONFLICT DO NOTHING;
	    WHEN 8 THEN UPDATE pages SET n = 3 - n WHERE id = key_of('p', p);
	    WHEN 9 THEN INSERT INTO notes VALUES (key_of('n', p), key_of('p', p), 1) ON CONFLICT DO NOTHING;
	    WHEN 10 THEN UPDATE books SET deleted_at = CASE WHEN deleted_at IS NULL THEN now() END WHERE id = key_of('b', b);
	    WHEN 11 THEN INSERT INTO authors VALUES (key_of('a', a), 'author ' || a % 8) ON CONFLICT DO NOTHING;
	    WHEN 12 THEN PERFORM techally.purge_deleted('books', '0', 3);
	    WHEN 13 THEN PERFORM techally.purge_deleted('authors', '0', 2);
	    WHEN 14 THEN DELETE FROM pages WHERE book = key_of('b', b);
	    WHEN 15 THEN
	        PERFORM set_config('techally.hard_delete', 'on', true);
	        DELETE FROM books WHERE id = key_of('b', b);
	        PERFORM set_config('techally.hard_delete', 'off', true);
	    END CASE;
	    RETURN '00000';
	EXCEPTION WHEN OTHERS THEN
	    RETURN SQLSTATE;
	END $$;
	INSERT INTO authors SELECT key_of('a', n), 'author ' || n FROM generate_series(0, 7) n;
	INSERT INTO books SELECT key_of('b', n), key_of('a', n % 8), CASE WHEN n > 20 THEN key_of('b', n - 20) END FROM generate_series(0, 29) n;
	INSERT INTO pages SELECT key_of('p', n), 1 + n % 2, key_of('b', n % 30) FROM generate_series(0, 59) n;
	INSERT INTO notes SELECT key_of('n', n), key_of('p', n), 1 FROM generate_series(0, 59) n WHERE n % 2 = 0;
});

my $script = $node->basedir . '/act.sql';
PostgreSQL::Test::Utils::append_to_file(
	$script, q{
\set level random(1, 3)
\set o1 random(1, 34)
\set o2 random(1, 34)
\set a random(0, 7)
\set b random(0, 29)
\set p random(0, 59)
\if :level = 1
BEGIN;
\elif :level = 2
BEGIN ISOLATION LEVEL REPEATABLE READ;
\else
BEGIN ISOLATION LEVEL SERIALIZABLE;
\endif
INSERT INTO outcomes SELECT o, act(o, :a, :b, :p) FROM (SELECT ('{1,2,3,3,3,4,4,4,5,5,5,5,5,6,6,7,7,7,7,7,8,9,9,9,9,9,10,11,11,11,12,13,14,15}'::integer[])[:o1] AS o) x;
INSERT INTO outcomes SELECT o, act(o, :a, :b, :p) FROM (SELECT ('{1,2,3,3,3,4,4,4,5,5,5,5,5,6,6,7,7,7,7,7,8,9,9,9,9,9,10,11,11,11,12,13,14,15}'::integer[])[:o2] AS o) x;
COMMIT;
});
my ($out, $err) = ('', '');
my $done = IPC::Run::run([ 'pgbench', '-n', '-c', '6', '-j', '2', '-t', '250', '-f', $script, 'postgres' ], '>', \$out, '2>', \$err);
ok($done, 'the clients came to an end') or diag($err);

sub none
{
	my ($sql, $name) = @_;
	is($node->safe_psql('postgres', $sql), '', $name);
	return;
}

sub sound
{
	my ($when) = @_;
	none(q{SELECT b.id FROM books b LEFT JOIN authors a ON a.id = b.author WHERE a.id IS NULL OR (b.deleted_at IS NULL AND a.deleted_at IS NOT NULL)}, "$when: no living book of a deleted author");
	none(q{SELECT b.id FROM books b LEFT JOIN books a ON a.id = b.sequel_to WHERE b.sequel_to IS NOT NULL AND (a.id IS NULL OR (b.deleted_at IS NULL AND a.deleted_at IS NOT NULL))}, "$when: no living sequel to a deleted book");
	none(q{SELECT p.id FROM pages p LEFT JOIN books b ON b.id = p.book WHERE b.id IS NULL OR (p.deleted_at IS NULL AND b.deleted_at IS NOT NULL)}, "$when: no living page of a deleted book");
	none(q{SELECT n.id FROM notes n LEFT JOIN pages p ON p.id = n.page AND p.n = n.n WHERE n.page IS NOT NULL AND (p.id IS NULL OR (n.deleted_at IS NULL AND p.deleted_at IS NOT NULL))}, "$when: no living note to a deleted page");
	none(q{SELECT name FROM authors WHERE deleted_at IS NULL GROUP BY 1 HAVING count(*) > 1}, "$when: names are unique among the living");
	none(q{SELECT tableoid::regclass, id FROM (SELECT tableoid, id, deleted_at, deletion_id FROM authors UNION ALL SELECT tableoid, id, deleted_at, deletion_id FROM books) x WHERE deleted_at IS NULL AND deletion_id IS NOT NULL}, "$when: the living name no deletion");
	return;
}
sound('afterwards');

my $unexpected = $node->safe_psql('postgres', q{SELECT string_agg(DISTINCT operation || ' ' || code, ', ') FROM outcomes WHERE code NOT IN ('00000', '23503', '23505', '40001', '40P01', 'TA007')});
is($unexpected, '', 'nothing else was raised than what may be');
cmp_ok($node->safe_psql('postgres', q{SELECT count(DISTINCT operation) FROM outcomes WHERE code = '00000'}), '==', 15, 'everything has succeeded at times');

# everything that can come back does, and what goes along goes along
$node->safe_psql(
	'postgres', q{
	SELECT techally.restore_deleted('authors', a.id) FROM authors a
	 WHERE a.deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM authors o WHERE o.name = a.name AND (o.deleted_at IS NULL OR o.id < a.id));
	UPDATE authors SET name = id::text WHERE deleted_at IS NOT NULL;
	SELECT techally.restore_deleted('authors', a.id) FROM authors a WHERE a.deleted_at IS NOT NULL;
	DO $$ BEGIN
	    LOOP
	        UPDATE books b SET deleted_at = NULL WHERE deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM books o WHERE o.id = b.sequel_to AND o.deleted_at IS NOT NULL);
	        EXIT WHEN NOT FOUND;
	    END LOOP;
	END $$;
	UPDATE pages SET deleted_at = NULL, deletion_id = NULL WHERE deleted_at IS NOT NULL;
	UPDATE notes SET deleted_at = NULL WHERE deleted_at IS NOT NULL;
});
sound('restored');
is($node->safe_psql('postgres', q{SELECT (SELECT count(deleted_at) FROM authors) + (SELECT count(deleted_at) FROM books) + (SELECT count(deleted_at) FROM pages) + (SELECT count(deleted_at) FROM notes)}),
	'0', 'and all of them live');
my $counts = q{SELECT concat_ws(' ', (SELECT count(*) FROM books), (SELECT count(*) FROM pages), (SELECT count(*) FROM notes))};
my $living = $node->safe_psql('postgres', $counts);
$node->safe_psql('postgres', 'DELETE FROM authors');
is($node->safe_psql('postgres', q{SELECT (SELECT count(*) FROM books WHERE deleted_at IS NULL) + (SELECT count(*) FROM pages WHERE deleted_at IS NULL) + (SELECT count(*) FROM notes WHERE deleted_at IS NULL)}), '0', 'all go together');
$node->safe_psql('postgres', q{DO $$ BEGIN WHILE techally.purge_deleted('authors', '0', 3) > 0 LOOP END LOOP; END $$});
is($node->safe_psql('postgres', $counts), '0 0 0', 'and are purged together');

$node->stop;
done_testing();
