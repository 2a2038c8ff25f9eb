//! A guest: a machine that qemu emulates, without any help of the processor, so it runs everywhere, and slowly. What its first serial port says is
//! kept in a file; NVMe drives are plugged in and out while it runs. Dropped, its process is ended; it ends, too, with the thread that started it, so that
//! a test that was killed leaves none behind.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::workdir::text;
use crate::{servers, tools};

/// Places for NVMe drives.
const PORTS: usize = 12;
/// qemu answers at once; a guest lets go of a drive within seconds.
const QMP_PATIENCE: Duration = Duration::from_secs(60);
/// From the firmware to the login prompt; a busy machine may need a while.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// What the firmware says when it gives up.
const NOT_BOOTABLE: &str = "No bootable device";
/// Characters of a serial port in messages.
const TAIL: usize = 4000;

/// A kernel that qemu starts itself.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel.
    pub image: PathBuf,
    /// Its first file system.
    pub initramfs: PathBuf,
    /// Its command line.
    pub command_line: String,
}

/// An NVMe drive.
#[derive(Clone, Debug)]
pub struct Drive {
    /// Its serial number, 20 characters at most.
    pub serial: String,
    /// A raw image.
    pub file: PathBuf,
}

/// What a guest is made of.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// MiB of memory.
    pub memory_mib: u32,
    /// `None`: the firmware boots from the first of `disks`, or of `drives` if there are none.
    pub kernel: Option<Kernel>,
    /// Raw images, as virtio disks: `/dev/vda` and so on.
    pub disks: Vec<PathBuf>,
    /// NVMe drives that are there from the start.
    pub drives: Vec<Drive>,
    /// A network card, behind which this machine's loopback is 10.0.2.2.
    pub network: bool,
}

/// It runs.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    to_qemu: ChildStdin,
    from_qemu: Receiver<Value>,
    events: Vec<Value>,
    console: PathBuf,
    reports: PathBuf,
    firmware: PathBuf,
    log: PathBuf,
    /// Serial numbers of the drives in the places.
    ports: [Option<String>; PORTS],
}

