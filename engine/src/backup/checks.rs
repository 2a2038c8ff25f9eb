//! What a backup asks of its sources before it reads them and before it publishes: that they are not cut short, that
//! they held still, and that a list of changes is relative to the point that it is used with.

use serde_json::Value;

use super::findings::{self, CONTAINER, Findings};
use super::{BackupOptions, Parent, VolumeSource};
use crate::dated::future_points;
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::PointId;
use crate::limits::CLOCK_TOLERANCE_MS;
use crate::repo::{Repository, latest_name};
use crate::source::{Seen, SourceKind, Watch};

/// What is looked at once more when everything was read.
pub struct Checks {
    sources: Vec<Expected>,
    watches: Vec<Watch>,
    allow_shrink: bool,
}

/// A source, and what its volume held before.
struct Expected {
    name: String,
    kind: SourceKind,
    container: Option<&'static str>,
    /// Bytes of the volume in the point to compare sizes with, if that was read in the same way.
    old_bytes: Option<u64>,
}

impl Checks {
    /// Looks at the sources before they are read: refuses those that are much shorter than before, has what could not
    /// be read the last time read again, and begins to watch.
    pub fn begin(
        repo: &Repository,
        points: &[PointId],
        volumes: &mut [VolumeSource],
        parent: Option<&RecoveryPoint>,
        options: &BackupOptions,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        // Without a parent everything is read, and is not to be a cut disk for that.
        let newest = match options.parent {
            Parent::None => repo.newest(points, Some(&options.name))?,
            _ => None,
        };
        let before = parent.or(newest.as_ref());
        let mut checks =
            Self { sources: Vec::new(), watches: Vec::new(), allow_shrink: options.allow_shrink };
        for volume in volumes {
            let old = before.and_then(|point| point.volume(&volume.name));
            let container = volume.source.container();
            let old_bytes = old.filter(|old| container_of(old) == container).map(|old| old.size_bytes);
            let expected =
                Expected { name: volume.name.clone(), kind: volume.source.kind(), container, old_bytes };
            if let Some(size_bytes) = volume.source.size_bytes() {
                checks.size(&expected, size_bytes, notes)?;
            }
            let unreadable = parent.and_then(|p| p.volume(&volume.name)).map(findings::unreadable_of);
            volume.changed_extents =
                volume.changed_extents.take().map(|changed| changed.with(unreadable.unwrap_or_default()));
            notes.extend(volume.source.notes());
            checks.watches.extend(volume.source.watch());
            checks.sources.push(expected);
        }
        Ok(checks)
    }

    /// Looks again when everything was read, and records in the volumes what was found meanwhile. True if the point is
    /// less than was asked for.
    ///
    /// Fails with [`Error::SourceRefused`] if a source changed while it was read, or ended early.
    pub fn end(&self, volumes: &mut [Volume], findings: &Findings, notes: &mut Vec<String>) -> Result<bool> {
        for (expected, volume) in self.sources.iter().zip(volumes.iter_mut()) {
            if expected.kind == SourceKind::Stream {
                self.size(expected, volume.size_bytes, notes)?;
            }
            if let Some(container) = expected.container {
                volume.other.insert(CONTAINER.into(), Value::from(container));
            }
        }
        for watch in &self.watches {
            let name = &watch.source_name;
            match watch.look() {
                Seen::Same => {}
                Seen::Changed(what) if watch.accepted => {
                    notes.push(format!("{name} changed while it was read ({what}): the copy may be torn"));
                }
                Seen::Changed(what) => {
                    let why = format!(
                        "it changed while it was read ({what}), so the copy may be torn and no recovery point was \
                         made. Back up a snapshot, stop what writes it, or accept an inconsistent copy with --force-live"
                    );
                    return Err(Error::SourceRefused { source_name: name.clone(), why });
                }
                Seen::Touched(what) => {
                    notes.push(format!("{name} may have changed while it was read: {what}"));
                }
            }
        }
        findings.record(volumes, notes)
    }

    fn size(&self, expected: &Expected, size_bytes: u64, notes: &mut Vec<String>) -> Result<()> {
        let name = &expected.name;
        let refused = |why| Err(Error::SourceRefused { source_name: name.clone(), why });
        if size_bytes == 0 {
            return refused("it is empty (0 bytes): no recovery point was made".into());
        }
        let Some(old_bytes) = expected.old_bytes.filter(|old| *old > size_bytes) else { return Ok(()) };
        let what = format!("it has {size_bytes} bytes, and had {old_bytes} in the recovery point before");
        let is_cut = old_bytes - size_bytes > most_lost(expected, old_bytes);
        if is_cut && !self.allow_shrink {
            return refused(format!(
                "{what}: it looks cut short, and no recovery point was made. If it is meant to be so small, say so \
                 with --allow-shrink"
            ));
        }
        if is_cut || expected.kind != SourceKind::Stream || old_bytes - size_bytes > old_bytes / 10 {
            notes.push(format!("{name} is shorter than before: {what}"));
        }
        Ok(())
    }
}

/// Bytes that a volume may have less than before. A disk does not lose any by itself; the file of an image may be
/// something else that varies a little; a stream varies as it likes, but not by half.
fn most_lost(expected: &Expected, old_bytes: u64) -> u64 {
    match expected.kind {
        SourceKind::Device | SourceKind::Snapshot => 0,
        SourceKind::Image if expected.container.is_some() => 0,
        SourceKind::Image => old_bytes / 10,
        SourceKind::Stream => old_bytes / 2,
    }
}

