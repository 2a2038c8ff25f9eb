//! Readers, writers and durable files, with both engines, on ordinary files.
#![allow(clippy::unwrap_used, missing_docs, clippy::single_range_in_vec_init)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{ENGINES, pattern, read_all, read_jobs, scratch};
use penstock_engine::Error;
use penstock_engine::io::{
    AlignedBuf, BufPool, DurableWriter, IoEngine, IoEngineChoice, OpenFile, ReadJob, WriteJob, WriteResult,
    choose, spawn_readers, spawn_writers,
};
use penstock_engine::source::{self, OpenOptions, SourceKind};
use penstock_engine::target::{self, TargetOptions};
use proptest::prelude::*;

const SIZES: [usize; 8] = [1, 511, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (4 << 20) + 1];

fn open_image(path: &Path) -> Arc<OpenFile> {
    source::open(path, OpenOptions::default()).unwrap().file().unwrap()
}

#[test]
fn io_uring_is_what_these_tests_run_on() {
    let (engine, why) = choose(IoEngineChoice::Auto).unwrap();
    assert!(engine == IoEngine::Uring || why.starts_with("io_uring_setup"), "{why}");
}

#[test]
fn both_engines_read_odd_sizes_exactly() {
    let dir = scratch();
    for size in SIZES {
        let path = dir.path().join(size.to_string());
        std::fs::write(&path, pattern(size)).unwrap();
        for engine in ENGINES {
            assert!(read_all(engine, &open_image(&path)) == pattern(size), "{engine} {size}");
        }
    }
}

#[test]
fn ranges_land_in_place_and_gaps_can_be_zeroed() {
    let dir = scratch();
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    std::fs::write(&one, pattern(1 << 20)).unwrap();
    std::fs::write(&two, vec![7; 20_000]).unwrap();
    for engine in ENGINES {
        let jobs = vec![
            ReadJob {
                tag: 0,
                file: open_image(&one),
                offset_bytes: 8192,
                ranges: vec![5000..5001, 20_000..30_000],
            },
            ReadJob { tag: 1, file: open_image(&two), offset_bytes: 16_384, ranges: vec![0..65_536] },
            ReadJob { tag: 2, file: open_image(&two), offset_bytes: 1, ranges: vec![0..1] },
            ReadJob { tag: 3, file: open_image(&two), offset_bytes: 0, ranges: vec![0..65_537] },
            ReadJob { tag: 4, file: open_image(&two), offset_bytes: 0, ranges: vec![] },
        ];
        let mut results = read_jobs(engine, jobs, 65_536).into_iter();
        let mut done = results.next().unwrap().unwrap();
        assert_eq!((done.read_bytes, &done.ranges), (4096 + 16_384, &vec![5000..5001, 20_000..30_000]));
        done.buf[..4096].fill(1);
        done.zero_gaps(65_536);
        let mut expected = vec![0; 65_536];
        for block in [4096..8192, 16_384..32_768] {
            expected[block.clone()].copy_from_slice(&pattern(1 << 20)[8192..][block]);
        }
        assert!(*done.buf == *expected, "{engine}");
        let done = results.next().unwrap().unwrap();
        assert_eq!(done.read_bytes, 20_000 - 16_384);
        assert!(done.buf[..3616].iter().all(|&b| b == 7) && done.buf[3616..4096].iter().all(|&b| b == 0));
        for _ in 0..2 {
            let (_, error) = results.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert_eq!(results.next().unwrap().unwrap().read_bytes, 0);
    }
}

#[test]
fn a_fifo_is_a_stream() {
    let dir = scratch();
    let path = dir.path().join("fifo");
    common::run("mkfifo", &[path.to_str().unwrap()]);
    let writer = thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, pattern(300_000)).unwrap()
    });
    let mut source = source::open(&path, OpenOptions::default()).unwrap();
    assert_eq!((source.kind(), source.size_bytes(), source.identity()), (SourceKind::Stream, None, None));
    let mut segment = vec![0; 200_000];
    let stream = source.as_stream().unwrap();
    assert_eq!(stream.read_segment(&mut segment).unwrap(), 200_000);
    assert!(segment == pattern(300_000)[..200_000]);
    assert_eq!(stream.read_segment(&mut segment).unwrap(), 100_000);
    writer.join().unwrap();
    assert_eq!(source::open(Path::new("-"), OpenOptions::default()).unwrap().name(), "stdin");
}

