//! Rules of security groups.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Region, Tags, tag_set};

/// Where traffic comes from, or goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Peer {
    /// `0.0.0.0/0`.
    Ipv4(String),
    /// `::/0`.
    Ipv6(String),
    /// `sg-…`.
    Group(String),
    /// `pl-…`.
    PrefixList(String),
}

/// What a rule lets through: one protocol, one range of ports, one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, a number, or `-1` for all.
    pub protocol: String,
    /// First port, or type of ICMP.
    pub from_port: Option<i32>,
    /// Last port, or code of ICMP.
    pub to_port: Option<i32>,
    /// The other side.
    pub peer: Peer,
}

/// A rule of a security group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupRule {
    /// `sgr-…`.
    pub id: String,
    /// What it lets through.
    pub permission: Permission,
    /// For people.
    pub description: Option<String>,
    /// Its tags.
    pub tags: Tags,
}

impl Permission {
    /// Everything, with this peer.
    pub fn all(peer: Peer) -> Self {
        Self { protocol: "-1".into(), from_port: None, to_port: None, peer }
    }

    /// As AWS names it in refusals.
    pub fn words(&self) -> String {
        let peer = match &self.peer {
            Peer::Ipv4(text) | Peer::Ipv6(text) | Peer::Group(text) | Peer::PrefixList(text) => text,
        };
        let protocol = if self.protocol == "-1" { "ALL".into() } else { self.protocol.to_uppercase() };
        let ports = match (self.from_port, self.to_port) {
            (Some(from), Some(to)) => format!("from port: {from}, to port: {to}, "),
            _ => String::new(),
        };
        format!("peer: {peer}, {protocol}, {ports}ALLOW")
    }
}

/// `10.1.2.3/8` as it is kept: `10.0.0.0/8`. `None` if it is no range of addresses.
pub fn ipv4_range(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let bits = bits.parse::<u32>().ok().filter(|bits| *bits <= 32)?;
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    Some(format!("{}/{bits}", Ipv4Addr::from(address & mask)))
}

/// Rules as `ipPermissions`: those of one protocol and range of ports together.
pub fn permission_set<'r>(
    rules: impl IntoIterator<Item = (&'r Permission, Option<&'r String>)>,
    region: &Region,
) -> Value {
    let mut sets: Vec<(&Permission, [Vec<Value>; 4])> = Vec::new();
    for (permission, description) in rules {
        let key = |p: &Permission| (p.protocol.clone(), p.from_port, p.to_port);
        let at = sets.iter().position(|(first, _)| key(first) == key(permission)).unwrap_or_else(|| {
            sets.push((permission, Default::default()));
            sets.len() - 1
        });
        let (list, mut item) = match &permission.peer {
            Peer::Ipv4(cidr) => (0, json!({"cidrIp": cidr})),
            Peer::Ipv6(cidr) => (1, json!({"cidrIpv6": cidr})),
            Peer::Group(id) => (2, json!({"groupId": id, "userId": region.account})),
            Peer::PrefixList(id) => (3, json!({"prefixListId": id})),
        };
        item["description"] = json!(description);
        sets[at].1[list].push(item);
    }
    let set = |(first, [ipv4, ipv6, groups, lists]): (&Permission, [Vec<Value>; 4])| {
        json!({
            "ipProtocol": first.protocol, "fromPort": first.from_port, "toPort": first.to_port,
            "ipRanges": ipv4, "ipv6Ranges": ipv6, "groups": groups, "prefixListIds": lists,
        })
    };
    sets.into_iter().map(set).collect()
}

impl GroupRule {
    fn plain(&self, group: &str, egress: bool) -> Value {
        let mut xml = json!({
            "securityGroupRuleId": self.id, "groupId": group, "isEgress": egress,
            "ipProtocol": self.permission.protocol,
            // -1 where there are no ports
            "fromPort": self.permission.from_port.unwrap_or(-1), "toPort": self.permission.to_port.unwrap_or(-1),
            "description": self.description,
        });
        match &self.permission.peer {
            Peer::Ipv4(cidr) => xml["cidrIpv4"] = json!(cidr),
            Peer::Ipv6(cidr) => xml["cidrIpv6"] = json!(cidr),
            Peer::PrefixList(id) => xml["prefixListId"] = json!(id),
            Peer::Group(_) => {}
        }
        xml
    }

    /// As an answer shows a rule that was made.
    pub fn made_xml(&self, region: &Region, group: &str, egress: bool) -> Value {
        let mut xml = self.plain(group, egress);
        xml["groupOwnerId"] = json!(region.account);
        let arn = format!("arn:aws:ec2:{}:{}:security-group-rule/{}", region.name, region.account, self.id);
        xml["securityGroupRuleArn"] = json!(arn);
        xml["tagSet"] = if self.tags.is_empty() { Value::Null } else { tag_set(&self.tags) };
        if let Peer::Group(id) = &self.permission.peer {
            xml["referencedGroupInfo"] = json!({"groupId": id, "userId": region.account});
        }
        xml
    }

    /// As an answer shows a rule that was taken away.
    pub fn revoked_xml(&self, group: &str, egress: bool) -> Value {
        let mut xml = self.plain(group, egress);
        if let Peer::Group(id) = &self.permission.peer {
            xml["referencedGroupId"] = json!(id);
        }
        xml
    }
}

#[cfg(test)]
mod tests {
    use super::ipv4_range;

    #[test]
    fn ranges_lose_the_bits_of_hosts() {
        assert_eq!(ipv4_range("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(ipv4_range("10.1.2.3/32").as_deref(), Some("10.1.2.3/32"));
        assert_eq!(ipv4_range("10.1.2.3/0").as_deref(), Some("0.0.0.0/0"));
        for wrong in ["10.1.2.3", "10.1.2/8", "10.1.2.3/33", "::/0", "x/8"] {
            assert_eq!(ipv4_range(wrong), None, "{wrong}");
        }
    }
}
