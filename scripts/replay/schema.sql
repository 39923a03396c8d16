-- What the replay keeps in a schema of its own: psql -v work=... -v store=...
--
-- input holds the file as it came; everything else is derived from it.  The
-- store is known by the name of its schema alone: its tables as in sql/store/,
-- and its functions import_order, transition_order, return_order_lines,
-- receive_stock and adjust_stock.
--
-- Nothing here refers to the store by a foreign key, so that either can be
-- dropped without the other.

CREATE SCHEMA :"work";
COMMENT ON SCHEMA :"work" IS 'Replay of an Online Retail file into a store: the input, what became of each line, and the progress';

CREATE TABLE :"work".run (
    only_row      boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (only_row),
    store         text        NOT NULL,
    store_created boolean     NOT NULL DEFAULT false,
    file          text        NOT NULL,
    fingerprint   text        NOT NULL,
    line_limit    integer,
    time_zone     text        NOT NULL DEFAULT 'Europe/London',
    state         text        NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'loaded', 'prepared', 'complete')),
    done          integer     NOT NULL DEFAULT 0,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz
);
COMMENT ON TABLE :"work".run IS 'The replay, in one row; locked by whoever takes it a step further';
COMMENT ON COLUMN :"work".run.only_row IS 'Always true: there is one row';
COMMENT ON COLUMN :"work".run.store IS 'Schema of the store';
COMMENT ON COLUMN :"work".run.store_created IS 'Whether the replay made the store; only then may a restart drop it';
COMMENT ON COLUMN :"work".run.file IS 'Name of the file';
COMMENT ON COLUMN :"work".run.fingerprint IS 'Checksum of the file''s content, decompressed';
COMMENT ON COLUMN :"work".run.line_limit IS 'Lines taken from the file''s beginning; NULL: all';
COMMENT ON COLUMN :"work".run.time_zone IS 'Time zone of InvoiceDate';
COMMENT ON COLUMN :"work".run.state IS 'new, loaded, prepared or complete';
COMMENT ON COLUMN :"work".run.done IS 'Position of the last document replayed; moves in the transaction that replays it';
COMMENT ON COLUMN :"work".run.started_at IS 'When it began';
COMMENT ON COLUMN :"work".run.finished_at IS 'When a reconciliation first found nothing wrong';

CREATE TABLE :"work".input (
    line         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    invoice_no   text,
    stock_code   text,
    description  text,
    quantity     text,
    invoice_date text,
    unit_price   text,
    customer_id  text,
    country      text
);
COMMENT ON TABLE :"work".input IS 'The file, untouched';
COMMENT ON COLUMN :"work".input.line IS 'Number of the record, the first after the header being 1';
COMMENT ON COLUMN :"work".input.invoice_no IS 'InvoiceNo';
COMMENT ON COLUMN :"work".input.stock_code IS 'StockCode';
COMMENT ON COLUMN :"work".input.description IS 'Description';
COMMENT ON COLUMN :"work".input.quantity IS 'Quantity';
COMMENT ON COLUMN :"work".input.invoice_date IS 'InvoiceDate';
COMMENT ON COLUMN :"work".input.unit_price IS 'UnitPrice';
COMMENT ON COLUMN :"work".input.customer_id IS 'CustomerID';
COMMENT ON COLUMN :"work".input.country IS 'Country';

CREATE TABLE :"work".documents (
    position  integer     PRIMARY KEY,
    invoice   text        NOT NULL UNIQUE,
    customer  text,
    user_id   uuid        NOT NULL,
    placed_at timestamptz NOT NULL,
    lines     jsonb       NOT NULL,
    charges   jsonb       NOT NULL,
    returns   boolean     NOT NULL,
    write_offs boolean    NOT NULL
);
COMMENT ON TABLE :"work".documents IS 'The invoices in the order of time, ready to be replayed';
COMMENT ON COLUMN :"work".documents.position IS 'Place in the order of time; among equals the file''s order counts';
COMMENT ON COLUMN :"work".documents.invoice IS 'Number of the invoice, which becomes the order''s';
COMMENT ON COLUMN :"work".documents.customer IS 'CustomerID; NULL: the guest account';
COMMENT ON COLUMN :"work".documents.user_id IS 'The store''s user';
COMMENT ON COLUMN :"work".documents.placed_at IS 'Earliest time on the invoice''s lines';
COMMENT ON COLUMN :"work".documents.lines IS 'Lines to order, as import_order takes them';
COMMENT ON COLUMN :"work".documents.charges IS 'Charges, as import_order takes them';
COMMENT ON COLUMN :"work".documents.returns IS 'Whether the table matches has something to return';
COMMENT ON COLUMN :"work".documents.write_offs IS 'Whether lines are to be written off';

