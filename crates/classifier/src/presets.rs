//! The well-known destinations: who runs which domains, and figures to start from.
//!
//! Domains are listed one by one, because each becomes a binding in the broker. A country variant that another
//! operator runs (yahoo.co.jp) is left out on purpose. The figures for connections and messages a connection are the
//! public shaping figures in common use; the rates are starting points that hold per account.

use paceline_core::Rate;

/// A destination that need not be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    pub domains: &'static [&'static str],
    /// Rate per account; the burst is one second of it.
    pub rate: Rate,
    /// Connections open at once, where mail goes out by SMTP.
    pub connections: u32,
    pub messages_per_connection: u32,
}

/// All of them, by name.
pub const ALL: [Preset; 12] = [
    preset("apple", APPLE, 50, 10, 5),
    preset("comcast", &["comcast.net"], 20, 25, 1000),
    preset("gmx", GMX, 20, 4, 20),
    preset("google", &["gmail.com", "googlemail.com"], 100, 5, 50),
    preset("mailru", &["bk.ru", "inbox.ru", "internet.ru", "list.ru", "mail.ru"], 20, 4, 20),
    preset("microsoft", MICROSOFT, 100, 5, 50),
    preset("netease", &["126.com", "163.com", "188.com", "vip.126.com", "vip.163.com", "yeah.net"], 20, 4, 7),
    preset("orange", &["orange.fr", "wanadoo.fr"], 20, 2, 100),
    preset("qq", &["foxmail.com", "qq.com", "vip.qq.com"], 20, 4, 8),
    preset("tonline", &["magenta.de", "t-online.de"], 20, 4, 20),
    preset("yahoo", YAHOO, 100, 10, 20),
    preset("yandex", YANDEX, 20, 4, 20),
];

/// The preset of that name.
pub fn find(name: &str) -> Option<&'static Preset> {
    ALL.iter().find(|p| p.name == name)
}

const fn preset(
    name: &'static str,
    domains: &'static [&'static str],
    per_second: u32,
    connections: u32,
    messages_per_connection: u32,
) -> Preset {
    Preset { name, domains, rate: Rate::per_second(per_second), connections, messages_per_connection }
}

const APPLE: &[&str] = &["icloud.com", "mac.com", "me.com"];

const GMX: &[&str] = &[
    "gmx.at",
    "gmx.biz",
    "gmx.ca",
    "gmx.ch",
    "gmx.co.uk",
    "gmx.com",
    "gmx.de",
    "gmx.es",
    "gmx.eu",
    "gmx.fr",
    "gmx.info",
    "gmx.it",
    "gmx.li",
    "gmx.net",
    "gmx.org",
    "gmx.us",
    "web.de",
];

const YANDEX: &[&str] =
    &["narod.ru", "ya.ru", "yandex.by", "yandex.com", "yandex.com.tr", "yandex.kz", "yandex.ru", "yandex.ua", "yandex.uz"];

const MICROSOFT: &[&str] = &[
    "hotmail.be",
    "hotmail.ca",
    "hotmail.ch",
    "hotmail.cl",
    "hotmail.co.id",
    "hotmail.co.il",
    "hotmail.co.in",
    "hotmail.co.jp",
    "hotmail.co.kr",
    "hotmail.co.nz",
    "hotmail.co.th",
    "hotmail.co.uk",
    "hotmail.co.za",
    "hotmail.com",
    "hotmail.com.ar",
    "hotmail.com.au",
    "hotmail.com.br",
    "hotmail.com.hk",
    "hotmail.com.tr",
    "hotmail.com.tw",
    "hotmail.com.vn",
    "hotmail.cz",
    "hotmail.de",
    "hotmail.dk",
    "hotmail.es",
    "hotmail.fi",
    "hotmail.fr",
    "hotmail.gr",
    "hotmail.hu",
    "hotmail.it",
    "hotmail.lt",
    "hotmail.lv",
    "hotmail.my",
    "hotmail.nl",
    "hotmail.no",
    "hotmail.ph",
    "hotmail.rs",
    "hotmail.se",
    "hotmail.sg",
    "hotmail.sk",
    "live.at",
    "live.be",
    "live.ca",
    "live.ch",
    "live.cl",
    "live.cn",
    "live.co.kr",
    "live.co.uk",
    "live.co.za",
    "live.com",
    "live.com.ar",
    "live.com.au",
    "live.com.mx",
    "live.com.my",
    "live.com.ph",
    "live.com.pt",
    "live.com.sg",
    "live.de",
    "live.dk",
    "live.fi",
    "live.fr",
    "live.hk",
    "live.ie",
    "live.in",
    "live.it",
    "live.jp",
    "live.nl",
    "live.no",
    "live.ru",
    "live.se",
    "msn.com",
    "outlook.at",
    "outlook.be",
    "outlook.cl",
    "outlook.co.id",
    "outlook.co.il",
    "outlook.co.nz",
    "outlook.co.th",
    "outlook.com",
    "outlook.com.ar",
    "outlook.com.au",
    "outlook.com.br",
    "outlook.com.gr",
    "outlook.com.tr",
    "outlook.com.vn",
    "outlook.cz",
    "outlook.de",
    "outlook.dk",
    "outlook.es",
    "outlook.fr",
    "outlook.hu",
    "outlook.ie",
    "outlook.in",
    "outlook.it",
    "outlook.jp",
    "outlook.kr",
    "outlook.lv",
    "outlook.my",
    "outlook.ph",
    "outlook.pt",
    "outlook.sa",
    "outlook.sg",
    "outlook.sk",
    "passport.com",
    "windowslive.com",
];

