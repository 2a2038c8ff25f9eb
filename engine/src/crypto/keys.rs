//! The master key and everything derived from it once per open repository.

use zeroize::{Zeroize, Zeroizing};

use super::seal::ObjectKey;
use crate::chunker::{ChunkKeys, ChunkParams, Chunker};
use crate::error::{Error, Result};
use crate::format::header::{Cipher, Header, ObjectKind};
use crate::format::index_segment::PackRef;
use crate::id::{NodeId, random_bytes};

/// 32 random bytes; whoever has them can read and write the repository.
pub type MasterKey = Zeroizing<[u8; 32]>;

/// A fresh master key.
pub fn random_master_key() -> Result<MasterKey> {
    Ok(Zeroizing::new(random_bytes()?))
}

/// Keys of an open repository, derived from the master key as in docs/FORMAT.md. Wiped when dropped.
pub struct RepoKeys {
    cipher: Cipher,
    seal: [u8; 32],
    block: [u8; 32],
    chunk: [u8; 32],
    node: [u8; 32],
    config: [u8; 32],
    cut_seed: u64,
}

impl RepoKeys {
    /// Derives all keys.
    pub fn derive(master: &MasterKey, cipher: Cipher) -> Self {
        let derive = |context: &str| blake3::derive_key(context, &master[..]);
        let mut seed = derive("penstock v1 cut seed");
        let cut_seed =
            u64::from_le_bytes([seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7]]);
        seed.zeroize();
        Self {
            cipher,
            seal: derive("penstock v1 seal"),
            block: derive("penstock v1 block hash"),
            chunk: derive("penstock v1 chunk id"),
            node: derive("penstock v1 node id"),
            config: derive("penstock v1 config mac"),
            cut_seed,
        }
    }

    /// What the chunkers are keyed with: block key, chunk key, cut seed.
    pub fn chunker(&self) -> ([u8; 32], [u8; 32], u64) {
        (self.block, self.chunk, self.cut_seed)
    }

    /// A chunker that cuts and names as this repository does.
    pub fn chunker_for(&self, params: ChunkParams) -> Chunker {
        let (block_key, chunk_key, cut_seed) = self.chunker();
        Chunker::new(params, &ChunkKeys { block_key, chunk_key, cut_seed })
    }

    /// Key of the MAC of plain objects.
    pub fn config_mac(&self) -> &[u8; 32] {
        &self.config
    }

    /// Id of an encoded manifest node.
    pub fn node_id(&self, node: &[u8]) -> NodeId {
        NodeId::new(*blake3::keyed_hash(&self.node, node).as_bytes())
    }

    /// Header and key of a new object.
    pub fn new_object(&self, kind: ObjectKind, id: [u8; 16]) -> Result<(Header, ObjectKey)> {
        let salt = random_bytes()?;
        let key = self.object_key(kind, &id, &salt);
        let header = Header { kind, cipher: self.cipher, id, salt, commitment: *key.commitment() };
        Ok((header, key))
    }

    /// Key of an existing object, once its header was decoded. Refuses a key that is not the object's.
    pub fn open_object(&self, object: &str, header: &Header) -> Result<ObjectKey> {
        if header.cipher != self.cipher {
            return Err(Error::damaged(object, "it is sealed with another cipher than the repository's"));
        }
        let key = self.object_key(header.kind, &header.id, &header.salt);
        if key.commitment() != &header.commitment {
            return Err(Error::damaged(
                object,
                "it was sealed with another key: it belongs to another repository, or its header was replaced",
            ));
        }
        Ok(key)
    }

    /// Key of a pack whose salt an (authenticated) index segment gave.
    pub fn pack_key(&self, pack: &PackRef) -> ObjectKey {
        self.object_key(pack.kind, pack.id.as_bytes(), &pack.salt)
    }

    fn object_key(&self, kind: ObjectKind, id: &[u8; 16], salt: &[u8; 24]) -> ObjectKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.seal);
        hasher.update(&[kind as u8]).update(id).update(salt);
        let mut key = *hasher.finalize().as_bytes();
        let object_key = ObjectKey::new(self.cipher, kind, *id, &key);
        key.zeroize();
        object_key
    }
}

impl Drop for RepoKeys {
    fn drop(&mut self) {
        for key in [&mut self.seal, &mut self.block, &mut self.chunk, &mut self.node, &mut self.config] {
            key.zeroize();
        }
        self.cut_seed.zeroize();
    }
}

impl std::fmt::Debug for RepoKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RepoKeys(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_opens_with_its_own_repository_only() {
        let one = RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm);
        let two = RepoKeys::derive(&Zeroizing::new([2; 32]), Cipher::Aes256Gcm);
        let (header, _) = one.new_object(ObjectKind::Data, [5; 16]).unwrap();
        assert!(one.open_object("x", &header).is_ok());
        let error = two.open_object("x", &header).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("another key"));
        assert_eq!(format!("{one:?}"), "RepoKeys(secret)");
        assert_ne!(one.node_id(b"n"), two.node_id(b"n"));
    }
}
