//! What a filesystem holds, and what of it a power cut leaves: the model, in memory, without FUSE.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use crate::rng::Rng;

/// Number of an inode; never used for another one.
pub type Ino = u64;

/// The top directory.
pub const ROOT: Ino = 1;

/// Bytes in a page: what is kept or forgotten as one, but for pages that are torn.
pub const PAGE_BYTES: usize = 4096;

/// A disk writes so many bytes whole or not at all.
const SECTOR_BYTES: usize = 512;

type Page = [u8; PAGE_BYTES];
type Entries = BTreeMap<OsString, Ino>;

/// Which promise the disk breaks, to see that the tests notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flaw {
    /// None: what was synced stays.
    #[default]
    None,
    /// `fsync` of files does nothing.
    FilesNotSynced,
    /// `fsync` of directories does nothing.
    DirectoriesNotSynced,
}

/// How likely it is, in percent, that a power cut leaves what was not synced, each kind apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Odds {
    /// A page that was written, or discarded.
    pub data: u64,
    /// The length of a file.
    pub sizes: u64,
    /// A name that was created, or came by a rename or a link.
    pub additions: u64,
    /// That a removed name is gone.
    pub removals: u64,
}

impl Odds {
    /// All that may be forgotten is forgotten.
    pub const NOTHING_STAYS: Odds = Odds { data: 0, sizes: 0, additions: 0, removals: 0 };

    /// Each kind never, sometimes or always.
    pub fn drawn(rng: &mut Rng) -> Self {
        let mut odds = || [0, 50, 100][rng.in_range(0..3) as usize];
        Self { data: odds(), sizes: odds(), additions: odds(), removals: odds() }
    }
}

/// Contents of a file. A page that is not there is zeros.
#[derive(Clone, Default)]
struct Contents {
    size_bytes: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

#[derive(Clone, Default)]
struct FileBody {
    live: Contents,
    durable: Contents,
    /// Pages that may differ.
    dirty: BTreeSet<u64>,
    /// Lengths that it had since it was synced.
    sizes: Vec<u64>,
}

#[derive(Clone, Default)]
struct DirBody {
    live: Entries,
    durable: Entries,
    /// What each name stood for since the directory was synced, one after the other.
    changes: BTreeMap<OsString, Vec<Option<Ino>>>,
}

#[derive(Clone)]
enum Body {
    File(FileBody),
    Dir(DirBody),
}

#[derive(Clone)]
struct Inode {
    mode: u32,
    changed: SystemTime,
    body: Body,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// True for a directory.
    pub is_dir: bool,
    /// Bytes; 0 for a directory.
    pub size_bytes: u64,
    /// Bytes of the pages that are there.
    pub stored_bytes: u64,
    /// Permissions.
    pub mode: u32,
    /// When it was last written.
    pub changed: SystemTime,
    /// Names of it; 2 for a directory.
    pub links: u32,
}

/// A name that moved: a journal has that as one transaction.
#[derive(Clone)]
struct Rename {
    ino: Ino,
    from: (Ino, OsString),
    to: (Ino, OsString),
}

/// The disk: what running programs see, and beside it what is on the medium.
#[derive(Clone)]
pub struct Disk {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    renames: Vec<Rename>,
    /// The promise that it breaks.
    pub flaw: Flaw,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Inode { mode: 0o755, changed: SystemTime::now(), body: Body::Dir(DirBody::default()) };
        Self { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, renames: Vec::new(), flaw: Flaw::None }
    }
}

type Answer<T> = Result<T, Errno>;

impl Disk {
    fn inode(&self, ino: Ino) -> Answer<&Inode> {
        self.inodes.get(&ino).ok_or(Errno::STALE)
    }

    fn file(&self, ino: Ino) -> Answer<&FileBody> {
        match &self.inode(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(Errno::ISDIR),
        }
    }

    fn dir(&self, ino: Ino) -> Answer<&DirBody> {
        match &self.inode(ino)?.body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Answer<&mut FileBody> {
        let inode = self.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        inode.changed = SystemTime::now();
        match &mut inode.body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(Errno::ISDIR),
        }
    }

