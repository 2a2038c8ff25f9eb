//! Whole files written so that they survive a power cut: the local store's way to write packs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel as sync_channel;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::aligned::AlignedBuf;
use super::cursor::Cursor;
use super::engine::IoEngine;
use super::file::{OpenFile, clear_direct, refuses_direct, set_direct};
use super::slots::{Slot, Slots};
use super::uring::{self, SharedBuf};
use crate::limits::IO_ALIGN;

/// Bytes in one write: large enough for the device's full rate, small enough that several are in flight for one file.
const PIECE_BYTES: u32 = 4 << 20;

/// Writes files with O_DIRECT and fsync, for any number of threads at once.
pub struct DurableWriter {
    /// `None`: each caller writes by itself.
    ring: Option<Ring>,
    direct: AtomicBool,
}

struct Ring {
    /// `None` only while dropped, which is how the thread learns of it.
    requests: Option<async_channel::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    file: Arc<OpenFile>,
    buf: AlignedBuf,
    /// Bytes to write, a multiple of 4 KiB.
    len: u32,
    reply: sync_channel::Sender<(io::Result<()>, AlignedBuf)>,
}

impl DurableWriter {
    /// A writer with at most `depth` pieces of 4 MiB in flight over all files. With [`IoEngine::Uring`] one thread is
    /// started, which submits for all callers; if its ring is refused, callers write by themselves.
    pub fn new(engine: IoEngine, depth: usize) -> Self {
        let ring = match engine {
            IoEngine::Uring => {
                Ring::start(depth).inspect_err(|e| tracing::warn!("io_uring for the store: {e}")).ok()
            }
            IoEngine::Pread => None,
        };
        Self { ring, direct: AtomicBool::new(true) }
    }

    /// False once a filesystem has refused O_DIRECT. Files then go through the page cache, and are as durable.
    pub fn direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Creates `path`, which must not exist, with the first `len` bytes of `buf`, and returns when they are on the
    /// medium. The directory is not synced: the caller does that after its rename.
    ///
    /// The buffer comes back in any case, with the bytes between `len` and the next 4 KiB border zeroed. After an
    /// error the file is gone again, unless it was there before (`AlreadyExists`). Errors are those of the system
    /// calls; `InvalidInput` if `len` is more than the buffer holds, or 4 GiB.
    pub fn write_file(&self, path: &Path, mut buf: AlignedBuf, len: usize) -> (io::Result<()>, AlignedBuf) {
        let border = match u32::try_from(len.next_multiple_of(IO_ALIGN)) {
            Ok(border) if len <= buf.len() => border,
            _ => return (Err(io::ErrorKind::InvalidInput.into()), buf),
        };
        buf[len..border as usize].fill(0);
        let file = match self.create(path, len as u64) {
            Ok(file) => Arc::new(file),
            Err(e) => return (Err(e), buf),
        };
        let (result, buf) = self.write_pieces(&file, buf, border);
        let result = result.and_then(|()| {
            if len < border as usize {
                file.file.set_len(len as u64)?;
            }
            file.file.sync_all()
        });
        if result.is_err() {
            // Best effort: the error that matters is the one returned.
            let _ = std::fs::remove_file(path);
        }
        (result, buf)
    }

    fn create(&self, path: &Path, size_bytes: u64) -> io::Result<OpenFile> {
        // O_DIRECT is set after the creation: some filesystems create the file and then refuse the flag.
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let direct = self.direct() && set_direct(&file);
        if !direct {
            self.direct.store(false, Ordering::Relaxed);
        }
        if size_bytes > PIECE_BYTES.into() {
            // Space first: pieces then do not queue for the inode to grow it, and a full disk shows before the data
            // was sent. Filesystems without it just write.
            let allocated = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes);
            if let Err(full @ (Errno::NOSPC | Errno::DQUOT)) = allocated {
                let _ = std::fs::remove_file(path);
                return Err(full.into());
            }
        }
        Ok(OpenFile { file, name: path.display().to_string(), size_bytes, direct })
    }

    fn write_pieces(&self, file: &Arc<OpenFile>, buf: AlignedBuf, len: u32) -> (io::Result<()>, AlignedBuf) {
        let (result, buf) = self.write_once(file, buf, len);
        match result {
            // Some filesystems take the flag and refuse the write.
            Err(e) if refuses_direct(&e) && file.direct => {
                if let Err(e) = clear_direct(&file.file) {
                    return (Err(e), buf);
                }
                self.direct.store(false, Ordering::Relaxed);
                self.write_once(file, buf, len)
            }
            result => (result, buf),
        }
    }

    fn write_once(&self, file: &Arc<OpenFile>, buf: AlignedBuf, len: u32) -> (io::Result<()>, AlignedBuf) {
        match self.ring.as_ref().and_then(|ring| ring.requests.as_ref()) {
            Some(requests) if len > 0 => {
                let capacity = buf.len();
                let (reply, answer) = sync_channel::bounded(1);
                let request = Request { file: file.clone(), buf, len, reply };
                match requests.send_blocking(request) {
                    // The buffer is lost only with a thread that panicked; an equal one takes its place.
                    Ok(()) => answer.recv().unwrap_or_else(|_| {
                        (
                            Err(io::Error::other("the I/O thread of the store ended")),
                            AlignedBuf::new(capacity),
                        )
                    }),
                    Err(unsent) => {
                        let buf = unsent.into_inner().buf;
                        (write_here(file, &buf, len), buf)
                    }
                }
            }
            _ => (write_here(file, &buf, len), buf),
        }
    }
}

