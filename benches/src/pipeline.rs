//! Whole backups and restores through the engine's own interface.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_engine::Run;
use penstock_engine::backup::{self, BackupOptions, BackupReport, Parent, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::{self, OpenOptions};
use penstock_engine::store::{Limits, Place};

use crate::Outcome;
use crate::meter::{Used, measure};

/// A new repository with encryption in `dir`, which must not exist.
pub fn new_repository(dir: &Path) -> Outcome<Repository> {
    let store = penstock_engine::store::open(&Place::Dir(dir.to_owned()), true, &Limits::default())?;
    Ok(Repository::init(store, &InitOptions::default(), &AccessKey::passphrase("roofline"))?)
}

/// How pipelines are run.
pub struct Pipeline {
    /// Worker threads.
    pub workers: usize,
    /// Where journals go.
    pub state_dir: PathBuf,
}

impl Pipeline {
    /// Backs `volume` up under `name`, compared with the latest of that name or with nothing.
    pub fn backup(
        &self,
        repo: &Repository,
        volume: &Path,
        name: &str,
        with_parent: bool,
    ) -> Outcome<(BackupReport, Used)> {
        let source = source::open(volume, OpenOptions { force_live: true, raw_container: true })?;
        let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
        let options = BackupOptions {
            name: name.into(),
            parent: if with_parent { Parent::Latest } else { Parent::None },
            workers: self.workers,
            state_dir: self.state_dir.clone(),
            ..BackupOptions::default()
        };
        measure(|| Ok(backup::run(repo, volumes, &options, &Arc::new(Run::new()))?))
    }

    /// Restores the newest recovery point over what is on `target`.
    pub fn restore(&self, repo: &Repository, target: &Path) -> Outcome<Used> {
        let point = repo.resolve("latest")?;
        let volume = point.volumes.first().ok_or("a recovery point without a volume")?;
        let options = RestoreOptions {
            force: true,
            workers: self.workers,
            state_dir: Some(self.state_dir.clone()),
            ..RestoreOptions::default()
        };
        let target = RestoreTarget::Path(target.to_owned());
        let run = Arc::new(Run::new());
        let (_, used) = measure(|| Ok(restore::run(repo, &point, volume, target, &options, &run)?))?;
        Ok(used)
    }
}
