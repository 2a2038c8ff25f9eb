//! An open repository: configuration, keys, recovery points, and the index once it is needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::chunker::{ChunkParams, ChunkerKind};
use crate::crypto::RepoKeys;
use crate::crypto::keys::{MasterKey, random_master_key};
use crate::crypto::wrap::{AccessKey, unwrap, wrap};
use crate::dated::{self, future_points};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::fan;
use crate::format::config::{Config, Encryption, Kdf, KeySlot};
use crate::format::header::{Cipher, ObjectKind};
use crate::format::pack::Codec;
use crate::format::plain::{self, PLAIN_BYTES_MAX};
use crate::format::point::{POINT_BYTES_MAX, RecoveryPoint, Root};
use crate::gc_state::GcState;
use crate::id::{ObjectId, PointId, random_bytes};
use crate::index::Index;
use crate::lease::Lease;
use crate::limits::{CHUNK_TARGET_BYTES_DEFAULT, PACK_BYTES_DEFAULT};
use crate::manifest::{NodeReader, TreeReader};
use crate::sealed;
use crate::store::{Body, Exclusive, PutOutcome, Requests, Span, Store, reread};
use crate::write_session::WriteSession;

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

/// Fewest characters of a recovery point's id that are accepted as a prefix.
const PREFIX_CHARS_MIN: usize = 4;
/// Ids named when a prefix is ambiguous.
const AMBIGUOUS_SHOWN: usize = 5;

/// Times that a listed recovery point is read before the store's answer that it is not there is an error.
const LISTED_TRIES: u32 = 3;

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

/// A recovery point that was listed. Damaged ones are told, so that one of them never hides the others.
pub enum Listed {
    /// It can be read.
    Point(RecoveryPoint),
    /// It cannot.
    Damaged {
        /// Its name.
        id: String,
        /// Why.
        error: Error,
    },
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

    /// Ids of all recovery points, oldest first.
    pub fn point_ids(&self) -> Result<Vec<PointId>> {
        let mut ids = Vec::new();
        self.store.list(ObjectKind::Point.prefix(), &mut |key, _| {
            let name = key.trim_start_matches(ObjectKind::Point.prefix());
            ids.extend(PointId::from_hex(name));
        })?;
        ids.sort();
        Ok(ids)
    }

    /// All recovery points, oldest first.
    pub fn points(&self) -> Result<Vec<Listed>> {
        self.read_points(&self.point_ids()?)
    }

