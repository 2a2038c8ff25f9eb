//! The one place where requests leave: counts each attempt by kind, notes what its answer said beside the body, and
//! sees bytes move.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};

use super::line::Line;
use super::moving::{Download, Upload, failed};
use super::s3::{LockedPut, Signer};
use crate::store::metrics::Counters;
use crate::store::throttle::Limits;

tokio::task_local! {
    /// The attempt that runs on this task.
    static ATTEMPT: Arc<Attempt>;
}

/// What an attempt did so far, and what its answer said. Filled by [`Counting`] and by the bodies.
#[derive(Debug)]
pub struct Attempt {
    began: Instant,
    line: Arc<Line>,
    /// Milliseconds from the beginning to the last sign of life; later than now while it waits for its share of the
    /// line.
    alive_ms: AtomicU64,
    upload_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    status: AtomicU16,
    retry_after_s: AtomicU64,
    request_id: Mutex<Option<String>>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if *self.upload_bytes.get_mut() > 0 {
            self.line.end();
        }
    }
}

impl Default for Attempt {
    fn default() -> Self {
        Self::on(Arc::default())
    }
}

impl Attempt {
    /// An attempt that begins now.
    pub fn on(line: Arc<Line>) -> Self {
        Self {
            began: Instant::now(),
            line,
            alive_ms: AtomicU64::new(0),
            upload_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            status: AtomicU16::new(0),
            retry_after_s: AtomicU64::new(0),
            request_id: Mutex::new(None),
        }
    }

    /// Runs `work` with this note.
    pub async fn note<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        ATTEMPT.scope(self, work).await
    }

    /// The one that runs on this task; a fresh one outside of any.
    pub fn current() -> Arc<Self> {
        ATTEMPT.try_with(Arc::clone).unwrap_or_default()
    }

    fn alive(&self, later: Duration) {
        let ms = (self.began.elapsed() + later).as_millis() as u64;
        self.alive_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// A body of so many bytes is to be sent.
    pub(super) fn begin_upload(&self, bytes: u64) {
        if bytes > 0 && self.upload_bytes.swap(bytes, Ordering::Relaxed) == 0 {
            self.line.begin();
        }
    }

    /// The connection took so many bytes.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.line.took(bytes, Instant::now());
        self.alive(Duration::ZERO);
    }

    /// So many bytes came.
    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.alive(Duration::ZERO);
    }

    /// It waits for its share of a limited line.
    pub(super) fn hold(&self, wait: Duration) {
        self.alive(wait);
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The last sign of life.
    pub fn alive_at(&self) -> Instant {
        self.began + Duration::from_millis(self.alive_ms.load(Ordering::Relaxed))
    }

    /// Bytes that the connection took.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of a body that wait for the connection to take them.
    pub fn unsent_bytes(&self) -> u64 {
        self.upload_bytes.load(Ordering::Relaxed).saturating_sub(self.sent_bytes())
    }

    /// How long so many bytes that lie in buffers may take, by what the line takes of all uploads.
    pub fn passes_in(&self, bytes: u64) -> Duration {
        self.line.passes_in(bytes, Instant::now())
    }

    /// Bytes of answers.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// HTTP status of the last answer.
    pub fn status(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != 0)
    }

    /// What the service asked for before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        Some(self.retry_after_s.load(Ordering::Relaxed)).filter(|s| *s != 0).map(Duration::from_secs)
    }

    /// What the service calls this request.
    pub fn request_id(&self) -> Option<String> {
        self.request_id.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn answered(&self, response: &HttpResponse) {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        self.alive(Duration::ZERO);
        self.status.store(response.status().as_u16(), Ordering::Relaxed);
        let seconds = header("retry-after").and_then(|text| text.parse().ok()).unwrap_or(0);
        self.retry_after_s.store(seconds, Ordering::Relaxed);
        let id = ["x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid"].into_iter().find_map(header);
        *self.request_id.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = id.map(str::to_owned);
    }
}

