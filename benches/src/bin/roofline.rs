//! The whole pipeline against its roofline: min(device rate, cores ÷ Σ costs of the steps), all measured in the same run. As root:
//!
//! ```text
//! roofline [--only NAME]… [--rounds N] [--size GIB] [--no-steps]           in memory: a tmpfs of its own behind loop devices
//! roofline --dir DIR …                                                      the same data as files on DIR's disk
//! roofline --source PATH [--dir DIR] …                                      this device or image instead
//! roofline --repo DIR …                                                     repositories on DIR's disk
//! ```
//!
//! Workloads: text, duplicate, parent, random, zeros, and restore-text, restore-random; with `--source`: first, duplicate, parent, restore.
//! One warm-up of each is not counted. GB are 10^9 bytes. "GB/s a core" is bytes ÷ CPU seconds of the process with the kernel's work for it;
//! a loop device also keeps kernel threads busy, which "of the machine" counts (with everything else that runs, so nothing else should).

use std::path::{Path, PathBuf};

use penstock_benches::Outcome;
use penstock_benches::backup_cost::{self, Known};
use penstock_benches::meter::median;
use penstock_benches::pipeline::{Pipeline, new_repository};
use penstock_benches::place::{Place, Volume};
use penstock_benches::table::{Row, Step, print_rows, print_steps, roofline};
use penstock_benches::workload::{Fill, make};
use penstock_benches::{restore_cost, sample};
use penstock_engine::backup::BackupReport;
use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::repo::Repository;

/// Room for repositories beyond the volume's size: what the store is measured with, and metadata.
const REPO_ROOM_BYTES: u64 = 3 << 29;

struct Args {
    only: Vec<String>,
    rounds: usize,
    size_gib: u64,
    workers: usize,
    steps: bool,
    source: Option<PathBuf>,
    dir: Option<PathBuf>,
    repo: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    match parse().and_then(|args| Bench::new(args)?.run()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roofline: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn parse() -> Outcome<Args> {
    let cores = std::thread::available_parallelism()?.get();
    let mut args = Args {
        only: Vec::new(),
        rounds: 3,
        size_gib: 2,
        workers: cores,
        steps: true,
        source: None,
        dir: None,
        repo: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--only" => args.only.push(value()?),
            "--rounds" => args.rounds = value()?.parse::<usize>()?.max(1),
            "--size" => args.size_gib = value()?.parse::<u64>()?.max(1),
            "--workers" => args.workers = value()?.parse::<usize>()?.max(1),
            "--no-steps" => args.steps = false,
            "--source" => args.source = Some(value()?.into()),
            "--dir" => args.dir = Some(value()?.into()),
            "--repo" => args.repo = Some(value()?.into()),
            _ => return Err(format!("{word}: see the top of benches/src/bin/roofline.rs").into()),
        }
    }
    Ok(args)
}

struct Bench {
    args: Args,
    cores: usize,
    place: Place,
    repos: PathBuf,
    _repos: Option<Place>,
    pipeline: Pipeline,
    rows: Vec<Row>,
    made: usize,
}

impl Bench {
    fn new(args: Args) -> Outcome<Self> {
        let place = args.dir.as_deref().map_or_else(Place::memory, Place::disk)?;
        let on_disk = args.repo.as_deref().map(Place::disk).transpose()?;
        let repos =
            on_disk.as_ref().unwrap_or(&place).repositories((args.size_gib << 30) + REPO_ROOM_BYTES)?;
        let pipeline = Pipeline { workers: args.workers, state_dir: place.path("state") };
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self { args, cores, place, repos, _repos: on_disk, pipeline, rows: Vec::new(), made: 0 })
    }

    fn run(mut self) -> Outcome<()> {
        println!(
            "source and target: {}; repository: {}; {} cores, {} workers, median of {} rounds",
            self.args.source.as_ref().map_or_else(|| self.place.describe(), |s| s.display().to_string()),
            self.args.repo.as_ref().map_or_else(|| "in the same way".into(), |dir| dir.display().to_string()),
            self.cores,
            self.args.workers,
            self.args.rounds
        );
        match self.args.source.clone() {
            Some(source) => self.volume(&source, ["first", "duplicate", "parent", "restore"])?,
            None => {
                self.made_volume(Fill::Text, 1, ["text", "duplicate", "parent", "restore-text"])?;
                self.made_volume(Fill::Random, 1, ["random", "", "", "restore-random"])?;
                // Twice as much: it takes no time.
                self.made_volume(Fill::Zeros, 2, ["zeros", "", "", ""])?;
            }
        }
        print_rows(&self.rows);
        Ok(())
    }

    fn wanted(&self, name: &str) -> bool {
        !name.is_empty() && (self.args.only.is_empty() || self.args.only.iter().any(|only| only == name))
    }

