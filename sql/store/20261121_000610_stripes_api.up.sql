-- The store's function for stripes; can be run twice.

CREATE OR REPLACE FUNCTION stripe_stock(
    sku text,
    warehouse text,
    stripes integer
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN PERFORM techally.stripe_stock(@store_literal@, $1, $2, $3); END $function$;
REVOKE ALL ON FUNCTION stripe_stock(text, text, integer) FROM PUBLIC;
COMMENT ON FUNCTION stripe_stock(text, text, integer) IS
'Spreads the units of a SKU in a warehouse over several rows, so that many can reserve at once; 1 folds them back';
