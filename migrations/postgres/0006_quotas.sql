-- What quotas have granted, for the day the shared memory is lost and with it everybody who saw it.
create table quotas (
    quota    text not null,
    -- Empty: all who share it; else one worker while it went by itself.
    grantor  text not null,
    kept     jsonb not null,
    -- Microseconds since 1970, on the limiter's clock; nothing of it counts any more from `until_us` on.
    at_us    bigint not null,
    until_us bigint not null,
    primary key (quota, grantor)
);
