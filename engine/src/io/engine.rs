//! Which way I/O goes: io_uring where the kernel lets us, else threads with pread and pwrite.

use std::fmt;
use std::io;
use std::str::FromStr;

use super::uring;
use crate::error::{Error, Result};

/// The way in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoEngine {
    /// io_uring, many operations in flight on each thread.
    Uring,
    /// pread and pwrite, one operation in flight on each thread.
    Pread,
}

/// The way asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoEngineChoice {
    /// io_uring if it works here.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// pread and pwrite.
    Pread,
}

impl IoEngine {
    /// As given to `--io-engine` and told in reports.
    pub const fn name(self) -> &'static str {
        match self {
            IoEngine::Uring => "uring",
            IoEngine::Pread => "pread",
        }
    }
}

impl fmt::Display for IoEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoEngine::Uring => "io_uring",
            IoEngine::Pread => "pread",
        })
    }
}

impl FromStr for IoEngineChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" | "io_uring" => Ok(Self::Uring),
            "pread" => Ok(Self::Pread),
            _ => Err(Error::Invalid { what: format!("no I/O engine {text:?}: use auto, uring or pread") }),
        }
    }
}

/// Decides on the engine and says why, for the log. Containers often refuse io_uring (seccomp), and so may the
/// administrator (`kernel.io_uring_disabled`), so a ring is really set up, not guessed from the kernel's version.
/// Fails only when io_uring is asked for by name and refused.
pub fn choose(choice: IoEngineChoice) -> Result<(IoEngine, String)> {
    choose_with(choice, uring::probe)
}

fn choose_with(
    choice: IoEngineChoice,
    probe: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(IoEngine, String)> {
    if choice == IoEngineChoice::Pread {
        return Ok((IoEngine::Pread, "asked for".into()));
    }
    match (run_probe(probe), choice) {
        (Ok(()), IoEngineChoice::Uring) => Ok((IoEngine::Uring, "asked for".into())),
        (Ok(()), _) => Ok((IoEngine::Uring, "io_uring works here".into())),
        (Err(e), IoEngineChoice::Uring) => {
            Err(Error::Io { action: "set up", object: "io_uring".into(), source: e })
        }
        (Err(e), _) => Ok((IoEngine::Pread, format!("io_uring_setup: {e}{}", sysctl_hint(&e)))),
    }
}

/// On a thread of its own, which a panic in tokio-uring ends instead of the program.
fn run_probe(probe: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("uring-probe".into()).spawn(probe)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the io_uring runtime panicked")))
}

fn sysctl_hint(e: &io::Error) -> String {
    let refused = matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES));
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(value) if refused && value.trim() != "0" => {
            format!(" (kernel.io_uring_disabled={})", value.trim())
        }
        _ if refused => " (refused by the container's seccomp profile?)".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_falls_back_with_the_reason() {
        let refuse = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let (engine, why) = choose_with(IoEngineChoice::Auto, refuse).unwrap();
        assert_eq!(engine, IoEngine::Pread);
        assert!(why.starts_with("io_uring_setup: Operation not permitted"), "{why}");
        assert!(
            choose_with(IoEngineChoice::Uring, refuse).unwrap_err().to_string().contains("set up io_uring")
        );
    }

    #[test]
    fn a_panicking_runtime_falls_back() {
        let (engine, why) = choose_with(IoEngineChoice::Auto, || panic!("expected by the test")).unwrap();
        assert_eq!(engine, IoEngine::Pread);
        assert!(why.contains("panicked"), "{why}");
    }

    #[test]
    fn names_parse() {
        assert_eq!("uring".parse::<IoEngineChoice>().unwrap(), IoEngineChoice::Uring);
        assert!("aio".parse::<IoEngineChoice>().is_err());
        assert_eq!(choose(IoEngineChoice::Pread).unwrap().0, IoEngine::Pread);
    }
}
