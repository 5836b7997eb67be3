use paceline_core::{
    circuit::CircuitPolicy,
    evidence::{Counts, SLOT_US},
    scope::Learnt,
};

use super::*;

const NOW: u64 = 1_800_000_000 * SLOT_US;

fn policy(adaptive: bool) -> Account {
    let pace = |per_s| PacePolicy { start_per_s: per_s, ceiling_per_s: per_s, concurrency: None };
    let google = PacePolicy { concurrency: Some(8), ..pace(50.0) };
    Account {
        name: "main".into(),
        policy: AccountPolicy {
            circuit: CircuitPolicy::default(),
            pace: pace(UNLIMITED),
            warmup: None,
            destinations: [("google".into(), google), ("yahoo".into(), pace(60.0))].into(),
        },
        adaptive,
        starts: BTreeMap::new(),
        version: 0,
        learnt: BTreeMap::new(),
    }
}

fn view(adaptive: bool) -> View {
    View { accounts: vec![policy(adaptive)] }
}

fn google() -> Of {
    Some("google".into())
}

fn open(until_us: u64) -> Learnt {
    Learnt { circuit: Circuit::Open { until_us }, ..Learnt::default() }
}

fn answer(version: u64, learnt: &[(Of, Learnt)]) -> AccountAnswer {
    let learnt = learnt.iter().map(|(of, l)| (of.clone(), Versioned { generation: version, learnt: *l })).collect();
    AccountAnswer { version, learnt: Some(learnt), ..AccountAnswer::default() }
}

fn counts(counts: Counts) -> BTreeMap<Arc<str>, Evidence> {
    let mut evidence = Evidence::default();
    (1..=5).for_each(|s| evidence.add(NOW / SLOT_US - s, counts));
    [("google".into(), evidence)].into()
}

#[test]
fn what_is_known_holds_at_its_buckets() {
    let mut view = view(true);
    assert_eq!(view.effects(NOW), HashMap::new());
    assert!(view.take(0, &answer(1, &[(google(), open(NOW + 5))])).is_empty());
    let effects = view.effects(NOW);
    let closed = Effect { closed_until_us: NOW + 5, rate_per_s: Some(2.0), no_burst: true, ..Effect::default() };
    assert_eq!((effects["account:main:destination:google"], effects.get("account:main")), (closed, None));
    assert!(view.restless());
    view.take(0, &answer(2, &[(None, open(NOW + 9)), (google(), Learnt::default())]));
    assert_eq!(view.effects(NOW)["account:main:destination:google"], Effect::default(), "others may think otherwise");
    assert_eq!(view.effects(NOW)["account:main"].closed_until_us, NOW + 9);
    assert_eq!(view.accounts[0].rate(&None, NOW), None, "nothing limits it");
    assert_eq!(view.accounts[0].rate(&google(), NOW), Some(50.0));
}

#[test]
fn an_account_and_a_destination_warm_up_together() {
    let mut view = view(true);
    view.accounts[0].policy.warmup = Some(Warmup { start_per_s: 10.0, factor: 2.0, days: 9 });
    view.accounts[0].starts = [("google".into(), 3.0)].into();
    let day = 86_400 * SLOT_US;
    view.take(0, &answer(1, &[(None, Learnt { first_us: NOW - day, ..Learnt::default() })]));
    let rate = |of: &Of| view.accounts[0].rate(of, NOW);
    assert_eq!((rate(&None), rate(&google()), rate(&Some("yahoo".into()))), (Some(20.0), Some(6.0), Some(60.0)));
    assert_eq!(view.effects(NOW)["account:main:destination:google"].rate_per_s, Some(6.0));
}

#[test]
fn refusals_change_the_rate_only_where_it_is_adaptive() {
    let refused = counts(Counts { answered: 50, throttled: 50, ..Counts::default() });
    for (adaptive, changes) in [(true, 1), (false, 0)] {
        assert_eq!(view(adaptive).judge(0, &refused, NOW).len(), changes, "adaptive: {adaptive}");
    }
    let mut cut = Learnt::default();
    cut.pace.rate_per_s = Some(5.0);
    cut.pace.concurrency = Some(2);
    for (adaptive, keys) in [(true, 2), (false, 0)] {
        let mut view = view(adaptive);
        view.take(0, &answer(1, &[(google(), cut)]));
        let changed = view.effects(NOW).into_values().filter(|e| *e != Effect::default()).count();
        assert_eq!(changed, keys, "adaptive: {adaptive}");
    }
}

