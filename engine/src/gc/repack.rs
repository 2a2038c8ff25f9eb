//! Moves what is needed out of packs that hold little of it into new ones: opened, authenticated and sealed again, not decompressed.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::packs::Uses;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::id::ObjectId;
use crate::index::{Claims, Index, Permit};
use crate::io::BufPool;
use crate::limits::PACK_BYTES_MAX;
use crate::pack::{FinishedPack, FrameReader, Location, PackBuilder, pack_buffer_bytes};
use crate::repo::Repository;
use crate::store::{Body, PutOutcome};

/// Longest request, unless a frame is longer.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Room for the longest content that there can be.
const RAW_BYTES_MAX: usize = 4 << 20;

type Frames = Vec<([u8; 32], Location)>;

/// Moves what is needed of `packs`, and publishes where it is now. `stop` is asked between packs.
pub fn run(
    repo: &Repository,
    index: &Arc<Index>,
    uses: &Uses,
    packs: &HashSet<ObjectId>,
    permit: Arc<Permit>,
    stop: &dyn Fn() -> Result<()>,
) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    let mut of_pack: BTreeMap<ObjectId, Frames> = BTreeMap::new();
    index.each_row_with_mark(&uses.marks, &mut |id, location, marked| {
        if marked && packs.contains(&location.pack.id) {
            of_pack.entry(location.pack.id).or_default().push((*id, *location));
        }
        Ok(())
    })?;
    let pack_bytes = repo.config().pack_bytes as usize;
    let mut mover = Mover {
        repo,
        claims: Claims::with_permit(index.clone(), permit),
        reader: FrameReader::new()?,
        pool: BufPool::new(1, pack_buffer_bytes(pack_bytes, RAW_BYTES_MAX)),
        pack_bytes,
        data: None,
        meta: None,
        raw: Vec::new(),
    };
    for kind in [ObjectKind::Data, ObjectKind::Meta] {
        for frames in of_pack.values_mut() {
            if frames.first().is_some_and(|(_, at)| at.pack.kind == kind) {
                stop()?;
                frames.sort_unstable_by_key(|(_, at)| at.offset);
                mover.pack(frames)?;
            }
        }
        mover.close(kind)?; // one buffer is enough
    }
    mover.claims.flush()
}

struct Mover<'a> {
    repo: &'a Repository,
    claims: Claims,
    reader: FrameReader,
    pool: BufPool,
    pack_bytes: usize,
    data: Option<PackBuilder>,
    meta: Option<PackBuilder>,
    raw: Vec<u8>,
}

impl Mover<'_> {
    /// Moves these frames of one pack, which are in its order.
    fn pack(&mut self, frames: &[([u8; 32], Location)]) -> Result<()> {
        let gap = self.repo.store().habits().gap_bytes;
        let mut at = 0;
        while at < frames.len() {
            let mut range: Range<u64> = u64::from(frames[at].1.offset)..frames[at].1.end();
            let mut end = at + 1;
            while let Some((_, next)) = frames.get(end) {
                if u64::from(next.offset) > range.end + gap || next.end() - range.start > REQUEST_BYTES_MAX {
                    break;
                }
                range.end = next.end();
                end += 1;
            }
            self.group(&frames[at..end], range)?;
            at = end;
        }
        Ok(())
    }

    fn group(&mut self, frames: &[([u8; 32], Location)], range: Range<u64>) -> Result<()> {
        let Some((_, first)) = frames.first() else { return Ok(()) };
        let key = first.pack_key();
        if range.end > u64::from(PACK_BYTES_MAX) {
            return Err(Error::damaged(key, "a frame past the end of any pack"));
        }
        let mut stored = vec![0; (range.end - range.start) as usize];
        match self.repo.store().get_into(&key, range.start, &mut stored)? {
            Some(count) if count == stored.len() => {}
            Some(_) => return Err(Error::damaged(key, "it is cut short")),
            None => return Err(Error::Missing { object: key, needed_by: "a recovery point".into() }),
        }
        for (id, at) in frames {
            let begin = (u64::from(at.offset) - range.start) as usize;
            let frame = &stored[begin..begin + at.stored_bytes as usize];
            self.raw.resize(at.raw_bytes as usize, 0);
            self.reader.read(self.repo.keys(), at, id, frame, &mut self.raw)?;
            self.add(at.pack.kind, id, at.raw_bytes)?;
        }
        Ok(())
    }

    /// Adds the frame that was read last.
    fn add(&mut self, kind: ObjectKind, id: &[u8; 32], raw_bytes: u32) -> Result<()> {
        if raw_bytes as usize > RAW_BYTES_MAX {
            return Err(Error::damaged(hex::encode(id), "longer than any content"));
        }
        let slot = if kind == ObjectKind::Meta { &mut self.meta } else { &mut self.data };
        let builder = match slot {
            Some(builder) => builder,
            None => {
                let buf = self.pool.get_blocking().ok_or(Error::Cancelled)?;
                slot.insert(PackBuilder::start(self.repo.keys(), kind, buf, self.pack_bytes)?)
            }
        };
        builder.add_encoded(id, self.reader.encoded(), raw_bytes);
        if builder.is_full() { self.close(kind) } else { Ok(()) }
    }

    fn close(&mut self, kind: ObjectKind) -> Result<()> {
        let slot = if kind == ObjectKind::Meta { &mut self.meta } else { &mut self.data };
        let Some(builder) = slot.take() else { return Ok(()) };
        let FinishedPack { pack, rows, buf, len } = builder.finish();
        let key = pack.kind.key(&pack.id.to_string());
        fail::fail_point!("gc-before-pack-put");
        if self.repo.store().put_new(&key, Body::Pooled { buf, len })? == PutOutcome::Exists {
            return Err(Error::damaged(
                key,
                "a random name that was taken: the random source repeats itself",
            ));
        }
        self.claims.add_durable(pack, rows)
    }
}
