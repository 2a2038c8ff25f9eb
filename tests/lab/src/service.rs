//! Which service a request is for, who asks, and what is put in its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::access::Caller;
use crate::api::{ApiError, ApiResult, Params, xml};
use crate::calls::CallRecord;
use crate::core::Core;
use crate::faults::Fault;
use crate::http::{Answer, Outcome, Request};
use crate::sigv4::{self, Authorization};
use crate::{admin, clock, ebs, ec2, imds, sts};

/// A service with signed requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// EC2 Query API.
    Ec2,
    /// EBS direct APIs.
    Ebs,
    /// Security tokens.
    Sts,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Ebs => "ebs",
            Self::Sts => "sts",
        }
    }

    /// An error, as this service writes it.
    pub fn error(self, error: &ApiError, request_id: &str) -> Answer {
        let answer = match self {
            Self::Ec2 => {
                let body = xml::ec2_error(&error.code, &error.message, request_id);
                Answer::new(error.status, "text/xml;charset=UTF-8", body)
            }
            Self::Sts => {
                let body = xml::sts_error(error.status, &error.code, &error.message, request_id);
                Answer::new(error.status, "text/xml", body)
            }
            Self::Ebs => {
                let mut body = json!({"Message": error.message});
                if let Some(reason) = error.reason {
                    body["Reason"] = json!(reason);
                }
                let answer = Answer::new(error.status, "application/json", body.to_string());
                answer.with("x-amzn-ErrorType", &error.code)
            }
        };
        answer.with("x-amzn-RequestId", request_id)
    }

    fn throttled(self) -> ApiError {
        match self {
            Self::Ec2 => ApiError::new(503, "RequestLimitExceeded", "Request limit exceeded."),
            Self::Ebs => ebs::throttled("ACCOUNT_THROTTLED"),
            Self::Sts => ApiError::new(400, "Throttling", "Rate exceeded"),
        }
    }

    fn broken(self, status: u16) -> ApiError {
        match (self, status) {
            (Self::Ec2, 503) => {
                ApiError::new(503, "Unavailable", "The service is unavailable. Please try again shortly.")
            }
            (Self::Ec2, _) => ApiError::new(status, "InternalError", "An internal error has occurred"),
            (Self::Ebs, _) => {
                ApiError::new(status, "InternalServerException", "An internal error has occurred.")
            }
            (Self::Sts, _) => ApiError::new(status, "InternalFailure", "An internal error has occurred."),
        }
    }
}

/// Answers a request.
pub fn handle(core: &Arc<Core>, request: &Request) -> Outcome {
    if request.path.starts_with("/lab/") {
        return Outcome::Answer(admin::handle(core, request));
    }
    if request.path.starts_with("/latest/") {
        return Outcome::Answer(imds::handle(core, request));
    }
    let authorization = request.header("authorization").and_then(Authorization::parse);
    let of_snapshots = request.path.starts_with("/snapshots");
    // What the EBS direct APIs are sent is JSON, or a block.
    let is_form = request.method != "GET" && !of_snapshots;
    let params = Params::parse(if is_form { &request.body } else { request.query.as_bytes() });
    let service = if of_snapshots {
        Service::Ebs
    } else if authorization.as_ref().is_some_and(|a| a.service == "sts")
        || params.get("Version") == Some("2011-06-15")
    {
        Service::Sts
    } else {
        Service::Ec2
    };
    let request_id = core.request_id();
    let action = match service {
        Service::Ebs => ebs::action(request).to_owned(),
        _ => params.get("Action").unwrap_or_default().to_owned(),
    };
    params.get("Version");
    let names = |what: &str| {
        request.path.contains(what)
            || request.query.contains(what)
            || params.names().any(|name| params.get(name) == Some(what))
    };
    let fault = core.faults.strike(&action, names);
    let done = match &fault {
        Some(Fault::Hang { .. } | Fault::Drop) => None,
        fault => {
            if let Some(Fault::Delay { ms }) = fault {
                std::thread::sleep(Duration::from_millis(*ms));
            }
            let asked = Asked {
                core,
                request,
                service,
                action: &action,
                request_id: &request_id,
                fault: fault.as_ref(),
            };
            Some(asked.answer(authorization.as_ref(), &params))
        }
    };
    record(
        core,
        request,
        (service, &action, &request_id),
        authorization.as_ref(),
        &params,
        fault.as_ref(),
        done.as_ref(),
    );
    match (fault, done) {
        (Some(Fault::Hang { ms }), _) => Outcome::Hang(ms),
        (Some(Fault::LostReply), _) | (_, None) => Outcome::Close,
        (Some(Fault::Truncate), Some(done)) => Outcome::Half(into_answer(core, service, done, &request_id)),
        (_, Some(done)) => Outcome::Answer(into_answer(core, service, done, &request_id)),
    }
}

fn into_answer(core: &Core, service: Service, done: ApiResult<Answer>, request_id: &str) -> Answer {
    let answer = match done {
        Ok(answer) => answer.with("x-amzn-RequestId", request_id),
        Err(error) => service.error(&error, request_id),
    };
    answer.with("Date", clock::http_date(core.clock.now_ms()))
}

struct Asked<'a> {
    core: &'a Arc<Core>,
    request: &'a Request,
    service: Service,
    action: &'a str,
    request_id: &'a str,
    fault: Option<&'a Fault>,
}

