//! Requests made of a store, and what they cost.

use penstock_engine::repo::Repository;
use penstock_engine::store::Requests;
use serde::Serialize;

use super::output::Facts;
use super::units;

/// A fact of reports, in `--json` as two fields.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spent {
    requests: Requests,
    /// Null where requests cost nothing.
    request_usd: Option<f64>,
}

impl Spent {
    /// Everything since the repository was opened, and the opening.
    pub fn of(repo: &Repository) -> Self {
        Self::since(repo, Requests::default())
    }

    /// What came after `before`.
    pub fn since(repo: &Repository, before: Requests) -> Self {
        let now = repo.requests();
        let requests = Requests {
            get: now.get - before.get,
            put: now.put - before.put,
            list: now.list - before.list,
            delete: now.delete - before.delete,
            retried: now.retried - before.retried,
        };
        let request_usd = repo.store().habits().bills_requests.then(|| requests.usd());
        Self { requests, request_usd }
    }

    /// Says it where it costs something.
    pub fn add_to(&self, facts: &mut Facts) {
        if let Some(text) = self.text() {
            facts.add("requests", text);
        }
    }

    /// `12 get, 3 put, 2 list: about 0.0000 USD`.
    pub fn text(&self) -> Option<String> {
        let usd = self.request_usd?;
        let Requests { get, put, list, retried, .. } = self.requests;
        let mut text = [(get, "get"), (put, "put"), (list, "list")]
            .map(|(count, kind)| format!("{} {kind}", units::count(count)))
            .join(", ");
        if retried > 0 {
            text += &format!(", {} of them again", units::count(retried));
        }
        Some(format!("{text}: about {usd:.4} USD at S3's prices"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_only_where_it_costs_something() {
        let requests = Requests { get: 1200, put: 40, list: 2, delete: 0, retried: 3 };
        let free = Spent { requests, request_usd: None };
        assert_eq!(free.text(), None);
        let billed = Spent { requests, request_usd: Some(requests.usd()) };
        assert_eq!(
            billed.text().unwrap(),
            "1,200 get, 40 put, 2 list, 3 of them again: about 0.0007 USD at S3's prices"
        );
    }
}