#[test]
fn a_file_that_shrinks_is_an_error_that_says_so() {
    let dir = scratch();
    let path = dir.path().join("shrinks");
    std::fs::write(&path, pattern(100_000)).unwrap();
    for (engine, left) in [(ENGINES[0], 50_000), (ENGINES[1], 40_960)] {
        let file = open_image(&path);
        File::options().write(true).open(&path).unwrap().set_len(left).unwrap();
        let job = ReadJob { tag: 0, file, offset_bytes: 0, ranges: vec![0..100_000] };
        let (_, error) = read_jobs(engine, vec![job], 1 << 20).pop().unwrap().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("became shorter") && text.contains("shrinks") && text.contains(&left.to_string()),
            "{text}"
        );
        std::fs::write(&path, pattern(100_000)).unwrap();
    }
}

#[test]
fn a_file_that_grows_is_read_at_its_first_size() {
    let dir = scratch();
    let path = dir.path().join("grows");
    std::fs::write(&path, pattern(5000)).unwrap();
    for engine in ENGINES {
        let file = open_image(&path);
        File::options().write(true).open(&path).unwrap().write_at(&[9; 9000], 5000).unwrap();
        assert!(read_all(engine, &file) == pattern(5000), "{engine}");
        std::fs::write(&path, pattern(5000)).unwrap();
    }
}

#[test]
fn read_errors_name_source_offset_and_length() {
    let dir = scratch();
    let path = dir.path().join("write-only");
    std::fs::write(&path, pattern(100_000)).unwrap();
    for engine in ENGINES {
        let file = File::options().write(true).open(&path).unwrap();
        let file = OpenFile { file, name: "the-name".into(), size_bytes: 100_000, direct: false };
        let job = ReadJob { tag: 0, file: Arc::new(file), offset_bytes: 4096, ranges: vec![4096..8000] };
        let (_, error) = read_jobs(engine, vec![job], 1 << 20).pop().unwrap().unwrap_err();
        assert!(error.to_string().contains("read the-name (4096 bytes at offset 8192)"), "{error}");
    }
}

#[test]
fn readers_end_when_nobody_listens() {
    let dir = scratch();
    let path = dir.path().join("x");
    std::fs::write(&path, pattern(100_000)).unwrap();
    for engine in ENGINES {
        let pool = BufPool::new(4, 1 << 20);
        let (job_tx, job_rx) = async_channel::bounded(2);
        let (done_tx, done_rx) = crossbeam::channel::bounded(4);
        let threads = spawn_readers(engine, 2, 2, job_rx, pool.clone(), done_tx).unwrap();
        drop(done_rx);
        let file = open_image(&path);
        // Refused sooner or later, instead of waiting for ever.
        while job_tx
            .send_blocking(ReadJob { tag: 0, file: file.clone(), offset_bytes: 0, ranges: vec![0..4096] })
            .is_ok()
        {}
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pool.free_count(), 4, "{engine}");
    }
}

#[test]
fn closing_the_pool_ends_readers_that_wait_for_a_buffer() {
    for engine in ENGINES {
        let pool = BufPool::new(1, 4096);
        let held = pool.get_blocking().unwrap();
        let (_job_tx, job_rx) = async_channel::bounded::<ReadJob<()>>(1);
        let (done_tx, _done_rx) = crossbeam::channel::bounded(1);
        let threads = spawn_readers(engine, 2, 2, job_rx, pool.clone(), done_tx).unwrap();
        thread::sleep(Duration::from_millis(20));
        pool.close();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(held);
    }
}

