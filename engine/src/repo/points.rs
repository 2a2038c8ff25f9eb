//! Recovery points: listed, read, found by what people call them, published.

use super::Repository;
use crate::dated::{self, future_points};
use crate::error::{Error, Result};
use crate::fan;
use crate::format::header::ObjectKind;
use crate::format::pack::Codec;
use crate::format::point::{POINT_BYTES_MAX, RecoveryPoint};
use crate::id::PointId;
use crate::sealed;
use crate::store::{Body, PutOutcome, reread};

/// Times that a listed recovery point is read before the store's answer that it is not there is an error.
const LISTED_TRIES: u32 = 3;
/// Fewest characters of a recovery point's id that are accepted as a prefix.
const PREFIX_CHARS_MIN: usize = 4;
/// Ids named when a prefix is ambiguous.
const AMBIGUOUS_SHOWN: usize = 5;

/// A recovery point that was listed. Damaged ones are told, so that one of them never hides the others.
pub enum Listed {
    /// It can be read.
    Point(RecoveryPoint),
    /// It cannot.
    Damaged {
        /// Its name.
        id: String,
        /// Why.
        error: Error,
    },
}

impl Repository {
    /// Ids of all recovery points, oldest first.
    pub fn point_ids(&self) -> Result<Vec<PointId>> {
        let mut ids = Vec::new();
        self.store.list(ObjectKind::Point.prefix(), &mut |key, _| {
            let name = key.trim_start_matches(ObjectKind::Point.prefix());
            ids.extend(PointId::from_hex(name));
        })?;
        ids.sort();
        Ok(ids)
    }

    /// All recovery points, oldest first.
    pub fn points(&self) -> Result<Vec<Listed>> {
        self.read_points(&self.point_ids()?)
    }

