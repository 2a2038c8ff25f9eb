//! Claims, lookups, merges, and what several processes do to one another.

use super::*;
use crate::format::header::Cipher;
use crate::format::pack::TocRow;
use crate::store::{MemoryStore, Span};
use proptest::prelude::*;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

fn fixture() -> (Arc<dyn Store>, Arc<RepoKeys>) {
    let keys = RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm);
    (Arc::new(MemoryStore::default()), Arc::new(keys))
}

fn id(n: u32) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn pack(n: u8) -> PackRef {
    PackRef { id: ObjectId::new([n; 16]), salt: [n; 24], bytes: 1 << 20, kind: ObjectKind::Data }
}

fn rows(range: std::ops::Range<u32>) -> Vec<TocRow> {
    range.map(|n| TocRow { id: id(n), offset: 96 + n, stored_bytes: 50, raw_bytes: 4096 }).collect()
}

#[test]
fn claims_flushes_and_reopened_lookups_agree() {
    let (store, keys) = fixture();
    let index = Arc::new(Index::load(store.clone(), keys.clone()).unwrap());
    let (claims, other) = (Claims::new(index.clone()), Claims::new(index.clone()));
    assert!(claims.reserve(&id(1)).unwrap());
    assert!(!claims.reserve(&id(1)).unwrap(), "claimed");
    assert!(other.reserve(&id(1)).unwrap(), "another run does not rely on it");
    assert!(index.find_to_read(&id(1)).unwrap().is_none(), "claimed is not yet stored");
    for n in 0..1000 {
        claims.reserve(&id(n)).unwrap();
    }
    claims.add_durable(pack(1), rows(0..500)).unwrap();
    claims.add_durable(pack(2), rows(500..1000)).unwrap();
    claims.flush().unwrap();
    claims.flush().unwrap();
    assert_eq!(index.segments().len(), 1, "an empty flush writes nothing");
    let again = Index::load(store, keys).unwrap();
    let again = Arc::new(again);
    for index in [&index, &again] {
        for n in 0..1000 {
            let at = index.find_to_read(&id(n)).unwrap().unwrap();
            assert_eq!((at.offset, at.pack), (96 + n, pack(if n < 500 { 1 } else { 2 })));
            assert!(!Claims::new(index.clone()).reserve(&id(n)).unwrap());
        }
        assert!(index.find_to_read(&id(1000)).unwrap().is_none());
        let mut count = 0;
        index
            .each_row(&mut |_, _| {
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!((count, index.packs()), (1000, vec![pack(1), pack(2)]));
    }
}

#[test]
fn of_racing_claims_one_wins() {
    let (store, keys) = fixture();
    let claims = Claims::new(Arc::new(Index::load(store, keys).unwrap()));
    let wins: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..2000).filter(|n| claims.reserve(&id(*n)).unwrap()).count()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(wins, 2000);
}

#[test]
fn a_hurt_segment_is_refused_and_a_superseded_one_is_skipped() {
    let (store, keys) = fixture();
    let old = ObjectId::new([1; 16]);
    let new = runs::part_id([2; 14], 0);
    let make = |n: u32| vec![NewRow { id: id(n), pack_no: 0, offset: 96, stored_bytes: 20, raw_bytes: 3 }];
    let put = |segment: ObjectId, bytes: &[u8]| {
        store.put_new(&ObjectKind::Index.key(&segment.to_string()), Body::Bytes(bytes)).unwrap();
    };
    put(old, &encode_segment(&keys, old, &make(1), &[pack(1)], &[]).unwrap());
    put(new, &encode_segment(&keys, new, &make(1), &[pack(2)], &[old]).unwrap());
    let index = Index::load(store.clone(), keys.clone()).unwrap();
    assert_eq!(index.segments().len(), 1);
    assert_eq!(index.find_to_read(&id(1)).unwrap().unwrap().pack, pack(2));

    let bytes = encode_segment(&keys, ObjectId::new([3; 16]), &make(7), &[pack(1)], &[]).unwrap();
    for at in (0..bytes.len()).step_by(13) {
        let mut hurt = bytes.clone();
        hurt[at] ^= 4;
        let (store, _) = fixture();
        store.put_new(&ObjectKind::Index.key(&"03".repeat(16)), Body::Bytes(&hurt)).unwrap();
        let found = Index::load(store, keys.clone()).and_then(|index| index.find_to_read(&id(7)));
        match found {
            Err(error) => assert!(error.is_damage(), "byte {at}: {error}"),
            // The padding between header and first page is not authenticated, and means nothing.
            Ok(row) => assert!((96..4096).contains(&at) && row.is_some(), "byte {at} flipped unnoticed"),
        }
    }
}

/// A segment of one row per number, all in pack `pack_no`, published under a name of the time `ms`.
fn publish(store: &dyn Store, keys: &RepoKeys, ms: u64, numbers: &[u32], in_pack: u8) -> ObjectId {
    let mut rows: Vec<NewRow> = numbers
        .iter()
        .map(|n| NewRow { id: id(*n), pack_no: 0, offset: 96, stored_bytes: 20, raw_bytes: 3 })
        .collect();
    rows.sort_by_key(|row| row.id);
    rows.dedup_by_key(|row| row.id);
    let name = ObjectId::at(ms).unwrap();
    let bytes = encode_segment(keys, name, &rows, &[pack(in_pack)], &[]).unwrap();
    store.put_new(&ObjectKind::Index.key(&name.to_string()), Body::Bytes(&bytes)).unwrap();
    name
}

fn load(store: &Arc<dyn Store>, keys: &Arc<RepoKeys>, part_rows: u64) -> Index {
    let mut index = Index::load(store.clone(), keys.clone()).unwrap();
    index.part_rows = part_rows;
    index
}

/// How to make one run of all, if there are several.
fn all_runs(index: &Index) -> Merge {
    if index.lock_runs().runs().len() > 1 { Merge::Rewrite } else { Merge::Tiers }
}

fn merge_all(index: &Index) {
    index.tidy(all_runs(index), &|| false).unwrap();
}

fn object_count(store: &dyn Store) -> usize {
    let mut count = 0;
    store.list("index/", &mut |_, _| count += 1).unwrap();
    count
}

/// Where the newest of `segments` puts each number.
fn model(segments: &[(Vec<u32>, u8)]) -> BTreeMap<u32, u8> {
    segments.iter().flat_map(|(numbers, pack)| numbers.iter().map(|n| (*n, *pack))).collect()
}

#[track_caller]
fn check_against(index: &Index, model: &BTreeMap<u32, u8>) {
    for n in 0..64 {
        let found = index.find_row(&id(n)).unwrap().map(|at| at.pack);
        assert_eq!(found, model.get(&n).map(|p| pack(*p)), "{n}");
        assert_eq!(index.find_to_read(&id(n)).unwrap().is_some(), model.contains_key(&n));
    }
    let mut walked = BTreeMap::new();
    let mut last = None;
    index
        .each_row(&mut |id, at| {
            assert!(last < Some(*id), "every id once, in order");
            last = Some(*id);
            walked.insert(*id, at.pack);
            Ok(())
        })
        .unwrap();
    let expected: BTreeMap<_, _> = model.iter().map(|(n, p)| (id(*n), pack(*p))).collect();
    assert_eq!(walked, expected);
}

#[derive(Clone, Debug)]
enum Step {
    /// A backup publishes rows.
    Publish(Vec<u32>),
    /// One of three processes opens the index anew.
    Open(usize),
    /// It tidies what it sees.
    Tidy(usize, bool),
    /// It begins a merge and is killed after so many parts.
    Killed(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(0u32..64, 1..12).prop_map(Step::Publish),
        2 => (0usize..3).prop_map(Step::Open),
        3 => (0usize..3, any::<bool>()).prop_map(|(who, all)| Step::Tidy(who, all)),
        1 => (0usize..3, 0usize..4).prop_map(|(who, parts)| Step::Killed(who, parts)),
    ]
}

proptest! {
    /// Processes publish, merge, are killed while they merge, and delete, each with the index as it was when they opened it. Whatever they do, everyone finds
    /// the newest row of every id, those who opened long ago at least one that was right.
    #[test]
    fn any_history_of_merges_answers_like_the_newest_rows(steps in proptest::collection::vec(step(), 1..40), part_rows in 1u64..9) {
        let _alone = fail::FailScenario::setup();
        let (store, keys) = fixture();
        let mut segments = Vec::new();
        let mut open: Vec<Index> = (0..3).map(|_| load(&store, &keys, part_rows)).collect();
        for (time, step) in steps.into_iter().enumerate() {
            match step {
                Step::Publish(numbers) => {
                    let in_pack = segments.len() as u8;
                    // Five milliseconds apart: names of merges take up to half of one.
                    publish(store.as_ref(), &keys, 1000 + 5 * time as u64, &numbers, in_pack);
                    segments.push((numbers, in_pack));
                }
                Step::Open(who) => open[who] = load(&store, &keys, part_rows),
                Step::Tidy(who, all) => {
                    open[who].tidy(if all { all_runs(&open[who]) } else { Merge::Tiers }, &|| false).unwrap();
                }
                Step::Killed(who, parts) => {
                    let asked = std::cell::Cell::new(0);
                    let killed = open[who].tidy(all_runs(&open[who]), &|| {
                        asked.set(asked.get() + 1);
                        asked.get() > parts
                    });
                    prop_assert!(matches!(killed, Ok(_) | Err(Error::Cancelled)));
                }
            }
            let model = model(&segments);
            check_against(&load(&store, &keys, part_rows), &model);
            for old in &open {
                for n in 0..64 {
                    if let Some(at) = old.find_to_read(&id(n)).unwrap() {
                        let right = segments.iter().any(|(numbers, p)| numbers.contains(&n) && pack(*p) == at.pack);
                        prop_assert!(right, "{n} was never in {:?}", at.pack.id);
                    }
                    // What a manifest refers to is found, however old the list of segments is.
                    *old.reloading.lock().unwrap() = None;
                    prop_assert_eq!(old.locate(&id(n), "a test").is_ok(), model.contains_key(&n));
                }
            }
        }
    }
}

#[test]
fn a_merge_has_parts_that_are_asked_by_range_and_its_inputs_are_not_opened() {
    let _alone = fail::FailScenario::setup();
    let (store, keys) = fixture();
    let old: Vec<ObjectId> = (0..5u32)
        .map(|n| publish(store.as_ref(), &keys, 10 + u64::from(n), &[n, n + 100, 7], n as u8))
        .collect();
    let index = load(&store, &keys, 3);
    let tidied = index.tidy(Merge::Rewrite, &|| false).unwrap();
    assert_eq!(tidied, Tidied { merged: 5, rows: 11, parts: 4, deleted: 0 });
    // Damage in superseded segments is nobody's concern: they are not opened.
    for name in &old {
        let key = ObjectKind::Index.key(&name.to_string());
        store.delete(&key).unwrap();
        store.put_new(&key, Body::Bytes(b"rubbish")).unwrap();
    }
    let again = load(&store, &keys, 3);
    assert_eq!(again.segments().len(), 4);
    assert_eq!(again.find_row(&id(7)).unwrap().unwrap().pack, pack(4), "the newest row");
    assert_eq!(again.packs().len(), 5);
    for n in [0, 1, 2, 3, 4, 100, 104] {
        let asked = again.lock_runs().runs()[0].parts_for(&id(n)).len();
        assert!((1..=2).contains(&asked), "{asked}: two only for the first id of a part");
        assert!(again.find_to_read(&id(n)).unwrap().is_some());
    }
    // The one who opened after the merge deletes.
    assert_eq!(again.tidy(Merge::Tiers, &|| false).unwrap(), Tidied { deleted: 5, ..Tidied::default() });
    assert_eq!(object_count(store.as_ref()), 4);
    assert_eq!(again.tidy(Merge::Tiers, &|| false).unwrap(), Tidied::default());
    // And the one who opened before it finds everything all the same.
    for n in [0, 1, 2, 3, 4, 100, 104] {
        assert!(index.find_to_read(&id(n)).unwrap().is_some());
    }
    let mut count = 0;
    let walk = load(&store, &keys, 3);
    walk.each_row(&mut |_, _| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 11);
}

#[test]
fn an_incomplete_merge_supersedes_nothing() {
    let _alone = fail::FailScenario::setup();
    let (store, keys) = fixture();
    for n in 0..4u32 {
        publish(store.as_ref(), &keys, 10 + u64::from(n), &[n, n + 10, n + 20], n as u8);
    }
    load(&store, &keys, 4).tidy(Merge::Rewrite, &|| false).unwrap();
    let first_part = load(&store, &keys, 4).segments()[0].id();
    store.delete(&ObjectKind::Index.key(&first_part.to_string())).unwrap();
    let index = load(&store, &keys, 4);
    assert_eq!(index.segments().len(), 6, "two parts of three, and the inputs are back");
    assert!(index.superseded.lock().unwrap().is_empty());
    for n in (0..4).flat_map(|n| [n, n + 10, n + 20]) {
        assert!(index.find_to_read(&id(n)).unwrap().is_some());
    }
}

/// What a repair has to write anew before it supersedes a damaged part: the inputs of the merge, which it can still
/// read, do not count any more then.
#[test]
fn inputs_of_a_merge_do_not_count_when_a_damaged_part_is_superseded() {
    let _alone = fail::FailScenario::setup();
    let (store, keys) = fixture();
    for n in 0..4u32 {
        publish(store.as_ref(), &keys, 10 + u64::from(n), &[n, n + 10, n + 20], n as u8);
    }
    load(&store, &keys, 4).tidy(Merge::Rewrite, &|| false).unwrap();
    let parts: Vec<ObjectId> = load(&store, &keys, 4).segments().iter().map(|part| part.id()).collect();
    let name = ObjectKind::Index.key(&parts[0].to_string());
    let mut bytes = Vec::new();
    store.get(&name, Span::All, &mut bytes).unwrap();
    bytes[4100] ^= 1;
    store.delete(&name).unwrap();
    store.put_new(&name, Body::Bytes(&bytes)).unwrap();
    let clock = crate::environment::Environment::real().clock;
    let (sound, bad) = Index::load_sound(store.clone(), keys.clone(), clock, &|| Ok(())).unwrap();
    let bad: Vec<ObjectId> = bad.iter().filter_map(|bad| bad.id).collect();
    assert_eq!(bad, [parts[0]]);
    let numbers = || (0..4).flat_map(|n| [n, n + 10, n + 20]);
    let found = |index: &Index| numbers().filter(|n| index.find_row(&id(*n)).unwrap().is_some()).count();
    assert_eq!(found(&sound), 12, "the inputs are still there");
    let left = sound.after_supersede().unwrap();
    let will_be = found(&left);
    assert!(will_be < 12, "the rows of the damaged part");
    left.supersede(&bad).unwrap();
    assert_eq!(found(&load(&store, &keys, 4)), will_be);
}

#[test]
fn rows_of_lost_packs_do_not_hide_those_that_are_there() {
    let _alone = fail::FailScenario::setup();
    let (store, keys) = fixture();
    publish(store.as_ref(), &keys, 10, &[1, 2], 1);
    publish(store.as_ref(), &keys, 20, &[1, 3], 2);
    // Pack 1 is there, pack 2 is not.
    let there = ObjectKind::Data.key(&pack(1).id.to_string());
    store.put_new(&there, Body::Bytes(&vec![0; 1 << 20])).unwrap();
    let index = load(&store, &keys, 100);
    let lost = index.lost_packs().unwrap();
    assert_eq!(lost.len(), 1);
    let index = index.excluding(Excluded { lost, ..Excluded::default() });
    assert_eq!(index.find_to_read(&id(1)).unwrap().unwrap().pack, pack(1));
    assert!(index.find_to_read(&id(3)).unwrap().is_none());
    index.tidy(Merge::Rewrite, &|| false).unwrap();
    let merged = load(&store, &keys, 100);
    assert_eq!(merged.segments().len(), 1);
    assert_eq!(
        merged.find_to_read(&id(1)).unwrap().unwrap().pack,
        pack(1),
        "the older row, since it is the one that helps"
    );
    assert_eq!(
        merged.find_to_read(&id(3)).unwrap().unwrap().pack,
        pack(2),
        "the only one there is: verify tells of it"
    );
}

#[test]
fn racing_mergers_readers_and_deleters_lose_nothing() {
    let _alone = fail::FailScenario::setup();
    let (store, keys) = fixture();
    for n in 0..40u32 {
        publish(store.as_ref(), &keys, 10 + u64::from(n), &[n, n + 1000], n as u8);
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    merge_all(&load(&store, &keys, 16));
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let index = load(&store, &keys, 16);
                    for n in (0..40).chain(1000..1040) {
                        assert_eq!(index.locate(&id(n), "a test").unwrap().pack, pack((n % 1000) as u8));
                    }
                }
            });
        }
    });
    merge_all(&load(&store, &keys, 16));
    merge_all(&load(&store, &keys, 16));
    let index = load(&store, &keys, 16);
    assert_eq!(index.lock_runs().runs().len(), 1);
    for n in (0..40).chain(1000..1040) {
        assert!(index.find_to_read(&id(n)).unwrap().is_some());
    }
}

