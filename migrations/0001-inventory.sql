-- The inventory of one host. Maps (config, devices, properties) are JSON objects: they are always read and
-- written whole, and validated against the typed table of keys before they get here.

CREATE TABLE config (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE profiles (
    name        TEXT PRIMARY KEY,
    description TEXT NOT NULL DEFAULT '',
    config      TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(config)),
    devices     TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(devices))
) STRICT, WITHOUT ROWID;

CREATE TABLE storage_pools (
    name        TEXT PRIMARY KEY,
    driver      TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    config      TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(config))
) STRICT, WITHOUT ROWID;

CREATE TABLE networks (
    name        TEXT PRIMARY KEY,
    type        TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    config      TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(config))
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    fingerprint  TEXT PRIMARY KEY,
    filename     TEXT NOT NULL,
    split        INTEGER NOT NULL,          -- 1: metadata and root filesystem are two files
    size         INTEGER NOT NULL,          -- bytes
    type         TEXT NOT NULL,             -- what it was made as: container | virtual-machine
    architecture TEXT NOT NULL,
    public       INTEGER NOT NULL,
    auto_update  INTEGER NOT NULL,
    cached       INTEGER NOT NULL,
    properties   TEXT NOT NULL CHECK (json_valid(properties)),
    profiles     TEXT NOT NULL CHECK (json_valid(profiles)),
    created_at   TEXT NOT NULL,
    expires_at   TEXT NOT NULL,
    uploaded_at  TEXT NOT NULL,
    last_used_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE image_aliases (
    name        TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL REFERENCES images (fingerprint) ON DELETE CASCADE,
    description TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX image_aliases_by_image ON image_aliases (fingerprint);

-- A row is inserted when everything it names is on disk, and deleted before any of that is removed: after a crash,
-- whatever no row names is swept. `power` is the intended state, not the observed one.
CREATE TABLE instances (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT NOT NULL UNIQUE,
    type         TEXT NOT NULL,
    architecture TEXT NOT NULL,
    description  TEXT NOT NULL DEFAULT '',
    ephemeral    INTEGER NOT NULL,
    power        TEXT NOT NULL CHECK (power IN ('stopped', 'running')),
    config       TEXT NOT NULL CHECK (json_valid(config)),
    devices      TEXT NOT NULL CHECK (json_valid(devices)),
    pool         TEXT NOT NULL REFERENCES storage_pools (name),
    volume       TEXT NOT NULL CHECK (json_valid(volume)),  -- the storage module's value
    created_at   TEXT NOT NULL,
    last_used_at TEXT NOT NULL
) STRICT;

CREATE TABLE instance_profiles (
    instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    profile     TEXT NOT NULL REFERENCES profiles (name) ON UPDATE CASCADE,
    PRIMARY KEY (instance_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX instance_profiles_by_profile ON instance_profiles (profile);

CREATE TABLE snapshots (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id  INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    architecture TEXT NOT NULL,
    description  TEXT NOT NULL DEFAULT '',
    ephemeral    INTEGER NOT NULL,
    config       TEXT NOT NULL CHECK (json_valid(config)),
    devices      TEXT NOT NULL CHECK (json_valid(devices)),
    profiles     TEXT NOT NULL CHECK (json_valid(profiles)),
    volume       TEXT NOT NULL CHECK (json_valid(volume)),
    created_at   TEXT NOT NULL,
    last_used_at TEXT NOT NULL,
    expires_at   TEXT NOT NULL,                     -- '' where it never expires
    UNIQUE (instance_id, name)
) STRICT;

CREATE TABLE warnings (
    uuid          TEXT PRIMARY KEY,
    type          TEXT NOT NULL,
    severity      TEXT NOT NULL,            -- low | moderate | high
    status        TEXT NOT NULL,            -- new | acknowledged | resolved
    entity_url    TEXT NOT NULL,            -- '' for the server itself
    count         INTEGER NOT NULL,
    first_seen_at TEXT NOT NULL,
    last_seen_at  TEXT NOT NULL,
    last_message  TEXT NOT NULL,
    UNIQUE (type, entity_url)
) STRICT, WITHOUT ROWID;