impl Guest {
    /// Starts it; what it says is kept in `dir`, which is made.
    ///
    /// # Panics
    /// If there is no qemu.
    pub fn start(dir: &Path, spec: &Spec) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let (console, reports) = (dir.join("console"), dir.join("reports"));
        let (firmware, log) = (dir.join("firmware"), dir.join("qemu.log"));
        // of an earlier guest, perhaps
        for old in [&console, &reports, &firmware] {
            let _ = std::fs::remove_file(old);
        }
        let mut command = Command::new("setpriv");
        // of what can be emulated, `max` has random numbers and AES, without which programs wait or crawl; a guest whose kernel died ends
        command
            .args("--pdeathsig KILL qemu-system-x86_64 -machine q35 -accel tcg -cpu max -smp 1".split(' '))
            .args("-nodefaults -no-reboot -display none -qmp stdio".split(' '))
            .args(["-m", &format!("{}M", spec.memory_mib)])
            .args(["-serial", &format!("file:{}", text(&console))])
            .args(["-serial", &format!("file:{}", text(&reports))])
            // what the firmware finds to boot from, and what not
            .args([
                "-debugcon",
                &format!("file:{}", text(&firmware)),
                "-global",
                "isa-debugcon.iobase=0x402",
            ]);
        if let Some(kernel) = &spec.kernel {
            command
                .args(["-kernel", text(&kernel.image), "-initrd", text(&kernel.initramfs)])
                .args(["-append", &kernel.command_line]);
        }
        for (n, disk) in spec.disks.iter().enumerate() {
            let name = format!("disk{n}");
            command.args(["-blockdev", &image(&name, disk).to_string()]);
            command.args(["-device", &format!("virtio-blk-pci,drive={}", node(&name))]);
        }
        if spec.network {
            // without the file that lets firmware boot from the network: it is another Debian package
            command.args(["-netdev", "user,id=net"]).args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        for n in 0..PORTS {
            command.args(["-device", &format!("pcie-root-port,id=port{n},chassis={n},slot={n}")]);
        }
        let mut ports = [const { None }; PORTS];
        for (n, drive) in spec.drives.iter().enumerate() {
            command.args(["-blockdev", &image(&drive.serial, &drive.file).to_string()]);
            command.args(["-device", &device(n, &drive.serial).to_string()]);
            ports[n] = Some(drive.serial.clone());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot run setpriv: {e}. These tests need it: apt-get install util-linux")
            });
        let to_qemu = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, from_qemu) = channel();
        // ends with qemu
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let said = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(said).is_err() {
                    return;
                }
            }
        });
        let events = Vec::new();
        let mut guest = Self { child, to_qemu, from_qemu, events, console, reports, firmware, log, ports };
        guest.ask("qmp_capabilities", json!({}));
        guest
    }

    /// A command of the QEMU Machine Protocol; its answer.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        if let Err(error) = self.to_qemu.write_all(line.as_bytes()) {
            self.fail(&format!("{command}: {error}"));
        }
        let end = Instant::now() + QMP_PATIENCE;
        loop {
            let Some(said) = self.hear(end) else { self.fail(&format!("no answer to {line}")) };
            match (said.get("return"), said.get("error")) {
                (Some(answer), _) => return answer.clone(),
                (_, Some(error)) => self.fail(&format!("{line}: {error}")),
                _ => self.events.push(said),
            }
        }
    }

    fn hear(&mut self, end: Instant) -> Option<Value> {
        match self.from_qemu.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.fail("qemu ended, or is not there: apt-get install qemu-system-x86")
            }
        }
    }

    /// Plugs a drive in.
    pub fn plug(&mut self, drive: &Drive) {
        let Some(port) = self.ports.iter().position(Option::is_none) else {
            self.fail("no place for another drive")
        };
        self.ask("blockdev-add", image(&drive.serial, &drive.file));
        self.ask("device_add", device(port, &drive.serial));
        self.ports[port] = Some(drive.serial.clone());
    }

    /// Asks the guest to let go of a drive, waits until it does, and takes it out.
    pub fn unplug(&mut self, serial: &str) {
        let Some(port) = self.ports.iter().position(|p| p.as_deref() == Some(serial)) else {
            self.fail(&format!("there is no drive {serial}"))
        };
        self.ask("device_del", json!({"id": device_id(serial)}));
        let end = Instant::now() + QMP_PATIENCE;
        let is_it = |event: &Value| {
            event["event"] == "DEVICE_DELETED" && event["data"]["device"] == device_id(serial)
        };
        while !self.events.iter().any(is_it) {
            let Some(event) = self.hear(end) else {
                self.fail(&format!("the guest does not let {serial} go"))
            };
            self.events.push(event);
        }
        self.events.retain(|event| !is_it(event));
        self.ask("blockdev-del", json!({"node-name": node(serial)}));
        self.ports[port] = None;
    }

    /// What came on the first serial port.
    pub fn console(&self) -> String {
        read(&self.console)
    }

    /// What came on the second serial port.
    pub fn reports(&self) -> String {
        read(&self.reports)
    }

    /// Waits until the first serial port has said `text`.
    ///
    /// # Panics
    /// If it has not in that time, or the guest has ended, or finds nothing to boot from.
    pub fn wait_for(&mut self, text: &str, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let ended = self.ended() || read(&self.firmware).contains(NOT_BOOTABLE);
            if self.console().contains(text) {
                return;
            }
            if ended || Instant::now() > end {
                self.fail(&format!("the console did not say {text:?} in {time:?}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// True once it is powered off.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it is powered off.
    ///
    /// # Panics
    /// If it is not in that time.
    pub fn wait_end(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while !self.ended() {
            if Instant::now() > end {
                self.fail(&format!("the guest did not end in {time:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Panics with what the guest and qemu said last.
    pub fn fail(&self, why: &str) -> ! {
        let tail = |text: String| {
            let from = text.floor_char_boundary(text.len().saturating_sub(TAIL));
            text[from..].to_owned()
        };
        let (console, reports) = (tail(self.console()), tail(self.reports()));
        let (firmware, log) = (tail(read(&self.firmware)), tail(read(&self.log)));
        panic!(
            "{why}\n--- qemu\n{log}\n--- firmware\n{firmware}\n--- console\n{console}\n--- reports\n{reports}"
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The disk that `tests/bootable` made: it boots by itself, to the prompt `restored login:`.
///
/// # Panics
/// If it did not.
pub fn bootable() -> PathBuf {
    let dir = servers::directory();
    let image = dir.join("bootable/bootable.img");
    let made = dir.join("bootable/made").is_file() && image.is_file();
    assert!(made, "no {}: run `bash tests/run`, or `bash tests/bootable {}`", image.display(), dir.display());
    image
}

/// Boots a raw image as a machine of EC2 does: it is an NVMe drive, from which the firmware starts what is there. Waits for the kernel and for a login
/// prompt on the first serial port; what was said there. The guest has a copy, in `dir`, and ends.
///
/// # Panics
/// If it does not boot in five minutes.
pub fn boots(dir: &Path, image: &Path) -> String {
    std::fs::create_dir_all(dir).unwrap();
    let copy = dir.join("disk.img");
    tools::run("cp", &["--sparse=always", text(image), text(&copy)]);
    let drive = Drive { serial: "root".into(), file: copy.clone() };
    let spec = Spec { memory_mib: 512, drives: vec![drive], ..Spec::default() };
    let end = Instant::now() + BOOT_PATIENCE;
    let mut guest = Guest::start(dir, &spec);
    for said in ["Linux version", "login:"] {
        guest.wait_for(said, end.saturating_duration_since(Instant::now()));
    }
    let console = guest.console();
    drop(guest);
    std::fs::remove_file(copy).unwrap();
    console
}

fn read(path: &Path) -> String {
    std::fs::read(path).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn node(name: &str) -> String {
    format!("image-{name}")
}

fn device_id(serial: &str) -> String {
    format!("drive-{serial}")
}

/// A raw image, to `-blockdev` and `blockdev-add`. Nothing is flushed: nobody looks at these files after a power cut.
fn image(name: &str, path: &Path) -> Value {
    let cache = json!({"no-flush": true});
    let file = json!({"driver": "file", "filename": text(path), "cache": cache});
    json!({"node-name": node(name), "driver": "raw", "file": file, "cache": cache})
}

/// An NVMe drive, to `-device` and `device_add`.
fn device(port: usize, serial: &str) -> Value {
    json!({"driver": "nvme", "id": device_id(serial), "bus": format!("port{port}"), "serial": serial, "drive": node(serial)})
}
