//! Storing objects: put-if-absent, also where an answer was lost on the way.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Extensions, GetOptions, GetRange, ObjectStoreExt as _, PutMode,
    PutMultipartOptions, PutOptions, PutPayload,
};

use super::fault::Kind;
use super::{Body, ObjectStore, PutOutcome};
use crate::error::Result;
use crate::io::PooledBuf;

/// Larger objects go up in parts: a failed attempt repeats one part, and parts go up side by side.
const SINGLE_BYTES_MAX: usize = 64 << 20;
const PART_BYTES: usize = 32 << 20;
const PARTS_AT_A_TIME: usize = 4;

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

impl ObjectStore {
    /// Stores the object if the key is free.
    pub(super) async fn upload(&self, key: &str, path: &Path, body: Body<'_>) -> Result<PutOutcome> {
        let bytes = match body {
            Body::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            Body::Pooled { buf, len } => Bytes::from_owner(Pooled { buf, len }),
        };
        match self.client.parts.clone() {
            Some(parts) if bytes.len() > SINGLE_BYTES_MAX => {
                self.put_in_parts(&*parts, key, path, &bytes).await
            }
            _ => self.put_single(key, path, &bytes).await,
        }
    }

    async fn put_single(&self, key: &str, path: &Path, bytes: &Bytes) -> Result<PutOutcome> {
        let ended = self
            .request(bytes.len(), || async {
                let options = PutOptions {
                    mode: PutMode::Create,
                    attributes: self.attributes(key),
                    extensions: self.extensions(key),
                    ..PutOptions::default()
                };
                self.client.objects.put_opts(path, PutPayload::from_bytes(bytes.clone()), options).await
            })
            .await;
        let tried = ended.tried();
        match ended.result {
            Ok(_) => Ok(PutOutcome::Created),
            Err(fault) if fault.kind == Kind::Exists && ended.uncertain => self.whose(key, path, bytes).await,
            Err(fault) if fault.kind == Kind::Exists => Ok(PutOutcome::Exists),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
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
    async fn whose(&self, key: &str, path: &Path, bytes: &Bytes) -> Result<PutOutcome> {
        if bytes.is_empty() {
            return Ok(PutOutcome::Exists);
        }
        let ended = self
            .request(bytes.len(), || async {
                let options = GetOptions { range: Some(GetRange::Offset(0)), ..GetOptions::default() };
                let answer = self.client.objects.get_opts(path, options).await?;
                let due = answer.meta.size;
                let (mut stream, mut seen, mut same) = (answer.into_stream(), 0, due == bytes.len() as u64);
                while let Some(chunk) = stream.next().await {
                    let chunk = chunk?;
                    same &= bytes.get(seen..seen + chunk.len()).is_some_and(|ours| *ours == *chunk);
                    seen += chunk.len();
                }
                if seen as u64 != due {
                    return Err(super::broken(format!("the answer has {seen} bytes, {due} were promised")));
                }
                Ok(same)
            })
            .await;
        let tried = ended.tried();
        match ended.result {
            Ok(true) => Ok(PutOutcome::Created),
            Ok(false) => Ok(PutOutcome::Exists),
            // It went into an archive as it was stored. Only packs do, and no two of them share a name of 128 random bits: one of this length is ours.
            Err(fault) if fault.kind == Kind::Archived => {
                let ended = self.request(0, || async { self.client.objects.head(path).await }).await;
                let tried = ended.tried();
                match ended.result {
                    Ok(meta) if meta.size == bytes.len() as u64 => Ok(PutOutcome::Created),
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
        let ended = self
            .request(0, || async {
                let options = PutMultipartOptions {
                    attributes: self.attributes(key),
                    extensions: self.extensions(key),
                    ..PutMultipartOptions::default()
                };
                store.create_multipart_opts(path, options).await
            })
            .await;
        let tried = ended.tried();
        let upload = match ended.result {
            Ok(upload) => upload,
            Err(fault) => return self.failed("store", key, fault, &tried),
        };
        let outcome = match self.put_parts(store, key, path, &upload, bytes).await {
            Ok(parts) => self.complete(store, key, path, &upload, parts, bytes).await,
            Err(error) => Err(error),
        };
        if !matches!(outcome, Ok(PutOutcome::Created)) {
            // Parts cost storage until they are removed. Best effort: the bucket's lifecycle rule removes what stays.
            let _ = store.abort_multipart(path, &upload).await;
        }
        outcome
    }

    async fn put_parts(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        upload: &String,
        bytes: &Bytes,
    ) -> Result<Vec<PartId>> {
        let parts = (0..bytes.len().div_ceil(PART_BYTES)).map(|number| async move {
            let part = bytes.slice(number * PART_BYTES..bytes.len().min((number + 1) * PART_BYTES));
            let ended = self
                .request(part.len(), || {
                    store.put_part(path, upload, number, PutPayload::from_bytes(part.clone()))
                })
                .await;
            let tried = ended.tried();
            match ended.result {
                Ok(id) => Ok(id),
                Err(fault) => self.failed("store", key, fault, &tried),
            }
        });
        let done: Vec<Result<PartId>> = stream::iter(parts).buffered(PARTS_AT_A_TIME).collect().await;
        done.into_iter().collect()
    }

    async fn complete(
        &self,
        store: &dyn MultipartStore,
        key: &str,
        path: &Path,
        upload: &String,
        parts: Vec<PartId>,
        bytes: &Bytes,
    ) -> Result<PutOutcome> {
        let ended = self.request(0, || store.complete_multipart(path, upload, parts.clone())).await;
        let tried = ended.tried();
        match ended.result {
            Ok(_) => Ok(PutOutcome::Created),
            // After a lost answer the upload is gone, since it became the object.
            Err(fault) if ended.uncertain && matches!(fault.kind, Kind::Exists | Kind::NotFound) => {
                self.whose(key, path, bytes).await
            }
            Err(fault) if fault.kind == Kind::Exists => Ok(PutOutcome::Exists),
            Err(fault) => self.failed("store", key, fault, &tried),
        }
    }
}