fn write_here(file: &OpenFile, buf: &AlignedBuf, len: u32) -> io::Result<()> {
    let mut cursor = Cursor::new(0, &(0..len), u64::MAX);
    while let Some((range, at)) = cursor.next() {
        let end = range.end.min(range.start + PIECE_BYTES as usize);
        advance(&mut cursor, file.file.write_at(&buf[range.start..end], at))?;
    }
    Ok(())
}

fn advance(cursor: &mut Cursor, result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(n) if cursor.advance(n) => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(e) => Err(e),
    }
}

impl Ring {
    fn start(depth: usize) -> io::Result<Self> {
        let (requests, inbox) = async_channel::unbounded::<Request>();
        let thread = std::thread::Builder::new().name("store-write".into()).spawn(move || {
            if let Err(e) = uring::block_on(depth, serve(depth, inbox.clone())) {
                // Closing makes callers write by themselves; whoever was waiting already is served here.
                tracing::warn!("io_uring for the store: {e}");
                inbox.close();
                while let Ok(request) = inbox.try_recv() {
                    let result = write_here(&request.file, &request.buf, request.len);
                    let _ = request.reply.send((result, request.buf));
                }
            }
        })?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported by the panic hook, and by the write that waited for it.
            let _ = thread.join();
        }
    }
}

async fn serve(depth: usize, inbox: async_channel::Receiver<Request>) {
    let slots = Arc::new(Slots::new(depth));
    let (open, closed) = async_channel::bounded::<()>(1);
    while let Ok(request) = inbox.recv().await {
        let (slots, open) = (slots.clone(), open.clone());
        uring::spawn(async move {
            write_request(request, &slots).await;
            drop(open);
        });
    }
    drop(open);
    // Nothing is ever sent: this returns when the last task has dropped its end.
    let _ = closed.recv().await;
}

async fn write_request(request: Request, slots: &Slots) {
    let Request { file, buf, len, reply } = request;
    let shared = SharedBuf(Arc::new(buf));
    let (verdict, verdicts) = async_channel::unbounded();
    let mut start = 0;
    while start < len {
        let piece = start..len.min(start + PIECE_BYTES);
        start = piece.end;
        let slot = slots.take().await;
        let (file, shared, verdict) = (file.clone(), shared.clone(), verdict.clone());
        uring::spawn(async move {
            let result = write_piece(&file, shared, Cursor::new(0, &piece, u64::MAX), slot).await;
            // Unbounded, and its receiver outlives all senders.
            let _ = verdict.try_send(result);
        });
    }
    drop(verdict);
    let mut result = Ok(());
    while let Ok(piece) = verdicts.recv().await {
        result = result.and(piece);
    }
    // All pieces are done, so this is the last handle; were it not, a copy would do the caller as well.
    let buf = Arc::try_unwrap(shared.0).unwrap_or_else(|shared| {
        let mut copy = AlignedBuf::new(shared.len());
        copy.copy_from_slice(&shared);
        copy
    });
    // The caller waits for it; were it gone, nobody would miss the answer.
    let _ = reply.send((result, buf));
}

async fn write_piece(file: &OpenFile, mut buf: SharedBuf, mut cursor: Cursor, _slot: Slot) -> io::Result<()> {
    while let Some((range, at)) = cursor.next() {
        let result;
        (result, buf) = uring::write_at(file, buf, range, at).await;
        advance(&mut cursor, result)?;
    }
    Ok(())
}
