-- The store's settings and its users (documents 000, 001 and 003).

CREATE TABLE store_settings (
    name  text  CONSTRAINT store_settings_pkey PRIMARY KEY,
    value jsonb NOT NULL
);
COMMENT ON TABLE store_settings IS 'Settings of this store, one a row';
COMMENT ON COLUMN store_settings.name IS 'Name of the setting';
COMMENT ON COLUMN store_settings.value IS 'Value of the setting';

INSERT INTO store_settings (name, value) VALUES ('machine', to_jsonb(@machine@::text));

CREATE TABLE users (
    id                       uuid         DEFAULT gen_random_uuid() CONSTRAINT users_pkey PRIMARY KEY,
    email                    varchar(255) NOT NULL CONSTRAINT uk_users_email UNIQUE,
    username                 varchar(50)  CONSTRAINT uk_users_username UNIQUE,
    email_verified           boolean      NOT NULL DEFAULT false,
    email_verification_token varchar(255),
    password_hash            varchar(255) NOT NULL,
    password_reset_token     varchar(255),
    password_reset_expires   timestamptz,
    first_name               varchar(100) NOT NULL,
    last_name                varchar(100) NOT NULL,
    phone_number             varchar(20),
    date_of_birth            date,
    gender                   varchar(20),
    avatar_url               text,
    status                   varchar(50)  NOT NULL DEFAULT 'active',
    is_active                boolean      GENERATED ALWAYS AS (status = 'active') STORED,
    last_login_at            timestamptz,
    login_count              integer      NOT NULL DEFAULT 0,
    failed_login_attempts    integer      NOT NULL DEFAULT 0,
    locked_until             timestamptz,
    mfa_enabled              boolean      NOT NULL DEFAULT false,
    mfa_secret               varchar(255),
    metadata                 jsonb        NOT NULL DEFAULT '{}',
    created_at               timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at               timestamptz  NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_at               timestamptz,
    CONSTRAINT chk_users_status CHECK (status IN ('active', 'inactive', 'suspended', 'deleted')),
    CONSTRAINT chk_users_email_format CHECK (email ~* '^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$')
);
CREATE INDEX idx_users_lower_email ON users (lower(email));
CREATE INDEX idx_users_status ON users (status) WHERE deleted_at IS NULL;
CREATE INDEX idx_users_created_at ON users (created_at DESC);
CREATE INDEX idx_users_metadata ON users USING gin (metadata);

COMMENT ON TABLE users IS 'People with an account: customers and staff';
COMMENT ON COLUMN users.id IS 'Primary key';
COMMENT ON COLUMN users.email IS 'E-mail address, unique in the store';
COMMENT ON COLUMN users.username IS 'Login name, unique, optional';
COMMENT ON COLUMN users.email_verified IS 'Whether the address has been confirmed';
COMMENT ON COLUMN users.email_verification_token IS 'Token sent to confirm the address';
COMMENT ON COLUMN users.password_hash IS 'Hash of the password, made by the application';
COMMENT ON COLUMN users.password_reset_token IS 'Token sent to reset the password';
COMMENT ON COLUMN users.password_reset_expires IS 'When the reset token ends';
COMMENT ON COLUMN users.first_name IS 'Given name';
COMMENT ON COLUMN users.last_name IS 'Family name';
COMMENT ON COLUMN users.phone_number IS 'Telephone number';
COMMENT ON COLUMN users.date_of_birth IS 'Date of birth';
COMMENT ON COLUMN users.gender IS 'Gender, free text';
COMMENT ON COLUMN users.avatar_url IS 'Picture';
COMMENT ON COLUMN users.status IS 'active, inactive, suspended or deleted';
COMMENT ON COLUMN users.is_active IS 'Derived: the status is active';
COMMENT ON COLUMN users.last_login_at IS 'Last successful login';
COMMENT ON COLUMN users.login_count IS 'Successful logins so far';
COMMENT ON COLUMN users.failed_login_attempts IS 'Failed logins since the last successful one';
COMMENT ON COLUMN users.locked_until IS 'No login before this time';
COMMENT ON COLUMN users.mfa_enabled IS 'Whether a second factor is asked for';
COMMENT ON COLUMN users.mfa_secret IS 'Secret of the second factor';
COMMENT ON COLUMN users.metadata IS 'Whatever else the application keeps';
COMMENT ON COLUMN users.created_at IS 'When the row was made';
COMMENT ON COLUMN users.updated_at IS 'When the row was last changed';
COMMENT ON COLUMN users.deleted_at IS 'When the row was deleted; NULL while it lives';
