DROP TABLE stock_movements;
DROP TABLE stock_reservation_parts;
DROP TABLE stock_reservations;
DROP VIEW inventory;
DROP TABLE inventory_stock;
DROP TABLE warehouses;
