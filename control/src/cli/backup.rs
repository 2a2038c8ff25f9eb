//! `penstock backup`: devices, images or a stream become a recovery point.

use std::path::{Path, PathBuf};

use penstock_engine::backup::findings::{UNLISTED, UNREADABLE, ranges_of};
use penstock_engine::backup::{
    self, BackupOptions, BackupReport, Bottleneck, LevelUse, OnReadError, Parent, VolumeSource,
};
use penstock_engine::format::config::Compression;
use penstock_engine::format::point::Volume;
use penstock_engine::repo::Repository;
use penstock_engine::source::{self, Extents, OpenOptions, Source, StreamSource};
use serde::Serialize;

use super::args::{self, IoEngineArg};
use super::exit::{Exit, Failure, Outcome};
use super::output::{self, Facts, JsonRange};
use super::progress::{Kind, Mode, Shown};
use super::session::Session;
use super::spent::Spent;
use super::{host, units};

const EXAMPLES: &str = "\
Examples:
  penstock backup /dev/nvme1n1 --name web-01
  penstock backup /dev/vda /dev/vdb --name db-01 --tag env=prod --tag owner=ann
  penstock backup disk.img --name web-01 --time 2026-11-24T05:00:00Z
  penstock backup /dev/vdb --name db-01 --parent 0192ab34cd56 --changed-extents changed.jsonl
  penstock backup --name db --stdin-command -- pg_dump --format=custom db
  zfs send pool/vm@now | penstock backup - --name vm --password-file /etc/penstock.pass

Each line of the --changed-extents file is {\"offset\": BYTES, \"length\": BYTES}: what may differ from the parent. Which
point that is, is said by --parent, or by a first line {\"base\": \"ID\"}.
A command that fails (--stdin-command) makes no recovery point; with - whatever came before the pipe was closed does.";

/// Back up devices, image files, standard input or the output of a command as one recovery point
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A block device, an image file (raw or qcow2), or - for standard input; each is a volume
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,

    /// What stands for SOURCE is a command and its arguments, behind --; its standard output is the volume
    #[arg(long)]
    stdin_command: bool,

    /// Name of the machine
    #[arg(long, value_parser = args::parse_name)]
    name: String,

    /// Label of the recovery point; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag)]
    tags: Vec<(String, String)>,

    /// Compare with this recovery point [default: the latest of the same name]
    #[arg(long, value_name = "POINT")]
    parent: Option<String>,

    /// Compare with none: read everything
    #[arg(long, conflicts_with = "parent")]
    no_parent: bool,

    /// Read only what this file says may differ from the parent (one SOURCE only)
    #[arg(long, value_name = "FILE", conflicts_with = "no_parent")]
    changed_extents: Option<PathBuf>,

    /// Of the segments that --changed-extents does not name, read and compare so many percent all the same
    #[arg(long, value_name = "PERCENT", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u8).range(0..=100), requires = "changed_extents")]
    verify_unlisted: u8,

    /// How the source is read
    #[arg(long, value_enum, default_value_t)]
    io_engine: IoEngineArg,

    /// How eagerly to compress, for this run: auto, auto:LOWEST..HIGHEST, off or a zstd level from -7 to 19 [default: the repository's]
    #[arg(long, value_name = "LEVEL", value_parser = args::parse_compression, allow_hyphen_values = true)]
    compression: Option<Compression>,

    /// The time the contents stand for, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = args::parse_time)]
    time: Option<String>,

    /// Back up what is in use for writing, or changes while it is read: the copy may be torn
    #[arg(long)]
    force_live: bool,

    /// Back up a volume although it is much shorter than in the recovery point before
    #[arg(long)]
    allow_shrink: bool,

    /// Store the file of an image format (qcow2, VMDK, VHDX, …) as it is, not the disk that it holds
    #[arg(long)]
    raw_container: bool,

    /// Where the source cannot be read: fail, or store zeros, record the place and end with exit code 3
    #[arg(long, value_enum, default_value_t)]
    on_read_error: OnReadErrorArg,

    /// Start afresh instead of continuing a backup that was killed
    #[arg(long)]
    no_resume: bool,
}

/// `--on-read-error`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default)]
enum OnReadErrorArg {
    #[default]
    Fail,
    Zero,
}

/// A backup that was made.
pub struct Done {
    /// What the engine says of it.
    pub report: BackupReport,
    spent: Spent,
}

/// The result of `backup --json`.
#[derive(Serialize)]
pub struct Report<'a> {
    recovery_point: &'a str,
    name: &'a str,
    started_at: &'a str,
    duration_ms: u64,
    bottleneck: &'static str,
    volumes: Vec<VolumeReport<'a>>,
    read_bytes_per_s: u64,
    cpu_ms: u64,
    memory_peak_bytes: u64,
    io_engine: &'static str,
    io_engine_why: &'a str,
    #[serde(flatten)]
    spent: Spent,
    resumed_bytes: u64,
    compression_levels: Option<Levels>,
    parent: Option<&'a str>,
    in_part: bool,
    notes: &'a [String],
}

