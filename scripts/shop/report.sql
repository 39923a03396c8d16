-- the orders, by state
SELECT status AS "state",
       count(*) AS "orders",
       sum(total) AS "worth",
       repeat('#', (40 * count(*) / max(count(*)) OVER ())::integer) AS " "
  FROM shop.orders
 GROUP BY status
 ORDER BY status IN ('failed', 'cancelled', 'returned'),
          min((SELECT max(h.sequence) FROM shop.order_status_history h WHERE h.order_id = orders.id));

SELECT count(*) AS "orders",
       :baskets - count(*) AS "refused: sold out",
       (SELECT count(*) FROM shop.order_items) AS "lines",
       (SELECT count(*) FROM shop.order_status_history) AS "steps recorded",
       (SELECT count(*) FROM shop.stock_movements) AS "stock movements"
  FROM shop.orders;

-- the stock, by warehouse
SELECT w.name AS "warehouse",
       count(*) AS "articles",
       sum(i.quantity_on_hand) AS "on hand",
       sum(i.quantity_reserved) AS "reserved",
       sum(i.quantity_available) AS "available",
       count(*) FILTER (WHERE i.quantity_available = 0) AS "sold out"
  FROM shop.inventory i
  JOIN shop.warehouses w ON w.id = i.warehouse_id
 GROUP BY w.id
 ORDER BY w.priority;
