//! What went wrong with a call: the object, AWS's words and the request's id, and what to do.

use std::error::Error as StdError;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

/// Decides what is done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Too fast: later.
    Throttled,
    /// AWS's own trouble, nothing reached it, or no answer came: later. What was asked for may have been done.
    Transient,
    /// There is no such thing, or not yet.
    NotFound,
    /// Not allowed.
    Denied,
    /// The object is in a state that does not permit it.
    State,
    /// Anything else: the request itself is wrong for this account.
    Refused,
    /// The user asked to stop.
    Cancelled,
}

/// A call that failed for good.
#[derive(Clone, Debug)]
pub struct AwsError {
    /// `DescribeVolumes`.
    pub call: &'static str,
    /// On what: an id, or several.
    pub object: String,
    /// What it was.
    pub kind: Kind,
    /// AWS's error code.
    pub code: Option<String>,
    /// AWS's words.
    pub message: String,
    /// For AWS's support, and the account's trail.
    pub request_id: Option<String>,
}

impl AwsError {
    /// An error that this program finds itself, without an answer that says so.
    pub fn new(
        call: &'static str,
        object: impl Into<String>,
        kind: Kind,
        message: impl Into<String>,
    ) -> Self {
        Self { call, object: object.into(), kind, code: None, message: message.into(), request_id: None }
    }

    /// From what the SDK says.
    pub fn from_sdk<E>(call: &'static str, object: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let service = error.as_service_error();
        let meta = service.map(|e| e.meta());
        let code = meta.and_then(|m| m.code()).map(str::to_owned);
        let status = error.raw_response().map(|r| r.status().as_u16());
        let message = match meta.and_then(|m| m.message()) {
            Some(message) => message.to_owned(),
            None => causes(error),
        };
        let request_id = meta.and_then(|m| m.request_id()).or_else(|| error.request_id()).map(str::to_owned);
        let kind = match error {
            SdkError::ServiceError(_) => kind_of(code.as_deref(), status),
            // A request that was not built never left: credentials, or a wrong argument.
            SdkError::ConstructionFailure(_) => Kind::Refused,
            SdkError::DispatchFailure(_) if is_without_credentials(error) => Kind::Denied,
            SdkError::DispatchFailure(failure) if failure.is_user() => Kind::Refused,
            _ => Kind::Transient,
        };
        Self { call, object: object.to_owned(), kind, code, message, request_id }
    }

    /// True if AWS's code is this one.
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// True if AWS knows who asks, and a policy does not let them.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.code.as_deref(),
            Some("UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException")
        )
    }

    /// What went wrong, without what to do about it.
    pub fn said(&self) -> String {
        let mut text = match self.object.as_str() {
            "" => format!("{}: ", self.call),
            object => format!("{} {object}: ", self.call),
        };
        text += self.message.trim_end_matches('.');
        match (&self.code, &self.request_id) {
            (Some(code), Some(id)) => text += &format!(" ({code}, request {id})"),
            (Some(code), None) => text += &format!(" ({code})"),
            (None, Some(id)) => text += &format!(" (request {id})"),
            (None, None) => {}
        }
        text
    }

    /// What to do; empty if there is nothing to say.
    pub fn advice(&self) -> String {
        if let Some(code) = &self.code {
            match code.as_str() {
                "RequestExpired"
                | "RequestTimeTooSkewed"
                | "InvalidSignatureException"
                | "AuthFailure"
                | "InvalidClientTokenId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "ExpiredTokenException"
                | "UnrecognizedClientException" => {
                    return "check the credentials and the clock of this machine".into();
                }
                "SnapshotCreationPerVolumeRateExceeded" => {
                    return "AWS allows one snapshot of a volume in 15 seconds: try again later".into();
                }
                "InsufficientInstanceCapacity" => {
                    return "AWS has no such instances free in that zone now: another --zone or --instance-type, or try again later".into();
                }
                "InvalidKeyPair.NotFound" => {
                    return "choose another by --key-pair, or none by --key-pair none".into();
                }
                "AttachmentLimitExceeded" => {
                    return "this instance can hold no more volumes: read with --read direct, or use a larger instance type".into();
                }
                _ => {}
            }
        }
        match self.kind {
            Kind::Throttled => {
                "the account's request rate is used up, by this or by other programs: try again later, or ask AWS for a higher quota".into()
            }
            Kind::Transient => "AWS did not answer as it should: try again later".into(),
            Kind::NotFound if self.object.starts_with("vol-") || self.object.starts_with("snap-") => {
                "check the id and the region (--region); a KMS key that may not be used shows like this too: kms:Decrypt, kms:CreateGrant".into()
            }
            Kind::NotFound => "check the id and the region (--region)".into(),
            Kind::Denied if self.message.contains("KMS") => {
                "kms:Decrypt, kms:DescribeKey and kms:CreateGrant are needed on that key, and the key's own policy must allow them: `penstock ec2 iam-policy` prints them".into()
            }
            // The request was not even sent.
            Kind::Denied if self.code.is_none() => {
                "no credentials are to be had: AWS_PROFILE, AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or a role of this instance; those that have run out must be renewed".into()
            }
            Kind::Denied if self.message.contains("iam:PassRole") => {
                "`penstock ec2 iam-policy --pass-role ROLE-ARN` prints what passing the role of the instance profile needs; or restore without it: --iam-profile none".into()
            }
            Kind::Denied if self.call == "DetachVolume" => {
                "`penstock ec2 iam-policy` prints what this program needs: ec2:DetachVolume is missing, or forbidden; with --onto for volumes that other instances have".into()
            }
            Kind::Denied => format!(
                "`penstock ec2 iam-policy` prints what this program needs; {} is missing, or forbidden",
                action_of(self.call)
            ),
            // Without a code it is this program that found the state, and says which.
            Kind::State if self.code.is_some() => "its state does not permit it now".into(),
            Kind::State | Kind::Refused | Kind::Cancelled => String::new(),
        }
    }
}

