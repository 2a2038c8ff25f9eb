//! Stored bytes between fetchers and decoders: ranges of packs, each fetched once and kept until the last segment
//! that needs it is decoded, within a budget.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::io::AlignedBuf;
use crate::pack::Location;

/// Shortest buffer; others are powers of two, and from a huge page on multiples of [`BUFFER_STEP_BYTES`].
const BUFFER_BYTES_MIN: usize = 64 << 10;
const HUGE_PAGE_BYTES: usize = 2 << 20;
const BUFFER_STEP_BYTES: usize = 512 << 10;

/// Bounds the bytes of all buffers, those in use and those that wait to be used again.
pub struct Budget {
    limit_bytes: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    used_bytes: usize,
    spare_bytes: usize,
    spare: Vec<AlignedBuf>,
    /// Segments that were sent to the decoders and are not decoded yet.
    segments_out: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit_bytes, state: Mutex::default(), freed: Condvar::new() })
    }

    /// The bound.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section is some sums and a push or take: a panic leaves no half of one that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a buffer of `bytes` is within the budget. False if it will not be: nothing is with the decoders
    /// that could give bytes back.
    pub fn wait_for_room(&self, bytes: usize) -> bool {
        let mut state = self.state();
        loop {
            if state.used_bytes + buffer_bytes(bytes) <= self.limit_bytes {
                return true;
            }
            if state.segments_out == 0 {
                return false;
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer of at least `bytes`, within the budget or not. Its contents are left over from earlier use.
    pub fn take(self: &Arc<Self>, bytes: usize) -> StoredBuf {
        let wanted = buffer_bytes(bytes);
        let mut dropped = Vec::new(); // unmapped after the lock is free
        let mut state = self.state();
        let fitting = (0..state.spare.len())
            .filter(|no| (wanted..=wanted * 2).contains(&state.spare[*no].len()))
            .min_by_key(|no| state.spare[*no].len());
        let reused = fitting.map(|no| state.spare.swap_remove(no));
        match &reused {
            Some(buf) => {
                state.spare_bytes -= buf.len();
                state.used_bytes += buf.len();
            }
            None => {
                state.used_bytes += wanted;
                while state.used_bytes + state.spare_bytes > self.limit_bytes {
                    let Some(buf) = state.spare.pop() else { break };
                    state.spare_bytes -= buf.len();
                    dropped.push(buf);
                }
            }
        }
        drop(state);
        drop(dropped);
        let buf = reused.unwrap_or_else(|| AlignedBuf::new(wanted));
        StoredBuf { buf, budget: self.clone() }
    }

    /// Counts a segment that goes to the decoders.
    pub fn segment_out(self: &Arc<Self>) -> SegmentOut {
        self.state().segments_out += 1;
        SegmentOut(self.clone())
    }
}

fn buffer_bytes(bytes: usize) -> usize {
    if bytes > HUGE_PAGE_BYTES {
        bytes.next_multiple_of(BUFFER_STEP_BYTES)
    } else {
        bytes.next_power_of_two().max(BUFFER_BYTES_MIN)
    }
}

/// A segment is with the decoders; dropped when it is decoded, after its bytes.
pub struct SegmentOut(Arc<Budget>);

impl Drop for SegmentOut {
    fn drop(&mut self) {
        self.0.state().segments_out -= 1;
        self.0.freed.notify_all();
    }
}

/// A buffer that returns to its budget when dropped.
pub struct StoredBuf {
    buf: AlignedBuf,
    budget: Arc<Budget>,
}

impl Drop for StoredBuf {
    fn drop(&mut self) {
        let buf = std::mem::replace(&mut self.buf, AlignedBuf::empty());
        let mut state = self.budget.state();
        state.used_bytes -= buf.len();
        let excess = if state.used_bytes + state.spare_bytes + buf.len() > self.budget.limit_bytes {
            Some(buf)
        } else {
            state.spare_bytes += buf.len();
            state.spare.push(buf);
            None
        };
        drop(state);
        drop(excess);
        self.budget.freed.notify_all();
    }
}

impl Deref for StoredBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf
    }
}

impl DerefMut for StoredBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buf
    }
}