CREATE TABLE :"work".lines (
    line        integer       PRIMARY KEY,
    position    integer,
    sku         text,
    description text,
    quantity    integer,
    unit_price  numeric,
    amount      numeric(14,2),
    class       text          NOT NULL CHECK (class IN ('ordered', 'returned', 'charge', 'stock write-off', 'rejected')),
    item        integer,
    CHECK ((class = 'ordered') = (item IS NOT NULL)),
    CHECK (class = 'rejected' OR position IS NOT NULL AND amount IS NOT NULL)
);
COMMENT ON TABLE :"work".lines IS 'What became of each line of the input: exactly one class';
COMMENT ON COLUMN :"work".lines.line IS 'The line of the input';
COMMENT ON COLUMN :"work".lines.position IS 'The document it stands on';
COMMENT ON COLUMN :"work".lines.sku IS 'StockCode without blanks at its ends; letter case counts';
COMMENT ON COLUMN :"work".lines.description IS 'Description without blanks at its ends';
COMMENT ON COLUMN :"work".lines.quantity IS 'Quantity; NULL where malformed';
COMMENT ON COLUMN :"work".lines.unit_price IS 'UnitPrice; NULL where malformed';
COMMENT ON COLUMN :"work".lines.amount IS 'Quantity times price, rounded to the cent';
COMMENT ON COLUMN :"work".lines.class IS 'ordered, returned, charge, stock write-off or rejected';
COMMENT ON COLUMN :"work".lines.item IS 'Number of the line on the order, where class is ordered';

CREATE TABLE :"work".rejects (
    line               integer PRIMARY KEY,
    reason             text    NOT NULL,
    unmatched_quantity integer CHECK (unmatched_quantity > 0),
    whole              boolean NOT NULL DEFAULT true
);
COMMENT ON TABLE :"work".rejects IS 'Lines that were not taken, or not wholly, and why';
COMMENT ON COLUMN :"work".rejects.line IS 'The line of the input';
COMMENT ON COLUMN :"work".rejects.reason IS 'Why';
COMMENT ON COLUMN :"work".rejects.unmatched_quantity IS 'Units of a cancelled line that no earlier purchase covers; NULL: not a question of quantity';
COMMENT ON COLUMN :"work".rejects.whole IS 'false: part of the line was returned, and the line counts as returned';

CREATE TABLE :"work".matches (
    return_line   integer NOT NULL,
    purchase_line integer NOT NULL,
    quantity      integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (return_line, purchase_line)
);
COMMENT ON TABLE :"work".matches IS 'Which earlier purchase each returned line gives back';
COMMENT ON COLUMN :"work".matches.return_line IS 'Line of a cancellation';
COMMENT ON COLUMN :"work".matches.purchase_line IS 'Line that was ordered';
COMMENT ON COLUMN :"work".matches.quantity IS 'Units';

CREATE TABLE :"work".returns (
    return_id uuid    PRIMARY KEY,
    position  integer NOT NULL,
    order_id  uuid    NOT NULL
);
COMMENT ON TABLE :"work".returns IS 'Returns made in the store';
COMMENT ON COLUMN :"work".returns.return_id IS 'The return';
COMMENT ON COLUMN :"work".returns.position IS 'The document that asked for it';
COMMENT ON COLUMN :"work".returns.order_id IS 'The order it gives back from';

CREATE TABLE :"work".reconciliation (
    class             text PRIMARY KEY,
    place             integer NOT NULL,
    lines             bigint  NOT NULL,
    lines_in_store    bigint,
    units             bigint,
    units_in_store    bigint,
    revenue           numeric NOT NULL,
    revenue_in_store  numeric,
    unrounded_revenue numeric NOT NULL
);
COMMENT ON TABLE :"work".reconciliation IS 'The closing account, a row for each class: the input beside what the store holds';
COMMENT ON COLUMN :"work".reconciliation.class IS 'Class of the lines; total for their sum';
COMMENT ON COLUMN :"work".reconciliation.place IS 'Order of the rows';
COMMENT ON COLUMN :"work".reconciliation.lines IS 'Lines of the input';
COMMENT ON COLUMN :"work".reconciliation.lines_in_store IS 'Rows in the store that stand for them; NULL: not meant to be there';
COMMENT ON COLUMN :"work".reconciliation.units IS 'Units of the input that were taken';
COMMENT ON COLUMN :"work".reconciliation.units_in_store IS 'Units in the store';
COMMENT ON COLUMN :"work".reconciliation.revenue IS 'Revenue of the input, each line rounded to the cent';
COMMENT ON COLUMN :"work".reconciliation.revenue_in_store IS 'Revenue in the store';
COMMENT ON COLUMN :"work".reconciliation.unrounded_revenue IS 'Revenue of the input with all the decimals of its prices';

