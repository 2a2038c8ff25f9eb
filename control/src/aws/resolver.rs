//! Which device an attached volume is. The order in which devices appear says nothing, so they are found by the volume's id: by-id links of udev, the
//! serial of NVMe controllers in sysfs, and only where there is no NVMe at all (Xen types) by the name that was asked for. What is found is checked
//! twice before anybody reads it; two different answers are an error, never a choice.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{AwsError, Kind};
use super::retry::Retry;

const CALL: &str = "AttachVolume";
/// Prefix of the links that udev's rules make.
const LINK: &str = "disk/by-id/nvme-Amazon_Elastic_Block_Store_";
const SECTOR_BYTES: u64 = 512;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { dev: "/dev".into(), sys: "/sys".into() }
    }
}

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// `vol-…`.
    pub volume: &'a str,
    /// Its size.
    pub size_bytes: u64,
    /// The device name of the attachment.
    pub device: &'a str,
}

impl Roots {
    /// Waits for the device.
    pub async fn wait(
        &self,
        retry: &Retry,
        wanted: &Wanted<'_>,
        time: Duration,
    ) -> Result<PathBuf, AwsError> {
        let end = Instant::now() + time;
        loop {
            let why = match self.find(wanted) {
                Ok(Some(path)) => return Ok(path),
                Ok(None) => format!(
                    "it is attached as {}, but no device with its serial appeared below {} in {} s: is this the instance it was attached to?",
                    wanted.device,
                    self.dev.display(),
                    time.as_secs()
                ),
                // udev may be half done: the size is set after the name.
                Err(why) => why,
            };
            if Instant::now() >= end {
                return Err(AwsError::new(CALL, wanted.volume, Kind::State, why));
            }
            retry.pause(CALL, Duration::from_millis(50)).await?;
        }
    }

    /// The device, if it is there now and is what it should be.
    pub fn find(&self, wanted: &Wanted<'_>) -> Result<Option<PathBuf>, String> {
        let serial = wanted.volume.replace('-', "");
        let linked = self.by_link(&serial)?;
        let listed = self.by_serial(&serial)?;
        let name = match (linked, listed) {
            (Some(a), Some(b)) if a == b => a,
            (Some(a), Some(b)) => return Err(format!("udev says it is {a}, its serial says {b}")),
            (None, Some(name)) => name,
            (Some(name), None) => {
                return Err(format!("udev says it is {name}, but no controller has its serial"));
            }
            (None, None) => match self.by_xen_name(wanted.device) {
                Some(name) => name,
                None => return Ok(None),
            },
        };
        let path = self.dev.join(&name);
        if !path.exists() {
            return Ok(None);
        }
        let size = self.read(&format!("block/{name}/size")).and_then(|text| text.parse::<u64>().ok());
        match size.map(|sectors| sectors * SECTOR_BYTES) {
            Some(bytes) if bytes == wanted.size_bytes => Ok(Some(path)),
            Some(bytes) => {
                Err(format!("{name} has its serial but {bytes} bytes instead of {}", wanted.size_bytes))
            }
            None => Err(format!("{name} has no size in sysfs")),
        }
    }

    fn read(&self, below_sys: &str) -> Option<String> {
        fs::read_to_string(self.sys.join(below_sys)).ok().map(|text| text.trim().to_owned())
    }

