//! Handing over: what was restored becomes the user's. Its tags are set again, and what makes it this program's is taken from it.

use super::Result;
use crate::aws::clients::Clients;
use crate::aws::snapshots;
use crate::aws::tags::{self, Tags};
use crate::ec2run::ledger::Ledger;

/// In the journal: all that stays is known to stay.
const HANDED_OVER: &str = "handed over";

/// Something that was restored.
pub(super) struct Restored {
    /// `i-…`, `vol-…`.
    pub id: String,
    /// Tags of its own.
    pub tags: Tags,
}

impl Restored {
    /// A volume; `name` is that in the recovery point, if it is of one.
    pub fn volume(id: &str, own: Tags, name: Option<&str>) -> Self {
        let mut tags = own;
        tags.extend(name.map(|name| (tags::VOLUME.to_owned(), name.to_owned())));
        Self { id: id.to_owned(), tags }
    }
}

/// What handing over takes.
pub(super) struct Handover<'a> {
    /// AWS.
    pub aws: &'a Clients,
    /// What is made.
    pub ledger: &'a Ledger,
    /// What was restored.
    pub recovery_point: &'a str,
    /// Its repository.
    pub repository: &'a str,
}

impl Handover<'_> {
    /// Whether a run that died had come this far.
    pub fn is_done(&self) -> bool {
        self.ledger.is_done(HANDED_OVER)
    }

    /// Makes all of it stay, or nothing: until the one call that does, a failure undoes everything; after it, nothing does.
    pub async fn all(&self, restored: &[Restored]) -> Result<()> {
        let (aws, ledger) = (self.aws, self.ledger);
        let ids: Vec<&str> = restored.iter().map(|r| r.id.as_str()).collect();
        if ids.is_empty() || self.is_done() {
            return Ok(());
        }
        for one in restored.iter().filter(|r| !r.tags.is_empty()) {
            snapshots::retag(aws, &[&one.id], &one.tags, &[]).await?;
        }
        let stay = Tags::from([
            (tags::PURPOSE.to_owned(), tags::RESTORED.to_owned()),
            (tags::POINT.to_owned(), self.recovery_point.to_owned()),
            (tags::REPOSITORY.to_owned(), self.repository.to_owned()),
        ]);
        snapshots::retag(aws, &ids, &stay, &[]).await?;
        for id in &ids {
            ledger.settled(id)?;
        }
        ledger.done(HANDED_OVER)
    }

    /// Takes the run's tag from what stays: without it, the policy lets this program end or delete it no more.
    pub async fn let_go(&self, restored: &[Restored], notes: &mut Vec<String>) {
        let ids: Vec<&str> = restored.iter().map(|r| r.id.as_str()).collect();
        if ids.is_empty() {
            return;
        }
        if let Err(error) = snapshots::untag(self.aws, &ids, &[tags::EXPIRES, tags::RUN]).await {
            notes.push(format!(
                "the tags {} and {} stay on what was restored: {error}",
                tags::RUN,
                tags::EXPIRES
            ));
        }
    }
}
