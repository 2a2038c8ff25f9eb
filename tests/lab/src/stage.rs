//! What tests do behind the back of AWS: play the guest, look into snapshots, set policies, compare states.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::blocks::{BLOCK_BYTES, BlockMap, VolumeFile};
use crate::core::Core;

fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} in the lab"))
}

/// Blocks in a sparse file.
fn export(map: &BlockMap, size_bytes: u64, path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size_bytes)?;
    for &(index, id) in map.entries() {
        let at = u64::from(index) * BLOCK_BYTES as u64;
        map.store().runs(id, |page, bytes| {
            file.write_all_at(bytes, at + (page * crate::blocks::PAGE_BYTES) as u64)
        })?;
    }
    Ok(())
}

impl Core {
    /// Stands for `/dev`: `nvme1n1`, `disk/by-id/…`, or `xvdf` on Xen types.
    pub fn dev_dir(&self) -> PathBuf {
        self.devices.dev()
    }

    /// Stands for `/sys`: `class/nvme/nvme1/serial`, `block/nvme1n1/…`.
    pub fn sys_dir(&self) -> PathBuf {
        self.devices.sys()
    }

    /// Id of the instance that is this machine.
    pub fn proxy_id(&self) -> String {
        self.with(&self.options.region, |region| {
            region.instances.values().find(|i| i.proxy).map(|i| i.id.clone()).unwrap_or_default()
        })
    }

    fn file(&self, volume: &str) -> io::Result<Arc<VolumeFile>> {
        let file =
            self.with(&self.options.region, |region| region.volumes.get(volume).map(|v| v.file.clone()));
        file.ok_or_else(|| missing(volume))
    }

    /// Writes into a volume, as the guest does.
    pub fn volume_write(&self, volume: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(volume)?.write(offset, bytes)
    }

    /// Reads from a volume, as the guest does.
    pub fn volume_read(&self, volume: &str, offset: u64, length_bytes: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length_bytes];
        self.file(volume)?.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes the data of a file into a volume; holes of the file are left alone.
    pub fn volume_load(&self, volume: &str, file: &Path) -> io::Result<()> {
        self.file(volume)?.write_file(file)
    }

    /// The file behind a volume, to be mounted or changed by other programs. From now on snapshots of it look at all its data.
    pub fn volume_path(&self, volume: &str) -> io::Result<PathBuf> {
        let file = self.file(volume)?;
        file.fill()?;
        file.others_may_write();
        Ok(file.path().to_owned())
    }

    /// The device node of a volume attached to the proxy, whether its link is there or not.
    pub fn volume_node(&self, volume: &str) -> Option<PathBuf> {
        self.devices.node(volume)
    }

    /// Tears a volume off the proxy: reads of its device fail from now on, and it is `available` with its blocks.
    pub fn volume_break_off(&self, volume: &str) -> io::Result<()> {
        let file = self.file(volume)?;
        let map = file.snapshot()?;
        let size_bytes = file.size_bytes()?;
        self.devices.break_off(volume, file.path())?;
        self.devices.detach(volume);
        let fresh = Arc::new(self.volume_file(size_bytes >> 30, &map)?);
        // Nobody attaches it, so nobody else would wait for its blocks.
        fresh.fill()?;
        self.with(&self.options.region, |region| {
            let volume = region.volumes.get_mut(volume).ok_or_else(|| missing(volume))?;
            volume.attachment = None;
            volume.file = fresh;
            Ok(())
        })
    }

    fn map(&self, snapshot: &str) -> io::Result<(Arc<BlockMap>, u64)> {
        let map = self.with(&self.options.region, |region| {
            region.snapshots.get(snapshot).and_then(|s| Some((s.map.clone()?, s.size_gib << 30)))
        });
        map.ok_or_else(|| missing(snapshot))
    }

    /// Reads from a snapshot.
    pub fn snapshot_read(&self, snapshot: &str, offset: u64, length_bytes: usize) -> io::Result<Vec<u8>> {
        let (map, size_bytes) = self.map(snapshot)?;
        if offset.checked_add(length_bytes as u64).is_none_or(|end| end > size_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the snapshot's end"));
        }
        let mut bytes = Vec::with_capacity(length_bytes);
        let mut block = Box::new([0; BLOCK_BYTES]);
        let mut at = offset;
        while bytes.len() < length_bytes {
            let index = u32::try_from(at / BLOCK_BYTES as u64).map_err(io::Error::other)?;
            map.read(index, &mut block)?;
            let from = usize::try_from(at % BLOCK_BYTES as u64).map_err(io::Error::other)?;
            let length = (BLOCK_BYTES - from).min(length_bytes - bytes.len());
            bytes.extend_from_slice(&block[from..from + length]);
            at += length as u64;
        }
        Ok(bytes)
    }

