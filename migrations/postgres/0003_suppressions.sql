-- Recipients that must not be mailed. `address` is in lower case. A removed entry stays for a while as a mark, so that
-- every worker learns of its removal.
create table suppressions (
    address    text        primary key,
    kind       text        not null check (kind in ('soft', 'hard')),
    reason     text        not null,
    source     text,
    note       text,
    actor      text        not null,
    created_at timestamptz not null,
    until      timestamptz,
    -- Numbers every change of the list; no two rows share one.
    version    bigint      not null unique,
    removed_at timestamptz
);
-- What can be deleted.
create index suppressions_removed_at on suppressions (removed_at) where removed_at is not null;
create index suppressions_until on suppressions (until) where until is not null;

-- `suppression`: the last number given. `suppression_floor`: marks of removals up to it may be gone.
insert into directive_versions (kind, version) values ('suppression', 0), ('suppression_floor', 0)
on conflict (kind) do nothing;

-- How often one recipient was refused of late.
create index dead_letters_refused on dead_letters (lower(recipient), died_at) where reason = 'rejected_recipient';
