//! The JSON of a recovery point: the document that says which volumes a machine had, and where their manifests begin.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::node::{LEVEL_MAX, NodeRef};
use crate::error::{Error, Result};
use crate::id::{NodeId, PointId};
use crate::limits::VOLUME_BYTES_MAX;

/// Largest JSON a reader accepts: thousands of volumes.
pub const POINT_BYTES_MAX: usize = 16 << 20;

/// One backup of one machine (or of one device).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Its own name, 32 hex digits.
    pub id: String,
    /// The machine, as given by `--name`.
    pub name: String,
    /// RFC 3339: the time the contents stand for (`--time`, or the start of the backup).
    pub started_at: String,
    /// RFC 3339.
    pub finished_at: String,
    /// The point it was compared with.
    pub parent: Option<String>,
    /// `--tag K=V`.
    pub tags: BTreeMap<String, String>,
    /// Host that ran the backup.
    pub host: String,
    /// Program and version.
    pub program: String,
    /// The volumes, in the order given.
    pub volumes: Vec<Volume>,
    /// Fields of later programs, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// One volume of a recovery point.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Unique within the point; what stands after the slash in `POINT/VOLUME`.
    pub name: String,
    /// Path it was read from.
    pub source: String,
    /// `device`, `image`, `stream` or `snapshot`.
    pub source_kind: String,
    /// Logical size.
    pub size_bytes: u64,
    /// Logical block size of the device.
    pub logical_block_bytes: u32,
    /// Top of the manifest tree.
    pub root: Root,
    /// What the backup did.
    pub counts: Counts,
    /// Fields of later programs, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Top of a manifest tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Root {
    /// 0: the node is a leaf.
    pub level: u8,
    /// `None`: all zero.
    #[serde(with = "node_hex")]
    pub node: NodeRef,
}

/// What a backup did with one volume, in bytes and chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Read from the source.
    pub read_bytes: u64,
    /// Zeros, and holes that were never read.
    pub zero_bytes: u64,
    /// Data that the parent or the repository had already.
    pub reused_bytes: u64,
    /// Data chunks in what was read.
    pub chunks: u64,
    /// Chunks that were not in the repository.
    pub new_chunks: u64,
    /// Their bytes before compression.
    pub new_bytes: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.read_bytes += other.read_bytes;
        self.zero_bytes += other.zero_bytes;
        self.reused_bytes += other.reused_bytes;
        self.chunks += other.chunks;
        self.new_chunks += other.new_chunks;
        self.new_bytes += other.new_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}

mod node_hex {
    use super::{NodeId, NodeRef};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(node: &NodeRef, serializer: S) -> Result<S::Ok, S::Error> {
        match node {
            Some(id) => serializer.serialize_str(&id.to_string()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeRef, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|hex| {
            NodeId::from_hex(&hex).ok_or_else(|| D::Error::custom("a node id that is not 64 hex digits"))
        })
        .transpose()
    }
}

impl RecoveryPoint {
    /// The bytes to seal.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::Invalid { what: format!("recovery point cannot be written as JSON: {e}") })
    }

    /// Decodes and checks the JSON of the point named `id`.
    pub fn from_json(object: &str, json: &[u8], id: &PointId) -> Result<RecoveryPoint> {
        let point: RecoveryPoint = serde_json::from_slice(json).map_err(|e| Error::damaged(object, e))?;
        if point.id != id.to_string() {
            return Err(Error::damaged(object, format_args!("it calls itself {}: swapped", point.id)));
        }
        for volume in &point.volumes {
            if volume.size_bytes > VOLUME_BYTES_MAX
                || volume.root.level > LEVEL_MAX
                || volume.root.level != root_level(volume.size_bytes)
            {
                return Err(Error::damaged(
                    object,
                    format_args!(
                        "volume {}: a manifest of level {} for {} bytes",
                        volume.name, volume.root.level, volume.size_bytes
                    ),
                ));
            }
        }
        Ok(point)
    }

    /// The volume called `name`.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }

    /// The id as a value; it was checked when the point was decoded.
    pub fn point_id(&self) -> Option<PointId> {
        PointId::from_hex(&self.id)
    }
}

/// Level of the root of a volume of `size_bytes`: the smallest at which one node covers all segments.
pub fn root_level(size_bytes: u64) -> u8 {
    let segments = segment_count(size_bytes);
    let mut level = 0;
    let mut covered = 1u64;
    while covered < segments {
        covered *= crate::limits::NODE_FANOUT as u64;
        level += 1;
    }
    level
}

/// Segments of a volume of `size_bytes`.
pub fn segment_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(crate::limits::SEGMENT_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_levels() {
        let segment = crate::limits::SEGMENT_BYTES as u64;
        for (segments, level) in [(0, 0), (1, 0), (2, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 3)] {
            assert_eq!(root_level(segments * segment), level, "{segments} segments");
        }
        assert_eq!(root_level(1), 0);
        assert!(root_level(VOLUME_BYTES_MAX) <= LEVEL_MAX);
    }

    #[test]
    fn unknown_fields_survive_and_wrong_levels_do_not() {
        let id = PointId::at(5).unwrap();
        let json = format!(
            r#"{{"id":"{id}","name":"n","started_at":"","finished_at":"","parent":null,"tags":{{}},"host":"h","program":"p",
            "instance":{{"type":"m7i.large"}},"volumes":[{{"name":"v","source":"s","source_kind":"image","size_bytes":5,
            "logical_block_bytes":512,"root":{{"level":0,"node":null}},"counts":{{"read_bytes":0,"zero_bytes":0,"reused_bytes":0,
            "chunks":0,"new_chunks":0,"new_bytes":0,"stored_bytes":0}}}}]}}"#
        );
        let point = RecoveryPoint::from_json("p", json.as_bytes(), &id).unwrap();
        assert!(String::from_utf8(point.to_json().unwrap()).unwrap().contains("m7i.large"));
        let wrong = json.replace("\"level\":0", "\"level\":1");
        assert!(RecoveryPoint::from_json("p", wrong.as_bytes(), &id).unwrap_err().is_damage());
        assert!(RecoveryPoint::from_json("p", json.as_bytes(), &PointId::at(6).unwrap()).is_err());
    }
}
