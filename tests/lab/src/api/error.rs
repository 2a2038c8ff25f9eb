//! Refusals, in the words of AWS.

use std::io;

/// What a client is told when a call does not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `InvalidVolume.NotFound`, `ValidationException`, …
    pub code: String,
    /// For people.
    pub message: String,
    /// The EBS direct APIs' `Reason`.
    pub reason: Option<&'static str>,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of this status.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), reason: None }
    }

    /// The client's fault, in the EC2 API.
    pub fn client(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// A value that is not accepted.
    pub fn value(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterValue", message)
    }

    /// Values that do not go together.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterCombination", message)
    }

    /// A parameter that must be there.
    pub fn missing(name: &str) -> Self {
        let message = format!("The request must contain the parameter {name}");
        Self::client("MissingParameter", message)
    }

    /// `The volume 'vol-…' does not exist.`
    pub fn not_found(code: &str, noun: &str, id: &str) -> Self {
        Self::client(code, format!("The {noun} '{id}' does not exist."))
    }

    /// An error of the EBS direct APIs with its reason.
    pub fn direct(status: u16, code: &str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), ..Self::new(status, code, message) }
    }

    /// `ValidationException` of the EBS direct APIs.
    pub fn validation(reason: &'static str, message: impl Into<String>) -> Self {
        Self::direct(400, "ValidationException", reason, message)
    }
}

impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> Self {
        Self::new(500, "InternalError", format!("the lab's disk: {error}"))
    }
}
