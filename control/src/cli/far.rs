//! Options of repositories in object stores, and how such a repository is reached.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::{Args, ValueEnum};
use penstock_engine::repo;
use penstock_engine::store::custody::{LockMode, ObjectLock};
use penstock_engine::store::object::{
    self, ChecksumKind, ObjectOptions, Patience, Place, Runtime, ServerSide, Service,
};
use penstock_engine::store::{CacheOptions, Cached, Limits, Store};

use super::exit::Failure;
use super::{host, units};
use crate::aws::credentials;

/// What the local cache of one repository holds at most, unless asked otherwise: the index of about 5 TiB of unique data.
const CACHE_BYTES: u64 = 4 << 30;
/// Bytes of a customer's key (SSE-C).
const CUSTOMER_KEY_BYTES: usize = 32;

/// Options of s3://, gs:// and az://.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Object store options")]
pub struct Far {
    /// Another service than Amazon's, or a VPC endpoint: https://host[:port]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_ENDPOINT",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "URL"
    )]
    pub s3_endpoint: Option<String>,

    /// AWS region [default: as the AWS command line]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_REGION",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "REGION"
    )]
    pub s3_region: Option<String>,

    /// Profile of the AWS configuration [default: AWS_PROFILE]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_PROFILE",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "NAME"
    )]
    pub s3_profile: Option<String>,

    /// Where the bucket's name goes: into the path or the host name [default: host name, with an endpoint of your own the path]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_ADDRESSING",
        hide_env_values = true,
        hide_short_help = true,
        value_enum
    )]
    pub s3_addressing: Option<Addressing>,

    /// Storage class of data packs, as GLACIER_IR, GLACIER, DEEP_ARCHIVE; everything else stays in the default class
    #[arg(
        long,
        alias = "s3-storage-class",
        global = true,
        env = "PENSTOCK_DATA_CLASS",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "CLASS"
    )]
    pub data_class: Option<String>,

    /// Lock what is written for so many days: nobody can delete it before (S3 Object Lock)
    #[arg(long, global = true, env = "PENSTOCK_OBJECT_LOCK", hide_env_values = true, hide_short_help = true, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub object_lock: Option<u32>,

    /// Who may lift a lock [default: governance]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_OBJECT_LOCK_MODE",
        hide_env_values = true,
        hide_short_help = true,
        value_enum
    )]
    pub object_lock_mode: Option<LockModeArg>,

    /// Encryption by the service, on top of this program's: AES256, kms:KEY-ID, or customer:FILE (a key of 32 bytes)
    #[arg(long, global = true, env = "PENSTOCK_S3_SSE", hide_env_values = true, hide_short_help = true, value_name = "HOW", value_parser = parse_sse)]
    pub s3_sse: Option<Sse>,

    /// Pay for requests to somebody else's bucket
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_REQUEST_PAYER",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub s3_request_payer: bool,

    /// Checksum that the service verifies as objects arrive [default: crc64nvme]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_CHECKSUM",
        hide_env_values = true,
        hide_short_help = true,
        value_enum
    )]
    pub s3_checksum: Option<Checksum>,

    /// Certificate authorities to trust beside the system's, as PEM [default: AWS_CA_BUNDLE]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_CA_BUNDLE",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub s3_ca_bundle: Option<PathBuf>,

    /// Proxy [default: HTTPS_PROXY, NO_PROXY]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_PROXY",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "URL"
    )]
    pub s3_proxy: Option<String>,

    /// Requests at a time at most [default: 64]
    #[arg(long, global = true, env = "PENSTOCK_S3_CONNECTIONS", hide_env_values = true, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub s3_connections: Option<u16>,

    /// How long a request may be silent: no byte moves [default: 15]
    #[arg(long, global = true, env = "PENSTOCK_S3_TIMEOUT", hide_env_values = true, hide_short_help = true, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub s3_timeout: Option<u16>,

    /// Give up when nothing went well for so long [default: 180]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_S3_PATIENCE",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "SECONDS"
    )]
    pub s3_patience: Option<u32>,

    /// Bytes a second that are sent to the repository at most, as 10MiB
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_LIMIT_UPLOAD",
        hide_env_values = true,
        hide_short_help = true,
        help_heading = "Global options",
        value_name = "RATE",
        value_parser = units::parse_rate
    )]
    pub limit_upload: Option<u64>,

    /// Bytes a second that are read from the repository at most
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_LIMIT_DOWNLOAD",
        hide_env_values = true,
        hide_short_help = true,
        help_heading = "Global options",
        value_name = "RATE",
        value_parser = units::parse_rate
    )]
    pub limit_download: Option<u64>,

    /// Where index and metadata of repositories in object stores are kept [default: cache/ in the state directory]
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_CACHE_DIR",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "DIR"
    )]
    pub cache_dir: Option<PathBuf>,

    /// How much of it, for each repository; 0: nothing [default: 4GiB]
    #[arg(long, global = true, env = "PENSTOCK_CACHE_SIZE", hide_env_values = true, hide_short_help = true, value_name = "SIZE", value_parser = units::parse_size)]
    pub cache_size: Option<u64>,
}

