//! A store in S3, Google Cloud Storage or Azure Blob Storage. Callers are threads that block; requests run on a small runtime of the store's own.
//! `retry` makes attempts, `limit` bounds them, `fault` reads failures, `http` counts, `connect` knows the services.

mod connect;
mod fault;
mod http;
mod limit;
mod line;
mod moving;
mod options;
mod retry;
mod s3;
mod streamed;
mod upload;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _};

pub use object_store::CredentialProvider;
pub use object_store::aws::{AwsCredential, AwsCredentialProvider};
pub use options::{AwsAccess, ChecksumKind, ObjectOptions, Place, ServerSide, Service};
pub use retry::Patience;
pub use s3::is_archive;

use super::custody::Custody;
use super::metrics::Counters;
use super::{Body, Exclusive, Fill, Habits, PutOutcome, Requests, Span, Store};
use crate::error::{Error, Result};
use crate::limits;
use connect::Client;
use fault::{Fault, Kind};
use limit::Limiter;
use retry::{Ended, Retry};

/// Requests at a time unless asked otherwise.
const CONNECTIONS: usize = 64;
/// What connections may take of the process's descriptors.
const CONNECTIONS_SHARE: f64 = 0.25;
/// Largest allocation on the word of a header; larger objects grow their buffer as they come.
const RESERVE_MAX: usize = 64 << 20;
/// Reading this much in vain costs less than another request: about 20 ms of one connection.
const GAP_BYTES: u64 = 1 << 20;
/// Objects stored at a time, each from a buffer of a pack.
const PARALLEL_PUTS: usize = 16;
/// Ranges fetched at a time by a restore, whose budget of stored bytes has room for about as many.
const PARALLEL_GETS: usize = 8;

/// Small objects read at a time.
const PARALLEL_READS: usize = 32;
/// Large bodies sent at a time to begin with: the line shows how many are worth it.
const PUTS_AT_FIRST: usize = 4;

/// The threads that requests run on. Also for whoever finds credentials, so that connections have one home.
pub struct Runtime(tokio::runtime::Runtime);

impl Runtime {
    /// Two to four threads.
    pub fn start() -> Result<Arc<Self>> {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4));
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map(|runtime| Arc::new(Self(runtime)))
            .map_err(Error::io("start", "the threads of the object store"))
    }

    /// Runs `work` on the calling thread, which must not be one of the runtime's own; its input and output are the runtime's.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.block_on(work)
    }
}

/// Objects of a bucket, under a prefix.
pub struct ObjectStore {
    runtime: Arc<Runtime>,
    client: Client,
    place: Place,
    location: String,
    options: ObjectOptions,
    retry: Retry,
    /// Large bodies under way.
    uplink: Limiter,
    counters: Arc<Counters>,
}

/// Opens the place. Nothing is sent yet.
pub fn open(place: Place, options: ObjectOptions, runtime: Arc<Runtime>) -> Result<ObjectStore> {
    if options.lock.is_some() && (place.service != Service::S3 || options.aws.is_none()) {
        return Err(Error::Invalid {
            what: format!(
                "--object-lock: {place} is not in S3; elsewhere a bucket's own retention policy does that"
            ),
        });
    }
    let counters = Arc::new(Counters::default());
    let client = connect::connect(&place, &options, &counters)?;
    let retry = Retry::new(options.patience.unwrap_or_default(), at_a_time(&options));
    let uplink = Limiter::beginning_with(PUTS_AT_FIRST, at_a_time(&options));
    let location = place.to_string();
    Ok(ObjectStore { runtime, client, location, place, options, retry, uplink, counters })
}

/// Requests at a time, each on a connection of its own: as asked, and no more than descriptors allow.
fn at_a_time(options: &ObjectOptions) -> usize {
    options.connections.unwrap_or(CONNECTIONS).clamp(1, limits::descriptors_for(CONNECTIONS_SHARE))
}

/// A part of an object that was got.
struct Part {
    object_bytes: u64,
    bytes: usize,
}

