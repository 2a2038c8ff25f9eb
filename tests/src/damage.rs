//! Damage to the objects of a repository, as disks and people do it, and its repair.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workdir::files_under;

/// What an object is, by its place (`docs/FORMAT.md`, "Objects").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `config`
    Config,
    /// `keys/<id>`
    Key,
    /// `data/<xx>/<id>`
    Data,
    /// `meta/<xx>/<id>`
    Meta,
    /// `index/<id>`
    Index,
    /// `points/<id>`
    Point,
    /// `leases/<id>`
    Lease,
    /// `gc/<id>`
    Collection,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Config,
        Kind::Key,
        Kind::Data,
        Kind::Meta,
        Kind::Index,
        Kind::Point,
        Kind::Lease,
        Kind::Collection,
    ];

    /// Those that recovery points need.
    pub const NEEDED: [Kind; 6] = [Kind::Config, Kind::Key, Kind::Data, Kind::Meta, Kind::Index, Kind::Point];

    /// The objects of this kind, in the order of their names.
    pub fn objects(self, repo: &Path) -> Vec<PathBuf> {
        let prefix = match self {
            Self::Config => "config",
            Self::Key => "keys/",
            Self::Data => "data/",
            Self::Meta => "meta/",
            Self::Index => "index/",
            Self::Point => "points/",
            Self::Lease => "leases/",
            Self::Collection => "gc/",
        };
        let of_kind = |file: &PathBuf| file.to_str().is_some_and(|name| name.starts_with(prefix));
        files_under(repo).into_iter().filter(of_kind).map(|file| repo.join(file)).collect()
    }

    /// True for the two kinds that are read before a key is known: text with a digest instead of header and trailer.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Config | Self::Key)
    }
}

/// Where a bit flips.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    /// So many bytes from the start.
    Head(usize),
    /// So many bytes before the end; 1 is the last byte.
    Tail(usize),
    /// At this share of the length.
    Share(f64),
}

/// What happens to an object.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// Only the name is left.
    TruncateToZero,
    /// The last byte is gone.
    TruncateByOne,
    /// The second half is gone.
    TruncateHalf,
    /// Only so many bytes are left: 96 is a header.
    TruncateTo(usize),
    /// So many bytes are missing at the end: 32 is a trailer.
    TruncateBy(usize),
    /// A byte more than there should be.
    Extend,
    /// One bit.
    Flip(Place),
    /// Every byte of the middle third is zero, as after a lost write.
    ZeroMiddle,
    /// Gone.
    Delete,
    /// It has the contents of another object of its kind.
    Swap,
    /// It has the contents of the oldest object of its kind, as after a restore of old files over new ones.
    Older,
}

impl Action {
    /// The damage matrix's actions. The flips hit every field of headers and trailers, and the contents.
    pub fn all() -> Vec<Action> {
        let mut actions = vec![
            Self::TruncateToZero,
            Self::TruncateByOne,
            Self::TruncateHalf,
            Self::TruncateTo(96),
            Self::TruncateBy(32),
            Self::Extend,
            Self::ZeroMiddle,
            Self::Delete,
            Self::Swap,
            Self::Older,
        ];
        for head in [0, 8, 10, 11, 12, 14, 16, 33, 60, 90, 97] {
            actions.push(Self::Flip(Place::Head(head)));
        }
        for tail in [1, 10, 18, 22, 30, 33, 60] {
            actions.push(Self::Flip(Place::Tail(tail)));
        }
        for share in [0.25, 0.5, 0.75] {
            actions.push(Self::Flip(Place::Share(share)));
        }
        actions
    }

    /// One of each sort, for matrices with many commands.
    pub fn few() -> Vec<Action> {
        vec![
            Self::Delete,
            Self::TruncateToZero,
            Self::TruncateTo(96),
            Self::TruncateByOne,
            Self::Extend,
            Self::Older,
            Self::Flip(Place::Head(33)),
            Self::Flip(Place::Share(0.5)),
            Self::Flip(Place::Tail(1)),
        ]
    }
}

/// An object that was damaged; dropped, it is as before.
#[derive(Debug)]
pub struct Damaged {
    path: PathBuf,
    original: Vec<u8>,
    deleted: bool,
}

impl Damaged {
    /// Damages the object at `path`; `other` is what a swap puts in its place.
    pub fn new(path: &Path, action: Action, other: &[u8]) -> Self {
        let original = fs::read(path).unwrap();
        let deleted = action == Action::Delete;
        match changed(&original, action, other) {
            Some(bytes) => {
                assert_ne!(bytes, original, "{action:?} changes nothing in {}", path.display());
                replace(path, &bytes);
            }
            None => fs::remove_file(path).unwrap(),
        }
        Self { path: path.to_owned(), original, deleted }
    }

    /// Replaces the object by `bytes`.
    pub fn with(path: &Path, bytes: &[u8]) -> Self {
        let original = fs::read(path).unwrap();
        replace(path, bytes);
        Self { path: path.to_owned(), original, deleted: false }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        // the name of what was deleted may have been given to another object meanwhile: decisions are numbered
        if self.deleted && self.path.exists() {
            return;
        }
        replace(&self.path, &self.original);
    }
}

/// The bytes after `action`; `None` if the object is gone.
fn changed(original: &[u8], action: Action, other: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = original.to_vec();
    match action {
        Action::TruncateToZero => bytes.clear(),
        Action::TruncateByOne => bytes.truncate(original.len() - 1),
        Action::TruncateHalf => bytes.truncate(original.len() / 2),
        Action::TruncateTo(left) => bytes.truncate(left.min(original.len() - 1)),
        Action::TruncateBy(missing) => bytes.truncate(original.len() - missing),
        Action::Extend => bytes.push(0),
        Action::ZeroMiddle => bytes[original.len() / 3..original.len() * 2 / 3].fill(0),
        Action::Delete => return None,
        Action::Swap | Action::Older => bytes = other.to_vec(),
        Action::Flip(place) => {
            let at = match place {
                Place::Head(at) => at,
                Place::Tail(before) => original.len() - before,
                Place::Share(share) => (original.len() as f64 * share) as usize,
            };
            bytes[at] ^= 1 << (at % 8);
        }
    }
    Some(bytes)
}

/// A new file by rename, so that nobody who has the old one open or linked sees the change.
fn replace(path: &Path, bytes: &[u8]) {
    let temporary = path.with_extension("damage");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(&temporary, path).unwrap();
}

/// `object` as a program of format version `version` would have written it: checksums and digests are right.
pub fn with_version(object: &[u8], kind: Kind, version: u16) -> Vec<u8> {
    let mut bytes = object.to_vec();
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    if kind.is_plain() {
        // digest, then a MAC that nobody without the key can make: a version is told before the MAC is looked at
        let end = bytes.len() - 64;
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..end + 32].copy_from_slice(digest.as_bytes());
    } else {
        let sum = blake3::hash(&bytes[..88]);
        bytes[88..96].copy_from_slice(&sum.as_bytes()[..8]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_changes_something() {
        let original: Vec<u8> = (0..500u32).map(|n| (n % 251 + 1) as u8).collect();
        for action in Action::all() {
            assert_ne!(changed(&original, action, &[9; 40]), Some(original.clone()), "{action:?}");
        }
    }
}
