//! `penstock restore`: a volume of a recovery point onto a device, into a file, or to standard output.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_engine::Error;
use penstock_engine::cold::Onto;
use penstock_engine::format::point::{RecoveryPoint, Volume};
use penstock_engine::repo::Repository;
use penstock_engine::restore::{self, Damage, RestoreOptions, RestoreReport, RestoreTarget};
use penstock_engine::target::Qcow2Sink;
use serde::Serialize;

use super::args::{self, IoEngineArg};
use super::exit::{Exit, Failure, Outcome};
use super::output::{self, Facts, JsonRange};
use super::progress::{Kind, Mode};
use super::session::Session;
use super::spent::Spent;
use super::thaw::{self, ThawArgs};
use super::{host, units};

/// Damaged ranges shown; `--json` has all of them.
const RANGES_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  penstock restore latest:web-01 /dev/nvme2n1
  penstock restore 0192ab34cd56/vdb disk.img                 a sparse file
  penstock restore latest:web-01 /dev/nvme2n1 --compare      write only what differs from what is there
  penstock restore latest:web-01 disk.qcow2 --format qcow2   an image for QEMU
  penstock restore latest disk.img --base 0192ab34cd56       disk.img holds 0192ab34cd56: write what changed since
  penstock restore latest:web-01 disk.img --thaw standard --thaw-wait     data is in GLACIER: ask for it, wait, restore
  penstock restore latest:web-01 disk.img --skip-damaged     the repository is damaged: all that can still be read
  penstock restore latest:vm - | zfs receive pool/vm";

/// Restore a volume
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// latest, latest:NAME, an id or the beginning of one; /VOLUME where it has several
    #[arg(value_name = "POINT[/VOLUME]")]
    point: String,

    /// A block device, a file, or - for standard output
    target: PathBuf,

    /// What the target becomes
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// The target holds this recovery point: write only what differs from it
    #[arg(long, value_name = "POINT")]
    base: Option<String>,

    /// Read the target and write only what differs
    #[arg(long, conflicts_with = "base")]
    compare: bool,

    /// Overwrite a target that is not empty
    #[arg(long)]
    force: bool,

    /// Continue a restore that was interrupted
    #[arg(long)]
    resume: bool,

    /// Go on past data that is damaged or missing in the repository: write all that can be read, list the byte ranges
    /// that are not right, and end with exit code 3. There the target reads as zeros or, with --base and --compare,
    /// keeps what it has
    #[arg(long)]
    skip_damaged: bool,

    /// Archived data
    #[command(flatten)]
    thaw: ThawArgs,

    /// How the target is written
    #[arg(long, value_enum, default_value_t)]
    io_engine: IoEngineArg,
}

/// What a target becomes.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Format {
    /// The volume's bytes
    #[default]
    Raw,
    /// An image file for QEMU
    Qcow2,
}

/// A restore that was made.
pub struct Done {
    /// What the engine says of it.
    pub report: RestoreReport,
    point_id: String,
    volume: String,
    spent: Spent,
}

/// The result of `restore --json`.
#[derive(Serialize)]
pub struct Report<'a> {
    recovery_point: &'a str,
    volume: &'a str,
    size_bytes: u64,
    written_bytes: u64,
    skipped_zero_bytes: u64,
    skipped_same_bytes: u64,
    zeroed_bytes: u64,
    resumed_bytes: u64,
    fetched_bytes: u64,
    damaged_bytes: u64,
    damaged_ranges: Vec<JsonRange>,
    problems: &'a [String],
    duration_ms: u64,
    write_bytes_per_s: u64,
    io_engine: &'static str,
    cpu_ms: u64,
    memory_peak_bytes: u64,
    #[serde(flatten)]
    spent: Spent,
}

