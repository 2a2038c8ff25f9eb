//! Security Token Service: who am I, and roles.

use serde_json::{Value, json};

use crate::access::Caller;
use crate::api::{ApiError, ApiResult, Params};
use crate::clock::iso;
use crate::core::Core;

/// Answers a call.
pub fn answer(core: &Core, caller: &Caller, action: &str, params: &Params) -> ApiResult<Value> {
    match action {
        "GetCallerIdentity" => {
            Ok(json!({"UserId": caller.user_id, "Account": caller.account, "Arn": caller.arn}))
        }
        "AssumeRole" => assume_role(core, caller, params),
        other => Err(ApiError::client("InvalidAction", format!("Could not find operation {other}"))),
    }
}

fn assume_role(core: &Core, caller: &Caller, params: &Params) -> ApiResult<Value> {
    let arn = params.required("RoleArn")?;
    let session = params.required("RoleSessionName")?;
    let seconds: i64 = params.number("DurationSeconds")?.unwrap_or(3600);
    if !(900..=43_200).contains(&seconds) {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(ApiError::client("ValidationError", message));
    }
    let denied = || {
        let message =
            format!("User: {} is not authorized to perform: sts:AssumeRole on resource: {arn}", caller.arn);
        ApiError::new(403, "AccessDenied", message)
    };
    let name = arn.rsplit('/').next().unwrap_or_default();
    let role = core.access.role(name).ok_or_else(denied)?;
    let account = role.account.as_ref().unwrap_or(&core.options.account);
    if arn != format!("arn:aws:iam::{account}:role/{name}")
        || role.external_id.as_deref() != params.get("ExternalId")
    {
        return Err(denied());
    }
    let expires_ms = core.clock.now_ms() + seconds * 1000;
    let key = core.access.session(&role, session, expires_ms);
    let who = core.access.caller(&key);
    Ok(json!({
        "Credentials": {
            "AccessKeyId": key.id, "SecretAccessKey": key.secret,
            "SessionToken": key.session_token, "Expiration": iso(expires_ms),
        },
        "AssumedRoleUser": {"AssumedRoleId": who.user_id, "Arn": who.arn},
    }))
}
