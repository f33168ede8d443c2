-- Replicas may share a volume, or have one each: what lies where, and who gives it to its fellows.
-- Programs that know of one volume only can not go on beside this step: no such version was released.

-- A volume, told by the identity that is written on it, and the sum of its blobs, kept with every
-- change: rows that are written all the time, so that there is room for their next state beside them.
CREATE TABLE volumes (
    id       INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    identity TEXT COLLATE "C" UNIQUE, -- NULL: that of all blobs so far, until its first process comes
    blobs    BIGINT NOT NULL DEFAULT 0, -- how many
    bytes    BIGINT NOT NULL DEFAULT 0, -- their bytes
    floor    DOUBLE PRECISION NOT NULL DEFAULT 0, -- the highest rank that had to go; what is used now ranks above it
    seen_at  TIMESTAMPTZ NOT NULL DEFAULT now() -- a process used it, give or take an hour
) WITH (fillfactor = 10);

INSERT INTO volumes (blobs, bytes, floor) SELECT blobs, bytes, floor FROM volume;
DROP TABLE volume;

-- No foreign keys to it: each new blob would lock a row that all write.
ALTER TABLE blobs ADD COLUMN volume INTEGER NOT NULL DEFAULT 1;
ALTER TABLE blobs ALTER COLUMN volume DROP DEFAULT;
ALTER TABLE blobs DROP CONSTRAINT blobs_pkey, ADD PRIMARY KEY (digest, volume);

DROP INDEX blobs_by_disuse, blobs_unreferenced_by_rank, blobs_referenced_by_rank, blobs_pinned,
    blobs_by_check;
CREATE INDEX blobs_by_disuse ON blobs (volume, unreferenced_since, digest)
    WHERE unreferenced_since IS NOT NULL AND NOT pinned;
CREATE INDEX blobs_unreferenced_by_rank ON blobs (volume, rank, digest)
    WHERE unreferenced_since IS NOT NULL AND NOT pinned;
CREATE INDEX blobs_referenced_by_rank ON blobs (volume, rank, digest)
    WHERE unreferenced_since IS NULL AND NOT pinned;
CREATE INDEX blobs_pinned ON blobs (volume, digest) WHERE pinned;
CREATE INDEX blobs_by_check ON blobs (volume, checked_at, digest);

-- Who has another volume sees other files, as a rule.
ALTER TABLE files ADD COLUMN volume INTEGER NOT NULL DEFAULT 1;
ALTER TABLE files ALTER COLUMN volume DROP DEFAULT;
ALTER TABLE files DROP CONSTRAINT files_pkey, ADD PRIMARY KEY (volume, path);

-- Replicas that give blobs of their volume to others. It is known again in seconds what a crash of the
-- server loses of it.
CREATE UNLOGGED TABLE fellows (
    url     TEXT COLLATE "C" PRIMARY KEY, -- where they reach it
    process TEXT NOT NULL,                -- which process
    volume  INTEGER NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL          -- it said so last
) WITH (fillfactor = 50);

-- By which fellows know each other: made by the first of them. One row.
CREATE TABLE site (
    is_this BOOLEAN PRIMARY KEY CHECK (is_this),
    secret  BYTEA NOT NULL
);
