//! What S3 can do and `object_store` has no call for: Object Lock, thawing, facts of an object. Requests are made by hand, signed by `object_store`, and go the way of all
//! others: through the client that counts and the one retry layer.

use aws_lc_rs::digest::{SHA256, digest};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use md5::{Digest as _, Md5};
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequest};
use object_store::{HeaderMap, HeaderValue};

use super::ObjectStore;
use super::fault::{Fault, Kind};
use crate::error::{Error, Result};
use crate::store::custody::{Availability, Custody, Extended, Facts, LockMode, ObjectLock, Thaw, Thawing};

/// Answers that are read: they are small documents.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Until when an object is locked as it is put; stands among the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct LockedPut {
    /// How strong.
    pub mode: LockMode,
    /// Until when.
    pub until: Timestamp,
}

/// Who signs.
#[derive(Clone, Debug)]
pub struct Signer {
    credentials: AwsCredentialProvider,
    region: String,
    request_payer: bool,
}

impl Signer {
    /// A signer for one region.
    pub fn new(credentials: AwsCredentialProvider, region: String, request_payer: bool) -> Self {
        Self { credentials, region, request_payer }
    }

    /// Signs, or signs again. The body's digest stays as it is where there is one.
    pub async fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let credential = self.credentials.get_credential().await?;
        let known = request.headers_mut().remove("x-amz-content-sha256");
        let known = known.as_ref().and_then(|value| value.to_str().ok());
        let authorizer =
            AwsAuthorizer::new(&credential, "s3", &self.region).with_request_payer(self.request_payer);
        match known {
            Some("UNSIGNED-PAYLOAD") => authorizer.with_sign_payload(false).try_authorize(request, None),
            Some(text) => {
                authorizer.try_authorize(request, hex::decode(text).ok().filter(|d| d.len() == 32).as_deref())
            }
            None => authorizer.try_authorize(request, None),
        }
    }

    /// Adds the lock that a put asks for, and signs it again.
    pub async fn lock(&self, request: &mut HttpRequest, lock: LockedPut) -> object_store::Result<()> {
        let headers = request.headers_mut();
        headers.remove("authorization");
        headers.insert("x-amz-object-lock-mode", HeaderValue::from_static(lock.mode.name()));
        headers.insert("x-amz-object-lock-retain-until-date", header(&lock.until.to_string())?);
        self.sign(request).await
    }
}

/// The way to S3 beside `object_store`'s.
pub struct S3 {
    client: HttpClient,
    signer: Signer,
    /// `https://host/bucket` or `https://bucket.host`.
    bucket_url: String,
    /// Headers that every request for an object needs: a customer's key.
    headers: HeaderMap,
}

/// An answer that is a success.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl S3 {
    /// Puts its parts together. `customer_key` is the key of SSE-C in base64.
    pub fn new(
        client: HttpClient,
        signer: Signer,
        bucket_url: String,
        customer_key: Option<&str>,
    ) -> Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(key) = customer_key {
            let wrong = |_| Error::Invalid { what: "the key of server-side encryption is no base64".into() };
            let raw = BASE64_STANDARD.decode(key).map_err(wrong)?;
            let sum = BASE64_STANDARD.encode(Md5::digest(&raw));
            let add = |headers: &mut HeaderMap, name: &'static str, text: &str| {
                headers.insert(name, header(text).unwrap_or_else(|_| HeaderValue::from_static("")));
            };
            add(&mut headers, "x-amz-server-side-encryption-customer-algorithm", "AES256");
            add(&mut headers, "x-amz-server-side-encryption-customer-key", key);
            add(&mut headers, "x-amz-server-side-encryption-customer-key-md5", &sum);
        }
        Ok(Self { client, signer, bucket_url, headers })
    }

    /// One attempt. `path` is `/key?query` or `?query`.
    async fn send(
        &self,
        method: &str,
        path: &str,
        extra: &HeaderMap,
        body: &str,
    ) -> object_store::Result<Answer> {
        let mut request = HttpRequest::new(body.to_owned().into());
        let parse = |e: &dyn std::fmt::Display| generic(format!("request {path}: {e}"));
        *request.method_mut() = method.parse().map_err(|e| parse(&e))?;
        *request.uri_mut() = format!("{}{path}", self.bucket_url).parse().map_err(|e| parse(&e))?;
        request.headers_mut().extend(extra.clone());
        if !body.is_empty() {
            // S3 wants a checksum of what changes a lock or thaws.
            let sum = digest(&SHA256, body.as_bytes());
            let headers = request.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/xml"));
            headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
            headers.insert("x-amz-checksum-sha256", header(&BASE64_STANDARD.encode(sum))?);
        }
        self.signer.sign(&mut request).await?;
        let broken = |e: object_store::client::HttpError| object_store::Error::Generic {
            store: "S3",
            source: e.into(),
        };
        let (parts, body) = self.client.execute(request).await.map_err(broken)?.into_parts();
        let body = body.bytes().await.map_err(broken)?;
        let status = parts.status.as_u16();
        if body.len() > ANSWER_BYTES_MAX {
            return Err(generic(format!("an answer of {} bytes", body.len())));
        }
        if !(200..300).contains(&status) {
            return Err(generic(format!("status {status}: {}", String::from_utf8_lossy(&body))));
        }
        Ok(Answer { status, headers: parts.headers, body })
    }
}

