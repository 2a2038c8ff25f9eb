//! Heap buffers that O_DIRECT accepts. The only allocation code of the engine.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::limits::IO_ALIGN;
use crate::simulation::sized;

/// Bytes in a huge page. Buffers at least this large are aligned to it and ask the kernel for huge pages: a 4 MiB
/// read then pins 2 pages instead of 1024, and goes to the device in fewer pieces. Measured with O_DIRECT on a
/// virtio disk, 4 MiB reads: 1900–2600 MiB/s, against 1300–1800 MiB/s into small pages (`benches/src/bin/read_speed.rs`).
const HUGE_PAGE_BYTES: usize = sized(2 << 20, 64 << 10);

/// A fixed-size, zero-initialised heap buffer whose address and length are multiples of [`IO_ALIGN`].
pub struct AlignedBuf {
    /// Dangling (never read, never freed) where `len` is 0.
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer is the sole owner of its allocation, like a `Box<[u8]>`: no interior mutability, nothing tied
// to the allocating thread (the global allocator may free from any thread), so it may move to another thread.
unsafe impl Send for AlignedBuf {}

// SAFETY: `&AlignedBuf` only gives out `&[u8]`, and plain bytes may be read from many threads at once.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of at least `len_bytes` zero bytes, rounded up to a multiple of [`IO_ALIGN`] (and at least that).
    /// Aborts when memory is exhausted, as `Vec` does.
    pub fn new(len_bytes: usize) -> Self {
        let len = len_bytes.max(1).next_multiple_of(IO_ALIGN);
        let ptr = if len < HUGE_PAGE_BYTES {
            // SAFETY: `len` is at least IO_ALIGN, so the layout's size is not zero, which is all that `alloc_zeroed`
            // asks for.
            NonNull::new(unsafe { alloc_zeroed(layout_for(len)) })
        } else {
            map_huge(len).ok()
        };
        match ptr {
            Some(ptr) => Self { ptr, len },
            None => handle_alloc_error(layout_for(len)),
        }
    }

    /// A buffer of no bytes, which costs no allocation. What is left behind when a buffer moves out.
    pub const fn empty() -> Self {
        Self { ptr: NonNull::dangling(), len: 0 }
    }
}

/// `len` zero bytes of fresh memory, aligned to huge pages and advised for them. Not from the heap: an allocator hands
/// out memory that was in use before, and its small pages stay small. That costs a third of the read rate where one
/// buffer of ten is hit: its reads take 1024 descriptors of the device's queue instead of 2 (docs/PERFORMANCE.md).
fn map_huge(len: usize) -> rustix::io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE;
    let mapped_bytes = len + HUGE_PAGE_BYTES;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice: it overlaps nothing.
    let start =
        unsafe { mmap_anonymous(ptr::null_mut(), mapped_bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
    let before = start.addr().next_multiple_of(HUGE_PAGE_BYTES) - start.addr();
    let after = HUGE_PAGE_BYTES - before;
    let raw = start.cast::<u8>().wrapping_add(before);
    // SAFETY: what is unmapped are the first `before` and the last `after` bytes of the mapping made above, whole
    // pages that nobody has a pointer to; the `len` bytes between them stay. The advice changes no contents; refused
    // (no huge pages in this kernel), small pages work as well. The bytes written are the `len` that stay mapped,
    // here, so that they are faulted in as huge pages and not by the first I/O.
    unsafe {
        if before > 0 {
            munmap(start, before)?;
        }
        if after > 0 {
            munmap(raw.wrapping_add(len).cast(), after)?;
        }
        // A simulation touches little of its buffers.
        if !cfg!(feature = "simulation") {
            let _ = rustix::mm::madvise(raw.cast(), len, rustix::mm::Advice::LinuxHugepage);
            raw.write_bytes(0, len);
        }
    }
    NonNull::new(raw).ok_or(rustix::io::Errno::NOMEM)
}

/// The layout of small buffers, which [`AlignedBuf::new`] allocates and `Drop` frees: both must compute the same one.
fn layout_for(len: usize) -> Layout {
    match Layout::from_size_align(len, IO_ALIGN) {
        Ok(layout) => layout,
        // Only a length near isize::MAX: `Vec` panics with the same words.
        Err(_) => panic!("capacity overflow: a buffer of {len} bytes"),
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: a non-zero `len` is only ever set by `new`, together with a pointer from the allocator for exactly
        // `layout_for(len)`, or, from a huge page's size on, from a mapping of exactly `len` bytes; `self` owned it
        // alone, and is gone after this.
        unsafe {
            if self.len < HUGE_PAGE_BYTES {
                dealloc(self.ptr.as_ptr(), layout_for(self.len));
            } else {
                // It can fail only if the address were not ours; then there is nothing to do about it either.
                let _ = munmap(self.ptr.as_ptr().cast(), self.len);
            }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is non-null, aligned for u8 and valid for `len` initialised bytes (zeroed in `new`; dangling
        // with `len` 0 is a valid empty slice). The bytes are only written through `&mut self`, which the borrow
        // excludes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_rounded_up() {
        for (asked, got, align) in [
            (0, 4096, 4096),
            (1, 4096, 4096),
            (4097, 8192, 4096),
            ((2 << 20) - 1, 2 << 20, 2 << 20),
            (5 << 20, 5 << 20, 2 << 20),
        ] {
            let mut buf = AlignedBuf::new(asked);
            assert_eq!(buf.len(), got, "asked for {asked}");
            assert_eq!(buf.as_ptr() as usize % align, 0, "asked for {asked}");
            assert!(buf.iter().all(|&b| b == 0));
            buf.fill(7);
            assert!(std::thread::spawn(move || buf.iter().all(|&b| b == 7)).join().unwrap());
        }
        assert!(AlignedBuf::empty().is_empty());
    }
}
