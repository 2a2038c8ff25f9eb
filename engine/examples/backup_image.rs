//! Backs up image files to a fresh repository and prints what happened: `backup_image REPO IMAGE…`.
use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::store;
use penstock_engine::{Run, source};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let store = store::open(&args[0], true)?;
    let key = AccessKey::passphrase("x");
    let repo = match Repository::open(store.clone(), &key) {
        Ok(repo) => repo,
        Err(_) => Repository::init(store, &InitOptions::default(), &key)?,
    };
    for path in &args[1..] {
        let source = source::open(path.as_ref(), source::OpenOptions::default())?;
        let volumes = vec![VolumeSource { name: "v".into(), source, changed_extents: None }];
        let options = BackupOptions {
            name: std::env::var("NAME").unwrap_or("m".into()),
            workers: 2,
            state_dir: std::env::temp_dir().join("penstock-example"),
            ..BackupOptions::default()
        };
        let report = backup::run(&repo, volumes, &options, &Arc::new(Run::new()))?;
        println!(
            "{path}: {} ms, {:?}, {:?} {} {:?}",
            report.duration_ms, report.bottleneck, report.totals, report.io_engine, report.notes
        );
    }
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")?.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("")
    );
    Ok(())
}
