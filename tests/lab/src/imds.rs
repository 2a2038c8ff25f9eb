//! Instance metadata, version 2, of the proxy.

use serde_json::{Value, json};

use crate::access::PROXY_ROLE;
use crate::clock::iso;
use crate::core::Core;
use crate::http::{Answer, Request};

const TOKEN_MAX_SECONDS: i64 = 21_600;

fn text(body: impl Into<Vec<u8>>) -> Answer {
    Answer::new(200, "text/plain", body)
}

/// Answers a request.
pub fn handle(core: &Core, request: &Request) -> Answer {
    let now = core.clock.now_ms();
    if request.path == "/latest/api/token" {
        let seconds =
            request.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|s| s.parse::<i64>().ok());
        let Some(seconds) = seconds.filter(|s| (1..=TOKEN_MAX_SECONDS).contains(s)) else {
            return Answer::new(400, "text/plain", "");
        };
        if request.method != "PUT" {
            return Answer::new(405, "text/plain", "");
        }
        let token = format!("lab-{}", now + seconds * 1000);
        return text(token).with("x-aws-ec2-metadata-token-ttl-seconds", seconds.to_string());
    }
    let token =
        request.header("x-aws-ec2-metadata-token").and_then(|t| t.strip_prefix("lab-")?.parse::<i64>().ok());
    if token.is_none_or(|expires_ms| expires_ms < now) {
        return Answer::new(401, "text/plain", "");
    }
    document(core, request.path.trim_end_matches('/')).unwrap_or_else(|| Answer::new(404, "text/plain", ""))
}

fn document(core: &Core, path: &str) -> Option<Answer> {
    let now = core.clock.now_ms();
    let region = &core.options.region;
    let (proxy, zone_id) = core.with(region, |region| {
        let proxy = region.instances.values().find(|i| i.proxy).cloned()?;
        let zone_id = region.zone_id(&proxy.zone);
        Some((proxy, zone_id))
    })?;
    let role = proxy.profile.as_deref().unwrap_or(PROXY_ROLE);
    Some(match path.strip_prefix("/latest")? {
        "/meta-data/instance-id" => text(proxy.id),
        "/meta-data/instance-type" => text(proxy.instance_type),
        "/meta-data/ami-id" => text(proxy.image_id),
        "/meta-data/local-ipv4" => text(proxy.network.private_ip),
        "/meta-data/mac" => text("02:00:5e:10:00:01"),
        "/meta-data/placement/region" => text(region.clone()),
        "/meta-data/placement/availability-zone" => text(proxy.zone),
        "/meta-data/placement/availability-zone-id" => text(zone_id?),
        "/meta-data/services/partition" => text("aws"),
        "/meta-data/services/domain" => text("amazonaws.com"),
        "/meta-data/iam/info" => {
            let arn = format!("arn:aws:iam::{}:instance-profile/{role}", core.options.account);
            let info = json!({"Code": "Success", "InstanceProfileArn": arn, "InstanceProfileId": "AIPAPENSTOCKLAB000001"});
            Answer::new(200, "application/json", info.to_string())
        }
        "/meta-data/iam/security-credentials" | "/meta-data/iam/security-credentials-extended" => {
            text(role.to_owned())
        }
        "/dynamic/instance-identity/document" => {
            let some = |codes: &Vec<String>| if codes.is_empty() { Value::Null } else { json!(codes) };
            let document = json!({
                "accountId": core.options.account, "architecture": proxy.architecture,
                "availabilityZone": proxy.zone, "imageId": proxy.image_id, "instanceId": proxy.id,
                "instanceType": proxy.instance_type, "pendingTime": iso(proxy.launch_ms),
                "privateIp": proxy.network.private_ip, "region": region, "version": "2017-09-30",
                "billingProducts": some(&proxy.billing_products), "devpayProductCodes": null, "kernelId": null,
                "marketplaceProductCodes": some(&proxy.product_codes), "ramdiskId": null,
            });
            text(document.to_string())
        }
        other => {
            let named = other
                .strip_prefix("/meta-data/iam/security-credentials/")
                .or_else(|| other.strip_prefix("/meta-data/iam/security-credentials-extended/"))?;
            if named != role {
                return None;
            }
            let role = core.access.role(named)?;
            let expires_ms = now + 6 * 3_600_000;
            let key = core.access.session(&role, &proxy.id, expires_ms);
            let credentials = json!({
                "Code": "Success", "LastUpdated": iso(now), "Type": "AWS-HMAC",
                "AccessKeyId": key.id, "SecretAccessKey": key.secret, "Token": key.session_token,
                "Expiration": iso(expires_ms),
            });
            Answer::new(200, "application/json", credentials.to_string())
        }
    })
}
