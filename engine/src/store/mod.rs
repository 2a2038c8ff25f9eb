//! Where objects live: opaque keys and bytes. A store knows nothing of formats, keys or chunks.

mod cached;
pub mod custody;
mod local;
mod memory;
mod metrics;
pub mod object;
mod place;
mod price;
mod publish;
mod throttle;
mod tmp;
#[cfg(feature = "fuzzing")]
pub use cached::fuzz_entry as fuzz_cache_entry;

#[cfg(any(test, feature = "conformance"))]
#[allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test suite reports
pub mod conformance;

use std::sync::Arc;

pub use cached::{CacheOptions, Cached};
pub use local::LocalStore;
pub use memory::MemoryStore;
pub use metrics::{Counted, Requests};
pub use place::Place;
pub use price::ThawOffer;
pub use throttle::{Limited, Limits, Throttle};

use crate::error::{Error, Result};
use crate::io::{IoEngine, PooledBuf};

/// Answer to a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The object is new and durable.
    Created,
    /// The key was taken; nothing was changed.
    Exists,
}

/// What to put.
pub enum Body<'a> {
    /// Small objects.
    Bytes(&'a [u8]),
    /// Packs: the first `len` bytes of an aligned buffer, which goes back to its pool once they are stored.
    Pooled {
        /// The buffer.
        buf: PooledBuf,
        /// Bytes of it that are the object.
        len: usize,
    },
}

impl Body<'_> {
    /// The object's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Body::Bytes(bytes) => bytes,
            Body::Pooled { buf, len } => &buf[..*len],
        }
    }
}

/// Which part of an object to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Span {
    /// All of it.
    All,
    /// `len` bytes from `offset` on; fewer if the object ends before.
    At {
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        len: usize,
    },
    /// The last bytes; all of a shorter object.
    Last(usize),
}

impl Span {
    /// Which bytes of an object of that length these are.
    pub fn within(self, object_bytes: u64) -> std::ops::Range<u64> {
        match self {
            Span::All => 0..object_bytes,
            Span::At { offset, len } => {
                let start = offset.min(object_bytes);
                start..start.saturating_add(len as u64).min(object_bytes)
            }
            Span::Last(len) => object_bytes.saturating_sub(len as u64)..object_bytes,
        }
    }
}

/// Writes the bytes of a streamed object.
pub type Fill<'a> = dyn FnMut(&mut dyn std::io::Write) -> Result<()> + 'a;

/// An object held open. It can be read to its end even if it is deleted meanwhile.
pub trait ReadAt: Send + Sync {
    /// Fills `out` from `offset` on; the count is smaller only where the object ends.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize>;
}

/// What is known of a store's promise that [`Store::put_new`] never replaces an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exclusive {
    /// It was tried, lately or now, and holds.
    Holds,
    /// It could not be tried: why.
    Untried(String),
}

/// What is fast and cheap on a store. Decorators hand on what the store inside says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Habits {
    /// True if requests cost money: see [`Requests::usd`].
    pub bills_requests: bool,
    /// Large objects that are worth storing at a time; each holds a buffer until it is stored.
    pub parallel_puts: usize,
    /// Ranges that are worth fetching at a time.
    pub parallel_gets: usize,
    /// Small objects that are worth reading at a time: they cost a round trip each, and next to nothing of the line.
    pub parallel_reads: usize,
    /// Bytes between two ranges up to which one request for both is better than two: reading them costs less than another request.
    pub gap_bytes: u64,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            bills_requests: false,
            parallel_puts: 2,
            parallel_gets: 3,
            parallel_reads: 4,
            gap_bytes: 256 << 10,
        }
    }
}

/// A flat set of immutable objects. Every call blocks and may be made from any thread; keys are relative paths of `[a-z0-9/]`.
/// All implementations pass `conformance::check`.
pub trait Store: Send + Sync {
    /// Where it is, for people.
    fn location(&self) -> &str;

    /// Stores an object if the key is free, durably before it returns.
    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome>;

    /// Replaces the contents of `out` by a part of the object. Returns the length of the whole object, or `None` if there is none.
    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>>;

