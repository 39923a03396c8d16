-- What makes these tables soft-delete tables, and the function of document 004.

CREATE OR REPLACE FUNCTION soft_delete_user(
    user_uuid uuid
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.soft_delete_user(@store_literal@, $1); END $function$;
REVOKE ALL ON FUNCTION soft_delete_user(uuid) FROM PUBLIC;
COMMENT ON FUNCTION soft_delete_user(uuid) IS
'Deletes a user softly; true: deleted now, false: it was already';

-- SKUs go with rows that are really gone
CREATE OR REPLACE TRIGGER techally_sku_delete AFTER DELETE ON products
    FOR EACH ROW EXECUTE FUNCTION techally.unregister_skus();
CREATE OR REPLACE TRIGGER techally_sku_delete AFTER DELETE ON product_variants
    FOR EACH ROW EXECUTE FUNCTION techally.unregister_skus();
CREATE OR REPLACE TRIGGER techally_sku_truncate AFTER TRUNCATE ON products
    FOR EACH STATEMENT EXECUTE FUNCTION techally.unregister_skus();
CREATE OR REPLACE TRIGGER techally_sku_truncate AFTER TRUNCATE ON product_variants
    FOR EACH STATEMENT EXECUTE FUNCTION techally.unregister_skus();

-- variants go with their product, so they come first
SELECT techally.enable_soft_delete('product_variants'::regclass);
SELECT techally.enable_soft_delete('products'::regclass);
SELECT techally.enable_soft_delete('categories'::regclass);
SELECT techally.enable_soft_delete('brands'::regclass);
SELECT techally.enable_soft_delete('users'::regclass);