#[derive(Serialize)]
struct VolumeReport<'a> {
    name: &'a str,
    size_bytes: u64,
    read_bytes: u64,
    zero_bytes: u64,
    reused_bytes: u64,
    chunks: u64,
    new_chunks: u64,
    new_bytes: u64,
    stored_bytes: u64,
    unreadable: Vec<JsonRange>,
    unlisted_changes: Vec<JsonRange>,
}

/// Makes the backup.
pub fn run(args: &Args, session: &Session) -> Outcome {
    check(args)?;
    let options = options(args, session)?;
    // Sources first: a mistyped device is told before a passphrase is asked for.
    session.repo_url()?;
    let volumes = open_volumes(args)?;
    let repo = session.repository()?;
    let mut done = perform(session, Mode::of(&session.globals), &repo, volumes, &options)?;
    done.spent = Spent::of(&repo);
    let exit = if done.report.in_part { Exit::InPart } else { Exit::Done };
    if session.globals.json {
        output::print_json(&done.json())?;
    } else {
        output::print(&done.text())?;
        if !session.globals.quiet {
            done.report.notes.iter().for_each(|text| output::note(&format!("note: {text}")));
        }
    }
    Ok(exit)
}

/// Runs the engine's backup with progress and Ctrl-C.
pub fn perform(
    session: &Session,
    shown: impl Into<Shown>,
    repo: &Repository,
    volumes: Vec<VolumeSource>,
    options: &BackupOptions,
) -> Result<Done, Failure> {
    let before = repo.requests();
    let report = session.with_run_in(Kind::Backup, shown, |run| backup::run(repo, volumes, options, run))?;
    Ok(Done { report, spent: Spent::since(repo, before) })
}

fn check(args: &Args) -> Result<(), Failure> {
    if args.changed_extents.is_some() && args.sources.len() > 1 && !args.stdin_command {
        return Err(Failure::usage(
            "--changed-extents says what differs on one SOURCE, and there are several",
        ));
    }
    if !args.stdin_command && args.sources.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Failure::usage("standard input (-) can be only one of the sources"));
    }
    if args.stdin_command && args.changed_extents.is_some() {
        return Err(Failure::usage(
            "--changed-extents needs a source with a size: the output of a command has none",
        ));
    }
    for (i, (key, _)) in args.tags.iter().enumerate() {
        if args.tags[..i].iter().any(|(earlier, _)| earlier == key) {
            return Err(Failure::usage(format!("the tag {key:?} is given twice")));
        }
    }
    Ok(())
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Options that do not come from this verb's own arguments.
pub fn base_options(session: &Session, name: &str, state_dir: PathBuf) -> BackupOptions {
    let globals = &session.globals;
    BackupOptions {
        name: name.to_owned(),
        workers: globals.worker_count(),
        readers: globals.readers.map(usize::from),
        queue_depth: globals.queue_depth.map(usize::from),
        host: host::name(),
        program: host::PROGRAM.into(),
        state_dir,
        ..BackupOptions::default()
    }
}

fn options(args: &Args, session: &Session) -> Result<BackupOptions, Failure> {
    Ok(BackupOptions {
        tags: args.tags.iter().cloned().collect(),
        parent: match &args.parent {
            Some(point) => Parent::Point(point.clone()),
            None if args.no_parent => Parent::None,
            None => Parent::Latest,
        },
        time: args.time.clone(),
        io_engine: args.io_engine.into(),
        compression: args.compression,
        resume: !args.no_resume,
        allow_shrink: args.allow_shrink,
        on_read_error: match args.on_read_error {
            OnReadErrorArg::Fail => OnReadError::Fail,
            OnReadErrorArg::Zero => OnReadError::Zero,
        },
        verify_unlisted_percent: args.verify_unlisted,
        ..base_options(session, &args.name, host::state_dir()?)
    })
}

