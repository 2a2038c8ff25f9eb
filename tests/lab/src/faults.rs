//! Faults on request, the same for the same seed and order of calls.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::filter::like;

/// When a fault happens, and which.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// Actions, with wildcards: `*`, `Describe*`, `GetSnapshotBlock`.
    #[serde(default = "any")]
    pub action: String,
    /// Only calls that name this, anywhere in their parameters or path.
    #[serde(default)]
    pub naming: Option<String>,
    /// Share of the calls, 0 to 1.
    #[serde(default = "all")]
    pub share: f64,
    /// Calls that are spared before.
    #[serde(default)]
    pub skip: u64,
    /// At most so often.
    #[serde(default)]
    pub times: Option<u64>,
    /// What happens.
    #[serde(flatten)]
    pub fault: Fault,
}

fn any() -> String {
    "*".into()
}

fn all() -> f64 {
    1.0
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// Refused for the rate: `RequestLimitExceeded`, `RequestThrottledException`.
    Throttle,
    /// `InternalError`, `InternalServerException`, 500; or another status.
    ServerError {
        /// HTTP status.
        #[serde(default = "status")]
        status: u16,
    },
    /// Refused with this error.
    Refuse {
        /// HTTP status.
        status: u16,
        /// Error code.
        code: String,
        /// For people.
        #[serde(default)]
        message: String,
    },
    /// Nothing is done, and no answer comes for so many milliseconds; then the connection is closed.
    Hang {
        /// Milliseconds.
        ms: u64,
    },
    /// Everything is done, after so many milliseconds.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// Everything is done, and the connection closed without an answer.
    LostReply,
    /// Nothing is done, and the connection closed.
    Drop,
    /// Half of the answer, then the connection is closed.
    Truncate,
    /// A bit of GetSnapshotBlock's data is wrong.
    Corrupt,
    /// The snapshots or images that the call makes end in `error`.
    EndsInError,
}

fn status() -> u16 {
    500
}

#[derive(Debug)]
struct Live {
    rule: Rule,
    seen: u64,
    done: u64,
}

/// The rules in force.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    rules: Mutex<Vec<Live>>,
}

impl Faults {
    /// None.
    pub fn new(seed: u64) -> Self {
        Self { seed, rules: Mutex::default() }
    }

    /// Replaces all rules.
    pub fn set(&self, rules: Vec<Rule>) {
        let live = rules.into_iter().map(|rule| Live { rule, seen: 0, done: 0 }).collect();
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// How often each rule struck.
    pub fn struck(&self) -> Vec<u64> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|live| live.done).collect()
    }

    /// What happens to a call; the first rule that strikes decides. `names` tells whether the call names something.
    pub fn strike(&self, action: &str, names: impl Fn(&str) -> bool) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, live) in rules.iter_mut().enumerate() {
            if !like(&live.rule.action, action) || !live.rule.naming.as_deref().is_none_or(&names) {
                continue;
            }
            live.seen += 1;
            if live.seen <= live.rule.skip || live.rule.times.is_some_and(|times| live.done >= times) {
                continue;
            }
            if chance(self.seed, number, live.seen) < live.rule.share {
                live.done += 1;
                return Some(live.rule.fault.clone());
            }
        }
        None
    }
}

/// 0 to 1, by seed, rule and call.
#[allow(clippy::cast_precision_loss)] // a fraction
fn chance(seed: u64, rule: usize, call: u64) -> f64 {
    let hash = Sha256::digest(format!("{seed}/{rule}/{call}"));
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&hash[..4]);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_and_repeat() {
        let rules: Vec<Rule> = serde_json::from_str(
            r#"[{"action": "Describe*", "share": 0.1, "fault": "throttle"},
                {"action": "CreateVolume", "skip": 1, "times": 1, "fault": "lost-reply"}]"#,
        )
        .unwrap();
        let run = || {
            let faults = Faults::new(7);
            faults.set(rules.clone());
            (0..1000).map(|_| faults.strike("DescribeVolumes", |_| false).is_some()).collect::<Vec<_>>()
        };
        let struck = run().iter().filter(|s| **s).count();
        assert!((70..130).contains(&struck), "{struck}");
        assert_eq!(run(), run());
        let faults = Faults::new(7);
        faults.set(rules.clone());
        let once: Vec<_> = (0..4).map(|_| faults.strike("CreateVolume", |_| false)).collect();
        assert_eq!(once, [None, Some(Fault::LostReply), None, None]);
    }
}
