//! The journal of a restore: which segments are safely on the target. Beside a file as `.NAME.penstock-restore`; for
//! a device in the state directory, since `/dev` does not outlive a boot.
//!
//! One line of JSON, then records of 12 bytes: `segment (8) ‖ check (4)`. Records are written only after the target
//! was synced, so that they hold after a power cut too. The line says what is restored and onto what: the target's
//! name may mean another one by the time the journal is read.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RestoreOptions;
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::SegmentNo;
use crate::repo::Repository;
use crate::target::{Identity, Target, TargetKind};

const RECORD_BYTES: usize = 12;
/// The target is synced and the journal written each time the restore is a quarter older, within these bounds: what a
/// killed restore does again.
const SYNC_EVERY_MIN: Duration = Duration::from_millis(100);
const SYNC_EVERY_MAX: Duration = Duration::from_secs(5);
/// Longest first line.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Records remembered as the newest.
const NEWEST: usize = 8;

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
    target: Identity,
    /// The target read as zeros when the restore began.
    fresh: bool,
}

/// Segments of a volume, a bit each.
#[derive(Clone, Default, Debug)]
pub struct SegmentSet {
    words: Vec<u64>,
    len: u64,
}

impl SegmentSet {
    /// Adds one.
    pub fn insert(&mut self, segment: SegmentNo) {
        let (word, bit) = ((segment.0 / 64) as usize, 1 << (segment.0 % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.len += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// True if it is in the set.
    pub fn contains(&self, segment: SegmentNo) -> bool {
        self.words.get((segment.0 / 64) as usize).is_some_and(|word| word & (1 << (segment.0 % 64)) != 0)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = SegmentNo> + '_ {
        (0..self.words.len() as u64 * 64).map(SegmentNo).filter(|segment| self.contains(*segment))
    }
}

/// What a killed restore left.
#[derive(Debug)]
pub struct Earlier {
    /// The target read as zeros when it began.
    pub fresh: bool,
    /// Segments on the target.
    pub done: SegmentSet,
    /// The last of them.
    pub newest: VecDeque<SegmentNo>,
    whole_bytes: u64,
}

/// Why a journal is of no use.
#[derive(Debug)]
pub enum Unusable {
    /// There is none, or nothing that can be read.
    None(&'static str),
    /// It is of another restore.
    Other(String),
    /// It is of this restore, but onto another target, or the target is not as it says.
    Target(String),
}

impl Unusable {
    /// For the user.
    pub fn explain(self, target: &str) -> Error {
        let nothing = |why: &str| Error::Invalid {
            what: format!("--resume: {why} for {target}; restore without --resume"),
        };
        match self {
            Self::None(why) => nothing(why),
            Self::Other(why) => nothing(&why),
            Self::Target(why) => Error::TargetRefused { target: target.into(), why },
        }
    }
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
pub fn place_of(target: &Path, kind: TargetKind, state_dir: Option<&Path>) -> Result<PathBuf> {
    match (kind, target.file_name(), state_dir) {
        (TargetKind::File, Some(name), _) => {
            Ok(target.with_file_name(format!(".{}.penstock-restore", name.to_string_lossy())))
        }
        (_, _, Some(state_dir)) => {
            let hash = blake3::hash(target.as_os_str().as_encoded_bytes()).to_hex();
            Ok(state_dir.join(format!("restore-{}.journal", &hash[..32])))
        }
        _ => Err(Error::Invalid {
            what: format!(
                "{}: a restore onto a device keeps a journal, and there is no home directory for it: \
                 set PENSTOCK_STATE_DIR",
                target.display()
            ),
        }),
    }
}

/// Reads the journal that a killed restore of the same subject to the same target left of a volume of so many
/// segments.
pub fn read(
    place: &Path,
    subject: &Subject,
    target: &Identity,
    segments: u64,
) -> Result<std::result::Result<Earlier, Unusable>> {
    let fail = || Error::io("read", place.display());
    let mut file = match File::open(place) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(Unusable::None("there is no interrupted restore")));
        }
        Err(e) => return Err(fail()(e)),
    };
    let mut line = Vec::new();
    (&mut file).take(HEAD_BYTES_MAX).read_until(b'\n', &mut line).map_err(fail())?;
    let head = match line.ends_with(b"\n").then(|| serde_json::from_slice::<Head>(&line)) {
        Some(Ok(head)) => head,
        _ => return Ok(Err(Unusable::None("there is no usable journal"))),
    };
    if head.subject != *subject {
        return Ok(Err(Unusable::Other(format!(
            "the interrupted restore was of another state (point {}, volume {}{})",
            head.subject.point,
            head.subject.volume,
            if head.subject.base.is_some() { ", with --base" } else { "" }
        ))));
    }
    if head.target != *target || target.is_vague() {
        return Ok(Err(Unusable::Target(format!(
            "the interrupted restore wrote to another target of that name ({}; this is {target}). \
             Restore without --resume",
            head.target
        ))));
    }
    let mut earlier = Earlier {
        fresh: head.fresh,
        done: SegmentSet::default(),
        newest: VecDeque::new(),
        whole_bytes: line.len() as u64,
    };
    let mut record = [0; RECORD_BYTES];
    while file.read_exact(&mut record).is_ok() {
        let mut number = [0; 8];
        number.copy_from_slice(&record[..8]);
        let segment = SegmentNo(u64::from_le_bytes(number));
        if record != record_of(segment) || segment.0 >= segments {
            break;
        }
        earlier.done.insert(segment);
        earlier.newest.push_back(segment);
        if earlier.newest.len() > NEWEST {
            earlier.newest.pop_front();
        }
        earlier.whole_bytes += RECORD_BYTES as u64;
    }
    Ok(Ok(earlier))
}

fn record_of(segment: SegmentNo) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&segment.0.to_le_bytes());
    let check = blake3::hash(&record[..8]);
    record[8..].copy_from_slice(&check.as_bytes()[..RECORD_BYTES - 8]);
    record
}