    /// Fills `out` from `offset` on and returns how many bytes there were: fewer than asked for where the object ends. `None` if there is no such object.
    /// For callers that put many ranges into one buffer.
    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let mut bytes = Vec::new();
        let found = self.get(key, Span::At { offset, len: out.len() }, &mut bytes)?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(found.map(|_| bytes.len()))
    }

    /// Like [`put_new`](Self::put_new), for an object too large to be in memory at once: `fill` is called at most once and writes the bytes in order.
    /// If it fails, nothing is stored. Without an implementation of its own, a store gathers the bytes first.
    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.put_new(key, Body::Bytes(&bytes))
    }

    /// A handle for many small reads of one object, from stores where that saves something; `None` elsewhere, and if there is no such object:
    /// then [`get_into`](Self::get_into) is the way, and its answer the truth.
    fn open_object(&self, _key: &str) -> Result<Option<Box<dyn ReadAt>>> {
        Ok(None)
    }

    /// When an object was stored, in Unix milliseconds by the store's own clock, which all who use the store share. `None`
    /// if there is no such object, or the store does not tell.
    fn modified_ms(&self, _key: &str) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Calls `each(key, bytes)` for every object whose key begins with `prefix`, in no particular order.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()>;

    /// Removes an object; that it is gone already is no error. A power cut may bring it back until
    /// [`settle`](Self::settle) was called.
    fn delete(&self, key: &str) -> Result<()>;

    /// Tries that putting never replaces, on an object that is there with these very bytes; an error if it does.
    /// Costs a request or two where that is not known: with `again` even if it was tried before.
    fn assure_exclusive(&self, key: &str, bytes: &[u8], _again: bool) -> Result<Exclusive> {
        match self.put_new(key, Body::Bytes(bytes))? {
            PutOutcome::Exists => Ok(Exclusive::Holds),
            PutOutcome::Created => {
                Err(Error::Invalid { what: format!("{}: put_new replaced {key}", self.location()) })
            }
        }
    }

    /// By which host and proxy the place is reached, where there are several ways.
    fn reached_by(&self) -> String {
        String::new()
    }

    /// Makes durable what a listing of `prefix`, which ends in `/`, shows, and that what it shows no more is gone:
    /// also what other processes stored or deleted, who may have been killed before they came to that. For whoever
    /// relies on it in what he is about to store or delete. Stores that are durable at once have nothing to do.
    fn settle(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    /// What its callers do differently from store to store.
    fn habits(&self) -> Habits {
        Habits::default()
    }

    /// Tells that what was read of an object is not what was stored. Copies of it are dropped; true if reading again may give other bytes.
    fn distrust(&self, _key: &str) -> bool {
        false
    }

    /// Keeps some room for [`release_reserve`](Self::release_reserve), where objects share a disk that may be full. That
    /// there is no room for it is no error.
    fn keep_reserve(&self) {}

    /// Gives up the room that was kept, so that a full repository can be collected; true if there was some.
    fn release_reserve(&self) -> bool {
        false
    }

    /// How large objects are written from now on, where the store has a choice.
    fn set_io_engine(&self, _engine: IoEngine) {}

    /// Locks and archives, where the store has them.
    fn custody(&self) -> Option<&dyn custody::Custody> {
        None
    }

    /// Requests made so far through this handle.
    fn requests(&self) -> Requests {
        Requests::default()
    }
}

/// Times that an object is read before damage in it is believed, where a second reading may differ.
const READS: u32 = 3;

/// Runs `read`, and again if it found damage in the object and the store may do better then.
pub fn reread<T>(store: &dyn Store, key: &str, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let mut reads = 1;
    loop {
        match read() {
            // a version is but a flipped byte away from another
            Err(error)
                if (error.is_damage() || matches!(error, Error::NewerVersion { .. }))
                    && reads < READS
                    && store.distrust(key) =>
            {
                tracing::warn!("read again: {error}");
                reads += 1;
            }
            other => return other,
        }
    }
}

/// Opens a store of this machine. With `create`, makes the directory if it is not there (`init`). Object stores need
/// more than a place: [`object::open`].
pub fn open(place: &Place, create: bool, limits: &Limits) -> Result<Arc<dyn Store>> {
    match place {
        Place::Memory => Ok(Arc::new(Counted::new(MemoryStore::default()))),
        Place::Dir(dir) => {
            let store = Counted::new(LocalStore::open(dir, create)?);
            Ok(if limits.is_none() { Arc::new(store) } else { Arc::new(Limited::new(store, limits.clone())) })
        }
        Place::Bucket(place) => {
            Err(Error::Invalid { what: format!("{place}: an object store is opened with its options") })
        }
    }
}
