//! What a worker says of its lanes.

use paceline_core::{Class, lanes::LaneState};

use super::*;

#[tokio::test]
async fn lanes_are_told_with_what_binds_them() {
    let rig = Rig::new().await;
    // One now, and the next in an hour.
    let worker = rig.worker(Some(Limit { rate: "1/h".parse().unwrap(), burst: 1 }));
    for n in 0..3 {
        rig.send(&format!("m{n}"), "plain", ONE, "").await;
        rig.publish(
            "high.else.org",
            format!(r#"{{"id":"e{n}","class":"high","from":"a@b.org","to":["u@else.org"],"text":"x"}}"#),
        )
        .await;
    }
    let mut said = worker.lanes();
    let of = |report: &paceline_core::lanes::WorkerReport, class, destination: &str| {
        report.lanes.iter().find(|l| l.class == class && l.destination == destination).cloned()
    };
    // The mail goes back to the broker, and what keeps it is still known.
    let rested = timeout(
        Duration::from_secs(20),
        said.wait_for(|report| {
            let google = of(report, Class::Normal, "google");
            let tail = report.places.iter().find(|p| p.destination == "tail").map_or(0, |p| p.now.accepted);
            google.is_some_and(|l| l.state == LaneState::Resting && l.held == 0) && tail == 3
        }),
    );
    let report = rested.await.expect("the lane does not rest").unwrap().clone();
    let google = of(&report, Class::Normal, "google").unwrap();
    assert_eq!(google.queue, "paceline.lane.normal.google");
    assert_eq!(google.binding.as_deref(), Some("destination google of account main"));
    assert!((google.allowed_per_s.unwrap() - 1.0 / 3600.0).abs() < 1e-9 && google.oldest_at.is_some());
    let tail = of(&report, Class::High, "tail").unwrap();
    assert_eq!((tail.state, tail.held, tail.in_flight, tail.allowed_per_s), (LaneState::Idle, 0, 0, None));
    assert_eq!(report.lanes.len(), 8, "the intake is no lane");
    assert!(report.worker.starts_with("w-"));
    worker.drain().await;
}
