//! The header of a qcow2 image and its extensions, as
//! <https://www.qemu.org/docs/master/interop/qcow2.html> describes them. All numbers are big-endian.

use crate::limits::VOLUME_BYTES_MAX;

/// Bytes of a header of version 2, and of the shortest of version 3.
const HEADER_BYTES_V2: usize = 72;
const HEADER_BYTES_V3: usize = 104;
/// Sizes of clusters that QEMU reads: 512 bytes to 2 MiB.
const CLUSTER_BITS_MIN: u32 = 9;
const CLUSTER_BITS_MAX: u32 = 21;
/// Fewest for extended entries, which divide a cluster by 32.
const CLUSTER_BITS_MIN_EXTENDED: u32 = 14;
/// Largest first-level table that QEMU reads: 32 MiB.
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;
/// Last place in a file that an entry of a table can name.
const OFFSET_MAX: u64 = 1 << 56;
/// Longest name of a backing file.
const BACKING_NAME_BYTES_MAX: u32 = 1023;

/// Bits of `incompatible_features`.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

/// Types of header extensions.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// zstd frames.
    Zstd,
}

/// What a reader needs of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the bytes in a cluster.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Where the first-level table begins in the file.
    pub l1_offset: u64,
    /// Its entries that the disk needs.
    pub l1_entries: u64,
    /// What holds the clusters that are not in this file: its name as written.
    pub backing_name: Option<String>,
    /// The format of that, if it is written down.
    pub backing_format: Option<String>,
    /// Clusters of data are in another file; its name, if it is written down.
    pub data_file: Option<Option<String>>,
    /// Of compressed clusters.
    pub compression: Compression,
    /// Second-level entries are 16 bytes and tell of 32 parts of a cluster.
    pub extended_l2: bool,
    /// Snapshots inside the image, which are no part of the disk.
    pub snapshots: u32,
}

impl Header {
    /// Decodes the beginning of an image: its first cluster, or all there is of it. The error is the reason, for
    /// people.
    pub fn decode(bytes: &[u8]) -> Result<Header, String> {
        let (version, cluster_bits) = (u32_at(bytes, 4)?, u32_at(bytes, 20)?);
        if !bytes.starts_with(b"QFI\xfb") {
            return Err("it does not begin as a qcow2 image does".into());
        }
        if !(2..=3).contains(&version) {
            return Err(format!("it is of version {version} of the format, this program reads 2 and 3"));
        }
        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return Err(format!("its clusters are of 2^{cluster_bits} bytes, and 2^9 to 2^21 are possible"));
        }
        match u32_at(bytes, 32)? {
            0 => {}
            method => return Err(encrypted(method)),
        }
        let newer = if version >= 3 { Newer::decode(bytes, cluster_bits)? } else { Newer::VERSION_2 };
        let first_cluster = &bytes[..bytes.len().min(1 << cluster_bits)];
        let extensions = Extensions::decode(first_cluster, newer.header_bytes)?;
        let header = Header {
            version,
            cluster_bits,
            size_bytes: u64_at(bytes, 24)?,
            l1_offset: u64_at(bytes, 40)?,
            l1_entries: 0,
            backing_name: backing_name(bytes)?,
            backing_format: extensions.backing_format,
            data_file: newer.external_data.then_some(extensions.data_file),
            compression: newer.compression,
            extended_l2: newer.extended_l2,
            snapshots: u32_at(bytes, 60)?,
        };
        header.with_l1(u32_at(bytes, 36)?)
    }

    /// Checks the size of the disk and the first-level table, of which `l1_entries` are there.
    fn with_l1(mut self, l1_entries: u32) -> Result<Self, String> {
        if self.size_bytes > VOLUME_BYTES_MAX {
            return Err(format!(
                "it holds {} bytes, more than the {VOLUME_BYTES_MAX} that a volume can have",
                self.size_bytes
            ));
        }
        self.l1_entries = self.size_bytes.div_ceil(self.bytes_per_l2_table());
        if self.l1_entries > u64::from(l1_entries) || self.l1_entries > L1_ENTRIES_MAX {
            return Err(format!(
                "its first table has {l1_entries} entries, and a disk of {} bytes needs {}",
                self.size_bytes, self.l1_entries
            ));
        }
        if !self.l1_offset.is_multiple_of(self.cluster_bytes()) || self.l1_offset > OFFSET_MAX {
            return Err(format!("its first table begins at {}, inside a cluster", self.l1_offset));
        }
        Ok(self)
    }

    /// Bytes in a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes in an entry of a second-level table.
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of a second-level table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Bytes of the disk that a second-level table tells of.
    pub fn bytes_per_l2_table(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }
}

/// What version 3 has on top.
struct Newer {
    header_bytes: usize,
    external_data: bool,
    extended_l2: bool,
    compression: Compression,
}

impl Newer {
    const VERSION_2: Newer = Newer {
        header_bytes: HEADER_BYTES_V2,
        external_data: false,
        extended_l2: false,
        compression: Compression::Deflate,
    };