impl Asked<'_> {
    fn answer(&self, authorization: Option<&Authorization<'_>>, params: &Params) -> ApiResult<Answer> {
        match self.fault {
            Some(Fault::Throttle) => return Err(self.service.throttled()),
            Some(Fault::ServerError { status }) => return Err(self.service.broken(*status)),
            Some(Fault::Refuse { status, code, message }) => {
                return Err(ApiError::new(*status, code, message));
            }
            _ => {}
        }
        let caller = self.caller(authorization)?;
        let region = authorization.map_or(self.core.options.region.as_str(), |a| a.region);
        let ends_in_error = self.fault == Some(&Fault::EndsInError);
        match self.service {
            Service::Ec2 => {
                let call = ec2::Call::new(self.core, params, &caller, region, self.action, ends_in_error);
                let body = ec2::answer(&call)?;
                let text = xml::ec2(self.action, self.request_id, &body);
                Ok(Answer::new(200, "text/xml;charset=UTF-8", text))
            }
            Service::Sts => {
                let body = sts::answer(self.core, &caller, self.action, params)?;
                Ok(Answer::new(200, "text/xml", xml::sts(self.action, self.request_id, &body)))
            }
            Service::Ebs => {
                let corrupt = self.fault == Some(&Fault::Corrupt);
                let call = ebs::Call {
                    core: self.core,
                    request: self.request,
                    caller: &caller,
                    region,
                    corrupt,
                    ends_in_error,
                };
                ebs::answer(&call, self.action)
            }
        }
    }

    /// Who signed.
    fn caller(&self, authorization: Option<&Authorization<'_>>) -> ApiResult<Caller> {
        let refuse = |code: [&str; 2], message: &str| {
            let (code, status) = match self.service {
                Service::Ec2 => (code[0], 401),
                _ => (code[1], 403),
            };
            Err(ApiError::new(status, code, message))
        };
        let Some(authorization) = authorization else {
            return refuse(
                ["AuthFailure", "MissingAuthenticationTokenException"],
                "AWS was not able to validate the provided access credentials: no signature",
            );
        };
        if authorization.service != self.service.name() {
            let message =
                format!("Credential should be scoped to correct service: '{}'. ", self.service.name());
            return refuse(["SignatureDoesNotMatch", "InvalidSignatureException"], &message);
        }
        let Some(key) = self.core.access.key(authorization.key_id) else {
            return refuse(
                [
                    "AuthFailure",
                    if self.service == Service::Sts {
                        "InvalidClientTokenId"
                    } else {
                        "UnrecognizedClientException"
                    },
                ],
                "AWS was not able to validate the provided access credentials: the security token included in the request is invalid",
            );
        };
        if key.expires_ms.is_some_and(|at| at < self.core.clock.now_ms()) {
            let code = if self.service == Service::Ec2 { "RequestExpired" } else { "ExpiredTokenException" };
            return Err(ApiError::new(400, code, "The security token included in the request is expired"));
        }
        let now_ms = self.core.clock.now_ms();
        let most_ms = self.core.settings().limits.signature_ms;
        let signed_ms = self.request.header("x-amz-date").and_then(clock::of_signature).unwrap_or(0);
        if most_ms > 0 && (signed_ms - now_ms).abs() > most_ms {
            let (code, status) = match self.service {
                Service::Ec2 => ("RequestExpired", 400),
                Service::Sts => ("SignatureDoesNotMatch", 403),
                Service::Ebs => ("InvalidSignatureException", 403),
            };
            let (signed, now) = (clock::iso(signed_ms), clock::iso(now_ms));
            let message = format!("Signature expired: {signed} is not within {most_ms} ms of {now}");
            return Err(ApiError::new(status, code, message));
        }
        if self.core.options.verify_signatures
            && let Err(wrong) = sigv4::verify(self.request, authorization, &key)
        {
            let other = match self.service {
                Service::Sts => "SignatureDoesNotMatch",
                _ => "InvalidSignatureException",
            };
            return refuse(["AuthFailure", other], &wrong);
        }
        Ok(self.core.access.caller(&key))
    }
}

fn record(
    core: &Core,
    request: &Request,
    (service, action, request_id): (Service, &str, &str),
    authorization: Option<&Authorization<'_>>,
    params: &Params,
    fault: Option<&Fault>,
    done: Option<&ApiResult<Answer>>,
) {
    let (status, code) = match done {
        Some(Ok(answer)) => (answer.status, None),
        Some(Err(error)) => (error.status, Some(error.code.clone())),
        None => (0, None),
    };
    let unread = match done {
        Some(Ok(_)) if service != Service::Ebs => params.unread(),
        _ => Vec::new(),
    };
    let params: BTreeMap<String, String> = if service == Service::Ebs {
        BTreeMap::from([("path".into(), request.path.clone()), ("query".into(), request.query.clone())])
    } else {
        params
            .names()
            .map(|name| (name.to_owned(), params.get(name).unwrap_or_default().to_owned()))
            .collect()
    };
    core.calls.add(CallRecord {
        at_ms: core.clock.now_ms(),
        service: service.name().into(),
        action: action.to_owned(),
        region: authorization.map(|a| a.region.to_owned()).unwrap_or_default(),
        key_id: authorization.map(|a| a.key_id.to_owned()).unwrap_or_default(),
        request_id: request_id.to_owned(),
        status,
        code,
        params,
        unread,
        fault: fault.map(|f| format!("{f:?}")),
    });
}
