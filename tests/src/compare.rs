//! Byte comparison of files and devices, reporting the first difference.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom as Whence, seek};
use rustix::io::Errno;

use crate::MIB;

/// Size of a file or block device.
pub fn size_bytes(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    file.seek(SeekFrom::End(0)).unwrap()
}

/// BLAKE3 of a file, in hex.
pub fn blake3_hex(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize().to_hex().to_string()
}

/// Asserts that two files (or devices) have the same size and the same bytes.
#[track_caller]
pub fn assert_identical(expected: &Path, found: &Path, context: &str) {
    let (a, b) = (size_bytes(expected), size_bytes(found));
    assert_eq!(a, b, "{context}: {} has {b} bytes, {a} expected", found.display());
    assert_prefix_identical(expected, found, a, context);
}

/// Asserts that the first `bytes` bytes are the same: for a target device that is larger than the volume.
#[track_caller]
pub fn assert_prefix_identical(expected: &Path, found: &Path, bytes: u64, context: &str) {
    let (a, b) = (File::open(expected).unwrap(), File::open(found).unwrap());
    if let Some(difference) = first_difference(&a, &b, 0, bytes) {
        panic!("{context}: {} differs from {} {difference}", found.display(), expected.display());
    }
}

/// As [`assert_identical`], reading only what is data in either file: for files of many TiB that are mostly holes.
#[track_caller]
pub fn assert_identical_sparse(expected: &Path, found: &Path, context: &str) {
    let size = size_bytes(expected);
    assert_eq!(size, size_bytes(found), "{context}: sizes differ");
    let (a, b) = (File::open(expected).unwrap(), File::open(found).unwrap());
    for (start, end) in data_ranges(&a, size).into_iter().chain(data_ranges(&b, size)) {
        if let Some(difference) = first_difference(&a, &b, start, end) {
            panic!("{context}: {} differs from {} {difference}", found.display(), expected.display());
        }
    }
}

/// Asserts that a file is the given bytes.
#[track_caller]
pub fn assert_bytes(expected: &Path, found: &[u8], context: &str) {
    let expected_bytes = std::fs::read(expected).unwrap();
    assert_eq!(expected_bytes.len(), found.len(), "{context}: length");
    if let Some(at) = expected_bytes.iter().zip(found).position(|(a, b)| a != b) {
        panic!("{context}: differs from {} at byte {at}", expected.display());
    }
}

/// True if both files have the same size and bytes.
pub fn identical(a: &Path, b: &Path) -> bool {
    let size = size_bytes(a);
    size == size_bytes(b)
        && first_difference(&File::open(a).unwrap(), &File::open(b).unwrap(), 0, size).is_none()
}

/// Bytes that a sparse file takes up on disk.
pub fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// `[start, end)` of everything that the filesystem says is not a hole.
pub fn data_ranges(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, Whence::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => panic!("SEEK_DATA: {error}"),
        };
        let end = seek(file, Whence::Hole(start)).unwrap();
        ranges.push((start, end));
        at = end;
    }
    ranges
}

fn first_difference(a: &File, b: &File, start: u64, end: u64) -> Option<String> {
    let mut buffers = (vec![0u8; MIB as usize], vec![0u8; MIB as usize]);
    let mut offset = start;
    while offset < end {
        let n = (end - offset).min(MIB) as usize;
        let (left, right) = (&mut buffers.0[..n], &mut buffers.1[..n]);
        a.read_exact_at(left, offset).unwrap_or_else(|e| panic!("cannot read {n} bytes at {offset}: {e}"));
        b.read_exact_at(right, offset).unwrap_or_else(|e| panic!("cannot read {n} bytes at {offset}: {e}"));
        if left != right {
            let at = left.iter().zip(right.iter()).position(|(x, y)| x != y).unwrap();
            let shown = at..(at + 8).min(n);
            let differing = left.iter().zip(right.iter()).filter(|(x, y)| x != y).count();
            let place = offset + at as u64;
            return Some(format!(
                "first at byte {place} (segment {}, block {} of it): {:02x?} expected, {:02x?} found; {differing} bytes differ in that MiB",
                place / crate::SEGMENT,
                place % crate::SEGMENT / crate::BLOCK,
                &left[shown.clone()],
                &right[shown],
            ));
        }
        offset += n as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image, workdir::Workdir};

    #[test]
    fn the_first_difference_is_found() {
        let work = Workdir::new("compare");
        let (a, b) = (work.join("a"), work.join("b"));
        image::random(&a, 3 * MIB + 5, 1);
        image::random(&b, 3 * MIB + 5, 1);
        assert!(identical(&a, &b));
        image::patch(&b, 3 * MIB + 2, b"xyz");
        assert!(!identical(&a, &b));
        let found =
            first_difference(&File::open(&a).unwrap(), &File::open(&b).unwrap(), 0, 3 * MIB + 5).unwrap();
        assert!(found.contains(&format!("at byte {}", 3 * MIB + 2)), "{found}");
    }

    #[test]
    fn holes_are_known() {
        let work = Workdir::new("holes");
        let path = work.join("a");
        image::sparse(&path, 64 * MIB, &[(8 * MIB, 4096, 1), (64 * MIB - 4096, 4096, 2)]);
        let ranges = data_ranges(&File::open(&path).unwrap(), 64 * MIB);
        assert_eq!(ranges, [(8 * MIB, 8 * MIB + 4096), (64 * MIB - 4096, 64 * MIB)]);
    }
}
