//! A world from a seed: machines with clocks, one store, processes that come and go, and a scheduler that
//! lets one of them do one store operation at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use penstock_engine::format::config::Encryption;
use penstock_engine::gc::GcOptions;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::simulation;

use super::actors::{self, Actor, Reach, Task};
use super::clock::environment;
use super::disk::Disk;
use super::faults::Late;
use super::laws::Laws;
use super::rng::Rng;
use super::setting::Setting;
use super::stage::{Host, OBSERVER, Process, Stage};
use super::story::Step;
use super::watch::Watch;

/// Steps after which no process is begun any more, and after which something runs in a circle.
const STEPS: u64 = 6_000;
const STEPS_MAX: u64 = 40_000;

/// What became of a seed.
pub struct Outcome {
    /// What law was broken.
    pub broken: Option<String>,
    pub history: Vec<String>,
    pub steps: u64,
    pub points: u64,
}

impl Outcome {
    /// Stands for the whole history.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.history.iter().for_each(|line| {
            hasher.update(line.as_bytes());
        });
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

pub struct World<'a> {
    pub stage: Arc<Stage>,
    pub rng: Rng,
    pub setting: Setting,
    pub actors: Vec<Actor>,
    pub laws: Laws,
    pub late: Vec<Late>,
    /// Keys that a process does not find for so many more gets.
    pub absent: BTreeMap<(usize, String), u64>,
    /// Until which step a process is held.
    pub held: BTreeMap<usize, u64>,
    /// Processes that were stopped before they published.
    pub late_once: BTreeSet<usize>,
    /// What is left of a story.
    script: VecDeque<Step>,
    pub step: u64,
    watch: &'a mut Watch,
    dir: &'a Path,
    /// What each machine's disk was at each backup so far.
    disks: BTreeMap<String, Vec<Arc<Disk>>>,
    current: Option<(usize, u64)>,
}

static CURRENT: Mutex<Option<Arc<Stage>>> = Mutex::new(None);

/// Lives through the world of a seed. `dir` is for what processes keep on their machines.
pub fn live(seed: u64, watch: &mut Watch, dir: &Path) -> Outcome {
    simulation::draw_from(Box::new(|bytes| {
        let stage = CURRENT.lock().unwrap().clone();
        stage.unwrap().random(bytes);
    }));
    let dir = dir.join(format!("{seed}"));
    let mut rng = Rng::new(seed);
    let setting = Setting::drawn(&mut rng);
    let hosts = (0..setting.hosts).map(|_| {
        let wrong_ms = setting.offset_ms(&mut rng);
        Host { wrong_ms, wrong_most_ms: wrong_ms, slept_ms: 0, hides: setting.hides && rng.one_in(2) }
    });
    let hosts = hosts.collect();
    let stage = Stage::new(seed, hosts, setting.repos, setting.page, setting.waits_one_in);
    *CURRENT.lock().unwrap() = Some(stage.clone());
    stage.state().note(format!("seed {seed}: {setting:?}"));
    let repos = init(&stage, &setting);
    let laws = Laws::new(stage.clone(), repos, &setting);
    let mut world = World {
        stage: stage.clone(),
        rng,
        setting,
        actors: Vec::new(),
        laws,
        late: Vec::new(),
        absent: BTreeMap::new(),
        held: BTreeMap::new(),
        late_once: BTreeSet::new(),
        script: VecDeque::new(),
        step: 0,
        watch,
        dir: &dir,
        disks: BTreeMap::new(),
        current: None,
    };
    let lived = catch_unwind(AssertUnwindSafe(|| world.live())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "the scheduler panicked".into()))
    });
    world.abandon();
    let (steps, points) = (world.step, world.laws.points_seen());
    drop(world);
    *CURRENT.lock().unwrap() = None;
    let _ = std::fs::remove_dir_all(&dir);
    let history = std::mem::take(&mut stage.state().history);
    Outcome { broken: lived.err(), history, steps, points }
}

fn init(stage: &Arc<Stage>, setting: &Setting) -> Vec<Repository> {
    let options = InitOptions {
        encryption: Encryption::Aes256Gcm,
        chunk_bytes: 16 << 10,
        pack_bytes: setting.pack_bytes,
        compression: "off".into(),
        ..InitOptions::default()
    };
    let init = |repo| {
        let reach = Reach {
            stage: stage.clone(),
            process: OBSERVER,
            object_store: false,
            tells_time: setting.tells_time,
            locks: setting.locks,
            cache: None,
            state_dir: std::env::temp_dir(),
        };
        Repository::init_in(reach.store(repo), &options, &actors::key(), environment(stage, OBSERVER))
            .unwrap()
    };
    (0..setting.repos).map(init).collect()
}