/// Restores the volume.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let to_stdout = args.target.as_os_str() == "-";
    check_stdout(args, to_stdout, io::stdout().is_terminal())?;
    check_format(args, to_stdout)?;
    let repo = session.repository()?;
    let (point_text, volume_name) = args::split_point_volume(&args.point);
    let point = repo.resolve(point_text)?;
    let volume = choose_volume(&point, volume_name)?;
    let options = RestoreOptions {
        base: args.base.as_deref().map(|text| repo.resolve(text)).transpose()?,
        compare: args.compare,
        force: args.force,
        resume: args.resume,
        skip_damaged: args.skip_damaged,
        io_engine: args.io_engine.into(),
        // Only a journal of a device lies there.
        ..base_options(session, host::state_dir().ok())
    };
    let onto = Onto { base: options.base.as_ref(), block_bytes: None };
    match thaw::prepare(&args.thaw, session, &repo, volume, onto) {
        // Which packs are needed cannot be found out; those that are archived are met on the way.
        Err(Failure::Engine(error)) if args.skip_damaged && error.is_damage() => {
            output::note(&format!("whether data is archived was not looked at: {error}"));
        }
        prepared => prepared?,
    }
    let image = match args.format {
        Format::Qcow2 => Some(Arc::new(Qcow2Sink::create(&args.target, volume.size_bytes, args.force)?)),
        Format::Raw => None,
    };
    let target = match &image {
        Some(image) => RestoreTarget::Blocks(image.clone()),
        None if to_stdout => stdout_target()?,
        None => RestoreTarget::Path(args.target.clone()),
    };
    let mut done = perform(session, Mode::of(&session.globals), &repo, &point, volume, target, &options)
        .map_err(|failure| {
            with_way_out(thaw::met(failure, session, &repo, volume, &options), session, args)
        })?;
    if let Some(image) = image {
        image.finish()?;
    }
    done.spent = Spent::of(&repo);
    let text = match session.globals.json {
        true => output::json_text(&done.json())? + "\n",
        false => done.text(&args.target),
    };
    match to_stdout {
        true => output::note(text.trim_end()),
        false => output::print(&text)?,
    }
    Ok(if done.report.damage.ranges.is_empty() { Exit::Done } else { Exit::InPart })
}

/// Says of a restore that met damage how it gets past.
fn with_way_out(failure: Failure, session: &Session, args: &Args) -> Failure {
    let is_damage = matches!(&failure, Failure::Engine(error) if error.is_damage());
    if is_damage && !args.skip_damaged && !session.globals.json && !session.globals.quiet {
        output::note("with --skip-damaged a restore writes all that can be read, and lists what is missing");
    }
    failure
}

/// Runs the engine's restore with progress and Ctrl-C.
pub fn perform(
    session: &Session,
    mode: Mode,
    repo: &Repository,
    point: &RecoveryPoint,
    volume: &Volume,
    target: RestoreTarget,
    options: &RestoreOptions,
) -> Result<Done, Failure> {
    let before = repo.requests();
    let report = session
        .with_run_in(Kind::Restore, mode, |run| restore::run(repo, point, volume, target, options, run))?;
    Ok(Done {
        report,
        point_id: point.id.clone(),
        volume: volume.name.clone(),
        spent: Spent::since(repo, before),
    })
}

/// Options that do not come from this verb's own arguments.
pub fn base_options(session: &Session, state_dir: Option<PathBuf>) -> RestoreOptions {
    RestoreOptions {
        state_dir,
        workers: session.globals.worker_count(),
        queue_depth: session.globals.queue_depth.map(usize::from),
        ..RestoreOptions::default()
    }
}

fn check_stdout(args: &Args, to_stdout: bool, is_terminal: bool) -> Result<(), Failure> {
    if to_stdout && (args.base.is_some() || args.compare || args.resume) {
        return Err(Failure::usage(
            "standard output is written from start to end: --base, --compare and --resume need a device or file",
        ));
    }
    if to_stdout && is_terminal && !args.force {
        let why =
            "it is a terminal, which a disk's bytes would upset; pipe it into something, or use --force"
                .into();
        return Err(Error::TargetRefused { target: "standard output".into(), why }.into());
    }
    Ok(())
}

