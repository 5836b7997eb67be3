//! What accounts want, by provider.

use super::*;

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
        assert_eq!((s.credentials.is_none(), s.max_idle.as_secs()), (true, 30));
    }
    let c =
        read(&smtp("host = \"::1\"\ntls = \"none\"\nusername = \"u\"\npassword = \"p\"\nmax_connections = 9\nconcurrency = 7"))
            .unwrap();
    let Settings::Smtp(s) = &c.accounts[0].provider else { panic!("no smtp") };
    assert_eq!((s.port, s.max_connections, c.accounts[0].concurrency), (25, 9, 7));
    assert!(s.max_idle < std::time::Duration::from_secs(1), "an idle connection takes a place that the fleet shares");
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

#[test]
fn providers_and_what_they_want() {
    use paceline_provider::Settings;
    let account = |rest: &str| format!("[[account]]\nname = \"main\"\nrate = \"9/s\"\n{rest}");
    let settings = |rest: &str| read(&account(rest)).unwrap().accounts.remove(0).provider;
    let base = "base_url = \"https://gw.example/x\"";
    for (rest, provider) in [
        ("provider = \"ses\"".to_owned(), "ses"),
        (format!("provider = \"ses\"\nregion = \"eu-west-1\"\naccess_key_id = \"A\"\nsecret_access_key = \"s\"\n{base}"), "ses"),
        (format!("provider = \"postmark\"\nserver_token = \"t\"\nmessage_stream = \"news\"\n{base}"), "postmark"),
        (format!("provider = \"mailgun\"\napi_key = \"k\"\ndomain = \"mg.example.com\"\n{base}"), "mailgun"),
        (format!("provider = \"resend\"\napi_key = \"k\"\n{base}"), "resend"),
        (format!("provider = \"sparkpost\"\napi_key = \"k\"\n{base}"), "sparkpost"),
    ] {
        assert_eq!(settings(&rest).provider(), provider);
    }
    let ses = "provider = \"ses\"\naccess_key_id = \"A\"\nsecret_access_key = \"s3cret\"\nsession_token = \"t\"\nconfiguration_set = \"e\"";
    let Settings::Ses(s) = settings(ses) else { panic!("no ses") };
    let credentials = s.credentials.unwrap();
    assert_eq!((s.region, s.configuration_set.as_deref(), credentials.access_key_id.expose()), (None, Some("e"), "A"));
    assert!(credentials.secret_access_key.expose() == "s3cret" && credentials.session_token.unwrap().expose() == "t");
    assert!(!format!("{:?}", settings(ses)).contains("s3cret"));
    for (rest, want) in [
        ("provider = \"postmark\"", "account[0].server_token: is missing; give server_token or server_token_file"),
        ("provider = \"mailgun\"\ndomain = \"x.org\"", "account[0].api_key: is missing; give api_key or api_key_file"),
        ("provider = \"mailgun\"\napi_key = \"k\"", "account[0].domain: is missing"),
        ("provider = \"mailgun\"\napi_key = \"k\"\ndomain = \"x/y\"", "account[0].domain: `x/y` is not a domain"),
        ("provider = \"resend\"", "account[0].api_key: is missing; give api_key or api_key_file"),
        ("provider = \"sparkpost\"", "account[0].api_key: is missing; give api_key or api_key_file"),
        (
            "provider = \"sparkpost\"\napi_key = \"k\"\nregion = \"x\"",
            "account[0].region: means nothing to sparkpost, which takes api_key, base_url",
        ),
        (
            "provider = \"ses\"\nsecret_access_key = \"s\"",
            "account[0].access_key_id: is missing; secret_access_key has no effect without it",
        ),
        (
            "provider = \"resend\"\napi_key = \"k\"\nbase_url = \"http://api.example\"",
            "http:// to api.example is not encrypted; use https://, or say `insecure = true` beside it",
        ),
        ("provider = \"resend\"\napi_key = \"k\"\nmessage_stream = \"x\"", "account[0].message_stream: unknown key"),
    ] {
        let got = mistakes(&account(rest));
        assert!(got.len() == 1 && got[0].contains(want), "{got:?}");
    }
    let alone = mistakes(&account("provider = \"ses\"\nsession_token = \"t\""));
    assert_eq!(alone.len(), 2, "{alone:?}");
}
