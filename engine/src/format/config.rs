//! The JSON of the configuration object and of key slots.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::header::Cipher;
use crate::error::{Error, Result};
use crate::limits::{CHUNK_TARGET_BYTES_MAX, CHUNK_TARGET_BYTES_MIN, PACK_BYTES_MAX, PACK_BYTES_MIN};

/// What all writers of a repository share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// 32 hex digits, drawn by `init`.
    pub repository_id: String,
    /// RFC 3339.
    pub created_at: String,
    /// Program and version.
    pub created_by: String,
    /// How objects are sealed.
    pub encryption: Encryption,
    /// `block` or `fastcdc`.
    pub chunker: String,
    /// Average chunk.
    pub chunk_bytes: u32,
    /// What a pack aims at.
    pub pack_bytes: u32,
    /// `auto`, `off`, or a zstd level.
    pub compression: String,
}

/// How objects are sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Encryption {
    /// AES-256-GCM with a key per object.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// Damage is detected, nothing is hidden.
    #[serde(rename = "none")]
    None,
}

impl Encryption {
    /// The cipher of object headers.
    pub fn cipher(self) -> Cipher {
        match self {
            Self::Aes256Gcm => Cipher::Aes256Gcm,
            Self::None => Cipher::None,
        }
    }
}

/// How eagerly chunks are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// The program chooses, from `lowest` to `highest`: see `backup/level.rs`.
    Auto {
        /// Used while the processor is the bottleneck.
        lowest: i32,
        /// Used at most, while it has time to spare.
        highest: i32,
    },
    /// Never.
    Off,
    /// This zstd level.
    Level(i32),
}

impl Compression {
    /// `auto`: level 1 has the best ratio per CPU second on disk contents; 4 stores 5 % less for 1.6 times the time, and 5 would take 1.8 times as long as 4 for another
    /// 2 % (docs/PERFORMANCE.md, compression levels).
    pub const AUTO: Self = Self::Auto { lowest: 1, highest: 4 };

    /// From `auto`, `auto:LOWEST..HIGHEST`, `off` or a level of -7..=19.
    pub fn parse(text: &str) -> Result<Self> {
        let level = |number: &str| number.parse().ok().filter(|level| (-7..=19).contains(level));
        let parsed = match text {
            "auto" => Some(Self::AUTO),
            "off" => Some(Self::Off),
            other => match other.strip_prefix("auto:") {
                Some(bounds) => bounds
                    .split_once("..")
                    .and_then(|(lowest, highest)| Some((level(lowest)?, level(highest)?)))
                    .filter(|(lowest, highest)| lowest <= highest)
                    .map(|(lowest, highest)| Self::Auto { lowest, highest }),
                None => level(other).map(Self::Level),
            },
        };
        parsed.ok_or_else(|| Error::Invalid {
            what: format!(
                "compression {text:?}: auto, auto:LOWEST..HIGHEST, off or a level from -7 to 19 are accepted"
            ),
        })
    }

    /// The zstd levels to choose from, or `None` for no compression.
    pub fn levels(&self) -> Option<RangeInclusive<i32>> {
        match *self {
            Self::Auto { lowest, highest } => Some(lowest..=highest),
            Self::Off => None,
            Self::Level(level) => Some(level..=level),
        }
    }
}

impl Config {
    /// Decodes and checks the JSON.
    pub fn from_json(object: &str, json: &[u8]) -> Result<Config> {
        let config: Config = serde_json::from_slice(json).map_err(|e| Error::damaged(object, e))?;
        if hex_of(&config.repository_id, 16).is_none() {
            return Err(Error::damaged(object, "a repository_id that is not 32 hex digits"));
        }
        config.check().map_err(|e| Error::damaged(object, e))?;
        Ok(config)
    }

    /// Checks the ranges of all parameters.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid { what });
        if !self.chunk_bytes.is_power_of_two()
            || !(CHUNK_TARGET_BYTES_MIN..=CHUNK_TARGET_BYTES_MAX).contains(&self.chunk_bytes)
        {
            return invalid(format!(
                "chunk size {}: a power of two from {CHUNK_TARGET_BYTES_MIN} to {CHUNK_TARGET_BYTES_MAX} bytes is accepted",
                self.chunk_bytes
            ));
        }
        if !(PACK_BYTES_MIN..=PACK_BYTES_MAX / 2).contains(&self.pack_bytes) {
            return invalid(format!(
                "pack size {}: {PACK_BYTES_MIN} to {} bytes are accepted",
                self.pack_bytes,
                PACK_BYTES_MAX / 2
            ));
        }
        if !["block", "fastcdc"].contains(&self.chunker.as_str()) {
            return invalid(format!("chunker {:?}: block or fastcdc are accepted", self.chunker));
        }
        Compression::parse(&self.compression).map(drop)
    }
}

