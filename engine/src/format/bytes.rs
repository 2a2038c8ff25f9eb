//! A checked cursor over bytes from outside, and the LEB128 integers of manifest leaves.

use crate::error::{Error, Result};

/// Reads little-endian fields off a slice; every short read is damage of `object`.
pub struct Reader<'o, 'a> {
    object: &'o str,
    bytes: &'a [u8],
    at: usize,
}

impl<'o, 'a> Reader<'o, 'a> {
    /// A cursor at the start of `bytes`; `object` goes into the error texts.
    pub fn new(object: &'o str, bytes: &'a [u8]) -> Self {
        Self { object, bytes, at: 0 }
    }

    /// Position of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The damage error at the present position.
    pub fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged(self.object, format_args!("at byte {}: {what}", self.at))
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.remaining() {
            return Err(self.damaged(format_args!(
                "{count} bytes expected, {} are left (truncated?)",
                self.remaining()
            )));
        }
        let slice = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(slice)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0u8; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 integer in its shortest form.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.damaged("an integer that does not fit 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.damaged("an integer that is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(self.damaged("an integer longer than 10 bytes"))
    }

    /// Fails unless every byte was read.
    pub fn finish(self) -> Result<()> {
        if self.remaining() > 0 {
            return Err(self.damaged(format_args!("{} bytes too many", self.remaining())));
        }
        Ok(())
    }
}

/// Appends a LEB128 integer in its shortest form.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new("x", &out);
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_give_a_value_or_damage(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new("x", &bytes);
            if let Ok(value) = reader.varint() {
                let mut again = Vec::new();
                put_varint(&mut again, value);
                prop_assert_eq!(&again[..], &bytes[..again.len()], "decoded forms are canonical");
            }
        }
    }

    #[test]
    fn short_reads_name_the_object() {
        let error = Reader::new("data/ab", &[1, 2]).u32().unwrap_err().to_string();
        assert!(error.contains("data/ab") && error.contains("truncated"), "{error}");
    }
}
