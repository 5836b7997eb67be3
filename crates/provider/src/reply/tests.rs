use proptest::prelude::*;

use super::*;

fn read(line: &str) -> Verdict {
    ReplyRules::default().read(line)
}

/// `category scope action rule`, and seconds to wait.
fn brief(v: &Verdict) -> String {
    let word = |v: serde_json::Value| v.as_str().unwrap().to_owned();
    let wait = v.retry_after.map(|d| format!(" {}s", d.as_secs())).unwrap_or_default();
    let [category, scope, action] =
        [serde_json::to_value(v.category), serde_json::to_value(v.scope), serde_json::to_value(v.action)]
            .map(|v| word(v.unwrap()));
    format!("{category} {scope} {action} {}{wait}", v.rule)
}

#[test]
fn every_rule_decides_its_samples_and_no_others() {
    let mut wrong = Vec::new();
    let mut names = Vec::new();
    for entry in shipped::file().unwrap().rule {
        let (hits, misses) = entry.samples();
        if hits.is_empty() || misses.is_empty() {
            wrong.push(format!("{} needs a reply that it decides and one that it does not", entry.name));
        }
        for line in hits {
            let got = read(line);
            if *got.rule != *entry.name {
                wrong.push(format!("{} should decide, not {}: {line}", entry.name, got.rule));
            }
        }
        for line in misses {
            if *read(line).rule == *entry.name {
                wrong.push(format!("{} should not decide: {line}", entry.name));
            }
        }
        if names.contains(&entry.name) {
            wrong.push(format!("{} is there twice", entry.name));
        }
        names.push(entry.name);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn verdicts() {
    for (line, want) in [
        ("250 2.0.0 Ok", "other message none accepted"),
        ("450 4.7.1 Error: too much mail from 192.0.2.1", "throttled destination slow_down rate_limited"),
        ("451 4.7.1 Rate limit exceeded, retry in 90 seconds", "throttled destination slow_down rate_limited 90s"),
        ("421 Too many concurrent SMTP connections", "throttled connection fewer_connections too_many_connections"),
        ("452 4.5.3 Too many recipients", "throttled message fewer_recipients too_many_recipients"),
        ("550 5.4.5 Daily user sending limit exceeded", "throttled account slow_down quota_exceeded"),
        ("450 4.2.0 Greylisted for five minutes", "greylisted recipient retry greylisted 300s"),
        ("451 4.7.1 Greylisting, come back in 00:01:30", "greylisted recipient retry greylisted 90s"),
        ("452 4.2.2 Mailbox full", "mailbox_full recipient retry mailbox_full 3600s"),
        ("452 4.2.2 Mailbox full, try again in 60 seconds", "mailbox_full recipient retry mailbox_full 3600s"),
        ("550 5.1.1 User unknown", "recipient_permanent recipient suppress recipient_unknown"),
        ("450 4.1.1 User unknown", "recipient_permanent recipient suppress_after_repeats recipient_unknown"),
        ("550 5.1.1 User unknown, try in 5 minutes", "recipient_permanent recipient suppress recipient_unknown"),
        ("554 5.7.1 Message rejected as spam", "message_permanent message dead_letter spam_or_virus"),
        ("554 5.7.1 blocked using zen.spamhaus.org", "reputation_block destination pause_destination on_block_list 14400s"),
        ("550 5.7.1 poor reputation", "reputation_block destination slow_down_hard bad_reputation 900s"),
        ("535 5.7.8 Authentication failed", "auth_or_account account stop_account authentication_failed"),
        ("550 5.7.26 DMARC", "auth_or_account destination fix_sender sender_not_authenticated"),
        ("553 5.7.1 Sender address rejected: not owned by user x", "auth_or_account message dead_letter sender_not_permitted"),
        ("554 5.7.1 Relay access denied", "auth_or_account recipient dead_letter relay_denied"),
        ("451 4.3.0 Try later", "temporary destination retry try_later"),
        ("502 5.5.2 no", "other message dead_letter refused_by_enhanced_code"),
        ("499 no", "temporary destination retry deferred"),
        ("4.4.1 later", "temporary destination retry deferred_by_enhanced_code"),
        ("nonsense", "other message retry unclear"),
        ("", "other message retry unclear"),
    ] {
        assert_eq!(brief(&read(line)), want, "{line}");
    }
}

#[test]
fn names_of_people_and_hosts_decide_nothing() {
    for line in ["550 <spam@blocked.example>: no", "550 <greylisted@x.example> no", "550 <quota.exceeded@full.example> no"] {
        assert_eq!(*read(line).rule, *"recipient_refused_by_code", "{line}");
    }
}

#[test]
fn ones_own_rules_come_first() {
    let rule = |name: &str, code: &str, text: &str| {
        let text = ReplyRuleText {
            name: name.into(),
            code: vec![code.into()],
            text: vec![text.into()],
            category: Some(Category::Temporary),
            scope: Some(Scope::Connection),
            wait: Some(Duration::from_secs(7)),
            action: Some(Action::SlowDown),
            ..ReplyRuleText::default()
        };
        ReplyRule::new(text).unwrap()
    };
    let rules = ReplyRules::new(vec![
        rule("mine", "55x", "user unknown"),
        rule("second", "55x", "user unknown"),
        rule("third", "4xx", ".*"),
    ]);
    assert_eq!(brief(&rules.read("550 5.1.1 User  UNKNOWN.")), "temporary connection slow_down mine 7s");
    assert_eq!(*rules.read("421 what").rule, *"third");
    assert_eq!(*rules.read("554 users unknown").rule, *"recipient_unknown");
    assert_eq!(rules, rules.clone());
    assert_ne!(rules, ReplyRules::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_line_gets_a_verdict(line in "\\PC{0,300}", code in 0u16..1000, text in "(\\PC|[a-z<>@:;.#_ -]){0,200}") {
        read(&line);
        read(&format!("{code} {text}"));
        read(&format!("{code}-5.7.1 {text}\r\n{code} 5.7.1 {line}"));
    }
}

#[test]
fn hostile_lines_are_lines() {
    for line in [
        "user ".repeat(100_000),
        format!("550 {}unknown", "mailbox the ".repeat(50_000)),
        "550 <<<<".to_owned() + &">".repeat(100_000),
        format!("550 {}", "a@".repeat(50_000)),
        format!("550 {}", ":".repeat(100_000)),
        format!("550 {}", "x:".repeat(50_000)),
        format!("550 {}", "x#".repeat(50_000)),
        "\u{130}".repeat(100_000),
        "5.".repeat(100_000),
        "\0\u{1b}[2J".repeat(10_000),
    ] {
        read(&line);
    }
}
