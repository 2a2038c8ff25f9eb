//! Where a restore starts from: a snapshot in the account whose contents are those of a known recovery point of the volume, so that only what differs has to
//! be written. Tags say so, and the recovery point must say it too: a tag that somebody copied is not believed.

use std::collections::BTreeMap;

use penstock_engine::diff;
use penstock_engine::format::point::{RecoveryPoint, Volume};
use penstock_engine::repo::Repository;

use super::Result;
use crate::aws::clients::Clients;
use crate::aws::direct::BLOCK_BYTES;
use crate::aws::snapshots::{self, Snapshot};
use crate::aws::tags;
use aws_sdk_ec2::types::Filter;

/// Snapshots of one volume that are looked at, the newest ones: comparing reads parts of two manifests.
const CANDIDATES: usize = 8;

/// A snapshot to start from.
#[derive(Clone, Debug)]
pub struct Base {
    /// `snap-…`.
    pub snapshot: String,
    /// What it holds.
    pub point: RecoveryPoint,
    /// What differs from what is wanted.
    pub difference: Difference,
}

/// How much is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Bytes of chunks.
    pub bytes: u64,
    /// Blocks of 512 KiB that they touch.
    pub blocks: u64,
}

/// Snapshots of the account that may be bases for volumes of this repository, newest first. Ids of points begin with their time.
pub async fn candidates(
    aws: &Clients,
    repository: &str,
    volumes: &[String],
) -> Result<BTreeMap<String, Vec<Snapshot>>> {
    let filters = [
        Filter::builder().name("status").values("completed").build(),
        Filter::builder().name(format!("tag:{}", tags::VOLUME)).set_values(Some(volumes.to_vec())).build(),
        tags::filter(tags::REPOSITORY, repository),
        tags::with_key(tags::POINT),
    ];
    let found = snapshots::find(aws, &[], &filters, crate::aws::retry::Patience::USUAL).await?;
    let mut of_volume: BTreeMap<String, Vec<Snapshot>> = BTreeMap::new();
    for snapshot in found {
        let volume = snapshot.tags.get(tags::VOLUME).cloned().unwrap_or_default();
        of_volume.entry(volume).or_default().push(snapshot);
    }
    for list in of_volume.values_mut() {
        list.sort_by(|a, b| b.tags.get(tags::POINT).cmp(&a.tags.get(tags::POINT)));
        list.truncate(CANDIDATES);
    }
    Ok(of_volume)
}

/// The candidate from which least is to be written.
pub fn choose(repo: &Repository, volume: &Volume, candidates: &[Snapshot]) -> Result<Option<Base>> {
    let known = repo.point_ids()?;
    let mut best: Option<Base> = None;
    for snapshot in candidates {
        let Some(text) = snapshot.tags.get(tags::POINT) else { continue };
        let Some(id) = known.iter().find(|id| id.to_string() == *text) else { continue };
        let point = match repo.read_point(*id) {
            Ok(point) => point,
            Err(error) => {
                tracing::warn!(
                    "{} is not started from: its recovery point cannot be read: {error}",
                    snapshot.id
                );
                continue;
            }
        };
        let says_so = recorded_snapshot(&point, &volume.name) == Some(snapshot.id.as_str());
        let Some(old) =
            point.volume(&volume.name).filter(|old| says_so && old.size_bytes <= volume.size_bytes)
        else {
            continue;
        };
        let difference = difference(&diff::volumes(repo, old, volume)?.ranges);
        if best.as_ref().is_none_or(|b| difference.blocks < b.difference.blocks) {
            best = Some(Base { snapshot: snapshot.id.clone(), point, difference });
        }
    }
    Ok(best)
}

/// The snapshot that a point says one of its volumes was read from.
fn recorded_snapshot<'a>(point: &'a RecoveryPoint, volume: &str) -> Option<&'a str> {
    let devices = point.other.get("instance")?["devices"].as_array()?;
    devices.iter().find(|d| d["volume"] == volume)?["snapshot"].as_str()
}

fn difference(ranges: &[std::ops::Range<u64>]) -> Difference {
    let mut blocks = 0;
    let mut next = 0;
    for range in ranges.iter().filter(|r| r.start < r.end) {
        let (first, end) = ((range.start / BLOCK_BYTES).max(next), range.end.div_ceil(BLOCK_BYTES));
        blocks += end.saturating_sub(first);
        next = next.max(end);
    }
    Difference { bytes: ranges.iter().map(|r| r.end - r.start).sum(), blocks }
}

/// All that a volume holds, where there is nothing to start from: counted in whole segments, so it is rather more than less.
pub fn everything(repo: &Repository, volume: &Volume) -> Result<Difference> {
    let bytes = diff::data_bytes(repo, volume)?;
    Ok(Difference { bytes, blocks: bytes.div_ceil(BLOCK_BYTES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_once() {
        let of = |ranges: &[std::ops::Range<u64>]| difference(ranges).blocks;
        assert_eq!(of(&[0..1, 4096..8192]), 1);
        assert_eq!(of(&[0..BLOCK_BYTES + 1, BLOCK_BYTES + 4096..BLOCK_BYTES + 8192]), 2);
        assert_eq!(of(&[0..1, 10 * BLOCK_BYTES - 1..10 * BLOCK_BYTES + 1]), 3);
        assert_eq!(of(&[]), 0);
    }
}
