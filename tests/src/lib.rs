//! What the whole-system tests are made of. They know penstock by its command line, exit codes, JSON and the names of
//! the objects on disk (`docs/FORMAT.md`), never by its code: of the workspace, this crate depends on the lab alone.
//!
//! | noun | file |
//! |---|---|
//! | one run of the binary: arguments, time limit, exit code, output, kill | [`penstock`] |
//! | a repository with its key and its state directory | [`repo`] |
//! | a directory on a real disk that goes away by itself | [`workdir`] |
//! | loop devices | [`loopdev`] |
//! | filesystems on loop devices, mounts | [`filesystem`] |
//! | contents: random, text, zeros, holes, mixtures, edits | [`image`] |
//! | byte comparison | [`compare`] |
//! | an account with instances, in the lab | [`cloud`] |
//! | a machine that qemu emulates: serial port, NVMe drives plugged in and out | [`guest`] |
//! | what such a machine runs without a disk of its own | [`initramfs`] |
//! | servers like S3 and Azure; a proxy that injects faults | [`servers`] |
//! | a proxy that loses acknowledgements | [`lossy`] |
//! | a proxy that is a slow line, or a far one | [`slow`] |
//! | a proxy that archives objects as S3 Glacier does, and thaws them | [`archive`] |
//! | damage to repository objects | [`damage`] |
//! | a filesystem that forgets what was not synced, and stories on it | [`power`] |
//! | Rust source as text, for the layering rules | [`source_text`] |
//! | fixed-seed randomness, external tools, JSON access | [`rng`], [`tools`], [`json`] |
//!
//! Nothing here skips: a missing tool, right or filesystem fails the test and says what to install. Everything that outlives a
//! process (loop devices, mounts, files) has an owner whose `Drop` removes it, also when the test fails. Declare the
//! [`workdir::Workdir`] first: Rust drops in reverse order, so it goes last.

pub mod archive;
pub mod cloud;
pub mod compare;
pub mod damage;
pub mod filesystem;
pub mod guest;
pub mod iam;
pub mod image;
pub mod initramfs;
pub mod json;
pub mod loopdev;
pub mod lossy;
pub mod nights;
pub mod penstock;
pub mod power;
pub mod repo;
pub mod rng;
pub mod servers;
pub mod slow;
pub mod source_text;
pub mod tools;
pub mod workdir;

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes in a TiB.
pub const TIB: u64 = 1 << 40;
/// Bytes in a segment of a volume (`docs/FORMAT.md`).
pub const SEGMENT: u64 = 4 * MIB;
/// Bytes in a block (`docs/FORMAT.md`).
pub const BLOCK: u64 = 4 * KIB;
/// Largest chunk of the default chunk size.
pub const CHUNK_MAX: u64 = 256 * KIB;

/// True in the long tier (`tests/run --full` sets `PENSTOCK_TESTS_FULL=1`).
pub fn full_tier() -> bool {
    std::env::var_os("PENSTOCK_TESTS_FULL").is_some_and(|value| value == "1")
}

/// `quick` or `full`, by tier.
pub fn by_tier<T>(quick: T, full: T) -> T {
    if full_tier() { full } else { quick }
}
