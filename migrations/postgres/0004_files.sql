-- Files that lie elsewhere than on the volume, as they were when they were hashed: those of shared
-- folders, and those that were imported, so that they need not be hashed again.
CREATE TABLE files (
    path     BYTEA PRIMARY KEY, -- absolute; as bytes, since names of files are no text
    size     BIGINT NOT NULL, -- bytes
    modified BIGINT NOT NULL, -- nanoseconds since 1970: its content
    changed  BIGINT NOT NULL, -- nanoseconds since 1970: it, in whatever way
    inode    BIGINT NOT NULL,
    digest   BYTEA NOT NULL   -- SHA-256, 32 bytes
);

CREATE INDEX files_by_digest ON files (digest);
