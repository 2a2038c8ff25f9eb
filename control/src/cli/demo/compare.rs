//! Two files or devices, byte for byte.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Instant;

use super::super::exit::Failure;

const BUFFER_BYTES: usize = 4 << 20;

/// How a comparison came out.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Read from each of the two.
    pub bytes: u64,
    /// Offset of the first byte that differs, or that only one of them has.
    pub first_difference: Option<u64>,
    /// Wall clock.
    pub duration_ms: u64,
}

impl Compared {
    /// True if not a byte differs.
    pub fn is_identical(&self) -> bool {
        self.first_difference.is_none()
    }
}

/// Reads both to the end, or to the first difference.
pub fn files(one: &Path, other: &Path, check: impl Fn() -> Result<(), Failure>) -> Result<Compared, Failure> {
    let started = Instant::now();
    let open = |path: &Path| File::open(path).map_err(Failure::io("open", path.display()));
    let (mut file_one, mut file_other) = (open(one)?, open(other)?);
    let (mut buffer_one, mut buffer_other) = (vec![0u8; BUFFER_BYTES], vec![0u8; BUFFER_BYTES]);
    let mut bytes = 0u64;
    let first_difference = loop {
        check()?;
        let filled_one = fill(&mut file_one, &mut buffer_one).map_err(Failure::io("read", one.display()))?;
        let filled_other =
            fill(&mut file_other, &mut buffer_other).map_err(Failure::io("read", other.display()))?;
        let (read_one, read_other) = (&buffer_one[..filled_one], &buffer_other[..filled_other]);
        if read_one != read_other {
            let same = read_one.iter().zip(read_other).take_while(|(a, b)| a == b).count();
            break Some(bytes + same as u64);
        }
        if filled_one == 0 {
            break None;
        }
        bytes += filled_one as u64;
    };
    Ok(Compared { bytes, first_difference, duration_ms: started.elapsed().as_millis() as u64 })
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let contents = vec![7u8; BUFFER_BYTES + 100];
        let compare = |other: &[u8]| {
            std::fs::write(&a, &contents).unwrap();
            std::fs::write(&b, other).unwrap();
            files(&a, &b, || Ok(())).unwrap()
        };
        let same = compare(&contents);
        assert!(same.is_identical() && same.bytes == contents.len() as u64);
        let mut changed = contents.clone();
        changed[BUFFER_BYTES + 5] = 8;
        assert_eq!(compare(&changed).first_difference, Some(BUFFER_BYTES as u64 + 5));
        assert_eq!(compare(&contents[..BUFFER_BYTES]).first_difference, Some(BUFFER_BYTES as u64));
        assert_eq!(compare(&[]).first_difference, Some(0));
    }
}
