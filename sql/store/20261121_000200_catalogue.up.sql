-- The catalogue: categories, brands, products and their variants
-- (documents 000, 001 and 003).

CREATE TABLE categories (
    id          uuid         DEFAULT gen_random_uuid() CONSTRAINT categories_pkey PRIMARY KEY,
    name        varchar(100) NOT NULL,
    slug        varchar(100) NOT NULL CONSTRAINT uk_categories_slug UNIQUE,
    description text,
    parent_id   uuid         CONSTRAINT fk_categories_parent REFERENCES categories (id),
    image_url   varchar(500),
    metadata    jsonb        NOT NULL DEFAULT '{}',
    sort_order  integer      NOT NULL DEFAULT 0,
    is_active   boolean      NOT NULL DEFAULT true,
    created_at  timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at  timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_at  timestamptz,
    CONSTRAINT chk_categories_no_self_parent CHECK (id <> parent_id)
);
CREATE INDEX idx_categories_parent ON categories (parent_id);
CREATE INDEX idx_categories_active ON categories (is_active) WHERE deleted_at IS NULL;

COMMENT ON TABLE categories IS 'Categories of products, a tree';
COMMENT ON COLUMN categories.id IS 'Primary key';
COMMENT ON COLUMN categories.name IS 'Name';
COMMENT ON COLUMN categories.slug IS 'Name in a URL, unique';
COMMENT ON COLUMN categories.description IS 'Description';
COMMENT ON COLUMN categories.parent_id IS 'The category above; NULL at the top';
COMMENT ON COLUMN categories.image_url IS 'Picture';
COMMENT ON COLUMN categories.metadata IS 'Whatever else the application keeps';
COMMENT ON COLUMN categories.sort_order IS 'Position among its siblings';
COMMENT ON COLUMN categories.is_active IS 'Whether it is shown';
COMMENT ON COLUMN categories.created_at IS 'When the row was made';
COMMENT ON COLUMN categories.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN categories.deleted_at IS 'When the row was deleted; NULL while it lives';

CREATE TABLE brands (
    id          uuid         DEFAULT gen_random_uuid() CONSTRAINT brands_pkey PRIMARY KEY,
    name        varchar(100) NOT NULL,
    slug        varchar(100) NOT NULL CONSTRAINT uk_brands_slug UNIQUE,
    description text,
    logo_url    varchar(500),
    website_url varchar(500),
    metadata    jsonb        NOT NULL DEFAULT '{}',
    is_active   boolean      NOT NULL DEFAULT true,
    created_at  timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at  timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_at  timestamptz
);
COMMENT ON TABLE brands IS 'Brands and manufacturers';
COMMENT ON COLUMN brands.id IS 'Primary key';
COMMENT ON COLUMN brands.name IS 'Name';
COMMENT ON COLUMN brands.slug IS 'Name in a URL, unique';
COMMENT ON COLUMN brands.description IS 'Description';
COMMENT ON COLUMN brands.logo_url IS 'Logo';
COMMENT ON COLUMN brands.website_url IS 'The brand''s own site';
COMMENT ON COLUMN brands.metadata IS 'Whatever else the application keeps';
COMMENT ON COLUMN brands.is_active IS 'Whether it is shown';
COMMENT ON COLUMN brands.created_at IS 'When the row was made';
COMMENT ON COLUMN brands.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN brands.deleted_at IS 'When the row was deleted; NULL while it lives';

