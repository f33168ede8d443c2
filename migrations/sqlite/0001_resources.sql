-- What each resource was when it was last fetched or confirmed. All of it can be learnt again.
CREATE TABLE resources (
    key           TEXT PRIMARY KEY, -- the resource's canonical URL
    blob          BLOB NOT NULL,    -- SHA-256, 32 bytes
    size          INTEGER NOT NULL, -- bytes
    last_modified INTEGER,          -- seconds since 1970, as the mirror said; NULL: it did not
    etag          TEXT,             -- as the mirror said
    content_type  TEXT,             -- as the mirror said
    checked_at    INTEGER NOT NULL  -- seconds since 1970: the mirror last vouched for it
) STRICT, WITHOUT ROWID;

CREATE INDEX resources_by_blob ON resources (blob);
