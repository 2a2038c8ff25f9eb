//! Rules of security groups: added and taken away.

use std::net::Ipv6Addr;

use serde_json::{Value, json};

use super::{Call, Target};
use crate::api::{ApiError, ApiResult, Params};
use crate::state::{GroupRule, Peer, Permission, Region, SecurityGroup, ipv4_range, permission_set};

/// A permission that a call names, and its description.
type Named = (Permission, Option<String>);

/// `tcp` for `6`, and so on; other numbers stay.
fn protocol(text: &str) -> ApiResult<String> {
    let lower = text.to_lowercase();
    Ok(match lower.as_str() {
        "tcp" | "6" => "tcp".into(),
        "udp" | "17" => "udp".into(),
        "icmp" | "1" => "icmp".into(),
        "icmpv6" | "58" => "icmpv6".into(),
        "-1" | "all" => "-1".into(),
        number if number.parse::<u8>().is_ok() => number.into(),
        _ => {
            let message = format!("Invalid value '{text}' for IP protocol. Unknown protocol.");
            return Err(ApiError::value(message));
        }
    })
}

fn ports(protocol: &str, from: Option<i32>, to: Option<i32>) -> ApiResult<(Option<i32>, Option<i32>)> {
    let wrong = |why: &str| {
        let shown = |port: Option<i32>| port.map_or_else(|| "null".to_owned(), |port| port.to_string());
        let message = format!("Invalid value '{}-{}' for portRange. {why}", shown(from), shown(to));
        ApiError::value(message)
    };
    match protocol {
        "tcp" | "udp" => match (from, to) {
            (Some(first), Some(last))
                if (0..=65_535).contains(&first) && (first..=65_535).contains(&last) =>
            {
                Ok((from, to))
            }
            (Some(_), Some(_)) => Err(wrong("Ports are from 0 to 65535, the first before the last.")),
            _ => Err(wrong("Must specify both from and to ports with TCP/UDP.")),
        },
        "icmp" | "icmpv6" => Ok((from.or(Some(-1)), to.or(Some(-1)))),
        // others have no ports, whatever is said
        _ => Ok((None, None)),
    }
}

fn malformed(cidr: &str) -> ApiError {
    ApiError::value(format!("CIDR block {cidr} is malformed"))
}

fn ipv6_range(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let address = address.parse::<Ipv6Addr>().ok()?;
    bits.parse::<u8>().ok().filter(|bits| *bits <= 128)?;
    Some(format!("{address}/{bits}"))
}

/// Peers of a permission.
fn peers(call: &Call<'_>, region: &Region, of: &Params, vpc: &str) -> ApiResult<Vec<(Peer, Option<String>)>> {
    let mut found = Vec::new();
    for range in of.structures("IpRanges") {
        let cidr = range.required("CidrIp")?;
        let kept = ipv4_range(cidr).ok_or_else(|| malformed(cidr))?;
        found.push((Peer::Ipv4(kept), range.text("Description")));
    }
    for range in of.structures("Ipv6Ranges") {
        let cidr = range.required("CidrIpv6")?;
        let kept = ipv6_range(cidr).ok_or_else(|| malformed(cidr))?;
        found.push((Peer::Ipv6(kept), range.text("Description")));
    }
    for pair in of.structures("Groups") {
        pair.get("UserId");
        pair.get("VpcId");
        let (id, name) = (pair.text("GroupId"), pair.text("GroupName"));
        let named = |g: &&SecurityGroup| {
            id.as_ref().map_or_else(|| Some(&g.name) == name.as_ref() && g.vpc_id == vpc, |id| *id == g.id)
        };
        let group = region.groups.values().find(named).ok_or_else(|| {
            let what = id.as_ref().or(name.as_ref()).map_or("", String::as_str);
            ApiError::not_found("InvalidGroup.NotFound", "security group", what)
        })?;
        found.push((Peer::Group(group.id.clone()), pair.text("Description")));
    }
    for list in of.structures("PrefixListIds") {
        found.push((Peer::PrefixList(list.required("PrefixListId")?.to_owned()), list.text("Description")));
    }
    if found.is_empty() && call.action.starts_with("Authorize") {
        return Err(ApiError::missing("IpPermissions.IpRanges"));
    }
    Ok(found)
}

/// What a call names, one for each peer: `IpPermissions.N`, or the few parameters that rules for what comes in had before.
fn named(call: &Call<'_>, region: &Region, vpc: &str, egress: bool) -> ApiResult<Vec<Named>> {
    let mut found = Vec::new();
    for of in call.params.structures("IpPermissions") {
        let protocol = protocol(of.required("IpProtocol")?)?;
        let (from_port, to_port) = ports(&protocol, of.number("FromPort")?, of.number("ToPort")?)?;
        for (peer, description) in peers(call, region, &of, vpc)? {
            found.push((Permission { protocol: protocol.clone(), from_port, to_port, peer }, description));
        }
    }
    if !egress && let Some(cidr) = call.params.get("CidrIp") {
        let protocol = protocol(call.params.required("IpProtocol")?)?;
        let (from, to) = (call.params.number("FromPort")?, call.params.number("ToPort")?);
        let (from_port, to_port) = ports(&protocol, from, to)?;
        let peer = Peer::Ipv4(ipv4_range(cidr).ok_or_else(|| malformed(cidr))?);
        found.push((Permission { protocol, from_port, to_port, peer }, None));
    }
    Ok(found)
}

