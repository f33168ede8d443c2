-- What each resource was when it was last fetched or confirmed. All of it can be learnt again.
-- Keys are compared as bytes, as everywhere in the program.
CREATE TABLE resources (
    key           TEXT COLLATE "C" PRIMARY KEY, -- the resource's canonical URL
    blob          BYTEA NOT NULL,  -- SHA-256, 32 bytes
    size          BIGINT NOT NULL, -- bytes
    last_modified BIGINT,          -- seconds since 1970, as the mirror said; NULL: it did not
    etag          TEXT,            -- as the mirror said
    content_type  TEXT,            -- as the mirror said
    checked_at    BIGINT NOT NULL  -- seconds since 1970: the mirror last vouched for it
);

CREATE INDEX resources_by_blob ON resources (blob);
