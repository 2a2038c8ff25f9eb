//! How far verifications of a repository came on this machine: a small file in the state directory. It is a hint:
//! without it, or if it does not fit, a verification begins at the beginning.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::problems::Listed;
use crate::error::{Error, Result};
use crate::id::ObjectId;
use crate::repo::Repository;

const VERSION: u32 = 1;

/// What is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cursor {
    version: u32,
    /// The last pack that verifications of samples read: the next one goes on behind it.
    pub sampled: Option<String>,
    /// A verification that was stopped.
    pub unfinished: Option<Unfinished>,
}

/// A verification that was stopped: what it was of, how far it came, and what it found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unfinished {
    /// It read data.
    pub read_data: bool,
    /// The recovery points it was asked for; all, if empty.
    pub points: Vec<String>,
    /// The last pack, in the order of names, up to which all were checked.
    pub pack: Option<String>,
    /// All packs were.
    pub packs_done: bool,
    /// The recovery points whose manifests were walked.
    pub walked: Vec<String>,
    /// Counters of the report.
    pub nodes: u64,
    /// Counters of the report.
    pub chunks: u64,
    /// Counters of the report.
    pub packs: u64,
    /// Counters of the report.
    pub read_bytes: u64,
    /// Counters of the report.
    pub archived: (u64, u64),
    /// Problems that are listed.
    pub problems: Vec<Listed>,
    /// All of them.
    pub problem_count: u64,
    /// Packs that are shorter than they should be: name and bytes that are there.
    pub short: Vec<(String, u64)>,
    /// Packs with frames that do not decode, and where those begin.
    pub bad: Vec<(String, Vec<u32>)>,
    /// Who is hurt, of the points that were walked.
    pub hurt: Vec<KeptHurt>,
}

/// What is kept of a volume that is hurt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptHurt {
    /// Point, its name, volume.
    pub names: (String, String, String),
    /// Begin and end of each range that is listed.
    pub ranges: Vec<(u64, u64)>,
    /// How many there are, and their bytes.
    pub counts: (u64, u64),
}

/// The file.
pub struct CursorFile {
    path: PathBuf,
}

impl CursorFile {
    /// That of a repository.
    pub fn of(repo: &Repository, state_dir: &Path) -> Self {
        Self { path: state_dir.join(&repo.config().repository_id).join("verify.json") }
    }

    /// What it says; nothing if it is not there or of no use.
    pub fn read(&self) -> Cursor {
        let Ok(bytes) = fs::read(&self.path) else { return Cursor::default() };
        match serde_json::from_slice::<Cursor>(&bytes) {
            Ok(cursor) if cursor.version == VERSION => cursor,
            _ => {
                tracing::warn!("{}: not understood, so it is not used", self.path.display());
                Cursor::default()
            }
        }
    }

    /// Replaces what it says.
    pub fn write(&self, cursor: &Cursor) -> Result<()> {
        let cursor = Cursor { version: VERSION, ..cursor.clone() };
        let json = serde_json::to_vec(&cursor)
            .map_err(|e| Error::Invalid { what: format!("cannot be written as JSON: {e}") })?;
        let new = self.path.with_extension("new");
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(Error::io("create", dir.display()))?;
        fs::write(&new, &json).map_err(Error::io("write", new.display()))?;
        fs::rename(&new, &self.path).map_err(Error::io("rename", new.display()))
    }
}

/// A name of a pack.
pub fn pack_of(hex: Option<&String>) -> Option<ObjectId> {
    hex.and_then(|hex| ObjectId::from_hex(hex))
}
