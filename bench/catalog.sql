-- Columns, constraints and indexes of the tables in schema :store, in a form
-- that can be compared with another's.  What only one side needs to do its work
-- is left out.
SELECT c.relname, 'column', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       coalesce(pg_get_expr(d.adbin, d.adrelid), ''), array_to_string(c.reloptions, ',')
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = :'store'::regnamespace AND c.relkind IN ('r', 'p')
   AND c.relname NOT IN ('schema_migrations', 'transitions')
UNION ALL
SELECT c.relname, 'constraint', o.conname, pg_get_constraintdef(o.oid), '', '', ''
  FROM pg_class c
  JOIN pg_constraint o ON o.conrelid = c.oid AND o.contype <> 't' -- of ours, constraint triggers
 WHERE c.relnamespace = :'store'::regnamespace AND c.relkind IN ('r', 'p')
   AND c.relname NOT IN ('schema_migrations', 'transitions')
UNION ALL
SELECT c.relname, 'index', i.relname, pg_get_indexdef(i.oid), '', '', ''
  FROM pg_class c
  JOIN pg_index x ON x.indrelid = c.oid
  JOIN pg_class i ON i.oid = x.indexrelid
 WHERE c.relnamespace = :'store'::regnamespace AND c.relkind IN ('r', 'p')
   AND c.relname NOT IN ('schema_migrations', 'transitions')
 ORDER BY 1, 2, 3;
