-- The store's functions and the guards of its tables.
--
-- Files named ..._api are run again by adopt_store: everything in them can be
-- run twice.  The functions hold the store's name as text, so that they do not
-- tie the store to the extension's version; each passes it to the engine's
-- function of the same name, which is documented there.

CREATE OR REPLACE FUNCTION place_order(
    user_id uuid,
    lines jsonb,
    shipping_address jsonb DEFAULT NULL,
    billing_address jsonb DEFAULT NULL,
    currency text DEFAULT 'USD',
    coupon_code text DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    reserve_for interval DEFAULT '15 minutes',
    actor uuid DEFAULT NULL
) RETURNS @store@.orders
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.place_order(@store_literal@, $1, $2, $3, $4, $5, $6, $7, $8, $9); END $function$;
REVOKE ALL ON FUNCTION place_order(uuid, jsonb, jsonb, jsonb, text, text, text, interval, uuid) FROM PUBLIC;
COMMENT ON FUNCTION place_order(uuid, jsonb, jsonb, jsonb, text, text, text, interval, uuid) IS
'Places an order and reserves its stock; returns the order';

CREATE OR REPLACE FUNCTION import_order(
    user_id uuid,
    lines jsonb,
    placed_at timestamptz,
    order_number text DEFAULT NULL,
    currency text DEFAULT 'USD',
    charges jsonb DEFAULT '[]',
    actor uuid DEFAULT NULL
) RETURNS @store@.orders
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.import_order(@store_literal@, $1, $2, $3, $4, $5, $6, $7); END $function$;
REVOKE ALL ON FUNCTION import_order(uuid, jsonb, timestamptz, text, text, jsonb, uuid) FROM PUBLIC;
COMMENT ON FUNCTION import_order(uuid, jsonb, timestamptz, text, text, jsonb, uuid) IS
'Places an order that was taken elsewhere, with its own time, number, prices and charges; returns the order';

CREATE OR REPLACE FUNCTION transition_order(
    order_id uuid,
    event text,
    note text DEFAULT NULL,
    actor uuid DEFAULT NULL
) RETURNS @store@.order_status
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.transition_order(@store_literal@, $1, $2, $3, $4); END $function$;
REVOKE ALL ON FUNCTION transition_order(uuid, text, text, uuid) FROM PUBLIC;
COMMENT ON FUNCTION transition_order(uuid, text, text, uuid) IS
'Moves an order by an event of its state machine; returns the state it is in';

