use std::time::Duration;

use super::*;

mod accounts;

fn read_in(base: PathBuf, text: &str, variables: &[(&str, &str)]) -> (Result<Config, ConfigError>, BTreeSet<String>) {
    let variables: Vec<_> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    match tree::parse("p.toml", text) {
        Ok(root) => Config::from_tree(root, &variables, base, vec![]),
        Err(problems) => (Err(ConfigError { problems, warnings: vec![] }), BTreeSet::new()),
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    read_in(PathBuf::new(), text, &[]).0
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    read_in(PathBuf::new(), text, variables).0
}

/// The mistakes, one a line.
fn mistakes(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => vec![],
        Err(e) => e.problems.iter().map(ToString::to_string).collect(),
    }
}

const ACCOUNT: &str = "[[account]]\nname = \"main\"\nprovider = \"sendgrid\"\napi_key = \"k\"\nrate = \"100/s\"\n";

fn amqp(c: &Config) -> &[Address] {
    match &c.broker.url {
        BrokerUrl::RabbitMq(addresses) => addresses,
        BrokerUrl::Spool(path) => panic!("a spool at {path:?}"),
    }
}

#[test]
fn embedded_parts_live_in_files_beside_the_configuration() {
    let text = "[broker]\nurl = \"spool:./p.db\"\n[limits]\nurl = \"local:\"\n[store]\nurl = \"sqlite:///srv/s.db\"";
    let c = read_in(PathBuf::from("/etc/p"), text, &[]).0.unwrap();
    assert!(matches!(&c.broker.url, BrokerUrl::Spool(p) if p == Path::new("/etc/p/./p.db")));
    assert!(matches!(&c.limits.url, LimitsUrl::Local { claims: Some(p) } if p == Path::new("/etc/p/./p.claims.db")));
    assert!(matches!(&c.store.url, StoreUrl::Sqlite(p) if p == Path::new("/srv/s.db")));
    assert!(c.warnings.is_empty());
    let c = read("[limits]\nurl = \"local:\"").unwrap();
    assert!(matches!(&c.limits.url, LimitsUrl::Local { claims: None }));
    assert_eq!(c.warnings.len(), 1);
    let c = read("").unwrap().embedded(Path::new("/d"));
    assert!(matches!(&c.broker.url, BrokerUrl::Spool(p) if p == Path::new("/d/spool.db")));
}

