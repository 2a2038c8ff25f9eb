//! An initramfs: a guest that has no disk of its own runs programs of this machine from it. Its `/init` loads modules, brings up the network and
//! follows a script; what the script's commands say comes back on the second serial port, apart from the kernel's messages.
//!
//! `tests/guest DIR` gets the kernel and busybox; `PENSTOCK_TEST_SERVERS` names the directory.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::guest::Kernel;
use crate::workdir::{Workdir, text};
use crate::{servers, tools};

/// In order after their dependencies; NVMe, ext4 and hot-plugging are built into Debian's kernel.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];
/// On every proxy, so it is in the guest: clients of AWS read it before they ask anything.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// Process 1. `start NAME COMMAND…` runs a command beside the others, `report NAME` waits for it and sends what it said, `run` does both.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
start() {
  name=$1
  shift
  { "$@" </dev/null >"/tmp/$name.out" 2>"/tmp/$name.err"; echo $? >"/tmp/$name.code.new"; mv "/tmp/$name.code.new" "/tmp/$name.code"; } &
}
report() {
  while [ ! -e "/tmp/$1.code" ]; do sleep 0.2; done
  {
    echo "@@ $1 ended with $(cat "/tmp/$1.code")"
    cat "/tmp/$1.out"
    echo "@@ $1 complained"
    cat "/tmp/$1.err"
    echo "@@ $1 over"
  } >/dev/ttyS1
}
run() { start "$@"; report "$1"; }
. /script
sync
poweroff -f
"#;

/// Where `tests/guest` put things.
///
/// # Panics
/// If it did not.
fn home() -> PathBuf {
    let home = servers::directory().join("guest");
    assert!(
        home.join("installed").is_file(),
        "no kernel in {}: run `bash tests/run`, or `bash tests/guest {}`",
        home.display(),
        servers::directory().display()
    );
    home
}

/// One that is being put together, in the format of cpio(5) that the kernel calls newc.
#[derive(Debug)]
pub struct Initramfs {
    bytes: Vec<u8>,
    files: u32,
    known: BTreeSet<String>,
}

impl Initramfs {
    /// With busybox, `/init`, and the modules of the usual devices.
    pub fn new() -> Self {
        let mut made = Self { bytes: Vec::new(), files: 0, known: BTreeSet::new() };
        let home = home();
        for dir in ["/dev", "/proc", "/sys", "/tmp"] {
            made.directory(dir);
        }
        made.copy("/bin/busybox", PROGRAM, &home.join("busybox"));
        made.entry("/bin/sh", LINK, b"busybox");
        made.entry("/init", PROGRAM, INIT.as_bytes());
        let mut order = Vec::new();
        for module in MODULES {
            made.module(&home.join("modules"), module, &mut order);
        }
        made.entry("/modules/order", FILE, (order.join("\n") + "\n").as_bytes());
        if Path::new(CERTIFICATES).is_file() {
            made.copy(CERTIFICATES, FILE, Path::new(CERTIFICATES));
        }
        made
    }

    /// Adds a file.
    pub fn file(&mut self, at: &str, bytes: &[u8]) {
        self.entry(at, FILE, bytes);
    }

    /// Adds a program of this machine, without debugging symbols, and the libraries it needs, at the paths where it looks for them.
    pub fn program(&mut self, work: &Workdir, at: &str, program: &Path) {
        let small = work.join("stripped");
        tools::run("strip", &["-o", text(&small), text(program)]);
        self.copy(at, PROGRAM, &small);
        // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)`, and the loader: `/lib64/ld-linux-x86-64.so.2 (0x…)`
        for line in tools::run("ldd", &[text(program)]).lines() {
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.copy(library, PROGRAM, Path::new(library));
            }
        }
    }

    /// Adds a module after those it depends on. One that is no file is built into the kernel.
    fn module(&mut self, dir: &Path, name: &str, order: &mut Vec<String>) {
        // names of files may have dashes where dependencies have underscores
        let file = [name.to_owned(), name.replace('_', "-")].map(|n| dir.join(format!("{n}.ko")));
        let Some(file) = file.iter().find(|f| f.is_file()) else { return };
        if order.iter().any(|known| known == name) {
            return;
        }
        let bytes = std::fs::read(file).unwrap();
        for needed in depends(&bytes) {
            self.module(dir, &needed, order);
        }
        self.entry(&format!("/modules/{name}.ko"), FILE, &bytes);
        order.push(name.to_owned());
    }

    fn copy(&mut self, at: &str, mode: u32, from: &Path) {
        let bytes = std::fs::read(from).unwrap_or_else(|e| panic!("cannot read {}: {e}", from.display()));
        self.entry(at, mode, &bytes);
    }

    fn directory(&mut self, path: &str) {
        if !self.known.contains(path) {
            self.entry(path, DIRECTORY, b"");
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
            self.directory(parent);
        }
        if !self.known.insert(path.to_owned()) {
            return;
        }
        self.files += 1;
        self.record(path.trim_start_matches('/'), self.files, mode, bytes);
    }

    fn record(&mut self, name: &str, inode: u32, mode: u32, bytes: &[u8]) {
        // inode, mode, user, group, links, time, size, device and what a node stands for (two numbers each), length of the name, no checksum
        let (size, name_length) = (u32::try_from(bytes.len()).unwrap(), name.len() as u32 + 1);
        let mut header = String::from("070701");
        for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_length, 0] {
            write!(header, "{field:08x}").unwrap();
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(bytes);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Writes it, with the script that `/init` follows; what to start a guest with. The kernel's messages go to the first serial port.
    pub fn kernel(mut self, work: &Workdir, script: &str) -> Kernel {
        self.entry("/script", FILE, script.as_bytes());
        self.record("TRAILER!!!", 0, 0, b"");
        let path = work.join("initramfs");
        std::fs::write(&path, &self.bytes).unwrap();
        Kernel {
            image: home().join("vmlinuz"),
            initramfs: path,
            command_line: "console=ttyS0 panic=-1".into(),
        }
    }
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

/// What a module says that it needs: an entry `depends=a,b` of its section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    let tag = b"\0depends=";
    let Some(at) = module.windows(tag.len()).position(|window| window == tag) else { return Vec::new() };
    let list = module[at + tag.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What a command of the script left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Of the command `name`, in what came on the second serial port; `None`: it is not over.
    pub fn find(said: &str, name: &str) -> Option<Self> {
        // the port is a terminal: its lines end with two characters
        let said = said.replace('\r', "");
        let (_, rest) = said.split_once(&format!("@@ {name} ended with "))?;
        let (code, rest) = rest.split_once('\n')?;
        let (stdout, rest) = rest.split_once(&format!("@@ {name} complained\n"))?;
        let (stderr, _) = rest.split_once(&format!("@@ {name} over\n"))?;
        Some(Self { code: code.parse().ok()?, stdout: stdout.to_owned(), stderr: stderr.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_when_they_are_whole() {
        let said = "@@ a ended with 3\r\nx\r\n@@ a complained\r\n@@ a over\r\n@@ b ended with 0\r\n@@ b complained\r\n";
        let ran = Ran { code: 3, stdout: "x\n".into(), stderr: String::new() };
        assert_eq!(Ran::find(said, "a"), Some(ran));
        assert_eq!(Ran::find(said, "b"), None);
    }

    #[test]
    fn modules_name_what_they_need() {
        assert_eq!(
            depends(b"ELF\0license=GPL\0depends=virtio,virtio_ring\0name=x\0"),
            ["virtio", "virtio_ring"]
        );
        assert_eq!(depends(b"ELF\0depends=\0"), Vec::<String>::new());
    }
}