    /// Reads points that were listed. Those that are gone were forgotten meanwhile, and are left out.
    pub fn read_points(&self, ids: &[PointId]) -> Result<Vec<Listed>> {
        let mut points = Vec::with_capacity(ids.len());
        let at_a_time = self.store.habits().parallel_reads;
        let fails = |read: &Result<_>| read.as_ref().is_err_and(|e| !is_of_one_point(e));
        let read = fan::map(ids, at_a_time, fails, |id| self.read_listed_point(*id));
        for (id, read) in ids.iter().zip(read) {
            match read {
                Ok(Some(point)) => points.push(Listed::Point(point)),
                Ok(None) => tracing::debug!("recovery point {id} was forgotten meanwhile"),
                Err(error @ (Error::Damaged { .. } | Error::Missing { .. } | Error::NewerVersion { .. })) => {
                    points.push(Listed::Damaged { id: id.to_string(), error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(points)
    }

    /// Reads a recovery point that was listed; `None` if it was forgotten since. A point that is listed, and that the store
    /// says is not there, is not taken for forgotten: one of the two answers is wrong.
    pub fn read_listed_point(&self, id: PointId) -> Result<Option<RecoveryPoint>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.read_point(id) {
                Ok(point) => return Ok(Some(point)),
                Err(error @ Error::Missing { .. }) => {
                    if !self.point_ids()?.contains(&id) {
                        return Ok(None);
                    }
                    if tries >= LISTED_TRIES {
                        return Err(error);
                    }
                    tracing::warn!("recovery point {id}: it is listed, but the store says it is not there");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one recovery point.
    pub fn read_point(&self, id: PointId) -> Result<RecoveryPoint> {
        let object = ObjectKind::Point.key(&id.to_string());
        reread(self.store.as_ref(), &object, || self.read_point_once(id, &object))
    }

    fn read_point_once(&self, id: PointId, object: &str) -> Result<RecoveryPoint> {
        let Some(mut bytes) = sealed::get(self.store.as_ref(), object, POINT_BYTES_MAX)? else {
            let object = object.to_owned();
            return Err(Error::Missing { object, needed_by: "the list of recovery points".into() });
        };
        let frame = sealed::decode(&self.keys, object, ObjectKind::Point, *id.as_bytes(), &mut bytes)?;
        let json = match frame.split_first() {
            Some((codec, json)) if *codec == Codec::Raw as u8 => json.to_vec(),
            Some((codec, packed)) if *codec == Codec::Zstd as u8 => {
                zstd::bulk::decompress(packed, POINT_BYTES_MAX).map_err(|e| Error::damaged(object, e))?
            }
            _ => return Err(Error::damaged(object, "an unknown codec")),
        };
        RecoveryPoint::from_json(object, &json, &id)
    }

    /// Publishes a recovery point with an id just drawn: the commit. Everything it refers to must be durable.
    pub fn publish(&self, point: &RecoveryPoint) -> Result<()> {
        match self.publish_if_absent(point)? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => {
                let object = ObjectKind::Point.key(&point.id);
                Err(Error::damaged(object, "a name just drawn was taken already"))
            }
        }
    }

    /// As [`publish`](Self::publish), for a point whose id is that of a point elsewhere: another copy of it may be there.
    pub fn publish_if_absent(&self, point: &RecoveryPoint) -> Result<PutOutcome> {
        let id = point
            .point_id()
            .ok_or_else(|| Error::Invalid { what: "a recovery point without an id".into() })?;
        let json = point.to_json()?;
        let packed = zstd::bulk::compress(&json, 3)
            .map_err(|e| Error::Invalid { what: format!("zstd cannot compress the recovery point: {e}") })?;
        let frame = [&[Codec::Zstd as u8], &packed[..]].concat();
        let bytes = sealed::encode(&self.keys, ObjectKind::Point, *id.as_bytes(), &frame)?;
        let object = ObjectKind::Point.key(&point.id);
        // What it refers to may be placed by index segments of others, who have not synced them yet or were killed
        // before.
        self.store.settle(ObjectKind::Index.prefix())?;
        fail::fail_point!("point-before-put");
        self.store.put_new(&object, Body::Bytes(&bytes))
    }

    /// The point that `text` means: `latest`, `latest:NAME`, an id, or a unique prefix of one.
    pub fn resolve(&self, text: &str) -> Result<RecoveryPoint> {
        let ids = self.point_ids()?;
        if let Some(name) = latest_name(text) {
            return self.latest(text, &ids, name);
        }
        let id = self.find_id(text, &ids)?;
        self.read_point(id).map_err(|error| match error {
            Error::Missing { .. } => Error::NoSuchPoint { what: format!("{id} was forgotten a moment ago") },
            error => error,
        })
    }

    /// The ids that `texts` mean, each once, as [`resolve`](Self::resolve) finds them. What is named by its id need not be readable.
    pub fn resolve_ids(&self, texts: &[String]) -> Result<Vec<PointId>> {
        let ids = self.point_ids()?;
        let mut found = Vec::with_capacity(texts.len());
        for text in texts {
            found.push(match latest_name(text) {
                Some(name) => {
                    let point = self.latest(text, &ids, name)?;
                    point.point_id().ok_or_else(|| Error::damaged(&point.id, "its id is none"))?
                }
                None => self.find_id(text, &ids)?,
            });
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn latest(&self, text: &str, ids: &[PointId], name: Option<&str>) -> Result<RecoveryPoint> {
        self.newest(ids, name)?.ok_or_else(|| Error::NoSuchPoint { what: self.none_text(text, ids) })
    }

    /// The one of `ids` that begins with `text`.
    fn find_id(&self, text: &str, ids: &[PointId]) -> Result<PointId> {
        let text = text.to_ascii_lowercase();
        let found: Vec<&PointId> = ids.iter().filter(|id| id.to_string().starts_with(&text)).collect();
        match found[..] {
            [id] if text.len() >= PREFIX_CHARS_MIN => Ok(*id),
            [] => Err(Error::NoSuchPoint { what: self.none_text(&text, ids) }),
            [_] => Err(Error::NoSuchPoint {
                what: format!("{text} is too short, give at least {PREFIX_CHARS_MIN} characters"),
            }),
            _ => {
                let mut shown: Vec<String> =
                    found.iter().take(AMBIGUOUS_SHOWN).map(|id| id.to_string()).collect();
                if found.len() > AMBIGUOUS_SHOWN {
                    shown.push("…".into());
                }
                let what = format!("{text} is the beginning of {} ids: {}", found.len(), shown.join(", "));
                Err(Error::NoSuchPoint { what })
            }
        }
    }

    /// The newest point called `name` (or of any name) that is not dated in the future. Damaged points are passed over
    /// with a warning, and so are those of the future: one night with a wrong clock would win over all that follow.
    pub fn newest(&self, ids: &[PointId], name: Option<&str>) -> Result<Option<RecoveryPoint>> {
        let (ids, future) = ids.split_at(ids.len() - future_points(ids, self.unix_ms()).len());
        future.iter().for_each(|id| dated::pass_over(self, *id, name));
        let newest_first: Vec<PointId> = ids.iter().rev().copied().collect();
        let at_a_time = self.store.habits().parallel_reads;
        // The newest of a name is mostly among the newest of all: few are read before many are.
        let (mut from, mut batch) = (0, 1);
        let is_it = |point: &RecoveryPoint| name.is_none_or(|name| point.name == name);
        let ends = |read: &Result<Option<RecoveryPoint>>| match read {
            Ok(point) => point.as_ref().is_some_and(is_it),
            Err(error) => !is_of_one_point(error),
        };
        while from < newest_first.len() {
            let next = &newest_first[from..newest_first.len().min(from + batch)];
            for read in fan::map(next, at_a_time, ends, |id| self.read_listed_point(*id)) {
                match read {
                    Ok(Some(point)) if is_it(&point) => return Ok(Some(point)),
                    Ok(_) => {}
                    Err(error) if error.is_damage() => {
                        tracing::warn!("passing over a recovery point: {error}")
                    }
                    Err(error) => return Err(error),
                }
            }
            (from, batch) = (from + next.len(), (batch * 4).min(at_a_time));
        }
        Ok(None)
    }

    fn none_text(&self, asked: &str, ids: &[PointId]) -> String {
        if ids.is_empty() {
            return format!("{asked}; {} holds none yet", self.location());
        }
        let future = future_points(ids, self.unix_ms()).len();
        if future > 0 {
            return format!(
                "{asked}; {} holds {} points, {future} of them dated in the future and to be named by their ids, \
                 `penstock list` shows them",
                self.location(),
                ids.len()
            );
        }
        format!("{asked}; {} holds {} points, `penstock list` shows them", self.location(), ids.len())
    }
}

/// True if an error says something of one point, and nothing of the others.
fn is_of_one_point(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::NewerVersion { .. })
}

/// The name after `latest`, if that is what `text` says.
pub(crate) fn latest_name(text: &str) -> Option<Option<&str>> {
    match text.strip_prefix("latest")? {
        "" => Some(None),
        rest => rest.strip_prefix(':').map(Some),
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
