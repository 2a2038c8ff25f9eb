//! Checks packs: that each is there, whole and says of itself what the index says; on request every frame in it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Problems, VerifyOptions, VerifyReport};
use crate::chunker::{ChunkKeys, ChunkParams, Chunker};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::{NodeId, ObjectId};
use crate::index::Index;
use crate::pack::{FrameReader, Location, read_contents};
use crate::repo::Repository;
use crate::run::{Progress, Run};
use crate::store::Span;

/// Stored bytes read at a time.
const READ_BYTES: u64 = 8 << 20;

/// What is wrong with packs, in the terms of those who need their contents.
#[derive(Default)]
pub struct PackState {
    /// Bytes that are there of packs that are shorter than they should be; 0 if gone.
    short: HashMap<ObjectId, u64>,
    /// Contents whose frames do not decode.
    bad: HashSet<[u8; 32]>,
}

impl PackState {
    /// True if the content at `at` can be expected to be readable.
    pub fn is_sound(&self, id: &[u8; 32], at: &Location) -> bool {
        !self.bad.contains(id) && self.short.get(&at.pack.id).is_none_or(|bytes| at.end() <= *bytes)
    }
}

struct Checker<'a> {
    repo: &'a Repository,
    run: &'a Run,
    problems: &'a Problems<'a>,
    state: Mutex<PackState>,
    read_bytes: AtomicU64,
    archived_packs: AtomicU64,
    archived_bytes: AtomicU64,
    chunk_params: ChunkParams,
}

