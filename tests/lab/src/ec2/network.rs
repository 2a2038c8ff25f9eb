//! Zones, regions, VPCs, subnets, security groups, key pairs: what a restore chooses from.

use serde_json::{Value, json};

use super::{Call, Target};
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::state::{SecurityGroup, Tags, tag_set};

/// How to get the id and the tags of something.
type Of<T> = (fn(&T) -> &str, fn(&T) -> &Tags);

/// One describe call of things without a life of their own: ids, filters, pages.
fn list<T: Clone>(
    call: &Call<'_>,
    all: Vec<T>,
    ids: (&str, &str, &str),
    of: Of<T>,
    known: &[&str],
    field: impl Fn(&T, &str) -> Option<Vec<String>>,
) -> ApiResult<(Vec<T>, Option<String>)> {
    let (parameter, code, noun) = ids;
    let filters = Filters::of(call.params)?;
    filters.check(known)?;
    let wanted = call.params.list(parameter);
    for id in &wanted {
        if !all.iter().any(|item| of.0(item) == id) {
            return Err(ApiError::not_found(code, noun, id));
        }
    }
    let mut found = Vec::new();
    for item in all {
        let named = wanted.is_empty() || wanted.iter().any(|id| id == of.0(&item));
        if named && filters.pass(of.1(&item), |name| field(&item, name))? {
            found.push(item);
        }
    }
    found.sort_by(|a, b| of.0(a).cmp(of.0(b)));
    let page =
        page::page(call.params, found, |item| of.0(item), (5, 1000), call.settings.limits.empty_page_every)?;
    Ok((page.items, page.next))
}

pub(super) fn zones(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    let filters = Filters::of(call.params)?;
    filters.check(&["zone-name", "zone-id", "region-name", "state", "zone-type", "opt-in-status"])?;
    let (names, ids) = (call.params.list("ZoneName"), call.params.list("ZoneId"));
    call.params.flag("AllAvailabilityZones")?;
    call.with(|region| {
        let unknown = names.iter().find(|n| !region.zones.iter().any(|z| z.name == **n));
        if let Some(name) = unknown.or_else(|| ids.iter().find(|i| !region.zones.iter().any(|z| z.id == **i)))
        {
            return Err(ApiError::value(format!("Invalid availability zone: [{name}]")));
        }
        let mut found = Vec::new();
        for zone in &region.zones {
            let named = (names.is_empty() || names.contains(&zone.name))
                && (ids.is_empty() || ids.contains(&zone.id));
            let field = |name: &str| {
                Some(vec![match name {
                    "zone-name" => zone.name.clone(),
                    "zone-id" => zone.id.clone(),
                    "region-name" => region.name.clone(),
                    "state" => "available".into(),
                    "zone-type" => "availability-zone".into(),
                    "opt-in-status" => "opt-in-not-required".into(),
                    _ => return None,
                }])
            };
            if named && filters.pass(&Tags::new(), field)? {
                found.push(zone.xml(&region.name));
            }
        }
        Ok(json!({"availabilityZoneInfo": found}))
    })
}

pub(super) fn regions(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.params.flag("AllRegions")?;
    let filters = Filters::of(call.params)?;
    filters.check(&["region-name", "endpoint", "opt-in-status"])?;
    let wanted = call.params.list("RegionName");
    let mut all = vec!["eu-central-1", "eu-west-1", "us-east-1", "us-east-2", "us-west-2"];
    let own = call.core.options.region.as_str();
    if !all.contains(&own) {
        all.push(own);
    }
    let mut found = Vec::new();
    for name in all {
        let field = |filter: &str| {
            Some(vec![match filter {
                "region-name" => name.to_owned(),
                "endpoint" => format!("ec2.{name}.amazonaws.com"),
                "opt-in-status" => "opt-in-not-required".into(),
                _ => return None,
            }])
        };
        if (wanted.is_empty() || wanted.iter().any(|w| w == name)) && filters.pass(&Tags::new(), field)? {
            let endpoint = format!("ec2.{name}.amazonaws.com");
            found.push(
                json!({"regionName": name, "regionEndpoint": endpoint, "optInStatus": "opt-in-not-required"}),
            );
        }
    }
    Ok(json!({"regionInfo": found}))
}

pub(super) fn vpcs(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.with(|region| {
        let all = region.vpcs.values().cloned().collect();
        let known = ["vpc-id", "state", "cidr", "is-default", "isDefault"];
        let ids = ("VpcId", "InvalidVpcID.NotFound", "vpc ID");
        let (found, next) = list(call, all, ids, (|v| &v.id, |v| &v.tags), &known, |v, name| v.field(name))?;
        let set: Vec<Value> = found.iter().map(|v| v.xml(&region.account)).collect();
        Ok(json!({"vpcSet": set, "nextToken": next}))
    })
}

pub(super) fn subnets(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.with(|region| {
        let all = region.subnets.values().cloned().collect();
        let known = [
            "subnet-id",
            "vpc-id",
            "availability-zone",
            "availabilityZone",
            "state",
            "cidr-block",
            "cidr",
            "cidrBlock",
            "default-for-az",
            "defaultForAz",
        ];
        let ids = ("SubnetId", "InvalidSubnetID.NotFound", "subnet ID");
        let (found, next) = list(call, all, ids, (|s| &s.id, |s| &s.tags), &known, |s, name| s.field(name))?;
        let xml = |s: &crate::state::Subnet| s.xml(&region.account, &region.name, region.zone_id(&s.zone));
        let set: Vec<Value> = found.iter().map(xml).collect();
        Ok(json!({"subnetSet": set, "nextToken": next}))
    })
}