CREATE TABLE products (
    id                  uuid          DEFAULT gen_random_uuid() CONSTRAINT products_pkey PRIMARY KEY,
    sku                 varchar(100)  NOT NULL CONSTRAINT uk_products_sku UNIQUE,
    name                varchar(255)  NOT NULL,
    slug                varchar(255)  NOT NULL CONSTRAINT uk_products_slug UNIQUE,
    description         text,
    short_description   varchar(500),
    category_id         uuid          CONSTRAINT fk_products_category REFERENCES categories (id) ON DELETE SET NULL,
    brand_id            uuid          CONSTRAINT fk_products_brand REFERENCES brands (id),
    price               numeric(10,2) NOT NULL,
    compare_at_price    numeric(10,2),
    cost                numeric(10,2),
    barcode             varchar(100),
    low_stock_threshold integer       NOT NULL DEFAULT 10,
    weight              numeric(10,3),
    dimensions          jsonb         NOT NULL DEFAULT '{"length": null, "width": null, "height": null}',
    images              jsonb         NOT NULL DEFAULT '[]',
    tags                text[]        NOT NULL DEFAULT '{}',
    attributes          jsonb         NOT NULL DEFAULT '{}',
    metadata            jsonb         NOT NULL DEFAULT '{}',
    is_active           boolean       NOT NULL DEFAULT true,
    is_featured         boolean       NOT NULL DEFAULT false,
    is_published        boolean       NOT NULL DEFAULT false,
    published_at        timestamptz,
    created_by          uuid          CONSTRAINT fk_products_created_by REFERENCES users (id),
    updated_by          uuid          CONSTRAINT fk_products_updated_by REFERENCES users (id),
    created_at          timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at          timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_at          timestamptz,
    CONSTRAINT chk_products_price CHECK (price >= 0),
    CONSTRAINT chk_products_cost CHECK (cost >= 0),
    CONSTRAINT chk_products_compare_at_price CHECK (compare_at_price IS NULL OR compare_at_price > price)
);
CREATE INDEX idx_products_category ON products (category_id, is_published);
CREATE INDEX idx_products_brand ON products (brand_id);
CREATE INDEX idx_products_created_by ON products (created_by) WHERE created_by IS NOT NULL;
CREATE INDEX idx_products_updated_by ON products (updated_by) WHERE updated_by IS NOT NULL;
CREATE INDEX idx_products_featured ON products (is_featured) WHERE deleted_at IS NULL AND is_active AND is_featured;
CREATE INDEX idx_products_price ON products (price) WHERE deleted_at IS NULL AND is_active;
CREATE INDEX idx_products_created_at ON products (created_at DESC) WHERE deleted_at IS NULL;
CREATE INDEX idx_products_tags ON products USING gin (tags);
CREATE INDEX idx_products_attributes ON products USING gin (attributes);
CREATE INDEX idx_products_metadata ON products USING gin (metadata);

COMMENT ON TABLE products IS 'What the shop sells; a product that has variants is sold as one of them';
COMMENT ON COLUMN products.id IS 'Primary key';
COMMENT ON COLUMN products.sku IS 'Stock keeping unit, unique across products and variants; upper and lower case differ';
COMMENT ON COLUMN products.name IS 'Name';
COMMENT ON COLUMN products.slug IS 'Name in a URL, unique';
COMMENT ON COLUMN products.description IS 'Full description';
COMMENT ON COLUMN products.short_description IS 'Description for a listing';
COMMENT ON COLUMN products.category_id IS 'Category';
COMMENT ON COLUMN products.brand_id IS 'Brand';
COMMENT ON COLUMN products.price IS 'Selling price of one unit';
COMMENT ON COLUMN products.compare_at_price IS 'Former price, shown struck through; higher than the price';
COMMENT ON COLUMN products.cost IS 'What one unit costs the shop';
COMMENT ON COLUMN products.barcode IS 'EAN, UPC or ISBN';
COMMENT ON COLUMN products.low_stock_threshold IS 'Units below which stock counts as low';
COMMENT ON COLUMN products.weight IS 'Weight in kilograms';
COMMENT ON COLUMN products.dimensions IS 'Length, width and height in centimetres';
COMMENT ON COLUMN products.images IS 'Pictures, an array';
COMMENT ON COLUMN products.tags IS 'Tags';
COMMENT ON COLUMN products.attributes IS 'Attributes by name: colour, size, material';
COMMENT ON COLUMN products.metadata IS 'Whatever else the application keeps';
COMMENT ON COLUMN products.is_active IS 'Whether it is sold at all';
COMMENT ON COLUMN products.is_featured IS 'Whether it is shown first';
COMMENT ON COLUMN products.is_published IS 'Whether customers can see and order it';
COMMENT ON COLUMN products.published_at IS 'When it was first published';
COMMENT ON COLUMN products.created_by IS 'Who made the row';
COMMENT ON COLUMN products.updated_by IS 'Who changed the row last';
COMMENT ON COLUMN products.created_at IS 'When the row was made';
COMMENT ON COLUMN products.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN products.deleted_at IS 'When the row was deleted; NULL while it lives';

