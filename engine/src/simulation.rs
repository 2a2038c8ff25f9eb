//! What the simulation of the repository's protocols (`tests/simulation`) reaches inside: bugs that can be
//! switched on, to
//! show that it would find them, its random source, and limits so small that little data exercises them.
//! Without the
//! feature `simulation` all of it compiles to what it would be without this module.

/// A limit: the usual one, or the one of the simulation.
pub(crate) const fn sized(usual: usize, simulated: usize) -> usize {
    if cfg!(feature = "simulation") { simulated } else { usual }
}

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    /// What is known from a pack's table of contents alone counts as stored.
    NearbyBelieved,
    /// A writer does not ask after publishing if its lease is still there.
    ConfirmNotAsked,
    /// A collector that did not know the newest decision deletes what it found to be needless.
    OutdatedDecides,
    /// A listed point that is not found counts as forgotten.
    AbsentForgotten,
    /// A listed decision that is not found counts as removed.
    AbsentRecordSkipped,
    /// A round is decided although its grace is not over.
    SweptBeforeGrace,
    /// A recovery point is published before the index segment that it needs.
    PointBeforeIndex,
    /// A pack counts as durable before it is stored.
    PackAfterIndex,
    /// A writer publishes however old its lease is, or lost.
    LeaseNotChecked,
    /// A process that cannot be seen is taken for ended.
    HiddenIsDead,
    /// A merge keeps the oldest row of an id, even if its pack is condemned.
    MergeTakesOlder,
    /// What a journal says is finished is not looked up.
    JournalBelieved,
    /// A fence names nobody.
    FenceNotWritten,
    /// A collector lists the recovery points before the leases.
    PointsBeforeLeases,
    /// A collector decides rounds that came after it had listed the leases.
    NewRoundsDecided,
    /// A writer reads the records of collection before it takes its lease.
    StateBeforeLease,
    /// A writer relies on condemned packs.
    CondemnedTrusted,
    /// A merge deletes its inputs before its last part is stored.
    InputsDeletedEarly,
    /// A decision deletes all that was condemned, needed or not.
    RescueIgnored,
    /// Writers rely on packs that were put aside as damaged.
    AsideTrusted,
    /// A collector does not wait for a writer that it takes for dead, and leaves it its lease.
    DeadLeaseKept,
    /// Decisions are forgotten at once.
    DecisionsForgotten,
    /// A parent that may lean on condemned packs is used unseen.
    ParentTrusted,
    /// Rounds that did not know of each other cover a point together.
    RoundsUnaware,
    /// The last part of a merge supersedes its inputs although other parts were not listed.
    HalfMergeBelieved,
    /// Readers look for contents in packs that were decided on.
    DeletedFound,
}

#[cfg(feature = "simulation")]
impl Bug {
    /// Those that some world shows.
    pub const FOUND: &[Bug] = &[
        Bug::NearbyBelieved,
        Bug::ConfirmNotAsked,
        Bug::OutdatedDecides,
        Bug::AbsentForgotten,
        Bug::AbsentRecordSkipped,
        Bug::SweptBeforeGrace,
        Bug::PointBeforeIndex,
        Bug::PackAfterIndex,
        Bug::LeaseNotChecked,
        Bug::HiddenIsDead,
        Bug::MergeTakesOlder,
        Bug::JournalBelieved,
        Bug::FenceNotWritten,
        Bug::PointsBeforeLeases,
        Bug::NewRoundsDecided,
        Bug::StateBeforeLease,
        Bug::CondemnedTrusted,
        Bug::InputsDeletedEarly,
        Bug::RescueIgnored,
        Bug::AsideTrusted,
        Bug::DeadLeaseKept,
        Bug::DeletedFound,
    ];

    /// Those that no world has shown so far. Behind the first two stands a second line: packs are listed by whoever
    /// writes, and what is not found is looked up a second time. The order of things that shows the others is rare.
    pub const NOT_FOUND: &[Bug] =
        &[Bug::DecisionsForgotten, Bug::HalfMergeBelieved, Bug::ParentTrusted, Bug::RoundsUnaware];
}

#[cfg(not(feature = "simulation"))]
mod off {
    /// True if this bug is planted: never.
    #[inline(always)]
    pub(crate) const fn planted(_: super::Bug) -> bool {
        false
    }

    /// Fills `bytes` from the simulation's source, if there is one: there is none.
    #[inline(always)]
    pub(crate) const fn random(_: &mut [u8]) -> bool {
        false
    }
}
#[cfg(not(feature = "simulation"))]
pub(crate) use off::{planted, random};

#[cfg(feature = "simulation")]
mod on {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;
    use crate::error::Result;
    use crate::format::collection::{Decided, decision_number};
    use crate::format::header::ObjectKind;
    use crate::gc_state::read_json;
    use crate::id::ObjectId;
    use crate::repo::Repository;

    static PLANTED: AtomicU8 = AtomicU8::new(u8::MAX);
    static SOURCE: OnceLock<RandomSource> = OnceLock::new();

    /// Fills its argument.
    pub type RandomSource = Box<dyn Fn(&mut [u8]) + Send + Sync>;

    /// Plants one bug, or none, in all of this process.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.store(bug.map_or(u8::MAX, |bug| bug as u8), Ordering::SeqCst);
    }

    /// Draws from `source` from now on. For the first call only.
    pub fn draw_from(source: RandomSource) {
        let _ = SOURCE.set(source);
    }

    /// The rounds of a decision; none if the record of this name is something else.
    pub fn rounds_decided(repo: &Repository, name: ObjectId) -> Result<Vec<ObjectId>> {
        if decision_number(name).is_none() {
            return Ok(Vec::new());
        }
        let kind = ObjectKind::Collection;
        let read =
            read_json(repo.store().as_ref(), repo.keys(), kind, name, |decided: &Decided| &decided.id)?;
        let rounds = read.map(|decided| decided.rounds).unwrap_or_default();
        Ok(rounds.iter().filter_map(|round| ObjectId::from_hex(round)).collect())
    }

    /// True if this bug is planted.
    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }

    /// Fills `bytes` from the simulation's source, if there is one.
    pub(crate) fn random(bytes: &mut [u8]) -> bool {
        SOURCE.get().inspect(|source| source(bytes)).is_some()
    }
}
#[cfg(feature = "simulation")]
pub use on::{RandomSource, draw_from, plant, rounds_decided};
#[cfg(feature = "simulation")]
pub(crate) use on::{planted, random};
