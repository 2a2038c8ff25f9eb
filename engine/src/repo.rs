//! An open repository: configuration, keys, recovery points, and the index once it is needed.

mod points;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::chunker::{ChunkParams, ChunkerKind};
use crate::crypto::RepoKeys;
use crate::crypto::keys::{MasterKey, random_master_key};
use crate::crypto::wrap::{AccessKey, unwrap, wrap};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::format::config::{Config, Encryption, Kdf, KeySlot};
use crate::format::header::{Cipher, ObjectKind};
use crate::format::plain::{self, PLAIN_BYTES_MAX};
use crate::format::point::Root;
use crate::gc_state::GcState;
use crate::id::{ObjectId, random_bytes};
use crate::index::Index;
use crate::lease::Lease;
use crate::limits::{CHUNK_TARGET_BYTES_DEFAULT, PACK_BYTES_DEFAULT};
use crate::manifest::{NodeReader, TreeReader};
use crate::store::{Body, Exclusive, PutOutcome, Requests, Span, Store, reread};
use crate::write_session::WriteSession;

pub use points::Listed;
pub(crate) use points::latest_name;

/// Objects worth keeping on local disk where the store is far away: small, immutable, and read by every run. Their names are random, so they never stand for other bytes.
pub fn cached_prefixes() -> Vec<String> {
    [ObjectKind::Index, ObjectKind::Meta, ObjectKind::Point, ObjectKind::Collection]
        .map(|kind| kind.prefix().to_owned())
        .to_vec()
}

/// Where the bulk of the data is: what a cold storage class may hold. Everything else is read by each run.
pub fn bulk_prefix() -> &'static str {
    ObjectKind::Data.prefix()
}

/// Objects that are replaced or removed before long: locking them would protect nothing and keep them around.
pub fn short_lived_prefixes() -> Vec<String> {
    ["leases/", "gc/"].map(str::to_owned).to_vec()
}

/// An open repository.
pub struct Repository {
    store: Arc<dyn Store>,
    config: Config,
    /// As stored.
    config_bytes: Vec<u8>,
    keys: Arc<RepoKeys>,
    environment: Environment,
    index: Mutex<Option<Arc<Index>>>,
}

/// Parameters of a new repository; the fields are those of [`Config`].
#[derive(Clone, Debug)]
pub struct InitOptions {
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
    /// Program and version, recorded.
    pub program: String,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            encryption: Encryption::Aes256Gcm,
            chunker: "block".into(),
            chunk_bytes: CHUNK_TARGET_BYTES_DEFAULT,
            pack_bytes: PACK_BYTES_DEFAULT,
            compression: "auto".into(),
            program: concat!("penstock-engine ", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}

impl Repository {
    /// Creates a repository in an empty place.
    pub fn init(store: Arc<dyn Store>, options: &InitOptions, access: &AccessKey) -> Result<Repository> {
        Self::init_in(store, options, access, Environment::real())
    }