/// `--s3-addressing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Addressing {
    /// https://host/bucket/key
    Path,
    /// https://bucket.host/key
    Virtual,
}

/// `--object-lock-mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LockModeArg {
    /// Whoever has s3:BypassGovernanceRetention
    Governance,
    /// Nobody, not even the account's owner
    Compliance,
}

/// `--s3-checksum`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Checksum {
    /// CRC-64/NVME
    Crc64nvme,
    /// SHA-256
    Sha256,
    /// None: for services that know neither
    Off,
}

/// `--s3-sse`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sse {
    /// The service's own key.
    S3,
    /// A KMS key.
    Kms(String),
    /// A key in a file.
    Customer(PathBuf),
}

fn parse_sse(text: &str) -> Result<Sse, String> {
    match text.split_once(':') {
        None if text.eq_ignore_ascii_case("AES256") => Ok(Sse::S3),
        Some(("kms", key)) if !key.is_empty() => Ok(Sse::Kms(key.to_owned())),
        Some(("customer", file)) if !file.is_empty() => Ok(Sse::Customer(file.into())),
        _ => Err(format!("{text:?}: write AES256, kms:KEY-ID or customer:FILE")),
    }
}

impl Far {
    /// Opens the store at `place`. With `cache`, index and metadata are kept on local disk.
    pub fn open(&self, place: Place, cache: bool) -> Result<Arc<dyn Store>, Failure> {
        let runtime = Runtime::start()?;
        let mut options = self.options()?;
        options.storage_class = self.class_at(place.service)?;
        if place.service == Service::S3 {
            let aws = credentials::load(&runtime, self.s3_profile.as_deref());
            let of_s3 = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty());
            options.endpoint = options.endpoint.or(of_s3).or(aws.endpoint);
            options.region = options.region.or(aws.region);
            options.aws = Some(aws.access);
        }
        let store = object::open(place, options, runtime)?;
        store.check_lock()?;
        let store: Arc<dyn Store> = Arc::new(store);
        if !cache || self.cache_size == Some(0) {
            return Ok(store);
        }
        match self.cache_options().and_then(|options| Ok(Cached::new(store.clone(), &options)?)) {
            Ok(cached) => Ok(Arc::new(cached)),
            Err(failure) => {
                tracing::warn!("no local cache, which costs requests: {failure}");
                Ok(store)
            }
        }
    }

    /// What may be used of the line, or of the disk.
    pub fn limits(&self) -> Limits {
        Limits::new(self.limit_upload, self.limit_download)
    }

    fn cache_options(&self) -> Result<CacheOptions, Failure> {
        let dir = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => host::state_dir()?.join("cache"),
        };
        let bytes_max = self.cache_size.unwrap_or(CACHE_BYTES);
        Ok(CacheOptions { dir, bytes_max, prefixes: repo::cached_prefixes() })
    }

    /// As `PENSTOCK_OBJECT_LOCK` or the option says.
    fn lock(&self) -> Result<Option<ObjectLock>, Failure> {
        let Some(days) = self.object_lock else { return Ok(None) };
        if self.s3_checksum == Some(Checksum::Off) {
            return Err(Failure::usage(
                "--object-lock: S3 locks only what comes with a checksum, so not with --s3-checksum off",
            ));
        }
        let mode = match self.object_lock_mode {
            None | Some(LockModeArg::Governance) => LockMode::Governance,
            Some(LockModeArg::Compliance) => LockMode::Compliance,
        };
        Ok(Some(ObjectLock { mode, period: Duration::from_secs(u64::from(days) * 86_400) }))
    }

    /// The class of data packs as the service calls it. Classes of S3 that are not known here are handed on: services that speak like it have their own.
    fn class_at(&self, service: Service) -> Result<Option<String>, Failure> {
        let of_old = || std::env::var("PENSTOCK_S3_STORAGE_CLASS").ok().filter(|class| !class.is_empty());
        let Some(class) = self.data_class.clone().or_else(of_old) else { return Ok(None) };
        let upper = class.to_ascii_uppercase().replace('-', "_");
        let refused =
            |known: &str| Err(Failure::usage(format!("--data-class {class}: here there is {known}")));
        match service {
            Service::S3 => Ok(Some(upper)),
            Service::Gcs => match upper.as_str() {
                "STANDARD" | "NEARLINE" | "COLDLINE" | "ARCHIVE" => Ok(Some(upper)),
                _ => refused("STANDARD, NEARLINE, COLDLINE and ARCHIVE, all of which can be read at once"),
            },
            Service::Azure => match upper.as_str() {
                "HOT" => Ok(Some("Hot".into())),
                "COOL" => Ok(Some("Cool".into())),
                "COLD" => Ok(Some("Cold".into())),
                _ => refused(
                    "Hot, Cool and Cold; Archive is not supported, since this program cannot rehydrate blobs",
                ),
            },
        }
    }

    fn options(&self) -> Result<ObjectOptions, Failure> {
        let patience = Patience::default();
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        let ca_of_aws =
            || std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(endpoint) = self.s3_endpoint.as_ref().filter(|url| !url.contains("://")) {
            return Err(Failure::usage(format!("--s3-endpoint {endpoint}: write it as https://host[:port]")));
        }
        Ok(ObjectOptions {
            endpoint: self.s3_endpoint.clone(),
            region: self.s3_region.clone(),
            path_style: self.s3_addressing.map(|how| how == Addressing::Path),
            storage_class: None,
            storage_class_prefix: repo::bulk_prefix().into(),
            lock: self.lock()?,
            lock_exempt: repo::short_lived_prefixes(),
            server_side: match &self.s3_sse {
                None => ServerSide::Bucket,
                Some(Sse::S3) => ServerSide::S3,
                Some(Sse::Kms(key)) => ServerSide::Kms(key.clone()),
                Some(Sse::Customer(file)) => ServerSide::Customer(customer_key(file)?),
            },
            request_payer: self.s3_request_payer,
            checksum: match self.s3_checksum {
                None | Some(Checksum::Crc64nvme) => ChecksumKind::Crc64Nvme,
                Some(Checksum::Sha256) => ChecksumKind::Sha256,
                Some(Checksum::Off) => ChecksumKind::Off,
            },
            ca_bundle: self.s3_ca_bundle.clone().or_else(ca_of_aws),
            proxy: self.s3_proxy.clone(),
            aws: None,
            patience: Some(Patience {
                attempt: seconds(self.s3_timeout.map(u64::from), patience.attempt),
                silence: seconds(self.s3_patience.map(u64::from), patience.silence),
            }),
            connections: self.s3_connections.map(usize::from),
            limits: self.limits(),
        })
    }
}