/// Counts an attempt by what is billed for it.
fn count(counters: &Counters, request: &HttpRequest) {
    let query = request.uri().query().unwrap_or_default();
    let is_list = query.split('&').any(|part| part.starts_with("list-type=") || part == "comp=list");
    let counter = match request.method().as_str() {
        "GET" if is_list => &counters.list,
        "GET" | "HEAD" => &counters.get,
        "DELETE" => &counters.delete,
        _ => &counters.put,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Makes clients that count, and that lock what is put where a put asks for it and there is a signer. All share one
/// `reqwest` client: `object_store`'s own hides bodies from whoever wants to see them move.
#[derive(Clone, Debug)]
pub struct Connector {
    /// What connects.
    pub client: reqwest::Client,
    /// What they add to.
    pub counters: Arc<Counters>,
    /// For headers that `object_store` has no word for.
    pub signer: Option<Signer>,
    /// What bodies may use of the line.
    pub limits: Limits,
}

impl Connector {
    /// A client for requests made by hand.
    pub fn client(&self) -> HttpClient {
        HttpClient::new(Counting(self.clone()))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let attempt = Attempt::current();
        let (parts, body) = request.into_parts();
        let url = reqwest::Url::parse(&parts.uri.to_string());
        let url = url.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match body.content_length() {
            0 => reqwest::Body::from(""),
            _ => reqwest::Body::wrap(Upload::new(body, attempt.clone(), self.limits.upload.clone())),
        });
        let answer = self.client.execute(request).await.map_err(failed)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = Download::new(reqwest::Body::from(answer), attempt, self.limits.download.clone());
        let mut response = HttpResponse::new(HttpResponseBody::new(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }
}

impl HttpConnector for Connector {
    /// What `object_store` would set is set in the client already.
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.client())
    }
}

#[derive(Debug)]
struct Counting(Connector);

#[async_trait]
impl HttpService for Counting {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Requests for tokens (Google, Azure) are none of the store's and are made outside of an attempt or to a host of their own.
        let counted = !is_token_host(request.uri().host().unwrap_or_default());
        if counted {
            count(&self.0.counters, &request);
        }
        // Completing an upload is what makes the object: never over another one. The header is not among the signed ones.
        let completes = request.method().as_str() == "POST"
            && request.uri().query().unwrap_or_default().split('&').any(|part| part.starts_with("uploadId="));
        if completes {
            request.headers_mut().insert("if-none-match", object_store::HeaderValue::from_static("*"));
        }
        if let (Some(lock), Some(signer)) = (request.extensions().get::<LockedPut>().copied(), &self.0.signer)
        {
            let signed = signer.lock(&mut request, lock).await;
            signed.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        }
        let mut response = self.0.send(request).await?;
        length_from_range(&mut response);
        if counted {
            let _ = ATTEMPT.try_with(|attempt| attempt.answered(&response));
        }
        Ok(response)
    }
}

/// Proxies may pass a body on in chunks and drop its length, which `object_store` asks for. A partial answer says in its range how long it is.
fn length_from_range(response: &mut HttpResponse) {
    if response.headers().contains_key("content-length") {
        return;
    }
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    if let Some(len) = range.and_then(range_bytes) {
        response.headers_mut().insert("content-length", len.into());
    }
}

/// `bytes 10-19/100` has 10 bytes.
fn range_bytes(text: &str) -> Option<u64> {
    let (first, last) = text.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

fn is_token_host(host: &str) -> bool {
    ["169.254.169.254", "metadata.google.internal", "metadata", "login.microsoftonline.com"].contains(&host)
        || host.ends_with("oauth2.googleapis.com")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_a_length() {
        assert_eq!(range_bytes("bytes 10-19/100"), Some(10));
        assert_eq!(range_bytes("bytes 0-0/1"), Some(1));
        for wrong in ["bytes */100", "bytes 9-1/100", "10-19/100", "bytes 0-18446744073709551615/1"] {
            assert_eq!(range_bytes(wrong), None, "{wrong}");
        }
    }
}
