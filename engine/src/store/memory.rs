//! A store in memory, for tests and `memory:`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::{Body, PutOutcome, Span, Store};
use crate::error::Result;

/// Objects in a map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl MemoryStore {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        // A panic of another thread cannot leave the map half changed: every change is one insert or remove.
        self.objects.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Store for MemoryStore {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(PutOutcome::Exists);
        }
        objects.insert(key.to_owned(), body.as_bytes().to_vec());
        Ok(PutOutcome::Created)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        out.clear();
        let objects = self.objects();
        let Some(bytes) = objects.get(key) else { return Ok(None) };
        let range = match span {
            Span::All => 0..bytes.len(),
            Span::At { offset, len } => {
                let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                start..bytes.len().min(start.saturating_add(len))
            }
            Span::Last(len) => bytes.len().saturating_sub(len)..bytes.len(),
        };
        out.extend_from_slice(&bytes[range]);
        Ok(Some(bytes.len() as u64))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        for (key, bytes) in self.objects().iter().filter(|(key, _)| key.starts_with(prefix)) {
            each(key, bytes.len() as u64);
        }
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects().remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        crate::store::conformance::check(&MemoryStore::default());
    }
}
