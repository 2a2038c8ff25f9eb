//! Runs every fuzz body on mutated valid inputs and on random bytes, without cargo-fuzz and with stable Rust:
//!
//! `smoke [SECONDS] [TARGET…]` (60 seconds in all, shared out evenly, and all targets unless given)
//! `smoke --write-seeds DIR` (writes the valid inputs to DIR/TARGET/, a corpus for cargo-fuzz to begin with)
//!
//! Before that, each body gets the committed inputs in `corpus/TARGET/`, which fuzzing guided by coverage has found.
//!
//! The generator has a fixed seed for each target: the n-th input is the same in every run. An input that makes a body
//! panic is written to `artifacts/TARGET/` in the current directory, once for each place of the panic, and the exit
//! code is 1.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_fuzz::{ACCEPTED, BODIES, Body, seeds};

/// Longest input.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Inputs between two looks at the clock.
const BATCH: u64 = 64;
/// More memory than this says that a decoder allocates what it has not checked.
const MEMORY_MIB_MAX: u64 = 256;

/// Where the last panic happened, and what it said.
static LAST_PANIC: Mutex<(String, String)> = Mutex::new((String::new(), String::new()));

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir] = &args[..]
        && flag == "--write-seeds"
    {
        return write_seeds(Path::new(dir));
    }
    let seconds: f64 = args.first().map_or(Ok(60.0), |text| text.parse())?;
    let wanted = args.get(1..).unwrap_or_default();
    let bodies: Vec<(&str, Body)> = BODIES
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|want| want == name))
        .collect();
    if bodies.is_empty() || bodies.len() < wanted.len() {
        let names: Vec<&str> = BODIES.iter().map(|(name, _)| *name).collect();
        return Err(format!("targets are {}", names.join(", ")).into());
    }
    panic::set_hook(Box::new(|info| {
        let place = info.location().map_or("unknown".into(), ToString::to_string);
        let text = info.payload_as_str().unwrap_or_default().to_owned();
        *LAST_PANIC.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = (place, text);
    }));
    let share = Duration::from_secs_f64(seconds / bodies.len() as f64);
    let mut failures = 0;
    for (name, body) in bodies {
        failures += fuzz(name, body, share)?;
    }
    let memory = peak_memory_mib();
    println!("{failures} failures, peak memory {memory} MiB");
    if memory > MEMORY_MIB_MAX {
        println!("more than {MEMORY_MIB_MAX} MiB: a decoder allocates what it has not checked");
    }
    Ok(ExitCode::from(u8::from(failures > 0 || memory > MEMORY_MIB_MAX)))
}

/// Runs one body for `share`; returns at how many places it panicked.
fn fuzz(name: &str, body: Body, share: Duration) -> Result<usize, Box<dyn Error>> {
    let mut seeds = seeds(name);
    let corpus = corpus(name)?;
    let corpus_inputs = corpus.len();
    seeds.extend(corpus);
    let mut random = Random::new(name);
    let mut failures: BTreeMap<String, (String, Vec<u8>, u64)> = BTreeMap::new();
    let (mut runs, mut slowest) = (0u64, Duration::ZERO);
    let accepted = ACCEPTED.load(Ordering::Relaxed);
    let begin = Instant::now();
    let mut try_input = |input: &[u8]| {
        let start = Instant::now();
        let outcome = panic::catch_unwind(|| body(input));
        slowest = slowest.max(start.elapsed());
        if outcome.is_err() {
            let (place, text) = LAST_PANIC.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
            let known = failures.entry(place).or_insert_with(|| (text, input.to_vec(), 0));
            known.2 += 1;
            if input.len() < known.1.len() {
                known.1 = input.to_vec();
            }
        }
    };
    seeds.iter().for_each(|seed| try_input(seed));
    while begin.elapsed() < share {
        for _ in 0..BATCH {
            try_input(&random.input(&seeds));
        }
        runs += BATCH;
    }
    println!(
        "{name:15} {corpus_inputs:4} of the corpus, {runs:9} inputs, {:8} accepted, {:7.0} a second, slowest {:6.2} ms, {} failures",
        ACCEPTED.load(Ordering::Relaxed) - accepted,
        runs as f64 / begin.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        failures.len()
    );
    for (number, (place, (text, input, times))) in failures.iter().enumerate() {
        let dir = Path::new("artifacts").join(name);
        std::fs::create_dir_all(&dir)?;
        let file = dir.join(format!("smoke-{number}"));
        std::fs::write(&file, input)?;
        println!(
            "  {times} times at {place}: {text}\n  shortest input, {} bytes: {}",
            input.len(),
            file.display()
        );
        println!("  {}", input.escape_ascii());
    }
    Ok(failures.len())
}

/// The committed inputs of a target.
fn corpus(name: &str) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files = Vec::new();
    match std::fs::read_dir(&dir) {
        Ok(entries) => {
            for entry in entries {
                files.push(entry?.path());
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{}: {e}", dir.display()).into()),
    }
    files.sort();
    Ok(files.iter().map(std::fs::read).collect::<Result<_, _>>()?)
}

fn write_seeds(dir: &Path) -> Result<ExitCode, Box<dyn Error>> {
    for (name, _) in BODIES {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        for (number, seed) in seeds(name).iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Highest resident memory of this process; 0 where the kernel does not tell.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// Xorshift64*: small, the same everywhere, and good enough to choose bytes to spoil.
struct Random(u64);

impl Random {
    fn new(name: &str) -> Self {
        // FNV-1a of the name; never 0, which xorshift would not leave.
        Self(
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
                | 1,
        )
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// Random bytes one time in eight, else a seed with a few changes.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(8) == 0 {
            let bytes = self.below(300);
            return (0..bytes).map(|_| self.next() as u8).collect();
        }
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            self.mutate(&mut input, seeds);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        // Heads hold counts and lengths, so half of all changes are made there.
        let reach = if self.below(2) == 0 { input.len().min(40) } else { input.len() };
        let at = self.below(reach);
        let left = input.len() - at;
        match self.below(9) {
            0 if left > 0 => input[at] ^= 1 << self.below(8),
            1 if left > 0 => input[at] = self.next() as u8,
            2 => input.insert(at, self.next() as u8),
            3 => {
                let bytes = self.below(left.min(64) + 1);
                input.drain(at..at + bytes);
            }
            4 => {
                let bytes = self.below(left.min(64) + 1);
                let copy = input[at..at + bytes].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            5 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from.min(other.len())..]);
            }
            6 => {
                let number = self.number().to_le_bytes();
                let bytes = [1, 2, 4, 8][self.below(4)].min(left);
                input[at..at + bytes].copy_from_slice(&number[..bytes]);
            }
            7 => input.truncate(at),
            _ => self.replace_decimal(input, at),
        }
    }

    /// Replaces the first decimal number from `at` on by another one.
    fn replace_decimal(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|n| at + n) else { return };
        let end = input[start..].iter().position(|b| !b.is_ascii_digit()).map_or(input.len(), |n| start + n);
        let text = self.number().to_string();
        input.splice(start..end, text.into_bytes());
    }

    /// A number near a border: 0, a power of two, or the largest, give or take a little.
    fn number(&mut self) -> u64 {
        let border = match self.below(66) {
            64 => 0,
            65 => u64::MAX,
            bit => 1 << bit,
        };
        border.wrapping_add(self.below(3) as u64).wrapping_sub(1)
    }
}
