//! The output of a command as a stream that ends well only if the command does.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{Pid, Signal, kill_process};

use super::stream::Input;

/// Bytes read from the pipe at a time, and how many such buffers there are.
const PIECE_BYTES: usize = 1 << 20;
const PIECES: usize = 3;
/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// Time that a command has after each signal: SIGINT, SIGTERM, SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line of standard error that is shown as one.
const LINE_BYTES_MAX: u64 = 4096;

/// A command, and what it has written so far.
pub(super) struct CommandOutput {
    program: String,
    state: State,
}

enum State {
    Waiting(Command),
    Running(Running),
    Ended,
}

struct Running {
    child: Child,
    pieces: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    piece: Vec<u8>,
    /// How much of `piece` was handed out.
    taken: usize,
    /// What it said last on standard error.
    last_words: Arc<Mutex<String>>,
}

impl CommandOutput {
    /// A command that the first read starts.
    pub fn new(program: &OsStr, arguments: &[OsString]) -> Self {
        let mut command = Command::new(program);
        // No standard input: what the terminal sends is not meant for it.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The repository's passphrase is none of its business.
        command.env_remove("PENSTOCK_PASSWORD").env_remove("PENSTOCK_TO_PASSWORD");
        Self { program: program.to_string_lossy().into_owned(), state: State::Waiting(command) }
    }

    /// The program, without its arguments: those may hold secrets.
    pub fn program(&self) -> &str {
        &self.program
    }
}

impl Input for CommandOutput {
    fn read(&mut self, buf: &mut [u8], stopped: &dyn Fn() -> bool) -> io::Result<usize> {
        if let State::Waiting(command) = &mut self.state {
            self.state = State::Running(Running::start(command, &self.program)?);
        }
        let State::Running(running) = &mut self.state else { return Ok(0) };
        let result = running.read(buf, stopped);
        if matches!(result, Ok(0)) {
            self.state = State::Ended;
        }
        result
    }
}

impl Running {
    fn start(command: &mut Command, program: &str) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let (full_sender, pieces) = bounded(PIECES);
        let (empty, empty_receiver) = bounded(PIECES);
        for _ in 0..PIECES {
            let _ = empty.send(Vec::new());
        }
        // Threads of their own, so that nobody waits for a pipe who is asked to stop. They end with the pipes.
        if let Some(mut stdout) = child.stdout.take() {
            let relay = move || relay(&mut stdout, &full_sender, &empty_receiver);
            thread::Builder::new().name("command".into()).spawn(relay)?;
        }
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let (program, heard) = (program.to_owned(), last_words.clone());
            let listen = move || listen(&mut BufReader::new(stderr), &program, &heard);
            thread::Builder::new().name("command-says".into()).spawn(listen)?;
        }
        Ok(Self { child, pieces, empty, piece: Vec::new(), taken: 0, last_words })
    }

    fn read(&mut self, buf: &mut [u8], stopped: &dyn Fn() -> bool) -> io::Result<usize> {
        while self.taken == self.piece.len() {
            match self.pieces.recv_timeout(LOOK) {
                Ok(piece) => {
                    let used = std::mem::replace(&mut self.piece, piece?);
                    self.taken = 0;
                    let _ = self.empty.send(used);
                }
                Err(RecvTimeoutError::Timeout) if stopped() => return Err(self.interrupt()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(stopped).map(|()| 0),
            }
        }
        let count = buf.len().min(self.piece.len() - self.taken);
        buf[..count].copy_from_slice(&self.piece[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }

    /// The output has ended: how the command ends decides what that means.
    fn end(&mut self, stopped: &dyn Fn() -> bool) -> io::Result<()> {
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if stopped() => return Err(self.interrupt()),
                None => thread::sleep(LOOK),
            }
        };
        if status.success() {
            return Ok(());
        }
        // Its last line may be on its way still.
        thread::sleep(LOOK);
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let last_words = if last_words.is_empty() { last_words } else { format!(". It said: {last_words}") };
        Err(io::Error::other(format!(
            "it {}, so what it wrote may not be whole: no recovery point was made{last_words}",
            ended_how(status)
        )))
    }

    /// Makes the command end, and returns what a read says that was interrupted.
    fn interrupt(&mut self) -> io::Error {
        stop(&mut self.child);
        io::ErrorKind::Interrupted.into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Asks the command to end as Ctrl-C would, then with more force. Its own children may live on until they write.
fn stop(child: &mut Child) {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
        let _ = kill_process(pid, signal);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
            thread::sleep(LOOK / 5);
        }
    }
}

