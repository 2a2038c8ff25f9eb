//! Removes recovery points. Only what makes them points is deleted: what they referred to stays until garbage collection.

use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::id::PointId;
use crate::repo::Repository;
use crate::run::Run;

/// Removes points, the oldest first, and tells `each` of them; those that are gone already are no error. Ends early, with some of them removed and the others as
/// they were, if the store fails or the run is cancelled.
///
/// Other points may have them as parents: a parent is a hint, and needed by nothing.
pub fn remove(repo: &Repository, ids: &[PointId], run: &Run, each: &mut dyn FnMut(PointId)) -> Result<()> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if run.is_cancelled() {
            return Err(Error::Cancelled);
        }
        fail::fail_point!("forget-before-delete");
        repo.store().delete(&ObjectKind::Point.key(&id.to_string()))?;
        each(id);
    }
    // A point that came back after its packs were collected would be hollow.
    repo.store().settle(ObjectKind::Point.prefix())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::crypto::wrap::AccessKey;
    use crate::format::config::Encryption;
    use crate::format::point::RecoveryPoint;
    use crate::repo::{InitOptions, Listed};
    use crate::store::{MemoryStore, Store};

    fn repository() -> (Repository, Vec<PointId>) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let options = InitOptions { encryption: Encryption::None, ..InitOptions::default() };
        let repo = Repository::init(store, &options, &AccessKey::None).unwrap();
        let ids: Vec<PointId> = (1..6).map(|n| PointId::at(n * 1000).unwrap()).collect();
        for id in &ids {
            let point = RecoveryPoint {
                id: id.to_string(),
                name: "web".into(),
                started_at: String::new(),
                finished_at: String::new(),
                parent: None,
                tags: BTreeMap::new(),
                host: String::new(),
                program: String::new(),
                volumes: Vec::new(),
                other: BTreeMap::new(),
            };
            repo.publish(&point).unwrap();
        }
        (repo, ids)
    }

    #[test]
    fn the_oldest_go_first_and_a_cancelled_run_leaves_the_rest() {
        let (repo, ids) = repository();
        let run = Run::new();
        let mut gone = Vec::new();
        let result = remove(&repo, &[ids[3], ids[0], ids[2], ids[0]], &run, &mut |id| {
            gone.push(id);
            if gone.len() == 2 {
                run.cancel();
            }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert_eq!(gone, [ids[0], ids[2]]);
        assert_eq!(repo.point_ids().unwrap(), [ids[1], ids[3], ids[4]]);
        // again: what is gone already is no error
        remove(&repo, &[ids[3], ids[0], ids[2]], &Run::new(), &mut |_| {}).unwrap();
        assert_eq!(repo.point_ids().unwrap(), [ids[1], ids[4]]);
    }

    #[test]
    fn a_point_that_goes_while_points_are_read_is_not_damage() {
        let (repo, ids) = repository();
        let listed = repo.read_points(&ids).unwrap();
        assert_eq!(listed.len(), 5);
        remove(&repo, &[ids[1], ids[4]], &Run::new(), &mut |_| {}).unwrap();
        let listed = repo.read_points(&ids).unwrap();
        assert!(listed.iter().all(|item| matches!(item, Listed::Point(_))) && listed.len() == 3);
        assert_eq!(repo.newest(&ids, Some("web")).unwrap().unwrap().id, ids[3].to_string());
    }
}
