//! The threads of a backup, and the channels and buffers between them.

use std::sync::Arc;

use super::{BackupOptions, DescribedVolume, Event, Shared, commit, journal, packer, plan, worker};
use crate::error::{Error, Result};
use crate::io::{self, BufPool, IoEngine};
use crate::limits::SEGMENT_BYTES;
use crate::pack::FinishedPack;
use crate::repo::Repository;
use crate::run::Run;

/// Segments read ahead beyond those that workers hold.
const READ_AHEAD_SEGMENTS: usize = 8;
/// The same where nothing is read from a descriptor: what fetchers hold is ahead already.
const READ_AHEAD_FETCHED: usize = 3;
/// Jobs planned ahead of the readers: what the planner waits for now and then (maps of extents, nodes of the parent) must not make the disk wait too.
const JOBS_AHEAD: usize = 256;

/// Starts all threads and commits what they produce; returns when all of them have ended.
pub fn run(
    repo: &Repository,
    shared: &Arc<Shared>,
    engine: IoEngine,
    input: plan::Input,
    journal: journal::Journal,
    described: &[DescribedVolume],
    options: &BackupOptions,
) -> Result<commit::Committed> {
    let workers = options.workers.max(1);
    let readers = options.readers.unwrap_or(1).max(1);
    let only_fetched = input.volumes.iter().all(|v| v.source.ranges().is_some());
    let ahead = if only_fetched { READ_AHEAD_FETCHED } else { READ_AHEAD_SEGMENTS };
    let depth = options.queue_depth.unwrap_or(ahead / readers).max(1);
    let segments = readers * depth + workers;
    let segment_pool = BufPool::new(segments, SEGMENT_BYTES);
    let (job_sender, job_receiver) = async_channel::bounded(JOBS_AHEAD);
    let (fetch_sender, fetch_receiver) = async_channel::bounded(JOBS_AHEAD);
    let (done_sender, done_receiver) = crossbeam::channel::bounded(segments + 1);
    let (event_sender, event_receiver) = crossbeam::channel::unbounded();
    let (pack_sender, pack_receiver) = crossbeam::channel::unbounded::<FinishedPack>();

    let mut threads =
        io::spawn_readers(engine, readers, depth, job_receiver, segment_pool.clone(), done_sender.clone())?;
    let fetchers = input.volumes.iter().filter_map(|v| v.source.ranges()).map(|r| r.parallel()).max();
    let fetch = (fetch_receiver, segment_pool.clone(), done_sender.clone());
    threads.extend(io::spawn_fetchers(fetchers.unwrap_or(0), fetch.0, fetch.1, fetch.2)?);
    let planner = plan::Planner::new(
        repo,
        shared.clone(),
        input,
        plan::Outputs {
            jobs: job_sender,
            fetch_jobs: fetch_sender,
            done: done_sender,
            events: event_sender.clone(),
            pool: segment_pool,
        },
    )?;
    threads.push(spawn("plan", shared, &event_sender, move || planner.run())?);
    for _ in 0..workers {
        let worker = worker::Worker::new(shared.clone(), pack_sender.clone(), event_sender.clone())?;
        let input = done_receiver.clone();
        threads.push(spawn("work", shared, &event_sender, move || worker.run(&input))?);
    }
    drop(done_receiver);
    let writers = packer::spawn_writers(shared, &pack_receiver, &event_sender)?;
    drop((event_sender, pack_receiver));
    let committed =
        commit::Committer::new(shared, pack_sender, journal, described)?.run(&event_receiver, workers + 1);
    for thread in threads.into_iter().chain(writers) {
        if thread.join().is_err() {
            shared
                .run
                .fail(Error::Invalid { what: "internal error: a thread of the backup panicked".into() });
        }
    }
    committed
}

/// Starts a named thread that reports its end, whatever way it ends.
fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    events: &crossbeam::channel::Sender<Event>,
    body: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<std::thread::JoinHandle<()>> {
    struct End(crossbeam::channel::Sender<Event>, Arc<Run>);
    impl Drop for End {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.1
                    .fail(Error::Invalid { what: "internal error: a thread of the backup panicked".into() });
            }
            let _ = self.0.send(Event::ThreadEnd);
        }
    }
    let end = End(events.clone(), shared.run.clone());
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let end = end;
            if let Err(error) = body() {
                end.1.fail(error);
            }
        })
        .map_err(Error::io("start", format_args!("thread {name}")))
}
