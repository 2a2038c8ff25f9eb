//! Making a range read as zeros, in the cheapest way that the target has.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::limits::IO_ALIGN;

const ALIGN: u64 = IO_ALIGN as u64;

/// Bytes of one write of zeros.
const ZEROS_BYTES: usize = 1 << 20;

/// The ways, in the order they are tried; one that is refused is not tried again on this target.
///
/// Punching comes first: it frees space, and on a device the kernel only does it where the result is sure to read as
/// zeros (`BLKDEV_ZERO_NOFALLBACK`; it is a discard only with NO_HIDE_STALE, which is never asked for). ZERO_RANGE
/// keeps the space, and on a device that cannot zero by itself the kernel writes the zeros.
const WAYS: [Way; 3] = [Way::Punch, Way::ZeroRange, Way::Write];

#[derive(Clone, Copy)]
enum Way {
    Punch,
    ZeroRange,
    Write,
}

/// `range` ends within the volume.
pub(super) fn zero_range(target: &Target, range: Range<u64>) -> Result<()> {
    // Devices accept multiples of their logical block only, so what is not a whole 4 KiB is written. So it is in
    // files, which would do the same inside.
    let aligned_end = match target.kind {
        // The last block of a file has nothing behind the volume.
        TargetKind::File if range.end == target.size_bytes => range.end.next_multiple_of(ALIGN),
        _ => range.end / ALIGN * ALIGN,
    };
    let aligned = range.start.next_multiple_of(ALIGN)..aligned_end;
    let zeros = [0; IO_ALIGN];
    let write = |edge: Range<u64>| {
        if edge.is_empty() {
            Ok(())
        } else {
            target.write_tail(edge.start, &zeros[..(edge.end - edge.start) as usize])
        }
    };
    if aligned.is_empty() {
        // Within one block, or across one border.
        let middle = range.start.next_multiple_of(ALIGN).min(range.end);
        write(range.start..middle)?;
        return write(middle..range.end);
    }
    write(range.start..aligned.start)?;
    zero_aligned(target, aligned.clone())?;
    write(aligned.end..range.end)
}

fn zero_aligned(target: &Target, range: Range<u64>) -> Result<()> {
    loop {
        let way = target.zero_way.load(Ordering::Relaxed).min(WAYS.len() - 1);
        let result = match WAYS[way] {
            Way::Punch => punch(target, &range, FallocateFlags::PUNCH_HOLE),
            Way::ZeroRange => punch(target, &range, FallocateFlags::ZERO_RANGE),
            Way::Write => write_zeros(target, &range),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(e) if way + 1 < WAYS.len() && is_refusal(&e) => {
                target.zero_way.fetch_max(way + 1, Ordering::Relaxed);
            }
            Err(source) => {
                let len = range.end - range.start;
                let object = format!("{} ({len} bytes at offset {})", target.file.name, range.start);
                return Err(Error::Io { action: "zero", object, source });
            }
        }
    }
}

fn punch(target: &Target, range: &Range<u64>, how: FallocateFlags) -> io::Result<()> {
    let len = range.end - range.start;
    loop {
        match fallocate(&target.file.file, how | FallocateFlags::KEEP_SIZE, range.start, len) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The target, or its driver, cannot do it this way. REMOTEIO: a SCSI device that announced it and then refused.
fn is_refusal(e: &io::Error) -> bool {
    let refusals = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS, libc::ENODEV, libc::EPERM, libc::EREMOTEIO];
    e.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

fn write_zeros(target: &Target, range: &Range<u64>) -> io::Result<()> {
    let zeros = AlignedBuf::new(ZEROS_BYTES.min((range.end - range.start) as usize));
    let mut at = range.start;
    while at < range.end {
        let len = zeros.len().min((range.end - at) as usize);
        match target.file.file.write_at(&zeros[..len], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            // A short write may end anywhere; go on at the border before.
            Ok(n) if at + (n as u64) < range.end => {
                let next = (at + n as u64) / ALIGN * ALIGN;
                if next == at {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at = next;
            }
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{TargetOptions, open};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Exactly the range, whatever its alignment, in each of the ways.
        #[test]
        fn zeroes_exactly_the_range(
            way in 0usize..3,
            start in 0u64..40_000,
            len in 0u64..40_000,
            size in 30_000u64..41_000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t");
            std::fs::write(&path, vec![9u8; size as usize]).unwrap();
            let options = TargetOptions { size_bytes: size, resume: true, ..Default::default() };
            let target = open(&path, options).unwrap();
            target.zero_way.store(way, Ordering::Relaxed);
            let range = start.min(size)..(start + len).min(size);
            target.zero_range(range.clone()).unwrap();
            target.finish().unwrap();
            let mut expected = vec![9u8; size as usize];
            expected[range.start as usize..range.end as usize].fill(0);
            prop_assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}
