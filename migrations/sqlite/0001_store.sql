-- The tables of migrations/postgres, for one machine. Times are microseconds of the Unix epoch.

-- What was given up on: the row is the entry. Texts come from outside: the program bounds them (keys 512 bytes) and
-- removes NUL.
create table dead_letters (
    seq              integer primary key,
    id               text    not null unique,
    message_id       text,
    recipient        text,
    class            text,
    destination      text,
    domain           text,
    account          text,
    tenant           text,
    stream           text,
    reason           text    not null,
    field            text,
    detail           text,
    enqueued_at      integer not null,
    first_attempt_at integer,
    last_attempt_at  integer,
    died_at          integer not null,
    attempts         integer not null,
    error_code       text,
    http_status      integer,
    provider_message text,
    replay           text,
    stored_at        integer not null,
    settled          text    check (settled in ('replayed', 'discarded')),
    settled_at       integer,
    job              text
) strict;

-- The originals as the broker held them: apart, so that lists and counts do not read through them.
create table dead_letter_originals (
    letter          integer primary key references dead_letters (seq) on delete cascade,
    amqp_message_id text,
    content_type    text,
    headers         text    not null,
    body            blob    not null
) strict;

-- Every filter of `paceline dlq`, each with the order of the list.
create index dead_letters_died_at on dead_letters (died_at desc, id);
create index dead_letters_reason on dead_letters (reason, died_at desc);
create index dead_letters_class on dead_letters (class, died_at desc);
create index dead_letters_destination on dead_letters (destination, died_at desc);
create index dead_letters_account on dead_letters (account, died_at desc) where account is not null;
create index dead_letters_tenant on dead_letters (tenant, died_at desc) where tenant is not null;
create index dead_letters_message_id on dead_letters (message_id) where message_id is not null;
create index dead_letters_unsettled on dead_letters (died_at desc, id, reason) where settled is null;
create index dead_letters_settled on dead_letters (settled, died_at desc) where settled is not null;

create table dead_letter_jobs (
    id           text    not null primary key,
    kind         text    not null check (kind in ('replay', 'discard')),
    state        text    not null check (state in ('running', 'done', 'cancelled')),
    actor        text    not null,
    note         text,
    filter       text    not null,
    rate         text,
    total        integer not null,
    done         integer not null default 0,
    failed       integer not null default 0,
    -- The highest item a runner was ever given.
    handed       integer not null default 0,
    created_at   integer not null,
    finished_at  integer,
    cancelled_by text,
    owner        text,
    leased_until integer
) strict;
create index dead_letter_jobs_created_at on dead_letter_jobs (created_at desc, id desc);
create index dead_letter_jobs_running on dead_letter_jobs (created_at) where state = 'running';

-- A job's entries until they are settled. `live`: to be done. `failed`: was tried. `dropped`: the job was cancelled while
-- a runner that never came back had it.
create table dead_letter_job_items (
    job    text    not null,
    seq    integer not null,
    letter text    not null,
    copy   integer not null,
    state  text    not null default 'live' check (state in ('live', 'failed', 'dropped')),
    error  text,
    primary key (job, seq)
) strict, without rowid;
-- An entry is in one live job at most.
create unique index dead_letter_job_items_live on dead_letter_job_items (letter) where state = 'live';

create table operator_audit (
    id      integer primary key autoincrement,
    at      integer not null,
    action  text    not null,
    subject text    not null,
    actor   text    not null,
    note    text,
    detail  text    not null
) strict;
create index operator_audit_subject on operator_audit (subject, id desc);

-- Orders every worker keeps to until they end or are taken back.
create table directives (
    id         text    not null primary key,
    kind       text    not null,
    scope      text    not null,
    value      text    not null,
    since      integer not null,
    until      integer not null,
    actor      text    not null,
    note       text,
    removed_at integer,
    removed_by text
) strict;
create unique index directives_in_force on directives (kind, scope, value) where removed_at is null;

-- Counts the changes of one kind.
create table directive_versions (
    kind    text    not null primary key,
    version integer not null
) strict;