fn generic(what: String) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: what.into() }
}

fn header(text: &str) -> object_store::Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|e| generic(format!("header: {e}")))
}

/// The path of a URL, as S3 signs it: everything but unreserved characters and slashes is escaped.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte.into());
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn facts(answer: &Answer) -> Facts {
    let class = answer.header("x-amz-storage-class").unwrap_or("STANDARD").to_owned();
    // Intelligent tiering says by a header of its own that it has archived.
    let archived = is_archive(&class) || answer.header("x-amz-archive-status").is_some();
    let availability = match (archived, answer.header("x-amz-restore")) {
        (true, Some(text)) if text.contains("ongoing-request=\"true\"") => Availability::Thawing,
        (true, Some(text)) if text.contains("ongoing-request=\"false\"") => Availability::Thawed,
        (true, _) => Availability::Archived,
        (false, _) => Availability::Ready,
    };
    Facts {
        bytes: answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0),
        class: match answer.header("x-amz-archive-status") {
            Some(tier) => format!("{class}/{tier}"),
            None => class,
        },
        availability,
        locked_until: answer.header("x-amz-object-lock-retain-until-date").and_then(|t| t.parse().ok()),
    }
}

/// True for classes whose objects must be thawed.
pub fn is_archive(class: &str) -> bool {
    matches!(class, "GLACIER" | "DEEP_ARCHIVE")
}

/// What `RestoreObject` is sent.
fn thaw_document(class: &str, how: Thaw) -> String {
    // Tiers of intelligent tiering come back for good: no days.
    let days = match class.starts_with("INTELLIGENT_TIERING") {
        true => String::new(),
        false => format!("<Days>{}</Days>", how.days),
    };
    format!(
        "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{days}<GlacierJobParameters><Tier>{}</Tier></GlacierJobParameters></RestoreRequest>",
        how.speed.name()
    )
}

impl ObjectStore {
    fn s3(&self) -> Result<&S3> {
        self.client.s3.as_ref().ok_or_else(|| Error::Invalid {
            what: format!("{} is not in S3, which Object Lock and thawing need", self.location),
        })
    }

    /// `/prefix/key`, escaped.
    fn url_path(&self, key: &str) -> Result<String> {
        Ok(format!("/{}", escaped(self.path(key)?.as_ref())))
    }

    /// One request on an object, retried; `Ok(Err(…))` is an answer that is no success but tells something.
    async fn ask(
        &self,
        action: &'static str,
        method: &str,
        key: &str,
        query: &str,
        body: &str,
    ) -> Result<std::result::Result<Answer, Fault>> {
        let s3 = self.s3()?;
        let path = format!("{}{query}", self.url_path(key)?);
        let headers = if method == "HEAD" { s3.headers.clone() } else { HeaderMap::new() };
        let ended = self.request(|| s3.send(method, &path, &headers, body)).await;
        let tried = ended.tried();
        match ended.result {
            Ok(answer) => Ok(Ok(answer)),
            Err(fault) if fault.is_answer() => Ok(Err(fault)),
            Err(fault) => self.failed(action, key, fault, &tried),
        }
    }

    async fn facts_of(&self, key: &str) -> Result<Option<Facts>> {
        match self.ask("look up", "HEAD", key, "", "").await? {
            Ok(answer) => Ok(Some(facts(&answer))),
            Err(fault) if fault.kind == Kind::NotFound => Ok(None),
            Err(fault) => self.failed("look up", key, fault, ""),
        }
    }