/// An image is made from nothing, and written here and there.
fn check_format(args: &Args, to_stdout: bool) -> Result<(), Failure> {
    if args.format == Format::Qcow2 && (to_stdout || args.base.is_some() || args.compare || args.resume) {
        return Err(Failure::usage(
            "--format qcow2 makes a new file: without --base, --compare and --resume, and not to standard output",
        ));
    }
    Ok(())
}

/// Standard output as a file of its own: Rust's keeps back what follows the last newline.
fn stdout_target() -> Result<RestoreTarget, Failure> {
    let fd = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::io("open", "standard output"))?;
    Ok(RestoreTarget::Writer(Box::new(File::from(fd))))
}

fn choose_volume<'a>(point: &'a RecoveryPoint, name: Option<&str>) -> Result<&'a Volume, Failure> {
    let id = output::short_id(&point.id);
    let names = || point.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, point.volumes.as_slice()) {
        (Some(name), _) => point.volume(name).ok_or_else(|| {
            Error::NoSuchPoint { what: format!("{id} has no volume {name:?}; it has: {}", names()) }.into()
        }),
        (None, [volume]) => Ok(volume),
        (None, []) => Err(Error::NoSuchPoint { what: format!("{id} has no volumes") }.into()),
        (None, volumes) => Err(Failure::usage(format!(
            "{id} has {} volumes, name one of them as {id}/VOLUME: {}",
            volumes.len(),
            names()
        ))),
    }
}

impl Done {
    /// For programs.
    pub fn json(&self) -> Report<'_> {
        let report = &self.report;
        Report {
            recovery_point: &self.point_id,
            volume: &self.volume,
            size_bytes: report.size_bytes,
            written_bytes: report.written_bytes,
            skipped_zero_bytes: report.skipped_zero_bytes,
            skipped_same_bytes: report.skipped_same_bytes,
            zeroed_bytes: report.zeroed_bytes,
            resumed_bytes: report.resumed_bytes,
            fetched_bytes: report.fetched_bytes,
            damaged_bytes: report.damage.bytes(),
            damaged_ranges: report.damage.ranges.iter().map(JsonRange::from).collect(),
            problems: &report.damage.reasons,
            duration_ms: report.duration_ms,
            write_bytes_per_s: units::per_second(report.written_bytes, report.duration_ms) as u64,
            io_engine: report.io_engine,
            cpu_ms: host::cpu_ms(),
            memory_peak_bytes: host::memory_peak_bytes(),
            spent: self.spent,
        }
    }

    fn text(&self, target: &Path) -> String {
        let target =
            if target.as_os_str() == "-" { "standard output".into() } else { target.display().to_string() };
        let from = format!("{}/{}", output::short_id(&self.point_id), self.volume);
        format!("restored {from} to {target}\n{}{}", self.facts().text(), damage_text(&self.report.damage))
    }

    /// The figures for people.
    pub fn facts(&self) -> Facts {
        let report = &self.report;
        let mut facts = Facts::default();
        facts.add("size", units::size(report.size_bytes));
        facts.add("written", units::size(report.written_bytes));
        for (label, bytes, what) in [
            ("zeroed", report.zeroed_bytes, ""),
            ("zero", report.skipped_zero_bytes, " that the fresh target reads as already"),
            ("same", report.skipped_same_bytes, " that was right already"),
            ("resumed", report.resumed_bytes, " that an earlier run had finished"),
        ] {
            if bytes > 0 {
                facts.add(label, format!("{}{what}", units::size(bytes)));
            }
        }
        facts.add("fetched", format!("{} from the repository", units::size(report.fetched_bytes)));
        facts.add("time", units::duration(report.duration_ms));
        facts.add(
            "rate",
            format!(
                "{} restored, {} written",
                units::rate(report.size_bytes, report.duration_ms),
                units::rate(report.written_bytes, report.duration_ms)
            ),
        );
        facts.add("I/O", super::backup::io_text(report.io_engine, ""));
        self.spent.add_to(&mut facts);
        facts
    }
}

