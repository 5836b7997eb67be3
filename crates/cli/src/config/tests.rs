use std::time::Duration;

use super::*;

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

#[test]
fn nothing_is_a_good_configuration() {
    let c = read("").unwrap();
    assert_eq!(c.broker.urls[0].expose(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!((c.broker.prefix.as_str(), c.broker.max_message_bytes), ("paceline", 10 << 20));
    assert!(matches!(&c.limits.url, LimitsUrl::Redis(a) if a.expose() == "redis://127.0.0.1:6379"));
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
        r#"p.toml:18:12: account[0].provider: `ses` is not in this version; supported are sendgrid, http, smtp, capture"#,
        r#"p.toml:22:12: account[1].provider: no such provider; did you mean `sendgrid`?"#,
        r#"p.toml:23:8: account[1].rate: not a rate; write a number and a unit, such as "100/s", "20/min", "300/h" or "50000/d""#,
        r#"p.toml:25:1: account[2].api_key: is missing; give api_key or api_key_file"#,
        r#"p.toml:25:1: account[2].name: is missing"#,
        r#"p.toml:27:16: account[2].server_token: means nothing to sendgrid, which takes api_key, base_url"#,
        r#"p.toml:28:15: account[2].concurrency: must be an integer from 1 to 10000, not a text"#,
        r#"p.toml:31:8: destination[0].name: `tail` is reserved"#,
        r#"p.toml:32:26: destination[0].domains[1]: `not a domain` is not a domain"#,
        r#"p.toml:32:42: destination[0].domains[2]: `gmail.*` is not a domain; list each domain by itself, without `*` and `@`"#,
        r#"p.toml:34:1: rule[0]: has no condition; give at least one of stream, tag, tenant, from, subject, header"#,
        r#"p.toml:35:9: rule[0].class: `urgent` is not a class; use critical, high, normal or low"#,
        r#"p.toml:38:8: retry.base: needs a unit: "60s", "60min" …"#,
        r#"p.toml:39:7: retry.max: is not a duration; write a number and a unit, such as "250ms", "60s", "15min", "1h" or "3d""#,
        r#"p.toml:42:8: retry.low.base: "2h" is longer than max = "1h" of class low"#,
        r#"p.toml:44:2: brocker: unknown key; did you mean `broker`?"#,
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
            "[broker]\nurl = \"spool:./x.db\"",
            "p.toml:2:7: broker.url: the embedded broker (spool:) is not in this version; use amqp://host:5672/%2f",
        ),
        (
            "[store]\nurl = \"sqlite:x.db\"",
            "p.toml:2:7: store.url: the embedded store (sqlite:) is not in this version; use postgres://user@host/database",
        ),
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
    assert_eq!(c.broker.urls.len(), 2);
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
    assert_eq!((c.broker.urls[0].expose(), c.broker.prefix.as_str()), ("amqp://127.0.0.1:7/%2f", "x"));
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
fn what_is_not_in_force_is_said() {
    let text = format!(
        "{ACCOUNT}max_rate = \"200/s\"\nquota = [\"50000/d\"]\n[account.warmup]\nstart = \"50/d\"\n[broker]\nmax_depth = {{ low = 5 }}\n\
         [[tenant]]\nname = \"acme\"\nrate = \"1/s\"\n[[sender]]\nname = \"x.org\"\nrate = \"1/s\"\n[recipient]\nrate = \"1/h\"\n[circuit]\nopen = \"9s\"\n"
    );
    let c = read(&text).unwrap();
    let keys: Vec<_> = c.warnings.iter().filter(|w| w.problem.contains("not in force yet")).map(|w| w.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "account[0].max_rate",
            "account[0].quota",
            "account[0].warmup",
            "broker.max_depth",
            "tenant[0]",
            "sender[0]",
            "recipient",
            "circuit"
        ]
    );
    assert!(read(&format!("{ACCOUNT}max_rate = \"100/s\"")).unwrap().warnings.is_empty());
    assert_eq!(mistakes(&format!("{ACCOUNT}max_rate = \"50/s\"")).len(), 1);
}

#[test]
fn mail_servers_and_files() {
    use paceline_provider::{Settings, Tls};
    let account = |rest: &str| format!("[[account]]\nname = \"main\"\nrate = \"9/s\"\n{rest}");
    let smtp = |rest: &str| account(&format!("provider = \"smtp\"\n{rest}"));
    for (rest, tls, port) in
        [("", Tls::StartTls, 587), ("tls = \"implicit\"", Tls::Implicit, 465), ("port = 2525", Tls::StartTls, 2525)]
    {
        let c = read(&smtp(&format!("host = \"mx.example\"\n{rest}"))).unwrap();
        let Settings::Smtp(s) = &c.accounts[0].provider else { panic!("no smtp") };
        assert_eq!((s.host.as_str(), s.tls, s.port, c.accounts[0].concurrency), ("mx.example", tls, port, 5));
        assert!(s.credentials.is_none());
    }
    let c =
        read(&smtp("host = \"::1\"\ntls = \"none\"\nusername = \"u\"\npassword = \"p\"\nmax_connections = 9\nconcurrency = 7"))
            .unwrap();
    let Settings::Smtp(s) = &c.accounts[0].provider else { panic!("no smtp") };
    assert_eq!((s.port, s.max_connections, c.accounts[0].concurrency), (25, 9, 7));
    assert!(s.credentials.as_ref().is_some_and(|c| c.username == "u" && c.password.expose() == "p"));
    let c = read(&account("provider = \"capture\"\ndir = \"mail\"")).unwrap();
    assert!(matches!(&c.accounts[0].provider, Settings::Capture { dir } if dir == std::path::Path::new("mail")));
    for (text, want) in [
        (account("provider = \"capture\""), "account[0].dir: is missing"),
        (smtp(""), "account[0].host: is missing"),
        (smtp("host = \"a.b\"\ntls = \"ssl\""), "account[0].tls: must be \"starttls\", \"implicit\" or \"none\""),
        (
            smtp("host = \"a.b\"\ntls = \"none\""),
            "account[0].tls: mail to a.b would not be encrypted; use \"starttls\" or \"implicit\", or say `insecure = true` beside it",
        ),
        (smtp("host = \"a.b\"\nusername = \"u\""), "account[0].password: is missing; username has no effect without it"),
        (smtp("host = \"a.b\"\npassword = \"p\""), "account[0].username: is missing; password has no effect without it"),
        (
            smtp("host = \"a.b\"\napi_key = \"k\""),
            "account[0].api_key: means nothing to smtp, which takes host, port, tls, username, password",
        ),
    ] {
        let got = mistakes(&text);
        assert!(got.len() == 1 && got[0].ends_with(want), "{got:?}");
    }
    assert!(read(&smtp("host = \"a.b\"\ntls = \"none\"\ninsecure = true")).is_ok());
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
            (c.retry, c.circuit, c.dedup, c.worker, c.log, c.tail),
            (d.retry, d.circuit, d.dedup, d.worker, d.log, d.tail)
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
