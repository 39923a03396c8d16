\echo Use "CREATE EXTENSION techally" to load this file. \quit

COMMENT ON SCHEMA techally IS 'The engine of techally; the stores live in schemas of their own';
REVOKE ALL ON SCHEMA techally FROM PUBLIC;
GRANT USAGE ON SCHEMA techally TO PUBLIC;