/// True if the request was never sent, because nobody could say as whom.
fn is_without_credentials(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.is::<CredentialsError>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The IAM action behind a call.
pub fn action_of(call: &str) -> String {
    match call {
        "GetSnapshotBlock" | "ListSnapshotBlocks" | "ListChangedBlocks" | "PutSnapshotBlock"
        | "StartSnapshot" | "CompleteSnapshot" => format!("ebs:{call}"),
        "GetCallerIdentity" => format!("sts:{call}"),
        _ => format!("ec2:{call}"),
    }
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::Cancelled {
            return f.write_str("interrupted");
        }
        f.write_str(&self.said())?;
        let advice = self.advice();
        if advice.is_empty() { Ok(()) } else { write!(f, ". {advice}") }
    }
}

impl StdError for AwsError {}

impl From<AwsError> for penstock_engine::Error {
    fn from(error: AwsError) -> Self {
        if error.kind == Kind::Cancelled {
            return penstock_engine::Error::Cancelled;
        }
        let advice = error.advice();
        let advice = if advice.is_empty() { "AWS says no more".into() } else { advice };
        let mut why = error.message.trim_end_matches('.').to_owned();
        let id = error.request_id.map(|id| format!(", request {id}")).unwrap_or_default();
        let code = error.code.map(|code| format!(" {code}")).unwrap_or_default();
        why += &format!(" ({}{code}{id})", error.call);
        let action = match error.call {
            "StartSnapshot" | "PutSnapshotBlock" | "CompleteSnapshot" => "write",
            _ => "read",
        };
        penstock_engine::Error::Remote { action, object: error.object, why, advice }
    }
}

/// All causes, outermost first: the SDK says only "dispatch failure" by itself.
pub fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text += &format!(": {words}");
        }
        cause = inner.source();
    }
    text
}

fn kind_of(code: Option<&str>, status: Option<u16>) -> Kind {
    match code.unwrap_or_default() {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "TooManyRequestsException"
        | "SnapshotCreationPerVolumeRateExceeded"
        | "ConcurrentSnapshotLimitExceeded"
        | "PendingSnapshotLimitExceeded"
        | "EC2ThrottledException"
        | "BandwidthLimitExceeded" => Kind::Throttled,
        "InternalError"
        | "InternalFailure"
        | "InternalServerException"
        | "Unavailable"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "RequestTimeoutException" => Kind::Transient,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "OptInRequired"
        | "Blocked"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "UnrecognizedClientException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestTimeTooSkewed"
        | "RequestExpired" => Kind::Denied,
        "ResourceNotFoundException" => Kind::NotFound,
        code if code.ends_with(".NotFound") || code.ends_with(".Unavailable") => Kind::NotFound,
        "IncorrectState" | "VolumeInUse" | "IncorrectInstanceState" | "InvalidVolume.ZoneMismatch" => {
            Kind::State
        }
        _ => match status {
            Some(429 | 503) => Kind::Throttled,
            Some(500..=599) => Kind::Transient,
            _ => Kind::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kinds() {
        for (code, status, kind) in [
            ("RequestLimitExceeded", 503, Kind::Throttled),
            ("InvalidVolume.NotFound", 400, Kind::NotFound),
            ("UnauthorizedOperation", 403, Kind::Denied),
            ("InternalError", 500, Kind::Transient),
            ("SomethingNew", 502, Kind::Transient),
            ("InvalidParameterValue", 400, Kind::Refused),
            ("IncorrectState", 400, Kind::State),
        ] {
            assert_eq!(kind_of(Some(code), Some(status)), kind, "{code}");
        }
    }

    #[test]
    fn messages_say_what_to_do() {
        let mut error = AwsError::new("CreateVolume", "snap-1", Kind::Denied, "You are not authorized.");
        error.code = Some("UnauthorizedOperation".into());
        error.request_id = Some("r-7".into());
        let text = error.to_string();
        assert!(text.starts_with(
            "CreateVolume snap-1: You are not authorized (UnauthorizedOperation, request r-7). "
        ));
        assert!(text.contains("ec2:CreateVolume"), "{text}");
        assert!(penstock_engine::Error::from(error).to_string().contains("request r-7"));
        let key =
            AwsError::new("GetSnapshotBlock", "snap-1", Kind::Denied, "The caller may not use the KMS key");
        assert!(key.to_string().contains("kms:Decrypt"), "{key}");
        let nobody = AwsError::new("DescribeVolumes", "vol-1", Kind::Denied, "dispatch failure");
        assert!(nobody.to_string().contains("credentials"), "{nobody}");
        let mut error = AwsError::new("AttachVolume", "vol-1", Kind::State, "is it this instance?");
        assert_eq!(error.to_string(), "AttachVolume vol-1: is it this instance?");
        error.code = Some("IncorrectState".into());
        assert!(error.to_string().ends_with("(IncorrectState). its state does not permit it now"));
    }
}
