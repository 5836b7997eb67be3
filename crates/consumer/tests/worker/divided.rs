//! Recipients of one message that were answered differently.

use paceline_limiter::ledger::{Claim, Claimed, Ledger, LedgerError, Recorded};

use super::*;

/// What the receiver says at the `nth` call, by the beginning of each recipient's name; of one alone, only that.
pub(crate) fn by_name(m: &Message, nth: usize) -> Outcome {
    let soon = Some(Duration::from_millis(20));
    let outcome = |name: &str| match name.split('-').next() {
        Some("gone") => Outcome::Rejected { what: Rejected::Recipients(vec![]), answer: words(name, 550) },
        Some("grey") if nth == 1 => Outcome::Greylisted { retry_after: soon, answer: words(name, 450) },
        Some("slow") if nth < 4 => Outcome::Throttled { scope: Scope::Recipient, retry_after: soon, answer: words(name, 450) },
        Some("later") => Outcome::Temporary { retry_after: None, answer: words(name, 451) },
        Some("lost") => Outcome::Uncertain { answer: words(name, 0) },
        _ => Outcome::accepted(None),
    };
    let each: Vec<_> = m.recipients().map(|r| (r.clone(), outcome(r.local()))).collect();
    match each.as_slice() {
        [(_, alone)] => alone.clone(),
        _ => Outcome::Divided { provider_id: Some("p-1".into()), each },
    }
}

/// Recipients by name.
fn to(names: &str) -> String {
    names.split(' ').map(|name| format!("\"{name}@gmail.com\"")).collect::<Vec<_>>().join(",")
}

/// The recipients of each call, by name.
fn calls(rig: &Rig, id: &str) -> Vec<String> {
    rig.recipients_of(id).iter().map(|all| all.replace("@gmail.com", "")).collect()
}

#[tokio::test]
async fn each_recipient_is_sent_to_once_given_up_on_alone_or_tried_again_alone() {
    let rig = Rig::new().await;
    rig.suppress(&[("listed@gmail.com", Kind::Hard)]);
    let mut events = rig.broker.listen("sent.#").await.unwrap();
    let mut retries = rig.broker.listen("retrying.#").await.unwrap();
    let worker = rig.worker(None);
    rig.send("all", "divided", &to("a gone-1 grey later listed gone-2 b"), "").await;
    rig.send("done", "divided", &to("a gone-3"), "").await;
    rig.send("none", "divided", &to("gone-4 gone-5"), "").await;
    rig.send("unknown", "divided", &to("lost a"), "").await;
    let dead: BTreeMap<_, _> = rig
        .dead(8)
        .await
        .into_iter()
        .map(|(d, body)| ((d.message_id.clone().unwrap(), d.to.clone().unwrap()), (d, body)))
        .collect();
    let told: Vec<_> = dead
        .iter()
        .map(|((id, to), (d, _))| {
            let code = d.last_error.as_ref().map_or("", |e| e.code.as_str());
            (id.as_str(), to.trim_end_matches("@gmail.com"), d.reason, code, d.attempts)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("all", "gone-1", Reason::RejectedRecipient, "gone-1", 1),
            ("all", "gone-2", Reason::RejectedRecipient, "gone-2", 1),
            ("all", "later", Reason::RetryBudgetExhausted, "later", 3),
            ("all", "listed", Reason::Suppressed, "", 0),
            ("done", "gone-3", Reason::RejectedRecipient, "gone-3", 1),
            ("none", "gone-4", Reason::RejectedRecipient, "gone-4", 1),
            ("none", "gone-5", Reason::RejectedRecipient, "gone-5", 1),
            ("unknown", "lost", Reason::Uncertain, "lost", 1),
        ]
    );
    assert_eq!(calls(&rig, "all"), ["a gone-1 grey later gone-2 b", "grey later", "later"]);
    for (id, want) in [("done", "a gone-3"), ("none", "gone-4 gone-5"), ("unknown", "lost a")] {
        assert_eq!(calls(&rig, id), [want]);
    }
    let recipients = |body: &Bytes| Message::parse(body, None, 10_000).unwrap().recipient_count();
    assert_eq!(recipients(&dead[&("all".to_owned(), "later@gmail.com".to_owned())].1), 1, "a replay goes to nobody else");
    let mut sent = BTreeMap::new();
    while sent.values().sum::<u64>() < 7 {
        let event = timeout(Duration::from_secs(10), events.next()).await.expect("an event is missing").unwrap();
        let event: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        *sent.entry(event["id"].as_str().unwrap().to_owned()).or_insert(0) += event["recipients"].as_u64().unwrap();
    }
    // Where nobody is tried again the event tells of the whole, as always.
    assert_eq!(sent, [("all", 3), ("done", 2), ("unknown", 2)].map(|(id, n)| (id.to_owned(), n)).into());
    let retry = timeout(Duration::from_secs(10), retries.next()).await.expect("an event is missing").unwrap();
    let retry: serde_json::Value = serde_json::from_slice(&retry.body).unwrap();
    assert_eq!((&retry["recipients"], &retry["error"]["code"]), (&2.into(), &"later".into()));
    // The first copy comes again, as after a crash: all of it is settled.
    rig.send("all", "divided", &to("a gone-1 grey later listed gone-2 b"), "").await;
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    worker.drain().await;
    assert_eq!((calls(&rig, "all").len(), rig.broker.depth("paceline.dead").await.unwrap()), (3, 0));
}

