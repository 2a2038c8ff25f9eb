//! One qcow2 file: where the bytes of its disk are, as its two levels of tables say.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::header::Header;
use crate::error::{Error, Result};

/// Bits of table entries: an offset in the file; a compressed cluster; used once; reads as zeros.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
/// Unit that the length of compressed clusters is counted in.
const SECTOR_BYTES: u64 = 512;
/// Parts of a cluster that extended entries tell of.
const SUBCLUSTERS: u64 = 32;
/// Tables are read and kept in blocks of this size: so many of the first level, so many of the second.
const BLOCK_BYTES: u64 = 16 << 10;
const L1_BLOCKS: usize = 4;
const L2_BLOCKS: usize = 60;

/// A file that is read at positions.
pub trait ReadAt: Send + Sync {
    /// Bytes in it, as found when it was opened.
    fn size_bytes(&self) -> u64;

    /// As `pread(2)`: fewer bytes than asked for at the end, 0 behind it.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Where bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the backing file, if there is one; else they are zeros.
    Unallocated,
    /// Zeros.
    Zero,
    /// In the file of data, from this byte on.
    Data(u64),
    /// In a compressed cluster of the file.
    Compressed(Compressed),
}

/// A compressed cluster, and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes that hold it; less may be used.
    pub stored_bytes: u64,
    /// The place in the cluster, once decompressed.
    pub within: u64,
}

/// A run of bytes of the disk that are in one kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the first of them is; the others follow it.
    pub kind: Kind,
    /// How many.
    pub len: u64,
}

/// An open image.
pub struct Image {
    name: String,
    header: Header,
    file: Arc<dyn ReadAt>,
    /// Where clusters of data are: the image's own file, unless it names another.
    data: Arc<dyn ReadAt>,
    tables: Mutex<Tables>,
}

/// A block of a table, with its number.
type CachedBlock = Option<(u64, Box<[u8]>)>;

/// Blocks of tables read lately, by their numbers.
struct Tables {
    l1: Vec<CachedBlock>,
    l2: Vec<CachedBlock>,
}

