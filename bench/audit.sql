-- The table of one side of the benchmarks of the audit, and what plain triggers
-- it has.  :side is the side's name, :schema that of its schema.
CREATE SCHEMA :"schema";
SET search_path = :"schema";
CREATE TABLE people (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email       text NOT NULL,
    first_name  text,
    last_name   text,
    phone       text,
    status      text,
    city        text,
    country     text,
    logins      integer,
    points      bigint,
    balance     numeric(12, 2),
    active      boolean,
    preferences jsonb,
    created_at  timestamptz,
    updated_at  timestamptz);

SELECT :'side' LIKE 'plpgsql%' AS plain, :'side' = 'none' AS none \gset
\if :none
CREATE TABLE audit_logs (id integer);
\endif
\if :plain
CREATE TABLE audit_logs (
    id         bigserial,
    table_name text,
    operation  text,
    row_id     uuid,
    user_id    uuid,
    old_row    jsonb,
    new_row    jsonb,
    changed_at timestamptz DEFAULT clock_timestamp());
CREATE INDEX ON audit_logs (row_id, changed_at);
\endif

SELECT :'side' = 'plpgsql_row' AS plpgsql_row, :'side' = 'plpgsql_statement' AS plpgsql_statement \gset
\if :plpgsql_row
CREATE FUNCTION log_row() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO audit_logs (table_name, operation, row_id, user_id, old_row, new_row)
    VALUES (TG_TABLE_NAME, TG_OP, CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END,
            nullif(current_setting('app.current_user_id', true), '')::uuid,
            CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$;
CREATE TRIGGER log_row AFTER INSERT OR UPDATE OR DELETE ON people FOR EACH ROW EXECUTE FUNCTION log_row();
\endif
\if :plpgsql_statement
CREATE FUNCTION log_statement() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit_logs (table_name, operation, row_id, user_id, new_row)
        SELECT TG_TABLE_NAME, TG_OP, n.id, nullif(current_setting('app.current_user_id', true), '')::uuid, to_jsonb(n) FROM new_rows n;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit_logs (table_name, operation, row_id, user_id, old_row)
        SELECT TG_TABLE_NAME, TG_OP, o.id, nullif(current_setting('app.current_user_id', true), '')::uuid, to_jsonb(o) FROM old_rows o;
    ELSE
        INSERT INTO audit_logs (table_name, operation, row_id, user_id, old_row, new_row)
        SELECT TG_TABLE_NAME, TG_OP, n.id, nullif(current_setting('app.current_user_id', true), '')::uuid, to_jsonb(o), to_jsonb(n)
          FROM old_rows o JOIN new_rows n USING (id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_insert AFTER INSERT ON people REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION log_statement();
CREATE TRIGGER log_update AFTER UPDATE ON people REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION log_statement();
CREATE TRIGGER log_delete AFTER DELETE ON people REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_statement();
\endif
