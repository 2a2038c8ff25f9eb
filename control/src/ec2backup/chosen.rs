//! Which volumes of a machine are backed up. Those that are not are recorded, with the reason.

use serde::Serialize;

use crate::aws::describe::{Attached, Machine, VolumeFacts};

/// What the user leaves out.
#[derive(Clone, Debug, Default)]
pub struct Exclude {
    /// Volume ids.
    pub volumes: Vec<String>,
    /// Device names, with or without `/dev/`; `/dev/sdf` also means `xvdf`.
    pub devices: Vec<String>,
    /// Tags of volumes.
    pub tags: Vec<(String, String)>,
    /// Volumes of more GiB.
    pub larger_than_gib: Option<u64>,
}

/// A volume that is left out.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Excluded {
    /// `vol-…`.
    pub volume: String,
    /// `/dev/sdf`.
    pub device: String,
    /// Why.
    pub why: String,
}

/// A volume that is backed up.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Where it is.
    pub attached: Attached,
    /// What it is.
    pub facts: VolumeFacts,
}

/// Parts a machine's volumes, in the order of its devices.
pub fn choose(machine: &Machine, facts: &[VolumeFacts], exclude: &Exclude) -> (Vec<Chosen>, Vec<Excluded>) {
    let mut chosen = Vec::new();
    let mut excluded = Vec::new();
    for attached in &machine.attached {
        let Some(facts) = facts.iter().find(|f| f.id == attached.volume) else { continue };
        match exclude.reason(attached, facts) {
            Some(why) => excluded.push(Excluded {
                volume: attached.volume.clone(),
                device: attached.device.clone(),
                why,
            }),
            None => chosen.push(Chosen { attached: attached.clone(), facts: facts.clone() }),
        }
    }
    (chosen, excluded)
}

impl Exclude {
    fn reason(&self, attached: &Attached, facts: &VolumeFacts) -> Option<String> {
        if self.volumes.contains(&attached.volume) {
            return Some("by its id".into());
        }
        if self.devices.iter().any(|device| same_device(device, &attached.device)) {
            return Some("by its device".into());
        }
        if let Some((key, value)) = self.tags.iter().find(|(key, value)| facts.tags.get(key) == Some(value)) {
            return Some(format!("by its tag {key}={value}"));
        }
        let most = self.larger_than_gib.filter(|most| facts.size_gib > *most)?;
        Some(format!("it has more than {most} GiB"))
    }
}

fn same_device(one: &str, other: &str) -> bool {
    let letters = |name: &str| {
        let name = name.trim_start_matches("/dev/");
        name.trim_start_matches("xvd").trim_start_matches("sd").to_owned()
    };
    one == other || letters(one) == letters(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn volume(id: &str, size_gib: u64, tag: Option<(&str, &str)>) -> VolumeFacts {
        VolumeFacts {
            id: id.into(),
            size_gib,
            kind: "gp3".into(),
            state: "in-use".into(),
            encrypted: false,
            tags: tag.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            attachments: Vec::new(),
            whole: Value::Null,
        }
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        let attached = |device: &str, volume: &str, root| Attached {
            device: device.into(),
            volume: volume.into(),
            root,
        };
        let machine = Machine {
            id: "i-1".into(),
            tags: Default::default(),
            instance_type: String::new(),
            zone: String::new(),
            state: String::new(),
            platform: String::new(),
            image: None,
            root_device: "/dev/xvda".into(),
            attached: vec![
                attached("/dev/xvda", "vol-1", true),
                attached("/dev/sdf", "vol-2", false),
                attached("/dev/sdg", "vol-3", false),
                attached("/dev/sdh", "vol-4", false),
            ],
            whole: Value::Null,
        };
        let facts = [
            volume("vol-1", 8, None),
            volume("vol-2", 1, None),
            volume("vol-3", 1, Some(("a", "b"))),
            volume("vol-4", 99, None),
        ];
        let exclude = Exclude {
            devices: vec!["xvdf".into()],
            tags: vec![("a".into(), "b".into())],
            larger_than_gib: Some(50),
            ..Exclude::default()
        };
        let (chosen, excluded) = choose(&machine, &facts, &exclude);
        assert_eq!(chosen.iter().map(|c| c.facts.id.as_str()).collect::<Vec<_>>(), ["vol-1"]);
        assert_eq!(excluded.len(), 3);
        assert!(excluded[2].why.contains("50 GiB"), "{excluded:?}");
    }
}