fn write_jobs(engine: IoEngine, jobs: Vec<WriteJob<u64>>) -> Vec<WriteResult<u64>> {
    let (job_tx, job_rx) = async_channel::unbounded();
    let (done_tx, done_rx) = crossbeam::channel::unbounded();
    let threads = spawn_writers(engine, 2, 3, job_rx, done_tx).unwrap();
    for job in jobs {
        job_tx.send_blocking(job).unwrap();
    }
    drop(job_tx);
    let results = done_rx.iter().collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    results
}

#[test]
fn what_is_written_is_read_back() {
    let dir = scratch();
    let size = (9 << 20) + 100;
    let contents = pattern(size);
    for engine in ENGINES {
        let path = dir.path().join(engine.to_string());
        let options = TargetOptions { size_bytes: size as u64, ..Default::default() };
        let target = target::open(&path, options).unwrap();
        assert!(target.is_fresh() && target.tail().is_none() && target.file().direct);
        let pool = BufPool::new(3, 4 << 20);
        let jobs = contents.chunks(4 << 20).enumerate().map(|(no, segment)| {
            let mut buf = pool.get_blocking().unwrap();
            buf[..segment.len()].copy_from_slice(segment);
            buf[segment.len()..].fill(0);
            let ranges = vec![0..4096, 4096..segment.len().next_multiple_of(4096) as u32];
            WriteJob {
                tag: no as u64,
                file: target.file(),
                offset_bytes: (no as u64) << 22,
                buf,
                ranges,
                scattered: Vec::new(),
            }
        });
        let written: u64 =
            write_jobs(engine, jobs.collect()).into_iter().map(|result| result.unwrap().1).sum();
        assert_eq!(written, size.next_multiple_of(4096) as u64);
        assert_eq!(pool.free_count(), 3);
        target.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == contents, "{engine}");
    }
}

#[test]
fn scattered_pieces_go_to_their_places() {
    let dir = scratch();
    let contents = pattern(4 << 20);
    let blocks = (4 << 20) / 4096u64;
    for engine in ENGINES {
        let path = dir.path().join(format!("scattered-{engine}"));
        let options = TargetOptions { size_bytes: 4 << 20, ..Default::default() };
        let target = target::open(&path, options).unwrap();
        let pool = BufPool::new(2, 4 << 20);
        // Two jobs, each with every second block, in an order that jumps about (389 has no factor in common with 1024).
        let jobs = (0..2u64).map(|odd| {
            let mut buf = pool.get_blocking().unwrap();
            let mut scattered = Vec::new();
            for no in 0..blocks / 2 {
                let block = (no * 389 % (blocks / 2)) * 2 + odd;
                let (from, to) = (no as usize * 4096, block as usize * 4096);
                buf[from..from + 4096].copy_from_slice(&contents[to..to + 4096]);
                scattered.push((from as u32..from as u32 + 4096, block * 4096));
            }
            WriteJob { tag: odd, file: target.file(), offset_bytes: 0, buf, ranges: Vec::new(), scattered }
        });
        let results = write_jobs(engine, jobs.collect());
        assert!(results.into_iter().all(|result| result.unwrap().1 == 2 << 20));
        assert_eq!(pool.free_count(), 2);
        target.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == contents, "{engine}");

        let bad = [(0u32..4096, 4 << 20), (0..4096, 100), (0..100, 0), ((4 << 20)..(4 << 20) + 4096, 0)];
        let target = target::open(&dir.path().join(format!("refused-{engine}")), options).unwrap();
        for scattered in bad {
            let buf = pool.get_blocking().unwrap();
            let job = WriteJob {
                tag: 0,
                file: target.file(),
                offset_bytes: 0,
                buf,
                ranges: Vec::new(),
                scattered: vec![scattered],
            };
            assert!(matches!(write_jobs(engine, vec![job])[..], [Err((_, Error::Invalid { .. }))]));
        }
        assert_eq!(pool.free_count(), 2, "the buffers of refused jobs come back");
    }
}

