//! Pack writers: take finished packs, store them, and tell the index and the committer.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender};

use super::{Event, Shared};
use crate::error::{Error, Result};
use crate::pack::FinishedPack;

/// Starts the writers; they end when the channel of packs is closed and empty.
pub fn spawn_writers(
    shared: &Arc<Shared>,
    packs: &Receiver<FinishedPack>,
    events: &Sender<Event>,
) -> Result<Vec<JoinHandle<()>>> {
    (0..shared.pack_writers)
        .map(|n| {
            let (shared, packs, events) = (shared.clone(), packs.clone(), events.clone());
            std::thread::Builder::new()
                .name(format!("pack-{n}"))
                .spawn(move || {
                    for pack in packs {
                        // After a failure packs are dropped, so that their buffers go back and nobody waits.
                        if shared.run.is_failed() {
                            continue;
                        }
                        match shared.claims.store(pack) {
                            Ok(pack) => drop(events.send(Event::Pack { kind: pack.kind, id: pack.id })),
                            Err(error) => shared.run.fail(error),
                        }
                    }
                })
                .map_err(Error::io("start", "a pack writer thread"))
        })
        .collect()
}
