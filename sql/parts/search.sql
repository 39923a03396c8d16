-- Search: the engine's functions.  Those that find are called by each store's
-- functions of the same name and run with the caller's rights on the products.

CREATE FUNCTION techally.search_products(store name, search_query text, limit_count integer DEFAULT 20)
RETURNS TABLE (id uuid, name varchar, description text, price numeric, rank real)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_search_products';
COMMENT ON FUNCTION techally.search_products(name, text, integer) IS
'Finds products of a store by what a shopper typed, best first';

CREATE FUNCTION techally.search(
    store name,
    query text,
    filters jsonb DEFAULT '{}',
    sort text DEFAULT 'relevance',
    after text DEFAULT NULL,
    page_size integer DEFAULT 20,
    facets text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_search';
COMMENT ON FUNCTION techally.search(name, text, jsonb, text, text, integer, text[]) IS
'A page of search results with total, facets and a cursor for the next';

CREATE FUNCTION techally.suggest(store name, prefix text, limit_count integer DEFAULT 10)
RETURNS TABLE (suggestion text, kind text)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_suggest';
COMMENT ON FUNCTION techally.suggest(name, text, integer) IS
'What somebody who types this may mean: brands, categories, products';

CREATE FUNCTION techally.explain_search(store name, query text, product_id uuid)
RETURNS TABLE (term text, field text, weight real, contribution real)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_explain_search';
COMMENT ON FUNCTION techally.explain_search(name, text, uuid) IS
'Why a product ranks where it does for a query, term by term';

CREATE FUNCTION techally.search_brute_force(store name, queries text[], limit_count integer DEFAULT 20)
RETURNS TABLE (query integer, place integer, id uuid, rank real)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_search_brute_force';
REVOKE ALL ON FUNCTION techally.search_brute_force(name, text[], integer) FROM PUBLIC;
COMMENT ON FUNCTION techally.search_brute_force(name, text[], integer) IS
'What search_products must find, found by reading every product: for tests';

CREATE FUNCTION techally.fold_search(store name, merge_all boolean DEFAULT false)
RETURNS bigint
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_fold_search'; -- for who owns the store
COMMENT ON FUNCTION techally.fold_search(name, boolean) IS
'Maintenance of a store''s search: takes recent changes into the index; returns how many';

CREATE FUNCTION techally.rebuild_search(store name)
RETURNS bigint
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_rebuild_search'; -- for who owns the store
COMMENT ON FUNCTION techally.rebuild_search(name) IS
'Makes a store''s search anew from its products; returns how many can be found';

CREATE FUNCTION techally.search_products_inserted() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_products_inserted';
COMMENT ON FUNCTION techally.search_products_inserted() IS 'Trigger: products that were inserted can be found';

CREATE FUNCTION techally.search_product_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_product_changed';
COMMENT ON FUNCTION techally.search_product_changed() IS 'Trigger: a product is found by what it is now';

CREATE FUNCTION techally.search_price_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_price_changed';
COMMENT ON FUNCTION techally.search_price_changed() IS 'Trigger: search learns a product''s new price';

CREATE FUNCTION techally.search_variants_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_variants_changed';
COMMENT ON FUNCTION techally.search_variants_changed() IS 'Trigger: products are found by their variants';

CREATE FUNCTION techally.search_group_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_group_changed';
COMMENT ON FUNCTION techally.search_group_changed() IS 'Trigger: products are found by the name of their brand and category';

CREATE FUNCTION techally.search_truncated() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_truncated';
COMMENT ON FUNCTION techally.search_truncated() IS 'Trigger: search is emptied with the products';

CREATE FUNCTION techally.search_segment_made() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_search_segment_made';
COMMENT ON FUNCTION techally.search_segment_made() IS 'Trigger: leaves out segments that search did not make itself';
