//! What attached volumes of the proxy are on this machine: loop devices, links as udev makes them, and a tree like sysfs.
//!
//! Below the lab's root: `dev/nvme1n1` → `/dev/loop7`, `dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123…` → `../../nvme1n1`,
//! `sys/class/nvme/nvme1/serial`, `sys/block/nvme1n1/{size,dev,device/serial}`. On Xen types only `dev/xvdf` and `sys/block/xvdf`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::options::Devices as Kind;

/// Devices of the proxy.
#[derive(Debug)]
pub struct Devices {
    root: PathBuf,
    kind: Kind,
    attached: Mutex<BTreeMap<String, Attached>>,
}

#[derive(Debug, Clone)]
struct Attached {
    /// `/dev/loopN`, or the volume's file.
    node: PathBuf,
    /// `nvme3n1` or `xvdf`.
    name: String,
    /// Volume id without dash; `None` on Xen types.
    serial: Option<String>,
}

fn tool(program: &str, args: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", args.join(" "), said.trim())))
}

impl Devices {
    /// None are attached. Loop devices that an earlier lab left on this root are removed.
    pub fn new(root: &Path, kind: Kind) -> io::Result<Self> {
        let root = root.canonicalize()?;
        if kind == Kind::Loop {
            remove_loops(&root);
        }
        for dir in ["dev", "sys"] {
            let dir = root.join(dir);
            if dir.exists() {
                fs::remove_dir_all(dir)?;
            }
        }
        for dir in ["dev/disk/by-id", "sys/class/nvme", "sys/class/block", "sys/block", "sys/devices"] {
            fs::create_dir_all(root.join(dir))?;
        }
        Ok(Self { root, kind, attached: Mutex::default() })
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<String, Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands for `/dev`.
    pub fn dev(&self) -> PathBuf {
        self.root.join("dev")
    }

    /// Stands for `/sys`.
    pub fn sys(&self) -> PathBuf {
        self.root.join("sys")
    }

    /// Makes the device of a volume; nothing points to it before [`Self::appear`]. `xen` is the name on Xen types. `shuffle` scatters the numbers of NVMe controllers.
    pub fn attach(&self, volume: &str, file: &Path, xen: Option<&str>, shuffle: u64) -> io::Result<()> {
        let node = match self.kind {
            Kind::None => return Ok(()),
            Kind::File => file.to_owned(),
            Kind::Loop => {
                let file = file.to_str().ok_or_else(|| io::Error::other("the path is not text"))?;
                // the search for a free device races with other users of loop devices
                let mut last = io::Error::other("no loop device");
                let mut made = None;
                for attempt in 0..20 {
                    // not every file system can do direct I/O
                    let direct = if attempt < 10 { "--direct-io=on" } else { "--direct-io=off" };
                    match tool("losetup", &[direct, "--find", "--show", file]) {
                        Ok(node) => {
                            made = Some(PathBuf::from(node));
                            break;
                        }
                        Err(error) => last = error,
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                made.ok_or(last)?
            }
        };
        let mut attached = self.attached();
        let name = match xen {
            Some(name) => name.to_owned(),
            None => {
                let taken: Vec<String> = attached.values().map(|a| a.name.clone()).collect();
                let free = |n: &u64| !taken.contains(&format!("nvme{n}n1"));
                let mut numbers = (1..64).filter(free);
                let number = numbers.nth(usize::try_from(shuffle % 4).unwrap_or(0)).unwrap_or(64);
                format!("nvme{number}n1")
            }
        };
        let serial = xen.is_none().then(|| volume.replace('-', ""));
        attached.insert(volume.to_owned(), Attached { node, name, serial });
        Ok(())
    }

    /// What udev does when it has seen the device.
    pub fn appear(&self, volume: &str) -> io::Result<()> {
        let attached = self.attached();
        let Some(device) = attached.get(volume) else { return Ok(()) };
        let (dev, sys) = (self.dev(), self.sys());
        link(&device.node, &dev.join(&device.name))?;
        let block = if let Some(serial) = &device.serial {
            let controller = device.name.trim_end_matches("n1");
            let home = sys.join("devices").join(controller);
            let block = home.join(&device.name);
            fs::create_dir_all(&block)?;
            fs::write(home.join("serial"), format!("{serial}\n"))?;
            fs::write(home.join("model"), "Amazon Elastic Block Store              \n")?;
            fs::write(home.join("state"), "live\n")?;
            fs::write(home.join("transport"), "pcie\n")?;
            link(Path::new(".."), &block.join("device"))?;
            link(&Path::new("../../devices").join(controller), &sys.join("class/nvme").join(controller))?;
            let by_id = dev.join("disk/by-id").join(format!("nvme-Amazon_Elastic_Block_Store_{serial}"));
            link(&Path::new("../..").join(&device.name), &by_id)?;
            let with_namespace = by_id.with_file_name(format!("nvme-Amazon_Elastic_Block_Store_{serial}_1"));
            link(&Path::new("../..").join(&device.name), &with_namespace)?;
            block
        } else {
            let block = sys.join("devices").join(format!("vbd-{}", device.name)).join(&device.name);
            fs::create_dir_all(&block)?;
            block
        };
        let below = block.strip_prefix(&sys).unwrap_or(&block).to_owned();
        link(&Path::new("..").join(&below), &sys.join("block").join(&device.name))?;
        link(&Path::new("../..").join(&below), &sys.join("class/block").join(&device.name))?;
        fs::write(block.join("size"), format!("{}\n", size_bytes(&device.node)? / 512))?;
        if let Some(name) = device.node.file_name().filter(|_| self.kind == Kind::Loop) {
            let number = fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
            fs::write(block.join("dev"), number)?;
        }
        Ok(())
    }

    /// Tells the kernel and the tree that the volume has grown.
    pub fn resized(&self, volume: &str) -> io::Result<()> {
        let node = self.attached().get(volume).map(|a| a.node.clone());
        if let (Some(node), Kind::Loop) = (node, self.kind) {
            tool("losetup", &["--set-capacity", &node.to_string_lossy()])?;
            return self.appear(volume);
        }
        Ok(())
    }

    /// Takes the links and the device away. One that is still open lives until it is closed.
    pub fn detach(&self, volume: &str) {
        let Some(device) = self.attached().remove(volume) else { return };
        let (dev, sys) = (self.dev(), self.sys());
        let mut gone = vec![
            dev.join(&device.name),
            sys.join("block").join(&device.name),
            sys.join("class/block").join(&device.name),
        ];
        if let Some(serial) = &device.serial {
            let controller = device.name.trim_end_matches("n1");
            let by_id = dev.join("disk/by-id");
            gone.push(by_id.join(format!("nvme-Amazon_Elastic_Block_Store_{serial}")));
            gone.push(by_id.join(format!("nvme-Amazon_Elastic_Block_Store_{serial}_1")));
            gone.push(sys.join("class/nvme").join(controller));
            let _ = fs::remove_dir_all(sys.join("devices").join(controller));
        } else {
            let _ = fs::remove_dir_all(sys.join("devices").join(format!("vbd-{}", device.name)));
        }
        for path in gone {
            let _ = fs::remove_file(path);
        }
        if self.kind == Kind::Loop {
            let _ = tool("losetup", &["--detach", &device.node.to_string_lossy()]);
        }
    }

    /// Takes all links and devices away.
    pub fn detach_all(&self) {
        let volumes: Vec<String> = self.attached().keys().cloned().collect();
        volumes.iter().for_each(|volume| self.detach(volume));
    }

    /// Makes reads of an attached device fail from now on, as when the volume is torn away. The file is empty afterwards.
    pub fn break_off(&self, volume: &str, file: &Path) -> io::Result<()> {
        fs::File::options().write(true).open(file)?.set_len(0)?;
        self.resized(volume)
    }

    /// The device node of an attached volume.
    pub fn node(&self, volume: &str) -> Option<PathBuf> {
        self.attached().get(volume).map(|a| a.node.clone())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.detach_all();
    }
}

fn size_bytes(node: &Path) -> io::Result<u64> {
    use std::io::Seek;
    fs::File::open(node)?.seek(io::SeekFrom::End(0))
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, at),
    }
}

/// Files behind loop devices, by device.
fn loops() -> Vec<(String, PathBuf)> {
    let list = tool("losetup", &["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"])
        .unwrap_or_default();
    let pair =
        |line: &str| line.split_once(' ').map(|(name, file)| (name.to_owned(), PathBuf::from(file.trim())));
    list.lines().filter_map(pair).collect()
}

/// Removes loop devices over files below `root`.
fn remove_loops(root: &Path) {
    for (name, _) in loops().into_iter().filter(|(_, file)| file.starts_with(root)) {
        let _ = tool("losetup", &["--detach", &name]);
    }
}

/// The file in a lab's root that says which process it belongs to.
const PROCESS: &str = "process";

/// Removes what labs with temporary roots left behind when they were killed. `prefix`: how their directories beside `root` are called.
pub fn remove_dead(root: &Path, prefix: &str) -> io::Result<()> {
    fs::write(root.join(PROCESS), std::process::id().to_string())?;
    for entry in fs::read_dir(root.parent().unwrap_or(root))?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let Ok(process) = fs::read_to_string(entry.path().join(PROCESS)) else { continue };
        if process.parse::<u32>().is_ok_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove_loops(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
