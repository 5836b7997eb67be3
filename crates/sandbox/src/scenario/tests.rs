use super::*;
use crate::step::Step;

#[test]
fn the_example_is_a_scenario() {
    let scenario = Scenario::from_toml(include_str!("../../../../ops/examples/sandbox.toml")).unwrap();
    assert!(!scenario.rules.is_empty() && !scenario.limits.is_empty());
    assert_eq!(Scenario::from_toml(""), Ok(Scenario::default()));
}

#[test]
fn a_rule_in_full() {
    let text = r#"
        [[rule]]
        to = "*@gmail.com"
        domain = "gmail.*"
        from = "*@b.org"
        class = "low"
        api = "sendgrid"
        path = "/eu/*"
        attempt = [1, 3]
        every = 10
        then = "answer"
        fail_times = 2
        per = "recipient"
        answer = { status = 429, headers = { Retry-After = "7" }, body = "{}" }
        delay = ["10ms", "2s"]
        accepted = false
    "#;
    let scenario = Scenario::from_toml(text).unwrap();
    let rule = &scenario.rules[0];
    assert_eq!(
        (rule.attempts.clone(), rule.every, rule.per, rule.accepted),
        (Some(vec![1, 3]), Some(10), PerSequence::Recipient, false)
    );
    assert_eq!([rule.then.at(1), rule.then.at(2), rule.then.at(3)], [Step::Answer, Step::Answer, Step::Accept]);
    assert_eq!(rule.delay, Some((Duration::from_millis(10), Duration::from_secs(2))));
    assert_eq!(rule.answer.as_ref().unwrap().status, 429);
}

#[test]
fn every_mistake_at_once_with_its_place() {
    let text = r#"api_key = ""
sed = 1
[[limit]]
per = "galaxy"
rate = "fast"
[[limit]]
per = "account"
domain = "x.org"
[[rule]]
then = ["503x2", "hagn"]
attempt = 0
[[rule]]
to = "*"
then = "drop-unread"
[[rule]]
then = ["503", "accept"]
fail_times = 2
delay = ["2s", "1s"]
[[rule]]
answer = { status = 42, headers = { "Content-Length" = "7" }, bdoy = "" }
[[rule]]
to = "*"
"#;
    let errors = Scenario::from_toml(text).unwrap_err();
    let shown: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let starts = [
        "line 1, column 11: api_key: must be",
        "line 2, column 1: `sed` is not known here; known are api_key, seed, limit, rule",
        "line 4, column 7: limit 1: per: must be one of account, domain",
        "line 5, column 8: limit 1: rate: not a rate",
        "line 6, column 1: limit 2: rate: is missing",
        "line 7, column 7: limit 2: per: a limit per account has no domain",
        "line 10, column 8: rule 1: then: `hagn` is no step",
        "line 11, column 11: rule 1: attempt: must be",
        "line 12, column 1: rule 2: \"drop-unread\" stands alone",
        "line 17, column 14: rule 3: fail_times: goes with",
        "line 18, column 9: rule 3: delay: must be",
        "line 20, column 21: rule 4: answer: status: must be",
        "line 20, column 56: rule 4: answer: headers: not a header",
        "line 20, column 63: rule 4: answer: `bdoy` is not known",
        "line 21, column 1: rule 5: then: is missing",
    ];
    assert_eq!(shown.len(), starts.len(), "{shown:#?}");
    for (shown, start) in shown.iter().zip(starts) {
        assert!(shown.starts_with(start), "{shown}\n{start}");
    }
}

#[test]
fn broken_toml_is_named_by_place() {
    let errors = Scenario::from_toml("seed = 1\n[[rule]\nthen = \"503\"\n").unwrap_err();
    assert_eq!(errors[0].line, 2, "{errors:?}");
    assert!(Scenario::from_toml("[rule]\nthen = \"503\"").unwrap_err()[0].problem.contains("[[rule]]"));
    assert!(Scenario::from_toml("rule = [1]").unwrap_err()[0].problem.contains("[[rule]]"));
}