    fn decode(bytes: &[u8], cluster_bits: u32) -> Result<Newer, String> {
        let features = u64_at(bytes, 72)?;
        let header_bytes = u32_at(bytes, 100)? as usize;
        if features & CORRUPT != 0 {
            return Err("it is marked as corrupt: `qemu-img check -r all` may mend it".into());
        }
        if features & DIRTY != 0 {
            return Err("it was not closed by who wrote it (its dirty bit is set), or is open still: \
                        `qemu-img check -r all` mends it once nothing uses it"
                .into());
        }
        if features & !KNOWN != 0 {
            return Err(format!(
                "it uses features that this program does not know (bits {:#x})",
                features & !KNOWN
            ));
        }
        if header_bytes < HEADER_BYTES_V3 || !header_bytes.is_multiple_of(8) {
            return Err(format!("its header says that it has {header_bytes} bytes"));
        }
        let extended_l2 = features & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < CLUSTER_BITS_MIN_EXTENDED {
            return Err(format!("it has extended entries and clusters of 2^{cluster_bits} bytes"));
        }
        let kind = if header_bytes > HEADER_BYTES_V3 { byte_at(bytes, 104)? } else { 0 };
        let compression = match kind {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            kind => {
                return Err(format!(
                    "its clusters are compressed in a way that this program does not know ({kind})"
                ));
            }
        };
        Ok(Newer { header_bytes, external_data: features & EXTERNAL_DATA != 0, extended_l2, compression })
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
}

impl Extensions {
    /// Those between the header and the end of the first cluster; where the bytes end, they end.
    fn decode(first_cluster: &[u8], header_bytes: usize) -> Result<Extensions, String> {
        let mut found = Extensions::default();
        let mut at = header_bytes;
        while let (Ok(kind), Ok(len)) = (u32_at(first_cluster, at), u32_at(first_cluster, at + 4)) {
            if kind == EXTENSION_END {
                break;
            }
            let start = at + 8;
            let text = || -> Result<String, String> {
                let bytes = first_cluster.get(start..start + len as usize);
                let bytes = bytes.ok_or_else(|| format!("an extension of its header has {len} bytes"))?;
                text_of(bytes)
            };
            match kind {
                EXTENSION_BACKING_FORMAT => found.backing_format = Some(text()?),
                EXTENSION_DATA_FILE => found.data_file = Some(text()?),
                _ => {}
            }
            at = start + (len as usize).next_multiple_of(8);
        }
        Ok(found)
    }
}

fn backing_name(bytes: &[u8]) -> Result<Option<String>, String> {
    let (offset, len) = (u64_at(bytes, 8)?, u32_at(bytes, 16)?);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = bytes.get(start..start.saturating_add(len as usize)).filter(|_| len <= BACKING_NAME_BYTES_MAX);
    let name = name.ok_or_else(|| format!("the name of its backing file is {len} bytes at {offset}"))?;
    text_of(name).map(Some)
}

fn text_of(bytes: &[u8]) -> Result<String, String> {
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| "a name in its header is no text".to_owned())?;
    Ok(text.trim_end_matches('\0').to_owned())
}

fn encrypted(method: u32) -> String {
    let how = match method {
        1 => "AES".into(),
        2 => "LUKS".into(),
        other => format!("method {other}"),
    };
    format!("it is encrypted ({how})")
}

fn short() -> String {
    "it is cut short inside its header".into()
}

fn byte_at(bytes: &[u8], at: usize) -> Result<u8, String> {
    bytes.get(at).copied().ok_or_else(short)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    let part = bytes.get(at..at.saturating_add(4)).and_then(|part| part.try_into().ok());
    part.map(u32::from_be_bytes).ok_or_else(short)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    let part = bytes.get(at..at.saturating_add(8)).and_then(|part| part.try_into().ok());
    part.map(u64::from_be_bytes).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 3 with clusters of 64 KiB and a disk of 1 GiB.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 112];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&2u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
        bytes[100..104].copy_from_slice(&112u32.to_be_bytes());
        bytes
    }

    fn refused(change: impl Fn(&mut Vec<u8>)) -> String {
        let mut bytes = header();
        change(&mut bytes);
        Header::decode(&bytes).unwrap_err()
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_reason() {
        let found = Header::decode(&header()).unwrap();
        assert_eq!((found.l1_entries, found.size_bytes, found.backing_name), (2, 1 << 30, None));
        assert!(refused(|h| h[35] = 2).contains("LUKS"));
        assert!(refused(|h| h[79] = 1).contains("dirty"));
        assert!(refused(|h| h[79] = 2).contains("corrupt"));
        assert!(refused(|h| h[78] = 2).contains("0x200"));
        assert!(refused(|h| h[7] = 4).contains("version 4"));
        assert!(refused(|h| h[23] = 40).contains("2^40"));
        assert!(refused(|h| h[39] = 1).contains("1 entries"));
        assert!(refused(|h| h[24] = 0xff).contains("more than"));
        assert!(refused(|h| h[47] = 8).contains("inside a cluster"));
        assert!(refused(|h| h[104] = 2).contains("compressed"));
        assert!(refused(|h| h.truncate(50)).contains("cut short"));
        let far = refused(|h| {
            h[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
            h[19] = 8;
        });
        assert!(far.contains("backing file"), "{far}");
    }

    #[test]
    fn names_and_extensions() {
        let mut bytes = header();
        for (kind, text) in
            [(EXTENSION_BACKING_FORMAT, "raw"), (0x1234, "unknown"), (EXTENSION_DATA_FILE, "d")]
        {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((text.len() as u32).to_be_bytes());
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend([0; 8]);
        let at = bytes.len() as u64;
        bytes.extend(b"base.img");
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[19] = 8;
        bytes[79] = 4;
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.backing_name.as_deref(), Some("base.img"));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert_eq!(header.data_file, Some(Some("d".into())));
    }
}
