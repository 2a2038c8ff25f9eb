//! Restore into a sink of blocks: the same stages up to the decoders, and putters behind them, each with one block on
//! its way at a time.
//!
//! A block is a part of the buffer that its segment was decoded in, which goes back to its pool when the last of its
//! blocks was put. Where a segment has few, they are copied into small buffers instead: else the pool, and not the
//! sink, would decide how many are on their way.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender};

use super::RestoreOptions;
use super::blocks::BlockWork;
use super::output::SegmentOutput;
use super::pipeline::{join, spawn, start_stages};
use super::plan::RestorePlan;
use super::segment::{SegmentPlan, SegmentWork};
use super::shared::Shared;
use crate::chunker::Chunker;
use crate::error::Result;
use crate::format::point::Volume;
use crate::io::{BufPool, PooledBuf};
use crate::limits::SEGMENT_BYTES;
use crate::repo::Repository;
use crate::run::Progress;
use crate::target::{BlockSink, checked_block_bytes};

/// A block on its way to the sink.
struct Put {
    block: u64,
    bytes: Bytes,
    /// Bytes of the volume in it.
    volume_bytes: u64,
}

/// The decoders' end.
struct BlockOutput {
    shared: Arc<Shared>,
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
    let output = BlockOutput {
        shared: shared.clone(),
        puts: sender,
        small: BufPool::new(parallel, block_bytes as usize),
        block_bytes,
        over_base: options.base.is_some(),
    };
    let plan = RestorePlan::Blocks { sink, base: options.base.clone() };
    let depth = (parallel * block_bytes as usize).div_ceil(SEGMENT_BYTES);
    threads.extend(start_stages(repo, shared, volume, plan, Arc::new(output), options, depth)?);
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

impl SegmentOutput for BlockOutput {
    /// Makes zero what of the blocks no chunk fills.
    fn clear(&self, work: &SegmentWork, buf: &mut [u8]) {
        if let SegmentPlan::Blocks(plan) = &work.plan {
            for zero in &plan.zeros {
                buf[zero.start as usize..zero.end as usize].fill(0);
            }
        }
        // What is behind the volume's end in the last block.
        let padded = work.len.next_multiple_of(self.block_bytes as usize);
        buf[work.len..padded].fill(0);
    }

    fn leave_out(
        &self,
        _work: &mut SegmentWork,
        lost: &Range<u32>,
        buf: &mut [u8],
    ) -> Result<Vec<Range<u32>>> {
        buf[lost.start as usize..lost.end as usize].fill(0);
        Ok(Vec::from([lost.clone()]))
    }

    /// Sends on the blocks that differ from what is there.
    fn put(&self, work: SegmentWork, new: PooledBuf, old: &[u8], chunker: &mut Chunker) -> Result<()> {
        let SegmentPlan::Blocks(plan) = &work.plan else { return Ok(()) }; // there are no others for a sink
        let (differing, same): (Vec<&BlockWork>, Vec<&BlockWork>) =
            plan.blocks.iter().partition(|block| block.differs(chunker, &new, old));
        let bytes_of = |block: &BlockWork| u64::from(block.range.end - block.range.start);
        self.shared.left_alone(same.into_iter().map(bytes_of).sum(), self.over_base);
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
        Ok(())
    }
}
