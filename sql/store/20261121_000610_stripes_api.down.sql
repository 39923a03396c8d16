DROP FUNCTION stripe_stock(text, text, integer);