/// The key as base64; the file holds it raw.
fn customer_key(path: &Path) -> Result<String, Failure> {
    let bytes = fs::read(path).map_err(Failure::io("read", path.display()))?;
    if bytes.len() != CUSTOMER_KEY_BYTES {
        return Err(Failure::usage(format!(
            "{} has {} bytes: a key for --s3-sse customer: has {CUSTOMER_KEY_BYTES} (head -c 32 /dev/urandom)",
            path.display(),
            bytes.len()
        )));
    }
    Ok(base64(&bytes))
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_everybody_writes_it() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn classes_are_those_of_the_service() {
        let class = |text: &str, service| {
            Far { data_class: Some(text.into()), ..Far::default() }.class_at(service).ok().flatten()
        };
        assert_eq!(class("glacier-ir", Service::S3).as_deref(), Some("GLACIER_IR"));
        assert_eq!(class("cool", Service::Azure).as_deref(), Some("Cool"));
        assert_eq!(class("Archive", Service::Gcs).as_deref(), Some("ARCHIVE"));
        assert_eq!(class("Archive", Service::Azure), None);
        assert_eq!(class("GLACIER", Service::Gcs), None);
    }

    #[test]
    fn locks_need_checksums() {
        let far = Far { object_lock: Some(30), ..Far::default() };
        assert!(far.lock().is_ok_and(|lock| lock.is_some_and(|lock| lock.mode == LockMode::Governance)));
        assert!(Far { s3_checksum: Some(Checksum::Off), ..far }.lock().is_err());
    }

    #[test]
    fn ways_of_encryption() {
        assert_eq!(parse_sse("AES256"), Ok(Sse::S3));
        assert_eq!(parse_sse("kms:arn:aws:kms:x:1:key/2"), Ok(Sse::Kms("arn:aws:kms:x:1:key/2".into())));
        assert_eq!(parse_sse("customer:/etc/k"), Ok(Sse::Customer("/etc/k".into())));
        for wrong in ["", "kms", "kms:", "customer:", "rot13"] {
            assert!(parse_sse(wrong).is_err(), "{wrong}");
        }
    }
}
