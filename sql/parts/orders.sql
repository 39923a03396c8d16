-- Orders: the engine's functions, called by each store's functions of the same
-- name.  They run with the caller's rights on the store's tables.

CREATE FUNCTION techally.place_order(
    store name,
    user_id uuid,
    lines jsonb,
    shipping_address jsonb DEFAULT NULL,
    billing_address jsonb DEFAULT NULL,
    currency text DEFAULT 'USD',
    coupon_code text DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    reserve_for interval DEFAULT '15 minutes',
    actor uuid DEFAULT NULL
) RETURNS record
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_place_order';
COMMENT ON FUNCTION techally.place_order(name, uuid, jsonb, jsonb, jsonb, text, text, text, interval, uuid) IS
'Places an order in a store and reserves its stock; returns the order. Errors TA002, TA004, TA006, TA007';

CREATE FUNCTION techally.import_order(
    store name,
    user_id uuid,
    lines jsonb,
    placed_at timestamptz,
    order_number text DEFAULT NULL,
    currency text DEFAULT 'USD',
    charges jsonb DEFAULT '[]',
    actor uuid DEFAULT NULL
) RETURNS record
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_import_order';
COMMENT ON FUNCTION techally.import_order(name, uuid, jsonb, timestamptz, text, text, jsonb, uuid) IS
'Places an order that was taken elsewhere, with its own time, number, prices and charges';

CREATE FUNCTION techally.transition_order(
    store name,
    order_id uuid,
    event text,
    note text DEFAULT NULL,
    actor uuid DEFAULT NULL
) RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_transition_order';
COMMENT ON FUNCTION techally.transition_order(name, uuid, text, text, uuid) IS
'Moves an order by an event of its state machine; returns the state it is in. Errors TA001, TA003, TA007';

CREATE FUNCTION techally.return_order_lines(
    store name,
    order_id uuid,
    lines jsonb,
    note text DEFAULT NULL,
    actor uuid DEFAULT NULL
) RETURNS uuid
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_return_order_lines';
COMMENT ON FUNCTION techally.return_order_lines(name, uuid, jsonb, text, uuid) IS
'Takes back some lines of an order and restocks them; returns the key of the return';

CREATE FUNCTION techally.post_order_effects() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_post_order_effects';
COMMENT ON FUNCTION techally.post_order_effects() IS
'AFTER UPDATE statement trigger of a store''s orders: posts to stock what the changes of state mean';

CREATE FUNCTION techally.stamp_order() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_stamp_order';
COMMENT ON FUNCTION techally.stamp_order() IS
'BEFORE UPDATE row trigger of a store''s orders: sets updated_at and completed_at';