/// Checks all packs that the index knows.
pub fn check(
    repo: &Repository,
    index: &Index,
    options: &VerifyOptions,
    run: &Arc<Run>,
    problems: &Problems<'_>,
    report: &mut VerifyReport,
) -> Result<PackState> {
    // Every page of every segment, which also counts.
    if let Err(error) = index.each_row(&mut |_, _| if run.stopped() { Err(Error::Cancelled) } else { Ok(()) })
    {
        problems.note(error)?;
    }
    let packs = index.packs();
    let read: Vec<bool> = packs.iter().map(|_| options.read_data && sampled(options.sample)).collect();
    if options.read_data {
        let total = packs.iter().zip(&read).filter(|(_, read)| **read).map(|(p, _)| u64::from(p.bytes)).sum();
        run.progress.total_bytes.store(total, Ordering::Relaxed);
    }
    let checker = Checker {
        repo,
        run,
        problems,
        state: Mutex::default(),
        read_bytes: AtomicU64::new(0),
        archived_packs: AtomicU64::new(0),
        archived_bytes: AtomicU64::new(0),
        chunk_params: repo.chunk_params()?,
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..options.workers.max(1) {
            scope.spawn(|| {
                if let Err(error) = checker.work(&packs, &read, &next) {
                    run.fail(error);
                }
            });
        }
    });
    run.outcome()?;
    report.packs = packs.len() as u64;
    report.read_bytes = checker.read_bytes.into_inner();
    report.archived_packs = checker.archived_packs.into_inner();
    report.archived_bytes = checker.archived_bytes.into_inner();
    Ok(checker.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The same packs for the same share every time would never see the others: the choice is drawn anew at each run.
fn sampled(share: Option<f64>) -> bool {
    let Some(share) = share.filter(|share| *share < 1.0) else { return true };
    let drawn = crate::id::random_bytes::<4>().map_or(0, u32::from_le_bytes);
    f64::from(drawn) / f64::from(u32::MAX) < share
}

impl Checker<'_> {
    fn work(&self, packs: &[PackRef], read: &[bool], next: &AtomicUsize) -> Result<()> {
        let (block_key, chunk_key, cut_seed) = self.repo.keys().chunker();
        let mut chunker = Chunker::new(self.chunk_params, &ChunkKeys { block_key, chunk_key, cut_seed });
        let mut frames = FrameReader::new()?;
        while !self.run.stopped() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(pack) = packs.get(number) else { break };
            let checked = self.pack(pack).and_then(|rows| {
                if !read[number] {
                    return Ok(());
                }
                // Header and table of contents were read before.
                let framed: u64 = rows.iter().map(|row| u64::from(row.stored_bytes)).sum();
                Progress::add(&self.run.progress.done_bytes, u64::from(pack.bytes).saturating_sub(framed));
                self.frames(pack, &rows, &mut frames, &mut chunker)
            });
            if let Err(error) = checked {
                self.problems.note(error)?;
            }
        }
        Ok(())
    }

    /// Header, trailer and table of contents against what the index says of the pack.
    fn pack(&self, pack: &PackRef) -> Result<Vec<TocRow>> {
        let key = pack.kind.key(&pack.id.to_string());
        match read_contents(self.repo.store().as_ref(), self.repo.keys(), pack.kind, pack.id) {
            Ok((found, rows)) if found == *pack => Ok(rows),
            Ok((found, _)) => {
                self.note_length(pack, u64::from(found.bytes));
                Err(Error::damaged(
                    key,
                    format_args!("{} bytes long, {} in the index", found.bytes, pack.bytes),
                ))
            }
            Err(Error::Archived { .. }) => {
                // Its length is all that can be known. Nothing is thawed for a look.
                let length = self.repo.store().get(&key, Span::At { offset: 0, len: 0 }, &mut Vec::new())?;
                if length != Some(u64::from(pack.bytes)) {
                    self.note_length(pack, length.unwrap_or(0));
                    let length = length.unwrap_or(0);
                    return Err(Error::damaged(
                        key,
                        format_args!("{length} bytes long, {} in the index", pack.bytes),
                    ));
                }
                self.archived_packs.fetch_add(1, Ordering::Relaxed);
                self.archived_bytes.fetch_add(u64::from(pack.bytes), Ordering::Relaxed);
                Ok(Vec::new())
            }
            Err(error) if error.is_damage() => {
                let mut bytes = Vec::new();
                let length = self.repo.store().get(&key, Span::At { offset: 0, len: 0 }, &mut bytes)?;
                self.note_length(pack, length.unwrap_or(0));
                // Its contents may still be right where the index says: they are read without it.
                if length.is_some() {
                    self.problems.note(error)?;
                    return Ok(self.rows_by_index(pack));
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn rows_by_index(&self, pack: &PackRef) -> Vec<TocRow> {
        let mut rows = Vec::new();
        let Ok(index) = self.repo.index() else { return rows };
        let walked = index.each_row(&mut |id, at| {
            if at.pack.id == pack.id {
                rows.push(TocRow {
                    id: *id,
                    offset: at.offset,
                    stored_bytes: at.stored_bytes,
                    raw_bytes: at.raw_bytes,
                });
            }
            Ok(())
        });
        if let Err(error) = walked {
            tracing::debug!("index walk: {error}"); // noted already
        }
        rows.sort_unstable_by_key(|row| row.offset);
        rows
    }

    fn note_length(&self, pack: &PackRef, bytes: u64) {
        if bytes < u64::from(pack.bytes) {
            self.state().short.insert(pack.id, bytes);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PackState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reads and decodes all frames of a pack.
    fn frames(
        &self,
        pack: &PackRef,
        rows: &[TocRow],
        frames: &mut FrameReader,
        chunker: &mut Chunker,
    ) -> Result<()> {
        let key = pack.kind.key(&pack.id.to_string());
        let (mut stored, mut raw) = (Vec::new(), Vec::new());
        let mut first = 0;
        while first < rows.len() && !self.run.stopped() {
            let start = u64::from(rows[first].offset);
            let end_of = |row: &TocRow| u64::from(row.offset) + u64::from(row.stored_bytes);
            let count = rows[first..].partition_point(|row| end_of(row) <= start + READ_BYTES).max(1);
            let batch = &rows[first..first + count];
            let len = (batch.last().map_or(start, end_of) - start) as usize;
            self.repo.store().get(&key, Span::At { offset: start, len }, &mut stored)?;
            self.read_bytes.fetch_add(stored.len() as u64, Ordering::Relaxed);
            Progress::add(&self.run.progress.read_bytes, stored.len() as u64);
            Progress::add(&self.run.progress.done_bytes, stored.len() as u64);
            for row in batch {
                let at = Location {
                    pack: *pack,
                    offset: row.offset,
                    stored_bytes: row.stored_bytes,
                    raw_bytes: row.raw_bytes,
                };
                let from = (u64::from(row.offset) - start) as usize;
                let bytes = stored.get(from..from + row.stored_bytes as usize).unwrap_or(&[]);
                raw.resize(row.raw_bytes as usize, 0);
                let mut check = |bytes: &[u8]| {
                    let read = frames.read(self.repo.keys(), &at, &row.id, bytes, &mut raw);
                    read.and_then(|()| self.content(pack, row, &raw, chunker))
                };
                let mut checked = check(bytes);
                if checked.as_ref().is_err_and(Error::is_damage) && self.repo.store().distrust(&key) {
                    // What a network did to it may not happen again: that is no damage of the repository.
                    let (mut again, len) = (Vec::new(), row.stored_bytes as usize);
                    self.repo.store().get(&key, Span::At { offset: row.offset.into(), len }, &mut again)?;
                    checked = check(&again);
                }
                if let Err(error) = checked {
                    self.state().bad.insert(row.id);
                    self.problems.note(error)?;
                }
            }
            first += count;
        }
        Ok(())
    }

    fn content(&self, pack: &PackRef, row: &TocRow, raw: &[u8], chunker: &mut Chunker) -> Result<()> {
        let right = match pack.kind {
            ObjectKind::Meta => self.repo.keys().node_id(raw) == NodeId::new(row.id),
            _ => chunker.chunk_id(raw).as_bytes() == &row.id,
        };
        if right {
            return Ok(());
        }
        let key = pack.kind.key(&pack.id.to_string());
        Err(Error::damaged(key, format_args!("the content at byte {} does not have its id", row.offset)))
    }
}
