//! Restore to a stream: the same stages, and the calling thread puts the segments back in order.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::Sender;

use super::RestoreOptions;
use super::output::SegmentOutput;
use super::pipeline::{join, start_stages};
use super::plan::RestorePlan;
use super::segment::SegmentWork;
use super::shared::Shared;
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::format::point::Volume;
use crate::id::SegmentNo;
use crate::io::PooledBuf;
use crate::repo::Repository;
use crate::run::Progress;
use crate::target;

/// What helps where standard output is a file on a full disk.
const FULL: &str = "free some space there and run the same command again: it starts anew";

/// The decoders' end.
struct StreamOutput(Sender<(SegmentNo, PooledBuf, usize)>);

impl SegmentOutput for StreamOutput {
    /// A stream gets the zeros too.
    fn clear(&self, work: &SegmentWork, buf: &mut [u8]) {
        buf[..work.len].fill(0);
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

    fn put(&self, work: SegmentWork, buf: PooledBuf, _old: &[u8], _chunker: &mut Chunker) -> Result<()> {
        let _ = self.0.send((work.segment, buf, work.len));
        Ok(())
    }
}

/// Writes the whole volume to `writer`, front to back.
pub fn restore(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    mut writer: Box<dyn Write + Send>,
    options: &RestoreOptions,
) -> Result<()> {
    let (sender, receiver) = crossbeam::channel::unbounded();
    let output = Arc::new(StreamOutput(sender));
    let threads = start_stages(repo, shared, volume, RestorePlan::Stream, output, options, 1)?;
    let failed = |error| target::full(Error::io("write", "standard output")(error), FULL);
    let mut early = BTreeMap::new();
    let mut next = SegmentNo(0);
    for (segment, buf, len) in receiver {
        early.insert(segment, (buf, len));
        while let Some((buf, len)) = early.remove(&next) {
            next = SegmentNo(next.0 + 1);
            if shared.run.stopped() {
                continue;
            }
            match writer.write_all(&buf[..len]) {
                Ok(()) => {
                    Shared::add(&shared.counters.written, len as u64);
                    Progress::add(&shared.run.progress.done_bytes, len as u64);
                    Progress::add(&shared.run.progress.new_bytes, len as u64);
                }
                Err(error) => shared.run.fail(failed(error)),
            }
        }
        if shared.run.stopped() {
            early.clear(); // nobody waits for these buffers any more
        }
    }
    join(shared, threads);
    shared.run.outcome()?;
    writer.flush().map_err(failed)
}
