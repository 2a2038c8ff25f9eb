//! Image formats that hold a disk: a file of one is not the disk, and is no use to a machine as it stands. They are
//! known by their magic numbers, wherever those are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Error;

/// Bytes looked at, at the beginning and at the end.
const HEAD_BYTES: usize = 512;
const TAIL_BYTES: usize = 512;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's, version 2 or 3: read as the disk it holds.
    Qcow2,
    /// Its predecessor, version 1.
    Qcow,
    /// Another of QEMU's.
    Qed,
    /// VMware's, in one file.
    Vmdk,
    /// VMware's text that names the files which hold the disk.
    VmdkDescriptor,
    /// Microsoft's.
    Vhdx,
    /// Its predecessor, of Connectix; a fixed one is the disk with 512 bytes more.
    Vhd,
    /// VirtualBox's.
    Vdi,
    /// Parallels'.
    Parallels,
}

impl Format {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow (version 1)",
            Self::Qed => "QED",
            Self::Vmdk => "VMDK",
            Self::VmdkDescriptor => "VMDK (the descriptor; the disk is in the files that it names)",
            Self::Vhdx => "VHDX",
            Self::Vhd => "VHD",
            Self::Vdi => "VDI",
            Self::Parallels => "Parallels",
        }
    }

    /// As qemu-img calls it.
    fn qemu_name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk | Self::VmdkDescriptor => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vpc",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
        }
    }
}

/// The format of a file, if it is one of those that hold a disk.
pub fn detect(file: &File) -> io::Result<Option<Format>> {
    let size_bytes = file.metadata()?.len();
    let mut head = [0; HEAD_BYTES];
    let head_bytes = read_up_to(file, &mut head, 0)?;
    let mut tail = [0; TAIL_BYTES];
    let tail_bytes = read_up_to(file, &mut tail, size_bytes.saturating_sub(TAIL_BYTES as u64))?;
    Ok(detect_in(&head[..head_bytes], &tail[..tail_bytes]))
}

/// The format of what begins with `head` (512 bytes, or all there is) and ends with `tail`.
pub fn detect_in(head: &[u8], tail: &[u8]) -> Option<Format> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|from| from.starts_with(magic));
    Some(match head {
        _ if at(0, b"QFI\xfb\0\0\0\x01") => Format::Qcow,
        // Also versions to come: the reader says that it does not know them.
        _ if at(0, b"QFI\xfb") => Format::Qcow2,
        _ if at(0, b"QED\0") => Format::Qed,
        // Sparse (hosted), sparse (ESX), SE sparse.
        _ if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"\xbe\xba\xfe\xca\0\0\0\0") => Format::Vmdk,
        _ if is_vmdk_descriptor(head) => Format::VmdkDescriptor,
        _ if at(0, b"vhdxfile") => Format::Vhdx,
        // A fixed one has its footer at the end only.
        _ if at(0, b"conectix") || tail.starts_with(b"conectix") => Format::Vhd,
        _ if at(64, &[0x7f, 0x10, 0xda, 0xbe]) => Format::Vdi,
        _ if at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt") => Format::Parallels,
        _ => return None,
    })
}

/// Comments and empty lines may stand before the line that tells.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii());
    lines.any(|line| line.to_ascii_lowercase().starts_with(b"# disk descriptorfile"))
}

/// Why a file of this format is not backed up, and what to do.
pub fn refused(path: &Path, format: Format) -> Error {
    let name = path.display();
    let raw = path.with_extension("raw");
    let why = format!(
        "it is the file of an image format, {}, and not the disk that this holds. Convert it: \
         `qemu-img convert -f {} -O raw {name} {}`, and back that up; or store the file as it is with --raw-container",
        format.name(),
        format.qemu_name(),
        raw.display()
    );
    Error::SourceRefused { source_name: name.to_string(), why }
}

fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_magic_numbers() {
        let head = |magic: &[u8]| detect_in(magic, &[]);
        assert_eq!(head(b"QFI\xfb\0\0\0\x03"), Some(Format::Qcow2));
        assert_eq!(head(b"QFI\xfb\0\0\0\x01"), Some(Format::Qcow));
        assert_eq!(head(b"# a comment\n# Disk DescriptorFile\nversion=1\n"), Some(Format::VmdkDescriptor));
        let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        vdi.resize(64, 0);
        vdi.extend(0xbeda_107f_u32.to_le_bytes());
        assert_eq!(head(&vdi), Some(Format::Vdi));
        assert_eq!(detect_in(&[0; 512], b"conectix"), Some(Format::Vhd));
        // What real disks begin with: nothing, a boot sector, LUKS, text.
        for disk in [&[0; 512][..], b"\xeb\x63\x90", b"LUKS\xba\xbe", b"# some text\n", b"QFI", b""] {
            assert_eq!(detect_in(disk, disk), None, "{disk:?}");
        }
    }
}
