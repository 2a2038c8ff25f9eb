//! A pack that is being filled: begun when the first content comes, given away when it is full.

use std::time::{Duration, Instant};

use super::{FinishedPack, PackBuilder};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::io::BufPool;

/// At most one open pack of one kind.
pub struct OpenPack {
    kind: ObjectKind,
    pack_bytes: usize,
    pool: BufPool,
    open: Option<(PackBuilder, Instant)>,
}

impl OpenPack {
    /// No pack yet. Buffers of `pool` have [`pack_buffer_bytes`](super::pack_buffer_bytes) for `pack_bytes`.
    pub fn new(kind: ObjectKind, pool: BufPool, pack_bytes: usize) -> Self {
        Self { kind, pack_bytes, pool, open: None }
    }

    /// The open pack, begun if there is none: that waits for a buffer if the store is behind.
    pub fn builder(&mut self, keys: &RepoKeys) -> Result<&mut PackBuilder> {
        let (builder, _) = match &mut self.open {
            Some(open) => open,
            slot => {
                let buf = self.pool.get_blocking().ok_or(Error::Cancelled)?;
                slot.insert((PackBuilder::start(keys, self.kind, buf, self.pack_bytes)?, Instant::now()))
            }
        };
        Ok(builder)
    }

    /// The pack, if it takes no more.
    pub fn take_full(&mut self) -> Option<FinishedPack> {
        let is_full = self.open.as_ref().is_some_and(|(builder, _)| builder.is_full());
        if is_full { self.take() } else { None }
    }

    /// The pack, if anything was added to it.
    pub fn take(&mut self) -> Option<FinishedPack> {
        let (builder, _) = self.open.take()?;
        if builder.is_empty() { None } else { Some(builder.finish()) }
    }

    /// How long the pack has been open.
    pub fn age(&self) -> Option<Duration> {
        self.open.as_ref().map(|(_, begun)| begun.elapsed())
    }

    /// True if the next content needs a buffer.
    pub fn is_none(&self) -> bool {
        self.open.is_none()
    }
}

/// An open pack of each kind.
pub struct OpenOfKinds {
    data: OpenPack,
    meta: OpenPack,
}

impl OpenOfKinds {
    /// None yet. Buffers as in [`OpenPack::new`]; two, if both kinds are filled at once.
    pub fn new(pool: &BufPool, pack_bytes: usize) -> Self {
        let of = |kind| OpenPack::new(kind, pool.clone(), pack_bytes);
        Self { data: of(ObjectKind::Data), meta: of(ObjectKind::Meta) }
    }

    /// That of `kind`: the data pack for all but metadata.
    pub fn of(&mut self, kind: ObjectKind) -> &mut OpenPack {
        if kind == ObjectKind::Meta { &mut self.meta } else { &mut self.data }
    }
}
