//! Verification: first the index and the packs (their ends, or with `--read-data` every byte), then every manifest
//! down to the chunks. What is damaged is told by object, and by which byte ranges of which recovery points it
//! hurts. Nothing is changed. It may be stopped at any time, and goes on where it was.

mod cursor;
mod distinct;
mod hurt;
mod packs;
mod points;
mod problems;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use hurt::Hurt;
pub use problems::LISTED_MAX;

use crate::error::{Error, Result};
use crate::format::point::RecoveryPoint;
use crate::gc_state::GcState;
use crate::index::Index;
use crate::lease;
use crate::repo::{Listed, Repository};
use crate::run::Run;
use cursor::{Cursor, CursorFile, KeptHurt, Unfinished};
use packs::PackState;
use problems::Problems;

/// How deep to look, and for how long.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Only these recovery points; all, if empty.
    pub points: Vec<RecoveryPoint>,
    /// Read, authenticate, decompress and hash everything in the packs.
    pub read_data: bool,
    /// With `read_data`: the share of the packs' bytes to read, above 0 and up to 1. Each run reads the packs behind
    /// those that the last one read, so that 20 runs of 5 % read everything.
    pub sample: Option<f64>,
    /// Stop after so long.
    pub time_max: Option<Duration>,
    /// Go on where the last verification of the same stopped.
    pub resume: bool,
    /// Where it is kept how far verifications came; nowhere, if `None`.
    pub state_dir: Option<PathBuf>,
    /// Threads.
    pub workers: usize,
}

/// How a verification ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ended {
    /// All that was asked for was looked at.
    #[default]
    Whole,
    /// The time was over.
    TimeLimit,
    /// The user stopped it.
    Interrupted,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Recovery points whose manifests were checked.
    pub points: usize,
    /// All that were to be.
    pub points_chosen: usize,
    /// Manifest nodes checked.
    pub nodes: u64,
    /// Chunk references checked.
    pub chunks: u64,
    /// Packs checked.
    pub packs: u64,
    /// All that there are.
    pub packs_known: u64,
    /// Packs whose data was read.
    pub packs_read: u64,
    /// Packs that were put aside as damaged: not looked at, and nobody relies on them.
    pub aside_packs: u64,
    /// Data packs in an archive class that cannot be read now: only that they are there, and their length, was checked.
    pub archived_packs: u64,
    /// Bytes of them.
    pub archived_bytes: u64,
    /// Bytes read with `read_data`.
    pub read_bytes: u64,
    /// A line per problem, up to [`LISTED_MAX`] of them.
    pub problems: Vec<String>,
    /// How many there are: damaged objects and frames, and contents that are nowhere, each once.
    pub problem_count: u64,
    /// Who is hurt, in the order of points.
    pub hurt: Vec<Hurt>,
    /// How it ended.
    pub ended: Ended,
    /// It went on where an earlier one had stopped.
    pub resumed: bool,
    /// Only a share of the data was to be read.
    pub sampled: bool,
    /// Wall time.
    pub duration_ms: u64,
}

impl VerifyReport {
    /// True if nothing wrong was found.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0 && self.hurt.is_empty()
    }
}

/// What all parts of a verification share.
struct Look<'a> {
    repo: &'a Repository,
    options: &'a VerifyOptions,
    run: &'a Arc<Run>,
    problems: &'a Problems<'a>,
    until: Option<Instant>,
}

