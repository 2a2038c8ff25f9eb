//! Restores the latest point: `restore_image REPO NAME TARGET`.
use penstock_engine::Run;
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::Repository;
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::store;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let store = store::open(&args[0], false)?;
    let repo = Repository::open(store, &AccessKey::passphrase("x"))?;
    let point = repo.resolve(&args[1])?;
    let options = RestoreOptions { force: true, workers: 2, ..RestoreOptions::default() };
    let target = RestoreTarget::Path(args[2].clone().into());
    let report = restore::run(&repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new()))?;
    println!("{report:?}");
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")?.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("")
    );
    Ok(())
}
