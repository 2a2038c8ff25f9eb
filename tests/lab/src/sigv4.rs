//! Signature version 4, checked.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::access::Key;
use crate::http::Request;

/// What stays as it is in canonical requests.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Instead of a hash of the body.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
/// The same in paths.
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// The parts of an `Authorization` header.
#[derive(Debug, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// Access key.
    pub key_id: &'a str,
    /// `20260804`.
    pub date: &'a str,
    /// `us-east-1`.
    pub region: &'a str,
    /// `ec2`, `ebs`, `sts`.
    pub service: &'a str,
    signed: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Of a header's value.
    pub fn parse(header: &'a str) -> Option<Self> {
        let rest = header.strip_prefix("AWS4-HMAC-SHA256")?;
        let part = |name: &str| {
            let mut parts = rest.split(',').map(str::trim);
            parts.find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
        };
        let mut scope = part("Credential")?.split('/');
        let (key_id, date, region, service) = (scope.next()?, scope.next()?, scope.next()?, scope.next()?);
        if scope.next() != Some("aws4_request") {
            return None;
        }
        Some(Self {
            key_id,
            date,
            region,
            service,
            signed: part("SignedHeaders")?,
            signature: part("Signature")?,
        })
    }
}

fn mac(key: &[u8], message: &str) -> Vec<u8> {
    // HMAC takes keys of any length
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn canonical_query(query: &str) -> String {
    let recode = |text: &str| {
        let bytes: Vec<u8> = percent_decode_str(text).collect();
        percent_encoding::percent_encode(&bytes, UNRESERVED).to_string()
    };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (recode(name), recode(value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Whether a request is signed with a key. What is wrong, if it is not.
pub fn verify(request: &Request, authorization: &Authorization<'_>, key: &Key) -> Result<(), String> {
    let date = request.header("x-amz-date").ok_or("there is no X-Amz-Date")?;
    if !date.starts_with(authorization.date) {
        return Err("the date of the credential scope is not that of X-Amz-Date".into());
    }
    if request.header("x-amz-security-token") != key.session_token.as_deref() {
        return Err("the session token does not belong to the key".into());
    }
    let hash = || hex::encode(Sha256::digest(&request.body));
    let signs =
        |payload: &str| Ok(signature(request, authorization, key, date, payload)? == authorization.signature);
    let right: Result<bool, String> = match request.header("x-amz-content-sha256") {
        Some(UNSIGNED) => signs(UNSIGNED),
        Some(said) if said != hash() => return Err("x-amz-content-sha256 is not the hash of the body".into()),
        Some(said) => signs(said),
        // blocks may be sent without their hash in the signature; not every client says so
        None if request.method == "PUT" && authorization.service == "ebs" && signs(UNSIGNED)? => Ok(true),
        None => signs(&hash()),
    };
    match right? {
        true => Ok(()),
        false => Err("The request signature we calculated does not match the signature you provided".into()),
    }
}

/// The signature of a request with this hash of its body.
fn signature(
    request: &Request,
    authorization: &Authorization<'_>,
    key: &Key,
    date: &str,
    payload: &str,
) -> Result<String, String> {
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method,
        utf8_percent_encode(&request.path, PATH),
        canonical_query(&request.query)
    );
    for name in authorization.signed.split(';') {
        let value = request.header(name).ok_or_else(|| format!("the signed header {name} is missing"))?;
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        canonical.push_str(&format!("{name}:{value}\n"));
    }
    if !authorization.signed.split(';').any(|name| name == "host") {
        return Err("the header host is not signed".into());
    }
    canonical.push_str(&format!("\n{}\n{payload}", authorization.signed));
    let Authorization { date: day, region, service, .. } = authorization;
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{day}/{region}/{service}/aws4_request\n{}",
        hex::encode(Sha256::digest(canonical.as_bytes()))
    );
    let mut signing = mac(format!("AWS4{}", key.secret).as_bytes(), day);
    for part in [region, service, &"aws4_request"] {
        signing = mac(&signing, part);
    }
    Ok(hex::encode(mac(&signing, &text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "get-vanilla" and "get-vanilla-query-order-key-case" of the suite that AWS publishes.
    #[test]
    fn published_examples() {
        let key = Key {
            id: "AKIDEXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
            arn: None,
            policy: None,
            expires_ms: None,
        };
        let sign = |query: &str, signature: &str| {
            let header = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
            let request = Request::get("/", query, &headers);
            verify(&request, &Authorization::parse(&header).unwrap(), &key)
        };
        let vanilla = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        assert_eq!(sign("", vanilla), Ok(()));
        assert!(sign("a=b", vanilla).is_err());
        let ordered = "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";
        assert_eq!(sign("Param2=value2&Param1=value1", ordered), Ok(()));
    }
}
