//! `[account.feedback]`: by what the events of an account's provider are told from forged ones.

use std::time::Duration;

use paceline_control::feedback::{BadKey, Scheme};

use super::{section::Section, values};

/// Providers whose events are understood.
const PROVIDERS: [(&str, &str); 6] = [
    ("ses", "ses"),
    ("sendgrid", "sendgrid"),
    ("postmark", "postmark"),
    ("mailgun", "mailgun"),
    ("resend", "resend"),
    ("sparkpost", "sparkpost"),
];
/// What any of them needs: a wrong one is told apart from a misspelt key.
const PROOFS: [&str; 9] = [
    "topics",
    "verification_key",
    "verification_key_file",
    "signing_key",
    "signing_key_file",
    "username",
    "username_file",
    "password",
    "password_file",
];

/// `None` where the account takes no events, or a problem has been reported.
pub(super) fn feedback(account: &Section<'_>) -> Option<Scheme> {
    let s = account.section("feedback");
    let scheme = s.given().then(|| scheme(account, &s)).flatten();
    s.finish_but(&PROOFS);
    scheme
}

fn scheme(account: &Section<'_>, s: &Section<'_>) -> Option<Scheme> {
    let own = PROVIDERS.into_iter().map(|(name, _)| name).find(|name| account.is("provider", name));
    let provider = s.get("provider", values::one_of(&PROVIDERS));
    let tolerance = s.get("tolerance", values::duration(Duration::from_secs(60), Duration::from_secs(86_400)));
    if s.has("provider") && provider.is_none() {
        return None;
    }
    let Some(provider) = provider.or(own) else {
        s.report_self("the account's provider has no events of its own; name whose they are with `provider`");
        return None;
    };
    let own: &[&str] = match provider {
        "ses" => &["topics"],
        "sendgrid" => &["verification_key"],
        "mailgun" | "resend" => &["signing_key"],
        _ => &["username", "password"],
    };
    for key in PROOFS {
        if s.has(key) && !own.contains(&key.strip_suffix("_file").unwrap_or(key)) {
            s.report(key, format!("means nothing to the events of {provider}, which take {}", own.join(", ")));
        }
    }
    if tolerance.is_some() && own.contains(&"password") {
        s.report("tolerance", format!("means nothing to the events of {provider}, which sign no time"));
    }
    let scheme = match provider {
        "ses" => {
            s.require("topics");
            checked(s, "topics", Scheme::ses(s.list("topics", values::line)?))
        }
        "sendgrid" => {
            let key = s.text_or_file("verification_key");
            if !s.has_secret("verification_key") {
                s.report("verification_key", "is missing; give verification_key or verification_key_file");
            }
            checked(s, "verification_key", Scheme::sendgrid(&[key?]))
        }
        "mailgun" => Some(Scheme::mailgun(&needed(s, "signing_key")?)),
        "resend" => checked(s, "signing_key", Scheme::resend(&needed(s, "signing_key")?)),
        _ => {
            let (username, password) = (needed(s, "username"), needed(s, "password"));
            let (username, password) = (username?, password?);
            let made = if provider == "postmark" { Scheme::postmark } else { Scheme::sparkpost };
            checked(s, "username", made(&username, &password))
        }
    }?;
    Some(tolerance.map_or(scheme.clone(), |tolerance| scheme.tolerating(tolerance)))
}

fn needed(s: &Section<'_>, key: &str) -> Option<String> {
    let secret = s.secret(key);
    if !s.has_secret(key) {
        s.report(key, format!("is missing; give {key} or {key}_file"));
    }
    secret.map(|secret| secret.expose().to_owned())
}

fn checked(s: &Section<'_>, key: &str, made: Result<Scheme, BadKey>) -> Option<Scheme> {
    made.map_err(|problem| {
        let file = format!("{key}_file");
        s.report(if s.has(&file) { &file } else { key }, problem.to_string());
    })
    .ok()
}
