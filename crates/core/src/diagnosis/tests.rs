use super::*;
use crate::{Outcome, ProviderAnswer, Rejected, Scope};

fn place(destination: &str, now: Tally) -> Place {
    Place {
        account: "main".into(),
        destination: destination.into(),
        now,
        now_s: NOW_S,
        before_s: 3_000,
        rate_per_s: Some(10.0),
        configured_per_s: Some(10.0),
        ..Place::default()
    }
}

const GOOD: Tally = Tally {
    accepted: 1_000,
    throttled: 0,
    throttled_account: 0,
    greylisted: 0,
    temporary: 0,
    rejected_recipient: 9,
    rejected_message: 0,
    rejected_account: 0,
    reputation: 0,
    identity: 0,
};

fn verdict(places: &[Place]) -> Verdict {
    diagnose("google", &["gmail.com".to_owned()], places).verdict
}

#[test]
fn what_it_is() {
    use Verdict::{
        Authentication, Greylisting, NotEnoughEvidence, NothingWrong, PlainThrottling, ReceiverDown, ReputationTrouble, WarmUp,
    };
    let google = |now| place("google", now);
    let yahoo = place("yahoo", GOOD);
    let slowed = Tally { throttled: 300, ..GOOD };
    let of_account = Tally { throttled_account: 300, ..GOOD };
    let down = Tally { accepted: 10, temporary: 90, ..Tally::default() };
    let as_before = Tally { accepted: 6_500, ..Tally::default() };
    let few = Tally { accepted: FEW - 1, ..Tally::default() };
    for (what, want, places) in [
        ("nothing was sent", NotEnoughEvidence, vec![]),
        ("only elsewhere", NotEnoughEvidence, vec![yahoo.clone()]),
        ("too little was sent", NotEnoughEvidence, vec![google(few)]),
        ("all is well", NothingWrong, vec![google(GOOD), yahoo.clone()]),
        (
            "bad recipients are nothing of the destination's",
            NothingWrong,
            vec![google(Tally { rejected_recipient: 900, ..GOOD })],
        ),
        ("refused for the rate, at full speed", PlainThrottling, vec![google(slowed), yahoo.clone()]),
        ("refused for the rate, more than before", PlainThrottling, {
            let before = Tally { accepted: 3_000, ..Tally::default() };
            vec![Place { before, ..google(slowed) }, yahoo.clone()]
        }),
        ("refused before and now", PlainThrottling, {
            vec![Place { before: Tally { accepted: 6_500, throttled: 2_000, ..Tally::default() }, ..google(slowed) }]
        }),
        ("the account is refused for its rate, everywhere", PlainThrottling, {
            vec![google(of_account), place("yahoo", of_account)]
        }),
        (
            "the same volume was taken before",
            ReputationTrouble,
            vec![Place { before: as_before, ..google(slowed) }, yahoo.clone()],
        ),
        ("refused though slow", ReputationTrouble, vec![Place { rate_per_s: Some(0.05), ..google(slowed) }, yahoo.clone()]),
        ("as slow as configured", PlainThrottling, {
            vec![Place { rate_per_s: Some(0.05), configured_per_s: Some(0.05), ..google(slowed) }]
        }),
        ("they say so", ReputationTrouble, vec![google(Tally { reputation: 60, ..GOOD })]),
        ("they said so once in a thousand", NothingWrong, vec![google(Tally { reputation: 1, ..GOOD })]),
        ("they say so of the first few", ReputationTrouble, vec![google(Tally { reputation: 2, ..Tally::default() })]),
        ("warming up, refused", WarmUp, vec![Place { warming: true, before: as_before, ..google(slowed) }, yahoo.clone()]),
        ("warming up", WarmUp, vec![Place { warming: true, ..google(GOOD) }]),
        ("credentials", Authentication, vec![google(Tally { rejected_account: 1, ..Tally::default() }), yahoo.clone()]),
        ("SPF", Authentication, vec![google(Tally { identity: 40, ..GOOD })]),
        ("greylisted", Greylisting, vec![google(Tally { greylisted: 400, ..GOOD })]),
        ("it is down", ReceiverDown, vec![google(down), yahoo]),
        ("everything is down", ReceiverDown, vec![google(down), place("yahoo", down)]),
        ("blocked half an hour ago, and nothing since", ReputationTrouble, {
            vec![Place { before: Tally { reputation: 300, ..GOOD }, circuit_open: true, ..google(Tally::default()) }]
        }),
        ("all went well an hour ago", NothingWrong, vec![Place { before: GOOD, ..google(Tally::default()) }]),
        ("down, but blocked too", ReputationTrouble, vec![google(Tally { reputation: 10, ..down })]),
    ] {
        assert_eq!(verdict(&places), want, "{what}: {:?}", diagnose("google", &[], &places).evidence);
    }
}

