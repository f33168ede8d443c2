-- What is to be fetched before anybody asks: of each package, the newest version.
CREATE TABLE errands (
    package    TEXT COLLATE "C" PRIMARY KEY, -- name and architecture
    key        TEXT COLLATE "C" NOT NULL,    -- the resource's canonical URL
    size       BIGINT NOT NULL,              -- bytes
    turn       BIGINT GENERATED ALWAYS AS IDENTITY, -- the lowest is the next
    has_failed BOOLEAN NOT NULL,
    added_at   BIGINT NOT NULL               -- seconds since 1970
);

CREATE INDEX errands_by_turn ON errands (turn);

-- What that cost on the last day on which anything was fetched. One row.
CREATE TABLE spent (
    since BIGINT NOT NULL, -- seconds since 1970
    bytes BIGINT NOT NULL
);

INSERT INTO spent VALUES (0, 0);
