//! One cached object as a file: a head with a checksum of every piece, then the object.
//!
//! ```text
//! magic 8 ‖ object length 8 (LE) ‖ 16 bytes of BLAKE3 per piece of 64 KiB ‖ 16 bytes of BLAKE3 over key and head ‖ object
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Unit of checksums: what is read and hashed to answer for a single byte.
const PIECE_BYTES: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"pnstckC1";
const SUM_BYTES: usize = 16;
/// Longest object that is believed in: heads come from a disk that may be hurt.
const OBJECT_BYTES_MAX: u64 = 16 << 30;

type Sum = [u8; SUM_BYTES];

/// An entry whose head is right.
#[derive(Debug)]
pub struct Entry {
    file: File,
    object_bytes: u64,
    sums: Vec<Sum>,
    start: u64,
}

fn sum(parts: &[&[u8]]) -> Sum {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..SUM_BYTES]);
    sum
}

/// Checksums of an object that comes piece by piece.
#[derive(Debug, Default)]
pub struct Sums {
    sums: Vec<Sum>,
    piece: Vec<u8>,
    object_bytes: u64,
}

impl Sums {
    /// The next bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        self.object_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.piece.is_empty() && bytes.len() >= PIECE_BYTES {
                self.sums.push(sum(&[&bytes[..PIECE_BYTES]]));
                bytes = &bytes[PIECE_BYTES..];
                continue;
            }
            let count = bytes.len().min(PIECE_BYTES - self.piece.len());
            self.piece.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.piece.len() == PIECE_BYTES {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        if !self.piece.is_empty() {
            self.sums.push(sum(&[&self.piece]));
            self.piece.clear();
        }
    }

    /// The head of an entry of all that was added.
    pub fn head(mut self, key: &str) -> Vec<u8> {
        self.close();
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&self.object_bytes.to_le_bytes());
        head.extend(self.sums.iter().flatten());
        let head_sum = sum(&[key.as_bytes(), &head]);
        head.extend_from_slice(&head_sum);
        head
    }
}

/// Writes an entry.
pub fn write(out: &mut impl Write, key: &str, object: &[u8]) -> io::Result<()> {
    let mut sums = Sums::default();
    sums.add(object);
    out.write_all(&sums.head(key))?;
    out.write_all(object)
}

impl Entry {
    /// Reads and checks the head; `None` if it is not right.
    pub fn open(file: File, key: &str) -> Option<Self> {
        let file_bytes = file.metadata().ok()?.len();
        let mut fixed = [0; 16];
        file.read_exact_at(&mut fixed, 0).ok()?;
        let object_bytes = u64::from_le_bytes(fixed[8..].try_into().ok()?);
        if fixed[..8] != *MAGIC || object_bytes > OBJECT_BYTES_MAX {
            return None;
        }
        let pieces = object_bytes.div_ceil(PIECE_BYTES as u64) as usize;
        let start = (fixed.len() + (pieces + 1) * SUM_BYTES) as u64;
        if file_bytes != start + object_bytes {
            return None;
        }
        let mut head = vec![0; start as usize];
        file.read_exact_at(&mut head, 0).ok()?;
        let (head, head_sum) = head.split_at(head.len() - SUM_BYTES);
        if sum(&[key.as_bytes(), head]) != head_sum {
            return None;
        }
        let sums =
            head[fixed.len()..].chunks_exact(SUM_BYTES).map(|s| s.try_into().unwrap_or_default()).collect();
        Some(Self { file, object_bytes, sums, start })
    }

    /// Length of the object.
    pub fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Replaces `out` by a range of the object, which must lie in it; `None` if a piece is not what was written.
    pub fn read(&self, range: std::ops::Range<u64>, out: &mut Vec<u8>) -> Option<()> {
        out.clear();
        if range.is_empty() {
            return Some(());
        }
        let piece = PIECE_BYTES as u64;
        let (first, end) = (range.start / piece, range.end.div_ceil(piece));
        let from = first * piece;
        let to = (end * piece).min(self.object_bytes);
        out.resize((to - from) as usize, 0);
        self.file.read_exact_at(out, self.start + from).ok()?;
        let wanted = self.sums.get(first as usize..end as usize)?;
        if !out.chunks(PIECE_BYTES).zip(wanted).all(|(bytes, expected)| sum(&[bytes]) == *expected) {
            return None;
        }
        out.truncate((range.end - from) as usize);
        out.drain(..(range.start - from) as usize);
        Some(())
    }
}

/// Opens an entry with these contents and reads it, whole and in parts; as it is, and with the checksum of its head
/// put right. True if the head was.
#[cfg(feature = "fuzzing")]
#[allow(clippy::expect_used)] // in a fuzzer that is the report
pub fn fuzz(bytes: &[u8]) -> bool {
    let object_bytes = bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
    let head_bytes = 16 + object_bytes.div_ceil(PIECE_BYTES as u64).saturating_mul(SUM_BYTES as u64);
    let mut mended = bytes.to_vec();
    if let Some((head, rest)) =
        usize::try_from(head_bytes).ok().and_then(|at| mended.split_at_mut_checked(at))
        && rest.len() >= SUM_BYTES
    {
        rest[..SUM_BYTES].copy_from_slice(&sum(&[b"k", head]));
    }
    let mut right = false;
    for bytes in [bytes, &mended] {
        let Some(entry) = Entry::open(crate::fuzzing::file_of(bytes), "k") else { continue };
        right = true;
        let (mut whole, mut part) = (Vec::new(), Vec::new());
        let end = entry.object_bytes();
        if entry.read(0..end, &mut whole).is_some() {
            assert_eq!(whole, bytes[bytes.len() - end as usize..]);
            let range = end / 3..end - end / 5;
            entry.read(range.clone(), &mut part).expect("a part of what could be read");
            assert_eq!(part, whole[range.start as usize..range.end as usize]);
            let mut again = Vec::new();
            write(&mut again, "k", &whole).expect("memory");
            assert_eq!(again, bytes);
        }
    }
    right
}
