//! Time and CPU time: of this process, of one thread, and of the whole machine.

use std::fs;
use std::sync::Barrier;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use crate::Outcome;

/// Times that a step is measured.
const RUNS: usize = 3;

/// What some work took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Wall time.
    pub wall: f64,
    /// CPU of this process, the kernel's work for it included.
    pub process: f64,
    /// CPU of the whole machine: also what kernel threads (a loop device's workers) and other programs did. Counted in ticks of 10 ms.
    pub machine: f64,
}

/// Runs `work` and tells what it took.
pub fn measure<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Used)> {
    let (wall, process, machine) = (Instant::now(), process_cpu_s(), machine_cpu_s()?);
    let result = work()?;
    let used = Used {
        wall: wall.elapsed().as_secs_f64(),
        process: process_cpu_s() - process,
        machine: machine_cpu_s()? - machine,
    };
    Ok((result, used))
}

/// Runs `step` on each of the states, a thread each, and returns the CPU seconds of all of them: one after another, or all at once.
fn cpu_of<S: Send>(
    states: &mut [S],
    at_once: bool,
    step: impl Fn(&mut S) -> Outcome<()> + Sync,
) -> Outcome<f64> {
    let begin = Barrier::new(if at_once { states.len() } else { 1 });
    let timed = |state: &mut S| {
        begin.wait();
        let start = cpu_s(ClockId::ThreadCPUTime);
        step(state)?;
        Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(cpu_s(ClockId::ThreadCPUTime) - start)
    };
    let join = |thread: std::thread::ScopedJoinHandle<'_, Outcome<f64>>| {
        thread.join().unwrap_or_else(|_| Err("a measuring thread panicked".into()))
    };
    std::thread::scope(|scope| {
        let timed = &timed;
        if at_once {
            let threads: Vec<_> = states.iter_mut().map(|s| scope.spawn(move || timed(s))).collect();
            threads.into_iter().map(join).sum()
        } else {
            states.iter_mut().map(|s| join(scope.spawn(move || timed(s)))).sum()
        }
    })
}

/// The middle one by wall time.
pub fn median(mut rounds: Vec<Used>) -> Used {
    rounds.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    rounds.get(rounds.len() / 2).copied().unwrap_or_default()
}

/// Measures a step of the kernel: `run` is called once to warm up and then [`RUNS`] times. Wall time is the best, CPU the mean, as ticks are coarse.
pub fn best_of<T>(mut run: impl FnMut() -> Outcome<(T, Used)>) -> Outcome<(T, Used)> {
    let mut last = run()?.0;
    let mut sum = Used { wall: f64::INFINITY, ..Used::default() };
    for _ in 0..RUNS {
        let (result, used) = run()?;
        last = result;
        sum.wall = sum.wall.min(used.wall);
        sum.process += used.process / RUNS as f64;
        sum.machine += used.machine / RUNS as f64;
    }
    Ok((last, sum))
}

/// Measures a step of our own: CPU seconds with one core at it after the other, and with all at once. The best of [`RUNS`].
pub fn best_cpu_of<S: Send>(
    states: &mut [S],
    step: impl Fn(&mut S) -> Outcome<()> + Sync,
) -> Outcome<(f64, f64)> {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        best.0 = best.0.min(cpu_of(states, false, &step)?);
        best.1 = best.1.min(cpu_of(states, true, &step)?);
    }
    Ok(best)
}

fn process_cpu_s() -> f64 {
    cpu_s(ClockId::ProcessCPUTime)
}

fn cpu_s(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// user + nice + system + irq + softirq of the first line of `/proc/stat`.
fn machine_cpu_s() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&n| fields.get(n)).sum();
    Ok(busy as f64 / rustix::param::clock_ticks_per_second().max(1) as f64)
}