impl Image {
    /// An image whose header was decoded. `data` is the file of data that its header names, if it does.
    pub fn new(name: &str, header: Header, file: Arc<dyn ReadAt>, data: Option<Arc<dyn ReadAt>>) -> Self {
        let none = |blocks| std::iter::repeat_with(|| None).take(blocks).collect();
        let data = data.unwrap_or_else(|| file.clone());
        let tables = Mutex::new(Tables { l1: none(L1_BLOCKS), l2: none(L2_BLOCKS) });
        Self { name: name.to_owned(), header, file, data, tables }
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the bytes at `at` are, and for how many of the next `limit` bytes that goes on. `at + limit` is not behind
    /// the disk's end, and `limit` is not 0.
    ///
    /// Fails with [`Error::SourceRefused`] if the tables are damaged.
    pub fn extent(&self, at: u64, limit: u64) -> Result<Extent> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.next(&mut tables, at)?;
        while found.len < limit {
            let next = self.next(&mut tables, at + found.len)?;
            let goes_on = match (found.kind, next.kind) {
                (Kind::Data(first), Kind::Data(second)) => first + found.len == second,
                (Kind::Zero, Kind::Zero) | (Kind::Unallocated, Kind::Unallocated) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            found.len += next.len;
        }
        Ok(Extent { len: found.len.min(limit), ..found })
    }

    /// As [`Image::extent`] without its loop: up to the end of a cluster, or of what a table tells of.
    fn next(&self, tables: &mut Tables, at: u64) -> Result<Extent> {
        let header = &self.header;
        let cluster_bytes = header.cluster_bytes();
        let (table, in_table) = (at / header.bytes_per_l2_table(), at % header.bytes_per_l2_table());
        if table >= header.l1_entries {
            return Err(self.damaged(format_args!("byte {at} lies behind the end of the disk")));
        }
        let l1_entry = self.entry(&mut tables.l1, header.l1_offset + table * 8)?;
        let l2_offset = l1_entry & OFFSET;
        if l2_offset == 0 {
            return Ok(Extent { kind: Kind::Unallocated, len: header.bytes_per_l2_table() - in_table });
        }
        if !l2_offset.is_multiple_of(cluster_bytes) {
            return Err(self.damaged(format_args!("the table at {l2_offset} begins inside a cluster")));
        }
        let entry_at = l2_offset + in_table / cluster_bytes * header.l2_entry_bytes();
        let entry = self.entry(&mut tables.l2, entry_at)?;
        let within = at % cluster_bytes;
        let rest = cluster_bytes - within;
        if entry & COMPRESSED != 0 {
            return Ok(Extent { kind: self.compressed(entry, within)?, len: rest });
        }
        if header.extended_l2 {
            let parts = self.entry(&mut tables.l2, entry_at + 8)?;
            return self.subcluster(entry, parts, within);
        }
        let offset = entry & OFFSET;
        let kind = match entry {
            _ if header.version >= 3 && entry & ZERO != 0 => Kind::Zero,
            // In a file of data of its own, 0 is a place, too.
            _ if offset == 0 && (header.data_file.is_none() || entry & COPIED == 0) => Kind::Unallocated,
            _ => self.data(offset, within)?,
        };
        Ok(Extent { kind, len: rest })
    }

    /// By an extended entry: a bit for each part that is in the file, and one for each that is zero.
    fn subcluster(&self, entry: u64, parts: u64, within: u64) -> Result<Extent> {
        let part_bytes = self.header.cluster_bytes() / SUBCLUSTERS;
        let part = within / part_bytes;
        let (allocated, zero) = (parts >> part & 1, parts >> (part + SUBCLUSTERS) & 1);
        let kind = match (allocated, zero) {
            (0, 0) => Kind::Unallocated,
            (0, _) => Kind::Zero,
            (_, 0) => self.data(entry & OFFSET, within)?,
            _ => return Err(self.damaged("a part of a cluster is data and zero at once")),
        };
        Ok(Extent { kind, len: part_bytes - within % part_bytes })
    }

    /// A cluster of data that begins at `offset`.
    fn data(&self, offset: u64, within: u64) -> Result<Kind> {
        if !offset.is_multiple_of(self.header.cluster_bytes()) {
            return Err(self.damaged(format_args!("data at {offset} begins inside a cluster")));
        }
        if offset == 0 && self.header.data_file.is_none() {
            return Err(self.damaged("data is said to be where the header is"));
        }
        if offset >= self.data.size_bytes() {
            return Err(self.damaged(format_args!(
                "data is said to be at {offset}, behind the end at {}: the file is cut short",
                self.data.size_bytes()
            )));
        }
        Ok(Kind::Data(offset + within))
    }

    fn compressed(&self, entry: u64, within: u64) -> Result<Kind> {
        if self.header.data_file.is_some() {
            return Err(self.damaged("a compressed cluster, and a file of data"));
        }
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let stored_bytes = (sectors + 1) * SECTOR_BYTES - offset % SECTOR_BYTES;
        if offset >= self.file.size_bytes() {
            return Err(self.damaged(format_args!("a compressed cluster at {offset}: the file is cut short")));
        }
        Ok(Kind::Compressed(Compressed { offset, stored_bytes, within }))
    }

    /// The entry of a table at `offset`, a multiple of 8.
    fn entry(&self, blocks: &mut [CachedBlock], offset: u64) -> Result<u64> {
        let (number, within) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
        let place = number as usize % blocks.len();
        let slot = &mut blocks[place];
        if slot.as_ref().is_none_or(|(found, _)| *found != number) {
            let mut block = vec![0; BLOCK_BYTES as usize];
            let count = self.read_up_to(self.file.as_ref(), &mut block, number * BLOCK_BYTES)?;
            block.truncate(count);
            *slot = Some((number, block.into()));
        }
        let block = slot.as_ref().map_or(&[][..], |(_, block)| block);
        let bytes = block.get(within..within + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| {
            self.damaged(format_args!("a table at {offset}, behind the file's end: the file is cut short"))
        })
    }

    /// Reads data from `offset` of the file of data; what is behind its end is zero.
    pub fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = self.read_up_to(self.data.as_ref(), buf, offset)?;
        buf[count..].fill(0);
        Ok(())
    }

    /// Decompresses the cluster of `place` into `cluster`, which becomes as long as a cluster is.
    pub fn read_compressed(&self, place: &Compressed, cluster: &mut Vec<u8>) -> Result<()> {
        let mut stored = vec![0; place.stored_bytes as usize];
        let count = self.read_up_to(self.file.as_ref(), &mut stored, place.offset)?;
        cluster.clear();
        cluster.resize(self.header.cluster_bytes() as usize, 0);
        super::compressed::decompress(self.header.compression, &stored[..count], cluster)
            .map_err(|why| self.damaged(format_args!("the compressed cluster at {}: {why}", place.offset)))
    }

