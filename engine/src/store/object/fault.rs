//! What a failed request means: try again, an answer in its own right, or an error for people.

use std::time::Duration;

use super::http::Attempt;
use crate::error::Error;

/// Longest piece of a service's own words that gets into a message.
const WORDS_MAX: usize = 300;

/// Kinds that callers branch on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No such object.
    NotFound,
    /// No such bucket or container.
    NoBucket,
    /// The key is taken.
    Exists,
    /// The range lies behind the object's end.
    OutOfRange,
    /// The object is in an archive class and has to be thawed first.
    Archived,
    /// Not allowed, or not known.
    Denied,
    /// The credentials were good once.
    Expired,
    /// Too many requests, or the service is overloaded.
    Overloaded,
    /// No answer: connection refused, reset, timed out.
    NoAnswer,
    /// The service failed, or its answer was not whole.
    Broken,
    /// The certificate of the other side is not trusted.
    Untrusted,
    /// The service does not know what it was asked for, and never will.
    Unsupported,
    /// Anything else; trying again does not help.
    Other,
}

/// A failed attempt.
#[derive(Debug)]
pub struct Fault {
    /// What callers branch on.
    pub kind: Kind,
    /// When the service wants to hear again.
    pub retry_after: Option<Duration>,
    /// The attempt was silent for longer than it may.
    pub timed_out: bool,
    what: String,
    request_id: Option<String>,
}

impl Fault {
    /// Nothing was heard of the attempt for too long.
    pub fn timeout(after: Duration) -> Self {
        Self {
            kind: Kind::NoAnswer,
            retry_after: None,
            timed_out: true,
            what: format!("no answer, and no byte moved, for {} s", after.as_secs_f32().round()),
            request_id: None,
        }
    }

    /// Reads what is known of a failed attempt.
    pub fn of(error: &object_store::Error, attempt: &Attempt) -> Self {
        let text = chain(error);
        let (status, code) = (attempt.status(), tag(&text, "Code").unwrap_or_default());
        let request_id = attempt.request_id().or_else(|| tag(&text, "RequestId"));
        let kind = kind(error, status, &code, &text);
        let what = match (status, tag(&text, "Message")) {
            (Some(status), Some(message)) if !code.is_empty() => format!("{code} ({status}): {message}"),
            (Some(status), _) if !code.is_empty() => format!("{code} ({status})"),
            (Some(status), _) if status >= 300 => format!("status {status}"),
            _ => without_queries(&text),
        };
        let what: String = what.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        Self { kind, retry_after: attempt.retry_after(), timed_out: false, what, request_id }
    }

    /// True if the same request may go well later.
    pub fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Expired | Kind::Overloaded | Kind::NoAnswer | Kind::Broken)
    }

    /// True if it is no failure but an answer: no such object, the key is taken.
    pub fn is_answer(&self) -> bool {
        matches!(self.kind, Kind::NotFound | Kind::Exists | Kind::OutOfRange | Kind::Archived)
    }

    /// For people: what failed, on what, why, what to do.
    pub fn into_error(self, action: &'static str, object: String, tried: &str) -> Error {
        if self.kind == Kind::Archived {
            return Error::Archived { object };
        }
        let id = self.request_id.map(|id| format!(", request id {id}")).unwrap_or_default();
        let what = match self.kind {
            Kind::NoBucket => "there is no such bucket".to_owned(),
            _ => self.what.clone(),
        };
        let advice = advice(self.kind, &self.what).to_owned();
        Error::Remote { action, object, why: format!("{what}{id}{tried}"), advice }
    }

    /// In one line, for the log.
    pub fn words(&self) -> &str {
        &self.what
    }
}

fn kind(error: &object_store::Error, status: Option<u16>, code: &str, text: &str) -> Kind {
    match code {
        "NoSuchBucket" | "ContainerNotFound" => return Kind::NoBucket,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => {
            return Kind::Expired;
        }
        "SlowDown" | "ServiceUnavailable" | "Throttling" | "ServerBusy" | "RequestLimitExceeded" => {
            return Kind::Overloaded;
        }
        // What was sent did not arrive as it was.
        "RequestTimeout"
        | "BadDigest"
        | "IncompleteBody"
        | "XAmzContentSHA256Mismatch"
        | "Md5Mismatch"
        | "InternalError"
        | "OperationAborted"
        | "ConditionalRequestConflict" => return Kind::Broken,
        "NotImplemented" => return Kind::Unsupported,
        "BlobAlreadyExists" | "RestoreAlreadyInProgress" => return Kind::Exists,
        "InvalidObjectState" | "BlobArchived" => return Kind::Archived,
        // 503, and yet not worth repeating for minutes: another speed is.
        "GlacierExpeditedRetrievalNotAvailable" => return Kind::Other,
        "ObjectLockConfigurationNotFoundError" => return Kind::NotFound,
        _ => {}
    }
    if let object_store::Error::NotFound { .. } = error {
        return Kind::NotFound; // also as one answer within a batch
    }
    match (error, status) {
        (_, Some(304 | 412)) => Kind::Exists,
        (_, Some(404)) => Kind::NotFound,
        (_, Some(409)) => Kind::Broken,
        (_, Some(416)) => Kind::OutOfRange,
        (_, Some(401 | 403)) => Kind::Denied,
        (_, Some(429 | 503)) => Kind::Overloaded,
        (_, Some(501)) => Kind::Unsupported,
        (_, Some(408 | 500..)) => Kind::Broken,
        (_, Some(300..)) => Kind::Other,
        (object_store::Error::AlreadyExists { .. }, _) => Kind::Exists,
        // Azurite answers with a success where Azure's answer is 416: a range of an empty object, or one behind the end.
        (_, Some(_)) if ["bytes 0--1/0", "Wanted range starting at"].iter().any(|w| text.contains(w)) => {
            Kind::OutOfRange
        }
        // A good status, and yet an error: the body broke off, or is not what the headers promised.
        (_, Some(_)) => Kind::Broken,
        (
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. },
            None,
        ) => Kind::Denied,
        // The service that gives tokens has spoken: not to this machine, or not like this.
        (_, None) if text.contains("token request") && text.contains("status code: 4") => Kind::Denied,
        (_, None) if text.contains("credential") => Kind::Denied,
        (_, None) if ["certificate", "UnknownIssuer"].iter().any(|word| text.contains(word)) => {
            Kind::Untrusted
        }
        (object_store::Error::NotSupported { .. } | object_store::Error::InvalidPath { .. }, None) => {
            Kind::Other
        }
        (_, None) => Kind::NoAnswer,
    }
}

