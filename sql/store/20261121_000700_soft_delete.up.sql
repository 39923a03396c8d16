-- Soft delete of the tables that have deleted_at (documents 000, 001, 003 and
-- 004): which deletion took a row, and an index that finds the deleted ones.

ALTER TABLE users ADD COLUMN deletion_id uuid;
COMMENT ON COLUMN users.deletion_id IS 'Which deletion it was: rows that went together come back together';
ALTER TABLE categories ADD COLUMN deletion_id uuid;
COMMENT ON COLUMN categories.deletion_id IS 'Which deletion it was: rows that went together come back together';
ALTER TABLE brands ADD COLUMN deletion_id uuid;
COMMENT ON COLUMN brands.deletion_id IS 'Which deletion it was: rows that went together come back together';
ALTER TABLE products ADD COLUMN deletion_id uuid;
COMMENT ON COLUMN products.deletion_id IS 'Which deletion it was: rows that went together come back together';
ALTER TABLE product_variants ADD COLUMN deletion_id uuid;
COMMENT ON COLUMN product_variants.deletion_id IS 'Which deletion it was: rows that went together come back together';

CREATE INDEX idx_users_deleted_at ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX idx_categories_deleted_at ON categories (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX idx_brands_deleted_at ON brands (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX idx_products_deleted_at ON products (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX idx_product_variants_deleted_at ON product_variants (deleted_at) WHERE deleted_at IS NOT NULL;

-- A SKU stays registered while the row that has it is deleted only in name; it
-- goes, by a trigger, with one that is really gone.  Foreign keys would have rows
-- of skus be refused for a product that is deleted.
ALTER TABLE skus DROP CONSTRAINT fk_skus_product;
ALTER TABLE skus DROP CONSTRAINT fk_skus_variant;