CREATE OR REPLACE FUNCTION return_order_lines(
    order_id uuid,
    lines jsonb,
    note text DEFAULT NULL,
    actor uuid DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.return_order_lines(@store_literal@, $1, $2, $3, $4); END $function$;
REVOKE ALL ON FUNCTION return_order_lines(uuid, jsonb, text, uuid) FROM PUBLIC;
COMMENT ON FUNCTION return_order_lines(uuid, jsonb, text, uuid) IS
'Takes back some lines of an order and restocks them; returns the key of the return';

CREATE OR REPLACE FUNCTION receive_stock(
    sku text,
    quantity integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'purchase',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.receive_stock(@store_literal@, $1, $2, $3, $4, $5); END $function$;
REVOKE ALL ON FUNCTION receive_stock(text, integer, text, text, text) FROM PUBLIC;
COMMENT ON FUNCTION receive_stock(text, integer, text, text, text) IS
'Adds units to stock, making the stock row where there is none; returns the units on hand';

CREATE OR REPLACE FUNCTION adjust_stock(
    sku text,
    quantity_delta integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'adjustment',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.adjust_stock(@store_literal@, $1, $2, $3, $4, $5); END $function$;
REVOKE ALL ON FUNCTION adjust_stock(text, integer, text, text, text) FROM PUBLIC;
COMMENT ON FUNCTION adjust_stock(text, integer, text, text, text) IS
'Corrects stock by a difference; returns the units on hand';

CREATE OR REPLACE FUNCTION transfer_stock(
    sku text,
    quantity integer,
    from_warehouse text,
    to_warehouse text,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN PERFORM techally.transfer_stock(@store_literal@, $1, $2, $3, $4, $5); END $function$;
REVOKE ALL ON FUNCTION transfer_stock(text, integer, text, text, text) FROM PUBLIC;
COMMENT ON FUNCTION transfer_stock(text, integer, text, text, text) IS
'Moves units from one warehouse to another';

CREATE OR REPLACE FUNCTION available(
    sku text,
    warehouse text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.available(@store_literal@, $1, $2); END $function$;
REVOKE ALL ON FUNCTION available(text, text) FROM PUBLIC;
COMMENT ON FUNCTION available(text, text) IS
'Units that can be reserved now, expired reservations counted as free';

CREATE OR REPLACE FUNCTION reserve_stock(
    sku text,
    quantity integer,
    warehouse text DEFAULT NULL,
    ttl interval DEFAULT '15 minutes',
    reference text DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.reserve_stock(@store_literal@, $1, $2, $3, $4, $5); END $function$;
REVOKE ALL ON FUNCTION reserve_stock(text, integer, text, interval, text) FROM PUBLIC;
COMMENT ON FUNCTION reserve_stock(text, integer, text, interval, text) IS
'Promises units for a time; returns the key of the reservation';

CREATE OR REPLACE FUNCTION extend_reservation(
    reservation_id uuid,
    ttl interval
) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.extend_reservation(@store_literal@, $1, $2); END $function$;
REVOKE ALL ON FUNCTION extend_reservation(uuid, interval) FROM PUBLIC;
COMMENT ON FUNCTION extend_reservation(uuid, interval) IS
'Lets a reservation last at least so long from now; returns when it ends';

CREATE OR REPLACE FUNCTION release_reservation(
    reservation_id uuid
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.release_reservation(@store_literal@, $1); END $function$;
REVOKE ALL ON FUNCTION release_reservation(uuid) FROM PUBLIC;
COMMENT ON FUNCTION release_reservation(uuid) IS
'Gives a reservation''s units back; true: it was active';

CREATE OR REPLACE FUNCTION commit_reservation(
    reservation_id uuid,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN PERFORM techally.commit_reservation(@store_literal@, $1, $2); END $function$;
REVOKE ALL ON FUNCTION commit_reservation(uuid, text) FROM PUBLIC;
COMMENT ON FUNCTION commit_reservation(uuid, text) IS
'Turns a reservation into a sale';

CREATE OR REPLACE FUNCTION expire_reservations(
    max_rows integer DEFAULT 1000
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.expire_reservations(@store_literal@, $1); END $function$;
REVOKE ALL ON FUNCTION expire_reservations(integer) FROM PUBLIC;
COMMENT ON FUNCTION expire_reservations(integer) IS
'Collects reservations that have expired; returns how many';

-- guards: what keeps the tables consistent whoever writes them

CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON categories
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON brands
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON products
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON product_variants
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_updated_at BEFORE UPDATE ON warehouses
    FOR EACH ROW EXECUTE FUNCTION techally.set_updated_at();
CREATE OR REPLACE TRIGGER techally_stamp BEFORE UPDATE ON orders
    FOR EACH ROW EXECUTE FUNCTION techally.stamp_order();

-- SKUs are unique across products and variants
CREATE OR REPLACE TRIGGER techally_sku_insert AFTER INSERT ON products
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION techally.register_product_skus();
CREATE OR REPLACE TRIGGER techally_sku_update AFTER UPDATE ON products
    FOR EACH ROW WHEN (OLD.sku IS DISTINCT FROM NEW.sku)
    EXECUTE FUNCTION techally.update_sku();
CREATE OR REPLACE TRIGGER techally_sku_insert AFTER INSERT ON product_variants
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION techally.register_variant_skus();
CREATE OR REPLACE TRIGGER techally_sku_update AFTER UPDATE ON product_variants
    FOR EACH ROW WHEN (OLD.sku IS DISTINCT FROM NEW.sku OR OLD.product_id IS DISTINCT FROM NEW.product_id)
    EXECUTE FUNCTION techally.update_sku();

-- and those of rows that were written while there was no guard (adopt_store);
-- the triggers' locks keep others from adding more until we commit
DELETE FROM skus s
 WHERE NOT EXISTS (SELECT FROM products p WHERE s.variant_id IS NULL AND p.id = s.product_id AND p.sku = s.sku)
   AND NOT EXISTS (SELECT FROM product_variants v WHERE v.id = s.variant_id AND v.product_id = s.product_id AND v.sku = s.sku);
INSERT INTO skus (sku, product_id, variant_id)
SELECT r.sku, r.product_id, r.variant_id
  FROM (SELECT p.sku, p.id AS product_id, NULL::uuid AS variant_id FROM products p
        UNION ALL
        SELECT v.sku, v.product_id, v.id FROM product_variants v) r
 WHERE NOT EXISTS (SELECT FROM skus s
                    WHERE s.sku = r.sku AND s.product_id = r.product_id
                      AND s.variant_id IS NOT DISTINCT FROM r.variant_id);

CREATE OR REPLACE TRIGGER techally_read_only INSTEAD OF INSERT OR UPDATE OR DELETE ON inventory
    FOR EACH ROW EXECUTE FUNCTION techally.refuse_inventory_write();

-- the state machine, then what a change of state does to stock
SELECT techally.attach_machine('orders'::regclass, 'status', @machine@, 'order_status_history'::regclass);
CREATE OR REPLACE TRIGGER techally_stock_effects AFTER UPDATE ON orders
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION techally.post_order_effects();
