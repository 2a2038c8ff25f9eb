//! The reads that a backup makes of an image, as an I/O log for fio (`--read_iolog`): `data_ranges IMAGE > log`. With a second path, the same
//! ranges as writes to that file: `data_ranges IMAGE TARGET > log`. Holes are left out; no range crosses a border of 4 MiB.

use std::io::Write;
use std::path::Path;

use penstock_benches::Outcome;
use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::source::{self, OpenOptions};

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("usage: data_ranges IMAGE [TARGET]")?;
    let source = source::open(Path::new(&image), OpenOptions { force_live: true, raw_container: true })?;
    let (file, action) = args.next().map_or((image, "read"), |target| (target, "write"));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(out, "fio version 2 iolog\n{file} add\n{file} open")?;
    let mut from = 0;
    while let Some(data) = source.next_data(from)? {
        let mut start = data.start;
        while start < data.end {
            let border = (start / SEGMENT_BYTES as u64 + 1) * SEGMENT_BYTES as u64;
            let end = border.min(data.end);
            writeln!(out, "{file} {action} {start} {}", end - start)?;
            start = end;
        }
        from = data.end;
    }
    writeln!(out, "{file} close")?;
    Ok(out.flush()?)
}
