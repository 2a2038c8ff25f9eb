//! Verification: first the packs (their ends, or with `--read-data` every byte), then every manifest down to the chunks. What is damaged is told
//! by object, and by which byte ranges of which recovery points it hurts. Nothing is changed.

mod packs;
mod points;

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::format::point::RecoveryPoint;
use crate::repo::{Listed, Repository};
use crate::run::Run;

/// How deep to look.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Only these recovery points; all, if empty.
    pub points: Vec<RecoveryPoint>,
    /// Read, authenticate, decompress and hash everything in the packs.
    pub read_data: bool,
    /// With `read_data`: the share of packs to read, above 0 and up to 1.
    pub sample: Option<f64>,
    /// Threads.
    pub workers: usize,
}

/// Byte ranges of a volume that cannot be restored.
#[derive(Clone, Debug)]
pub struct Hurt {
    /// Id of the recovery point.
    pub point: String,
    /// Its name.
    pub name: String,
    /// Name of the volume.
    pub volume: String,
    /// Merged ranges.
    pub ranges: Vec<Range<u64>>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Recovery points checked.
    pub points: usize,
    /// Manifest nodes checked.
    pub nodes: u64,
    /// Chunk references checked.
    pub chunks: u64,
    /// Packs checked.
    pub packs: u64,
    /// Data packs in an archive class that cannot be read now: only that they are there, and their length, was checked.
    pub archived_packs: u64,
    /// Bytes of them.
    pub archived_bytes: u64,
    /// Bytes read with `read_data`.
    pub read_bytes: u64,
    /// One line per damaged object.
    pub problems: Vec<String>,
    /// Who is hurt.
    pub hurt: Vec<Hurt>,
    /// Wall time.
    pub duration_ms: u64,
}

impl VerifyReport {
    /// True if nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.hurt.is_empty()
    }
}

/// Problems gathered by several threads.
struct Problems<'a> {
    run: &'a Run,
    lines: Mutex<Vec<String>>,
}

impl Problems<'_> {
    /// Notes damage; other errors end the verification.
    fn note(&self, error: Error) -> Result<()> {
        let damage = error.is_damage() || matches!(error, Error::NewerVersion { .. });
        if !damage {
            return Err(error);
        }
        self.run.progress.problems.fetch_add(1, Ordering::Relaxed);
        let mut lines = self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let line = error.to_string().replace(". `penstock verify` lists what is hurt", "");
        if !lines.contains(&line) {
            lines.push(line);
        }
        Ok(())
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
    let problems = Problems { run, lines: Mutex::default() };
    let mut report = VerifyReport::default();
    let chosen =
        if options.points.is_empty() { readable_points(repo, &problems)? } else { options.points.clone() };
    report.points = chosen.len();
    match repo.index() {
        Ok(index) => {
            let state = packs::check(repo, &index, options, run, &problems, &mut report)?;
            points::check(repo, &index, &state, &chosen, options, run, &problems, &mut report)?;
        }
        Err(error) => {
            // Without the index nothing can be found: every point is hurt as a whole.
            problems.note(error)?;
            report.hurt = chosen.iter().flat_map(whole).collect();
        }
    }
    run.outcome()?;
    report.problems = problems.lines.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    report.duration_ms = started.elapsed().as_millis() as u64;
    Ok(report)
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

fn whole(point: &RecoveryPoint) -> Vec<Hurt> {
    let hurt = |v: &crate::format::point::Volume| Hurt {
        point: point.id.clone(),
        name: point.name.clone(),
        volume: v.name.clone(),
        ranges: std::iter::once(0..v.size_bytes).collect(),
    };
    point.volumes.iter().map(hurt).collect()
}
