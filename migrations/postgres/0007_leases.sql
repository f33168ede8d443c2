-- The rights to do what a site does once. Losing them costs work done twice, so they need no log; the
-- generation comes from the clock, so that a row can go and come back without starting anew.
CREATE UNLOGGED TABLE leases (
    name       TEXT COLLATE "C" PRIMARY KEY,
    owner      TEXT NOT NULL,        -- which process
    generation BIGINT NOT NULL,      -- microseconds since 1970 when it was taken, or more: the fencing token
    expires_at TIMESTAMPTZ NOT NULL, -- unless it is renewed
    wanted_at  TIMESTAMPTZ,          -- another process looked what its holder tells
    note       TEXT                  -- what that is
) WITH (fillfactor = 50);
