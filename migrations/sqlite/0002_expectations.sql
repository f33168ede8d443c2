-- What archives' own lists say of other resources.

-- Release, packages and sources files, by their plain name: the list they are, not the file.
CREATE TABLE lists (
    id        INTEGER PRIMARY KEY,
    key       TEXT NOT NULL UNIQUE, -- canonical URL without a compression's ending
    blob      BLOB,                 -- SHA-256 of the file last learnt in full; NULL: none yet
    learnt_at INTEGER NOT NULL      -- seconds since 1970
) STRICT;

CREATE TABLE expectations (
    list   INTEGER NOT NULL REFERENCES lists (id) ON DELETE CASCADE,
    key    TEXT NOT NULL,  -- the resource's canonical URL
    size   INTEGER,        -- bytes; NULL: the list does not tell
    digest BLOB NOT NULL,  -- 20 bytes: SHA-1, 32: SHA-256, 64: SHA-512
    PRIMARY KEY (list, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX expectations_by_key ON expectations (key);
