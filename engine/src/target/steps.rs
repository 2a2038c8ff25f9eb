//! A target is opened in steps, and only the last one changes anything: [`probe`] looks at what the path is,
//! [`Probed::lock`] opens it and keeps others off, [`Locked::check`] refuses what would destroy data unasked, and
//! [`Checked::prepare`] empties a file and gives it its size.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Identity, Target, TargetKind, TargetOptions, claim, device, file, refused};
use crate::error::{Error, Result};

/// What a path is, before anything is opened.
#[derive(Debug)]
pub struct Probed {
    path: PathBuf,
    name: String,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Nothing,
    File,
    Device { rdev: u64 },
}

/// Open, and this restore's alone. A file that was not there is: empty.
#[derive(Debug)]
pub struct Locked {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) name: String,
    kind: TargetKind,
    /// Length of a file, size of a device.
    pub(super) held_bytes: u64,
}

/// What becomes of what a target holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Contents {
    /// It is a file, and emptied.
    Emptied,
    /// It stays where it is not written.
    Kept,
    /// There is none: all of the device reads as zeros.
    Zeros,
}

/// May be written.
#[derive(Debug)]
pub struct Checked {
    pub(super) locked: Locked,
    options: TargetOptions,
    contents: Contents,
}

/// Looks at what `path` is. Fails with [`Error::TargetRefused`] where it can be no target, or is in use.
pub fn probe(path: &Path) -> Result<Probed> {
    let name = path.display().to_string();
    let found = match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Found::Device { rdev: meta.rdev() },
        Ok(meta) if meta.is_file() => Found::File,
        Ok(_) => return Err(refused(&name, "it is neither a block device nor a regular file")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
        Err(e) => return Err(Error::io("open", &name)(e)),
    };
    if let Found::Device { rdev } = found {
        device::refuse_uses(&name, rdev)?;
    }
    Ok(Probed { path: path.into(), name, found })
}

impl Probed {
    /// True if there is something.
    pub fn exists(&self) -> bool {
        !matches!(self.found, Found::Nothing)
    }

    /// What it is, or will be.
    pub fn kind(&self) -> TargetKind {
        match self.found {
            Found::Device { .. } => TargetKind::Device,
            Found::File | Found::Nothing => TargetKind::File,
        }
    }

    /// Opens it for writing, and makes a file that is not there unless it `must_exist`. Refuses what another restore or
    /// program is using.
    pub fn lock(self, must_exist: bool) -> Result<Locked> {
        let kind = self.kind();
        let Self { path, name, found } = self;
        let file = match found {
            Found::Nothing if must_exist => {
                return Err(refused(
                    &name,
                    "it does not exist, so it holds no state of the volume to start from",
                ));
            }
            Found::Nothing => file::create(&path, &name)?,
            Found::File => file::open(&path, &name)?,
            Found::Device { rdev } => device::open(&path, &name, rdev)?,
        };
        claim::lock(&name, &file)?;
        // Not before it is locked: who had it until now may have written.
        let held_bytes = match kind {
            TargetKind::File => file.metadata().map_err(Error::io("inspect", &name))?.len(),
            TargetKind::Device => device::size_bytes(&file, &name)?,
        };
        Ok(Locked { file, path, name, kind, held_bytes })
    }
}

impl Locked {
    /// What it is apart from its name.
    pub fn identity(&self) -> Result<Identity> {
        match self.kind {
            TargetKind::File => Identity::of_file(&self.file, &self.name),
            TargetKind::Device => Identity::of_device(&self.file, &self.name, self.held_bytes),
        }
    }

    /// The descriptor, to look at what it holds. Reads of a device have to be aligned to 4 KiB.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of a file, size of a device.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What it is.
    pub fn kind(&self) -> TargetKind {
        self.kind
    }

    /// Refuses a target that is too small, or holds what nobody said may be overwritten.
    pub fn check(self, options: TargetOptions) -> Result<Checked> {
        let contents = match self.kind {
            TargetKind::File => file::check(&self, options)?,
            TargetKind::Device => device::check(&self, options)?,
        };
        Ok(Checked { locked: self, options, contents })
    }
}

impl Checked {
    /// True if all of it will read as zeros once it is prepared.
    pub fn will_be_fresh(&self) -> bool {
        self.contents != Contents::Kept
    }

    /// Empties a file whose contents go, and gives it the volume's size, rounded up to 4 KiB.
    pub fn prepare(self) -> Result<Target> {
        let fresh = self.will_be_fresh();
        let Self { locked, options, contents } = self;
        let kind = locked.kind;
        let (file, path) = match kind {
            TargetKind::File => file::prepare(locked, options, contents)?,
            TargetKind::Device => device::prepare(locked, options),
        };
        Ok(Target::new(file, path, kind, options, fresh))
    }
}
