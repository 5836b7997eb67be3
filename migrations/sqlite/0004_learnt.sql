-- What the fleet has learnt of accounts and their destinations; put back where the shared memory is lost.
create table learnt (
    account     text    not null,
    -- Empty: the account itself.
    destination text    not null,
    learnt      text    not null,
    -- Microseconds since 1970, on the limiter's clock.
    at_us       integer not null,
    primary key (account, destination)
) strict;
