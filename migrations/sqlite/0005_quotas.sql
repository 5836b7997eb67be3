-- What quotas have granted, for the day the shared memory is lost and with it everybody who saw it.
create table quotas (
    quota    text not null,
    -- Empty: all who share it; else one worker while it went by itself.
    grantor  text not null,
    kept     text not null,
    -- Microseconds since 1970, on the limiter's clock; nothing of it counts any more from `until_us` on.
    at_us    integer not null,
    until_us integer not null,
    primary key (quota, grantor)
) strict;
