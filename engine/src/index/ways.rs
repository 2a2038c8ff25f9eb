//! A bounded cache without bookkeeping: a key can stand in eight places only, and what was not asked for lately gives way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Places a key can be in.
const WAYS: usize = 8;
const SHARDS: usize = 16;

/// Of so many entries that find all places taken one gets in: what is asked for often is soon there, and a stream that never comes back costs little.
const ADMITTED: u8 = 8;

/// A set-associative cache with second-chance eviction. Its memory is taken as it fills, and never more than was asked for.
pub struct Ways<K, V> {
    shards: Vec<Mutex<Vec<Set<K, V>>>>,
    sets_per_shard: usize,
    /// If all that comes is let in.
    eager: bool,
    /// Entries that were promised a place.
    promised: AtomicUsize,
}

struct Set<K, V> {
    entries: [Option<(K, V)>; WAYS],
    /// A byte of each entry's hash, so that looking for what is not there touches one line of memory.
    tags: [u8; WAYS],
    /// A bit for each entry that was asked for since the hand passed it.
    used: u8,
    hand: u8,
    /// Entries that wanted a place while all were taken.
    waiting: u8,
}

impl<K: Eq + Copy, V> Ways<K, V> {
    /// Room for about `entries` entries. An eager cache lets in all that comes, others one in eight once they are full.
    pub fn new(entries: usize, eager: bool) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            sets_per_shard: entries.div_ceil(SHARDS * WAYS).max(1),
            eager,
            promised: AtomicUsize::new(0),
        }
    }

    /// True if so many entries may be put in at once: up to half of the cache, over its whole life, so that what is asked for one by one has room too.
    pub fn reserve(&self, entries: usize) -> bool {
        let half = self.sets_per_shard * SHARDS * WAYS / 2;
        let room = |promised: usize| Some(promised + entries).filter(|sum| *sum <= half);
        self.promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    fn shard(&self, hash: u64) -> (MutexGuard<'_, Vec<Set<K, V>>>, usize) {
        let shard = &self.shards[hash as usize % SHARDS];
        let set = (hash as usize / SHARDS) % self.sets_per_shard;
        // A poisoned lock is taken as it is: an entry is put in place by one assignment.
        (shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), set)
    }

    /// Looks a key up, and gives what stands there to `each`.
    pub fn get<T>(&self, hash: u64, key: &K, each: impl FnOnce(&V) -> T) -> Option<T> {
        let (mut sets, at) = self.shard(hash);
        let set = sets.get_mut(at)?;
        let way = set.way(tag(hash), key)?;
        set.used |= 1 << way;
        set.entries[way].as_ref().map(|(_, value)| each(value))
    }

    /// Puts an entry in, made from what gives way to it.
    pub fn put(&self, hash: u64, key: K, make: impl FnOnce(Option<V>) -> V) {
        let (mut sets, at) = self.shard(hash);
        if sets.is_empty() {
            sets.resize_with(self.sets_per_shard, Set::default);
        }
        let set = &mut sets[at];
        let way = match set.way(tag(hash), &key).or_else(|| set.entries.iter().position(Option::is_none)) {
            Some(way) => way,
            None => {
                set.waiting = (set.waiting + 1) % ADMITTED;
                if set.waiting != 0 && !self.eager {
                    return;
                }
                set.victim()
            }
        };
        let old = set.entries[way].take().map(|(_, value)| value);
        set.entries[way] = Some((key, make(old)));
        set.tags[way] = tag(hash);
    }
}

/// A byte of the hash that says nothing of the set.
fn tag(hash: u64) -> u8 {
    (hash >> 32) as u8
}

impl<K, V> Default for Set<K, V> {
    fn default() -> Self {
        Self { entries: [const { None }; WAYS], tags: [0; WAYS], used: 0, hand: 0, waiting: 0 }
    }
}

impl<K: Eq, V> Set<K, V> {
    fn way(&self, tag: u8, key: &K) -> Option<usize> {
        (0..WAYS).find(|way| {
            self.tags[*way] == tag && self.entries[*way].as_ref().is_some_and(|(found, _)| found == key)
        })
    }

    /// The next place that was not asked for since the hand was there last.
    fn victim(&mut self) -> usize {
        loop {
            let way = usize::from(self.hand);
            self.hand = (self.hand + 1) % WAYS as u8;
            if self.used & (1 << way) == 0 {
                return way;
            }
            self.used &= !(1 << way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let ways = Ways::<u64, u64>::new(1, true);
        for key in 0..WAYS as u64 {
            ways.put(0, key, |old| {
                assert!(old.is_none());
                key * 10
            });
        }
        assert_eq!(ways.get(0, &3, |v| *v), Some(30));
        for key in 100..106 {
            ways.put(0, key, |old| old.map_or(0, |_| key));
        }
        assert_eq!(ways.get(0, &3, |v| *v), Some(30), "asked for, so it had a second chance");
        let left = (0..WAYS as u64).filter(|key| ways.get(0, key, |_| ()).is_some()).count();
        assert_eq!(left, 2);
        ways.put(0, 3, |old| old.unwrap_or(0) + 1);
        assert_eq!(ways.get(0, &3, |v| *v), Some(31), "put again");
        assert_eq!(ways.get(0, &999, |_| ()), None);
    }

    #[test]
    fn one_in_eight_gets_in_where_it_is_full() {
        let ways = Ways::<u64, u64>::new(1, false);
        (0..WAYS as u64 + 16).for_each(|key| ways.put(0, key, |_| key));
        let got_in = (WAYS as u64..WAYS as u64 + 16).filter(|key| ways.get(0, key, |_| ()).is_some()).count();
        assert_eq!(got_in, 2);
    }
}
