//! Standard input, a FIFO or the output of a command as a source: once, front to back, until it ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::command::CommandOutput;
use super::{OpenFile, Source, SourceKind};
use crate::error::{Error, Result};

/// What a stream is read from.
pub(super) trait Input: Send + Sync {
    /// As [`Read::read`]. Where it can wait without end, it returns `Interrupted` once `stopped` says so.
    fn read(&mut self, buf: &mut [u8], stopped: &dyn Fn() -> bool) -> io::Result<usize>;
}

impl<R: Read + Send + Sync> Input for R {
    fn read(&mut self, buf: &mut [u8], _stopped: &dyn Fn() -> bool) -> io::Result<usize> {
        Read::read(self, buf)
    }
}

/// A stream of unknown size.
pub struct StreamSource {
    name: String,
    /// For messages; the name, where nothing else is to be said.
    object: String,
    input: Box<dyn Input>,
    read_bytes: u64,
    ended: bool,
}

impl StreamSource {
    /// Standard input, as a volume named `stdin`.
    pub fn stdin() -> Self {
        Self::new("stdin", io::stdin())
    }

    /// The FIFO at `path`. Waits until something opens it for writing.
    pub fn fifo(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io("open", &name))?;
        Ok(Self::new(&name, file))
    }

    /// What `command` (a program and its arguments) writes to its standard output, as a volume named `stdin`. It is
    /// started by the first read, and ends the stream only if it ends well: any other end is an error of the read.
    ///
    /// Fails with [`Error::Invalid`] if there is no program.
    pub fn command(command: &[OsString]) -> Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(Error::Invalid { what: "there is no command to run".into() });
        };
        let output = CommandOutput::new(program, arguments);
        let object = format!("the output of `{}`", output.program());
        Ok(Self { name: "stdin".into(), object, input: Box::new(output), read_bytes: 0, ended: false })
    }

    /// Any reader.
    pub fn new(name: &str, input: impl Read + Send + Sync + 'static) -> Self {
        Self { name: name.into(), object: name.into(), input: Box::new(input), read_bytes: 0, ended: false }
    }

    /// Fills `buf` from the stream and returns how much was read: less than its length only at the stream's end, 0
    /// after that. Pipes deliver 64 KiB at a time, segments are 4 MiB.
    pub fn read_segment(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.read_segment_unless(buf, &|| false)
    }

    /// As [`StreamSource::read_segment`], but ends with [`Error::Cancelled`] when `stopped` says so.
    pub fn read_segment_unless(&mut self, buf: &mut [u8], stopped: &dyn Fn() -> bool) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() && !self.ended {
            if stopped() {
                return Err(Error::Cancelled);
            }
            match self.input.read(&mut buf[filled..], stopped) {
                Ok(0) => self.ended = true,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let object = format!("{} at offset {}", self.object, self.read_bytes + filled as u64);
                    return Err(Error::Io { action: "read", object, source });
                }
            }
        }
        self.read_bytes += filled as u64;
        Ok(filled)
    }
}

impl Source for StreamSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> Option<u64> {
        None
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Stream
    }

    fn logical_block_bytes(&self) -> u32 {
        1
    }

    fn next_data(&self, _from: u64) -> Result<Option<Range<u64>>> {
        Err(Error::Invalid { what: format!("{} is a stream: it can only be read front to back", self.name) })
    }

    /// Nothing can be said of a stream that is gone.
    fn identity(&self) -> Option<String> {
        None
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn as_stream(&mut self) -> Option<&mut StreamSource> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte at a time, interrupted now and then.
    struct Dribble(u32);

    impl Read for Dribble {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            match self.0 {
                n if n % 3 == 0 => Err(io::ErrorKind::Interrupted.into()),
                n if n > 20 => Ok(0),
                n => {
                    buf[0] = n as u8;
                    Ok(1)
                }
            }
        }
    }

    #[test]
    fn segments_are_full_up_to_the_end() {
        let mut stream = StreamSource::new("test", Dribble(0));
        let mut buf = [0; 8];
        assert_eq!(stream.read_segment(&mut buf).unwrap(), 8);
        assert_eq!(buf, [1, 2, 4, 5, 7, 8, 10, 11]);
        assert_eq!(stream.read_segment(&mut buf).unwrap(), 6);
        assert_eq!(stream.read_segment(&mut buf).unwrap(), 0);
        assert!(stream.next_data(0).is_err() && stream.as_stream().is_some());
    }
}