/// How the key that wraps the master key comes about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Kdf {
    /// From a passphrase.
    #[serde(rename = "argon2id")]
    Argon2id {
        /// Memory cost.
        memory_kib: u32,
        /// Time cost.
        iterations: u32,
        /// Lanes.
        parallelism: u32,
        /// Hex.
        salt: String,
    },
    /// From the contents of a file of at least 32 bytes.
    #[serde(rename = "key-file")]
    KeyFile,
    /// From nothing: `--insecure-no-encryption`.
    #[serde(rename = "none")]
    None,
}

/// The master key, wrapped for one access key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeySlot {
    /// Its own name, 32 hex digits.
    pub key_id: String,
    /// RFC 3339.
    pub created_at: String,
    /// For people.
    pub label: String,
    /// Where the wrapping key comes from.
    pub kdf: Kdf,
    /// 12 bytes in hex.
    pub nonce: String,
    /// Master key and tag in hex.
    pub wrapped: String,
}

impl KeySlot {
    /// Decodes and checks the JSON of the slot named `key_id`.
    pub fn from_json(object: &str, json: &[u8], key_id: &str) -> Result<KeySlot> {
        let slot: KeySlot = serde_json::from_slice(json).map_err(|e| Error::damaged(object, e))?;
        if slot.key_id != key_id {
            return Err(Error::damaged(object, format_args!("it calls itself {}: swapped", slot.key_id)));
        }
        if hex_of(&slot.nonce, 12).is_none() || hex_of(&slot.wrapped, 48).is_none() {
            return Err(Error::damaged(object, "a nonce or wrapped key of the wrong length"));
        }
        if let Kdf::Argon2id { memory_kib, iterations, parallelism, salt } = &slot.kdf
            && (*memory_kib > 4 << 20
                || *memory_kib < parallelism.saturating_mul(8)
                || !(1..=1000).contains(iterations)
                || !(1..=255).contains(parallelism)
                || hex::decode(salt).map_or(true, |s| !(8..=64).contains(&s.len())))
        {
            return Err(Error::damaged(object, "argon2id parameters out of range"));
        }
        Ok(slot)
    }
}

/// Decodes hex of exactly `bytes` bytes.
pub fn hex_of(text: &str, bytes: usize) -> Option<Vec<u8>> {
    hex::decode(text).ok().filter(|v| v.len() == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            repository_id: "00".repeat(16),
            created_at: "2026-11-24T00:00:00Z".into(),
            created_by: "penstock 0.1.0".into(),
            encryption: Encryption::Aes256Gcm,
            chunker: "block".into(),
            chunk_bytes: 65_536,
            pack_bytes: 32 << 20,
            compression: "auto".into(),
        }
    }

    #[test]
    fn config_round_trip_and_ranges() {
        let json = serde_json::to_vec(&sample()).unwrap();
        assert_eq!(Config::from_json("config", &json).unwrap(), sample());
        for broken in [
            Config { chunk_bytes: 5000, ..sample() },
            Config { pack_bytes: 1, ..sample() },
            Config { chunker: "rabin".into(), ..sample() },
            Config { compression: "20".into(), ..sample() },
            Config { compression: "auto:6..1".into(), ..sample() },
            Config { compression: "auto:1-6".into(), ..sample() },
            Config { repository_id: "0".into(), ..sample() },
        ] {
            let json = serde_json::to_vec(&broken).unwrap();
            assert!(Config::from_json("config", &json).unwrap_err().is_damage());
        }
        assert!(Config::from_json("config", b"{").unwrap_err().is_damage());
    }

    #[test]
    fn hostile_kdf_costs_are_refused() {
        let slot = |memory_kib, iterations| KeySlot {
            key_id: "a".into(),
            created_at: String::new(),
            label: String::new(),
            kdf: Kdf::Argon2id { memory_kib, iterations, parallelism: 1, salt: "00".repeat(16) },
            nonce: "00".repeat(12),
            wrapped: "00".repeat(48),
        };
        let check = |s: KeySlot| KeySlot::from_json("k", &serde_json::to_vec(&s).unwrap(), "a");
        assert!(check(slot(65_536, 3)).is_ok());
        assert!(check(slot(u32::MAX, 3)).is_err());
        assert!(check(slot(65_536, u32::MAX)).is_err());
        let mut lanes = slot(65_536, 3);
        lanes.kdf = Kdf::Argon2id {
            memory_kib: 65_536,
            iterations: 3,
            parallelism: (1 << 29) + 1,
            salt: "00".repeat(16),
        };
        assert!(check(lanes).unwrap_err().is_damage(), "lanes times eight do not fit 32 bits");
        assert!(KeySlot::from_json("k", &serde_json::to_vec(&slot(65_536, 3)).unwrap(), "b").is_err());
    }
}
