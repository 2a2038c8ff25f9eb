//! Objects that are too large to be in memory at once: they go up in parts as they are written, several at a time, and
//! are put-if-absent all the same. Where the service's parts cannot be, the bytes are gathered.

use std::io::{self, Write};
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;

use super::upload::Ours;
use super::{Fill, ObjectStore, PutOutcome};
use crate::error::{Error, Result};

/// One part: S3 wants at least 5 MiB, and at most 10,000 of them.
const PART_BYTES: usize = 8 << 20;
/// Parts under way beside the one that is being filled: 32 MiB in all.
const SENDERS: usize = 3;

/// What the threads of one upload share.
struct Upload<'a> {
    store: &'a ObjectStore,
    parts: &'a dyn MultipartStore,
    key: &'a str,
    path: &'a Path,
    id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    done: Vec<(usize, PartId)>,
    error: Option<Error>,
}

impl Upload<'_> {
    fn send(&self, number: usize, part: Bytes) {
        if self.has_failed() {
            return;
        }
        let put = self.store.put_part(self.parts, self.key, self.path, &self.id, number, part);
        let result = self.store.runtime.block_on(put);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(id) => state.done.push((number, id)),
            Err(error) => drop(state.error.get_or_insert(error)),
        }
    }

    fn has_failed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).error.is_some()
    }

    /// All parts in their order, or the first error.
    fn parts(&self) -> Result<Vec<PartId>> {
        let State { mut done, error } =
            mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        match error {
            Some(error) => Err(error),
            None => {
                done.sort_by_key(|(number, _)| *number);
                Ok(done.into_iter().map(|(_, id)| id).collect())
            }
        }
    }
}

/// A part of the object, and its number.
type NumberedPart = (usize, Bytes);

/// What `fill` writes to: full parts go to the senders.
struct Parts<'s> {
    buf: Vec<u8>,
    number: usize,
    bytes: u64,
    hasher: blake3::Hasher,
    /// Begins the upload with the first full part.
    begin: Box<dyn FnMut() -> Result<Sender<NumberedPart>> + 's>,
    sender: Option<Sender<(usize, Bytes)>>,
    /// True once a part could not be sent: then there is no use in the rest.
    has_failed: Box<dyn Fn() -> bool + 's>,
    error: Option<Error>,
}

impl Parts<'_> {
    fn send(&mut self) -> io::Result<()> {
        if (self.has_failed)() {
            return Err(io::Error::other("the upload failed"));
        }
        let part = mem::replace(&mut self.buf, Vec::with_capacity(PART_BYTES));
        let sender = match &self.sender {
            Some(sender) => sender,
            None => match (self.begin)() {
                Ok(sender) => self.sender.insert(sender),
                Err(error) => {
                    self.error = Some(error);
                    return Err(io::Error::other("the upload cannot begin"));
                }
            },
        };
        let number = self.number;
        self.number += 1;
        sender.send((number, part.into())).map_err(|_| io::Error::other("the upload ended"))
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buf.len() == PART_BYTES {
            self.send()?;
        }
        let count = bytes.len().min(PART_BYTES - self.buf.len());
        self.buf.extend_from_slice(&bytes[..count]);
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectStore {
    /// [`put_streamed`](super::Store::put_streamed).
    pub(super) fn upload_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        let path = self.path(key)?;
        let Some(parts) = self.client.parts.clone() else {
            let mut bytes = Vec::new();
            fill(&mut bytes)?;
            return self.runtime.block_on(self.upload_bytes(key, &path, &bytes.into()));
        };
        let upload = std::sync::OnceLock::new();
        let outcome = std::thread::scope(|scope| {
            let senders = Mutex::new(Vec::new());
            let begin = || {
                let id = self.runtime.block_on(self.begin_parts(&*parts, key, &path))?;
                let state = Mutex::default();
                let upload = upload.get_or_init(|| Upload {
                    store: self,
                    parts: &*parts,
                    key,
                    path: &path,
                    id,
                    state,
                });
                let (sender, receiver) = bounded(0);
                *senders.lock().unwrap_or_else(PoisonError::into_inner) =
                    spawn_senders(scope, upload, &receiver)?;
                Ok(sender)
            };
            let mut writer = Parts {
                buf: Vec::new(),
                number: 0,
                bytes: 0,
                hasher: blake3::Hasher::new(),
                begin: Box::new(begin),
                sender: None,
                has_failed: Box::new(|| upload.get().is_some_and(Upload::has_failed)),
                error: None,
            };
            let mut filled = fill(&mut writer);
            if filled.is_ok() && writer.sender.is_some() && !writer.buf.is_empty() {
                filled = writer.send().map_err(Error::io("store", self.object(key)));
            }
            let Parts { buf, bytes, hasher, begin, sender, error, .. } = writer;
            drop((sender, begin)); // the senders end
            for thread in mem::take(&mut *senders.lock().unwrap_or_else(PoisonError::into_inner)) {
                if thread.join().is_err() {
                    filled = Err(Error::Invalid {
                        what: "internal error: a thread of the upload panicked".into(),
                    });
                }
            }
            if let Some(error) = error {
                return Err(error);
            }
            match upload.get() {
                None => {
                    filled?;
                    self.runtime.block_on(self.upload_bytes(key, &path, &buf.into()))
                }
                Some(upload) => {
                    // An upload that failed is why `fill` could not write.
                    let parts = upload.parts()?;
                    filled?;
                    let ours = Ours::Sum { bytes, sum: hasher.finalize() };
                    self.runtime.block_on(self.complete(upload.parts, key, &path, &upload.id, parts, &ours))
                }
            }
        });
        if let Some(upload) = upload.get() {
            self.runtime.block_on(self.end_parts(upload.parts, &path, &upload.id, &outcome));
        }
        outcome
    }
}

fn spawn_senders<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    upload: &'scope Upload<'env>,
    parts: &Receiver<(usize, Bytes)>,
) -> Result<Vec<ScopedJoinHandle<'scope, ()>>> {
    (0..SENDERS)
        .map(|_| {
            let parts = parts.clone();
            std::thread::Builder::new()
                .name("upload".into())
                .spawn_scoped(scope, move || {
                    parts.iter().for_each(|(number, part)| upload.send(number, part))
                })
                .map_err(Error::io("start", "a thread that sends a part"))
        })
        .collect()
}
