//! A fixed number of equal buffers: the credits that bound memory and give back-pressure.

use std::mem;
use std::ops::{Deref, DerefMut};

use async_channel::{Receiver, Sender};

use super::aligned::AlignedBuf;

/// Handle to a pool of equal buffers; clones share the pool. Whoever waits for a buffer waits for the slowest stage
/// behind it, so the pool *is* the flow control of a pipeline.
#[derive(Clone)]
pub struct BufPool {
    free: Receiver<AlignedBuf>,
    home: Sender<AlignedBuf>,
    buf_bytes: usize,
    buf_count: usize,
}

impl BufPool {
    /// A pool of `buf_count` buffers (at least one) of `buf_bytes`, rounded up to 4 KiB. All memory is taken here.
    pub fn new(buf_count: usize, buf_bytes: usize) -> Self {
        let buf_count = buf_count.max(1);
        let (home, free) = async_channel::bounded(buf_count);
        let mut rounded_bytes = 0;
        for _ in 0..buf_count {
            let buf = AlignedBuf::new(buf_bytes);
            rounded_bytes = buf.len();
            // Cannot fail: the channel has room for every buffer, and both of its ends are in scope.
            let _ = home.try_send(buf);
        }
        Self { free, home, buf_bytes: rounded_bytes, buf_count }
    }

    /// The next free buffer, waited for; `None` once the pool is closed. Contents are left over from earlier use.
    pub async fn get(&self) -> Option<PooledBuf> {
        if self.free.is_closed() {
            return None;
        }
        self.free.recv().await.ok().map(|buf| self.wrap(buf))
    }

    /// [`BufPool::get`] for a thread that may block.
    pub fn get_blocking(&self) -> Option<PooledBuf> {
        if self.free.is_closed() {
            return None;
        }
        self.free.recv_blocking().ok().map(|buf| self.wrap(buf))
    }

    /// A free buffer if there is one now.
    pub fn try_get(&self) -> Option<PooledBuf> {
        if self.free.is_closed() {
            return None;
        }
        self.free.try_recv().ok().map(|buf| self.wrap(buf))
    }

    /// Wakes everyone who waits for a buffer, with `None`, and refuses later calls the same way. Buffers in use stay
    /// valid and are freed instead of returned.
    pub fn close(&self) {
        self.free.close();
    }

    /// Bytes in each buffer.
    pub fn buf_bytes(&self) -> usize {
        self.buf_bytes
    }

    /// Buffers in the pool, free or in use. A channel that carries [`PooledBuf`]s and has this capacity is never
    /// full.
    pub fn buf_count(&self) -> usize {
        self.buf_count
    }

    /// Buffers that are free right now: all of them once a pipeline has drained.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    fn wrap(&self, buf: AlignedBuf) -> PooledBuf {
        PooledBuf { buf, home: self.home.clone() }
    }
}

/// A buffer that returns to its pool when dropped, by whichever thread and also in a panic.
pub struct PooledBuf {
    pub(super) buf: AlignedBuf,
    home: Sender<AlignedBuf>,
}

impl PooledBuf {
    /// Lends the buffer to a call that takes it by value and gives it back.
    pub fn lend<R>(&mut self, call: impl FnOnce(AlignedBuf) -> (R, AlignedBuf)) -> R {
        let (result, buf) = call(mem::replace(&mut self.buf, AlignedBuf::empty()));
        self.buf = buf;
        result
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        // Never full: the channel has a place for each buffer of the pool. Closed: the buffer is freed here.
        let _ = self.home.try_send(mem::replace(&mut self.buf, AlignedBuf::empty()));
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buf
    }
}

/// For `Bytes::from_owner`: the buffer goes back to its pool with the last of its parts.
impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        &self.buf
    }
}

impl std::fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PooledBuf({} bytes)", self.buf.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn buffers_come_back_also_from_a_panicking_thread() {
        let pool = BufPool::new(2, 100);
        assert_eq!((pool.buf_bytes(), pool.buf_count(), pool.free_count()), (4096, 2, 2));
        let buf = pool.get_blocking().unwrap();
        let worker = thread::spawn(move || {
            let _held = buf;
            panic!("expected by the test");
        });
        assert!(worker.join().is_err());
        assert_eq!(pool.free_count(), 2);
    }

    #[test]
    fn an_empty_pool_makes_getters_wait() {
        let pool = BufPool::new(1, 4096);
        let held = pool.get_blocking().unwrap();
        assert!(pool.try_get().is_none());
        let waiting = thread::spawn({
            let pool = pool.clone();
            move || pool.get_blocking().is_some()
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(held);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn close_wakes_waiters_and_refuses_free_buffers() {
        let pool = BufPool::new(1, 4096);
        let held = pool.get_blocking().unwrap();
        let waiting = thread::spawn({
            let pool = pool.clone();
            move || pool.get_blocking().is_none()
        });
        thread::sleep(Duration::from_millis(20));
        pool.close();
        assert!(waiting.join().unwrap());
        drop(held);
        assert!(pool.get_blocking().is_none());
    }
}
