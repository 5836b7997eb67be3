//! Counts, and the bursts in them.

use super::{Query, Row as _, Session, entry, filter};
use crate::{Burst, BurstKind, BurstRule, Count, Filter, ReasonCount, Stats};

/// Starts a query over what the filter selects, as `picked`.
fn over(filter: &Filter) -> Query {
    let mut query = Query::new(
        "with picked as materialized (select id, reason, destination, domain, http_status, died_at, \
         coalesce(last_attempt_at, died_at) as failed_at from dead_letters",
    );
    filter::push_where(&mut query, filter);
    filter::push_state(&mut query, filter.state);
    if filter.limit.is_some() {
        filter::push_latest(&mut query, filter.limit);
    }
    query.push(")");
    query
}

pub(super) async fn read<S: Session>(session: &mut S, filter: &Filter, rule: &BurstRule) -> Result<Stats, sqlx::Error> {
    let mut stats = Stats::default();

    let mut query = over(filter);
    query.push(
        " select reason, count(*) as count, min(died_at) as oldest, max(died_at) as newest from picked
          group by reason order by count desc, reason",
    );
    for row in session.fetch(query).await? {
        let count = row.count("count")?;
        let (oldest, newest) = (row.time("oldest")?, row.time("newest")?);
        stats.total += count;
        stats.oldest = Some(stats.oldest.map_or(oldest, |o| o.min(oldest)));
        stats.newest = Some(stats.newest.map_or(newest, |n| n.max(newest)));
        stats.by_reason.push(ReasonCount { reason: entry::reason(&row)?, count });
    }

    let mut query = over(filter);
    query.push(
        " select reason, destination, domain, count(*) as count, min(died_at) as oldest, max(died_at) as newest from picked
          group by reason, destination, domain order by count desc, newest desc, reason, destination, domain limit 1000",
    );
    for row in session.fetch(query).await? {
        stats.counts.push(Count {
            reason: entry::reason(&row)?,
            destination: row.opt_text("destination")?,
            domain: row.opt_text("domain")?,
            count: row.count("count")?,
            oldest: row.time("oldest")?,
            newest: row.time("newest")?,
        });
    }

    // Runs of failures of one domain and kind: a gap longer than the rule's starts the next run.
    // A century is as good as for ever, and an interval PostgreSQL can add to any time here.
    let gap_us = i64::try_from(rule.gap.as_micros()).unwrap_or(i64::MAX).min(100 * 365 * 86_400_000_000);
    let mut query = over(filter);
    let n = query.value(gap_us);
    let longer = S::longer("failed_at - lag(failed_at) over one", n);
    query.push(&format!(
        ", failed as (select domain, destination, case when http_status = 429 then 1 else 0 end as throttled, failed_at
              from picked where domain is not null and (http_status = 429 or http_status between 500 and 599)),
           marked as (select *, case when {longer} then 1 else 0 end as starts
              from failed window one as (partition by domain, throttled order by failed_at)),
           numbered as (select *, sum(starts) over (partition by domain, throttled order by failed_at) as run from marked)
         select domain, cast(throttled as bigint) as throttled, max(destination) as destination, count(*) as count,
                min(failed_at) as started_at, max(failed_at) as ended_at
         from numbered group by domain, numbered.throttled, run having count(*) >= ",
    ));
    query.bind(rule.min).push(" order by ended_at desc, domain, throttled limit 100");
    for row in session.fetch(query).await? {
        let throttled = row.int("throttled")? == 1;
        stats.bursts.push(Burst {
            kind: if throttled { BurstKind::TooManyRequests } else { BurstKind::ServerError },
            destination: row.opt_text("destination")?,
            domain: row.text("domain")?,
            count: row.count("count")?,
            started_at: row.time("started_at")?,
            ended_at: row.time("ended_at")?,
        });
    }
    Ok(stats)
}
