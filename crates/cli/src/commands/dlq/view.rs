//! `dlq list|show|stats`.

use paceline_dlq as dlq;
use paceline_store::{BurstRule, DeadLetters, Stats, Store};

use super::{FilterArgs, LookArgs};
use crate::{
    exit::Failure,
    output::{self, Format},
};

pub(super) async fn list(store: &dyn Store, args: &LookArgs, format: Format) -> Result<(), Failure> {
    let entries = dlq::list(store, &args.filter()).await?;
    output::list(format, &entries, &dlq::TABLE_COLUMNS, |e| dlq::table_row(e).to_vec())?;
    Ok(())
}

pub(super) async fn stats(store: &dyn Store, args: &LookArgs, format: Format) -> Result<(), Failure> {
    let stats = dlq::stats(store, &args.filter(), &BurstRule::default()).await?;
    output::object(format, &stats, people)?;
    Ok(())
}

pub(super) async fn show(store: &dyn DeadLetters, id: &str, filter: &FilterArgs, format: Format) -> Result<(), Failure> {
    let mut shown = dlq::show(store, id).await?;
    shown.retain(|s| filter.holds(&s.entry));
    shown.truncate(filter.limit.unwrap_or(u32::MAX) as usize);
    match shown.as_slice() {
        [] => return Err(Failure::failed(format!("no dead letter matches {}", id.escape_debug()))),
        [one] if format == Format::Json => output::json(one)?,
        several if format == Format::Json => output::json(several)?,
        several => {
            let texts = several.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            output::write(&texts.join("\n"))?;
        }
    }
    Ok(())
}

/// Every field on a line of its own, the original message last.
fn whole(shown: &dlq::Shown) -> Result<String, Failure> {
    let value = serde_json::to_value(shown).map_err(|e| Failure::failed(e.to_string()))?;
    let mut rows = vec![];
    for (field, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        rows.push(vec![field.clone(), text]);
    }
    rows.sort_by_key(|row| matches!(row[0].as_str(), "body" | "body_base64"));
    Ok(output::table(&["FIELD", "VALUE"], &rows))
}

fn people(stats: &Stats) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut text = format!("{} dead letters\n", stats.total);
    if stats.total == 0 {
        return text;
    }
    let rows: Vec<_> = stats.by_reason.iter().map(|r| vec![r.reason.to_string(), r.count.to_string()]).collect();
    text.push_str(&format!("\n{}", output::table(&["REASON", "COUNT"], &rows)));
    let rows: Vec<_> = stats
        .counts
        .iter()
        .map(|c| {
            let (reason, newest) = (c.reason.to_string(), c.newest.to_string());
            vec![reason, or_dash(&c.destination), or_dash(&c.domain), c.count.to_string(), c.oldest.to_string(), newest]
        })
        .collect();
    let columns = ["REASON", "DESTINATION", "DOMAIN", "COUNT", "OLDEST", "NEWEST"];
    text.push_str(&format!("\n{}", output::table(&columns, &rows)));
    if !stats.bursts.is_empty() {
        let rows: Vec<_> = stats
            .bursts
            .iter()
            .map(|b| {
                let (kind, started, ended) = (b.kind.as_str().to_owned(), b.started_at.to_string(), b.ended_at.to_string());
                vec![kind, or_dash(&b.destination), b.domain.clone(), b.count.to_string(), started, ended]
            })
            .collect();
        let columns = ["BURST OF", "DESTINATION", "DOMAIN", "COUNT", "STARTED", "ENDED"];
        text.push_str(&format!("\n{}", output::table(&columns, &rows)));
    }
    text
}
