//! Where the roofline's files are: in memory behind loop devices, or in a directory of a real disk. Nothing stays behind, however the program ends.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::workload::{Fill, make};

/// Where the private tmpfs is mounted: a directory that every system has.
const MOUNT: &str = "/mnt";
const INSIDE: &str = "PENSTOCK_ROOFLINE_INSIDE";

/// A directory for images, targets and repositories.
pub struct Place {
    dir: PathBuf,
    in_memory: bool,
    _removed_on_drop: Option<tempfile::TempDir>,
}

/// A source or target: a loop device, or a plain file. The device is gone when this is dropped or the process ends.
pub struct Volume {
    /// Its path.
    pub path: PathBuf,
    _open: Option<File>,
}

impl Place {
    /// A tmpfs of this process's own. The program starts again inside a mount namespace, which the kernel takes down with the process.
    pub fn memory() -> Outcome<Place> {
        if std::env::var_os(INSIDE).is_none() {
            let mut again = Command::new("unshare");
            again.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe()?);
            let error = again.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
            return Err(format!("unshare (needs root): {error}").into());
        }
        // Huge pages, so that the loop driver's copies cost as little as they can.
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "huge=always,size=85%", "tmpfs", MOUNT]))?;
        Ok(Place { dir: MOUNT.into(), in_memory: true, _removed_on_drop: None })
    }

    /// A new directory below `parent`, removed at the end, on Ctrl-C too.
    pub fn disk(parent: &Path) -> Outcome<Place> {
        let dir = tempfile::Builder::new().prefix("roofline-").tempdir_in(parent)?;
        let path = dir.path().to_owned();
        let mut signals = signal_hook::iterator::Signals::new([
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ])?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _ = std::fs::remove_dir_all(&path);
                std::process::exit(128 + signal);
            }
        });
        Ok(Place { dir: dir.path().to_owned(), in_memory: false, _removed_on_drop: Some(dir) })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file as a volume: behind a loop device in memory, as it is on a disk.
    pub fn volume(&self, file: &Path) -> Outcome<Volume> {
        if !self.in_memory {
            return Ok(Volume { path: file.to_owned(), _open: None });
        }
        let mut attach = Command::new("losetup");
        let shown = run(attach.args(["--find", "--show", "--direct-io=on"]).arg(file))?;
        let path = PathBuf::from(shown.trim());
        let open = File::open(&path);
        // Detached at once: the kernel keeps it until the last descriptor is closed, and not a moment longer.
        run(Command::new("losetup").arg("--detach").arg(&path))?;
        let direct = std::fs::read_to_string(format!(
            "/sys/block/{}/loop/dio",
            path.file_name().unwrap_or_default().display()
        ));
        if direct?.trim() != "1" {
            return Err(
                "this kernel's loop devices cannot read a tmpfs directly (Linux 6.6 and later can)".into()
            );
        }
        Ok(Volume { path, _open: Some(open?) })
    }

    /// A directory for repositories with room for `bytes`. In memory it is an ext4 on a loop device over a file that is written once before, so that
    /// no memory is freed and taken again between rounds: new files straight on the tmpfs were written several times slower on the machine of the
    /// figures, most likely because its hypervisor takes freed pages back.
    pub fn repositories(&self, bytes: u64) -> Outcome<PathBuf> {
        let dir = self.path("repositories");
        std::fs::create_dir(&dir)?;
        if self.in_memory {
            let file = self.path("repositories.img");
            make(&file, Fill::Zeros, bytes)?;
            let volume = self.volume(&file)?;
            run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=0"])
                .arg(&volume.path))?;
            run(Command::new("mount").args(["-o", "nodiscard"]).args([&volume.path, &dir]))?;
        }
        Ok(dir)
    }

    /// What its volumes are, for people.
    pub fn describe(&self) -> String {
        if self.in_memory {
            "loop devices with direct I/O over a tmpfs with huge pages".into()
        } else {
            format!("files in {}, O_DIRECT", self.dir.display())
        }
    }
}

/// Runs a command and returns what it printed.
fn run(command: &mut Command) -> Outcome<String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
