//! The container of the two objects that are read before any key is known: configuration and key slots.
//! JSON with a digest (is it damaged?) and a MAC (was it changed by someone without the key?).

use super::{VERSION, bytes::Reader, header::ObjectKind};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"PENSTOCK";
const PREFIX_BYTES: usize = 16;
/// Largest JSON payload.
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
/// Largest plain object.
pub const PLAIN_BYTES_MAX: usize = PREFIX_BYTES + PAYLOAD_BYTES_MAX + 64;

/// A decoded plain object: its JSON, and what the MAC is to be checked with once the master key is known.
#[derive(Debug)]
pub struct Plain<'a> {
    /// The JSON text.
    pub payload: &'a [u8],
    authenticated: &'a [u8],
    mac: [u8; 32],
}

/// Encodes `payload` with its digest and a MAC under `mac_key` (`Kconfig`).
pub fn encode(kind: ObjectKind, payload: &[u8], mac_key: &[u8; 32]) -> Vec<u8> {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let mut out = Vec::with_capacity(PREFIX_BYTES + payload.len() + 64);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
    let digest = blake3::hash(&out);
    let mac = blake3::keyed_hash(mac_key, &out);
    out.extend_from_slice(digest.as_bytes());
    out.extend_from_slice(mac.as_bytes());
    out
}

/// Decodes all but the MAC.
pub fn decode<'a>(object: &str, bytes: &'a [u8], kind: ObjectKind) -> Result<Plain<'a>> {
    let mut reader = Reader::new(object, bytes);
    if reader.take(8)? != MAGIC {
        return Err(Error::damaged(object, "it does not begin with PENSTOCK"));
    }
    let version = reader.u16()?;
    let (found_kind, zero) = (reader.u8()?, reader.u8()?);
    if version > VERSION {
        return Err(Error::NewerVersion {
            object: object.to_owned(),
            found: version.into(),
            supported: VERSION.into(),
        });
    }
    let payload_bytes = reader.u32()? as usize;
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(reader.damaged(format_args!(
            "a payload of {payload_bytes} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
        )));
    }
    let payload = reader.take(payload_bytes)?;
    let authenticated = &bytes[..reader.position()];
    let digest: [u8; 32] = reader.array()?;
    let mac: [u8; 32] = reader.array()?;
    reader.finish()?;
    if blake3::hash(authenticated) != digest {
        return Err(Error::damaged(object, "its digest does not match its contents"));
    }
    if version == 0 || zero != 0 || found_kind != kind as u8 {
        return Err(Error::damaged(object, format_args!("it is not a {}", kind.noun())));
    }
    Ok(Plain { payload, authenticated, mac })
}

impl Plain<'_> {
    /// True if the holder of the master key wrote this. Constant time.
    pub fn mac_matches(&self, mac_key: &[u8; 32]) -> bool {
        blake3::keyed_hash(mac_key, self.authenticated) == self.mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_flips_and_truncations() {
        let bytes = encode(ObjectKind::Config, b"{\"a\":1}", &[3; 32]);
        let plain = decode("config", &bytes, ObjectKind::Config).unwrap();
        assert_eq!(plain.payload, b"{\"a\":1}");
        assert!(plain.mac_matches(&[3; 32]) && !plain.mac_matches(&[4; 32]));
        assert!(decode("config", &bytes, ObjectKind::Key).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("config", &hurt, ObjectKind::Config).map_or(true, |p| !p.mac_matches(&[3; 32])));
        }
        for keep in 0..bytes.len() {
            assert!(decode("config", &bytes[..keep], ObjectKind::Config).is_err());
        }
    }
}