const YAHOO: &[&str] = &[
    "aim.com",
    "ameritech.net",
    "aol.ca",
    "aol.co.uk",
    "aol.com",
    "aol.com.au",
    "aol.com.br",
    "aol.de",
    "aol.es",
    "aol.fr",
    "aol.in",
    "aol.it",
    "aol.jp",
    "att.net",
    "bellsouth.net",
    "currently.com",
    "flash.net",
    "frontier.com",
    "frontiernet.net",
    "myyahoo.com",
    "netscape.net",
    "nvbell.net",
    "pacbell.net",
    "prodigy.net",
    "rocketmail.com",
    "rogers.com",
    "sbcglobal.net",
    "snet.net",
    "swbell.net",
    "verizon.net",
    "wans.net",
    "yahoo.ae",
    "yahoo.at",
    "yahoo.be",
    "yahoo.bg",
    "yahoo.ca",
    "yahoo.cl",
    "yahoo.co.hu",
    "yahoo.co.id",
    "yahoo.co.il",
    "yahoo.co.in",
    "yahoo.co.kr",
    "yahoo.co.nz",
    "yahoo.co.th",
    "yahoo.co.uk",
    "yahoo.co.za",
    "yahoo.com",
    "yahoo.com.ar",
    "yahoo.com.au",
    "yahoo.com.br",
    "yahoo.com.co",
    "yahoo.com.hk",
    "yahoo.com.hr",
    "yahoo.com.mx",
    "yahoo.com.my",
    "yahoo.com.pe",
    "yahoo.com.ph",
    "yahoo.com.sg",
    "yahoo.com.tr",
    "yahoo.com.tw",
    "yahoo.com.ua",
    "yahoo.com.ve",
    "yahoo.com.vn",
    "yahoo.cz",
    "yahoo.de",
    "yahoo.dk",
    "yahoo.ee",
    "yahoo.es",
    "yahoo.fi",
    "yahoo.fr",
    "yahoo.gr",
    "yahoo.ie",
    "yahoo.in",
    "yahoo.it",
    "yahoo.lt",
    "yahoo.lv",
    "yahoo.nl",
    "yahoo.no",
    "yahoo.pl",
    "yahoo.pt",
    "yahoo.ro",
    "yahoo.rs",
    "yahoo.se",
    "yahoo.sk",
    "ymail.com",
];

#[cfg(test)]
mod tests {
    use paceline_core::Domain;

    use super::*;
    use crate::{DestinationSpec, Destinations};

    #[test]
    fn presets_are_valid_sorted_and_disjoint() {
        assert!(ALL.is_sorted_by(|a, b| a.name < b.name));
        let specs = ALL.iter().map(|p| {
            assert!(p.domains.is_sorted_by(|a, b| a < b), "{}", p.name);
            let domain = |d: &&str| {
                let parsed = Domain::parse(d).unwrap();
                assert_eq!(parsed.as_str(), *d, "already normal");
                parsed
            };
            DestinationSpec { name: p.name.into(), domains: p.domains.iter().map(domain).collect() }
        });
        let d = Destinations::new(specs.collect()).unwrap();
        for (domain, want) in [
            ("gmail.com", "google"),
            ("hotmail.co.uk", "microsoft"),
            ("aol.com", "yahoo"),
            ("yahoo.com.br", "yahoo"),
            ("yahoo.co.jp", "tail"),
            ("me.com", "apple"),
            ("web.de", "gmx"),
            ("163.com", "netease"),
        ] {
            assert_eq!(&*d.lookup(&Domain::parse(domain).unwrap()), want, "{domain}");
        }
    }
}
