use super::*;

fn read(api: Api, body: &[u8], whole: bool) -> Result<Facts<'_>, Unreadable> {
    Facts::read(api, "", body, whole)
}

const SENDGRID: &str = r#"{"personalizations":[{"to":[{"email":"u@gmail.com","name":"U"},{"email":"\u0076@y.org"}],
    "bcc":[{"email":"w@z.org"}],"custom_args":{"x":1}}],"from":{"email":"s@b.org"},"custom_args":{"paceline_id":"m-1","class":"high"},
    "subject":"Hi","attachments":[{"content":[[{"email":7}]]}],"content":[{"type":"text/plain","value":"t"}]}"#;

#[test]
fn of_a_sendgrid_request() {
    let facts = read(Api::SendGrid, SENDGRID.as_bytes(), true).unwrap();
    let recipients: Vec<_> = facts.recipients.iter().map(|r| (&*r.email, r.list, r.personalization, r.index)).collect();
    assert_eq!(recipients, [("u@gmail.com", "to", 0, 0), ("v@y.org", "to", 0, 1), ("w@z.org", "bcc", 0, 0)]);
    assert_eq!(
        (facts.id.as_deref(), facts.class.as_deref(), facts.from.as_deref()),
        (Some("m-1"), Some("high"), Some("s@b.org"))
    );
    assert!(facts.subject && facts.content && !facts.template);
    assert_eq!(facts.domain(), "gmail.com");
}

#[test]
fn of_an_http_request() {
    let body = r#"{"id":"m-1","class":"low","from":{"name":"S","email":"s@b.org"},"to":["u@gmail.com"],"cc":[{"email":"v@y.org"}],"template":{"id":"t"}}"#;
    let facts = read(Api::Http, body.as_bytes(), true).unwrap();
    assert_eq!((facts.id.as_deref(), facts.class.as_deref(), facts.from.as_deref()), (Some("m-1"), Some("low"), Some("s@b.org")));
    assert_eq!((facts.recipients.len(), facts.subject, facts.content, facts.template), (2, false, false, true));
}

#[test]
fn what_stands_before_the_cut_is_known() {
    let cut = SENDGRID.find("attachments").unwrap() + 20;
    let facts = read(Api::SendGrid, &SENDGRID.as_bytes()[..cut], false).unwrap();
    assert_eq!((facts.id.as_deref(), facts.recipients.len(), facts.content), (Some("m-1"), 3, true));
    assert!(read(Api::SendGrid, &SENDGRID.as_bytes()[..cut], true).is_err());
}

#[test]
fn hostile_bodies_are_refused_or_hold_nothing() {
    let deep = "[".repeat(100_000);
    for bad in ["", "nonsense", "{", "{\"a\":1}x", &deep, "\u{0}"] {
        assert!(read(Api::SendGrid, bad.as_bytes(), true).is_err(), "{}", &bad[..bad.len().min(20)]);
    }
    for odd in ["null", "7", "[]", "\"x\"", r#"{"personalizations":7,"from":[],"to":{"email":"a@b.c"}}"#] {
        assert_eq!(read(Api::SendGrid, odd.as_bytes(), true).unwrap(), Facts::default(), "{odd}");
    }
}

