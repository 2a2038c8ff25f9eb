//! Clients of the services, and who asks: the region, and the instance that this program runs on.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::imds;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use penstock_engine::store::object::Runtime;

use super::attach::Names;
use super::error::{AwsError, Kind};
use super::limiter::{Limiter, Rates};
use super::retry::Retry;

/// One attempt of one call takes no longer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach AWS.
#[derive(Clone, Debug)]
pub struct Options {
    /// The region; as the AWS command line finds it, if `None`.
    pub region: Option<String>,
    /// A profile of the AWS configuration.
    pub profile: Option<String>,
    /// Calls a second that the account allows.
    pub rates: Rates,
}

/// Clients of one region and one identity.
pub struct Clients {
    runtime: Arc<Runtime>,
    /// EC2.
    pub ec2: aws_sdk_ec2::Client,
    /// EBS direct APIs.
    pub ebs: aws_sdk_ebs::Client,
    /// Who asks.
    pub sts: aws_sdk_sts::Client,
    /// Where signatures come from.
    pub credentials: Option<SharedCredentialsProvider>,
    /// The run's retries.
    pub retry: Retry,
    /// GetSnapshotBlock of the whole account.
    pub get_rate: Limiter,
    /// PutSnapshotBlock, likewise.
    pub put_rate: Limiter,
    /// Listings of blocks.
    pub list_rate: Limiter,
    /// As asked for.
    pub rates: Rates,
    /// Device names of the proxy that this program is about to use.
    pub names: Names,
    /// The region.
    pub region: String,
}

/// The instance that this program runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// `i-…`.
    pub instance: String,
    /// Its availability zone: temporary volumes are made there.
    pub zone: String,
    /// Its region.
    pub region: String,
}

impl Clients {
    /// Reads the AWS configuration. `cancelled` ends waiting calls.
    pub fn connect(
        runtime: Arc<Runtime>,
        options: &Options,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, AwsError> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let config = runtime.block_on(async {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .retry_config(RetryConfig::disabled())
                .timeout_config(timeouts);
            if let Some(profile) = &options.profile {
                loader = loader.profile_name(profile);
            }
            if let Some(region) = &options.region {
                loader = loader.region(aws_config::Region::new(region.clone()));
            }
            loader.load().await
        });
        let region = config.region().map(ToString::to_string).filter(|region| !region.is_empty());
        let Some(region) = region else {
            let message = "no region is configured: give --region, AWS_REGION or a profile with one";
            return Err(AwsError::new("configuration", "AWS", Kind::Refused, message));
        };
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            ebs: aws_sdk_ebs::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
            credentials: config.credentials_provider(),
            retry: Retry::new(cancelled),
            get_rate: Limiter::new(options.rates.get),
            put_rate: Limiter::new(options.rates.put),
            list_rate: Limiter::new(options.rates.list),
            rates: options.rates,
            names: Names::default(),
            region,
            runtime,
        })
    }

    /// Runs `work` on the calling thread, which must not be one of the runtime's.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The instance this program runs on; `None` anywhere else.
    pub async fn proxy(&self) -> Option<Proxy> {
        let client = imds::Client::builder()
            .max_attempts(3)
            .connect_timeout(Duration::from_millis(700))
            .read_timeout(Duration::from_secs(2))
            .build();
        let get = async |path: &str| client.get(path).await.map(|text| text.as_ref().to_owned());
        let found = async {
            Ok::<_, imds::client::error::ImdsError>(Proxy {
                instance: get("/latest/meta-data/instance-id").await?,
                zone: get("/latest/meta-data/placement/availability-zone").await?,
                region: get("/latest/meta-data/placement/region").await?,
            })
        };
        match found.await {
            Ok(proxy) => Some(proxy),
            Err(error) => {
                tracing::info!("no instance metadata, so this is no EC2 instance: {error}");
                None
            }
        }
    }
}