    fn read_up_to(&self, file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let position = offset + filled as u64;
                    return Err(Error::io("read", format_args!("{} at byte {position}", self.name))(e));
                }
            }
        }
        Ok(filled)
    }

    fn damaged(&self, what: impl Display) -> Error {
        Error::SourceRefused {
            source_name: self.name.clone(),
            why: format!("it is a damaged qcow2 image: {what}. `qemu-img check` tells more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct InMemory(Vec<u8>);

    impl ReadAt for InMemory {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
            let count = buf.len().min(self.0.len() - from);
            buf[..count].copy_from_slice(&self.0[from..from + count]);
            Ok(count)
        }
    }

    const CLUSTER: usize = 4096;

    /// A disk of 64 clusters: data, zeros, a compressed cluster (a stored block of deflate), nothing.
    fn file() -> Vec<u8> {
        let mut file = vec![0; 5 * CLUSTER];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(20, &12u32.to_be_bytes());
        put(24, &(64 * CLUSTER as u64).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(CLUSTER as u64).to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(CLUSTER, &((2 * CLUSTER as u64) | COPIED).to_be_bytes());
        put(2 * CLUSTER, &((3 * CLUSTER as u64) | COPIED).to_be_bytes());
        put(2 * CLUSTER + 8, &ZERO.to_be_bytes());
        let packed = 3 * CLUSTER + 512;
        // 12 bits of cluster: the length is in the upper 4 of the 62 bits.
        put(2 * CLUSTER + 16, &(COMPRESSED | 8 << 58 | packed as u64).to_be_bytes());
        put(3 * CLUSTER, &[7; 512]);
        put(packed, &[1, 0, 16, 0xff, 0xef]);
        put(packed + 5, &[9; CLUSTER]);
        file
    }

    fn image(bytes: Vec<u8>) -> Option<Image> {
        let header = Header::decode(&bytes).ok()?;
        Some(Image::new("test", header, Arc::new(InMemory(bytes)), None))
    }

    /// Asks for everything and reads what there is; the number of extents.
    fn walk(image: &Image) -> usize {
        let (mut at, mut steps, mut bytes) = (0, 0, Vec::new());
        while at < image.header().size_bytes && steps < 200 {
            steps += 1;
            let limit = image.header().size_bytes - at;
            let Ok(extent) = image.extent(at, limit) else {
                at += image.header().cluster_bytes();
                continue;
            };
            assert!(extent.len > 0 && extent.len <= limit);
            match extent.kind {
                Kind::Data(offset) => {
                    bytes.resize(extent.len.min(8192) as usize, 0);
                    image.read_data(&mut bytes, offset).unwrap();
                }
                Kind::Compressed(place) => drop(image.read_compressed(&place, &mut bytes)),
                Kind::Zero | Kind::Unallocated => {}
            }
            at += extent.len;
        }
        steps
    }

    #[test]
    fn places_are_found() {
        let image = image(file()).unwrap();
        let size = 64 * CLUSTER as u64;
        let extent = |at: u64| image.extent(at, size - at).unwrap();
        assert_eq!(
            extent(100),
            Extent { kind: Kind::Data(3 * CLUSTER as u64 + 100), len: CLUSTER as u64 - 100 }
        );
        assert_eq!(extent(CLUSTER as u64), Extent { kind: Kind::Zero, len: CLUSTER as u64 });
        let Kind::Compressed(place) = extent(2 * CLUSTER as u64 + 5).kind else { panic!("not compressed") };
        assert_eq!((place.within, place.stored_bytes), (5, 9 * 512));
        let mut cluster = Vec::new();
        image.read_compressed(&place, &mut cluster).unwrap();
        assert_eq!(cluster, [9; CLUSTER]);
        assert_eq!(extent(3 * CLUSTER as u64), Extent { kind: Kind::Unallocated, len: 61 * CLUSTER as u64 });
        assert_eq!(walk(&image), 4);
    }

    #[test]
    fn places_outside_the_file_are_damage() {
        let damaged = |at: usize, entry: u64| {
            let mut bytes = file();
            bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            image(bytes).unwrap().extent(0, 1).unwrap_err().to_string()
        };
        assert!(damaged(CLUSTER, 1 << 40).contains("cut short"));
        assert!(damaged(CLUSTER, 512).contains("inside a cluster"));
        assert!(damaged(2 * CLUSTER, 1 << 40).contains("cut short"));
        assert!(damaged(2 * CLUSTER, 512).contains("inside a cluster"));
        assert!(damaged(2 * CLUSTER, COMPRESSED | 1 << 40).contains("cut short"));
    }

    proptest! {
        /// Whatever the bytes: an answer or an error, in bounded time.
        #[test]
        fn hostile_images_are_refused_or_read(
            changes in prop::collection::vec(
                (prop_oneof![0usize..112, 4096usize..4104, 8192usize..8300], any::<u8>()),
                0..12,
            ),
            cut in 0usize..(5 * CLUSTER + 1),
        ) {
            let mut bytes = file();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            bytes.truncate(if cut % 3 == 0 { cut } else { 5 * CLUSTER });
            if let Some(image) = image(bytes) {
                walk(&image);
            }
        }
    }
}