/// Needs `--features failpoints`. A kill between any two puts of a merge, and between any two deletes after it.
#[cfg(feature = "failpoints")]
#[test]
fn killed_between_puts_or_deletes_nothing_is_lost() {
    let scenario = fail::FailScenario::setup();
    let (store, keys) = fixture();
    for n in 0..12u32 {
        publish(store.as_ref(), &keys, 10 + u64::from(n), &[n, n + 100, 7], n as u8);
    }
    let all = || (0..12).flat_map(|n| [n, n + 100]);
    for (point, times) in
        [("merge-before-put", 3), ("merge-after-put", 4), ("merge-after-put", 0), ("index-before-delete", 5)]
    {
        for before in 0..=times {
            fail::cfg(point, &format!("{before}*off->panic")).unwrap();
            let index = load(&store, &keys, 5);
            let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                index.tidy(all_runs(&index), &|| false)
            }));
            fail::remove(point);
            assert!(killed.is_err() || killed.unwrap().is_ok());
            for opened in [&index, &load(&store, &keys, 5)] {
                for n in all() {
                    assert_eq!(
                        opened.locate(&id(n), "a test").unwrap().pack,
                        pack(if n == 7 { 11 } else { n as u8 % 100 })
                    );
                }
            }
        }
    }
    (0..3).for_each(|_| merge_all(&load(&store, &keys, 5)));
    assert_eq!(object_count(store.as_ref()), 5, "in the end one run of 24 rows is left");
    scenario.teardown();
}