    /// As [`init`](Self::init), with a clock and a view of processes of the caller's.
    pub fn init_in(
        store: Arc<dyn Store>,
        options: &InitOptions,
        access: &AccessKey,
        environment: Environment,
    ) -> Result<Repository> {
        let taken = |what: &str| Error::AlreadyExists {
            location: store.location().to_owned(),
            what: what.to_owned(),
        };
        let (mut is_repository, mut stranger) = (false, None);
        store.list("", &mut |key, _| {
            is_repository |= key == "config";
            // Key slots, temporary files and the reserve alone are what an `init` leaves that was cut short.
            if !["keys/", "tmp/", "reserve/"].iter().any(|own| key.starts_with(own)) {
                stranger = Some(key.to_owned());
            }
        })?;
        if is_repository {
            return Err(taken("a repository"));
        }
        if let Some(stranger) = stranger {
            return Err(taken(&format!("other files, such as {stranger}")));
        }
        let config = Config {
            repository_id: hex::encode(random_bytes::<16>()?),
            created_at: rfc3339(environment.clock.unix_ms()),
            created_by: options.program.clone(),
            encryption: options.encryption,
            chunker: options.chunker.clone(),
            chunk_bytes: options.chunk_bytes,
            pack_bytes: options.pack_bytes,
            compression: options.compression.clone(),
        };
        config.check()?;
        let access = match options.encryption {
            Encryption::None => &AccessKey::None,
            Encryption::Aes256Gcm => access,
        };
        let master = random_master_key()?;
        let keys = RepoKeys::derive(&master, config.encryption.cipher());
        let slot = wrap(&master, access, &config.repository_id, "made by init", config.created_at.clone())?;
        let slot_bytes = plain::encode(ObjectKind::Key, &to_json(&slot)?, keys.config_mac());
        let slot_object = ObjectKind::Key.key(&slot.key_id);
        store.put_new(&slot_object, Body::Bytes(&slot_bytes))?;
        // Nothing is a repository yet: a store that replaces what is there is found out in time.
        if let Err(error) = store.assure_exclusive(&slot_object, &slot_bytes, true) {
            let _ = store.delete(&slot_object);
            return Err(error);
        }
        store.keep_reserve();
        // The configuration last: it is what makes this a repository.
        let config_bytes = plain::encode(ObjectKind::Config, &to_json(&config)?, keys.config_mac());
        if store.put_new(&ObjectKind::Config.key(""), Body::Bytes(&config_bytes))? == PutOutcome::Exists {
            return Err(taken("a repository"));
        }
        Ok(Repository {
            store,
            config,
            config_bytes,
            keys: Arc::new(keys),
            environment,
            index: Mutex::new(None),
        })
    }

    /// True if opening needs a passphrase or a key file. Reads the configuration only.
    pub fn needs_key(store: &dyn Store) -> Result<bool> {
        reread(store, "config", || {
            let bytes = read_config(store)?;
            let plain = plain::decode("config", &bytes, ObjectKind::Config)?;
            Ok(Config::from_json("config", plain.payload)?.encryption != Encryption::None)
        })
    }

    /// Opens a repository.
    pub fn open(store: Arc<dyn Store>, access: &AccessKey) -> Result<Repository> {
        Self::open_in(store, access, Environment::real())
    }

    /// As [`open`](Self::open), with a clock and a view of processes of the caller's.
    pub fn open_in(
        store: Arc<dyn Store>,
        access: &AccessKey,
        environment: Environment,
    ) -> Result<Repository> {
        reread(store.as_ref(), "config", || Self::open_once(store.clone(), access, environment.clone()))
    }

    fn open_once(store: Arc<dyn Store>, access: &AccessKey, environment: Environment) -> Result<Repository> {
        let bytes = read_config(store.as_ref())?;
        let plain = plain::decode("config", &bytes, ObjectKind::Config)?;
        let config = Config::from_json("config", plain.payload)?;
        let master = open_slots(store.as_ref(), &config, access)?;
        let keys = RepoKeys::derive(&master, config.encryption.cipher());
        if !plain.mac_matches(keys.config_mac()) {
            return Err(Error::damaged("config", "it was changed by someone who does not have the key"));
        }
        let keys = Arc::new(keys);
        Ok(Repository { store, config, config_bytes: bytes, keys, environment, index: Mutex::new(None) })
    }

    /// Tries that the store never replaces an object by another, which all that writers promise each other rests on;
    /// with
    /// `again` even if that was tried from here before.
    pub fn assure_exclusive_puts(&self, again: bool) -> Result<Exclusive> {
        self.store.assure_exclusive(&ObjectKind::Config.key(""), &self.config_bytes, again)
    }