    /// What the link of the whole device (not of a partition) points to.
    fn by_link(&self, serial: &str) -> Result<Option<String>, String> {
        let link = self.dev.join(format!("{LINK}{serial}"));
        match fs::read_link(&link) {
            Ok(target) => Ok(file_name(&target)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{}: {e}", link.display())),
        }
    }

    /// The first namespace of the controller with this serial.
    fn by_serial(&self, serial: &str) -> Result<Option<String>, String> {
        let Ok(controllers) = fs::read_dir(self.sys.join("class/nvme")) else { return Ok(None) };
        let mut found = Vec::new();
        for controller in controllers.flatten() {
            let name = controller.file_name().to_string_lossy().into_owned();
            if self.read(&format!("class/nvme/{name}/serial")).as_deref() == Some(serial) {
                found.push(format!("{name}n1"));
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            more => Err(format!("several controllers have its serial: {}", more.join(", "))),
        }
    }

    /// `/dev/sdf` is `xvdf` where the hypervisor is Xen; nobody else has such names.
    fn by_xen_name(&self, device: &str) -> Option<String> {
        let nvme = fs::read_dir(self.sys.join("class/nvme")).is_ok_and(|mut list| list.next().is_some());
        if nvme {
            return None;
        }
        let short = device.trim_start_matches("/dev/");
        let name = match short.strip_prefix("sd") {
            Some(letter) => format!("xvd{letter}"),
            None => short.to_owned(),
        };
        (name.starts_with("xvd") && self.sys.join("block").join(&name).exists()).then_some(name)
    }
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const GIB: u64 = 1 << 30;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for below in ["dev/disk/by-id", "sys/class/nvme", "sys/block"] {
                fs::create_dir_all(dir.path().join(below)).unwrap();
            }
            Self(dir)
        }

        fn roots(&self) -> Roots {
            Roots { dev: self.0.path().join("dev"), sys: self.0.path().join("sys") }
        }

        fn write(&self, below: &str, text: &str) {
            let path = self.0.path().join(below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn nvme(&self, number: u32, serial: &str, gib: u64) {
            self.write(&format!("sys/class/nvme/nvme{number}/serial"), &format!("{serial}   \n"));
            self.write(&format!("sys/block/nvme{number}n1/size"), &format!("{}\n", gib * GIB / 512));
            self.write(&format!("dev/nvme{number}n1"), "");
        }

        fn link(&self, serial: &str, number: u32) {
            let link = self.0.path().join("dev").join(format!("{LINK}{serial}"));
            symlink(format!("../../nvme{number}n1"), link).unwrap();
        }
    }

    fn wanted(size: u64) -> Wanted<'static> {
        Wanted { volume: "vol-0aa", size_bytes: size, device: "/dev/sdf" }
    }

    #[test]
    fn nvme_devices_are_found_by_serial_whatever_their_order() {
        let tree = Tree::new();
        tree.nvme(1, "vol0bb", 1);
        let roots = tree.roots();
        assert_eq!(roots.find(&wanted(GIB)), Ok(None), "another volume of the same size is not taken");
        tree.nvme(4, "vol0aa", 1);
        let path = Some(roots.dev.join("nvme4n1"));
        assert_eq!(roots.find(&wanted(GIB)), Ok(path.clone()), "without udev");
        tree.link("vol0aa", 4);
        assert_eq!(roots.find(&wanted(GIB)), Ok(path));
        assert!(roots.find(&wanted(2 * GIB)).unwrap_err().contains("instead of"));
    }

    #[test]
    fn contradictions_are_errors() {
        let tree = Tree::new();
        tree.nvme(1, "vol0bb", 1);
        tree.link("vol0aa", 1);
        assert!(tree.roots().find(&wanted(GIB)).unwrap_err().contains("no controller"));
        tree.nvme(2, "vol0aa", 1);
        assert!(tree.roots().find(&wanted(GIB)).unwrap_err().contains("udev says it is nvme1n1"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let retry = Retry::default();
        let error = runtime.block_on(tree.roots().wait(&retry, &wanted(GIB), Duration::ZERO)).unwrap_err();
        assert!(error.to_string().contains("vol-0aa"), "{error}");
    }

    #[test]
    fn xen_names_count_only_where_there_is_no_nvme() {
        let tree = Tree::new();
        tree.write("sys/block/xvdf/size", &format!("{}", GIB / 512));
        tree.write("dev/xvdf", "");
        assert_eq!(tree.roots().find(&wanted(GIB)), Ok(Some(tree.roots().dev.join("xvdf"))));
        tree.nvme(1, "vol0bb", 1);
        assert_eq!(tree.roots().find(&wanted(GIB)), Ok(None));
    }
}
