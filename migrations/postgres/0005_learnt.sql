-- What the fleet has learnt of accounts and their destinations; put back where the shared memory is lost.
create table learnt (
    account     text   not null,
    -- Empty: the account itself.
    destination text   not null,
    learnt      jsonb  not null,
    -- Microseconds since 1970, on the limiter's clock.
    at_us       bigint not null,
    primary key (account, destination)
);