pub(super) fn groups(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    let names = call.params.list("GroupName");
    call.with(|region| {
        // names go for the default VPC
        let vpc = region.default_vpc();
        let named = |g: &&SecurityGroup| names.is_empty() || (names.contains(&g.name) && g.vpc_id == vpc);
        let all: Vec<SecurityGroup> = region.groups.values().filter(named).cloned().collect();
        if let Some(name) = names.iter().find(|n| !all.iter().any(|g| g.name == **n)) {
            return Err(ApiError::not_found("InvalidGroup.NotFound", "security group", name));
        }
        let known = ["group-id", "group-name", "description", "vpc-id"];
        let ids = ("GroupId", "InvalidGroup.NotFound", "security group");
        let (found, next) = list(call, all, ids, (|g| &g.id, |g| &g.tags), &known, |g, name| g.field(name))?;
        let set: Vec<Value> = found.iter().map(|g| g.xml(region)).collect();
        Ok(json!({"securityGroupInfo": set, "nextToken": next}))
    })
}

pub(super) fn create_group(call: &Call<'_>) -> ApiResult<Value> {
    let name = call.params.required("GroupName")?;
    let description = call.params.required("GroupDescription")?;
    let tags = call.tags_for("security-group")?;
    call.with(|region| {
        let vpc_id = call.params.text("VpcId").unwrap_or_else(|| region.default_vpc());
        let Some(vpc) = region.vpcs.get(&vpc_id) else {
            return Err(ApiError::not_found("InvalidVpcID.NotFound", "vpc ID", &vpc_id));
        };
        call.allow(&[Target::new("security-group"), Target::of("vpc", &vpc_id, &vpc.tags)])?;
        if region.groups.values().any(|g| g.name == name && g.vpc_id == vpc_id) {
            let message = format!("The security group '{name}' already exists for VPC '{vpc_id}'");
            return Err(ApiError::client("InvalidGroup.Duplicate", message));
        }
        let mut group = SecurityGroup::new(&mut region.ids, name, description, &vpc_id);
        group.tags = tags;
        let arn = format!("arn:aws:ec2:{}:{}:security-group/{}", region.name, region.account, group.id);
        let answer = json!({"return": true, "groupId": group.id, "tagSet": tag_set(&group.tags), "securityGroupArn": arn});
        region.groups.insert(group.id.clone(), group);
        Ok(answer)
    })
}

pub(super) fn delete_group(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.get("GroupId");
    let name = call.params.get("GroupName");
    call.with(|region| {
        let vpc = region.default_vpc();
        let found = match (id, name) {
            (Some(id), _) => region.groups.get(id),
            (None, Some(name)) => region.groups.values().find(|g| g.name == name && g.vpc_id == vpc),
            (None, None) => return Err(ApiError::missing("GroupId")),
        };
        let what = id.or(name).unwrap_or_default();
        let group =
            found.ok_or_else(|| ApiError::not_found("InvalidGroup.NotFound", "security group", what))?;
        call.allow(&[Target::of("security-group", &group.id, &group.tags)])?;
        if group.name == "default" {
            let message = format!(
                "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                group.id
            );
            return Err(ApiError::client("CannotDelete", message));
        }
        let used = |i: &crate::state::Instance| {
            i.network.groups.contains(&group.id) && i.lifecycle.state(call.now).1 != "terminated"
        };
        let named = region.groups.values().any(|g| g.id != group.id && g.refers_to(&group.id));
        if named || region.instances.values().any(used) {
            let message = format!("resource {} has a dependent object", group.id);
            return Err(ApiError::client("DependencyViolation", message));
        }
        let id = group.id.clone();
        region.groups.remove(&id);
        Ok(json!({"return": true, "groupId": id}))
    })
}

pub(super) fn keys(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.params.flag("IncludePublicKey")?;
    call.with(|region| {
        let all = region.keys.values().cloned().collect();
        let known = ["key-name", "key-pair-id"];
        let ids = ("KeyName", "InvalidKeyPair.NotFound", "key pair");
        let (found, _) = list(call, all, ids, (|k| &k.name, |k| &k.tags), &known, |k, name| k.field(name))?;
        Ok(json!({"keySet": found.iter().map(crate::state::KeyPair::xml).collect::<Vec<_>>()}))
    })
}

pub(super) fn account(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    let wanted = call.params.list("AttributeName");
    call.with(|region| {
        let vpc = region.default_vpc();
        let all = [("supported-platforms", "VPC".to_owned()), ("default-vpc", vpc), ("max-instances", "20".into())];
        let named = all.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name));
        let attribute = |(name, value): &(&str, String)| {
            json!({"attributeName": name, "attributeValueSet": [{"attributeValue": value}]})
        };
        Ok(json!({"accountAttributeSet": named.map(attribute).collect::<Vec<_>>()}))
    })
}
