//! Data of the workloads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use penstock_engine::limits::{BLOCK_BYTES, SEGMENT_BYTES};

use crate::Outcome;

/// Text that the text volume is made of.
const CORPUS_BYTES: usize = 64 << 20;
/// Longest part of one file, so that no single big one dominates.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Run of the corpus that is copied in one piece.
const RUN_BYTES: usize = 256 << 10;

/// What a volume is filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Text files of this system in runs of 256 KiB; a number in each 4 KiB block makes every chunk unique.
    Text,
    /// Nothing compresses or repeats.
    Random,
    /// Zeros, written, not holes.
    Zeros,
}

/// Small, fast and good enough: xorshift64.
pub struct Rng(pub u64);

impl Rng {
    /// A number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Writes a volume of `bytes` bytes, over what was there before.
pub fn make(path: &Path, fill: Fill, bytes: u64) -> Outcome<()> {
    let corpus = if fill == Fill::Text { corpus()? } else { Vec::new() };
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.set_len(bytes)?;
    let mut segment = vec![0u8; SEGMENT_BYTES];
    for number in 0..bytes / SEGMENT_BYTES as u64 {
        match fill {
            Fill::Zeros => {}
            Fill::Random => {
                segment.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.draw().to_le_bytes()));
            }
            Fill::Text => {
                for run in segment.chunks_mut(RUN_BYTES) {
                    let from = rng.draw() as usize % (corpus.len() - RUN_BYTES);
                    run.copy_from_slice(&corpus[from..from + RUN_BYTES]);
                }
                for (n, block) in segment.chunks_mut(BLOCK_BYTES).enumerate() {
                    let stamp = number * (SEGMENT_BYTES / BLOCK_BYTES) as u64 + n as u64;
                    block[..12].copy_from_slice(format!("{stamp:011}\n").as_bytes());
                }
            }
        }
        file.write_all(&segment)?;
    }
    Ok(file.sync_all()?)
}

/// Text of this system's files, in the order of their names.
fn corpus() -> Outcome<Vec<u8>> {
    let mut text = Vec::with_capacity(CORPUS_BYTES + FILE_BYTES_MAX as usize);
    for root in
        ["/usr/include", "/usr/share/perl", "/usr/lib/python3", "/usr/share/doc", "/usr/share", "/usr/lib"]
    {
        gather(Path::new(root), &mut text);
    }
    if text.len() < CORPUS_BYTES / 8 {
        return Err(
            format!("{} MiB of text under /usr are too few to make a volume of", text.len() >> 20).into()
        );
    }
    Ok(text)
}

fn gather(dir: &Path, text: &mut Vec<u8>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if text.len() >= CORPUS_BYTES {
            return;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => gather(&entry.path(), text),
            Ok(kind) if kind.is_file() => {
                let before = text.len();
                let read = File::open(entry.path()).and_then(|f| f.take(FILE_BYTES_MAX).read_to_end(text));
                // What is not text is left out again: a NUL tells.
                if read.is_err()
                    || text[before..].contains(&0)
                    || std::str::from_utf8(&text[before..]).is_err()
                {
                    text.truncate(before);
                }
            }
            _ => {}
        }
    }
}
