//! Who asks: where the credentials are from, what AWS makes of them, and how far its clock is from ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::credential_feature::AwsCredentialFeature as Feature;
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;

use super::clients::Clients;
use super::error::{AwsError, Kind, causes};
use super::retry::Patience;

/// For questions that somebody waits for.
pub const BRIEF: Patience = Patience { total: Duration::from_secs(5), fresh: false };

/// Who AWS takes us for.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Twelve digits.
    pub account: String,
    /// Of the user, or of the role's session.
    pub arn: String,
}

/// Notes what AWS's clock says in its answers, also in those that refuse.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Mutex<Option<i64>>>);

impl Clock {
    /// Seconds by which AWS's clock is ahead of this machine's, to a second; `None` before it answered.
    pub fn ahead_s(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "Clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(theirs) = date.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok()) {
            let ours = DateTime::from(SystemTime::now()).secs();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(theirs.secs() - ours);
        }
        Ok(())
    }
}

/// Where the credentials are found, for people; an error if there are none.
pub async fn source(aws: &Clients) -> Result<String, AwsError> {
    let none = |why: String| AwsError::new("credentials", "", Kind::Denied, why);
    let Some(provider) = &aws.credentials else { return Err(none("there is no source of them".into())) };
    let found = provider.provide_credentials().await.map_err(|error| none(causes(&error)))?;
    if found.expiry().is_some_and(|at| at < SystemTime::now()) {
        return Err(none("they have expired".into()));
    }
    let features = found.get_property::<Vec<Feature>>();
    let names: Vec<&str> = features.into_iter().flatten().filter_map(name_of).collect();
    Ok(if names.is_empty() { "the AWS configuration".into() } else { names.join(", ") })
}

fn name_of(feature: &Feature) -> Option<&'static str> {
    Some(match feature {
        Feature::CredentialsEnvVars => "environment variables",
        Feature::CredentialsProfile => "a profile of the AWS configuration",
        Feature::CredentialsProcess | Feature::CredentialsProfileProcess => "a program (credential_process)",
        Feature::CredentialsSso | Feature::CredentialsProfileSso => "single sign-on",
        Feature::CredentialsStsAssumeRole => "a role that was assumed",
        Feature::CredentialsProfileStsWebIdToken
        | Feature::CredentialsEnvVarsStsWebIdToken
        | Feature::CredentialsStsAssumeRoleWebId => "a web identity",
        Feature::CredentialsHttp => "the container's role",
        Feature::CredentialsImds => "this instance's role",
        _ => return None,
    })
}

/// Asks STS. No policy can forbid that: an error is one of the credentials, the clock or the network.
pub async fn caller(aws: &Clients, clock: &Clock) -> Result<Caller, AwsError> {
    let answer = aws
        .retry
        .call("GetCallerIdentity", "", BRIEF, || {
            aws.sts.get_caller_identity().customize().interceptor(clock.clone()).send()
        })
        .await?;
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Ok(Caller { account: text(answer.account()), arn: text(answer.arn()) })
}

/// Whether EC2 answers and takes the credentials; whether anything is allowed does not matter.
pub async fn reach_ec2(aws: &Clients, clock: &Clock) -> Result<(), AwsError> {
    let outcome = aws
        .retry
        .call("DescribeInstances", &aws.region, BRIEF, || {
            let call = aws.ec2.describe_instances().dry_run(true);
            call.customize().interceptor(clock.clone()).send()
        })
        .await;
    match outcome {
        Err(error) if error.is("DryRunOperation") || error.is_refusal() => Ok(()),
        other => other.map(drop),
    }
}
