//! What goes wrong in a world: operations that fail, come late or go unanswered, processes that are killed,
//! stopped or held, clocks that step.

use penstock_engine::store::PutOutcome;

use super::stage::{Parked, Request};
use super::store::{Answer, Op};
use super::world::World;

const HOUR_MS: u64 = 3_600_000;

/// An operation that takes effect after its process was told that it had failed.
pub struct Late {
    pub due_ms: u64,
    pub request: Request,
}

/// A key as it is shown.
pub fn short(key: &str) -> String {
    match key.rsplit_once('/') {
        Some((folder, name)) if name.len() > 12 => format!("{folder}/…{}", &name[name.len() - 8..]),
        _ => key.to_owned(),
    }
}

fn shown(answer: &Answer) -> String {
    match answer {
        Answer::Put(PutOutcome::Created) => "created".into(),
        Answer::Put(PutOutcome::Exists) => "exists".into(),
        Answer::Got(None) => "none".into(),
        Answer::Got(Some((bytes, _))) => format!("{bytes} B"),
        Answer::Listed(keys, more) => format!("{} keys{}", keys.len(), if *more { ", more" } else { "" }),
        Answer::Deleted => "deleted".into(),
        Answer::Time(time_ms) => format!("{time_ms:?}"),
        Answer::Locked(done) => format!("{} longer, {} long enough", done.extended.len(), done.long_enough),
        Answer::Failed(why) => (*why).into(),
    }
}

