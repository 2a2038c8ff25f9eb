//! The backup's journal: a local file that says which packs and segments a run has finished, so that a killed backup goes on without reading or storing them
//! again. It is a hint, checked against the repository before it is believed, and not part of the repository.
//!
//! One line of JSON, then records of 48 bytes: `kind (1) ‖ has (1) ‖ volume (2) ‖ segment (8) ‖ id (32) ‖ check (4)`. A record that a crash cut short does not check.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{BackupOptions, VolumeSource};
use crate::error::Result;
use crate::format::header::ObjectKind;
use crate::format::node::NodeRef;
use crate::id::{NodeId, ObjectId, SegmentNo};
use crate::repo::Repository;

const RECORD_BYTES: usize = 48;
const CHECKED_BYTES: usize = 44;
const PACK: u8 = b'P';
const SEGMENT: u8 = b'S';
const VERSION: u32 = 1;

/// What a backup is of: a journal is continued only by a backup of the very same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subject {
    version: u32,
    repository_id: String,
    name: String,
    volumes: Vec<SubjectVolume>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct SubjectVolume {
    name: String,
    size_bytes: Option<u64>,
    /// Equal only while the source is unchanged; `None` where nothing can tell.
    identity: Option<String>,
}

impl Subject {
    fn of(repo: &Repository, volumes: &[VolumeSource], options: &BackupOptions) -> Self {
        let volumes = volumes
            .iter()
            .map(|v| SubjectVolume {
                name: v.name.clone(),
                size_bytes: v.source.size_bytes(),
                identity: v.source.identity(),
            })
            .collect();
        let repository_id = repo.config().repository_id.clone();
        Self { version: VERSION, repository_id, name: options.name.clone(), volumes }
    }

    /// True if segments that a run of `other` finished are right for this one.
    fn unchanged_since(&self, other: &Subject) -> bool {
        self == other && self.volumes.iter().all(|v| v.identity.is_some())
    }
}

/// Packs and segments that an earlier run finished.
#[derive(Default)]
pub struct Contents {
    /// Durable packs.
    pub packs: Vec<(ObjectKind, ObjectId)>,
    /// Leaves of finished segments, by volume and segment.
    pub segments: HashMap<(u16, SegmentNo), NodeRef>,
    /// The segments are of these very sources.
    pub same_sources: bool,
}

/// The open journal of this run.
pub struct Journal {
    path: PathBuf,
    subject: Subject,
    /// `None` if there is no journal: another process backs up the same name, or the directory cannot be written.
    file: Option<File>,
    /// Why there is none.
    pub why_none: Option<String>,
}

impl Journal {
    /// Opens (and locks) the journal for backups of this name.
    pub fn open(repo: &Repository, volumes: &[VolumeSource], options: &BackupOptions) -> Result<Self> {
        let subject = Subject::of(repo, volumes, options);
        let name = blake3::hash(options.name.as_bytes()).to_hex();
        let dir = options.state_dir.join(&subject.repository_id);
        let path = dir.join(format!("{}.journal", &name[..32]));
        let (file, why_none) = match lock_file(&dir, &path) {
            Ok(file) => (Some(file), None),
            Err(e) => (
                None,
                Some(format!(
                    "no journal in {}: {e}; if this backup is killed, it starts anew",
                    dir.display()
                )),
            ),
        };
        Ok(Self { path, subject, file, why_none })
    }