/// Where fetched bytes go.
enum Sink<'a> {
    /// Replaces the contents.
    Grow(&'a mut Vec<u8>),
    /// Fills from the start.
    Fill(&'a mut [u8]),
}

impl ObjectStore {
    fn at_a_time(&self) -> usize {
        at_a_time(&self.options)
    }

    fn path(&self, key: &str) -> Result<Path> {
        let whole = match self.place.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        };
        Path::parse(&whole).map_err(|e| Error::Invalid { what: format!("{}: {e}", self.object(key)) })
    }

    /// How an object is called in messages.
    fn object(&self, key: &str) -> String {
        format!("{}/{key}", self.location)
    }

    fn expired(&self) {
        if let Some(access) = &self.options.aws {
            (access.expired)();
        }
    }

    /// Makes attempts of one request.
    async fn request<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Ended<T> {
        self.retry.run(&self.counters, false, &|| self.expired(), attempt).await
    }

    fn failed<T>(&self, action: &'static str, key: &str, fault: Fault, tried: &str) -> Result<T> {
        Err(fault.into_error(action, self.object(key), tried))
    }

    /// Length of the object.
    fn head(&self, key: &str) -> Result<Option<object_store::ObjectMeta>> {
        let path = self.path(key)?;
        let ended = self.runtime.block_on(self.request(|| async { self.client.objects.head(&path).await }));
        let tried = ended.tried();
        match ended.result {
            Ok(meta) => Ok(Some(meta)),
            Err(fault) if fault.kind == Kind::NotFound => Ok(None),
            Err(fault) => self.failed("look up", key, fault, &tried),
        }
    }

    /// Gets a range; `None` if there is no such object, a part of 0 bytes if the range lies behind its end. An attempt
    /// that breaks off leaves what came; the next one goes on behind it.
    fn fetch(&self, key: &str, range: GetRange, sink: Sink<'_>) -> Result<Option<Part>> {
        let path = self.path(key)?;
        let arriving = Mutex::new(Arriving { sink, known: None, filled: 0 });
        let attempt = || async {
            let next = lock(&arriving).next(&range);
            let Some(next) = next else { return Ok(lock(&arriving).part()) };
            let options = GetOptions { range: Some(next), ..GetOptions::default() };
            let answer = self.client.objects.get_opts(&path, options).await?;
            // The range comes from the answer's Content-Range: a body cut short is told from it, whatever its own length says.
            lock(&arriving).begin(answer.meta.size, answer.range.clone()).map_err(broken)?;
            let mut stream = answer.into_stream();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk?;
                lock(&arriving).add(&chunk).map_err(broken)?;
            }
            lock(&arriving).end().map_err(broken)
        };
        let ended = self.runtime.block_on(self.retry.run(&self.counters, true, &|| self.expired(), attempt));
        let tried = ended.tried();
        match ended.result {
            Ok(part) => Ok(Some(part)),
            Err(fault) if fault.kind == Kind::NotFound => Ok(None),
            Err(fault) if fault.kind == Kind::OutOfRange => {
                Ok(self.head(key)?.map(|meta| Part { object_bytes: meta.size, bytes: 0 }))
            }
            Err(fault) => self.failed("read", key, fault, &tried),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section adds a chunk or reads a field: a panic leaves no half of one that is looked at again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A range on its way, over all attempts.
struct Arriving<'a> {
    sink: Sink<'a>,
    /// Length of the object, and the range as bytes of it: from the first answer.
    known: Option<(u64, Range<u64>)>,
    filled: usize,
}

impl Arriving<'_> {
    /// What to ask for; `None` if all is there, and only the end of the last answer was missing.
    fn next(&self, wanted: &GetRange) -> Option<GetRange> {
        let Some((_, range)) = &self.known else { return Some(wanted.clone()) };
        let from = range.start + self.filled as u64;
        (from < range.end).then_some(GetRange::Bounded(from..range.end))
    }

    /// An answer begins. One that does not go on where the last one ended means: from the start.
    fn begin(&mut self, object_bytes: u64, range: Range<u64>) -> std::result::Result<(), String> {
        match &self.known {
            None => {
                if let Sink::Grow(out) = &mut self.sink {
                    out.clear();
                    let due = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                    out.reserve(due.min(RESERVE_MAX));
                }
                self.filled = 0;
                self.known = Some((object_bytes, range));
                Ok(())
            }
            Some((bytes, known))
                if *bytes == object_bytes
                    && range.start == known.start + self.filled as u64
                    && range.end == known.end =>
            {
                Ok(())
            }
            Some((bytes, known)) => {
                let what = format!(
                    "bytes {}-{} of {object_bytes} were answered, {}-{} of {bytes} were asked for",
                    range.start,
                    range.end,
                    known.start + self.filled as u64,
                    known.end
                );
                (self.known, self.filled) = (None, 0);
                Err(what)
            }
        }
    }

    fn due(&self) -> usize {
        let due = self.known.as_ref().map_or(0, |(_, range)| range.end - range.start);
        usize::try_from(due).unwrap_or(usize::MAX)
    }

    fn add(&mut self, chunk: &[u8]) -> std::result::Result<(), String> {
        let end = self.filled + chunk.len();
        if end > self.due() {
            (self.known, self.filled) = (None, 0);
            return Err("the answer is longer than what was asked for".into());
        }
        match &mut self.sink {
            Sink::Grow(out) => out.extend_from_slice(chunk),
            Sink::Fill(out) => out
                .get_mut(self.filled..end)
                .ok_or("the answer is longer than what was asked for")?
                .copy_from_slice(chunk),
        }
        self.filled = end;
        Ok(())
    }

    fn end(&self) -> std::result::Result<Part, String> {
        match self.due() {
            due if due == self.filled => Ok(self.part()),
            due => Err(format!("the answer has {} bytes, {due} were promised", self.filled)),
        }
    }

    fn part(&self) -> Part {
        Part { object_bytes: self.known.as_ref().map_or(0, |(bytes, _)| *bytes), bytes: self.filled }
    }
}

