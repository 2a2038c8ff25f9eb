//! Zones, VPCs, subnets, security groups, key pairs.

use serde::Serialize;
use serde_json::{Value, json};

use super::{GroupRule, Ids, Peer, Permission, Region, Tags, permission_set, tag_set};

/// An availability zone.
#[derive(Clone, Debug, Serialize)]
pub struct Zone {
    /// `us-east-1a`.
    pub name: String,
    /// `use1-az1`.
    pub id: String,
}

/// A VPC.
#[derive(Clone, Debug, Serialize)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: String,
    /// Its addresses.
    pub cidr: String,
    /// Whether it is the one that calls mean which name none.
    pub default: bool,
    /// Its tags.
    pub tags: Tags,
}

/// A subnet.
#[derive(Clone, Debug, Serialize)]
pub struct Subnet {
    /// `subnet-…`.
    pub id: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Its zone.
    pub zone: String,
    /// Its addresses.
    pub cidr: String,
    /// Whether instances without a subnet go there.
    pub default_for_zone: bool,
    /// Its tags.
    pub tags: Tags,
}

/// A security group.
#[derive(Clone, Debug, Serialize)]
pub struct SecurityGroup {
    /// `sg-…`.
    pub id: String,
    /// Unique in its VPC.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its VPC.
    pub vpc_id: String,
    /// What may come in.
    pub ingress: Vec<GroupRule>,
    /// What may go out.
    pub egress: Vec<GroupRule>,
    /// Its tags.
    pub tags: Tags,
}

/// A key pair.
#[derive(Clone, Debug, Serialize)]
pub struct KeyPair {
    /// `key-…`.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Its tags.
    pub tags: Tags,
}

impl Zone {
    /// Zone `letter` of a region, `number` of its ids.
    pub fn new(region: &str, letter: &str, number: u32) -> Self {
        let mut parts = region.split('-');
        let area = parts.next().unwrap_or_default();
        let side: String = parts.next().unwrap_or_default().chars().take(1).collect();
        let place = parts.next().unwrap_or_default();
        Self { name: format!("{region}{letter}"), id: format!("{area}{side}{place}-az{number}") }
    }

    /// As answers show it.
    pub fn xml(&self, region: &str) -> Value {
        json!({
            "zoneName": self.name,
            "zoneId": self.id,
            "zoneState": "available",
            "regionName": region,
            "zoneType": "availability-zone",
            "groupName": format!("{region}-zg-1"),
            "networkBorderGroup": region,
            "optInStatus": "opt-in-not-required",
            "messageSet": [],
        })
    }
}

impl Vpc {
    /// `172.31.0.0/16`.
    pub fn default_one(ids: &mut Ids) -> Self {
        Self { id: ids.id("vpc"), cidr: "172.31.0.0/16".into(), default: true, tags: Tags::new() }
    }

