//! Mail as `.eml` files in a directory, for development and tests: what `smtp` would have sent, byte for byte.

use std::{io::ErrorKind, path::PathBuf, time::SystemTime};

use async_trait::async_trait;
use paceline_core::{Outcome, ProviderAnswer, Timestamp};
use serde_json::json;

use crate::{Attempt, BuildError, Provider, mime};

/// The provider `capture`.
///
/// `<id>.eml` appears at once and whole; `<id>.json` beside it says what the mail itself does not: the envelope
/// (hidden recipients too), tags and metadata. A repeated call writes the same files again.
pub(crate) struct Capture {
    dir: PathBuf,
}

impl Capture {
    pub(crate) fn new(dir: PathBuf) -> Result<Capture, BuildError> {
        match std::fs::metadata(&dir) {
            Ok(found) if !found.is_dir() => Err(BuildError::Directory { path: dir, problem: "it is a file" }),
            // What is not there yet is made for the first mail.
            _ => Ok(Capture { dir }),
        }
    }

    async fn write(&self, name: &str, extension: &str, bytes: &[u8]) -> std::io::Result<()> {
        let part = self.dir.join(format!(".{name}.{extension}.part"));
        if let Err(error) = tokio::fs::write(&part, bytes).await {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            tokio::fs::create_dir_all(&self.dir).await?;
            tokio::fs::write(&part, bytes).await?;
        }
        tokio::fs::rename(&part, self.dir.join(format!("{name}.{extension}"))).await
    }
}

#[async_trait]
impl Provider for Capture {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let message = attempt.message;
        let now = Timestamp::from(SystemTime::now());
        let mail = match mime::build(message, now) {
            Ok(mail) => mail,
            Err(refused) => return *refused,
        };
        let recipients: Vec<_> = message.recipients().collect();
        let envelope = json!({
            "id": message.id, "captured_at": now, "from": message.from.email, "recipients": recipients,
            "tags": message.tags, "metadata": message.metadata,
        });
        let name = file_name(attempt.idempotency_key);
        let envelope = format!("{envelope:#}\n");
        let written = match self.write(&name, "json", envelope.as_bytes()).await {
            Ok(()) => self.write(&name, "eml", &mail).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => Outcome::accepted(Some(name)),
            Err(error) => {
                let answer = ProviderAnswer::new("not_written", None, &error.to_string());
                Outcome::Temporary { retry_after: None, answer }
            }
        }
    }

    fn idempotent(&self) -> bool {
        true
    }
}

/// The key, with what a file name cannot hold replaced. Message ids come through unchanged.
fn file_name(key: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    key.chars().take(200).map(|c| if fits(c) { c } else { '_' }).collect()
}
