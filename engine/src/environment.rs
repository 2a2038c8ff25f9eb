//! What the protocols of the repository take from outside: time, and whether a process still runs. Both decide when data
//! may be deleted, so a test can replace both.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, RecvTimeoutError};

/// Why [`Clock::pause`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// The time is over.
    Over,
    /// The sender of the stop channel is gone.
    Stopped,
}

/// Time as one process sees it.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970 by the wall clock. It may be wrong, and it may step.
    fn unix_ms(&self) -> u64;

    /// Time since a fixed moment. It never steps, and it may stand still while the machine sleeps.
    fn monotonic(&self) -> Duration;

    /// Waits until `pause` is over or the sender of `stop` is gone.
    fn pause(&self, stop: &Receiver<()>, pause: Duration) -> Pause;
}

/// What names a process on one boot of one machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProcessId {
    /// The boot and the process namespace; empty if they cannot be told.
    pub boot: String,
    /// Its number in that namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot; 0 if that cannot be told.
    pub start: u64,
}

/// What can be said of another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessState {
    /// It runs.
    Runs,
    /// It has surely ended.
    Ended,
    /// It is on another machine, or this process may not see it: time has to tell.
    Unknown,
}

/// Who this process is, and whether others still run.
pub trait Liveness: Send + Sync {
    /// This process.
    fn this(&self) -> ProcessId;

    /// The state of another one.
    fn state(&self, process: &ProcessId) -> ProcessState;
}

/// The clock and the view of other processes that a repository works with.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Processes.
    pub liveness: Arc<dyn Liveness>,
}

impl Environment {
    /// This machine's clock and processes.
    pub fn real() -> Self {
        Self { clock: Arc::new(SystemClock::default()), liveness: Arc::new(ProcFs) }
    }
}

/// The clocks of the operating system.
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn pause(&self, stop: &Receiver<()>, pause: Duration) -> Pause {
        match stop.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => Pause::Over,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Pause::Stopped,
        }
    }
}

/// Processes as the kernel tells of them.
struct ProcFs;

impl Liveness for ProcFs {
    fn this(&self) -> ProcessId {
        let pid = std::process::id();
        ProcessId { boot: boot(), pid, start: start_of(pid).map_or(0, |stat| stat.start) }
    }

    fn state(&self, process: &ProcessId) -> ProcessState {
        if process.boot.is_empty() || process.boot != boot() {
            return ProcessState::Unknown;
        }
        // The kernel answers this for processes of other users too, even where /proc hides them (hidepid).
        let Some(pid) = i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw) else {
            return ProcessState::Unknown;
        };
        match rustix::process::test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) => return ProcessState::Ended,
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(_) => return ProcessState::Unknown,
        }
        match start_of(process.pid) {
            // A zombie runs no more. Another start means that the number was given to another process.
            Some(stat) if stat.zombie || process.start == 0 || stat.start != process.start => {
                if process.start == 0 && !stat.zombie { ProcessState::Unknown } else { ProcessState::Ended }
            }
            Some(_) => ProcessState::Runs,
            // Something has this number and is hidden: perhaps the writer, perhaps a later process.
            None => ProcessState::Unknown,
        }
    }
}

/// Which boot of which machine, and which process and time namespaces: empty if it cannot be told. Start times differ
/// between time namespaces.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let Ok(namespace) = fs::read_link("/proc/self/ns/pid") else { return String::new() };
    let time = fs::read_link("/proc/self/ns/time").unwrap_or_default();
    match boot.trim() {
        "" => String::new(),
        boot => format!("{boot} {} {}", namespace.display(), time.display()),
    }
}

struct Stat {
    zombie: bool,
    start: u64,
}

/// When a process started, in ticks since boot; `None` if its entry cannot be read.
fn start_of(pid: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    // The 22nd field of all is the 20th behind the name.
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18).and_then(|ticks| ticks.parse().ok())?;
    Some(Stat { zombie: matches!(state, "Z" | "X"), start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ended_only_if_the_kernel_says_so() {
        let liveness = ProcFs;
        let this = liveness.this();
        assert_eq!(liveness.state(&this), ProcessState::Runs);
        let elsewhere = ProcessId { boot: "another boot".into(), ..this.clone() };
        assert_eq!(liveness.state(&elsewhere), ProcessState::Unknown);
        let reused = ProcessId { start: this.start + 1, ..this.clone() };
        assert_eq!(liveness.state(&reused), ProcessState::Ended);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let of_child = ProcessId { pid: child.id(), ..this.clone() };
        child.wait().unwrap();
        assert_eq!(liveness.state(&of_child), ProcessState::Ended);
        // Process 1 lives, whether or not this process may see its start.
        let hidden = ProcessId { pid: 1, start: 0, ..this };
        assert_ne!(liveness.state(&hidden), ProcessState::Ended);
    }

    #[test]
    fn a_pause_ends_with_its_sender() {
        let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
        let clock = SystemClock::default();
        assert_eq!(clock.pause(&stopped, Duration::from_millis(1)), Pause::Over);
        drop(stop);
        assert_eq!(clock.pause(&stopped, Duration::from_secs(60)), Pause::Stopped);
    }
}
