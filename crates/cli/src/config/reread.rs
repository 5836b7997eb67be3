//! The configuration read anew while a worker runs: what of it can come into force at once, and what cannot.

use super::{Account, Config};

/// `old` with everything of `new` that needs no restart: limits, `[retry]` and `[circuit]`. With it, in words, what else
/// has changed and waits for a restart.
pub fn reread(old: &Config, new: &Config) -> (Config, Vec<String>) {
    let mut merged = old.clone();
    let mut left = vec![];
    for account in &mut merged.accounts {
        match new.accounts.iter().find(|a| a.name == account.name) {
            Some(new) => {
                *account = Account {
                    limit: new.limit,
                    max_rate: new.max_rate,
                    quota: new.quota.clone(),
                    concurrency: new.concurrency,
                    fleet_concurrency: new.fleet_concurrency,
                    adaptive: new.adaptive,
                    warmup: new.warmup.clone(),
                    ..account.clone()
                };
                if !same_provider(account, new) {
                    left.push(format!("account {}: its provider, credentials or time-outs", account.name));
                }
            }
            None => left.push(format!("account {} is gone from it, but goes on", account.name)),
        }
    }
    for account in new.accounts.iter().filter(|a| !old.accounts.iter().any(|o| o.name == a.name)) {
        left.push(format!("account {} is new", account.name));
    }
    for destination in &mut merged.destinations {
        match new.destinations.iter().find(|d| d.name == destination.name) {
            Some(new) => {
                let domains = std::mem::take(&mut destination.domains);
                if domains != new.domains {
                    left.push(format!("destination {}: its domains", destination.name));
                }
                *destination = new.clone();
                destination.domains = domains;
            }
            None => left.push(format!("destination {} is gone from it, but its limits go on", destination.name)),
        }
    }
    for destination in new.destinations.iter().filter(|d| !old.destinations.iter().any(|o| o.name == d.name)) {
        left.push(format!("destination {} is new", destination.name));
    }
    merged.limits.reserve = new.limits.reserve;
    merged.limits.quota_reserve = new.limits.quota_reserve;
    merged.tail = new.tail;
    merged.tenants = new.tenants.clone();
    merged.senders = new.senders.clone();
    merged.recipient = new.recipient.clone();
    merged.retry = new.retry.clone();
    merged.circuit = new.circuit;
    let others = [
        ("[broker]", old.broker != new.broker),
        ("[limits] url", old.limits.url != new.limits.url),
        ("[store]", old.store != new.store),
        ("[http]", old.http != new.http),
        ("[[rule]]", !old.classifier.same_rules(&new.classifier)),
        ("[[reply_rule]]", old.reply_rules != new.reply_rules),
        ("[dedup]", old.dedup != new.dedup),
        ("[suppression]", old.suppression != new.suppression),
        ("[worker]", old.worker != new.worker),
        ("[log]", old.log != new.log),
    ];
    left.extend(others.iter().filter(|(_, changed)| *changed).map(|(name, _)| (*name).to_owned()));
    (merged, left)
}

/// Whether calls would be made as before.
fn same_provider(old: &Account, new: &Account) -> bool {
    let mut http = new.http.clone();
    // Told of by themselves; and room for calls, which follows from their number.
    http.reply_rules = old.http.reply_rules.clone();
    http.pool_size = old.http.pool_size;
    old.provider == new.provider && old.http == http
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [broker]
        url = "amqp://127.0.0.1:5672/%2f"
        [[account]]
        name = "main"
        provider = "sendgrid"
        api_key = "SG.one"
        rate = "100/s"
        quota = ["1000/h"]
        [[account]]
        name = "spare"
        provider = "sendgrid"
        api_key = "SG.two"
        rate = "10/s"
        [[destination]]
        name = "google"
        domains = ["gmail.com"]
        rate = "5/s"
        [tail]
        rate = "300/h"
        [retry]
        attempts = 5
    "#;

    fn with(changes: &[(&str, &str)]) -> (Config, Vec<String>) {
        let read = |text: &str| Config::parse("test.toml", text).unwrap_or_else(|e| panic!("{e}"));
        let text = changes.iter().fold(FILE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        reread(&read(FILE), &read(&text))
    }

    #[test]
    fn limits_and_policies_come_into_force() {
        let (merged, left) = with(&[
            ("rate = \"100/s\"", "rate = \"200/s\"\nconcurrency = 7"),
            ("[\"1000/h\"]", "[\"2000/h\", \"9000/d\"]"),
            ("rate = \"5/s\"", "rate = \"6/s\"\nfleet_rate = \"9/s\""),
            ("rate = \"300/h\"", "rate = \"600/h\"\n[[tenant]]\nname = \"acme\"\nrate = \"1/s\""),
            ("attempts = 5", "attempts = 3\n[circuit]\nrejection_rate = 0.5\n[limits]\nreserve = 0.1"),
        ]);
        assert_eq!(left, Vec::<String>::new());
        let main = &merged.accounts[0];
        assert_eq!(main.limit.unwrap().rate.to_string(), "200/s");
        assert_eq!((main.quota.len(), main.fleet_concurrency, main.concurrency), (2, Some(7), 7));
        let google = merged.destinations.iter().find(|d| d.name == "google").unwrap();
        assert_eq!((google.limit.unwrap().burst, google.fleet.unwrap().burst), (6, 9));
        assert_eq!((merged.tail.rate.to_string().as_str(), merged.tenants.len()), ("600/h", 1));
        assert!((merged.limits.reserve - 0.1).abs() < 1e-9 && (merged.circuit.rejection_rate - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_waits_for_a_restart_is_named_and_left() {
        let (merged, left) = with(&[
            ("SG.one", "SG.other"),
            ("name = \"spare\"", "name = \"other\""),
            ("gmail.com", "gmail.com\", \"googlemail.com"),
            ("127.0.0.1:5672", "127.0.0.2:5672"),
            (
                "[tail]",
                "[[destination]]\nname = \"shop\"\ndomains = [\"shop.example\"]\n[[rule]]\nstream = \"x\"\nclass = \"low\"\n[tail]",
            ),
        ]);
        let expected = [
            "account main: its provider, credentials or time-outs",
            "account spare is gone from it, but goes on",
            "account other is new",
            "destination google: its domains",
            "destination shop is new",
            "[broker]",
            "[[rule]]",
        ];
        assert_eq!(left, expected);
        assert_eq!(merged.accounts.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["main", "spare"]);
    }
}
