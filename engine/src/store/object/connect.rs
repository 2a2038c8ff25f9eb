//! Clients of the three services.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::http::Connector;
use super::options::{ChecksumKind, ObjectOptions, Place, ServerSide, Service};
use super::s3::{S3, Signer};
use crate::error::{Error, Result};
use crate::id::random_bytes;
use crate::store::metrics::Counters;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many times the limit of silence a connection lives whose bytes are not acknowledged: a receiver that is slow,
/// and says so, is not dead.
const UNACKNOWLEDGED: u32 = 2;

/// One service behind the traits that are used of it.
pub struct Client {
    /// Single objects.
    pub objects: Arc<dyn ObjectStore>,
    /// Listings, page by page.
    pub pages: Arc<dyn PaginatedListStore>,
    /// Uploads in parts, where they can be made put-if-absent.
    pub parts: Option<Arc<dyn MultipartStore>>,
    /// What only S3 has.
    pub s3: Option<S3>,
}

/// Makes the client. Retries are not its business: `retry.rs` has them.
pub fn connect(place: &Place, options: &ObjectOptions, counters: &Arc<Counters>) -> Result<Client> {
    let signer = options.aws.as_ref().filter(|_| place.service == Service::S3).map(|access| {
        Signer::new(access.provider.clone(), region(options).to_owned(), options.request_payer)
    });
    let connector = Connector {
        client: client(options)?,
        counters: counters.clone(),
        signer: signer.clone(),
        limits: options.limits.clone(),
    };
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client_options = ClientOptions::new().with_allow_http(allows_http(options));
    let invalid = |error: object_store::Error| Error::Invalid { what: format!("--repo {place}: {error}") };
    match place.service {
        Service::S3 => {
            let beside = match signer {
                Some(signer) => {
                    let customer_key = match &options.server_side {
                        ServerSide::Customer(key) => Some(key.as_str()),
                        _ => None,
                    };
                    Some(S3::new(connector.client(), signer, bucket_url(place, options)?, customer_key)?)
                }
                None => None,
            };
            let s3 = s3(place, options)?.with_retry(once).with_client_options(client_options);
            let s3 = Arc::new(s3.with_http_connector(connector).build().map_err(invalid)?);
            Ok(Client { objects: s3.clone(), pages: s3.clone(), parts: Some(s3), s3: beside })
        }
        Service::Gcs => {
            let mut gcs = GoogleCloudStorageBuilder::from_env().with_bucket_name(&place.bucket);
            if let Some(endpoint) = &options.endpoint {
                gcs = gcs.with_base_url(endpoint);
            }
            let gcs = gcs.with_retry(once).with_client_options(client_options).with_http_connector(connector);
            let gcs = Arc::new(gcs.build().map_err(invalid)?);
            Ok(Client { objects: gcs.clone(), pages: gcs, parts: None, s3: None })
        }
        Service::Azure => {
            let mut azure = MicrosoftAzureBuilder::from_env().with_container_name(&place.bucket);
            if let Some(endpoint) = &options.endpoint {
                azure = azure.with_endpoint(endpoint.clone());
            }
            let azure =
                azure.with_retry(once).with_client_options(client_options).with_http_connector(connector);
            let azure = Arc::new(azure.build().map_err(invalid)?);
            Ok(Client { objects: azure.clone(), pages: azure, parts: None, s3: None })
        }
    }
}

fn region(options: &ObjectOptions) -> &str {
    options.region.as_deref().unwrap_or("us-east-1")
}

/// A dot in the bucket's name does not fit the certificate of the host name.
fn path_style(place: &Place, options: &ObjectOptions) -> bool {
    options.path_style.unwrap_or(options.endpoint.is_some() || place.bucket.contains('.'))
}

/// What the URLs of all objects of the bucket begin with.
fn bucket_url(place: &Place, options: &ObjectOptions) -> Result<String> {
    let own = format!("https://s3.{}.amazonaws.com", region(options));
    let endpoint = options.endpoint.as_deref().unwrap_or(&own).trim_end_matches('/');
    match path_style(place, options) {
        true => Ok(format!("{endpoint}/{}", place.bucket)),
        false => with_bucket(endpoint, &place.bucket),
    }
}

