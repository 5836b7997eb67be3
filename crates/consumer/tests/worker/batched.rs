//! Messages that travel together, each with an end of its own. How many do is a matter of the moment: what must hold does
//! so however they are put together.

use super::*;

impl Script {
    /// The sizes of all batches, and how many of them held one of these ids.
    fn batches_with(&self, of: impl Fn(&str) -> bool) -> Vec<usize> {
        let batches = self.batches.lock().unwrap();
        batches.iter().filter(|ids| ids.iter().any(|id| of(id))).map(Vec::len).collect()
    }
}

/// A worker over what waits already, so that grants come together.
async fn begun(rig: &mut Rig, mail: impl AsyncFnOnce(&Rig)) -> Worker {
    rig.batch = 8;
    // The topology is there; what is published now waits in the lanes.
    mail(rig).await;
    rig.worker(None)
}

#[tokio::test]
async fn each_of_a_batch_ends_as_it_would_have_alone() {
    let mut rig = Rig::new().await;
    rig.suppress(&[("listed@gmail.com", Kind::Hard)]);
    let worker = begun(&mut rig, async |rig| {
        for n in 0..20 {
            rig.send(&format!("ok-{n}"), "plain", ONE, "").await;
            let otp = format!(r#"{{"id":"otp-{n}","class":"critical","from":"a@b.org","to":["u@gmail.com"],"text":"x"}}"#);
            rig.publish("critical.gmail.com", otp).await;
        }
        for n in 0..5 {
            rig.send(&format!("no-{n}"), "reject", ONE, "").await;
            rig.send(&format!("twice-{n}"), "fail-twice", ONE, "").await;
            rig.send(&format!("two-{n}"), "reject-second", r#""u@gmail.com","v@gmail.com""#, "").await;
            rig.send(&format!("part-{n}"), "divided", r#""a@gmail.com","grey@gmail.com""#, "").await;
            rig.send(&format!("listed-{n}"), "plain", r#""listed@gmail.com""#, "").await;
            // The same message again, as after a crash of its producer.
            rig.send("ok-0", "plain", ONE, "").await;
        }
    })
    .await;
    let mut ends = BTreeMap::new();
    for (letter, _) in rig.dead(15).await {
        *ends.entry(letter.reason).or_insert(0) += 1;
    }
    assert_eq!(ends, [(Reason::RejectedRecipient, 5), (Reason::RejectedMessage, 5), (Reason::Suppressed, 5)].into());
    let calls = |n: usize| {
        [("ok", 1), ("otp", 1), ("no", 1), ("twice", 3), ("two", 2), ("part", 2), ("listed", 0)]
            .map(|(name, calls)| (format!("{name}-{n}"), calls))
    };
    rig.until("all done", |r| (0..5).all(|n| calls(n).iter().all(|(id, calls)| r.provider.calls_of(id) >= *calls))).await;
    rig.until("all sent", |r| (0..20).all(|n| ["ok", "otp"].iter().all(|w| r.provider.calls_of(&format!("{w}-{n}")) > 0))).await;
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    worker.drain().await;
    for (id, want) in (0..5).flat_map(calls) {
        assert_eq!(rig.provider.calls_of(&id), want, "{id}");
    }
    for n in 0..20 {
        let calls = ["ok", "otp"].map(|word| rig.provider.calls_of(&format!("{word}-{n}")));
        assert_eq!(calls, [1, 1], "{n}");
    }
    let sizes = rig.provider.batches_with(|_| true);
    assert!(sizes.iter().all(|size| (2..=8).contains(size)) && !sizes.is_empty(), "{sizes:?}");
    assert_eq!(rig.provider.batches_with(|id| id.starts_with("otp")), [0; 0], "critical mail goes alone");
    assert_eq!(rig.broker.depth("paceline.dead").await.unwrap(), 0);
}

#[tokio::test]
async fn a_batch_without_an_answer_is_uncertain_for_each_of_it() {
    let mut rig = Rig::new().await;
    let worker = begun(&mut rig, async |rig| {
        // Fewer than open a circuit.
        for n in 0..4 {
            rig.send(&format!("normal-{n}"), "lost-once", ONE, "").await;
            let high = format!(
                r#"{{"id":"high-{n}","class":"high","from":"a@b.org","to":["u@gmail.com"],"text":"x","stream":"lost-once"}}"#
            );
            rig.publish("high.gmail.com", high).await;
        }
    })
    .await;
    for (letter, _) in rig.dead(4).await {
        assert!(letter.message_id.unwrap().starts_with("normal-") && letter.reason == Reason::Uncertain);
        assert_eq!(letter.last_error.unwrap().code, "timeout");
    }
    rig.until("sent again", |r| (0..4).all(|n| r.provider.calls_of(&format!("high-{n}")) == 2)).await;
    worker.drain().await;
    assert!((0..4).all(|n| rig.provider.calls_of(&format!("normal-{n}")) == 1), "sent or not, nobody knows: not again");
    assert!(!rig.provider.batches_with(|_| true).is_empty());
    assert_eq!(rig.broker.depth("paceline.dead").await.unwrap(), 0);
}

#[tokio::test]
async fn who_is_missing_in_the_answer_is_uncertain() {
    let mut rig = Rig::new().await;
    let worker = begun(&mut rig, async |rig| {
        for n in 0..16 {
            rig.send(&format!("m-{n}"), "cut-short", ONE, "").await;
        }
    })
    .await;
    rig.until("all called", |r| (0..16).all(|n| r.provider.calls_of(&format!("m-{n}")) == 1)).await;
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    worker.drain().await;
    // The first of each batch had a result.
    let missing: usize = rig.provider.batches_with(|_| true).iter().map(|size| size - 1).sum();
    assert!(missing > 0);
    for (letter, _) in rig.dead(missing).await {
        assert_eq!((letter.reason, letter.last_error.unwrap().code.as_str()), (Reason::Uncertain, "no_result"));
    }
    assert_eq!((rig.broker.depth("paceline.dead").await.unwrap(), rig.provider.total()), (0, 16));
}

#[tokio::test]
async fn a_batch_that_nobody_can_join_leaves_at_once() {
    let mut rig = Rig::new().await;
    rig.batch_wait = Duration::from_secs(3600);
    let worker = begun(&mut rig, async |rig| {
        // As many as a destination is met with.
        for n in 0..5 {
            rig.send(&format!("m-{n}"), "plain", ONE, "").await;
        }
    })
    .await;
    rig.until("all sent", |r| r.provider.total() == 5).await;
    worker.drain().await;
    assert_eq!(rig.provider.batches_with(|_| true), [5]);
}
