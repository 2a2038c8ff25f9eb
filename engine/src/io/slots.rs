//! Places for operations in flight on one ring thread.

use async_channel::{Receiver, Sender};

/// Counts the tasks of a dispatcher: it waits for a free slot before it starts one, and for all of them at the end.
pub(super) struct Slots {
    taken: Sender<()>,
    freed: Receiver<()>,
    count: usize,
}

/// A taken place; free again when dropped, also when its task panics.
pub(super) struct Slot(Receiver<()>);

impl Slots {
    /// `count` free slots, at least one.
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        let (taken, freed) = async_channel::bounded(count);
        Self { taken, freed, count }
    }

    /// Waits for a free slot and takes it.
    pub async fn take(&self) -> Slot {
        // Cannot fail: `self` holds both ends and never closes them.
        let _ = self.taken.send(()).await;
        Slot(self.freed.clone())
    }

    /// Waits until no slot is taken.
    pub async fn drain(self) {
        let mut all = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            all.push(self.take().await);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}