#[test]
fn of_the_other_requests() {
    let want = |id: &str, subject, content, template| {
        format!(
            "{id} class=low from=s@b.org to u@gmail.com 0; to v@y.org 1; cc w@z.org 0 subject={subject} content={content} template={template}"
        )
    };
    let ses = |content: &str| {
        format!(
            r#"{{"FromEmailAddress":"S <s@b.org>","Destination":{{"ToAddresses":["u@gmail.com","V <v@y.org>"],"CcAddresses":["w@z.org"]}},
            "EmailTags":[{{"Name":"paceline_id","Value":"m-1"}},{{"Name":"class","Value":"low"}}],"Content":{content}}}"#
        )
    };
    let postmark = |content: &str| {
        format!(
            r#"{{"From":"\"S, T\" <s@b.org>","To":"u@gmail.com, \"V, \\\"x\" <v@y.org>","Cc":"w@z.org","Metadata":{{"paceline_id":"m-1","class":"low"}},{content}}}"#
        )
    };
    let resend = |content: &str| {
        format!(
            r#"{{"from":"S <s@b.org>","to":["u@gmail.com","V <v@y.org>"],"cc":"w@z.org","tags":[{{"name":"x","value":"y"}},
            {{"name":"paceline_id","value":"m-1"}},{{"name":"class","value":"low"}}],{content}}}"#
        )
    };
    let sparkpost = |content: &str| {
        format!(
            r#"{{"recipients":[{{"address":{{"email":"u@gmail.com","header_to":"x"}}}},{{"address":"v@y.org"}}],
            "metadata":{{"paceline_id":"m-1","class":"low"}},"content":{content}}}"#
        )
    };
    let sparkpost_want = |from: &str, subject, content, template| {
        want("m-1", subject, content, template).replace("; cc w@z.org 0", "").replace("from=s@b.org", from)
    };
    let table = [
        (Api::Ses, ses(r#"{"Simple":{"Subject":{"Data":"Hi"},"Body":{"Text":{"Data":"t"}}}}"#), want("m-1", true, true, false)),
        (Api::Ses, ses(r#"{"Raw":{"Data":"eA=="}}"#), want("m-1", true, true, false)),
        (Api::Ses, ses(r#"{"Template":{"TemplateName":"t"}}"#), want("m-1", false, false, true)),
        (Api::Ses, ses("{}"), want("m-1", false, false, false)),
        (Api::Postmark, postmark(r#""Subject":"Hi","HtmlBody":"h""#), want("m-1", true, true, false)),
        (Api::Postmark, postmark(r#""TemplateId":7"#), want("m-1", false, false, true)),
        (Api::Postmark, postmark(r#""TemplateAlias":"x""#), want("m-1", false, false, true)),
        (Api::Resend, resend(r#""subject":"Hi","text":"t""#), want("m-1", true, true, false)),
        (Api::Resend, resend(r#""template":{"id":"t"}"#), want("m-1", false, false, true)),
        (
            Api::SparkPost,
            sparkpost(r#"{"from":{"email":"s@b.org"},"subject":"Hi","html":"h"}"#),
            sparkpost_want("from=s@b.org", true, true, false),
        ),
        (Api::SparkPost, sparkpost(r#"{"template_id":"t"}"#), sparkpost_want("from=", false, false, true)),
    ];
    for (api, body, want) in table {
        assert_eq!(shown(&read(api, body.as_bytes(), true).unwrap()), want, "{body}");
    }
}

fn shown(facts: &Facts<'_>) -> String {
    let text = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or_default().to_owned();
    let recipients: Vec<_> = facts.recipients.iter().map(|r| format!("{} {} {}", r.list, r.email, r.index)).collect();
    let Facts { subject, content, template, .. } = facts;
    format!(
        "{} class={} from={} {} subject={subject} content={content} template={template}",
        text(&facts.id),
        text(&facts.class),
        text(&facts.from),
        recipients.join("; ")
    )
}

#[test]
fn of_mailguns_forms() {
    let want = "m-1 class=low from=s@b.org to u@gmail.com 0; to v@y.org 1; cc w@z.org 0 subject=true content=true template=false";
    let url = "from=S+%3Cs%40b.org%3E&to=u%40gmail.com%2C+V+%3Cv%40y.org%3E&cc=w%40z.org&subject=Hi&text=t&v%3Apaceline_id=m-1&v%3Aclass=low";
    let facts = Facts::read(Api::Mailgun, "application/x-www-form-urlencoded", url.as_bytes(), true).unwrap();
    assert_eq!(shown(&facts), want);
    let part = |name: &str, value: &str| format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let fields = [("from", "s@b.org"), ("to", "u@gmail.com"), ("to", "v@y.org"), ("cc", "w@z.org"), ("subject", "Hi")];
    let more = [("v:paceline_id", "m-1"), ("v:class", "low"), ("message", "From: x\r\n\r\n--xy")];
    let form: String = fields.iter().chain(&more).map(|(n, v)| part(n, v)).collect();
    let kind = "multipart/form-data; boundary=\"xyz\"";
    let whole = format!("{form}--xyz--\r\n");
    assert_eq!(shown(&Facts::read(Api::Mailgun, kind, whole.as_bytes(), true).unwrap()), want);
    let cut = &whole.as_bytes()[..form.find("message").unwrap() + 20];
    assert_eq!(shown(&Facts::read(Api::Mailgun, kind, cut, false).unwrap()), want, "what stands before the cut");
    for (kind, body) in
        [("application/json", "{}"), ("multipart/form-data", "x"), ("multipart/form-data; boundary=xyz", "{}"), ("", "")]
    {
        assert!(Facts::read(Api::Mailgun, kind, body.as_bytes(), true).is_err(), "{kind}");
    }
}

#[test]
fn of_batches() {
    let one = r#"{"From":"s@b.org","To":"u@x.org","Metadata":{"paceline_id":"m-1"},"TextBody":"t"}"#;
    for body in [format!("[{one},{{}},{one}]"), format!("{{\"X\":1,\"Messages\":[{one},{{}},{one}]}}")] {
        let all = Facts::read_batch(Api::Postmark, body.as_bytes(), true).unwrap();
        assert_eq!(all.iter().map(|f| f.id.as_deref()).collect::<Vec<_>>(), [Some("m-1"), None, Some("m-1")]);
        assert!(Facts::read_batch(Api::Postmark, body.as_bytes(), false).is_err(), "cut");
    }
    for body in ["", "7", "\"x\"", "[1", "{\"Messages\":3}"] {
        assert!(Facts::read_batch(Api::Resend, body.as_bytes(), true).is_err(), "{body}");
    }
}