/// Writes a journal without records, in the place of whatever was there.
pub fn begin(place: &Path, subject: &Subject, target: &Identity, fresh: bool) -> Result<()> {
    let fail = || Error::io("write", place.display());
    if let Some(dir) = place.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        fs::create_dir_all(dir).map_err(Error::io("create", dir.display()))?;
    }
    let head = Head { subject: subject.clone(), target: target.clone(), fresh };
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
    /// Goes on behind what [`begin`] wrote.
    pub fn start(place: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(place).map_err(Error::io("open", place.display()))?;
        Ok(Self {
            path: place.to_owned(),
            file,
            waiting: Vec::new(),
            started: Instant::now(),
            synced_at: Instant::now(),
        })
    }

    /// Goes on behind the whole records of a killed restore.
    pub fn resume(place: &Path, earlier: &Earlier) -> Result<Self> {
        let journal = Self::start(place)?;
        journal.file.set_len(earlier.whole_bytes).map_err(Error::io("write", place.display()))?;
        Ok(journal)
    }

    /// A segment was written. Fails if the target's sync does.
    pub fn segment(&mut self, segment: SegmentNo, target: &Target) -> Result<()> {
        self.waiting.extend_from_slice(&record_of(segment));
        if self.synced_at.elapsed() > (self.started.elapsed() / 4).clamp(SYNC_EVERY_MIN, SYNC_EVERY_MAX) {
            self.sync(target)?;
        }
        Ok(())
    }

    /// Syncs the target, which must not fail, then records what was written. A failure of that costs only what a
    /// resumed restore does again.
    pub fn sync(&mut self, target: &Target) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.synced_at = Instant::now();
        target.sync()?;
        if let Err(error) = self.file.write_all(&waiting).and_then(|()| self.file.sync_data()) {
            tracing::warn!(journal = %self.path.display(), "cannot be written: {error}");
        }
        Ok(())
    }

    /// Removes the journal: the restore is done.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
        // Left by a restore that was killed right before it began its journal for the second time.
        let _ = fs::remove_file(unfinished(&self.path));
    }
}

