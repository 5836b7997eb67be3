//! Counts, and the bursts in them.

use sqlx::{Connection, PgConnection, Postgres, QueryBuilder, Row};

use super::rows;
use crate::{Burst, BurstKind, BurstRule, Count, Filter, ReasonCount, Stats};

/// Starts a query over what the filter selects, as `picked`.
fn over(filter: &Filter) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(
        "with picked as materialized (select id, reason, destination, domain, http_status, died_at, \
         coalesce(last_attempt_at, died_at) as failed_at from dead_letters",
    );
    rows::push_where(&mut query, filter);
    if filter.limit.is_some() {
        rows::push_latest(&mut query, filter);
    }
    query.push(")");
    query
}

pub(super) async fn read(connection: &mut PgConnection, filter: &Filter, rule: &BurstRule) -> Result<Stats, sqlx::Error> {
    let mut snapshot = connection.begin_with("begin isolation level repeatable read read only").await?;
    let mut stats = Stats::default();

    let mut query = over(filter);
    query.push(
        " select reason, count(*) as count, min(died_at) as oldest, max(died_at) as newest from picked
          group by reason order by count desc, reason",
    );
    for row in query.build().fetch_all(&mut *snapshot).await? {
        let count = number(&row)?;
        let (oldest, newest) = (rows::time(&row, "oldest")?, rows::time(&row, "newest")?);
        stats.total += count;
        stats.oldest = Some(stats.oldest.map_or(oldest, |o| o.min(oldest)));
        stats.newest = Some(stats.newest.map_or(newest, |n| n.max(newest)));
        stats.by_reason.push(ReasonCount { reason: rows::reason(&row)?, count });
    }

    let mut query = over(filter);
    query.push(
        " select reason, destination, domain, count(*) as count, min(died_at) as oldest, max(died_at) as newest from picked
          group by reason, destination, domain order by count desc, newest desc, reason, destination, domain limit 1000",
    );
    for row in query.build().fetch_all(&mut *snapshot).await? {
        stats.counts.push(Count {
            reason: rows::reason(&row)?,
            destination: row.try_get("destination")?,
            domain: row.try_get("domain")?,
            count: number(&row)?,
            oldest: rows::time(&row, "oldest")?,
            newest: rows::time(&row, "newest")?,
        });
    }

    // Runs of failures of one domain and kind: a gap longer than the rule's starts the next run.
    // A century is as good as for ever, and an interval PostgreSQL can add to any time here.
    let gap_us = i64::try_from(rule.gap.as_micros()).unwrap_or(i64::MAX).min(100 * 365 * 86_400_000_000);
    let mut query = over(filter);
    query.push(
        ", failed as (select domain, destination, http_status = 429 as throttled, failed_at from picked
              where domain is not null and (http_status = 429 or http_status between 500 and 599)),
           marked as (select *, case when failed_at - lag(failed_at) over one > ",
    );
    query.push_bind(gap_us).push(
        " * interval '1 microsecond' then 1 else 0 end as starts
              from failed window one as (partition by domain, throttled order by failed_at)),
           numbered as (select *, sum(starts) over (partition by domain, throttled order by failed_at) as run from marked)
         select domain, throttled, max(destination) as destination, count(*) as count,
                min(failed_at) as started_at, max(failed_at) as ended_at
         from numbered group by domain, throttled, run having count(*) >= ",
    );
    query.push_bind(i64::from(rule.min)).push(" order by ended_at desc, domain, throttled limit 100");
    for row in query.build().fetch_all(&mut *snapshot).await? {
        let throttled: bool = row.try_get("throttled")?;
        stats.bursts.push(Burst {
            kind: if throttled { BurstKind::TooManyRequests } else { BurstKind::ServerError },
            destination: row.try_get("destination")?,
            domain: row.try_get("domain")?,
            count: number(&row)?,
            started_at: rows::time(&row, "started_at")?,
            ended_at: rows::time(&row, "ended_at")?,
        });
    }
    snapshot.commit().await?;
    Ok(stats)
}

fn number(row: &sqlx::postgres::PgRow) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>("count").map(i64::unsigned_abs)
}
