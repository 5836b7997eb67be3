//! What answers teach.

use paceline_consumer::{Keep, KeepError, Kept};
use paceline_core::{circuit::Circuit, scope::Learnt};
use paceline_limiter::signals::{AccountReport, Report, Signals};

use super::*;

/// A store in memory.
#[derive(Default)]
struct Store(Mutex<Vec<Kept>>);

#[async_trait]
impl Keep for Store {
    async fn load(&self) -> Result<Vec<Kept>, KeepError> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn save(&self, kept: &[Kept]) -> Result<(), KeepError> {
        let mut all = self.0.lock().unwrap();
        for new in kept {
            all.retain(|k| (&k.account, &k.destination) != (&new.account, &new.destination));
            all.push(new.clone());
        }
        Ok(())
    }
}

impl Store {
    fn closed(&self, destination: Option<&str>) -> bool {
        let open = |k: &Kept| k.destination.as_deref() == destination && matches!(k.learnt.circuit, Circuit::Open { .. });
        self.0.lock().unwrap().iter().any(open)
    }
}

/// What the shared memory knows of the account or a destination.
async fn known(rig: &Rig, destination: Option<&str>) -> Learnt {
    let news = AccountReport { account: "main".into(), ..AccountReport::default() };
    let hour = Duration::from_secs(3600);
    let answer = rig.signals.exchange(&Report { accounts: vec![news], keep: hour, judge_gap: hour }).await.unwrap();
    let learnt = answer.accounts[0].learnt.as_ref();
    learnt.and_then(|l| l.get(&destination.map(Into::into))).map(|v| v.learnt).unwrap_or_default()
}

#[tokio::test]
async fn a_refused_account_gets_no_call_until_probes_pass() {
    let circuit = CircuitPolicy { open: Duration::from_secs(1), ..CircuitPolicy::default() };
    let rig = Rig { circuit, ..Rig::new().await };
    rig.provider.refusing.store(true, Ordering::Relaxed);
    for i in 0..200 {
        rig.send(&format!("m-{i}"), "plain", ONE, "").await;
    }
    let worker = rig.worker(None);
    rig.until("the account is refused", |r| r.provider.total() > 0).await;
    // Only what was under way at the first refusal has met another, and then probes, one at a time.
    for _ in 0..600 {
        if rig.provider.total() > 64 || !known(&rig, None).await.circuit.is_closed() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!known(&rig, None).await.circuit.is_closed());
    let refused = rig.provider.total();
    // 32 can be under way; none begins after the first refusal is known here.
    assert!(refused <= 32, "{refused} of 200 calls");
    rig.provider.refusing.store(false, Ordering::Relaxed);
    // What was refused itself comes back later, the rest goes now.
    for _ in 0..400 {
        if rig.provider.total() >= 200 {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(
        rig.provider.total() >= 200,
        "{} calls, {refused} of them refused; {:?}",
        rig.provider.total(),
        known(&rig, None).await
    );
    assert!(known(&rig, None).await.circuit.is_closed());
    assert_eq!(worker.drain().await.unfinished, 0);
    let mut dead = rig.broker.consume("paceline.dead", 1).await.unwrap();
    assert!(timeout(Duration::from_millis(200), dead.next()).await.is_err(), "nothing is given up");
}

#[tokio::test]
async fn bad_messages_open_nothing_and_failures_do() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    for i in 0..60 {
        rig.send(&format!("bad-{i}"), "reject", ONE, "").await;
    }
    rig.dead(60).await;
    assert!(known(&rig, None).await.circuit.is_closed() && known(&rig, Some("google")).await.circuit.is_closed());
    for i in 0..40 {
        rig.send(&format!("failing-{i}"), "fail", ONE, "").await;
    }
    for _ in 0..1000 {
        if !known(&rig, Some("google")).await.circuit.is_closed() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!known(&rig, Some("google")).await.circuit.is_closed());
    assert!(known(&rig, None).await.circuit.is_closed(), "it is the destination that fails");
    worker.drain().await;
}

#[tokio::test]
async fn a_block_closes_its_destination_also_when_the_shared_memory_is_lost() {
    let store = Arc::new(Store::default());
    let rig = Rig { keep: Some(store.clone()), ..Rig::new().await };
    let worker = rig.worker(None);
    rig.send("blocked", "blocked", ONE, "").await;
    rig.until("the store knows", |_| store.closed(Some("google"))).await;
    worker.drain().await;

    // Another fleet, with nothing but the store in common.
    let rig = Rig { keep: Some(store.clone()), ..Rig::new().await };
    let worker = rig.worker(None);
    for _ in 0..1000 {
        if !known(&rig, Some("google")).await.circuit.is_closed() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(known(&rig, Some("google")).await.circuit, Circuit::Open { .. }));
    // What the engine is told takes a moment; the call after it does not.
    sleep(Duration::from_millis(200)).await;
    rig.send("held", "plain", ONE, "").await;
    rig.publish("normal.else.org", r#"{"id":"other","from":"a@b.org","to":["u@else.org"],"text":"x"}"#.into()).await;
    rig.until("other mail goes", |r| r.provider.calls_of("other") == 1).await;
    assert_eq!(rig.provider.calls_of("held"), 0);
    worker.drain().await;
}

#[tokio::test]
async fn a_refused_connection_keeps_its_place_for_a_while() {
    let rig = Rig { fleet_concurrency: Some(2), ..Rig::new().await };
    for i in 0..40 {
        rig.send(&format!("m-{i}"), "turned-away", ONE, "").await;
    }
    let (a, b) = (rig.worker(None), rig.worker(None));
    rig.until("both places are refused", |r| r.provider.total() == 2).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.provider.total(), 2, "nobody is sent where there is no place");
    rig.until("another try", |r| r.provider.total() > 2).await;
    a.drain().await;
    b.drain().await;
}