#[test]
fn writes_outside_or_unaligned_are_refused() {
    let dir = scratch();
    let options = TargetOptions { size_bytes: 8192, ..Default::default() };
    let target = target::open(&dir.path().join("t"), options).unwrap();
    let pool = BufPool::new(4, 16_384);
    let bad = [(0, 0..100), (0, 0..12_288), (8192, 0..4096), (100, 0..4096)];
    let jobs = bad.into_iter().map(|(offset_bytes, range)| {
        let buf = pool.get_blocking().unwrap();
        WriteJob {
            tag: 0,
            file: target.file(),
            offset_bytes,
            buf,
            ranges: vec![range],
            scattered: Vec::new(),
        }
    });
    for result in write_jobs(IoEngine::Pread, jobs.collect()) {
        assert!(matches!(result, Err((_, Error::Invalid { .. }))));
    }
}

#[test]
fn durable_files_have_their_exact_size() {
    let dir = scratch();
    for engine in ENGINES {
        let writer = DurableWriter::new(engine, 4);
        let mut buf = AlignedBuf::new(9 << 20);
        for size in SIZES.into_iter().chain([9 << 20]) {
            buf[..size].copy_from_slice(&pattern(size));
            buf[size..].fill(0xee);
            let path = dir.path().join(format!("{engine}-{size}"));
            let result;
            (result, buf) = writer.write_file(&path, buf, size);
            result.unwrap();
            assert_eq!(buf.len(), 9 << 20);
            assert!(std::fs::read(&path).unwrap() == pattern(size), "{engine} {size}");
        }
        assert!(writer.direct());
        let path = dir.path().join(format!("{engine}-1"));
        let (result, buf) = writer.write_file(&path, buf, 5);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), pattern(1), "what was there stays");
        let too_long = buf.len() + 1;
        assert!(writer.write_file(&dir.path().join("long"), buf, too_long).0.is_err());
    }
}

#[test]
fn many_threads_share_a_durable_writer() {
    let dir = scratch();
    for engine in ENGINES {
        let writer = DurableWriter::new(engine, 2);
        thread::scope(|scope| {
            for no in 0..8u8 {
                let (writer, dir) = (&writer, dir.path());
                scope.spawn(move || {
                    let mut buf = AlignedBuf::new(5 << 20);
                    buf.fill(no);
                    let path = dir.join(format!("{engine}-{no}"));
                    writer.write_file(&path, buf, (5 << 20) - 7).0.unwrap();
                    let found = std::fs::read(&path).unwrap();
                    assert!(found.len() == (5 << 20) - 7 && found.iter().all(|&b| b == no));
                });
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Random sizes and ranges: both engines deliver the bytes of the file, everywhere in the ranges.
    #[test]
    fn random_ranges_read_the_same(
        size in 1usize..200_000,
        block in 0u64..10,
        cuts in prop::collection::vec((0u32..65_536, 0u32..20_000), 1..6),
    ) {
        let dir = scratch();
        let path = dir.path().join("random");
        let contents = pattern(size);
        std::fs::write(&path, &contents).unwrap();
        let offset_bytes = (block * 4096).min(size as u64 / 4096 * 4096);
        let ranges: Vec<_> = cuts.into_iter().map(|(start, len)| start..(start + len).min(65_536)).collect();
        for engine in ENGINES {
            let job = ReadJob { tag: 0, file: open_image(&path), offset_bytes, ranges: ranges.clone() };
            let done = read_jobs(engine, vec![job], 65_536).pop().unwrap().unwrap();
            for range in &ranges {
                for index in range.clone() {
                    let at = offset_bytes as usize + index as usize;
                    if at < size {
                        prop_assert_eq!(done.buf[index as usize], contents[at]);
                    }
                }
            }
        }
    }
}
