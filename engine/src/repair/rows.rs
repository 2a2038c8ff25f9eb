//! Index rows from tables of contents, as a stream: a segment is written whenever enough of them have come together.

use super::check::Checked;
use super::{Repair, RepairReport};
use crate::error::{Error, Result};
use crate::format::pack::TocRow;
use crate::index::Claims;
use crate::pack::read_contents;

/// Adds the rows that the index lacks. The index of `claims` leaves out hurt packs.
pub fn rebuild(
    repair: &Repair<'_>,
    claims: &Claims,
    checked: &Checked,
    report: &mut RepairReport,
) -> Result<()> {
    let repo = repair.repo;
    let packs = checked.unknown.iter().map(|pack| (pack, true));
    for (pack, is_unknown) in packs.chain(checked.incomplete.iter().map(|pack| (pack, false))) {
        repair.go_on()?;
        let rows = match read_contents(repo.store().as_ref(), repo.keys(), pack.kind, pack.id) {
            Ok((_, rows)) => rows,
            Err(Error::Missing { .. }) if repair.gone_now()?.contains(&pack.id) => continue,
            Err(error) => return Err(error),
        };
        let mut missing: Vec<TocRow> = Vec::with_capacity(rows.len());
        for row in rows {
            // Of a pack that the index does not know all rows are new; looking for each would say so, slowly.
            if is_unknown || claims.index().find_row(&row.id)?.is_none() {
                missing.push(row);
            }
        }
        if missing.is_empty() {
            continue;
        }
        report.new_rows += missing.len() as u64;
        report.unknown_packs += u64::from(is_unknown);
        if repair.lease.is_some() {
            repair.may_publish()?; // a segment may be written
            claims.add_durable(*pack, missing)?;
        }
    }
    // A damaged segment may have had rows of packs that cannot be read now.
    report.segments_kept |= report.archived > 0 && report.bad_segments.count > 0;
    Ok(())
}
