//! Storing objects: put-if-absent, also where an answer was lost on the way.

use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Extensions, GetOptions, GetRange, ObjectStoreExt as _, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::fault::Kind;
use super::retry::Ended;
use super::{Body, Exclusive, ObjectStore, PutOutcome};
use crate::error::{Error, Result};
use crate::io::PooledBuf;

/// Larger objects go up in parts: a failed attempt repeats one part, and parts go up side by side.
const SINGLE_BYTES_MAX: usize = 64 << 20;
const PART_BYTES: usize = 32 << 20;
const PARTS_AT_A_TIME: usize = 4;

/// Bodies from here on count as large: on a slow line they take long.
const LARGE_BYTES_MIN: usize = 4 << 20;
/// A service that replaces does so each time; a lost answer to the first attempt looks like it once.
const EXCLUSIVE_TRIES: u32 = 3;

/// A pack's buffer as the owner of its bytes: it goes back to its pool when the last request has let go of it.
struct Pooled {
    buf: PooledBuf,
    len: usize,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

/// What was sent, to be told from what somebody else stored.
pub(super) enum Ours<'a> {
    /// All of it.
    Bytes(&'a Bytes),
    /// Its length and BLAKE3: what was sent is not in memory any more.
    Sum { bytes: u64, sum: blake3::Hash },
}

impl Ours<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Sum { bytes, .. } => *bytes,
        }
    }
}

/// Compares an object with what was sent, as it comes.
struct Comparing<'a> {
    ours: &'a Ours<'a>,
    seen: usize,
    same: bool,
    hasher: blake3::Hasher,
}

impl Comparing<'_> {
    fn add(&mut self, chunk: &[u8]) {
        match self.ours {
            Ours::Bytes(bytes) => {
                self.same &=
                    bytes.get(self.seen..self.seen + chunk.len()).is_some_and(|ours| *ours == *chunk);
            }
            Ours::Sum { .. } => {
                self.hasher.update(chunk);
            }
        }
        self.seen += chunk.len();
    }

    fn is_same(&self) -> bool {
        match self.ours {
            Ours::Bytes(_) => self.same,
            Ours::Sum { sum, .. } => self.same && self.hasher.finalize() == *sum,
        }
    }
}

impl ObjectStore {
    /// Stores the object if the key is free.
    pub(super) async fn upload(&self, key: &str, path: &Path, body: Body<'_>) -> Result<PutOutcome> {
        let bytes = match body {
            Body::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            Body::Pooled { buf, len } => Bytes::from_owner(Pooled { buf, len }),
        };
        self.upload_bytes(key, path, &bytes).await
    }

    /// As [`upload`](Self::upload), of bytes that need not be copied.
    pub(super) async fn upload_bytes(&self, key: &str, path: &Path, bytes: &Bytes) -> Result<PutOutcome> {
        match self.client.parts.clone() {
            Some(parts) if bytes.len() > SINGLE_BYTES_MAX => {
                self.put_in_parts(&*parts, key, path, bytes).await
            }
            _ => self.put_single(key, path, bytes).await,
        }
    }