    /// Changes what a name stands for.
    fn set_name(&mut self, dir: Ino, name: &OsStr, ino: Option<Ino>) -> Answer<()> {
        let inode = self.inodes.get_mut(&dir).ok_or(Errno::STALE)?;
        let Body::Dir(body) = &mut inode.body else { return Err(Errno::NOTDIR) };
        inode.changed = SystemTime::now();
        match ino {
            Some(ino) => body.live.insert(name.to_owned(), ino),
            None => body.live.remove(name),
        };
        body.changes.entry(name.to_owned()).or_default().push(ino);
        Ok(())
    }

    /// The inode that a name stands for.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Answer<Ino> {
        self.dir(dir)?.live.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Names in a directory.
    pub fn entries(&self, dir: Ino) -> Answer<Vec<(OsString, Ino, bool)>> {
        let is_dir = |ino: &Ino| self.dir(*ino).is_ok();
        Ok(self.dir(dir)?.live.iter().map(|(name, ino)| (name.clone(), *ino, is_dir(ino))).collect())
    }

    /// Attributes.
    pub fn attr(&self, ino: Ino) -> Answer<Attr> {
        let inode = self.inode(ino)?;
        let (is_dir, size_bytes, pages) = match &inode.body {
            Body::Dir(_) => (true, 0, 0),
            Body::File(file) => (false, file.live.size_bytes, file.live.pages.len()),
        };
        Ok(Attr {
            ino,
            is_dir,
            size_bytes,
            stored_bytes: (pages * PAGE_BYTES) as u64,
            mode: inode.mode,
            changed: inode.changed,
            links: if is_dir { 2 } else { self.links(ino) },
        })
    }

    fn links(&self, ino: Ino) -> u32 {
        let in_dir = |inode: &Inode| match &inode.body {
            Body::Dir(dir) => dir.live.values().filter(|entry| **entry == ino).count() as u32,
            Body::File(_) => 0,
        };
        self.inodes.values().map(in_dir).sum()
    }

