//! What all threads of a simulated world share. Each store operation waits here until the scheduler decides
//! on it, so that what happens follows from the seed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};

use crossbeam::channel::Sender;
use penstock_engine::store::{PutOutcome, Span};

use super::disk::Disk;
use super::rng::mix;
use super::store::{Answer, Objects, Op};

/// The process that watches the world, outside of it: nothing that it asks for waits or fails.
pub const OBSERVER: usize = 0;

pub struct Stage {
    state: Mutex<State>,
    scheduler: Thread,
}

/// Everything, behind one lock: of all simulated processes one computes at a time.
pub struct State {
    pub seed: u64,
    /// The true time.
    pub now_ms: u64,
    /// Who computes.
    pub running: usize,
    pub parked: Vec<Parked>,
    pub sleepers: Vec<Sleeper>,
    pub processes: Vec<Process>,
    pub hosts: Vec<Host>,
    pub repos: Vec<Objects>,
    /// Keys in a page of a listing.
    pub page: usize,
    /// Of gets of what never changes, one in so many waits; the others are answered at once.
    pub waits_one_in: u64,
    pub changes: Vec<Change>,
    /// Listed objects that nobody is given, by repository and key, until a time.
    pub unseen: BTreeMap<(usize, String), u64>,
    /// What was backed up, by recovery point.
    pub contents: BTreeMap<String, Arc<Disk>>,
    pub history: Vec<String>,
    draws: BTreeMap<(usize, String), u64>,
    asked: BTreeMap<(usize, String), u64>,
    next_id: u64,
}

/// What a process asks of a repository.
#[derive(Clone)]
pub struct Request {
    pub process: usize,
    pub repo: usize,
    pub op: Op,
    pub asked_ms: u64,
}

/// A request that waits for the scheduler.
pub struct Parked {
    pub request: Request,
    /// Its effect was there, and this is what it will be told.
    pub done: Option<Answer>,
    /// It is done once more when it is answered.
    pub again: bool,
    pub thread_id: u32,
    slot: Arc<Slot>,
}

/// A thread that waits for time to pass.
pub struct Sleeper {
    pub id: u64,
    pub process: usize,
    /// By the clock that stands still while the machine sleeps.
    pub due_ms: u64,
    pub wake: Sender<()>,
}

/// A simulated process.
#[derive(Default)]
pub struct Process {
    pub host: usize,
    pub started_ms: u64,
    pub killed: bool,
    /// It stands still until then.
    pub stopped_until_ms: u64,
    /// How it ended: true if with exit code 0.
    pub exit: Option<bool>,
    pub ended_ms: u64,
    /// Somebody else removed a lease of it while it ran.
    pub robbed: bool,
    /// What it backs up.
    pub disk: Option<Arc<Disk>>,
    /// A fault hit one of its operations.
    pub disturbed: bool,
}

/// A machine.
#[derive(Default)]
pub struct Host {
    /// Its wall clock is wrong by so much.
    pub wrong_ms: i64,
    /// The most it was ahead of what it is now: clocks step.
    pub wrong_most_ms: i64,
    /// How long it slept so far.
    pub slept_ms: u64,
    /// Its processes cannot see each other.
    pub hides: bool,
}

/// What an operation changed.
#[derive(Clone)]
pub struct Change {
    pub process: usize,
    pub repo: usize,
    pub key: String,
    pub put: bool,
    pub asked_ms: u64,
    /// The process had been told that it failed.
    pub late: bool,
}

/// Where the answer of a parked operation is put.
struct Slot {
    answer: Mutex<Option<Answer>>,
    thread: Thread,
}

thread_local! {
    static THREAD_ID: Cell<u32> = const { Cell::new(0) };
}

/// The number of this thread, as the kernel has it.
pub fn thread_id() -> u32 {
    THREAD_ID.with(|id| {
        if id.get() == 0 {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            id.set(
                link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap(),
            );
        }
        id.get()
    })
}