/// Reads a journal with these contents, as a restore with `--resume` does.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    let file = crate::fuzzing::file_of(bytes);
    let place = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let own = bytes.split(|byte| *byte == b'\n').next().and_then(|line| serde_json::from_slice(line).ok());
    let Some(Head { subject, target, .. }) = own else { return };
    let Ok(Ok(earlier)) = read(&place, &subject, &target, 1 << 20) else { return };
    let head = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    assert!(earlier.whole_bytes as usize <= bytes.len());
    assert_eq!((earlier.whole_bytes as usize - head) % RECORD_BYTES, 0);
    assert!(earlier.done.len() as usize <= (earlier.whole_bytes as usize - head) / RECORD_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        let text = |text: &str| text.to_owned();
        Subject { repository_id: text("r"), point: text("p"), volume: text("v"), base: None, compare: false }
    }

    fn identity(size_bytes: u64, serial: &str) -> Identity {
        let marks = [("serial".to_owned(), serial.to_owned())].into();
        Identity::Device { size_bytes, marks }
    }

    fn read_here(
        place: &Path,
        subject: &Subject,
        target: &Identity,
    ) -> std::result::Result<Earlier, Unusable> {
        read(place, subject, target, 1000).unwrap()
    }

    #[test]
    fn records_come_back_up_to_the_first_that_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state/journal");
        let target = identity(1 << 30, "a");
        begin(&place, &subject(), &target, true).unwrap();
        let mut file = OpenOptions::new().append(true).open(&place).unwrap();
        for no in [5, 900, 7, 1, 2, 3, 4, 6, 8, 63, 64] {
            file.write_all(&record_of(SegmentNo(no))).unwrap();
        }
        file.write_all(&record_of(SegmentNo(9))[..11]).unwrap();
        let earlier = read_here(&place, &subject(), &target).unwrap();
        assert!(earlier.fresh);
        let all: Vec<u64> = earlier.done.iter().map(|segment| segment.0).collect();
        assert_eq!(all, [1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 900]);
        assert_eq!(earlier.done.len(), 11);
        assert_eq!(earlier.newest.len(), NEWEST);
        assert_eq!(earlier.newest.back(), Some(&SegmentNo(64)));
        // What goes on cuts the half record off.
        drop(Journal::resume(&place, &earlier).unwrap());
        file.write_all(&record_of(SegmentNo(9))).unwrap();
        file.write_all(&record_of(SegmentNo(1000))).unwrap(); // behind the volume's end
        let earlier = read_here(&place, &subject(), &target).unwrap();
        assert!(earlier.done.contains(SegmentNo(9)) && earlier.done.len() == 12);
    }

    #[test]
    fn a_journal_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("journal");
        let target = identity(1 << 30, "a");
        assert!(matches!(read_here(&place, &subject(), &target), Err(Unusable::None(_))));
        begin(&place, &subject(), &target, false).unwrap();
        assert!(read_here(&place, &subject(), &target).is_ok());
        let other = Subject { point: "q".into(), ..subject() };
        assert!(matches!(read_here(&place, &other, &target), Err(Unusable::Other(_))));
        for other in [identity(1 << 30, "b"), identity(1 << 31, "a")] {
            let unusable = read_here(&place, &subject(), &other).unwrap_err();
            let error = unusable.explain("/dev/x");
            assert!(
                matches!(&error, Error::TargetRefused { why, .. } if why.contains("serial a")),
                "{error}"
            );
        }
        // A device of which nothing is known is not known again.
        let vague = Identity::Device { size_bytes: 1 << 30, marks: Default::default() };
        begin(&place, &subject(), &vague, false).unwrap();
        assert!(matches!(read_here(&place, &subject(), &vague), Err(Unusable::Target(_))));
        for junk in [&b""[..], b"{}\n", b"{\"point\":\"p\"", &[b'x'; 1 << 17]] {
            fs::write(&place, junk).unwrap();
            assert!(matches!(read_here(&place, &subject(), &target), Err(Unusable::None(_))));
        }
    }
}