    async fn thaw_one(&self, key: &str, facts: &Facts, how: Thaw) -> Result<Thawing> {
        match self.ask("thaw", "POST", key, "?restore", &thaw_document(&facts.class, how)).await? {
            // 200: there is a copy already, which stays longer now.
            Ok(answer) if answer.status == 200 => Ok(Thawing::Done),
            Ok(_) => Ok(Thawing::UnderWay),
            // asked for before: by another run, or by an attempt whose answer was lost
            Err(fault) if fault.kind == Kind::Exists => Ok(Thawing::UnderWay),
            Err(fault) => self.failed("thaw", key, fault, ""),
        }
    }

    async fn lock_one(&self, key: &str, mode: LockMode, until: Timestamp) -> Result<()> {
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>",
            mode.name()
        );
        match self.ask("lock", "PUT", key, "?retention", &body).await? {
            Ok(_) => Ok(()),
            Err(fault) => self.failed("lock", key, fault, ""),
        }
    }

    /// Does `work` for all of `items`, many at a time; the answers are in their order.
    fn in_parallel<'a, I: Sync, T, F: Future<Output = Result<T>>>(
        &'a self,
        items: &'a [I],
        work: impl Fn(&'a I) -> F,
    ) -> Result<Vec<T>> {
        let all = stream::iter(items).map(work).buffered(self.at_a_time());
        let done: Vec<Result<T>> = self.runtime.block_on(all.collect());
        done.into_iter().collect()
    }

    /// Fails, and says what to do, if objects are to be locked and the bucket has no Object Lock. Costs a request.
    pub fn check_lock(&self) -> Result<()> {
        if self.options.lock.is_none() {
            return Ok(());
        }
        let s3 = self.s3()?;
        let headers = HeaderMap::new();
        let ended = self.runtime.block_on(self.request(|| s3.send("GET", "?object-lock", &headers, "")));
        let tried = ended.tried();
        let text = match ended.result {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(fault) if fault.kind == Kind::NotFound => String::new(),
            Err(fault) if fault.kind == Kind::Denied => {
                tracing::warn!(
                    "whether the bucket has Object Lock enabled cannot be seen without s3:GetBucketObjectLockConfiguration: {}",
                    fault.words()
                );
                return Ok(());
            }
            Err(fault) => return self.failed("read the Object Lock configuration of", "", fault, &tried),
        };
        if !text.contains("<ObjectLockEnabled>Enabled</ObjectLockEnabled>") {
            return Err(Error::Invalid {
                what: format!(
                    "--object-lock: the bucket {} has no Object Lock, so nothing in it can be locked. Make a bucket with Object Lock, or enable versioning and \
                     then Object Lock on this one (docs/OPERATIONS.md, Immutable backups)",
                    self.place.bucket
                ),
            });
        }
        if text.contains("<DefaultRetention>") {
            tracing::warn!(
                "the bucket has a default retention: it locks leases and lists of the garbage collection too, which then take up room until it ends"
            );
        }
        Ok(())
    }

    /// The lock of an object that is put now.
    pub(super) fn locked_put(&self, key: &str) -> Option<LockedPut> {
        let lock = self.options.lock?;
        let exempt = self.options.lock_exempt.iter().any(|prefix| key.starts_with(prefix.as_str()));
        (!exempt).then(|| LockedPut { mode: lock.mode, until: lock.until(Timestamp::now()) })
    }
}

impl Custody for ObjectStore {
    fn lock(&self) -> Option<ObjectLock> {
        self.options.lock
    }

    fn archives(&self) -> bool {
        self.options.storage_class.as_deref().is_some_and(|c| is_archive(c) || c == "INTELLIGENT_TIERING")
    }

    fn facts(&self, keys: &[String]) -> Result<Vec<Option<Facts>>> {
        self.in_parallel(keys, |key| self.facts_of(key))
    }

    fn thaw(&self, objects: &[(String, Facts)], how: Thaw) -> Result<Vec<Thawing>> {
        self.in_parallel(objects, |(key, facts)| self.thaw_one(key, facts, how))
    }