/// What is not as it was backed up, and why; nothing of a whole restore.
fn damage_text(damage: &Damage) -> String {
    if damage.ranges.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "NOT RESTORED: {} in {}, since the repository is damaged:\n{}because of:\n",
        units::size(damage.bytes()),
        units::plural(damage.ranges.len() as u64, "range"),
        output::ranges_text(&damage.ranges, RANGES_SHOWN, "  "),
    );
    for reason in &damage.reasons {
        text += &format!("  {reason}\n");
    }
    if damage.more_reasons > 0 {
        text += &format!("  … and {} more\n", units::count(damage.more_reasons));
    }
    text
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

    fn point(volumes: &[&str]) -> RecoveryPoint {
        let volume = |name: &&str| {
            serde_json::json!({"name": name, "source": "s", "source_kind": "image", "size_bytes": 0,
                "logical_block_bytes": 512, "root": {"level": 0, "node": null}, "counts": {"read_bytes": 0,
                "zero_bytes": 0, "reused_bytes": 0, "chunks": 0, "new_chunks": 0, "new_bytes": 0, "stored_bytes": 0}})
        };
        serde_json::from_value(
            serde_json::json!({"id": "0".repeat(32), "name": "n", "started_at": "", "finished_at": "",
            "parent": null, "tags": {}, "host": "h", "program": "p",
            "volumes": volumes.iter().map(volume).collect::<Vec<_>>()}),
        )
        .unwrap()
    }

    #[test]
    fn one_of_several_volumes_has_to_be_named() {
        let several = point(&["vda", "vdb"]);
        assert_eq!(choose_volume(&several, Some("vdb")).unwrap().name, "vdb");
        let unnamed = choose_volume(&several, None).unwrap_err();
        assert!(unnamed.to_string().contains("vda, vdb"), "{unnamed}");
        assert_eq!(unnamed.exit(), Exit::Usage);
        assert_eq!(choose_volume(&several, Some("vdc")).unwrap_err().exit(), Exit::Failed);
        assert_eq!(choose_volume(&point(&["vda"]), None).unwrap().name, "vda");
        assert!(choose_volume(&point(&[]), None).is_err());
    }

    #[test]
    fn standard_output_is_written_once_and_not_to_a_terminal() {
        let parsed = |line: &str| Line::try_parse_from(line.split(' ')).unwrap().args;
        assert!(check_stdout(&parsed("x p -"), true, false).is_ok());
        assert!(check_stdout(&parsed("x p - --force"), true, true).is_ok());
        assert_eq!(check_stdout(&parsed("x p -"), true, true).unwrap_err().exit(), Exit::Refused);
        assert_eq!(check_stdout(&parsed("x p - --resume"), true, false).unwrap_err().exit(), Exit::Usage);
        assert!(check_stdout(&parsed("x p t --resume"), false, true).is_ok());
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut damage = Damage::default();
        assert_eq!(damage_text(&damage), "");
        damage.ranges = [(0, 4096), (8192, 16_384)].map(|(start, end)| start..end).to_vec();
        damage.reasons = vec!["data/ab is missing".into()];
        damage.more_reasons = 7;
        let text = damage_text(&damage);
        for words in ["12 KiB in 2 ranges", "8192  8 KiB", "data/ab is missing", "and 7 more"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn an_image_is_made_from_nothing() {
        let qcow2 = |more: &str| {
            let line = format!("x p t --format qcow2{more}");
            check_format(&Line::try_parse_from(line.split(' ')).unwrap().args, false)
        };
        assert!(qcow2("").is_ok() && qcow2(" --force").is_ok());
        for more in [" --resume", " --compare", " --base p"] {
            assert_eq!(qcow2(more).unwrap_err().exit(), Exit::Usage);
        }
        let to_stdout = Line::try_parse_from("x p - --format qcow2".split(' ')).unwrap().args;
        assert_eq!(check_format(&to_stdout, true).unwrap_err().exit(), Exit::Usage);
    }
}
