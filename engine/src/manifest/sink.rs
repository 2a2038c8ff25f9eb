//! Puts nodes into metadata packs.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use super::NodeSink;
use crate::compress::Compressor;
use crate::crypto::RepoKeys;
use crate::error::Result;
use crate::id::NodeId;
use crate::index::Claims;
use crate::pack::{FinishedPack, OpenPack};

/// Within which bounds a metadata pack is closed when it is as old as a quarter of the run: so a killed run leaves the
/// nodes of most that it finished, and a long one still makes few packs.
#[derive(Clone, Copy)]
pub struct PackAge {
    /// At least.
    pub min: Duration,
    /// At most.
    pub max: Duration,
}

/// Stores each node once: those that this run, or an earlier one, has stored already are left out.
pub struct NodePacks<'a> {
    keys: &'a RepoKeys,
    claims: &'a Claims,
    packs: Sender<FinishedPack>,
    compressor: Compressor,
    open: OpenPack,
    started: Instant,
    age: Option<PackAge>,
    /// Where nodes are stored again although the index knows them: the first bytes of those that this run has.
    anew: Option<HashSet<u64>>,
}

impl<'a> NodePacks<'a> {
    /// Fills `open` and sends what is full, or too old, to `packs`.
    pub fn new(
        keys: &'a RepoKeys,
        claims: &'a Claims,
        open: OpenPack,
        packs: Sender<FinishedPack>,
        age: Option<PackAge>,
    ) -> Result<Self> {
        let compressor = Compressor::new(Some(1))?;
        Ok(Self { keys, claims, packs, compressor, open, started: Instant::now(), age, anew: None })
    }

    /// Stores nodes again that the index knows, once each: what it knows may be damaged. 16 bytes of memory a node.
    pub fn anew(mut self, anew: bool) -> Self {
        self.anew = anew.then(HashSet::new);
        self
    }

    /// Stores a node whose id is known.
    pub fn put_with_id(&mut self, id: &NodeId, node: &[u8]) -> Result<()> {
        let is_new = match &mut self.anew {
            Some(seen) => seen.insert(u64::from_le_bytes(id.as_bytes()[..8].try_into().unwrap_or_default())),
            None => self.claims.reserve(id.as_bytes())?,
        };
        if !is_new {
            return Ok(());
        }
        self.open.builder(self.keys)?.add(id.as_bytes(), node, &mut self.compressor);
        let age_max = self.age.map(|age| (self.started.elapsed() / 4).clamp(age.min, age.max));
        let is_old = age_max.is_some_and(|max| self.open.age().is_some_and(|age| age > max));
        let pack = if is_old { self.open.take() } else { self.open.take_full() };
        self.send(pack);
        Ok(())
    }

    /// Sends what is open.
    pub fn close(&mut self) {
        let pack = self.open.take();
        self.send(pack);
    }

    /// Where packs go.
    pub fn packs(&self) -> &Sender<FinishedPack> {
        &self.packs
    }

    fn send(&self, pack: Option<FinishedPack>) {
        if let Some(pack) = pack {
            // If nobody takes packs any more, the run has failed.
            let _ = self.packs.send(pack);
        }
    }
}

impl NodeSink for NodePacks<'_> {
    fn put(&mut self, node: &[u8]) -> Result<NodeId> {
        let id = self.keys.node_id(node);
        self.put_with_id(&id, node)?;
        Ok(id)
    }
}
