-- Bytes that went through since ever, at all replicas, by where from and where to. One row.
CREATE TABLE traffic (
    from_mirrors  BIGINT NOT NULL,
    from_peers    BIGINT NOT NULL, -- other sites
    from_replicas BIGINT NOT NULL,
    from_store    BIGINT NOT NULL, -- to clients
    to_peers      BIGINT NOT NULL,
    to_replicas   BIGINT NOT NULL
);

INSERT INTO traffic VALUES (0, 0, 0, 0, 0, 0);
