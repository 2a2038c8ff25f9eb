//! The programs of other people that the demo calls.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::exit::Failure;
use super::super::interrupt::Interrupt;

/// Administrators' programs are often not in an ordinary user's `PATH`.
const MORE_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
const POLL: Duration = Duration::from_millis(20);

/// Where `program` is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A program of e2fsprogs.
pub fn find_ext4(program: &str) -> Result<PathBuf, Failure> {
    find(program).ok_or_else(|| {
        Failure::Failed(format!(
            "the demo makes an ext4 filesystem with {program}, which is not installed: \
             apt install e2fsprogs, dnf install e2fsprogs or apk add e2fsprogs"
        ))
    })
}

/// Runs it to its end; ends it when the user interrupts. Returns its standard output.
pub fn run(command: &mut Command, interrupt: Option<&Interrupt>) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    // A process group of its own keeps the terminal's Ctrl-C from it: an unmount must not be torn.
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = spawned.map_err(Failure::io("run", &name))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading =
        [std::thread::spawn(move || read_all(stdout)), std::thread::spawn(move || read_all(stderr))];
    let status = loop {
        if let Some(status) = child.try_wait().map_err(Failure::io("wait for", &name))? {
            break status;
        }
        if let Some(Err(cancelled)) = interrupt.map(Interrupt::check) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cancelled);
        }
        std::thread::sleep(POLL);
    };
    let [stdout, stderr] = reading.map(|thread| thread.join().unwrap_or_default());
    match status.success() {
        true => Ok(stdout),
        false => Err(Failure::Failed(format!("{name} failed ({status}): {}", stderr.trim()))),
    }
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_their_failures_told() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-of-penstock").is_none());
        assert!(find_ext4("no-such-program-of-penstock").unwrap_err().to_string().contains("e2fsprogs"));
        assert_eq!(run(Command::new("sh").args(["-c", "echo out"]), None).unwrap(), "out\n");
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), None).unwrap_err();
        assert!(failed.to_string().contains("why"), "{failed}");
    }
}
