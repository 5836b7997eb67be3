//! Where operators of receiving systems show a sender's standing, and whom to write to. Data.

use serde::Serialize;

/// A place to look, or to write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Look {
    pub name: String,
    /// A page, or an address for mail.
    pub at: String,
}

/// By the names of the shipped destinations.
const PLACES: &[(&str, &[(&str, &str)])] = &[
    (
        "apple",
        &[
            ("iCloud Mail's page for postmasters", "https://support.apple.com/en-us/102322"),
            ("iCloud Mail's postmaster", "icloudadmin@apple.com"),
        ],
    ),
    ("comcast", &[("Comcast Postmaster", "https://postmaster.comcast.net")]),
    ("gmx", &[("GMX and WEB.DE Postmaster", "https://postmaster.gmx.net")]),
    (
        "google",
        &[
            ("Google Postmaster Tools", "https://postmaster.google.com"),
            ("Gmail's sender guidelines and contact", "https://support.google.com/mail/answer/81126"),
        ],
    ),
    ("mailru", &[("Postmaster Mail.ru", "https://postmaster.mail.ru")]),
    (
        "microsoft",
        &[
            ("Smart Network Data Services (SNDS)", "https://sendersupport.olc.protection.outlook.com/snds/"),
            ("Junk Mail Reporting Program (JMRP)", "https://sendersupport.olc.protection.outlook.com/snds/JMRP.aspx"),
            ("Outlook.com sender support", "https://olcsupport.office.com"),
            ("Microsoft 365 delisting", "https://sender.office.com"),
        ],
    ),
    ("orange", &[("Orange Postmaster", "https://postmaster.orange.fr")]),
    ("tonline", &[("Telekom Postmaster", "https://postmaster.t-online.de")]),
    ("yahoo", &[("Yahoo Sender Hub", "https://senders.yahooinc.com")]),
    ("yandex", &[("Yandex Postmaster", "https://postmaster.yandex.com")]),
];

/// Longest list of postmasters of domains.
const MOST_DOMAINS: usize = 3;

/// Where the sender's standing at a destination can be seen. Of one that is not known, its domains' postmasters, an
/// address that every domain with mail must have (RFC 5321, 4.5.1).
pub fn where_to_look(destination: &str, domains: &[String]) -> Vec<Look> {
    if let Some((_, places)) = PLACES.iter().find(|(name, _)| *name == destination) {
        return places.iter().map(|(name, at)| Look { name: (*name).to_owned(), at: (*at).to_owned() }).collect();
    }
    let postmaster = |domain: &String| Look { name: format!("{domain}'s postmaster"), at: format!("postmaster@{domain}") };
    domains.iter().take(MOST_DOMAINS).map(postmaster).collect()
}
