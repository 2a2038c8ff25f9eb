//! Read rate of the reader threads: `read_speed PATH [uring|pread] [threads] [depth] [segment MiB] [touch]`. Drop
//! caches first. With `touch`, a byte of each cache line is looked at, as a backup must: a device that copies into
//! memory is faster as long as nobody else has the lines in its cache.
#![allow(missing_docs)]

use std::path::Path;
use std::time::Instant;

use penstock_engine::Result;
use penstock_engine::io::{BufPool, IoEngineChoice, ReadJob, choose, spawn_readers};
use penstock_engine::source::{self, OpenOptions};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let number =
        |index: usize, default: usize| args.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let path = args.get(1).map(String::as_str).ok_or("usage: read_speed FILE")?;
    let (engine, why) = choose(args.get(2).map_or("auto", String::as_str).parse::<IoEngineChoice>()?)?;
    let (threads, depth, segment) = (number(3, 1), number(4, 8), number(5, 4) << 20);
    let touch = args.get(6).is_some_and(|text| text == "touch");
    let source = source::open(Path::new(path), OpenOptions { force_live: true, raw_container: true })?;
    let (Some(file), Some(size_bytes)) = (source.file(), source.size_bytes()) else { return Ok(()) };

    let pool = BufPool::new(threads * depth + 2, segment);
    let (job_tx, job_rx) = async_channel::bounded(64);
    let (done_tx, done_rx) = crossbeam::channel::bounded(pool.buf_count());
    let start = Instant::now();
    let readers = spawn_readers(engine, threads, depth, job_rx, pool, done_tx)?;
    let feeder = std::thread::spawn(move || -> Result<()> {
        let mut from = 0;
        while let Some(data) = source.next_data(from)? {
            let first = data.start / segment as u64 * segment as u64;
            for offset_bytes in (first..data.end).step_by(segment) {
                let range = data.start.saturating_sub(offset_bytes) as u32
                    ..(data.end - offset_bytes).min(segment as u64) as u32;
                let job = ReadJob { tag: (), file: file.clone(), offset_bytes, ranges: vec![range] };
                if job_tx.send_blocking(job).is_err() {
                    return Ok(());
                }
            }
            from = data.end;
        }
        Ok(())
    });
    let (mut bytes, mut count) = (0, 0);
    for done in done_rx {
        let done = done.map_err(|(_, e)| e)?;
        bytes += done.read_bytes;
        if touch {
            let range = |range: &std::ops::Range<u32>| range.start as usize..range.end as usize;
            let lines = done.ranges.iter().flat_map(|r| done.buf[range(r)].iter().step_by(64));
            std::hint::black_box(lines.fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        }
        count += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let _ = (feeder.join(), readers.into_iter().map(std::thread::JoinHandle::join).collect::<Vec<_>>());
    println!(
        "{engine} ({why}), {threads} threads x {depth}, {} MiB: \
         {count} reads, {} of {} MiB in {seconds:.2} s = {:.0} MiB/s",
        segment >> 20,
        bytes >> 20,
        size_bytes >> 20,
        bytes as f64 / seconds / (1 << 20) as f64
    );
    Ok(())
}
