//! Where things stand in the requests of each API.

use crate::api::Api;

/// Where in the document the walk is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Top(Api),
    Personalizations,
    Personalization(usize),
    Destination,
    List(&'static str, usize),
    To(&'static str, usize, usize),
    From,
    Args,
    /// `custom_args` of a personalization.
    ArgsOf(usize),
    Tags,
    Tag,
    TagName,
    TagValue,
    Id,
    IdOf(usize),
    Class,
    SubjectData,
    Subject,
    /// `content` of SparkPost.
    Inline,
    /// `Content` of SES, and `Simple` in it.
    Choice,
    Simple,
    Raw,
    Content,
    Template,
}

impl Place {
    /// Where a key leads from here.
    pub(super) fn child(self, key: &str) -> Option<Place> {
        match (self, key) {
            (Place::Top(api), _) => Place::of_top(api, key),
            (Place::Personalization(n), "to" | "cc" | "bcc") => list(key, n),
            (Place::Personalization(_), "subject") | (Place::Inline, "subject") => Some(Place::Subject),
            (Place::Personalization(n), "custom_args") => Some(Place::ArgsOf(n)),
            (Place::ArgsOf(n), "paceline_id") => Some(Place::IdOf(n)),
            (Place::Args, "paceline_id") => Some(Place::Id),
            (Place::Args | Place::ArgsOf(_), "class") => Some(Place::Class),
            (Place::Tag, "name" | "Name") => Some(Place::TagName),
            (Place::Tag, "value" | "Value") => Some(Place::TagValue),
            (Place::From | Place::To(..), "email") | (Place::To(..), "address") => Some(self),
            (Place::Inline, "from") => Some(Place::From),
            (Place::Inline, "text" | "html" | "email_rfc822") => Some(Place::Content),
            (Place::Inline, "template_id") => Some(Place::Template),
            (Place::Destination, "ToAddresses") => list("to", 0),
            (Place::Destination, "CcAddresses") => list("cc", 0),
            (Place::Destination, "BccAddresses") => list("bcc", 0),
            (Place::Choice, "Simple") => Some(Place::Simple),
            (Place::Choice, "Raw") => Some(Place::Raw),
            (Place::Choice, "Template") => Some(Place::Template),
            (Place::Simple, "Subject") => Some(Place::SubjectData),
            (Place::SubjectData, "Data") => Some(Place::Subject),
            (Place::Simple, "Body") => Some(Place::Content),
            _ => None,
        }
    }

    fn of_top(api: Api, key: &str) -> Option<Place> {
        match (api, key) {
            (Api::SendGrid, "personalizations") => Some(Place::Personalizations),
            (Api::SendGrid, "custom_args") | (Api::Http | Api::SparkPost, "metadata") => Some(Place::Args),
            (Api::SendGrid, "content") | (Api::Http | Api::Resend, "text" | "html") => Some(Place::Content),
            (Api::SendGrid, "template_id") | (Api::Http | Api::Resend, "template") => Some(Place::Template),
            (Api::SendGrid | Api::Http | Api::Resend, "from") => Some(Place::From),
            (Api::SendGrid | Api::Http | Api::Resend, "subject") => Some(Place::Subject),
            (Api::Http, "id") => Some(Place::Id),
            (Api::Http, "class") => Some(Place::Class),
            (Api::Http | Api::Resend, "to" | "cc" | "bcc") => list(key, 0),
            (Api::Resend, "tags") | (Api::Ses, "EmailTags") => Some(Place::Tags),
            (Api::SparkPost, "recipients") => list("to", 0),
            (Api::SparkPost, "content") => Some(Place::Inline),
            (Api::Ses, "FromEmailAddress") | (Api::Postmark, "From") => Some(Place::From),
            (Api::Ses, "Destination") => Some(Place::Destination),
            (Api::Ses, "Content") => Some(Place::Choice),
            (Api::Postmark, "To") => list("to", 0),
            (Api::Postmark, "Cc") => list("cc", 0),
            (Api::Postmark, "Bcc") => list("bcc", 0),
            (Api::Postmark, "Subject") => Some(Place::Subject),
            (Api::Postmark, "TextBody" | "HtmlBody") => Some(Place::Content),
            (Api::Postmark, "TemplateId" | "TemplateAlias") => Some(Place::Template),
            (Api::Postmark, "Metadata") => Some(Place::Args),
            _ => None,
        }
    }

    /// A field of Mailgun's form.
    pub(super) fn of_field(name: &str) -> Option<Place> {
        match name {
            "from" => Some(Place::From),
            "to" | "cc" | "bcc" => list(name, 0),
            "subject" => Some(Place::Subject),
            "text" | "html" => Some(Place::Content),
            "message" => Some(Place::Raw),
            "template" => Some(Place::Template),
            "v:paceline_id" => Some(Place::Id),
            "v:class" => Some(Place::Class),
            _ => None,
        }
    }

    /// Where the element of a list is.
    pub(super) fn element(self, index: usize) -> Option<Place> {
        match self {
            Place::Personalizations => Some(Place::Personalization(index)),
            Place::List(list, n) => Some(Place::To(list, n, index)),
            Place::Tags => Some(Place::Tag),
            Place::Content => Some(Place::Content),
            _ => None,
        }
    }
}

fn list(name: &str, personalization: usize) -> Option<Place> {
    let name = ["to", "cc", "bcc"].into_iter().find(|n| *n == name)?;
    Some(Place::List(name, personalization))
}
