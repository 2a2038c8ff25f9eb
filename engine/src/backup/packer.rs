//! Pack writers: take finished packs, store them, and tell the index and the committer.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender};

use super::{Event, Shared};
use crate::error::{Error, Result};
use crate::pack::FinishedPack;
use crate::simulation::{Bug, planted};
use crate::store::{Body, PutOutcome};

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
                        if let Err(error) = store_pack(&shared, pack, &events) {
                            shared.run.fail(error);
                        }
                    }
                })
                .map_err(Error::io("start", "a pack writer thread"))
        })
        .collect()
}

fn store_pack(shared: &Shared, finished: FinishedPack, events: &Sender<Event>) -> Result<()> {
    let FinishedPack { pack, rows, buf, len } = finished;
    let key = pack.kind.key(&pack.id.to_string());
    let mut rows = rows;
    if planted(Bug::PackAfterIndex) {
        shared.claims.add_durable(pack, std::mem::take(&mut rows))?;
    }
    let outcome = shared.repo.store.put_new(&key, Body::Pooled { buf, len })?;
    if outcome == PutOutcome::Exists {
        return Err(Error::damaged(key, "a random name that was taken: the random source repeats itself"));
    }
    let _ = events.send(Event::Pack { kind: pack.kind, id: pack.id });
    shared.claims.add_durable(pack, rows)
}