/// Stores a real pack of these contents and returns it with its table of contents.
fn store_pack(store: &dyn Store, keys: &RepoKeys, numbers: &[u32]) -> (PackRef, Vec<TocRow>) {
    use crate::compress::Compressor;
    use crate::pack::{FinishedPack, PackBuilder, pack_buffer_bytes};
    let pool = crate::io::BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 16));
    let buf = pool.get_blocking().unwrap();
    let mut builder = PackBuilder::start(keys, ObjectKind::Data, buf, 1 << 20).unwrap();
    let mut compressor = Compressor::new(Some(1)).unwrap();
    for number in numbers {
        builder.add(&id(*number), &number.to_le_bytes(), &mut compressor);
    }
    let FinishedPack { pack, rows, buf, len } = builder.finish();
    let key = pack.kind.key(&pack.id.to_string());
    assert_eq!(store.put_new(&key, Body::Pooled { buf, len }).unwrap(), PutOutcome::Created);
    (pack, rows)
}

proptest! {
    /// Packs may hold contents that no row places there: a merge kept another row, and garbage collection has taken that
    /// one's pack. Whatever a run takes for stored must be in the index when it has flushed, or its recovery point is hollow.
    #[test]
    fn what_is_taken_for_stored_is_in_the_index_after_the_flush(
        packs in prop::collection::vec(prop::collection::vec(0u32..30, 1..20), 1..5),
        with_row in prop::collection::vec(any::<bool>(), 100),
        asked in prop::collection::vec(0u32..40, 1..80),
        condemned in prop::option::of(0usize..5),
    ) {
        let (store, keys) = fixture();
        let first = Claims::new(Arc::new(load(&store, &keys, 100)));
        let mut stored: Vec<(PackRef, Vec<TocRow>)> = Vec::new();
        let mut flags = with_row.iter().cycle();
        for mut numbers in packs {
            numbers.sort_unstable();
            numbers.dedup();
            let (pack, rows) = store_pack(store.as_ref(), &keys, &numbers);
            let placed = rows.iter().filter(|_| *flags.next().unwrap()).copied().collect();
            first.add_durable(pack, placed).unwrap();
            first.flush().unwrap();
            stored.push((pack, rows));
        }
        let refused: HashSet<ObjectId> =
            condemned.and_then(|at| stored.get(at)).map(|(pack, _)| pack.id).into_iter().collect();
        let excluded = Excluded { condemned: refused.clone(), ..Excluded::default() };
        let claims = Claims::new(Arc::new(load(&store, &keys, 100).excluding(excluded)));
        let mut new: Vec<u32> = asked.iter().copied().filter(|n| claims.reserve(&id(*n)).unwrap()).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let (pack, rows) = store_pack(store.as_ref(), &keys, &new);
            claims.add_durable(pack, rows.clone()).unwrap();
            stored.push((pack, rows));
        }
        claims.flush().unwrap();
        let after = load(&store, &keys, 100).excluding(Excluded { condemned: refused, ..Excluded::default() });
        for number in asked {
            let at = after.find_row(&id(number)).unwrap();
            prop_assert!(at.is_some(), "content {number} was taken for stored, and no row says where it is");
            let at = at.unwrap();
            let (_, rows) = stored.iter().find(|(pack, _)| *pack == at.pack).unwrap();
            prop_assert!(rows.iter().any(|row| row.id == id(number) && row.offset == at.offset));
        }
    }
}