    /// Makes attempts to send a body; large ones are few at a time where the line is slow.
    pub(super) async fn send_body<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        bytes: usize,
        attempt: impl FnMut() -> F,
    ) -> Ended<T> {
        if bytes < LARGE_BYTES_MIN {
            return self.request(attempt).await;
        }
        let _slot = self.uplink.slot().await;
        let began = Instant::now();
        let ended = self.request(attempt).await;
        if ended.result.is_ok() {
            self.uplink.took(began.elapsed(), Instant::now());
        }
        ended
    }

    async fn put_if_absent(&self, key: &str, path: &Path, bytes: &Bytes) -> Ended<PutResult> {
        self.send_body(bytes.len(), || async {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: self.attributes(key),
                extensions: self.extensions(key),
                ..PutOptions::default()
            };
            self.client.objects.put_opts(path, PutPayload::from_bytes(bytes.clone()), options).await
        })
        .await
    }

    async fn put_single(&self, key: &str, path: &Path, bytes: &Bytes) -> Result<PutOutcome> {
        let ended = self.put_if_absent(key, path, bytes).await;
        let tried = ended.tried();
        match ended.result {
            Ok(_) => Ok(PutOutcome::Created),
            Err(fault) if fault.kind == Kind::Exists && ended.uncertain => {
                self.whose(key, path, &Ours::Bytes(bytes)).await
            }
            Err(fault) if fault.kind == Kind::Exists => Ok(PutOutcome::Exists),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
    }

    /// Puts an object that is there with these very bytes once more: the service must refuse. Were it to replace it,
    /// the bytes would be the same.
    pub(super) async fn try_exclusive(&self, key: &str, path: &Path, bytes: &[u8]) -> Result<Exclusive> {
        let bytes = Bytes::copy_from_slice(bytes);
        for _ in 0..EXCLUSIVE_TRIES {
            let ended = self.put_if_absent(key, path, &bytes).await;
            let tried = ended.tried();
            match ended.result {
                Ok(_) => {}
                Err(fault) if fault.kind == Kind::Exists => return Ok(Exclusive::Holds),
                // What passes says nothing against the service: the puts that follow have a patience of their own.
                Err(fault)
                    if matches!(
                        fault.kind,
                        Kind::Denied | Kind::NoAnswer | Kind::Overloaded | Kind::Broken | Kind::Expired
                    ) =>
                {
                    return Ok(Exclusive::Untried(fault.words().to_owned()));
                }
                Err(fault) => return self.failed("store", key, fault, &tried),
            }
        }
        Err(Error::Remote {
            action: "store",
            object: self.object(key),
            why: "the service replaced an object that was there, although it was asked not to \
                  (If-None-Match: *)"
                .into(),
            advice:
                "writers could replace each other's objects: use a service that keeps conditional puts, as \
                     Amazon S3 does, and no proxy that drops the header"
                    .into(),
        })
    }

    fn attributes(&self, key: &str) -> Attributes {
        let mut attributes = Attributes::new();
        if let Some(class) = &self.options.storage_class
            && key.starts_with(&self.options.storage_class_prefix)
        {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        attributes
    }

    /// The lock travels beside the request: `http` writes it into the headers.
    fn extensions(&self, key: &str) -> Extensions {
        let mut extensions = Extensions::new();
        if let Some(lock) = self.locked_put(key) {
            extensions.insert(lock);
        }
        extensions
    }

    /// An earlier attempt had no answer, this one says that the key is taken: by that attempt, or by somebody else? The bytes tell.
    pub(super) async fn whose(&self, key: &str, path: &Path, ours: &Ours<'_>) -> Result<PutOutcome> {
        if ours.bytes() == 0 {
            return Ok(PutOutcome::Exists);
        }
        let ended = self
            .request(|| async {
                let options = GetOptions { range: Some(GetRange::Offset(0)), ..GetOptions::default() };
                let answer = self.client.objects.get_opts(path, options).await?;
                let due = answer.meta.size;
                let mut stream = answer.into_stream();
                let mut comparing =
                    Comparing { ours, seen: 0, same: due == ours.bytes(), hasher: blake3::Hasher::new() };
                while let Some(chunk) = stream.next().await {
                    comparing.add(&chunk?);
                }
                if comparing.seen as u64 != due {
                    let seen = comparing.seen;
                    return Err(super::broken(format!("the answer has {seen} bytes, {due} were promised")));
                }
                Ok(comparing.is_same())
            })
            .await;
        let tried = ended.tried();
        match ended.result {
            Ok(true) => Ok(PutOutcome::Created),
            Ok(false) => Ok(PutOutcome::Exists),
            // It went into an archive as it was stored. Only packs do, and no two of them share a name of 128 random bits: one of this length is ours.
            Err(fault) if fault.kind == Kind::Archived => {
                let ended = self.request(|| async { self.client.objects.head(path).await }).await;
                let tried = ended.tried();
                match ended.result {
                    Ok(meta) if meta.size == ours.bytes() => Ok(PutOutcome::Created),
                    Ok(_) => Ok(PutOutcome::Exists),
                    Err(fault) => self.failed("look up", key, fault, &tried),
                }
            }
            Err(fault) => self.failed("read back", key, fault, &tried),
        }
    }

    async fn put_in_parts(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        bytes: &Bytes,
    ) -> Result<PutOutcome> {
        let upload = self.begin_parts(store, key, path).await?;
        let outcome = match self.put_parts(store, key, path, &upload, bytes).await {
            Ok(parts) => self.complete(store, key, path, &upload, parts, &Ours::Bytes(bytes)).await,
            Err(error) => Err(error),
        };
        self.end_parts(store, path, &upload, &outcome).await;
        outcome
    }

    /// Begins an upload in parts; its id.
    pub(super) async fn begin_parts(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
    ) -> Result<String> {
        let ended = self
            .request(|| async {
                let options = PutMultipartOptions {
                    attributes: self.attributes(key),
                    extensions: self.extensions(key),
                    ..PutMultipartOptions::default()
                };
                store.create_multipart_opts(path, options).await
            })
            .await;
        let tried = ended.tried();
        match ended.result {
            Ok(upload) => Ok(upload),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
    }

    /// Takes the parts of an upload away that did not become an object.
    pub(super) async fn end_parts(
        &self,
        store: &dyn MultipartStore,
        path: &Path,
        upload: &String,
        outcome: &Result<PutOutcome>,
    ) {
        if !matches!(outcome, Ok(PutOutcome::Created)) {
            // Parts cost storage until they are removed. Best effort: the bucket's lifecycle rule removes what stays.
            let _ = store.abort_multipart(path, upload).await;
        }
    }

    async fn put_parts(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        upload: &String,
        bytes: &Bytes,
    ) -> Result<Vec<PartId>> {
        let parts = (0..bytes.len().div_ceil(PART_BYTES)).map(|number| {
            let part = bytes.slice(number * PART_BYTES..bytes.len().min((number + 1) * PART_BYTES));
            self.put_part(store, key, path, upload, number, part)
        });
        let done: Vec<Result<PartId>> = stream::iter(parts).buffered(PARTS_AT_A_TIME).collect().await;
        done.into_iter().collect()
    }

    /// Sends one part.
    pub(super) async fn put_part(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        upload: &String,
        number: usize,
        part: Bytes,
    ) -> Result<PartId> {
        let attempt = || store.put_part(path, upload, number, PutPayload::from_bytes(part.clone()));
        let ended = self.send_body(part.len(), attempt).await;
        let tried = ended.tried();
        match ended.result {
            Ok(id) => Ok(id),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
    }

    /// Makes the parts an object, if the key is free.
    pub(super) async fn complete(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        upload: &String,
        parts: Vec<PartId>,
        ours: &Ours<'_>,
    ) -> Result<PutOutcome> {
        let ended = self.request(|| store.complete_multipart(path, upload, parts.clone())).await;
        let tried = ended.tried();
        match ended.result {
            Ok(_) => Ok(PutOutcome::Created),
            // After a lost answer the upload is gone, since it became the object.
            Err(fault) if ended.uncertain && matches!(fault.kind, Kind::Exists | Kind::NotFound) => {
                self.whose(key, path, ours).await
            }
            Err(fault) if fault.kind == Kind::Exists => Ok(PutOutcome::Exists),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
    }
}
