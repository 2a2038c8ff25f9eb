//! Limits of bandwidth: a token bucket that counts bytes of bodies, and a decorator that keeps them on a local store.
//! Object stores keep them in the bodies themselves (`object/http`), so that repeated attempts count too.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::custody::Custody;
use super::{Body, Exclusive, Fill, Habits, PutOutcome, ReadAt, Requests, Span, Store};
use crate::error::Result;
use crate::io::IoEngine;

/// What may pass at once after a pause: short enough that the line does not notice, long enough for the scheduler.
const BURST: Duration = Duration::from_millis(100);

/// So many bytes a second, shared by all who ask.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_s: f64,
    /// When all that was let through so far will have passed.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// At most `bytes_per_s` (at least 1).
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1) as f64, free_at: Mutex::new(None) }
    }

    /// Lets `bytes` through; says how long they have to wait for it.
    pub fn reserve(&self, bytes: usize) -> Duration {
        self.reserve_at(bytes, Instant::now())
    }

    fn reserve_at(&self, bytes: usize, now: Instant) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = free_at.map_or(earliest, |at| at.max(earliest));
        // A year is as good as for ever, and no sum of it overflows.
        let takes = (bytes as f64 / self.bytes_per_s).min(31_536_000.0);
        let end = start + Duration::from_secs_f64(takes);
        *free_at = Some(end);
        end.saturating_duration_since(now)
    }

    /// Waits until `bytes` have passed.
    pub fn wait(&self, bytes: usize) {
        std::thread::sleep(self.reserve(bytes));
    }
}

/// Limits of one store.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Of what is stored.
    pub upload: Option<Arc<Throttle>>,
    /// Of what is read.
    pub download: Option<Arc<Throttle>>,
}

impl Limits {
    /// Bytes a second each way; `None`: as much as there is.
    pub fn new(upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) -> Self {
        let throttle = |limit: Option<u64>| limit.map(|bytes_per_s| Arc::new(Throttle::new(bytes_per_s)));
        Self { upload: throttle(upload_bytes_per_s), download: throttle(download_bytes_per_s) }
    }

    /// True if nothing is limited.
    pub fn is_none(&self) -> bool {
        self.upload.is_none() && self.download.is_none()
    }

    fn sent(&self, bytes: usize) {
        if let Some(upload) = &self.upload {
            upload.wait(bytes);
        }
    }

    fn received(&self, bytes: usize) {
        if let Some(download) = &self.download {
            download.wait(bytes);
        }
    }
}

/// Keeps limits on the store inside.
#[derive(Debug)]
pub struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S: Store> Limited<S> {
    /// Wraps a store.
    pub fn new(inner: S, limits: Limits) -> Self {
        Self { inner, limits }
    }
}

struct LimitedObject {
    inner: Box<dyn ReadAt>,
    limits: Limits,
}

impl ReadAt for LimitedObject {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let count = self.inner.read_at(offset, out)?;
        self.limits.received(count);
        Ok(count)
    }
}

struct LimitedWrite<'a> {
    inner: &'a mut dyn Write,
    limits: &'a Limits,
}

impl Write for LimitedWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.limits.sent(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<S: Store> Store for Limited<S> {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.limits.sent(body.as_bytes().len());
        self.inner.put_new(key, body)
    }

    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        self.inner.put_streamed(key, &mut |out| fill(&mut LimitedWrite { inner: out, limits: &self.limits }))
    }

    fn open_object(&self, key: &str) -> Result<Option<Box<dyn ReadAt>>> {
        let opened = self.inner.open_object(key)?;
        Ok(opened
            .map(|inner| Box::new(LimitedObject { inner, limits: self.limits.clone() }) as Box<dyn ReadAt>))
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        let found = self.inner.get(key, span, out)?;
        self.limits.received(out.len());
        Ok(found)
    }

    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let found = self.inner.get_into(key, offset, out)?;
        self.limits.received(found.unwrap_or(0));
        Ok(found)
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        self.inner.modified_ms(key)
    }

    fn keep_reserve(&self) {
        self.inner.keep_reserve();
    }

    fn release_reserve(&self) -> bool {
        self.inner.release_reserve()
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
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

    fn set_io_engine(&self, engine: IoEngine) {
        self.inner.set_io_engine(engine);
    }

    fn custody(&self) -> Option<&dyn Custody> {
        self.inner.custody()
    }

    fn requests(&self) -> Requests {
        self.inner.requests()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn the_rate_is_kept_over_many_small_pieces_and_after_a_pause() {
        let throttle = Throttle::new(1000);
        let mut now = Instant::now() + Duration::from_secs(5);
        let began = now;
        for _ in 0..100 {
            now += throttle.reserve_at(100, now); // 10,000 bytes are 10 s
        }
        let took = now - began;
        assert!((Duration::from_millis(9850)..=Duration::from_millis(10_050)).contains(&took), "{took:?}");
        // what was not used is not saved up
        now += Duration::from_secs(60);
        let wait = throttle.reserve_at(1000, now);
        assert!((Duration::from_millis(850)..=Duration::from_secs(1)).contains(&wait), "{wait:?}");
        assert!(throttle.reserve_at(usize::MAX, now) > Duration::from_secs(1 << 20), "never an overflow");
    }

    #[test]
    fn a_limited_store_conforms() {
        let limits = Limits::new(Some(1 << 30), Some(1 << 30));
        crate::store::conformance::check(&Limited::new(MemoryStore::default(), limits));
        assert!(Limits::new(None, None).is_none());
    }
}