fn open_volumes(args: &Args) -> Result<Vec<VolumeSource>, Failure> {
    if args.stdin_command {
        let command: Vec<_> = args.sources.iter().map(|part| part.clone().into_os_string()).collect();
        let source = Box::new(StreamSource::command(&command)?);
        return Ok(vec![VolumeSource { name: source.name().to_owned(), source, changed_extents: None }]);
    }
    let how = OpenOptions { force_live: args.force_live, raw_container: args.raw_container };
    let mut volumes: Vec<VolumeSource> = Vec::with_capacity(args.sources.len());
    for path in &args.sources {
        let source = source::open(path, how)?;
        let changed_extents = match (&args.changed_extents, source.size_bytes()) {
            (None, _) => None,
            (Some(file), Some(size_bytes)) => Some(Extents::load(file, size_bytes)?),
            (Some(_), None) => {
                return Err(Failure::usage(
                    "--changed-extents needs a source with a size: a stream has none",
                ));
            }
        };
        let name = unique_name(&file_name_of(source.name()), |name| {
            volumes.iter().any(|volume| volume.name == name)
        });
        volumes.push(VolumeSource { name, source, changed_extents });
    }
    Ok(volumes)
}

/// What a volume is called: the last part of its path, since names stand behind a slash in `POINT/VOLUME`.
fn file_name_of(source: &str) -> String {
    Path::new(source)
        .file_name()
        .map_or_else(|| source.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// `disk.img`, `disk.img-2`, `disk.img-3`: the first that is not taken.
fn unique_name(wanted: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = wanted.to_owned();
    let mut number = 1;
    while is_taken(&name) {
        number += 1;
        name = format!("{wanted}-{number}");
    }
    name
}

impl Done {
    /// Logical bytes of all volumes.
    pub fn size_bytes(&self) -> u64 {
        self.report.point.volumes.iter().map(|volume| volume.size_bytes).sum()
    }

    /// For programs.
    pub fn json(&self) -> Report<'_> {
        let report = &self.report;
        Report {
            recovery_point: &report.point.id,
            name: &report.point.name,
            started_at: &report.point.started_at,
            duration_ms: report.duration_ms,
            bottleneck: report.bottleneck.name(),
            volumes: report.point.volumes.iter().map(volume_report).collect(),
            read_bytes_per_s: units::per_second(report.totals.read_bytes, report.duration_ms) as u64,
            cpu_ms: host::cpu_ms(),
            memory_peak_bytes: host::memory_peak_bytes(),
            io_engine: report.io_engine,
            io_engine_why: &report.io_engine_why,
            spent: self.spent,
            resumed_bytes: report.resumed_bytes,
            compression_levels: report.levels.map(Levels::of),
            parent: report.point.parent.as_deref(),
            in_part: report.in_part,
            notes: &report.notes,
        }
    }

    fn text(&self) -> String {
        let point = &self.report.point;
        let mut facts = self.facts();
        facts.add("id", &point.id);
        format!("recovery point {} of {:?}\n{}", output::short_id(&point.id), point.name, facts.text())
    }

    /// The figures for people.
    pub fn facts(&self) -> Facts {
        let report = &self.report;
        let totals = &report.totals;
        let mut facts = Facts::default();
        let volumes = units::plural(report.point.volumes.len() as u64, "volume");
        facts.add("protected", format!("{} in {volumes}", units::size(self.size_bytes())));
        facts.add("read", units::size(totals.read_bytes));
        facts.add("zero", units::size(totals.zero_bytes));
        facts.add("reused", format!("{} that the repository had already", units::size(totals.reused_bytes)));
        let dedup = units::ratio(totals.reused_bytes + totals.new_bytes, totals.new_bytes);
        facts.add("new", with_ratio(totals.new_bytes, totals.new_chunks, "deduplicated", dedup));
        let compression = units::ratio(totals.new_bytes, totals.stored_bytes);
        facts.add("stored", with_ratio(totals.stored_bytes, 0, "compressed", compression));
        if let Some(used) = report.levels.filter(|_| totals.new_bytes > 0) {
            facts.add("compression", levels_text(used));
        }
        if report.resumed_bytes > 0 {
            facts.add(
                "resumed",
                format!("{} that an earlier run had finished", units::size(report.resumed_bytes)),
            );
        }
        facts.add("time", units::duration(report.duration_ms));
        facts.add(
            "rate",
            format!(
                "{} protected, {} read",
                units::rate(self.size_bytes(), report.duration_ms),
                units::rate(totals.read_bytes, report.duration_ms)
            ),
        );
        facts.add("bottleneck", bottleneck_text(report.bottleneck));
        facts.add("I/O", io_text(report.io_engine, &report.io_engine_why));
        self.spent.add_to(&mut facts);
        facts.add("parent", report.point.parent.as_deref().map_or("none", output::short_id));
        facts
    }
}

/// zstd levels that were used.
#[derive(Serialize)]
struct Levels {
    lowest: i32,
    highest: i32,
    mean: f64,
}

impl Levels {
    fn of(used: LevelUse) -> Self {
        Self { lowest: used.lowest, highest: used.highest, mean: used.mean_percent as f64 / 100.0 }
    }
}

/// Which levels were used, or `None` where there was nothing to compress.
fn levels_text(used: LevelUse) -> String {
    let Levels { lowest, highest, mean } = Levels::of(used);
    if lowest == highest {
        format!("zstd {lowest}")
    } else {
        format!(
            "zstd {lowest} to {highest}, {mean:.1} on average: as the source and the repository left time for it"
        )
    }
}

fn with_ratio(bytes: u64, chunks: u64, what: &str, ratio: Option<String>) -> String {
    let mut text = units::size(bytes);
    if chunks > 0 {
        text += &format!(" in {}", units::plural(chunks, "chunk"));
    }
    if let Some(ratio) = ratio {
        text += &format!(", {what} {ratio}");
    }
    text
}

fn volume_report(volume: &Volume) -> VolumeReport<'_> {
    let counts = &volume.counts;
    let ranges = |member| ranges_of(volume, member).iter().map(JsonRange::from).collect();
    VolumeReport {
        name: &volume.name,
        size_bytes: volume.size_bytes,
        read_bytes: counts.read_bytes,
        zero_bytes: counts.zero_bytes,
        reused_bytes: counts.reused_bytes,
        chunks: counts.chunks,
        new_chunks: counts.new_chunks,
        new_bytes: counts.new_bytes,
        stored_bytes: counts.stored_bytes,
        unreadable: ranges(UNREADABLE),
        unlisted_changes: ranges(UNLISTED),
    }
}