fn container_of(volume: &Volume) -> Option<&str> {
    volume.other.get(CONTAINER).and_then(Value::as_str)
}

/// The time that the contents are said to stand for must not be in the future: the point would be passed over.
pub fn time_is_not_of_the_future(unix_ms: u64, now_ms: u64) -> Result<()> {
    if unix_ms <= now_ms.saturating_add(CLOCK_TOLERANCE_MS) {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "the time that the contents stand for is in the future by this machine's clock".into(),
    })
}

/// The newest of `points` with this name, and a note if the repository has points of the future.
pub fn newest(
    repo: &Repository,
    points: &[PointId],
    name: &str,
    notes: &mut Vec<String>,
) -> Result<Option<RecoveryPoint>> {
    let future = future_points(points, repo.unix_ms());
    if let Some(first) = future.first() {
        notes.push(format!(
            "{} recovery points of this repository are dated in the future, from {first} on: they are never `latest` \
             and no parent. A clock was wrong, here or where they were made; `penstock list` shows them, `penstock \
             forget` with their ids removes them",
            future.len()
        ));
    }
    repo.newest(points, Some(name))
}

/// The recovery point that lists of changes name as their base, if there are lists that do.
///
/// Fails with [`Error::Invalid`] if lists name different points, or if neither the lists nor the options name one: the
/// newest of a name may not be the one that a list is relative to, and then changes would be lost without a word.
pub fn base_of_lists(volumes: &[VolumeSource], options: &BackupOptions) -> Result<Option<PointId>> {
    let invalid = |what: String| Err(Error::Invalid { what });
    let mut base: Option<PointId> = None;
    for volume in volumes {
        let Some(changed) = &volume.changed_extents else { continue };
        match (changed.base(), &options.parent) {
            (Some(named), _) if base.is_some_and(|base| base != named) => {
                return invalid(format!(
                    "the list of changes of {} names another base: {named}",
                    volume.name
                ));
            }
            (Some(named), _) => base = Some(named),
            (None, Parent::Point(text)) if latest_name(text).is_none() => {}
            (None, _) => {
                return invalid(format!(
                    "the list of changes of {} does not say which recovery point it is relative to, and the newest \
                     may be another: name that point by --parent with its id, or by a first line {{\"base\": \"ID\"}}",
                    volume.name
                ));
            }
        }
    }
    Ok(base)
}

/// Refuses a parent that is not the base of the lists.
pub fn parent_is_base(parent: Option<&RecoveryPoint>, base: Option<PointId>) -> Result<()> {
    let (Some(parent), Some(base)) = (parent, base) else { return Ok(()) };
    if parent.id == base.to_string() {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!(
            "the list of changes is relative to recovery point {base}, and --parent names {}",
            parent.id
        ),
    })
}

/// Which segments that a list does not name are read and compared all the same.
pub struct Sample {
    key: u64,
    percent: u8,
}

impl Sample {
    /// About `percent` of 100. Which ones depends on the parent, so that each night looks at others, and a run that
    /// goes on after a kill at the same.
    pub fn new(percent: u8, parent: Option<&RecoveryPoint>) -> Self {
        let hash = blake3::hash(parent.map_or(&[][..], |parent| parent.id.as_bytes()));
        let key = hash.as_bytes()[..8].iter().fold(0, |key, byte| key << 8 | u64::from(*byte));
        Self { key, percent }
    }

    /// True if this segment is one of them.
    pub fn takes(&self, volume: u16, segment: u64) -> bool {
        // SplitMix64: each number gives another that looks drawn.
        let mut n = self.key ^ u64::from(volume) << 48 ^ segment;
        n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
        n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((n ^ n >> 31) % 100) < u64::from(self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kind: SourceKind, container: Option<&'static str>, old: u64, new: u64) -> (bool, usize) {
        let expected = Expected { name: "v".into(), kind, container, old_bytes: Some(old) };
        let mut notes = Vec::new();
        let checks = Checks { sources: Vec::new(), watches: Vec::new(), allow_shrink: false };
        let refused = checks.size(&expected, new, &mut notes).is_err();
        (refused, notes.len())
    }

    #[test]
    fn what_counts_as_cut_short() {
        use SourceKind::{Device, Image, Snapshot, Stream};
        for (kind, container, new, expected) in [
            (Device, None, 1000, (false, 0)),
            (Device, None, 999, (true, 0)),
            (Snapshot, None, 999, (true, 0)),
            (Image, Some("qcow2"), 999, (true, 0)),
            (Image, None, 900, (false, 1)),
            (Image, None, 899, (true, 0)),
            (Stream, None, 900, (false, 0)),
            (Stream, None, 899, (false, 1)),
            (Stream, None, 500, (false, 1)),
            (Stream, None, 499, (true, 0)),
            (Stream, None, 5000, (false, 0)),
            (Stream, None, 0, (true, 0)),
        ] {
            assert_eq!(outcome(kind, container, 1000, new), expected, "{kind:?} {container:?} {new}");
        }
    }

    #[test]
    fn a_sample_is_of_about_its_size_and_stays_the_same() {
        let sample = Sample::new(20, None);
        let taken = (0..10_000).filter(|n| sample.takes(3, *n)).count();
        assert!((1_800..2_200).contains(&taken), "{taken}");
        assert!((0..10_000).all(|n| sample.takes(3, n) == Sample::new(20, None).takes(3, n)));
        assert!((0..1000).all(|n| Sample::new(100, None).takes(0, n) && !Sample::new(0, None).takes(0, n)));
    }
}
