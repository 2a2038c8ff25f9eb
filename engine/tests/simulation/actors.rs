//! What simulated processes do: the engine's own verbs, one or two after another in one open repository.

use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use penstock_engine::backup::{self, BackupOptions, Parent, VolumeSource};
use penstock_engine::copy;
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::gc::{self, GcOptions};
use penstock_engine::id::PointId;
use penstock_engine::io::IoEngineChoice;
use penstock_engine::repair::{self, RepairOptions};
use penstock_engine::repo::{Listed, Repository, cached_prefixes};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::{Source, StreamSource};
use penstock_engine::store::{CacheOptions, Cached, Habits, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Error, Result, Run, forget, lock};

use super::clock::environment;
use super::disk::{Disk, DiskSource};
use super::stage::{OBSERVER, Stage};
use super::store::{SimStore, timestamp};

/// What a process does.
#[derive(Clone)]
pub enum Task {
    Backup {
        name: String,
        disk: Arc<Disk>,
        tracked: bool,
        stream: bool,
        workers: usize,
    },
    Gc(GcOptions),
    /// The points at these places of the list.
    Forget(Vec<u64>),
    /// All points of disks with this file.
    ForgetFile(u64),
    /// The point at this place of the list.
    Restore(u64),
    Verify {
        read_data: bool,
    },
    Copy {
        to: usize,
    },
    Repair {
        read_data: bool,
    },
    /// The locks of what points need are extended.
    Lock,
}

impl Task {
    pub fn name(&self) -> &'static str {
        match self {
            Task::Backup { .. } => "backup",
            Task::Gc(_) => "gc",
            Task::Forget(_) | Task::ForgetFile(_) => "forget",
            Task::Restore(_) => "restore",
            Task::Verify { .. } => "verify",
            Task::Copy { .. } => "copy",
            Task::Repair { .. } => "repair",
            Task::Lock => "lock",
        }
    }
}

/// What a task came to.
pub enum Done {
    Published(String),
    Restored(String, Vec<u8>),
    /// A point that could not be restored.
    NotRestored(String, Error),
    Verified(Vec<String>),
    /// What was damaged, as a repair saw it.
    Repaired(Vec<String>),
    /// Everything that these points need is locked until then.
    Locked(Vec<String>, u64),
    Other,
}

/// How a process reaches its repositories.
#[derive(Clone)]
pub struct Reach {
    pub stage: Arc<Stage>,
    pub process: usize,
    pub object_store: bool,
    pub tells_time: bool,
    pub locks: bool,
    /// Where objects are cached, if they are.
    pub cache: Option<PathBuf>,
    pub state_dir: PathBuf,
}

/// What a process ended with: what its tasks came to, and the error that ended it.
pub struct Ended {
    pub done: Vec<Done>,
    pub error: Option<Error>,
}

pub struct Actor {
    pub process: usize,
    pub what: String,
    pub repo: usize,
    pub thread: JoinHandle<Ended>,
}

pub fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

impl Reach {
    pub fn store(&self, repo: usize) -> Arc<dyn Store> {
        let habits = match self.object_store {
            true => Habits { bills_requests: true, parallel_puts: 2, parallel_gets: 2, ..Habits::default() },
            false => Habits { parallel_puts: 1, parallel_gets: 1, ..Habits::default() },
        };
        let store = SimStore {
            stage: self.stage.clone(),
            process: self.process,
            repo,
            location: format!("sim:{repo}"),
            habits,
            holds_open: !self.object_store,
            tells_time: self.tells_time,
            locks: self.locks,
        };
        match &self.cache {
            None => Arc::new(store),
            Some(dir) => {
                let options =
                    CacheOptions { dir: dir.clone(), bytes_max: 64 << 20, prefixes: cached_prefixes() };
                Arc::new(Cached::new(Arc::new(store), &options).unwrap())
            }
        }
    }

    pub fn open(&self, repo: usize) -> Result<Repository> {
        Repository::open_in(self.store(repo), &key(), environment(&self.stage, self.process))
    }
}

/// Starts a process. It is the one that computes from now on.
pub fn start(reach: Reach, repo: usize, tasks: Vec<Task>) -> Actor {
    let process = reach.process;
    let what: Vec<&str> = tasks.iter().map(Task::name).collect();
    let what = format!("p{process} {}", what.join("+"));
    let thread = std::thread::Builder::new()
        .name(format!("p{process}"))
        .spawn(move || {
            let mut done = Vec::new();
            let error = live(&reach, repo, &tasks, &mut done).err();
            {
                let mut state = reach.stage.state();
                let now_ms = state.now_ms;
                let process = &mut state.processes[reach.process];
                process.ended_ms = now_ms;
                process.exit = Some(error.is_none());
            }
            reach.stage.wake_scheduler();
            Ended { done, error }
        })
        .unwrap();
    Actor { process, what, repo, thread }
}

