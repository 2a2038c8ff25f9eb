//! The way into the destination: open packs that workers lend each other, and the threads that store full ones.

use crossbeam::channel::{Receiver, Sender, bounded};

use super::Shared;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::id::ChunkId;
use crate::io::BufPool;
use crate::pack::{FinishedPack, OpenPack, pack_buffer_bytes};
use crate::repo::Repository;

/// What all pack buffers together may take, as long as that is two packs.
const PACK_BUFFERS_BYTES: usize = 144 << 20;

/// Packs being filled. There are fewer than workers where cores are many: sealing takes a worker a small part of its time, and memory has a bound.
pub struct OpenPacks {
    places: (Sender<OpenPack>, Receiver<OpenPack>),
    /// Threads that store packs.
    pub writers: usize,
}

/// A place lent to one worker; it goes back by itself, also in a panic.
struct Place<'a> {
    /// `None` once it is back.
    pack: Option<OpenPack>,
    home: &'a Sender<OpenPack>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(pack) = self.pack.take() {
            // Never full: the channel has room for every place.
            let _ = self.home.try_send(pack);
        }
    }
}

impl OpenPacks {
    /// Places and buffers for chunks of up to `chunk_bytes_max`.
    pub fn new(destination: &Repository, workers: usize, chunk_bytes_max: usize) -> Self {
        let pack_bytes = destination.config().pack_bytes as usize;
        let buffer_bytes = pack_buffer_bytes(pack_bytes, chunk_bytes_max);
        let wanted = workers + destination.store().habits().parallel_puts;
        let buffers = (PACK_BUFFERS_BYTES / buffer_bytes).clamp(2, wanted.max(2));
        let writers = destination.store().habits().parallel_puts.clamp(1, buffers.div_ceil(2));
        let open = (buffers - writers).clamp(1, workers);
        let (places, pool) = (bounded(open), BufPool::new(open + writers, buffer_bytes));
        for _ in 0..open {
            let _ = places.0.try_send(OpenPack::new(ObjectKind::Data, pool.clone(), pack_bytes));
        }
        Self { places, writers }
    }

    /// Adds a frame to an open pack and returns its length; waits for a buffer if the store is behind.
    pub fn add(
        &self,
        shared: &Shared<'_>,
        packs: &Sender<FinishedPack>,
        id: &ChunkId,
        frame: &[u8],
        raw_bytes: u32,
    ) -> Result<u32> {
        let pack = self.places.1.recv().map_err(|_| Error::Cancelled)?;
        let mut place = Place { pack: Some(pack), home: &self.places.0 };
        let Some(pack) = &mut place.pack else { return Err(Error::Cancelled) };
        let stored_bytes =
            pack.builder(shared.destination.keys())?.add_encoded(id.as_bytes(), frame, raw_bytes);
        if let Some(full) = pack.take_full() {
            let _ = packs.send(full);
        }
        Ok(stored_bytes)
    }

    /// Closes all packs, once nobody adds to them.
    pub fn close(&self, packs: &Sender<FinishedPack>) {
        for _ in 0..self.places.1.len() {
            let Ok(mut place) = self.places.1.try_recv() else { break };
            if let Some(pack) = place.take() {
                let _ = packs.send(pack);
            }
            let _ = self.places.0.try_send(place);
        }
    }
}

/// A pack writer: stores packs until the channel is closed and empty. After a failure packs are dropped, so that their buffers go back and nobody waits.
pub fn write_packs(shared: &Shared<'_>, packs: &Receiver<FinishedPack>) -> Result<()> {
    for pack in packs {
        if shared.run.is_failed() {
            continue;
        }
        if let Err(error) = shared.claims.store(pack) {
            shared.run.fail(error.in_repository(shared.destination.location()));
        }
    }
    Ok(())
}
