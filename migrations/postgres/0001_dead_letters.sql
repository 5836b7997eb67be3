-- What was given up on, kept whole: the row is the entry, `body` and `headers` are the original as the broker held it.
-- Times are microseconds exact. Texts come from outside: the program bounds them (keys 512 bytes) and removes NUL.
create table dead_letters (
    id               text        primary key,
    message_id       text,
    recipient        text,
    class            text,
    destination      text,
    domain           text,
    account          text,
    tenant           text,
    stream           text,
    reason           text        not null,
    field            text,
    detail           text,
    enqueued_at      timestamptz not null,
    first_attempt_at timestamptz,
    last_attempt_at  timestamptz,
    died_at          timestamptz not null,
    attempts         bigint      not null,
    error_code       text,
    http_status      integer,
    provider_message text,
    replay           text,
    amqp_message_id  text,
    content_type     text,
    headers          jsonb       not null,
    body             bytea       not null,
    stored_at        timestamptz not null default now()
);

-- Every filter of `paceline dlq`, each with the order of the list.
create index dead_letters_died_at on dead_letters (died_at desc, id);
create index dead_letters_reason on dead_letters (reason, died_at desc);
create index dead_letters_class on dead_letters (class, died_at desc);
create index dead_letters_destination on dead_letters (destination, died_at desc);
create index dead_letters_account on dead_letters (account, died_at desc) where account is not null;
create index dead_letters_tenant on dead_letters (tenant, died_at desc) where tenant is not null;
create index dead_letters_message_id on dead_letters (message_id) where message_id is not null;
