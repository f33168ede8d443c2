-- Bytes that went through since ever, by where from and where to. One row.
CREATE TABLE traffic (
    from_mirrors  INTEGER NOT NULL,
    from_peers    INTEGER NOT NULL, -- other sites
    from_replicas INTEGER NOT NULL,
    from_store    INTEGER NOT NULL, -- to clients
    to_peers      INTEGER NOT NULL,
    to_replicas   INTEGER NOT NULL
) STRICT;

INSERT INTO traffic VALUES (0, 0, 0, 0, 0, 0);
