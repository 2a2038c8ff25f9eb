//! The JSON of leases and of the records of garbage collection. `docs/CONCURRENCY.md` has the protocol.

use serde::{Deserialize, Serialize};

use super::header::ObjectKind;
use crate::error::{Error, Result};
use crate::id::{ObjectId, PointId};

/// Largest JSON that a reader accepts: some seven million packs.
pub const RECORD_BYTES_MAX: usize = 256 << 20;
/// Bytes of a lease's name that stay the same when it is renewed.
pub const WRITER_BYTES: usize = 14;

/// A run that writes: the first bytes of the names of its leases.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Writer([u8; WRITER_BYTES]);

impl Writer {
    /// Whose lease it is.
    pub fn of(lease: ObjectId) -> Self {
        let mut name = [0; WRITER_BYTES];
        name.copy_from_slice(&lease.as_bytes()[..WRITER_BYTES]);
        Self(name)
    }

    /// Name of the writer's lease after so many renewals.
    pub fn lease(self, renewals: u16) -> ObjectId {
        let mut bytes = [0; 16];
        bytes[..WRITER_BYTES].copy_from_slice(&self.0);
        bytes[WRITER_BYTES..].copy_from_slice(&renewals.to_be_bytes());
        ObjectId::new(bytes)
    }

    /// In records.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

/// What a lease says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseBody {
    /// Its name.
    pub id: String,
    /// `backup`, `copy`, `gc` or `repair`.
    pub purpose: String,
    /// The machine.
    pub host: String,
    /// Unix milliseconds when it was taken or last renewed, by the writer's clock.
    pub renewed_ms: u64,
    /// Boot of the machine and process namespace: where `pid` and `process_start` mean something.
    pub boot: String,
    /// Process.
    pub pid: u32,
    /// When the process started, in ticks since boot: pids are used again.
    pub process_start: u64,
}

/// Steps of a round of collection; the last byte of a record's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Packs that writers treat as absent from now on.
    Condemned = 0,
    /// Who may not know that yet.
    Fence = 1,
    /// What is deleted.
    Decided = 2,
}

/// Splits a record's name into its round (the name of the first stage) and its stage.
pub fn split_name(name: ObjectId) -> Option<(ObjectId, Stage)> {
    let mut bytes = *name.as_bytes();
    let stage = match std::mem::take(&mut bytes[15]) {
        0 => Stage::Condemned,
        1 => Stage::Fence,
        2 => Stage::Decided,
        _ => return None,
    };
    Some((ObjectId::new(bytes), stage))
}

/// Name of a stage of a round.
pub fn stage_name(round: ObjectId, stage: Stage) -> ObjectId {
    let mut bytes = *round.as_bytes();
    bytes[15] = stage as u8;
    ObjectId::new(bytes)
}

/// A pack in a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Pack {
    /// Data or metadata.
    pub kind: ObjectKind,
    /// Name.
    pub id: ObjectId,
}

impl Pack {
    /// Repository key.
    pub fn key(self) -> String {
        self.kind.key(&self.id.to_string())
    }
}

impl Serialize for Pack {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let letter = if self.kind == ObjectKind::Meta { 'm' } else { 'd' };
        serializer.collect_str(&format_args!("{letter}{}", self.id))
    }
}

impl<'de> Deserialize<'de> for Pack {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.split_at_checked(1).and_then(|(letter, id)| {
            let kind = match letter {
                "d" => ObjectKind::Data,
                "m" => ObjectKind::Meta,
                _ => return None,
            };
            Some(Pack { kind, id: ObjectId::from_hex(id)? })
        });
        parsed.ok_or_else(|| serde::de::Error::custom("a pack is `d` or `m` and 32 hex digits"))
    }
}

/// First stage of a round.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Condemned {
    /// Name of the record.
    pub id: String,
    /// Packs in which nothing is needed, or whose needed contents are elsewhere too.
    pub packs: Vec<Pack>,
    /// Packs that seemed needless while writers were under way, who may have just stored them.
    pub candidates: Vec<Pack>,
    /// Rounds that were not decided, and decisions, that the collector knew: what it took as elsewhere is not in their packs.
    pub knows: Vec<String>,
    /// The recovery points that were looked at: none of them needs a pack in `packs`.
    #[serde(with = "points_hex")]
    pub points: Vec<PointId>,
    /// The packs are damaged or lost and were put aside: all that can be read of them is elsewhere, and the round is
    /// decided only for those of them that no recovery point needs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// Second stage: the writers that were under way when the first one could be seen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fence {
    /// Name of the record.
    pub id: String,
    /// Writers, as [`Writer::to_hex`].
    pub writers: Vec<String>,
}

