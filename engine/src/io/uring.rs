//! Everything that touches tokio-uring: its runtime, its two operations, its buffer traits.
//!
//! What version 0.5 does, and what this engine therefore never does:
//! - Queued operations reach the kernel when the thread parks: a task that blocks the thread stalls all others.
//! - A dropped operation is not cancelled; the runtime keeps its buffer until the kernel is done with it. So no
//!   operation is raced against a timeout: the dispatchers stop issuing and drain.
//! - The length of a read is the *capacity* of its buffer, hence the slices here, which have exact ends.
//! - An error of the submission on park is swallowed, so the ring must never be full: [`block_on`] sizes it for the
//!   caller's depth.
#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};

use super::aligned::AlignedBuf;
use super::file::OpenFile;
use super::pool::PooledBuf;

/// Runs `future` on a new ring with room for `depth` operations in flight. The error is that of setting the ring up;
/// the future has not run then.
pub(super) fn block_on<F: Future>(depth: usize, future: F) -> io::Result<F::Output> {
    let entries = depth.clamp(8, 4096).next_power_of_two() as u32;
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(entries))?;
    Ok(runtime.block_on(future))
}

/// Starts a task on this thread's ring; only inside [`block_on`].
pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    // The handle is not needed: the dispatchers count their tasks by slots.
    drop(tokio_uring::spawn(task));
}

/// One read of `range` of the buffer at `at`, possibly short. Only inside [`block_on`].
pub(super) async fn read_at(
    file: &OpenFile,
    buf: PooledBuf,
    range: Range<usize>,
    at: u64,
) -> (io::Result<usize>, PooledBuf) {
    let file = match ring_file(file) {
        Ok(file) => file,
        Err(e) => return (Err(e), buf),
    };
    let (result, slice) = file.read_at(buf.slice(range), at).await;
    (result, slice.into_inner())
}

/// One write of `range` of the buffer at `at`, possibly short. Only inside [`block_on`].
pub(super) async fn write_at<B: IoBuf>(
    file: &OpenFile,
    buf: B,
    range: Range<usize>,
    at: u64,
) -> (io::Result<usize>, B) {
    let file = match ring_file(file) {
        Ok(file) => file,
        Err(e) => return (Err(e), buf),
    };
    let (result, slice) = file.write_at(buf.slice(range), at).submit().await;
    (result, slice.into_inner())
}

/// tokio-uring wants to own the descriptor it uses; ours is shared between threads. A duplicate costs a microsecond,
/// the transfer behind it a thousand.
fn ring_file(file: &OpenFile) -> io::Result<tokio_uring::fs::File> {
    file.file.try_clone().map(tokio_uring::fs::File::from_std)
}

/// Sets a ring up and reads through it, to find out whether this kernel and this container allow it.
pub(super) fn probe() -> io::Result<()> {
    block_on(8, async {
        let file = OpenFile {
            file: std::fs::File::open("/dev/zero")?,
            name: "/dev/zero".into(),
            size_bytes: u64::MAX,
            direct: false,
        };
        let buf = super::pool::BufPool::new(1, 4096).try_get();
        let Some(buf) = buf else { return Err(io::Error::other("no buffer")) };
        let (result, _) = read_at(&file, buf, 0..4096, 0).await;
        match result? {
            0 => Err(io::Error::other("a read through the ring returned nothing")),
            _ => Ok(()),
        }
    })?
}

// SAFETY: the pointer is into the heap allocation that the `AlignedBuf` owns: moving the `PooledBuf` does not move
// it, and the allocation lives until drop, which cannot happen while the operation owns the value. All `len` bytes
// are initialised from the start (zeroed when allocated), so `bytes_init` may equal `bytes_total`.
unsafe impl IoBuf for PooledBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

// SAFETY: the pointer is the same as `stable_ptr`'s and may be written, as `PooledBuf` is the only owner of the
// bytes. Nothing to note in `set_init`: every byte is initialised already and the length is fixed.
unsafe impl IoBufMut for PooledBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

/// A buffer of which several pieces are written at the same time. Nobody can write into it meanwhile.
#[derive(Clone)]
pub(super) struct SharedBuf(pub Arc<AlignedBuf>);

// SAFETY: the pointer is into the heap allocation that the `AlignedBuf` in the `Arc` owns; the clone inside the
// operation keeps that alive until the kernel is done. Only shared access exists while there is more than one clone
// (`Arc` gives out no `&mut`), so the bytes do not change below the kernel. All bytes are initialised, see above.
unsafe impl IoBuf for SharedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }

    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}
