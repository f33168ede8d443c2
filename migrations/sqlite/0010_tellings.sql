-- What other sites may be told of: the blobs that a list names. Which of them came or went is noted here,
-- so that nobody has to look through all of them to see what is new.
CREATE TABLE changes (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL -- SHA-256, 32 bytes: look what has become of it
) STRICT;

CREATE TRIGGER blob_came AFTER INSERT ON blobs WHEN NEW.unreferenced_since IS NULL
BEGIN
    INSERT INTO changes (digest) VALUES (NEW.digest);
END;

CREATE TRIGGER blob_changed AFTER UPDATE OF unreferenced_since ON blobs
    WHEN (OLD.unreferenced_since IS NULL) <> (NEW.unreferenced_since IS NULL)
BEGIN
    INSERT INTO changes (digest) VALUES (NEW.digest);
END;

CREATE TRIGGER blob_went AFTER DELETE ON blobs WHEN OLD.unreferenced_since IS NULL
BEGIN
    INSERT INTO changes (digest) VALUES (OLD.digest);
END;

-- Who has missed so many looks through all blobs.
CREATE TRIGGER change_is_old AFTER INSERT ON changes
BEGIN
    DELETE FROM changes WHERE id <= NEW.id - 100000;
END;

-- The have-filter that the site gives to others: as it was built last, and how it changed before and since.
CREATE TABLE filter (
    is_this    INTEGER PRIMARY KEY CHECK (is_this = 1), -- one row
    generation INTEGER NOT NULL, -- with all changes since
    whole      BLOB NOT NULL     -- as it was built
) STRICT;

CREATE TABLE filter_deltas (
    generation INTEGER PRIMARY KEY, -- to which it leads
    delta      BLOB NOT NULL
) STRICT;
