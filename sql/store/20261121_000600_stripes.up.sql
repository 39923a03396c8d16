-- Stock that many want at once, spread over several rows.

CREATE TABLE stock_stripes (
    stock_id   uuid        CONSTRAINT stock_stripes_pkey PRIMARY KEY
                           CONSTRAINT fk_stock_stripes_stock REFERENCES inventory_stock (id) ON DELETE CASCADE,
    stripes    smallint    NOT NULL,
    automatic  boolean     NOT NULL DEFAULT false,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    sampled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sample     bigint[],
    CONSTRAINT chk_stock_stripes_stripes CHECK (stripes > 1)
);
COMMENT ON TABLE stock_stripes IS 'Stock that is spread over several rows of inventory_stock; a note for people and for folding it, the rows themselves are the truth';
COMMENT ON COLUMN stock_stripes.stock_id IS 'Its stripe 0';
COMMENT ON COLUMN stock_stripes.stripes IS 'Over how many rows';
COMMENT ON COLUMN stock_stripes.automatic IS 'Whether buyers waiting for each other were the cause; such stock folds by itself when it has cooled';
COMMENT ON COLUMN stock_stripes.since IS 'Since when';
COMMENT ON COLUMN stock_stripes.sampled_at IS 'When it was last looked at whether it has cooled';
COMMENT ON COLUMN stock_stripes.sample IS 'The versions of its rows then';
