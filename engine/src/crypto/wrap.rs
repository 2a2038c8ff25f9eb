//! Access keys: a passphrase or a key file becomes a key that wraps the master key.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::keys::MasterKey;
use crate::error::{Error, Result};
use crate::format::config::{Kdf, KeySlot, hex_of};
use crate::id::{ObjectId, random_bytes};

/// argon2id costs of new passphrase slots: 64 MiB, 3 passes, 4 lanes, RFC 9106's second recommended choice. The lanes run on all cores: about 0.08 s on two,
/// which every backup waits for before it can hash.
const ARGON2_MEMORY_KIB: u32 = 64 << 10;
const ARGON2_ITERATIONS: u32 = 3;
const ARGON2_LANES: u32 = 4;
/// Shortest key file: as many bytes as the key it stands for.
const KEY_FILE_BYTES_MIN: usize = 32;

/// What the user opens the repository with.
#[derive(Clone)]
pub enum AccessKey {
    /// A passphrase, as typed.
    Passphrase(Zeroizing<Vec<u8>>),
    /// Contents of a key file.
    KeyFile(Zeroizing<Vec<u8>>),
    /// Nothing: only for repositories without encryption.
    None,
}

impl AccessKey {
    /// From a passphrase.
    pub fn passphrase(text: impl AsRef<[u8]>) -> Self {
        Self::Passphrase(Zeroizing::new(text.as_ref().to_vec()))
    }

    /// From the contents of a key file.
    pub fn key_file(contents: Vec<u8>) -> Result<Self> {
        if contents.len() < KEY_FILE_BYTES_MIN {
            return Err(Error::Invalid {
                what: format!(
                    "a key file needs at least {KEY_FILE_BYTES_MIN} random bytes, this one has {} (head -c 64 /dev/urandom > FILE)",
                    contents.len()
                ),
            });
        }
        Ok(Self::KeyFile(Zeroizing::new(contents)))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::KeyFile(_) => "key file",
            Self::None => "no key",
        }
    }
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({}, secret)", self.kind())
    }
}

/// Wraps `master` for `access` in a new slot of repository `repository_id`.
pub fn wrap(
    master: &MasterKey,
    access: &AccessKey,
    repository_id: &str,
    label: &str,
    created_at: String,
) -> Result<KeySlot> {
    let key_id = ObjectId::random()?.to_string();
    let kdf = match access {
        AccessKey::Passphrase(_) => Kdf::Argon2id {
            memory_kib: ARGON2_MEMORY_KIB,
            iterations: ARGON2_ITERATIONS,
            parallelism: ARGON2_LANES,
            salt: hex::encode(random_bytes::<16>()?),
        },
        AccessKey::KeyFile(_) => Kdf::KeyFile,
        AccessKey::None => Kdf::None,
    };
    let Some(kek) = derive(&kdf, access)? else { unreachable!("the KDF was chosen by the access key") };
    let nonce: [u8; 12] = random_bytes()?;
    let mut wrapped = Zeroizing::new(master.to_vec());
    let tag = aead(&kek)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(slot_aad(repository_id, &key_id)),
            &mut wrapped,
        )
        .map_err(|_| Error::Invalid { what: "the master key cannot be wrapped".into() })?;
    wrapped.extend_from_slice(tag.as_ref());
    Ok(KeySlot {
        key_id,
        created_at,
        label: label.to_owned(),
        kdf,
        nonce: hex::encode(nonce),
        wrapped: hex::encode(&wrapped[..]),
    })
}

/// Tries to open `slot`; `None` if the access key is not the slot's.
pub fn unwrap(slot: &KeySlot, access: &AccessKey, repository_id: &str) -> Result<Option<MasterKey>> {
    let Some(kek) = derive(&slot.kdf, access)? else { return Ok(None) };
    let (Some(nonce), Some(wrapped)) = (hex_of(&slot.nonce, 12), hex_of(&slot.wrapped, 48)) else {
        return Ok(None);
    };
    let mut wrapped = Zeroizing::new(wrapped);
    let Ok(nonce) = Nonce::try_assume_unique_for_key(&nonce) else { return Ok(None) };
    let aad = Aad::from(slot_aad(repository_id, &slot.key_id));
    match aead(&kek).open_in_place(nonce, aad, &mut wrapped) {
        Ok(plain) if plain.len() == 32 => {
            let mut master = Zeroizing::new([0u8; 32]);
            master.copy_from_slice(plain);
            Ok(Some(master))
        }
        _ => Ok(None),
    }
}

fn slot_aad(repository_id: &str, key_id: &str) -> Vec<u8> {
    [b"penstock key slot", repository_id.as_bytes(), key_id.as_bytes()].concat()
}

fn aead(kek: &[u8; 32]) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, kek) {
        Ok(key) => LessSafeKey::new(key),
        Err(_) => unreachable!("AES-256 takes 32-byte keys"),
    }
}

/// The wrapping key, or `None` if this kind of access key does not fit this kind of slot.
fn derive(kdf: &Kdf, access: &AccessKey) -> Result<Option<Zeroizing<[u8; 32]>>> {
    let mut kek = Zeroizing::new([0u8; 32]);
    match (kdf, access) {
        (Kdf::Argon2id { memory_kib, iterations, parallelism, salt }, AccessKey::Passphrase(text)) => {
            let bad = |e: String| Error::Invalid { what: format!("argon2id refuses its parameters: {e}") };
            let params = Params::new(*memory_kib, *iterations, *parallelism, Some(32))
                .map_err(|e| bad(e.to_string()))?;
            let salt = hex::decode(salt).map_err(|e| bad(e.to_string()))?;
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(text, &salt, &mut kek[..])
                .map_err(|e| bad(e.to_string()))?;
        }
        (Kdf::KeyFile, AccessKey::KeyFile(contents)) => {
            *kek = blake3::derive_key("penstock v1 key file", contents);
        }
        // Any access key opens a repository that hides nothing.
        (Kdf::None, _) => *kek = blake3::derive_key("penstock v1 no encryption", b""),
        _ => return Ok(None),
    }
    Ok(Some(kek))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_access_key_opens_its_own_slot_only() {
        let master = Zeroizing::new([7u8; 32]);
        let repo = "ab".repeat(16);
        let keys = [AccessKey::passphrase("correct horse"), AccessKey::key_file(vec![5; 40]).unwrap()];
        for (i, key) in keys.iter().enumerate() {
            let slot = wrap(&master, key, &repo, "test", String::new()).unwrap();
            assert_eq!(unwrap(&slot, key, &repo).unwrap().map(|m| *m), Some([7u8; 32]));
            assert!(unwrap(&slot, &keys[1 - i], &repo).unwrap().is_none());
            assert!(unwrap(&slot, key, &"cd".repeat(16)).unwrap().is_none(), "bound to its repository");
        }
        let slot = wrap(&master, &keys[0], &repo, "test", String::new()).unwrap();
        assert!(unwrap(&slot, &AccessKey::passphrase("wrong"), &repo).unwrap().is_none());
        assert!(AccessKey::key_file(vec![1; 31]).is_err());
        assert!(!format!("{:?}", AccessKey::passphrase("hush")).contains("hush"));
    }
}
