-- What operators decide about dead letters, and their standing orders.

-- null until a replay or a discard settled the entry for good, by which job and when.
alter table dead_letters
    add column settled    text check (settled in ('replayed', 'discarded')),
    add column settled_at timestamptz,
    add column job        text;

-- What is shown and taken unless asked for more, and what is not.
create index dead_letters_unsettled on dead_letters (died_at desc, id) include (reason) where settled is null;
create index dead_letters_settled on dead_letters (settled, died_at desc) where settled is not null;

create table dead_letter_jobs (
    id           text        primary key,
    kind         text        not null check (kind in ('replay', 'discard')),
    state        text        not null check (state in ('running', 'done', 'cancelled')),
    actor        text        not null,
    note         text,
    filter       jsonb       not null,
    rate         text,
    total        bigint      not null,
    done         bigint      not null default 0,
    failed       bigint      not null default 0,
    -- The highest item a runner was ever given.
    handed       bigint      not null default 0,
    created_at   timestamptz not null,
    finished_at  timestamptz,
    cancelled_by text,
    owner        text,
    leased_until timestamptz
);
create index dead_letter_jobs_created_at on dead_letter_jobs (created_at desc, id desc);
create index dead_letter_jobs_running on dead_letter_jobs (created_at) where state = 'running';

-- A job's entries until they are settled. `live`: to be done. `failed`: was tried. `dropped`: the job was cancelled while
-- a runner that never came back had it.
create table dead_letter_job_items (
    job    text   not null,
    seq    bigint not null,
    letter text   not null,
    copy   bigint not null,
    state  text   not null default 'live' check (state in ('live', 'failed', 'dropped')),
    error  text,
    primary key (job, seq)
);
-- An entry is in one live job at most.
create unique index dead_letter_job_items_live on dead_letter_job_items (letter) where state = 'live';

create table operator_audit (
    id      bigint      generated always as identity primary key,
    at      timestamptz not null,
    action  text        not null,
    subject text        not null,
    actor   text        not null,
    note    text,
    detail  jsonb       not null
);
create index operator_audit_subject on operator_audit (subject, id desc);

-- Orders every worker keeps to until they end or are taken back.
create table directives (
    id         text        primary key,
    kind       text        not null,
    scope      text        not null,
    value      text        not null,
    since      timestamptz not null,
    until      timestamptz not null,
    actor      text        not null,
    note       text,
    removed_at timestamptz,
    removed_by text
);
create unique index directives_in_force on directives (kind, scope, value) where removed_at is null;

-- Counts the changes of one kind.
create table directive_versions (
    kind    text   primary key,
    version bigint not null
);
