//! The disk as a filesystem: what FUSE asks is answered by [`Disk`], one request at a time. At a given write-like
//! request everything stops, as the power does.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::disk::{Attr, Disk, Ino};

/// The kernel keeps nothing: it asks each time.
const KEPT: Duration = Duration::ZERO;

/// Longer writes come in several requests.
const WRITE_BYTES_MAX: u32 = 128 << 10;

/// Past the page cache, so that each write and read comes here.
const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

/// The mounted disk, shared with the test that cuts its power.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) disk: Disk,
    /// Write-like requests so far.
    pub(super) requests: u64,
    /// The request that is the last.
    pub(super) stop_at: Option<u64>,
    /// Every request fails.
    pub(super) is_stopped: bool,
    listings: HashMap<u64, Vec<(OsString, Ino, bool)>>,
    next_listing: u64,
}

impl Shared {
    pub(super) fn new(disk: Disk, stop_at: Option<u64>) -> Arc<Self> {
        let state = State { disk, stop_at, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), stopped: Condvar::new() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has stopped, or for so long; true if it has.
    pub(super) fn wait_stopped(&self, patience: Duration) -> bool {
        let waited = self.stopped.wait_timeout_while(self.state(), patience, |state| !state.is_stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }
}

/// The filesystem.
pub(super) struct Layer(pub(super) Arc<Shared>);

impl Layer {
    /// Answers from the disk.
    fn ask<T>(&self, question: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, FuseErrno> {
        let mut state = self.0.state();
        if state.is_stopped {
            return Err(FuseErrno::EIO);
        }
        question(&mut state).map_err(|error| FuseErrno::from_i32(error.raw_os_error()))
    }

    /// Changes the disk. If this is the request at which it stops, the change was made and nobody hears of it.
    fn change<T>(&self, change: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Result<T, FuseErrno> {
        let answer = self.ask(|state| change(&mut state.disk));
        self.count()?;
        answer
    }

    /// Syncs. If this is the request at which the disk stops, it has not yet been done.
    fn sync(&self, sync: impl FnOnce(&mut Disk) -> Result<(), Errno>) -> Result<(), FuseErrno> {
        self.count()?;
        self.ask(|state| sync(&mut state.disk))
    }

    fn count(&self) -> Result<(), FuseErrno> {
        let mut state = self.0.state();
        if state.is_stopped {
            return Err(FuseErrno::EIO);
        }
        state.requests += 1;
        if state.stop_at == Some(state.requests) {
            state.is_stopped = true;
            self.0.stopped.notify_all();
            return Err(FuseErrno::EIO);
        }
        Ok(())
    }

    fn attr(&self, ino: Ino) -> Result<FileAttr, FuseErrno> {
        self.ask(|state| state.disk.attr(ino)).map(|attr| file_attr(&attr))
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size_bytes,
        blocks: attr.stored_bytes / 512,
        atime: attr.changed,
        mtime: attr.changed,
        ctime: attr.changed,
        crtime: attr.changed,
        kind: if attr.is_dir { FileType::Directory } else { FileType::RegularFile },
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Sends an answer that has nothing in it.
fn done(reply: ReplyEmpty, answer: Result<(), FuseErrno>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry, answer: Result<FileAttr, FuseErrno>) {
    match answer {
        Ok(attr) => reply.entry(&KEPT, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Layer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Short writes: more moments at which the power may go.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.ask(|state| state.disk.lookup(parent.0, name)).and_then(|ino| self.attr(ino));
        entry(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Ok(attr) => reply.attr(&KEPT, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(|disk| {
            if let Some(size_bytes) = size {
                disk.set_size(ino.0, size_bytes)?;
            }
            if let Some(mode) = mode {
                disk.set_mode(ino.0, mode)?;
            }
            if let Some(time) = mtime {
                let time = match time {
                    TimeOrNow::SpecificTime(time) => time,
                    TimeOrNow::Now => SystemTime::now(),
                };
                disk.set_changed(ino.0, time)?;
            }
            Ok(())
        });
        match changed.and_then(|()| self.attr(ino.0)) {
            Ok(attr) => reply.attr(&KEPT, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.change(|disk| disk.make(parent.0, name, mode, true));
        entry(reply, made.and_then(|ino| self.attr(ino)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.change(|disk| disk.make(parent.0, name, mode, false));
        match made.and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.created(&KEPT, &attr, Generation(0), FileHandle(0), OPENED),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.change(|disk| disk.remove(parent.0, name, false)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.change(|disk| disk.remove(parent.0, name, true)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let exclusive = flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(FuseErrno::EINVAL);
        }
        done(reply, self.change(|disk| disk.rename((parent.0, name), (newparent.0, newname), exclusive)));
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let linked = self.change(|disk| disk.link(ino.0, newparent.0, newname));
        entry(reply, linked.and_then(|()| self.attr(ino.0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.attr(ino.0) {
            Ok(_) => reply.opened(FileHandle(0), OPENED),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.ask(|state| state.disk.read(ino.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change(|disk| disk.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let zeroing = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !(mode - zeroing - FallocateFlags::KEEP_SIZE).is_empty() {
            return reply.error(FuseErrno::EOPNOTSUPP);
        }
        done(
            reply,
            self.change(|disk| {
                if !mode.contains(FallocateFlags::KEEP_SIZE) {
                    disk.allocate(ino.0, offset, length)?;
                }
                if mode.intersects(zeroing) { disk.punch(ino.0, offset, length) } else { Ok(()) }
            }),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close() promises nothing
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.sync(|disk| disk.sync_file(ino.0)));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.sync(|disk| disk.sync_dir(ino.0)));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The names as they are now: whoever removes them while reading misses none.
        let opened = self.ask(|state| {
            let entries = state.disk.entries(ino.0)?;
            state.next_listing += 1;
            state.listings.insert(state.next_listing, entries);
            Ok(state.next_listing)
        });
        match opened {
            Ok(listing) => reply.opened(FileHandle(listing), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.ask(|state| state.listings.get(&fh.0).cloned().ok_or(Errno::BADF)) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        let dots = [".", ".."].map(|name| (OsString::from(name), ino.0, true));
        for (at, (name, ino, is_dir)) in dots.into_iter().chain(entries).enumerate().skip(offset as usize) {
            let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.state().listings.remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, free) = (16 << 20, 15 << 20);
        reply.statfs(blocks, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
