//! A regular file as a source.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::sysfs::loops_over;
use super::watch::FileState;
use super::{OpenFile, Source, SourceKind, Watch, check_size, in_use, usage};
use crate::error::{Error, Result};
use crate::io::file::{direct_reads_work, open_direct};
use crate::limits::IO_ALIGN;

const ALIGN: u64 = IO_ALIGN as u64;

/// An image file, opened read-only.
pub struct ImageSource {
    file: Arc<OpenFile>,
    force_live: bool,
}

impl ImageSource {
    /// Opens the file at `path` read-only, with O_DIRECT unless its filesystem refuses that.
    ///
    /// Fails with [`Error::SourceRefused`] if it is empty; and, unless `force_live` accepts that, if something writes
    /// it: a loop device that is in use read-write, a program that has it open for writing or locked.
    pub fn open(path: &Path, force_live: bool) -> Result<Self> {
        let name = path.display().to_string();
        let (file, direct) =
            open_direct(fs::OpenOptions::new().read(true), path).map_err(Error::io("open", &name))?;
        let meta = file.metadata().map_err(Error::io("inspect", &name))?;
        if !force_live {
            refuse_live(&name, &file, &meta)?;
        }
        let size_bytes = meta.len();
        check_size(&name, size_bytes)?;
        let direct = direct && direct_reads_work(&file).map_err(Error::io("read", &name))?;
        if !direct {
            // Twice the read-ahead; only advice.
            let _ = fadvise(&file, 0, None, Advice::Sequential);
        }
        Ok(Self { file: Arc::new(OpenFile { file, name, size_bytes, direct }), force_live })
    }
}

/// Refuses a file that something writes, or may write at any moment.
pub(super) fn refuse_live(name: &str, file: &fs::File, meta: &fs::Metadata) -> Result<()> {
    let loops = loops_over(meta);
    let mut why = in_use::writer_of(file, meta, !loops.is_empty());
    for device in loops {
        if let Some(found) = usage::uses_of(device.rdev)?.into_iter().find(|found| found.writable) {
            why = Some(format!("it backs /dev/{}, and {}", device.name(), found.what));
        }
    }
    let Some(why) = why else { return Ok(()) };
    let why = format!(
        "{why}, so it can change while it is read. Stop or unmount that, back up a snapshot, or accept an \
         inconsistent copy with --force-live"
    );
    Err(Error::SourceRefused { source_name: name.into(), why })
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
        data_range(&self.file, from)
    }

    /// Device, inode, size and the times of modification and change.
    ///
    /// Misses a write within one tick of the clock of the one before (4 ms, before Linux 6.13), and one through a
    /// memory mapping that was not written back. A program that sets the modification time back is noticed, as that
    /// moves the time of change.
    fn identity(&self) -> Option<String> {
        identity_of(&self.file.file)
    }

    fn watch(&self) -> Option<Watch> {
        let state = FileState::of(&self.file.file.metadata().ok()?);
        let file = self.file.clone();
        Some(Watch::new(self.name(), self.force_live, move || state.look(&file.file)))
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        Some(self.file.clone())
    }
}

/// The next range of `file` at or after `from` that is no hole, widened to 4 KiB; `None` after the last.
pub(super) fn data_range(file: &OpenFile, from: u64) -> Result<Option<Range<u64>>> {
    let size_bytes = file.size_bytes;
    if from >= size_bytes {
        return Ok(None);
    }
    let fail = |e: Errno| Error::io("find the holes of", &file.name)(e.into());
    let start = match seek(&file.file, SeekFrom::Data(from)) {
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
    let end = match seek(&file.file, SeekFrom::Hole(start)) {
        Ok(end) => end,
        // The file shrank between the two calls: the read will say so.
        Err(Errno::NXIO) => size_bytes,
        Err(e) => return Err(fail(e)),
    };
    // Filesystems with 1 KiB blocks have smaller holes than the blocks that are hashed.
    let start = (start / ALIGN * ALIGN).max(from);
    Ok(Some(start..end.next_multiple_of(ALIGN).min(size_bytes)))
}

/// Device, inode, size and the times of modification and change, as a token that stays equal while they do.
pub(super) fn identity_of(file: &fs::File) -> Option<String> {
    let meta = file.metadata().ok()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Seen;
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
        let refused = ImageSource::open(&path, false).err().unwrap().to_string();
        assert!(refused.contains("open for writing") && refused.contains("--force-live"), "{refused}");
        drop(file);
        let source = ImageSource::open(&path, false).unwrap();
        let block = (1 << 20) + 4096;
        assert_eq!(all_data(&source), [block..block + 4096, 8 << 20..(8 << 20) + 100]);
        let before = source.identity().unwrap();
        assert_eq!(Some(&before), source.identity().as_ref());
        std::thread::sleep(std::time::Duration::from_millis(10));
        let watch = source.watch().unwrap();
        assert_eq!(watch.look(), Seen::Same);
        std::thread::sleep(std::time::Duration::from_millis(10));
        File::options().write(true).open(&path).unwrap().write_at(&[2; 10], 0).unwrap();
        assert_ne!(Some(before), source.identity());
        assert!(matches!(watch.look(), Seen::Changed(_)));
    }

    #[test]
    fn a_file_of_holes_has_no_data_and_one_of_nothing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(all_data(&ImageSource::open(&path, false).unwrap()), []);
        File::create(&path).unwrap();
        let refused = ImageSource::open(&path, true).err().unwrap();
        assert!(matches!(&refused, Error::SourceRefused { why, .. } if why.contains("0 bytes")), "{refused}");
    }
}
