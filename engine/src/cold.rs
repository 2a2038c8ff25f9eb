//! Archived data: which packs a restore needs that have to be thawed first, asking for them, and waiting.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::point::{RecoveryPoint, Volume};
use crate::manifest::PackWalk;
use crate::repo::Repository;
use crate::run::Run;
use crate::store::custody::{Availability, Custody, Facts, Thaw, Thawing};

/// Objects asked about between two looks at whether to go on.
const BATCH: usize = 1000;
/// Segments whose packs are looked at where nothing speaks for archived data.
const SAMPLE_SEGMENTS: u64 = 16;
/// First pause between two looks at whether packs have come.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// A pack that cannot be read now, or is there only for a time.
#[derive(Clone, Debug)]
pub struct Cold {
    /// Its repository key.
    pub key: String,
    /// What the store says of it.
    pub facts: Facts,
}

/// What a restore finds.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Data packs that were looked at: all that are needed, or a sample that gave no reason to look at more.
    pub looked_at: usize,
    /// Those that cannot be read now. Their number is an upper bound where the target is to be compared or a restore continued.
    pub cold: Vec<Cold>,
}

impl Survey {
    /// Bytes of them.
    pub fn cold_bytes(&self) -> u64 {
        self.cold.iter().map(|cold| cold.facts.bytes).sum()
    }
}

/// How thoroughly to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// At every pack.
    All,
    /// At the packs of some segments, and at all if one of them is in an archive class. What it misses, the restore meets.
    Sample,
}

/// What the target holds, and takes.
#[derive(Clone, Copy, Default)]
pub struct Onto<'a> {
    /// It holds this.
    pub base: Option<&'a RecoveryPoint>,
    /// It takes whole blocks of so many bytes.
    pub block_bytes: Option<u32>,
}

/// Looks which packs of a volume cannot be read. Reads manifests, index and heads of packs, and no data.
pub fn survey(repo: &Repository, volume: &Volume, onto: Onto<'_>, depth: Depth, run: &Run) -> Result<Survey> {
    let Some(custody) = repo.store().custody() else { return Ok(Survey::default()) };
    let index = repo.index()?;
    let go_on = || if run.stopped() { Err(Error::Cancelled) } else { Ok(()) };
    let mut tree = repo.tree(volume.size_bytes, volume.root)?;
    if depth == Depth::Sample {
        let mut walk = PackWalk::new(index.clone(), &go_on);
        walk.sample(&mut tree, SAMPLE_SEGMENTS)?;
        let (looked_at, classes) = look_at(custody, &walk.into_packs(), run)?;
        if classes.iter().all(|cold| cold.facts.availability == Availability::Ready) {
            return Ok(Survey { looked_at, cold: Vec::new() });
        }
    }
    // So that the restore finds each chunk where this looks for it.
    index.leave_data_packs_alone();
    let mut walk = PackWalk::new(index, &go_on);
    match onto.base.and_then(|point| point.volume(&volume.name).or(point.volumes.first())) {
        Some(old) => {
            let mut old = repo.tree(old.size_bytes, old.root)?;
            walk.differing_chunks(&mut old, &mut tree, onto.block_bytes)?;
        }
        None => walk.tree(&mut tree)?,
    }
    let (looked_at, mut cold) = look_at(custody, &walk.into_packs(), run)?;
    cold.retain(|cold| !cold.facts.availability.is_readable());
    Ok(Survey { looked_at, cold })
}

/// Number of data packs, and those that are there. What is missing, the restore tells.
fn look_at(custody: &dyn Custody, packs: &[PackRef], run: &Run) -> Result<(usize, Vec<Cold>)> {
    let data = packs.iter().filter(|pack| pack.kind == ObjectKind::Data);
    let keys: Vec<String> = data.map(|pack| pack.kind.key(&pack.id.to_string())).collect();
    let mut found = Vec::new();
    for batch in keys.chunks(BATCH) {
        if run.stopped() {
            return Err(Error::Cancelled);
        }
        let facts = custody.facts(batch)?;
        let there = batch.iter().zip(facts);
        found.extend(there.filter_map(|(key, facts)| Some(Cold { key: key.clone(), facts: facts? })));
    }
    Ok((keys.len(), found))
}

/// Asks for packs to be thawed; those under way already are asked for again only if they are not. Returns how many are under way.
pub fn thaw(repo: &Repository, survey: &Survey, how: Thaw, run: &Run) -> Result<usize> {
    let Some(custody) = repo.store().custody() else { return Ok(0) };
    let of = |state: Availability| survey.cold.iter().filter(move |cold| cold.facts.availability == state);
    let asked: Vec<(String, Facts)> =
        of(Availability::Archived).map(|cold| (cold.key.clone(), cold.facts.clone())).collect();
    let mut under_way = of(Availability::Thawing).count();
    for batch in asked.chunks(BATCH) {
        if run.stopped() {
            return Err(Error::Cancelled);
        }
        let answers = custody.thaw(batch, how)?;
        under_way += answers.iter().filter(|answer| **answer == Thawing::UnderWay).count();
    }
    Ok(under_way)
}

/// Waits until all packs can be read; looks at one that cannot, with pauses that grow up to `pause_max`, and at all when that one has come. `each` is told
/// how many can be read.
pub fn wait(
    repo: &Repository,
    survey: &Survey,
    pause_max: Duration,
    run: &Run,
    each: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let Some(custody) = repo.store().custody() else { return Ok(()) };
    let total = survey.cold.len();
    let mut due: Vec<String> = survey.cold.iter().map(|cold| cold.key.clone()).collect();
    let mut pause = PAUSE_FIRST;
    each(0, total);
    while let Some(first) = due.first().cloned() {
        let readable = |facts: Option<Facts>| facts.is_none_or(|facts| facts.availability.is_readable());
        let first = custody.facts(&[first])?.pop().flatten();
        if let Some(Availability::Archived) = first.as_ref().map(|facts| facts.availability) {
            return Err(Error::Archived { object: due.swap_remove(0) });
        }
        if readable(first) {
            let mut left = Vec::new();
            for batch in due.chunks(BATCH) {
                let facts = custody.facts(batch)?;
                left.extend(
                    batch.iter().zip(facts).filter(|(_, f)| !readable(f.clone())).map(|(key, _)| key.clone()),
                );
            }
            due = left;
            each(total - due.len(), total);
            continue;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if run.stopped() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        pause = (pause * 3 / 2).min(pause_max);
        each(total - due.len(), total);
    }
    Ok(())
}
