//! Ids that follow from the seed.

use sha2::{Digest, Sha256};

/// Makes ids; the same seed gives the same ids in the same order.
#[derive(Clone, Debug)]
pub struct Ids {
    home: String,
    seed: u64,
    given: u64,
}

impl Ids {
    /// Of a region, or of whatever else has ids.
    pub fn new(home: &str, seed: u64) -> Self {
        Self { home: home.to_owned(), seed, given: 0 }
    }

    /// 64 hexadecimal digits.
    pub fn hex(&mut self) -> String {
        self.given += 1;
        let mut hash = Sha256::new();
        hash.update(format!("{}/{}/{}", self.home, self.seed, self.given));
        hex::encode(hash.finalize())
    }

    /// `vol-0123456789abcdef0`.
    pub fn id(&mut self, prefix: &str) -> String {
        format!("{prefix}-0{}", &self.hex()[..16])
    }

    /// `01234567-89ab-…`.
    pub fn uuid(&mut self) -> String {
        let h = self.hex();
        format!("{}-{}-4{}-a{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        u64::from_str_radix(&self.hex()[..15], 16).unwrap_or(0) % end.max(1)
    }
}
