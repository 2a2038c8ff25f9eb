//! The backup's journal: a local file that says which packs and segments a run has finished, so that a killed backup goes on without reading or storing them
//! again. It is a hint, checked against the repository before it is believed, and not part of the repository.
//!
//! One line of JSON, then records of 48 bytes: `kind (1) ‖ has (1) ‖ volume (2) ‖ segment (8) ‖ id (32) ‖ check (4)`. A record that a crash cut short does not check.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
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

/// Longest first line that is read: a backup of thousands of volumes.
const SUBJECT_BYTES_MAX: u64 = 16 << 20;
/// No record.
const NONE: u32 = u32::MAX;
/// Places kept besides four for each record: 64 MiB, so that a damaged journal takes no more. It is enough for 64 TiB of
/// which little was finished; what finds no room is read again.
const SPARE_PLACES: u64 = 16 << 20;
/// Records read at a time, one after the other mostly.
const WINDOW_RECORDS: u64 = 1 << 10;

/// Packs and segments that an earlier run finished.
#[derive(Default)]
pub struct Contents {
    /// Durable packs.
    pub packs: Vec<(ObjectKind, ObjectId)>,
    /// Finished segments, by volume.
    pub segments: Vec<FinishedSegments>,
    /// The segments are of these very sources.
    pub same_sources: bool,
}

/// The finished segments of a volume. What is in memory is 4 bytes a segment, 16 MiB for 16 TiB: the rest is read from
/// the journal when it is asked for.
pub struct FinishedSegments {
    /// Which volume.
    pub volume: u16,
    /// The number of the last record of each segment, or [`NONE`].
    places: Vec<u32>,
    file: Arc<File>,
    /// Where the first record is.
    start: u64,
    /// Records read lately, and the number of the first of them.
    window: (u64, Vec<u8>),
}

impl FinishedSegments {
    /// The leaf of a segment, if the earlier run finished it. What cannot be read was not finished.
    pub fn get(&mut self, segment: SegmentNo) -> Option<NodeRef> {
        let place = *self.places.get(usize::try_from(segment.0).ok()?)?;
        if place == NONE {
            return None;
        }
        let record = Record::decode(self.record(u64::from(place))?)?;
        match record {
            Record::Segment { volume, segment: of, node } if volume == self.volume && of == segment => {
                Some(node)
            }
            _ => None,
        }
    }

    fn record(&mut self, place: u64) -> Option<&[u8]> {
        let (first, bytes) = &mut self.window;
        let held = bytes.len() as u64 / RECORD_BYTES as u64;
        if !(*first..*first + held).contains(&place) {
            bytes.resize(WINDOW_RECORDS as usize * RECORD_BYTES, 0);
            let mut filled = 0;
            while filled < bytes.len() {
                let at = self.start + place * RECORD_BYTES as u64 + filled as u64;
                match self.file.read_at(&mut bytes[filled..], at) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
            }
            bytes.truncate(filled);
            *first = place;
        }
        let at = (place - *first) as usize * RECORD_BYTES;
        bytes.get(at..at + RECORD_BYTES)
    }
}

/// One record.
enum Record {
    Pack(ObjectKind, ObjectId),
    Segment { volume: u16, segment: SegmentNo, node: NodeRef },
}

impl Record {
    /// `None` if it was cut short, or is of no kind that is known.
    fn decode(record: &[u8]) -> Option<Self> {
        let (checked, check) = record.split_at_checked(CHECKED_BYTES)?;
        if blake3::hash(checked).as_bytes()[..RECORD_BYTES - CHECKED_BYTES] != *check {
            return None;
        }
        let id: [u8; 32] = checked[12..].try_into().ok()?;
        match checked[0] {
            PACK => match ObjectKind::from_u8(checked[1]) {
                Some(kind @ (ObjectKind::Data | ObjectKind::Meta)) => {
                    Some(Self::Pack(kind, ObjectId::new(id[..16].try_into().ok()?)))
                }
                _ => None,
            },
            SEGMENT => Some(Self::Segment {
                volume: u16::from_le_bytes([checked[2], checked[3]]),
                segment: SegmentNo(u64::from_le_bytes(checked[4..12].try_into().ok()?)),
                node: (checked[1] == 1).then(|| NodeId::new(id)),
            }),
            _ => None,
        }
    }
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
        let Some(file) = &mut self.file else { return Contents::default() };
        match read(file, &self.subject) {
            Ok(contents) => contents,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), "the journal cannot be read: {error}");
                Contents::default()
            }
        }
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

