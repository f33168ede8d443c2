-- Release files that a mirror said it does not have, where it has another of the same suite: while
-- it is away, apt has to hear that again to go on with the one that is stored.
CREATE TABLE absent (
    key TEXT COLLATE "C" PRIMARY KEY -- the resource's canonical URL
);
