//! Moves what can be read of hurt packs into new ones: opened, checked against its id and sealed again, not
//! compressed again.

use std::collections::HashSet;

use super::check::{Checked, contradiction};
use super::{Repair, RepairReport};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::{Codec, TocRow};
use crate::id::ObjectId;
use crate::index::{Claims, Index};
use crate::io::BufPool;
use crate::pack::{ChunkReader, Content, Ends, FinishedPack, OpenOfKinds, check_ends, pack_buffer_bytes};

/// Rows of hurt packs that are gathered in one pass over the index: 48 MB.
const ROWS_MAX: usize = 1 << 20;
/// Contents that could not be read and are looked for elsewhere at a time: 32 MB.
const UNREAD_MAX: usize = 1 << 20;
/// Room for the longest content that there can be.
const RAW_BYTES_MAX: usize = 4 << 20;

/// Moves all that can be read of the hurt packs. `index` has rows of them, that of `claims` leaves them out.
pub fn all(
    repair: &Repair<'_>,
    index: &Index,
    claims: &Claims,
    checked: &Checked,
    report: &mut RepairReport,
) -> Result<Unread> {
    if checked.hurt.is_empty() {
        return Ok(Unread::default());
    }
    let repo = repair.repo;
    let pack_bytes = repo.config().pack_bytes as usize;
    let mut mover = Mover {
        repair,
        claims,
        aside: repair.gc_state.aside(),
        open: OpenOfKinds::new(&BufPool::new(2, pack_buffer_bytes(pack_bytes, RAW_BYTES_MAX)), pack_bytes),
        recoded: Vec::new(),
        unread: Unread::default(),
    };
    let mut reader = ChunkReader::new(repo.store().clone(), repo.keys().clone(), repo.chunk_params()?)?;
    let readable: HashSet<ObjectId> = checked.readable.iter().map(|pack| pack.id).collect();
    let mut left: HashSet<ObjectId> = checked.hurt.keys().copied().collect();
    while !left.is_empty() {
        let mut gathered = index.rows_of(&left, ROWS_MAX, &|| repair.go_on())?;
        if gathered.is_empty() {
            // The index has no row of the others: what is in them, they alone can tell.
            let others = left.iter().filter_map(|id| checked.hurt.get(id));
            gathered = others.map(|pack| (pack.id, (*pack, Vec::new()))).collect();
        }
        for (id, (pack, rows)) in gathered {
            left.remove(&id);
            repair.may_publish()?;
            if readable.contains(&id) {
                mover.pack(&mut reader, &pack, rows, report)?;
            } else {
                mover.unread(&rows, report)?;
            }
        }
    }
    mover.close()
}

/// Contents that could not be read.
#[derive(Default)]
pub struct Unread(Vec<[u8; 32]>);

impl Unread {
    /// Counts those that are in no other pack.
    pub fn count(self, claims: &Claims, report: &mut RepairReport) -> Result<()> {
        let mut ids = self.0;
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            report.lost += u64::from(claims.index().find_surely(id)?.is_none());
        }
        Ok(())
    }
}

struct Mover<'a> {
    repair: &'a Repair<'a>,
    claims: &'a Claims,
    aside: HashSet<ObjectId>,
    open: OpenOfKinds,
    recoded: Vec<u8>,
    unread: Unread,
}

impl Mover<'_> {
    /// Moves what can be read of one pack. `rows` are those of the index; its own table of contents may tell more.
    fn pack(
        &mut self,
        reader: &mut ChunkReader,
        pack: &PackRef,
        mut rows: Vec<TocRow>,
        report: &mut RepairReport,
    ) -> Result<()> {
        let repo = self.repair.repo;
        match check_ends(repo.store().as_ref(), repo.keys(), pack)? {
            Ends::Sound(own) => rows.extend(own),
            Ends::Hurt { bytes: None, .. } => return self.gone(pack),
            Ends::Hurt { rows: own, .. } => rows.extend(own.unwrap_or_default()),
            Ends::Archived => {
                report.archived += 1;
                return Ok(());
            }
        }
        rows.sort_unstable_by_key(|row| (row.offset, row.id));
        rows.dedup();
        // What was put aside before is elsewhere already, but for what could not be read then.
        if self.aside.contains(&pack.id) {
            let mut missing = Vec::with_capacity(rows.len());
            for row in rows {
                if self.claims.index().find_row(&row.id)?.is_none() {
                    missing.push(row);
                }
            }
            rows = missing;
        }
        let (mut bad, mut is_gone) = (Vec::new(), false);
        let repair = self.repair;
        let stop = || repair.run.stopped();
        let read = reader.each_frame(pack, &rows, &stop, &mut |row, content| {
            match content {
                Ok(content) if content.raw.len() <= RAW_BYTES_MAX => {
                    report.moved.0 += 1;
                    report.moved.1 += u64::from(row.stored_bytes);
                    self.add(pack.kind, &row.id, &content)?;
                }
                Err(Error::Missing { .. }) => is_gone = true,
                _ => bad.push(*row),
            }
            Ok(())
        })?;
        self.repair.go_on()?;
        if is_gone {
            return self.gone(pack);
        }
        report.read_bytes += read;
        self.unread(&bad, report)
    }

    /// A pack that was there a moment ago is not: a collector has deleted it, or the store contradicts itself.
    fn gone(&self, pack: &PackRef) -> Result<()> {
        match self.repair.gone_now()?.contains(&pack.id) {
            true => Ok(()),
            false => Err(contradiction(pack)),
        }
    }

    /// Remembers contents that cannot be read.
    fn unread(&mut self, rows: &[TocRow], report: &mut RepairReport) -> Result<()> {
        self.unread.0.extend(rows.iter().map(|row| row.id));
        if self.unread.0.len() > UNREAD_MAX {
            if self.repair.lease.is_some() {
                self.claims.flush()?;
            }
            std::mem::take(&mut self.unread).count(self.claims, report)?;
        }
        Ok(())
    }

    fn add(&mut self, kind: ObjectKind, id: &[u8; 32], content: &Content<'_>) -> Result<()> {
        if self.repair.lease.is_none() {
            return Ok(());
        }
        let raw_bytes = content.raw.len() as u32;
        // Nobody writes a compressed form that is longer; a buffer must not depend on that.
        let frame = if content.encoded.len() > 1 + content.raw.len() {
            self.recoded.clear();
            self.recoded.push(Codec::Raw as u8);
            self.recoded.extend_from_slice(content.raw);
            &self.recoded
        } else {
            content.encoded
        };
        let open = self.open.of(kind);
        open.builder(self.repair.repo.keys())?.add_encoded(id, frame, raw_bytes);
        let full = open.take_full();
        self.store(full)
    }

    fn close(mut self) -> Result<Unread> {
        for kind in [ObjectKind::Data, ObjectKind::Meta] {
            let pack = self.open.of(kind).take();
            self.store(pack)?;
        }
        Ok(self.unread)
    }

    fn store(&self, pack: Option<FinishedPack>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        self.repair.may_publish()?;
        fail::fail_point!("repair-before-pack-put");
        self.claims.store(pack).map(|_| ())
    }
}