    fn extend(
        &self,
        objects: &[(String, Option<u64>)],
        required: Timestamp,
        until: Timestamp,
    ) -> Result<Extended> {
        let Some(lock) = self.options.lock else {
            return Err(Error::Invalid { what: "locks are extended with --object-lock DAYS".into() });
        };
        enum Fate {
            Extended,
            LongEnough,
            Wrong(String),
        }
        let fates = self.in_parallel(objects, |(key, bytes)| async move {
            let Some(facts) = self.facts_of(key).await? else {
                return Ok(Fate::Wrong(format!("{key} is missing, or hidden by a delete marker")));
            };
            if let Some(bytes) = bytes.filter(|bytes| *bytes != facts.bytes) {
                return Ok(Fate::Wrong(format!("{key} has {} bytes, {bytes} were written", facts.bytes)));
            }
            if facts.locked_until.is_some_and(|until| until >= required) {
                return Ok(Fate::LongEnough);
            }
            self.lock_one(key, lock.mode, until).await?;
            Ok(Fate::Extended)
        })?;
        let mut report = Extended::default();
        for (fate, (key, _)) in fates.into_iter().zip(objects) {
            match fate {
                Fate::Extended => report.extended.push(key.clone()),
                Fate::LongEnough => report.long_enough += 1,
                Fate::Wrong(what) => report.wrong.push(what),
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::custody::ThawSpeed;

    fn answer(headers: &[(&'static str, &'static str)]) -> Answer {
        let pairs = headers.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v)));
        Answer { status: 200, headers: pairs.collect(), body: Bytes::new() }
    }

    #[test]
    fn heads_tell_what_can_be_read() {
        let state = |headers: &[(&'static str, &'static str)]| facts(&answer(headers)).availability;
        let glacier = ("x-amz-storage-class", "GLACIER");
        assert_eq!(state(&[]), Availability::Ready);
        assert_eq!(state(&[("x-amz-storage-class", "GLACIER_IR")]), Availability::Ready);
        assert_eq!(state(&[glacier]), Availability::Archived);
        assert_eq!(state(&[glacier, ("x-amz-restore", "ongoing-request=\"true\"")]), Availability::Thawing);
        let thawed = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2012 00:00:00 GMT\"";
        assert_eq!(state(&[glacier, ("x-amz-restore", thawed)]), Availability::Thawed);
        let tier = answer(&[
            ("x-amz-storage-class", "INTELLIGENT_TIERING"),
            ("x-amz-archive-status", "DEEP_ARCHIVE_ACCESS"),
        ]);
        assert_eq!(facts(&tier).availability, Availability::Archived);
        let document = thaw_document(&facts(&tier).class, Thaw { speed: ThawSpeed::Bulk, days: 3 });
        assert!(!document.contains("Days") && document.contains("<Tier>Bulk</Tier>"), "{document}");
        let locked = answer(&[("x-amz-object-lock-retain-until-date", "2030-01-01T00:00:00.000Z")]);
        assert_eq!(facts(&locked).locked_until, "2030-01-01T00:00:00Z".parse().ok());
    }

    #[test]
    fn locks_are_signed_and_the_body_is_not_hashed_again() {
        let credential = object_store::aws::AwsCredential {
            key_id: "AKID".into(),
            secret_key: "secret".into(),
            token: None,
        };
        let credentials = std::sync::Arc::new(object_store::StaticCredentialProvider::new(credential));
        let signer = Signer::new(credentials, "eu-west-1".into(), false);
        let until = "2030-01-01T00:00:00Z".parse().unwrap();
        let lock = LockedPut { mode: LockMode::Compliance, until };
        for hash in ["UNSIGNED-PAYLOAD", &"ab".repeat(32)] {
            let mut request = HttpRequest::new("body".to_owned().into());
            *request.uri_mut() = "https://b.s3.eu-west-1.amazonaws.com/k".parse().unwrap();
            request.headers_mut().insert("x-amz-content-sha256", header(hash).unwrap());
            request.headers_mut().insert("authorization", header("old").unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(signer.lock(&mut request, lock)).unwrap();
            let of = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(of("x-amz-content-sha256"), hash);
            assert_eq!(of("x-amz-object-lock-retain-until-date"), "2030-01-01T00:00:00Z");
            let signed = of("authorization");
            assert!(
                signed.contains("x-amz-object-lock-mode;x-amz-object-lock-retain-until-date"),
                "{signed}"
            );
        }
    }

    #[test]
    fn prefixes_are_escaped() {
        assert_eq!(escaped("a b/ü+~_.-"), "a%20b/%C3%BC%2B~_.-");
    }
}
