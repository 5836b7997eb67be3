//! What the fleet has learnt.

use paceline_store::LearntRow;
use serde_json::json;

use crate::stage::Stage;

pub(crate) async fn what_was_learnt_last_is_kept(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    assert_eq!(store.learnt().await.unwrap(), []);
    store.keep_learnt(&[]).await.unwrap();
    let row = |destination: Option<&str>, n: u32, at_us| LearntRow {
        account: "main".to_owned(),
        destination: destination.map(str::to_owned),
        learnt: json!({"n": n, "rate": 0.1, "at": 1_800_000_000_000_000_u64}),
        at_us,
    };
    store.keep_learnt(&[row(Some("google"), 1, 5), row(None, 2, 5)]).await.unwrap();
    assert_eq!(other.learnt().await.unwrap(), [row(None, 2, 5), row(Some("google"), 1, 5)]);
    // Of two the later is right, in whatever order they come.
    other.keep_learnt(&[row(None, 4, 9), row(Some("google"), 3, 4)]).await.unwrap();
    assert_eq!(store.learnt().await.unwrap(), [row(None, 4, 9), row(Some("google"), 1, 5)]);
}
