-- Search: the store's functions, and the triggers that keep its tables.
-- Can be run twice; see 000500_api.

CREATE OR REPLACE FUNCTION search_products(search_query text, limit_count integer DEFAULT 20)
RETURNS TABLE (id uuid, name varchar, description text, price numeric, rank real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN QUERY SELECT s.id, s.name, s.description, s.price, s.rank FROM techally.search_products(@store_literal@, $1, $2) s; END $function$;
REVOKE ALL ON FUNCTION search_products(text, integer) FROM PUBLIC;
COMMENT ON FUNCTION search_products(text, integer) IS
'Finds products by what a shopper typed, best first';

CREATE OR REPLACE FUNCTION search(
    query text,
    filters jsonb DEFAULT '{}',
    sort text DEFAULT 'relevance',
    after text DEFAULT NULL,
    page_size integer DEFAULT 20,
    facets text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN techally.search(@store_literal@, $1, $2, $3, $4, $5, $6); END $function$;
REVOKE ALL ON FUNCTION search(text, jsonb, text, text, integer, text[]) FROM PUBLIC;
COMMENT ON FUNCTION search(text, jsonb, text, text, integer, text[]) IS
'A page of search results with total, facets and a cursor for the next';

CREATE OR REPLACE FUNCTION suggest(prefix text, limit_count integer DEFAULT 10)
RETURNS TABLE (suggestion text, kind text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN QUERY SELECT s.suggestion, s.kind FROM techally.suggest(@store_literal@, $1, $2) s; END $function$;
REVOKE ALL ON FUNCTION suggest(text, integer) FROM PUBLIC;
COMMENT ON FUNCTION suggest(text, integer) IS
'What somebody who types this may mean: brands, categories, products';

CREATE OR REPLACE FUNCTION explain_search(query text, product_id uuid)
RETURNS TABLE (term text, field text, weight real, contribution real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN QUERY SELECT s.term, s.field, s.weight, s.contribution FROM techally.explain_search(@store_literal@, $1, $2) s; END $function$;
REVOKE ALL ON FUNCTION explain_search(text, uuid) FROM PUBLIC;
COMMENT ON FUNCTION explain_search(text, uuid) IS
'Why a product ranks where it does for a query, term by term';

CREATE OR REPLACE TRIGGER techally_search_insert AFTER INSERT ON products
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION techally.search_products_inserted();
CREATE OR REPLACE TRIGGER techally_search_update AFTER UPDATE ON products
    FOR EACH ROW WHEN (
        OLD.id IS DISTINCT FROM NEW.id OR OLD.sku IS DISTINCT FROM NEW.sku OR OLD.name IS DISTINCT FROM NEW.name
        OR OLD.description IS DISTINCT FROM NEW.description
        OR OLD.short_description IS DISTINCT FROM NEW.short_description
        OR OLD.category_id IS DISTINCT FROM NEW.category_id OR OLD.brand_id IS DISTINCT FROM NEW.brand_id
        OR OLD.tags IS DISTINCT FROM NEW.tags OR OLD.attributes IS DISTINCT FROM NEW.attributes
        OR OLD.is_active IS DISTINCT FROM NEW.is_active OR OLD.is_published IS DISTINCT FROM NEW.is_published
        OR (OLD.deleted_at IS NULL) IS DISTINCT FROM (NEW.deleted_at IS NULL)
        OR OLD.created_at IS DISTINCT FROM NEW.created_at OR OLD.language IS DISTINCT FROM NEW.language)
    EXECUTE FUNCTION techally.search_product_changed();
CREATE OR REPLACE TRIGGER techally_search_price AFTER UPDATE ON products
    FOR EACH ROW WHEN (OLD.price IS DISTINCT FROM NEW.price)
    EXECUTE FUNCTION techally.search_price_changed();
CREATE OR REPLACE TRIGGER techally_search_delete AFTER DELETE ON products
    FOR EACH ROW EXECUTE FUNCTION techally.search_product_changed();
CREATE OR REPLACE TRIGGER techally_search_truncate AFTER TRUNCATE ON products
    FOR EACH STATEMENT EXECUTE FUNCTION techally.search_truncated();

CREATE OR REPLACE TRIGGER techally_search_made BEFORE INSERT ON search_segments
    FOR EACH ROW EXECUTE FUNCTION techally.search_segment_made();

CREATE OR REPLACE TRIGGER techally_search_insert AFTER INSERT ON product_variants
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION techally.search_variants_changed();
CREATE OR REPLACE TRIGGER techally_search_update AFTER UPDATE ON product_variants
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION techally.search_variants_changed();
CREATE OR REPLACE TRIGGER techally_search_delete AFTER DELETE ON product_variants
    REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION techally.search_variants_changed();

CREATE OR REPLACE TRIGGER techally_search_update AFTER UPDATE ON brands
    FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name OR (OLD.deleted_at IS NULL) IS DISTINCT FROM (NEW.deleted_at IS NULL))
    EXECUTE FUNCTION techally.search_group_changed();
CREATE OR REPLACE TRIGGER techally_search_update AFTER UPDATE ON categories
    FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name OR OLD.parent_id IS DISTINCT FROM NEW.parent_id
        OR (OLD.deleted_at IS NULL) IS DISTINCT FROM (NEW.deleted_at IS NULL))
    EXECUTE FUNCTION techally.search_group_changed();

-- products that were written while there was no trigger (adopt_store, and a
-- store that is older than its search)
SELECT techally.rebuild_search(@store_literal@);
