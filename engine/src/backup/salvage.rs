//! Reading around what cannot be read.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::origin::Origin;
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};

/// What becomes of a place that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReadError {
    /// The backup fails, and names the place.
    #[default]
    Fail,
    /// Zeros are stored, the place is recorded in the recovery point, and the backup goes on.
    Zero,
}

/// Bytes read at a time where a read of a whole segment has failed; what fails again is read block by block.
const PIECE_BYTES: usize = 64 << 10;

/// True for an error that speaks of a place on the medium, not of the device being gone or the network being down:
/// EIO, and what the block layer makes of media errors, failed checksums and time-outs of single commands.
pub fn is_of_the_medium(error: &Error) -> bool {
    let Error::Io { action: "read", source, .. } = error else { return false };
    is_medium(source)
}

fn is_medium(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO | libc::EBADMSG)
    )
}

/// A segment read piece by piece.
pub struct Salvaged {
    /// Its bytes, with zeros where they could not be read.
    pub buf: AlignedBuf,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// What could not be read, as places in the volume.
    pub unreadable: Vec<Range<u64>>,
}

/// Reads `len` bytes of a volume at `offset_bytes`. Fails on any error that is not of the medium.
pub fn read_around(origin: &Origin, offset_bytes: u64, len: usize) -> Result<Salvaged> {
    let mut salvaged =
        Salvaged { buf: AlignedBuf::new(SEGMENT_BYTES), read_bytes: 0, unreadable: Vec::new() };
    for start in (0..len).step_by(PIECE_BYTES) {
        let piece = start..(start + PIECE_BYTES).min(len);
        if salvaged.read(origin, offset_bytes, piece.clone())? {
            continue;
        }
        for start in piece.clone().step_by(BLOCK_BYTES) {
            let block = start..(start + BLOCK_BYTES).min(piece.end);
            if !salvaged.read(origin, offset_bytes, block.clone())? {
                salvaged.buf[block.clone()].fill(0);
                salvaged.note(offset_bytes + block.start as u64..offset_bytes + block.end as u64);
            }
        }
    }
    Ok(salvaged)
}

impl Salvaged {
    /// False if the range cannot be read.
    fn read(&mut self, origin: &Origin, offset_bytes: u64, range: Range<usize>) -> Result<bool> {
        let result = match origin {
            Origin::File(file) => {
                // Whole blocks, as O_DIRECT wants them; at the end of the volume fewer come.
                let wide = range.start..range.end.next_multiple_of(BLOCK_BYTES);
                let position = offset_bytes + range.start as u64;
                read_full(&file.file, &mut self.buf[wide], position, range.len())
                    .map_err(Error::io("read", format_args!("{} at byte {position}", file.name)))
            }
            Origin::Ranges(source) => {
                self.buf[range.clone()].fill(0);
                let wanted = range.start as u32..range.end as u32;
                source.fetch(offset_bytes, &[wanted]).map(|fetched| {
                    for (place, bytes) in fetched.parts {
                        let from = (place as usize).max(range.start);
                        let to = (place as usize + bytes.len()).min(range.end);
                        if from < to {
                            self.buf[from..to]
                                .copy_from_slice(&bytes[from - place as usize..to - place as usize]);
                        }
                    }
                })
            }
        };
        match result {
            Ok(()) => {
                self.read_bytes += range.len() as u64;
                Ok(true)
            }
            Err(error) if is_of_the_medium(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn note(&mut self, range: Range<u64>) {
        match self.unreadable.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.unreadable.push(range),
        }
    }
}

/// Reads at least `len` bytes into `buf`.
fn read_full(file: &std::fs::File, buf: &mut [u8], position: u64, len: usize) -> io::Result<()> {
    let mut filled = 0;
    while filled < len {
        // After a short read O_DIRECT goes on at a block's border.
        let at = filled / BLOCK_BYTES * BLOCK_BYTES;
        match file.read_at(&mut buf[at..], position + at as u64) {
            Ok(count) if at + count > filled => filled = at + count,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source became shorter")),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