    /// Makes an empty file or directory.
    pub fn make(&mut self, dir: Ino, name: &OsStr, mode: u32, is_dir: bool) -> Answer<Ino> {
        if self.dir(dir)?.live.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let body = if is_dir { Body::Dir(DirBody::default()) } else { Body::File(FileBody::default()) };
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, Inode { mode, changed: SystemTime::now(), body });
        self.set_name(dir, name, Some(ino))?;
        Ok(ino)
    }

    /// Removes the name of a file, or with `is_dir` that of an empty directory.
    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> Answer<()> {
        let ino = self.lookup(dir, name)?;
        match (&self.inode(ino)?.body, is_dir) {
            (Body::Dir(body), true) if !body.live.is_empty() => return Err(Errno::NOTEMPTY),
            (Body::Dir(_), false) => return Err(Errno::ISDIR),
            (Body::File(_), true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.set_name(dir, name, None)
    }

    /// Renames; with `exclusive`, only to a name that is free.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), exclusive: bool) -> Answer<()> {
        let ino = self.lookup(from.0, from.1)?;
        match self.lookup(to.0, to.1) {
            Ok(_) if exclusive => return Err(Errno::EXIST),
            Ok(old) if old == ino => return Ok(()),
            Ok(old) => match (&self.inode(old)?.body, &self.inode(ino)?.body) {
                (Body::Dir(body), Body::Dir(_)) if !body.live.is_empty() => return Err(Errno::NOTEMPTY),
                (Body::Dir(_), Body::File(_)) => return Err(Errno::ISDIR),
                (Body::File(_), Body::Dir(_)) => return Err(Errno::NOTDIR),
                _ => {}
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        self.set_name(to.0, to.1, Some(ino))?;
        self.set_name(from.0, from.1, None)?;
        self.renames.push(Rename { ino, from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()) });
        Ok(())
    }

    /// Gives a file another name.
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Answer<()> {
        self.file(ino)?;
        if self.dir(dir)?.live.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.set_name(dir, name, Some(ino))
    }

    /// Sets permissions. They are not part of what is forgotten.
    pub fn set_mode(&mut self, ino: Ino, mode: u32) -> Answer<()> {
        self.inodes.get_mut(&ino).ok_or(Errno::STALE)?.mode = mode;
        Ok(())
    }

    /// Sets the time of the last change. It is not part of what is forgotten.
    pub fn set_changed(&mut self, ino: Ino, changed: SystemTime) -> Answer<()> {
        self.inodes.get_mut(&ino).ok_or(Errno::STALE)?.changed = changed;
        Ok(())
    }

    /// Reads up to `bytes` at `offset`; less at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, bytes: usize) -> Answer<Vec<u8>> {
        let contents = &self.file(ino)?.live;
        let left = contents.size_bytes.saturating_sub(offset);
        let mut out = vec![0; left.min(bytes as u64) as usize];
        for (page, in_page, in_out) in pieces(offset, out.len()) {
            if let Some(stored) = contents.pages.get(&page) {
                let bytes = in_out.len();
                out[in_out].copy_from_slice(&stored[in_page..in_page + bytes]);
            }
        }
        Ok(out)
    }

    /// Writes `bytes` at `offset`.
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Answer<()> {
        let file = self.file_mut(ino)?;
        for (page, in_page, in_bytes) in pieces(offset, bytes.len()) {
            let stored = file.live.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            let source = &bytes[in_bytes];
            Arc::make_mut(stored)[in_page..in_page + source.len()].copy_from_slice(source);
            file.dirty.insert(page);
        }
        file.grow(offset + bytes.len() as u64);
        Ok(())
    }

    /// Cuts a file or lengthens it by zeros.
    pub fn set_size(&mut self, ino: Ino, size_bytes: u64) -> Answer<()> {
        let file = self.file_mut(ino)?;
        if size_bytes < file.live.size_bytes {
            file.zero(size_bytes, file.live.size_bytes);
        }
        file.live.size_bytes = size_bytes;
        file.sizes.push(size_bytes);
        Ok(())
    }

    /// Makes a range read as zeros without changing the length.
    pub fn punch(&mut self, ino: Ino, offset: u64, bytes: u64) -> Answer<()> {
        let file = self.file_mut(ino)?;
        file.zero(offset, (offset + bytes).min(file.live.size_bytes));
        Ok(())
    }

    /// Lengthens a file so that it has the range.
    pub fn allocate(&mut self, ino: Ino, offset: u64, bytes: u64) -> Answer<()> {
        self.file_mut(ino)?.grow(offset + bytes);
        Ok(())
    }

    /// `fsync` or `fdatasync` of a file: contents and length are on the medium. Its name need not be.
    pub fn sync_file(&mut self, ino: Ino) -> Answer<()> {
        let flaw = self.flaw;
        let inode = self.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        match &mut inode.body {
            Body::File(file) if flaw != Flaw::FilesNotSynced => file.sync(),
            _ => {}
        }
        Ok(())
    }

    /// `fsync` of a directory: its names are on the medium. What they stand for need not be.
    pub fn sync_dir(&mut self, ino: Ino) -> Answer<()> {
        let flaw = self.flaw;
        let inode = self.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        let Body::Dir(dir) = &mut inode.body else { return Err(Errno::NOTDIR) };
        if flaw != Flaw::DirectoriesNotSynced {
            dir.sync();
            self.renames.retain(|rename| rename.from.0 != ino && rename.to.0 != ino);
        }
        Ok(())
    }

    /// Everything is on the medium, as after a clean unmount.
    pub fn settle(&mut self) {
        for inode in self.inodes.values_mut() {
            match &mut inode.body {
                Body::File(file) => file.sync(),
                Body::Dir(dir) => dir.sync(),
            }
        }
        self.renames.clear();
        self.sweep();
    }

    /// What is there after the power was cut now. Of what was not synced, each page, length and name is what it was
    /// when it was last synced, or what it became since;
    /// `odds` says how likely either is.
    pub fn after_power_cut(&self, rng: &mut Rng, odds: Odds) -> Disk {
        let mut left = self.clone();
        for inode in left.inodes.values_mut() {
            match &mut inode.body {
                Body::File(file) => file.live = file.after_power_cut(rng, odds),
                Body::Dir(dir) => dir.live = dir.after_power_cut(rng, odds),
            }
        }
        // A journal has both sides of a rename or neither: a file may be there under both names, never under none.
        for rename in &self.renames {
            let stands = |dir: Ino, name: &OsStr| left.lookup(dir, name) == Ok(rename.ino);
            let was =
                self.dir(rename.from.0).is_ok_and(|dir| dir.durable.get(&rename.from.1) == Some(&rename.ino));
            if was
                && !stands(rename.to.0, &rename.to.1)
                && left.lookup(rename.from.0, &rename.from.1).is_err()
            {
                let _ = left.set_name(rename.from.0, &rename.from.1, Some(rename.ino));
            }
        }
        left.settle();
        left
    }

    /// Drops inodes that no name leads to.
    fn sweep(&mut self) {
        let mut reached = BTreeSet::from([ROOT]);
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            let Ok(body) = self.dir(dir) else { continue };
            for ino in body.live.values() {
                if reached.insert(*ino) {
                    dirs.push(*ino);
                }
            }
        }
        self.inodes.retain(|ino, _| reached.contains(ino));
    }
}

