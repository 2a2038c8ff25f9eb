//! Bodies for what runs leave behind: leases, records of garbage collection, journals, entries of the cache; and for
//! whole objects.

use std::sync::Arc;

use penstock_engine::Error;
use penstock_engine::format::collection::{
    Condemned, Decided, Fence, LeaseBody, Stage, Writer, decision_name, decision_number, from_json,
    split_name, stage_name,
};
use penstock_engine::format::header::{HEADER_BYTES, Header, ObjectKind, TRAILER_BYTES};
use penstock_engine::fuzzing;
use penstock_engine::id::{ObjectId, PointId};
use penstock_engine::pack::read_contents;
use penstock_engine::store::{Body, MemoryStore, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{OBJECT, accepted, decoded, u32_at};

/// The JSON of a lease, and its name.
pub fn lease(data: &[u8]) {
    if let Some(name) = data.first_chunk().map(|name| ObjectId::new(*name)) {
        let writer = Writer::of(name);
        assert_eq!(Writer::of(writer.lease(u16::MAX)), writer);
        assert_eq!(ObjectId::from_hex(&name.to_string()), Some(name));
    }
    record(data, |lease: &LeaseBody| &lease.id);
}

/// The JSON of a record of garbage collection, as each of the three stages; and its name.
pub fn gc_record(data: &[u8]) {
    if let Some(name) = data.first_chunk().map(|name| ObjectId::new(*name)) {
        match split_name(name) {
            Some((round, stage)) => assert_eq!(stage_name(round, stage), name),
            None => assert!(name.as_bytes()[15] > Stage::Decided as u8),
        }
    }
    if let Some(number) = data.first_chunk().map(|number| u64::from_le_bytes(*number)) {
        assert_eq!(decision_number(decision_name(number)), Some(number));
    }
    record(data, |record: &Condemned| &record.id);
    record(data, |record: &Fence| &record.id);
    record(data, |record: &Decided| &record.id);
}

/// Under the name that it gives itself, so that the checks behind the comparison are reached; and under another one.
fn record<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    json: &[u8],
    own: impl Fn(&T) -> &str,
) {
    let Ok(value) = serde_json::from_slice::<T>(json) else {
        assert!(from_json(OBJECT, json, |_: &T| "").is_err());
        return;
    };
    let name = own(&value).to_owned();
    let object = format!("{OBJECT}/{name}");
    let Some(read) = decoded(from_json(&object, json, &own)) else { return };
    let again = serde_json::to_vec(&read).expect("a record can be written");
    assert_eq!(from_json(&object, &again, &own).expect("what was written can be read"), value);
    assert!(from_json(&format!("{OBJECT}/x{name}x"), json, &own).is_err(), "swapped");
}

/// The packed JSON of a lease or record.
pub fn packed_record(data: &[u8]) {
    const LIMIT: usize = 1 << 20;
    if let Some(json) = fuzzing::unpacked_record(data, LIMIT) {
        accepted();
        assert!(json.len() <= LIMIT);
    }
}

/// A whole object of one region: as it is, with the magic and checksums of its ends put right, and as contents to be
/// sealed.
pub fn sealed_object(data: &[u8]) {
    if let Some(contents) = fuzzing::sealed_object(data) {
        accepted();
        assert_eq!(contents.len() + HEADER_BYTES + 16 + TRAILER_BYTES, data.len());
    }
    let sealed = fuzzing::seal_object(data);
    assert_eq!(fuzzing::sealed_object(&sealed).as_deref(), Some(data));
    // some of it from the input, the rest as it should be
    let mut mixed = sealed;
    let at = u32_at(data, 0) as usize % mixed.len();
    for (byte, other) in mixed[at..].iter_mut().zip(data) {
        *byte ^= other;
    }
    if data.iter().take(mixed.len() - at).any(|byte| *byte != 0) {
        assert_eq!(fuzzing::sealed_object(&mixed), None, "a byte was changed and nobody noticed");
    }
}

/// A whole pack. Input: what is between header and trailer, the table of contents in it authentic; then a pack that
/// is the input as it is.
pub fn pack(data: &[u8]) {
    let keys = fuzzing::keys();
    let id = ObjectId::new([7; 16]);
    let (header, key) = keys.new_object(ObjectKind::Data, *id.as_bytes()).expect("random bytes");
    let frames = u32_at(data, 0) as usize % (data.len() + 1);
    let (frames, toc) = data.split_at(frames);
    let mut object = [&header.encode()[..], frames, toc, &[0; 16]].concat();
    let tail_offset = HEADER_BYTES + frames.len();
    key.seal(tail_offset as u64, &[0; 32], &mut object[tail_offset..]);
    let tail_bytes = (object.len() - tail_offset) as u32;
    let trailer = penstock_engine::format::header::Trailer {
        tail_offset: tail_offset as u64,
        tail_stored_bytes: tail_bytes,
        count: (toc.len() / penstock_engine::format::pack::TOC_ROW_BYTES) as u32,
    };
    object.extend_from_slice(&trailer.encode(id.as_bytes()));
    for bytes in [&object[..], data] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let name = ObjectKind::Data.key(&id.to_string());
        store.put_new(&name, Body::Bytes(bytes)).expect("memory");
        match read_contents(store.as_ref(), &keys, ObjectKind::Data, id) {
            Ok((pack, rows)) => {
                accepted();
                assert_eq!(pack.bytes as usize, bytes.len());
                let end = bytes.len() - TRAILER_BYTES;
                assert!(rows.iter().all(|row| (row.offset + row.stored_bytes) as usize <= end));
            }
            Err(error) => {
                assert!(error.is_damage() || matches!(error, Error::NewerVersion { .. }), "{error}");
                assert!(error.to_string().contains(&name), "{error}");
            }
        }
    }
    let _ = Header::decode(OBJECT, data, ObjectKind::Data, id.as_bytes());
}

/// The journal of a backup: a line of JSON, then records.
pub fn backup_journal(data: &[u8]) {
    fuzzing::backup_journal(data);
    let head =
        br#"{"version":1,"repository_id":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","name":"web","volumes":[]}"#;
    fuzzing::backup_journal(&[head, &b"\n"[..], data].concat());
    // records whose checksums are right
    let mut records = Vec::new();
    for record in data.chunks_exact(44) {
        records.extend_from_slice(record);
        records.extend_from_slice(&blake3::hash(record).as_bytes()[..4]);
    }
    fuzzing::backup_journal(&[head, &b"\n"[..], &records].concat());
    accepted();
}

/// The journal of a restore: a line of JSON, then records.
pub fn restore_journal(data: &[u8]) {
    fuzzing::restore_journal(data);
    let line = data.iter().position(|byte| *byte == b'\n').map_or(data.len(), |end| end + 1);
    let mut mended = data[..line].to_vec();
    for record in data[line..].chunks(12).filter(|record| record.len() == 12) {
        mended.extend_from_slice(&record[..8]);
        mended.extend_from_slice(&blake3::hash(&record[..8]).as_bytes()[..4]);
    }
    fuzzing::restore_journal(&mended);
    accepted();
}

/// An entry of the local cache of an object store.
pub fn cache_entry(data: &[u8]) {
    if fuzzing::cache_entry(data) {
        accepted();
    }
}

/// Names of points in lists: nothing but 32 lower-case hex digits is one.
pub fn names(text: &str) {
    for id in
        [PointId::from_hex(text).map(|id| id.to_string()), ObjectId::from_hex(text).map(|id| id.to_string())]
            .into_iter()
            .flatten()
    {
        assert_eq!(id, text);
    }
}