impl Stage {
    /// The scheduler is the thread that calls this.
    pub fn new(seed: u64, hosts: Vec<Host>, repos: usize, page: usize, waits_one_in: u64) -> Arc<Self> {
        let state = State {
            seed,
            now_ms: 1_800_000_000_000,
            running: OBSERVER,
            parked: Vec::new(),
            sleepers: Vec::new(),
            processes: vec![Process::default()],
            hosts,
            repos: (0..repos).map(|_| Objects::default()).collect(),
            page,
            waits_one_in,
            changes: Vec::new(),
            unseen: BTreeMap::new(),
            contents: BTreeMap::new(),
            history: Vec::new(),
            draws: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_id: 0,
        };
        Arc::new(Self { state: Mutex::new(state), scheduler: thread::current() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Asks for an operation, and waits until the scheduler has decided on it.
    pub fn ask(&self, process: usize, repo: usize, op: Op) -> Answer {
        let slot = Arc::new(Slot { answer: Mutex::new(None), thread: thread::current() });
        {
            let mut state = self.state();
            if state.processes[process].killed {
                return Answer::Failed("the process was killed");
            }
            let now_ms = state.now_ms;
            let request = Request { process, repo, op, asked_ms: now_ms };
            if state.passes(&request) {
                return state.apply(&request, false);
            }
            let (thread_id, slot) = (thread_id(), slot.clone());
            let parked = Parked { request, done: None, again: false, thread_id, slot };
            state.parked.push(parked);
        }
        self.wake_scheduler();
        slot.wait()
    }

    pub fn wake_scheduler(&self) {
        self.scheduler.unpark();
    }

    /// Random bytes, by who draws them and how often: the order in which threads of a process get here does
    /// not matter.
    pub fn random(&self, bytes: &mut [u8]) {
        let (seed, process, name, count) = {
            let mut state = self.state();
            let name = thread::current().name().unwrap_or_default().to_owned();
            let (seed, process) = (state.seed, state.running);
            let count = state.draws.entry((process, name.clone())).or_default();
            *count += 1;
            (seed, process, name, *count)
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&(process as u64).to_le_bytes());
        hasher.update(&count.to_le_bytes()).update(name.as_bytes());
        hasher.finalize_xof().fill(bytes);
    }
}

impl Slot {
    fn wait(&self) -> Answer {
        loop {
            if let Some(answer) = self.answer.lock().unwrap().take() {
                return answer;
            }
            thread::park();
        }
    }
}

impl Parked {
    pub fn give(self, answer: Answer) {
        *self.slot.answer.lock().unwrap() = Some(answer);
        self.slot.thread.unpark();
    }
}

impl State {
    pub fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// True if it is answered at once: what the observer asks for, what nothing depends on, and of what
    /// never changes the most.
    fn passes(&mut self, request: &Request) -> bool {
        let process = request.process;
        if process == OBSERVER {
            return true;
        }
        let Op::Get(key, span) = &request.op else {
            return request.op.key() == "keys/" || matches!(request.op, Op::Time(_));
        };
        let one_in = match key.split('/').next().unwrap_or_default() {
            "config" | "keys" => return true,
            "data" | "meta" | "index" => self.waits_one_in,
            "points" => 2,
            _ => return false,
        };
        let what = format!("{key} {}", span_number(*span));
        let hash = blake3::hash(what.as_bytes());
        let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
        let count = self.asked.entry((process, what)).or_default();
        *count += 1;
        let drawn = mix(self.seed ^ mix(hash ^ mix(*count ^ (process as u64) << 32)));
        !drawn.is_multiple_of(one_in)
    }

    pub fn note(&mut self, line: String) {
        let time_ms = self.now_ms - 1_800_000_000_000;
        self.history.push(format!(
            "{:4} h {:02}:{:02}.{:03}  {line}",
            time_ms / 3_600_000,
            time_ms / 60_000 % 60,
            time_ms / 1000 % 60,
            time_ms % 1000
        ));
    }

    /// Lets a request take effect; `late` if its process was told before that it had failed.
    pub fn apply(&mut self, request: &Request, late: bool) -> Answer {
        let Request { process, repo, ref op, asked_ms } = *request;
        let page = self.page;
        if process != OBSERVER
            && let Op::Get(key, _) = op
            && let Some(until_ms) = self.unseen.get(&(repo, key.clone()))
        {
            if *until_ms > self.now_ms {
                self.processes[process].disturbed = true;
                return Answer::Got(None);
            }
            self.unseen.remove(&(repo, key.clone()));
        }
        let answer = self.repos[repo].apply(op, page, self.now_ms);
        let put = matches!(answer, Answer::Put(PutOutcome::Created));
        if put || matches!(answer, Answer::Deleted) {
            let key = op.key().to_owned();
            self.changes.push(Change { process, repo, key, put, asked_ms, late });
        }
        answer
    }

    /// What the wall clock of a process says.
    pub fn wall_ms(&self, process: usize) -> u64 {
        if process == OBSERVER {
            return self.now_ms;
        }
        self.now_ms.saturating_add_signed(self.hosts[self.processes[process].host].wrong_ms)
    }

    /// The time that a machine was awake.
    pub fn awake_ms(&self, process: usize) -> u64 {
        self.now_ms - self.hosts[self.processes[process].host].slept_ms
    }
}

fn span_number(span: Span) -> u64 {
    match span {
        Span::All => u64::MAX,
        Span::At { offset, .. } => offset,
        Span::Last(_) => u64::MAX - 1,
    }
}
