//! Runs many seeds, in programs side by side: one world at a time in each, on a processor of its own, so
//! that one thread runs at a time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use penstock_engine::simulation;

use super::planted;
use super::watch::Watch;
use super::world::live;

const MARK: &str = "SIM ";

/// A number in the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Seeds to be run.
pub struct Seeds {
    pub first: u64,
    pub count: u64,
    pub planted: Option<String>,
    /// Go on after a law was broken.
    pub all: bool,
}

/// A seed that broke a law.
pub struct Broken {
    pub seed: u64,
    pub law: String,
    pub history: Vec<String>,
}

impl Broken {
    pub fn text(&self) -> String {
        let again = format!("again: PENSTOCK_SIM_FIRST={} PENSTOCK_SIM_SEEDS=1", self.seed);
        format!(
            "seed {}: {}\n{}\nseed {}: {}\n{again}",
            self.seed,
            self.law,
            self.history.join("\n"),
            self.seed,
            self.law
        )
    }
}

/// What came of them.
#[derive(Default)]
pub struct Ran {
    pub broken: Vec<Broken>,
    pub digests: BTreeMap<u64, String>,
    pub steps: u64,
    pub points: u64,
    pub took: Duration,
}

impl Ran {
    pub fn summary(&self) -> String {
        format!(
            "{} seeds, {} steps, {} recovery points, {} broke a law, {:.1} s",
            self.digests.len(),
            self.steps,
            self.points,
            self.broken.len(),
            self.took.as_secs_f64()
        )
    }
}

struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Seeds {
    pub fn run(&self) -> Ran {
        let began = Instant::now();
        let jobs = number("PENSTOCK_SIM_JOBS").unwrap_or_else(processors).clamp(1, self.count.max(1));
        let (sender, lines) = mpsc::channel::<String>();
        let mut programs = Programs(Vec::new());
        for job in 0..jobs {
            let mut child = self.command(job, jobs).spawn().unwrap();
            let output = BufReader::new(child.stdout.take().unwrap());
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    // libtest prints the name of the test in front of the first line
                    if let Some(at) = line.find(MARK)
                        && sender.send(line[at + MARK.len()..].to_owned()).is_err()
                    {
                        break;
                    }
                }
            });
            programs.0.push(child);
        }
        drop(sender);
        let mut ran = Ran::default();
        for line in lines {
            ran.take(&line);
            if !self.all && line.starts_with("broken") {
                break;
            }
        }
        ran.took = began.elapsed();
        assert!(
            !ran.broken.is_empty() || ran.digests.len() as u64 == self.count,
            "{} of {} seeds ended: a program of the simulation died",
            ran.digests.len(),
            self.count
        );
        ran
    }

    fn command(&self, job: u64, jobs: u64) -> Command {
        let program = std::env::current_exe().unwrap();
        // One processor, and no thread interrupts another: then it follows from the seed which one runs.
        let mut command = match Command::new("taskset").arg("-V").output() {
            Ok(output) if output.status.success() => {
                let mut command = Command::new("taskset");
                command.args(["-c", &processor(job).to_string(), "chrt", "--batch", "0"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        command.args(["child", "--exact", "--nocapture", "--test-threads", "1"]);
        let range = format!("{} {jobs} {}", self.first + job, self.first + self.count);
        command.env("PENSTOCK_SIM_CHILD", range).env_remove("PENSTOCK_SIM_PLANT");
        command.env("PENSTOCK_SIM_GO_ON", if self.all { "1" } else { "" });
        if let Some(planted) = &self.planted {
            command.env("PENSTOCK_SIM_PLANT", planted);
        }
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        command
    }
}

impl Ran {
    /// Takes a line of a program.
    fn take(&mut self, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "seed" => {
                let fields: Vec<&str> = rest.split(' ').collect();
                let [seed, steps, points, digest] = fields[..] else { return };
                self.steps += steps.parse().unwrap_or(0);
                self.points += points.parse().unwrap_or(0);
                self.digests.extend(seed.parse().ok().map(|seed| (seed, digest.to_owned())));
            }
            "broken" => {
                let (seed, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let mut text: Vec<String> = serde_json::from_str(text).unwrap_or_default();
                let law = text.pop().unwrap_or_default();
                self.broken.push(Broken { seed: seed.parse().unwrap_or(0), law, history: text });
            }
            _ => {}
        }
    }
}

fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// The processor for a program: one of those that this one may use.
fn processor(job: u64) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0").trim();
    let range = |part: &str| -> Option<Vec<u64>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?..=last.parse().ok()?).collect())
    };
    let all: Vec<u64> = list.split(',').filter_map(range).flatten().collect();
    all.get(job as usize % all.len().max(1)).copied().unwrap_or(0)
}

/// The program: runs the seeds that its environment names, and prints what came of each.
pub fn child() {
    let Ok(range) = std::env::var("PENSTOCK_SIM_CHILD") else { return };
    let fields: Vec<u64> = range.split(' ').map(|field| field.parse().unwrap()).collect();
    let [first, step, end] = fields[..] else { panic!("PENSTOCK_SIM_CHILD={range}") };
    simulation::plant(std::env::var("PENSTOCK_SIM_PLANT").ok().map(|name| planted::by_name(&name)));
    let go_on = std::env::var("PENSTOCK_SIM_GO_ON").is_ok_and(|value| !value.is_empty());
    let show = std::env::var("PENSTOCK_SIM_HISTORY").is_ok();
    let memory = std::path::Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let dir = dir.unwrap();
    let mut watch = Watch::new();
    for seed in (first..end).step_by(step as usize) {
        let mut outcome = live(seed, &mut watch, dir.path());
        println!("{MARK}seed {seed} {} {} {}", outcome.steps, outcome.points, outcome.digest());
        if show {
            outcome.history.iter().for_each(|line| println!("{line}"));
        }
        if let Some(law) = outcome.broken.take() {
            outcome.history.push(law);
            println!("{MARK}broken {seed} {}", serde_json::to_string(&outcome.history).unwrap());
            if !go_on {
                return;
            }
        }
    }
}
