//! A decorator that counts requests: they are what an object store bills.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::custody::Custody;
use super::{Body, Exclusive, Fill, Habits, PutOutcome, ReadAt, Span, Store};
use crate::error::Result;
use crate::io::IoEngine;

/// Requests made to a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Requests {
    /// Whole and ranged reads.
    pub get: u64,
    /// Writes.
    pub put: u64,
    /// Listings.
    pub list: u64,
    /// Removals.
    pub delete: u64,
    /// Requests that were made again.
    pub retried: u64,
}

/// [`Requests`] that threads add to.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) get: AtomicU64,
    pub(super) put: AtomicU64,
    pub(super) list: AtomicU64,
    pub(super) delete: AtomicU64,
    pub(super) retried: AtomicU64,
}

impl Counters {
    /// So far.
    pub fn requests(&self) -> Requests {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            get: load(&self.get),
            put: load(&self.put),
            list: load(&self.list),
            delete: load(&self.delete),
            retried: load(&self.retried),
        }
    }
}

/// Counts the requests to the store inside.
#[derive(Debug, Default)]
pub struct Counted<S> {
    inner: S,
    counters: Arc<Counters>,
}

impl<S: Store> Counted<S> {
    /// Wraps a store.
    pub fn new(inner: S) -> Self {
        Self { inner, counters: Arc::default() }
    }
}

/// Counts the reads of an object held open.
struct CountedObject {
    inner: Box<dyn ReadAt>,
    counters: Arc<Counters>,
}

impl ReadAt for CountedObject {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(offset, out)
    }
}

impl<S: Store> Store for Counted<S> {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.counters.put.fetch_add(1, Ordering::Relaxed);
        self.inner.put_new(key, body)
    }

    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        self.counters.put.fetch_add(1, Ordering::Relaxed);
        self.inner.put_streamed(key, fill)
    }

    fn open_object(&self, key: &str) -> Result<Option<Box<dyn ReadAt>>> {
        let opened = self.inner.open_object(key)?;
        Ok(opened.map(|inner| {
            Box::new(CountedObject { inner, counters: self.counters.clone() }) as Box<dyn ReadAt>
        }))
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key, span, out)
    }

    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        self.inner.get_into(key, offset, out)
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        self.inner.modified_ms(key)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.counters.list.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.counters.delete.fetch_add(1, Ordering::Relaxed);
        self.inner.delete(key)
    }

    fn assure_exclusive(&self, key: &str, bytes: &[u8], again: bool) -> Result<Exclusive> {
        self.inner.assure_exclusive(key, bytes, again)
    }

    fn reached_by(&self) -> String {
        self.inner.reached_by()
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        self.inner.settle(prefix)
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn distrust(&self, key: &str) -> bool {
        self.inner.distrust(key)
    }

    fn keep_reserve(&self) {
        self.inner.keep_reserve();
    }

    fn release_reserve(&self) -> bool {
        self.inner.release_reserve()
    }

    fn set_io_engine(&self, engine: IoEngine) {
        self.inner.set_io_engine(engine);
    }

    fn custody(&self) -> Option<&dyn Custody> {
        self.inner.custody()
    }

    fn requests(&self) -> Requests {
        self.counters.requests()
    }
}
