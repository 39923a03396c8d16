DROP TABLE users;
DROP TABLE store_settings;
