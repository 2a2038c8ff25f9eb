//! Restore to a stream: the same stages, and the calling thread puts the segments back in order.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::Arc;

use super::{RestoreOptions, Shared, decode, join, plan, start_stages};
use crate::error::{Error, Result};
use crate::format::point::Volume;
use crate::id::SegmentNo;
use crate::repo::Repository;
use crate::run::Progress;

/// Writes the whole volume to `writer`, front to back.
pub fn restore(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    mut writer: Box<dyn Write + Send>,
    options: &RestoreOptions,
) -> Result<()> {
    let (sender, receiver) = crossbeam::channel::unbounded();
    let how = plan::How {
        base: None,
        stale: Default::default(),
        compare: false,
        fresh: true,
        done: HashSet::new(),
        every_segment: true,
        sink: None,
    };
    let threads = start_stages(repo, shared, volume, how, decode::Output::Stream(sender), options, 1)?;
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
                Err(error) => shared.run.fail(Error::io("write", "standard output")(error)),
            }
        }
        if shared.run.stopped() {
            early.clear(); // nobody waits for these buffers any more
        }
    }
    join(shared, threads);
    shared.run.outcome()?;
    writer.flush().map_err(Error::io("write", "standard output"))
}