#[test]
fn what_the_shared_memory_lost_is_put_back() {
    let mut view = view(true);
    view.take(0, &answer(3, &[(None, open(1)), (google(), open(2))]));
    let lost = view.take(0, &answer(1, &[(None, open(7))]));
    let held = Versioned { generation: 0, learnt: open(2) };
    assert_eq!(lost, [Due { account: 0, of: google(), from: held, to: open(2), causes: vec![] }]);
    assert_eq!(view.accounts[0].learnt(&google()), open(2), "it holds meanwhile");
    let report = view.report(&News::new(), &lost, Duration::ZERO, Duration::ZERO);
    assert_eq!((report.accounts[0].known, report.accounts[0].puts[0].from), (1, 0));
    assert!(view.take(0, &answer(2, &[])).is_empty(), "somebody's conclusion is no loss");
}

#[test]
fn what_the_store_kept_fills_the_gaps() {
    let mut view = view(true);
    let kept = |account: &str, destination: Of, learnt| Kept { account: account.into(), destination, learnt, at_us: 1 };
    let first = |first_us| Learnt { first_us, ..Learnt::default() };
    view.take(0, &answer(4, &[(None, Learnt { first_us: 90, ..open(7) }), (Some("yahoo".into()), open(8))]));
    let due = view.remember(&[
        kept("main", None, first(50)),
        kept("main", google(), open(5)),
        kept("main", Some("yahoo".into()), open(6)),
        kept("gone", None, first(1)),
    ]);
    let told: Vec<_> = due.iter().map(|d| (d.of.clone(), d.from.generation, d.to)).collect();
    assert_eq!(told, [(None, 4, Learnt { first_us: 50, ..open(7) }), (google(), 0, open(5))]);
    assert!(view.remember(&[kept("main", None, first(90))]).is_empty());
}

#[test]
fn a_block_closes_its_destination_until_it_is_closed() {
    let mut view = view(true);
    let until = NOW + 3_600 * SLOT_US;
    let mut blocks = Blocks::from([((0, "google".into()), until), ((0, "yahoo".into()), NOW)]);
    let mut due = Vec::new();
    view.block(&mut blocks, &mut due, NOW);
    assert_eq!((due.len(), blocks.len()), (1, 1), "what is over needs nothing");
    assert_eq!((due[0].to, &due[0].causes[..]), (open(until), &[Cause::Circuit(CircuitCause::ReputationBlock)][..]));
    // A conclusion drawn in the same round gives way.
    let mut other = vec![Due { to: open(NOW + 5), causes: vec![Cause::Circuit(CircuitCause::ProbeFailed)], ..due[0].clone() }];
    view.block(&mut blocks, &mut other, NOW);
    assert_eq!(other, due);
    view.take(0, &answer(1, &[(google(), open(until))]));
    let mut nothing = Vec::new();
    view.block(&mut blocks, &mut nothing, NOW);
    assert!(nothing.is_empty() && blocks.is_empty());
}

#[test]
fn an_order_is_where_rates_start_and_end_and_what_was_learnt_stays() {
    let mut settings = crate::limits::tests::settings();
    settings.accounts[0].max_rate = Some("150/s".parse().unwrap());
    let order = |name: &str, rate: &str| (name.parse().unwrap(), rate.parse().unwrap());
    let mut view = View::new(&settings, &Rates::new());
    let rates = |view: &View| [None, google()].map(|of| view.accounts[0].rate(&of, NOW).unwrap());
    let mut learnt = Learnt::default();
    learnt.pace.rate_per_s = Some(140.0);
    view.take(0, &answer(1, &[(None, learnt), (google(), learnt)]));
    assert_eq!(rates(&view), [140.0, 50.0]);
    view.reread(&settings, &[order("account:main", "300/s"), order("destination:google", "90/s")].into_iter().collect());
    assert_eq!(rates(&view), [140.0, 90.0], "the ceiling is the order's");
    let pace = |of: &Of| (view.accounts[0].pace(of).start_per_s, view.accounts[0].pace(of).ceiling_per_s);
    assert_eq!((pace(&None), pace(&google())), ((300.0, 300.0), (90.0, 90.0)));
    view.reread(&settings, &[order("account:main", "20/s")].into_iter().collect());
    assert_eq!(rates(&view), [20.0, 50.0]);
    view.reread(&settings, &Rates::new());
    assert_eq!(rates(&view), [140.0, 50.0], "as before the orders");
}
