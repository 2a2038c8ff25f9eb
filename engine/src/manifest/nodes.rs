//! Loads manifest nodes. Nodes of one backup lie next to each other in metadata packs, so a window around each is fetched and kept.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::node::{Leaf, NODE_BYTES_MAX, NodeRef, decode_inner};
use crate::id::{NodeId, ObjectId};
use crate::index::Index;
use crate::pack::{FrameReader, Location};
use crate::store::{Span, Store, reread};

/// Bytes fetched at a time: about 120 leaves.
const WINDOW_BYTES: usize = 256 << 10;
/// Bytes of windows kept. A metadata pack of one night is much smaller than a window, so this is hundreds of nights whose leaves stand side by side in a tree.
const WINDOWS_BYTES_MAX: usize = 8 << 20;

struct Window {
    pack: ObjectId,
    offset: u64,
    bytes: Vec<u8>,
}

/// Loads and checks nodes for one thread.
pub struct NodeReader {
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    index: Arc<Index>,
    frames: FrameReader,
    windows: VecDeque<Window>,
    nodes_read: u64,
    rows_only: bool,
}

impl NodeReader {
    /// A reader over an open repository.
    pub fn new(store: Arc<dyn Store>, keys: Arc<RepoKeys>, index: Arc<Index>) -> Result<Self> {
        Ok(Self {
            store,
            keys,
            index,
            frames: FrameReader::new()?,
            windows: VecDeque::new(),
            nodes_read: 0,
            rows_only: false,
        })
    }

    /// The same, but for nodes that have a row in the index only: what it loads is proven to be stored.
    pub fn rows_only(mut self) -> Self {
        self.rows_only = true;
        self
    }

    /// Nodes loaded so far.
    pub fn nodes_read(&self) -> u64 {
        self.nodes_read
    }

    /// Loads a leaf of a segment of `segment_bytes`; a zero reference is one run of zeros.
    pub fn leaf(&mut self, node: NodeRef, segment_bytes: usize) -> Result<Leaf> {
        let Some(id) = node else { return Ok(zero_leaf(segment_bytes)) };
        let bytes = self.load(&id)?;
        Leaf::decode(&name_of(&id), &bytes, segment_bytes)
    }

    /// Loads an inner node of `level` with `count` children; a zero reference has zero children.
    pub fn inner(&mut self, node: NodeRef, level: u8, count: usize) -> Result<Vec<NodeRef>> {
        let Some(id) = node else { return Ok(vec![None; count]) };
        let bytes = self.load(&id)?;
        decode_inner(&name_of(&id), &bytes, level, count)
    }

    /// The bytes of a node, authenticated and checked against its id.
    fn load(&mut self, id: &NodeId) -> Result<Vec<u8>> {
        self.nodes_read += 1;
        let at = match self.rows_only {
            true => self.index.locate_newest(id.as_bytes(), "a manifest")?,
            false => self.index.locate(id.as_bytes(), "a manifest")?,
        };
        let store = self.store.clone();
        let mut again = false;
        reread(store.as_ref(), &at.pack_key(), || {
            if std::mem::replace(&mut again, true) {
                self.windows.retain(|window| window.pack != at.pack.id);
            }
            self.read(id, &at)
        })
    }

    fn read(&mut self, id: &NodeId, at: &Location) -> Result<Vec<u8>> {
        if at.raw_bytes as usize > NODE_BYTES_MAX {
            return Err(Error::damaged(name_of(id), "it is too long for a manifest node"));
        }
        let slot = self.window_of(at)?;
        let window = &self.windows[slot];
        let start = (u64::from(at.offset) - window.offset) as usize;
        let stored = &window.bytes[start..start + at.stored_bytes as usize];
        let mut raw = vec![0; at.raw_bytes as usize];
        self.frames.read(&self.keys, at, id.as_bytes(), stored, &mut raw)?;
        if self.keys.node_id(&raw) != *id {
            return Err(Error::damaged(name_of(id), "its contents do not have its id"));
        }
        Ok(raw)
    }

    /// Slot of a window that holds the frame, fetched if there is none.
    fn window_of(&mut self, at: &Location) -> Result<usize> {
        let (offset, end) = (u64::from(at.offset), at.end());
        let held =
            |w: &Window| w.pack == at.pack.id && w.offset <= offset && end <= w.offset + w.bytes.len() as u64;
        if let Some(slot) = self.windows.iter().position(held) {
            return Ok(slot);
        }
        let mut held_bytes: usize = self.windows.iter().map(|w| w.bytes.len()).sum();
        while held_bytes + WINDOW_BYTES > WINDOWS_BYTES_MAX
            && let Some(oldest) = self.windows.pop_front()
        {
            held_bytes -= oldest.bytes.len();
        }
        let mut bytes = Vec::new();
        let len = WINDOW_BYTES.max(at.stored_bytes as usize);
        let key = at.pack_key();
        let found = self.store.get(&key, Span::At { offset, len }, &mut bytes)?;
        if found.is_none() {
            return Err(Error::Missing { object: key, needed_by: "a manifest".into() });
        }
        if (bytes.len() as u64) < end - offset {
            return Err(Error::damaged(
                &key,
                format_args!("truncated at byte {}", offset + bytes.len() as u64),
            ));
        }
        self.windows.push_back(Window { pack: at.pack.id, offset, bytes });
        Ok(self.windows.len() - 1)
    }
}

/// The leaf of a segment without data.
pub(super) fn zero_leaf(segment_bytes: usize) -> Leaf {
    let mut leaf = Leaf::default();
    if segment_bytes > 0 {
        leaf.push(crate::format::node::Piece { len: segment_bytes as u32, chunk: None });
    }
    leaf
}

fn name_of(id: &NodeId) -> String {
    format!("manifest node {id}")
}
