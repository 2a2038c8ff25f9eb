//! What a recovery point says of the machine it is of: its configuration as AWS described it on that day, made ready for a launch.

use penstock_engine::format::point::RecoveryPoint;
use serde_json::Value;

use super::{Error, Result};
use crate::aws::attach::Form;
use crate::aws::tags::Tags;

/// Types of volumes whose IOPS are chosen.
const WITH_IOPS: [&str; 3] = ["gp3", "io1", "io2"];

/// A machine as it was.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Where it was.
    pub region: String,
    /// Its volumes that are in the recovery point, in the order of its devices.
    pub volumes: Vec<RecordedVolume>,
    /// The image of its root that was kept, in mode ami.
    pub kept_image: Option<String>,
    whole: Value,
}

/// A volume as it was.
#[derive(Clone, Debug)]
pub struct RecordedVolume {
    /// Its name in the recovery point: `vol-…`.
    pub id: String,
    /// `/dev/sdf`.
    pub device: String,
    /// The root.
    pub root: bool,
    /// Type and speed, and the key if it was encrypted.
    pub form: Form,
    /// Tags of the user.
    pub tags: Tags,
    /// Whether it goes with its instance.
    pub delete_on_termination: Option<bool>,
}

impl Recorded {
    /// Of a recovery point; an error if it is of no EC2 instance.
    pub fn of(point: &RecoveryPoint) -> Result<Self> {
        let Some(whole) = point.other.get("instance").filter(|v| v["id"].is_string()) else {
            return Err(Error::Refused(format!(
                "recovery point {} is not of an EC2 instance: restore its volumes by `penstock restore`, or name one with --volumes-only",
                point.id
            )));
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let described = |id: &str| whole["volumes"].as_array()?.iter().find(|v| v["volumeId"] == id).cloned();
        let mapped = |id: &str| {
            let mappings = whole["instance"]["blockDeviceMapping"].as_array()?;
            mappings.iter().find(|m| m["ebs"]["volumeId"] == id).cloned()
        };
        let mut volumes = Vec::new();
        for device in whole["devices"].as_array().into_iter().flatten() {
            let id = text(&device["volume"]);
            let facts = described(&id).unwrap_or_default();
            let mapping = mapped(&id).unwrap_or_default();
            volumes.push(RecordedVolume {
                device: text(&device["device"]),
                root: device["root"].as_bool().unwrap_or_default(),
                form: form(&facts),
                tags: tags(&facts["tagSet"]),
                delete_on_termination: flag(&mapping["ebs"]["deleteOnTermination"]),
                id,
            });
        }
        Ok(Self {
            region: text(&whole["region"]),
            volumes,
            kept_image: whole["kept_image"].as_str().map(str::to_owned),
            whole: whole.clone(),
        })
    }

    /// Something of the instance's description, by its names in the EC2 API.
    pub fn instance(&self, names: &[&str]) -> Option<String> {
        at(&self.whole["instance"], names)
    }

    /// The same, as a number.
    pub fn number(&self, names: &[&str]) -> Option<i32> {
        self.instance(names)?.parse().ok()
    }

    /// The same, as yes or no.
    pub fn flag(&self, names: &[&str]) -> bool {
        self.instance(names).as_deref() == Some("true")
    }

    /// Something of its image's description.
    pub fn image(&self, names: &[&str]) -> Option<String> {
        at(&self.whole["image"], names)
    }

    /// One of its attributes.
    pub fn attribute(&self, name: &str) -> Option<String> {
        at(&self.whole["attributes"], &[name])
    }

    /// Variables of its firmware.
    pub fn uefi_data(&self) -> Option<String> {
        at(&self.whole, &["uefi_data"]).filter(|text| !text.is_empty())
    }

    /// `name` of each item of one of its lists.
    pub fn list(&self, list: &str, name: &str) -> Vec<String> {
        let items = self.whole["instance"][list].as_array().into_iter().flatten();
        items.filter_map(|item| item[name].as_str().map(str::to_owned)).collect()
    }

    /// Tags of the user.
    pub fn tags(&self) -> Tags {
        tags(&self.whole["instance"]["tagSet"])
    }

    /// True for Windows, whose images made of snapshots do not launch.
    pub fn is_windows(&self) -> bool {
        let platform = self.instance(&["platformDetails"]).or_else(|| self.instance(&["platform"]));
        platform.unwrap_or_default().to_ascii_lowercase().contains("windows")
    }
}

fn at(value: &Value, names: &[&str]) -> Option<String> {
    let found = names.iter().fold(value, |value, name| &value[*name]);
    match found {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value.as_str() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => value.as_bool(),
    }
}

fn form(facts: &Value) -> Form {
    let number = |name: &str| at(facts, &[name]).and_then(|text| text.parse().ok());
    let kind = at(facts, &["volumeType"]).unwrap_or_else(|| "gp3".into());
    let encrypted = flag(&facts["encrypted"]) == Some(true);
    Form {
        iops: number("iops").filter(|_| WITH_IOPS.contains(&kind.as_str())),
        throughput: number("throughput").filter(|_| kind == "gp3"),
        key: encrypted.then(|| at(facts, &["kmsKeyId"]).unwrap_or_default()),
        kind,
    }
}

/// Those that may be set again: not AWS's own, and not this program's.
fn tags(set: &Value) -> Tags {
    let items = set.as_array().into_iter().flatten();
    items
        .filter_map(|tag| {
            let key = tag["key"].as_str()?;
            let own = key.starts_with("aws:") || key.starts_with("penstock:");
            (!own).then(|| (key.to_owned(), tag["value"].as_str().unwrap_or_default().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_is_read_from_what_aws_said() {
        let point = json!({"id": "0".repeat(32), "name": "i-1", "started_at": "", "finished_at": "", "parent": null,
            "tags": {}, "host": "h", "program": "p", "volumes": [],
            "instance": {"id": "i-1", "region": "eu-west-1", "kept_image": "ami-1",
                "instance": {"instanceType": "m5.large", "ebsOptimized": "true", "platformDetails": "Windows with SQL",
                    "groupSet": [{"groupId": "sg-1"}, {"groupId": "sg-2"}],
                    "blockDeviceMapping": [{"deviceName": "/dev/sda1", "ebs": {"volumeId": "vol-1", "deleteOnTermination": "false"}}],
                    "tagSet": [{"key": "Name", "value": "web"}, {"key": "aws:x", "value": "y"}, {"key": "penstock:run", "value": "z"}]},
                "devices": [{"volume": "vol-1", "device": "/dev/sda1", "root": true, "snapshot": "snap-1"}],
                "volumes": [{"volumeId": "vol-1", "volumeType": "gp2", "iops": "100", "encrypted": "true", "kmsKeyId": "arn:k",
                    "tagSet": [{"key": "a", "value": "b"}]}]}});
        let recorded = Recorded::of(&serde_json::from_value(point).unwrap()).unwrap();
        assert_eq!(recorded.tags(), Tags::from([("Name".into(), "web".into())]));
        assert_eq!(recorded.list("groupSet", "groupId"), ["sg-1", "sg-2"]);
        assert!(recorded.is_windows() && recorded.flag(&["ebsOptimized"]));
        let root = &recorded.volumes[0];
        assert_eq!((root.root, root.delete_on_termination), (true, Some(false)));
        assert_eq!(
            root.form,
            Form { kind: "gp2".into(), iops: None, throughput: None, key: Some("arn:k".into()) }
        );
        assert_eq!(root.tags["a"], "b");
    }
}
