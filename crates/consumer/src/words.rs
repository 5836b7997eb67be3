//! What a limit is called, for people.

use paceline_limiter::Kind;

/// The limit whose bucket has this key and, where that is known, is of this kind. No recipient is named.
pub(crate) fn limit(key: &str, kind: Option<Kind>) -> String {
    let (of, quota) = match key.rsplit_once(":quota:") {
        Some((of, unit)) => (of, Some(unit)),
        None => (key, None),
    };
    let (of, calls) = match of.strip_suffix(":concurrency") {
        Some(of) if quota.is_none() => (of, true),
        _ => (of, false),
    };
    let whose = whose(of);
    match (quota, calls, kind) {
        (Some(unit), _, Some(Kind::Window { limit, .. })) => format!("quota {limit}/{unit} of {whose}"),
        (Some(unit), _, _) => format!("quota per {unit} of {whose}"),
        (None, true, Some(Kind::Slots { limit, .. })) => format!("concurrency {limit} of {whose}"),
        (None, true, _) => format!("concurrency of {whose}"),
        _ => whose,
    }
}

fn whose(of: &str) -> String {
    let Some((kind, name)) = of.split_once(':') else { return of.to_owned() };
    match kind {
        "account" => match name.split_once(':') {
            Some((account, rest)) => match rest.split_once(':') {
                Some((what, name)) => format!("{what} {name} of account {account}"),
                None => format!("{rest} of account {account}"),
            },
            None => format!("account {name}"),
        },
        "destination" => format!("destination {name}, all accounts"),
        // Its name is a hash, and of no use to anybody.
        "recipient" => "one recipient".to_owned(),
        _ => format!("{kind} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names() {
        let window = Kind::Window { length_us: 3_600_000_000, limit: 10_000, reserve: 0 };
        let slots = Kind::Slots { limit: 7, life_us: 1 };
        for (key, kind, want) in [
            ("account:ses-eu", None, "account ses-eu"),
            ("account:ses-eu:quota:h", Some(window), "quota 10000/h of account ses-eu"),
            ("account:ses-eu:quota:h", None, "quota per h of account ses-eu"),
            ("account:ses-eu:concurrency", Some(slots), "concurrency 7 of account ses-eu"),
            ("account:a:destination:google", None, "destination google of account a"),
            ("account:a:destination:google:quota:d", Some(window), "quota 10000/d of destination google of account a"),
            ("account:a:destination:google:concurrency", None, "concurrency of destination google of account a"),
            ("account:a:domain:b.example", None, "domain b.example of account a"),
            ("destination:google", None, "destination google, all accounts"),
            ("tenant:a:quota:x", None, "quota per x of tenant a"),
            ("tenant:acme: quota", None, "tenant acme: quota"),
            ("sender:shop.example", None, "sender shop.example"),
            ("recipient:0123456789abcdef", None, "one recipient"),
            ("recipient:0123456789abcdef:quota:d", Some(window), "quota 10000/d of one recipient"),
            ("", None, ""),
        ] {
            assert_eq!(limit(key, kind), want, "{key}");
        }
    }
}
