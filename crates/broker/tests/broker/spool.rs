//! The embedded broker: the conformance suite, and what only a file goes through.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use paceline_broker::{
    Broker,
    spool::{Options, Spool},
    topology::Queue,
};
use tempfile::TempDir;

use crate::stage::{Stage, conformance, topology};

pub(crate) fn open(path: &Path) -> Spool {
    Spool::open(Options { path: path.to_owned(), prefix: "paceline".to_owned() }).unwrap()
}

/// A spool in a directory of its own, with [`topology`] applied.
pub(crate) async fn applied() -> (TempDir, PathBuf, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool.db");
    let spool = open(&path);
    spool.apply(&topology()).await.unwrap();
    (dir, path, spool)
}

#[derive(Default)]
struct OnDisk {
    last: Mutex<Option<(TempDir, Spool)>>,
}

#[async_trait]
impl Stage for OnDisk {
    async fn empty(&self) -> Arc<dyn Broker> {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(&dir.path().join("spool.db"));
        *self.last.lock().unwrap() = Some((dir, spool.clone()));
        Arc::new(spool)
    }

    /// The same handle: only one can consume.
    async fn another(&self) -> Arc<dyn Broker> {
        Arc::new(self.last.lock().unwrap().as_ref().unwrap().1.clone())
    }

    /// Through a handle of its own.
    async fn declare(&self, queue: &Queue) {
        let path = self.last.lock().unwrap().as_ref().unwrap().0.path().join("spool.db");
        open(&path).declare(queue).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spool_conforms() {
    conformance(&OnDisk::default()).await;
}