fn lock_file(dir: &Path, path: &Path) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another process is backing up the same name"));
            }
            Err(error) => {
                return Err(io::Error::other(format!(
                    "its filesystem has no locks ({})",
                    io::Error::from(error)
                )));
            }
        }
        // A run that ended between the two calls has removed the name: then this is a lock on nothing.
        let same =
            fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|held| held.ino() == named.ino()));
        if same {
            return Ok(file);
        }
    }
}

/// Reads the journal from its start, a buffer at a time: it has 200 MB after 16 TiB.
fn read(file: &mut File, subject: &Subject) -> io::Result<Contents> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 20, &*file);
    let mut line = Vec::new();
    reader.by_ref().take(SUBJECT_BYTES_MAX).read_until(b'\n', &mut line)?;
    let Ok(old) = serde_json::from_slice::<Subject>(&line) else { return Ok(Contents::default()) };
    let mut contents = Contents { same_sources: subject.unchanged_since(&old), ..Contents::default() };
    let mut places: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    let mut room = SPARE_PLACES + file.metadata()?.len() / RECORD_BYTES as u64 * 4;
    let mut record = [0; RECORD_BYTES];
    for number in 0..NONE {
        match reader.read_exact(&mut record) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        match Record::decode(&record) {
            Some(Record::Pack(kind, id)) => contents.packs.push((kind, id)),
            Some(Record::Segment { volume, segment, .. }) => {
                let of = places.entry(volume).or_default();
                let more = segment.0.saturating_add(1).saturating_sub(of.len() as u64);
                if more <= room {
                    room -= more;
                    set(of, segment.0 as usize, number);
                }
            }
            None => {}
        }
    }
    drop(reader);
    let file = Arc::new(file.try_clone()?);
    contents.segments = places
        .into_iter()
        .map(|(volume, places)| {
            let window = (0, Vec::new());
            FinishedSegments { volume, places, file: file.clone(), start: line.len() as u64, window }
        })
        .collect();
    Ok(contents)
}

/// Grows by an eighth: doubling would hold twice what is there, and three times while it moves.
fn set(places: &mut Vec<u32>, segment: usize, number: u32) {
    if segment >= places.len() {
        if segment >= places.capacity() {
            places.reserve_exact(segment + 1 - places.len() + places.len() / 8);
        }
        places.resize(segment + 1, NONE);
    }
    places[segment] = number;
}