impl FileBody {
    fn grow(&mut self, end: u64) {
        if end > self.live.size_bytes {
            self.live.size_bytes = end;
            self.sizes.push(end);
        }
    }

    fn zero(&mut self, from: u64, to: u64) {
        for (page, in_page, range) in pieces(from, to.saturating_sub(from) as usize) {
            if range.len() == PAGE_BYTES {
                self.live.pages.remove(&page);
            } else if let Some(stored) = self.live.pages.get_mut(&page) {
                Arc::make_mut(stored)[in_page..in_page + range.len()].fill(0);
            }
            self.dirty.insert(page);
        }
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            match self.live.pages.get(&page) {
                Some(stored) => self.durable.pages.insert(page, stored.clone()),
                None => self.durable.pages.remove(&page),
            };
        }
        self.durable.size_bytes = self.live.size_bytes;
        self.sizes.clear();
    }

    fn after_power_cut(&self, rng: &mut Rng, odds: Odds) -> Contents {
        let mut left = self.durable.clone();
        for page in &self.dirty {
            let (old, new) = (self.durable.pages.get(page), self.live.pages.get(page));
            if !rng.percent(odds.data) {
                continue;
            }
            let mut stored = old.map_or([0; PAGE_BYTES], |page| **page);
            // one page of eight is torn between sectors
            let torn = odds.data < 100 && rng.percent(12);
            for at in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
                if !torn || rng.percent(50) {
                    let sector = at..at + SECTOR_BYTES;
                    match new {
                        Some(new) => stored[sector.clone()].copy_from_slice(&new[sector]),
                        None => stored[sector].fill(0),
                    }
                }
            }
            left.pages.insert(*page, Arc::new(stored));
        }
        if let Some(last) = self.sizes.len().checked_sub(1)
            && rng.percent(odds.sizes)
        {
            let which = if odds.sizes == 100 { last as u64 } else { rng.in_range(0..last as u64 + 1) };
            left.size_bytes = self.sizes[which as usize];
        }
        left.cut_behind_the_end();
        left
    }
}

impl Contents {
    /// Nothing is behind the end: it would be seen if the file grew.
    fn cut_behind_the_end(&mut self) {
        let (whole, rest) =
            (self.size_bytes / PAGE_BYTES as u64, (self.size_bytes % PAGE_BYTES as u64) as usize);
        self.pages.retain(|page, _| *page < whole || (*page == whole && rest > 0));
        if let Some(stored) = self.pages.get_mut(&whole) {
            Arc::make_mut(stored)[rest..].fill(0);
        }
    }
}

impl DirBody {
    fn sync(&mut self) {
        self.durable = self.live.clone();
        self.changes.clear();
    }

    fn after_power_cut(&self, rng: &mut Rng, odds: Odds) -> Entries {
        let mut left = self.durable.clone();
        for (name, states) in &self.changes {
            let Some(last) = states.last() else { continue };
            let percent = if last.is_some() { odds.additions } else { odds.removals };
            if !rng.percent(percent) {
                continue;
            }
            let which =
                if percent == 100 { states.len() - 1 } else { rng.in_range(0..states.len() as u64) as usize };
            match states[which] {
                Some(ino) => left.insert(name.clone(), ino),
                None => left.remove(name),
            };
        }
        left
    }
}

/// The pages that `bytes` bytes at `offset` are in: number, place in it, place in the bytes.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == bytes {
            return None;
        }
        let place = offset + at as u64;
        let in_page = (place % PAGE_BYTES as u64) as usize;
        let end = bytes.min(at + PAGE_BYTES - in_page);
        let piece = (place / PAGE_BYTES as u64, in_page, at..end);
        at = end;
        Some(piece)
    })
}
