//! What all services work on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;
use tempfile::TempDir;

use crate::access::Access;
use crate::api::ApiResult;
use crate::blocks::{BlockMap, BlockStore, VolumeFile};
use crate::calls::Calls;
use crate::clock::Clock;
use crate::devices::{self, Devices};
use crate::faults::Faults;
use crate::options::{Limits, Options, Quotas, Timing};
use crate::quota::Meters;
use crate::state::{Ids, Region, World};

/// How temporary roots are called.
const TEMPORARY: &str = "penstock-lab-";

/// The lab without its server. Fields are dropped in this order: devices before the files they stand on.
#[derive(Debug)]
pub struct Core {
    /// Devices of the proxy.
    pub devices: Devices,
    world: Mutex<World>,
    /// Stored blocks.
    pub store: Arc<BlockStore>,
    /// Time.
    pub clock: Clock,
    /// Keys, roles, policies.
    pub access: Access,
    /// Faults asked for.
    pub faults: Faults,
    /// What was called.
    pub calls: Calls,
    /// Token buckets.
    pub meters: Meters,
    settings: RwLock<Settings>,
    ids: Mutex<Ids>,
    volumes_made: AtomicU64,
    /// What it was started with.
    pub options: Options,
    /// Directory of everything.
    pub root: PathBuf,
    _temporary: Option<TempDir>,
}

/// What can be changed while the lab runs.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// How long things take.
    pub timing: Timing,
    /// How much there may be.
    pub limits: Limits,
    /// How fast calls may come.
    pub quotas: Quotas,
}

impl Core {
    /// Makes the directories, removes what an earlier lab left in them.
    pub fn new(options: Options) -> std::io::Result<Self> {
        let (root, temporary) = match &options.root {
            Some(root) => (root.clone(), None),
            None => {
                let dir = tempfile::Builder::new().prefix(TEMPORARY).tempdir()?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        std::fs::create_dir_all(&root)?;
        let root = root.canonicalize()?;
        if temporary.is_some() {
            devices::remove_dead(&root, TEMPORARY)?;
        }
        let devices = Devices::new(&root, options.devices)?;
        let volumes = root.join("volumes");
        if volumes.exists() {
            std::fs::remove_dir_all(&volumes)?;
        }
        std::fs::create_dir_all(&volumes)?;
        let store = Arc::new(BlockStore::create(&root.join("blocks"))?);
        let settings = Settings {
            timing: options.timing.clone(),
            limits: options.limits.clone(),
            quotas: options.quotas.clone(),
        };
        Ok(Self {
            devices,
            world: Mutex::default(),
            store,
            clock: Clock::default(),
            access: Access::new(&options.account, options.seed),
            faults: Faults::new(options.seed),
            calls: Calls::new(options.log.as_deref())?,
            meters: Meters::default(),
            settings: RwLock::new(settings),
            ids: Mutex::new(Ids::new("requests", options.seed)),
            volumes_made: AtomicU64::new(0),
            options,
            root,
            _temporary: temporary,
        })
    }

    /// What holds now.
    pub fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what holds.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A new request id.
    pub fn request_id(&self) -> String {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).uuid()
    }

    /// Works on a region, brought to this moment.
    pub fn with<T>(&self, region: &str, work: impl FnOnce(&mut Region) -> T) -> T {
        self.with_world(|world| {
            let region = world.region(region, &self.options.account, self.options.seed);
            let settled = region.settle(self.clock.now_ms(), self.settings().timing.terminated_ms);
            settled.detached.iter().for_each(|volume| self.devices.detach(volume));
            work(region)
        })
    }

    /// Works on all regions, as they were left.
    pub fn with_world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.world.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names a region's default KMS keys and the like.
    pub fn try_with<T>(&self, region: &str, work: impl FnOnce(&mut Region) -> ApiResult<T>) -> ApiResult<T> {
        self.with(region, work)
    }

    /// The file of a new volume.
    pub fn volume_file(&self, size_gib: u64, base: &BlockMap) -> std::io::Result<VolumeFile> {
        let number = self.volumes_made.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("volumes").join(format!("{number}.img"));
        VolumeFile::create(&path, size_gib << 30, base)
    }
}
