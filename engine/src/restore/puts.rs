//! Restore into a sink of blocks: the same stages up to the decoders, and putters behind them, each with one block on its way at a time.
//!
//! A block is a part of the buffer that its segment was decoded in, which goes back to its pool when the last of its blocks was put. Where a segment has few, they are copied
//! into small buffers instead: else the pool, and not the sink, would decide how many are on their way.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender};

use super::blocks::BlockWork;
use super::{RestoreOptions, SegmentWork, Shared, decode, join, plan, spawn, start_stages};
use crate::chunker::Chunker;
use crate::error::Result;
use crate::format::point::Volume;
use crate::io::{BufPool, PooledBuf};
use crate::limits::SEGMENT_BYTES;
use crate::repo::Repository;
use crate::run::Progress;
use crate::target::{BlockSink, checked_block_bytes};

/// A block on its way to the sink.
pub struct Put {
    block: u64,
    bytes: Bytes,
    /// Bytes of the volume in it.
    volume_bytes: u64,
}

/// The decoders' end.
#[derive(Clone)]
pub struct Outlet {
    puts: Sender<Put>,
    small: BufPool,
    block_bytes: u32,
    over_base: bool,
}

/// Puts the volume, or what of it differs from the base.
pub fn restore(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    sink: Arc<dyn BlockSink>,
    options: &RestoreOptions,
) -> Result<()> {
    let block_bytes = checked_block_bytes(sink.as_ref())?;
    let parallel = sink.parallel().max(1);
    let (sender, receiver) = crossbeam::channel::unbounded();
    let mut threads = Vec::new();
    for _ in 0..parallel {
        let (shared_too, sink, receiver) = (shared.clone(), sink.clone(), receiver.clone());
        threads.push(spawn("put", shared, move || put_all(&shared_too, sink.as_ref(), &receiver))?);
    }
    drop(receiver);
    let outlet = Outlet {
        puts: sender,
        small: BufPool::new(parallel, block_bytes as usize),
        block_bytes,
        over_base: options.base.is_some(),
    };
    let how = plan::How {
        base: options.base.clone(),
        stale: Default::default(),
        compare: false,
        fresh: true,
        done: HashSet::new(),
        every_segment: false,
        sink: Some(sink),
    };
    let depth = (parallel * block_bytes as usize).div_ceil(SEGMENT_BYTES);
    threads.extend(start_stages(repo, shared, volume, how, decode::Output::Blocks(outlet), options, depth)?);
    join(shared, threads);
    shared.run.outcome()
}

/// One putter: works until the channel is closed and empty.
fn put_all(shared: &Shared, sink: &dyn BlockSink, input: &Receiver<Put>) -> Result<()> {
    for Put { block, bytes, volume_bytes } in input {
        if shared.run.stopped() {
            continue; // whoever waits for the buffer gets it
        }
        match sink.put(block, bytes) {
            Ok(()) => {
                Shared::add(&shared.counters.written, volume_bytes);
                Progress::add(&shared.run.progress.new_bytes, volume_bytes);
                Progress::add(&shared.run.progress.done_bytes, volume_bytes);
            }
            Err(error) => shared.run.fail(error),
        }
    }
    Ok(())
}

impl Outlet {
    /// Makes zero what of the blocks no chunk fills.
    pub fn clear(&self, work: &SegmentWork, buf: &mut [u8]) {
        for zero in &work.zeros {
            buf[zero.start as usize..zero.end as usize].fill(0);
        }
        // What is behind the volume's end in the last block.
        let padded = work.len.next_multiple_of(self.block_bytes as usize);
        buf[work.len..padded].fill(0);
    }

    /// Sends on the blocks that differ from what is there.
    pub fn send(
        &self,
        shared: &Shared,
        chunker: &mut Chunker,
        work: &SegmentWork,
        new: PooledBuf,
        old: &[u8],
    ) {
        let (differing, same): (Vec<&BlockWork>, Vec<&BlockWork>) =
            work.blocks.iter().partition(|block| block.differs(chunker, &new, old));
        let bytes_of = |block: &BlockWork| u64::from(block.range.end - block.range.start);
        shared.left_alone(same.into_iter().map(bytes_of).sum(), self.over_base);
        let few = differing.len() * 2 * self.block_bytes as usize <= SEGMENT_BYTES;
        let whole = Bytes::from_owner(new);
        for block in differing {
            let start = block.range.start as usize;
            let mut bytes = whole.slice(start..start + self.block_bytes as usize);
            if let Some(mut small) = few.then(|| self.small.try_get()).flatten() {
                small[..bytes.len()].copy_from_slice(&bytes);
                bytes = Bytes::from_owner(small).slice(..bytes.len());
            }
            let block_no = (work.segment.offset_bytes() + start as u64) / u64::from(self.block_bytes);
            // If nobody is there, the run has failed.
            let _ = self.puts.send(Put { block: block_no, bytes, volume_bytes: bytes_of(block) });
        }
    }
}

impl Shared {
    /// Bytes of a sink that are right as they are: as in the base, or zero.
    pub(super) fn left_alone(&self, bytes: u64, over_base: bool) {
        if over_base {
            Shared::add(&self.counters.same, bytes);
            Progress::add(&self.run.progress.reused_bytes, bytes);
        } else {
            Shared::add(&self.counters.skipped_zero, bytes);
        }
        Progress::add(&self.run.progress.done_bytes, bytes);
    }
}
