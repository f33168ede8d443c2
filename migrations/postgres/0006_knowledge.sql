-- How often a list was learnt or forgotten, by whom it may be: who holds things in memory that were
-- checked against the lists has to check them again when this has changed. One row.
CREATE TABLE knowledge (
    version BIGINT NOT NULL
);

INSERT INTO knowledge VALUES (1);
