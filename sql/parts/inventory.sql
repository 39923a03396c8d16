-- Stock: the engine's functions, called by each store's functions of the same
-- name.  They run with the caller's rights on the store's tables.

CREATE FUNCTION techally.receive_stock(
    store name,
    sku text,
    quantity integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'purchase',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_receive_stock';
COMMENT ON FUNCTION techally.receive_stock(name, text, integer, text, text, text) IS
'Adds units to stock, making the stock row where there is none; returns the units on hand';

CREATE FUNCTION techally.adjust_stock(
    store name,
    sku text,
    quantity_delta integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'adjustment',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_adjust_stock';
COMMENT ON FUNCTION techally.adjust_stock(name, text, integer, text, text, text) IS
'Corrects stock by a difference; returns the units on hand. Error TA002';

CREATE FUNCTION techally.transfer_stock(
    store name,
    sku text,
    quantity integer,
    from_warehouse text,
    to_warehouse text,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_transfer_stock';
COMMENT ON FUNCTION techally.transfer_stock(name, text, integer, text, text, text) IS
'Moves units from one warehouse to another. Error TA002';

CREATE FUNCTION techally.available(
    store name,
    sku text,
    warehouse text DEFAULT NULL
) RETURNS bigint
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_available';
COMMENT ON FUNCTION techally.available(name, text, text) IS
'Units that can be reserved now, expired reservations counted as free';

CREATE FUNCTION techally.reserve_stock(
    store name,
    sku text,
    quantity integer,
    warehouse text DEFAULT NULL,
    ttl interval DEFAULT '15 minutes',
    reference text DEFAULT NULL
) RETURNS uuid
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_reserve_stock';
COMMENT ON FUNCTION techally.reserve_stock(name, text, integer, text, interval, text) IS
'Promises units for a time; returns the key of the reservation. Errors TA002, TA006';

CREATE FUNCTION techally.extend_reservation(
    store name,
    reservation_id uuid,
    ttl interval
) RETURNS timestamptz
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_extend_reservation';
COMMENT ON FUNCTION techally.extend_reservation(name, uuid, interval) IS
'Lets a reservation last at least so long from now; returns when it ends. Error TA003';

CREATE FUNCTION techally.release_reservation(
    store name,
    reservation_id uuid
) RETURNS boolean
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_release_reservation';
COMMENT ON FUNCTION techally.release_reservation(name, uuid) IS
'Gives the units of a reservation back; true: it was active';

CREATE FUNCTION techally.commit_reservation(
    store name,
    reservation_id uuid,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_commit_reservation';
COMMENT ON FUNCTION techally.commit_reservation(name, uuid, text) IS
'Turns a reservation into a sale. Error TA003';

CREATE FUNCTION techally.expire_reservations(
    store name,
    max_rows integer DEFAULT 1000
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_expire_reservations';
COMMENT ON FUNCTION techally.expire_reservations(name, integer) IS
'Collects reservations that have expired; returns how many';

CREATE FUNCTION techally.stripe_stock(
    store name,
    sku text,
    warehouse text,
    stripes integer
) RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_stripe_stock';
COMMENT ON FUNCTION techally.stripe_stock(name, text, text, integer) IS
'Spreads the units of a SKU in a warehouse over several rows, so that many can reserve at once; 1 folds them back';

CREATE FUNCTION techally.fold_cooled_stock(
    store name,
    idle interval DEFAULT '5 minutes'
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_fold_cooled_stock';
COMMENT ON FUNCTION techally.fold_cooled_stock(name, interval) IS
'Folds stock that was spread by itself and has hardly been touched for so long; returns how many. For maintenance';

-- For the view, which spans all stores: those that its reader may read.
CREATE FUNCTION techally.list_hot_stock()
RETURNS TABLE (store name, sku text, warehouse text, since timestamptz, stripes integer, automatic boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    schema_name name;
    readable boolean;
BEGIN
    FOR schema_name IN SELECT s.store FROM techally.stores s ORDER BY 1 LOOP
        SELECT count(*) = 4 INTO readable
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = schema_name
           AND c.relname IN ('stock_stripes', 'inventory_stock', 'skus', 'warehouses')
           AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT');
        IF NOT readable THEN
            CONTINUE;
        END IF;
        RETURN QUERY EXECUTE format($query$
            SELECT %1$L::name, k.sku::text, w.code::text, t.since, t.stripes::integer, t.automatic
              FROM %1$I.stock_stripes t
              JOIN %1$I.inventory_stock s ON s.id = t.stock_id
              JOIN %1$I.skus k ON k.product_id = s.product_id AND k.variant_id IS NOT DISTINCT FROM s.variant_id
              JOIN %1$I.warehouses w ON w.id = s.warehouse_id
             ORDER BY k.sku, w.code$query$, schema_name);
    END LOOP;
END
$function$;
COMMENT ON FUNCTION techally.list_hot_stock() IS
'What the view hot_stock shows: of all stores whose stock the caller may read';

CREATE VIEW techally.hot_stock AS
SELECT h.store, h.sku, h.warehouse, h.since, h.stripes, h.automatic
  FROM techally.list_hot_stock() h;
GRANT SELECT ON techally.hot_stock TO PUBLIC;
COMMENT ON VIEW techally.hot_stock IS 'Stock that is spread over several rows because many want it at once';
COMMENT ON COLUMN techally.hot_stock.store IS 'The store';
COMMENT ON COLUMN techally.hot_stock.sku IS 'The SKU';
COMMENT ON COLUMN techally.hot_stock.warehouse IS 'The warehouse''s code';
COMMENT ON COLUMN techally.hot_stock.since IS 'Since when';
COMMENT ON COLUMN techally.hot_stock.stripes IS 'Over how many rows';
COMMENT ON COLUMN techally.hot_stock.automatic IS 'True: spread because buyers waited for each other; false: by stripe_stock';