fn bottleneck_text(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::Source => "the source: reading it took longest",
        Bottleneck::Cpu => "the processor: hashing, compressing and encrypting took longest",
        Bottleneck::Store => "the repository: writing to it took longest",
    }
}

/// `io_uring`, or pread and why.
pub fn io_text(engine: &str, why: &str) -> String {
    match (engine, why) {
        ("uring", _) => "io_uring".into(),
        (engine, "") => engine.into(),
        (engine, why) => format!("{engine}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(line: &str) -> Args {
        Line::try_parse_from(line.split(' ')).unwrap().args
    }

    #[test]
    fn volume_names_are_made_unique() {
        let taken = ["a", "a-2", "b"];
        let is_taken = |name: &str| taken.contains(&name);
        assert_eq!(unique_name("a", is_taken), "a-3");
        assert_eq!(unique_name("b", is_taken), "b-2");
        assert_eq!(unique_name("c", is_taken), "c");
    }

    #[test]
    fn what_clap_cannot_check() {
        assert!(check(&parsed("x a b --name n --tag k=v --tag l=v")).is_ok());
        for line in
            ["x a b --name n --changed-extents f", "x - - --name n", "x a --name n --tag k=v --tag k=w"]
        {
            assert_eq!(check(&parsed(line)).unwrap_err().exit(), Exit::Usage, "{line}");
        }
    }

    #[test]
    fn levels_in_words() {
        let used = |lowest, highest, mean_percent| LevelUse { lowest, highest, mean_percent };
        assert_eq!(levels_text(used(1, 1, 100)), "zstd 1");
        assert!(levels_text(used(1, 4, 175)).starts_with("zstd 1 to 4, 1.8 on average"));
    }

    #[test]
    fn the_io_engine_is_explained_where_it_is_not_the_fast_one() {
        assert_eq!(io_text("uring", "asked for"), "io_uring");
        assert_eq!(io_text("pread", "io_uring is refused (EPERM)"), "pread: io_uring is refused (EPERM)");
        assert_eq!(io_text("pread", ""), "pread");
    }
}
