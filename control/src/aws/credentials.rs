//! Credentials and region as the AWS command line finds them: environment, profile (static, SSO, assume role, process), web identity, container, instance (IMDSv2).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use penstock_engine::store::object::{AwsAccess, AwsCredential, CredentialProvider, Runtime};
use tokio::sync::Mutex;

/// Credentials are renewed this long before they expire: longer than any request takes.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// What the AWS configuration says.
pub struct Aws {
    /// The region, if any is set.
    pub region: Option<String>,
    /// Another endpoint for all services (`AWS_ENDPOINT_URL`, `endpoint_url` of the profile).
    pub endpoint: Option<String>,
    /// Credentials that renew themselves.
    pub access: AwsAccess,
}

/// Reads the configuration. Its connections live on `runtime`.
pub fn load(runtime: &Runtime, profile: Option<&str>) -> Aws {
    let config = runtime.block_on(async {
        let loader = aws_config::defaults(BehaviorVersion::latest());
        match profile {
            Some(name) => loader.profile_name(name).load().await,
            None => loader.load().await,
        }
    });
    Aws {
        region: config.region().map(ToString::to_string),
        endpoint: config.endpoint_url().map(str::to_owned),
        access: access(&config),
    }
}

fn access(config: &SdkConfig) -> AwsAccess {
    let chain = Arc::new(Chain { source: config.credentials_provider(), held: Mutex::new(None) });
    let told = chain.clone();
    AwsAccess {
        provider: chain,
        expired: Arc::new(move || {
            // If the lock is taken, somebody is renewing them already.
            if let Ok(mut held) = told.held.try_lock() {
                *held = None;
            }
        }),
    }
}

/// The chain with the last answer kept. Never shown in `Debug`.
struct Chain {
    source: Option<SharedCredentialsProvider>,
    held: Mutex<Option<Held>>,
}

struct Held {
    credential: Arc<AwsCredential>,
    expires: Option<SystemTime>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain(…)")
    }
}

impl Held {
    fn is_good_for(&self, time: Duration) -> bool {
        self.expires.is_none_or(|expires| expires > SystemTime::now() + time)
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.is_good_for(RENEW_BEFORE)) {
            return Ok(held.credential.clone());
        }
        let fresh = match &self.source {
            Some(source) => source.provide_credentials().await.map_err(|error| {
                let mut words = error.to_string();
                if let Some(cause) = std::error::Error::source(&error) {
                    words = format!("{words}: {cause}");
                }
                words
            }),
            None => Err("there is no source of them".to_owned()),
        };
        match (fresh, held.as_ref()) {
            (Ok(fresh), _) => {
                let credential = Arc::new(converted(&fresh));
                *held = Some(Held { credential: credential.clone(), expires: fresh.expiry() });
                Ok(credential)
            }
            // Too early to give up.
            (Err(why), Some(old)) if old.is_good_for(Duration::ZERO) => {
                tracing::warn!("the AWS credentials could not be renewed yet: {why}");
                Ok(old.credential.clone())
            }
            (Err(why), _) => Err(object_store::Error::Generic {
                store: "AWS",
                source: format!("no AWS credentials: {why}").into(),
            }),
        }
    }
}

fn converted(credentials: &Credentials) -> AwsCredential {
    AwsCredential {
        key_id: credentials.access_key_id().to_owned(),
        secret_key: credentials.secret_access_key().to_owned(),
        token: credentials.session_token().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::future;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Answers with credentials that expire after so long, and counts; the third answer is a failure.
    #[derive(Debug)]
    struct Source(AtomicU32, Duration);

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            future::ProvideCredentials::ready(match number {
                3 => Err(CredentialsError::not_loaded("no")),
                _ => Ok(Credentials::new(
                    format!("id{number}"),
                    "SECRET",
                    None,
                    Some(SystemTime::now() + self.1),
                    "test",
                )),
            })
        }
    }

    fn chain(lives: Duration) -> Chain {
        let source = Source(AtomicU32::new(0), lives);
        Chain { source: Some(SharedCredentialsProvider::new(source)), held: Mutex::new(None) }
    }

    #[test]
    fn they_are_kept_until_shortly_before_they_expire() {
        let runtime = Runtime::start().unwrap();
        let get = |chain: &Chain| runtime.block_on(chain.get_credential()).map(|c| c.key_id.clone());
        let long = chain(Duration::from_secs(3600));
        assert_eq!((get(&long).unwrap(), get(&long).unwrap()), ("id1".into(), "id1".into()));
        let short = chain(RENEW_BEFORE / 2);
        assert_eq!((get(&short).unwrap(), get(&short).unwrap()), ("id1".into(), "id2".into()));
        assert_eq!(get(&short).unwrap(), "id2", "the source fails, and the old ones are still good");
        assert_eq!(get(&short).unwrap(), "id4");
        assert!(!format!("{short:?}").contains("SECRET"));
    }
}