    /// Reads points that were listed. Those that are gone were forgotten meanwhile, and are left out.
    pub fn read_points(&self, ids: &[PointId]) -> Result<Vec<Listed>> {
        let mut points = Vec::with_capacity(ids.len());
        let at_a_time = self.store.habits().parallel_reads;
        let fails = |read: &Result<_>| read.as_ref().is_err_and(|e| !is_of_one_point(e));
        let read = fan::map(ids, at_a_time, fails, |id| self.read_listed_point(*id));
        for (id, read) in ids.iter().zip(read) {
            match read {
                Ok(Some(point)) => points.push(Listed::Point(point)),
                Ok(None) => tracing::debug!("recovery point {id} was forgotten meanwhile"),
                Err(error @ (Error::Damaged { .. } | Error::Missing { .. } | Error::NewerVersion { .. })) => {
                    points.push(Listed::Damaged { id: id.to_string(), error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(points)
    }

    /// Reads a recovery point that was listed; `None` if it was forgotten since. A point that is listed, and that the store
    /// says is not there, is not taken for forgotten: one of the two answers is wrong.
    pub fn read_listed_point(&self, id: PointId) -> Result<Option<RecoveryPoint>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.read_point(id) {
                Ok(point) => return Ok(Some(point)),
                Err(error @ Error::Missing { .. }) => {
                    if !self.point_ids()?.contains(&id) {
                        return Ok(None);
                    }
                    if tries >= LISTED_TRIES {
                        return Err(error);
                    }
                    tracing::warn!("recovery point {id}: it is listed, but the store says it is not there");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one recovery point.
    pub fn read_point(&self, id: PointId) -> Result<RecoveryPoint> {
        let object = ObjectKind::Point.key(&id.to_string());
        reread(self.store.as_ref(), &object, || self.read_point_once(id, &object))
    }

    fn read_point_once(&self, id: PointId, object: &str) -> Result<RecoveryPoint> {
        let Some(mut bytes) = sealed::get(self.store.as_ref(), object, POINT_BYTES_MAX)? else {
            let object = object.to_owned();
            return Err(Error::Missing { object, needed_by: "the list of recovery points".into() });
        };
        let frame = sealed::decode(&self.keys, object, ObjectKind::Point, *id.as_bytes(), &mut bytes)?;
        let json = match frame.split_first() {
            Some((codec, json)) if *codec == Codec::Raw as u8 => json.to_vec(),
            Some((codec, packed)) if *codec == Codec::Zstd as u8 => {
                zstd::bulk::decompress(packed, POINT_BYTES_MAX).map_err(|e| Error::damaged(object, e))?
            }
            _ => return Err(Error::damaged(object, "an unknown codec")),
        };
        RecoveryPoint::from_json(object, &json, &id)
    }

    /// Publishes a recovery point with an id just drawn: the commit. Everything it refers to must be durable.
    pub fn publish(&self, point: &RecoveryPoint) -> Result<()> {
        match self.publish_if_absent(point)? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => {
                let object = ObjectKind::Point.key(&point.id);
                Err(Error::damaged(object, "a name just drawn was taken already"))
            }
        }
    }

    /// As [`publish`](Self::publish), for a point whose id is that of a point elsewhere: another copy of it may be there.
    pub fn publish_if_absent(&self, point: &RecoveryPoint) -> Result<PutOutcome> {
        let id = point
            .point_id()
            .ok_or_else(|| Error::Invalid { what: "a recovery point without an id".into() })?;
        let json = point.to_json()?;
        let packed = zstd::bulk::compress(&json, 3)
            .map_err(|e| Error::Invalid { what: format!("zstd cannot compress the recovery point: {e}") })?;
        let frame = [&[Codec::Zstd as u8], &packed[..]].concat();
        let bytes = sealed::encode(&self.keys, ObjectKind::Point, *id.as_bytes(), &frame)?;
        let object = ObjectKind::Point.key(&point.id);
        // What it refers to may be placed by index segments of others, who have not synced them yet or were killed
        // before.
        self.store.settle(ObjectKind::Index.prefix())?;
        fail::fail_point!("point-before-put");
        self.store.put_new(&object, Body::Bytes(&bytes))
    }

    /// The point that `text` means: `latest`, `latest:NAME`, an id, or a unique prefix of one.
    pub fn resolve(&self, text: &str) -> Result<RecoveryPoint> {
        let ids = self.point_ids()?;
        if let Some(name) = latest_name(text) {
            return self.latest(text, &ids, name);
        }
        let id = self.find_id(text, &ids)?;
        self.read_point(id).map_err(|error| match error {
            Error::Missing { .. } => Error::NoSuchPoint { what: format!("{id} was forgotten a moment ago") },
            error => error,
        })
    }

    /// The ids that `texts` mean, each once, as [`resolve`](Self::resolve) finds them. What is named by its id need not be readable.
    pub fn resolve_ids(&self, texts: &[String]) -> Result<Vec<PointId>> {
        let ids = self.point_ids()?;
        let mut found = Vec::with_capacity(texts.len());
        for text in texts {
            found.push(match latest_name(text) {
                Some(name) => {
                    let point = self.latest(text, &ids, name)?;
                    point.point_id().ok_or_else(|| Error::damaged(&point.id, "its id is none"))?
                }
                None => self.find_id(text, &ids)?,
            });
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn latest(&self, text: &str, ids: &[PointId], name: Option<&str>) -> Result<RecoveryPoint> {
        self.newest(ids, name)?.ok_or_else(|| Error::NoSuchPoint { what: self.none_text(text, ids) })
    }

    /// The one of `ids` that begins with `text`.
    fn find_id(&self, text: &str, ids: &[PointId]) -> Result<PointId> {
        let text = text.to_ascii_lowercase();
        let found: Vec<&PointId> = ids.iter().filter(|id| id.to_string().starts_with(&text)).collect();
        match found[..] {
            [id] if text.len() >= PREFIX_CHARS_MIN => Ok(*id),
            [] => Err(Error::NoSuchPoint { what: self.none_text(&text, ids) }),
            [_] => Err(Error::NoSuchPoint {
                what: format!("{text} is too short, give at least {PREFIX_CHARS_MIN} characters"),
            }),
            _ => {
                let mut shown: Vec<String> =
                    found.iter().take(AMBIGUOUS_SHOWN).map(|id| id.to_string()).collect();
                if found.len() > AMBIGUOUS_SHOWN {
                    shown.push("…".into());
                }
                let what = format!("{text} is the beginning of {} ids: {}", found.len(), shown.join(", "));
                Err(Error::NoSuchPoint { what })
            }
        }
    }

    /// The newest point called `name` (or of any name) that is not dated in the future. Damaged points are passed over
    /// with a warning, and so are those of the future: one night with a wrong clock would win over all that follow.
    pub fn newest(&self, ids: &[PointId], name: Option<&str>) -> Result<Option<RecoveryPoint>> {
        let (ids, future) = ids.split_at(ids.len() - future_points(ids, self.unix_ms()).len());
        future.iter().for_each(|id| dated::pass_over(self, *id, name));
        let newest_first: Vec<PointId> = ids.iter().rev().copied().collect();
        let at_a_time = self.store.habits().parallel_reads;
        // The newest of a name is mostly among the newest of all: few are read before many are.
        let (mut from, mut batch) = (0, 1);
        let is_it = |point: &RecoveryPoint| name.is_none_or(|name| point.name == name);
        let ends = |read: &Result<Option<RecoveryPoint>>| match read {
            Ok(point) => point.as_ref().is_some_and(is_it),
            Err(error) => !is_of_one_point(error),
        };
        while from < newest_first.len() {
            let next = &newest_first[from..newest_first.len().min(from + batch)];
            for read in fan::map(next, at_a_time, ends, |id| self.read_listed_point(*id)) {
                match read {
                    Ok(Some(point)) if is_it(&point) => return Ok(Some(point)),
                    Ok(_) => {}
                    Err(error) if error.is_damage() => {
                        tracing::warn!("passing over a recovery point: {error}")
                    }
                    Err(error) => return Err(error),
                }
            }
            (from, batch) = (from + next.len(), (batch * 4).min(at_a_time));
        }
        Ok(None)
    }

    fn none_text(&self, asked: &str, ids: &[PointId]) -> String {
        if ids.is_empty() {
            return format!("{asked}; {} holds none yet", self.location());
        }
        let future = future_points(ids, self.unix_ms()).len();
        if future > 0 {
            return format!(
                "{asked}; {} holds {} points, {future} of them dated in the future and to be named by their ids, \
                 `penstock list` shows them",
                self.location(),
                ids.len()
            );
        }
        format!("{asked}; {} holds {} points, `penstock list` shows them", self.location(), ids.len())
    }
}

/// True if an error says something of one point, and nothing of the others.
fn is_of_one_point(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::NewerVersion { .. })
}

/// The name after `latest`, if that is what `text` says.
pub(crate) fn latest_name(text: &str) -> Option<Option<&str>> {
    match text.strip_prefix("latest")? {
        "" => Some(None),
        rest => rest.strip_prefix(':').map(Some),
    }
}
