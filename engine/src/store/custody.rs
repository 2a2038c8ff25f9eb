//! What some object stores do beside keeping bytes: they refuse to delete objects before a date (Object Lock), and keep some where they have to be
//! thawed before they can be read (archive classes).

use std::time::Duration;

use jiff::Timestamp;

use crate::error::Result;

/// How strong a lock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// Whoever has the right to bypass it (`s3:BypassGovernanceRetention`) can.
    Governance,
    /// Nobody can, not even the owner of the account.
    Compliance,
}

impl LockMode {
    /// As S3 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

/// Locks on what is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectLock {
    /// How strong.
    pub mode: LockMode,
    /// For how long a recovery point cannot be destroyed after it was made.
    pub period: Duration,
}

impl ObjectLock {
    /// Until when an object is locked that is written, or whose lock is extended, at `now`: half a period longer than promised. So a point that is made within
    /// half a period from then can refer to it and keep its promise, and each object's lock is extended once in half a period at most.
    pub fn until(&self, now: Timestamp) -> Timestamp {
        later(now, self.period.saturating_add(self.period / 2))
    }

    /// Until when an object must be locked that something published at `now` refers to.
    pub fn required(&self, now: Timestamp) -> Timestamp {
        later(now, self.period)
    }
}

/// In whole seconds, which is what the header has.
fn later(now: Timestamp, by: Duration) -> Timestamp {
    let seconds = now.as_second().saturating_add(i64::try_from(by.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// Whether an object can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Availability {
    /// Now.
    Ready,
    /// Now; it was thawed, and the copy goes away at some time.
    Thawed,
    /// Later: thawing was requested.
    Thawing,
    /// Not before it is thawed.
    Archived,
}

impl Availability {
    /// True if it can be read now.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Ready | Self::Thawed)
    }
}

/// What a store says of an object without its bytes.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its length.
    pub bytes: u64,
    /// Its storage class, as the service writes it; `STANDARD` where it says nothing.
    pub class: String,
    /// Whether it can be read.
    pub availability: Availability,
    /// Until when it cannot be deleted, if it is locked and the credentials may know it (`s3:GetObjectRetention`).
    pub locked_until: Option<Timestamp>,
}

/// How fast, and so how expensive, thawing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThawSpeed {
    /// The cheapest: half a day to two days.
    Bulk,
    /// Hours.
    Standard,
    /// Minutes, where the class has it.
    Expedited,
}

impl ThawSpeed {
    /// From slow to fast.
    pub const ALL: [Self; 3] = [Self::Bulk, Self::Standard, Self::Expedited];

    /// As S3 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "Bulk",
            Self::Standard => "Standard",
            Self::Expedited => "Expedited",
        }
    }
}

/// A request to thaw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thaw {
    /// How fast.
    pub speed: ThawSpeed,
    /// How long the readable copy stays, in days.
    pub days: u32,
}

/// What became of a request to thaw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thawing {
    /// It is under way, by this request or an earlier one.
    UnderWay,
    /// The object can be read already; its copy stays for the days asked for.
    Done,
}

/// What became of the locks of some objects.
#[derive(Clone, Debug, Default)]
pub struct Extended {
    /// Locks that are longer now.
    pub extended: Vec<String>,
    /// Locks that were long enough.
    pub long_enough: usize,
    /// Objects that are not there (or hidden by a delete marker), and objects whose length is not what was expected.
    pub wrong: Vec<String>,
}

/// The optional capabilities of a store. Everything here works on many objects at a time and is retried and counted as other requests are.
pub trait Custody: Send + Sync {
    /// How what is written is locked, if it is.
    fn lock(&self) -> Option<ObjectLock>;

    /// True if data packs are written to a class that must be thawed.
    fn archives(&self) -> bool;

    /// What is known of objects, in their order; `None` for those that are not there.
    fn facts(&self, keys: &[String]) -> Result<Vec<Option<Facts>>>;

    /// Asks for objects to be made readable. Asking twice does no harm. The class is the object's own: a service with tiers of its own takes no days for them.
    fn thaw(&self, objects: &[(String, Facts)], how: Thaw) -> Result<Vec<Thawing>>;

    /// Makes the locks of objects last until `until` where they end before `required`. Each object costs a HEAD, and those that are extended a PUT.
    /// With a length, an object of another length is told as wrong and left alone.
    fn extend(
        &self,
        objects: &[(String, Option<u64>)],
        required: Timestamp,
        until: Timestamp,
    ) -> Result<Extended>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_locked_serves_points_for_half_a_period() {
        let day = Duration::from_secs(86_400);
        let lock = ObjectLock { mode: LockMode::Compliance, period: day * 30 };
        let now: Timestamp = "2026-11-24T10:00:00.5Z".parse().unwrap();
        let until = lock.until(now);
        assert_eq!(until.to_string(), "2027-01-08T10:00:00Z");
        assert!(lock.required(now + day * 14) <= until);
        assert!(lock.required(now + day * 16) > until);
        assert_eq!(ObjectLock { period: Duration::MAX, ..lock }.until(now), Timestamp::MAX);
    }
}
