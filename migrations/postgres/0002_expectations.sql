-- What archives' own lists say of other resources.

-- Release, packages and sources files, by their plain name: the list they are, not the file.
CREATE TABLE lists (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key       TEXT COLLATE "C" NOT NULL UNIQUE, -- canonical URL without a compression's ending
    blob      BYTEA,          -- SHA-256 of the file last learnt in full; NULL: none yet
    learnt_at BIGINT NOT NULL -- seconds since 1970
);

CREATE TABLE expectations (
    list   BIGINT NOT NULL REFERENCES lists (id) ON DELETE CASCADE,
    key    TEXT COLLATE "C" NOT NULL, -- the resource's canonical URL
    size   BIGINT,         -- bytes; NULL: the list does not tell
    digest BYTEA NOT NULL, -- 20 bytes: SHA-1, 32: SHA-256, 64: SHA-512
    PRIMARY KEY (list, key)
);

CREATE INDEX expectations_by_key ON expectations (key);