#[tokio::test]
async fn who_has_no_budget_left_does_not_end_the_others() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    // Throttled at the first three calls; the budget is three failures.
    rig.send("m", "divided", &to("later slow"), "").await;
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.to.as_deref(), letter.reason), (Some("later@gmail.com"), Reason::RetryBudgetExhausted));
    rig.until("tried again", |r| r.provider.calls_of("m") == 4).await;
    worker.drain().await;
    assert_eq!(calls(&rig, "m"), ["later slow", "later slow", "later slow", "slow"]);
    assert_eq!(rig.broker.depth("paceline.dead").await.unwrap(), 0);
}

/// Tells when a result has been recorded.
struct Telling(Arc<LocalLedger>, tokio::sync::Notify);

#[async_trait]
impl Ledger for Telling {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.0.claim(claim).await
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        let recorded = self.0.record(claim, result).await;
        self.1.notify_one();
        recorded
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.0.release(claim).await
    }
}

#[tokio::test]
async fn a_worker_that_dies_before_it_passes_the_rest_on_costs_nobody_a_mail_and_sends_none_twice() {
    for (names, rest, dead) in
        [("a gone grey b", vec!["grey"], 1), ("listed gone a grey", vec!["grey"], 2), ("a gone", vec![], 1)]
    {
        let rig = Rig::new().await;
        rig.suppress(&[("listed@gmail.com", Kind::Hard)]);
        let ledger = Arc::new(Telling(rig.ledger.clone(), tokio::sync::Notify::new()));
        let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let worker = {
            let _on = dying.enter();
            Worker::start(Deps { ledger: ledger.clone(), ..rig.deps(None) })
        };
        rig.send("m", "divided-hang", &to(names), "").await;
        rig.until("call under way", |r| r.provider.calls_of("m") == 1).await;
        rig.broker.lose("cut");
        rig.provider.hang.notify_one();
        timeout(Duration::from_secs(10), ledger.1.notified()).await.expect("the result is recorded");
        // It is dead when this returns: what it still publishes then nobody sees.
        tokio::task::spawn_blocking(|| dying.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
        drop(worker);
        rig.broker.restore();
        let second = rig.worker(None);
        let letters = rig.dead(dead).await;
        let all: std::collections::BTreeSet<_> = letters.iter().map(|(d, _)| d.to.clone().unwrap()).collect();
        assert_eq!(all.len(), dead, "{names}: {letters:?}");
        rig.until("passed on", |r| r.provider.calls_of("m") == 1 + rest.len()).await;
        second.drain().await;
        let first = names.replace("listed ", "");
        assert_eq!(calls(&rig, "m"), [vec![first.as_str()], rest].concat(), "{names}");
        assert_eq!(rig.broker.depth("paceline.dead").await.unwrap(), 0, "{names}");
    }
}
