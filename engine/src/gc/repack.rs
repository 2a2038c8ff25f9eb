//! Moves what is needed out of packs that hold little of it into new ones: opened, authenticated and sealed again, not decompressed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::packs::Uses;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;
use crate::index::{Claims, Index, Permit};
use crate::io::BufPool;
use crate::pack::{ChunkReader, FinishedPack, OpenOfKinds, pack_buffer_bytes};
use crate::repo::Repository;

/// Room for the longest content that there can be.
const RAW_BYTES_MAX: usize = 4 << 20;

/// Moves what is needed of `packs`, and publishes where it is now. `stop` is asked between packs.
pub fn run(
    repo: &Repository,
    index: &Arc<Index>,
    uses: &Uses,
    packs: &HashSet<ObjectId>,
    permit: Arc<Permit>,
    stop: &dyn Fn() -> Result<()>,
) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    let mut of_pack: BTreeMap<ObjectId, (PackRef, Vec<TocRow>)> = BTreeMap::new();
    index.each_row_with_mark(&uses.marks, &mut |id, location, marked| {
        if marked && packs.contains(&location.pack.id) {
            let (_, rows) = of_pack.entry(location.pack.id).or_insert((location.pack, Vec::new()));
            rows.push(location.row(id));
        }
        Ok(())
    })?;
    let pack_bytes = repo.config().pack_bytes as usize;
    let pool = BufPool::new(1, pack_buffer_bytes(pack_bytes, RAW_BYTES_MAX));
    let mut mover = Mover {
        repo,
        claims: Claims::with_permit(index.clone(), permit),
        reader: ChunkReader::new(repo.store().clone(), repo.keys().clone(), repo.chunk_params()?)?,
        open: OpenOfKinds::new(&pool, pack_bytes),
    };
    for kind in [ObjectKind::Data, ObjectKind::Meta] {
        for (pack, rows) in of_pack.values_mut().filter(|(pack, _)| pack.kind == kind) {
            stop()?;
            rows.sort_unstable_by_key(|row| row.offset);
            mover.pack(pack, rows)?;
        }
        mover.close(kind)?; // one buffer is enough
    }
    mover.claims.flush()
}

struct Mover<'a> {
    repo: &'a Repository,
    claims: Claims,
    reader: ChunkReader,
    open: OpenOfKinds,
}

impl Mover<'_> {
    /// Moves these frames of one pack, which are in its order.
    fn pack(&mut self, pack: &PackRef, rows: &[TocRow]) -> Result<()> {
        let Self { repo, claims, reader, open } = self;
        reader.each_frame(pack, rows, &|| false, &mut |row, content| {
            let content = content?;
            if content.raw.len() > RAW_BYTES_MAX {
                return Err(Error::damaged(hex::encode(row.id), "longer than any content"));
            }
            let open = open.of(pack.kind);
            open.builder(repo.keys())?.add_encoded(&row.id, content.encoded, row.raw_bytes);
            store(claims, open.take_full())
        })?;
        Ok(())
    }

    fn close(&mut self, kind: ObjectKind) -> Result<()> {
        store(&self.claims, self.open.of(kind).take())
    }
}

fn store(claims: &Claims, pack: Option<FinishedPack>) -> Result<()> {
    let Some(pack) = pack else { return Ok(()) };
    fail::fail_point!("gc-before-pack-put");
    claims.store(pack).map(|_| ())
}
