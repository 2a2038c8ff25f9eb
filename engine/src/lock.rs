//! Keeps locked what is alive: a pack is locked when it is written, and recovery points made long after may need it. Extending its lock in time is what makes
//! their own lock worth something.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::manifest::PackWalk;
use crate::repo::{Listed, Repository};
use crate::run::{Progress, Run};

/// Objects dealt with between two looks at whether to go on.
const BATCH: usize = 1000;

/// What was extended.
#[derive(Clone, Debug)]
pub struct LockReport {
    /// Recovery points that are alive.
    pub points: usize,
    /// Packs that they need.
    pub packs: usize,
    /// Objects looked at: packs, index, points, configuration, key slots.
    pub objects: usize,
    /// Locks that last longer now.
    pub extended: usize,
    /// Locks that lasted long enough.
    pub long_enough: usize,
    /// Objects that are missing or have another length, and points that cannot be read: somebody may have been there.
    pub problems: Vec<String>,
    /// Until when everything is locked at least.
    pub locked_until: Timestamp,
}

/// Makes the lock of everything that recovery points need last for the period at least.
pub fn extend(repo: &Repository, now: Timestamp, run: &Run) -> Result<LockReport> {
    let custody = repo.store().custody();
    let Some((custody, lock)) = custody.and_then(|custody| Some((custody, custody.lock()?))) else {
        return Err(Error::Invalid {
            what: "locks are extended in S3, with --object-lock DAYS as for backups".into(),
        });
    };
    let go_on = || if run.stopped() { Err(Error::Cancelled) } else { Ok(()) };
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    // Points first: what they need is then in the index that is read after them.
    let (mut points, mut alive) = (Vec::new(), 0);
    for listed in repo.points()? {
        alive += 1;
        match listed {
            Listed::Point(point) => {
                objects.push((ObjectKind::Point.key(&point.id), None));
                points.push(point);
            }
            Listed::Damaged { error, .. } => problems.push(error.to_string()),
        }
    }
    let mut walk = PackWalk::new(repo.index_now()?, &go_on);
    for (point, volume) in points.iter().flat_map(|point| point.volumes.iter().map(move |v| (point, v))) {
        let walked = repo.tree(volume.size_bytes, volume.root).and_then(|mut tree| walk.tree(&mut tree));
        match walked {
            Err(error) if error.is_damage() => {
                problems.push(format!("recovery point {}: {error}", point.id));
            }
            walked => walked?,
        }
    }
    let packs = walk.into_packs();
    objects
        .extend(packs.iter().map(|pack| (pack.kind.key(&pack.id.to_string()), Some(u64::from(pack.bytes)))));
    objects.push((ObjectKind::Config.key(""), None));
    for kind in [ObjectKind::Key, ObjectKind::Index] {
        repo.store().list(kind.prefix(), &mut |key, _| objects.push((key.to_owned(), None)))?;
    }
    let bytes = |objects: &[(String, Option<u64>)]| objects.iter().filter_map(|(_, bytes)| *bytes).sum();
    run.progress.total_bytes.store(bytes(&objects), Ordering::Relaxed);
    let (required, until) = (lock.required(now), lock.until(now));
    let (mut extended, mut long_enough) = (0, 0);
    for batch in objects.chunks(BATCH) {
        go_on()?;
        let done = custody.extend(batch, required, until)?;
        extended += done.extended.len();
        long_enough += done.long_enough;
        problems.extend(done.wrong);
        Progress::add(&run.progress.done_bytes, bytes(batch));
    }
    Ok(LockReport {
        points: alive,
        packs: packs.len(),
        objects: objects.len(),
        extended,
        long_enough,
        problems,
        locked_until: required,
    })
}