    /// Indices of the blocks that were ever written.
    pub fn snapshot_blocks(&self, snapshot: &str) -> io::Result<Vec<u32>> {
        Ok(self.map(snapshot)?.0.entries().iter().map(|e| e.0).collect())
    }

    /// Writes a snapshot into a sparse file.
    pub fn snapshot_export(&self, snapshot: &str, path: &Path) -> io::Result<()> {
        let (map, size_bytes) = self.map(snapshot)?;
        export(&map, size_bytes, path)
    }

    /// Writes a volume into a sparse file.
    pub fn volume_export(&self, volume: &str, path: &Path) -> io::Result<()> {
        let file = self.file(volume)?;
        export(&file.snapshot()?, file.size_bytes()?, path)
    }

    /// Sets a tag of anything, as the user does in the console.
    pub fn set_tag(&self, id: &str, key: &str, value: &str) -> io::Result<()> {
        let now = self.clock.now_ms();
        self.with(&self.options.region, |region| {
            let tags = region.tags_mut(id, now).map_err(|_| missing(id))?;
            tags.insert(key.to_owned(), value.to_owned());
            Ok(())
        })
    }

    /// What `GetConsoleOutput` says from now on.
    pub fn set_console(&self, instance: &str, text: &str) -> io::Result<()> {
        self.with(&self.options.region, |region| {
            let found = region.instances.get_mut(instance).ok_or_else(|| missing(instance))?;
            text.clone_into(&mut found.console);
            Ok(())
        })
    }

    /// The user stops an instance.
    pub fn stop(&self, instance: &str) -> io::Result<()> {
        self.with(&self.options.region, |region| {
            let found = region.instances.get_mut(instance).ok_or_else(|| missing(instance))?;
            found.lifecycle.to = crate::state::RunState::Stopped;
            Ok(())
        })
    }

    /// Instances and volumes that have this tag vanish without a trace, and so do all instances that are terminated.
    pub fn vanish(&self, key: &str, value: &str) {
        self.with(&self.options.region, |region| {
            let has = |tags: &crate::state::Tags| tags.get(key).is_some_and(|v| v == value);
            let gone = |i: &crate::state::Instance| i.lifecycle.to == crate::state::RunState::Terminated;
            region.instances.retain(|_, i| !has(&i.tags) && !gone(i));
            region.volumes.retain(|_, v| !has(&v.tags));
        });
    }

    /// Whether an instance fails its status check: `DescribeInstanceStatus` says `impaired`.
    pub fn set_impaired(&self, instance: &str, impaired: bool) -> io::Result<()> {
        self.with(&self.options.region, |region| {
            let found = region.instances.get_mut(instance).ok_or_else(|| missing(instance))?;
            found.impaired = impaired;
            Ok(())
        })
    }

    /// Whether instances that are launched from now on fail their status check.
    pub fn impair_new(&self, impaired: bool) {
        self.with(&self.options.region, |region| region.impair_new = impaired);
    }

    /// From now on a zone, by its letter, does not have an instance type.
    pub fn withhold_type(&self, instance_type: &str, zone: &str) {
        self.with(&self.options.region, |region| {
            region.missing_types.insert((format!("{}{zone}", region.name), instance_type.to_owned()));
        });
    }

    /// KMS keys, by id or ARN, that nobody may use from now on.
    pub fn deny_kms_keys(&self, keys: &[&str]) {
        self.with(&self.options.region, |region| {
            region.denied_kms_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        });
    }

    /// Lets time pass at once: states, tokens and timeouts follow.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 8));
    }

    /// Everything in the account that stays the same when time passes, to be compared before and after; instances that were terminated are not in it. Devices of the proxy are under `devices`.
    pub fn dump(&self) -> Value {
        let names: Vec<String> = self.with_world(|world| world.regions.keys().cloned().collect());
        names.iter().for_each(|name| self.with(name, |_| ()));
        let mut dump = self.with_world(|world| serde_json::to_value(&world.regions)).unwrap_or_default();
        for region in dump.as_object_mut().into_iter().flat_map(|regions| regions.values_mut()) {
            if let Some(instances) = region["instances"].as_object_mut() {
                instances.retain(|_, instance| instance["lifecycle"]["to"] != "Terminated");
            }
        }
        let links = std::fs::read_dir(self.dev_dir().join("disk/by-id")).into_iter().flatten().flatten();
        let mut links: Vec<String> = links.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        links.sort();
        dump["devices"] = Value::from(links);
        dump
    }
}
