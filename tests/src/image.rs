//! Contents of sources and targets: files of a given make-up, the same for the same seed.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rng::Rng;
use crate::{BLOCK, KIB, MIB};

/// Incompressible bytes.
pub fn random(path: &Path, size_bytes: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    write(path, size_bytes, |buffer| rng.fill(buffer));
}

/// Text with the entropy of log files; no two blocks are alike.
pub fn text(path: &Path, size_bytes: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    write(path, size_bytes, |buffer| fill_text(&mut rng, buffer));
}

/// Zeros that are really written: no holes.
pub fn zeros(path: &Path, size_bytes: u64) {
    write(path, size_bytes, |buffer| buffer.fill(0));
}

/// Bytes that are not zero and compress to nothing, as an erased device has them.
pub fn garbage(path: &Path, size_bytes: u64) {
    write(path, size_bytes, |buffer| buffer.fill(0xa5));
}

/// What a disk is like: runs, of 4 KiB to 1 MiB, of random data, text, zeros and repetitions of one block.
pub fn mixed(path: &Path, size_bytes: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut out = BufWriter::with_capacity(MIB as usize, File::create(path).unwrap());
    let mut left = size_bytes;
    let mut run = Vec::new();
    while left > 0 {
        let run_bytes = (BLOCK << rng.in_range(0..9)).min(left) as usize;
        run.resize(run_bytes, 0);
        match rng.in_range(0..10) {
            0..3 => rng.fill(&mut run),
            3..7 => fill_text(&mut rng, &mut run),
            7..9 => run.fill(0),
            _ => {
                let mut block = [0u8; BLOCK as usize];
                rng.fill(&mut block);
                for piece in run.chunks_mut(block.len()) {
                    let piece_bytes = piece.len();
                    piece.copy_from_slice(&block[..piece_bytes]);
                }
            }
        }
        out.write_all(&run).unwrap();
        left -= run_bytes as u64;
    }
    out.into_inner().unwrap().sync_all().unwrap();
}

/// Random data and text by turns of 1 MiB: nothing dedups, nothing is zero.
pub fn dense(path: &Path, size_bytes: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut turn = 0;
    write(path, size_bytes, |buffer| {
        turn += 1;
        if turn % 2 == 0 { rng.fill(buffer) } else { fill_text(&mut rng, buffer) }
    });
}

/// A file of holes with data at the given places: `(offset, length, seed)`.
pub fn sparse(path: &Path, size_bytes: u64, data: &[(u64, u64, u64)]) {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    for &(offset, length, seed) in data {
        assert!(offset + length <= size_bytes);
        let mut bytes = vec![0; length as usize];
        Rng::new(seed).fill(&mut bytes);
        file.write_all_at(&bytes, offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// Overwrites, or appends, in place.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Overwrites `length` bytes at `offset` with incompressible contents.
pub fn patch_random(path: &Path, offset: u64, length: u64, seed: u64) {
    let mut bytes = vec![0; length as usize];
    Rng::new(seed).fill(&mut bytes);
    patch(path, offset, &bytes);
}

/// Fills `buffer` with text.
pub fn fill_text(rng: &mut Rng, buffer: &mut [u8]) {
    const WORDS: [&[u8]; 16] = [
        b"systemd[1]: ",
        b"kernel: ",
        b"Started Session ",
        b"of user root.\n",
        b"GET /index.html HTTP/1.1 ",
        b"200 ",
        b"accepted publickey ",
        b"INSERT INTO accounts VALUES (",
        b"\n",
        b"error=",
        b"{\"level\":\"info\",\"msg\":\"",
        b"\"}\n",
        b"duration_ms=",
        b"127.0.0.1 - - ",
        b"Mozilla/5.0 (X11; Linux x86_64) ",
        b"/usr/lib/x86_64-linux-gnu/",
    ];
    let mut at = 0;
    while at < buffer.len() {
        let bits = rng.next_u64();
        let mut put = |bytes: &[u8]| {
            let n = bytes.len().min(buffer.len() - at);
            buffer[at..at + n].copy_from_slice(&bytes[..n]);
            at += n;
        };
        put(WORDS[(bits & 15) as usize]);
        let mut number = [b' '; 7];
        for (place, digit) in number[..6].iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(bits >> (8 + 4 * place)) as usize & 15];
        }
        put(&number);
    }
}

/// Writes `size_bytes` in pieces of 1 MiB that `fill` makes, and waits until they are on disk.
fn write(path: &Path, size_bytes: u64, mut fill: impl FnMut(&mut [u8])) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
    let mut buffer = vec![0; (1024 * KIB) as usize];
    let mut left = size_bytes;
    while left > 0 {
        let piece = &mut buffer[..left.min(1024 * KIB) as usize];
        fill(piece);
        file.write_all(piece).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        left -= piece.len() as u64;
    }
    file.sync_all().unwrap();
}

/// Fills a device (or an existing file) of `size_bytes` with [`garbage`], without changing its size.
pub fn fill_with_garbage(device: &Path, size_bytes: u64) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    let buffer = vec![0xa5; MIB as usize];
    let mut offset = 0;
    while offset < size_bytes {
        let n = (size_bytes - offset).min(MIB);
        file.write_all_at(&buffer[..n as usize], offset).unwrap();
        offset += n;
    }
    file.sync_all().unwrap();
}
