//! Recipients that bounced for good or complained, onto the suppression list.

use std::sync::Arc;

use async_trait::async_trait;
use paceline_core::{feedback::Kind, suppression};
use paceline_store::{Error, NewSuppression, Suppressions};
use tracing::error;

use super::{FeedbackSink, Received};

/// Characters kept of what was said.
const NOTE_CHARS: usize = 200;

/// Lists the recipients of hard bounces and complaints, as hard entries without an end. Not those of bounces for policy
/// (enhanced codes 5.7.x), which speak of the sender.
pub struct SuppressionSink {
    list: Arc<dyn Suppressions>,
}

impl SuppressionSink {
    pub fn new(list: Arc<dyn Suppressions>) -> SuppressionSink {
        SuppressionSink { list }
    }

    /// Lists them; what the store will never take is left out, so that it holds up nothing else.
    async fn list(&self, entries: &[NewSuppression]) -> Result<(), Error> {
        match self.list.suppress(entries, None).await {
            Err(Error::Refused(why)) if entries.len() == 1 => {
                error!(%why, "the store refuses an entry of the suppression list; the recipient is not listed");
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

#[async_trait]
impl FeedbackSink for SuppressionSink {
    fn name(&self) -> &'static str {
        "suppression"
    }

    async fn take(&self, events: &[Received]) -> Result<(), String> {
        let entries: Vec<NewSuppression> = events.iter().filter_map(entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let mut listed = self.list(&entries).await;
        if let Err(Error::Refused(_)) = listed {
            // One of them is at fault: it must not hold up the others.
            listed = Ok(());
            for entry in entries.chunks(1) {
                listed = listed.and(self.list(entry).await);
            }
        }
        listed.map_err(|e| e.in_full())
    }
}

fn entry(Received { event, .. }: &Received) -> Option<NewSuppression> {
    let reason = match event.kind {
        Kind::HardBounce if !event.enhanced_status.as_deref().is_some_and(|status| status.starts_with("5.7.")) => "bounce",
        Kind::Complained => "complaint",
        _ => return None,
    };
    let said = event.answer.message.as_str();
    let note = if said.is_empty() { &event.answer.code } else { said };
    Some(NewSuppression {
        address: event.recipient.clone(),
        kind: suppression::Kind::Hard,
        reason: reason.to_owned(),
        source: Some(event.account.clone()),
        note: Some(note.chars().take(NOTE_CHARS).collect()),
        by: "paceline".to_owned(),
        until: None,
        created_at: None,
    })
}