    /// What an earlier run left.
    pub fn read(&mut self) -> Contents {
        let mut bytes = Vec::new();
        let Some(file) = &mut self.file else { return Contents::default() };
        if file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
            return Contents::default();
        }
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else { return Contents::default() };
        let Ok(old) = serde_json::from_slice::<Subject>(&bytes[..end]) else { return Contents::default() };
        let mut contents =
            Contents { same_sources: self.subject.unchanged_since(&old), ..Contents::default() };
        for record in bytes[end + 1..].chunks_exact(RECORD_BYTES) {
            decode(record, &mut contents);
        }
        contents
    }

    /// Begins a fresh journal, forgetting what an earlier run left.
    pub fn restart(&mut self) {
        self.attempt(|journal| {
            let Some(file) = &mut journal.file else { return Ok(()) };
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            let mut line = serde_json::to_vec(&journal.subject)?;
            line.push(b'\n');
            file.write_all(&line)
        });
    }

    /// Goes on behind the whole records of an earlier run.
    pub fn resume(&mut self) {
        self.attempt(|journal| {
            let Some(file) = &mut journal.file else { return Ok(()) };
            let bytes = file.seek(SeekFrom::End(0))?;
            let line = serde_json::to_vec(&journal.subject)?.len() as u64 + 1;
            let whole = line + bytes.saturating_sub(line) / RECORD_BYTES as u64 * RECORD_BYTES as u64;
            file.set_len(whole)?;
            file.seek(SeekFrom::Start(whole)).map(drop)
        });
    }

    /// A pack became durable.
    pub fn pack(&mut self, kind: ObjectKind, id: ObjectId) {
        let mut padded = [0u8; 32];
        padded[..16].copy_from_slice(id.as_bytes());
        self.append(PACK, kind as u8, 0, 0, &padded);
    }

    /// A segment is finished, once the packs with its chunks and its leaf are.
    pub fn segment(&mut self, volume: u16, segment: SegmentNo, node: NodeRef) {
        let id = node.map_or([0; 32], |id| *id.as_bytes());
        self.append(SEGMENT, u8::from(node.is_some()), volume, segment.0, &id);
    }

    /// Removes the journal: the recovery point is published.
    pub fn remove(self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Hands a record to the kernel, where it survives everything but a power cut.
    fn append(&mut self, kind: u8, has: u8, volume: u16, segment: u64, id: &[u8; 32]) {
        let mut record = [0u8; RECORD_BYTES];
        record[..2].copy_from_slice(&[kind, has]);
        record[2..4].copy_from_slice(&volume.to_le_bytes());
        record[4..12].copy_from_slice(&segment.to_le_bytes());
        record[12..CHECKED_BYTES].copy_from_slice(id);
        let check = blake3::hash(&record[..CHECKED_BYTES]);
        record[CHECKED_BYTES..].copy_from_slice(&check.as_bytes()[..RECORD_BYTES - CHECKED_BYTES]);
        self.attempt(|journal| match &mut journal.file {
            Some(file) => file.write_all(&record),
            None => Ok(()),
        });
    }

    /// Does something with the file; if that fails, there is no journal any more, and the backup goes on without.
    fn attempt(&mut self, action: impl FnOnce(&mut Self) -> std::io::Result<()>) {
        if let Err(error) = action(self) {
            tracing::warn!(path = %self.path.display(), "the journal cannot be written: {error}");
            self.file = None;
        }
    }
}

fn lock_file(dir: &Path, path: &Path) -> std::io::Result<File> {
    fs::create_dir_all(dir)?;
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| std::io::Error::other("another process is backing up the same name"))?;
        // A run that ended between the two calls has removed the name: then this is a lock on nothing.
        let same =
            fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|held| held.ino() == named.ino()));
        if same {
            return Ok(file);
        }
    }
}

fn decode(record: &[u8], contents: &mut Contents) {
    let (checked, check) = record.split_at(CHECKED_BYTES);
    if blake3::hash(checked).as_bytes()[..4] != *check {
        return;
    }
    let mut id = [0u8; 32];
    id.copy_from_slice(&checked[12..]);
    let mut segment = [0u8; 8];
    segment.copy_from_slice(&checked[4..12]);
    match checked[0] {
        PACK => {
            let mut pack = [0u8; 16];
            pack.copy_from_slice(&id[..16]);
            if let Some(kind @ (ObjectKind::Data | ObjectKind::Meta)) = ObjectKind::from_u8(checked[1]) {
                contents.packs.push((kind, ObjectId::new(pack)));
            }
        }
        SEGMENT => {
            let volume = u16::from_le_bytes([checked[2], checked[3]]);
            let node = (checked[1] == 1).then(|| NodeId::new(id));
            contents.segments.insert((volume, SegmentNo(u64::from_le_bytes(segment))), node);
        }
        _ => {}
    }
}
