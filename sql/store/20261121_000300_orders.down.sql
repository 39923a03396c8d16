DROP TABLE order_status_history;
DROP TABLE order_return_items;
DROP TABLE order_returns;
DROP TABLE order_charges;
DROP TABLE order_items;
DROP TABLE orders;
DROP SEQUENCE order_number_seq;
DROP DOMAIN order_status;
