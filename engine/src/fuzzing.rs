//! Doors to decoders that nobody outside calls by themselves, for the fuzz targets (feature `fuzzing`). Each returns
//! for any input, and panics if what it read cannot be.

use std::fs::File;
use std::io::{Read, Write};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::crypto::RepoKeys;
use crate::crypto::keys::MasterKey;
use crate::format::collection::RECORD_BYTES_MAX;
use crate::format::header::{Cipher, ObjectKind};
use crate::sealed;

pub use crate::backup::fuzz_journal as backup_journal;
pub use crate::restore::fuzz_journal as restore_journal;
pub use crate::source::usage::fuzz_tables as mount_tables;
pub use crate::store::fuzz_cache_entry as cache_entry;

/// A file in memory with these contents, as decoders of files want one.
#[allow(clippy::expect_used)] // in a fuzzer that is the report
pub(crate) fn file_of(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("memory");
    file
}

/// Keys of a repository without encryption.
pub fn keys() -> RepoKeys {
    RepoKeys::derive(&MasterKey::new([5; 32]), Cipher::None)
}

/// Opens a sealed object of one region; its contents, if it is one.
pub fn sealed_object(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    sealed::decode(&keys(), "fuzz", ObjectKind::Lease, [7; 16], &mut bytes).ok()
}

/// A sealed object with these contents.
#[allow(clippy::expect_used)] // in a fuzzer that is the report
pub fn seal_object(contents: &[u8]) -> Vec<u8> {
    sealed::encode(&keys(), ObjectKind::Lease, [7; 16], contents).expect("random bytes")
}

/// The JSON in a lease or record, however long it claims to be; what is longer than a record may be ends there.
pub fn unpacked_record(packed: &[u8], limit_bytes: usize) -> Option<Vec<u8>> {
    let mut json = Vec::new();
    let decoder = zstd::Decoder::new(packed).ok()?;
    decoder.take(limit_bytes.min(RECORD_BYTES_MAX) as u64).read_to_end(&mut json).ok()?;
    Some(json)
}