    fn made_volume(&mut self, fill: Fill, times: u64, names: [&str; 4]) -> Outcome<()> {
        if !names.iter().any(|name| self.wanted(name)) {
            return Ok(());
        }
        let file = self.place.path("source");
        make(&file, fill, (times * self.args.size_gib) << 30)?;
        let volume = self.place.volume(&file)?;
        self.volume(&volume.path, names)
    }

    /// Runs the workloads of one volume: new to the repository, known to it, known by the parent, restored.
    fn volume(&mut self, volume: &Path, [new, duplicate, parent, restored]: [&str; 4]) -> Outcome<()> {
        let bytes = sample::data_segments(volume)?.len() as f64 * SEGMENT_BYTES as f64;
        let (mut dir, mut repo) = self.repository()?;
        if self.wanted(new) {
            let steps = self.steps(new, |cores| backup_cost::steps(volume, &repo, Known::No, cores))?;
            let mut rounds = Vec::new();
            for round in 0..=self.args.rounds {
                if round > 0 {
                    drop(repo);
                    std::fs::remove_dir_all(dir)?;
                    (dir, repo) = self.repository()?;
                }
                let (report, used) = self.pipeline.backup(&repo, volume, "host", false)?;
                rounds.push(used);
                if round == 0 {
                    describe(new, bytes, &report);
                }
            }
            self.add(new, bytes, rounds, steps);
        } else {
            self.pipeline.backup(&repo, volume, "host", false)?;
        }
        for (name, host, known) in [(duplicate, "other", Known::Lookup), (parent, "host", Known::Parent)] {
            if self.wanted(name) {
                let steps = self.steps(name, |cores| backup_cost::steps(volume, &repo, known, cores))?;
                let mut rounds = Vec::new();
                for _ in 0..=self.args.rounds {
                    rounds.push(self.pipeline.backup(&repo, volume, host, known == Known::Parent)?.1);
                }
                self.add(name, bytes, rounds, steps);
            }
        }
        if self.wanted(restored) {
            self.restore(restored, &repo, volume, bytes)?;
        }
        drop(repo);
        Ok(std::fs::remove_dir_all(dir)?)
    }

    fn restore(&mut self, name: &str, repo: &Repository, volume: &Path, bytes: f64) -> Outcome<()> {
        let file = self.place.path("target");
        let size_bytes = repo.resolve("latest")?.volumes.first().map_or(0, |v| v.size_bytes);
        // Written before, so that nobody waits for memory or blocks to be allocated.
        make(&file, Fill::Random, size_bytes.next_multiple_of(SEGMENT_BYTES as u64))?;
        let target: Volume = self.place.volume(&file)?;
        let steps = self.steps(name, |cores| restore_cost::steps(repo, &target.path, bytes as u64, cores))?;
        let mut rounds = Vec::new();
        for _ in 0..=self.args.rounds {
            rounds.push(self.pipeline.restore(repo, &target.path)?);
        }
        same(volume, &target.path)?;
        self.add(name, bytes, rounds, steps);
        Ok(())
    }

    fn steps(
        &self,
        name: &str,
        measure: impl FnOnce(usize) -> Outcome<Vec<Step>>,
    ) -> Outcome<Option<Vec<Step>>> {
        if !self.args.steps {
            return Ok(None);
        }
        let steps = measure(self.cores)?;
        print_steps(name, &steps);
        Ok(Some(steps))
    }

    fn add(
        &mut self,
        name: &str,
        bytes: f64,
        rounds: Vec<penstock_benches::meter::Used>,
        steps: Option<Vec<Step>>,
    ) {
        let used = median(rounds.into_iter().skip(1).collect());
        let roofline = steps.map(|steps| roofline(&steps, self.cores));
        self.rows.push(Row { name: name.to_owned(), bytes, used, roofline });
    }

    fn repository(&mut self) -> Outcome<(PathBuf, Repository)> {
        self.made += 1;
        let dir = self.repos.join(format!("{}", self.made));
        let repo = new_repository(&dir)?;
        Ok((dir, repo))
    }
}

fn describe(name: &str, bytes: f64, report: &BackupReport) {
    let totals = report.totals;
    println!(
        "\n{name}: {:.2} GB of data, {:.2} GB new in {} chunks, compressed {:.2} to 1; I/O: {}",
        bytes / 1e9,
        totals.new_bytes as f64 / 1e9,
        totals.new_chunks,
        totals.new_bytes as f64 / totals.stored_bytes.max(1) as f64,
        report.io_engine
    );
}

/// What was restored must be what was backed up.
fn same(volume: &Path, restored: &Path) -> Outcome<()> {
    use std::io::Read;
    let (mut a, mut b) = (std::fs::File::open(volume)?, std::fs::File::open(restored)?);
    let (mut left, mut right) = (vec![0; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]);
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(());
        }
        b.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Err("the restored volume differs from what was backed up".into());
        }
    }
}
