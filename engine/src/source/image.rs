//! A regular file as a source.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::sysfs::loops_over;
use super::{OpenFile, Source, SourceKind, check_size, usage};
use crate::error::{Error, Result};
use crate::io::file::{direct_reads_work, open_direct};
use crate::limits::IO_ALIGN;

const ALIGN: u64 = IO_ALIGN as u64;

/// An image file, opened read-only.
pub struct ImageSource {
    file: Arc<OpenFile>,
}

impl ImageSource {
    /// Opens the file at `path` read-only, with O_DIRECT unless its filesystem refuses that.
    ///
    /// Fails with [`Error::SourceRefused`] if the file is attached to a loop device that is in use read-write, unless
    /// `force_live` accepts that.
    pub fn open(path: &Path, force_live: bool) -> Result<Self> {
        let name = path.display().to_string();
        let (file, direct) =
            open_direct(fs::OpenOptions::new().read(true), path).map_err(Error::io("open", &name))?;
        let meta = file.metadata().map_err(Error::io("inspect", &name))?;
        if !force_live {
            refuse_live(&name, &meta)?;
        }
        let size_bytes = meta.len();
        check_size(&name, size_bytes)?;
        let direct = direct && direct_reads_work(&file).map_err(Error::io("read", &name))?;
        if !direct {
            // Twice the read-ahead; only advice.
            let _ = fadvise(&file, 0, None, Advice::Sequential);
        }
        Ok(Self { file: Arc::new(OpenFile { file, name, size_bytes, direct }) })
    }
}

fn refuse_live(name: &str, meta: &fs::Metadata) -> Result<()> {
    for device in loops_over(meta) {
        if let Some(found) = usage::uses_of(device.rdev)?.into_iter().find(|found| found.writable) {
            let why = format!(
                "it backs /dev/{}, and {}, so it can change while it is read. Unmount that, or accept an inconsistent \
                 copy with --force-live",
                device.name(),
                found.what
            );
            return Err(Error::SourceRefused { source_name: name.into(), why });
        }
    }
    Ok(())
}

impl Source for ImageSource {
    fn name(&self) -> &str {
        &self.file.name
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.file.size_bytes)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }

    fn logical_block_bytes(&self) -> u32 {
        1
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let size_bytes = self.file.size_bytes;
        if from >= size_bytes {
            return Ok(None);
        }
        let fail = |e: Errno| Error::io("find the holes of", &self.file.name)(e.into());
        let start = match seek(&self.file.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            // No data from here to the end.
            Err(Errno::NXIO) => return Ok(None),
            // The filesystem knows nothing of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some(from..size_bytes)),
            Err(e) => return Err(fail(e)),
        };
        if start >= size_bytes {
            return Ok(None);
        }
        let end = match seek(&self.file.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // The file shrank between the two calls: the read will say so.
            Err(Errno::NXIO) => size_bytes,
            Err(e) => return Err(fail(e)),
        };
        // Filesystems with 1 KiB blocks have smaller holes than the blocks that are hashed.
        let start = (start / ALIGN * ALIGN).max(from);
        Ok(Some(start..end.next_multiple_of(ALIGN).min(size_bytes)))
    }

    /// Device, inode, size and the times of modification and change.
    ///
    /// Misses a write within one tick of the clock of the one before (4 ms, before Linux 6.13), and one through a
    /// memory mapping that was not written back. A program that sets the modification time back is noticed, as that
    /// moves the time of change.
    fn identity(&self) -> Option<String> {
        let meta = self.file.file.metadata().ok()?;
        Some(format!(
            "image:{}:{}:{}:{}.{:09}:{}.{:09}",
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        ))
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        Some(self.file.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn all_data(source: &dyn Source) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(range) = source.next_data(from).unwrap() {
            from = range.end;
            found.push(range);
        }
        found
    }

    #[test]
    fn holes_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse.img");
        let file = File::create(&path).unwrap();
        file.set_len((8 << 20) + 100).unwrap();
        file.write_at(&[1; 10], (1 << 20) + 5000).unwrap();
        file.write_at(&[1; 10], (8 << 20) + 90).unwrap();
        file.sync_all().unwrap();
        let source = ImageSource::open(&path, false).unwrap();
        let block = (1 << 20) + 4096;
        assert_eq!(all_data(&source), [block..block + 4096, 8 << 20..(8 << 20) + 100]);
        let before = source.identity().unwrap();
        assert_eq!(Some(&before), source.identity().as_ref());
        std::thread::sleep(std::time::Duration::from_millis(10));
        file.write_at(&[2; 10], 0).unwrap();
        assert_ne!(Some(before), source.identity());
    }

    #[test]
    fn files_of_nothing_and_of_holes_have_no_data() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1 << 20] {
            let path = dir.path().join(format!("{size}"));
            File::create(&path).unwrap().set_len(size).unwrap();
            assert_eq!(all_data(&ImageSource::open(&path, false).unwrap()), []);
        }
    }
}
