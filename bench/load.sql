-- Fills a shop: :users users, :skus SKUs named S10001 and on, two warehouses
-- with plenty of each.  Keys come from numbers, so that a client can
-- make them, and are the same on every side.
INSERT INTO :store.users (id, email, password_hash, first_name, last_name)
SELECT md5('user' || n)::uuid, 'user' || n || '@example.com', 'x', 'User', n::text
  FROM generate_series(1, :users) n;

-- the last tenth of the SKUs are variants, five to a product that has no others
SELECT :skus * 9 / 10 AS products, :skus / 10 AS variants \gset
INSERT INTO :store.products (id, sku, name, slug, price, is_published)
SELECT md5('product' || n)::uuid, CASE WHEN n <= :products THEN 'S' || 10000 + n ELSE 'P' || n END,
       'Product ' || n, 'product-' || n, (n % 100 + 0.99)::numeric(10, 2), true
  FROM generate_series(1, :products + :variants / 5) n;
INSERT INTO :store.product_variants (id, product_id, sku, name, price)
SELECT md5('variant' || n)::uuid, md5('product' || :products + (n + 4) / 5)::uuid, 'S' || 10000 + :products + n,
       'Variant ' || n, CASE WHEN n % 2 = 0 THEN (n % 100 + 0.99)::numeric(10, 2) END
  FROM generate_series(1, :variants) n;

UPDATE :store.warehouses SET priority = 1 WHERE code = 'main';
INSERT INTO :store.warehouses (code, name, priority) VALUES ('north', 'Northern warehouse', 2);

INSERT INTO :store.inventory_stock (id, product_id, variant_id, warehouse_id, quantity_on_hand)
SELECT md5('stock ' || w.code || n)::uuid,
       CASE WHEN n <= :products THEN md5('product' || n)
            ELSE md5('product' || :products + (n - :products + 4) / 5) END::uuid,
       CASE WHEN n > :products THEN md5('variant' || n - :products) END::uuid, w.id, 10000000
  FROM generate_series(1, :skus) n CROSS JOIN :store.warehouses w;
INSERT INTO :store.stock_movements (stock_id, movement_type, quantity)
SELECT id, 'purchase', quantity_on_hand FROM :store.inventory_stock;

-- Only what has rows: an empty table that was analyzed is planned for as empty,
-- and a session would keep reading it whole while it fills.
ANALYZE :store.users, :store.products, :store.product_variants, :store.skus, :store.warehouses,
    :store.inventory_stock, :store.stock_movements;