/// Reads a journal with these contents and goes on behind it, as a backup of the same name does after a crash.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    let file = crate::fuzzing::file_of(bytes);
    let (repository_id, name) = ("0a".repeat(16), "web".to_owned());
    let subject = Subject { version: VERSION, repository_id, name, volumes: Vec::new() };
    let mut journal = Journal { path: PathBuf::new(), subject, file: Some(file), why_none: None };
    let mut before = journal.read();
    let places = before.segments.iter().flat_map(|volume| &volume.places);
    let finished = places.filter(|place| **place != NONE).count();
    assert!(before.packs.len() + finished <= bytes.len() / RECORD_BYTES);
    for volume in &mut before.segments {
        let Some(segment) = volume.places.iter().position(|place| *place != NONE) else { continue };
        assert!(volume.get(SegmentNo(segment as u64)).is_some());
    }
    // Where the first line is as this program writes it: whoever goes on counts on that.
    let line = serde_json::to_vec(&journal.subject).unwrap_or_default();
    if before.same_sources && bytes.strip_prefix(&line[..]).is_some_and(|rest| rest.starts_with(b"\n")) {
        journal.resume();
        journal.segment(3, SegmentNo(77), None);
        let mut after = journal.read();
        let own = after.segments.iter_mut().find(|volume| volume.volume == 3);
        let own = own.and_then(|volume| volume.get(SegmentNo(77)));
        assert_eq!((before.packs, own), (after.packs, Some(None)));
    }
    journal.restart();
    let fresh = journal.read();
    assert!(fresh.same_sources && fresh.segments.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(identity: Option<&str>) -> Subject {
        let volume =
            SubjectVolume { name: "v".into(), size_bytes: Some(1), identity: identity.map(str::to_owned) };
        Subject { version: VERSION, repository_id: "r".into(), name: "n".into(), volumes: vec![volume] }
    }

    fn journal(path: &Path) -> Journal {
        let dir = path.parent().unwrap();
        let file = Some(lock_file(dir, path).unwrap());
        Journal { path: path.to_owned(), subject: subject(Some("i")), file, why_none: None }
    }

    fn node(n: u64) -> NodeId {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        NodeId::new(id)
    }

    #[test]
    fn what_was_written_is_found_again_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        let mut written = journal(&path);
        written.restart();
        let pack = ObjectId::random().unwrap();
        written.pack(ObjectKind::Data, pack);
        for n in (0..5000u64).rev() {
            written.segment((n % 2) as u16, SegmentNo(n), (n % 3 > 0).then(|| node(n)));
        }
        written.segment(0, SegmentNo(8), Some(node(88))); // a second time: the last counts
        drop(written);
        let torn = fs::read(&path).unwrap();
        fs::write(&path, [&torn[..], &[b'S'; 17]].concat()).unwrap();

        let mut again = journal(&path);
        let mut contents = again.read();
        assert!(contents.same_sources);
        assert_eq!(contents.packs, [(ObjectKind::Data, pack)]);
        again.resume();
        again.segment(0, SegmentNo(6000), None);
        assert_eq!(contents.segments.iter().map(|of| of.volume).collect::<Vec<_>>(), [0, 1]);
        for n in (0..6000u64).chain([8, 0, 4999, 3]) {
            let of = &mut contents.segments[(n % 2) as usize];
            let expected = match n {
                8 => Some(Some(node(88))),
                _ => (n < 5000).then(|| (n % 3 > 0).then(|| node(n))),
            };
            assert_eq!(of.get(SegmentNo(n)), expected, "{n}");
        }
        assert_eq!(contents.segments[0].get(SegmentNo(1 << 40)), None);
        drop((again, contents));
        assert_eq!(
            journal(&path).read().segments[0].get(SegmentNo(6000)),
            Some(None),
            "goes on behind whole records"
        );
    }

    #[test]
    fn hurt_records_were_never_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        let mut written = journal(&path);
        written.restart();
        (0..10).for_each(|n| written.segment(0, SegmentNo(n), Some(node(n))));
        drop(written);
        let bytes = fs::read(&path).unwrap();
        let start = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
        for at in [start, start + 5 * RECORD_BYTES + 20, start + 9 * RECORD_BYTES + 47] {
            let mut hurt = bytes.clone();
            hurt[at] ^= 1;
            fs::write(&path, &hurt).unwrap();
            let mut contents = journal(&path).read();
            let lost = ((at - start) / RECORD_BYTES) as u64;
            for n in 0..10 {
                assert_eq!(
                    contents.segments[0].get(SegmentNo(n)).is_some(),
                    n != lost,
                    "byte {at}, segment {n}"
                );
            }
        }
        // one record that says it is of the last segment there can be
        let mut written = journal(&path);
        written.restart();
        (0..3).for_each(|n| written.segment(n, SegmentNo(u64::MAX - u64::from(n)), None));
        drop(written);
        let contents = journal(&path).read();
        assert!(contents.segments.iter().all(|of| of.places.is_empty()), "no memory is taken on its word");
        drop(contents); // it holds the file, and with it the lock
        for junk in [&b""[..], b"{}", b"{}\n", b"\n\n\n", &[0xff; 1000]] {
            fs::write(&path, junk).unwrap();
            assert!(journal(&path).read().segments.is_empty());
        }
    }
}
