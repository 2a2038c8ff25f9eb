//! The one place where requests leave: counts each attempt by kind, and notes what its answer said beside the body.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use super::s3::{LockedPut, Signer};
use crate::store::metrics::Counters;

tokio::task_local! {
    /// The attempt that runs on this task.
    static ATTEMPT: Arc<Attempt>;
}

/// What an attempt's answer said. Filled by [`Counting`], read once the attempt is over.
#[derive(Debug, Default)]
pub struct Attempt {
    status: AtomicU16,
    retry_after_s: AtomicU64,
    request_id: Mutex<Option<String>>,
}

impl Attempt {
    /// Runs `work` with a fresh note, and returns both.
    pub async fn note<T>(work: impl Future<Output = T>) -> (T, Arc<Attempt>) {
        let attempt = Arc::new(Attempt::default());
        (ATTEMPT.scope(attempt.clone(), work).await, attempt)
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

/// Makes clients that count, and that lock what is put where a put asks for it and there is a signer.
#[derive(Clone, Debug)]
pub struct Connector {
    /// What they add to.
    pub counters: Arc<Counters>,
    /// For headers that `object_store` has no word for.
    pub signer: Option<Signer>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counting { inner, counters: self.counters.clone(), signer: self.signer.clone() }))
    }
}

#[derive(Debug)]
struct Counting {
    inner: HttpClient,
    counters: Arc<Counters>,
    signer: Option<Signer>,
}

#[async_trait]
impl HttpService for Counting {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Requests for tokens (Google, Azure) are none of the store's and are made outside of an attempt or to a host of their own.
        let counted = !is_token_host(request.uri().host().unwrap_or_default());
        if counted {
            count(&self.counters, &request);
        }
        // Completing an upload is what makes the object: never over another one. The header is not among the signed ones.
        let completes = request.method().as_str() == "POST"
            && request.uri().query().unwrap_or_default().split('&').any(|part| part.starts_with("uploadId="));
        if completes {
            request.headers_mut().insert("if-none-match", object_store::HeaderValue::from_static("*"));
        }
        if let (Some(lock), Some(signer)) = (request.extensions().get::<LockedPut>().copied(), &self.signer) {
            let signed = signer.lock(&mut request, lock).await;
            signed.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        }
        let mut response = self.inner.execute(request).await?;
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