impl World<'_> {
    /// Decides on one thing that `process` waits for.
    pub fn decide(&mut self, process: usize) {
        let stage = self.stage.clone();
        let mut state = stage.state();
        state.running = process;
        let awake_ms = state.awake_ms(process);
        let due = |s: &super::stage::Sleeper| s.process == process && s.due_ms <= awake_ms;
        if let Some(at) = state.sleepers.iter().position(due) {
            let sleeper = state.sleepers.remove(at);
            state.note(format!("p{process} wakes up"));
            let _ = sleeper.wake.send(());
            return;
        }
        let mut places: Vec<usize> =
            (0..state.parked.len()).filter(|at| state.parked[*at].request.process == process).collect();
        places.sort_by_key(|at| state.parked[*at].request.op.rank());
        let Some(at) = (!places.is_empty()).then(|| *self.rng.pick(&places)) else { return };
        let slow = {
            let (prefix, per_mille) = self.setting.slow_at;
            let parked = &state.parked[at];
            !prefix.is_empty()
                && parked.done.is_none()
                && parked.request.op.key().starts_with(prefix)
                && !self.held.contains_key(&process)
                && self.rng.chance(per_mille)
        };
        if slow {
            let steps = self.rng.between(5..=200);
            self.held.insert(process, self.step + steps);
            let op = &state.parked[at].request.op;
            let text = format!("p{process} is held before {} {}", op.verb(), short(op.key()));
            if self.rng.one_in(6) {
                let hours = self.rng.between(10..=40);
                state.processes[process].stopped_until_ms = state.now_ms + hours * HOUR_MS;
            }
            state.note(text);
            return;
        }
        self.held.remove(&process);
        if self.comes_late(process, &state.parked[at].request.op) && state.parked[at].done.is_none() {
            // Others live on for a while then, with all clocks a day or two further.
            let (away_ms, left_ms) =
                (self.rng.between(25..=50) * HOUR_MS, self.rng.between(20_000..=200_000));
            state.now_ms += away_ms;
            state.processes[process].stopped_until_ms = state.now_ms + left_ms;
            self.late_once.insert(process);
            state.note(format!("p{process} is stopped before it publishes, for {} h", away_ms / HOUR_MS));
            return;
        }
        let mut parked = state.parked.remove(at);
        if parked.again {
            state.apply(&parked.request, false);
        }
        drop(state);
        if let Some(answer) = parked.done.take() {
            let how = if parked.again { " (and again)" } else { " (done before)" };
            self.answer(parked, answer, how);
            return;
        }
        self.operation(parked);
    }

    /// True if this request of a writer is to come a day late.
    fn comes_late(&mut self, process: usize, op: &Op) -> bool {
        matches!(op, Op::Put(..))
            && op.key().starts_with("points/")
            && !self.late_once.contains(&process)
            && self.rng.chance(self.setting.late_points)
    }

    /// Perhaps an object is not given to anybody for a while.
    fn hide_something(&mut self) {
        let (folders, per_mille) = self.setting.unseen;
        if !self.rng.chance(per_mille) {
            return;
        }
        let mut state = self.stage.state();
        let is_of = |key: &&String| folders.iter().any(|folder| key.split('/').next() == Some(folder));
        let keys: Vec<String> = state.repos[0].all.keys().filter(is_of).cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = self.rng.pick(&keys).clone();
        let for_ms = self.rng.between(10_000..=120_000);
        state.note(format!("nobody is given {} for {} s", short(&key), for_ms / 1000));
        let until_ms = state.now_ms + for_ms;
        state.unseen.insert((0, key), until_ms);
    }

    fn operation(&mut self, mut parked: Parked) {
        let request = parked.request.clone();
        let (process, op) = (request.process, &request.op);
        let setting = &self.setting;
        let rates = [
            setting.refused,
            setting.unanswered,
            setting.late,
            setting.absent,
            setting.split,
            setting.repeated,
        ];
        let drawn = self.rng.below(1000);
        let mut below = 0;
        let fault = rates.iter().position(|rate| {
            below += rate;
            drawn < below
        });
        let mut state = self.stage.state();
        let kept_from = (process, op.key().to_owned());
        if matches!(op, Op::Get(..))
            && let Some(left) = self.absent.get_mut(&kept_from).filter(|left| **left > 0)
        {
            *left -= 1;
            drop(state);
            return self.answer(parked, Answer::Got(None), " (against the listing)");
        }
        match fault {
            Some(0) => {
                state.processes[process].disturbed = true;
                drop(state);
                self.answer(parked, Answer::Failed("refused"), "");
            }
            Some(1) => {
                state.processes[process].disturbed = true;
                let answer = state.apply(&request, false);
                drop(state);
                self.answer(parked, Answer::Failed("no answer"), &format!(" (done: {})", shown(&answer)));
            }
            Some(2) if op.changes() => {
                state.processes[process].disturbed = true;
                let due_ms = state.now_ms + self.rng.between(60_000..=6 * HOUR_MS);
                self.late.push(Late { due_ms, request });
                drop(state);
                self.answer(parked, Answer::Failed("no answer"), " (it comes later)");
            }
            Some(3) if matches!(op, Op::Get(..)) && state.repos[request.repo].all.contains_key(op.key()) => {
                state.processes[process].disturbed = true;
                let more = self.rng.below(5);
                self.absent.insert(kept_from, more);
                drop(state);
                self.answer(parked, Answer::Got(None), " (against the listing)");
            }
            Some(4) if op.changes() => {
                let answer = state.apply(&request, false);
                state.note(format!(
                    "p{process} {} {}: {}, not told yet",
                    op.verb(),
                    short(op.key()),
                    shown(&answer)
                ));
                parked.done = Some(answer);
                state.parked.push(parked);
            }
            Some(5) if matches!(op, Op::Put(..)) => {
                // Its answer is lost; the request is repeated later, and what is there is taken for one's
                // own.
                let answer = state.apply(&request, false);
                state.note(format!(
                    "p{process} {} {}: {}, not told",
                    op.verb(),
                    short(op.key()),
                    shown(&answer)
                ));
                parked.again = matches!(answer, Answer::Put(PutOutcome::Created));
                parked.done = Some(answer);
                state.parked.push(parked);
            }
            _ => {
                let answer = state.apply(&request, false);
                drop(state);
                self.answer(parked, answer, "");
            }
        }
    }

    fn answer(&mut self, parked: Parked, answer: Answer, how: &str) {
        let mut state = self.stage.state();
        let (process, op) = (parked.request.process, &parked.request.op);
        state.note(format!("p{process} {} {}: {}{how}", op.verb(), short(op.key()), shown(&answer)));
        drop(state);
        parked.give(answer);
    }

    /// Operations whose time has come.
    pub fn apply_late(&mut self) {
        let mut state = self.stage.state();
        let now_ms = state.now_ms;
        let (due, left) = std::mem::take(&mut self.late).into_iter().partition(|late| late.due_ms <= now_ms);
        self.late = left;
        let due: Vec<Late> = due;
        for Late { request, .. } in due {
            let (process, op) = (request.process, &request.op);
            let answer = state.apply(&request, true);
            state.note(format!("p{process} {} {}: {}, at last", op.verb(), short(op.key()), shown(&answer)));
        }
    }

    /// Perhaps something happens to a process or a machine.
    pub fn trouble(&mut self) -> Result<(), String> {
        if self.actors.is_empty() {
            return Ok(());
        }
        self.hide_something();
        self.harm_something();
        let process = self.actors[self.rng.below(self.actors.len() as u64) as usize].process;
        let setting = &self.setting;
        let rates =
            [setting.kill, setting.stop, setting.hold, setting.jump, setting.sleep, u64::from(setting.steps)];
        let drawn = self.rng.below(1000);
        let mut below = 0;
        let what = rates.iter().position(|rate| {
            below += rate;
            drawn < below
        });
        let hours_ms = match self.rng.below(8) {
            0..=4 => self.rng.between(HOUR_MS / 6..=6 * HOUR_MS),
            5..=6 => self.rng.between(6 * HOUR_MS..=20 * HOUR_MS),
            _ => self.rng.between(20 * HOUR_MS..=60 * HOUR_MS),
        };
        let mut state = self.stage.state();
        match what {
            Some(0) => {
                drop(state);
                return self.kill(process);
            }
            Some(1) => {
                state.processes[process].stopped_until_ms = state.now_ms + hours_ms;
                state.note(format!("p{process} is stopped for {} min", hours_ms / 60_000));
            }
            Some(2) => {
                let steps = self.rng.between(10..=150);
                self.held.insert(process, self.step + steps);
            }
            Some(3) => {
                state.now_ms += hours_ms;
                state.note(format!("{} min pass", hours_ms / 60_000));
            }
            Some(4) => {
                let host = state.processes[process].host;
                state.hosts[host].slept_ms += hours_ms;
                state.now_ms += hours_ms;
                state.note(format!("machine {host} sleeps for {} min", hours_ms / 60_000));
            }
            Some(5) => {
                let host = state.processes[process].host;
                let wrong_ms = self.setting.offset_ms(&mut self.rng);
                let host_state = &mut state.hosts[host];
                host_state.wrong_ms = wrong_ms;
                host_state.wrong_most_ms = host_state.wrong_most_ms.max(wrong_ms);
                state.note(format!("the clock of machine {host} steps: wrong by {} min", wrong_ms / 60_000));
            }
            _ => {}
        }
        Ok(())
    }

    /// kill -9. What it had asked for may have been done, or be done yet.
    fn kill(&mut self, process: usize) -> Result<(), String> {
        self.freeze_state(process);
        let mut state = self.stage.state();
        state.note(format!("p{process} is killed"));
        let asked: Vec<Request> = state
            .parked
            .iter()
            .filter(|parked| parked.done.is_none() && parked.request.op.changes())
            .filter(|parked| parked.request.process == process)
            .map(|parked| parked.request.clone())
            .collect();
        state.processes[process].killed = true;
        for request in asked {
            match self.rng.below(4) {
                0 => {
                    let answer = state.apply(&request, false);
                    let op = &request.op;
                    state.note(format!("p{process} {} {}: {}", op.verb(), short(op.key()), shown(&answer)));
                }
                1 => {
                    let due_ms = state.now_ms + self.rng.between(1..=2 * HOUR_MS);
                    self.late.push(Late { due_ms, request });
                }
                _ => {}
            }
        }
        drop(state);
        self.kill_now(process);
        self.settle(process)
    }

    /// Answers everything that a killed process waits for.
    pub fn kill_now(&mut self, process: usize) {
        let mut state = self.stage.state();
        state.running = process;
        state.processes[process].killed = true;
        let (of_it, others) = std::mem::take(&mut state.parked)
            .into_iter()
            .partition(|parked: &Parked| parked.request.process == process);
        state.parked = others;
        let of_it: Vec<Parked> = of_it;
        drop(state);
        of_it.into_iter().for_each(|parked| parked.give(Answer::Failed("the process was killed")));
    }
}
