-- Soundness: what must hold in a store at every moment.

CREATE FUNCTION techally.check_store(store name)
RETURNS TABLE (rule text, subject text, detail text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    -- the store's name as it stands in its functions
    literal text := CASE WHEN store ~ '[$\\]'
                         THEN 'E''' || replace(replace(replace(store, '\', '\\'), '''', ''''''), '$', '\x24') || ''''
                         ELSE quote_literal(store) END;
BEGIN
    IF store IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'argument "store" must not be null';
    END IF;
    IF to_regclass(format('%I.schema_migrations', store)) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TA009',
            MESSAGE = format('store "%s" does not exist', store),
            HINT = 'The view techally.stores lists the stores.';
    END IF;

    -- one query, so that all rules see one snapshot
    RETURN QUERY EXECUTE replace($query$
WITH relations AS (
    SELECT c.oid, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1
), movements AS (
    SELECT m.stock_id, sum(m.quantity) AS quantity
      FROM @store@.stock_movements m GROUP BY m.stock_id
), active_parts AS (
    SELECT p.stock_id, sum(p.quantity) AS quantity
      FROM @store@.stock_reservation_parts p
      JOIN @store@.stock_reservations r ON r.id = p.reservation_id
     WHERE r.status = 'active' GROUP BY p.stock_id
), effects AS (
    -- the transitions of the machine that governs the orders
    SELECT t.value ->> 'event' AS event, t.value ->> 'from' AS from_status,
           t.value ->> 'to' AS to_status, t.value ->> 'effect' AS effect
      FROM techally.machine_attachments a
      JOIN techally.machines m ON m.name = a.machine
     CROSS JOIN jsonb_array_elements(m.definition -> 'transitions') t
     WHERE a.target = (SELECT oid FROM relations WHERE relname = 'orders') AND a.column_name = 'status'
), posted AS (
    -- what each order's history says was done to stock
    SELECT h.order_id, h.sequence, e.effect
      FROM @store@.order_status_history h
      JOIN effects e ON e.event = h.event AND e.from_status = h.from_status AND e.to_status = h.to_status
     WHERE e.effect IS NOT NULL
), last_posted AS (
    SELECT DISTINCT ON (order_id) order_id, effect FROM posted ORDER BY order_id, sequence DESC
), item_sums AS (
    SELECT i.order_id, i.product_id, i.variant_id, sum(i.quantity) AS quantity
      FROM @store@.order_items i GROUP BY i.order_id, i.product_id, i.variant_id
), order_movements AS (
    SELECT m.order_id, s.product_id, s.variant_id,
           -sum(m.quantity) FILTER (WHERE m.movement_type = 'sale') AS sold,
           sum(m.quantity) FILTER (WHERE m.movement_type = 'return') AS returned
      FROM @store@.stock_movements m
      JOIN @store@.inventory_stock s ON s.id = m.stock_id
     WHERE m.order_id IS NOT NULL
     GROUP BY m.order_id, s.product_id, s.variant_id
), return_sums AS (
    SELECT i.order_id, i.product_id, i.variant_id, sum(ri.quantity) AS quantity
      FROM @store@.order_return_items ri
      JOIN @store@.order_items i ON i.id = ri.order_item_id
     GROUP BY i.order_id, i.product_id, i.variant_id
), history AS (
    SELECT h.*, lag(h.to_status) OVER w AS previous, row_number() OVER w AS position,
           lead(h.sequence) OVER w IS NULL AS is_last
      FROM @store@.order_status_history h
    WINDOW w AS (PARTITION BY h.order_id ORDER BY h.sequence)
)
SELECT 'stock_ledger', s.id::text,
       format('on hand %s, movements %s', s.quantity_on_hand, coalesce(m.quantity, 0))
  FROM @store@.inventory_stock s LEFT JOIN movements m ON m.stock_id = s.id
 WHERE s.quantity_on_hand <> coalesce(m.quantity, 0)
UNION ALL
SELECT 'stock_reserved', s.id::text,
       format('reserved %s, parts of active reservations %s', s.quantity_reserved, coalesce(p.quantity, 0))
  FROM @store@.inventory_stock s LEFT JOIN active_parts p ON p.stock_id = s.id
 WHERE s.quantity_reserved <> coalesce(p.quantity, 0)
UNION ALL
SELECT 'stock_bounds', s.id::text,
       format('on hand %s, reserved %s', s.quantity_on_hand, s.quantity_reserved)
  FROM @store@.inventory_stock s
 WHERE s.quantity_reserved < 0 OR s.quantity_reserved > s.quantity_on_hand
UNION ALL
SELECT 'reservation_parts', r.id::text,
       format('%s reservation of %s, parts %s', r.status, r.quantity, coalesce(sum(p.quantity), 0))
  FROM @store@.stock_reservations r
  LEFT JOIN @store@.stock_reservation_parts p ON p.reservation_id = r.id
 GROUP BY r.id
HAVING CASE WHEN r.status = 'committed' OR r.status = 'active' AND r.expires_at > clock_timestamp()
            THEN r.quantity <> coalesce(sum(p.quantity), 0)
            ELSE r.quantity < coalesce(sum(p.quantity), 0) END   -- expired parts are swept one by one
UNION ALL
SELECT 'order_subtotal', o.order_number,
       format('subtotal %s, lines %s', o.subtotal, coalesce(sum(i.line_total), 0))
  FROM @store@.orders o LEFT JOIN @store@.order_items i ON i.order_id = o.id
 GROUP BY o.id HAVING o.subtotal <> coalesce(sum(i.line_total), 0)
UNION ALL
SELECT 'order_charges', o.order_number,
       format('charges %s, rows %s', o.charges, coalesce(sum(c.amount), 0))
  FROM @store@.orders o LEFT JOIN @store@.order_charges c ON c.order_id = o.id
 GROUP BY o.id HAVING o.charges <> coalesce(sum(c.amount), 0)
UNION ALL
SELECT 'order_total', o.order_number, format('total %s', o.total)
  FROM @store@.orders o
 WHERE o.subtotal + o.tax + o.shipping + o.charges - o.discount IS DISTINCT FROM o.total
UNION ALL
SELECT 'order_history', o.order_number,
       CASE WHEN h.order_id IS NULL THEN format('status %s, no history', o.status)
            ELSE format('status %s, history ends with %s', o.status, h.to_status) END
  FROM @store@.orders o LEFT JOIN history h ON h.order_id = o.id AND h.is_last
 WHERE h.to_status IS DISTINCT FROM o.status::text
UNION ALL
SELECT 'order_history', o.order_number,
       format('entry %s (%s to %s) follows %s', h.sequence, h.from_status, h.to_status, h.previous)
  FROM history h JOIN @store@.orders o ON o.id = h.order_id
 WHERE h.from_status IS DISTINCT FROM h.previous OR h.sequence <> h.position
UNION ALL
SELECT 'order_sale', o.order_number,
       format('product %s: ordered %s, sold %s', coalesce(i.product_id, m.product_id),
              coalesce(i.quantity, 0), coalesce(m.sold, 0))
  FROM item_sums i
  FULL JOIN order_movements m ON m.order_id = i.order_id AND m.product_id = i.product_id
                             AND coalesce(m.variant_id, m.product_id) = coalesce(i.variant_id, i.product_id)
  JOIN @store@.orders o ON o.id = coalesce(i.order_id, m.order_id)
 WHERE EXISTS (SELECT 1 FROM effects)    -- without a machine nothing says what should be sold
   AND coalesce(m.sold, 0) <>
       CASE WHEN EXISTS (SELECT 1 FROM posted p WHERE p.order_id = o.id AND p.effect = 'sale')
            THEN coalesce(i.quantity, 0) ELSE 0 END
UNION ALL
SELECT 'order_return', o.order_number,
       format('product %s: returned %s, restocked %s', coalesce(r.product_id, m.product_id),
              coalesce(r.quantity, 0), coalesce(m.returned, 0))
  FROM return_sums r
  FULL JOIN order_movements m ON m.order_id = r.order_id AND m.product_id = r.product_id
                             AND coalesce(m.variant_id, m.product_id) = coalesce(r.variant_id, r.product_id)
  JOIN @store@.orders o ON o.id = coalesce(r.order_id, m.order_id)
 WHERE coalesce(m.returned, 0) <> coalesce(r.quantity, 0)
UNION ALL
SELECT 'order_return', o.order_number,
       format('line %s: bought %s, returned %s', i.line_number, i.quantity, sum(ri.quantity))
  FROM @store@.order_return_items ri
  JOIN @store@.order_items i ON i.id = ri.order_item_id
  JOIN @store@.orders o ON o.id = i.order_id
 GROUP BY o.order_number, i.id HAVING sum(ri.quantity) > i.quantity OR sum(ri.amount) > i.line_total
UNION ALL
SELECT 'order_return', r.id::text, format('amount %s, items %s', r.amount, coalesce(sum(ri.amount), 0))
  FROM @store@.order_returns r
  LEFT JOIN @store@.order_return_items ri ON ri.return_id = r.id
 GROUP BY r.id HAVING r.amount <> coalesce(sum(ri.amount), 0)
UNION ALL
SELECT 'order_reservation', o.order_number,
       format('status %s holds stock, but nothing is reserved without end', o.status)
  FROM last_posted p JOIN @store@.orders o ON o.id = p.order_id
 WHERE p.effect = 'reserve'
   AND EXISTS (SELECT 1 FROM @store@.order_items i WHERE i.order_id = o.id)
   AND NOT EXISTS (SELECT 1 FROM @store@.stock_reservations r
                    WHERE r.order_id = o.id AND r.status = 'active' AND r.expires_at = 'infinity')
UNION ALL
SELECT 'order_reservation', o.order_number,
       format('status %s is past its stock, but reservation %s is active', o.status, r.id)
  FROM last_posted p
  JOIN @store@.orders o ON o.id = p.order_id
  JOIN @store@.stock_reservations r ON r.order_id = o.id AND r.status = 'active'
 WHERE p.effect <> 'reserve'
UNION ALL
SELECT 'sku', coalesce(k.sku, c.sku)::text,
       CASE WHEN k.sku IS NULL THEN 'not registered' ELSE 'registered for nothing' END
  FROM @store@.skus k
  FULL JOIN (SELECT p.sku, p.id AS product_id, NULL::uuid AS variant_id FROM @store@.products p
             UNION ALL
             SELECT v.sku, v.product_id, v.id FROM @store@.product_variants v) c
    ON c.sku = k.sku AND c.product_id = k.product_id
   AND coalesce(c.variant_id, c.product_id) = coalesce(k.variant_id, k.product_id)
 WHERE k.sku IS NULL OR c.sku IS NULL
UNION ALL
SELECT 'guard', g.relation || '.' || g.name,
       CASE WHEN t.oid IS NULL THEN 'trigger is missing' ELSE 'trigger is disabled' END
  FROM (VALUES ('orders', 'techally_stock_effects'), ('orders', 'techally_stamp'),
               ('products', 'techally_sku_insert'), ('products', 'techally_sku_update'),
               ('product_variants', 'techally_sku_insert'), ('product_variants', 'techally_sku_update')
       ) AS g(relation, name)
  LEFT JOIN pg_trigger t ON t.tgname = g.name AND t.tgrelid = (SELECT oid FROM relations WHERE relname = g.relation)
 WHERE t.oid IS NULL OR t.tgenabled = 'D'
UNION ALL
SELECT 'guard', 'orders.status', 'no state machine is attached'
 WHERE NOT EXISTS (SELECT 1 FROM effects)
UNION ALL
SELECT 'guard', 'orders.status', 'a trigger of the state machine is missing or disabled'
 WHERE EXISTS (SELECT 1 FROM effects)
   AND (SELECT count(*) FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
         WHERE t.tgrelid = (SELECT oid FROM relations WHERE relname = 'orders') AND t.tgenabled <> 'D'
           AND f.proname = 'enforce_machine' AND f.pronamespace = 'techally'::regnamespace) < 2
UNION ALL
-- as after a change of the schema's name
SELECT 'guard', p.proname, 'function serves another store'
  FROM pg_proc p
 WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = $1)
   AND position(format('techally.%s(', p.proname) IN p.prosrc) > 0
   AND position(format('techally.%s(%s,', p.proname, $2) IN p.prosrc) = 0
   AND position(format('techally.%s(%s)', p.proname, $2) IN p.prosrc) = 0
$query$, '@store@', quote_ident(store)) USING store, literal;
END
$function$;

COMMENT ON FUNCTION techally.check_store(name) IS
'Everything that must hold in a store and does not: empty means sound. One snapshot for all rules';
