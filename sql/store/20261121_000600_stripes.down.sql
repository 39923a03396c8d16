-- The rows that stock was spread over stay: all that serve a SKU are counted
-- together, with or without stripes.
DROP TABLE stock_stripes;