    /// Shared parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How its data is cut into chunks.
    pub fn chunk_params(&self) -> Result<ChunkParams> {
        let kind = ChunkerKind::from_name(&self.config.chunker)
            .ok_or_else(|| Error::Invalid { what: format!("unknown chunker {:?}", self.config.chunker) })?;
        ChunkParams::new(kind, self.config.chunk_bytes)
    }

    /// Where it is, for people.
    pub fn location(&self) -> &str {
        self.store.location()
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its clock, and its view of processes.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The keys.
    pub fn keys(&self) -> &Arc<RepoKeys> {
        &self.keys
    }

    /// Requests made since opening.
    pub fn requests(&self) -> Requests {
        self.store.requests()
    }

    /// The index, opened at the first call.
    pub fn index(&self) -> Result<Arc<Index>> {
        let mut slot = self.index.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(index) = &*slot {
            return Ok(index.clone());
        }
        Ok(slot.insert(self.load_for_reading()?).clone())
    }

    /// The index as it is now, whatever was opened before, for a run that only reads.
    pub fn index_now(&self) -> Result<Arc<Index>> {
        let index = self.load_for_reading()?;
        *self.index.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(index.clone());
        Ok(index)
    }

    fn load_for_reading(&self) -> Result<Arc<Index>> {
        let index = self.load_index()?;
        // After the index: what is moved out of a pack is in an index that is there before the pack goes.
        Ok(Arc::new(index.excluding(self.gc_state()?.for_readers())))
    }

    /// The index as it is now, with all packs counting.
    pub(crate) fn load_index(&self) -> Result<Index> {
        Index::load_in(self.store.clone(), self.keys.clone(), self.environment.clock.clone())
    }

    /// The present time by the repository's clock, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.environment.clock.unix_ms()
    }

    /// The present time by the repository's clock, RFC 3339, to the millisecond.
    pub(crate) fn now(&self) -> String {
        rfc3339(self.environment.clock.unix_ms())
    }

    /// The records of garbage collection as they are now.
    pub(crate) fn gc_state(&self) -> Result<GcState> {
        GcState::load(self.store.as_ref(), &self.keys)
    }

    /// Takes a lease for a run that writes.
    pub(crate) fn lease(&self, purpose: &'static str) -> Result<Lease> {
        self.assure_exclusive_puts(false)?;
        Lease::take(&self.store, &self.keys, &self.environment, purpose)
    }