#[test]
fn nothing_is_a_good_configuration() {
    let c = read("").unwrap();
    assert_eq!(amqp(&c)[0].expose(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!((c.broker.prefix.as_str(), c.broker.max_message_bytes), ("paceline", 10 << 20));
    assert!(matches!(&c.limits.url, LimitsUrl::Redis(a) if a[0].expose() == "redis://127.0.0.1:6379"));
    assert_eq!((c.limits.reserve, c.tail.burst, c.tail.rate.to_string()), (0.2, 20, "300/h".to_owned()));
    assert_eq!(c.retry, Policy::default());
    assert_eq!((c.worker.concurrency, c.worker.max_held_bytes), (64, 16 << 20));
    assert_eq!(c.http.listen.to_string(), "127.0.0.1:8025");
    assert_eq!(c.dedup.window, Duration::from_secs(86_400));
    assert!(c.accounts.is_empty() && c.warnings.is_empty());
    assert_eq!(c.destinations.len(), paceline_classifier::presets::ALL.len());
}

#[test]
fn every_mistake_at_once_each_with_its_place() {
    let text = r#"
[broker]
url = ["amqp://mq.example/%2f", "http://x"]
prefix = "Pace Line"
max_mesage_bytes = 5

[limits]
url = "redis://127.0.0.1:6379"
reserve = 1.5

[http]
listen = "localhost:8025"
token_file = "/nonexistent/token"
token = "t"

[[account]]
name = "ses-eu"
provider = "ses"
access_key_id = "AKID"

[[account]]
name = "a"
provider = "sengrid"
rate = "fast"

[[account]]
provider = "sendgrid"
server_token = "x"
concurrency = "many"

[[destination]]
name = "tail"
domains = ["ok.example", "not a domain", "gmail.*"]

[[rule]]
class = "urgent"

[retry]
base = 60
max = "1 fortnight"

[retry.low]
base = "2h"

[brocker]
"#;
    let got = mistakes(text);
    let want = [
        r#"p.toml:3:8: broker.url[0]: amqp:// to mq.example is not encrypted; use amqps://, or say `insecure = true` beside it"#,
        r#"p.toml:3:33: broker.url[1]: begins with `http:`; write amqp://user:password@host:5672/%2f"#,
        r#"p.toml:4:10: broker.prefix: must be 1 to 40 of a-z 0-9 -"#,
        r#"p.toml:5:1: broker.max_mesage_bytes: unknown key; did you mean `max_message_bytes`?"#,
        r#"p.toml:9:11: limits.reserve: must be a number from 0 to 0.9"#,
        r#"p.toml:12:10: http.listen: must be an IP address and a port, such as 127.0.0.1:8025 or 0.0.0.0:8025"#,
        r#"p.toml:13:14: http.token_file: `token` is given as well; give one of the two"#,
        r#"p.toml:16:1: account[0].secret_access_key: is missing; access_key_id has no effect without it"#,
        r#"p.toml:23:12: account[1].provider: no such provider; did you mean `sendgrid`?"#,
        r#"p.toml:24:8: account[1].rate: not a rate; write a number and a unit, such as "100/s", "20/min", "300/h" or "50000/d""#,
        r#"p.toml:26:1: account[2].api_key: is missing; give api_key or api_key_file"#,
        r#"p.toml:26:1: account[2].name: is missing"#,
        r#"p.toml:28:16: account[2].server_token: means nothing to sendgrid, which takes api_key, base_url"#,
        r#"p.toml:29:15: account[2].concurrency: must be an integer from 1 to 10000, not a text"#,
        r#"p.toml:32:8: destination[0].name: `tail` is reserved"#,
        r#"p.toml:33:26: destination[0].domains[1]: `not a domain` is not a domain"#,
        r#"p.toml:33:42: destination[0].domains[2]: `gmail.*` is not a domain; list each domain by itself, without `*` and `@`"#,
        r#"p.toml:35:1: rule[0]: has no condition; give at least one of stream, tag, tenant, from, subject, header"#,
        r#"p.toml:36:9: rule[0].class: `urgent` is not a class; use critical, high, normal or low"#,
        r#"p.toml:39:8: retry.base: needs a unit: "60s", "60min" …"#,
        r#"p.toml:40:7: retry.max: is not a duration; write a number and a unit, such as "250ms", "60s", "15min", "1h" or "3d""#,
        r#"p.toml:43:8: retry.low.base: "2h" is longer than max = "1h" of class low"#,
        r#"p.toml:45:2: brocker: unknown key; did you mean `broker`?"#,
    ];
    assert_eq!(got, want, "{}", got.join("\n"));
}

#[test]
fn single_mistakes() {
    let mut wrong = vec![];
    for (text, want) in [
        ("[broker", "p.toml:1:8: not valid TOML: unclosed table, expected `]`"),
        ("broker = 5", "p.toml:1:10: broker: must be a section, not an integer"),
        ("[[broker]]", "p.toml:1:1: broker: is one section; write [broker]"),
        ("[account]\nname = \"x\"", "p.toml:1:1: account: is a list; write [[account]]"),
        ("[broker]\nurl = []", "p.toml:2:7: broker.url: is empty; give at least one"),
        (
            "[broker]\nurl = \"spool:\"",
            "p.toml:2:7: broker.url: names no file; write spool:./paceline.db or spool:///var/lib/paceline/paceline.db",
        ),
        (
            "[broker]\nurl = [\"spool:a.db\", \"amqp://127.0.0.1\"]",
            "p.toml:2:7: broker.url: a spool stands alone: give one `spool:` or addresses of RabbitMQ",
        ),
        ("[store]\nurl = \"sqlite:x.db?mode=ro\"", "p.toml:2:7: store.url: takes nothing but a path after `sqlite:`"),
        (
            "[store]\nurl_file = \"/nonexistent/u\"",
            "p.toml:2:12: store.url_file: the file /nonexistent/u cannot be read: No such file or directory (os error 2)",
        ),
        ("[tail]\nburst = 0", "p.toml:2:9: tail.burst: must be an integer from 1 to 10000000"),
        ("[tail]\nrate = 5", "p.toml:2:8: tail.rate: needs a unit: \"5/s\", \"5/min\", \"5/h\" or \"5/d\""),
        ("[retry]\nmax = \"30s\"", "p.toml:2:7: retry.max: \"30s\" is shorter than base = \"1min\" of class normal"),
        (
            "[worker]\nmax_held_bytes = \"64MB\"",
            "p.toml:2:18: worker.max_held_bytes: must be a number of bytes, or one with KiB, MiB or GiB such as \"64MiB\"",
        ),
        ("[log]\nformat = \"xml\"", "p.toml:2:10: log.format: must be \"json\" or \"text\""),
        (
            "[log]\nlevel = \"loud=maybe\"",
            "p.toml:2:9: log.level: must be error, warn, info, debug or trace, or directives such as \"info,paceline_broker=debug\"",
        ),
        ("[[rule]]\ntag = \"\"\nclass = \"low\"", "p.toml:2:7: rule[0].tag: is empty; `*` matches everything"),
        (
            "[[rule]]\ntag = \"x\"\nclass = \"high\"\nmax_class = \"low\"",
            "p.toml:4:13: rule[0].max_class: has a class more urgent than its own max_class",
        ),
        (
            "[[rule]]\nheader = \"x\"\nclass = \"high\"",
            "p.toml:2:10: rule[0].header: must be a table of header names and patterns, such as { \"X-Priority\" = \"1*\" }",
        ),
        ("[[destination]]\nname = \"mine\"\nrate = \"5/s\"", "p.toml:1:1: destination[0].domains: is missing"),
        ("[[destination]]\nname = \"mine\"\ndomains = []", "p.toml:3:11: destination[0].domains: is empty; give at least one"),
        (
            "[[destination]]\nname = \"mine\"\ndomains = [\"a.org\"]\nfleet_burst = 5",
            "p.toml:4:15: destination[0].fleet_burst: has no effect without `fleet_rate`",
        ),
        (
            "[[destination]]\nname = \"x\"\ndomains = [\"a.org\"]\n[[destination]]\nname = \"y\"\ndomains = [\"b.org\", \"A.org\"]",
            "p.toml:6:21: destination[1].domains[1]: `a.org` belongs to `x` already",
        ),
        (
            "[[sender]]\nname = \"@\"\nrate = \"1/s\"",
            "p.toml:2:8: sender[0].name: the address has a local part that is empty, too long or malformed",
        ),
    ] {
        if mistakes(text) != [want] {
            wrong.push(format!("{text}\n  got  {:?}\n  want {want:?}", mistakes(text)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn secrets_are_never_shown() {
    let c = read(&format!(
        "[broker]\nurl = \"amqp://joe:hunter2@127.0.0.1/%2f\"\n[http]\ntoken = \"hunter2\"\n{}",
        ACCOUNT.replace("\"k\"", "\"hunter2\"")
    ))
    .unwrap();
    assert!(!format!("{c:?}").contains("hunter2"));
    let bad = mistakes("[broker]\nurl = \"amqp://joe:hunter2@mq.example/%2f\"\n[store]\nurl = \"hunter2\"");
    assert!(bad.len() == 2 && !bad.concat().contains("hunter2"), "{bad:?}");
}

#[test]
fn secrets_from_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "SG.x\n").unwrap();
    std::fs::write(dir.path().join("urls"), "amqp://127.0.0.1:1/%2f\namqp://127.0.0.1:2/%2f\n").unwrap();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    let text = format!("[broker]\nurl_file = \"urls\"\n{}", ACCOUNT.replace("api_key = \"k\"", "api_key_file = \"key\""));
    let c = read_in(dir.path().into(), &text, &[]).0.unwrap();
    assert!(
        matches!(&c.accounts[0].provider, paceline_provider::Settings::SendGrid { api_key, .. } if api_key.expose() == "SG.x")
    );
    assert_eq!(amqp(&c).len(), 2);
    let e = read_in(dir.path().into(), &text.replace("\"key\"", "\"empty\""), &[]).0.unwrap_err();
    assert_eq!(e.to_string(), "p.toml:6:16: account[0].api_key_file: the file empty is empty");
}

#[test]
fn the_environment_wins() {
    let c = with_env(
        &format!("[broker]\nurl_file = \"/nonexistent\"\nprefix = \"x\"\n{ACCOUNT}"),
        &[
            ("PACELINE__BROKER__URL", "amqp://127.0.0.1:7/%2f"),
            ("PACELINE__BROKER__MAX_MESSAGE_BYTES", "2048"),
            ("PACELINE__LIMITS__RESERVE", "0.1"),
            ("PACELINE__ACCOUNT__MAIN__RATE", "7/s"),
            ("PACELINE__ACCOUNT__1__NAME", "second"),
            ("PACELINE__ACCOUNT__1__PROVIDER", "http"),
            ("PACELINE__ACCOUNT__1__URL", "http://127.0.0.1:9/"),
            ("PACELINE__DESTINATION__0__NAME", "mine"),
            ("PACELINE__DESTINATION__0__DOMAINS", "[\"a.org\", \"b.org\"]"),
            ("PACELINE__RETRY__CRITICAL__BASE", "2s"),
            ("PACELINE__CLASSIFY__PRESETS", "false"),
            ("PACELINE_CONFIG", "not a setting"),
        ],
    )
    .unwrap();
    assert_eq!((amqp(&c)[0].expose(), c.broker.prefix.as_str()), ("amqp://127.0.0.1:7/%2f", "x"));
    assert_eq!((c.broker.max_message_bytes, c.limits.reserve), (2048, 0.1));
    assert_eq!(c.accounts[0].limit.unwrap().rate.to_string(), "7/s");
    assert_eq!(c.accounts[1].name, "second");
    assert_eq!((c.destinations.len(), c.destinations[0].domains.len()), (1, 2));
    assert_eq!(c.retry.of(paceline_core::Class::Critical).base, Duration::from_secs(2));
    let e = with_env(
        ACCOUNT,
        &[
            ("PACELINE__BROKER__URLL", "x"),
            ("PACELINE__BROKER__PREFIX__X", "x"),
            ("PACELINE__BROKER____X", "x"),
            ("PACELINE__ACCOUNT__OTHER__RATE", "1/s"),
            ("PACELINE__ACCOUNT__5__RATE", "1/s"),
            ("PACELINE__TAIL__BURST", "many"),
            ("PACELINE__DESTINATION__0__DOMAINS", "[\"a"),
        ],
    )
    .unwrap_err();
    for want in [
        "environment PACELINE__BROKER__URLL: broker.urll: unknown key; did you mean `url`?",
        "environment PACELINE__ACCOUNT__OTHER__RATE: no account is named so; add one by its number: PACELINE__ACCOUNT__0__…",
        "environment PACELINE__ACCOUNT__5__RATE: there is no account before number 5; numbers start at 0 and leave no gap",
        "environment PACELINE__TAIL__BURST: tail.burst: must be an integer from 1 to 10000000",
        "environment PACELINE__BROKER____X: has an empty part; write PACELINE__SECTION__KEY",
    ] {
        assert!(e.problems.iter().any(|p| p.to_string() == want), "{want}\nnot in\n{e}");
    }
}

#[test]
fn destinations_and_presets() {
    let c = read(
        r#"
[[destination]]
name = "google"
rate = "10/s"
[[destination]]
name = "mine"
domains = ["me.com", "gmail.com", "my.example"]
fleet_rate = "5/s"
[[destination]]
name = "apple"
burst = 7
"#,
    )
    .unwrap();
    let of = |name: &str| c.destinations.iter().find(|d| d.name == name).unwrap();
    let limit = |name: &str| of(name).limit.map(|l| (l.rate.to_string(), l.burst));
    assert_eq!(limit("google"), Some(("10/s".into(), 10)));
    assert_eq!(of("google").domains.len(), 1, "gmail.com has gone to `mine`");
    assert_eq!((limit("mine"), of("mine").fleet.map(|f| f.burst)), (None, Some(5)));
    assert_eq!(limit("apple"), Some(("50/s".into(), 7)));
    assert_eq!(limit("yahoo"), Some(("100/s".into(), 100)));
    let to = |domain: &str| c.classifier.destination(&paceline_core::Domain::parse(domain).unwrap()).to_string();
    assert_eq!(
        ["gmail.com", "googlemail.com", "me.com", "mac.com", "my.example", "x.org"].map(to),
        ["mine", "google", "mine", "apple", "mine", "tail"]
    );
    let c = read("[classify]\npresets = false").unwrap();
    assert!(c.destinations.is_empty());
}

#[test]
fn retry_by_class() {
    let of = |text: &str| {
        let c = read(text).unwrap();
        paceline_core::Class::ALL.map(|class| {
            let p = c.retry.of(class);
            (p.attempts, p.base.as_secs(), p.max.as_secs(), p.max_age.as_secs() / 60)
        })
    };
    let day = 24 * 60;
    assert_eq!(of(""), [(5, 5, 60, 15), (5, 60, 3600, day), (5, 60, 3600, day), (5, 60, 3600, 3 * day)]);
    // The example of the documentation changes nothing.
    assert_eq!(of("[retry]\nattempts = 5\nbase = \"60s\"\nmax = \"1h\""), of(""));
    // Shorter for all is shorter for critical too; longer is not.
    assert_eq!(of("[retry]\nattempts = 3\nbase = \"1s\"\nmax = \"4s\"\nmax_age = \"10min\""), [(3, 1, 4, 10); 4]);
    assert_eq!(of("[retry]\nbase = \"2min\"")[0], (5, 5, 60, 15));
    assert_eq!(of("[retry.critical]\nbase = \"10s\"\nattempts = 2")[0], (2, 10, 60, 15));
}

#[test]
fn quotas_and_calls_at_a_time() {
    let c = read(&format!(
        "{ACCOUNT}quota = [\"10000/h\", \"50000/d\"]\nconcurrency = 9\n\
         [[destination]]\nname = \"google\"\nquota = [\"400/h\"]\nconcurrency = 3\n\
         [[tenant]]\nname = \"acme\"\nquota = [\"100/d\"]\n[[sender]]\nname = \"X.org\"\nrate = \"1/s\"\n\
         [recipient]\nrate = \"1/h\"\nquota = [\"5/d\"]\n"
    ))
    .unwrap();
    assert!(c.warnings.is_empty(), "{:?}", c.warnings);
    let account = &c.accounts[0];
    assert_eq!((account.quota.len(), account.concurrency, account.fleet_concurrency), (2, 9, Some(9)));
    let google = c.destinations.iter().find(|d| d.name == "google").unwrap();
    assert_eq!((google.quota[0].to_string().as_str(), google.concurrency), ("400/h", Some(3)));
    assert!(google.limit.is_some(), "the rest is the preset's");
    assert_eq!((c.tenants[0].limit, c.tenants[0].quota[0].units()), (None, 100));
    assert!(c.senders[0].limit.is_some() && c.recipient.unwrap().quota.len() == 1);
    assert_eq!(read(ACCOUNT).unwrap().accounts[0].fleet_concurrency, None);

    for (text, key) in [
        (format!("{ACCOUNT}quota = [\"0.5/h\"]"), "account[0].quota[0]"),
        (format!("{ACCOUNT}quota = [\"5/h\", \"9/d\", \"7/h\"]"), "account[0].quota[2]"),
        (format!("{ACCOUNT}concurrency = 0"), "account[0].concurrency"),
        ("[[tenant]]\nname = \"acme\"".into(), "tenant[0].rate"),
        ("[[tenant]]\nname = \"acme\"\nrate = \"1/s\"\n[[tenant]]\nname = \"Acme\"\nrate = \"1/s\"".into(), "tenant[1].name"),
        ("[recipient]\nburst = 3".into(), "recipient.burst"),
    ] {
        assert!(mistakes(&text).iter().any(|m| m.contains(key)), "{text}: {:?}", mistakes(&text));
    }
}

#[test]
fn what_is_not_in_force_is_said() {
    let text = format!(
        "{ACCOUNT}max_rate = \"200/s\"\n[account.warmup]\nstart = \"50/d\"\n[broker]\nmax_depth = {{ low = 5 }}\n\
         [circuit]\nopen = \"9s\"\n"
    );
    let c = read(&text).unwrap();
    let keys: Vec<_> = c.warnings.iter().filter(|w| w.problem.contains("not in force yet")).map(|w| w.key.as_str()).collect();
    assert_eq!(keys, ["broker.max_depth"]);
    assert!(read(&format!("{ACCOUNT}max_rate = \"100/s\"")).unwrap().warnings.is_empty());
    for (text, key) in [
        (format!("{ACCOUNT}max_rate = \"50/s\""), "account[0].max_rate: is less than"),
        (
            "[[destination]]\nname = \"google\"\nrate = \"9/s\"\nmax_rate = \"8/s\"".into(),
            "destination[0].max_rate: is less than",
        ),
        (
            "[[destination]]\nname = \"a\"\ndomains = [\"a.org\"]\nmax_rate = \"8/s\"".into(),
            "destination[0].max_rate: has no effect",
        ),
        ("[circuit]\nwindow = \"11min\"".into(), "circuit.window"),
    ] {
        let found = mistakes(&text);
        assert!(found.len() == 1 && found[0].contains(key), "{text}: {found:?}");
    }
}

#[test]
fn rules_for_replies() {
    let good = "[[reply_rule]]\nname = \"a\"\ncode = [421, \"45x\"]\ntext = \"queue full\"\ncategory = \"throttled\"\nscope = \"account\"\n";
    let config = read(&format!("{good}{ACCOUNT}")).unwrap();
    assert_eq!(*config.reply_rules.read("421 Queue full.").rule, *"a");
    assert_eq!(config.accounts[0].http.reply_rules, config.reply_rules);
    for (rule, want) in [
        ("category = \"other\"\ncode = 421", "p.toml:1:1: reply_rule[0].name: is missing"),
        ("name = \"a\"\ncode = 421", "p.toml:1:1: reply_rule[0].category: is missing"),
        ("name = \"a\"\ncategory = \"other\"", "p.toml:1:1: reply_rule[0]: has no condition; give code, enhanced or text"),
        ("name = \"A b\"\ncategory = \"other\"\ncode = 421", "p.toml:2:8: reply_rule[0].name: must be 1 to 60 of a-z 0-9 _"),
        ("name = \"a\"\ncategory = \"odd\"\ncode = 421", "p.toml:3:12: reply_rule[0].category: must be \"throttled\" or"),
        ("name = \"a\"\ncategory = \"other\"\ncode = 42", "p.toml:4:8: reply_rule[0].code: `42` is not a code"),
        (
            "name = \"a\"\ncategory = \"other\"\nenhanced = \"4.7\"",
            "p.toml:4:12: reply_rule[0].enhanced: `4.7` is not an enhanced code",
        ),
        (
            "name = \"a\"\ncategory = \"other\"\ntext = [\"a(\"]",
            "p.toml:4:8: reply_rule[0].text: is not a regular expression: error: unclosed group",
        ),
        ("name = \"a\"\ncategory = \"other\"\ntext = []", "p.toml:4:8: reply_rule[0].text: is empty; give at least one"),
        ("name = \"a\"\ncategory = \"other\"\ncode = 421\nwait = \"3d\"", "p.toml:5:8: reply_rule[0].wait: must be at most 1d"),
        (
            "name = \"a\"\ncategory = \"other\"\ncode = 421\naction = \"pray\"",
            "p.toml:5:10: reply_rule[0].action: must be \"slow_down\" or",
        ),
        ("name = \"a\"\ncategory = \"other\"\ncode = 421\ntxt = \"x\"", "reply_rule[0].txt: unknown key; did you mean `text`?"),
    ] {
        let got = mistakes(&format!("[[reply_rule]]\n{rule}\n"));
        assert!(got.len() == 1 && got[0].contains(want), "{rule}: {got:?}");
    }
}

#[test]
fn events_of_providers() {
    let of = |provider: &str, feedback: &str| {
        let account = match provider {
            "sendgrid" => ACCOUNT.to_owned(),
            _ => "[[account]]\nname = \"main\"\nprovider = \"smtp\"\nhost = \"a.b\"\nrate = \"1/s\"\n".to_owned(),
        };
        format!("{account}[account.feedback]\n{feedback}")
    };
    let key = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIk4VFSeXGXYtq7L5NWHXwgfHL9/lOR34NADTWCrZBdDdOHaeaRI6dVJzcLWvtgvYRZjEeHaiPVeQmOYAl4/ALA==";
    let verification = format!("verification_key = \"{key}\"");
    let topic = "topics = [\"arn:aws:sns:eu-west-1:1:t\"]";
    for (account, feedback, provider, tolerance_s) in [
        ("sendgrid", verification.as_str(), "sendgrid", 600),
        ("sendgrid", &format!("{verification}\ntolerance = \"1h\""), "sendgrid", 3600),
        ("smtp", &format!("provider = \"ses\"\n{topic}"), "ses", 4500),
        ("smtp", "provider = \"mailgun\"\nsigning_key = \"hunter2\"", "mailgun", 600),
        ("smtp", "provider = \"resend\"\nsigning_key = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"", "resend", 300),
        ("smtp", "provider = \"postmark\"\nusername = \"u\"\npassword = \"hunter2\"", "postmark", 0),
        ("sendgrid", "provider = \"sparkpost\"\nusername = \"u\"\npassword = \"hunter2\"", "sparkpost", 0),
    ] {
        let c = read(&of(account, feedback)).unwrap();
        let scheme = c.accounts[0].feedback.as_ref().unwrap();
        assert_eq!((scheme.provider(), scheme.tolerance().as_secs()), (provider, tolerance_s), "{feedback}");
        assert!(!format!("{c:?}").contains("hunter2"), "{feedback}");
    }
    assert!(read(ACCOUNT).unwrap().accounts[0].feedback.is_none());
    for (account, feedback, want) in [
        ("smtp", "", "account[0].feedback: the account's provider has no events of its own; name whose they are with `provider`"),
        (
            "smtp",
            "provider = \"brevo\"",
            "account[0].feedback.provider: must be \"ses\" or \"sendgrid\" or \"postmark\" or \"mailgun\" or \"resend\" or \"sparkpost\"",
        ),
        ("sendgrid", "", "account[0].feedback.verification_key: is missing; give verification_key or verification_key_file"),
        (
            "sendgrid",
            "verification_key = \"SG.key\"",
            "account[0].feedback.verification_key: is not a verification key as SendGrid shows it: base64 of a public key on the curve P-256",
        ),
        ("smtp", "provider = \"ses\"", "account[0].feedback.topics: is missing"),
        (
            "smtp",
            "provider = \"ses\"\ntopics = \"events\"",
            "account[0].feedback.topics: is not the ARN of an SNS topic, such as arn:aws:sns:eu-west-1:123456789012:ses-events",
        ),
        (
            "smtp",
            "provider = \"resend\"\nsigning_key = \"hunter2\"",
            "account[0].feedback.signing_key: is not a signing secret as Resend shows it: `whsec_` and base64",
        ),
        (
            "smtp",
            "provider = \"mailgun\"\nsigning_key = \"k\"\npassword = \"p\"",
            "account[0].feedback.password: means nothing to the events of mailgun, which take signing_key",
        ),
        (
            "smtp",
            "provider = \"postmark\"\nusername = \"u\"\npassword = \"p\"\ntolerance = \"5min\"",
            "account[0].feedback.tolerance: means nothing to the events of postmark, which sign no time",
        ),
        (
            "smtp",
            "provider = \"mailgun\"\nsigning_keys = \"k\"\nsigning_key = \"k\"",
            "account[0].feedback.signing_keys: unknown key; did you mean `signing_key`?",
        ),
    ] {
        let got = mistakes(&of(account, feedback));
        assert!(got.len() == 1 && got[0].ends_with(want), "{feedback}: {got:?}");
    }
}

/// `ops/paceline.toml`, once as it is and once with each stanza that is commented out put in force.
mod documentation {
    use super::*;

    const FILE: &str = include_str!("../../../../ops/paceline.toml");

    fn setting(line: &str) -> Option<&str> {
        let body = line.strip_prefix('#').unwrap_or(line);
        body.starts_with(|c: char| c.is_ascii_lowercase() || c == '[').then_some(body)
    }

    /// Every line that is a setting or a header, without its `#`; and the keys they set.
    fn keys() -> BTreeSet<String> {
        let (mut section, mut keys) = (String::new(), BTreeSet::new());
        for line in FILE.lines().filter_map(setting) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_matches(['[', ']']).to_owned();
                keys.insert(section.clone());
                continue;
            }
            let (key, value) = line.split_once('=').unwrap();
            let key = format!("{section}.{}", key.trim());
            if key == "broker.max_depth" {
                keys.extend(
                    ["critical", "high", "normal", "low"].into_iter().filter(|c| value.contains(c)).map(|c| format!("{key}.{c}")),
                );
            }
            keys.insert(key);
        }
        keys
    }

    #[test]
    fn is_a_good_configuration_of_defaults() {
        let c = read(FILE).unwrap();
        let d = read("").unwrap();
        assert!(c.warnings.is_empty(), "{:?}", c.warnings);
        assert_eq!(
            (c.retry, c.circuit, c.dedup, c.suppression, c.worker, c.log, c.tail),
            (d.retry, d.circuit, d.dedup, d.suppression, d.worker, d.log, d.tail)
        );
    }

    #[test]
    fn documents_every_key_and_no_other() {
        let uncommented: String = FILE.lines().filter_map(setting).map(|l| format!("{l}\n")).collect();
        // Forms that exclude each other are given together here: the mistakes do not matter, what is asked for does.
        let (_, known) = read_in(PathBuf::new(), &uncommented, &[]);
        let documented = keys();
        let missing: Vec<_> = known.difference(&documented).collect();
        let stale: Vec<_> = documented.difference(&known).collect();
        assert!(missing.is_empty() && stale.is_empty(), "not documented: {missing:?}; unknown: {stale:?}");
    }

    #[test]
    fn every_line_can_be_put_in_force() {
        let mut tried = 0;
        let lines: Vec<&str> = FILE.lines().collect();
        let mut section_is_commented = false;
        for (i, line) in lines.iter().enumerate() {
            if line.starts_with("#[") {
                section_is_commented = true;
            } else if line.starts_with('[') {
                section_is_commented = false;
            }
            let Some(body) = setting(line).filter(|_| line.starts_with('#')) else { continue };
            // In a stanza that is commented out, one setting alone stands in no section: take the whole stanza.
            let text: String = if section_is_commented {
                if !body.starts_with('[') {
                    continue;
                }
                let end = lines[i..].iter().position(|l| l.is_empty()).map_or(lines.len(), |n| i + n);
                let open = |(n, l): (usize, &&str)| {
                    if (i..end).contains(&n) { setting(l).unwrap_or("").to_owned() } else { (*l).to_owned() }
                };
                lines.iter().enumerate().map(|l| open(l) + "\n").collect()
            } else {
                let open = |(n, l): (usize, &&str)| if n == i { body.to_owned() } else { (*l).to_owned() };
                lines.iter().enumerate().map(|l| open(l) + "\n").collect()
            };
            tried += 1;
            let problems: Vec<_> = mistakes(&text)
                .into_iter()
                .filter(|p| {
                    !p.contains("cannot be read") && !p.contains("give one of the two") && !p.contains("has no effect without")
                })
                .collect();
            assert!(problems.is_empty(), "{body}: {problems:?}");
        }
        assert!(tried > 60, "{tried}");
    }
}
