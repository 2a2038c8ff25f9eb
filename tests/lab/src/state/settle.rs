//! What happens by itself when time passes.

use super::{Region, RunState};
use crate::clock::Ms;

/// What came off the proxy since: volumes whose devices have to go.
#[derive(Debug, Default)]
pub struct Settled {
    /// Ids of volumes.
    pub detached: Vec<String>,
}

impl Region {
    /// Brings everything to the state of this moment.
    pub fn settle(&mut self, now: Ms, terminated_ms: Ms) -> Settled {
        let mut settled = Settled::default();
        let over: Vec<String> = self
            .instances
            .values()
            .filter(|i| i.lifecycle.to == RunState::Terminated && i.lifecycle.at_ms <= now)
            .map(|i| i.id.clone())
            .collect();
        for volume in self.volumes.values_mut() {
            let Some(attachment) = &volume.attachment else { continue };
            let ended = over.contains(&attachment.instance_id);
            if ended || attachment.gone_ms.is_some_and(|at| at <= now) {
                if ended && attachment.delete_on_termination {
                    volume.gone_ms = Some(now);
                }
                volume.attachment = None;
                settled.detached.push(volume.id.clone());
            }
        }
        self.volumes
            .retain(|_, volume| volume.gone_ms.is_none_or(|at| at > now || volume.attachment.is_some()));
        self.instances.retain(|_, i| {
            i.lifecycle.to != RunState::Terminated || now < i.lifecycle.at_ms.saturating_add(terminated_ms)
        });
        for snapshot in self.snapshots.values_mut() {
            if snapshot.writing.as_ref().is_some_and(|writing| writing.deadline_ms <= now) {
                snapshot.abandon();
                snapshot.failed = Some("The snapshot was not completed in time".into());
            }
            if now >= snapshot.complete_ms
                && let Some(message) = snapshot.will_fail.take()
            {
                snapshot.failed = Some(message);
                snapshot.map = None;
            }
        }
        settled
    }

    /// Whether a snapshot of an image is not complete yet.
    pub fn waiting(&self, image: &super::Image, now: Ms) -> bool {
        let pending = |id: &String| self.snapshots.get(id).is_some_and(|s| s.state(now) == "pending");
        image.mappings.iter().filter_map(|m| m.snapshot_id.as_ref()).any(pending)
    }
}
