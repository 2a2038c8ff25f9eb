//! Recovery points dated in the future: a clock was wrong when they were made. They are never `latest` and no parent, or
//! one such night would win over all that follow.

use crate::id::PointId;
use crate::limits::CLOCK_TOLERANCE_MS;
use crate::repo::Repository;

/// Those of `ids` (oldest first) that are dated in the future, when it is `now_ms` (Unix milliseconds).
pub fn future_points(ids: &[PointId], now_ms: u64) -> &[PointId] {
    let latest_ms = now_ms.saturating_add(CLOCK_TOLERANCE_MS);
    &ids[ids.partition_point(|id| id.unix_ms() <= latest_ms)..]
}

/// Says that a point of the future, if it is called `name`, is not taken.
pub(crate) fn pass_over(repo: &Repository, id: PointId, name: Option<&str>) {
    let point = repo.read_point(id).ok();
    if let Some(point) = point.filter(|point| name.is_none_or(|name| point.name == name)) {
        tracing::warn!(
            "passing over recovery point {} of {:?}: it is dated {}, in the future by this machine's clock. \
             Name it by its id to use it; `penstock forget` with its id removes it",
            point.id,
            point.name,
            point.started_at
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crypto::wrap::AccessKey;
    use crate::format::point::RecoveryPoint;
    use crate::repo::InitOptions;
    use crate::store::{MemoryStore, Store};

    /// A point of nothing, dated `unix_ms`.
    fn publish_at(repo: &Repository, name: &str, unix_ms: u64) -> String {
        let id = PointId::at(unix_ms).unwrap().to_string();
        let json = format!(
            r#"{{"id":"{id}","name":"{name}","started_at":"","finished_at":"","parent":null,"tags":{{}},"host":"h",
            "program":"p","volumes":[]}}"#
        );
        let point_id = PointId::from_hex(&id).unwrap();
        repo.publish(&RecoveryPoint::from_json("p", json.as_bytes(), &point_id).unwrap()).unwrap();
        id
    }

    #[test]
    fn latest_is_never_of_the_future() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let repo = Repository::init(store, &InitOptions::default(), &AccessKey::passphrase("p")).unwrap();
        let now_ms = repo.unix_ms();
        let far = publish_at(&repo, "far", now_ms + 3_600_000);
        let text = repo.resolve("latest").unwrap_err().to_string();
        assert!(text.contains("1 of them dated in the future"), "{text}");
        let past = publish_at(&repo, "m", now_ms - 3_600_000);
        let future = publish_at(&repo, "m", now_ms + 10 * 365 * 86_400_000);
        for latest in ["latest", "latest:m"] {
            assert_eq!(repo.resolve(latest).unwrap().id, past);
        }
        assert_eq!(repo.resolve(&future).unwrap().id, future, "named by its id it is there");
        let ids = repo.point_ids().unwrap();
        let expected: Vec<String> = future_points(&ids, now_ms).iter().map(|id| id.to_string()).collect();
        assert_eq!(expected, [far, future]);
        // Clocks differ a little.
        let soon = publish_at(&repo, "m", now_ms + 60_000);
        assert_eq!(repo.resolve("latest:m").unwrap().id, soon);
    }
}
