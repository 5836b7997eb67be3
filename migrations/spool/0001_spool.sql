-- The embedded broker. A message's place is its id: the queue in the upper bits, a number counted up within that queue
-- in the lower 40. One B-tree so holds every queue in order, and neither taking the head nor appending needs an index.

CREATE TABLE queue (
    id        INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    -- As declared: a JSON object of numbers and strings.
    arguments TEXT NOT NULL,
    -- The number given to the latest message.
    tail      INTEGER NOT NULL DEFAULT 0,
    -- Messages stored, those that a consumer holds among them; always exact.
    depth     INTEGER NOT NULL DEFAULT 0,
    -- Messages up to this number may have been delivered before.
    handed    INTEGER NOT NULL DEFAULT 0,
    -- Messages leave after this time, to where their queue's arguments say.
    ttl_ms    INTEGER
) STRICT;

CREATE TABLE exchange (
    name      TEXT PRIMARY KEY,
    kind      TEXT NOT NULL,
    alternate TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE binding (
    exchange TEXT NOT NULL,
    key      TEXT NOT NULL,
    queue    INTEGER NOT NULL REFERENCES queue (id),
    PRIMARY KEY (exchange, key, queue)
) STRICT, WITHOUT ROWID;

-- The record of the topology applied last under each prefix, in JSON: what a later one no longer names.
CREATE TABLE applied (
    prefix   TEXT PRIMARY KEY,
    manifest TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row; counted up with every change to queues, exchanges and bindings.
CREATE TABLE topology (
    version INTEGER NOT NULL
) STRICT;
INSERT INTO topology VALUES (1);

-- The body comes last: reading the rest of a row touches no page that only it needs.
CREATE TABLE message (
    id         INTEGER PRIMARY KEY,
    -- When it leaves a queue with a time limit, in microseconds since 1970.
    due_us     INTEGER,
    key        TEXT NOT NULL,
    properties BLOB NOT NULL,
    body       BLOB NOT NULL
) STRICT;