impl Look<'_> {
    /// True if it should end here: stopped by the user, by an error, or by the time.
    fn is_over(&self) -> bool {
        self.run.stopped() || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// `Cancelled` if it should end here.
    fn go_on(&self) -> Result<()> {
        if self.is_over() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Verifies the repository, or some of its recovery points.
pub fn run(repo: &Repository, options: &VerifyOptions, run: &Arc<Run>) -> Result<VerifyReport> {
    let started = Instant::now();
    if let Some(sample) = options.sample
        && !(sample > 0.0 && sample <= 1.0)
    {
        return Err(Error::Invalid { what: "--sample: above 0 % and up to 100 % are accepted".into() });
    }
    let file = options.state_dir.as_ref().map(|dir| CursorFile::of(repo, dir));
    let mut cursor = file.as_ref().map_or_else(Cursor::default, CursorFile::read);
    let before =
        cursor.unfinished.clone().filter(|unfinished| options.resume && is_same(unfinished, options));
    let resumed = before.is_some();
    let mut part = before.unwrap_or_else(|| Unfinished {
        read_data: options.read_data,
        points: options.points.iter().map(|point| point.id.clone()).collect(),
        ..Unfinished::default()
    });
    let problems = Problems::after(run, std::mem::take(&mut part.problems), part.problem_count)?;
    let until = options.time_max.map(|limit| started + limit);
    let look = Look { repo, options, run, problems: &problems, until };
    let mut report = VerifyReport { resumed, sampled: options.sample.is_some(), ..VerifyReport::default() };
    let checked = check(&look, &mut cursor, &mut part, &mut report);
    let ended = match (run.outcome(), checked) {
        (Err(Error::Cancelled), _) => Ended::Interrupted,
        (Err(error), _) => return Err(error),
        (Ok(()), Ok(())) => Ended::Whole,
        (Ok(()), Err(Error::Cancelled)) => Ended::TimeLimit,
        (Ok(()), Err(error)) => return Err(error),
    };
    let (lines, count) = problems.end()?;
    (report.problem_count, report.ended) = (count, ended);
    report.problems = lines.iter().map(|(_, line)| line.clone()).collect();
    report.points = part.walked.len();
    (report.nodes, report.chunks, report.packs) = (part.nodes, part.chunks, part.packs);
    (report.archived_packs, report.archived_bytes) = part.archived;
    report.read_bytes = part.read_bytes;
    report.hurt = part.hurt.iter().map(KeptHurt::to_hurt).collect();
    (part.problems, part.problem_count) = (lines, count);
    // A sample goes on by itself: what is left of it is the beginning of the next one.
    cursor.unfinished = (ended != Ended::Whole && options.sample.is_none()).then_some(part);
    if let Some(file) = file
        && let Err(error) = file.write(&cursor)
    {
        tracing::warn!("how far this verification came is not remembered: {error}");
    }
    report.duration_ms = started.elapsed().as_millis() as u64;
    Ok(report)
}

/// True if `options` ask for what the unfinished verification was of.
fn is_same(unfinished: &Unfinished, options: &VerifyOptions) -> bool {
    let chosen = options.points.iter().map(|point| &point.id);
    unfinished.read_data == options.read_data && options.sample.is_none() && chosen.eq(&unfinished.points)
}

/// All parts, in order. `Cancelled` if it is to end before.
fn check(
    look: &Look<'_>,
    cursor: &mut Cursor,
    part: &mut Unfinished,
    report: &mut VerifyReport,
) -> Result<()> {
    let (repo, problems) = (look.repo, look.problems);
    let chosen = match look.options.points.is_empty() {
        true => readable_points(repo, problems)?,
        false => look.options.points.clone(),
    };
    report.points_chosen = chosen.len();
    leases(repo, problems)?;
    let (index, gc_state) = index_of_now(look)?;
    let state = PackState::of(gc_state.aside(), part);
    let state = packs::check(look, &index, state, cursor, part, report)?;
    points::check(look, (index, gc_state.deleted()), &state, &chosen, part)
}

/// The index as it can be read, without what was decided on.
fn index_of_now(look: &Look<'_>) -> Result<(Arc<Index>, GcState)> {
    let (repo, problems) = (look.repo, look.problems);
    let (index, bad) = Index::load_sound(
        repo.store().clone(),
        repo.keys().clone(),
        repo.environment().clock.clone(),
        &|| look.go_on(),
    )?;
    for segment in bad {
        problems.note(segment.error)?;
    }
    // After the index: what is moved out of a pack is in an index that is there before the pack goes.
    let (gc_state, damaged) = GcState::load_readable(repo.store().as_ref(), repo.keys())?;
    for (_, error) in damaged {
        problems.note(error)?;
    }
    Ok((Arc::new(index.excluding(gc_state.for_readers())), gc_state))
}

/// Notes leases that cannot be read.
fn leases(repo: &Repository, problems: &Problems<'_>) -> Result<()> {
    for error in lease::damaged(repo.store().as_ref(), repo.keys())? {
        problems.note(error)?;
    }
    Ok(())
}

fn readable_points(repo: &Repository, problems: &Problems<'_>) -> Result<Vec<RecoveryPoint>> {
    let mut points = Vec::new();
    for listed in repo.points()? {
        match listed {
            Listed::Point(point) => points.push(point),
            Listed::Damaged { error, .. } => problems.note(error)?,
        }
    }
    Ok(points)
}

impl KeptHurt {
    fn of(hurt: Hurt) -> Self {
        Self {
            names: (hurt.point, hurt.name, hurt.volume),
            ranges: hurt.ranges.iter().map(|range| (range.start, range.end)).collect(),
            counts: (hurt.range_count, hurt.bytes),
        }
    }

    fn to_hurt(&self) -> Hurt {
        let (point, name, volume) = self.names.clone();
        let ranges = self.ranges.iter().map(|(start, end)| *start..*end).collect();
        Hurt { point, name, volume, ranges, range_count: self.counts.0, bytes: self.counts.1 }
    }
}
