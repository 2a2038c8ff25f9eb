//! Which packs a store holds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::format::header::ObjectKind;
use crate::id::ObjectId;
use crate::store::Store;

/// Packs from which a store that bills requests is listed in parts side by side: four pages.
const PARTS_FROM: usize = 4000;

/// All packs with their kind and length, in the order of their names. `expected` says about how many there are.
pub fn list_packs(store: &dyn Store, expected: usize) -> Result<BTreeMap<ObjectId, (ObjectKind, u64)>> {
    let packs = Mutex::new(BTreeMap::new());
    let list = |kind: ObjectKind, part: &str| {
        let mut found = Vec::new();
        store.list(&format!("{}{part}", kind.prefix()), &mut |key, bytes| {
            let name = key.rsplit('/').next().unwrap_or(key);
            found.extend(ObjectId::from_hex(name).map(|id| (id, (kind, bytes))));
        })?;
        packs.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        Ok(())
    };
    list(ObjectKind::Meta, "")?;
    if expected < PARTS_FROM || !store.habits().bills_requests {
        list(ObjectKind::Data, "")?;
    } else {
        std::thread::scope(|scope| {
            let list = &list;
            let parts: Vec<_> = (0..16u8)
                .map(|digit| scope.spawn(move || list(ObjectKind::Data, &format!("{digit:x}"))))
                .collect();
            parts
                .into_iter()
                .try_for_each(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
    }
    Ok(packs.into_inner().unwrap_or_else(PoisonError::into_inner))
}
