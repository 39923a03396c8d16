-- Rivals for one SKU that everybody wants, in the schema plain (the store's own
-- tables).  They write less than techally does: the stock row and the
-- reservation, no row that says which stock it came from.

-- one row, all in one call
CREATE FUNCTION plain.reserve_one_row(stock uuid, wanted integer) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    free integer;
    reservation uuid;
BEGIN
    SELECT s.quantity_on_hand - s.quantity_reserved INTO free FROM plain.inventory_stock s WHERE s.id = stock FOR UPDATE;
    IF free < wanted THEN
        RAISE EXCEPTION 'insufficient stock';
    END IF;
    UPDATE plain.inventory_stock SET quantity_reserved = quantity_reserved + wanted WHERE id = stock;
    INSERT INTO plain.stock_reservations (quantity, expires_at) VALUES (wanted, now() + interval '15 minutes')
    RETURNING id INTO reservation;
    RETURN reservation;
END $$;

-- 32 rows, whichever is free, beginning at a random one
CREATE FUNCTION plain.reserve_any_stripe(sku uuid, first integer, wanted integer) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    stock uuid;
    reservation uuid;
BEGIN
    SELECT s.id INTO stock FROM plain.inventory_stock s
     WHERE s.product_id = sku AND s.variant_id IS NULL AND s.stripe >= first AND s.quantity_on_hand - s.quantity_reserved >= wanted
     LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        SELECT s.id INTO stock FROM plain.inventory_stock s
         WHERE s.product_id = sku AND s.variant_id IS NULL AND s.quantity_on_hand - s.quantity_reserved >= wanted
         LIMIT 1 FOR NO KEY UPDATE;
    END IF;
    UPDATE plain.inventory_stock SET quantity_reserved = quantity_reserved + wanted WHERE id = stock;
    INSERT INTO plain.stock_reservations (quantity, expires_at) VALUES (wanted, now() + interval '15 minutes')
    RETURNING id INTO reservation;
    RETURN reservation;
END $$;

-- the hot SKU of the rivals: number 1 as one row, number 2 as 32
INSERT INTO plain.inventory_stock (product_id, warehouse_id, stripe, quantity_on_hand)
SELECT md5('product2')::uuid, w.id, n, 10000000 FROM plain.warehouses w, generate_series(1, 31) n WHERE w.code = 'main';