CREATE TABLE :"work".problems (
    rule    text NOT NULL,
    subject text,
    detail  text
);
COMMENT ON TABLE :"work".problems IS 'What the last reconciliation found wrong; empty means that everything adds up';
COMMENT ON COLUMN :"work".problems.rule IS 'What was checked';
COMMENT ON COLUMN :"work".problems.subject IS 'The line, document or row';
COMMENT ON COLUMN :"work".problems.detail IS 'What is wrong with it';

-- psql replaces no variables inside a string, so the routines are written with
-- the two names as tokens and made by \gexec.

SELECT replace($routine$
CREATE FUNCTION @work@.refuse(message text) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = message;
END $function$;
$routine$, '@work@', quote_ident(:'work')) \gexec
COMMENT ON FUNCTION :"work".refuse(text) IS 'Raises an error with this message, for scripts that have no other way';

-- Walks through the cancelled lines in the order of time and takes from the
-- same customer's purchases of the same SKU, the newest first, what has not
-- been given back yet.  Reads the temporary tables cancelled (line, position,
-- customer, sku, quantity) and purchased (line, position, customer, sku, left_over).
SELECT replace($routine$
CREATE FUNCTION @work@.match_returns() RETURNS void
LANGUAGE plpgsql AS $function$
DECLARE
    cancelled record;
    bought    record;
    missing   integer;
    taken     integer;
BEGIN
    FOR cancelled IN SELECT c.* FROM pg_temp.cancelled c ORDER BY c.position, c.line LOOP
        missing := cancelled.quantity;
        FOR bought IN
            SELECT p.line, p.left_over
              FROM pg_temp.purchased p
             WHERE p.customer = cancelled.customer AND p.sku = cancelled.sku
               AND p.position < cancelled.position AND p.left_over > 0
             ORDER BY p.position DESC, p.line DESC
        LOOP
            taken := least(missing, bought.left_over);
            INSERT INTO @work@.matches (return_line, purchase_line, quantity)
            VALUES (cancelled.line, bought.line, taken);
            UPDATE pg_temp.purchased SET left_over = left_over - taken WHERE line = bought.line;
            missing := missing - taken;
            EXIT WHEN missing = 0;
        END LOOP;
        IF missing > 0 THEN
            INSERT INTO @work@.rejects (line, reason, unmatched_quantity, whole)
            SELECT cancelled.line,
                   CASE WHEN missing < cancelled.quantity THEN 'more returned than bought' ELSE 'no earlier purchase' END,
                   missing, missing = cancelled.quantity;
        END IF;
    END LOOP;
END $function$;
$routine$, '@work@', quote_ident(:'work')) \gexec
COMMENT ON FUNCTION :"work".match_returns() IS
'Decides which earlier purchases each cancelled line gives back, newest first';

-- Returns what one cancellation gives back.  The store refunds what was paid,
-- the cancellation says what was credited; the difference is the result.
SELECT replace(replace($routine$
CREATE FUNCTION @work@.replay_returns(document @work@.documents) RETURNS numeric
LANGUAGE plpgsql AS $function$
DECLARE
    bought   record;
    made     uuid;
    refund   numeric;
    credited numeric;
    refunded numeric := 0;
BEGIN
    FOR bought IN
        SELECT o.id AS order_id,
               jsonb_agg(jsonb_build_object('order_item_id', i.id, 'quantity', m.quantity) ORDER BY i.line_number) AS lines
          FROM (SELECT p.position, p.item, sum(m.quantity) AS quantity
                  FROM @work@.lines c
                  JOIN @work@.matches m ON m.return_line = c.line
                  JOIN @work@.lines p ON p.line = m.purchase_line
                 WHERE c.position = document.position AND c.class = 'returned'
                 GROUP BY p.position, p.item) m
          JOIN @work@.documents d ON d.position = m.position
          JOIN @store@.orders o ON o.order_number = d.invoice
          JOIN @store@.order_items i ON i.order_id = o.id AND i.line_number = m.item
         GROUP BY o.id, d.position
         ORDER BY d.position DESC
    LOOP
        made := @store@.return_order_lines(bought.order_id, bought.lines, document.invoice);
        INSERT INTO @work@.returns (return_id, position, order_id)
        VALUES (made, document.position, bought.order_id);
        SELECT r.amount INTO STRICT refund FROM @store@.order_returns r WHERE r.id = made;
        refunded := refunded + refund;
    END LOOP;
    SELECT sum(round(m.quantity * c.unit_price, 2)) INTO STRICT credited
      FROM @work@.lines c
     CROSS JOIN LATERAL (SELECT sum(m.quantity) AS quantity FROM @work@.matches m WHERE m.return_line = c.line) m
     WHERE c.position = document.position AND c.class = 'returned';
    RETURN refunded - credited;
END $function$;
$routine$, '@work@', quote_ident(:'work')), '@store@', quote_ident(:'store')) \gexec
COMMENT ON FUNCTION :"work".replay_returns(:"work".documents) IS
'Returns what one cancellation gives back; the result is what the store refunded above what was credited';

