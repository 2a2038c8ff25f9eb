//! A qcow2 image as a source: the disk that it holds, with all that its backing files hold.
//!
//! ```text
//!  header ─► first-level table ─► second-level tables ─► clusters of data, compressed ones, zeros, or
//!            (512 MiB an entry,    (a cluster an entry)   nothing: then the backing file is asked
//!             at 64 KiB a cluster)
//! ```
//!
//! Tables are read in blocks and some are kept, whatever their size, so that no image makes memory grow. Everything in
//! an image may be wrong, or meant to do harm: places are checked against the file's end before anything is read.

pub mod chain;
mod compressed;
pub mod header;
pub mod image;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use self::chain::{Chain, Layer};
use self::image::Kind;
use super::watch::{FileState, Seen};
use super::{Fetched, OpenFile, RangeSource, Source, SourceKind, Watch, check_size};
use crate::error::{Error, Result};
use crate::limits::IO_ALIGN;

const ALIGN: u64 = IO_ALIGN as u64;
/// Threads that fetch at a time: each holds a segment of 4 MiB at most.
const PARALLEL: usize = 4;
/// Most that [`Source::next_data`] looks ahead.
const LOOK_BYTES: u64 = 1 << 30;

/// A qcow2 image, opened read-only.
pub struct Qcow2Source {
    disk: Arc<Disk>,
    snapshots: u32,
    force_live: bool,
}

impl Qcow2Source {
    /// Opens the image at `path` with its backing files.
    ///
    /// Fails with [`Error::SourceRefused`] if a file is missing, in use by a writer (unless `force_live` accepts that),
    /// or of a kind that is not read: encrypted, marked as dirty or corrupt, with features that are not known.
    pub fn open(path: &Path, force_live: bool) -> Result<Self> {
        let Chain { layers, files } = Chain::open(path, force_live)?;
        let name = path.display().to_string();
        let size_bytes = layers.first().map_or(0, Layer::size_bytes);
        check_size(&name, size_bytes)?;
        let snapshots = match layers.first() {
            Some(Layer::Qcow2(image)) => image.header().snapshots,
            _ => 0,
        };
        Ok(Self { disk: Arc::new(Disk { name, size_bytes, layers, files }), snapshots, force_live })
    }
}

/// The disk in an image.
struct Disk {
    name: String,
    size_bytes: u64,
    layers: Vec<Layer>,
    files: Vec<Arc<OpenFile>>,
}

/// A run of bytes of a disk.
struct Run {
    /// The layer that has them and where; `None`: zeros.
    found: Option<(usize, Kind)>,
    len: u64,
}

impl Disk {
    /// Where the bytes at `at` are, and for how many of the next `limit` bytes that goes on.
    fn run(&self, at: u64, limit: u64) -> Result<Run> {
        let mut len = limit;
        for (number, layer) in self.layers.iter().enumerate() {
            // A backing file may be shorter than what leans on it: behind its end there are zeros.
            let size_bytes = layer.size_bytes();
            if at >= size_bytes {
                break;
            }
            let extent = layer.extent(at, len.min(size_bytes - at))?;
            len = extent.len;
            match extent.kind {
                Kind::Unallocated => {}
                Kind::Zero => return Ok(Run { found: None, len }),
                kind => return Ok(Run { found: Some((number, kind)), len }),
            }
        }
        Ok(Run { found: None, len })
    }

    /// Reads the bytes of a run that are not zeros.
    fn read(&self, layer: usize, kind: Kind, len: u64, cluster: &mut Vec<u8>) -> Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        match (&self.layers[layer], kind) {
            (layer, Kind::Data(offset)) => layer.read_data(&mut bytes, offset)?,
            (Layer::Qcow2(image), Kind::Compressed(place)) => {
                image.read_compressed(&place, cluster)?;
                let from = place.within as usize;
                let part = cluster.get(from..from + bytes.len());
                bytes.copy_from_slice(part.ok_or_else(|| self.wrong("a run behind its cluster"))?);
            }
            _ => return Err(self.wrong("a run of nothing was to be read")),
        }
        Ok(Bytes::from(bytes))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Invalid { what: format!("internal error: {}: {what}", self.name) }
    }
}

impl RangeSource for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched> {
        let mut parts = Vec::new();
        let mut cluster = Vec::new();
        for range in ranges {
            // What is read is in whole blocks.
            let start = offset_bytes + u64::from(range.start) / ALIGN * ALIGN;
            let end = (offset_bytes + u64::from(range.end).next_multiple_of(ALIGN)).min(self.size_bytes);
            let mut at = start;
            while at < end {
                let run = self.run(at, end - at)?;
                if let Some((layer, kind)) = run.found {
                    let bytes = self.read(layer, kind, run.len, &mut cluster)?;
                    parts.push(((at - offset_bytes) as u32, bytes));
                }
                at += run.len;
            }
        }
        Ok(Fetched { parts, kept: Vec::new(), held: Box::new(()) })
    }
}

impl Source for Qcow2Source {
    fn name(&self) -> &str {
        &self.disk.name
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.disk.size_bytes)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }

    fn logical_block_bytes(&self) -> u32 {
        1
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let size_bytes = self.disk.size_bytes;
        let mut at = from;
        let mut start = None;
        while at < size_bytes {
            let run = self.disk.run(at, (size_bytes - at).min(LOOK_BYTES))?;
            match (run.found, start) {
                (Some(_), None) => start = Some(at),
                (None, Some(_)) => break,
                _ => {}
            }
            at += run.len;
            if start.is_some_and(|start| at - start >= LOOK_BYTES) {
                break;
            }
        }
        // Clusters may be smaller than blocks.
        Ok(start.map(|start| (start / ALIGN * ALIGN).max(from)..at.next_multiple_of(ALIGN).min(size_bytes)))
    }

    /// That of all files of the chain.
    fn identity(&self) -> Option<String> {
        chain::identity(&self.disk.files)
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(self.disk.clone())
    }

    fn watch(&self) -> Option<Watch> {
        let files = self.disk.files.iter();
        let states: Option<Vec<(Arc<OpenFile>, FileState)>> =
            files.map(|file| Some((file.clone(), FileState::of(&file.file.metadata().ok()?)))).collect();
        let states = states?;
        let look = move || {
            let seen = states.iter().map(|(file, state)| (file, state.look(&file.file)));
            let worst = |(file, seen): (&Arc<OpenFile>, Seen)| match seen {
                Seen::Changed(what) => Seen::Changed(format!("{}: {what}", file.name)),
                Seen::Touched(what) => Seen::Touched(format!("{}: {what}", file.name)),
                Seen::Same => Seen::Same,
            };
            let found: Vec<Seen> = seen.map(worst).filter(|seen| *seen != Seen::Same).collect();
            let changed = found.iter().find(|seen| matches!(seen, Seen::Changed(_)));
            changed.or(found.first()).cloned().unwrap_or(Seen::Same)
        };
        Some(Watch::new(self.name(), self.force_live, look))
    }

    fn container(&self) -> Option<&'static str> {
        Some("qcow2")
    }

    fn notes(&self) -> Vec<String> {
        match self.snapshots {
            0 => Vec::new(),
            count => vec![format!(
                "{} holds {count} snapshots of its own, which are not backed up: the disk as it is now is",
                self.disk.name
            )],
        }
    }
}
