//! One suite for both memories of signals.

use std::{collections::BTreeMap, time::Duration};

use paceline_core::{
    circuit::Circuit,
    evidence::{Counts, SLOT_US},
    scope::Learnt,
};
use paceline_limiter::{
    redis::RedisClient,
    signals::{AccountAnswer, AccountReport, LocalSignals, Put, RedisSignals, Report, Signals, Versioned},
};
use paceline_testkit::Redis;

const NEVER: Duration = Duration::from_secs(3600);

fn report(judge_gap: Duration, account: AccountReport) -> Report {
    Report { accounts: vec![account], keep: Duration::from_secs(100), judge_gap }
}

fn news(known: u64) -> AccountReport {
    AccountReport { account: "main".into(), known, ..AccountReport::default() }
}

async fn tell(signals: &dyn Signals, report: Report) -> AccountAnswer {
    let mut answer = signals.exchange(&report).await.unwrap();
    assert_eq!(answer.accounts.len(), 1);
    answer.accounts.remove(0)
}

fn opened(until_us: u64) -> Learnt {
    Learnt { circuit: Circuit::Open { until_us }, ..Learnt::default() }
}

pub(crate) async fn conformance(signals: &dyn Signals) {
    // The first call is a turn to judge, of nothing; then it is nobody's turn for a while.
    let first = signals.exchange(&report(NEVER, news(0))).await.unwrap();
    let answer = &first.accounts[0];
    assert_eq!((answer.version, &answer.learnt, &answer.counts), (0, &None, &Some(BTreeMap::new())));
    let slot = first.now_us / SLOT_US;

    // Counts add up, by destination and slot, whoever reports them; old ones are forgotten.
    let counts = |n: u64| Counts { accepted: n, busy_ms: 1 << 40, ..Counts::default() };
    let some = [("google", slot, 3), ("google", slot - 1, 4), ("yahoo", slot, 5), ("yahoo", slot - 200, 6)];
    for _ in 0..2 {
        let counts = some.map(|(d, s, n)| (d.into(), s, counts(n))).to_vec();
        let answer = tell(signals, report(NEVER, AccountReport { counts, ..news(0) })).await;
        assert_eq!((answer.counts, answer.taken), (None, vec![]));
    }
    let turn = tell(signals, report(Duration::ZERO, news(0))).await.counts.unwrap();
    let read: Vec<_> = turn.iter().flat_map(|(d, e)| e.iter().map(move |(s, c)| (&**d, s, c.accepted))).collect();
    assert_eq!(read, [("google", slot - 1, 8), ("google", slot, 6), ("yahoo", slot, 10)]);
    assert_eq!(turn["google"].within(0..u64::MAX).busy_ms, 4 << 40);
    assert_eq!(tell(signals, report(NEVER, news(0))).await.counts, None, "another has just judged");

    // A conclusion is taken from what it was drawn from, and from nothing else.
    let put = |destination: Option<&str>, from, until| Put { destination: destination.map(Into::into), from, to: opened(until) };
    let puts = vec![put(None, 0, 7), put(Some("google"), 0, 8), put(Some("google"), 0, 9), put(Some("yahoo"), 3, 9)];
    let answer = tell(signals, report(NEVER, AccountReport { puts, ..news(0) })).await;
    assert_eq!((answer.version, answer.taken), (2, vec![true, true, false, false]));
    let learnt = answer.learnt.unwrap();
    assert_eq!(learnt[&None], Versioned { generation: 1, learnt: opened(7) });
    assert_eq!(learnt[&Some("google".into())], Versioned { generation: 1, learnt: opened(8) });
    let answer = tell(signals, report(NEVER, AccountReport { puts: vec![put(None, 1, 10)], ..news(2) })).await;
    assert_eq!((answer.version, answer.taken), (3, vec![true]));
    assert_eq!(answer.learnt.unwrap()[&None].generation, 2);

    // What is known is not told again; whoever knows less, or more than there is, is told all.
    assert_eq!(tell(signals, report(NEVER, news(3))).await.learnt, None);
    for other in [0, 2, 99] {
        assert!(tell(signals, report(NEVER, news(other))).await.learnt.unwrap().len() >= 2);
    }
    // Accounts do not meet.
    let other = AccountReport { account: "other".into(), ..AccountReport::default() };
    let two = Report { accounts: vec![other, news(3)], keep: NEVER, judge_gap: NEVER };
    let answer = signals.exchange(&two).await.unwrap().accounts;
    assert_eq!((answer[0].version, answer[1].version), (0, 3));
    assert_eq!(answer[0].counts, Some(BTreeMap::new()));
    assert!(signals.exchange(&Report { accounts: vec![AccountReport::default()], ..two }).await.is_err());
}

#[tokio::test]
async fn local() {
    conformance(&LocalSignals::new()).await;
}

#[tokio::test]
async fn redis() {
    let redis = Redis::start().await;
    conformance(&RedisSignals::new(RedisClient::new(&redis.url(), "fleet").unwrap())).await;
}
