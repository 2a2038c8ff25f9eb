//! A tree of this machine's own files, up to a budget, in an order that does not change.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::super::exit::Failure;

/// Where files are taken from, and the part of the budget that may be spent once each is done.
const ROOTS: [(&str, u64); 3] = [("usr/bin", 20), ("usr/share", 55), ("usr/lib", 100)];
/// Files kept in memory, to be changed or removed later.
const SAMPLES: usize = 32;
/// Their sizes: whole blocks at least, small enough to keep.
const SAMPLE_BYTES: std::ops::RangeInclusive<u64> = 4096..=256 << 10;
/// A file or directory costs an inode and a place in its directory.
const ENTRY_BYTES: u64 = 256;
/// The log that grows, in the image.
pub const LOG: &str = "var/log/app.log";

/// What was copied.
pub struct Staged {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files, directories and links: inodes.
    pub entries: u64,
    /// Some of the files, spread over the tree.
    pub samples: Vec<Sample>,
    /// Contents of [`LOG`].
    pub log: Vec<u8>,
}

/// A file as it is in the image.
pub struct Sample {
    /// Within the image, without a leading slash.
    pub path: String,
    /// Its contents.
    pub contents: Vec<u8>,
}

struct Copier<'a> {
    into: &'a Path,
    check: &'a dyn Fn() -> Result<(), Failure>,
    /// Spent so far, in whole blocks.
    spent: u64,
    limit: u64,
    file_max: u64,
    staged: Staged,
    candidates: Vec<String>,
}

/// Copies files into the new directory `into` until about `budget` bytes are spent.
pub fn stage(into: &Path, budget: u64, check: &dyn Fn() -> Result<(), Failure>) -> Result<Staged, Failure> {
    let staged = Staged { files: 0, bytes: 0, entries: 0, samples: vec![], log: log_lines(0, budget / 128) };
    let mut copier =
        Copier { into, check, spent: 0, limit: 0, file_max: budget / 10, staged, candidates: vec![] };
    copier.write_log()?;
    for (root, percent) in ROOTS {
        copier.limit = budget / 100 * percent;
        copier.copy_tree(Path::new("/"), Path::new(root))?;
    }
    if copier.staged.files < SAMPLES as u64 {
        return Err(Failure::Failed(
            "the demo copies files from /usr/bin, /usr/share and /usr/lib, and found too few".into(),
        ));
    }
    copier.keep_samples()?;
    Ok(copier.staged)
}

impl Copier<'_> {
    fn write_log(&mut self) -> Result<(), Failure> {
        let path = self.into.join(LOG);
        let dir = path.parent().unwrap_or(self.into);
        fs::create_dir_all(dir).map_err(Failure::io("create", dir.display()))?;
        fs::write(&path, &self.staged.log).map_err(Failure::io("write", path.display()))?;
        self.count_file(self.staged.log.len() as u64);
        Ok(())
    }

    fn count_file(&mut self, bytes: u64) {
        self.spent += bytes.next_multiple_of(4096) + ENTRY_BYTES;
        self.staged.files += 1;
        self.staged.entries += 1;
        self.staged.bytes += bytes;
    }

    /// Copies the directory `dir` of `from` and what is below it. What cannot be read is left out.
    fn copy_tree(&mut self, from: &Path, dir: &Path) -> Result<(), Failure> {
        let mut waiting = vec![dir.to_owned()];
        while let Some(dir) = waiting.pop() {
            (self.check)()?;
            if self.spent >= self.limit {
                return Ok(());
            }
            let Ok(entries) = fs::read_dir(from.join(&dir)) else { continue };
            let target = self.into.join(&dir);
            fs::create_dir_all(&target).map_err(Failure::io("create", target.display()))?;
            self.staged.entries += 1;
            self.spent += 4096;
            let mut names: Vec<PathBuf> =
                entries.flatten().map(|entry| dir.join(entry.file_name())).collect();
            names.sort_unstable();
            let mut dirs = Vec::new();
            for path in names {
                let Ok(metadata) = fs::symlink_metadata(from.join(&path)) else { continue };
                if metadata.is_dir() {
                    dirs.push(path);
                } else {
                    self.copy_entry(from, &path, &metadata)?;
                }
            }
            // The stack gives them back in order.
            waiting.extend(dirs.into_iter().rev());
        }
        Ok(())
    }

    fn copy_entry(&mut self, from: &Path, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
        let (source, target) = (from.join(path), self.into.join(path));
        if metadata.is_symlink() {
            if fs::read_link(&source).and_then(|link| symlink(link, &target)).is_ok() {
                self.staged.entries += 1;
                self.spent += ENTRY_BYTES;
            }
            return Ok(());
        }
        let fits = metadata.size() <= self.file_max && self.spent + metadata.size() <= self.limit;
        if !metadata.is_file() || !fits || fs::File::open(&source).is_err() {
            return Ok(());
        }
        let bytes = fs::copy(&source, &target).map_err(Failure::io("copy to", target.display()))?;
        self.count_file(bytes);
        (self.check)()?;
        if let Some(text) = path.to_str()
            && SAMPLE_BYTES.contains(&bytes)
            && metadata.nlink() == 1
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._+-".contains(&b))
        {
            self.candidates.push(text.to_owned());
        }
        Ok(())
    }

    fn keep_samples(&mut self) -> Result<(), Failure> {
        let every = (self.candidates.len() / SAMPLES).max(1);
        for path in self.candidates.iter().step_by(every).take(SAMPLES) {
            let file = self.into.join(path);
            let contents = fs::read(&file).map_err(Failure::io("read", file.display()))?;
            self.staged.samples.push(Sample { path: path.clone(), contents });
        }
        Ok(())
    }
}

/// About `bytes` bytes of a web server's log. The same arguments give the same lines.
pub fn log_lines(first: u64, bytes: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes as usize + 128);
    let mut random = Random(first);
    while (text.len() as u64) < bytes {
        let (a, b) = (random.next(), random.next());
        let line = format!(
            "10.{}.{}.{} - - [24/Nov/2026] \"GET /item/{:08x} HTTP/1.1\" 200 {} \"-\" {} ms\n",
            a % 4,
            a >> 8 & 0xff,
            a >> 16 & 0xff,
            b as u32,
            b >> 32 & 0x3fff,
            a >> 32 & 0x1ff,
        );
        text.extend_from_slice(line.as_bytes());
    }
    text
}

/// SplitMix64: the demo wants data that is the same each time and does not compress, not secrets.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_keeps_to_its_budget_and_is_repeatable() {
        let dir = tempfile::tempdir().unwrap();
        let budget = 16 << 20;
        let once = stage(&dir.path().join("a"), budget, &|| Ok(())).unwrap();
        let again = stage(&dir.path().join("b"), budget, &|| Ok(())).unwrap();
        assert!(once.bytes > budget / 2 && once.bytes <= budget, "{}", once.bytes);
        assert_eq!((once.files, once.bytes, once.entries), (again.files, again.bytes, again.entries));
        assert!(once.samples.iter().map(|s| &s.path).eq(again.samples.iter().map(|s| &s.path)));
        assert!(!once.samples.is_empty());
    }

    #[test]
    fn logs_and_random_bytes_are_repeatable() {
        assert_eq!(log_lines(1, 1000), log_lines(1, 1000));
        assert_ne!(log_lines(1, 1000), log_lines(2, 1000));
        assert_eq!(Random(7).bytes(13).len(), 13);
        assert_eq!(Random(0).next(), 0xe220_a839_7b1d_cdaf);
    }
}
