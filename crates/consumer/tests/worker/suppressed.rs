//! Recipients on the suppression list.

use super::*;

#[tokio::test]
async fn suppressed_recipients_die_alone_and_the_rest_proceed() {
    let rig = Rig::new().await;
    rig.suppress(&[("s@gmail.com", Kind::Hard), ("full@else.org", Kind::Soft)]);
    let mut events = rig.broker.listen("suppressed.#").await.unwrap();
    let worker = rig.worker(None);
    let to = r#""u@gmail.com","S@gmail.com","v@gmail.com""#;
    rig.send("some", "plain", to, "").await;
    rig.send("later", "fail-twice", to, "").await;
    rig.send("never", "fail", to, "").await;
    rig.send("one-more", "reject-second", r#""s@gmail.com","u@gmail.com","v@gmail.com""#, "").await;
    rig.send("copies", "plain", r#""s@gmail.com""#, r#","cc":["full@else.org","c@else.org"],"bcc":["b@else.org"]"#).await;
    rig.send("all", "plain", r#""s@gmail.com","FULL@else.org""#, "").await;
    let soft = r#"{"id":"otp","class":"critical","from":"a@b.org","to":["full@else.org"],"text":"x"}"#;
    rig.publish("critical.else.org", soft.into()).await;

    let dead: BTreeMap<_, _> = rig
        .dead(9)
        .await
        .into_iter()
        .map(|(d, body)| ((d.message_id.clone().unwrap(), d.to.clone().unwrap()), (d, body)))
        .collect();
    let told: Vec<_> = dead.iter().map(|((id, to), (d, _))| (id.as_str(), to.as_str(), d.reason)).collect();
    assert_eq!(
        told,
        [
            ("all", "s@gmail.com", Reason::Suppressed),
            ("copies", "full@else.org", Reason::Suppressed),
            ("copies", "s@gmail.com", Reason::Suppressed),
            ("later", "S@gmail.com", Reason::Suppressed),
            ("never", "S@gmail.com", Reason::Suppressed),
            ("never", "u@gmail.com", Reason::RetryBudgetExhausted),
            ("one-more", "s@gmail.com", Reason::Suppressed),
            ("one-more", "v@gmail.com", Reason::RejectedRecipient),
            ("some", "S@gmail.com", Reason::Suppressed),
        ]
    );
    rig.until("the rest goes out", |r| {
        r.provider.calls_of("later") == 3 && r.provider.calls_of("one-more") == 2 && r.provider.calls_of("otp") == 1
    })
    .await;
    let rest = "u@gmail.com v@gmail.com";
    for (id, calls) in [
        ("some", vec![rest]),
        ("later", vec![rest; 3]),
        ("never", vec![rest; 3]),
        ("one-more", vec![rest, "u@gmail.com"]),
        ("copies", vec!["c@else.org b@else.org"]),
        ("all", vec![]),
        ("otp", vec!["full@else.org"]),
    ] {
        assert_eq!(rig.recipients_of(id), calls, "{id}");
    }
    let of = |id: &str, to: &str| &dead[&(id.to_owned(), to.to_owned())];
    let recipients = |body: &Bytes| Message::parse(body, None, 10_000).unwrap().recipient_count();
    let (letter, body) = of("never", "S@gmail.com");
    assert_eq!((recipients(body), letter.attempts, &letter.last_error), (3, 0, &None), "the whole message, untouched");
    assert_eq!(letter.detail.as_deref(), Some("on the suppression list, as a hard entry"));
    assert_eq!(recipients(&of("never", "u@gmail.com").1), 2, "a replay of it does not go to who has an entry of their own");
    assert_eq!(of("copies", "full@else.org").0.detail.as_deref(), Some("on the suppression list, as a soft entry"));

    let mut told = BTreeMap::new();
    while told.values().sum::<u64>() < 8 {
        let event = timeout(Duration::from_secs(10), events.next()).await.expect("an event is missing").unwrap();
        let event: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        assert!(event["reason"] == "suppressed" && !event.to_string().contains('@'), "{event}");
        *told.entry(event["id"].as_str().unwrap().to_owned()).or_insert(0) += event["recipients"].as_u64().unwrap();
    }
    let counts: Vec<_> = told.iter().map(|(id, n)| (id.as_str(), *n)).collect();
    assert_eq!(counts, [("all", 2), ("copies", 2), ("later", 1), ("never", 1), ("one-more", 1), ("some", 1)]);
    worker.drain().await;
}

#[tokio::test]
async fn suppressed_mail_neither_waits_for_a_turn_nor_takes_one() {
    let rig = Rig::new().await;
    rig.suppress(&[("s@gmail.com", Kind::Hard)]);
    // The next token is six seconds away.
    let worker = rig.worker(Some(Limit { rate: "10/min".parse().unwrap(), burst: 1 }));
    rig.send("waits", "plain", ONE, "").await;
    rig.until("it is held", |r| r.broker.held("paceline.lane.normal.google") == 1).await;
    rig.send("known", "plain", r#""s@gmail.com""#, "").await;
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.message_id.as_deref(), letter.reason), (Some("known"), Reason::Suppressed));
    assert_eq!(rig.provider.total(), 0);
    // Listed while their mail waits: looked at again right before the call.
    rig.suppress(&[("u@gmail.com", Kind::Hard)]);
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.message_id.as_deref(), letter.reason), (Some("waits"), Reason::Suppressed));
    assert_eq!(rig.provider.total(), 0);
    worker.drain().await;
}

#[tokio::test]
async fn what_was_sent_is_not_said_to_be_suppressed() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    rig.send("m", "plain", ONE, "").await;
    rig.until("sent", |r| r.provider.calls_of("m") == 1).await;
    // It bounced, say; then its first copy comes again, as after a crash.
    rig.suppress(&[("u@gmail.com", Kind::Hard)]);
    rig.send("m", "plain", ONE, "").await;
    rig.send("n", "plain", ONE, "").await;
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!(letter.message_id.as_deref(), Some("n"));
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    assert_eq!((rig.broker.depth("paceline.dead").await.unwrap(), rig.provider.total()), (0, 1));
    worker.drain().await;
}
