-- What lies on the volume, whether a resource names it or not, and what it is worth.
CREATE TABLE blobs (
    digest     BYTEA PRIMARY KEY, -- SHA-256, 32 bytes
    size       BIGINT NOT NULL, -- bytes
    stored_at  BIGINT NOT NULL, -- seconds since 1970, as are all times here
    used_at    BIGINT NOT NULL, -- last served
    uses       BIGINT NOT NULL, -- how often
    rank       DOUBLE PRECISION NOT NULL, -- the lowest goes first: frequency, recency and size in one
    checked_at BIGINT NOT NULL, -- its bytes were last hashed; 0: not known
    unreferenced_since BIGINT,  -- no list names it, and nobody has used it since; NULL: a list does
    pinned     BOOLEAN NOT NULL DEFAULT false -- found to be pinned when its turn to go had come
);

-- Victims, class by class; then what to scrub.
CREATE INDEX blobs_by_disuse ON blobs (unreferenced_since, digest)
    WHERE unreferenced_since IS NOT NULL AND NOT pinned;
CREATE INDEX blobs_unreferenced_by_rank ON blobs (rank, digest)
    WHERE unreferenced_since IS NOT NULL AND NOT pinned;
CREATE INDEX blobs_referenced_by_rank ON blobs (rank, digest)
    WHERE unreferenced_since IS NULL AND NOT pinned;
CREATE INDEX blobs_pinned ON blobs (digest) WHERE pinned;
CREATE INDEX blobs_by_check ON blobs (checked_at, digest);

-- The sum of them, kept with every change: one row, which is written all the time, so that there is
-- room for its next state beside it.
CREATE TABLE volume (
    blobs BIGINT NOT NULL, -- how many
    bytes BIGINT NOT NULL, -- their bytes
    floor DOUBLE PRECISION NOT NULL -- the highest rank that had to go; what is used now ranks above it
) WITH (fillfactor = 10);

-- Which blobs lists name.
CREATE INDEX expectations_by_digest ON expectations (digest);
CREATE INDEX lists_by_blob ON lists (blob);

-- A suite that nobody asks for any more stops to count.
ALTER TABLE lists ADD COLUMN asked_at BIGINT NOT NULL DEFAULT 0; -- it, or its release file
UPDATE lists SET asked_at = extract(epoch FROM now())::BIGINT;
CREATE INDEX lists_by_asking ON lists (asked_at);

INSERT INTO blobs (digest, size, stored_at, used_at, uses, rank, checked_at, unreferenced_since)
SELECT blob, max(size), min(checked_at), max(checked_at), 1, 1.0, 0,
    CASE WHEN EXISTS (SELECT 1 FROM expectations WHERE digest = resources.blob)
           OR EXISTS (SELECT 1 FROM lists WHERE lists.blob = resources.blob)
         THEN NULL ELSE extract(epoch FROM now())::BIGINT END
FROM resources GROUP BY blob;

INSERT INTO volume SELECT count(*), coalesce(sum(size), 0), 0.0 FROM blobs;