fn ended_how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "did not end as programs do".into(),
    }
}

/// Moves what the command writes into pieces, until it ends or nobody wants more.
fn relay(stdout: &mut impl Read, full: &Sender<io::Result<Vec<u8>>>, empty: &Receiver<Vec<u8>>) {
    while let Ok(mut piece) = empty.recv() {
        piece.resize(PIECE_BYTES, 0);
        let mut filled = 0;
        // Several writes of the command in one piece, but none that is there waits for one to come: a pipe holds
        // 64 KiB unless it was made larger.
        let result = loop {
            match stdout.read(&mut piece[filled..]) {
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => break Err(e),
            }
            break Ok(());
        };
        piece.truncate(filled);
        let ended = filled == 0 && result.is_ok();
        if ended || full.send(result.map(|()| piece)).is_err() {
            return;
        }
    }
}

/// Logs the command's standard error line by line.
fn listen(stderr: &mut impl BufRead, program: &str, last_words: &Mutex<String>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match stderr.take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(line.trim_ascii()).into_owned();
        if !text.is_empty() {
            tracing::warn!("{program}: {text}");
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn shell(script: &str) -> CommandOutput {
        CommandOutput::new(OsStr::new("sh"), &["-c".into(), script.into()])
    }

    fn all(command: &mut CommandOutput) -> io::Result<Vec<u8>> {
        let (mut bytes, mut buf) = (Vec::new(), [0; 1000]);
        loop {
            match command.read(&mut buf, &|| false)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buf[..count]),
            }
        }
    }

    #[test]
    fn output_is_whole_only_if_the_command_ended_well() {
        assert_eq!(all(&mut shell("printf abc; sleep 0.1; printf def")).unwrap(), b"abcdef");
        let zeros = all(&mut shell("head -c 5000000 /dev/zero")).unwrap();
        assert!(zeros.len() == 5_000_000 && zeros.iter().all(|byte| *byte == 0));
        let text = all(&mut shell("printf abc; echo out of cheese >&2; exit 3")).unwrap_err().to_string();
        assert!(text.contains("exit code 3") && text.contains("out of cheese"), "{text}");
        let text = all(&mut shell("printf abc; kill -9 $$")).unwrap_err().to_string();
        assert!(text.contains("signal 9"), "{text}");
        // Its output has ended, it has not.
        assert!(all(&mut shell("exec >&-; sleep 0.2; exit 1")).is_err());
        assert!(all(&mut CommandOutput::new(OsStr::new("/nowhere/to-be-found"), &[])).is_err());
    }

    #[test]
    fn a_command_that_says_nothing_is_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let heard = dir.path().join("heard");
        let script = format!("trap 'touch {}; exit 1' INT; printf abc; sleep 60 & wait", heard.display());
        // Started in the background of a script, these tests ignore SIGINT, and so does what they start.
        let args = ["--default-signal=INT".into(), "sh".into(), "-c".into(), script.into()];
        let mut command = CommandOutput::new(OsStr::new("env"), &args);
        let mut buf = [0; 1000];
        assert_eq!(command.read(&mut buf, &|| false).unwrap(), 3);
        let looks = Cell::new(0);
        let stopped = || {
            looks.set(looks.get() + 1);
            looks.get() > 2
        };
        let error = command.read(&mut buf, &stopped).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(heard.exists(), "SIGINT has not come");
    }
}
