//! The stages that all restores share, and their threads.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{bounded, unbounded};

use super::RestoreOptions;
use super::decode::{DecodeQueue, Decoder};
use super::deferred::{self, DeferredQueue};
use super::fetch::Fetcher;
use super::locate::Locator;
use super::lookahead::LookAhead;
use super::output::SegmentOutput;
use super::plan::{Planner, PlannerOutput, RestorePlan};
use super::shared::Shared;
use super::stored::Budget;
use crate::error::{Error, Result};
use crate::format::point::Volume;
use crate::io::BufPool;
use crate::limits::SEGMENT_BYTES;
use crate::repo::Repository;
use crate::run::Run;

/// Segments being put together or waiting to be written, beyond those being decoded or written.
const SEGMENTS_QUEUED: usize = 4;
/// Segments whose chunks are looked up, or were and wait for the look-ahead.
const SEGMENTS_LOCATED: usize = 32;
/// Threads that look chunks up: each may wait for a page of the index, or for the target.
const LOCATORS: usize = 4;
/// Stored bytes in memory, and more for each decoder: they make long requests, and several at a time, out of segments
/// that lie in as many packs as the backup had workers.
const STORED_BYTES: usize = 48 << 20;
const STORED_BYTES_EACH: usize = 16 << 20;

/// Starts all stages up to the decoders.
pub fn start_stages(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    plan: RestorePlan,
    output: Arc<dyn SegmentOutput>,
    options: &RestoreOptions,
    depth: usize,
) -> Result<Vec<JoinHandle<()>>> {
    let workers = options.workers.max(1);
    let store = repo.store();
    let mut threads = Vec::new();

    let target = match &plan {
        RestorePlan::Target { target, .. } => Some(target.clone()),
        _ => None,
    };
    let may_defer = plan.may_defer();
    let (jobs, job_receiver) = unbounded();
    let (answers, answer_receiver) = bounded(SEGMENTS_LOCATED);
    let planner = Planner::new(repo, shared.clone(), volume, plan, PlannerOutput { jobs, answers })?;
    threads.push(spawn("plan", shared, move || planner.run())?);
    for _ in 0..LOCATORS {
        let locator = Locator::new(shared.clone(), target.clone());
        let input = job_receiver.clone();
        threads.push(spawn("locate", shared, move || locator.run(&input))?);
    }

    let budget = Budget::new(STORED_BYTES + workers * STORED_BYTES_EACH);
    let (requests, request_receiver) = unbounded();
    let (fetched, fetched_receiver) = unbounded();
    let (queue, batches) = DeferredQueue::new(store.habits().gap_bytes);
    let queue = may_defer.then_some(queue); // else it is gone now, and its batches end
    let deferred_pool = BufPool::new(if may_defer { deferred::BUFFERS } else { 1 }, SEGMENT_BYTES);
    let fetcher = Fetcher::new(shared.clone(), budget.clone(), deferred_pool, batches, fetched.clone());
    let look_ahead = LookAhead::new(shared.clone(), budget, queue, requests, fetched);
    threads.push(spawn("look-ahead", shared, move || look_ahead.run(&answer_receiver))?);
    for _ in 0..store.habits().parallel_gets.max(1) {
        let (fetcher, input) = (fetcher.clone(), request_receiver.clone());
        threads.push(spawn("fetch", shared, move || fetcher.run(&input))?);
    }
    drop(fetcher);

    let pool = BufPool::new(depth + workers + SEGMENTS_QUEUED, SEGMENT_BYTES);
    let queue = DecodeQueue::new(fetched_receiver, pool);
    for _ in 0..workers {
        let decoder = Decoder::new(shared.clone(), output.clone())?;
        let queue = queue.clone();
        threads.push(spawn("decode", shared, move || decoder.run(&queue))?);
    }
    Ok(threads)
}

/// Waits for threads; one that panicked fails the run.
pub fn join(shared: &Shared, threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() && !shared.run.is_failed() {
            let what = "internal error: a thread of the target panicked".into();
            shared.run.fail(Error::Invalid { what });
        }
    }
}

/// Stops the others when its thread panics: they may wait for what it had.
struct PanicGuard(Arc<Run>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Invalid { what: "internal error: a thread of the restore panicked".into() });
        }
    }
}

/// Starts a thread whose error, or panic, fails the run.
pub fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let run = shared.run.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let guard = PanicGuard(run);
            if let Err(error) = body() {
                guard.0.fail(error);
            }
        })
        .map_err(Error::io("start", format_args!("thread {name}")))
}
