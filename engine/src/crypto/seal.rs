//! Sealed regions: authenticated, bound to their object, offset and content id.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::format::header::{Cipher, ObjectKind, TAG_BYTES};

const AAD_BYTES: usize = 1 + 16 + 8 + 32;

/// The context of regions that are not a chunk or node.
pub const NO_CONTEXT: [u8; 32] = [0; 32];

impl std::fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectKey(secret)")
    }
}

/// A region did not authenticate: damaged, swapped, or sealed with another key.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAuthentic;

/// The key of one object.
pub struct ObjectKey {
    kind: ObjectKind,
    id: [u8; 16],
    commitment: [u8; 32],
    sealer: Sealer,
}

enum Sealer {
    Aes256Gcm(Box<LessSafeKey>),
    None([u8; 32]),
}

impl ObjectKey {
    /// Prepares the key of object `id`.
    pub fn new(cipher: Cipher, kind: ObjectKind, id: [u8; 16], key: &[u8; 32]) -> Self {
        let commitment = *blake3::keyed_hash(key, b"penstock key commitment").as_bytes();
        let sealer = match cipher {
            Cipher::Aes256Gcm => match UnboundKey::new(&AES_256_GCM, key) {
                Ok(unbound) => Sealer::Aes256Gcm(Box::new(LessSafeKey::new(unbound))),
                // `UnboundKey::new` fails only for a key of the wrong length, and 32 is right by type.
                Err(_) => unreachable!("AES-256 takes 32-byte keys"),
            },
            Cipher::None => Sealer::None(*key),
        };
        Self { kind, id, commitment, sealer }
    }

    /// Stored in the header, compared before the key is used.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    fn aad(&self, offset: u64, context: &[u8; 32]) -> [u8; AAD_BYTES] {
        let mut aad = [0u8; AAD_BYTES];
        aad[0] = self.kind as u8;
        aad[1..17].copy_from_slice(&self.id);
        aad[17..25].copy_from_slice(&offset.to_le_bytes());
        aad[25..].copy_from_slice(context);
        aad
    }

    /// Seals `region` in place: its last [`TAG_BYTES`] receive the tag, the rest is the plaintext. `offset` is where the region will
    /// stand in the object; it is the nonce, so it must be used once per object.
    pub fn seal(&self, offset: u64, context: &[u8; 32], region: &mut [u8]) {
        let plain_bytes = region.len() - TAG_BYTES;
        let (plain, tag) = region.split_at_mut(plain_bytes);
        let aad = self.aad(offset, context);
        match &self.sealer {
            Sealer::Aes256Gcm(key) => {
                match key.seal_in_place_separate_tag(nonce(offset), Aad::from(aad), plain) {
                    Ok(made) => tag.copy_from_slice(made.as_ref()),
                    // Fails only above 64 GiB, and regions are bounded by the pack size.
                    Err(_) => unreachable!("AES-GCM seals regions of this size"),
                }
            }
            Sealer::None(key) => tag.copy_from_slice(&open_tag(key, &aad, offset, plain)),
        }
    }

    /// Opens a sealed region into `plain` (shorter by the tag).
    pub fn open(
        &self,
        offset: u64,
        context: &[u8; 32],
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        if sealed.len() < TAG_BYTES || plain.len() != sealed.len() - TAG_BYTES {
            return Err(NotAuthentic);
        }
        let (cipher_text, tag) = sealed.split_at(plain.len());
        let aad = self.aad(offset, context);
        match &self.sealer {
            Sealer::Aes256Gcm(key) => key
                .open_separate_gather(nonce(offset), Aad::from(aad), cipher_text, tag, plain)
                .map_err(|_| NotAuthentic),
            Sealer::None(key) => {
                plain.copy_from_slice(cipher_text);
                if open_tag(key, &aad, offset, plain) != tag { Err(NotAuthentic) } else { Ok(()) }
            }
        }
    }

    /// Opens a sealed region where it stands and returns the plaintext.
    pub fn open_in_place<'a>(
        &self,
        offset: u64,
        context: &[u8; 32],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], NotAuthentic> {
        let Some(plain_bytes) = sealed.len().checked_sub(TAG_BYTES) else { return Err(NotAuthentic) };
        let aad = self.aad(offset, context);
        match &self.sealer {
            Sealer::Aes256Gcm(key) => {
                key.open_in_place(nonce(offset), Aad::from(aad), sealed).map_err(|_| NotAuthentic)
            }
            Sealer::None(key) => {
                let (plain, tag) = sealed.split_at_mut(plain_bytes);
                if open_tag(key, &aad, offset, plain) != *tag { Err(NotAuthentic) } else { Ok(plain) }
            }
        }
    }
}

fn nonce(offset: u64) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Tag of cipher "none".
fn open_tag(key: &[u8; 32], aad: &[u8], offset: u64, plain: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(aad).update(&offset.to_le_bytes()).update(&[0; 4]).update(plain);
    let mut tag = [0u8; TAG_BYTES];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_BYTES]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sealed_regions_open_in_their_own_place_only(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            offset in 0u64..1 << 40,
            context: [u8; 32],
            flip in any::<proptest::sample::Index>(),
        ) {
            for cipher in [Cipher::Aes256Gcm, Cipher::None] {
                let key = ObjectKey::new(cipher, ObjectKind::Data, [1; 16], &[2; 32]);
                let mut region = plain.clone();
                region.extend_from_slice(&[0; TAG_BYTES]);
                key.seal(offset, &context, &mut region);
                let mut out = vec![0; plain.len()];
                prop_assert_eq!(key.open(offset, &context, &region, &mut out), Ok(()));
                prop_assert_eq!(&out, &plain);
                let mut copy = region.clone();
                prop_assert_eq!(&*key.open_in_place(offset, &context, &mut copy).unwrap(), &plain[..]);

                prop_assert!(key.open(offset + 1, &context, &region, &mut out).is_err());
                let mut other = context;
                other[31] ^= 1;
                prop_assert!(key.open(offset, &other, &region, &mut out).is_err());
                let elsewhere = ObjectKey::new(cipher, ObjectKind::Data, [9; 16], &[2; 32]);
                prop_assert!(elsewhere.open(offset, &context, &region, &mut out).is_err());
                let at = flip.index(region.len());
                region[at] ^= 1;
                prop_assert!(key.open(offset, &context, &region, &mut out).is_err());
                prop_assert!(key.open_in_place(offset, &context, &mut region).is_err());
            }
        }
    }
}