/// An answer that is not what its headers promise.
fn broken(what: String) -> object_store::Error {
    object_store::Error::Generic { store: "answer", source: what.into() }
}

fn bounded(offset: u64, len: usize) -> Range<u64> {
    offset..offset.saturating_add(len as u64)
}

impl Store for ObjectStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        let path = self.path(key)?;
        self.runtime.block_on(self.upload(key, &path, body))
    }

    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        self.upload_streamed(key, fill)
    }

    fn assure_exclusive(&self, key: &str, bytes: &[u8], _again: bool) -> Result<Exclusive> {
        let path = self.path(key)?;
        self.runtime.block_on(self.try_exclusive(key, &path, bytes))
    }

    fn reached_by(&self) -> String {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{} {}", of(&self.options.endpoint), of(&self.options.proxy))
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        out.clear();
        let range = match span {
            Span::All => GetRange::Offset(0),
            Span::At { len: 0, .. } | Span::Last(0) => return Ok(self.head(key)?.map(|meta| meta.size)),
            Span::At { offset, len } => bounded(offset, len).into(),
            Span::Last(len) if self.place.service == Service::Azure => {
                // It has no ranges that count from the end.
                let Some(object_bytes) = self.head(key)?.map(|meta| meta.size) else { return Ok(None) };
                GetRange::Offset(object_bytes.saturating_sub(len as u64))
            }
            Span::Last(len) => GetRange::Suffix(len as u64),
        };
        let part = self.fetch(key, range, Sink::Grow(out))?;
        Ok(part.map(|part| {
            out.truncate(part.bytes);
            part.object_bytes
        }))
    }

    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        if out.is_empty() {
            return Ok(self.head(key)?.map(|_| 0));
        }
        let range = bounded(offset, out.len()).into();
        Ok(self.fetch(key, range, Sink::Fill(out))?.map(|part| part.bytes))
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        let modified = self.head(key)?.map(|meta| meta.last_modified.timestamp_millis());
        Ok(modified.and_then(|ms| u64::try_from(ms).ok()))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        let base = match self.place.prefix.as_str() {
            "" => String::new(),
            own => format!("{own}/"),
        };
        let whole = format!("{base}{prefix}");
        let mut token: Option<String> = None;
        loop {
            let ended = self.runtime.block_on(self.request(|| {
                let page_token = token.clone();
                let prefix = Some(whole.as_str()).filter(|prefix| !prefix.is_empty());
                async move {
                    let options = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
                    self.client.pages.list_paginated(prefix, options).await
                }
            }));
            let tried = ended.tried();
            let page = match ended.result {
                Ok(page) => page,
                Err(mut fault) => {
                    // Where nothing can be listed, there is no bucket; some services say so without a code.
                    if fault.kind == Kind::NotFound {
                        fault.kind = Kind::NoBucket;
                    }
                    return self.failed("list", prefix, fault, &tried);
                }
            };
            for meta in &page.result.objects {
                if let Some(key) = meta.location.as_ref().strip_prefix(&base) {
                    each(key, meta.size);
                }
            }
            match page.page_token {
                Some(next) => token = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        let ended = self.runtime.block_on(self.request(|| async { self.client.objects.delete(&path).await }));
        let tried = ended.tried();
        match ended.result {
            Ok(()) => Ok(()),
            Err(fault) if fault.kind == Kind::NotFound => Ok(()),
            Err(fault) => self.failed("delete", key, fault, &tried),
        }
    }

    fn habits(&self) -> Habits {
        Habits {
            bills_requests: true,
            parallel_puts: PARALLEL_PUTS,
            parallel_gets: PARALLEL_GETS,
            parallel_reads: self.at_a_time().min(PARALLEL_READS),
            gap_bytes: GAP_BYTES,
        }
    }

    fn custody(&self) -> Option<&dyn Custody> {
        self.client.s3.as_ref().map(|_| self as &dyn Custody)
    }

    fn distrust(&self, _key: &str) -> bool {
        true // what the network or a proxy did to it may not happen again
    }

    fn requests(&self) -> Requests {
        self.counters.requests()
    }
}
