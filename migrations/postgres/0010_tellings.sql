-- What other sites may be told of: the blobs that a list names, on whatever volume. Which of them came or
-- went is noted here, so that nobody has to look through all of them to see what is new. Who misses a
-- change, as after a crash of the server, finds it when it looks through all.
CREATE UNLOGGED TABLE changes (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    by_transaction BIGINT NOT NULL, -- those before the oldest one under way are all to be seen
    digest         BYTEA NOT NULL   -- SHA-256, 32 bytes: look what has become of it
);

CREATE INDEX changes_by_transaction ON changes (by_transaction);

-- Of old ones, each new one takes one away: an own one, so that nobody waits for anybody.
CREATE FUNCTION note_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    noted BIGINT;
BEGIN
    INSERT INTO changes (by_transaction, digest)
    VALUES (txid_current(), coalesce(NEW.digest, OLD.digest))
    RETURNING id INTO noted;
    DELETE FROM changes WHERE id = noted - 100000;
    RETURN NULL;
END
$$;

CREATE TRIGGER blob_came AFTER INSERT ON blobs
    FOR EACH ROW WHEN (NEW.unreferenced_since IS NULL) EXECUTE FUNCTION note_change();
CREATE TRIGGER blob_changed AFTER UPDATE OF unreferenced_since ON blobs
    FOR EACH ROW WHEN ((OLD.unreferenced_since IS NULL) <> (NEW.unreferenced_since IS NULL))
    EXECUTE FUNCTION note_change();
CREATE TRIGGER blob_went AFTER DELETE ON blobs
    FOR EACH ROW WHEN (OLD.unreferenced_since IS NULL) EXECUTE FUNCTION note_change();

-- The have-filter that the site gives to others: as it was built last, and how it changed before and since.
CREATE TABLE filter (
    is_this    BOOLEAN PRIMARY KEY CHECK (is_this), -- one row
    generation BIGINT NOT NULL, -- with all changes since
    whole      BYTEA NOT NULL   -- as it was built
);

CREATE TABLE filter_deltas (
    generation BIGINT PRIMARY KEY, -- to which it leads
    delta      BYTEA NOT NULL
);
