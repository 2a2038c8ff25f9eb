//! The same small work on many things at a time: for requests that cost a round trip each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Does `work` on the items, at most `at_a_time` side by side and in the order in which they are given; the results are
/// in that order too. After one for which `ends` is true nothing more is begun: the results end with some behind it.
pub fn map<T: Sync, R: Send>(
    items: &[T],
    at_a_time: usize,
    ends: impl Fn(&R) -> bool + Sync,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = at_a_time.min(items.len());
    if threads <= 1 {
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            results.push(work(item));
            if results.last().is_some_and(&ends) {
                break;
            }
        }
        return results;
    }
    let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        while !ended.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            let result = work(item);
            if ends(&result) {
                ended.store(true, Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    std::thread::scope(|scope| {
        // A thread that cannot be started is no loss: the others, and this one, do its share.
        for _ in 1..threads {
            let _ = std::thread::Builder::new().name("read".into()).spawn_scoped(scope, run);
        }
        run();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_are_in_order_and_at_most_so_many_run() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..100).collect();
        let work = |n: &usize| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            running.fetch_sub(1, Ordering::SeqCst);
            n * 2
        };
        let doubled: Vec<usize> = items.iter().map(|n| n * 2).collect();
        for at_a_time in [0, 1, 7, 200] {
            assert_eq!(map(&items, at_a_time, |_| false, work), doubled);
        }
        assert!(most.load(Ordering::SeqCst) > 1);
        most.store(0, Ordering::SeqCst);
        map(&items, 3, |_| false, work);
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(map(&[] as &[usize], 4, |_| false, work), Vec::<usize>::new());
    }

    #[test]
    fn nothing_is_begun_after_the_end() {
        let items: Vec<usize> = (0..1000).collect();
        for at_a_time in [1, 4] {
            let results = map(&items, at_a_time, |n| *n == 10, |n| *n);
            assert!(results.len() <= 10 + 1 + at_a_time, "{}", results.len());
            assert!(results.iter().enumerate().all(|(at, n)| at == *n), "all before the end are there");
        }
    }
}