fn live(reach: &Reach, repo: usize, tasks: &[Task], done: &mut Vec<Done>) -> Result<()> {
    let open = reach.open(repo)?;
    for task in tasks {
        match task {
            Task::Backup { disk, .. } => {
                reach.stage.state().processes[reach.process].disk = Some(disk.clone());
                done.push(Done::Published(back_up(reach, &open, task)?));
            }
            Task::Gc(options) => drop(gc::run(&open, options, &Arc::new(Run::new()))?),
            Task::Forget(places) => {
                let ids = open.point_ids()?;
                let of = |place: &u64| ids.get((*place as usize) % ids.len().max(1)).copied();
                let chosen: Vec<PointId> = places.iter().filter_map(of).collect();
                forget::remove(&open, &chosen, &Run::new(), &mut |_| {})?;
            }
            Task::ForgetFile(file) => {
                let mut ids = open.point_ids()?;
                {
                    let contents = &reach.stage.state().contents;
                    ids.retain(|id| {
                        contents.get(&id.to_string()).is_some_and(|disk| disk.files.contains(file))
                    });
                }
                forget::remove(&open, &ids, &Run::new(), &mut |_| {})?;
            }
            Task::Restore(place) => {
                let ids = open.point_ids()?;
                let Some(id) = ids.get((*place as usize) % ids.len().max(1)) else { continue };
                done.push(match restored(&open, &id.to_string()) {
                    Ok(bytes) => Done::Restored(id.to_string(), bytes),
                    Err(error) => Done::NotRestored(id.to_string(), error),
                });
            }
            Task::Verify { read_data } => {
                let options = VerifyOptions { read_data: *read_data, ..VerifyOptions::default() };
                let report = verify::run(&open, &options, &Arc::new(Run::new()))?;
                done.push(Done::Verified(report.problems));
            }
            Task::Copy { to } => {
                let other = reach.open(*to)?;
                let mut points = Vec::new();
                for listed in open.points()? {
                    if let Listed::Point(point) = listed {
                        points.push(point);
                    }
                }
                copy::run(&open, &other, &points, 1, &Arc::new(Run::new()))?;
                done.push(Done::Other);
            }
            Task::Repair { read_data } => done.push(Done::Repaired(repaired(&open, *read_data)?)),
            Task::Lock => {
                let points = open.point_ids()?.iter().map(ToString::to_string).collect();
                let now = timestamp(open.environment().clock.unix_ms());
                let report = lock::extend(&open, now, &Run::new())?;
                if report.problems.is_empty() {
                    done.push(Done::Locked(points, report.locked_until.as_millisecond() as u64));
                }
            }
        }
    }
    Ok(())
}

/// Mends a repository. Lines for what was damaged; rows that killed writers left out are not.
pub fn repaired(repo: &Repository, read_data: bool) -> Result<Vec<String>> {
    let options = RepairOptions { read_data, dry_run: false, workers: 1 };
    let report = repair::run(repo, &options, &Arc::new(Run::new()))?;
    let kinds = [
        &report.bad_segments,
        &report.hurt,
        &report.useless,
        &report.points,
        &report.leases,
        &report.records,
    ];
    let mut lines: Vec<String> = kinds.iter().flat_map(|kind| kind.lines.iter().cloned()).collect();
    if report.lost > 0 {
        lines.push(format!("{} contents are lost", report.lost));
    }
    Ok(lines)
}

fn back_up(reach: &Reach, repo: &Repository, task: &Task) -> Result<String> {
    let Task::Backup { name, disk, tracked, stream, workers } = task else { unreachable!("a backup") };
    let source: Box<dyn Source> = match stream {
        true => Box::new(StreamSource::new("disk", Cursor::new(disk.bytes.clone()))),
        false => Box::new(DiskSource(disk.clone())),
    };
    // Who tracks changes knows what they are relative to.
    let parent = match repo.newest(&repo.point_ids()?, Some(name))?.filter(|_| *tracked && !stream) {
        Some(parent) => reach.stage.state().contents.get(&parent.id).cloned().map(|disk| (parent.id, disk)),
        None => None,
    };
    let changed_extents = parent.as_ref().map(|(_, old)| disk.extents_since(old));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents }];
    let options = BackupOptions {
        name: name.clone(),
        parent: parent.map_or(Parent::Latest, |(id, _)| Parent::Point(id)),
        workers: *workers,
        readers: Some(1),
        queue_depth: Some(1),
        io_engine: IoEngineChoice::Pread,
        resume: true,
        allow_shrink: true,
        state_dir: reach.state_dir.clone(),
        ..BackupOptions::default()
    };
    Ok(backup::run(repo, volumes, &options, &Arc::new(Run::new()))?.point.id)
}

/// The observer backs up a disk.
pub fn back_up_again(stage: &Arc<Stage>, repo: &Repository, name: String, disk: Arc<Disk>) -> Result<String> {
    let reach = Reach {
        stage: stage.clone(),
        process: OBSERVER,
        object_store: false,
        tells_time: false,
        locks: false,
        cache: None,
        state_dir: std::env::temp_dir(),
    };
    back_up(&reach, repo, &Task::Backup { name, disk, tracked: false, stream: true, workers: 1 })
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a point restores to.
pub fn restored(repo: &Repository, id: &str) -> Result<Vec<u8>> {
    let point = repo.resolve(id)?;
    let sink = Sink::default();
    let target = RestoreTarget::Writer(Box::new(sink.clone()));
    let options =
        RestoreOptions { workers: 1, io_engine: IoEngineChoice::Pread, ..RestoreOptions::default() };
    restore::run(repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new()))?;
    Ok(std::mem::take(&mut sink.0.lock().unwrap()))
}