    /// As answers show it.
    pub fn xml(&self, owner: &str) -> Value {
        json!({
            "vpcId": self.id,
            "ownerId": owner,
            "state": "available",
            "cidrBlock": self.cidr,
            "isDefault": self.default,
            "instanceTenancy": "default",
            "dhcpOptionsId": "dopt-0a0a0a0a",
            "tagSet": tag_set(&self.tags),
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str) -> Option<Vec<String>> {
        Some(match name {
            "vpc-id" => vec![self.id.clone()],
            "state" => vec!["available".into()],
            "cidr" => vec![self.cidr.clone()],
            "is-default" | "isDefault" => vec![self.default.to_string()],
            _ => return None,
        })
    }
}

impl Subnet {
    /// `172.31.N.0/20`.
    pub fn default_one(ids: &mut Ids, vpc: &Vpc, zone: &Zone, number: u32) -> Self {
        Self {
            id: ids.id("subnet"),
            vpc_id: vpc.id.clone(),
            zone: zone.name.clone(),
            cidr: format!("172.31.{}.0/20", number * 16),
            default_for_zone: true,
            tags: Tags::new(),
        }
    }

    /// As answers show it.
    pub fn xml(&self, owner: &str, region: &str, zone_id: Option<String>) -> Value {
        json!({
            "subnetId": self.id,
            "subnetArn": format!("arn:aws:ec2:{region}:{owner}:subnet/{}", self.id),
            "ownerId": owner,
            "vpcId": self.vpc_id,
            "availabilityZone": self.zone,
            "availabilityZoneId": zone_id,
            "cidrBlock": self.cidr,
            "state": "available",
            "availableIpAddressCount": 4091,
            "defaultForAz": self.default_for_zone,
            "mapPublicIpOnLaunch": self.default_for_zone,
            "assignIpv6AddressOnCreation": false,
            "tagSet": tag_set(&self.tags),
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str) -> Option<Vec<String>> {
        Some(match name {
            "subnet-id" => vec![self.id.clone()],
            "vpc-id" => vec![self.vpc_id.clone()],
            "availability-zone" | "availabilityZone" => vec![self.zone.clone()],
            "state" => vec!["available".into()],
            "cidr-block" | "cidr" | "cidrBlock" => vec![self.cidr.clone()],
            "default-for-az" | "defaultForAz" => vec![self.default_for_zone.to_string()],
            _ => return None,
        })
    }
}

impl SecurityGroup {
    /// A group that lets everything out and nothing in.
    pub fn new(ids: &mut Ids, name: &str, description: &str, vpc_id: &str) -> Self {
        let id = ids.id("sg");
        let out = Permission::all(Peer::Ipv4("0.0.0.0/0".into()));
        let egress = vec![Self::first_rule(id.trim_start_matches("sg-").chars(), out)];
        Self {
            id,
            name: name.into(),
            description: description.into(),
            vpc_id: vpc_id.into(),
            ingress: Vec::new(),
            egress,
            tags: Tags::new(),
        }
    }

    /// The one that a VPC has from the start: it lets its members reach each other.
    pub fn default_one(ids: &mut Ids, vpc_id: &str) -> Self {
        let mut group = Self::new(ids, "default", "default VPC security group", vpc_id);
        let inside = Permission::all(Peer::Group(group.id.clone()));
        group.ingress.push(Self::first_rule(group.id.trim_start_matches("sg-").chars().rev(), inside));
        group
    }

    /// A rule that a group has from the start; its digits are those of the group.
    fn first_rule(digits: impl Iterator<Item = char>, permission: Permission) -> GroupRule {
        let id = format!("sgr-{}", digits.collect::<String>());
        GroupRule { id, permission, description: None, tags: Tags::new() }
    }

    /// Whether a rule of it names that group.
    pub fn refers_to(&self, group: &str) -> bool {
        let names = |rule: &GroupRule| matches!(&rule.permission.peer, Peer::Group(id) if id == group);
        self.ingress.iter().chain(&self.egress).any(names)
    }

    /// As answers show it.
    pub fn xml(&self, region: &Region) -> Value {
        let permissions = |rules: &[GroupRule]| {
            permission_set(rules.iter().map(|r| (&r.permission, r.description.as_ref())), region)
        };
        let arn = format!("arn:aws:ec2:{}:{}:security-group/{}", region.name, region.account, self.id);
        json!({
            "groupId": self.id,
            "groupName": self.name,
            "groupDescription": self.description,
            "securityGroupArn": arn,
            "vpcId": self.vpc_id,
            "ownerId": region.account,
            "ipPermissions": permissions(&self.ingress),
            "ipPermissionsEgress": permissions(&self.egress),
            "tagSet": tag_set(&self.tags),
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str) -> Option<Vec<String>> {
        Some(match name {
            "group-id" => vec![self.id.clone()],
            "group-name" => vec![self.name.clone()],
            "description" => vec![self.description.clone()],
            "vpc-id" => vec![self.vpc_id.clone()],
            _ => return None,
        })
    }
}

impl KeyPair {
    /// As answers show it.
    pub fn xml(&self) -> Value {
        json!({
            "keyPairId": self.id,
            "keyName": self.name,
            "keyType": "ed25519",
            "keyFingerprint": "sJhbeYVE3jkd7WTnbkKb0tQd/jOJBlfjIJRMcsvoYzU=",
            "tagSet": tag_set(&self.tags),
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str) -> Option<Vec<String>> {
        Some(match name {
            "key-name" => vec![self.name.clone()],
            "key-pair-id" => vec![self.id.clone()],
            _ => return None,
        })
    }
}