fn advice(kind: Kind, what: &str) -> &'static str {
    match kind {
        Kind::NoBucket => "create the bucket, or check --repo and --s3-region",
        Kind::Denied if what.contains("SignatureDoesNotMatch") => {
            "the secret key is not the one of this access key id"
        }
        Kind::Denied if what.contains("InvalidAccessKeyId") => {
            "this service does not know the access key id: check the profile (AWS_PROFILE, --s3-profile) and --s3-endpoint"
        }
        Kind::Denied if what.contains("RequestTimeTooSkewed") => "this machine's clock is wrong: set it",
        Kind::Denied if what.contains("credential") => {
            "give credentials as for the AWS command line: AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, an instance role"
        }
        Kind::Denied => {
            "the credentials lack a right: GetObject, PutObject and ListBucket are needed on the bucket and the prefix, and the KMS key's use \
             (docs/OPERATIONS.md has the policy)"
        }
        Kind::Expired => "the credentials have expired and their source gave no newer ones: log in again",
        Kind::Overloaded => "the service limits the rate: run it again, it continues from what is stored",
        Kind::NoAnswer => {
            "check the network, --s3-endpoint and the proxy; run it again, it continues from what is stored"
        }
        Kind::Unsupported => {
            "the service does not implement this request. Objects are put only where there is none \
             (If-None-Match: *), which Amazon S3 and many others know: a service without it cannot hold a \
             repository. If it is the checksum that it does not know: --s3-checksum off"
        }
        Kind::Untrusted => "name the certificate authority by --s3-ca-bundle",
        Kind::Broken => "the service fails: run it again, it continues from what is stored",
        Kind::Other if what.contains("Redirect") || what.contains("AuthorizationHeaderMalformed") => {
            "the bucket is in another region: check --s3-region"
        }
        Kind::Other if what.contains("GlacierExpedited") => "take --thaw standard, or try again later",
        Kind::Other if what.contains("ObjectLock") || what.contains("Object Lock") => {
            "--object-lock needs a bucket with Object Lock: docs/OPERATIONS.md, Immutable backups"
        }
        Kind::NotFound | Kind::Exists | Kind::OutOfRange | Kind::Archived | Kind::Other => {
            "check --repo and the --s3-… options"
        }
    }
}

/// An error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

/// Contents of the first `<name>` in an XML answer.
fn tag(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once("</").map(|(inside, _)| inside.trim().to_owned())
}

/// Queries of URLs may hold signatures.
fn without_queries(text: &str) -> String {
    let clean = |word: &str| match word.split_once('?') {
        Some((before, _)) if before.contains("://") => format!("{before}?…"),
        _ => word.to_owned(),
    };
    text.split(' ').map(clean).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn answers_of_services_are_told_apart() {
        let none = Attempt::default();
        for (text, expected) in [
            ("<Error><Code>SlowDown</Code>", Kind::Overloaded),
            ("<Error><Code>NoSuchBucket</Code><Message>no</Message>", Kind::NoBucket),
            ("<Code>ExpiredToken</Code>", Kind::Expired),
            ("<Code>BadDigest</Code>", Kind::Broken),
            ("<Code>NotImplemented</Code>", Kind::Unsupported),
            ("<Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass>", Kind::Archived),
            ("<Code>RestoreAlreadyInProgress</Code>", Kind::Exists),
            ("<Code>GlacierExpeditedRetrievalNotAvailable</Code>", Kind::Other),
            ("connection refused", Kind::NoAnswer),
            ("invalid peer certificate: UnknownIssuer", Kind::Untrusted),
        ] {
            assert_eq!(Fault::of(&generic(text), &none).kind, expected, "{text}");
        }
        assert!(Fault::timeout(Duration::from_secs(3)).is_passing());
        let unsupported = Fault::of(&generic("<Code>NotImplemented</Code>"), &none);
        assert!(!unsupported.is_passing() && !unsupported.is_answer());
    }

    #[test]
    fn messages_have_no_signatures_in_them() {
        let error = generic("GET https://a.blob.core.windows.net/c/x?sv=1&sig=SECRET failed");
        let text =
            Fault::of(&error, &Attempt::default()).into_error("read", "az://c/x".into(), "").to_string();
        assert!(text.contains("az://c/x") && !text.contains("SECRET"), "{text}");
    }
}
