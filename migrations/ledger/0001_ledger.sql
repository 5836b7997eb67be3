-- Which message was claimed for which attempt, and what came of it.

CREATE TABLE entry (
    -- The message's id; for a replayed copy, its batch and an @ before.
    key       TEXT PRIMARY KEY,
    attempt   INTEGER NOT NULL,
    -- 0 claimed, 1 released, 2 sent, 3 retry, 4 dead.
    state     INTEGER NOT NULL,
    -- Of the first attempt's body.
    digest    INTEGER,
    -- Claims that ran out without a result.
    lost      INTEGER NOT NULL,
    -- The owner while claimed; then what the result says.
    note      TEXT NOT NULL,
    -- Of a claim: which handling made it, in which session of this file, and until when it stands.
    token     INTEGER,
    session   INTEGER,
    until_us  INTEGER,
    forget_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row; counted up each time a worker opens the file. Claims of earlier sessions have lost their owner.
CREATE TABLE session (
    number INTEGER NOT NULL
) STRICT;
INSERT INTO session VALUES (0);
