-- What lies on the volume, whether a resource names it or not, and what it is worth.
CREATE TABLE blobs (
    digest     BLOB PRIMARY KEY, -- SHA-256, 32 bytes
    size       INTEGER NOT NULL, -- bytes
    stored_at  INTEGER NOT NULL, -- seconds since 1970, as are all times here
    used_at    INTEGER NOT NULL, -- last served
    uses       INTEGER NOT NULL, -- how often
    rank       REAL NOT NULL,    -- the lowest goes first: frequency, recency and size in one
    checked_at INTEGER NOT NULL, -- its bytes were last hashed; 0: not known
    unreferenced_since INTEGER,  -- no list names it, and nobody has used it since; NULL: a list does
    pinned     INTEGER NOT NULL DEFAULT 0 -- 1: found to be pinned when its turn to go had come
) STRICT, WITHOUT ROWID;

-- Victims, class by class; then what to scrub.
CREATE INDEX blobs_by_disuse ON blobs (unreferenced_since, digest)
    WHERE unreferenced_since IS NOT NULL AND pinned = 0;
CREATE INDEX blobs_unreferenced_by_rank ON blobs (rank, digest)
    WHERE unreferenced_since IS NOT NULL AND pinned = 0;
CREATE INDEX blobs_referenced_by_rank ON blobs (rank, digest)
    WHERE unreferenced_since IS NULL AND pinned = 0;
CREATE INDEX blobs_pinned ON blobs (digest) WHERE pinned = 1;
CREATE INDEX blobs_by_check ON blobs (checked_at, digest);

-- The sum of them, kept with every change: one row.
CREATE TABLE volume (
    blobs INTEGER NOT NULL, -- how many
    bytes INTEGER NOT NULL, -- their bytes
    floor REAL NOT NULL     -- the highest rank that had to go; what is used now ranks above it
) STRICT;

-- Which blobs lists name.
CREATE INDEX expectations_by_digest ON expectations (digest);
CREATE INDEX lists_by_blob ON lists (blob);

-- A suite that nobody asks for any more stops to count.
ALTER TABLE lists ADD COLUMN asked_at INTEGER NOT NULL DEFAULT 0; -- it, or its release file
UPDATE lists SET asked_at = CAST(strftime('%s', 'now') AS INTEGER);
CREATE INDEX lists_by_asking ON lists (asked_at);

INSERT INTO blobs (digest, size, stored_at, used_at, uses, rank, checked_at, unreferenced_since)
SELECT blob, max(size), min(checked_at), max(checked_at), 1, 1.0, 0,
    CASE WHEN EXISTS (SELECT 1 FROM expectations WHERE digest = resources.blob)
           OR EXISTS (SELECT 1 FROM lists WHERE lists.blob = resources.blob)
         THEN NULL ELSE CAST(strftime('%s', 'now') AS INTEGER) END
FROM resources GROUP BY blob;

INSERT INTO volume SELECT count(*), coalesce(sum(size), 0), 0.0 FROM blobs;