/// Id of the group that a call is about.
fn group(call: &Call<'_>, region: &Region) -> ApiResult<String> {
    let (id, name) = (call.params.get("GroupId"), call.params.get("GroupName"));
    let what = id.or(name).ok_or_else(|| ApiError::missing("GroupId"))?;
    // names go for the default VPC
    let vpc = region.default_vpc();
    let named =
        |g: &&SecurityGroup| id.map_or(Some(g.name.as_str()) == name && g.vpc_id == vpc, |id| g.id == id);
    let found = region.groups.values().find(named);
    let missing = || ApiError::not_found("InvalidGroup.NotFound", "security group", what);
    Ok(found.ok_or_else(missing)?.id.clone())
}

fn nothing_named() -> ApiError {
    let message = "Either 'ipPermissions' or 'securityGroupRuleIds' should be provided.";
    ApiError::client("MissingParameter", message)
}

fn rules(group: &mut SecurityGroup, egress: bool) -> &mut Vec<GroupRule> {
    if egress { &mut group.egress } else { &mut group.ingress }
}

fn authorize(call: &Call<'_>, egress: bool) -> ApiResult<Value> {
    let tags = call.tags_for("security-group-rule")?;
    call.with(|region| {
        let id = group(call, region)?;
        let of = region.groups[&id].clone();
        let wanted = named(call, region, &of.vpc_id, egress)?;
        if wanted.is_empty() {
            return Err(nothing_named());
        }
        call.allow(&[Target::of("security-group", &id, &of.tags), Target::new("security-group-rule")])?;
        let mut all = of;
        let there = rules(&mut all, egress);
        let mut made = Vec::new();
        for (permission, description) in wanted {
            if there.iter().any(|rule| rule.permission == permission) {
                let message = format!("the specified rule \"{}\" already exists", permission.words());
                return Err(ApiError::client("InvalidPermission.Duplicate", message));
            }
            let rule = GroupRule { id: region.ids.id("sgr"), permission, description, tags: tags.clone() };
            made.push(rule.made_xml(region, &id, egress));
            there.push(rule);
        }
        let limit = call.settings.limits.group_rules;
        if limit > 0 && there.len() > limit {
            let message = "The maximum number of rules per security group has been reached.";
            return Err(ApiError::client("RulesPerSecurityGroupLimitExceeded", message));
        }
        region.groups.insert(id, all);
        Ok(json!({"return": true, "securityGroupRuleSet": made}))
    })
}

fn revoke(call: &Call<'_>, egress: bool) -> ApiResult<Value> {
    let ids = call.params.list("SecurityGroupRuleId");
    call.with(|region| {
        let id = group(call, region)?;
        let of = region.groups[&id].clone();
        let unwanted = named(call, region, &of.vpc_id, egress)?;
        if unwanted.is_empty() && ids.is_empty() {
            return Err(nothing_named());
        }
        if !unwanted.is_empty() && !ids.is_empty() {
            let message =
                "The parameters ipPermissions and securityGroupRuleIds may not be specified together";
            return Err(ApiError::combination(message));
        }
        let mut all = of.clone();
        let there = rules(&mut all, egress);
        let mut revoked = Vec::new();
        for rule in &ids {
            let Some(at) = there.iter().position(|r| r.id == *rule) else {
                let code = "InvalidSecurityGroupRuleId.NotFound";
                return Err(ApiError::not_found(code, "security group rule ID", rule));
            };
            revoked.push(there.remove(at));
        }
        let mut unknown = Vec::new();
        for (permission, description) in unwanted {
            match there.iter().position(|rule| rule.permission == permission) {
                Some(at) => revoked.push(there.remove(at)),
                None => unknown.push((permission, description)),
            }
        }
        call.allow(&[Target::of("security-group", &id, &of.tags)])?;
        // groups of a default VPC let it pass
        if !unknown.is_empty() && of.vpc_id != region.default_vpc() {
            let message = "The specified rule does not exist in this security group.";
            return Err(ApiError::client("InvalidPermission.NotFound", message));
        }
        region.groups.insert(id.clone(), all);
        let set: Vec<Value> = revoked.iter().map(|rule| rule.revoked_xml(&id, egress)).collect();
        let unknown = permission_set(unknown.iter().map(|(p, d)| (p, d.as_ref())), region);
        let unknown = if unknown.as_array().is_some_and(Vec::is_empty) { Value::Null } else { unknown };
        Ok(json!({"return": true, "unknownIpPermissionSet": unknown, "revokedSecurityGroupRuleSet": set}))
    })
}

pub(super) fn authorize_ingress(call: &Call<'_>) -> ApiResult<Value> {
    authorize(call, false)
}

pub(super) fn authorize_egress(call: &Call<'_>) -> ApiResult<Value> {
    authorize(call, true)
}

pub(super) fn revoke_ingress(call: &Call<'_>) -> ApiResult<Value> {
    revoke(call, false)
}

pub(super) fn revoke_egress(call: &Call<'_>) -> ApiResult<Value> {
    revoke(call, true)
}
