//! What was called, how often, and what it would have cost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::clock::Ms;

/// Calls kept in memory besides the counts.
const KEPT: usize = 50_000;

/// A call.
#[derive(Clone, Debug, Serialize)]
pub struct CallRecord {
    /// When, in milliseconds since 1970.
    pub at_ms: Ms,
    /// `ec2`, `ebs`, `sts`.
    pub service: String,
    /// `CreateVolume`.
    pub action: String,
    /// Region asked.
    pub region: String,
    /// Access key.
    pub key_id: String,
    /// Request id of the answer.
    pub request_id: String,
    /// HTTP status; 0 if there was no answer.
    pub status: u16,
    /// Error code, if it failed.
    pub code: Option<String>,
    /// Parameters of EC2 and STS calls; path and query of EBS direct calls.
    pub params: BTreeMap<String, String>,
    /// Parameters that the lab did not look at.
    pub unread: Vec<String>,
    /// A fault that was put in.
    pub fault: Option<String>,
}

/// How often an action was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// All calls.
    pub calls: u64,
    /// Those that succeeded.
    pub ok: u64,
    /// Those refused for the rate.
    pub throttled: u64,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<String, Count>,
    records: Vec<CallRecord>,
    log: Option<File>,
}

/// The log.
#[derive(Debug)]
pub struct Calls {
    inner: Mutex<Inner>,
}

impl Calls {
    /// Empty; with a file, every call is appended to it as a line of JSON.
    pub fn new(log: Option<&Path>) -> std::io::Result<Self> {
        let log = log.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        Ok(Self { inner: Mutex::new(Inner { log, ..Inner::default() }) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call.
    pub fn add(&self, record: CallRecord) {
        let mut inner = self.inner();
        let count = inner.counts.entry(record.action.clone()).or_default();
        count.calls += 1;
        count.ok += u64::from((200..300).contains(&record.status));
        let throttled = ["RequestLimitExceeded", "RequestThrottledException"];
        count.throttled += u64::from(record.code.as_deref().is_some_and(|code| throttled.contains(&code)));
        if let Some(log) = &mut inner.log {
            let line = serde_json::to_string(&record).unwrap_or_default();
            let _ = writeln!(log, "{line}");
        }
        let of_blocks = ["GetSnapshotBlock", "PutSnapshotBlock"].contains(&record.action.as_str());
        if !of_blocks && inner.records.len() < KEPT {
            inner.records.push(record);
        }
    }

    /// How often each action was called.
    pub fn counts(&self) -> BTreeMap<String, Count> {
        self.inner().counts.clone()
    }

    /// All calls but those of single blocks, oldest first, up to 50,000.
    pub fn records(&self) -> Vec<CallRecord> {
        self.inner().records.clone()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut inner = self.inner();
        inner.counts.clear();
        inner.records.clear();
    }

    /// US dollars of the calls that succeeded, at the prices of us-east-1.
    pub fn cost_usd(&self) -> f64 {
        let per_thousand = |action: &str| match action {
            "ListSnapshotBlocks" | "ListChangedBlocks" => 0.0006,
            "GetSnapshotBlock" => 0.003,
            "PutSnapshotBlock" => 0.006,
            _ => 0.0,
        };
        #[allow(clippy::cast_precision_loss)] // counts
        let cost = |(action, count): (&String, &Count)| per_thousand(action) * count.ok as f64 / 1000.0;
        self.inner().counts.iter().map(cost).sum()
    }
}