impl World<'_> {
    fn live(&mut self) -> Result<(), String> {
        while self.step < STEPS_MAX {
            self.step += 1;
            self.end_actors()?;
            let begun = self.stage.state().processes.len() - 1;
            let may_begin = begun < self.setting.processes && self.step < STEPS;
            if self.actors.is_empty() && !may_begin {
                self.laws.end()?;
                return Ok(());
            }
            let room = self.actors.len() < self.setting.crowd;
            if may_begin && room && self.is_time_to_begin() {
                self.begin()?;
            } else {
                self.trouble()?;
                self.go_on()?;
            }
            self.laws.look()?;
        }
        Err(format!("nothing ends: {}", self.waiting()))
    }

    /// True if a process is to begin now.
    fn is_time_to_begin(&mut self) -> bool {
        if let Some(story) = self.setting.story
            && self.script.is_empty()
        {
            let (gc, number) = (self.gc(), self.step);
            self.script = story.told(&mut self.rng, &self.setting, &gc, number);
        }
        while self.actors.is_empty() && matches!(self.script.front(), Some(Step::Rest)) {
            self.script.pop_front();
        }
        match self.script.front() {
            Some(Step::Rest) => false,
            Some(Step::Begin(_)) => self.rng.one_in(4),
            None => self.actors.is_empty() || self.rng.one_in(12),
        }
    }

    fn gc(&self) -> Task {
        Task::Gc(GcOptions {
            grace: self.setting.grace,
            max_repack_bytes: if self.setting.moves { 16 << 30 } else { 0 },
            dry_run: false,
        })
    }

    /// Lets some process do something, or time pass if none can.
    fn go_on(&mut self) -> Result<(), String> {
        self.apply_late();
        match self.choose() {
            Some(process) => {
                let ms = self.rng.between(1..=500);
                self.stage.state().now_ms += ms;
                self.decide(process);
                self.settle(process)
            }
            None if self.actors.iter().any(|actor| self.held.remove(&actor.process).is_some()) => Ok(()),
            None => self.let_time_pass(),
        }
    }

    /// All are stopped or sleep: until the first goes on.
    fn let_time_pass(&mut self) -> Result<(), String> {
        let mut state = self.stage.state();
        let now_ms = state.now_ms;
        let mut next: Vec<u64> =
            self.actors.iter().map(|actor| state.processes[actor.process].stopped_until_ms).collect();
        next.extend(
            state.sleepers.iter().map(|s| now_ms + s.due_ms.saturating_sub(state.awake_ms(s.process))),
        );
        match next.into_iter().filter(|ms| *ms > now_ms).min() {
            Some(next_ms) => state.now_ms = next_ms,
            None if self.actors.iter().all(|actor| state.processes[actor.process].exit.is_some()) => {}
            None => return Err(format!("a deadlock: {}", self.waiting())),
        }
        Ok(())
    }

    fn waiting(&self) -> String {
        let who: Vec<&str> = self.actors.iter().map(|actor| actor.what.as_str()).collect();
        format!("{who:?}")
    }

    /// Waits until `process` rests.
    pub fn settle(&mut self, process: usize) -> Result<(), String> {
        debug_assert_eq!(self.stage.state().running, process);
        self.watch.settle(&self.stage)
    }

    /// The process that goes on: mostly the one that did last.
    fn choose(&mut self) -> Option<usize> {
        let state = self.stage.state();
        let mut can: Vec<usize> = self.actors.iter().map(|actor| actor.process).collect();
        can.retain(|process| {
            let waits = state.parked.iter().any(|parked| parked.request.process == *process)
                || state
                    .sleepers
                    .iter()
                    .any(|s| s.process == *process && s.due_ms <= state.awake_ms(*process));
            waits && state.processes[*process].stopped_until_ms <= state.now_ms
        });
        let now = self.step;
        can.retain(|process| self.held.get(process).is_none_or(|until| *until <= now));
        can.sort_unstable();
        if can.is_empty() {
            return None;
        }
        // A thread that slept long enough goes on soon.
        let due = |process: &usize| {
            state.sleepers.iter().any(|s| s.process == *process && s.due_ms <= state.awake_ms(*process))
        };
        let awake: Vec<usize> = can.iter().copied().filter(due).collect();
        if !awake.is_empty() && self.rng.below(4) != 0 {
            let process = *self.rng.pick(&awake);
            self.current = Some((process, 8));
            return Some(process);
        }
        if let Some((process, left)) =
            self.current.filter(|(process, left)| *left > 0 && can.contains(process))
        {
            self.current = Some((process, left - 1));
            return Some(process);
        }
        let process = *self.rng.pick(&can);
        let left = self.rng.below(2 * self.setting.burst);
        self.current = Some((process, left));
        Some(process)
    }

    /// Begins a process.
    fn begin(&mut self) -> Result<(), String> {
        let host = self.rng.below(self.setting.hosts) as usize;
        let repo = self.rng.below(self.setting.repos as u64) as usize;
        let told = match self.script.pop_front() {
            Some(Step::Begin(task)) => Some(task),
            Some(Step::Rest) | None => None,
        };
        let mut tasks = vec![told.unwrap_or_else(|| self.task(repo))];
        if self.rng.chance(self.setting.twice) {
            tasks.push(self.task(repo));
        }
        let process = {
            let mut state = self.stage.state();
            let started_ms = state.now_ms;
            state.processes.push(Process { host, started_ms, ..Process::default() });
            let process = state.processes.len() - 1;
            state.running = process;
            process
        };
        let of_host = self.dir.join(format!("{host}"));
        let reach = Reach {
            stage: self.stage.clone(),
            process,
            object_store: self.setting.object_store,
            tells_time: self.setting.tells_time,
            locks: self.setting.locks,
            cache: self.setting.cached.then(|| of_host.join("cache")),
            state_dir: of_host.join("state"),
        };
        let actor = actors::start(reach, repo, tasks);
        self.stage.state().note(format!("{} begins on machine {host}, repository {repo}", actor.what));
        self.actors.push(actor);
        self.settle(process)
    }

    fn task(&mut self, repo: usize) -> Task {
        match self.rng.weighted(&self.setting.weights) {
            0 => self.backup(),
            1 => self.gc(),
            2 if self.rng.chance(self.setting.forget_file) => {
                Task::ForgetFile(self.rng.below(self.setting.kinds))
            }
            2 => Task::Forget((0..self.rng.between(1..=3)).map(|_| self.rng.below(1 << 20)).collect()),
            3 => Task::Restore(self.rng.below(1 << 20)),
            4 => Task::Verify { read_data: self.rng.one_in(2) },
            5 => Task::Copy { to: 1 - repo },
            6 => Task::Repair { read_data: self.rng.one_in(2) },
            _ => Task::Lock,
        }
    }

    fn backup(&mut self) -> Task {
        let number = self.rng.below(self.setting.names);
        let name = char::from(b'a' + number as u8).to_string();
        let (kinds, hole) = (self.setting.kinds, self.setting.hole_bytes);
        let others: Vec<Arc<Disk>> = self.disks.values().filter_map(|disks| disks.last().cloned()).collect();
        let earlier = self.disks.entry(name.clone()).or_default();
        let rng = &mut self.rng;
        let disk = match (earlier.last(), rng.below(20)) {
            (Some(last), 0..=1) => last.clone(),
            (Some(last), 2..=8) => last.changed(rng, kinds),
            // As it was before, also while a backup of that is under way or was killed.
            (Some(_), 9..=11) => rng.pick(earlier).clone(),
            // What another machine has.
            (_, 12..=13) if !others.is_empty() => rng.pick(&others).clone(),
            (_, 14..=15) if !others.is_empty() => rng.pick(&others).changed(rng, kinds),
            _ => Disk::drawn(rng, kinds, self.setting.files, hole),
        };
        earlier.push(disk.clone());
        let (tracked, stream) = (rng.one_in(4), rng.one_in(5));
        Task::Backup { name, disk, tracked, stream, workers: 1 }
    }

    /// Joins processes that have ended.
    fn end_actors(&mut self) -> Result<(), String> {
        let ended = |world: &Self, actor: &Actor| world.stage.state().processes[actor.process].exit.is_some();
        while let Some(at) = (0..self.actors.len()).find(|at| ended(self, &self.actors[*at])) {
            let actor = self.actors.swap_remove(at);
            let (process, what) = (actor.process, actor.what.clone());
            let ended = actor.thread.join().map_err(|_| format!("{what} panicked"))?;
            let how = match &ended.error {
                None => "ends with exit code 0".to_owned(),
                Some(error) => format!("ends: {error}"),
            };
            {
                let mut state = self.stage.state();
                state.running = OBSERVER;
                state.note(format!("{what} {how}"));
                state.sleepers.retain(|sleeper| sleeper.process != process);
            }
            self.laws.ended(process, &what, actor.repo, ended)?;
        }
        Ok(())
    }

    /// Kills what still runs, so that no thread of this world is left.
    fn abandon(&mut self) {
        for actor in std::mem::take(&mut self.actors) {
            self.kill_now(actor.process);
            let _ = actor.thread.join();
        }
    }

    /// What a machine keeps, as it is when a process of it is killed: what the killed process still writes
    /// is not seen.
    pub fn freeze_state(&self, process: usize) {
        let host = self.stage.state().processes[process].host;
        let Ok(repos) = std::fs::read_dir(self.dir.join(format!("{host}/state"))) else { return };
        for journal in
            repos.flatten().filter_map(|repo| std::fs::read_dir(repo.path()).ok()).flatten().flatten()
        {
            let (path, copy) = (journal.path(), journal.path().with_extension("copy"));
            std::fs::copy(&path, &copy).and_then(|_| std::fs::rename(&copy, &path)).unwrap();
        }
    }
}
