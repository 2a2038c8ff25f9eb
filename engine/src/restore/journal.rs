//! The journal of a restore: which segments are safely on the target. Beside a file as `.NAME.penstock-restore`; for a device in the state directory, since `/dev` does not outlive a boot.
//!
//! One line of JSON, then records of 12 bytes: `segment (8) ‖ check (4)`. Records are written only after the target was synced, so that they hold after a power cut too.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RestoreOptions;
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::SegmentNo;
use crate::repo::Repository;
use crate::target::Target;

const RECORD_BYTES: usize = 12;
/// The target is synced and the journal written each time the restore is a quarter older, within these bounds: what a killed restore does again.
const SYNC_EVERY_MIN: Duration = Duration::from_millis(100);
const SYNC_EVERY_MAX: Duration = Duration::from_secs(5);

/// What is restored; a journal is continued only by a restore of the very same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subject {
    repository_id: String,
    point: String,
    volume: String,
    base: Option<String>,
    compare: bool,
}

impl Subject {
    /// Of this restore.
    pub fn of(repo: &Repository, point: &RecoveryPoint, volume: &Volume, options: &RestoreOptions) -> Self {
        Self {
            repository_id: repo.config().repository_id.clone(),
            point: point.id.clone(),
            volume: volume.name.clone(),
            base: options.base.as_ref().map(|base| base.id.clone()),
            compare: options.compare,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    subject: Subject,
    /// The target read as zeros when the restore began.
    fresh: bool,
}

/// What a killed restore left.
pub struct Earlier {
    /// The target read as zeros when it began.
    pub fresh: bool,
    /// Segments on the target.
    pub done: HashSet<SegmentNo>,
    whole_bytes: u64,
}

/// The open journal.
pub struct Journal {
    path: PathBuf,
    file: File,
    waiting: Vec<u8>,
    started: Instant,
    synced_at: Instant,
}

/// Where the journal for a target lies.
pub fn place_of(target: &Path, state_dir: &Path) -> PathBuf {
    let is_file = fs::metadata(target).map_or(true, |meta| meta.is_file());
    match (is_file, target.file_name()) {
        (true, Some(name)) => target.with_file_name(format!(".{}.penstock-restore", name.to_string_lossy())),
        _ => {
            let hash = blake3::hash(target.as_os_str().as_encoded_bytes()).to_hex();
            state_dir.join(format!("restore-{}.journal", &hash[..32]))
        }
    }
}

/// Reads the journal of a killed restore of the same subject.
pub fn read(place: &Path, subject: &Subject, target: &Path) -> Result<Earlier> {
    let nothing = |why: &str| Error::Invalid {
        what: format!("--resume: {why} for {}; restore without --resume", target.display()),
    };
    let bytes = match fs::read(place) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(nothing("there is no interrupted restore"));
        }
        Err(e) => return Err(Error::io("read", place.display())(e)),
    };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| nothing("there is no usable journal"))?;
    let head: Head =
        serde_json::from_slice(&bytes[..end]).map_err(|_| nothing("there is no usable journal"))?;
    if head.subject != *subject {
        return Err(nothing(&format!(
            "the interrupted restore was of another state (point {}, volume {}{})",
            head.subject.point,
            head.subject.volume,
            if head.subject.base.is_some() { ", with --base" } else { "" }
        )));
    }
    let mut done = HashSet::new();
    let mut whole_bytes = end as u64 + 1;
    for record in bytes[end + 1..].chunks_exact(RECORD_BYTES) {
        let (segment, check) = record.split_at(8);
        if blake3::hash(segment).as_bytes()[..4] != *check {
            break;
        }
        let mut number = [0u8; 8];
        number.copy_from_slice(segment);
        done.insert(SegmentNo(u64::from_le_bytes(number)));
        whole_bytes += RECORD_BYTES as u64;
    }
    Ok(Earlier { fresh: head.fresh, done, whole_bytes })
}

/// Writes a journal without records.
pub fn begin(place: &Path, subject: &Subject, fresh: bool) -> Result<()> {
    let fail = || Error::io("write", place.display());
    if let Some(dir) = place.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        fs::create_dir_all(dir).map_err(Error::io("create", dir.display()))?;
    }
    let head = Head { subject: subject.clone(), fresh };
    let mut line = serde_json::to_vec(&head).map_err(|e| fail()(e.into()))?;
    line.push(b'\n');
    // Whole or not at all: a kill in between must not leave half a line.
    let new = unfinished(place);
    let mut file = File::create(&new).map_err(fail())?;
    file.write_all(&line).and_then(|()| file.sync_all()).map_err(fail())?;
    fs::rename(&new, place).map_err(fail())
}

/// What a journal is called before it is whole.
fn unfinished(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

impl Journal {
    /// A journal for a restore from the start.
    pub fn start(place: &Path, subject: &Subject, fresh: bool) -> Result<Self> {
        begin(place, subject, fresh)?;
        Self::append_to(place)
    }

    /// Goes on behind the whole records of a killed restore.
    pub fn resume(place: &Path, earlier: &Earlier) -> Result<Self> {
        let journal = Self::append_to(place)?;
        journal.file.set_len(earlier.whole_bytes).map_err(Error::io("write", place.display()))?;
        Ok(journal)
    }

    fn append_to(place: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(place).map_err(Error::io("open", place.display()))?;
        Ok(Self {
            path: place.to_owned(),
            file,
            waiting: Vec::new(),
            started: Instant::now(),
            synced_at: Instant::now(),
        })
    }

    /// A segment was written.
    pub fn segment(&mut self, segment: SegmentNo, target: &Target) {
        let number = segment.0.to_le_bytes();
        self.waiting.extend_from_slice(&number);
        self.waiting.extend_from_slice(&blake3::hash(&number).as_bytes()[..4]);
        if self.synced_at.elapsed() > (self.started.elapsed() / 4).clamp(SYNC_EVERY_MIN, SYNC_EVERY_MAX) {
            self.sync(target);
        }
    }

    /// Syncs the target, then records what was written. A failure costs only what a resumed restore does again.
    pub fn sync(&mut self, target: &Target) {
        let synced = target.file().file.sync_data().and_then(|()| {
            self.file.write_all(&self.waiting)?;
            self.file.sync_data()
        });
        if let Err(error) = synced {
            tracing::warn!(journal = %self.path.display(), "cannot be written: {error}");
        }
        self.waiting.clear();
        self.synced_at = Instant::now();
    }

    /// Removes the journal: the restore is done.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
        // Left by a restore that was killed right before it began its journal for the second time.
        let _ = fs::remove_file(unfinished(&self.path));
    }
}
