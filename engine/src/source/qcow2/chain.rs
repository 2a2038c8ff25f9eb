//! A qcow2 image with the files that it leans on: backing files, to any depth, and files of data.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};

use super::header::Header;
use super::image::{Extent, Image, Kind, ReadAt};
use crate::error::{Error, Result};
use crate::io::OpenFile;
use crate::source::container::{self, Format};
use crate::source::image::{data_range, refuse_live};
use crate::source::{DeviceSource, Source, SourceKind};

/// Backing files below each other at most: QEMU itself is slow long before.
const DEPTH_MAX: usize = 64;
/// A header with its extensions and names lies in the first cluster.
const FIRST_CLUSTER_BYTES_MAX: usize = 2 << 20;

/// One image of a chain.
pub enum Layer {
    /// Tables say where its bytes are.
    Qcow2(Box<Image>),
    /// The last one: bytes as they are.
    Raw(Arc<OpenFile>, SourceKind),
}

impl Layer {
    /// Bytes of the disk that it holds.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Qcow2(image) => image.header().size_bytes,
            Self::Raw(file, _) => file.size_bytes,
        }
    }

    /// As [`Image::extent`].
    pub fn extent(&self, at: u64, limit: u64) -> Result<Extent> {
        let (file, kind) = match self {
            Self::Qcow2(image) => return image.extent(at, limit),
            Self::Raw(file, kind) => (file, *kind),
        };
        if kind == SourceKind::Device {
            return Ok(Extent { kind: Kind::Data(at), len: limit });
        }
        let end = at + limit;
        Ok(match data_range(file, at)? {
            Some(data) if data.start <= at => Extent { kind: Kind::Data(at), len: data.end.min(end) - at },
            Some(data) => Extent { kind: Kind::Zero, len: data.start.min(end) - at },
            None => Extent { kind: Kind::Zero, len: limit },
        })
    }

    /// Reads data that [`Layer::extent`] found at `offset`.
    pub fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let file = match self {
            Self::Qcow2(image) => return image.read_data(buf, offset),
            Self::Raw(file, _) => file,
        };
        file.file
            .read_exact_at(buf, offset)
            .map_err(Error::io("read", format_args!("{} at byte {offset}", file.name)))
    }
}

impl ReadAt for OpenFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

/// A chain, open.
pub struct Chain {
    /// The image itself first, then what it leans on.
    pub layers: Vec<Layer>,
    /// All files that bytes come from.
    pub files: Vec<Arc<OpenFile>>,
}

/// Opens files of a chain and keeps account of them.
struct Opener {
    force_live: bool,
    files: Vec<Arc<OpenFile>>,
    /// Device and inode of each layer, to notice a chain that comes back to itself.
    seen: Vec<(u64, u64)>,
}

impl Chain {
    /// Opens the image at `path` and all that it leans on.
    ///
    /// Fails with [`Error::SourceRefused`], naming the file, if one is not there, is in use by a writer (unless
    /// `force_live` accepts that), or cannot be understood.
    pub fn open(path: &Path, force_live: bool) -> Result<Self> {
        let mut opener = Opener { force_live, files: Vec::new(), seen: Vec::new() };
        let mut layers = Vec::new();
        let mut next = Some((path.to_owned(), Some("qcow2".to_owned())));
        while let Some((path, format)) = next {
            if layers.len() == DEPTH_MAX {
                let why = format!("its chain of backing files has more than {DEPTH_MAX} of them");
                return Err(refused(&layers_name(&opener), why));
            }
            let above = (!layers.is_empty()).then(|| layers_name(&opener));
            let (layer, below) = opener.layer(&path, format.as_deref(), above.as_deref())?;
            layers.push(layer);
            next = below;
        }
        Ok(Self { layers, files: opener.files })
    }
}

/// The name of the image that the user gave.
fn layers_name(opener: &Opener) -> String {
    opener.files.first().map(|file| file.name.clone()).unwrap_or_default()
}

/// What a layer leans on: where it is, and its format if that is known.
type Below = Option<(PathBuf, Option<String>)>;

impl Opener {
    /// Opens one layer; `top` is the image that led here, where this is not that image.
    fn layer(&mut self, path: &Path, format: Option<&str>, top: Option<&str>) -> Result<(Layer, Below)> {
        let (file, kind) = self.open(path, top, "backing file")?;
        let name = file.name.clone();
        match format_of(&file, format).map_err(|why| refused(&name, why))? {
            Some(Format::Qcow2) => {}
            Some(other) => return Err(container::refused(path, other)),
            None => return Ok((Layer::Raw(file, kind), None)),
        }
        let header = read_header(&file)?;
        let mut data = None;
        if let Some(data_name) = &header.data_file {
            let data_name = data_name.as_ref();
            let data_name =
                data_name.ok_or_else(|| refused(&name, "its data is in a file that it does not name"))?;
            let place = beside(path, data_name).map_err(|why| refused(&name, why))?;
            data = Some(self.open(&place, Some(top.unwrap_or(&name)), "file of data")?.0 as Arc<dyn ReadAt>);
        }
        let below = match &header.backing_name {
            Some(backing) => {
                let place = beside(path, backing).map_err(|why| refused(&name, why))?;
                Some((place, header.backing_format.clone()))
            }
            None => None,
        };
        Ok((Layer::Qcow2(Box::new(Image::new(&name, header, file, data))), below))
    }