CREATE TABLE product_variants (
    id         uuid          DEFAULT gen_random_uuid() CONSTRAINT product_variants_pkey PRIMARY KEY,
    product_id uuid          NOT NULL CONSTRAINT fk_product_variants_product REFERENCES products (id) ON DELETE CASCADE,
    sku        varchar(100)  NOT NULL CONSTRAINT uk_product_variants_sku UNIQUE,
    name       varchar(255)  NOT NULL,
    price      numeric(10,2),
    cost       numeric(10,2),
    barcode    varchar(100),
    weight     numeric(10,3),
    attributes jsonb         NOT NULL DEFAULT '{}',
    images     jsonb         NOT NULL DEFAULT '[]',
    sort_order integer       NOT NULL DEFAULT 0,
    is_active  boolean       NOT NULL DEFAULT true,
    created_at timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_at timestamptz,
    CONSTRAINT uk_product_variants_product_id UNIQUE (product_id, id),
    CONSTRAINT chk_product_variants_price CHECK (price >= 0),
    CONSTRAINT chk_product_variants_cost CHECK (cost >= 0)
);
COMMENT ON TABLE product_variants IS 'The forms a product is sold in: sizes, colours; each has its own stock';
COMMENT ON COLUMN product_variants.id IS 'Primary key';
COMMENT ON COLUMN product_variants.product_id IS 'The product it is a variant of';
COMMENT ON COLUMN product_variants.sku IS 'Stock keeping unit, unique across products and variants';
COMMENT ON COLUMN product_variants.name IS 'Name of the variant';
COMMENT ON COLUMN product_variants.price IS 'Selling price of one unit; NULL: the product''s';
COMMENT ON COLUMN product_variants.cost IS 'What one unit costs the shop; NULL: the product''s';
COMMENT ON COLUMN product_variants.barcode IS 'EAN, UPC or ISBN';
COMMENT ON COLUMN product_variants.weight IS 'Weight in kilograms; NULL: the product''s';
COMMENT ON COLUMN product_variants.attributes IS 'What sets it apart from its siblings';
COMMENT ON COLUMN product_variants.images IS 'Pictures, an array';
COMMENT ON COLUMN product_variants.sort_order IS 'Position among its siblings';
COMMENT ON COLUMN product_variants.is_active IS 'Whether it is sold at all';
COMMENT ON COLUMN product_variants.created_at IS 'When the row was made';
COMMENT ON COLUMN product_variants.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN product_variants.deleted_at IS 'When the row was deleted; NULL while it lives';

CREATE TABLE skus (
    sku        varchar(100) CONSTRAINT skus_pkey PRIMARY KEY,
    product_id uuid         NOT NULL CONSTRAINT fk_skus_product REFERENCES products (id) ON DELETE CASCADE,
    variant_id uuid         CONSTRAINT fk_skus_variant REFERENCES product_variants (id) ON DELETE CASCADE
);
CREATE INDEX idx_skus_product ON skus (product_id);
CREATE INDEX idx_skus_variant ON skus (variant_id) WHERE variant_id IS NOT NULL;

COMMENT ON TABLE skus IS 'Every SKU of products and variants: what makes them unique across both. Kept by triggers; never written by hand';
COMMENT ON COLUMN skus.sku IS 'The SKU';
COMMENT ON COLUMN skus.product_id IS 'Its product';
COMMENT ON COLUMN skus.variant_id IS 'Its variant; NULL where the SKU is the product''s own';
