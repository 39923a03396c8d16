-- Stock: the engine's functions, called by each store's functions of the same
-- name.  They run with the caller's rights on the store's tables.

CREATE FUNCTION techally.receive_stock(
    store name,
    sku text,
    quantity integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'purchase',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_receive_stock';
COMMENT ON FUNCTION techally.receive_stock(name, text, integer, text, text, text) IS
'Adds units to stock, making the stock row where there is none; returns the units on hand';

CREATE FUNCTION techally.adjust_stock(
    store name,
    sku text,
    quantity_delta integer,
    warehouse text DEFAULT 'main',
    movement text DEFAULT 'adjustment',
    note text DEFAULT NULL
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_adjust_stock';
COMMENT ON FUNCTION techally.adjust_stock(name, text, integer, text, text, text) IS
'Corrects stock by a difference; returns the units on hand. Error TA002';

CREATE FUNCTION techally.transfer_stock(
    store name,
    sku text,
    quantity integer,
    from_warehouse text,
    to_warehouse text,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_transfer_stock';
COMMENT ON FUNCTION techally.transfer_stock(name, text, integer, text, text, text) IS
'Moves units from one warehouse to another. Error TA002';

CREATE FUNCTION techally.available(
    store name,
    sku text,
    warehouse text DEFAULT NULL
) RETURNS bigint
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'ta_available';
COMMENT ON FUNCTION techally.available(name, text, text) IS
'Units that can be reserved now, expired reservations counted as free';

CREATE FUNCTION techally.reserve_stock(
    store name,
    sku text,
    quantity integer,
    warehouse text DEFAULT NULL,
    ttl interval DEFAULT '15 minutes',
    reference text DEFAULT NULL
) RETURNS uuid
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_reserve_stock';
COMMENT ON FUNCTION techally.reserve_stock(name, text, integer, text, interval, text) IS
'Promises units for a time; returns the key of the reservation. Errors TA002, TA006';

CREATE FUNCTION techally.extend_reservation(
    store name,
    reservation_id uuid,
    ttl interval
) RETURNS timestamptz
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_extend_reservation';
COMMENT ON FUNCTION techally.extend_reservation(name, uuid, interval) IS
'Lets a reservation last at least so long from now; returns when it ends. Error TA003';

CREATE FUNCTION techally.release_reservation(
    store name,
    reservation_id uuid
) RETURNS boolean
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_release_reservation';
COMMENT ON FUNCTION techally.release_reservation(name, uuid) IS
'Gives the units of a reservation back; true: it was active';

CREATE FUNCTION techally.commit_reservation(
    store name,
    reservation_id uuid,
    note text DEFAULT NULL
) RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_commit_reservation';
COMMENT ON FUNCTION techally.commit_reservation(name, uuid, text) IS
'Turns a reservation into a sale. Error TA003';

CREATE FUNCTION techally.expire_reservations(
    store name,
    max_rows integer DEFAULT 1000
) RETURNS integer
LANGUAGE c AS 'MODULE_PATHNAME', 'ta_expire_reservations';
COMMENT ON FUNCTION techally.expire_reservations(name, integer) IS
'Collects reservations that have expired; returns how many';
