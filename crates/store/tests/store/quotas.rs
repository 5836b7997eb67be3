//! What quotas have granted.

use paceline_store::QuotaRow;
use serde_json::json;

use crate::stage::Stage;

pub(crate) async fn what_quotas_had_granted_last_is_kept_while_it_counts(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    assert_eq!(store.quotas().await.unwrap(), []);
    store.keep_quotas(&[]).await.unwrap();
    let row = |quota: &str, by: Option<&str>, n: u32, at_us| QuotaRow {
        quota: quota.to_owned(),
        by: by.map(str::to_owned),
        kept: json!({"slots": [[n, 1_000_000_000_000_u64]]}),
        at_us,
        until_us: at_us + 100,
    };
    store.keep_quotas(&[row("b", Some("w1"), 1, 5), row("b", None, 2, 5), row("a", None, 3, 7)]).await.unwrap();
    assert_eq!(other.quotas().await.unwrap(), [row("a", None, 3, 7), row("b", None, 2, 5), row("b", Some("w1"), 1, 5)]);
    // Of two the later is right, in whatever order they come.
    other.keep_quotas(&[row("b", None, 4, 9), row("a", None, 5, 6)]).await.unwrap();
    assert_eq!(store.quotas().await.unwrap(), [row("a", None, 3, 7), row("b", None, 4, 9), row("b", Some("w1"), 1, 5)]);
    store.keep_quotas(&[row("c", None, 6, 105)]).await.unwrap();
    assert_eq!(store.quotas().await.unwrap(), [row("a", None, 3, 7), row("b", None, 4, 9), row("c", None, 6, 105)]);
}