fn s3(place: &Place, options: &ObjectOptions) -> Result<AmazonS3Builder> {
    let mut s3 = AmazonS3Builder::new()
        .with_bucket_name(&place.bucket)
        .with_region(region(options))
        .with_disable_bulk_delete(true)
        .with_request_payer(options.request_payer);
    let path_style = path_style(place, options);
    s3 = s3.with_virtual_hosted_style_request(!path_style);
    if let Some(endpoint) = &options.endpoint {
        s3 = s3.with_endpoint(if path_style {
            endpoint.clone()
        } else {
            with_bucket(endpoint, &place.bucket)?
        });
    }
    // Under TLS the signature need not cover the body: the checksum and the connection do.
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    s3 = s3.with_unsigned_payload(!plain);
    s3 = match options.checksum {
        ChecksumKind::Crc64Nvme => s3.with_checksum_algorithm(Checksum::CRC64NVME),
        ChecksumKind::Sha256 => s3.with_checksum_algorithm(Checksum::SHA256),
        ChecksumKind::Off => s3,
    };
    s3 = match &options.server_side {
        ServerSide::Bucket => s3,
        ServerSide::S3 => {
            let key = "aws_server_side_encryption".parse::<AmazonS3ConfigKey>();
            let key = key.map_err(|e| Error::Invalid { what: format!("server-side encryption: {e}") })?;
            s3.with_config(key, "AES256")
        }
        ServerSide::Kms(key_id) => s3.with_sse_kms_encryption(key_id).with_bucket_key(true),
        ServerSide::Customer(key) => s3.with_ssec_encryption(key),
    };
    Ok(match &options.aws {
        Some(access) => s3.with_credentials(access.provider.clone()),
        None => s3,
    })
}

/// `https://host` → `https://bucket.host`.
fn with_bucket(endpoint: &str, bucket: &str) -> Result<String> {
    match endpoint.split_once("://") {
        Some((scheme, host)) => Ok(format!("{scheme}://{bucket}.{}", host.trim_end_matches('/'))),
        None => Err(Error::Invalid { what: format!("--s3-endpoint {endpoint}: write it as https://host") }),
    }
}

fn allows_http(options: &ObjectOptions) -> bool {
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    plain || std::env::var_os("AZURE_STORAGE_USE_EMULATOR").is_some()
}

/// What connects. Time limits are `retry.rs`'s; the kernel's own is for bytes that nobody acknowledges.
fn client(options: &ObjectOptions) -> Result<reqwest::Client> {
    let invalid =
        |what: &str, e: reqwest::Error| Error::Invalid { what: format!("{what}: {}", e.without_url()) };
    let silence = options.patience.unwrap_or_default().attempt;
    let mut client = reqwest::Client::builder()
        .user_agent(concat!("penstock/", env!("CARGO_PKG_VERSION")))
        .https_only(!allows_http(options))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(silence * UNACKNOWLEDGED)
        .dns_resolver(Arc::new(Shuffled))
        .http1_only();
    if let Some(proxy) = &options.proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(|e| invalid("--s3-proxy", e))?;
        client = client.proxy(proxy);
    }
    if let Some(path) = &options.ca_bundle {
        let pem = std::fs::read(path).map_err(Error::io("read", path.display()))?;
        let bundle = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|e| invalid(&format!("{} is no bundle of PEM certificates", path.display()), e))?;
        client = client.tls_certs_merge(bundle);
    }
    client.build().map_err(|e| invalid("the client of the object store", e))
}

/// All addresses of a host, in another order each time: a service that has many spreads its load by that.
struct Shuffled;

impl reqwest::dns::Resolve for Shuffled {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let looked_up = tokio::task::spawn_blocking(move || (name.as_str(), 0).to_socket_addrs());
            let mut addresses: Vec<SocketAddr> = looked_up.await??.collect();
            let start = random_bytes::<1>().map_or(0, |[byte]| usize::from(byte)) % addresses.len().max(1);
            addresses.rotate_left(start);
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_goes_into_the_host_of_an_endpoint() {
        let vpce = "https://bucket.vpce-1-a.s3.eu-west-1.vpce.amazonaws.com";
        assert_eq!(with_bucket("https://s3.example.org/", "b").unwrap(), "https://b.s3.example.org");
        assert_eq!(with_bucket(vpce, "b").unwrap(), format!("https://b.{}", &vpce[8..]));
        assert!(with_bucket("s3.example.org", "b").is_err());
    }
}
