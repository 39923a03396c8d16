DROP TABLE skus;
DROP TABLE product_variants;
DROP TABLE products;
DROP TABLE brands;
DROP TABLE categories;
