//! A reply's text as the plain words that rules are written for.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Most of a reply that is looked at, in bytes: what matters comes first, and the rest is somebody's novel.
pub(super) const MAX_LOOKED_AT: usize = 2048;

/// Lower case, one space between words, no accents, apostrophes or punctuation around words. An e-mail address becomes
/// `addr` and an IP address `ip`, so that nobody's name decides anything; `OverQuotaTemp` becomes `over quota temp`.
/// Codes that a reply of several lines repeats are left out, so that sentences are whole again.
pub(super) fn normalise(text: &str, code: Option<u16>) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut put = |word: &str| {
        if !word.is_empty() {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(word);
        }
    };
    let code = code.map(|c| c.to_string()).unwrap_or_default();
    for token in head(text).split(|c: char| c.is_whitespace() || c.is_control() || "<>()[]{}\"|;,!?=\\*“”«»".contains(c)) {
        let token = token.trim_matches(|c: char| "'`‘’.:-_/#&$%~^".contains(c));
        if token.is_empty() || is_repeated_code(token, &code) {
            continue;
        }
        one(token, &mut put);
    }
    out
}

/// As much as is looked at, cut between characters.
pub(super) fn head(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_LOOKED_AT)).unwrap_or_default()
}

fn one(token: &str, put: &mut impl FnMut(&str)) {
    if is_ip(token) {
        return put("ip");
    }
    let (token, is_url) = match token.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (token, false),
    };
    if !is_url && let Some((before, after)) = token.split_once(':') {
        for part in [before, after] {
            one(part.trim_matches(|c: char| ".:-_/#'".contains(c)), put);
        }
        return;
    }
    if let Some((before, after)) = token.split_once('#') {
        one(before, put);
        one(after, put);
        return;
    }
    if let Some((local, domain)) = token.split_once('@')
        && !local.is_empty()
        && !domain.is_empty()
    {
        return put("addr");
    }
    if token.contains(['.', '/']) {
        return put(&fold(token));
    }
    let humps = token.as_bytes().windows(2).filter(|w| w[0].is_ascii_lowercase() && w[1].is_ascii_uppercase()).count();
    let mut word = String::with_capacity(token.len() + humps);
    let mut last = ' ';
    for c in token.chars() {
        if humps >= 2 && last.is_ascii_lowercase() && c.is_ascii_uppercase() {
            word.push(' ');
        }
        word.push(if matches!(c, '-' | '_' | '\u{2010}'..='\u{2015}') { ' ' } else { c });
        last = c;
    }
    for word in fold(&word).split(' ') {
        put(word);
    }
}

/// Lower case, without accents and apostrophes; "e-mail" and "email" are the same.
fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            '\'' | '`' | '‘' | '’' | '\u{300}'..='\u{36f}' => {}
            'à'..='å' | 'ā' | 'ă' | 'ą' => out.push('a'),
            'ç' | 'ć' | 'č' => out.push('c'),
            'ď' | 'đ' => out.push('d'),
            'è'..='ë' | 'ē' | 'ė' | 'ę' | 'ě' => out.push('e'),
            'ğ' => out.push('g'),
            'ì'..='ï' | 'ı' | 'ī' => out.push('i'),
            'ł' | 'ľ' => out.push('l'),
            'ñ' | 'ń' | 'ň' => out.push('n'),
            'ò'..='ö' | 'ø' | 'ő' => out.push('o'),
            'ř' => out.push('r'),
            'ś' | 'š' | 'ş' | 'ș' => out.push('s'),
            'ť' | 'ţ' | 'ț' => out.push('t'),
            'ù'..='ü' | 'ů' | 'ű' | 'ū' => out.push('u'),
            'ý' | 'ÿ' => out.push('y'),
            'ź' | 'ż' | 'ž' => out.push('z'),
            'ß' => out.push_str("ss"),
            'æ' => out.push_str("ae"),
            'œ' => out.push_str("oe"),
            _ => out.push(c),
        }
    }
    match out.strip_prefix("e mail") {
        Some(rest) => format!("email{rest}"),
        None => out,
    }
}

/// `192.0.2.1`, `192.0.2.1:25`, `2001:db8::1`.
fn is_ip(token: &str) -> bool {
    let bare = token.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(token, |(ip, _)| ip);
    bare.parse::<Ipv4Addr>().is_ok() || token.matches(':').count() >= 2 && token.parse::<Ipv6Addr>().is_ok()
}

/// `550`, `550-5.7.1`, `5.7.1` and `#5.7.1` within the reply of that code.
fn is_repeated_code(token: &str, code: &str) -> bool {
    let rest = match token.strip_prefix(code).filter(|_| !code.is_empty()) {
        Some("") => return true,
        Some(rest) => rest.trim_start_matches(['-', ' ']),
        None => token,
    };
    super::line::enhanced(rest.trim_matches('#')).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, want) in [
            ("<a.b@x.org>: Recipient address rejected: User unknown!", "addr recipient address rejected user unknown"),
            ("Mail from 192.0.2.1, [2001:db8::1]:25 and 192.0.2.7:1234", "mail from ip ip 25 and ip"),
            ("unusual rate of 550-5.7.1 unsolicited 550 5.7.1 mail", "unusual rate of unsolicited mail"),
            ("sorry (#5.1.1 - chkuser)", "sorry chkuser"),
            (
                "STOREDRV.Submission.Exception:SubmissionQuotaExceededException",
                "storedrv.submission.exception submission quota exceeded exception",
            ),
            ("https://support.example/mail/?p=OverQuotaTemp", "support.example/mail p over quota temp"),
            ("SpamHaus ZEN", "spamhaus zen"),
            ("l’adresse n'existe pas: boîte désactivée", "ladresse nexiste pas boite desactivee"),
            ("Your E-mail is black-listed over_quota", "your email is black listed over quota"),
            ("Postfach des Empfängers groß", "postfach des empfangers gross"),
            ("почтовый ящик ПЕРЕПОЛНЕН", "почтовый ящик переполнен"),
            ("at 11:25:27 on mx.example.org.", "at 11 25 27 on mx.example.org"),
            ("", ""),
            ("<<>> ... @ @x x@ :: ## -", "@ @x x@"),
        ] {
            assert_eq!(normalise(text, Some(550)), want, "{text}");
        }
    }

    #[test]
    fn only_the_head_is_looked_at() {
        let long = "é".repeat(MAX_LOOKED_AT);
        assert_eq!(normalise(&long, None).len(), MAX_LOOKED_AT / 2);
    }
}
