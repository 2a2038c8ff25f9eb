//! One run of the `penstock` binary.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Exit codes of the command line's contract.
pub mod code {
    /// Done.
    pub const DONE: i32 = 0;
    /// Failed.
    pub const FAILED: i32 = 1;
    /// Usage.
    pub const USAGE: i32 = 2;
    /// Done in part.
    pub const IN_PART: i32 = 3;
    /// No repository there.
    pub const NO_REPOSITORY: i32 = 10;
    /// Wrong key.
    pub const WRONG_KEY: i32 = 11;
    /// Damage found.
    pub const DAMAGE: i32 = 12;
    /// Written by a newer version.
    pub const NEWER: i32 = 13;
    /// A target (or source) that is not safe to overwrite (or read).
    pub const REFUSED: i32 = 14;
    /// Data has to be thawed first.
    pub const ARCHIVED: i32 = 15;
    /// Interrupted.
    pub const INTERRUPTED: i32 = 130;
}

/// A command that takes longer hangs.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// The program under test: `PENSTOCK_BIN`, or the release build.
///
/// # Panics
/// If it is not there: tests never build it, `tests/run` does.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = std::env::var_os("PENSTOCK_BIN").map_or_else(
            || {
                let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
                let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
                target.join("release/penstock")
            },
            PathBuf::from,
        );
        assert!(
            path.is_file(),
            "no penstock binary at {}: run `bash tests/run`, or `cargo build --release -p penstock` and set PENSTOCK_BIN",
            path.display()
        );
        path
    })
}

/// A command being put together. The environment has no `PENSTOCK_*` but what is set here, and standard input is empty.
#[derive(Debug)]
pub struct Penstock {
    args: Vec<OsString>,
    wrapper: Vec<OsString>,
    env: Vec<(String, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    time_limit: Duration,
}

impl Penstock {
    /// A command whose state (journals, caches) goes to `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        let command = Self {
            args: Vec::new(),
            wrapper: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: None,
            stdout: None,
            time_limit: TIME_LIMIT,
        };
        command.env("PENSTOCK_STATE_DIR", state_dir)
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs it by another program, which takes a command line as its last arguments: `strace -e …`, `prlimit -n64`.
    pub fn under<I: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = I>) -> Self {
        self.wrapper = wrapper.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs in this directory.
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.cwd = Some(dir.to_owned());
        self
    }

    /// Standard input comes, through a pipe, from this file.
    pub fn stdin(mut self, file: &Path) -> Self {
        self.stdin = Some(file.to_owned());
        self
    }

    /// Standard output goes, through a pipe, to this file; [`Output::stdout`] stays empty.
    pub fn stdout(mut self, file: &Path) -> Self {
        self.stdout = Some(file.to_owned());
        self
    }

    /// Runs it with system calls that fail, or are slow, as `strace` is told: `fdatasync:error=EIO:when=1`.
    pub fn with_faults(self, faults: &[&str]) -> Self {
        // -D: the tracer is not in between, so that signals and kills reach the program itself.
        let mut wrapper = vec!["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
        faults.iter().for_each(|fault| wrapper.extend(["-e", fault]));
        self.under(wrapper)
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        let shown = self.args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary()),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(binary());
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PENSTOCK_") {
                command.env_remove(name);
            }
        }
        command.args(&self.args).envs(self.env).env("RUST_BACKTRACE", "1");
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {}: {e}", binary().display()));
        let feeder = self.stdin.map(|path| {
            let mut pipe = child.stdin.take().unwrap();
            std::thread::spawn(move || feed(&path, &mut pipe))
        });
        let mut pipe = child.stdout.take().unwrap();
        let to_file = self.stdout;
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            match to_file {
                Some(path) => {
                    let mut file = File::create(path).unwrap();
                    std::io::copy(&mut pipe, &mut file).unwrap();
                }
                None => {
                    pipe.read_to_end(&mut bytes).unwrap();
                }
            }
            bytes
        });
        let mut pipe = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let end = started + self.time_limit;
        Running { child, shown, started, end, killed: false, feeder, output: Some((stdout, stderr)) }
    }

    /// Gives it more time than commands usually get.
    pub fn within(mut self, time_limit: Duration) -> Self {
        self.time_limit = time_limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.spawn().wait()
    }
}

fn feed(path: &Path, pipe: &mut impl Write) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    // an error means that the reader has gone; its exit code tells why
    let _ = std::io::copy(&mut file, pipe);
}

/// A running command; dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    started: Instant,
    end: Instant,
    killed: bool,
    feeder: Option<JoinHandle<()>>,
    output: Option<(JoinHandle<Vec<u8>>, JoinHandle<String>)>,
}

impl Running {
    /// True once it has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits `after_start` since its start; false if it ended before that.
    pub fn runs_at(&mut self, after_start: Duration) -> bool {
        let moment = self.started + after_start;
        while Instant::now() < moment {
            if self.ended() {
                return false;
            }
            let left = moment.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(2)));
        }
        !self.ended()
    }

    /// `kill -9`, as a power cut for the process.
    pub fn kill(&mut self) {
        self.killed = true;
        let _ = self.child.kill();
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&mut self) {
        self.signal(Signal::INT);
    }

    /// SIGSTOP: it does nothing until [`Running::go_on`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it panicked, died of a signal that was not ours, or did not end in time.
    pub fn wait(mut self) -> Output {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > self.end {
                self.kill();
                let _ = self.child.wait();
                let stderr = self.output.take().map(|(_, stderr)| stderr.join().unwrap());
                panic!("`penstock {}` did not end in time: {stderr:?}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let duration = self.started.elapsed();
        if let Some(feeder) = self.feeder.take() {
            feeder.join().unwrap();
        }
        let (stdout, stderr) = self.output.take().unwrap();
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        assert!(
            !stderr.contains("panicked at") && status.code() != Some(101),
            "`penstock {}` panicked:\n{stderr}",
            self.shown
        );
        if let Some(signal) = status.signal() {
            assert!(
                self.killed && signal == 9,
                "`penstock {}` died of signal {signal}:\n{stderr}",
                self.shown
            );
        }
        let code = status.code().unwrap_or(-9);
        Output { code, stdout, stderr, duration, shown: std::mem::take(&mut self.shown) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.output.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -9 if the test killed it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// Wall time.
    pub duration: Duration,
    shown: String,
}

impl Output {
    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(&[code::DONE])
    }

    /// Asserts that the exit code is one of `codes`.
    #[track_caller]
    pub fn expect(self, codes: &[i32]) -> Self {
        assert!(codes.contains(&self.code), "exit code {codes:?} expected: {}", self.show());
        self
    }

    /// Asserts that standard output and error together contain `text`, whatever the case of letters.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let said = format!("{}\n{}", self.text(), self.stderr).to_lowercase();
        assert!(said.contains(&text.to_lowercase()), "{text:?} expected: {}", self.show());
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            panic!("standard output is not one JSON document ({error}): {}", self.show())
        })
    }

    /// Everything, for messages.
    pub fn show(&self) -> String {
        let mut stdout = self.text();
        if stdout.len() > 4000 {
            stdout.truncate(stdout.floor_char_boundary(4000));
            stdout.push('…');
        }
        format!(
            "`penstock {}` ended with {}\n--- stdout\n{stdout}\n--- stderr\n{}",
            self.shown, self.code, self.stderr
        )
    }
}
