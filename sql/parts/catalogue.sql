-- Guards of a store's tables.  Trigger functions act on the table that they
-- are fired by and on nothing the caller names, so EXECUTE may stay with
-- PUBLIC: whoever owns a store must be able to create its triggers.

CREATE FUNCTION techally.set_updated_at()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_set_updated_at';
COMMENT ON FUNCTION techally.set_updated_at() IS
'Trigger, BEFORE UPDATE of a row of any table: sets its column updated_at to now()';

CREATE FUNCTION techally.register_product_skus()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_register_product_skus';
COMMENT ON FUNCTION techally.register_product_skus() IS
'Trigger, AFTER INSERT on a store''s products: registers their SKUs';

CREATE FUNCTION techally.register_variant_skus()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_register_variant_skus';
COMMENT ON FUNCTION techally.register_variant_skus() IS
'Trigger, AFTER INSERT on a store''s product_variants: registers their SKUs';

CREATE FUNCTION techally.update_sku()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_update_sku';
COMMENT ON FUNCTION techally.update_sku() IS
'Trigger, AFTER UPDATE of a row of a store''s products or product_variants: its registered SKU follows';

CREATE FUNCTION techally.unregister_skus()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_unregister_skus';
COMMENT ON FUNCTION techally.unregister_skus() IS
'Trigger, AFTER DELETE of a row of a store''s products or product_variants, or TRUNCATE: its SKUs go with what is really gone';

CREATE FUNCTION techally.refuse_inventory_write()
RETURNS trigger
LANGUAGE C
AS 'MODULE_PATHNAME', 'ta_refuse_inventory_write';
COMMENT ON FUNCTION techally.refuse_inventory_write() IS
'Trigger, INSTEAD OF a write to a store''s view inventory: refuses it';
