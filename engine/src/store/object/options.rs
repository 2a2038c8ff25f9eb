//! How a repository in an object store is reached.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::AwsCredentialProvider;

use super::retry::Patience;
use crate::error::{Error, Result};
use crate::store::custody::ObjectLock;
use crate::store::throttle::Limits;

/// Which service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// A URL of an object store, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which service.
    pub service: Service,
    /// Bucket or container.
    pub bucket: String,
    /// What all keys begin with; empty, or without a slash at its ends.
    pub prefix: String,
}

impl Place {
    /// `s3://bucket/prefix`, `gs://…`, `az://…`; `None` for URLs of other kinds.
    pub fn parse(url: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = url.split_once("://") else { return Ok(None) };
        let service = match scheme {
            "s3" | "s3a" => Service::S3,
            "gs" | "gcs" => Service::Gcs,
            "az" | "azure" => Service::Azure,
            _ => return Ok(None),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let invalid = |why: &str| Err(Error::Invalid { what: format!("--repo {url}: {why}") });
        if bucket.is_empty() || !bucket.chars().all(|c| c.is_ascii_alphanumeric() || ".-_$".contains(c)) {
            return invalid("after :// comes the name of a bucket: s3://bucket/prefix");
        }
        if prefix
            .split('/')
            .any(|part| part == "." || part == ".." || (part.is_empty() && !prefix.is_empty()))
        {
            return invalid("a prefix has no empty parts, and none called . or ..");
        }
        if prefix.split_once('?').is_some_and(|(_, query)| query.contains('=')) {
            return invalid("options go behind --s3-…, not into the URL");
        }
        Ok(Some(Self { service, bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.service {
            Service::S3 => "s3",
            Service::Gcs => "gs",
            Service::Azure => "az",
        };
        write!(f, "{scheme}://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// Who encrypts at rest beside this program, with which key. `Debug` shows no key.
#[derive(Clone, Default)]
pub enum ServerSide {
    /// As the bucket says.
    #[default]
    Bucket,
    /// `AES256`.
    S3,
    /// A KMS key id or ARN.
    Kms(String),
    /// A 256-bit key of the customer's, in base64; needed for every request.
    Customer(String),
}

impl fmt::Debug for ServerSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bucket => "Bucket",
            Self::S3 => "S3",
            Self::Kms(_) => "Kms(…)",
            Self::Customer(_) => "Customer(…)",
        })
    }
}

/// Checksum sent with each object, which the service verifies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ChecksumKind {
    /// CRC-64/NVME: what AWS's own programs send today, and nearly free.
    #[default]
    Crc64Nvme,
    /// SHA-256.
    Sha256,
    /// None: for services that know neither.
    Off,
}

/// AWS credentials that renew themselves.
#[derive(Clone)]
pub struct AwsAccess {
    /// Gives credentials that are good now.
    pub provider: AwsCredentialProvider,
    /// Told when the service called them expired: the provider asks its source at the next call.
    pub expired: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for AwsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsAccess(…)")
    }
}

/// All that is not in the URL. Sizes are bytes.
#[derive(Clone, Debug, Default)]
pub struct ObjectOptions {
    /// Another service than the provider's own, or a VPC endpoint: `https://host[:port]`.
    pub endpoint: Option<String>,
    /// AWS region.
    pub region: Option<String>,
    /// The bucket in the path (true) or in the host name (false). `None`: in the host name unless there is an endpoint.
    pub path_style: Option<bool>,
    /// Storage class of objects under `storage_class_prefix`; others get the default one.
    pub storage_class: Option<String>,
    /// See [`storage_class`](Self::storage_class).
    pub storage_class_prefix: String,
    /// What is put is locked. S3 only, and only with `aws`.
    pub lock: Option<ObjectLock>,
    /// Objects under these prefixes are not locked: they are short-lived.
    pub lock_exempt: Vec<String>,
    /// Encryption at rest by the service.
    pub server_side: ServerSide,
    /// The caller pays for requests and transfer.
    pub request_payer: bool,
    /// Sent with each object.
    pub checksum: ChecksumKind,
    /// PEM file of certificate authorities that are trusted beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// URL of a proxy; the environment's (`HTTPS_PROXY`, `NO_PROXY`) if `None`.
    pub proxy: Option<String>,
    /// AWS credentials; the provider's default chain for other services.
    pub aws: Option<AwsAccess>,
    /// Time limits; the default if `None`.
    pub patience: Option<Patience>,
    /// Requests at a time at most; chosen if `None`.
    pub connections: Option<usize>,
    /// What bodies may use of the line.
    pub limits: Limits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let place = |url: &str| {
            Place::parse(url).unwrap().map(|p| (p.service, p.bucket.clone(), p.prefix.clone(), p.to_string()))
        };
        let s = str::to_owned;
        assert_eq!(place("s3://b"), Some((Service::S3, s("b"), s(""), s("s3://b"))));
        assert_eq!(place("s3://b/"), Some((Service::S3, s("b"), s(""), s("s3://b"))));
        assert_eq!(place("gs://b.c/x/y/"), Some((Service::Gcs, s("b.c"), s("x/y"), s("gs://b.c/x/y"))));
        assert_eq!(place("az://b-1/x"), Some((Service::Azure, s("b-1"), s("x"), s("az://b-1/x"))));
        assert_eq!(place("/a/b"), None);
        assert_eq!(place("file:///a"), None);
        for wrong in ["s3://", "s3:///x", "s3://b/../c", "s3://b/a//c", "s3://b c/x", "s3://b/x?region=eu"] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn debug_output_has_no_keys() {
        let options =
            ObjectOptions { server_side: ServerSide::Customer("SECRET".into()), ..Default::default() };
        assert!(!format!("{options:?}").contains("SECRET"));
    }
}