SELECT replace(replace($routine$
CREATE PROCEDURE @work@.replay(batch integer DEFAULT 100, max_documents integer DEFAULT NULL)
LANGUAGE plpgsql AS $procedure$
DECLARE
    last_position  integer;
    first_position integer;
    reached        integer;
    analyze_at     integer;
    document       @work@.documents;
    written_off    record;
    placed         @store@.orders;
    charges        jsonb;
    difference     numeric;
    event          text;
    status         text;
    state          text;
    detail         text;
    hint           text;
BEGIN
    SELECT max(d.position) INTO last_position FROM @work@.documents d;
    LOOP
        -- whoever else replays waits here, and goes on where this batch ends
        SELECT r.done INTO STRICT reached FROM @work@.run r WHERE r.state IN ('prepared', 'complete') FOR UPDATE;
        first_position := coalesce(first_position, reached);
        analyze_at := coalesce(analyze_at, greatest(reached, 250));
        EXIT WHEN reached >= coalesce(last_position, 0) OR reached - first_position >= max_documents;

        -- plans made while the tables were empty should not outlive that
        IF reached >= analyze_at THEN
            ANALYZE @store@.orders, @store@.order_items, @store@.order_charges, @store@.order_returns,
                @store@.order_return_items, @store@.order_status_history, @store@.stock_reservations,
                @store@.stock_reservation_parts, @store@.stock_movements, @store@.inventory_stock;
            analyze_at := reached * 4;
        END IF;

        BEGIN
            FOR document IN
                SELECT * FROM @work@.documents d
                 WHERE d.position > reached AND d.position <= reached + batch
                 ORDER BY d.position
            LOOP
                charges := document.charges;
                IF document.returns THEN
                    difference := @work@.replay_returns(document);
                    IF difference <> 0 THEN
                        charges := charges || jsonb_build_object('code', 'RETURN-DIFFERENCE',
                            'description', 'Refunded at the price paid, credited at another', 'amount', difference);
                    END IF;
                END IF;
                IF document.lines <> '[]' OR charges <> '[]' THEN
                    placed := @store@.import_order(document.user_id, document.lines, document.placed_at,
                                                   document.invoice, 'GBP', charges);
                    FOREACH event IN ARRAY ARRAY['process_payment', 'payment_success', 'start_fulfillment',
                                                 'dispatch', 'deliver', 'complete'] LOOP
                        status := @store@.transition_order(placed.id, event);
                    END LOOP;
                    IF status IS DISTINCT FROM 'completed' THEN
                        RAISE EXCEPTION 'the order ended as %', status;
                    END IF;
                END IF;
                IF document.write_offs THEN
                    FOR written_off IN
                        SELECT l.line, l.sku, l.quantity, l.description FROM @work@.lines l
                         WHERE l.position = document.position AND l.class = 'stock write-off' ORDER BY l.line
                    LOOP
                        PERFORM @store@.adjust_stock(written_off.sku, written_off.quantity, 'main',
                            CASE WHEN written_off.description ~*
                                 'dam[ae]g|dagam|break|broke|crack|crush|smash|smudge|wet|rust|mould|faulty|thrown?[ -]*a|destroy|unsale'
                                 THEN 'damage' ELSE 'adjustment' END,
                            format('online-retail %s line %s: %s', document.invoice, written_off.line,
                                   written_off.description));
                    END LOOP;
                END IF;
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            -- say which invoice it was
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
            RAISE EXCEPTION USING ERRCODE = state, MESSAGE = format('invoice %s: %s', document.invoice, SQLERRM),
                DETAIL = detail, HINT = hint;
        END;
        reached := least(reached + batch, last_position);
        UPDATE @work@.run SET done = reached;
        COMMIT;
        RAISE NOTICE 'replay-progress % %', reached, last_position;
    END LOOP;
END $procedure$;
$routine$, '@work@', quote_ident(:'work')), '@store@', quote_ident(:'store')) \gexec
COMMENT ON PROCEDURE :"work".replay(integer, integer) IS
'Replays the documents that are left, commits after each batch, and goes on where it stopped when called again';