    /// Begins a run that writes.
    pub(crate) fn begin_write(&self, purpose: &'static str) -> Result<WriteSession<'_>> {
        WriteSession::begin(self, purpose)
    }

    /// A reader of the manifest tree under `root`.
    pub fn tree(&self, size_bytes: u64, root: Root) -> Result<TreeReader> {
        self.tree_in(self.index()?, size_bytes, root)
    }

    /// The same with this view of the index.
    pub(crate) fn tree_in(&self, index: Arc<Index>, size_bytes: u64, root: Root) -> Result<TreeReader> {
        let nodes = NodeReader::new(self.store.clone(), self.keys.clone(), index)?;
        Ok(TreeReader::new(nodes, size_bytes, root))
    }

    /// The same for nodes that the index has rows of.
    pub(crate) fn tree_by_rows(&self, index: Arc<Index>, size_bytes: u64, root: Root) -> Result<TreeReader> {
        let nodes = NodeReader::new(self.store.clone(), self.keys.clone(), index)?;
        Ok(TreeReader::new(nodes.rows_only(), size_bytes, root))
    }
}

/// The configuration object's bytes.
fn read_config(store: &dyn Store) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let found = store.get("config", Span::At { offset: 0, len: PLAIN_BYTES_MAX + 1 }, &mut bytes)?;
    match found {
        Some(_) => Ok(bytes),
        None => Err(Error::NotARepository {
            location: store.location().to_owned(),
            why: "there is no `config` in it".into(),
        }),
    }
}

/// Tries the access key on every slot.
fn open_slots(store: &dyn Store, config: &Config, access: &AccessKey) -> Result<MasterKey> {
    let mut names = Vec::new();
    store.list(ObjectKind::Key.prefix(), &mut |key, _| names.push(key.to_owned()))?;
    let location = store.location().to_owned();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut first_damage = None;
    for object in &names {
        match try_slot(store, config, access, object) {
            Ok(Tried::Opened(master)) => return Ok(master),
            Ok(Tried::Other(kind)) => *kinds.entry(kind).or_default() += 1,
            Err(error) if error.is_damage() => {
                tracing::warn!("{error}");
                first_damage.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first_damage {
        Some(damage) => Err(damage),
        None if names.is_empty() => Err(Error::Missing {
            object: "keys/".into(),
            needed_by: format!("the repository at {location}: without a key slot nobody can open it"),
        }),
        None => {
            let slots: Vec<String> =
                kinds.iter().map(|(kind, count)| format!("{count} for a {kind}")).collect();
            Err(Error::WrongKey {
                location,
                why: format!("what was given opens none of its key slots ({})", slots.join(", ")),
            })
        }
    }
}

enum Tried {
    Opened(MasterKey),
    Other(&'static str),
}

fn try_slot(store: &dyn Store, config: &Config, access: &AccessKey, object: &str) -> Result<Tried> {
    let id = object
        .strip_prefix(ObjectKind::Key.prefix())
        .filter(|id| ObjectId::from_hex(id).is_some())
        .ok_or_else(|| Error::damaged(object, "its name is not an id"))?;
    let mut bytes = Vec::new();
    store.get(object, Span::At { offset: 0, len: PLAIN_BYTES_MAX + 1 }, &mut bytes)?;
    let plain = plain::decode(object, &bytes, ObjectKind::Key)?;
    let slot = KeySlot::from_json(object, plain.payload, id)?;
    if let Some(master) = unwrap(&slot, access, &config.repository_id)? {
        let cipher: Cipher = config.encryption.cipher();
        if !plain.mac_matches(RepoKeys::derive(&master, cipher).config_mac()) {
            return Err(Error::damaged(object, "it was changed by someone who does not have the key"));
        }
        return Ok(Tried::Opened(master));
    }
    Ok(Tried::Other(match slot.kdf {
        Kdf::Argon2id { .. } => "passphrase",
        Kdf::KeyFile => "key file",
        Kdf::None => "repository without encryption",
    }))
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Invalid { what: format!("cannot be written as JSON: {e}") })
}

/// A time in RFC 3339, to the millisecond.
fn rfc3339(unix_ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX));
    format!("{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn options() -> InitOptions {
        InitOptions { encryption: Encryption::Aes256Gcm, ..InitOptions::default() }
    }

    fn open_err(store: &Arc<dyn Store>, access: &AccessKey) -> Error {
        Repository::open(store.clone(), access).err().unwrap()
    }

    #[test]
    fn the_right_key_opens_and_each_failure_has_its_own_error() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let access = AccessKey::passphrase("p");
        assert!(matches!(open_err(&store, &access), Error::NotARepository { .. }));
        let made = Repository::init(store.clone(), &options(), &access).unwrap();
        assert!(matches!(
            Repository::init(store.clone(), &options(), &access).err().unwrap(),
            Error::AlreadyExists { .. }
        ));
        let opened = Repository::open(store.clone(), &access).unwrap();
        assert_eq!(opened.config(), made.config());
        assert!(Repository::needs_key(store.as_ref()).unwrap());
        let error = open_err(&store, &AccessKey::passphrase("q"));
        assert!(
            matches!(error, Error::WrongKey { .. }) && error.to_string().contains("1 for a passphrase"),
            "{error}"
        );
        assert!(matches!(
            open_err(&store, &AccessKey::key_file(vec![0; 32]).unwrap()),
            Error::WrongKey { .. }
        ));
        let error = opened.resolve("latest").unwrap_err();
        assert!(matches!(error, Error::NoSuchPoint { .. }));
    }
}