#[test]
fn evidence_is_said() {
    let slowed = Tally { throttled: 300, ..GOOD };
    let before = Tally { accepted: 6_500, ..Tally::default() };
    let here = Place { before, rate_per_s: Some(0.05), ..place("google", slowed) };
    let said = diagnose("google", &[], &[here, place("yahoo", GOOD)]);
    let text = said.evidence.join("\n");
    for words in ["1309 calls in the last 10 minutes", "the same volume", "refused though slow", "taken by yahoo"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(said.look[0].name, "Google Postmaster Tools");
    assert!(!said.advice.is_empty() && said.summary.starts_with("google: "));
    let down = Tally { temporary: 90, ..Tally::default() };
    let text = diagnose("google", &[], &[place("google", down), place("yahoo", down)]).evidence.join("\n");
    assert!(text.contains("everywhere"), "{text}");
}

#[test]
fn several_workers_make_one_place() {
    let half = |now_s| Place { now_s, now: Tally { accepted: FEW / 2, ..Tally::default() }, ..place("google", GOOD) };
    let said = diagnose("google", &[], &[half(60), half(600)]);
    assert_eq!((said.verdict, said.places.len()), (Verdict::NothingWrong, 1));
    assert_eq!((said.places[0].now.accepted, said.places[0].now_s), (FEW, 600));
}

#[test]
fn there_is_always_somebody_to_ask() {
    assert_eq!(where_to_look("corp", &["corp.example".to_owned()])[0].at, "postmaster@corp.example");
    for (destination, host) in [("google", "google.com"), ("microsoft", "outlook.com"), ("yahoo", "yahooinc.com")] {
        assert!(where_to_look(destination, &[])[0].at.contains(host));
    }
    assert!(where_to_look("apple", &[]).iter().any(|l| l.at.contains('@')));
}

#[test]
fn outcomes_are_counted_by_what_they_say() {
    let answer = |code: &str| ProviderAnswer::new(code, None, "");
    let throttled = |scope| Outcome::Throttled { scope, retry_after: None, answer: answer("x") };
    let mut t = Tally::default();
    t.count(&Outcome::accepted(None));
    t.count(&throttled(Scope::Account));
    t.count(&throttled(Scope::Destination));
    t.count(&throttled(Scope::Connection));
    t.count(&Outcome::Greylisted { retry_after: None, answer: answer("greylisted") });
    t.count(&Outcome::Temporary { retry_after: None, answer: answer("x") });
    t.count(&Outcome::Uncertain { answer: answer("x") });
    t.count(&Outcome::ReputationBlock { retry_after: None, answer: answer("on_block_list") });
    t.count(&Outcome::ReputationBlock { retry_after: None, answer: answer("no_reverse_dns") });
    t.count(&Outcome::Rejected { what: Rejected::Account, answer: answer("unauthorized") });
    t.count(&Outcome::Rejected { what: Rejected::Message, answer: answer("sender_not_authenticated") });
    t.count(&Outcome::Rejected { what: Rejected::Message, answer: answer("content_refused") });
    t.count(&Outcome::Rejected { what: Rejected::Recipients(vec![]), answer: answer("x") });
    let want = Tally {
        accepted: 1,
        throttled: 2,
        throttled_account: 1,
        greylisted: 1,
        temporary: 2,
        rejected_recipient: 1,
        rejected_message: 1,
        rejected_account: 1,
        reputation: 1,
        identity: 2,
    };
    assert_eq!((t, t.calls()), (want, 13));
}