/// An entry of the log of decisions: what no recovery point needs, of rounds whose writers have ended. Each entry is made
/// with knowledge of all earlier ones, since its name is the next number and only one collector can put it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Decided {
    /// Name of the record.
    pub id: String,
    /// Unix milliseconds.
    pub decided_ms: u64,
    /// Packs to delete; those of the rounds' first stage that are not here are in use again.
    pub packs: Vec<Pack>,
    /// The rounds that are over with it.
    #[serde(default)]
    pub rounds: Vec<String>,
    /// The recovery points that were looked at: none of them needs a pack in `packs`.
    #[serde(default, with = "points_hex")]
    pub points: Vec<PointId>,
}

/// Name of an entry of the log of decisions. No round is named so: a round begins with the time, which is not 0.
pub fn decision_name(number: u64) -> ObjectId {
    let mut bytes = [0; 16];
    bytes[7..15].copy_from_slice(&number.to_be_bytes());
    bytes[15] = Stage::Decided as u8;
    ObjectId::new(bytes)
}

/// The number of an entry of the log of decisions; `None` for a record of a round.
pub fn decision_number(name: ObjectId) -> Option<u64> {
    let bytes = name.as_bytes();
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[7..15]);
    (bytes[..7] == [0; 7] && bytes[15] == Stage::Decided as u8).then(|| u64::from_be_bytes(number))
}

mod points_hex {
    use super::PointId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(points: &[PointId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(points.iter().map(PointId::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PointId>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let parsed = texts.iter().map(|text| PointId::from_hex(text));
        parsed.collect::<Option<_>>().ok_or_else(|| D::Error::custom("a point id that is not 32 hex digits"))
    }
}

/// Decodes a lease or record and checks that it is the one it is named as.
pub fn from_json<T: serde::de::DeserializeOwned>(
    object: &str,
    json: &[u8],
    id_of: impl Fn(&T) -> &str,
) -> Result<T> {
    let value: T = serde_json::from_slice(json).map_err(|e| Error::damaged(object, e))?;
    if !object.ends_with(&format!("/{}", id_of(&value))) {
        return Err(Error::damaged(object, format_args!("it calls itself {:?}: swapped", id_of(&value))));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_and_join() {
        let round = stage_name(ObjectId::at(77).unwrap(), Stage::Condemned);
        for stage in [Stage::Condemned, Stage::Fence, Stage::Decided] {
            assert_eq!(split_name(stage_name(round, stage)), Some((round, stage)));
        }
        for number in [0, 1, u64::MAX] {
            assert_eq!(decision_number(decision_name(number)), Some(number));
        }
        assert_eq!(decision_number(stage_name(round, Stage::Decided)), None);
        assert_eq!(decision_number(stage_name(decision_name(3), Stage::Fence)), None);
        let writer = Writer::of(ObjectId::at(5).unwrap());
        assert_eq!(Writer::of(writer.lease(9)), writer);
        assert!(writer.lease(1) < writer.lease(2));
    }

    #[test]
    fn records_survive_json_and_wrong_ones_are_damage() {
        let id = ObjectId::random().unwrap();
        let record = Condemned {
            id: id.to_string(),
            packs: vec![Pack { kind: ObjectKind::Data, id }, Pack { kind: ObjectKind::Meta, id }],
            candidates: Vec::new(),
            knows: vec![id.to_string()],
            points: vec![PointId::at(3).unwrap()],
            damaged: false,
        };
        let json = serde_json::to_vec(&record).unwrap();
        let object = format!("gc/{id}");
        let read = |object: &str, json: &[u8]| from_json(object, json, |r: &Condemned| &r.id);
        assert_eq!(read(&object, &json).unwrap(), record);
        assert!(!String::from_utf8_lossy(&json).contains("damaged"), "as programs before wrote it");
        let aside = Condemned { damaged: true, ..record.clone() };
        assert_eq!(read(&object, &serde_json::to_vec(&aside).unwrap()).unwrap(), aside);
        assert!(read("gc/00", &json).unwrap_err().is_damage());
        let text = String::from_utf8(json).unwrap();
        for wrong in [text.replace("\"d", "\"x"), text.replace("\"m", "\""), text.replace("packs", "pax")] {
            assert!(read(&object, wrong.as_bytes()).unwrap_err().is_damage());
        }
    }
}
