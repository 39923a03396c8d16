-- Fills a shop: :users users, :skus products named S10001 and on, two
-- warehouses with plenty of each.  Keys come from numbers, so that a client can
-- make them, and are the same on every side.
INSERT INTO :store.users (id, email, password_hash, first_name, last_name)
SELECT md5('user' || n)::uuid, 'user' || n || '@example.com', 'x', 'User', n::text
  FROM generate_series(1, :users) n;

INSERT INTO :store.products (id, sku, name, slug, price, is_published)
SELECT md5('product' || n)::uuid, 'S' || 10000 + n, 'Product ' || n, 'product-' || n,
       (n % 100 + 0.99)::numeric(10, 2), true
  FROM generate_series(1, :skus) n;

UPDATE :store.warehouses SET priority = 1 WHERE code = 'main';
INSERT INTO :store.warehouses (code, name, priority) VALUES ('north', 'Northern warehouse', 2);

INSERT INTO :store.inventory_stock (id, product_id, warehouse_id, quantity_on_hand)
SELECT md5('stock ' || w.code || n)::uuid, md5('product' || n)::uuid, w.id, 10000000
  FROM generate_series(1, :skus) n CROSS JOIN :store.warehouses w;
INSERT INTO :store.stock_movements (stock_id, movement_type, quantity)
SELECT id, 'purchase', quantity_on_hand FROM :store.inventory_stock;
