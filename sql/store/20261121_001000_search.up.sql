-- Search: what the store's products are found by.  Kept by triggers and folded
-- by maintenance; all of it can be made again from the products.

ALTER TABLE products ADD COLUMN language text;
COMMENT ON COLUMN products.language IS 'Text search configuration of its texts; NULL: the store''s';

INSERT INTO store_settings (name, value) VALUES ('search_configuration', '"english"') ON CONFLICT DO NOTHING;

CREATE TABLE search_segments (
    segment    integer     GENERATED ALWAYS AS IDENTITY CONSTRAINT search_segments_pkey PRIMARY KEY,
    documents  integer     NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    refreshed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    popular    bytea
);
ALTER TABLE search_segments ALTER COLUMN popular SET STORAGE EXTERNAL;
COMMENT ON TABLE search_segments IS 'Parts of the search index: sets of products, each written once';
COMMENT ON COLUMN search_segments.segment IS 'Primary key';
COMMENT ON COLUMN search_segments.documents IS 'Products that it was made of';
COMMENT ON COLUMN search_segments.created_at IS 'When it was made';
COMMENT ON COLUMN search_segments.refreshed_at IS 'When its rows of search_documents were last changed: what sessions remember of them is as old';
COMMENT ON COLUMN search_segments.popular IS 'Its best-selling products by their numbers, with units sold, packed; NULL: none was sold';
COMMENT ON SEQUENCE search_segments_segment_seq IS 'Keys of search_segments';

CREATE TABLE search_postings (
    term       text     COLLATE "C" NOT NULL,
    segment    integer  NOT NULL,
    last       integer  NOT NULL,
    total      integer  NOT NULL,
    max_impact smallint NOT NULL,
    data       bytea    NOT NULL,
    CONSTRAINT search_postings_pkey PRIMARY KEY (term, segment, last)
);
ALTER TABLE search_postings ALTER COLUMN data SET STORAGE PLAIN, ALTER COLUMN term SET STORAGE PLAIN;
COMMENT ON TABLE search_postings IS 'In which products of a segment a term stands, in blocks';
COMMENT ON COLUMN search_postings.term IS 'The term; with a colon, a property: b: brand, c: category, t: tag, a: attribute';
COMMENT ON COLUMN search_postings.segment IS 'The segment';
COMMENT ON COLUMN search_postings.last IS 'Number of the last product in the block';
COMMENT ON COLUMN search_postings.total IS 'Products of the segment that have the term';
COMMENT ON COLUMN search_postings.max_impact IS 'Greatest impact in the block';
COMMENT ON COLUMN search_postings.data IS 'Numbers of products and impacts, packed';

CREATE TABLE search_documents (
    segment  integer NOT NULL,
    chunk    integer NOT NULL,
    first_id uuid    NOT NULL,
    live     bigint  NOT NULL,
    data     bytea   NOT NULL,
    CONSTRAINT search_documents_pkey PRIMARY KEY (segment, chunk)
);
ALTER TABLE search_documents ALTER COLUMN data SET STORAGE PLAIN;
COMMENT ON TABLE search_documents IS 'The products of a segment by their numbers, sixty a row, in the order of their keys';
COMMENT ON COLUMN search_documents.segment IS 'The segment';
COMMENT ON COLUMN search_documents.chunk IS 'Number of the row: that of its first product, divided by sixty';
COMMENT ON COLUMN search_documents.first_id IS 'Key of its first product';
COMMENT ON COLUMN search_documents.live IS 'A bit for each product that the segment still speaks for';
COMMENT ON COLUMN search_documents.data IS 'Keys, prices, times of creation and popularity, packed';

CREATE TABLE search_recent (
    product_id uuid    CONSTRAINT search_recent_pkey PRIMARY KEY,
    version    bigint  GENERATED ALWAYS AS IDENTITY,
    price      bigint  NOT NULL,
    created    integer NOT NULL,
    popularity integer NOT NULL,
    terms      bytea
);
ALTER TABLE search_recent ALTER COLUMN terms SET STORAGE EXTERNAL;
COMMENT ON TABLE search_recent IS 'Products that were changed since the last fold; what is here goes before the segments';
COMMENT ON COLUMN search_recent.product_id IS 'The product';
COMMENT ON COLUMN search_recent.version IS 'A new number with each change';
COMMENT ON COLUMN search_recent.price IS 'Price in hundredths';
COMMENT ON COLUMN search_recent.created IS 'When the product was made, in seconds since 2000';
COMMENT ON COLUMN search_recent.popularity IS 'Units sold, as of the last fold';
COMMENT ON COLUMN search_recent.terms IS 'Its terms with their impacts, packed; NULL: it is not to be found';
COMMENT ON SEQUENCE search_recent_version_seq IS 'Numbers of changes in search_recent';

CREATE TABLE search_prices (
    product_id uuid   CONSTRAINT search_prices_pkey PRIMARY KEY,
    version    bigint GENERATED ALWAYS AS IDENTITY,
    price      bigint NOT NULL
);
COMMENT ON TABLE search_prices IS 'Prices that were changed since the last fold; what is here goes before the segments';
COMMENT ON COLUMN search_prices.product_id IS 'The product';
COMMENT ON COLUMN search_prices.version IS 'A new number with each change';
COMMENT ON COLUMN search_prices.price IS 'Price in hundredths';
COMMENT ON SEQUENCE search_prices_version_seq IS 'Numbers of changes in search_prices';

CREATE TABLE search_popularity (
    id   uuid   CONSTRAINT search_popularity_pkey PRIMARY KEY,
    sold bigint NOT NULL
);
COMMENT ON TABLE search_popularity IS 'How popular brands and categories are, as of the last fold';
COMMENT ON COLUMN search_popularity.id IS 'The brand or category';
COMMENT ON COLUMN search_popularity.sold IS 'Units sold of its products, those of categories below it included';

CREATE TABLE search_synonyms (
    term    text    NOT NULL,
    synonym text    NOT NULL,
    one_way boolean NOT NULL DEFAULT false,
    CONSTRAINT search_synonyms_pkey PRIMARY KEY (term, synonym),
    CONSTRAINT chk_search_synonyms_words CHECK (term <> '' AND synonym <> '')
);
COMMENT ON TABLE search_synonyms IS 'Words that mean the same to a shopper; kept by the shop, effective at once';
COMMENT ON COLUMN search_synonyms.term IS 'What is typed: a word, or two';
COMMENT ON COLUMN search_synonyms.synonym IS 'What it stands for';
COMMENT ON COLUMN search_synonyms.one_way IS 'Whether the term is replaced by the synonym, rather than each standing for the other';

CREATE INDEX idx_brands_lower_name ON brands (lower(name) COLLATE "C");
CREATE INDEX idx_categories_lower_name ON categories (lower(name) COLLATE "C");