/// A range of a pack that was asked for. Whoever needs it holds it; the last one gives its bytes back.
pub struct StoredRange {
    start: u64,
    end: u64,
    answer: OnceLock<Answer>,
}

/// What became of a request.
enum Answer {
    Bytes(StoredBuf),
    Lost,
    Dropped,
}

/// The stored bytes of a frame, once they have come or are known not to.
pub enum Stored<'a> {
    /// They are there.
    Bytes(&'a [u8]),
    /// The range could not be read as a whole, and the restore goes on without what is damaged in it.
    Lost,
    /// They do not come, and the run knows why.
    Stopped,
}

impl StoredRange {
    /// True if it has that frame of its pack.
    pub fn covers(&self, at: &Location) -> bool {
        self.start <= u64::from(at.offset) && at.end() <= self.end
    }

    /// The stored bytes of a frame that the range covers, waited for.
    pub fn frame(&self, at: &Location) -> Stored<'_> {
        match self.answer.wait() {
            Answer::Bytes(bytes) => {
                let start = (u64::from(at.offset) - self.start) as usize;
                Stored::Bytes(&bytes[start..start + at.stored_bytes as usize])
            }
            Answer::Lost => Stored::Lost,
            Answer::Dropped => Stored::Stopped,
        }
    }
}

/// A range on its way to a fetcher, who answers it; dropped without an answer, it tells those who wait that there
/// will be none.
pub struct Request {
    /// What waits for the bytes.
    range: Arc<StoredRange>,
    /// A frame in the range: it tells the pack.
    pub first: Location,
    /// First byte of the range in the pack.
    pub offset: u64,
    /// Bytes that must be there; those behind may lie past the pack's end.
    pub needed_bytes: usize,
    /// Bytes to ask for.
    pub bytes: usize,
    buf: Option<StoredBuf>,
}

impl Request {
    /// Asks for `start..end` of the pack of `first`, widened to borders of `align` (a power of two), so that a store
    /// in files can read past the page cache.
    pub fn new(budget: &Arc<Budget>, first: Location, start: u64, end: u64, align: u64) -> Self {
        let offset = start / align * align;
        let bytes = (end.next_multiple_of(align) - offset) as usize;
        let buf = Some(budget.take(bytes));
        let range = Arc::new(StoredRange { start: offset, end, answer: OnceLock::new() });
        Self { range, first, offset, needed_bytes: (end - offset) as usize, bytes, buf }
    }

    /// The range, for those who need it.
    pub fn range(&self) -> &Arc<StoredRange> {
        &self.range
    }

    /// Where the bytes go.
    pub fn buf(&mut self) -> &mut [u8] {
        match &mut self.buf {
            Some(buf) => &mut buf[..self.bytes],
            None => &mut [],
        }
    }

    /// They are there.
    pub fn answer(mut self) {
        if let Some(buf) = self.buf.take() {
            let _ = self.range.answer.set(Answer::Bytes(buf));
        }
    }

    /// They cannot be read as a whole; the restore goes on.
    pub fn lost(self) {
        let _ = self.range.answer.set(Answer::Lost);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = self.range.answer.set(Answer::Dropped); // nothing happens if it was answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_the_bound_holds() {
        let budget = Budget::new(8 << 20);
        let first = budget.take(3 << 20);
        assert_eq!(first.len(), 3 << 20);
        let place = first.as_ptr();
        drop(first);
        let again = budget.take(2 << 20);
        assert_eq!(again.as_ptr(), place);
        assert!(budget.wait_for_room(5 << 20));
        assert!(!budget.wait_for_room(6 << 20), "nobody will give anything back");
        drop(again);
        drop(budget.take(6 << 20));
        let state = budget.state();
        assert_eq!((state.used_bytes, state.spare_bytes), (0, 6 << 20), "the other was dropped for it");
    }

    #[test]
    fn room_comes_when_a_segment_is_decoded() {
        let budget = Budget::new(1 << 20);
        let (bytes, out) = (budget.take(1 << 20), budget.segment_out());
        let decoder = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(bytes);
            drop(out);
        });
        assert!(budget.wait_for_room(1 << 20));
        decoder.join().unwrap();
    }
}
