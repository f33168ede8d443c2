-- Files that lie elsewhere than on the volume, as they were when they were hashed: those of shared
-- folders, and those that were imported, so that they need not be hashed again.
CREATE TABLE files (
    path     BLOB PRIMARY KEY, -- absolute; as bytes, since names of files are no text
    size     INTEGER NOT NULL, -- bytes
    modified INTEGER NOT NULL, -- nanoseconds since 1970: its content
    changed  INTEGER NOT NULL, -- nanoseconds since 1970: it, in whatever way
    inode    INTEGER NOT NULL,
    digest   BLOB NOT NULL     -- SHA-256, 32 bytes
) STRICT, WITHOUT ROWID;

CREATE INDEX files_by_digest ON files (digest);