    fn open(&mut self, path: &Path, top: Option<&str>, what: &str) -> Result<(Arc<OpenFile>, SourceKind)> {
        let name = path.display().to_string();
        let failed = |action: &'static str| {
            let name = name.clone();
            move |error: io::Error| match top {
                Some(top) => refused(top, missing(what, &name, &error)),
                None => Error::io(action, name)(error),
            }
        };
        let file = File::open(path).map_err(failed("open"))?;
        let meta = file.metadata().map_err(failed("inspect"))?;
        let (kind, size_bytes) = if meta.file_type().is_block_device() {
            DeviceSource::open(path, self.force_live)?;
            let end = seek(&file, SeekFrom::End(0)).map_err(|e| Error::io("size", &name)(e.into()))?;
            (SourceKind::Device, end)
        } else if meta.is_file() {
            if !self.force_live {
                refuse_live(&name, &file, &meta)?;
            }
            (SourceKind::Image, meta.len())
        } else {
            return Err(refused(
                top.unwrap_or(&name),
                format!("{name} is neither a file nor a block device"),
            ));
        };
        let inode = (meta.dev(), meta.ino());
        if self.seen.contains(&inode) {
            return Err(refused(
                top.unwrap_or(&name),
                format!("its chain of backing files comes back to {name}"),
            ));
        }
        self.seen.push(inode);
        // Twice the read-ahead; only advice.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let file = Arc::new(OpenFile { file, name, size_bytes, direct: false });
        self.files.push(file.clone());
        Ok((file, kind))
    }
}

fn refused(name: &str, why: impl Into<String>) -> Error {
    Error::SourceRefused { source_name: name.to_owned(), why: why.into() }
}

fn missing(what: &str, name: &str, error: &io::Error) -> String {
    format!(
        "it leans on the {what} {name}, which cannot be opened: {error}. Without it the disk is not whole: bring it \
         back, name its new place by `qemu-img rebase -u`, or store this file alone with --raw-container"
    )
}

/// What a layer is: by the name of the format that the image above it has written down, else by its first bytes, as
/// QEMU does.
fn format_of(file: &OpenFile, written: Option<&str>) -> Result<Option<Format>, String> {
    match written {
        Some("raw") => Ok(None),
        Some("qcow2") => Ok(Some(Format::Qcow2)),
        None => Ok(container::detect(&file.file).unwrap_or(None)),
        Some(other) => {
            let known = container::detect(&file.file).unwrap_or(None);
            known
                .map(Some)
                .ok_or_else(|| format!("it is said to be of the format {other:?}, which is not read"))
        }
    }
}

fn read_header(file: &OpenFile) -> Result<Header> {
    let len = file.size_bytes.min(FIRST_CLUSTER_BYTES_MAX as u64) as usize;
    let mut bytes = vec![0; len];
    file.file
        .read_exact_at(&mut bytes, 0)
        .map_err(Error::io("read", format_args!("{} at byte 0", file.name)))?;
    Header::decode(&bytes)
        .map_err(|why| refused(&file.name, format!("{why}. --raw-container stores the file as it is")))
}

/// The file that an image at `path` calls `name`: relative to its directory, as QEMU takes it.
fn beside(path: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    let is_url = plain.split('/').next().is_some_and(|first| first.contains(':'));
    if is_url || plain.starts_with("json:") {
        return Err(format!(
            "it leans on {name:?}, which is no file: convert the whole with `qemu-img convert`"
        ));
    }
    let dir = path.parent().unwrap_or(Path::new(""));
    Ok(dir.join(plain))
}

/// A token that stays equal while the contents of all files do.
pub fn identity(files: &[Arc<OpenFile>]) -> Option<String> {
    let mut token = String::from("qcow2");
    for file in files {
        let is_file = file.file.metadata().is_ok_and(|meta| meta.is_file());
        if !is_file {
            let device = fs::canonicalize(&file.name).ok()?;
            let device = DeviceSource::open(&device, true).ok()?;
            token += &format!(" {}", device.identity()?);
            continue;
        }
        token += &format!(" {}", crate::source::image::identity_of(&file.file)?);
    }
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image() {
        let of = |name| beside(Path::new("/images/vm/top.qcow2"), name);
        assert_eq!(of("base.img"), Ok("/images/vm/base.img".into()));
        assert_eq!(of("../base.img"), Ok("/images/vm/../base.img".into()));
        assert_eq!(of("/b/x:y"), Ok("/b/x:y".into()));
        assert_eq!(of("file:base.img"), Ok("/images/vm/base.img".into()));
        for url in ["nbd://host/x", "json:{\"driver\":\"raw\"}", "rbd:pool/image"] {
            assert!(of(url).unwrap_err().contains("qemu-img convert"), "{url}");
        }
        assert_eq!(beside(Path::new("top.qcow2"), "base"), Ok("base".into()));
    }
}
