//! Where volumes are read from: a size, a map of the ranges worth reading, and a descriptor for the reader threads (or
//! a way to ask for ranges). Nothing here opens anything for writing.

mod command;
pub mod container;
pub mod device;
pub mod extents;
pub mod image;
pub mod in_use;
pub mod qcow2;
pub mod stream;
pub mod sysfs;
pub mod usage;
pub mod watch;

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

pub use crate::io::fetch::{Fetched, RangeSource};
pub use crate::io::file::OpenFile;
pub use device::DeviceSource;
pub use extents::Extents;
pub use image::ImageSource;
pub use stream::StreamSource;
pub use watch::{Seen, Watch};

use crate::error::{Error, Result};
use crate::limits::VOLUME_BYTES_MAX;

/// What a source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// A block device.
    Device,
    /// A regular file.
    Image,
    /// Standard input or a FIFO: read once, front to back, of unknown size.
    Stream,
    /// A snapshot in a cloud, read through an API.
    Snapshot,
}

/// How to open a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Also read what is in use read-write, or changes while it is read; the backup is then no better than after a
    /// power cut, or worse.
    pub force_live: bool,
    /// Read the file of an image format that holds a disk (qcow2, VMDK, …) as the bytes it is, not as that disk.
    pub raw_container: bool,
}

/// A volume that can be backed up.
pub trait Source: Send + Sync {
    /// For messages and as the volume's name: the path as given, or `stdin`.
    fn name(&self) -> &str;

    /// Bytes in the volume, fixed when it is opened; `None` for a stream.
    fn size_bytes(&self) -> Option<u64>;

    /// What it is.
    fn kind(&self) -> SourceKind;

    /// Unit of the device's own transfers, 512 or 4096; 1 where there is no device. Recorded with the volume, since a
    /// partition table written for one does not work with the other.
    fn logical_block_bytes(&self) -> u32;

    /// The next range at or after `from` that may hold data; `None` after the last. What lies between is a hole,
    /// reads as zeros and need not be read. Ends are multiples of 4 KiB or the volume's end, and so are starts if
    /// `from` is. Fails with [`Error::Invalid`] on a stream.
    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>>;

    /// A token that stays equal while the contents do, so that a backup that was killed can go on. `None`: no such
    /// claim can be made. See the implementations for what each can miss.
    fn identity(&self) -> Option<String>;

    /// The descriptor for reader threads; `None` for a stream, and where ranges are asked for.
    fn file(&self) -> Option<Arc<OpenFile>>;

    /// What fetcher threads ask for ranges, where there is no descriptor.
    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        None
    }

    /// What tells, after the last read, whether the contents changed since this call; `None` where they cannot, or
    /// where nothing tells.
    fn watch(&self) -> Option<Watch> {
        None
    }

    /// The image format that the volume was read out of, as `qcow2`; `None` where the bytes are the volume.
    fn container(&self) -> Option<&'static str> {
        None
    }

    /// What the user should know of it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The stream, if that is what this is: it is read by the pipeline itself, with a mutable borrow.
    fn as_stream(&mut self) -> Option<&mut StreamSource> {
        None
    }
}

/// Opens `path` by what it is: block device, regular file, FIFO, or `-` for standard input. Waits for a FIFO's
/// writer.
///
/// Fails with [`Error::SourceRefused`] if the device is in use (see [`OpenOptions::force_live`]) or the path is
/// something else, and with [`Error::Io`] if it cannot be opened.
pub fn open(path: &Path, options: OpenOptions) -> Result<Box<dyn Source>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(StreamSource::stdin()));
    }
    let name = path.display().to_string();
    let kind = fs::metadata(path).map_err(Error::io("open", &name))?.file_type();
    if kind.is_block_device() {
        return Ok(Box::new(DeviceSource::open(path, options.force_live)?));
    }
    if kind.is_file() {
        return open_file(path, options);
    }
    if kind.is_fifo() {
        return Ok(Box::new(StreamSource::fifo(path)?));
    }
    let what =
        if kind.is_dir() { "a directory" } else { "neither a block device, a regular file nor a FIFO" };
    Err(Error::SourceRefused {
        source_name: name,
        why: format!("it is {what}. Penstock backs up whole volumes: give a device or an image file"),
    })
}

/// A regular file: a disk image, or the file of a format that holds one.
fn open_file(path: &Path, options: OpenOptions) -> Result<Box<dyn Source>> {
    let name = path.display().to_string();
    let file = fs::File::open(path).map_err(Error::io("open", &name))?;
    // What cannot be read is met again by whoever reads it all, and told with its place.
    match container::detect(&file).unwrap_or(None) {
        Some(_) if options.raw_container => {}
        Some(container::Format::Qcow2) => {
            return Ok(Box::new(qcow2::Qcow2Source::open(path, options.force_live)?));
        }
        Some(format) => return Err(container::refused(path, format)),
        None => {}
    }
    Ok(Box::new(ImageSource::open(path, options.force_live)?))
}

/// Refuses sizes that the format cannot hold, and volumes of nothing: they are mistakes, and would become `latest`.
fn check_size(name: &str, size_bytes: u64) -> Result<()> {
    if size_bytes == 0 {
        let why = "it is empty (0 bytes)".into();
        return Err(Error::SourceRefused { source_name: name.into(), why });
    }
    if size_bytes <= VOLUME_BYTES_MAX {
        return Ok(());
    }
    let why = format!("it holds {size_bytes} bytes, more than the {VOLUME_BYTES_MAX} that a volume can have");
    Err(Error::SourceRefused { source_name: name.into(), why })
}
