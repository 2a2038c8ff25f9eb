//! Time and other processes, as a simulated process sees them.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded, select};
use penstock_engine::environment::{Clock, Environment, Liveness, Pause, ProcessId, ProcessState};

use super::stage::{OBSERVER, Sleeper, Stage};

/// Clock and liveness of one process.
pub struct Sight {
    stage: Arc<Stage>,
    process: usize,
}

pub fn environment(stage: &Arc<Stage>, process: usize) -> Environment {
    let sight = Arc::new(Sight { stage: stage.clone(), process });
    Environment { clock: sight.clone(), liveness: sight }
}

impl Clock for Sight {
    fn unix_ms(&self) -> u64 {
        self.stage.state().wall_ms(self.process)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.stage.state().awake_ms(self.process))
    }

    fn pause(&self, stop: &Receiver<()>, pause: Duration) -> Pause {
        let (wake, woken) = bounded(1);
        let id = {
            let mut state = self.stage.state();
            let id = state.next_id();
            let due_ms = state.awake_ms(self.process) + pause.as_millis() as u64;
            state.sleepers.push(Sleeper { id, process: self.process, due_ms, wake });
            id
        };
        self.stage.wake_scheduler();
        select! {
            recv(stop) -> _ => {
                self.stage.state().sleepers.retain(|sleeper| sleeper.id != id);
                Pause::Stopped
            }
            recv(woken) -> _ => Pause::Over, // the scheduler has taken the sleeper out
        }
    }
}

fn boot(host: usize) -> String {
    format!("boot of machine {host}")
}

impl Liveness for Sight {
    fn this(&self) -> ProcessId {
        let host = self.stage.state().processes[self.process].host;
        ProcessId { boot: boot(host), pid: self.process as u32, start: 1 }
    }

    fn state(&self, process: &ProcessId) -> ProcessState {
        let state = self.stage.state();
        let me = &state.processes[self.process];
        let number = process.pid as usize;
        if process.boot != boot(me.host) || number >= state.processes.len() {
            return ProcessState::Unknown;
        }
        let seen = &state.processes[number];
        if seen.killed || seen.exit.is_some() {
            return ProcessState::Ended;
        }
        if state.hosts[me.host].hides && number != self.process && self.process != OBSERVER {
            return ProcessState::Unknown;
        }
        ProcessState::Runs
    }
}
