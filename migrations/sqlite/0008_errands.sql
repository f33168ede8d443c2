-- What is to be fetched before anybody asks: of each package, the newest version.
CREATE TABLE errands (
    turn       INTEGER PRIMARY KEY AUTOINCREMENT, -- the lowest is the next
    package    TEXT NOT NULL UNIQUE,     -- name and architecture
    key        TEXT NOT NULL,            -- the resource's canonical URL
    size       INTEGER NOT NULL,         -- bytes
    has_failed INTEGER NOT NULL,
    added_at   INTEGER NOT NULL          -- seconds since 1970
) STRICT;

-- What that cost on the last day on which anything was fetched. One row.
CREATE TABLE spent (
    since INTEGER NOT NULL, -- seconds since 1970
    bytes INTEGER NOT NULL
) STRICT;

INSERT INTO spent VALUES (0, 0);
